"""`vit predict`: names what images show."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence

from vit_jax import bundle
from vit_jax.checkpoint import tree_crc
from vit_jax.commands import check_out, warn
from vit_jax.evaluate import predictions
from vit_jax.evaluate.predictions import Prediction
from vit_jax.files import as_json
from vit_jax.predict import MANY, Run, check_choice, load
from vit_jax.sources import loose
from vit_jax.text import printable, progress, quantity, to_stdout

Predictions = Iterator[tuple[str, list[Prediction]]]  # of each file, its classes, best first


def run(args: argparse.Namespace) -> int:
  """0; 3 if some files could not be read."""
  check_flags(args)
  model = load(args.run, args.checkpoint)
  model.check_classes()
  for line in model.defects:
    warn('predict', line)
  say = functools.partial(warn, 'predict')
  images = [image for path in args.files for image in loose.listed(path, say=say)]
  failed: list[str] = []
  if args.out:
    complete(model, args, images, failed)
  else:
    write(predicted(model, args, images, failed), args)
  for line in failed:
    warn('predict', line)
  return 3 if failed else 0


def check_flags(args: argparse.Namespace) -> None:
  """Raises ValueError for flags that cannot be, alone or together, before a model is read."""
  check_choice(args.top, args.threshold, '--')
  if args.out:
    predictions.form_of(args.out)
    check_out(args.out)
  if args.out and args.format != 'table':
    raise ValueError(f'--out {args.out} has the format of its suffix: leave out --format')
  if args.quote_formulas and not (args.format == 'csv' or args.out.lower().endswith('.csv')):
    raise ValueError('--quote-formulas is of --format csv')


def predicted(
  model: Run, args: argparse.Namespace, images: Sequence[loose.Loose], failed: list[str]
) -> Predictions:
  """(file, ranked classes) of every image that can be read; a line in `failed` for the others."""
  bar: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
  if len(images) > MANY and (args.out or not sys.stdout.isatty()):  # which has the lines already
    bar = progress(len(images), unit='images')
  with bar as advance:
    for name, values in model.outputs(images, failed=failed):
      yield name, model.ranked(values['scores'], args.top, args.threshold)
      if callable(advance):
        advance(1)


def complete(
  model: Run, args: argparse.Namespace, images: Sequence[loose.Loose], failed: list[str]
) -> None:
  """Adds to a file the predictions that it lacks."""
  origin = {
    'model': [f'{tree_crc(model.params):08x}', as_json(bundle.describe(model))],
    'top': args.top,
    'threshold': args.threshold,
    'quote_formulas': args.quote_formulas,
  }
  with predictions.completing(args.out, origin, quote_formulas=args.quote_formulas) as results:
    new = [image for image in images if not results.has(image.name)]
    for name, ranked in predicted(model, args, new, failed):
      results.add(name, ranked)
  count, others = quantity(len(new) - len(failed), 'image'), len(images) - len(new)
  before = f', {others:,} were there' * bool(others)
  to_stdout(f'{count} predicted{before}: {args.out}')


def write(rows: Predictions, args: argparse.Namespace) -> None:
  """Prints predictions in the format that the flags ask for."""
  if args.format == 'json':
    print(as_json([{'file': file, 'predictions': ranked} for file, ranked in rows], indent=1))
  elif args.format == 'csv':
    shown = printable if sys.stdout.isatty() else str  # a terminal could be steered by a name
    sys.stdout.write(predictions.csv_header())
    for file, ranked in rows:
      quote = args.quote_formulas
      sys.stdout.write(predictions.csv_rows(file, ranked, quote_formulas=quote, shown=shown))
  else:
    write_table(rows, args.threshold)


def write_table(rows: Predictions, threshold: float) -> None:
  """A line for each file."""
  for file, ranked in rows:
    classes = [f'{prediction["label"]} {prediction["score"]:.1%}' for prediction in ranked]
    to_stdout('  '.join([file, *(classes or [f'(no class reaches {threshold:.1%})'])]))
