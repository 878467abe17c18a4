"""`vit compare`: a page and a table of several runs."""

import argparse
import pathlib
from collections.abc import Iterator, Sequence

from vit_jax import files
from vit_jax.commands import warn
from vit_jax.text import columns, to_stdout
from vit_jax.views import compare_page, comparison
from vit_jax.views.comparison import Comparison

PAGE, VALUES = 'compare.html', 'compare.json'


def run(args: argparse.Namespace) -> int:
  """0; 3 if a run is not finished, or images could not be shown."""
  compared = comparison.read(args.runs)
  written = write(compared, pathlib.Path(args.out))
  if args.format == 'json':
    print(files.as_json(comparison.as_json(compared), indent=1))
  else:
    to_stdout(*lines(compared), '', *written)
  for line in compared.left_out:
    warn('compare', line)
  return 3 if compared.left_out else 0


def write(compared: Comparison, folder: pathlib.Path) -> Sequence[pathlib.Path]:
  """Writes the page, and all of it as JSON, into a folder; their paths."""
  page, values = folder / PAGE, folder / VALUES
  content = compare_page.as_html(compared).encode(errors='replace')
  folder.mkdir(parents=True, exist_ok=True)
  with files.replacing(page) as file:
    file.write(content)
  files.write_json(values, comparison.as_json(compared))
  return page, values


def lines(compared: Comparison) -> Iterator[str]:
  """Results, the fields that differ, and the tests as text."""
  names = compare_page.measures(compared.groups)
  rows = [('', *map(str, names))]
  rows += [
    (group.name, *(compare_page.group_text(group, name) for name in names))
    for group in compared.groups
  ]
  yield from columns(rows)
  if compared.fields:
    yield ''
    runs = [member.name for member in compared.members]
    yield from columns(
      [('', *runs)]
      + [(name, *map(compare_page.field_text, row)) for name, row in compared.fields.items()]
    )
  if compared.tests:
    yield ''
    yield from map(comparison.test_line, compared.tests)
