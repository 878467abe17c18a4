"""A run that is not finished is used as it is: its best, its newest, or any state that it keeps."""

import dataclasses
import errno
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.test_run import (
  PLAIN,
  assert_same_bits,
  cache,
  contents,
  plan_of,
  state_of,
  stopped_at,
  vit_train,
  whole,
)
from vit_jax import __main__ as vit
from vit_jax import bundle, models
from vit_jax.convert import bundles
from vit_jax.guards import seals

__all__ = ['cache', 'whole']


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """A run that was stopped at step 6 of 8 and validated at 4; its model is to be the average."""
  folder = tmp_path_factory.mktemp('stopped') / 'run'
  with pytest.MonkeyPatch.context() as patch, stopped_at(6, patch):
    assert vit_train(folder) == 0
  return folder


def assert_average_of(step, params, whole):
  state = state_of(whole, step)
  average = {n.removeprefix('ema/'): v for n, v in state.items() if n.startswith('ema/')}
  assert_same_bits(models.flat(jax.device_get(params)), average)


@pytest.mark.parametrize(
  'name, step, line',
  [
    ('', 4, 'step 4 of 8, the best so far by validation/ema_accuracy; the run was stopped'),
    ('best', 4, 'step 4 of 8, the best so far by validation/ema_accuracy; the run was stopped'),
    ('latest', 6, 'step 6 of 8, the newest; the run was stopped'),
    ('5', 5, 'step 5 of 8; the run was stopped'),
  ],
)
def test_a_stopped_run_is_loaded_at_any_of_its_states(name, step, line, stopped, whole, capsys):
  run = vit_jax.load(stopped, name)
  assert capsys.readouterr().err == f'{stopped}: {line}\n'
  assert run.step == step
  assert_average_of(step, run.params, whole)
  finished = vit_jax.load(whole)
  assert (run.classes, run.preprocess, run.model) == (
    finished.classes,
    finished.preprocess,
    finished.model,
  )


def test_a_step_s_own_folder_is_that_step_s_model(stopped, whole):
  assert_average_of(3, bundle.read(stopped / 'checkpoints/3').params, whole)


def test_without_its_bundle_the_best_is_read_from_its_checkpoint(stopped, whole, tmp_path):
  run = shutil.copytree(stopped, tmp_path / 'run')
  shutil.rmtree(run / 'best')
  best = bundle.read(run)
  assert best.step == 4
  assert_average_of(4, best.params, whole)


def test_before_the_first_evaluation_the_newest_is_loaded(stopped, whole, tmp_path, capsys):
  run = shutil.copytree(stopped, tmp_path / 'run')
  for name in ('best', *(f'checkpoints/{step}' for step in (3, 4, 5, 6))):
    shutil.rmtree(run / name)
  assert_average_of(2, bundle.read(run).params, whole)
  assert 'step 2 of 8, the newest' in capsys.readouterr().err
  with pytest.raises(ValueError, match='no evaluation to be the best of: it has step 2, 1'):
    bundle.read(run, 'best')


def test_a_finished_run_has_its_model_and_its_other_states(whole, capsys):
  assert not (whole / 'best').exists()
  assert bundle.read(whole).step == 8
  assert capsys.readouterr().err == ''
  assert bundle.read(whole, 'best').step in (4, 8)
  assert 'the best by validation/ema_accuracy' in capsys.readouterr().err
  assert_average_of(4, bundle.read(whole, '4').params, whole)


@pytest.mark.parametrize(
  'name, message',
  [
    ('newest', "checkpoint is 'newest', not best, latest or a step"),
    ('-1', "checkpoint is '-1', not best"),
    ('7', 'has no checkpoint of step 7: it has step 6, 5, 4, 3, 2 and 1 more'),
  ],
)
def test_a_state_that_is_not_there_is_one_line(name, message, stopped):
  with pytest.raises(ValueError, match=message):
    bundle.read(stopped, name)


def test_a_file_has_no_other_checkpoints(whole):
  with pytest.raises(ValueError, match="is not the folder of a run: it has no checkpoint 'best'"):
    bundle.read(whole / 'model', 'best')


def test_a_damaged_step_is_refused_by_name(stopped, tmp_path):
  run = shutil.copytree(stopped, tmp_path / 'run')
  file = max((run / 'checkpoints/5').rglob('d/*'), key=lambda file: file.stat().st_size)
  file.write_bytes(file.read_bytes()[::-1])
  with pytest.raises(ValueError, match='checkpoints/5 is damaged'):
    bundle.read(run, '5')


def test_a_run_that_has_saved_nothing_says_so(stopped, tmp_path):
  shutil.copy(stopped / 'model.json', tmp_path)
  with pytest.raises(FileNotFoundError, match='is a run that has saved nothing yet'):
    bundle.read(tmp_path)


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(stopped, tmp_path, monkeypatch):
  run, check, reads = shutil.copytree(stopped, tmp_path / 'run'), bundles.check_weights, []
  old = bundle.read(run)
  new = dataclasses.replace(
    old, params=jax.tree.map(np.zeros_like, old.params), classes=('x',) * 10
  )

  def replaced(folder):
    check(folder)
    reads.append(folder)
    if len(reads) == 1:
      bundle.write(run / 'best', new, dataclasses.replace(seals.read(folder).origin, step=6))

  monkeypatch.setattr(bundles, 'check_weights', replaced)
  best = bundle.read(run)
  assert len(reads) == 2 and (best.step, best.classes) == (6, new.classes)
  assert not any(leaf.any() for leaf in jax.tree.leaves(best.params))


def test_the_best_is_a_sealed_bundle_and_goes_when_the_model_comes(stopped, whole, tmp_path):
  run = shutil.copytree(stopped, tmp_path / 'run')
  assert seals.damage(run / 'best') == '' and seals.read(run / 'best').origin.step == 4
  assert_average_of(4, bundle.read(run / 'best').params, whole)
  assert vit_train(run) == 0
  assert not (run / 'best').exists()
  assert contents(run / 'model') == contents(whole / 'model')


def test_a_best_that_the_disk_refuses_is_a_line_and_no_older_one_stays(
  tmp_path, monkeypatch, capsys
):
  write, fields = bundle.write, PLAIN | {'evaluation.every': '2 steps', 'evaluation.metric': 'loss'}

  def refused(folder, *args):
    if folder.name == 'best' and (folder.parent / 'best').exists():
      raise OSError(errno.ENOSPC, 'No space left on device', str(folder))
    write(folder, *args)

  monkeypatch.setattr(bundle, 'write', refused)
  with stopped_at(5, monkeypatch):
    assert vit_train(tmp_path, fields) == 0
  assert f'{tmp_path / "best"} could not be written: No space left' in capsys.readouterr().out
  assert not (tmp_path / 'best').exists()
  assert bundle.read(tmp_path).step == 4


@pytest.mark.parametrize(
  'words',
  [
    ('predict', 'RUN', 'IMAGE'),
    ('features', 'RUN', 'IMAGE', '--out', 'OUT.npz'),
    ('inspect', 'RUN', '--only', 'filters', '--out', 'OUT'),
    ('convert', 'RUN', 'OUT', '--to', 'bundle'),
    ('export', 'RUN', '--to', 'npz', '--no-check', '--out', 'OUT.npz'),
  ],
  ids=lambda words: words[0],
)
def test_a_command_says_which_state_it_uses(words, stopped, tmp_path, capsys):
  image = tmp_path / 'image.png'
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
  places = {'RUN': str(stopped), 'IMAGE': str(image)}
  words = [places.get(word, word.replace('OUT', f'{tmp_path}/out')) for word in words]
  assert vit.main([*words, '--checkpoint', 'latest']) == 0
  assert f'{stopped}: step 6 of 8, the newest; the run was stopped' in capsys.readouterr().err


def test_fine_tuning_starts_from_the_best_so_far_and_says_so(stopped):
  plan = plan_of({'pretrained': stopped})
  assert f'{stopped}: step 4 of 8, the best so far' in str(plan.task.start().report)


def test_a_model_that_is_made_of_parameters_is_loaded_from_bundles_alone(stopped, tmp_path):
  run = shutil.copytree(stopped, tmp_path / 'run')
  (run / 'model.json').write_text((run / 'model.json').read_text().replace('"arrays"', '"other"'))
  assert bundle.read(run).step == 4
  with pytest.raises(ValueError, match='the model is not among the parameters that are trained'):
    bundle.read(run, 'latest')
