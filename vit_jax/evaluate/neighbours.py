"""What images with like features say of an image: which class it looks like, and how typical it is.

N images, F features of one, K classes.
"""

import numpy as np

from vit_jax.evaluate import knn

LARGEST = 10_000  # images that are compared with one another: 3 s of two cores for F = 768
VOTES = 5  # neighbours that vote, fewer than most classes have images
ROWS = 1024  # images that are compared at a time


def columns(features: np.ndarray, labels: np.ndarray, count: int) -> dict[str, np.ndarray]:
  """'neighbour' and 'typical' (N,) of images, see `results.image_columns`.

  Args:
    features: (N, F), N at least 2.
    labels: (N,) in [0, K).
    count: K.
  """
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  unit = features / np.maximum(lengths, 1e-12)  # (N, F)
  parts = [votes(unit, start, labels, count) for start in range(0, len(unit), ROWS)]
  means = np.zeros((count, unit.shape[1]))
  np.add.at(means, labels, unit)
  means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)  # (K, F)
  return {'neighbour': np.concatenate(parts), 'typical': (unit * means[labels]).sum(1)}


def votes(unit: np.ndarray, start: int, labels: np.ndarray, count: int) -> np.ndarray:
  """The class that the nearest others of images from `start` on have, ROWS at most: (n,)."""
  similarity = unit[start : start + ROWS] @ unit.T  # (n, N)
  rows = np.arange(len(similarity))[:, None]
  similarity[rows[:, 0], start + rows[:, 0]] = -np.inf  # an image does not vote for itself
  nearest = np.argpartition(-similarity, min(VOTES, len(unit) - 1) - 1, axis=1)[:, :VOTES]
  nearest = nearest[:, : len(unit) - 1]
  weights = np.exp((np.float64(similarity[rows, nearest]) - 1) / knn.TEMPERATURE)
  return knn.winners(labels[nearest], weights, count)
