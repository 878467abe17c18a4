"""What the images of a data set are: sizes, labels, levels, what cannot be read or comes twice.

N images, K classes.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vit_jax.images import decoding
from vit_jax.sources import Source, likeness, notes_about
from vit_jax.text import reason

MIN_CONTRAST = 64  # levels, a quarter of all; photographs have some 200
SAMPLES = 16  # images that tell how many levels a set has
CHUNK = 16  # images that a thread reads in one go, so that small ones cost little to hand over
T = TypeVar('T')
U = TypeVar('U')


class ImageFacts(NamedTuple):
  """What there is to know of an image; `error` is why it cannot be read, '' for one that can."""

  labels: np.ndarray
  size: int = 0
  height: int = 0
  width: int = 0
  digest: int = 0
  fingerprint: np.ndarray | None = None
  contrast: int = 0
  error: str = ''


@dataclasses.dataclass
class Survey:
  """What the images of a split are, as they are added.

  Fields:
    source: the split.
    sides: (N, 2) height and width; 0 for an image that cannot be read.
    digests: (N,) uint64 hashes of the pixels; two different images among 14 million share one with
      a probability of 5e-6.
    fingerprints: (N, likeness.SIZE) of the pictures.
    contrasts: (N,) levels from the darkest to the lightest value of an image.
    label_codes: (N,) the code in `label_sets` of all the labels of an image.
    label_sets: the code of each set of labels, sorted.
    per_class: (K,) how many images have a label.
    size: bytes of all images, as they are stored.
    unlabelled: images without any label among the classes.
    errors: by index, why an image cannot be read.
  """

  source: Source
  sides: np.ndarray = dataclasses.field(init=False)
  digests: np.ndarray = dataclasses.field(init=False)
  fingerprints: np.ndarray = dataclasses.field(init=False)
  contrasts: np.ndarray = dataclasses.field(init=False)
  label_codes: np.ndarray = dataclasses.field(init=False)
  per_class: np.ndarray = dataclasses.field(init=False)
  label_sets: dict[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
  size: int = 0
  unlabelled: int = 0
  errors: dict[int, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    count = len(self.source)
    self.sides, self.digests = np.zeros((count, 2), np.int32), np.zeros(count, np.uint64)
    self.fingerprints = np.zeros((count, likeness.SIZE), np.uint8)
    self.contrasts, self.label_codes = np.zeros(count, np.uint8), np.zeros(count, np.int32)
    self.per_class = np.zeros(len(self.source.classes), np.int64)

  @property
  def readable(self) -> np.ndarray:
    """Indices of the images that can be read."""
    return np.flatnonzero(self.sides[:, 0])

  def add(self, index: int, image: ImageFacts) -> None:
    self.size += image.size
    labels = image.labels[(image.labels >= 0) & (image.labels < len(self.per_class))]
    self.per_class[labels] += 1
    label_set = tuple(sorted(labels.tolist()))
    self.label_codes[index] = self.label_sets.setdefault(label_set, len(self.label_sets))
    if image.error:
      self.errors[index] = image.error
    else:
      self.unlabelled += not label_set
      self.sides[index], self.digests[index] = (image.height, image.width), image.digest
      self.fingerprints[index], self.contrasts[index] = image.fingerprint, image.contrast

  def classes_of(self, index: int) -> tuple[str, ...]:
    """The names of the classes of an image."""
    labels = list(self.label_sets)[self.label_codes[index]]
    return tuple(self.source.classes[label] for label in labels)


def survey_split(
  source: Source, *, threads: int, advance: Callable[[int], object], channels: int = 3
) -> Survey:
  """Reads and decodes every image of a split once, files to so many channels.

  `advance` takes how many more are done.
  """
  count = len(source)
  survey = Survey(source)
  chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]

  def read_chunk(indices: range) -> list[ImageFacts]:
    return [read_image(source, index, channels) for index in indices]

  with contextlib.closing(in_order(read_chunk, chunks, threads)) as results:
    for indices, images in zip(chunks, results):
      for index, image in zip(indices, images):
        survey.add(index, image)
      advance(len(indices))
  return survey


def in_order(
  function: Callable[[T], U], items: Iterable[T], threads: int
) -> Generator[U, None, None]:
  """function(item) of each item, by threads that are a few items ahead and no more."""
  ahead: collections.deque[Future[U]] = collections.deque()
  pool = ThreadPoolExecutor(threads)
  try:
    for item in items:
      ahead.append(pool.submit(function, item))
      if len(ahead) > 2 * threads:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def read_image(source: Source, index: int, channels: int = 3) -> ImageFacts:
  """What reading and decoding an image tells of it."""
  labels, size = np.zeros(0, np.int64), 0
  try:
    record = source[index]
    labels = np.atleast_1d(record.get('label', labels))
    image = record['image']
    size = image.nbytes if isinstance(image, np.ndarray) else len(image)
    pixels = decoding.as_pixels(image, channels)
    height, width = pixels.shape[:2]
  except (decoding.BadImage, OSError) as error:
    return ImageFacts(labels, size, error=reason(error))
  return ImageFacts(
    labels,
    size,
    height,
    width,
    digest(pixels),
    likeness.fingerprint(decoding.displayed(pixels)),
    contrast(pixels),
  )


def contrast(image: decoding.Image) -> int:
  """Levels from the darkest to the lightest value."""
  return int(image.max()) - int(image.min())


def contrast_warning(contrasts: Sequence[int] | np.ndarray) -> str:
  """A line where half of the images of a set have hardly any levels; '' elsewhere."""
  if not len(contrasts) or (median := int(np.median(contrasts))) >= MIN_CONTRAST:
    return ''
  return (
    f'images use {median} of 255 levels (median), so that they are hardly told apart: '
    'were they 10 to 14 bits in 16, or masks?'
  )


def sampled_contrasts(source: Source, channels: int = 3) -> list[int]:
  """The contrast of some images, evenly over all, of those that can be read."""
  contrasts = []
  for index in np.linspace(0, len(source) - 1, min(SAMPLES, len(source))).astype(int).tolist():
    with contextlib.suppress(ValueError, OSError):
      image = source[index].get('image')
      if isinstance(image, bytes):
        contrasts.append(contrast(decoding.decode(image, channels)))
      elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
        contrasts.append(contrast(image))
  return contrasts


def digest(image: decoding.Image) -> int:
  """Equal for equal pixels, in whatever file."""
  data = repr(image.shape).encode() + image.tobytes()
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little')


Place = tuple[str, int]  # a split and an index in it


def duplicates(surveys: Mapping[str, Survey]) -> list[list[Place]]:
  """The groups of images that are the same, each by (split, index)."""
  names = list(surveys)
  readable = [survey.readable for survey in surveys.values()]
  splits = np.repeat(np.arange(len(names)), [len(indices) for indices in readable])
  indices = np.concatenate(readable)
  digests = np.concatenate([s.digests[rows] for s, rows in zip(surveys.values(), readable)])
  order = np.argsort(digests, kind='stable')
  starts = np.concatenate([[0], np.flatnonzero(np.diff(digests[order])) + 1, [len(order)]])
  groups = []
  for first in np.flatnonzero(np.diff(starts) > 1):
    group = order[starts[first] : starts[first + 1]]
    groups.append([(names[splits[i]], int(indices[i])) for i in group])
  return sorted(groups, key=lambda group: (names.index(group[0][0]), group[0][1]))


def near_duplicates(surveys: Mapping[str, Survey]) -> list[tuple[Place, Place]]:
  """The images of a split that are near one of a split before, the first such; not equal ones."""
  pairs: dict[tuple[str, str, int], int] = {}
  for (a, one), (b, other) in itertools.combinations(surveys.items(), 2):
    is_equal = np.isin(other.digests, one.digests[one.readable])
    rows = one.readable, other.readable[~is_equal[other.readable]]
    near = likeness.near_pairs(one.fingerprints[rows[0]], other.fingerprints[rows[1]])
    for i, j in sorted(near.tolist()):
      pairs.setdefault((a, b, int(rows[1][j])), int(rows[0][i]))
  return [((a, i), (b, j)) for (a, b, j), i in pairs.items()]


def conflicts(
  surveys: Mapping[str, Survey], groups: Sequence[Sequence[Place]]
) -> list[list[Place]]:
  """The images with labels of each group of equal ones, where these are not all the same."""
  result = []
  for group in groups:
    labelled = [place for place in group if surveys[place[0]].classes_of(place[1])]
    if len({surveys[split].classes_of(index) for split, index in labelled}) > 1:
      result.append(labelled)
  return result


def report(name: str, surveys: Mapping[str, Survey]) -> dict[str, Any]:
  """All of a data set's surveys, as JSON has it."""
  groups, near = duplicates(surveys), near_duplicates(surveys)
  near_counts = collections.Counter((a, b) for (a, _), (b, _) in near)

  def described(place: Place) -> dict[str, Any]:
    split, index = place
    return {'split': split, 'image': surveys[split].source.describe(index)}

  within: collections.Counter[str] = collections.Counter()
  between: collections.Counter[tuple[str, str]] = collections.Counter()
  for group in groups:
    counts = collections.Counter(split for split, _ in group)
    within.update({split: count - 1 for split, count in counts.items() if count > 1})
    splits = list(counts)
    between.update({(a, b): counts[b] for i, a in enumerate(splits) for b in splits[i + 1 :]})
  source = next(iter(surveys.values())).source
  return {
    'source': name,
    'classes': list(source.classes),
    'notes': notes_about(source),
    'passed_over': [dataclasses.asdict(item) for item in source.passed_over],
    'splits': {split: summarize(survey) for split, survey in surveys.items()},
    'duplicates': {
      'within': dict(within),
      'between': [{'splits': list(pair), 'images': n} for pair, n in between.items()],
      'groups': [list(map(described, group)) for group in groups],
    },
    'near_duplicates': {
      'between': [{'splits': list(pair), 'images': n} for pair, n in near_counts.items()],
      'pairs': [list(map(described, pair)) for pair in near],
    },
    'conflicts': [
      [described(place) | {'classes': surveys[place[0]].classes_of(place[1])} for place in group]
      for group in conflicts(surveys, groups)
    ],
  }


def summarize(survey: Survey) -> dict[str, Any]:
  """One split, as JSON has it."""
  classes, counts = survey.source.classes, survey.per_class
  sides = survey.sides[survey.readable]
  return {
    'count': len(survey.source),
    'bytes': survey.size,
    'height': extent(sides[:, 0]),
    'width': extent(sides[:, 1]),
    'contrast': extent(survey.contrasts[survey.readable]),
    'warning': contrast_warning(survey.contrasts[survey.readable]),
    'per_class': counts.tolist(),
    'largest': classes[int(counts.argmax())] if classes else '',
    'smallest': classes[int(counts.argmin())] if classes else '',
    'empty': [name for name, count in zip(classes, counts) if not count],
    'unlabelled': int(survey.unlabelled),
    'unreadable': [
      {'image': survey.source.describe(index), 'reason': error}
      for index, error in sorted(survey.errors.items())
    ],
  }


def extent(sides: np.ndarray) -> dict[str, int] | None:
  """Smallest, median and largest number of pixels."""
  if not len(sides):
    return None
  return {'min': int(sides.min()), 'median': int(np.median(sides)), 'max': int(sides.max())}


def has_problems(report: Mapping[str, Any]) -> bool:
  """Whether a report has unreadable images, or the same ones in two splits or two classes."""
  unreadable = any(split['unreadable'] for split in report['splits'].values())
  return unreadable or bool(report['duplicates']['between'] or report['conflicts'])
