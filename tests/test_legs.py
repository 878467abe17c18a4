"""Laws of a run that is extended or changed: what a leg is, and that it resumes to the bit."""

import json
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from tests.test_run import (
  PLAIN,
  assert_same_bits,
  contents,
  flags,
  models,
  rows_of,
  state_of,
  stopped_at,
)
from vit_jax import bundle, main, workdir
from vit_jax.guards import legs, seals

STEPS = 4
BASE = PLAIN | {'duration': f'{STEPS} steps', 'schedule.name': 'cosine', 'evaluation.every': 2}
LEG = ('--extend', '4steps', '--change', 'schedule.learning_rate=0.02')
LONGER = BASE | {'duration': '8 steps'}


def train(folder, *words, fields=BASE):
  """`vit train`; with flags of a leg as its line may be, by the folder alone."""
  if words and folder.exists():
    return main.main([f'--workdir={folder}', *words])
  return main.main(['--config=digits', f'--workdir={folder}', *flags(fields), *words])


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A finished run of four steps, by a cosine with a warm-up of two."""
  folder = tmp_path_factory.mktemp('base') / 'run'
  assert train(folder) == 0
  return folder


@pytest.fixture(scope='module')
def extended(base, tmp_path_factory):
  """The run with a leg of four more steps, at twice the rate."""
  folder = shutil.copytree(base, tmp_path_factory.mktemp('extended') / 'run')
  assert train(folder, *LEG) == 0
  return folder


@pytest.fixture
def run(base, tmp_path):
  return shutil.copytree(base, tmp_path / 'run')


def test_a_leg_that_was_stopped_equals_one_that_was_not(run, extended, monkeypatch, capsys):
  with stopped_at(2, monkeypatch):
    assert train(run, *LEG) == 0
  assert 'stopped at step 6, saved' in capsys.readouterr().out
  assert train(run, *LEG) == 0
  assert 'resumes at step 6' in capsys.readouterr().out
  assert_same_bits(state_of(run, fields=LONGER), state_of(extended, fields=LONGER))
  assert rows_of(run) == rows_of(extended)
  assert contents(run / 'model') == contents(extended / 'model')
  [ours], [theirs] = legs.read(run), legs.read(extended)
  assert (ours.step, ours.fields) == (theirs.step, theirs.fields)


def test_the_schedule_of_a_finished_run_begins_anew_with_its_leg(extended):
  rates = [row['train/learning_rate'] for row in rows_of(extended) if 'train/loss' in row]
  np.testing.assert_allclose(rates[STEPS:], 2 * np.array(rates[:STEPS]), rtol=1e-6)
  assert rates[:2] == [0, 0.005]


def test_a_leg_is_recorded_and_what_the_former_delivered_stays(base, extended):
  [leg] = legs.read(extended)
  assert (leg.step, leg.request) == (4, {'extend': '4steps', 'change': [LEG[3]]})
  assert leg.fields == {
    'duration': ['4 steps', '8 steps'],
    'schedule.begin': ['0 steps', '4 steps'],
    'schedule.learning_rate': [0.01, 0.02],
    'schedule.warmup': ['2 steps', '50.0000%'],
  }
  assert '--extend 4steps' in leg.command
  config = json.loads((extended / 'config.json').read_text())
  assert (config['duration'], config['schedule']['learning_rate']) == ('8 steps', 0.02)
  assert contents(extended / 'legs/1/model') == contents(base / 'model')
  assert bundle.read(extended / 'legs/1').step == 4 and bundle.read(extended).step == 8


def test_checkpoints_of_earlier_legs_are_this_run_s(base, extended):
  names = {path.name for path in (extended / 'checkpoints').iterdir()}
  assert {'1', '2', '3', '4', '5', '6', '7', '8'} <= names
  assert not [name for name in names if 'unused' in name]
  first = state_of(base, 4, fields=BASE)
  params = {n.removeprefix('params/'): v for n, v in first.items() if n.startswith('params/')}
  assert_same_bits(models.flat(jax.device_get(vit_jax.load(extended, '4').params)), params)


def test_without_flags_other_fields_are_refused_and_the_flag_is_named(run, capsys):
  before = contents(run)
  assert train(run, fields=BASE | {'schedule.learning_rate': 0.5}) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'schedule.learning_rate is 0.01 there and 0.5 here' in line
  assert line.endswith('--change schedule.learning_rate=0.5')
  assert contents(run) == before


@pytest.mark.parametrize(
  'words, message',
  [
    (['--change', 'seed=1'], 'seed cannot change, it is the order of the images'),
    (['--change', 'batch_size=64'], 'batch_size cannot change, it is what a step is'),
    (['--change', 'model.heads=4'], 'model.heads cannot change, it is the network'),
    (['--change', 'data.validation='], 'it is what the evaluations so far were measured on'),
    (['--extend', '2steps', '--change', 'ema=0.9'], 'the average would be of other shapes'),
    (
      ['--extend', '2steps', '--change', 'optimizer.name=adam'],
      'state of the optimiser would be of',
    ),
    (['--change', 'schedule.learning_rate=1'], 'is at its end, step 4: --extend says how far'),
    (['--change', 'duration=3 steps'], "duration '3 steps' is 3 steps"),
    (['--extend', '2steps', '--change', 'duration=9 steps'], 'both say where the run ends'),
    (['--extend', '0'], "--extend is '0', must be at least a step"),
    (['--extend', 'much'], "'much' is not a duration such as '100 steps', '2 epochs'"),
    (['--change', 'schedule.rate=1'], "unknown field 'schedule.rate'"),
  ],
)
def test_what_no_leg_can_be_is_one_line_and_changes_nothing(words, message, run, capsys):
  before = contents(run)
  assert train(run, *words) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert message in line
  assert contents(run) == before


def test_the_line_that_began_a_run_may_extend_it_too(run, extended, capsys):
  words = ['--config=digits', f'--workdir={run}', *flags(BASE)]
  assert main.main([*words, *LEG]) == 0
  assert_same_bits(state_of(run, fields=LONGER), state_of(extended, fields=LONGER))
  assert main.main(words) == 2
  assert "duration is '8 steps' there and '4 steps' here" in capsys.readouterr().err
  assert main.main([f'--workdir={run}']) == 0
  assert 'is finished' in capsys.readouterr().out


def test_there_is_no_leg_without_a_run(tmp_path, capsys):
  assert train(tmp_path / 'none', '--extend', '2steps') == 2
  assert 'holds no run: --extend and --change go on from one' in capsys.readouterr().err
  assert not (tmp_path / 'none').exists()


def test_a_run_on_its_way_keeps_its_schedule_s_place(tmp_path, monkeypatch, capsys):
  with stopped_at(2, monkeypatch):
    assert train(tmp_path) == 0
  assert train(tmp_path, '--extend', '4steps', '--change', 'schedule.warmup=0 steps') == 0
  assert "duration '4 steps' -> '8 steps'" in capsys.readouterr().out
  rates = [row['train/learning_rate'] for row in rows_of(tmp_path) if 'train/loss' in row]
  assert rates[4] == pytest.approx(0.005) and len(rates) == 8  # half of the way down


def test_a_finished_leg_is_extended_again_and_then_finished(extended, tmp_path, capsys):
  run = shutil.copytree(extended, tmp_path / 'run')
  assert train(run, '--extend', '1 steps') == 0
  assert 'leg 3 of the run, after step 8' in capsys.readouterr().out
  assert [leg.step for leg in legs.read(run)] == [4, 8] and bundle.read(run).step == 9
  assert sorted(path.name for path in (run / 'legs').iterdir()) == ['1', '2']


def test_a_kill_between_the_two_files_of_a_leg_loses_none(base, extended, tmp_path):
  shutil.copy(base / 'config.json', tmp_path)
  assert workdir.read_config(tmp_path)['duration'] == '4 steps'
  shutil.copy(extended / 'legs.json', tmp_path)
  assert workdir.read_config(tmp_path) == workdir.read_config(extended)


def test_a_leg_whose_first_checkpoint_is_lost_is_not_gone_on_with(extended, tmp_path, capsys):
  run = shutil.copytree(extended, tmp_path / 'run')
  for name in ('model', *(f'checkpoints/{step}' for step in (4, 5, 6, 7, 8))):
    shutil.rmtree(run / name)
  fields = {name: new for name, (_, new) in legs.read(run)[0].fields.items()}
  assert train(run, fields=BASE | fields) == 1
  assert 'begins at step 4, whose checkpoint is lost: the newest is of s' in capsys.readouterr().err
  assert train(run, *LEG) == 0
  assert [leg.step for leg in legs.read(run)] == [3, 3]
  assert 'leg 3 of the run, after step 3' in capsys.readouterr().out
  sealed = [seals.read(run / f'checkpoints/{step}').origin.config for step in (4, 7)]
  assert sealed[0] == sealed[1] and sealed[0]['duration'] == '12 steps'


def test_patience_begins_anew_with_a_leg(tmp_path, monkeypatch, capsys):
  fields = BASE | {'evaluation.every': 1, 'evaluation.patience': '1 steps', 'duration': '6 steps'}
  fields |= {'schedule.learning_rate': 0.0}  # nothing is bettered
  assert train(tmp_path, fields=fields) == 0
  assert bundle.read(tmp_path).step == 1 and not (tmp_path / 'checkpoints/3').exists()
  assert train(tmp_path, '--extend', '3steps', fields=fields) == 0
  assert (tmp_path / 'checkpoints/3').exists()
  assert 'duration' in legs.read(tmp_path)[0].fields


@pytest.mark.parametrize('text', ['', '{}', '{"legs": [{"step": "a"}]}', '[]'])
def test_damaged_legs_are_one_line(text, tmp_path):
  (tmp_path / 'legs.json').write_text(text)
  with pytest.raises(ValueError, match=r'legs.json (is damaged|cannot be read)'):
    legs.read(tmp_path)
