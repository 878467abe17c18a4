"""ViT-B/16 and L/16 at 224 in bfloat16 on one GPU: training, inference, MFU, ratio to timm.

python benchmarks/gpu.py [OUT] [--seconds N] [--tiny]        usually through gpu.sh

Each part gets its share of the time that is left; what is measured so far is in OUT after each. A
part tries the batches of its list, and the fastest takes turns with timm under torch.compile. MFU
counts `model.flops` (three times that for an update) against the data sheet's dense bfloat16
FLOP/s; 'share_of_matmul' against a large product measured in the same run. What `vit plan` says of
a training step's memory is compiled meanwhile, on the CPU, and stands beside the measured peak.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import peers

from vit_jax import compilers
from vit_jax.commands import bench
from vit_jax.commands.bench import Case, CompiledStep, Worker


@dataclasses.dataclass(frozen=True)
class Part:
  """A model and a mode; `weight` is its share of the time."""

  case: Case
  batches: tuple[int, ...]
  weight: float


@dataclasses.dataclass(frozen=True)
class Size:
  """How large everything is.

  Fields:
    matmul: side of the square matrices.
    attention: (images, tokens, heads, channels of a head).
    turns, turn: measurements of a comparison, and seconds of each.
  """

  parts: tuple[Part, ...]
  matmul: int
  attention: tuple[int, int, int, int]
  turns: int
  turn: float


B, L = Case('ViT-B/16', dtype='bfloat16'), Case('ViT-L/16', dtype='bfloat16')
TI = Case('ViT-Ti/16', image_size=32, dtype='bfloat16', depth=2)
FULL = Size(
  parts=(
    Part(B, (256, 512, 128), 3),
    Part(dataclasses.replace(B, mode='infer'), (256, 512, 128), 2),
    Part(L, (128, 256, 64), 3.5),
    Part(dataclasses.replace(L, mode='infer'), (128, 256, 64), 2),
  ),
  matmul=8192,
  attention=(256, 197, 12, 64),
  turns=7,
  turn=1.0,
)
TINY = Size(
  parts=(Part(TI, (2, 4), 1), Part(dataclasses.replace(TI, mode='infer'), (2, 4), 1)),
  matmul=256,
  attention=(2, 17, 3, 64),
  turns=2,
  turn=0.05,
)


def matmul(size: Size) -> CompiledStep:
  """Products of two random square bfloat16 matrices."""
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size.matmul, size.matmul), jnp.bfloat16) for key in keys)
  product = jax.jit(jnp.matmul)
  facts = {'size': size.matmul, 'peak_flops': bench.metrics.peak_flops()}
  facts['device'] = {'kind': jax.devices()[0].device_kind, 'count': jax.device_count()}
  return CompiledStep(facts, (product(a, b) for _ in itertools.count()))


def attention(size: Size, implementation: str) -> CompiledStep:
  """Forward and backward passes of `jax.nn.dot_product_attention` alone, 'cudnn' or 'xla'."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, out = (jax.random.normal(key, size.attention, jnp.bfloat16) for key in keys)

  @jax.jit
  def gradients(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
      return jax.nn.dot_product_attention(q, k, v, implementation=implementation)

    return jax.vjp(attend, q, k, v)[1](out)

  return CompiledStep({'shape': size.attention}, (gradients(q, k, v) for _ in itertools.count()))


PROGRAMS = {
  'matmul': matmul,
  'cudnn': lambda size: attention(size, 'cudnn'),
  'xla': lambda size: attention(size, 'xla'),
}


def program_command(name: str, flags: argparse.Namespace) -> list[str]:
  """Starts a worker for one of PROGRAMS."""
  return [sys.executable, __file__, '--serve', name, *(['--tiny'] if flags.tiny else [])]


def measured_matmul(flags: argparse.Namespace, size: Size, limit: float) -> dict[str, Any]:
  """The product's TFLOP/s: what this device can do at best, in this run."""
  with Worker(program_command('matmul', flags), limit=limit) as worker:
    seconds = bench.take_turns({'': worker}, 3)['']
    facts = worker.finish()
  flops = 2 * size.matmul**3
  return facts | {'tflops': bench.spread([flops / s / 1e12 for s in seconds])}


def measured_attention(flags: argparse.Namespace, limit: float) -> dict[str, Any]:
  """Milliseconds of attention through cuDNN and XLA, and their ratio; or why there is no cuDNN."""
  with contextlib.ExitStack() as stack:
    workers = {
      name: stack.enter_context(Worker(program_command(name, flags), limit=limit))
      for name in ('xla', 'cudnn')
    }
    seconds = bench.take_turns(workers, 3)
    shape = workers['xla'].facts['shape']
  times = {name: bench.spread([1e3 * s for s in each]) for name, each in seconds.items()}
  faster = bench.ratio(seconds['cudnn'], seconds['xla'])
  return {'shape': shape, 'milliseconds': times, 'cudnn / xla': faster}


def measured_part(part: Part, size: Size, limit: float) -> dict[str, Any]:
  """The best batch of a part, and it against timm."""
  end = time.monotonic() + limit
  report: dict[str, Any] = {'model': part.case.model, 'mode': part.case.mode, 'timm': None}
  with contextlib.ExitStack() as stack:
    cases = [dataclasses.replace(part.case, batch=batch) for batch in part.batches]
    report['batches'], best = swept(stack, cases, size, end=end, until=end - 0.55 * limit)
    if best is None:
      return report
    case, worker = best
    workers = {'vit_jax': worker}
    try:
      command = [*peers.command(case, python=sys.executable), f'--turn={size.turn}']
      workers['timm'] = stack.enter_context(Worker(command, limit=end - 10 - time.monotonic()))
      return report | bench.compare(case, workers, size.turns, until=end - 20)
    except RuntimeError as error:
      report['timm_note'] = str(error)
    return report | bench.compare(case, {'vit_jax': worker}, size.turns, until=end - 5)


def start_plan(report: dict[str, Any]) -> subprocess.Popen[str]:
  """`vit plan` of the step that a report is of, for one such device, at work on the CPU."""
  facts = report['vit_jax']
  kind = facts['device']['kind'].lower()
  chip = next((name for name in compilers.CHIPS if name in kind), 'cpu')
  fields = {
    'model.name': facts['model'],
    'model.dtype': facts['dtype'],
    'model.remat': 'none',
    'image_size': facts['image_size'],
    'batch_size': facts['batch'],
    'optimizer.name': 'adamw',
    'optimizer.momentum_dtype': 'float32',
    'schedule.warmup': '5%',
  }
  if facts['depth'] is not None:
    fields['model.depth'] = facts['depth']
  words = [f'--config.{field}={value}' for field, value in fields.items()]
  command = [sys.executable, '-m', 'vit_jax', 'plan', '--config=default', f'--chips={chip}:1']
  return subprocess.Popen(
    [*command, '--tries=0', '--json', *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def measured_plan(
  plan: subprocess.Popen[str], report: dict[str, Any], limit: float
) -> dict[str, Any]:
  """The bytes of a plan, and the measured peak over them; None where no peak is measured."""
  try:
    out, errors = plan.communicate(timeout=limit)
  except subprocess.TimeoutExpired:
    plan.terminate()
    plan.communicate()
    raise RuntimeError(f'ran past its {limit:.0f} s') from None
  if not out:
    raise RuntimeError(errors.strip().rpartition('\n')[2])
  forecast = json.loads(out)
  if not (program := forecast['program']):
    raise RuntimeError(forecast['missing'])
  total = program['total'] or forecast['formulas']['memory']['total'] + program['temporary']
  peak = report['vit_jax']['peak_bytes']['device']
  return {
    'compiler': forecast['compiler'],
    'bytes': total,
    'peak / plan': peak / total if peak else None,
  }


def swept(
  stack: contextlib.ExitStack, cases: Sequence[Case], size: Size, *, end: float, until: float
) -> tuple[list[dict[str, Any]], tuple[Case, Worker] | None]:
  """Rates by batch, and the fastest case with its worker, kept; none starts after `until`."""
  rates: list[dict[str, Any]] = []
  best, fastest = None, 0.0
  for case in cases:
    if best and time.monotonic() > until:
      break
    try:
      worker = Worker(case.command(f'--turn={size.turn}'), limit=end - time.monotonic())
      stack.enter_context(worker)
      seconds = bench.take_turns({'': worker}, 2)['']
    except RuntimeError as error:
      rates.append({'batch': case.batch, 'error': str(error)})
      continue
    rate = case.batch / statistics.median(seconds)
    rates.append({'batch': case.batch, 'images_per_second': rate})
    slower = worker
    if rate > fastest:
      slower, best, fastest = best and best[1], (case, worker), rate
    if slower:
      slower.end()
  return rates, best


def shares(total: float, weights: Sequence[float]) -> Iterator[float]:
  """Seconds for each part in turn: what is left of the total, divided by weight."""
  end = time.monotonic() + total
  for index, weight in enumerate(weights):
    yield max(1.0, (end - time.monotonic()) * weight / sum(weights[index:]))


def attempt(name: str, measure: Any) -> dict[str, Any]:
  """What `measure()` gives, or the error that ended it: the rest goes on."""
  try:
    return measure()
  except RuntimeError as error:
    print(f'{name}: {error}', file=sys.stderr, flush=True)
    return {'error': str(error)}


def show(part: dict[str, Any], matmul_tflops: float | None) -> None:
  """Adds the share of the measured product to a part's reports, and prints a line for each."""
  for name in ('vit_jax', 'timm'):
    report = part.get(name)
    if not report:
      continue
    report['share_of_matmul'] = report['tflops'] / matmul_tflops if matmul_tflops else None
    used = {'MFU': report['mfu'], 'of matmul': report['share_of_matmul']}
    shown = ''.join(
      f'  {label} {fraction:.1%}' for label, fraction in used.items() if fraction is not None
    )
    rate = report['images_per_second']
    print(
      f'{part["model"]} {part["mode"]:5} {name:8} batch {report["batch"]:4} '
      f'{rate["median"]:10,.1f} images/s ({rate["min"]:,.1f} to {rate["max"]:,.1f}){shown}'
    )
  for pair, ratio in part.get('ratios', {}).items():
    print(f'  {pair}: {ratio["of_medians"]:.3f} ({ratio["min"]:.3f} to {ratio["max"]:.3f})')
  if part.get('timm_note'):
    print(f'  timm: {part["timm_note"]}')
  sys.stdout.flush()


def run(flags: argparse.Namespace, size: Size) -> dict[str, Any]:
  """Every part in turn; the results are written after each."""
  end = time.monotonic() + flags.seconds
  results: dict[str, Any] = {'provenance': bench.provenance(), 'tests': flags.tests}
  if flags.commit:
    results['provenance']['commit'] = flags.commit
  limits = shares(flags.seconds, [0.5, 0.7, *(part.weight for part in size.parts)])
  limit = next(limits)
  results['matmul'] = attempt('matmul', lambda: measured_matmul(flags, size, limit))
  limit = next(limits)
  results['attention'] = attempt('attention', lambda: measured_attention(flags, limit))
  for name in ('matmul', 'attention'):
    print(f'{name}: {json.dumps(bench.round_floats(results[name]))}', flush=True)
  peak = results['matmul'].get('tflops', {}).get('median')
  results['parts'], plans = [], []
  for part, limit in zip(size.parts, limits):
    name = f'{part.case.model} {part.case.mode}'
    report = attempt(name, lambda part=part, limit=limit: measured_part(part, size, limit))
    report = {'model': part.case.model, 'mode': part.case.mode} | report
    show(report, peak)
    results['parts'].append(report)
    if part.case.mode == 'train' and 'vit_jax' in report:
      plans.append((report, start_plan(report)))
    bench.write_results(flags.out, results)
  for report, plan in plans:
    limit = max(end - time.monotonic(), 1.0)
    report['plan'] = attempt('plan', lambda r=report, p=plan, t=limit: measured_plan(p, r, t))
    print(f'{report["model"]} plan: {json.dumps(bench.round_floats(report["plan"]))}', flush=True)
    bench.write_results(flags.out, results)
  return results


def main() -> int:
  flags = parser().parse_args()
  size = TINY if flags.tiny else FULL
  if flags.serve:
    return bench.serve(lambda: PROGRAMS[flags.serve](size), turn=size.turn)
  results = run(flags, size)
  print(f'the results are in {flags.out}')
  return 0 if all('vit_jax' in part for part in results['parts']) else 1


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(description='Measures B/16 and L/16 on a GPU.')
  flags.add_argument('out', nargs='?', default='benchmarks/results/gpu.json', help='%(default)s')
  flags.add_argument('--seconds', type=float, default=480, help='for everything')
  flags.add_argument('--tiny', action='store_true', help='a tiny model, to try this on a CPU')
  flags.add_argument('--tests', help='what the tests said, to be recorded')
  flags.add_argument('--commit', help='of this code, where the checkout is without its history')
  flags.add_argument('--serve', choices=PROGRAMS, help=argparse.SUPPRESS)
  return flags


if __name__ == '__main__':
  sys.exit(main())
