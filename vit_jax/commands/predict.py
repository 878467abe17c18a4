"""`vit predict`: names what images show."""

import argparse
import csv
import functools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

import numpy as np

from vit_jax.commands import warn
from vit_jax.files import as_json
from vit_jax.predict import BATCH, Run, image_files, load


def run(args: argparse.Namespace) -> int:
  """0; 3 if some files could not be read."""
  if args.top < 1:
    raise ValueError(f'--top must be at least 1, got {args.top}')
  model = load(args.run)
  model.check_classes()
  for line in model.defects:
    warn('predict', line)
  failed: list[str] = []
  paths = image_files(args.files, say=functools.partial(warn, 'predict'))
  rows = predictions(model, paths, args.top, failed)
  write(args.format, rows, sys.stdout)
  for line in failed:
    warn('predict', line)
  return 3 if failed else 0


def predictions(
  run: Run, files: Sequence[str], top: int, failed: list[str], *, batch_size: int = BATCH
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
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


def write(form: str, rows: Iterator[tuple[str, list[dict[str, Any]]]], out: TextIO) -> None:
  """Predictions as a table, as CSV (a line per class) or as one JSON list."""
  if form == 'json':
    result = [{'file': file, 'predictions': ranked} for file, ranked in rows]
    print(as_json(result, indent=1), file=out)
  elif form == 'csv':
    table = csv.writer(out)
    table.writerow(['file', 'rank', 'label', 'score'])
    for file, ranked in rows:
      for rank, prediction in enumerate(ranked, 1):
        table.writerow([file, rank, prediction['label'], f'{prediction["score"]:.6f}'])
  else:
    for file, ranked in rows:
      classes = (f'{prediction["label"]} {prediction["score"]:.1%}' for prediction in ranked)
      print(file, *classes, sep='  ', file=out)
