"""Charts of lines as SVG, and how numbers are written on pages."""

import dataclasses
import html
import math
from collections.abc import Callable

import numpy as np

from vit_jax.text import number, si
from vit_jax.text import percent as percent_of

Lines = dict[str, tuple[np.ndarray, np.ndarray]]  # by name: where, and the value there


def text(value: object) -> str:
  """Anything as text that HTML takes as text."""
  return html.escape(str(value))


def drawn(title: str, lines: Lines, *, percent: bool = False, x: str = 'step') -> str:
  """Lines over a common axis as SVG; each point says its numbers when it is pointed at."""
  axes = Axes.of(lines)
  shown = percent_of if percent else number
  parts = [axes.grid(shown, x)]
  for index, (name, (xs, ys)) in enumerate(lines.items()):
    points = [axes.place(a, b) for a, b in zip(xs, ys)]
    path = ' '.join(f'{a:.1f},{b:.1f}' for a, b in points)
    parts.append(f'<polyline class="s{index}" points="{path}" style="fill:none"/>')
    few = len(points) <= 60
    parts += [
      f'<circle class="s{index}" cx="{a:.1f}" cy="{b:.1f}" r="{2.5 if few else 1.2}">'
      f'<title>{text(name)}, {x} {number(at)}: {shown(value)}</title></circle>'
      for (a, b), at, value in zip(points, xs, ys)
    ]
  ends = [f' {shown(ys[-1])}' * (x == 'step') for _, ys in lines.values()]
  keys = ''.join(
    f'<span class="key"><i class="s{index}"></i>{text(name)}{end}</span>'
    for index, (name, end) in enumerate(zip(lines, ends))
  )
  svg = f'<svg viewBox="0 0 {Axes.WIDTH} {Axes.HEIGHT}" role="img" aria-label="{text(title)}">'
  return (
    f'<figure><h3>{text(title)}</h3>{svg}{"".join(parts)}</svg>'
    f'<figcaption>{keys}</figcaption></figure>'
  )


@dataclasses.dataclass(frozen=True)
class Axes:
  """From values to a place in the picture of a chart.

  Fields:
    left, right, low, high: values at its edges.
  """

  WIDTH, HEIGHT = 400, 250
  EDGES = (64, 14, 10, 44)  # left, right, top, bottom, for the numbers and the name of x

  left: float
  right: float
  low: float
  high: float

  @classmethod
  def of(cls, lines: Lines) -> 'Axes':
    """Those that hold all lines between round values, and 0 unless that would flatten them."""
    xs, ys = (np.concatenate([line[axis] for line in lines.values()]) for axis in (0, 1))
    low, high = float(ys.min()), float(ys.max())
    if 0 < low < 0.6 * high:
      low = 0.0
    if low == high:
      low, high = low - (abs(low) or 1), high + (abs(high) or 1)
    step = spacing(low, high)
    low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    left, right = float(xs.min()), float(xs.max())
    return cls(left, right if right > left else left + 1, low, high)

  def place(self, x: float, y: float) -> tuple[float, float]:
    left, right, top, bottom = self.EDGES
    across = (x - self.left) / (self.right - self.left)
    up = (y - self.low) / (self.high - self.low)
    width, height = self.WIDTH - left - right, self.HEIGHT - top - bottom
    return left + across * width, top + (1 - up) * height

  def grid(self, shown: Callable[[float], str], name: str) -> str:
    """Lines and numbers at round values, and the name of x under them."""
    middle = (self.EDGES[0] + self.WIDTH - self.EDGES[1]) / 2
    parts = [f'<text x="{middle}" y="{self.HEIGHT - 6}" text-anchor="middle">{text(name)}</text>']
    for y in ticks(self.low, self.high):
      a, b = self.place(self.left, y)
      parts.append(f'<line class="grid" x1="{a}" x2="{self.WIDTH}" y1="{b:.1f}" y2="{b:.1f}"/>')
      parts.append(f'<text x="{a - 8}" y="{b + 5:.1f}" text-anchor="end">{brief(y, shown)}</text>')
    for x in ticks(self.left, self.right):
      a, _ = self.place(x, self.low)
      parts.append(
        f'<text x="{a:.1f}" y="{self.HEIGHT - 26}" text-anchor="middle">{brief(x, number)}</text>'
      )
    return ''.join(parts)


def spacing(low: float, high: float) -> float:
  """About a quarter of the way between two values: 1, 2, 2.5 or 5 times a power of ten."""
  rough = (high - low) / 4
  power = 10.0 ** math.floor(math.log10(rough))
  return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)


def ticks(low: float, high: float) -> list[float]:
  """Round values, about four, between two: multiples of their `spacing`."""
  step = spacing(low, high)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [float(f'{index * step:.10g}') for index in range(first, last + 1)]


def brief(value: float, shown: Callable[[float], str]) -> str:
  """A number beside an axis."""
  if shown is percent_of:
    return f'{100 * value:g}%'
  if abs(value) >= 10_000:
    return si(value).replace(' ', '')
  return f'{value:g}'
