"""Configs: every field is read, every mistake is named, the papers' settings are within reach."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections.config_dict import ConfigDict

import vit_jax
from tests.conftest import drawn, flat, forward, shapes
from vit_jax import bundle, config, models, optim
from vit_jax import plan as plans
from vit_jax.models import mixer, resnet, vit
from vit_jax.tasks import classify, distil, lejepa, views

DEFAULTS = {field: value for field, (value, _) in config.flat(config.default()).items()}
FIELDS = list(DEFAULTS)
DURATIONS = [field for field, value in DEFAULTS.items() if config.is_duration(value)]


def load(*overrides, spec='digits'):
  return config.load(spec, overrides)


def refused(*overrides, spec='digits'):
  """The one line that a mistake gives."""
  with pytest.raises(ValueError) as error:
    load(*overrides, spec=spec)
  assert '\n' not in str(error.value)
  return str(error.value)


# Fields


FAMILIES = (vit.ViT, mixer.Mixer, resnet.ResNet)
PASSED_ON = {
  'model': {'name', *(field for family in FAMILIES for field in models.field_types(family))}
  - {'num_classes'},
  'schedule': {*inspect.signature(optim.make_schedule).parameters} - {'total'},
  'optimizer': {*inspect.signature(optim.make_optimizer).parameters}
  - {'schedule', 'rates', 'span', 'params'},
  'freeze': {*inspect.signature(optim.make_frozen).parameters} - {'params'},
  'objective': {*inspect.signature(classify.make_loss).parameters, 'scores'}
  - {'apply', 'mean', 'std', 'output'},
  'teacher': {*inspect.signature(distil.distil).parameters, 'checkpoint'}
  - {'task', 'teacher', 'mean', 'std'},
  'lejepa': {*inspect.signature(lejepa.lejepa).parameters} - {'encoder', 'columns'},
  'views': {*inspect.signature(views.crops).parameters} - {'image_size', 'channels', 'antialias'},
}


@pytest.mark.quick
@pytest.mark.parametrize('section', PASSED_ON)
def test_a_section_has_exactly_the_fields_of_what_is_made_from_it(section):
  fields = {name.partition('.')[2] for name in FIELDS if name.startswith(f'{section}.')}
  assert fields == PASSED_ON[section]


@pytest.mark.quick
@pytest.mark.parametrize('field', [f for f in FIELDS if f.partition('.')[0] not in PASSED_ON])
def test_every_other_field_is_read(field):
  section, _, name = field.rpartition('.')
  read = re.compile(rf'\b{section or "config"}\.{name}\b')
  package = pathlib.Path(vit_jax.__file__).parent
  sources = [path for path in package.rglob('*.py') if path.parent != config.SHIPPED]
  assert any(read.search(path.read_text()) for path in sources)


@pytest.mark.quick
@pytest.mark.parametrize('name', ['default', 'digits'])  # tests/test_recipes.py has all the others
def test_a_shipped_config_has_every_field(name):
  loaded = load(spec=name)
  assert list(config.flat(ConfigDict(loaded.to_dict()))) == FIELDS
  with pytest.raises(AttributeError):
    loaded.seed = 1  # immutable


@pytest.mark.quick
def test_the_duration_of_the_run_is_read_in_any_unit():
  epoch = 1259 / 64
  run = ('batch_size=64', 'schedule.warmup=50%', 'schedule.learning_rate=2e-3')
  for text, steps in {'7': 7, '7 steps': 7, '3 epochs': round(3 * epoch)}.items():
    plan = plans.make_plan(load(*run, f'duration={text}'))
    assert plan.total == steps
    assert float(plan.schedule(round(steps / 2))) == pytest.approx(2e-3, rel=1e-6)


# Overrides


@pytest.mark.quick
@pytest.mark.parametrize(
  'override, field, value',
  [
    ('model.width=192', 'model.width', 192),
    ('model.width=None', 'model.width', None),
    ('schedule.learning_rate=3e-4', 'schedule.learning_rate', 3e-4),
    ('schedule.learning_rate=1', 'schedule.learning_rate', 1.0),
    ('image_size=16', 'image_size', (16, 16)),
    ('image_size=16,24', 'image_size', (16, 24)),
    ('image_size=[16, 24]', 'image_size', (16, 24)),
    ('model.patch=(2, 4)', 'model.patch', (2, 4)),
    ('model.patch=4', 'model.patch', (4, 4)),
    ('model.stem=()', 'model.stem', ()),
    ('model.blocks=3,4,6,3', 'model.blocks', (3, 4, 6, 3)),
    ('optimizer.nesterov=true', 'optimizer.nesterov', True),
    ('duration=100', 'duration', 100),
    ('duration=2.5 epochs', 'duration', '2.5 epochs'),
    ('evaluation.every=5%', 'evaluation.every', '5%'),
    ("schedule.boundaries=('50%', 9)", 'schedule.boundaries', ('50%', 9)),
    ('data.augment=resize(8) | flip', 'data.augment', 'resize(8) | flip'),
    ('data.test=', 'data.test', ''),
    ('data.preprocess=resize(height=8, width=8)', 'data.preprocess', 'resize(height=8, width=8)'),
  ],
)
def test_an_override_replaces_a_field_by_a_value_of_its_type(override, field, value):
  loaded = load(override)
  actual = config.flat(ConfigDict(loaded.to_dict()))[field][0]
  assert actual == value
  assert type(actual) is type(value)


@pytest.mark.quick
@pytest.mark.parametrize(
  'override, nearest',
  [
    ('modle.width=3', 'model.width'),
    ('model.widht=3', 'model.width'),
    ('learning_rate=1e-3', 'schedule.learning_rate'),
    ('optimizer.weight_deacy=0', 'optimizer.weight_decay'),
    ('bacth_size=3', 'batch_size'),
    ('dropout=0.1', 'model.dropout'),
  ],
)
def test_an_unknown_field_is_an_error_with_the_nearest(override, nearest):
  field = override.partition('=')[0]
  assert refused(override) == f'unknown field {field!r}; did you mean {nearest!r}?'


@pytest.mark.quick
@pytest.mark.parametrize(
  'override, wanted',
  [
    ('model.width=wide', 'int'),
    ('model.width=1.5', 'int'),
    ('batch_size=1e3', 'int'),
    ('batch_size=true', 'int'),
    ('seed=none', 'int'),
    ('schedule.learning_rate=nan', 'float'),
    ('schedule.learning_rate=1e', 'float'),
    ('ema=false', 'float'),
    ('optimizer.nesterov=1', 'bool'),
    ('image_size=8,8,8', 'tuple of 2'),
    ('image_size=8.5', 'tuple of 2'),
    ('data.mean=0.5', 'tuple of 3'),
    ('data.mean=0.5,0.5', 'tuple of 3'),
    ('data.source=3', 'str'),
    ('schedule.boundaries=50%', 'tuple'),
  ],
)
def test_a_value_of_another_type_is_an_error_that_shows_it_and_what_was_wanted(override, wanted):
  field = override.partition('=')[0]
  line = refused(override)
  assert line.startswith(f'{field} is ')
  assert wanted in line.partition(', not ')[2]


@pytest.mark.quick
@pytest.mark.parametrize('field', DURATIONS)
def test_a_malformed_duration_is_an_error_that_names_its_field(field):
  line = refused(f'{field}=soon')
  assert line.startswith(f"{field} 'soon' is not a duration")


OPEN = {'data.mean', 'data.std', 'optimizer.layer_decay', 'teacher.temperature'}  # refuse the min


@pytest.mark.quick
@pytest.mark.parametrize('field', config.RANGES)
def test_a_value_out_of_its_range_is_an_error_that_shows_the_range(field):
  low, high = config.RANGES[field]
  assert f'{field} is ' in refused(f'{field}={low - 1}')
  assert f'must be at least {low}' in refused(f'{field}={low - 1}')
  assert f'below {high}' in refused(f'{field}={high}')
  if field not in OPEN:
    load(f'{field}={low}')


@pytest.mark.quick
def test_a_section_or_a_word_without_a_value_is_an_error():
  assert refused('model=3') == "'model' is a section: set its fields, model.NAME"
  assert refused('batch_size') == "'batch_size' is not FIELD=VALUE"


@pytest.mark.parametrize(
  'override',
  [
    'image_size=(8, "a")',
    'data.mean=("a", "b", "c")',
    'data.std=(0, 0, 0)',
    'optimizer.weight_decay=-1',
    'optimizer.momentum_dtype=float99',
    'model.registers=-1',
    'model.unroll=-1',
    'schedule.learning_rate=-1',
  ],
)
def test_a_value_that_no_run_can_use_is_refused_before_anything_is_computed(override):
  with pytest.raises(ValueError, match=override.partition('=')[0].rpartition('.')[2]):
    plans.make_plan(load(override))


HYBRID = ('model.name=R+ViT-Ti/16', 'model.patch=8', 'model.depth=1', 'model.mlp_dim=8')


@pytest.mark.quick
@pytest.mark.parametrize(
  'overrides, fields',
  [
    ((*HYBRID, 'model.stem_width=32'), dict(stem=(), stem_width=32)),
    ((*HYBRID, 'model.stem=(1,)', 'model.patch=16'), dict(stem=(1,), patch=(16, 16))),
    (('model.name=Mixer-S/16', 'model.patch=4', 'model.tokens_dim=5'), dict(tokens_dim=5)),
    (
      ('model.name=BiT-R50x1', 'model.blocks=1,2', 'model.width_factor=2', 'model.patch=None'),
      dict(blocks=(1, 2), width_factor=2, numerics='bit'),
    ),
  ],
  ids=str,
)
def test_a_model_of_every_family_is_within_reach_of_a_config(overrides, fields):
  plain = [f'model.{field}=None' for field in ('width', 'depth', 'heads', 'mlp_dim', 'pool')]
  unset = [f'model.{f}=None' for f in ('patch', 'dropout', 'drop_path', 'positions')]
  model = plans.make_plan(
    load(*plain, *unset, 'image_size=64', 'data.augment=resize', *overrides)
  ).task.model
  assert {field: getattr(model, field) for field in fields} == fields


@pytest.mark.parametrize('field', ['evaluation.every', 'checkpoint.every'])
def test_every_epoch_is_not_never_where_a_batch_holds_nearly_one(field):
  plan = plans.make_plan(load('batch_size=1256', 'duration=100', f'{field}=1 epoch'))
  assert getattr(plan, field.replace('evaluation.', 'evaluate_').replace('.', '_')) > 0


# Files


RECIPE = """from vit_jax.configs import default

def get_config({parameters}):
  config = default.get_config()
  {line}
  return config
"""


def written(path, line='pass', parameters=''):
  path.write_text(RECIPE.format(line=line, parameters=parameters))
  return str(path)


@pytest.mark.quick
@pytest.mark.parametrize(
  'line, message',
  [
    ('config.batch_size = 1 / 0', 'ZeroDivisionError: division by zero'),
    ('config.batch_size = undefined', "NameError: name 'undefined' is not defined"),
    ('config.optimizer.lr.warmup = 3', 'AttributeError'),
    ('raise ValueError("two\\nlines")', 'ValueError: two lines'),
  ],
)
def test_a_mistake_in_a_config_is_reported_with_its_line(tmp_path, line, message):
  spec = written(tmp_path / 'mine.py', line)
  assert refused(spec=spec).startswith(f'{spec}:5: {message}')


def test_a_mistake_in_a_config_of_a_relative_path_is_reported_with_its_line(tmp_path, monkeypatch):
  written(tmp_path / 'mine.py', 'config.batch_size = 1 / 0')
  monkeypatch.chdir(tmp_path)
  assert refused(spec='mine.py').startswith('mine.py:5: ZeroDivisionError')


@pytest.mark.quick
def test_a_file_that_is_no_config_is_reported_in_one_line(tmp_path):
  broken, empty, wrong = (tmp_path / name for name in ('broken.py', 'empty.py', 'wrong.py'))
  broken.write_text('x = (\ny = 3\n')
  assert re.search(r'broken\.py.*SyntaxError.*line 1', refused(spec=str(broken)))
  empty.write_text('')
  assert re.search(r'empty\.py.*get_config', refused(spec=str(empty)))
  wrong.write_text('def get_config():\n  return {}\n')
  assert refused(spec=str(wrong)) == f'{wrong}: get_config returned dict, not a ConfigDict'


@pytest.mark.quick
@pytest.mark.parametrize(
  'line, message',
  [
    ('config.modle = 3', "unknown field 'modle'; did you mean"),
    ('config.model.widht = 3', "unknown field 'model.widht'; did you mean 'model.width'?"),
    ('del config.model.width', "field 'model.width' is missing"),
    ('config.batch_size = "64"', "batch_size is '64', not int"),
    ('config.data = 3', "'data' is a section"),
  ],
)
def test_a_config_with_wrong_fields_is_refused(tmp_path, line, message):
  assert message in refused(spec=written(tmp_path / 'mine.py', line))


@pytest.mark.quick
def test_everything_that_is_wrong_is_in_one_line(tmp_path):
  line = refused(
    spec=written(tmp_path / 'm.py', 'config.sed = 1; config.seed = "a"; del config.ema')
  )
  assert re.search("unknown field 'sed'.*'ema' is missing.*seed is 'a', not int", line)


@pytest.mark.quick
def test_a_path_comes_before_a_shipped_config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load(spec='digits').batch_size == load(spec='configs/digits.py').batch_size == 64
  (tmp_path / 'configs').mkdir()
  written(tmp_path / 'configs/digits.py', 'config.batch_size = 7')
  assert load(spec='configs/digits.py').batch_size == 7
  assert load(spec='digits').batch_size == 64
  with pytest.raises(FileNotFoundError, match=r"no config 'digitz'; shipped: .*digits, "):
    load(spec='digitz')


def test_a_file_that_is_named_as_a_shipped_config_is_a_mistake_that_is_reported(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'digits').write_text('notes')
  try:
    load(spec='digits')
  except ValueError as error:
    assert 'digits' in str(error)


@pytest.mark.quick
def test_what_follows_the_colon_is_the_argument_of_get_config(tmp_path):
  spec = written(tmp_path / 'mine.py', 'config.batch_size = int(arg or 3)', 'arg=None')
  assert load(spec=f'{spec}:12').batch_size == 12
  assert load(spec=spec).batch_size == 3
  assert "takes no argument, got 'big'" in refused(spec='digits:big')


# The papers' settings


def kernels_decay(plan):
  """The update of kernels without a gradient, over the kernels, at the highest rate."""
  params = drawn(shapes(plan.task.model, plan.config.image_size))

  @jax.jit
  def update(params):
    state = plan.tx.init(params)
    state = jax.tree.map(lambda leaf: leaf + 10 if leaf.dtype == np.int32 else leaf, state)
    return plan.tx.update(jax.tree.map(jnp.zeros_like, params), state, params)[0]

  updates = update(params)
  name = 'encoder/blocks/mlp/up/kernel'
  return np.asarray(flat(updates)[name]) / flat(params)[name]


MODEL = ('model.width=16', 'model.depth=1', 'model.heads=2', 'model.mlp_dim=16')
MODEL += ('model.drop_path=0', 'model.dropout=0', 'model.dtype=float32')


def test_the_papers_pre_training_is_within_reach_of_a_config():
  plan = plans.make_plan(
    load(
      *MODEL,
      'batch_size=1024',
      'duration=100 steps',
      'optimizer.name=adam',
      'optimizer.weight_decay=0.1',
      'schedule.name=linear',
      'schedule.learning_rate=1e-3',
      'schedule.warmup=10 steps',
      'schedule.end=1e-5',
      'objective.smoothing=0.1',
      'evaluation.every=5 steps',
      'evaluation.patience=20 steps',
      'image_size=8',
    )
  )
  assert (plan.config.batch_size, plan.patience, plan.evaluate_every) == (1024, 20, 5)
  rates = [float(plan.schedule(step)) for step in (0, 10, 55, 100)]
  np.testing.assert_allclose(rates, [0, 1e-3, 5.05e-4, 1e-5], rtol=1e-5, atol=1e-9)
  np.testing.assert_allclose(kernels_decay(plan), -1e-3 * 0.1, rtol=1e-5)
  batch = {
    'image': np.zeros((2, 8, 8, 3), np.uint8),
    'label': np.array([0, 1]),
    'mask': np.ones(2, np.float32),
  }
  params = drawn(shapes(plan.task.model, (8, 8)))
  images = bundle.normalize(batch['image'], (0.5,) * 3, (0.5,) * 3)
  logits, _ = forward(plan.task.model, params, images)
  loss, *_ = jax.jit(plan.task.loss)(params, batch, jax.random.key(0), {})
  smooth = optax.smooth_labels(jax.nn.one_hot(batch['label'], 10), 0.1)
  expected = optax.softmax_cross_entropy(logits, smooth).sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_papers_fine_tuning_is_within_reach_of_a_config():
  plan = plans.make_plan(
    load(
      *MODEL,
      'batch_size=512',
      'duration=100 steps',
      'optimizer.name=sgd',
      'optimizer.momentum=0.9',
      'optimizer.momentum_dtype=bfloat16',
      'optimizer.weight_decay=0',
      'optimizer.clip=1',
      'schedule.name=cosine',
      'schedule.learning_rate=0.03',
      'schedule.warmup=10 steps',
      'objective.smoothing=0',
    )
  )
  assert plan.config.batch_size == 512
  rates = [float(plan.schedule(step)) for step in (0, 10, 55, 100)]
  np.testing.assert_allclose(rates, [0, 0.03, 0.015, 0], rtol=1e-5, atol=1e-9)
  assert not kernels_decay(plan).any()
  params = drawn(shapes(plan.task.model, (8, 8)))
  ours = jax.jit(lambda p: plan.tx.update(p, plan.tx.init(p), p)[1])(params)
  moments = [np.ravel(leaf) for leaf in jax.tree.leaves(ours) if leaf.dtype == jnp.bfloat16]
  norm = np.linalg.norm(np.float32(np.concatenate(moments)))
  assert norm == pytest.approx(1, rel=0.01)  # clipped, in 8 bits


@pytest.mark.quick
@pytest.mark.parametrize(
  'overrides, message',
  [
    (('duration=0',), 'less than a step'),
    (('batch_size=64', 'accumulate=3'), 'does not divide into accumulate=3'),
    (('image_size=9',), '9x9'),
    (('data.preprocess=central_crop(4)',), '4x4'),
    (('data.preprocess=nope',), 'unknown transform'),
    (('optimizer.name=adamm',), 'unknown optimizer'),
    (('optimizer.gsam=0.5',), 'gsam is 0.5, needs sam above 0'),
    (('schedule.name=cosin',), 'unknown schedule'),
    (('objective.loss=hinge',), 'unknown loss'),
    (('model.name=ViT-B/17',), 'unknown model'),
    (('evaluation.metric=acuracy',), 'accuracy'),
    (('evaluation.metric=ema_loss',), 'ema_loss'),
    (('schedule.warmup=90%', 'schedule.cooldown=20%'), 'exceed the run'),
    (('data.source=digit',), 'unknown dataset'),
    (('data.train=trian',), 'no split'),
    (('system.data=3',), 'does not fit'),
    (('model.drop_path=1.0',), 'drop_path'),
    (('data.validation=', 'evaluation.patience=3'), 'patience'),
  ],
)
def test_a_plan_that_cannot_run_is_refused(overrides, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    plans.make_plan(load(*overrides))
  assert '\n' not in str(error.value)
