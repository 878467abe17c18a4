"""`vit features`: what the head of a model reads, in a file."""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from vit_jax import bundle, predict
from vit_jax.evaluate import inputs
from vit_jax.evaluate.features import Features, check_suffix, extract, write
from vit_jax.text import one_line


def check_out(path: str) -> None:
  """Raises ValueError for a file that could not be written, before anything is computed."""
  folder = pathlib.Path(path).absolute().parent
  if path and (not os.access(folder, os.W_OK) or os.path.isdir(path)):
    raise ValueError(f'--out {path} cannot be written')


def main(argv: Sequence[str]) -> int:
  """`vit features`: 0, 2 for bad input, 3 if some images could not be read."""
  given = parser().parse_args(argv)
  try:
    made = written(given)
  except (ValueError, OSError) as error:
    print(f'vit features: {one_line(error)}', file=sys.stderr)
    return 2
  count, width = made.values.shape
  bad = f'; {made.bad_images} could not be read' * bool(made.bad_images)
  print(f'{count} x {width} features are in {given.out}{bad}')
  return 3 if made.bad_images else 0


def written(given: argparse.Namespace) -> Features:
  """Does what the flags ask for."""

  check_suffix(given.out)
  check_out(given.out)
  if given.images and (given.on or given.split):
    raise ValueError('give images, or a data set by --on and --split, not both')
  found = bundle.read(given.model)
  if given.images:
    split = inputs.image_split(predict.image_files(given.images))
  else:
    split = inputs.open_split(given.model, on=given.on, split=given.split)
  made = extract(found, split, preprocess=given.preprocess, batch_size=given.batch_size)
  write(given.out, made, [split.source.describe(index) for index in made.indices.tolist()])
  return made


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit features',
    description="Writes what a model's head reads: of images, or of a data set.",
    epilog='Exit code: 0; 2 for bad input; 3 if an image could not be read, which is left out.',
  )
  flags.add_argument('model', help="a run's folder, a bundle, or a published checkpoint")
  flags.add_argument('images', nargs='*', help='images, and folders of images')
  flags.add_argument('--out', required=True, help='FILE.npz or FILE.parquet')
  add_data(flags)
  return flags


def add_data(flags: argparse.ArgumentParser) -> None:
  """Adds the flags that say which images, and how they are read."""
  flags.add_argument('--on', default='', help="a data set; default: the run's own")
  flags.add_argument('--split', default='', help='default: test, or without one validation')
  flags.add_argument('--preprocess', default='', help="a line of transforms; default: the model's")
  flags.add_argument(
    '--batch-size', type=int, default=inputs.BATCH, help='images on each device; default: 256'
  )
