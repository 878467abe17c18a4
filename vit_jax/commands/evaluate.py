"""`vit evaluate`: a model, a split, a way to measure."""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

from vit_jax import bundle, files, sources
from vit_jax.commands import check_out, warn
from vit_jax.evaluate import accuracy, features, fewshot, inputs, knn, linear
from vit_jax.sources.classes import check_labelled
from vit_jax.text import to_stdout

Evaluation = tuple[dict[str, Any], list[str]]  # as JSON, and as text


def run(args: argparse.Namespace) -> int:
  check_out(args.out)
  values, text = evaluate(args)
  if args.out:
    with files.replacing(args.out) as file:
      file.write(files.as_json(values).encode())
  if args.format == 'json':
    print(files.as_json(values))
  else:
    to_stdout(*text)
  return 0


def head_accuracy(run: bundle.Bundle, data: inputs.Split, args: argparse.Namespace) -> Evaluation:
  """The model's own head."""
  values = accuracy.evaluate_model(
    run,
    data,
    label_map=args.label_map,
    restrict=args.restrict,
    preprocess=args.preprocess,
    batch_size=args.batch_size,
  )
  return values, accuracy.lines(values)


def knn_accuracy(run: bundle.Bundle, data: inputs.Split, args: argparse.Namespace) -> Evaluation:
  """Nearest neighbours among the features of the training split."""
  train, test = extract_splits(run, data, args, args.train)
  rows = knn.measure(train, test, ks=args.k)
  return summary(test, train) | {'knn': rows}, knn.lines(rows)


def fewshot_accuracy(
  run: bundle.Bundle, data: inputs.Split, args: argparse.Namespace
) -> Evaluation:
  """Ridge regression on features of a few images of each class."""
  train, test = extract_splits(run, data, args, args.train)
  rows = fewshot.measure(train, test, shots=args.shots, seeds=args.seeds)
  return summary(test, train) | {'fewshot': rows}, fewshot.lines(rows)


def linear_accuracy(run: bundle.Bundle, data: inputs.Split, args: argparse.Namespace) -> Evaluation:
  """Logistic regression on features.

  Where the validation split itself is measured, for want of a test, regularisation is chosen on a
  tenth of each class of the training split.
  """
  if args.validation or data.split != 'validation':
    others = (args.train, args.validation or 'validation')
    train, validation, test = extract_splits(run, data, args, *others)
  else:
    train, test = extract_splits(run, data, args, args.train)
    train, validation = train.labelled().held_out(sources.HELD_OUT)
  values = linear.measure(train, validation, test)
  result = summary(test, train) | {'validation_split': validation.split, **values}
  return result, linear.lines(values)


METHODS: dict[str, Callable[[bundle.Bundle, inputs.Split, argparse.Namespace], Evaluation]] = {
  'accuracy': head_accuracy,
  'knn': knn_accuracy,
  'fewshot': fewshot_accuracy,
  'linear': linear_accuracy,
}


def extract_splits(
  run: bundle.Bundle, data: inputs.Split, args: argparse.Namespace, *others: str
) -> list[features.Features]:
  """Features of other splits of a data set, and last its own; none have an image in common."""
  check_labelled(data.name, data.source.classes)
  splits = [inputs.open_split(args.model, on=data.name, split=other) for other in others] + [data]
  for first, second in itertools.combinations(splits, 2):
    inputs.check_apart(first, second)
  options = dict(preprocess=args.preprocess, batch_size=args.batch_size, cache=args.cache)
  return [features.extract(run, split, **options) for split in splits]


def summary(test: features.Features, train: features.Features) -> dict[str, Any]:
  """The splits that an evaluation by features compared, and how many images of each."""
  labelled = test.labelled()
  return {
    'source': test.source,
    'split': test.split,
    'count': len(labelled),
    'unlabelled': len(test) - len(labelled),
    'bad_images': test.bad_images,
    'train_split': train.split,
    'train_count': len(train.labelled()),
  }


def evaluate(args: argparse.Namespace) -> Evaluation:
  """Measures what the flags ask for."""
  for flag in ('label_map', 'restrict'):
    if getattr(args, flag) and args.method != 'accuracy':
      raise ValueError(f'--{flag} is for --method accuracy, got {args.method}')
  run = bundle.read(args.model, args.checkpoint)
  for line in run.defects:
    warn('evaluate', line)
  open_split = inputs.open_split if args.method == 'accuracy' else inputs.open_test_split
  data = open_split(args.model, on=args.on, split=args.split)
  values, text = METHODS[args.method](run, data, args)
  left_out = [
    f', {values[key]} {reason}' * bool(values[key])
    for key, reason in (('bad_images', 'unreadable'), ('unlabelled', 'without a label'))
  ]
  title = f'{values["source"]}, split {values["split"]}, {values["count"]} images'
  if 'train_split' in values:
    title += f'; by {args.method} from split {values["train_split"]}'
    title += f', {values["train_count"]} images'
  request = {
    'model': args.model,
    'step': run.step,
    'method': args.method,
    'preprocess': args.preprocess,
  }
  values = request | {'notes': [*data.notes]} | values
  return values, [title + ''.join(left_out), *data.notes, *text]
