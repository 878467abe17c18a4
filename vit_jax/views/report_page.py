"""The page and the picture of a report: `report.html` and `report.png`.

K classes, N images.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import analysis, files, metrics, models
from vit_jax.evaluate import results
from vit_jax.text import number, percent, quantity, without_folders
from vit_jax.views import (
  charts,
  curves,
  html,
  opening,
  photos,
  pictures,
  report_development,
  report_images,
  svg,
)
from vit_jax.views.card import dimensions, shown
from vit_jax.views.facts import Facts, seconds_of_steps
from vit_jax.views.html import escape, table

if TYPE_CHECKING:
  from matplotlib.figure import Figure

SIZES = ('patch', 'width', 'depth')  # that a config may replace
NUMBERS = 8  # of the picture's first panel
OF_CLASSES = ('balanced_accuracy', 'f1_micro', 'f1_macro', 'f1_weighted', 'auroc')  # of the card
CALIBRATED = 100  # images, below which bins of confidence tell nothing


# Numbers


def duration(seconds: float) -> str:
  """5025 -> '1 h 23 min'."""
  minutes, hours = int(seconds // 60 % 60), int(seconds // 3600)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {int(seconds % 60)} s' if minutes else f'{seconds:.1f} s'


def card(value: str, caption: str) -> str:
  return f'<div class="card"><b>{escape(value)}</b>{escape(caption)}</div>'


def results_section(facts: Facts) -> str:
  """The numbers to quote, and on what other images there are some."""
  cards = ''.join(card(*line) for line in [*headlines(facts), *training(facts)])
  others = ''.join(f'<p>{escape(line)}</p>' for line in other_splits(facts))
  return f'<div class="cards">{cards}</div>{others}'


def headlines(facts: Facts) -> list[tuple[str, str]]:
  """(number, what it is) of what was measured of the model, see `measured_on`."""
  values = facts.measured or {}
  return [
    (measure_text(name, value), results.display_name(name))
    for name, value in results.numbers(values).items()
    if name not in OF_CLASSES and not (name == 'calibration_error' and is_few(values))
  ]


def measure_text(name: str, value: float | None) -> str:
  """A measure as it is read: in percent, or with four digits."""
  return percent(value) if results.is_fraction(name) else number(value)


def measured_on(values: Mapping[str, Any]) -> str:
  """The images that `Facts.measured` is of."""
  images, source = quantity(values['count'], 'image'), shown(values['source'])
  step = f' at step {values["step"]:,}' if values.get('step') is not None else ''
  return f'Measured{step} on {images}, split {values["split"]} of {source}'


def other_splits(facts: Facts) -> list[str]:
  """Lines on what training measured of the same parameters on other images."""
  data, values, lines = facts.config['data'], facts.measured, []
  for use, logged in metrics.model_results(facts.rows, facts.step).items():
    where = (data.get('source'), data.get(use))
    if values and where == (values['source'], values['split']):
      continue  # the same parameters on the same images
    numbers = results.numbers(logged)
    usual = [name for name in facts.ranks if name in numbers][:1] or numbers
    measures = ', '.join(f'{results.display_name(k)} {measure_text(k, numbers[k])}' for k in usual)
    images = f'{logged.get("count") or 0:,.0f} images, split {where[1]} of {shown(where[0])}'
    lines.append(f'During training, at step {logged["step"]:,}, on {images}: {measures}.')
  return lines


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


# Sections


def curves_section(facts: Facts) -> str:
  """What was logged during training."""
  return svg.gallery(curves.charts(facts))


def is_few(values: Mapping[str, Any]) -> bool:
  """Whether an evaluation is of too few images for bins of confidence."""
  return values.get('count', CALIBRATED) < CALIBRATED


def calibration(facts: Facts) -> str:
  """Accuracy by confidence (Guo et al., arXiv 1706.04599)."""
  values = facts.measured
  assert values is not None
  bins = values['calibration']
  if is_few(values):
    images, each = quantity(values['count'], 'image'), values['count'] / len(bins)
    return (
      f'<p>Not shown: of {images}, a bin of confidence would have {each:.1f} on average, and how '
      f'often so few are right is chance. It is shown from {CALIBRATED} images on.</p>'
    )
  filled = bins_with_images(bins)
  rows = [
    (
      f'{percent(row["from"])} to {percent(row["to"])}',
      f'{row["count"]:,}',
      percent(row['confidence']),
      percent(row['accuracy']),
    )
    for row in filled
  ]
  error = percent(values.get('calibration_error'))
  return (
    f'<p>Expected calibration error {error}, of the likeliest class, in {len(bins)} bins. A bar is '
    'how often the model was right when it was so sure, the line how sure it was, the number how '
    'many images: a bar below its line is of a model that is too sure.</p>'
    f'<div class="charts"><figure class="chart">{svg.calibration(filled)}</figure></div>'
    '<details><summary>the bins</summary>'
    f'{table(("confidence", "images", "mean confidence", "accuracy"), rows)}</details>'
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
  """Filters and positions of the model, folded away."""
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
  return (
    '<details><summary>what the first layer looks for</summary>'
    f'<div class="charts inside">{"".join(parts)}</div></details>'
  )


def settings(facts: Facts) -> str:
  """The config, whole, but for the folders of its paths."""
  config = escape(files.as_json(public(facts.config), indent=1))
  return f'<details><summary>config.json</summary><pre>{config}</pre></details>'


def public(value: Any) -> Any:
  """Nested dicts and lists without the folders of absolute paths."""
  if isinstance(value, Mapping):
    return {name: public(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [public(part) for part in value]
  return without_folders(shown(value)) if isinstance(value, str) else value


def environment(facts: Facts) -> str:
  """The command, and the environment that it ran in."""
  if not facts.environment:
    return '<p>Not recorded: an earlier version of vit_jax started the run.</p>'
  values = public(facts.environment)
  rows = {k: v for k, v in values.items() if k not in ('command', 'packages')}
  command = without_folders(facts.environment.get('command') or '')
  line = (
    f'<pre id="command">{escape(command)}</pre>' if command else '<p>No command started it.</p>'
  )
  return line + table(('', ''), [*rows.items(), *values.get('packages', {}).items()])


# The page

SECTIONS = {  # that need an evaluation: what of it each is of, where its task gives that
  'Classes': ('classes', report_images.classes),
  'Results': ('count', results_section),
  'Confusion': ('confusion', report_images.confusion),
  'Mistakes': ('mistakes', report_images.mistakes),
  'Labels and duplicates': ('images', report_images.labels),
  'Calibration': ('calibration', calibration),
}


def as_html(facts: Facts) -> str:
  """The page: one file that asks for no other, and is read without its script, too."""
  values = facts.measured or {'count': 0}
  sections = {
    title: section(facts) for title, (name, section) in SECTIONS.items() if name in values
  }
  sections['Curves'] = curves_section(facts)
  if facts.development is not None:
    sections['Photos over time'] = report_development.section(facts)
  if facts.model is not None and isinstance(facts.model.model, models.Model):
    sections['Filters and positions'] = weights_section(facts)
  sections |= {'Command and environment': environment(facts), 'Config': settings(facts)}
  notes = [f'{escape(measured_on(facts.measured))}.'] if facts.measured else []
  notes += [escape(sentence(without_folders(line))) for line in facts.left_out]
  return html.page(
    title_of(facts),
    sections,
    lead=opening.lead(facts) + ''.join(f'<p class="faint">{line}</p>' for line in notes),
    style=photos.style(facts.photos),
    refresh=opening.refresh(facts),
    is_small=is_small(facts),
  )


def is_small(facts: Facts) -> bool:
  """Whether photos are so small that their pixels are to be seen."""
  size = facts.config.get('image_size') or (photos.SMALL,)
  return min(size) < photos.SMALL


def sentence(line: str) -> str:
  """A line with a capital and a full stop; the rest of it, paths for one, as it is."""
  return f'{line[:1].upper()}{line[1:]}.'


def title_of(facts: Facts) -> str:
  """The model and the data."""
  return f'{name_of(facts)} on {shown(facts.config["data"].get("source"))}'


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
  values = facts.measured or {}
  pairs = [*headlines(facts), *training(facts)][:NUMBERS]
  lines = [f'{value}\n{textwrap.fill(name, 40)}' for value, name in pairs]
  if values:
    lines.insert(0, textwrap.fill(measured_on(values), 40))
  bins, matrix = values.get('calibration'), values.get('confusion')
  return charts.summary(
    title_of(facts),
    '\n\n'.join(lines),
    curves.charts(facts),
    calibration=calibration_chart(bins) if bins and not is_few(values) else None,
    confusion=(np.array(matrix), [row['name'] for row in values['classes']]) if matrix else None,
  )
