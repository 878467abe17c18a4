"""Images in, images out: the steps that a config names in a line.

H, W pixels, C channels. A step takes an image (H, W, C) uint8 and a NumPy generator and returns
such an image; a line of steps, 'inception_crop(224) | flip', becomes one function by `compose`.
Steps that draw nothing from the generator serve evaluation. Steps of geometry treat every channel
alike; those of colour take RGB alone.
"""

import ast
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from vit_jax import lookup
from vit_jax.images import augment
from vit_jax.images.augment import by_pillow
from vit_jax.images.decoding import (
  MAX_PIXELS,
  Encoded,
  Image,
  by_channels,
  check_pixels,
  decode_lazily,
  fit_channels,
  opencv,
)
from vit_jax.images.decoding import BadImage as BadImage  # "as": these are names of this file too
from vit_jax.images.decoding import as_pixels as as_pixels
from vit_jax.images.decoding import decode as decode
from vit_jax.images.steps import Step as Step
from vit_jax.images.steps import check_choice, check_range
from vit_jax.text import nearest


def resize_image(image: Image, height: int, width: int, method: str = 'bilinear') -> Image:
  """The image at (height, width) by one of METHODS."""
  if image.shape[:2] == (height, width):
    return image
  return METHODS[method](image, (width, height))


def resize_opencv(image: Image, size: tuple[int, int], name: str) -> Image:
  """Half-pixel centres and no antialiasing; `size` is (width, height)."""
  cv2 = opencv()
  method = getattr(cv2, name)
  return by_channels(lambda part: cv2.resize(part, size, interpolation=method), image)


def resize_pillow(image: Image, size: tuple[int, int], name: str) -> Image:
  """Half-pixel centres and antialiasing, always; `size` is (width, height)."""
  from PIL import Image as pil

  method = pil.Resampling[name]
  return by_pillow(lambda picture: picture.resize(size, method), image)


def resize_area(image: Image, size: tuple[int, int]) -> Image:
  """The mean of what each pixel covers, as tf.image.resize's 'area'; `size` is (width, height)."""
  cv2, values = opencv(), image.astype(np.float32)
  means = by_channels(lambda part: cv2.resize(part, size, interpolation=cv2.INTER_AREA), values)
  # big_vision cuts the fraction off; a whole number may be 4e-5 short of itself here
  return (means + 1e-3).astype(np.uint8)


METHODS: dict[str, Callable[[Image, tuple[int, int]], Image]] = {
  'bilinear': functools.partial(resize_opencv, name='INTER_LINEAR'),  # tf.image.resize: Google
  'bicubic': functools.partial(resize_opencv, name='INTER_CUBIC'),
  'area': resize_area,  # big_vision's resize_small
  # torchvision and Hugging Face, then timm and DeiT
  'bilinear_antialias': functools.partial(resize_pillow, name='BILINEAR'),
  'bicubic_antialias': functools.partial(resize_pillow, name='BICUBIC'),
}
ROUNDINGS = ('nearest', 'down')
MAX_SIDE = 16_384  # pixels that a config may ask for; more is a mistake


def resize(height: int, width: int, *, scale: float = 1.0, method: str = 'bilinear') -> Step:
  """Squashes to (height, width) times `scale` by one of METHODS."""
  height, width = scaled(height, scale), scaled(width, scale)
  check_sides(height, width)
  check_choice('method', method, METHODS)
  return lambda image, rng: resize_image(image, height, width, method)


def scaled(side: int, scale: float) -> int:
  """A side times a scale in whole pixels: 384 times 7/6 is 448."""
  check_range('scale', scale, 0.01, 100)
  return side if scale == 1 else round(side * scale)


def resize_small(
  side: int, *, scale: float = 1.0, method: str = 'bilinear', rounding: str = 'nearest'
) -> Step:
  """Resizes so that the smaller side has `side` times `scale` pixels; keeps the aspect.

  The longer side is rounded to the 'nearest', in float32 as big_vision does, or 'down', as
  torchvision, timm and Hugging Face do. By one of METHODS.
  """
  side = scaled(side, scale)
  check_sides(side, side)
  check_choice('method', method, METHODS)
  check_choice('rounding', rounding, ROUNDINGS)

  def step(image: Image, rng: np.random.Generator) -> Image:
    height, width = scale_sides(image.shape[0], image.shape[1], side, rounding)
    check_pixels(height, width)  # a line of one pixel becomes almost endless
    return resize_image(image, height, width, method)

  return step


def scale_sides(height: int, width: int, side: int, rounding: str) -> tuple[int, int]:
  """The sides with the smaller at `side`."""
  smaller = min(height, width)
  if rounding == 'down':
    return side * height // smaller, side * width // smaller
  factor = np.float32(side) / np.float32(smaller)
  return int(np.rint(np.float32(height) * factor)), int(np.rint(np.float32(width) * factor))


@dataclasses.dataclass(frozen=True)
class Crop:
  """A step that cuts a part of an image out."""

  step: Step

  def __call__(self, image: Image, rng: np.random.Generator) -> Image:
    return self.step(image, rng)


def central_crop(height: int, width: int, *, rounding: str = 'down') -> Step:
  """Cuts (height, width) from the middle of an image that is at least as large.

  Half of the pixels beyond the crop is rounded 'down', as big_vision and Hugging Face do, or to the
  'nearest' (even), as torchvision and timm do.
  """
  check_sides(height, width)
  check_choice('rounding', rounding, ROUNDINGS)
  half = round if rounding == 'nearest' else math.floor

  def step(image: Image, rng: np.random.Generator) -> Image:
    y, x = (half(excess / 2) for excess in margins(image, height, width))
    return image[y : y + height, x : x + width]

  return Crop(step)


def corner_crop(height: int, width: int) -> Step:
  """Cuts (height, width) from the top left: what a convolution of whole patches reads."""
  check_sides(height, width)

  def step(image: Image, rng: np.random.Generator) -> Image:
    margins(image, height, width)
    return image[:height, :width]

  return Crop(step)


def crop_ratio(
  height: int, width: int, ratio: float = 0.875, *, method: str = 'bicubic_antialias'
) -> Step:
  """The central (height, width) of an image that was resized to cover 1 / ratio of that.

  To the pixel what timm does for `crop_pct`, and torchvision.
  """
  check_sides(height, width)
  check_range('ratio', ratio, 0.0001, 1)
  rows, columns = math.floor(height / ratio), math.floor(width / ratio)
  check_sides(rows, columns)
  if height == width:
    enlarge = resize_small(rows, method=method, rounding='down')
  else:
    enlarge = resize_to_cover(rows, columns, method)
  crop = central_crop(height, width, rounding='nearest')
  return lambda image, rng: crop(enlarge(image, rng), rng)


def resize_to_cover(height: int, width: int, method: str) -> Step:
  """Resizes to no less than (height, width), and on one side to no more; keeps the aspect."""
  check_choice('method', method, METHODS)

  def step(image: Image, rng: np.random.Generator) -> Image:
    shrink = min(image.shape[0] / height, image.shape[1] / width)
    rows, columns = (round(side / shrink) for side in image.shape[:2])
    check_pixels(rows, columns)
    return resize_image(image, rows, columns, method)

  return step


def random_crop(height: int, width: int) -> Step:
  """Cuts (height, width) anywhere from an image that is at least as large."""
  check_sides(height, width)

  def step(image: Image, rng: np.random.Generator) -> Image:
    y, x = (int(rng.integers(excess + 1)) for excess in margins(image, height, width))
    return image[y : y + height, x : x + width]

  return Crop(step)


def margins(image: Image, height: int, width: int) -> tuple[int, int]:
  """Rows and columns of the image beyond a crop of (height, width)."""
  rows, columns = image.shape[:2]
  if rows < height or columns < width:
    raise ValueError(f'a crop of {height}x{width} exceeds the image of {rows}x{columns}')
  return rows - height, columns - width


@dataclasses.dataclass(frozen=True)
class Lazy:
  """A step that takes an Encoded image too, of which it decodes what it needs."""

  step: Callable[[Image | Encoded, np.random.Generator], Image]

  def __call__(self, image: Image | Encoded, rng: np.random.Generator) -> Image:
    return self.step(image, rng)


def inception_crop(
  height: int,
  width: int,
  area_min: float = 0.05,
  area_max: float = 1.0,
  ratio_min: float = 3 / 4,
  ratio_max: float = 4 / 3,
  *,
  method: str = 'bilinear',
) -> Step:
  """A crop of random area (a fraction of the image's) and aspect, resized (arXiv 1409.4842).

  As the first step it decodes a large JPEG at 1/2, 1/4 or 1/8 of its size where the crop allows.
  """
  check_sides(height, width)
  check_range('area_min', area_min, 0, 1)
  check_range('area_max', area_max, area_min, 1)
  check_range('ratio_min', ratio_min, 0.01, 100)
  check_range('ratio_max', ratio_max, ratio_min, 100)
  check_choice('method', method, METHODS)
  low, high = math.log(ratio_min), math.log(ratio_max)

  def step(image: Image | Encoded, rng: np.random.Generator) -> Image:
    rows, columns, _ = image.shape
    for area, ratio, down, across in rng.random((10, 4)).tolist():  # tries, as torchvision
      area = (area_min + (area_max - area_min) * area) * rows * columns
      ratio = math.exp(low + (high - low) * ratio)
      h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
      if 0 < h <= rows and 0 < w <= columns:
        box = int(down * (rows - h + 1)), int(across * (columns - w + 1)), h, w
        break
    else:
      box = 0, 0, rows, columns
    return resize_image(crop_box(image, box, (height, width)), height, width, method)

  return Lazy(step)


def crop_box(
  image: Image | Encoded, box: tuple[int, int, int, int], min_size: tuple[int, int]
) -> Image:
  """The part within a box (top, left, height, width), which may be shrunk to `min_size`."""
  if isinstance(image, Encoded):
    return image.crop(box, min_size)
  y, x, height, width = box
  return image[y : y + height, x : x + width]


def flip() -> Step:
  """Mirrors left and right with probability 1/2."""
  # OpenCV's, as a view with negative strides takes forty times as long to copy.
  mirror = functools.partial(by_channels, lambda part: opencv().flip(part, 1))
  return lambda image, rng: mirror(image) if rng.random() < 0.5 else image


def affine(degrees: float = 0.0, shift: float = 0.0, zoom: float = 0.0, shear: float = 0.0) -> Step:
  """A random rotation, translation, zoom and shear about the centre, each uniform; fills black.

  Args:
    degrees: largest rotation.
    shift: largest translation, a fraction of each side.
    zoom: largest relative change of size, at most 0.9.
    shear: largest shear, in degrees, at most 80.
  """
  check_range('degrees', degrees, 0, 180)
  check_range('shift', shift, 0, 1)
  check_range('zoom', zoom, 0, 0.9)
  check_range('shear', shear, 0, 80)

  def step(image: Image, rng: np.random.Generator) -> Image:
    cv2 = opencv()
    height, width = image.shape[:2]
    angle = np.radians(rng.uniform(-degrees, degrees))
    shear_angle = np.radians(rng.uniform(-shear, shear))
    scale = 1 + rng.uniform(-zoom, zoom)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * rotation @ np.array([[1, np.tan(shear_angle)], [0, 1]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre - linear @ centre + rng.uniform(-shift, shift, 2) * (width, height)
    matrix, size = np.column_stack([linear, offset]), (width, height)
    return by_channels(
      lambda part: cv2.warpAffine(part, matrix, size, flags=cv2.INTER_LINEAR), image
    )

  return step


def check_sides(height: int, width: int) -> None:
  """Raises ValueError for sides that are no whole numbers of pixels, or too many."""
  for side in (height, width):
    if type(side) is not int or not 1 <= side <= MAX_SIDE:
      raise ValueError(f'{side!r} is not a number of pixels from 1 to {MAX_SIDE:,}')
  if height * width > MAX_PIXELS:
    raise ValueError(f'{height}x{width} pixels exceed the limit of {MAX_PIXELS:,}')


STEPS: dict[str, Callable[..., Step]] = {
  step.__name__: step
  for step in (
    *(resize, resize_small, crop_ratio, central_crop, corner_crop),
    *(random_crop, inception_crop, flip, affine),
  )
} | augment.STEPS
SIZED = ('height', 'width')  # the first parameters of a step that takes the model's size
ANTIALIASED = {'bilinear': 'bilinear_antialias', 'bicubic': 'bicubic_antialias'}


@dataclasses.dataclass(frozen=True)
class Transform:
  """Steps in a row: from the bytes of an image file, or its pixels, to pixels.

  Fields:
    steps: each takes what the one before gives.
    size: (height, width) that the model takes.
    channels: that the model takes, C.
  """

  steps: tuple[Step, ...]
  size: tuple[int, int]
  channels: int = 3

  def __call__(self, image: bytes | Encoded | Image, rng: np.random.Generator) -> Image:
    pixels: Any = decode_lazily(image, self.channels) if isinstance(image, bytes) else image
    if not isinstance(pixels, Encoded):
      pixels = fit_channels(pixels, self.channels)
    elif not (self.steps and isinstance(self.steps[0], Lazy)):  # which alone takes Encoded
      pixels = pixels.pixels()
    for step in self.steps:
      pixels = step(pixels, rng)
    return pixels


def compose(line: str, size: tuple[int, int], channels: int = 3) -> Transform:
  """One function from a line such as 'resize_small(256) | central_crop(224) | flip'.

  Args:
    line: steps of STEPS, joined by '|', with literal arguments; where a step takes a height and a
      width, one number means a square and none means `size`.
    size: (height, width) that the model takes.
    channels: that the model takes.

  Raises:
    ValueError: for an unknown step or arguments that it does not take, and for a step of colour
      where images are not RGB.
  """
  texts = [text.strip() for text in line.split('|') if text.strip()]
  steps = tuple(parse_step(text, size) for text in texts)
  if channels != 3 and (coloured := [text for text in texts if name_of(text) in augment.COLOUR]):
    raise ValueError(
      f'transform {coloured[0]!r} is of colour: it takes images of 3 channels, not {channels}'
    )
  return Transform(steps, (size[0], size[1]), channels)


def name_of(text: str) -> str:
  """The name of the step that 'name' or 'name(arguments)' stands for."""
  return text.partition('(')[0].strip()


def parse_step(text: str, size: tuple[int, int]) -> Step:
  """The step that 'name' or 'name(arguments)' stands for."""
  match = re.fullmatch(r'([\w.]+:\w+|\w+)\s*(\(.*\))?', text)
  name, arguments = (match[1], match[2] or '()') if match else (text, '()')
  if lookup.is_path(name):
    make = lookup.imported(name, 'transform', marked=True)
  elif name in STEPS:
    make = STEPS[name]
  else:
    raise ValueError(f'unknown transform {name!r}{nearest(name, list(STEPS))}')
  try:
    call: Any = ast.parse(f'step{arguments}', mode='eval').body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
      raise ValueError('is not a call of one step')
    positional = [literal(argument) for argument in call.args]
    keywords = {str(word.arg): literal(word.value) for word in call.keywords}
    positional = with_size(list(inspect.signature(make).parameters), positional, keywords, size)
    return make(*positional, **keywords)
  except (Exception, SystemExit) as error:
    if not isinstance(error, SyntaxError | ValueError | TypeError) and not lookup.is_path(name):
      raise
    raise ValueError(f'transform {text!r}: {error}') from None


def with_size(
  parameters: list[str], positional: list[object], keywords: Collection[str], size: tuple[int, int]
) -> list[object]:
  """The positional arguments of a step, with the model's size where it takes one and has none."""
  if parameters[:2] == list(SIZED):
    if not positional and not set(keywords) & set(SIZED):
      return list(size)
    return positional * 2 if len(positional) == 1 else positional
  if parameters[0:1] == ['side'] and 'scale' in keywords and 'side' not in keywords:
    return positional or [max(size)]
  return positional


def antialiased(line: str) -> str:
  """The line with antialiasing in each step that names no method and would not have it."""
  return ' | '.join(antialiased_step(text.strip()) for text in line.split('|') if text.strip())


def antialiased_step(text: str) -> str:
  name, bracket, arguments = text.partition('(')
  make = STEPS.get(name.strip())
  method = inspect.signature(make).parameters.get('method') if make else None
  if method is None or method.default not in ANTIALIASED or 'method' in arguments:
    return text
  before = arguments.rpartition(')')[0].strip() if bracket else ''
  return f"{name.strip()}({before}{', ' * bool(before)}method='{ANTIALIASED[method.default]}')"


def crop_fraction(transform: Transform, image: Image) -> float:
  """The fraction of a square image's area that its crops to a size leave.

  The square is that of the image's smaller side, so that an aspect counts for nothing.
  """
  side, fraction, rng = min(image.shape[:2]), 1.0, np.random.default_rng(0)
  pixels = image[:side, :side]
  for step in transform.steps:
    before, pixels = pixels.shape, step(pixels, rng)
    if isinstance(step, Crop):
      fraction *= pixels.shape[0] * pixels.shape[1] / (before[0] * before[1])
  return fraction


def literal(argument: ast.expr) -> object:
  """The value of a number, of two that are divided, or of a text in the source."""
  try:
    if isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Div):
      return ast.literal_eval(argument.left) / ast.literal_eval(argument.right)
    return ast.literal_eval(argument)
  except (ValueError, TypeError, ZeroDivisionError):
    raise ValueError(f'{ast.unparse(argument)} is not a number or a text in quotes') from None
