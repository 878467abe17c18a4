"""A mesh of any shape computes what one device does, with arrays that really are in parts."""

import dataclasses
import functools
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import vit_jax
from tests.conftest import drawn, flat, pictures, shapes, tiny
from tests.test_run import plan_of
from vit_jax import optim, pipeline, sharding, train
from vit_jax.compilers import program
from vit_jax.step import gradient, trace
from vit_jax.tasks import Separable, classify

MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]
FIELDS = {
  'model.patch': 4,
  'model.width': 32,
  'model.depth': 2,
  'model.heads': 8,
  'model.mlp_dim': 32,
  'model.dropout': 0.1,
  'model.attention_dropout': 0.1,
  'model.unroll': 1,
  'model.pool': 'token',
  'batch_size': 16,
  'accumulate': 2,
  'ema': 0.9,
  'duration': 6,
  'optimizer.name': 'adamw',
  'schedule.name': 'cosine',
  'schedule.learning_rate': 2e-3,
  'schedule.warmup': 1,
}


@pytest.fixture(scope='module')
def plan():
  """A tiny recipe on digits, with dropout and AdamW."""
  from vit_jax import config
  from vit_jax import plan as plans

  return plans.make_plan(config.load('digits', [f'{k}={v}' for k, v in FIELDS.items()]))


def on(plan, shape):
  devices = jax.devices()[: int(np.prod(shape))]
  return dataclasses.replace(plan, mesh=sharding.make_mesh(*shape, devices=devices))


@pytest.fixture(scope='module')
def trained(plan):
  """trained(mesh shape) -> the compiled step, the abstract and first states, losses, parameters.

  Of the first state's leaves also the shape that a device holds.
  """

  @functools.cache
  def run(shape):
    placed = on(plan, shape)
    abstract, state = train.abstract_state(placed), train.placed_state(placed)
    local = {name: leaf.addressable_shards[0].data.shape for name, leaf in flat(state).items()}
    first, losses = jax.device_get(state), []
    unreadable = pipeline.Unreadable(placed.splits['train'])
    with placed.training_batches(0, unreadable) as batches:
      batches = [next(batches) for _ in range(6)]
    step = train.updater(placed).lower(abstract, batches[0], {}).compile()
    for batch in batches:
      state, measured = step(state, batch, {})
      losses.append(float(measured['sums']['loss'] / measured['sums']['count']))
    return step, abstract, first, local, losses, jax.device_get(state.params)

  return run


@pytest.mark.parametrize('shape', MESHES)
def test_eight_devices_learn_what_one_does(trained, shape):
  *_, losses, params = trained(shape)
  *_, expected, expected_params = trained((1, 1, 1))
  assert np.ptp(expected) > 1e-3
  np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
  # Adam divides by the root of a second moment near 0, which amplifies the order of a sum
  close = functools.partial(np.testing.assert_allclose, atol=1e-4)
  jax.tree.map(close, params, expected_params)


@pytest.mark.parametrize('shape', MESHES)
def test_a_new_state_is_the_same_on_every_mesh(trained, shape):
  jax.tree.map(np.testing.assert_array_equal, trained(shape)[2], trained((1, 1, 1))[2])


@pytest.mark.parametrize('shape', MESHES[1:])
def test_parameters_moments_and_average_lie_in_parts_on_their_devices(trained, shape):
  _, _, state, local, *_ = trained(shape)
  _, fsdp, tensor = shape
  # the axis of each kernel that fsdp splits, and the axis that tensor splits
  split = {'query/kernel': (1, 2), 'out/kernel': (3, 1), 'up/kernel': (1, 2), 'down/kernel': (2, 1)}
  count = 0
  for name, leaf in flat(state).items():
    for kernel, axes in split.items():
      if name.endswith(kernel):
        expected = list(leaf.shape)
        for axis, parts in zip(axes, (fsdp, tensor)):
          expected[axis] //= parts
        assert local[name] == tuple(expected) != leaf.shape, name
        count += 1
  assert count == 4 * len(split)  # parameters, two moments, average


@pytest.mark.parametrize('shape', MESHES)
def test_a_step_leaves_the_state_where_it_was(trained, shape):
  step, state, *_ = trained(shape)
  moved = [
    name
    for (name, was), will in zip(flat(state).items(), jax.tree.leaves(step.output_shardings[0]))
    if not was.sharding.is_equivalent_to(will, was.ndim)
  ]
  assert moved == []


@pytest.mark.parametrize('shape', [(1, 1, 1), *MESHES])
def test_a_step_writes_the_new_state_into_the_memory_of_the_old(trained, shape):
  step, state, *_ = trained(shape)
  held = sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(state)
  )
  assert step.memory_analysis().alias_size_in_bytes >= held


def test_what_does_not_divide_stays_whole():
  mesh = sharding.make_mesh(1, 4, 2)
  tree = tiny(width=18, heads=3, mlp_dim=25, num_classes=7)
  for name, leaf in flat(sharding.tree_sharding(shapes(tree), mesh)).items():
    assert leaf.spec == jax.sharding.PartitionSpec(*[None] * len(leaf.spec)), name


def test_what_divides_by_one_axis_alone_is_split_by_that_one():
  mesh = sharding.make_mesh(1, 4, 2)
  specs = flat(sharding.tree_sharding(shapes(tiny(heads=1)), mesh))
  split = specs['encoder/blocks/attention/query/kernel'].spec
  assert tuple(split) == (None, 'fsdp', None, None)


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'adafactor', 'lion', 'lamb', 'muon'])
def test_every_optimisers_state_can_be_placed_and_its_moments_follow_their_parameters(name):
  mesh = sharding.make_mesh(2, 2, 2)
  tx = optim.make_optimizer(name, lambda step: jnp.float32(0.1), weight_decay=0.1, clip=1.0)
  params = shapes(tiny(width=32))
  state = jax.eval_shape(tx.init, params)
  specs = flat(sharding.tree_sharding(params, mesh))
  followers = 0
  for path, sharded in flat(sharding.tree_sharding(state, mesh)).items():
    leaf = flat(state)[path]
    sharded.shard_shape(leaf.shape)  # raises where the shape does not divide
    owner = next((p for p in specs if path.endswith('/' + p)), None)
    if owner and flat(params)[owner].shape == leaf.shape:
      assert sharded.spec == specs[owner].spec, path
      followers += any(sharded.spec)
  assert followers > 0


def test_placing_a_tree_changes_no_value():
  params = drawn(shapes(tiny(width=32)))
  placed = sharding.place(params, sharding.make_mesh(2, 2, 2))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), params)
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))


def test_a_batch_is_split_over_data_and_fsdp_and_copied_over_tensor():
  mesh = sharding.make_mesh(2, 2, 2)
  rows = np.arange(8 * 3).reshape(8, 3)
  placed = sharding.put({'image': rows}, mesh)['image']
  np.testing.assert_array_equal(placed, rows)
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


def test_prefetch_keeps_the_order_and_yields_every_batch():
  mesh = sharding.make_mesh()
  batches = [{'x': np.full(8, i)} for i in range(5)]
  for depth in (0, 1, 2, 9):
    batches_on_mesh = list(sharding.prefetch(batches, mesh, depth=depth))
    assert [int(batch['x'][0]) for batch in batches_on_mesh] == list(range(5))


@pytest.mark.quick
@pytest.mark.parametrize('shape', MESHES)
def test_one_process_feeds_the_whole_batch(shape):
  assert sharding.batch_shard(16, sharding.make_mesh(*shape)) == (0, 1)


class Rows:
  """A sharding of 16 rows in runs of two; `held` is the runs of each process, this one's first."""

  def __init__(self, held):
    self.held = held

  def devices_indices_map(self, shape):
    assert shape == (16,)
    return {
      Device(process, run): (slice(2 * run, 2 * run + 2),)
      for process, runs in enumerate(self.held)
      for run in runs
    }


class Device(typing.NamedTuple):
  process_index: int
  run: int


@pytest.mark.quick
@pytest.mark.parametrize(
  'held, share',
  [
    ([[0, 1, 2, 3], [4, 5, 6, 7]], (0, 2)),
    ([[4, 5, 6, 7], [0, 1, 2, 3]], (1, 2)),
    ([[7, 5, 4, 6], [0, 1, 2, 3]], (1, 2)),  # in whatever order the devices come
    ([[1, 3, 5, 7], [0, 2, 4, 6]], (1, 2)),  # a torus may deal the rows out in turns
    ([[2, 3], [0, 1], [4, 5], [6, 7], [2, 3]], (1, 4)),  # some split only parameters
    ([list(range(8))], (0, 1)),
  ],
)
def test_a_process_feeds_the_rows_that_its_devices_hold(monkeypatch, held, share):
  monkeypatch.setattr(sharding, 'NamedSharding', lambda mesh, spec: Rows(held))
  assert sharding.batch_shard(16, sharding.make_mesh()) == share


@pytest.mark.quick
@pytest.mark.parametrize('held', [[[0, 1, 2, 3, 4], [4, 5, 6, 7]], [[0, 1], [2, 3, 4, 5, 6, 7]]])
def test_rows_that_processes_share_unevenly_are_an_error(monkeypatch, held):
  monkeypatch.setattr(sharding, 'NamedSharding', lambda mesh, spec: Rows(held))
  with pytest.raises(ValueError, match='evenly'):
    sharding.batch_shard(16, sharding.make_mesh())


@pytest.mark.quick
def test_a_batch_that_does_not_divide_is_an_error_that_names_the_axes():
  with pytest.raises(ValueError, match=r'12 .* 8 devices .*data=4 x fsdp=2'):
    sharding.batch_shard(12, sharding.make_mesh(4, 2, 1))


@pytest.mark.quick
@pytest.mark.parametrize(
  'shape', [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (-1, 0, 1), (-2, 2, 2), (16, 1, 1)]
)
def test_a_mesh_that_does_not_fit_is_an_error_that_shows_it(shape):
  with pytest.raises(ValueError, match=rf'data={shape[0]}, fsdp={shape[1]}.* 8 devices'):
    sharding.make_mesh(*shape)


@pytest.mark.quick
def test_minus_one_takes_the_devices_that_the_others_leave():
  assert dict(sharding.make_mesh(-1, 2, 2).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert dict(sharding.make_mesh(1, -1, 1).shape) == {'data': 1, 'fsdp': 8, 'tensor': 1}
  one = sharding.make_mesh(devices=jax.devices()[:1])
  assert dict(one.shape) == {'data': 1, 'fsdp': 1, 'tensor': 1}


@pytest.mark.quick
def test_every_rule_is_for_a_parameter_that_a_model_has():
  hybrid = dict(relative_positions='mlp', patch=4, stem=(1,), stem_width=32, distillation='head')
  mixer = vit_jax.build('Mixer-S/32', patch=4, width=16)
  names = flat(
    {
      'vit': shapes(tiny(swiglu=True, representation=8, pool='map', **hybrid)),
      'mixer': shapes(mixer),
    }
  )
  for pattern, spec in sharding.RULES:
    matched = [name for name in names if re.search(pattern, name)]
    assert matched, pattern
    assert {len(names[name].shape) for name in matched} == {len(spec)}, pattern


def test_a_head_that_pools_by_attention_is_split_too_and_what_is_not_is_named():
  mesh = sharding.make_mesh(1, 2, 4)
  fields = dict(heads=4, pool='map', qk_norm=True, swiglu=True)
  params = shapes(tiny(**fields))
  split = flat(sharding.tree_sharding(params, mesh))
  assert split['pool/attention/query/kernel'].spec == P('fsdp', 'tensor', None)
  assert split['pool/mlp/down/kernel'].spec == P('tensor', 'fsdp')
  named = sharding.unsplit(params, mesh)
  assert 'head/kernel' in named  # 5 classes
  assert 'encoder/blocks/attention/query/kernel' not in named
  assert 'encoder/blocks/attention/query/kernel' in sharding.unsplit(
    shapes(tiny()), mesh
  )  # 2 heads


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2)])
def test_devices_that_split_parameters_exchange_no_tokens(shape):
  model, n = tiny(width=32, heads=4, mlp_dim=64, depth=2), 512
  mesh = sharding.make_mesh(*shape)
  params = jax.tree.map(
    lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
    shapes(model),
    sharding.tree_sharding(shapes(model), mesh),
  )
  rows = jax.NamedSharding(mesh, sharding.BATCH)
  images = jax.ShapeDtypeStruct((n, 8, 12, 3), jnp.float32, sharding=rows)

  def loss(params, images):
    return model.apply({'params': params}, images, train=True)[0].sum()

  program = jax.jit(jax.grad(sharding.for_mesh(loss, mesh))).lower(params, images).compile()
  tokens = n * 7 * model.width // (shape[0] * shape[1])  # of a device
  sizes = exchanged(program.as_text())
  allowed = 4 * model.depth * tokens if shape[2] > 1 else 0  # sums over 'tensor'
  assert 0 < sum(sizes) <= allowed + 3 * sum(leaf.size for leaf in jax.tree.leaves(params))


def exchanged(text):
  """How many numbers each collective of a program gives."""
  lines = re.findall(r' = (.*?) (?:all-|reduce-scatter|collective-permute)[\w-]*\(', text)
  arrays = [re.findall(r'\w\d+\[([\d,]*)\]', line) for line in lines]
  return [int(np.prod([int(n) for n in a.split(',') if n])) for line in arrays for a in line]


@functools.cache
def micro_batched(shape, *, separable):
  """A tiny model's gradient in four micro-batches on a mesh, and the bytes that a device sends."""
  model, mesh, n = tiny(width=32, heads=4, mlp_dim=64, depth=2), sharding.make_mesh(*shape), 64
  loss = classify.make_loss(model.apply, mean=(0.5,) * 3, std=(0.5,) * 3)

  def summed(params, batch, key):
    total, sums, _ = loss(params, batch, key, {})
    return total, (sums, trace({}))

  def total(params, batch):
    key = jax.random.key(0)
    return gradient(summed, params, batch, key, accumulate=4, separable=separable)[0]

  params = sharding.place(drawn(shapes(model)), mesh)
  images, mask = np.uint8(127.5 + 127 * pictures(n)), np.float32(np.arange(n) % 7 > 0)
  batch = sharding.put({'image': images, 'label': np.arange(n) % 5, 'mask': mask}, mesh)
  split = jax.tree.map(lambda leaf: leaf.sharding, params)
  jitted = jax.jit(sharding.for_mesh(total, mesh), out_shardings=split)
  compiled = jitted.lower(params, batch).compile()
  exchanges = program.collectives(program.read(compiled.as_text()), mesh.size)
  return jax.device_get(compiled(params, batch)), sum(exchange.sent for exchange in exchanges)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2)])
def test_a_separable_losss_gradient_is_the_same_where_devices_add_it_once(shape):
  expected, _ = micro_batched((8, 1, 1), separable=False)
  grads, _ = micro_batched(shape, separable=True)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), grads, expected)


def test_devices_send_a_separable_losss_gradient_once_and_others_of_each_micro_batch():
  grads, sent = micro_batched((8, 1, 1), separable=True)
  _, sent_of_each = micro_batched((8, 1, 1), separable=False)
  once = program.sent('all-reduce', 4 * sum(leaf.size for leaf in jax.tree.leaves(grads)), 8)
  assert once <= sent <= 1.05 * once and sent_of_each > 3.5 * once


SEPARABLE = {'model.dropout': 0.0, 'model.attention_dropout': 0.0, 'model.drop_path': 0.0}


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({}, True),
    ({'objective.loss': 'sigmoid', 'objective.smoothing': 0.1}, True),
    ({'model.drop_path': 0.1}, False),
    ({'objective.mixup': 0.2}, False),
    ({'objective.cutmix': 1.0}, False),
    (
      {'objective.loss': 'optax:safe_softmax_cross_entropy', 'objective.scores': 'softmax'},
      False,
    ),
  ],
)
def test_a_loss_is_separable_without_mixing_and_drops(fields, expected):
  assert isinstance(plan_of(SEPARABLE | fields).task.loss, Separable) == expected


@pytest.mark.parametrize('name', ['classify', 'mae'])
def test_a_separable_loss_is_the_sum_of_its_examples_by_any_key(name):
  decoder = {'mae.decoder_depth': 1, 'mae.decoder_width': 16, 'mae.decoder_heads': 2}
  task = plan_of(SEPARABLE | decoder | {'task': name, 'model.depth': 1}).task
  assert isinstance(task.loss, Separable)
  params, rng = drawn(jax.eval_shape(task.init, jax.random.key(0))), np.random.default_rng(0)
  batch = {'mask': np.ones(3, np.float32)} | {
    name: rng.uniform(0, 200 if column.dtype == np.uint8 else 3, (3, *column.shape)).astype(
      column.dtype
    )
    for name, column in task.columns.items()
  }

  @jax.jit
  def loss(rows, seed):
    return task.loss(params, rows, jax.random.key(seed), {})[0]

  single = [loss({name: rows[i : i + 1] for name, rows in batch.items()}, i) for i in range(3)]
  np.testing.assert_allclose(loss(batch, 3), sum(single), rtol=1e-5)
