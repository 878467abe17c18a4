"""Hugging Face's names: what transformers 4 wrote and 5 writes on disk, and 5 has in memory."""

from typing import Any

import numpy as np

from vit_jax.convert.engine import TABLE, TOKEN, Arrays, Family, rows
from vit_jax.convert.timm import BLOCKS, conv, dense, merged, norm, projected


def attention(query: str, key: str, value: str, out: str) -> list[tuple[Any, ...]]:
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
  'gelu': 'gelu_erf',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
}


def details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields from config.json; without one, those of the kind's published files."""
  config = config.get('vision_config', config)
  known = DEFAULTS[kind(theirs)]
  act = config.get('hidden_act', known['hidden_act'])
  if act not in ACTIVATIONS:
    raise ValueError(f'hidden_act {act!r} is none of {", ".join(ACTIVATIONS)}')
  fields = {
    'activation': ACTIVATIONS[act],
    'norm_eps': config.get('layer_norm_eps', known['layer_norm_eps']),
  }
  if 'num_attention_heads' in config:
    fields['heads'] = config['num_attention_heads']
  return fields | TRAITS[kind(theirs)](theirs, ours, config)


def kind(names: Arrays) -> str:
  """'vit', 'dinov2', 'dinov3', 'clip' or 'siglip', by their names."""
  if 'embeddings.class_embedding' in names:
    return 'clip'
  if 'embeddings.patch_embedding.weight' in names:
    return 'siglip'
  if 'layer.0.norm1.weight' in names:
    return 'dinov3'
  return 'dinov2' if 'encoder.layer.0.norm1.weight' in names else 'vit'


def vit_traits(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  return {}


def dinov2_traits(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Its classifier reads the class token and the mean of the patches."""
  head, width = ours.get('head/kernel'), ours['embed/kernel'].shape[-1]
  return {'pool': 'token_gap'} if head is not None and len(head) == 2 * width else {}


def dinov3_traits(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  return {'positions': 'rope', 'rope_theta': config.get('rope_theta', 100.0)}


def clip_traits(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """A classifier reads the mean of the patches, before the last norm."""
  return {'pool': 'gap', 'final_norm': 'none'} if 'classifier.bias' in theirs else {}


def siglip_traits(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """A classifier reads the mean of the patches, without the attention pooling."""
  return {'pool': 'gap'} if 'classifier.weight' in theirs else {}


TRAITS = {
  'vit': vit_traits,
  'dinov2': dinov2_traits,
  'dinov3': dinov3_traits,
  'clip': clip_traits,
  'siglip': siglip_traits,
}
DEFAULTS = {
  'vit': {'hidden_act': 'gelu', 'layer_norm_eps': 1e-12},
  'dinov2': {'hidden_act': 'gelu', 'layer_norm_eps': 1e-6},
  'dinov3': {'hidden_act': 'gelu', 'layer_norm_eps': 1e-5},
  'clip': {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5},
  'siglip': {'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6},
}

METHODS = {2: 'bilinear_antialias', 3: 'bicubic_antialias'}  # PIL's numbers


def preprocess(config: dict[str, Any]) -> dict[str, Any]:
  """From preprocessor_config.json: squashed, or the shorter side resized; then the centre."""
  given = config.get('preprocessor')
  if not given:
    return {}
  resample = given.get('resample', 2)
  if resample not in METHODS:
    raise ValueError(f'preprocessor_config.json: resample {resample} is none of 2 and 3')
  method, steps = METHODS[resample], []
  crop = given.get('do_center_crop') and sides(given.get('crop_size'))
  size = given.get('size')
  if given.get('do_resize', True) and size:
    if isinstance(size, dict) and 'shortest_edge' in size:
      steps.append(f"resize_small({size['shortest_edge']}, method='{method}')")
      model = crop or (size['shortest_edge'],) * 2
    else:
      model = sides(size)
      steps.append(f"resize({model[0]}, {model[1]}, method='{method}')")
  if crop:
    steps.append(f'central_crop({crop[0]}, {crop[1]})')
  found: dict[str, Any] = {'steps': ' | '.join(steps), 'size': crop or model}
  if given.get('do_normalize', True):
    found |= {'mean': tuple(given['image_mean']), 'std': tuple(given['image_std'])}
  return found


def sides(size: Any) -> tuple[int, int]:
  """(height, width) of a size in any of the forms that files have."""
  if isinstance(size, dict):
    return (size['height'], size['width'])
  return (size, size) if isinstance(size, int) else tuple(size)


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
  r'embeddings\.mask_token',
  r'.*position_ids',
  r'text_model\..*',
  r'text_projection\.weight',
  r'logit_(scale|bias)',
  r'decoder\..*',
)
COMMON: dict[str, Any] = dict(
  dialect='huggingface', model='ViT', details=details, preprocess=preprocess, drops=DROPS
)
FAMILIES = (
  Family(
    signs=(
      r'((vit|deit)\.)?embeddings\.patch_embeddings\.projection\.weight',
      r'((vit|deit)\.)?(encoder\.layer|layers)\.0\.layernorm_before\.weight',
    ),
    table=VIT,
    resample='bicubic',
    renames=(
      (r'^(vit|deit)\.', ''),
      *MEMORY,
      (r'^(encoder\.layer\.\d+)\.mlp\.fc1\.', r'\1.intermediate.dense.'),
      (r'^(encoder\.layer\.\d+)\.mlp\.fc2\.', r'\1.output.dense.'),
      (r'^cls_classifier\.', 'classifier.'),
    ),
    **COMMON,
  ),
  Family(
    signs=(
      r'(dinov2(_with_registers)?\.)?embeddings\.patch_embeddings\.projection\.weight',
      r'(dinov2(_with_registers)?\.)?encoder\.layer\.0\.norm1\.weight',
    ),
    table=DINOV2,
    resample='bicubic',
    tidy=joined,
    renames=(
      (r'^dinov2(_with_registers)?\.', ''),
      *MEMORY,
      (r'\.mlp\.(weights_out|down_proj)\.', '.mlp.fc2.'),
    ),
    **COMMON,
  ),
  Family(
    signs=(r'embeddings\.patch_embeddings\.weight', r'(model\.)?layer\.0\.norm1\.weight'),
    table=DINOV3,
    renames=((r'^model\.', ''),),
    **COMMON,
  ),
  Family(
    signs=(r'(vision_model\.)?embeddings\.class_embedding', r'(vision_model\.)?pre_layrnorm.*'),
    table=CLIP,
    resample='bicubic',
    renames=((r'^vision_model\.', ''), (r'^visual_projection\.', 'classifier.')),
    **COMMON,
  ),
  Family(
    signs=(
      r'(vision_model\.)?embeddings\.patch_embedding\.weight',
      r'(vision_model\.)?encoder\.layers\.0\.layer_norm1\.weight',
    ),
    table=SIGLIP,
    resample='bicubic',
    renames=((r'^vision_model\.', ''),),
    **COMMON,
  ),
)
