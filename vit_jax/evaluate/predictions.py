"""Predictions as CSV and JSON, and in a file that is written as they come.

A file that is not complete is gone on with by whoever asks for the same again: what was written
last, and may be torn, is mended, and images that it has are not predicted twice.
"""

import contextlib
import csv
import functools
import io
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict

from vit_jax import files
from vit_jax.files import as_json
from vit_jax.guards import lock
from vit_jax.text import quoted_formula, to_stderr

COLUMNS = ('file', 'rank', 'label', 'score')


class Prediction(TypedDict):
  """A class of an image, and its probability."""

  label: str
  score: float


Written = Callable[[str, Sequence[Prediction]], str]  # an image's classes, best first, as text


def csv_rows(
  name: str,
  ranked: Sequence[Prediction],
  *,
  quote_formulas: bool = False,
  shown: Callable[[str], str] = str,
) -> str:
  """A row for each class of an image, quoted as RFC 4180 says; of none a row without one.

  Args:
    name: of the image.
    ranked: its classes, best first.
    quote_formulas: put an apostrophe before a name that a spreadsheet would compute.
    shown: a name as it is to be printed.
  """

  def cell(text: str) -> str:
    return shown(quoted_formula(text) if quote_formulas else text)

  rows = [(str(rank), cell(p['label']), f'{p["score"]:.6f}') for rank, p in enumerate(ranked, 1)]
  out = io.StringIO()
  csv.writer(out).writerows((cell(name), *row) for row in rows or [('', '', '')])
  return out.getvalue()


def csv_header() -> str:
  return ','.join(COLUMNS) + '\r\n'


def json_row(name: str, ranked: Sequence[Prediction]) -> str:
  return as_json({'file': name, 'predictions': list(ranked)})


# A file


def csv_records(text: str) -> Iterator[tuple[str, str]]:
  """(image, its rows) of what a file of CSV has whole: of the last image nobody can say."""
  groups: dict[str, list[list[str]]] = {}
  text = text[: text.rfind('\r\n') + 2] if '\r\n' in text else ''
  with contextlib.suppress(csv.Error):
    for row in csv.reader(io.StringIO(text, newline='')):
      if row and row != list(COLUMNS):
        groups.setdefault(row[0], []).append(row)
  for name in list(groups)[:-1]:
    out = io.StringIO()
    csv.writer(out).writerows(groups[name])
    yield name, out.getvalue()


def json_records(text: str) -> Iterator[tuple[str, str]]:
  """(image, its line) of what a file of JSON, a line for each image, has whole."""
  for line in text.splitlines():
    line = line.strip().rstrip(',')
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
      yield json.loads(line)['file'], line


def json_lines(text: str) -> Iterator[tuple[str, str]]:
  """As `json_records`, each with the end of its line."""
  for name, line in json_records(text):
    yield name, f'{line}\n'


class Form:
  """How a file of predictions begins, separates images and ends."""

  def __init__(
    self,
    records: Callable[[str], Iterator[tuple[str, str]]],
    written: Written,
    *,
    begin: str = '',
    joint: str = '',
    end: str = '',
  ):
    self.records, self.written = records, written
    self.begin, self.joint, self.end = begin, joint, end


FORMS = {
  '.csv': Form(csv_records, csv_rows, begin=csv_header()),
  '.json': Form(json_records, json_row, begin='[\n', joint=',\n', end='\n]\n'),
  '.jsonl': Form(json_lines, lambda name, ranked: json_row(name, ranked) + '\n'),
}


def form_of(path: str) -> Form:
  """The form of a file, by its suffix."""
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in FORMS:
    raise ValueError(f'--out {path}: wants a name that ends in {", ".join(FORMS)}')
  return FORMS[suffix]


class Results:
  """A file of predictions that is being written; see `completing`.

  Args:
    path: of the file.
    form: of it.
    records: what was in it, by the name of each image as it is written.
    written: the text of an image.
    named: an image's name as it is written.
  """

  def __init__(
    self,
    path: pathlib.Path,
    form: Form,
    records: Mapping[str, str],
    written: Written,
    named: Callable[[str], str] = str,
  ):
    self.names, self.form, self.written, self.named = frozenset(records), form, written, named
    self.is_first = not records
    with files.replacing(path) as file:
      file.write(encoded(form.begin + form.joint.join(records.values())))
    self.file = open(path, 'ab')  # noqa: SIM115  closed by `completing`

  def has(self, name: str) -> bool:
    """Whether an image was in the file."""
    return self.named(name) in self.names

  def add(self, name: str, ranked: Sequence[Prediction]) -> None:
    """Writes the classes of an image, at once."""
    joint = '' if self.is_first else self.form.joint
    self.file.write(encoded(joint + self.written(name, ranked)))
    self.file.flush()
    self.is_first = False


@contextlib.contextmanager
def completing(
  path: str, origin: Mapping[str, files.JSON], *, quote_formulas: bool = False
) -> Iterator[Results]:
  """A file of predictions to be begun or gone on with, of the form that its suffix says.

  Args:
    path: of the file; beside it lies a hidden one with its origin.
    origin: the model and options that all of the file is of.
    quote_formulas: see `csv_rows`.

  Raises:
    ValueError: for another suffix; if the file is another's, of another origin, or in use.
  """
  form, file = form_of(path), pathlib.Path(path)
  written, named = form.written, quoted_formula if quote_formulas else str
  if written is csv_rows:
    written = functools.partial(csv_rows, quote_formulas=quote_formulas)
  beside = file.with_name(f'.{file.name}.origin.json')
  try:
    taken = lock.acquire(file.with_name(f'.{file.name}.lock'), to_stderr)
  except lock.Taken as error:
    raise ValueError(f'{path} is being written by {error}') from None
  try:
    records = dict(form.records(stored_text(file, beside, dict(origin))))
    if not file.exists():
      files.write_json(beside, dict(origin))
    results = Results(file, form, records, written, named)
    with results.file:
      yield results
      results.file.write(encoded(form.end))
  finally:
    taken.release()


def stored_text(file: pathlib.Path, beside: pathlib.Path, origin: dict[str, files.JSON]) -> str:
  """What a file has so far; ValueError if that is of another origin, or no one knows whose."""
  if not file.exists():
    return ''
  if not beside.exists():
    raise ValueError(f'{file} is there, and not of `vit predict --out`: give another name')
  stored = files.read_object(beside)
  if differing := [name for name in origin if stored.get(name) != origin[name]]:
    name = differing[0]
    change = f': {name} was {stored.get(name)} and is {origin[name]}' * (name != 'model')
    raise ValueError(
      f'{file} has predictions of another {"model" if name == "model" else "choice"}{change}; '
      'give another name'
    )
  return file.read_bytes().decode('utf-8', 'surrogateescape')


def encoded(text: str) -> bytes:
  """Text in UTF-8; a name that is none has the bytes that it has on disk."""
  return text.encode('utf-8', 'surrogateescape')
