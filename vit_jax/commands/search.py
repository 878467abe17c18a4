"""`vit search`: photos by what a model makes of them."""

import argparse
import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vit_jax import bundle, files
from vit_jax.commands import INCOMPLETE, warn
from vit_jax.evaluate import inputs
from vit_jax.evaluate.collection import COLUMNS, Collection, Selection
from vit_jax.evaluate.features import extract, user_cache
from vit_jax.sources import loose
from vit_jax.text import (
  columns,
  first_few,
  progress,
  quantity,
  quoted_formula,
  to_stderr,
  to_stdout,
)
from vit_jax.views import search_page

PAGE, TABLE = 'search.html', 'search.csv'
SELECTIONS: dict[str, Callable[[Collection, argparse.Namespace], Selection | None]] = {
  'duplicates': lambda images, args: images.duplicates(),
  'near': lambda images, args: images.near(args.near),
  'outliers': lambda images, args: images.outliers(args.count),
  'labels': lambda images, args: images.labels(),
  'diverse': lambda images, args: images.diverse(args.diverse) if args.diverse else None,
}


def run(args: argparse.Namespace) -> int:
  """0; 3 if some images could not be read."""
  check(args)
  model = bundle.read(args.model, args.checkpoint)
  for line in model.defects:
    warn('search', line)
  queries = read(model, query_files(args), args) if args.queries else None
  images = read(model, open_photos(args), args, cache=args.cache)
  if len(images.features) < 2 and not queries:
    raise ValueError(f'{args.photos} has one image that can be read: there is nothing to compare')
  with progress(len(images.features), description='neighbours', unit='images') as advance:
    selections = selected(dataclasses.replace(images, advance=advance), queries, args)
  if args.out:
    page = search_page.as_html(images, selections, queries, count=args.count)
    write(pathlib.Path(args.out), as_csv(selections, quote_formulas=args.quote_formulas), page)
  if args.format == 'json':
    print(files.as_json([as_json(selection) for selection in selections]))
  else:
    to_stdout(*lines(selections, args))
  missing = images.unreadable() + (queries.unreadable() if queries else [])
  if missing:
    warn('search', f'{quantity(len(missing), "image")} could not be read: {first_few(missing)}')
  return INCOMPLETE if missing else 0


def check(args: argparse.Namespace) -> None:
  """Raises ValueError for flags that cannot be, before anything is computed."""
  if not -1 <= args.near <= 1:
    raise ValueError(f'--near is a cosine, from -1 to 1, got {args.near:g}')
  if 'diverse' in (args.only or ()) and not args.diverse:
    raise ValueError('--only diverse wants --diverse N, how many images')
  for path in args.queries:
    if not (os.path.lexists(path) or loose.is_pattern(path)):
      raise FileNotFoundError(f'{path}: there is no such file')
  if args.quote_formulas and not args.out:
    raise ValueError(f'--quote-formulas is of {TABLE}: give --out DIR')
  if args.out and os.path.lexists(args.out) and not os.path.isdir(args.out):
    raise ValueError(f'--out {args.out} is no folder')


def query_files(args: argparse.Namespace) -> inputs.Split:
  """The images of the queries."""
  return inputs.image_split(loose.image_files(args.queries))


def open_photos(args: argparse.Namespace) -> inputs.Split:
  """The photos of a folder, or those of a split of a data set."""
  name = f'images:{args.photos}' if os.path.isdir(args.photos) else args.photos
  return inputs.open_split(args.model, on=name, split=args.split)


def read(
  model: bundle.Bundle, split: inputs.Split, args: argparse.Namespace, *, cache: str | None = ''
) -> Collection:
  """Images with their features, which a folder keeps: None is the user's, '' none."""
  for line in split.notes:
    to_stderr(line)
  with progress(len(split.source), description='features', unit='images') as advance:
    features = extract(
      model,
      split,
      preprocess=args.preprocess,
      batch_size=args.batch_size,
      cache=user_cache() if cache is None else cache,
      advance=advance,
    )
  features.check_finite()
  return Collection(split, features, args.k, model.preprocess.channels)


def selected(
  images: Collection, queries: Collection | None, args: argparse.Namespace
) -> list[Selection]:
  """What the flags ask for: the nearest of the queries, or all, or what --only names.

  Raises:
    ValueError: where nothing of it can be told of these images.
  """
  selections, refusals = [images.neighbours(queries)] if queries else [], []
  wanted = args.only or ([] if queries else SELECTIONS)
  for name, selection_of in SELECTIONS.items():
    is_wanted = name in wanted or (name == 'diverse' and args.diverse)
    if is_wanted and (selection := selection_of(images, args)):
      selections.append(selection)
    elif is_wanted and args.only:
      refusals.append(f'{name}: images of {args.photos} have no single label each')
  if refusals and not selections:
    raise ValueError('; '.join(refusals))
  for line in refusals:
    warn('search', line)
  return selections


# Results


def as_csv(selections: Sequence[Selection], *, quote_formulas: bool = False) -> str:
  """All rows, with an apostrophe, if asked for, before names that a spreadsheet would compute."""

  def cell(value: object) -> object:
    return quoted_formula(value) if quote_formulas and isinstance(value, str) else value

  text = io.StringIO()
  table = csv.writer(text)
  table.writerow(COLUMNS)
  table.writerows(map(cell, row) for selection in selections for row in selection.rows())
  return text.getvalue()


def write(folder: pathlib.Path, table: str, page: str) -> None:
  """Writes the table and the page into a folder, which is made."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in ((TABLE, table), (PAGE, page)):
    with files.replacing(folder / name) as file:
      file.write(content.encode(errors='replace'))


def lines(selections: Sequence[Selection], args: argparse.Namespace) -> Iterator[str]:
  """Each selection as text, `--count` rows of it, without the columns that it does not use."""
  for selection in selections:
    yield f'{selection.name}: {selection.sentence}'
    rows = [list(map(str, row))[1:] for row in selection.rows()]
    if rows:
      used = [any(column) for column in zip(*rows)]
      shown = [list(COLUMNS[1:]), *rows[: args.count]]
      yield from columns([cell for cell, use in zip(row, used) if use] for row in shown)
    if len(rows) > args.count:
      yield f'and {quantity(len(rows) - args.count, "row")} more'
    yield ''
  if args.out:
    yield f'{pathlib.Path(args.out) / PAGE} shows them, {TABLE} beside it has all rows'


def as_json(selection: Selection) -> dict[str, Any]:
  """A selection as JSON has it: its rows by their columns."""
  rows = [dict(zip(COLUMNS[1:], row[1:])) for row in selection.rows()]
  return {'list': selection.name, 'sentence': selection.sentence, 'rows': rows}
