"""Files that are written whole or not at all, and JSON read and written strictly."""

import contextlib
import difflib
import errno
import json
import math
import os
import pathlib
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from typing import IO, Any

from vit_jax.text import one_line, printable

Path = str | os.PathLike[str]
JSON = Any  # nested dicts and lists of text, numbers, booleans and None
DAY = 86_400  # seconds
MAX_SIZE = 1 << 28  # bytes of a file that is read whole: what was measured of 1e6 images has 1e8
# Ends the hidden name of what is not complete: whose it is, of `writer`, and what makes it new.
PARTIAL = re.compile(r'\..*\.(?P<host>[0-9a-f]{8})-(?P<number>\d+)-(?P<token>[0-9a-f]{8})-\w{8}')
UNFINISHED: set[pathlib.Path] = set()  # files and folders that this process is writing
TOKEN = secrets.token_hex(4)  # of this process: in a pod an earlier one has the same number


class Refused(ValueError):
  """A file asks for code to run."""


def nearest_path(path: Path) -> str:
  """The path beside one that is not there whose name is the most like its; '' without one.

  A hidden one is meant by a name that begins with a dot alone.
  """
  folder, name = os.path.split(os.fspath(path).rstrip('/'))
  try:
    names = os.listdir(os.path.expanduser(folder) or '.')
    names = [each for each in names if name.startswith('.') or not each.startswith('.')]
  except OSError:
    return ''
  return next((os.path.join(folder, n) for n in difflib.get_close_matches(name, names, n=1)), '')


def did_you_mean(path: Path) -> str:
  """'; did you mean runs/photos?' for an error about a path that is not there; '' without one."""
  near = nearest_path(path)
  return f'; did you mean {printable(near)}?' if near else ''


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Turns what goes wrong inside into a ValueError of one line that names the file."""
  try:
    yield
  except Exception as error:  # what is raised is up to the file, from KeyError to MemoryError
    message = one_line(error)[:300]
    if not isinstance(error, ValueError):
      message = f'{type(error).__name__} {message}'.strip()
    kind = Refused if isinstance(error, Refused) else ValueError
    raise kind(f'{one_line(os.fspath(path))} cannot be read: {message}') from None


def open_regular(path: Path) -> IO[bytes]:
  """A file to read; OSError for what is none, such as a pipe, which would be waited for."""
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  if stat.S_ISREG(os.fstat(descriptor).st_mode):
    return os.fdopen(descriptor, 'rb')
  os.close(descriptor)
  raise OSError(errno.EINVAL, 'is not a regular file', os.fspath(path))


def read_bytes(path: Path) -> bytes:
  """The content of a regular file of at most MAX_SIZE bytes; OSError for any other."""
  with open_regular(path) as file:
    if os.fstat(file.fileno()).st_size > MAX_SIZE:
      raise OSError(errno.EFBIG, f'has more than {MAX_SIZE:,} bytes', os.fspath(path))
    return file.read()


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file; ValueError, of one line that names the file, if there is none."""
  with naming(path):
    return read_json(read_bytes(path))


def parse(text: str) -> JSON:
  """The value of a text in JSON, in which no name comes twice; ValueError if it is none."""
  try:
    return json.loads(text, object_pairs_hook=distinct)
  except RecursionError:
    raise ValueError('its JSON is nested too deep') from None


def read_json(text: bytes) -> dict[str, Any]:
  """A JSON object; no name in it may come twice."""
  value = parse(text.decode())
  if not isinstance(value, dict):
    raise ValueError('its JSON is not an object')
  return value


def as_json(value: JSON, *, indent: int | None = None) -> str:
  """A value in JSON, which has no numbers that are not finite: they become null."""
  return json.dumps(finite(value), allow_nan=False, indent=indent)


def finite(value: JSON) -> JSON:
  """Nested dicts and lists with None for every number that is not finite."""
  if isinstance(value, dict):
    return {name: finite(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [finite(part) for part in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  named: dict[str, Any] = {}
  for name, value in pairs:
    if name in named:
      raise ValueError(f'{name!r} comes twice')
    named[name] = value
  return named


def cache_folder(kind: str) -> str:
  """Where what was made or fetched once is kept; no absolute path for a user without a home."""
  base = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(base):  # as its specification says
    base = os.path.expanduser('~/.cache')
  return os.path.join(base, 'vit_jax', kind)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
  """A file to write that takes the place of `path` when all went well, and is gone otherwise.

  It is on the disk, and not only in the system's memory, before it has its name.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name[:100]}.{writer()}-{secrets.token_hex(4)}')
  UNFINISHED.add(partial)
  try:
    with open(partial, 'xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)
  except OSError as error:
    if error.errno is None or error.filename not in (None, str(partial), partial):
      raise  # not of the system, or of another file
    raise OSError(error.errno, error.strerror, str(path)) from None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()
    UNFINISHED.discard(partial)


def remove_unfinished() -> None:
  """Removes what this process has not completed, before it is ended at once."""
  for path in UNFINISHED.copy():
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
  """Returns when the names in a folder are on the disk, where its file system can tell."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of some network file systems
      raise
  finally:
    os.close(descriptor)


def sync_tree(folder: pathlib.Path) -> None:
  """Returns when all files below a folder, and their names, are on the disk."""
  for path, _, names in os.walk(folder):
    for name in names:
      with open(os.path.join(path, name), 'rb') as file:
        os.fsync(file.fileno())
    sync_folder(path)


def writer() -> str:
  """This process, in the name of a file that it has not completed: host, number and token."""
  return f'{zlib.crc32(platform.node().encode()):08x}-{os.getpid()}-{TOKEN}'


def remove_partial(*folders: Path) -> list[str]:
  """Removes from folders what dead processes did not complete; its names."""
  removed = []
  for path in (path for folder in folders for path in pathlib.Path(folder).glob('.*')):
    if (match := PARTIAL.fullmatch(path.name)) and is_abandoned(path, **match.groupdict()):
      shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
      removed.append(path.name)
  return removed


def is_abandoned(path: pathlib.Path, host: str, number: str, token: str) -> bool:
  """Whether the process of a partial file is gone; on another host, after a day unchanged."""
  if host != writer().partition('-')[0]:
    return time.time() - path.stat().st_mtime > DAY
  if int(number) == os.getpid():
    return token != TOKEN
  try:
    os.kill(int(number), 0)
  except ProcessLookupError:
    return True
  except (OSError, OverflowError):
    pass  # another user's
  return False


def write_json(path: Path, value: JSON) -> None:
  """Writes a value as indented JSON, or leaves the file that was there."""
  with replacing(path) as file:
    file.write(as_json(value, indent=1).encode())


def overwrite_json(path: Path, value: JSON) -> None:
  """Writes a value into a file that is there, which takes no room of a full disk; not whole-or-not.

  Where the file grows beyond its last block, of 4 KiB mostly, OSError leaves it cut short.
  """
  with open(path, 'r+b') as file:
    file.write(as_json(value, indent=1).encode())
    file.truncate()
    os.fsync(file.fileno())


@contextlib.contextmanager
def hidden_folder(parent: pathlib.Path) -> Iterator[str]:
  """A folder for what is not complete, on the same disk; it is gone when the block ends."""
  prefix = f'.vit.{writer()}-'
  with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name:
    UNFINISHED.add(pathlib.Path(name))
    try:
      yield name
    finally:
      UNFINISHED.discard(pathlib.Path(name))


@contextlib.contextmanager
def staging(path: Path) -> Iterator[pathlib.Path]:
  """A path to write a folder or file to, and files beside it, in a hidden folder on the same disk.

  All of them move to `path` and beside it when all went well, or none: they are gone otherwise.
  What has their names already is replaced. An OSError names `path`, whatever cannot be written.
  """
  target = pathlib.Path(os.path.abspath(path))
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(target.parent) as hold:
      new, old = pathlib.Path(hold, 'new'), pathlib.Path(hold, 'old')
      new.mkdir()  # with the permissions of any folder, which `hold` has not
      old.mkdir()
      yield new / target.name
      sync_tree(new)
      move_all(new, target.parent, old)
      sync_folder(target.parent)
  except OSError as error:
    raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


def move_all(new: pathlib.Path, folder: pathlib.Path, old: pathlib.Path) -> None:
  """Moves what is in `new` to a folder, and what has its names there to `old`; or nothing."""
  names = sorted(os.listdir(new), reverse=True)  # x.onnx.json, which describes x.onnx, before it
  try:
    for name in names:
      if os.path.lexists(folder / name):
        os.rename(folder / name, old / name)
      os.rename(new / name, folder / name)
  except BaseException:
    for name in names:
      with contextlib.suppress(OSError):
        if not os.path.lexists(new / name):
          os.rename(folder / name, new / name)
        if os.path.lexists(old / name):
          os.rename(old / name, folder / name)
    raise
