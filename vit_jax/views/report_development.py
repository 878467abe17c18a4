"""The section of a report on how an encoder developed: colours, neighbours, reconstructions.

P photos, k nearest neighbours of each, T points in time.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from vit_jax.evaluate.development import Development
from vit_jax.views import html
from vit_jax.views.facts import Facts
from vit_jax.views.photos import photo, thumbnail

COLUMNS = 4  # points in time at which neighbours are shown
Column = Callable[[int], str]  # the cell of a photo, by its number


def section(facts: Facts) -> str:
  """The photos, what their patches had in common and what was like them, by the step."""
  looks = facts.development
  assert looks is not None
  return (
    '<p>The same photos at each evaluation, as the model would have been delivered then. Colours: '
    'the first three principal components of the patch tokens of all these photos together. To '
    'the model patches of one colour are alike.</p>'
    f'{table(facts, looks, by_step(colours, facts, looks, range(len(looks.steps))))}'
    f'{reconstructions(facts, looks)}'
    f'<p>The most similar of the first images of the split, by the cosine of features.</p>'
    f'{table(facts, looks, by_step(similar, facts, looks, columns_of(looks)))}'
  )


def reconstructions(facts: Facts, looks: Development) -> str:
  """What a masked autoencoder sees of the photos and fills in, by the step; '' of other models."""
  if looks.reconstructed is None:
    return ''
  columns: dict[str, Column] = {'visible': functools.partial(visible, facts, looks)}
  columns |= by_step(filled, facts, looks, range(len(looks.steps)))
  return (
    '<p>Some patches of each photo, and the others as the decoder fills them in. Where it predicts '
    "normalised pixels, mean and contrast of each patch are the original's.</p>"
    f'{table(facts, looks, columns)}'
  )


def columns_of(looks: Development) -> list[int]:
  """The points in time of neighbours: the first, the last, and some between them."""
  count = len(looks.steps)
  return np.unique(np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int)).tolist()


def by_step(
  cell: Callable[[Facts, Development, int, int], str],
  facts: Facts,
  looks: Development,
  points: Iterable[int],
) -> dict[str, Column]:
  """A column for each of the points in time."""
  return {
    f'step {looks.steps[point]:,}': functools.partial(cell, facts, looks, point) for point in points
  }


def table(facts: Facts, looks: Development, columns: Mapping[str, Column]) -> str:
  """A row for each photo that the page has, and the columns by their titles."""
  head = ''.join(f'<th scope="col">{title}</th>' for title in columns)
  rows = ''
  for number, row in enumerate(looks.photos.tolist()):
    button = thumbnail(facts.photos, row, 'the photo')
    cells = ''.join(f'<td>{cell(number)}</td>' for cell in columns.values()) if button else ''
    rows += f'<tr><th scope="row">{button}</th>{cells}</tr>' if button else ''
  return (
    '<div class="wide" tabindex="0"><table class="development"><thead><tr>'
    f'<th scope="col">photo</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
  )


def colours(facts: Facts, looks: Development, point: int, number: int) -> str:
  """The patches of a photo as colours."""
  uri = html.data_uri(looks.colours[point, number])
  name = name_of(facts, looks, number)
  return f'<img class="pixels" src="{uri}" alt="patches of {name} at step {looks.steps[point]}">'


def visible(facts: Facts, looks: Development, number: int) -> str:
  """What is visible of a photo."""
  assert looks.masked is not None
  uri = photo(looks.masked[number])
  return f'<img src="{uri}" alt="visible patches of {name_of(facts, looks, number)}">'


def filled(facts: Facts, looks: Development, point: int, number: int) -> str:
  """A photo with its hidden patches filled in."""
  assert looks.reconstructed is not None
  uri, name = photo(looks.reconstructed[point, number]), name_of(facts, looks, number)
  return f'<img src="{uri}" alt="{name} filled in at step {looks.steps[point]}">'


def name_of(facts: Facts, looks: Development, number: int) -> str:
  """The name of a photo, as HTML has it."""
  return html.escape(facts.photos.names[int(looks.photos[number])])


def similar(facts: Facts, looks: Development, point: int, number: int) -> str:
  """The neighbours of a photo, the most similar first."""
  rows = looks.nearest[point, number].tolist()
  words = f'at step {looks.steps[point]:,}, by similarity'
  return ''.join(
    thumbnail(facts.photos, row, f'neighbour {place} {words}') for place, row in enumerate(rows, 1)
  )
