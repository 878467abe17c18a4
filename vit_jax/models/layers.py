"""What ViT, Mixer and ResNet share: patches, MLPs, a stack of blocks, and the head.

N images, C channels, P pixels of a patch side, T tokens, D width, M MLP width, L depth, K classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),  # Google
  'gelu_erf': functools.partial(nn.gelu, approximate=False),  # timm, Hugging Face, torchvision
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # CLIP
}
NORMS: dict[str, Callable[..., nn.Module]] = {'layer': nn.LayerNorm, 'rms': nn.RMSNorm}
HEAD_INITS = {
  'zeros': nn.initializers.zeros,
  'normal': nn.initializers.normal(0.02),  # timm, DeiT: they truncate at 2, 100 deviations away
}
REMAT = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
UNROLL_UP_TO = 24  # layers; beyond it compile time outweighs what a step gains


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
    patches = images.reshape(n, height // p, p, width // q, q, channels)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (p, q, channels, self.width))
    x = jnp.einsum('nrpsqc,pqcd->nrsd', patches, kernel.astype(self.dtype))
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
      nn.Dense,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dtype=self.dtype,
    )
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    h = dense(self.hidden, name='up')(x)  # (N, T, M)
    if self.swiglu:
      h = h * nn.silu(dense(self.hidden, name='gate')(x))
    else:
      h = ACTIVATIONS[self.activation](h)
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
      layer = nn.remat(layer, policy=REMAT[self.remat], prevent_cse=straight)
    blocks = nn.scan(
      layer,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0, *(nn.broadcast for _ in shared)),
      length=self.depth,
      unroll=unroll,
    )
    rates = jnp.asarray(np.linspace(0, self.drop_path, self.depth), jnp.float32)  # (L,)
    x, out = blocks(**self.block, drop_path=self.drop_path > 0, name='blocks')(x, rates, *shared)
    if not self.final_norm:
      return x, out
    norm = NORMS[self.block.get('norm', 'layer')]
    eps, dtype = self.block['norm_eps'], self.block['dtype']
    return norm(epsilon=eps, dtype=dtype, name='norm')(x), out


def default_unroll(depth: int, *, train: bool) -> int:
  """All layers where that is faster; on a CPU, inference is faster as a loop."""
  gains = train or jax.default_backend() != 'cpu'
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
