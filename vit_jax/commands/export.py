"""`vit export`: a model for others to run."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from vit_jax import bundle
from vit_jax.export import PROGRAMS, SUFFIXES, check_path, target, write
from vit_jax.text import one_line


def main(argv: Sequence[str]) -> int:
  """`vit export`: 0 if it was written, 2 if not, with one line that says why."""
  flags = parser().parse_args(argv)
  try:
    if not flags.run:
      raise ValueError('the run is empty, must be a path')
    if not flags.out and not flags.to:
      raise ValueError(f'give --to: {", ".join(SUFFIXES)}')
    to = target(pathlib.Path(flags.out), flags.to)
    path = pathlib.Path(flags.out or default_path(flags.run, to))
    check_path(path, to)
    source = bundle.read(flags.run, native=to not in PROGRAMS)
    told = write(path, source, to=to, check=flags.check)
  except (ValueError, OSError) as error:
    print(f'vit export: {one_line(error)}', file=sys.stderr)
    return 2
  found = told.pop() if flags.check else ''
  for line in told:
    print(f'vit export: {line}', file=sys.stderr)
  size = 'x'.join(map(str, source.preprocess.size))
  print(f'{path}: {source.name}, {size} pixels, {len(source.classes)} classes')
  if found:
    print(found)
  return 0


def default_path(run: str, to: str) -> pathlib.Path:
  """Where a model is written if nothing says it: in the run's folder, else where we are."""
  suffix = SUFFIXES[to] or f'-{to}'
  if os.path.isdir(run):
    return pathlib.Path(run, f'model{suffix}')
  return pathlib.Path(f'{pathlib.PurePosixPath(run).stem}{suffix}')


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit export', description='Writes a model for others to run: see docs/export.md.'
  )
  flags.add_argument('run', help="a run's folder, a bundle, or a published checkpoint")
  flags.add_argument('--to', default='', help=f'{", ".join(SUFFIXES)}; default: by the suffix')
  flags.add_argument('--out', default='', help='a new file or folder; default: in the run')
  flags.add_argument(
    '--check',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='compare it in a new process with the model; on by default',
  )
  return flags
