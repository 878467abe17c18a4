"""Label maps: which class of a model each class of a data set is.

S classes of the data set, M of the model, K of both, which predictions are restricted to.
"""

import collections
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.sources import imagenet
from vit_jax.text import nearest

NAMED = 3  # classes that an error names


@dataclasses.dataclass(frozen=True)
class Match:
  """Classes of a data set as a model's.

  Fields:
    columns: (K,) the classes of the model that are scored.
    places: (S,) where the class of each of the data set's is in `columns`; -1: not scored.
    names: (K,) of the scored classes.
    how: in words, how they were found.
  """

  columns: np.ndarray
  places: np.ndarray
  names: tuple[str, ...]
  how: str


def match(
  theirs: Sequence[str],
  ours: Sequence[str],
  *,
  used: frozenset[str] | None = None,
  label_map: str | os.PathLike[str] = '',
) -> Match:
  """Finds the model's class for each of a data set's.

  By name; ImageNet's by their order, whatever words they are named by; and by order where one side
  has numbers for names and both as many. A model that knows more classes than the data set is
  asked for those of the data set alone, as ImageNet-A and -R are scored.

  Args:
    theirs: the data set's classes.
    ours: the model's.
    used: those of `theirs` that images can be of; None: all.
    label_map: a file, see `read_map`, which then decides alone.

  Raises:
    ValueError: if a class of the data set is none of the model's, or it is not told which.
  """
  if label_map:
    asked, how = read_map(label_map, theirs, ours), f'by {os.fspath(label_map)}'
  else:
    try:
      asked, how = found(theirs, ours)
    except ValueError as error:
      raise ValueError(f'{error}; --label_map FILE can tell which class is which') from None
  if used is not None:
    asked = [place if name in used else -1 for name, place in zip(theirs, asked)]
  columns = sorted({place for place in asked if place >= 0})
  if len(columns) < 2:
    raise ValueError(f"{len(columns)} of the classes of the data are the model's: two are needed")
  times = collections.Counter(asked)
  names = {place: ours[place] for place in columns}
  names |= {place: name for name, place in zip(theirs, asked) if times[place] == 1}
  where = {place: column for column, place in enumerate(columns)} | {-1: -1}
  return Match(
    columns=np.asarray(columns, np.int32),
    places=np.asarray([where[place] for place in asked], np.int32),
    names=tuple(names[place] for place in columns),
    how=how + f', restricted to {len(columns)} of {len(ours)}' * (len(columns) < len(ours)),
  )


def found(theirs: Sequence[str], ours: Sequence[str]) -> tuple[list[int], str]:
  """The model's class for each of a data set's, and how it was found.

  Raises:
    ValueError: where that is not told.
  """
  in_order = list(range(len(theirs)))
  if tuple(theirs) == tuple(ours):
    return in_order, 'the same names'
  same = set(theirs) == set(ours)  # numbers in another order, too
  if len(theirs) == len(ours) and not same and (is_numbers(theirs) or is_numbers(ours)):
    return in_order, 'by their order, as one side has numbers for names'
  standard = imagenet.synsets() if imagenet.is_complete(theirs) else tuple(theirs)
  if imagenet.is_complete(ours) or (len(ours) == 1000 and is_numbers(ours) and known(standard)):
    theirs, ours = standard, imagenet.synsets()
    if theirs == ours:
      return in_order, "by ImageNet's order"
  lookup = {name: place for place, name in enumerate(ours)}
  missing = [name for name in theirs if name not in lookup]
  if missing or is_numbers(ours) or len(lookup) < len(ours):
    raise ValueError(unmatched(theirs, ours, missing))
  return [lookup[name] for name in theirs], 'by name'


def is_numbers(names: Sequence[str]) -> bool:
  """Whether names are '0', '1' ..., as of a file that names no classes."""
  return all(name == str(place) for place, name in enumerate(names))


def known(names: Sequence[str]) -> bool:
  """Whether all are synsets of ImageNet."""
  return set(names) <= set(imagenet.synsets())


def unmatched(theirs: Sequence[str], ours: Sequence[str], missing: Sequence[str]) -> str:
  """What to tell where classes cannot be matched."""
  told = f'the data has {len(theirs)} classes and the model {len(ours)}'
  if is_numbers(ours):
    told += ', which have numbers for names'
  elif missing:
    told += f"; not among the model's: {', '.join(missing[:NAMED])}"
    told += f' and {len(missing) - NAMED} more' * (len(missing) > NAMED)
  else:
    told += ', of which some have the same name'
  return told


def read_map(path: str | os.PathLike[str], theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
  """The model's class for each of a data set's; -1 for those that are not to be scored.

  Args:
    path: a .json file, {class of the data: the model's, by name or number}, or a .csv file with
      columns 'data' and 'model'. A null, or an empty cell, is not scored.
    theirs, ours: the classes of the data and the model.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: if it is no such file, lacks a class of the data, or names one that there is not.
  """
  given = read_pairs(pathlib.Path(path))
  for name in given:
    if name not in theirs:
      raise ValueError(f'{path}: {name!r} is no class of the data{near(name, theirs)}')
  if missing := [name for name in theirs if name not in given]:
    more = f' and {len(missing) - NAMED} more' * (len(missing) > NAMED)
    raise ValueError(f'{path} lacks {", ".join(missing[:NAMED])}{more}, classes of the data')
  return [place_of(path, given[name], ours) for name in theirs]


def read_pairs(path: pathlib.Path) -> Mapping[str, Any]:
  """What a label map says, as it stands there."""
  if not path.is_file():
    raise FileNotFoundError(f'{path}: there is no such file')
  try:
    text = path.read_text()
    if path.suffix.lower() == '.csv':
      return {row['data']: row['model'] for row in csv.DictReader(text.splitlines())}
    given = json.loads(text)
  except KeyError:
    raise ValueError(f'{path} has not the columns data and model') from None
  except (ValueError, csv.Error):
    raise ValueError(f'{path} is damaged: neither JSON nor, as .csv, a table') from None
  if not isinstance(given, dict):
    raise ValueError(f'{path} is no JSON object of a class of the data and one of the model each')
  return given


def place_of(path: str | os.PathLike[str], value: Any, ours: Sequence[str]) -> int:
  """The number of a class of the model that is given by name or number; -1 for none."""
  if value is None or value == '':
    return -1
  if isinstance(value, str) and value in ours:
    return list(ours).index(value)
  try:
    number = -1 if isinstance(value, bool | float) else int(value)
  except (TypeError, ValueError):
    number = -1
  if not 0 <= number < len(ours):
    raise ValueError(f'{path}: {value!r} is no class of the model{near(str(value), ours)}')
  return number


def near(name: str, known: Sequence[str]) -> str:
  """The nearest names, for an error; all are told only where they are few."""
  told = nearest(name, list(known))
  return told if len(known) <= 20 or '?' in told else ''
