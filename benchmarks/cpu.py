"""ViT-Ti/16 and S/16 on this machine's processor: speed, compile time and memory, as JSON.

python benchmarks/cpu.py [OUT] [--torch-python PATH] [--quick]

Batches of 8 images of 224 x 224 in float32. Layers as a loop (unroll=1), which training has by
itself, with remat='lean'; unrolled (unroll=depth); and timm under torch.compile, where torch and
timm are installed, take turns. Then, with programs kept and without, a run of S/16 from its start
to its first loss. Takes about 6 minutes on 2 cores.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import peers

from vit_jax.commands import bench
from vit_jax.commands.bench import Case, Worker

CASES = [
  Case(model, mode, 8, 224, dtype='float32')
  for model in ('ViT-Ti/16', 'ViT-S/16')
  for mode in bench.MODES
]
QUICK = [Case('ViT-Ti/16', mode, 2, 32, dtype='float32', depth=2) for mode in bench.MODES]
LIMIT = 600.0  # seconds of one case
UPDATES = 20  # in which memory may grow; of training each takes as many, or more
RUN = (
  '--config=default',
  *(
    f'--config.{field}'
    for field in (
      'model.name=ViT-S/16',
      'image_size=(224,224)',
      'batch_size=8',
      'duration=100 steps',
      'data.source=digits',
      'data.augment=resize',
      'data.preprocess=resize',
      'schedule.warmup=10%',
      'system.log_every=1 step',
    )
  ),
)


def compared(case: Case, flags: argparse.Namespace) -> dict[str, Any]:
  """The reports of one case and their ratios."""
  turn = f'--turn={flags.turn}'
  if case.mode == 'train' and not flags.quick:
    turn = f'--steps={-(-UPDATES // flags.turns)}'
  depth = case.build().depth
  with contextlib.ExitStack() as stack:
    workers = {
      f'unroll={unroll}': stack.enter_context(
        Worker(dataclasses.replace(case, unroll=unroll).command(turn), limit=LIMIT)
      )
      for unroll in (depth, 1)
    }
    note = None
    try:
      command = [*peers.command(case, python=flags.torch_python), turn]
      workers['timm'] = stack.enter_context(Worker(command, limit=LIMIT))
    except (OSError, RuntimeError) as error:
      note = str(error)
      print(f'timm: {note}', file=sys.stderr)
    reports = bench.compare(case, workers, flags.turns)
  return reports if note is None else {**reports, 'timm': None, 'timm_note': note}


def show(case: Case, reports: dict[str, Any]) -> None:
  """A line for each worker, and for each ratio."""
  print(f'{case.model} {case.mode}, {case.batch} images of {case.image_size} x {case.image_size}')
  for name, report in reports.items():
    if isinstance(report, dict) and 'images_per_second' in report:
      rate, host = report['images_per_second'], (report['peak_bytes']['host'] or 0) / 2**20
      print(
        f'  {name:10} {rate["median"]:8.2f} images/s ({rate["min"]:.2f} to {rate["max"]:.2f})'
        f'  first step {report["first_step_seconds"]:6.2f} s  peak {host:,.0f} MiB'
      )
  for name, ratio in reports['ratios'].items():
    print(f'  {name}: {ratio["of_medians"]:.3f} ({ratio["min"]:.3f} to {ratio["max"]:.3f})')


def first_losses() -> dict[str, float]:
  """Seconds from the start of a run to its first loss, without programs from before and with."""
  with tempfile.TemporaryDirectory() as folder:
    runs = [pathlib.Path(folder, name) for name in ('cold', 'warm')]
    return {run.name: first_loss(run, programs=pathlib.Path(folder, 'programs')) for run in runs}


def first_loss(run: pathlib.Path, *, programs: pathlib.Path) -> float:
  """Seconds from the start of a process that trains to its line of the first step."""
  words = [sys.executable, '-m', 'vit_jax', 'train', *RUN, f'--workdir={run}']
  env = bench.worker_environment() | {
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': str(programs),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',  # as `vit train` has it
  }
  env.pop('PYTHONDONTWRITEBYTECODE', None)  # what is installed has its bytecode
  began, pipe = time.perf_counter(), subprocess.PIPE
  with subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env) as child:
    assert child.stdout
    lines = []
    for line in child.stdout:
      lines.append(line)
      if line.startswith('step 1/'):
        seconds = time.perf_counter() - began
        child.kill()
        return seconds
  raise RuntimeError(f'a run ended before its first step: {" ".join(lines[-1:])}')


def main() -> int:
  flags = parser().parse_args()
  if flags.quick:
    flags.turns, flags.turn = 2, 0.1
  results: dict[str, Any] = {'provenance': bench.provenance(), 'results': []}
  for case in QUICK if flags.quick else CASES:
    reports = compared(case, flags)
    results['results'].append(dataclasses.asdict(case) | reports)
    bench.write_results(flags.out, results)
    show(case, reports)
  if not flags.quick:
    results['first_loss_seconds'] = first_losses()
    bench.write_results(flags.out, results)
    print('S/16 from start to first loss:', results['first_loss_seconds'])
  return 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(description='Measures Ti/16 and S/16 on the processor.')
  flags.add_argument('out', nargs='?', default='benchmarks/results/cpu.json', help='%(default)s')
  flags.add_argument('--torch-python', default=sys.executable, help='an interpreter with timm')
  flags.add_argument('--turns', type=int, default=7, help='measurements of each')
  flags.add_argument('--turn', type=float, default=1.5, help='seconds of a measurement')
  flags.add_argument('--quick', action='store_true', help='a tiny model, to try this script')
  return flags


if __name__ == '__main__':
  sys.exit(main())
