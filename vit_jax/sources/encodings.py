"""How data sets write labels: missing ones, numbers as floats, a number for each class."""

import collections
import contextlib
import math
import re
from collections.abc import Iterable, Sequence

from vit_jax.text import printable

NO_LABEL = ('', 'nan', '-nan', '<na>', '#n/a', '#na', 'n/a', 'null')  # in any case
NO_LABEL_EXACT = ('None', 'NA')  # as pandas and R write it; 'none' and 'na' are names
INTEGER = re.compile('[+-]?(0|[1-9][0-9]{0,17})')  # which int64 holds; '007' is a name
DECIMAL = re.compile(r'[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?', re.IGNORECASE)
REGRESSION = (
  'numbers that are not whole, which are a quantity to regress and no classes: these are names, or '
  'integers from 0'
)
SEVERAL = (
  'several numbers, or one with a decimal comma: write the number of a class as an integer, and '
  "join the labels of an image by '|'"
)
SEPARATORS = (',', ';', None)  # that other programs join labels by; None: blanks
TRUTHS = ('false', 'true')
LARGEST = 2**53  # below which float64 holds every whole number


def is_missing(name: str) -> bool:
  """Whether a text is one that programs write where there is no label."""
  return name.lower() in NO_LABEL or name in NO_LABEL_EXACT


def class_numbers(where: str, names: Sequence[str]) -> list[int] | None:
  """The numbers of classes that all labels are, '1.0' too; None where one is a name.

  Raises:
    ValueError: if labels are a quantity: all are numbers, infinite ones too, and one is not whole,
      or most have a fraction; or if all are numbers and one has several, or a decimal comma.
  """
  numbers = [name for name in names if DECIMAL.fullmatch(name) or is_infinite(name)]
  fractions = [name for name in numbers if not is_whole(float(name))]
  if fractions and (len(numbers) == len(names) or 2 * len(fractions) > len(names)):
    raise ValueError(f'{where}: labels such as {fractions[0]} are {REGRESSION}')
  several = [name for name in names if len(tokens(name)) > 1]
  if several and all(map(is_float, [token for name in names for token in tokens(name)])):
    raise ValueError(f'{where}: labels such as {several[0]} are {SEVERAL}')
  if len(numbers) < len(names):
    return None
  return [int(name) if INTEGER.fullmatch(name) else int(float(name)) for name in names]


def is_float(text: str) -> bool:
  """Whether a text is a number, infinite ones and NaN too."""
  with contextlib.suppress(ValueError):
    float(text)
    return True
  return False


def is_infinite(text: str) -> bool:
  """Whether a text is a number without an end, as 'inf' is."""
  return is_float(text) and math.isinf(float(text))


def tokens(name: str) -> list[str]:
  """What a label has between separators: ['0', '5'] of '0,5' and of '0 5'."""
  return re.split(r'[,;\s]+', name.strip(' ,;'))


def joined_note(names: Sequence[str]) -> tuple[str, ...]:
  """A line where names look like several labels, as 'a, b' beside 'a' and 'b, c'.

  All parts of such a name are, or are parts of, others too, and there are no more parts than names.
  """
  for separator in SEPARATORS:
    rows = [[part.strip() for part in name.split(separator)] for name in names]
    counts = collections.Counter(part for row in rows for part in {*row})
    is_joined = [len(row) > 1 and all(counts[part] > 1 for part in row) for row in rows]
    if any(is_joined) and len(counts) <= len(names):
      name = printable(names[is_joined.index(True)])
      return (f"labels such as {name!r} may be several, and are read as one: '|' joins labels",)
  return ()


def merge_truths(names: Sequence[str]) -> list[str]:
  """Names, of which 'TRUE' and 'True' are one where all are true or false in some case."""
  lower = [name.lower() for name in names]
  is_mixed = len({*lower}) < len({*names}) and {*lower} <= {*TRUTHS}
  return [name.capitalize() for name in lower] if is_mixed else list(names)


def is_whole(value: float) -> bool:
  """Whether a float is a whole number that it holds exactly."""
  return value.is_integer() and abs(value) < LARGEST


def float_note(names: Iterable[str]) -> tuple[str, ...]:
  """A line where numbers of classes are written as floats, as pandas does beside missing ones."""
  name = next((name for name in names if not INTEGER.fullmatch(name)), '')
  return (f'labels such as {name} are whole, so they are read as numbers of classes',) * bool(name)


def one_hot_length(where: str, lists: Iterable[Sequence[float]], *, count: int) -> int:
  """How many classes each list has a 0 or 1 for; 0 where lists are of the numbers of classes.

  Lists of 0 and 1 are one-hot if one of them holds a number twice, which a list of classes does
  not. Those of images whose classes are unknown do not count.

  Args:
    where: the data set, for an error.
    lists: the labels of each image.
    count: of classes, where these have names; else 0.

  Raises:
    ValueError: if lists may be either.
  """
  lengths, has_repeats = set(), False
  for values in lists:
    if are_unknown(values):
      continue
    if not all(value in (0, 1) for value in values):
      return 0
    lengths.add(len(values))
    has_repeats |= len(set(values)) < len(values)
  if not has_repeats and (count or lengths != {2}):
    return 0
  if has_repeats and len(lengths := lengths - {0}) == 1 and lengths <= {count or max(lengths)}:
    return max(lengths)
  sizes = ' and '.join(map(str, sorted(lengths)))
  raise ValueError(
    f'{where}: label lists of {sizes} numbers, all 0 and 1, are one-hot or the numbers of '
    f'{count or 2} classes: write the numbers of classes, in a list where there are several'
  )


def are_unknown(values: Sequence[float]) -> bool:
  """Whether a list of labels, or of 0 and 1, says that an image's classes are not known."""
  return bool(len(values)) and all(value == -1 or math.isnan(value) for value in values)


def from_one_hot(values: Sequence[float] | None) -> list[int] | None:
  """The classes of a list of 0 and 1, or None where they are not known: of None, [] and -1."""
  if values is None or not len(values) or are_unknown(values):
    return None
  return [label for label, value in enumerate(values) if value]
