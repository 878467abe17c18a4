"""Text for people: lines, nearest names, numbers, columns of a table, a progress bar."""

import contextlib
import difflib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from rich.console import Console
  from rich.progress import Progress


LINE = 300  # characters of a message
TAIL = 80  # of them those of its end, which may say what to do
URL = re.compile(
  r'(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^/?#\s\'"]*@)?(?P<path>[^?#\s\'"]*)'
  r'(?P<query>[?#][^\s\'"]*)?',
  re.IGNORECASE,
)
HUB_TOKEN = re.compile(r'\bhf_\w{16,}')  # of Hugging Face
INVISIBLE = frozenset('\u115f\u1160\u2800\u3164\uffa0')  # letters without ink: fillers, a blank
MASK = '***'
FORMULA = ('=', '+', '-', '@', '\t', '\r')  # how what a spreadsheet computes begins
NUMBERS = 40  # characters behind a bar: counts or sizes, a speed, the time that remains
REDRAW = 0.1  # seconds from one drawing of a bar to the next
FOLDERS = re.compile(  # of an absolute path, as POSIX or Windows write it, but of no URL
  r'(?<![\w./~-])(?<!:/)(?:[A-Za-z]:\\|~?/)(?:[^/\\\s\'"]+[/\\])*(?=[^/\\\s\'"])'
)


def one_line(text: object) -> str:
  """The text without line breaks, as `printable` has it."""
  return printable(' '.join(str(text).splitlines()))


def printable(path: bytes | str) -> str:
  """A path, or other text, on one line: what cannot be printed as Python writes it.

  That is what steers a terminal, changes the direction of writing or is not visible.
  """
  text = os.fsdecode(path)
  return ''.join(c if c.isprintable() and c not in INVISIBLE else escaped(c) for c in text)


def redacted(text: str) -> str:
  """The text without what may let others in: of a URL user, password and query; hub tokens.

  'https://me:pw@host/a.npz?sig=1' -> 'https://***@host/a.npz?***'.
  """
  return HUB_TOKEN.sub(f'hf_{MASK}', URL.sub(redacted_url, text))


def redacted_url(url: re.Match[str]) -> str:
  user, query = f'{MASK}@' * bool(url['user']), f'?{MASK}' * len((url['query'] or '')[1:2])
  return f'{url["scheme"]}{user}{url["path"]}{query}'


def message_line(text: object) -> str:
  """A message for a terminal: one line, without secrets, of a long one the two ends."""
  line = redacted(one_line(text))
  return line if len(line) <= LINE else f'{line[: LINE - TAIL - 3]}...{line[-TAIL:]}'


def escaped(character: str) -> str:
  if '\udc80' <= character <= '\udcff':  # as os.fsdecode has a byte that is no text
    return f'\\x{ord(character) - 0xDC00:02x}'
  return character.encode('unicode_escape').decode()


def quoted_formula(text: str) -> str:
  """A text with an apostrophe before it where a spreadsheet would compute it."""
  return "'" * text.startswith(FORMULA) + text


def first_few(names: Sequence[str], count: int = 5) -> str:
  """The first names and how many more there are, for an error."""
  more = len(names) - count
  return ', '.join(names[:count]) + (f' and {more:,} more' if more > 0 else '')


def reason(error: BaseException) -> str:
  """What went wrong, in one line; of an OSError without the path, which a message names itself."""
  return ' '.join((getattr(error, 'strerror', None) or str(error) or type(error).__name__).split())


def first_line(error: BaseException) -> str:
  """The first line of an error's text, or its kind where it has none."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def nearest(name: str, choices: list[str]) -> str:
  """'; did you mean ...?' with the closest of the choices, or all of them where none is close."""
  return close(name, choices) or f'; known: {", ".join(choices)}'


def close(name: str, choices: Sequence[str]) -> str:
  """'; did you mean ...?' with the closest of the choices; '' where none is close."""
  folded = {candidate.lower(): candidate for candidate in choices}
  matches = difflib.get_close_matches(name.lower(), list(folded), n=3, cutoff=0.5)
  return f'; did you mean {" or ".join(folded[match] for match in matches)}?' if matches else ''


def error_line(error: BaseException) -> str:
  """What others' code raised; of a ValueError its text alone."""
  text = ' '.join(str(error).split())
  return text if isinstance(error, ValueError) else f'{type(error).__name__}: {text}'


def to_stderr(line: object) -> None:
  """Prints a message to standard error: where notes and warnings go unless a caller takes them."""
  print(message_line(line), file=sys.stderr)


def to_stdout(*lines: object) -> None:
  """Prints lines of a result, of any length, without what steers a terminal and without secrets."""
  for line in lines:
    print(redacted(printable(str(line))))


def si(number: float) -> str:
  """1234567890 -> '1.23 G'."""
  for unit in ('', ' k', ' M', ' G', ' T'):
    if number < 1000:
      return f'{number:.3g}{unit}'
    number /= 1000
  return f'{number:.3g} P'


def number(value: float | None, form: str = '') -> str:
  """A measure by a format, or with four digits; '-' for None, as one that is not finite is read."""
  if value is None:
    return '-'
  return format(value, form or (',.0f' if abs(value) >= 1000 else '.4g'))


def quantity(count: int, noun: str) -> str:
  """'1 class', '2 classes' or '1,000 images': so many of what a noun in the singular names."""
  plural = f'{noun}es' if noun.endswith('s') else f'{noun}s'
  return f'{count:,} {noun if count == 1 else plural}'


def percent(value: float | None, digits: int = 2) -> str:
  """0.98765 -> '98.77%'; '-' for None."""
  return number(value, f'.{digits}%')


def columns(rows: Iterable[Iterable[object]]) -> Iterator[str]:
  """A line for each row, the titles first; columns of numbers are set to the right."""
  cells = [[printable(str(cell)) for cell in row] for row in rows]
  table = list(zip(*cells))  # by column
  widths = [max(map(len, column)) for column in table]
  right = [all(NUMBER.fullmatch(cell) for cell in column[1:]) for column in table]
  for row in cells:
    aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right))
    yield '  '.join(aligned).rstrip()


NUMBER = re.compile(r'[-+]?([\d.,]+(e[-+]?\d+)?%?)?')  # of a table's cell, or none


def clock(seconds: float) -> str:
  """3723 -> '1:02:03', 83 -> '1:23'."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f'{hours}:{minute:02d}:{second:02d}' if hours else f'{minute}:{second:02d}'


def bar_width(console: 'Console') -> int:
  """Columns of a progress bar alone: fewer on a narrow terminal, which has to show the words."""
  return 20 if console.width >= 80 else 10


def fitting(parts: Iterable[str], room: int) -> str:
  """The first parts, empty ones left out, as many as a line of so many characters holds."""
  line = ''
  for part in filter(None, parts):
    longer = f'{line}  {part}' if line else part
    if len(longer) > room:
      break
    line = longer
  return line


def clipped(text: str, room: int) -> str:
  """Text of so many characters at most: one that is cut ends with '…'."""
  return text if len(text) <= room else f'{text[: max(room - 1, 0)]}…'


def progress_bars(
  *, unit: str = '', console: 'Console | None' = None, eta: bool = True
) -> 'Progress':
  """Rich's progress bars, all of one look, silent where the console is no terminal.

  A task is added by `add_task(description, total=..., note=...)`, its total None where that is not
  known; the note is text behind the bar that may change. The unit 'bytes' shows sizes and a speed,
  any other counts; `eta` adds the time that remains. On standard error, where `console` is None,
  the bars vanish at the end. Nothing is drawn but by `refresh`, see `drawing`, so that a log or
  notebook has no line twice.
  """
  from rich import console as consoles
  from rich import progress

  is_bytes = unit == 'bytes'
  transient, console = console is None, console or consoles.Console(stderr=True)
  return progress.Progress(
    progress.TextColumn('{task.description}', markup=False),
    progress.BarColumn(bar_width=bar_width(console)),
    progress.DownloadColumn() if is_bytes else progress.MofNCompleteColumn(),
    *([progress.TransferSpeedColumn()] if is_bytes else []),
    progress.TextColumn('{task.fields[note]}', markup=False),
    *([progress.TimeRemainingColumn(compact=True)] if eta else []),
    auto_refresh=False,
    console=console,
    transient=transient,
    disable=not console.is_terminal,
  )


def drawing(bars: 'Progress') -> Callable[[], None]:
  """A function that draws bars, but where it did so in the last REDRAW seconds."""
  last = -math.inf

  def draw() -> None:
    nonlocal last
    if (now := time.monotonic()) - last >= REDRAW:
      last = now
      bars.refresh()

  return draw


@contextlib.contextmanager
def progress(
  total: int | None, *, description: str = '', unit: str = ''
) -> Iterator[Callable[[int], None]]:
  """A progress bar on standard error, silent where that is no terminal, as `progress_bars`.

  Yields a function that takes how much more is done; a total of None is not known.
  """
  with progress_bars(unit=unit) as bars:
    console = bars.console
    description = clipped(message_line(description), console.width - bar_width(console) - NUMBERS)
    task = bars.add_task(description, total=total, note='' if unit == 'bytes' else unit)
    draw = drawing(bars)

    def advance(count: int) -> None:
      bars.advance(task, count)
      draw()

    bars.refresh()
    yield advance


def without_folders(text: str, root: str = '') -> str:
  """Text in which absolute paths, which tell of a machine and its user, are their names alone.

  A URL's path stays; what lies in the folder `root` keeps its path in it.
  'folder:/home/ann/photos' -> 'folder:photos'.
  """
  inside = text.replace(f'{root.rstrip("/")}/', '') if root else text
  return FOLDERS.sub('', inside)
