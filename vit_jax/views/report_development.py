"""The section of a report on how an encoder developed: patches as colours, and neighbours.

P photos, k nearest neighbours of each, T points in time.
"""

from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.evaluate.development import Development
from vit_jax.views import html
from vit_jax.views.facts import Facts
from vit_jax.views.photos import thumbnail

COLUMNS = 4  # points in time at which neighbours are shown


def section(facts: Facts) -> str:
  """The photos, what their patches had in common and what was like them, by the step."""
  looks = facts.development
  assert looks is not None
  return (
    '<p>The same photos at each evaluation, as the model would have been delivered then. Colours: '
    'the first three principal components of the patch tokens of all these photos together. To '
    'the model patches of one colour are alike.</p>'
    f'{table(facts, looks, range(len(looks.steps)), colours)}'
    f'<p>The most similar of the first images of the split, by the cosine of features.</p>'
    f'{table(facts, looks, columns_of(looks), similar)}'
  )


def columns_of(looks: Development) -> list[int]:
  """The points in time of neighbours: the first, the last, and some between them."""
  count = len(looks.steps)
  return np.unique(np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int)).tolist()


def table(
  facts: Facts,
  looks: Development,
  points: Sequence[int],
  cell: Callable[[Facts, Development, int, int], str],
) -> str:
  """A row for each photo that the page has, and a column for each of the points in time."""
  head = ''.join(f'<th scope="col">step {looks.steps[point]:,}</th>' for point in points)
  rows = ''
  for number, photo in enumerate(looks.photos.tolist()):
    button = thumbnail(facts.photos, photo, 'the photo')
    cells = ''.join(f'<td>{cell(facts, looks, point, number)}</td>' for point in points)
    rows += f'<tr><th scope="row">{button}</th>{cells}</tr>' if button else ''
  return (
    '<div class="wide" tabindex="0"><table class="development"><thead><tr>'
    f'<th scope="col">photo</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
  )


def colours(facts: Facts, looks: Development, point: int, number: int) -> str:
  """The patches of a photo as colours."""
  name = html.escape(facts.photos.names[int(looks.photos[number])])
  picture = html.data_uri(looks.colours[point, number])
  return (
    f'<img class="pixels" src="{picture}" alt="patches of {name} at step {looks.steps[point]}">'
  )


def similar(facts: Facts, looks: Development, point: int, number: int) -> str:
  """The neighbours of a photo, the most similar first."""
  rows = looks.nearest[point, number].tolist()
  words = f'at step {looks.steps[point]:,}, by similarity'
  return ''.join(
    thumbnail(facts.photos, row, f'neighbour {place} {words}') for place, row in enumerate(rows, 1)
  )
