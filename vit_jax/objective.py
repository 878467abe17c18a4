"""From a uint8 batch to a scalar: normalise, make targets, and the losses.

N images, H x W pixels, C channels, K classes. A batch is a dict of 'image' (N, H, W, C) uint8,
'label' (N,) int or (N, K) float, and 'mask' (N,), 1 for an image that counts and 0 for padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Batch = dict[str, Array]
Sums = dict[str, Array]


def normalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
  """uint8 images to float32 (x / 255 - mean) / std; mean = std = 0.5 gives [-1, 1]."""
  mean_255, std_255 = (255 * jnp.asarray(x).reshape(1, 1, 1, -1) for x in (mean, std))
  return (images.astype(jnp.float32) - mean_255) / std_255


def targets(labels: Array, num_classes: int, *, smoothing: float = 0.0) -> Array:
  """Int labels (N,) or soft ones (N, K) to float32 (N, K): (1 - smoothing) y + smoothing / K."""
  soft = jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else labels.astype(jnp.float32)
  return soft * (1 - smoothing) + smoothing / num_classes


def softmax_cross_entropy(logits: Array, y: Array) -> Array:
  """-sum_k y_k log softmax(logits)_k for each image: (N, K), (N, K) -> (N,)."""
  return -jnp.sum(y * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_cross_entropy(logits: Array, y: Array) -> Array:
  """-sum_k y_k log s(logits_k) + (1 - y_k) log s(-logits_k): (N, K), (N, K) -> (N,)."""
  per_class = y * jax.nn.log_sigmoid(logits) + (1 - y) * jax.nn.log_sigmoid(-logits)
  return -jnp.sum(per_class, axis=-1)


LOSSES = {'softmax': softmax_cross_entropy, 'sigmoid': sigmoid_cross_entropy}


def blanked(batch: Batch) -> Batch:
  """The batch with zeros for its padding, which then spoils no gradient, whatever it held."""

  def blank(rows: Array) -> Array:
    return jnp.where(batch['mask'].reshape(-1, *(1,) * (rows.ndim - 1)) > 0, rows, 0)

  return batch | {'image': blank(batch['image']), 'label': blank(batch['label'])}


def measure(logits: Array, batch: Batch, *, loss: str = 'softmax', smoothing: float = 0.0) -> Sums:
  """Sums over the images that count: 'loss', 'correct' (highest logit is the label), 'count'."""
  labels, mask = batch['label'], batch['mask'].astype(jnp.float32)
  losses = LOSSES[loss](logits, targets(labels, logits.shape[-1], smoothing=smoothing))  # (N,)
  wanted = labels if labels.ndim == 1 else labels.argmax(-1)
  correct = (logits.argmax(-1) == wanted) * mask
  # A padded image may hold anything, so it is left out rather than multiplied by zero.
  total = jnp.where(mask > 0, losses, 0).sum()
  return {'loss': total, 'correct': correct.sum(), 'count': mask.sum()}


def make_objective(
  apply: Callable[..., Any],
  *,
  mean: Sequence[float],
  std: Sequence[float],
  loss: str = 'softmax',
  smoothing: float = 0.0,
) -> Callable[[Any, Batch, Array], tuple[Array, Sums]]:
  """objective(params, batch, key) -> the training loss summed over the batch, and `measure`'s sums.

  Args:
    apply: a model's; the key goes to its dropout.
    mean, std: of `normalize`.
    loss: 'softmax' or 'sigmoid'.
    smoothing: label smoothing, in [0, 1).

  Raises:
    ValueError: for an unknown loss.
  """
  if loss not in LOSSES:
    raise ValueError(f'unknown loss {loss!r}; known: {", ".join(LOSSES)}')

  def objective(params: Any, batch: Batch, key: Array) -> tuple[Array, Sums]:
    batch = blanked(batch)
    images = normalize(batch['image'], mean, std)
    logits, _ = apply({'params': params}, images, train=True, rngs={'dropout': key})
    sums = measure(logits, batch, loss=loss, smoothing=smoothing)
    return sums['loss'], sums

  return objective
