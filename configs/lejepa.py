"""Views of an image agree, without a teacher, as LeJEPA has it (arXiv 2511.08544).

vit train --config=lejepa:S/16,images:photos --workdir=runs/lejepa
vit train --config=lejepa:S/14,images:photos,dinov2_vits14 --workdir=runs/lejepa

The argument is MODEL,DATASET[,CHECKPOINT]; labels, if there are any, are not read. It starts from
any checkpoint of that size that loads, of another patch or image size too. The authors' advice for
any model and set: two crops of 224 pixels and six of 96, or of 98 for patches of 14; colours
changed, every other crop blurred and one in five inverted, global or local; AdamW at 5e-4 with
decay 0.05, a cosine to a thousandth of that; 100 epochs. A batch is 128, or as small as gives an
epoch eight steps, the rate in proportion. There is no accumulation, as the distribution of a whole
batch is tested.

By NVIDIA's compiler (vit plan for rtx4060:1 and l4:1, in bfloat16; jax-cuda12-plugin 0.10.2, nvcc
12.9.86, cuDNN 9.28) the largest batches of a power of two are, with 8 GB, 512 of S/16 and 128 of
B/16, with 24 GB 1,024 and 512, where every layer is computed again, as model.remat becomes by
itself. JAX takes three quarters of a GPU; XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 gives it more.

Hardware: GPUs (the authors).
Time: for ViT-S/8 on Imagenette at 128 pixels, 800 epochs, 200 min on one (the authors).
Result: ViT-L after 100 epochs of ImageNet: 96.5 % on CIFAR-10, 83.7 on CIFAR-100, 82.1 on Food-101
  by a linear probe of all images; ViT-S/8 on Imagenette 90.7 % (README and MINIMAL.md of
  rbalestr-lab/lejepa).
Measured: not yet run. A small model gained 18 points of k-NN accuracy on 2,500 digits, on
  crops of photographs 12 (docs/results.md).
"""

from vit_jax.configs import _data, default


def get_config(argument):
  model, dataset, checkpoint = _data.words(
    argument, 'MODEL,DATASET[,CHECKPOINT]', 'lejepa:S/16,images:photos'
  )
  config = default.get_config()
  config.task = 'lejepa'
  config.duration = '100 epochs'
  config.batch_size = 128
  _data.encoder(config, model, checkpoint)
  config.views.local_size = _data.local_size(model)
  config.views.augment = f'flip | {_data.COLOURS} | gaussian_blur(0.5) | solarization(0.2)'
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip = 0.0
  config.schedule.learning_rate = 5e-4
  config.evaluation.every = config.checkpoint.every = '5%'
  config.schedule.warmup = '5%'
  _data.fit(config, _data.use(config, dataset, _data.LARGE))
  config.schedule.end = config.schedule.learning_rate / 1000
  return config
