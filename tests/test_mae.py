"""Laws of masked autoencoders: what is hidden, what is predicted, and what of it is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import drawn, tiny
from vit_jax import bundle, config, models, optim
from vit_jax import plan as plans
from vit_jax.evaluate import reconstruct
from vit_jax.images import transforms
from vit_jax.models.decoder import Decoder, patchify, unpatchify
from vit_jax.step import make_state, make_step, untraced
from vit_jax.tasks import mae
from vit_jax.tasks.encoder import ImageEncoder

pytestmark = [pytest.mark.quick, pytest.mark.arithmetic]

SIZE = (8, 16)  # 2 x 4 patches
IMAGES = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), np.uint8)
NOISE = np.random.default_rng(1).random((4, 8), np.float32)
ORDER = NOISE.argsort(1)
BATCH = {'image': IMAGES, 'noise': NOISE, 'mask': np.ones(4, np.float32)}
DECODER = Decoder(
  outputs=48,
  prefix=1,
  width=8,
  depth=2,
  heads=2,
  mlp_dim=16,
  activation='gelu_erf',
  norm_eps=1e-6,
  dtype='float32',
)


@functools.cache
def task_of(mask=0.75, normalise=True):
  """The task of a tiny encoder."""
  model = tiny(num_classes=0)
  transform = transforms.compose('resize', SIZE, 3)
  uses = {'train': transform, 'evaluation': transform}
  encoder = ImageEncoder(model, uses, bundle.Preprocess('resize', SIZE), 'ViT-Ti/16', None)
  return mae.mae(encoder, model, DECODER, mask=mask, normalise=normalise)


@functools.cache
def params_of():
  return drawn(jax.eval_shape(task_of().init, jax.random.key(0)))


@functools.cache
def losses_of(mask=0.75, normalise=True):
  """(params, batch) -> (loss, predictions, gradient), compiled once."""

  def loss(params, batch):
    fixed = {'ema': None, 'step': jnp.zeros((), jnp.int32)}
    total, _, named = task_of(mask, normalise).loss(params, batch, jax.random.key(0), fixed)
    return total, named['predictions']

  def run(params, batch):
    (total, predictions), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
    return total, predictions, models.flat(gradient)

  return jax.jit(run)


def wanted(images, normalise):
  """Targets by a loop over patches, float64."""
  pixels = np.float64(images) / 127.5 - 1
  rows = []
  for image in pixels:
    for y in (0, 4):
      for x in (0, 4, 8, 12):
        patch = image[y : y + 4, x : x + 4].ravel()
        scale = np.sqrt(((patch - patch.mean()) ** 2).sum() / 47 + 1e-6)
        rows.append((patch - patch.mean()) / scale if normalise else patch)
  return np.reshape(rows, (len(images), 8, 48))


@pytest.mark.parametrize('normalise', [True, False])
def test_the_loss_is_the_mean_square_error_over_hidden_patches(normalise):
  total, predictions, _ = losses_of(normalise=normalise)(params_of(), BATCH)
  errors = ((predictions - wanted(IMAGES, normalise)) ** 2).mean(-1)
  each = [errors[image, ORDER[image, 2:]].mean() for image in range(4)]
  np.testing.assert_allclose(total, sum(each), rtol=1e-5)


def test_predictions_follow_from_visible_patches_alone():
  _, before, _ = losses_of()(params_of(), BATCH)
  patches = np.asarray(patchify(IMAGES, (4, 4))).copy()
  patches[0, ORDER[0, 2:]] = 7
  patches[1, ORDER[1, 1]] = 7
  images = np.asarray(unpatchify(patches, (4, 4), (2, 4)))
  _, after, _ = losses_of()(params_of(), {**BATCH, 'image': images})
  np.testing.assert_array_equal(before[0], after[0])
  assert np.abs(before[1] - after[1]).max() > 1e-3


def test_a_mask_of_nothing_is_an_autoencoder():
  total, predictions, gradient = losses_of(mask=0.0)(params_of(), BATCH)
  np.testing.assert_allclose(
    total, ((predictions - wanted(IMAGES, True)) ** 2).mean((1, 2)).sum(), rtol=1e-5
  )
  assert not gradient['decoder/mask_token'].any()
  other, *_ = losses_of(mask=0.0)(params_of(), {**BATCH, 'noise': NOISE[:, ::-1]})
  np.testing.assert_allclose(other, total, rtol=1e-5)


def test_padding_does_not_count():
  half = {name: rows[:2] for name, rows in BATCH.items()}
  total, _, gradient = losses_of()(params_of(), half)
  padded = {**BATCH, 'mask': np.float32([1, 1, 0, 0])}
  again, _, other = losses_of()(params_of(), padded)
  np.testing.assert_allclose(again, total, rtol=1e-5)
  for name, leaf in gradient.items():
    np.testing.assert_allclose(other[name], leaf, rtol=0, atol=2e-5, err_msg=name)


def test_micro_batches_have_the_gradient_of_the_whole_batch():
  updated = []
  for accumulate in (1, 4):
    step = make_step(task_of().loss, optax.sgd(1.0), lambda s: s, accumulate=accumulate)
    state, _ = jax.jit(untraced(step))(make_state(params_of(), optax.sgd(1.0)), BATCH)
    updated.append(models.flat(state.params))
  for name, leaf in updated[0].items():
    np.testing.assert_allclose(updated[1][name], leaf, rtol=0, atol=1e-5, err_msg=name)


def test_positions_start_as_the_papers_and_take_no_gradient():
  table = np.asarray(jax.jit(task_of().init)(jax.random.key(0))['positions'])
  frequencies = 10_000.0 ** -(np.arange(4) / 4)  # of a width of 16
  want = [np.zeros(16)]
  for y in range(2):
    for x in range(4):
      want.append([f(c * frequencies) for c in (x, y) for f in (np.sin, np.cos)])
  np.testing.assert_allclose(table[0], [np.ravel(row) for row in want], rtol=0, atol=1e-6)
  gradient = losses_of()(params_of(), BATCH)[2]
  idle = [name for name, leaf in gradient.items() if not leaf.any()]
  assert idle == ['positions']


def test_an_image_has_another_mask_in_another_epoch():
  column = mae.noise(8)
  draws = [column.fill({}, np.random.Generator(np.random.Philox(seed))) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(draws[0], draws[1])
  assert (draws[0].argsort() != draws[2].argsort()).any()
  assert column.view != 0  # of the crop


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (['mae.mask=1'], r'mae.mask .*1'),
    (['mae.mask=0.99'], r'mae.mask is 0.99, which hides all 16 patches'),
    (['mae.decoder_width=6', 'mae.decoder_heads=2'], r'decoder_width is 6, must divide by 4'),
    (['model.name=Mixer-S/16', 'model.heads=None'], r'from a ViT'),
    (['model.relative_positions=table'], r"relative_positions must be 'none'"),
  ],
)
def test_what_cannot_be_masked_is_refused_by_name(fields, message):
  fields = ['task=mae', 'model.pool=None', 'model.drop_path=0', *fields]
  if 'Mixer' in fields[3]:
    fields += ['model.drop_path=None', 'model.width=16', 'model.mlp_dim=16']
  with pytest.raises(ValueError, match=message) as error:
    plans.make_plan(config.load('digits', fields))
  assert '\n' not in str(error.value)


def test_a_decoder_of_another_depth_counts_as_what_comes_after_the_last_layer():
  layer, depth = optim.layers_of(params_of())
  assert depth == 3
  assert {np.max(layer[name]) for name in layer if name.startswith('decoder/')} == {4}
  frozen = optim.make_frozen(params_of(), layers=3)
  assert {name.split('/')[0] for name in frozen.names} == {'embed', 'cls', 'positions', 'encoder'}


@pytest.mark.parametrize('name', ['lamb', 'adafactor', 'muon'])
def test_optimisers_by_layer_take_a_decoder_of_another_depth(name):
  tx = optim.make_optimizer(name, lambda _: jnp.asarray(0.1), layer_decay=0.9)
  shapes = jax.eval_shape(task_of().init, jax.random.key(0))
  updates, _ = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), shapes)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize('normalise', [True, False])
def test_a_reconstruction_has_the_visible_pixels_and_predicts_the_hidden(normalise):
  source = task_of(normalise=normalise).deliver(params_of())
  result = reconstruct.reconstruct(source, IMAGES, seed=3)
  noise = np.random.default_rng(3).random((4, 8))
  expected = noise.argsort(1).argsort(1).reshape(4, 2, 4) >= 2
  np.testing.assert_array_equal(result.hidden, expected)
  assert result.borrows == normalise
  hidden = expected.repeat(4, 1).repeat(4, 2)
  np.testing.assert_array_equal(result.pixels[~hidden], IMAGES[~hidden])
  np.testing.assert_array_equal(result.masked[~hidden], IMAGES[~hidden])
  assert (result.masked[hidden] == 128).all()
  batch = {**BATCH, 'noise': np.float32(noise)}
  values = losses_of(normalise=normalise)(params_of(), batch)[1]
  if normalise:
    pixels = wanted(IMAGES, False)
    deviation = np.sqrt(pixels.var(-1, ddof=1, keepdims=True) + 1e-6)
    values = values * deviation + pixels.mean(-1, keepdims=True)
  whole = np.asarray(unpatchify(np.asarray(values), (4, 4), (2, 4)))
  filled = np.clip(255 * (whole / 2 + 0.5), 0, 255)
  assert np.abs(result.pixels[hidden] - filled[hidden]).max() <= 0.51  # of a pixel's 255 steps
