"""Damaged checkpoints are noticed, named and passed over; what failed to be written is told."""

import contextlib
import dataclasses
import errno
import json
import re
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_run import (
  assert_same_bits,
  cache,
  contents,
  environment,
  names_by_step,
  python,
  rows_of,
  state_of,
  until,
  vit_train,
  whole,
)
from vit_jax import checkpoint
from vit_jax.guards import owner, processes, seals, writing

__all__ = ['cache', 'whole']


def data_file(step):
  """The largest file of a checkpoint: arrays."""
  return max(step.rglob('d/*'), key=lambda file: file.stat().st_size)


def with_data(change):
  """A fault: `change(data, middle)` in the place of a checkpoint's arrays."""

  def fault(step):
    file = data_file(step)
    data = file.read_bytes()
    file.write_bytes(change(data, len(data) // 2))

  return fault


def with_seal(change):
  """A fault: `change(text)` in the place of a checkpoint's seal."""

  def fault(step):
    seal = step / 'seal.json'
    seal.write_text(change(seal.read_text()))

  return fault


def empty_the_folder(step):
  shutil.rmtree(step)
  step.mkdir()


def take_the_seal(step):
  (step / 'seal.json').unlink()


flip_a_byte = with_data(lambda data, n: data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :])
FAULTS = {
  'a byte flipped': flip_a_byte,
  'zeros': with_data(lambda data, n: data[:n] + bytes(64) + data[n + 64 :]),
  'truncated': with_data(lambda data, _: data[:-1]),
  'no file of data': lambda step: data_file(step).unlink(),
  'no manifest': lambda step: (step / 'state/manifest.ocdbt').unlink(),
  'an empty folder': empty_the_folder,
  'no seal': take_the_seal,
  'a truncated seal': with_seal(lambda text: text[:-20]),
  'an empty seal': with_seal(lambda _: '{}'),
  'a seal that is a list': with_seal(lambda _: '[1, 2]'),
  'a seal of another step': with_seal(lambda text: text.replace('"step": 1', '"step": 2')),
}


def lines_on_damage(out):
  return [line for line in out.splitlines() if 'is damaged' in line]


def test_damaged_checkpoints_are_named_and_the_one_before_ends_the_same(whole, tmp_path, capsys):
  run = until(8, whole, tmp_path / 'run')
  saved, faults = run / 'checkpoints', {8: flip_a_byte, 7: take_the_seal, 6: empty_the_folder}
  for step, fault in faults.items():
    fault(saved / str(step))
  # What a kill leaves, and what is someone's, is passed over.
  for name in ('9.orbax-checkpoint-tmp', '8.orbax-checkpoint-tmp-123'):
    (saved / name).mkdir()
  (saved / 'notes.txt').write_text('mine')
  assert vit_train(run) == 0
  output = capsys.readouterr()
  lines = lines_on_damage(output.out)
  named = [re.search(r'checkpoints/(\d) is damaged \(.+\): not used', line)[1] for line in lines]
  assert named == [str(step) for step in faults]
  assert 'resumes at step 5' in output.out and output.err == ''
  assert_same_bits(state_of(run), state_of(whole))
  assert contents(run / 'model') == contents(whole / 'model')
  assert rows_of(run) == rows_of(whole)
  assert (saved / '8.damaged/seal.json').exists()  # set aside, not deleted
  assert (saved / '8/seal.json').exists()


def test_with_all_checkpoints_damaged_a_run_says_so_and_starts_anew(whole, tmp_path, capsys):
  run = until(3, whole, tmp_path / 'run')
  for step in (1, 2, 3):
    flip_a_byte(run / f'checkpoints/{step}')
  assert vit_train(run) == 0
  out = capsys.readouterr().out
  assert len(lines_on_damage(out)) == 3
  assert re.search('from the (beginning|start)|from step 0|starts (anew|again|over)', out)
  assert_same_bits(state_of(run), state_of(whole))
  assert names_by_step(run) == names_by_step(whole)


# The class by itself, on a state of two arrays


def small(step):
  return {'step': jnp.asarray(step), 'w': jnp.arange(6, dtype=jnp.float32) * step}


LIKE = {'w': jax.ShapeDtypeStruct((6,), jnp.float32), 'step': jax.ShapeDtypeStruct((), jnp.int32)}


def like():
  whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), LIKE)


def saving(folder, metric='accuracy', sign=1, **options):
  return contextlib.closing(checkpoint.Checkpoints(folder, metric=metric, sign=sign, **options))


def test_a_first_batch_and_an_empty_folder_import_neither_orbax_nor_grain(tmp_path):
  code = f"""
import pathlib, sys
from vit_jax import plan
from vit_jax.config import load
ready, folder = plan.make_plan(load('digits')), pathlib.Path({str(tmp_path)!r})
with ready.training_batches(0, ready.unreadable('train', print, folder)) as batches:
  next(batches)
saved = ready.checkpoints(folder, print)
assert saved.restore({{}}) is None
saved.close()
sys.exit(str(set(sys.modules) & {{'grain', 'orbax', 'sklearn', 'scipy'}} or ''))
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert not done.stderr.strip()


def test_what_is_restored_is_what_was_saved(tmp_path):
  with saving(tmp_path, keep_latest=3) as saved:
    assert saved.restore(like()) is None
    for step in (1, 2):
      saved.save(step, small(step))
    saved.wait()
    for step in (1, 2):
      assert_same_bits(saved.restore_step(step, like()), small(step))
    assert saved.restore(like())[0] == 2


@pytest.mark.parametrize('metric, best', [('accuracy', 2), ('loss', 3)])
@pytest.mark.parametrize('reopened', [False, True])
def test_the_best_is_kept_and_known_after_reopening(metric, best, reopened, tmp_path):
  curve = {1: (0.1, 3.0), 2: (0.9, 2.0), 3: (0.9, 1.0), 4: (0.2, 1.0), 5: (float('nan'),) * 2}
  sign = -1 if metric == 'loss' else 1
  options = dict(keep_latest=1, keep_best=1, metric=metric, sign=sign)
  runs = [[1, 2, 3], [4, 5]] if reopened else [[1, 2, 3, 4, 5]]
  for steps in runs:
    with saving(tmp_path, **options) as saved:
      for step in steps:
        accuracy, loss = curve[step]
        saved.save(step, small(step), {'accuracy': accuracy, 'loss': loss})
  with saving(tmp_path, **options) as saved:
    assert saved.best_step() == best
    assert saved.steps() == [best, 5]


def test_the_newest_and_the_best_steps_are_kept_and_no_others(tmp_path):
  curve = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.8, 5: 0.4, 6: 0.2, 7: 0.1, 8: 0.0}
  for steps, remaining in (([1, 2, 3, 4, 5], [2, 4, 5]), ([6, 7, 8], [2, 4, 7, 8])):
    with saving(tmp_path, keep_best=2, keep_latest=2) as saved:
      for step in steps:
        saved.save(step, small(step), {'accuracy': curve[step]})
      saved.wait()
      assert saved.steps() == remaining


def test_orbax_0_12_seals_a_step_before_it_has_its_name(tmp_path, monkeypatch):
  names = []
  monkeypatch.setattr(checkpoint, 'seal', lambda folder, _: names.append(folder.name))
  with saving(tmp_path) as saved:
    saved.save(7, small(7))
    saved.wait()
    assert saved.steps() == [7]
  assert [name.partition('.orbax-checkpoint-tmp')[:2] for name in names] == [
    ('7', '.orbax-checkpoint-tmp')
  ]


def test_without_an_evaluation_there_is_no_best(tmp_path):
  with saving(tmp_path) as saved:
    saved.save(1, small(1))
    saved.wait()
    assert saved.best_step() is None


@pytest.mark.parametrize('fault', FAULTS)
def test_every_fault_is_found_and_described(fault, tmp_path):
  with saving(tmp_path) as saved:
    saved.save(1, small(1))
  assert seals.damage(tmp_path / '1') == ''
  FAULTS[fault](tmp_path / '1')
  reason = seals.damage(tmp_path / '1')
  assert reason and '\n' not in reason


def test_a_seal_holds_every_file_of_its_step(tmp_path):
  with saving(tmp_path) as saved:
    saved.save(1, small(1))
  sealed = seals.read(tmp_path / '1').files
  items = [name for name in contents(tmp_path / '1') if '/' in name]
  assert sorted(sealed) == sorted(items) and len(items) > 4


# Whose and of what a step is

ORIGIN = seals.Origin(config={'seed': 0, 'model.width': 16}, data=7)


def origin_of(step):
  return dataclasses.replace(ORIGIN, step=step)


def renamed(saved):
  (saved / '1').rename(saved / '3')


def of_origin(**fields):
  """A fault: the newest step is of a run that differs in these fields."""

  def fault(saved):
    seal = seals.read(saved / '2')
    seals.write_table(saved / '2', seal.files, dataclasses.replace(seal.origin, **fields))

  return fault


OTHERS = {
  "another step's": (renamed, '3 is of step 1: not used', 2),
  'beyond the end': (lambda saved: (saved / '1').rename(saved / '40'), '40 .* beyond the end', 2),
  "another run's": (
    of_origin(config={'seed': 1, 'older': 3}),
    '2 is of another run: seed is 1 there, 0 here: not used$',
    1,
  ),
  "another shape's": (of_origin(config={'model.width': 32}), 'model.width is 32 there, 16 here', 1),
  "other data's": (of_origin(data=8), 'on other data', 1),
}


@pytest.mark.parametrize('kind', OTHERS)
def test_a_step_of_something_else_is_named_and_the_newest_of_the_run_is_used(kind, tmp_path):
  fault, message, remaining = OTHERS[kind]
  options, lines = dict(origin_of=origin_of, total=9, keep_latest=3), []
  with saving(tmp_path, **options) as saved:
    for step in (1, 2):
      saved.save(step, small(step), {'accuracy': 1 / step})
  fault(tmp_path)
  with saving(tmp_path, say=lines.append, **options) as saved:
    assert saved.best_step() == remaining  # others' numbers are not ranked
    step, state = saved.restore(like())
  assert step == remaining
  assert_same_bits(state, small(remaining))
  [line] = lines
  assert re.search(message, line)
  assert [path.suffix for path in tmp_path.glob('*.*')] == ['.unused']  # and not deleted


def test_a_seal_of_the_first_format_is_read_as_it_was(tmp_path):
  with saving(tmp_path) as saved:
    saved.save(1, small(1))
  sealed = seals.read(tmp_path / '1')
  (tmp_path / '1/seal.json').write_text(json.dumps(sealed.files))
  with saving(tmp_path, origin_of=origin_of) as saved:
    assert_same_bits(saved.restore(like())[1], small(1))
  flip_a_byte(tmp_path / '1')
  assert 'has changed' in seals.damage(tmp_path / '1')


def test_a_seal_of_a_newer_version_is_refused_by_its_name(tmp_path):
  with saving(tmp_path) as saved:
    saved.save(1, small(1))
  with_seal(lambda text: text.replace('"format": 2', '"format": 3'))(tmp_path / '1')
  message = '1/seal.json is of format 3, a newer version of vit_jax'
  with pytest.raises(seals.Newer, match=message), saving(tmp_path):
    pass
  assert (tmp_path / '1').is_dir()


@pytest.mark.parametrize(
  'text, sealed', [('{"acc', True), ('{"accuracy": 0.9, "step": 2.0}', True), ('{"acc', False)]
)
def test_damaged_numbers_of_an_evaluation_are_not_ranked(text, sealed, tmp_path):
  with saving(tmp_path, keep_latest=2) as saved:
    for step in (1, 2):
      saved.save(step, small(step), {'accuracy': 0.5})
  (tmp_path / '2/metrics/metrics').write_text(text)
  if not sealed:
    take_the_seal(tmp_path / '2')
  with saving(tmp_path) as saved:
    assert saved.best_step() == 1 and saved.restore(like())[0] == 1


def test_a_step_that_is_evaluated_later_is_ranked_as_if_it_had_been_before(tmp_path):
  with saving(tmp_path, keep_latest=2) as saved:
    saved.save(1, small(1), {'accuracy': 0.5})
    saved.save(2, small(2))
    saved.wait()
    assert not saved.is_evaluated(2)
    saved.add_metrics(2, {'accuracy': 0.9, 'loss': float('nan')})
    assert saved.is_evaluated(2) and saved.best_step() == 2
  assert seals.damage(tmp_path / '2') == ''
  with saving(tmp_path, keep_latest=1, keep_best=1) as saved:
    saved.save(3, small(3), {'accuracy': 0.1})
    saved.wait()
    assert saved.steps() == [2, 3]


# Disks that are full


# In a process of its own, the kernel lets no file grow beyond 20 kB, as on a full disk.
LIMITED = """
import pathlib, resource, sys
import jax, jax.numpy as jnp, numpy as np
from tests import test_checkpoint
if __name__ == '__main__':
  noise = jnp.asarray(np.random.default_rng(0).standard_normal(50_000), jnp.float32)
  with test_checkpoint.saving(pathlib.Path(sys.argv[1]), keep_latest=2) as saved:
    saved.save(1, test_checkpoint.small(1))
    saved.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    saved.save(2, {'w': noise, 'step': jnp.asarray(2)})
    try:
      saved.wait()
    except OSError as error:
      print(error)
    print('then', saved.restore(test_checkpoint.like())[0])
"""


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_spares_the_others(tmp_path, cache):
  (tmp_path / 'limited.py').write_text(LIMITED)
  code, out, err = python([tmp_path / 'limited.py', tmp_path / 'saved'], environment(cache))
  assert code == 0, err
  first, *_, last = out.splitlines()
  assert re.search(r'checkpoint .+/saved/2 could not be written', first)
  assert last == 'then 1'


def refusing(steps, monkeypatch):
  """The disk is full when one of these steps is sealed; `monkeypatch` ends it."""
  sealed = checkpoint.seal

  def full(folder, origin):
    if int(folder.name.partition('.')[0]) in steps:
      raise OSError(errno.ENOSPC, 'No space left on device')
    sealed(folder, origin)

  monkeypatch.setattr(checkpoint, 'seal', full)


def test_a_checkpoint_that_a_full_disk_refuses_is_said_once_and_the_run_is_what_it_would_be(
  whole, tmp_path, monkeypatch, capsys
):
  refusing({3, 4}, monkeypatch)
  assert vit_train(tmp_path, {'checkpoint.keep_latest': 1}) == 0
  output = capsys.readouterr()
  lines = [line for line in output.out.splitlines() if line.startswith('checkpoint ')]
  step = f'checkpoint {tmp_path}/checkpoints'
  refused = (
    'could not be written: No space left on device; the newest is 2; saves again when it can'
  )
  assert lines == [f'{step}/3 {refused}', f'{step}/5 is written'] and output.err == ''
  assert_same_bits(state_of(tmp_path), state_of(whole))
  assert rows_of(tmp_path) == rows_of(whole)
  assert owner.read(tmp_path)['last_save']['step'] == 8


def test_a_run_whose_disk_stays_full_ends_with_1_and_keeps_its_newest_checkpoint(
  whole, tmp_path, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    patch.setattr(writing, 'RETRY_FOR', 0)
    refusing(range(3, 9), patch)
    assert vit_train(tmp_path, {'checkpoint.keep_latest': 1}) == 1
  output = capsys.readouterr()
  [line] = output.err.splitlines()
  assert line == (
    f'vit train: checkpoint {tmp_path}/checkpoints/8 could not be written: '
    'No space left on device; the newest is 2'
  )
  assert output.out.count('could not be written') == 1
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2']
  status = owner.read(tmp_path)
  assert (status['state'], status['message']) == ('failed', line.removeprefix('vit train: '))
  assert_same_bits(state_of(tmp_path, 2), state_of(whole, 2))


def test_a_refused_checkpoint_is_owed_after_a_while_and_one_that_is_needed_is_waited_for(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(writing, 'RETRY_EVERY', 0.05)
  lines = []
  with saving(tmp_path, say=lines.append) as saved:
    with monkeypatch.context() as patch:
      refusing({1}, patch)
      saved.save(1, small(1))
      while not saved.refused:
        assert not saved.is_owed()
      while not saved.is_owed():
        pass
      timer = threading.Timer(0.2, patch.undo)  # the disk has room again
      timer.start()
      saved.save(1, small(1), surely=True)
      timer.join()
    assert saved.is_saved(1) and not saved.is_owed()
    assert_same_bits(saved.restore_step(1, like()), small(1))
  assert len(lines) == 2 and lines[0].endswith('there is no other; saves again when it can')


def test_a_folder_that_vanished_gets_no_checkpoint_and_the_next_when_it_is_back(tmp_path):
  folder, lines = tmp_path / 'checkpoints', []
  with saving(folder, say=lines.append) as saved:
    saved.save(1, small(1))
    assert saved.is_saved(1)
    folder.rename(tmp_path / 'away')
    saved.save(2, small(2))
    assert not saved.is_saved(2) and not folder.exists()
    (tmp_path / 'away').rename(folder)
    saved.save(3, small(3), surely=True)
    assert saved.steps() == [3]
  assert len(lines) == 2 and 'No such file or directory' in lines[0]


def test_a_folder_that_orbax_has_made_anew_is_not_the_run_s(tmp_path):
  for name in ('lock.json', 'config.json'):
    (tmp_path / name).touch()
  with saving(tmp_path / 'checkpoints') as saved:
    saved.save(1, small(1), surely=True)
    (tmp_path / 'config.json').unlink()
    saved.save(2, small(2))
    assert not saved.is_saved(2)
    (tmp_path / 'config.json').touch()
    saved.save(3, small(3), surely=True)
    assert saved.steps() == [3]


def test_of_several_processes_none_begins_a_save_that_one_has_no_room_for(tmp_path, monkeypatch):
  lines, other = [], {'the disk': 'No space left on device'}
  monkeypatch.setattr(processes.GROUP, 'count', 2)
  monkeypatch.setattr(processes, 'meet', lambda name: None)
  monkeypatch.setattr(processes, 'gathered', lambda name, text: [text, other.get(name, '')])
  with saving(tmp_path, say=lines.append) as saved:
    saved.save(1, small(1))
    assert saved.refused and not any(tmp_path.iterdir())
    other.clear()
    saved.save(1, small(1), surely=True)
    with monkeypatch.context() as patch, pytest.raises(OSError, match='2 could not be written'):
      refusing({2}, patch)
      saved.save(2, small(2))
      saved.save(3, small(3))
  refusal = 'could not be written: No space left on device; there is no other; saves again'
  assert lines == [
    f'checkpoint {tmp_path}/1 {refusal} when it can',
    f'checkpoint {tmp_path}/1 is written',
  ]


def test_a_save_that_hangs_holds_the_loop_up_once_and_is_whole_when_it_is_over(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(writing, 'PROBE', 0.05)
  sealed, answers, lines = checkpoint.seal, threading.Event(), []
  monkeypatch.setattr(checkpoint, 'seal', lambda *args: answers.wait() and sealed(*args))
  with saving(tmp_path, say=lines.append) as saved:
    for step in (1, 2, 3):
      saved.save(step, small(step))
    assert lines == [f'checkpoint {tmp_path}/1 takes long: training goes on']
    answers.set()
    saved.save(4, small(4), surely=True)
    assert saved.steps() == [4] and saved.best_step() is None
  assert seals.damage(tmp_path / '4') == ''


def test_a_disk_that_hangs_costs_the_loop_one_wait(tmp_path, monkeypatch):
  monkeypatch.setattr(writing, 'RETRY_EVERY', 0)
  monkeypatch.setattr(writing, 'PROBE', 0.05)
  answers, lines = threading.Event(), []
  with saving(tmp_path, say=lines.append) as saved:
    saved.save(1, small(1))
    assert saved.is_saved(1)
    monkeypatch.setattr(writing, 'probe', lambda *_: answers.wait())
    saved.save(2, small(2))
    with monkeypatch.context() as patch:
      patch.setattr(saved, 'begin', lambda *_: pytest.fail('it waits again'))
      saved.save(3, small(3))
    assert not saved.is_owed()
    answers.set()
    while not saved.is_owed():
      pass
    saved.save(4, small(4), surely=True)
    assert saved.steps() == [4]
  assert lines[0].endswith(
    '2 could not be written: the disk has not answered for 0 s; the newest is 1; '
    'saves again when it can'
  )


def test_a_save_that_never_ends_is_an_error_in_time(tmp_path, monkeypatch):
  hung = threading.Event()
  monkeypatch.setattr(writing, 'SAVE_LIMIT', 0.1)
  monkeypatch.setattr(checkpoint, 'seal', lambda *_: hung.wait())
  saved = checkpoint.Checkpoints(tmp_path, metric='accuracy', sign=1)
  saved.save(1, small(1))
  with pytest.raises(OSError, match='1 could not be written: the disk has not answered for 0 s'):
    saved.wait()
  hung.set()
  saved.close()


def test_a_file_where_the_checkpoints_should_be_is_one_line(tmp_path, capsys):
  (tmp_path / 'checkpoints').write_text('mine')
  assert vit_train(tmp_path) in (1, 2)
  [line] = capsys.readouterr().err.splitlines()
  assert 'checkpoints' in line


def test_the_best_step_is_known_as_soon_as_it_is_saved(tmp_path):
  # Large enough that its writing outlasts a look at what is there.
  state = {'w': jnp.asarray(np.random.default_rng(0).standard_normal(2_000_000, np.float32))}
  with saving(tmp_path) as saved:
    for step, accuracy in ((1, 0.5), (2, 0.9)):
      saved.save(step, state, {'accuracy': accuracy})
      assert saved.best_step() == step
