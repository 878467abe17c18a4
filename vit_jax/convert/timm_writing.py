"""Models written as timm reads them, with a config.json that its `local-dir:` opens."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from vit_jax.convert.engine import Arrays, Exportable, ExportSpec, renamed
from vit_jax.convert.preprocess import parse_steps
from vit_jax.convert.timm import BIT, EVA, MIXER, VIT
from vit_jax.models import mixer, resnet, vit


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
  if model.relative_positions != 'none':
    return relative_spec(source, model)
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


def relative_spec(source: Exportable, model: vit.ViT) -> ExportSpec:
  """A Beit where only queries and values have a bias, or there are positions besides; else a
  VisionTransformerRelPos.
  """
  is_beit = model.qkv_bias == 'qv' or model.positions != 'none'
  args, only = (beit_args, BEIT_ONLY) if is_beit else (relpos_args, RELPOS_ONLY)
  supported: dict[str, Sequence[Any]] = {
    'pool': ('token', 'gap', 'none'),
    'pool_prefix': pool_prefixes(model),
    'final_norm': ('tokens', 'pooled'),
    **dict.fromkeys(('stem', 'representation'), (None,)),
    **dict.fromkeys(('swiglu', 'pre_norm'), (False,)),
    'distillation': ('none',),
    'registers': (0,),
    'relative_positions': ('table',) if is_beit else ('table', 'mlp'),
    'post_norm': (False,) if is_beit or model.layer_scale is not None else (False, True),
    **only,
  }
  if is_beit and model.pool != 'token':
    supported['class_token'] = (True,)  # there always is one
  positions = 'none' if model.positions == 'none' else 'learned'
  return ExportSpec(
    VIT,
    supported=supported,
    rewrites={'head_bias': 0.0, 'embed_bias': True, 'cls_position': True, 'positions': positions},
    reader_defaults={'norm_eps': (1e-6,), 'activation': ('gelu_erf',)},
    finish=lambda theirs: renamed(theirs, BEIT_NAMES if is_beit else RELPOS_NAMES),
    configs={'config.json': described(source, *args(model, source.preprocess.size))},
  )


BEIT_NAMES = ((r'\.ls([12])\.gamma$', r'.gamma_\1'),)
RELPOS_NAMES = ((r'\.attn\.(relative_position_bias_table|mlp\.)', r'.attn.rel_pos.\1'),)
BEIT_ONLY: dict[str, Sequence[Any]] = {
  'qkv_bias': ('qv', 'none'),
  'qk_norm': (False,),
  'positions': ('learned', 'sincos2d', 'none'),
}
RELPOS_ONLY: dict[str, Sequence[Any]] = {'positions': ('none',), 'qkv_bias': ('qkv', 'none')}


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


def shared_args(model: vit.ViT, size: tuple[int, int]) -> dict[str, Any]:
  """Arguments that Eva and BEiT's class have in common."""
  return {
    'img_size': list(size),
    **shape_args(model),
    'mlp_ratio': ratio(model.width, model.mlp_dim),
    'qkv_bias': model.qkv_bias != 'none',
    'init_values': model.layer_scale,
    'global_pool': GLOBAL_POOLS.get(model.pool),
    'use_fc_norm': model.final_norm == 'pooled',
  }


def eva_args(model: vit.ViT, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  """The same of DINOv3's Eva."""
  return 'vit_small_plus_patch16_dinov3_qkvb', {
    **shared_args(model, size),
    'swiglu_mlp': model.swiglu,
    'swiglu_align_to': 1 if model.mlp_dim % 8 else 8,
    'num_reg_tokens': model.registers,
    'class_token': model.has_class_token,
  }


def beit_args(model: vit.ViT, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  """The same of BEiT's class."""
  return 'beit_base_patch16_224', {
    **shared_args(model, size),
    'use_abs_pos_emb': model.positions != 'none',
    'use_rel_pos_bias': True,
  }


def relpos_args(model: vit.ViT, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  """The same of a ViT with relative positions; the architecture tells where its norms are."""
  by_mlp = model.relative_positions == 'mlp'
  return f'vit_relpos_base_patch16_{"rpn_" * model.post_norm}224', {
    'img_size': list(size),
    **shape_args(model),
    'mlp_ratio': ratio(model.width, model.mlp_dim),
    'qkv_bias': model.qkv_bias != 'none',
    'qk_norm': model.qk_norm,
    'init_values': model.layer_scale,
    'class_token': model.has_class_token,
    'rel_pos_type': 'mlp' if by_mlp else 'bias',
    **({'rel_pos_dim': model.relative_hidden} if by_mlp else {}),
    'global_pool': GLOBAL_POOLS.get(model.pool),
    'fc_norm': model.final_norm == 'pooled',
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
