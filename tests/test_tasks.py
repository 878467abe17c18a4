"""Laws of any method through the loop: ours, and those of tests/methods, foreign to the library.

Each runs on eight devices, whole and interrupted, and on one.
"""

import ast
import functools
import io
import json
import pathlib
import tokenize

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import drawn
from tests.test_run import (
  assert_same_bits,
  cache,
  checkpoints_of,
  contents,
  on_one_device,
  rows_of,
  shared,
  until,
)
from vit_jax import __main__ as vit
from vit_jax import bundle, config, main, models, train
from vit_jax import plan as plans
from vit_jax.sources import open_splits

__all__ = ['cache']  # of this module too

FOREIGN = ('contrastive', 'lora')
METHODS = ('mae', 'dino', 'lejepa', *FOREIGN)
STEPS = 10
MODEL = {'patch': (4, 4), 'width': 16, 'depth': 1, 'heads': 2, 'mlp_dim': 32, 'pool': 'gap'}
MODEL |= {'unroll': 1, 'drop_path': 0.0}
FIELDS = {
  'batch_size': 32,
  'duration': f'{STEPS} steps',
  'data.test': '',
  'objective.smoothing': 0.0,
  # Smooth where a gradient is rounding alone, as of the bias of keys: Adam would make it a step.
  'optimizer.name': 'adamw',
  'optimizer.eps': 1e-3,
  'optimizer.clip': 0.0,
  'schedule.name': 'constant',
  'schedule.learning_rate': 1e-2,
  'schedule.warmup': '0 steps',
  'evaluation.every': '5 steps',
  'checkpoint.every': '100 steps',
  'checkpoint.keep_latest': STEPS,
  'system.log_every': '1 steps',
  'system.report': False,
}
OWN = {'dino': {'ema': 0.9, 'views.local_size': (4, 4), 'views.local_count': 1}}
OWN['dino'] |= {'dino.prototypes': 32, 'dino.hidden': 32, 'dino.bottleneck': 16}
OWN['dino'] |= {'dino.constant_prototypes': '2 steps', 'dino.temperature_warmup': '4 steps'}
PROBE = {'evaluation.knn_train': 'train[:200]', 'evaluation.knn_test': 'validation[:80]'}
OWN['dino'] |= {'evaluation.knn': 'digits', **PROBE}
OWN |= {'lora': {'new_head': False, 'schedule.learning_rate': 5e-2}}
OWN['lejepa'] = {'views.local_count': 1, 'views.local_size': (4, 4)}
OWN['lejepa'] |= {'lejepa.hidden': 16, 'lejepa.outputs': 8, 'lejepa.directions': 32}
OWN |= {'mae': {'mae.decoder_depth': 1, 'mae.decoder_width': 16, 'mae.decoder_heads': 2}}


def base():
  """A classifier of the digits, drawn."""
  model = vit_jax.build('ViT-Ti/16', num_classes=10, **MODEL)
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  params = drawn(jax.eval_shape(model.init, jax.random.key(0), images)['params'])
  classes = open_splits('digits', {'train': 'train'})['train'].classes
  preprocess = bundle.Preprocess('resize', (8, 8))
  return bundle.Bundle(model, params, classes, preprocess, 'ViT-Ti/16')


def words(method, folder, fields=()):
  """Its fields, as `config.load` takes them; a base to adapt is in the folder."""
  every = {f'model.{name}': value for name, value in MODEL.items()} | FIELDS
  task = f'tests.methods.{method}:make' if method in FOREIGN else method
  every |= {'task': task} | OWN.get(method, {})
  every |= {'pretrained': folder / 'base'} if method == 'lora' else {}
  return [f'{name}={value}' for name, value in (every | dict(fields)).items()]


def vit_train(method, folder, name, fields=()):
  flags = [f'--config.{word}' for word in words(method, folder, fields)]
  assert main.main(['--config=digits', f'--workdir={folder / name}', *flags]) == 0


@functools.cache
def plan_of(method, folder):
  return plans.make_plan(config.load('digits', words(method, folder)))


@functools.cache
def abstract_state(method, folder):
  return train.abstract_state(plan_of(method, folder))


@functools.cache
def state_of(method, folder, name):
  """The last state that a run saved: {'step': 10, 'params/head/bias': array, ...}."""
  like = abstract_state(method, folder)
  with checkpoints_of(folder / name) as saved:
    return models.flat(jax.device_get(saved.restore_step(STEPS, like)))


@pytest.fixture(scope='session')
def folder_of(tmp_path_factory, cache):
  """(method) -> the folder with its runs 'whole', 'resumed' and 'single'."""

  def make(method, folder):
    bundle.write(folder / 'base', base())
    vit_train(method, folder, 'whole')
    until(5, folder / 'whole', folder / 'resumed')
    vit_train(method, folder, 'resumed')
    with on_one_device():
      vit_train(method, folder, 'single', {'data.validation': '', 'evaluation.knn': ''})

  def folder_of(method):
    return shared(tmp_path_factory, method, functools.partial(make, method))

  return folder_of


def code_lines(text):
  """How many lines of a module are neither blank, nor a comment, nor of a docstring."""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
  nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
  docs = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
  skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
  spans = [
    (token.start[0], token.end[0])
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type not in skipped | {tokenize.ENDMARKER}
  ]
  lines = {line for first, last in spans for line in range(first, last + 1)}
  return len(lines - {line for doc in docs for line in range(doc.lineno, doc.end_lineno + 1)})


def test_lines_of_code_are_neither_blank_nor_comment_nor_docstring():
  text = (
    '"""Doc\nstring."""\n\n# comment\nx = [\n  1,  # one\n]\n\n\ndef f():\n  """F."""\n  return 1\n'
  )
  assert code_lines(text) == 5


@pytest.mark.parametrize('method', FOREIGN)
def test_a_method_takes_less_than_forty_lines(method):
  file = pathlib.Path(__file__).parent / f'methods/{method}.py'
  assert code_lines(file.read_text()) < 40


@pytest.mark.parametrize('method', sorted({*METHODS} - {'dino'}))  # whose teacher moves on
def test_the_loss_falls(folder_of, method):
  rows = rows_of(folder_of(method) / 'whole')
  losses = [row['train/loss'] for row in rows if 'train/loss' in row]
  assert len(losses) == STEPS and np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])
  first, last = [row['validation/loss'] for row in rows if 'validation/loss' in row]
  assert last < first


@pytest.mark.parametrize('method', METHODS)
def test_resume_equals_never_having_stopped(folder_of, method):
  folder = folder_of(method)
  states = [state_of(method, folder, name) for name in ('resumed', 'whole')]
  assert_same_bits(*states)
  assert rows_of(folder / 'resumed') == rows_of(folder / 'whole')
  assert contents(folder / 'resumed/model') == contents(folder / 'whole/model')


@pytest.mark.parametrize('method', METHODS)
def test_one_device_computes_what_eight_do(folder_of, method):
  folder = folder_of(method)
  ours, theirs = (state_of(method, folder, name) for name in ('single', 'whole'))
  for name, value in theirs.items():
    if name.startswith(('params/', 'ema/')):
      # Numbers of up to 1, changed by up to 0.1 in ten updates from sums in another order.
      np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('method', METHODS)
def test_what_is_delivered_gives_features_of_images(folder_of, method):
  run = vit_jax.load(folder_of(method) / 'whole')
  images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 90, 250)]
  features = run.features(images)
  assert features.shape == (3, 16) and np.isfinite(features).all()
  assert not np.allclose(features[0], features[2])


# Masked autoencoders


@pytest.mark.parametrize('checkpoint', ['', '5'])
def test_a_masked_autoencoder_delivers_its_decoder_at_any_time(folder_of, checkpoint):
  run = bundle.read(folder_of('mae') / 'whole', checkpoint)
  assert (run.decoder.mask, run.decoder.normalise, run.decoder.model.width) == (0.75, True, 16)
  params = models.flat(run.decoder.params)
  state = state_of('mae', folder_of('mae'), 'whole')
  changed = [n for n, leaf in params.items() if (leaf != state[f'params/decoder/{n}']).any()]
  assert len(params) == 23 and bool(changed) == bool(checkpoint)


def test_a_masked_autoencoder_starts_from_another_with_its_decoder(folder_of):
  folder = folder_of('mae')
  asked = {'pretrained': folder / 'whole', 'model.name': ''}
  state = state_of('mae', folder, 'whole')
  start = plans.make_plan(config.load('digits', words('mae', folder, asked))).task.start()
  for name, leaf in models.flat(start.params).items():
    np.testing.assert_array_equal(leaf, state[f'params/{name}'])
  asked |= {'mae.decoder_depth': 2}
  start = plans.make_plan(config.load('digits', words('mae', folder, asked))).task.start()
  assert 'decoder' not in start.params
  assert "decoder: starts anew: the checkpoint's has depth 1" in str(start.report)


def test_an_encoder_of_a_masked_autoencoder_is_fine_tuned(folder_of):
  folder = folder_of('mae')
  asked = {'task': 'classify', 'pretrained': folder / 'whole', 'model.pool': 'token'}
  task = plans.make_plan(config.load('digits', words('mae', folder, asked))).task
  params = models.flat(task.start().params)
  state = state_of('mae', folder, 'whole')
  assert not any(name.startswith('decoder') for name in params)
  np.testing.assert_array_equal(params['embed/kernel'], state['params/embed/kernel'])


def test_inspect_draws_what_a_masked_autoencoder_fills_in(folder_of, tmp_path, capsys):
  run = str(folder_of('mae') / 'whole')
  line = ['inspect', run, '--split', 'validation', '--count', '3', '--out', str(tmp_path)]
  assert vit.main([*line, '--only', 'reconstruction']) == 0, capsys.readouterr().err
  with Image.open(tmp_path / 'reconstruction.png') as drawn:
    assert len(drawn.convert('RGB').getcolors(1 << 24)) > 10
  arrays = np.load(tmp_path / 'reconstruction.npz')
  assert arrays['pixels'].shape == (3, 8, 8, 3) and arrays['hidden'].mean() == 0.75


# Self-distillation


def test_a_student_comes_near_its_teacher(folder_of):
  rows = [row for row in rows_of(folder_of('dino') / 'whole') if 'train/loss' in row]
  gaps = [row['train/dino'] - row['train/teacher_entropy'] for row in rows]
  assert len(gaps) == STEPS and np.mean(gaps[-3:]) < 0.3 * np.mean(gaps[:3])
  temperatures = [row['train/teacher_temperature'] for row in rows]
  np.testing.assert_allclose(temperatures[:6], [0.04, 0.0475, 0.055, 0.0625, 0.07, 0.07], rtol=1e-5)
  momenta = [row['train/teacher_momentum'] for row in rows]
  assert momenta == sorted(momenta) and momenta[0] == pytest.approx(0.9) and momenta[-1] < 1


def test_centres_live_in_the_average_alone(folder_of):
  state = state_of('dino', folder_of('dino'), 'whole')
  for part in ('views', 'patches'):
    assert not state[f'params/centres/{part}'].any() and state[f'ema/centres/{part}'].any()


def test_evaluations_are_ranked_as_the_task_says_where_the_config_does_not():
  plan = plan_of('dino', pathlib.Path())
  assert (plan.config.evaluation.metric, plan.metric, plan.sign) == ('loss', 'ema_loss', -1)


def test_neighbours_are_as_right_in_training_as_of_the_model_that_it_delivers(folder_of, capsys):
  run = folder_of('dino') / 'whole'
  name = 'validation/ema_knn_accuracy'
  logged = [row[name] for row in rows_of(run) if name in row]
  splits = ['--train', 'train[:200]', '--split', 'validation[:80]', '--format', 'json']
  assert vit.main(['evaluate', str(run), '--method', 'knn', '--on', 'digits', *splits]) == 0
  measured = json.loads(capsys.readouterr().out)['knn'][0]['accuracy']
  assert len(logged) == 2 and logged[-1] == measured > 0.1
  evaluation = json.loads((run / 'evaluation.json').read_text())
  assert evaluation['knn_accuracy'] == measured


# LoRA


def first_batch(plan):
  with plan.training_batches(0, plan.unreadable('train', str, pathlib.Path())) as batches:
    return next(batches)


@pytest.fixture(scope='session')
def adapted(tmp_path_factory):
  """The plan of LoRA and that of its base, each with its first parameters."""
  folder = tmp_path_factory.mktemp('adapted')
  bundle.write(folder / 'base', base())
  with on_one_device():
    plan = plan_of('lora', folder)
    whole = plans.make_plan(config.load('digits', words('lora', folder, {'task': 'classify'})))
  return [(each, jax.device_get(train.placed_state(each).params)) for each in (plan, whole)]


def test_lora_starts_with_the_logits_of_its_base_to_the_bit(adapted):
  batch = first_batch(adapted[0][0])
  ours, theirs = (
    jax.jit(plan.task.loss)(params, batch, jax.random.key(0), plan.task.fixed)[2]['logits']
    for plan, params in adapted
  )
  np.testing.assert_array_equal(ours, theirs)


def test_lora_delivers_its_base_before_it_has_learned(adapted):
  (plan, params), _ = adapted
  assert_same_bits(models.flat(plan.task.deliver(params).params), models.flat(base().params))


def test_lora_saves_nothing_of_its_base_but_the_head(folder_of):
  names = state_of('lora', folder_of('lora'), 'whole')
  params = [name for name in names if name.startswith('params/')]
  assert len(params) == 10
  assert all(name.startswith('params/head/') or name[-2:] in ('/a', '/b') for name in params)
  assert not any(name.endswith('/kernel') and 'encoder' in name for name in names)


def test_lora_delivers_the_base_and_the_product(folder_of):
  folder = folder_of('lora')
  state = state_of('lora', folder, 'whole')
  delivered, before = (
    models.flat(source.params) for source in (vit_jax.load(folder / 'whole'), base())
  )
  changed = set()
  for name, kernel in delivered.items():
    want, (a, b) = before[name], (state.get(f'params/{name}/{part}') for part in 'ab')
    if a is not None:
      product = np.einsum('ldr,lr...->ld...', np.float64(a), np.float64(b))
      want, changed = want + 8.0 / 4 * product, changed | {name}
      assert np.abs(product).max() > 1e-3
    elif name.startswith('head/'):
      want = state[f'params/{name}']
    np.testing.assert_allclose(kernel, want, rtol=0, atol=1e-6)
  assert len(changed) == 4


def test_lora_without_a_checkpoint_is_refused(tmp_path):
  asked = config.load('digits', words('lora', tmp_path, {'pretrained': '', 'new_head': True}))
  with pytest.raises(ValueError, match=r'config\.pretrained is empty'):
    plans.make_plan(asked)
