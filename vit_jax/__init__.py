"""Vision Transformers in JAX: train, evaluate and use them.

model = vit_jax.build('ViT-B/16', num_classes=10)           # a flax.linen module
params = vit_jax.load_params('B_16.npz', model)             # of a run or any published checkpoint
logits, out = model.apply({'params': params}, images)       # images float [-1, 1], NHWC
run = vit_jax.load('runs/flowers')                          # the same: .model .params .classes …
run.predict('rose.jpg', top=3)                              # [{'label': 'rose', 'score': 0.98}, …]
run.features(paths)                                         # (N, F) float32
run.attention('rose.jpg').weights                           # (L, A, T, T) float32
"""

from vit_jax.bundle import load_params
from vit_jax.models import build
from vit_jax.predict import load
from vit_jax.version import __version__

__all__ = ['__version__', 'build', 'load', 'load_params']
