"""SAM and GSAM against NumPy in float64, and against the optimiser that they wrap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import flat
from tests.test_optim import NAMES, RATE, close, make
from vit_jax import optim

pytestmark = [pytest.mark.gpu, pytest.mark.arithmetic]

RADIUS = 0.2


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def gradient(params, *_):
  """The gradient of sum(sin(3 p) / 3 + p^2 / 8), leaf by leaf."""
  return jax.tree.map(lambda p: jnp.cos(3 * p) + p / 4, params)


def leaf(*shape, seed=0):
  return np.float32(0.3 * np.random.default_rng(seed).standard_normal(shape))


PARAMS = {
  'cls': leaf(1, 1, 4),
  'encoder': {
    'blocks': {
      'mlp': {'up': {'kernel': leaf(2, 4, 6, seed=1), 'bias': leaf(2, 6, seed=2)}},
      'norm1': {'scale': leaf(2, 4, seed=3)},
    }
  },
  'head': {'kernel': leaf(4, 3, seed=4)},
}


def first_update(tx, params=PARAMS, grads=None, grad_fn=gradient):
  """The update that an optimiser makes of the gradient at `params`, and its state, compiled."""
  tx = optax.with_extra_args_support(tx)

  @jax.jit
  def update(params):
    clean = gradient(params) if grads is None else grads
    return tx.update(clean, tx.init(params), params, grad_fn=grad_fn)

  return update(params)


def trajectory(tx, start, grad_fn, steps):
  """The parameters after each of so many updates."""
  tx = optax.with_extra_args_support(tx)

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  run = jax.jit(lambda start: jax.lax.scan(step, (start, tx.init(start)), None, steps)[1])
  return run(start)


# Against NumPy: w of 5 numbers in two leaves, with the gradient A w + cos(w)


A = np.random.default_rng(7).standard_normal((5, 5))
START = np.array([0.5, -1.0, 2.0, 0.3, -0.7])


def split(vector):
  return {'a': vector[:2], 'b': {'kernel': vector[2:]}}


def coupled(tree, *_):
  w = jnp.concatenate([tree['a'], tree['b']['kernel']])
  return split(jnp.einsum('ij,j->i', np.float32(A), w) + jnp.cos(w))


def expected_trajectory(rates, radii, alpha, momentum):
  """SAM and GSAM with SGD, in float64."""

  def grad(w):
    return A @ w + np.cos(w)

  w, velocity, path = START, np.zeros(5), []
  for rate, radius in zip(rates, radii):
    clean = grad(w)
    perturbed = grad(w + radius * clean / np.linalg.norm(clean))
    unit = perturbed / np.linalg.norm(perturbed)
    velocity = momentum * velocity + perturbed - alpha * (clean - (clean @ unit) * unit)
    w = w - rate * velocity
    path.append(w)
  return split(np.array(path).T)


def transposed(path):
  return jax.tree.map(lambda values: np.asarray(values).T, path)


@pytest.mark.quick
def test_sam_equals_numpy():
  path = trajectory(make('sgd', 0.05, sam=RADIUS), split(np.float32(START)), coupled, 6)
  expected = expected_trajectory([0.05] * 6, [RADIUS] * 6, 0.0, 0.9)
  close(
    transposed(path), expected, rtol=1e-5, atol=1e-5
  )  # six updates in float32 of numbers near 1


def warming(**options):
  return optim.make_schedule('cosine', learning_rate=0.05, total=8, warmup=2, **options)


@pytest.mark.quick
@pytest.mark.parametrize('smallest', [0.0, 0.05])
def test_gsam_equals_numpy_with_a_radius_that_follows_the_rate(smallest):
  rates = [0, 0.025] + [0.01 + 0.04 * 0.5 * (1 + np.cos(np.pi * s / 6)) for s in range(6)]
  fractions = np.clip((np.array(rates) - 0.01) / 0.04, 0, 1)
  assert fractions[2] == 1
  radii = smallest + (RADIUS - smallest) * fractions
  tx = optim.make_optimizer(
    'sgd', warming(end=0.01), sam=RADIUS, gsam=0.5, sam_min=smallest, rates=(0.01, 0.05)
  )
  path = trajectory(tx, split(np.float32(START)), coupled, 8)
  # eight updates in float32 of numbers near 1
  close(transposed(path), expected_trajectory(rates, radii, 0.5, 0.9), rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_gsam_keeps_the_gradient_at_the_perturbed_point_along_itself():
  clean = jax.tree.map(lambda p: np.cos(3 * p) + p / 4, PARAMS)
  perturbed = jax.tree.map(lambda g: np.sin(7 * g), clean)
  narrowed = jax.jit(optim.narrow_gap)
  changes = jax.tree.map(np.subtract, narrowed(perturbed, clean, 0.4), perturbed)
  assert np.sqrt(sum(np.sum(np.square(change)) for change in flat(changes).values())) > 0.1
  # the product of trees of norm 8, summed in float32
  assert abs(sum(np.vdot(flat(changes)[name], p) for name, p in flat(perturbed).items())) < 1e-5
  close(narrowed(perturbed, perturbed, 0.4), perturbed, atol=1e-6)


# Against the optimiser that is wrapped


def program(tx):
  """What an update computes, as text: the same programs give the same bits."""
  tx = optax.with_extra_args_support(tx)

  def update(grads, params):
    return tx.update(grads, tx.init(params), params, grad_fn=gradient)

  return str(jax.make_jaxpr(update)(PARAMS, PARAMS))


@pytest.mark.quick
@pytest.mark.parametrize('name', NAMES)
def test_a_radius_of_zero_is_the_optimiser_to_the_bit(name):
  tx = make(name, weight_decay=0.3, clip=1.0)
  plain = program(tx)
  assert program(optim.sharpness_aware(tx, 0.0)) == plain
  assert program(optim.sharpness_aware(tx, 0.0, alpha=0.5)) == plain
  assert program(make(name, weight_decay=0.3, clip=1.0, sam=0.0)) == plain
  assert program(optim.sharpness_aware(tx, RADIUS)) != plain


@pytest.mark.quick
@pytest.mark.parametrize('radius', [1e-30, lambda step: jnp.zeros(())], ids=['tiny', 'zero'])
def test_a_radius_below_the_rounding_is_the_optimiser_to_the_bit(radius):
  tx = make('sgd')
  grads, state = gradient(PARAMS), tx.init(PARAMS)  # outside jit, which may fuse them differently
  plain = tx.update(grads, state, PARAMS)
  wrapped = optim.sharpness_aware(tx, radius).update(grads, state, PARAMS, grad_fn=gradient)
  assert_same_bits(wrapped, plain)


@pytest.mark.parametrize('name', NAMES)
def test_any_optimiser_is_given_the_gradient_at_the_perturbed_point_and_the_parameters(name):
  options = dict(weight_decay=0.3, clip=0.5, layer_decay=0.7)
  far = 8.0  # so that signs change, too, which are all that lion sees
  tx, wrapped = make(name, **options), optax.with_extra_args_support(make(name, sam=far, **options))

  @jax.jit
  def updates(params):
    clean, norm = gradient(params), optax.tree.norm(gradient(params))
    perturbed = gradient(jax.tree.map(lambda p, g: p + far * g / norm, params, clean))
    # not the first update, which for most is the sign of the gradient
    _, state = tx.update(jax.tree.map(jnp.negative, params), tx.init(params), params)
    expected, _ = tx.update(perturbed, state, params)
    at_clean, _ = tx.update(clean, state, params)
    return wrapped.update(clean, state, params, grad_fn=gradient)[0], expected, at_clean

  update, expected, at_clean = updates(PARAMS)
  # muon's matrices are iterated in float32: five steps that each grow a rounding several times
  tolerance = dict(rtol=1e-4, atol=1e-5) if name == 'muon' else dict(rtol=1e-5, atol=1e-6)
  close(update, expected, **tolerance)
  assert not all(np.allclose(flat(update)[leaf], u, 1e-2) for leaf, u in flat(at_clean).items())


@pytest.mark.parametrize('gsam', [0.0, 0.5], ids=['sam', 'gsam'])
@pytest.mark.parametrize('name', NAMES)
def test_the_state_has_the_tree_of_the_optimiser(name, gsam):
  plain, wrapped = make(name), make(name, sam=RADIUS, gsam=gsam, rates=(0, RATE))

  def states(tx):
    tx = optax.with_extra_args_support(tx)
    state = jax.eval_shape(tx.init, PARAMS)
    shapes = jax.eval_shape(functools.partial(tx.update, grad_fn=gradient), PARAMS, state, PARAMS)
    return state, shapes[1]

  assert states(wrapped) == states(plain)


@pytest.mark.quick
@pytest.mark.parametrize('gsam', [0.0, 0.5], ids=['sam', 'gsam'])
def test_what_is_frozen_does_not_count(gsam):
  frozen = optim.Frozen(frozenset({'cls', 'encoder/blocks/norm1/scale'}), layers=1)
  trained = frozen.trainable(PARAMS)
  assert flat(trained)['encoder/blocks/mlp/up/kernel'].shape == (1, 4, 6)
  tx = make(
    'sgd', sam=RADIUS, gsam=gsam, rates=(0, RATE), layer_decay=0.5, weight_decay=0.1, params=PARAMS
  )

  def of_whole(part, *_):
    return frozen.trainable(gradient(frozen.with_trainable(PARAMS, part)))

  updates, _ = first_update(tx, trained, of_whole(trained), of_whole)
  clean = flat(of_whole(trained))
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in clean.values()))
  ascended = {
    name: np.float32(p + RADIUS * clean[name] / norm) for name, p in flat(trained).items()
  }
  perturbed = {name: np.cos(3 * p) + p / 4 for name, p in ascended.items()}
  dot = sum(np.sum(clean[name] * perturbed[name]) for name in clean)
  along = dot / sum(np.sum(np.square(g)) for g in perturbed.values())
  for name, update in flat(updates).items():
    expected = perturbed[name] - gsam * (clean[name] - along * perturbed[name])
    expected += 0.1 * flat(trained)[name] * name.endswith('kernel')
    layers_from_head = 1 if name.startswith('encoder') else 0
    np.testing.assert_allclose(update, -RATE * 0.5**layers_from_head * expected, 1e-5, 1e-6)


@pytest.mark.quick
@pytest.mark.parametrize('gsam', [0.0, 0.5], ids=['sam', 'gsam'])
@pytest.mark.parametrize('size', [0.0, 1e-30, 1e-15])
def test_a_gradient_of_zero_or_nearly_so_gives_no_update(gsam, size):
  def vanishing(params, *_):
    return jax.tree.map(lambda p: size * p, params)  # NaN where the point is

  tx = make('sgd', sam=RADIUS, gsam=gsam, rates=(0, RATE), clip=1.0)
  path = trajectory(tx, PARAMS, vanishing, 2)
  close(path, jax.tree.map(lambda p: np.stack([p, p]), PARAMS), rtol=0, atol=1e-12)


@pytest.mark.quick
@pytest.mark.parametrize('name', NAMES)
def test_the_radius_goes_by_the_count_of_the_learning_rate_and_no_other(name):
  state = jax.eval_shape(make(name, clip=1.0, weight_decay=0.1, layer_decay=0.5).init, PARAMS)

  def counted(node):
    return optax.ScaleByScheduleState(7) if isinstance(node, optax.ScaleByScheduleState) else node

  def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)

  assert optim.schedule_step(jax.tree.map(counted, state, is_leaf=is_schedule)) == 7


@pytest.mark.quick
@pytest.mark.parametrize('rates', [(0.05, 0.05), (0.1, 0.05)], ids=['flat', 'rising'])
def test_the_radius_is_the_largest_where_the_rate_does_not_fall(rates):
  radius = jax.jit(jax.vmap(optim.radius_by_rate(warming(), rates, (0.1, 0.3))))
  np.testing.assert_allclose(radius(jnp.arange(8)), np.full(8, 0.3), rtol=1e-6)


@pytest.mark.quick
def test_the_radius_stays_between_its_ends_in_warm_up_and_cool_down():
  schedule = warming(end=0.01, cooldown=2)
  radius = jax.jit(jax.vmap(optim.radius_by_rate(schedule, (0.01, 0.05), (0.1, 0.3))))
  np.testing.assert_allclose(radius(jnp.array([0, 2, 8])), [0.1, 0.3, 0.1], rtol=1e-6)


# Errors


@pytest.mark.quick
@pytest.mark.parametrize(
  'options, message',
  [
    (dict(gsam=0.5), 'gsam is 0.5, needs sam above 0'),
    (dict(sam=0.1, gsam=0.5), 'gsam is 0.5, needs rates'),
    (dict(sam=0.1, sam_min=0.05), 'sam_min is 0.05, needs gsam above 0'),
    (
      dict(sam=0.1, gsam=0.5, sam_min=0.2, rates=(0, 1)),
      'sam_min is 0.2, must be at most sam, 0.1',
    ),
  ],
)
def test_values_that_do_not_go_together_are_an_error_that_shows_them(options, message):
  with pytest.raises(ValueError, match=message):
    make('sgd', **options)


@pytest.mark.quick
def test_an_update_without_what_it_needs_is_an_error_that_names_it():
  tx = make('sgd', sam=RADIUS)
  state = tx.init(PARAMS)
  with pytest.raises(ValueError, match='grad_fn is None'):
    tx.update(PARAMS, state, PARAMS)
  with pytest.raises(ValueError, match='params is None'):
    tx.update(PARAMS, state, grad_fn=gradient)
  tx = optim.sharpness_aware(optax.sgd(RATE), lambda step: jnp.asarray(RADIUS))
  with pytest.raises(ValueError, match='follows no schedule'):
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, grad_fn=gradient)
