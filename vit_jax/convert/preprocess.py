"""Preprocessing lines, and what other frameworks say instead of them."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Look:
  """A preprocessing line as other frameworks say it: None where it is not of that form."""

  squash: bool
  side: int  # pixels that the shorter side becomes, or both
  method: str


def look(steps: str, size: tuple[int, int]) -> Look | None:
  """What 'resize' or 'resize_small(N) | central_crop' does, with or without sizes and method."""
  method = r"(?:,?\s*method='(?P<method>\w+)')?"
  squash = re.fullmatch(rf'resize(?:\((?P<sides>[\d, ]*){method}\))?', steps.strip())
  crop = re.fullmatch(
    rf'resize_small\((?P<side>\d+){method}\)(?:\s*\|\s*central_crop(?:\([\d, ]*\))?)?',
    steps.strip(),
  )
  found = squash or crop
  if not found:
    return None
  side = math.ceil(min(size)) if squash else int(found['side'])
  return Look(bool(squash), side, found['method'] or 'bilinear')


def cropped(size: tuple[int, int], share: float, method: str) -> str:
  """Steps that resize an image's shorter side to `size / share` and cut the centre."""
  side = math.floor(min(size) / share)
  return f"resize_small({side}, method='{method}') | central_crop"


def scaled(steps: str, size: tuple[int, int], new: tuple[int, int]) -> str:
  """The line for images of another size, which shows the same part of them."""
  seen = look(steps, size)
  if seen is None or seen.squash:
    return f"resize(method='{seen.method}')" if seen else 'resize'
  return cropped(new, min(size) / seen.side, seen.method)
