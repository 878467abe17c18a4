"""Augmentations: two RandAugments, TrivialAugment, 3-Augment, colour jitter, random erasing.

H, W pixels. As in transforms.py, a step takes an image (H, W, 3) uint8 and a NumPy generator and
returns such an image. Published recipes depend on how each library rounds, so there are two
dialects of the same operations: TensorFlow's, in NumPy and OpenCV, which `randaug` draws from, and
Pillow's, which timm, torchvision and DeiT use. Draws come from the given generator alone: the
operations equal the originals pixel for pixel, the order in which they come up does not.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.images.decoding import Image, opencv

Step = Callable[[Image, np.random.Generator], Image]

GREY = 128  # of what a turn, a shift or a cut leaves empty
RAMP = np.arange(256)
MAX_COUNT, MAX_MAGNITUDE = 16, 30  # of a RandAugment; recipes go up to 4 and 20


def check_range(name: str, value: Any, low: float, high: float) -> None:
  """Raises ValueError for what is no number in [low, high]."""
  if type(value) not in (int, float) or not low <= value <= high:
    raise ValueError(f'{name} is {value!r}, not a number in [{low:g}, {high:g}]')


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
  """Raises ValueError for what is none of the known ones."""
  if value not in known:
    raise ValueError(f'unknown {name} {value!r}; known: {", ".join(known)}')


def mapped(image: Image, table: np.ndarray) -> Image:
  """Each value looked up in a table: (256,) for all channels, or (256, 3)."""
  return opencv().LUT(image, table.astype(np.uint8).reshape(256, 1, -1))


# TensorFlow's operations: tensorflow/tpu efficientnet/autoaugment.py, which big_vision forked as
# pp/autoaugment.py. All arithmetic is float32, and what becomes uint8 is truncated.


def float32(value: float) -> Any:
  return np.float32(value)


def autocontrast(image: Image) -> Image:
  """Stretches each channel to [0, 255]."""
  return mapped(image, np.stack([stretching(plane) for plane in planes(image)], -1))


def stretching(plane: np.ndarray) -> np.ndarray:
  """The table (256,) of `autocontrast` for one channel."""
  low, high = (float32(value) for value in (plane.min(), plane.max()))
  if low == high:
    return RAMP
  scale = float32(255) / (high - low)
  return (RAMP.astype(np.float32) * scale + -low * scale).clip(0, 255)


def equalize(image: Image) -> Image:
  """Maps each channel so that its histogram becomes flat."""
  cv2 = opencv()
  histograms = [cv2.calcHist([plane], [0], None, [256], [0, 256]) for plane in planes(image)]
  tables = [equalizing(histogram.ravel().astype(int)) for histogram in histograms]
  return mapped(image, np.stack(tables, -1))


def planes(image: Image) -> Sequence[np.ndarray]:
  """The three channels, (H, W) each."""
  return opencv().split(image)


def equalizing(histogram: np.ndarray) -> np.ndarray:
  """(256,) counts to the table (256,) of `equalize`."""
  step = (histogram.sum() - histogram[histogram.nonzero()[0][-1]]) // 255
  if step == 0:
    return RAMP
  below = np.concatenate([[0], (histogram.cumsum() + step // 2)[:-1] // step])
  return below.clip(0, 255)


def invert(image: Image) -> Image:
  return 255 - image


def posterize(image: Image, bits: int) -> Image:
  """Keeps the upper bits: one where none is asked for, as TensorFlow shifts a byte by 7 at most."""
  shift = min((8 - bits) % 256, 7)
  return mapped(image, RAMP >> shift << shift)


def solarize(image: Image, threshold: int) -> Image:
  """Inverts what is not below the threshold, which TensorFlow makes a byte: 256 becomes 0.

  So at magnitude 10, and at 20, the original inverts the whole image, and 15 equals 5.
  """
  return mapped(image, np.where(threshold % 256 > RAMP, RAMP, 255 - RAMP))


def solarize_add(image: Image, addition: int) -> Image:
  """Brightens what is below 128."""
  return mapped(image, np.where(RAMP < 128, (RAMP + addition).clip(0, 255), RAMP))


def color(image: Image, factor: float) -> Image:
  return blend(grey(image)[..., None], image, factor)


def contrast(image: Image, factor: float) -> Image:
  """Away from or towards a grey that is the number of pixels / 256, at most 255.

  The original means the mean of the grey image, but sums its histogram's counts.
  """
  count = image.shape[0] * image.shape[1]
  level = np.full(256, min(count / 256, 255)).astype(np.uint8)
  return mapped(image, blend(level, RAMP.astype(np.uint8), factor))


def brightness(image: Image, factor: float) -> Image:
  return mapped(image, blend(np.zeros(256, np.uint8), RAMP.astype(np.uint8), factor))


def sharpness(image: Image, factor: float) -> Image:
  """Away from or towards the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the border stays."""
  height, width = image.shape[:2]
  if min(height, width) < 3 or factor == 1:
    return image
  light = image.astype(np.float32)
  heavy = light[1:-1, 1:-1] * float32(5 / 13)
  light *= float32(1 / 13)
  # One at a time and in this order, as truncation shows the last bit of the sum. TensorFlow's
  # oneDNN kernel fuses products and sums, so differs there from its own plain one, which is this.
  total = light[:-2, :-2] + light[:-2, 1:-1]
  for row, column in ((0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)):
    part = light[row : row + height - 2, column : column + width - 2]
    total += heavy if (row, column) == (1, 1) else part
  smooth = image.copy()
  smooth[1:-1, 1:-1] = total
  return blend(smooth, image, factor)


def grey(image: Image) -> Image:
  """(H, W) luminance, as tf.image.rgb_to_grayscale gives it."""
  cv2 = opencv()
  share = RAMP.astype(np.float32) * float32(1 / 255)
  table = share[:, None] * np.array([0.2989, 0.587, 0.114], np.float32)  # (256, 3)
  red, green, blue = planes(cv2.LUT(image, table.reshape(256, 1, 3)))
  red += green
  red += blue
  red *= float32(255.5)
  return red.astype(np.uint8)


def blend(first: np.ndarray, second: np.ndarray, factor: float) -> np.ndarray:
  """first + factor (second - first), both uint8: clipped and truncated."""
  if factor in (0, 1):
    return np.broadcast_to(second if factor else first, second.shape)
  mixed = np.subtract(second, first, dtype=np.float32)
  mixed *= float32(factor)
  mixed += first
  return mixed.clip(0, 255, out=mixed).astype(np.uint8)


def rotate(image: Image, degrees: float) -> Image:
  """Turned about the centre.

  Where TensorFlow knows the size beforehand its optimiser sums in another order, and a pixel
  halfway between two may become the other one.
  """
  height, width = image.shape[0] - float32(1), image.shape[1] - float32(1)
  radians = float(float32(degrees) * float32(math.pi / 180))
  cos, sin = float32(math.cos(radians)), float32(math.sin(radians))
  x = (width - (cos * width - sin * height)) / float32(2)
  y = (height - (sin * width + cos * height)) / float32(2)
  return warped(image, (cos, -sin, x), (sin, cos, y))


def shear_x(image: Image, level: float) -> Image:
  return warped(image, (1, level, 0), (0, 1, 0))


def shear_y(image: Image, level: float) -> Image:
  return warped(image, (1, 0, 0), (level, 1, 0))


def translate_x(image: Image, pixels: float) -> Image:
  return warped(image, (1, 0, pixels), (0, 1, 0))


def translate_y(image: Image, pixels: float) -> Image:
  return warped(image, (1, 0, 0), (0, 1, pixels))


def warped(image: Image, to_x: Sequence[float], to_y: Sequence[float]) -> Image:
  """Each pixel (x, y) from the nearest to (a x + b y + c, d x + e y + f), or GREY from outside."""
  height, width = image.shape[:2]
  xs, ys = (np.arange(size, dtype=np.float32) for size in (width, height))
  x, y = (
    nearest((float32(a) * xs + (float32(b) * ys)[:, None]) + float32(c)) for a, b, c in (to_x, to_y)
  )  # (H, W)
  outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
  y *= width
  y += x
  y[outside] = height * width
  pixels = np.append(packed(image), np.uint32(GREY * 0x010101))
  found = pixels.take(y)
  return np.ascontiguousarray(found.view(np.uint8).reshape(height, width, 4)[..., :3])


def nearest(positions: np.ndarray) -> np.ndarray:
  """Whole numbers nearest to float32 ones; halves away from zero, as std::round has them."""
  exact = positions.astype(np.float64)  # where adding a half is
  exact += np.copysign(0.5, exact)
  return exact.astype(np.int64)


def packed(image: Image) -> np.ndarray:
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


RANDAUG: dict[str, tuple[Callable[..., Image], Callable[[float], Any] | None]] = {
  'AutoContrast': (autocontrast, None),
  'Equalize': (equalize, None),
  'Invert': (invert, None),
  'Rotate': (rotate, lambda level: level * 30.0),
  'Posterize': (posterize, lambda level: int(level * 4)),
  'Solarize': (solarize, lambda level: int(level * 256)),
  'Color': (color, enhancement),
  'Contrast': (contrast, enhancement),
  'Brightness': (brightness, enhancement),
  'Sharpness': (sharpness, enhancement),
  'ShearX': (shear_x, lambda level: level * 0.3),
  'ShearY': (shear_y, lambda level: level * 0.3),
  'TranslateX': (translate_x, lambda level: level * 100.0),
  'TranslateY': (translate_y, lambda level: level * 100.0),
  'Cutout': (cutout, lambda level: int(level * 40)),
  'SolarizeAdd': (solarize_add, lambda level: int(level * 110)),
}
SIGNED = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')


def randaug(count: int = 2, magnitude: float = 10) -> Step:
  """RandAugment as big_vision has it (arXiv 1909.13719): `count` of 16 operations, always applied.

  They are drawn uniformly, the same one perhaps twice, all at level magnitude / 10, which is not a
  strength: enhancements grow from 0.1 to beyond 1, and posterize keeps more bits as it rises.
  """
  check_count(count)
  check_range('magnitude', magnitude, 0, MAX_MAGNITUDE)
  names = list(RANDAUG)

  def step(image: Image, rng: np.random.Generator) -> Image:
    image = np.ascontiguousarray(image)
    for _ in range(count):
      image = distorted(image, names[rng.integers(len(names))], magnitude, rng)
    return image

  return step


def distorted(image: Image, name: str, magnitude: float, rng: np.random.Generator) -> Image:
  """The image after one operation of RANDAUG."""
  operation, argument = RANDAUG[name]
  if argument is None:
    return operation(image)
  value = argument(magnitude / 10)
  if name in SIGNED and rng.random() < 0.5:
    value = -value
  centre = [int(rng.integers(side)) for side in image.shape[:2]] if name == 'Cutout' else []
  return operation(image, value, *centre)


def check_count(count: Any) -> None:
  if type(count) is not int or not 0 <= count <= MAX_COUNT:
    raise ValueError(f'count is {count!r}, not a number of operations from 0 to {MAX_COUNT}')


# Pillow's operations, from PIL image to PIL image.


def pillow(operation: Callable[..., Any]) -> Step:
  """A step from a function of a PIL image and a generator."""

  def step(image: Image, rng: np.random.Generator) -> Image:
    from PIL import Image as pil

    return np.asarray(operation(pil.fromarray(image), rng))

  return step


def pointed(image: Any, table: np.ndarray) -> Any:
  """A PIL image with each value looked up in (256,)."""
  return image.point(table.tolist() * 3)


def enhanced(image: Any, name: str, factor: float) -> Any:
  from PIL import ImageEnhance

  return getattr(ImageEnhance, name)(image).enhance(factor)


def balanced(image: Any, name: str) -> Any:
  from PIL import ImageOps

  return getattr(ImageOps, name)(image)


def posterized(image: Any, bits: int) -> Any:
  """Keeps the upper bits; none of them gives black, which Pillow from 13 on refuses."""
  return pointed(image, RAMP & ~(2 ** (8 - bits) - 1)) if bits < 8 else image


def solarized(image: Any, threshold: float) -> Any:
  return pointed(image, np.where(threshold > RAMP, RAMP, 255 - RAMP))


def brightened(image: Any, addition: int) -> Any:
  return pointed(image, np.where(RAMP < 128, (RAMP + addition).clip(0, 255), RAMP))


def blurred(image: Any, radius: float) -> Any:
  from PIL import ImageFilter

  return image.filter(ImageFilter.GaussianBlur(radius))


def grey_in_rgb(image: Any) -> Any:
  return image.convert('L').convert('RGB')


def turned(image: Any, degrees: float, name: str, fill: tuple[int, ...]) -> Any:
  from PIL import Image as pil

  return image.rotate(degrees, pil.Resampling[name], fillcolor=fill)


def moved(image: Any, matrix: tuple[float, ...], name: str, fill: tuple[int, ...]) -> Any:
  """Each pixel (x, y) from (a x + b y + c, d x + e y + f)."""
  from PIL import Image as pil

  how = (pil.Transform.AFFINE, matrix, pil.Resampling[name])
  return image.transform(image.size, *how, fillcolor=fill)


# timm's names, without Increasing: (image, value, resampling, fill) -> image.
PILLOW: dict[str, Callable[..., Any]] = {
  'AutoContrast': lambda image, *_: balanced(image, 'autocontrast'),
  'Equalize': lambda image, *_: balanced(image, 'equalize'),
  'Invert': lambda image, *_: balanced(image, 'invert'),
  'Rotate': turned,
  'Posterize': lambda image, value, *_: posterized(image, value),
  'Solarize': lambda image, value, *_: solarized(image, value),
  'SolarizeAdd': lambda image, value, *_: brightened(image, value),
  'Color': lambda image, value, *_: enhanced(image, 'Color', value),
  'Contrast': lambda image, value, *_: enhanced(image, 'Contrast', value),
  'Brightness': lambda image, value, *_: enhanced(image, 'Brightness', value),
  'Sharpness': lambda image, value, *_: enhanced(image, 'Sharpness', value),
  'ShearX': lambda image, value, *how: moved(image, (1, value, 0, 0, 1, 0), *how),
  'ShearY': lambda image, value, *how: moved(image, (1, 0, 0, value, 1, 0), *how),
  'TranslateX': lambda image, value, *how: moved(image, (1, 0, value, 0, 1, 0), *how),
  'TranslateY': lambda image, value, *how: moved(image, (1, 0, 0, 0, 1, value), *how),
  'TranslateXRel': lambda image, value, *how: moved(
    image, (1, 0, value * image.width, 0, 1, 0), *how
  ),
  'TranslateYRel': lambda image, value, *how: moved(
    image, (1, 0, 0, 0, 1, value * image.height), *how
  ),
  'Desaturate': lambda image, value, *_: enhanced(image, 'Color', min(1.0, max(0.0, 1 - value))),
  'GaussianBlur': lambda image, value, *_: blurred(image, value),
}

# timm's names to the value of a level (magnitude / 10) and a sign; a missing one takes no value.
LEVELS: dict[str, Callable[[float, int], Any]] = {
  'Rotate': lambda level, sign: sign * level * 30.0,
  'Posterize': lambda level, sign: int(level * 4),
  'PosterizeIncreasing': lambda level, sign: 4 - int(level * 4),
  'Solarize': lambda level, sign: min(256, int(level * 256)),
  'SolarizeIncreasing': lambda level, sign: 256 - min(256, int(level * 256)),
  'SolarizeAdd': lambda level, sign: min(128, int(level * 110)),
  'ShearX': lambda level, sign: sign * level * 0.3,
  'ShearY': lambda level, sign: sign * level * 0.3,
  'TranslateXRel': lambda level, sign: sign * level * 0.45,
  'TranslateYRel': lambda level, sign: sign * level * 0.45,
  'Desaturate': lambda level, sign: min(1.0, max(0.5, 0.5 + 0.5 * level)),
  'GaussianBlur': lambda level, sign: min(2.0, max(0.1, 0.1 + 1.9 * level)),
}
for _name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
  LEVELS[_name] = lambda level, sign: level * 1.8 + 0.1
  LEVELS[_name + 'Increasing'] = lambda level, sign: max(0.1, 1.0 + sign * (level * 0.9))

# What a string's t section names: operations with their weights, drawn without replacement; ...
WEIGHTED: dict[str, dict[str, float]] = {
  'weights': {
    'Rotate': 3,
    'ShearX': 2,
    'ShearY': 2,
    'TranslateXRel': 1,
    'TranslateYRel': 1,
    'ColorIncreasing': 0.25,
    'SharpnessIncreasing': 0.25,
    'AutoContrast': 0.25,
    'SolarizeIncreasing': 0.05,
    'SolarizeAdd': 0.05,
    'ContrastIncreasing': 0.05,
    'BrightnessIncreasing': 0.05,
    'Equalize': 0.05,
    'PosterizeIncreasing': 0.05,
    'Invert': 0.05,
  },
  '3aw': {
    'SolarizeIncreasing': 6,
    'Desaturate': 6,
    'GaussianBlur': 6,
    'Rotate': 3,
    'ShearX': 2,
    'ShearY': 2,
    'PosterizeIncreasing': 1,
    'AutoContrast': 1,
    'ColorIncreasing': 1,
    'SharpnessIncreasing': 1,
    'ContrastIncreasing': 1,
    'BrightnessIncreasing': 1,
    'Equalize': 1,
    'Invert': 1,
  },
}
# ... or without weights, drawn with it; 'inc0' and 'inc1' stand for a string that has no t section.
UNWEIGHTED: dict[str, tuple[str, ...]] = {
  '3a': ('SolarizeIncreasing', 'Desaturate', 'GaussianBlur'),
  'inc0': (
    *('AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'SolarizeAdd'),
    *('Color', 'Contrast', 'Brightness', 'Sharpness'),
    *('ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel'),
  ),
  'inc1': (
    *('AutoContrast', 'Equalize', 'Invert', 'Rotate', 'PosterizeIncreasing', 'SolarizeIncreasing'),
    *('SolarizeAdd', 'ColorIncreasing', 'ContrastIncreasing', 'BrightnessIncreasing'),
    *('SharpnessIncreasing', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel'),
  ),
}
SECTION = re.compile(r'(mstd|mmax|inc|m|n|p)(inf|\d+(?:\.\d+)?)|(t)(\w+)')
RESAMPLING = ('bilinear', 'bicubic')


def rand_augment(
  spec: str = 'rand-m9-mstd0.5-inc1',
  fill: tuple[int, int, int] = (GREY, GREY, GREY),
  resample: str = 'random',
) -> Step:
  """timm's RandAugment, from its string; not what `randaug` does.

  Args:
    spec: 'rand' and sections: m magnitude (10), n operations (2), p probability of each (0.5), mstd
      normal noise on the magnitude (0; over 100: uniform below it), mmax its bound (10, as in timm,
      where 15 is 10 too), inc1 for operations that grow stronger with it, t for another set of them
      ('tweights', 't3a', 't3aw').
    fill: what a turn or shift leaves empty; timm's trainer takes the mean colour.
    resample: of turns and shifts: 'bilinear', 'bicubic', or 'random', one of the two each time.
  """
  options = sections(spec)
  check_fill(fill)
  check_choice('resample', resample, (*RESAMPLING, 'random'))
  names, weights = operations(options)
  count, probability = int(options['n']), options['p']
  resamplings = RESAMPLING if resample == 'random' else (resample,)

  def augmented(image: Any, rng: np.random.Generator) -> Any:
    for name in rng.choice(names, count, replace=weights is None, p=weights):
      if rng.random() < probability:
        level = magnitude(options, rng) / 10
        sign = int(rng.choice((-1, 1)))
        how = resamplings[rng.integers(len(resamplings))].upper()
        image = applied(image, name, level, sign, how, fill)
    return image

  return pillow(augmented)


def applied(
  image: Any, name: str, level: float, sign: int, resample: str, fill: tuple[int, ...]
) -> Any:
  """A PIL image after timm's operation of that name."""
  value = LEVELS[name](level, sign) if name in LEVELS else None
  return PILLOW[name.removesuffix('Increasing')](image, value, resample, fill)


def sections(spec: Any) -> dict[str, Any]:
  """{'m': 9.0, ...} of timm's string, with its defaults."""
  options: dict[str, Any] = dict(m=10.0, n=2.0, p=0.5, mstd=0.0, mmax=10.0, inc=0.0, t='')
  if not isinstance(spec, str) or spec.split('-')[0] != 'rand':
    raise ValueError(f"{spec!r} does not begin with 'rand'")
  for part in spec.split('-')[1:]:
    match = SECTION.fullmatch(part)
    if not match:
      raise ValueError(f'{spec!r}: unknown section {part!r}; known: {", ".join(options)}')
    name, value = match[1] or match[3], match[2] or match[4]
    if name in ('m', 'n', 'mmax', 'inc') and not value.isdigit():
      raise ValueError(f'{spec!r}: {part!r} wants a whole number')
    options[name] = value if name == 't' else float(value)
  check_range(f'{spec!r}: p', options['p'], 0, 1)
  known = [*WEIGHTED, '3a']
  if options['t']:
    check_choice(f'{spec!r}: set of operations', options['t'], known)
  if options['t'] in WEIGHTED and options['n'] > len(WEIGHTED[options['t']]):
    raise ValueError(f'{spec!r}: draws more operations than there are')
  for name, most in {'m': MAX_MAGNITUDE, 'mmax': MAX_MAGNITUDE, 'n': MAX_COUNT}.items():
    check_range(f'{spec!r}: {name}', options[name], 0, most)
  return options


def operations(options: dict[str, Any]) -> tuple[list[str], np.ndarray | None]:
  """The names that a string draws from and, where it has a weighted set, their probabilities."""
  name = options['t'] or f'inc{int(options["inc"] > 0)}'
  if name in UNWEIGHTED:
    return list(UNWEIGHTED[name]), None
  weights = np.array(list(WEIGHTED[name].values()))
  return list(WEIGHTED[name]), weights / weights.sum()


def magnitude(options: dict[str, Any], rng: np.random.Generator) -> float:
  """A draw of the magnitude, in [0, mmax]."""
  mean, deviation = options['m'], options['mstd']
  drawn = rng.uniform(0, mean) if deviation > 100 else rng.normal(mean, deviation)
  return max(0.0, min(drawn, options['mmax'] or 10.0))


def check_fill(fill: Any) -> None:
  if not (
    isinstance(fill, (tuple, list))
    and len(fill) == 3
    and all(type(value) is int and 0 <= value <= 255 for value in fill)
  ):
    raise ValueError(f'fill is {fill!r}, not three numbers in [0, 255]')


BINS = 31


def spaced(first: float, last: float) -> np.ndarray:
  """BINS float32 numbers at equal distances, rounded as torch.linspace does: from either end."""
  stride, half = float(float32((last - first) / (BINS - 1))), BINS // 2
  numbers = [first + stride * i for i in range(half)]
  numbers += [float(float32(last)) - stride * (BINS - 1 - i) for i in range(half, BINS)]
  return np.array(numbers, np.float32).astype(np.float64)


def signed(last: float) -> np.ndarray:
  return np.concatenate([spaced(0, last), -spaced(0, last)])


# torchvision's operations of TrivialAugmentWide, and values that are equally likely.
TRIVIAL: dict[str, np.ndarray | None] = {
  'Identity': None,
  'ShearX': signed(0.99),
  'ShearY': signed(0.99),
  'TranslateX': signed(32).astype(int),
  'TranslateY': signed(32).astype(int),
  'Rotate': signed(135),
  'Brightness': 1 + signed(0.99),
  'Color': 1 + signed(0.99),
  'Contrast': 1 + signed(0.99),
  'Sharpness': 1 + signed(0.99),
  'Posterize': 8 - np.round(np.arange(BINS) / 5).astype(int),
  'Solarize': spaced(255, 0),
  'AutoContrast': None,
  'Equalize': None,
}


def trivial_augment() -> Step:
  """TrivialAugment, wide, as torchvision has it (arXiv 2103.10158): one operation of any strength.

  Turns and shifts take the nearest pixel and leave black.
  """
  names = list(TRIVIAL)

  def augmented(image: Any, rng: np.random.Generator) -> Any:
    name = names[rng.integers(len(names))]
    values = TRIVIAL[name]
    value = None if values is None else values[rng.integers(len(values))].item()
    return trivially(image, name, value)

  return pillow(augmented)


def trivially(image: Any, name: str, value: Any) -> Any:
  """A PIL image after TrivialAugment's operation of that name."""
  return image if name == 'Identity' else PILLOW[name](image, value, 'NEAREST', (0, 0, 0))


def three_augment() -> Step:
  """DeiT III's 3-Augment (arXiv 2204.07118): grey, solarized from 128, or blurred, one of them.

  The recipe adds `color_jitter(0.3)`.
  """
  steps = (grayscale(1.0), solarization(1.0), gaussian_blur(1.0))
  return lambda image, rng: steps[rng.integers(len(steps))](image, rng)


def grayscale(probability: float = 0.2) -> Step:
  """Luminance in all three channels, as Pillow computes it, with that probability."""
  return sometimes(probability, pillow(lambda image, rng: grey_in_rgb(image)))


def solarization(probability: float = 0.2, threshold: int = 128) -> Step:
  """Inverts what is not below the threshold, with that probability."""
  check_range('threshold', threshold, 0, 256)
  return sometimes(probability, pillow(lambda image, rng: solarized(image, threshold)))


def gaussian_blur(
  probability: float = 0.1, radius_min: float = 0.1, radius_max: float = 2.0
) -> Step:
  """Pillow's Gaussian blur with a uniform radius in pixels, with that probability."""
  check_range('radius_min', radius_min, 0, 100)
  check_range('radius_max', radius_max, radius_min, 100)
  blur = pillow(lambda image, rng: blurred(image, rng.uniform(radius_min, radius_max)))
  return sometimes(probability, blur)


def sometimes(probability: float, step: Step) -> Step:
  """The step with that probability, else the image as it is."""
  check_range('probability', probability, 0, 1)
  return lambda image, rng: step(image, rng) if rng.random() < probability else image


def color_jitter(
  brightness: float,
  contrast: float | None = None,
  saturation: float | None = None,
  hue: float = 0.0,
) -> Step:
  """Brightness, contrast, saturation and hue changed in random order, as torchvision does.

  Args:
    brightness: x draws a factor from [max(0, 1 - x), 1 + x]; 0 leaves it.
    contrast, saturation: the same; None takes that of brightness.
    hue: x draws a turn from [-x, x], at most 0.5, which is half the circle.
  """
  contrast, saturation = (brightness if x is None else x for x in (contrast, saturation))
  amounts = {'Brightness': brightness, 'Contrast': contrast, 'Color': saturation}
  for name, value in zip(('brightness', 'contrast', 'saturation'), amounts.values()):
    check_range(name, value, 0, 100)
  check_range('hue', hue, 0, 0.5)
  parts: list[Callable[[Any, np.random.Generator], Any]] = [
    jitter(name, amount) for name, amount in amounts.items() if amount
  ]
  if hue:
    parts.append(lambda image, rng: hued(image, rng.uniform(-hue, hue)))

  def jittered(image: Any, rng: np.random.Generator) -> Any:
    for index in rng.permutation(len(parts)):
      image = parts[index](image, rng)
    return image

  return pillow(jittered)


def jitter(name: str, amount: float) -> Callable[[Any, np.random.Generator], Any]:
  """One of Pillow's enhancements by a factor drawn from [max(0, 1 - amount), 1 + amount]."""
  low, high = max(0, 1 - amount), 1 + amount
  return lambda image, rng: enhanced(image, name, rng.uniform(low, high))


def hued(image: Any, turn: float) -> Any:
  """A PIL image with its hues turned by a share of the circle, in steps of 1 / 256."""
  from PIL import Image as pil

  hue, saturation, value = image.convert('HSV').split()
  turned_hue = hue.point(((RAMP + int(turn * 255)) % 256).tolist())
  return pil.merge('HSV', (turned_hue, saturation, value)).convert('RGB')


FILLS: dict[str, Callable[[tuple[int, int], np.random.Generator], Any]] = {
  'pixel': lambda size, rng: noise((*size, 3), rng),
  'const': lambda size, rng: GREY,
  'rand': lambda size, rng: noise((3,), rng),
}


def random_erasing(
  probability: float = 0.25,
  area_min: float = 0.02,
  area_max: float = 1 / 3,
  ratio_min: float = 0.3,
  mode: str = 'pixel',
) -> Step:
  """A rectangle filled, as timm's RandomErasing does (arXiv 1708.04896), but before normalisation.

  timm fills with standard normal noise after it. Here a draw z becomes 127.5 + 127.5 z, as mean and
  std of 0.5 would undo, rounded and clipped to a byte: the third of the draws beyond one standard
  deviation is black or white.

  Args:
    probability: of erasing at all.
    area_min, area_max: of the rectangle, as shares of the image.
    ratio_min: height to width is log-uniform in [ratio_min, 1 / ratio_min].
    mode: 'pixel', noise for each value; 'rand', for each channel; 'const', grey, which timm's 0 is.
  """
  check_range('area_min', area_min, 0, 1)
  check_range('area_max', area_max, area_min, 1)
  if type(ratio_min) not in (int, float) or not 0 < ratio_min <= 1:
    raise ValueError(f'ratio_min is {ratio_min!r}, not a number above 0 and at most 1')
  check_choice('mode', mode, tuple(FILLS))

  def step(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    for _ in range(10):
      area = rng.uniform(area_min, area_max) * height * width
      ratio = math.exp(rng.uniform(math.log(ratio_min), -math.log(ratio_min)))
      h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if h < height and w < width:
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        image = image.copy()
        image[top : top + h, left : left + w] = FILLS[mode]((h, w), rng)
        break
    return image

  return sometimes(probability, step)


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  drawn = 127.5 + 127.5 * rng.standard_normal(shape, np.float32)
  return drawn.round().clip(0, 255).astype(np.uint8)


STEPS: dict[str, Callable[..., Step]] = {
  step.__name__: step
  for step in (
    *(randaug, rand_augment, trivial_augment, three_augment),
    *(grayscale, solarization, gaussian_blur, color_jitter, random_erasing),
  )
}
