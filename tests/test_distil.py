"""Laws of learning from a teacher: what is learned, where its weights are, and what stays."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests import test_docs
from tests.conftest import drawn, flat, shapes
from tests.test_docs import blocks, coded, lines_of, ran, table
from tests.test_run import (
  ROOT,
  TINY,
  assert_same_bits,
  cache,
  checkpoints_of,
  contents,
  plan_of,
  rows_of,
  until,
  vit_train,
)
from vit_jax import __main__ as vit
from vit_jax import bundle, checkpoint, config, sharding, train
from vit_jax import plan as plans
from vit_jax.sources import labels
from vit_jax.sources.columns import Column
from vit_jax.tasks import classify, distil

__all__ = ['cache']

N, SIDE = 5, 8
NAMES = tuple('0123456789')
HALVES = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
OTHERS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
SMALL = dict(patch=4, width=8, depth=2, heads=2, mlp_dim=12, unroll=1)
# The teacher is wider and deeper than the student, whose fields are tests.test_run's.
BUILT = {
  'vit': ('ViT-Ti/16', SMALL | dict(width=24, depth=3), (8, 8)),
  'two heads': ('ViT-Ti/16', SMALL | dict(distillation='head'), (8, 8)),
  'larger': ('ViT-Ti/16', SMALL | dict(pool='map'), (12, 16)),
  'hybrid': ('ViT-Ti/16', SMALL | dict(patch=4, stem=(), stem_width=32), (16, 16)),
  'mixer': ('Mixer-S/16', dict(patch=4, width=8, depth=2, tokens_dim=8, mlp_dim=8), (8, 8)),
  'bit': ('BiT-R50x1', dict(blocks=(1,)), (32, 32)),
}


def make(kind='vit', classes=NAMES, scores='softmax', scale=0.3, looks=OTHERS, **fields):
  """A teacher's bundle of random weights, so that its answers differ from image to image."""
  name, defaults, size = BUILT[kind]
  model = vit_jax.build(name, num_classes=len(classes), **(defaults | fields))
  params = drawn(shapes(model, size), scale)
  looks = bundle.Preprocess('resize', size, **looks)
  return bundle.Bundle(model, params, tuple(classes), looks, name, scores)


def written(folder, source=None):
  bundle.write(folder, source or make())
  return folder


COLUMNS = {
  'image': Column((SIDE, SIDE, 3), np.uint8, lambda record, rng: None),
  'label': Column((), np.int32, lambda record, rng: None),
}


class Linear:
  """A model that compiles in no time: all that it gives is linear in the pixels."""

  def __init__(self, width=6):
    self.widths = dict(logits=10, head=10, head_dist=10, pre_logits=width)

  def params(self, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {name: (SIDE * SIDE * 3, width) for name, width in self.widths.items()}
    return {name: np.float32(0.1 * rng.standard_normal(shape)) for name, shape in shapes.items()}

  def init(self, key, images):
    return {'params': jax.tree.map(jnp.asarray, self.params())}

  def apply(self, variables, images, **_):
    pixels = images.reshape(len(images), -1)
    out = {name: pixels @ kernel for name, kernel in variables['params'].items()}
    return out['logits'], out


def linear(width=6, seed=1, looks=OTHERS):
  """The bundle of such a model."""
  looks = bundle.Preprocess('resize', (SIDE, SIDE), **looks)
  return bundle.Bundle(Linear(width), Linear(width).params(seed), NAMES, looks, 'linear')


def student_task(model=None, output='logits', **options):
  model = model or Linear()
  looks = bundle.Preprocess('resize', (SIDE, SIDE), **HALVES)
  return classify.classify(
    model, classes=NAMES, preprocess=looks, columns=COLUMNS, output=output, **options
  )


def batch_of(count=N, seed=0, mask=None):
  rng = np.random.default_rng(seed)
  mask = np.ones(count, np.float32) if mask is None else np.float32(mask)
  images = rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
  return {'image': images, 'label': rng.integers(0, 10, count, np.int32), 'mask': mask}


def taught(source=None, task=None, **options):
  source = source or linear()
  answers = source if isinstance(source, distil.Teacher) else distil.Teacher(source)
  return distil.distil(task or student_task(), answers, **HALVES, **options)


def graded(task, params, batch, key=0):
  """(loss, sums) and the gradient."""

  def loss(params, fixed):
    total, sums, _ = task.loss(params, batch, jax.random.key(key), fixed)
    return total, sums

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, task.fixed)


# What the loss is


@pytest.mark.arithmetic
@pytest.mark.quick
@pytest.mark.parametrize('temperature', [0.1, 1.0, 4.0, 20.0])
@pytest.mark.parametrize('scale', [1, 300], ids=['near', 'far'])
def test_the_divergence_equals_float64(temperature, scale):
  rng = np.random.default_rng(0)
  student, answer = (np.float32(scale * rng.standard_normal((20, 10))) for _ in range(2))
  a, b = (np.float64(x) / temperature for x in (student, answer))
  a, b = (x - x.max(-1, keepdims=True) for x in (a, b))
  a, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (a, b))
  expected = temperature**2 * (np.exp(b) * (b - a)).sum(-1)
  actual, grad = jax.jit(
    lambda s: (
      distil.divergence(s, answer, temperature),
      jax.grad(lambda s: distil.divergence(s, answer, temperature).sum())(s),
    )
  )(student)
  # logits of 300 are resolved to 3e-5, and so are the exponents
  exact = 2e-6 if scale == 1 else 1e-4
  np.testing.assert_allclose(actual, expected, rtol=exact, atol=exact * temperature)
  np.testing.assert_allclose(grad, temperature * (np.exp(a) - np.exp(b)), atol=exact * temperature)


@pytest.mark.arithmetic
@pytest.mark.quick
def test_a_student_that_is_its_teacher_has_no_gradient():
  source = make('two heads', looks=HALVES)
  task = taught(source, student_task(source.model), temperature=4.0, weight=1.0)
  (loss, sums), grads = graded(task, source.params, batch_of())
  assert loss == sums['teacher_loss'] == 0 and sums['task_loss'] > 1
  assert all(not np.any(grad) for grad in flat(grads).values())


@pytest.mark.arithmetic
@pytest.mark.quick
@pytest.mark.parametrize('temperature', [0.1, 1.0, 2.5, 20.0])
@pytest.mark.parametrize('kind', ['logits', 'token'])
def test_it_has_none_at_any_temperature(kind, temperature):
  source = linear(looks=HALVES)
  if kind == 'token':
    source.params['head_dist'] = source.params['logits']
  task = taught(source, kind=kind, temperature=temperature, weight=1.0)
  (loss, _), grads = graded(task, source.params, batch_of())
  assert loss == 0 and all(not np.any(grad) for grad in flat(grads).values())


@pytest.mark.arithmetic
@pytest.mark.quick
@pytest.mark.parametrize('kind', distil.KINDS)
def test_weights_are_complementary(kind):
  task, batch = student_task(), batch_of()
  tasks = [taught(task=task, kind=kind, weight=weight) for weight in (0.0, 0.25, 1.0)]
  params = task.model.params()
  (alone, _), task_only = graded(task, params, batch)
  (_, _), (_, mixed), (_, far) = parts = [graded(each, params, batch) for each in tasks]
  np.testing.assert_allclose(parts[0][0][0], alone, rtol=1e-6)
  for (total, sums), _ in parts:
    np.testing.assert_allclose(sums['task_loss'], alone, rtol=1e-6)
    np.testing.assert_allclose(total, sums['loss'])
  for name, grad in mixed.items():
    np.testing.assert_allclose(
      grad, 0.75 * task_only[name] + 0.25 * far[name], rtol=1e-4, atol=1e-5
    )
    read = {'logits': 'logits', 'hard': 'logits', 'token': 'head_dist', 'features': 'pre_logits'}
    assert np.any(far[name]) == (name == read[kind])


@pytest.mark.arithmetic
@pytest.mark.quick
@pytest.mark.parametrize('kind', distil.KINDS)
def test_padding_counts_for_nothing(kind):
  task = taught(linear(width=9), kind=kind)
  params = jax.jit(task.init)(jax.random.key(0))
  assert ('projection' in params) == (kind == 'features')
  batch = batch_of(mask=[1, 1, 0, 1, 0])
  subset = {name: rows[[0, 1, 3]] for name, rows in batch.items()}
  batch['image'][[2, 4]] = 255
  (loss, sums), grads = graded(task, params, batch)
  (expected, expected_sums), expected_grads = graded(task, params, subset)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert sums['count'] == expected_sums['count'] == 3
  for name, grad in flat(grads).items():
    np.testing.assert_allclose(grad, flat(expected_grads)[name], rtol=1e-4, atol=1e-5)


# What the teacher sees and says


@pytest.mark.quick
@pytest.mark.parametrize('kind', BUILT)
def test_any_model_teaches_at_its_own_size_and_pixels(kind):
  source = make(kind)
  images = batch_of()['image']
  size = source.preprocess.size
  resized = jax.image.resize(np.float32(images), (N, *size, 3), 'bilinear')
  pixels = bundle.normalize(resized, **OTHERS)
  expected, out = jax.jit(source.model.apply)({'params': source.params}, pixels)
  answer = jax.jit(
    lambda pixels: distil.teacher_answer(distil.Teacher(source), source.params, pixels, **HALVES)
  )(bundle.normalize(images, **HALVES))
  assert np.ptp(expected, 0).min() > 1e-3  # it tells the images apart
  # the same pixels by way of another normalisation, then a network in float32
  exact = 1e-4 if kind in ('bit', 'hybrid') else 2e-5
  np.testing.assert_allclose(answer['logits'], expected, atol=exact)
  np.testing.assert_allclose(answer['pre_logits'], out['pre_logits'], atol=exact)


@pytest.mark.arithmetic
@pytest.mark.quick
def test_pixels_with_the_same_statistics_keep_their_bits():
  images = np.random.default_rng(0).standard_normal((1, 2, 2, 3))
  pair = (HALVES['mean'], list(HALVES['std']))
  assert distil.renormalized(images, pair, (list(HALVES['mean']), HALVES['std'])) is images


@pytest.mark.quick
@pytest.mark.parametrize('mixing', ['mixup', 'cutmix'])
def test_the_teacher_sees_what_the_student_sees(mixing):
  source, batch = linear(), batch_of()
  task = taught(source, student_task(**{mixing: 1.0}))
  params = task.model.params()
  *_, named = jax.jit(task.loss)(params, batch, jax.random.key(3), task.fixed)
  plain = bundle.normalize(batch['image'], **HALVES)
  assert np.abs(named['images'] - plain).max() > 0.1
  pixels = (named['images'] * 0.5 + 0.5 - np.float32(OTHERS['mean'])) / np.float32(OTHERS['std'])
  expected = pixels.reshape(N, -1) @ source.params['logits']
  # sums of 192 products near 0.5
  np.testing.assert_allclose(named['teacher/logits'], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.quick
@pytest.mark.parametrize(
  'theirs',
  [NAMES[::-1], ('x', *NAMES[::-1], 'y'), tuple(map(str, range(12))), NAMES],
  ids=['another order', 'more', 'more numbers', 'the same'],
)
def test_classes_are_matched_by_name(theirs, tmp_path):
  source = make(classes=theirs)
  read = distil.read_teacher(written(tmp_path, source), NAMES)
  assert (read.classes is None) == (theirs == NAMES)
  images = bundle.normalize(batch_of()['image'], **HALVES)

  @jax.jit
  def answers(params):
    teachers = (read, distil.Teacher(source))
    return [distil.teacher_answer(each, params, images, **HALVES)['logits'] for each in teachers]

  answer, answer_of_all = answers(source.params)
  expected = answer_of_all[:, [theirs.index(name) for name in NAMES]]
  np.testing.assert_array_equal(answer, expected)


@pytest.mark.quick
def test_evaluation_matches_the_same_numbers_by_name_too():
  assert labels.match(NAMES, NAMES[::-1]).columns.tolist() == list(range(10))
  assert labels.match(NAMES, NAMES[::-1]).targets.tolist() == list(range(10))[::-1]
  assert labels.match(NAMES, tuple('abcdefghij')).method.startswith('by their order')


@pytest.mark.quick
@pytest.mark.parametrize('pool', ['token', 'gap'])
def test_the_distillation_head_reads_its_token_with_and_without_a_class_token(pool):
  model = vit_jax.build('ViT-Ti/16', num_classes=10, distillation='head', pool=pool, **SMALL)
  params = drawn(shapes(model, (SIDE, SIDE)))
  _, out = jax.jit(model.apply)({'params': params}, bundle.normalize(batch_of()['image'], **HALVES))
  place = 1 if pool == 'token' else 0
  layer = params['head_dist']
  expected = out['encoded'][:, place] @ layer['kernel'] + layer['bias'][None]
  np.testing.assert_allclose(out['head_dist'], expected, rtol=1e-5, atol=1e-5)


# The program, and where the weights are

LARGE = dict(width=128, depth=4, mlp_dim=256)  # 2 MB: more than all of a student's checkpoint
FAST = {'duration': '4 steps', 'evaluation.every': '4 steps', 'checkpoint.every': '2 steps'}
FAST |= {'checkpoint.keep_latest': 2, 'data.test': ''}


@pytest.fixture(scope='session')
def teacher(tmp_path_factory):
  """The path of a teacher that is larger than the student, and takes other pixels."""
  return written(tmp_path_factory.mktemp('teacher') / 'large', make(**LARGE))


def fields(teacher, kind='logits', **more):
  """Of tests.test_run's tiny recipe with a teacher."""
  more = {name.replace('__', '.'): value for name, value in more.items()}
  return FAST | {'teacher.checkpoint': str(teacher), 'teacher.kind': kind} | more


def constants(text):
  """How many bytes each constant of a program has, as its text holds them."""
  return [len(digits) // 2 for digits in re.findall(r'dense<"0x([0-9A-F]*)"', text)] + [
    4 * literal.count(',') for literal in re.findall(r'dense<\[(.*?)\]>', text)
  ]


def test_the_program_holds_none_of_the_teachers_weights(teacher):
  plan = plan_of(fields(teacher))
  batch = {
    name: jnp.zeros((32, *column.shape), column.dtype) for name, column in plan.task.columns.items()
  } | {'mask': jnp.ones(32)}
  fixed = sharding.place(plan.task.fixed, plan.mesh)
  state = train.abstract_state(plan)
  lowered = train.updater(plan).lower(state, batch, fixed)
  arguments = flat(lowered.args_info[0][2])
  assert {name for name in arguments} == {name for name in flat(plan.task.fixed)}
  assert max(constants(lowered.as_text()), default=0) < 1000
  # Closed over, they would be seen.
  weights = plan.task.fixed
  closed = dataclasses.replace(
    plan.task, loss=lambda params, batch, key, _: plan.task.loss(params, batch, key, weights)
  )
  held = train.updater(dataclasses.replace(plan, task=closed)).lower(state, batch, {})
  assert max(constants(held.as_text())) > 10_000


def test_the_teacher_is_split_over_the_devices_as_a_model_is(teacher):
  plan = plan_of(fields(teacher, system__fsdp=2, system__tensor=2))
  placed = flat(sharding.place(plan.task.fixed, plan.mesh))
  for name, leaf in placed.items():
    spec = sharding.fitted(sharding.rule(name), leaf.shape, plan.mesh)
    assert leaf.sharding.is_equivalent_to(jax.sharding.NamedSharding(plan.mesh, spec), leaf.ndim)
  up = placed['teacher/encoder/blocks/mlp/up/kernel']
  assert up.shape == (4, 128, 256) and up.addressable_shards[0].data.shape == (4, 64, 128)
  query = placed['teacher/encoder/blocks/attention/query/kernel']
  assert query.addressable_shards[0].data.shape == (4, 64, 1, 64)


# Runs


def saved(plan, folder):
  """The arrays of the last checkpoint, by name."""
  with checkpoints_of(folder) as steps:
    return flat(jax.device_get(steps.restore_step(4, train.abstract_state(plan))))


RUNS = {
  'one device, body frozen': (
    1,
    'logits',
    dict(freeze__body=True, objective__mixup=0.5, data__validation=''),
  ),
  'eight devices, parameters split': (8, 'features', dict(system__fsdp=2, system__tensor=2)),
}


@pytest.mark.parametrize('case', RUNS)
def test_a_run_ends_bit_equal_after_an_interruption(case, teacher, tmp_path, monkeypatch, capsys):
  """With accumulation and an average, which tests.test_run's recipe has."""
  count, kind, more = RUNS[case]
  make_mesh = sharding.make_mesh
  monkeypatch.setattr(
    sharding,
    'make_mesh',
    lambda *axes, devices=None: make_mesh(*axes, devices=devices or jax.devices()[:count]),
  )
  asked = fields(teacher, kind, **more)
  assert vit_train(tmp_path / 'whole', asked) == 0
  said = capsys.readouterr().out
  assert f'teacher: ViT-Ti/16 of {teacher}, 8x8 pixels, 10 classes; kind {kind}' in said
  assert f'on {count} ' in said
  until(2, tmp_path / 'whole', tmp_path / 'run')
  assert vit_train(tmp_path / 'run', asked) == 0
  assert 'resumes at step 2' in capsys.readouterr().out
  assert contents(tmp_path / 'run/model') == contents(tmp_path / 'whole/model')
  assert rows_of(tmp_path / 'run') == rows_of(tmp_path / 'whole')
  plan = plan_of(asked)
  states = [saved(plan, tmp_path / name) for name in ('run', 'whole')]
  assert_same_bits(*states)
  params = {name for name in states[0] if name.startswith('params/')}
  assert ('params/projection/kernel' in params) == (kind == 'features')
  delivered = flat(bundle.read(tmp_path / 'run').params)
  assert params - {f'params/{name}' for name in delivered} <= {
    'params/projection/kernel',
    'params/projection/bias',
  }
  for name, values in delivered.items():
    np.testing.assert_array_equal(values, states[0][f'ema/{name}'])
  # Of the teacher nothing is saved: neither by name nor by size.
  step = tmp_path / 'whole/checkpoints/4'
  assert 'projection' in (step / 'state/_METADATA').read_text() or kind != 'features'
  assert b'teacher' not in b''.join(contents(step / 'state').values())
  size = sum(len(data) for data in contents(step).values())
  assert size < sum(leaf.nbytes for leaf in flat(plan.task.fixed).values())


def test_a_pretrained_student_learns_features_and_is_used_without_the_projection(
  teacher, tmp_path, capsys
):
  sizes = {name.removeprefix('model.'): value for name, value in TINY.items() if 'model.' in name}
  model = vit_jax.build('ViT-Ti/16', num_classes=10, pool='gap', **sizes)
  params = drawn(shapes(model, (8, 8)), 0.1)
  looks = bundle.Preprocess('resize', (8, 8))
  started = written(tmp_path / 'start', bundle.Bundle(model, params, NAMES, looks, 'ViT-Ti/16'))
  asked = fields(teacher, 'features', pretrained=str(started), data__test='test')
  plan = plan_of(asked)
  first = flat(jax.device_get(train.placed_state(plan).params))
  np.testing.assert_array_equal(first['embed/kernel'], params['embed']['kernel'])
  assert not first['head/kernel'].any() and first['projection/kernel'].shape == (16, 128)
  assert first['projection/kernel'].std() > 0.1
  assert vit_train(tmp_path / 'run', asked) == 0
  assert not any('projection' in name for name in flat(bundle.read(tmp_path / 'run').params))
  capsys.readouterr()
  assert vit.main(['data', 'save', 'digits', str(tmp_path / 'images'), '--count', '2']) == 0
  assert vit.main(['predict', str(tmp_path / 'run'), str(tmp_path / 'images')]) == 0
  assert vit.main(['evaluate', str(tmp_path / 'run')]) == 0
  result = json.loads((tmp_path / 'run/evaluation.json').read_text())
  test = [row for row in rows_of(tmp_path / 'run') if 'test/accuracy' in row]
  assert f'{test[-1]["test/accuracy"]:.4f}' in f'{result["accuracy"]:.4f}'


@pytest.mark.quick
def test_a_run_does_not_resume_with_another_teacher_of_the_same_name(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(train, 'train', lambda *_, **__: True)
  path, source = written(tmp_path / 'teacher'), make()
  assert vit_train(tmp_path / 'run', fields(path)) == 0
  before = contents(tmp_path / 'run')
  source.params['head']['bias'][3] += 1e-3
  written(path, source)
  assert vit_train(tmp_path / 'run', fields(path)) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'another teacher, whose arrays differ' in line
  assert contents(tmp_path / 'run') == before
  written(path)
  assert vit_train(tmp_path / 'run', fields(path)) == 0


@pytest.mark.quick
def test_a_digest_tells_values_names_and_shapes():
  tree = {'a': np.arange(6, dtype=np.float32), 'b': {'c': np.float32(1)}}
  assert checkpoint.tree_crc(tree) == checkpoint.tree_crc(
    jax.tree.map(jnp.asarray, dict(reversed(tree.items())))
  )
  others = [tree | {'a': tree['a'].reshape(2, 3)}, tree | {'a': tree['a'] + 1e-6}]
  others += [{'d': tree['a'], 'b': tree['b']}, tree | {'a': np.arange(6, dtype=np.int32)}]
  assert checkpoint.tree_crc(tree) not in [checkpoint.tree_crc(other) for other in others]


# Bad input


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """Paths of what cannot teach everything, by name."""
  folder = tmp_path_factory.mktemp('sources')
  nameless = make()
  kinds = {
    'fine': nameless,
    'sigmoid': make(scores='sigmoid'),
    'no head': make(classes=()),
    'patches': make(pool='none'),
    'letters': make(classes=tuple('abcdefghijk')),
    'too few': make(classes=NAMES[:9]),
  }
  return {name: written(folder / name.replace(' ', '_'), source) for name, source in kinds.items()}


WRONG = {
  'no such checkpoint': ('nowhere', {}, ['nowhere']),
  'an unknown kind': ('fine', {'kind': 'logit'}, ["'logit'", 'did you mean logits']),
  'a weight above 1': ('fine', {'weight': 1.5}, ['teacher.weight is 1.5', '[0, 1]']),
  'a weight below 0': ('fine', {'weight': -0.1}, ['teacher.weight is -0.1', '[0, 1]']),
  'a temperature of 0': ('fine', {'temperature': 0.0}, ['teacher.temperature is 0', 'positive']),
  'a temperature below 0': ('fine', {'temperature': -1.0}, ['teacher.temperature is -1']),
  'no distillation head': ('fine', {'kind': 'token'}, ["model.distillation='head'"]),
  'sigmoid scores': ('sigmoid', {}, ['sigmoid scores', "'features'"]),
  'sigmoid scores, hard': ('sigmoid', {'kind': 'hard'}, ['sigmoid scores', "'features'"]),
  'a sigmoid student': ('fine', {'objective.loss': 'sigmoid'}, ['sigmoid', "'features'"]),
  'no head': ('no head', {}, ['no head', "'features'"]),
  'patches': ('patches', {'kind': 'features'}, ["pool 'none'"]),
  'patches for logits': ('patches', {}, ["pool 'none'"]),
  'other classes': ('letters', {}, ['letters', 'not among', '0, 1, 2']),
  'too few classes': ('too few', {}, ['10 classes', 'the model 9']),
  'a task that names none': ('fine', {'task': 'tests.test_distil:nameless'}, ["'images'"]),
}


def nameless(config, source, start):
  """A task that names nothing on the way to its loss."""
  task = plans.classification(config, source, start)
  return dataclasses.replace(task, loss=lambda *args: (*task.loss(*args)[:2], {}))


@pytest.mark.quick
@pytest.mark.parametrize('case', WRONG)
def test_bad_input_is_one_line_and_no_folder(case, sources, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(train, 'train', lambda *_, **__: pytest.fail('not refused'))
  name, more, messages = WRONG[case]
  teacher = {f if '.' in f or f == 'task' else f'teacher.{f}': value for f, value in more.items()}
  asked = fields(sources.get(name, name)) | teacher
  assert vit_train(tmp_path / 'run', asked) == 2
  err = capsys.readouterr().err
  assert err.startswith('vit train: ') and err.count('\n') == 1 and 'label_map' not in err
  assert [part for part in messages if part not in err] == []
  assert not (tmp_path / 'run').exists()


@pytest.mark.quick
def test_features_need_no_head_no_names_and_no_softmax(sources):
  for name in ('no head', 'sigmoid', 'letters'):
    assert distil.read_teacher(sources[name], NAMES, kind='features').classes is None


# docs/teacher.md

PAGE = ROOT / 'docs/teacher.md'


def test_the_lines_of_the_page_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  light = {'model.depth': 1, 'optimizer.name': 'sgd', 'data.validation': '', 'data.test': ''}
  monkeypatch.setitem(test_docs.FROM_NOTHING, 'digits', test_docs.TINY | light)
  lines = [words for block in blocks(PAGE, '') for words in lines_of(block)]
  local = [words for words in lines if '--config=digits' in words]
  assert len(local) == 4
  assert ran(local, {}, capsys)
  for words in lines:
    config.load(
      words[1].removeprefix('--config='),
      [word.removeprefix('--config.') for word in words if word.startswith('--config.')],
    )


@pytest.mark.quick
def test_the_page_has_every_kind_and_every_field():
  assert [coded(row[0]) for row in table('kind', PAGE)] == [[kind] for kind in distil.KINDS]
  documented = [name for row in table('field', PAGE) for name in coded(row[0])]
  assert documented == [f'config.teacher.{name}' for name in config.default().teacher]


def test_a_teacher_of_other_channels_is_refused():
  grey = linear(looks=dict(mean=(0.5,), std=(0.5,)))
  with pytest.raises(ValueError, match='images of 3 channels, the teacher 1'):
    distil.distil(student_task(), distil.Teacher(grey), **HALVES)
