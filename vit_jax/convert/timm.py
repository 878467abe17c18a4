"""timm's names (VisionTransformer, Eva, MlpMixer, ResNetV2), and what is close to them on disk:
Facebook's DeiT, DINOv2 and DINOv3, OpenAI's and open_clip's CLIP image towers.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.convert.engine import (
  CONV,
  HEADS_BIAS,
  HEADS_IN,
  HEADS_OUT,
  LINEAR,
  POINT,
  Arrays,
  Family,
  renamed,
  rows,
)

Lines = list[tuple[Any, ...]]


def dense(ours: str, theirs: str) -> Lines:
  return [(f'{ours}/kernel', f'{theirs}.weight', LINEAR), (f'{ours}/bias', f'{theirs}.bias')]


def norm(ours: str, theirs: str) -> Lines:
  return [(f'{ours}/scale', f'{theirs}.weight'), (f'{ours}/bias', f'{theirs}.bias')]


def projected(ours: str, theirs: str) -> Lines:
  """Queries, keys or values, or several of them in one array."""
  return [
    (f'{ours}/kernel', f'{theirs}.weight', HEADS_IN),
    (f'{ours}/bias', f'{theirs}.bias', HEADS_BIAS),
  ]


def merged(ours: str, theirs: str) -> Lines:
  """The projection after the heads."""
  return [(f'{ours}/kernel', f'{theirs}.weight', HEADS_OUT), (f'{ours}/bias', f'{theirs}.bias')]


def conv(ours: str, theirs: str) -> Lines:
  return [(f'{ours}/kernel', f'{theirs}.weight', CONV), (f'{ours}/bias', f'{theirs}.bias')]


BLOCKS, THEIRS = 'encoder/blocks', 'blocks.{i}'
SPINE: Lines = [
  ('cls', 'cls_token'),
  ('dist', 'dist_token'),
  ('registers', 'reg_token'),
  ('positions', 'pos_embed'),
  *conv('embed', 'patch_embed.proj'),
  *norm('pre_norm', 'norm_pre'),
  *norm(f'{BLOCKS}/norm1', f'{THEIRS}.norm1'),
  *norm(f'{BLOCKS}/attention/query_norm', f'{THEIRS}.attn.q_norm'),
  *norm(f'{BLOCKS}/attention/key_norm', f'{THEIRS}.attn.k_norm'),
  *merged(f'{BLOCKS}/attention/out', f'{THEIRS}.attn.proj'),
  *norm(f'{BLOCKS}/norm2', f'{THEIRS}.norm2'),
  *dense(f'{BLOCKS}/mlp/down', f'{THEIRS}.mlp.fc2'),
  *norm('encoder/norm', 'norm'),
  *norm('fc_norm', 'fc_norm'),
  ('pool/probe', 'attn_pool.latent'),
  *projected('pool/attention/query', 'attn_pool.q'),
  *projected('pool/attention/{key,value}', 'attn_pool.kv'),
  *merged('pool/attention/out', 'attn_pool.proj'),
  *norm('pool/norm', 'attn_pool.norm'),
  *dense('pool/mlp/up', 'attn_pool.mlp.fc1'),
  *dense('pool/mlp/down', 'attn_pool.mlp.fc2'),
  *dense('pre_logits', 'pre_logits.fc'),
  *dense('head', 'head'),
  *dense('head_dist', 'head_dist'),
]

BACKBONE = 'patch_embed.backbone'
STAGE, THEIR_STAGE = 'stage{s}/unit{u}', 'stages.{s0}.blocks.{u0}'


def stem(root: str) -> Lines:
  """A hybrid's ResNet; without stages timm names the root otherwise."""
  unit, theirs = f'stem/{STAGE}', f'{BACKBONE}.{THEIR_STAGE}'
  return [
    ('stem/root/conv/kernel', f'{root}.conv.weight', CONV),
    *norm('stem/root/norm', f'{root}.norm'),
    *(
      (f'{unit}/conv{n}/kernel', f'{theirs}.{name}.weight', CONV)
      for n, name in ((1, 'conv1'), (2, 'conv2'), (3, 'conv3'), ('_proj', 'downsample.conv'))
    ),
    *(
      line
      for n, name in ((1, 'norm1'), (2, 'norm2'), (3, 'norm3'), ('_proj', 'downsample.norm'))
      for line in norm(f'{unit}/norm{n}', f'{theirs}.{name}')
    ),
  ]


QKV = f'{BLOCKS}/attention/{{query,key,value}}'
VIT = rows(
  stem(f'{BACKBONE}.stem'),
  SPINE,
  projected(QKV, f'{THEIRS}.attn.qkv'),
  [(f'{BLOCKS}/scale{n}', f'{THEIRS}.ls{n}.gamma') for n in (1, 2)],
  dense(f'{BLOCKS}/mlp/up', f'{THEIRS}.mlp.fc1'),
  dense(f'{BLOCKS}/mlp/{{gate,up}}', f'{THEIRS}.mlp.w12'),
)
EVA = rows(
  SPINE,
  [
    (f'{QKV}/kernel', f'{THEIRS}.attn.qkv.weight', HEADS_IN),
    (f'{BLOCKS}/attention/query/bias', f'{THEIRS}.attn.q_bias', HEADS_BIAS),
    (f'{BLOCKS}/attention/value/bias', f'{THEIRS}.attn.v_bias', HEADS_BIAS),
    *((f'{BLOCKS}/scale{n}', f'{THEIRS}.gamma_{n}') for n in (1, 2)),
  ],
  dense(f'{BLOCKS}/mlp/up', f'{THEIRS}.mlp.fc1'),
  dense(f'{BLOCKS}/mlp/gate', f'{THEIRS}.mlp.fc1_g'),
)
MIXER = rows(
  conv('embed', 'stem.proj'),
  *(
    lines
    for ours, theirs in (('tokens', 'mlp_tokens'), ('channels', 'mlp_channels'))
    for lines in (
      dense(f'{BLOCKS}/{ours}/up', f'{THEIRS}.{theirs}.fc1'),
      dense(f'{BLOCKS}/{ours}/down', f'{THEIRS}.{theirs}.fc2'),
    )
  ),
  norm(f'{BLOCKS}/norm1', f'{THEIRS}.norm1'),
  norm(f'{BLOCKS}/norm2', f'{THEIRS}.norm2'),
  norm('encoder/norm', 'norm'),
  dense('head', 'head'),
)
BIT = rows(
  [('root/conv/kernel', 'stem.conv.weight', CONV)],
  [
    (f'{STAGE}/conv{n}/kernel', f'{THEIR_STAGE}.{name}.weight', CONV)
    for n, name in ((1, 'conv1'), (2, 'conv2'), (3, 'conv3'), ('_proj', 'downsample.conv'))
  ],
  *(norm(f'{STAGE}/norm{n}', f'{THEIR_STAGE}.norm{n}') for n in (1, 2, 3)),
  norm('norm', 'norm'),
  [('head/kernel', 'head.fc.weight', POINT), ('head/bias', 'head.fc.bias')],
)


def tidy(arrays: Arrays) -> Arrays:
  """Patch weights (D, pixels) as kernels; a gated MLP's joint array under a name of its own."""
  out: Arrays = {}
  for name, array in arrays.items():
    if name == 'patch_embed.proj.weight' and array.ndim == 2:
      side = round((array.shape[1] / 3) ** 0.5)
      array = array.reshape(array.shape[0], 3, side, side)
    out[re.sub(r'(blocks\.\d+\.mlp)\.fc1\.', gated(arrays), name)] = array
  return out


def gated(arrays: Arrays) -> Callable[[re.Match[str]], str]:
  """What stands for 'blocks.0.mlp.fc1.': it holds two layers where the next reads half its rows."""

  def name(match: re.Match[str]) -> str:
    up, down = arrays.get(f'{match[1]}.fc1.weight'), arrays.get(f'{match[1]}.fc2.weight')
    if up is None or down is None or not up.ndim == down.ndim == 2:
      return match[0]
    joint = up.shape[0] == 2 * down.shape[1]
    return f'{match[1]}.{"w12" if joint else "fc1"}.'

  return name


def openai(arrays: Arrays) -> Arrays:
  """OpenAI's and open_clip's image tower in timm's names."""
  renames = (
    (r'^class_embedding$', 'cls_token'),
    (r'^positional_embedding$', 'pos_embed'),
    (r'^conv1\.', 'patch_embed.proj.'),
    (r'^ln_pre\.', 'norm_pre.'),
    (r'^ln_post\.', 'norm.'),
    (r'^transformer\.resblocks\.', 'blocks.'),
    (r'\.ln_([12])\.', r'.norm\1.'),
    (r'\.attn\.in_proj_(weight|bias)$', r'.attn.qkv.\1'),
    (r'\.attn\.out_proj\.', '.attn.proj.'),
    (r'\.mlp\.c_fc\.', '.mlp.fc1.'),
    (r'\.mlp\.c_proj\.', '.mlp.fc2.'),
    (r'^proj$', 'head.weight'),
  )
  out = renamed(arrays, renames)
  for name, form in (('cls_token', (1, 1, -1)), ('pos_embed', (1, *out['pos_embed'].shape))):
    out[name] = out[name].reshape(form)
  if 'head.weight' in out:
    out['head.weight'] = out['head.weight'].T
  return out


def dinov3(arrays: Arrays) -> Arrays:
  """Facebook's DINOv3 in timm's names: the bias of the keys is masked there, so it goes."""
  out: Arrays = {}
  for name, array in arrays.items():
    if name.endswith('.attn.qkv.bias'):
      query, _, value = np.split(array, 3)
      out |= {name.replace('qkv.bias', 'q_bias'): query, name.replace('qkv.bias', 'v_bias'): value}
    else:
      out[name] = array
  return out


def details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """A VisionTransformer's fields, from timm's config.json where there is one."""
  args = config.get('model_args', {})
  name = str(config.get('architecture', ''))
  fields: dict[str, Any] = {
    'activation': 'quick_gelu' if 'quickgelu' in name else 'gelu_erf',
    'norm_eps': 1e-5 if 'pre_norm/scale' in ours else 1e-6,
    'stem_numerics': 'timm',
  }
  if args.get('act_layer') or re.search(TANH, name):
    fields['activation'] = ACTIVATIONS[args.get('act_layer', 'gelu_tanh')]
  pool = args.get('global_pool', config.get('global_pool'))
  if pool is not None:
    fields['pool'] = POOLS[pool]
  elif 'pool/probe' not in ours and 'fc_norm/scale' in ours:
    fields['pool'] = 'gap'
  if 'num_heads' in args:
    fields['heads'] = args['num_heads']
  return fields


def openai_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """OpenAI's weights take quick GELU; open_clip's own do where its config says so."""
  quick = config.get('model_cfg', {}).get('quick_gelu', not config.get('model_cfg'))
  return {'activation': 'quick_gelu' if quick else 'gelu_erf', 'norm_eps': 1e-5}


def eva_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  fields = details(theirs, ours, config) | {'norm_eps': 1e-5, 'positions': 'rope'}
  return {'pool': 'gap'} | fields


def mixer_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  return {'activation': 'gelu_erf', 'norm_eps': 1e-6}


def bit_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  return {'numerics': 'timm'}


# The architectures whose code in timm takes the tanh form of GELU.
TANH = r'base_patch32_siglip|(so400m|giantopt)_patch16_siglip|large_patch16_siglip(_gap)?_512'
ACTIVATIONS = {
  'gelu': 'gelu_erf',
  'gelu_tanh': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
  'silu': 'gelu_erf',  # of a gated MLP, which takes SiLU whatever this says
}
POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map', '': 'none'}


def preprocess(config: dict[str, Any]) -> dict[str, Any]:
  """From `pretrained_cfg`: the shorter side resized, then the centre; or squashed."""
  given = config.get('pretrained_cfg')
  if not given:
    return {'share': 0.9, 'method': 'bicubic_antialias'}
  height, width = given['input_size'][1:]
  share = given.get('crop_pct', 0.875)
  methods = {'bicubic': 'bicubic_antialias', 'bilinear': 'bilinear_antialias'}
  method = methods[given.get('interpolation', 'bicubic')]
  found = {'size': (height, width), 'mean': tuple(given['mean']), 'std': tuple(given['std'])}
  if given.get('crop_mode') == 'squash':
    sides = [math.floor(side / share) for side in (height, width)]
    steps = f"resize({sides[0]}, {sides[1]}, method='{method}') | central_crop"
    return found | {'steps': steps}
  return found | {'share': share, 'method': method}


WRAPPERS = (
  'state_dict_ema.',
  'state_dict.',
  'model_ema.',
  'model.',
  'module.',
  'teacher.',
  'backbone.',
  'visual.trunk.',
  'visual.',
  'encoder.',
  'vision_encoder.',
)
DROPS = (
  r'pre_logits\..*',
  r'(.*\.)?mask_token',
  r'decoder.*',
  r'.*\.(relative_position_index|attn_mask)',
)
RENAMES = (
  (r'^register_tokens$', 'reg_token'),
  (r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma'),
  (r'^(blocks\.\d+\.mlp)\.w3\.', r'\1.fc2.'),
  (r'^(patch_embed\.backbone)\.(conv|norm)\.', r'\1.stem.\2.'),
)
PATCHES = r'patch_embed\.proj\.weight'
FAMILIES = (
  Family(
    dialect='timm',
    model='ViT',
    signs=(PATCHES, r'storage_tokens', r'blocks\.0\.norm1\.weight'),
    table=EVA,
    tidy=dinov3,
    renames=(
      (r'^storage_tokens$', 'reg_token'),
      (r'^(blocks\.\d+)\.ls([12])\.gamma$', r'\1.gamma_\2'),
      (r'^(blocks\.\d+\.mlp)\.w1\.', r'\1.fc1_g.'),
      (r'^(blocks\.\d+\.mlp)\.w2\.', r'\1.fc1_x.'),
      (r'^(blocks\.\d+\.mlp)\.w3\.', r'\1.fc2.'),
      (r'\.fc1_x\.', '.fc1.'),
    ),
    details=eva_details,
    preprocess=preprocess,
    drops=(*DROPS, r'rope_embed\..*', r'.*\.bias_mask', r'local_cls_norm\..*'),
  ),
  Family(
    dialect='timm',
    model='ViT',
    signs=(PATCHES, r'blocks\.0\.gamma_1', r'!pos_embed'),
    table=EVA,
    renames=((r'\.fc1_x\.', '.fc1.'),),
    details=eva_details,
    preprocess=preprocess,
    drops=(*DROPS, r'rope\..*'),
  ),
  Family(
    dialect='timm',
    model='ViT',
    signs=(PATCHES, r'blocks\.0\.norm1\.weight'),
    table=VIT,
    tidy=tidy,
    renames=RENAMES,
    details=details,
    preprocess=preprocess,
    drops=DROPS,
  ),
  Family(
    dialect='timm',
    model='ViT',
    signs=(r'conv1\.weight', r'class_embedding', r'transformer\.resblocks\.0\.ln_1\.weight'),
    table=VIT,
    tidy=openai,
    details=openai_details,
    preprocess=preprocess,
  ),
  Family(
    dialect='timm',
    model='Mixer',
    signs=(r'stem\.proj\.weight', r'blocks\.0\.mlp_tokens\.fc1\.weight'),
    table=MIXER,
    details=mixer_details,
    preprocess=preprocess,
  ),
  Family(
    dialect='timm',
    model='BiT',
    signs=(r'stem\.conv\.weight', r'stages\.0\.blocks\.0\.conv1\.weight'),
    table=BIT,
    details=bit_details,
    preprocess=preprocess,
  ),
)
