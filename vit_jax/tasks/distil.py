"""A teacher: a task whose model also learns to answer as another model does (arXiv 1503.02531).

N images, K classes, F features of the student, G of the teacher.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, convert, models
from vit_jax.sources import labels
from vit_jax.tasks import (
  Array,
  Batch,
  Fixed,
  Named,
  Params,
  Rows,
  Separable,
  Sums,
  Task,
  abstract_batch,
  losses,
)
from vit_jax.text import nearest, quantity, to_stderr

KINDS = ('logits', 'hard', 'token', 'features')
READS = {'logits': 'logits', 'hard': 'logits', 'token': 'head_dist', 'features': 'pre_logits'}
PROJECTION = 'projection'  # of a student's features to the teacher's width
PROJECTION_KEY = 0x70726F6A  # 'proj', folded into a key, to be no key of the model's parameters


@dataclasses.dataclass(frozen=True, repr=False)
class Teacher:
  """A trained model that answers for the images of a student.

  Fields:
    bundle: the model, its parameters on the host, and how it takes images.
    classes: (K,) its class for each of the student's; None where they are its own in their order,
      or it is asked for features.
    path: where it came from, for messages.
    matched: how its classes are the student's, in words; '' for the same names.
  """

  bundle: bundle.Bundle
  classes: np.ndarray | None = None
  path: str = ''
  matched: str = ''

  def __str__(self) -> str:
    size = 'x'.join(map(str, self.bundle.preprocess.size))
    source = f' of {self.path}' if self.path else ''
    matched = f' ({self.matched})' * bool(self.matched)
    classes = quantity(len(self.bundle.classes), 'class')
    return f'{self.bundle.name}{source}, {size} pixels, {classes}{matched}'


def read_teacher(
  path: str | os.PathLike[str], classes: Sequence[str], *, kind: str = 'logits'
) -> Teacher:
  """A teacher of the student's classes, in a way of KINDS, from any checkpoint that loads."""
  checkpoint = convert.read(path)
  for line in bundle.lines_about(checkpoint):
    to_stderr(line)
  source = bundle.from_checkpoint(checkpoint)
  if getattr(source.model, 'pool', '') == 'none':
    raise ValueError(f"teacher {path} has pool 'none': it answers for patches, not for an image")
  if kind == 'features':
    return Teacher(source, path=str(path))
  if not source.classes:
    raise ValueError(f"teacher {path} has no head: it can teach kind 'features' alone")
  if source.scores != 'softmax':
    # Its logits are of one class against none each, not of the classes against each other.
    raise ValueError(
      f"teacher {path} has {source.scores} scores: it can teach kind 'features' alone"
    )
  try:
    alignment = labels.align(classes, source.classes)
  except ValueError as error:
    raise ValueError(f'teacher {path}: {error}') from None
  matched = '' if source.classes == tuple(classes) else alignment.method
  in_order = alignment.labels == tuple(range(len(source.classes)))
  columns = None if in_order else np.asarray(alignment.labels, np.int32)
  return Teacher(source, columns, str(path), matched)


def check(kind: str, temperature: float | None, weight: float) -> None:
  """Raises ValueError for an unknown kind, or a number that is out of its range."""
  if kind not in KINDS:
    raise ValueError(f'unknown teacher.kind {kind!r}{nearest(kind, list(KINDS))}')
  if temperature is not None and not 0 < temperature < float('inf'):
    raise ValueError(f'teacher.temperature is {temperature}, must be positive and finite')
  if not 0 <= weight <= 1:
    raise ValueError(f'teacher.weight is {weight}, must lie in [0, 1]')


def check_student(kind: str, model: models.Model, scores: str) -> None:
  """Raises ValueError if a model cannot learn from a teacher in that way."""
  if kind == 'token' and getattr(model, 'distillation', '') != 'head':
    raise ValueError("teacher.kind 'token' needs model.distillation='head', the head that learns")
  if kind != 'features' and scores != 'softmax':
    # Logits that are to be independent classes' and parts of one would pull against each other.
    raise ValueError(
      f"teacher.kind {kind!r} teaches softmax scores, the student's are {scores}: "
      "objective.loss must be 'softmax', or teacher.kind 'features'"
    )


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
    task: whose loss names 'images' (N, H, W, C), as its model saw them, and what READS says.
    teacher: of `read_teacher`.
    mean, std: of the task's pixels.
    kind: of KINDS.
    temperature: T; None is 1 for 'logits', and for 'token' the hard distance. It does not change
      'hard' and 'features'.
    weight: in [0, 1].

  Raises:
    ValueError: for values that `check` refuses, or a task that does not name what is learned from.
  """
  check(kind, temperature, weight)
  separable = isinstance(task.loss, Separable) and isinstance(teacher.bundle.model, models.Model)
  student_width, width = answer_widths(task, teacher, kind)
  projects = kind == 'features' and student_width != width
  if projects:
    task = with_projection(task, student_width, width)

  def loss(params: Params, batch: Batch, key: Array, fixed: Fixed) -> tuple[Array, Sums, Named]:
    task_loss, sums, named = task.loss(params, batch, key, fixed)
    answer = teacher_answer(teacher, fixed['teacher'], named['images'], mean=mean, std=std)
    student = named[READS[kind]].astype(jnp.float32)
    if projects:
      layer = params[PROJECTION]
      student = student @ layer['kernel'] + layer['bias'][None]  # (N, F) -> (N, G)
    distances = distance(student, answer, kind=kind, temperature=temperature)  # (N,)
    distance_sum = jnp.where(losses.counted(batch) > 0, distances, 0).sum()
    total = (1 - weight) * task_loss + weight * distance_sum
    sums = {**sums, 'loss': total, 'task_loss': task_loss, 'teacher_loss': distance_sum}
    return total, sums, {**named, **{f'teacher/{name}': leaf for name, leaf in answer.items()}}

  answers = ', hard answers' if kind != 'features' else ''
  answers = f', temperature {temperature or 1:g}' if is_soft(kind, temperature) else answers
  return dataclasses.replace(
    task,
    loss=Separable(loss) if separable else loss,
    fixed={**task.fixed, 'teacher': teacher.bundle.params},
    about=(*task.about, f'teacher: {teacher}; kind {kind}{answers}, weight {weight:g}'),
  )


def with_projection(task: Task, student_width: int, width: int) -> Task:
  """The task with a linear layer from F to G features beside its parameters, not delivered."""

  def without(params: Params) -> Params:
    return {name: part for name, part in params.items() if name != PROJECTION}

  def init(key: Array) -> Params:
    initializer = jax.nn.initializers.lecun_normal()
    kernel = initializer(jax.random.fold_in(key, PROJECTION_KEY), (student_width, width))
    return task.init(key) | {PROJECTION: {'kernel': kernel, 'bias': jnp.zeros(width)}}

  def loss(params: Params, batch: Batch, key: Array, fixed: Fixed) -> tuple[Array, Sums, Named]:
    return task.loss(without(params), batch, key, fixed)

  task_measure = task.measure  # alone: a compiled measure is cached, and the task's arrays with it

  def measure(params: Params, batch: Batch, fixed: Fixed) -> tuple[Sums, Rows]:
    return task_measure(without(params), batch, fixed)

  return dataclasses.replace(
    task,
    init=init,
    loss=loss,
    measure=measure,
    deliver=lambda params: task.deliver(without(params)),
  )


def teacher_answer(
  teacher: Teacher, params: Params, images: Array, *, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Array]:
  """What the teacher makes of a student's images: 'logits' (N, K) of its classes, 'pre_logits'.

  The images (N, H, W, C) are normalised for the student, by `mean` and `std`.
  """
  source = teacher.bundle
  images = renormalized(images, (mean, std), (source.preprocess.mean, source.preprocess.std))
  height, width = source.preprocess.size
  if images.shape[1:3] != (height, width):
    shape = (images.shape[0], *source.preprocess.shape)
    images = jax.image.resize(images, shape, 'bilinear')  # smoothed first where it gets smaller
  logits, out = source.model.apply({'params': params}, images)
  if teacher.classes is not None:
    logits = logits[:, teacher.classes]
  answer = {'pre_logits': out['pre_logits'], 'logits': logits}
  return {name: jax.lax.stop_gradient(x.astype(jnp.float32)) for name, x in answer.items()}


def renormalized(
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


def is_soft(kind: str, temperature: float | None) -> bool:
  """Whether a student learns the teacher's probabilities."""
  return kind == 'logits' or (kind == 'token' and temperature is not None)


def distance(
  student: Array, answer: Mapping[str, Array], *, kind: str, temperature: float | None
) -> Array:
  """(N,), how far what the student gives, float32, is from the teacher's answer."""
  if kind == 'features':
    return jnp.square(student - answer['pre_logits']).mean(-1)
  logits = answer['logits']
  if is_soft(kind, temperature):
    return divergence(student, logits, temperature or 1.0)
  likeliest = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
  return losses.softmax_cross_entropy(student, likeliest)


def divergence(logits: Array, answer: Array, temperature: float) -> Array:
  """T^2 KL(softmax(answer / T) || softmax(logits / T)): (N, K), (N, K) -> (N,).

  Of p = softmax(answer / T) and d, by how much the logarithms differ, it is the sum of
  p (exp(d) - 1 - d), as p exp(d) and p both sum to 1: no term is negative, equal logits give a
  gradient of exactly 0, and nothing cancels where T is large and T^2 would magnify the rest.
  """
  student, teacher = (jax.nn.log_softmax(x / temperature) for x in (logits, answer))
  p, d = jnp.exp(teacher), student - teacher
  near = jnp.abs(d) < 1
  small = jnp.where(near, d, 0)
  # exp(d) overflows where a teacher is very sure: p exp(d) is the student's probability
  terms = jnp.where(near, p * (jnp.expm1(small) - small), jnp.exp(student) - p * (1 + d))
  return temperature**2 * terms.sum(-1)


def answer_widths(task: Task, teacher: Teacher, kind: str) -> tuple[int, int]:
  """The last axis of what the student gives, and of the teacher's answer: F and G, or twice K."""
  source = teacher.bundle
  key = jax.eval_shape(jax.random.key, 0)
  params = jax.eval_shape(task.init, key)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  fixed = {**task.fixed, 'ema': params, 'step': step}
  *_, named = jax.eval_shape(task.loss, params, abstract_batch(task.columns, 1), key, fixed)
  if missing := [name for name in ('images', READS[kind]) if name not in named]:
    raise ValueError(f"the task's loss names no {missing[0]!r}, which teacher.kind {kind!r} reads")
  count, channels = named['images'].shape[-1], source.preprocess.channels
  if count != channels:
    sees = f'images of {quantity(count, "channel")}'
    raise ValueError(f'the student sees {sees}, the teacher {channels}')
  images = jax.ShapeDtypeStruct((1, *source.preprocess.shape), jnp.float32)
  logits, out = jax.eval_shape(source.model.apply, {'params': source.params}, images)
  student = named[READS[kind]].shape[-1]
  if kind == 'features':
    return student, out['pre_logits'].shape[-1]
  count = logits.shape[-1] if teacher.classes is None else len(teacher.classes)
  if student != count:
    raise ValueError(f'the student scores {quantity(student, "class")}, the teacher {count}')
  return student, count
