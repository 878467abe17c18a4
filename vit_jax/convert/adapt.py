"""A checkpoint's arrays for a model that differs: another image size, head, patch or pooling.

D width, T tokens, P pixels of a patch side, C channels, K classes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.convert import resample
from vit_jax.convert.architecture import RELATIVE
from vit_jax.convert.engine import Arrays, Checkpoint, first_kernel
from vit_jax.models import layers, vit
from vit_jax.sources import labels
from vit_jax.text import nearest, quantity

SHOWN = 8  # names in a line of a report
MEANING = (
  'activation',
  'norm_eps',
  'stem_numerics',
  'numerics',
  'rope_theta',
  'heads',
  'post_norm',
  'parallel',
)


@dataclasses.dataclass
class Report:
  """What became of a checkpoint's arrays; `str` gives it in a dozen lines.

  Fields, of which the lists hold words for a user:
    loaded, parameters: how many arrays of the model, and numbers in them, are the checkpoint's.
    renamed: how many of the file's arrays have another name here.
    initialised: names of the model's arrays that are not the checkpoint's.
  """

  title: str
  loaded: int = 0
  parameters: int = 0
  renamed: int = 0
  initialised: set[str] = dataclasses.field(default_factory=set)
  resampled: list[str] = dataclasses.field(default_factory=list)
  adapted: list[str] = dataclasses.field(default_factory=list)
  reset: list[str] = dataclasses.field(default_factory=list)
  dropped: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  differs: list[str] = dataclasses.field(default_factory=list)

  def __str__(self) -> str:
    lines = [self.title, f'  loaded     {self.loaded} arrays, {self.parameters:,} parameters']
    if self.renamed:
      lines.append(f"  renamed    {self.renamed} of the file's arrays, layers stacked")
    for heading in ('resampled', 'adapted', 'reset', 'dropped', 'differs', 'notes'):
      if entries := getattr(self, heading):
        more = f' and {len(entries) - SHOWN} more' if len(entries) > SHOWN else ''
        lines.append(f'  {heading:10} {"; ".join(entries[:SHOWN])}{more}')
    return '\n'.join(lines)

  @property
  def changed(self) -> bool:
    """Whether the model has anything but what the checkpoint has."""
    return bool(self.resampled or self.adapted or self.reset or self.dropped or self.differs)


def params(
  source: Checkpoint,
  model: models.Model,
  *,
  image_size: tuple[int, int],
  channels: int = 3,
  rule: str | None = None,
  new_head: bool | None = False,
  classes: Sequence[str] = (),
  seed: int = 0,
  zero_biases: bool = False,
) -> tuple[models.Tree, Report]:
  """The parameters of `model` from a checkpoint, and what was done to them.

  Args:
    source: as `convert.read` gives it.
    model: which they are for.
    image_size: (height, width) in pixels that it will take.
    channels: of its images.
    rule: of `resample.RULES` for positions; None takes the dialect's own.
    new_head: start with a new head: always, where the checkpoint's does not fit, or with None
      never.
    classes: names of the model's, in whose order the columns of a head that is kept are put, see
      `labels.align`; () leaves them as they are.
    seed: of a new head, where the model's `head_init` draws it.
    zero_biases: where the checkpoint lacks a bias, take zeros.

  Raises:
    ValueError: one that names every missing, unexpected and misshapen array; if a head is kept
      whose classes are not those named.
  """
  if rule is not None and rule not in resample.RULES:
    raise ValueError(f'unknown rule {rule!r}{nearest(rule, list(resample.RULES))}')
  tree = abstract_params(model, image_size, channels)
  wanted = models.flat(tree)
  report = Report(
    f'{source.path}: {source.dialect} names, {source.name}',
    renamed=source.renamed,
    dropped=[*source.dropped],
    notes=[*([source.stage] if source.stage else []), *source.notes],
  )
  arrays = dict(source.arrays)
  if isinstance(model, vit.ViT):
    fit_tokens(arrays, source, model, image_size, rule or source.resample, report)
    fit_relative(arrays, source, model, image_size, report)
    fit_norm(arrays, wanted, model, report)
  fit_kernels(arrays, wanted, rule or source.resample, report)
  fit_head(arrays, wanted, model, new_head, seed, report)
  if classes:
    order_heads(arrays, source, classes, report)
  if zero_biases:
    fit_biases(arrays, wanted, report)
  check(source, arrays, wanted)
  report.differs = differing(source, model)
  loaded = [leaf for name, leaf in wanted.items() if name not in report.initialised]
  report.loaded = len(loaded)
  report.parameters = sum(math.prod(leaf.shape) for leaf in loaded)
  return models.map_named(lambda name, _: arrays[name], tree), report


def abstract_params(model: models.Model, image_size: tuple[int, int], channels: int) -> models.Tree:
  """The shapes of a model's parameters; ValueError for images that it does not take."""
  models.check_size(model, image_size)
  if channels < 1:
    raise ValueError(f'channels must be at least 1, got {channels}')
  images = jax.ShapeDtypeStruct((1, *image_size, channels), jnp.float32)
  try:
    return jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), images)['params']
  except ValueError as error:
    raise ValueError(
      f'the model takes no {image_size[0]}x{image_size[1]} images: {error}'
    ) from None


def differing(source: Checkpoint, model: models.Model) -> list[str]:
  """Fields that no array shows, by which the same arrays would compute something else."""
  read = dict.fromkeys(MEANING, True)
  read['stem_numerics'] = getattr(model, 'stem', None) is not None
  read['rope_theta'] = 'rope' in getattr(model, 'positions', '')
  pairs = {f: (source.fields.get(f), getattr(model, f, None)) for f in MEANING if read[f]}
  return [
    f'{field} is {theirs} there, {ours} in the model'
    for field, (theirs, ours) in pairs.items()
    if theirs is not None and ours is not None and theirs != ours
  ]


def fit_tokens(
  arrays: Arrays,
  source: Checkpoint,
  model: vit.ViT,
  image_size: tuple[int, int],
  rule: str,
  report: Report,
) -> None:
  """Class and distillation token as the model has them, and a table of positions on its grid."""
  wanted = {'cls': model.has_class_token, 'dist': model.distillation != 'none'}
  grid = cells(source.size, source.fields.get('patch', model.patch))
  has_rows = source.fields.get('cls_position') and 'positions' in arrays
  tokens = [name for name in wanted if name in arrays] if has_rows else []
  table = arrays.get('positions')
  if table is not None and (table.ndim != 3 or table.shape[1] != math.prod(grid) + len(tokens)):
    return  # `check` says so
  rows, table = split_positions(arrays, tokens)
  if table is None and source.fields.get('positions') == 'sincos2d':
    table = vit.sincos2d(*grid, model.width)[None]
    if model.has_table:
      report.adapted.append('positions (sines and cosines: the checkpoint has no table)')
      report.initialised.add('positions')
  add_tokens(arrays, rows, wanted, model, report)
  if table is None or (not model.has_table and source.fields['positions'] == 'sincos2d'):
    return
  table = regridded(table, grid, cells(image_size, model.patch), rule, report)
  if model.cls_position:
    zero = np.zeros((1, 1, model.width), np.float32)
    table = np.concatenate([*(rows.get(n, zero) for n, has in wanted.items() if has), table], 1)
  arrays['positions'] = table


def regridded(
  table: np.ndarray, old: tuple[int, int], new: tuple[int, int], rule: str, report: Report
) -> np.ndarray:
  """Positions (1, T, D) of the patches on another grid."""
  if new == old:
    return table
  report.resampled.append(f'positions {old[0]}x{old[1]} -> {new[0]}x{new[1]} ({rule})')
  return np.asarray(resample.positions(table[0], old, new, rule)[None])


def fit_relative(
  arrays: Arrays,
  source: Checkpoint,
  model: vit.ViT,
  image_size: tuple[int, int],
  report: Report,
) -> None:
  """A table of relative positions (L, distances + others, A) on the model's grid."""
  old = cells(source.size, source.fields.get('patch', model.patch))
  new = cells(image_size, model.patch)
  table = arrays.get(RELATIVE)
  if table is None or new == old or model.relative_positions != 'table':
    return
  if table.ndim != 3 or table.shape[1] - (2 * old[0] - 1) * (2 * old[1] - 1) not in (0, 3):
    return  # `check` says so
  arrays[RELATIVE] = np.stack([resample.relative_positions(layer, old, new) for layer in table])
  report.resampled.append(
    f'relative positions {old[0]}x{old[1]} -> {new[0]}x{new[1]} (geometric, as BEiT)'
  )


def split_positions(arrays: Arrays, tokens: list[str]) -> tuple[Arrays, np.ndarray | None]:
  """The positions of the tokens, by their names, and of the patches: they leave the arrays."""
  table = arrays.pop('positions', None)
  if table is None:
    return {}, None
  return {name: table[:, i : i + 1] for i, name in enumerate(tokens)}, table[:, len(tokens) :]


def add_tokens(
  arrays: Arrays, rows: Arrays, wanted: dict[str, bool], model: vit.ViT, report: Report
) -> None:
  """Drops tokens that the model lacks, starts those at zero that the checkpoint lacks, and adds to
  the others their position where the model's table has none for them.
  """
  for name, needed in wanted.items():
    if needed and name not in arrays:
      arrays[name] = np.zeros((1, 1, model.width), np.float32)
      report.reset.append(f'{name} (zeros: the checkpoint has none)')
      report.initialised.add(name)
    elif not needed and name in arrays:
      del arrays[name]
      report.dropped.append(name)
    elif needed and name in rows and not model.cls_position:
      arrays[name] = arrays[name] + rows[name]
      report.adapted.append(f'the position of {name} added to it')


def cells(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
  return (size[0] // patch[0], size[1] // patch[1])


def fit_norm(arrays: Arrays, wanted: dict[str, Any], model: vit.ViT, report: Report) -> None:
  """The last norm under the name of its place, before the pooling or after; or dropped."""
  if model.final_norm == 'none':
    unread = [name for name in arrays if name.startswith(('encoder/norm/', 'fc_norm/'))]
    report.dropped.extend(unread)
    for name in unread:
      del arrays[name]
  for name, other in (('encoder/norm', 'fc_norm'), ('fc_norm', 'encoder/norm')):
    for leaf in ('scale', 'bias'):
      lacks = f'{name}/{leaf}' in wanted and f'{name}/{leaf}' not in arrays
      if lacks and f'{other}/{leaf}' in arrays:
        arrays[f'{name}/{leaf}'] = arrays.pop(f'{other}/{leaf}')


def fit_kernels(arrays: Arrays, wanted: dict[str, Any], rule: str, report: Report) -> None:
  """The first kernel for the model's channels, and the patch kernel for its patch."""
  patch, first = 'embed/kernel', first_kernel(arrays)
  shapes = {
    name: wanted[name].shape
    for name in dict.fromkeys((first, patch))
    if name in arrays and name in wanted and arrays[name].ndim == 4
  }
  if first in shapes and arrays[first].shape[2] != shapes[first][2]:
    old, new = arrays[first].shape[2], shapes[first][2]
    arrays[first] = np.asarray(resample.channels(arrays[first], new), np.float32)
    report.adapted.append(f'{first} from {quantity(old, "channel")} to {new}')
  if patch in shapes and arrays[patch].shape[:2] != shapes[patch][:2]:
    side, new_side = arrays[patch].shape[:2], shapes[patch][:2]
    method = 'bilinear' if rule.startswith('bilinear') else 'bicubic_antialias'
    arrays[patch] = np.asarray(resample.patch_kernel(arrays[patch], new_side, method), np.float32)
    sides = f'{side[0]}x{side[1]} -> {new_side[0]}x{new_side[1]}'
    report.resampled.append(f'{patch} {sides} (pseudo-inverse, {method})')


def fit_biases(arrays: Arrays, wanted: dict[str, Any], report: Report) -> None:
  """Zeros for the biases that the checkpoint lacks."""
  lacking = [name for name in wanted if name.endswith('/bias') and name not in arrays]
  arrays |= {name: np.zeros(wanted[name].shape, np.float32) for name in lacking}
  report.initialised.update(lacking)
  report.reset.extend(f'{name} (zeros: the checkpoint has none)' for name in lacking)


def fit_head(
  arrays: Arrays,
  wanted: dict[str, Any],
  model: models.Model,
  new_head: bool | None,
  seed: int,
  report: Report,
) -> None:
  """What lies between the pooling and the logits: kept, dropped, or new by `head_init`."""
  unread = [name for part in ('pool/', 'pre_logits/') for name in arrays if name.startswith(part)]
  unread = [name for name in unread if name not in wanted]
  for name in unread:
    report.dropped.append(name)
    del arrays[name]
  other_features = any(name.startswith('pre_logits/') for name in unread)
  for index, head in enumerate(('head', 'head_dist')):
    kernel, bias = f'{head}/kernel', f'{head}/bias'
    if kernel not in wanted:
      report.dropped.extend(name for name in (kernel, bias) if arrays.pop(name, None) is not None)
      continue
    old = arrays[kernel].shape[-1] if kernel in arrays else 0
    new = wanted[kernel].shape[-1]
    if new_head is None or not (new_head or old != new or other_features):
      continue
    # Not by model.init, which would trace the whole model for one array.
    key = jax.random.fold_in(jax.random.key(seed), index)
    arrays |= initial_head(head, wanted, model, key)
    report.initialised |= {kernel, bias}
    if bias not in wanted:
      arrays.pop(bias, None)
    start = '' if model.head_init == 'zeros' else f', starts {model.head_init}'
    report.reset.append(f'{head} ({quantity(old, "class")} there, {new:,} here{start})')


def order_heads(arrays: Arrays, source: Checkpoint, classes: Sequence[str], report: Report) -> None:
  """Puts the columns of heads that are kept in the order of the model's classes."""
  heads = [head for head in ('head', 'head_dist') if f'{head}/kernel' in arrays]
  heads = [head for head in heads if f'{head}/kernel' not in report.initialised]
  if not heads or tuple(classes) == source.classes:
    return
  try:
    alignment = labels.align(classes, source.classes)
  except ValueError as error:
    message = f'the head of {source.path} is for other classes: {error}'
    raise ValueError(f'{message}; new_head=True starts with a new one') from None
  columns = np.asarray(alignment.labels)
  for name in (f'{head}/{leaf}' for head in heads for leaf in ('kernel', 'bias')):
    if name in arrays:
      arrays[name] = arrays[name][..., columns]
  report.adapted.append(f'{" and ".join(heads)} (classes matched {alignment.method})')


def initial_head(
  head: str, wanted: dict[str, jax.ShapeDtypeStruct], model: models.Model, key: jax.Array
) -> Arrays:
  """A head's kernel, and its bias where it has one, by the model's `head_init` and `head_bias`."""
  kernel, bias = f'{head}/kernel', f'{head}/bias'
  init = layers.HEAD_INITS[model.head_init]
  arrays = {kernel: np.asarray(init(key, wanted[kernel].shape, jnp.float32))}
  if bias in wanted:
    arrays[bias] = np.full(wanted[bias].shape, model.head_bias, np.float32)
  return arrays


def check(source: Checkpoint, arrays: Arrays, wanted: dict[str, Any]) -> None:
  """Raises ValueError that names all that does not fit."""
  wrong = [f'{name} is missing' for name in source.faults.missing]
  if not (source.faults.missing or source.faults.misshapen):
    wrong += [f'{name} is missing' for name in wanted if name not in arrays]
  wrong += [f'{name} is unexpected' for name in source.faults.unexpected]
  wrong += [f'{name} is unexpected' for name in arrays if name not in wanted]
  wrong += source.faults.misshapen
  wrong += [
    f'{name} has shape {arrays[name].shape}, not {leaf.shape}'
    for name, leaf in wanted.items()
    if name in arrays and arrays[name].shape != leaf.shape
  ]
  if wrong:
    raise ValueError(f'{source.path} does not fit the model: {"; ".join(wrong)}')
