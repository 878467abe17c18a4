"""Laws of self-distillation: the teacher, its targets and centres, hidden patches, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.conftest import drawn, shapes, tiny
from tests.test_run import assert_same_bits
from vit_jax import bundle, config, models, plan, tasks
from vit_jax.images import transforms
from vit_jax.tasks import dino, prototypes
from vit_jax.tasks.encoder import ImageEncoder

pytestmark = [pytest.mark.quick, pytest.mark.arithmetic]

N, K, PATCHES = 6, 12, 8
SIZES = {'global0': (8, 16), 'global1': (8, 16), 'local0': (8, 8)}
RNG = np.random.default_rng(0)
HIDDEN = np.zeros((N, 2, PATCHES), bool)
HIDDEN[np.arange(N), np.arange(N) % 2, :3] = True
BATCH = {n: RNG.integers(0, 256, (N, *size, 3), np.uint8) for n, size in SIZES.items()}
BATCH |= {'hidden': HIDDEN, 'mask': np.ones(N, np.float32)}
SCHEDULES = dino.Schedules(100, 0.9, (0.04, 0.07), warmup=10, constant=5)


@functools.cache
def method(**fields):
  """The objective of a tiny encoder."""
  transform = transforms.compose('resize', (8, 16), 3)
  uses = {'train': transform, 'evaluation': transform}
  preprocess = bundle.Preprocess('resize', (8, 16))
  encoder = ImageEncoder(tiny(num_classes=0), uses, preprocess, 'ViT-Ti/16', None)
  head = prototypes.DinoHead(K, hidden=16, bottleneck=8)
  return dino.Dino(encoder, head, dino.Objective(**fields), SCHEDULES, most_hidden=4)


@functools.cache
def params_of(seed=0):
  task = method().task({})
  params = drawn(jax.eval_shape(task.init, jax.random.key(0)))
  return jax.tree.map(lambda leaf: leaf * np.float32(1 + seed), params)


@functools.cache
def compiled(**fields):
  """(params, average, batch, step) -> the loss's (sums, gradients of both), compiled once."""

  def loss(params, average, batch, step):
    fixed = {'ema': average, 'step': step}
    total, sums, _ = method(**fields).loss(params, batch, jax.random.key(0), fixed, train=True)
    return total, sums

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def close(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_no_gradient_reaches_the_teacher_its_centres_or_prototypes_that_are_constant():
  run, params, average = compiled(koleo=0.0), params_of(), params_of(1)
  early, late = (run(params, average, BATCH, step)[0] for step in (4, 5))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves((early[1], late[1])))
  idle = {name for name, leaf in models.flat(late[0]).items() if not np.any(leaf)}
  assert idle == {'centres/views', 'centres/patches'}
  idle = {name for name, leaf in models.flat(early[0]).items() if not np.any(leaf)}
  assert idle == {'centres/views', 'centres/patches', 'projection/prototypes/kernel'}


def test_loss_gradient_and_centres_of_a_batch_are_the_sums_of_its_parts():
  run, args = compiled(koleo=0.0), (params_of(), params_of(1))
  first = np.float32(np.arange(N) < 2)
  parts = [run(*args, BATCH | {'mask': mask}, 7) for mask in (first, 1 - first)]
  (whole, _), sums = run(*args, BATCH, 7)
  close(jax.tree.map(jnp.add, parts[0][0][0], parts[1][0][0]), whole)
  for name in sums.keys() - {'koleo'}:  # which compares images
    close(parts[0][1][name] + parts[1][1][name], sums[name])
  assert sums['count'] == N and sums['patches_count'] == 3 * N and sums['views_count'] == 2 * N


def test_without_ibot_the_loss_is_that_of_views_alone():
  task = dataclasses.replace(method(koleo=0.0, ibot=0.0), most_hidden=0)
  batch = {name: rows for name, rows in BATCH.items() if name != 'hidden'}
  args = jax.random.key(0), {'ema': params_of(1), 'step': jnp.asarray(7)}
  total, sums, _ = jax.jit(functools.partial(task.loss, train=True))(params_of(), batch, *args)
  visible = BATCH | {'hidden': np.zeros_like(HIDDEN)}
  others = compiled(koleo=0.0)(params_of(), params_of(1), visible, 7)[1]
  close((total, sums['ibot']), (others['dino'], 0))


def test_schedules_begin_and_end_as_they_say():
  steps = np.array([0, 5, 10, 50, 100, tasks.LAST_STEP])
  temperatures = SCHEDULES.teacher_temperature(steps)
  np.testing.assert_allclose(temperatures, [0.04, 0.055, 0.07, 0.07, 0.07, 0.07], rtol=1e-6)
  momenta = SCHEDULES.teacher_momentum(steps)
  assert np.allclose(momenta[np.array([0, 3, 4, 5])], [0.9, 0.95, 1, 1])
  slow = dino.Schedules(1000, 0.996, (0.04, 0.07), warmup=10, constant=5)
  weight = float(np.prod(slow.teacher_momentum(np.arange(1000))))
  assert slow.first_weight == pytest.approx(weight, rel=0.02)
  constant = dino.Schedules(100, 0.9, (0.04, 0.07), warmup=0, constant=0)
  assert np.allclose(constant.teacher_temperature(steps), 0.07)


def test_a_teacher_of_momentum_one_stays_to_the_bit_but_for_its_centres():
  task, average = method(), params_of(1)
  sums = {f'{part}_{kind}': np.float32(2) for part in dino.Parts._fields for kind in ('centre',)}
  sums |= {'views_count': np.float32(4), 'patches_count': np.float32(0)}
  after = task.average(average, params_of(), sums, jnp.asarray(100))
  moved = models.flat(jax.tree.map(lambda a, b: bool(np.any(a != b)), after, average))
  assert [name for name in moved if moved[name]] == ['centres/views']
  expected = 0.9 * average['centres']['views'] + 0.1 * 0.5
  np.testing.assert_allclose(after['centres']['views'], expected, rtol=1e-6)
  before = task.average(average, params_of(), sums, jnp.asarray(0))['embed']['bias']
  close(before, 0.9 * average['embed']['bias'] + 0.1 * params_of()['embed']['bias'])


def test_rows_of_sinkhorn_sum_to_one_and_columns_to_their_share():
  cosines = jnp.asarray(RNG.uniform(-1, 1, (40, K)), jnp.float32)
  ones = jnp.ones(40)
  targets = prototypes.sinkhorn(cosines, ones, 0.1, rounds=200)
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(targets.sum(0), 40 / K, rtol=1e-3)
  np.testing.assert_allclose(prototypes.sinkhorn(cosines, ones, 0.1).sum(1), 1, rtol=1e-5)
  some = prototypes.sinkhorn(cosines, ones.at[30:].set(0), 0.1)
  close(some[:30], prototypes.sinkhorn(cosines[:30], ones[:30], 0.1))
  assert not some[30:].any()
  assert prototypes.sinkhorn(cosines[:0], ones[:0], 0.1).shape == (0, K)  # without iBOT


def test_koleo_passes_over_absent_images_and_is_nothing_without_two():
  x = jnp.asarray(RNG.standard_normal((5, 7)), jnp.float32)
  some = jnp.float32([1, 1, 0, 1, 0])
  values = prototypes.koleo(x.at[2].set(x[0]), some)
  close(values[jnp.array([0, 1, 3])], prototypes.koleo(x[jnp.array([0, 1, 3])], jnp.ones(3)))
  assert values[2] == values[4] == 0
  assert not prototypes.koleo(x, some.at[1:].set(0)).any()


def test_an_encoder_does_not_see_what_is_hidden():
  task, params = method(), params_of()
  crops = np.stack([BATCH['global0'], BATCH['global1']], 1)[:2]
  other = crops.copy()
  other[0, 0, :4, :12] = 255 - other[0, 0, :4, :12]  # patches 0 to 2, which are hidden there
  index, _ = dino.hidden_index(jnp.asarray(HIDDEN[:2]), 4)
  see = functools.partial(task.features, params, index=index)
  close(see(crops, hidden=HIDDEN[:2]), see(other, hidden=HIDDEN[:2]))
  clear, changed = see(crops), see(other)
  assert np.abs(clear.views[0, 0] - changed.views[0, 0]).max() > 1e-3
  np.testing.assert_allclose(clear.views[0, 1], changed.views[0, 1], atol=1e-6)


def test_weights_of_hidden_patches_sum_to_the_part_of_views_that_have_some():
  hidden = jnp.asarray(HIDDEN).at[0].set(False).at[1, :, 4].set(True)
  index, weights = dino.hidden_index(hidden, 7)
  np.testing.assert_allclose(weights.sum(1), [0, 1, *[0.5] * (N - 2)], rtol=1e-6)
  rows = np.asarray(hidden).reshape(N, -1)
  assert all(rows[n][index[n][weights[n] > 0]].all() for n in range(N))


def test_hidden_patches_are_blocks_of_one_view_within_bounds():
  column = dino.hidden_patches(2, (14, 14), area=(0.1, 0.5), view=3)
  rows = [column.fill({}, np.random.default_rng(seed)).reshape(2, 14, 14) for seed in range(50)]
  again = column.fill({}, np.random.default_rng(7))
  np.testing.assert_array_equal(again.reshape(2, 14, 14), rows[7])
  assert all(sorted(row.any((1, 2))) == [False, True] for row in rows)
  assert {int(row[1].any()) for row in rows} == {0, 1}
  counts = np.array([row.sum() for row in rows])
  assert counts.min() >= 19 - dino.MIN_BLOCK and counts.max() <= 98
  assert 40 < counts.mean() < 70
  pairs = np.mean([row[:, :, 1:][row[:, :, :-1]].mean() for row in rows])
  assert pairs > 0.7  # most neighbours of a hidden patch are hidden; of scattered ones 0.3


def test_prototypes_in_use_are_one_where_all_targets_are_and_all_where_they_differ():
  def read(targets):
    sums = {'targets': np.asarray(targets), 'views_centre': np.ones(4), 'count': 2.0, 'dino': 3.0}
    return dino.read(tasks.means, sums)

  assert read([0, 2, 0, 0]) == {'count': 2.0, 'dino': 1.5, 'prototypes': 1.0}
  np.testing.assert_allclose(read([1, 1, 1, 1])['prototypes'], 4)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['teacher.checkpoint=B_16'], "'dino' has a teacher.*teacher.checkpoint is 'B_16', must be ''"),
    (['ema=0'], 'ema is 0, must be above'),
    (['views.global_count=1', 'views.local_count=0'], 'views has 1, must have 2'),
    (['dino.centring=means'], "unknown dino.centring 'means'; did you mean mean"),
    (['batch_size=1'], 'batch_size is 1, .* whole batch: needs dino.koleo=0'),
    (['accumulate=2'], 'accumulate is 2, .* whole batch: needs dino.koleo=0'),
    (
      ['accumulate=2', 'dino.centring=sinkhorn'],
      "accumulate is 2.*needs dino.koleo=0 and dino.centring='mean'",
    ),
    (['dino.hidden_area=(0.5,0.1)'], r'hidden_area is \(0.5, 0.1\), must be two parts'),
  ],
)
def test_what_the_objective_cannot_be_is_refused_in_a_line(words, message):
  fields = config.load('digits', ['ema=0.9', *words])
  with pytest.raises(ValueError, match=message):
    dino.check(fields, tiny(num_classes=0))


@pytest.mark.parametrize('words', [[], ['accumulate=2', 'dino.koleo=0'], ['views.local_count=0']])
def test_what_the_objective_can_be_passes(words):
  dino.check(config.load('digits', ['ema=0.9', *words]), tiny(num_classes=0))


def test_a_run_goes_on_from_an_encoder_with_registers_and_layer_scale_at_another_size(tmp_path):
  fields = {'patch': (14, 14), 'registers': 2, 'layer_scale': 0.1, 'num_classes': 0}
  model = tiny(**fields)
  params = drawn(shapes(model, (28, 28)))
  preprocess = bundle.Preprocess('resize', (28, 28), (0.4,) * 3, (0.2,) * 3)
  bundle.write(tmp_path, bundle.Bundle(model, params, (), preprocess, 'ViT-Ti/16'))
  words = ['task=dino', 'ema=0.9', f'pretrained={tmp_path}', 'model.name=', 'image_size=42']
  words += [
    'views.local_size=28',
    'schedule.warmup=0',
    'dino.prototypes=8',
    'dino.hidden=8',
    'dino.bottleneck=4',
  ]
  asked = plan.make_plan(config.load('default', [*words, 'data.source=digits', 'batch_size=16']))
  assert asked.config.data.mean == (0.4,) * 3 and asked.task.columns['hidden'].shape == (2, 9)
  ours, theirs = models.flat(asked.task.start().params), models.flat(params)
  assert ours.keys() == theirs.keys()
  same = theirs.keys() - {'positions'}
  assert_same_bits({n: ours[n] for n in same}, {n: theirs[n] for n in same})
  every = models.flat(asked.state_shapes.ema)
  assert ours['positions'].shape == every['positions'].shape == (1, 10, model.width)
  assert {'hidden', 'projection/prototypes/kernel', 'centres/views'} < every.keys() - ours.keys()


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('dino.hidden_area=(0.0,0.1)', r'hidden_area is \(0.0, 0.1\), which hides none of 2x2 patches'),
    ('views.local_size=20', r'views\.local_size: image_size 20x20 does not divide into patches'),
  ],
)
def test_views_that_patches_do_not_fit_are_refused(word, message):
  words = ['task=dino', 'ema=0.9', 'data.source=digits', 'batch_size=16', 'model.name=ViT-Ti/16']
  sizes = ['image_size=32', 'views.local_size=16', 'schedule.warmup=0']
  with pytest.raises(ValueError, match=message):
    plan.make_plan(config.load('default', [*words, *sizes, word]))


def test_a_model_of_patches_alone_is_refused():
  with pytest.raises(ValueError, match=r"model\.pool is 'none', of patches"):
    dino.check(config.load('digits', ['ema=0.9']), tiny(num_classes=0, pool='none'))


def test_a_model_without_patches_that_can_be_hidden_needs_no_ibot():
  mixer = vit_jax.build('Mixer-S/16', num_classes=0)
  with pytest.raises(ValueError, match=r'dino.ibot hides patches from a ViT.*dino.ibot=0'):
    dino.check(config.load('digits', ['ema=0.9']), mixer)
  dino.check(config.load('digits', ['ema=0.9', 'dino.ibot=0']), mixer)
