"""The sheet of `vit data show`: images as they are and as training draws them, a row for each.

R rows, E epochs; H, W pixels of an image that the model takes.
"""

import functools
import io
import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from PIL.Image import Image
  from PIL.ImageFont import FreeTypeFont

SMALLEST = 64  # pixels of a tile's shorter side, to which smaller images are enlarged
GAP, MARGIN = 4, 12  # pixels between tiles, and around the sheet
NAMES = 190  # pixels of the column with names
LETTERS, WIDE_LETTER = 21, 9  # of a name in a line; pixels of a letter of the title, at most
FONT, LINE = 15, 20  # pixels of the letters and of a line
INK, FAINT, PAPER = '#1b1f24', '#5b6470', '#ffffff'


def draw(
  tiles: np.ndarray, originals: Sequence[np.ndarray], names: Sequence[tuple[str, str]], title: str
) -> bytes:
  """The sheet as a PNG file.

  Args:
    tiles: (R, E, H, W, 3) uint8, of each image in each epoch.
    originals: R images (h, w, 3) uint8.
    names: R pairs: the class, and what the data set calls the image.
    title: lines on what is shown.
  """
  from PIL import Image, ImageDraw

  epochs = tiles.shape[1]
  letters = place(tiles, 0, 1 + epochs, 0)[0] // WIDE_LETTER
  lines = [part for line in title.splitlines() for part in textwrap.wrap(line, letters)]
  width = place(tiles, 0, 1 + epochs, len(lines))[0] - GAP + MARGIN
  height = place(tiles, len(tiles), 0, len(lines))[1] - GAP + MARGIN
  sheet = Image.new('RGB', (width, height), PAPER)
  pen = functools.partial(ImageDraw.Draw(sheet).text, font=font())
  for number, line in enumerate(lines):
    pen((MARGIN, MARGIN + number * LINE), line, fill=INK if number == 0 else FAINT)
  for column in range(1 + epochs):
    x, y = place(tiles, 0, column, len(lines))
    pen((x, y - LINE), f'epoch {column}' if column else 'as it is', fill=FAINT)
  for row, (label, name) in enumerate(names):
    y = place(tiles, row, 0, len(lines))[1]
    for number, (text, ink) in enumerate(named(label, name, tile_size(tiles)[0])):
      pen((MARGIN, y + number * LINE), text, fill=ink)
    sheet.paste(fitted(originals[row], tile_size(tiles)), place(tiles, row, 0, len(lines)))
    for epoch in range(epochs):
      x, y = place(tiles, row, 1 + epoch, len(lines))
      sheet.paste(Image.fromarray(enlarged(tiles[row, epoch])), (x, y))
  file = io.BytesIO()
  sheet.save(file, 'PNG')
  return file.getvalue()


def named(label: str, name: str, height: int) -> list[tuple[str, str]]:
  """Lines beside a row, with their colours: the class, and the image where there is room."""
  room = max(height // LINE, 1)
  lines = [(line, INK) for line in textwrap.wrap(label, LETTERS)[:room]]
  parts = [(line, FAINT) for line in textwrap.wrap(name, LETTERS)]
  return lines + parts[max(len(parts) - room + len(lines), 0) :]  # its end tells most


def magnification(tiles: np.ndarray) -> int:
  return max(math.ceil(SMALLEST / min(tiles.shape[2:4])), 1)


def enlarged(tile: np.ndarray) -> np.ndarray:
  """(H, W, 3) with whole pixels repeated."""
  times = magnification(tile[None, None])
  return tile.repeat(times, axis=0).repeat(times, axis=1)


def tile_size(tiles: np.ndarray) -> tuple[int, int]:
  """Height and width of a tile in the sheet."""
  times = magnification(tiles)
  return tiles.shape[2] * times, tiles.shape[3] * times


def place(tiles: np.ndarray, row: int, column: int, lines: int) -> tuple[int, int]:
  """Where a tile's upper left corner is, x and y, below so many lines of title; column 0 is the
  image as it is."""
  height, width = tile_size(tiles)
  top = 2 * MARGIN + (lines + 1) * LINE
  return MARGIN + NAMES + column * (width + GAP), top + row * (height + GAP)


def fitted(image: np.ndarray, size: tuple[int, int]) -> 'Image':
  """A whole image (h, w, 3), enlarged or made smaller to lie in a tile."""
  from PIL import Image

  height, width = size
  scale = min(height / image.shape[0], width / image.shape[1])
  sides = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
  way = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
  tile = Image.new('RGB', (width, height), PAPER)
  tile.paste(
    Image.fromarray(image).resize(sides, way), ((width - sides[0]) // 2, (height - sides[1]) // 2)
  )
  return tile


@functools.cache
def font() -> 'FreeTypeFont':
  """Matplotlib's DejaVu Sans, which has the letters of most scripts."""
  import matplotlib
  from PIL import ImageFont

  path = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
  return ImageFont.truetype(path, FONT)
