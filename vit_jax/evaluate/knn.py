"""k nearest neighbours by cosine similarity, with weighted votes as DINO's (arXiv 2104.14294).

N test features, M train features, F of each, K classes, k neighbours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vit_jax import bundle
from vit_jax.evaluate import features, inputs, neighbours
from vit_jax.evaluate.features import Features
from vit_jax.guards import processes
from vit_jax.pipeline import DataError
from vit_jax.sources.classes import check_labelled
from vit_jax.text import columns, percent, quantity, to_stderr

ACCURACY = 'knn_accuracy'  # the name of what `Probe` measures


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


@dataclasses.dataclass(frozen=True)
class Probe:
  """A labelled data set by which any encoder is measured, as on its way through training.

  Fields:
    train: the split of the neighbours.
    test: the split that is measured.
    k: how many neighbours vote.
  """

  train: inputs.Split
  test: inputs.Split
  k: int

  def accuracy(self, run: bundle.Bundle, *, say: Callable[[str], object] = to_stderr) -> float:
    """That of `measure`; with several processes the first computes it, and all have it.

    Raises:
      DataError: where no image can be read or has a label, or features are not finite.
    """
    text = repr(self.measure(run, say)) if jax.process_index() == 0 else ''
    return float(processes.gathered(ACCURACY, text)[0])

  def measure(self, run: bundle.Bundle, say: Callable[[str], object]) -> float:
    try:
      train, test = (features.extract(run, split, say=say) for split in (self.train, self.test))
      (row,) = measure(train, test, ks=(self.k,))
    except ValueError as error:
      raise DataError(f'evaluation.knn: {error}') from error
    return float(row['accuracy'])


def open_probe(name: str, *, train: str, test: str, k: int) -> Probe:
  """The probe by a data set and two of its splits; ValueError where it cannot measure."""
  first, second = (inputs.open_split('', on=name, split=split) for split in (train, test))
  check_labelled(name, first.source.classes)
  inputs.check_apart(first, second)
  if k > len(first.source):
    images = quantity(len(first.source), 'image')
    raise ValueError(f'{k} neighbours are asked for: split {train!r} of {name} has {images}')
  return Probe(first, second, k)


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
  """What `measure` gives, as text."""
  cells = [(row['k'], percent(row['accuracy'])) for row in rows]
  return list(columns([('k', 'accuracy'), *cells]))
