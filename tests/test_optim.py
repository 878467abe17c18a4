"""Schedules, durations, optimisers against optax's own, and the training step made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import drawn, flat, pictures, shapes, tiny
from vit_jax import optim
from vit_jax.step import State, gradient, make_step, trace
from vit_jax.tasks import classify

pytestmark = [pytest.mark.gpu, pytest.mark.arithmetic]


def close(a, b, rtol=1e-5, atol=1e-7):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


# Durations


@pytest.mark.quick
@pytest.mark.parametrize(
  'duration, expected',
  [
    (500, 500),
    ('500', 500),
    ('500 steps', 500),
    ('1 step', 1),
    ('10_000 steps', 10_000),
    ('3.1 epochs', 39),
    ('2.5 epochs', 31),
    ('1 epoch', 12),
    ('2epochs', 25),
    (' 10 % ', 100),
    ('2.5%', 25),
    ('100%', 1000),
    (0, 0),
    ('0 steps', 0),
  ],
)
def test_a_duration_has_any_unit(duration, expected):
  actual = optim.steps(duration, epoch=12.5, total=1000)
  assert isinstance(actual, int)
  assert actual == expected


MALFORMED = ['', 'ten', '-5', '5 hours', '5 6', '1e3', 'epochs', None, True, (5,), '5%%', 'nan']
MALFORMED += ['1__0', '1_', '9' * 400]


@pytest.mark.quick
@pytest.mark.parametrize('duration', MALFORMED)
def test_a_malformed_duration_is_an_error_that_shows_it(duration):
  with pytest.raises(ValueError, match='is not a duration such as'):
    optim.steps(duration, epoch=10, total=100)


@pytest.mark.quick
def test_a_percentage_of_the_run_needs_a_run():
  with pytest.raises(ValueError, match=r"'5%' is not a duration"):
    optim.steps('5%', epoch=10)


# Schedules


def schedule(name='cosine', rate=0.03, total=100, **options):
  return optim.make_schedule(name, learning_rate=rate, total=total, **options)


@pytest.mark.quick
@pytest.mark.parametrize(
  'total, warmup, rate, name, values',
  [
    (10_000, 500, 0.03, 'cosine', {0: 0, 1: 6e-5, 250: 0.015, 500: 0.03, 5000: 0.0162386876}),
    (10_000, 500, 0.03, 'cosine', {9999: 8.94e-10, 10_000: 0}),
    (500, 100, 0.03, 'cosine', {0: 0, 1: 3e-4, 50: 0.015, 100: 0.03, 250: 0.0207402501}),
    (500, 100, 0.03, 'cosine', {499: 4.622e-7, 500: 0}),
    (100, 5, 0.03, 'cosine', {0: 0, 1: 0.006, 2: 0.012, 5: 0.03, 50: 0.0162386876}),
    (100, 5, 0.03, 'cosine', {99: 8.2013e-6, 100: 0}),
    (10_000, 500, 0.03, 'linear', {0: 0, 1: 6e-5, 250: 0.015, 500: 0.03, 5000: 0.015794212}),
    (10_000, 500, 0.03, 'linear', {9999: 1.31568e-5, 10_000: 1e-5}),
    (100, 0, 0.1, 'cosine', {0: 0.1, 1: 0.0999753252, 50: 0.05, 99: 2.46733e-5, 100: 0}),
  ],
)
def test_schedules_equal_the_table(total, warmup, rate, name, values):
  f = schedule(name, rate, total, warmup=warmup, end=1e-5 if name == 'linear' else 0.0)
  # the table has four or more digits of the small ends; 1e-4 of them is 1e-13 of the rate
  np.testing.assert_allclose([f(s) for s in values], list(values.values()), rtol=1e-4, atol=1e-12)


@pytest.mark.quick
def test_rsqrt_is_continuous_where_warm_up_and_cool_down_meet_it():
  f = jax.vmap(schedule('rsqrt', 1.0, 1000, warmup=100, cooldown=200, timescale=300))
  rates = np.asarray(f(jnp.arange(1001)))
  np.testing.assert_allclose(rates[100], 1, rtol=1e-6)
  s = np.arange(100, 801)
  np.testing.assert_allclose(rates[100:801], np.sqrt(300 / (s - 100 + 300)), rtol=1e-6)
  s = np.arange(800, 1001)
  expected = np.sqrt(300 / (s - 100 + 300)) * (1000 - s) / 200
  np.testing.assert_allclose(rates[800:], expected, rtol=1e-5, atol=1e-9)
  assert rates[-1] == 0
  assert np.abs(np.diff(rates)).max() <= 1 / 100 + 1e-6  # no jump above the warm-up's slope


@pytest.mark.quick
def test_step_multiplies_the_rate_at_each_boundary():
  f = schedule('step', 1.0, 100, boundaries=(30, 60), factor=0.5)
  assert [float(f(s)) for s in (0, 29, 30, 59, 60, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.quick
@pytest.mark.parametrize('name', ['constant', 'cosine', 'linear', 'rsqrt', 'step'])
def test_every_schedule_warms_up_from_zero_cools_down_to_zero_and_is_finite(name):
  f = jax.vmap(schedule(name, 0.5, 50, warmup=10, cooldown=10, boundaries=(25,)))
  rates = np.asarray(f(jnp.arange(51)))
  assert rates[0] == 0
  assert rates[50] == 0
  assert np.isfinite(rates).all()
  assert (rates[1:50] > 0).all()
  assert rates.max() == pytest.approx(0.5, rel=1e-6)
  assert rates.argmax() == 10


@pytest.mark.quick
def test_a_schedule_that_cannot_be_is_an_error():
  with pytest.raises(ValueError, match=r'warm-up 60 and cool-down 50 .* run of 100'):
    schedule(warmup=60, cooldown=50)
  with pytest.raises(ValueError, match="unknown schedule 'cosin'; did you mean cosine"):
    schedule('cosin')


def test_rsqrt_without_a_timescale_is_an_error():
  with pytest.raises(ValueError, match='timescale'):
    schedule('rsqrt', timescale=0)


# Optimisers


LAYERS = 2
SHAPES = {
  'cls': (1, 1, 4),
  'encoder': {
    'blocks': {
      'attention': {'query': {'kernel': (LAYERS, 4, 2, 2)}, 'out': {'kernel': (LAYERS, 2, 2, 4)}},
      'mlp': {'up': {'kernel': (LAYERS, 4, 6), 'bias': (LAYERS, 6)}},
      'norm1': {'scale': (LAYERS, 4)},
    },
    'norm': {'scale': (4,)},
  },
  'head': {'kernel': (4, 3)},
}
PARAMS = drawn(
  jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )
)
GRADS = [jax.tree.map(lambda p, i=i: np.float32(np.sin(9 * p + i)), PARAMS) for i in range(3)]
RATE = 0.1


def run(tx, params=PARAMS, grads=GRADS):
  """The updates that an optimiser makes of a few gradients."""
  stacked = updates_of(tx)(params, jax.tree.map(lambda *leaves: np.stack(leaves), *grads))
  stacked = jax.device_get(stacked)
  return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(grads))]


@functools.cache
def updates_of(tx):
  """(params, stacked gradients) -> stacked updates, compiled."""

  def update(carry, gradient):
    params, state = carry
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), updates

  return jax.jit(lambda params, grads: jax.lax.scan(update, (params, tx.init(params)), grads)[1])


@functools.cache
def first_update(name, weight_decay=0.0):
  return run(make(name, weight_decay=weight_decay), grads=GRADS[:1])[0]


def make(name, rate=RATE, **options):
  return optim.make_optimizer(name, lambda step: jnp.asarray(rate), **options)


def kernels(params):
  return {name for name, decayed in flat(optim.is_kernel(params)).items() if decayed}


@pytest.mark.parametrize(
  'ours, theirs',
  [
    (make('adam', b1=0.8, b2=0.9, eps=1e-6), optax.adam(RATE, 0.8, 0.9, 1e-6)),
    (make('adam', momentum_dtype='bfloat16'), optax.adam(RATE, mu_dtype='bfloat16')),
    (make('adamw', weight_decay=0.3), optax.adamw(RATE, weight_decay=0.3, mask=optim.is_kernel)),
    (make('sgd', momentum=0.8), optax.sgd(RATE, momentum=0.8)),
    (make('sgd', nesterov=True), optax.sgd(RATE, momentum=0.9, nesterov=True)),
    (
      make('sgd', momentum_dtype='bfloat16', clip=1.0),
      optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.sgd(RATE, momentum=0.9, accumulator_dtype=jnp.bfloat16),
      ),
    ),
    (
      make('lion', b2=0.99, weight_decay=0.3),
      optax.lion(RATE, 0.9, 0.99, weight_decay=0.3, mask=optim.is_kernel),
    ),
  ],
  ids=['adam', 'adam-bf16', 'adamw', 'sgd', 'nesterov', 'sgd-bf16-clip', 'lion'],
)
def test_an_optimiser_updates_as_optax_does(ours, theirs):
  close(run(ours), run(theirs))


def test_weight_decay_follows_the_cosine_of_dino():
  decay = dict(weight_decay=0.04, weight_decay_end=0.4)
  zero, kernel = jax.tree.map(np.zeros_like, PARAMS), PARAMS['head']['kernel']
  updates = run(make('sgd', momentum=0.0, span=(1, 3), **decay), grads=[zero] * 3)
  # Their update i of n has end + (first - end) (1 + cos(pi i / n)) / 2; one before it the first.
  for update, expected in zip(updates, (0.04, 0.04, 0.22)):
    close(update['head']['kernel'], -RATE * expected * kernel)
    assert not update['encoder']['norm']['scale'].any()
    kernel = kernel + update['head']['kernel']
  with pytest.raises(ValueError, match=r'weight_decay_end is 0\.4, needs span'):
    make('sgd', **decay)


def test_adam_and_adamw_are_one():
  close(first_update('adam', 0.3), first_update('adamw', 0.3), 0, 0)


def sliced(tree, i):
  """The tree as if layer i were all there is: no longer stacked, so 'blocks' becomes 'block'."""
  encoder = tree['encoder']
  layer = jax.tree.map(lambda stacked: stacked[i], encoder['blocks'])
  return tree | {'encoder': {'block': layer, 'norm': encoder['norm']}}


SEPARATE = {
  'lamb': lambda: optax.lamb(RATE, eps=1e-6, weight_decay=0.3, mask=optim.is_kernel),
  'adafactor': lambda: optax.chain(
    optim.scale_by_adafactor(0.9, None),
    optax.add_decayed_weights(0.3, mask=optim.is_kernel),
    optax.scale(-RATE),
  ),
}


def widened(tree):
  """Kernels of 64 by 96, which Adafactor factors."""
  blocks = tree['encoder']['blocks']
  kernel = blocks['mlp']['up']['kernel']
  blocks = blocks | {'mlp': {'up': {'kernel': np.tile(kernel, (1, 16, 16))}}}
  return tree | {'encoder': tree['encoder'] | {'blocks': blocks}}


@pytest.mark.parametrize('name', SEPARATE)
def test_stacked_layers_are_updated_as_if_they_were_separate(name):
  params, grads = widened(PARAMS), [widened(gradient) for gradient in GRADS]
  stacked = run(make(name, eps=1e-6, weight_decay=0.3), params, grads)
  separate = SEPARATE[name]()
  for i in range(LAYERS):
    alone = run(separate, sliced(params, i), [sliced(gradient, i) for gradient in grads])
    close([sliced(update, i) for update in stacked], alone)


def muon_kernels(updates, i):
  """{name: (4, fan out) matrix} of the encoder's kernels in layer i."""
  return {
    name: leaf[i].reshape(4, -1)
    for name, leaf in flat(updates).items()
    if name.startswith('encoder/blocks') and name.endswith('kernel')
  }


def test_muon_turns_the_kernels_of_each_layer_into_nearly_orthogonal_ones():
  for i in range(LAYERS):
    for name, update in muon_kernels(first_update('muon'), i).items():
      u, _, v = np.linalg.svd(-muon_kernels(GRADS[0], i)[name], full_matrices=False)
      diagonal = u.T @ update @ v.T / (RATE * 0.2 * np.sqrt(max(update.shape)))
      # five Newton-Schulz steps leave the singular values between 0.65 and 1.25, the vectors as is
      assert np.all((np.diag(diagonal) > 0.65) & (np.diag(diagonal) < 1.25)), name
      np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-3)


def test_muon_leaves_all_but_the_kernels_of_the_encoder_to_adam():
  ours, adam = flat(first_update('muon')), flat(first_update('adam'))
  others = ours.keys() - muon_kernels(GRADS[0], 0).keys()
  assert 'head/kernel' in others
  close({name: ours[name] for name in others}, {name: adam[name] for name in others})


def test_muon_gives_a_layer_the_same_update_whatever_the_other_layers_do():
  grown = jax.tree.map(np.copy, GRADS[0])
  for leaf in jax.tree.leaves(grown['encoder']['blocks']):
    leaf[1] *= 10
  (update,) = run(make('muon'), grads=[grown])
  close(muon_kernels(update, 0), muon_kernels(first_update('muon'), 0))


@pytest.mark.quick
def test_momentum_kept_in_bfloat16_gives_the_published_updates():
  rate = optim.make_schedule('cosine', learning_rate=0.1, total=100, warmup=10)
  tx = optim.make_optimizer('sgd', rate, momentum_dtype='bfloat16')
  gradient = {'x': np.float32([0.3, 0.4, 0.1])}
  state, updates = tx.init(gradient), []
  for _ in range(3):  # outside jit, where XLA may keep bfloat16 products in float32
    update, state = tx.update(gradient, state)
    updates.append(update)
  expected = [[0, 0, 0], [-0.00569531, -0.00759375, -0.00189844]]
  expected += [[-0.01623438, -0.02159375, -0.00539844]]
  np.testing.assert_allclose([update['x'] for update in updates], expected, rtol=0, atol=1e-8)


NAMES = ['sgd', 'adam', 'adamw', 'adafactor', 'lion', 'lamb', 'muon']


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'lamb'])
def test_weight_decay_is_the_rate_times_the_kernels_and_nothing_else(name):
  plain, decayed = first_update(name), first_update(name, 0.3)
  for leaf, update in flat(decayed).items():
    extra = -RATE * 0.3 * flat(PARAMS)[leaf] if leaf in kernels(PARAMS) else 0
    close(update - flat(plain)[leaf], extra + 0 * update, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_every_optimiser_goes_down(name):
  downhill = jax.tree.map(lambda u, g: np.vdot(u, g), first_update(name), GRADS[0])
  assert all(slope < 0 for slope in jax.tree.leaves(downhill))


@pytest.mark.quick
def test_what_decays_are_the_kernels_of_a_model_and_not_its_biases_norms_positions_or_tokens():
  model = tiny(pool='map', registers=2, layer_scale=0.1, qk_norm=True, representation=4)
  names = kernels(shapes(model))
  others = set(flat(shapes(model))) - names
  assert {name.rpartition('/')[2] for name in names} == {'kernel'}
  assert {name.rpartition('/')[2] for name in others} == {
    'bias', 'scale', 'scale1', 'scale2', 'positions', 'registers', 'probe'
  }  # fmt: skip


@pytest.mark.quick
def test_clipping_bounds_the_global_norm():
  gradient = {'a': np.float32([3.0]), 'b': np.float32([4.0])}
  tx = optim.make_optimizer('sgd', lambda step: jnp.asarray(1.0), clip=1.0, momentum=0.0)
  (update,) = run(tx, gradient, [gradient])
  close(update, {'a': np.float32([-0.6]), 'b': np.float32([-0.8])})
  small = jax.tree.map(lambda g: g / 10, gradient)
  close(run(tx, small, [small])[0], jax.tree.map(np.negative, small))


@pytest.mark.parametrize('clip', [0.0, None])
def test_no_clip_is_no_limit(clip):
  big = {'a': np.float32([300.0])}
  tx = optim.make_optimizer('sgd', lambda step: jnp.asarray(1.0), clip=clip, momentum=0.0)
  close(run(tx, big, [big])[0], {'a': np.float32([-300.0])})


def test_moments_are_stored_in_the_type_asked_for():
  for name in NAMES:
    tx = make(name, momentum_dtype='bfloat16')
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(tx.init, PARAMS))}
    assert jnp.dtype('bfloat16') in dtypes, name


@pytest.mark.quick
def test_an_unknown_optimiser_is_an_error_that_names_the_nearest():
  with pytest.raises(ValueError, match="'adamm'; did you mean adam or adamw"):
    make('adamm')


def test_an_unknown_momentum_dtype_is_an_error_that_shows_it():
  with pytest.raises(ValueError, match='float99'):
    make('adam', momentum_dtype='float99')


# The step


def linear(params, batch, key, fixed):
  """A loss whose gradient is the batch's sum: w . sum(x)."""
  loss = jnp.sum(batch['x'] @ params['w'])
  return loss, {'correct': loss, 'count': jnp.float32(len(batch['x']))}, {}


def start(tx, params, ema=None):
  return State(jnp.zeros((), jnp.int32), params, tx.init(params), ema)


def summed(loss):
  """A task's loss in the form that `gradient` takes, without a trace."""

  def call(params, batch, key):
    total, sums, _ = loss(params, batch, key, {})
    return total, ({**sums, 'loss': total}, trace({}))

  return call


W = {'w': np.float32([1.0, -2.0])}
X = {'x': np.float32([[1, 2], [3, 4], [5, 6], [7, 8]])}


@pytest.mark.quick
def test_the_logged_learning_rate_is_the_one_used():
  rate = optim.make_schedule('cosine', learning_rate=0.3, total=8, warmup=3)
  tx = optim.make_optimizer('sgd', rate, momentum=0.0)
  step, state = jax.jit(make_step(linear, tx, rate)), start(tx, W)
  for s in range(6):
    before = state.params['w']
    state, measured = step(state, X)
    used = (before - state.params['w']) / np.float32([4, 5])  # the gradient of the mean
    np.testing.assert_allclose(used, np.full(2, measured['latest']['learning_rate']), atol=1e-6)
    assert float(measured['latest']['learning_rate']) == pytest.approx(float(rate(s)))
    assert int(state.step) == s + 1


@pytest.mark.quick
def test_each_micro_batch_and_each_step_has_a_key_of_its_own_and_a_step_repeats_exactly():
  def noisy(params, batch, key, fixed):
    return jax.random.normal(key) * params['w'].sum(), {'count': jnp.float32(1)}, {}

  key = jax.random.key(5)
  grads, _ = gradient(summed(noisy), W, X, key, accumulate=4)
  drawn_values = [jax.random.normal(jax.random.fold_in(key, i)) for i in range(4)]
  close(grads['w'], np.full(2, sum(drawn_values) / 4))
  assert len({float(value) for value in drawn_values}) == 4

  rate = optim.make_schedule('constant', learning_rate=1.0, total=9)
  tx = optim.make_optimizer('sgd', rate, momentum=0.0)
  step, state = jax.jit(make_step(noisy, tx, rate, seed=3)), start(tx, W)
  norms = [float(step(state.replace(step=s), X)[1]['latest']['grad_norm']) for s in (0, 1, 2, 0)]
  assert norms[0] == norms[3]
  assert len(set(norms)) == 3


@pytest.fixture(scope='module')
def fitted():
  """call(batch, accumulate) -> sums and gradient of a tiny model's objective."""
  model = tiny(depth=2)
  loss = classify.make_loss(model.apply, mean=(0.5,) * 3, std=(0.5,) * 3, smoothing=0.1)

  @functools.partial(jax.jit, static_argnames='accumulate')
  def taken(params, batch, accumulate):
    key = jax.random.key(0)
    grads, (sums, _) = gradient(summed(loss), params, batch, key, accumulate=accumulate)
    return sums, grads

  return functools.partial(taken, drawn(shapes(model)))


@pytest.mark.parametrize('masked', [False, True], ids=['full', 'unequal-masks'])
def test_four_micro_batches_of_16_equal_one_batch_of_64(fitted, masked):
  mask = np.ones(64, np.float32)
  if masked:
    mask[:40] = mask[62] = 0
  images = np.uint8(127.5 + 127 * pictures(64))
  batch = {'image': images, 'label': np.arange(64) % 5, 'mask': mask}
  (sums, whole), (parts_sums, parts) = (fitted(batch, accumulate) for accumulate in (1, 4))
  close(parts_sums, sums)
  # float32 sums over 64 images in another order: 1e-6 of the largest gradients, which are near 1
  close(parts, whole, rtol=1e-5, atol=3e-6)
  assert float(sums['count']) == mask.sum()


@pytest.mark.quick
def test_a_batch_with_nothing_but_padding_has_no_gradient():
  def masked(params, batch, key, fixed):
    return jnp.sum(0 * params['w']), {'count': jnp.float32(0)}, {}

  grads, _ = gradient(summed(masked), W, X, jax.random.key(0), accumulate=2)
  close(grads, {'w': np.zeros(2, np.float32)})


def test_the_tree_of_a_model_is_stacked_where_its_layers_are():
  names = flat(shapes(tiny(pool='map')))
  assert {name for name in names if optim.is_stacked(name)} == {
    name for name in names if name.startswith('encoder/blocks/')
  }


def test_adafactors_second_moment_never_freezes():
  # After 10,000 steps 1 - t ** -0.8 alone would be 0.99937; a cap of 0.999 keeps 1 in 1,000.
  tx = optim.scale_by_adafactor(0.0, None)
  params = {'w': jnp.ones(())}
  state = jax.tree.map(
    lambda leaf: jnp.asarray(10_000) if leaf.dtype == jnp.int32 else leaf, tx.init(params)
  )
  _, state = tx.update({'w': jnp.asarray(2.0)}, state, params)
  assert any(np.allclose(leaf, 0.001 * 4, rtol=1e-3) for leaf in jax.tree.leaves(state))
