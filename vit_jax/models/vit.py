"""The Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) and its later variations.

N images, C channels, P pixels of a patch side, T tokens, D width, A heads, M MLP width, L depth,
K classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from vit_jax.models import layers, resnet
from vit_jax.models.attention import MultiHeadAttention, RelativePositions, rope2d, xavier
from vit_jax.models.layers import Mlp

Array = jax.Array

POOLS = ('token', 'gap', 'map', 'token_gap', 'none')
POSITIONS = ('learned', 'sincos2d', 'rope', 'learned_rope', 'none')
RELATIVE_POSITIONS = ('none', 'table', 'mlp')
ROPE_GRIDS = ('centres', 'cells')
ROPE_AXES = ('yx', 'xy')
FINAL_NORMS = ('tokens', 'pooled', 'none')
QKV_BIASES = ('qkv', 'qv', 'none')
DISTILLATION = ('none', 'token', 'head')
ViTMlp = functools.partial(Mlp, kernel_init=xavier, bias_init=nn.initializers.normal(1e-6))


class Block(nn.Module):
  """Encoder block: x + attention(norm(x)), then x + mlp(norm(x)); with `post_norm` the norms come
  after attention and MLP: x + norm(attention(x)), then x + norm(mlp(x)). With `parallel` the MLP
  reads what attention reads (ViT-22B, arXiv 2302.05442).
  """

  heads: int
  mlp_dim: int
  activation: str
  swiglu: bool
  qkv_bias: str
  qk_norm: bool
  layer_scale: float | None
  norm: str
  norm_eps: float
  attention_norm: bool
  mlp_norm: bool
  proj_bias: bool
  post_norm: bool
  parallel: bool
  rope_interleaved: bool
  attention_kernel: str
  relative: Callable[..., nn.Module] | None
  dropout: float
  attention_dropout: float
  drop_path: bool
  dtype: DTypeLike
  train: bool
  return_weights: bool

  @nn.compact
  def __call__(
    self, x: Array, drop_rate: Array, rope: Array | None
  ) -> tuple[Array, dict[str, Array]]:
    """(N, T, D), (), (2, P, D/A) -> (N, T, D) and what this layer leaves for analysis."""
    kind = functools.partial(layers.NORMS[self.norm], epsilon=self.norm_eps, dtype=self.dtype)
    norm1, norm2 = kind(name='norm1'), kind(name='norm2')
    x = layers.by_image(x)
    y = x if self.post_norm else norm1(x)
    y, weights = MultiHeadAttention(
      heads=self.heads,
      dropout=self.attention_dropout,
      qkv_bias=self.qkv_bias,
      qk_norm=self.qk_norm,
      norm_eps=self.norm_eps,
      dtype=self.dtype,
      train=self.train,
      return_weights=self.return_weights,
      norm=self.norm,
      out_norm=self.attention_norm,
      out_bias=self.proj_bias,
      interleaved=self.rope_interleaved,
      kernel=self.attention_kernel,
      relative=self.relative,
      name='attention',
    )(y, y, rope)
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    after = x + self.branch(norm1(y) if self.post_norm else y, drop_rate, 'scale1')
    after = checkpoint_name(after, 'middle')
    x = x if self.parallel else after
    y = ViTMlp(
      hidden=self.mlp_dim,
      activation=self.activation,
      swiglu=self.swiglu,
      dropout=self.dropout,
      dtype=self.dtype,
      train=self.train,
      use_bias=self.proj_bias,
      norm=self.norm if self.mlp_norm else '',
      norm_eps=self.norm_eps,
      name='mlp',
    )(x if self.post_norm else norm2(x))
    x = after + self.branch(norm2(y) if self.post_norm else y, drop_rate, 'scale2')
    return x, {'blocks': x} if weights is None else {'blocks': x, 'attention': weights}

  def branch(self, y: Array, drop_rate: Array, name: str) -> Array:
    """A residual branch's output: layer scale (arXiv 2103.17239), then stochastic depth."""
    if self.layer_scale is not None:
      init = nn.initializers.constant(self.layer_scale)
      y = y * self.param(name, init, y.shape[-1:]).astype(y.dtype)[None, None]
    if self.train and self.drop_path:
      return layers.stochastic_depth(y, drop_rate, self.make_rng('dropout'))
    return y


class MapHead(nn.Module):
  """Attention pooling: a learned probe attends to the tokens (Zhai et al., arXiv 2106.04560)."""

  attention: dict[str, Any]
  mlp: dict[str, Any]
  norm_eps: float

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array | None]:
    """(N, T, D) -> (N, D) and the weights (N, A, 1, T), or None."""
    n, _, width = x.shape
    probe = self.param('probe', xavier, (1, 1, width)).astype(x.dtype)
    x, weights = MultiHeadAttention(**self.attention, name='attention')(
      jnp.tile(probe, (n, 1, 1)), x
    )
    kind, dtype = layers.NORMS[self.attention['norm']], self.attention['dtype']
    norm = kind(epsilon=self.norm_eps, dtype=dtype, name='norm')
    return (x + ViTMlp(**self.mlp, name='mlp')(norm(x)))[:, 0], weights


class ViT(nn.Module):
  """Vision Transformer classifier; `vit_jax.build` fills the fields from a variant's name.

  Fields:
    num_classes: outputs of the head; 0 builds no head, and the logits are the pre-logits.
    patch: pixels (height, width) of a patch, the stem's stride included.
    width, depth, heads, mlp_dim: D, L, A, M.
    pool: 'token' (the class token), 'gap' (mean of the patch tokens), 'map' (attention pooling),
      'token_gap' (class token and mean, side by side) or 'none' (logits for every patch:
      (N, P, K)).
    pool_prefix: whether the tokens before the patches are pooled too; None is as `pool` has it:
      attention reads them, the mean and 'none' leave them out.
    class_token: whether there is one; None is as `pool` needs it.
    positions: 'learned', 'sincos2d' (fixed sine and cosine; Beyer et al., arXiv 2205.01580),
      'rope' (axial rotation of queries and keys, as DINOv3, arXiv 2508.10104), 'learned_rope'
      (both) or 'none'.
    cls_position: class and distillation token have rows of their own in the learned table.
    rope_theta, rope_grid, rope_offset, rope_reference, rope_axes: of the rotation, see
      `attention.rope2d`.
    rope_interleaved: neighbouring channels of a head are rotated, not its halves.
    relative_positions: a bias of attention's scores by the distance of patches, beside
      `positions`: 'table', 'mlp' or 'none'; see `attention.RelativePositions`.
    relative_hidden: width of the hidden layer of 'mlp'.
    representation: width of a tanh layer before the head; None leaves it out.
    registers: extra tokens that only attention reads (Darcet et al., arXiv 2309.16588).
    distillation: DeiT's token (arXiv 2012.12877) is absent ('none'), there ('token'), or there
      with a head of its own ('head'): the logits are then the mean of both heads'.
    stem: blocks per stage of a ResNet before the patches, for hybrids; () is its root alone.
    stem_width: channels of the ResNet's root.
    stem_numerics: constants of the ResNet's norms, a row of `resnet.NUMERICS`.
    layer_scale: initial value of the per-channel scale of every branch; None leaves it out.
    drop_path: stochastic-depth rate of the last layer; the first has 0, linear between.
    dropout: after the positions and the blocks' dense layers, but not on q, k and v.
    attention_dropout: on the blocks' attention weights.
    embed_bias: the patch embedding has a bias.
    qkv_bias: which of queries, keys and values have one: 'qkv', 'qv' or 'none'.
    qk_norm: LayerNorm of queries and keys per head, in the blocks.
    proj_bias: the blocks' projection after the heads, and their MLPs, have biases.
    parallel: the blocks' MLPs read what attention reads, not what it gives.
    post_norm: the blocks' norms come after attention and MLP, not before.
    attention_norm, mlp_norm: norms before the last dense layer of attention and of the MLP.
    swiglu: gated MLP of hidden width `mlp_dim`, in the blocks.
    embed_norm: norm of the embedded patches, before positions.
    pre_norm: norm before the first block.
    final_norm: norm of all 'tokens' after the last block, of what is 'pooled' from them, or
      'none'.
    activation: 'gelu_tanh', 'gelu_erf' or 'quick_gelu'.
    norm: 'layer' for LayerNorm, 'rms' for RMSNorm (arXiv 1910.07467).
    norm_eps: epsilon of every norm.
    pool_heads, pool_mlp_dim: of attention pooling; None is as in the blocks.
    head_bias: initial bias of the head, -10 suits a sigmoid loss over many classes; None leaves
      it out.
    head_init: how the kernel of the head, and of a distillation head, starts: 'zeros', or 'normal'
      with a deviation of 0.02.
    dtype: of the computation; parameters, softmax, norm statistics and logits stay float32.
    attention_kernel: 'auto' is the fastest attention of the devices, see
      `attention.fused_attention`; 'xla' is XLA's, which a TPU needs for forward-mode derivatives.
    unroll: layers per iteration of the compiled loop; None: all of them up to 24 layers, but one
      in inference on a CPU.
    remat: what the backward pass recomputes: 'none', 'lean' (what is elementwise: norms, softmax,
      activations), 'dots' (all but products with parameters) or 'full'.
  """

  num_classes: int
  patch: tuple[int, int]
  width: int
  depth: int
  heads: int
  mlp_dim: int
  pool: str = 'token'
  pool_prefix: bool | None = None
  class_token: bool | None = None
  positions: str = 'learned'
  cls_position: bool = True
  rope_theta: float = 100.0
  rope_grid: str = 'centres'
  rope_offset: float = 0.0
  rope_reference: tuple[int, int] | None = None
  rope_axes: str = 'yx'
  rope_interleaved: bool = False
  relative_positions: str = 'none'
  relative_hidden: int = 128
  representation: int | None = None
  registers: int = 0
  distillation: str = 'none'
  stem: tuple[int, ...] | None = None
  stem_width: int = 64
  stem_numerics: str = 'google'
  layer_scale: float | None = None
  drop_path: float = 0.0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  embed_bias: bool = True
  qkv_bias: str = 'qkv'
  qk_norm: bool = False
  proj_bias: bool = True
  post_norm: bool = False
  parallel: bool = False
  attention_norm: bool = False
  mlp_norm: bool = False
  swiglu: bool = False
  embed_norm: bool = False
  pre_norm: bool = False
  final_norm: str = 'tokens'
  activation: str = 'gelu_tanh'
  norm: str = 'layer'
  norm_eps: float = 1e-6
  pool_heads: int | None = None
  pool_mlp_dim: int | None = None
  head_bias: float | None = 0.0
  head_init: str = 'zeros'
  dtype: str = 'float32'
  attention_kernel: str = 'auto'
  unroll: int | None = None
  remat: str = 'none'

  @nn.compact
  def __call__(
    self,
    images: Array,
    *,
    train: bool = False,
    attention: bool = False,
    visible: Array | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies images.

    Args:
      images: (N, height, width, C) floats, [-1, 1] for Google's weights; the sides are multiples
        of the patch.
      train: applies dropout and stochastic depth, from the rng stream 'dropout'.
      attention: returns the attention weights, which takes a slower path.
      visible: (N, V) which patches become tokens, in that order, each with its own position; None
        is all of them, and T below has V in the place of all.

    Returns:
      float32 logits (N, K), and the intermediates, free under jit where unused:
      'patches' (N, height/P, width/P, D) embedded, before positions; 'embedded' (N, T, D), what
      the first block reads; 'blocks' (L, N, T, D), every block's output; 'encoded' (N, T, D),
      after the last norm; 'pre_logits' (N, D); with two heads 'head' and 'head_dist' (N, K); with
      `attention`, 'attention' (L, N, A, T, T), and 'pool_attention' (N, A, 1, T) where pool is
      'map'. Tokens are ordered class, distillation, registers, patches row by row.

    Raises:
      ValueError: if a side is not a multiple of the patch; for `visible` with relative positions.
    """
    out: dict[str, Array] = {}
    x = out['patches'] = self.embed(images)
    n, rows, columns, _ = x.shape
    x = x.reshape(n, rows * columns, self.width)
    x = self.add_tokens(x, (rows, columns), visible)  # (N, T, D)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    if self.pre_norm:
      x = self.normalise('pre_norm', x)
    out['embedded'] = x
    x, per_layer = layers.StackedBlocks(
      layer=Block,
      depth=self.depth,
      drop_path=self.drop_path,
      unroll=self.unroll,
      remat=self.remat,
      final_norm=self.final_norm == 'tokens',
      block=self.block_fields((rows, columns), train=train, attention=attention),
      name='encoder',
    )(x, self.visible_rope((rows, columns), visible))
    out |= per_layer
    out['encoded'] = x
    logits, pooled = self.readout(x, x.shape[1] - self.prefix, train=train, attention=attention)
    return logits, out | pooled

  def readout(
    self, tokens: Array, patches: int, *, train: bool, attention: bool
  ) -> tuple[Array, dict[str, Array]]:
    """Encoded tokens (N, T, D), the patches last -> float32 logits (N, K), and intermediates."""
    out: dict[str, Array] = {}
    x, weights = self.pool_tokens(tokens, patches, train=train, attention=attention)
    if weights is not None:
      out['pool_attention'] = weights
    if self.final_norm == 'pooled':
      x = self.normalise('fc_norm', x)
    if self.representation:
      x = nn.tanh(nn.Dense(self.representation, dtype=self.dtype, name='pre_logits')(x))
    out['pre_logits'] = x
    if self.num_classes:
      x = self.classify('head', x)
      if self.distillation == 'head':
        token = tokens[:, int(self.has_class_token)]
        out['head'], out['head_dist'] = x, self.classify('head_dist', token)
        x = (out['head'] + out['head_dist']) / 2
    return x.astype(jnp.float32), out

  @property
  def has_class_token(self) -> bool:
    """Whether token 0 is a class token."""
    needed = self.pool in ('token', 'token_gap')
    return needed if self.class_token is None else self.class_token

  @property
  def has_table(self) -> bool:
    """Whether positions are learned, alone or beside a rotation."""
    return self.positions in ('learned', 'learned_rope')

  @property
  def pools_prefix(self) -> bool:
    """Whether the tokens before the patches are pooled too."""
    return self.pool == 'map' if self.pool_prefix is None else self.pool_prefix

  @property
  def prefix(self) -> int:
    """How many tokens stand before the patches."""
    return self.has_class_token + (self.distillation != 'none') + self.registers

  @property
  def position_rows(self) -> int:
    """How many rows of the learned table stand before the patches'."""
    return self.prefix - self.registers if self.cls_position else 0

  @property
  def kernel_size(self) -> tuple[int, int]:
    """(height, width) of the patch embedding's kernel, in pixels or cells of the stem."""
    stride = 1 if self.stem is None else resnet.stride(self.stem)
    return self.patch[0] // stride, self.patch[1] // stride

  def normalise(self, name: str, x: Array) -> Array:
    """A norm over the last axis."""
    return layers.NORMS[self.norm](epsilon=self.norm_eps, dtype=self.dtype, name=name)(x)

  def classify(self, name: str, x: Array) -> Array:
    """(N, D) -> (N, K) float32."""
    head = layers.classifier(self.num_classes, self.head_bias, init=self.head_init, name=name)
    return head(x.astype(jnp.float32))

  def embed(self, images: Array) -> Array:
    """(N, height, width, C) -> (N, height/P, width/P, D)."""
    layers.check_patches(images, self.patch)
    x = images.astype(self.dtype)
    if self.stem is not None:
      x = resnet.Stem(
        blocks=self.stem,
        width=self.stem_width,
        numerics=self.stem_numerics,
        dtype=self.dtype,
        name='stem',
      )(x)
    embed = layers.PatchEmbed(
      self.width, self.kernel_size, self.embed_bias, self.dtype, name='embed'
    )
    x = embed(x)
    return self.normalise('embed_norm', x) if self.embed_norm else x

  def add_tokens(self, x: Array, grid: tuple[int, int], visible: Array | None = None) -> Array:
    """Adds positions and the tokens before the patches: (N, rows * columns, D) -> (N, T, D).

    Of the patches only those of `visible` (N, V) stay, if it is there.
    """
    normal, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
    prefix = []
    if self.has_class_token:
      prefix.append(self.param('cls', zeros, (1, 1, self.width)))
    if self.distillation != 'none':
      prefix.append(self.param('dist', normal, (1, 1, self.width)))
    if self.has_table:
      rows = self.position_rows
      table = self.param('positions', normal, (1, rows + x.shape[1], self.width))
      x = x + table[:, rows:].astype(x.dtype)
      prefix = [token + table[:, i : i + 1] if rows else token for i, token in enumerate(prefix)]
    elif self.positions == 'sincos2d':
      x = x + jnp.asarray(sincos2d(*grid, self.width), x.dtype)[None]
    if visible is not None:
      x = layers.taken(x, visible)  # (N, V, D)
    if self.registers:
      prefix.append(self.param('registers', normal, (1, self.registers, self.width)))
    tiled = [jnp.tile(token.astype(x.dtype), (x.shape[0], 1, 1)) for token in prefix]
    return jnp.concatenate([*tiled, x], axis=1)

  def rope(self, rows: int, columns: int) -> Array | None:
    """Sines and cosines (2, rows * columns, D/A) where positions are a rotation."""
    if 'rope' not in self.positions:
      return None
    angles = rope2d(
      rows,
      columns,
      self.width // self.heads,
      self.rope_theta,
      grid=self.rope_grid,
      offset=self.rope_offset,
      reference=self.rope_reference,
      axes=self.rope_axes,
    )
    return jnp.asarray(angles)

  def visible_rope(self, grid: tuple[int, int], visible: Array | None) -> Array | None:
    """As `rope` has it, or of the patches of `visible` (N, V) alone: (2, N, V, D/A)."""
    if visible is not None and self.relative_positions != 'none':
      raise ValueError('relative positions are of all patches: none can be left out')
    rope = self.rope(*grid)
    return rope if rope is None or visible is None else rope[:, visible]

  def block_fields(self, grid: tuple[int, int], *, train: bool, attention: bool) -> dict[str, Any]:
    """The fields of a `Block`, but for its stochastic depth, where `grid` is of the patches."""
    relative = functools.partial(
      RelativePositions,
      kind=self.relative_positions,
      hidden=self.relative_hidden,
      heads=self.heads,
      grid=grid,
    )
    return dict(
      heads=self.heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      swiglu=self.swiglu,
      qkv_bias=self.qkv_bias,
      qk_norm=self.qk_norm,
      layer_scale=self.layer_scale,
      norm=self.norm,
      norm_eps=self.norm_eps,
      attention_norm=self.attention_norm,
      mlp_norm=self.mlp_norm,
      proj_bias=self.proj_bias,
      post_norm=self.post_norm,
      parallel=self.parallel,
      rope_interleaved=self.rope_interleaved,
      attention_kernel=self.attention_kernel,
      relative=None if self.relative_positions == 'none' else relative,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      dtype=self.dtype,
      train=train,
      return_weights=attention,
    )

  def pool_tokens(
    self, x: Array, patches: int, *, train: bool, attention: bool
  ) -> tuple[Array, Array | None]:
    """(N, T, D) -> (N, D), or (N, patches, D) where pool is 'none'; and the map head's weights."""
    pooled = x if self.pools_prefix else x[:, -patches:]
    if self.pool == 'token':
      return x[:, 0], None
    if self.pool == 'token_gap':
      return jnp.concatenate([x[:, 0], x[:, -patches:].mean(axis=1)], axis=-1), None  # (N, 2D)
    if self.pool == 'gap':
      return pooled.mean(axis=1), None
    if self.pool == 'none':
      return pooled, None
    return MapHead(
      attention=dict(
        heads=self.pool_heads or self.heads,
        dropout=0.0,
        qkv_bias='qkv',
        qk_norm=False,
        norm=self.norm,
        norm_eps=self.norm_eps,
        dtype=self.dtype,
        train=train,
        return_weights=attention,
      ),
      mlp=dict(
        hidden=self.pool_mlp_dim or self.mlp_dim,
        activation=self.activation,
        swiglu=False,
        dropout=0.0,
        dtype=self.dtype,
        train=train,
      ),
      norm_eps=self.norm_eps,
      name='pool',
    )(pooled)

  def flops(self, height: int, width: int, channels: int = 3) -> int:
    """Floating-point operations of one image's forward pass: 2 per multiply-add of a matmul.

    Norms, softmax and activations are not counted, and a training step is three times this.
    """
    patches = (height // self.patch[0]) * (width // self.patch[1])
    t, d, m = patches + self.prefix, self.width, self.mlp_dim
    mlp = 2 * (3 if self.swiglu else 2) * d * m
    stem = 0
    if self.stem is not None:
      stem = resnet.flops(self.stem, self.stem_width, height, width, channels)
      channels = resnet.channels(self.stem, self.stem_width)
    embed = 2 * patches * self.kernel_size[0] * self.kernel_size[1] * channels * d
    blocks = self.depth * (t * (8 * d * d + mlp) + 4 * t * t * d)
    read = t if self.pools_prefix else patches
    pool = 4 * d * d + read * (4 * d * d + 4 * d) + 4 * d * (self.pool_mlp_dim or m)
    pool = pool if self.pool == 'map' else 0
    pooled = 2 * d if self.pool == 'token_gap' else d
    tail = 2 * pooled * (self.representation or 0)
    tail += 2 * (self.representation or pooled) * self.num_classes
    tail += 2 * d * self.num_classes * (self.distillation == 'head')
    return stem + embed + blocks + pool + tail * (read if self.pool == 'none' else 1)


def sincos2d(
  rows: int, columns: int, width: int, temperature: float = 10_000.0, *, endpoint: bool = True
) -> np.ndarray:
  """Fixed positions (rows * columns, width): [sin x, cos x, sin y, cos y] at width/4 frequencies.

  They fall from 1 to 1 / temperature, or without `endpoint` to one before it, as MAE has them
  (arXiv 2111.06377).

  Raises:
    ValueError: if the width is not a multiple of 4.
  """
  if width % 4:
    raise ValueError(f'sincos2d positions need a width that 4 divides, got {width}')
  y, x = np.mgrid[:rows, :columns]
  omega = temperature ** -(np.arange(width // 4) / max(width // 4 - endpoint, 1))
  y, x = np.outer(y.ravel(), omega), np.outer(x.ravel(), omega)
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table.astype(np.float32)
