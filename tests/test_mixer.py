"""Laws of MLP-Mixer: sizes, names, equal ways to compute; golden logits of a small one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.conftest import SIZE, drawn, flat, forward, pictures, shapes
from tests.google_names import half_normal_logits
from tests.test_vit import close, gradients, matmul_flops
from vit_jax.models import mixer

pytestmark = pytest.mark.arithmetic

TINY = dict(patch=4, width=16, depth=3, tokens_dim=5, mlp_dim=24, num_classes=5, unroll=1)


def tiny(**fields):
  return vit_jax.build('Mixer-S/32', **(TINY | fields))


@pytest.fixture(scope='module')
def plain():
  """The tiny model, parameters, images, and what it computes."""
  model, images = tiny(), pictures()
  params = drawn(shapes(model))
  logits, out = forward(model, params, images)
  return model, params, images, logits, out


@pytest.mark.quick
def test_parameters_have_the_documented_names_and_stacked_shapes():
  expected = {
    'embed/kernel': (4, 4, 3, 16),
    'embed/bias': (16,),
    'encoder/blocks/norm1/scale': (3, 16),
    'encoder/blocks/norm1/bias': (3, 16),
    'encoder/blocks/tokens/up/kernel': (3, 6, 5),
    'encoder/blocks/tokens/up/bias': (3, 5),
    'encoder/blocks/tokens/down/kernel': (3, 5, 6),
    'encoder/blocks/tokens/down/bias': (3, 6),
    'encoder/blocks/norm2/scale': (3, 16),
    'encoder/blocks/norm2/bias': (3, 16),
    'encoder/blocks/channels/up/kernel': (3, 16, 24),
    'encoder/blocks/channels/up/bias': (3, 24),
    'encoder/blocks/channels/down/kernel': (3, 24, 16),
    'encoder/blocks/channels/down/bias': (3, 16),
    'encoder/norm/scale': (16,),
    'encoder/norm/bias': (16,),
    'head/kernel': (16, 5),
    'head/bias': (5,),
  }
  assert {name: leaf.shape for name, leaf in flat(shapes(tiny())).items()} == expected


@pytest.mark.quick
def test_without_classes_there_is_no_head_and_without_a_bias_none():
  assert 'head' not in shapes(tiny(num_classes=0))
  assert set(shapes(tiny(head_bias=None))['head']) == {'kernel'}


def test_logits_of_a_small_mixer_equal_the_reference_implementation():
  fields = dict(width=8, depth=2, tokens_dim=6, mlp_dim=16, num_classes=5, unroll=1)
  golden = [
    [0.872697, -2.203407, -0.537018, -0.060509, 1.649293],
    [0.634039, -1.535233, -1.443129, -0.657422, -0.0388],
  ]
  logits = half_normal_logits(vit_jax.build('Mixer-S/16', **fields), 32)
  np.testing.assert_allclose(logits, golden, rtol=0, atol=5e-6)


def test_a_block_equals_its_formula_in_float64(plain):
  _, params, _, _, out = plain
  p = jax.tree.map(lambda leaf: np.float64(leaf[0]), params['encoder']['blocks'])
  n, rows, columns, width = out['patches'].shape
  x = np.float64(out['patches']).reshape(n, rows * columns, width)

  def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']

  def mlp(x, p):
    h = x @ p['up']['kernel'] + p['up']['bias']
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ p['down']['kernel'] + p['down']['bias']

  x = x + mlp(norm(x, p['norm1']).swapaxes(1, 2), p['tokens']).swapaxes(1, 2)
  x = x + mlp(norm(x, p['norm2']), p['channels'])
  close(out['blocks'][0], x)


def test_logits_follow_from_what_it_returns(plain):
  model, params, _, logits, out = plain
  expected = {'patches': (3, 2, 3, 16), 'blocks': (3, 3, 6, 16), 'encoded': (3, 6, 16)}
  assert {name: x.shape for name, x in out.items()} == expected | {'pre_logits': (3, 16)}
  norm = nn.LayerNorm(epsilon=model.norm_eps)
  close(norm.apply({'params': params['encoder']['norm']}, out['blocks'][-1]), out['encoded'])
  close(out['pre_logits'], out['encoded'].mean(1))
  close(logits, out['pre_logits'] @ params['head']['kernel'] + params['head']['bias'][None])


@pytest.fixture(scope='module')
def trained(plain):
  """Logits and gradient of a training pass with dropout and stochastic depth."""
  return gradients(tiny(dropout=0.2, drop_path=0.3), *plain[1:3])


@pytest.mark.parametrize('options', [dict(unroll=3), dict(remat='full')], ids=str)
def test_unroll_and_remat_change_no_logits_and_no_gradients(plain, trained, options):
  model = tiny(**(dict(dropout=0.2, drop_path=0.3) | options))
  close(gradients(model, *plain[1:3]), trained)


def test_every_parameter_has_a_gradient(trained):
  grads = flat(trained[1])
  assert [name for name, g in grads.items() if not np.isfinite(g).all() or not g.any()] == []


def test_stochastic_depth_drops_a_whole_branch_of_an_image_or_scales_it(plain):
  _, params, _, _, out = plain
  p = jax.tree.map(lambda leaf: leaf[0], params['encoder']['blocks'])
  x = np.tile(np.asarray(out['blocks'][0][:1]), (64, 1, 1))

  def block(*, rate, train):
    fields = tiny().block_fields(train=train)
    # the second branch is silent: what is left is the first, dropped or doubled
    silent = p | {'channels': jax.tree.map(np.zeros_like, p['channels'])}
    module, rngs = mixer.MixerBlock(**fields, drop_path=True), {'dropout': jax.random.key(0)}
    apply = jax.jit(lambda p: module.apply({'params': p}, x, jnp.float32(rate), rngs=rngs)[0])
    return np.asarray(apply(silent)) - x

  whole, dropped = block(rate=0.0, train=False), block(rate=0.5, train=True)
  survivors = np.abs(dropped).max((1, 2)) > 0
  assert 16 < survivors.sum() < 48
  close(dropped[survivors], 2 * whole[survivors], 2e-5)  # a difference of sums


def test_bfloat16_gives_float32_logits_near_those_of_float32(plain):
  _, params, images, logits, _ = plain
  half, out = forward(tiny(dtype='bfloat16'), params, images)
  assert half.dtype == jnp.float32 and out['blocks'].dtype == jnp.bfloat16
  # 8 bits a value, 3 blocks: a few per cent of the largest
  assert np.abs(half - logits).max() < 0.05 * np.abs(logits).max()


@pytest.mark.quick
def test_images_of_other_patches_and_wishes_for_attention_are_errors():
  with pytest.raises(ValueError, match='9x12 pixels do not divide into 4x4'):
    shapes(tiny(), (9, 12))
  with pytest.raises(ValueError, match='has no attention'):
    tiny().init(jax.random.key(0), pictures(1), attention=True)


@pytest.mark.quick
@pytest.mark.parametrize('fields', [dict(), dict(num_classes=0, patch=(4, 2))], ids=str)
def test_flops_are_twice_the_multiply_adds_of_every_matmul_in_the_program(fields):
  model, images = tiny(**fields), pictures(1)
  assert model.flops(*SIZE) == matmul_flops(model, shapes(model), images)
