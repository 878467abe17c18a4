"""Views of an image: random crops, global and local ones, that a task compares.

N images, V views of one size, F features.
"""

import string
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections.config_dict import FrozenConfigDict

from vit_jax.images.transforms import Transform, compose
from vit_jax.sources import antialiases
from vit_jax.sources.columns import Columns, shared_images
from vit_jax.tasks import Array, Batch, Params
from vit_jax.tasks.encoder import ImageEncoder

Size = tuple[int, int]
Area = tuple[float, float]
KINDS = ('global', 'local')  # of views, in their order


def columns(config: FrozenConfigDict) -> Columns:
  """The columns of the views that a config describes; see `crops`."""
  data = config.data
  return crops(
    image_size=config.image_size,
    channels=data.channels,
    antialias=antialiases(data.source, data.antialias),
    **config.views,
  )


def sizes(config: FrozenConfigDict) -> list[Size]:
  """(height, width) of each view that a config describes."""
  views = config.views
  of_most = views.global_size or config.image_size
  return [of_most] * views.global_count + [views.local_size] * views.local_count


def check_sizes(columns: Columns, encoder: ImageEncoder) -> None:
  """Raises ValueError, which names the field, for views of a size that an encoder does not take."""
  kinds = {column.shape: name.rstrip(string.digits) for name, column in columns.items()}
  for (height, width, _), kind in kinds.items():
    try:
      encoder.check_size((height, width))
    except ValueError as error:
      raise ValueError(f'views.{kind}_size: {error}') from None


def crops(
  *,
  image_size: Size,
  channels: int,
  antialias: bool,
  global_count: int,
  global_size: Size | None,
  global_area: Area,
  local_count: int,
  local_size: Size,
  local_area: Area,
  augment: str,
  global_augment: Sequence[str],
  local_augment: str,
) -> Columns:
  """The columns 'global0', 'global1', ... and 'local0', ..., each uint8 (height, width, C).

  Each is a crop of random area and aspect, and draws from the view that is its place among them. A
  record's image is decoded once for all.

  Args:
    image_size: (height, width) of global views where `global_size` is None.
    channels: C.
    antialias: whether a crop is resized with antialiasing.
    global_count, local_count: of views of either kind.
    global_size, local_size: (height, width) of a view.
    global_area, local_area: the smallest and the largest part of an image's area that is cropped.
    augment: the transforms of a view after its crop.
    global_augment: those that follow in global views, a line for each of them in turn.
    local_augment: those that follow in local views.
  """
  method = 'bilinear_antialias' if antialias else 'bilinear'

  def crop(kind: str, size: Size, area: Area, last: str) -> Transform:
    if not 0 < area[0] <= area[1] <= 1:
      raise ValueError(f'views.{kind}_area is {area}, must be two parts of an area in (0, 1]')
    first = f'inception_crop(area_min={area[0]}, area_max={area[1]}, method={method!r})'
    return compose(f'{first} | {augment} | {last}', size, channels)

  size = global_size or image_size
  of_most = [crop('global', size, global_area, line) for line in global_augment]
  of_part = crop('local', local_size, local_area, local_augment)
  views = {f'global{view}': of_most[view % len(of_most)] for view in range(global_count)}
  return shared_images(views | {f'local{view}': of_part for view in range(local_count)})


def features(
  encoder: ImageEncoder, params: Params, batch: Batch, *, dropout: Array | None = None
) -> Array:
  """The features (N, V, F) of a batch's views, the global ones first, by a pass for each kind.

  The arguments are those of `encode`.
  """
  parts: list[Array] = []
  for kind in KINDS:
    if f'{kind}0' in batch:
      key = None if dropout is None else jax.random.fold_in(dropout, len(parts))
      parts.append(encode(encoder, params, stacked(batch, kind), dropout=key)[0])
  return jnp.concatenate(parts, axis=1)


def stacked(batch: Batch, kind: str) -> Array:
  """The views of a batch of one of KINDS, (N, V, height, width, C)."""
  names = sorted((name for name in batch if name.startswith(kind)), key=lambda n: (len(n), n))
  return jnp.stack([batch[name] for name in names], axis=1)


def encode(
  encoder: ImageEncoder,
  params: Params,
  crops: Array,
  *,
  dropout: Array | None = None,
  **options: Any,
) -> tuple[Array, dict[str, Any]]:
  """The features (N, V, F) of views of one size, and the intermediates of their N V images.

  An image's views lie side by side in a pass, so that they stay on the device that has the image.

  Args:
    encoder: at the size of its own images; its positions are resampled for others.
    params: of the encoder, at least.
    crops: uint8 (N, V, height, width, C).
    dropout: a key, by which the model drops out what its fields say; None applies all of it.
    options: of `bundle.forward`.
  """
  count, views, height, width, channels = crops.shape
  if dropout is not None:
    options |= {'train': True, 'rngs': {'dropout': dropout}}
  images = crops.reshape(count * views, height, width, channels)
  rows, out = encoder.apply(encoder.at_size(params, (height, width)), images, **options)
  return rows.reshape(count, views, -1), out  # (N, V, F)
