"""A run's folder has one owner, also after kills, copies, damage and on other machines."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

from vit_jax.guards import lock, owner, waiting

ROOT = pathlib.Path(__file__).parents[1]
HOLDING = """
import sys, time
from vit_jax.guards import owner
with owner.Owner(sys.argv[1]) as ours:
  ours.update(state='training', step=40, total=100)
  while not (ours.folder / 'status.json').exists(): time.sleep(0.01)
  print('holds', flush=True)
  sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
  """Heartbeats of others are waited for no longer than a test may take."""
  monkeypatch.setattr(lock, 'DEAD_AFTER', 0.3)
  monkeypatch.setattr(lock, 'HEARTBEAT', 0.02)


@contextlib.contextmanager
def holding(folder):
  """A process that owns the folder, until the block ends."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDING, str(folder)],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == 'holds\n'
    yield process
  finally:
    process.communicate()


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def whole_names(folder):
  """Without a part of a status, which a kill may leave; the next start of a run removes it."""
  return [name for name in names(folder) if not name.startswith('.')]


def changed(path, **fields):
  """Replaces fields of a lock's file, as if another machine or process had written it."""
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_second_owner_is_refused_by_the_name_of_the_first_and_a_killed_one_is_replaced(tmp_path):
  with holding(tmp_path) as process:
    with pytest.raises(
      ValueError, match=rf'process {process.pid} on .+, at step 40 of 100$'
    ) as error:
      owner.Owner(tmp_path).__enter__()
    assert str(error.value).startswith(f'{tmp_path} is in use: ')
    assert not owner.read(tmp_path)['stale']
    process.kill()  # and it stays a zombie: nobody has waited for it
    while process.returncode is None and owner.is_owned(tmp_path / 'lock.json'):
      time.sleep(0.01)
    assert whole_names(tmp_path) == ['lock.json', 'status.json'] and owner.read(tmp_path)['stale']
    said = []
    with owner.Owner(tmp_path, say=said.append) as ours:
      assert ours.lock.holder.pid == os.getpid() and said == []
  assert whole_names(tmp_path) == ['status.json']


def test_a_process_that_ends_frees_the_folder_and_says_how(tmp_path):
  with pytest.raises(RuntimeError), owner.Owner(tmp_path) as ours:
    ours.update(state='training', step=3)
    raise RuntimeError('no\nmemory')
  status = owner.read(tmp_path)
  assert (status['state'], status['step'], status['message']) == ('failed', 3, 'no memory')
  assert not status['stale'] and names(tmp_path) == ['status.json']


def test_where_nothing_was_reported_the_folder_stays_as_it_was(tmp_path):
  with owner.Owner(tmp_path / 'runs/new'):
    assert names(tmp_path / 'runs/new') == ['lock.json']
  assert names(tmp_path) == []


def test_of_many_that_take_over_a_dead_lock_one_has_it(tmp_path):
  path, taken, locks = tmp_path / 'lock.json', [], []
  lock.create(path)
  changed(path, birth=1)  # an earlier process with this one's number
  ready = threading.Barrier(8)

  def take():
    ready.wait()
    try:
      locks.append(lock.acquire(path, print))
    except lock.Taken as error:
      taken.append(error)

  threads = [threading.Thread(target=take) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(locks) == 1 and len(taken) == 7 and locks[0].is_held()
  assert names(tmp_path) == ['lock.json']


@pytest.mark.parametrize('beats', [True, False], ids=['with a heartbeat', 'without'])
@pytest.mark.parametrize(
  'change',
  [
    lambda path: changed(path, machine='another', host='gpu7'),
    lambda path: path.write_bytes(path.read_bytes()[:40]),
    lambda path: path.write_bytes(b''),
    lambda path: (
      shutil.copy(path, path.with_suffix('.new')) and os.replace(path.with_suffix('.new'), path)
    ),
  ],
  ids=['another machine', 'cut off', 'empty', 'a copy'],
)
def test_a_lock_that_nobody_here_can_ask_after_lives_while_its_heart_beats(change, beats, tmp_path):
  path, said, end = tmp_path / 'lock.json', [], threading.Event()
  lock.create(path)
  change(path)

  def beat():
    while not end.wait(0.02):
      os.utime(path)

  thread = threading.Thread(target=beat if beats else end.wait)
  thread.start()
  try:
    if beats:
      with pytest.raises(lock.Taken):
        lock.acquire(path, said.append)
    else:
      assert lock.acquire(path, said.append).is_held()
  finally:
    end.set()
    thread.join()
  assert len(said) == 1 and 'watching for up to 0 s' in said[0]


def test_without_links_a_lock_is_made_in_place(tmp_path, monkeypatch):
  def refused(*_):
    raise PermissionError(1, 'Operation not permitted')

  monkeypatch.setattr(os, 'link', refused)
  assert lock.acquire(tmp_path / 'lock.json', print).is_held()
  with pytest.raises(lock.Taken):
    lock.acquire(tmp_path / 'lock.json', print)
  assert names(tmp_path) == ['lock.json']


def test_a_lock_that_cannot_be_made_is_named_itself(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    lock.create(tmp_path / 'absent/lock.json')
  assert error.value.filename == str(tmp_path / 'absent/lock.json')


def test_what_died_while_it_took_the_lock_is_swept(tmp_path):
  lock.create(tmp_path / '.lock.json.a.new')
  lock.create(tmp_path / '.lock.json.b.new')
  changed(tmp_path / '.lock.json.a.new', birth=1)
  with owner.Owner(tmp_path):
    assert names(tmp_path) == ['.lock.json.b.new', 'lock.json']  # which one alive is making


STOLEN = """
import os, pathlib, sys, time
from vit_jax.guards import lock, owner
lock.HEARTBEAT = 0.02
with owner.Owner(sys.argv[1]) as ours:
  ours.update(state='training')
  time.sleep(0.1)
  ours.path.unlink()
  lock.write(ours.path, 'another')
  time.sleep(60)
"""


def test_an_owner_whose_lock_was_taken_over_ends_and_leaves_it(tmp_path):
  words = [sys.executable, '-c', STOLEN, str(tmp_path)]
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
  assert ended.returncode == 1
  [line] = ended.stderr.splitlines()
  assert line.startswith(f'{tmp_path} was taken over by process ')
  assert json.loads((tmp_path / 'lock.json').read_text())['token'] == 'another'


def test_a_lock_that_was_removed_is_made_again_only_in_a_run(tmp_path):
  with owner.Owner(tmp_path):
    (tmp_path / 'lock.json').unlink()
    time.sleep(5 * lock.HEARTBEAT)
    assert names(tmp_path) == []
    (tmp_path / 'config.json').touch()
    while names(tmp_path) != ['config.json', 'lock.json']:
      time.sleep(lock.HEARTBEAT)


def test_the_last_word_needs_no_room_on_the_disk(tmp_path, monkeypatch):
  def full(path):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with pytest.raises(RuntimeError), owner.Owner(tmp_path) as ours:
    ours.update(state='training', step=3, last_evaluation={'validation/loss': 0.1234567})
    while not (tmp_path / 'status.json').exists():
      time.sleep(0.01)
    monkeypatch.setattr(owner.files, 'replacing', full)
    ours.update(step=40, last_evaluation=None)
    raise RuntimeError('full')
  status = owner.read(tmp_path)
  assert (status['state'], status['step'], status['message']) == ('failed', 40, 'full')
  assert names(tmp_path) == ['status.json']


def test_a_disk_that_hangs_does_not_keep_a_process_from_its_end(tmp_path, monkeypatch):
  answers = threading.Event()
  monkeypatch.setattr(owner, 'JOIN', 0.05)
  with owner.Owner(tmp_path) as ours:
    ours.update(state='training')
    monkeypatch.setattr(owner.files, 'write_json', lambda *_: answers.wait())
  assert ours.ended.is_set() and not answers.is_set()
  answers.set()


def test_the_status_says_what_is_waited_for(tmp_path, monkeypatch):
  monkeypatch.setattr(waiting, 'FIRST', 0)
  with owner.Owner(tmp_path) as ours:
    with waiting.waiting('data', lambda: 'worker 1 of 2'):
      ours.update(state='training')
      while not (status := owner.read(tmp_path)) or not status['waiting']:
        time.sleep(0.01)
    assert re.fullmatch(r'waiting for data since .+ \(worker 1 of 2\)', status['waiting'])
  assert owner.read(tmp_path)['waiting'] is None


def test_a_status_that_is_damaged_or_absent_is_none(tmp_path):
  assert owner.read(tmp_path) is None
  (tmp_path / 'status.json').write_text('{"state": "trai')
  assert owner.read(tmp_path) is None
