"""`vit evaluate`: a model, a split, a way to measure."""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

from vit_jax import bundle, files
from vit_jax.commands.features import check_out
from vit_jax.evaluate import accuracy, features, fewshot, inputs, knn, linear

Told = tuple[dict[str, Any], list[str]]  # as JSON, and as text


def run(args: argparse.Namespace) -> int:
  check_out(args.out)
  values, text = measured(args)
  if args.out:
    with files.replacing(args.out) as file:
      file.write(files.as_json(values).encode())
  print(files.as_json(values) if args.format == 'json' else '\n'.join(text))
  return 0


def by_accuracy(found: bundle.Bundle, data: inputs.Split, given: argparse.Namespace) -> Told:
  """The model's own head."""
  values = accuracy.evaluate_model(
    found,
    data,
    label_map=given.label_map,
    preprocess=given.preprocess,
    batch_size=given.batch_size,
  )
  return values, accuracy.lines(values)


def by_knn(found: bundle.Bundle, data: inputs.Split, given: argparse.Namespace) -> Told:
  """Nearest neighbours among the features of the training split."""
  train, test = featured(found, data, given, given.train)
  rows = knn.measure(train, test, ks=given.k)
  return summary(test, train) | {'knn': rows}, knn.lines(rows)


def by_fewshot(found: bundle.Bundle, data: inputs.Split, given: argparse.Namespace) -> Told:
  """Ridge regression on features of a few images of each class."""
  train, test = featured(found, data, given, given.train)
  rows = fewshot.measure(train, test, shots=given.shots, seeds=given.seeds)
  return summary(test, train) | {'fewshot': rows}, fewshot.lines(rows)


def by_linear(found: bundle.Bundle, data: inputs.Split, given: argparse.Namespace) -> Told:
  """Logistic regression on features."""
  train, validation, test = featured(found, data, given, given.train, given.validation)
  values = linear.measure(train, validation, test)
  told = summary(test, train) | {'validation_split': validation.split, **values}
  return told, linear.lines(values)


METHODS: dict[str, Callable[[bundle.Bundle, inputs.Split, argparse.Namespace], Told]] = {
  'accuracy': by_accuracy,
  'knn': by_knn,
  'fewshot': by_fewshot,
  'linear': by_linear,
}


def featured(
  found: bundle.Bundle, data: inputs.Split, given: argparse.Namespace, *others: str
) -> list[features.Features]:
  """Features of other splits of a data set, and last its own; none have an image in common."""
  splits = [inputs.open_split(given.model, on=data.name, split=other) for other in others] + [data]
  for first, second in itertools.combinations(splits, 2):
    inputs.check_apart(first, second)
  how = dict(preprocess=given.preprocess, batch_size=given.batch_size, cache=given.cache)
  return [features.extract(found, split, **how) for split in splits]


def summary(test: features.Features, train: features.Features) -> dict[str, Any]:
  """What was measured on what."""
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


def measured(given: argparse.Namespace) -> Told:
  """What the flags ask for."""
  if given.label_map and given.method != 'accuracy':
    raise ValueError(f'--label_map is for --method accuracy, got {given.method}')
  found = bundle.read(given.model)
  data = inputs.open_split(given.model, on=given.on, split=given.split)
  values, text = METHODS[given.method](found, data, given)
  left_out = [
    f', {values[key]} {what}' * bool(values[key])
    for key, what in (('bad_images', 'unreadable'), ('unlabelled', 'without a label'))
  ]
  title = f'{values["source"]}, split {values["split"]}, {values["count"]} images'
  if 'train_split' in values:
    title += f'; by {given.method} from split {values["train_split"]}'
    title += f', {values["train_count"]} images'
  values = {'model': given.model, 'method': given.method, 'preprocess': given.preprocess} | values
  return values, [title + ''.join(left_out), *text]
