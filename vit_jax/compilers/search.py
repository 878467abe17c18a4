"""Plans a config for chips that are not here, and searches for what fits where it does not.

Each compilation is a process of its own: `worker`. This one imports no JAX and touches no device.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import vit_jax
from vit_jax import compilers
from vit_jax.compilers import Chips, cpu, cuda, forecast, tpu
from vit_jax.compilers.forecast import Forecast

ROOT = pathlib.Path(vit_jax.__file__).parents[1]
PLATFORMS = {'tpu': tpu, 'cuda': cuda, 'cpu': cpu}
POLICIES = ('none', 'lean', 'dots', 'full')  # of model.remat, the least recomputed first
FATAL = re.compile(r'F\d{4} ')  # how a line begins by which a compiler of Google's aborts
GRAIN = 8  # of the largest batch of a device: rows that TPUs compute at once

Fields = Mapping[str, str | int]  # of a config, to be set


def plan_for(
  config: str,
  chips: str = 'v5e:2x2',
  *,
  overrides: Sequence[str] = (),
  batch_size: int | None = None,
  classes: int | None = None,
  tries: int = 6,
  formulas: bool = False,
) -> Forecast:
  """What the compiler of such chips says of a config's training step; what fits, where it does not.

  No chip is needed, and none is touched. All numbers are the compiler's estimates, 'program', or
  arithmetic, 'formulas', alone where the compiler is 'missing'. Bytes and FLOPs are of a device.

  Args:
    config: as `vit train --config` takes it.
    chips: 'KIND:TOPOLOGY', of `vit_jax.compilers.CHIPS`: 'v5e:4x4', 'h100:8'.
    overrides: 'FIELD=VALUE' each.
    batch_size: images of an update; None for the config's.
    classes: of the data set; None where its name says how many.
    tries: compilations, at most, in search of what fits.
    formulas: arithmetic alone, in seconds, for any topology; nothing is compiled.

  Raises:
    ValueError: for a chip, a topology or a config that cannot be.
    RuntimeError: if the process of the compiler ends early; with its last words.
  """
  parsed = compilers.parse(chips)
  words = [*overrides, *([] if batch_size is None else [f'batch_size={batch_size}'])]

  def compile_with(fields: Fields) -> Forecast:
    extra = [f'{field}={value}' for field, value in fields.items()]
    request = {'config': config, 'overrides': [*words, *extra]}
    return ask(parsed, {**request, 'classes': classes, 'formulas': formulas})

  first = compile_with({})
  if first.missing or first.fits:
    return first
  return dataclasses.replace(first, tried=tuple(search(first, compile_with, tries)))


def ask(chips: Chips, request: Mapping[str, Any]) -> Forecast:
  """The answer of a worker to one request; what is wrong with it is a ValueError."""
  done = subprocess.run(
    [sys.executable, '-m', 'vit_jax.compilers.worker'],
    input=json.dumps({**request, 'chips': chips.name}),
    capture_output=True,
    text=True,
    env=environment(chips),
  )
  try:
    answer = json.loads(done.stdout)
  except ValueError:
    if done.returncode < 0:
      reason = f'was killed by signal {-done.returncode}: the machine may have too little memory'
      raise RuntimeError(f'the compiler {reason}') from None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if FATAL.match(line)]
    message = (fatal or lines or [''])[-1][:300]
    raise RuntimeError(f'the compiler ended with code {done.returncode}: {message}') from None
  if 'error' in answer:
    raise ValueError(answer['error'])
  return forecast.from_json(answer)


def environment(chips: Chips) -> dict[str, str]:
  """The worker's: it finds this package, and JAX no device but the CPU.

  So many CPU devices stand for the chips where their compiler is not installed. The user's own
  XLA_FLAGS and LIBTPU_INIT_ARGS hold, as they would on the chips.
  """
  paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
  platform = PLATFORMS[chips.chip.platform].environment(chips)
  variables = (os.environ, cpu.environment(chips), platform)
  flags = ' '.join(each.get('XLA_FLAGS', '') for each in variables).split()
  return {
    **os.environ,
    **platform,
    'XLA_FLAGS': ' '.join(flags),  # of one that comes twice the last holds
    'JAX_PLATFORMS': 'cpu',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'JAX_ENABLE_COMPILATION_CACHE': 'false',  # which holds none of absent chips
    'PYTHONPATH': os.pathsep.join(filter(None, paths)),
  }


def search(
  first: Forecast, compile_with: Callable[[Fields], Forecast], tries: int
) -> Iterator[Forecast]:
  """Forecasts with one change each, until a change of each kind fits or the tries are over."""
  for propose in (accumulations, policies, splits, batches):
    for fields in propose(first):
      if tries <= 0:
        return
      tries -= 1
      try:
        result = compile_with(fields)
      except ValueError:  # a change that the task or the mesh refuses
        break
      yield dataclasses.replace(result, change=fields)
      if result.fits:
        break


def accumulations(first: Forecast) -> Iterator[Fields]:
  """More micro-batches: as many as should fit, then the next more."""
  wanted = first.accumulate * excess(first, summing=True)
  images = first.device_images
  parts = [n for n in range(first.accumulate + 1, images + 1) if n >= wanted and images % n == 0]
  yield from ({'accumulate': count} for count in parts[:2])


def policies(first: Forecast) -> Iterator[Fields]:
  """Activations that are recomputed, more and more of them, layer by layer in a loop."""
  if first.remat in POLICIES:
    stronger = POLICIES[POLICIES.index(first.remat) + 1 :]
    for policy in stronger:
      yield {'model.remat': policy, 'model.unroll': 1}


def splits(first: Forecast) -> Iterator[Fields]:
  """The state split over all devices that share the batch, where that frees enough."""
  parts = first.mesh['data'] * first.mesh['fsdp']
  memory = first.formulas.memory
  if first.mesh['data'] > 1 and first.limit is not None:
    freed = (memory.state + memory.gradients) * (1 - first.mesh['fsdp'] / parts)
    if first.needed - freed <= first.limit:
      yield {'system.data': 1, 'system.fsdp': parts}


def batches(first: Forecast) -> Iterator[Fields]:
  """The largest batch that should fit, but for what a compiler rounds up, then a tenth less."""
  largest = first.device_images / first.accumulate / excess(first)
  parts = first.batch_size // first.device_images * first.accumulate
  for images in (largest * 0.95, largest * 0.85):
    rows = int(images) // GRAIN * GRAIN if images >= 2 * GRAIN else int(images)
    if rows:
      yield {'batch_size': rows * parts}


def excess(first: Forecast, *, summing: bool = False) -> float:
  """How many times too large batch and temporary arrays are for what the state leaves.

  A sum of gradients, `summing`, takes memory of its own. Infinite where nothing is left.
  """
  assert first.program is not None and first.limit is not None  # it does not fit
  memory = first.formulas.memory
  free = first.limit - memory.state - memory.gradients * summing
  return (memory.batch + first.program.temporary) / free if free > 0 else math.inf
