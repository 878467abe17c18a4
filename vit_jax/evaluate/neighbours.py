"""Nearest neighbours by the cosine of features, exact; and which class they vote for.

N images whose neighbours are wanted, M that they are among, F features of one, K classes, k
neighbours of each.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import sharding

Array = jax.Array

TEMPERATURE = 0.07  # of votes
VOTES = 5  # neighbours that vote on an image of an evaluation, fewer than most classes have images
ROWS = 1024  # images whose neighbours are looked for at a time, on each device
BLOCK = 16_384  # images that these are compared with at once
NONE = -1  # no image


@dataclasses.dataclass(frozen=True)
class Nearest:
  """The nearest neighbours of images, best first.

  Fields:
    similarity: (N, k) float32 cosines.
    index: (N, k) int32 among the M.
  """

  similarity: np.ndarray
  index: np.ndarray


def nearest(values: np.ndarray, queries: np.ndarray, *, k: int) -> Nearest:
  """The k nearest of `values` (M, F) to each of `queries` (N, F); of fewer, all."""
  return joined(batches(values, queries, k=k))


def nearest_others(
  values: np.ndarray, *, k: int, advance: Callable[[int], object] = lambda count: None
) -> Nearest:
  """The k nearest of `values` (N, F) to each of them but itself; of fewer, all.

  `advance` takes how many more are done.
  """

  def counted() -> Iterator[Nearest]:
    for batch in batches(values, values, k=k, others=True):
      yield batch
      advance(len(batch.index))

  return joined(counted())


def joined(parts: Iterator[Nearest]) -> Nearest:
  """The neighbours of several batches as one."""
  pairs = [(part.similarity, part.index) for part in parts]
  similarity, index = (np.concatenate(columns) for columns in zip(*pairs))
  return Nearest(similarity, index)


def batches(
  values: np.ndarray, queries: np.ndarray, *, k: int, others: bool = False
) -> Iterator[Nearest]:
  """The neighbours of some rows of `queries` after another; memory is bounded whatever M and N are.

  All devices of this process share the rows.

  Args:
    values: (M, F).
    queries: (N, F).
    k: how many of each; of fewer, all.
    others: whether `queries` are `values`, of which none is a neighbour of itself.
  """
  mesh = sharding.make_mesh(devices=jax.local_devices())
  count = mesh.size * min(ROWS, -(-len(queries) // mesh.size))
  k = min(k, len(values) - others)
  for start in range(0, len(queries), count):
    rows = queries[start : start + count]
    itself = start + np.arange(count, dtype=np.int32) if others else np.full(count, NONE, np.int32)
    nothing = {
      'similarity': np.full((count, k), -np.inf, np.float32),
      'index': np.zeros((count, k), np.int32),
    }
    sought = sharding.put({'rows': zero_padded(rows, count), 'itself': itself}, mesh)
    best = sharding.put(nothing, mesh)
    for block in blocks(values):
      best = nearer(sought, jax.device_put(block, NamedSharding(mesh, PartitionSpec())), best)
    result = jax.device_get(best)
    yield Nearest(result['similarity'][: len(rows)], result['index'][: len(rows)])


def blocks(values: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
  """All rows of (M, F), BLOCK at a time: 'rows', and 'index' of each, NONE of what fills up."""
  size = min(BLOCK, len(values))
  for first in range(0, len(values), size):
    rows = values[first : first + size]
    index = np.arange(first, first + size, dtype=np.int32)
    index[len(rows) :] = NONE
    yield {'rows': zero_padded(rows, size), 'index': index}


def zero_padded(rows: np.ndarray, count: int) -> np.ndarray:
  """Rows, and rows of zeros up to that count."""
  if len(rows) == count:
    return rows
  return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


@jax.jit
def nearer(
  sought: dict[str, Array], block: dict[str, Array], best: dict[str, Array]
) -> dict[str, Array]:
  """The best so far, and of a block, for rows that are not 'itself'."""
  similarity = jnp.matmul(
    unit(sought['rows']), unit(block['rows']).T, precision='highest'
  )  # (n, B)
  is_other = (block['index'] != NONE) & (block['index'] != sought['itself'][:, None])
  similarity = jnp.where(is_other, similarity, -jnp.inf)
  index = jnp.broadcast_to(block['index'], similarity.shape)
  similarity = jnp.concatenate([best['similarity'], similarity], 1)
  index = jnp.concatenate([best['index'], index], 1)
  similarity, place = jax.lax.top_k(similarity, best['index'].shape[1])
  return {'similarity': similarity, 'index': jnp.take_along_axis(index, place, 1)}


def unit(rows: Array) -> Array:
  """Rows of length one; of zeros, zeros."""
  return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


# Votes


def votes(
  similarity: np.ndarray, labels: np.ndarray, classes: int, *, temperature: float = TEMPERATURE
) -> np.ndarray:
  """(N, K) float64: what neighbours of these labels (N, k) vote, each exp(cosine / temperature).

  Sums are relative to the votes of as many neighbours of cosine 1; of a label below 0 there is
  none (DINO, arXiv 2104.14294, appendix F.1).
  """
  weights = np.exp((np.float64(similarity) - 1) / temperature) * (labels >= 0)
  total = np.zeros((len(labels), classes))
  np.add.at(total, (np.arange(len(labels))[:, None], labels), weights)
  return total


def columns(values: np.ndarray, labels: np.ndarray, count: int) -> dict[str, np.ndarray]:
  """'neighbour' and 'typical' (N,) of images, see `results.image_columns`.

  Args:
    values: (N, F), N at least 2.
    labels: (N,) in [0, K).
    count: K.
  """
  others = nearest_others(values, k=VOTES)
  winners = votes(others.similarity, labels[others.index], count).argmax(1)
  return {'neighbour': winners, 'typical': typicality(values, labels, count)}


def typicality(values: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
  """(N,) the cosine of each image's features (F,) and the mean direction of its class."""
  lengths = np.linalg.norm(values, axis=1, keepdims=True)
  directions = values / np.maximum(lengths, 1e-12)  # (N, F)
  means = np.zeros((count, values.shape[1]))
  np.add.at(means, labels, directions)
  means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)  # (K, F)
  return np.einsum('nf,nf->n', directions, means[labels])
