"""Errors that nobody foresaw: a line for the user, and the traceback in a file.

They are of JAX, XLA, Orbax, Grain, tensorstore and Gloo, or faults of ours. VIT_TRACEBACK=1 shows
their tracebacks on the terminal as well.
"""

import contextlib
import logging
import os
import pathlib
import sys
import threading
import traceback

from vit_jax import files
from vit_jax.text import LINE, first_line, one_line, redacted, to_stderr

FILE = 'error.txt'  # in the folder of a run, or of what is kept for the user
SHOW = 'VIT_TRACEBACK'
LONGEST_START = 'vit evaluate: '  # of a line: `commands.warn` puts the command before it
REPORTED: set[str] = set()  # lines that this process has printed about errors that end nothing


def describe(error: BaseException, folder: pathlib.Path | None = None) -> str:
  """A line about an error that names the file with its traceback, which is written.

  Args:
    error: that was raised.
    folder: of a run; None, or one that is not there, for a folder of the user's cache.
  """
  text = one_line(first_line(error))
  name = type(error).__name__
  line = name if text == name else f'{name}: {text}'
  lines = ''.join(traceback.format_exception(error))
  if os.environ.get(SHOW):
    sys.stderr.write(lines)
  for place in (folder, pathlib.Path(files.cache_folder('errors'))):
    with contextlib.suppress(OSError):
      if place and (place != folder or place.is_dir()):
        return with_end(line, f'; the traceback is in {write(place, lines)}')
  return with_end(line, f'; {SHOW}=1 shows where')


def with_end(line: str, end: str) -> str:
  """A line as long as one of a terminal may be, with a whole end, which says where to look."""
  return line[: max(LINE - len(LONGEST_START) - len(end), 0)] + end


def write(folder: pathlib.Path, lines: str) -> pathlib.Path:
  """Writes a traceback into a folder, in the place of the last one."""
  folder.mkdir(parents=True, exist_ok=True)
  with files.replacing(folder / FILE) as file:
    file.write(redacted(lines).encode(errors='replace'))
  return folder / FILE


def forget(folder: str | os.PathLike[str]) -> None:
  """Removes the traceback of an earlier start from the folder of a run that is finished."""
  with contextlib.suppress(OSError):
    pathlib.Path(folder, FILE).unlink()


def install() -> None:
  """Has errors of threads and callbacks, which end nothing, described like others."""
  threading.excepthook = lambda args: report(args.exc_value)
  sys.excepthook = lambda kind, error, trace: report(error)
  sys.unraisablehook = lambda args: report(args.exc_value)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # errors of futures, raised as well


def report(error: BaseException | None) -> None:
  """Prints the line about an error that ends nothing, once: there may be one for every array."""
  if error is None or isinstance(error, SystemExit):
    return
  line = describe(error)
  if line not in REPORTED:
    REPORTED.add(line)
    to_stderr(f'vit: {line}')
