"""A data set in a recipe: its source and splits, and a batch and rate that fit its size."""

from vit_jax import sources
from vit_jax.sources import presets
from vit_jax.sources.columns import label_shape

USES = ('train', 'validation', 'test')
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

  The rate shrinks in proportion; warm-up is a twentieth of the run.
  """
  max_batch = max(len(source) // 8, 1)
  if config.batch_size > max_batch:
    batch = 2 ** (max_batch.bit_length() - 1)
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
