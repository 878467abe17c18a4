"""torchvision's names of its `vit_*` models."""

from vit_jax.convert.engine import Exportable, ExportSpec, Family, always, rows
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
    resample='bicubic_align_corners',
  ),
)


def export_spec(source: Exportable) -> ExportSpec:
  """Square images and patches only: a side is one number there."""
  if not isinstance(source.model, vit.ViT):
    raise ValueError(f'torchvision has no {source.name} of our parameters')
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
