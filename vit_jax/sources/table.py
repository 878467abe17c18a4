"""Tables of labelled images: 'csv:FILE' and 'parquet:FILE', with paths or the images themselves.

N images, L labels of an image.
"""

import array
import csv
import dataclasses
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_jax.sources import Record, Source, Splits
from vit_jax.sources.folder import (
  NAMED,
  ORDER,
  SPLITS,
  Files,
  check_count,
  inside,
  parted,
  shown,
  some,
)

PATHS, LABELS = ('path', 'file', 'filename', 'image', 'img'), ('label', 'class', 'target', 'labels')
MAX_CLASSES = 1_000_000  # a label above is a mistake
MAX_GAPS = 10  # classes to a label, where labels are numbers
NUMBER = re.compile('[+-]?[0-9]{1,18}')


def splits(kind: str, rest: str) -> Splits:
  """Of a CSV or a Parquet file.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: if it is not what its kind wants, in one line.
  """
  return {'csv': csv_table, 'parquet': parquet_table}[kind](os.path.expanduser(rest))


class Table:
  """Rows of a table on their way to a source, and what is wrong with them.

  Args:
    file: its path; relative paths in it are relative to its folder, and must not lead out of that.
    unit: what its rows are counted in: 'line' or 'row'.
  """

  def __init__(self, file: str, unit: str):
    self.file, self.where, self.unit = file, shown(file), unit
    self.root = os.path.realpath(os.path.dirname(os.path.abspath(file)))
    self.paths, self.lengths = bytearray(), array.array('q')
    self.numbers, self.splits = array.array('q'), array.array('b')
    self.known: dict[str, int] = {}  # {label: its code}
    self.codes, self.counts = array.array('q'), array.array('q')  # of all labels; labels of a row
    self.several = False  # labels of an image
    self.faults: list[str] = []
    self.bad, self.absent = 0, 0  # rows
    self.folders: dict[str, bool] = {}  # whether they are inside the root

  def add(
    self, number: int, path: str | None, labels: Sequence[str], split: str | None = 'train'
  ) -> None:
    """Takes a row, or notes what is wrong with it; one that holds its image has no path."""
    at = SPLITS.get((split or '').strip().lower())
    if path is not None and (wrong := self.fault_of(path)):
      self.fault(number, wrong)
    elif '' in labels:
      self.fault(number, 'no label')
    elif at is None:
      self.fault(number, f'unknown split {shown(split or "")!r}')
    else:
      encoded = os.fsencode(path or '')
      self.paths += encoded
      self.lengths.append(len(encoded))
      labels = list(dict.fromkeys(labels))
      self.codes.extend(self.known.setdefault(label, len(self.known)) for label in labels)
      self.counts.append(len(labels))
      self.numbers.append(number)
      self.splits.append(ORDER.index(at))

  def fault(self, number: int, text: str) -> None:
    """Notes what is wrong with a row."""
    self.bad += 1
    if len(self.faults) < NAMED:
      self.faults.append(f'{self.unit} {number}: {text}')

  def fault_of(self, path: str) -> str | None:
    """What is wrong with a path. That nothing is there may be true of some, as of a bad image."""
    if not path:
      return 'no path'
    full, name = os.path.join(self.root, path), shown(path)
    out = f'{name} leads out of {shown(self.root)}'
    free = os.path.isabs(path)  # to lie anywhere
    try:
      if not free and not self.holds_folder(os.path.dirname(full)):
        return out
      mode = os.lstat(full).st_mode
      if stat.S_ISLNK(mode):
        if not free and not self.holds(full):
          return out
        mode = os.stat(full).st_mode
    except OSError:
      self.absent += 1
      return None
    except ValueError:  # a zero byte
      return f'{name} is no path'
    return None if stat.S_ISREG(mode) else f'{name} is not a file'

  def holds_folder(self, folder: str) -> bool:
    if folder not in self.folders:
      self.folders[folder] = self.holds(folder)
    return self.folders[folder]

  def holds(self, path: str) -> bool:
    return inside(os.fsencode(self.root), os.fsencode(os.path.realpath(path)))

  def check(self) -> None:
    """Raises ValueError if a row is bad."""
    if self.bad:
      faults = '; '.join(self.faults) + (f'; and {self.bad - NAMED:,} more' * (self.bad > NAMED))
      raise ValueError(f'{self.where}: {self.bad:,} bad row{"s" * (self.bad > 1)}: {faults}')

  def opened(self, *, images: Any = None, classes: tuple[str, ...] | None = None) -> Splits:
    """The splits of the table.

    Args:
      images: of all rows, by index; None for the files at their paths.
      classes: what labels are numbers of; by default the labels of 'train', sorted, if they are
        names, else 0 to the largest of them.

    Raises:
      ValueError: if a row is bad, or there is no training image, or one class.
    """
    self.check()
    splits, counts = np.asarray(self.splits), np.asarray(self.counts)  # (N,)
    places = {name: np.flatnonzero(splits == at) for at, name in enumerate(ORDER)}
    places = {name: indices for name, indices in places.items() if len(indices)}
    if 'train' not in places:
      raise ValueError(f'{self.where} has no rows of train')
    if self.absent == len(splits):
      such = shown(os.path.join(os.fsencode(self.root), bytes(self.paths[: self.lengths[0]])))
      raise ValueError(f'{self.where}: not one of its {len(splits):,} images is there: {such}')
    codes, rows = np.asarray(self.codes, np.int64), np.repeat(np.arange(len(splits)), counts)
    names, trained = list(self.known), set(codes[splits[rows] == 0].tolist())
    classes, values, wrong = meaning(names, trained, classes)
    bad = np.unique(rows[np.isin(codes, list(wrong))])
    for row in bad[:NAMED].tolist():
      first = next(code for code in codes[rows == row].tolist() if code in wrong)
      self.fault(self.numbers[row], wrong[first])
    self.bad = len(bad)
    self.check()
    check_count(self.where, classes)
    labels = filled_up(np.asarray(values, np.int32)[codes], counts)  # (N, L)
    labels = labels if self.several else labels[:, 0]
    return parted(self.source(images, labels, classes), places, labels)

  def source(self, images: Any, labels: np.ndarray, classes: tuple[str, ...]) -> Source:
    """All rows."""
    if images is not None:
      return Source(Cells(images, labels), classes, f'{self.where}, row {{}}'.format)
    offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
    paths = np.frombuffer(self.paths, np.uint8)
    files = Files(os.fsencode(self.root), paths, offsets, labels)
    return Source(files, classes, files.describe)


def filled_up(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Labels of all rows, `counts` of them in each, as (N, L) int32 filled up with -1."""
  rows = np.repeat(np.arange(len(counts)), counts)
  filled = np.full((len(counts), max(1, counts.max(initial=0))), -1, np.int32)
  filled[rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]] = labels
  return filled


def meaning(
  names: Sequence[str], trained: set[int], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[int], dict[int, str]]:
  """What the labels of a table mean.

  Args:
    names: the labels, each at its code.
    trained: codes of those in 'train'.
    classes: what they are numbers of, if that is known.

  Returns:
    The classes; for each code the number of its class; {code: what is wrong with it}.
  """
  if not all(map(NUMBER.fullmatch, names)):
    found = tuple(sorted(names[code] for code in trained))
    place = {name: label for label, name in enumerate(found)}
    wrong = {
      code: f'train lacks class {shown(name)!r}'
      for code, name in enumerate(names)
      if name not in place
    }
    return found, [place.get(name, -1) for name in names], wrong
  values = list(map(int, names))
  known = {values[code] for code in trained}
  count = len(classes) if classes else min(max(known, default=-1) + 1, MAX_CLASSES)
  wrong = {}
  if not classes and (gaps := gaps_of(known, count)):
    wrong[values.index(max(known))] = gaps
  for code, value in enumerate(values):
    if value < 0:
      wrong[code] = f'label {value} is negative'
    elif value >= count and (classes or value >= MAX_CLASSES):
      wrong[code] = f'label {value} is out of range of {count:,} classes'
    elif not classes and value not in known:
      wrong[code] = f'train lacks label {value}'
  return classes or tuple(map(str, range(count))), values, wrong


def gaps_of(labels: Iterable[int], count: int) -> str | None:
  """What is wrong with numbers that leave most of `count` classes empty."""
  labels = set(labels)
  if count <= MAX_GAPS * len(labels):
    return None
  return (
    f'label {max(labels)} stands for {count:,} classes, of which {len(labels):,} have images: '
    'number them without such gaps, or name them'
  )


def check_file(path: str) -> None:
  """Raises FileNotFoundError or ValueError for what is no file, or may not be read."""
  if not os.path.exists(path):
    raise FileNotFoundError(f'{shown(path)}: no such file')
  if not os.path.isfile(path):
    raise ValueError(f'{shown(path)} is not a file')
  try:
    with open(path, 'rb'):
      pass
  except OSError as error:
    raise ValueError(f'{shown(path)} cannot be read: {error.strerror}') from None


def column_of(names: Sequence[str], wanted: Sequence[str]) -> int | None:
  """Where the first of the wanted names is, in any case."""
  folded = [name.strip().lower() for name in names]
  return next((folded.index(name) for name in wanted if name in folded), None)


def columns(path: str, names: Sequence[str]) -> tuple[int, int, int | None]:
  """Where images, labels and splits are.

  Raises:
    ValueError: if there are no images or no labels.
  """
  image, label = column_of(names, PATHS), column_of(names, LABELS)
  for found, wanted in ((image, PATHS), (label, LABELS)):
    if found is None:
      raise ValueError(
        f'{shown(path)} has no column {wanted[0]} (or {", ".join(wanted[1:])}); it has '
        f'{some([repr(shown(name)) for name in names]) or "none"}'
      )
  assert image is not None and label is not None
  return image, label, column_of(names, ('split',))


def csv_table(path: str) -> Splits:
  """Of a CSV file with a header: path, label and, if there is more than train, split.

  Labels are names, or numbers from 0; those of an image with several are joined by '|'.
  """
  check_file(path)
  table = Table(path, 'line')
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      add_rows(table, csv.reader(file, strict=True))
  except UnicodeDecodeError:
    raise ValueError(f'{table.where} is not UTF-8 text') from None
  except (csv.Error, OSError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise ValueError(f'{table.where} cannot be read: {reason}') from None
  return table.opened()


def add_rows(table: Table, reader: Any) -> None:
  """Adds the rows of a CSV file, header first."""
  header: list[str] = next(filter(any, reader), [])
  image, label, split = columns(table.file, header)
  for row in reader:
    if not any(row):
      continue
    if len(row) != len(header):
      table.fault(reader.line_num, f'{len(row)} fields instead of {len(header)}')
      continue
    labels = row[label].split('|')
    table.several |= len(labels) > 1
    in_split = 'train' if split is None else row[split]
    table.add(reader.line_num, row[image].strip(), [name.strip() for name in labels], in_split)


# Parquet


@dataclasses.dataclass(frozen=True)
class Cells(Sequence[Record]):
  """Labelled images in a column of a table, which is in memory.

  Fields:
    column: of bytes, a pyarrow.ChunkedArray.
    labels: (N,) int32, or (N, L) filled up with -1.
  """

  column: Any
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: Any) -> Any:
    return {'image': self.column[int(index)].as_py(), 'label': self.labels[index]}


def parquet_table(path: str) -> Splits:
  """Of a Parquet file with the columns of a CSV file, or with the images themselves as bytes.

  Images may also be as in Hugging Face's data sets: a struct of 'bytes' and 'path'; the names of
  their classes are read too. Several labels are a list, or as in CSV.
  """
  check_file(path)
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError:
    raise ValueError(f'{shown(path)}: to read Parquet files, pip install pyarrow') from None
  table = Table(path, 'row')
  try:
    with parquet.ParquetFile(path) as file:
      images, classes = add_cells(table, file)
  except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
    reason = ' '.join(str(error).split())  # a KeyError: two columns of a name
    raise ValueError(f'{table.where} cannot be read: {reason}') from None
  return table.opened(images=images, classes=classes)


def add_cells(table: Table, file: Any) -> tuple[Any, tuple[str, ...] | None]:
  """Adds the rows of a Parquet file; gives its images and classes, if it holds them."""
  schema = file.schema_arrow
  image, label, split = columns(table.file, schema.names)
  chosen = [schema.names[at] for at in (image, label, split) if at is not None]
  read = file.read(columns=chosen)
  found = [read.column(name) for name in chosen]
  check_labels(table, found[1].type)
  images, paths = image_column(table, found[0])
  labels = found[1].to_pylist()
  table.several = any(isinstance(value, list) or '|' in str(value) for value in labels)
  in_split = ['train'] * len(labels) if split is None else found[2].to_pylist()
  there = [True] * len(labels) if images is None else images.is_valid().to_pylist()
  for row, (value, at) in enumerate(zip(labels, in_split)):
    if there[row]:
      table.add(row, None if paths is None else paths[row] or '', as_names(value), str(at))
    else:
      table.fault(row, 'no image')
  return images, class_names(schema, chosen[1])


def image_column(table: Table, column: Any) -> tuple[Any, list[str] | None]:
  """The images of a column as bytes, or else their paths."""
  import pyarrow as pa
  from pyarrow import compute

  kinds = pa.types
  if kinds.is_struct(column.type):
    fields = {field.name for field in column.type}
    if 'bytes' in fields:
      data = compute.struct_field(column, 'bytes')
      if 'path' not in fields or data.null_count < len(data):
        column = data
    if 'path' in fields and kinds.is_struct(column.type):
      column = compute.struct_field(column, 'path')
  if kinds.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  if kinds.is_binary(column.type) or kinds.is_large_binary(column.type):
    return column, None
  if kinds.is_string(column.type) or kinds.is_large_string(column.type):
    return None, column.to_pylist()
  raise ValueError(f'{table.where}: images are {column.type}; paths or bytes are wanted')


def check_labels(table: Table, kind: Any) -> None:
  """Raises ValueError if a column of a type cannot be labels."""
  from pyarrow import types

  one = kind
  if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
    one = kind.value_type
  if types.is_dictionary(one):
    one = one.value_type
  good = (types.is_integer, types.is_boolean, types.is_string, types.is_large_string)
  if not any(check(one) for check in good):
    raise ValueError(f'{table.where}: labels are {kind}; names or integers are wanted')


def as_names(value: Any) -> list[str]:
  """A label, or a list of them, as in a CSV file."""
  if value is None:
    return ['']
  if isinstance(value, list):
    return [name for one in value for name in as_names(one)]
  if isinstance(value, str):
    return [name.strip() for name in value.split('|')]
  return [str(int(value) if isinstance(value, bool) else value)]


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
  """Those that Hugging Face's data sets write about a column into a file, if they did."""
  try:
    feature = json.loads((schema.metadata or {})[b'huggingface'])['info']['features'][column]
    names = feature.get('feature', feature)['names']
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None
  except (ValueError, KeyError, TypeError, AttributeError):
    return None
