"""A data set in a recipe: its source and splits, and a batch and rate that fit its size."""

import numpy as np

from vit_jax import pipeline, sources
from vit_jax.sources import presets

USES = ('train', 'validation', 'test')


def use(config, dataset, known):
  """Makes a data set the recipe's, with the splits that it has, and the loss for its labels.

  Args:
    config: that is changed.
    dataset: a preset, or a source such as 'folder:photos'.
    known: short names of the presets that the recipe has numbers for; another set is opened.

  Returns:
    The source of its training images, to which the recipe is to be fitted; None of a known set.

  Raises:
    ValueError, FileNotFoundError: if there is no such set.
  """
  config.data.source = dataset
  preset = presets.find(dataset)
  splits = preset.splits if preset else sources.splits_of(dataset)
  if 'train' not in splits:
    raise ValueError(f'{dataset} has no images for training, but {", ".join(splits)}')
  for name in USES:
    config.data[name] = name if name in splits else ''
  if short(dataset) in known:
    return None
  source = sources.open_source(dataset, 'train')
  if np.ndim(pipeline.first_record(source)['label']):  # an image may be of several classes
    config.objective.loss = 'sigmoid'
  return source


def short(dataset):
  """A preset's name without its options: 'cifar10' of 'cifar10?data_dir=/data'."""
  return dataset.partition('?')[0]


def fit(config, source):
  """Makes batch and rate smaller, if need be, so that an epoch has eight steps at least.

  The rate shrinks in proportion, as does warm-up, to a twentieth of the run.
  """
  most = max(len(source) // 8, 1)
  if config.batch_size > most:
    batch = 2 ** (most.bit_length() - 1)
    config.schedule.learning_rate *= batch / config.batch_size
    config.batch_size = batch
  config.accumulate = min(config.accumulate, max(config.batch_size // 64, 1))
  config.schedule.warmup = '5%'


def split(argument, wanted, example):
  """'A,B' -> ('A', 'B').

  Raises:
    ValueError: for anything else; says what is wanted.
  """
  first, _, second = argument.partition(',')
  if not first or not second:
    raise ValueError(f'wants {wanted}, as in {example}; got {argument!r}')
  return first, second
