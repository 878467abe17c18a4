"""What the images of a data set are: sizes, labels, what cannot be read, what is there twice.

N images, K classes.
"""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vit_jax.images import decoding
from vit_jax.sources import Source
from vit_jax.text import reason

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
  error: str = ''


@dataclasses.dataclass
class Survey:
  """What the images of a split are, as they are added.

  Fields:
    source: the split.
    sides: (N, 2) height and width; 0 for an image that cannot be read.
    digests: (N,) uint64 hashes of the bytes as they are stored, pixels where there is no file; two
      different images among 14 million share one with a probability of 5e-6.
    per_class: (K,) how many images have a label.
    size: bytes of all images, as they are stored.
    unlabelled: images without any label among the classes.
    errors: by index, why an image cannot be read.
  """

  source: Source
  sides: np.ndarray
  digests: np.ndarray
  per_class: np.ndarray
  size: int = 0
  unlabelled: int = 0
  errors: dict[int, str] = dataclasses.field(default_factory=dict)

  @property
  def readable(self) -> np.ndarray:
    """Indices of the images that can be read."""
    return np.flatnonzero(self.sides[:, 0])

  def add(self, index: int, image: ImageFacts) -> None:
    self.size += image.size
    labels = image.labels[(image.labels >= 0) & (image.labels < len(self.per_class))]
    self.per_class[labels] += 1
    if image.error:
      self.errors[index] = image.error
    else:
      self.unlabelled += not len(labels)
      self.sides[index], self.digests[index] = (image.height, image.width), image.digest


def survey_split(source: Source, *, threads: int, advance: Callable[[int], object]) -> Survey:
  """Reads and decodes every image of a split once; `advance` takes how many more are done."""
  count = len(source)
  survey = Survey(
    source,
    np.zeros((count, 2), np.int32),
    np.zeros(count, np.uint64),
    np.zeros(len(source.classes), np.int64),
  )
  chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]

  def read_chunk(indices: range) -> list[ImageFacts]:
    return [read_image(source, index) for index in indices]

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


def read_image(source: Source, index: int) -> ImageFacts:
  """What reading and decoding an image tells of it."""
  labels, size = np.zeros(0, np.int64), 0
  try:
    record = source[index]
    labels = np.atleast_1d(record['label'])
    image = record['image']
    size = image.nbytes if isinstance(image, np.ndarray) else len(image)
    height, width = decoding.as_pixels(image).shape[:2]
  except (decoding.BadImage, OSError) as error:
    return ImageFacts(labels, size, error=reason(error))
  return ImageFacts(labels, size, height, width, digest(image))


def digest(image: bytes | np.ndarray) -> int:
  """Equal for equal files, and for equal pixels of images that have no file."""
  if isinstance(image, np.ndarray):
    image = repr(image.shape).encode() + image.tobytes()
  return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), 'little')


def duplicates(surveys: Mapping[str, Survey]) -> list[list[tuple[str, int]]]:
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


def report(name: str, surveys: Mapping[str, Survey]) -> dict[str, Any]:
  """All of a data set's surveys, as JSON has it."""
  groups = duplicates(surveys)
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
    'passed_over': [dataclasses.asdict(item) for item in source.passed_over],
    'splits': {split: summarize(survey) for split, survey in surveys.items()},
    'duplicates': {
      'within': dict(within),
      'between': [{'splits': list(pair), 'images': n} for pair, n in between.items()],
      'groups': [
        [{'split': split, 'image': surveys[split].source.describe(i)} for split, i in group]
        for group in groups
      ],
    },
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
    'per_class': counts.tolist(),
    'largest': classes[int(counts.argmax())],
    'smallest': classes[int(counts.argmin())],
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
  """Whether a report has unreadable images, or the same ones in two splits."""
  unreadable = any(split['unreadable'] for split in report['splits'].values())
  return unreadable or bool(report['duplicates']['between'])
