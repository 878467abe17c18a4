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

import numpy as np

from vit_jax.sources import imagenet
from vit_jax.text import first_few, nearest

NAMED = 3  # classes that an error names


@dataclasses.dataclass(frozen=True)
class Match:
  """Classes of a data set as a model's."""

  columns: np.ndarray  # (K,) the classes of the model that are scored
  targets: np.ndarray  # (S,) the index in `columns` of each of the data set's; -1: not scored
  names: tuple[str, ...]  # (K,) of the scored classes
  method: str  # in words, how they were matched


def match(
  theirs: Sequence[str],
  ours: Sequence[str],
  *,
  used: frozenset[str] | None = None,
  label_map: str | os.PathLike[str] = '',
) -> Match:
  """Matches the classes of a data set with those of a model.

  By name; ImageNet's by their order, whatever words they are named by; and by order where one side
  has numbers for names and both as many. A model that knows more classes than the data set is
  asked for those of the data set alone, as ImageNet-A and -R are scored.

  Args:
    theirs: the data set's classes.
    ours: the model's.
    used: those of `theirs` that images can be of; None: all.
    label_map: a file, see `read_map`, which then decides alone.

  Raises:
    ValueError: if a class of the data set is none of the model's, or it is not clear which.
  """
  if label_map:
    labels, method = read_map(label_map, theirs, ours), f'by {os.fspath(label_map)}'
  else:
    try:
      labels, method = match_names(theirs, ours)
    except ValueError as error:
      raise ValueError(f'{error}; --label_map FILE can tell which class is which') from None
  if used is not None:
    labels = [label if name in used else -1 for name, label in zip(theirs, labels)]
  columns = sorted({label for label in labels if label >= 0})
  if len(columns) < 2:
    raise ValueError(f"{len(columns)} of the classes of the data are the model's: two are needed")
  counts = collections.Counter(labels)
  names = {label: ours[label] for label in columns}
  names |= {label: name for name, label in zip(theirs, labels) if counts[label] == 1}
  targets = {label: column for column, label in enumerate(columns)} | {-1: -1}
  restricted = f', restricted to {len(columns)} of {len(ours)}' * (len(columns) < len(ours))
  return Match(
    columns=np.asarray(columns, np.int32),
    targets=np.asarray([targets[label] for label in labels], np.int32),
    names=tuple(names[label] for label in columns),
    method=method + restricted,
  )


def match_names(theirs: Sequence[str], ours: Sequence[str]) -> tuple[list[int], str]:
  """The model's class for each of a data set's, and how it was matched."""
  in_order = list(range(len(theirs)))
  if tuple(theirs) == tuple(ours):
    return in_order, 'the same names'
  same = set(theirs) == set(ours)  # numbers in another order, too
  if len(theirs) == len(ours) and not same and (is_numbers(theirs) or is_numbers(ours)):
    return in_order, 'by their order, as one side has numbers for names'
  standard = imagenet.synsets() if imagenet.is_complete(theirs) else tuple(theirs)
  may_be_imagenet = len(ours) == 1000 and is_numbers(ours)
  if imagenet.is_complete(ours) or (may_be_imagenet and set(standard) <= set(imagenet.synsets())):
    theirs, ours = standard, imagenet.synsets()
    if theirs == ours:
      return in_order, "by ImageNet's order"
  lookup = {name: label for label, name in enumerate(ours)}
  missing = [name for name in theirs if name not in lookup]
  if missing or is_numbers(ours) or len(lookup) < len(ours):
    raise ValueError(unmatched(theirs, ours, missing))
  return [lookup[name] for name in theirs], 'by name'


def is_numbers(names: Sequence[str]) -> bool:
  """Whether names are '0', '1' ..., as of a file that names no classes."""
  return all(name == str(label) for label, name in enumerate(names))


def unmatched(theirs: Sequence[str], ours: Sequence[str], missing: Sequence[str]) -> str:
  """The error where classes cannot be matched."""
  message = f'the data has {len(theirs)} classes and the model {len(ours)}'
  if is_numbers(ours):
    return f'{message}, which have numbers for names'
  if missing:
    return f"{message}; not among the model's: {first_few(missing, NAMED)}"
  return f'{message}, of which some have the same name'


def read_map(path: str | os.PathLike[str], theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
  """The model's class for each of a data set's; -1 for those that are not to be scored.

  The file is .json, {class of the data: the model's, by name or number}, or .csv with columns
  'data' and 'model'. A null, or an empty cell, is not scored.
  """
  pairs = read_pairs(pathlib.Path(path))
  for name in pairs:
    if name not in theirs:
      raise ValueError(f'{path}: {name!r} is no class of the data{hint(name, theirs)}')
  if missing := [name for name in theirs if name not in pairs]:
    raise ValueError(f'{path} lacks {first_few(missing, NAMED)}, classes of the data')
  return [label_of(path, pairs[name], ours) for name in theirs]


def read_pairs(path: pathlib.Path) -> Mapping[str, object]:
  """{class of the data: the model's} of a label map, not checked yet."""
  if not path.is_file():
    raise FileNotFoundError(f'{path}: there is no such file')
  try:
    text = path.read_text()
    if path.suffix.lower() == '.csv':
      return {row['data']: row['model'] for row in csv.DictReader(text.splitlines())}
    pairs = json.loads(text)
  except KeyError:
    raise ValueError(f'{path} has not the columns data and model') from None
  except (ValueError, csv.Error):
    raise ValueError(f'{path} is damaged: neither JSON nor, as .csv, a table') from None
  if not isinstance(pairs, dict):
    raise ValueError(f'{path} is no JSON object of a class of the data and one of the model each')
  return pairs


def label_of(path: str | os.PathLike[str], value: object, ours: Sequence[str]) -> int:
  """The number of a class of the model that is given by name or number; -1 for none."""
  if value is None or value == '':
    return -1
  if isinstance(value, str) and value in ours:
    return list(ours).index(value)
  try:
    number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else -1
  except ValueError:
    number = -1
  if not 0 <= number < len(ours):
    raise ValueError(f'{path}: {value!r} is no class of the model{hint(str(value), ours)}')
  return number


def hint(name: str, classes: Sequence[str]) -> str:
  """The nearest names, for an error; all of them only where they are few."""
  message = nearest(name, list(classes))
  return message if len(classes) <= 20 or '?' in message else ''
