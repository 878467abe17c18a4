"""The legs of a run: what was changed of its config, and from which step on.

A run whose config never changed has one leg, and no file of them. Each later one begins at a
checkpoint, which is of the leg before. What a finished leg delivered is in `legs/1` and so on.
"""

import copy
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from vit_jax import files

FILE, FOLDER = 'legs.json', 'legs'
DELIVERED = (
  'report.html',
  'report.png',
  'evaluation.json',
  'model',
)  # the last says it is finished


@dataclasses.dataclass(frozen=True)
class Leg:
  """A leg of a run after the first.

  Fields:
    step: after which it begins.
    fields: {'schedule.learning_rate': [old, new], ...}, as JSON.
    request: what the user asked for: 'extend', a duration or '', and 'change', FIELD=VALUE each.
    command: the line that was typed.
    time: when, in UTC.
  """

  step: int
  fields: Mapping[str, list[files.JSON]]
  request: Mapping[str, files.JSON]
  command: str = ''
  time: str = ''

  def __str__(self) -> str:
    fields = ', '.join(f'{name} {old!r} -> {new!r}' for name, (old, new) in self.fields.items())
    anew = 'begins anew' if 'schedule.begin' in self.fields else 'goes on where it is'
    return f'after step {self.step:,}: {fields}; the schedule {anew}'


def read(folder: str | os.PathLike[str]) -> tuple[Leg, ...]:
  """The legs of the run in a folder after its first, in order.

  Raises:
    ValueError: if their file is damaged.
  """
  file = pathlib.Path(folder) / FILE
  if not file.exists():
    return ()
  try:
    legs = tuple(Leg(**leg) for leg in files.read_object(file)['legs'])
    if all(
      type(leg.step) is int and all(len(pair) == 2 for pair in leg.fields.values()) for leg in legs
    ):
      return legs
  except (KeyError, TypeError, AttributeError):
    pass
  raise ValueError(f'{file} is damaged: without it the run goes on as its config.json says')


def followed(legs: Sequence[Leg], leg: Leg) -> tuple[Leg, ...]:
  """Legs and one more, which has all steps after its own: none of the others begins later."""
  return (*(dataclasses.replace(old, step=min(old.step, leg.step)) for old in legs), leg)


def write(folder: pathlib.Path, legs: Sequence[Leg]) -> None:
  """Puts legs into a run's folder."""
  files.write_json(folder / FILE, {'legs': [dataclasses.asdict(leg) for leg in legs]})


def archive(folder: pathlib.Path, number: int) -> None:
  """Moves what a finished leg delivered out of the way of the next."""
  if not (folder / 'model').exists():
    return
  place = folder / FOLDER / str(number)
  place.mkdir(parents=True, exist_ok=True)
  for name in DELIVERED:
    if (folder / name).exists() and not (place / name).exists():
      os.replace(folder / name, place / name)


def config_at(config: files.JSON, legs: Sequence[Leg], step: int | None = None) -> files.JSON:
  """A config as it was for the update to a step; None is of the last leg.

  Args:
    config: nested dicts, of any leg.
    legs: of the run.
  """
  whole = copy.deepcopy(config)
  for leg in legs:
    set_fields(whole, {name: new for name, (_, new) in leg.fields.items()})
  for leg in reversed(legs):
    if step is not None and step <= leg.step:
      set_fields(whole, {name: old for name, (old, _) in leg.fields.items()})
  return whole


def set_fields(config: files.JSON, values: Mapping[str, files.JSON]) -> None:
  """Sets fields of nested dicts by their dotted names."""
  for name, value in values.items():
    *sections, field = name.split('.')
    section = config
    for part in sections:
      section = section[part]
    section[field] = value
