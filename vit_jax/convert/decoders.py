"""The decoder that a masked autoencoder has beside its encoder, as our own bundles hold it.

It is described in the bundle's JSON, and its arrays are among the bundle's, under PREFIX: who wants
the encoder reads neither.
"""

import functools

import jax
from flax.traverse_util import unflatten_dict

from vit_jax import files, models
from vit_jax.convert.engine import Arrays
from vit_jax.models.decoder import Decoder, TrainedDecoder

PREFIX = 'decoder/'  # before the names of its arrays


def split(arrays: Arrays) -> tuple[Arrays, Arrays]:
  """The arrays of a bundle's encoder, and those of its decoder without their prefix."""
  decoder = {n.removeprefix(PREFIX): a for n, a in arrays.items() if n.startswith(PREFIX)}
  return {n: a for n, a in arrays.items() if not n.startswith(PREFIX)}, decoder


def describe(trained: TrainedDecoder) -> files.JSON:
  """All of a decoder but its parameters, as JSON."""
  fields = models.fields(trained.model)
  shape = {name: value for name, value in fields.items() if name not in models.COMPUTE}
  return {**shape, 'mask': trained.mask, 'normalise': trained.normalise}


def described(description: files.JSON, arrays: Arrays, *, width: int) -> TrainedDecoder:
  """The decoder of a description, with its arrays; ValueError where they do not fit."""
  fields = dict(description)
  mask, normalise = fields.pop('mask'), fields.pop('normalise')
  return fitted(Decoder(**fields), arrays, width=width, mask=mask, normalise=normalise)


def fitted(
  decoder: Decoder,
  arrays: Arrays,
  *,
  width: int,
  mask: float,
  normalise: bool,
) -> TrainedDecoder:
  """A decoder with its arrays.

  Args:
    decoder: whose parameters they are.
    arrays: flat, by name.
    width: of the encoder.
    mask, normalise: as of `TrainedDecoder`.

  Raises:
    ValueError: one that names each array that is missing, unexpected or misshapen.
  """
  init = functools.partial(decoder.init_params, width=width)
  shapes = models.flat(jax.eval_shape(init, jax.eval_shape(jax.random.key, 0)))
  wanted = {name: leaf.shape for name, leaf in shapes.items()}
  wrong = [f'{name} is missing' for name in wanted if name not in arrays]
  wrong += [f'{name} is unexpected' for name in arrays if name not in wanted]
  wrong += [
    f'{name} has shape {arrays[name].shape}, not {shape}'
    for name, shape in wanted.items()
    if name in arrays and arrays[name].shape != shape
  ]
  if wrong:
    raise ValueError(f'decoder: {"; ".join(wrong)}')
  return TrainedDecoder(decoder, unflatten_dict(arrays, sep='/'), mask, normalise)
