"""The report of a run: `report.html` and `report.png` in its folder, live while it trains."""

import contextlib
import dataclasses
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vit_jax import files, sources
from vit_jax.text import one_line
from vit_jax.views import opening
from vit_jax.views.facts import (
  Facts,
  gather,
  gather_live,
  is_finished,
  read_logs,
  with_repeats,
)
from vit_jax.views.report_page import as_html, as_png

PAGE, PICTURE = 'report.html', 'report.png'


def write(facts: Facts) -> None:
  """Writes `report.html` and `report.png` into a run's folder, each whole or not at all.

  Only those of a finished run have checksums: others are written again at its end.
  """
  page, picture = encoded(facts), as_png(facts)
  end = checksums(page, picture) if is_finished(facts.folder) else b''
  contents = {PAGE: page + end, PICTURE: picture}
  with contextlib.ExitStack() as both:  # neither is replaced before both are written
    for name, content in contents.items():
      both.enter_context(files.replacing(facts.folder / name)).write(content)


def encoded(facts: Facts) -> bytes:
  """The page as the bytes of its file."""
  return as_html(facts).encode(errors='replace')


def checksums(page: bytes, picture: bytes) -> bytes:
  """The comment at the end of a page that says what both files were."""
  return f'<!-- crc32 {zlib.crc32(page):08x} {PICTURE} {zlib.crc32(picture):08x} -->\n'.encode()


def is_whole(folder: pathlib.Path) -> bool:
  """Whether a finished run's page and picture are there, as they were written."""
  try:
    page, picture = (files.read_bytes(folder / name) for name in (PAGE, PICTURE))
  except OSError:
    return False
  end = len(checksums(b'', b''))
  return page[-end:] == checksums(page[:-end], picture)


def while_training(
  folder: str | os.PathLike[str],
  evaluation: dict[str, Any],
  status: Mapping[str, Any],
  source: sources.Source,
  say: Callable[[str], object],
) -> None:
  """Rewrites the page of a run that this process trains; an error becomes a line.

  See `facts.gather_live`.
  """
  folder = pathlib.Path(folder)
  try:
    with jax.transfer_guard('allow'):  # the loop's is on
      page = encoded(gather_live(folder, evaluation, status, source))
    with files.replacing(folder / PAGE) as file:
      file.write(page)
  except Exception as error:  # a run must not fail for its report
    say(f'no live report: {one_line(error)}')


def end_live(folder: pathlib.Path, status: Mapping[str, Any]) -> None:
  """Has the page of a run that ends say so, and read itself again no more.

  Its curves and photos stay those of the latest evaluation. A run without a page gets none.

  Raises:
    OSError: if the page cannot be written.
  """
  rewrite(folder, lambda page: opening.ended(page, status))


def resume_live(folder: pathlib.Path, status: Mapping[str, Any]) -> None:
  """Has the page of a run that trains again say so, and read itself again, as `end_live` ends it.

  Raises:
    OSError: if the page cannot be written.
    ValueError: if the folder is not a run's.
  """
  facts = dataclasses.replace(read_logs(folder, None), status=status)
  rewrite(folder, lambda page: opening.resumed(page, facts))


def rewrite(folder: pathlib.Path, change: Callable[[str], str]) -> None:
  """Changes the page of a run; bytes that are no text, as damage makes them, stay."""
  try:
    page = files.read_bytes(folder / PAGE).decode(errors='surrogateescape')
  except FileNotFoundError:
    return
  if (new := change(page)) != page:
    with files.replacing(folder / PAGE) as file:
      file.write(new.encode(errors='surrogateescape'))


def is_current(folder: pathlib.Path) -> bool:
  """Whether there is a page, and it is of a finished run or one that trains."""
  try:
    page = files.read_bytes(folder / PAGE).decode(errors='replace')
  except OSError:
    return False
  return is_finished(folder) or bool(opening.REFRESH.search(page))


def after_training(folder: str | os.PathLike[str], say: Callable[[str], object]) -> None:
  """Writes the report from what the run has written; an error becomes a line."""
  if jax.process_index() > 0:
    return
  try:
    facts = with_repeats(gather(pathlib.Path(folder)))
    write(facts)
  except Exception as error:  # a run that is done must not fail for its report
    say(f'no report: {one_line(error)}')
    return
  for line in facts.left_out:
    say(f'report: {line}')
  say(f'the report is {pathlib.Path(folder) / PAGE}')
