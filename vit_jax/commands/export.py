"""`vit export`: a model for others to run."""

import argparse
import os
import pathlib

from vit_jax import bundle
from vit_jax.commands import warn
from vit_jax.export import PROGRAMS, SUFFIXES, check_path, target, write
from vit_jax.text import quantity, to_stdout


def run(args: argparse.Namespace) -> int:
  if not args.run:
    raise ValueError('the run is empty, must be a path')
  if not args.out and not args.to:
    raise ValueError(f'give --to: {", ".join(SUFFIXES)}')
  to = target(pathlib.Path(args.out), args.to)
  path = pathlib.Path(args.out or default_path(args.run, to))
  check_path(path, to)
  source = bundle.read(args.run, args.checkpoint, native=to not in PROGRAMS)
  notes = write(path, source, to=to, check=args.check)
  result = notes.pop() if args.check else ''
  for line in notes:
    warn('export', line)
  size = 'x'.join(map(str, source.preprocess.size))
  result_of = quantity(len(source.classes), 'class') if source.classes else 'features'
  to_stdout(f'{path}: {source.name}, {size} pixels, {result_of}')
  if result:
    to_stdout(result)
  return 0


def default_path(run: str, to: str) -> pathlib.Path:
  """Where a model is written if nothing says it: in the run's folder, else where we are."""
  suffix = SUFFIXES[to] or f'-{to}'
  if os.path.isdir(run):
    return pathlib.Path(run, f'model{suffix}')
  return pathlib.Path(f'{pathlib.PurePosixPath(run).stem}{suffix}')
