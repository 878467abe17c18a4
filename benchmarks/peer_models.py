"""Models of others as config.model.name takes them; their code is imported from where it lies."""

import importlib
import importlib.util
import sys
import types
from typing import Any

import flax.linen as nn
import jax

import vit_jax


@vit_jax.extension
class BigVision(nn.Module):
  """big_vision's ViT with a class token, `big_vision.models.vit`, of which no code is here.

  Its names of fields are ours; attention and products are in `dtype`.
  """

  num_classes: int
  patch: tuple[int, int] = (16, 16)
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_dim: int = 3072
  dtype: str = 'bfloat16'

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool = False, attention: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(N, H, W, C) -> logits (N, K), and its intermediates."""
    model = big_vision_models().Model(
      self.num_classes,
      patch_size=self.patch,
      width=self.width,
      depth=self.depth,
      num_heads=self.heads,
      mlp_dim=self.mlp_dim,
      pool_type='tok',
      dtype_mm=self.dtype,
      name='model',
    )
    return model(images, train=train)

  @nn.nowrap
  def flops(self, height: int, width: int, channels: int = 3) -> int:
    """Of an image's forward pass: ours of these sizes, as the products are the same."""
    names = ('num_classes', 'patch', 'width', 'depth', 'heads', 'mlp_dim')
    fields = {name: getattr(self, name) for name in names}
    return vit_jax.build('ViT-B/16', **fields).flops(height, width, channels)


def big_vision_models() -> types.ModuleType:
  """`big_vision.models.vit`, also where TensorFlow is missing, by which it reads files alone."""
  name = 'big_vision.models.vit'
  if name not in sys.modules and importlib.util.find_spec('tensorflow') is None:
    importlib.import_module('flax.training.checkpoints')  # which asks whether there is TensorFlow
    absent = ('tensorflow', 'tensorflow.io', 'tensorflow.io.gfile')
    sys.modules.update({part: types.ModuleType(part) for part in absent})
    try:
      return importlib.import_module(name)
    finally:
      for part in absent:
        del sys.modules[part]
  return importlib.import_module(name)
