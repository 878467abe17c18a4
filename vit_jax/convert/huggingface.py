"""Hugging Face's names: what transformers 4 wrote and 5 writes on disk, and 5 has in memory."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vit_jax.convert import architecture, kinds, timm
from vit_jax.convert.engine import (
  TABLE,
  TOKEN,
  Arrays,
  Declared,
  Exportable,
  ExportSpec,
  Family,
  Line,
  renamed,
  rows,
)
from vit_jax.convert.preprocess import parse_steps
from vit_jax.convert.timm import (
  BLOCKS,
  CLIP_MEAN,
  CLIP_STD,
  IMAGENET_MEAN,
  IMAGENET_STD,
  conv,
  dense,
  merged,
  norm,
  projected,
)
from vit_jax.models import vit

Size = int | list[int] | dict[str, int]  # in any of the forms that files have


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
    parts += BIASES if tower else ()
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
      return {'positions': 'rope', 'rope_theta': float(config.get('rope_theta', 100.0))}
    case 'clip' if 'classifier.bias' in theirs:  # the mean of the patches, before the last norm
      return {'pool': 'gap', 'final_norm': 'none'}
    case 'siglip' if 'classifier.weight' in theirs:  # the mean, without the attention pooling
      return {'pool': 'gap'}
  return {}


METHODS = {2: 'bilinear_antialias', 3: 'bicubic_antialias'}  # PIL's numbers
HALF = (0.5, 0.5, 0.5)
CLIP_LOOK = {
  'size': {'shortest_edge': 224},
  'crop_size': 224,
  'do_center_crop': True,
  'resample': 3,
  'image_mean': CLIP_MEAN,
  'image_std': CLIP_STD,
  'default_to_square': False,
}
SQUARE_LOOK = {
  'size': 224,
  'resample': 2,
  'image_mean': HALF,
  'image_std': HALF,
  'default_to_square': True,
}
# What transformers' image processors take where their file tells nothing; `default_to_square`
# is whether one number is both sides, or the shorter one.
PROCESSORS: dict[str, dict[str, Any]] = {
  'ViT': SQUARE_LOOK,
  'DINOv3ViT': SQUARE_LOOK | {'image_mean': IMAGENET_MEAN, 'image_std': IMAGENET_STD},
  'DeiT': SQUARE_LOOK | {'size': 256, 'resample': 3, 'crop_size': 224, 'do_center_crop': True},
  'Beit': SQUARE_LOOK | {'resample': 3, 'crop_size': 224},
  'Blip': CLIP_LOOK | {'size': 384, 'do_center_crop': False, 'default_to_square': True},
  'Siglip': SQUARE_LOOK
  | {'size': {'height': 224, 'width': 224}, 'resample': 3, 'default_to_square': False},
  'Siglip2': SQUARE_LOOK | {'max_num_patches': 256, 'patch_size': 16},
  'CLIP': CLIP_LOOK,
  'ChineseCLIP': CLIP_LOOK,
  'Bit': CLIP_LOOK,
}
IMAGENET = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD}
UNDECLARED: dict[str, dict[str, Any]] = {  # what the published files of a processor's kind have
  'ViT': {'steps': "resize(method='bilinear_antialias')"},
  'Siglip': {'steps': "resize(method='bicubic_antialias')"},
  'DINOv3ViT': {'steps': "resize(method='bilinear_antialias')", **IMAGENET},
  'Bit': {'fraction': 224 / 256, 'method': 'bicubic_antialias', **IMAGENET},
  'CLIP': {'fraction': 1.0, 'method': 'bicubic_antialias', 'mean': CLIP_MEAN, 'std': CLIP_STD},
}


def preprocess(config: dict[str, Any], usual: str = 'ViT') -> dict[str, Any]:
  """From preprocessor_config.json: squashed, or the shorter side resized; then the centre.

  Where no file names a processor, it is the `usual` one of the family.
  """
  if 'preprocessor' not in config:
    size = declared(config).get('size')
    return UNDECLARED[usual] | ({'size': size[1]} if size else {})
  values = config['preprocessor']
  if config.get('model_type') == 'deit':
    usual = 'DeiT'
  named = values.get('image_processor_type', values.get('feature_extractor_type', usual))
  processor = re.sub(r'(ImageProcessor|FeatureExtractor)(Fast|Pil)?$', '', named)
  if processor not in PROCESSORS:
    names = ', '.join(f'{name}ImageProcessor' for name in PROCESSORS)
    raise ValueError(f'preprocessor_config.json: image_processor_type {named} is none of {names}')
  values = PROCESSORS[processor] | values
  if 'max_num_patches' in values:
    values['size'] = math.isqrt(values['max_num_patches']) * values['patch_size']
  if values['resample'] not in METHODS:
    raise ValueError(f'preprocessor_config.json: resample {values["resample"]} is none of 2 and 3')
  if processor == 'DINOv3ViT' and METHODS[values['resample']] != 'bilinear_antialias':
    raise ValueError(  # it resizes before it rounds, and bicubic leaves [0, 1]
      f'preprocessor_config.json: resample {values["resample"]} of {named} is not read, 2 is'
    )
  return {**steps_of(values), **levels(values)}


def steps_of(values: dict[str, Any]) -> dict[str, Any]:
  """The steps of an image processor, and the size of what they give."""
  method, steps = METHODS[values['resample']], []
  crop = sides(values['crop_size']) if values.get('do_center_crop') else None
  fields: dict[str, Any] = {'size': crop} if crop else {}
  if values.get('do_resize', True):
    size = edges(values['size'], square=values['default_to_square'])
    if isinstance(size, int):
      crop = crop or (size, size)  # where transformers crops nothing, its models take only squares
      steps.append(f"resize_small({size}, method='{method}', rounding='down')")
    else:
      steps.append(f"resize({size[0]}, {size[1]}, method='{method}')")
    fields['size'] = crop or size
  if crop:
    steps.append(f'central_crop({crop[0]}, {crop[1]})')
  return fields | {'steps': ' | '.join(steps)}


def levels(values: dict[str, Any]) -> dict[str, Any]:
  """Mean and std of pixels in [0, 1], though transformers' are of pixels times another factor."""
  factor = 255 * values.get('rescale_factor', 1 / 255) if values.get('do_rescale', True) else 255.0
  scale = 1.0 if math.isclose(factor, 1) else factor
  if not values.get('do_normalize', True):
    return {'mean': (0.0, 0.0, 0.0), 'std': (1 / scale,) * 3}
  mean, std = values['image_mean'], values['image_std']
  return {'mean': tuple(m / scale for m in mean), 'std': tuple(s / scale for s in std)}


def edges(size: Size, *, square: bool) -> int | tuple[int, int]:
  """The length of the shorter side, or both sides."""
  if isinstance(size, dict) and 'shortest_edge' in size:
    return int(size['shortest_edge'])
  if isinstance(size, int) and not square:
    return size
  return sides(size)


def sides(size: Size) -> tuple[int, int]:
  """(height, width) of a size."""
  return (size['height'], size['width']) if isinstance(size, dict) else timm.sides(size)


def is_size(value: object) -> bool:
  """Whether it is one that `edges` reads."""
  if not isinstance(value, dict):
    return kinds.SIDES.holds(value)
  sized = {key: side for key, side in value.items() if side is not None}
  return sized.keys() in ({'height', 'width'}, {'shortest_edge'}) and all(
    map(kinds.SIDE.holds, sized.values())
  )


SIZE = kinds.Kind(
  'a number of pixels up to 8,192, a height and a width, or a shortest_edge alone', is_size
)
CROP = kinds.Kind(
  'a number of pixels up to 8,192, or a height and a width',
  lambda v: is_size(v) and not (isinstance(v, dict) and 'shortest_edge' in v),
)
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
  **dict.fromkeys(('proj_bias', 'mlp_bias'), kinds.one_of(True)),
  **dict.fromkeys(('use_swiglu_ffn', 'use_gated_mlp', 'vision_use_head'), kinds.FLAG),
  'pruned_heads': kinds.one_of({}),
  **dict.fromkeys(('rope_parameters', 'rope_scaling'), kinds.ABSENT),
  **dict.fromkeys(('is_decoder', 'add_cross_attention'), kinds.one_of(False)),
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
      (r'^(encoder\.layer\.\d+)\.mlp\.fc1\.', r'\1.intermediate.dense.'),
      (r'^(encoder\.layer\.\d+)\.mlp\.fc2\.', r'\1.output.dense.'),
      (r'^cls_classifier\.', 'classifier.'),
    ),
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


def export_spec(source: Exportable) -> ExportSpec:
  """transformers' names of version 4, and the JSON files that its `from_pretrained` reads."""
  model = source.model
  if not isinstance(model, vit.ViT):
    raise ValueError(f'transformers has no {source.name}')
  shared = sizes(model, source.preprocess.size) | {'num_channels': source.preprocess.channels}
  spec = SPECS[writable_kind(model)](model, shared)
  supported = {'stem': (None,), 'qk_norm': (False,), 'rope_theta': (model.rope_theta,)}
  rewrites = {'positions': 'learned', 'cls_position': True, 'head_bias': 0.0}
  return dataclasses.replace(
    spec,
    supported={**supported, **spec.supported},
    rewrites={**rewrites, **spec.rewrites},
    configs={
      'config.json': spec.configs['config.json'] | labels(source),
      'preprocessor_config.json': preprocessor(source),
    },
  )


def writable_kind(model: vit.ViT) -> str:
  """The kind, as of `kind`, that has the model's parts."""
  if model.positions == 'rope':
    return 'dinov3'
  if model.pre_norm:
    return 'clip'
  if model.swiglu or model.layer_scale is not None or model.pool == 'token_gap':
    return 'dinov2'
  return 'vit' if model.has_class_token else 'siglip'


def prefixed(theirs: Arrays, prefix: str) -> Arrays:
  """The arrays with a prefix before all names but the heads'."""
  heads = ('classifier', 'cls_classifier', 'distillation_classifier')
  return {n if n.startswith(heads) else prefix + n: a for n, a in theirs.items()}


def sizes(model: vit.ViT, size: tuple[int, int]) -> dict[str, Any]:
  """The keys of config.json that every kind has."""
  return {
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.heads,
    'hidden_act': ACTS[model.activation],
    'layer_norm_eps': model.norm_eps,
    'image_size': size[0] if size[0] == size[1] else list(size),
    'patch_size': model.patch[0] if model.patch[0] == model.patch[1] else list(model.patch),
    'dtype': 'float32',
  }


def vit_spec(model: vit.ViT, shared: dict[str, Any]) -> ExportSpec:
  distilled = model.distillation != 'none'
  name, prefix = ('DeiT', 'deit.') if distilled else ('ViT', 'vit.')
  if not model.num_classes:
    architecture, prefix = f'{name}Model', ''
  else:
    architecture = f'{name}ForImageClassification'
    architecture += 'WithTeacher' if model.distillation == 'head' else ''

  def finish(theirs: Arrays) -> Arrays:
    if model.distillation == 'head':
      theirs = renamed(theirs, ((r'^classifier\.', 'cls_classifier.'),))
    return prefixed(theirs, prefix)

  config = {
    'architectures': [architecture],
    'model_type': name.lower(),
    **shared,
    'intermediate_size': model.mlp_dim,
    'qkv_bias': model.qkv_bias != 'none',
    'pooler_act': 'tanh',
    'pooler_output_size': model.representation or model.width,
    'attention_probs_dropout_prob': 0.0,
    'hidden_dropout_prob': 0.0,
    'encoder_stride': model.patch[0],
  }
  supported = {
    'pool': ('token',),
    'final_norm': ('tokens',),
    'registers': (0,),
    'representation': (None,) if model.num_classes else (None, model.width),
  }
  rewrites = {'embed_bias': True, 'qkv_bias': 'none' if model.qkv_bias == 'none' else 'qkv'}
  return ExportSpec(VIT, supported, rewrites, finish=finish, configs={'config.json': config})


def dinov2_spec(model: vit.ViT, shared: dict[str, Any]) -> ExportSpec:
  name = 'Dinov2WithRegisters' if model.registers else 'Dinov2'
  kind = 'dinov2_with_registers' if model.registers else 'dinov2'
  classes = bool(model.num_classes)
  ratio = hidden_ratio(model)

  def finish(theirs: Arrays) -> Arrays:
    """With registers transformers always has a mask token, which only pre-training reads."""
    if model.swiglu:
      theirs = renamed(theirs, ((r'\.mlp\.fc2\.', '.mlp.weights_out.'),))
    if model.registers:
      theirs |= {'embeddings.mask_token': np.zeros((1, model.width), np.float32)}
    return prefixed(theirs, f'{kind}.' if classes else '')

  config = {
    'architectures': [f'{name}ForImageClassification' if classes else f'{name}Model'],
    'model_type': kind,
    **shared,
    'mlp_ratio': ratio,
    'use_swiglu_ffn': model.swiglu,
    'qkv_bias': model.qkv_bias != 'none',
    'num_register_tokens': model.registers,
    'layerscale_value': model.layer_scale,
    'use_mask_token': False,
    'attention_probs_dropout_prob': 0.0,
    'hidden_dropout_prob': 0.0,
    'drop_path_rate': 0.0,
  }
  supported = {
    'pool': ('token_gap',) if classes else ('token', 'gap', 'token_gap'),
    'class_token': (True, None),
    'final_norm': ('tokens',),
    'distillation': ('none',),
    'representation': (None,),
    'mlp_dim': (model.mlp_dim,) if ratio else (),
    'layer_scale': (model.layer_scale,) if model.layer_scale is not None else (),
    'activation': ('gelu_erf', 'gelu_tanh', 'quick_gelu'),
  }
  rewrites = {'embed_bias': True, 'qkv_bias': 'none' if model.qkv_bias == 'none' else 'qkv'}
  return ExportSpec(DINOV2, supported, rewrites, finish=finish, configs={'config.json': config})


def hidden_ratio(model: vit.ViT) -> int | float | None:
  """The mlp_ratio from which transformers' DINOv2 computes this hidden width."""
  for ratio in (4, model.mlp_dim / model.width, 1.5 * model.mlp_dim / model.width):
    if dinov2_hidden(model.width, ratio, model.swiglu) == model.mlp_dim:
      return ratio
  return None


def dinov3_spec(model: vit.ViT, shared: dict[str, Any]) -> ExportSpec:
  more = {'embeddings.mask_token': np.zeros((1, 1, model.width), np.float32)}  # of pre-training
  if not model.registers:
    more['embeddings.register_tokens'] = np.zeros((1, 0, model.width), np.float32)
  config = {
    'architectures': ['DINOv3ViTModel'],
    'model_type': 'dinov3_vit',
    **shared,
    'hidden_act': 'silu' if model.swiglu else ACTS[model.activation],
    'intermediate_size': model.mlp_dim,
    'num_register_tokens': model.registers,
    'rope_theta': model.rope_theta,
    'use_gated_mlp': model.swiglu,
    'layerscale_value': model.layer_scale,
    **{f'{part}_bias': part[0] in model.qkv_bias for part in ('query', 'key', 'value')},
    'proj_bias': True,
    'mlp_bias': True,
  }
  supported = {
    'num_classes': (0,),
    'pool': ('token', 'gap'),
    'class_token': (True, None),
    'final_norm': ('tokens',),
    'distillation': ('none',),
    'representation': (None,),
    'layer_scale': (model.layer_scale,) if model.layer_scale is not None else (),
  }
  return ExportSpec(
    DINOV3,
    supported,
    {'embed_bias': True, 'positions': 'rope'},
    finish=lambda theirs: theirs | more,
    configs={'config.json': config},
  )


def clip_spec(model: vit.ViT, shared: dict[str, Any]) -> ExportSpec:
  tower = {'model_type': 'clip_vision_model', **shared, 'intermediate_size': model.mlp_dim}
  classes = model.pool == 'gap'
  config: dict[str, Any] = {'architectures': ['CLIPVisionModel'], **tower}
  if classes:
    config = classifier_config('CLIP', tower)
  elif model.num_classes:
    config['architectures'] = ['CLIPVisionModelWithProjection']
    config['projection_dim'] = model.num_classes

  def finish(theirs: Arrays) -> Arrays:
    if not classes:
      projection = ((r'^classifier\.', 'visual_projection.'),)
      return renamed(prefixed(theirs, 'vision_model.'), projection)
    unread = {
      'post_layernorm.weight': np.ones(model.width, np.float32),
      'post_layernorm.bias': np.zeros(model.width, np.float32),
    }
    return prefixed(theirs | unread, 'vision_model.')

  supported = {
    'pool': ('token', 'gap'),
    'class_token': (True,) if classes else (True, None),
    'final_norm': ('none',) if classes else ('tokens',),
    'num_classes': (model.num_classes,) if model.num_classes or not classes else (),
    'head_bias': (model.head_bias,) if classes or not model.num_classes else (None,),
    'embed_bias': (False,),
    'qkv_bias': ('qkv',),
    'representation': (None,),
    'distillation': ('none',),
  }
  rewrites = {'head_bias': 0.0 if classes else None}
  return ExportSpec(CLIP, supported, rewrites, finish=finish, configs={'config.json': config})


def classifier_config(name: str, tower: dict[str, Any]) -> dict[str, Any]:
  """config.json of a classifier on the image tower of a pair."""
  return {
    'architectures': [f'{name}ForImageClassification'],
    'model_type': name.lower(),
    'vision_config': tower,
  }


def siglip_spec(model: vit.ViT, shared: dict[str, Any]) -> ExportSpec:
  tower = {
    'model_type': 'siglip_vision_model',
    **shared,
    'intermediate_size': model.mlp_dim,
    'vision_use_head': model.pool == 'map',
  }
  if model.num_classes:
    config = classifier_config('Siglip', tower)
  else:
    config = {'architectures': ['SiglipVisionModel'], **tower}
  supported = {
    'pool': ('gap',) if model.num_classes else ('map', 'gap'),
    'final_norm': ('tokens',),
    'registers': (0,),
    'representation': (None,),
    'distillation': ('none',),
  }
  return ExportSpec(
    SIGLIP,
    supported,
    {'cls_position': model.cls_position, 'embed_bias': True, 'qkv_bias': 'qkv'},
    finish=lambda theirs: prefixed(theirs, 'vision_model.'),
    configs={'config.json': config},
  )


SPECS: dict[str, Callable[[vit.ViT, dict[str, Any]], ExportSpec]] = {
  'vit': vit_spec,
  'dinov2': dinov2_spec,
  'dinov3': dinov3_spec,
  'clip': clip_spec,
  'siglip': siglip_spec,
}
ACTS = {'gelu_erf': 'gelu', 'gelu_tanh': 'gelu_pytorch_tanh', 'quick_gelu': 'quick_gelu'}


def labels(source: Exportable) -> dict[str, Any]:
  """The classes, as config.json has them: what logits become, and their names.

  These are LABEL_0 ... where all are their numbers.
  """
  if not source.classes or source.model.head_bias is None:
    return {}
  names = list(source.classes)
  if names == [str(i) for i in range(len(names))]:
    names = [f'LABEL_{i}' for i in range(len(names))]
  problems = {scores: problem for problem, scores in kinds.PROBLEMS.items()}
  return {
    'problem_type': problems[source.scores],
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }


def preprocessor(source: Exportable) -> dict[str, Any]:
  """preprocessor_config.json."""
  prepared = source.preprocess
  resizing = parse_steps(prepared.steps, prepared.size)
  height, width = prepared.size
  numbers = {method: number for number, method in METHODS.items()} | {'bicubic': 3}
  config: dict[str, Any] = {
    'image_processor_type': 'ViTImageProcessor',
    'do_resize': True,
    'size': {'height': height, 'width': width},
    'resample': numbers.get(resizing.method, 2) if resizing else 2,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(prepared.mean),
    'image_std': list(prepared.std),
  }
  if resizing and not (resizing.squash and resizing.sides == prepared.size):
    config |= {
      'image_processor_type': 'CLIPImageProcessor',
      'size': dict(zip(('height', 'width'), resizing.sides))
      if resizing.squash
      else {'shortest_edge': max(resizing.sides)},
      'do_center_crop': True,
      'crop_size': {'height': height, 'width': width},
      'do_convert_rgb': True,
    }
  return config
