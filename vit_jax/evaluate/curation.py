"""What the features of a collection say of its images: which are alike, odd, doubtful or diverse.

Arrays in, arrays out. N images, F features of one, K classes, k nearest others of each, P pairs.
"""

import dataclasses

import numpy as np

from vit_jax.evaluate import neighbours
from vit_jax.evaluate.neighbours import Nearest

TWIN = 0.999  # cosine that the features of equal pixels have at least, whatever rounds


def with_twin(nearest: Nearest) -> np.ndarray:
  """(n,) images that another one may equal: of equal pixels both are among them."""
  if not nearest.similarity.shape[1]:
    return np.zeros(0, np.int64)
  return np.flatnonzero(nearest.similarity[:, 0] >= TWIN)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs of images, the likest first.

  Fields:
    index: (P, 2) ascending in each pair.
    similarity: (P,) their cosine.
  """

  index: np.ndarray
  similarity: np.ndarray


def similar_pairs(nearest: Nearest, threshold: float) -> Pairs:
  """Each pair of that cosine at least, where one is among the k nearest of the other, once.

  With fewer than k images of that cosine round any, these are all such pairs.
  """
  rows, places = np.nonzero(nearest.similarity >= threshold)
  others = nearest.index[rows, places]
  pairs = np.sort(np.stack([rows, others], 1), axis=1)  # (P', 2)
  pairs, first = np.unique(pairs, axis=0, return_index=True)
  similarity = nearest.similarity[rows, places][first]
  order = np.argsort(-similarity, kind='stable')
  return Pairs(pairs[order], similarity[order])


def outliers(nearest: Nearest) -> tuple[np.ndarray, np.ndarray]:
  """All images, the least typical first, and the mean cosine of each with its k nearest others.

  That is their mean distance (Angiulli and Pizzuti, 2002), in place of Euclid's the cosine.
  """
  typical = nearest.similarity.mean(axis=1, dtype=np.float64)
  order = np.argsort(typical, kind='stable')
  return order, typical[order]


@dataclasses.dataclass(frozen=True)
class Doubts:
  """Images whose label their neighbours contradict, the surest first.

  Fields:
    index: (n,) of the images.
    suggestion: (n,) the class with the most votes.
    votes: (n, 2) the fractions of votes for the suggestion, and for the label.
  """

  index: np.ndarray
  suggestion: np.ndarray
  votes: np.ndarray


def label_doubts(nearest: Nearest, labels: np.ndarray, classes: int) -> Doubts:
  """Images for whose class the k nearest others vote less than for another, as k-NN votes.

  Args:
    nearest: others of each image.
    labels: (N,) in [0, K), -1 without; such neither vote nor are doubted.
    classes: K.
  """
  votes = neighbours.votes(nearest.similarity, labels[nearest.index], classes)  # (N, K)
  votes /= np.maximum(votes.sum(1, keepdims=True), np.finfo(float).tiny)
  winner, rows = votes.argmax(1), np.arange(len(votes))
  pairs = np.stack([votes[rows, winner], votes[rows, labels]], 1)
  margin = pairs[:, 0] - pairs[:, 1]
  doubted = np.flatnonzero((labels >= 0) & (margin > 0))
  order = doubted[np.argsort(-margin[doubted], kind='stable')]
  return Doubts(order, winner[order], pairs[order])


def diverse(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """A subset of images (n,) that lie far apart, and how like each is to those before it.

  The first is the image most like the mean of all; each next one is that whose largest cosine with
  those before is the lowest (farthest-first traversal; Gonzalez, 1985), of equals the first. Their
  circles cover all images with at most twice the angle of the best subset of that size.

  Args:
    values: (N, F).
    count: images, N at most.

  Returns:
    The indices, and (n + 1,) cosines: of the first with the mean; of each with the likest before
    it; and last of the image that is the least like all of the subset.
  """
  lengths = np.maximum(np.linalg.norm(values, axis=1), 1e-12)  # (N,)

  def cosines(direction: np.ndarray) -> np.ndarray:
    return values @ (direction / max(np.linalg.norm(direction), 1e-12)) / lengths

  nearness = -cosines((1 / lengths) @ values)  # (N,), so that the lowest is the first
  chosen, likeness = [int(nearness.argmin())], [-float(nearness.min())]
  nearness = cosines(values[chosen[0]])
  for _ in range(min(count, len(values)) - 1):
    nearness[chosen[-1]] = np.inf  # it is chosen once
    chosen.append(int(nearness.argmin()))
    likeness.append(float(nearness[chosen[-1]]))
    nearness = np.maximum(nearness, cosines(values[chosen[-1]]))
  nearness[chosen[-1]] = np.inf
  return np.array(chosen), np.array([*likeness, min(float(nearness.min()), 1.0)])
