"""Data sets of Hugging Face: 'hf:NAME[:CONFIGURATION]' of the Hub, or 'hf:PATH' of one's own.

PATH is what `save_to_disk` wrote, a parquet file, or a folder that `load_dataset` takes. Images and
labels are found by their type. Splits keep their names, but 'val' and 'valid' are 'validation'.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.sources import Record, Source, Splits

LABEL_NAMES = ('label', 'labels', 'fine_label', 'target', 'class')  # the first that can be one
RENAMED = {'val': 'validation', 'valid': 'validation'}
MAX_LABELS = 64  # of an image with several


def splits(kind: str, rest: str) -> Splits:
  """Of 'hf': those of a set, which is downloaded if it is neither a path nor in the cache.

  Raises:
    ValueError: if `datasets` is missing, the set cannot be had, or it has no images or labels.
  """
  tables = loaded(rest)
  first = next(iter(tables.values()))
  image = image_column(rest, first.features)
  label = label_column(rest, first.features)
  classes = class_names(tables, label)
  return {
    RENAMED.get(split, split): functools.partial(
      opened, f'{rest}/{split}', table, image=image, label=label, classes=classes
    )
    for split, table in tables.items()
  }


def loaded(name: str) -> Mapping[str, Any]:
  """{split: table}.

  Raises:
    ValueError: if it cannot be had, with the reason in a line.
  """
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
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise ValueError(f'hf:{name} cannot be loaded: {lines[0]}') from error
  return tables if isinstance(tables, Mapping) else {'train': tables}


def image_column(name: str, features: Mapping[str, Any]) -> str:
  """'image' or the first column of images."""
  import datasets

  found = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
  if not found:
    raise ValueError(f'hf:{name} has no column of images among {", ".join(features)}')
  return 'image' if 'image' in found else found[0]


def label_column(name: str, features: Mapping[str, Any]) -> str:
  """The first of LABEL_NAMES that holds classes or integers, or the first column of classes.

  Raises:
    ValueError: if there is none, or there are only several columns of integers of other names.
  """
  import datasets

  classes = [
    key for key, feature in features.items() if isinstance(single(feature), datasets.ClassLabel)
  ]
  numbers = [key for key, feature in features.items() if is_integer(single(feature))]
  for found in (classes, numbers):
    named = [key for key in LABEL_NAMES if key in found]
    if named or len(found) == 1 or (found and found is classes):
      return (named or found)[0]
  raise ValueError(
    f'hf:{name} has no column of labels among {", ".join(features)}: '
    f'make one a ClassLabel, or an integer called {LABEL_NAMES[0]!r}'
  )


def single(feature: Any) -> Any:
  """Of a column of lists, the type of their elements."""
  return getattr(feature, 'feature', feature)


def is_integer(feature: Any) -> bool:
  return 'int' in str(getattr(feature, 'dtype', ''))


def class_names(tables: Mapping[str, Any], label: str) -> tuple[str, ...]:
  """Of a column of integers, 0 to the largest in any split."""
  feature = single(next(iter(tables.values())).features[label])
  if getattr(feature, 'names', None):
    return tuple(feature.names)
  largest = -1
  for table in tables.values():
    for batch in table.select_columns([label]).with_format('numpy').iter(batch_size=10_000):
      largest = max(largest, *(np.max(value, initial=-1) for value in batch[label]))
  return tuple(map(str, range(int(largest) + 1)))


def opened(name: str, table: Any, *, image: str, label: str, classes: tuple[str, ...]) -> Source:
  """A split as a source."""
  import datasets

  columns = table.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
  rows = Rows(name, columns, image, label)
  return Source(rows, classes, rows.describe)


@dataclasses.dataclass(frozen=True)
class Rows(Sequence[Record]):
  """The rows of a table as records.

  Fields:
    name: in messages.
    table: of two columns; an image is {'bytes', 'path'}, of which one may be None.
    image, label: the columns.
  """

  name: str
  table: Any
  image: str
  label: str

  def __len__(self) -> int:
    return len(self.table)

  def __getitem__(self, index: Any) -> Any:
    """The record at an index.

    Raises:
      OSError: if its file is gone, or there is no image.
      ValueError: for an image with over MAX_LABELS labels.
    """
    row = self.table[index]
    image = row[self.image] or {'bytes': None, 'path': None}
    data = image['bytes']
    if data is None:
      if image['path'] is None:
        raise OSError(f'{self.name}[{index}]: there is no image')
      data = pathlib.Path(image['path']).read_bytes()
    label = row[self.label]
    if isinstance(label, list) and len(label) > MAX_LABELS:
      raise ValueError(f'{self.name}[{index}]: {len(label)} labels; at most {MAX_LABELS} are taken')
    return {'image': data, 'label': numbered(label)}

  def describe(self, index: int) -> str:
    """'beans/train[17]', and the name of its file where that is known."""
    path = (self.table[index][self.image] or {}).get('path')
    return f'{self.name}[{index}]' + (f' ({path})' if path else '')


def numbered(label: Any) -> Any:
  """A label as int32, -1 for none; of a list, (MAX_LABELS,) filled up with -1."""
  if not isinstance(label, list):
    return np.int32(-1 if label is None else label)
  return np.array(label + [-1] * (MAX_LABELS - len(label)), np.int32)
