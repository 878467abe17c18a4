"""What a step is: an image in, an image out; and the checks of its arguments.

H, W pixels.
"""

from collections.abc import Callable, Collection

import numpy as np

from vit_jax.images.decoding import Image, opencv

Step = Callable[[Image, np.random.Generator], Image]  # uint8 (H, W, 3), both

GREY = 128  # fills empty pixels: autoaugment.py's replace_value, timm's _FILL
RAMP = np.arange(256)  # the values of a byte, which a table maps
MAX_COUNT, MAX_MAGNITUDE = 16, 30  # of a RandAugment; recipes go up to 4 and 20


def check_range(name: str, value: object, low: float, high: float) -> None:
  """Raises ValueError for what is no number in [low, high]."""
  if not (type(value) in (int, float) and low <= value <= high):  # type: ignore[operator]
    raise ValueError(f'{name} is {value!r}, not a number in [{low:g}, {high:g}]')


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
  """Raises ValueError for what is none of the choices."""
  if value not in choices:
    raise ValueError(f'unknown {name} {value!r}; known: {", ".join(choices)}')


def check_count(count: object) -> None:
  """Raises ValueError for what is no number of operations."""
  if type(count) is not int or not 0 <= count <= MAX_COUNT:
    raise ValueError(f'count is {count!r}, not a number of operations from 0 to {MAX_COUNT}')


def apply_table(image: Image, table: np.ndarray) -> Image:
  """Each value looked up in a table: (256,) for all channels, or (256, 3)."""
  return opencv().LUT(image, table.astype(np.uint8).reshape(256, 1, -1))
