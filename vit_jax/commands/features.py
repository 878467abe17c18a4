"""`vit features`: what the head of a model reads, in a file."""

import argparse

from vit_jax import bundle
from vit_jax.commands import check_out, warn
from vit_jax.evaluate import inputs
from vit_jax.evaluate.features import Features, check_suffix, extract, write
from vit_jax.sources import loose
from vit_jax.text import to_stderr, to_stdout


def run(args: argparse.Namespace) -> int:
  """0; 3 if some images could not be read."""
  features = extract_to_file(args)
  count, width = features.values.shape
  bad = f'; {features.bad_images} could not be read' * bool(features.bad_images)
  to_stdout(f'{count} x {width} features are in {args.out}{bad}')
  return 3 if features.bad_images else 0


def extract_to_file(args: argparse.Namespace) -> Features:
  """Extracts the features that the flags ask for, and writes them."""
  check_suffix(args.out)
  check_out(args.out)
  if args.images and (args.on or args.split):
    raise ValueError('give images, or a data set by --on and --split, not both')
  run = bundle.read(args.model, args.checkpoint)
  for line in run.defects:
    warn('features', line)
  if args.images:
    split = inputs.image_split(loose.image_files(args.images))
  else:
    split = inputs.open_split(args.model, on=args.on, split=args.split)
  for line in split.notes:
    to_stderr(line)
  features = extract(run, split, preprocess=args.preprocess, batch_size=args.batch_size)
  write(args.out, features, [split.source.describe(index) for index in features.indices.tolist()])
  return features
