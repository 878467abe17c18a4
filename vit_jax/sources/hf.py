"""Data sets of Hugging Face: 'hf:NAME[:CONFIGURATION]' of the Hub, or 'hf:PATH' of one's own.

PATH is what `save_to_disk` wrote, a parquet file, or a folder that `load_dataset` takes. Images and
labels are found by their type, or named by '?image=COLUMN&label=COLUMN'. Splits keep their names,
but 'val' and 'valid' are 'validation'.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.sources import PassedOver, Record, Source, Splits, encodings, split_columns
from vit_jax.sources import classes as labelling
from vit_jax.text import first_line, quantity

if TYPE_CHECKING:
  from datasets import Dataset
  from datasets.features.features import FeatureType

LABEL_NAMES = ('label', 'labels', 'fine_label', 'target', 'class')  # the first that can be one
RENAMED = {'val': 'validation', 'valid': 'validation'}


def splits(kind: str, name: str) -> Splits:
  """The splits of a set, which is downloaded if it is neither a path nor in the cache."""
  name, named = split_columns(name, ('image', 'label'))
  tables = load(name)
  features = next(iter(tables.values())).features
  for column in named.values():
    if column not in features:
      raise ValueError(f'hf:{name} has no column {column!r} among {", ".join(features)}')
  image = named.get('image') or image_column(name, features)
  label = named.get('label') or label_column(name, features)
  labels = read_labels(f'hf:{name}, {label}', tables, label)
  return {
    RENAMED.get(split, split): functools.partial(
      open_split, f'{name}/{split}', table, (image, label), labels, split
    )
    for split, table in tables.items()
  }


def load(name: str) -> Mapping[str, 'Dataset']:
  """{split: table}."""
  try:
    import datasets
  except ImportError as error:
    raise ValueError(f"hf:{name} needs datasets: pip install 'vit_jax[hf]'") from error
  path = pathlib.Path(name).expanduser()
  try:
    if (path / 'dataset_dict.json').is_file() or (path / 'state.json').is_file():
      tables = datasets.load_from_disk(path)
    elif path.is_file():
      tables = datasets.load_dataset('parquet', data_files=os.fspath(path))
    elif path.exists():
      tables = datasets.load_dataset(os.fspath(path))
    else:
      hub, _, configuration = name.partition(':')
      tables = datasets.load_dataset(hub, configuration or None)
  except Exception as error:  # of many kinds
    raise ValueError(f'hf:{name} cannot be loaded: {first_line(error)}') from error
  return tables if isinstance(tables, Mapping) else {'train': tables}


def image_column(name: str, features: Mapping[str, 'FeatureType']) -> str:
  """'image' or the first column of images."""
  import datasets

  images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
  if not images:
    raise ValueError(f'hf:{name} has no column of images among {", ".join(features)}')
  return 'image' if 'image' in images else images[0]


def label_column(name: str, features: Mapping[str, 'FeatureType']) -> str:
  """The first of LABEL_NAMES that holds classes or numbers, or the first column of classes.

  Raises:
    ValueError: if there is none, or there are only several columns of integers of other names.
  """
  import datasets

  classes = [
    key
    for key, feature in features.items()
    if isinstance(element_type(feature), datasets.ClassLabel)
  ]
  numbers = [key for key, feature in features.items() if is_number(key, element_type(feature))]
  for columns in (classes, numbers):
    named = [key for key in LABEL_NAMES if key in columns]
    if named or len(columns) == 1 or (columns and columns is classes):
      return (named or columns)[0]
  raise ValueError(
    f'hf:{name} has no column of labels among {", ".join(features)}: '
    f'make one a ClassLabel, or an integer called {LABEL_NAMES[0]!r}'
  )


def element_type(feature: 'FeatureType') -> 'FeatureType':
  """The type of the elements of a column of lists, else of the column."""
  return getattr(feature, 'feature', feature)


def is_number(name: str, feature: 'FeatureType') -> bool:
  """Whether a column is of integers, or of any numbers and called a label."""
  dtype = str(getattr(feature, 'dtype', ''))
  return 'int' in dtype or ('float' in dtype and name in LABEL_NAMES)


@dataclasses.dataclass(frozen=True)
class Labels:
  """The labels of a set.

  Fields:
    classes: their names.
    arrays: by split, (N,) int32, or (N, L) padded with -1, as `sources.classes` has them.
    notes: lines on how they were read.
  """

  classes: tuple[str, ...]
  arrays: Mapping[str, np.ndarray]
  notes: tuple[str, ...]


def read_labels(where: str, tables: Mapping[str, 'Dataset'], column: str) -> Labels:
  """The labels in a column, of which no image is read.

  Where they are mere integers, classes are called 0, or else 1, to the largest in any split. Lists
  are of several labels, or of a 0 or 1 for each class. Classes are not known where a label, or the
  list of several, is None, NaN, or -1 alone; [] are none.
  """
  feature = next(iter(tables.values())).features[column]
  element = element_type(feature)
  dtype = str(getattr(element, 'dtype', element))
  if not any(kind in dtype for kind in ('int', 'float', 'bool')):
    raise ValueError(f'{where}: labels are {dtype}, must be numbers, or classes: a ClassLabel')
  names = tuple(getattr(element, 'names', None) or ())
  values = {split: column_values(table, column) for split, table in tables.items()}
  is_list, length = element is not feature, 0
  if is_list:
    lists = (labels for split in values.values() for labels in split if labels is not None)
    length = encodings.one_hot_length(where, lists, count=len(names))
  as_labels = encodings.from_one_hot if length else as_list
  rows = {split: [as_labels(value) for value in each] for split, each in values.items()}
  texts = sorted({str(label) for each in rows.values() for row in each for label in row or ()})
  numbers = set(encodings.class_numbers(where, texts) or ())
  classes, first = names or labelling.numbered(length), 0
  if not classes:
    classes, first = numbered_classes(where, numbers)
  if wrong := sorted(number for number in numbers if not first <= number < first + len(classes)):
    raise ValueError(f'{where}: label {wrong[0]} is none of {quantity(len(classes), "class")}')
  labelled = [row for each in rows.values() for row in each if row is not None]
  multi_label = is_list and not (length and all(len(row) == 1 for row in labelled))
  width = max([1, *map(len, labelled)]) if multi_label else 0
  arrays = {split: as_array(each, first, width) for split, each in rows.items()}
  notes = (*labelling.first_note(classes, first), *encodings.float_note(texts))
  return Labels(classes, arrays, notes)


def column_values(table: 'Dataset', column: str) -> list[Any]:
  """What a column holds."""
  batches = table.select_columns([column]).iter(batch_size=10_000)
  return [value for batch in batches for value in batch[column]]


def as_list(value: Any) -> list[float] | None:
  """The labels of an image; None where they are not known."""
  values = value if isinstance(value, list) else [value]
  if value is None or encodings.are_unknown(values):
    return None
  return [label for label in values if label != -1]


def numbered_classes(where: str, numbers: Collection[int]) -> tuple[tuple[str, ...], int]:
  """The names of classes that have only numbers, and the first of these."""
  first = labelling.first_number(numbers)
  count = min(max(numbers, default=-1) + 1, labelling.MAX_CLASSES)
  if gaps := labelling.gaps(numbers, count):
    raise ValueError(f'{where}: {gaps}')
  return labelling.numbered(count - first, first), first


def as_array(rows: Sequence[Sequence[float] | None], first: int, width: int) -> np.ndarray:
  """The labels of each row, less the first: (N,), or (N, width) padded with -1 unless that is 0."""
  unknown = labelling.UNKNOWN if width else -1
  labels = np.full((len(rows), max(width, 1)), -1, np.int32)
  for index, row in enumerate(rows):
    if row is None:
      labels[index] = unknown
    else:
      labels[index, : len(row)] = np.asarray(row, np.int32) - first
  return labels if width else labels[:, 0]


def open_split(
  name: str, table: 'Dataset', columns: tuple[str, str], labels: Labels, split: str
) -> Source:
  """A split as a source, of its columns of images and of labels."""
  import datasets

  images = table.select_columns([columns[0]]).cast_column(columns[0], datasets.Image(decode=False))
  rows = Rows(name, images, columns[0], labels.arrays[split])
  unread = [column for column in table.column_names if column not in columns]
  return Source(
    rows,
    labels.classes,
    rows.describe,
    passed_over=tuple(PassedOver('unknown column', name) for name in unread),
    notes=labels.notes,
  )


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a table as records; an image is {'bytes', 'path'}, of which one may be None."""

  name: str  # in messages
  table: 'Dataset'
  image: str
  labels: np.ndarray  # (N,) int32, or (N, L) padded with -1

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    image = self.table[index][self.image] or {'bytes': None, 'path': None}
    data = image['bytes']
    if data is None:
      if image['path'] is None:
        raise OSError(f'{self.name}[{index}]: there is no image')
      data = pathlib.Path(image['path']).read_bytes()
    return {'image': data, 'label': self.labels[index]}

  def describe(self, index: int) -> str:
    """'beans/train[17]', and the name of its file where that is known."""
    path = (self.table[index][self.image] or {}).get('path')
    return f'{self.name}[{index}]' + (f' ({path})' if path else '')
