"""Where images come from: a source is a sequence of images and labels, read by index.

A data set is named in one string: 'digits', 'arrays:FILE.npz', 'folder:PATH', 'images:PATH',
'csv:FILE', 'parquet:FILE', 'tfds:NAME', 'hf:NAME', or a preset of `vit_jax.sources.presets`.
"""

import bisect
import dataclasses
import difflib
import functools
import importlib
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vit_jax import files, lookup
from vit_jax.sources.classes import alike_note
from vit_jax.text import close, error_line, first_few, nearest, printable, quantity

OWN_PHOTOS = ('folder', 'images', 'csv', 'parquet')  # data that no published number comes from

Record = dict[str, Any]
Span = tuple[str, int, int]


class Records(Protocol):
  """Records by index: a list, or what reads one when it is asked for."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class PassedOver:
  """What a data set holds and no split of it has.

  Fields:
    reason: why it is not read.
    kind: the suffix of files, in lower case, or the name of a column.
    count: how many of that kind are passed over for that reason.
  """

  reason: str
  kind: str
  count: int = 1


@dataclasses.dataclass(frozen=True)
class Source:
  """One split of a data set, read by index.

  Fields:
    records: any sequence of {'image': bytes of a file or uint8 (H, W, C), 'label': int32}. In a
      multi-label data set 'label' is a vector, padded with -1. Without classes there is none.
    classes: the name of each label; () where nothing is labelled.
    describe: (index) -> what a message calls a record, a path where it has one.
    spans: (split, begin, end) of the data set's own splits that the records are, in order; ()
      where that is unknown.
    passed_over: what the whole data set holds and is not read.
    notes: lines on how the data set was read, which its user ought to know.
    empty_classes: those of the classes that the data set names and has no image of to train on.
  """

  records: Records
  classes: tuple[str, ...]
  describe: Callable[[int], str] = 'image {}'.format
  spans: tuple[Span, ...] = ()
  passed_over: tuple[PassedOver, ...] = ()
  notes: tuple[str, ...] = ()
  empty_classes: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Record:
    return self.records[index]

  def subset(self, indices: Sequence[int] | np.ndarray) -> 'Source':
    """The records at some indices, as a source."""
    spans = cut_spans(self.spans, indices) if isinstance(indices, range) else ()
    return dataclasses.replace(
      self,
      records=Subset(self.records, indices),
      describe=lambda index: self.describe(int(indices[index])),
      spans=spans,
    )


@dataclasses.dataclass(frozen=True)
class Subset:
  """Some records of a sequence, in any order."""

  records: Records
  indices: Sequence[int] | np.ndarray

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Record:
    return self.records[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class Concatenated:
  """Records of several sources, one after another."""

  parts: Sequence[Source]
  ends: Sequence[int]  # of each part, the index after its last record

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, index: int) -> Record:
    source, offset = self.locate(index)
    return source[offset]

  def describe(self, index: int) -> str:
    source, offset = self.locate(index)
    return source.describe(offset)

  def locate(self, index: int) -> tuple[Source, int]:
    number = bisect.bisect_right(self.ends, index)
    return self.parts[number], index - self.ends[number] + len(self.parts[number])


COLUMN_KINDS = ('csv', 'parquet', 'tfds', 'hf')  # whose columns can be named
MAX_PASSED_OVER = 10  # reasons that a line names, and kinds of what is not read for each
Splits = Mapping[str, Callable[[], Source]]  # the splits of a data set, opened when asked for
KINDS = {  # the module of vit_jax.sources that opens a kind: its `splits(kind, name) -> Splits`
  'digits': 'digits',
  'arrays': 'arrays',
  'folder': 'folder',
  'images': 'images',
  'csv': 'table',
  'parquet': 'table',
  'tfds': 'tfds',
  'hf': 'hf',
}


def open_source(name: str, split: str) -> Source:
  """A split of a data set.

  Args:
    name: of the data set, see above.
    split: in TFDS's split language: 'train', 'train[:98%]', 'train[100:200]', 'train+validation',
      and 'all' for all of them.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: for an unknown data set or split, or one without images.
  """
  return open_splits(name, {'': split})['']


def open_splits(name: str, texts: Mapping[str, str]) -> dict[str, Source]:
  """Several splits of a data set, each as `open_source` gives it, by the keys of `texts`."""
  splits = splits_of(name)
  sources = {use: select(name, splits, text) for use, text in texts.items()}
  for use, text in texts.items():
    if not len(sources[use]):
      raise ValueError(explained(f'{name} has no images in split {text!r}', sources[use]))
  return sources


def antialiases(name: str, choice: bool | None) -> bool:
  """Whether a resize that names no method antialiases images of a data set.

  As chosen; where nothing is, people's own photos are.
  """
  return name.partition(':')[0] in OWN_PHOTOS if choice is None else choice


def with_columns(name: str, columns: str) -> str:
  """A data set whose columns are named: 'csv:a.csv' and 'image=photo,label=kind'.

  What comes out is 'csv:a.csv?image=photo&label=kind', which any command takes for a data set.
  """
  if not columns:
    return name
  if name.partition(':')[0] not in COLUMN_KINDS:
    raise ValueError(f'data.columns is {columns!r}, but {name} has no columns to be named')
  joint = '&' if '?' in name else '?'
  return name + joint + '&'.join(column.strip() for column in columns.split(','))


def split_columns(path: str, uses: Sequence[str]) -> tuple[str, dict[str, str]]:
  """'a.csv?image=photo&label=kind' -> ('a.csv', {'image': 'photo', 'label': 'kind'}).

  Raises:
    ValueError: for a use that is none of `uses`, and one without a column.
  """
  if '?' not in path or os.path.exists(os.path.expanduser(path)):
    return path, {}
  path, _, text = path.partition('?')
  columns = {}
  for option in text.split('&'):
    use, _, column = option.partition('=')
    if use.strip() not in uses or not column.strip():
      wanted = ', '.join(f'{use}=COLUMN' for use in uses)
      raise ValueError(f'{path}: columns are named by {wanted}; got {option!r}')
    columns[use.strip()] = column.strip()
  return path, columns


def splits_of(name: str) -> Splits:
  """The splits of a data set by their names, not opened yet; errors as of `open_source`."""
  from vit_jax.sources import presets

  if not name:
    raise ValueError('data.source is empty, must name a data set, such as folder:photos')
  if preset := presets.find(name):
    whole = splits_of(preset.source)
    return {
      split: functools.partial(select, preset.source, whole, text)
      for split, text in preset.splits.items()
    }
  kind, _, path = name.partition(':')
  if kind not in KINDS and lookup.is_path(name):
    return imported_splits(name)
  if kind not in KINDS or (bool(path) is (kind == 'digits')):
    raise ValueError(f'unknown dataset {name!r}{dataset_hint(name)}')
  return importlib.import_module(f'vit_jax.sources.{KINDS[kind]}').splits(kind, path)


def dataset_hint(name: str) -> str:
  """What may be meant by a name that is no data set: a folder, or a preset, or else all kinds."""
  from vit_jax.sources import presets

  kinds = [kind if kind == 'digits' else f'{kind}:...' for kind in KINDS]
  names = [*kinds, *presets.PRESETS]
  folder = name if os.path.isdir(name) else files.nearest_path(name)
  if os.path.isdir(folder) and folder in difflib.get_close_matches(name, [*names, folder], n=1):
    return f'; did you mean folder:{printable(folder)}?'
  if match := close(name, names):
    return match
  return f'; known: {", ".join(kinds)} and the sets of `vit data list`'


def imported_splits(name: str) -> Splits:
  """The splits that 'package.module:name' gives, called without arguments."""
  try:
    splits = lookup.imported(name, 'data set', marked=True)()
  except (ValueError, OSError):
    raise
  except (Exception, SystemExit) as error:  # whatever it does
    raise ValueError(f'data set {name!r}: {error_line(error)}') from error
  is_splits = isinstance(splits, Mapping) and all(
    isinstance(split, str) and callable(open_split) for split, open_split in splits.items()
  )
  if not is_splits:
    raise ValueError(f'data set {name!r} gives no {{split: function that opens a Source}}')
  return splits


ALL = 'all'  # every split of a data set, as TFDS has it
TERM = re.compile(r'\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*')


def select(name: str, splits: Splits, text: str) -> Source:
  """What a text in TFDS's split language selects; percents are rounded to images as TFDS does."""
  parts = []
  for term in text.split('+'):
    match = TERM.fullmatch(term)
    if not match:
      raise ValueError(f'{term.strip()!r} is no split such as train, train[:98%] or train[10:20]')
    whole = open_whole(name, splits, match[1])
    begin, end = (boundary(side, len(whole)) for side in (match[2] or '0', match[3] or '100%'))
    parts.append(whole if (begin, end) == (0, len(whole)) else whole.subset(range(begin, end)))
  return parts[0] if len(parts) == 1 else concatenate(parts)


def open_whole(name: str, splits: Splits, split: str) -> Source:
  """A split by its name, or by 'all' every split, one after another."""
  if split == ALL and ALL not in splits:
    parts = {each: open_whole(name, splits, each) for each in splits}
    for first, second in itertools.combinations(parts, 2):
      if common := overlap(parts[first], parts[second]):
        images = quantity(common, 'image')
        raise ValueError(f'{name}: splits {first} and {second} have {images} in common')
    return concatenate([*parts.values()])
  if split not in splits:
    raise ValueError(f'{name} has no split {split!r}{nearest(split, list(splits))}')
  try:
    whole = splits[split]()
  except (Exception, SystemExit) as error:
    if isinstance(error, ValueError | OSError) or not lookup.is_path(name):
      raise
    raise ValueError(f'{name}: split {split}: {error_line(error)}') from error
  if not isinstance(whole, Source):
    raise ValueError(f'{name}: split {split} is {type(whole).__name__}, must be a Source')
  return whole if whole.spans else dataclasses.replace(whole, spans=((split, 0, len(whole)),))


def boundary(text: str, count: int) -> int:
  """'98%' or '-20' as an index into `count` images."""
  number = int(text.removesuffix('%'))
  index = round(number * count / 100) if text.endswith('%') else number
  return min(max(index + count if number < 0 else index, 0), count)


def concatenate(parts: Sequence[Source]) -> Source:
  """Sources of one data set, one after another."""
  records = Concatenated(parts, tuple(itertools.accumulate(map(len, parts))))
  spans = tuple(span for part in parts for span in part.spans)
  return dataclasses.replace(parts[0], records=records, describe=records.describe, spans=spans)


def cut_spans(spans: Sequence[Span], indices: range) -> tuple[Span, ...]:
  """The spans of consecutive records, by their indices, of records that have `spans`."""
  result, offset = [], 0
  for split, begin, end in spans:
    first, last = max(indices.start, offset), min(indices.stop, offset + end - begin)
    if first < last:
      result.append((split, begin + first - offset, begin + last - offset))
    offset += end - begin
  return tuple(result)


def check_file(path: str) -> None:
  """Raises FileNotFoundError or ValueError for what is no file, or may not be read."""
  if not os.path.exists(path):
    raise FileNotFoundError(f'{printable(path)}: no such file')
  if not os.path.isfile(path):
    raise ValueError(f'{printable(path)} is not a file')
  try:
    with open(path, 'rb'):
      pass
  except OSError as error:
    raise ValueError(f'{printable(path)} cannot be read: {error.strerror}') from None


def lines_about(source: Source) -> list[str]:
  """What a user ought to know of how a data set was read, and of what was not."""
  return [*notes_about(source), *filter(None, [describe_passed_over(source.passed_over)])]


def notes_about(source: Source) -> list[str]:
  """What a user ought to know of how a data set was read."""
  return [*source.notes, *filter(None, [alike_note(source.classes)])]


def explained(message: str, source: Source) -> str:
  """A message on what lacks, and what is not read, where anything is."""
  return '; '.join(filter(None, [message, describe_passed_over(source.passed_over)]))


def describe_passed_over(passed_over: Sequence[PassedOver]) -> str:
  """A line of what is not read, by reason, the most first; '' where all is."""
  kinds: dict[str, list[str]] = {}
  for item in sorted(passed_over, key=lambda item: (-item.count, item.reason, item.kind)):
    kind = f'{item.count:,} {printable(item.kind) or "without suffix"}'
    kinds.setdefault(printable(item.reason), []).append(kind)
  described = [f'{first_few(row, MAX_PASSED_OVER)} ({reason})' for reason, row in kinds.items()]
  return f'passed over: {first_few(described, MAX_PASSED_OVER)}' if described else ''


def labels_of(source: Source) -> np.ndarray | None:
  """The labels of all records, (N,) or (N, L), if they are in memory: no image is read for them."""
  if isinstance(source.records, Subset):
    labels = labels_of(dataclasses.replace(source, records=source.records.records))
    return None if labels is None else labels[np.asarray(source.records.indices)]
  if isinstance(source.records, Concatenated):
    parts = [labels_of(part) for part in source.records.parts]
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if len(arrays) == len(parts) else None
  labels = getattr(source.records, 'labels', None)
  return labels if isinstance(labels, np.ndarray) else None


def path_of(records: Records, index: int) -> bytes | str | None:
  """The file that a record is; None where it is none of its own."""
  if isinstance(records, Subset):
    return path_of(records.records, int(records.indices[index]))
  if isinstance(records, Concatenated):
    source, offset = records.locate(index)
    return path_of(source.records, offset)
  path = getattr(records, 'path', None)
  return path(index) if path else None


def overlap(a: Source, b: Source) -> int:
  """How many images of `a` are in `b` too, by their spans in the splits of one data set."""
  return sum(
    max(min(end, last) - max(begin, first), 0)
    for split, begin, end in a.spans
    for other, first, last in b.spans
    if split == other
  )


SPLIT_NAMES = {  # that folders, tables and archives may give a split
  'train': 'train',
  'training': 'train',
  'train_set': 'train',
  'training_set': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'val_set': 'validation',
  'validation_set': 'validation',
  'test': 'test',
  'testing': 'test',
  'test_set': 'test',
}
SPLITS = ('train', 'validation', 'test')  # in this order
HELD_OUT = 0.1  # of the training images, where there are none for validation


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Opens what is held out of 'train' for validation, where a data set has none of its own."""

  source: Source
  indices: np.ndarray

  def __call__(self) -> Source:
    return self.source.subset(self.indices)


def with_validation(
  source: Source, indices: Mapping[str, range | np.ndarray], labels: np.ndarray
) -> Splits:
  """Splits of a source by their indices; without a 'validation', HELD_OUT of each class of 'train'.

  `labels` are of all of the source; in a multi-label data set the first of an image counts.
  """
  splits: dict[str, Callable[[], Source]]
  splits = {split: functools.partial(source.subset, indices[split]) for split in indices}
  if 'train' in indices and 'validation' not in indices:
    train = np.asarray(indices['train'], np.int64)  # which an empty range would not give
    first = labels[train] if labels.ndim == 1 else labels[train, 0]
    others, held_out = (train[side] for side in hold_out(first, HELD_OUT))
    splits['train'] = functools.partial(source.subset, others)
    splits['validation'] = HeldOut(source, held_out)
  return {split: splits[split] for split in SPLITS if split in splits}


def hold_out(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the labels without and with a seeded fraction of each class, in order.

  For a data set without a validation split. A class of one image keeps it for training. The seed is
  no run's, so that validation images stay validation images.
  """
  rng = np.random.Generator(np.random.Philox(20))
  is_held_out = np.zeros(len(labels), bool)
  order = rng.permutation(len(labels))
  order = order[np.argsort(labels[order], kind='stable')]  # by class, shuffled in each
  for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
    count = min(max(round(fraction * len(group)), 1), len(group) - 1)
    is_held_out[group[:count]] = True
  return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
