"""Charts of the page as SVG, in the colours of its style: curves over steps, bars of calibration.

A curve's points are circles that are not seen, each with its numbers as its title: a mouse shows
them without scripts, and report.js reads them for the pointer, the keyboard and smoothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.text import number, percent
from vit_jax.views.charts import Chart, axis_limits, round_ticks, tick_label
from vit_jax.views.html import escape

WIDTH, HEIGHT = 400, 250  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 60, 388, 24, 212  # of its frame
COLOURS = 8  # of lines, after which they come again
FEW = 60  # points of a curve, up to which each is marked


def gallery(charts: Iterable[Chart]) -> str:
  """Charts side by side, below the slider by which report.js smooths their lines."""
  slider = (
    '<p class="controls" hidden><label>Smoothing <input type="range" id="smoothing" min="0" '
    'max="0.98" step="0.02" value="0"></label></p>'
  )
  return f'{slider}<div class="charts">{"".join(map(as_html, charts))}</div>'


def as_html(chart: Chart) -> str:
  """A chart with its title, its legend in words, and what there is to say of it."""
  lines = {name: line for name, line in chart.lines.items() if len(line[0])}
  title = escape(chart.title)
  if not lines:
    return f'<figure><h3>{title}</h3><p class="faint">Nothing was logged.</p></figure>'
  keys = ''.join(
    f'<span class="key"><i class="s{index % COLOURS}"></i>{escape(name)} '
    f'<b>{chart.value(ys[-1])}</b></span>'
    for index, (name, (_, ys)) in enumerate(lines.items())
  )
  note = f'<p class="faint">{escape(chart.note)}</p>' * bool(chart.note)
  return (
    f'<figure class="chart"><h3>{title}</h3>{drawing(chart, lines)}'
    f'<figcaption>{keys}<output class="reading"></output></figcaption>{note}</figure>'
  )


def drawing(chart: Chart, lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
  """The chart itself: axes in steps and, where their length is known, in epochs, and its lines."""
  xs, ys = (np.concatenate(part) for part in zip(*lines.values()))
  ys = np.concatenate([ys, *(edge for band in chart.bands.values() for edge in band)])
  start, end = axis_limits(xs.min(), xs.max())
  low, high = chart.limits(ys)
  frame = Frame((start, end), (low, high))
  parts = [*frame.rows(chart), *frame.columns(round_ticks(start, end, whole=True), 'step')]
  if chart.epoch:
    epochs = round_ticks(start / chart.epoch, end / chart.epoch)
    parts += frame.columns(epochs, 'epoch', scale=chart.epoch, top=True)
  parts += [frame.mark(step, text) for step, text in chart.marks.items()]
  for index, (name, line) in enumerate(lines.items()):
    parts.append(frame.curve(index, name, line, chart))
  parts.append(f'<line class="rule" y1="{TOP}" y2="{BOTTOM}" visibility="hidden"/>')
  ends = ', '.join(f'{name} ends at {chart.value(ys[-1])}' for name, (_, ys) in lines.items())
  label = f'{chart.title}: {ends}'
  return (
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape(label)}">'
    f'{"".join(parts)}</svg>'
  )


class Frame:
  """Where values are in a chart: x and y from a lowest to a highest one, each."""

  def __init__(self, x: tuple[float, float], y: tuple[float, float]):
    self.start, self.end = x
    self.low, self.high = y

  def x(self, value: Any) -> Any:
    return LEFT + (value - self.start) / (self.end - self.start) * (RIGHT - LEFT)

  def y(self, value: Any) -> Any:
    return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)

  def rows(self, chart: Chart) -> Iterator[str]:
    """The numbers of the y axis, each with a line."""
    for value in round_ticks(self.low, self.high):
      y = self.y(value)
      text = f'{100 * value:g}%' if chart.percent else tick_label(value)
      yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
      yield f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'

  def columns(
    self, values: Sequence[float], name: str, *, scale: float = 1, top: bool = False
  ) -> Iterator[str]:
    """The numbers of an x axis, and its name at the right end; `scale` steps are one of it."""
    y, title = (TOP - 10, TOP - 10) if top else (BOTTOM + 16, BOTTOM + 32)
    for value in values:
      x = self.x(value * scale)
      if x < RIGHT - 45 or not top:
        yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{tick_label(value)}</text>'
    yield f'<text x="{RIGHT}" y="{title}" text-anchor="end">{name}</text>'

  def mark(self, step: float, text: str) -> str:
    """A line at a step, whose title says what began there."""
    x = self.x(step)
    return (
      f'<g class="mark"><line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
      f'<title>{escape(text)}</title></g>'
    )

  def curve(self, index: int, name: str, line: tuple[np.ndarray, np.ndarray], chart: Chart) -> str:
    """A line, and a circle for each point, unless there are none that were measured."""
    xs, ys = self.x(line[0]), self.y(line[1])
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in zip(xs, ys))
    circles = ''
    if name not in chart.exact:
      radius = 2.5 if len(xs) <= FEW else 0
      circles = ''.join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{max(radius, 4)}"><title>'
        f'{escape(f"{name}, {chart.x} {number(at)}: {chart.value(value)}")}</title></circle>'
        + f'<path class="dot" d="M{x:.1f} {y:.1f}h0"/>'
        * bool(radius)
        for x, y, at, value in zip(xs, ys, *line)
      )
    band = self.band(xs, chart.bands[name]) if name in chart.bands else ''
    return f'<g class="line s{index % COLOURS}">{band}<polyline points="{path}"/>{circles}</g>'

  def band(self, xs: np.ndarray, edges: tuple[np.ndarray, np.ndarray]) -> str:
    """The area between a lowest and a highest value at each x, which is where it is drawn."""
    low, high = (self.y(edge) for edge in edges)
    outline = [*zip(xs, low), *zip(xs[::-1], high[::-1])]
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in outline)
    return f'<polygon class="band" points="{path}"/>'


def calibration(bins: Sequence[Mapping[str, Any]]) -> str:
  """A bar for each bin that has images: how often it was right, how sure, and how many it has."""
  frame = Frame((0, 1), (0, 1))
  chart = Chart('Calibration', {}, percent=True)
  parts = [*frame.rows(chart)]
  for share in (0, 0.25, 0.5, 0.75, 1):
    parts.append(
      f'<text x="{frame.x(share):.1f}" y="{BOTTOM + 16}" text-anchor="middle">{share:.0%}</text>'
    )
  parts.append(f'<text x="{RIGHT}" y="{BOTTOM + 32}" text-anchor="end">confidence</text>')
  for row in bins:
    start, end = frame.x(row['from']) + 1, frame.x(row['to']) - 1
    y, sure = frame.y(row['accuracy']), frame.y(row['confidence'])
    text = (
      f'{percent(row["from"], 0)} to {percent(row["to"], 0)} sure: {row["count"]:,} images, '
      f'right {percent(row["accuracy"], 1)}, sure {percent(row["confidence"], 1)} on average'
    )
    parts.append(
      f'<g class="bar"><rect x="{start:.1f}" width="{end - start:.1f}" y="{y:.1f}" '
      f'height="{BOTTOM - y:.1f}"/><line x1="{start:.1f}" x2="{end:.1f}" y1="{sure:.1f}" '
      f'y2="{sure:.1f}"/><text x="{(start + end) / 2:.1f}" y="{min(y, sure) - 4:.1f}" '
      f'text-anchor="middle">{tick_label(row["count"])}</text><title>{escape(text)}</title></g>'
    )
  return (
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="How often the model is right, by '
    f'how sure it is">{"".join(parts)}</svg>'
  )
