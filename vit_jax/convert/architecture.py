"""The model that arrays belong to, read from their names and shapes.

D width, A heads, T tokens, R registers.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax import models
from vit_jax.convert.engine import Arrays
from vit_jax.models import resnet

Size = tuple[int, int]  # height and width

# Heads by (width, depth), where a file does not tell them and they are not 64 channels wide.
HEADS = {
  (width, depth): heads for width, depth, _, heads in models.SIZES.values() if width != 64 * heads
}
RELATIVE = 'encoder/blocks/attention/relative/table'  # (L, distances and others, A)
MIXING = 'encoder/blocks/tokens/up/kernel'  # (L, T, S): a Mixer's tokens


def infer(
  family: str, arrays: Arrays, details: dict[str, Any], sizes: Sequence[Size]
) -> dict[str, Any]:
  """Fields of the model, as `vit_jax.build` takes them: all that shapes show, and the details.

  The images may be of one of the sizes, the likeliest first; none is needed for square ones.
  Raises ValueError if an array that tells the architecture is missing or misshapen.
  """
  try:
    fields = INFER[family](arrays) | details
    if 'positions' in arrays:
      fields['cls_position'] = has_cls_position(fields, arrays, sizes)
    return fields
  except KeyError as error:
    raise ValueError(f'{error.args[0]} is missing: the architecture cannot be inferred') from None
  except (IndexError, ValueError, ZeroDivisionError) as error:
    raise ValueError(f'the architecture cannot be inferred ({error})') from None


def infer_vit(arrays: Arrays) -> dict[str, Any]:
  blocks = 'encoder/blocks'
  kernel, query = arrays['embed/kernel'], arrays[f'{blocks}/attention/query/kernel']
  stages = counted(arrays, r'stem/stage(\d+)/unit(\d+)/.*')
  stem = tuple(stages) if 'stem/root/conv/kernel' in arrays else None
  stride = 1 if stem is None else resnet.stride(stem)
  fields: dict[str, Any] = {
    'patch': (kernel.shape[0] * stride, kernel.shape[1] * stride),
    'width': kernel.shape[3],
    'depth': query.shape[0],
    'heads': query.shape[2],
    'mlp_dim': arrays[f'{blocks}/mlp/up/kernel'].shape[2],
    'class_token': 'cls' in arrays,
    'pool': 'map' if 'pool/probe' in arrays else 'token' if 'cls' in arrays else 'gap',
    'relative_positions': relative_kind(arrays),
    'positions': 'learned' if 'positions' in arrays else 'none',
    'distillation': 'head' if 'head_dist/kernel' in arrays else 'none',
    'final_norm': 'tokens' if has(arrays, 'encoder/norm/') else 'none',
    'embed_bias': 'embed/bias' in arrays,
    'qkv_bias': ''.join(
      part[0] for part in ('query', 'key', 'value') if f'{blocks}/attention/{part}/bias' in arrays
    ) or 'none',
    'qk_norm': f'{blocks}/attention/query_norm/scale' in arrays,
    'attention_norm': f'{blocks}/attention/norm/scale' in arrays,
    'mlp_norm': f'{blocks}/mlp/norm/scale' in arrays,
    'embed_norm': 'embed_norm/scale' in arrays,
    'swiglu': f'{blocks}/mlp/gate/kernel' in arrays,
    'pre_norm': 'pre_norm/scale' in arrays,
    **head(arrays),
  }  # fmt: skip
  if 'dist' in arrays and fields['distillation'] == 'none':
    fields['distillation'] = 'token'
  if has(arrays, 'fc_norm/'):
    fields['final_norm'] = 'pooled'
  if stem is not None:
    fields |= {'stem': stem, 'stem_width': arrays['stem/root/conv/kernel'].shape[3]}
  if 'registers' in arrays:
    fields['registers'] = arrays['registers'].shape[1]
  if f'{blocks}/scale1' in arrays:
    fields['layer_scale'] = 1e-5
  if (hidden := arrays.get(f'{blocks}/attention/relative/up/kernel')) is not None:
    fields['relative_hidden'] = hidden.shape[2]
  if 'pool/mlp/up/kernel' in arrays:
    pool_mlp_dim = arrays['pool/mlp/up/kernel'].shape[1]
    fields['pool_mlp_dim'] = None if pool_mlp_dim == fields['mlp_dim'] else pool_mlp_dim
  if 'pre_logits/kernel' in arrays:
    fields['representation'] = arrays['pre_logits/kernel'].shape[1]
  return fields


def infer_mixer(arrays: Arrays) -> dict[str, Any]:
  kernel, blocks = arrays['embed/kernel'], 'encoder/blocks'
  up = arrays[MIXING]
  return {
    'patch': kernel.shape[:2],
    'width': kernel.shape[3],
    'depth': up.shape[0],
    'tokens_dim': up.shape[2],
    'mlp_dim': arrays[f'{blocks}/channels/up/kernel'].shape[2],
    **head(arrays),
  }


def infer_resnet(arrays: Arrays) -> dict[str, Any]:
  return {
    'blocks': tuple(counted(arrays, r'stage(\d+)/unit(\d+)/.*')),
    'width_factor': arrays['root/conv/kernel'].shape[3] // 64,
    **head(arrays),
  }


INFER = {'ViT': infer_vit, 'Mixer': infer_mixer, 'BiT': infer_resnet}


def relative_kind(arrays: Arrays) -> str:
  """`ViT.relative_positions`."""
  layer = RELATIVE.removesuffix('table')
  return 'table' if RELATIVE in arrays else 'mlp' if has(arrays, layer) else 'none'


def has(arrays: Arrays, layer: str) -> bool:
  """Whether any array of a layer is there: half of it counts, so that the rest is missed."""
  return any(name.startswith(layer) for name in arrays)


def head(arrays: Arrays) -> dict[str, Any]:
  if not has(arrays, 'head/'):
    return {'num_classes': 0}
  bias = 0.0 if 'head/bias' in arrays else None
  return {'num_classes': arrays['head/kernel'].shape[1], 'head_bias': bias}


def counted(arrays: Arrays, pattern: str) -> list[int]:
  """The number of units of each stage."""
  units = {tuple(map(int, m.groups())) for name in arrays if (m := re.fullmatch(pattern, name))}
  stages = range(1, max((stage for stage, _ in units), default=0) + 1)
  return [sum(stage == s for stage, _ in units) for s in stages]


def heads(width: int, depth: int, *, gated: bool = False) -> int:
  """The heads of published models of that size: files in torch's names do not tell them."""
  if gated and (width, depth) == (1280, 32):
    return 20  # DINOv3's ViT-H+, as wide and deep as ViT-H
  return HEADS.get((width, depth), max(width // 64, 1))


def is_square(number: int) -> bool:
  return math.isqrt(number) ** 2 == number


def tokens(arrays: Arrays) -> int:
  """How many tokens are there that a table of positions may have rows for."""
  return sum(name in arrays for name in ('cls', 'dist'))


def may_be_square(arrays: Arrays) -> bool:
  """Whether the table of positions has as many rows as a square of patches, and the tokens."""
  if (mixing := arrays.get(MIXING)) is not None and mixing.ndim == 3:
    return is_square(mixing.shape[1])
  table = arrays.get('positions')
  if table is None and RELATIVE in arrays:
    return is_square(relative_distances(arrays))
  if table is None or table.ndim != 3:
    return True
  counts = {0, tokens(arrays), tokens(arrays) + registers(arrays)}
  return any(is_square(max(table.shape[1] - n, 0)) for n in counts)


def registers(arrays: Arrays) -> int:
  """How many registers there are."""
  return arrays['registers'].shape[1] if 'registers' in arrays else 0


def fold_registers(arrays: Arrays, sizes: Sequence[Size]) -> Arrays:
  """The arrays with the registers' own rows of the table of positions, if any, added to them.

  No model here has such rows: the sum of both is all that it would read.
  """
  table, kernel, count = arrays.get('positions'), arrays.get('embed/kernel'), registers(arrays)
  if not count or table is None or table.ndim != 3 or kernel is None:
    return arrays
  rows, first = table.shape[1], tokens(arrays)
  patches = {cells(size, kernel.shape[:2]) for size in sizes}
  squares = not any(is_square(max(rows - n, 0)) for n in {0, first})
  if rows - first - count not in patches and not (
    patches.isdisjoint((rows, rows - first)) and squares and is_square(rows - first - count)
  ):
    return arrays
  others, placed, grid = np.split(table, [first, first + count], axis=1)
  return arrays | {
    'registers': arrays['registers'] + placed,
    'positions': np.concatenate([others, grid], axis=1),
  }


def cells(size: Size, patch: Size) -> int:
  """The number of patches of an image; 0 if it does not divide into them."""
  if any(side % part for side, part in zip(size, patch)):
    return 0
  return math.prod(side // part for side, part in zip(size, patch))


def has_cls_position(fields: dict[str, Any], arrays: Arrays, sizes: Sequence[Size]) -> bool:
  """Whether the table of positions has rows for the tokens before the registers."""
  rows = arrays['positions'].shape[1]
  if not tokens(arrays):
    return False
  for size in sizes:
    spare = rows - cells(size, fields['patch'])
    if spare in (0, tokens(arrays)):
      return spare > 0
  return not is_square(rows)


def image_size(fields: dict[str, Any], arrays: Arrays, sizes: Sequence[Size]) -> Size:
  """(height, width) in pixels of the images that an array of positions is for; 224 if it has none.

  Raises ValueError if the table has no square number of rows, and is for none of the sizes.
  """
  patch = fields.get('patch', (32, 32))
  if MIXING in arrays:
    count = arrays[MIXING].shape[1]
  elif 'positions' in arrays:
    count = arrays['positions'].shape[1] - (tokens(arrays) if fields['cls_position'] else 0)
  elif RELATIVE in arrays:
    return relative_size(patch, relative_distances(arrays), sizes)
  else:
    usual = (patch[0] * max(1, round(224 / patch[0])), patch[1] * max(1, round(224 / patch[1])))
    return next(iter(sizes), usual)
  for size in sizes:
    if cells(size, patch) == count:
      return size
  if not is_square(count):
    raise ValueError(f'positions of {count} patches are no square grid: give image_size')
  return (math.isqrt(count) * patch[0], math.isqrt(count) * patch[1])


def relative_distances(arrays: Arrays) -> int:
  """How many distances between patches the table of relative positions has."""
  return arrays[RELATIVE].shape[1] - (3 if tokens(arrays) + registers(arrays) else 0)


def relative_size(patch: Size, distances: int, sizes: Sequence[Size]) -> Size:
  """`image_size` by that many distances between patches."""
  for size in sizes:
    down, across = (2 * (side // part) - 1 for side, part in zip(size, patch))
    if cells(size, patch) and down * across == distances:
      return size
  side = (math.isqrt(max(distances, 0)) + 1) // 2
  if (2 * side - 1) ** 2 != distances:
    raise ValueError(f'{distances} relative positions are of no square grid: give image_size')
  return (side * patch[0], side * patch[1])


def variant(family: str, fields: dict[str, Any]) -> str:
  """The name in VARIANTS that most of the fields agree with."""
  names = {'ViT': [*models.VITS, *models.HYBRIDS], 'Mixer': models.MIXERS, 'BiT': models.RESNETS}

  def agreement(name: str) -> int:
    values = models.VARIANTS[name]
    return sum(values.get(field) == fields.get(field) for field in values | {'stem': None})

  return max(names[family], key=agreement)
