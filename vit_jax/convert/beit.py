"""BEiT's names in transformers, and data2vec's (Bao et al., arXiv 2106.08254).

Its queries and values have a bias, its scores one by relative positions. Features are the mean of
the patches, normalised after, unless `use_mean_pooling` is false.
"""

import re
from typing import Any

import numpy as np

from vit_jax.convert import huggingface, kinds
from vit_jax.convert.architecture import RELATIVE, relative_distances
from vit_jax.convert.engine import Arrays, Declared, Family, renamed, rows
from vit_jax.convert.huggingface_images import preprocess
from vit_jax.convert.timm import BLOCKS, conv, dense, norm

LAYER = huggingface.LAYER
TABLE = 'relative_position_bias.relative_position_bias_table'
BEIT = rows(
  [
    ('cls', 'embeddings.cls_token'),
    ('positions', 'embeddings.position_embeddings'),
    (RELATIVE, f'{LAYER}.attention.attention.{TABLE}'),
  ],
  conv('embed', 'embeddings.patch_embeddings.projection'),
  norm(f'{BLOCKS}/norm1', f'{LAYER}.layernorm_before'),
  huggingface.SELF,
  [(f'{BLOCKS}/scale{n}', f'{LAYER}.lambda_{n}') for n in (1, 2)],
  norm(f'{BLOCKS}/norm2', f'{LAYER}.layernorm_after'),
  dense(f'{BLOCKS}/mlp/up', f'{LAYER}.intermediate.dense'),
  dense(f'{BLOCKS}/mlp/down', f'{LAYER}.output.dense'),
  norm('encoder/norm', 'layernorm'),
  norm('fc_norm', 'pooler.layernorm'),
  dense('head', 'classifier'),
)
RENAMES = (
  (r'^(beit|data2vec_vision)\.', ''),
  *huggingface.MEMORY,
  *huggingface.MEMORY_MLP,
  (r'^(encoder\.layer\.\d+)\.(relative_position_bias\.)', r'\1.attention.attention.\2'),
  (r'^shared_position_bias\.', 'encoder.relative_position_bias.'),
)
DEFAULTS: dict[str, Any] = {  # of transformers' classes
  'num_attention_heads': 12,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
  'layer_scale_init_value': 0.1,
  'use_mean_pooling': True,
  **dict.fromkeys(
    (
      'use_absolute_position_embeddings',
      'use_relative_position_bias',
      'use_shared_relative_position_bias',
    ),
    False,
  ),
}
TYPES = ('beit', 'data2vec-vision')
FIELDS = huggingface.TOWER_FIELDS | {
  'model_type': kinds.one_of(*TYPES),
  'layer_scale_init_value': kinds.NUMBER,
  **{key: kinds.FLAG for key in DEFAULTS if key.startswith('use_')},
}
PROMISES = (
  *(name for name in huggingface.SPINE if not name.startswith('encoder/norm')),
  *huggingface.BIASES,
  *(f'{BLOCKS}/attention/{part}/bias' for part in ('query', 'value')),
  *('embed/bias', 'cls'),
)


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
  """What config.json says of the tower, and transformers takes where it is silent; {} without."""
  return DEFAULTS | config if 'model_type' in config else {}


def tidy(arrays: Arrays) -> Arrays:
  """The table's names; what all layers share of relative positions is added to each one's own."""
  out = renamed(arrays, RENAMES)
  shared = out.pop(f'encoder.{TABLE}', None)
  if shared is None:
    return out
  for layer in {match[0] for name in out if (match := re.match(r'encoder\.layer\.\d+', name))}:
    name = f'{layer}.attention.attention.{TABLE}'
    single = out.get(name)
    if single is not None and single.shape == shared.shape:
      out[name] = np.add(single, shared, dtype=np.float32)
    else:
      out[name] = shared
  return out


def declared(config: dict[str, Any]) -> Declared:
  """What config.json says of the arrays' shapes."""
  described = with_defaults(config) or config
  return huggingface.declared({key: described[key] for key in described.keys() - {'model_type'}})


def details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields of the model that its arrays do not show."""
  values = DEFAULTS | config
  if values['hidden_act'] not in huggingface.ACTIVATIONS:
    choices = ', '.join(huggingface.ACTIVATIONS)
    raise ValueError(f'config.json: hidden_act {values["hidden_act"]!r} is none of {choices}')
  pooled = 'encoder/norm/scale' not in ours and values['use_mean_pooling']
  return {
    'activation': huggingface.ACTIVATIONS[values['hidden_act']],
    'norm_eps': float(values['layer_norm_eps']),
    'pool': 'gap' if pooled else 'token',
  }


def contradictions(ours: Arrays, config: dict[str, Any]) -> list[str]:
  """Keys of config.json by which transformers has no use for the arrays, or for others."""
  values = with_defaults(config)
  if not values:
    return []
  shared = values['use_shared_relative_position_bias']
  stated = {
    'use_absolute_position_embeddings': 'positions' in ours,
    'use_relative_position_bias': RELATIVE in ours and not shared,
    'use_shared_relative_position_bias': RELATIVE in ours,
    'layer_scale_init_value': f'{BLOCKS}/scale1' in ours,
    'use_mean_pooling': 'fc_norm/scale' in ours,
  }
  # Of both kinds of relative positions arrays show one; without a pooler there is no norm
  silent = {'use_relative_position_bias'} if shared else {'use_shared_relative_position_bias'}
  silent |= {'use_mean_pooling'} if values['use_mean_pooling'] else set()
  wrong = [
    f'{key} is {values[key]}, but the arrays have {"it" if present else "none"}'
    for key, present in stated.items()
    if bool(values[key]) != present and key not in silent
  ]
  if RELATIVE in ours:
    wrong += misfit_grid(ours, values)
  usual = {key: values[key] for key in values.keys() - {'model_type'}}
  return [f'config.json: {line}' for line in wrong] + huggingface.contradictions(ours, usual)


def misfit_grid(ours: Arrays, values: dict[str, Any]) -> list[str]:
  """What is wrong with image_size for a table of relative positions."""
  height, width = huggingface.sides(values.get('image_size', 224))
  rows, columns = (side // p for side, p in zip((height, width), ours['embed/kernel'].shape))
  distances = relative_distances(ours)
  if height != width:  # transformers takes rows of the table for columns
    return [f'image_size {height}x{width} of relative positions is no square']
  if (2 * rows - 1) * (2 * columns - 1) != distances:
    return [f'image_size is {height}, but relative positions are of {distances} distances']
  return []


def promises(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> list[str]:
  """The arrays that every file has, and those that config.json tells of."""
  values = with_defaults(config)
  names = ' '.join(config.get('architectures', ()))
  if values and 'MaskedImageModeling' not in names and not values['use_mean_pooling']:
    return [*PROMISES, 'encoder/norm/scale', 'encoder/norm/bias', *huggingface.classifiers(config)]
  pooled = 'ForImageClassification' in names or 'fc_norm/bias' in ours or 'fc_norm/scale' in ours
  norms = ['fc_norm/scale', 'fc_norm/bias'] if pooled else []
  return [*PROMISES, *norms, *huggingface.classifiers(config)]


PREFIX = r'((beit|data2vec_vision)\.)?'
FAMILIES = (
  Family(
    dialect='huggingface',
    model='ViT',
    signs=(
      rf'{PREFIX}embeddings\.patch_embeddings\.projection\.weight',
      rf'{PREFIX}(encoder\.layer|layers)\.0\.layernorm_before\.weight',
      rf'{PREFIX}((encoder\.layer|layers)\.0\.(lambda_1|.*relative_position_bias_table)'
      r'|.*shared_position_bias\..*|encoder\.relative_position_bias\..*)',
    ),
    table=BEIT,
    tidy=tidy,
    details=details,
    preprocess=lambda config: preprocess(config, usual='Beit'),
    resample='bicubic',
    drops=(*huggingface.DROPS, r'.*\.relative_position_index', r'lm_head\..*'),
    fields=huggingface.FIELDS,
    tower=FIELDS,
    declared=declared,
    contradictions=contradictions,
    promises=promises,
  ),
)
