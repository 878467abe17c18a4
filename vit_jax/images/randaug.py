"""RandAugment as TensorFlow and big_vision have it, in NumPy and OpenCV.

H, W pixels. The operations are those of tensorflow/tpu's efficientnet/autoaugment.py, which
big_vision forked as pp/autoaugment.py, and equal them pixel for pixel: all arithmetic is float32,
and what becomes uint8 is truncated. The order in which they come up is another.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.images.decoding import Image, opencv
from vit_jax.images.steps import GREY, MAX_COUNT, MAX_MAGNITUDE, RAMP, Step, check_range

LUMINANCE = (0.2989, 0.587, 0.114)  # tf.image.rgb_to_grayscale's weights (ITU-R BT.601)


def autocontrast(image: Image) -> Image:
  """Stretches each channel to [0, 255]."""
  return apply_table(image, np.stack([stretch_table(channel) for channel in channels(image)], -1))


def stretch_table(channel: np.ndarray) -> np.ndarray:
  """The table (256,) of `autocontrast` for one channel."""
  low, high = (np.float32(value) for value in (channel.min(), channel.max()))
  if low == high:
    return RAMP
  scale = np.float32(255) / (high - low)
  return (RAMP.astype(np.float32) * scale + -low * scale).clip(0, 255)


def equalize(image: Image) -> Image:
  """Maps each channel so that its histogram becomes flat."""
  cv2 = opencv()
  histograms = [cv2.calcHist([channel], [0], None, [256], [0, 256]) for channel in channels(image)]
  tables = [equalize_table(histogram.ravel().astype(int)) for histogram in histograms]
  return apply_table(image, np.stack(tables, -1))


def channels(image: Image) -> Sequence[np.ndarray]:
  """The three channels, (H, W) each."""
  return opencv().split(image)


def apply_table(image: Image, table: np.ndarray) -> Image:
  """Each value looked up in a table: (256,) for all channels, or (256, 3)."""
  return opencv().LUT(image, table.astype(np.uint8).reshape(256, 1, -1))


def equalize_table(histogram: np.ndarray) -> np.ndarray:
  """(256,) counts to the table (256,) of `equalize`."""
  step = (histogram.sum() - histogram[histogram.nonzero()[0][-1]]) // 255
  if step == 0:
    return RAMP
  below = np.concatenate([[0], (histogram.cumsum() + step // 2)[:-1] // step])
  return below.clip(0, 255)


def posterize(image: Image, bits: int) -> Image:
  """Keeps the upper bits: one where none is asked for, as TensorFlow shifts a byte by 7 at most."""
  shift = min((8 - bits) % 256, 7)
  return apply_table(image, RAMP >> shift << shift)


def solarize(image: Image, threshold: int) -> Image:
  """Inverts what is not below the threshold, which TensorFlow makes a byte: 256 becomes 0.

  So at magnitude 10, and at 20, the original inverts the whole image, and 15 equals 5.
  """
  return apply_table(image, np.where(threshold % 256 > RAMP, RAMP, 255 - RAMP))


def solarize_add(image: Image, addition: int) -> Image:
  """Brightens what is below 128."""
  return apply_table(image, np.where(RAMP < 128, (RAMP + addition).clip(0, 255), RAMP))


def color(image: Image, factor: float) -> Image:
  return blend(luminance(image)[..., None], image, factor)


def contrast(image: Image, factor: float) -> Image:
  """Away from or towards a grey that is the number of pixels / 256, at most 255.

  The original means the mean of the grey image, but sums its histogram's counts.
  """
  count = image.shape[0] * image.shape[1]
  level = np.full(256, min(count / 256, 255)).astype(np.uint8)
  return apply_table(image, blend(level, RAMP.astype(np.uint8), factor))


def brightness(image: Image, factor: float) -> Image:
  return apply_table(image, blend(np.zeros(256, np.uint8), RAMP.astype(np.uint8), factor))


def sharpness(image: Image, factor: float) -> Image:
  """Away from or towards the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the border stays."""
  height, width = image.shape[:2]
  if min(height, width) < 3 or factor == 1:
    return image
  scaled = image.astype(np.float32)
  centre = scaled[1:-1, 1:-1] * np.float32(5 / 13)
  scaled *= np.float32(1 / 13)
  # One at a time and in this order, as truncation shows the last bit of the sum. TensorFlow's
  # oneDNN kernel fuses products and sums, so differs there from its own plain one, which is this.
  total = scaled[:-2, :-2] + scaled[:-2, 1:-1]
  for row, column in ((0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)):
    part = scaled[row : row + height - 2, column : column + width - 2]
    total += centre if (row, column) == (1, 1) else part
  smooth = image.copy()
  smooth[1:-1, 1:-1] = total
  return blend(smooth, image, factor)


def luminance(image: Image) -> Image:
  """(H, W) luminance, as tf.image.rgb_to_grayscale gives it."""
  cv2 = opencv()
  fraction = RAMP.astype(np.float32) * np.float32(1 / 255)
  table = fraction[:, None] * np.array(LUMINANCE, np.float32)  # (256, 3)
  red, green, blue = channels(cv2.LUT(image, table.reshape(256, 1, 3)))
  red += green
  red += blue
  red *= np.float32(255.5)  # convert_image_dtype: 255 and a half, which truncation rounds
  return red.astype(np.uint8)


def blend(first: np.ndarray, second: np.ndarray, factor: float) -> np.ndarray:
  """first + factor (second - first), both uint8: clipped and truncated."""
  if factor in (0, 1):
    return np.broadcast_to(second if factor else first, second.shape)
  mixed = np.subtract(second, first, dtype=np.float32)
  mixed *= np.float32(factor)
  mixed += first
  return mixed.clip(0, 255, out=mixed).astype(np.uint8)


def rotate(image: Image, degrees: float) -> Image:
  """Rotated about the centre.

  Where TensorFlow knows the size beforehand its optimiser sums in another order, and a pixel
  halfway between two may become the other one.
  """
  height, width = image.shape[0] - np.float32(1), image.shape[1] - np.float32(1)
  radians = float(np.float32(degrees) * np.float32(math.pi / 180))
  cos, sin = np.float32(math.cos(radians)), np.float32(math.sin(radians))
  x = (width - (cos * width - sin * height)) / np.float32(2)
  y = (height - (sin * width + cos * height)) / np.float32(2)
  return warp(image, (cos, -sin, x), (sin, cos, y))


def warp(
  image: Image, to_x: Sequence[np.floating | float], to_y: Sequence[np.floating | float]
) -> Image:
  """Each pixel (x, y) from the nearest to (a x + b y + c, d x + e y + f), or GREY from outside."""
  height, width = image.shape[:2]
  xs, ys = (np.arange(size, dtype=np.float32) for size in (width, height))
  x, y = (
    round_half_away((np.float32(a) * xs + (np.float32(b) * ys)[:, None]) + np.float32(c))
    for a, b, c in (to_x, to_y)
  )  # (H, W)
  outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
  y *= width
  y += x
  y[outside] = height * width
  pixels = np.append(pack_pixels(image), np.uint32(GREY * 0x010101))
  warped = pixels.take(y)
  return np.ascontiguousarray(warped.view(np.uint8).reshape(height, width, 4)[..., :3])


def round_half_away(positions: np.ndarray) -> np.ndarray:
  """Whole numbers nearest to float32 ones; halves away from zero, as std::round has them."""
  exact = positions.astype(np.float64)  # where adding a half is
  exact += np.copysign(0.5, exact)
  return exact.astype(np.int64)


def pack_pixels(image: Image) -> np.ndarray:
  """(H * W,) uint32, a pixel each: taking one is several times as fast as taking three bytes."""
  cv2 = opencv()
  return cv2.cvtColor(image, cv2.COLOR_RGB2RGBA).view(np.uint32).ravel()


def cutout(image: Image, pad: int, row: int, column: int) -> Image:
  """A square of 2 pad, cut at the borders, made GREY about a pixel."""
  image = image.copy()
  image[max(row - pad, 0) : row + pad, max(column - pad, 0) : column + pad] = GREY
  return image


def enhancement(level: float) -> float:
  return level * 1.8 + 0.1


# The operation, and its argument at a level, as level_to_arg in autoaugment.py with big_vision's
# constants: cutout_const 40, translate_const 100.
RANDAUG: dict[str, tuple[Callable[..., Image], Callable[[float], float] | None]] = {
  'AutoContrast': (autocontrast, None),
  'Equalize': (equalize, None),
  'Invert': (lambda image: 255 - image, None),
  'Rotate': (rotate, lambda level: level * 30.0),
  'Posterize': (posterize, lambda level: int(level * 4)),
  'Solarize': (solarize, lambda level: int(level * 256)),
  'Color': (color, enhancement),
  'Contrast': (contrast, enhancement),
  'Brightness': (brightness, enhancement),
  'Sharpness': (sharpness, enhancement),
  'ShearX': (lambda image, x: warp(image, (1, x, 0), (0, 1, 0)), lambda level: level * 0.3),
  'ShearY': (lambda image, y: warp(image, (1, 0, 0), (y, 1, 0)), lambda level: level * 0.3),
  'TranslateX': (lambda image, x: warp(image, (1, 0, x), (0, 1, 0)), lambda level: level * 100.0),
  'TranslateY': (lambda image, y: warp(image, (1, 0, 0), (0, 1, y)), lambda level: level * 100.0),
  'Cutout': (cutout, lambda level: int(level * 40)),
  'SolarizeAdd': (solarize_add, lambda level: int(level * 110)),
}
# Their argument is negated half of the time
SIGNED = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')


def randaug(count: int = 2, magnitude: float = 10) -> Step:
  """RandAugment as big_vision has it (arXiv 1909.13719): `count` of 16 operations, always applied.

  They are sampled uniformly, the same one perhaps twice, all at level magnitude / 10, which is no
  strength: enhancements grow from 0.1 to beyond 1, and posterize keeps more bits as it rises.
  """
  if type(count) is not int or not 0 <= count <= MAX_COUNT:
    raise ValueError(f'count is {count!r}, not a number of operations from 0 to {MAX_COUNT}')
  check_range('magnitude', magnitude, 0, MAX_MAGNITUDE)
  names = list(RANDAUG)

  def step(image: Image, rng: np.random.Generator) -> Image:
    image = np.ascontiguousarray(image)
    for _ in range(count):
      image = apply_operation(image, names[rng.integers(len(names))], magnitude, rng)
    return image

  return step


def apply_operation(image: Image, name: str, magnitude: float, rng: np.random.Generator) -> Image:
  """The image after one operation of RANDAUG, at a random sign or place."""
  operation, argument = RANDAUG[name]
  if argument is None:
    return operation(image)
  value = argument(magnitude / 10)
  if name in SIGNED and rng.random() < 0.5:
    value = -value
  centre = [int(rng.integers(side)) for side in image.shape[:2]] if name == 'Cutout' else []
  return operation(image, value, *centre)
