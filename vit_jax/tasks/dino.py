"""Views of an image agree, and hidden patches agree with what the average of the model sees.

DINO (arXiv 2104.14294), iBOT (arXiv 2111.07832) and KoLeo, as DINOv2 puts them together (arXiv
2304.07193). The teacher is the averaged parameters, `fixed['ema']`.

N images, V views, G global views, S all views, T patches of a view, P hidden patches of
an image, D width, F features, K prototypes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from vit_jax import models, optim
from vit_jax.models import vit
from vit_jax.sources import Record, Source
from vit_jax.sources.columns import Column, Columns
from vit_jax.tasks import Array, Batch, Fixed, Named, Params, Sums, Task, prototypes, views
from vit_jax.tasks.encoder import ImageEncoder
from vit_jax.text import nearest

CENTRING = ('mean', 'sinkhorn')
MIN_BLOCK = 4  # patches that are hidden together, but for the last of a view
ASPECT = 0.3  # of a block: its sides' ratio lies between this and its inverse
TRIES = 10  # to place a block


class Parts(NamedTuple):
  """Arrays (N, V, ...) of views and (N, P, ...) of hidden patches: P is 0 without iBOT."""

  views: Array
  patches: Array


@dataclasses.dataclass(frozen=True)
class Schedules:
  """What changes with the step, () int32.

  Fields:
    total: steps of the run.
    momentum: of the teacher in the first step; by a cosine it is 1 at the end.
    temperatures: of the teacher in the first step, and after `warmup` steps.
    warmup: steps, 0 for none.
    constant: steps in which the prototypes are not trained.
  """

  total: int
  momentum: float
  temperatures: tuple[float, float]
  warmup: int
  constant: int

  def teacher_momentum(self, step: Array) -> Array:
    fraction = jnp.minimum(step / self.total, 1.0)
    return 1 - (1 - self.momentum) * (1 + jnp.cos(jnp.pi * fraction)) / 2

  @property
  def first_weight(self) -> float:
    """How much of the teacher is at the end of the run what it began with, of 1."""
    return float(np.exp(-(1 - self.momentum) * self.total / 2))  # (1 + cos) / 2 is 1 / 2 on average

  def teacher_temperature(self, step: Array) -> Array:
    first, last = self.temperatures
    fraction = jnp.minimum((step + (not self.warmup)) / max(self.warmup, 1), 1.0)
    return first + (last - first) * fraction


@dataclasses.dataclass(frozen=True)
class Objective:
  """How the parts of the loss are computed and weighed.

  Fields:
    student_temperature: that the student's cosines are divided by.
    centring: of CENTRING: the teacher's cosines less their running mean, or the rounds of
      `prototypes.sinkhorn` over the batch.
    centre_momentum: of that mean.
    ibot, koleo: weights of these losses beside DINO's; 0 leaves them out.
  """

  student_temperature: float = 0.1
  centring: str = 'mean'
  centre_momentum: float = 0.9
  ibot: float = 1.0
  koleo: float = 0.1


def make(config: FrozenConfigDict, source: Source, encoder: ImageEncoder) -> Task:
  """The task 'dino' of a config."""
  check(config, encoder.model)
  columns, most_hidden = views.columns(config), 0
  views.check_sizes(columns, encoder)
  settings, model = config.dino, encoder.model
  epoch = len(source) / config.batch_size
  total = optim.steps(config.duration, epoch=epoch)
  durations = config.dino.temperature_warmup, config.dino.constant_prototypes
  warmup, constant = (optim.steps(each, epoch=epoch, total=total) for each in durations)
  if settings.ibot:
    count, (height, width, _) = config.views.global_count, columns['global0'].shape
    grid = (height // model.patch[0], width // model.patch[1])
    hidden = hidden_patches(count, grid, area=settings.hidden_area, view=len(columns))
    columns, most_hidden = {**columns, 'hidden': hidden}, most_patches(grid, settings.hidden_area)
    if not most_hidden:
      raise ValueError(
        f'dino.hidden_area is {settings.hidden_area}, which hides none of {grid[0]}x{grid[1]} '
        'patches: must be more, or dino.ibot=0'
      )
  dtype = getattr(model, 'dtype', 'float32')
  return Dino(
    encoder,
    prototypes.DinoHead(settings.prototypes, settings.hidden, settings.bottleneck, dtype),
    Objective(**{field.name: settings[field.name] for field in dataclasses.fields(Objective)}),
    Schedules(
      total,
      momentum=config.ema,
      temperatures=(settings.first_temperature, settings.teacher_temperature),
      warmup=warmup,
      constant=constant,
    ),
    most_hidden,
  ).task(columns)


def check(config: FrozenConfigDict, model: models.Model) -> None:
  """Raises ValueError for a config that this objective cannot have."""
  settings = config.dino
  if config.teacher.checkpoint:
    raise ValueError(
      "task 'dino' has a teacher, the average of its model: teacher.checkpoint is "
      f"{config.teacher.checkpoint!r}, must be ''"
    )
  if not config.ema:
    raise ValueError("task 'dino' learns from the average: ema is 0, must be above, as 0.996")
  if config.views.global_count + config.views.local_count < 2:
    raise ValueError("task 'dino' compares views: views has 1, must have 2 or more")
  if getattr(model, 'pool', '') == 'none':
    raise ValueError("task 'dino' compares features of views: model.pool is 'none', of patches")
  if settings.centring not in CENTRING:
    names = nearest(settings.centring, list(CENTRING))
    raise ValueError(f'unknown dino.centring {settings.centring!r}{names}')
  if settings.ibot:
    check_patches(model, settings.hidden_area)
  comparing = {'dino.koleo=0': settings.koleo, "dino.centring='mean'": settings.centring != 'mean'}
  needed = ' and '.join(field for field, is_needed in comparing.items() if is_needed)
  for field in ('batch_size', 'accumulate'):
    if needed and (config[field] == 1) == (field == 'batch_size'):
      raise ValueError(
        f'{field} is {config[field]}, and the loss compares the images of a whole batch: '
        f'needs {needed}'
      )


def head_bytes(config: FrozenConfigDict, model: models.Model) -> int:
  """Bytes of an image's answers over prototypes: the student's, the teacher's and a gradient."""
  rows, settings = len(views.sizes(config)), config.dino
  if settings.ibot and isinstance(model, vit.ViT):
    grid = [side // patch for side, patch in zip(views.sizes(config)[0], model.patch)]
    rows += most_patches((grid[0], grid[1]), settings.hidden_area)
  return 3 * 4 * rows * settings.prototypes


def check_patches(model: models.Model, area: tuple[float, float]) -> None:
  """Raises ValueError if a model's patches cannot be hidden and predicted."""
  if not isinstance(model, vit.ViT):
    raise ValueError('dino.ibot hides patches from a ViT: other models need dino.ibot=0')
  if model.pool == 'token_gap' or model.representation:
    raise ValueError(
      "dino.ibot has one head for images and patches, which model.pool='token_gap' and "
      'model.representation make of different widths: dino.ibot=0, or leave them out'
    )
  if len(area) != 2 or not 0 <= area[0] <= area[1] < 1:
    raise ValueError(f'dino.hidden_area is {area}, must be two parts of a view from 0 to below 1')


@dataclasses.dataclass(frozen=True)
class Dino:
  """An encoder whose views agree with those that its average, the teacher, sees.

  An image's loss is DINO's of its views, iBOT's of its hidden patches and KoLeo's of its global
  views, weighed. The centres of the teacher's cosines live in the average alone, among its
  parameters: as trained ones they stay 0. An evaluation has as teacher, with its centres, what it
  measures.

  Fields:
    encoder: that is trained and delivered.
    projection: the head, of images and of patches.
    objective, schedules: of the loss and of the teacher.
    most_hidden: P; 0 without iBOT.
  """

  encoder: ImageEncoder
  projection: prototypes.DinoHead
  objective: Objective
  schedules: Schedules
  most_hidden: int = 0

  def task(self, columns: Columns) -> Task:
    """The task of columns of `views`, and with iBOT 'hidden', see `hidden_patches`."""
    task = self.encoder.task(
      functools.partial(self.loss, train=True),
      measured=functools.partial(self.loss, train=False),
      columns=columns,
      extra=self.extra,
      average=self.average,
    )
    first, last = self.schedules.temperatures
    about = (
      f'the teacher is the average of the model: temperature {first:g} to {last:g} in '
      f'{self.schedules.warmup:,} steps, momentum {self.schedules.momentum:g} to 1 in '
      f'{self.schedules.total:,}, after which {self.schedules.first_weight:.0%} of it is the first '
      'model'
    )
    return dataclasses.replace(task, read=functools.partial(read, task.read), about=(about,))

  def extra(self, key: Array) -> Params:
    """The head, its centres, and the token of hidden patches."""
    image = jnp.zeros((1, *self.encoder.preprocess.shape))
    params = jax.eval_shape(self.encoder.init, key)
    width = jax.eval_shape(self.encoder.apply, params, image)[0].shape[-1]
    head = self.projection.init(key, jnp.zeros((1, width)))['params']
    centres = {name: jnp.zeros(self.projection.prototypes) for name in Parts._fields}
    token = {'hidden': jnp.zeros((1, 1, 1, width))} if self.most_hidden else {}
    return {'projection': head, 'centres': centres, **token}

  def loss(
    self, params: Params, batch: Batch, key: Array, fixed: Fixed, *, train: bool
  ) -> tuple[Array, Sums, Named]:
    counts, step = batch['mask'].astype(jnp.float32), fixed['step']
    average = jax.lax.stop_gradient(fixed['ema'])
    crops = views.stacked(batch, 'global')  # (N, G, H, W, C)
    hidden = batch.get('hidden', jnp.zeros((*crops.shape[:2], 0), bool))  # (N, G, T)
    index, weights = hidden_index(hidden, self.most_hidden)  # (N, P)
    present = Parts(jnp.tile(counts[:, None], (1, crops.shape[1])), counts[:, None] * (weights > 0))
    teacher = self.cosines(average, self.features(average, crops, index))
    temperature = self.schedules.teacher_temperature(step)
    targets = self.targets(teacher, present, average['centres'], temperature)

    keys = jax.random.split(key) if train else (None, None)
    features = self.features(params, crops, index, hidden, dropout=keys[0])
    koleo = sum(prototypes.koleo(x, counts) for x in features.views.swapaxes(0, 1))
    if 'local0' in batch:
      small = views.stacked(batch, 'local')
      others, _ = views.encode(self.encoder, params, small, dropout=keys[1])
      features = features._replace(views=jnp.concatenate([features.views, others], axis=1))
    constant = step < self.schedules.constant
    student = self.cosines(params, features, constant)  # (N, S, K), (N, P, K)

    cool = self.objective.student_temperature
    parts = {
      'dino': prototypes.view_loss(targets.views, student.views, cool),
      'ibot': prototypes.patch_loss(targets.patches, student.patches, weights, cool),
      'koleo': koleo,
      'teacher_entropy': prototypes.entropy(targets.views).mean(1),
      'teacher_temperature': jnp.full_like(counts, temperature),
      'teacher_momentum': jnp.full_like(counts, self.schedules.teacher_momentum(step)),
    }
    sums = {name: jnp.where(counts > 0, values, 0).sum() for name, values in parts.items()}
    total = sums['dino'] + self.objective.ibot * sums['ibot'] + self.objective.koleo * sums['koleo']
    sums |= prototype_sums(teacher, targets, present) | {'loss': total, 'count': counts.sum()}
    return total, sums, {'features': features, 'teacher': teacher, 'student': student}

  def features(
    self,
    params: Params,
    crops: Array,
    index: Array,
    hidden: Array | None = None,
    *,
    dropout: Array | None = None,
  ) -> Parts:
    """What an encoder makes of global views, and of some patches of all an image's.

    Args:
      params: of the task.
      crops: (N, G, H, W, C) uint8.
      index: (N, P) of G T patches.
      hidden: (N, G, T), which patches the encoder does not see; None for none.
      dropout: of `views.encode`.
    """
    encoder, masks = self.encoder, {}
    if hidden is not None and hidden.size:
      encoder = dataclasses.replace(encoder, model=MaskedViT(**models.fields(encoder.model)))
      masks = {'masks': {'hidden': hidden.reshape(-1, hidden.shape[-1])}}
    of_views, out = views.encode(encoder, params, crops, dropout=dropout, variables=masks)
    if not index.size:
      return Parts(of_views, of_views[:, :0])
    patches = out['encoded'][:, encoder.model.prefix :]
    patches = patches.reshape(len(crops), -1, patches.shape[-1])  # (N G, T, D) -> (N, G T, D)
    return Parts(of_views, jnp.take_along_axis(patches, index[:, :, None], axis=1))

  def cosines(self, params: Params, features: Parts, constant: bool | Array = False) -> Parts:
    """What the head makes of features: float32 (N, V, K) and (N, P, K)."""

    def project(x: Array) -> Array:
      variables = {'params': params['projection']}
      rows: Any = self.projection.apply(variables, x.reshape(-1, x.shape[-1]), constant)
      return rows.reshape(*x.shape[:2], self.projection.prototypes)  # also where P is 0

    return Parts(*map(project, features))

  def targets(self, teacher: Parts, present: Parts, centres: Params, temperature: Array) -> Parts:
    """What the student is to answer, by the teacher's cosines: (N, G, K) and (N, P, K)."""
    if self.objective.centring == 'mean':
      return Parts(
        *(
          prototypes.centred(x, centres[name], temperature) for name, x in teacher._asdict().items()
        )
      )

    def assigned(cosines: Array, weights: Array) -> Array:
      rows = cosines.reshape(-1, cosines.shape[-1])
      return prototypes.sinkhorn(rows, weights.ravel(), temperature).reshape(cosines.shape)

    return Parts(*map(assigned, teacher, present))

  def average(self, average: Params, params: Params, sums: Sums, step: Array) -> Params:
    """The teacher after an update, and in it the centres; those that are frozen stay."""
    momentum = self.schedules.teacher_momentum(step)
    new = jax.tree.map(lambda a, p: momentum * a + (1 - momentum) * p, average, params)
    decay = self.objective.centre_momentum
    for name, centre in average.get('centres', {}).items():
      count = sums[f'{name}_count']
      mean = sums[f'{name}_centre'] / jnp.maximum(count, 1)
      moved = decay * centre + (1 - decay) * mean
      new['centres'][name] = jnp.where(count > 0, moved, centre)
    return new


class MaskedViT(vit.ViT):
  """A ViT that sees a learned token in the place of the patches of 'masks/hidden', (N, T)."""

  def embed(self, images: Array) -> Array:
    x = super().embed(images)
    token = self.param('hidden', nn.initializers.zeros, (1, 1, 1, self.width)).astype(x.dtype)
    hidden: Array = self.get_variable('masks', 'hidden')
    return jnp.where(hidden.reshape(*x.shape[:3], 1), token, x)


def hidden_index(hidden: Array, count: int) -> tuple[Array, Array]:
  """Hidden patches (N, G, T) as their places among G T, and their weights: (N, P), (N, P).

  The weights of a view's hidden patches sum to 1 / G; those of places that are not hidden are 0.
  """
  weights = hidden / jnp.maximum(hidden.sum(-1, keepdims=True), 1) / hidden.shape[1]
  weights = weights.reshape(len(hidden), -1).astype(jnp.float32)  # (N, G T)
  index = jnp.argsort(weights == 0, axis=1, stable=True)[:, :count]
  return index, jnp.take_along_axis(weights, index, axis=1)


def prototype_sums(teacher: Parts, targets: Parts, present: Parts) -> Sums:
  """Sums (K,) of the teacher's cosines and targets over a batch, and of how many rows they are."""
  sums = {'targets': jnp.einsum('ng,ngk->k', present.views, targets.views)}
  for name, cosines, weights in zip(Parts._fields, teacher, present):
    sums[f'{name}_centre'] = jnp.einsum('nm,nmk->k', weights, cosines)
    sums[f'{name}_count'] = weights.sum()
  return sums


def read(
  read_means: Callable[[Mapping[str, Any]], dict[str, float]], sums: Mapping[str, Any]
) -> dict[str, float]:
  """The numbers of sums: the means that `read_means` gives, and how many prototypes are in use.

  'prototypes' is the exponential of the entropy of the mean target: 1 where all images have one
  prototype, K where all are used alike.
  """
  names = {'targets'} | {f'{part}_{kind}' for part in Parts._fields for kind in ('centre', 'count')}
  values = read_means({name: value for name, value in sums.items() if name not in names})
  share = np.asarray(sums['targets'], np.float64)
  share = share[share > 0] / max(share.sum(), 1e-30)
  return {**values, 'prototypes': float(np.exp(-(share * np.log(share)).sum()))}


def most_patches(grid: tuple[int, int], area: tuple[float, float]) -> int:
  """How many patches of a grid are hidden at the most."""
  return int(grid[0] * grid[1] * area[1])


def hidden_patches(
  count: int, grid: tuple[int, int], *, area: tuple[float, float], view: int
) -> Column:
  """The column of which patches are hidden, bool (G, T): of one of an image's global views.

  So half of two views have some hidden, as in DINOv2.

  Args:
    count: G.
    grid: rows and columns of a view's patches.
    area: the smallest and the largest part of a view that is hidden.
    view: the random stream that it draws from.
  """

  def fill(record: Record, rng: np.random.Generator) -> np.ndarray:
    hidden = np.zeros((count, grid[0] * grid[1]), bool)
    chosen, most = rng.integers(count), int(grid[0] * grid[1] * rng.uniform(*area))
    hidden[chosen] = blocks(rng, grid, most).ravel()
    return hidden

  return Column((count, grid[0] * grid[1]), bool, fill, view)


def blocks(rng: np.random.Generator, grid: tuple[int, int], most: int) -> np.ndarray:
  """Blocks of patches, `most` of a grid or a few less: bool (rows, columns).

  BEiT's way (arXiv 2106.08254, algorithm 1) as DINOv2 has it: a block has at least MIN_BLOCK
  patches where as many are to be hidden, and none as high or wide as the grid.
  """
  hidden = np.zeros(grid, bool)
  for _ in range(most):  # each block hides one at least
    size = most - hidden.sum()
    block = next((b for _ in range(TRIES) if (b := new_block(rng, hidden, size))), None)
    if block is None:
      break
    hidden[block] = True
  return hidden


def new_block(
  rng: np.random.Generator, hidden: np.ndarray, most: int
) -> tuple[slice, slice] | None:
  """A block that hides 1 to `most` patches that are not hidden yet, or None where one does not."""
  area, aspect = (
    rng.uniform(*sorted((MIN_BLOCK, most))),
    np.exp(rng.uniform(-1, 1) * np.log(ASPECT)),
  )
  sides = np.sqrt([area * aspect, area / aspect]).round().astype(int)
  if most < 1 or min(hidden.shape - sides) < 1 or min(sides) < 1:
    return None
  row, column = (rng.integers(side + 1) for side in hidden.shape - sides)
  block = (slice(row, row + sides[0]), slice(column, column + sides[1]))
  return block if 0 < (~hidden[block]).sum() <= most else None
