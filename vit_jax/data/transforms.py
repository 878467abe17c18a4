"""Images in, images out: decoding, and the steps that a config names in a line.

H, W pixels. A step takes an image (H, W, 3) uint8 and a NumPy generator and returns such an image;
a line of steps, 'inception_crop(224) | flip', becomes one function by `compose`. Steps that draw
nothing from the generator serve evaluation.
"""

import ast
import dataclasses
import functools
import inspect
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax import models

Image = np.ndarray
Step = Callable[[Image, np.random.Generator], Image]


class BadImage(ValueError):
  """The bytes of an image file that cannot be decoded."""


FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')
MAX_PIXELS = 89_478_485  # a file may promise more pixels than memory holds


def decode(data: bytes) -> Image:
  """Bytes of an image file to (H, W, 3) uint8: first frame, upright by EXIF, alpha over white.

  Raises:
    BadImage: if they are not an image, are cut short, or hold over MAX_PIXELS pixels.
  """
  from PIL import Image as pil
  from PIL import ImageOps

  if not data:
    raise BadImage('the file is empty')
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', pil.DecompressionBombWarning)  # the limit here is our own
      opened = pil.open(io.BytesIO(data), formats=FORMATS)
  except pil.UnidentifiedImageError:
    raise BadImage('not an image') from None
  except Exception as error:  # of whatever kind a decoder raises over hostile bytes
    raise damaged(error) from None
  if (pixels := opened.width * opened.height) > MAX_PIXELS:
    raise BadImage(f'{pixels:,} pixels exceed the limit of {MAX_PIXELS:,}')
  try:
    with opened:
      return np.asarray(as_rgb(ImageOps.exif_transpose(opened)))
  except Exception as error:
    raise damaged(error) from None


def pixels(image: bytes | Image) -> Image:
  """An image given as the bytes of its file or as pixels, as pixels."""
  return decode(image) if isinstance(image, bytes) else image


def damaged(error: Exception) -> BadImage:
  return BadImage(f'damaged image ({" ".join(str(error).split())})')


def as_rgb(image: Any) -> Any:
  """A PIL image of any mode in RGB; 16-bit grey keeps its upper byte."""
  from PIL import Image as pil

  if image.mode.startswith('I;16'):
    return pil.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
  if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    white = pil.new('RGBA', image.size, 'white')
    return pil.alpha_composite(white, image).convert('RGB')
  return image.convert('RGB')


def resized(image: Image, height: int, width: int, method: str = 'bilinear') -> Image:
  """The image at (height, width) by one of METHODS."""
  if image.shape[:2] == (height, width):
    return image
  return METHODS[method](image, (width, height))


def opencv(image: Image, size: tuple[int, int], name: str) -> Image:
  """Half-pixel centres and no antialiasing; `size` is (width, height)."""
  import cv2

  return cv2.resize(image, size, interpolation=getattr(cv2, name))


def pillow(image: Image, size: tuple[int, int], name: str) -> Image:
  """Half-pixel centres and antialiasing, always; `size` is (width, height)."""
  from PIL import Image as pil

  return np.asarray(pil.fromarray(image).resize(size, pil.Resampling[name]))


METHODS: dict[str, Callable[[Image, tuple[int, int]], Image]] = {
  'bilinear': functools.partial(opencv, name='INTER_LINEAR'),  # tf.image.resize: Google
  'bicubic': functools.partial(opencv, name='INTER_CUBIC'),
  'bilinear_antialias': functools.partial(pillow, name='BILINEAR'),  # torchvision, Hugging Face
  'bicubic_antialias': functools.partial(pillow, name='BICUBIC'),  # timm, DeiT
}


def resize(height: int, width: int, *, method: str = 'bilinear') -> Step:
  """Squashes to (height, width) by one of METHODS."""
  check_sides(height, width)
  check_method(method)
  return lambda image, rng: resized(image, height, width, method)


def resize_small(side: int, *, method: str = 'bilinear') -> Step:
  """Resizes so that the smaller side has `side` pixels, by one of METHODS; keeps the aspect.

  The longer side is rounded, as big_vision does; torchvision, timm and Hugging Face cut it, so that
  half of their images are a pixel shorter there.
  """
  check_sides(side)
  check_method(method)

  def step(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    scale = side / min(height, width)
    return resized(image, round(height * scale), round(width * scale), method)

  return step


def central_crop(height: int, width: int) -> Step:
  """Cuts (height, width) from the middle of an image that is at least as large.

  Where 3, 7, 11, ... pixels are spare, torchvision and timm start one later.
  """
  check_sides(height, width)

  def step(image: Image, rng: np.random.Generator) -> Image:
    top, left = spare(image, height, width)
    return image[top // 2 : top // 2 + height, left // 2 : left // 2 + width]

  return step


def random_crop(height: int, width: int) -> Step:
  """Cuts (height, width) anywhere from an image that is at least as large."""
  check_sides(height, width)

  def step(image: Image, rng: np.random.Generator) -> Image:
    top, left = (int(rng.integers(room + 1)) for room in spare(image, height, width))
    return image[top : top + height, left : left + width]

  return step


def spare(image: Image, height: int, width: int) -> tuple[int, int]:
  """Rows and columns of the image beyond a crop of (height, width)."""
  rows, columns = image.shape[0] - height, image.shape[1] - width
  if rows < 0 or columns < 0:
    raise ValueError(
      f'a crop of {height}x{width} exceeds the image of {image.shape[0]}x{image.shape[1]}'
    )
  return rows, columns


def inception_crop(
  height: int,
  width: int,
  area_min: float = 0.05,
  area_max: float = 1.0,
  ratio_min: float = 3 / 4,
  ratio_max: float = 4 / 3,
) -> Step:
  """A crop of random area (a share of the image's) and aspect, resized (arXiv 1409.4842)."""
  check_sides(height, width)
  check_numbers(area_min, area_max, ratio_min, ratio_max)

  def step(image: Image, rng: np.random.Generator) -> Image:
    rows, columns = image.shape[:2]
    for _ in range(10):
      area = rng.uniform(area_min, area_max) * rows * columns
      ratio = np.exp(rng.uniform(np.log(ratio_min), np.log(ratio_max)))
      h, w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
      if 0 < h <= rows and 0 < w <= columns:
        top, left = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1))
        return resized(image[top : top + h, left : left + w], height, width)
    return resized(image, height, width)

  return step


def flip() -> Step:
  """Mirrors left and right with probability 1/2."""
  return lambda image, rng: image[:, ::-1] if rng.random() < 0.5 else image


def affine(degrees: float = 0.0, shift: float = 0.0, zoom: float = 0.0, shear: float = 0.0) -> Step:
  """A random turn, shift, zoom and slant about the centre, each uniform; new pixels are black.

  Args:
    degrees: largest turn.
    shift: largest shift, a share of each side.
    zoom: largest relative change of size.
    shear: largest slant, in degrees.
  """
  check_numbers(degrees, shift, zoom, shear)

  def step(image: Image, rng: np.random.Generator) -> Image:
    import cv2

    height, width = image.shape[:2]
    angle, slant = np.radians(rng.uniform(-degrees, degrees)), rng.uniform(-shear, shear)
    scale = 1 + rng.uniform(-zoom, zoom)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * turn @ np.array([[1, np.tan(np.radians(slant))], [0, 1]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre - linear @ centre + rng.uniform(-shift, shift, 2) * (width, height)
    matrix = np.column_stack([linear, offset])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)

  return step


def check_sides(*sides: Any) -> None:
  """Raises ValueError for a side that is no whole number of pixels."""
  for side in sides:
    if type(side) is not int or side < 1:
      raise ValueError(f'{side!r} is not a number of pixels')


def check_method(method: Any) -> None:
  """Raises ValueError for a method that is none of METHODS."""
  if method not in METHODS:
    raise ValueError(f'unknown method {method!r}; known: {", ".join(METHODS)}')


def check_numbers(*values: Any) -> None:
  """Raises ValueError for what is no number."""
  for value in values:
    if type(value) not in (int, float):
      raise ValueError(f'{value!r} is not a number')


STEPS: dict[str, Callable[..., Step]] = {
  step.__name__: step
  for step in (resize, resize_small, central_crop, random_crop, inception_crop, flip, affine)
}
SIZED = ('height', 'width')


@dataclasses.dataclass(frozen=True)
class Transform:
  """Steps in a row: from the bytes of an image file, or its pixels, to pixels.

  Fields:
    steps: each takes what the one before gives.
    size: (height, width) that the model takes.
  """

  steps: tuple[Step, ...]
  size: tuple[int, int]

  def __call__(self, image: bytes | Image, rng: np.random.Generator) -> Image:
    image = pixels(image)
    for step in self.steps:
      image = step(image, rng)
    return image


def compose(line: str, size: tuple[int, int]) -> Transform:
  """One function from a line such as 'resize_small(256) | central_crop(224) | flip'.

  Args:
    line: steps of STEPS, joined by '|', with literal arguments; where a step takes a height and a
      width, one number means a square and none means `size`.
    size: (height, width) that the model takes.

  Raises:
    ValueError: for an unknown step or arguments that it does not take.
  """
  steps = tuple(parsed(text.strip(), size) for text in line.split('|') if text.strip())
  return Transform(steps, tuple(size))


def parsed(text: str, size: tuple[int, int]) -> Step:
  """The step that 'name' or 'name(arguments)' stands for."""
  match = re.fullmatch(r'(\w+)\s*(\(.*\))?', text)
  name = match[1] if match else text
  if name not in STEPS:
    raise ValueError(f'unknown transform {name!r}{models.nearest(name, list(STEPS))}')
  make = STEPS[name]
  try:
    call: Any = ast.parse(text if match and match[2] else text + '()', mode='eval').body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
      raise ValueError('is not a call of one step')
    positional = [ast.literal_eval(argument) for argument in call.args]
    keywords = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    if list(inspect.signature(make).parameters)[:2] == list(SIZED):
      if not positional and not keywords.keys() & set(SIZED):
        positional = list(size)
      elif len(positional) == 1:
        positional *= 2
    return make(*positional, **keywords)
  except (SyntaxError, ValueError, TypeError) as error:
    raise ValueError(f'transform {text!r}: {error}') from None
