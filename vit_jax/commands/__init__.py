"""Each `vit NAME` but train: NAME.py has `run(args)`, flags.py its flags."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from vit_jax.text import one_line, to_stderr

BAD_INPUT = 2  # exit code, as of argparse
INPUT_ERRORS = (ValueError, OSError, ModuleNotFoundError)


class Ended(Exception):
  """A command that ends early, with a line for the user and its exit code."""

  def __init__(self, message: str, code: int) -> None:
    super().__init__(message)
    self.code = code


def run(
  name: str,
  command: Callable[[], int],
  *,
  errors: Sequence[type[Exception]] = INPUT_ERRORS,
) -> int:
  """The exit code of a command; an error of its input becomes one line and code 2."""
  try:
    with ending(BAD_INPUT, *errors):
      return command()
  except Ended as error:
    warn(name, str(error))
    return error.code


@contextlib.contextmanager
def ending(code: int, *kinds: type[BaseException], prefix: str = '') -> Iterator[None]:
  """Ends the command with a code of its own where an error of one of the kinds is raised."""
  try:
    yield
  except BrokenPipeError:  # of standard output: `vit_jax.__main__` knows what to do
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
  to_stderr(f'vit {name}: {line}')
