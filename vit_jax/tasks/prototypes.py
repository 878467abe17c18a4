"""Self-distillation over prototypes: the head of DINO, its teacher's targets, and three losses.

N images, G global views, S views, M rows of a batch, F features, K prototypes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.tasks import Array

MIN_NORM = 1e-12  # that a feature is divided by, as in torch's `normalize`
KOLEO_EPSILON = 1e-8  # added to each difference and to the distance, as in DINOv2's code
ROUNDS = 3  # of Sinkhorn and Knopp, as in DINOv2


class Prototypes(nn.Module):
  """A dense layer to K outputs whose kernel's columns are of norm 1."""

  count: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array, constant: Array) -> Array:
    """(M, F) -> float32 (M, K); where `constant` () is true no gradient reaches the kernel."""
    width = x.shape[-1]
    kernel = self.param(
      'kernel', nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'), (width, self.count)
    )
    kernel = jnp.where(constant, jax.lax.stop_gradient(kernel), kernel)
    kernel = unit(kernel, axis=0).astype(self.dtype)
    return jnp.dot(x.astype(self.dtype), kernel, preferred_element_type=jnp.float32)


class DinoHead(nn.Module):
  """The head of DINO (arXiv 2104.14294): the cosines of features with K learned prototypes.

  Three layers, GELU between them, to a bottleneck of norm 1. The prototypes are of norm 1 as well:
  a last layer with weight norm, whose gain is not trained.

  Fields:
    prototypes: K.
    hidden: width of the first two layers.
    bottleneck: width of the third.
    dtype: of the products; norms and cosines are float32.
  """

  prototypes: int
  hidden: int = 2048
  bottleneck: int = 256
  dtype: DTypeLike = 'float32'

  @nn.compact
  def __call__(self, x: Array, constant: bool | Array = False) -> Array:
    """(M, F) -> float32 (M, K); where `constant` () is true no gradient reaches the prototypes."""
    normal = nn.initializers.normal(0.02)
    for index, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
      x = nn.gelu(x, approximate=False) if index else x
      x = nn.Dense(width, dtype=self.dtype, kernel_init=normal, name=f'dense{index + 1}')(x)
    prototypes = Prototypes(self.prototypes, self.dtype, name='prototypes')
    return prototypes(unit(x, axis=-1), jnp.asarray(constant))


def unit(x: Array, *, axis: int) -> Array:
  """Vectors divided by their norms along an axis, float32."""
  x = x.astype(jnp.float32)
  squares = jnp.square(x).sum(axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, MIN_NORM**2))


def centred(cosines: Array, centre: Array, temperature: Array | float) -> Array:
  """A teacher's targets: softmax((cosines - centre) / temperature), (..., K), (K,) -> (..., K)."""
  centre = jnp.expand_dims(centre, range(cosines.ndim - 1))
  return jax.nn.softmax((cosines - centre) / temperature)


def sinkhorn(
  cosines: Array, weights: Array, temperature: Array | float, *, rounds: int = ROUNDS
) -> Array:
  """A teacher's targets by which all prototypes are used alike (SwaV, arXiv 2006.09882).

  Each round divides prototypes by their sum over the rows, then rows by theirs over prototypes.

  Args:
    cosines: (M, K); M may be 0.
    weights: (M,), 0 for rows that are none.
    temperature: that cosines are divided by.
    rounds: that are made.

  Returns:
    (M, K), which sums to 1 along K.
  """
  scaled = cosines / temperature
  q = jnp.exp(scaled - scaled.max(initial=-jnp.inf)) * weights[:, None]
  for _ in range(rounds):
    q = q / jnp.maximum(q.sum(0, keepdims=True), jnp.finfo(q.dtype).tiny)
    q = q / jnp.maximum(q.sum(1, keepdims=True), jnp.finfo(q.dtype).tiny)
  return q


def cross_entropy(targets: Array, cosines: Array, temperature: float) -> Array:
  """How far a student's softmax(cosines / temperature) is from targets: (..., K) both -> (...)."""
  return -(targets * jax.nn.log_softmax(cosines / temperature)).sum(-1)


def view_loss(targets: Array, cosines: Array, temperature: float) -> Array:
  """DINO's loss of each image: the mean cross-entropy of two views that are not the same.

  Args:
    targets: (N, G, K), of the teacher for the first G views.
    cosines: (N, S, K), of the student for all views.
    temperature: of the student.

  Returns:
    (N,).
  """
  logs = jax.nn.log_softmax(cosines / temperature)
  pairs = -jnp.einsum('ngk,nsk->ngs', targets, logs)
  _, teachers, students = pairs.shape
  others = ~jnp.eye(teachers, students, dtype=bool)
  return pairs.mean((1, 2), where=others[None])


def patch_loss(targets: Array, cosines: Array, weights: Array, temperature: float) -> Array:
  """iBOT's loss of each image (arXiv 2111.07832): the weighted sum over its hidden patches.

  Args:
    targets, cosines: (N, P, K), of P patches of all its views.
    weights: (N, P), 1 / (G number hidden in the same view), 0 for patches that are not hidden.
    temperature: of the student.

  Returns:
    (N,): the mean over views, where those with nothing hidden count as 0.
  """
  return (weights * cross_entropy(targets, cosines, temperature)).sum(1)


def koleo(features: Array, weights: Array) -> Array:
  """How near each image's nearest neighbour is, -log of the distance of unit vectors (KoLeo).

  The estimate of entropy by Kozachenko and Leonenko (arXiv 1806.03198), as DINOv2 spreads the
  features of a batch.

  Args:
    features: (N, F).
    weights: (N,), 0 for images that are none.

  Returns:
    (N,), 0 of images that are none, and where there are no two.
  """
  x = unit(features, axis=-1)
  similar = jnp.where(weights[None] > 0, x @ x.T, -2)
  nearest = jnp.where(jnp.eye(len(x), dtype=bool), -2, similar).argmax(1)  # (N,)
  distances = jnp.linalg.norm(x - x[nearest] + KOLEO_EPSILON, axis=-1)
  counts = jnp.where((weights > 0).sum() > 1, weights, 0)
  return jnp.where(counts > 0, -jnp.log(distances + KOLEO_EPSILON), 0)


def entropy(targets: Array) -> Array:
  """The entropy of distributions over prototypes, in nats: (..., K) -> (...)."""
  return -jax.scipy.special.xlogy(targets, targets).sum(-1)
