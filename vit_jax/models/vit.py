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

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),  # Google
  'gelu_erf': functools.partial(nn.gelu, approximate=False),  # timm, Hugging Face, torchvision
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # CLIP
}
POOLS = ('token', 'gap', 'map', 'none')
POSITIONS = ('learned', 'sincos2d', 'none')
REMAT = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
UNROLL_UP_TO = 24  # layers; beyond it compile time outweighs what a step gains

xavier = nn.initializers.xavier_uniform()


class Attention(nn.Module):
  """Multi-head attention of queries on tokens; returns the weights too when asked for them."""

  heads: int
  dropout: float
  qk_norm: bool
  norm_eps: float
  dtype: Any
  train: bool
  return_weights: bool

  @nn.compact
  def __call__(self, queries: Array, tokens: Array) -> tuple[Array, Array | None]:
    """(N, S, D), (N, T, D) -> (N, S, D) and the weights (N, A, S, T), or None."""
    width = tokens.shape[-1]
    project = functools.partial(
      nn.DenseGeneral, (self.heads, width // self.heads), kernel_init=xavier, dtype=self.dtype
    )
    q = project(name='query')(queries)  # (N, S, A, D/A)
    k = project(name='key')(tokens)  # (N, T, A, D/A)
    v = project(name='value')(tokens)
    if self.qk_norm:
      norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
      q, k = norm(name='query_norm')(q), norm(name='key_norm')(k)
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


class Mlp(nn.Module):
  """Two dense layers with an activation between; SwiGLU gates the first (arXiv 2002.05202)."""

  hidden: int
  activation: str
  swiglu: bool
  dropout: float
  dtype: Any
  train: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(
      nn.Dense, kernel_init=xavier, bias_init=nn.initializers.normal(1e-6), dtype=self.dtype
    )
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    h = dense(self.hidden, name='up')(x)  # (N, T, M)
    if self.swiglu:
      h = h * nn.silu(dense(self.hidden, name='gate')(x))
    else:
      h = ACTIVATIONS[self.activation](h)
    return drop(dense(x.shape[-1], name='down')(drop(h)))  # (N, T, D)


class Block(nn.Module):
  """Pre-norm encoder block: x + attention(norm(x)), then x + mlp(norm(x))."""

  heads: int
  mlp_dim: int
  activation: str
  swiglu: bool
  qk_norm: bool
  layer_scale: float | None
  norm_eps: float
  dropout: float
  attention_dropout: float
  drop_path: bool
  dtype: Any
  train: bool
  return_weights: bool

  @nn.compact
  def __call__(self, x: Array, drop_rate: Array) -> tuple[Array, dict[str, Array]]:
    """(N, T, D), () -> (N, T, D) and what this layer leaves for analysis."""
    norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
    y = norm(name='norm1')(x)
    y, weights = Attention(
      heads=self.heads,
      dropout=self.attention_dropout,
      qk_norm=self.qk_norm,
      norm_eps=self.norm_eps,
      dtype=self.dtype,
      train=self.train,
      return_weights=self.return_weights,
      name='attention',
    )(y, y)
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    x = x + self.branch(y, drop_rate, 'scale1')
    y = Mlp(
      hidden=self.mlp_dim,
      activation=self.activation,
      swiglu=self.swiglu,
      dropout=self.dropout,
      dtype=self.dtype,
      train=self.train,
      name='mlp',
    )(norm(name='norm2')(x))
    x = x + self.branch(y, drop_rate, 'scale2')
    left = {'blocks': x} if weights is None else {'blocks': x, 'attention': weights}
    return x, left

  def branch(self, y: Array, drop_rate: Array, name: str) -> Array:
    """A residual branch's output: layer scale (arXiv 2103.17239), then stochastic depth."""
    if self.layer_scale is not None:
      init = nn.initializers.constant(self.layer_scale)
      y = y * self.param(name, init, y.shape[-1:]).astype(y.dtype)[None, None]
    if self.train and self.drop_path:
      kept = jax.random.bernoulli(self.make_rng('dropout'), 1 - drop_rate, (y.shape[0], 1, 1))
      y = jnp.where(kept, y.astype(jnp.float32) / (1 - drop_rate), 0).astype(y.dtype)
    return y


class Encoder(nn.Module):
  """`depth` blocks stacked on a leading parameter axis, and a final norm."""

  depth: int
  drop_path: float
  unroll: int | None
  remat: str
  block: dict[str, Any]

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
    unroll = self.unroll or default_unroll(self.depth, train=self.block['train'])
    layer = Block
    if self.remat != 'none':
      # Without a loop, common-subexpression elimination would undo the rematerialisation.
      straight = unroll >= self.depth
      layer = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=straight)
    blocks = nn.scan(
      layer,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      length=self.depth,
      unroll=unroll,
    )
    rates = jnp.asarray(np.linspace(0, self.drop_path, self.depth), jnp.float32)  # (L,)
    x, out = blocks(**self.block, drop_path=self.drop_path > 0, name='blocks')(x, rates)
    norm = nn.LayerNorm(epsilon=self.block['norm_eps'], dtype=self.block['dtype'], name='norm')
    return norm(x), out


def default_unroll(depth: int, *, train: bool) -> int:
  """All layers where that is faster; on a CPU, inference is faster as a loop."""
  gains = train or jax.default_backend() != 'cpu'
  return depth if gains and depth <= UNROLL_UP_TO else 1


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
    x, weights = Attention(**self.attention, name='attention')(jnp.tile(probe, (n, 1, 1)), x)
    norm = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.attention['dtype'], name='norm')
    return (x + Mlp(**self.mlp, name='mlp')(norm(x)))[:, 0], weights


class ViT(nn.Module):
  """Vision Transformer classifier; `vit_jax.build` fills the fields from a variant's name.

  Fields:
    num_classes: outputs of the head; 0 builds no head, and the logits are the pre-logits.
    patch: pixels (height, width) of a patch.
    width, depth, heads, mlp_dim: D, L, A, M.
    pool: 'token' (a class token), 'gap' (mean of the patch tokens), 'map' (attention pooling) or
      'none' (logits for every patch: (N, T, K)).
    positions: 'learned', 'sincos2d' (fixed sine and cosine; Beyer et al., arXiv 2205.01580) or
      'none'.
    cls_position: the class token has a row of its own in the learned table.
    representation: width of a tanh layer before the head; None leaves it out.
    registers: extra tokens that only attention reads (Darcet et al., arXiv 2309.16588).
    layer_scale: initial value of the per-channel scale of every branch; None leaves it out.
    drop_path: stochastic-depth rate of the last layer; the first has 0, linear between.
    dropout: after the positions and the blocks' dense layers, but not on q, k and v.
    attention_dropout: on the blocks' attention weights.
    qk_norm: LayerNorm of queries and keys per head, in the blocks.
    swiglu: gated MLP of hidden width `mlp_dim`, in the blocks.
    pre_norm: LayerNorm before the first block.
    activation: 'gelu_tanh', 'gelu_erf' or 'quick_gelu'.
    norm_eps: epsilon of every LayerNorm.
    head_bias: initial bias of the head; -10 suits a sigmoid loss over many classes.
    dtype: of the computation; parameters, softmax, norm statistics and logits stay float32.
    unroll: layers per iteration of the compiled loop; None: all of them up to 24 layers, but one
      in inference on a CPU.
    remat: what the backward pass recomputes: 'none', 'full', or 'dots' (all but matmuls).
  """

  num_classes: int
  patch: tuple[int, int]
  width: int
  depth: int
  heads: int
  mlp_dim: int
  pool: str = 'token'
  positions: str = 'learned'
  cls_position: bool = True
  representation: int | None = None
  registers: int = 0
  layer_scale: float | None = None
  drop_path: float = 0.0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  qk_norm: bool = False
  swiglu: bool = False
  pre_norm: bool = False
  activation: str = 'gelu_tanh'
  norm_eps: float = 1e-6
  head_bias: float = 0.0
  dtype: str = 'float32'
  unroll: int | None = None
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, images: Array, *, train: bool = False, attention: bool = False
  ) -> tuple[Array, dict[str, Array]]:
    """Classifies images.

    Args:
      images: (N, height, width, C) floats, [-1, 1] for Google's weights; the sides are multiples
        of the patch.
      train: applies dropout and stochastic depth, from the rng stream 'dropout'.
      attention: returns the attention weights, which takes a slower path.

    Returns:
      float32 logits (N, K), and the intermediates, free under jit where unused:
      'patches' (N, height/P, width/P, D) embedded, before positions; 'embedded' (N, T, D), what
      the first block reads; 'blocks' (L, N, T, D), every block's output; 'encoded' (N, T, D),
      after the last norm; 'pre_logits' (N, D); with `attention`, 'attention' (L, N, A, T, T), and
      'pool_attention' (N, A, 1, T) where pool is 'map'. Tokens are ordered class, registers,
      patches row by row.

    Raises:
      ValueError: if a side is not a multiple of the patch.
    """
    out: dict[str, Array] = {}
    x = out['patches'] = self.embed(images)
    n, rows, columns, _ = x.shape
    x = self.place(x.reshape(n, rows * columns, self.width), (rows, columns))  # (N, T, D)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    if self.pre_norm:
      x = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='pre_norm')(x)
    out['embedded'] = x
    x, left = Encoder(
      depth=self.depth,
      drop_path=self.drop_path,
      unroll=self.unroll,
      remat=self.remat,
      block=self.block(train=train, attention=attention),
      name='encoder',
    )(x)
    out |= left
    out['encoded'] = x
    x, weights = self.pooled(x, rows * columns, train=train, attention=attention)
    if weights is not None:
      out['pool_attention'] = weights
    if self.representation:
      x = nn.tanh(nn.Dense(self.representation, dtype=self.dtype, name='pre_logits')(x))
    out['pre_logits'] = x
    if self.num_classes:
      bias = nn.initializers.constant(self.head_bias)
      head = nn.Dense(
        self.num_classes, kernel_init=nn.initializers.zeros, bias_init=bias, name='head'
      )
      x = head(x.astype(jnp.float32))
    return x.astype(jnp.float32), out

  def embed(self, images: Array) -> Array:
    """(N, height, width, C) -> (N, height/P, width/P, D): a strided convolution, as one matmul."""
    n, height, width, channels = images.shape
    p, q = self.patch
    if height % p or width % q:
      raise ValueError(f'images of {height}x{width} pixels do not divide into {p}x{q} patches')
    patches = images.astype(self.dtype).reshape(n, height // p, p, width // q, q, channels)
    return PatchEmbed(self.width, self.dtype, name='embed')(patches)

  def place(self, x: Array, grid: tuple[int, int]) -> Array:
    """Adds positions, the class token and registers: (N, rows * columns, D) -> (N, T, D)."""
    has_cls = self.pool == 'token'
    normal = nn.initializers.normal(0.02)
    cls = self.param('cls', nn.initializers.zeros, (1, 1, self.width)) if has_cls else None
    cls_row = has_cls and self.cls_position and self.positions == 'learned'
    table = None
    if self.positions == 'learned':
      table = self.param('positions', normal, (1, x.shape[1] + cls_row, self.width))
    elif self.positions == 'sincos2d':
      table = jnp.asarray(sincos2d(*grid, self.width))[None]
    if table is not None:
      x = x + table[:, int(cls_row) :].astype(x.dtype)
    if cls is not None and table is not None and cls_row:
      cls = cls + table[:, :1]
    prefix = [] if cls is None else [cls]
    if self.registers:
      prefix.append(self.param('registers', normal, (1, self.registers, self.width)))
    tiled = [jnp.tile(token.astype(x.dtype), (x.shape[0], 1, 1)) for token in prefix]
    return jnp.concatenate([*tiled, x], axis=1)

  def block(self, *, train: bool, attention: bool) -> dict[str, Any]:
    """The fields of a `Block`, but for its stochastic depth."""
    return dict(
      heads=self.heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      swiglu=self.swiglu,
      qk_norm=self.qk_norm,
      layer_scale=self.layer_scale,
      norm_eps=self.norm_eps,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      dtype=self.dtype,
      train=train,
      return_weights=attention,
    )

  def pooled(
    self, x: Array, patches: int, *, train: bool, attention: bool
  ) -> tuple[Array, Array | None]:
    """(N, T, D) -> (N, D), or (N, patches, D) where pool is 'none'; and the map head's weights."""
    if self.pool == 'token':
      return x[:, 0], None
    if self.pool == 'gap':
      return x[:, -patches:].mean(axis=1), None
    if self.pool == 'none':
      return x[:, -patches:], None
    return MapHead(
      attention=dict(
        heads=self.heads,
        dropout=0.0,
        qk_norm=False,
        norm_eps=self.norm_eps,
        dtype=self.dtype,
        train=train,
        return_weights=attention,
      ),
      mlp=dict(
        hidden=self.mlp_dim,
        activation=self.activation,
        swiglu=False,
        dropout=0.0,
        dtype=self.dtype,
        train=train,
      ),
      norm_eps=self.norm_eps,
      name='pool',
    )(x)

  def flops(self, height: int, width: int, channels: int = 3) -> int:
    """Floating-point operations of one image's forward pass: 2 per multiply-add of a matmul.

    Norms, softmax and activations are not counted, and a training step is three times this.
    """
    patches = (height // self.patch[0]) * (width // self.patch[1])
    t, d, m = patches + (self.pool == 'token') + self.registers, self.width, self.mlp_dim
    mlp = 2 * (3 if self.swiglu else 2) * d * m
    embed = 2 * patches * self.patch[0] * self.patch[1] * channels * d
    blocks = self.depth * (t * (8 * d * d + mlp) + 4 * t * t * d)
    pool = 4 * d * d + t * (4 * d * d + 4 * d) + 4 * d * m if self.pool == 'map' else 0
    tail = 2 * d * (self.representation or 0)
    tail += 2 * (self.representation or d) * self.num_classes
    return embed + blocks + pool + tail * (patches if self.pool == 'none' else 1)


class PatchEmbed(nn.Module):
  """The patch convolution's kernel (P, P, C, D), applied to images already cut into patches."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, patches: Array) -> Array:
    """(N, rows, P, columns, P, C) -> (N, rows, columns, D)."""
    _, _, p, _, q, channels = patches.shape
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (p, q, channels, self.width))
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    x = jnp.einsum('nrpsqc,pqcd->nrsd', patches, kernel.astype(self.dtype))
    return x + bias.astype(self.dtype)[None, None, None]


def sincos2d(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed positions (rows * columns, width): [sin x, cos x, sin y, cos y] at width/4 frequencies.

  Raises:
    ValueError: if the width is not a multiple of 4.
  """
  if width % 4:
    raise ValueError(f'sincos2d positions need a width that 4 divides, got {width}')
  y, x = np.mgrid[:rows, :columns]
  omega = temperature ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
  y, x = np.outer(y.ravel(), omega), np.outer(x.ravel(), omega)
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table.astype(np.float32)
