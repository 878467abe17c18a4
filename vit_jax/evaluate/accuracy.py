"""Loss and accuracy over a split: every image once, sums crossing the batches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from vit_jax import metrics, objective


def make_step(
  apply: Callable[..., Any], *, mean: Sequence[float], std: Sequence[float], loss: str = 'softmax'
) -> Callable[[Any, objective.Batch], objective.Sums]:
  """step(params, batch) -> `objective.measure`'s sums, without dropout or label smoothing."""

  def step(params: Any, batch: objective.Batch) -> objective.Sums:
    logits, _ = apply({'params': params}, objective.normalize(batch['image'], mean, std))
    return objective.measure(logits, batch, loss=loss)

  return step


def over(
  step: Callable[[Any, objective.Batch], objective.Sums],
  params: Any,
  batches: Iterable[objective.Batch],
) -> dict[str, float]:
  """'loss', 'accuracy' and the 'count' of images they are means over."""
  total = {'loss': 0.0, 'correct': 0.0, 'count': 0.0}
  running: list[objective.Sums] = []

  def add(sums: objective.Sums) -> None:
    for name, value in jax.device_get(sums).items():
      total[name] += float(value)

  for batch in batches:
    running.append(step(params, batch))
    if len(running) > 2:  # the host stays that far ahead of the device
      add(running.pop(0))
  for sums in running:
    add(sums)
  return metrics.means(total) | {'count': total['count']}
