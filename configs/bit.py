"""Big Transfer's ResNets (Kolesnikov et al., arXiv 1912.11370) as big_vision pre-trains them.

vit train --config=bit:imagenet2012 --workdir=runs/bit
vit train --config=bit:imagenet21k --workdir=runs/bit_i21k

The argument is the data set, after it perhaps a model: bit:imagenet2012,BiT-R101x1; without one it
is BiT-R50x1. On ImageNet big_vision takes a ResNet v1 with GroupNorm and standardised kernels; this
one is v2, as BiT's are. To fine-tune, see transfer.py.

Hardware: 128 TPU v3 cores on ImageNet (big_vision).
Time: about 32 minutes there.
Result: not stated by big_vision.
Measured: not yet run.
"""

from vit_jax import models
from vit_jax.configs import _data, default
from vit_jax.text import nearest


def get_config(argument):
  dataset, model = _data.words(argument, 'DATASET[,MODEL]', 'bit:imagenet2012')
  config = default.get_config()
  config.duration = '90 epochs'
  config.batch_size = 4096
  config.model.name = models.canonical(model or 'BiT-R50x1')
  if config.model.name not in models.RESNETS:
    raise ValueError(f'{model} is no ResNet{nearest(model, list(models.RESNETS))}')
  config.optimizer.name = 'sgd'
  config.optimizer.weight_decay = 1e-3  # times the rate; big_vision says 1.6e-3, its product
  config.schedule.learning_rate = 1.6  # 0.1 for each 256 images
  config.schedule.warmup = '1000 steps'
  source = _data.use(config, dataset, _data.LARGE)
  if _data.short(dataset) == 'imagenet21k':
    config.model.head_bias = -10.0
    config.objective.loss = 'sigmoid'
    config.schedule.learning_rate = 0.48  # 0.03 for each 256 images
    config.schedule.warmup = '5000 steps'
  _data.fit(config, source)
  return config
