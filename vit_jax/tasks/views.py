"""Views of an image: random crops, global and local ones, that a task compares.

N images, V views of one size, F features.
"""

from ml_collections.config_dict import FrozenConfigDict

from vit_jax.images.transforms import Transform, compose
from vit_jax.sources import antialiases
from vit_jax.sources.columns import Columns, shared_images

Size = tuple[int, int]
Area = tuple[float, float]


def columns(config: FrozenConfigDict) -> Columns:
  """The columns of the views that a config describes; see `crops`."""
  data = config.data
  return crops(
    image_size=config.image_size,
    channels=data.channels,
    antialias=antialiases(data.source, data.antialias),
    **config.views,
  )


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
  """
  method = 'bilinear_antialias' if antialias else 'bilinear'

  def crop(kind: str, size: Size, area: Area) -> Transform:
    if not 0 < area[0] <= area[1] <= 1:
      raise ValueError(f'views.{kind}_area is {area}, must be two parts of an area in (0, 1]')
    line = f'inception_crop(area_min={area[0]}, area_max={area[1]}, method={method!r}) | {augment}'
    return compose(line, size, channels)

  of_most = crop('global', global_size or image_size, global_area)
  of_part = crop('local', local_size, local_area)
  views = {f'global{view}': of_most for view in range(global_count)}
  return shared_images(views | {f'local{view}': of_part for view in range(local_count)})
