"""The engine of all conversions: a dialect is a table of rows, read and written by the same rules.

L layers, D width, A heads, M MLP width, P pixels of a patch side, C channels, K classes.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
  """How one array changes its form.

  Fields:
    into: (their array, heads) -> ours; a view where NumPy can give one.
    back: our array -> theirs.
  """

  into: Callable[[np.ndarray, int], np.ndarray]
  back: Callable[[np.ndarray], np.ndarray]


SAME = Rule(lambda a, heads: a, lambda a: a)
VECTOR = Rule(lambda a, heads: a.reshape(-1), lambda a: a)  # (1, 1, 1, C) or (C,) <-> (C,)
LINEAR = Rule(lambda a, heads: a.T, lambda a: a.T)  # (out, in) <-> (in, out)
CONV = Rule(lambda a, heads: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
POINT = Rule(lambda a, heads: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
POINT_HWIO = Rule(lambda a, heads: a[0, 0], lambda a: a[None, None])
TOKEN = Rule(lambda a, heads: a[None, None], lambda a: a[0, 0])  # (D,) <-> (1, 1, D)
TABLE = Rule(lambda a, heads: a[None], lambda a: a[0])  # (T, D) <-> (1, T, D)
HEADS_IN = Rule(  # (D, D) <-> (D, A, D/A)
  lambda a, heads: a.T.reshape(a.shape[1], heads, -1), lambda a: a.reshape(a.shape[0], -1).T
)
HEADS_BIAS = Rule(lambda a, heads: a.reshape(heads, -1), lambda a: a.reshape(-1))
HEADS_OUT = Rule(  # (D, D) <-> (A, D/A, D)
  lambda a, heads: a.T.reshape(heads, -1, a.shape[0]), lambda a: a.reshape(-1, a.shape[-1]).T
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a table.

  Fields:
    ours: our name; 'a/{x,y}/b' stands for several that they keep in one array, in that order.
    theirs: their name. '{i}' counts the layers that our array stacks; '{s}' and '{u}' the stages
      and units of a ResNet from 1, in our name too, '{s0}' and '{u0}' from 0.
    rule: between the two forms of one layer, and of one of several parts.
  """

  ours: str
  theirs: str
  rule: Rule = SAME

  @functools.cached_property
  def parts(self) -> tuple[str, ...]:
    """Our names, the braces expanded."""
    found = re.fullmatch(r'(.*)\{(\w+(?:,\w+)+)\}(.*)', self.ours)
    return tuple(f'{found[1]}{x}{found[3]}' for x in found[2].split(',')) if found else (self.ours,)

  @functools.cached_property
  def pattern(self) -> re.Pattern[str]:
    """Matches their names, with the counters as groups."""
    text = re.escape(re.sub(r'\{(\w+)(?::\w+)?\}', r'<\1>', self.theirs))
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
      again = match[1] in seen
      seen.add(match[1])
      return f'(?P={match[1]})' if again else rf'(?P<{match[1]}>\d{{1,4}})'

    return re.compile(re.sub(r'<(\w+)>', group, text))


def unchanged(arrays: Arrays) -> Arrays:
  return arrays


@dataclasses.dataclass(frozen=True)
class Family:
  """One dialect's names of one family of models.

  Fields:
    dialect: 'google', 'bigvision', 'timm', 'huggingface' or 'torchvision'.
    model: the family: 'ViT', 'Mixer' or 'BiT'.
    signs: patterns, each of which some name of such a file matches.
    table: the names and rules.
    details: (their arrays, ours, config) -> fields of the model that our arrays do not show.
    preprocess: (config) -> fields of `transforms.Preprocess`, where the file's kind tells them.
    resample: the rule by which their code resamples positions.
    separator: between the parts of a name.
    tidy: brings their arrays to the table's names, before `renames`.
    renames: regular expressions for other spellings of the table's names.
    drops: names that no model here has a use for.
  """

  dialect: str
  model: str
  signs: tuple[str, ...]
  table: tuple[Row, ...]
  details: Callable[[Arrays, Arrays, dict[str, Any]], dict[str, Any]]
  preprocess: Callable[[dict[str, Any]], dict[str, Any]]
  resample: str = 'bicubic_antialias'
  separator: str = '.'
  tidy: Callable[[Arrays], Arrays] = unchanged
  renames: tuple[tuple[str, str], ...] = ()
  drops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Spoken:
  """How a dialect says one model.

  Fields:
    table: its names.
    fields: of the model, and the values that the dialect has a way to say; others are refused.
    becomes: fields that change without changing what is computed.
    assumed: fields that its readers take for granted; another value is told.
    finish: last changes to its arrays.
    configs: JSON files beside the weights, by name.
  """

  table: tuple[Row, ...]
  fields: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  becomes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  assumed: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  finish: Callable[[Arrays], Arrays] = unchanged
  configs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Faults:
  """All that is wrong with a file's arrays, to be told at once."""

  missing: list[str] = dataclasses.field(default_factory=list)
  unexpected: list[str] = dataclasses.field(default_factory=list)
  misshapen: list[str] = dataclasses.field(default_factory=list)

  def __bool__(self) -> bool:
    return bool(self.missing or self.unexpected or self.misshapen)

  def __str__(self) -> str:
    told = [f'{name} is missing' for name in self.missing]
    told += [f'{name} is unexpected' for name in self.unexpected]
    return '; '.join(told + self.misshapen)


def into(
  table: Sequence[Row], arrays: Mapping[str, np.ndarray], heads: int
) -> tuple[Arrays, Faults]:
  """Their arrays in our names and forms, layers stacked, float32.

  Rows of which a file has nothing are left out: what a model needs is compared later. There
  are as many layers as most rows have: of a row with fewer, the rest is missing; an array that no
  row takes, or of a layer beyond, is unexpected.
  """
  ours: Arrays = {}
  faults = Faults()
  taken: set[str] = set()
  found = [(row, counted(row, arrays)) for row in table]
  depth = usual(
    layers for row, counts in found if '{i}' in row.theirs for layers in counts.values()
  )
  for row, counts in found:
    for key in counts:
      names = [
        spelled(row.theirs, *key, layer=i) for i in range(depth if '{i}' in row.theirs else 1)
      ]
      absent = [name for name in names if name not in arrays]
      if len(absent) == len(names):
        continue
      taken.update(names)
      faults.missing.extend(absent)
      fill(ours, row, key, names, arrays, heads, faults)
  faults.unexpected.extend(name for name in arrays if name not in taken)
  return ours, faults


def counted(row: Row, names: Iterable[str]) -> dict[tuple[int, int], int]:
  """How many layers of a row there are, up to the last one found, by (stage, unit)."""
  found: dict[tuple[int, int], int] = {}
  for name in names:
    if match := row.pattern.fullmatch(name):
      at = {counter: int(number) for counter, number in match.groupdict().items()}
      stage = at.get('s', at.get('s0', -1) + 1)
      unit = at.get('u', at.get('u0', -1) + 1)
      found[stage, unit] = max(found.get((stage, unit), 0), at.get('i', 0) + 1)
  return found


def usual(counts: Iterable[int]) -> int:
  """The number of layers that most rows have, of two equally usual ones the larger; 0 of none."""
  often = collections.Counter(counts)
  return max(often, key=lambda count: (often[count], count), default=0)


def spelled(pattern: str, stage: int, unit: int, *, layer: int = 0) -> str:
  return pattern.format(i=layer, s=stage, u=unit, s0=stage - 1, u0=unit - 1)


def fill(
  ours: Arrays,
  row: Row,
  key: tuple[int, int],
  names: list[str],
  arrays: Mapping[str, np.ndarray],
  heads: int,
  faults: Faults,
) -> None:
  """Writes the arrays of one row, one unit, all layers, into ours; says which do not fit.

  One that is missing leaves its place undefined, so that shapes still tell the architecture.
  """
  stacked = '{i}' in row.theirs
  for layer, name in enumerate(names):
    if name not in arrays:
      continue
    theirs = arrays[name]
    try:
      pieces = np.split(theirs, len(row.parts)) if len(row.parts) > 1 else [theirs]
      formed = [row.rule.into(piece, heads) for piece in pieces]
    except (ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError):
      faults.misshapen.append(f'{name} has shape {theirs.shape}')
      continue
    for part, piece in zip(row.parts, formed):
      part = spelled(part, *key)
      if not stacked:
        ours[part] = np.asarray(piece, np.float32)
        continue
      if part not in ours:
        ours[part] = np.empty((len(names), *piece.shape), np.float32)
      if ours[part].shape[1:] != piece.shape:
        faults.misshapen.append(f'{name} has shape {theirs.shape}, unlike other layers')
        break
      ours[part][layer] = piece


def back(table: Sequence[Row], ours: Mapping[str, np.ndarray]) -> tuple[Arrays, list[str]]:
  """Our arrays in their names and forms, views where NumPy can, and our names that no row takes."""
  theirs: Arrays = {}
  taken: set[str] = set()
  for row in sorted(table, key=lambda row: -len(row.parts)):  # a joint array before a single one
    for key in sorted(units(row.parts[0], ours)):
      parts = [spelled(part, *key) for part in row.parts]
      if not all(part in ours and part not in taken for part in parts):
        continue
      taken.update(parts)
      arrays = [ours[part] for part in parts]
      if '{i}' not in row.theirs:
        theirs[spelled(row.theirs, *key)] = formed(row.rule, arrays)
        continue
      for layer, layers in enumerate(zip(*arrays)):
        theirs[spelled(row.theirs, *key, layer=layer)] = formed(row.rule, layers)
  return theirs, [name for name in ours if name not in taken]


def formed(rule: Rule, parts: Sequence[np.ndarray]) -> np.ndarray:
  """One of their arrays: each part by the rule, joined."""
  pieces = [rule.back(np.asarray(part)) for part in parts]
  return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def units(pattern: str, names: Iterable[str]) -> Iterator[tuple[int, int]]:
  """The (stage, unit) for which our names have the pattern; (0, 0) where it counts none."""
  if '{s}' not in pattern and '{u}' not in pattern:
    yield 0, 0
    return
  expression = re.escape(pattern).replace(r'\{s\}', r'(?P<s>\d+)').replace(r'\{u\}', r'(?P<u>\d+)')
  for name in names:
    if match := re.fullmatch(expression, name):
      at = match.groupdict()
      yield int(at.get('s', 0)), int(at.get('u', 0))


def rows(*groups: Iterable[tuple[Any, ...]]) -> tuple[Row, ...]:
  """A table from tuples (ours, theirs, rule)."""
  return tuple(Row(*line) for line in itertools.chain(*groups))


def renamed(arrays: Mapping[str, np.ndarray], renames: Sequence[tuple[str, str]]) -> Arrays:
  """The arrays with every regular expression of `renames` applied to their names, in order.

  Raises:
    ValueError: if two arrays would have one name.
  """
  out: Arrays = {}
  for name, array in arrays.items():
    new = name
    for pattern, replacement in renames:
      new = re.sub(pattern, replacement, new)
    if new in out:
      raise ValueError(f'two arrays are {new}')
    out[new] = array
  return out
