"""The sections of a report that are of images: classes, confusion, mistakes, labels to look at.

K classes, N images.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.evaluate import accuracy
from vit_jax.images.decoding import omitted_channels
from vit_jax.text import percent, quantity, without_folders
from vit_jax.views import charts, html
from vit_jax.views.facts import Facts, Mistake
from vit_jax.views.html import escape
from vit_jax.views.photos import OF_CELL, Images, gallery, photo, thumbnail
from vit_jax.views.repeats import Pair, Repeats

SMALL = 30  # classes, up to which their table is unfolded
BLOCK = 12  # classes of a larger one that are most confused with one another, as a table
TABLE = 120  # classes, up to which the confusion matrix is a table, whose cells open
UPRIGHT = 12  # classes, up to which the names of its columns lie
LISTED = 1000  # classes at most in the table of classes
QUALITY = 90  # of the photo of a mistake


# Classes


def classes(facts: Facts) -> str:
  """A row for every class, the worst first: how often it was right, and three of its images."""
  assert facts.measured is not None
  rows = accuracy.by_recall(facts.measured['classes'])
  images, numbers = Images.of(facts.measured), class_numbers(facts.measured)
  body = ''.join(class_row(facts, row, images, numbers[row['name']]) for row in rows[:LISTED])
  shown = ('surest right', 'surest wrong', 'typical') if facts.photos.uris else ()
  head = '<th scope="col">class</th>'
  head += ''.join(f'<th scope="col" class="shown">{title}</th>' for title in shown)
  head += ''.join(f'<th scope="col">{title}</th>' for title in ('images', 'recall', 'precision'))
  text = '<p>Recall: how many of its images were taken for it. Precision: how many of those taken '
  text += f'for it are of it.{typical_text(images)} The lowest recall comes first.</p>'
  listed = (
    f'<div class="wide" tabindex="0"><table class="classes"><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )
  if others := accuracy.unlisted(rows, rows[:LISTED]):
    listed += f'<p>{escape(others)}.</p>'
  if len(rows) <= SMALL:
    return text + listed
  summary = quantity(min(len(rows), LISTED), 'class')
  return f'{text}<details open><summary>{summary}</summary>{listed}</details>'


def class_numbers(values: Mapping[str, Any]) -> dict[str, int]:
  """The number of each class by its name."""
  return {row['name']: number for number, row in enumerate(values['classes'])}


def typical_text(images: Images | None) -> str:
  """What a typical image is."""
  if images is None:
    return ''
  if images.typical is None:
    return ' Typical: the image of median confidence.'
  return ' Typical: the image whose features are the most like the mean of its class.'


def class_row(facts: Facts, row: Mapping[str, Any], images: Images | None, number: int) -> str:
  """One row of `classes`."""
  recall = row['recall']
  shown = class_photos(facts, images, number) if images and facts.photos.uris else ''
  return (
    f'<tr><th scope="row">{escape(row["name"])}</th>{shown}<td>{row["count"]:,}</td>'
    f'<td class="share" style="--share:{recall or 0:.3f}">{percent(recall)}</td>'
    f'<td>{percent(row["precision"])}</td></tr>'
  )


def class_photos(facts: Facts, images: Images, number: int) -> str:
  """The three cells with images of a class."""
  cells, shown = '', images.of_class(number)
  for kind in ('right', 'wrong', 'typical'):
    image = shown.get(kind)
    button = '' if image is None else thumbnail(facts.photos, image, caption(images, image))
    words = ''
    if button and kind == 'wrong' and image is not None:
      words = f'<small>as {escape(images.names[images.guess[image]])}</small>'
    cells += f'<td class="shown">{button or "–"}{words}</td>'
  return cells


def caption(images: Images, row: int) -> str:
  """What was measured of an image: 'rose, taken for tulip at 91.20%'."""
  label = images.names[images.label[row]] if images.label[row] >= 0 else 'no class'
  sure = percent(float(images.confidence[row]))
  if images.right[row]:
    return f'{label}, right at {sure}'
  return f'{label}, taken for {images.names[images.guess[row]]} at {sure}'


# Confusion


def confusion(facts: Facts) -> str:
  """How often each class was taken for each, and the images of it."""
  values = facts.measured or {}
  if not values.get('confusion'):
    return '<p>Images are multi-label, or there are too many classes for a matrix.</p>'
  matrix = np.array(values['confusion'])  # (K, K)
  names = [row['name'] for row in values['classes']]
  images = Images.of(values)
  cells = images.cells() if images else {}
  linked = {cell: rows for cell, rows in cells.items() if shown_rows(facts, rows)}
  if len(names) <= TABLE:
    shown = confusion_table(matrix, names, linked, range(len(names)))
  else:
    shown = confusion_picture(matrix, names)
    if block := most_confused(matrix):
      shown += '<h3>The classes that are most confused with one another</h3>'
      shown += confusion_table(matrix, names, linked, block)
  opens = ' A number opens its images.' if linked else ''
  return (
    f'<p>A row for each label, a column for each prediction: right ones lie on the diagonal.{opens}'
    f'</p>{shown}{frequent(values, linked)}{cell_galleries(facts, images, linked, matrix)}'
  )


def shown_rows(facts: Facts, rows: Sequence[int]) -> list[int]:
  return [row for row in rows if row in facts.photos.uris]


def cell_id(cell: tuple[int, int]) -> str:
  return 'cell-{}-{}'.format(*cell)


def most_confused(matrix: np.ndarray) -> list[int]:
  """BLOCK classes at most of (K, K) counts: those of the most frequent mistakes, side by side."""
  errors = (matrix - np.diag(np.diag(matrix))).ravel()
  cells = np.flatnonzero(errors)
  cells = cells[np.argsort(-errors[cells], kind='stable')][:BLOCK]
  pairs = np.stack(np.divmod(cells, len(matrix)), axis=1)
  return list(dict.fromkeys(pairs.ravel().tolist()))[:BLOCK]


def confusion_table(
  matrix: np.ndarray,
  names: Sequence[str],
  linked: Mapping[tuple[int, int], Any],
  subset: Sequence[int],
) -> str:
  """Counts of a subset of classes, shaded by their fraction of the row, with links to images."""
  fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  look = 'confusion' if len(subset) <= UPRIGHT else 'confusion upright'
  head = ''.join(f'<th scope="col"><span>{escape(names[k])}</span></th>' for k in subset)
  rows = []
  for label in subset:
    name, cells = names[label], ''
    for prediction in subset:
      count = int(matrix[label, prediction])
      kind = ' class="miss"' * (prediction != label and count > 0)
      text = str(count) if count or len(subset) <= SMALL else ''
      if (label, prediction) in linked:
        title = f'{name} taken for {names[prediction]}: {quantity(count, "image")}'
        target = cell_id((label, prediction))
        text = f'<a href="#{target}" aria-label="{escape(title)}">{count}</a>'
      cells += f'<td{kind} style="--share:{fractions[label, prediction]:.3f}">{text}</td>'
    rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
  return (
    f'<div class="wide" tabindex="0"><table class="{look}"><thead>'
    f'<tr><td></td><th scope="colgroup" colspan="{len(subset)}" class="axis">prediction →</th></tr>'
    f'<tr><td class="axis">label ↓</td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    '</div>'
  )


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> str:
  """(K, K) counts as a picture."""
  text = 'Confusion matrix, the brighter the larger the fraction of the row'
  if (size := charts.block_size(len(matrix))) > 1:
    text += f'; a point is the mean of up to {size} labels and the sum of as many predictions'
  return html.picture_figure(charts.confusion_png(matrix, names), f'{text}.')


def frequent(values: Mapping[str, Any], linked: Mapping[tuple[int, int], Any]) -> str:
  """The pairs of classes that were taken for each other most often, with links to their images."""
  confused, numbers = values.get('confused', ()), class_numbers(values)
  if not confused:
    return ''
  body = ''
  for pair in confused:
    cell = numbers.get(pair['label'], -1), numbers.get(pair['guess'], -1)
    times = str(pair['count'])
    if cell in linked:
      title = escape(f'images of {pair["label"]} taken for {pair["guess"]}')
      times = f'<a href="#{cell_id(cell)}" aria-label="{times} {title}">{times}</a>'
    body += f'<tr><th scope="row">{escape(pair["label"])}</th><td>{escape(pair["guess"])}</td>'
    body += f'<td>{times}</td></tr>'
  head = ''.join(f'<th scope="col">{title}</th>' for title in ('label', 'taken for', 'times'))
  return (
    '<h3>Most frequent mistakes</h3><div class="wide" tabindex="0"><table class="frequent">'
    f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def cell_galleries(
  facts: Facts,
  images: Images | None,
  linked: Mapping[tuple[int, int], list[int]],
  matrix: np.ndarray,
) -> str:
  """The images of each cell of the matrix, the surest first; report.js shows one at a time."""
  if images is None or not linked:
    return ''
  parts = []
  for cell in sorted(linked):
    label, guess = (images.names[k] for k in cell)
    rows = shown_rows(facts, linked[cell])[:OF_CELL]
    title = f'{label}, right' if cell[0] == cell[1] else f'{label}, taken for {guess}'
    count = quantity(int(matrix[cell]), 'image')
    more = f', {len(rows)} of them here' if len(rows) < matrix[cell] else ''
    captions = {row: f'at {percent(float(images.confidence[row]))}' for row in rows}
    parts.append(
      f'<div class="cell" id="{cell_id(cell)}"><h3>{escape(title)}: {count}{more}</h3>'
      f'<div class="strip">{gallery(facts.photos, rows, captions)}</div></div>'
    )
  return (
    '<details class="cells"><summary>Images by label and prediction</summary>'
    f'{"".join(parts)}</details>'
  )


# Mistakes


def mistakes(facts: Facts) -> str:
  """Images that the model was surest of, and wrong."""
  assert facts.measured is not None
  if not facts.measured['mistakes']:
    return '<p>No image was misclassified.</p>'
  if not facts.mistakes:
    return '<p>Their images could not be read.</p>'
  text = '<p>The surest first.'
  if omitted := omitted_channels(facts.mistakes[0].image.shape[2]):
    text += f' Shown are {omitted}.'
  if facts.mistakes[0].attention is not None:
    text += (
      ' Beside each image: how much of each patch the tokens that the head reads take up in the '
      'last layer, mean of the heads.'
    )
  return f'{text}</p><div class="gallery">{"".join(map(mistake_figure, facts.mistakes))}</div>'


def mistake_figure(mistake: Mistake) -> str:
  """The image, and beside it the same under its attention; both show one embedded picture."""
  height, width = mistake.image.shape[:2]
  look = 'shot pixels' if width < 200 else 'shot'
  name = escape(mistake.name)
  shown = f'<div class="{look}" role="img" aria-label="{name}"></div>'
  if mistake.attention is not None:
    over = f'<img src="{html.heatmap(mistake.attention)}" alt="its attention">'
    shown += f'<div class="{look}">{over}</div>'
  uri = photo(mistake.image, max(height, width), QUALITY)
  return (
    f'<figure><div class="pair" style="--image:url({uri});--ratio:{width}/{height}">{shown}</div>'
    f'<figcaption><b>{escape(mistake.label)}</b> taken for '
    f'<b>{escape(mistake.prediction)}</b> at {percent(mistake.confidence)}<br>'
    f'<span class="faint">{name}</span></figcaption></figure>'
  )


# Labels to look at


def suspects(facts: Facts) -> str:
  """Images whose label is likely wrong."""
  images = Images.of(facts.measured or {})
  if images is None:
    return ''
  rows = shown_rows(facts, images.suspects())
  if not rows:
    return '<p>No label looks wrong.</p>'
  by = 'the model is at least by half sure of another class'
  if images.neighbour is not None:
    by = 'the model takes them for another class, and so do the images most like them'
  captions = {}
  for row in rows:
    captions[row] = f'labelled {caption(images, row)}; loss {images.loss[row]:.2f}'
    if images.neighbour is not None:
      captions[row] += f'; like {images.names[images.neighbour[row]]}'
  shown = gallery(facts.photos, rows, captions)
  text = f'<p>Labels that may be wrong: {by}. The highest loss first.</p>'
  return f'{text}<div class="strip">{shown}</div>'


def twice(facts: Facts) -> str:
  """What the data has more than once."""
  repeats = facts.repeats
  if repeats is None:
    return '<p>Whether images come twice was not looked at: <code>vit data show</code> does.</p>'
  titles = {
    'conflicts': 'The same picture in different classes',
    'equal': 'The same picture in different splits',
    'near': 'Nearly the same picture in different splits',
  }
  parts = ''
  for kind, title in titles.items():
    pairs, count = getattr(repeats, kind), repeats.counts[kind]
    if pairs:
      more = f', the first {len(pairs)} of them' if len(pairs) < count else ''
      shown = ''.join(map(pair_figure, pairs))
      parts += f'<h3>{title}: {count:,}{more}</h3><div class="gallery">{shown}</div>'
  nothing = (
    f'<p>None of the {sum(repeats.looked_at.values()):,} images is there twice in different '
    'classes or splits, or nearly so in different splits.</p>'
  )
  return coverage(repeats, facts.config['data']['source']) + (parts or nothing)


def coverage(repeats: Repeats, source: str) -> str:
  """Which images were looked at, where these are not all, and what looks at all."""
  if repeats.looked_at == repeats.images:
    return ''
  counts = ', '.join(
    f'{repeats.looked_at[use]:,} of {count:,} of {use}' for use, count in repeats.images.items()
  )
  command = escape(f'vit data show {shlex.quote(without_folders(source))}')
  return (
    f'<p>Looked at for images that come twice: {counts}, evenly over each, so that most pairs may '
    f'be missing. All of them: <code>{command}</code>.</p>'
  )


def pair_figure(pair: Pair) -> str:
  """Two photos, and what each is."""
  shown = ''.join(
    f'<img src="{uri}" alt="{escape(name)}">' for name, uri in zip(pair.names, pair.uris)
  )
  names = '<br>'.join(map(escape, pair.names))
  return (
    f'<figure><div class="pair">{shown}</div><figcaption class="faint">{names}</figcaption>'
    '</figure>'
  )


def labels(facts: Facts) -> str:
  """What to look at in the data: labels that are likely wrong, and images that come twice."""
  return f'{suspects(facts)}{twice(facts)}'
