"""Transfer to five data sets as big_vision has it, with a crop of choice.

vit train --config=transfer:B_32,cifar10 --workdir=runs/cifar10
vit train --config=transfer:S_16,oxford_flowers102,resmall_crop --workdir=runs/flowers

The argument is MODEL,DATASET[,CROP]. A ViT or hybrid means its recommended AugReg file, BiT-R50x1
and the like BiT's of ImageNet-21k, gs://bit_models/BiT-M-R50x1; anything else is a path or URL.
Images are cropped to 384 pixels by inception_crop, a piece of random size and aspect, or at random
from the smaller side at 448 (resmall_crop) or a square of 448 (resize_crop). Without CROP it is the
one that was best for AugReg's B/32, and so are the rates, for any model.

Hardware: one GPU, an eighth of a batch at a time.
Time: not published.
Result: B/32, mean and range of five runs: ImageNet 83.27 [83.22, 83.33], CIFAR-10 98.55 [98.46,
  98.60], CIFAR-100 91.35 [91.09, 91.62], Pets 93.78 [93.62, 94.00], Flowers 99.43 [99.42, 99.45] %
  (big_vision's transfer.py).
Measured: not yet run.
"""

from vit_jax import models
from vit_jax.configs import _data, finetune
from vit_jax.convert import published
from vit_jax.sources import presets
from vit_jax.text import nearest

CROPS = {
  'inception_crop': 'inception_crop',
  'resmall_crop': "resize_small(scale=7/6, method='area') | random_crop",
  'resize_crop': 'resize(scale=7/6) | random_crop',
}
BEST = {
  'imagenet2012': 'inception_crop',
  'cifar10': 'resmall_crop',
  'cifar100': 'resmall_crop',
  'oxford_iiit_pet': 'inception_crop',
  'oxford_flowers102': 'inception_crop',
}


def get_config(argument):
  model, dataset, crop = _data.words(argument, 'MODEL,DATASET[,CROP]', 'transfer:B_32,cifar10')
  name = _data.short(dataset)
  if name not in BEST:
    raise ValueError(f'has no recipe for {dataset}{nearest(dataset, list(BEST))}')
  config = finetune.base()
  start(config, model)
  _data.use(config, dataset, BEST)
  _data.fine_tune(config, dataset, recipe=presets.BIG_VISION)
  crop = crop or BEST[name]
  if crop not in CROPS:
    raise ValueError(f'unknown crop {crop!r}{nearest(crop, list(CROPS))}')
  config.data.augment = f'{CROPS[crop]} | flip'
  config.data.preprocess = "resize_small(scale=7/6, method='area') | central_crop"
  return config


def start(config, model):
  """Starts from the published file of a model, or from a path or URL."""
  finetune.start(config, model, published.AUGREG)
  if config.model.name in models.RESNETS:
    config.pretrained = config.model.name.replace('BiT-', 'BiT-M-')
    config.pretrained_dir = 'gs://bit_models'
  elif config.model.name:
    config.pretrained = published.augreg(model)
