"""A checkpoint's arrays for a model that differs: another image size, head, patch or pooling.

D width, T tokens, P pixels of a patch side, C channels, K classes.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.convert import Checkpoint, resample
from vit_jax.convert.engine import Arrays
from vit_jax.models import vit

SHOWN = 8  # names in a line of a report
MEANING = ('activation', 'norm_eps', 'stem_numerics', 'numerics', 'rope_theta', 'heads')


@dataclasses.dataclass
class Report:
  """What became of a checkpoint's arrays; `str` gives it in a dozen lines."""

  title: str
  loaded: int = 0
  parameters: int = 0
  renamed: int = 0
  resampled: list[str] = dataclasses.field(default_factory=list)
  adapted: list[str] = dataclasses.field(default_factory=list)
  reset: list[str] = dataclasses.field(default_factory=list)
  dropped: list[str] = dataclasses.field(default_factory=list)
  differs: list[str] = dataclasses.field(default_factory=list)

  def __str__(self) -> str:
    lines = [self.title, f'  loaded     {self.loaded} arrays, {self.parameters:,} parameters']
    if self.renamed:
      lines.append(f"  renamed    {self.renamed} of the file's arrays, layers stacked")
    for what in ('resampled', 'adapted', 'reset', 'dropped', 'differs'):
      if found := getattr(self, what):
        more = f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
        lines.append(f'  {what:10} {"; ".join(found[:SHOWN])}{more}')
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
  zero_biases: bool = False,
) -> tuple[Any, Report]:
  """The parameters of `model` from a checkpoint, and what was done to them.

  Args:
    source: as `convert.read` gives it.
    model: which they are for.
    image_size: (height, width) in pixels that it will take.
    channels: of its images.
    rule: of `resample.RULES` for positions; None takes the dialect's own.
    new_head: start with a head of zeros: always, where the checkpoint's does not fit, or with None
      never.
    zero_biases: where the checkpoint lacks a bias, take zeros.

  Raises:
    ValueError: one that names every missing, unexpected and misshapen array.
  """
  if rule is not None and rule not in resample.RULES:
    raise ValueError(f'unknown rule {rule!r}{models.nearest(rule, list(resample.RULES))}')
  models.check_size(model, image_size)
  if channels < 1:
    raise ValueError(f'channels must be at least 1, got {channels}')
  images = jax.ShapeDtypeStruct((1, *image_size, channels), jnp.float32)
  try:
    tree = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), images)['params']
  except ValueError as error:
    raise ValueError(
      f'the model takes no {image_size[0]}x{image_size[1]} images: {error}'
    ) from None
  wanted: dict[str, Any] = {}
  models.map_named(wanted.setdefault, tree)
  variant = f'{source.dialect} names, {source.name}'
  report = Report(f'{source.path}: {variant}', renamed=source.renamed, dropped=[*source.dropped])
  arrays = dict(source.arrays)
  if isinstance(model, vit.ViT):
    fit_tokens(arrays, source, model, image_size, rule or source.resample, report)
    fit_norm(arrays, wanted, model, report)
  fit_kernels(arrays, wanted, rule or source.resample, report)
  fit_head(arrays, wanted, model, new_head, report)
  if zero_biases:
    lacking = [name for name in wanted if name.endswith('/bias') and name not in arrays]
    arrays |= {name: np.zeros(wanted[name].shape, np.float32) for name in lacking}
  check(source, arrays, wanted)
  report.differs = differing(source, model)
  report.loaded = len(wanted)
  report.parameters = sum(math.prod(leaf.shape) for leaf in wanted.values())
  return models.map_named(lambda name, _: arrays[name], tree), report


def differing(source: Checkpoint, model: models.Model) -> list[str]:
  """Fields that no array shows, by which the same arrays would compute something else."""
  read = dict.fromkeys(MEANING, True)
  read['stem_numerics'] = getattr(model, 'stem', None) is not None
  read['rope_theta'] = getattr(model, 'positions', None) == 'rope'
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
  kept = {'cls': model.has_class_token, 'dist': model.distillation != 'none'}
  there = [name for name in kept if name in arrays]
  table = arrays.pop('positions', None)
  grid = cells(source.size, source.fields.get('patch', model.patch))
  rows: Arrays = {}
  if table is None and source.fields.get('positions') == 'sincos2d':
    table = vit.sincos2d(*grid, model.width)[None]
    if model.positions == 'learned':
      report.adapted.append('positions (sines and cosines: the checkpoint has no table)')
  elif table is not None and source.fields.get('cls_position'):
    if table.ndim != 3 or table.shape[1] != math.prod(grid) + len(there):
      arrays['positions'] = table
      return
    rows = {name: table[:, i : i + 1] for i, name in enumerate(there)}
    table = table[:, len(there) :]
  zero = np.zeros((1, 1, model.width), np.float32)
  for name, wanted in kept.items():
    if wanted and name not in arrays:
      arrays[name] = zero
      report.reset.append(f'{name} (zeros: the checkpoint has none)')
    elif not wanted and name in arrays:
      del arrays[name]
      report.dropped.append(name)
    elif wanted and name in rows and not model.cls_position:
      arrays[name] = arrays[name] + rows[name]
      report.adapted.append(f'the position of {name} added to it')
  if table is None or (model.positions != 'learned' and source.fields['positions'] == 'sincos2d'):
    return
  new = cells(image_size, model.patch)
  if new != grid and len(table[0]) == math.prod(grid):
    table = resample.positions(table[0], grid, new, rule)[None]
    report.resampled.append(f'positions {grid[0]}x{grid[1]} -> {new[0]}x{new[1]} ({rule})')
  if model.cls_position:
    table = np.concatenate([*(rows.get(n, zero) for n, has in kept.items() if has), table], axis=1)
  arrays['positions'] = table


def cells(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
  return (size[0] // patch[0], size[1] // patch[1])


def fit_norm(arrays: Arrays, wanted: dict[str, Any], model: vit.ViT, report: Report) -> None:
  """The last norm under the name of its place, before the pooling or after; or dropped."""
  if model.final_norm == 'none':
    unread = [name for name in arrays if name.startswith(('encoder/norm/', 'fc_norm/'))]
    report.dropped.extend(unread)
    for name in unread:
      del arrays[name]
  for here, there in (('encoder/norm', 'fc_norm'), ('fc_norm', 'encoder/norm')):
    for leaf in ('scale', 'bias'):
      lacks = f'{here}/{leaf}' in wanted and f'{here}/{leaf}' not in arrays
      if lacks and f'{there}/{leaf}' in arrays:
        arrays[f'{here}/{leaf}'] = arrays.pop(f'{there}/{leaf}')


def fit_kernels(arrays: Arrays, wanted: dict[str, Any], rule: str, report: Report) -> None:
  """The first kernel for the model's channels, and the patch kernel for its patch."""
  first = 'embed/kernel'
  for name in ('stem/root/conv/kernel', 'root/conv/kernel'):
    first = name if name in arrays else first
  for name in {first, 'embed/kernel'}:
    if name not in arrays or name not in wanted or arrays[name].ndim != 4:
      continue
    kernel, shape = arrays[name], wanted[name].shape
    if name == first and kernel.shape[2] != shape[2]:
      kernel = resample.channels(kernel, shape[2])
      report.adapted.append(f'{name} from {arrays[name].shape[2]} channels to {shape[2]}')
    if name == 'embed/kernel' and kernel.shape[:2] != shape[:2]:
      rule = 'bilinear' if rule.startswith('bilinear') else 'bicubic_antialias'
      kernel = resample.patch_kernel(kernel, shape[:2], rule)
      sides = [f'{shape[0]}x{shape[1]}' for shape in (arrays[name].shape, shape)]
      report.resampled.append(f'{name} {sides[0]} -> {sides[1]} (pseudo-inverse, {rule})')
    arrays[name] = np.asarray(kernel, np.float32)


def fit_head(
  arrays: Arrays, wanted: dict[str, Any], model: models.Model, new_head: bool | None, report: Report
) -> None:
  """What lies between the pooling and the logits: kept, dropped, or new zeros."""
  unread = [name for part in ('pool/', 'pre_logits/') for name in arrays if name.startswith(part)]
  unread = [name for name in unread if name not in wanted]
  for name in unread:
    report.dropped.append(name)
    del arrays[name]
  for head in ('head', 'head_dist'):
    kernel, bias = f'{head}/kernel', f'{head}/bias'
    there = arrays[kernel].shape[-1] if kernel in arrays else 0
    if kernel not in wanted:
      gone = [name for name in (kernel, bias) if arrays.pop(name, None) is not None]
      report.dropped.extend(gone)
      continue
    here = wanted[kernel].shape[-1]
    if new_head is None:
      continue
    if new_head or there != here or any(name.startswith('pre_logits/') for name in unread):
      arrays[kernel] = np.zeros(wanted[kernel].shape, np.float32)
      arrays.pop(bias, None)
      if bias in wanted:
        arrays[bias] = np.full(wanted[bias].shape, model.head_bias, np.float32)
      report.reset.append(f'{head} ({there:,} classes there, {here:,} here)')


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
