"""Models by name: the papers' size tables, aliases, and `build`."""

import argparse
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import vit

# width, depth, mlp_dim, heads: ViT's table 1 (arXiv 2010.11929), DeiT's Ti and S (2012.12877),
# g and G of Scaling ViT (2106.04560), So400m (2305.13035); M lies between S and B.
SIZES = {
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'M': (512, 12, 2048, 8),
  'B': (768, 12, 3072, 12),
  'L': (1024, 24, 4096, 16),
  'So400m': (1152, 27, 4304, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
}
PATCHES = (8, 14, 16, 32)

VARIANTS: dict[str, dict[str, Any]] = {
  f'ViT-{size}/{patch}': dict(
    patch=(patch, patch), width=width, depth=depth, mlp_dim=mlp_dim, heads=heads
  )
  for size, (width, depth, mlp_dim, heads) in SIZES.items()
  for patch in PATCHES
}

TIMM_SIZES = {
  'tiny': 'Ti',
  'small': 'S',
  'medium': 'M',
  'base': 'B',
  'large': 'L',
  'so400m': 'So400m',
  'huge': 'H',
  'giant': 'g',
  'gigantic': 'G',
}


def build(name: str, *, num_classes: int = 1000, **fields: Any) -> vit.ViT:
  """The model of that name, a flax module, with any of its fields replaced by keyword.

  `model.init(key, images)` gives its parameters, `model.apply({'params': params}, images)` the
  logits and intermediates.

  Args:
    name: one of `vit_jax.models.VARIANTS` ('ViT-B/16'), in Google's spelling ('ViT-B_16', 'B_16',
      'b16') or timm's ('vit_base_patch16_224').
    num_classes: outputs of the head; 0 for none.
    **fields: of `vit_jax.models.vit.ViT`; None leaves the variant's value, and one number for
      `patch` means a square.

  Raises:
    ValueError: for an unknown name or field, or a value that the field does not take.
  """
  chosen: dict[str, Any] = dict(VARIANTS[canonical(name)], num_classes=num_classes)
  known = field_names(vit.ViT)
  for field, value in fields.items():
    if field not in known:
      raise ValueError(f'unknown field {field!r} of {name}{nearest(field, known)}')
    if value is not None:
      chosen[field] = value
  model = vit.ViT(**{field: as_field(field, value) for field, value in chosen.items()})
  check(model)
  return model


def canonical(name: str) -> str:
  """The name in VARIANTS that a Google or timm spelling stands for."""
  if name in VARIANTS:
    return name
  google = re.fullmatch(r'(?:vit[-_])?([a-z]+?(?:400m)?)[-_/]?(\d+)', name, re.IGNORECASE)
  timm = re.fullmatch(r'vit_([a-z0-9]+)_patch(\d+)(?:_\d+)?(?:\.\w+)?', name)
  size, patch = '', ''
  if timm:
    size, patch = TIMM_SIZES.get(timm[1], ''), timm[2]
  elif google:
    size, patch = google_size(google[1]), google[2]
  if f'ViT-{size}/{patch}' in VARIANTS:
    return f'ViT-{size}/{patch}'
  raise ValueError(f'unknown model {name!r}{nearest(name, list(VARIANTS))}')


def google_size(text: str) -> str:
  """'b' or 'B' -> 'B'; 'g' and 'G' are different sizes and keep their case."""
  return text if text in SIZES else {size.lower(): size for size in SIZES}.get(text.lower(), '')


def nearest(name: str, known: list[str]) -> str:
  """'; did you mean ...?' with the closest known names, or all of them where none is close."""
  folded = {candidate.lower(): candidate for candidate in known}
  close = difflib.get_close_matches(name.lower(), list(folded), n=3, cutoff=0.5)
  if close:
    return f'; did you mean {" or ".join(folded[match] for match in close)}?'
  return f'; known: {", ".join(known)}'


def field_names(module: type[nn.Module]) -> list[str]:
  return [f.name for f in dataclasses.fields(module) if f.name not in ('parent', 'name')]


def as_field(field: str, value: Any) -> Any:
  """A field's value in the form that the module takes: pairs as tuples."""
  if field != 'patch':
    return value
  return (value, value) if isinstance(value, int) else tuple(value)


CHOICES: dict[str, tuple[str, ...]] = {
  'pool': vit.POOLS,
  'positions': vit.POSITIONS,
  'activation': tuple(vit.ACTIVATIONS),
  'remat': tuple(vit.REMAT),
  'dtype': ('float32', 'bfloat16', 'float16'),
}
LEAST = {'num_classes': 0, 'registers': 0}  # of other whole numbers, 1
RATES = ('dropout', 'attention_dropout', 'drop_path')


def check(model: vit.ViT) -> None:
  """Raises one ValueError that names every field with a value it cannot have."""
  wrong = []
  for field in dataclasses.fields(model):
    if field.name in field_names(type(model)):
      fault = misfit(field.name, field.type, getattr(model, field.name))
      wrong += [f'{field.name} is {getattr(model, field.name)!r}, {fault}'] if fault else []
  if not wrong and model.width % model.heads:
    wrong.append(f'width {model.width} does not divide into {model.heads} heads')
  if not wrong and model.positions == 'sincos2d' and model.width % 4:
    wrong.append(f'sincos2d positions need a width that 4 divides, got {model.width}')
  if wrong:
    raise ValueError('; '.join(wrong))


def misfit(name: str, kind: Any, value: Any) -> str:
  """What a value of a field must be, if it is not; '' if it is."""
  if value is None and kind in (int | None, float | None):
    return ''
  if kind == tuple[int, int]:
    sides = len(value) == 2 and all(type(side) is int and side >= 1 for side in value)
    return '' if sides else 'must be a height and a width in pixels'
  if name in CHOICES:
    return '' if value in CHOICES[name] else f'known: {", ".join(CHOICES[name])}'
  if kind is bool:
    return '' if isinstance(value, bool) else 'must be True or False'
  if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
    return 'must be a number'
  if name in RATES:
    return '' if 0 <= value < 1 else 'must lie in [0, 1)'
  if name == 'norm_eps':
    return '' if value > 0 else 'must be positive'
  if kind in (int, int | None):
    least = LEAST.get(name, 1)
    return '' if value >= least and value == int(value) else f'must be at least {least}, whole'
  return ''


def device_dtype() -> str:
  """The type to compute in where none is asked for: 'bfloat16' on accelerators, else 'float32'."""
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


def check_size(model: Any, image_size: tuple[int, int]) -> None:
  """Raises ValueError if (height, width) does not divide into the model's patches."""
  if any(side < 1 or side % patch for side, patch in zip(image_size, model.patch)):
    raise ValueError(
      f'image_size {image_size[0]}x{image_size[1]} does not divide into patches of '
      f'{model.patch[0]}x{model.patch[1]} pixels'
    )


def fields(model: nn.Module) -> dict[str, Any]:
  """Every field of a model, as `build` and JSON take them: what a bundle stores."""
  return {field: getattr(model, field) for field in field_names(type(model))}


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
  """`function(name, leaf)` for every leaf of a tree; names are joined by '/'."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator='/'), leaf),
    tree,
  )


def count(model: nn.Module, height: int = 224, width: int = 224, channels: int = 3) -> int:
  """How many parameters a model has for images of that size; nothing is computed."""
  images = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def main(argv: Sequence[str]) -> int:
  """`vit models`: a table of all variants; 2 for a name that is none."""
  flags = argparse.ArgumentParser(prog='vit models', description='Lists the models.')
  flags.add_argument('name', nargs='*', help='only these')
  flags.add_argument('--image-size', type=int, default=224, help='pixels a side')
  given = flags.parse_args(argv)
  size = given.image_size
  try:
    if size < max(PATCHES):
      raise ValueError(f'--image-size must be at least {max(PATCHES)}, got {size}')
    names = [canonical(name) for name in given.name] or list(VARIANTS)
    for name in given.name:
      check_size(build(name), (size, size))
  except ValueError as error:
    print(f'vit models: {error}', file=sys.stderr)
    return 2
  print(f'{"model":14}{"width":>7}{"depth":>7}{"heads":>7}{"MLP":>7}{"parameters":>16}{"GFLOP":>9}')
  for name in names:
    model = build(name)
    fits = size - size % model.patch[0]
    parameters, gflop = count(model, fits, fits), model.flops(fits, fits) / 1e9
    sizes = f'{model.width:7}{model.depth:7}{model.heads:7}{model.mlp_dim:7}'
    print(f'{name:14}{sizes}{parameters:16,}{gflop:9.2f}')
  print(f'1,000 classes; GFLOP: one forward pass at {size} pixels, cut to whole patches')
  return 0
