"""The decoder of a masked autoencoder (He et al., arXiv 2111.06377): visible patches to all pixels.

N images, T patches, V of them visible, D width of the encoder, W of the decoder, F numbers that are
predicted of a patch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import layers, vit
from vit_jax.models.attention import xavier

Array = jax.Array
EPSILON = 1e-6  # added to the variance of a patch's pixels


class Decoder(nn.Module):
  """Blocks over the encoded tokens and, for each hidden patch, one and the same learned token.

  Fields:
    outputs: F.
    prefix: how many of the encoder's tokens are of no patch; they come first.
    width, depth, heads, mlp_dim: of the blocks.
    activation, norm_eps, dtype, attention_kernel, unroll, remat: as of `vit.ViT`.
  """

  outputs: int
  prefix: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  activation: str
  norm_eps: float
  dtype: str = 'float32'
  attention_kernel: str = 'auto'
  unroll: int | None = None
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, tokens: Array, order: Array, grid: tuple[int, int], *, train: bool = False
  ) -> tuple[Array, dict[str, Array]]:
    """Predicts every patch, row by row: float32 (N, T, F); and what the blocks leave.

    Args:
      tokens: (N, S, D), encoded, the V visible patches last.
      order: (N, T), which patches those are, in their order, and then the hidden ones.
      grid: rows and columns of the patches.
      train: whether a gradient is taken.
    """
    prefix, visible = jnp.split(self.embed(tokens), [self.prefix], axis=1)  # (N, V, W)
    token = self.param('mask_token', nn.initializers.normal(0.02), (1, 1, self.width))
    hidden = jnp.tile(
      token.astype(visible.dtype), (len(order), order.shape[1] - visible.shape[1], 1)
    )
    x = layers.taken(jnp.concatenate([visible, hidden], axis=1), order.argsort(1))  # (N, T, W)
    positions = vit.sincos2d(*grid, self.width, endpoint=False)
    x = jnp.concatenate([prefix, x + jnp.asarray(positions, x.dtype)[None]], axis=1)
    x, out = self.blocks(train)(x, None)
    head = nn.Dense(self.outputs, kernel_init=xavier, name='head')
    return head(x[:, self.prefix :].astype(jnp.float32)), out

  def embed(self, tokens: Array) -> Array:
    """(N, ?, D) -> (N, ?, W)."""
    dense = layers.Dense(
      self.width,
      use_bias=True,
      kernel_init=xavier,
      bias_init=nn.initializers.zeros,
      dtype=self.dtype,
      name='embed',
    )
    return dense(tokens)

  def blocks(self, train: bool) -> layers.StackedBlocks:
    """Plain blocks, and their norm."""
    plain = vit.ViT(
      num_classes=0,
      patch=(1, 1),
      width=self.width,
      depth=self.depth,
      heads=self.heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      norm_eps=self.norm_eps,
      dtype=self.dtype,
      attention_kernel=self.attention_kernel,
      parent=None,
    )
    return layers.StackedBlocks(
      layer=vit.Block,
      depth=self.depth,
      drop_path=0.0,
      unroll=self.unroll,
      remat=self.remat,
      final_norm=True,
      block=plain.block_fields((1, 1), train=train, attention=False),
      name='layers',
    )

  def init_params(self, key: Array, width: int) -> dict[str, Any]:
    """Initialised parameters for an encoder of that width; also under `jax.eval_shape`."""
    tokens, order = jnp.zeros((1, self.prefix + 1, width)), jnp.zeros((1, 1), jnp.int32)
    return self.init(key, tokens, order, (1, 1))['params']


@dataclasses.dataclass(frozen=True)
class TrainedDecoder:
  """A decoder with its parameters, and what it was trained for.

  Fields:
    model: the decoder.
    params: its parameters, a tree of float32 arrays.
    mask: the fraction of patches that was hidden.
    normalise: whether it predicts a patch's pixels less their mean, by their deviation.
  """

  model: Decoder
  params: dict[str, Any]
  mask: float
  normalise: bool


def predict(
  encoder: vit.ViT,
  decoder: Decoder,
  params: Mapping[str, Any],
  images: Array,
  order: Array,
  visible: int,
  *,
  train: bool = False,
  rngs: dict[str, Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
  """Predictions (N, T, F) of an image's patches from some, and the encoder's intermediates.

  Args:
    params: the encoder's, and as 'decoder' the decoder's.
    images: (N, H, W, C), as the encoder takes them.
    order: (N, T), the patches; the encoder reads the first of them.
    visible: V, how many it reads.
    train, rngs: of the encoder's call.
  """
  grid = patch_grid(encoder, (images.shape[1], images.shape[2]))
  _, out = encoder.apply(
    {'params': params}, images, visible=order[:, :visible], train=train, rngs=rngs
  )
  predictions, _ = decoder.apply(
    {'params': params['decoder']}, out['encoded'], order, grid, train=train
  )
  return predictions, dict(out)


def patch_grid(model: vit.ViT, size: tuple[int, int]) -> tuple[int, int]:
  """Rows and columns of a model's patches of images (height, width)."""
  return size[0] // model.patch[0], size[1] // model.patch[1]


def patchify(images: Array, patch: tuple[int, int]) -> Array:
  """Images (N, H, W, C) as their patches (N, T, F), row by row, and so the pixels of each."""
  n, height, width, channels = images.shape
  p, q = patch
  patches = images.reshape(n, height // p, p, width // q, q, channels).swapaxes(2, 3)
  return patches.reshape(n, -1, p * q * channels)


def unpatchify(patches: Array, patch: tuple[int, int], grid: tuple[int, int]) -> Array:
  """What `patchify` undoes: (N, T, F) -> (N, H, W, C), with rows and columns of patches."""
  n, (p, q), (rows, columns) = len(patches), patch, grid
  patches = patches.reshape(n, rows, columns, p, q, -1).swapaxes(2, 3)
  return patches.reshape(n, rows * p, columns * q, -1)


def patch_statistics(patches: Array) -> tuple[Array, Array]:
  """The mean and the deviation (N, T, 1) of the numbers of each patch (N, T, F).

  The variance is the unbiased one, and EPSILON more.
  """
  variance = patches.var(-1, keepdims=True, ddof=1)
  return patches.mean(-1, keepdims=True), jnp.sqrt(variance + EPSILON)
