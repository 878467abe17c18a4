"""What a masked autoencoder makes of patches that it does not see (arXiv 2111.06377, figure 2).

N images of H x W pixels and C channels, R x C patches of F numbers, T in all.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, models
from vit_jax.models import vit
from vit_jax.models.decoder import (
  Decoder,
  patch_grid,
  patch_statistics,
  patchify,
  predict,
  unpatchify,
)
from vit_jax.tasks.mae import visible_count

Array = jax.Array
GREY = 128  # of a pixel that is hidden


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """Images whose hidden patches were filled in.

  Fields:
    hidden: (N, R, C), whether a patch was hidden.
    masked: (N, H, W, C) uint8, the images with hidden patches in grey.
    pixels: (N, H, W, C) uint8, the images with hidden patches as they were predicted.
    borrows: whether mean and deviation of each hidden patch are the original's: the decoder
      predicts normalised pixels, and nothing else says how bright they are.
  """

  hidden: np.ndarray
  masked: np.ndarray
  pixels: np.ndarray
  borrows: bool


def reconstruct(source: bundle.Bundle, images: np.ndarray, *, seed: int = 0) -> Reconstruction:
  """Hides patches of uint8 images (N, H, W, C) as in training, by a seed, and fills them in.

  Raises:
    ValueError: for a model without a decoder.
  """
  trained, model = source.decoder, source.model
  if trained is None or not isinstance(model, vit.ViT):
    raise ValueError(f'{source.name} has no decoder: it is no masked autoencoder')
  grid = patch_grid(model, source.preprocess.size)
  patches = grid[0] * grid[1]
  visible = visible_count(patches, trained.mask)
  order = np.random.default_rng(seed).random((len(images), patches)).argsort(1)
  hidden = (order.argsort(1) >= visible).reshape(-1, *grid)  # (N, R, C)
  predictions = predicted_patches(
    model,
    trained.model,
    {**source.params, 'decoder': trained.params},
    bundle.normalize(jnp.asarray(images), source.preprocess.mean, source.preprocess.std),
    order,
    visible=visible,
    normalised=trained.normalise,
  )
  mean, std = np.asarray(source.preprocess.mean), np.asarray(source.preprocess.std)
  fractions = np.asarray(unpatchify(predictions, model.patch, grid)) * std + mean
  filled = np.rint(255 * np.clip(fractions, 0, 1)).astype(np.uint8)
  where = hidden.repeat(model.patch[0], 1).repeat(model.patch[1], 2)[..., None]  # (N, H, W, 1)
  return Reconstruction(
    hidden,
    np.where(where, np.uint8(GREY), images),
    np.where(where, filled, images),
    trained.normalise,
  )


@functools.partial(jax.jit, static_argnames=('model', 'decoder', 'visible', 'normalised'))
def predicted_patches(
  model: vit.ViT,
  decoder: Decoder,
  params: models.Tree,
  images: Array,
  order: Array,
  *,
  visible: int,
  normalised: bool,
) -> Array:
  """Pixels (N, T, F) of the patches of images (N, H, W, C), normalised as the model takes them.

  What is predicted `normalised` gets the mean and the deviation of the patch itself.
  """
  predictions, _ = predict(model, decoder, params, images, order, visible)
  if not normalised:
    return predictions
  mean, deviation = patch_statistics(patchify(images, model.patch))
  return predictions * deviation + mean
