"""Every recipe says what it is, is read to its last field, and trains on one device and eight."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from ml_collections.config_dict import ConfigDict, FrozenConfigDict
from PIL import Image

import vit_jax
from tests.conftest import drawn, flat, shapes
from vit_jax import bundle, config, models, sharding, train
from vit_jax import plan as plans
from vit_jax.configs import _data
from vit_jax.images import transforms
from vit_jax.models import mixer, resnet
from vit_jax.sources import presets

ROOT = pathlib.Path(vit_jax.__file__).parents[1]
FILES = {path.stem: path for path in config.SHIPPED.glob('[!_]*.py') if path.stem != 'default'}
HEADERS = {name: path.read_text().split('"""')[1] for name, path in FILES.items()}


def specs_of(text):
  """Every --config of the commands in a text."""
  return re.findall(r'--config=([^\s`]+)', text)


SPECS = [spec for header in HEADERS.values() for spec in specs_of(header)]
PARTS = ('Hardware', 'Time', 'Result', 'Measured')


# What a recipe says


@pytest.mark.quick
@pytest.mark.parametrize('name', FILES)
def test_a_recipe_opens_with_its_command_hardware_time_result_and_what_was_measured(name):
  parts = dict(re.findall(r'^(\w+): (.+(?:\n  .+)*)$', HEADERS[name], re.MULTILINE))
  assert tuple(parts) == PARTS
  assert re.match(r'not yet run\.|at commit [0-9a-f]{7,40}\.', parts['Measured'])
  for spec in specs_of(HEADERS[name]):
    assert config.find(spec)[0].stem == name
  lines = HEADERS[name].splitlines()
  commands = [line for line in lines if re.match(r'(vit train|python -m vit_jax.main) --c', line)]
  assert commands and all('--workdir=' in line for line in commands)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder that commands run in: photos, and arrays with one label and with several."""
  root = tmp_path_factory.mktemp('recipes')
  rng = np.random.default_rng(0)
  for label, name in enumerate(('rose', 'tulip', 'lily')):
    (root / 'photos' / name).mkdir(parents=True)
    for index in range(24):
      pixels = rng.integers(0, 200, (20, 24, 3), dtype=np.uint8)
      Image.fromarray(pixels + np.uint8(20 * label)).save(root / 'photos' / name / f'{index}.png')
  images = rng.integers(0, 256, (60, 20, 24, 3), dtype=np.uint8)
  labels = np.arange(60) % 5
  several = np.eye(5, dtype=np.uint8)[labels] | np.eye(5, dtype=np.uint8)[labels[::-1]]
  for name, array in (('one', labels), ('several', several)):
    arrays = dict(x_train=images, y_train=array, x_val=images[:8], y_val=array[:8])
    np.savez(root / f'{name}.npz', **arrays, x_test=images[8:16], y_test=array[8:16])
  return root


@pytest.fixture(autouse=True)
def needed(folder, monkeypatch):
  monkeypatch.chdir(folder)
  monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))


@pytest.mark.quick
@pytest.mark.parametrize('spec', SPECS)
def test_a_command_of_a_recipe_is_a_config(spec):
  loaded = config.load(spec)
  assert config.flat(ConfigDict(loaded.to_dict())).keys() == config.flat(config.default()).keys()


# Training

SMALL = {
  'image_size': 16,
  'batch_size': 16,
  'duration': 2,
  'schedule.learning_rate': 0.01,  # one for all, so that recipes share compiled programs
  'schedule.warmup': 0,
  'evaluation.every': 1,
  'evaluation.patience': 0,
  'checkpoint.every': 1,
}
VIT = dict(patch=8, width=16, depth=1, heads=2, mlp_dim=16)
SIZES = {  # of a model so small that compiling is the whole cost
  mixer.Mixer: dict(patch=8, width=16, depth=1, mlp_dim=16, tokens_dim=8),
  resnet.ResNet: dict(blocks=(1,)),
}


def small_fields(name):
  """Fields that make any model of that family tiny."""
  variant = models.canonical(name)
  sizes = SIZES.get(models.family(variant), VIT)
  hybrid = models.VARIANTS[variant].get('stem') is not None
  return sizes | dict(stem=(), stem_width=32) if hybrid else sizes


@functools.cache
def checkpoint(folder, name):
  """A tiny bundle of a variant, with seven classes."""
  model = models.build(name, num_classes=7, **small_fields(name))
  path = folder / 'checkpoints' / name.replace('/', '_')
  looks = bundle.Preprocess('resize', (16, 16))
  params = drawn(shapes(model, looks.size), 0.1)
  bundle.write(path, bundle.Bundle(model, params, tuple('abcdefg'), looks, name))
  return path


def reduced(spec, folder, **more):
  """A recipe with tiny data of the same form, a tiny model and few steps."""
  full = config.load(spec)
  fields = SMALL | {'accumulate': min(full.accumulate, 2)}
  if full.data.source == 'digits':
    fields['image_size'] = 8
  else:
    form = 'several' if full.data.source == 'imagenet21k' else 'one'
    fields['data.source'] = f'arrays:{folder / form}.npz'
  if full.pretrained:
    name = full.model.name if full.model.name not in models.VITS else ''
    name = name or 'ViT-S/16'  # one for all, so that they share a program, too
    fields |= {'pretrained': checkpoint(folder, name), 'model.name': name, 'new_head': True}
  else:
    fields |= {f'model.{field}': size for field, size in small_fields(full.model.name).items()}
    if full.model.representation:
      fields['model.representation'] = 16
  if full.model.drop_path:
    fields['model.drop_path'] = 0.1
  if full.pretrained and full.model.width:  # the size that the checkpoint is to have
    fields |= {f'model.{field}': VIT[field] for field in ('patch', 'width', 'depth')}
  if full.task == 'mae':
    fields |= {'mae.decoder_depth': 1, 'mae.decoder_width': 16, 'mae.decoder_heads': 2}
  if full.task in ('dino', 'lejepa'):
    fields |= {'views.local_count': 1, 'views.local_size': 8}
  if full.task == 'lejepa':
    fields |= {'lejepa.hidden': 8, 'lejepa.outputs': 4, 'lejepa.directions': 8}
  if full.task == 'dino':
    fields |= {'dino.prototypes': 16, 'dino.hidden': 8, 'dino.constant_prototypes': 0}
  if full.pretrained and full.model.layer_scale:  # the tiny checkpoint has none
    fields |= {'model.layer_scale': None, 'model.cls_position': None}
  fields |= more
  return config.load(spec, [f'{field}={value}' for field, value in fields.items()])


def on(plan, count):
  return dataclasses.replace(
    plan, mesh=sharding.make_mesh(count, 1, 1, devices=jax.devices()[:count])
  )


PROGRAMS, STARTS = {}, {}


def program(plan):
  """The training step and the first state; plans that compute the same share what is compiled.

  The first state is the same on every mesh (test_sharding.py).
  """
  data, whole = plan.config.data, plan.config.to_dict()
  sections = [whole[name] for name in ('objective', 'optimizer', 'schedule', 'freeze')]
  fields = models.fields(plan.task.model)
  shape = (plan.config.task, plan.config.accumulate, plan.config.image_size)
  pixels = (data.mean, data.std, plan.config.pretrained)
  start = json.dumps([fields, sections, shape, pixels], default=str)
  if start not in STARTS:
    STARTS[start] = jax.device_get(train.placed_state(plan))
  update = PROGRAMS.setdefault((start, plan.mesh.size), train.updater(plan))
  first = STARTS[start]
  shardings = jax.tree.map(lambda leaf: leaf.sharding, train.abstract_state(plan))
  return update, first, jax.device_put(first, shardings)


def trained(plan, folder):
  """The mean losses of two steps, and the names of what they changed."""
  update, first, state = program(plan)
  losses = []
  with plan.training_batches(0, plan.unreadable('train', print, folder)) as batches:
    for _ in range(2):
      state, measured = update(state, next(batches), {})
      assert measured['finite']
      losses.append(float(measured['sums']['loss'] / measured['sums']['count']))
  before, after = flat(first.params), flat(jax.device_get(state.params))
  return losses, {name for name in before if not np.array_equal(before[name], after[name])}


FIRST = {specs_of(header)[0] for header in HEADERS.values()}


@pytest.mark.parametrize('spec', SPECS)
def test_a_command_trains_and_for_the_first_of_a_recipe_eight_devices_compute_what_one_does(
  spec, folder
):
  plan = plans.make_plan(reduced(spec, folder))
  assert plan.total == 2
  losses, changed = trained(on(plan, 1), folder)
  assert np.isfinite(losses).all() and len(changed) > 2
  heads = ('head/kernel', 'prototypes/kernel', 'projector/out/kernel')
  assert any(name.endswith(heads) for name in changed)
  if spec in FIRST:
    on_eight, changed_on_eight = trained(on(plan, 8), folder)
    np.testing.assert_allclose(on_eight, losses, rtol=2e-4)  # float32 sums in another order
    assert changed_on_eight == changed


# Fields


class Read:
  """A config that notes which of its fields are read."""

  def __init__(self, config, fields, prefix=''):
    self.config, self.fields, self.prefix = config, fields, prefix

  def __getitem__(self, name):
    value = self.config[name]
    if isinstance(value, FrozenConfigDict):
      return Read(value, self.fields, f'{self.prefix}{name}.')
    self.fields.add(self.prefix + name)
    return value

  def __getattr__(self, name):
    return self[name] if name in self.config else getattr(self.config, name)

  def keys(self):
    return self.config.keys()

  def __iter__(self):
    return iter(self.config)

  def items(self):
    return [(name, self[name]) for name in self.config]


def test_a_run_reads_every_field_that_there_is(folder, tmp_path, monkeypatch):
  fields = set()
  frozen = plans.FrozenConfigDict
  monkeypatch.setattr(plans, 'FrozenConfigDict', lambda whole: Read(frozen(whole), fields))
  taught = {'teacher.checkpoint': checkpoint(folder, 'ViT-S/16'), 'teacher.kind': 'features'}
  plan = plans.make_plan(Read(reduced('finetune:B_16,cifar10', folder, **taught), fields))
  assert train.train(plan, tmp_path)
  asked = {'ema': 0.9, 'accumulate': 1, 'evaluation.knn': 'digits'}
  for task in plans.TASKS:
    plans.make_plan(Read(reduced('finetune:B_16,cifar10', folder, task=task, **asked), fields))
  unread = config.flat(config.default()).keys() - fields
  assert not unread


# Recipes that shall be what they are said to be


@pytest.mark.parametrize('side', [96, 224, 384])
@pytest.mark.parametrize(
  'spec', ['augreg:B_16,cifar10', 'augreg:R_Ti_16,cifar10', 'transfer:B_32,cifar100', 'default']
)
def test_the_crop_of_a_recipe_follows_the_image_size(spec, side):
  """resize(448) | random_crop showed 4.6 % of a photo at 96 pixels."""
  data = config.load(spec, [f'image_size=({side}, {side})']).data
  for line in (data.augment, data.preprocess):
    fraction = transforms.crop_fraction(
      transforms.compose(line, (side, side)), np.zeros((500, 700, 3), np.uint8)
    )
    assert 0.72 < fraction <= 1


def difference(spec, *overrides, of):
  """The fields in which one config differs from another, and their values."""
  ours, theirs = (
    {name: value for name, (value, _) in config.flat(ConfigDict(loaded.to_dict())).items()}
    for loaded in (config.load(spec, overrides), config.load(of))
  )
  return {name: value for name, value in ours.items() if value != theirs[name]}


@pytest.mark.quick
@pytest.mark.parametrize('dataset', ['cifar10', 'oxford_iiit_pet', 'imagenet2012', 'food101'])
def test_fine_tuning_has_the_published_steps(dataset):
  published = presets.PRESETS[dataset].steps
  for spec in (f'finetune:B_32,{dataset}', f'augreg:B_32,{dataset}'):
    loaded = config.load(spec)
    assert loaded.duration == f'{published or 10_000} steps'
    assert (loaded.batch_size, loaded.optimizer.weight_decay) == (512, 0)


@pytest.mark.quick
@pytest.mark.parametrize(
  ('method', 'batch', 'warmup'), [('mae', 256, '5%'), ('lejepa', 128, '5%'), ('dino', 64, '10%')]
)
def test_a_large_set_need_not_be_there_to_plan_for_it(method, batch, warmup):
  loaded = config.load(f'{method}:S/16,imagenet2012')
  assert (loaded.batch_size, loaded.schedule.warmup) == (batch, warmup)
  assert (loaded.data.train, loaded.data.validation) == ('train', 'validation')


@pytest.mark.quick
@pytest.mark.parametrize(
  'spec, size',
  [
    ('finetune:B_16,imagenet2012', 384),
    ('finetune:L_16,imagenet2012', 512),
    ('finetune:L_16,cifar10', 384),
    ('finetune:H_14,imagenet2012', 518),
    ('finetune:H_14,cifar100', 392),
    ('augreg:L_16,imagenet2012', 384),
    ('augreg:B_8,imagenet2012', 224),
    ('mixer:Mixer-L/16,cifar10', 224),
    ('deit3:H/14', 154),
  ],
)
def test_images_have_the_published_size(spec, size):
  loaded = config.load(spec)
  assert loaded.image_size == (size, size)
  models.check_size(models.build(loaded.model.name), loaded.image_size)


@pytest.mark.quick
@pytest.mark.parametrize(
  'level, mixup, randaug',
  [
    ('none', 0, ''),
    ('light1', 0, 'randaug(2, 0)'),
    ('light2', 0.2, 'randaug(2, 10)'),
    ('medium1', 0.2, 'randaug(2, 15)'),
    ('medium2', 0.5, 'randaug(2, 15)'),
    ('strong1', 0.5, 'randaug(2, 20)'),
    ('strong2', 0.8, 'randaug(2, 20)'),
  ],
)
def test_augregs_levels(level, mixup, randaug):
  for dataset in ('imagenet2012', 'imagenet21k'):
    loaded = config.load(f'augreg:pretrain,B/16,{dataset},{level}')
    assert loaded.objective.mixup == mixup
    assert loaded.data.augment.removeprefix('inception_crop | flip').strip(' |') == randaug


@pytest.mark.quick
@pytest.mark.parametrize('epochs, steps', [(90, 111_477), (150, 185_794), (300, 371_588)])
def test_the_baseline_takes_big_visions_steps(epochs, steps):
  from vit_jax import optim

  loaded = config.load(f'vit_s16_i1k:{epochs}')
  assert optim.steps(loaded.duration, epoch=1_268_355 / loaded.batch_size) == steps


@pytest.mark.quick
def test_every_task_of_vtab_is_a_recipe():
  tasks = [name for name in presets.PRESETS if name.startswith('vtab/')]
  for task in tasks:
    loaded = config.load(f'vtab:B_16,{task.removeprefix("vtab/")}')
    assert (loaded.data.source, loaded.data.test) == (task, '')
  assert len(tasks) == 19


@pytest.mark.quick
@pytest.mark.parametrize(
  'crop, line',
  [
    ('inception_crop', 'inception_crop | flip'),
    ('resmall_crop', "resize_small(scale=7/6, method='area') | random_crop | flip"),
    ('resize_crop', 'resize(scale=7/6) | random_crop | flip'),
  ],
)
def test_transfers_crops(crop, line):
  for dataset in ('cifar10', 'oxford_iiit_pet'):
    assert config.load(f'transfer:B_32,{dataset},{crop}').data.augment == line


@pytest.mark.quick
@pytest.mark.parametrize(
  ('model', 'side'), [('S/16', 96), ('S/14', 98), ('BiT-R50x1', 96), ('BiT-R50x1,runs/other', 96)]
)
def test_small_crops_are_whole_patches_of_about_96_pixels(folder, model, side):
  name, _, checkpoint = model.partition(',')
  for recipe in ('dino', 'lejepa'):
    spec = ','.join(filter(None, (f'{recipe}:{name}', 'folder:photos', checkpoint)))
    assert config.load(spec).views.local_size == (side, side)


@pytest.mark.quick
def test_a_small_set_of_ones_own_has_batches_and_a_rate_that_fit(folder):
  loaded = config.load('finetune:B_16,folder:photos')
  source = plans.sources.open_source('folder:photos', 'train')
  assert len(source) / 16 < loaded.batch_size <= len(source) / 8
  assert loaded.accumulate == 1 and loaded.duration.endswith(' epochs')
  assert loaded.schedule.learning_rate == pytest.approx(0.03 * loaded.batch_size / 512)
  assert (loaded.data.validation, loaded.data.test) == ('validation', '')
  schedule = config.load('dino:S/16,folder:photos,runs/other').schedule
  assert schedule.end == pytest.approx(schedule.learning_rate / 2000)
  several = config.load(f'pretrain:S/16,arrays:{folder}/several.npz')
  assert (several.objective.loss, several.model.head_bias) == ('sigmoid', -10)
  assert config.load(f'finetune:S_16,arrays:{folder}/several.npz').objective.loss == 'sigmoid'
  one = config.load('pretrain:S/16,folder:photos')
  assert (one.objective.loss, one.objective.smoothing) == ('softmax', 0.1)


@pytest.mark.quick
@pytest.mark.parametrize(
  'recipe', ['finetune:B_16,{}', 'augreg:S_16,{}', 'pretrain:S/16,{}', 'augreg:pretrain,S/16,{}']
)
def test_a_preset_that_a_recipe_has_no_numbers_for_is_looked_at_as_a_set_of_ones_own(
  recipe, folder, monkeypatch
):
  preset = presets.Preset(f'arrays:{folder}/one.npz', dict(train='train', validation='val'), 5)
  monkeypatch.setitem(presets.PRESETS, 'vtab/dtd', preset)
  loaded = config.load(recipe.format('vtab/dtd'))
  direct = config.load(recipe.format(preset.source))
  assert (loaded.batch_size, loaded.schedule) == (direct.batch_size, direct.schedule)
  assert (loaded.batch_size, loaded.schedule.warmup) == (4, '5%')


@pytest.mark.quick
@pytest.mark.parametrize(
  'spec',
  [
    'finetune:B_16,cifar10',
    'finetune:L_16,imagenet2012',
    'augreg:B_16,imagenet2012',
    'augreg:B_16,cifar100',
    'pretrain:B/16,imagenet21k',
    'augreg:pretrain,B/16,imagenet21k',
    'bit:imagenet21k',
    'transfer:B_32,oxford_iiit_pet',
  ],
)
def test_a_presets_options_change_nothing_of_its_recipe(spec, monkeypatch):
  monkeypatch.setattr(plans.sources, 'splits_of', None)  # nothing is opened
  source = re.split('[:,]', spec)[-1]
  assert difference(f'{spec}?data_dir=/x', of=spec) == {'data.source': f'{source}?data_dir=/x'}


@pytest.mark.quick
@pytest.mark.parametrize(
  'spec, said',
  [
    ('finetune', 'wants MODEL,DATASET'),
    ('finetune:B_16', 'wants MODEL,DATASET'),
    ('finetune:B_17,cifar10', "unknown model 'B_17'"),
    ('finetune:B_16,cifar11', 'did you mean'),
    ('finetune:B_16,folder:none', 'no such folder'),
    ('finetune:B_16,imagenet_v2', 'no images for training'),
    ('augreg', 'config augreg: wants FILE[,DATASET]'),
    ('deit3', 'config deit3: wants MODEL[,CHECKPOINT]'),
    ('augreg:Q_16,cifar10', 'unknown model'),
    ('augreg:H_14,cifar10', 'recommends no file of H_14'),
    ('augreg:pretrain,B/16', 'wants pretrain,MODEL,DATASET'),
    ('augreg:pretrain,B/16,imagenet2012,medium3', 'did you mean medium2'),
    ('augreg:pretrain,H/14,imagenet21k', 'wants a level for ViT-H/14 on imagenet21k'),
    ('augreg:pretrain,BiT-R50x1,imagenet2012', 'not BiT-R50x1'),
    ('transfer:B_32,food101', 'has no recipe for food101'),
    ('transfer:B_32,cifar10,centre_crop', 'unknown crop'),
    ('vtab:B_16,caltech', "unknown task 'caltech'; did you mean caltech101"),
    ('mixer:gpu9', 'wants nothing, gpu8, or MODEL,DATASET'),
    ('mixer:B_16,cifar10', 'is no Mixer'),
    ('bit', 'wants DATASET'),
    ('bit:imagenet2012,B_16', 'is no ResNet'),
    ('deit3:Ti/16', 'has no recipe for ViT-Ti/16'),
    ('vit_s16_i1k:91', 'wants 90, 150, 300 epochs'),
    ('food101:Q', 'unknown model'),
    ('digits:1', 'takes no argument'),
  ],
)
def test_a_wrong_argument_is_one_line(spec, said):
  with pytest.raises(ValueError) as error:
    config.load(spec)
  assert said in str(error.value) and '\n' not in str(error.value)


@pytest.mark.quick
@pytest.mark.parametrize(
  'argument, form, words',
  [
    ('B_16,cifar10', 'MODEL,DATASET', ('B_16', 'cifar10')),
    ('runs/a,b,folder:photos', 'MODEL,DATASET', ('runs/a,b', 'folder:photos')),
    ('B_16,folder:c,d,e', 'MODEL,DATASET', ('B_16', 'folder:c,d,e')),
    ('runs/a,b,folder:c,d,e', 'MODEL,DATASET', ('runs/a,b', 'folder:c,d,e')),
    ('B_32,csv:f,g.csv?label=kind', 'MODEL,DATASET[,CROP]', ('B_32', 'csv:f,g.csv?label=kind', '')),
    ('B_32,tfds:x?data_dir=runs/a,b,crop', 'A,B[,C]', ('B_32', 'tfds:x?data_dir=runs/a,b', 'crop')),
    ('folder:c,d,e', 'DATASET[,MODEL]', ('folder:c,d,e', '')),
    ('folder:photos,BiT-R50x1', 'DATASET[,MODEL]', ('folder:photos', 'BiT-R50x1')),
    ('folder:none,such', 'DATASET', None),
    ('runs/x,y,folder:photos', 'MODEL,DATASET', None),
    ('runs/a,b,', 'MODEL,DATASET', None),
    ('runs/a,b,h', 'MODEL,DATASET', None),  # runs/a,b and h, or runs/a and b,h
  ],
)
def test_a_comma_is_part_of_a_path_that_exists(argument, form, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('runs/a,b', 'c,d,e', 'photos', 'f,g.csv', 'b,h'):
    (tmp_path / name).mkdir(parents=True)
  if words:
    assert _data.words(argument, form, 'an example') == words
  else:
    with pytest.raises(ValueError, match=f'{form}, as in an example; got|rename one of them$'):
      _data.words(argument, form, 'an example')


@pytest.mark.quick
def test_a_run_is_fine_tuned_at_its_own_size(folder):
  run = folder / 'run'
  (run / 'checkpoints' / '400').mkdir(parents=True)
  (run / 'model.json').write_text('{"preprocess": {"size": [28, 56]}}')
  for start in (run, run / 'checkpoints' / '400'):
    assert config.load(f'finetune:{start},folder:photos').image_size == (28, 56)
  (run / 'model.json').write_text('{"preprocess": {"size": "28"}}')
  assert config.load(f'finetune:{run},folder:photos').image_size == (384, 384)


# Old command lines


@pytest.mark.quick
@pytest.mark.parametrize(
  'spec, today',
  [
    ('vit:b16,cifar10', 'finetune:B_16,cifar10'),
    ('vit:l32,imagenet2012', 'finetune:ViT-L/32,imagenet2012'),
    ('mixer_base16_cifar10', 'mixer:Mixer-B/16,cifar10'),
  ],
)
def test_an_old_recipe_is_one_of_today(spec, today, tmp_path):
  assert difference(spec, of=today) == {}
  name, _, argument = spec.partition(':')
  paths = [f'configs/{name}.py', f'vit_jax/configs/{name}.py']  # from any folder
  for path in (*paths, *(f'{ROOT}/{path}' for path in paths)):
    assert difference(f'{path}:{argument}' if argument else path, of=today) == {}


OVERRIDES = [
  ('batch=256', {'batch_size': 256}),
  ('batch_eval=256', {}),
  ('shuffle_buffer=100', {}),
  ('total_steps=700', {'duration': 700}),
  ('warmup_steps=5', {'schedule.warmup': 5}),
  ('base_lr=0.5', {'schedule.learning_rate': 0.5}),
  ('decay_type=linear', {'schedule.name': 'linear'}),
  ('accum_steps=2', {'accumulate': 2}),
  ('grad_norm_clip=3', {'optimizer.clip': 3.0}),
  ('optim_dtype=float32', {'optimizer.momentum_dtype': 'float32'}),
  ('eval_every=7', {'evaluation.every': 7}),
  ('checkpoint_every=8', {'checkpoint.every': 8}),
  ('progress_every=9', {'system.log_every': 9}),
  ('prefetch=3', {'system.prefetch': 3}),
  ('pp.crop=192', {'image_size': (192, 192)}),
  ('pp.resize=200', {'data.augment': 'resize(200) | random_crop | flip'}),
  ('pp.test=train', {'data.test': 'train'}),
  ('pp.train=train[:5%]', {'data.train': 'train[:5%]'}),
  ('pp.train=train[:98%]', {}),
  ('dataset=oxford_iiit_pet', {'data.source': 'oxford_iiit_pet'}),
  ('dataset=patch_camelyon', {'data.source': 'tfds:patch_camelyon', 'data.validation': ''}),
  ('dataset=photos', {'data.source': 'folder:photos'}),
  ('model.transformer.dropout_rate=0.1', {'model.dropout': 0.1}),
  ('model.transformer.attention_dropout_rate=0.1', {'model.attention_dropout': 0.1}),
]


@pytest.mark.quick
@pytest.mark.parametrize('override, expected', OVERRIDES, ids=[o for o, _ in OVERRIDES])
def test_an_old_field_is_one_of_today_and_says_which(override, expected, capsys):
  assert difference('vit:b16,cifar10', override, of='finetune:B_16,cifar10') == expected
  (line,) = capsys.readouterr().err.splitlines()
  old = override.partition('=')[0]
  assert line.startswith(f'--config.{old}')
  for field in expected:
    assert re.search(rf' is now .*--config\.{field}=', line)
  if not expected:
    assert 'no effect' in line or 'is now' in line


def test_every_old_field_is_tested():
  assert {override.partition('=')[0] for override, _ in OVERRIDES} == set(config.OLD)
  assert not set(config.OLD) & set(config.flat(config.default()))


@pytest.mark.quick
def test_the_lines_of_vision_transformers_readme_are_those_of_today():
  overrides = ['dataset=oxford_iiit_pet', 'pp.train=train[:90%]', 'base_lr=0.01']
  file = 'R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
  for name in ('R_Ti_16', file):
    spec = f'{ROOT}/vit_jax/configs/augreg.py:{name}'
    expected = {'schedule.learning_rate': 0.01}
    assert difference(spec, *overrides, of='augreg:R_Ti_16,oxford_iiit_pet') == expected
  folder = 'pretrained_dir=gs://mixer_models/imagenet1k'
  fields = difference('mixer_base16_cifar10', folder, of='mixer:Mixer-B/16,cifar10')
  assert fields == {'pretrained_dir': 'gs://mixer_models/imagenet1k'}


@pytest.mark.quick
def test_an_old_field_with_a_wrong_value_is_one_line(capsys):
  with pytest.raises(ValueError, match=r"schedule\.learning_rate is 'fast', not float"):
    config.load('vit:b16,cifar10', ['base_lr=fast'])
  with pytest.raises(ValueError, match="unknown field 'base_lrs'"):
    config.load('vit:b16,cifar10', ['base_lrs=1'])


# docs/recipes.md

DOCUMENT = (ROOT / 'docs' / 'recipes.md').read_text()


@pytest.mark.quick
@pytest.mark.parametrize('spec', dict.fromkeys(specs_of(DOCUMENT)))
def test_a_command_of_the_document_is_a_config(spec, folder):
  (folder / 'mine.py').write_text(re.search(r'```python\n(.*?)```', DOCUMENT, re.DOTALL)[1])
  if 'NAME' not in spec and 'ARGUMENT' not in spec:
    config.load(spec)


@pytest.mark.quick
def test_the_document_has_every_recipe_and_every_old_field():
  documented = {pathlib.Path(spec.partition(':')[0]).stem for spec in specs_of(DOCUMENT)}
  assert documented >= set(FILES)
  for old in config.OLD:
    assert f'`{old}`' in DOCUMENT


@pytest.mark.quick
def test_every_field_that_the_page_sets_is_one():
  documented = re.findall(r'`config\.([\w.]+=[^`]*)`', DOCUMENT)
  assert len(documented) >= 8
  assert [config.assign(config.default(), text) for text in documented] == [''] * len(documented)
