"""`vit search`: photos by what a model makes of them."""

import argparse
import csv
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
from vit_jax.text import columns, first_few, progress, quantity, to_stderr, to_stdout
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
  queries = inputs.image_split(loose.image_files(args.queries)) if args.queries else None
  photos = open_photos(args)
  for line in photos.notes:
    to_stderr(line)
  with progress(len(photos.source), description='features', unit='images') as advance:
    features = extract(
      model,
      photos,
      preprocess=args.preprocess,
      batch_size=args.batch_size,
      cache=user_cache() if args.cache is None else args.cache,
      advance=advance,
    )
  features.check_finite()
  if len(features) < 2 and not queries:
    raise ValueError(f'{args.photos} has one image that can be read: there is nothing to compare')
  with progress(len(features), description='neighbours', unit='images') as advance:
    collection = Collection(photos, features, args.k, model.preprocess.channels, advance)
    selections, missing = searched(collection, model, queries, args)
  write(args.out, collection, selections, queries, args.count)
  if args.format == 'json':
    print(files.as_json([as_json(selection) for selection in selections]))
  else:
    to_stdout(*lines(selections, args))
  missing = [*collection.unreadable(), *missing]
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
  if args.out and os.path.lexists(args.out) and not os.path.isdir(args.out):
    raise ValueError(f'--out {args.out} is no folder')


def open_photos(args: argparse.Namespace) -> inputs.Split:
  """The photos of a folder, or those of a split of a data set."""
  name = f'images:{args.photos}' if os.path.isdir(args.photos) else args.photos
  return inputs.open_split(args.model, on=name, split=args.split)


def searched(
  images: Collection,
  model: bundle.Bundle,
  queries: inputs.Split | None,
  args: argparse.Namespace,
) -> tuple[list[Selection], list[str]]:
  """What the flags ask for, and the names of queries that could not be read."""
  selections, missing = [], []
  wanted = set(args.only or (() if queries else SELECTIONS)) | (
    {'diverse'} if args.diverse else set()
  )
  if queries:
    features = extract(model, queries, preprocess=args.preprocess, batch_size=args.batch_size)
    selections.append(images.neighbours(queries, features))
    missing = Collection(queries, features, args.k).unreadable()
  for name, selection_of in SELECTIONS.items():
    if name in wanted and (selection := selection_of(images, args)):
      selections.append(selection)
    elif name in (args.only or ()):
      warn('search', f'{name}: images of {args.photos} have no single label each')
  return selections, missing


# Results


def write(
  out: str,
  images: Collection,
  selections: Sequence[Selection],
  queries: inputs.Split | None,
  count: int,
) -> None:
  """Writes the table and the page into a folder, which is made; nothing where none is asked for."""
  if not out:
    return
  folder = pathlib.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  text = io.StringIO()
  table = csv.writer(text)
  table.writerow(COLUMNS)
  table.writerows(row for selection in selections for row in selection.rows())
  page = search_page.as_html(images, selections, queries, count=count)
  for name, content in ((TABLE, text.getvalue()), (PAGE, page)):
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
