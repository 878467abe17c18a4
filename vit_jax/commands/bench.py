"""`vit bench`: speed, compile time and memory of training and inference, on synthetic images.

A configuration is measured in a worker, a process of its own on one device, so that it compiles
cold and its peak of memory is its own. Workers that are compared take turns, A B A B, so that
whatever else the machine does falls on all of them alike.
"""

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, files, metrics, models, optim, sharding
from vit_jax.commands import ending
from vit_jax.guards import allocation
from vit_jax.models import memory
from vit_jax.step import State, make_state, make_step, untraced
from vit_jax.tasks import Batch, classify
from vit_jax.workdir import ROOT, installed, source

MODES = ('train', 'infer')
CLASSES = 1000  # ImageNet's
HALF = (0.5,)  # mean and std of images in [-1, 1], for every channel
BATCHES = 4  # of random images that the steps rotate among, as no training reads one again
PACKAGES = ('jax', 'jaxlib', 'jax-cuda13-plugin', 'flax', 'optax', 'numpy', 'torch', 'timm')


@dataclasses.dataclass(frozen=True)
class Case:
  """What is measured.

  Fields:
    model: a name that `vit_jax.build` takes; it gets 1,000 classes.
    mode: 'train' (a whole update: normalise, forward, backward, clip, AdamW) or 'infer'
      (normalise, forward; with parameters stored in the type of the computation).
    batch: images of a step.
    image_size: pixels of a side.
    channels: of the images.
    dtype: of the computation; None is bfloat16, on a CPU float32.
    unroll, depth: of the model; None leaves its own.
  """

  model: str = 'ViT-S/16'
  mode: str = 'train'
  batch: int = 8
  image_size: int = 224
  channels: int = 3
  dtype: str | None = None
  unroll: int | None = None
  depth: int | None = None

  def build(self) -> models.Model:
    """The model; ValueError for a name, a size or a type that cannot be."""
    options = {'dtype': self.dtype or 'float32', 'unroll': self.unroll, 'depth': self.depth}
    fields = {field: value for field, value in options.items() if value is not None}
    model = models.build(self.model, num_classes=CLASSES, **fields)
    models.check_size(model, (self.image_size, self.image_size))
    return model

  def flops(self) -> int:
    """FLOPs of one image: a training step is three forward passes."""
    forward = self.build().flops(self.image_size, self.image_size, self.channels)
    return forward * (3 if self.mode == 'train' else 1)

  def images(self, count: int) -> tuple[int, int, int, int]:
    """The shape of so many images."""
    return (count, self.image_size, self.image_size, self.channels)

  def arguments(self) -> list[str]:
    """The words after `vit bench` that stand for it."""
    fields = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
    model = fields.pop('model')
    return [model, *(f'--{name.replace("_", "-")}={value}' for name, value in fields.items())]

  def command(self, *options: str) -> list[str]:
    """Starts a worker for it; the options are further ones of `vit bench`."""
    return [sys.executable, '-m', 'vit_jax', 'bench', '--serve', *self.arguments(), *options]


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A compiled step and what is known of it."""

  facts: dict[str, Any]  # for the report
  steps: Iterator[Any]  # every `next` starts a step; what it gives is ready when the step is done

  def seconds(self, count: int) -> float:
    """The time that so many steps take."""
    # XLA's CPU client runs independent steps side by side, which no training does.
    one_by_one = jax.default_backend() == 'cpu'
    began = time.perf_counter()
    for _ in range(count):
      done = next(self.steps)
      if one_by_one:
        jax.block_until_ready(done)
    jax.block_until_ready(done)
    return time.perf_counter() - began


def run(args: argparse.Namespace) -> int:
  """Prints JSON; 1 if a worker failed."""
  modes = MODES if args.mode == 'both' else (args.mode,)
  fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(Case)}
  cases = [Case(**(fields | {'mode': mode})) for mode in modes]
  cases[0].build()
  if args.serve:
    return serve(lambda: compile_case(cases[0]), turn=args.turn, steps=args.steps)
  origin = provenance()
  with ending(1, RuntimeError):
    results = [measure(c, turns=args.turns, turn=args.turn, steps=args.steps) for c in cases]
  print(files.as_json(round_floats({'provenance': origin, 'results': results}), indent=1))
  return 0


def training(case: Case) -> CompiledStep:
  """`step.make_step` with AdamW and clipping; its state is donated."""
  model, batches = case.build(), itertools.cycle(synthetic(case))
  if jax.default_backend() == 'cpu' and isinstance(model, memory.Blocks):
    model = memory.lean_loop(model)  # as a run does
  schedule = optim.make_schedule('constant', learning_rate=1e-4, total=1)
  tx = optim.make_optimizer('adamw', schedule, weight_decay=0.05, clip=1.0)
  loss = classify.make_loss(model.apply, mean=HALF, std=HALF)
  params = random_params(model, case)
  state = make_state(params, tx)
  step = sharding.for_mesh(untraced(make_step(loss, tx, schedule)), sharding.one_device())
  step = jax.jit(step, donate_argnums=0)
  compiled, facts = compile_timed(step, state, next(batches))
  facts |= {
    'state_bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    'argument_copies': argument_copies(compiled.as_text() or ''),
    'remat': getattr(model, 'remat', None),
  }

  def updates(state: State) -> Iterator[Any]:
    while True:
      state, measured = compiled(state, next(batches))
      yield measured

  return first_step(case, facts, updates(state))


def inference(case: Case) -> CompiledStep:
  """Logits of uint8 images."""
  model, batches = case.build(), itertools.cycle(synthetic(case))
  params = jax.tree.map(lambda leaf: leaf.astype(model.dtype), random_params(model, case))

  def logits(params: models.Tree, images: jax.Array) -> jax.Array:
    return model.apply({'params': params}, bundle.normalize(images, HALF, HALF))[0]

  program = jax.jit(sharding.for_mesh(logits, sharding.one_device()))
  compiled, facts = compile_timed(program, params, next(batches)['image'])
  return first_step(case, facts, (compiled(params, batch['image']) for batch in batches))


STEPS = {'train': training, 'infer': inference}


def random_params(model: nn.Module, case: Case) -> models.Tree:
  """Random parameters, all of them in use; filled by NumPy, as jitting `init` takes seconds."""
  images = jax.ShapeDtypeStruct(case.images(1), jnp.float32)
  rng = np.random.default_rng(0)

  def sample(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    values = np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)
    return jnp.asarray(values + np.float32(name.endswith('scale')))

  return models.map_named(sample, jax.eval_shape(model.init, jax.random.key(0), images)['params'])


def synthetic(case: Case) -> list[Batch]:
  """Batches of random images and labels, on the device."""
  rng = np.random.default_rng(1)
  return [
    {
      'image': jnp.asarray(rng.integers(256, size=case.images(case.batch), dtype=np.uint8)),
      'label': jnp.asarray(rng.integers(CLASSES, size=case.batch, dtype=np.int32)),
      'mask': jnp.ones(case.batch, jnp.float32),
    }
    for _ in range(BATCHES)
  ]


def compile_timed(
  step: jax.stages.Wrapped, *arguments: models.Tree
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
  """A jitted function compiled for such arguments, the seconds that took, and its memory."""
  times = [time.perf_counter()]
  lowered = step.lower(*arguments)
  times.append(time.perf_counter())
  compiled = lowered.compile()
  times.append(time.perf_counter())
  allocation.give_back()  # as a run does
  sizes = compiled.memory_analysis()
  assert sizes is not None  # every backend of XLA has it
  facts: dict[str, Any] = {
    'lowering_seconds': times[1] - times[0],
    'compile_seconds': times[2] - times[1],
    'attention': attention_kernel(compiled.as_text() or ''),
    'program_bytes': {
      'arguments': sizes.argument_size_in_bytes,
      'outputs': sizes.output_size_in_bytes,
      'aliased': sizes.alias_size_in_bytes,
      'temporary': sizes.temp_size_in_bytes,
    },
  }
  return compiled, facts


def attention_kernel(program: str) -> str:
  """What computes attention in an optimised program (HLO text)."""
  kernels = {'__cudnn$fmha': 'cudnn', 'tpu_custom_call': 'short_attention'}
  return next((name for call, name in kernels.items() if call in program), 'xla')


def argument_copies(program: str) -> int:
  """How many of its array arguments an optimised program (HLO text) copies.

  None, where every donated array is updated in place.
  """
  entry = program[program.index('\nENTRY ') :]
  arrays = set(re.findall(r'%(\S+) = \w+\[\d[^\]]*\]\S* parameter\(', entry))
  return sum(name in arrays for name in re.findall(r' copy\(%([^\s)]+)\)', entry))


def first_step(case: Case, facts: dict[str, Any], steps: Iterator[Any]) -> CompiledStep:
  """The program after its first step, with the facts that belong to every report."""
  began = time.perf_counter()
  jax.block_until_ready(next(steps))
  first = facts['lowering_seconds'] + facts['compile_seconds'] + time.perf_counter() - began
  device = jax.devices()[0]
  facts = {
    **dataclasses.asdict(case),
    'dtype': case.build().dtype,
    'first_step_seconds': first,
    **facts,
    'device': {'kind': device.device_kind, 'count': jax.device_count()},
    'peak_flops': metrics.peak_flops(),
  }
  return CompiledStep(facts, steps)


def serve(
  compile_step: Callable[[], CompiledStep], *, turn: float, steps: int | None = None
) -> int:
  """Makes this process a worker: JSON lines on standard output, a turn for a line of input.

  First the step's facts; then {'steps', 'seconds'} for every line read; at the end of the
  input, the peak of memory. A turn takes `turn` seconds, or so many steps instead.
  """
  out = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)  # what libraries print does not belong among the lines
  step = compile_step()
  step.seconds(1)  # may compile
  count = steps or max(1, round(turn * 2 / step.seconds(2)))
  print(files.as_json(step.facts), file=out)
  for _ in sys.stdin:
    print(files.as_json({'steps': count, 'seconds': step.seconds(count)}), file=out)
  print(files.as_json({'peak_bytes': peak_bytes()}), file=out)
  return 0


def peak_bytes() -> dict[str, int | None]:
  """The most memory that this process has held: of the device, and resident in the host's."""
  stats = jax.devices()[0].memory_stats() or {}
  return {'device': stats.get('peak_bytes_in_use'), 'host': peak_resident()}


def peak_resident() -> int | None:
  """From Linux's VmHWM: getrusage's maximum would begin with the parent's. None elsewhere."""
  status = pathlib.Path('/proc/self/status')
  match = re.search(r'VmHWM:\s*(\d+) kB', status.read_text('utf-8')) if status.exists() else None
  return int(match[1]) * 1024 if match else None


class Worker:
  """A process that has compiled one configuration, and takes a turn at it when asked.

  `command` starts it, and it speaks as `serve` does; after `limit` seconds it is ended, wherever it
  is. If it ends early, this and its methods raise a RuntimeError with its last words.
  """

  def __init__(self, command: Sequence[str], *, limit: float):
    self.limit, self.deadline = limit, time.monotonic() + limit
    self.errors = tempfile.TemporaryFile('w+')  # noqa: SIM115  (closed in `end`)
    self.child = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      text=True,
      env=worker_environment(),
    )
    self.timer = threading.Timer(limit, self.child.kill)
    self.timer.daemon = True
    self.timer.start()
    try:
      self.facts = self.read()
    except BaseException:
      self.end()
      raise

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *_: object) -> None:
    self.end()

  def turn(self) -> float:
    """Seconds of a step, the mean over a turn."""
    assert self.child.stdin
    with contextlib.suppress(BrokenPipeError):  # then there is nothing to read either
      print('turn', file=self.child.stdin, flush=True)
    answer = self.read()
    return answer['seconds'] / answer['steps']

  def finish(self) -> dict[str, Any]:
    """Its facts with its peak of memory; it takes no more turns."""
    assert self.child.stdin
    self.child.stdin.close()
    self.facts |= self.read()
    return self.facts

  def read(self) -> dict[str, Any]:
    assert self.child.stdout
    line = self.child.stdout.readline()
    if line:
      return json.loads(line)
    code = self.child.wait()
    if time.monotonic() >= self.deadline:
      raise RuntimeError(f'ran past its {self.limit:.0f} s')
    self.errors.seek(0)
    words = [line.strip() for line in self.errors if line.strip()]
    raise RuntimeError(' '.join(words[-1:])[:500] or f'the worker ended with code {code}')

  def end(self) -> None:
    """Ends the process, if it has not ended by itself, and lets go of everything."""
    self.timer.cancel()
    self.child.kill()
    self.child.wait()
    for stream in (self.child.stdin, self.child.stdout, self.errors):
      with contextlib.suppress(BrokenPipeError):
        stream.close()  # type: ignore[union-attr]


def worker_environment() -> dict[str, str]:
  """Finds this package, compiles cold, and leaves room on a GPU for the other worker."""
  paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  changed = {'PYTHONPATH': os.pathsep.join(filter(None, paths))}
  changed['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  changed['JAX_TRACEBACK_FILTERING'] = 'off'  # an error then ends with its own words
  changed['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  return {**os.environ, **changed}


def take_turns(
  workers: Mapping[str, Worker], turns: int, *, until: float = float('inf')
) -> dict[str, list[float]]:
  """Seconds of a step, for every worker and turn; ends early at a time of `time.monotonic`."""
  seconds: dict[str, list[float]] = {name: [] for name in workers}
  for taken in range(turns):
    if taken and time.monotonic() > until:
      break
    for name, worker in workers.items():
      seconds[name].append(worker.turn())
  return seconds


def report(facts: dict[str, Any], case: Case, seconds: Sequence[float]) -> dict[str, Any]:
  """A worker's facts with its rates: 'mfu' is the fraction of the data sheet's bfloat16 FLOP/s.

  `facts` have 'peak_flops', None where the device's is not known; `seconds` are of a step, for
  every turn.
  """
  rates = [case.batch / s for s in seconds]
  achieved, peak = statistics.median(rates) * case.flops(), facts.get('peak_flops')
  return {
    **facts,
    'flops_per_image': case.flops(),
    'images_per_second': spread(rates),
    'turns': len(rates),
    'tflops': achieved / 1e12,
    'mfu': achieved / peak if peak else None,
  }


def ratio(seconds: Sequence[float], others: Sequence[float]) -> dict[str, float]:
  """How many times as fast as another a worker is: of the medians, and over the turns."""
  medians = statistics.median(others) / statistics.median(seconds)
  return {'of_medians': medians, **spread([b / a for a, b in zip(seconds, others)])}


def spread(values: Sequence[float]) -> dict[str, float]:
  return {'min': min(values), 'median': statistics.median(values), 'max': max(values)}


def measure(
  case: Case, *, turns: int = 5, turn: float = 1.0, steps: int | None = None, limit: float = 1800.0
) -> dict[str, Any]:
  """The report of one case, in a worker of its own."""
  options = [f'--turn={turn}', *([f'--steps={steps}'] if steps else [])]
  with Worker(case.command(*options), limit=limit) as worker:
    return compare(case, {case.mode: worker}, turns)[case.mode]


def compare(
  case: Case, workers: Mapping[str, Worker], turns: int, *, until: float = float('inf')
) -> dict[str, Any]:
  """Reports by name of workers that take turns at a case, and their 'ratios' by 'a / b'."""
  seconds = take_turns(workers, turns, until=until)
  pairs = itertools.combinations(workers, 2)
  ratios = {f'{a} / {b}': ratio(seconds[a], seconds[b]) for a, b in pairs}
  facts = {name: worker.finish() for name, worker in workers.items()}
  peak = next((f['peak_flops'] for f in facts.values() if f.get('peak_flops')), None)
  reports = {
    name: report({**values, 'peak_flops': peak}, case, seconds[name])
    for name, values in facts.items()
  }
  return reports | {'ratios': ratios}


def provenance() -> dict[str, Any]:
  """Where numbers come from: the code, the packages, the machine, the command, the time."""
  return {
    **source(),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': ' '.join(re.sub(r'^/.*/', '', word) for word in sys.argv),  # nobody else's folders
    'python': platform.python_version(),
    'versions': {name: version for name in PACKAGES if (version := installed(name))},
    'cpu': {'model': cpu_model(), 'cores': usable_cores()},
    'load_average': os.getloadavg()[0],
  }


def cpu_model() -> str:
  """Linux's name for the processor, elsewhere its architecture."""
  info = pathlib.Path('/proc/cpuinfo')
  match = re.search(r'model name\s*: (.*)', info.read_text('utf-8')) if info.exists() else None
  return match[1] if match else platform.machine()


def usable_cores() -> int | None:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def write_results(path: str | os.PathLike[str], results: dict[str, Any]) -> None:
  """Writes results as JSON, whole or not at all."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    file.write((files.as_json(round_floats(results), indent=1) + '\n').encode())


def round_floats(tree: object) -> object:
  """Every float of nested dicts and lists to five digits, as no measurement has more."""
  if isinstance(tree, dict):
    return {name: round_floats(value) for name, value in tree.items()}
  if isinstance(tree, list):
    return [round_floats(value) for value in tree]
  return float(f'{tree:.5g}') if isinstance(tree, float) else tree


def compile_case(case: Case) -> CompiledStep:
  """The step of a case, in the type that suits the device where none is named."""
  dtype = case.dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
  return STEPS[case.mode](dataclasses.replace(case, dtype=dtype))
