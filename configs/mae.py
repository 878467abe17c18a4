"""Masked autoencoders, as Masked autoencoders are scalable vision learners has it (2111.06377).

vit train --config=mae:B/16,images:photos --workdir=runs/mae
vit train --config=mae:B/16,images:photos,vit-mae-base --workdir=runs/mae

The argument is MODEL,DATASET[,CHECKPOINT]; labels, if there are any, are not read. It starts from
any checkpoint of that size that loads, of another patch or image size too, and from its decoder
where it has one: that of a masked autoencoder. 800 epochs at 1.5e-4 for each 256 images of a batch,
AdamW (0.9, 0.95), decay 0.05, warm-up of a twentieth, cosine; crops of a fifth of an image or more,
and flips. The batch is 256, where the paper has 4,096 on 128 TPU cores: --config.batch_size with
--config.schedule.learning_rate in proportion, and --config.accumulate, which gives the same
gradient. A set that is small has a batch that gives an epoch eight steps. The run is fine-tuned as
finetune:runs/mae,folder:labelled, by SGD; the paper's 100 epochs of fine-tuning are of AdamW at
5e-4 for each 256 images, --config.optimizer.layer_decay=0.65, drop_path 0.1, mixup 0.8, cutmix 1
and mean pooling.

By NVIDIA's compiler (vit plan for rtx4060:1 and l4:1, in bfloat16; jax-cuda12-plugin 0.10.2, nvcc
12.9.86, cuDNN 9.28) the largest batches of a power of two are, with 8 GB, 512 of S/16 and 256 of
B/16, with 24 GB 2,048 and 1,024, where every layer is computed again, as model.remat becomes by
itself. JAX takes three quarters of a GPU; XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 gives it more.

Hardware: TPU v3 cores, 128 (the paper).
Time: there 31 h for 1,600 epochs of L/16.
Result: after 1,600 epochs of ImageNet B/16 gives 83.6 % top-1 fine-tuned and 68.0 by a linear
  probe (the paper); 83.7 and 67.8 by its code in PyTorch.
Measured: not yet run. A small model on 2,500 digits gained 42 points of k-NN accuracy, on
  crops of photographs none (docs/results.md).
"""

from vit_jax.configs import _data, default

RATE = 1.5e-4  # for each 256 images of a batch


def get_config(argument):
  model, dataset, checkpoint = _data.words(
    argument, 'MODEL,DATASET[,CHECKPOINT]', 'mae:B/16,images:photos'
  )
  config = default.get_config()
  config.task = 'mae'
  config.duration = '800 epochs'
  config.batch_size = 256
  _data.encoder(config, model, checkpoint)
  if not checkpoint:
    config.model.activation = 'gelu_erf'  # of the paper's code, and of timm's and transformers'
  config.data.augment = "inception_crop(area_min=0.2, method='bicubic_antialias') | flip"
  config.optimizer.name = 'adamw'
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip = 0.0
  config.schedule.learning_rate = RATE
  config.schedule.warmup = '5%'
  config.evaluation.every = config.checkpoint.every = '5%'
  _data.fit(config, _data.use(config, dataset, _data.LARGE))
  return config
