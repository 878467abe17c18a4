"""The losses against closed forms, and padding that counts for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import objective

N, K = 6, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (N, K)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2, 0], np.int32)
SOFT = RNG.dirichlet(np.ones(K), N).astype(np.float32)
ONES = np.ones(N, np.float32)

pytestmark = [pytest.mark.gpu, pytest.mark.quick]


def batch(labels=LABELS, mask=ONES, **more):
  return {'label': labels, 'mask': mask, **more}


def one_hot(labels):
  return np.eye(K, dtype=np.float32)[labels]


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_normalize_takes_uint8_to_minus_one_to_one():
  images = np.array([0, 127, 255], np.uint8).reshape(1, 1, 3, 1).repeat(3, -1)
  found = objective.normalize(images, (0.5,) * 3, (0.5,) * 3)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found[0, 0, :, 0], [-1, -0.003922, 1], atol=5e-7)


def test_normalize_takes_mean_and_deviation_by_channel():
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  images = RNG.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
  same(objective.normalize(images, mean, std), (images / 255 - np.array(mean)) / np.array(std))


def test_softmax_is_the_negative_log_likelihood():
  p = np.exp(np.float64(LOGITS))
  p /= p.sum(-1, keepdims=True)
  same(objective.softmax_cross_entropy(LOGITS, one_hot(LABELS)), -np.log(p[np.arange(N), LABELS]))


def test_sigmoid_is_the_sum_of_the_classes_own_negative_log_likelihoods():
  p = 1 / (1 + np.exp(-np.float64(LOGITS)))
  expected = -(SOFT * np.log(p) + (1 - SOFT) * np.log(1 - p)).sum(-1)
  same(objective.sigmoid_cross_entropy(LOGITS, SOFT), expected)


@pytest.mark.parametrize('loss', objective.LOSSES)
def test_logits_of_any_size_give_finite_losses_and_gradients(loss):
  def total(logits):
    return objective.LOSSES[loss](logits, one_hot(LABELS)).sum()

  value, gradient = jax.value_and_grad(total)(1e4 * LOGITS)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_equal_logits_cost_the_log_of_the_number_of_classes():
  sums = objective.measure(jnp.zeros((N, K)), batch())
  assert float(sums['loss']) == pytest.approx(N * np.log(K), rel=1e-6)


def test_smoothing_spreads_a_share_evenly_over_all_classes():
  found = objective.targets(LABELS, K, smoothing=0.2)
  same(found, np.where(one_hot(LABELS) > 0, 0.85, 0.05))
  same(objective.targets(SOFT, K, smoothing=0.2), 0.8 * SOFT + 0.05)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('loss', objective.LOSSES)
def test_soft_labels_that_are_one_hot_equal_int_labels(loss, smoothing):
  how = dict(loss=loss, smoothing=smoothing)
  hard = objective.measure(LOGITS, batch(), **how)
  same(objective.measure(LOGITS, batch(one_hot(LABELS)), **how), hard)


def test_correct_counts_the_images_whose_highest_logit_is_the_label():
  expected = (LOGITS.argmax(-1) == LABELS).sum()
  assert 0 < expected < N
  assert int(objective.measure(LOGITS, batch())['correct']) == expected


@pytest.mark.parametrize('labels', [LABELS, SOFT], ids=['int', 'soft'])
@pytest.mark.parametrize('loss', objective.LOSSES)
def test_a_masked_batch_equals_the_subset_that_counts(loss, labels):
  keep = np.array([1, 0, 1, 1, 0, 1], np.float32)
  masked = objective.measure(LOGITS, batch(labels, keep), loss=loss)
  subset = objective.measure(LOGITS[keep > 0], batch(labels[keep > 0], ONES[:4]), loss=loss)
  same(masked, subset)


def model(variables, images, *, train, rngs):
  """Linear, and not finite where a pixel is 255."""
  x = images.mean((1, 2))
  return jnp.where(x > 0.99, jnp.log(-x), x) @ variables['params'], {}


PARAMS = RNG.normal(0, 1, (3, K)).astype(np.float32)
IMAGES = RNG.integers(0, 250, (N, 2, 2, 3), dtype=np.uint8)
HALF = np.array([1, 1, 1, 0, 0, 0], np.float32)


def padded(where):
  """A batch whose second half is padding, not finite in what `where` names."""
  images, labels = IMAGES.copy(), SOFT.copy()
  if where == 'images':
    images[3:] = 255
  else:
    labels[3:] = np.nan
  return batch(labels, HALF, image=images)


@pytest.mark.parametrize('where', ['images', 'labels'])
@pytest.mark.parametrize('loss', objective.LOSSES)
def test_padding_that_is_not_finite_changes_no_loss(loss, where):
  call = objective.make_objective(model, mean=(0.5,) * 3, std=(0.5,) * 3, loss=loss)
  total, sums = call(PARAMS, padded(where), jax.random.key(0))
  clean, expected = call(PARAMS, batch(SOFT, HALF, image=IMAGES), jax.random.key(0))
  same((total, sums), (clean, expected))
  assert float(sums['count']) == 3


@pytest.mark.parametrize('loss', objective.LOSSES)
@pytest.mark.parametrize('where', ['images', 'labels'])
def test_padding_that_is_not_finite_changes_no_gradient(loss, where):
  call = objective.make_objective(model, mean=(0.5,) * 3, std=(0.5,) * 3, loss=loss)
  gradient = jax.grad(lambda *args: call(*args)[0])
  found = gradient(PARAMS, padded(where), jax.random.key(0))
  same(found, gradient(PARAMS, batch(SOFT, HALF, image=IMAGES), jax.random.key(0)))


def test_the_objective_is_the_loss_of_normalised_images_summed_and_gets_the_key():
  seen = {}

  def apply(variables, images, *, train, rngs):
    seen.update(images=images, train=train, rngs=rngs)
    return model(variables, images, train=train, rngs=rngs)

  mean, std, key = (0.5, 0.6, 0.7), (0.5, 0.6, 0.7), jax.random.key(7)
  call = objective.make_objective(apply, mean=mean, std=std, loss='sigmoid', smoothing=0.1)
  total, sums = call(PARAMS, batch(image=IMAGES), key)
  logits, _ = model({'params': PARAMS}, objective.normalize(IMAGES, mean, std), train=1, rngs=0)
  same(sums, objective.measure(logits, batch(), loss='sigmoid', smoothing=0.1))
  assert float(total) == float(sums['loss'])
  same(seen['images'], objective.normalize(IMAGES, mean, std))
  assert seen['train'] is True
  assert seen['rngs'] == {'dropout': key}


def test_an_unknown_loss_is_an_error_that_lists_the_known_ones():
  with pytest.raises(ValueError, match=r"'hinge'; known: softmax, sigmoid"):
    objective.make_objective(model, mean=(0.5,) * 3, std=(0.5,) * 3, loss='hinge')
