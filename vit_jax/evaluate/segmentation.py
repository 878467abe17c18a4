"""Linear segmentation: a linear layer on frozen patch tokens (DINOv2, arXiv 2304.07193, 7.4).

The layer gives logits of each patch, which are brought to the pixels bilinearly. It is fitted to
the fractions of classes in each patch: a convex problem with one solution, where DINOv2 descends
on the pixels. H, W pixels of a mask; R, C rows and columns of patches; D width; K classes; n
patches.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np

from vit_jax.convert import resample
from vit_jax.sources.masks import IGNORED

GRID = (1e-4, 1e-2, 1.0)  # of C, the inverse of the ridge
STEPS = 500  # of L-BFGS at most
BLOCK = 1 << 22  # logits of pixels that are held at a time


def cell_counts(mask: np.ndarray, grid: tuple[int, int], classes: int) -> np.ndarray:
  """(R, C, K) int64: how many pixels of a mask (H, W) each patch has of each class."""
  rows, columns = ((2 * np.arange(n) + 1) * cells // (2 * n) for n, cells in zip(mask.shape, grid))
  cells = rows[:, None] * grid[1] + columns  # (H, W) by the pixel's middle
  is_counted = mask != IGNORED
  counts = np.bincount(
    cells[is_counted] * classes + mask[is_counted], minlength=grid[0] * grid[1] * classes
  )
  return counts.reshape(*grid, classes)


@dataclasses.dataclass(frozen=True)
class Layer:
  """A linear layer on standardised tokens.

  Fields:
    mean, std: (D,) of the tokens.
    weights, bias: (D, K) and (K,); of a class that was never seen -inf.
  """

  mean: np.ndarray
  std: np.ndarray
  weights: np.ndarray
  bias: np.ndarray

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    """The logits (..., K) of tokens (..., D)."""
    return (tokens - self.mean) / self.std @ self.weights + self.bias


def fit(tokens: np.ndarray, counts: np.ndarray, c: float) -> Layer:
  """Multinomial logistic regression to the fractions of classes in patches.

  Args:
    tokens: (n, D) float32.
    counts: (n, K) pixels of each class; patches without any are left out.
    c: scikit-learn's C, the weight of the summed cross-entropy against |w|^2 / 2.

  Raises:
    ValueError: where all pixels are of one class.
  """
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  rows, labels = np.nonzero(counts)
  if len(present := np.unique(labels)) < 2:
    raise ValueError('the masks to learn from have one class: nothing to tell apart')
  mean = tokens.mean(0, dtype=np.float64).astype(np.float32)
  std = tokens.std(0, dtype=np.float64).astype(np.float32)
  std[std == 0] = 1
  fractions = counts[rows, labels] / counts.sum(1)[rows]
  model = LogisticRegression(C=c, max_iter=STEPS)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', ConvergenceWarning)  # it is as good as it is measured
    model.fit((tokens[rows] - mean) / std, labels, sample_weight=fractions)
  weights = np.zeros((tokens.shape[1], counts.shape[1]), np.float32)
  bias = np.full(counts.shape[1], -np.inf, np.float32)
  if len(present) == 2:  # one row, of the second against the first
    weights[:, present[1]], bias[present] = model.coef_[0], (0, model.intercept_[0])
  else:
    weights[:, present], bias[present] = model.coef_.T, model.intercept_
  return Layer(mean, std, weights, bias)


def fit_best(tokens: np.ndarray, counts: np.ndarray, held_out: np.ndarray) -> tuple[Layer, float]:
  """The layer of the C of GRID that is right on most held-out pixels by patch, of all, and its C.

  Args:
    tokens, counts: as of `fit`.
    held_out: (n,) which patches are held out to choose C; where there are none, the last C is.
  """
  if not held_out.any() or held_out.all():
    return fit(tokens, counts, GRID[-1]), GRID[-1]

  def right(c: float) -> float:
    winners = fit(tokens[~held_out], counts[~held_out], c)(tokens[held_out]).argmax(1)
    return float(np.take_along_axis(counts[held_out], winners[:, None], 1).sum())

  best = max(GRID, key=right)  # the first of equals
  return fit(tokens, counts, best), best


def segmented(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(H, W) int64: the class of each pixel, of logits (R, C, K) brought to the pixels bilinearly."""
  rows, columns, classes = logits.shape
  finite = np.nan_to_num(logits, neginf=-1e30)  # a weight of zero takes nothing of it
  down, across = (resample.matrix('bilinear', old, new) for old, new in zip((rows, columns), size))
  wide = np.einsum('xc,rck->rxk', across, finite)  # (R, W, K)
  step = max(BLOCK // (size[1] * classes), 1)
  parts = [
    np.tensordot(down[first : first + step], wide, 1).argmax(-1)
    for first in range(0, size[0], step)
  ]
  return np.concatenate(parts)


def confusion(mask: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
  """(K, K) int64 counts of pixels, by the class of the mask and that of the prediction."""
  is_counted = mask != IGNORED
  pairs = mask[is_counted] * classes + prediction[is_counted]
  return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def scores(counts: np.ndarray) -> dict[str, Any]:
  """'mean_iou', 'pixel_accuracy' and 'iou' of each class, of a confusion matrix (K, K).

  A class's intersection over union is that of all pixels of all images together; of a class that
  neither masks nor predictions have it is None, and no part of the mean.
  """
  hits = np.diag(counts)
  union = counts.sum(0) + counts.sum(1) - hits
  iou = [float(hit / total) if total else None for hit, total in zip(hits, union)]
  measured = [value for value in iou if value is not None]
  return {
    'mean_iou': float(np.mean(measured)) if measured else None,
    'pixel_accuracy': float(hits.sum() / counts.sum()) if counts.sum() else None,
    'iou': iou,
  }
