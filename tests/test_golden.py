"""Numbers that the reference implementations computed: logits, a training run, schedules."""

import pathlib

import jax
import numpy as np
import pytest

import vit_jax
from tests.golden import weights
from tests.google_names import LEAVES, MIXER_LEAVES, drawn_params, google_arrays
from vit_jax import optim
from vit_jax import step as steps
from vit_jax.models import mixer
from vit_jax.tasks import classify

pytestmark = pytest.mark.arithmetic

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden/golden.npz')

MODELS = {
  'vit_ti16_224': ('ViT-Ti/16', dict()),
  'vit_s32_224': ('ViT-S/32', dict()),
  'bv_s16_gap_sincos_rep': ('ViT-S/16', dict(pool='gap', positions='sincos2d', representation=384)),
  'bv_s16_map': ('ViT-S/16', dict(pool='map')),
  'r_ti16_224': ('R+ViT-Ti/16', dict()),
  'mixer_b16_224': ('Mixer-B/16', dict()),
}


def written(path, model, params, *, big_vision=False):
  """The golden weights as an .npz of Google's, as it is published."""
  names = MIXER_LEAVES if isinstance(model, mixer.Mixer) else LEAVES
  np.savez(path, **google_arrays(params, big_vision=big_vision, names=names))
  return path


@pytest.mark.gpu
@pytest.mark.parametrize('key', MODELS)
def test_logits_of_a_published_file_equal_the_reference_implementation(key, tmp_path):
  name, fields = MODELS[key]
  wanted, big_vision = vit_jax.build(name, **fields), key.startswith('bv')
  params = drawn_params(wanted, 224, big_vision=big_vision)
  run = vit_jax.load(written(tmp_path / 'a.npz', wanted, params, big_vision=big_vision))
  model = run.model.clone(dtype='float32', unroll=1)
  with jax.default_matmul_precision('highest'):
    logits, _ = jax.jit(model.apply)({'params': run.params}, weights.images(2, 224))
  # 1e-5 of the logits' scale: float32 sums of up to 1,536 terms, reordered, over 12 layers
  np.testing.assert_allclose(logits, GOLDEN[key], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_positions_for_larger_images_equal_the_reference_implementation(tmp_path):
  published = vit_jax.build('ViT-Ti/16', num_classes=21_843)
  path = written(tmp_path / 'a.npz', published, drawn_params(published, 224))
  model = vit_jax.build('ViT-Ti/16', num_classes=10, unroll=1)
  params = vit_jax.load_params(path, model, image_size=384, report=None)
  np.testing.assert_allclose(
    params['positions'][0, ::37, ::17], GOLDEN['interp_384'], rtol=1e-5, atol=1e-6
  )
  assert not params['head']['kernel'].any()
  with jax.default_matmul_precision('highest'):
    features = jax.jit(lambda p, x: model.apply({'params': p}, x)[1]['pre_logits'])(
      params, weights.images(2, 384)
    )
  np.testing.assert_allclose(features, GOLDEN['interp_384_feat'], rtol=1e-5, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize('name, end', [('cosine', 0.0), ('linear', 1e-5)])
def test_schedules_equal_the_reference_implementation(name, end):
  rate = optim.make_schedule(name, learning_rate=0.03, total=100, warmup=10, end=end)
  rates = [rate(step) for step in range(0, 101, 5)]
  # float32 cosines near 1 lose the last digits of the end of the curve: 1e-8 is 3e-7 of the top
  np.testing.assert_allclose(rates, GOLDEN[f'lr_{name}'], rtol=1e-5, atol=1e-8)


@pytest.mark.gpu
def test_twenty_training_steps_equal_the_reference_implementation():
  fields = dict(width=64, mlp_dim=128, depth=3, heads=4, num_classes=10, unroll=1)
  model = vit_jax.build('ViT-Ti/16', **fields)
  # a mean of 0 and a deviation of 1 / 255 leave the images as they are
  loss = classify.make_loss(model.apply, mean=(0.0,) * 3, std=(1 / 255,) * 3)
  rate = optim.make_schedule('cosine', learning_rate=0.03, total=20, warmup=5)
  tx = optim.make_optimizer('sgd', rate, clip=1.0, momentum=0.9, momentum_dtype='bfloat16')
  step = jax.jit(steps.untraced(steps.make_step(loss, tx, rate)))
  params = drawn_params(model, 64)
  state = steps.make_state(params, tx)
  batch = {
    'image': weights.images(16, 64, seed=1),
    'label': np.arange(16) % 10,
    'mask': np.ones(16, np.float32),
  }
  losses = []
  for _ in range(20):
    state, measured = step(state, batch)
    losses.append(measured['sums']['loss'] / measured['sums']['count'])
  # The momentum is rounded to 8 bits at each step, where 1e-7 more or less may become 0.4 %: the
  # same sums as the reference's on a CPU do not, a GPU's may. A float32 momentum is 2e-3 off.
  rtol = 1e-5 if jax.default_backend() == 'cpu' else 2e-4
  np.testing.assert_allclose(losses, GOLDEN['train_cosine_accum1'], rtol=rtol)
