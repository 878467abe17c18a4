"""A linear probe: logistic regression on features, its regularisation chosen on validation data."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.evaluate.features import Features
from vit_jax.text import columns, percent

GRID = tuple(float(10.0**power) for power in range(-5, 4))  # of C, the inverse of the ridge
STEPS = 1000  # of L-BFGS at most


def measure(
  train: Features,
  validation: Features,
  test: Features,
  *,
  grid: Sequence[float] = GRID,
) -> dict[str, Any]:
  """Logistic regression for each C, and the best of them once more on more data, on test images.

  Features are standardised by the mean and deviation of those that a regression is fitted to. The
  best C has the highest validation accuracy, of equals the smallest C. With it a last regression
  is fitted to train and validation images together, and tested.

  Args:
    train, validation, test: of the same classes.
    grid: of C: scikit-learn's, the weight of the summed loss against |w|^2 / 2.

  Returns:
    'accuracy' and 'count' of the test; 'C'; 'search', for each C {'C', 'accuracy', 'converged'} of
    validation; 'validation_accuracy' of the chosen one, 'validation_count'; 'train_count'; and
    'converged', of the last regression. 'at_edge' says that C is the first or last of the grid.

  Raises:
    ValueError: for a C that is not positive, train images of only one class, or images without a
      label or with several.
  """
  train, validation, test = train.labelled(), validation.labelled(), test.labelled()
  if not grid or min(grid) <= 0:
    raise ValueError(f'every C of {list(grid)} must be above 0')
  if len(np.unique(train.labels)) < 2:
    raise ValueError(f'images of split {train.split!r} are all of one class: nothing to tell apart')
  search = []
  for c in sorted(grid):
    accuracy, converged = fit_and_test(train.values, train.labels, validation, c)
    search.append({'C': c, 'accuracy': accuracy, 'converged': converged})
  best = max(search, key=lambda row: row['accuracy'])  # the first of equals
  values = np.concatenate([train.values, validation.values])
  labels = np.concatenate([train.labels, validation.labels])
  accuracy, converged = fit_and_test(values, labels, test, best['C'])
  return {
    'accuracy': accuracy,
    'count': len(test),
    'C': best['C'],
    'at_edge': len(search) > 1 and best in (search[0], search[-1]),
    'converged': converged,
    'validation_accuracy': best['accuracy'],
    'validation_count': len(validation),
    'train_count': len(train),
    'search': search,
  }


def fit_and_test(
  values: np.ndarray, labels: np.ndarray, test: Features, c: float
) -> tuple[float, bool]:
  """The accuracy on other features of a regression, and whether it converged."""
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  mean, std = values.mean(0, np.float64), values.std(0, np.float64)
  std[std == 0] = 1
  model = LogisticRegression(C=c, max_iter=STEPS)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always', ConvergenceWarning)
    model.fit((values - mean) / std, labels)
  predictions = model.predict((test.values - mean) / std)
  return float(np.mean(predictions == test.labels)), not caught


def lines(values: Mapping[str, Any]) -> list[str]:
  """What `measure` gives, as text."""
  search = [
    (f'{row["C"]:g}', percent(row['accuracy']), 'not converged' * (not row['converged']))
    for row in values['search']
  ]
  edge = ', at the edge of the grid' * values['at_edge']
  not_converged = '; not converged' * (not values['converged'])
  return [
    *columns([('C', 'validation', ''), *search]),
    f'C {values["C"]:g}{edge}: validation {values["validation_accuracy"]:.2%} on '
    f'{values["validation_count"]} images',
    f'accuracy {values["accuracy"]:.2%}, fitted to {values["train_count"]} train and '
    f'{values["validation_count"]} validation images{not_converged}',
  ]
