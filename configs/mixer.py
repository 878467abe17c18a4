"""MLP-Mixer (Tolstikhin et al., arXiv 2105.01601): pre-training on ImageNet, and fine-tuning.

vit train --config=mixer --workdir=runs/mixer
vit train --config=mixer:gpu8 --workdir=runs/mixer
vit train --config=mixer:Mixer-B/16,cifar10 --workdir=runs/cifar10

Without an argument Mixer-B/16 is pre-trained for 300 epochs at batch 4,096, with gpu8 for 60 epochs
at batch 512, as big_vision does. MODEL,DATASET fine-tunes as finetune.py does, at 224 pixels from
gs://mixer_models/imagenet21k: a Mixer takes images of one size only.

Hardware: 128 TPU v3 cores to pre-train, 4 V100 to fine-tune (published).
Time: 2 h 11 min for 300 epochs, 27 min for 60; CIFAR-10 9.6 h for B/16, 10 h for L/16.
Result: ImageNet 76.3 % after 300 epochs, 70.5 % after 60 (big_vision); CIFAR-10 96.82 % for B/16,
  98.34 % for L/16 (README of google-research/vision_transformer).
Measured: not yet run.
"""

from vit_jax import models
from vit_jax.configs import _data, default, finetune
from vit_jax.text import nearest


def get_config(argument=''):
  if argument in ('', 'gpu8'):
    return pretraining(small=argument == 'gpu8')
  model, dataset = _data.words(
    argument, 'nothing, gpu8, or MODEL,DATASET', 'mixer:Mixer-B/16,cifar10'
  )
  config = finetune.base()
  finetune.start(config, model, 'gs://mixer_models/imagenet21k')
  if config.model.name and config.model.name not in models.MIXERS:
    raise ValueError(f'{model} is no Mixer{nearest(model, list(models.MIXERS))}')
  config.image_size = (224, 224)
  finetune.on(config, dataset)
  config.data.augment = 'inception_crop | flip'
  config.data.preprocess = 'resize'
  return config


def pretraining(small):
  config = default.get_config()
  config.duration = '60 epochs' if small else '300 epochs'
  config.batch_size = 512 if small else 4096
  config.model.name = 'Mixer-B/16'
  config.model.drop_path = 0.1
  config.model.head_bias = -6.9
  config.data.test = 'test'
  config.data.augment = 'inception_crop | flip | randaug(2, 15)'
  config.objective.loss = 'sigmoid'
  config.objective.mixup = 0.5
  config.optimizer.weight_decay = 0.1
  config.schedule.name = 'linear'
  config.schedule.learning_rate = 1e-3
  config.schedule.end = 1e-5
  config.schedule.warmup = '10000 steps'
  return config
