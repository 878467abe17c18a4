"""Eight CPU devices, full precision, and models so small that compiling is the whole cost.

VIT_JAX_TEST_DEVICE=gpu leaves the devices as they are, for the tests marked gpu.
"""

import contextlib
import functools
import locale
import logging
import os
import signal
import zlib

from tests.compiling import program_cache, xla_flags
from vit_jax.guards import allocation

os.environ.setdefault(allocation.VARIABLE, allocation.TUNABLES)  # else each command starts twice
if os.environ.get('VIT_JAX_TEST_DEVICE') != 'gpu':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = xla_flags(8)
  os.environ |= program_cache()

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import type_handlers

import vit_jax
from vit_jax import models

# What tests write and read as text is UTF-8 in any locale; the library says so at each file. Before
# TFDS is imported: protobuf takes names in JSON for others where `toupper('i')` is no I, in Turkish
with contextlib.suppress(locale.Error):
  locale.setlocale(locale.LC_CTYPE, 'C.UTF-8')
# Ignored below `nohup make test &`, also by every process that a test starts, unless set here
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update('jax_default_matmul_precision', 'highest')  # no TF32 on a GPU
# Else Orbax slices each array on each device, in a program each: a third of what a tiny run takes.
handler = type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
logging.getLogger('absl').disabled = True  # which warns of the override
type_handlers.register_type_handler(jax.Array, handler, override=True)
logging.getLogger('absl').disabled = False

TINY = dict(patch=4, width=16, depth=3, heads=2, mlp_dim=24, num_classes=5, unroll=1)
SIZE = (8, 12)  # 2 x 3 patches


def tiny(**fields):
  """A model that compiles in a moment; `fields` replace its own."""
  return vit_jax.build('ViT-Ti/16', **(TINY | fields))


@functools.cache
def shapes(model, size=SIZE):
  """The model's parameters as shapes."""
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)['params']


flat = models.flat


def drawn(tree, scale=0.3):
  """A tree of that shape with every leaf drawn by its name, so that no part of a model is idle."""

  def draw(name, leaf):
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(leaf.shape)
    return np.float32(scale * values + name.endswith('scale'))

  return models.map_named(draw, tree)


def pictures(count=3, size=SIZE, seed=0):
  """(count, *size, 3) float32 in [-1, 1]."""
  return np.random.default_rng(seed).uniform(-1, 1, (count, *size, 3)).astype(np.float32)


def forward(*args, **options):
  """`model.apply`, compiled once for each model and shape; its arrays as NumPy's, to be sliced."""
  return jax.device_get(compiled_forward(*args, **options))


@functools.partial(jax.jit, static_argnames=('model', 'train', 'attention'))
def compiled_forward(model, params, images, key=None, *, train=False, attention=False):
  rngs = None if key is None else {'dropout': key}
  return model.apply({'params': params}, images, train=train, attention=attention, rngs=rngs)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
  """Training in a test's own process goes without a report, which would take longer than it."""
  from vit_jax.views import report

  for name in ('while_training', 'after_training'):
    monkeypatch.setattr(report, name, lambda *_: None)
