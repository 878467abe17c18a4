"""Whose class is this: which class of a model each class of a data set is.

S classes of the data set, M of the model, K of both that are scored.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from vit_jax import files
from vit_jax.sources import delimited, encodings, imagenet
from vit_jax.sources.classes import MAX_GAPS, NUMBER, folded
from vit_jax.text import first_few, nearest, quantity

NAMED = 3  # classes that a line names


@dataclasses.dataclass(frozen=True)
class Alignment:
  """Which class of a model each class of a data set is."""

  labels: tuple[int, ...]  # (S,) the model's class for each of the data's; -1: none
  method: str  # in words, how they were matched


@dataclasses.dataclass(frozen=True)
class Match:
  """What of a model is scored on a data set."""

  columns: np.ndarray  # (K,) the classes of the model that are scored
  targets: np.ndarray  # (S,) the index in `columns` of each of the data set's; -1: not scored
  names: tuple[str, ...]  # (K,) of the scored classes
  method: str  # in words, how they were matched, and what of them is not scored


def align(
  data: Sequence[str], model: Sequence[str], *, needed: Collection[str] | None = None
) -> Alignment:
  """The class of a model for each class of a data set.

  By name wherever a name is shared, without regard to case, Unicode form and leading zeros where
  that leaves no doubt; ImageNet's by their synsets, whatever words they are named by. By number,
  if no name is shared, both sides have as many classes and those of one are called 0 to n - 1 in
  any order: class '10' is then the other's eleventh, wherever it is sorted.

  Args:
    data: the names of the data set's classes.
    model: of the model's.
    needed: those of `data` that must be among the model's; None: all.

  Raises:
    ValueError: if one that is needed is none of the model's, or it is not clear which.
  """
  if tuple(data) == tuple(model):
    return Alignment(tuple(range(len(data))), 'the same names')
  names = match_names(data, model)
  numbers = match_numbers(data, model)
  if numbers and max(names) < 0:
    side = 'the data' if number_range(data) else 'the model'
    return Alignment(numbers, f'by their order, as {side} has numbers for names')
  method = 'by name'
  if synsets := in_synsets(data, model):
    by_synset = match_names(synsets, imagenet.synsets())
    names = tuple(label if label >= 0 else other for label, other in zip(by_synset, names))
    method = 'by synset' if synsets == tuple(data) else "by WordNet's words"
    method = "by ImageNet's order" if synsets == imagenet.synsets() else method
  elif any(label >= 0 and model[label] != name for name, label in zip(data, names)):
    method = 'by name, without regard to case and leading zeros'
  missing = [name for name, label in zip(data, names) if label < 0]
  missing = missing if needed is None else [name for name in missing if name in needed]
  unnamed = are_unnamed(data, model)
  if missing or unnamed or (data and max(names) < 0):
    raise ValueError(unmatched(data, model, missing, unnamed=unnamed))
  return Alignment(names, method)


def match(
  data: Sequence[str],
  model: Sequence[str],
  *,
  present: Collection[str] | None = None,
  subset: Collection[str] | None = None,
  restrict: bool = False,
  label_map: str | os.PathLike[str] = '',
) -> Match:
  """What of a model is scored on a data set: all classes of the model, unless asked for fewer.

  Args:
    data: the names of the data set's classes.
    model: of the model's.
    present: those of `data` that have images, where that is known; None: all. Others need be none
      of the model's.
    subset: those of `data` that predictions are restricted to, as ImageNet-A and -R are scored.
    restrict: only classes that both have are scored; images of others are not.
    label_map: a file, see `read_map`, which then decides alone.

  Raises:
    ValueError: as `align`; if fewer than two classes would be scored.
  """
  present = frozenset(data if present is None else present)
  if label_map:
    mapping = read_map(label_map, data, model, needed=present)
    alignment = Alignment(mapping, f'by {os.fspath(label_map)}')
  else:
    try:
      alignment = align(data, model, needed=() if restrict else present)
    except ValueError as error:
      raise ValueError(
        f'{error}; vit evaluate --label_map FILE says which class is which, --restrict leaves out '
        'those that are not in both'
      ) from None
  scored = present if subset is None else present & frozenset(subset)
  labels = [label if name in scored else -1 for name, label in zip(data, alignment.labels)]
  with_images = sorted({label for label in labels if label >= 0})
  columns = list(range(len(model))) if subset is None and not restrict else with_images
  if not with_images or len(columns) < 2:
    raise ValueError(
      f"{len(with_images)} of the classes of the data are the model's: there is nothing to score"
    )
  indices = {label: index for index, label in enumerate(columns)} | {-1: -1}
  return Match(
    columns=np.asarray(columns, np.int32),
    targets=np.asarray([indices[label] for label in labels], np.int32),
    names=scored_names(data, model, labels, columns),
    method=alignment.method + scope(data, model, labels, columns, scored),
  )


def match_names(data: Sequence[str], model: Sequence[str]) -> tuple[int, ...]:
  """The model's class of the same name for each of a data set's; -1 where none is, or several."""
  exact = match_spelling(data, model)
  alike = match_spelling([folded(name) for name in data], [folded(name) for name in model])
  return tuple(label if label >= 0 else other for label, other in zip(exact, alike))


def match_spelling(data: Sequence[str], model: Sequence[str]) -> list[int]:
  """As `match_names`, but for names of the very same letters."""
  times, times_in_model = collections.Counter(data), collections.Counter(model)
  index = {name: label for label, name in enumerate(model)}
  return [index[name] if times[name] == times_in_model[name] == 1 else -1 for name in data]


def match_numbers(data: Sequence[str], model: Sequence[str]) -> tuple[int, ...]:
  """The model's class for each of the data's where one side is called 0 to n - 1; else ()."""
  if len(data) != len(model):
    return ()
  if numbers := number_range(data):
    return numbers
  return tuple(np.argsort(number_range(model)).tolist())


def number_range(names: Sequence[str]) -> tuple[int, ...]:
  """The numbers that names are, if they are all of 0 to n - 1 in any order, else ()."""
  if not all(map(NUMBER.fullmatch, names)):
    return ()
  numbers = tuple(map(int, names))
  return numbers if sorted(numbers) == list(range(len(names))) else ()


def is_numbers(names: Sequence[str]) -> bool:
  """Whether names are '0', '1' ..., as of a file that names no classes."""
  return all(name == str(label) for label, name in enumerate(names))


def are_unnamed(data: Sequence[str], model: Sequence[str]) -> bool:
  """Whether neither names its classes, of which the model has a thousand and ten times the data's.

  Numbers then say nothing: those of CIFAR-10 are not the first ten of ImageNet's.
  """
  is_larger = len(model) >= max(len(imagenet.synsets()), MAX_GAPS * len(data))
  return is_larger and is_numbers(data) and is_numbers(model)


def in_synsets(data: Sequence[str], model: Sequence[str]) -> tuple[str, ...]:
  """The data's classes as synsets, if the model's are ImageNet's 1,000 and it has any; else ()."""
  names = imagenet.synsets()
  if not imagenet.is_complete(data):
    names = tuple(map(imagenet.synset_of, data))
  may_be_imagenet = len(model) == len(imagenet.synsets()) and is_numbers(model)
  if not (imagenet.is_complete(model) or may_be_imagenet):
    return ()
  return names if set(names) & set(imagenet.synsets()) else ()


def unmatched(
  data: Sequence[str], model: Sequence[str], missing: Sequence[str], *, unnamed: bool
) -> str:
  """The error where classes cannot be matched."""
  message = f'the data has {quantity(len(data), "class")} and the model {len(model):,}'
  if unnamed:
    return f'{message}, which have numbers for names'
  message += f"; not among the model's: {first_few(missing, NAMED)}" * bool(missing)
  message += f"; the model's: {first_few(model, NAMED)}"
  return message + ', of which some have the same name' * (len(set(model)) < len(model))


def scored_names(
  data: Sequence[str], model: Sequence[str], labels: Sequence[int], columns: Sequence[int]
) -> tuple[str, ...]:
  """The names of the scored classes: the data's where it has one for each, else the model's.

  A model that has numbers for names takes those that the data has.
  """
  counts = collections.Counter(labels)
  single = {label: name for name, label in zip(data, labels) if counts[label] == 1}
  names = tuple(single.get(label, model[label]) for label in columns)
  is_clear = single.keys() >= set(columns) or is_numbers(model)
  if is_clear and len(set(names)) == len(names):
    return names
  return tuple(model[label] for label in columns)


def scope(
  data: Sequence[str],
  model: Sequence[str],
  labels: Sequence[int],
  columns: Sequence[int],
  present: Collection[str],
) -> str:
  """What of the two sides is not scored, in words that follow on the method.

  `present` are those of `data` that have images which ought to be scored.
  """
  words, matched = '', set(labels)
  if len(columns) < len(model):
    words += f', restricted to {len(columns)} of {len(model)}'
  if lacking := [model[label] for label in columns if label not in matched]:
    words += f"; the data lacks {len(lacking):,} of the model's {len(model):,}: "
    words += first_few(lacking, NAMED) + '; --restrict leaves them out'
  if outside := [name for name, label in zip(data, labels) if label < 0 and name in present]:
    words += f'; images of {first_few(outside, NAMED)} are not scored'
  return words


def read_map(
  path: str | os.PathLike[str],
  data: Sequence[str],
  model: Sequence[str],
  *,
  needed: Collection[str],
) -> tuple[int, ...]:
  """The model's class for each of a data set's; -1 for those that are not to be scored.

  The file is .json, {class of the data: the model's, by name or number}, or a table .csv with the
  columns 'data' and 'model'. A null, or an empty cell, is not scored. It has all of `needed`.
  """
  pairs = read_pairs(path, ('data', 'model'))
  values: dict[int, object] = {}
  for (name, value), label in zip(pairs.items(), match_names(list(pairs), data)):
    if label < 0:
      raise ValueError(f'{path}: {name!r} is no class of the data{hint(name, data)}')
    values[label] = value
  names = [name for label, name in enumerate(data) if label not in values]
  if missing := [name for name in names if name in needed]:
    raise ValueError(f'{path} lacks {first_few(missing, NAMED)}, classes of the data')
  return tuple(label_of(path, values.get(label), model) for label in range(len(data)))


def read_pairs(path: str | os.PathLike[str], columns: tuple[str, str]) -> Mapping[str, object]:
  """What a file says of classes, by their names: an object of JSON, or two columns of a table.

  Args:
    path: of a .json, or of a .csv or .tsv as spreadsheets write it.
    columns: the title of that of names, and of that of values.

  Raises:
    FileNotFoundError, ValueError: if it is not there, or neither.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path}: there is no such file')
  if path.suffix.lower() in ('.csv', '.tsv'):
    return read_columns(path, *columns)
  try:
    pairs = files.parse(path.read_text('utf-8-sig'))
  except ValueError as error:
    reason = '' if isinstance(error, json.JSONDecodeError | UnicodeError) else f' ({error})'
    raise ValueError(f'{path} is damaged: neither JSON nor, as .csv, a table{reason}') from None
  if not isinstance(pairs, dict):
    raise ValueError(f'{path} is no JSON object of {" and ".join(columns)}')
  return pairs


def read_columns(path: pathlib.Path, first: str, second: str) -> Mapping[str, str]:
  """As `read_pairs`, of two columns of a table."""
  _, header = next(rows := delimited.read_rows(path), (0, []))
  columns = [name.strip().lower() for name in header]
  if not {first, second} <= set(columns):
    raise ValueError(f'{path} has not the columns {first} and {second}')
  pairs: dict[str, str] = {}
  for line, row in rows:
    if len(row) < len(columns):
      raise ValueError(f'{path}, line {line}: {len(row)} fields instead of {len(columns)}')
    cells = dict(zip(columns, map(str.strip, row)))
    name, value = cells.get(first, ''), cells.get(second, '')
    if pairs.setdefault(name, value) != value:
      raise ValueError(
        f'{path}, line {line}: {name!r} is {value!r} here and {pairs[name]!r} before'
      )
  return pairs


def label_of(path: str | os.PathLike[str], value: object, model: Sequence[str]) -> int:
  """The label of a class of the model that is given by name or number; -1 for none.

  Where classes are called by numbers, a number is a name and not an index.
  """
  if value is None or (str(value) not in model and encodings.is_missing(str(value))):
    return -1
  if isinstance(value, int | str) and not isinstance(value, bool):
    name = str(value)
    (label,) = match_names([name], model)
    if label < 0 and NUMBER.fullmatch(name) and not any(map(NUMBER.fullmatch, model)):
      label = int(name)
    if 0 <= label < len(model):
      return label
  raise ValueError(f'{path}: {value!r} is no class of the model{hint(str(value), model)}')


def hint(name: str, classes: Sequence[str]) -> str:
  """The nearest names, for an error; all of them only where they are few."""
  message = nearest(name, list(classes))
  return message if len(classes) <= 20 or '?' in message else ''
