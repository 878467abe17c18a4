"""Writing to a disk that may be full, read-only or gone for a while."""

import errno
import functools
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import BinaryIO, TypeVar

from vit_jax.guards.owner import is_present
from vit_jax.guards.waiting import in_background, in_time, result, waiting

T = TypeVar('T')
RETRY_EVERY = 10.0  # seconds from one try to the next
RETRY_FOR = 300.0  # seconds that a run waits for its disk where it cannot do without
PROBE = 60.0  # seconds that a disk may take for what is small, before the loop goes on without
MAX_WAITING = 100_000  # rows in memory: some 30 MB
BLOCK = 4096  # bytes, in which disks count
SAVE_LIMIT = 3600.0  # seconds that a checkpoint may take: 360 GB at 100 MB/s
CODES = ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EIO', 'ENOENT', 'EACCES', 'ESTALE')


class Appender:
  """Appends to a file; rows that the disk refuses wait in memory, in order, each for its one time.

  A thread writes, while there are rows, so that a disk that hangs holds up nobody but `flush`.

  Args:
    path: of the file, which goes on where it ends. It is made if absent, but later only while its
      folder is still the run's.
    say: takes a line when the disk refuses, and when it no longer does.
  """

  def __init__(self, path: pathlib.Path, say: Callable[[str], object]):
    self.path, self.say = path, say
    self.lock = threading.Lock()  # of the next two
    self.rows: deque[bytes] = deque()
    self.attempt: Future[None] | None = None  # to write them, while it is under way
    self.hung: Future[None] | None = None  # the attempt that `flush` has waited for in vain
    self.size: int | None = None  # of the file without what may be a part of a row
    self.began = self.failing = False

  def write(self, *rows: bytes) -> None:
    """Begins to append rows, after those that wait; once MAX_WAITING do, others are lost."""
    with self.lock:
      if len(self.rows) < MAX_WAITING:
        self.rows.extend(rows)
      self.begin()

  def is_full(self) -> bool:
    """Whether the next row would be lost."""
    return len(self.rows) >= MAX_WAITING

  def flush(self) -> None:
    """Returns when no row waits; OSError where the disk refuses, TimeoutError where it hangs."""
    with self.lock:
      if not self.rows and self.attempt is None:
        return
      attempt = self.begin()
    if attempt is self.hung:
      raise TimeoutError(f'{self.path}: the disk does not answer')
    try:
      result(attempt, PROBE)
    except TimeoutError as error:
      self.hung = attempt
      raise TimeoutError(f'{self.path}: {error}') from error

  def begin(self) -> Future[None]:
    """The attempt to write that is under way, or a new one; for who has the lock."""
    if self.attempt is None:
      self.attempt = in_background(self.append_all)
    return self.attempt

  def append_all(self) -> None:
    """Appends the rows that wait; says whether the disk refuses, if that is new, and raises it."""
    try:
      with waiting(f'{self.path} to be written'), self.open() as file:
        while row := self.next_row():
          self.append(file, row)
          self.rows.popleft()
    except OSError as error:
      if not self.failing:
        self.say(f'{self.path}: {refusal(error)}; what is to be added to it waits in memory')
      self.failing = True
      with self.lock:
        self.attempt = None
      raise
    if self.failing:
      self.say(f'{self.path} can be written again')
    self.failing = False

  def next_row(self) -> bytes | None:
    """The first row that waits; None, and the attempt is over, where none does."""
    with self.lock:
      if self.rows:
        return self.rows[0]
      self.attempt = None
      return None

  def open(self) -> BinaryIO:
    try:
      return open(self.path, 'r+b', buffering=0)
    except FileNotFoundError:
      if self.began and not is_present(self.path.parent):
        raise
      return open(self.path, 'x+b', buffering=0)
    finally:
      self.began = True

  def append(self, file: BinaryIO, row: bytes) -> None:
    """Writes a row; what a full disk took of it is taken back."""
    if self.size is not None and self.size < file.seek(0, os.SEEK_END):
      file.truncate(self.size)
    self.size = file.seek(0, os.SEEK_END)
    try:
      while row:
        row = row[file.write(row) :]
    except OSError:
      file.truncate(self.size)
      raise
    self.size = None


def persistently(action: Callable[[], T], report: Callable[[OSError], object]) -> T:
  """The result of an action that writes what a run cannot do without.

  Args:
    action: is tried again while it raises OSError.
    report: takes each of them that is not the last; what it raises ends the tries.

  Raises:
    OSError: of the last try, when the disk has refused for RETRY_FOR seconds.
  """
  end = time.monotonic() + RETRY_FOR
  while True:
    try:
      return action()
    except OSError as error:
      if time.monotonic() + RETRY_EVERY > end:
        raise
      report(error)
    time.sleep(RETRY_EVERY)


def write_surely(path: pathlib.Path, action: Callable[[], T], say: Callable[[str], object]) -> T:
  """The result of an action that writes a file or folder, by `persistently`; says so once.

  Where the folder that it is in is gone, that is not made anew.
  """
  say_once = functools.cache(say)
  line = f'{path}: {{}}; tries again for {RETRY_FOR:.0f} s'

  def write() -> T:
    path.parent.stat()
    return action()

  return persistently(write, lambda error: say_once(line.format(refusal(error))))


def probe(folder: pathlib.Path, size: int) -> None:
  """Raises OSError where a disk takes no file in a folder, or has less than so many bytes free."""
  with tempfile.TemporaryFile(dir=folder) as file:
    file.write(bytes(BLOCK))
    file.flush()
    os.fsync(file.fileno())
  if shutil.disk_usage(folder).free < size:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def while_it_answers(action: Callable[[], T], folder: pathlib.Path) -> T:
  """The result of an action that writes much, which may take SAVE_LIMIT if the disk answers.

  Raises:
    TimeoutError: where it hangs: in PROBE seconds it has written no block beside that.
  """
  outcome, end = in_background(action), time.monotonic() + SAVE_LIMIT
  while time.monotonic() < end:
    try:
      return result(outcome, min(PROBE, SAVE_LIMIT))
    except TimeoutError:
      if outcome.done():
        raise
    try:
      in_time(lambda: probe(folder, 0), PROBE)
    except TimeoutError:
      raise
    except OSError:  # the action will be refused as well
      pass
  raise TimeoutError(f'the disk has not answered for {SAVE_LIMIT:.0f} s')


def refusal(error: BaseException) -> str:
  """What a disk has against it, in the system's few words where others' text holds them."""
  text = ' '.join(str(error).split())
  words = (os.strerror(getattr(errno, code)) for code in CODES if hasattr(errno, code))
  return next((line for line in words if line in text), text[:120] or type(error).__name__)
