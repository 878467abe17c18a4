"""Charts of a run: what they show, and their drawing by Matplotlib for the picture.

K classes.
"""

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.text import number, percent, si
from vit_jax.views import pictures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

COLOURS = ('#0b57d0', '#b35c00', '#18794e')  # of lines; style.css has the same
INK, GRID = '#5b6470', '#d5dae1'  # of text and grid
POINTS = 600  # of a curve at most
STYLES = ('-', '--', ':')
FEW = 60  # points of a line, up to which each is marked
TICKS = 5  # intervals between the numbers of an axis, at most
ROUND = (1, 2, 2.5, 5, 10)  # those intervals, times a power of ten
CELLS = 1000  # of a side of the confusion matrix's picture, at most
NAMED = 12  # classes, up to which the picture names them


@dataclasses.dataclass(frozen=True)
class Chart:
  """Lines over a common axis.

  Fields:
    title: of the chart.
    lines: (x, y) by name, in words; three at most, of a page of several runs eight.
    bands: by the name of a line, the lowest and highest value at each of its points.
    percent: whether values are fractions, which are shown in percent.
    x, y: names of the axes.
    epoch: steps of an epoch; 0 where that is not known.
    exact: names of lines that are a function, and have no points that were measured.
    marks: by step, what began there.
    note: what there is to say of it.
  """

  title: str
  lines: Mapping[str, tuple[np.ndarray, np.ndarray]]
  percent: bool = False
  x: str = 'step'
  y: str = ''
  epoch: float = 0
  exact: tuple[str, ...] = ()
  marks: Mapping[float, str] = dataclasses.field(default_factory=dict)
  note: str = ''
  bands: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)

  def limits(self, values: np.ndarray) -> tuple[float, float]:
    """The ends of the y axis: round values, and 0 unless that flattens the lines."""
    low, high = axis_limits(values.min(), values.max())
    low = 0 if 0 < low < 0.6 * high else low
    step = np.diff(round_ticks(low, high)[:2])[0]
    return float(np.floor(low / step + 1e-9) * step), float(np.ceil(high / step - 1e-9) * step)

  def value(self, value: float) -> str:
    """A value of y as text."""
    return percent(value) if self.percent else number(value)


def plot(axes: 'Axes', chart: Chart, *, size: int) -> None:
  """Draws a chart whose y axis reaches to round values, and to 0 unless that flattens its lines.

  Args:
    axes: to draw on.
    chart: what.
    size: of the letters, in points.
  """
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  label(axes, x=chart.x, y=chart.y, size=size)
  axes.grid(axis='y', color=GRID, linewidth=1)
  lines = {name: line for name, line in chart.lines.items() if len(line[0])}
  for (name, (xs, ys)), colour, style in zip(lines.items(), COLOURS, STYLES):
    marker = '.' if len(xs) <= FEW and name not in chart.exact else None
    axes.plot(xs, ys, style, color=colour, label=name, marker=marker, linewidth=1.8)
  steps = MaxNLocator(TICKS, steps=ROUND, integer=chart.x == 'step')
  axes.xaxis.set_major_locator(steps)
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
  axes.yaxis.set_major_formatter(
    FuncFormatter(lambda value, _: f'{100 * value:g}%' if chart.percent else tick_label(value))
  )
  locator = MaxNLocator(TICKS, steps=ROUND)
  axes.yaxis.set_major_locator(locator)
  if lines and chart.x == 'step':
    axes.set_ylim(*chart.limits(np.concatenate([ys for _, ys in lines.values()])))


def tick_label(value: float) -> str:
  """A number beside an axis."""
  return si(value).replace(' ', '') if abs(value) >= 10_000 else f'{value:.10g}'


def label(axes: 'Axes', *, x: str, y: str, size: int) -> None:
  """Names the axes, and takes the frame away."""
  axes.set_xlabel(x, fontsize=size, color=INK)
  axes.set_ylabel(y, fontsize=size, color=INK)
  axes.tick_params(labelsize=size, colors=INK, length=0)
  axes.spines[:].set_visible(False)


def thinned(
  xs: np.ndarray, ys: np.ndarray, bins: int = POINTS // 4
) -> tuple[np.ndarray, np.ndarray]:
  """A curve in at most `POINTS` points that looks the same: of each bin first, last, min and max.

  A peak of one step stays, as does every corner to within a bin.
  """
  if len(xs) <= 4 * bins:
    return xs, ys
  parts = np.array_split(np.arange(len(xs)), bins)
  chosen = [i for p in parts for i in (p[0], p[np.argmin(ys[p])], p[np.argmax(ys[p])], p[-1])]
  return xs[np.unique(chosen)], ys[np.unique(chosen)]


def simplified(xs: np.ndarray, ys: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
  """A function's curve in as few points as leave it within a tolerance of y at every x.

  It is Douglas and Peucker's: a line from end to end is split where it is furthest from the curve.
  """
  chosen, parts = {0, len(xs) - 1}, [(0, len(xs) - 1)]
  while parts:
    first, last = parts.pop()
    between = slice(first, last + 1)
    line = np.interp(xs[between], xs[[first, last]], ys[[first, last]])
    error = np.abs(ys[between] - line)
    if error.max() > tolerance:
      furthest = first + int(error.argmax())
      chosen.add(furthest)
      parts += [(first, furthest), (furthest, last)]
  index = sorted(chosen)
  return xs[index], ys[index]


def round_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
  """Round numbers from low to high, at most `TICKS` + 1, whole ones if asked."""
  span = (high - low) / TICKS
  power = 10.0 ** math.floor(math.log10(span))
  step = power * next(r for r in ROUND if r * power >= span * (1 - 1e-9))
  if whole:
    step = max(math.ceil(step), 1)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [step * k for k in range(first, last + 1)]


def axis_limits(low: float, high: float) -> tuple[float, float]:
  """Two numbers that differ, as the ends of an axis need."""
  if low < high:
    return float(low), float(high)
  margin = abs(low) / 10 or 1.0
  return float(low - margin), float(high + margin)


def plot_confusion(axes: 'Axes', matrix: np.ndarray, names: Sequence[str], *, size: int) -> None:
  """Draws (K, K) counts, the brighter the larger their fraction of the row."""
  label(axes, x='prediction', y='label', size=size)
  edges = (-0.5, len(matrix) - 0.5, len(matrix) - 0.5, -0.5)
  axes.imshow(np.sqrt(binned(matrix)), vmin=0, vmax=1, extent=edges, cmap='inferno')
  if len(names) <= NAMED:
    short = [textwrap.shorten(name, 12, placeholder='…') for name in names]
    rotation = 90 if max(map(len, short)) > 2 else 0
    axes.set_yticks(range(len(short)), short, parse_math=False)
    axes.set_xticks(range(len(short)), short, parse_math=False, rotation=rotation)


def block_size(count: int) -> int:
  """Classes that are one row and one column of the confusion matrix's picture."""
  return math.ceil(count / CELLS)


def binned(matrix: np.ndarray) -> np.ndarray:
  """(K, K) counts as fractions of their rows, float32, at most `CELLS` a side.

  Above that, neighbouring classes are taken together: predictions are summed, labels averaged.
  """
  size = block_size(len(matrix))
  starts = np.arange(0, len(matrix), size)
  totals = np.maximum(matrix.sum(1, keepdims=True), 1)
  fractions = np.float32(np.add.reduceat(matrix, starts, axis=1) / totals)  # (K, k)
  labels = np.diff(starts, append=len(matrix))[:, None]
  return np.add.reduceat(fractions, starts, axis=0) / labels  # (k, k)


def confusion_png(matrix: np.ndarray, names: Sequence[str]) -> bytes:
  """The confusion matrix by itself, as a PNG file."""
  figure = pictures.figure(7.2, 7.2)
  plot_confusion(figure.subplots(), matrix, names, size=11)
  return pictures.png(figure)


def summary(
  title: str,
  text: str,
  curves: Sequence[Chart],
  calibration: Chart | None,
  confusion: tuple[np.ndarray, Sequence[str]] | None,
) -> 'Figure':
  """The picture of a report.

  Args:
    title: of all.
    text: of the first panel.
    curves: five at most.
    calibration: a chart, if there is one.
    confusion: (K, K) counts and names of classes, if there are any.
  """
  figure = pictures.figure(20, 8.5)
  axes = figure.subplot_mosaic('ABCDH;AEFGH', width_ratios=(1.1, 1, 1, 1, 1.3))
  figure.suptitle(textwrap.fill(title, 100), fontsize=18, parse_math=False)
  axes['A'].axis('off')
  axes['A'].text(0, 1, text, va='top', fontsize=12, parse_math=False)
  for panel, chart in zip('BCDEFG', [*curves[:5], *[None] * (5 - len(curves)), calibration]):
    axes[panel].set_visible(chart is not None)
    if chart is not None:
      axes[panel].set_title(chart.title, fontsize=13)
      plot(axes[panel], chart, size=11)
      if len(axes[panel].lines) > 1:
        axes[panel].legend(fontsize=10)
  axes['H'].set_visible(confusion is not None)
  if confusion is not None:
    axes['H'].set_title('Confusion', fontsize=13)
    plot_confusion(axes['H'], *confusion, size=11)
  return figure
