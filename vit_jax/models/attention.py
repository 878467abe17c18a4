"""Attention: fused by what the devices have, explicit where its weights are asked for.

N images, S queries, T tokens, D width, A heads, P patches.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractDevice
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from vit_jax.models import derivatives
from vit_jax.models.layers import (
  NORMS,
  image_axes,
  image_parts,
  product,
  program_device,
  program_mesh,
  saving_product,
  spread,
  tied,
)

Array = jax.Array
xavier = nn.initializers.xavier_uniform()
ATTENTION_KERNELS = ('auto', 'xla')


class MultiHeadAttention(nn.Module):
  """Multi-head attention of queries on tokens; returns the weights too when asked for them.

  Fields:
    norm: kind of the norms, a row of `layers.NORMS`.
    out_norm: whether what the heads give is normalised, all of them together, before `out`.
    out_bias: whether `out` has a bias.
    interleaved: whether the rotation's pairs are neighbours; otherwise they are halves of a head.
    kernel: what computes attention where its weights are not asked for, of ATTENTION_KERNELS.
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
  kernel: str = 'auto'
  relative: Callable[..., nn.Module] | None = None

  @nn.compact
  def __call__(
    self, queries: Array, tokens: Array, rope: Array | None = None
  ) -> tuple[Array, Array | None]:
    """(N, S, D), (N, T, D) -> (N, S, D) and the weights (N, A, S, T), or None.

    `rope` (2, P, D/A), from `rope2d`, or (2, N, P, D/A) for each image, rotates the queries and
    keys of the last P tokens.
    """
    width = tokens.shape[-1]
    project = functools.partial(Projection, self.heads, width // self.heads, dtype=self.dtype)
    q = project(name='query', use_bias='q' in self.qkv_bias)(queries)  # (N, S, D)
    k = project(name='key', use_bias='k' in self.qkv_bias)(tokens)  # (N, T, D)
    v = project(name='value', use_bias='v' in self.qkv_bias)(tokens)
    q, k, v = (checkpoint_name(x, name) for x, name in zip((q, k, v), ('query', 'key', 'value')))
    norm = functools.partial(NORMS[self.norm], epsilon=self.norm_eps, dtype=self.dtype)
    if self.qk_norm:
      q = joined(norm(name='query_norm')(self.split(q)))
      k = joined(norm(name='key_norm')(self.split(k)))
    if rope is not None:
      rotate = functools.partial(rotated, rope=rope, interleaved=self.interleaved)
      q, k = joined(rotate(self.split(q))), joined(rotate(self.split(k)))
    bias = weights = None
    if self.relative is not None:
      bias = self.relative(name='relative')(tokens.shape[1])
    # On a CPU explicit attention is the faster one, by 5 % of a layer of S/16.
    on_cpu = program_device().platform == 'cpu'
    if self.return_weights or (self.train and self.dropout) or on_cpu:
      x, weights = self.explicit(self.split(q), self.split(k), self.split(v), bias)
      x = joined(x)
    else:
      x = fused_attention(q, k, v, self.heads, bias, kernel=self.kernel)
    saved = 'attended'
    if self.out_norm:
      x, saved = norm(name='norm')(checkpoint_name(x, saved)), ''
    x = project(name='out', use_bias=self.out_bias, back=True, saved=saved)(x)  # (N, S, D)
    return x, weights if self.return_weights else None

  def split(self, x: Array) -> Array:
    """(N, T, D) -> (N, T, A, D/A)."""
    return x.reshape(*x.shape[:2], self.heads, -1)

  def explicit(
    self, q: Array, k: Array, v: Array, bias: Array | None = None
  ) -> tuple[Array, Array]:
    """Attention with its weights in memory: softmax in float32, dropout on the weights."""
    # A CPU lays out heads for the products in any case; asked for here, they are laid out once.
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (N, A, S or T, D/A)
    scores = jnp.einsum('nasd,natd->nast', q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    weights = derivatives.softmax(scores if bias is None else scores + bias)  # (N, A, S, T)
    dropped = nn.Dropout(self.dropout, deterministic=not self.train)(weights)
    x = jnp.einsum('nast,natd->nasd', dropped.astype(v.dtype), v)
    return x.swapaxes(1, 2), weights  # (N, S, A, D/A)


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


def joined(x: Array) -> Array:
  """(N, T, A, D/A) -> (N, T, D)."""
  return x.reshape(*x.shape[:2], -1)


def fused_attention(
  q: Array, k: Array, v: Array, heads: int, bias: Array | None = None, *, kernel: str = 'auto'
) -> Array:
  """Attention (N, S, D), (N, T, D) -> (N, S, D) whose weights stay out of memory where possible.

  Args:
    q, k, v: a head's channels side by side.
    heads: A.
    bias: of the scores, float32 (1, A, S, T): XLA's work, as cuDNN would round it.
    kernel: 'auto' is by the devices of the program: on the mesh of a TPU the kernel of
      `short_attention`, on an NVIDIA GPU cuDNN's, where type and sizes allow it; 'xla' is XLA's,
      on every device.
  """
  auto = kernel == 'auto' and bias is None and q.shape == k.shape
  if auto and program_device().platform == 'tpu':
    from vit_jax.models import short_attention  # Pallas takes half a second to import

    x = short_attention.on_mesh(q, k, v, None, heads=heads)
    if x is not None:
      return x
  width = q.shape[-1] // heads
  allowed = q.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128
  cudnn = auto and allowed and has_flash_attention()
  q, k, v = (x.reshape(*x.shape[:2], heads, width) for x in (q, k, v))
  if cudnn:
    attend = functools.partial(even_attention, implementation='cudnn')
    if (x := by_device(attend, q, k, v)) is not None:
      return joined(x)
  return joined(jax.nn.dot_product_attention(q, k, v, bias, implementation='xla'))


def by_device(attend: Callable[..., Array], *qkv: Array) -> Array | None:
  """Attention (N, T, A, D/A) by each device of the program's mesh, of its own images and heads.

  JAX's rule for what devices share of cuDNN's fails where they share images already, under
  `shard_map`. None where images or heads do not divide by the mesh.
  """
  mesh = program_mesh()
  if mesh is None:
    return attend(*qkv)
  n, _, heads, _ = qkv[0].shape
  if n % image_parts(mesh) or heads % mesh.shape['tensor']:
    return None
  images = image_axes(mesh)
  rows = P(images, None, 'tensor', None)
  axes = {*images, 'tensor'}
  split = jax.shard_map(
    attend, in_specs=(rows,) * 3, out_specs=rows, axis_names=axes, check_vma=False
  )
  return split(*qkv)


def even_attention(q: Array, k: Array, v: Array, *, implementation: str) -> Array:
  """JAX's attention (N, T, A, D/A) of an even number of tokens, with one more if T is odd.

  Of an odd number, as 197, JAX refuses the gradient of cuDNN's, as if there were a bias. Nothing
  attends to the token that is added.
  """
  attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
  n, t = q.shape[:2]
  if t % 2 == 0:
    return attend(q, k, v)
  q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))  # (N, T + 1, A, D/A)
  lengths = jnp.full(n, t, jnp.int32)
  return attend(q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :t]


def has_flash_attention() -> bool:
  """Whether the program may call cuDNN's flash attention."""
  return runs_flash_attention(program_device()) and has_cudnn()


def runs_flash_attention(device: AbstractDevice | jax.Device) -> bool:
  """Whether a device is an NVIDIA GPU of Ampere or later, as cuDNN's flash attention needs.

  One that is not here, for which a program is compiled alone, is taken for one.
  """
  if device.platform not in ('gpu', 'cuda') or 'NVIDIA' not in device.device_kind:
    return False
  local = jax.devices()[0]
  capability = str(getattr(local, 'compute_capability', ''))
  here = local.device_kind == device.device_kind
  return not here or (capability[:1].isdigit() and float(capability) >= 8)


@functools.cache
def has_cudnn() -> bool:
  """Whether this machine has cuDNN: without it JAX writes no program that calls it."""
  x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
  attend = functools.partial(jax.nn.dot_product_attention, implementation='cudnn')
  try:
    jax.eval_shape(attend, x, x, x)
  except RuntimeError:
    return False
  return True


class Projection(nn.Module):
  """Dense layer to the channels of A heads, side by side, or `back` from them.

  Its parameters are those of `nn.DenseGeneral`, (D, A, D/A), or back (A, D/A, D); its product is
  one of matrices, so that no array of tokens is laid out by heads, which on a TPU pads the
  channels of a head to 128 and copies them (7 % of a step of B/16).

  Fields:
    heads, width: A, D/A.
    saved: name of what is projected for `layers.saving_product`; '' where it is saved before.
  """

  heads: int
  width: int
  use_bias: bool
  dtype: DTypeLike
  back: bool = False
  saved: str = ''

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(N, T, D) -> (N, T, D)."""
    by_head, channels = (self.heads, self.width), self.heads * self.width
    outputs = x.shape[-1] if self.back else channels

    def init(key: Array, shape: tuple[int, ...]) -> Array:
      return xavier(key, (x.shape[-1], outputs)).reshape(shape)

    kernel = self.param(
      'kernel', init, (*by_head, outputs) if self.back else (x.shape[-1], *by_head)
    )
    x, kernel = tied(x.astype(self.dtype), kernel.reshape(-1, outputs).astype(self.dtype))
    x = saving_product(x, kernel, self.saved) if self.saved else product(x, kernel)
    if not self.use_bias:
      return x
    bias = self.param('bias', nn.initializers.zeros, (outputs,) if self.back else by_head)
    return x + spread(bias.reshape(outputs).astype(self.dtype), x.shape)


def rotated(x: Array, rope: Array, *, interleaved: bool = False) -> Array:
  """Heads (N, T, A, D/A) with the last P tokens rotated by `rope` (2, P, D/A) or (2, N, P, D/A).

  The pairs that are rotated are a head's two halves, or with `interleaved` neighbouring channels.
  """
  rope = rope[:, None] if rope.ndim == 3 else rope
  prefix, patches = jnp.split(x, [x.shape[1] - rope.shape[2]], axis=1)
  n, p, heads, width = patches.shape
  sin, cos = rope[:, :, :, None, : width // 2]  # (1 or N, P, 1, D/2A)
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
