"""Where images come from: a source is a sequence of images and labels, read by index.

A data set is named in one string: 'digits', 'arrays:FILE.npz', 'folder:PATH', 'csv:FILE',
'parquet:FILE', 'tfds:NAME', 'hf:NAME', or a preset of `vit_jax.sources.presets`.
"""

import dataclasses
import functools
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import lookup
from vit_jax.text import error_line, nearest

Record = dict[str, Any]
Span = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Source:
  """One split of a data set, read by index.

  Fields:
    records: any sequence of {'image': bytes of a file or uint8 (H, W, 3), 'label': int32}. Of
      several labels of an image, 'label' is a vector of them, filled up with -1.
    classes: the name of each label.
    describe: (index) -> what a message calls a record, a path where it has one.
    spans: (split, begin, end) of the data set's own splits that the records are, in order; () is
      not known.
  """

  records: Sequence[Record]
  classes: tuple[str, ...]
  describe: Callable[[int], str] = 'image {}'.format
  spans: tuple[Span, ...] = ()

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Record:
    return self.records[index]

  def part(self, indices: Sequence[int]) -> 'Source':
    """The records at some indices, as a source."""
    spans = cut(self.spans, indices) if isinstance(indices, range) else ()
    return Source(
      Part(self.records, indices),
      self.classes,
      lambda index: self.describe(int(indices[index])),
      spans,
    )


@dataclasses.dataclass(frozen=True)
class Part(Sequence[Record]):
  """Some records of a sequence, in an order of their own."""

  records: Sequence[Record]
  indices: Sequence[int]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: Any) -> Any:
    return self.records[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class Joined(Sequence[Record]):
  """Records of several sources, one after another."""

  place: Callable[[int], tuple[Source, int]]
  total: int

  def __len__(self) -> int:
    return self.total

  def __getitem__(self, index: Any) -> Any:
    source, at = self.place(index)
    return source[at]


Splits = Mapping[str, Callable[[], Source]]  # the splits of a data set, opened when asked for
KINDS = {  # the module of vit_jax.sources that opens a kind: its `splits(kind, rest) -> Splits`
  'digits': 'digits',
  'arrays': 'arrays',
  'folder': 'folder',
  'csv': 'table',
  'parquet': 'table',
  'tfds': 'tfds',
  'hf': 'hf',
}


def open_source(name: str, split: str) -> Source:
  """A split of a data set.

  Args:
    name: of the data set, see above.
    split: in TFDS's language: 'train', 'train[:98%]', 'train[100:200]', 'train+validation'.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: for an unknown data set or split, or one without images.
  """
  return open_splits(name, {'': split})['']


def open_splits(name: str, texts: Mapping[str, str]) -> dict[str, Source]:
  """Several splits of a data set, each as of `open_source`, by names of one's own."""
  splits, found = splits_of(name), {}
  for use, text in texts.items():
    found[use] = chosen(name, splits, text)
    if not len(found[use]):
      raise ValueError(f'{name} has no images in split {text!r}')
  return found


def splits_of(name: str) -> Splits:
  """The splits of a data set by their names, not opened yet.

  Raises:
    FileNotFoundError, ValueError: if it is unknown, not there, or no data set.
  """
  from vit_jax.sources import presets

  if not name:
    raise ValueError('data.source is empty, must name a data set, such as folder:photos')
  if preset := presets.find(name):
    whole, own = splits_of(preset.source), preset.splits.items()
    return {part: functools.partial(chosen, preset.source, whole, text) for part, text in own}
  kind, _, rest = name.partition(':')
  if kind not in KINDS and lookup.is_path(name):
    return splits_elsewhere(name)
  if kind not in KINDS or (bool(rest) is (kind == 'digits')):
    known = [k if k == 'digits' else f'{k}:...' for k in KINDS] + sorted(presets.PRESETS)
    near = f'; did you mean folder:{name}?' if os.path.isdir(name) else nearest(name, known)
    raise ValueError(f'unknown dataset {name!r}{near}')
  return importlib.import_module(f'vit_jax.sources.{KINDS[kind]}').splits(kind, rest)


def splits_elsewhere(name: str) -> Splits:
  """The splits that 'package.module:name' gives, called without arguments.

  Raises:
    ValueError: if it cannot be imported, is not marked by `vit_jax.extension`, or gives no splits.
  """
  try:
    splits = lookup.imported(name, 'data set', marked=True)()
  except (ValueError, OSError):
    raise
  except (Exception, SystemExit) as error:  # whatever it does
    raise ValueError(f'data set {name!r}: {error_line(error)}') from error
  fine = isinstance(splits, Mapping) and all(
    isinstance(split, str) and callable(opened) for split, opened in splits.items()
  )
  if not fine:
    raise ValueError(f'data set {name!r} gives no {{split: function that opens a Source}}')
  return splits


TERM = re.compile(r'\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*')


def chosen(name: str, splits: Splits, text: str) -> Source:
  """What a text in TFDS's split language chooses; shares are rounded to whole images as there.

  Raises:
    ValueError: if it is none, or names a split that there is not.
  """
  parts = []
  for term in text.split('+'):
    match = TERM.fullmatch(term)
    if not match:
      raise ValueError(f'{term.strip()!r} is no split such as train, train[:98%] or train[10:20]')
    if match[1] not in splits:
      raise ValueError(f'{name} has no split {match[1]!r}{nearest(match[1], list(splits))}')
    try:
      whole = splits[match[1]]()
    except (Exception, SystemExit) as error:
      if isinstance(error, ValueError | OSError) or not lookup.is_path(name):
        raise
      raise ValueError(f'{name}: split {match[1]}: {error_line(error)}') from error
    if not isinstance(whole, Source):
      raise ValueError(f'{name}: split {match[1]} is {type(whole).__name__}, must be a Source')
    if not whole.spans:
      whole = dataclasses.replace(whole, spans=((match[1], 0, len(whole)),))
    begin, end = (boundary(side, len(whole)) for side in (match[2] or '0', match[3] or '100%'))
    parts.append(whole if (begin, end) == (0, len(whole)) else whole.part(range(begin, end)))
  return parts[0] if len(parts) == 1 else joined(parts)


def boundary(text: str, count: int) -> int:
  """'98%' or '-20' as an index into `count` images."""
  number = int(text.removesuffix('%'))
  at = round(number * count / 100) if text.endswith('%') else number
  return min(max(at + count if number < 0 else at, 0), count)


def joined(parts: Sequence[Source]) -> Source:
  """Sources of one data set, one after another."""
  ends = np.cumsum([len(part) for part in parts])

  def place(index: int) -> tuple[Source, int]:
    at = int(np.searchsorted(ends, index, side='right'))
    return parts[at], int(index - ends[at] + len(parts[at]))

  def describe(index: int) -> str:
    source, at = place(index)
    return source.describe(at)

  spans = tuple(span for part in parts for span in part.spans)
  return Source(Joined(place, int(ends[-1])), parts[0].classes, describe, spans)


def cut(spans: Sequence[Span], indices: range) -> tuple[Span, ...]:
  """The spans of consecutive records, by their indices, of records that have `spans`."""
  found, at = [], 0
  for split, begin, end in spans:
    first, last = max(indices.start, at), min(indices.stop, at + end - begin)
    if first < last:
      found.append((split, begin + first - at, begin + last - at))
    at += end - begin
  return tuple(found)


def overlap(a: Source, b: Source) -> int:
  """How many images of `a` are in `b` too, by their spans in the splits of one data set."""
  return sum(
    max(min(end, last) - max(begin, first), 0)
    for split, begin, end in a.spans
    for other, first, last in b.spans
    if split == other
  )


def held_out(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
  """Indices of the labels without and with a seeded share of each class, in order.

  For a data set without a validation split. A class of one image keeps it for training.
  """
  rng = np.random.Generator(np.random.Philox(20))
  outside = np.zeros(len(labels), bool)
  order = rng.permutation(len(labels))
  order = order[np.argsort(labels[order], kind='stable')]  # by class, shuffled in each
  for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
    outside[group[: min(max(round(share * len(group)), 1), len(group) - 1)]] = True
  return np.flatnonzero(~outside), np.flatnonzero(outside)
