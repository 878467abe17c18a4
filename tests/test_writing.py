"""A disk that refuses costs no row: each is written once, in order, when it can be again."""

import contextlib
import errno
import pathlib
import resource
import threading
import time

import pytest

from tests.test_run import (
  cache,
  whole,
)
from vit_jax import metrics
from vit_jax.guards import failing, writing
from vit_jax.guards import waiting as waits
from vit_jax.sources import tfrecord

__all__ = ['cache', 'whole']

ROWS = [b'row %d, of twenty bytes\n' % number for number in range(8)]


@contextlib.contextmanager
def full_at(size):
  """The kernel lets no file grow beyond so many bytes, and of a write takes what fits."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def append(appender, *rows):
  """Appends rows, or sees the disk refuse."""
  appender.write(*rows)
  with contextlib.suppress(OSError):
    appender.flush()


@pytest.mark.parametrize('room', [0, 30, 50], ids=['nothing', 'a row and a half', 'two rows'])
def test_rows_that_a_full_disk_refuses_are_written_in_order_when_there_is_room(room, tmp_path):
  path, lines = tmp_path / 'rows', []
  appender = writing.Appender(path, lines.append)
  append(appender, ROWS[0])
  with full_at(len(ROWS[0]) + room):
    for row in ROWS[1:5]:
      append(appender, row)
    with pytest.raises(OSError):
      appender.flush()
    assert b''.join(ROWS).startswith(path.read_bytes())
    assert path.read_bytes().endswith(b'\n')  # no part of a row
  assert lines == [f'{path}: File too large; what is to be added to it waits in memory']
  append(appender, ROWS[5])
  assert path.read_bytes() == b''.join(ROWS[:6])
  assert lines[1:] == [f'{path} can be written again']


def test_a_folder_that_vanishes_is_not_made_anew_and_gets_its_rows_when_it_is_back(tmp_path):
  run, away, lines = tmp_path / 'run', tmp_path / 'away', []
  run.mkdir()
  appender = writing.Appender(run / 'rows', lines.append)
  append(appender, ROWS[0])
  run.rename(away)
  append(appender, ROWS[1])
  assert not run.exists()
  run.mkdir()  # as where a disk was detached
  append(appender, ROWS[2])
  assert not any(run.iterdir())
  run.rmdir()
  away.rename(run)
  append(appender, ROWS[3])
  assert (run / 'rows').read_bytes() == b''.join(ROWS[:4]) and len(lines) == 2


def test_a_file_that_was_removed_is_made_anew_while_lock_and_config_are_there(tmp_path):
  appender = writing.Appender(tmp_path / 'rows', print)
  append(appender, ROWS[0])
  (tmp_path / 'rows').unlink()
  (tmp_path / 'lock.json').touch()
  append(appender, ROWS[1])
  assert not (tmp_path / 'rows').exists()
  (tmp_path / 'config.json').touch()
  append(appender)
  assert (tmp_path / 'rows').read_bytes() == ROWS[1]


def test_a_disk_that_hangs_holds_no_row_up_and_is_named(tmp_path, monkeypatch, capsys):
  before = waits.TICK
  monkeypatch.setattr(waits, 'FIRST', 0)
  monkeypatch.setattr(waits, 'TICK', 0.01)
  monkeypatch.setattr(writing, 'PROBE', 0.1)
  monkeypatch.setattr(writing, 'RETRY_EVERY', 0.01)
  monkeypatch.setattr(writing, 'MAX_WAITING', 5)
  appender, answers = writing.Appender(tmp_path / 'rows', print), threading.Event()
  append(appender, ROWS[0])
  answering = appender.open
  monkeypatch.setattr(appender, 'open', lambda: answers.wait() and answering())
  for row in ROWS[1:]:
    appender.write(row)
  assert appender.is_full()
  for message in ('has not answered for 0 s', 'does not answer'):
    with pytest.raises(TimeoutError, match=f'{tmp_path}/rows: the disk {message}'):
      appender.flush()
  time.sleep(1.2 * before)  # the watchdog's last nap of that length
  assert f'vit: waiting for {tmp_path}/rows to be written since' in capsys.readouterr().err
  answers.set()
  writing.persistently(appender.flush, print)
  assert (tmp_path / 'rows').read_bytes() == b''.join(ROWS[:6])


def test_what_cannot_be_done_without_is_tried_for_minutes_said_once_and_then_raised(monkeypatch):
  monkeypatch.setattr(writing, 'RETRY_EVERY', 0.01)
  full, path, lines = OSError(errno.ENOSPC, 'full'), pathlib.Path('model'), []
  tries = iter([full, full, OSError(errno.EIO, 'broken'), None])

  def write():
    if error := next(tries):
      raise error
    return 'written'

  assert writing.write_surely(path, write, lines.append) == 'written'
  assert lines == [
    f'model: [Errno {code}; tries again for 300 s' for code in ('28] full', '5] broken')
  ]
  monkeypatch.setattr(writing, 'RETRY_FOR', 0)
  tries = iter([full])
  with pytest.raises(OSError, match='full'):
    writing.write_surely(path, write, lines.append)


def test_a_disk_without_room_for_a_state_is_known_before_it_is_written(tmp_path):
  writing.probe(tmp_path, 1)
  with pytest.raises(OSError, match='No space left on device'):
    writing.probe(tmp_path, 1 << 60)
  with full_at(10), pytest.raises(OSError, match='File too large'):
    writing.probe(tmp_path, 1)
  assert not any(tmp_path.iterdir())


def test_a_logger_that_fails_is_told_once_and_the_others_get_every_row(tmp_path):
  class Failing:
    def write(self, step, values):
      raise ConnectionError('no network')

    close = write

  lines = []
  log = metrics.Log(tmp_path, others=[Failing()], say=lines.append)
  for step in (1, 2):
    log.write(step, {'train/loss': 0.5 * step})
  log.settle()
  log.close()
  assert lines == ['Failing: ConnectionError: no network; training goes on']
  assert [row['step'] for row in metrics.read_rows(tmp_path / 'metrics.jsonl')] == [1, 2]


def test_the_events_are_those_that_tensorboard_reads(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  log = metrics.Log(tmp_path, start=4)
  log.write(5, {'train/loss': 0.5, 'train/accuracy': 0.25})
  log.close()
  [path] = map(str, tmp_path.glob('events.out.tfevents.*'))
  records = [tfrecord.read(path, index) for index in range(len(tfrecord.index_of(path)))]
  first, start, row = map(Event.FromString, records)
  assert first.file_version == 'brain.Event:2'
  assert (start.step, start.session_log.status) == (5, 1)
  values = {value.tag: value.simple_value for value in row.summary.value}
  assert (row.step, values) == (5, {'train/loss': 0.5, 'train/accuracy': 0.25})


def test_an_error_that_the_threads_of_a_full_disk_repeat_is_one_line(capsys):
  for _ in range(3):
    failing.report(RuntimeError('Event loop is closed, of this test'))
  [line] = capsys.readouterr().err.splitlines()
  assert 'Event loop is closed' in line
