"""A small ViT on a small set of one's own, with nothing to start from.

vit train --config=scratch:folder:photos --workdir=runs/photos

The argument is the data set. A published checkpoint to start from (augreg.py, finetune.py) names
photos better where there are few; this is for images that none was trained on, such as digits,
spectra or scans, and for machines without a network. 64 patches of 8 pixels, of images within 32
pixels of 4; the optimiser of digits.py, crops and mixup against learning images by heart. A batch
is 64, or as small as gives an epoch eight steps, its rate in proportion.

Hardware: a CPU.
Time: not published.
Result: not published for this recipe.
Measured: not yet run.
"""

from vit_jax.configs import _data, digits
from vit_jax.sources.columns import first_image

SMALL = 32  # pixels: the longer side of images that are not enlarged


def get_config(dataset):
  if not dataset:
    raise ValueError('wants a data set, as in scratch:folder:photos')
  config = digits.get_config()
  source = _data.use(config, dataset, ())
  is_small = max(first_image(source).shape[:2]) <= SMALL
  side = SMALL if is_small else 64
  config.image_size = (side, side)
  config.model.patch = (side // 8, side // 8)
  config.duration = '60 epochs'
  crop = 'inception_crop(area_min=0.25) | flip'
  turn = f'resize | {config.data.augment}'  # letters and digits would not bear a flip
  config.data.augment = turn if is_small else crop
  config.data.preprocess = 'resize'
  config.objective.mixup = 0.2
  config.evaluation.every = config.checkpoint.every = '5%'
  _data.fit(config, source)
  return config
