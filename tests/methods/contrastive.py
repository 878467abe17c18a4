"""Images and texts: which text is of which image (SigLIP, arXiv 2303.15343).

The image tower is the encoder: `pretrained` fills it, `freeze` locks it (LiT), and it is delivered.
The text tower is one layer of the same model, over one-hot bytes as pixels of 256 channels.

B batch, T bytes of a text, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.plan import make_encoder
from vit_jax.sources import columns

LENGTH = 8  # T


def make(config, source, start):
  """The task; a text is the name of an example's class."""
  encoder = make_encoder(config, source, start)
  tower = encoder.model.clone(patch=(1, 1), depth=1, pool='gap')

  def ids(record, rng):
    """The bytes of a text, cut off or filled up with zeros."""
    words = source.classes[record['label']].encode()
    return np.frombuffer(words[:LENGTH].ljust(LENGTH, b'\0'), np.uint8)

  def extra(key):
    params = tower.init(key, jnp.zeros((1, LENGTH, 1, 256)))['params']
    return {'text': params, 'pairs': {'scale': jnp.log(10.0), 'bias': jnp.asarray(-10.0)}}

  def loss(params, batch, key, fixed):
    images, _ = encoder.apply(params, batch['image'])
    pixels = jax.nn.one_hot(batch['text'], 256)[:, :, None]  # (B, T, 1, 256)
    texts, _ = tower.apply({'params': params['text']}, pixels)
    images, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts))
    cosines, pairs = images @ texts.T, params['pairs']  # (B, B)
    logits = jnp.exp(pairs['scale']) * cosines + pairs['bias']
    # Equal texts are of each other's images too.
    alike = (batch['text'][:, None] == batch['text'][None]).all(-1)
    counts = batch['mask'][:, None] * batch['mask'][None]
    total = jnp.sum(counts * jax.nn.softplus(jnp.where(alike, -logits, logits)))
    right = jnp.take_along_axis(alike, logits.argmax(1, keepdims=True), 1)[:, 0]
    sums = {'loss': total, 'retrieval': batch['mask'] @ right, 'count': batch['mask'].sum()}
    return total, sums, {'cosines': cosines, 'logits': logits}

  text = columns.Column((LENGTH,), np.int32, ids)
  train, evaluation = (
    {'image': columns.image(encoder.transforms[use]), 'text': text}
    for use in ('train', 'evaluation')
  )
  ranks = {'retrieval': 1, 'loss': -1}
  return encoder.task(loss, columns=train, evaluation=evaluation, extra=extra, ranks=ranks)
