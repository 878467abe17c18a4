"""Images that a run's data has more than once: in two splits, or in two classes."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax import sources
from vit_jax.images import transforms
from vit_jax.sources import survey
from vit_jax.text import without_folders
from vit_jax.views import photos

LARGEST = 10_000  # images that are looked at: about 20 s of photographs
PAIRS = 12  # of each kind that are shown
SIDE, THREADS = 96, 4  # pixels of a photo; of the survey


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two images that are the same picture.

  Fields:
    names: what the data set calls them, each with its split and its classes.
    uris: their photos.
  """

  names: tuple[str, ...]
  uris: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Repeats:
  """What there is more than once.

  Fields:
    conflicts, equal, near: pairs of the same picture in two classes; in two splits, and nearly the
      same there; PAIRS at most.
    counts: how many there are, by these names.
    looked_at, images: how many images of each split were looked at, and how many there are.
  """

  conflicts: list[Pair]
  equal: list[Pair]
  near: list[Pair]
  counts: Mapping[str, int]
  looked_at: Mapping[str, int]
  images: Mapping[str, int]


def read(
  splits: Mapping[str, sources.Source],
  transform: transforms.Transform,
  *,
  channels: int = 3,
  root: str = '',
) -> Repeats:
  """Looks at the images of some splits, of more than LARGEST at a sample of these.

  Args:
    splits: by their use, such as 'train'.
    transform: of the photos.
    channels: of the images.
    root: the folder of the data, which names need not tell.
  """
  images = {use: len(source) for use, source in splits.items()}
  splits = sample(splits)
  surveys = {
    use: survey.survey_split(source, threads=THREADS, advance=lambda _: None, channels=channels)
    for use, source in splits.items()
  }
  groups = survey.duplicates(surveys)
  across = [group for group in groups if len({use for use, _ in group}) > 1]
  kinds: dict[str, Sequence[Sequence[survey.Place]]] = {
    'conflicts': survey.conflicts(surveys, groups),
    'equal': across,
    'near': survey.near_duplicates(surveys),
  }

  def pair(kind: str, group: Sequence[survey.Place]) -> Pair:
    def aspect(place: survey.Place) -> object:  # in which the two shown differ
      return surveys[place[0]].classes_of(place[1]) if kind == 'conflicts' else place[0]

    places = group[0], next(place for place in group if aspect(place) != aspect(group[0]))
    return Pair(
      tuple(described(surveys[use], use, index, root) for use, index in places),
      tuple(small_photo(splits[use], index, transform) for use, index in places),
    )

  shown = {kind: [pair(kind, group) for group in rows[:PAIRS]] for kind, rows in kinds.items()}
  counts = {kind: len(rows) for kind, rows in kinds.items()}
  looked_at = {use: len(source) for use, source in splits.items()}
  return Repeats(**shown, counts=counts, looked_at=looked_at, images=images)


def sample(splits: Mapping[str, sources.Source]) -> dict[str, sources.Source]:
  """Splits of LARGEST images in all: the small ones whole, of the others as many, evenly over each.

  The chance that both of a pair in two splits are looked at is the product of their fractions, so
  that whole small splits show the most.
  """
  limits, free = dict[str, int](), LARGEST
  for count, use in sorted((len(source), use) for use, source in splits.items()):
    limits[use] = min(count, free // (len(splits) - len(limits)))
    free -= limits[use]
  return {use: evenly(source, limits[use]) for use, source in splits.items()}


def evenly(source: sources.Source, count: int) -> sources.Source:
  """So many images of a split, or all."""
  if count == len(source):
    return source
  return source.subset(np.linspace(0, len(source) - 1, count).astype(int))


def described(split: survey.Survey, use: str, index: int, root: str) -> str:
  """What an image is called, with its split and its classes."""
  classes = ', '.join(split.classes_of(index)) or 'no class'
  return f'{without_folders(split.source.describe(index), root)} ({use}, {classes})'


def small_photo(source: sources.Source, index: int, transform: transforms.Transform) -> str:
  """The photo of an image that can be read."""
  return photos.photo(transform(source[index]['image'], np.random.default_rng(0)), SIDE)
