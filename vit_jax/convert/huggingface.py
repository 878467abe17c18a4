"""Hugging Face's names: what transformers 4 wrote and 5 writes on disk, and 5 has in memory."""

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax.convert import architecture, huggingface_decoder, kinds
from vit_jax.convert.engine import (
  TABLE,
  TOKEN,
  Arrays,
  Declared,
  Family,
  Line,
  rows,
)
from vit_jax.convert.huggingface_images import CROP, SIZE, preprocess, sides
from vit_jax.convert.timm import (
  BLOCKS,
  conv,
  dense,
  merged,
  norm,
  projected,
)
from vit_jax.models import vit


def attention(query: str, key: str, value: str, out: str) -> list[Line]:
  ours = f'{BLOCKS}/attention'
  return [
    *projected(f'{ours}/query', query),
    *projected(f'{ours}/key', key),
    *projected(f'{ours}/value', value),
    *merged(f'{ours}/out', out),
  ]


LAYER = 'encoder.layer.{i}'
INNER = f'{LAYER}.attention.attention'
SELF = attention(
  f'{INNER}.query', f'{INNER}.key', f'{INNER}.value', f'{LAYER}.attention.output.dense'
)
EMBEDDINGS = [
  ('cls', 'embeddings.cls_token'),
  ('dist', 'embeddings.distillation_token'),
  ('registers', 'embeddings.register_tokens'),
  ('positions', 'embeddings.position_embeddings'),
]
SCALES = [(f'{BLOCKS}/scale{n}', f'layer_scale{n}.lambda1') for n in (1, 2)]
VIT = rows(
  EMBEDDINGS,
  conv('embed', 'embeddings.patch_embeddings.projection'),
  norm(f'{BLOCKS}/norm1', f'{LAYER}.layernorm_before'),
  SELF,
  norm(f'{BLOCKS}/norm2', f'{LAYER}.layernorm_after'),
  dense(f'{BLOCKS}/mlp/up', f'{LAYER}.intermediate.dense'),
  dense(f'{BLOCKS}/mlp/down', f'{LAYER}.output.dense'),
  norm('encoder/norm', 'layernorm'),
  dense('pre_logits', 'pooler.dense'),
  dense('head', 'classifier'),
  dense('head_dist', 'distillation_classifier'),
)
DINOV2 = rows(
  EMBEDDINGS,
  conv('embed', 'embeddings.patch_embeddings.projection'),
  norm(f'{BLOCKS}/norm1', f'{LAYER}.norm1'),
  SELF,
  [(ours, f'{LAYER}.{theirs}') for ours, theirs in SCALES],
  norm(f'{BLOCKS}/norm2', f'{LAYER}.norm2'),
  dense(f'{BLOCKS}/mlp/up', f'{LAYER}.mlp.fc1'),
  dense(f'{BLOCKS}/mlp/down', f'{LAYER}.mlp.fc2'),
  dense(f'{BLOCKS}/mlp/{{gate,up}}', f'{LAYER}.mlp.weights_in'),
  norm('encoder/norm', 'layernorm'),
  dense('head', 'classifier'),
)
LAYER3 = 'layer.{i}'
DINOV3 = rows(
  EMBEDDINGS,
  conv('embed', 'embeddings.patch_embeddings'),
  norm(f'{BLOCKS}/norm1', f'{LAYER3}.norm1'),
  attention(*(f'{LAYER3}.attention.{part}_proj' for part in 'qkvo')),
  [(ours, f'{LAYER3}.{theirs}') for ours, theirs in SCALES],
  norm(f'{BLOCKS}/norm2', f'{LAYER3}.norm2'),
  dense(f'{BLOCKS}/mlp/up', f'{LAYER3}.mlp.up_proj'),
  dense(f'{BLOCKS}/mlp/gate', f'{LAYER3}.mlp.gate_proj'),
  dense(f'{BLOCKS}/mlp/down', f'{LAYER3}.mlp.down_proj'),
  norm('encoder/norm', 'norm'),
)
TOWER = 'encoder.layers.{i}'
PAIR = [  # CLIP and SigLIP share these
  *conv('embed', 'embeddings.patch_embedding'),
  ('positions', 'embeddings.position_embedding.weight', TABLE),
  *norm(f'{BLOCKS}/norm1', f'{TOWER}.layer_norm1'),
  *attention(*(f'{TOWER}.self_attn.{part}_proj' for part in ('q', 'k', 'v', 'out'))),
  *norm(f'{BLOCKS}/norm2', f'{TOWER}.layer_norm2'),
  *dense(f'{BLOCKS}/mlp/up', f'{TOWER}.mlp.fc1'),
  *dense(f'{BLOCKS}/mlp/down', f'{TOWER}.mlp.fc2'),
  *norm('encoder/norm', 'post_layernorm'),
  *dense('head', 'classifier'),
]
CLIP = rows([('cls', 'embeddings.class_embedding', TOKEN)], norm('pre_norm', 'pre_layrnorm'), PAIR)
SIGLIP = rows(
  PAIR,
  [('pool/probe', 'head.probe')],
  [
    (ours, theirs.replace('in_proj.', 'in_proj_'), rule)
    for ours, theirs, rule in projected(
      'pool/attention/{query,key,value}', 'head.attention.in_proj'
    )
  ],
  merged('pool/attention/out', 'head.attention.out_proj'),
  norm('pool/norm', 'head.layernorm'),
  dense('pool/mlp/up', 'head.mlp.fc1'),
  dense('pool/mlp/down', 'head.mlp.fc2'),
)

ACTIVATIONS = {
  **dict.fromkeys(('gelu', 'gelu_python'), 'gelu_erf'),
  **dict.fromkeys(
    ('gelu_pytorch_tanh', 'gelu_python_tanh', 'gelu_new', 'gelu_fast', 'gelu_accurate'),
    'gelu_tanh',
  ),
  'quick_gelu': 'quick_gelu',
}
# What the classes of transformers take where config.json is silent, by model_type and its kind.
COMMON_DEFAULTS = {'num_attention_heads': 12, 'hidden_act': 'gelu', 'qkv_bias': True}
VIT_DEFAULTS = COMMON_DEFAULTS | {'layer_norm_eps': 1e-12}
DINOV2_DEFAULTS = COMMON_DEFAULTS | {
  'layer_norm_eps': 1e-6,
  'mlp_ratio': 4,
  'use_swiglu_ffn': False,
}
CLIP_DEFAULTS = {'num_attention_heads': 12, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}
SIGLIP_DEFAULTS = {
  'num_attention_heads': 12,
  'hidden_act': 'gelu_pytorch_tanh',
  'layer_norm_eps': 1e-6,
  'vision_use_head': True,
}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
  'vit': {
    **{model_type: VIT_DEFAULTS for model_type in ('vit', 'deit', 'vit_mae', 'ijepa')},
    'vit_msn': VIT_DEFAULTS | {'layer_norm_eps': 1e-6},
  },
  'dinov2': {
    'dinov2': DINOV2_DEFAULTS,
    'dinov2_with_registers': DINOV2_DEFAULTS | {'num_register_tokens': 4},
  },
  'dinov3': {
    'dinov3_vit': {
      'num_attention_heads': 6,
      'hidden_act': 'gelu',
      'layer_norm_eps': 1e-5,
      'rope_theta': 100.0,
      'use_gated_mlp': False,
      'num_register_tokens': 0,
      'proj_bias': True,
      'mlp_bias': True,
      'query_bias': True,
      'key_bias': False,
      'value_bias': True,
    }
  },
  'clip': {
    model_type: CLIP_DEFAULTS
    for model_type in (
      'clip_vision_model',
      'metaclip_2_vision_model',
      'chinese_clip_vision_model',
      'altclip_vision_model',
      'clipseg_vision_model',
      'clip',
    )
  },
  'siglip': {
    'siglip_vision_model': SIGLIP_DEFAULTS,
    'siglip': SIGLIP_DEFAULTS,
    'siglip2_vision_model': SIGLIP_DEFAULTS | {'num_patches': 256},
  },
}
MODEL_TYPES = {name: defaults for kind in DEFAULTS.values() for name, defaults in kind.items()}


def locate(config: dict[str, Any]) -> tuple[str, ...]:
  """The keys to the object in config.json that describes the image tower; () for config.json.

  In models of several parts it is `vision_config`, or another of a model_type that we read;
  transformers lets an old file's `vision_config_dict` take the place of the former.
  """
  for key in ('vision_config_dict', 'vision_config'):
    if config.get(key) is not None:
      return (key,)
  if is_tower(config):
    return ()
  towers = list(nested_towers(config))
  if len(towers) > 1:
    names = ' and '.join('.'.join(path) for path in towers)
    raise ValueError(f'config.json: {names} describe a model each, must be one')
  return towers[0] if towers else ()


def is_tower(config: dict[str, Any]) -> bool:
  """Whether an object's model_type is one that we read."""
  return isinstance(config.get('model_type'), str) and config['model_type'] in MODEL_TYPES


def nested_towers(config: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  """The keys to the objects of a model_type that we read."""
  for key, value in config.items():
    if isinstance(value, dict):
      if is_tower(value):
        yield (*path, key)
      else:
        yield from nested_towers(value, (*path, key))


KEYS = {
  'width': 'hidden_size',
  'depth': 'num_hidden_layers',
  'heads': 'num_attention_heads',
  'mlp_dim': 'intermediate_size',
  'registers': 'num_register_tokens',
  'swiglu': 'use_swiglu_ffn',
  'representation': 'pooler_output_size',
}


def declared(config: dict[str, Any]) -> Declared:
  """What config.json says of the arrays' shapes, or transformers assumes where it is silent."""
  config = MODEL_TYPES.get(config.get('model_type', ''), {}) | config
  values = {
    ours: (f'config.json: {key}', config[key]) for ours, key in KEYS.items() if key in config
  }
  for ours, key in (('size', 'image_size'), ('patch', 'patch_size')):
    if key in config:
      values[ours] = (f'config.json: {key}', sides(config[key]))
  if 'use_gated_mlp' in config:
    values['swiglu'] = ('config.json: use_gated_mlp', config['use_gated_mlp'])
  if 'qkv_bias' in config:
    values['qkv_bias'] = ('config.json: qkv_bias', 'qkv' if config['qkv_bias'] else 'none')
  if 'key_bias' in config:
    parts = [part for part in ('query', 'key', 'value') if config.get(f'{part}_bias', True)]
    letters = ''.join(part[0] for part in parts) or 'none'
    values['qkv_bias'] = ('config.json: query_bias, key_bias, value_bias', letters)
  if {'hidden_size', 'mlp_ratio', 'use_swiglu_ffn'} <= config.keys():
    hidden = dinov2_hidden(config['hidden_size'], config['mlp_ratio'], config['use_swiglu_ffn'])
    values['mlp_dim'] = ('config.json: hidden_size by mlp_ratio', hidden)
  return values


def dinov2_hidden(width: int, ratio: float, gated: bool) -> int:
  """Units of the MLP that transformers' DINOv2 builds."""
  hidden = int(width * ratio)
  return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def with_defaults(theirs: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """config.json of a tower, with what transformers takes where it is silent; {} without one.

  Raises ValueError if its model_type is of other arrays.
  """
  types = DEFAULTS[kind(theirs)]
  model_type = config.get('model_type', next(iter(types)))
  if model_type not in types:
    names = ', '.join(types)
    raise ValueError(f'config.json: model_type is {model_type!r}, but the arrays are of {names}')
  return types[model_type] | config if config.keys() & TOWER_FIELDS.keys() else {}


SPINE = (
  *('embed/kernel', 'encoder/norm/scale', 'encoder/norm/bias'),
  *(f'{BLOCKS}/norm{n}/{leaf}' for n in (1, 2) for leaf in ('scale', 'bias')),
  *(f'{BLOCKS}/attention/{part}/kernel' for part in ('query', 'key', 'value', 'out')),
  *(f'{BLOCKS}/mlp/{part}/kernel' for part in ('up', 'down')),
)
SCALED = (f'{BLOCKS}/scale1', f'{BLOCKS}/scale2')
POOLING = tuple(
  f'pool/{name}'
  for name in ('probe', 'attention/query/kernel', 'attention/out/kernel', 'mlp/up/kernel')
)
BIASES = tuple(f'{BLOCKS}/{part}/bias' for part in ('attention/out', 'mlp/up', 'mlp/down'))
PARTS = {  # what every file of a kind has
  'vit': (*SPINE, *BIASES, 'embed/bias', 'cls', 'positions'),
  'dinov2': (*SPINE, *BIASES, *SCALED, 'embed/bias', 'cls', 'positions'),
  'dinov3': (*SPINE, *SCALED, 'embed/bias', 'cls'),
  'clip': (*SPINE, *BIASES, 'cls', 'positions', 'pre_norm/scale', 'pre_norm/bias'),
  'siglip': (*SPINE, *BIASES, 'embed/bias', 'positions'),
}


def promises(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> list[str]:
  """The arrays that every file of the kind has, and those that config.json tells of."""
  tower = with_defaults(theirs, config)
  parts = [*PARTS[kind(theirs)], *attention_biases(theirs, ours, tower)]
  if kind(theirs) == 'dinov3':
    parts += BIASES if tower.get('proj_bias') and tower.get('mlp_bias') else ()
  if tower.get('model_type') == 'ijepa':
    parts.remove('cls')
  if tower.get('model_type') == 'deit':
    parts.append('dist')
  if tower.get('num_register_tokens'):
    parts.append('registers')
  if tower.get('use_swiglu_ffn') or tower.get('use_gated_mlp'):
    parts.append(f'{BLOCKS}/mlp/gate/kernel')
  heads = classifiers(config)
  if kind(theirs) == 'siglip' and config and not heads and 'head/kernel' not in ours:
    parts += POOLING if tower.get('vision_use_head', True) else ()
  return parts + heads


def attention_biases(theirs: Arrays, ours: Arrays, tower: dict[str, Any]) -> list[str]:
  """The biases of queries, keys and values: all or none, but in DINOv3 as its flags say."""
  biases = {part: f'{BLOCKS}/attention/{part}/bias' for part in ('query', 'key', 'value')}
  if kind(theirs) == 'dinov3':
    return [biases[part] for part in biases if tower.get(f'{part}_bias', part != 'key')]
  present = any(name in ours for name in biases.values())
  return list(biases.values()) if present or (tower and tower.get('qkv_bias', True)) else []


def classifiers(config: dict[str, Any]) -> list[str]:
  """The heads of the class that config.json names."""
  names = ' '.join(config.get('architectures', ()))
  heads = []
  if 'ForImageClassification' in names and config.get('id2label') != {}:
    heads += ['head/kernel', 'head/bias']
    heads += ['head_dist/kernel', 'head_dist/bias'] if 'WithTeacher' in names else []
  elif re.search(r'CLIP(VisionModelWithProjection|Model)\b', names):
    heads.append('head/kernel')
  return heads


def details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields from config.json; without one, those of the kind's published files."""
  defaults = next(iter(DEFAULTS[kind(theirs)].values()))
  config = with_defaults(theirs, config)
  act = config.get('hidden_act', defaults['hidden_act'])
  if 'encoder/blocks/mlp/gate/kernel' in ours:
    if 'use_gated_mlp' in config and act not in ('silu', 'swish'):
      raise ValueError(f'config.json: hidden_act {act!r} of use_gated_mlp is not silu')
    act = defaults['hidden_act']  # of no consequence: DINOv2's gate takes SiLU whatever it says
  if config.get('pooler_act', 'tanh') != 'tanh' and 'pre_logits/kernel' in ours:
    raise ValueError(f'config.json: pooler_act {config["pooler_act"]!r} is not tanh')
  if act not in ACTIVATIONS:
    raise ValueError(f'config.json: hidden_act {act!r} is none of {", ".join(ACTIVATIONS)}')
  fields = {
    'activation': ACTIVATIONS[act],
    'norm_eps': float(config.get('layer_norm_eps', defaults['layer_norm_eps'])),
  }
  if (biases := declared(config).get('qkv_bias')) and biases[1] not in vit.QKV_BIASES:
    raise ValueError(f'{biases[0]} are of {biases[1]}, none of {", ".join(vit.QKV_BIASES)}')
  return fields | traits(theirs, ours, config)


def contradictions(ours: Arrays, config: dict[str, Any]) -> list[str]:
  """Keys of config.json by which transformers has no use for the arrays, or for others."""
  kernel, table = ours['embed/kernel'], ours.get('positions')
  config = MODEL_TYPES.get(config.get('model_type', ''), {}) | config
  actual = {'num_channels': kernel.shape[2]}
  if 'hidden_size' in config and 'num_attention_heads' in config:
    actual['head_dim'] = config['hidden_size'] // config['num_attention_heads']
  if 'head/kernel' in ours and 'head/bias' not in ours:
    actual['projection_dim'] = ours['head/kernel'].shape[1]
  if table is not None:
    actual['num_patches'] = table.shape[1]
  wrong = [
    f'{key} is {config[key]}, but the arrays have {value}'
    for key, value in actual.items()
    if config.get(key, value) != value
  ]
  if table is not None and 'image_size' in config:
    height, width = (side // p for side, p in zip(sides(config['image_size']), kernel.shape))
    if table.shape[1] - height * width not in (0, architecture.tokens(ours)):
      size = config['image_size']
      wrong.append(f'image_size is {size}, but positions are of {table.shape[1]} tokens')
  if config.get('vision_use_head') is False and 'pool/probe' in ours:
    wrong.append('vision_use_head is false, but the arrays have its head')
  return [f'config.json: {line}' for line in wrong]


def kind(names: Arrays) -> str:
  """'vit', 'dinov2', 'dinov3', 'clip' or 'siglip', by their names."""
  if 'embeddings.class_embedding' in names:
    return 'clip'
  if 'embeddings.patch_embedding.weight' in names:
    return 'siglip'
  if 'layer.0.norm1.weight' in names:
    return 'dinov3'
  return 'dinov2' if 'encoder.layer.0.norm1.weight' in names else 'vit'


def traits(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields that only some kinds have, most of them by what their classifier reads."""
  match kind(theirs):
    case 'dinov2':  # the class token and the mean of the patches
      head, norm = ours.get('head/kernel'), ours.get('encoder/norm/scale')
      joint = head is not None and norm is not None and len(head) == 2 * norm.size
      return {'pool': 'token_gap'} if joint else {}
    case 'dinov3':
      rope = {'positions': 'rope', 'rope_theta': float(config.get('rope_theta', 100.0))}
      return rope | projection_biases(ours, config)
    case 'clip' if 'classifier.bias' in theirs:  # the mean of the patches, before the last norm
      return {'pool': 'gap', 'final_norm': 'none'}
    case 'siglip' if 'classifier.weight' in theirs:  # the mean, without the attention pooling
      return {'pool': 'gap'}
  return {}


def projection_biases(ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Whether a DINOv3 has biases after attention and in MLPs: ValueError for one of both."""
  attention, mlp = (config.get(key, True) for key in ('proj_bias', 'mlp_bias'))
  if attention != mlp:
    raise ValueError(
      f'config.json: proj_bias is {attention} and mlp_bias {mlp}, models here have both or none'
    )
  absent = f'{BLOCKS}/mlp/up/kernel' in ours and not {*BIASES} & ours.keys()
  return {'proj_bias': False} if absent or not attention else {}


TOWER_FIELDS = {
  'model_type': kinds.one_of(*MODEL_TYPES),
  'hidden_size': kinds.COUNT,
  'num_hidden_layers': kinds.LAYERS,
  'num_attention_heads': kinds.COUNT,
  'intermediate_size': kinds.COUNT,
  'pooler_output_size': kinds.COUNT,
  'num_patches': kinds.COUNT,
  'mlp_ratio': kinds.POSITIVE,
  'num_channels': kinds.COUNT,
  'head_dim': kinds.COUNT,
  'image_size': kinds.SIDES,
  'patch_size': kinds.SIDES,
  'hidden_act': kinds.TEXT,
  'pooler_act': kinds.TEXT,
  'layer_norm_eps': kinds.EPSILON,
  'rope_theta': kinds.POSITIVE,
  'num_register_tokens': kinds.whole(0, 1000),
  **{f'{part}_bias': kinds.FLAG for part in ('qkv', 'query', 'key', 'value')},
  **dict.fromkeys(('proj_bias', 'mlp_bias'), kinds.FLAG),
  **dict.fromkeys(('use_swiglu_ffn', 'use_gated_mlp', 'vision_use_head'), kinds.FLAG),
  'pruned_heads': kinds.one_of({}),
  **dict.fromkeys(('rope_parameters', 'rope_scaling'), kinds.ABSENT),
  **dict.fromkeys(('is_decoder', 'add_cross_attention'), kinds.one_of(False)),
  **huggingface_decoder.FIELDS,
}
FIELDS = {
  'architectures': kinds.TEXTS,
  'problem_type': kinds.one_of(*kinds.PROBLEMS),  # 'regression' has no classes
  'id2label': kinds.LABELS,
  'projection_dim': kinds.COUNT,
  'quantization_config': kinds.ABSENT,
  'preprocessor': {
    'image_processor_type': kinds.TEXT,
    'feature_extractor_type': kinds.TEXT,
    'size': SIZE,
    'crop_size': CROP,
    'resample': kinds.whole(0, 5),
    'rescale_factor': kinds.POSITIVE,
    'image_mean': kinds.MEAN,
    'image_std': kinds.STD,
    'do_pad': kinds.one_of(False),
    'max_num_patches': kinds.COUNT,
    'patch_size': kinds.SIDE,
    **dict.fromkeys(
      ('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'default_to_square'), kinds.FLAG
    ),
  },
}


def is_naflex(arrays: Arrays) -> bool:
  """Whether patches are embedded by a matrix: SigLIP 2's NaFlex (arXiv 2502.14786)."""
  return any(n.endswith('patch_embedding.weight') and a.ndim == 2 for n, a in arrays.items())


def with_kernel(arrays: Arrays) -> Arrays:
  """NaFlex's matrix (D, P * P * 3) as a convolution's kernel (D, 3, P, P)."""
  out: Arrays = {}
  for name, array in arrays.items():
    if name.endswith('patch_embedding.weight') and array.ndim == 2:
      side = math.isqrt(array.shape[1] // 3)
      if array.shape[1] != 3 * side**2:
        raise ValueError(f'{name} has shape {array.shape}, of no square patches of 3 channels')
      array = array.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    out[name] = array
  return out


NAFLEX_NOTE = 'NaFlex at a fixed size: images are squashed, where its processor keeps their aspect'


def joined(arrays: Arrays) -> Arrays:
  """A gated MLP's two arrays, apart in memory, as the one that files have."""
  out: Arrays = {}
  for name, array in arrays.items():
    if '.mlp.gate_proj.' in name:
      up = arrays.get(name.replace('gate_proj', 'up_proj'))
      if up is None or up.shape != array.shape:
        raise ValueError(f'{name} has no up_proj of its shape')
      out[name.replace('gate_proj', 'weights_in')] = np.concatenate([array, up])
    elif '.mlp.up_proj.' not in name or name.replace('up_proj', 'gate_proj') not in arrays:
      out[name] = array
  return out


MEMORY = (  # names in the memory of transformers 5
  (r'^layers\.(\d+)\.', r'encoder.layer.\1.'),
  (r'^(encoder\.layer\.\d+\.attention)\.([qkv])_proj\.', r'\1.attention.\2.'),
  (r'\.attention\.attention\.q\.', '.attention.attention.query.'),
  (r'\.attention\.attention\.k\.', '.attention.attention.key.'),
  (r'\.attention\.attention\.v\.', '.attention.attention.value.'),
  (r'^(encoder\.layer\.\d+\.attention)\.o_proj\.', r'\1.output.dense.'),
)
MEMORY_MLP = (
  (r'^(encoder\.layer\.\d+)\.mlp\.fc1\.', r'\1.intermediate.dense.'),
  (r'^(encoder\.layer\.\d+)\.mlp\.fc2\.', r'\1.output.dense.'),
)
DROPS = (
  r'(.*\.)?embeddings\.mask_token',
  r'.*position_ids',
  r'text_model\..*',
  r'text_projection\.weight',
  r'logit_(scale|bias)',
  r'decoder\..*',
)
COMMON: dict[str, Any] = dict(
  dialect='huggingface',
  model='ViT',
  details=details,
  drops=DROPS,
  fields=FIELDS,
  tower=TOWER_FIELDS,
  locate=locate,
  declared=declared,
  contradictions=contradictions,
  promises=promises,
)
SIGLIP_COMMON: dict[str, Any] = dict(
  signs=(
    r'(vision_model\.)?embeddings\.patch_embedding\.weight',
    r'(vision_model\.)?encoder\.layers\.0\.layer_norm1\.weight',
  ),
  table=SIGLIP,
  renames=((r'^vision_model\.', ''),),
  **COMMON,
)
FAMILIES = (
  Family(
    signs=(
      r'((vit|deit|ijepa)\.)?embeddings\.patch_embeddings\.projection\.weight',
      r'((vit|deit|ijepa)\.)?(encoder\.layer|layers)\.0\.layernorm_before\.weight',
    ),
    table=VIT,
    preprocess=preprocess,
    resample='bicubic',
    renames=(
      (r'^(vit|deit|ijepa)\.', ''),
      *MEMORY,
      *MEMORY_MLP,
      (r'^cls_classifier\.', 'classifier.'),
    ),
    decoder=huggingface_decoder.read,
    **COMMON,
  ),
  *(
    Family(
      signs=(rf'({prefix}\.)?{embedding}', rf'({prefix}\.)?encoder\.layer\.0\.norm1\.weight'),
      table=DINOV2,
      resample=resample,
      preprocess=functools.partial(preprocess, usual='Bit'),
      tidy=joined,
      renames=(
        (rf'^{prefix}\.', ''),
        *MEMORY,
        (r'\.mlp\.(weights_out|down_proj)\.', '.mlp.fc2.'),
      ),
      **COMMON,
    )
    for prefix, embedding, resample in (
      ('dinov2_with_registers', r'embeddings\.register_tokens', 'bicubic_antialias'),
      ('dinov2', r'embeddings\.patch_embeddings\.projection\.weight', 'bicubic'),
    )
  ),
  Family(
    signs=(r'embeddings\.patch_embeddings\.weight', r'(model\.)?layer\.0\.norm1\.weight'),
    table=DINOV3,
    preprocess=functools.partial(preprocess, usual='DINOv3ViT'),
    renames=((r'^model\.', ''),),
    **COMMON,
  ),
  Family(
    signs=(r'(vision_model\.)?embeddings\.class_embedding', r'(vision_model\.)?pre_layrnorm.*'),
    table=CLIP,
    resample='bicubic',
    preprocess=functools.partial(preprocess, usual='CLIP'),
    renames=((r'^vision_model\.', ''), (r'^visual_projection\.', 'classifier.')),
    **COMMON,
  ),
  Family(
    fits=is_naflex,
    tidy=with_kernel,
    resample='bilinear_antialias',
    preprocess=preprocess,
    published=lambda ours, file: ({}, (NAFLEX_NOTE,)),
    **SIGLIP_COMMON,
  ),
  Family(
    resample='bicubic',
    preprocess=functools.partial(preprocess, usual='Siglip'),
    **SIGLIP_COMMON,
  ),
)
