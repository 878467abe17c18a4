"""Laws of the VTAB-1k protocol: search on 800 and 200, train on all, test once, go on."""

import json
import logging

import numpy as np
import pytest

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
  config.schedule.warmup = '0 steps'
  return config
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
  """Two tasks of three classes, that a mean of the pixels tells apart."""
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in COUNTS.items():
    labels = np.arange(count) % 3
    noise = rng.integers(0, 40, (count, 8, 8, 3))
    arrays |= {
      f'x_{split}': np.uint8(noise + 100 * labels[:, None, None, None]),
      f'y_{split}': labels,
    }
  np.savez(tmp_path / 'task.npz', **arrays)
  splits = {name: name for name in COUNTS} | {'trainval': 'train+validation'}
  for task in ('dtd', 'eurosat'):
    preset = presets.Preset(f'arrays:{tmp_path}/task.npz', splits, 3)
    monkeypatch.setitem(presets.PRESETS, f'vtab/{task}', preset)
  monkeypatch.setitem(presets.PRESETS, 'vtab/pets', presets.Preset('folder:nowhere', splits, 3))
  (tmp_path / 'recipe.py').write_text(RECIPE)
  return tmp_path


def swept(folder, *words):
  return vit(
    ['vtab', 'ViT-Ti/16', f'--config={folder}/recipe.py', f'--workdir={folder}/runs', *words]
  )


def test_a_task_is_searched_on_800_trained_on_1000_and_tested_once(tasks, capsys):
  code = swept(tasks, '--tasks', 'dtd', '--rates', '0.001', '0.1', '--format', 'json')
  out, err = capsys.readouterr()
  assert code == 0, err
  result = json.loads(out)
  (row,) = result['tasks'].values()
  scores = {float(rate): score for rate, score in row['search'].items()}
  assert row['rate'] == max(sorted(scores), key=scores.get)
  assert (row['validation_count'], row['count']) == (8, 20)
  assert result['means']['natural'] == {'accuracy': row['accuracy'], 'done': 1, 'tasks': 7}
  assert result['means']['specialized']['accuracy'] is None
  runs = tasks / 'runs' / 'dtd'
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

  def stopped(ready, folder):
    trained.append(folder.name)
    return (
      False if folder.name == 'rate_0.1' and trained.count('rate_0.1') == 1 else real(ready, folder)
    )

  real = train.train
  monkeypatch.setattr(train, 'train', stopped)
  words = ('--tasks', 'dtd', '--rates', '0.1', '0.01')
  assert swept(tasks, *words) == 0
  assert not (tasks / 'runs' / 'vtab.json').exists()
  assert swept(tasks, *words) == 0
  first = (tasks / 'runs' / 'vtab.json').read_text()
  assert trained == ['rate_0.01', 'rate_0.1', 'rate_0.01', 'rate_0.1', 'final']
  files = {p: p.stat().st_mtime_ns for p in (tasks / 'runs').glob('*/*/model/*')}
  assert swept(tasks, *words) == 0
  assert (tasks / 'runs' / 'vtab.json').read_text() == first
  assert {p: p.stat().st_mtime_ns for p in (tasks / 'runs').glob('*/*/model/*')} == files
  capsys.readouterr()
  assert vit(['vtab', f'--workdir={tasks}/runs', '--show']) == 0
  assert 'mean of natural' in capsys.readouterr().out


def test_a_task_that_cannot_be_had_is_told_and_the_others_go_on(tasks, capsys):
  assert swept(tasks, '--tasks', 'pets', 'eurosat', '--rates', '0.1') == 3
  out, err = capsys.readouterr()
  assert 'pets is left out: ' in err
  assert 'nowhere' in err
  assert 'mean of specialized' in out
  result = json.loads((tasks / 'runs' / 'vtab.json').read_text())
  assert (list(result['tasks']), list(result['failed'])) == (['eurosat'], ['pets'])


def test_what_saving_logs_is_not_told(tasks, caplog):
  logging.getLogger('absl').setLevel(logging.WARNING)
  assert swept(tasks, '--tasks', 'dtd', '--rates', '0.01') == 0
  assert not [record for record in caplog.records if record.name == 'absl']


def test_results_of_other_tasks_stay_and_those_of_another_model_do_not(tasks):
  file = tasks / 'runs' / 'vtab.json'
  assert swept(tasks, '--tasks', 'dtd', '--rates', '0.1') == 0
  first = json.loads(file.read_text())['tasks']['dtd']
  assert swept(tasks, '--tasks', 'eurosat', '--rates', '0.1') == 0
  result = json.loads(file.read_text())
  assert list(result['tasks']) == ['dtd', 'eurosat'] and result['tasks']['dtd'] == first
  assert result['means']['all']['done'] == 2
  assert swept(tasks, '--tasks', 'pets') == 3
  result = json.loads(file.read_text())
  assert (list(result['tasks']), list(result['failed'])) == (['dtd', 'eurosat'], ['pets'])
  file.write_text(json.dumps(result | {'model': 'another'}))
  assert swept(tasks, '--tasks', 'pets') == 3
  assert json.loads(file.read_text())['tasks'] == {}


@pytest.mark.quick
def test_a_model_that_cannot_be_had_is_one_line_before_any_task(tmp_path, capsys):
  words = ['vtab', f'{tmp_path}/none.npz', f'--workdir={tmp_path}/runs']
  assert vit(words) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'none.npz' in line
  assert not (tmp_path / 'runs').exists()


def test_a_rate_whose_loss_is_not_finite_loses_to_the_others(tasks, capsys):
  assert swept(tasks, '--tasks', 'dtd', '--rates', '0.01', '1e30', '--config.optimizer.clip=0') == 0
  result = json.loads((tasks / 'runs' / 'vtab.json').read_text())
  assert list(result['tasks']['dtd']['search']) == ['0.01']
  assert swept(tasks, '--tasks', 'dtd', '--rates', '1e30', '--config.optimizer.clip=0') == 3
  assert 'none of the rates gave a finished run' in capsys.readouterr().err


@pytest.mark.quick
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
