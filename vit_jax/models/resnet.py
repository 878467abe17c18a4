"""ResNets with weight standardisation: the hybrids' stem, and Big Transfer's classifier.

N images, H x W cells, C channels, K classes.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer
from jax.typing import DTypeLike

from vit_jax.models.layers import classifier

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
  dtype: DTypeLike

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


@dataclasses.dataclass(frozen=True)
class Layers:
  """What all convolutions and norms of a ResNet have in common.

  Fields:
    pre_norm: norm and ReLU come before a convolution (arXiv 1603.05027), as in Big Transfer; or
      after it, as in the hybrids.
    numerics: a row of NUMERICS.
    dtype: of the computation; parameters and norm statistics stay float32.
  """

  pre_norm: bool
  numerics: str
  dtype: DTypeLike

  def conv(self, features: int, kernel: int, stride: int, *, name: str) -> StdConv:
    padding = 'FIXED' if self.pre_norm else 'SAME'
    return StdConv(features, kernel, stride, padding, self.numerics, self.dtype, name=name)

  def norm(self, name: str, scale_init: Initializer = nn.initializers.ones) -> nn.GroupNorm:
    return nn.GroupNorm(
      num_groups=GROUPS,
      epsilon=NUMERICS[self.numerics].norm_eps,
      use_fast_variance=False,  # E[x^2] - E[x]^2 doubles the error, measured on BiT-R50x1
      scale_init=scale_init,
      dtype=self.dtype,
      name=name,
    )


class Unit(nn.Module):
  """Bottleneck of three convolutions beside a shortcut, which is projected to other shapes."""

  middle: int
  stride: int
  layers: Layers

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(N, H, W, C) -> (N, H / stride, W / stride, 4 * middle)."""
    projected = x.shape[-1] != 4 * self.middle or self.stride > 1
    return self.pre_norm(x, projected) if self.layers.pre_norm else self.post_norm(x, projected)

  def pre_norm(self, x: Array, projected: bool) -> Array:
    """Each convolution after its norm and ReLU."""
    conv, norm = self.layers.conv, self.layers.norm
    y = nn.relu(norm('norm1')(x))
    if projected:
      x = conv(4 * self.middle, 1, self.stride, name='conv_proj')(y)
    y = conv(self.middle, 1, 1, name='conv1')(y)
    y = conv(self.middle, 3, self.stride, name='conv2')(nn.relu(norm('norm2')(y)))
    return x + conv(4 * self.middle, 1, 1, name='conv3')(nn.relu(norm('norm3')(y)))

  def post_norm(self, x: Array, projected: bool) -> Array:
    """Each convolution before its norm; the sum passes a ReLU."""
    conv, norm = self.layers.conv, self.layers.norm
    y = nn.relu(norm('norm1')(conv(self.middle, 1, 1, name='conv1')(x)))
    y = nn.relu(norm('norm2')(conv(self.middle, 3, self.stride, name='conv2')(y)))
    y = norm('norm3', nn.initializers.zeros)(conv(4 * self.middle, 1, 1, name='conv3')(y))
    if projected:
      x = norm('norm_proj')(conv(4 * self.middle, 1, self.stride, name='conv_proj')(x))
    return nn.relu(x + y)


class Stage(nn.Module):
  """Units of one resolution; the first takes the stride."""

  units: int
  middle: int
  stride: int
  layers: Layers

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for u in range(self.units):
      x = Unit(self.middle, 1 if u else self.stride, self.layers, name=f'unit{u + 1}')(x)
    return x


class Root(nn.Module):
  """7x7 convolution and maximum, with norm and ReLU between unless those come before a convolution:
  a quarter of the resolution.
  """

  width: int
  layers: Layers

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = self.layers.conv(self.width, 7, 2, name='conv')(x)
    if not self.layers.pre_norm:
      return nn.max_pool(nn.relu(self.layers.norm('norm')(x)), (3, 3), (2, 2), 'SAME')
    # No ReLU came before: the zeros of the padding are larger than what is negative.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, (3, 3), (2, 2), 'VALID')


def stages(x: Array, blocks: tuple[int, ...], width: int, layers: Layers) -> list[Array]:
  """The root's output, and every stage's after it; called inside the module that holds them."""
  outputs = [Root(width, layers, name='root')(x.astype(layers.dtype))]
  for s, units in enumerate(blocks):
    stage = Stage(units, width * 2**s, 2 if s else 1, layers, name=f'stage{s + 1}')
    outputs.append(stage(outputs[-1]))
  return outputs


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
  dtype: DTypeLike = 'float32'

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """(N, height, width, 3) -> (N, height / stride, width / stride, `channels`)."""
    layers = Layers(pre_norm=False, numerics=self.numerics, dtype=self.dtype)
    return stages(images, self.blocks, self.width, layers)[-1]


def stride(blocks: tuple[int, ...]) -> int:
  """Pixels of a side per cell of the last stage."""
  return 4 * 2 ** max(len(blocks) - 1, 0)


def channels(blocks: tuple[int, ...], width: int) -> int:
  """How many channels the last stage has; the root where there is none."""
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
    head_init: how the head's kernel starts, a row of `layers.HEAD_INITS`.
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
    layers = Layers(pre_norm=True, numerics=self.numerics, dtype=self.dtype)
    stem, *outputs = stages(images, self.blocks, 64 * self.width_factor, layers)
    encoded = nn.relu(layers.norm('norm')((outputs or [stem])[-1]))
    x = encoded.astype(jnp.float32).mean(axis=(1, 2))  # (N, C)
    out = {'stem': stem, 'stages': tuple(outputs), 'encoded': encoded, 'pre_logits': x}
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
