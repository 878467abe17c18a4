"""A data set in a recipe: its source and splits, and a batch and rate that fit its size."""

from vit_jax import sources
from vit_jax.sources import presets
from vit_jax.sources.columns import label_shape

USES = ('train', 'validation', 'test')
GOOGLE, BIG_VISION = 'vision_transformer', 'big_vision'
FINE_TUNING = {  # warm-up steps, and by whose recipe the rate; the steps are the preset's
  'cifar10': (500, {GOOGLE: 0.03, BIG_VISION: 0.003}),
  'cifar100': (500, {GOOGLE: 0.03, BIG_VISION: 0.01}),
  'food101': (500, {GOOGLE: 0.03}),  # nothing was published: CIFAR's
  'imagenet2012': (500, {GOOGLE: 0.03, BIG_VISION: 0.03}),
  'oxford_flowers102': (100, {GOOGLE: 0.003, BIG_VISION: 0.003}),
  'oxford_iiit_pet': (100, {GOOGLE: 0.003, BIG_VISION: 0.003}),
}


def fine_tune(config, dataset, *, rates=GOOGLE):
  """Takes the published steps, warm-up and rate of fine-tuning on a preset of FINE_TUNING.

  Args:
    config: that is changed.
    dataset: the preset.
    rates: whose; GOOGLE's where these are not known.
  """
  warmup, rate = FINE_TUNING[short(dataset)]
  steps = presets.PRESETS[short(dataset)].steps or presets.PRESETS['cifar10'].steps
  config.duration = f'{steps} steps'
  config.schedule.warmup = f'{warmup} steps'
  config.schedule.learning_rate = rate.get(rates, rate[GOOGLE])


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
