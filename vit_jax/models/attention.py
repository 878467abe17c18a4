"""Attention: fused by what the device has (cuDNN, XLA), explicit where its weights are asked for.

N images, S queries, T tokens, D width, A heads, P patches.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Array = jax.Array
xavier = nn.initializers.xavier_uniform()


class MultiHeadAttention(nn.Module):
  """Multi-head attention of queries on tokens; returns the weights too when asked for them."""

  heads: int
  dropout: float
  qkv_bias: str
  qk_norm: bool
  norm_eps: float
  dtype: DTypeLike
  train: bool
  return_weights: bool

  @nn.compact
  def __call__(
    self, queries: Array, tokens: Array, rope: Array | None = None
  ) -> tuple[Array, Array | None]:
    """(N, S, D), (N, T, D) -> (N, S, D) and the weights (N, A, S, T), or None.

    `rope` (2, P, D/A), from `rope2d`, rotates the queries and keys of the last P tokens.
    """
    width = tokens.shape[-1]
    project = functools.partial(
      nn.DenseGeneral, (self.heads, width // self.heads), kernel_init=xavier, dtype=self.dtype
    )
    q = project(name='query', use_bias='q' in self.qkv_bias)(queries)  # (N, S, A, D/A)
    k = project(name='key', use_bias='k' in self.qkv_bias)(tokens)  # (N, T, A, D/A)
    v = project(name='value', use_bias='v' in self.qkv_bias)(tokens)
    if self.qk_norm:
      norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
      q, k = norm(name='query_norm')(q), norm(name='key_norm')(k)
    if rope is not None:
      q, k = rotated(q, rope), rotated(k, rope)
    if self.return_weights or (self.train and self.dropout):
      x, weights = self.explicit(q, k, v)
    else:
      x, weights = fused_attention(q, k, v), None
    out = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=xavier, dtype=self.dtype, name='out')
    return out(x), weights  # (N, S, D)

  def explicit(self, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Attention with its weights in memory: softmax in float32, dropout on the weights."""
    scores = jnp.einsum('nsad,ntad->nast', q, k, preferred_element_type=jnp.float32)
    weights = nn.softmax(scores * q.shape[-1] ** -0.5)  # (N, A, S, T)
    dropped = nn.Dropout(self.dropout, deterministic=not self.train)(weights)
    return jnp.einsum('nast,ntad->nsad', dropped.astype(v.dtype), v), weights


def fused_attention(q: Array, k: Array, v: Array) -> Array:
  """cuDNN flash attention where the device and the type allow it, XLA elsewhere."""
  fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
  cudnn = fits and q.shape[1] == k.shape[1] and has_flash_attention()
  return jax.nn.dot_product_attention(q, k, v, implementation='cudnn' if cudnn else 'xla')


def has_flash_attention() -> bool:
  """Whether the device is an NVIDIA GPU that cuDNN's flash attention runs on (Ampere or later)."""
  capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
  return jax.default_backend() == 'gpu' and capability[:1].isdigit() and float(capability) >= 8


def rotated(x: Array, rope: Array) -> Array:
  """Heads (N, T, A, D/A) with the last P tokens rotated by `rope` (2, P, D/A)."""
  sin, cos = rope[:, None, :, None]  # (1, P, 1, D/A)
  prefix, patches = jnp.split(x, [x.shape[1] - sin.shape[1]], axis=1)
  first, second = jnp.split(patches.astype(jnp.float32), 2, axis=-1)
  result = jnp.concatenate([first, second], axis=-1) * cos
  result += jnp.concatenate([-second, first], axis=-1) * sin
  return jnp.concatenate([prefix, result.astype(x.dtype)], axis=1)


def rope2d(rows: int, columns: int, width: int, theta: float) -> np.ndarray:
  """Sines and cosines (2, rows * columns, width) of DINOv3's axial rotation (arXiv 2508.10104).

  A patch's centre lies in [-1, 1] along each axis; the first quarter of the angles belongs to its
  row, the second to its column, and both are repeated for the other half of the rotated pairs.
  """
  y = (np.arange(rows) + 0.5) / rows * 2 - 1
  x = (np.arange(columns) + 0.5) / columns * 2 - 1
  centres = np.stack(np.meshgrid(y, x, indexing='ij'), axis=-1).reshape(rows * columns, 2)
  frequencies = theta ** -(np.arange(width // 4) / (width // 4))
  angles = 2 * np.pi * (centres[:, :, None] * frequencies).reshape(rows * columns, -1)
  angles = np.tile(angles, (1, 2))  # (rows * columns, width)
  return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)
