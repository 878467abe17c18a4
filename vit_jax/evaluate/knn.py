"""k nearest neighbours by cosine similarity, with weighted votes as DINO's (arXiv 2104.14294).

N test features, M train features, F of each, K classes, k neighbours.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.evaluate.features import Features
from vit_jax.text import columns, percent

Array = jax.Array

TEMPERATURE = 0.07
ROWS = 1024  # test features at a time on each device
BLOCK = 16_384  # train features that they are compared with at once


def measure(
  train: Features,
  test: Features,
  *,
  ks: Sequence[int] = (20,),
  temperature: float = TEMPERATURE,
) -> list[dict[str, Any]]:
  """The accuracy for each k: {'k', 'accuracy', 'train_count', 'count'}.

  A neighbour votes for its class with exp(similarity / temperature). Of equal sums of votes the
  class with the lower number is taken.

  Args:
    train, test: of the same classes.
    ks: how many neighbours vote.
    temperature: of the weights.

  Raises:
    ValueError: for a k that is less than 1 or more than there are train features, or for images
      without a label or with several.
  """
  train, test = train.labelled(), test.labelled()
  for k in ks:
    if not 1 <= k <= len(train):
      raise ValueError(f'k is {k}, must be 1 to {len(train)}, the images of split {train.split!r}')
  correct = {k: 0 for k in ks}
  rows = 0
  for similarities, places in neighbours(train.values, test.values, k=max(ks)):
    truth = test.labels[rows : rows + len(places)]
    rows += len(places)
    votes = np.exp((np.float64(similarities) - 1) / temperature)
    for k in ks:
      predictions = winners(train.labels[places[:, :k]], votes[:, :k], len(train.classes))
      correct[k] += int((predictions == truth).sum())
  counts = {'train_count': len(train), 'count': len(test)}
  return [{'k': k, 'accuracy': correct[k] / len(test), **counts} for k in ks]


def winners(labels: np.ndarray, votes: np.ndarray, classes: int) -> np.ndarray:
  """(n,) the class with the most votes, of (n, k) labels and votes."""
  total = np.zeros((len(labels), classes))
  np.add.at(total, (np.arange(len(labels))[:, None], labels), votes)
  return total.argmax(1)


def neighbours(
  train: np.ndarray, test: np.ndarray, *, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(similarities, indices) (n, k) of the nearest in `train`, best first, for n rows of `test`.

  All devices share the rows of `test`; memory is bounded whatever M and N are.

  Args:
    train: (M, F).
    test: (N, F).
    k: at most M.
  """
  mesh = sharding.make_mesh()
  count = mesh.size * min(ROWS, -(-len(test) // mesh.size))
  block = min(BLOCK, len(train))
  for start in range(0, len(test), count):
    rows = test[start : start + count]
    padded = zero_padded(rows, count)
    nothing = {
      'similarity': np.full((count, k), -np.inf, np.float32),
      'index': np.zeros((count, k), np.int32),
    }
    best = sharding.put({'rows': padded, **nothing}, mesh)
    queries = best.pop('rows')
    for first in range(0, len(train), block):
      held = train[first : first + block]
      best = nearer(queries, zero_padded(held, block), first, len(held), best)
    nearest = jax.device_get(best)
    yield nearest['similarity'][: len(rows)], nearest['index'][: len(rows)]


def zero_padded(rows: np.ndarray, count: int) -> np.ndarray:
  """Rows, and rows of zeros up to that count."""
  return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


@jax.jit
def nearer(
  queries: Array, block: Array, first: int, count: int, best: dict[str, Array]
) -> dict[str, Array]:
  """The best so far, and of a block of train features that begins at `first` and holds `count`."""
  similarity = jnp.matmul(unit(queries), unit(block).T, precision='highest')  # (n, B)
  similarity = jnp.where(jnp.arange(len(block)) < count, similarity, -jnp.inf)
  index = jnp.broadcast_to(first + jnp.arange(len(block), dtype=jnp.int32), similarity.shape)
  similarity = jnp.concatenate([best['similarity'], similarity], 1)
  index = jnp.concatenate([best['index'], index], 1)
  similarity, place = jax.lax.top_k(similarity, best['index'].shape[1])
  return {'similarity': similarity, 'index': jnp.take_along_axis(index, place, 1)}


def unit(rows: Array) -> Array:
  """Rows of length one; of zeros, zeros."""
  return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
  """What `measure` gives, as text."""
  cells = [(row['k'], percent(row['accuracy'])) for row in rows]
  return list(columns([('k', 'accuracy'), *cells]))
