"""Two views of an image agree, the second as the average of the model sees it (DINO, 2104.14294).

The average is `config.ema`'s; teachers are centred by the batch, which keeps no state.

N images, D width, K prototypes.
"""

import jax
import jax.numpy as jnp

from vit_jax.plan import make_encoder
from vit_jax.sources import columns

PROTOTYPES = 64  # K
STUDENT, TEACHER = 0.1, 0.04  # temperatures


def make(config, source, start):
  """The task."""
  if not config.ema:
    raise ValueError('self-distillation learns from the average: config.ema is 0, must be above')
  encoder = make_encoder(config, source, start)

  def extra(key):
    return {'prototypes': jax.random.normal(key, (encoder.model.width, PROTOTYPES))}

  def cosines(params, images):
    features, _ = encoder.apply(params, images)  # (N, D)
    sides = ((features, -1), (params['prototypes'], 0))
    x, y = (side / jnp.linalg.norm(side, axis=axis, keepdims=True) for side, axis in sides)
    return x @ y  # (N, K)

  def loss(params, batch, key, fixed):
    views, mask = (batch['first'], batch['second']), batch['mask']
    students = [cosines(params, view) for view in views]
    teachers = [jax.lax.stop_gradient(cosines(fixed['ema'], view)) for view in views]
    centre = jnp.average(sum(teachers) / 2, axis=0, weights=mask, keepdims=True)  # (1, K)
    targets = [jax.nn.softmax((teacher - centre) / TEACHER) for teacher in teachers]
    logs = [jax.nn.log_softmax(student / STUDENT) for student in students]
    each = -sum((y * x).sum(-1) for y, x in zip(targets, reversed(logs))) / 2  # (N,)
    share = jax.nn.softmax(students[0] / STUDENT).std(0).mean()  # 0 where all images are alike
    sums = {'loss': mask @ each, 'spread': mask.sum() * share, 'count': mask.sum()}
    return sums['loss'], sums, {'students': students, 'teachers': teachers}

  views = {
    name: columns.image(encoder.transforms['train'], view=view)
    for view, name in enumerate(('first', 'second'))
  }
  return encoder.task(loss, columns=views, extra=extra)
