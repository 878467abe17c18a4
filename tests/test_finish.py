"""A start on a finished run looks at each of its parts, and makes what is missing or damaged."""

import shutil

import pytest

from tests.test_run import (
  PLAIN,
  cache,
  checkpoints_of,
  contents,
  names_by_step,
  plan_of,
  rows_of,
  vit_train,
  whole,
)
from vit_jax import files, finish, train
from vit_jax.evaluate import results
from vit_jax.guards import seals

__all__ = ['cache', 'whole']

CLOCKED = ('environment.json', 'status.json', 'metrics.jsonl')  # what a clock is in


@pytest.fixture
def run(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'run')


def truncated(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file):
  file.write_bytes(b'')


def flipped(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def removed(file):
  file.unlink()


def parts_of(folder):
  """What a run has delivered: its files but for clocks and TensorBoard's."""
  files_of = contents(folder)
  return {
    name: data
    for name, data in files_of.items()
    if not name.startswith((*CLOCKED, 'events', 'checkpoints/'))
  }


def assert_as_if_unhurt(run, whole):
  assert parts_of(run) == parts_of(whole)
  assert rows_of(run) == rows_of(whole)
  assert files.read_object(run / 'environment.json')
  assert files.read_object(run / 'status.json')['state'] == 'finished'


@pytest.mark.parametrize('damage', [truncated, emptied, flipped, removed])
@pytest.mark.parametrize(
  'name, part',
  [
    ('model/model.safetensors', 'model'),
    ('model/config.json', 'model'),
    ('model/seal.json', 'model'),
    ('evaluation.json', 'evaluation.json'),
  ],
)
def test_a_damaged_part_is_never_called_finished(name, part, damage, run):
  plan = plan_of()
  assert not finish.lost(plan, run, pytest.fail)
  damage(run / name)
  lines = []
  assert finish.lost(plan, run, lines.append) == {part}
  [line] = lines
  state = 'missing' if damage is removed and part == name else 'damaged'
  assert f'{run / part} is {state}' in line and line.endswith(': it is made again')


@pytest.mark.parametrize('name', ['environment.json', 'model/README.md', 'status.json'])
@pytest.mark.parametrize('damage', [truncated, emptied, removed])
def test_a_file_without_a_checksum_is_made_again_where_it_is_cut_short(name, damage, run):
  damage(run / name)
  assert finish.lost(plan_of(), run, [].append) == {name}


def test_a_damaged_model_is_made_again_from_its_checkpoint_with_every_bit(run, whole, capsys):
  flipped(run / 'model/model.safetensors')
  truncated(run / 'evaluation.json')
  emptied(run / 'model/README.md')
  assert vit_train(run) == 0
  output = capsys.readouterr()
  assert 'model is damaged (model.safetensors has changed): it is made again' in output.out
  assert output.err == '' and 'training step' not in output.out
  assert_as_if_unhurt(run, whole)


def test_a_lost_evaluation_is_measured_again_and_nothing_else_is_made(run, whole, capsys):
  (run / 'evaluation.json').unlink()
  (run / 'environment.json').unlink()
  model = (run / 'model/model.safetensors').stat().st_mtime_ns
  assert vit_train(run) == 0
  assert 'evaluation.json is missing: it is made again' in capsys.readouterr().out
  assert (run / 'model/model.safetensors').stat().st_mtime_ns == model
  assert_as_if_unhurt(run, whole)


def test_an_evaluation_without_its_checkpoint_is_not_trained_for(run, capsys):
  shutil.rmtree(run / 'checkpoints')
  (run / 'evaluation.json').unlink()
  before = parts_of(run)
  assert vit_train(run) == 0
  assert f'`vit report {run}` measures the model' in capsys.readouterr().out
  assert parts_of(run) == before


def test_a_run_killed_after_its_model_measures_it_once(run, whole, monkeypatch):
  shutil.rmtree(run / 'model')
  (run / 'evaluation.json').unlink()
  with monkeypatch.context() as patch:
    patch.setattr(train.Evaluator, 'last', lambda *_: pytest.exit)
    patch.setattr(finish, 'describe', lambda *_: None)
    assert vit_train(run) == 0
  assert not (run / 'evaluation.json').exists() and not (run / 'model/README.md').exists()
  assert vit_train(run) == 0
  assert_as_if_unhurt(run, whole)


@pytest.mark.parametrize('name', ['model', 'evaluation.json'])
def test_what_is_of_another_run_is_not_taken_for_this_one_s(name, run, whole, tmp_path, capsys):
  other = tmp_path / 'other'
  shutil.copytree(whole, other)
  if name == 'model':
    seal = seals.read(other / 'model')
    seals.write_table(
      other / 'model', seal.files, seals.Origin(8, {**seal.origin.config, 'seed': 3}, 0)
    )
    (run / 'model').rename(tmp_path / 'gone')
  else:
    values = results.read(other)
    (other / 'model/seal.json').unlink()
    results.write(other, values | {'weights': '01234567'})
  (other / name).replace(run / name)
  assert vit_train(run) == 0
  out = capsys.readouterr().out
  message = 'of another run: seed is 3 there, 0 here' if name == 'model' else 'of another model'
  assert message in out and 'is made again' in out
  if name == 'model':
    shutil.rmtree(run / 'model.unused')  # set aside: it may be someone's only copy
  assert_as_if_unhurt(run, whole)


def test_checkpoints_that_no_model_needs_are_named_when_they_are_damaged(run, whole, capsys):
  flipped(max((run / 'checkpoints/8').rglob('d/*'), key=lambda file: file.stat().st_size))
  assert vit_train(run) == 0
  out = capsys.readouterr().out
  assert 'checkpoints/8 is damaged' in out and 'the model does not need it' in out
  assert f'{run} is finished' in out
  assert (run / 'checkpoints/8.damaged').is_dir()
  assert_as_if_unhurt(run, whole)


@pytest.mark.parametrize('damage', [truncated, emptied, removed])
def test_lost_rows_of_metrics_are_named(damage, run, capsys):
  damage(run / 'metrics.jsonl')
  assert vit_train(run) == 0
  out = capsys.readouterr().out
  assert ('metrics.jsonl is' in out and 'is lost' in out) or damage is truncated
  assert 'test' in {split for _, split in names_by_step(run)}


def test_what_dead_processes_left_is_removed(run, whole):
  host, _, token = files.writer().split('-')
  for path in ('.report.html', 'model/.README.md', 'checkpoints/.x'):
    folder, _, name = path.rpartition('/')
    (run / folder / f'{name}.{host}-{2**22 + 1}-{token}-01234567').touch()
  (run / 'checkpoints/9.orbax-checkpoint-tmp/state').mkdir(parents=True)
  (run / 'checkpoints/.removed/1').mkdir(parents=True)
  before = contents(whole).keys()
  assert vit_train(run) == 0
  assert contents(run).keys() == before
  assert {path.name for path in (run / 'checkpoints').iterdir()} == {
    path.name for path in (whole / 'checkpoints').iterdir()
  }


def test_an_evaluation_that_a_signal_ended_is_taken_first_when_the_run_resumes(
  tmp_path, monkeypatch
):
  fields = PLAIN | {'evaluation.every': '2 steps', 'evaluation.patience': '6 steps'}
  fields |= {'checkpoint.keep_latest': 1}
  assert vit_train(tmp_path / 'never', fields) == 0
  measure = train.Evaluator.__call__

  def interrupted(self, step, state):
    if step == 4:
      train.stopping.PROCESS.asked, train.stopping.PROCESS.number = True, 2
      raise train.stopping.Stopped(2, 'evaluation')
    return measure(self, step, state)

  with monkeypatch.context() as patch:
    patch.setattr(train.stopping, 'PROCESS', train.stopping.Process())
    patch.setattr(train.Evaluator, '__call__', interrupted)
    assert vit_train(tmp_path / 'stopped', fields) == 0
  with checkpoints_of(tmp_path / 'stopped') as saved:
    assert saved.steps()[-1] == 4 and not saved.is_evaluated(4)
  assert vit_train(tmp_path / 'stopped', fields) == 0
  assert rows_of(tmp_path / 'stopped') == rows_of(tmp_path / 'never')
  assert parts_of(tmp_path / 'stopped') == parts_of(tmp_path / 'never')
  with checkpoints_of(tmp_path / 'never') as a, checkpoints_of(tmp_path / 'stopped') as b:
    assert a.steps() == b.steps() and a.best_step() == b.best_step()
