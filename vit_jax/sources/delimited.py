"""Tables as text, as spreadsheets and other programs write them."""

import csv
import os
from collections.abc import Iterator

from vit_jax.text import printable

DELIMITERS = ',;\t'  # the first, where a header says nothing
UTF_16 = (b'\xff\xfe', b'\xfe\xff')  # byte-order marks


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
  """(line number, fields) of each row that is not empty, the header first.

  The text is UTF-8, or UTF-16 with a byte-order mark. The delimiter is that of DELIMITERS by which
  the header has the most fields, or what Excel's line 'sep=;' before it says. Fields may be quoted,
  also after a space.

  Raises:
    ValueError: of one line that names the file, for what is no such text.
  """
  try:
    with open(path, 'rb') as file:
      encoding = 'utf-16' if file.read(2) in UTF_16 else 'utf-8-sig'
    with open(path, encoding=encoding, newline='') as lines:
      first = lines.readline()
      skipped = int(first.lower().startswith('sep='))
      delimiter = first[4:5] if skipped else find_delimiter(first)
      if not skipped:
        lines.seek(0)
      reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
      yield from ((reader.line_num + skipped, row) for row in reader if any(row))
  except UnicodeError:
    raise ValueError(f'{printable(os.fspath(path))} is not UTF-8 text') from None
  except (csv.Error, TypeError, OSError) as error:  # a TypeError: no delimiter behind 'sep='
    reason = getattr(error, 'strerror', None) or error
    raise ValueError(f'{printable(os.fspath(path))} cannot be read: {reason}') from None


def find_delimiter(header: str) -> str:
  """The one of DELIMITERS by which a line has the most fields."""

  def fields(delimiter: str) -> int:
    return len(next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), []))

  return max(DELIMITERS, key=fields)
