"""How an encoder develops: what it makes of the same photos, evaluation after evaluation.

P photos, k nearest neighbours of each, T points in time, R x C patches of an image, H x W pixels
of a small one.
"""

import dataclasses
import itertools
import os
import pathlib

import jax
import numpy as np

from vit_jax import analysis, bundle
from vit_jax.convert import weights
from vit_jax.evaluate import features, inputs, neighbours, reconstruct
from vit_jax.images.decoding import displayed

FILE = 'development.npz'  # in the folder of a run
PHOTOS = 8
NEIGHBOURS = 4  # of a photo
AMONG = 256  # images of the split that neighbours are among: as many features at each evaluation
POINTS = 10  # in time that are kept
SIDE = 96  # pixels of a picture: 2.3 MB of POINTS times PHOTOS, and 0.4 MB in a page, as JPEG


@dataclasses.dataclass(frozen=True)
class Development:
  """What was made of photos of a split, by their index in it.

  Fields:
    photos: (P,) int64.
    steps: (T,) int64, ascending.
    nearest: (T, P, k) int64, the images with the most similar features, the most similar first.
    colours: (T, P, R, C, 3) uint8, see `analysis.patch_colours`.
    masked: (P, H, W, 3) uint8, what is visible of the photos to a masked autoencoder, the same
      patches each time, SIDE pixels at most; None of any other model, as the next.
    reconstructed: (T, P, H, W, 3) uint8, with the hidden patches as its decoder filled them in.
  """

  photos: np.ndarray
  steps: np.ndarray
  nearest: np.ndarray
  colours: np.ndarray
  masked: np.ndarray | None = None
  reconstructed: np.ndarray | None = None


def look(run: bundle.Bundle, split: inputs.Split, step: int) -> Development:
  """What a model makes of photos now: of the split's, evenly over those that can be read.

  Raises:
    DataError, ValueError: where there are fewer than two images, or it has no features.
  """
  count = min(AMONG, len(split.source))
  among = dataclasses.replace(split, source=split.source.subset(range(count)))
  made = features.extract(run, among, say=lambda line: None)  # the evaluation has named them
  if len(made) < 2:
    raise ValueError('there are fewer than two images to look at')
  chosen = np.unique(np.linspace(0, len(made) - 1, PHOTOS).round().astype(int))
  nearest = neighbours.nearest_others(made.values, k=min(NEIGHBOURS, len(made) - 1))
  photos = made.indices[chosen]
  rng = np.random.default_rng(0)
  pixels = [run.preprocess.transform(split.source[int(i)]['image'], rng) for i in photos]
  placed = dataclasses.replace(run, params=jax.device_put(run.params))
  colours = analysis.patch_colours(analysis.patch_tokens(placed, pixels)).colours
  development = Development(
    photos.astype(np.int64),
    np.array([step], np.int64),
    made.indices[nearest.index[chosen]].astype(np.int64)[None],
    np.rint(255 * colours).astype(np.uint8)[None],
  )
  if run.decoder is None:
    return development
  pictures = reconstruct.reconstruct(placed, np.stack(pixels))
  return dataclasses.replace(
    development, masked=small(pictures.masked), reconstructed=small(pictures.pixels)[None]
  )


def small(images: np.ndarray) -> np.ndarray:
  """Images (N, H, W, C) as they are shown, (N, h, w, 3), SIDE pixels at most."""
  from PIL import Image

  pictures = [Image.fromarray(displayed(image)) for image in images]
  for picture in pictures:
    picture.thumbnail((SIDE, SIDE))
  return np.stack([np.asarray(picture) for picture in pictures])


def joined(before: Development | None, now: Development) -> Development:
  """What was made before a step, and at it; of more than POINTS those that are evenly spread."""
  if before is None or not are_alike(before, now):
    return now
  earlier = before.steps < now.steps[0]
  steps = np.concatenate([before.steps[earlier], now.steps])
  rows = np.arange(len(steps))
  while len(rows) > POINTS:
    spans = steps[rows][2:] - steps[rows][:-2]
    rows = np.delete(rows, spans.argmin() + 1)

  def chosen(earlier_values: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.concatenate([earlier_values[earlier], values])[rows]

  new = aligned(before.colours[earlier][-1], now.colours[0]) if earlier.any() else now.colours[0]
  reconstructed = now.reconstructed
  if before.reconstructed is not None and reconstructed is not None:
    reconstructed = chosen(before.reconstructed, reconstructed)
  return dataclasses.replace(
    now,
    steps=steps[rows],
    nearest=chosen(before.nearest, now.nearest),
    colours=chosen(before.colours, new[None]),
    reconstructed=reconstructed,
  )


def aligned(before: np.ndarray, now: np.ndarray) -> np.ndarray:
  """Colours (P, R, C, 3) with the channels, turned round or not, that are the most like `before`.

  Components that explain nearly the same change places, and any may change its sign.
  """
  rows = [np.float64(colours).reshape(-1, 3).T for colours in (before, now)]
  rows = [row - row.mean(1, keepdims=True) for row in rows]
  lengths = [np.maximum(np.linalg.norm(row, axis=1), 1e-9) for row in rows]
  likeness = rows[0] @ rows[1].T / np.outer(*lengths)  # (3, 3)
  order = max(itertools.permutations(range(3)), key=lambda o: abs(likeness[range(3), o]).sum())
  turns = likeness[range(3), order] < 0
  return np.where(turns, 255 - now[..., order], now[..., order])


def are_alike(before: Development, now: Development) -> bool:
  """Whether both are of the same photos, by as many neighbours, patches and pixels."""
  shapes = [
    [
      values.shape[1:]
      for values in (each.nearest, each.colours, each.reconstructed)
      if values is not None
    ]
    for each in (before, now)
  ]
  return np.array_equal(before.photos, now.photos) and shapes[0] == shapes[1]


def add(folder: str | os.PathLike[str], now: Development) -> None:
  """Adds a point in time to the file of a run; OSError if it cannot be written."""
  whole = joined(read(folder), now)
  arrays = {name: values for name, values in vars(whole).items() if values is not None}
  weights.write_npz(pathlib.Path(folder) / FILE, arrays)


def read(folder: str | os.PathLike[str]) -> Development | None:
  """What the file of a run says; None where it is missing or damaged."""
  try:
    arrays = weights.read(pathlib.Path(folder) / FILE)
    names = [field.name for field in dataclasses.fields(Development) if field.name in arrays]
    whole = Development(**{name: np.asarray(arrays[name]) for name in names})
  except (TypeError, OSError, ValueError):  # a TypeError: without one of the arrays
    return None
  return whole if is_sound(whole) else None


def is_sound(whole: Development) -> bool:
  """Whether arrays that were read fit together."""
  count, points = len(whole.photos), len(whole.steps)
  return (
    whole.photos.dtype == whole.steps.dtype == whole.nearest.dtype == np.int64
    and whole.colours.dtype == np.uint8
    and whole.photos.ndim == whole.steps.ndim == 1
    and points > 0
    and whole.nearest.shape[:2] == whole.colours.shape[:2] == (points, count)
    and (whole.nearest.ndim, whole.colours.ndim, whole.colours.shape[-1]) == (3, 5, 3)
    and bool((whole.photos >= 0).all() and (whole.nearest >= 0).all())
    and are_sound(whole.masked, whole.reconstructed, points)
  )


def are_sound(masked: np.ndarray | None, reconstructed: np.ndarray | None, points: int) -> bool:
  """Whether a masked autoencoder's pictures are of so many points in time, or both are none."""
  if masked is None or reconstructed is None:
    return masked is reconstructed
  return (
    masked.dtype == reconstructed.dtype == np.uint8
    and reconstructed.shape == (points, *masked.shape)
    and masked.ndim == 4
    and masked.shape[-1] == 3
  )
