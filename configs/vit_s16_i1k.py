"""ViT-S/16 on ImageNet: the plain baseline (Beyer et al., Better plain ViT baselines, 2205.01580).

vit train --config=vit_s16_i1k --workdir=runs/s16
vit train --config=vit_s16_i1k:300 --workdir=runs/s16_300

The argument is the number of epochs, 90, 150 or 300; 90 without one. Everything is as in
big_vision's recipe: mean-pooled tokens, fixed positions, a tanh layer before the head, RandAugment
and a little mixup, float32.

Hardware: 8 TPU v3 cores.
Time: 6 to 7 hours for 90 epochs there (big_vision).
Result: 76.5, 78.5 and 80.0 % top-1 on ImageNet after 90, 150 and 300 epochs (big_vision).
Measured: not yet run.
"""

from vit_jax.configs import default

EPOCHS = ('90', '150', '300')


def get_config(epochs=''):
  if epochs and epochs not in EPOCHS:
    raise ValueError(f'wants {", ".join(EPOCHS)} epochs; got {epochs!r}')
  config = default.get_config()
  config.duration = f'{epochs or 90} epochs'
  config.batch_size = 1024

  config.model.name = 'ViT-S/16'
  config.model.pool = 'gap'
  config.model.positions = 'sincos2d'
  config.model.representation = 384
  config.model.dtype = 'float32'

  config.data.source = 'imagenet2012'
  config.data.test = 'test'
  config.data.augment = 'inception_crop | flip | randaug(2, 10)'
  config.data.preprocess = "resize_small(scale=8/7, method='area') | central_crop"

  config.objective.mixup = 0.2
  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.1  # times the rate; big_vision says 1e-4, its product
  config.optimizer.momentum_dtype = 'bfloat16'
  config.schedule.learning_rate = 1e-3
  config.schedule.warmup = '10000 steps'
  return config
