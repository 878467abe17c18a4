"""A masked autoencoder: the pixels of hidden patches from the visible ones (MAE, arXiv 2111.06377).

N images, T patches, V of them visible, F numbers of a patch.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from vit_jax import bundle, models
from vit_jax.models import vit
from vit_jax.models.decoder import (
  Decoder,
  TrainedDecoder,
  patch_grid,
  patch_statistics,
  patchify,
  predict,
)
from vit_jax.sources import Record, Source
from vit_jax.sources.columns import Column, image
from vit_jax.tasks import Array, Batch, Fixed, Loss, Named, Params, Separable, Start, Sums, Task
from vit_jax.tasks.encoder import ImageEncoder

NOISE = 1  # the random stream of an example that its mask is drawn from; that of its crop is 0
SHAPE = ('width', 'depth', 'heads', 'mlp_dim', 'outputs', 'prefix')  # of a decoder's parameters
NEW_DECODER = '  decoder: starts anew'
MLP_RATIO = 4  # of the hidden width of the decoder's blocks to their width


def make(config: FrozenConfigDict, source: Source, encoder: ImageEncoder) -> Task:
  """The task 'mae' of a config."""
  model = encoder.model
  if not isinstance(model, vit.ViT):
    raise ValueError(f"task 'mae' hides patches from a ViT, model.name is {config.model.name!r}")
  decoder = make_decoder(config.mae, model, channels=config.data.channels)
  return mae(encoder, model, decoder, mask=config.mae.mask, normalise=config.mae.normalise)


def make_decoder(section: FrozenConfigDict, model: vit.ViT, *, channels: int) -> Decoder:
  """The decoder of `config.mae` for an encoder of images with so many channels."""
  width, heads = section.decoder_width, section.decoder_heads
  if width % 4 or width % heads:
    raise ValueError(f'mae.decoder_width is {width}, must divide by 4 and into {heads} heads')
  return Decoder(
    outputs=model.patch[0] * model.patch[1] * channels,
    prefix=model.prefix,
    width=width,
    depth=section.decoder_depth,
    heads=heads,
    mlp_dim=MLP_RATIO * width,
    **{name: getattr(model, name) for name in ('activation', 'norm_eps', *models.COMPUTE)},
  )


def mae(
  encoder: ImageEncoder,
  model: vit.ViT,
  decoder: Decoder,
  *,
  mask: float = 0.75,
  normalise: bool = True,
) -> Task:
  """The task of an encoder that reads some patches, and a decoder that predicts the others.

  The loss of an image is the mean square error over its hidden patches, or where none is hidden
  over all. Which are hidden is drawn with the image, as a column: it is the same whatever
  micro-batch or device the image comes to. A learned table of positions starts as the paper's sines
  and cosines, and is not trained.

  Args:
    encoder: that is trained and delivered.
    model: the encoder's.
    decoder: whose parameters are trained beside it, as 'decoder', and delivered with it.
    mask: the fraction of patches that is hidden, in [0, 1).
    normalise: whether the numbers that are predicted of a patch are its pixels less their mean, by
      their deviation.

  Raises:
    ValueError: if every patch would be hidden, or the model can leave none out.
  """
  if model.relative_positions != 'none':
    raise ValueError("task 'mae' leaves patches out: model.relative_positions must be 'none'")
  grid = patch_grid(model, encoder.preprocess.size)
  patches = grid[0] * grid[1]
  visible = visible_count(patches, mask)
  loss = functools.partial(make_loss, encoder, model, decoder, visible=visible, normalise=normalise)
  train, evaluation = (
    {'image': image(encoder.transforms[use]), 'noise': noise(patches)}
    for use in ('train', 'evaluation')
  )
  task = encoder.task(
    Separable(loss(train=True)) if models.is_separable(model) else loss(train=True),
    measured=loss(train=False),
    columns=train,
    evaluation=evaluation,
    extra=lambda key: {'decoder': decoder.init_params(key, model.width)},
  )

  def init(key: Array) -> Params:
    table = {'positions': positions(model, grid)} if model.has_table else {}
    return task.init(key) | table

  def deliver(params: Params) -> bundle.Bundle:
    trained = TrainedDecoder(decoder, params['decoder'], mask, normalise)
    return dataclasses.replace(task.deliver(params), decoder=trained)

  return dataclasses.replace(
    task,
    init=init,
    deliver=deliver,
    start=encoder.start and with_decoder(encoder.start, decoder),
  )


def make_loss(
  encoder: ImageEncoder,
  model: vit.ViT,
  decoder: Decoder,
  *,
  visible: int,
  normalise: bool,
  train: bool,
) -> Loss:
  """The loss of `mae`, of V visible patches; `train` applies the encoder's dropout."""
  preprocess = encoder.preprocess

  def loss(params: Params, batch: Batch, key: Array, fixed: Fixed) -> tuple[Array, Sums, Named]:
    images = bundle.normalize(batch['image'], preprocess.mean, preprocess.std)
    order = batch['noise'].argsort(axis=1)  # (N, T)
    params, rngs = with_fixed_positions(params), {'dropout': key}
    predictions, out = predict(
      model, decoder, params, images, order, visible, train=train, rngs=rngs
    )  # (N, T, F)
    wanted = targets(images, model.patch, normalise=normalise)
    errors = hidden_errors(predictions, wanted, order[:, visible:])  # (N,)
    counts = batch['mask'].astype(jnp.float32)
    total = jnp.where(counts > 0, errors, 0).sum()
    named = {**out, 'predictions': predictions}
    return total, {'loss': total, 'count': counts.sum()}, named

  return loss


def with_decoder(start: Callable[[], Start], decoder: Decoder) -> Callable[[], Start]:
  """The start of an encoder, and of its decoder too where the checkpoint has one of that kind."""

  def started() -> Start:
    encoder = start()
    if encoder.decoder is None:
      return dataclasses.replace(encoder, report=f'{encoder.report}\n{NEW_DECODER}')
    ours, theirs = (
      {field: getattr(model, field) for field in SHAPE}
      for model in (decoder, encoder.decoder.model)
    )
    if ours != theirs:
      other = ', '.join(
        f'{field} {theirs[field]}' for field in SHAPE if ours[field] != theirs[field]
      )
      line = f"{NEW_DECODER}: the checkpoint's has {other}"
      return dataclasses.replace(encoder, report=f'{encoder.report}\n{line}')
    params = {**encoder.params, 'decoder': encoder.decoder.params}
    return dataclasses.replace(encoder, params=params)

  return started


def noise(patches: int) -> Column:
  """The column of uniform noise (T,) by whose order patches are hidden: the last ones."""

  def fill(record: Record, rng: np.random.Generator) -> np.ndarray:
    return rng.random(patches, np.float32)

  return Column((patches,), np.float32, fill, NOISE)


def visible_count(patches: int, mask: float) -> int:
  """V, of T patches without a fraction that is hidden, rounded down; at least one."""
  count = int(patches * (1 - mask))
  if not count:
    raise ValueError(f'mae.mask is {mask}, which hides all {patches} patches of an image')
  return count


def targets(images: Array, patch: tuple[int, int], *, normalise: bool) -> Array:
  """What is to be predicted of images (N, H, W, C): (N, T, F), float32."""
  patches = patchify(images.astype(jnp.float32), patch)
  if not normalise:
    return patches
  mean, deviation = patch_statistics(patches)
  return (patches - mean) / deviation


def hidden_errors(predictions: Array, wanted: Array, hidden: Array) -> Array:
  """The mean square error (N,) over hidden patches (N, T - V), or over all where none is hidden."""
  errors = jnp.square(predictions - wanted).mean(-1)  # (N, T)
  return (jnp.take_along_axis(errors, hidden, axis=1) if hidden.shape[1] else errors).mean(1)


def positions(model: vit.ViT, grid: tuple[int, int]) -> Array:
  """The table (1, rows + T, D) of a model's positions: 0 for its tokens that are of no patch."""
  table = vit.sincos2d(*grid, model.width, endpoint=False)
  return jnp.asarray(np.pad(table, ((model.position_rows, 0), (0, 0))))[None]


def with_fixed_positions(params: Params) -> Params:
  """The parameters, of which a table of positions takes no gradient."""
  table = {name: jax.lax.stop_gradient(params[name]) for name in params if name == 'positions'}
  return {**params, **table}
