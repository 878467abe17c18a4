"""`vit features`: what the head of a model reads, in a file."""

import argparse
import os
import pathlib

from vit_jax import bundle, predict
from vit_jax.evaluate import inputs
from vit_jax.evaluate.features import Features, check_suffix, extract, write


def run(args: argparse.Namespace) -> int:
  """0; 3 if some images could not be read."""
  made = written(args)
  count, width = made.values.shape
  bad = f'; {made.bad_images} could not be read' * bool(made.bad_images)
  print(f'{count} x {width} features are in {args.out}{bad}')
  return 3 if made.bad_images else 0


def check_out(path: str) -> None:
  """Raises ValueError for a file that could not be written, before anything is computed."""
  folder = pathlib.Path(path).absolute().parent
  if path and (not os.access(folder, os.W_OK) or os.path.isdir(path)):
    raise ValueError(f'--out {path} cannot be written')


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
