"""Hugging Face's names: what transformers 4 wrote and 5 writes on disk, and 5 has in memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.convert.engine import TABLE, TOKEN, Arrays, Family, Row, Spoken, renamed, rows
from vit_jax.convert.preprocess import look
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
  if 'encoder/blocks/mlp/gate/kernel' in ours:
    if 'use_gated_mlp' in config and act not in ('silu', 'swish'):
      raise ValueError(f'hidden_act {act!r} of a gated MLP is not silu')
    act = known['hidden_act']  # of no consequence: DINOv2's gate takes SiLU whatever it says
  if config.get('pooler_act', 'tanh') != 'tanh' and 'pre_logits/kernel' in ours:
    raise ValueError(f'pooler_act {config["pooler_act"]!r} is not tanh')
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
    size = config.get('vision_config', config).get('image_size')
    return {'steps': "resize(method='bilinear_antialias')", 'size': sides(size)} if size else {}
  resample = given.get('resample', 2)
  if resample not in METHODS:
    raise ValueError(f'preprocessor_config.json: resample {resample} is none of 2 and 3')
  method, steps = METHODS[resample], []
  crop = given.get('do_center_crop') and sides(given.get('crop_size'))
  found: dict[str, Any] = {'size': crop} if crop else {}
  size = given.get('size')
  if given.get('do_resize', True) and size:
    if isinstance(size, dict) and 'shortest_edge' in size:
      steps.append(f"resize_small({size['shortest_edge']}, method='{method}')")
      found.setdefault('size', (size['shortest_edge'],) * 2)
    else:
      height, width = sides(size)
      steps.append(f"resize({height}, {width}, method='{method}')")
      found.setdefault('size', (height, width))
  if crop:
    steps.append(f'central_crop({crop[0]}, {crop[1]})')
  found['steps'] = ' | '.join(steps)
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
  r'(.*\.)?embeddings\.mask_token',
  r'.*position_ids',
  r'text_model\..*',
  r'text_projection\.weight',
  r'logit_(scale|bias)',
  r'decoder\..*',
)
DINOV2_NAMES = (
  (r'^dinov2(_with_registers)?\.', ''),
  *MEMORY,
  (r'\.mlp\.(weights_out|down_proj)\.', '.mlp.fc2.'),
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
      r'(dinov2_with_registers\.)?embeddings\.register_tokens',
      r'(dinov2_with_registers\.)?encoder\.layer\.0\.norm1\.weight',
    ),
    table=DINOV2,
    tidy=joined,
    renames=DINOV2_NAMES,
    **COMMON,
  ),
  Family(
    signs=(
      r'(dinov2\.)?embeddings\.patch_embeddings\.projection\.weight',
      r'(dinov2\.)?encoder\.layer\.0\.norm1\.weight',
    ),
    table=DINOV2,
    resample='bicubic',
    tidy=joined,
    renames=DINOV2_NAMES,
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


def spoken(source: Any) -> Spoken:
  """transformers' names of version 4, and the JSON files that its `from_pretrained` reads."""
  if type(source.model).__name__ != 'ViT':
    raise ValueError(f'transformers has no {source.name}')
  form = FORMS[form_of(source.model)](source)
  configs = {
    'config.json': {**form.config, **labels(source)},
    'preprocessor_config.json': preprocessor(source),
  }
  fields = {'stem': (None,), 'qk_norm': (False,), 'rope_theta': (source.model.rope_theta,)}
  becomes = {'positions': 'learned', 'cls_position': True, 'head_bias': 0.0} | form.becomes
  return Spoken(form.table, fields | form.fields, becomes, finish=form.finish, configs=configs)


@dataclasses.dataclass(frozen=True)
class Form:
  """One of transformers' classes: see `Spoken` for the fields that it shares."""

  table: tuple[Row, ...]
  config: dict[str, Any]
  fields: dict[str, Any]
  becomes: dict[str, Any]
  finish: Callable[[Arrays], Arrays]


def form_of(model: Any) -> str:
  """The kind, as of `kind`, that has the model's parts."""
  if model.positions == 'rope':
    return 'dinov3'
  if model.pre_norm:
    return 'clip'
  if model.swiglu or model.layer_scale is not None or model.pool == 'token_gap':
    return 'dinov2'
  return 'vit' if model.has_class_token else 'siglip'


def prefixed(prefix: str, outside: str = 'classifier') -> Callable[[Arrays], Arrays]:
  """Puts a prefix before all names but the head's."""

  def finish(theirs: Arrays) -> Arrays:
    return {n if n.startswith(outside) else prefix + n: a for n, a in theirs.items()}

  return finish


def sizes(source: Any) -> dict[str, Any]:
  """The keys of config.json that every kind has."""
  model, size = source.model, source.preprocess.size
  return {
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.heads,
    'hidden_act': ACTS[model.activation],
    'layer_norm_eps': model.norm_eps,
    'image_size': size[0] if size[0] == size[1] else list(size),
    'patch_size': model.patch[0] if model.patch[0] == model.patch[1] else list(model.patch),
    'num_channels': 3,
    'dtype': 'float32',
  }


def vit_form(source: Any) -> Form:
  model = source.model
  distilled = model.distillation != 'none'
  name, prefix = ('DeiT', 'deit.') if distilled else ('ViT', 'vit.')
  if not model.num_classes:
    architecture, prefix = f'{name}Model', ''
  else:
    architecture = f'{name}ForImageClassification'
    architecture += 'WithTeacher' if model.distillation == 'head' else ''
  rename = prefixed(prefix, 'classifier')

  def finish(theirs: Arrays) -> Arrays:
    if model.distillation != 'head':
      return rename(theirs)
    outside = renamed(theirs, ((r'^classifier\.', 'cls_classifier.'),))
    heads = ('cls_classifier', 'distillation_classifier')
    return {n if n.startswith(heads) else prefix + n: a for n, a in outside.items()}

  return Form(
    VIT,
    {
      'architectures': [architecture],
      'model_type': name.lower(),
      **sizes(source),
      'intermediate_size': model.mlp_dim,
      'qkv_bias': model.qkv_bias != 'none',
      'pooler_act': 'tanh',
      'pooler_output_size': model.representation or model.width,
      'attention_probs_dropout_prob': 0.0,
      'hidden_dropout_prob': 0.0,
      'encoder_stride': model.patch[0],
    },
    {
      'pool': ('token',),
      'final_norm': ('tokens',),
      'registers': (0,),
      'representation': (None,) if model.num_classes else (None, model.width),
    },
    {'embed_bias': True, 'qkv_bias': 'none' if model.qkv_bias == 'none' else 'qkv'},
    finish,
  )


def dinov2_form(source: Any) -> Form:
  model = source.model
  name = 'Dinov2WithRegisters' if model.registers else 'Dinov2'
  kind = 'dinov2_with_registers' if model.registers else 'dinov2'
  classes = bool(model.num_classes)
  found = hidden_ratio(model)
  rename = prefixed(f'{kind}.' if classes else '')

  def finish(theirs: Arrays) -> Arrays:
    """With registers transformers always has a mask token, which only pre-training reads."""
    if model.swiglu:
      theirs = renamed(theirs, ((r'\.mlp\.fc2\.', '.mlp.weights_out.'),))
    mask = {'embeddings.mask_token': np.zeros((1, model.width), np.float32)}
    return rename(theirs | mask if model.registers else theirs)

  return Form(
    DINOV2,
    {
      'architectures': [f'{name}ForImageClassification' if classes else f'{name}Model'],
      'model_type': kind,
      **sizes(source),
      'mlp_ratio': found,
      'use_swiglu_ffn': model.swiglu,
      'qkv_bias': model.qkv_bias != 'none',
      'num_register_tokens': model.registers,
      'layerscale_value': model.layer_scale,
      'use_mask_token': False,
      'attention_probs_dropout_prob': 0.0,
      'hidden_dropout_prob': 0.0,
      'drop_path_rate': 0.0,
    },
    {
      'pool': ('token_gap',) if classes else ('token', 'gap', 'token_gap'),
      'class_token': (True, None),
      'final_norm': ('tokens',),
      'distillation': ('none',),
      'representation': (None,),
      'mlp_dim': (model.mlp_dim,) if found else (),
      'layer_scale': (model.layer_scale,) if model.layer_scale is not None else (),
      'activation': ('gelu_erf', 'gelu_tanh', 'quick_gelu'),
    },
    {'embed_bias': True, 'qkv_bias': 'none' if model.qkv_bias == 'none' else 'qkv'},
    finish,
  )


def hidden_ratio(model: Any) -> int | float | None:
  """The mlp_ratio from which transformers' DINOv2 computes this hidden width."""
  for ratio in (4, model.mlp_dim / model.width, 1.5 * model.mlp_dim / model.width):
    hidden = int(model.width * ratio)
    if model.swiglu:
      hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    if hidden == model.mlp_dim:
      return ratio
  return None


def dinov3_form(source: Any) -> Form:
  model = source.model

  def finish(theirs: Arrays) -> Arrays:
    """Adds the mask token, which only pre-training reads, and a table of no registers."""
    more = {'embeddings.mask_token': np.zeros((1, 1, model.width), np.float32)}
    if not model.registers:
      more['embeddings.register_tokens'] = np.zeros((1, 0, model.width), np.float32)
    return theirs | more

  return Form(
    DINOV3,
    {
      'architectures': ['DINOv3ViTModel'],
      'model_type': 'dinov3_vit',
      **sizes(source),
      'hidden_act': 'silu' if model.swiglu else ACTS[model.activation],
      'intermediate_size': model.mlp_dim,
      'num_register_tokens': model.registers,
      'rope_theta': model.rope_theta,
      'use_gated_mlp': model.swiglu,
      'layerscale_value': model.layer_scale,
      'query_bias': 'q' in model.qkv_bias,
      'key_bias': 'k' in model.qkv_bias,
      'value_bias': 'v' in model.qkv_bias,
      'proj_bias': True,
      'mlp_bias': True,
    },
    {
      'num_classes': (0,),
      'pool': ('token', 'gap'),
      'class_token': (True, None),
      'final_norm': ('tokens',),
      'distillation': ('none',),
      'representation': (None,),
      'layer_scale': (model.layer_scale,) if model.layer_scale is not None else (),
    },
    {'embed_bias': True, 'positions': 'rope'},
    finish,
  )


def clip_form(source: Any) -> Form:
  model = source.model
  tower = {'model_type': 'clip_vision_model', **sizes(source), 'intermediate_size': model.mlp_dim}
  classes = model.pool == 'gap'
  config: dict[str, Any] = {'architectures': ['CLIPVisionModel'], **tower}
  rename = prefixed('vision_model.')
  if classes:
    config = {
      'architectures': ['CLIPForImageClassification'],
      'model_type': 'clip',
      'vision_config': tower,
    }
  elif model.num_classes:
    config |= {
      'architectures': ['CLIPVisionModelWithProjection'],
      'projection_dim': model.num_classes,
    }

  def finish(theirs: Arrays) -> Arrays:
    if not classes:
      return renamed(rename(theirs), ((r'^classifier\.', 'visual_projection.'),))
    unread = {
      'post_layernorm.weight': np.ones(model.width, np.float32),
      'post_layernorm.bias': np.zeros(model.width, np.float32),
    }
    return rename(theirs | unread)

  return Form(
    CLIP,
    config,
    {
      'pool': ('token', 'gap'),
      'class_token': (True,) if classes else (True, None),
      'final_norm': ('none',) if classes else ('tokens',),
      'num_classes': (model.num_classes,) if model.num_classes or not classes else (),
      'head_bias': (model.head_bias,) if classes or not model.num_classes else (None,),
      'embed_bias': (False,),
      'qkv_bias': ('qkv',),
      'representation': (None,),
      'distillation': ('none',),
    },
    {'head_bias': 0.0 if classes else None},
    finish,
  )


def siglip_form(source: Any) -> Form:
  model = source.model
  tower = {
    'model_type': 'siglip_vision_model',
    **sizes(source),
    'intermediate_size': model.mlp_dim,
    'vision_use_head': model.pool == 'map',
  }
  config: dict[str, Any] = {'architectures': ['SiglipVisionModel'], **tower}
  if model.num_classes:
    config = {
      'architectures': ['SiglipForImageClassification'],
      'model_type': 'siglip',
      'vision_config': tower,
    }
  return Form(
    SIGLIP,
    config,
    {
      'pool': ('gap',) if model.num_classes else ('map', 'gap'),
      'final_norm': ('tokens',),
      'registers': (0,),
      'representation': (None,),
      'distillation': ('none',),
    },
    {'cls_position': model.cls_position, 'embed_bias': True, 'qkv_bias': 'qkv'},
    prefixed('vision_model.'),
  )


FORMS: dict[str, Callable[[Any], Form]] = {
  'vit': vit_form,
  'dinov2': dinov2_form,
  'dinov3': dinov3_form,
  'clip': clip_form,
  'siglip': siglip_form,
}
ACTS = {'gelu_erf': 'gelu', 'gelu_tanh': 'gelu_pytorch_tanh', 'quick_gelu': 'quick_gelu'}


def labels(source: Any) -> dict[str, Any]:
  """The names of the classes, as config.json has them."""
  if not source.classes or source.model.head_bias is None:
    return {}
  names = [f'LABEL_{i}' if name == str(i) else name for i, name in enumerate(source.classes)]
  return {
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }


def preprocessor(source: Any) -> dict[str, Any]:
  """preprocessor_config.json."""
  prepared = source.preprocess
  seen = look(prepared.steps, prepared.size)
  height, width = prepared.size
  numbers = {method: number for number, method in METHODS.items()} | {'bicubic': 3}
  config: dict[str, Any] = {
    'image_processor_type': 'ViTImageProcessor',
    'do_resize': True,
    'size': {'height': height, 'width': width},
    'resample': numbers.get(seen.method, 2) if seen else 2,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(prepared.mean),
    'image_std': list(prepared.std),
  }
  if seen and not seen.squash:
    config |= {
      'image_processor_type': 'CLIPImageProcessor',
      'size': {'shortest_edge': seen.side},
      'do_center_crop': True,
      'crop_size': {'height': height, 'width': width},
      'do_convert_rgb': True,
    }
  return config
