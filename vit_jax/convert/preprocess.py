"""Preprocessing lines, and what other frameworks say instead of them."""

import ast
import dataclasses
import inspect
import math
from typing import Any

from vit_jax.images import transforms
from vit_jax.text import quantity


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """What happens to an image before the model.

  Fields:
    steps: a line for `vit_jax.images.transforms.compose`.
    size: (height, width) in pixels that the model takes.
    mean, std: of pixels in [0, 1], per channel: the model sees (pixel - mean) / std. As many as
      there are numbers in `mean` are the channels of an image.
  """

  steps: str
  size: tuple[int, int]
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)

  @property
  def channels(self) -> int:
    """How many an image has: 1 grey, 3 RGB, 4 RGBA, or as many as its file or array."""
    return len(self.mean)

  @property
  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of an image that the model takes."""
    return (*self.size, self.channels)

  @property
  def transform(self) -> transforms.Transform:
    """The steps as one function, from an image's file or pixels to `shape`."""
    return transforms.compose(self.steps, self.size, self.channels)


def fit_levels(fields: dict[str, Any], channels: int | None) -> tuple[dict[str, Any], list[str]]:
  """Fields of `Preprocess` with a mean and a std for each channel, and what a user should know.

  One number is of every channel. Of three that are RGB's, images of other channels get the mean
  value for each, as timm has it.

  Args:
    fields: as a file tells them.
    channels: of the images, by its first kernel; None where that is not known.

  Raises:
    ValueError: for any other number of them.
  """
  levels = {name: tuple(fields.get(name, (0.5,) * 3)) for name in ('mean', 'std')}
  if channels is None or all(len(values) == channels for values in levels.values()):
    return fields, []
  notes = []
  for name, values in levels.items():
    if len(values) not in (1, 3, channels):
      raise ValueError(f'{name} is {list(values)}, but images have {quantity(channels, "channel")}')
    if len(values) != channels:
      levels[name] = (sum(values) / len(values),) * channels
      notes += [
        f'{name} is of RGB, images have {quantity(channels, "channel")}: takes its mean value'
      ] * (name in fields and len(values) == 3)
  return fields | levels, notes


@dataclasses.dataclass(frozen=True)
class Resizing:
  """A preprocessing line as other frameworks say it: images are resized, and the centre cut.

  Fields:
    squash: whether images become `sides` and lose their aspect; else they come to cover them.
    sides: (height, width) before the centre is cut.
    method: of `transforms.METHODS`.
    rounding: of the longer side, of `transforms.ROUNDINGS`.
    crop: how half of the spare pixels is rounded, of `transforms.ROUNDINGS`.
    ratio: of which `sides` are floor(size / ratio), where the line says it so.
  """

  squash: bool
  sides: tuple[int, int]
  method: str
  rounding: str = 'down'
  crop: str = 'down'
  ratio: float | None = dataclasses.field(default=None, compare=False)


SIDES = ('height', 'width', 'side')  # parameters of steps, in pixels
LINES = (['resize'], ['resize', 'central_crop'], ['resize_small', 'central_crop'], ['crop_ratio'])


def parse_steps(steps: str, size: tuple[int, int]) -> Resizing | None:
  """What one of LINES does, whatever its arguments; None for any other line, or another size."""
  try:
    transforms.compose(steps, size)
  except ValueError:
    return None
  calls = [parse_call(text.strip(), size) for text in steps.split('|') if text.strip()]
  if [name for name, _ in calls] not in LINES:
    return None
  (name, first), (_, last) = calls[0], calls[-1]
  if (last['height'], last['width']) != size:
    return None
  if name == 'crop_ratio':
    ratio = first['ratio']
    sides = (math.floor(size[0] / ratio), math.floor(size[1] / ratio))
    return Resizing(False, sides, first['method'], crop='nearest', ratio=ratio)
  crop = last.get('rounding', 'down')
  if name == 'resize':
    return Resizing(True, (first['height'], first['width']), first['method'], crop=crop)
  return Resizing(False, (first['side'],) * 2, first['method'], first['rounding'], crop)


def parse_call(text: str, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  """The name and all the arguments of a step that `transforms.compose` takes."""
  call: Any = ast.parse(text if '(' in text else f'{text}()', mode='eval').body
  arguments = inspect.signature(transforms.STEPS[call.func.id]).bind_partial(
    *map(transforms.literal, call.args),
    **{word.arg: transforms.literal(word.value) for word in call.keywords},
  )
  arguments.apply_defaults()
  values = arguments.arguments
  height, width = (values['height'],) * 2 if 'height' in values else size
  values = {'height': height, 'width': width, 'side': max(size), **values}
  sides = {name: transforms.scaled(values[name], values.get('scale', 1.0)) for name in SIDES}
  return call.func.id, {**values, **sides}


def describe_steps(preprocess: Preprocess) -> dict[str, Any] | None:
  """What one of LINES does to an image, in full; None for another line.

  'resize' is to 'size', of which the image, where 'keeps_aspect', comes to cover the sides: the
  other is rounded 'down' or to the 'nearest'. Then the centre of 'crop' is cut out.
  """
  size = preprocess.size
  resizing = parse_steps(preprocess.steps, size)
  if resizing is None:
    return None
  is_covering = resizing.ratio is not None and size[0] != size[1]
  interpolation, _, antialias = resizing.method.partition('_')
  return {
    'resize': {
      'size': list(resizing.sides),
      'keeps_aspect': not resizing.squash,
      'rounding': 'nearest' if is_covering else resizing.rounding,
      'interpolation': interpolation,
      'antialias': bool(antialias) or interpolation == 'area',
    },
    'crop': {'size': list(size), 'rounding': resizing.crop},
  }


def format_steps(resizing: Resizing, size: tuple[int, int]) -> str:
  """The steps that resize so, for images of `size`."""
  method = f"method='{resizing.method}'"
  if resizing.ratio is not None:
    return f'crop_ratio(ratio={resizing.ratio}, {method})'
  crop = 'central_crop' if resizing.crop == 'down' else f"central_crop(rounding='{resizing.crop}')"
  height, width = resizing.sides
  if resizing.squash:
    whole = resizing.sides == size
    return f'resize({method})' if whole else f'resize({height}, {width}, {method}) | {crop}'
  method = method if resizing.rounding == 'nearest' else f"{method}, rounding='{resizing.rounding}'"
  return f'resize_small({height}, {method}) | {crop}'


def same_pixels(steps: str, other: str, size: tuple[int, int]) -> bool:
  """Whether two lines, however they are written, give the same pixels of every image."""
  one, two = parse_steps(steps, size), parse_steps(other, size)
  if one is None or two is None:
    return steps.strip() == other.strip()
  return canonical(one, size) == canonical(two, size)


def canonical(resizing: Resizing, size: tuple[int, int]) -> Resizing:
  """The same without a rounding that has nothing to round."""
  spare = [side - crop for side, crop in zip(resizing.sides, size)]
  if resizing.squash and all(round(pixels / 2) == pixels // 2 for pixels in spare):
    return dataclasses.replace(resizing, crop='down')
  return resizing


def crop_steps(size: tuple[int, int], fraction: float, method: str) -> str:
  """Hugging Face's steps: resizes the shorter side to `size / fraction`, then cuts the centre."""
  side = math.floor(max(size) / fraction)
  return format_steps(Resizing(False, (side, side), method), size)


def whole_patches(steps: str, size: tuple[int, int], new: tuple[int, int]) -> str:
  """The line for images of `size`, of which whole patches cover the `new` first pixels."""
  height, width = size

  def explicit(text: str) -> str:
    name, _, arguments = text.strip().partition('(')
    if name not in ('resize', 'central_crop', 'crop_ratio') or arguments[:1].isdigit():
      return text.strip()
    return f'{name}({height}, {width}' + (f', {arguments}' if arguments else ')')

  crop = f'corner_crop({new[0]}, {new[1]})'
  return ' | '.join([*map(explicit, steps.split('|')), crop])


def scale_steps(steps: str, size: tuple[int, int], new: tuple[int, int]) -> str:
  """The line for images of another size, which shows the same part of them."""
  resizing = parse_steps(steps, size)
  if resizing is None:
    return 'resize'
  if resizing.squash:
    height, width = (side * n // old for side, n, old in zip(resizing.sides, new, size))
  else:
    height = width = resizing.sides[0] * max(new) // max(size)
  return format_steps(dataclasses.replace(resizing, sides=(height, width)), new)
