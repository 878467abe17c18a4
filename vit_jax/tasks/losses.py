"""The parts of a classifier's loss: normalise, mix, make targets, compare with them.

N images, H x W pixels, C channels, K classes, at most L labels of one image. A batch is a dict of
'image' (N, H, W, C) uint8, 'label', and 'mask' (N,), 1 for an image that counts and 0 for padding.
Labels are (N,) int, (N, L) int with -1 where there are fewer, or (N, K) float; `are_known` says
which images have them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from vit_jax import lookup
from vit_jax.sources.classes import are_known

Array = jax.Array
Loss = Callable[..., Array]  # (logits (N, K), targets (N, K)) -> (N,)

MIXING = 0x6D6978  # 'mix', folded into a step's key, to be no key of dropout's


def targets(labels: Array, num_classes: int, *, smoothing: float = 0.0) -> Array:
  """Labels of any kind to float32 (N, K): (1 - smoothing) y + smoothing / K.

  Multi-label ones are each 1, for the sigmoid loss: they do not sum to 1.
  """
  if is_multi_label(labels):
    soft = jax.nn.one_hot(labels, num_classes).max(1)  # (N, K), -1 is no class
  elif labels.ndim == 1:
    soft = jax.nn.one_hot(labels, num_classes)
  else:
    soft = labels.astype(jnp.float32)
  return soft * (1 - smoothing) + smoothing / num_classes


def is_multi_label(labels: Array) -> bool:
  """Whether they are (N, L) ints."""
  return labels.ndim == 2 and jnp.issubdtype(labels.dtype, jnp.integer)


def counted(batch: Mapping[str, Array]) -> Array:
  """(N,), 1 for images that count: they are no padding, and their classes, if any, are known."""
  mask = batch['mask'].astype(jnp.float32)
  return mask * are_known(batch['label']) if 'label' in batch else mask


def hits(logits: Array, labels: Array) -> Array:
  """(N,), whether the highest logit's class is the label, one of several, or the likeliest."""
  top = logits.argmax(-1)
  if is_multi_label(labels):
    return (labels == top[:, None]).any(-1)
  return top == (labels if labels.ndim == 1 else labels.argmax(-1))


Weights = Array | float  # (1, K) of classes, or 1


def softmax_cross_entropy(logits: Array, y: Array, *, weights: Weights = 1.0) -> Array:
  """-sum_k w_k y_k log softmax(logits)_k for each image: (N, K), (N, K) -> (N,)."""
  return -jnp.sum(weights * y * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_cross_entropy(logits: Array, y: Array, *, weights: Weights = 1.0) -> Array:
  """-sum_k w_k y_k log s(logits_k) + (1 - y_k) log s(-logits_k): (N, K), (N, K) -> (N,)."""
  return focal(logits, y, weights=weights, gamma=0.0)


def focal(logits: Array, y: Array, *, weights: Weights = 1.0, gamma: float = 2.0) -> Array:
  """The sigmoid cross-entropy, each term times (1 - p)^gamma, p being its probability.

  Lin et al., arXiv 1708.02002, equation 4; their alpha is a weight of alpha / (1 - alpha), but for
  a factor of the whole. (N, K), (N, K) -> (N,).
  """
  log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  if not gamma:
    return -jnp.sum(weights * y * log_p + (1 - y) * log_q, axis=-1)
  positive, negative = jnp.exp(gamma * log_q) * log_p, jnp.exp(gamma * log_p) * log_q
  return -jnp.sum(weights * y * positive + (1 - y) * negative, axis=-1)


def softmax_focal(logits: Array, y: Array, *, weights: Weights = 1.0, gamma: float = 2.0) -> Array:
  """-sum_k w_k y_k (1 - p_k)^gamma log p_k, p = softmax(logits): (N, K), (N, K) -> (N,)."""
  log_p = jax.nn.log_softmax(logits)
  # Of 0 the power's gradient is not finite where gamma is below 1
  others = jnp.maximum(1 - jnp.exp(log_p), jnp.finfo(jnp.float32).eps)
  return -jnp.sum(weights * y * others**gamma * log_p, axis=-1)


LOSSES: dict[str, Loss] = {
  'softmax': softmax_cross_entropy,
  'sigmoid': sigmoid_cross_entropy,
  'focal': focal,
  'softmax_focal': softmax_focal,
}
SCORES = {  # what the logits of a loss become
  'softmax': 'softmax',
  'sigmoid': 'sigmoid',
  'focal': 'sigmoid',
  'softmax_focal': 'softmax',
}
FOCAL = ('focal', 'softmax_focal')  # those that take gamma


def weighted(
  loss: str | Loss, *, class_weights: Sequence[float] = (), gamma: float = 2.0
) -> str | Loss:
  """A named loss with a weight for each class, () for none, and the focusing power of FOCAL.

  A function of somebody else's is taken as it is.
  """
  if not isinstance(loss, str):
    if class_weights:
      raise ValueError(f'objective.class_weights are of {", ".join(LOSSES)}, not of another loss')
    return loss
  options: dict[str, Weights] = {'gamma': gamma} if loss in FOCAL else {}
  if class_weights:
    options['weights'] = jnp.asarray(class_weights, jnp.float32)[None]
  return functools.partial(LOSSES[loss], **options) if options else loss


def named_loss(name: str) -> str | Loss:
  """A name of LOSSES as it is, or the function that 'package.module:name' stands for."""
  loss: Loss = lookup.named(name, LOSSES, 'loss')
  return name if name in LOSSES else loss


def scores_of(loss: str | Loss, scores: str = '') -> str:
  """What logits that were trained with a loss become, 'softmax' or 'sigmoid'.

  The config says it by `scores`; '' leaves it to the loss, a function to its attribute `scores`.
  """
  chosen = scores or (SCORES[loss] if isinstance(loss, str) else getattr(loss, 'scores', ''))
  if not chosen:
    raise ValueError(
      'the loss has no attribute scores: set objective.scores to softmax or sigmoid, as which its '
      'logits are read'
    )
  if chosen not in SCORES.values():
    raise ValueError(f'scores are {chosen!r}, must be softmax or sigmoid')
  if isinstance(loss, str) and chosen != SCORES[loss]:
    made = SCORES[loss]
    raise ValueError(f'objective.scores is {chosen!r}, but a {loss} loss makes {made} scores')
  return chosen


def zero_padding(batch: Mapping[str, Array]) -> dict[str, Array]:
  """The batch with zeros for its padding, which then spoils no gradient, whatever it held.

  An image whose classes are not known becomes padding too.
  """
  mask = counted(batch)

  def zero(rows: Array) -> Array:
    return jnp.where(mask.reshape(-1, *(1,) * (rows.ndim - 1)) > 0, rows, 0)

  return {**batch, 'image': zero(batch['image']), 'label': zero(batch['label']), 'mask': mask}


def training_sums(
  logits: Array, batch: Mapping[str, Array], *, loss: str | Loss = 'softmax', smoothing: float = 0.0
) -> dict[str, Array]:
  """Sums over the images that count: 'loss', 'correct' (see `hits`), 'count'.

  Those are no padding, and their classes are known. A multi-label image may be of no class, which
  the sigmoid loss learns.
  """
  labels, mask = batch['label'], counted(batch)
  image_loss = LOSSES[loss] if isinstance(loss, str) else loss
  losses = image_loss(logits, targets(labels, logits.shape[-1], smoothing=smoothing))  # (N,)
  if losses.shape != mask.shape:  # a mean, for one, would be summed as often as there are images
    raise ValueError(f'the loss gives {losses.shape}, must give {mask.shape}: one for each image')
  correct = hits(logits, labels) * mask
  # A padded image may hold anything, so it is left out rather than multiplied by zero.
  total = jnp.where(mask > 0, losses, 0).sum()
  return {'loss': total, 'correct': correct.sum(), 'count': mask.sum()}


def pixel_weights(key: Array, size: Sequence[int], *, mixup: float, cutmix: float) -> Array:
  """(H, W), the weight in [0, 1] of an image's own pixels when it is mixed with another's.

  Their mean is the weight of its labels. `mixup` and `cutmix` are the a of `mixup_weights` and
  `cutmix_weights`, 0 for none; where both are asked for, each is as likely.
  """
  kind_key, key = jax.random.split(key)
  if not cutmix:
    return mixup_weights(key, size, mixup)
  if not mixup:
    return cutmix_weights(key, size, cutmix)
  return jnp.where(
    jax.random.bernoulli(kind_key),
    cutmix_weights(key, size, cutmix),
    mixup_weights(key, size, mixup),
  )


def mixup_weights(key: Array, size: Sequence[int], a: float) -> Array:
  """The same for all pixels, x ~ Beta(a, a) or 1 - x, the larger, as big_vision (1710.09412)."""
  x = jax.random.beta(key, a, a)
  return jnp.full(size, jnp.maximum(x, 1 - x))


def cutmix_weights(key: Array, size: Sequence[int], a: float) -> Array:
  """1 outside of a box, 0 in it; its area is a fraction 1 - x, x ~ Beta(a, a) (arXiv 1905.04899).

  Its centre is any pixel, and what would lie beyond the image is cut off.
  """
  area_key, centre_key = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(area_key, a, a))
  centre = jax.random.uniform(centre_key, (2,))
  inside = [
    jnp.abs(jnp.arange(length) + 0.5 - length * middle) < length * side / 2
    for length, middle in zip(size, centre)
  ]
  return 1.0 - inside[0][:, None] * inside[1]


def mixed(rows: Array, weights: Array, mask: Array) -> Array:
  """weights * row + (1 - weights) * the row before it, where both count, else the row (N, ...)."""
  both = (mask > 0) & (jnp.roll(mask, 1) > 0)
  blend = weights * rows + (1 - weights) * jnp.roll(rows, 1, axis=0)
  return jnp.where(both.reshape(-1, *(1,) * (rows.ndim - 1)), blend, rows)
