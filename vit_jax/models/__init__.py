"""Models by name: the papers' size tables, aliases, and `build`."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import lookup
from vit_jax.models import attention, layers, mixer, resnet, vit
from vit_jax.text import error_line, nearest

# width, depth, mlp_dim, heads: ViT's table 1 (arXiv 2010.11929), DeiT's Ti and S (2012.12877),
# g and G of Scaling ViT (2106.04560), So400m (2305.13035); M lies between S and B. g-opt and G-opt
# are big_vision's, of SigLIP 2 (2502.14786), So150m is timm's.
SIZES = {
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'M': (512, 12, 2048, 8),
  'B': (768, 12, 3072, 12),
  'So150m': (896, 18, 2304, 14),
  'L': (1024, 24, 4096, 16),
  'So400m': (1152, 27, 4304, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'g-opt': (1536, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
  'G-opt': (1536, 48, 8192, 16),
}
PATCHES = (8, 14, 16, 32)


def vit_fields(size: str, patch: int) -> dict[str, Any]:
  """A row of SIZES as the fields of a ViT."""
  width, depth, mlp_dim, heads = SIZES[size]
  return dict(patch=(patch, patch), width=width, depth=depth, mlp_dim=mlp_dim, heads=heads)


VITS = {f'ViT-{size}/{patch}': vit_fields(size, patch) for size in SIZES for patch in PATCHES}

# DeiT III (2204.07118): layer scale, and no position for the class token.
DEIT3_SIZES = ('S/16', 'M/16', 'B/16', 'L/16', 'H/14')
DEIT3 = {
  f'DeiT3-{name}': VITS[f'ViT-{name}'] | {'layer_scale': 1e-6, 'cls_position': False}
  for name in DEIT3_SIZES
}

# A ResNet's blocks before the patches: ViT's section 4.1, and How to train your ViT (2106.10270).
# R+ViT-Ti/16 cuts the cells of its root, 4 pixels wide, into 8x8: its patch is 32, its name is 16.
HYBRIDS = {
  'R+ViT-Ti/16': dict(vit_fields('Ti', 32), stem=()),
  'R26+ViT-S/32': dict(vit_fields('S', 32), stem=(2, 2, 2, 2)),
  'R26+ViT-B/32': dict(vit_fields('B', 32), stem=(2, 2, 2, 2)),
  'R50+ViT-B/16': dict(vit_fields('B', 16), stem=(3, 4, 9)),
  'R50+ViT-L/32': dict(vit_fields('L', 32), stem=(3, 4, 6, 3)),
}

# width, depth, tokens_dim, mlp_dim: table 1 of MLP-Mixer (2105.01601).
MIXER_SIZES = {
  'S': (512, 8, 256, 2048),
  'B': (768, 12, 384, 3072),
  'L': (1024, 24, 512, 4096),
  'H': (1280, 32, 640, 5120),
}
MIXERS = {
  f'Mixer-{size}/{patch}': dict(
    patch=(patch, patch), width=width, depth=depth, tokens_dim=tokens_dim, mlp_dim=mlp_dim
  )
  for size, (width, depth, tokens_dim, mlp_dim) in MIXER_SIZES.items()
  for patch in ((14,) if size == 'H' else (8, 16, 32))
}

# Big Transfer's (1912.11370); its largest is four times as wide.
RESNET_BLOCKS = {'R50': (3, 4, 6, 3), 'R101': (3, 4, 23, 3), 'R152': (3, 8, 36, 3)}
RESNETS = {
  f'BiT-{depth}x{factor}': dict(blocks=blocks, width_factor=factor)
  for depth, blocks in RESNET_BLOCKS.items()
  for factor in ((1, 2, 3, 4) if depth == 'R152' else (1, 2, 3))
}

VARIANTS: dict[str, dict[str, Any]] = {**VITS, **DEIT3, **HYBRIDS, **MIXERS, **RESNETS}

Model = vit.ViT | mixer.Mixer | resnet.ResNet

TIMM_SIZES = {
  'tiny': 'Ti',
  'small': 'S',
  'medium': 'M',
  'base': 'B',
  'large': 'L',
  'so150m': 'So150m',
  'so400m': 'So400m',
  'huge': 'H',
  'giant': 'g',
  'giantopt': 'g-opt',
  'gigantic': 'G',
}

# Other spellings of a name, without timm's '.tag', and the name in VARIANTS made of their parts.
SPELLINGS = tuple(
  (re.compile(pattern, re.IGNORECASE), name)
  for pattern, name in (
    (r'(?:vit[-_])?(?P<size>[a-z]+?(?:[14][05]0m|-opt)?)[-_/]?(?P<patch>\d+)',
     'ViT-{size}/{patch}'),
    (r'(?:vit|deit(?=_tiny_|_small_|_base_))_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)(?:_\d+)?',
     'ViT-{size}/{patch}'),
    (r'deit3[-_](?P<size>[a-z]+)[-_/](?:patch)?(?P<patch>\d+)(?:_\d+)?',
     'DeiT3-{size}/{patch}'),
    (r'(?P<stem>r\d*)[+_-](?:vit[-_])?(?P<size>[a-z]+)[-_/]?(?P<patch>\d+)',
     '{stem}+ViT-{size}/{patch}'),
    (r'vit_(?P<size>[a-z]+)_(?P<stem>r\d*)_s(?P<patch>\d+)(?:_p\d+)?(?:_\d+)?',
     '{stem}+ViT-{size}/{patch}'),
    (r'mixer[-_]?(?P<size>[a-z])[-_/]?(?P<patch>\d+)(?:_\d+)?', 'Mixer-{size}/{patch}'),
    (r'bit-(?:[sm]-)?r(?P<depth>\d+)x(?P<factor>\d)', 'BiT-R{depth}x{factor}'),
    (r'resnetv2_(?P<depth>\d+)x(?P<factor>\d)_bit', 'BiT-R{depth}x{factor}'),
  )
)  # fmt: skip


def build(name: str, *, num_classes: int = 1000, **fields: Any) -> Model:
  """The model of that name, a flax module, with any of its fields replaced by keyword.

  `model.init(key, images)` gives its parameters, `model.apply({'params': params}, images)` the
  logits and intermediates.

  Args:
    name: one of `vit_jax.models.VARIANTS` ('ViT-B/16'), in Google's spelling ('ViT-B_16', 'B_16',
      'b16') or timm's ('vit_base_patch16_224'); or 'package.module:name' of a flax module with a
      field `num_classes`, called as ours are (docs/extending.md).
    num_classes: outputs of the head; 0 for none.
    **fields: of the model's class, `vit_jax.models.vit.ViT`, `mixer.Mixer` or `resnet.ResNet`;
      None leaves the variant's value where the field has no None of its own, and one number for
      `patch` means a square.

  Raises:
    ValueError: for an unknown name or field, or a value that the field does not take.
  """
  variant = canonical(name)
  module = family(variant)
  kinds = field_types(module)
  chosen: dict[str, Any] = dict(VARIANTS.get(variant, {}), num_classes=num_classes)
  for field, value in fields.items():
    if field not in kinds:
      raise ValueError(f'unknown field {field!r} of {name}{nearest(field, list(kinds))}')
    if value is not None or is_optional(kinds[field]):
      chosen[field] = value
  arguments = {field: as_field(field, value) for field, value in chosen.items()}
  try:
    model = module(**arguments)
  except (Exception, SystemExit) as error:
    if not lookup.is_path(variant):
      raise
    raise ValueError(f'model {name}: {error_line(error)}') from error
  if isinstance(model, Model):
    check(model)
  return model


def family(variant: str) -> type[Any]:
  """The class of a name in VARIANTS, or of 'package.module:name', which must be a flax module.

  Raises:
    ValueError: if there is no such class, it is none, or has no field num_classes.
  """
  if not lookup.is_path(variant):
    return resnet.ResNet if variant in RESNETS else mixer.Mixer if variant in MIXERS else vit.ViT
  module = lookup.imported(variant, 'model', marked=True)
  if not (isinstance(module, type) and issubclass(module, nn.Module)):
    raise ValueError(f'model {variant!r} is no class of a flax.linen.Module')
  if 'num_classes' not in field_types(module):
    raise ValueError(f'model {variant!r} has no field num_classes, the outputs of its head')
  return module


# Fields that say how to compute, not what.
COMPUTE = ('dtype', 'unroll', 'remat', 'attention_kernel')


def default_fields(name: str) -> dict[str, Any]:
  """The dtype to compute in, for a model that has one and whose config names none."""
  return {'dtype': device_dtype()} if 'dtype' in field_types(family(canonical(name))) else {}


def canonical(name: str) -> str:
  """The name in VARIANTS that a Google or timm spelling stands for; 'module:name' as it is."""
  if lookup.is_path(name):
    return name
  bare = re.sub(r'\.\w+$', '', name)
  candidates = [name]
  for pattern, spelt in SPELLINGS:
    if match := pattern.fullmatch(bare):
      parts = match.groupdict()
      parts |= {'size': as_size(parts.get('size', '')), 'stem': parts.get('stem', '').upper()}
      candidates.append(spelt.format(**parts))
  for variant in candidates:
    if variant in VARIANTS:
      return variant
  raise ValueError(f'unknown model {name!r}{nearest(name, list(VARIANTS))}')


def as_size(text: str) -> str:
  """'b', 'B' or 'base' -> 'B'; 'g' and 'G' are different sizes and keep their case."""
  if text in SIZES:
    return text
  return ({size.lower(): size for size in SIZES} | TIMM_SIZES).get(text.lower(), '')


def field_types(module: type[nn.Module]) -> dict[str, Any]:
  """The type of every field that `build` takes."""
  return {f.name: f.type for f in dataclasses.fields(module) if f.name not in ('parent', 'name')}


def is_optional(kind: object) -> bool:
  return isinstance(kind, types.UnionType)  # `X | None` is the only union there is


def as_field(field: str, value: Any) -> Any:
  """A field's value in the form that the module takes: lists, as JSON has them, as tuples."""
  if field == 'patch' and isinstance(value, int):
    return (value, value)
  return tupled(value)


def tupled(value: Any) -> Any:
  """A list, as JSON has it, as a tuple; anything else as it is."""
  return tuple(value) if isinstance(value, list) else value


CHOICES: dict[str, tuple[str, ...]] = {
  'pool': vit.POOLS,
  'positions': vit.POSITIONS,
  'relative_positions': vit.RELATIVE_POSITIONS,
  'rope_grid': vit.ROPE_GRIDS,
  'rope_axes': vit.ROPE_AXES,
  'norm': tuple(layers.NORMS),
  'distillation': vit.DISTILLATION,
  'final_norm': vit.FINAL_NORMS,
  'qkv_bias': vit.QKV_BIASES,
  'activation': tuple(layers.ACTIVATIONS),
  'remat': tuple(layers.REMAT),
  'attention_kernel': attention.ATTENTION_KERNELS,
  'stem_numerics': tuple(resnet.NUMERICS),
  'numerics': tuple(resnet.NUMERICS),
  'head_init': tuple(layers.HEAD_INITS),
  'dtype': ('float32', 'bfloat16', 'float16'),
}
MINIMA = {'num_classes': 0, 'registers': 0}  # of other whole numbers, 1
FRACTIONS = ('dropout', 'attention_dropout', 'drop_path')
POSITIVE = ('norm_eps', 'rope_theta')


def is_separable(model: nn.Module) -> bool:
  """Whether in training too the output for an image depends on it and the parameters alone."""
  return isinstance(model, Model) and not any(getattr(model, name, 0) for name in FRACTIONS)


def check(model: Model) -> None:
  """Raises one ValueError that names every field with a value it cannot have."""
  wrong = []
  for field, kind in field_types(type(model)).items():
    if expected := misfit(field, kind, getattr(model, field)):
      wrong.append(f'{field} is {getattr(model, field)!r}, {expected}')
  if not wrong and isinstance(model, vit.ViT):
    wrong = conflicts(model)
  if wrong:
    raise ValueError('; '.join(wrong))


def misfit(name: str, kind: object, value: object) -> str:
  """What a value of a field must be, if it is not; '' if it is."""
  if is_optional(kind):
    if value is None:
      return ''
    kind = typing.get_args(kind)[0]
  if name in CHOICES:
    return '' if value in CHOICES[name] else f'known: {", ".join(CHOICES[name])}'
  if kind is bool:
    return '' if isinstance(value, bool) else 'must be True or False'
  if typing.get_origin(kind) is tuple:
    pair = ... not in typing.get_args(kind)
    sizes = value if isinstance(value, tuple) else (0,)
    if all(type(size) is int and size >= 1 for size in sizes) and (len(sizes) == 2 or not pair):
      return ''
    return f'must be {"a height and a width in pixels" if pair else "the units of each stage"}'
  if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
    return 'must be a number'
  if name in FRACTIONS:
    return '' if 0 <= value < 1 else 'must lie in [0, 1)'
  if name in POSITIVE:
    return '' if value > 0 else 'must be positive'
  if kind is int:
    low = MINIMA.get(name, 1)
    return '' if value >= low and isinstance(value, int) else f'must be at least {low}, whole'
  return ''


def conflicts(model: vit.ViT) -> list[str]:
  """What does not go together in fields that are right one by one."""
  wrong, width = [], model.width
  if width % model.heads:
    wrong.append(f'width {width} does not divide into {model.heads} heads')
  elif 'rope' in model.positions and width // model.heads % 4:
    wrong.append(f'rope positions need heads that 4 divides, got {width // model.heads} wide ones')
  if model.pool == 'map' and width % (model.pool_heads or 1):
    wrong.append(f'width {width} does not divide into {model.pool_heads} heads of the pool')
  if model.positions == 'sincos2d' and width % 4:
    wrong.append(f'sincos2d positions need a width that 4 divides, got {width}')
  if model.pool in ('token', 'token_gap') and model.class_token is False:
    wrong.append(f'pool {model.pool!r} needs the class token, class_token is False')
  if model.pool == 'none' and model.distillation == 'head':
    wrong.append("distillation 'head' needs a pool, pool is 'none'")
  if model.stem is not None:
    stride = resnet.stride(model.stem)
    if model.stem_width % resnet.GROUPS:
      wrong.append(f'stem_width is {model.stem_width}, must be a multiple of {resnet.GROUPS}')
    if any(side % stride for side in model.patch):
      p, q = model.patch
      wrong.append(f'patches of {p}x{q} pixels do not divide into cells of the stem, {stride} wide')
  return wrong


def device_dtype() -> str:
  """The type to compute in where none is asked for: 'bfloat16' on accelerators, else 'float32'."""
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


LARGEST_SIDE = 65_536  # pixels
LARGEST = 1 << 28  # values of one image, or of its tokens: 1 GiB of float32


def check_size(model: nn.Module, image_size: tuple[int, int]) -> None:
  """Raises ValueError if (height, width) does not divide into patches, or exceeds our limits."""
  patches = getattr(model, 'patch', (1, 1))
  cells = math.prod(side // patch for side, patch in zip(image_size, patches))
  values = max(3 * math.prod(image_size), cells * getattr(model, 'width', 1))
  if max(image_size) > LARGEST_SIDE or values > LARGEST:
    raise ValueError(
      f'image_size {image_size[0]}x{image_size[1]} is too large: at most {LARGEST_SIDE:,} pixels a '
      f'side, and {LARGEST:,} values of an image or of its tokens'
    )
  if any(side < 1 or side % patch for side, patch in zip(image_size, patches)):
    raise ValueError(
      f'image_size {image_size[0]}x{image_size[1]} does not divide into patches of '
      f'{patches[0]}x{patches[1]} pixels'
    )


def fields(model: nn.Module) -> dict[str, Any]:
  """Every field of a model, as `build` and JSON take them: what a bundle stores."""
  return {field: getattr(model, field) for field in field_types(type(model))}


Tree = Any  # a pytree of arrays, or of their shapes
Params = dict[str, Any]  # float32 arrays by name, nested: what is trained


def map_named(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
  """`function(name, leaf)` for every leaf of a tree; names are joined by '/'."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator='/'), leaf),
    tree,
  )


def flat(tree: Tree) -> dict[str, Any]:
  """A tree as {'encoder/norm/scale': leaf}."""
  named: dict[str, Any] = {}
  map_named(named.setdefault, tree)
  return named


def count(model: nn.Module, height: int = 224, width: int = 224, channels: int = 3) -> int:
  """How many parameters a model has for images of that size; nothing is computed."""
  images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
