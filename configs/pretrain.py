"""Pre-training as An image is worth 16x16 words has it (arXiv 2010.11929, appendix B.1).

vit train --config=pretrain:B/16,imagenet2012 --workdir=runs/b16
vit train --config=pretrain:B/16,imagenet21k --workdir=runs/b16_i21k
vit train --config=pretrain:S/16,folder:photos --workdir=runs/photos

The argument is MODEL,DATASET. On ImageNet-21k it is 90 epochs at 1e-3, linear, weight decay 0.03;
on ImageNet and a data set of one's own 300 epochs at 3e-3, cosine, decay 0.1, of the paper's text;
its table 3 has 0.3 for ImageNet, --config.optimizer.weight_decay=0.3. The batch of a set of one's
own is 4,096 or as small as gives an epoch eight steps, its rate in proportion, its warm-up a
twentieth of the run. Images of one class have the softmax loss with smoothed labels there;
multi-label ones, as ImageNet-21k, the sigmoid loss with a head that starts at -10 (issues 2 and 34
of google-research/vision_transformer). The last rate of 1e-5 is issue 2's, too. The best parameters
on validation images become the model, and a fifth of the run without better ones ends it.

Hardware: TPUs (the paper); elsewhere --config.accumulate=N takes a batch in N parts.
Time: not published for this code.
Result: ImageNet, 300 epochs: B/32 69.19, B/16 74.79, L/32 66.90, L/16 72.59 % top-1; ImageNet-21k's
  own validation images: B/32 44.04, B/16 47.88, L/32 45.42, L/16 49.90, H/14 49.06 % precision at 1
  (both issue 62 of google-research/vision_transformer).
Measured: not yet run.
"""

from vit_jax import models
from vit_jax.configs import _data, default


def get_config(argument):
  model, dataset = _data.words(argument, 'MODEL,DATASET', 'pretrain:B/16,imagenet2012')
  config = default.get_config()
  config.model.name = models.canonical(model)
  if config.model.name not in models.RESNETS:
    config.model.dropout = 0.1
  if config.model.name in {**models.VITS, **models.HYBRIDS}:
    config.model.representation = models.VARIANTS[config.model.name]['width']
  config.batch_size = 4096
  config.data.augment = 'resize(scale=8/7) | random_crop | flip'
  config.data.preprocess = 'resize(scale=8/7) | central_crop'
  config.optimizer.name = 'adam'
  config.schedule.warmup = '10000 steps'
  config.evaluation.patience = '20%'
  source = _data.use(config, dataset, _data.LARGE)
  if _data.short(dataset) == 'imagenet21k':
    imagenet21k(config)
  else:
    imagenet2012(config)
  fit(config, source)
  return config


def imagenet2012(config):
  config.duration = '300 epochs'
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 3e-3
  config.optimizer.weight_decay = 0.1
  config.objective.smoothing = 0.1


def imagenet21k(config):
  config.duration = '90 epochs'
  config.schedule.name = 'linear'
  config.schedule.learning_rate = 1e-3
  config.schedule.end = 1e-5
  config.optimizer.weight_decay = 0.03
  sigmoid(config)


def fit(config, source):
  _data.fit(config, source)
  if config.objective.loss == 'sigmoid':
    sigmoid(config)


def sigmoid(config):
  config.objective.loss = 'sigmoid'
  config.objective.smoothing = 0.0
  config.model.head_bias = -10.0
