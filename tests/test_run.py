"""Laws of a run: resumed = never stopped, patience, non-finite numbers, and what it shows."""

import contextlib
import dataclasses
import fcntl
import functools
import io
import itertools
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax
from tests.compiling import xla_flags
from vit_jax import (
  bundle,
  checkpoint,
  commands,
  config,
  main,
  metrics,
  models,
  sharding,
  text,
  train,
)
from vit_jax import plan as plans
from vit_jax import workdir as workdirs
from vit_jax.guards import owner, stopping
from vit_jax.step import make_state, make_step, untraced
from vit_jax.tasks import classify, losses, means
from vit_jax.views import opening

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 8
# A constant rate, so that runs of any length are one program, compiled once and then cached.
TINY = {
  'model.patch': (4, 4),
  'model.width': 16,
  'model.depth': 2,
  'model.heads': 2,
  'model.mlp_dim': 32,
  'model.unroll': 1,
  'model.dropout': 0.1,
  'model.attention_dropout': 0.1,
  'batch_size': 32,
  'accumulate': 2,
  'ema': 0.5,
  'duration': f'{STEPS} steps',
  'schedule.name': 'constant',
  'schedule.learning_rate': 1e-2,
  'schedule.warmup': '2 steps',
  'evaluation.every': '4 steps',
  'checkpoint.every': '1 steps',
  'checkpoint.keep_latest': STEPS + 1,
  'system.log_every': '1 steps',
  'system.report': False,  # test_pages.py has it
}
# Computed in a moment, where the law is not about how
PLAIN = {'model.depth': 1, 'model.dropout': 0.0, 'model.attention_dropout': 0.0, 'accumulate': 1}
PLAIN |= {'ema': 0.0, 'optimizer.name': 'sgd', 'optimizer.weight_decay': 0.0, 'data.test': ''}
RATES = ('train/images_per_second', 'train/data_wait', 'train/mfu')


def flags(fields=()):
  """The tiny recipe as command-line flags, with some fields replaced."""
  return [f'--config.{name}={value}' for name, value in (TINY | dict(fields)).items()]


def vit_train(workdir, fields=()):
  """`vit train` in this process."""
  return main.main(['--config=digits', f'--workdir={workdir}', *flags(fields)])


def plan_of(fields=()):
  words = [word.removeprefix('--config.') for word in flags(fields)]
  return plans.make_plan(config.load('digits', words))


def checkpoints_of(folder):
  """Those of a run's folder, until the block ends."""
  saved = checkpoint.Checkpoints(folder / 'checkpoints', metric='accuracy', sign=1)
  return contextlib.closing(saved)


@functools.cache
def abstract_state(fields):
  return train.abstract_state(plan_of(fields))


def state_of(workdir, step=None, fields=()):
  """{'step': 8, 'params/head/bias': array, ...} of the newest checkpoint, or of `step`."""
  like = abstract_state(tuple(dict(fields).items()))
  with checkpoints_of(workdir) as saved:
    state = saved.restore_step(step or saved.steps()[-1], like)
  assert state is not None, f'a damaged checkpoint in {workdir}'
  return models.flat(jax.device_get(state))


def assert_same_bits(a, b):
  assert list(a) == list(b)
  different = [name for name in a if np.asarray(a[name]).tobytes() != np.asarray(b[name]).tobytes()]
  assert not different


def rows_of(workdir):
  """The lines of metrics.jsonl, without what depends on the clock."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{name: v for name, v in line.items() if name not in RATES} for line in lines]


def names_by_step(workdir):
  """[(step, 'train'), (4, 'validation'), ...] of every row, in order."""
  return [(row['step'], list(row)[1].split('/')[0]) for row in rows_of(workdir)]


def contents(folder):
  return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob('*') if f.is_file()}


def until(step, run, copy):
  """A copy of a finished run as a kill leaves it that follows the checkpoint of `step`."""
  steps = (file.name for file in (run / 'checkpoints').iterdir() if file.name.isdigit())
  later = [name for name in steps if int(name) > step]
  return shutil.copytree(run, copy, ignore=shutil.ignore_patterns('model', *later))


@contextlib.contextmanager
def on_one_device():
  """Meshes are of the first device alone."""
  make_mesh = sharding.make_mesh

  def one(*axes, devices=None):
    return make_mesh(*axes, devices=devices or jax.devices()[:1])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', one)
    yield


def shared_root(tmp_path_factory):
  base = tmp_path_factory.getbasetemp()
  return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


def shared(tmp_path_factory, name, make):
  """A folder that `make` fills once for all of pytest's processes."""
  folder = shared_root(tmp_path_factory) / name
  with open(folder.with_suffix('.lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / 'made').exists():
      shutil.rmtree(folder, ignore_errors=True)
      folder.mkdir()
      make(folder)
      (folder / 'made').touch()
  return folder


@pytest.fixture(scope='session')
def cache():
  """The folder of compiled programs, which this process and those it starts share."""
  return os.environ['JAX_COMPILATION_CACHE_DIR']


def environment(cache, *, devices=1, **more):
  """All of the environment of a process on so many CPU devices."""
  variables = {name: os.environ[name] for name in ('PATH', 'HOME', 'TMPDIR') if name in os.environ}
  return variables | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': xla_flags(devices),
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'PYTHONPATH': str(ROOT),
    'LANG': 'C.UTF-8',
    **more,
  }


def started(words, env, **options):
  """A Python process in a group of its own."""
  return subprocess.Popen(
    [sys.executable, *map(str, words)],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    **{'cwd': ROOT} | options,
  )


def ended(process, timeout=300):
  """(exit code, stdout, stderr) of a process, which is killed with its group if it lasts longer."""
  try:
    out, err = process.communicate(timeout=timeout)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  return process.returncode, out, err


def python(words, env):
  return ended(started(words, env))


@pytest.fixture(scope='session')
def whole(tmp_path_factory, cache):
  """The folder of a run that was never stopped, with all its checkpoints."""
  return shared(tmp_path_factory, 'whole', lambda f: vit_train(f / 'run')) / 'run'


@contextlib.contextmanager
def stopped_at(step, monkeypatch):
  """Asks the loop to stop after that step of this start, as a signal does."""

  add, steps = train.Watch.add, []

  def counted(self, *measured):
    steps.append(add(self, *measured))

  with monkeypatch.context() as patch:
    patch.setattr(train.Watch, 'add', counted)
    patch.setattr(stopping, 'asked', lambda: len(steps) >= step)
    yield


# Resume


def test_resume_equals_never_having_stopped(whole, tmp_path, monkeypatch, capsys):
  for steps in (1, 6):
    with stopped_at(steps, monkeypatch):
      assert vit_train(tmp_path) == 0
  assert 'stopped at step 7, saved' in capsys.readouterr().out
  assert not (tmp_path / 'model').exists()
  assert vit_train(tmp_path) == 0
  assert 'resumes at step 7' in capsys.readouterr().out
  assert_same_bits(state_of(tmp_path), state_of(whole))
  assert rows_of(tmp_path) == rows_of(whole)
  assert contents(tmp_path / 'model') == contents(whole / 'model')


def test_every_logged_step_is_in_the_metrics_once(whole):
  names = names_by_step(whole)
  assert [step for step, name in names if name == 'train'] == list(range(1, STEPS + 1))
  assert [step for step, name in names if name == 'validation'] == [4, 8]
  assert [step for step, name in names if name == 'test'] == [8]


def test_a_run_killed_between_its_test_and_its_model_logs_the_test_once(
  whole, tmp_path, monkeypatch
):
  def killed(*_):
    raise KeyboardInterrupt

  until(STEPS, whole, tmp_path / 'run')
  with monkeypatch.context() as patch:
    patch.setattr(bundle, 'write', killed)
    assert vit_train(tmp_path / 'run') == 130
  assert vit_train(tmp_path / 'run') == 0
  assert names_by_step(tmp_path / 'run') == names_by_step(whole)


def test_the_report_is_written_when_nothing_of_the_run_is_on_the_devices(
  tmp_path, monkeypatch, capsys
):
  from vit_jax.views import report

  def held():
    return sum(array.nbytes for array in jax.live_arrays())

  before, freed = held(), []
  monkeypatch.setattr(report, 'after_training', lambda folder, say: freed.append(held() - before))
  assert vit_train(tmp_path, {'system.report': True, 'duration': '2 steps'}) == 0
  params = 4 * metrics.parameters(vit_jax.load(tmp_path).params)
  assert len(freed) == 1 and freed[0] < params / 2  # of a state of four times as much
  assert capsys.readouterr().out.splitlines()[-1].startswith('the model is in ')


def test_the_second_of_two_starts_ends_with_2_and_the_name_of_the_first(whole, tmp_path, capsys):
  run = until(6, whole, tmp_path / 'run')
  with owner.Owner(run):
    before = contents(run)
    assert vit_train(run) == 2
    assert contents(run) == before
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith(f'vit train: {run} is in use: process {os.getpid()} on ')


def test_the_status_of_a_finished_run_says_what_it_came_to(whole):
  status = owner.read(whole)
  assert (status['state'], status['step'], status['total']) == ('finished', STEPS, STEPS)
  assert (status['eta_seconds'], status['stale']) == (0, False)
  measured = status['last_evaluation']
  assert (measured['step'], measured['split'], measured['count']) == (STEPS, 'test', 359)
  assert not (whole / owner.LOCK).exists()


def test_a_finished_run_says_so_and_changes_nothing(whole, capsys):
  before = contents(whole)
  assert vit_train(whole) == 0
  assert 'is finished: its model is in' in capsys.readouterr().out
  assert contents(whole) == before


def test_how_a_run_is_computed_may_change_when_it_is_resumed(whole, tmp_path, capsys):
  run = until(6, whole, tmp_path / 'run')
  assert vit_train(run, {'system.threads': 1, 'system.prefetch': 0}) == 0
  assert capsys.readouterr().err == ''
  assert_same_bits(state_of(run), state_of(whole))


def test_another_config_is_refused_by_the_names_of_its_fields(whole, capsys):
  before = contents(whole)
  other = {'seed': 1, 'schedule.learning_rate': 0.5, 'system.threads': 1}
  assert vit_train(whole, other) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'seed is 0 there and 1 here' in line
  assert 'schedule.learning_rate is 0.01 there and 0.5 here' in line
  assert 'threads' not in line
  assert contents(whole) == before


# Signals, killing and workers, in processes of their own

LONG = PLAIN | {'duration': '120 steps', 'checkpoint.every': '50 steps'}
LONG |= {'evaluation.every': '120 steps', 'checkpoint.keep_latest': 2}


def train_words(folder, fields=()):
  return ['-m', 'vit_jax.main', '--config=digits', f'--workdir={folder}', *flags(fields)]


def interrupted_run(folder, env, send, fields=()):
  """A long run; `send(process)` happens a few steps past its first checkpoint."""
  process = started(train_words(folder, LONG | dict(fields)), env)
  lines, end = folder / 'metrics.jsonl', time.monotonic() + 240
  saved = folder / 'checkpoints/50'
  while not saved.exists() or lines.read_text().count('\n') < 55:
    if process.poll() is not None or time.monotonic() > end:
      raise AssertionError(f'ended too early: {ended(process)}')
    time.sleep(0.005)
  send(process)
  code, out, err = ended(process)
  record = {'code': code, 'out': out, 'err': err}
  folder.with_suffix('.json').write_text(json.dumps(record))
  shutil.copy(lines, folder.with_suffix('.jsonl'))


@pytest.fixture(scope='session')
def interrupted(tmp_path_factory, cache):
  """Runs on one device, interrupted in each way and resumed, and one that never was."""

  def make(folder):
    env = environment(cache)
    interrupted_run(folder / 'sigterm', env, lambda p: p.send_signal(signal.SIGTERM))
    interrupted_run(folder / 'sigkill', env, lambda p: p.kill())
    # Ctrl-C in a terminal goes to all of a process group, workers too.
    ctrl_c = {'system.workers': 1}
    interrupted_run(folder / 'ctrl_c', env, lambda p: os.killpg(p.pid, signal.SIGINT), ctrl_c)
    with on_one_device():
      for name in ('never', 'sigterm', 'sigkill', 'ctrl_c'):
        with contextlib.redirect_stdout(io.StringIO()) as out:
          assert vit_train(folder / name, LONG) == 0
        (folder / f'{name}_resumed.txt').write_text(out.getvalue())

  return shared(tmp_path_factory, 'interrupted', make)


def record_of(interrupted, kind):
  return json.loads((interrupted / f'{kind}.json').read_text())


@pytest.mark.parametrize('kind, name', [('sigterm', 'SIGTERM'), ('ctrl_c', 'SIGINT')])
def test_a_signalled_run_saves_says_so_and_exits_zero(interrupted, kind, name):
  record = record_of(interrupted, kind)
  assert (record['code'], record['err']) == (0, '')
  assert f'{name}: saving after this step; once more ends at once' in record['out']
  assert re.search(r'stopped at step \d+, saved: the same command resumes there', record['out'])


@pytest.mark.parametrize('kind', ['sigterm', 'sigkill', 'ctrl_c'])
def test_an_interrupted_run_resumes_to_the_same_bits(interrupted, kind):
  ours, theirs = (state_of(interrupted / name, fields=LONG) for name in (kind, 'never'))
  assert_same_bits(ours, theirs)
  assert contents(interrupted / kind / 'model') == contents(interrupted / 'never' / 'model')


def test_a_kill_between_log_and_checkpoint_leaves_every_step_in_the_metrics_once(interrupted):
  out = (interrupted / 'sigkill_resumed.txt').read_text()
  assert re.search('resumes at step (50|100)', out)
  assert (interrupted / 'sigkill.jsonl').read_text().count('\n') >= 55
  assert rows_of(interrupted / 'sigkill') == rows_of(interrupted / 'never')


def test_ctrl_c_outside_the_loop_is_one_line_and_130(tmp_path, monkeypatch, capsys):
  def ctrl_c(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(train, 'introduce', ctrl_c)
  assert vit_train(tmp_path) == 130
  assert len(capsys.readouterr().err.splitlines()) == 1


SPLIT = {'system.fsdp': 2, 'system.tensor': 2}


@pytest.fixture(scope='session')
def meshed(tmp_path_factory):
  """Runs on eight devices, 2 x 2 x 2: one resumed, one never stopped."""

  def make(folder):
    assert vit_train(folder / 'never', SPLIT) == 0
    until(3, folder / 'never', folder / 'resumed')
    assert vit_train(folder / 'resumed', SPLIT) == 0

  return shared(tmp_path_factory, 'meshed', make)


def test_resume_equals_never_having_stopped_on_eight_devices(meshed):
  assert jax.device_count() == 8
  assert_same_bits(*(state_of(meshed / name, fields=SPLIT) for name in ('resumed', 'never')))
  assert rows_of(meshed / 'resumed') == rows_of(meshed / 'never')


def test_a_checkpoint_of_eight_devices_restores_to_the_same_bits_on_others(meshed):
  assert_same_bits(state_of(meshed / 'never'), state_of(meshed / 'never', fields=SPLIT))


# Patience and the best


def scripted(values, monkeypatch, losses=None):
  """Evaluations give these accuracies and losses by step; parameters and steps stay real."""
  evaluate, at = train.Evaluator.__call__, []

  def call(self, step, state):
    at[:] = [step]
    return evaluate(self, step, state)

  def measure(self, use, params, *, keep=0, wide=True):
    value = values.get(at[0], 0.0) if use == 'validation' else 0.0
    loss = 1 - value if losses is None else losses.get(at[0], 1.0)
    return {'loss': loss, 'accuracy': value, 'count': 1.0}, {}

  monkeypatch.setattr(train.Evaluator, '__call__', call)
  monkeypatch.setattr(train.Evaluator, 'measure', measure)


PATIENT = {'evaluation.every': '1 steps', 'evaluation.patience': '3 steps'}
PATIENT |= {'checkpoint.keep_latest': 1}
CURVE = {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.5, 5: 0.4, 6: 0.9}  # best at 2; given up at 5


def steps_kept(workdir):
  return sorted(int(f.name) for f in (workdir / 'checkpoints').iterdir() if f.name.isdigit())


def assert_model_is(workdir, state, *, part='ema'):
  params = models.flat(vit_jax.load(workdir).params)
  expected = {n.removeprefix(f'{part}/'): v for n, v in state.items() if n.startswith(f'{part}/')}
  assert_same_bits(params, expected)


@pytest.mark.parametrize('metric, best', [('accuracy', 2), ('ema_loss', 3)])
def test_patience_ends_a_run_with_the_model_of_its_best_step_by_the_metric_that_is_named(
  whole, metric, best, tmp_path, monkeypatch, capsys
):
  scripted(CURVE, monkeypatch, losses={1: 0.9, 2: 0.8, 3: 0.1, 4: 0.2, 5: 0.3, 6: 0.4})
  assert vit_train(tmp_path, PATIENT | {'evaluation.metric': metric}) == 0
  assert f'takes the parameters of step {best}, the best on valid' in capsys.readouterr().out
  assert max(step for step, _ in names_by_step(tmp_path)) == best + 3
  assert best in steps_kept(tmp_path)
  assert_model_is(tmp_path, state_of(whole, best))


def test_a_measure_of_evaluations_alone_may_rank_them(tmp_path):
  fields = PLAIN | {'evaluation.metric': 'f1_macro', 'duration': '2 steps', 'ema': 0.5}
  assert vit_train(tmp_path, fields | {'evaluation.every': '1 steps'}) == 0
  rows = [row for row in rows_of(tmp_path) if 'validation/ema_f1_macro' in row]
  assert [row['step'] for row in rows] == [1, 2]
  measured = json.loads((tmp_path / 'evaluation.json').read_text())
  assert rows[-1]['validation/ema_f1_macro'] == pytest.approx(
    measured['f1_macro'], abs=1e-6
  )  # rounded
  assert rows[-1]['validation/f1_macro'] != measured['f1_macro']
  assert workdirs.read_ranks(tmp_path) == {'accuracy': 1, 'loss': -1, 'f1_macro': 1}


@pytest.mark.parametrize('stop', [2, 4])
def test_a_resumed_run_does_not_forget_its_best_step(stop, tmp_path, monkeypatch):
  scripted(CURVE, monkeypatch)
  fields = PLAIN | PATIENT
  with stopped_at(stop, monkeypatch):
    vit_train(tmp_path, fields)
  assert vit_train(tmp_path, fields) == 0
  assert max(step for step, _ in names_by_step(tmp_path)) == 5
  assert_model_is(tmp_path, state_of(tmp_path, 2, fields), part='params')


def test_an_interruption_is_not_taken_for_the_end_of_patience(tmp_path, monkeypatch):
  # Patience lasts from step 2 to 5, and the evaluation at 6 is better: it is not stopped.
  scripted({2: 0.5, 4: 0.4, 6: 0.9, 8: 0.3}, monkeypatch)
  fields = PLAIN | {'evaluation.every': '2 steps', 'evaluation.patience': '3 steps'}
  fields |= {'checkpoint.every': '100 steps'}
  assert vit_train(tmp_path / 'never', fields) == 0
  with stopped_at(5, monkeypatch):
    vit_train(tmp_path / 'stopped', fields)
  vit_train(tmp_path / 'stopped', fields)
  assert names_by_step(tmp_path / 'stopped') == names_by_step(tmp_path / 'never')


def test_the_best_step_damaged_is_not_silently_replaced_by_the_last(tmp_path, monkeypatch, capsys):
  scripted(CURVE, monkeypatch)
  fields = PLAIN | PATIENT | {'checkpoint.keep_best': 2}
  with stopped_at(4, monkeypatch):
    vit_train(tmp_path, fields)
  (tmp_path / 'checkpoints/2/seal.json').write_text('')
  vit_train(tmp_path, fields)
  # 4 is as good as 2 was, and later: the best of those that are left.
  assert 'takes the parameters of step 4, the best on validation' in capsys.readouterr().out


def test_the_average_is_evaluated_and_becomes_the_model(whole):
  state = state_of(whole)
  assert_model_is(whole, state)
  params = np.asarray(state['params/embed/kernel'])
  assert not np.array_equal(params, state['ema/embed/kernel'])
  evaluated = [row for row in rows_of(whole) if 'validation/accuracy' in row]
  assert all(row['validation/ema_loss'] != row['validation/loss'] for row in evaluated)


# Rows of metrics.jsonl


def test_rows_of_a_run_that_was_stopped_are_those_of_one_that_was_not(tmp_path, monkeypatch):
  fields = PLAIN | {'system.log_every': 3}
  fields |= {'evaluation.every': '5 steps', 'checkpoint.every': '3 steps'}
  assert vit_train(tmp_path / 'never', fields) == 0
  stops = (0, 1, 2, 4, 6)  # twice in the first row, in the next, at its end
  page = tmp_path / 'stopped/report.html'
  page.parent.mkdir()
  page.write_text(f'<title></title>\n{opening.as_progress("Stopped.")}')
  for begin, end in itertools.pairwise(stops):
    with stopped_at(end - begin, monkeypatch):
      assert vit_train(tmp_path / 'stopped', fields) == 0
    assert f'Stopped, step {end} of 8' in page.read_text()  # so that it said that the run trains
  assert vit_train(tmp_path / 'stopped', fields) == 0
  assert rows_of(tmp_path / 'stopped') == rows_of(tmp_path / 'never')
  steps = [row['step'] for row in rows_of(tmp_path / 'never') if 'train/loss' in row]
  assert steps == [3, 6, 8]


def test_the_numbers_before_a_stop_count_in_the_row_after_it_but_not_in_its_rate():
  first = metrics.Meter(means)
  for step in range(3):
    first.add({'loss': np.float32(step), 'count': 4}, {})
  second = metrics.Meter(means, json.loads(json.dumps(first.state())))
  second.began -= 2.0  # seconds
  second.add({'loss': np.float32(5), 'count': 4}, {'learning_rate': 0.5})
  row = second.read()
  assert row['loss'] == 8 / 16 and row['learning_rate'] == 0.5
  assert row['images_per_second'] == pytest.approx(2, rel=0.05)  # 4 images in 2 seconds


@pytest.mark.parametrize('total', [1, 7, 77, 100, 101, 199, 250, 299, 5000, 5001, 300_000])
def test_a_run_has_at_least_a_hundred_rows_and_one_every_fifty_steps(total):
  every = plans.log_every(None, lambda duration: pytest.fail('is not asked'), total)
  rows = len({step for step in range(1, total + 1) if train.due(step, every, total)})
  assert every <= 50 and rows >= min(total, 100)


def test_how_often_rows_are_written_can_be_said():
  assert plan_of({'system.log_every': '2 steps'}).log_every == 2
  assert plan_of({'system.log_every': 3}).log_every == 3
  assert plan_of({'system.log_every': None, 'duration': '500 steps'}).log_every == 5


# Non-finite numbers


def quadratic(params, batch, key, fixed):
  loss = jnp.sum(batch['image'] * params['w'] ** 2)
  return loss, {'loss': loss, 'count': jnp.asarray(2.0)}, {}


def updated(learning_rate, pixels):
  """The state before and after one guarded update of a two-number model, and what was measured."""
  tx = optax.adam(learning_rate)
  params = {'w': jnp.asarray([1.0, 2.0])}
  state = make_state(params, tx, ema=True).replace(step=jnp.asarray(1))
  step = make_step(quadratic, tx, lambda s: jnp.asarray(learning_rate), ema=0.5)
  return state, *jax.jit(step)(state, {'image': jnp.asarray(pixels)})


def test_a_finite_update_changes_parameters_moments_and_average():
  before, after, measured = updated(0.1, [1.0, 1.0])
  assert measured['finite'] and after.step == 2
  for part in ('params', 'opt_state', 'ema'):
    same = jax.tree.map(np.array_equal, getattr(before, part), getattr(after, part))
    assert not all(jax.tree.leaves(same)), part


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_an_update_with_a_non_finite_loss_changes_only_the_step(bad):
  before, after, measured = updated(0.1, [1.0, bad])
  assert not measured['finite'] and after.step == -2  # it failed at step 1, and stays there
  for part in ('params', 'opt_state', 'ema'):
    jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(after, part))


@pytest.mark.parametrize('rate', [np.inf, np.nan])
def test_an_update_that_is_itself_not_finite_is_named(rate):
  _, _, measured = updated(rate, [1.0, 1.0])
  assert not measured['finite']  # and the run ends before it is saved


def test_a_run_that_overflows_ends_with_one_line_and_its_last_checkpoint_finite(tmp_path, capsys):
  fields = PLAIN | {'schedule.learning_rate': 1e37, 'schedule.warmup': '1 steps'}
  assert vit_train(tmp_path, fields) == commands.NOT_FINITE
  [line] = capsys.readouterr().err.splitlines()
  assert re.search(r'vit train: step \d+: .+ is not finite; nothing of it was saved', line)
  state = state_of(tmp_path, fields=fields)
  assert all(np.isfinite(value).all() for value in state.values())
  assert steps_kept(tmp_path)[-1] < int(re.search(r'step (\d+)', line)[1])


def test_the_first_tensor_in_the_order_of_computation_is_named():
  plan = plan_of(PLAIN | {'data.std': (1e-45,) * 3})  # 0 in float32
  batch = {
    'image': jnp.zeros((8, 8, 8, 3), jnp.uint8),
    'label': jnp.zeros(8, jnp.int32),
    'mask': jnp.ones(8),
  }
  assert train.first_nonfinite(plan, {}, 1, train.placed_state(plan), batch) == 'images'


def test_what_is_named_is_what_the_failed_update_itself_computed():
  def loss(logits, targets):  # infinite of images that were mixed alone
    mixed = ((targets > 0) & (targets < 1)).any(-1)
    return jnp.where(mixed, jnp.inf, losses.softmax_cross_entropy(logits, targets))

  plan = plan_of(PLAIN)
  stats = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
  mixing = classify.make_loss(plan.task.model.apply, loss=loss, mixup=1.0, **stats)
  plan = dataclasses.replace(plan, task=dataclasses.replace(plan.task, loss=mixing))
  batch = {
    'image': jnp.zeros((8, 8, 8, 3), jnp.uint8),
    'label': jnp.arange(8, dtype=jnp.int32),
    'mask': jnp.ones(8),
  }
  state = train.placed_state(plan)
  before = jax.tree.map(np.asarray, state.params)
  state, measured = train.updater(plan)(state, batch, {})
  assert not measured['finite'] and state.step == -1
  state, measured = train.updater(plan)(state, batch, {})  # no later step changes anything
  assert not measured['finite'] and state.step == -1
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))
  assert train.first_nonfinite(plan, {}, 1, state, batch) == 'loss'


def test_the_step_of_a_run_does_not_compute_the_trace():
  plan = plan_of()
  batch = {name: jnp.zeros((32, *c.shape), c.dtype) for name, c in plan.task.columns.items()}
  args = (train.abstract_state(plan), batch | {'mask': jnp.ones(32)}, {})
  tests = [
    jax.jit(step).lower(*args).as_text().count('is_finite')
    for step in (plan.step(), untraced(plan.step()))
  ]
  assert tests[1] <= 8 < tests[0] / 4


# What it shows


def test_without_a_terminal_it_shows_plain_lines(interrupted):
  out = record_of(interrupted, 'sigterm')['out']
  assert 'compiling the training step ...' in out.splitlines()
  assert re.search(r'^compiled the training step in \d+\.\d s$', out, re.MULTILINE)
  number = r'[\d,]+'
  step = rf'^step \d+/120  loss \d+\.\d+  accuracy \d+\.\d+  {number} images/s  data wait \d+\.\d%'
  assert re.search(step + r'  ETA \d+ s$', out, re.MULTILINE)
  assert '\x1b' not in out


def test_on_a_terminal_it_shows_a_bar_and_nothing_on_stderr(tmp_path, cache):
  ours, theirs = pty.openpty()
  env = environment(cache, TERM='xterm', COLUMNS='120')
  with open(tmp_path / 'stderr', 'wb') as err:
    words = [sys.executable, *train_words(tmp_path / 'run', PLAIN)]
    process = subprocess.Popen(words, env=env, cwd=ROOT, stdout=theirs, stderr=err, stdin=theirs)
  os.close(theirs)
  shown = b''
  with contextlib.suppress(OSError):  # a pseudo-terminal ends with an error
    while piece := os.read(ours, 65536):
      shown += piece
  os.close(ours)
  assert process.wait(timeout=300) == 0
  assert (tmp_path / 'stderr').read_text() == ''
  text = shown.decode()
  assert '\x1b[' in text
  assert f'{STEPS}/{STEPS}' in text and '━' in text
  frames = text.split('\r\x1b[2K')
  assert sum(a == b for a, b in itertools.pairwise(frames)) <= 1  # the last, drawn at the end
  epochs = f'{STEPS * 32 / 1259:.4g}'
  notes = [
    rf'ETA \d+:\d\d  loss \d\.\d+  epoch 0\.03/{epochs}',
    r'best accuracy 0\.\d+  loss \d',
  ]
  assert all(re.search(note, text) for note in notes)
  assert 'compiling the training step' in text
  assert not re.search(rf'step \d+/{STEPS}  loss', text)  # those are for files


def test_a_bar_has_loss_speed_and_the_time_that_remains_from_the_first_step_on(monkeypatch):
  clock = itertools.count(0, 10)  # seconds
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: next(clock))
  monkeypatch.setenv('COLUMNS', '120')
  display = metrics.Display(100, epoch=40, batch=64)
  display.resume('accuracy', 0.75)
  display.step(1, {'loss': 6.0, 'count': 3})
  best = 'best accuracy 0.7500'
  assert display.note(1) == f'ETA 16:30  {best}  loss 2.0000  epoch 0.03/2.5  6 images/s'
  display.step(2, {'loss': 3.0, 'count': 3})
  assert 'loss 1.5000' in display.note(2) and 'ETA 16:20' in display.note(2)
  for step in range(3, 400):
    display.step(step, {'loss': 3.0, 'count': 3})
  assert 'loss 1.0000' in display.note(100) and 'ETA 0:00' in display.note(100)


@pytest.mark.parametrize('width', [60, 80, 100, 200])
@pytest.mark.parametrize('metric', ['accuracy', 'mean_average_precision'])
def test_a_bar_has_its_time_and_best_whole_on_one_line_of_any_width(width, metric, monkeypatch):
  monkeypatch.setenv('COLUMNS', str(width))
  display = metrics.Display(123_456, epoch=40, batch=64)
  display.pace.seconds = 1.0
  display.resume(metric, 0.75)
  display.waits = 'data wait 12.3%  MFU 45.6%'
  display.bars.update(display.task, completed=99_999, note=display.note(99_999))
  with display.console.capture() as capture:
    display.console.print(display.bars.get_renderable())
  (line,) = capture.get().splitlines()
  assert 'ETA 6:30:57' in line and '0.7500' in line and '…' not in line
  assert ('MFU 45.6%' in line) == (width == 200) and ('loss' in line or width < 100)


def test_a_long_name_before_a_bar_is_cut_and_its_numbers_are_not(monkeypatch):
  monkeypatch.setenv('COLUMNS', '60')
  with text.progress_bars(unit='bytes') as bars:
    monkeypatch.setattr(text, 'progress_bars', lambda unit: contextlib.nullcontext(bars))
    with text.progress(10**9, description='fetching ' + 'B_16' * 30, unit='bytes') as advance:
      advance(2 * 10**8)
  with bars.console.capture() as capture:
    bars.console.print(bars.get_renderable())
  (line,) = capture.get().splitlines()
  assert line.startswith('fetching …') and '0.2/1.0 GB' in line


def test_the_tables_total_is_the_number_of_parameters():
  plan = plan_of()
  params = train.abstract_state(plan).params
  lines = metrics.summary(params, plan.forward_flops, 32 * plan.update_flops)
  [total] = [line.split() for line in lines if line.startswith('total')]
  counted = sum(leaf.size for leaf in jax.tree.leaves(train.placed_state(plan).params))
  assert total == ['total', str(len(jax.tree.leaves(params))), f'{counted:,}']
  parts = [line.split() for line in lines[1:] if not line.startswith(('total', 'FLOPs'))]
  assert sum(int(part[2].replace(',', '')) for part in parts) == counted
