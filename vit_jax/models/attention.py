"""Attention: fused by what the device has (cuDNN, XLA), explicit where its weights are asked for.

N images, S queries, T tokens, D width, A heads, P patches.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vit_jax.models.layers import NORMS

Array = jax.Array
xavier = nn.initializers.xavier_uniform()


class MultiHeadAttention(nn.Module):
  """Multi-head attention of queries on tokens; returns the weights too when asked for them.

  Fields:
    norm: kind of the norms, a row of `layers.NORMS`.
    out_norm: whether what the heads give is normalised, all of them together, before `out`.
    out_bias: whether `out` has a bias.
    interleaved: whether the rotation's pairs are neighbours; otherwise they are halves of a head.
    relative: module that biases the scores by relative positions, see `RelativePositions`; None
      leaves it out.
  """

  heads: int
  dropout: float
  qkv_bias: str
  qk_norm: bool
  norm_eps: float
  dtype: DTypeLike
  train: bool
  return_weights: bool
  norm: str = 'layer'
  out_norm: bool = False
  out_bias: bool = True
  interleaved: bool = False
  relative: Callable[..., nn.Module] | None = None

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
    norm = functools.partial(NORMS[self.norm], epsilon=self.norm_eps, dtype=self.dtype)
    if self.qk_norm:
      q, k = norm(name='query_norm')(q), norm(name='key_norm')(k)
    if rope is not None:
      q, k = (rotated(heads, rope, interleaved=self.interleaved) for heads in (q, k))
    bias = None
    if self.relative is not None:
      bias = self.relative(name='relative')(tokens.shape[1])
    if self.return_weights or (self.train and self.dropout):
      x, weights = self.explicit(q, k, v, bias)
    else:
      x, weights = fused_attention(q, k, v, bias), None
    if self.out_norm:
      x = norm(name='norm')(x.reshape(*x.shape[:2], width)).reshape(x.shape)
    out = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      use_bias=self.out_bias,
      kernel_init=xavier,
      dtype=self.dtype,
      name='out',
    )
    return out(x), weights  # (N, S, D)

  def explicit(
    self, q: Array, k: Array, v: Array, bias: Array | None = None
  ) -> tuple[Array, Array]:
    """Attention with its weights in memory: softmax in float32, dropout on the weights."""
    scores = jnp.einsum('nsad,ntad->nast', q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    weights = nn.softmax(scores if bias is None else scores + bias)  # (N, A, S, T)
    dropped = nn.Dropout(self.dropout, deterministic=not self.train)(weights)
    return jnp.einsum('nast,ntad->nsad', dropped.astype(v.dtype), v), weights


class RelativePositions(nn.Module):
  """A bias of the scores by head and by how far a query's patch lies from a key's.

  Tokens before the patches are at three distances more: to a patch, of a patch, to each other.

  Fields:
    kind: 'table', a number for each distance (BEiT, arXiv 2106.08254), or 'mlp', two layers over
      the logarithm of the distance (Swin V2, arXiv 2111.09883), 0 for tokens before the patches.
    hidden: width of the first of those layers.
    heads: A.
    grid: rows R and columns C of the patches.
  """

  kind: str
  hidden: int
  heads: int
  grid: tuple[int, int]

  @nn.compact
  def __call__(self, tokens: int) -> Array:
    """The float32 bias (1, A, T, T) of T tokens, the patches last."""
    rows, columns = self.grid
    prefix = tokens - rows * columns
    distances = (2 * rows - 1) * (2 * columns - 1)
    if self.kind == 'table':
      zeros, shape = nn.initializers.zeros, (distances + 3 * (prefix > 0), self.heads)
      table = self.param('table', zeros, shape)
    else:
      hidden = nn.relu(nn.Dense(self.hidden, name='up')(log_distances(rows, columns)))
      table = nn.Dense(self.heads, name='down')(hidden)  # (distances, A)
      table = jnp.pad(table, ((0, 3 * (prefix > 0)), (0, 0)))
    bias = table[relative_index(rows, columns, prefix)]  # (T, T, A)
    return jnp.moveaxis(bias, -1, 0)[None].astype(jnp.float32)


def relative_index(rows: int, columns: int, prefix: int) -> np.ndarray:
  """The row (T, T) of a table of distances for each query and key, `prefix` tokens first.

  Distances (query less key) go from the most negative row to the most positive, columns within
  rows; then come prefix to patch, patch to prefix and prefix to prefix.
  """
  y, x = np.divmod(np.arange(rows * columns), columns)
  down, across = y[:, None] - y + rows - 1, x[:, None] - x + columns - 1
  last = (2 * rows - 1) * (2 * columns - 1)
  index = np.full((prefix + len(y),) * 2, last + 2)
  index[:prefix, prefix:], index[prefix:, :prefix] = last, last + 1
  index[prefix:, prefix:] = down * (2 * columns - 1) + across
  return index


def log_distances(rows: int, columns: int) -> np.ndarray:
  """sign(d) log(1 + |d|) of all distances down and across: (distances, 2), as a table has them."""
  down, across = np.mgrid[1 - rows : rows, 1 - columns : columns]
  distances = np.stack([down.ravel(), across.ravel()], axis=-1)
  return (np.sign(distances) * np.log1p(np.abs(distances))).astype(np.float32)


def fused_attention(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
  """cuDNN flash attention where the device and the type allow it, XLA elsewhere.

  Scores take a float32 `bias` (1, A, S, T), which cuDNN would round to the type of `q`: XLA again.
  """
  fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
  cudnn = fits and bias is None and q.shape[1] == k.shape[1] and has_flash_attention()
  return jax.nn.dot_product_attention(q, k, v, bias, implementation='cudnn' if cudnn else 'xla')


def has_flash_attention() -> bool:
  """Whether the device is an NVIDIA GPU that cuDNN's flash attention runs on (Ampere or later)."""
  capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
  return jax.default_backend() == 'gpu' and capability[:1].isdigit() and float(capability) >= 8


def rotated(x: Array, rope: Array, *, interleaved: bool = False) -> Array:
  """Heads (N, T, A, D/A) with the last P tokens rotated by `rope` (2, P, D/A).

  The pairs that are rotated are a head's two halves, or with `interleaved` neighbouring channels.
  """
  prefix, patches = jnp.split(x, [x.shape[1] - rope.shape[1]], axis=1)
  n, p, heads, width = patches.shape
  sin, cos = rope[:, None, :, None, : width // 2]  # (1, P, 1, D/2A)
  pairs = patches.astype(jnp.float32)
  if interleaved:
    first, second = jnp.moveaxis(pairs.reshape(n, p, heads, width // 2, 2), -1, 0)
  else:
    first, second = jnp.split(pairs, 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  result = jnp.stack(turned, -1) if interleaved else jnp.concatenate(turned, -1)
  return jnp.concatenate([prefix, result.reshape(patches.shape).astype(x.dtype)], axis=1)


def rope2d(
  rows: int,
  columns: int,
  width: int,
  theta: float,
  *,
  grid: str = 'centres',
  offset: float = 0.0,
  reference: tuple[int, int] | None = None,
  axes: str = 'yx',
) -> np.ndarray:
  """Sines and cosines (2, rows * columns, width) of an axial rotation.

  The first quarter of the angles belongs to one axis, the second to the other, and both are
  repeated for the other half of the rotated pairs.

  Args:
    rows, columns: of the patches.
    width: of a head.
    theta: base of the frequencies.
    grid: where a patch lies: its centre in [-1, 1] along each axis, a whole turn to 1 ('centres':
      DINOv3, arXiv 2508.10104), or its number ('cells': EVA-02, arXiv 2303.11331).
    offset: added to the number of a patch.
    reference: rows and columns to which 'cells' are scaled: those of pre-training.
    axes: which axis comes first, 'yx' or 'xy'.
  """
  sides = (rows, columns)
  if grid == 'centres':
    places = [2 * np.pi * ((np.arange(n) + 0.5 + offset) / n * 2 - 1) for n in sides]
  else:
    places = [(np.arange(n) + offset) / n * m for n, m in zip(sides, reference or sides)]
  y, x = np.meshgrid(*places, indexing='ij')
  pair = np.stack([y, x] if axes == 'yx' else [x, y], axis=-1).reshape(rows * columns, 2)
  frequencies = theta ** -(np.arange(width // 4) / (width // 4))
  angles = (pair[:, :, None] * frequencies).reshape(rows * columns, -1)
  angles = np.tile(angles, (1, 2))  # (rows * columns, width)
  return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)
