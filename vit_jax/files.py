"""Files that are written whole or not at all, and JSON read and written strictly."""

import contextlib
import json
import math
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from vit_jax.text import one_line

Path = str | os.PathLike[str]
JSON = Any  # nested dicts and lists of text, numbers, booleans and None


class Refused(ValueError):
  """A file asks for code to run."""


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


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file; ValueError, of one line that names the file, if there is none."""
  with naming(path):
    return read_json(pathlib.Path(path).read_bytes())


def read_json(text: bytes) -> dict[str, Any]:
  """A JSON object; no name in it may come twice."""
  value = json.loads(text.decode(), object_pairs_hook=distinct)
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
  """A file to write that takes the place of `path` when all went well, and is gone otherwise."""
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name[:100]}.{secrets.token_hex(4)}')
  try:
    with open(partial, 'xb') as file:
      yield file
    os.replace(partial, path)
  except OSError as error:
    if error.errno is None or error.filename not in (None, str(partial), partial):
      raise  # not of the system, or of another file
    raise OSError(error.errno, error.strerror, str(path)) from None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()


def write_json(path: Path, value: JSON) -> None:
  """Writes a value as indented JSON, or leaves the file that was there."""
  with replacing(path) as file:
    file.write(as_json(value, indent=1).encode())


@contextlib.contextmanager
def staging(path: Path) -> Iterator[pathlib.Path]:
  """A path to write a folder or file to, and files beside it, in a hidden folder on the same disk.

  All of them move to `path` and beside it when all went well, or none: they are gone otherwise.
  What has their names already is replaced. An OSError names `path`, whatever cannot be written.
  """
  target = pathlib.Path(os.path.abspath(path))
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      prefix='.vit-', dir=target.parent, ignore_cleanup_errors=True
    ) as hold:
      new, old = pathlib.Path(hold, 'new'), pathlib.Path(hold, 'old')
      new.mkdir()  # with the permissions of any folder, which `hold` has not
      old.mkdir()
      yield new / target.name
      move_all(new, target.parent, old)
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
