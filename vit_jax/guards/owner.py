"""One owner of a run's folder: a lock, and `status.json`, which says how the run goes.

Both are kept by a thread of their own: what the loop reports costs it nothing, and a disk that is
slow or full does not stop it.
"""

import contextlib
import datetime
import os
import pathlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vit_jax import files
from vit_jax.guards import lock, stopping, waiting
from vit_jax.text import message_line, to_stderr

LOCK, STATUS = 'lock.json', 'status.json'
CONFIG = 'config.json'  # which every run's folder has
ENDED = ('finished', 'stopped', 'failed')  # states without a process
# The state in each phase of `stopping`; others are part of what is going on.
STATES = {
  'compile': 'compiling',
  'loop': 'training',
  'evaluation': 'evaluating',
  'save': 'saving',
  'test': 'testing',
  'bundle': 'finishing',
  'card': 'finishing',
  'report': 'finishing',
}
JOIN = 2.0  # seconds that its thread may take to end, and the last word: the disk may hang

Status = dict[str, files.JSON]


def folder_of(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """A run's folder as it was typed; ValueError for what is none."""
  if not str(workdir) or '://' in str(workdir):
    raise ValueError(f'--workdir is {str(workdir)!r}, must be a folder, the same for all hosts')
  return pathlib.Path(workdir)


class Owner:
  """A context in which a run's folder is this process's, and which tells how the run goes.

  Where nothing was reported the folder stays as it was: one that it made is gone again.

  Args:
    folder: the run's; made if absent.
    first: whether this is the process that writes; others of the same run own nothing.
    say: takes a line for the user.
    at_end: takes the folder and the last status, while the folder is still this process's; an error
      of the disk costs nothing.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    first: bool = True,
    say: Callable[[str], object] = to_stderr,
    at_end: Callable[[pathlib.Path, Status], object] = lambda folder, status: None,
  ):
    self.folder, self.first, self.say, self.at_end = folder_of(folder), first, say, at_end
    self.status: Status = {}
    self.wake, self.ended = threading.Event(), threading.Event()
    self.thread = threading.Thread(target=self.watch, name='owner', daemon=True)

  @property
  def path(self) -> pathlib.Path:
    """The lock's file."""
    return self.folder / LOCK

  def __enter__(self) -> Self:
    """Takes the folder.

    Raises:
      ValueError: if a process that lives has it; names it and how far it is.
      OSError: if the lock cannot be written.
    """
    if not self.first:
      return self
    self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
    self.folder.mkdir(parents=True, exist_ok=True)
    try:
      self.lock = lock.acquire(self.path, self.say)
    except lock.Taken as taken:
      raise ValueError(f'{self.folder} is in use: {taken}{progress(self.folder)}') from None
    lock.sweep(self.path)
    stopping.at_exit(self.release)
    stopping.watch_phases(self.enter)
    self.thread.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self.status and isinstance(error, Exception):
      self.update(state='failed', message=message_line(error))
    self.release()

  def update(self, *, state: str | None = None, **fields: files.JSON) -> None:
    """Changes what `status.json` says: within seconds, and at once where the state changes."""
    changes = state not in (None, self.status.get('state'))
    self.status = self.status | fields | ({'state': state} if changes else {})
    if changes:
      self.wake.set()

  def enter(self, phase: str) -> None:
    """Takes the state from a phase, once there is a status."""
    if self.status and not self.ended.is_set():
      self.update(state=STATES.get(phase))

  def release(self) -> None:
    """Writes the last status and frees the folder; once is enough, from any thread."""
    if not self.first or self.ended.is_set():
      return
    self.ended.set()
    self.wake.set()
    if self.thread is not threading.current_thread():
      self.thread.join(JOIN)
    if self.status and self.status.get('state') not in ENDED:
      self.update(state='stopped')
    with contextlib.suppress(TimeoutError):
      waiting.in_time(self.leave, JOIN)

  def leave(self) -> None:
    """Writes the last word, and takes away the lock, and the folder where nothing is in it."""
    self.write()
    if self.status:
      with contextlib.suppress(OSError):
        self.at_end(self.folder, self.status)
    self.lock.release()
    for path in [] if self.status else self.made:
      with contextlib.suppress(OSError):
        path.rmdir()

  def watch(self) -> None:
    """Keeps lock and status until the end: what its thread does."""
    while not self.ended.is_set():
      with contextlib.suppress(OSError):  # of the disk: at the next heartbeat it may be well
        self.beat()
      self.write()
      self.wake.wait(lock.HEARTBEAT)
      self.wake.clear()

  def beat(self) -> None:
    """Shows that this process lives; ends it where the folder has become another's."""
    try:
      held = self.lock.is_held()
    except FileNotFoundError:  # the lock was removed, or the folder is gone or another
      if not (self.folder / CONFIG).exists():
        return
      held = (new := lock.create(self.path)) is not None
      self.lock = new or self.lock
    if held:
      self.lock.beat()
    else:
      self.lose()

  def lose(self) -> None:
    """Ends the process, before it writes what another has begun to."""
    holder = lock.read(self.path)
    self.ended.set()
    self.say(f'{self.folder} was taken over by {holder}: this process ends, and saves nothing')
    stopping.PROCESS.end(1)

  def write(self) -> None:
    """Writes `status.json`, if there is anything to say, the folder is ours and its disk well.

    The last word on a full disk goes into the block that the file has.
    """
    holder, now = self.lock.holder, datetime.datetime.now(datetime.UTC)
    process: Status = {'host': holder.host, 'pid': holder.pid, 'started': holder.started}
    process |= {'updated': now.isoformat(' ', 'seconds'), 'waiting': waiting.current()}
    with contextlib.suppress(OSError):
      if self.status and self.lock.is_held():
        try:
          files.write_json(self.folder / STATUS, self.status | process)
        except OSError:
          if self.status.get('state') in ENDED:
            files.overwrite_json(self.folder / STATUS, self.status | process)


def read(folder: str | os.PathLike[str]) -> Status | None:
  """What a run's folder says of how the run goes; None where it says nothing.

  Returns:
    The content of `status.json` and 'stale': whether a state that only a process can be in is of
    one that is gone, or whose heartbeat is late.
  """
  try:
    status = files.read_object(pathlib.Path(folder, STATUS))
  except ValueError:
    return None
  ended = status.get('state') in ENDED
  return status | {'stale': not ended and not is_owned(pathlib.Path(folder, LOCK))}


def is_present(folder: pathlib.Path) -> bool:
  """Whether a run's folder is there, with its lock and config.

  Else a disk was detached, or somebody has removed it; what is in its place then, a library may
  have made, which goes on writing a checkpoint.
  """
  return all((folder / name).exists() for name in (LOCK, CONFIG))


def is_owned(path: pathlib.Path) -> bool:
  """Whether a process holds a lock, as far as a look can tell."""
  try:
    running = lock.is_running(lock.read(path))
    late = (
      time.time() - path.stat().st_mtime > 2 * lock.DEAD_AFTER
    )  # of clocks that differ a little
  except OSError:
    return False
  return not late if running is None else running


def progress(folder: pathlib.Path) -> str:
  """', at step 40 of 100' of the run in a folder; '' where it does not say."""
  status = read(folder) or {}
  step, total = status.get('step'), status.get('total')
  return f', at step {step} of {total}' if type(step) is int and type(total) is int else ''
