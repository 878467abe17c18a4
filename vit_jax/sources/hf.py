"""Data sets of Hugging Face: 'hf:NAME[:CONFIGURATION]' of the Hub, or 'hf:PATH' of one's own.

PATH is what `save_to_disk` wrote, a parquet file, or a folder that `load_dataset` takes. Images and
labels are found by their type. Splits keep their names, but 'val' and 'valid' are 'validation'.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.sources import Record, Source, Splits
from vit_jax.sources.classes import numbered, pad_one
from vit_jax.text import first_line

if TYPE_CHECKING:
  from datasets import Dataset
  from datasets.features.features import FeatureType

LABEL_NAMES = ('label', 'labels', 'fine_label', 'target', 'class')  # the first that can be one
RENAMED = {'val': 'validation', 'valid': 'validation'}


def splits(kind: str, name: str) -> Splits:
  """The splits of a set, which is downloaded if it is neither a path nor in the cache."""
  tables = load(name)
  first = next(iter(tables.values()))
  image = image_column(name, first.features)
  label = label_column(name, first.features)
  classes = class_names(tables, label)
  return {
    RENAMED.get(split, split): functools.partial(
      open_split, f'{name}/{split}', table, image=image, label=label, classes=classes
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
  """The first of LABEL_NAMES that holds classes or integers, or the first column of classes.

  Raises:
    ValueError: if there is none, or there are only several columns of integers of other names.
  """
  import datasets

  classes = [
    key
    for key, feature in features.items()
    if isinstance(element_type(feature), datasets.ClassLabel)
  ]
  numbers = [key for key, feature in features.items() if is_integer(element_type(feature))]
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


def is_integer(feature: 'FeatureType') -> bool:
  return 'int' in str(getattr(feature, 'dtype', ''))


def class_names(tables: Mapping[str, 'Dataset'], label: str) -> tuple[str, ...]:
  """The names of the classes; of a column of integers, 0 to the largest in any split."""
  feature = element_type(next(iter(tables.values())).features[label])
  if getattr(feature, 'names', None):
    return tuple(feature.names)
  largest = -1
  for table in tables.values():
    for batch in table.select_columns([label]).with_format('numpy').iter(batch_size=10_000):
      largest = max(largest, *(np.max(value, initial=-1) for value in batch[label]))
  return numbered(int(largest) + 1)


def open_split(
  name: str, table: 'Dataset', *, image: str, label: str, classes: tuple[str, ...]
) -> Source:
  """A split as a source."""
  import datasets

  columns = table.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
  rows = Rows(name, columns, image, label)
  return Source(rows, classes, rows.describe)


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of a table as records; an image is {'bytes', 'path'}, of which one may be None."""

  name: str  # in messages
  table: 'Dataset'
  image: str
  label: str

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
    if not isinstance(label, list):
      return {'image': data, 'label': np.int32(-1 if label is None else label)}
    try:
      return {'image': data, 'label': pad_one(label)}
    except ValueError as error:
      raise ValueError(f'{self.name}[{index}]: {error}') from None

  def describe(self, index: int) -> str:
    """'beans/train[17]', and the name of its file where that is known."""
    path = (self.table[index][self.image] or {}).get('path')
    return f'{self.name}[{index}]' + (f' ({path})' if path else '')
