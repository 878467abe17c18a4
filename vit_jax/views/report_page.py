"""The page and the picture of a report: `report.html` and `report.png`.

K classes, N images.
"""

import dataclasses
import json
import math
import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import analysis, bundle, metrics, models
from vit_jax.evaluate import accuracy, results
from vit_jax.text import number, percent
from vit_jax.views import attention as page
from vit_jax.views import chart, pictures
from vit_jax.views.card import dimensions
from vit_jax.views.chart import text

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

SMALL = 30  # classes, up to which the confusion matrix is a table
LISTED = 1000  # classes at most in the table of classes
CELLS = 1000  # of a side of the confusion matrix's picture, at most
PHOTO = 64  # pixels of a side, from which on a photo is embedded as a JPEG
QUALITY = 90  # of it
POINTS = 600  # of a curve at most
LARGEST = 1e100  # number that is drawn
SIZES = ('patch', 'width', 'depth')  # that a config may replace
NUMBERS = 8  # of the picture's first panel
NAMED = 12  # classes, up to which the picture names them


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


RATES = (
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
    attention: (R, C), of `last_attention`; None for a model without attention.
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
    environment: of `workdir.record`; {} if it is not there.
    model: with its parameters on the host; None while there is none.
    ranks: of the run's task: the numbers that its evaluations can be ranked by.
    step: whose parameters became the model, or would now; None if nothing tells it.
    measured: an evaluation of the model, see `accuracy.evaluate_model`: a task's numbers, whatever
      their names, and details of which a task may lack any; None if there is none.
    mistakes: the most confident first.
    left_out: why something is not there, in lines.
  """

  folder: pathlib.Path
  rows: list[dict[str, Any]]
  config: dict[str, Any]
  environment: dict[str, Any]
  ranks: Mapping[str, int]
  step: int | None
  model: bundle.Bundle | None
  measured: dict[str, Any] | None
  mistakes: list[Mistake]
  left_out: list[str]

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of what was logged under a name."""
    points = [(row['step'], row[name]) for row in self.rows if usable(row.get(name))]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values

  def curves(self) -> list[Curve]:
    """The charts of a run: the loss, what else its task ranks by, and the rates."""
    return [*map(curve_of, dict.fromkeys(('loss', *self.ranks))), *RATES]


def curve_of(name: str) -> Curve:
  """Of a task's number, in training and in its evaluations."""
  title = results.display_name(name)
  names = (f'train/{name}', f'validation/{name}', f'validation/ema_{name}')
  return Curve(f'{title[:1].upper()}{title[1:]}', names, results.is_fraction(name))


def usable(value: Any) -> bool:
  """Whether it is a finite number, and not so large that a chart's axis would not be."""
  return type(value) in (int, float) and abs(value) < LARGEST


def seconds_of_steps(facts: Facts) -> float:
  """How long the training steps took, evaluations left out, by the rates that were logged."""
  steps, rates = facts.curve('train/images_per_second')
  batch = facts.config.get('batch_size')
  batch = batch if type(batch) is int else 0
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
    + ''.join(f'<td>{text(c)}</td>' for c in cells)
    + '</tr>'
    for first, *cells in rows
  )
  return (
    f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def card(value: str, caption: str) -> str:
  return f'<div class="card"><b>{text(value)}</b>{text(caption)}</div>'


def headline_cards(facts: Facts) -> str:
  """The numbers to quote, each with what it was measured on."""
  return f'<div class="cards">{"".join(card(*line) for line in headlines(facts))}</div>'


def headlines(facts: Facts) -> list[tuple[str, str]]:
  """(number, what it is) of the page and the picture: of the model, then of its training."""
  pairs = []
  data = facts.config['data']
  if values := facts.measured:
    on = f'on {measured_on(values)}'
    pairs += [
      (measure_text(name, value), f'{results.display_name(name)} {on}')
      for name, value in results.numbers(values).items()
    ]
  for use, logged in metrics.model_results(facts.rows, facts.step).items():
    where = (data.get('source'), data.get(use))
    if values and where == (values['source'], values['split']):
      continue  # the same parameters on the same images
    on = f'on {logged.get("count") or 0:,.0f} images, split {where[1]} of {where[0]}'
    when = f'at step {logged["step"]:,}, during training, {on}'
    numbers = results.numbers(logged)
    usual = [name for name in facts.ranks if name in numbers][:1]
    pairs += [
      (measure_text(k, numbers[k]), f'{results.display_name(k)} {when}') for k in usual or numbers
    ]
  return pairs + training(facts)


def measure_text(name: str, value: float | None) -> str:
  """A measure as it is read: in percent, or with four digits."""
  return percent(value) if results.is_fraction(name) else number(value)


def measured_on(values: dict[str, Any]) -> str:
  """The images that `Facts.measured` is of."""
  return f'{values["count"]:,} images, split {values["split"]} of {values["source"]}'


def training(facts: Facts) -> list[tuple[str, str]]:
  """(number, what it is) of the training itself."""
  pairs = []
  if facts.model is not None:
    count = metrics.parameters(facts.model.params)
    pairs.append((f'{count:,}', f'parameters of {facts.model.name}'))
  if facts.rows:
    step = max(row['step'] for row in facts.rows)
    pairs.append((f'{step:,}', 'steps'))
  if len(facts.curve('train/images_per_second')[0]):
    pairs.append((duration(seconds_of_steps(facts)), 'in training steps, evaluation left out'))
  return pairs


def curves(facts: Facts) -> str:
  """What was logged during training."""
  return (
    f'<div class="charts">{"".join(curve_chart(facts, curve) for curve in facts.curves())}</div>'
  )


def curve_chart(facts: Facts, curve: Curve) -> str:
  lines = {name: thinned(*facts.curve(name)) for name in curve.names}
  lines = {name: line for name, line in lines.items() if len(line[0])}
  if not lines:
    return f'<figure><h3>{text(curve.title)}</h3><p class="faint">Nothing was logged.</p></figure>'
  return chart.drawn(curve.title, lines, percent=curve.percent)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """At most `POINTS` points of a curve, the first and the last among them."""
  chosen = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int))
  return steps[chosen], values[chosen]


def confusion(facts: Facts) -> str:
  """How often each class was taken for each."""
  values = facts.measured or {}
  if not values.get('confusion'):
    return '<p>Images have several labels, or there are too many classes for a matrix.</p>'
  matrix = np.array(values['confusion'])  # (K, K)
  names = [row['name'] for row in values['classes']]
  confused = values.get('confused', ())
  pairs = table(
    ('label', 'taken for', 'times'),
    [(pair['label'], pair['guess'], pair['count']) for pair in confused],
  )
  shown = confusion_table(matrix, names) if len(names) <= SMALL else confusion_picture(matrix)
  most = f'<h3>Most frequent mistakes</h3>{pairs}' * bool(confused)
  on = text(measured_on(values))
  return f'<p>{on}. A row for each label, a column for each guess.</p>{shown}{most}'


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
    '<div class="wide" tabindex="0"><table class="confusion"><thead><tr><td></td>'
    f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
  )


def confusion_picture(matrix: np.ndarray) -> str:
  """(K, K) counts as a picture, the brighter the larger their share of the row."""
  shares = binned(matrix)
  caption = 'Confusion matrix, the brighter the larger the share of the row'
  if len(shares) < len(matrix):
    caption += (
      f'; a pixel is the mean of up to {blocks(len(matrix))} labels and the sum of as many guesses'
    )
  return (
    f'<figure><img class="pixels" style="width:36rem" src="{palette(np.sqrt(shares))}" '
    f'alt="{text(caption)}"><figcaption>{text(caption)}.</figcaption></figure>'
  )


def blocks(count: int) -> int:
  """Classes that share a row and a column of the picture."""
  return math.ceil(count / CELLS)


def binned(matrix: np.ndarray) -> np.ndarray:
  """(K, K) counts as shares of their rows, float32, at most `CELLS` a side.

  Above that, neighbouring classes are taken together: guesses are summed, labels averaged.
  """
  size = blocks(len(matrix))
  starts = np.arange(0, len(matrix), size)
  totals = np.maximum(matrix.sum(1, keepdims=True), 1)
  shares = np.float32(np.add.reduceat(matrix, starts, axis=1) / totals)  # (K, k)
  labels = np.diff(starts, append=len(matrix))[:, None]
  return np.add.reduceat(shares, starts, axis=0) / labels  # (k, k)


def palette(shares: np.ndarray) -> str:
  """(rows, columns) in [0, 1] as the address of a PNG with a byte for each."""
  from PIL import Image

  image = Image.fromarray(np.rint(255 * shares).astype(np.uint8)).convert('P')
  image.putpalette(np.rint(page.colours(np.linspace(0, 1, 256))).astype(np.uint8).tobytes())
  return page.data_uri(image)


def photo(image: np.ndarray) -> str:
  """(H, W, 3) uint8 as the address of a JPEG, or of a small one as that of a PNG."""
  if min(image.shape[:2]) < PHOTO:
    return page.data_uri(image)
  return page.data_uri(image, 'JPEG', quality=QUALITY)


def classes(facts: Facts) -> str:
  """Precision and recall of every class, the worst first."""
  assert facts.measured is not None
  rows = accuracy.by_recall(facts.measured['classes'])
  shown = table(
    ('class', 'images', 'precision', 'recall'),
    [
      (row['name'], f'{row["count"]:,}', percent(row['precision']), percent(row['recall']))
      for row in rows[:LISTED]
    ],
  )
  if others := accuracy.unlisted(rows, rows[:LISTED]):
    shown += f'<p>{text(others)}.</p>'
  if len(rows) <= SMALL:
    return shown
  return f'<details><summary>{min(len(rows), LISTED):,} classes</summary>{shown}</details>'


def mistakes(facts: Facts) -> str:
  """Images that the model was surest of, and wrong."""
  assert facts.measured is not None
  if not facts.measured['mistakes']:
    return '<p>No image was misclassified.</p>'
  if not facts.mistakes:
    return '<p>They could not be drawn.</p>'
  caption = '<p>The surest first.'
  if facts.mistakes[0].attention is not None:
    caption += (
      ' Beside each image: how much of each patch the tokens that the head reads take up in the '
      'last layer, mean of the heads.'
    )
  return f'{caption}</p><div class="gallery">{"".join(map(mistake_figure, facts.mistakes))}</div>'


def mistake_figure(mistake: Mistake) -> str:
  """The image, and beside it the same under its attention; both show one embedded picture."""
  height, width = mistake.image.shape[:2]
  look = 'shot pixels' if width < 200 else 'shot'
  shown = f'<div class="{look}" role="img" aria-label="{text(mistake.name)}"></div>'
  if mistake.attention is not None:
    over = f'<img src="{page.heatmap(mistake.attention)}" alt="its attention">'
    shown += f'<div class="{look}">{over}</div>'
  image = f'--image:url({photo(mistake.image)});--ratio:{width}/{height}'
  return (
    f'<figure><div class="pair" style="{image}">{shown}</div>'
    f'<figcaption><b>{text(mistake.label)}</b> taken for '
    f'<b>{text(mistake.guess)}</b> at {percent(mistake.confidence)}<br>'
    f'<span class="faint">{text(mistake.name)}</span></figcaption></figure>'
  )


def calibration(facts: Facts) -> str:
  """Accuracy by confidence (Guo et al., arXiv 1706.04599)."""
  assert facts.measured is not None
  rows = bins_with_images(facts.measured['calibration'])
  confidence, right = (np.array([row[key] for row in rows]) for key in ('confidence', 'accuracy'))
  diagonal = np.array([0.0, 1.0])
  lines = {'accuracy': (confidence, right)} if rows else {}
  lines['calibrated'] = (diagonal, diagonal)
  drawn = chart.drawn('Accuracy by confidence', lines, percent=True, x='confidence')
  bin_table = table(
    ('confidence', 'images', 'mean confidence', 'accuracy'),
    [
      (
        f'{percent(row["from"])} to {percent(row["to"])}',
        f'{row["count"]:,}',
        percent(row['confidence']),
        percent(row['accuracy']),
      )
      for row in rows
    ],
  )
  error, bins = percent(facts.measured.get('calibration_error')), facts.measured['calibration']
  return (
    f'<p>Expected calibration error {error}, of the likeliest class, in {len(bins)} bins.</p>'
    f'<div class="charts">{drawn}</div><details><summary>the bins</summary>{bin_table}</details>'
  )


def bins_with_images(bins: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Those of the calibration that have images, and confidences that are finite."""
  return [row for row in bins if row['count'] and None not in (row['confidence'], row['accuracy'])]


def weights_section(facts: Facts) -> str:
  """Filters and positions of the model."""
  model = facts.model
  assert model is not None
  filters = analysis.filters(model.model, model.params)
  explained = percent(float(filters.variance.sum()))
  caption = (
    f'The first {len(filters.components)} principal components of {filters.count} filters of '
    f'{filters.of}: {explained} of their variance.'
  )
  parts = [picture_figure(pictures.filters(filters.components, 'Filters'), caption)]
  try:
    positions = analysis.position_similarity(model.model, model.params, model.preprocess.size)
  except ValueError as error:
    parts.append(f'<p>{text(sentence(str(error)))}</p>')
  else:
    patches = positions.patches
    caption = (
      'Each tile: how alike the position of its patch is to those of all patches; cosines of '
      f'{positions.of}, {patches.min():.2f} to {patches.max():.2f}.'
    )
    parts.append(picture_figure(pictures.positions(patches, 'Positions'), caption))
  return f'<div class="charts inside">{"".join(parts)}</div>'


def picture_figure(png: bytes, caption: str) -> str:
  """A picture of `pictures` with what it shows."""
  image = f'<img src="{page.file_uri(png)}" alt="{text(caption)}">'
  return f'<figure>{image}<figcaption>{text(caption)}</figcaption></figure>'


def settings(facts: Facts) -> str:
  """The config, whole."""
  config = text(json.dumps(facts.config, indent=1))
  return f'<details><summary>config.json</summary><pre>{config}</pre></details>'


def environment(facts: Facts) -> str:
  """The command, and with what it was carried out."""
  if not facts.environment:
    return '<p>Not recorded: an earlier version of vit_jax started the run.</p>'
  rows = {k: v for k, v in facts.environment.items() if k not in ('command', 'packages')}
  packages = facts.environment.get('packages', {})
  command = facts.environment.get('command')
  line = f'<pre id="command">{text(command)}</pre>' if command else '<p>No command started it.</p>'
  return line + table(('', ''), [*rows.items(), *packages.items()])


DETAILS = {  # sections of an evaluation, where its task gives what they are of
  'Confusion': confusion,
  'Classes': classes,
  'Mistakes': mistakes,
  'Calibration': calibration,
}


def as_html(facts: Facts) -> str:
  """The page: one file, without scripts, that asks for no other."""
  sections = {'Results': headline_cards(facts), 'Curves': curves(facts)}
  for title, section in DETAILS.items():
    if title.lower() in (facts.measured or {}):
      sections[title] = section(facts)
  if facts.model is not None and isinstance(facts.model.model, models.Model):
    sections['Filters and positions'] = weights_section(facts)
  sections |= {'Command and environment': environment(facts), 'Config': settings(facts)}
  ids = {title: title.lower().replace(' ', '-') for title in sections}
  return page.render(
    'report.html',
    title=text(title_of(facts)),
    subtitle=' '.join(text(sentence(line)) for line in facts.left_out),
    style=page.asset('style.css'),
    nav=''.join(f'<a href="#{ids[title]}">{title}</a>' for title in sections),
    body='\n'.join(
      f'<section aria-labelledby="{ids[title]}"><h2 id="{ids[title]}">{title}</h2>{body}</section>'
      for title, body in sections.items()
    ),
  )


def sentence(line: str) -> str:
  """A line with a capital and a full stop; the rest of it, paths for one, as it is."""
  return f'{line[:1].upper()}{line[1:]}.'


def title_of(facts: Facts) -> str:
  """The model and the data."""
  return f'{name_of(facts)} on {facts.config["data"].get("source")}'


def name_of(facts: Facts) -> str:
  """The model's variant, of the config or of what it started from, and its other sizes."""
  config = facts.config['model']
  name = config.get('name') or (facts.model.name if facts.model else 'a model')
  sizes = {size: config[size] for size in SIZES if config.get(size) is not None}
  described = ', '.join(f'{size} {dimensions(value)}' for size, value in sizes.items())
  return f'{name} with {described}' if described else name


# The picture


def as_png(facts: Facts) -> bytes:
  """The summary: headline numbers, curves, calibration and confusion."""
  return pictures.png(summary(facts))


def summary(facts: Facts) -> 'Figure':
  """The figure of `as_png`."""
  figure = pictures.figure(20, 8.5)
  axes = figure.subplot_mosaic('ABCDH;AEFGH', width_ratios=(1.1, 1, 1, 1, 1.3))
  figure.suptitle(textwrap.fill(title_of(facts), 100), fontsize=18, parse_math=False)
  axes['A'].axis('off')
  lines = [
    f'{value}\n{textwrap.fill(caption, 40)}' for value, caption in headlines(facts)[:NUMBERS]
  ]
  axes['A'].text(0, 1, '\n\n'.join(lines), va='top', fontsize=12, parse_math=False)
  for place, curve in zip('BCDEF', facts.curves()):
    plot(axes[place], facts, curve)
  plot_calibration(axes['G'], facts.measured)
  plot_confusion(axes['H'], facts.measured)
  for place, name in (('G', 'calibration'), ('H', 'confusion')):
    axes[place].set_visible(facts.measured is None or name in facts.measured)
  return figure


def plot(axis: 'Axes', facts: Facts, curve: Curve) -> None:
  """A curve of the page."""
  from matplotlib.ticker import PercentFormatter

  label(axis, curve.title, x='step')
  if curve.percent:
    axis.yaxis.set_major_formatter(PercentFormatter(1))
  for name, line in zip(curve.names, ('-', '--', ':')):
    steps, values = thinned(*facts.curve(name))
    if len(steps):
      axis.plot(steps, values, line, label=name, marker='.' if len(steps) < 20 else None)
  if len(axis.lines) > 1:
    axis.legend(fontsize=10)


def label(axis: 'Axes', title: str, *, x: str, y: str = '') -> None:
  """Titles of a panel, in letters that are read on a slide."""
  axis.set_title(title, fontsize=13)
  axis.set_xlabel(x, fontsize=11)
  axis.set_ylabel(y, fontsize=11)
  axis.tick_params(labelsize=10)
  axis.grid(alpha=0.3)


def plot_calibration(axis: 'Axes', values: dict[str, Any] | None) -> None:
  label(axis, 'Calibration', x='confidence', y='accuracy')
  axis.plot([0, 1], [0, 1], color='grey', linewidth=1)
  rows = bins_with_images(values.get('calibration', ())) if values else []
  axis.plot([row['confidence'] for row in rows], [row['accuracy'] for row in rows], marker='o')


def plot_confusion(axis: 'Axes', values: dict[str, Any] | None) -> None:
  label(axis, 'Confusion', x='guess', y='label')
  axis.grid(False)
  if not values or not values.get('confusion'):
    return
  matrix = np.array(values['confusion'])
  edges = (-0.5, len(matrix) - 0.5, len(matrix) - 0.5, -0.5)
  axis.imshow(np.sqrt(binned(matrix)), vmin=0, vmax=1, extent=edges)
  if len(matrix) <= NAMED:
    names = [textwrap.shorten(row['name'], 12, placeholder='…') for row in values['classes']]
    axis.set_yticks(range(len(names)), names, parse_math=False)
    turn = 90 if max(map(len, names)) > 2 else 0
    axis.set_xticks(range(len(names)), names, parse_math=False, rotation=turn)
