"""A lock that needs nothing but files, so that it holds on NFS too.

The lock is a file that says who made it. While it is held its modification time changes every few
seconds, which is its heartbeat: whoever cannot ask after the process, since it is on another
machine, watches that, and by its own clock. The lock of a process that is gone is taken over.
"""

import contextlib
import dataclasses
import datetime
import errno
import functools
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Callable

from vit_jax import files
from vit_jax.text import one_line

HEARTBEAT = 5.0  # seconds between two
DEAD_AFTER = 30.0  # seconds without one: an NFS server that restarts takes less
MAX_SIZE = 1 << 16  # bytes of a lock's file that are read
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)


class Taken(ValueError):
  """A process that lives has the lock."""

  def __init__(self, holder: 'Holder'):
    super().__init__(str(holder))
    self.holder = holder


@dataclasses.dataclass(frozen=True)
class Holder:
  """The process that made a lock, as the lock's file says.

  `machine` is the same for processes that can ask after each other by number, and `birth` tells a
  process from a later one of its number; 0 where the system does not say. `inode` is the file's
  own, which a copy has not.
  """

  host: str
  pid: int
  started: str
  machine: str
  birth: int
  token: str
  inode: int

  def __str__(self) -> str:
    return one_line(f'process {self.pid} on {self.host}, since {self.started}')[:200]


class Lock:
  """A lock that this process has made; see `acquire`."""

  def __init__(self, path: pathlib.Path, holder: Holder):
    self.path, self.holder = path, holder

  def is_held(self) -> bool:
    """Whether it is still this process's; FileNotFoundError where it is nobody's."""
    return read(self.path) == self.holder

  def beat(self) -> None:
    """Shows that its holder lives."""
    os.utime(self.path)

  def release(self) -> None:
    """Frees it, unless it has become another's."""
    with contextlib.suppress(OSError):
      if self.is_held():
        self.path.unlink()


def acquire(path: pathlib.Path, say: Callable[[str], object]) -> Lock:
  """Takes a lock, from a process that is gone too.

  Of several that would take a dead lock over, only one may remove it: who has the lock that is
  named after the dead one.

  Args:
    path: of the lock's file.
    say: takes a line when a heartbeat is waited for.

  Raises:
    Taken: if a process that lives has it.
    OSError: if its file cannot be written.
  """
  while True:
    if lock := create(path):
      return lock
    try:
      holder = read(path)
      if is_alive(path, holder, say):
        raise Taken(holder)
    except FileNotFoundError:  # it was freed meanwhile
      continue
    right = acquire(path.with_name(f'.{path.name}.{holder.token}'), say)
    try:
      with contextlib.suppress(FileNotFoundError):
        if read(path) == holder:
          path.unlink()
    finally:
      right.release()


def create(path: pathlib.Path) -> Lock | None:
  """Makes the lock's file, whole or not at all; None where there is one.

  A link is made by one of several on NFS of any version. Its answer may get lost there; the number
  of links does not.
  """
  if os.path.lexists(path):
    return None
  token = secrets.token_hex(8)
  partial = path.with_name(f'.{path.name}.{token}.new')
  try:
    holder = write(partial, token)
    with contextlib.suppress(FileExistsError):
      os.link(partial, path)
    return Lock(path, holder) if os.stat(partial).st_nlink == 2 else None
  except OSError as error:
    if error.errno not in NO_LINKS:
      raise OSError(error.errno, error.strerror, str(path)) from None
    with contextlib.suppress(FileExistsError):  # and for a moment the file is empty
      return Lock(path, write(path, token))
    return None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()


def write(path: pathlib.Path, token: str) -> Holder:
  """Writes that this process is the holder into a file, which must be new."""
  with open(path, 'xb') as file:
    holder = Holder(
      host=socket.gethostname(),
      pid=os.getpid(),
      started=datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds'),
      machine=machine(),
      birth=process(os.getpid())[1],
      token=token,
      inode=os.fstat(file.fileno()).st_ino,
    )
    file.write(files.as_json(dataclasses.asdict(holder)).encode())
  return holder


def read(path: pathlib.Path) -> Holder:
  """The holder of a lock; of a damaged one a process that cannot be asked after."""
  with files.open_regular(path) as file:
    inode, text = os.fstat(file.fileno()).st_ino, file.read(MAX_SIZE)
  with contextlib.suppress(ValueError, TypeError, RecursionError):
    holder = Holder(**files.read_json(text))
    fields = dataclasses.fields(Holder)
    if all(type(getattr(holder, f.name)) is f.type for f in fields) and holder.token.isalnum():
      return holder
  return Holder('an unknown host', 0, 'an unknown time', '', 0, f'{inode:x}', inode)


def is_alive(path: pathlib.Path, holder: Holder, say: Callable[[str], object]) -> bool:
  """Whether the holder of a lock lives; where nobody here can say, its heartbeat is waited for."""
  running = is_running(holder)
  if running is False or (running and path.stat().st_ino == holder.inode):
    return running
  say(f'{path} is of {holder}: watching for up to {DEAD_AFTER:.0f} s whether that lives')
  first, end = heartbeat(path), time.monotonic() + DEAD_AFTER
  while time.monotonic() < end:
    time.sleep(min(1.0, DEAD_AFTER / 10))
    if heartbeat(path) != first:
      return True
  return False


def heartbeat(path: pathlib.Path) -> int:
  """The modification time of a lock's file, asked anew: NFS answers from memory unless it opens."""
  with files.open_regular(path) as file:
    return os.fstat(file.fileno()).st_mtime_ns


def is_running(holder: Holder) -> bool | None:
  """Whether the process that made a lock runs; None where this machine cannot say."""
  if holder.machine != machine() or not 0 < holder.pid < 1 << 31:
    return None
  try:
    os.kill(holder.pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  state, birth = process(holder.pid)
  return None if not birth else birth == holder.birth and state not in 'ZX'


def process(pid: int) -> tuple[str, int]:
  """The state and the start, in ticks since boot, of a process; ('', 0) where nothing says."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text('utf-8', errors='replace')
  except OSError:
    return '', 0
  fields = text.rpartition(')')[2].split()  # the name before it may hold anything
  return fields[0], int(fields[19])


@functools.cache
def machine() -> str:
  """A name for what numbers processes: this boot of the kernel and the container in it."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text('utf-8').strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return socket.gethostname()


def sweep(path: pathlib.Path) -> None:
  """Removes what processes that died while they took a lock have left beside it."""
  for file in path.parent.glob(f'.{path.name}.*'):
    with contextlib.suppress(OSError):
      old = path.stat().st_mtime - file.stat().st_mtime > DEAD_AFTER  # both by the server's clock
      if old or is_running(read(file)) is False:
        file.unlink()
