"""Pictures of what `vit_jax.analysis` finds: arrays in, PNG files as bytes out.

H, W pixels; R, C rows and columns of patches; A heads, L depth.
"""

import colorsys
import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.images.decoding import displayed

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
  from matplotlib.image import AxesImage

DPI = 100
LARGEST = 60.0  # inches of a figure's side
ACROSS = 7  # filters in a row: ViT's figure 7
TILES = 16  # rows and columns of patches that a grid of positions shows, at most
SHOWN = 24  # layers in a row, and ticks of an axis, at most
SMALL = 24  # cells of a tile's longer side, at least
GOLDEN = 0.618034  # of the circle of hues between two classes, so that neighbours differ
GAP = np.nan  # between tiles: transparent
TILE = 0.7  # inches of a map of attention
TITLE, LABEL = 11, 9  # points


def figure(width: float, height: float) -> 'Figure':
  """An empty figure of that many inches, LARGEST at most; it needs no display."""
  from matplotlib.figure import Figure

  width, height = min(width, LARGEST), min(height, LARGEST)
  return Figure(figsize=(width, height), dpi=DPI, layout='constrained')


def png(figure: 'Figure') -> bytes:
  """A figure's file; equal figures have equal files."""
  file = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph', UserWarning)  # a font without letters of a name
    figure.savefig(file, format='png', metadata={'Software': None})
  return file.getvalue()


def tiled(tiles: np.ndarray, gap: int = 1) -> np.ndarray:
  """A table of tiles (rows, columns, h, w, ...) as one array, with `gap` cells of NaN between."""
  rows, columns, height, width, *channels = tiles.shape
  cells = np.full((rows, height + gap, columns, width + gap, *channels), GAP)
  cells[:, :height, :, :width] = np.moveaxis(tiles, 1, 2)
  flat = cells.reshape(rows * (height + gap), columns * (width + gap), *channels)
  return flat[: -gap or None, : -gap or None]


def magnified(tiles: np.ndarray) -> np.ndarray:
  """Tiles (rows, columns, h, w, ...) with cells repeated, so that gaps are narrow beside them."""
  times = max(SMALL // max(tiles.shape[2:4]), 1)
  return tiles.repeat(times, axis=2).repeat(times, axis=3)


def entitle(figure: 'Figure', title: str) -> None:
  """Gives a figure its title, as text and never as a formula, in as many lines as it needs."""
  across = max(int(figure.get_figwidth() * 10), 20)
  figure.suptitle(textwrap.fill(title, across), fontsize=TITLE, parse_math=False)


def table(
  axes: 'Axes', tiles: np.ndarray, names: tuple[Iterable[int], Iterable[int]], **options: Any
) -> 'AxesImage':
  """Draws tiles (rows, columns, h, w, ...), and names rows and columns at the tiles' middles."""
  tiles = magnified(tiles)
  rows, columns, height, width = tiles.shape[:4]
  image = axes.imshow(tiled(tiles), interpolation='nearest', **options)
  axes.set_yticks(np.arange(rows) * (height + 1) + (height - 1) / 2, list(map(str, names[0])))
  axes.set_xticks(np.arange(columns) * (width + 1) + (width - 1) / 2, list(map(str, names[1])))
  axes.tick_params(length=0, labelsize=LABEL)
  axes.spines[:].set_visible(False)
  return image


def filters(components: np.ndarray, title: str) -> bytes:
  """Principal components (n, rows, columns, C), each from its smallest to its largest value.

  One channel is grey; of more than three the first three are shown.
  """
  n, height, width, channels = components.shape
  low, high = (f(axis=(1, 2, 3), keepdims=True) for f in (components.min, components.max))
  scaled = (components - low) / np.maximum(high - low, 1e-12)
  scaled = scaled[..., np.minimum(range(3), channels - 1)]
  across = min(ACROSS, n)
  rows = math.ceil(n / across)
  blank = np.ones((rows * across - n, height, width, 3))
  tiles = np.concatenate([scaled, blank]).reshape(rows, across, height, width, 3)
  fig = figure(1 + 0.8 * across, 0.8 + 0.8 * rows)
  axes = fig.subplots()
  axes.imshow(np.nan_to_num(tiled(magnified(tiles)), nan=1.0), interpolation='nearest')
  axes.set_axis_off()
  entitle(fig, title)
  return png(fig)


def positions(similarity: np.ndarray, title: str) -> bytes:
  """Cosines (R, C, R, C): the tile at a patch shows how alike all others' positions are."""
  rows, columns = (np.arange(0, n, math.ceil(n / TILES)) for n in similarity.shape[:2])
  fig = figure(8, 7)
  axes = fig.subplots()
  image = table(
    axes, similarity[rows][:, columns], (rows + 1, columns + 1), vmin=-1, vmax=1, cmap='viridis'
  )
  axes.set(xlabel='column of the patch', ylabel='row of the patch')
  entitle(fig, title)
  fig.colorbar(image, ax=axes, label='cosine similarity')
  return png(fig)


def distances(pixels: np.ndarray, title: str) -> bytes:
  """Mean attention distances (L, A): a point for each head over the depth."""
  depth, heads = pixels.shape
  fig = figure(6.4, 4.8)
  axes = fig.subplots()
  layers, names = np.repeat(np.arange(depth), heads) + 1, np.tile(np.arange(heads), depth) + 1
  style: dict[str, Any] = {'s': 32, 'edgecolors': '0.25', 'linewidths': 0.6}
  points = axes.scatter(layers, pixels.reshape(-1), c=names, cmap='viridis', **style)
  top = 1.05 * max(np.nan_to_num(pixels).max(), 1e-3)
  axes.set(xlabel='layer', ylabel='mean attention distance (pixels)', ylim=(0, top))
  axes.set_xticks(ticks(depth) + 1)
  fig.colorbar(points, ax=axes, label='head', ticks=ticks(heads) + 1)
  entitle(fig, title)
  return png(fig)


def ticks(count: int) -> np.ndarray:
  """As many of 0 ... count - 1 as there is room for."""
  return np.arange(0, count, max(math.ceil(count / SHOWN), 1))


def layers(similarity: np.ndarray, names: Sequence[str], title: str) -> bytes:
  """Similarities (l, l) in [0, 1] of layers, the first at the lower left."""
  fig = figure(6.4, 5.6)
  axes = fig.subplots()
  image = axes.imshow(similarity, origin='lower', vmin=0, vmax=1, cmap='magma')
  shown = ticks(len(names))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(shown, [names[i] for i in shown], fontsize=LABEL)
  axes.tick_params(axis='x', labelrotation=90)
  axes.set(xlabel='layer', ylabel='layer')
  entitle(fig, title)
  fig.colorbar(image, ax=axes, label='linear CKA')
  return png(fig)


def attention(image: np.ndarray, maps: np.ndarray, title: str) -> bytes:
  """The image, and maps (L, A, R, C), each from 0 to its own largest value; a row for a layer."""
  depth, heads, rows, columns = maps.shape
  largest = maps.max(axis=(2, 3), keepdims=True)
  wide = TILE * heads * columns / rows
  fig = figure(3.2 + wide, 1 + TILE * depth)
  photo_axes, map_axes = fig.subplots(1, 2, width_ratios=(2, max(wide, 1)))
  photo_axes.imshow(displayed(image))
  photo_axes.set_axis_off()
  photo_axes.set_anchor('N')
  names = (range(1, depth + 1), range(1, heads + 1))
  table(map_axes, maps / np.maximum(largest, 1e-12), names, vmin=0, vmax=1, cmap='inferno')
  map_axes.set(xlabel='head', ylabel='layer')
  entitle(fig, title)
  return png(fig)


def rollout(image: np.ndarray, maps: np.ndarray, title: str) -> bytes:
  """The image, and under each layer's rollout (R, C) of maps (L, R, C) the image again."""
  shown = [depth for depth in ticks(len(maps) - 1)] + [len(maps) - 1]
  titles = [f'layer {depth + 1}' for depth in shown]
  return overlays(image, [maps[depth] for depth in shown], titles, title)


def overlays(
  image: np.ndarray, fields: Sequence[np.ndarray], titles: Sequence[str], title: str
) -> bytes:
  """An image, and beside it itself under each field (R, C), from its least to its largest value."""
  across = min(len(fields) + 1, 7)
  down = math.ceil((len(fields) + 1) / across)
  height, width = image.shape[:2]
  fig = figure(1.9 * across, 0.5 + down * (0.3 + 1.8 * height / width))
  panels = fig.subplots(down, across, squeeze=False).reshape(-1)
  for axes in panels:
    axes.set_axis_off()
  panels[0].imshow(displayed(image))
  for axes, field, caption in zip(panels[1:], fields, titles):
    axes.imshow(displayed(image))
    axes.imshow(field, extent=edges(image), interpolation='nearest', alpha=0.6, cmap='inferno')
    axes.set_title(caption, fontsize=LABEL)
  entitle(fig, title)
  return png(fig)


def colours(images: Sequence[np.ndarray], fields: np.ndarray, title: str) -> bytes:
  """Images (H, W, C) uint8, each above its colours (R, C, 3) in [0, 1] of fields, SHOWN at most."""
  images = images[:SHOWN]
  height, width = images[0].shape[:2]
  across = min(ACROSS, len(images))
  down = math.ceil(len(images) / across)
  fig = figure(1.9 * across, 0.7 + 3.7 * down * height / width)
  panels = fig.subplots(2 * down, across, squeeze=False)
  for axes in panels.flat:
    axes.set_axis_off()
  for number, (image, field) in enumerate(zip(images, fields)):
    row, column = divmod(number, across)
    panels[2 * row, column].imshow(displayed(image))
    panels[2 * row + 1, column].imshow(field, extent=edges(image), interpolation='nearest')
  entitle(fig, title)
  return png(fig)


def segmentations(
  images: Sequence[np.ndarray],
  masks: Sequence[np.ndarray],
  predictions: Sequence[np.ndarray],
  names: Sequence[str],
  title: str,
) -> bytes:
  """Images (H, W, C) uint8 in columns, below each its mask (H', W') and what was predicted for it.

  Classes have the colours of a legend; what is none of `names` is left white.
  """
  from matplotlib.patches import Patch

  colours = np.array([colorsys.hsv_to_rgb(k * GOLDEN % 1, 0.75, 0.9) for k in range(len(names))])
  height, width = images[0].shape[:2]
  fig = figure(1.9 * len(images) + 1.6, 0.9 + 5.7 * height / width)
  panels = fig.subplots(3, len(images), squeeze=False)
  for axes in panels.flat:
    axes.set_axis_off()
  for column, image in enumerate(images):
    panels[0, column].imshow(displayed(image))
    for row, field in enumerate((masks[column], predictions[column]), 1):
      is_class = (field >= 0) & (field < len(names))
      shown = np.where(is_class[..., None], colours[np.where(is_class, field, 0)], 1.0)
      panels[row, column].imshow(shown, extent=edges(image), interpolation='nearest')
  for row, label in enumerate(('image', 'mask', 'predicted')):
    panels[row, 0].set_title(label, fontsize=LABEL)
  present = np.unique([k for field in (*masks, *predictions) for k in np.unique(field)])
  keys = [
    Patch(color=colours[k], label=names[k].replace('$', r'\$')) for k in present if k < len(names)
  ]
  fig.legend(handles=keys[:SHOWN], loc='outside right center', fontsize=LABEL)
  entitle(fig, title)
  return png(fig)


def reconstruction(columns: Sequence[np.ndarray], title: str) -> bytes:
  """Images, what is visible of them, and with what is hidden filled in: (N, H, W, C) uint8 each.

  A row for each image, SHOWN at most.
  """
  count = min(len(columns[0]), SHOWN)
  height, width = columns[0].shape[1:3]
  fig = figure(1.9 * len(columns), 0.7 + 1.9 * count * height / width)
  panels = fig.subplots(count, len(columns), squeeze=False)
  for column, (images, heading) in enumerate(zip(columns, ('image', 'visible', 'filled in'))):
    panels[0, column].set_title(heading, fontsize=LABEL)
    for axes, image in zip(panels[:, column], images):
      axes.imshow(displayed(image))
      axes.set_axis_off()
  entitle(fig, title)
  return png(fig)


def edges(image: np.ndarray) -> tuple[float, float, float, float]:
  """Left, right, bottom and top of an image (H, W, C), whose pixels are whole numbers."""
  height, width = image.shape[:2]
  return -0.5, width - 0.5, height - 0.5, -0.5


def beside(image: np.ndarray, field: np.ndarray, label: str, title: str, min_limit: float) -> bytes:
  """An image, and a field (R, C) or (H, W) beside it, red above zero and blue below.

  Args:
    image: (H, W, C) uint8.
    field: shown on one scale on both sides of zero; NaN is left white.
    label: of its values.
    title: of the figure.
    min_limit: the end of the scale at least, so that next to nothing does not look like much.
  """
  limit = max(float(np.nan_to_num(np.abs(field)).max()), min_limit)
  scale: dict[str, Any] = {'cmap': 'RdBu_r', 'vmin': -limit, 'vmax': limit}
  height, width = image.shape[:2]
  fig = figure(6.4, 0.8 + 2.8 * height / width)
  photo, map_axes = fig.subplots(1, 2)
  photo.imshow(displayed(image))
  overlay = map_axes.imshow(field, extent=edges(image), interpolation='nearest', **scale)
  for axes in (photo, map_axes):
    axes.set_axis_off()
  fig.colorbar(overlay, ax=map_axes, shrink=0.8, label=label)
  entitle(fig, title)
  return png(fig)
