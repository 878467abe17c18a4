"""How to train your ViT (AugReg; Steiner et al., arXiv 2106.10270): fine-tuning and pre-training.

vit train --config=augreg:R_Ti_16,oxford_iiit_pet --workdir=runs/pets
vit train --config=augreg:B_16,imagenet2012 --workdir=runs/b16
vit train --config=augreg:B_16-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0,folder:photos --workdir=runs/photos
vit train --config=augreg:pretrain,B/16,imagenet2012,medium2 --workdir=runs/i1k

Fine-tuning takes FILE,DATASET. FILE is a model, which means the file that is recommended for it, or
the name of a file of gs://vit_models/augreg, fine-tuned ones too; `vit models --augreg B_16` lists
them. The rest is as in finetune.py, with big_vision's rates on CIFAR and, of a recommended file on
ImageNet, the published one. Without DATASET, --config.data.source=DATASET is wanted, and the
schedule is vision_transformer's of 500 steps.

Pre-training takes pretrain,MODEL,DATASET[,LEVEL]: 300 epochs at batch 4,096 on imagenet2012,
imagenet21k or another set, with augmentation none, light1, light2, medium1, medium2, strong1 or
strong2; without one, big_vision's choice for the model. Regularisation, which the paper found to
help the larger models, is --config.model.dropout=0.1 --config.model.drop_path=0.1.

Hardware: one GPU to fine-tune, an eighth of a batch at a time; TPUs to pre-train.
Time: not published.
Result: fine-tuned on ImageNet, 384 pixels: L/16 85.59, B/16 85.49, S/16 83.73, R50+L/32 85.99,
  R26+S/32 83.85, Ti/16 78.22, B/32 83.59, S/32 79.58, R+Ti/16 75.40, and B/8 at 224 85.58 % (README
  and notebook of google-research/vision_transformer). Pre-trained on ImageNet, B/16 about 79 %
  (issue 7 of google-research/big_vision).
Measured: not yet run.
"""  # noqa: E501

from vit_jax import models
from vit_jax.configs import _data, default, finetune
from vit_jax.convert import published
from vit_jax.sources import presets
from vit_jax.text import nearest

LEVELS = {  # mixup's a, RandAugment's layers and magnitude: big_vision's tables
  'none': (0.0, ''),
  'light1': (0.0, 'randaug(2, 0)'),
  'light2': (0.2, 'randaug(2, 10)'),
  'medium1': (0.2, 'randaug(2, 15)'),
  'medium2': (0.5, 'randaug(2, 15)'),
  'strong1': (0.5, 'randaug(2, 20)'),
  'strong2': (0.8, 'randaug(2, 20)'),
}
ON_IMAGENET = {'ViT-Ti/16': 'light1', 'ViT-S/32': 'medium1'}  # of others medium2
ON_IMAGENET21K = {
  'ViT-Ti/16': 'none',
  'ViT-S/32': 'none',
  'ViT-S/16': 'light1',
  'ViT-B/32': 'light2',
  'ViT-B/16': 'light2',
  'ViT-L/16': 'medium2',
}


def get_config(argument):
  if argument.partition(',')[0] == 'pretrain':
    return pretraining(argument.partition(',')[2])
  return finetuning(*_data.words(argument, 'FILE[,DATASET]', 'augreg:R_Ti_16,folder:photos'))


def finetuning(name, dataset):
  file = published.augreg(name)
  config = finetune.base()
  finetune.start(config, file.partition('-')[0], published.AUGREG)
  config.pretrained = file
  config.model.dropout = 0.0
  if dataset:
    finetune.on(config, dataset, recipe=presets.BIG_VISION)
  else:
    config.data.source = ''
    config.data.test = 'test'
    config.duration = '500 steps'
    config.schedule.warmup = '100 steps'
  config.data.augment = 'resize(scale=7/6) | random_crop | flip'  # 448 for 384
  config.data.preprocess = 'resize'
  if row := next((row for row in published.RECOMMENDED.values() if row.file == file), None):
    recommended(config, row)
  return config


def recommended(config, row):
  """Takes the published rate on ImageNet, and the image size where it is a smaller one."""
  if _data.short(config.data.source) == 'imagenet2012':
    config.schedule.learning_rate = row.learning_rate
  if row.image_size < 384:
    config.image_size = (row.image_size, row.image_size)
    config.data.augment = 'resize(scale=8/7) | random_crop | flip'  # 256 for 224


def pretraining(argument):
  model, dataset, level = _data.words(
    argument, 'pretrain,MODEL,DATASET[,LEVEL]', 'augreg:pretrain,B/16,imagenet2012'
  )
  name = models.canonical(model)
  if name not in {**models.VITS, **models.HYBRIDS}:
    raise ValueError(f'pre-trains ViTs and hybrids, not {name}')
  config = default.get_config()
  config.model.name = name
  config.duration = '300 epochs'
  config.batch_size = 4096
  config.data.preprocess = "resize_small(scale=8/7, method='area') | central_crop"
  config.objective.loss = 'sigmoid'
  config.optimizer.momentum_dtype = 'bfloat16'
  config.optimizer.weight_decay = 0.1
  config.schedule.learning_rate = 1e-3
  config.schedule.warmup = '10000 steps'
  source = _data.use(config, dataset, _data.LARGE)
  if _data.short(dataset) == 'imagenet21k':
    config.model.pool = 'gap'
    config.model.head_bias = -10.0
    level = level or ON_IMAGENET21K.get(name, '')
  else:
    config.model.representation = models.VARIANTS[name]['width']
    config.model.head_bias = -6.9
    level = level or ON_IMAGENET.get(name, 'medium2')
  if not level:
    raise ValueError(f'wants a level for {name} on {dataset}: {", ".join(LEVELS)}')
  if level not in LEVELS:
    raise ValueError(f'unknown augmentation {level!r}{nearest(level, list(LEVELS))}')
  config.objective.mixup, randaug = LEVELS[level]
  config.data.augment = 'inception_crop | flip' + f' | {randaug}' * bool(randaug)
  _data.fit(config, source)
  return config
