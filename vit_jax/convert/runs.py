"""A run as a checkpoint, at any time: its model, the best so far, its newest state, or any other.

A run's folder has states of several steps. `model/` is what it ended with, `best/` the bundle of
the best evaluation so far, and `checkpoints/` what it resumes from; MODEL describes the model that
the arrays of the last are of. A process may be writing all of them: each is replaced as a whole,
and what was replaced while it was read is read again.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from vit_jax import files
from vit_jax.checkpoint import METRICS, step_folders
from vit_jax.convert import bundles, weights
from vit_jax.convert.engine import Checkpoint
from vit_jax.guards import owner, seals
from vit_jax.text import first_few

T = TypeVar('T')
MODEL = 'model.json'
BEST, LATEST = 'best', 'latest'
TRIES = 5  # at a state that is replaced while it is read
ENDS = {  # of a line about a run in a state of `guards.owner`
  'finished': '',
  'stopped': '; the run was stopped',
  'failed': '; the run failed',
}


class SavedState(NamedTuple):
  """A step of a run, and the folder that has its parameters."""

  step: int | None
  folder: pathlib.Path

  @property
  def is_bundle(self) -> bool:
    return self.folder.parent.name != 'checkpoints'


def is_run(path: pathlib.Path) -> bool:
  """Whether a path is a run's folder."""
  return (
    (path / MODEL).is_file()
    or bundles.exists(path / 'model')
    or bool(step_folders(path / 'checkpoints'))
  )


def of_step(path: pathlib.Path) -> tuple[pathlib.Path, str]:
  """The run and the step that a path such as 'RUN/checkpoints/400' means; no step of others."""
  run = path.parent.parent
  is_step = path.parent.name == 'checkpoints' and path.name.isdecimal() and (run / MODEL).is_file()
  return (run, path.name) if is_step else (path, '')


def image_size(path: pathlib.Path) -> tuple[int, int] | None:
  """The (height, width) that a run's model takes, of a path to it or to a step; None of others."""
  run, _ = of_step(path)
  try:
    return bundles.as_size(tuple(files.read_object(run / MODEL)['preprocess']['size']))
  except (OSError, ValueError, LookupError, TypeError):
    return None  # whatever reads the checkpoint says what is wrong with it


def read(run: pathlib.Path, name: str = '') -> Checkpoint:
  """The checkpoint that a state of a run is.

  Args:
    run: its folder.
    name: 'best', 'latest' or a step; '' is the model of a finished run, else the best so far, and
      without an evaluation the newest.

  Raises:
    FileNotFoundError: if the run has saved nothing yet.
    ValueError: if it has no such state, or that is damaged.
  """
  return undisturbed(lambda: choose(run, name), lambda state: read_state(run, state, name))


def undisturbed(choose: Callable[[], SavedState], read: Callable[[SavedState], T]) -> T:
  """What is read of a state that was one and the same, and whole, from begin to end.

  A run replaces the folder of a state as a whole: its seal tells one from another. What was read is
  passed over, and its errors are, where the seal has changed meanwhile.
  """
  for _ in range(TRIES):
    state = choose()
    seal = read_seal(state.folder)
    try:
      result = read(state)
    except (OSError, ValueError):
      if choose() == state and read_seal(state.folder) == seal:
        raise
      continue
    if read_seal(state.folder) == seal:
      return result
  return read(choose())


def read_seal(folder: pathlib.Path) -> bytes | None:
  """The bytes of a folder's seal; None without one."""
  with contextlib.suppress(OSError):
    return files.read_bytes(folder / seals.FILE)
  return None


def choose(run: pathlib.Path, name: str) -> SavedState:
  """The state of a run that a name means; see `read`."""
  if line := bundles.missing(run):
    raise FileNotFoundError(line)
  if not name and bundles.exists(run / 'model'):
    return SavedState(step_of(run / 'model'), run / 'model')
  states = saved_states(run)
  if not states:
    raise FileNotFoundError(f'{run} is a run that has saved nothing yet: see its status.json')
  if name in ('', BEST):
    best = best_state(run, states)
    if best is None and name:
      raise ValueError(f'{run} has no evaluation to be the best of: it has {steps_of(states)}')
    return best or states[max(states)]
  if name == LATEST:
    return states[max(states)]
  if not (name.isascii() and name.isdecimal()):
    raise ValueError(f'checkpoint is {name!r}, not {BEST}, {LATEST} or a step')
  if int(name) not in states:
    raise ValueError(f'{run} has no checkpoint of step {int(name):,}: it has {steps_of(states)}')
  return states[int(name)]


def saved_states(run: pathlib.Path) -> dict[int, SavedState]:
  """The states of a run by step: of one that several folders have, a bundle."""
  folder = run / 'checkpoints'
  checkpoints = {step: folder / str(step) for step in step_folders(folder)}
  folders = (run / name for name in (BEST, 'model') if bundles.exists(run / name))
  sealed = {step: folder for folder in folders if (step := step_of(folder)) is not None}
  return {step: SavedState(step, folder) for step, folder in (checkpoints | sealed).items()}


def step_of(folder: pathlib.Path) -> int | None:
  """The step that a folder's seal names."""
  with contextlib.suppress(seals.Broken):
    return seals.read(folder).origin.step
  return None


def best_state(run: pathlib.Path, states: Mapping[int, SavedState]) -> SavedState | None:
  """The state with the best evaluation: BEST, or without it one of the checkpoints."""
  if bundles.exists(run / BEST) and (step := step_of(run / BEST)) is not None:
    return SavedState(step, run / BEST)
  ranks = {step: rank for step in states if (rank := evaluation_rank(run, step)) is not None}
  return states[max(ranks, key=lambda step: (ranks[step], -step))] if ranks else None


def evaluation_rank(run: pathlib.Path, step: int) -> float | None:
  """A number that is larger for a better evaluation of a checkpoint; None without one."""
  model = read_model(run)
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    values = json.loads(files.read_bytes(run / 'checkpoints' / str(step) / METRICS))
    value = model['sign'] * float(values[model['metric']])
    return value if value == value else -float('inf')
  return None


def read_model(run: pathlib.Path) -> files.JSON:
  """What MODEL of a run says; ValueError if it is missing or damaged."""
  if not (run / MODEL).is_file():
    raise ValueError(f'{run / MODEL} is missing: the line that started the run writes it')
  return files.read_object(run / MODEL)


def steps_of(states: Mapping[int, SavedState]) -> str:
  """The steps of states in words, the newest first."""
  return f'step {first_few([f"{step:,}" for step in sorted(states, reverse=True)])}'


def read_state(run: pathlib.Path, state: SavedState, name: str) -> Checkpoint:
  """The checkpoint that a state is, chosen by a name."""
  checkpoint = bundles.read(state.folder) if state.is_bundle else read_step(run, state)
  stage = '' if state.folder == run / 'model' and not name else describe(run, state, name)
  return dataclasses.replace(checkpoint, step=state.step, stage=stage)


def read_step(run: pathlib.Path, state: SavedState) -> Checkpoint:
  """The model of a step that the run could resume from: of the average where it keeps one."""
  model = read_model(run)
  if fault := seals.fault(state.folder, seals.Origin(state.step)):
    raise ValueError(f'{state.folder} {fault.line}: another of its steps may be whole')
  if not model.get('arrays'):
    raise ValueError(
      f"{run}: the model is not among the parameters that are trained, but made of them: 'best' is "
      'there from the first evaluation on'
    )
  part = 'ema' if model.get('average') else 'params'
  arrays = weights.read_orbax(state.folder / 'state', part)
  try:
    chosen = {name: arrays[array] for name, array in model['arrays'].items()}
  except KeyError as error:
    raise ValueError(f'{state.folder} has no array {error} of {run / MODEL}') from None
  return bundles.described(model, chosen, file=run / MODEL, path=state.folder)


def describe(run: pathlib.Path, state: SavedState, name: str) -> str:
  """A line on which state of a run this is, and how the run goes."""
  model: files.JSON = {}
  with contextlib.suppress(ValueError):
    model = read_model(run)
  total = f' of {model["total"]:,}' if type(model.get('total')) is int else ''
  status = owner.read(run) or {}
  ends = '; the run was ended' if status.get('stale') else '; the run is still training'
  end = ENDS.get(str(status.get('state')), ends) if status else ''
  best = best_state(run, saved_states(run)) if 'metric' in model else None
  rank = f', the best{" so far" * bool(end)} by validation/{model.get("metric")}'
  rank = rank if best is not None and best.step == state.step else ''
  newest = ', the newest' if name == LATEST or not (name or rank) else ''
  return f'{run}: step {state.step:,}{total}{rank}{newest}{end}'
