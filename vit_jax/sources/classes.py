"""Classes and labels of an image: what folders, tables and archives check, and how -1 fills up.

N images, K classes, L labels of an image at most. In a multi-label set, an image whose labels are
all -1 is of no class: a negative of each. One whose labels are UNKNOWN is neither trained on nor
scored, as is, where every image has one label, one with -1.
"""

import collections
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vit_jax.text import first_few, printable

if TYPE_CHECKING:
  import jax

Labels = TypeVar('Labels', np.ndarray, 'jax.Array')

MAX_CLASSES = 1_000_000  # a number above is no label but a mistake, such as an identifier
MAX_GAPS = 10  # classes to a label, where labels are numbers: fewer images than that is a mistake
UNKNOWN = -2  # all labels of an image of a multi-label set that nobody has labelled
NUMBER = re.compile('[0-9]{1,18}')
NAMED = 3  # groups of classes that a line names
MAX_LABELS = 64  # of an image, where its data set does not say how many there can be


def are_known(labels: Labels) -> Labels:
  """(N,), whether the classes of each image are known: those of a multi-label one may be none."""
  return labels >= 0 if labels.ndim == 1 else labels.min(-1) > UNKNOWN


def numbered(count: int, first: int = 0) -> tuple[str, ...]:
  """The names of classes that have only numbers: '0', '1' and so on, or from another on."""
  return tuple(map(str, range(first, first + count)))


def first_number(labels: Iterable[int]) -> int:
  """The number of the first class: 1 where labels count from there, else 0."""
  return int(min(labels, default=0) == 1)


def first_note(classes: Sequence[str], first: int) -> tuple[str, ...]:
  """A line where the label of the first class is not 0."""
  if not first:
    return ()
  return (f'labels are numbered from {first}: classes are {classes[0]} to {classes[-1]}',)


def folded(name: str) -> str:
  """A name without regard to case, Unicode form and the leading zeros of a number."""
  name = unicodedata.normalize('NFC', name).casefold()
  return str(int(name)) if NUMBER.fullmatch(name) else name


def alike_note(classes: Sequence[str]) -> str:
  """A line on classes that are several by spelling alone, as 'Cat' and 'cat'; '' without any."""
  groups = collections.defaultdict(set)
  for name in classes:
    groups[folded(name)].add(name)
  alike = [sorted(names) for names in groups.values() if len(names) > 1]
  named = [' and '.join(repr(printable(name)) for name in names) for names in alike]
  differ = 'differ in case, Unicode form or leading zeros alone'
  return f'classes that {differ}: {first_few(named, NAMED)}' if named else ''


def check_classes(where: str, classes: Sequence[str]) -> None:
  """Raises ValueError for fewer than two classes."""
  if not classes:
    raise ValueError(f'{unlabelled(where)}; lejepa, mae and dino learn without')
  if len(classes) < 2:
    raise ValueError(f'{where} has only one class, {classes[0]!r}; at least two are needed')


def check_labelled(where: str, classes: Sequence[str]) -> None:
  """Raises ValueError for a data set without classes, where its labels are asked for."""
  if not classes:
    raise ValueError(unlabelled(where))


def unlabelled(where: str) -> str:
  """The error of a data set without labels."""
  return f'{where} has no labels: name a labelled data set, such as folder:PATH of class folders'


def gaps(labels: Iterable[int], count: int) -> str | None:
  """The error of labels, as numbers, that leave most of `count` classes empty."""
  labels = set(labels)
  if count <= MAX_GAPS * len(labels):
    return None
  return (
    f'label {max(labels)} stands for {count:,} classes, of which {len(labels):,} have images: '
    'number them without such gaps, or name them'
  )


def pad(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Labels of all images in a row, `counts` (N,) of them each, as (N, L) int32 padded with -1."""
  rows = np.repeat(np.arange(len(counts)), counts)
  padded = np.full((len(counts), max(1, counts.max(initial=0))), -1, np.int32)
  padded[rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]] = labels
  return padded


def pad_one(labels: Sequence[int] | np.ndarray | None) -> np.ndarray:
  """The labels of one image as (MAX_LABELS,) int32 padded with -1.

  Unknown are those of None, and of -1 alone, by which TFDS marks what is not labelled.
  """
  if labels is None or (len(labels) and max(labels) < 0):
    return np.full(MAX_LABELS, UNKNOWN, np.int32)
  if len(labels) > MAX_LABELS:
    raise ValueError(f'{len(labels)} labels; at most {MAX_LABELS} are taken')
  padded = np.full(MAX_LABELS, -1, np.int32)
  padded[: len(labels)] = labels
  return padded
