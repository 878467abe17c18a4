"""Standard streams that were closed, or cannot take what is written: no terminal, a full disk."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
  from _typeshed import ReadableBuffer


class Lossy(io.FileIO):
  """A file for messages: what it cannot take is lost, for a message must not end what it is of."""

  def write(self, data: 'ReadableBuffer', /) -> int:
    try:
      return super().write(data)
    except OSError:
      return memoryview(data).nbytes


class Unwritable(OSError):
  """Standard output does not take the results of a command, whose input has no fault."""


class ResultStream(io.TextIOWrapper):
  """A stream for results, which raises BrokenPipeError or `Unwritable`."""

  def write(self, text: str, /) -> int:
    with refusing():
      return super().write(text)

  def flush(self) -> None:
    with refusing():
      super().flush()


@contextlib.contextmanager
def refusing() -> Iterator[None]:
  try:
    yield
  except BrokenPipeError:
    raise
  except OSError as error:
    raise Unwritable(error.errno, error.strerror) from None


def lossy(stream: TextIO) -> TextIO:
  """A stream to the file of another, which never fails; of one without a file itself."""
  try:
    descriptor = stream.fileno()
  except OSError:  # in memory, as in a notebook
    return stream
  raw = io.BufferedWriter(Lossy(descriptor, 'w', closefd=False))
  return io.TextIOWrapper(raw, stream.encoding, 'backslashreplace', line_buffering=True)


def install() -> None:
  """Gives a process the streams that it was started without, and messages that cannot fail."""
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:  # `>&-`: the next file that is opened would be taken for the stream
      os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
      setattr(sys, name, os.fdopen(number, 'r' if number == 0 else 'w', closefd=False))
  sys.stderr = lossy(sys.stderr)
  if isinstance(sys.stdout, io.TextIOWrapper):
    raw = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), 'w', closefd=False))
    errors, by_line = 'backslashreplace', sys.stdout.line_buffering  # a terminal may lack a letter
    sys.stdout = ResultStream(raw, sys.stdout.encoding, errors, line_buffering=by_line)


@contextlib.contextmanager
def lossy_stdout() -> Iterator[None]:
  """Standard output is for messages inside, not for results."""
  with contextlib.redirect_stdout(lossy(sys.stdout)):
    yield


def flush_stdout() -> None:
  """Writes what standard output still holds; what it cannot take is lost, and raised."""
  try:
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more
    raise
