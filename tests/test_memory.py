"""Laws of what a step saves for the gradient, and of the memory that it takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import use_abstract_mesh

import vit_jax
from tests.conftest import shapes, tiny
from tests.test_attention import mesh_of
from vit_jax.models import attention, derivatives, layers, memory


def temporary_bytes(depth, **fields):
  """Temporary memory of the compiled gradient of a small model, of 32 x 65 tokens."""
  model = tiny(depth=depth, width=64, mlp_dim=256, **fields)
  images = jax.ShapeDtypeStruct((32, 32, 32, 3), jnp.float32)

  def loss(params, images):
    return model.apply({'params': params}, images, train=True)[0].sum()

  compiled = jax.jit(jax.grad(loss)).lower(shapes(model, (32, 32)), images).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_a_lean_loop_carries_what_its_formula_says():
  carried = (temporary_bytes(6, remat='lean') - temporary_bytes(2, remat='lean')) / 4
  assert carried <= 1.15 * 4 * (32 * 65) * (6 * 64 + 256)  # x, q, k, v, attended, middle, hidden


def test_a_straight_program_keeps_of_a_layer_what_its_products_read():
  kept = (temporary_bytes(4, unroll=4) - temporary_bytes(2, unroll=2)) / 2
  # x, q, k, v, attended, middle and two norms; hidden, before and after GELU; scores; parameters.
  tokens, parameters = 32 * 65, 4 * 64 * 64 + 2 * 64 * 256
  assert kept <= 1.1 * 4 * (tokens * (8 * 64 + 2 * 256) + 32 * 2 * 65 * 65 + 2 * parameters)


def plain_norm(x, scale, bias):
  normal = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return normal * scale[None] + bias[None]


@pytest.mark.parametrize(
  ('ours', 'plain', 'sizes'),
  [
    (derivatives.softmax, nn.softmax, [(5, 7)]),
    (lambda *args: derivatives.layer_norm(*args, 1e-6), plain_norm, [(5, 8), (8,), (8,)]),
    *(
      (lambda x, f=activation: derivatives.gated(f, x), activation, [(50,)])
      for activation in layers.ACTIVATIONS.values()
    ),
  ],
)
def test_a_derivative_of_our_own_is_the_one_that_jax_derives(ours, plain, sizes):
  rng = np.random.default_rng(0)
  args, moved = ([2 * rng.standard_normal(size) for size in sizes] for _ in range(2))
  args, moved = jax.tree.map(jnp.float32, (args, moved))
  value, tangent = jax.jvp(ours, args, moved)
  want, want_tangent = jax.jvp(plain, args, moved)
  np.testing.assert_allclose(value, want, atol=1e-6)
  np.testing.assert_allclose(tangent, want_tangent, atol=2e-6)
  weights = jnp.float32(rng.standard_normal(value.shape))
  gradients, want_gradients = (jax.vjp(f, *args)[1](weights) for f in (ours, plain))
  for gradient, want_gradient in zip(gradients, want_gradients):
    np.testing.assert_allclose(gradient, want_gradient, atol=2e-6)


B16 = vit_jax.build('ViT-B/16', dtype='bfloat16')
BASE = 128 * 197 * 12 * 2  # bytes of a channel, in all layers of B/16 and 128 images
STATE = 16 * 86_567_656


@pytest.mark.parametrize(
  ('platform', 'gib', 'name', 'cudnn', 'remat'),
  [
    ('tpu', 15.75, 'ViT-B/16', False, 'none'),
    ('gpu', 79.0, 'ViT-B/16', False, 'none'),
    ('gpu', 15.75, 'ViT-B/16', False, 'lean'),  # which attention's weights exceed
    ('gpu', 15.75, 'ViT-B/16', True, 'none'),
    ('cuda', 11.0, 'ViT-B/16', True, 'lean'),
    ('tpu', 31.25, 'ViT-H/16', False, 'lean'),  # a loop
    ('tpu', 15.75, 'ViT-H/16', False, 'full'),
  ],
)
def test_what_is_saved_is_the_fastest_that_fits(monkeypatch, platform, gib, name, cudnn, remat):
  monkeypatch.setattr(memory.attention, 'has_cudnn', lambda: cudnn)
  model = vit_jax.build(name, dtype='bfloat16')
  fields = dict(batch=128, tokens=[197], others=STATE, memory=int(gib * 2**30))
  assert memory.fitting_remat(model, **fields, platform=platform) == remat


def test_an_example_of_several_images_takes_what_as_many_examples_do(monkeypatch):
  monkeypatch.setattr(memory.attention, 'has_cudnn', lambda: False)
  fields = dict(others=STATE, memory=int(15.75 * 2**30), platform='gpu')

  def choices(shapes):
    return [memory.fitting_remat(B16, batch=n, tokens=tokens, **fields) for n, tokens in shapes]

  together = choices([(16, 1 * [197]), (16, 8 * [197]), (16, 32 * [197])])
  assert together == choices([(16, [197]), (128, [197]), (512, [197])])
  assert len(set(together)) == 3


def test_the_memory_of_activations_is_what_compilers_say(monkeypatch):
  layer = memory.layer_bytes(B16, 197, 'tpu')
  assert 128 * 12 * layer['full'] == BASE * 768
  assert 128 * 12 * layer['lean'] == BASE * (6 * 768 + 3072)
  b16_loop = B16.clone(unroll=1)
  lean = 128 * memory.activation_bytes(b16_loop, 197, 'lean', platform='tpu') - 128 * layer['none']
  assert lean == BASE * (3 * 768 + 3072)  # libtpu's, of all temporary arrays: 4.92 GiB
  loop = vit_jax.build('ViT-S/16', dtype='bfloat16', unroll=1)
  gib = 128 * memory.activation_bytes(loop, 197, 'none', platform='tpu') / 2**30
  assert gib == pytest.approx(11.35, rel=0.05)  # libtpu's
  lean = (256 * memory.activation_bytes(B16, 197, 'lean', platform='gpu') + STATE) / 2**30
  assert lean == pytest.approx(12.06, rel=0.05)  # the CUDA compiler's, of a loop
  for name, cudnn, three_layers in (('B/16', True, 1.492), ('S/16', False, 0.804)):  # its, in GiB
    monkeypatch.setattr(memory.attention, 'has_cudnn', lambda cudnn=cudnn: cudnn)
    three = vit_jax.build(f'ViT-{name}', dtype='bfloat16', depth=3, unroll=3)
    gib = 64 * memory.activation_bytes(three, 197, 'none', platform='cuda') / 2**30
    assert 0.99 * three_layers <= gib <= 1.3 * three_layers
  weights = 12 * 197 * 197 * (4 + 2)
  by_xla = memory.layer_bytes(B16.clone(attention_kernel='xla'), 197, 'gpu')['straight']
  monkeypatch.setattr(memory.attention, 'has_cudnn', lambda: True)
  assert by_xla - memory.layer_bytes(B16, 197, 'gpu')['straight'] == weights


def test_what_attention_gives_is_saved_as_it_is_and_not_computed_again():
  x, kernel = jnp.ones((1, 4, 8), jnp.bfloat16), jnp.ones((8, 8), jnp.bfloat16)

  def gradient_of(multiply):
    loss = jax.checkpoint(
      lambda x, kernel: multiply(jnp.sin(x), kernel).sum(), policy=layers.REMAT['lean']
    )
    return jax.grad(loss, (0, 1))

  named = gradient_of(lambda x, kernel: layers.product(checkpoint_name(x, 'attended'), kernel))
  saving = gradient_of(lambda x, kernel: layers.saving_product(x, kernel, 'attended'))
  texts = [str(jax.make_jaxpr(function)(x, kernel)) for function in (named, saving)]
  assert [text.count('= reduce_precision[') for text in texts] == [1, 0]
  assert [text.count('= sin') for text in texts] == [1, 1]
  jax.tree.map(np.testing.assert_array_equal, named(x, kernel), saving(x, kernel))


PROJECT = {'heads': 2, 'width': 4, 'use_bias': True, 'dtype': 'float32'}


@pytest.mark.parametrize(
  'module',
  [
    attention.Projection(**PROJECT),
    attention.Projection(**PROJECT, back=True, saved='attended'),
    layers.Dense(16, True, nn.initializers.ones, nn.initializers.zeros, 'float32'),
  ],
)
def test_several_gpus_have_both_gradients_of_a_product_before_they_go_on(module):
  x = jnp.ones((2, 4, 8))
  params = jax.eval_shape(module.init, jax.random.key(0), x)['params']

  def barriers(platform, kind, sizes, **grad):
    """Shapes of what the barriers of such a program's gradient join."""
    loss = jax.grad(lambda params, x: jnp.sin(module.apply({'params': params}, x)).sum(), **grad)
    with use_abstract_mesh(mesh_of(platform, kind, sizes)):
      equations = jax.make_jaxpr(loss)(params, x).eqns
    joins = (eqn for eqn in equations if eqn.primitive.name == 'optimization_barrier')
    return [[v.aval.shape for v in eqn.invars] for eqn in joins]

  gpu, both = ('gpu', 'NVIDIA H100 80GB HBM3'), {'argnums': (0, 1)}
  assert barriers(*gpu, (8, 1, 1), **both) == [[x.shape, (8, params['bias'].size)]]
  assert not barriers(*gpu, (8, 1, 1), argnums=0)  # of the kernel alone
  assert not barriers(*gpu, (1, 1, 1), **both)
  assert not barriers(*gpu, (4, 1, 2), **both)
  assert not barriers('tpu', 'TPU v5 lite', (8, 1, 1), **both)


def test_gradients_that_are_tied_are_the_same_gradients():
  x, kernel = jnp.arange(12.0).reshape(3, 4) / 9, jnp.arange(20.0).reshape(4, 5) / 7

  def gradients(tie):
    return jax.grad(lambda *operands: jnp.sin(layers.product(*tie(*operands))).sum(), (0, 1))

  tied, plain = (gradients(tie)(x, kernel) for tie in (layers.tied_gradients, lambda *pair: pair))
  jax.tree.map(np.testing.assert_array_equal, tied, plain)


def saved_arrays(platform, kind):
  """How many arrays of the tokens' size a lean loop's forward pass stacks, for such a device."""
  model = tiny(remat='lean', dtype='bfloat16')
  params, images = shapes(model), jax.ShapeDtypeStruct((4, 8, 12, 3), jnp.float32)

  def loss(params, images):
    return model.apply({'params': params}, images, train=True)[0].sum()

  with use_abstract_mesh(mesh_of(platform, kind)):
    equations = jax.make_jaxpr(jax.grad(loss))(params, images).eqns
  _, backward = (eqn for eqn in equations if eqn.primitive.name == 'scan')
  return [v.aval.shape for v in backward.invars].count((model.depth, 4, 7, model.width))


def test_a_lean_loop_saves_q_k_and_v_but_for_tpus():
  # x, attended, middle
  assert saved_arrays('tpu', 'TPU v5 lite') == 3
  assert saved_arrays('gpu', 'AMD MI300X') == 6
