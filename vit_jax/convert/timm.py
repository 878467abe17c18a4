"""timm's names (VisionTransformer, Eva, MlpMixer, ResNetV2), and what is close to them on disk:
Facebook's DeiT, DINOv2 and DINOv3, OpenAI's and open_clip's CLIP image towers.
"""

import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.convert import kinds, timm_names
from vit_jax.convert.engine import (
  CONV,
  HEADS_BIAS,
  HEADS_IN,
  HEADS_OUT,
  LINEAR,
  POINT,
  Arrays,
  Declared,
  Exportable,
  ExportSpec,
  Family,
  Line,
  channels,
  renamed,
  rows,
)
from vit_jax.convert.preprocess import Resizing, format_steps, parse_steps
from vit_jax.models import mixer, resnet, vit

Lines = list[Line]


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


LONGEST = 512  # patches on a side of a grid: 8,192 pixels by 16
BLOCKS, THEIRS = 'encoder/blocks', 'blocks.{i}'
SPINE: Lines = [
  ('cls', 'cls_token'),
  ('dist', 'dist_token'),
  ('registers', 'reg_token'),
  ('positions', 'pos_embed'),
  *conv('embed', 'patch_embed.proj'),
  *norm('embed_norm', 'patch_embed.norm'),
  *norm('pre_norm', 'norm_pre'),
  *norm(f'{BLOCKS}/norm1', f'{THEIRS}.norm1'),
  *norm(f'{BLOCKS}/attention/query_norm', f'{THEIRS}.attn.q_norm'),
  *norm(f'{BLOCKS}/attention/key_norm', f'{THEIRS}.attn.k_norm'),
  *merged(f'{BLOCKS}/attention/out', f'{THEIRS}.attn.proj'),
  *norm(f'{BLOCKS}/attention/norm', f'{THEIRS}.attn.norm'),
  *norm(f'{BLOCKS}/norm2', f'{THEIRS}.norm2'),
  *norm(f'{BLOCKS}/mlp/norm', f'{THEIRS}.mlp.norm'),
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


def convs(ours: str, theirs: str) -> Lines:
  """The kernels of a ResNet's unit."""
  names = {1: 'conv1', 2: 'conv2', 3: 'conv3', '_proj': 'downsample.conv'}
  return [(f'{ours}/conv{n}/kernel', f'{theirs}.{conv}.weight', CONV) for n, conv in names.items()]


def stem() -> Lines:
  """A hybrid's ResNet."""
  unit, theirs = f'stem/{STAGE}', f'{BACKBONE}.{THEIR_STAGE}'
  return [
    ('stem/root/conv/kernel', f'{BACKBONE}.stem.conv.weight', CONV),
    *norm('stem/root/norm', f'{BACKBONE}.stem.norm'),
    *convs(unit, theirs),
    *(line for n in (1, 2, 3) for line in norm(f'{unit}/norm{n}', f'{theirs}.norm{n}')),
    *norm(f'{unit}/norm_proj', f'{theirs}.downsample.norm'),
  ]


QKV = f'{BLOCKS}/attention/{{query,key,value}}'
BIASES: Lines = [
  (f'{BLOCKS}/attention/{part}/bias', f'{THEIRS}.attn.{part[0]}_bias', HEADS_BIAS)
  for part in ('query', 'value')
]
APART = [  # queries, keys and values in arrays of their own
  line
  for part in ('query', 'key', 'value')
  for line in projected(f'{BLOCKS}/attention/{part}', f'{THEIRS}.attn.{part[0]}_proj')
]
GATE = [
  *dense(f'{BLOCKS}/mlp/up', f'{THEIRS}.mlp.fc1'),
  *dense(f'{BLOCKS}/mlp/gate', f'{THEIRS}.mlp.fc1_g'),
]
RELATIVE = [  # BEiT's; VisionTransformerRelPos's
  (f'{BLOCKS}/attention/relative/table', f'{THEIRS}.attn.relative_position_bias_table'),
  *dense(f'{BLOCKS}/attention/relative/up', f'{THEIRS}.attn.mlp.fc1'),
  *dense(f'{BLOCKS}/attention/relative/down', f'{THEIRS}.attn.mlp.fc2'),
]
VIT = rows(
  stem(),
  SPINE,
  projected(QKV, f'{THEIRS}.attn.qkv'),
  [(f'{BLOCKS}/scale{n}', f'{THEIRS}.ls{n}.gamma') for n in (1, 2)],
  GATE,
  dense(f'{BLOCKS}/mlp/{{gate,up}}', f'{THEIRS}.mlp.w12'),
  BIASES,
  APART,
  RELATIVE,
)
EVA = rows(
  SPINE,
  [
    (f'{QKV}/kernel', f'{THEIRS}.attn.qkv.weight', HEADS_IN),
    *BIASES,
    *((f'{BLOCKS}/scale{n}', f'{THEIRS}.gamma_{n}') for n in (1, 2)),
  ],
  [(f'{QKV}/bias', f'{THEIRS}.attn.qkv.bias', HEADS_BIAS)],
  GATE,
  APART,
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
  convs(STAGE, THEIR_STAGE),
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
  return with_relative_positions(with_scales(with_heads(out)))


def tidy_eva(arrays: Arrays) -> Arrays:
  """The same with the two layers of a gated MLP's joint array apart, as Eva mostly has them."""
  out: Arrays = {}
  for name, array in tidy(arrays).items():
    if '.mlp.w12.' in name:
      gate, up = np.split(array, 2)
      out |= {name.replace('w12', 'fc1_g'): gate, name.replace('w12', 'fc1'): up}
    else:
      out[name] = array
  return out


def tidy_naflex(arrays: Arrays) -> Arrays:
  """A NaFlexVit's arrays as a VisionTransformer's: patches as kernels, positions as one table."""
  out: Arrays = {}
  for name, array in arrays.items():
    name = re.sub(r'^embeds\.(?=(proj|norm)\.)', 'patch_embed.', name).removeprefix('embeds.')
    if name == 'patch_embed.proj.weight' and array.ndim == 2:
      array = kernel_of_pixels(array)
    if name == 'pos_embed' and array.ndim == 4:
      array = array.reshape(1, -1, array.shape[-1])  # (1, T, D)
    out[name] = array
  rows, columns = out.get('pos_embed_y'), out.get('pos_embed_x')
  if rows is not None and columns is not None and are_factors(rows, columns):
    del out['pos_embed_y'], out['pos_embed_x']
    grid = rows[:, :, None] + columns[:, None]  # (1, R, C, D)
    out['pos_embed'] = grid.reshape(1, -1, grid.shape[-1])
  return out


def are_factors(rows: np.ndarray, columns: np.ndarray) -> bool:
  """Whether arrays are a table for rows (1, R, D) and one for columns (1, C, D) of a grid.

  One for more than LONGEST is refused: the grid would fill the memory.
  """
  if not rows.ndim == columns.ndim == 3 or rows.shape[::2] != columns.shape[::2]:
    return False
  if (longest := max(rows.shape[1], columns.shape[1])) > LONGEST:
    raise ValueError(f'embeds.pos_embed_y and _x are of {longest:,} cells, more than {LONGEST}')
  return True


def kernel_of_pixels(matrix: np.ndarray) -> np.ndarray:
  """Weights (D, P * P * C) of square patches, the channels last, as a kernel (D, C, P, P).

  Images have 3 channels where that leaves a square, otherwise 1.
  """
  pixels = matrix.shape[1]
  for count in (3, 1):
    side = math.isqrt(pixels // count)
    if pixels == count * side**2:
      return matrix.reshape(-1, side, side, count).transpose(0, 3, 1, 2)
  raise ValueError(f'embeds.proj.weight has shape {matrix.shape}, of no square patches')


def with_heads(arrays: Arrays) -> Arrays:
  """Keys and values with a head for each query's: those of a group are equal, as grouped queries
  (arXiv 2305.13245) read them.
  """
  out = dict(arrays)
  for name, queries in arrays.items():
    if not (match := re.fullmatch(r'(blocks\.\d+\.attn\.)q_proj\.(weight|bias)', name)):
      continue
    width = arrays.get(f'{match[1]}q_norm.weight', queries).shape[0]  # of a head
    for part in ('k', 'v'):
      array = arrays.get(f'{match[1]}{part}_proj.{match[2]}', queries)
      if len(array) != len(queries) and array.size and len(array) % width == 0:
        heads = array.reshape(-1, width, *array.shape[1:])
        groups = np.repeat(heads, len(queries) // len(array), axis=0)
        out[f'{match[1]}{part}_proj.{match[2]}'] = groups.reshape(-1, *array.shape[1:])
  return out


def with_scales(arrays: Arrays) -> Arrays:
  """Ones for the layer scale of MLPs where only attention has one, as in Sapiens2.

  Its queries are apart from the keys, and normalised: elsewhere an array that is not in the file is
  missed.
  """
  match = re.compile(r'(blocks\.\d+\.)gamma_1')
  blocks = [block[1] for name in arrays if (block := match.fullmatch(name))]
  signs = ('attn.q_proj.weight', 'attn.q_norm.weight')
  if any(f'{block}gamma_2' in arrays for block in blocks) or not all(
    f'{block}{sign}' in arrays for block in blocks for sign in signs
  ):
    return arrays
  return arrays | {f'{block}gamma_2': np.ones_like(arrays[f'{block}gamma_1']) for block in blocks}


def with_relative_positions(arrays: Arrays) -> Arrays:
  """Relative positions in every layer's attention, where all layers share them.

  A table of all and one of each, of which BEiT adds up what it reads, are their sum.
  """
  shared = re.compile(r'(?:rel_pos_bias|shared_rel_pos)\.(.+)')
  layers = {match[0] for name in arrays if (match := re.match(r'blocks\.\d+\.', name))}
  out = {
    re.sub(r'(blocks\.\d+\.attn\.)rel_pos\.', r'\1', name): array
    for name, array in arrays.items()
    if not shared.fullmatch(name)
  }
  for name, array in arrays.items():
    if match := shared.fullmatch(name):
      for layer in layers:
        single = out.get(f'{layer}attn.{match[1]}')
        both = array if single is None or single.shape != array.shape else single + array
        out[f'{layer}attn.{match[1]}'] = both
  return out


def tidy_parallel(arrays: Arrays) -> Arrays:
  """A ParallelScalingBlock's arrays under the names of a Block's.

  What attention and MLP share, a norm and a layer scale, each of them gets.
  """
  out: Arrays = {}
  for name, array in arrays.items():
    match = re.fullmatch(r'(blocks\.\d+\.)(in_norm|in_proj|ls)\.(\w+)', name)
    if match is None:
      out[name] = array
    elif match[2] == 'in_proj':
      hidden = len(array) - 3 * len(arrays.get(f'{match[1]}in_norm.weight', array))
      mlp, qkv = np.split(array, [max(hidden, 0)])
      out |= {f'{match[1]}mlp.fc1.{match[3]}': mlp, f'{match[1]}attn.qkv.{match[3]}': qkv}
    else:
      part = match[2].removeprefix('in_')
      out |= {f'{match[1]}{part}{n}.{match[3]}': array for n in (1, 2)}
  return tidy(renamed(out, PARALLEL_RENAMES))


PARALLEL_RENAMES = (
  (r'^(blocks\.\d+)\.([qk]_norm)\.', r'\1.attn.\2.'),
  (r'^(blocks\.\d+)\.attn_out_proj\.', r'\1.attn.proj.'),
  (r'^(blocks\.\d+)\.mlp_out_proj\.', r'\1.mlp.fc2.'),
  (r'^(blocks\.\d+)\.mlp_bias$', r'\1.mlp.fc1.bias'),
)


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
  out['cls_token'] = out['cls_token'].reshape(1, 1, -1)
  if 'pos_embed' in out:
    out['pos_embed'] = out['pos_embed'][None]
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


def named(config: dict[str, Any]) -> str:
  """The architecture of timm's that a configuration names, timm's or open_clip's; '' of none."""
  tower = config.get('model_cfg', {}).get('vision_cfg', {})
  return str(config.get('architecture', tower.get('timm_model_name', '')))


def constructor(
  config: dict[str, Any], default: str = 'VisionTransformer'
) -> timm_names.Call | None:
  """The call of timm's that a configuration describes, checked; see `timm_names.called`."""
  pool = config.get('model_cfg', {}).get('vision_cfg', {}).get('timm_pool')
  if pool is not None:  # open_clip's argument for timm
    config = config | {'model_args': {'global_pool': pool}}
  described = timm_names.called(config, named(config), default)
  if described is not None:
    timm_names.check(described)
  return described


def details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields by the configuration; for lone arrays the usual ones of a VisionTransformer."""
  if (described := constructor(config)) is not None:
    return timm_names.fields(described)
  if f'{BLOCKS}/attention/relative/up/kernel' in ours and f'{BLOCKS}/scale1' not in ours:
    raise ValueError(
      'arrays with relative positions by an MLP and without layer scale do not show whether norms '
      "come before attention or after: keep timm's config.json beside them"
    )
  fields: dict[str, Any] = {
    'activation': 'gelu_erf',
    'norm_eps': 1e-5 if 'pre_norm/scale' in ours else 1e-6,
    'stem_numerics': 'timm',
  }
  if 'pool/probe' not in ours and 'fc_norm/scale' in ours:
    fields['pool'] = 'gap'
  return fields


def parallel_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  return details(theirs, ours, config) | {'parallel': True}


def naflex_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields by the configuration; for lone arrays the usual ones of a NaFlexVit."""
  usual = {'activation': 'gelu_erf', 'norm_eps': 1e-6, 'stem_numerics': 'timm'}
  described = constructor(config, 'NaFlexVit')
  if described is None:
    return usual | ({'pool_prefix': False} if 'pool/probe' in ours else {})
  if described.constructor != 'NaFlexVit':
    raise ValueError(
      f'config.json: architecture {described.architecture} is a {described.constructor}, but the '
      'arrays are of a NaFlexVit'
    )
  return timm_names.fields(described)


def eva_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields by the configuration; for lone arrays DINOv3's."""
  usual = {'activation': 'gelu_erf', 'norm_eps': 1e-5, 'positions': 'rope', 'pool': 'gap'}
  described = constructor(config, 'Eva')
  return usual | {'stem_numerics': 'timm'} if described is None else timm_names.fields(described)


def mixer_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  described = constructor(config, 'MlpMixer')
  usual = {'activation': 'gelu_erf', 'norm_eps': 1e-6}
  return usual if described is None else timm_names.fields(described)


def bit_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  constructor(config, 'ResNetV2')
  return {'numerics': 'timm'}


def declared(config: dict[str, Any]) -> Declared:
  """What config.json says of the arrays' shapes."""
  described = constructor(config)
  values = {} if described is None else timm_names.declared(described)
  args, weights = config.get('model_args', {}), timm_names.pretrained(config)
  headless = 'TimmWrapperModel' in config.get('architectures', ())  # saved through transformers
  for where, source in (('model_args.', args), ('', config), ('pretrained_cfg.', weights)):
    if 'num_classes' in source and not headless:
      values.setdefault('num_classes', (f'config.json: {where}num_classes', source['num_classes']))
  if described is not None and described.constructor == 'NaFlexVit':
    values['size'] = timm_names.table_size(described)
  elif 'img_size' in args:
    values['size'] = ('config.json: img_size', sides(args['img_size']))
  return values


def sides(size: int | Sequence[int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else (size[0], size[-1])


def openai_declared(config: dict[str, Any]) -> Declared:
  """What open_clip_config.json says of the arrays' shapes."""
  tower = config.get('model_cfg', {}).get('vision_cfg', {})
  keys = {'width': 'width', 'depth': 'layers'}
  values = {
    ours: (f'open_clip_config.json: {key}', tower[key])
    for ours, key in keys.items()
    if key in tower
  }
  if 'width' in tower:
    heads = tower['width'] // tower.get('head_width', 64)
    values['heads'] = ('open_clip_config.json: width / head_width', max(heads, 1))
  if 'image_size' in tower:
    values['size'] = ('open_clip_config.json: image_size', sides(tower['image_size']))
  return values


def openai_details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """OpenAI's weights take quick GELU; open_clip's own do where its config says so."""
  if 'model_cfg' not in config:
    return {'activation': 'quick_gelu', 'norm_eps': 1e-5}
  model = config['model_cfg']
  tower = model.get('vision_cfg', {})
  other = [key for key in OPEN_CLIP_OTHER if tower.get(key)]
  pool = tower.get('pool_type', 'tok')
  if other or pool not in OPEN_CLIP_POOLS:
    option = ', '.join(other) or f'pool_type {pool!r}'
    raise ValueError(f'open_clip_config.json: {option} is of no ViT here')
  tanh = tower.get('act_kwargs', {}).get('approximate') == 'tanh'
  plain = 'gelu_tanh' if tanh else 'gelu_erf'
  return {
    'activation': 'quick_gelu' if model.get('quick_gelu') else plain,
    'norm_eps': float(tower.get('norm_kwargs', {}).get('eps', 1e-5)),
    'pool': OPEN_CLIP_POOLS[pool],
  }


OPEN_CLIP_OTHER = ('attentional_pool', 'final_ln_after_pool', 'global_average_pool')
OPEN_CLIP_POOLS = {'tok': 'token', 'avg': 'gap'}


def resample_of(config: dict[str, Any], file: str) -> str:
  """FlexiViT and C-RADIO are bilinear, by the architecture, or of a lone file by its name.

  As in timm, C-RADIO v3 of the sizes B and H takes the corners for the ends of the table.
  """
  name = named(config) or file
  if re.search('(base|huge)_patch16_radio_v3', name):
    return 'bilinear_align_corners'
  return 'bilinear' if 'flexi' in name or 'radio' in name else ''


def naflex_resample_of(config: dict[str, Any], file: str) -> str:
  described = constructor(config, 'NaFlexVit')
  return '' if described is None else timm_names.resampling(described.arguments)


def eva_promises(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> list[str]:
  """The biases of queries and values: both or none."""
  biases = [f'{BLOCKS}/attention/{part}/bias' for part in ('query', 'value')]
  return biases if any(name in ours for name in biases) else []


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
METHODS = {'bicubic': 'bicubic_antialias', 'bilinear': 'bilinear_antialias'}


def preprocess(config: dict[str, Any]) -> dict[str, Any]:
  """From what config.json says of the weights: the shorter side resized, then the centre; or
  squashed. What it does not say is timm's default, but for the size, which the arrays tell.
  """
  if 'model_cfg' in config or 'preprocess_cfg' in config:
    return openai_preprocess(config)
  cfg = timm_names.pretrained(config)
  if not cfg and 'architecture' not in config:
    return {'steps': centre(0.9, 'bicubic_antialias')}
  mode, interpolation = cfg.get('crop_mode', 'center'), cfg.get('interpolation', 'bicubic')
  if mode not in ('center', 'squash'):
    raise ValueError(f'config.json: crop_mode {mode!r} is none of center, squash')
  if interpolation not in METHODS:
    raise ValueError(
      f'config.json: interpolation {interpolation!r} is none of {", ".join(METHODS)}'
    )
  size = tuple(cfg.get('input_size', (3, 224, 224))[1:])
  fraction, method = cfg.get('crop_pct', 0.875), METHODS[interpolation]
  levels = {
    **({'size': size} if 'input_size' in cfg or mode == 'squash' else {}),
    'mean': tuple(cfg.get('mean', IMAGENET_MEAN)),
    'std': tuple(cfg.get('std', IMAGENET_STD)),
  }
  if mode == 'center':
    return levels | {'steps': centre(fraction, method)}
  height, width = (math.floor(side / fraction) for side in size)
  squash = Resizing(True, (height, width), method, crop='nearest')
  return levels | {'steps': format_steps(squash, size)}


def centre(fraction: float, method: str) -> str:
  """The step of timm, open_clip and torchvision alike."""
  return f"crop_ratio(ratio={fraction}, method='{method}')"


def openai_preprocess(config: dict[str, Any]) -> dict[str, Any]:
  """From open_clip's `preprocess_cfg`: the shorter side resized, then the centre; or squashed."""
  cfg = config.get('preprocess_cfg', {})
  tower = config.get('model_cfg', {}).get('vision_cfg', {})
  size = cfg.get('size', tower.get('image_size'))
  method = METHODS['bilinear' if cfg.get('interpolation') == 'bilinear' else 'bicubic']
  mode = cfg.get('resize_mode', 'shortest')
  if mode not in ('shortest', 'squash'):
    raise ValueError(f'open_clip_config.json: resize_mode {mode!r} is none of shortest, squash')
  return {
    **({'size': sides(size)} if size else {}),
    'mean': tuple(cfg.get('mean', CLIP_MEAN)),
    'std': tuple(cfg.get('std', CLIP_STD)),
    'steps': f"resize(method='{method}')" if mode == 'squash' else centre(1.0, method),
  }


INPUT = kinds.Kind(
  'channels, height and width in pixels up to 8,192',
  lambda v: isinstance(v, list) and len(v) == 3 and all(map(kinds.SIDE.holds, v)),
)
GRID = kinds.Kind(
  'rows and columns up to 8,192',
  lambda v: isinstance(v, list) and len(v) == 2 and all(map(kinds.SIDE.holds, v)),
)
PRETRAINED = {
  'input_size': INPUT,
  'crop_pct': kinds.SHARE,
  'crop_mode': kinds.TEXT,
  'interpolation': kinds.TEXT,
  'mean': kinds.MEAN,
  'std': kinds.STD,
  'num_classes': kinds.CLASSES,
  'global_pool': kinds.TEXT,
}
FIELDS = PRETRAINED | {  # at the top, too, in files from before there was `pretrained_cfg`
  'architecture': kinds.TEXT,
  'architectures': kinds.TEXTS,
  'label_names': kinds.TEXTS,
  'labels': kinds.TEXTS,
  'model_args': {
    'embed_dim': kinds.COUNT,
    'depth': kinds.LAYERS,
    'num_heads': kinds.COUNT,
    'num_classes': kinds.CLASSES,
    'img_size': kinds.SIDES,
    'in_chans': kinds.COUNT,
    'act_layer': kinds.TEXT,
    'norm_layer': kinds.TEXT,
    'global_pool': kinds.TEXT,
    'rope_temperature': kinds.POSITIVE,
    'rope_grid_offset': kinds.NUMBER,
    'ref_feat_shape': kinds.SIDES,
    'attn_pool_num_heads': kinds.COUNT,
    'attn_pool_mlp_ratio': kinds.POSITIVE,
    'patch_size': kinds.SIDES,
    'pos_embed_grid_size': GRID,
    'pos_embed_antialias': kinds.FLAG,
    'pos_embed_align_corners': kinds.FLAG,
    'pos_embed_ar_preserving': kinds.FLAG,
    'scale_attn_inner_norm': kinds.FLAG,
    'scale_mlp_norm': kinds.FLAG,
    'proj_bias': kinds.FLAG,
  },
  'pretrained_cfg': PRETRAINED,
  'model_cfg': {
    'quick_gelu': kinds.FLAG,
    'vision_cfg': {
      'width': kinds.COUNT,
      'layers': kinds.LAYERS,
      'head_width': kinds.COUNT,
      'image_size': kinds.SIDES,
      'timm_model_name': kinds.TEXT,
      'timm_pool': kinds.TEXT,
      'pool_type': kinds.TEXT,
      'act_kwargs': {'approximate': kinds.TEXT},
      'norm_kwargs': {'eps': kinds.EPSILON},
    },
  },
  'preprocess_cfg': {
    'size': kinds.SIDES,
    'mean': kinds.MEAN,
    'std': kinds.STD,
    'interpolation': kinds.TEXT,
    'resize_mode': kinds.TEXT,
  },
}


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
  r'.*\.(relative_position_index|rel_coords_log|attn_mask)',
)
RENAMES = (
  (r'^register_tokens$', 'reg_token'),
  (r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma'),
  (r'^(blocks\.\d+\.mlp)\.w3\.', r'\1.fc2.'),
  (r'\.mlp\.fc1_x\.', '.mlp.fc1.'),
  (r'^(patch_embed\.backbone)\.(conv|norm)\.', r'\1.stem.\2.'),
)
PATCHES = r'patch_embed\.proj\.weight'


def contradictions(ours: Arrays, config: dict[str, Any]) -> list[str]:
  """Where the kernel reads other channels than the configuration says."""
  stated, count = config.get('model_args', {}).get('in_chans'), channels(ours)
  if stated in (None, count) or count is None:
    return []
  return [f'config.json: in_chans is {stated}, but the kernel has {count}']


COMMON: dict[str, Any] = dict(
  dialect='timm', preprocess=preprocess, fields=FIELDS, contradictions=contradictions
)
COMMON_VIT = COMMON | dict(model='ViT', table=VIT, renames=RENAMES, declared=declared, drops=DROPS)
COMMON_EVA = COMMON | dict(
  model='ViT', table=EVA, details=eva_details, declared=declared, promises=eva_promises
)
FAMILIES = (
  Family(
    signs=(PATCHES, r'storage_tokens', r'blocks\.0\.norm1\.weight'),
    tidy=dinov3,
    renames=(
      (r'^storage_tokens$', 'reg_token'),
      (r'^(blocks\.\d+)\.ls([12])\.gamma$', r'\1.gamma_\2'),
      (r'^(blocks\.\d+\.mlp)\.w1\.', r'\1.fc1_g.'),
      (r'^(blocks\.\d+\.mlp)\.w2\.', r'\1.fc1_x.'),
      (r'^(blocks\.\d+\.mlp)\.w3\.', r'\1.fc2.'),
      (r'\.fc1_x\.', '.fc1.'),
    ),
    drops=(*DROPS, r'rope_embed\..*', r'.*\.bias_mask', r'local_cls_norm\..*'),
    **COMMON_EVA,
  ),
  Family(
    signs=(PATCHES, r'blocks\.0\.gamma_1', r'!pos_embed', r'!.*\.relative_position_bias_table'),
    tidy=tidy_eva,
    renames=((r'\.fc1_x\.', '.fc1.'),),
    drops=(*DROPS, r'rope\.(?!freqs).*'),
    **COMMON_EVA,
  ),
  Family(
    signs=(PATCHES, r'blocks\.0\.norm1\.weight'),
    tidy=tidy,
    details=details,
    resample_of=resample_of,
    **COMMON_VIT,
  ),
  Family(
    signs=(PATCHES, r'blocks\.0\.in_norm\.weight', r'blocks\.0\.in_proj\.weight'),
    tidy=tidy_parallel,
    details=parallel_details,
    **COMMON_VIT,
  ),
  Family(
    signs=(r'embeds\.proj\.weight', r'blocks\.0\.norm1\.weight'),
    tidy=tidy_naflex,
    details=naflex_details,
    resample_of=naflex_resample_of,
    **COMMON_VIT,
  ),
  Family(
    model='ViT',
    signs=(r'conv1\.weight', r'class_embedding', r'transformer\.resblocks\.0\.ln_1\.weight'),
    table=VIT,
    tidy=openai,
    details=openai_details,
    declared=openai_declared,
    **COMMON | {'preprocess': openai_preprocess},
  ),
  Family(
    model='Mixer',
    signs=(r'stem\.proj\.weight', r'blocks\.0\.mlp_tokens\.fc1\.weight'),
    table=MIXER,
    details=mixer_details,
    declared=declared,
    **COMMON,
  ),
  Family(
    model='BiT',
    signs=(r'stem\.conv\.weight', r'stages\.0\.blocks\.0\.conv1\.weight'),
    table=BIT,
    details=bit_details,
    declared=declared,
    **COMMON,
  ),
)


def export_spec(source: Exportable) -> ExportSpec:
  """timm's names, and a config.json that its `local-dir:` opens."""
  model = source.model
  if isinstance(model, mixer.Mixer):
    return ExportSpec(
      MIXER,
      rewrites={'head_bias': 0.0},
      reader_defaults={'activation': ('gelu_erf',), 'norm_eps': (1e-6,)},
      configs={'config.json': described(source, *mixer_args(model, source.preprocess.size))},
    )
  if isinstance(model, resnet.ResNet):
    depth = sum(model.blocks) * 3 + 2
    return ExportSpec(
      BIT,
      rewrites={'head_bias': 0.0},
      reader_defaults={'numerics': ('timm',)},
      configs={'config.json': described(source, f'resnetv2_{depth}x{model.width_factor}_bit', {})},
    )
  if not isinstance(model, vit.ViT):
    raise ValueError(f'timm has no {source.name}')
  rope = model.positions == 'rope'
  args = eva_args if rope else vit_args
  rewrites: dict[str, Any] = {'head_bias': 0.0}
  if not rope:
    rewrites['qkv_bias'] = 'none' if model.qkv_bias == 'none' else 'qkv'
    rewrites['embed_bias'] = model.embed_bias or not model.pre_norm
    rewrites['cls_position'] = model.cls_position and not model.registers
    rewrites['positions'] = 'none' if model.positions == 'none' else 'learned'
  return ExportSpec(
    EVA if rope else VIT,
    supported={
      'pool': tuple(GLOBAL_POOLS),
      'distillation': ('none', 'head'),
      'stem': (None,) if rope else (None, *HYBRIDS),
      'stem_width': (64,),
      'qkv_bias': ('qv', 'none') if rope else ('qkv', 'qv', 'none'),
      'embed_bias': (True,) if model.pre_norm is rope else (True, False),
      'representation': (None,),
      'rope_theta': (100.0,),
      'pool_prefix': pool_prefixes(model),
      **({'distillation': ('none',), 'pre_norm': (False,), 'qk_norm': (False,)} if rope else {}),
    },
    rewrites=rewrites,
    reader_defaults={
      'norm_eps': (1e-5,) if rope else (1e-5, 1e-6),
      'stem_numerics': ('timm',),
      **({'activation': ('gelu_erf',)} if rope else {}),
    },
    finish=finish,
    configs={'config.json': described(source, *args(model, source.preprocess.size))},
  )


def pool_prefixes(model: vit.ViT) -> tuple[bool | None, ...]:
  """The values of the model's `pool_prefix` that timm can say: it has no 'none' without these."""
  if model.pool == 'none':
    return (True,) if model.prefix else (None, False, True)
  if model.positions == 'rope':
    return (None, model.pool == 'map')
  return (None, False, True)


def finish(theirs: Arrays) -> Arrays:
  """The names on disk: a joint MLP is `fc1`, a root without stages the backbone itself."""
  renames = [(r'\.mlp\.w12\.', '.mlp.fc1.')]
  if not any('.stages.' in name for name in theirs):
    renames.append((r'^(patch_embed\.backbone)\.stem\.', r'\1.'))
  if any('.fc1_g.' in name for name in theirs):
    renames.append((r'\.mlp\.fc1\.', '.mlp.fc1_x.'))
  return renamed(theirs, renames)


HYBRIDS = {
  (): 'vit_tiny_r_s16_p8_224',
  (2, 2, 2, 2): 'vit_small_r26_s32_224',
  (3, 4, 9): 'vit_base_r50_s16_224',
  (3, 4, 6, 3): 'vit_large_r50_s32_224',
}
GLOBAL_POOLS = {'token': 'token', 'gap': 'avg', 'map': 'map', 'none': ''}
ACT_LAYERS = {'gelu_erf': 'gelu', 'gelu_tanh': 'gelu_tanh', 'quick_gelu': 'quick_gelu'}


def vit_args(model: vit.ViT, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  """An architecture of timm, and the arguments that make it this VisionTransformer."""
  args: dict[str, Any] = {
    'img_size': list(size),
    **shape_args(model),
    'mlp_ratio': ratio(model.width, model.mlp_dim * (2 if model.swiglu else 1)),
    'qkv_bias': model.qkv_bias != 'none',
    'global_pool': GLOBAL_POOLS.get(model.pool),
  }
  if model.distillation == 'head':
    architecture = 'deit_base_distilled_patch16_224'
  elif model.stem is not None:
    architecture = HYBRIDS.get(model.stem, '')
    args['patch_size'] = model.kernel_size[0]
  elif model.swiglu:
    architecture = 'vit_giant_patch14_dinov2'
  elif model.norm_eps == 1e-5 or model.pre_norm:
    architecture = 'vit_base_patch16_clip_224'
  else:
    architecture = 'vit_base_patch16_224'
  options = {  # of this model, and of the architecture by itself
    'class_token': (model.has_class_token, True),
    'pool_include_prefix': (model.pools_prefix and model.pool in ('gap', 'map'), False),
    'no_embed_class': (bool(model.registers) or not model.cls_position, False),
    'reg_tokens': (model.registers, 0),
    'fc_norm': (model.final_norm == 'pooled', False),
    'final_norm': (model.final_norm != 'none', True),
    'pre_norm': (model.pre_norm, architecture == 'vit_base_patch16_clip_224'),
    'init_values': (model.layer_scale, 1e-5 if model.swiglu else None),
    'qk_norm': (model.qk_norm, False),
    'pos_embed': ('none' if model.positions == 'none' else 'learn', 'learn'),
    'act_layer': ('gelu' if model.swiglu else ACT_LAYERS[model.activation], 'gelu'),
  }
  return architecture, args | {
    name: value for name, (value, usual) in options.items() if value != usual or name == 'fc_norm'
  }


def eva_args(model: vit.ViT, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  """The same of DINOv3's Eva."""
  return 'vit_small_plus_patch16_dinov3_qkvb', {
    'img_size': list(size),
    **shape_args(model),
    'mlp_ratio': ratio(model.width, model.mlp_dim),
    'qkv_bias': model.qkv_bias != 'none',
    'swiglu_mlp': model.swiglu,
    'swiglu_align_to': 1 if model.mlp_dim % 8 else 8,
    'num_reg_tokens': model.registers,
    'init_values': model.layer_scale,
    'class_token': model.has_class_token,
    'global_pool': GLOBAL_POOLS.get(model.pool),
    'use_fc_norm': model.final_norm == 'pooled',
  }


def shape_args(model: vit.ViT) -> dict[str, Any]:
  patch = model.patch
  return {
    'patch_size': patch[0] if patch[0] == patch[1] else list(patch),
    'embed_dim': model.width,
    'depth': model.depth,
    'num_heads': model.heads,
  }


def ratio(width: int, hidden: int) -> float:
  """A ratio that timm's int(width * ratio) brings back to `hidden`."""
  exact = hidden / width
  return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)


def mixer_args(model: mixer.Mixer, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  letter = {(512, 8): 's', (768, 12): 'b', (1024, 24): 'l'}.get((model.width, model.depth))
  published = letter and model.patch[0] in (16, 32)
  name = f'mixer_{letter}{model.patch[0]}_224' if published else 'mixer_b16_224'
  return name, {'img_size': list(size)}


def crop_fraction(size: tuple[int, int], sides: tuple[int, int]) -> float:
  """The roundest fraction of which timm's floor(size / fraction) are `sides`, if there is one."""
  for tens in (10, 100, 1000, 10_000):
    fraction = min(crop * tens // side for crop, side in zip(size, sides)) / tens
    if fraction and sides == tuple(math.floor(crop / fraction) for crop in size):
      return fraction
  return min(crop / side for crop, side in zip(size, sides))


def described(source: Exportable, architecture: str, args: dict[str, Any]) -> dict[str, Any]:
  """config.json as timm writes it."""
  model, prepared = source.model, source.preprocess
  args = args | ({'in_chans': prepared.channels} if prepared.channels != 3 else {})
  resizing = parse_steps(prepared.steps, prepared.size)
  data: dict[str, Any] = {
    'input_size': [prepared.channels, *prepared.size],
    'interpolation': resizing.method.split('_')[0] if resizing else 'bicubic',
    'crop_pct': (resizing.ratio or crop_fraction(prepared.size, resizing.sides))
    if resizing
    else 1.0,
    'crop_mode': 'squash' if resizing and resizing.squash else 'center',
    'mean': list(prepared.mean),
    'std': list(prepared.std),
    'num_classes': model.num_classes,
  }
  config: dict[str, Any] = {
    'architecture': architecture,
    'num_classes': model.num_classes,
    'model_args': args,
    'pretrained_cfg': data,
  }
  if 'global_pool' in args:
    config['global_pool'] = args['global_pool']
  if source.classes != tuple(map(str, range(len(source.classes)))):
    config['label_names'] = list(source.classes)
  return config


def call(path: pathlib.Path, config: dict[str, Any]) -> str:
  """The line of Python that opens a lone file, which has no config.json beside it."""
  fields = {'num_classes': config['num_classes'], **config['model_args']}
  args = ', '.join(f'{name}={value!r}' for name, value in fields.items())
  return f"timm.create_model('{config['architecture']}', checkpoint_path='{path}', {args})"
