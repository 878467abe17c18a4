"""What ViT, Mixer and ResNet share: patches, MLPs, a stack of blocks, and the head.

N images, C channels, P pixels of a patch side, T tokens, D width, M MLP width, L depth, K classes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AbstractDevice, AbstractMesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from vit_jax.models import derivatives

Array = jax.Array
Tangent = Array | SymbolicZero

AXES = ('data', 'fsdp', 'tensor')  # of the mesh of a program, see `sharding`
IMAGE_AXES = ('data', 'fsdp')  # those that share the images of a batch

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),  # Google
  'gelu_erf': functools.partial(nn.gelu, approximate=False),  # timm, Hugging Face, torchvision
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # CLIP
}
HEAD_INITS = {
  'zeros': nn.initializers.zeros,
  'normal': nn.initializers.normal(0.02),  # timm, DeiT: they truncate at 2, 100 deviations away
}
# What the backward pass of a block reads besides its input, by the names that the modules give:
# outputs of matrix products, and sums along rows, which are few numbers and dear to compute again.
PROJECTED = ('query', 'key', 'value')
SAVED = ('attended', 'middle', 'hidden', 'gate')
SAVED_SUMS = ('attention_sums', 'norm_mean', 'norm_inverse')
REMAT = {
  'none': None,
  'lean': jax.checkpoint_policies.save_only_these_names(*PROJECTED, *SAVED, *SAVED_SUMS),
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}
# In a TPU's loop q, k and v take longer to write and to read back than to compute again: of B/16
# 229.3 million cycles a step against 225.6, and 6.2 GiB against 4.9 (docs/performance.md).
LEAN_LOOP_TPU = jax.checkpoint_policies.save_only_these_names(*SAVED, *SAVED_SUMS)
UNROLL_UP_TO = 24  # layers; beyond it compile time outweighs what a step gains


def program_device() -> AbstractDevice | jax.Device:
  """What the program being traced is for: a device of its mesh, or the process's first one.

  A program is also compiled for devices that are not here, see `jax.sharding.use_abstract_mesh`.
  """
  return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def program_mesh() -> AbstractMesh | None:
  """The mesh of the program being traced, if it is one of ours."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if set(AXES) <= set(mesh.axis_names) else None


def image_axes(mesh: AbstractMesh) -> tuple[str, ...]:
  """The axes that share the images which a program of a mesh sees: under `shard_map` fewer."""
  return tuple(axis for axis in IMAGE_AXES if axis not in mesh.manual_axes)


def image_parts(mesh: AbstractMesh) -> int:
  """How many devices, or groups that split parameters, share those images."""
  return math.prod(mesh.shape[axis] for axis in image_axes(mesh))


def by_image(x: Array) -> Array:
  """Tokens (N, T, D) whose images the devices of the program's mesh share, each image whole.

  Unasked, the compiler follows the split of the parameters: with `fsdp` it cut tokens along D and
  exchanged them for every product, which sent fifty times as much (docs/performance.md).
  """
  mesh = program_mesh()
  if mesh is None or x.shape[0] % image_parts(mesh):
    return x
  return jax.lax.with_sharding_constraint(x, P(image_axes(mesh), None, None))


def product(x: Array, kernel: Array) -> Array:
  """Tokens (..., D) times a kernel (D, E): (..., E).

  On a CPU one product of two matrices: of tokens by image, XLA would transpose the operands of the
  kernel's gradient, and compute what gives them again, column by column, while it does. On a TPU
  merging images and tokens would copy them, as tokens are padded to a multiple of 8.
  """
  if program_device().platform != 'cpu':
    return x @ kernel
  return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def tied(x: Array, kernel: Array) -> tuple[Array, Array]:
  """The operands of a product, both of whose gradients several GPUs compute before they go on.

  Unasked, the CUDA compiler leaves the gradients of all kernels to the end of the backward pass, to
  exchange them in few parts, and keeps what they are products of until then: a third of B/16's
  memory (docs/performance.md). Not where 'tensor' splits channels: there x's gradients by q, k and
  v are added before devices sum them, and would be summed apart.
  """
  mesh = program_mesh()
  if mesh is None or mesh.size == 1 or mesh.shape['tensor'] > 1:
    return x, kernel
  if program_device().platform not in ('gpu', 'cuda'):
    return x, kernel
  return tied_gradients(x, kernel)


@jax.custom_jvp
def tied_gradients(x: Array, kernel: Array) -> tuple[Array, Array]:
  """Both as they are; in the backward pass nothing reads one's gradient before the other's."""
  return x, kernel


@functools.partial(tied_gradients.defjvp, symbolic_zeros=True)
def tied_tangents(
  primals: tuple[Array, Array], tangents: tuple[Tangent, Tangent]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
  if any(isinstance(tangent, SymbolicZero) for tangent in tangents):
    # One gradient is not wanted, as of a kernel that is frozen. JAX takes its zero for an array.
    return primals, cast(tuple[Array, Array], tangents)
  return primals, jax.lax.optimization_barrier(tangents)  # transposed, a barrier for gradients


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def saving_product(x: Array, kernel: Array, name: str) -> Array:
  """`product` of what attention gives, which is saved under a name of SAVED for the gradient alone.

  Of a named array that the forward pass reads too, JAX rounds the numbers to their own type, lest
  both passes differ: for XLA a copy of what a kernel of Pallas or cuDNN gives.
  """
  return product(x, kernel)


@saving_product.defjvp
def saving_product_tangent(
  name: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
  (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
  change = product(x_tangent, kernel) + product(checkpoint_name(x, name), kernel_tangent)
  return product(x, kernel), change


def spread(vector: Array, shape: tuple[int, ...]) -> Array:
  """A vector (D,) for every token of a shape (..., D).

  Its gradient is a sum over all tokens. On a TPU the matrix unit adds faster than the vector unit,
  on which the sums for biases and norms take a tenth of a step: there the gradient is a product
  with ones, whose operands are rounded as those of every product are.
  """
  if program_device().platform == 'tpu':
    return spread_by_product(vector, shape)
  return jnp.broadcast_to(vector, shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def spread_by_product(vector: Array, shape: tuple[int, ...]) -> Array:
  """`spread`, linear as a product with ones, whose transpose JAX derives."""
  return jnp.broadcast_to(vector, shape)


@spread_by_product.defjvp
def spread_tangent(
  shape: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
  rows = 8  # of a vector register
  eighths = jnp.broadcast_to(tangents[0] / rows, (rows, shape[-1]))
  return spread_by_product(*primals, shape), jnp.ones((*shape[:-1], rows), eighths.dtype) @ eighths


def taken(tokens: Array, indices: Array) -> Array:
  """Some tokens of each image, in an order: (N, T, D), (N, V) -> (N, V, D)."""
  return jnp.take_along_axis(tokens, indices[:, :, None], axis=1)


def activate(name: str, x: Array) -> Array:
  """One of ACTIVATIONS, on a CPU by the derivative that saves x alone."""
  if program_device().platform == 'cpu':
    return derivatives.gated(ACTIVATIONS[name], x)
  return ACTIVATIONS[name](x)


class Dense(nn.Module):
  """A dense layer of tokens (N, T, D) -> (N, T, features), as `nn.Dense` but for its sums."""

  features: int
  use_bias: bool
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    inputs = x.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (inputs, self.features))
    x = product(*tied(x.astype(self.dtype), kernel.astype(self.dtype)))
    if not self.use_bias:
      return x
    bias = self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
    # The plain sum for a wide layer is part of the product that gives its gradient.
    wide = self.features > inputs
    return x + (jnp.broadcast_to if wide else spread)(bias, x.shape)


class LayerNorm(nn.Module):
  """LayerNorm (arXiv 1607.06450) over the last axis, as `nn.LayerNorm` but for its sums."""

  epsilon: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    x = x.astype(jnp.float32)
    if program_device().platform == 'cpu':
      return derivatives.layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)
    mean, inverse = derivatives.moments(x, self.epsilon)
    x = (x - mean) * (inverse * spread(scale, x.shape)) + spread(bias, x.shape)
    return x.astype(self.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {'layer': LayerNorm, 'rms': nn.RMSNorm}


def check_patches(images: Array, patch: tuple[int, int]) -> None:
  """Raises ValueError if a side of (N, height, width, C) images is not a multiple of the patch."""
  _, height, width, _ = images.shape
  p, q = patch
  if height % p or width % q:
    raise ValueError(f'images of {height}x{width} pixels do not divide into {p}x{q} patches')


class PatchEmbed(nn.Module):
  """A convolution whose stride is its kernel's size, as one matmul."""

  width: int
  kernel_size: tuple[int, int]
  use_bias: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """(N, height, width, C) -> (N, height/P, width/P, D)."""
    n, height, width, channels = images.shape
    p, q = self.kernel_size
    patches = images.reshape(n, height // p, p, width // q, q, channels).swapaxes(2, 3)
    patches = patches.reshape(*patches.shape[:3], p * q * channels)  # (N, height/P, width/P, PPC)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (p, q, channels, self.width))
    x = product(patches, kernel.reshape(-1, self.width).astype(self.dtype))
    if not self.use_bias:
      return x
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    return x + bias.astype(self.dtype)[None, None, None]


class Mlp(nn.Module):
  """Two dense layers over the last axis; SwiGLU gates the first (arXiv 2002.05202).

  Fields:
    hidden: M.
    kernel_init, bias_init: of all its dense layers.
    use_bias: whether they have biases.
    norm: kind of a norm before the last dense layer, a row of NORMS; '' leaves it out.
    norm_eps: its epsilon.
  """

  hidden: int
  activation: str
  dropout: float
  dtype: DTypeLike
  train: bool
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer
  swiglu: bool = False
  use_bias: bool = True
  norm: str = ''
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(
      Dense,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dtype=self.dtype,
    )
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    h = checkpoint_name(dense(self.hidden, name='up')(x), 'hidden')  # (N, T, M)
    if self.swiglu:
      h = h * nn.silu(checkpoint_name(dense(self.hidden, name='gate')(x), 'gate'))
    else:
      h = activate(self.activation, h)
    h = drop(h)
    if self.norm:
      h = NORMS[self.norm](epsilon=self.norm_eps, dtype=self.dtype, name='norm')(h)
    return drop(dense(x.shape[-1], name='down')(h))  # (N, T, D)


def stochastic_depth(y: Array, rate: Array, key: Array) -> Array:
  """A branch (N, T, D): 0 for an image with probability `rate`, else scaled (arXiv 1603.09382)."""
  survives = jax.random.bernoulli(key, 1 - rate, (y.shape[0], 1, 1))
  return jnp.where(survives, y.astype(jnp.float32) / (1 - rate), 0).astype(y.dtype)


class StackedBlocks(nn.Module):
  """`depth` blocks stacked on a leading parameter axis, and a final norm.

  Fields:
    layer: the class of the blocks: (x, drop rate, *shared) -> x and a dict for analysis.
    block: its fields, but for `drop_path`.
  """

  layer: type[nn.Module]
  depth: int
  drop_path: float
  unroll: int | None
  remat: str
  final_norm: bool
  block: dict[str, Any]

  @nn.compact
  def __call__(self, x: Array, *shared: Array | None) -> tuple[Array, dict[str, Array]]:
    """(N, T, D) -> (N, T, D) and what the blocks leave (L, ...); `shared` is the same for all."""
    unroll = self.unroll or default_unroll(self.depth, train=self.block['train'])
    layer = self.layer
    if self.remat != 'none':
      # Without a loop, common-subexpression elimination would undo the rematerialisation.
      straight = unroll >= self.depth
      projects = not straight and self.remat == 'lean' and program_device().platform == 'tpu'
      policy = LEAN_LOOP_TPU if projects else REMAT[self.remat]
      layer = nn.remat(layer, policy=policy, prevent_cse=straight)
    blocks = nn.scan(
      layer,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0, *(nn.broadcast for _ in shared)),
      length=self.depth,
      unroll=unroll,
      check_constancy_invariants=self.draws(),
    )
    rates = jnp.asarray(np.linspace(0, self.drop_path, self.depth), jnp.float32)  # (L,)
    x, out = blocks(**self.block, drop_path=self.drop_path > 0, name='blocks')(x, rates, *shared)
    if not self.final_norm:
      return x, out
    norm = NORMS[self.block.get('norm', 'layer')]
    eps, dtype = self.block['norm_eps'], self.block['dtype']
    return norm(epsilon=eps, dtype=dtype, name='norm')(x), out

  def draws(self) -> bool:
    """Whether blocks draw random numbers, as parameters or by dropout.

    To check what is constant flax traces a block twice, and the second trace draws other numbers
    than the first: the check stays where seeds would else give another model, or run.
    """
    rates = (self.drop_path, self.block.get('dropout'), self.block.get('attention_dropout'))
    return self.is_initializing() or (self.block['train'] and any(rates))


def default_unroll(depth: int, *, train: bool) -> int:
  """All layers where that is faster; on a CPU, inference is faster as a loop."""
  gains = train or program_device().platform != 'cpu'
  return depth if gains and depth <= UNROLL_UP_TO else 1


def classifier(num_classes: int, bias: float | None, *, init: str, name: str) -> nn.Dense:
  """A head whose kernel starts by a row of HEAD_INITS, with that bias or, for None, without one."""
  return nn.Dense(
    num_classes,
    use_bias=bias is not None,
    kernel_init=HEAD_INITS[init],
    bias_init=nn.initializers.constant(bias or 0.0),
    name=name,
  )
