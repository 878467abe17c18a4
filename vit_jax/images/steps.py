"""What a step is: an image in, an image out; and the checks of its arguments.

H, W pixels, C channels.
"""

from collections.abc import Callable, Collection

import numpy as np

from vit_jax.images.decoding import Image

Step = Callable[[Image, np.random.Generator], Image]  # uint8 (H, W, C), both

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
