"""k nearest neighbours by cosine similarity, with weighted votes as DINO's (arXiv 2104.14294).

N test features, M train features, F of each, K classes, k neighbours.
"""

from collections.abc import Sequence
from typing import Any

from vit_jax.evaluate import neighbours
from vit_jax.evaluate.features import Features
from vit_jax.text import columns, percent


def measure(
  train: Features,
  test: Features,
  *,
  ks: Sequence[int] = (20,),
  temperature: float = neighbours.TEMPERATURE,
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
  for batch in neighbours.batches(train.values, test.values, k=max(ks)):
    truth = test.labels[rows : rows + len(batch.index)]
    rows += len(batch.index)
    for k in ks:
      labels, similarity = train.labels[batch.index[:, :k]], batch.similarity[:, :k]
      votes = neighbours.votes(similarity, labels, len(train.classes), temperature=temperature)
      correct[k] += int((votes.argmax(1) == truth).sum())
  counts = {'train_count': len(train), 'count': len(test)}
  return [{'k': k, 'accuracy': correct[k] / len(test), **counts} for k in ks]


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
  """What `measure` gives, as text."""
  cells = [(row['k'], percent(row['accuracy'])) for row in rows]
  return list(columns([('k', 'accuracy'), *cells]))
