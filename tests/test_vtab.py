"""Laws of the VTAB-1k protocol: search on 800 and 200, train on all, test once, go on."""

import contextlib
import json
import logging
import shutil

import numpy as np
import pytest

from tests.test_run import shared
from vit_jax import config, train
from vit_jax.__main__ import main as vit
from vit_jax.commands import vtab
from vit_jax.evaluate import results
from vit_jax.sources import presets

COUNTS = {'train': 24, 'validation': 8, 'test': 20}
RECIPE = """
from vit_jax.configs import default


def get_config(argument):
  model, task = argument.split(',')
  config = default.get_config()
  config.duration = '6 steps'
  config.batch_size = 8
  config.image_size = (8, 8)
  config.model.name = model
  for field, value in dict(patch=(4, 4), width=8, depth=1, heads=1, mlp_dim=8).items():
    config.model[field] = value
  config.data.source = f'vtab/{task}'
  config.data.augment = config.data.preprocess = 'resize'
  config.optimizer.name = 'sgd'
  config.optimizer.clip = 0.0
  config.schedule.warmup = '0 steps'
  config.system.report = False
  return config
"""


@pytest.fixture(scope='session')
def searched(tmp_path_factory):
  """A folder with a task of three classes, that a mean of the pixels tells apart, and its sweep."""

  def make(folder):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in COUNTS.items():
      labels = np.arange(count) % 3
      noise = rng.integers(0, 40, (count, 8, 8, 3))
      arrays |= {
        f'x_{split}': np.uint8(noise + 100 * labels[:, None, None, None]),
        f'y_{split}': labels,
      }
    np.savez(folder / 'task.npz', **arrays)
    (folder / 'recipe.py').write_text(RECIPE)
    absl = logging.getLogger('absl')
    absl.setLevel(logging.WARNING)
    log = logging.FileHandler(folder / 'absl.log')
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(log):
      patch.setattr(absl, 'handlers', [log])
      names_tasks(folder, patch)
      assert swept(folder, '--tasks', 'dtd') == 0

  return shared(tmp_path_factory, 'vtab', make)


def names_tasks(folder, patch):
  splits = {name: name for name in COUNTS} | {'trainval': 'train+validation'}
  places = dict.fromkeys(('dtd', 'eurosat'), f'arrays:{folder}/task.npz') | {'pets': 'folder:none'}
  for task, source in places.items():
    patch.setitem(presets.PRESETS, f'vtab/{task}', presets.Preset(source, splits, 3))


@pytest.fixture
def tasks(searched, tmp_path, monkeypatch):
  """A copy of that folder."""
  names_tasks(searched, monkeypatch)
  return shutil.copytree(searched, tmp_path, dirs_exist_ok=True)


def swept(folder, *words):
  words = ['ViT-Ti/16', f'--config={folder}/recipe.py', f'--workdir={folder}/runs', *words]
  return vit(['vtab', *words, *([] if '--rates' in words else ['--rates', '0.001', '0.1'])])


def result_of(folder):
  return json.loads((folder / 'runs' / 'vtab.json').read_text())


def test_a_task_is_searched_on_800_trained_on_1000_and_tested_once(searched):
  result = result_of(searched)
  (row,) = result['tasks'].values()
  scores = {float(rate): score for rate, score in row['search'].items()}
  assert row['rate'] == max(sorted(scores), key=scores.get)
  assert (row['validation_count'], row['count']) == (8, 20)
  assert result['means']['natural'] == {'accuracy': row['accuracy'], 'done': 1, 'tasks': 7}
  assert result['means']['specialized']['accuracy'] is None
  runs = searched / 'runs' / 'dtd'
  assert sorted(run.name for run in runs.iterdir()) == ['final', 'rate_0.001', 'rate_0.1']
  tested = [
    path.parent.name for path in runs.glob('*/metrics.jsonl') if 'test/' in path.read_text()
  ]
  assert tested == ['final']
  counts = {
    run.name: json.loads((run / 'data.json').read_text())['images'] for run in runs.iterdir()
  }
  assert counts == {'final': 32, 'rate_0.001': 24, 'rate_0.1': 24}
  held = json.loads((runs / 'final' / 'config.json').read_text())
  assert held['schedule']['learning_rate'] == row['rate']
  held = {run.name: results.read(run) for run in runs.iterdir()}
  assert {name: result['use'] for name, result in held.items()} == {
    'final': 'test',
    'rate_0.001': 'validation',
    'rate_0.1': 'validation',
  }
  assert all(result['step'] == 6 for result in held.values())
  assert row['accuracy'] == held['final']['accuracy']
  assert row['validation_accuracy'] == held[f'rate_{row["rate"]:g}']['accuracy']


def test_what_was_done_is_not_done_again_and_a_stopped_sweep_goes_on(tasks, monkeypatch, capsys):
  trained = []

  def stopped(ready, folder, **options):
    trained.append(folder.name)
    first = folder.name == 'rate_0.1' and trained.count(folder.name) == 1
    return not first and real(ready, folder, **options)

  def models():
    return {path: path.stat().st_mtime_ns for path in (tasks / 'runs').glob('*/*/model/*')}

  real, first, files = train.train, result_of(tasks), models()
  monkeypatch.setattr(train, 'train', stopped)
  (tasks / 'runs' / 'vtab.json').unlink()
  assert swept(tasks, '--tasks', 'dtd') == 0
  assert not (tasks / 'runs' / 'vtab.json').exists()
  capsys.readouterr()
  assert swept(tasks, '--tasks', 'dtd', '--format', 'json') == 0
  assert json.loads(capsys.readouterr().out) == result_of(tasks) == first
  assert trained == ['rate_0.001', 'rate_0.1', 'rate_0.001', 'rate_0.1', 'final']
  assert models() == files
  assert vit(['vtab', f'--workdir={tasks}/runs', '--show']) == 0
  assert 'mean of natural' in capsys.readouterr().out


def test_a_task_that_cannot_be_had_is_told_and_the_others_go_on(tasks, capsys):
  (tasks / 'runs' / 'vtab.json').unlink()
  assert swept(tasks, '--tasks', 'pets', 'dtd') == 3
  out, err = capsys.readouterr()
  assert 'pets is left out: ' in err
  assert 'none' in err
  assert 'mean of natural' in out
  result = result_of(tasks)
  assert (list(result['tasks']), list(result['failed'])) == (['dtd'], ['pets'])


def test_results_of_other_tasks_stay_and_those_of_another_model_do_not(tasks):
  file = tasks / 'runs' / 'vtab.json'
  result = result_of(tasks)
  other = result['tasks']['dtd'] | {'accuracy': 0.25}
  file.write_text(json.dumps(result | {'tasks': {'eurosat': other}}))
  assert swept(tasks, '--tasks', 'dtd') == 0
  result = result_of(tasks)
  assert list(result['tasks']) == ['eurosat', 'dtd'] and result['tasks']['eurosat'] == other
  assert result['means']['all']['done'] == 2
  assert swept(tasks, '--tasks', 'pets') == 3
  result = result_of(tasks)
  assert (list(result['tasks']), list(result['failed'])) == (['eurosat', 'dtd'], ['pets'])
  file.write_text(json.dumps(result | {'model': 'another'}))
  assert swept(tasks, '--tasks', 'pets') == 3
  assert result_of(tasks)['tasks'] == {}


@pytest.mark.quick
def test_a_model_that_cannot_be_had_is_one_line_before_any_task(tmp_path, capsys):
  words = ['vtab', f'{tmp_path}/none.npz', f'--workdir={tmp_path}/runs']
  assert vit(words) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'none.npz' in line
  assert not (tmp_path / 'runs').exists()


def test_a_rate_whose_loss_is_not_finite_loses_to_the_others(tasks, capsys):
  assert swept(tasks, '--tasks', 'dtd', '--rates', '0.001', '0.1', '1e30') == 0
  assert list(result_of(tasks)['tasks']['dtd']['search']) == ['0.001', '0.1']
  assert swept(tasks, '--tasks', 'dtd', '--rates', '1e30') == 3
  assert 'none of the rates gave a finished run' in capsys.readouterr().err


def test_what_saving_logs_is_not_told(searched):
  assert (searched / 'absl.log').read_text() == ''


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--tasks', 'vtab/dtb'], "unknown task 'vtab/dtb'; did you mean dtd or dmlab?"),
    (['--rates', '0'], '--rates 0 must be above 0'),
    (['--config.data.test=train'], 'data.test is what the protocol sets'),
    (['--config.evaluation.patience=3'], 'evaluation.patience is what the protocol sets'),
    (['--config.data.source=digits'], 'data.source is what the protocol sets'),
    (['--show'], 'has no finished task'),
  ],
)
def test_what_cannot_be_is_one_line(tasks, words, message, capsys):
  shutil.rmtree(tasks / 'runs')
  assert swept(tasks, *words) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


@pytest.mark.quick
def test_a_folder_without_a_measure_is_no_finished_run(tmp_path):
  with pytest.raises(ValueError, match='is no finished run'):
    vtab.read_measures(tmp_path, 'validation')
  record = {'source': 'digits', 'split': 'test', 'step': 6, 'use': 'test', 'count': 9}
  for numbers in ({'accuracy': 0.5}, {'accuracy': None}, {}):
    results.write(tmp_path, record | numbers)
    for use in ('validation', 'test'):
      if use == 'test' and numbers.get('accuracy'):
        assert vtab.read_measures(tmp_path, use) == {'accuracy': 0.5, 'count': 9}
        continue
      with pytest.raises(ValueError, match=f'measured nothing on its {use} split'):
        vtab.read_measures(tmp_path, use)


@pytest.mark.quick
def test_the_shipped_recipe_takes_every_task():
  for task in vtab.GROUP:
    asked = config.load(f'vtab:B_16,{task}', [*vtab.SWEPT])
    assert asked.data.source == f'vtab/{task}'
    assert asked.data.validation == 'validation'
    assert config.load(f'vtab:B_16,{task}', [*vtab.FINAL]).data.train == 'trainval'
