"""The step: any loss of the form, the average that it reads, optimisers with two gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import use_abstract_mesh

from tests.test_attention import mesh_of
from tests.test_run import PLAIN, plan_of
from vit_jax import models, optim, train
from vit_jax.step import Trace, make_state, make_step, trace, untraced, updated_if

pytestmark = [pytest.mark.quick, pytest.mark.arithmetic]

RATE, RADIUS = 0.1, 0.05
ROWS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
BATCH = {'rows': jnp.asarray(ROWS), 'mask': jnp.ones(8)}


def start():
  return {'head': {'w': jnp.asarray([0.5, -1.0, 2.0])}, 'embed': {'b': jnp.asarray(0.25)}}


def quartic(params, batch, key, fixed):
  """A loss with a gradient that differs from point to point, and no sum of its own."""
  z = batch['rows'] @ params['head']['w'] + params['embed']['b']
  return jnp.sum(z**4), {'count': batch['mask'].sum()}, {'z': z}


def gradient_of(params):
  grads = jax.grad(lambda p: quartic(p, BATCH, None, {})[0])(params)
  return jax.tree.map(lambda g: np.asarray(g) / 8, grads)


def stepped(loss, tx, steps=1, batch=BATCH, fixed=None, frozen=optim.ALL_TRAINED, **options):
  state = make_state(start(), tx, ema=bool(options.get('ema')), frozen=frozen)
  step = jax.jit(
    untraced(make_step(loss, tx, lambda s: jnp.asarray(RATE), frozen=frozen, **options))
  )
  for _ in range(steps):
    state, measured = step(state, batch, fixed)
  return jax.device_get((state, measured))


def test_the_loss_is_among_the_sums_of_every_task():
  _, measured = stepped(quartic, optax.sgd(RATE))
  total, *_ = quartic(start(), BATCH, None, {})
  np.testing.assert_allclose(measured['sums']['loss'], total, rtol=1e-6)
  assert measured['sums']['count'] == 8


def test_a_loss_reads_what_is_fixed_and_the_average_as_it_is_before_the_update():
  def loss(params, batch, key, fixed):
    gap = params['head']['w'] - fixed['ema']['head']['w'] - fixed['shift']
    return jnp.sum(gap**2) * 8, {'count': jnp.asarray(8.0)}, {}

  shift = np.float32([1.0, 0.0, -2.0])
  state, _ = stepped(loss, optax.sgd(RATE), steps=2, fixed={'shift': shift}, ema=0.9)
  w = average = np.float32(start()['head']['w'])
  for _ in range(2):
    w = w - RATE * 2 * (w - average - shift)
    average = 0.9 * average + 0.1 * w
  np.testing.assert_allclose(state.params['head']['w'], w, rtol=1e-6)
  np.testing.assert_allclose(state.ema['head']['w'], average, rtol=1e-6)
  assert state.model_params is state.ema
  assert state.replace(ema=None).model_params is state.params


def moving(average, params, sums, step):
  """An average of parameters whose momentum rises with the step, and one of the rows in 'embed'."""
  momentum = 1 - 0.1 / (step + 1)
  w = momentum * average['head']['w'] + (1 - momentum) * params['head']['w']
  mean = 0.9 * average['embed']['b'] + 0.1 * sums['rows'] / sums['count']
  return {'head': {'w': w}, 'embed': {'b': mean}}


def with_rows(params, batch, key, fixed):
  total, sums, named = quartic(params, batch, key, fixed)
  return total, {**sums, 'rows': batch['rows'].sum(), 'step': fixed['step']}, named


@pytest.mark.parametrize('accumulate', [1, 4])
def test_an_average_of_a_task_reads_the_step_and_the_sums_of_the_whole_batch(accumulate):
  options = {'ema': 0.5, 'average': moving, 'accumulate': accumulate}
  state, measured = stepped(with_rows, optax.sgd(0.0), steps=3, **options)
  assert measured['sums']['step'] == 2 * accumulate
  np.testing.assert_allclose(state.ema['head']['w'], start()['head']['w'], rtol=1e-6)
  mean = ROWS.sum() / 8
  expected = mean + 0.9**3 * (0.25 - mean)
  np.testing.assert_allclose(state.ema['embed']['b'], expected, rtol=1e-6)
  assert state.params['embed']['b'] == 0.25


def test_an_average_of_a_task_follows_the_parameters_after_the_update():
  state, _ = stepped(with_rows, optax.sgd(RATE), ema=0.5, average=moving)
  expected = 0.9 * start()['head']['w'] + 0.1 * state.params['head']['w']
  np.testing.assert_allclose(state.ema['head']['w'], expected, atol=1e-6)


def test_an_average_of_momentum_one_stays_to_the_bit_and_so_does_what_is_frozen():
  tx = optax.sgd(RATE)
  still = functools.partial(jax.tree.map, lambda a, _: a)
  state, _ = stepped(quartic, tx, 2, ema=0.5, average=lambda mean, params, *_: still(mean, params))
  jax.tree.map(np.testing.assert_array_equal, state.ema, start())
  frozen = optim.Frozen(frozenset({'embed/b'}))
  double = functools.partial(jax.tree.map, lambda a: 2 * a)
  state, _ = stepped(quartic, tx, ema=0.5, average=lambda mean, *_: double(mean), frozen=frozen)
  assert state.ema['embed']['b'] == 0.25
  np.testing.assert_array_equal(state.ema['head']['w'], 2 * start()['head']['w'])


def test_without_an_average_a_loss_is_given_none():
  calls = []

  def loss(params, batch, key, fixed):
    calls.append(fixed['ema'])
    return quartic(params, batch, key, fixed)

  stepped(loss, optax.sgd(RATE))
  assert calls and all(average is None for average in calls)


def sam_by_hand(params):
  """The parameters after one SGD step with the gradient at the worst point nearby."""
  grads = gradient_of(params)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
  worst = gradient_of(jax.tree.map(lambda p, g: p + RADIUS * g / norm, params, grads))
  return jax.tree.map(lambda p, g: p - RATE * g, params, worst)


@pytest.mark.parametrize('accumulate', [1, 2, 4])
def test_sam_takes_the_gradient_of_the_whole_batch_at_the_worst_point_nearby(accumulate):
  tx = optim.sharpness_aware(optax.sgd(RATE), RADIUS)
  state, _ = stepped(quartic, tx, accumulate=accumulate)
  expected = sam_by_hand(start())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), state.params, expected)


def test_sams_second_gradient_has_the_key_of_the_first():
  def noisy(params, batch, key, fixed):
    keep = jax.random.bernoulli(key, 0.5, (3,))
    return quartic({**params, 'head': {'w': params['head']['w'] * keep}}, batch, key, fixed)

  def at_once(updates, state, params, *, grad_fn, **_):
    same = jax.tree.map(lambda a, b: (a == b).all(), updates, grad_fn(params))
    ok = jnp.stack(jax.tree.leaves(same)).all()
    return jax.tree.map(lambda u: jnp.where(ok, u, jnp.nan), updates), state

  tx = optax.GradientTransformationExtraArgs(lambda params: (), at_once)
  _, measured = stepped(noisy, tx, accumulate=2)
  assert measured['finite']


def test_sam_takes_two_gradients_a_step_and_a_base_optimiser_one():
  calls = []

  @jax.custom_vjp
  def counted(x):
    return x

  def backward(_, g):
    calls.append(1)
    return (g,)

  counted.defvjp(lambda x: (x, None), backward)

  def loss(params, batch, key, fixed):
    total, *others = quartic(params, batch, key, fixed)
    return counted(total), *others

  for tx, gradients in (
    (optax.sgd(RATE), 1),
    (optim.sharpness_aware(optax.sgd(RATE), 0.0), 1),
    (optim.sharpness_aware(optax.sgd(RATE), RADIUS), 2),
    (optim.sharpness_aware(optax.sgd(RATE), RADIUS, alpha=0.5), 2),
  ):
    calls.clear()
    state = make_state(start(), tx)
    jax.make_jaxpr(make_step(loss, tx, lambda s: jnp.asarray(RATE)))(state, BATCH)
    assert len(calls) == gradients


def test_optaxs_own_sam_runs_in_the_step_and_agrees():
  ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RADIUS))
  theirs = optax.contrib.sam(optax.sgd(RATE), ascent, opaque_mode=True)
  state, _ = stepped(quartic, theirs)
  ours, _ = stepped(quartic, optim.sharpness_aware(optax.sgd(RATE), RADIUS))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), state.params, ours.params)


def test_sam_leaves_frozen_parameters_alone_and_does_not_ascend_along_them():
  frozen = optim.Frozen(frozenset({'embed/b'}))
  tx = optim.sharpness_aware(optax.sgd(RATE), RADIUS)
  state, _ = stepped(quartic, tx, frozen=frozen)
  params = start()
  grads = {'head': gradient_of(params)['head']}
  norm = np.linalg.norm(grads['head']['w'])
  ascended = params['head']['w'] + RADIUS * grads['head']['w'] / norm
  worst = gradient_of({**params, 'head': {'w': ascended}})['head']['w']
  assert state.params['embed']['b'] == params['embed']['b']
  expected = params['head']['w'] - RATE * worst
  np.testing.assert_allclose(state.params['head']['w'], expected, rtol=2e-5)


SAM = {'optimizer.sam': 0.05, 'optimizer.gsam': 0.4}


def of_plan(fields):
  """A plan's parameters and state's names after two steps on one batch."""
  plan = plan_of(PLAIN | fields)
  rng = np.random.default_rng(1)
  batch = {
    'image': rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8),
    'label': (np.arange(32) % 10).astype(np.int32),
    'mask': np.ones(32, np.float32),
  }
  state, update = train.placed_state(plan), train.updater(plan)
  for _ in range(2):
    state, measured = update(state, batch, {})
  assert measured['finite']
  return models.flat(jax.device_get(state.params)), list(models.flat(state))


def test_gsam_by_config_is_the_same_on_any_mesh_and_adds_nothing_to_the_state():
  one, names = of_plan(SAM | {'system.data': 8})
  split, _ = of_plan(SAM | {'system.fsdp': 4, 'system.tensor': 2})
  base, base_names = of_plan({})
  assert names == base_names
  for name, leaf in one.items():
    np.testing.assert_allclose(split[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name)
  assert any(np.abs(one[name] - base[name]).max() > 1e-7 for name in one)


def test_a_trace_names_tensors_in_their_order_and_layers_by_number():
  named = {
    'images': jnp.ones(2),
    'blocks': jnp.asarray([[1.0], [np.nan], [1.0]]),
    'labels': jnp.arange(3),
    'stages': [jnp.ones(1), jnp.full(1, np.inf)],
    'out': {'a': jnp.zeros(1)},
  }
  result = trace(named)
  assert result.names == (
    'images',
    'blocks[0]',
    'blocks[1]',
    'blocks[2]',
    'stages[0]',
    'stages[1]',
    'out/a',
  )
  wrong = [name for name, fine in zip(result.names, result.finite) if not fine]
  assert wrong == ['blocks[1]', 'stages[1]']
  assert isinstance(result + result, Trace) and len((result + result).names) == 14


@pytest.mark.parametrize('usable', [True, False])
def test_a_choice_by_element_gives_the_state_that_a_branch_does(usable):
  params = {'a': jnp.arange(3.0), 'b': jnp.ones(2)}
  state = make_state(params, optax.adam(0.1))

  def updated(state, grads):
    return state.replace(params=jax.tree.map(jnp.subtract, state.params, grads))

  def program(kind):
    with use_abstract_mesh(mesh_of(kind, 'one')):
      return str(jax.make_jaxpr(updated_if, static_argnums=1)(True, updated, state, params))

  def run(state, kind):
    with use_abstract_mesh(mesh_of(kind, 'one')):
      return updated_if(jnp.asarray(usable), updated, state, params)

  branch, choice = (jax.jit(run, static_argnums=1)(state, kind) for kind in ('cpu', 'gpu'))
  jax.tree.map(np.testing.assert_array_equal, branch, choice)
  assert branch.params['a'].tolist() == ([0, 0, 0] if usable else [0, 1, 2])
  assert ['cond' in program(kind) for kind in ('cpu', 'gpu', 'tpu')] == [True, False, False]
