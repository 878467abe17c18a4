"""MLP-Mixer (Tolstikhin et al., arXiv 2105.01601): two MLPs per block, one over tokens.

N images, C channels, P pixels of a patch side, T tokens, D width, S width of the MLP over tokens,
M width of the MLP over channels, L depth, K classes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from vit_jax.models import layers

Array = jax.Array


class MixerBlock(nn.Module):
  """x + tokens(norm(x)), an MLP over each channel's tokens; then x + channels(norm(x))."""

  tokens_dim: int
  mlp_dim: int
  activation: str
  norm_eps: float
  dropout: float
  drop_path: bool
  dtype: DTypeLike
  train: bool

  @nn.compact
  def __call__(self, x: Array, drop_rate: Array) -> tuple[Array, dict[str, Array]]:
    """(N, T, D), () -> (N, T, D) and what this layer leaves for analysis."""
    norm = functools.partial(layers.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
    mlp = functools.partial(
      layers.Mlp,
      activation=self.activation,
      dropout=self.dropout,
      dtype=self.dtype,
      train=self.train,
      kernel_init=nn.initializers.lecun_normal(),
      bias_init=nn.initializers.zeros,
    )
    x = layers.by_image(x)
    y = norm(name='norm1')(x).swapaxes(1, 2)  # (N, D, T)
    y = mlp(self.tokens_dim, name='tokens')(y).swapaxes(1, 2)  # (N, T, D)
    x = checkpoint_name(x + self.branch(y, drop_rate), 'middle')
    y = mlp(self.mlp_dim, name='channels')(norm(name='norm2')(x))
    x = x + self.branch(y, drop_rate)
    return x, {'blocks': x}

  def branch(self, y: Array, drop_rate: Array) -> Array:
    """A residual branch's output, with stochastic depth."""
    if self.train and self.drop_path:
      return layers.stochastic_depth(y, drop_rate, self.make_rng('dropout'))
    return y


class Mixer(nn.Module):
  """MLP-Mixer classifier; its parameters fit images of one size only.

  Fields:
    num_classes: outputs of the head; 0 builds no head, and the logits are the pre-logits.
    patch: pixels (height, width) of a patch.
    width, depth, tokens_dim, mlp_dim: D, L, S, M.
    activation: 'gelu_tanh', 'gelu_erf' or 'quick_gelu'.
    norm_eps: epsilon of every LayerNorm.
    drop_path: stochastic-depth rate of the last layer; the first has 0, linear between.
    dropout: after the blocks' dense layers.
    head_bias: initial bias of the head; None leaves it out.
    head_init: how the head's kernel starts, 'zeros' or 'normal'.
    dtype: of the computation; parameters, norm statistics and logits stay float32.
    unroll, remat: as in `vit.ViT`.
  """

  num_classes: int
  patch: tuple[int, int]
  width: int
  depth: int
  tokens_dim: int
  mlp_dim: int
  activation: str = 'gelu_tanh'
  norm_eps: float = 1e-6
  drop_path: float = 0.0
  dropout: float = 0.0
  head_bias: float | None = 0.0
  head_init: str = 'zeros'
  dtype: str = 'float32'
  unroll: int | None = None
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, images: Array, *, train: bool = False, attention: bool = False
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies images.

    Args:
      images: (N, height, width, C) floats, [-1, 1] for Google's weights; of the size that the
        parameters were made for.
      train: applies dropout and stochastic depth, from the rng stream 'dropout'.
      attention: must be False.

    Returns:
      float32 logits (N, K), and the intermediates, free under jit where unused: 'patches'
      (N, height/P, width/P, D) embedded; 'blocks' (L, N, T, D), every block's output; 'encoded'
      (N, T, D), after the last norm; 'pre_logits' (N, D).

    Raises:
      ValueError: if a side is not a multiple of the patch, or asked for attention weights.
    """
    if attention:
      raise ValueError('a Mixer has no attention')
    layers.check_patches(images, self.patch)
    embed = layers.PatchEmbed(self.width, self.patch, True, self.dtype, name='embed')
    patches = embed(images.astype(self.dtype))  # (N, height/P, width/P, D)
    n, rows, columns, _ = patches.shape
    x, per_layer = layers.StackedBlocks(
      layer=MixerBlock,
      depth=self.depth,
      drop_path=self.drop_path,
      unroll=self.unroll,
      remat=self.remat,
      final_norm=True,
      block=self.block_fields(train=train),
      name='encoder',
    )(patches.reshape(n, rows * columns, self.width))
    out = {'patches': patches, 'encoded': x, **per_layer}
    x = out['pre_logits'] = x.mean(axis=1)  # (N, D)
    if self.num_classes:
      head = layers.classifier(self.num_classes, self.head_bias, init=self.head_init, name='head')
      x = head(x.astype(jnp.float32))
    return x.astype(jnp.float32), out

  def block_fields(self, *, train: bool) -> dict[str, Any]:
    """The fields of a `MixerBlock`, but for its stochastic depth."""
    return dict(
      tokens_dim=self.tokens_dim,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      norm_eps=self.norm_eps,
      dropout=self.dropout,
      dtype=self.dtype,
      train=train,
    )

  def flops(self, height: int, width: int, channels: int = 3) -> int:
    """Floating-point operations of one image's forward pass: 2 per multiply-add of a matmul.

    Norms and activations are not counted, and a training step is three times this.
    """
    p, q = self.patch
    t, d = (height // p) * (width // q), self.width
    embed = 2 * t * p * q * channels * d
    blocks = self.depth * 4 * t * d * (self.tokens_dim + self.mlp_dim)
    return embed + blocks + 2 * d * self.num_classes
