"""The page and the picture of a report: `report.html` and `report.png`.

K classes, N images.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import analysis, files, metrics, models
from vit_jax.evaluate import accuracy, results
from vit_jax.images.decoding import displayed, omitted_channels
from vit_jax.text import number, percent, quantity
from vit_jax.views import charts, html, pictures
from vit_jax.views.card import dimensions
from vit_jax.views.facts import Facts, Mistake, seconds_of_steps
from vit_jax.views.html import escape, table

if TYPE_CHECKING:
  from matplotlib.figure import Figure

SMALL = 30  # classes, up to which the confusion matrix is a table
LISTED = 1000  # classes at most in the table of classes
PHOTO = 64  # pixels of a side, from which on a photo is embedded as a JPEG
QUALITY = 90  # of it
SIZES = ('patch', 'width', 'depth')  # that a config may replace
NUMBERS = 8  # of the picture's first panel
OF_CLASSES = ('balanced_accuracy', 'f1_micro', 'f1_macro', 'f1_weighted', 'auroc')  # of the card


# The page


def duration(seconds: float) -> str:
  """5025 -> '1 h 23 min'."""
  minutes, hours = int(seconds // 60 % 60), int(seconds // 3600)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {int(seconds % 60)} s' if minutes else f'{seconds:.1f} s'


def card(value: str, caption: str) -> str:
  return f'<div class="card"><b>{escape(value)}</b>{escape(caption)}</div>'


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
      if name not in OF_CLASSES
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
  return f'{quantity(values["count"], "image")}, split {values["split"]} of {values["source"]}'


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
  return f'<div class="charts">{"".join(map(charts.as_html, facts.charts()))}</div>'


def confusion(facts: Facts) -> str:
  """How often each class was taken for each."""
  values = facts.measured or {}
  if not values.get('confusion'):
    return '<p>Images are multi-label, or there are too many classes for a matrix.</p>'
  matrix = np.array(values['confusion'])  # (K, K)
  names = [row['name'] for row in values['classes']]
  confused = values.get('confused', ())
  pairs = table(
    ('label', 'taken for', 'times'),
    [(pair['label'], pair['guess'], pair['count']) for pair in confused],
  )
  small = len(names) <= SMALL
  shown = confusion_table(matrix, names) if small else confusion_picture(matrix, names)
  most = f'<h3>Most frequent mistakes</h3>{pairs}' * bool(confused)
  on = escape(measured_on(values))
  return f'<p>{on}. A row for each label, a column for each prediction.</p>{shown}{most}'


def confusion_table(matrix: np.ndarray, names: Sequence[str]) -> str:
  """(K, K) counts with a shade for their fraction of the row."""
  fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in names)
  rows = []
  for label, name in enumerate(names):
    cells = ''.join(
      f'<td{" class=miss" * (prediction != label and count > 0)} '
      f'style="--share:{fractions[label, prediction]:.3f}">{count}</td>'
      for prediction, count in enumerate(matrix[label].tolist())
    )
    rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
  return (
    '<div class="wide" tabindex="0"><table class="confusion"><thead><tr><td></td>'
    f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
  )


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> str:
  """(K, K) counts as a picture."""
  caption = 'Confusion matrix, the brighter the larger the fraction of the row'
  if (size := charts.block_size(len(matrix))) > 1:
    caption += f'; a point is the mean of up to {size} labels and the sum of as many predictions'
  return html.picture_figure(charts.confusion_png(matrix, names), f'{caption}.')


def photo(image: np.ndarray) -> str:
  """(H, W, C) uint8 as the address of a JPEG, or of a small one as that of a PNG."""
  image = displayed(image)
  if min(image.shape[:2]) < PHOTO:
    return html.data_uri(image)
  return html.data_uri(image, 'JPEG', quality=QUALITY)


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
    shown += f'<p>{escape(others)}.</p>'
  if len(rows) <= SMALL:
    return shown
  return f'<details><summary>{min(len(rows), LISTED):,} classes</summary>{shown}</details>'


def mistakes(facts: Facts) -> str:
  """Images that the model was surest of, and wrong."""
  assert facts.measured is not None
  if not facts.measured['mistakes']:
    return '<p>No image was misclassified.</p>'
  if not facts.mistakes:
    return '<p>Their images could not be read.</p>'
  caption = '<p>The surest first.'
  if omitted := omitted_channels(facts.mistakes[0].image.shape[2]):
    caption += f' Shown are {omitted}.'
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
  shown = f'<div class="{look}" role="img" aria-label="{escape(mistake.name)}"></div>'
  if mistake.attention is not None:
    over = f'<img src="{html.heatmap(mistake.attention)}" alt="its attention">'
    shown += f'<div class="{look}">{over}</div>'
  image = f'--image:url({photo(mistake.image)});--ratio:{width}/{height}'
  return (
    f'<figure><div class="pair" style="{image}">{shown}</div>'
    f'<figcaption><b>{escape(mistake.label)}</b> taken for '
    f'<b>{escape(mistake.prediction)}</b> at {percent(mistake.confidence)}<br>'
    f'<span class="faint">{escape(mistake.name)}</span></figcaption></figure>'
  )


def calibration(facts: Facts) -> str:
  """Accuracy by confidence (Guo et al., arXiv 1706.04599)."""
  assert facts.measured is not None
  bins = facts.measured['calibration']
  bin_table = table(
    ('confidence', 'images', 'mean confidence', 'accuracy'),
    [
      (
        f'{percent(row["from"])} to {percent(row["to"])}',
        f'{row["count"]:,}',
        percent(row['confidence']),
        percent(row['accuracy']),
      )
      for row in bins_with_images(bins)
    ],
  )
  error = percent(facts.measured.get('calibration_error'))
  return (
    f'<p>Expected calibration error {error}, of the likeliest class, in {len(bins)} bins.</p>'
    f'<div class="charts">{charts.as_html(calibration_chart(bins))}</div>'
    f'<details><summary>the bins</summary>{bin_table}</details>'
  )


def calibration_chart(bins: Sequence[Mapping[str, Any]]) -> charts.Chart:
  """Accuracy over confidence, and the line of a model whose confidence is right."""
  points = [(row['confidence'], row['accuracy']) for row in bins_with_images(bins)]
  confidence, correct = np.array(points, float).reshape(-1, 2).T
  diagonal = np.array([0.0, 1.0])
  lines = {'accuracy': (confidence, correct), 'calibrated': (diagonal, diagonal)}
  return charts.Chart('Calibration', lines, percent=True, x='confidence', y='accuracy')


def bins_with_images(bins: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
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
  parts = [html.picture_figure(pictures.filters(filters.components, 'Filters'), caption)]
  try:
    positions = analysis.position_similarity(model.model, model.params, model.preprocess.size)
  except ValueError as error:
    parts.append(f'<p>{escape(sentence(str(error)))}</p>')
  else:
    patches = positions.patches
    caption = (
      'Each tile: how alike the position of its patch is to those of all patches; cosines of '
      f'{positions.of}, {patches.min():.2f} to {patches.max():.2f}.'
    )
    parts.append(html.picture_figure(pictures.positions(patches, 'Positions'), caption))
  return f'<div class="charts inside">{"".join(parts)}</div>'


def settings(facts: Facts) -> str:
  """The config, whole."""
  config = escape(files.as_json(facts.config, indent=1))
  return f'<details><summary>config.json</summary><pre>{config}</pre></details>'


def environment(facts: Facts) -> str:
  """The command, and the environment that it ran in."""
  if not facts.environment:
    return '<p>Not recorded: an earlier version of vit_jax started the run.</p>'
  rows = {k: v for k, v in facts.environment.items() if k not in ('command', 'packages')}
  packages = facts.environment.get('packages', {})
  command = facts.environment.get('command')
  line = (
    f'<pre id="command">{escape(command)}</pre>' if command else '<p>No command started it.</p>'
  )
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
  return html.render(
    'report.html',
    title=escape(title_of(facts)),
    subtitle=' '.join(escape(sentence(line)) for line in facts.left_out),
    style=html.asset('style.css'),
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
  lines = [f'{value}\n{textwrap.fill(name, 40)}' for value, name in headlines(facts)[:NUMBERS]]
  values = facts.measured or {}
  bins, matrix = values.get('calibration'), values.get('confusion')
  return charts.summary(
    title_of(facts),
    '\n\n'.join(lines),
    facts.charts(),
    calibration=calibration_chart(bins) if bins else None,
    confusion=(np.array(matrix), [row['name'] for row in values['classes']]) if matrix else None,
  )
