"""Data sets of Hugging Face: 'hf:NAME[:CONFIGURATION]' of the Hub, or 'hf:PATH' of one's own.

PATH is what `save_to_disk` wrote, a parquet file, or a folder that `load_dataset` takes. Images and
labels are found by their type, or named by '?image=COLUMN&label=COLUMN'. Splits keep their names,
but 'val' and 'valid' are 'validation'.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.sources import PassedOver, Record, Source, Splits, split_columns
from vit_jax.sources.classes import REGRESSION, first_note, first_number, numbered, pad_one
from vit_jax.text import first_line

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
  if 'float' in str(getattr(features[label], 'dtype', '')):
    raise ValueError(f'hf:{name}, {label}: {REGRESSION}')
  classes, first = class_names(tables, label)
  multi_label = element_type(features[label]) is not features[label]
  return {
    RENAMED.get(split, split): functools.partial(
      open_split, Rows(f'{name}/{split}', table, image, label, first, multi_label), classes
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


def class_names(tables: Mapping[str, 'Dataset'], label: str) -> tuple[tuple[str, ...], int]:
  """The names of the classes and the label of the first.

  Where labels are mere integers, the names are 0, or else 1, to the largest in any split.
  """
  feature = element_type(next(iter(tables.values())).features[label])
  if getattr(feature, 'names', None):
    return tuple(feature.names), 0
  labels: set[int] = set()
  for table in tables.values():
    for batch in table.select_columns([label]).iter(batch_size=10_000):
      labels.update(*(np.ravel(value).tolist() for value in batch[label] if value is not None))
  labels -= {-1}  # of an image without a label
  first = first_number(labels)
  return numbered(max(labels, default=-1) + 1 - first, first), first


def open_split(rows: 'Rows', classes: tuple[str, ...]) -> Source:
  """A split as a source."""
  import datasets

  columns = rows.table.select_columns([rows.image, rows.label])
  table = columns.cast_column(rows.image, datasets.Image(decode=False))
  unread = [name for name in rows.table.column_names if name not in (rows.image, rows.label)]
  rows = dataclasses.replace(rows, table=table)
  return Source(
    rows,
    classes,
    rows.describe,
    passed_over=tuple(PassedOver('unknown column', name) for name in unread),
    notes=first_note(classes, rows.first),
  )


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a table as records; an image is {'bytes', 'path'}, of which one may be None.

  Classes are not known where a label, or the list of several, is None, or -1 alone; [] are none.
  """

  name: str  # in messages
  table: 'Dataset'
  image: str
  label: str
  first: int  # the label of the first class
  multi_label: bool

  def __len__(self) -> int:
    return len(self.table)

  def __getitem__(self, index: int) -> Record:
    row = self.table[index]
    image = row[self.image] or {'bytes': None, 'path': None}
    data = image['bytes']
    if data is None:
      if image['path'] is None:
        raise OSError(f'{self.name}[{index}]: there is no image')
      data = pathlib.Path(image['path']).read_bytes()
    label = row[self.label]
    if not self.multi_label:
      has_label = label is not None and label >= 0
      return {'image': data, 'label': np.int32(label - self.first if has_label else -1)}
    try:
      labels = label and [one - self.first if one >= 0 else -1 for one in label]
      return {'image': data, 'label': pad_one(labels)}
    except ValueError as error:
      raise ValueError(f'{self.name}[{index}]: {error}') from None

  def describe(self, index: int) -> str:
    """'beans/train[17]', and the name of its file where that is known."""
    path = (self.table[index][self.image] or {}).get('path')
    return f'{self.name}[{index}]' + (f' ({path})' if path else '')
