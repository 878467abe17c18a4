"""Softmax, LayerNorm and activations with derivatives that suit XLA's programs for a CPU.

There a sum along rows, as a product, is a kernel of its own, whose operands lie in memory: for the
gradient of LayerNorm as JAX derives it, XLA wrote scale and deviation out for every token, and kept
them from the forward pass on. And where layers are not a loop, what both passes compute is computed
once and kept, a GELU's tanh (docs/performance.md).

D width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array


@jax.custom_jvp
def softmax(scores: Array) -> Array:
  """A softmax over the last axis, whose gradient reads what it gives and nothing else.

  With `jax.nn.softmax` XLA kept the exponentials too, and each row's inverse sum once for every
  score.
  """
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


@softmax.defjvp
def softmax_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  weights = softmax(*primals)
  moved = weights * tangents[0]
  return weights, moved - weights * moved.sum(-1, keepdims=True)


def moments(x: Array, epsilon: float) -> tuple[Array, Array]:
  """The mean of rows (..., D), and 1 / their deviation: (..., 1) float32 each."""
  mean = x.mean(-1, keepdims=True)
  variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
  mean = checkpoint_name(mean, 'norm_mean')
  return mean, checkpoint_name(jax.lax.rsqrt(variance + epsilon), 'norm_inverse')


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
  """LayerNorm of float32 rows (..., D); scale and bias are (D,).

  In its gradient the sums of a row times the scale are products with the scale.
  """
  mean, inverse = moments(x, epsilon)
  scale, bias = (jnp.broadcast_to(vector, x.shape) for vector in (scale, bias))
  return (x - mean) * (inverse * scale) + bias


@layer_norm.defjvp
def layer_norm_tangent(
  epsilon: float, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
  (x, scale, _), (moved, moved_scale, moved_bias) = primals, tangents
  mean, inverse = moments(x, epsilon)
  normal = (x - mean) * inverse
  row = scale[None]  # (1, D): a product with it is, transposed, a row's sum times the scale
  shift = (inverse * moved.mean(-1, keepdims=True)) @ row
  growth = (inverse * (moved * normal).mean(-1, keepdims=True)) @ row
  scale, moved_scale, moved_bias = (
    jnp.broadcast_to(vector, x.shape) for vector in (scale, moved_scale, moved_bias)
  )
  tangent = moved * (inverse * scale) - shift + normal * (moved_scale - growth) + moved_bias
  return layer_norm(*primals, epsilon), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gated(activation: Callable[[Array], Array], x: Array) -> Array:
  """An activation f(x) = x g(x) whose gate has g(-x) = 1 - g(x), as GELU's and SiLU's have.

  Then f'(x) = 1 - f'(-x). What that computes is no part of f(x), so that nothing but x is kept.
  """
  return activation(x)


@gated.defjvp
def gated_tangent(
  activation: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
  (x,), (moved,) = primals, tangents
  _, mirrored = jax.jvp(activation, (-x,), (moved,))
  return activation(x), moved - mirrored
