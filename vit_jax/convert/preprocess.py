"""Preprocessing lines, and what other frameworks say instead of them."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Look:
  """A preprocessing line as other frameworks say it.

  Fields:
    squash: whether an image loses its aspect.
    side: pixels that the shorter side becomes, before the centre is cut.
    method: of `transforms.METHODS`.
    sides: (height, width) before the centre is cut, of a squashed image.
  """

  squash: bool
  side: int
  method: str
  sides: tuple[int, int] | None = None


METHOD = r"(?:(?:^|,)\s*method='(?P<method>\w+)')?"
CROP = r'(?P<crop>\s*\|\s*central_crop(?:\((?P<window>[\d, ]+)\))?)?'


def look(steps: str, size: tuple[int, int]) -> Look | None:
  """What 'resize' or 'resize_small(N)', then 'central_crop', does; None for any other line.

  Args:
    steps: with or without sizes and a method.
    size: (height, width) that the model takes; a line that gives another one has no look.
  """
  found = re.fullmatch(rf'(resize|resize_small)(?:\(([^()|]*)\))?{CROP}', steps.strip())
  inside = found and re.fullmatch(rf'(?P<sides>[\d, ]*){METHOD}', (found[2] or '').strip())
  if not found or not inside:
    return None
  method = inside['method'] or 'bilinear'
  given = pair(inside['sides'])
  if found['crop'] and found['window'] and pair(found['window']) != size:
    return None
  if found[1] == 'resize_small':
    return Look(False, given[0], method) if given and given[0] == given[1] else None
  sides = given or size
  if sides != size and not found['crop']:
    return None
  return Look(True, min(sides), method, sides)


def pair(text: str) -> tuple[int, int] | None:
  """(height, width) of '64' or '64, 96'; None of anything else."""
  numbers = [int(number) for number in re.findall(r'\d+', text)]
  if len(numbers) not in (1, 2):
    return None
  return (numbers[0], numbers[-1])


def same(steps: str, other: str, size: tuple[int, int]) -> bool:
  """Whether two lines, however they are written, do the same."""
  seen = look(steps, size)
  if seen is None:
    return steps.strip() == other.strip()
  return seen == look(other, size)


def cropped(size: tuple[int, int], share: float, method: str) -> str:
  """Steps that resize an image's shorter side to `size / share` and cut the centre."""
  side = math.floor(min(size) / share)
  return f"resize_small({side}, method='{method}') | central_crop"


def scaled(steps: str, size: tuple[int, int], new: tuple[int, int]) -> str:
  """The line for images of another size, which shows the same part of them."""
  seen = look(steps, size)
  if seen is None:
    return 'resize'
  if seen.sides == size:
    return f"resize(method='{seen.method}')"
  if seen.sides:
    height, width = (side * n // old for side, n, old in zip(seen.sides, new, size))
    return f"resize({height}, {width}, method='{seen.method}') | central_crop"
  return cropped(new, min(size) / seen.side, seen.method)
