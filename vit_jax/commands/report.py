"""`vit report`: the page and the picture of a run."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from vit_jax.text import one_line
from vit_jax.views.report import FAULTS, PAGE, PICTURE, measured, write


def main(argv: Sequence[str]) -> int:
  """`vit report`: 0; 2 for bad input; 3 if the report lacks something."""
  given = parser().parse_args(argv)
  folder = pathlib.Path(given.run)
  try:
    found = measured(folder, on=given.on, split=given.split, batch_size=given.batch_size)
    write(found)
  except FAULTS as error:
    print(f'vit report: {one_line(error)}', file=sys.stderr)
    return 2
  for line in found.left_out:
    print(f'vit report: {line}', file=sys.stderr)
  print(found.folder / PAGE, found.folder / PICTURE, sep='\n')
  return 3 if found.left_out else 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit report',
    description='Writes report.html and report.png into the folder of a run.',
    epilog='Exit code: 0; 2 for bad input; 3 if the report lacks something, which is told.',
  )
  flags.add_argument('run', help="a run's folder")
  flags.add_argument('--on', default='', help="a data set to measure on; default: the run's own")
  flags.add_argument('--split', default='', help='default: test, or without one validation')
  flags.add_argument(
    '--batch_size',
    '--batch-size',
    type=int,
    help='measures anew, with so many images at a time on each device; default: those of training, '
    'at most 256',
  )
  return flags
