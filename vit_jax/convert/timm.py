"""timm's names (VisionTransformer, Eva, MlpMixer, ResNetV2), and what is close to them on disk:
Facebook's DeiT, DINOv2 and DINOv3, OpenAI's and open_clip's CLIP image towers.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

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
  Family,
  Line,
  channels,
  rows,
)
from vit_jax.convert.preprocess import Resizing, format_steps
from vit_jax.convert.timm_tidy import dinov3, openai, tidy, tidy_eva, tidy_naflex, tidy_parallel

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
  if may_be_post_norm(ours):
    raise ValueError(
      'the arrays do not show whether norms come before attention or after, as in names with rpn: '
      "keep timm's config.json beside them"
    )
  fields: dict[str, Any] = {
    'activation': 'gelu_erf',
    'norm_eps': 1e-5 if 'pre_norm/scale' in ours else 1e-6,
    'stem_numerics': 'timm',
  }
  if 'pool/probe' not in ours and 'fc_norm/scale' in ours:
    fields['pool'] = 'gap'
  return fields


def may_be_post_norm(ours: Arrays) -> bool:
  """Whether arrays are as those of timm's ViTs with norms after attention, `vit_*_rpn_*`.

  These have no layer scale, and an MLP for relative positions, or neither class token nor biases of
  queries, keys and values.
  """
  if f'{BLOCKS}/scale1' in ours:
    return False
  query = f'{BLOCKS}/attention/query'
  bare = f'{query}/kernel' in ours and not {'cls', f'{query}/bias'} & ours.keys()
  return bare or f'{BLOCKS}/attention/relative/up/kernel' in ours


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
  'label_names': kinds.NAMES,
  'labels': kinds.NAMES,
}
FIELDS = PRETRAINED | {  # at the top, too, in files from before there was `pretrained_cfg`
  'architecture': kinds.TEXT,
  'architectures': kinds.TEXTS,
  'problem_type': kinds.one_of(*kinds.PROBLEMS),  # of a model saved through transformers
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
