"""Views of an image agree, and are normally distributed over images (LeJEPA, arXiv 2511.08544).

N images, V views, F features, M width, D dimensions of a projection, S directions, P points.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from vit_jax.sources import Source
from vit_jax.sources.columns import Columns
from vit_jax.tasks import Array, Batch, Fixed, Named, Params, Sums, Task, views
from vit_jax.tasks.encoder import ImageEncoder

SLICES = 0x736C6963  # 'slic', folded into a step's key, to be no key of the model's dropout
NORM_EPS = 1e-5  # of the projector's norms, as torch's


def make(config: FrozenConfigDict, source: Source, encoder: ImageEncoder) -> Task:
  """The task 'lejepa' of a config."""
  if config.accumulate > 1:
    raise ValueError(
      f'accumulate is {config.accumulate}, must be 1: '
      "task 'lejepa' compares how the images of a whole batch are distributed"
    )
  columns = views.columns(config)
  if len(columns) < 2:
    raise ValueError("task 'lejepa' compares views: views has 1, must have 2 or more")
  views.check_sizes(columns, encoder)
  return lejepa(encoder, columns, **config.lejepa)


def lejepa(
  encoder: ImageEncoder,
  columns: Columns,
  *,
  weight: float = 0.05,
  directions: int = 1024,
  points: int = 17,
  t_max: float = 5.0,
  hidden: int = 2048,
  outputs: int = 64,
) -> Task:
  """The task of an encoder whose views' projections agree, and over images are of N(0, 1).

  The loss of a batch is (1 - weight) `disagreement` + weight `sigreg`, times its images. There is
  no teacher: every view has a gradient.

  Args:
    encoder: that is trained and delivered.
    columns: two or more of `views.columns`, of sizes that the encoder takes.
    weight: of the distance from the normal distribution, in [0, 1].
    directions: S, drawn anew in each step, the same on all devices.
    points: P, at which characteristic functions are compared, from -t_max to t_max.
    t_max: the largest of them.
    hidden: M, of the projector's two hidden layers.
    outputs: D.
  """
  projector = Projector(hidden, outputs)
  global_count = sum(name.startswith('global') for name in columns)

  def extra(key: Array) -> Params:
    features = jnp.zeros((1, len(columns), encoder.width))
    return {'projector': projector.init(key, features, jnp.ones(1))['params']}

  def loss(
    params: Params, batch: Batch, key: Array, fixed: Fixed, *, train: bool
  ) -> tuple[Array, Sums, Named]:
    counts = batch['mask'].astype(jnp.float32)
    features = views.features(encoder, params, batch, dropout=key if train else None)
    weights = {'params': params['projector']}
    projections = jnp.asarray(projector.apply(weights, features, counts))  # (N, V, D)
    slices = unit_vectors(jax.random.fold_in(key, SLICES), outputs, directions)
    parts = {
      'disagreement': disagreement(projections, projections[:, :global_count], counts),
      'sigreg': sigreg(projections, slices, counts, points=points, t_max=t_max),
    }
    total = (1 - weight) * parts['disagreement'] + weight * parts['sigreg']
    sums = {name: counts.sum() * value for name, value in ({'loss': total} | parts).items()}
    named = {'features': features, 'projections': projections, **parts}
    return sums['loss'], sums | {'count': counts.sum()}, named

  return encoder.task(
    functools.partial(loss, train=True),
    measured=functools.partial(loss, train=False),
    columns=columns,
    extra=extra,
  )


class Projector(nn.Module):
  """Two hidden layers, each with a batch norm, and a linear one: what the loss sees of features.

  The norms' statistics are of the batch, all views together, in an evaluation too.

  Fields:
    hidden: M.
    outputs: D.
  """

  hidden: int
  outputs: int

  @nn.compact
  def __call__(self, x: Array, counts: Array) -> Array:
    """Features (N, V, F) of images that count by (N,) -> projections (N, V, D)."""
    for index in range(2):
      x = nn.Dense(self.hidden, use_bias=False, name=f'hidden{index}')(x)  # (N, V, M)
      scale = self.param(f'scale{index}', nn.initializers.ones, (self.hidden,))
      bias = self.param(f'bias{index}', nn.initializers.zeros, (self.hidden,))
      x = nn.relu(standardised(x, counts) * scale[None, None] + bias[None, None])
    return nn.Dense(self.outputs, name='out')(x)


def standardised(x: Array, counts: Array) -> Array:
  """(N, V, M) less the mean, by the deviation, of each column over views and images that count."""
  shares = (counts / jnp.maximum(counts.sum(), 1) / x.shape[1])[:, None, None]
  x = x - (shares * x).sum((0, 1), keepdims=True)
  return x * jax.lax.rsqrt((shares * jnp.square(x)).sum((0, 1), keepdims=True) + NORM_EPS)


def disagreement(projections: Array, of_most: Array, counts: Array) -> Array:
  """The mean square () of views (N, V, D) less the mean of an image's global ones (N, G, D)."""
  centre = of_most.mean(1, keepdims=True)
  distances = jnp.square(projections - centre).mean((1, 2))  # (N,)
  return counts @ distances / jnp.maximum(counts.sum(), 1)


def unit_vectors(key: Array, outputs: int, count: int) -> Array:
  """Directions (D, S), uniform on the sphere."""
  vectors = jax.random.normal(key, (outputs, count))
  return vectors / jnp.linalg.norm(vectors, axis=0, keepdims=True)


def sigreg(
  x: Array, directions: Array, counts: Array, *, points: int = 17, t_max: float = 5.0
) -> Array:
  """How far each view of a batch is from N(0, 1): the mean () of the Epps-Pulley statistics.

  That of a sample y (N,) along a direction is N times the integral of |f(t) - g(t)|^2 g(t) over t,
  by the trapezoidal rule, with f its characteristic function and g(t) = exp(-t^2 / 2), which is the
  normal distribution's and the window too. Of a normal sample it is 1.06 in the mean.

  Args:
    x: (N, V, D).
    directions: unit vectors (D, S).
    counts: (N,) of 0 and 1, which images count.
    points: P, from -t_max to t_max; as f(-t) is conjugate to f(t), half of them are computed.
    t_max: positive.
  """
  t, steps = np.linspace(-t_max, t_max, points), np.full(points, 2 * t_max / (points - 1))
  steps[[0, -1]] /= 2
  t, steps = t[points // 2 :], (steps * np.where(t > 0, 2, 1))[points // 2 :]
  gaussian = np.exp(-(t**2) / 2)
  shares = counts / jnp.maximum(counts.sum(), 1)

  @jax.checkpoint  # else a step keeps (N, V, S, P) sines and cosines
  def errors(samples: Array) -> Array:
    angles = samples[..., None] * jnp.float32(t)[None, None, None]  # (N, V, S, P)
    real, imaginary = (jnp.einsum('n,nvsp->vsp', shares, f(angles)) for f in (jnp.cos, jnp.sin))
    return jnp.square(real - jnp.float32(gaussian)[None, None]) + jnp.square(imaginary)

  return counts.sum() * (errors(x @ directions) @ jnp.float32(steps * gaussian)).mean()
