"""Measures of a classifier over a split: of sums over images, and of the ranks of their scores.

N images, K classes. A class that has no image and is never predicted has no F1 score, one that all
images have, or none, no AUROC: neither is part of a mean.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def from_sums(sums: Mapping[str, Any], *, multi_label: bool) -> dict[str, float | None]:
  """F1 scores and balanced accuracy, of `classify.measure`'s sums; None where it is 0 / 0.

  F1 is 2 hits / (predictions + labels). 'f1_micro' is that of all classes together, 'f1_macro' the
  mean over classes, 'f1_weighted' that by their images. 'balanced_accuracy' is the mean recall; of
  multi-label images it is the mean of recall and specificity, as each class is a task of its own.
  """
  keys = ('hits', 'predicted', 'labelled')
  hits, predicted, labelled = (np.asarray(sums[key], np.float64) for key in keys)
  count, doubled = float(sums['count']), predicted + labelled
  f1 = ratio(2 * hits, doubled)
  recall, balanced = ratio(hits, labelled), ratio(hits, labelled)
  if multi_label:
    negatives = count - labelled
    balanced = (recall + ratio(negatives - (predicted - hits), negatives)) / 2
  return {
    'f1_micro': mean(ratio(2 * hits.sum(), doubled.sum())),
    'f1_macro': mean(f1),
    'f1_weighted': mean(f1, labelled),
    'balanced_accuracy': mean(balanced),
  }


def from_ranks(
  rows: Mapping[str, np.ndarray], counts: np.ndarray, *, sigmoid: bool
) -> dict[str, float | None]:
  """'auroc', and of multi-label images 'mean_average_precision', of `classify.measure`'s rows.

  Each is the mean over classes, one against all others; None where no class has both, where a score
  is not finite, or where not all were held, of which `evaluate.loop` says how many can be.

  Args:
    rows: 'logits' (n, K), n images at most; their 'label' (N,), or multi-label 'targets' (n, K).
    counts: (N,) bool, which images count.
    sigmoid: whether scores are a sigmoid of the logits and not a softmax.
  """
  names = ['auroc'] + ['mean_average_precision'] * ('targets' in rows)
  if len(rows['logits']) < len(counts):
    return dict.fromkeys(names)
  logits, classes = rows['logits'][counts], np.arange(rows['logits'].shape[-1])
  if not np.isfinite(logits).all():
    return dict.fromkeys(names)
  if 'targets' in rows:
    targets = rows['targets'][counts] > 0  # (N, K)
  else:
    targets = rows['label'][counts][:, None] == classes
  offset = np.zeros(len(logits)) if sigmoid else logsumexp(logits)  # (N,)
  values = {'auroc': mean([auroc(logits[:, k] - offset, targets[:, k]) for k in classes])}
  if 'targets' in rows:
    values['mean_average_precision'] = average_precision(logits, targets)
  return values


def auroc(scores: np.ndarray, is_positive: np.ndarray) -> float:
  """How often a positive has the higher score of it and a negative, equal ones by half.

  It is the area under the ROC curve; not a number without a positive or a negative. scikit-learn's
  takes six times as long, 17 s for ImageNet's 50,000 images of 1,000 classes.
  """
  positives = scores[is_positive]
  count = len(positives)
  if count in (0, len(scores)):
    return np.nan
  ranked = np.sort(scores)
  below, not_above = (np.searchsorted(ranked, positives, side) for side in ('left', 'right'))
  # Less the pairs of positives, of which each is half
  pairs = (below + not_above).sum() / 2 - count**2 / 2
  return float(pairs / (count * (len(scores) - count)))


def average_precision(logits: np.ndarray, targets: np.ndarray) -> float | None:
  """The mean over classes that have images of (N, K) logits and truth."""
  from sklearn.metrics import average_precision_score

  present = targets.any(0)
  if not present.any():
    return None
  return float(average_precision_score(targets[:, present], logits[:, present], average='macro'))


def logsumexp(logits: np.ndarray) -> np.ndarray:
  """(N, K) -> (N,), in float64."""
  top = logits.max(-1)
  return np.log(np.exp(logits - top[:, None]).sum(-1, dtype=np.float64)) + top


def ratio(part: Any, whole: Any) -> np.ndarray:
  """part / whole, not a number where both are 0."""
  return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def mean(values: Any, weights: np.ndarray | None = None) -> float | None:
  """The mean of what is a number; None where nothing is."""
  values = np.atleast_1d(np.asarray(values, np.float64))
  is_number = ~np.isnan(values)
  weights = np.ones(len(values)) if weights is None else weights
  total = weights[is_number].sum()
  return float((values[is_number] * weights[is_number]).sum() / total) if total else None
