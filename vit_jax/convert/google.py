"""Google's names: the .npz files of vision_transformer, big_vision, MLP-Mixer and BiT.

The published ViT and hybrid files number all parts of a block by one counter (`MlpBlock_3`), later
Flax by one per class (`MlpBlock_0`): both are read. vision_transformer keeps the positions, with a
row for the class token, inside the encoder; big_vision keeps them at the top, without that row.
"""

import re
from typing import Any

from vit_jax.convert.engine import (
  POINT_HWIO,
  VECTOR,
  Arrays,
  Exportable,
  ExportSpec,
  Family,
  always,
  rows,
)
from vit_jax.models import mixer, resnet, vit

WRAPPERS = ('opt/target/', 'params/img/', 'params/', 'img/')


def block(norm2: str, attention: str, mlp: str) -> list[tuple[str, str]]:
  """The rows of an encoder block, whose parts a spelling numbers so."""
  theirs, ours = 'Transformer/encoderblock_{i}', 'encoder/blocks'
  return [
    *both(f'{ours}/norm1', f'{theirs}/LayerNorm_0', 'scale', 'bias'),
    *multihead(f'{ours}/attention', f'{theirs}/{attention}'),
    *both(f'{ours}/norm2', f'{theirs}/{norm2}', 'scale', 'bias'),
    *both(f'{ours}/mlp/up', f'{theirs}/{mlp}/Dense_0', 'kernel', 'bias'),
    *both(f'{ours}/mlp/down', f'{theirs}/{mlp}/Dense_1', 'kernel', 'bias'),
  ]


def both(ours: str, theirs: str, *leaves: str) -> list[tuple[str, str]]:
  return [(f'{ours}/{leaf}', f'{theirs}/{leaf}') for leaf in leaves]


def multihead(ours: str, theirs: str) -> list[tuple[str, str]]:
  parts = ('query', 'key', 'value', 'out')
  return [row for part in parts for row in both(f'{ours}/{part}', f'{theirs}/{part}', *KERNEL)]


KERNEL, NORM = ('kernel', 'bias'), ('scale', 'bias')
MAP = 'MAPHead_0'

STEM = [
  ('stem/root/conv/kernel', 'conv_root/kernel'),
  *((f'stem/root/norm/{leaf}', f'gn_root/{leaf}', VECTOR) for leaf in NORM),
  *(
    (f'stem/stage{{s}}/unit{{u}}/conv{n}/kernel', f'block{{s}}/unit{{u}}/conv{n}/kernel')
    for n in ('1', '2', '3', '_proj')
  ),
  *(
    (f'stem/stage{{s}}/unit{{u}}/norm{n}/{leaf}', f'block{{s}}/unit{{u}}/gn{n}/{leaf}', VECTOR)
    for n in ('1', '2', '3', '_proj')
    for leaf in NORM
  ),
]
TAIL = [
  *both('encoder/norm', 'Transformer/encoder_norm', *NORM),
  ('pool/probe', f'{MAP}/probe'),
  *multihead('pool/attention', f'{MAP}/MultiHeadDotProductAttention_0'),
  *both('pool/norm', f'{MAP}/LayerNorm_0', *NORM),
  *both('pool/mlp/up', f'{MAP}/MlpBlock_0/Dense_0', *KERNEL),
  *both('pool/mlp/down', f'{MAP}/MlpBlock_0/Dense_1', *KERNEL),
  *both('pre_logits', 'pre_logits', *KERNEL),
  *both('head', 'head', *KERNEL),
]
PATCHES = [*both('embed', 'embedding', *KERNEL), ('cls', 'cls')]

GOOGLE = rows(
  STEM,
  PATCHES,
  [('positions', 'Transformer/posembed_input/pos_embedding')],
  block('LayerNorm_2', 'MultiHeadDotProductAttention_1', 'MlpBlock_3'),
  TAIL,
)
BIG_VISION = rows(
  PATCHES,
  [('positions', 'pos_embedding')],
  block('LayerNorm_1', 'MultiHeadDotProductAttention_0', 'MlpBlock_0'),
  TAIL,
)

MIXER = rows(
  both('embed', 'stem', *KERNEL),
  *(
    both(f'encoder/blocks/{ours}', f'MixerBlock_{{i}}/{theirs}', *leaves)
    for ours, theirs, leaves in (
      ('norm1', 'LayerNorm_0', NORM),
      ('tokens/up', 'token_mixing/Dense_0', KERNEL),
      ('tokens/down', 'token_mixing/Dense_1', KERNEL),
      ('norm2', 'LayerNorm_1', NORM),
      ('channels/up', 'channel_mixing/Dense_0', KERNEL),
      ('channels/down', 'channel_mixing/Dense_1', KERNEL),
    )
  ),
  both('encoder/norm', 'pre_head_layer_norm', *NORM),
  both('head', 'head', *KERNEL),
)

CONV = 'standardized_conv2d/kernel'
UNIT, THEIR_UNIT = 'stage{s}/unit{u}', 'resnet/block{s}/unit{u:02d}'
BIT = rows(
  [('root/conv/kernel', f'resnet/root_block/{CONV}')],
  *(
    [
      (f'{UNIT}/norm{n}/scale', f'{THEIR_UNIT}/{part}/group_norm/gamma', VECTOR),
      (f'{UNIT}/norm{n}/bias', f'{THEIR_UNIT}/{part}/group_norm/beta', VECTOR),
      (f'{UNIT}/conv{n}/kernel', f'{THEIR_UNIT}/{part}/{CONV}'),
    ]
    for n, part in ((1, 'a'), (2, 'b'), (3, 'c'))
  ),
  [
    (f'{UNIT}/conv_proj/kernel', f'{THEIR_UNIT}/a/proj/{CONV}'),
    ('norm/scale', 'resnet/group_norm/gamma', VECTOR),
    ('norm/bias', 'resnet/group_norm/beta', VECTOR),
    ('head/kernel', 'resnet/head/conv2d/kernel', POINT_HWIO),
    ('head/bias', 'resnet/head/conv2d/bias'),
  ],
)

BIG_VISION_UNIT = 'block{s}/unit{u:02d}'
BIG_VISION_BIT = rows(
  [('root/conv/kernel', 'root_block/conv_root/kernel')],
  *(
    [
      (f'{UNIT}/norm{n}/scale', f'{BIG_VISION_UNIT}/gn{n}/scale', VECTOR),
      (f'{UNIT}/norm{n}/bias', f'{BIG_VISION_UNIT}/gn{n}/bias', VECTOR),
      (f'{UNIT}/conv{n}/kernel', f'{BIG_VISION_UNIT}/conv{n}/kernel'),
    ]
    for n in (1, 2, 3)
  ),
  [
    (f'{UNIT}/conv_proj/kernel', f'{BIG_VISION_UNIT}/conv_proj/kernel'),
    *((f'norm/{leaf}', f'norm-pre-head/{leaf}', VECTOR) for leaf in NORM),
  ],
  both('head', 'head', *KERNEL),
)

BLOCK = r'^(Transformer/encoderblock_\d+/)'
OLD_TO_NEW = (
  (BLOCK + 'LayerNorm_2', r'\1LayerNorm_1'),
  (BLOCK + 'MultiHeadDotProductAttention_1', r'\1MultiHeadDotProductAttention_0'),
  (BLOCK + 'MlpBlock_3', r'\1MlpBlock_0'),
)
NEW_TO_OLD = (
  (BLOCK + 'LayerNorm_1', r'\1LayerNorm_2'),
  (BLOCK + 'MultiHeadDotProductAttention_0', r'\1MultiHeadDotProductAttention_1'),
  (BLOCK + 'MlpBlock_0', r'\1MlpBlock_3'),
)


def unstacked(arrays: Arrays) -> Arrays:
  """The arrays with stacked `encoderblock/` ones as views `encoderblock_{i}/` of their layers."""
  out: Arrays = {}
  for name, array in arrays.items():
    if match := re.match(r'(Transformer/encoderblock)(/.*)', name):
      if not array.ndim:
        raise ValueError(f'{name} has shape {array.shape}, without layers')
      out |= {f'{match[1]}_{i}{match[2]}': layer for i, layer in enumerate(array)}
    else:
      out[name] = array
  return out


def details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """A ViT's fields that its arrays do not show: no table of positions means sines and cosines."""
  kind = 'learned' if 'positions' in ours else 'sincos2d'
  return {'activation': 'gelu_tanh', 'norm_eps': 1e-6, 'positions': kind}


def resample_of(config: dict[str, Any], file: str) -> str:
  """FlexiViT (arXiv 2212.08013) resizes its positions by `jax.image.resize`: for files named so."""
  return 'bilinear_antialias' if 'flexi' in file.lower() else ''


DROPS = (r'txt/.*', r't', r'b', r'opt/.*', r'.*mask_token')
COMMON: dict[str, Any] = dict(
  resample='bilinear_align_corners',
  drops=DROPS,
  preprocess=always(steps='resize'),  # squashed, bilinear without antialiasing, to [-1, 1]
  separator='/',
)
FAMILIES = (
  Family(
    dialect='google',
    model='ViT',
    signs=('embedding/kernel', r'Transformer/posembed_input/pos_embedding'),
    table=GOOGLE,
    tidy=unstacked,
    renames=NEW_TO_OLD,
    details=details,
    **COMMON,
  ),
  Family(
    dialect='bigvision',
    model='ViT',
    signs=('embedding/kernel', r'Transformer/encoderblock(_0)?/LayerNorm_0/scale'),
    table=BIG_VISION,
    tidy=unstacked,
    resample_of=resample_of,
    renames=(
      (r'^Transformer/pos_embedding$', 'pos_embedding'),
      (r'^probe$', f'{MAP}/probe'),
      *OLD_TO_NEW,
    ),
    details=details,
    **COMMON,
  ),
  Family(
    dialect='google',
    model='Mixer',
    signs=('stem/kernel', r'MixerBlock_0/.*'),
    table=MIXER,
    details=always(activation='gelu_tanh', norm_eps=1e-6),
    **COMMON,
  ),
  Family(
    dialect='google',
    model='BiT',
    signs=(r'resnet/root_block/standardized_conv2d(_\d+)?/kernel',),
    table=BIT,
    renames=((r'/standardized_conv2d_\d+/', '/standardized_conv2d/'),),
    details=always(numerics='bit'),
    **COMMON,
  ),
  Family(
    dialect='bigvision',
    model='BiT',
    signs=('root_block/conv_root/kernel', r'block1/unit01/gn1/scale'),
    table=BIG_VISION_BIT,
    details=always(numerics='bit'),
    **COMMON,
  ),
)


def export_spec(source: Exportable) -> ExportSpec:
  """vision_transformer's names; big_vision has the same for Mixers, and reads these for BiT."""
  if isinstance(source.model, mixer.Mixer):
    return ExportSpec(MIXER, rewrites={'head_bias': 0.0}, reader_defaults=READER_DEFAULTS)
  if isinstance(source.model, resnet.ResNet):
    return ExportSpec(BIT, rewrites={'head_bias': 0.0}, reader_defaults={'numerics': ('bit',)})
  return ExportSpec(
    GOOGLE, SUPPORTED, REWRITES | {'cls_position': True, 'positions': 'learned'}, READER_DEFAULTS
  )


def big_vision_export_spec(source: Exportable) -> ExportSpec:
  """big_vision's names: sines and cosines need no table, the class token no position."""
  if not isinstance(source.model, vit.ViT):
    return export_spec(source)
  rewrites = REWRITES | {'cls_position': False, 'positions': source.model.positions}
  return ExportSpec(BIG_VISION, SUPPORTED, rewrites, READER_DEFAULTS)


READER_DEFAULTS: dict[str, Any] = {
  'activation': ('gelu_tanh',),
  'norm_eps': (1e-6,),
  'stem_numerics': ('google',),
}
SUPPORTED: dict[str, Any] = {
  'pool': ('token', 'gap', 'map'),
  'positions': ('learned', 'sincos2d'),
  'final_norm': ('tokens',),
}
REWRITES: dict[str, Any] = {'embed_bias': True, 'qkv_bias': 'qkv', 'head_bias': 0.0}
