"""Fine-tuning as An image is worth 16x16 words has it (arXiv 2010.11929, appendix B.1.1).

vit train --config=finetune:B_16,cifar10 --workdir=runs/cifar10
vit train --config=finetune:L_16,imagenet2012 --workdir=runs/l16
vit train --config=finetune:runs/s16,folder:photos --workdir=runs/photos

The argument is MODEL,DATASET. A model's name means its file pre-trained on ImageNet-21k,
gs://vit_models/imagenet21k, or in config.pretrained_dir; anything else is the path or URL of a
checkpoint of any kind. Momentum, cosine, no decay, batches of 512, eight parts each; the head
starts at zero and positions are resampled to 384 pixels: 512 for L/16 and 518 for H/14 on ImageNet,
and the multiple of 14 nearest to 384 for patches of 14; a run of yours keeps its size. cifar10,
cifar100, imagenet2012, oxford_iiit_pet, oxford_flowers102 and food101 have the steps and rates that
were published, of vit_jax/sources/presets.py: those of vision_transformer, for Pets and Flowers
big_vision's rate; Food-101 has those of CIFAR.

Any other set, such as folder:photos, is looked at first. Its run takes 20 epochs; a batch is 512,
or as small as gives an epoch eight steps, the rate in proportion.

Hardware: A100 GPUs (published); an eighth of a batch is in memory at a time.
Time: there 2.2 h for B/16 and 0.8 h for B/32 on CIFAR-10, 6.5 h and 3.3 h on ImageNet.
Result: B/16 99.02 on CIFAR-10, 92.06 on CIFAR-100, 84.53 % on ImageNet; B/32 98.88, 92.31, 81.66;
  L/16 99.13, 92.91, 84.47; L/32 99.06, 93.29, 81.89; R50+B/16 98.72, 90.88, 83.72 (all without
  dropout, README of google-research/vision_transformer).
Measured: not yet run.
"""

import pathlib

from vit_jax import models
from vit_jax.configs import _data, default
from vit_jax.convert import published, runs
from vit_jax.sources import presets

SIZES = {('ViT-L/16', 'imagenet2012'): 512, ('ViT-H/14', 'imagenet2012'): 518}


def get_config(argument):
  model, dataset = _data.words(argument, 'MODEL,DATASET', 'finetune:B_16,cifar10')
  config = base()
  start(config, model, 'gs://vit_models/imagenet21k')
  on(config, dataset)
  if size := SIZES.get((config.model.name, _data.short(dataset))):
    config.image_size = (size, size)
  config.data.augment = 'inception_crop | flip'
  config.data.preprocess = 'resize'
  return config


def base():
  """The paper's optimiser and schedule, without model and data set."""
  config = default.get_config()
  config.batch_size = 512
  config.accumulate = 8
  config.image_size = (384, 384)
  config.optimizer.name = 'sgd'
  config.optimizer.momentum = 0.9
  config.optimizer.momentum_dtype = 'bfloat16'
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip = 1.0
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 0.03
  config.evaluation.every = '5%'
  config.checkpoint.every = '5%'
  return config


def start(config, model, folder):
  """Starts from a model's published file in a folder, or from a path or URL."""
  if is_path(model):
    config.model.name = ''
    config.pretrained = model
    config.image_size = runs.image_size(pathlib.Path(model)) or config.image_size
    return
  config.model.name = models.canonical(model)
  config.pretrained = config.model.name.replace('/', '_')
  config.pretrained_dir = folder
  if config.model.name.endswith('/14'):
    config.image_size = (392, 392)


def is_path(model):
  if pathlib.Path(model).exists() or '://' in model or model.endswith(published.SUFFIXES):
    return True
  try:
    models.canonical(model)
  except ValueError:
    if '/' in model:
      return True
    raise
  return False


def on(config, dataset, *, recipe=presets.GOOGLE):
  """Fine-tunes on a data set, for as long and at the rate that suit it."""
  source = _data.use(config, dataset, _data.FINE_TUNED)
  if source is None:
    _data.fine_tune(config, dataset, recipe=recipe)
  else:
    config.duration = '20 epochs'
    _data.fit(config, source)
