"""Photos of a report: which images of an evaluation it shows, and their files within a size.

N images that were measured, K classes. An image is told by its row, its number among the N.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from vit_jax import sources
from vit_jax.images import transforms
from vit_jax.images.decoding import displayed
from vit_jax.text import without_folders
from vit_jax.views import html

LARGEST = 1500  # photos of a page
BYTES = 4_500_000  # of their files, so that a page of 1,000 classes stays below 8 MB
SIDES = ((160, 320), (500, 128), (LARGEST, 80))  # up to so many photos, pixels of the longer side
QUALITY = 85  # of a JPEG
SMALL = 64  # pixels of a side, below which a photo is a PNG: its pixels are what is looked at
OF_CELL = 6  # photos of one cell of the confusion matrix
SUSPECTS = 12  # images whose label is likely wrong


@dataclasses.dataclass(frozen=True)
class Images:
  """'images' of an evaluation as arrays (N,), see `results.image_columns`.

  Fields:
    names: (K,) of the classes.
    neighbour, typical: None where no features were held.
  """

  names: tuple[str, ...]
  index: np.ndarray
  label: np.ndarray
  guess: np.ndarray
  right: np.ndarray
  confidence: np.ndarray
  loss: np.ndarray
  neighbour: np.ndarray | None = None
  typical: np.ndarray | None = None

  @classmethod
  def of(cls, values: Mapping[str, Any]) -> Self | None:
    """Those of an evaluation; None of one that has none."""
    if not values.get('images') or not values.get('classes'):
      return None
    columns = {name: np.array(column) for name, column in values['images'].items()}
    for name in ('confidence', 'loss'):  # None is not finite
      columns[name] = np.nan_to_num(columns[name].astype(float), nan=0.0)
    return cls(tuple(row['name'] for row in values['classes']), **columns)

  def surest(self, rows: np.ndarray) -> np.ndarray:
    """Rows by their confidence, the highest first."""
    return rows[np.argsort(-self.confidence[rows], kind='stable')]

  def of_class(self, label: int) -> dict[str, int]:
    """Rows of a class by what they show: the 'right' and 'wrong' that were surest, a 'typical' one.

    Typical is the image whose features are the most like the mean of its class; without features,
    the one of median confidence.
    """
    rows = self.surest(np.flatnonzero(self.label == label))
    shown = {}
    for name, value in (('right', 1), ('wrong', 0)):
      if len(chosen := rows[self.right[rows] == value]):
        shown[name] = int(chosen[0])
    if len(rows):
      typical = rows[len(rows) // 2] if self.typical is None else rows[self.typical[rows].argmax()]
      shown['typical'] = int(typical)
    return shown

  def cells(self) -> dict[tuple[int, int], list[int]]:
    """The rows of each cell of the confusion matrix that has any, the surest first."""
    cells = collections.defaultdict[tuple[int, int], list[int]](list)
    for row in self.surest(np.flatnonzero(self.label >= 0)).tolist():
      cells[int(self.label[row]), int(self.guess[row])].append(row)
    return cells

  def suspects(self) -> list[int]:
    """Rows whose label is likely wrong, the highest loss first, `SUSPECTS` at most.

    The model takes it for another class, of which the images most like it are, too; without
    features, it is at least by half sure of that.
    """
    is_wrong = (self.right == 0) & (self.label >= 0)
    is_suspect = is_wrong & (
      self.confidence >= 0.5 if self.neighbour is None else self.neighbour == self.guess
    )
    rows = np.flatnonzero(is_suspect)
    return rows[np.argsort(-self.loss[rows], kind='stable')][:SUSPECTS].tolist()

  def by_recall(self) -> list[int]:
    """The classes that have images, the lowest recall first."""
    present = self.label >= 0
    counts = np.bincount(self.label[present], minlength=len(self.names))
    right = np.bincount(self.label[present], self.right[present], minlength=len(self.names))
    order = np.argsort(right / np.maximum(counts, 1), kind='stable')
    return [int(label) for label in order if counts[label]]

  def chosen(self) -> Iterator[int]:
    """Rows in the order in which they are worth a photo; some come twice."""
    yield from self.suspects()
    for label in self.by_recall():
      yield from self.of_class(label).values()
    cells = sorted(self.cells().items(), key=lambda item: (item[0][0] == item[0][1], -len(item[1])))
    for place in range(OF_CELL):
      yield from (rows[place] for _, rows in cells if place < len(rows))


@dataclasses.dataclass(frozen=True)
class Photos:
  """The photos of a page.

  Fields:
    uris: by row, the file as a `data:` URL.
    names: by row, what the data set calls the image, without the folders that it lies in.
  """

  uris: Mapping[int, str] = dataclasses.field(default_factory=dict)
  names: Mapping[int, str] = dataclasses.field(default_factory=dict)


def read(
  images: Images,
  source: sources.Source,
  transform: transforms.Transform,
  *,
  limit: int = LARGEST,
  root: str = '',
) -> Photos:
  """The photos that are worth most, as the model takes them, in `BYTES` at most.

  Args:
    images: of an evaluation.
    source: the split that it is of.
    transform: of its images.
    limit: how many.
    root: the folder of the data, which names need not tell.

  Raises:
    ValueError: if the split has fewer images.
  """
  rows = [*dict.fromkeys(images.chosen())][:limit]
  if images.index.max(initial=-1) >= len(source):
    raise ValueError(f'the split has {len(source):,} images now, fewer than were measured')

  def pixels(row: int) -> np.ndarray:
    return transform(source[int(images.index[row])]['image'], np.random.default_rng(0))

  return within_size(
    rows, pixels, lambda row: without_folders(source.describe(int(images.index[row])), root)
  )


def within_size(
  rows: Sequence[int], pixels: Callable[[int], np.ndarray], name: Callable[[int], str]
) -> Photos:
  """The photos of rows, the first of them in `BYTES` at most, by what gives their pixels and names.

  The more there are, the smaller each is.
  """
  side = next(side for count, side in SIDES if len(rows) <= count or count == LARGEST)
  uris: dict[int, str] = {}
  size = 0
  for row in rows:
    uri = photo(pixels(row), side)
    size += len(uri)
    if size > BYTES:
      break
    uris[row] = uri
  return Photos(uris, {row: name(row) for row in uris})


def photo(image: np.ndarray, side: int = 512, quality: int = QUALITY) -> str:
  """(H, W, C) uint8 as the address of a JPEG of so many pixels at most, a small one of a PNG."""
  from PIL import Image

  picture = Image.fromarray(displayed(image))
  picture.thumbnail((side, side))
  if min(image.shape[:2]) < SMALL:
    return html.data_uri(picture)
  return html.data_uri(picture, 'JPEG', quality=quality)


def style(photos: Photos) -> str:
  """The rules by which an element of class 'p7' shows the photo of row 7, each file once."""
  return ''.join(f'.p{row}{{--photo:url({uri})}}\n' for row, uri in photos.uris.items())


def thumbnail(photos: Photos, row: int, caption: str) -> str:
  """A button that shows a photo and enlarges it; '' where the page has no such photo."""
  if row not in photos.uris:
    return ''
  name = html.escape(photos.names[row])
  label = html.escape(caption)
  return (
    f'<button type="button" class="photo p{row}" aria-label="{label}: {name}" '
    f'data-name="{name}" data-caption="{label}"></button>'
  )


def gallery(photos: Photos, rows: Iterable[int], captions: Mapping[int, str]) -> str:
  """Photos side by side, each with its caption."""
  shown = [row for row in rows if row in photos.uris]
  return ''.join(
    f'<figure>{thumbnail(photos, row, captions[row])}'
    f'<figcaption>{html.escape(captions[row])}</figcaption></figure>'
    for row in shown
  )
