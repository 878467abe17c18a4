"""Models written as transformers reads them: names of its version 4, and the JSON beside them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.convert import huggingface_decoder, kinds
from vit_jax.convert.beit import BEIT
from vit_jax.convert.engine import Arrays, Exportable, ExportSpec, renamed
from vit_jax.convert.huggingface import CLIP, DINOV2, DINOV3, SIGLIP, VIT, dinov2_hidden
from vit_jax.convert.huggingface_images import METHODS
from vit_jax.convert.preprocess import parse_steps
from vit_jax.models import vit
from vit_jax.models.decoder import TrainedDecoder, patch_grid


def export_spec(source: Exportable) -> ExportSpec:
  """transformers' names of version 4, and the JSON files that its `from_pretrained` reads."""
  model = source.model
  if not isinstance(model, vit.ViT):
    raise ValueError(f'transformers has no {source.name}')
  shared = sizes(model, source.preprocess.size) | {'num_channels': source.preprocess.channels}
  if source.decoder is None:
    spec = SPECS[writable_kind(model)](model, shared)
  else:
    spec = mae_spec(model, shared, source.decoder, source.preprocess.size)
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
  if model.relative_positions == 'table':
    return 'beit'
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


def mae_spec(
  model: vit.ViT, shared: dict[str, Any], decoder: TrainedDecoder, size: tuple[int, int]
) -> ExportSpec:
  """An encoder and its decoder, as ViTMAEForPreTraining has both."""
  if not (isinstance(shared['image_size'], int) and isinstance(shared['patch_size'], int)):
    raise ValueError("transformers' ViTMAE takes squares alone: of images and of patches")
  if not model.has_class_token:
    raise ValueError(
      "transformers' ViTMAE has a class token, the model none; --encoder-only writes the encoder"
    )
  for field in ('activation', 'norm_eps'):
    if (theirs := getattr(decoder.model, field)) != (ours := getattr(model, field)):
      raise ValueError(f'{field} of the decoder is {theirs}, of the encoder {ours}: must be one')
  arrays, fields = huggingface_decoder.write(decoder, patch_grid(model, size))
  config = {
    'architectures': ['ViTMAEForPreTraining'],
    'model_type': 'vit_mae',
    **shared,
    'intermediate_size': model.mlp_dim,
    'qkv_bias': model.qkv_bias != 'none',
    'attention_probs_dropout_prob': 0.0,
    'hidden_dropout_prob': 0.0,
    **fields,
  }
  encoder = vit_spec(model, shared)
  supported = {
    **encoder.supported,
    'pool': ('token', 'gap', 'token_gap'),  # of features, which ViTMAE does not give
    'num_classes': (0,),
    'distillation': ('none',),
    'representation': (None,),
  }
  return dataclasses.replace(
    encoder,
    supported=supported,
    finish=lambda theirs: prefixed(theirs, 'vit.') | arrays,
    configs={'config.json': config},
  )


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


def beit_spec(model: vit.ViT, shared: dict[str, Any]) -> ExportSpec:
  mean, learned = model.pool == 'gap', model.positions != 'none'
  if not isinstance(shared['image_size'], int):
    raise ValueError("transformers' BEiT takes only squares: image_size must be one number")
  config = {
    'architectures': ['BeitForImageClassification' if model.num_classes else 'BeitModel'],
    'model_type': 'beit',
    **shared,
    'intermediate_size': model.mlp_dim,
    'use_mean_pooling': mean,
    'use_absolute_position_embeddings': learned,
    'use_relative_position_bias': True,
    'use_shared_relative_position_bias': False,
    'layer_scale_init_value': model.layer_scale or 0.0,
    'attention_probs_dropout_prob': 0.0,
    'hidden_dropout_prob': 0.0,
    'drop_path_rate': 0.0,
  }
  supported = {
    'pool': ('token', 'gap'),
    'class_token': (True,) if mean else (True, None),
    'final_norm': ('pooled',) if mean else ('tokens',),
    'relative_positions': ('table',),
    'qkv_bias': ('qv', 'none'),
    'registers': (0,),
    'swiglu': (False,),
    'distillation': ('none',),
    'representation': (None,),
  }
  rewrites = {
    'positions': 'learned' if learned else 'none',
    'embed_bias': True,
    'qkv_bias': 'qv',
  }
  prefix = 'beit.' if model.num_classes else ''
  return ExportSpec(
    BEIT,
    supported,
    rewrites,
    finish=lambda theirs: prefixed(theirs, prefix),
    configs={'config.json': config},
  )


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
    'proj_bias': model.proj_bias,
    'mlp_bias': model.proj_bias,
  }
  supported = {
    'num_classes': (0,),
    'pool': ('token', 'gap'),
    'class_token': (True, None),
    'final_norm': ('tokens',),
    'distillation': ('none',),
    'proj_bias': (False, True),
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
  'beit': beit_spec,
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
