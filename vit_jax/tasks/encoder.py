"""What methods that learn features of images have in common: their model, and its delivery.

N images, F features.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, models
from vit_jax.convert import resample
from vit_jax.convert.resample import DEFAULT_RULE
from vit_jax.images.transforms import Transform
from vit_jax.sources.columns import Columns, image, shared_image
from vit_jax.tasks import (
  LAST_STEP,
  Array,
  Average,
  Batch,
  Fixed,
  Loss,
  Params,
  Rows,
  Start,
  Sums,
  Task,
  means,
  spread,
)

GREY = 128  # the pixels of an image that features are measured from
EXTRA = 0x65787472  # 'extr', folded into a key, to be no key of the model's parameters


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
  """An image model without a head, for methods that learn what its features are.

  Fields:
    model: as `vit_jax.build` gives it, with no classes.
    transforms: for 'train' and 'evaluation'.
    preprocess: of the images that it takes.
    name: of the variant that the model was built from.
    start: gives parameters to start with, or None.
  """

  model: models.Model
  transforms: Mapping[str, Transform]
  preprocess: bundle.Preprocess
  name: str
  start: Callable[[], Start] | None

  @property
  def width(self) -> int:
    """F, the number of an image's features."""
    if getattr(self.model, 'pool', '') == 'none':
      raise ValueError("model.pool is 'none', which gives features of patches, not of an image")
    images = jax.ShapeDtypeStruct((1, *self.preprocess.shape), np.uint8)
    params = jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))
    return int(jax.eval_shape(self.apply, params, images)[0].shape[-1])

  def init(self, key: Array) -> Params:
    return self.model.init(key, jnp.zeros((1, *self.preprocess.shape)))['params']

  def apply(self, params: Params, images: Array, **options: Any) -> tuple[Array, dict[str, Any]]:
    """The features (N, F) of uint8 images, and the intermediates; see `bundle.forward`."""
    mean, std = self.preprocess.mean, self.preprocess.std
    return bundle.forward(self.model, params, images, mean=mean, std=std, **options)

  def at_size(self, params: Params, size: tuple[int, int]) -> Params:
    """The parameters for images of (height, width): a learned table of positions is resampled.

    By DEFAULT_RULE, a matrix for each side, so that a gradient passes to the table.
    """
    model, old = self.model, self.preprocess.size
    if not getattr(model, 'has_table', False) or size == old:
      return params
    rows, columns = ((a // patch, b // patch) for a, b, patch in zip(old, size, model.patch))
    down, across = (resample.matrix(DEFAULT_RULE, *sides) for sides in (rows, columns))
    tokens, table = jnp.split(params['positions'], [model.position_rows], axis=1)
    field = table.reshape(rows[0], columns[0], -1)
    field = jnp.einsum('yr,xc,rcd->yxd', down, across, field, precision='highest')
    table = field.reshape(1, -1, field.shape[-1]).astype(table.dtype)
    return {**params, 'positions': jnp.concatenate([tokens, table], axis=1)}

  def check_size(self, size: tuple[int, int]) -> None:
    """Raises ValueError for images that the model does not take, whatever `at_size` resamples."""
    models.check_size(self.model, size)
    key, images = jax.eval_shape(jax.random.key, 0), jnp.zeros((1, *size, self.preprocess.channels))
    wanted = models.flat(jax.eval_shape(self.model.init, key, images)['params'])
    resampled = jax.eval_shape(lambda key: self.at_size(self.init(key), size), key)
    wrong = [n for n, leaf in models.flat(resampled).items() if leaf.shape != wanted[n].shape]
    if wrong:
      one, other = ('x'.join(map(str, sides)) for sides in (self.preprocess.size, size))
      raise ValueError(
        f'the model takes images of {one}, not of {other}, where its {wrong[0]} differs'
      )

  def features(self, params: Params, images: Array) -> Array:
    """Features (N, F) float32 of uint8 images, of the model as it is delivered."""
    values = self.apply(params, images)[1]['pre_logits'].astype(jnp.float32)
    return values if values.ndim == 2 else values.mean(1)  # of patches (N, T, F) -> (N, F)

  def measure_spread(self, params: Params, batch: Batch) -> Sums:
    """The sums of `spread` of the features of 'image' (N, height, width, C), as evaluated."""
    grey = jnp.full((1, *self.preprocess.shape), GREY, jnp.uint8)
    reference = self.features(params, grey)[0]
    return spread.sums(self.features(params, batch['image']), reference, batch['mask'])

  def deliver(self, params: Params) -> bundle.Bundle:
    """A bundle of the model alone, whatever parameters a method has beside it."""
    names = jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))
    params = {name: params[name] for name in names}
    return bundle.Bundle(self.model, params, (), self.preprocess, self.name)

  def task(
    self,
    loss: Loss,
    *,
    columns: Columns,
    evaluation: Columns | None = None,
    extra: Callable[[Array], Params] | None = None,
    ranks: Mapping[str, int] = types.MappingProxyType({'loss': -1}),
    average: Average | None = None,
    measured: Loss | None = None,
  ) -> Task:
    """The task of a loss, which is its measure too, of parameters that are their own average.

    It then always has one key, and the step LAST_STEP. How spread the features are is measured,
    too, and evaluations can be ranked by it.

    Args:
      loss: of the task. Its parameters are the model's, and beside them those of `extra`.
      columns: of a training example.
      evaluation: of an example that is evaluated; None for the same. An 'image' among them is as
        the encoder takes it; where there is none it is added.
      extra: (key) -> parameters that are trained with the model and not delivered, under names
        that the model has not.
      ranks: of the task; its numbers are the means of the loss's sums ().
      average: of the task.
      measured: the loss in an evaluation, where it differs: without dropout.
    """

    def init(key: Array) -> Params:
      params = self.init(key)
      extra_params = extra(jax.random.fold_in(key, EXTRA)) if extra else {}
      if both := params.keys() & extra_params.keys():
        raise ValueError(f'the model has parameters named {", ".join(sorted(both))} of its own')
      return params | extra_params

    def measure(params: Params, batch: Batch, fixed: Fixed) -> tuple[Sums, Rows]:
      fixed = {**fixed, 'ema': params, 'step': jnp.asarray(LAST_STEP, jnp.int32)}
      sums = (measured or loss)(params, batch, jax.random.key(0), fixed)[1]
      return sums | self.measure_spread(params, batch), {}

    def read(sums: Mapping[str, Any]) -> dict[str, float]:
      scalars = {n: s for n, s in sums.items() if np.ndim(s) == 0 and n not in spread.SUMS}
      return means(scalars) | (spread.read(sums) if sums.keys() >= spread.SUMS else {})

    watched = image(self.transforms['evaluation'], read=shared_image)
    return Task(
      columns=columns,
      evaluation={'image': watched} | dict(columns if evaluation is None else evaluation),
      init=init,
      loss=loss,
      measure=measure,
      read=read,
      ranks={**ranks, **spread.RANKS},
      collapse=spread.collapse,
      deliver=self.deliver,
      start=self.start,
      average=average,
      model=self.model,
    )
