"""`vit report`: a run as a page and a picture, `report.html` and `report.png` in its folder.

K classes, N images.
"""

import argparse
import dataclasses
import datetime
import heapq
import json
import math
import os
import pathlib
import platform
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import analysis, bundle, chart, doctor, metrics, page, pictures, predict
from vit_jax.chart import number, share, text
from vit_jax.convert import files
from vit_jax.data import pipeline
from vit_jax.evaluate import accuracy, inputs

PAGE, PICTURE, ENVIRONMENT = 'report.html', 'report.png', 'environment.json'
MISTAKES = 12  # that are shown
SMALL = 30  # classes, up to which the confusion matrix is a table
LISTED = 1000  # classes at most in the table of classes
SIDE = 32  # pixels of a tile at least, about
POINTS = 600  # of a curve at most
FAULTS = (ValueError, OSError, jax.errors.JaxRuntimeError)  # of data, files and devices
Say = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Curve:
  """A chart of the page.

  Fields:
    title: of the chart.
    names: of what is drawn, as `metrics.jsonl` has it.
    percent: whether values are shares.
  """

  title: str
  names: tuple[str, ...]
  percent: bool = False


CURVES = (
  Curve('Loss', ('train/loss', 'validation/loss', 'validation/ema_loss')),
  Curve('Accuracy', ('train/accuracy', 'validation/accuracy', 'validation/ema_accuracy'), True),
  Curve('Learning rate', ('train/learning_rate',)),
  Curve('Images a second', ('train/images_per_second',)),
  Curve('Time waiting for data', ('train/data_wait',), True),
)


@dataclasses.dataclass(frozen=True)
class Mistake:
  """An image that was taken for something else.

  Fields:
    name: what the data set calls it.
    image: (H, W, 3) uint8, as the model took it.
    label, guess: names of classes.
    confidence: the probability of the guess.
    attention: (R, C), what the head reads of each patch in the last layer, mean of the heads; None
      for a model without attention.
  """

  name: str
  image: np.ndarray
  label: str
  guess: str
  confidence: float
  attention: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Facts:
  """All that a report tells.

  Fields:
    folder: of the run.
    rows: of `metrics.jsonl`.
    config: as JSON has it.
    environment: of `record`; {} if it is not there.
    run: the model; None while there is none.
    measured: of `accuracy.of_model`; None if nothing was.
    mistakes: the most confident first.
    left_out: why something is not there, in lines.
  """

  folder: pathlib.Path
  rows: list[dict[str, Any]]
  config: dict[str, Any]
  environment: dict[str, Any]
  run: predict.Run | None
  measured: dict[str, Any] | None
  mistakes: list[Mistake]
  left_out: list[str]

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of what was logged under a name."""
    found = [(row['step'], row[name]) for row in self.rows if usable(row.get(name))]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values

  def last(self, name: str) -> float | None:
    """The last value that was logged under a name."""
    _, values = self.curve(name)
    return float(values[-1]) if len(values) else None


def usable(value: Any) -> bool:
  """Whether it is a finite number."""
  return isinstance(value, int | float) and math.isfinite(value)


# What is told


def gather(
  folder: pathlib.Path, *, on: str = '', split: str = '', measure: bool = True, say: Say
) -> Facts:
  """Reads a run, and measures its model.

  Args:
    folder: of the run.
    on, split: another data set or split than the run's test, or without one validation, split.
    measure: whether the model is taken over that split.
    say: takes a line for each image that cannot be read.

  Raises:
    ValueError: if the folder is not a run's.
  """
  config = files.read_object(folder / 'config.json') if (folder / 'config.json').is_file() else {}
  if not isinstance(config.get('data'), dict) or not isinstance(config.get('model'), dict):
    raise ValueError(f'{folder} is not the folder of a run: no config.json of one is there')
  held = folder / ENVIRONMENT
  found = Facts(
    folder=folder,
    rows=metrics.read_rows(folder / 'metrics.jsonl'),
    config=config,
    environment=files.read_object(held) if held.is_file() else {},
    run=None,
    measured=None,
    mistakes=[],
    left_out=[],
  )
  if not bundle.exists(folder / 'model'):
    return with_fault(found, 'the training is not finished: there is no model yet')
  found = dataclasses.replace(found, run=predict.load(folder))
  if not measure:
    return with_fault(found, 'the model was not measured here; vit report does it on one host')
  if not (on or split or config['data'].get('test') or config['data'].get('validation')):
    return with_fault(found, 'the run kept no split to measure its model on; see --split')
  try:
    return measured(found, inputs.opened(folder, on=on, split=split), say)
  except FAULTS as error:
    return with_fault(found, f'the model could not be measured: {files.one_line(error)}')


def with_fault(found: Facts, line: str) -> Facts:
  return dataclasses.replace(found, left_out=[*found.left_out, line])


def measured(found: Facts, data: inputs.Split, say: Say) -> Facts:
  """The same with every measure on a split, and the most confident mistakes there."""
  assert found.run is not None
  worst: list[tuple[float, int, int, int]] = []  # a heap of (confidence, -place, label, guess)

  def each(places: np.ndarray, rows: dict[str, np.ndarray]) -> None:
    for at in np.flatnonzero((rows['label'] >= 0) & (rows['right'] == 0)):
      label, guess = int(rows['label'][at]), int(rows['guess'][at])
      heapq.heappush(worst, (float(rows['confidence'][at]), -int(places[at]), label, guess))
      if len(worst) > MISTAKES:
        heapq.heappop(worst)

  values = accuracy.of_model(found.run, data, say=say, each=each)
  names = [row['name'] for row in values['classes']]
  mistakes = []
  for confidence, place, label, guess in sorted(worst, reverse=True):
    image = found.run.transform(data.source[-place]['image'], np.random.default_rng(0))
    name, attention = data.source.describe(-place), attended(found.run, image)
    mistakes.append(Mistake(name, image, names[label], names[guess], confidence, attention))
  return dataclasses.replace(found, measured=values, mistakes=mistakes)


def attended(run: predict.Run, image: np.ndarray) -> np.ndarray | None:
  """(R, C): what the head reads of each patch in the last layer, mean of the heads."""
  try:
    summary = analysis.attention_summary(run, analysis.trace(run, image))
  except ValueError:
    return None  # of a model without attention
  return np.asarray(summary['maps'][-1].mean(axis=0))


def record(folder: pathlib.Path) -> None:
  """Writes `ENVIRONMENT`: with what the run is carried out, and the command."""
  devices = jax.devices()
  versions = {name: doctor.installed(name) for name in ('vit_jax', *doctor.PACKAGES)}
  found = {
    'command': command(sys.argv),
    'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'devices': f'{len(devices)} {devices[0].device_kind}',
    'processes': jax.process_count(),
    'packages': {name: version for name, version in versions.items() if version},
  }
  with files.replacing(folder / ENVIRONMENT) as file:
    file.write(json.dumps(found, indent=1).encode())


def command(argv: Sequence[str]) -> str:
  """The line of a shell that started a process."""
  modules = {'main.py': 'python -m vit_jax.main', '__main__.py': 'python -m vit_jax'}
  script, *rest = argv
  name = os.path.basename(script)
  known = os.path.basename(os.path.dirname(os.path.abspath(script))) == 'vit_jax'
  start = modules.get(name, name) if known else name
  return ' '.join([start, *map(shlex.quote, rest)])


def seconds_of_steps(found: Facts) -> float:
  """How long the training steps took, evaluations left out, by the rates that were logged."""
  steps, rates = found.curve('train/images_per_second')
  batch = found.config.get('batch_size', 0)
  taken = np.diff(steps, prepend=0) * batch / np.maximum(rates, 1e-9)
  return float(taken.sum())


# The page


def duration(seconds: float) -> str:
  """5025 -> '1 h 23 min'."""
  minutes, hours = int(seconds // 60 % 60), int(seconds // 3600)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {int(seconds % 60)} s' if minutes else f'{seconds:.1f} s'


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Cells are text; the first column names the row."""
  head = ''.join(f'<th scope="col">{text(title)}</th>' for title in titles)
  body = ''.join(
    f'<tr><th scope="row">{text(first)}</th>'
    + ''.join(f'<td>{text(c)}</td>' for c in rest)
    + '</tr>'
    for first, *rest in rows
  )
  return (
    f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def card(value: str, told: str) -> str:
  return f'<div class="card"><b>{text(value)}</b>{text(told)}</div>'


def headline(found: Facts) -> str:
  """The numbers to quote, each with what it was measured on."""
  return f'<div class="cards">{"".join(card(*line) for line in headlines(found))}</div>'


def headlines(found: Facts) -> list[tuple[str, str]]:
  """(number, what it is) of the page and the picture."""
  told = []
  if values := found.measured:
    on = f'on {values["count"]:,} images, split {values["split"]} of {values["source"]}'
    top = next(name for name in values if name.startswith('top'))
    told += [
      (share(values['accuracy']), f'accuracy {on}'),
      (share(values[top]), f'top-{top[3:]} accuracy {on}'),
      (number(values['loss']), f'loss {on}'),
      (share(values['calibration_error']), f'calibration error {on}'),
    ]
  for use in ('test', 'validation'):
    last, split = found.last(f'{use}/accuracy'), found.config['data'].get(use)
    if last is None or (values and (values['split'], use) == (split, 'test')):
      continue
    count, step = found.last(f'{use}/count'), found.curve(f'{use}/accuracy')[0][-1]
    on = f'on {count or 0:,.0f} images, split {split} of {found.config["data"].get("source")}'
    told.append((share(last), f'accuracy at step {step:,.0f}, during training, {on}'))
  return told + [(value, what) for what, value in training(found)]


def training(found: Facts) -> list[tuple[str, str]]:
  """(what, number) of the training itself."""
  told = []
  if found.run is not None:
    count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(found.run.params))
    told.append((f'parameters of {found.run.name}', f'{count:,}'))
  if found.rows:
    step = max(row['step'] for row in found.rows)
    told.append(('steps', f'{step:,}'))
  if len(found.curve('train/images_per_second')[0]):
    told.append(('in training steps, evaluation left out', duration(seconds_of_steps(found))))
  return told


def curves(found: Facts) -> str:
  """What was logged during training."""
  return f'<div class="charts">{"".join(curve_of(found, curve) for curve in CURVES)}</div>'


def curve_of(found: Facts, curve: Curve) -> str:
  lines = {name: thinned(*found.curve(name)) for name in curve.names}
  lines = {name: line for name, line in lines.items() if len(line[0])}
  if not lines:
    return f'<figure><h3>{text(curve.title)}</h3><p class="faint">Nothing was logged.</p></figure>'
  return chart.drawn(curve.title, lines, percent=curve.percent)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """At most `POINTS` points of a curve, the first and the last among them."""
  chosen = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int))
  return steps[chosen], values[chosen]


def confusion(found: Facts) -> str:
  """How often each class was taken for each."""
  values = found.measured or {}
  if not values.get('confusion'):
    return '<p>Images have several labels, or there are too many classes for a matrix.</p>'
  matrix = np.array(values['confusion'])  # (K, K)
  names = [row['name'] for row in values['classes']]
  pairs = table(
    ('label', 'taken for', 'times'),
    [(pair['label'], pair['guess'], pair['count']) for pair in values['confused']],
  )
  shown = confusion_table(matrix, names) if len(names) <= SMALL else confusion_picture(matrix)
  on = f'{values["count"]:,} images, split {values["split"]} of {values["source"]}'
  return f'<p>{text(on)}. A row for each label, a column for each guess.</p>{shown}{pairs}'


def confusion_table(matrix: np.ndarray, names: Sequence[str]) -> str:
  """(K, K) counts with a shade for their share of the row."""
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  head = ''.join(f'<th scope="col">{text(name)}</th>' for name in names)
  rows = []
  for label, name in enumerate(names):
    cells = ''.join(
      f'<td{" class=miss" * (guess != label and count > 0)} '
      f'style="--share:{shares[label, guess]:.3f}">{count}</td>'
      for guess, count in enumerate(matrix[label].tolist())
    )
    rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
  return (
    '<div class="wide"><table class="confusion"><thead><tr><td></td>'
    f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
  )


def confusion_picture(matrix: np.ndarray) -> str:
  """(K, K) counts as a pixel each, the brighter the larger their share of the row."""
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  return (
    f'<img class="pixels" style="width:36rem" src="{page.heat(np.sqrt(shares), strength=1)}" '
    'alt="confusion matrix, the brighter the larger the share of the row">'
  )


def classes(found: Facts) -> str:
  """Precision and recall of every class, the worst first."""
  assert found.measured is not None
  rows = sorted(
    found.measured['classes'], key=lambda row: 2 if row['recall'] is None else row['recall']
  )
  shown = table(
    ('class', 'images', 'precision', 'recall'),
    [
      (row['name'], f'{row["count"]:,}', share(row['precision']), share(row['recall']))
      for row in rows[:LISTED]
    ],
  )
  if len(rows) > LISTED:
    shown += f'<p>… and {len(rows) - LISTED:,} classes with a higher recall.</p>'
  if len(rows) <= SMALL:
    return shown
  return f'<details><summary>{min(len(rows), LISTED):,} classes</summary>{shown}</details>'


def mistakes(found: Facts) -> str:
  """Images that the model was surest of, and wrong."""
  if not found.mistakes:
    return '<p>There is none: every image was recognised.</p>'
  told = '<p>The surest first.'
  if found.mistakes[0].attention is not None:
    told += (
      ' Beside each image: how much of each patch the tokens that the head reads take up in the '
      'last layer, mean of the heads.'
    )
  return f'{told}</p><div class="gallery">{"".join(map(mistaken, found.mistakes))}</div>'


def mistaken(mistake: Mistake) -> str:
  small = ' class="pixels"' if mistake.image.shape[1] < 200 else ''
  image = f'<img{small} src="{page.picture(mistake.image)}" alt="{text(mistake.name)}">'
  shown = image
  if mistake.attention is not None:
    over = f'<img src="{page.heat(mistake.attention)}" alt="its attention">'
    shown += f'<div class="over">{image.replace(text(mistake.name), "")}{over}</div>'
  return (
    f'<figure><div class="pair">{shown}</div><figcaption><b>{text(mistake.label)}</b> taken for '
    f'<b>{text(mistake.guess)}</b> at {share(mistake.confidence)}<br>'
    f'<span class="faint">{text(mistake.name)}</span></figcaption></figure>'
  )


def calibration(found: Facts) -> str:
  """Accuracy by confidence (Guo et al., arXiv 1706.04599)."""
  assert found.measured is not None
  rows = [row for row in found.measured['calibration'] if row['count']]
  confidence, right = (np.array([row[key] for row in rows]) for key in ('confidence', 'accuracy'))
  diagonal = np.array([0.0, 1.0])
  lines = {'accuracy': (confidence, right), 'calibrated': (diagonal, diagonal)}
  drawn = chart.drawn('Accuracy by confidence', lines, percent=True, x='confidence')
  told = table(
    ('confidence', 'images', 'mean confidence', 'accuracy'),
    [
      (
        f'{share(row["from"])} to {share(row["to"])}',
        f'{row["count"]:,}',
        share(row['confidence']),
        share(row['accuracy']),
      )
      for row in rows
    ],
  )
  error = share(found.measured['calibration_error'])
  return (
    f'<p>Expected calibration error {error}, of the likeliest class, in {accuracy.BINS} bins.</p>'
    f'<div class="charts">{drawn}</div><details><summary>the bins</summary>{told}</details>'
  )


def inside(found: Facts) -> str:
  """Filters and positions of the model."""
  run = found.run
  assert run is not None
  filters = analysis.filters(run.model, run.params)
  explained = share(float(filters.variance.sum()))
  parts = [
    pictured(
      filter_tiles(filters.components),
      f'The first {len(filters.components)} principal components of {filters.count} filters of '
      f'{filters.of}: {explained} of their variance.',
    )
  ]
  try:
    positions = analysis.position_similarity(run.model, run.params, run.preprocess.size)
  except ValueError as error:
    parts.append(f'<p>{text(str(error).capitalize())}.</p>')
  else:
    patches = positions.patches
    told = (
      'Each tile: how alike the position of its patch is to those of all patches; cosines of '
      f'{positions.of}, {patches.min():.2f} to {patches.max():.2f}, the brighter the higher.'
    )
    parts.append(pictured(position_tiles(patches), told))
  return f'<div class="charts inside">{"".join(parts)}</div>'


def pictured(tiles: np.ndarray, told: str) -> str:
  """A picture of `tiled` with what it shows."""
  image = f'<img src="{tiled(tiles)}" alt="{text(told)}">'
  return f'<figure>{image}<figcaption>{text(told)}</figcaption></figure>'


def filter_tiles(components: np.ndarray) -> np.ndarray:
  """(n, h, w, 3) as (rows, columns, h, w, 3) in [0, 1], each by itself; what is missing is NaN."""
  low = components.min(axis=(1, 2, 3), keepdims=True)
  high = components.max(axis=(1, 2, 3), keepdims=True)
  scaled = (components - low) / np.maximum(high - low, 1e-30)
  rows = -(-len(scaled) // pictures.ACROSS)
  missing = np.full((rows * pictures.ACROSS - len(scaled), *scaled.shape[1:]), np.nan)
  whole = np.concatenate([scaled, missing])
  return whole.reshape(rows, pictures.ACROSS, *scaled.shape[1:])


def position_tiles(patches: np.ndarray) -> np.ndarray:
  """(R, C, R, C) cosines as greys (R, C, R, C, 3) in [0, 1], together from least to greatest."""
  low, high = patches.min(), patches.max()
  grey = (patches - low) / max(high - low, 1e-30)
  return np.repeat(grey[..., None], 3, axis=-1)


def tiled(tiles: np.ndarray) -> str:
  """(rows, columns, h, w, 3) in [0, 1] as the address of a picture; NaN is clear."""
  times = max(SIDE // tiles.shape[2], 1)
  pixels = pictures.tiled(tiles.repeat(times, axis=2).repeat(times, axis=3), gap=2)
  opaque = np.isfinite(pixels[..., :1])
  whole = np.concatenate([np.nan_to_num(pixels), opaque], axis=-1)
  return page.picture(np.rint(255 * whole).astype(np.uint8))


def settings(found: Facts) -> str:
  """The config, whole."""
  told = text(json.dumps(found.config, indent=1))
  return f'<details><summary>config.json</summary><pre>{told}</pre></details>'


def environment(found: Facts) -> str:
  """The command, and with what it was carried out."""
  if not found.environment:
    return '<p>Not recorded: that is done when a training finishes.</p>'
  told = {k: v for k, v in found.environment.items() if k not in ('command', 'packages')}
  packages = found.environment.get('packages', {})
  return f'<pre id="command">{text(found.environment.get("command", ""))}</pre>' + table(
    ('', ''), [*told.items(), *packages.items()]
  )


def as_html(found: Facts) -> str:
  """The page: one file, without scripts, that asks for no other."""
  sections = {'Results': headline(found), 'Curves': curves(found)}
  if found.measured is not None:
    sections |= {
      'Confusion': confusion(found),
      'Classes': classes(found),
      'Mistakes': mistakes(found),
      'Calibration': calibration(found),
    }
  if found.run is not None:
    sections['Filters and positions'] = inside(found)
  sections |= {'Command and environment': environment(found), 'Config': settings(found)}
  ids = {title: title.lower().replace(' ', '-') for title in sections}
  title = f'{name_of(found)} on {found.config["data"].get("source")}'
  return page.filled(
    'report.html',
    title=text(title),
    subtitle=' '.join(text(f'{line.capitalize()}.') for line in found.left_out),
    style=page.part('style.css'),
    nav=''.join(f'<a href="#{ids[title]}">{title}</a>' for title in sections),
    body='\n'.join(
      f'<section aria-labelledby="{ids[title]}"><h2 id="{ids[title]}">{title}</h2>{body}</section>'
      for title, body in sections.items()
    ),
  )


def name_of(found: Facts) -> str:
  """The model's variant, as the config has it, or of what it started from."""
  return found.config['model'].get('name') or (found.run.name if found.run else 'a model')


# The picture


def as_png(found: Facts) -> bytes:
  """The summary: headline numbers, curves and calibration."""
  figure = pictures.figure(12, 7)
  axes = figure.subplots(2, 4)
  title = f'{name_of(found)} on {found.config["data"].get("source")}'
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)  # a font without letters of a name
    figure.suptitle(title, parse_math=False)
    axes[0, 0].axis('off')
    lines = [f'{value}\n{textwrap.fill(told, 44)}' for value, told in headlines(found)]
    axes[0, 0].text(0, 1, '\n\n'.join(lines), va='top', fontsize=7, parse_math=False)
    for axis, curve in zip(axes.flat[1:], CURVES):
      plot(axis, found, curve)
    plot_calibration(axes[1, 2], found.measured)
    plot_confusion(axes[1, 3], found.measured)
    return pictures.png(figure)


def plot(axis: Any, found: Facts, curve: Curve) -> None:
  """A curve of the page."""
  axis.set_title(curve.title, fontsize=9)
  axis.tick_params(labelsize=7)
  axis.grid(alpha=0.3)
  for name in curve.names:
    steps, values = thinned(*found.curve(name))
    if len(steps):
      axis.plot(steps, values, label=name, marker='.' if len(steps) < 20 else None)
  if axis.lines:
    axis.legend(fontsize=6)


def plot_calibration(axis: Any, values: dict[str, Any] | None) -> None:
  axis.set_title('Accuracy by confidence', fontsize=9)
  axis.tick_params(labelsize=7)
  axis.plot([0, 1], [0, 1], color='grey', linewidth=1)
  rows = [row for row in values['calibration'] if row['count']] if values else []
  axis.plot([row['confidence'] for row in rows], [row['accuracy'] for row in rows], marker='o')


def plot_confusion(axis: Any, values: dict[str, Any] | None) -> None:
  axis.set_title('Label (down) by guess (across)', fontsize=9)
  axis.tick_params(labelsize=7)
  matrix = np.array(values['confusion']) if values and values['confusion'] else np.zeros((1, 1))
  axis.imshow(np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1)), vmin=0, vmax=1)


# The commands


def write(
  folder: str | os.PathLike[str],
  *,
  on: str = '',
  split: str = '',
  measure: bool = True,
  say: Say = pipeline.tell,
) -> Facts:
  """Writes `report.html` and `report.png` into a run's folder, each whole or not at all.

  Args:
    folder, on, split, measure, say: see `gather`.

  Raises:
    ValueError, OSError: if the folder is not a run's, or cannot be written to.
  """
  found = gather(pathlib.Path(folder), on=on, split=split, measure=measure, say=say)
  contents = {PAGE: as_html(found).encode(), PICTURE: as_png(found)}
  for name, content in contents.items():
    with files.replacing(found.folder / name) as file:
      file.write(content)
  return found


def after_training(folder: str | os.PathLike[str], say: Say) -> None:
  """Records the environment, and writes the report; what goes wrong is told in a line.

  With several processes the model is not measured again, which would take them all.
  """
  if jax.process_index() > 0:
    return
  try:
    record(pathlib.Path(folder))
    found = write(folder, measure=jax.process_count() == 1, say=say)
  except Exception as error:  # a run that is done must not fail for its report
    say(f'no report: {files.one_line(error)}')
    return
  for line in found.left_out:
    say(f'report: {line}')
  say(f'the report is {pathlib.Path(folder) / PAGE}')


def main(argv: Sequence[str]) -> int:
  """`vit report`: 0; 2 for bad input; 3 if the report lacks something."""
  given = parser().parse_args(argv)
  try:
    found = write(given.run, on=given.on, split=given.split)
  except FAULTS as error:
    print(f'vit report: {files.one_line(error)}', file=sys.stderr)
    return 2
  for line in found.left_out:
    print(f'vit report: {line}', file=sys.stderr)
  print(found.folder / PAGE, found.folder / PICTURE, sep='\n')
  return 3 if found.left_out else 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit report',
    description='Writes report.html and report.png into the folder of a run.',
    epilog='Exit code: 0; 2 for bad input; 3 if the report lacks something, which is told.',
  )
  flags.add_argument('run', help="a run's folder")
  flags.add_argument('--on', default='', help="a data set to measure on; default: the run's own")
  flags.add_argument('--split', default='', help='default: test, or without one validation')
  return flags
