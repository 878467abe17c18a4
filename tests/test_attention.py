"""Laws of the kernel for short sequences, and of the layers round it."""

import functools
import importlib.util
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from tests.conftest import drawn, pictures, shapes, tiny
from vit_jax import sharding
from vit_jax.compilers import program as program_text
from vit_jax.models import attention, layers
from vit_jax.models.short_attention import VMEM, heads_per_step, on_mesh, short_attention

KINDS = tuple(VMEM)
CUDNN = 'dot_product_attention_fwd'  # JAX's name of its operation


def arrays(*shape, count=1, dtype=np.float32):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(count)]


def explicit(q, k, v, mask, heads):
  """Attention (N, T, D) with its scores in memory, in float32."""
  q, k, v = (x.astype(jnp.float32).reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
  scores = jnp.einsum('nsah,ntah->nast', q, k) * q.shape[-1] ** -0.5
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
  return jnp.einsum('nast,ntah->nsah', jax.nn.softmax(scores), v).reshape(*q.shape[:2], -1)


@functools.partial(jax.jit, static_argnums=(0,))
def with_gradients(function, q, k, v, mask, g):
  out, pullback = jax.vjp(lambda q, k, v: function(q, k, v, mask), q, k, v)
  return out, *pullback(g.astype(out.dtype))


def compared(tokens, width, *, heads=2, group=None, masked=False, dtype=np.float32, n=2):
  """Values and gradients of the kernel and of explicit attention."""
  q, k, v, g = arrays(n, tokens, heads * width, count=4, dtype=dtype)
  mask = jnp.arange(tokens) < jnp.asarray([tokens // 3, tokens])[:n, None] if masked else None

  def kernel(q, k, v, mask):
    return short_attention(q, k, v, mask, heads, group or heads, True)

  plain = functools.partial(explicit, heads=heads)
  return [jax.device_get(with_gradients(f, q, k, v, mask, g)) for f in (kernel, plain)]


@pytest.mark.parametrize(
  ('tokens', 'width', 'options'),
  [
    (50, 48, {}),
    (50, 72, dict(masked=True)),
    (197, 64, dict(heads=4, group=2, masked=True)),
    (197, 80, {}),
    (257, 88, {}),
    (257, 96, dict(masked=True)),
    (577, 104, dict(n=1)),
    (785, 128, dict(n=1, heads=1)),
    (1370, 64, dict(n=1, heads=1)),
  ],
  ids=str,
)
def test_the_kernel_is_explicit_attention_in_values_and_gradients(tokens, width, options):
  ours, theirs = compared(tokens, width, **options)
  for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_kernel_in_bfloat16_differs_from_float32_by_its_rounding():
  ours, theirs = compared(197, 64, dtype=jnp.bfloat16)
  for a, b in zip(ours, theirs):
    # Operands of the products and the result are rounded to 2^-9 of a number at most.
    np.testing.assert_allclose(a.astype(np.float32), b, atol=2**-7 * np.abs(b).max())


@pytest.mark.parametrize(
  ('heads', 'width', 'tokens', 'groups'),
  [
    (12, 64, 197, (12, 12, 12, 12, 12)),  # B/16
    (16, 64, 197, (16, 16, 16, 16, 16)),  # L/16
    (12, 64, 577, (2, 2, 2, 2, 2)),
    (16, 80, 257, (8, 8, 8, 8, 8)),  # H/14: 640 channels are five registers
    (16, 88, 257, (16, 16, 16, 16, 16)),  # g/14
    (12, 64, 1370, (0, 2, 2, 2, 2)),
    (12, 64, 4097, (0, 0, 0, 0, 0)),
  ],
)
def test_a_step_takes_the_heads_that_fit_each_chips_fast_memory(heads, width, tokens, groups):
  assert tuple(heads_per_step(heads, width, tokens, 2, kind) for kind in KINDS) == groups


def test_an_unknown_device_takes_no_heads():
  assert heads_per_step(12, 64, 197, 2, 'TPU v2') == 0


# What the program is for


def mesh_of(platform, kind, sizes=(1, 1, 1)):
  device = AbstractDevice(kind, 1, platform)
  axes = (AxisType.Auto,) * 3
  return AbstractMesh(sizes, ('data', 'fsdp', 'tensor'), axis_types=axes, abstract_device=device)


def program(mesh, shape=(4, 50, 128), heads=2, **options):
  """The attention of such shapes as a program for a mesh."""
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  with use_abstract_mesh(mesh):
    return str(
      jax.make_jaxpr(lambda *qkv: attention.fused_attention(*qkv, heads, **options))(x, x, x)
    )


def test_attention_is_chosen_by_the_devices_of_the_mesh_and_not_of_the_process():
  assert 'short_attention' in program(mesh_of('tpu', 'TPU v5 lite'))
  hopper, other = (mesh_of('gpu', kind) for kind in ('NVIDIA H100 80GB HBM3', 'AMD MI300X'))
  assert attention.runs_flash_attention(hopper.abstract_device)
  assert (CUDNN in program(hopper)) == attention.has_cudnn()
  for mesh in (mesh_of('cpu', 'cpu'), other):
    assert not any(name in program(mesh) for name in ('short_attention', CUDNN))


def test_a_model_field_leaves_attention_to_xla_on_every_device():
  for mesh in (mesh_of('tpu', 'TPU v4'), mesh_of('gpu', 'NVIDIA A100-SXM4-40GB')):
    text = program(mesh, kernel='xla')
    assert 'short_attention' not in text and CUDNN not in text


@pytest.mark.parametrize(
  ('sizes', 'options'),
  [((3, 1, 1), {}), ((1, 1, 4), {}), ((1, 1, 1), dict(shape=(4, 4097, 128)))],
  ids=['images', 'heads', 'tokens'],
)
def test_what_the_kernel_has_no_room_for_is_left_to_xla(sizes, options):
  assert 'short_attention' not in program(mesh_of('tpu', 'TPU v6 lite', sizes), **options)


def test_each_device_of_a_mesh_takes_its_own_images_and_heads():
  text = program(mesh_of('tpu', 'TPU v4', (2, 2, 2)), shape=(8, 50, 256), heads=4)
  assert 'bf16[2,50,128]' in text
  assert on_mesh(*arrays(1, 2, 4, count=3), None, heads=1) is None  # a program without a mesh


# Layers


@pytest.mark.parametrize(
  ('ours', 'theirs', 'width'),
  [
    (
      attention.Projection(3, 4, True, 'float32'),
      nn.DenseGeneral((3, 4), kernel_init=attention.xavier),
      12,
    ),
    (
      attention.Projection(3, 4, True, 'float32', back=True),
      nn.DenseGeneral(12, axis=(-2, -1), kernel_init=attention.xavier),
      (3, 4),
    ),
    (
      layers.Dense(5, True, attention.xavier, nn.initializers.normal(1e-6), 'float32'),
      nn.Dense(5, kernel_init=attention.xavier, bias_init=nn.initializers.normal(1e-6)),
      12,
    ),
    (layers.LayerNorm(1e-6, 'float32'), nn.LayerNorm(1e-6), 12),
  ],
  ids=['projection', 'back', 'dense', 'norm'],
)
def test_a_layer_has_the_parameters_and_the_values_of_flax(ours, theirs, width):
  (x,) = arrays(2, 5, 12)
  y = x.reshape(2, 5, *width) if isinstance(width, tuple) else x
  params = [layer.init(jax.random.key(1), z)['params'] for layer, z in ((ours, x), (theirs, y))]
  jax.tree.map(np.testing.assert_array_equal, *params)
  values = drawn(params[0])
  a, b = ours.apply({'params': values}, x), theirs.apply({'params': values}, y)
  np.testing.assert_array_equal(np.asarray(a), np.asarray(b).reshape(a.shape))


def test_the_gradient_of_a_kernel_transposes_no_tokens_on_a_cpu():
  layer = layers.Dense(24, True, attention.xavier, nn.initializers.zeros, 'float32')
  (x,) = arrays(3, 50, 12)
  params = layer.init(jax.random.key(0), x)

  def loss(params, x):
    return jax.nn.gelu(layer.apply(params, jax.nn.gelu(x))).sum()

  program = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile().as_text()
  assert 'f32[150,24]' in program
  assert 'f32[12,150]' not in program and 'f32[24,150]' not in program


def test_sums_by_a_product_are_sums_in_every_derivative():
  vector, tangent = arrays(6, count=2)
  (g,) = arrays(3, 5, 6)
  for f in (
    lambda v: layers.spread_by_product(v, (3, 5, 6)),
    lambda v: jax.vmap(lambda u: layers.spread_by_product(u, (5, 6)))(jnp.stack([v] * 3)),
  ):
    out, pullback = jax.vjp(f, vector)
    np.testing.assert_array_equal(out, np.broadcast_to(vector, out.shape))
    np.testing.assert_allclose(pullback(g)[0], g.sum((0, 1)), rtol=1e-5)
    moved = jax.jvp(f, (vector,), (tangent,))[1]
    np.testing.assert_allclose(moved, np.broadcast_to(tangent, out.shape), rtol=1e-6)


def test_a_model_has_a_forward_mode_derivative_equal_to_its_gradient():
  model, images = tiny(depth=1), pictures()
  params = drawn(shapes(model))
  direction = drawn(params, 0.1)

  def loss(params):
    return model.apply({'params': params}, images)[0].sum()

  forward = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,))[1])(params, direction)
  products = jax.tree.map(np.vdot, jax.device_get(jax.jit(jax.grad(loss))(params)), direction)
  np.testing.assert_allclose(forward, sum(jax.tree.leaves(products)), rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
@pytest.mark.parametrize('chips', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_the_kernel_compiles_for_tpus(chips):
  script = f"""
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from vit_jax import compilers, sharding
from vit_jax.compilers import tpu
from vit_jax.models import attention
devices = tpu.devices(compilers.parse({chips!r}))
mesh = sharding.make_mesh(1, 2, -1, devices=devices)
split = NamedSharding(mesh, P(('data', 'fsdp'), None, 'tensor'))
x = jax.ShapeDtypeStruct((8, 197, 256), jnp.bfloat16, sharding=split)
def loss(q, k, v):
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return attention.fused_attention(q, k, v, 4).astype(jnp.float32).sum()
text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().as_text()
print(text.count('tpu_custom_call"'), 'all-' in text)
"""
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }
  result = subprocess.run(
    [sys.executable, '-c', script],
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
  )
  assert result.stdout.split() == ['2', 'False']


# Attention of an odd number of tokens


@pytest.mark.parametrize('tokens', [4, 5])
def test_a_token_that_makes_their_number_even_changes_no_attention_and_no_gradient(tokens):
  q, k, v = np.random.default_rng(0).standard_normal((3, 2, tokens, 2, 8)).astype(np.float32)

  def value_and_gradients(attend):
    return jax.value_and_grad(lambda *qkv: jnp.sin(attend(*qkv)).sum(), (0, 1, 2))(q, k, v)

  even = functools.partial(attention.even_attention, implementation='xla')
  plain = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, value_and_gradients(even), value_and_gradients(plain))


def test_an_odd_number_of_tokens_is_trained_by_cudnn_where_it_is_installed():
  def loss(q):
    return attention.fused_attention(q, q, q, 2).astype(jnp.float32).sum()

  with use_abstract_mesh(mesh_of('gpu', 'NVIDIA H100 80GB HBM3')):
    text = str(jax.make_jaxpr(jax.grad(loss))(jax.ShapeDtypeStruct((4, 197, 128), jnp.bfloat16)))
  assert ('dot_product_attention_bwd' in text) == attention.has_cudnn()


def test_devices_attend_to_their_own_images_and_heads_and_exchange_nothing():
  mesh = sharding.make_mesh(2, 2, 2)
  plain = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  attend = jax.jit(sharding.for_mesh(functools.partial(attention.by_device, plain), mesh))
  rows = jax.NamedSharding(mesh, P(layers.IMAGE_AXES, None, 'tensor', None))
  q, k, v = (jax.device_put(x, rows) for x in arrays(8, 5, 4, 8, count=3))
  np.testing.assert_allclose(attend(q, k, v), plain(q, k, v), rtol=1e-5, atol=1e-6)
  exchanges = program_text.collectives(
    program_text.read(attend.lower(q, k, v).compile().as_text()), mesh.size
  )
  assert exchanges == []


def test_images_or_heads_that_devices_cannot_share_evenly_are_not_split():
  with use_abstract_mesh(mesh_of('gpu', 'NVIDIA H100 80GB HBM3', (2, 2, 2))):
    for n, heads in ((6, 4), (8, 3)):
      q = jnp.zeros((n, 5, heads, 8))
      assert attention.by_device(jnp.add, q, q, q) is None
