"""Few-shot linear regression, as big_vision has it: ridge regression in closed form.

N train images chosen, D = F + 1 features and a constant, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.evaluate.features import Features
from vit_jax.text import columns, percent

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 2.0**10
CONSTANT = 100.0  # the feature that stands for the bias
ROWS = 65_536  # test features at a time


def measure(
  train: Features,
  test: Features,
  *,
  shots: Sequence[int] = SHOTS,
  seeds: Sequence[int] = SEEDS,
  l2: float = L2,
) -> list[dict[str, Any]]:
  """The accuracy for each number of shots, over several choices of the train images.

  Args:
    train, test: of the same classes.
    shots: images of each class that are trained on; of a smaller class all, which is reported.
    seeds: of the choices.
    l2: the ridge.

  Returns:
    for each number of shots {'shots', 'accuracy': mean over seeds, 'spread': their standard
    deviation (N - 1; None of one), 'accuracies': of each seed, 'seeds', 'train_count', 'count',
    'short': {class with fewer images: how many}}.

  Raises:
    ValueError: for shots below 1, none of either, or images without a label or with several.
  """
  train, test = train.labelled(), test.labelled()
  if not shots or not seeds or min(shots) < 1:
    raise ValueError(f'shots {list(shots)} must be at least 1, and seeds {list(seeds)} not none')
  counts = np.bincount(train.labels, minlength=len(train.classes))
  accuracies: dict[int, list[float]] = {count: [] for count in shots}
  for seed in seeds:
    order = shuffled(train.labels, len(train.classes), seed)
    for count in accuracies:
      chosen = np.concatenate([indices[:count] for indices in order])
      model = fit(train.values[chosen], train.labels[chosen], len(train.classes), l2=l2)
      accuracies[count].append(float(np.mean(predict(model, test.values) == test.labels)))
  return [
    {
      'shots': count,
      'accuracy': float(np.mean(accuracies_of_shots)),
      'spread': float(np.std(accuracies_of_shots, ddof=1))
      if len(accuracies_of_shots) > 1
      else None,
      'accuracies': accuracies_of_shots,
      'seeds': list(seeds),
      'train_count': int(np.minimum(counts, count).sum()),
      'count': len(test),
      'short': {name: int(held) for name, held in zip(train.classes, counts) if held < count},
    }
    for count, accuracies_of_shots in accuracies.items()
  ]


def shuffled(labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
  """For each class the indices of its images, in an order by the seed."""
  rng = np.random.default_rng(seed)
  return [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]


def fit(
  values: np.ndarray, labels: np.ndarray, classes: int, *, l2: float
) -> dict[str, np.ndarray]:
  """Ridge regression of whitened features to 1 for the class and -1 for the others, in float64.

  Args:
    values: (N, F) of the chosen images.
    labels: (N,).
    classes: K.
    l2: the ridge.

  Returns:
    'mean' and 'std' (F,) of the whitening, 'weights' (D, K).
  """
  mean, std = values.mean(0, np.float64), values.std(0, np.float64) + 1e-5
  x = with_constant((values - mean) / std)  # (N, D)
  y = 2.0 * np.eye(classes)[labels] - 1  # (N, K)
  return {'mean': mean, 'std': std, 'weights': ridge(x, y, l2)}


def ridge(x: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
  """(D, K), the w of least |x w - y|^2 + l2 |w|^2, by whichever Gram matrix is the smaller."""
  count, width = x.shape
  if count >= width:
    eigenvalues, q = np.linalg.eigh(x.T @ x)  # (D,), (D, D)
    return q @ ((q.T @ (x.T @ y)) / (eigenvalues + l2)[:, None])
  eigenvalues, q = np.linalg.eigh(x @ x.T)  # (N,), (N, N)
  return x.T @ (q @ ((q.T @ y) / (eigenvalues + l2)[:, None]))


def with_constant(x: np.ndarray) -> np.ndarray:
  """(N, F) -> (N, D)."""
  return np.concatenate([x, np.full((len(x), 1), CONSTANT)], 1)


def predict(model: dict[str, np.ndarray], values: np.ndarray) -> np.ndarray:
  """(N,) the class of (N, F) features."""
  labels = []
  for start in range(0, len(values), ROWS):
    x = with_constant((values[start : start + ROWS] - model['mean']) / model['std'])
    labels.append((x @ model['weights']).argmax(1))
  return np.concatenate(labels)


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
  """What `measure` gives, as text."""
  cells = [
    (row['shots'], row['train_count'], percent(row['accuracy']), percent(row['spread']))
    for row in rows
  ]
  result = list(columns([('shots', 'images', 'accuracy', 'spread'), *cells]))
  for row in rows:
    if row['short']:
      few = list(row['short'].items())
      names = ', '.join(f'{name} {count}' for name, count in few[:3])
      more = f' and {len(few) - 3} more' * (len(few) > 3)
      result.append(f'fewer than {row["shots"]} images of a class: {names}{more}')
  return result
