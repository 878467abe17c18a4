"""Vision Transformers in JAX: train, evaluate and use them.

model = vit_jax.build('ViT-B/16', num_classes=10)           # a flax.linen module
params = vit_jax.load_params('B_16.npz', model)             # of a run or any published checkpoint
logits, out = model.apply({'params': params}, images)       # images float [-1, 1], NHWC
run = vit_jax.load('runs/flowers')                          # the same: .model .params .classes …
run.predict('rose.jpg', top=3)                              # [{'label': 'rose', 'score': 0.98}, …]
run.features(paths)                                         # (N, F) float32
run.attention('rose.jpg').weights                           # (L, A, T, T) float32
vit_jax.plan_for('vit_s16_i1k', 'v5e:4x4')                  # does it fit, how fast: no chip needed
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'

if TYPE_CHECKING:
  from vit_jax.bundle import load_params
  from vit_jax.compilers.search import plan_for
  from vit_jax.lookup import extension
  from vit_jax.models import build
  from vit_jax.predict import load

__all__ = ['__version__', 'build', 'extension', 'load', 'load_params', 'plan_for']
HOMES = {
  'build': 'models',
  'extension': 'lookup',
  'load': 'predict',
  'load_params': 'bundle',
  'plan_for': 'compilers.search',
}


def __getattr__(name: str) -> Any:
  """A function of `__all__`: its module, and JAX, are imported when it is first asked for."""
  if name not in HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{HOMES[name]}'), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *HOMES})
