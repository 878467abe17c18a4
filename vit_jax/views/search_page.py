"""The page of `vit search`: thumbnails of what each selection has."""

import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.evaluate.collection import Collection, Item, Selection
from vit_jax.images import decoding
from vit_jax.text import quantity, without_folders
from vit_jax.views import html, photos
from vit_jax.views.html import escape

TITLES = {
  'neighbours': 'Nearest',
  'duplicates': 'Duplicates',
  'near': 'Near-duplicates',
  'outliers': 'Outliers',
  'labels': 'Labels to look at',
  'diverse': 'A diverse subset',
}
PAIR = '.pair .photo { width: 100%; height: auto; aspect-ratio: 1; }\n'
MEMBERS = 12  # images of a group that are shown, where there are several groups


def as_html(
  images: Collection, selections: Sequence[Selection], queries: Collection | None, *, count: int
) -> str:
  """One file that asks for no other, of `count` groups of each selection, or of its only group."""
  listed = {selection.name: shown_groups(selection, count) for selection in selections}
  items = {item.row: item for groups in listed.values() for _, group in groups for item in group}
  shown = photos.within_size(
    [*items][: photos.LARGEST],
    lambda row: pixels(images, queries, row),
    lambda row: without_folders(items[row].name),
  )
  sections = {
    TITLES[selection.name]: section(selection, listed[selection.name], shown)
    for selection in selections
  }
  name = pathlib.Path(images.split.name.partition(':')[2] or images.split.name).name
  return html.page(
    f'{quantity(len(images.features), "image")} of {name}',
    sections,
    style=PAIR + photos.style(shown),
    is_small=all(uri.startswith('data:image/png') for uri in shown.uris.values()),
  )


def shown_groups(selection: Selection, count: int) -> Sequence[tuple[str, Sequence[Item]]]:
  """The first groups of a selection, of each its first items; of an only group `count` items."""
  if len(selection.groups) == 1:
    extra = selection.name == 'neighbours'  # the query itself
    return [(title, items[: count + extra]) for title, items in selection.groups]
  return [(title, items[:MEMBERS]) for title, items in selection.groups[:count]]


def pixels(images: Collection, queries: Collection | None, row: int) -> np.ndarray:
  """The whole image of an item's row, not cut as the model takes it."""
  total = len(images.features)
  record = queries.record(row - total) if queries and row >= total else images.record(row)
  return decoding.as_pixels(record['image'], images.channels)


def section(
  selection: Selection, groups: Sequence[tuple[str, Sequence[Item]]], shown: photos.Photos
) -> str:
  """A selection's sentence, and its groups one after another."""
  are_pairs = all(len(items) == 2 for _, items in groups)
  body = ''.join(
    '<div>'
    + f'<h3>{escape(without_folders(title))}</h3>' * bool(title)
    + f'<div class="{"pair" if are_pairs else "strip"}">'
    + ''.join(figure(item, shown) for item in items)
    + '</div></div>'
    for title, items in groups
  )
  if are_pairs:  # several fit beside one another
    body = f'<div class="gallery">{body}</div>'
  count = sum(len(items) for _, items in selection.groups)
  count -= sum(len(items) for _, items in groups)
  more = f'<p class="faint">And {quantity(count, "image")} more.</p>' * bool(count)
  return f'<p>{escape(selection.sentence)}</p>{body}{more}'


def figure(item: Item, shown: photos.Photos) -> str:
  """An image with its cosine, its label and what its neighbours say."""
  parts = [
    without_folders(pathlib.PurePath(item.name).name),
    '' if item.similarity is None else f'{item.similarity:.4f}',
    item.label,
    f'rather {item.suggestion}?' * bool(item.suggestion),
  ]
  words = list(filter(None, parts))
  caption = ', '.join(words)
  lines = '<br>'.join(map(escape, words))
  picture = photos.thumbnail(shown, item.row, caption)
  return f'<figure>{picture}<figcaption>{lines}</figcaption></figure>'
