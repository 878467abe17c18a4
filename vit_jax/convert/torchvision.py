"""torchvision's names of its `vit_*` models."""

import math
import re
from typing import Any

from vit_jax.convert.engine import Arrays, Exportable, ExportSpec, Family, always, rows
from vit_jax.convert.timm import (
  BLOCKS,
  IMAGENET_MEAN,
  IMAGENET_STD,
  centre,
  conv,
  dense,
  merged,
  norm,
  projected,
)
from vit_jax.models import vit
from vit_jax.text import quantity

THEIRS = 'encoder.layers.encoder_layer_{i}'
VIT = rows(
  [('cls', 'class_token'), ('positions', 'encoder.pos_embedding')],
  conv('embed', 'conv_proj'),
  norm(f'{BLOCKS}/norm1', f'{THEIRS}.ln_1'),
  [
    (ours, theirs.replace('in_proj.', 'in_proj_'), rule)
    for ours, theirs, rule in projected(
      f'{BLOCKS}/attention/{{query,key,value}}', f'{THEIRS}.self_attention.in_proj'
    )
  ],
  merged(f'{BLOCKS}/attention/out', f'{THEIRS}.self_attention.out_proj'),
  norm(f'{BLOCKS}/norm2', f'{THEIRS}.ln_2'),
  dense(f'{BLOCKS}/mlp/up', f'{THEIRS}.mlp.0'),
  dense(f'{BLOCKS}/mlp/down', f'{THEIRS}.mlp.3'),
  norm('encoder/norm', 'encoder.ln'),
  dense('pre_logits', 'heads.pre_logits'),
  dense('head', 'heads.head'),
)


# Width, patch and image of the weights that images come to as large as the crop, by bicubic: SWAG
SWAG = {(768, 16, 384), (1024, 16, 512), (1280, 14, 518), (1280, 14, 224)}
SWAG_STEPS = centre(1.0, 'bicubic_antialias')
LARGE_STEPS = "resize_small(242, method='bilinear_antialias', rounding='down')"
PUBLISHED = r'vit_[blh]_\d+(_lc)?(_swag)?-[0-9a-f]{8}\.pth'


def published(ours: Arrays, file: str) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The steps of torchvision's own weights, by their size and the name of their file.

  Of 224 pixels there are two kinds of B/16 and L/16, which only the name tells apart.
  """
  kernel, table = ours['embed/kernel'], ours.get('positions')
  if table is None:
    return {}, ()
  side = math.isqrt(table.shape[1] - 1) * kernel.shape[0]
  kind = (kernel.shape[3], kernel.shape[0], side)
  if kind in SWAG or '_swag' in file:
    return {'steps': SWAG_STEPS}, ()
  notes: tuple[str, ...] = ()
  if kind in ((768, 16, 224), (1024, 16, 224)) and not re.fullmatch(PUBLISHED, file):
    notes = (f'preprocessing is taken for IMAGENET1K_V1; of SWAG weights it is {SWAG_STEPS!r}',)
  large = kind == (1024, 16, 224)
  return {'steps': f"{LARGE_STEPS} | central_crop(rounding='nearest')"} if large else {}, notes


FAMILIES = (
  Family(
    dialect='torchvision',
    model='ViT',
    signs=(r'conv_proj\.weight', r'encoder\.layers\.encoder_layer_0\.ln_1\.weight'),
    table=VIT,
    renames=((r'\.mlp\.linear_1\.', '.mlp.0.'), (r'\.mlp\.linear_2\.', '.mlp.3.')),
    details=always(activation='gelu_erf', norm_eps=1e-6),
    preprocess=always(  # of the files named V1: the shorter side to 8/7 of the size, its centre
      steps=centre(0.875, 'bilinear_antialias'), mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    published=published,
    resample='bicubic_align_corners',
  ),
)


def export_spec(source: Exportable) -> ExportSpec:
  """Square images and patches only: a side is one number there."""
  if not isinstance(source.model, vit.ViT):
    raise ValueError(f'torchvision has no {source.name} of our parameters')
  if source.preprocess.channels != 3:
    raise ValueError(
      f'torchvision has no way to say {quantity(source.preprocess.channels, "channel")}'
    )
  for part, sides in (('images', source.preprocess.size), ('patches', source.model.patch)):
    if sides[0] != sides[1]:
      raise ValueError(f'torchvision has no way to say {part} of {sides[0]}x{sides[1]} pixels')
  return ExportSpec(
    VIT,
    supported={'pool': ('token',), 'positions': ('learned', 'sincos2d'), 'final_norm': ('tokens',)},
    rewrites={
      'cls_position': True,
      'positions': 'learned',
      'embed_bias': True,
      'qkv_bias': 'qkv',
      'head_bias': 0.0,
    },
    reader_defaults={'activation': ('gelu_erf',), 'norm_eps': (1e-6,)},
  )
