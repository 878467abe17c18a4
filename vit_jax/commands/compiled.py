"""What JAX compiled, kept from one process to the next, for a second `vit predict` or a resume.

Off by JAX_ENABLE_COMPILATION_CACHE=false; elsewhere by JAX_COMPILATION_CACHE_DIR: JAX's own words.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
import time

from vit_jax.files import cache_folder
from vit_jax.text import si

FOLDER, ENABLED = 'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'
SHORTEST = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
LIMIT = 2 << 30  # bytes: the programs used longest ago go beyond it
BUSY = 3600.0  # seconds: what another process may just be reading stays


def keep() -> None:
  """Has JAX, which must not be imported yet, keep its programs, unless its variables decide."""
  if FOLDER in os.environ or not enabled() or 'jax' in sys.modules:
    return
  path = folder()
  with contextlib.suppress(OSError):  # no home, or one that is not to be written: nothing is kept
    path.mkdir(parents=True, exist_ok=True)
    prune(path)
    if os.access(path, os.W_OK):
      os.environ[FOLDER] = str(path)
      os.environ.setdefault(SHORTEST, '0.1')  # inference of B/16 takes less than JAX's second


def enabled() -> bool:
  return os.environ.get(ENABLED, 'true').lower() not in ('0', 'false', 'f', 'no', 'n', 'off')


def folder() -> pathlib.Path:
  """The folder of programs for processors like this one.

  XLA compiles for all that a processor can do and says so only where a program is loaded, so that
  machines which share a home need folders of their own.
  """
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text('utf-8').splitlines()
  except OSError:
    lines = []
  features = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  key = hashlib.sha256(f'{platform.machine()} {features}'.encode()).hexdigest()[:12]
  return pathlib.Path(cache_folder('compiled'), key)


def prune(path: pathlib.Path, *, limit: int = LIMIT) -> None:
  """Removes the programs that were used longest ago, until all that are left fit the limit."""
  size, now = 0, time.time()
  for used, bytes_, file in sorted(programs(path), reverse=True):
    size += bytes_
    if size > limit and now - used > BUSY:
      with contextlib.suppress(OSError):
        os.remove(file)


def programs(path: pathlib.Path) -> list[tuple[float, int, str]]:
  """(time of the last use, bytes, path) of every file in the folder."""
  entries = []
  with contextlib.suppress(OSError), os.scandir(path) as files:
    for file in files:
      with contextlib.suppress(OSError):
        stat = file.stat()
        entries.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file.path))
  return entries


def describe() -> str:
  """A line for users: where the programs are, and how large they are together."""
  if not enabled():
    return f'compiled programs are not kept: {ENABLED}={os.environ[ENABLED]}'
  path = pathlib.Path(os.environ.get(FOLDER) or folder())
  size = sum(bytes_ for _, bytes_, _ in programs(path))
  bound = '' if path != folder() else f' of at most {si(LIMIT)}B'
  return f'compiled programs are kept in {path}: {si(size)}B{bound}; {ENABLED}=false keeps none'
