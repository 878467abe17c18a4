"""Classes that differ in how many images they have: counts, weights in a loss, groups to sample.

N images, K classes, L labels of an image at most. Images whose classes are not known count nowhere.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np

from vit_jax.sources import Source, labels_of
from vit_jax.sources.classes import UNKNOWN, are_known
from vit_jax.sources.labels import hint, match_names, read_pairs
from vit_jax.text import first_few, printable, quantity

BALANCED = 'balanced'  # class weights by the inverse of their counts
SAMPLE = 2048  # images whose labels are read where none are in memory: a quarter of a second
WORTH_SAYING = 10  # times that classes differ by, from which on a line says so
NAMED = 3  # classes that an error names


def read_labels(source: Source) -> np.ndarray:
  """The labels of all records, (N,) or (N, L): in memory, or else read one after another."""
  labels = labels_of(source)
  if labels is None:
    labels = np.stack([read_label(source, index) for index in range(len(source))])
  return labels


def read_label(source: Source, index: int) -> np.ndarray:
  """The label of a record; unknown where it cannot be read."""
  try:
    return np.asarray(source[index]['label'], np.int32)
  except OSError:
    shape = np.shape(source[0]['label']) if index else ()
    return np.full(shape, UNKNOWN if shape else -1, np.int32)
  except KeyError:
    raise ValueError(f'{source.describe(index)} has no label to balance classes by') from None


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """(K,), how many images each class has."""
  return np.bincount(labels[labels >= 0], minlength=num_classes)


def class_weights(spec: str, source: Source, *, scores: str) -> tuple[float, ...]:
  """The weight of each class in a loss: () for '', those of BALANCED, or of a file.

  BALANCED are, of n images and K classes that have any, n / (K n_c) for a softmax, as
  scikit-learn's, so that the mean weight of an image is 1; and for a sigmoid (n - n_c) / n_c, the
  negatives to a positive, as torch's `pos_weight`. A class without images has 1.

  Args:
    spec: '', BALANCED or a file: .json of {class: weight}, or .csv of the columns
      class and weight.
    source: of training.
    scores: what logits become, 'softmax' or 'sigmoid'.
  """
  if not spec:
    return ()
  if spec != BALANCED:
    return read_weights(spec, source.classes)
  labels = read_labels(source)
  counts, total = class_counts(labels, len(source.classes)), int(are_known(labels).sum())
  shares = total - counts if scores == 'sigmoid' else total / max((counts > 0).sum(), 1)
  weights = np.where(counts > 0, shares / np.maximum(counts, 1), 1.0)
  return tuple(weights.tolist())


def read_weights(path: str, classes: Sequence[str]) -> tuple[float, ...]:
  """The weights of all classes in a file; a ValueError names those that are wrong or missing."""
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f'objective.class_weights: there is no {path}, nor is it {BALANCED!r}')
  pairs = read_pairs(path, ('class', 'weight'))
  weights: dict[int, float] = {}
  for (name, value), label in zip(pairs.items(), match_names([*pairs], classes)):
    if label < 0:
      raise ValueError(f'{path}: {name!r} is no class of the data{hint(name, classes)}')
    weights[label] = as_weight(path, name, value)
  if missing := [name for label, name in enumerate(classes) if label not in weights]:
    raise ValueError(f'{path} lacks a weight for {first_few(missing, NAMED)}')
  if not any(weights.values()):
    raise ValueError(f'{path}: every weight is 0')
  return tuple(weights[label] for label in range(len(classes)))


def as_weight(path: str, name: str, value: object) -> float:
  """A number of a file, or the text of one; ValueError for others."""
  weight = math.nan
  if isinstance(value, int | float | str) and not isinstance(value, bool):
    with contextlib.suppress(ValueError, OverflowError):
      weight = float(value)
  if not 0 <= weight < math.inf:
    raise ValueError(
      f'{path}: the weight of {name!r} is {value!r}, must be at least 0, a finite number'
    )
  return weight


def described(source: Source, *, balanced: bool) -> list[str]:
  """Lines on the classes of training: unknown ones, and imbalance.

  Labels that are not in memory are read, of no more than SAMPLE images.

  Args:
    source: of training.
    balanced: whether something is done about imbalance.
  """
  labels, sample = labels_of(source), ''
  if labels is None:
    source = sampled(source)
    labels = read_labels(source)
    sample = f' in a sample of {SAMPLE:,} images' * (len(source) == SAMPLE)
  lines = []
  if unknown := int((~are_known(labels)).sum()):
    lines.append(f'not trained on, as of unknown class: {quantity(unknown, "image")}{sample}')
  counts = class_counts(labels, len(source.classes))
  present = np.flatnonzero(counts) if not sample else np.arange(len(counts))
  if len(present) < 2:
    return lines
  largest, smallest = present[counts[present].argmax()], present[counts[present].argmin()]
  times = counts[largest] / (expected_at_most(counts[smallest]) if sample else counts[smallest])
  if times >= WORTH_SAYING:
    (most, fewest) = (printable(source.classes[label]) for label in (largest, smallest))
    line = f'classes differ by {times:,.0f} times' + f' or more{sample}' * bool(sample)
    line += (
      f': {quantity(int(counts[largest]), "image")} of {most}, {counts[smallest]:,} of {fewest}'
    )
    lines.append(line + '; see objective.class_weights and data.balance' * (not balanced))
  return lines


def sampled(source: Source) -> Source:
  """At most SAMPLE records, the same ones each time."""
  if len(source) <= SAMPLE:
    return source
  rng = np.random.Generator(np.random.Philox(20))
  return source.subset(np.sort(rng.choice(len(source), SAMPLE, replace=False)))


def expected_at_most(count: float) -> float:
  """The images of a class that a sample is expected to have, at most, where it has so many."""
  return count + 3 * math.sqrt(count) + 4  # a Poisson count of a mean of 4 is 0 in 2 % of cases


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
  """The indices of each class's images; of a multi-label set, also of those of no class."""

  indices: tuple[np.ndarray, ...]


def class_groups(source: Source) -> Groups:
  """The groups that balanced sampling makes equally likely; none is empty."""
  labels = read_labels(source)
  if labels.ndim == 1:
    labels = labels[:, None]  # (N, L)
    is_none = np.zeros(len(labels), bool)
  else:
    is_none = are_known(labels) & (labels.max(1) < 0)
  rows, columns = np.nonzero(labels >= 0)
  classes = labels[rows, columns]
  order = np.argsort(classes, kind='stable')
  groups = np.split(rows[order], np.cumsum(np.bincount(classes))[:-1]) if len(rows) else []
  groups = [group for group in (*groups, np.flatnonzero(is_none)) if len(group)]
  if not groups:
    raise ValueError('data.balance: no training image has a label')
  return Groups(tuple(groups))
