"""Words for messages: one line of anything, and the nearest name to one that is unknown."""

import difflib
import sys


def one_line(text: object) -> str:
  """The text without line breaks and control characters."""
  return ' '.join(''.join(c if c.isprintable() else ' ' for c in str(text)).split(' '))


def nearest(name: str, known: list[str]) -> str:
  """'; did you mean ...?' with the closest known names, or all of them where none is close."""
  folded = {candidate.lower(): candidate for candidate in known}
  close = difflib.get_close_matches(name.lower(), list(folded), n=3, cutoff=0.5)
  if close:
    return f'; did you mean {" or ".join(folded[match] for match in close)}?'
  return f'; known: {", ".join(known)}'


def error_line(error: BaseException) -> str:
  """What others' code raised; of a ValueError its text alone."""
  text = ' '.join(str(error).split())
  return text if isinstance(error, ValueError) else f'{type(error).__name__}: {text}'


def to_stderr(line: object) -> None:
  """Prints a line to standard error: where reports and warnings go unless a caller takes them."""
  print(line, file=sys.stderr)
