"""Attention of short sequences on a TPU: the scores of an image never leave the chip (Pallas).

A step of the grid holds all tokens of some heads of one image in fast memory. Scores stand there
transposed, keys by queries: their maxima and sums then run down the rows, which costs the vector
unit little, and no product needs a matrix of scores turned round.

N images, T tokens, A heads of H channels, D = A H channels in all, G heads in a step.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from vit_jax.models.layers import image_axes, image_parts, program_mesh

Array = jax.Array
Ref = jax.Array  # what a kernel reads and writes like an array

MIB = 2**20
VMEM = {  # MiB of fast memory of a core, by the kind of device
  'TPU v4': 16,
  'TPU v5 lite': 128,
  'TPU v5': 64,
  'TPU v6 lite': 128,
  'TPU7x': 64,
}
USABLE = 0.9  # of it: the compiler keeps some for itself
DEFAULT_LIMIT = 16 * MIB  # of a kernel that asks for no more
LANES, ROWS = 128, 16  # of a tile of bfloat16 in fast memory
# Matrices of scores are unrolled over heads: their tiles of 128 x 128 in a step, beyond which the
# program of a step grows and gains nothing.
MAX_TILES = 64
HIDDEN = -1e30  # score of a token that nothing attends to


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def short_attention(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None,
  heads: int,
  group: int,
  interpret: bool = False,
) -> Array:
  """softmax(q k^T / sqrt(H)) v of every head, in float32 but for the products' operands.

  Differentiable in reverse mode alone.

  Args:
    q, k, v: (N, T, D), a head's channels side by side.
    mask: (N, T) bool, the tokens that are attended to, at least one in each image; None is all.
    heads: A.
    group: G, see `heads_per_step`.
    interpret: run as XLA operations, where there is no TPU.

  Returns:
    (N, T, D) in the type of `q`.
  """
  return forward(q, k, v, mask, heads, group, interpret)[0]


def forward(
  q: Array, k: Array, v: Array, mask: Array | None, heads: int, group: int, interpret: bool
) -> tuple[Array, Array]:
  """The result, and each query's log of the sum of exponentials, (N, A / G, G, T) float32."""
  n, t, d = q.shape
  tokens, sums = blocks(t, d, heads, group)
  biases, bias_blocks = mask_operands(mask, t)
  return pl.pallas_call(
    functools.partial(forward_kernel, heads=group, masked=mask is not None),
    grid=(n, heads // group),
    in_specs=[tokens] * 3 + bias_blocks,
    out_specs=[tokens, sums],
    out_shape=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((n, heads // group, group, t), jnp.float32),
    ],
    compiler_params=compiler_params(t, group * d // heads, q.dtype.itemsize),
    interpret=interpret,
    name='short_attention',
  )(q, k, v, *biases)


def forward_kernel(q: Ref, k: Ref, v: Ref, *refs: Ref, heads: int, masked: bool) -> None:
  """One step: the attention of a group of heads of one image."""
  out, sums = refs[-2:]
  bias = refs[0][0] if masked else None  # (T, 1)
  for head, channels in enumerate(head_slices(q.shape[-1], heads)):
    scores = scores_of(q[0, :, channels], k[0, :, channels], bias)  # (keys, queries)
    largest = scores.max(0, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(0, keepdims=True)  # (1, T)
    attended = product(v[0, :, channels].T, weights.astype(v.dtype)) / total  # (H, T)
    out[0, :, channels] = attended.T.astype(out.dtype)
    sums[0, 0, head : head + 1, :] = largest + jnp.log(total)


def backward_kernel(
  q: Ref, k: Ref, v: Ref, sums: Ref, gradient: Ref, *refs: Ref, heads: int, masked: bool
) -> None:
  """One step: the gradients of a group of heads of one image, its weights computed again."""
  dq, dk, dv = refs[-3:]
  bias = refs[0][0] if masked else None
  scale = (q.shape[-1] // heads) ** -0.5
  for head, channels in enumerate(head_slices(q.shape[-1], heads)):
    queries, keys, g = q[0, :, channels], k[0, :, channels], gradient[0, :, channels]
    scores = scores_of(queries, keys, bias)
    weights = jnp.exp(scores - sums[0, 0, head : head + 1, :])  # (keys, queries)
    dv[0, :, channels] = product(weights.astype(g.dtype), g).astype(dv.dtype)
    dweights = product(v[0, :, channels], g.T)
    mean = (weights * dweights).sum(0, keepdims=True)  # (1, T)
    dscores = (weights * (dweights - mean) * scale).astype(q.dtype)
    dk[0, :, channels] = product(dscores, queries).astype(dk.dtype)
    dq[0, :, channels] = product(keys.T, dscores).T.astype(dq.dtype)


def head_slices(width: int, heads: int) -> list[slice]:
  """The channels of each head in a block of that width."""
  size = width // heads
  return [slice(head * size, (head + 1) * size) for head in range(heads)]


def scores_of(queries: Array, keys: Array, bias: Array | None) -> Array:
  """(T, H), (T, H) -> the float32 scores (keys, queries), with a bias (keys, 1)."""
  scores = product(keys, queries.T) * queries.shape[-1] ** -0.5
  return scores if bias is None else scores + bias


def product(a: Array, b: Array) -> Array:
  """The product of two matrices, summed in float32; of float32 ones exactly."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def vjp_forward(
  q: Array, k: Array, v: Array, mask: Array | None, heads: int, group: int, interpret: bool
) -> tuple[Array, tuple[Array | None, ...]]:
  out, sums = forward(q, k, v, mask, heads, group, interpret)
  return out, (q, k, v, mask, checkpoint_name(sums, 'attention_sums'))


def vjp_backward(
  heads: int, group: int, interpret: bool, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None]:
  q, k, v, mask, sums = saved
  n, t, d = q.shape
  tokens, sum_block = blocks(t, d, heads, group)
  biases, bias_blocks = mask_operands(mask, t)
  dq, dk, dv = pl.pallas_call(
    functools.partial(backward_kernel, heads=group, masked=mask is not None),
    grid=(n, heads // group),
    in_specs=[tokens] * 3 + [sum_block, tokens] + bias_blocks,
    out_specs=[tokens] * 3,
    out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype)] * 3,
    compiler_params=compiler_params(t, group * d // heads, q.dtype.itemsize),
    interpret=interpret,
    name='short_attention_gradient',
  )(q, k, v, sums, gradient, *biases)
  return dq, dk, dv, None


short_attention.defvjp(vjp_forward, vjp_backward)


def blocks(t: int, d: int, heads: int, group: int) -> tuple[pl.BlockSpec, pl.BlockSpec]:
  """What a step holds of tokens, (1, T, G H), and of sums, (1, 1, G, T)."""
  tokens = pl.BlockSpec((1, t, group * d // heads), lambda image, part: (image, 0, part))
  return tokens, pl.BlockSpec((1, 1, group, t), lambda image, part: (image, part, 0, 0))


def mask_operands(mask: Array | None, t: int) -> tuple[list[Array], list[pl.BlockSpec]]:
  """A mask (N, T) as what is added to scores, (N, T, 1), and its block."""
  if mask is None:
    return [], []
  added = jnp.where(mask, 0.0, HIDDEN).astype(jnp.float32)[:, :, None]
  return [added], [pl.BlockSpec((1, t, 1), lambda image, part: (image, 0, 0))]


def compiler_params(tokens: int, channels: int, itemsize: int) -> pltpu.CompilerParams:
  """Steps in any order, and the fast memory that one takes."""
  limit = max(DEFAULT_LIMIT, int(vmem_bytes(tokens, channels, itemsize) / USABLE))
  return pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel'), vmem_limit_bytes=limit)


def vmem_bytes(tokens: int, channels: int, itemsize: int) -> int:
  """Fast memory of a step of the gradient, which takes more than the forward pass.

  Seven blocks (T, G H), each twice, as one is copied while the other is computed with; of one head,
  scores, weights and their gradients, two of them in the type of the products too.
  """
  block = ceil(tokens, ROWS) * ceil(channels, LANES) * itemsize
  scores = ceil(tokens, ROWS) * ceil(tokens, LANES) * (3 * 4 + 2 * itemsize)
  return 2 * 7 * block + scores


def ceil(size: int, multiple: int) -> int:
  """The size, rounded up to a multiple."""
  return -(-size // multiple) * multiple


def heads_per_step(heads: int, width: int, tokens: int, itemsize: int, kind: str) -> int:
  """G, how many heads a step takes on such a device; 0 where it has no room for any.

  The channels of a group are whole vector registers, or all there are. The group is the largest
  that fits the device's fast memory and MAX_TILES; where none has so few tiles, the smallest.

  Args:
    heads, width, tokens: A, H, T.
    itemsize: bytes of a channel.
    kind: of the device, a row of VMEM.
  """
  budget = USABLE * VMEM.get(kind, 0) * MIB
  groups = [g for g in range(1, heads + 1) if heads % g == 0 and aligned(g * width, heads * width)]
  fitting = [g for g in groups if vmem_bytes(tokens, g * width, itemsize) <= budget]
  tiles = (ceil(tokens, LANES) // LANES) ** 2
  return max((g for g in fitting if g * tiles <= MAX_TILES), default=min(fitting, default=0))


def aligned(channels: int, total: int) -> bool:
  """Whether a block of so many channels begins and ends with a vector register."""
  return channels % LANES == 0 or channels == total


def on_mesh(q: Array, k: Array, v: Array, mask: Array | None, *, heads: int) -> Array | None:
  """`short_attention` by each device of the program's mesh, of its own images and heads.

  None where the mesh is not (data, fsdp, tensor), images or heads do not divide by it, or a
  device's fast memory is too small; the mask is that of `short_attention`.
  """
  mesh = program_mesh()
  if mesh is None or mesh.abstract_device is None:
    return None
  (n, t, d), parts = q.shape, mesh.shape['tensor']
  if n % image_parts(mesh) or heads % parts:
    return None
  local, kind = heads // parts, mesh.abstract_device.device_kind
  group = heads_per_step(local, d // heads, t, q.dtype.itemsize, kind)
  if not group:
    return None

  def attend(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    return short_attention(q, k, v, mask, local, group)

  images = image_axes(mesh)
  rows = P(images, None, 'tensor')
  specs = (rows, rows, rows, P(images, None))
  split = jax.shard_map(
    attend,
    in_specs=specs,
    out_specs=rows,
    axis_names={*images, 'tensor'},
    check_vma=False,
  )
  return split(q, k, v, mask)
