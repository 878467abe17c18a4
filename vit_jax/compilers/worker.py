"""Compiles one training step, in a process that `search` starts: JSON in, JSON out.

JAX runs on this process's CPU, whatever devices the machine has.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from packaging.requirements import Requirement

import vit_jax
from vit_jax import compilers, config, files, metrics, sharding, train
from vit_jax.compilers import Chips, blank, formulas, kernels, program
from vit_jax.compilers.forecast import Estimates, Forecast
from vit_jax.models import Tree, attention
from vit_jax.plan import Plan
from vit_jax.step import State
from vit_jax.tasks import abstract_batch
from vit_jax.text import error_line, message_line

Arguments = tuple[State, dict[str, jax.ShapeDtypeStruct], Tree]  # of a step, abstract
XLA_TYPES = {dtype: kind for kind, dtype in program.DTYPES.items()}
XLA_ATTENTION = 'attention is by XLA, as cuDNN is not installed here: by cuDNN it takes less memory'
SKIPPED = 'not compiled, as asked'
FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')  # of the compilers
TEMPORARY = re.compile(r'HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM')  # libtpu's
USED = re.compile(
  r'Ran out of memory in memory space hbm\. Used ([\d.]+)([KMGT]?) of '
)  # its own, too
UNITS = {unit: 1024**power for power, unit in enumerate(('', 'K', 'M', 'G', 'T'))}


def main() -> int:
  """Answers the request on standard input; what libraries print goes to standard error."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  try:
    answer = respond(json.load(sys.stdin))
  except (ValueError, OSError, ModuleNotFoundError) as error:
    answer = {'error': message_line(error)}
  print(files.as_json(answer), file=out, flush=True)
  return 0


def respond(request: Mapping[str, Any]) -> dict[str, Any]:
  """The forecast that `search.ask` wants, as JSON."""
  chips = compilers.parse(request['chips'])
  platform = importlib.import_module(f'vit_jax.compilers.{chips.chip.platform}')
  missing = SKIPPED if request['formulas'] else wanting(platform.EXTRA, platform.PACKAGES)
  devices = jax.devices('cpu')[: chips.devices] if missing else platform.devices(chips)
  settings = config.load(request['config'], request['overrides'])
  plan, notes = blank.plan_without_data(settings, devices, chips=chips, classes=request['classes'])
  if chips.chip.platform == 'cuda' and not (missing or attention.has_cudnn()):
    notes.append(XLA_ATTENTION)
  arguments = abstract_arguments(plan)
  compiler = '' if missing else ', '.join(map(versioned, platform.PACKAGES))
  forecast = Forecast(
    **described(chips, plan),
    notes=tuple(notes),
    missing=missing,
    compiler=compiler,
    formulas=formulas.formulas(plan, *arguments, chip=chips.chip),
    program=None if missing else compiled(chips, plan, arguments, compiler),
  )
  return dataclasses.asdict(forecast)


def wanting(extra: str, packages: tuple[str, ...]) -> str:
  """A line that says what to install; '' where all is here, in versions that JAX wants."""
  if not extra:  # it came with JAX
    return ''
  demands = {
    demand.name: demand for demand in map(Requirement, importlib.metadata.requires('jax') or ())
  }
  for package in packages:
    try:
      version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      return f"{package} is not installed: pip install 'vit_jax[{extra}]'"
    demand = demands.get(package)
    if demand and not demand.specifier.contains(version):
      return (
        f'{package} is {version}, jax {jax.__version__} wants {demand.specifier}: '
        f"pip install '{package}{demand.specifier}'"
      )
  return ''


def versioned(package: str) -> str:
  return f'{package} {importlib.metadata.version(package)}'


def abstract_arguments(plan: Plan) -> Arguments:
  """The step's (state, batch, fixed) as shapes, types and shardings."""
  rows = jax.sharding.NamedSharding(plan.mesh, sharding.BATCH)
  columns = abstract_batch(plan.task.columns, plan.config.batch_size)
  batch = {
    name: jax.ShapeDtypeStruct(column.shape, column.dtype, sharding=rows)
    for name, column in columns.items()
  }
  fixed = jax.tree.map(
    lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
    plan.task.fixed,
    sharding.tree_sharding(plan.task.fixed, plan.mesh),
  )
  return train.abstract_state(plan), batch, fixed


def described(chips: Chips, plan: Plan) -> dict[str, Any]:
  """The fields of a forecast that say what is planned."""
  return {
    'chips': chips.name,
    'devices': chips.devices,
    'limit': chips.limit,
    'model': plan.config.model.name,
    'classes': len(plan.splits['train'].classes),
    'parameters': metrics.parameters(plan.state_shapes.params),
    'batch_size': plan.config.batch_size,
    'device_images': formulas.device_images(plan),
    'accumulate': plan.config.accumulate,
    'remat': getattr(plan.task.model, 'remat', None),
    'mesh': dict(plan.mesh.shape),
  }


def compiled(chips: Chips, plan: Plan, arguments: Arguments, compiler: str) -> Estimates:
  """What the compiler says of the step now, or said of the same program at an earlier time."""
  lowered = train.updater(plan).lower(*arguments)
  readers = map(inspect.getsource, (program, kernels))
  flags = [os.environ.get(name, '') for name in FLAGS]
  key = [vit_jax.__version__, *readers, compiler, chips.name, *flags, lowered.as_text()]
  name = hashlib.sha256('\0'.join(key).encode()).hexdigest()[:32]
  path = pathlib.Path(files.cache_folder('plans'), f'{name}.json')
  with contextlib.suppress(ValueError, TypeError):  # not there, or of other fields
    return Estimates(**{**files.read_object(path), 'cached': True})
  estimates = compile_now(chips, plan, arguments, lowered)
  with contextlib.suppress(OSError):  # no home, or one that is not to be written
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, dataclasses.asdict(estimates))
  return estimates


def compile_now(
  chips: Chips, plan: Plan, arguments: Arguments, lowered: jax.stages.Lowered
) -> Estimates:
  """What the compiler says of a step; ValueError where it fails, but for want of memory."""
  began = time.perf_counter()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if not (size := temporary_bytes(str(error), arguments)):
      raise ValueError(f'{chips.name}: {error_line(error)}') from error
    return Estimates(fits=False, temporary=size, compile_seconds=time.perf_counter() - began)
  seconds = time.perf_counter() - began
  memory, text = executable.memory_analysis(), program.read(executable.as_text() or '')
  assert memory is not None  # every backend of XLA has it
  total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  total += memory.output_size_in_bytes - memory.alias_size_in_bytes
  exchanges = program.collectives(text, chips.devices)
  copies, copied = program.copies(text, matrices(arguments[0]))
  return Estimates(
    fits=chips.limit is None or total <= chips.limit,
    temporary=memory.temp_size_in_bytes,
    compile_seconds=seconds,
    total=total,
    **rates(chips, plan, text),
    collectives=program.by_operation(exchanges),
    sent=sum(exchange.sent for exchange in exchanges),
    copies=copies,
    copied=copied,
  )


def temporary_bytes(error: str, arguments: Arguments) -> float | None:
  """What a program that is too large takes beside its arguments, as libtpu's error has it."""
  if match := TEMPORARY.search(error):
    return float(match[1]) * UNITS[match[2]]
  if match := USED.search(error):
    return float(match[1]) * UNITS[match[2]] - formulas.held(arguments)
  return None


def matrices(state: State) -> list[tuple[str, tuple[int, ...]]]:
  """A device's parts of the state's arrays of two axes or more: XLA's type and the sides."""
  leaves = jax.tree.leaves((state.params, state.opt_state))
  parts = [(XLA_TYPES[leaf.dtype.name], formulas.shard(leaf)) for leaf in leaves]
  return [(name, sides) for name, sides in parts if len(sides) > 1]


def rates(chips: Chips, plan: Plan, text: program.Listing) -> dict[str, Any]:
  """The fields of Estimates that follow from the cycles, where they are estimated."""
  clock, peak, calls = chips.chip.clock, chips.chip.peak, program.kernels(text)
  counts = kernels.count_cycles(chips, list(calls)) if calls else []
  inside = sum(count * times for count, times in zip(counts or (), calls.values()))
  cycles = program.cycles(text) + inside
  fields = {
    'cycles': cycles or None,
    'kernels': sum(calls.values()),
    'kernel_cycles': None if counts is None else inside,
  }
  if not (cycles and clock and peak):
    return fields
  seconds = cycles / clock
  return {
    **fields,
    'seconds': seconds,
    'images_per_second': plan.config.batch_size / seconds,
    'share_of_peak': formulas.flops(plan) / seconds / peak,
  }


if __name__ == '__main__':
  sys.exit(main())
