"""Bad input to `vit train`: exit 2, one line that says what came and what was wanted, no traces."""

import importlib
import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from tests.test_run import ROOT, STEPS, cache, contents, environment, flags, vit_train
from vit_jax import __main__ as vit
from vit_jax import config, main, train, workdir
from vit_jax import plan as plans

__all__ = ['cache']

# fields that replace the tiny recipe's -> what the line must say
WRONG = {
  'a model': ({'model.name': 'ViT-Q/16'}, ["'ViT-Q/16'", 'did you mean', 'ViT-S/16']),
  'a model without a name': ({'model.name': ''}, ['unknown model', 'ViT-S/16']),
  'a field': ({'modle.width': 3}, ["'modle.width'", "did you mean 'model.width'"]),
  'a field without its section': ({'width': 3}, ["'width'", "'model.width'"]),
  'a section': ({'model': 3}, ["'model' is a section"]),
  'a data set': ({'data.source': 'digit'}, ["unknown dataset 'digit'", 'digits']),
  'no data set': ({'data.source': ''}, ['data.source is empty']),
  'a training split': ({'data.train': 'trian'}, ["no split 'trian'", 'did you mean train']),
  'no training split': ({'data.train': ''}, ['data.train']),
  'a validation split': ({'data.validation': 'vali'}, ["no split 'vali'", 'validation']),
  'a test split': ({'data.test': 'tset'}, ["no split 'tset'", 'did you mean test']),
  'an optimiser': ({'optimizer.name': 'adamm'}, ["'adamm'", 'adamw', 'did you mean adam']),
  'a schedule': ({'schedule.name': 'cosin'}, ["'cosin'", 'cosine']),
  'a loss': ({'objective.loss': 'sofmax'}, ["'sofmax'", 'softmax']),
  'a transform': ({'data.augment': 'flipp'}, ["'flipp'", 'did you mean flip']),
  "a transform's argument": ({'data.augment': 'flip(3)'}, ["'flip(3)'"]),
  'a transform cut off': ({'data.augment': 'flip('}, ["'flip('"]),
  'a crop that exceeds the image': ({'data.augment': 'random_crop(9)'}, ['9x9', '8x8']),
  'a transform to another size': ({'data.preprocess': 'resize(4)'}, ['4x4', '8x8']),
  'an image size': ({'image_size': 9}, ['9x9', '4x4']),
  'an image size of words': ({'image_size': "('a', 'b')"}, ['image_size', "'a'"]),
  'an image size of floats': ({'image_size': '(8.0, 8.0)'}, ['image_size', '8.0']),
  'a patch of words': ({'model.patch': "('a', 'b')"}, ['patch', "'a'"]),
  'one side of a patch': ({'model.patch': '(2,)'}, ['patch', '(2,)']),
  'heads': ({'model.heads': 3}, ['width 16', '3 heads']),
  'no heads': ({'model.heads': 0}, ['heads is 0', 'at least 1']),
  'a dtype': ({'model.dtype': 'float64'}, ["'float64'", 'float32']),
  "a moment's dtype": ({'optimizer.momentum_dtype': 'float3'}, ['momentum_dtype', "'float3'"]),
  'a batch of none': ({'batch_size': 0}, ['batch_size is 0', 'at least 1']),
  'half an image': ({'batch_size': 32.5}, ['batch_size is 32.5', 'int']),
  'an odd batch': ({'batch_size': 33, 'accumulate': 1, 'system.fsdp': 8}, ['33', '8 devices']),
  'micro-batches': ({'accumulate': 3}, ['batch_size 32', 'accumulate=3']),
  'a mesh': ({'system.data': 3}, ['data=3', '8 devices']),
  'a mesh with a hole': ({'system.fsdp': 3, 'system.tensor': 3}, ['fsdp=3', '8 devices']),
  'no mesh': ({'system.data': 0}, ['data=0']),
  'a warm-up': ({'schedule.warmup': '100 steps'}, ['100', f'run of {STEPS}']),
  'a duration': ({'duration': '3 weeks'}, ["'3 weeks'", "'2 epochs'"]),
  'no duration': ({'duration': '0 steps'}, ["'0 steps'"]),
  'a duration of itself': ({'duration': '5%'}, ["'5%'"]),
  'a metric': ({'evaluation.metric': 'acuracy'}, ["'acuracy'", 'did you mean accuracy']),
  'a metric of several labels': (
    {'evaluation.metric': 'mean_average_precision'},
    ["'mean_average_precision'", 'accuracy, loss, balanced_accuracy, f1_macro'],
  ),
  "an average's metric": (
    {'evaluation.metric': 'ema_accuracy', 'ema': 0.0},
    ["'ema_accuracy'", 'accuracy'],
  ),
  'patience without a split': (
    {'evaluation.patience': '3 steps', 'data.validation': ''},
    ['evaluation.patience', 'data.validation'],
  ),
  'patience without evaluations': (
    {'evaluation.patience': '3 steps', 'evaluation.every': '0 steps'},
    ['evaluation.patience', 'evaluation.every'],
  ),
  'a seed below zero': ({'seed': -1}, ['seed is -1']),
  'a seed beyond 64 bits': ({'seed': 10**20}, ['seed is 1000']),
  'an average of itself': ({'ema': 1.0}, ['ema is 1.0', 'below 1']),
  'smoothing': ({'objective.smoothing': 1.0}, ['objective.smoothing is 1.0']),
  'a learning rate of infinity': ({'schedule.learning_rate': '1e999'}, ['learning_rate', 'inf']),
  'a learning rate below zero': ({'schedule.learning_rate': -1.0}, ['learning_rate', '-1.0']),
  'a learning rate of a word': ({'schedule.learning_rate': 'big'}, ["'big'", 'float']),
  'a deviation of zero': ({'data.std': '(0, 0, 0)'}, ['data.std', '0']),
  'a mean of words': ({'data.mean': "('a', 'b', 'c')"}, ['data.mean', "'a'"]),
  'a mean of one number': ({'data.mean': 0.5}, ['data.mean is 0.5', 'tuple of 3']),
  'threads': ({'system.threads': 0}, ['system.threads is 0']),
  'checkpoints': ({'checkpoint.keep_latest': 0}, ['checkpoint.keep_latest is 0']),
  'a pool that gives no classes': ({'model.pool': '"none"'}, ['pool']),
}


def one_line(capsys):
  """What stderr got, which is one line."""
  err = capsys.readouterr().err
  assert err.endswith('\n') and err.count('\n') == 1, err
  return err.strip()


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
  """What is not refused would train: that is a failure here, and takes long."""
  monkeypatch.setattr(train, 'train', lambda *_: pytest.fail('not refused'))


@pytest.mark.parametrize('case', WRONG)
def test_bad_input_is_one_line_exit_2_and_no_folder(case, tmp_path, capsys):
  fields, said = WRONG[case]
  workdir = tmp_path / 'run'
  assert vit_train(workdir, fields) == 2
  line = one_line(capsys)
  assert line.startswith('vit train: ') and len(line) < 1000
  assert [part for part in said if part not in line] == []
  assert not workdir.exists()


def test_one_class_is_nothing_to_learn(tmp_path, capsys):
  np.savez(tmp_path / 'one.npz', x=np.zeros((40, 8, 8), np.uint8), y=np.zeros(40, int))
  fields = {'data.source': f'arrays:{tmp_path}/one.npz', 'data.test': ''}
  assert vit_train(tmp_path / 'run', fields) == 2
  assert "one.npz has only one class, '0'; at least two are needed" in one_line(capsys)


def test_a_class_without_images_is_nothing_to_learn(tmp_path, capsys):
  image = cv2.imencode('.png', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
  for name in ('cat', 'dog', 'emu'):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    for number in range(6):
      suffix = 'txt' if name == 'emu' else 'png'
      (tmp_path / 'photos' / name / f'{number}.{suffix}').write_bytes(image)
  fields = {'data.source': f'folder:{tmp_path}/photos', 'data.test': ''}
  assert vit_train(tmp_path / 'run', fields | {'batch_size': 8, 'accumulate': 1}) == 2
  line = one_line(capsys)
  assert "photos: no images of class 'emu' in train; passed over: 6 .txt" in line


@pytest.mark.parametrize('case', ['a field', 'heads', 'a data set'])
def test_bad_input_leaves_a_folder_as_it_was(case, tmp_path, capsys):
  (tmp_path / 'notes.txt').write_text('mine')
  assert vit_train(tmp_path, WRONG[case][0]) == 2
  assert contents(tmp_path) == {'notes.txt': b'mine'}


def test_all_bad_fields_are_named_at_once(tmp_path, capsys):
  assert vit_train(tmp_path / 'run', {'batch_size': 'many', 'seed': 1.5, 'ema': 'no'}) == 2
  line = one_line(capsys)
  assert all(field in line for field in ('batch_size', 'seed', 'ema'))


def test_none_is_a_word_where_a_field_takes_it(tmp_path):
  loaded = config.load('digits', ['model.positions=none', 'model.remat=none', 'model.width=None'])
  assert (loaded.model.positions, loaded.model.remat) == ('none', 'none')
  assert loaded.model.width is None
  assert plans.make_plan(loaded).task.model.positions == 'none'


def test_a_duration_that_rounds_to_no_step_is_one_step_and_not_never():
  loaded = config.load('digits', ['duration=8', 'evaluation.every=5%'])
  assert plans.make_plan(loaded).evaluate_every == 1


# The command line


@pytest.mark.parametrize(
  'words, said',
  [
    ([], '--config'),
    (['--config=digits'], '--workdir'),
    (['--workdir=RUN'], '--config'),
    (['--config=digits', '--workdir=RUN', '--wrkdir=x'], '--wrkdir=x'),
    (['--config=digits', '--work=RUN'], '--workdir'),
    (['--config=digits', '--workdir=RUN', 'extra'], 'extra'),
    (['--config=digits', '--workdir=RUN', '--num_processes=two'], "'two'"),
  ],
)
def test_a_usage_error_is_a_usage_and_one_line(words, said, tmp_path, capsys):
  run = tmp_path / 'run'
  with pytest.raises(SystemExit) as ended:
    main.main([word.replace('RUN', str(run)) for word in words])
  assert ended.value.code == 2
  err = capsys.readouterr().err
  assert err.startswith('usage: ') and said in err.splitlines()[-1]
  assert not run.exists()


@pytest.mark.parametrize(
  'word, said',
  [
    ('--config.batch_size', "'batch_size' is not FIELD=VALUE"),
    ('--config.=3', "unknown field ''"),
    ('--config.batch_size=', "batch_size is '', not int"),
  ],
)
def test_an_override_without_field_or_value_is_refused(word, said, tmp_path, capsys):
  run = tmp_path / 'run'
  assert main.main(['--config=digits', f'--workdir={run}', *flags(), word]) == 2
  assert said in one_line(capsys)
  assert not run.exists()


def test_an_empty_workdir_is_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main.main(['--config=digits', '--workdir=', *flags()]) == 2
  assert 'workdir' in one_line(capsys)
  assert contents(tmp_path) == {}


def test_an_unknown_config_is_refused_with_those_there_are(tmp_path, capsys):
  for name in ('no/such.py', 'digit', ''):
    assert main.main([f'--config={name}', f'--workdir={tmp_path / "run"}']) == 2
    line = one_line(capsys)
    assert f'no config {name!r}' in line and 'digits' in line
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'text, said',
  [
    ('def get_config(:', ['SyntaxError']),
    ('x = 1', ['get_config']),
    ('def get_config():\n  return {}', ['dict', 'ConfigDict']),
    ('def get_config():\n  return 1 / 0', [':2', 'ZeroDivisionError']),
    ('import nothing_of_that_name', [':1', 'nothing_of_that_name']),
    ('raise SystemExit(7)', ['SystemExit']),
    ('def get_config():\n  raise ValueError("one\\ntwo")', ['one two']),
    ('\x00', ['null']),
    (
      'from vit_jax.configs import digits\ndef get_config():\n  c = digits.get_config()\n'
      '  c.optimiser = 3\n  del c.seed\n  return c',
      ["'optimiser'", "'seed' is missing"],
    ),
  ],
)
def test_a_broken_config_is_one_line_with_its_place(text, said, tmp_path, capsys):
  file = tmp_path / 'broken.py'
  file.write_text(text)
  assert main.main([f'--config={file}', f'--workdir={tmp_path / "run"}']) == 2
  line = one_line(capsys)
  assert [part for part in said if part not in line] == []
  assert not (tmp_path / 'run').exists()


def test_an_argument_that_a_config_does_not_take_is_refused(tmp_path, capsys):
  assert main.main(['--config=digits:small', f'--workdir={tmp_path / "run"}']) == 2
  assert "'small'" in one_line(capsys)


# The work directory


def test_a_workdir_that_is_a_file_is_refused(tmp_path, capsys):
  file = tmp_path / 'run'
  file.write_text('mine')
  assert vit_train(file) == 2
  assert str(file) in one_line(capsys)
  assert file.read_text() == 'mine'


@pytest.mark.parametrize('folder', ['/dev/null/run', '/proc/run'])
def test_a_workdir_that_cannot_be_made_is_refused(folder, capsys):
  assert vit_train(folder) == 2
  assert folder in one_line(capsys)


@pytest.mark.parametrize('text', ['', '{"seed": ', '[]', '3', '\ufffe'])
def test_a_workdir_with_a_damaged_config_is_refused_by_name(text, tmp_path, capsys):
  (tmp_path / 'config.json').write_text(text)
  assert vit_train(tmp_path) == 2
  assert str(tmp_path / 'config.json') in one_line(capsys)
  assert contents(tmp_path) == {'config.json': text.encode()}


def test_another_runs_workdir_is_refused_before_anything_is_written(tmp_path, capsys):
  theirs = json.dumps({'seed': 5} | {'of': {'another': 'program'}})
  (tmp_path / 'config.json').write_text(theirs)
  assert vit_train(tmp_path) == 2
  assert 'seed is 5 there and 0 here' in one_line(capsys)
  assert contents(tmp_path) == {'config.json': theirs.encode()}


# Several hosts


@pytest.mark.parametrize(
  'words, more, said',
  [
    (['--coordinator_address=127.0.0.1:1'], {}, 'num_processes'),
    (['--num_processes=2', '--process_id=0'], {}, 'coordinator_address'),
    (['--coordinator_address=127.0.0.1:1', '--num_processes=2', '--process_id=5'], {}, '5'),
    ([], {'JAX_COORDINATOR_ADDRESS': '127.0.0.1:1', 'JAX_NUM_PROCESSES': 'two'}, "'two'"),
  ],
)
def test_processes_that_are_not_all_named_are_refused(words, more, said, tmp_path, cache):
  run = tmp_path / 'run'
  ended = subprocess.run(
    [sys.executable, '-m', 'vit_jax.main', '--config=digits', f'--workdir={run}', *flags(), *words],
    env=environment(cache, **more),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert ended.returncode == 2, ended.stderr
  assert ended.stderr.count('\n') == 1 and said in ended.stderr
  assert not run.exists()


# The vit command


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
  assert vit.main(['trian']) == 2
  assert "unknown command 'trian'; did you mean train?" in one_line(capsys)


def test_no_command_lists_them_and_is_a_usage_error(capsys):
  assert vit.main([]) == 2
  without = capsys.readouterr().out
  assert vit.main(['--help']) == 0
  assert capsys.readouterr().out == without
  assert all(f'  {name} ' in without for name in vit.COMMANDS)


@pytest.mark.parametrize('command', vit.COMMANDS)
def test_every_command_explains_itself(command, capsys):
  with pytest.raises(SystemExit) as ended:
    vit.main([command, '--help'])
  assert ended.value.code == 0
  assert f'usage: vit {command}' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('command', 'words'),
  [('predict', ['RUN', 'x.jpg']), ('evaluate', ['RUN']), ('models', []), ('data', ['list'])],
)
def test_ctrl_c_ends_a_command_with_one_line(command, words, monkeypatch, capsys):
  def ctrl_c(*_):
    raise KeyboardInterrupt

  module = importlib.import_module(f'vit_jax.commands.{command}')
  monkeypatch.setattr(module, 'run', ctrl_c)
  try:
    code = vit.main([command, *words])
  except KeyboardInterrupt:  # which would end pytest
    pytest.fail('a traceback')
  assert code == 130
  one_line(capsys)


def test_importing_the_package_and_asking_its_version_starts_no_device(cache):
  code = (
    'import vit_jax, sys; from vit_jax.__main__ import main; main(["--version"]); '
    'from jax._src import xla_bridge; sys.exit(xla_bridge.backends_are_initialized())'
  )
  words = [sys.executable, '-c', code]
  ended = subprocess.run(words, env=environment(cache), capture_output=True, text=True, timeout=300)
  assert (ended.returncode, ended.stderr) == (0, '')
  assert ended.stdout.startswith('vit_jax ')


def test_the_recipe_these_tests_spoil_is_itself_good():
  words = [word.removeprefix('--config.') for word in flags()]
  assert plans.make_plan(config.load('digits', words)).total == STEPS
  assert jax.device_count() == 8  # the messages above count them


def test_a_run_from_before_a_field_was_there_can_be_resumed(tmp_path):
  asked = config.load('digits')
  workdir.claim(tmp_path, asked)
  stored = json.loads((tmp_path / 'config.json').read_text())
  del stored['evaluation']['patience'], stored['system'], stored['ema']
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  workdir.claim(tmp_path, asked)


@pytest.mark.parametrize('stored', [{'model': 3}, {'model': {'name': 'ViT-S/16', 'of': {'a': 1}}}])
def test_a_stored_config_with_other_sections_is_another_run(stored, tmp_path, capsys):
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  assert vit_train(tmp_path) == 2
  assert 'holds another run' in one_line(capsys)


def test_a_field_that_was_stored_and_is_unknown_now_is_named(tmp_path):
  asked = config.load('digits')
  workdir.claim(tmp_path, asked)
  stored = json.loads((tmp_path / 'config.json').read_text()) | {'of': {'later': 1}}
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  with pytest.raises(ValueError, match='another run: of is'):
    workdir.claim(tmp_path, asked)


def test_a_workdir_that_is_a_url_is_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert vit_train('gs://bucket/run') == 2
  assert 'gs://bucket/run' in one_line(capsys)
  assert contents(tmp_path) == {}


def test_a_fault_of_ours_in_training_is_no_bad_input(tmp_path, monkeypatch, capsys):
  def train(*_, **__):
    raise ValueError('ours')

  monkeypatch.setattr('vit_jax.train.train', train)
  words = ['train', '--config=digits', f'--workdir={tmp_path / "run"}', *flags()]
  assert vit.main(words) == 1
  traceback = tmp_path / 'run/error.txt'
  assert one_line(capsys) == f'vit train: ValueError: ours; the traceback is in {traceback}'
  assert 'raise ValueError' in traceback.read_text()
