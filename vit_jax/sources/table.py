"""Tables of labelled images: 'csv:FILE' and 'parquet:FILE', with paths or the images themselves.

N images, L labels of an image.
"""

import array
import collections
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_jax import sources
from vit_jax.images import decoding
from vit_jax.sources import PassedOver, Record, Source, Splits, delimited, encodings
from vit_jax.sources import classes as labelling
from vit_jax.sources.classes import folded
from vit_jax.sources.folder import Files, is_inside
from vit_jax.text import first_few, printable, quantity

if TYPE_CHECKING:
  import pyarrow as pa
  from pyarrow.parquet import ParquetFile

COLUMNS = {  # by use, the names of a column, in any case, spaces as underscores
  'image': (
    'path', 'file', 'filename', 'image', 'img', 'file_name', 'filepath', 'file_path', 'image_path',
    'img_path', 'image_file', 'image_name', 'img_name', 'image_id', 'images', 'photo', 'picture',
  ),
  'label': (
    'label', 'class', 'target', 'labels', 'category', 'class_name', 'classname', 'label_name',
    'category_name', 'class_label', 'classes', 'tags', 'species', 'class_id', 'label_id',
    'category_id', 'y',
  ),
  'split': ('split', 'subset', 'partition'),
}  # fmt: skip
NAMED = 5  # bad rows that an error names; it counts the others
UNKNOWN = '?'  # the label of an image whose classes are not known, in any table
# Of a column that is a class, in lower case
BITS = {'0': False, '0.0': False, 'false': False, '1': True, '1.0': True, 'true': True}
UNKNOWN_BITS = ('-1', '-1.0')  # where a row has nothing else, its classes are not known
LIST = re.compile(r"""\[\s*((\d+|'[^']*'|"[^"]*")\s*(,\s*|(?=\])))*\]""")  # as Python writes it
OPTIONS = (*COLUMNS, 'missing')  # 'missing': the one text that stands for no label


def splits(kind: str, path: str) -> Splits:
  """The splits of a CSV or a Parquet file, of which '?image=COLUMN&label=COLUMN' names columns.

  '?missing=TEXT' says which labels are missing, by default those of `encodings.is_missing`.
  """
  path, options = sources.split_columns(path, OPTIONS)
  missing = options.pop('missing', None)
  read = {'csv': csv_splits, 'parquet': parquet_splits}[kind]
  return read(os.path.expanduser(path), options, missing)


class Table:
  """Rows of a table on their way to a source, and what is wrong with them.

  Relative paths in it are relative to its folder, and must not lead out of that. Its rows are
  counted in the unit 'line' or 'row'.
  """

  def __init__(self, file: str, unit: str, missing: str | None = None):
    self.file, self.where, self.unit, self.missing_text = file, printable(file), unit, missing
    self.root = os.path.realpath(os.path.dirname(os.path.abspath(file)))
    self.paths, self.lengths = bytearray(), array.array('q')
    self.rows, self.splits = array.array('q'), array.array('b')  # its number, that of its split
    self.names: dict[str, int] = {}  # {label: its code}
    self.codes, self.counts = array.array('q'), array.array('q')  # of all labels; labels of a row
    self.unlabelled = array.array('q')  # indices of rows of no class, or of one that is missing
    self.unknown = array.array('q')  # the indices of rows whose classes are not known
    self.missing_labels: collections.Counter[str] = collections.Counter()  # as they are written
    self.multi_label = False
    self.errors: list[tuple[int, str]] = []  # the first NAMED rejected rows, and why
    self.rejected, self.missing = 0, 0  # how many rows; how many images are not there
    self.unread: list[str] = []  # names of columns
    root = os.fsencode(self.root)
    self.is_inside = functools.cache(
      lambda path: is_inside(root, os.fsencode(os.path.realpath(path)))
    )

  def add(
    self, row: int, path: str | None, labels: Sequence[str], split: str | None = 'train'
  ) -> None:
    """Takes a row, or rejects it; one that holds its image has no path.

    Labels are names. [] is of no class, and [UNKNOWN] says that the classes are not known.
    """
    name = sources.SPLIT_NAMES.get((split or '').strip().lower())
    path = path and self.with_suffix(path)
    missing = [label for label in labels if self.is_missing(label)]
    if path is not None and (error := self.path_error(path)):
      self.reject(row, error)
    elif missing and len(labels) > 1:
      self.reject(row, f'{printable(missing[0])!r} beside other labels')
    elif name is None:
      self.reject(row, f'unknown split {printable(split or "")!r}')
    else:
      encoded = os.fsencode(path or '')
      self.paths += encoded
      self.lengths.append(len(encoded))
      if not labels:
        self.unlabelled.append(len(self.rows))
      if missing:
        self.unknown.append(len(self.rows))
        self.missing_labels.update(missing)
        labels = []
      labels = list(dict.fromkeys(labels))
      self.codes.extend(self.names.setdefault(label, len(self.names)) for label in labels)
      self.counts.append(len(labels))
      self.rows.append(row)
      self.splits.append(sources.SPLITS.index(name))

  def is_missing(self, label: str) -> bool:
    """Whether a label says that the classes of an image are not known."""
    if self.missing_text is None:
      return label == UNKNOWN or encodings.is_missing(label)
    return label in ('', UNKNOWN, self.missing_text)

  def missing_note(self) -> tuple[str, ...]:
    """A line on the labels that are missing, but for UNKNOWN, which says so."""
    counts = self.missing_labels + collections.Counter(
      {'': len(self.unlabelled) * (not self.multi_label)}
    )
    texts = [f'{count:,} {text!r}' for text, count in counts.most_common() if text != UNKNOWN]
    return (
      f'labels read as missing, so that their images are of unknown class: {first_few(texts)}; '
      'data.columns=missing=TEXT names another',
    ) * bool(texts)

  def with_suffix(self, path: str) -> str:
    """The path of an image that may be called without its suffix, as by a column of identifiers."""
    if os.path.splitext(path)[1].lower() in decoding.formats():
      return path
    suffixes = [form for suffix in decoding.formats() for form in (suffix, suffix.upper())]
    full = os.path.join(self.root, path)
    return path + next((suffix for suffix in ['', *suffixes] if os.path.exists(full + suffix)), '')

  def reject(self, row: int, error: str) -> None:
    """Notes what is wrong with a row."""
    self.rejected += 1
    if len(self.errors) < NAMED:
      self.errors.append((row, error))

  def path_error(self, path: str) -> str | None:
    """What is wrong with a path. That nothing is there may be true of some, as of a bad image."""
    if not path:
      return 'no path'
    full, name = os.path.join(self.root, path), printable(path)
    outside = f'{name} leads out of {printable(self.root)}'
    anywhere = os.path.isabs(path)  # it may lie
    try:
      if not anywhere and not self.is_inside(os.path.dirname(full)):
        return outside
      mode = os.lstat(full).st_mode
      if stat.S_ISLNK(mode):
        if not anywhere and not self.is_inside(full):
          return outside
        mode = os.stat(full).st_mode
    except OSError:
      self.missing += 1
      return None
    except ValueError:  # a zero byte
      return f'{name} is no path'
    return None if stat.S_ISREG(mode) else f'{name} is not a file'

  def check(self) -> None:
    """Raises ValueError if a row is rejected."""
    if self.rejected:
      first = sorted(self.errors)[:NAMED]
      errors = '; '.join(f'{self.unit} {row}: {error}' for row, error in first)
      errors += f'; and {self.rejected - NAMED:,} more' * (self.rejected > NAMED)
      rows = quantity(self.rejected, 'bad row')
      raise ValueError(f'{self.where}: {rows}: {errors}')

  def open_splits(
    self, *, images: 'pa.ChunkedArray | None' = None, classes: tuple[str, ...] | None = None
  ) -> Splits:
    """The splits of the table, of `images` of all rows or else of the files at their paths.

    `classes` are what labels are numbers of; by default the labels of 'train', or without it of all
    splits, sorted, if they are names, else 0, or 1, to the largest of them.
    """
    self.check()
    splits, counts = np.asarray(self.splits), np.asarray(self.counts)  # (N,)
    indices = {split: np.flatnonzero(splits == n) for n, split in enumerate(sources.SPLITS)}
    indices = {split: array for split, array in indices.items() if len(array)}
    if not indices:
      raise ValueError(f'{self.where} has no rows of train, validation or test')
    if self.missing == len(splits):
      first = printable(os.path.join(os.fsencode(self.root), bytes(self.paths[: self.lengths[0]])))
      raise ValueError(f'{self.where}: not one of its {len(splits):,} images is there: {first}')
    codes, rows = np.asarray(self.codes, np.int64), np.repeat(np.arange(len(splits)), counts)
    is_naming = splits[rows] == sources.SPLITS.index('train')
    train = set(codes[is_naming | ('train' not in indices)].tolist())
    numbers = encodings.class_numbers(self.where, list(self.names))
    if numbers is None:
      meaning = named_labels(list(self.names), train)
    else:
      meaning = numbered_labels(numbers, train, classes)
    self.reject_labels(codes, rows, meaning.errors)
    labels = labelling.pad(np.asarray(meaning.labels, np.int32)[codes], counts)  # (N, L)
    labels[np.asarray(self.unknown, np.int64)] = labelling.UNKNOWN if self.multi_label else -1
    labels = labels if self.multi_label else labels[:, 0]
    source = self.source(images, labels, meaning)
    return sources.with_validation(source, indices, labels)

  def reject_labels(self, codes: np.ndarray, rows: np.ndarray, errors: dict[int, str]) -> None:
    """Raises ValueError for rows with labels that are wrong, by `errors` of their codes."""
    bad = np.unique(rows[np.isin(codes, list(errors))])
    for row in bad[:NAMED].tolist():
      first = next(code for code in codes[rows == row].tolist() if code in errors)
      self.reject(self.rows[row], errors[first])
    self.rejected = len(bad)
    self.check()

  def source(
    self, images: 'pa.ChunkedArray | None', labels: np.ndarray, meaning: 'Meaning'
  ) -> Source:
    """All rows."""
    classes = meaning.classes
    notes: dict[str, Any] = {
      'passed_over': tuple(PassedOver('unknown column', name) for name in self.unread),
      'notes': (
        *labelling.first_note(classes, meaning.first),
        *(encodings.float_note(self.names) if meaning.is_numbers else ()),
        *(() if meaning.is_numbers else encodings.joined_note(list(self.names))),
        *self.missing_note(),
      ),
    }
    if images is not None:
      return Source(Cells(images, labels), classes, f'{self.where}, row {{}}'.format, **notes)
    offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
    paths = np.frombuffer(self.paths, np.uint8)
    files = Files(os.fsencode(self.root), paths, offsets, labels)
    return Source(files, classes, files.describe, **notes)


class Meaning(NamedTuple):
  """The meaning of the codes of a table's labels.

  Fields:
    classes: their names.
    labels: the label of each code.
    errors: {code: what is wrong with it}.
    first: the number in the table of the first class, where it has numbers.
    is_numbers: whether the table has the numbers of classes and not their names.
  """

  classes: tuple[str, ...]
  labels: list[int]
  errors: dict[int, str]
  first: int = 0
  is_numbers: bool = False


def named_labels(names: Sequence[str], train: set[int]) -> Meaning:
  """What labels mean that are names, each at its code; `train` are the codes in that split."""
  names = encodings.merge_truths(names)
  classes = tuple(sorted({names[code] for code in train}))
  alike = collections.Counter(map(folded, classes))
  exact = {name: label for label, name in enumerate(classes)}
  near = {folded(name): label for name, label in exact.items() if alike[folded(name)] == 1}
  labels = [exact.get(name, near.get(folded(name), -1)) for name in names]  # '1' may be '01'
  errors = {
    code: f'train lacks class {printable(name)!r}'
    for code, name in enumerate(names)
    if labels[code] < 0
  }
  return Meaning(classes, labels, errors)


def numbered_labels(values: list[int], train: set[int], classes: tuple[str, ...] | None) -> Meaning:
  """What labels mean that are numbers, each at its code: of `classes`, where these are known."""
  trained = {values[code] for code in train}
  count = len(classes) if classes else min(max(trained, default=-1) + 1, labelling.MAX_CLASSES)
  first = 0 if classes else labelling.first_number(trained)
  errors = {}
  if not classes and (gaps := labelling.gaps(trained, count)):
    errors[values.index(max(trained))] = gaps
  for code, value in enumerate(values):
    if value < 0:
      errors[code] = f'label {value} is negative'
    elif value >= count and (classes or value >= labelling.MAX_CLASSES):
      errors[code] = f'label {value} is out of range of {count:,} classes'
    elif not classes and value not in trained:
      errors[code] = f'train lacks label {value}'
  classes = classes or labelling.numbered(count - first, first)
  return Meaning(classes, [value - first for value in values], errors, first, True)


def find_class_columns(
  table: Table, names: Sequence[str], named: Mapping[str, str], cells: Sequence[str]
) -> list[int]:
  """The indices of columns that are a class each, by the cells of the first row; [] if none are.

  They are all columns but those of images and splits, hold 0 and 1, and there is none of labels.
  """
  image, label, split = (find_column(table, names, use, named.get(use)) for use in COLUMNS)
  others = [i for i, name in enumerate(names) if i not in (image, split) and name.strip()]
  if label is not None or len(others) < 2 or len(cells) < len(names):
    return []
  bits = [cells[index].strip() for index in others]
  is_bit = [bit.lower() in (*BITS, *UNKNOWN_BITS) or table.is_missing(bit) for bit in bits]
  return others if all(is_bit) else []


def find_columns(
  table: Table, names: Sequence[str], named: Mapping[str, str], *, classes: Sequence[int] = ()
) -> tuple[int, int, int | None]:
  """The indices of the columns of images, labels and splits; the table is told of the others.

  By their names in `named`, by use, or else the first of COLUMNS that is there. Where columns are
  `classes`, the first of them is in the place of that of labels.
  """
  indices = {use: find_column(table, names, use, named.get(use)) for use in COLUMNS}
  image, label, split = (indices[use] for use in ('image', 'label', 'split'))
  label = classes[0] if classes else label
  if image is None or label is None:
    use = 'image' if image is None else 'label'
    first, *others = COLUMNS[use]
    raise ValueError(
      f'{table.where} has no column {first} (or {first_few(others)}); it has {quoted(names)}: '
      f'data.columns names them, as in {use}=COLUMN'
      + ', or all but path and split are classes, of 0 and 1'
      * (use == 'label')
    )
  read = (image, label, split, *classes)
  table.unread = [name for i, name in enumerate(names) if i not in read and name.strip()]
  return image, label, split


def find_column(table: Table, names: Sequence[str], use: str, name: str | None) -> int | None:
  """The index of a column by its name, or else by those of its use; None where there is none."""
  candidates = COLUMNS[use] if name is None else (as_column(name),)
  headers = [as_column(header) for header in names]
  index = next((headers.index(name) for name in candidates if name in headers), None)
  if index is None and name is not None:
    raise ValueError(f'{table.where} has no column {name!r}; it has {quoted(names)}')
  return index


def as_column(name: str) -> str:
  """A column's name without regard to case, and spaces and hyphens as underscores."""
  return re.sub(r'[\s-]+', '_', name.strip().lower())


def quoted(names: Sequence[str]) -> str:
  return first_few([repr(printable(name)) for name in names]) or 'none'


def csv_splits(path: str, columns: Mapping[str, str], missing: str | None) -> Splits:
  """The splits of a CSV file with a header: path, label and, if there is more than train, split.

  Labels are names, or numbers from 0; the labels of a multi-label image are joined by '|', and an
  empty one is of no class. Without a column of labels, every other column is a class, of 0 and 1.
  The label UNKNOWN, one that is missing, or a row of them, says that the classes are not known.
  """
  sources.check_file(path)
  table = Table(path, 'line', missing)
  classes = add_rows(table, delimited.read_rows(path), columns)
  return table.open_splits(classes=classes)


def add_rows(
  table: Table, lines: Iterable[tuple[int, list[str]]], columns: Mapping[str, str]
) -> tuple[str, ...] | None:
  """Adds (line number, row) of a CSV file, header first; gives the classes that columns are.

  `columns` are named by their use.
  """
  lines = iter(lines)
  _, header = next(lines, (0, []))
  first = next(lines, (0, []))
  indices = find_class_columns(table, header, columns, first[1])
  classes = tuple(header[index].strip() for index in indices)
  image, label, split = find_columns(table, header, columns, classes=indices)
  for number, row in itertools.chain([first] * bool(first[1]), lines):
    if len(row) < len(header) or any(row[len(header) :]):  # empty ones may follow
      table.reject(number, f'{len(row)} fields instead of {len(header)}')
      continue
    try:
      bits = [row[index].strip() for index in indices]
      labels = set_bits(table, bits, classes) if classes else split_labels(row[label])
    except ValueError as error:
      table.reject(number, str(error))
      continue
    table.multi_label |= len(labels) > 1 or bool(classes and not labels)
    in_split = 'train' if split is None else row[split]
    table.add(number, row[image].strip(), labels, in_split)
  return classes or None


def set_bits(table: Table, cells: Sequence[str], classes: Sequence[str]) -> list[str]:
  """The labels of an image, as numbers, by its cells in the columns of classes."""
  if all(cell in UNKNOWN_BITS or table.is_missing(cell) for cell in cells):
    return [UNKNOWN]
  for cell, name in zip(cells, classes):
    if cell.lower() not in BITS:
      problem = f'{printable(name)} is {printable(cell)!r}, must be 0 or 1'
      raise ValueError(f'{problem}: all classes of an image are known, or none')
  return [str(label) for label, cell in enumerate(cells) if BITS[cell.lower()]]


def split_labels(cell: str) -> list[str]:
  """The names of an image's labels, by its cell; [] of an empty one.

  Raises:
    ValueError: for the text of a list, as pandas writes a column of them.
  """
  if LIST.fullmatch(cell.strip()):
    raise ValueError(f"{printable(cell.strip())} is the text of a list: join labels by '|'")
  return [name.strip() for name in cell.split('|')] if cell.strip() else []


# Parquet


@dataclasses.dataclass(frozen=True)
class Cells:
  """Labelled images in a column of bytes of a table, which is in memory."""

  column: 'pa.ChunkedArray'
  labels: np.ndarray  # (N,) int32, or (N, L) padded with -1

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    return {'image': self.column[int(index)].as_py(), 'label': self.labels[index]}


def parquet_splits(path: str, columns: Mapping[str, str], missing: str | None) -> Splits:
  """The splits of a Parquet file with the columns of a CSV file, or with images as bytes.

  Images may also be as in Hugging Face's data sets: a struct of 'bytes' and 'path'; the names of
  their classes are read too. The labels of a multi-label image are a list, of them or of 0 and 1
  for each class, or as in CSV; null says that they are not known.
  """
  sources.check_file(path)
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError:
    raise ValueError(f'{printable(path)}: to read Parquet files, pip install pyarrow') from None
  table = Table(path, 'row', missing)
  try:
    with parquet.ParquetFile(path) as file:
      images, classes = add_cells(table, file, columns)
  except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
    reason = ' '.join(str(error).split())  # a KeyError: two columns of a name
    raise ValueError(f'{table.where} cannot be read: {reason}') from None
  return table.open_splits(images=images, classes=classes)


def add_cells(
  table: Table, file: 'ParquetFile', named: Mapping[str, str]
) -> tuple['pa.ChunkedArray | None', tuple[str, ...] | None]:
  """Adds the rows of a Parquet file; gives its images and classes, if it holds them."""
  schema = file.schema_arrow
  hot = class_columns(table, file, named)
  image, label, split = find_columns(table, schema.names, named, classes=hot)
  indices = [image, *(hot or [label]), *([] if split is None else [split])]
  columns = file.read(columns=[schema.names[index] for index in indices])
  images, paths = image_column(table, columns.column(schema.names[image]))
  if hot:
    classes: tuple[str, ...] | None = tuple(schema.names[index].strip() for index in hot)
    labels = labels_of_bits(table, columns, [schema.names[index] for index in hot])
  else:
    classes = class_names(schema, schema.names[label])
    labels, classes = labels_of_cells(table, columns.column(schema.names[label]), classes)
  splits = columns.column(schema.names[split]).to_pylist() if split is not None else None
  for row, names in enumerate(labels):
    if images is not None and not images[row].is_valid:
      table.reject(row, 'no image')
    else:
      path = None if paths is None else paths[row] or ''
      table.add(row, path, names, 'train' if splits is None else str(splits[row]))
  return images, classes


def image_column(
  table: Table, column: 'pa.ChunkedArray'
) -> tuple['pa.ChunkedArray | None', list[str] | None]:
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
  raise ValueError(f'{table.where}: images are {column.type}, must be paths or bytes')


def class_columns(table: Table, file: 'ParquetFile', named: Mapping[str, str]) -> list[int]:
  """As `find_class_columns`, of a Parquet file, whose classes are columns of numbers."""
  from pyarrow import types

  schema = file.schema_arrow
  is_number = (types.is_boolean, types.is_integer, types.is_floating)
  names = [field.name for field in schema if any(is_type(field.type) for is_type in is_number)]
  first = next(file.iter_batches(batch_size=1, columns=names), None)
  cells = dict(zip(names, first.columns)) if first is not None and len(first) else {}
  return find_class_columns(
    table,
    schema.names,
    named,
    [as_cell(cells[name][0].as_py()) if name in cells else 'other' for name in schema.names],
  )


def labels_of_bits(table: Table, columns: 'pa.Table', classes: Sequence[str]) -> list[list[str]]:
  """The labels of each row, as numbers, by its cells in the columns of classes."""
  labels = []
  cells = [map(as_cell, columns.column(name).to_pylist()) for name in classes]
  for row, bits in enumerate(zip(*cells)):
    try:
      labels.append(set_bits(table, bits, classes))
    except ValueError as error:
      raise ValueError(f'{table.where}: row {row}: {error}') from None
  table.multi_label = any(len(names) != 1 for names in labels)
  return labels


def labels_of_cells(
  table: Table, column: 'pa.ChunkedArray', classes: tuple[str, ...] | None
) -> tuple[list[list[str]], tuple[str, ...] | None]:
  """The labels of each row by its cell, as a CSV file has them, and the classes.

  These have numbers for names where cells are lists of a 0 or 1 for each.
  """
  check_labels(table, column.type)
  cells = column.to_pylist()
  lists = [cell for cell in cells if isinstance(cell, list)]
  length = 0
  if not any(isinstance(value, str) for cell in lists for value in cell):
    numbers = ([math.nan if value is None else value for value in cell] for cell in lists)
    length = encodings.one_hot_length(table.where, numbers, count=len(classes or ()))
  if length:
    bits = map(encodings.from_one_hot, cells)
    labels = [[''] if row is None else list(map(str, row)) for row in bits]
    table.multi_label = any(len(names) != 1 for names in labels)
    return labels, classes or labelling.numbered(length)
  try:
    labels = list(map(label_names, cells))
  except ValueError as error:
    raise ValueError(f'{table.where}: {error}') from None
  table.multi_label = bool(lists) or any(len(names) > 1 for names in labels)
  return labels, classes


def check_labels(table: Table, kind: 'pa.DataType') -> None:
  """Raises ValueError if a column of a type cannot be labels."""
  from pyarrow import types

  is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
  element = kind.value_type if is_list else kind
  if types.is_dictionary(element):
    element = element.value_type
  labels = (
    types.is_integer, types.is_boolean, types.is_floating, types.is_null,
    types.is_string, types.is_large_string,
  )  # fmt: skip
  if not any(is_type(element) for is_type in labels):
    raise ValueError(f'{table.where}: labels are {kind}, must be names or integers')


def label_names(value: object) -> list[str]:
  """A label, or a list of them, as a CSV file has them; one that is null is missing."""
  if isinstance(value, list):
    return [name for element in value for name in label_names(element)]
  return split_labels(value) if isinstance(value, str) else [as_cell(value)]


def as_cell(value: object) -> str:
  """A value as the text of a cell of a CSV file, empty where it is null."""
  if value is None:
    return ''
  return str(int(value) if isinstance(value, bool) else value)


def class_names(schema: 'pa.Schema', column: str) -> tuple[str, ...] | None:
  """The names that Hugging Face's data sets write about a column into a file, if they did."""
  try:
    feature = json.loads((schema.metadata or {})[b'huggingface'])['info']['features'][column]
    names = feature.get('feature', feature)['names']
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None
  except (ValueError, KeyError, TypeError, AttributeError):
    return None
