"""The losses against closed forms, and padding that counts for nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import bundle, sharding
from vit_jax.tasks import classify, losses

N, K = 6, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (N, K)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2, 0], np.int32)
SOFT = RNG.dirichlet(np.ones(K), N).astype(np.float32)
ONES = np.ones(N, np.float32)

pytestmark = [pytest.mark.gpu, pytest.mark.quick, pytest.mark.arithmetic]


def batch(labels=LABELS, mask=ONES, **more):
  return {'label': labels, 'mask': mask, **more}


def one_hot(labels):
  return np.eye(K, dtype=np.float32)[labels]


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_normalize_takes_uint8_to_minus_one_to_one():
  images = np.array([0, 127, 255], np.uint8).reshape(1, 1, 3, 1).repeat(3, -1)
  actual = bundle.normalize(images, (0.5,) * 3, (0.5,) * 3)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual[0, 0, :, 0], [-1, -1 / 255, 1], atol=2e-7)  # 2^-23 at 1


def test_normalize_takes_mean_and_deviation_by_channel():
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  images = RNG.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
  same(bundle.normalize(images, mean, std), (images / 255 - np.array(mean)) / np.array(std))


def test_softmax_is_the_negative_log_likelihood():
  p = np.exp(np.float64(LOGITS))
  p /= p.sum(-1, keepdims=True)
  same(losses.softmax_cross_entropy(LOGITS, one_hot(LABELS)), -np.log(p[np.arange(N), LABELS]))


def test_sigmoid_is_the_sum_of_the_classes_own_negative_log_likelihoods():
  p = 1 / (1 + np.exp(-np.float64(LOGITS)))
  expected = -(SOFT * np.log(p) + (1 - SOFT) * np.log(1 - p)).sum(-1)
  same(losses.sigmoid_cross_entropy(LOGITS, SOFT), expected)


@pytest.mark.parametrize('loss', losses.LOSSES)
def test_logits_of_any_size_give_finite_losses_and_gradients(loss):
  def total(logits):
    return losses.LOSSES[loss](logits, one_hot(LABELS)).sum()

  value, gradient = jax.value_and_grad(total)(1e4 * LOGITS)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_equal_logits_cost_the_log_of_the_number_of_classes():
  sums = losses.training_sums(jnp.zeros((N, K)), batch())
  assert float(sums['loss']) == pytest.approx(N * np.log(K), rel=1e-6)


def test_smoothing_spreads_a_part_evenly_over_all_classes():
  actual = losses.targets(LABELS, K, smoothing=0.2)
  same(actual, np.where(one_hot(LABELS) > 0, 0.85, 0.05))
  same(losses.targets(SOFT, K, smoothing=0.2), 0.8 * SOFT + 0.05)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_soft_labels_that_are_one_hot_equal_int_labels(loss, smoothing):
  options = dict(loss=loss, smoothing=smoothing)
  hard = losses.training_sums(LOGITS, batch(), **options)
  same(losses.training_sums(LOGITS, batch(one_hot(LABELS)), **options), hard)


def test_correct_counts_the_images_whose_highest_logit_is_the_label():
  expected = (LOGITS.argmax(-1) == LABELS).sum()
  assert 0 < expected < N
  assert int(losses.training_sums(LOGITS, batch())['correct']) == expected


@pytest.mark.parametrize('labels', [LABELS, SOFT], ids=['int', 'soft'])
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_a_masked_batch_equals_the_subset_that_counts(loss, labels):
  keep = np.array([1, 0, 1, 1, 0, 1], np.float32)
  masked = losses.training_sums(LOGITS, batch(labels, keep), loss=loss)
  subset = losses.training_sums(LOGITS[keep > 0], batch(labels[keep > 0], ONES[:4]), loss=loss)
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
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_padding_that_is_not_finite_changes_no_loss_and_no_gradient(loss, where):
  call = classify.make_loss(model, mean=(0.5,) * 3, std=(0.5,) * 3, loss=loss)

  @jax.jit
  def graded(rows):
    def total(params):
      loss, sums, _ = call(params, rows, jax.random.key(0), {})
      return loss, sums

    return jax.value_and_grad(total, has_aux=True)(PARAMS)

  actual = graded(padded(where))
  same(actual, graded(batch(SOFT, HALF, image=IMAGES)))
  assert float(actual[0][1]['count']) == 3


def test_the_objective_is_the_loss_of_normalised_images_summed_and_gets_the_key():
  inputs = {}

  def apply(variables, images, *, train, rngs):
    inputs.update(images=images, train=train, rngs=rngs)
    return model(variables, images, train=train, rngs=rngs)

  mean, std, key = (0.5, 0.6, 0.7), (0.5, 0.6, 0.7), jax.random.key(7)
  call = classify.make_loss(apply, mean=mean, std=std, loss='sigmoid', smoothing=0.1)
  total, sums, named = call(PARAMS, batch(image=IMAGES), key, {})
  logits, _ = model({'params': PARAMS}, bundle.normalize(IMAGES, mean, std), train=1, rngs=0)
  same(sums, losses.training_sums(logits, batch(), loss='sigmoid', smoothing=0.1))
  assert float(total) == float(sums['loss'])
  same((named['images'], named['logits']), (inputs['images'], logits))
  same(inputs['images'], bundle.normalize(IMAGES, mean, std))
  assert inputs['train'] is True
  assert inputs['rngs'] == {'dropout': key}


def test_an_unknown_loss_is_an_error_that_lists_the_known_ones():
  with pytest.raises(ValueError, match=r"'hinge'; known: softmax, sigmoid"):
    classify.make_loss(model, mean=(0.5,) * 3, std=(0.5,) * 3, loss='hinge')


WEIGHTS = (0.5, 2.0, 1.0, 3.0)


def test_class_weights_are_of_an_image_by_its_class_and_of_a_sigmoids_positives():
  options = dict(mean=(0.5,) * 3, std=(0.5,) * 3, class_weights=WEIGHTS)
  rows, key = batch(image=IMAGES), jax.random.key(0)
  logits, _ = model(
    {'params': PARAMS}, bundle.normalize(IMAGES, (0.5,) * 3, (0.5,) * 3), train=1, rngs=0
  )
  total, sums, _ = classify.make_loss(model, **options)(PARAMS, rows, key, {})
  each = losses.softmax_cross_entropy(logits, one_hot(LABELS))
  same(total, (np.array(WEIGHTS)[LABELS] * each).sum())
  assert int(sums['count']) == N
  total, _, _ = classify.make_loss(model, loss='sigmoid', **options)(PARAMS, rows, key, {})
  y, p = one_hot(LABELS), 1 / (1 + np.exp(-np.float64(logits)))
  same(total, -(np.array(WEIGHTS) * y * np.log(p) + (1 - y) * np.log(1 - p)).sum())


def test_focal_losses_are_the_cross_entropies_times_a_power_of_what_is_not_sure():
  y, p = one_hot(LABELS), 1 / (1 + np.exp(-np.float64(LOGITS)))
  terms = y * (1 - p) ** 1.5 * np.log(p) + (1 - y) * p**1.5 * np.log(1 - p)
  same(losses.focal(LOGITS, y, gamma=1.5), -terms.sum(-1))
  same(losses.focal(LOGITS, y, gamma=0.0), losses.sigmoid_cross_entropy(LOGITS, y))
  shares = np.exp(losses.softmax_cross_entropy(LOGITS, y) * -1)
  same(losses.softmax_focal(LOGITS, y, gamma=1.5), -((1 - shares) ** 1.5) * np.log(shares))
  same(losses.softmax_focal(LOGITS, y, gamma=0.0), losses.softmax_cross_entropy(LOGITS, y))


def test_class_weights_of_a_loss_from_elsewhere_are_refused():
  with pytest.raises(ValueError, match=r'class_weights are of softmax, .* not of another loss'):
    losses.weighted(losses.hits, class_weights=WEIGHTS)


MULTI_LABEL = np.array([[0, 2], [3, -1], [1, 1], [-1, -1], [2, 3], [0, -1]], np.int32)


def test_multi_label_targets_are_one_for_each_label():
  expected = [[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]]
  same(losses.targets(MULTI_LABEL, K), np.float32(expected))
  same(losses.targets(MULTI_LABEL, K, smoothing=0.2), 0.8 * np.float32(expected) + 0.05)


def test_any_label_of_a_multi_label_image_is_a_hit_and_none_never_is():
  logits = one_hot([2, 0, 1, 0, 2, 0])
  sums = losses.training_sums(logits, batch(MULTI_LABEL), loss='sigmoid')
  assert int(sums['correct']) == 4
  alone = losses.training_sums(LOGITS, batch(LABELS[:, None]), loss='sigmoid')
  same(alone, losses.training_sums(LOGITS, batch(LABELS), loss='sigmoid'))


def test_an_image_of_no_class_is_a_negative_and_an_unknown_one_is_padding():
  rows = batch(np.array([[0, 2], [-1, -1], [-2, -2], [1, -1], [-2, -2], [-1, -1]], np.int32))
  sums = losses.training_sums(LOGITS, rows, loss='sigmoid')
  counted = [0, 1, 3, 5]
  y = np.float32([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
  same(sums['loss'], losses.sigmoid_cross_entropy(LOGITS[counted], y).sum())
  assert int(sums['count']) == 4
  alone = losses.training_sums(LOGITS, batch(np.array([0, -1, 1, 1, -1, 0])), loss='sigmoid')
  subset = [0, 2, 3, 5]
  same(alone, losses.training_sums(LOGITS[subset], batch(LABELS[subset], ONES[:4]), loss='sigmoid'))


SIZE = (20, 32)
BOTH = dict(mixup=0.8, cutmix=1.0)


@functools.cache
def draws(mixup=0.0, cutmix=0.0):
  """(4000, H, W), the weights of so many batches."""

  def draw(key):
    return losses.pixel_weights(key, SIZE, mixup=mixup, cutmix=cutmix)

  return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 4000)))


def test_mixup_keeps_at_least_half_of_an_image_with_one_weight_for_all_pixels():
  weights = draws(mixup=1.0)
  assert weights.min() >= 0.5
  assert weights.max() <= 1
  same(weights, np.broadcast_to(weights[:, :1, :1], weights.shape))
  assert weights.mean() == pytest.approx(0.75, abs=0.01)  # of the larger part, uniform in [1/2, 1]


def test_mixup_of_a_small_a_hardly_mixes():
  weights = draws(mixup=0.01)
  assert np.median(weights) > 0.999
  assert np.isfinite(weights).all()


def test_cutmix_cuts_a_box_out_of_an_image():
  boxes = draws(cutmix=1.0)[:200]
  assert set(np.unique(boxes)) == {0.0, 1.0}
  for weights in boxes:
    cut = weights == 0
    rows, columns = cut.any(1), cut.any(0)
    np.testing.assert_array_equal(cut, rows[:, None] & columns)
    assert (np.diff(rows.astype(int)) != 0).sum() <= 2
    assert (np.diff(columns.astype(int)) != 0).sum() <= 2


def test_cutmix_cuts_as_much_as_is_expected_of_boxes_within_the_image():
  areas = 1 - draws(cutmix=1.0).mean((1, 2))
  rng = np.random.default_rng(0)
  half, centre = np.sqrt(rng.uniform(size=(400_000, 1))) / 2, rng.uniform(size=(400_000, 2))
  sides = np.minimum(centre + half, 1) - np.maximum(centre - half, 0)
  assert areas.mean() == pytest.approx(sides.prod(-1).mean(), abs=0.012)


def test_where_both_are_asked_for_each_is_done_half_of_the_time():
  weights = draws(**BOTH)
  cut = ((weights == 0) | (weights == 1)).all((1, 2))
  assert cut.mean() == pytest.approx(0.5, abs=0.04)


COLOURS = np.array([0, 51, 153, 255], np.uint8)  # of an image of each class


def plain(labels=LABELS, mask=ONES):
  """A batch whose images are all of the colour of their class."""
  images = np.broadcast_to(COLOURS[labels].reshape(-1, 1, 1, 1), (len(labels), *SIZE, 3))
  return batch(labels, mask, image=images)


KINDS = pytest.mark.parametrize('kinds', [dict(mixup=0.8), dict(cutmix=1.0), BOTH])


def mixing(rows, key=0, **kinds):
  """The images that the model is given, and the targets of its loss."""
  return jax.tree.map(np.asarray, mixer(**kinds)(rows, jax.random.key(key)))


@functools.cache
def mixer(**kinds):
  """`mixing`, compiled once: the random numbers take long."""
  inputs = {}

  def apply(variables, images, *, train, rngs):
    inputs.update(images=images)
    return variables['params'], {}

  call = classify.make_loss(apply, mean=(0.0,) * 3, std=(1.0,) * 3, loss='sigmoid', **kinds)

  @jax.jit
  def both(rows, key):
    gradient = jax.grad(lambda params: call(params, rows, key, {})[0])(
      jnp.zeros((len(rows['mask']), K))
    )
    return inputs['images'], 0.5 - gradient  # the sigmoid loss at logits 0 has gradient 1/2 - y

  return both


@KINDS
def test_labels_are_mixed_by_the_weight_of_pixels_and_sum_to_one(kinds):
  for key in range(6):
    images, y = mixing(plain(), key, **kinds)
    same(y.sum(-1), ONES)
    np.testing.assert_allclose(images.mean((1, 2, 3)), y @ (COLOURS / 255), atol=1e-5)


def test_mixing_comes_before_smoothing():
  y = mixing(plain(), **BOTH)[1]
  same(mixing(plain(), smoothing=0.2, **BOTH)[1], 0.8 * y + 0.2 / K)


def test_an_image_is_mixed_with_the_one_before_it():
  images, y = mixing(plain(), mixup=5.0)
  share = y[1, 3]
  assert 0.5 <= share < 1
  same(y, share * one_hot(LABELS) + (1 - share) * one_hot(np.roll(LABELS, 1)))
  before = np.roll(plain()['image'], 1, axis=0)
  np.testing.assert_allclose(images, (share * plain()['image'] + (1 - share) * before) / 255, 1e-5)


def test_without_mixing_images_and_targets_are_as_they_were():
  images, y = mixing(plain())
  same(images, plain()['image'] / 255)
  same(y, one_hot(LABELS))


@KINDS
def test_padding_is_mixed_into_nothing_and_its_neighbour_stays_whole(kinds):
  mask = np.array([1, 1, 0, 1, 1, 0], np.float32)
  rows = plain(mask=mask)
  rows['image'] = np.where(mask.reshape(-1, 1, 1, 1) > 0, rows['image'], 255).astype(np.uint8)
  images, y = mixing(rows, 3, **kinds)
  for alone in (0, 3):  # whose partners are padding
    same(images[alone], plain()['image'][alone] / 255)
    same(y[alone], one_hot(LABELS)[alone])
  expected_images, expected = mixing(plain(), 3, **kinds)
  same(images[[1, 4]], expected_images[[1, 4]])
  same(y[[1, 4]], expected[[1, 4]])


@KINDS
def test_the_same_key_mixes_alike_and_another_does_not(kinds):
  first, again, other = (mixing(plain(), key, **kinds) for key in (1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert np.abs(first[0] - other[0]).max() > 0.01


@KINDS
def test_mixing_on_eight_devices_equals_that_on_one(kinds):
  labels = np.arange(2 * jax.device_count()) % K
  rows = plain(labels, np.ones(len(labels), np.float32))
  jax.tree.map(
    np.testing.assert_array_equal,
    mixing(sharding.put(rows, sharding.make_mesh()), 5, **kinds),
    mixing(rows, 5, **kinds),
  )


def test_labels_of_every_kind_are_mixed():
  multi_label, hard = batch(LABELS[:, None], image=plain()['image']), plain()
  soft = batch(one_hot(LABELS), image=plain()['image'])
  for rows in (multi_label, soft):
    same(mixing(rows, 2, mixup=0.5), mixing(hard, 2, mixup=0.5))


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_a_negative_amount_of_mixing_is_an_error(kind):
  with pytest.raises(ValueError, match='must be at least 0'):
    classify.make_loss(model, mean=(0.5,) * 3, std=(0.5,) * 3, **{kind: -0.1})
