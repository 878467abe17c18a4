"""Laws of the ResNets, in front of a hybrid's patches and alone; golden logits of small hybrids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.conftest import drawn, flat, forward, pictures, shapes
from tests.google_names import half_normal_logits
from tests.test_vit import close, equations
from vit_jax import optim
from vit_jax.models import resnet

pytestmark = pytest.mark.arithmetic

SIZE = (37, 45)  # odd at every resolution: 19 x 23, 10 x 12, 5 x 6, 3 x 3


def tiny(**fields):
  """Two stages of Big Transfer's ResNet."""
  return vit_jax.build('BiT-R50x1', **(dict(blocks=(1, 2), num_classes=5) | fields))


@pytest.fixture(scope='module')
def plain():
  """The tiny model, parameters, images, and what it computes."""
  model, images = tiny(), pictures(size=SIZE)
  params = drawn(shapes(model, SIZE))
  logits, out = forward(model, params, images)
  return model, params, images, logits, out


# Sizes and names


@pytest.mark.quick
def test_parameters_have_the_documented_names():
  def unit(path, *, norms=3, proj=()):
    leaves = {f'{path}/conv{i}/kernel' for i in (1, 2, 3)} | {f'{path}/{name}' for name in proj}
    return leaves | {f'{path}/norm{i}/{leaf}' for i in (1, 2, 3) for leaf in ('scale', 'bias')}

  norm = {'norm/scale', 'norm/bias'}
  bit = {'root/conv/kernel', 'head/kernel', 'head/bias'} | norm
  bit |= unit('stage1/unit1', proj=['conv_proj/kernel'])
  bit |= unit('stage2/unit1', proj=['conv_proj/kernel']) | unit('stage2/unit2')
  assert set(flat(shapes(tiny(), SIZE))) == bit

  stem = resnet.Stem(blocks=(1, 2), width=32, numerics='google')
  proj = ['conv_proj/kernel', 'norm_proj/scale', 'norm_proj/bias']
  post = {'root/conv/kernel'} | {f'root/{leaf}' for leaf in norm}
  post |= unit('stage1/unit1', proj=proj)
  post |= unit('stage2/unit1', proj=proj) | unit('stage2/unit2')
  assert set(flat(shapes(stem, (64, 64)))) == post


@pytest.mark.quick
@pytest.mark.parametrize('blocks', [(), (1,), (1, 2), (1, 1, 2)])
def test_a_stem_has_the_stride_and_the_channels_that_it_says(blocks):
  stem = resnet.Stem(blocks=blocks, width=32, numerics='google')
  stride, channels = resnet.stride(blocks), resnet.channels(blocks, 32)
  images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
  cells = jax.eval_shape(stem.init_with_output, jax.random.key(0), images)[0]
  assert cells.shape == (1, 64 // stride, 96 // stride, channels)


# Weight standardisation


def kernel(scale=1.0):
  return np.float32(scale * np.random.default_rng(0).standard_normal((3, 3, 4, 5)))


@pytest.mark.quick
@pytest.mark.parametrize('name', resnet.NUMERICS)
def test_a_standardised_kernel_has_mean_0_and_deviation_1_per_feature(name):
  kernels = resnet.standardized(kernel() + 3, resnet.NUMERICS[name])
  # google adds 1e-5 to a deviation of 1, and a mean of 3 costs float32 two digits
  close(kernels.mean((0, 1, 2)), np.zeros(5), 1e-5)
  close(kernels.std((0, 1, 2)), np.ones(5), 3e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
  'name, deviation',
  [
    ('google', lambda variance: np.sqrt(variance) + 1e-5),
    ('timm', lambda variance: np.sqrt(variance + 1e-8)),
    ('bit', lambda variance: np.sqrt(variance + 1e-10)),
  ],
)
def test_a_small_kernel_is_divided_as_its_source_does(name, deviation):
  small = kernel(1e-4)
  w = np.float64(small)
  expected = (w - w.mean((0, 1, 2))) / deviation(w.var((0, 1, 2)))
  close(resnet.standardized(small, resnet.NUMERICS[name]), expected)


@pytest.mark.quick
def test_a_constant_kernel_with_an_epsilon_under_the_root_has_a_finite_gradient():
  def total(w):
    return (resnet.standardized(w, resnet.NUMERICS['bit']) * kernel()).sum()

  assert np.isfinite(jax.grad(total)(np.ones((3, 3, 4, 5), np.float32))).all()


# Against the reference


@pytest.mark.parametrize(
  'name, fields, golden',
  [
    (
      'R+ViT-Ti/16',
      dict(),
      [
        [-0.487591, 0.557557, 0.47781, 0.537504, -0.293578],
        [-1.011773, 0.58375, 0.577442, 0.849188, -0.358621],
      ],
    ),
    (
      'R50+ViT-B/16',
      dict(stem=(1, 2), patch=8),
      [
        [0.805176, 0.388497, 0.096016, -0.188057, 0.050872],
        [2.076473, 0.658592, -0.172648, -0.817208, -0.243518],
      ],
    ),
    (
      'R50+ViT-B/16',
      dict(stem=(1, 1, 2), patch=16),
      [
        [0.829715, 0.945164, 0.316174, -0.121134, -0.992026],
        [0.987928, 0.949183, 0.282683, -0.239372, -0.912452],
      ],
    ),
  ],
)
def test_logits_of_a_small_hybrid_equal_the_reference_implementation(name, fields, golden):
  size = dict(width=10, mlp_dim=10, heads=2, depth=1, num_classes=5, stem_width=32, unroll=1)
  model = vit_jax.build(name, **size, **fields)
  # ReLU and GroupNorm amplify rounding: float32 is up to 6.1e-6 away on CPUs whose kernels sum in
  # another order, and 7.0e-6 with half of the weights and pixels one unit in the last place larger.
  # Other sources' constants are as near, 1.4e-6 to 1.3e-5: tests of kernels and norms hold those.
  np.testing.assert_allclose(half_normal_logits(model, 64), golden, rtol=0, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize('name, eps', [('google', 1e-6), ('timm', 1e-5), ('bit', 1e-5)])
def test_a_norm_adds_the_epsilon_of_its_source_to_the_variance(name, eps):
  norm = resnet.Layers(pre_norm=False, numerics=name, dtype='float32').norm('norm')
  x = np.random.default_rng(0).normal(0, 1e-3, (2, 5, 7, 64)).astype(np.float32)  # variance 1e-6
  normed = norm.apply({'params': {'scale': np.ones(64), 'bias': np.zeros(64)}}, x)
  groups = np.float64(x).reshape(2, 5, 7, 32, 2)
  centred = groups - groups.mean((1, 2, 4), keepdims=True)
  expected = centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + eps)
  close(normed, expected.reshape(x.shape))


# The ResNet alone


def test_the_root_convolves_and_takes_the_maximum_within_zeros(plain):
  _, params, images, _, out = plain
  kernel = resnet.standardized(params['root']['conv']['kernel'], resnet.NUMERICS['bit'])
  padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)))
  layout = ('NHWC', 'HWIO', 'NHWC')
  x = jax.lax.conv_general_dilated(padded, kernel, (2, 2), 'VALID', dimension_numbers=layout)
  x = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
  rows, columns = 10, 12
  windows = [x[:, i:, j:][:, : 2 * rows : 2, : 2 * columns : 2] for i in range(3) for j in range(3)]
  close(out['stem'], np.max(windows, axis=0), 1e-4)  # sums of 147 terms of size 4


def test_a_unit_equals_its_formula_in_float64(plain):
  _, params, _, _, out = plain
  p, x = params['stage2']['unit2'], np.float64(out['stages'][0])
  first = params['stage2']['unit1']

  def norm(x, p):
    groups = x.reshape(*x.shape[:3], 32, -1)
    centred = groups - groups.mean((1, 2, 4), keepdims=True)
    x = (centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-5)).reshape(x.shape)
    return np.maximum(x * np.float64(p['scale']) + p['bias'], 0)

  def conv(x, kernel, stride=1):
    w = np.float64(kernel)
    w = (w - w.mean((0, 1, 2))) / np.sqrt(w.var((0, 1, 2)) + 1e-10)
    size = len(w)
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    _, height, width, _ = x.shape
    return sum(
      x[:, i : height - size + 1 + i : stride, j : width - size + 1 + j : stride] @ w[i, j]
      for i in range(size)
      for j in range(size)
    )

  def unit(x, p, stride):
    y = norm(x, p['norm1'])
    shortcut = conv(y, p['conv_proj']['kernel'], stride) if 'conv_proj' in p else x
    y = norm(conv(y, p['conv1']['kernel']), p['norm2'])
    y = norm(conv(y, p['conv2']['kernel'], stride), p['norm3'])
    return shortcut + conv(y, p['conv3']['kernel'])

  expected = unit(unit(x, first, 2), p, 1)
  # values of size 30, sums of up to 1,152 terms
  close(out['stages'][1], expected, 2e-4)


def test_logits_follow_from_what_it_returns(plain):
  _, params, _, logits, out = plain
  expected = {'stem': (3, 10, 12, 64), 'encoded': (3, 5, 6, 512), 'pre_logits': (3, 512)}
  assert {name: out[name].shape for name in expected} == expected
  assert [stage.shape for stage in out['stages']] == [(3, 10, 12, 256), (3, 5, 6, 512)]
  close(out['pre_logits'], np.asarray(out['encoded']).mean((1, 2)))
  close(logits, out['pre_logits'] @ params['head']['kernel'] + params['head']['bias'][None])


def test_images_of_a_batch_do_not_see_each_other(plain):
  model, params, images, logits, _ = plain
  alone = forward(model, params, np.stack([images[1], 9 * images[0], images[2]]))[0]
  close(alone[::2], logits[1:])


def test_every_parameter_has_a_gradient(plain):
  model, params, images, _, _ = plain

  def total(params):
    logits, _ = model.apply({'params': params}, images, train=True)
    return (logits * jnp.linspace(-1, 1, logits.size).reshape(logits.shape)).sum()

  grads = flat(jax.jit(jax.grad(total))(params))
  assert [name for name, g in grads.items() if not np.isfinite(g).all() or not g.any()] == []


def test_bfloat16_gives_float32_logits_near_those_of_float32(plain):
  _, params, images, logits, _ = plain
  half, out = forward(tiny(dtype='bfloat16'), params, images)
  assert half.dtype == out['pre_logits'].dtype == jnp.float32
  assert out['encoded'].dtype == jnp.bfloat16
  # 8 bits a value, 10 layers: a few per cent of the largest
  assert np.abs(half - logits).max() < 0.05 * np.abs(logits).max()


@pytest.mark.quick
@pytest.mark.parametrize('name', ['adafactor', 'lamb', 'muon'])
def test_an_optimiser_that_treats_an_encoder_by_layer_takes_a_model_without_one(name):
  params = shapes(tiny(blocks=(1,)), (32, 32))
  tx = optim.make_optimizer(name, lambda step: jnp.float32(0.1), weight_decay=0.1)
  state = jax.eval_shape(tx.init, params)
  updates, after = jax.eval_shape(tx.update, params, state, params)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.quick
def test_without_classes_there_is_no_head_and_without_a_bias_none(plain):
  assert 'head' not in shapes(tiny(num_classes=0), SIZE)
  assert set(shapes(tiny(head_bias=None), SIZE)['head']) == {'kernel'}


@pytest.mark.quick
def test_asking_a_resnet_for_attention_is_an_error():
  with pytest.raises(ValueError, match='has no attention'):
    tiny().init(jax.random.key(0), pictures(1), attention=True)


@pytest.mark.quick
@pytest.mark.parametrize(
  'model',
  [tiny(), tiny(blocks=(2, 1, 1), num_classes=0, width_factor=2)],
  ids=['with a head', 'without'],
)
@pytest.mark.parametrize('size', [(64, 96), SIZE])
def test_flops_are_twice_the_multiply_adds_of_every_convolution_and_matmul(model, size):
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  forward = jax.make_jaxpr(lambda p, x: model.apply({'params': p}, x)[0])
  total = 0
  for equation, times in equations(forward(shapes(model, size), images).jaxpr):
    cells = int(np.prod(equation.outvars[0].aval.shape))
    if equation.primitive.name == 'conv_general_dilated':
      total += times * 2 * cells * int(np.prod(equation.invars[1].aval.shape[:3]))
    if equation.primitive.name == 'dot_general':
      total += times * 2 * cells * equation.invars[0].aval.shape[-1]
  assert model.flops(*size) == total
