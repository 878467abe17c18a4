"""`vit predict`: names what images show."""

import argparse
import csv
import functools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit_jax.commands import warn
from vit_jax.files import as_json
from vit_jax.predict import BATCH, Run, image_files, load
from vit_jax.text import printable, to_stdout

FORMULA = ('=', '+', '-', '@', '\t', '\r')  # how what a spreadsheet computes begins
Predictions = Iterator[tuple[str, list[dict[str, Any]]]]  # of each file, its classes, best first


def run(args: argparse.Namespace) -> int:
  """0; 3 if some files could not be read."""
  if args.top < 1:
    raise ValueError(f'--top must be at least 1, got {args.top}')
  if args.quote_formulas and args.format != 'csv':
    raise ValueError('--quote-formulas is of --format csv')
  model = load(args.run, args.checkpoint)
  model.check_classes()
  for line in model.defects:
    warn('predict', line)
  failed: list[str] = []
  paths = image_files(args.files, say=functools.partial(warn, 'predict'))
  rows = predictions(model, paths, args.top, failed)
  if args.format == 'json':
    write_json(rows)
  elif args.format == 'csv':
    write_csv(rows, quote_formulas=args.quote_formulas)
  else:
    write_table(rows)
  for line in failed:
    warn('predict', line)
  return 3 if failed else 0


def predictions(
  run: Run, files: Sequence[str], top: int, failed: list[str], *, batch_size: int = BATCH
) -> Predictions:
  """(file, ranked classes) of every file that can be read; a line in `failed` for the others."""

  def prepared(file: str) -> np.ndarray | str:
    try:
      return run.prepared(file)
    except (ValueError, FileNotFoundError) as error:
      return str(error)

  with ThreadPoolExecutor() as threads:
    for start in range(0, len(files), batch_size):
      chunk = files[start : start + batch_size]
      read = list(zip(chunk, threads.map(prepared, chunk)))
      failed += [image for _, image in read if isinstance(image, str)]
      good = [(file, image) for file, image in read if not isinstance(image, str)]
      if good:
        scores = run.forward([image for _, image in good], batch_size=batch_size)['scores']
        yield from ((file, run.ranked(row, top)) for (file, _), row in zip(good, scores))


def write_json(rows: Predictions) -> None:
  """One list of all files."""
  print(as_json([{'file': file, 'predictions': ranked} for file, ranked in rows], indent=1))


def write_csv(rows: Predictions, *, quote_formulas: bool) -> None:
  """A line for each class of a file, quoted as RFC 4180 says.

  Names are as they are, but on a terminal, which they could steer. With `quote_formulas` one that a
  spreadsheet would compute has an apostrophe before it.
  """
  is_terminal = sys.stdout.isatty()

  def cell(name: str) -> str:
    formula = quote_formulas and name.startswith(FORMULA)
    return "'" * formula + (printable(name) if is_terminal else name)

  table = csv.writer(sys.stdout)
  table.writerow(['file', 'rank', 'label', 'score'])
  for file, ranked in rows:
    for rank, prediction in enumerate(ranked, 1):
      score = f'{prediction["score"]:.6f}'
      table.writerow([cell(file), rank, cell(prediction['label']), score])


def write_table(rows: Predictions) -> None:
  """A line for each file."""
  for file, ranked in rows:
    classes = (f'{prediction["label"]} {prediction["score"]:.1%}' for prediction in ranked)
    to_stdout('  '.join([file, *classes]))
