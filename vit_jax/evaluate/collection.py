"""A collection of images that is searched by features: selections of what is alike, odd, diverse.

N images that could be read.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vit_jax.evaluate import curation, inputs, neighbours
from vit_jax.evaluate.features import Features
from vit_jax.sources import Record, survey
from vit_jax.text import quantity

LISTED = 10_000  # groups of a selection: more are counted
COLUMNS = ('list', 'group', 'rank', 'image', 'similarity', 'label', 'suggestion')


@dataclasses.dataclass(frozen=True)
class Item:
  """An image of a selection.

  Fields:
    row: of the image among those of the collection; of a query N and its row among the queries.
    name: as messages have it.
    similarity: a cosine, as the selection says of what; None without.
    label: the names of its classes.
    suggestion: the class that its neighbours vote for.
  """

  row: int
  name: str
  similarity: float | None = None
  label: str = ''
  suggestion: str = ''


@dataclasses.dataclass(frozen=True)
class Selection:
  """Images that are listed for one reason.

  Fields:
    name: of the selection, such as 'duplicates'.
    sentence: what is listed.
    groups: of images that belong together, each with its title, which may be ''.
  """

  name: str
  sentence: str
  groups: Sequence[tuple[str, Sequence[Item]]]

  def rows(self) -> Iterator[tuple[object, ...]]:
    """A row of COLUMNS for each image; of a query the rank is 0."""
    for number, (_, items) in enumerate(self.groups, 1):
      for rank, item in enumerate(items, 1 - (self.name == 'neighbours')):
        similarity = '' if item.similarity is None else round(item.similarity, 6)
        yield self.name, number, rank, item.name, similarity, item.label, item.suggestion


@dataclasses.dataclass(frozen=True)
class Collection:
  """Images and their features.

  Fields:
    split: the images.
    features: of those that could be read.
    k: nearest others that are compared with each.
    channels: of the images from files.
    advance: takes how many more images are compared.
  """

  split: inputs.Split
  features: Features
  k: int
  channels: int = 3
  advance: Callable[[int], object] = lambda count: None

  @functools.cached_property
  def nearest(self) -> neighbours.Nearest:
    """The k nearest others of each image."""
    return neighbours.nearest_others(self.features.values, k=self.k, advance=self.advance)

  def item(self, row: int, similarity: float | None = None, suggestion: str = '') -> Item:
    """The image of a row."""
    labels = np.atleast_1d(self.features.labels[row])
    label = ', '.join(self.features.classes[label] for label in labels.tolist() if label >= 0)
    name = self.split.source.describe(int(self.features.indices[row]))
    return Item(row, name, similarity, label, suggestion)

  def items(self, rows: Iterable[int], similarities: Iterable[float]) -> list[Item]:
    return [self.item(int(row), float(value)) for row, value in zip(rows, similarities)]

  def record(self, row: int) -> Record:
    """The record that the image of a row is read from."""
    return self.split.source[int(self.features.indices[row])]

  def unreadable(self) -> list[str]:
    """The names of images that could not be read."""
    rows = np.setdiff1d(np.arange(len(self.split.source)), self.features.indices)
    return [self.split.source.describe(int(row)) for row in rows]

  def neighbours(self, queries: 'Collection') -> Selection:
    """The nearest images of each query, which comes first in its group."""
    nearest = neighbours.nearest(self.features.values, queries.features.values, k=self.k)
    groups = []
    for row, (rows, similarities) in enumerate(zip(nearest.index, nearest.similarity)):
      name = queries.item(row).name
      query = Item(len(self.features) + row, name)
      groups.append((name, [query, *self.items(rows, similarities)]))
    sentence = (
      f'The {self.k} most like {quantity(len(groups), "image")}, by the cosine of features.'
    )
    return Selection('neighbours', sentence, groups)

  @functools.cached_property
  def twins(self) -> list[list[int]]:
    """The groups of rows whose pixels are the same."""
    rows = curation.with_twin(self.nearest)
    source = self.split.source.subset(self.features.indices[rows])
    threads = os.cpu_count() or 1
    surveyed = survey.survey_split(
      source, threads=threads, advance=lambda count: None, channels=self.channels
    )
    groups = survey.duplicates({'': surveyed}) if len(rows) else []
    return [[int(rows[index]) for _, index in group] for group in groups]

  def duplicates(self) -> Selection:
    """Groups of images with the same pixels."""
    groups = [
      (self.kind_of_twins(rows), [self.item(row) for row in rows]) for rows in self.twins[:LISTED]
    ]
    extra = sum(map(len, self.twins)) - len(self.twins)
    sentence = f'{quantity(len(self.twins), "group")} of images with the same pixels: without '
    sentence += f'duplicates the collection has {quantity(extra, "image")} fewer.'
    return Selection('duplicates', sentence if groups else 'No two have the same pixels.', groups)

  def kind_of_twins(self, rows: Sequence[int]) -> str:
    """Whether images of the same pixels are the same file, too."""

    def file_digest(row: int) -> bytes:
      image = self.record(row)['image']
      return hashlib.blake2b(image).digest() if isinstance(image, bytes) else b''

    digests = {file_digest(row) for row in rows}
    return 'same file' if len(digests) == 1 and b'' not in digests else 'same pixels'

  def near(self, threshold: float) -> Selection:
    """Pairs of images that are alike, but not the same pixels."""
    pairs = curation.similar_pairs(self.nearest, threshold)
    group_of = np.arange(len(self.features))  # a number that equal images share
    for rows in self.twins:
      group_of[rows] = rows[0]
    is_near = group_of[pairs.index[:, 0]] != group_of[pairs.index[:, 1]]
    index, similarity = pairs.index[is_near], pairs.similarity[is_near]
    groups = [
      ('', self.items(pair, (value, value)))
      for pair, value in zip(index[:LISTED], similarity[:LISTED].tolist())
    ]
    sentence = f'{quantity(len(index), "pair")} of a cosine of at least {threshold:g} among the '
    sentence += f'{self.k} nearest of each image, the likest first.'
    if len(np.unique(index)) > len(self.features) / 2:
      sentence += ' That is most of the images: this model hardly tells them apart, see --near.'
    return Selection('near', sentence, groups)

  def outliers(self, count: int) -> Selection:
    """The images that are least like their nearest others."""
    order, typical = curation.outliers(self.nearest)
    items = self.items(order[:count], typical[:count])
    sentence = f'The lowest mean cosine with the {self.k} nearest others; the median image has '
    sentence += f'{np.median(typical):.3f}.'
    return Selection('outliers', sentence, [('', items)])

  def labels(self) -> Selection | None:
    """Images whose neighbours vote for another class; None without one label for each."""
    labels = self.features.labels
    if labels.ndim > 1 or not (labels >= 0).any():
      return None
    doubts = curation.label_doubts(self.nearest, labels, len(self.features.classes))
    items = [
      self.item(int(row), float(votes[0] - votes[1]), self.features.classes[suggestion])
      for row, suggestion, votes in zip(doubts.index, doubts.suggestion, doubts.votes)
    ]
    sentence = f'{quantity(len(items), "image")} for whose class the {self.k} nearest others vote '
    sentence += 'less than for another, by the difference of their fractions of votes.'
    return Selection('labels', sentence, [('', items[:LISTED])])

  def diverse(self, count: int) -> Selection:
    """Images that lie far apart and cover the others."""
    rows, cosines = curation.diverse(self.features.values, count)
    sentence = f'{quantity(len(rows), "image")}, each the least like those before it; every image '
    sentence += f'has a cosine of at least {cosines[-1]:.3f} with one of them.'
    return Selection('diverse', sentence, [('', self.items(rows, cosines))])
