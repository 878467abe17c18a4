"""Charts of a run, each drawn once by Matplotlib: into the page as SVG, into the picture as PNG.

K classes.
"""

import dataclasses
import html
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.text import number, percent, si
from vit_jax.views import pictures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

WIDTH, HEIGHT = 400, 250  # of a chart in the page
# Colours of lines, text and grid, and the variables of style.css that they are in the page
COLOURS = ('#0b57d0', '#b35c00', '#18794e')
INK, GRID = '#5b6470', '#d5dae1'
VARIABLES = dict(zip((*COLOURS, INK, GRID), ('accent', 'second', 'good', 'faint', 'line')))
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
    lines: (x, y) by name, three at most.
    percent: whether values are fractions, which are shown in percent.
    x, y: names of the axes.
  """

  title: str
  lines: Mapping[str, tuple[np.ndarray, np.ndarray]]
  percent: bool = False
  x: str = 'step'
  y: str = ''

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
    marker = '.' if len(xs) <= FEW else None
    axes.plot(xs, ys, style, color=colour, label=name, marker=marker, linewidth=1.8)
  steps = MaxNLocator(TICKS, steps=ROUND, integer=chart.x == 'step')
  axes.xaxis.set_major_locator(steps)
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
  axes.yaxis.set_major_formatter(
    FuncFormatter(lambda value, _: f'{100 * value:g}%' if chart.percent else tick_label(value))
  )
  locator = MaxNLocator(TICKS, steps=ROUND)
  axes.yaxis.set_major_locator(locator)
  low, high = axes.dataLim.intervaly
  if low < high:
    ticks = locator.tick_values(0 if 0 < low < 0.6 * high else low, high)
    axes.set_ylim(ticks[0], ticks[-1])


def tick_label(value: float) -> str:
  """A number beside an axis."""
  return si(value).replace(' ', '') if abs(value) >= 10_000 else f'{value:.10g}'


def label(axes: 'Axes', *, x: str, y: str, size: int) -> None:
  """Names the axes, and takes the frame away."""
  axes.set_xlabel(x, fontsize=size, color=INK)
  axes.set_ylabel(y, fontsize=size, color=INK)
  axes.tick_params(labelsize=size, colors=INK, length=0)
  axes.spines[:].set_visible(False)


def as_html(chart: Chart) -> str:
  """A chart as SVG; each point says its numbers when it is pointed at."""
  lines = {name: line for name, line in chart.lines.items() if len(line[0])}
  title = html.escape(chart.title)
  if not lines:
    return f'<figure><h3>{title}</h3><p class="faint">Nothing was logged.</p></figure>'
  keys = ''.join(
    f'<span class="key"><i class="s{index}"></i>{html.escape(name)}'
    f'{f" {chart.value(ys[-1])}" if chart.x == "step" else ""}</span>'
    for index, (name, (_, ys)) in enumerate(lines.items())
  )
  svg = as_svg(dataclasses.replace(chart, lines=lines))
  return f'<figure><h3>{title}</h3>{svg}<figcaption>{keys}</figcaption></figure>'


def as_svg(chart: Chart) -> str:
  """The drawing alone, in the colours of the page's style."""
  import matplotlib

  # Text stays text, and equal charts have equal names of their parts
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': chart.title}):
    figure = pictures.figure(WIDTH / 72, HEIGHT / 72)
    figure.set_dpi(72)  # Matplotlib's unit in SVG
    axes = figure.subplots()
    plot(axes, chart, size=13)
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
  body = file.getvalue().partition('<svg')[2].partition('>')[2]
  body = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->', '', body, flags=re.S)
  body = re.sub(r' font-family: [^;]*;|<g id="[^"]*"/>|(?<=<g) id="[^"]*"', '', body)
  body = re.sub(r'\s*\n\s*', ' ', body)
  for colour, variable in VARIABLES.items():
    body = body.replace(colour, f'var(--{variable})')
  head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(chart.title)}">'
  return head + body.replace('</svg>', ''.join(points(axes, chart)) + '</svg>').strip()


def points(axes: 'Axes', chart: Chart) -> list[str]:
  """Circles that are not seen, with the numbers of each point of a chart as their titles."""
  circles = []
  for name, line in chart.lines.items():
    places = axes.transData.transform(np.stack(line, axis=1))
    for (x, y), at, value in zip(places, *line):
      text = html.escape(f'{name}, {chart.x} {number(at)}: {chart.value(value)}')
      circles.append(
        f'<circle cx="{x:.1f}" cy="{HEIGHT - y:.1f}" r="4"><title>{text}</title></circle>'
      )
  return circles


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
