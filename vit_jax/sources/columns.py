"""The columns of a batch: what each array holds, and how a record of a source fills it.

H, W pixels, C channels, L labels. Worker processes import this too.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from vit_jax.images import transforms
from vit_jax.images.decoding import Encoded, Image, Shared, decode_lazily
from vit_jax.sources import Record, Source, classes
from vit_jax.text import reason

Fill = Callable[[Record, Any], ArrayLike]  # (record, NumPy generator or None) -> array
TRIES = 100  # records in a row that cannot be read, after which the whole set counts as gone


@dataclasses.dataclass(frozen=True)
class Column:
  """One array of every example, of one shape and type.

  Fields:
    shape: of an example's; a batch of B has (B, *shape).
    dtype: of NumPy.
    fill: (record, rng) -> an array of that shape. The record is a dict of this example, in which
      columns may keep what they share. BadImage and OSError mean that the record cannot
      be read, another ValueError that it does not fit.
    view: which random stream of an example `fill` draws from; None draws nothing, and gets no
      generator. A stream depends on (seed, epoch, index, repeat, view) alone: columns of one view
      draw alike, as an image and its mask have to, others independently, as two crops of an image.
    empty: the value in the place of a record that cannot be read, where none is substituted.
  """

  shape: tuple[int, ...]
  dtype: DTypeLike
  fill: Fill
  view: int | None = None
  empty: ArrayLike = 0


Columns = Mapping[str, Column]
SHARED = 'image, decoded'  # a record's image as `shared_image` has it
RESERVED = ('mask', 'unreadable')  # what a batch has beside its columns


def check_names(columns: Columns) -> None:
  """Raises ValueError for a column that would hide what every batch has."""
  for name in columns:
    if name in RESERVED:
      raise ValueError(f'a column is named {name!r}, which every batch has of its own')


def stored_image(record: Record, channels: int) -> bytes | Image:
  """A record's image as its source has it."""
  image: bytes | Image = record['image']
  return image


def shared_image(record: Record, channels: int) -> Encoded | Image:
  """A record's image for several columns: the record keeps what is decoded of it."""
  if SHARED not in record:
    image = record['image']
    if isinstance(image, bytes):
      image = decode_lazily(image, channels, encoded=Shared)
    record[SHARED] = image
  image = record[SHARED]
  return image


def image(
  transform: transforms.Transform,
  *,
  view: int = 0,
  read: Callable[[Record, int], bytes | Encoded | Image] = stored_image,
) -> Column:
  """The column of a record's 'image', transformed: uint8 (H, W, C) as the transform gives."""

  def fill(record: Record, rng: np.random.Generator) -> np.ndarray:
    pixels = transform(read(record, transform.channels), rng)
    if pixels.shape[:2] != transform.size:
      size, wanted = ('{}x{}'.format(*sides) for sides in (pixels.shape[:2], transform.size))
      raise ValueError(f'the transforms give {size} pixels, not {wanted}')
    return pixels

  return Column((*transform.size, transform.channels), np.uint8, fill, view)


def shared_images(views: Mapping[str, transforms.Transform]) -> dict[str, Column]:
  """The columns of several transforms of a record's 'image', which they decode once.

  The k-th is that of `image` with view k, to the pixel.
  """
  return {
    name: image(transform, view=view, read=shared_image)
    for view, (name, transform) in enumerate(views.items())
  }


def label(num_classes: int, *, shape: tuple[int, ...] = ()) -> Column:
  """The column of a record's 'label', int32: () or (L,), negative as `sources.classes` has it.

  A record without one has -1. Another label is a ValueError.
  """
  lowest = classes.UNKNOWN if shape else -1

  def fill(record: Record, _: None) -> np.ndarray:
    labels = np.asarray(record.get('label', -1))
    if labels.size and (labels.max() >= num_classes or labels.min() < lowest):
      wrong = next(n for n in labels.ravel() if not lowest <= n < num_classes)
      raise ValueError(f'label {wrong} is none of {num_classes} classes')
    return labels

  return Column(shape, np.int32, fill, empty=-1)


def labelled_images(source: Source, transform: transforms.Transform) -> dict[str, Column]:
  """The columns of a classifier: 'image' uint8 (H, W, C), and 'label' int32 () or (L,)."""
  shape = label_shape(source)
  return {'image': image(transform), 'label': label(len(source.classes), shape=shape)}


def first_image(source: Source, channels: int = 3) -> np.ndarray:
  """The pixels (H, W, C) of the first image that can be read, of the first TRIES.

  Raises:
    ValueError: if none can, or the first has another number of channels.
  """
  problem = ''
  for index in range(min(len(source), TRIES)):
    try:
      return transforms.as_pixels(source[index]['image'], channels)
    except (transforms.BadImage, OSError) as error:
      problem = problem or f'{source.describe(index)}: {reason(error)}'
  raise ValueError(f'none of the first {TRIES} images can be read; {problem}')


def label_shape(source: Source) -> tuple[int, ...]:
  """() or, multi-label, (L,): the shape of the first label that can be read."""
  for index in range(min(len(source), TRIES)):
    with contextlib.suppress(OSError):
      return np.shape(source[index].get('label', -1))
  return ()
