"""ResNets with weight standardisation: the hybrids' stem, and Big Transfer's classifier.

N images, H x W cells, C channels, K classes.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class Numerics(NamedTuple):
  """The constants in which the published codes differ.

  Fields:
    norm_eps: epsilon of every GroupNorm, added to the variance.
    std_eps: added to a kernel's standard deviation.
    var_eps: added to a kernel's variance.
  """

  norm_eps: float
  std_eps: float
  var_eps: float


NUMERICS = {
  'google': Numerics(norm_eps=1e-6, std_eps=1e-5, var_eps=0.0),  # hybrids of vision_transformer
  'timm': Numerics(norm_eps=1e-5, std_eps=0.0, var_eps=1e-8),  # hybrids and BiT
  'bit': Numerics(norm_eps=1e-5, std_eps=0.0, var_eps=1e-10),  # big_transfer
}
GROUPS = 32  # of channels, in every GroupNorm
HEAD_INITS = {
  'zeros': nn.initializers.zeros,
  'normal': nn.initializers.normal(0.02),  # timm, DeiT: they truncate at 2, 100 deviations away
}


class StdConv(nn.Module):
  """Convolution without bias by a weight-standardised kernel (Qiao et al., arXiv 1903.10520).

  Fields:
    padding: 'SAME', whose odd cell of padding comes last, or 'FIXED', with kernel // 2 at each
      side: at strides above 1 the two read different cells.
  """

  features: int
  kernel: int
  stride: int
  padding: str
  numerics: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), features)."""
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    kernel = standardized(
      self.param('kernel', nn.initializers.lecun_normal(), shape), NUMERICS[self.numerics]
    )
    side = self.kernel // 2
    return jax.lax.conv_general_dilated(
      x,
      kernel.astype(self.dtype),
      window_strides=(self.stride, self.stride),
      padding=[(side, side)] * 2 if self.padding == 'FIXED' else 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def standardized(kernel: Array, numerics: Numerics) -> Array:
  """A kernel (rows, columns, C, features) with mean 0 and deviation 1 per feature, in float32."""
  kernel = kernel.astype(jnp.float32)
  centred = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
  variance = jnp.square(centred).mean(axis=(0, 1, 2), keepdims=True)
  return centred / (jnp.sqrt(variance + numerics.var_eps) + numerics.std_eps)


class PostNormUnit(nn.Module):
  """Bottleneck of three convolutions, each normalised after it; the sum passes a ReLU."""

  middle: int
  stride: int
  numerics: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(N, H, W, C) -> (N, H / stride, W / stride, 4 * middle)."""
    conv, norm = layers('SAME', self.numerics, self.dtype)
    outer = 4 * self.middle
    shortcut = x
    if x.shape[-1] != outer or self.stride > 1:
      shortcut = norm(name='norm_proj')(conv(outer, 1, self.stride, name='conv_proj')(x))
    y = nn.relu(norm(name='norm1')(conv(self.middle, 1, 1, name='conv1')(x)))
    y = nn.relu(norm(name='norm2')(conv(self.middle, 3, self.stride, name='conv2')(y)))
    y = conv(outer, 1, 1, name='conv3')(y)
    return nn.relu(shortcut + norm(name='norm3', scale_init=nn.initializers.zeros)(y))


class PreNormUnit(nn.Module):
  """Bottleneck of three convolutions, each after its norm and ReLU (arXiv 1603.05027)."""

  middle: int
  stride: int
  numerics: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(N, H, W, C) -> (N, H / stride, W / stride, 4 * middle)."""
    conv, norm = layers('FIXED', self.numerics, self.dtype)
    outer = 4 * self.middle
    y = nn.relu(norm(name='norm1')(x))
    if x.shape[-1] != outer or self.stride > 1:
      x = conv(outer, 1, self.stride, name='conv_proj')(y)
    y = conv(self.middle, 1, 1, name='conv1')(y)
    y = conv(self.middle, 3, self.stride, name='conv2')(nn.relu(norm(name='norm2')(y)))
    return x + conv(outer, 1, 1, name='conv3')(nn.relu(norm(name='norm3')(y)))


def layers(padding: str, numerics: str, dtype: Any) -> tuple[Any, Any]:
  """Makers of a convolution (features, kernel, stride) and of a norm with float32 statistics."""
  conv = functools.partial(StdConv, padding=padding, numerics=numerics, dtype=dtype)
  eps = NUMERICS[numerics].norm_eps
  norm = functools.partial(  # E[x^2] - E[x]^2 would double the error, measured on BiT-R50x1
    nn.GroupNorm, num_groups=GROUPS, epsilon=eps, use_fast_variance=False, dtype=dtype
  )
  return conv, norm


class Stage(nn.Module):
  """Units of one resolution; the first takes the stride."""

  unit: type[nn.Module]
  units: int
  middle: int
  stride: int
  numerics: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for u in range(self.units):
      unit: Any = functools.partial(self.unit, self.middle, 1 if u else self.stride)
      x = unit(self.numerics, self.dtype, name=f'unit{u + 1}')(x)
    return x


class PostNormRoot(nn.Module):
  """7x7 convolution, norm, ReLU and maximum: a quarter of the resolution."""

  width: int
  numerics: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv, norm = layers('SAME', self.numerics, self.dtype)
    x = nn.relu(norm(name='norm')(conv(self.width, 7, 2, name='conv')(x)))
    return nn.max_pool(x, (3, 3), (2, 2), 'SAME')


class PreNormRoot(nn.Module):
  """7x7 convolution and maximum: a quarter of the resolution."""

  width: int
  numerics: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv, _ = layers('FIXED', self.numerics, self.dtype)
    x = conv(self.width, 7, 2, name='conv')(x)
    # No ReLU came before: the zeros of the padding are larger than what is negative.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, (3, 3), (2, 2), 'VALID')


class Stem(nn.Module):
  """The ResNet in front of a hybrid's patches (Dosovitskiy et al., arXiv 2010.11929), post-norm.

  Fields:
    blocks: units of each stage; () is the root alone.
    width: channels of the root; a multiple of 32.
    numerics: a row of NUMERICS.
    dtype: of the computation; parameters and norm statistics stay float32.
  """

  blocks: tuple[int, ...]
  width: int = 64
  numerics: str = 'google'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """(N, height, width, 3) -> (N, height / stride, width / stride, `channels`)."""
    x = images.astype(self.dtype)
    x = PostNormRoot(self.width, self.numerics, self.dtype, name='root')(x)
    return staged(PostNormUnit, self.blocks, self.width, self.numerics, self.dtype, x)[-1]


def staged(
  unit: type[nn.Module], blocks: tuple[int, ...], width: int, numerics: str, dtype: Any, x: Array
) -> list[Array]:
  """The root's output x, and every stage's after it; called inside the module that holds them."""
  outputs = [x]
  for s, units in enumerate(blocks):
    stage = Stage(unit, units, width * 2**s, 2 if s else 1, numerics, dtype, name=f'stage{s + 1}')
    outputs.append(stage(outputs[-1]))
  return outputs


def classifier(num_classes: int, bias: float | None, *, init: str, name: str) -> nn.Dense:
  """A head whose kernel starts by a row of HEAD_INITS, with that bias or, for None, without one."""
  return nn.Dense(
    num_classes,
    use_bias=bias is not None,
    kernel_init=HEAD_INITS[init],
    bias_init=nn.initializers.constant(bias or 0.0),
    name=name,
  )


def stride(blocks: tuple[int, ...]) -> int:
  """Pixels of a side per cell of the last stage."""
  return 4 * 2 ** max(len(blocks) - 1, 0)


def channels(blocks: tuple[int, ...], width: int) -> int:
  """Of the last stage; the root's where there is none."""
  return 2 * width * 2 ** len(blocks) if blocks else width


def flops(blocks: tuple[int, ...], width: int, height: int, columns: int, inputs: int = 3) -> int:
  """Floating-point operations for an image (height, columns, inputs): 2 per multiply-add.

  Convolutions only. Both paddings give ceil(side / 2) at a stride of 2.
  """
  area = -(-height // 2) * -(-columns // 2)
  total = area * 49 * inputs * width
  height, columns = -(-height // 4), -(-columns // 4)
  area, inputs = height * columns, width
  for s, units in enumerate(blocks):
    middle, outer, before = width * 2**s, 4 * width * 2**s, area
    if s:
      height, columns = -(-height // 2), -(-columns // 2)
      area = height * columns
    inner = area * (9 * middle * middle + middle * outer)
    total += before * inputs * middle + area * inputs * outer + inner
    total += (units - 1) * (area * outer * middle + inner)
    inputs = outer
  return 2 * total


class ResNet(nn.Module):
  """Big Transfer's ResNet v2 (Kolesnikov et al., arXiv 1912.11370), for images of any size.

  Fields:
    num_classes: outputs of the head; 0 builds no head, and the logits are the pre-logits.
    blocks: units of each stage.
    width_factor: multiplies all channels: the root has 64 times it.
    numerics: constants of kernels and norms, a row of NUMERICS.
    head_bias: initial bias of the head; None leaves it out.
    head_init: how the head's kernel starts, a row of HEAD_INITS.
    dtype: of the computation; parameters, norm statistics, pre-logits and logits stay float32.
  """

  num_classes: int
  blocks: tuple[int, ...]
  width_factor: int = 1
  numerics: str = 'bit'
  head_bias: float | None = 0.0
  head_init: str = 'zeros'
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, images: Array, *, train: bool = False, attention: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Classifies images.

    Args:
      images: (N, height, width, 3) floats, [-1, 1] for Google's weights; of any size.
      train: changes nothing here.
      attention: must be False.

    Returns:
      float32 logits (N, K), and the intermediates, free under jit where unused: 'stem'
      (N, height/4, width/4, C); 'stages', a tuple of every stage's output, each half the last's
      resolution; 'encoded' (N, height/32, width/32, C), after the last norm; 'pre_logits' (N, C).

    Raises:
      ValueError: if asked for attention weights.
    """
    if attention:
      raise ValueError('a ResNet has no attention')
    width = 64 * self.width_factor
    x = PreNormRoot(width, self.numerics, self.dtype, name='root')(images.astype(self.dtype))
    stem, *stages = staged(PreNormUnit, self.blocks, width, self.numerics, self.dtype, x)
    _, norm = layers('FIXED', self.numerics, self.dtype)
    encoded = nn.relu(norm(name='norm')((stages or [stem])[-1]))
    x = encoded.astype(jnp.float32).mean(axis=(1, 2))  # (N, C)
    out = {'stem': stem, 'stages': tuple(stages), 'encoded': encoded, 'pre_logits': x}
    if self.num_classes:
      x = classifier(self.num_classes, self.head_bias, init=self.head_init, name='head')(x)
    return x, out

  @property
  def features(self) -> int:
    """Channels of the pre-logits."""
    return channels(self.blocks, 64 * self.width_factor)

  @property
  def patch(self) -> tuple[int, int]:
    """What the sides of an image are multiples of."""
    return (1, 1)

  def flops(self, height: int, width: int, channels: int = 3) -> int:
    """Floating-point operations of one image's forward pass: 2 per multiply-add.

    Of convolutions and head; a training step is three times this.
    """
    head = 2 * self.features * self.num_classes
    return flops(self.blocks, 64 * self.width_factor, height, width, channels) + head
