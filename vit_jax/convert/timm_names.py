"""What a name of timm's stands for: its constructor's arguments, and what they are here.

timm's config.json names an `architecture`, and holds only arguments that differ from what that name
stands for. The table has them for every ViT-like name; tests/interop holds it against timm itself.
Every argument is read, is shown by the arrays, computes the same whatever its value, or is refused.
"""

import dataclasses
import difflib
import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

TABLE = 'timm_names.json'

# Shown by the names and shapes of the arrays.
SHOWN = (
  'img_size', 'patch_size', 'in_chans', 'num_classes', 'embed_dim', 'depth', 'num_heads',
  'mlp_ratio', 'qkv_bias', 'qk_norm', 'init_values', 'class_token', 'pos_embed', 'no_embed_class',
  'reg_tokens', 'pre_norm', 'final_norm', 'fc_norm', 'num_reg_tokens', 'swiglu_mlp',
  'swiglu_align_to', 'use_abs_pos_emb', 'use_pre_transformer_norm', 'use_post_transformer_norm',
  'use_fc_norm', 'num_blocks', 'layers', 'channels', 'width_factor', 'stem_chs', 'qkv_fused',
  'attn_type', 'attn_pool_mlp_ratio', 'num_kv_heads', 'attn_only_layer_scale', 'rel_pos_dim',
  'shared_rel_pos', 'embed_proj_type',
)  # fmt: skip
# What only training or initialisation reads, or images that do not divide into patches, or batches
# of several sizes; and a NaFlexVit's rotations, which are refused by their type.
INERT = (
  'drop_rate', 'pos_drop_rate', 'patch_drop_rate', 'proj_drop_rate', 'attn_drop_rate',
  'drop_path_rate', 'weight_init', 'fix_init', 'head_init_scale', 'nlhb', 'zero_init_last',
  'rope_shift_coords', 'rope_jitter_coords', 'rope_rescale_coords', 'dynamic_img_size',
  'dynamic_img_pad', 'input_norm_layer', 'use_key_only_attn_mask', 'pos_embed_use_grid_sample',
  'enable_patch_interpolator', 'rope_ref_feat_shape', 'rope_grid_indexing', 'rope_mrope_section',
)  # fmt: skip

# Read whatever its value.
READ = (
  'scale_attn_norm', 'scale_mlp_norm', 'scale_attn_inner', 'scale_mlp', 'proj_bias',
  'pool_include_prefix', 'use_rot_pos_emb', 'rope_grid_offset', 'rope_temperature',
  'rope_rotate_half', 'ref_feat_shape', 'attn_pool_num_heads', 'use_rel_pos_bias',
  'use_shared_rel_pos_bias', 'use_post_norm', 'scale_attn_inner_norm',
  'scale_mlp_norm', 'pos_embed_grid_size', 'pos_embed_ar_preserving', 'pos_embed_antialias',
  'pos_embed_align_corners',
)  # fmt: skip

NORMS = {'layernorm': 'layer', 'rmsnorm': 'rms'}
ACTIVATIONS = {'gelu': 'gelu_erf', 'gelutanh': 'gelu_tanh', 'quickgelu': 'quick_gelu'}
POSITIONS = {  # by whether there is a table, and a rotation
  (False, False): 'none',
  (True, False): 'learned',
  (False, True): 'rope',
  (True, True): 'learned_rope',
}
POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map', '': 'none'}
SWIGLU = 'GluMlp(act_layer=SiLU, gate_last=False)'
HYBRID = 'HybridEmbed(backbone={})'

# The values that a model here computes, of arguments that the arrays do not show.
SUPPORTED: dict[str, dict[str, tuple[object, ...]]] = {
  'VisionTransformer': {
    'global_pool': tuple(POOLS),
    'embed_layer': ('PatchEmbed', HYBRID.format('ResNetV2'), HYBRID.format('Sequential')),
    'norm_layer': (None, *NORMS),
    'act_layer': (None, *ACTIVATIONS),
    'block_fn': ('Block', 'ResPostBlock', 'ParallelScalingBlock'),
    'mlp_layer': ('Mlp',),
    'attn_layer': ('Attention', '', 'attn'),
  },
  'Eva': {
    'global_pool': tuple(POOLS),
    'norm_layer': tuple(NORMS),
    'rope_type': ('cat', 'dinov3'),
    'rope_grid_indexing': ('ij', 'xy'),
    'rope_mrope_section': (None,),
  },
  'Beit': {
    'global_pool': ('token', 'avg', ''),
    'norm_layer': tuple(NORMS),
  },
  'VisionTransformerRelPos': {
    'global_pool': ('token', 'avg', ''),
    'rel_pos_type': ('mlp', 'bias'),
    'embed_layer': ('PatchEmbed',),
    'norm_layer': (None, *NORMS),
    'act_layer': (None, *ACTIVATIONS),
    'block_fn': ('RelPosBlock', 'ResPostRelPosBlock'),
  },
  'NaFlexVit': {
    'global_pool': tuple(POOLS),
    'pos_embed_interp_mode': ('bicubic', 'bilinear'),
    'rope_type': ('', 'none'),
    'patchify_channels_last': (True,),
    'norm_layer': (None, *NORMS),
    'act_layer': (None, *ACTIVATIONS),
    'block_fn': (None,),
    'mlp_layer': (None,),
    'attn_layer': (None, '', 'attn'),
    'attn_type': ('standard',),
    'attn_gated': (False,),
    'swiglu_mlp': (False,),
    'num_kv_heads': (None,),
    'attn_only_layer_scale': (False,),
  },
  'MlpMixer': {
    'block_layer': ('MixerBlock',),
    'mlp_layer': ('Mlp',),
    'norm_layer': ('layernorm',),
    'act_layer': tuple(ACTIVATIONS),
    'stem_norm': (False,),
    'global_pool': ('avg',),
  },
  'ResNetV2': {
    'global_pool': ('avg',),
    'output_stride': (32,),
    'stem_type': ('fixed',),
    'avg_down': (False,),
    'preact': (True,),
    'basic': (False,),
    'bottle_ratio': (0.25,),
    'act_layer': ('ReLU',),
    'norm_layer': ('GroupNormAct(num_groups=32)',),
    'conv_layer': ('StdConv2d(eps=1e-08)',),
  },
}
# Of a gated MLP, whose gate takes SiLU.
GATED = {
  'mlp_layer': (SWIGLU, 'SwiGLU'),
  'act_layer': ('silu',),
  'global_pool': ('token', 'avg', ''),  # attention pooling would take SiLU, too
}
# What must be said of an architecture that the table does not have.
UNSHOWN = ('num_heads', 'global_pool', 'norm_layer', 'act_layer')


@dataclasses.dataclass(frozen=True)
class Call:
  """The call of one of timm's constructors that a config.json describes.

  Fields:
    constructor: its class, 'VisionTransformer'.
    architecture: the name in config.json.
    arguments: every argument, by name.
    stated: which of them config.json itself states.
  """

  constructor: str
  architecture: str
  arguments: Mapping[str, Any]
  stated: frozenset[str]

  def where(self, argument: str) -> str:
    """Where an argument is said, for messages."""
    if argument in self.stated:
      return f'config.json: {argument}'
    return f'config.json: {argument} of architecture {self.architecture}'


@functools.cache
def table() -> dict[str, Any]:
  """timm_names.json: `defaults` of constructors, `architectures`, `former` names of these."""
  content: dict[str, Any] = json.loads(pathlib.Path(__file__).with_name(TABLE).read_text('utf-8'))
  return content


def called(config: Mapping[str, Any], architecture: str, default: str) -> Call | None:
  """The call that config.json describes; None if it names no architecture and states no argument.

  As in timm, arguments that config.json states come before those of the architecture, and those
  before what `pretrained_cfg` says of the weights.

  Args:
    config: of config.json.
    architecture: the name there, '' without one.
    default: the constructor of an architecture that the table does not have.

  Raises:
    ValueError: if the table lacks the architecture and config.json does not state all that the
      arrays do not show, or it states an argument that the constructor does not have.
  """
  stated = config.get('model_args', {})
  if not architecture and not stated:
    return None
  row = dict(row_of(architecture, stated, default))
  constructor = row.pop('constructor')
  defaults = table()['defaults'].get(constructor)
  if defaults is None:
    raise ValueError(f'config.json: timm builds {architecture} by its {constructor}, no ViT here')
  if unknown := [key for key in stated if key not in defaults]:
    raise ValueError(f"config.json: timm's {constructor} has no argument {', '.join(unknown)}")
  weights = {k: v for k, v in pretrained(config).items() if k == 'global_pool'}
  return Call(constructor, architecture, defaults | weights | row | stated, frozenset(stated))


def pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """What config.json says of the weights: `pretrained_cfg`, or as timm had it first, at the top."""
  usual = config if 'architecture' in config else {}
  weights: Mapping[str, Any] = config.get('pretrained_cfg', usual)
  return weights


def row_of(architecture: str, stated: Mapping[str, Any], default: str) -> Mapping[str, Any]:
  """The constructor and unusual arguments of an architecture; see `called`."""
  name = architecture.split('.')[0]
  rows = table()['architectures']
  row: Mapping[str, Any] | None = rows.get(table()['former'].get(name, name))
  if row is not None:
    return row
  required = [key for key in UNSHOWN if key in table()['defaults'][default]]
  if lacking := [key for key in required if key not in stated]:
    similar = ', '.join(difflib.get_close_matches(name, rows, n=3)) or 'none'
    raise ValueError(
      f'config.json: architecture {architecture!r} is none of timm {table()["timm"]} (like it: '
      f'{similar}), and model_args does not say {", ".join(lacking)}'
    )
  return {'constructor': default}


def plain(value: object) -> object:
  """A name without the variation that timm does not mind: 'GELU' and 'gelu_tanh' as 'gelu', ..."""
  return value.replace('_', '').lower() if isinstance(value, str) else value


def norm(value: str | None) -> tuple[str, float]:
  """The name and epsilon of a norm, such as 'LayerNorm(eps=1e-05)'; timm's usual one is 1e-6."""
  match = re.fullmatch(r'(\w+)(?:\(eps=([-+.\de]+)\))?', value or 'layernorm')
  if match is None:
    return str(value), 0.0
  return match[1].replace('_', '').lower().removesuffix('fp32'), float(match[2] or 1e-6)


def check(call: Call) -> None:
  """Raises ValueError that names every argument by which timm computes what no model here does."""
  supported = SUPPORTED[call.constructor]
  if is_gated(call):
    supported = supported | GATED
  if call.arguments.get('embed_norm_layer') is not None:  # no model has two kinds of norms
    supported = supported | {'embed_norm_layer': (call.arguments['norm_layer'],)}
  if call.constructor == 'Eva' and not call.arguments['qk_norm']:  # the width of a head is unknown
    supported = supported | {'num_kv_heads': (None,), 'attn_only_layer_scale': (False,)}
  if call.arguments.get('pos_embed_antialias'):  # no rule has both
    supported = supported | {'pos_embed_align_corners': (False,)}
  refused = []
  for argument, values in supported.items():
    value = call.arguments[argument]
    read = norm(value)[0] if argument == 'norm_layer' and isinstance(value, str) else value
    if (plain(read), type(read) is bool) not in [(plain(v), type(v) is bool) for v in values]:
      choices = ', '.join(repr(choice) for choice in values)
      refused.append(f'{call.where(argument)} is {value!r}, but models here compute {choices}')
  if refused:
    raise ValueError('; '.join(refused))


def is_gated(call: Call) -> bool:
  return call.arguments.get('mlp_layer') in GATED['mlp_layer']


def fields(call: Call) -> dict[str, Any]:
  """Fields of our model that the arrays do not show; `check` comes before."""
  args = call.arguments
  kind, eps = norm(args['norm_layer'])
  values: dict[str, Any] = {'norm_eps': eps}
  if 'act_layer' in args and not is_gated(call):
    values['activation'] = ACTIVATIONS[str(plain(args['act_layer'] or 'gelu'))]
  else:
    values['activation'] = 'gelu_erf'
  if call.constructor == 'MlpMixer':
    return values
  values |= {'pool': POOLS[args['global_pool']], 'stem_numerics': 'timm'}
  values |= {'pool_prefix': pool_prefix(call), 'norm': NORMS[kind]}
  return values | ONLY[call.constructor](args)


def vit_fields(args: Mapping[str, Any]) -> dict[str, Any]:
  """Fields that only a VisionTransformer's arguments say."""
  return {
    'post_norm': args['block_fn'] == 'ResPostBlock',
    'parallel': args['block_fn'] == 'ParallelScalingBlock',
    'attention_norm': args['scale_attn_norm'],
    'mlp_norm': args['scale_mlp_norm'],
    'embed_norm': args['embed_norm_layer'] is not None,
    'proj_bias': args['proj_bias'],
  }


def eva_fields(args: Mapping[str, Any]) -> dict[str, Any]:
  """Fields that only an Eva's arguments say."""
  learned, rotated = args['use_abs_pos_emb'], args['use_rot_pos_emb']
  values: dict[str, Any] = {
    'attention_norm': args['scale_attn_inner'],
    'mlp_norm': args['scale_mlp'],
    'post_norm': bool(args['use_post_norm']),
    'positions': POSITIONS[learned, rotated],
  }
  if args['global_pool'] == 'map':
    values['pool_heads'] = args['attn_pool_num_heads']
  if not rotated:
    return values
  cells, reference = args['rope_type'] == 'cat', args['ref_feat_shape']
  if isinstance(reference, int):
    reference = [reference, reference]
  return values | {
    'rope_theta': float(args['rope_temperature']),
    'rope_grid': 'cells' if cells else 'centres',
    'rope_offset': float(args['rope_grid_offset']),
    'rope_reference': tuple(reference) if cells and reference else None,
    'rope_axes': 'xy' if args['rope_grid_indexing'] == 'xy' else 'yx',
    'rope_interleaved': not args['rope_rotate_half'],
  }


def beit_fields(args: Mapping[str, Any]) -> dict[str, Any]:
  """Fields that only a Beit's arguments say."""
  relative = args['use_rel_pos_bias'] or args['use_shared_rel_pos_bias']
  return {
    'positions': POSITIONS[bool(args['use_abs_pos_emb']), False],
    'relative_positions': 'table' if relative else 'none',
    'mlp_norm': args['scale_mlp'],
  }


def relpos_fields(args: Mapping[str, Any]) -> dict[str, Any]:
  """Fields that only a VisionTransformerRelPos's arguments say."""
  return {
    'relative_positions': 'mlp' if args['rel_pos_type'] == 'mlp' else 'table',
    'post_norm': args['block_fn'] == 'ResPostRelPosBlock',
  }


def naflex_fields(args: Mapping[str, Any]) -> dict[str, Any]:
  """Fields that only a NaFlexVit's arguments say."""
  return {
    'attention_norm': args['scale_attn_inner_norm'],
    'mlp_norm': args['scale_mlp_norm'],
    'embed_norm': args['embed_norm_layer'] is not None,
    'proj_bias': args['proj_bias'],
    'pool_heads': args['attn_pool_num_heads'] if args['global_pool'] == 'map' else None,
  }


ONLY: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
  'VisionTransformer': vit_fields,
  'Eva': eva_fields,
  'Beit': beit_fields,
  'VisionTransformerRelPos': relpos_fields,
  'NaFlexVit': naflex_fields,
}


def resampling(args: Mapping[str, Any]) -> str:
  """The rule of `resample.RULES` by which a NaFlexVit resamples its positions."""
  if args['pos_embed'] == 'factorized':
    rule = 'bilinear'
  else:
    rule = args['pos_embed_interp_mode']
    rule += '_align_corners' if args['pos_embed_align_corners'] else ''
    rule += '_antialias' if args['pos_embed_antialias'] else ''
  return f'{rule}_square' if args['pos_embed_ar_preserving'] else rule


def table_size(call: Call) -> tuple[str, tuple[int, int]]:
  """Where a NaFlexVit's table of positions is said, and the (height, width) that it is for."""
  grid, patch = call.arguments['pos_embed_grid_size'], call.arguments['patch_size']
  patch = [patch] if isinstance(patch, int) else patch
  return call.where('pos_embed_grid_size'), (grid[0] * patch[0], grid[1] * patch[-1])


def pool_prefix(call: Call) -> bool | None:
  """`ViT.pool_prefix`, which is None where timm pools what is usual here."""
  args = call.arguments
  registers = args.get('num_reg_tokens', args.get('reg_tokens', 0))
  if not args.get('class_token', True) and not registers:  # a Beit has one, unasked
    return None
  if args['global_pool'] == '':
    return True
  included = args.get('pool_include_prefix', args['global_pool'] == 'map')
  return None if included == (args['global_pool'] == 'map') else included


def declared(call: Call) -> dict[str, tuple[str, Any]]:
  """What the arrays must agree with: see `engine.Family.declared`."""
  keys = {
    'width': 'embed_dim',
    'depth': 'num_blocks' if call.constructor == 'MlpMixer' else 'depth',
    'heads': 'num_heads',
  }
  values = {
    ours: (call.where(key), call.arguments[key])
    for ours, key in keys.items()
    if key in call.arguments
  }
  heads = call.arguments.get('attn_pool_num_heads')
  if heads and call.arguments['global_pool'] == 'map':
    values['pool_heads'] = (call.where('attn_pool_num_heads'), heads)
  return values
