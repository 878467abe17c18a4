"""The engine of all conversions: a dialect is a table of rows, read and written by the same rules.

L layers, D width, A heads, M MLP width, P pixels of a patch side, C channels, K classes.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vit_jax import models
from vit_jax.convert import kinds
from vit_jax.convert.preprocess import Preprocess
from vit_jax.convert.resample import DEFAULT_RULE
from vit_jax.models.decoder import TrainedDecoder

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ArrayRule:
  """How one array changes its form.

  Fields:
    to_ours: (their array, heads) -> ours; a view where NumPy can give one.
    to_theirs: our array -> theirs.
  """

  to_ours: Callable[[np.ndarray, int], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = ArrayRule(lambda a, heads: a, lambda a: a)
VECTOR = ArrayRule(lambda a, heads: a.reshape(-1), lambda a: a)  # (1, 1, 1, C) or (C,) <-> (C,)
LINEAR = ArrayRule(lambda a, heads: a.T, lambda a: a.T)  # (out, in) <-> (in, out)
CONV = ArrayRule(lambda a, heads: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
POINT = ArrayRule(lambda a, heads: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
POINT_HWIO = ArrayRule(lambda a, heads: a[0, 0], lambda a: a[None, None])
TOKEN = ArrayRule(lambda a, heads: a[None, None], lambda a: a[0, 0])  # (D,) <-> (1, 1, D)
TABLE = ArrayRule(lambda a, heads: a[None], lambda a: a[0])  # (T, D) <-> (1, T, D)
HEADS_IN = ArrayRule(  # (D, D) <-> (D, A, D/A)
  lambda a, heads: a.T.reshape(a.shape[1], heads, -1), lambda a: a.reshape(a.shape[0], -1).T
)
HEADS_BIAS = ArrayRule(lambda a, heads: a.reshape(heads, -1), lambda a: a.reshape(-1))
HEADS_OUT = ArrayRule(  # (D, D) <-> (A, D/A, D)
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
  rule: ArrayRule = SAME

  @functools.cached_property
  def parts(self) -> tuple[str, ...]:
    """Our names, the braces expanded."""
    match = re.fullmatch(r'(.*)\{(\w+(?:,\w+)+)\}(.*)', self.ours)
    if match is None:
      return (self.ours,)
    return tuple(f'{match[1]}{part}{match[3]}' for part in match[2].split(','))

  @functools.cached_property
  def pattern(self) -> re.Pattern[str]:
    """Matches their names, with the counters as groups."""
    text = re.escape(re.sub(r'\{(\w+)(?::\w+)?\}', r'<\1>', self.theirs))
    counters: set[str] = set()

    def group(match: re.Match[str]) -> str:
      again = match[1] in counters
      counters.add(match[1])
      return f'(?P={match[1]})' if again else rf'(?P<{match[1]}>\d{{1,4}})'

    return re.compile(re.sub(r'<(\w+)>', group, text))


ReadDecoder = Callable[
  [Arrays, dict[str, Any], dict[str, Any], tuple[int, int]], TrainedDecoder | None
]
Declared = dict[str, tuple[str, Any]]  # by field: where it is said, and the value
Line = tuple[Any, ...]  # the arguments of a Row


FIRST_KERNELS = ('root/conv/kernel', 'stem/root/conv/kernel', 'embed/kernel')  # of which one is


def first_kernel(names: Iterable[str]) -> str:
  """The name of the kernel (P, P, C, D) that reads pixels; '' where there is none of ours."""
  present = {*names}
  return next((name for name in FIRST_KERNELS if name in present), '')


def channels(arrays: Mapping[str, np.ndarray]) -> int | None:
  """How many channels images have, C, by the kernel that reads them; None where it is not here."""
  kernel = arrays.get(first_kernel(arrays))
  return kernel.shape[2] if kernel is not None and kernel.ndim == 4 else None


def unchanged(arrays: Arrays) -> Arrays:
  return arrays


def always(**fields: Any) -> Callable[..., dict[str, Any]]:
  """A `Family.details` or `preprocess` that is the same for every file."""
  return lambda *_: fields


class Exportable(Protocol):
  """What is written: a bundle or a run."""

  @property
  def model(self) -> models.Model: ...
  @property
  def params(self) -> Mapping[str, Any]: ...
  @property
  def classes(self) -> tuple[str, ...]: ...
  @property
  def preprocess(self) -> Preprocess: ...
  @property
  def name(self) -> str: ...
  @property
  def scores(self) -> str: ...
  @property
  def decoder(self) -> TrainedDecoder | None: ...


@dataclasses.dataclass(frozen=True)
class Family:
  """One dialect's names of one family of models.

  Fields:
    dialect: 'google', 'bigvision', 'timm', 'huggingface' or 'torchvision'.
    model: the family: 'ViT', 'Mixer' or 'BiT'.
    signs: patterns, each of which some name of such a file matches.
    fits: (their arrays) -> whether their shapes are the family's, beside the signs.
    table: the names and rules.
    details: (their arrays, ours, config) -> fields of the model that our arrays do not show.
    preprocess: (config) -> fields of `bundle.Preprocess` that the file, or its kind, tells. In the
      place of `steps` it may have `fraction` and `method`: see `preprocess.crop_steps`.
    published: (ours, file name) -> fields of `preprocess` that only a published file has, and lines
      to say of them.
    resample: the rule by which their code resamples positions.
    resample_of: (config, file name) -> the rule of a file whose positions it resamples otherwise,
      '' of others.
    head_width: channels of a head of the published models; None is as `architecture.heads` says.
    separator: between the parts of a name.
    tidy: brings their arrays to the table's names, before `renames`.
    renames: regular expressions for other spellings of the table's names.
    drops: names that no model here has a use for.
    fields: of the JSON files beside the weights that are read, and what their values must be.
    locate: (config) -> the keys to the object in config.json that describes the tower, from the
      outermost: () where it is config.json itself.
    tower: of that object, as `fields`; the functions get both in one.
    declared: (config) -> {field: (where it says so, value)} of what the arrays must agree with:
      'size' of the images, and fields of the model.
    contradictions: (ours, config) -> what else the arrays belie, a line each.
    promises: (their arrays, ours, config) -> our names of arrays that such a file always has.
    decoder: (the file's arrays, config, fields of the encoder, its grid of patches) -> the decoder
      beside it, or None; ValueError where it is none that we have.
  """

  dialect: str
  model: str
  signs: tuple[str, ...]
  table: tuple[Row, ...]
  details: Callable[[Arrays, Arrays, dict[str, Any]], dict[str, Any]]
  preprocess: Callable[[dict[str, Any]], dict[str, Any]]
  fits: Callable[[Arrays], bool] = lambda arrays: True
  published: Callable[[Arrays, str], tuple[dict[str, Any], tuple[str, ...]]] = lambda *_: ({}, ())
  resample: str = DEFAULT_RULE
  resample_of: Callable[[dict[str, Any], str], str] = lambda config, file: ''
  head_width: int | None = None
  separator: str = '.'
  tidy: Callable[[Arrays], Arrays] = unchanged
  renames: tuple[tuple[str, str], ...] = ()
  drops: tuple[str, ...] = ()
  fields: kinds.Fields = dataclasses.field(default_factory=dict)
  locate: Callable[[dict[str, Any]], tuple[str, ...]] = lambda config: ()
  tower: kinds.Fields = dataclasses.field(default_factory=dict)
  declared: Callable[[dict[str, Any]], Declared] = lambda config: {}
  contradictions: Callable[[Arrays, dict[str, Any]], Iterable[str]] = lambda *_: ()
  promises: Callable[[Arrays, Arrays, dict[str, Any]], Iterable[str]] = lambda *_: ()
  decoder: ReadDecoder = lambda *_: None


@dataclasses.dataclass(frozen=True)
class ExportSpec:
  """How one model is written in a dialect.

  Fields:
    table: its names.
    supported: fields of the model, and the values that the dialect can express: others are refused.
    rewrites: fields that change without changing what is computed.
    reader_defaults: fields that its readers take for granted: the user hears of another value.
    finish: last changes to its arrays.
    configs: JSON files beside the weights, by name.
  """

  table: tuple[Row, ...]
  supported: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  rewrites: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reader_defaults: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  finish: Callable[[Arrays], Arrays] = unchanged
  configs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Faults:
  """All that is wrong with a file's arrays, to be said at once."""

  missing: list[str] = dataclasses.field(default_factory=list)
  unexpected: list[str] = dataclasses.field(default_factory=list)
  misshapen: list[str] = dataclasses.field(default_factory=list)

  def respelled(self, names: Mapping[str, str]) -> 'Faults':
    """The same in the file's names."""
    return Faults(
      [in_file(name, names) for name in self.missing],
      [in_file(name, names) for name in self.unexpected],
      [' '.join([in_file(t.split(' ')[0], names), *t.split(' ')[1:]]) for t in self.misshapen],
    )

  def __bool__(self) -> bool:
    return bool(self.missing or self.unexpected or self.misshapen)

  def __str__(self) -> str:
    lines = [f'{name} is missing' for name in self.missing]
    lines += [f'{name} is unexpected' for name in self.unexpected]
    return '; '.join(lines + self.misshapen)


def to_ours(
  table: Sequence[Row],
  arrays: Mapping[str, np.ndarray],
  heads: int,
  *,
  pool_heads: int | None = None,
) -> tuple[Arrays, Faults]:
  """Their arrays in our names and forms, layers stacked, float32.

  Rows of which a file has nothing are left out: what a model needs is compared later. There
  are as many layers as most rows have: of a row with fewer, the rest is missing; an array that no
  row takes, or of a layer beyond, is unexpected. Attention pooling has as many heads as the blocks,
  unless `pool_heads` says how many.
  """
  ours: Arrays = {}
  faults = Faults()
  taken: set[str] = set()
  counted_rows = [(row, counted(row, arrays)) for row in table]
  depth = usual(
    layers for row, counts in counted_rows if '{i}' in row.theirs for layers in counts.values()
  )
  for row, counts in counted_rows:
    for key in counts:
      names = [
        spelled(row.theirs, *key, layer=i) for i in range(depth if '{i}' in row.theirs else 1)
      ]
      absent = [name for name in names if name not in arrays]
      if len(absent) == len(names):
        continue
      taken.update(names)
      faults.missing.extend(absent)
      pooling = row.ours.startswith('pool/')
      fill(ours, row, key, names, arrays, (pooling and pool_heads) or heads, faults)
  faults.unexpected.extend(name for name in arrays if name not in taken)
  return ours, faults


def lacking(
  table: Sequence[Row], arrays: Mapping[str, np.ndarray], promised: Iterable[str], depth: int
) -> list[str]:
  """Their names that arrays should have: those of the promised, and in every layer what any has."""
  absent: dict[str, None] = {}
  begun = [row for row in table if '{i}' in row.theirs and counted(row, arrays)]
  wanted = [[row for row in table if part in row.parts] for part in promised]
  for rows_ in [*([row] for row in begun), *wanted]:
    for layer in range(depth if rows_ and '{i}' in rows_[0].theirs else 1):
      names = [row.theirs.replace('{i}', str(layer)) for row in rows_]
      if names and not any(name in arrays for name in names):
        absent[names[0]] = None
  return list(absent)


def spelling(arrays: Mapping[str, np.ndarray], file: Mapping[str, np.ndarray]) -> dict[str, str]:
  """{name in the table: name in the file} of the arrays that are the same object in both."""
  names = {id(array): name for name, array in file.items()}
  return {name: names[id(array)] for name, array in arrays.items() if id(array) in names}


def in_file(name: str, names: Mapping[str, str]) -> str:
  """The name that a name of the table would have in the file, by those that `spelling` gives: as in
  another layer, or beside its sibling.
  """
  if name in names:
    return names[name]
  for other, theirs in names.items():
    if re.sub(r'\d+', '0', other, count=1) == re.sub(r'\d+', '0', name, count=1):
      if theirs.endswith(other):
        return theirs.removesuffix(other) + name
      old, new = re.findall(r'\d+', other)[0], re.findall(r'\d+', name)[0]
      return re.sub(rf'(?<=[._/]){old}(?=[./])', new, theirs, count=1)
  stem, leaf = re.split(r'[./](?=[^./]*$)', f'.{name}')
  for other, theirs in names.items():
    other_stem, end = re.split(r'[./](?=[^./]*$)', f'.{other}')
    if stem == other_stem and theirs.endswith(end):
      return theirs.removesuffix(end) + leaf
  prefixes = collections.Counter(t.removesuffix(o) for o, t in names.items() if t.endswith(o))
  prefix = max(prefixes, key=lambda text: prefixes[text], default='')
  return name if name.startswith('classifier') else prefix + name  # heads stand outside


def counted(row: Row, names: Iterable[str]) -> dict[tuple[int, int], int]:
  """How many layers of a row there are, up to the last one, by (stage, unit)."""
  layers: dict[tuple[int, int], int] = {}
  for name in names:
    if match := row.pattern.fullmatch(name):
      counters = {counter: int(number) for counter, number in match.groupdict().items()}
      stage = counters.get('s', counters.get('s0', -1) + 1)
      unit = counters.get('u', counters.get('u0', -1) + 1)
      layers[stage, unit] = max(layers.get((stage, unit), 0), counters.get('i', 0) + 1)
  return layers


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
      formed = [row.rule.to_ours(piece, heads) for piece in pieces]
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


def to_theirs(table: Sequence[Row], ours: Mapping[str, np.ndarray]) -> tuple[Arrays, list[str]]:
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


def formed(rule: ArrayRule, parts: Sequence[np.ndarray]) -> np.ndarray:
  """One of their arrays: each part by the rule, joined."""
  pieces = [rule.to_theirs(np.asarray(part)) for part in parts]
  return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def units(pattern: str, names: Iterable[str]) -> Iterator[tuple[int, int]]:
  """The (stage, unit) for which our names have the pattern; (0, 0) where it counts none."""
  if '{s}' not in pattern and '{u}' not in pattern:
    yield 0, 0
    return
  expression = re.escape(pattern).replace(r'\{s\}', r'(?P<s>\d+)').replace(r'\{u\}', r'(?P<u>\d+)')
  for name in names:
    if match := re.fullmatch(expression, name):
      counters = match.groupdict()
      yield int(counters.get('s', 0)), int(counters.get('u', 0))


def rows(*groups: Iterable[Line]) -> tuple[Row, ...]:
  """A table from tuples (ours, theirs, rule)."""
  return tuple(Row(*line) for line in itertools.chain(*groups))


def renamed(arrays: Mapping[str, np.ndarray], renames: Sequence[tuple[str, str]]) -> Arrays:
  """The arrays with every regular expression of `renames` applied to their names, in order."""
  out: Arrays = {}
  for name, array in arrays.items():
    new = name
    for pattern, replacement in renames:
      new = re.sub(pattern, replacement, new)
    if new in out:
      raise ValueError(f'two arrays are {new}')
    out[new] = array
  return out


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A file's arrays in our names, and what else it says.

  Fields:
    path: of the file or folder.
    dialect: 'vit_jax', or that of the family.
    name: the variant that is nearest to the model.
    fields: of the model, as `vit_jax.build(name, **fields)` takes them.
    arrays: flat, float32, layers stacked.
    size: (height, width) in pixels of the images that the positions are for.
    classes: the name of each label; its number where the file names none.
    preprocess: fields of `bundle.Preprocess` that the file, or its kind, tells.
    resample: the rule by which the dialect's own code resamples positions.
    renamed: how many of the file's arrays have another name here.
    dropped: the file's names that no model has a use for.
    faults: arrays that are missing, unexpected or misshapen by the dialect's table.
    notes: what else a user should know, a line each.
    scores: what logits become, see `bundle.Bundle`.
    step: of a run, whose parameters these are; None of what is no run's.
    stage: a line on which state of a run this is; '' where it is the model that the run ended with.
    decoder: of a masked autoencoder, whose encoder the arrays are; None where there is none.
  """

  path: str
  dialect: str
  name: str
  fields: dict[str, Any]
  arrays: Arrays
  size: tuple[int, int]
  classes: tuple[str, ...] = ()
  preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
  resample: str = DEFAULT_RULE
  renamed: int = 0
  dropped: tuple[str, ...] = ()
  faults: Faults = dataclasses.field(default_factory=Faults)
  notes: tuple[str, ...] = ()
  scores: str = 'softmax'
  step: int | None = None
  stage: str = ''
  decoder: TrainedDecoder | None = None
