"""Augmentations by Pillow: timm's RandAugment, TrivialAugment, 3-Augment, colour jitter, erasing.

H, W pixels, C channels. A step takes an image (H, W, C) uint8 and a NumPy generator and returns
such an image; C is 3 for the steps of COLOUR.
Published recipes depend on how each library rounds, so there are two dialects of the same
operations: TensorFlow's, which `randaug` draws from, and this one, of timm, torchvision and DeiT.
The operations equal the originals pixel for pixel, the order in which they come up does not.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.images.decoding import Image
from vit_jax.images.randaug import randaug
from vit_jax.images.steps import (
  GREY,
  MAX_COUNT,
  MAX_MAGNITUDE,
  RAMP,
  Step,
  check_choice,
  check_range,
)

if TYPE_CHECKING:
  from PIL.Image import Image as Picture

Operation = Callable[['Picture', np.random.Generator], 'Picture']
Fill = tuple[int, ...]


def by_pillow(operation: Callable[['Picture'], 'Picture'], image: Image) -> Image:
  """A function of a PIL image on an image (H, W, C): RGB as one, else every channel by itself.

  A fourth channel by itself too: Pillow would take it for alpha and weigh the others by it.
  """
  from PIL import Image as pil

  if image.shape[2] == 3:
    return np.asarray(operation(pil.fromarray(image)))
  bands = [pil.fromarray(band) for band in np.moveaxis(image, -1, 0)]
  return np.stack([np.asarray(operation(band)) for band in bands], axis=-1)


def pillow_step(operation: Operation) -> Step:
  """A step from a function of a PIL image and a generator."""

  def step(image: Image, rng: np.random.Generator) -> Image:
    from PIL import Image as pil

    return np.asarray(operation(pil.fromarray(image), rng))

  return step


def apply_pillow_table(image: 'Picture', table: np.ndarray) -> 'Picture':
  """A PIL image with each value looked up in (256,)."""
  return image.point(table.tolist() * len(image.getbands()))  # one table for each channel


def enhance(image: 'Picture', name: str, factor: float) -> 'Picture':
  """The image with its 'Color', 'Contrast', 'Brightness' or 'Sharpness' times a factor."""
  from PIL import ImageEnhance

  return getattr(ImageEnhance, name)(image).enhance(factor)


def apply_imageops(image: 'Picture', name: str) -> 'Picture':
  """The image after the function of Pillow's ImageOps of that name, which takes nothing else."""
  from PIL import ImageOps

  return getattr(ImageOps, name)(image)


def posterize(image: 'Picture', bits: int) -> 'Picture':
  """Keeps the upper bits; none of them gives black, which Pillow from 13 on refuses."""
  return apply_pillow_table(image, RAMP & ~(2 ** (8 - bits) - 1)) if bits < 8 else image


def solarize(image: 'Picture', threshold: float) -> 'Picture':
  return apply_pillow_table(image, np.where(threshold > RAMP, RAMP, 255 - RAMP))


def solarize_add(image: 'Picture', addition: int) -> 'Picture':
  return apply_pillow_table(image, np.where(RAMP < 128, (RAMP + addition).clip(0, 255), RAMP))


def blur(image: 'Picture', radius: float) -> 'Picture':
  from PIL import ImageFilter

  return image.filter(ImageFilter.GaussianBlur(radius))


def rotate(image: 'Picture', degrees: float, resampling: str, fill: Fill) -> 'Picture':
  from PIL import Image as pil

  return image.rotate(degrees, pil.Resampling[resampling], fillcolor=fill)


def transform(
  image: 'Picture', matrix: tuple[float, ...], resampling: str, fill: Fill
) -> 'Picture':
  """Each pixel (x, y) from (a x + b y + c, d x + e y + f)."""
  from PIL import Image as pil

  method = pil.Resampling[resampling]
  return image.transform(image.size, pil.Transform.AFFINE, matrix, method, fillcolor=fill)


# By timm's names (data/auto_augment.py), without Increasing:
# (image, value, resampling, fill) -> image.
PILLOW: dict[str, Callable[..., 'Picture']] = {
  'AutoContrast': lambda image, *_: apply_imageops(image, 'autocontrast'),
  'Equalize': lambda image, *_: apply_imageops(image, 'equalize'),
  'Invert': lambda image, *_: apply_imageops(image, 'invert'),
  'Rotate': rotate,
  'Posterize': lambda image, value, *_: posterize(image, value),
  'Solarize': lambda image, value, *_: solarize(image, value),
  'SolarizeAdd': lambda image, value, *_: solarize_add(image, value),
  'Color': lambda image, value, *_: enhance(image, 'Color', value),
  'Contrast': lambda image, value, *_: enhance(image, 'Contrast', value),
  'Brightness': lambda image, value, *_: enhance(image, 'Brightness', value),
  'Sharpness': lambda image, value, *_: enhance(image, 'Sharpness', value),
  'ShearX': lambda image, value, *options: transform(image, (1, value, 0, 0, 1, 0), *options),
  'ShearY': lambda image, value, *options: transform(image, (1, 0, 0, value, 1, 0), *options),
  'TranslateX': lambda image, value, *options: transform(image, (1, 0, value, 0, 1, 0), *options),
  'TranslateY': lambda image, value, *options: transform(image, (1, 0, 0, 0, 1, value), *options),
  'TranslateXRel': lambda image, value, *options: transform(
    image, (1, 0, value * image.width, 0, 1, 0), *options
  ),
  'TranslateYRel': lambda image, value, *options: transform(
    image, (1, 0, 0, 0, 1, value * image.height), *options
  ),
  'Desaturate': lambda image, value, *_: enhance(image, 'Color', min(1.0, max(0.0, 1 - value))),
  'GaussianBlur': lambda image, value, *_: blur(image, value),
}

# The value of each at a level (magnitude / 10) and a sign, timm's LEVEL_TO_ARG; one that is missing
# takes no value. timm's HPARAMS_DEFAULT has no translate_pct, so that it is 0.45.
LEVELS: dict[str, Callable[[float, int], float]] = {
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

# What a spec's t section names, timm's _RAND_WEIGHTED_0, _RAND_WEIGHTED_3A: operations with their
# weights, sampled without replacement; ...
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
# ... or without weights, sampled with it; 'inc0' and 'inc1' stand for a spec without a t section.
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
  """timm's RandAugment, from its config string; not what `randaug` does.

  Args:
    spec: 'rand' and sections: m magnitude (10), n operations (2), p probability of each (0.5), mstd
      normal noise on the magnitude (0; over 100: uniform below it), mmax its bound (10, as in timm,
      where 15 is 10 too), inc1 for operations that grow stronger with it, t for another set of them
      ('tweights', 't3a', 't3aw').
    fill: the colour of pixels that a rotation or translation leaves empty; timm's trainer takes the
      mean colour.
    resample: of rotations and translations: 'bilinear', 'bicubic', or 'random', one of the two
      each time.
  """
  options = parse_spec(spec)
  check_fill(fill)
  check_choice('resample', resample, (*RESAMPLING, 'random'))
  names, weights = operations(options)
  resamplings = RESAMPLING if resample == 'random' else (resample,)

  def operation(image: 'Picture', rng: np.random.Generator) -> 'Picture':
    for name in rng.choice(names, int(options['n']), replace=weights is None, p=weights):
      if rng.random() < options['p']:
        level = sample_magnitude(options, rng) / 10
        sign = int(rng.choice((-1, 1)))
        resampling = resamplings[rng.integers(len(resamplings))].upper()
        image = apply_timm(image, name, level, sign, resampling, fill)
    return image

  return pillow_step(operation)


def apply_timm(
  image: 'Picture', name: str, level: float, sign: int, resampling: str, fill: Fill
) -> 'Picture':
  """A PIL image after timm's operation of that name."""
  value = LEVELS[name](level, sign) if name in LEVELS else None
  return PILLOW[name.removesuffix('Increasing')](image, value, resampling, fill)


def parse_spec(spec: object) -> dict[str, Any]:
  """{'m': 9.0, ...} of timm's config string, with its defaults."""
  options: dict[str, Any] = dict(m=10.0, n=2.0, p=0.5, mstd=0.0, mmax=10.0, inc=0.0, t='')
  if not isinstance(spec, str) or spec.split('-')[0] != 'rand':
    raise ValueError(f"{spec!r} does not begin with 'rand'")
  for part in spec.split('-')[1:]:
    match = SECTION.fullmatch(part)
    if not match:
      raise ValueError(f'{spec!r}: unknown section {part!r}; known: {", ".join(options)}')
    name, value = match[1] or match[3], match[2] or match[4]
    if name in ('m', 'n', 'mmax', 'inc') and not value.isdigit():
      raise ValueError(f'{spec!r}: {part!r} must be a whole number')
    options[name] = value if name == 't' else float(value)
  check_range(f'{spec!r}: p', options['p'], 0, 1)
  if options['t']:
    check_choice(f'{spec!r}: set of operations', options['t'], [*WEIGHTED, '3a'])
  if options['t'] in WEIGHTED and options['n'] > len(WEIGHTED[options['t']]):
    raise ValueError(f'{spec!r}: draws more operations than there are')
  for name, high in {'m': MAX_MAGNITUDE, 'mmax': MAX_MAGNITUDE, 'n': MAX_COUNT}.items():
    check_range(f'{spec!r}: {name}', options[name], 0, high)
  return options


def operations(options: dict[str, Any]) -> tuple[list[str], np.ndarray | None]:
  """The names that a spec samples from and, where it has a weighted set, their probabilities."""
  name = options['t'] or f'inc{int(options["inc"] > 0)}'
  if name in UNWEIGHTED:
    return list(UNWEIGHTED[name]), None
  weights = np.array(list(WEIGHTED[name].values()))
  return list(WEIGHTED[name]), weights / weights.sum()


def sample_magnitude(options: dict[str, Any], rng: np.random.Generator) -> float:
  """A random magnitude, in [0, mmax]."""
  mean, deviation = options['m'], options['mstd']
  sample = rng.uniform(0, mean) if deviation > 100 else rng.normal(mean, deviation)
  return max(0.0, min(sample, options['mmax'] or 10.0))


def check_fill(fill: object) -> None:
  """Raises ValueError for what is no colour."""
  if not (
    isinstance(fill, (tuple, list))
    and len(fill) == 3
    and all(type(value) is int and 0 <= value <= 255 for value in fill)
  ):
    raise ValueError(f'fill is {fill!r}, not three numbers in [0, 255]')


BINS = 31  # values of an operation, torchvision's num_magnitude_bins


def linspace(first: float, last: float) -> np.ndarray:
  """BINS float32 numbers at equal distances, rounded as torch.linspace does: from either end."""
  stride, half = float(np.float32((last - first) / (BINS - 1))), BINS // 2
  numbers = [first + stride * i for i in range(half)]
  numbers += [float(np.float32(last)) - stride * (BINS - 1 - i) for i in range(half, BINS)]
  return np.array(numbers, np.float32).astype(np.float64)


def both_signs(last: float) -> np.ndarray:
  return np.concatenate([linspace(0, last), -linspace(0, last)])


# The operations in _augmentation_space of torchvision's TrivialAugmentWide, and values that are
# equally likely.
TRIVIAL: dict[str, np.ndarray | None] = {
  'Identity': None,
  'ShearX': both_signs(0.99),
  'ShearY': both_signs(0.99),
  'TranslateX': both_signs(32).astype(int),
  'TranslateY': both_signs(32).astype(int),
  'Rotate': both_signs(135),
  'Brightness': 1 + both_signs(0.99),
  'Color': 1 + both_signs(0.99),
  'Contrast': 1 + both_signs(0.99),
  'Sharpness': 1 + both_signs(0.99),
  'Posterize': 8 - np.round(np.arange(BINS) / 5).astype(int),
  'Solarize': linspace(255, 0),
  'AutoContrast': None,
  'Equalize': None,
}


def trivial_augment() -> Step:
  """TrivialAugment, wide, as torchvision has it (arXiv 2103.10158): one operation of any strength.

  Rotations and translations take the nearest pixel and leave black.
  """
  names = list(TRIVIAL)

  def operation(image: 'Picture', rng: np.random.Generator) -> 'Picture':
    name = names[rng.integers(len(names))]
    values = TRIVIAL[name]
    value = None if values is None else values[rng.integers(len(values))].item()
    return apply_trivial(image, name, value)

  return pillow_step(operation)


def apply_trivial(image: 'Picture', name: str, value: float | None) -> 'Picture':
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
  step = pillow_step(lambda image, rng: image.convert('L').convert('RGB'))
  return with_probability(probability, step)


def solarization(probability: float = 0.2, threshold: int = 128) -> Step:
  """Inverts what is not below the threshold, with that probability."""
  check_range('threshold', threshold, 0, 256)
  step = functools.partial(by_pillow, lambda picture: solarize(picture, threshold))
  return with_probability(probability, lambda image, rng: step(image))


def gaussian_blur(
  probability: float = 0.1, radius_min: float = 0.1, radius_max: float = 2.0
) -> Step:
  """Pillow's Gaussian blur with a uniform radius in pixels, with that probability."""
  check_range('radius_min', radius_min, 0, 100)
  check_range('radius_max', radius_max, radius_min, 100)

  def step(image: Image, rng: np.random.Generator) -> Image:
    radius = rng.uniform(radius_min, radius_max)
    return by_pillow(lambda picture: blur(picture, radius), image)

  return with_probability(probability, step)


def with_probability(probability: float, step: Step) -> Step:
  """The step with that probability, else the image as it is."""
  check_range('probability', probability, 0, 1)
  return lambda image, rng: step(image, rng) if rng.random() < probability else image


def color_jitter(
  brightness: float,
  contrast: float | None = None,
  saturation: float | None = None,
  hue: float = 0.0,
  *,
  probability: float = 1.0,
) -> Step:
  """Brightness, contrast, saturation and hue changed in random order, as torchvision does.

  Args:
    brightness: x draws a factor from [max(0, 1 - x), 1 + x]; 0 leaves it.
    contrast, saturation: the same; None takes that of brightness.
    hue: x draws a rotation of the hue from [-x, x], at most 0.5, which is half the circle.
    probability: of changing anything.
  """
  contrast, saturation = (brightness if x is None else x for x in (contrast, saturation))
  amounts = {'Brightness': brightness, 'Contrast': contrast, 'Color': saturation}
  for name, value in zip(('brightness', 'contrast', 'saturation'), amounts.values()):
    check_range(name, value, 0, 100)
  check_range('hue', hue, 0, 0.5)
  parts = [jitter(name, amount) for name, amount in amounts.items() if amount]
  if hue:
    parts.append(lambda image, rng: shift_hue(image, rng.uniform(-hue, hue)))

  def operation(image: 'Picture', rng: np.random.Generator) -> 'Picture':
    for index in rng.permutation(len(parts)):
      image = parts[index](image, rng)
    return image

  step = pillow_step(operation)
  return step if probability == 1 else with_probability(probability, step)


def jitter(name: str, amount: float) -> Operation:
  """One of Pillow's enhancements by a factor drawn from [max(0, 1 - amount), 1 + amount]."""
  low, high = max(0, 1 - amount), 1 + amount
  return lambda image, rng: enhance(image, name, rng.uniform(low, high))


def shift_hue(image: 'Picture', shift: float) -> 'Picture':
  """A PIL image with its hues rotated by a fraction of the circle, in steps of 1 / 256."""
  from PIL import Image as pil

  hue, saturation, value = image.convert('HSV').split()
  shifted = hue.point(((RAMP + int(shift * 255)) % 256).tolist())
  return pil.merge('HSV', (shifted, saturation, value)).convert('RGB')


# (height, width, channels) and a generator -> what fills a rectangle
FILLS: dict[str, Callable[[tuple[int, int, int], np.random.Generator], np.ndarray | int]] = {
  'pixel': lambda shape, rng: noise(shape, rng),
  'const': lambda shape, rng: GREY,
  'rand': lambda shape, rng: noise(shape[2:], rng),
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
    area_min, area_max: of the rectangle, as fractions of the image.
    ratio_min: height to width is log-uniform in [ratio_min, 1 / ratio_min].
    mode: 'pixel', noise for each value; 'rand', for each channel; 'const', grey, which timm's 0 is.
  """
  check_range('area_min', area_min, 0, 1)
  check_range('area_max', area_max, area_min, 1)
  if type(ratio_min) not in (int, float) or not 0 < ratio_min <= 1:
    raise ValueError(f'ratio_min is {ratio_min!r}, not a number above 0 and at most 1')
  check_choice('mode', mode, tuple(FILLS))

  def step(image: Image, rng: np.random.Generator) -> Image:
    height, width, channels = image.shape
    for _ in range(10):  # as timm and torchvision try; a rectangle that does not fit is rare
      area = rng.uniform(area_min, area_max) * height * width
      ratio = math.exp(rng.uniform(math.log(ratio_min), -math.log(ratio_min)))
      h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if h < height and w < width:
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        image = image.copy()
        image[y : y + h, x : x + w] = FILLS[mode]((h, w, channels), rng)
        break
    return image

  return with_probability(probability, step)


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  values = 127.5 + 127.5 * rng.standard_normal(shape, np.float32)
  return values.round().clip(0, 255).astype(np.uint8)


STEPS: dict[str, Callable[..., Step]] = {
  step.__name__: step
  for step in (
    *(randaug, rand_augment, trivial_augment, three_augment),
    *(grayscale, solarization, gaussian_blur, color_jitter, random_erasing),
  )
}
COLOUR = (  # steps that mix the channels of a pixel, or weigh them as red, green and blue
  *('randaug', 'rand_augment', 'trivial_augment', 'three_augment'),
  *('grayscale', 'color_jitter'),
)
