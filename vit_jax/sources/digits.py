"""'digits': the small images that scikit-learn ships, split once and for all."""

import functools
import importlib.util
import pathlib

import numpy as np

from vit_jax.sources import Source, Splits
from vit_jax.sources.arrays import Pixels
from vit_jax.sources.classes import numbered


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
  """(1797, 8, 8, 3) uint8 and (1797,) int32; the 17 grey levels are spread over 0..255."""
  if file().is_file():
    rows = np.loadtxt(file(), delimiter=',')  # (1797, 64 + 1)
    pixels, labels = rows[:, :-1], rows[:, -1]
  else:  # it lies elsewhere in another version
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
  grey = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
  return np.repeat(grey[..., None], 3, axis=-1), labels.astype(np.int32)


def file() -> pathlib.Path:
  """Where scikit-learn (1.9) has them; it is not imported, which takes 0.8 s."""
  spec = importlib.util.find_spec('sklearn')
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError("'digits' are scikit-learn's: pip install scikit-learn")
  return pathlib.Path(spec.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'


def splits(kind: str, name: str) -> Splits:
  """Alpaydin & Kaynak's digits (UCI, 1998), split once and for all by a fixed seed.

  The order does not depend on a run's seed, so that test images stay test images.
  """
  images, labels = digits()
  shuffled = np.random.Generator(np.random.Philox(20)).permutation(len(labels))
  test, validation = len(labels) // 5, len(labels) // 10
  spans = {
    'train': (test + validation, len(labels)),
    'validation': (test, test + validation),
    'test': (0, test),
  }

  def open_split(begin: int, end: int) -> Source:
    indices = shuffled[begin:end]
    return Source(Pixels(images[indices], labels[indices]), numbered(10))

  return {split: functools.partial(open_split, *span) for split, span in spans.items()}
