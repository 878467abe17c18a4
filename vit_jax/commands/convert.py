"""`vit convert`: a checkpoint in another's names, compared if asked."""

import argparse
import dataclasses
import os

from vit_jax import bundle, convert
from vit_jax.commands import ending, warn
from vit_jax.evaluate import parity
from vit_jax.text import quantity, to_stdout


def run(args: argparse.Namespace) -> int:
  """0; 3 if the comparison finds a difference."""
  if os.path.lexists(args.destination):
    raise ValueError(f'{args.destination} exists already')
  checkpoint = convert.read(args.source, checkpoint=args.checkpoint)
  model = bundle.from_checkpoint(checkpoint, native=True)
  if args.encoder_only:
    model = dataclasses.replace(model, decoder=None)
  notes: list[str] = []
  if args.to == 'bundle':
    bundle.write(args.destination, model)
  else:
    notes = convert.write(args.destination, model, to=args.to)
  for line in filter(None, (checkpoint.stage, *checkpoint.notes, *model.defects, *notes)):
    warn('convert', line)
  size = 'x'.join(map(str, model.preprocess.size))
  result_of = quantity(len(model.classes), 'class') if model.classes else 'no classes'
  to_stdout(f'{args.destination}: {model.name}, {size} pixels, {result_of}')
  return compare(args, model, checkpoint.dialect) if args.check else 0


def compare(args: argparse.Namespace, model: bundle.Bundle, dialect: str) -> int:
  """Prints the largest difference between what was read and what was written; 3 if there is one."""
  sides = {'read': (args.source, dialect), 'written': (args.destination, args.to)}
  with ending(3, ValueError, OSError, prefix='--check: '):
    line, equal = parity.compare(model, sides)
  to_stdout(line)
  return 0 if equal else 3
