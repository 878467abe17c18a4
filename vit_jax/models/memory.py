"""Memory of a training step by formula, and what of its activations to save by it.

N examples, T tokens, D width, A heads, M MLP width, S width of a Mixer's MLP over tokens, L depth.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from vit_jax.models import attention, layers, mixer, vit

Blocks = vit.ViT | mixer.Mixer
BY_SPEED = ('none', 'lean', 'full')  # policies of `layers.REMAT`, the fastest first
USABLE = 0.9  # of a device's memory: the program, batches and what formulas leave out take some
# What a layer of a straight-line program without `remat` keeps, times what 'lean' saves of it, by
# the compilers: of B/16 with 128 images on a TPU; with 64 and cuDNN's attention on an A100, the
# most of GPUs: an H100 keeps 2.16, an L4 1.96.
STRAIGHT = {'tpu': 1.15, 'gpu': 2.76}
GPU = ('gpu', 'cuda')  # JAX's names of one platform


def lean_loop(model: Blocks) -> Blocks:
  """The model with 'lean' and its layers as a loop, which on a CPU takes the least time and memory.

  Its programs for a CPU wait for memory: what is elementwise is computed again in less time than it
  is written and read back. Layers that the model unrolls stay so, and then save all.
  """
  loop = (model.unroll or 1) < model.depth
  return model.clone(remat='lean', unroll=model.unroll or 1) if loop else model


def fitting_remat(
  model: Blocks,
  *,
  batch: int,
  tokens: Sequence[int],
  others: int,
  memory: int,
  platform: str,
) -> str:
  """The fastest policy whose step fits a device by formula, or 'full', which takes the least.

  Args:
    batch: N, of a micro-batch on a device.
    tokens: T of each image of an example.
    others: bytes of the training state, the gradient and what else there is on a device.
    memory: bytes that a device has.
    platform: JAX's name of the kind of device, as in `activation_bytes`.
  """

  def fits(remat: str) -> bool:
    chosen = model if remat == 'none' else model.clone(unroll=model.unroll or 1)  # a loop
    images = (activation_bytes(chosen, count, remat, platform=platform) for count in tokens)
    return others + batch * sum(images) <= USABLE * memory

  return next(filter(fits, BY_SPEED), 'full')


def activation_bytes(model: Blocks, tokens: int, remat: str, *, platform: str) -> int:
  """Bytes of one image's activations at the height of a step.

  What all layers save, and where it recomputes what the layer computed again has meanwhile. On a
  'tpu' a lean loop saves no q, k and v. 'dots' saves the outputs of the same products as 'lean',
  but for attention's.
  """
  layer = layer_bytes(model, tokens, platform)
  straight = (model.unroll or layers.default_unroll(model.depth, train=True)) >= model.depth
  if remat == 'none':
    return model.depth * layer['straight' if straight else 'none']
  saved = layer['lean' if remat == 'dots' else remat]
  if remat == 'lean' and platform == 'tpu' and not straight and isinstance(model, vit.ViT):
    saved -= 3 * layer['full']  # q, k and v are as large as x
  return model.depth * saved + layer['straight' if platform in GPU else 'none']


def layer_bytes(model: Blocks, tokens: int, platform: str) -> dict[str, int]:
  """Bytes that a layer saves of one image for the gradient, by policy, and 'straight' of 'none'.

  'full' saves x alone; 'lean' x, q, k, v, attention's output, the sum after attention and the MLP's
  hidden layer. What 'none' saves in a loop was read from compiled programs: five more copies of the
  hidden layer, six float32 copies of x, and the weights of XLA's attention in float32 and in the
  type of the computation. 'straight' is what it saves where no layer is part of a loop: STRAIGHT,
  and those weights on GPUs whose attention is not cuDNN's.
  """
  itemsize = jnp.dtype(model.dtype).itemsize
  width, hidden = model.width, model.mlp_dim
  if is_vit := isinstance(model, vit.ViT):
    weights = model.heads * tokens * tokens * (4 + itemsize)
    lean = itemsize * tokens * (6 * width + (1 + model.swiglu) * hidden)
  else:
    weights = 0
    lean = itemsize * (tokens * (2 * width + hidden) + model.tokens_dim * width)
  none = straight = lean + tokens * (5 * itemsize * hidden + 6 * 4 * width) + weights
  if platform == 'tpu':
    straight = int(STRAIGHT['tpu'] * lean)
  elif platform in GPU:
    flash = is_vit and itemsize == 2 and model.attention_kernel == 'auto' and attention.has_cudnn()
    straight = int(STRAIGHT['gpu'] * lean) + weights * (not flash)
  return {'none': none, 'straight': straight, 'lean': lean, 'full': itemsize * tokens * width}
