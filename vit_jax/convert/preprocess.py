"""Preprocessing lines, and what other frameworks say instead of them."""

import ast
import dataclasses
import inspect
import math
from typing import Any

from vit_jax.images import transforms


@dataclasses.dataclass(frozen=True)
class Look:
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


LINES = (
  ['resize'],
  ['resize', 'central_crop'],
  ['resize_small', 'central_crop'],
  ['crop_ratio'],
)


def look(steps: str, size: tuple[int, int]) -> Look | None:
  """What one of LINES does, whatever its arguments; None for any other line.

  Args:
    steps: as `transforms.compose` takes them.
    size: (height, width) that the model takes; a line that gives another one has no look.
  """
  try:
    transforms.compose(steps, size)
  except ValueError:
    return None
  calls = [called(text.strip(), size) for text in steps.split('|') if text.strip()]
  if [name for name, _ in calls] not in LINES:
    return None
  (name, first), (_, last) = calls[0], calls[-1]
  if (last['height'], last['width']) != size:
    return None
  if name == 'crop_ratio':
    ratio = first['ratio']
    sides = (math.floor(size[0] / ratio), math.floor(size[1] / ratio))
    return Look(False, sides, first['method'], crop='nearest', ratio=ratio)
  crop = last.get('rounding', 'down')
  if name == 'resize':
    return Look(True, (first['height'], first['width']), first['method'], crop=crop)
  return Look(False, (first['side'],) * 2, first['method'], first['rounding'], crop)


def called(text: str, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
  """The name and all the arguments of a step that `transforms.compose` takes."""
  call: Any = ast.parse(text if '(' in text else f'{text}()', mode='eval').body
  told = inspect.signature(transforms.STEPS[call.func.id]).bind_partial(
    *map(ast.literal_eval, call.args),
    **{word.arg: ast.literal_eval(word.value) for word in call.keywords},
  )
  told.apply_defaults()
  height, width = (told.arguments['height'],) * 2 if 'height' in told.arguments else size
  return call.func.id, {'height': height, 'width': width, **told.arguments}


def line(seen: Look, size: tuple[int, int]) -> str:
  """The steps that look so, for images of `size`."""
  how = f"method='{seen.method}'"
  if seen.ratio is not None:
    return f'crop_ratio(ratio={seen.ratio}, {how})'
  crop = 'central_crop' if seen.crop == 'down' else f"central_crop(rounding='{seen.crop}')"
  height, width = seen.sides
  if seen.squash:
    return f'resize({how})' if seen.sides == size else f'resize({height}, {width}, {how}) | {crop}'
  how = how if seen.rounding == 'nearest' else f"{how}, rounding='{seen.rounding}'"
  return f'resize_small({height}, {how}) | {crop}'


def same(steps: str, other: str, size: tuple[int, int]) -> bool:
  """Whether two lines, however they are written, give the same pixels of every image."""
  seen, found = look(steps, size), look(other, size)
  if seen is None or found is None:
    return steps.strip() == other.strip()
  return settled(seen, size) == settled(found, size)


def settled(seen: Look, size: tuple[int, int]) -> Look:
  """The look without a rounding that has nothing to round."""
  spare = [side - least for side, least in zip(seen.sides, size)]
  if seen.squash and all(round(pixels / 2) == pixels // 2 for pixels in spare):
    return dataclasses.replace(seen, crop='down')
  return seen


def cropped(size: tuple[int, int], share: float, method: str) -> str:
  """Hugging Face's steps: resizes the shorter side to `size / share`, then cuts the centre."""
  side = math.floor(max(size) / share)
  return line(Look(False, (side, side), method), size)


def scaled(steps: str, size: tuple[int, int], new: tuple[int, int]) -> str:
  """The line for images of another size, which shows the same part of them."""
  seen = look(steps, size)
  if seen is None:
    return 'resize'
  if seen.squash:
    height, width = (side * n // old for side, n, old in zip(seen.sides, new, size))
  else:
    height = width = seen.sides[0] * max(new) // max(size)
  return line(dataclasses.replace(seen, sides=(height, width)), new)
