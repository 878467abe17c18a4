"""Self-distillation on one's own images: DINO, iBOT and KoLeo, as DINOv2 has them (2304.07193).

vit train --config=dino:S/16,images:photos --workdir=runs/dino

The argument is MODEL,DATASET[,CHECKPOINT]; labels, if there are any, are not read. It starts from
any checkpoint of that size that loads (DINOv2, DINOv3, SigLIP, AugReg, MAE, a run), of another
image size too, as dino:S/14,images:photos,runs/dinov2 does, and then at a tenth of the rate; the
head is always new. 100 epochs at 5e-4 for each 256 images of a batch, AdamW, cosine with a warm-up
of a tenth, stochastic depth 0.1, decay 0.04 to 0.4 by a cosine; two crops of 224 pixels and eight
of 96, 98 for patches of 14: the first always blurred, the second one time in ten and inverted one
in five, a small one every other time; momentum 0.996 to 1, temperature 0.04 to 0.07 in 30 epochs,
prototypes not trained for one.

These are DINO's (arXiv 2104.14294), the areas of crops DINOv2's, but for: a batch of 64, where it
is 1,024; 8,192 prototypes, where they are 65,536 for a million images; the gradient's norm at most
3 as a whole, where DINO limits that of each parameter, DINOv2 those of encoder and head; decay of
kernels alone, where theirs is of tokens and positions, too; crops resized bilinearly, where it is
by bicubic. DINO advises a momentum of 0.9995 for batches of 256, which suits runs of 100,000 steps:
after 1,000 steps 78 % of that teacher would be the first model, which a run says when it begins. Of
DINOv2's rates that shrink towards the first layers --config.optimizer.layer_decay=0.9 has all but
the fifth for embedding patches. A set that is small has a batch that gives an epoch eight steps.
--config.batch_size goes with --config.schedule.learning_rate in proportion.

By NVIDIA's compiler (vit plan for rtx4060:1 and l4:1, in bfloat16; jax-cuda12-plugin 0.10.2, nvcc
12.9.86, cuDNN 9.28) the largest batches of a power of two are, with 8 GB, 128 of S/16 and 64 of
B/16, with 24 GB 512 and 256, where every layer is computed again, as model.remat becomes by
itself. JAX takes three quarters of a GPU; XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 gives it more.

Hardware: 16 V100 GPUs (the DINO paper's S/16).
Time: there 24 h for 100 epochs of ImageNet, with ten small crops.
Result: S/16 69.3 % by k-NN and 74.0 by a linear probe after 100 epochs of ImageNet at batches of
  512 and temperature 0.04, without iBOT and KoLeo (facebookresearch/dino); 74.5 and 77.0 after 800
  (the DINO paper).
Measured: not yet run. A small model on 2,500 digits gained 8 points of k-NN accuracy
  (docs/results.md).
"""

from vit_jax.configs import _data, default

RATE = 5e-4  # for each 256 images of a batch


def get_config(argument):
  model, dataset, checkpoint = _data.words(
    argument, 'MODEL,DATASET[,CHECKPOINT]', 'dino:S/16,images:photos'
  )
  config = default.get_config()
  config.task = 'dino'
  config.duration = '100 epochs'
  config.batch_size = 64
  config.ema = 0.996
  _data.encoder(config, model, checkpoint)
  config.views.local_size = _data.local_size(model)
  config.model.drop_path = 0.1
  config.views.global_area = (0.32, 1.0)
  config.views.local_count = 8
  config.views.local_area = (0.05, 0.32)
  config.views.augment = f'flip | {_data.COLOURS}'
  config.views.global_augment = 'gaussian_blur(1.0)', 'gaussian_blur(0.1) | solarization(0.2)'
  config.views.local_augment = 'gaussian_blur(0.5)'
  config.dino.prototypes = 8192
  config.optimizer.weight_decay = 0.04
  config.optimizer.weight_decay_end = 0.4
  config.optimizer.clip = 3.0
  config.schedule.learning_rate = RATE * config.batch_size / 256 / (10 if checkpoint else 1)
  config.evaluation.every = config.checkpoint.every = '5%'
  _data.fit(config, _data.use(config, dataset, _data.LARGE))
  config.schedule.warmup = '10%'
  config.schedule.end = config.schedule.learning_rate / 2000  # DINO: of 2e-3 for 1,024 images, 1e-6
  return config
