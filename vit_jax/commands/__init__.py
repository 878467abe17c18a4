"""Each `vit NAME` but train: NAME.py has `run(args)`, flags.py its flags; and how commands end."""

import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from vit_jax import files
from vit_jax.guards import allocation, failing, stopping, streams
from vit_jax.text import one_line, reason, to_stderr

# Exit codes. 0: finished, or a run that was stopped and is resumed by the same line. A second
# signal, and the first of a command that cannot be resumed, ends with 128 and its number.
FAILED = 1
BAD_INPUT = 2  # of usage or data, as of argparse
INCOMPLETE = 3  # something was left out, or compared and differs: a line says so
NOT_FINITE = 4  # a loss or gradient of training
INTERRUPTED = 130  # 128 + SIGINT
HELP = {'-h', '--help'}
INPUT_ERRORS = (ValueError, OSError, ModuleNotFoundError)


class Ended(Exception):
  """A command that ends early, with a line for the user and its exit code."""

  def __init__(self, message: str, code: int) -> None:
    super().__init__(message)
    self.code = code


def console(main: Callable[[], int]) -> NoReturn:
  """Runs a command as a process of its own; signals that end it leave nothing half done."""
  if not HELP & {*sys.argv}:
    allocation.use_huge_pages()
  streams.install()  # first, for what the next ones print
  failing.install()
  stopping.install()  # keeps the hook of `failing` for what is not of signals
  stopping.at_exit(files.remove_unfinished)
  # Without a home it says in 381 characters where its fonts are listed.
  logging.getLogger('matplotlib').setLevel(logging.ERROR)
  code = exit_code(main)
  with contextlib.suppress(OSError):  # of a command that has ended otherwise
    streams.flush_stdout()
  stopping.leave(code)


def exit_code(main: Callable[[], int]) -> int:
  """What a process ends with, however its command ends; a line says why."""
  try:
    code = without_exit(main)
    streams.flush_stdout()
    return code
  except KeyboardInterrupt as error:  # before the command has begun, or when it has ended
    return interrupted('', error)
  except BrokenPipeError:  # the reader, such as `head`, has had enough
    return 0
  except streams.Unwritable as error:
    warn('', f'standard output: {reason(error)}')
  except Exception as error:  # outside of `run`, as while flags are read
    warn('', failing.describe(error))
  return FAILED


def without_exit(main: Callable[[], int]) -> int:
  """The exit code of a command that may leave by SystemExit, as argparse does for --help."""
  try:
    return main()
  except SystemExit as error:
    return error.code if isinstance(error.code, int) else bool(error.code)


def run(
  name: str,
  command: Callable[[], int],
  *,
  errors: Sequence[type[Exception]] = INPUT_ERRORS,
  folder: str = '',
) -> int:
  """The exit code of a command; an error of its input becomes one line and code 2.

  Any other becomes one line and code 1: its traceback is in a file, in the run's `folder` or one of
  the user's cache.
  """
  try:
    with ending(BAD_INPUT, *errors):
      return command()
  except Ended as error:
    warn(name, str(error))
    return error.code
  except KeyboardInterrupt as error:
    return interrupted(name, error)
  except (BrokenPipeError, streams.Unwritable):  # for `exit_code`
    raise
  except Exception as error:  # of libraries, in any phase, or a fault of ours
    warn(name, failing.describe(error, pathlib.Path(folder) if folder else None))
    return FAILED


def interrupted(name: str, error: KeyboardInterrupt) -> int:
  """The exit code of a command that a signal ended, with a line that says so."""
  if isinstance(error, stopping.Stopped):
    warn(name, str(error))
    return error.code
  warn(name, 'interrupted')
  return INTERRUPTED


@contextlib.contextmanager
def ending(code: int, *kinds: type[BaseException], prefix: str = '') -> Iterator[None]:
  """Ends the command with a code of its own where an error of one of the kinds is raised."""
  try:
    yield
  except (BrokenPipeError, streams.Unwritable):  # of standard output, for `exit_code`
    raise
  except kinds as error:
    raise Ended(prefix + message(error), code) from error


def message(error: BaseException) -> str:
  """An error as one line: of the system's, the file and what is wrong with it."""
  if isinstance(error, OSError) and error.strerror and error.filename is not None:
    return one_line(f'{error.filename}: {error.strerror}')
  return one_line(error)


def warn(name: str, line: str) -> None:
  """Prints a line beside the results of a command to standard error."""
  to_stderr(f'vit {name}: {line}' if name else f'vit: {line}')


def check_out(path: str) -> None:
  """Raises ValueError for an --out that could not be written, before anything is computed."""
  folder = pathlib.Path(path).absolute().parent
  if path and (not os.access(folder, os.W_OK) or os.path.isdir(path)):
    raise ValueError(f'--out {path} cannot be written')
