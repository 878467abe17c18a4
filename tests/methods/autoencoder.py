"""A masked autoencoder: the pixels of patches that are hidden (MAE, arXiv 2111.06377).

The decoder is one layer of the same model, over encoded patches as pixels.

N images, T patches of P numbers, V of them visible, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.models import vit
from vit_jax.plan import make_encoder
from vit_jax.sources import columns

VISIBLE = 0.25  # V / T


class Visible(vit.ViT):
  """The model with the tokens of the patches that come first in the order of noise."""

  def add_tokens(self, x, grid):
    order = jax.random.uniform(self.make_rng('noise'), x.shape[:2]).argsort(1)  # (N, T)
    self.sow('masks', 'order', order)
    prefix, patches = jnp.split(super().add_tokens(x, grid), [self.prefix], axis=1)
    return jnp.concatenate([prefix, taken(patches, order[:, : int(VISIBLE * x.shape[1])])], 1)


def taken(x, order):
  """Some tokens of (N, T, D) by their index (N, V) -> (N, V, D)."""
  return jnp.take_along_axis(x, order[:, :, None], 1)


def make(config, source, start):
  """The task."""
  encoder = make_encoder(config, source, start)
  model, (p, q) = encoder.model, encoder.model.patch
  visible = dataclasses.replace(encoder, model=Visible(**models.fields(model)))
  fields = dict(num_classes=p * q * 3, patch=(1, 1), depth=1, pool='none', positions='sincos2d')
  decoder = model.clone(**fields)

  def extra(key):
    params = decoder.init(key, jnp.zeros((1, 1, 1, model.width)))['params']
    return {'decoder': params, 'hidden': 0.02 * jax.random.normal(key, (1, 1, model.width))}

  def loss(params, batch, key, fixed):
    (_, out), state = visible.apply(params, batch['image'], rngs={'noise': key}, mutable='masks')
    encoded, [order] = out['encoded'][:, model.prefix :], state['masks']['order']
    (n, total), shown, (rows, cols) = order.shape, encoded.shape[1], out['patches'].shape[1:3]
    hidden = jnp.tile(params['hidden'], (n, total - shown, 1))
    tokens = taken(jnp.concatenate([encoded, hidden], 1), order.argsort(1))  # (N, T, D)
    pixels, _ = decoder.apply({'params': params['decoder']}, tokens.reshape(n, rows, cols, -1))
    x = batch['image'].reshape(n, rows, p, cols, q, 3).swapaxes(2, 3).reshape(pixels.shape) / 255
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-6)
    errors = taken(jnp.square(pixels - x), order[:, shown:]).mean((1, 2))  # (N,)
    sums = {'loss': batch['mask'] @ errors, 'count': batch['mask'].sum()}
    return sums['loss'], sums, {'encoded': encoded, 'pixels': pixels}

  image, evaluation = (columns.image(encoder.transforms[use]) for use in ('train', 'evaluation'))
  return encoder.task(loss, columns={'image': image}, evaluation={'image': evaluation}, extra=extra)
