"""How spread the features of images are: what is lost where a method gives one answer to all.

N images, F features.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax.tasks import Array, Sums
from vit_jax.text import number

SUMS = {'feature_sum', 'feature_products', 'direction_sum', 'direction_square'}
RANKS = {'effective_rank': 1, 'feature_std': 1}  # of `read`, as of `Task.ranks`
ROUNDING = 1e-5  # of the mean variance: one below is of the rounding of float32 products
MIN_STD = 0.01  # as where the cosine of any two images is over 0.9999; of random weights it is more
MIN_RANK = 2.0  # of features that vary in more than one direction
FEW = 16  # images, below which a rank tells nothing


def sums(features: Array, reference: Array, mask: Array) -> Sums:
  """What `read` reads, of the images with mask 1; they add up over batches.

  Args:
    features: (N, F) float32.
    reference: (F,) those of one image, the same for every batch: sums of differences from it keep
      their digits where all features are alike.
    mask: (N,).
  """
  differences = mask[:, None] * (features - reference[None])
  turned = mask[:, None] * (unit(features) - unit(reference[None]))
  return {
    'feature_sum': differences.sum(0),
    'feature_products': jnp.matmul(differences.T, differences, precision='highest'),  # (F, F)
    'direction_sum': turned.sum(0),
    'direction_square': jnp.square(turned).sum(),
  }


def unit(rows: Array) -> Array:
  """Rows of length one; of zeros, zeros."""
  return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def read(sums: Mapping[str, Any]) -> dict[str, float]:
  """Two numbers of an evaluation, both small where features collapse.

  'effective_rank' is exp of the entropy of the singular values, as shares of their sum, of the
  features less their mean (Roy & Vetterli 2007; RankMe, arXiv 2210.02885, which does not take the
  mean off): from 1, along one line, to the smaller of F and N - 1; 0 where all are the same.
  'feature_std' is the standard deviation of features of length one over images, times the square
  root of F (SimSiam, arXiv 2011.10566): 1 where directions cancel out, 0 where all are the same.
  """
  count = max(float(sums['count']), 1.0)
  mean = sums['feature_sum'] / count
  variances = np.linalg.eigvalsh(sums['feature_products'] / count - np.outer(mean, mean))[::-1]
  variances = variances[: max(int(count) - 1, 1)]  # the others are rounding
  values = np.sqrt(variances[variances > ROUNDING * max(variances.mean(), 0)])
  shares = values / values.sum()
  rank = float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
  square = sums['direction_square'] / count - np.square(sums['direction_sum'] / count).sum()
  return {'effective_rank': rank, 'feature_std': float(np.sqrt(max(square, 0.0)))}


def collapse(values: Mapping[str, float]) -> str:
  """A line where features of an evaluation have collapsed, by MIN_STD and MIN_RANK; else ''."""
  rank, std = (values.get(f'ema_{name}', values[name]) for name in RANKS)
  if std >= MIN_STD and (rank >= MIN_RANK or values['count'] < FEW):
    return ''
  return (
    f'the features have collapsed: feature_std {number(std)} and effective_rank {number(rank)}; '
    f'below {MIN_STD} or {MIN_RANK} images are hardly told apart'
  )
