"""A data set in a recipe: its source and splits, and a batch and rate that fit its size."""

import itertools
import os
import re

from vit_jax import models, sources
from vit_jax.sources import presets
from vit_jax.sources.columns import label_shape

COLOURS = 'color_jitter(0.4, 0.4, 0.2, 0.1, probability=0.8) | grayscale(0.2)'  # DINO's
USES = ('train', 'validation', 'test')
LARGE = ('imagenet2012', 'imagenet21k')  # to which no batch needs to be fitted
FINE_TUNED = ('food101', *(name for name, preset in presets.PRESETS.items() if preset.rates))


def fine_tune(config, dataset, *, recipe=presets.GOOGLE):
  """Takes the published steps, warm-up and rate of a preset of FINE_TUNED.

  Of Food-101 nothing was: it has what vision_transformer has for CIFAR-100.

  Args:
    config: that is changed; its model is the recipe's.
    dataset: the preset.
    recipe: whose rate.
  """
  preset = presets.PRESETS[short(dataset)]
  if not preset.rates:
    preset, recipe = presets.PRESETS['cifar100'], presets.GOOGLE
  config.duration = f'{preset.steps} steps'
  config.schedule.warmup = f'{preset.warmup} steps'
  rate = preset.rates[recipe]
  config.schedule.learning_rate = preset.rates.get(f'{recipe} {config.model.name}', rate)


def encoder(config, model, checkpoint=''):
  """Makes a model the recipe's, and a checkpoint, if there is one, what it starts from.

  The checkpoint is of the model's size; what else it is, patch apart, the model becomes. A ResNet's
  checkpoint is what the name says.
  """
  config.model.name = models.canonical(model)
  config.pretrained = checkpoint
  variant = models.VARIANTS[config.model.name]
  if checkpoint and 'patch' in variant:
    config.model.name = ''
    config.model.update({field: variant[field] for field in ('patch', 'width', 'depth')})


def local_size(model):
  """Pixels (height, width) of a small crop: 96, or as near as patches fill it."""
  side, _ = models.VARIANTS[models.canonical(model)].get('patch', (1, 1))
  return (round(96 / side) * side,) * 2


def use(config, dataset, recipes):
  """Makes a data set the recipe's, with the splits that it has, and the loss for its labels.

  Args:
    config: that is changed.
    dataset: a preset, or a source such as 'folder:photos'.
    recipes: short names of the presets that there are numbers for; another set is opened.

  Returns:
    The source of its training images, to which the recipe is to be fitted; None of these presets.

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
  if short(dataset) in recipes:
    return None
  source = sources.open_source(dataset, 'train')
  if label_shape(source):  # multi-label
    config.objective.loss = 'sigmoid'
  return source


def short(dataset):
  """A preset's name without its options: 'cifar10' of 'cifar10?data_dir=/data'."""
  return dataset.partition('?')[0]


def fit(config, source):
  """Makes batch and rate smaller, if need be, so that an epoch has eight steps at least.

  The rate shrinks in proportion; warm-up is a twentieth of the run. A source that `use` did not
  open, None, leaves the recipe as it is.
  """
  if source is None:
    return
  max_batch = max(len(source) // 8, 1)
  if config.batch_size > max_batch:
    batch = 2 ** (max_batch.bit_length() - 1)
    config.schedule.learning_rate *= batch / config.batch_size
    config.batch_size = batch
  config.accumulate = min(config.accumulate, max(config.batch_size // 64, 1))
  config.schedule.warmup = '5%'


def words(argument, form, example):
  """The words of a recipe's argument, which commas part: ('B_16', 'cifar10') of 'B_16,cifar10'.

  A comma may be part of a path that exists, and then is: 'runs/a,b,folder:photos' is ('runs/a,b',
  'folder:photos') where runs/a,b is a file or folder.

  Args:
    argument: of the recipe.
    form: what is wanted, a name in capitals for each word: 'MODEL,DATASET[,CROP]'.
    example: of a recipe with such an argument.

  Returns:
    As many words as the form has names, '' for an optional one that is not there.

  Raises:
    ValueError: for anything else, and where two paths that exist share a comma.
  """
  names, optional = len(re.findall('[A-Z]+', form)), form.count('[')
  for count in range(names - optional, names + 1):  # the most commas in paths first
    cuts = [cut for cut in cut_at_commas(argument, count) if all(cut[: names - optional])]
    cuts = [cut for cut in cuts if all(',' not in word or exists(word) for word in cut)]
    if len(cuts) == 1:
      return (*cuts[0], *[''] * (names - count))
    if cuts:
      ways = ' or '.join(' and '.join(map(repr, cut)) for cut in cuts)
      raise ValueError(f'{argument!r} may be {ways}, whose paths all exist: rename one of them')
  commas = ', of which no comma is in a path that exists' * (argument.count(',') >= names)
  raise ValueError(f'wants {form}, as in {example}; got {argument!r}{commas}')


def cut_at_commas(text, count):
  """Every way to cut a text at commas into so many words."""
  parts = text.split(',')
  for inner in itertools.combinations(range(1, len(parts)), count - 1):
    edges = (0, *inner, len(parts))
    yield tuple(','.join(parts[begin:end]) for begin, end in itertools.pairwise(edges))


def exists(word):
  """Whether the path of a word, or each part with a comma of 'csv:a,b.csv?label=kind', exists."""
  path = os.path.expanduser(re.sub(r'^\w+:', '', word))
  parts = [part for part in re.split('[?&=]', path) if ',' in part]
  return os.path.exists(path) or all(os.path.exists(os.path.expanduser(part)) for part in parts)
