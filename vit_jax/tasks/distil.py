"""A teacher: a task whose model also learns to answer as another model does (arXiv 1503.02531).

N images, K classes, F features of the student, G of the teacher.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, models, objective
from vit_jax.evaluate import labels
from vit_jax.tasks import Array, Batch, Fixed, Named, Params, Rows, Sums, Task, abstract_batch

KINDS = ('logits', 'hard', 'token', 'features')
PROJECTION = 'projection'  # of a student's features to the teacher's width
DRAWN = 0x70726F6A  # folded into a key, to be no key of the model's parameters


@dataclasses.dataclass(frozen=True, repr=False)
class Teacher:
  """A trained model that answers for the images of a student.

  Fields:
    bundle: the model, its parameters on the host, and how it takes images.
    classes: (K,) its class for each of the student's; None where it is asked for features.
  """

  bundle: bundle.Bundle
  classes: np.ndarray | None = None


def read_teacher(
  path: str | os.PathLike[str], classes: Sequence[str], *, kind: str = 'logits'
) -> Teacher:
  """A teacher from any checkpoint that loads.

  Args:
    path: of a run, a bundle or a published file.
    classes: of the student. Those of the teacher are matched as in evaluation, `labels.match`.
    kind: of KINDS.

  Raises:
    FileNotFoundError, ValueError: if there is none, it does not know the classes, or cannot teach.
  """
  source = bundle.read(path)
  if kind == 'features':
    if getattr(source.model, 'pool', '') == 'none':
      raise ValueError(f'teacher {path} has pool none: it has no features of an image')
    return Teacher(source)
  if not source.names_images:
    raise ValueError(f'teacher {path} names no classes: teacher.kind must be features, is {kind!r}')
  if source.scores != 'softmax':
    raise ValueError(
      f'teacher {path} has {source.scores} scores, of which the kind {kind!r} makes nothing: '
      'teacher.kind must be features'
    )
  try:
    match = labels.match(classes, source.classes)
  except ValueError as error:
    raise ValueError(f'teacher {path}: {error}') from None
  return Teacher(source, match.columns[match.places])


def distil(
  task: Task,
  teacher: Teacher,
  *,
  mean: Sequence[float],
  std: Sequence[float],
  kind: str = 'logits',
  temperature: float | None = None,
  weight: float = 0.5,
) -> Task:
  """The task with (1 - weight) of its own loss and weight of the distance to a teacher's answer.

  The teacher sees what the student sees, crop and mixing included, with its own size and pixel
  statistics ("consistent teaching", arXiv 2106.05237). Its parameters are `fixed`. The distance is
    'logits': T^2 KL(softmax(t / T) || softmax(s / T)) of the logits;
    'hard': the cross-entropy to the teacher's likeliest class;
    'token': either of these for the distillation token's head (DeiT, arXiv 2012.12877); the task's
      own loss should be that of the other head alone;
    'features': the mean square difference of what the heads read, the student's through a linear
      layer where F is not G.

  Args:
    task: whose loss names 'images' (N, H, W, 3), as its model saw them, and 'logits', 'head_dist'
      or 'pre_logits'.
    teacher: of `read_teacher`.
    mean, std: of the task's pixels.
    kind: of KINDS.
    temperature: T; None is 1 for 'logits', and for 'token' the hard distance.
    weight: in [0, 1].

  Raises:
    ValueError: for an unknown kind, a temperature that is not positive or a weight outside.
  """
  if kind not in KINDS:
    raise ValueError(f'unknown teacher.kind {kind!r}{models.nearest(kind, list(KINDS))}')
  if temperature is not None and not temperature > 0:
    raise ValueError(f'teacher.temperature is {temperature}, must be positive')
  if not 0 <= weight <= 1:
    raise ValueError(f'teacher.weight is {weight}, must lie in [0, 1]')
  distance = distances(kind, temperature)
  widths = feature_widths(task, teacher) if kind == 'features' else (0, 0)
  projects = widths[0] != widths[1]

  def init(key: Array) -> Params:
    params = task.init(key)
    if not projects:
      return params
    kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, DRAWN), widths)
    return params | {PROJECTION: {'kernel': kernel, 'bias': jnp.zeros(widths[1])}}

  def loss(params: Params, batch: Batch, key: Array, fixed: Fixed) -> tuple[Array, Sums, Named]:
    own, sums, named = task.loss(students(params), batch, key, fixed)
    answer = answered(teacher, fixed['teacher'], named['images'], mean=mean, std=std)
    if projects:
      layer = params[PROJECTION]
      named = {**named, 'pre_logits': named['pre_logits'] @ layer['kernel'] + layer['bias']}
    each = distance(named, answer)  # (N,)
    apart = jnp.where(batch['mask'] > 0, each, 0).sum()
    total = (1 - weight) * own + weight * apart
    sums = {**sums, 'loss': total, 'task_loss': own, 'teacher_loss': apart}
    answers = {f'teacher/{name}': answer[name] for name in ('pre_logits', 'logits')}
    return total, sums, {**named, **answers}

  def measure(params: Params, batch: Batch, fixed: Fixed) -> tuple[Sums, Rows]:
    return task.measure(students(params), batch, fixed)

  told = f'teacher: {teacher.bundle}; kind {kind}, weight {weight:g}'
  return dataclasses.replace(
    task,
    init=init,
    loss=loss,
    measure=measure if projects else task.measure,
    deliver=lambda params: task.deliver(students(params)),
    fixed={**task.fixed, 'teacher': teacher.bundle.params},
    about=(*task.about, told),
  )


def students(params: Params) -> Params:
  """The parameters of the task itself."""
  return {name: part for name, part in params.items() if name != PROJECTION}


def answered(
  teacher: Teacher,
  params: Params,
  images: Array,
  *,
  mean: Sequence[float],
  std: Sequence[float],
) -> dict[str, Array]:
  """What the teacher makes of a student's images: 'logits' (N, K) of its classes, 'pre_logits'.

  Args:
    teacher: whose model is applied, without dropout.
    params: its parameters.
    images: (N, H, W, 3), normalised for the student by `mean` and `std`.
  """
  source = teacher.bundle
  images = restated(images, (mean, std), (source.preprocess.mean, source.preprocess.std))
  height, width = source.preprocess.size
  if images.shape[1:3] != (height, width):
    shape = (images.shape[0], height, width, images.shape[3])
    images = jax.image.resize(images, shape, 'bilinear')  # smoothed first where it gets smaller
  logits, out = source.model.apply({'params': params}, images)
  if teacher.classes is not None:
    logits = logits[:, teacher.classes]
  return {'logits': logits.astype(jnp.float32), 'pre_logits': out['pre_logits']}


def restated(
  images: Array,
  ours: tuple[Sequence[float], Sequence[float]],
  theirs: tuple[Sequence[float], Sequence[float]],
) -> Array:
  """Images normalised by one mean and deviation, as another's: the same bits where they agree."""
  (mean, std), (new_mean, new_std) = (tuple(map(tuple, pair)) for pair in (ours, theirs))
  if (mean, std) == (new_mean, new_std):
    return images
  scale, shift = (np.asarray(a) / np.asarray(new_std) for a in (std, np.subtract(mean, new_mean)))
  return images * jnp.float32(scale)[None, None, None] + jnp.float32(shift)[None, None, None]


def distances(
  kind: str, temperature: float | None
) -> Callable[[Named, Mapping[str, Array]], Array]:
  """(what the student's loss names, the teacher's answer) -> (N,) of each image."""
  soft = kind == 'logits' or (kind == 'token' and temperature is not None)
  output = 'head_dist' if kind == 'token' else 'logits'

  def of_features(named: Named, answer: Mapping[str, Array]) -> Array:
    gap = named['pre_logits'].astype(jnp.float32) - answer['pre_logits'].astype(jnp.float32)
    return jnp.square(gap).mean(-1)

  def of_logits(named: Named, answer: Mapping[str, Array]) -> Array:
    return divergence(named[output], answer['logits'], temperature or 1.0)

  def of_classes(named: Named, answer: Mapping[str, Array]) -> Array:
    target = jax.nn.one_hot(answer['logits'].argmax(-1), answer['logits'].shape[-1])
    return objective.softmax_cross_entropy(named[output], target)

  return of_features if kind == 'features' else of_logits if soft else of_classes


def divergence(logits: Array, answer: Array, temperature: float) -> Array:
  """T^2 KL(softmax(answer / T) || softmax(logits / T)): (N, K), (N, K) -> (N,)."""
  student, teacher = (jax.nn.log_softmax(x / temperature) for x in (logits, answer))
  return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def feature_widths(task: Task, teacher: Teacher) -> tuple[int, int]:
  """(F, G): of what the student's head reads, and the teacher's."""
  source = teacher.bundle
  key = jax.eval_shape(jax.random.key, 0)
  params = jax.eval_shape(task.init, key)
  fixed = {**task.fixed, 'ema': params}
  *_, named = jax.eval_shape(task.loss, params, abstract_batch(task.columns, 1), key, fixed)
  images = jax.ShapeDtypeStruct((1, *source.preprocess.size, 3), jnp.float32)
  _, out = jax.eval_shape(source.model.apply, {'params': source.params}, images)
  return named['pre_logits'].shape[-1], out['pre_logits'].shape[-1]
