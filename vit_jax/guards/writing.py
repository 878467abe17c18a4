"""Writing to a disk that may be full, read-only or gone for a while."""

import contextlib
import errno
import os
import pathlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import BinaryIO, TypeVar

from vit_jax.guards.owner import LOCK

T = TypeVar('T')
RETRY_EVERY = 10.0  # seconds from one try to the next
RETRY_FOR = 300.0  # seconds that a run waits for its disk where it cannot do without
PROBE = 60.0  # seconds that a disk may take to say that a folder is there
SAVE_LIMIT = 3600.0  # seconds that a checkpoint may take: 360 GB at 100 MB/s
CODES = ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EIO', 'ENOENT', 'EACCES', 'ESTALE')


class Appender:
  """Appends to a file; rows that the disk refuses wait in memory, in order, each for its one time.

  Args:
    path: of the file, which goes on where it ends. It is made if absent, but later only while its
      folder has the run's lock: not in what is there after a disk was detached.
    say: takes a line when the disk refuses, and when it no longer does.
  """

  def __init__(self, path: pathlib.Path, say: Callable[[str], object]):
    self.path, self.say = path, say
    self.waiting: deque[bytes] = deque()
    self.size: int | None = None  # of the file without what may be a part of a row
    self.began = self.failing = False

  def write(self, *rows: bytes) -> None:
    """Appends rows, and those that wait."""
    self.waiting.extend(rows)
    with contextlib.suppress(OSError):
      self.flush()

  def flush(self) -> None:
    """Appends the rows that wait; raises OSError where the disk refuses, which it has said."""
    if not self.waiting:
      return
    try:
      with self.open() as file:
        while self.waiting:
          self.append(file)
          self.waiting.popleft()
    except OSError as error:
      if not self.failing:
        self.say(f'{self.path}: {refusal(error)}; what is to be added to it waits in memory')
      self.failing = True
      raise
    if self.failing:
      self.say(f'{self.path} can be written again')
    self.failing = False

  def open(self) -> BinaryIO:
    try:
      return open(self.path, 'r+b', buffering=0)
    except FileNotFoundError:
      if self.began and not (self.path.parent / LOCK).exists():
        raise
      return open(self.path, 'x+b', buffering=0)
    finally:
      self.began = True

  def append(self, file: BinaryIO) -> None:
    """Writes the first row that waits; what a full disk took of it is taken back."""
    if self.size is not None and self.size < file.seek(0, os.SEEK_END):
      file.truncate(self.size)
    row, self.size = self.waiting[0], file.seek(0, os.SEEK_END)
    try:
      while row:
        row = row[file.write(row) :]
    except OSError:
      file.truncate(self.size)
      raise
    self.size = None


def persistently(
  action: Callable[[], T], report: Callable[[OSError], object] = lambda error: None
) -> T:
  """The result of an action that writes what a run cannot do without.

  Args:
    action: is tried again while it raises OSError.
    report: takes each of them that is not the last.

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


def in_time(action: Callable[[], T], seconds: float) -> T:
  """The result of an action on a disk; TimeoutError where that does not answer.

  The action, in a thread of its own, waits on.
  """
  outcome: Future[T] = Future()

  def run() -> None:
    try:
      outcome.set_result(action())
    except BaseException as error:
      outcome.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  try:
    return outcome.result(seconds)
  except TimeoutError:
    if outcome.done():
      raise
    raise TimeoutError(f'the disk has not answered for {seconds:.0f} s') from None


def refusal(error: BaseException) -> str:
  """What a disk has against it, in the system's few words where others' text holds them."""
  text = ' '.join(str(error).split())
  words = (os.strerror(getattr(errno, code)) for code in CODES if hasattr(errno, code))
  return next((line for line in words if line in text), text[:120] or type(error).__name__)
