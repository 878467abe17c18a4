"""Laws of what fine-tuning needs: layer-wise rates, freezing, checkpoints to start from, time."""

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_dict import FrozenConfigDict

import vit_jax
from tests.conftest import SIZE, drawn, flat, shapes, tiny
from tests.test_processes import free_port
from tests.test_run import (
  PLAIN,
  TINY,
  assert_same_bits,
  cache,
  contents,
  ended,
  environment,
  flags,
  plan_of,
  rows_of,
  shared,
  started,
  state_of,
  until,
  vit_train,
  whole,
)
from vit_jax import bundle, convert, optim, sources, train, workdir
from vit_jax import plan as plans
from vit_jax.convert import adapt
from vit_jax.guards import stopping
from vit_jax.step import State, make_step, untraced
from vit_jax.tasks import classify

__all__ = ['cache', 'whole']

RATE = 0.1
OPTIMIZERS = ('sgd', 'adamw', 'adafactor', 'muon')
FAMILIES = {
  'vit': lambda: tiny(pool='map', registers=1, distillation='head', pre_norm=True),
  'hybrid': lambda: tiny(stem=(1,), stem_width=32, patch=8),
  'mixer': lambda: vit_jax.build(
    'Mixer-S/16', patch=4, width=8, depth=3, tokens_dim=8, mlp_dim=8, num_classes=5
  ),
  'bit': lambda: vit_jax.build('BiT-R50x1', blocks=(2, 1), num_classes=5),
}
FIRST = {
  'vit': {'embed', 'cls', 'dist', 'registers', 'positions', 'pre_norm'},
  'hybrid': {'stem', 'embed', 'cls', 'positions'},
  'mixer': {'embed'},
  'bit': {'root'},
}
LAST = {
  'vit': {'encoder/norm', 'pool', 'head', 'head_dist'},
  'hybrid': {'encoder/norm', 'head'},
  'mixer': {'encoder/norm', 'head'},
  'bit': {'norm', 'head'},
}


def make(name, **options):
  return optim.make_optimizer(name, lambda _: jnp.asarray(RATE), **options)


@functools.cache
def params_of(family):
  return drawn(shapes(FAMILIES[family](), (32, 32)))


def within(name, parts):
  return any(name == part or name.startswith(f'{part}/') for part in parts)


# Layers and their rates


@pytest.mark.quick
@pytest.mark.parametrize('family', FAMILIES)
def test_what_comes_before_the_blocks_is_layer_0_and_what_comes_after_is_the_last(family):
  layer, depth = optim.layers_of(params_of(family))
  assert depth == 3
  assert {name for name in layer if np.ndim(layer[name]) == 0 and layer[name] == 0} == {
    name for name in layer if within(name, FIRST[family])
  }
  assert {name for name in layer if np.ndim(layer[name]) == 0 and layer[name] == depth + 1} == {
    name for name in layer if within(name, LAST[family])
  }


@pytest.mark.quick
def test_blocks_are_layers_along_their_stack_and_units_one_after_another():
  layer, _ = optim.layers_of(params_of('vit'))
  np.testing.assert_array_equal(layer['encoder/blocks/mlp/up/kernel'], [1, 2, 3])
  layer, _ = optim.layers_of(params_of('bit'))
  units = ('stage1/unit1', 'stage1/unit2', 'stage2/unit1')
  assert [layer[f'{unit}/conv1/kernel'] for unit in units] == [1, 2, 3]


@pytest.mark.quick
@pytest.mark.parametrize('family', FAMILIES)
def test_layer_decay_multiplies_each_layers_update_weight_decay_included(family):
  params = params_of(family)
  grads = jax.tree.map(np.cos, params)
  layer, depth = optim.layers_of(params)

  def update(decay):
    tx = make('sgd', weight_decay=0.3, layer_decay=decay)
    return flat(tx.update(grads, tx.init(params), params)[0])

  plain, decayed = update(1.0), update(0.5)
  for name, leaf in decayed.items():
    factor = 0.5 ** (depth + 1.0 - layer[name])
    along = np.reshape(factor, (-1, *(1,) * (leaf.ndim - 1))) if np.ndim(factor) else factor
    np.testing.assert_allclose(leaf, along * plain[name], rtol=1e-6, err_msg=name)
    if within(name, LAST[family]):
      np.testing.assert_array_equal(leaf, plain[name])


@pytest.mark.quick
def test_a_layer_decay_of_one_is_none():
  params = params_of('mixer')
  none, one = (
    tx.update(jax.tree.map(np.cos, params), tx.init(params), params)[0]
    for tx in (make('sgd'), make('sgd', layer_decay=1.0))
  )
  assert_same_bits(flat(none), flat(one))


# Freezing: a step of a model of two layers

FREEZES = {
  'body': dict(body=True),
  'layers': dict(layers=1),
  'names': dict(names='embed/.*|.*/attention/.*'),
  'layers and names': dict(layers=1, names='.*/mlp/.*'),
}
MODEL = dict(depth=2, unroll=2, pool='gap')
IDLE = {'encoder/blocks/attention/key/bias'}  # softmax does not see it: its gradient is 0


def batch_of(count=8):
  random = np.random.default_rng(0)
  return {
    'image': random.integers(0, 255, (count, *SIZE, 3), np.uint8),
    'label': np.arange(count, dtype=np.int32) % 5,
    'mask': np.ones(count, np.float32),
  }


@functools.cache
def stepping(frozen, optimizer='sgd', accumulate=1, ema=0.0, decay=1.0, clip=None):
  """The compiled step, and the state before it."""
  model = tiny(**MODEL)
  params = drawn(shapes(model))
  tx = make(optimizer, weight_decay=0.1, clip=clip, layer_decay=decay, params=params)
  loss = classify.make_loss(model.apply, mean=(0.5,) * 3, std=(0.5,) * 3)
  step = make_step(
    loss, tx, lambda _: jnp.asarray(RATE), accumulate=accumulate, ema=ema, frozen=frozen
  )
  average = jax.tree.map(lambda leaf: leaf / 3, params) if ema else None
  state = State(jnp.zeros((), jnp.int32), params, tx.init(frozen.trainable(params)), average)
  return jax.jit(untraced(step)).lower(state, batch_of()).compile(), state


def frozen_of(kind):
  return optim.make_frozen(shapes(tiny(**MODEL)), **FREEZES[kind])


def parts(frozen, tree):
  """({name: frozen leaf or slice}, {name: trained ones}) of a tree of parameters."""
  trained = flat(frozen.trainable(tree))
  held = {
    name: leaf[: len(leaf) - len(trained[name])] if name in trained and leaf.ndim else leaf
    for name, leaf in flat(tree).items()
    if name not in trained or frozen.cuts(name)
  }
  return held, trained


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_frozen_layers_do_not_change_by_a_bit_and_the_others_do(optimizer):
  frozen = frozen_of('layers')
  step, before = stepping(frozen, optimizer, accumulate=2, ema=0.9, decay=0.5, clip=1.0)
  after, measured = step(before, batch_of())
  after, measured = step(after, batch_of())
  assert measured['finite']
  for old, new in ((before.params, after.params), (before.ema, after.ema)):
    (held, trained), (held_after, trained_after) = parts(frozen, old), parts(frozen, new)
    assert len(held) > 10 and all(
      leaf.shape[0] == 1 for name, leaf in held.items() if '/blocks/' in name
    )
    assert_same_bits(held, held_after)
    same = [name for name in trained if np.array_equal(trained[name], trained_after[name])]
    assert set(same) <= IDLE


@pytest.mark.parametrize('kind', FREEZES)
def test_what_is_frozen_keeps_its_bits_and_the_others_are_updated_as_if_nothing_were(kind):
  frozen = frozen_of(kind)
  (step, before), (whole_step, start) = stepping(frozen), stepping(optim.ALL_TRAINED)
  after, _ = step(before, batch_of())
  (held, _), (held_after, trained) = parts(frozen, before.params), parts(frozen, after.params)
  assert_same_bits(held, held_after)
  theirs = flat(whole_step(start, batch_of())[0].params)
  for name, leaf in trained.items():
    # 1e-5: another program sums in another order
    np.testing.assert_allclose(leaf, theirs[name][-len(leaf) :], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('kind', ['body', 'layers'])
def test_no_optimiser_state_is_held_for_what_is_frozen(kind, optimizer):
  params, frozen = drawn(shapes(tiny(**MODEL))), frozen_of(kind)
  tx = make(optimizer)

  def numbers(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim)

  trained = frozen.trainable(params)
  # At most two moments, and three numbers in the place of an array that Adafactor does not factor.
  most = 2 * numbers(trained) + 3 * len(jax.tree.leaves(trained))
  assert 0 < numbers(tx.init(trained)) <= most < numbers(params)


def flops(frozen):
  return stepping(frozen)[0].cost_analysis()['flops']


def test_the_step_computes_no_gradient_of_what_is_frozen():
  full = flops(optim.ALL_TRAINED)
  layer, body = flops(frozen_of('layers')), flops(frozen_of('body'))
  # The forward pass is a third of a step; of two layers one takes half of the rest.
  assert body < 0.4 * full
  assert body + 0.2 * full < layer < 0.75 * full


def test_clipping_is_over_what_is_trained():
  frozen = frozen_of('body')
  step, before = stepping(frozen, clip=1e-3)
  after, measured = step(before, batch_of())
  free, same = stepping(frozen)
  unclipped, _ = free(same, batch_of())
  norm = float(measured['latest']['grad_norm'])
  old = before.params['head']['bias']  # has no weight decay
  ours, theirs = (state.params['head']['bias'] - old for state in (after, unclipped))
  np.testing.assert_allclose(ours, theirs * 1e-3 / norm, rtol=1e-3, atol=1e-9)


@pytest.mark.quick
@pytest.mark.parametrize(
  'fields, message',
  [
    ({'layers': 4}, 'freeze.layers is 4, the model has 3'),
    ({'names': 'encoder/blocks'}, "'encoder/blocks' matches no whole name; there are"),
    ({'names': '('}, "freeze.names '(' is no regular expression"),
    ({'names': '.*'}, 'freeze leaves nothing to train'),
    ({'body': True, 'names': 'head/.*'}, 'freeze leaves nothing to train'),
  ],
)
def test_freezing_that_cannot_be_is_an_error(fields, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    optim.make_frozen(shapes(tiny()), **fields)


@pytest.mark.quick
@pytest.mark.parametrize('family', FAMILIES)
def test_all_layers_frozen_leave_what_comes_after_them(family):
  subset = optim.make_frozen(params_of(family), layers=3).trainable(params_of(family))
  assert flat(subset).keys() == {n for n in flat(params_of(family)) if within(n, LAST[family])}


def test_frozen_layers_are_run_straight_however_deep_the_model_is():
  assert plan_of({'freeze.layers': 1, 'model.unroll': None}).task.model.unroll == 2
  assert plan_of({'model.unroll': None}).task.model.unroll == 1  # a CPU's loop
  assert plan_of({'freeze.layers': 1}).task.model.unroll == 1  # as asked


def test_frozen_layers_of_a_sharded_model_do_not_change_by_a_bit():
  fields = {'freeze.layers': 1, 'optimizer.name': 'muon', 'optimizer.layer_decay': 0.7}
  mesh = {'system.fsdp': 2, 'system.tensor': 2}
  plan = plan_of(fields | mesh | {'schedule.warmup': 0, 'model.unroll': None})
  state = train.placed_state(plan)
  before = jax.device_get(state.params)
  batch = batch_of(32) | {'image': np.ones((32, 8, 8, 3), np.uint8)}
  after, measured = train.updater(plan)(state, batch, {})
  after = jax.device_get(after.params)
  assert measured['finite']
  assert_same_bits(parts(plan.frozen, before)[0], parts(plan.frozen, after)[0])
  up = [params['encoder']['blocks']['mlp']['up']['kernel'] for params in (before, after)]
  assert np.array_equal(up[0][0], up[1][0]) and not np.array_equal(up[0][1], up[1][1])


def test_the_first_tensor_that_is_not_finite_is_named_of_a_frozen_model_too():
  plan = plan_of({'freeze.layers': 1, 'accumulate': 1, 'data.test': ''})
  state = train.placed_state(plan)
  head = jax.tree.map(lambda leaf: leaf * np.nan, state.params['head'])
  bad = state.replace(params=state.params | {'head': head})
  batch = batch_of(8) | {'image': np.zeros((8, 8, 8, 3), np.uint8)}
  assert train.first_nonfinite(plan, {}, 1, bad, batch) == 'parameter head/bias'


def test_a_run_says_how_much_of_the_model_it_trains(tmp_path, capsys):
  assert vit_train(tmp_path, {'freeze.body': True, 'duration': 1, 'schedule.warmup': 0}) == 0
  assert re.search(r'trains 170 of [\d,]+ parameters; the rest is frozen', capsys.readouterr().out)


# A checkpoint to start from

TUNE = {
  'model.name': '',
  'model.dropout': 0.0,
  'model.attention_dropout': 0.0,
  'image_size': (16, 12),
  'data.augment': 'resize',
  'duration': '3 steps',
}
OF_MODEL = ('patch', 'width', 'depth', 'heads', 'mlp_dim')


def tuned(pretrained, **fields):
  """Fields that start from a checkpoint and leave the model to it."""
  unset = {f'model.{name}': None for name in OF_MODEL}
  return TUNE | unset | {'pretrained': pretrained} | fields


def rewritten(whole, folder, section, **values):
  """A copy of a run's model, with other values in a section of its description."""
  shutil.copytree(whole / 'model', folder)
  description = json.loads((folder / 'config.json').read_text())
  description[section] |= values
  (folder / 'config.json').write_text(json.dumps(description))
  return folder


def first_params(plan):
  return flat(jax.device_get(train.placed_state(plan).params))


def test_training_starts_from_the_checkpoint_with_a_new_head_and_positions_resampled(whole):
  plan = plan_of(tuned(whole))
  theirs, ours = bundle.read(whole), first_params(plan)
  assert plan.config.model.name == theirs.name
  expected, _ = adapt.params(
    convert.read(whole), plan.task.model, image_size=(16, 12), new_head=True
  )
  assert_same_bits(ours, flat(expected))
  assert not ours['head/kernel'].any() and flat(theirs.params)['head/kernel'].any()
  assert ours['positions'].shape[1] == 4 * 3
  name = 'encoder/blocks/mlp/up/kernel'
  np.testing.assert_array_equal(ours[name], flat(theirs.params)[name])


def test_the_average_starts_from_the_checkpoint_too_and_both_are_placed_by_the_rules(whole):
  plan = plan_of(tuned(whole, **{'system.fsdp': 2, 'system.tensor': 2}))
  state = train.placed_state(plan)
  assert_same_bits(flat(jax.device_get(state.params)), flat(jax.device_get(state.ema)))
  like = train.abstract_state(plan)
  same = jax.tree.map(lambda a, b: a.sharding == b.sharding, state, like)
  assert all(jax.tree.leaves(same))


def test_the_checkpoints_arrays_are_its_own_after_steps_that_donate_theirs(whole):
  plan = plan_of(tuned(whole, **{'schedule.warmup': 0}))
  before = jax.tree.map(np.copy, plan.task.start().params)
  state = train.placed_state(plan)
  batch = batch_of(32) | {'image': np.zeros((32, 16, 12, 3), np.uint8)}
  train.updater(plan)(state, batch, {})
  assert_same_bits(flat(before), flat(plan.task.start().params))


def test_a_new_head_is_initialised_from_the_runs_seed_where_the_config_says_so(whole):
  normal = {'model.head_init': 'normal'}
  first, again = (first_params(plan_of(tuned(whole, **normal))) for _ in range(2))
  other = first_params(plan_of(tuned(whole, seed=1, **normal)))
  assert 0.01 < np.std(first['head/kernel']) < 0.03
  assert_same_bits(first, again)
  differing = [name for name in first if not np.array_equal(first[name], other[name])]
  assert differing == ['head/kernel']


def test_how_the_head_of_a_checkpoint_started_is_not_taken_from_it(whole, tmp_path):
  other = rewritten(whole, tmp_path / 'other', 'model', head_init='normal')
  plan = plan_of(tuned(other))
  assert plan.task.model.head_init == 'zeros' and not first_params(plan)['head/kernel'].any()
  asked = plan.config.to_dict()
  asked['model'] |= {'width': None, 'head_init': None}
  (tmp_path / 'run/checkpoints/1').mkdir(parents=True)
  workdir.claim(tmp_path / 'run', plan_of(tuned(other, **{'model.head_init': 'normal'})).config)
  resumed, checkpoint = plans.checkpoint_defaults(FrozenConfigDict(asked), tmp_path / 'run')
  assert checkpoint is None
  assert (resumed.model.width, resumed.model.head_init) == (TINY['model.width'], None)


def test_fields_of_the_config_win_over_the_checkpoints(whole):
  plan = plan_of(tuned(whole, **{'model.drop_path': 0.3, 'data.mean': (0.1, 0.2, 0.3)}))
  assert plan.task.model.drop_path == 0.3
  assert plan.config.data.mean == (0.1, 0.2, 0.3)
  assert plan.task.model.width == TINY['model.width']


def test_how_a_checkpoint_was_regularised_is_not_taken_from_it(whole):
  theirs = bundle.read(whole).model
  ours = plan_of(
    tuned(whole, **{'model.dropout': None, 'model.attention_dropout': None})
  ).task.model
  assert (theirs.dropout, theirs.attention_dropout) == (0.1, 0.1)
  assert (ours.dropout, ours.attention_dropout) == (0.0, 0.0)


def test_pixels_are_the_configs_else_the_checkpoints_else_centred(whole, tmp_path):
  pixels = {'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.2, 0.3)}
  data = plan_of(tuned(rewritten(whole, tmp_path / 'other', 'preprocess', **pixels))).config.data
  assert (data.mean, data.std) == (pixels['mean'], pixels['std'])
  data = plan_of().config.data
  assert (data.mean, data.std) == ((0.5,) * 3,) * 2


def test_the_checkpoints_head_is_kept_where_it_is_asked_for(whole):
  plan = plan_of(tuned(whole, new_head=False))
  head = flat(bundle.read(whole).params)['head/kernel']
  np.testing.assert_array_equal(first_params(plan)['head/kernel'], head)


@pytest.fixture(scope='module')
def letters(whole, tmp_path_factory):
  """A model of ten letters, and images of them in another order, and of others."""
  folder = tmp_path_factory.mktemp('letters')
  images, labels = np.zeros((640, 8, 8), np.uint8), np.arange(640) % 10
  orders = {'reversed': tuple('jihgfedcba'), 'others': tuple('klmnopqrst')}
  for name, classes in orders.items():
    np.savez(folder / f'{name}.npz', images=images, labels=labels, classes=classes)
  source = dataclasses.replace(bundle.read(whole), classes=tuple('abcdefghij'))
  bundle.write(folder / 'model', source)
  return folder


def test_a_kept_head_has_the_order_of_the_datas_classes(letters, whole):
  fields = {'data.source': f'arrays:{letters}/reversed.npz', 'data.test': '', 'new_head': False}
  params = first_params(plan_of(tuned(letters / 'model', **fields)))
  head = bundle.read(whole).params['head']
  np.testing.assert_array_equal(params['head/kernel'], head['kernel'][:, ::-1])
  np.testing.assert_array_equal(params['head/bias'], head['bias'][::-1])


def test_a_kept_head_for_classes_of_other_names_is_refused(letters):
  fields = {'data.source': f'arrays:{letters}/others.npz', 'data.test': '', 'new_head': False}
  with pytest.raises(ValueError, match="among the model's: k, l, m and 7 more; the model's: a, b"):
    plan_of(tuned(letters / 'model', **fields))


def test_a_new_head_has_no_tanh_layer_before_it_unless_asked_for(whole, tmp_path):
  model = vit_jax.build(
    'ViT-Ti/16', patch=4, width=16, depth=2, heads=2, mlp_dim=32, representation=16, head_bias=-9.0
  )
  params = drawn(shapes(model, (8, 8)))
  preprocess = bundle.Preprocess('resize', (8, 8))
  classes = tuple(map(str, range(model.num_classes)))
  bundle.write(tmp_path / 'b', bundle.Bundle(model, params, classes, preprocess, 'ViT-Ti/16'))
  plan = plan_of(tuned(tmp_path / 'b'))
  assert plan.task.model.representation is None and plan.task.model.head_bias == 0.0
  asked = plan_of(tuned(tmp_path / 'b', **{'model.representation': 16}))
  np.testing.assert_array_equal(
    first_params(asked)['pre_logits/kernel'], params['pre_logits']['kernel']
  )


@pytest.mark.parametrize(
  'fields, messages',
  [
    ({'model.name': 'ViT-S/16'}, "is a ViT-Ti/16, model.name is 'ViT-S/16'"),
    ({'model.width': 24}, 'does not fit the model: '),
    ({'pretrained': 'nowhere/to.npz'}, 'nowhere/to.npz'),
    ({'image_size': (9, 12)}, 'image_size 9x12 does not divide into patches of 4x4'),
    ({'optimizer.layer_decay': 1.5}, 'layer_decay is 1.5, must be above 0 and at most 1'),
    ({'freeze.layers': 3}, 'freeze.layers is 3, the model has 2'),
    ({'pretrained': ''}, "unknown model ''; known: ViT-Ti/8"),
    ({'pretrained': '', 'model.name': 'ViT-Ti/16', 'new_head': False}, 'no head to keep'),
    ({'time_limit': '11 days'}, "'11 days' is not a time such as '11h'"),
  ],
)
def test_a_start_that_cannot_be_is_one_line_and_writes_nothing(
  whole, fields, messages, tmp_path, capsys
):
  assert vit_train(tmp_path / 'run', tuned(whole) | fields) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert messages in line
  assert not (tmp_path / 'run').exists()


def test_a_kept_head_for_other_classes_is_one_line(whole, tmp_path, capsys):
  images = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'three.npz', images=images, labels=np.arange(64) % 3)
  three = {'data.source': f'arrays:{tmp_path}/three.npz', 'data.test': '', 'new_head': False}
  assert vit_train(tmp_path / 'run', tuned(whole) | three) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'is for 10 classes' in line and 'has 3: new_head=True starts with a new one' in line


SHORT = {'schedule.warmup': 0, 'freeze.layers': 1, 'optimizer.layer_decay': 0.5}


def short(run, **fields):
  """Fields of `fine_tuned`."""
  return tuned(run.parent / 'start') | SHORT | fields


@pytest.fixture(scope='session')
def fine_tuned(tmp_path_factory, cache, whole):
  """A run that started from the model of `whole` and was never stopped; its checkpoint is gone."""

  def make(folder):
    shutil.copytree(whole / 'model', folder / 'start')
    assert vit_train(folder / 'run', short(folder / 'run')) == 0
    shutil.rmtree(folder / 'start')

  return shared(tmp_path_factory, 'fine_tuned', make) / 'run'


def test_a_fine_tuned_run_resumes_to_the_same_bits_without_its_checkpoint(
  fine_tuned, tmp_path, capsys
):
  run = until(1, fine_tuned, tmp_path / 'run')
  assert vit_train(run, short(fine_tuned)) == 0
  out = capsys.readouterr().out
  assert 'resumes at step 1' in out and 'loaded' not in out
  assert contents(run / 'model') == contents(fine_tuned / 'model')
  assert rows_of(run) == rows_of(fine_tuned)


def test_a_fine_tuned_runs_config_tells_the_model_that_it_had(fine_tuned, whole):
  config = json.loads((fine_tuned / 'config.json').read_text())
  theirs = json.loads((whole / 'config.json').read_text())
  assert config['model']['name'] == theirs['model']['name']
  assert config['model']['width'] == theirs['model']['width']
  assert config['data']['mean'] == [0.5] * 3


def test_another_checkpoint_to_start_from_is_another_run(fine_tuned, capsys):
  assert vit_train(fine_tuned, tuned(fine_tuned) | SHORT) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'another checkpoint to start from, whose arrays differ' in line


def test_another_regularisation_is_another_run_though_the_checkpoint_tells_none(fine_tuned, capsys):
  assert vit_train(fine_tuned, short(fine_tuned, **{'model.dropout': None})) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'holds another run: model.dropout is 0.0 there and None here' in line


def test_frozen_layers_of_a_fine_tuned_run_are_the_checkpoints_to_the_bit(fine_tuned, whole):
  ours, theirs = (flat(bundle.read(run).params) for run in (fine_tuned, whole))
  np.testing.assert_array_equal(ours['embed/kernel'], theirs['embed/kernel'])
  name = 'encoder/blocks/mlp/up/kernel'
  np.testing.assert_array_equal(ours[name][0], theirs[name][0])
  assert not np.array_equal(ours[name][1], theirs[name][1])


# The time


@pytest.mark.quick
@pytest.mark.parametrize(
  'text, expected',
  [('', 0), ('11h', 39_600), ('90m', 5400), ('45s', 45), ('1h30m', 5400), ('1h 30m 5s', 5405)],
)
def test_a_time_limit_is_hours_minutes_and_seconds(text, expected):
  assert optim.seconds(text) == expected


@pytest.mark.quick
@pytest.mark.parametrize('text', ['11', 'h', '1.5h', '-1h', '30m1h', '0s', 'an hour', ' ', '1d'])
def test_a_bad_time_is_shown(text):
  with pytest.raises(ValueError, match=re.escape(f'{text!r} is not a time such as')):
    optim.seconds(text)


@contextlib.contextmanager
def time_over_at(step, monkeypatch):
  """The timer of a time limit goes off with that step of this start; yields the seconds it had."""
  limits, timers = [], []

  class Timer(threading.Timer):
    def start(self):
      limits.append(self.interval)
      timers.append(self)

  added = train.Watch.add

  def add(self, at, *measured):
    added(self, at, *measured)
    if at == step:
      timers[-1].function()

  with monkeypatch.context() as patch:
    patch.setattr(stopping.threading, 'Timer', Timer)
    patch.setattr(train.Watch, 'add', add)
    yield limits


def test_a_run_whose_time_is_over_saves_the_bits_that_another_limit_resumes_from(
  whole, tmp_path, monkeypatch, capsys
):
  limit = {'time_limit': '1h30m'}
  with time_over_at(3, monkeypatch) as limits:
    assert vit_train(tmp_path, limit) == 0
  said = capsys.readouterr().out
  assert 'the time limit, 1h30m, is over: saving' in said
  assert 'stopped at step 3, saved: the same command resumes there' in said
  assert 5300 < limits[0] <= 5400  # compiling counts
  assert not (tmp_path / 'model').exists()
  assert_same_bits(state_of(tmp_path), state_of(whole, 3))
  assert rows_of(tmp_path) == rows_of(whole)[:3]
  finished = shutil.copytree(whole, tmp_path / 'finished')
  assert vit_train(finished, {'time_limit': '2h'}) == 0  # another limit is no other run


ENDLESS = {'duration': '1000000 steps', 'checkpoint.every': 0, 'evaluation.every': 0}


def test_a_time_limit_ends_a_run_by_the_clock(tmp_path, capsys):
  assert vit_train(tmp_path, PLAIN | ENDLESS | {'time_limit': '1s'}) == 0
  assert re.search(r'stopped at step [1-9]\d*, saved', capsys.readouterr().out)


def test_two_processes_start_from_a_checkpoint_and_stop_in_time_at_the_same_step(
  cache, whole, tmp_path
):
  fields = PLAIN | tuned(whole) | ENDLESS | {'time_limit': '1s', 'system.fsdp': 2}
  words = ['-m', 'vit_jax.main', '--config=digits', f'--workdir={tmp_path / "run"}', *flags(fields)]
  words += [f'--coordinator_address=127.0.0.1:{free_port()}', '--num_processes=2']
  env = environment(cache)
  processes = [started([*words, f'--process_id={index}'], env) for index in (0, 1)]
  (code, out, err), (other_code, _, other_err) = [ended(process) for process in processes]
  assert code == 0, err
  assert other_code == 0, other_err
  assert 'the time limit, 1s, is over: saving' in out and out.count('loaded') == 1
  step = re.search(r'stopped at step ([1-9]\d*), saved', out)[1]
  assert [f.name for f in (tmp_path / 'run/checkpoints').iterdir() if f.is_dir()] == [step]


# Splits that overlap


@pytest.mark.quick
@pytest.mark.parametrize(
  'train_split, other, shared',
  [
    ('train', 'validation', 0),
    ('train[:90%]', 'train[90%:]', 0),
    ('train[:90%]', 'train[80%:]', 126),
    ('train+validation', 'validation', 179),
    ('validation+train[:10]', 'train[9:20]', 1),
    ('train[:10]+train[20:30]', 'train[5:25]', 10),
  ],
)
def test_the_images_of_two_splits_that_are_the_same_are_counted(train_split, other, shared):
  splits = sources.open_splits('digits', {'a': train_split, 'b': other})
  assert (
    sources.overlap(splits['a'], splits['b']) == shared == sources.overlap(splits['b'], splits['a'])
  )
  ours, theirs = ({bytes(record['image']) for record in splits[use].records} for use in ('a', 'b'))
  assert len(ours & theirs) >= shared  # some digits are there twice


@pytest.mark.quick
def test_spans_go_through_a_presets_splits():
  whole = {'train': lambda: sources.Source(range(100), ('a', 'b'))}
  preset = {
    'trainval': functools.partial(sources.select, 'set', whole, 'train[:40]+train[60:80]'),
    'validation': functools.partial(sources.select, 'set', whole, 'train[70:]'),
  }
  both, held = (sources.select('preset', preset, name) for name in preset)
  assert both.spans == (('train', 0, 40), ('train', 60, 80))
  assert sources.overlap(both, held) == 10
  part = sources.select('preset', preset, 'trainval[30:50]')
  assert part.spans == (('train', 30, 40), ('train', 60, 70))
  assert list(part.records) == [*range(30, 40), *range(60, 70)]


@pytest.mark.parametrize('use', ['validation', 'test'])
def test_a_split_that_overlaps_the_training_split_is_one_line(use, tmp_path, capsys):
  fields = {'data.train': 'train[:90%]', f'data.{use}': 'train[80%:]'}
  assert vit_train(tmp_path / 'run', fields) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert f"data.{use} 'train[80%:]' overlaps data.train 'train[:90%]' of digits: 126 images" in line
  assert not (tmp_path / 'run').exists()
