"""Laws of LeJEPA: what SIGReg measures, what of a batch counts, and what cannot be asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import drawn
from vit_jax import config, plan
from vit_jax.tasks import lejepa

pytestmark = [pytest.mark.quick, pytest.mark.arithmetic]

NULL = np.sqrt(2 * np.pi) * (1 - 1 / np.sqrt(3))  # of a normal sample, in the mean: the integral


@functools.cache
def statistic(points=17, t_max=5.0):
  return jax.jit(functools.partial(lejepa.sigreg, points=points, t_max=t_max))


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def directions(outputs, count=64, seed=0):
  return lejepa.unit_vectors(jax.random.key(seed), outputs, count)


def rotation(size):
  return np.linalg.qr(normal(size, size, seed=1))[0]


@pytest.mark.parametrize(('points', 't_max'), [(17, 5.0), (33, 5.0), (16, 6.0)])
@pytest.mark.parametrize('count', [16, 256])
def test_normal_samples_have_the_statistic_of_their_null(count, points, t_max):
  x = normal(count, 40, 8)
  value = statistic(points, t_max)(x, directions(8), np.ones(count, np.float32))
  np.testing.assert_allclose(value, NULL, rtol=0.06)  # 40 views of 8 dimensions: 320 samples


@pytest.mark.parametrize('change', [lambda x: 1.5 * x, lambda x: x + 0.3, lambda x: 0 * x])
def test_other_samples_have_a_larger_statistic(change):
  ones, x = np.ones(256, np.float32), normal(256, 4, 8)
  assert statistic()(change(x), directions(8), ones) > 3 * NULL


def test_samples_that_are_rotated_with_the_directions_have_the_same_statistic():
  x, turn, slices = normal(64, 2, 8) ** 3, rotation(8), directions(8)
  ones = np.ones(64, np.float32)
  np.testing.assert_allclose(
    statistic()(x @ turn, turn.T @ slices, ones), statistic()(x, slices, ones), rtol=1e-5
  )


def test_samples_that_are_rotated_alone_have_the_same_statistic_over_many_directions():
  x = normal(64, 1, 3) * np.float32([2, 1, 0.1])
  ones, slices = np.ones(64, np.float32), directions(3, 20_000)
  rotated, straight = (statistic()(samples, slices, ones) for samples in (x @ rotation(3), x))
  # Directions differ by as much as the statistic itself: of means over 20,000 that is about 1 %.
  np.testing.assert_allclose(rotated, straight, rtol=0.04)
  assert abs(statistic()(2 * x, slices, ones) / straight - 1) > 0.1


def test_each_step_has_other_directions_of_length_one():
  first, second = directions(8), directions(8, seed=1)
  np.testing.assert_allclose(np.linalg.norm(first, axis=0), 1, rtol=1e-5)
  assert np.abs(first - second).min(1).max() > 0 and not np.array_equal(first, second)


FIELDS = {
  'task': 'lejepa',
  'model.depth': 1,
  'model.width': 16,
  'model.heads': 2,
  'views.local_count': 1,
  'views.local_size': 4,
  'lejepa.hidden': 16,
  'lejepa.outputs': 8,
  'lejepa.directions': 16,
}


def plan_of(**fields):
  words = [f'{name}={value}' for name, value in (FIELDS | fields).items()]
  return plan.make_plan(config.load('digits', words))


@functools.cache
def task():
  return plan_of().task


def test_padding_changes_neither_loss_nor_its_parts():
  rng = np.random.default_rng(0)
  batch = {n: rng.integers(0, 256, (8, *c.shape), np.uint8) for n, c in task().evaluation.items()}
  params = drawn(jax.eval_shape(task().init, jax.random.key(0)))
  measure = jax.jit(task().measure)
  mask = np.float32([1, 1, 1, 1, 1, 0, 0, 0])
  sums, _ = measure(params, batch | {'mask': mask}, {})
  other = {name: np.where(mask[:, None, None, None] > 0, x, 0) for name, x in batch.items()}
  padded, _ = measure(params, other | {'mask': mask}, {})
  assert sums['count'] == 5 and set(sums) >= {'loss', 'disagreement', 'sigreg'}
  for name, value in sums.items():
    np.testing.assert_allclose(padded[name], value, rtol=1e-5, err_msg=name)
  parts = 0.95 * sums['disagreement'] + 0.05 * sums['sigreg']
  np.testing.assert_allclose(sums['loss'], parts, rtol=1e-6)


def test_views_that_agree_have_no_disagreement():
  x = jnp.tile(normal(4, 1, 3), (1, 5, 1))
  assert lejepa.disagreement(x, x[:, :2], np.ones(4, np.float32)) < 1e-12
  moved = x.at[:, 4].add(1.0)  # a local view: the centre of the global ones stays
  np.testing.assert_allclose(
    lejepa.disagreement(moved, moved[:, :2], np.ones(4, np.float32)), 1 / 5, rtol=1e-6
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'accumulate': 2}, 'accumulate is 2, must be 1: .*images of a whole batch'),
    ({'model.pool': 'none'}, "model.pool is 'none', which gives features of patches"),
    ({'views.global_count': 1, 'views.local_count': 0}, 'compares views: views has 1'),
    ({'views.local_size': 5}, 'views.local_size: .* 5x5 does not divide into patches'),
    (
      {'teacher.checkpoint': 'B_16'},
      "'lejepa' encodes parts of images.*teacher.checkpoint is 'B_16', must be ''",
    ),
    ({'evaluation.metric': 'knn_accuracy'}, 'needs a labelled set in evaluation.knn'),
    ({'lejepa.weight': 1.5}, 'lejepa.weight is 1.5, must be at least 0'),
  ],
)
def test_what_lejepa_cannot_learn_is_refused_in_a_line(fields, message):
  with pytest.raises(ValueError, match=message):
    plan_of(**fields)
