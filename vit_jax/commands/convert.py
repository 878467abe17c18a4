"""`vit convert`: a checkpoint in another's names, compared if asked."""

import argparse
import os
import sys
from collections.abc import Sequence

from vit_jax import bundle, convert
from vit_jax.convert import writing

FORMS = (*writing.SPEAKERS, 'bundle')


def main(argv: Sequence[str]) -> int:
  """0 if it was written, 2 for bad input, 3 if the comparison finds a difference."""
  flags = parser().parse_args(argv)
  try:
    if os.path.lexists(flags.destination):
      raise ValueError(f'{flags.destination} exists already')
    found = convert.read(flags.source)
    source = bundle.from_checkpoint(found, native=True)
    if flags.to == 'bundle':
      bundle.write(flags.destination, source)
      told = []
    else:
      told = convert.write(flags.destination, source, to=flags.to)
  except (ValueError, OSError) as error:
    print(f'vit convert: {error}', file=sys.stderr)
    return 2
  for line in (*found.notes, *told):
    print(f'vit convert: {line}', file=sys.stderr)
  size = 'x'.join(map(str, source.preprocess.size))
  print(f'{flags.destination}: {source.name}, {size} pixels, {len(source.classes)} classes')
  return checked(flags, source, found.dialect) if flags.check else 0


def checked(flags: argparse.Namespace, source: bundle.Bundle, dialect: str) -> int:
  """Prints the largest difference between what was read and what was written."""
  from vit_jax.evaluate import parity  # imports other libraries, where there are any

  sides = {'read': (flags.source, dialect), 'written': (flags.destination, flags.to)}
  try:
    line, fine = parity.compare(source, sides)
  except (ValueError, OSError) as error:
    print(f'vit convert: --check: {error}', file=sys.stderr)
    return 3
  print(line)
  return 0 if fine else 3


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit convert', description='Writes a checkpoint in the names of another library.'
  )
  flags.add_argument('source', help='any checkpoint: docs/checkpoints.md lists them')
  flags.add_argument('destination', help='a new file or folder')
  flags.add_argument('--to', choices=FORMS, required=True, help='whose names')
  flags.add_argument(
    '--check', action='store_true', help='compare the two on random images, block by block'
  )
  return flags
