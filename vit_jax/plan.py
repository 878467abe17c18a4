"""From a config to all that a run needs, checked before anything is computed or written."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections.config_dict import FrozenConfigDict

from vit_jax import (
  bundle,
  convert,
  files,
  lookup,
  metrics,
  models,
  optim,
  pipeline,
  sharding,
  sources,
  workdir,
)
from vit_jax.checkpoint import Checkpoints, tree_crc
from vit_jax.convert import adapt, bundles, published, runs
from vit_jax.evaluate import knn
from vit_jax.guards import legs, seals
from vit_jax.guards.legs import Leg
from vit_jax.images import transforms
from vit_jax.models import memory
from vit_jax.sources import balance
from vit_jax.sources.classes import check_classes
from vit_jax.sources.columns import check_names, first_image, label_shape, labelled_images
from vit_jax.step import State, Step, make_state, make_step
from vit_jax.tasks import (
  KEYS,
  Batch,
  Params,
  Start,
  Sums,
  Task,
  abstract_batch,
  classify,
  dino,
  distil,
  lejepa,
  losses,
  mae,
  views,
)
from vit_jax.tasks.encoder import ImageEncoder
from vit_jax.text import error_line, first_few, nearest, printable, quantity

GiveStart = Callable[[], Start]  # `Task.start`
StartFor = Callable[[models.Model], GiveStart | None]
Sizes = Callable[[FrozenConfigDict], list[tuple[int, int]]]
MakeTask = Callable[[FrozenConfigDict, sources.Source, StartFor], Task]  # see `make_task`
HeadBytes = Callable[[FrozenConfigDict, models.Model], int]
PIXELS = ('mean', 'std')  # a number for each channel, 0.5 where there is no checkpoint
MIN_CROP = 0.25  # of an image's area: a smaller crop hardly shows what the image is of
MAX_INITIAL = 0.1  # of an average, at the end of the run, is what it started from
# Fields of a checkpoint's model that are not its run's: initialisation and regularisation.
NOT_DEFAULTS = ('head_bias', 'head_init', 'dropout', 'attention_dropout', 'drop_path')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What follows from a config.

  Fields:
    config: of `vit_jax.config.load`, with the defaults of its checkpoint and its task.
    mesh: of all devices.
    task: what is learned from what.
    tx, schedule: how a gradient becomes an update.
    frozen: what is not trained.
    splits: sources by use: 'train', 'validation', 'test'; the last two may be absent.
    total, evaluate_every, checkpoint_every, patience, log_every: durations in steps; 0 is never.
    time_limit: in seconds; 0 is none.
    groups: of training examples that are sampled alike; None samples each example alike.
    pretrained_crc: see `pretrained_crc`.
    probe: measures what would be delivered at each evaluation, where that is asked for.
    legs: of the run after its first, the last one perhaps about to begin.
  """

  config: FrozenConfigDict
  mesh: Mesh
  task: Task
  tx: optax.GradientTransformation
  schedule: optim.Schedule
  frozen: optim.Frozen
  splits: dict[str, sources.Source]
  total: int
  evaluate_every: int
  checkpoint_every: int
  patience: int
  log_every: int
  time_limit: int
  groups: balance.Groups | None = None
  pretrained_crc: int | None = None
  probe: knn.Probe | None = None
  legs: tuple[Leg, ...] = ()

  def unreadable(
    self, use: str, say: Callable[[str], object], folder: pathlib.Path
  ) -> pipeline.Unreadable:
    """What takes the unreadable images of a split, and lists them in the run's folder."""
    process = f'_{jax.process_index()}' if jax.process_count() > 1 else ''
    trains = use == 'train'  # an evaluation accepts any number of them, as they are not scored
    return pipeline.Unreadable(
      self.splits[use],
      policy=self.config.data.bad_images if trains else 'substitute',
      say=say,
      limit=pipeline.MAX_UNREADABLE if trains else None,
      file=folder / f'unreadable_{use}{process}.txt',
    )

  @contextlib.contextmanager
  def training_batches(
    self, start: int, unreadable: pipeline.Unreadable
  ) -> Iterator[Iterator[Batch]]:
    """Global batches on the mesh from step `start` on."""
    config = self.config
    reading = self.reading(config.batch_size, config.system.workers)
    with pipeline.training_batches(
      self.splits['train'],
      self.task.columns,
      batch_size=config.batch_size,
      seed=config.seed,
      start=start,
      repeats=config.data.repeats,
      groups=self.groups,
      unreadable=unreadable,
      reading=reading,
    ) as batches:
      yield self.on_mesh(batches, reading)

  @contextlib.contextmanager
  def evaluation_batches(
    self, use: str, unreadable: pipeline.Unreadable
  ) -> Iterator[Iterator[Batch]]:
    """Every image of a split once, on the mesh, in batches of the size of a micro-batch."""
    batch_size = self.config.batch_size // self.config.accumulate
    reading = self.reading(batch_size, workers=0)
    with pipeline.evaluation_batches(
      self.splits[use],
      self.task.evaluation,
      batch_size=batch_size,
      unreadable=unreadable,
      reading=reading,
    ) as batches:
      yield self.on_mesh(batches, reading)

  def on_mesh(
    self, batches: Iterator[pipeline.HostBatch], reading: pipeline.Reading
  ) -> Iterator[Batch]:
    depth = self.config.system.prefetch
    return sharding.prefetch(batches, self.mesh, depth=depth, shards=reading.shard[1])

  def reading(self, batch_size: int, workers: int) -> pipeline.Reading:
    shard = sharding.batch_shard(batch_size, self.mesh)
    system = self.config.system
    return pipeline.Reading(shard, system.threads, workers, system.data_timeout)

  def step(self) -> Step:
    """The training step."""
    config = self.config
    step = make_step(
      self.task.loss,
      self.tx,
      self.schedule,
      seed=config.seed,
      accumulate=config.accumulate,
      ema=config.ema,
      average=self.task.average,
      frozen=self.frozen,
    )
    return sharding.for_mesh(step, self.mesh)

  def first_state(self, start: Params) -> State:
    """The state before the first step: initialised from the seed, but for the params of `start`."""
    init = self.task.init(jax.random.key(self.config.seed))
    loaded, fresh = models.flat(start), models.flat(init)
    wrong = [n for n in loaded if n not in fresh or loaded[n].shape != fresh[n].shape]
    if wrong:
      raise ValueError(f'the task starts with {", ".join(wrong)}: no parameter, or misshapen')
    params = models.map_named(lambda name, leaf: loaded.get(name, leaf), init)
    return make_state(params, self.tx, ema=bool(self.config.ema), frozen=self.frozen)

  @functools.cached_property
  def state_shapes(self) -> State:
    """Shapes and types of the state; traced once."""
    return jax.eval_shape(lambda: self.first_state({}))

  @functools.cached_property
  def fixed_crc(self) -> int | None:
    """The CRC-32 of the task's fixed arrays; None where it has none."""
    return tree_crc(self.task.fixed) if self.task.fixed else None

  @functools.cached_property
  def origin(self) -> seals.Origin:
    """What the seals of the run's checkpoints and of its model say of it, in its last leg."""
    return self.origins[-1][1]

  @functools.cached_property
  def origins(self) -> list[tuple[int, seals.Origin]]:
    """The last step of each leg, and what seals say in it."""
    data = workdir.describe_data(self.splits['train'], self.fixed_crc)
    ends, config = [leg.step for leg in self.legs] + [optim.MAX_STEPS], workdir.as_json(self.config)
    configs = (legs.config_at(config, self.legs, end) for end in ends)
    return [(end, workdir.origin(config, data)) for end, config in zip(ends, configs)]

  def origin_of(self, step: int | None) -> seals.Origin:
    """What the seal of a step's parameters says: of the leg that made them."""
    origins = (origin for end, origin in self.origins if step is not None and step <= end)
    return dataclasses.replace(next(origins, self.origin), step=step)

  @property
  def forward_flops(self) -> int:
    """FLOPs of the task's model for an image; 0 where they are not known."""
    count = getattr(self.task.model, 'flops', None)
    return count(*self.config.image_size, self.config.data.channels) if count else 0

  @property
  def update_flops(self) -> int:
    """FLOPs of an image in an update: thrice a forward pass for each gradient.

    0 where they are not known: of a task that does more with an image than its model's one pass.
    """
    simple = self.config.task == 'classify' and not self.config.teacher.checkpoint
    gradients = 2 if self.config.optimizer.sam else 1
    return 3 * gradients * self.forward_flops if simple else 0

  def checkpoints(self, folder: pathlib.Path, say: Callable[[str], None]) -> Checkpoints:
    """Those of the run in a folder."""
    keep = self.config.checkpoint
    return Checkpoints(
      folder / 'checkpoints',
      keep_latest=keep.keep_latest,
      keep_best=keep.keep_best,
      metric=self.metric,
      sign=self.sign,
      origin_of=self.origin_of,
      total=self.total,
      say=say,
    )

  def describe_frozen(self, params: Params) -> str:
    """How much of parameters, or of their shapes, is trained, and what the others are."""
    trained = metrics.parameters(jax.eval_shape(self.frozen.trainable, params))
    note = 'the rest is frozen'
    if not self.config.pretrained:
      note += ' as it was initialised: without config.pretrained it has learnt nothing'
    return f'trains {trained:,} of {metrics.parameters(params):,} parameters; {note}'

  def loggers(self, folder: pathlib.Path, say: Callable[[str], object]) -> list[metrics.Logger]:
    """Those of the config beside our own, on the first process: `logger(folder, config)` each.

    One that cannot be begun, as without its server, costs a line.
    """
    name = self.config.system.logger
    if not name or jax.process_index() > 0:
      return []
    try:
      logger = lookup.imported(name, 'logger')(folder, self.config.to_dict())
    except (Exception, SystemExit) as error:  # whatever it does
      say(f'logger {name!r}: {error_line(error)}; training goes on without it')
      return []
    if callable(getattr(logger, 'write', None)) and callable(getattr(logger, 'close', None)):
      return [logger]
    say(f'logger {name!r} has not write(step, values) and close(); training goes on without it')
    return []

  @property
  def metric(self) -> str:
    """What ranks the evaluations: that of the average, where it becomes the model."""
    name = self.config.evaluation.metric
    return f'ema_{name}' if self.config.ema and not name.startswith('ema_') else name

  @property
  def sign(self) -> int:
    """1 where more of the metric is better, -1 where less is: the task says."""
    return self.ranks[self.config.evaluation.metric.removeprefix('ema_')]

  @property
  def ranks(self) -> dict[str, int]:
    """What evaluations can be ranked by, as `Task.ranks`."""
    return self.task_ranks | ({knn.ACCURACY: 1} if self.probe else {})

  @property
  def task_ranks(self) -> dict[str, int]:
    """`Task.ranks`, and the metric where it is one of `Task.more_ranks`."""
    name = self.config.evaluation.metric.removeprefix('ema_')
    more = self.task.more_ranks
    return {**self.task.ranks, **({name: more[name]} if name in more else {})}

  def describe_model(self) -> dict[str, Any]:
    """What `runs.MODEL` says: the model that is delivered, and of which of the arrays it is made.

    Without 'arrays' it is not some of the parameters that are trained, but computed from them.
    """
    shapes = self.state_shapes.params
    params = jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes)
    names = {id(leaf): name for name, leaf in models.flat(params).items()}
    model = self.task.deliver(params)
    arrays = {name: names.get(id(leaf)) for name, leaf in bundle.saved_arrays(model).items()}
    return {
      **bundle.describe(model),
      'arrays': arrays if None not in arrays.values() else {},
      'average': bool(self.config.ema),
      'metric': self.metric,
      'sign': self.sign,
      'total': self.total,
    }

  def claim(self, folder: str | os.PathLike[str]) -> None:
    """Makes a folder this run's, see `workdir.claim`, and says there what its model will be."""
    bundles.check_format(pathlib.Path(folder) / 'model')
    workdir.claim(
      folder,
      self.config,
      self.splits['train'],
      ranks=self.ranks,
      fixed_crc=self.fixed_crc,
      pretrained_crc=self.pretrained_crc,
      run_legs=self.legs,
    )
    if jax.process_index() == 0:
      files.write_json(pathlib.Path(folder) / runs.MODEL, self.describe_model())


def make_plan(
  config: FrozenConfigDict,
  folder: str | os.PathLike[str] | None = None,
  *,
  splits: dict[str, sources.Source] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Plan:
  """Reads the config once and checks what it names, and the checkpoint that it starts from.

  Args:
    config: of `vit_jax.config.load`.
    folder: the run's. A run that resumes has its parameters there, and the defaults of its
      checkpoint, which is not opened again.
    splits: sources by use; None opens those of the config.
    devices: of the mesh; None for all of this machine's.

  Raises:
    ValueError: for a name, size or combination that cannot be.
    FileNotFoundError: if there is no such data or checkpoint.
  """
  config = with_data_options(config)
  axes = (config.system.data, config.system.fsdp, config.system.tensor)
  mesh = sharding.make_mesh(*axes, devices=devices)
  check_division(config, mesh)
  splits = splits or open_splits(config)
  epoch = len(splits['train']) / config.batch_size
  total = optim.steps(config.duration, epoch=epoch)
  if total < 1:
    raise ValueError(f'duration {config.duration!r} is less than a step')
  steps = functools.partial(optim.steps, epoch=epoch, total=total)
  config, checkpoint = checkpoint_defaults(config, folder)
  task, params = make_task(config, splits['train'], checkpoint)
  config = with_metric(config, task)
  if config.system.logger:
    lookup.imported(config.system.logger, 'logger')
  schedule = make_schedule(config.schedule, epoch, total)
  plan = Plan(
    config=config,
    mesh=mesh,
    task=task,
    tx=optim.make_optimizer(
      schedule=schedule,
      rates=(config.schedule.end, config.schedule.learning_rate),
      span=(steps(config.schedule.begin), total),
      params=params,
      **config.optimizer,
    ),
    schedule=schedule,
    frozen=optim.make_frozen(params, **config.freeze),
    splits=splits,
    total=total,
    evaluate_every=steps(config.evaluation.every) if config.data.validation else 0,
    checkpoint_every=steps(config.checkpoint.every),
    patience=steps(config.evaluation.patience),
    log_every=log_every(config.system.log_every, steps, total),
    time_limit=optim.seconds(config.time_limit),
    groups=balance.class_groups(splits['train']) if config.data.balance else None,
    pretrained_crc=pretrained_crc(config, checkpoint, folder),
    probe=make_probe(config, task),
    legs=legs.read(folder) if folder else (),
  )
  if extensions(config):
    check_extensions(plan)
  return plan


def describe_average(decay: float, total: int) -> str:
  """A line where the average is, at the end of the run, to over MAX_INITIAL what it began with."""
  if decay**total <= MAX_INITIAL:
    return ''
  return (
    f'the averaged parameters, which are the model, are to {decay**total:.0%} the first ones '
    f'after {total:,} steps: --config.ema={0.01 ** (1 / total):.4g} leaves 1%'
  )


def log_every(duration: int | str | None, steps: Callable[[int | str], int], total: int) -> int:
  """Steps from one logged row to the next: by default a hundredth of the run, at most 50."""
  return steps(duration) if duration is not None else min(max(total // 100, 1), 50)


def make_task(
  config: FrozenConfigDict, source: sources.Source, checkpoint: convert.Checkpoint | None
) -> tuple[Task, Params]:
  """The config's task, of TASKS or any 'package.module:name', and the shapes of its parameters.

  Such a function takes (config, source, start): the config, with all defaults; the training source;
  and `start(model)`, which gives the `Task.start` of a model that `config.pretrained` is for, or
  None.
  """
  make = method(config.task).make
  with naming_extensions(config):
    start = functools.partial(pretrained_start, config, source.classes, checkpoint=checkpoint)
    task = make(config, source, start)
    if not isinstance(task, Task):
      raise ValueError(f'task {config.task!r} gives {type(task).__name__}, must give a Task')
    if not task.ranks:
      raise ValueError(f'task {config.task!r} has no ranks: it must say what evaluations rank by')
    if config.teacher.checkpoint:
      task = with_teacher(config, task, source)
    params = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))
  for columns in (task.columns, task.evaluation):
    check_names(columns)
  if reserved := sorted(task.fixed.keys() & set(KEYS)):
    raise ValueError(
      f"the task's fixed arrays are named {reserved[0]!r}, which each step has itself"
    )
  return task, params


def extensions(config: FrozenConfigDict) -> list[str]:
  """The names in a config that stand for somebody else's task, model, loss or optimiser."""
  names = (config.task, config.model.name, config.objective.loss, config.optimizer.name)
  return [name for name in names if lookup.is_path(name)]


@contextlib.contextmanager
def naming_extensions(config: FrozenConfigDict) -> Iterator[None]:
  """Turns what others' code raises, by whatever exception, into a ValueError that names it."""
  try:
    yield
  except (Exception, SystemExit) as error:
    if isinstance(error, ValueError | OSError) or not extensions(config):
      raise
    raise ValueError(f'{", ".join(extensions(config))}: {error_line(error)}') from error


def check_extensions(plan: Plan) -> None:
  """Raises ValueError where others' code gives what cannot be trained, read or delivered.

  The whole step is traced, on shapes alone, so that a mistake shows before anything is computed.
  """
  config, task = plan.config, plan.task
  try:
    state = jax.eval_shape(plan.first_state, task.start().params if task.start else {})
    batch = abstract_batch(task.columns, config.batch_size)
    new, measured = jax.eval_shape(plan.step(), state, batch, task.fixed)
    for (name, before), after in zip(models.flat(state).items(), jax.tree.leaves(new)):
      if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise ValueError(f'an update makes {after.dtype} {after.shape} of {name}, {before.shape}')
    check_read(task, measured['sums'], {'count'})
    if task.evaluation:
      batch = abstract_batch(task.evaluation, config.batch_size)
      check_read(task, jax.eval_shape(task.measure, state.params, batch, task.fixed)[0], task.ranks)
    delivered = task.deliver(jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), state.params))
    bundle.check_model(delivered.model, delivered.preprocess.shape)
    json.dumps(models.fields(delivered.model))
  except (Exception, SystemExit) as error:  # whatever they do
    raise ValueError(f'{", ".join(extensions(config))}: {error_line(error)}') from error


def check_read(task: Task, sums: Sums, names: Iterable[str]) -> None:
  """Raises ValueError if a task does not read these numbers of its sums, given as shapes."""
  if 'count' not in sums:
    raise ValueError(f"has no 'count' among its sums, which are {', '.join(sums)}")
  zeros = {name: np.zeros(leaf.shape, np.float64) for name, leaf in sums.items()}
  if missing := {'count', *names} - task.read(zeros).keys():
    raise ValueError(f'read gives no {", ".join(sorted(missing))} of {", ".join(sums)}')


def with_teacher(config: FrozenConfigDict, task: Task, source: sources.Source) -> Task:
  """The task with the config's teacher; ValueError for one that does not see whole images."""
  if not method(config.task).labels:
    raise ValueError(
      f'task {config.task!r} encodes parts of images, for which a teacher has no answer: '
      f"teacher.checkpoint is {config.teacher.checkpoint!r}, must be ''"
    )
  fields = dict(config.teacher)
  path = published.local(fields.pop('checkpoint'), config.pretrained_dir)
  teacher = distil.read_teacher(path, source.classes, kind=config.teacher.kind)
  return distil.distil(task, teacher, mean=config.data.mean, std=config.data.std, **fields)


def classification(config: FrozenConfigDict, source: sources.Source, start: StartFor) -> Task:
  """The task 'classify': the model of `config.model` learns the classes of the source."""
  data, fields, teacher = config.data, dict(config.objective), config.teacher
  check_classes(data.source, source.classes)
  if config.model.pool == 'none':
    raise ValueError("model.pool is 'none', which classifies patches, not images")
  model = make_model(config, num_classes=len(source.classes))
  transform = make_transforms(data, config.image_size, source)
  columns, evaluation = (labelled_images(source, transform[use]) for use in ('train', 'evaluation'))
  loss = losses.named_loss(fields.pop('loss'))
  scores = losses.scores_of(loss, fields.pop('scores'))
  check_labels(config, source, scores)
  weights = balance.class_weights(fields.pop('class_weights'), source, scores=scores)
  if teacher.checkpoint:
    distil.check_student(teacher.kind, model, scores)
  image = first_image(source, data.channels)
  crops = describe_crops(data, config.image_size, transform, image)
  by_token = bool(teacher.checkpoint) and teacher.kind == 'token'
  task = classify.classify(
    model,
    classes=source.classes,
    preprocess=bundle.Preprocess(data.preprocess, config.image_size, data.mean, data.std),
    columns=columns,
    evaluation=evaluation,
    loss=loss,
    scores=scores,
    class_weights=weights,
    about=balance.described(source, balanced=bool(weights) or data.balance),
    output='head' if by_token else 'logits',
    name=config.model.name,
    start=start(model),
    **fields,
  )
  return dataclasses.replace(task, about=(*task.about, *crops))


def make_encoder(config: FrozenConfigDict, source: sources.Source, start: StartFor) -> ImageEncoder:
  """The config's model as an encoder; the arguments are those of a task's function."""
  data, size, model = config.data, config.image_size, make_model(config, num_classes=0)
  return ImageEncoder(
    model,
    make_transforms(data, size, source),
    bundle.Preprocess(data.preprocess, size, data.mean, data.std),
    config.model.name,
    start(model),
  )


def image_sizes(config: FrozenConfigDict) -> list[tuple[int, int]]:
  """(height, width) of the one image of an example that a config describes."""
  return [config.image_size]


def no_bytes(config: FrozenConfigDict, model: models.Model) -> int:
  return 0


@dataclasses.dataclass(frozen=True)
class Method:
  """A task by its name, and what follows from the name before there is a task.

  Fields:
    make: (config, source, start) -> the task.
    sizes: (config) -> (height, width) of each image of an example that an update encodes.
    head_bytes: (config, model) -> what an example leaves for the backward pass beside the model's
      activations, where that counts.
    labels: whether it reads them.
  """

  make: MakeTask
  sizes: Sizes = image_sizes
  head_bytes: HeadBytes = no_bytes
  labels: bool = True


def from_encoder(
  make: Callable[[FrozenConfigDict, sources.Source, ImageEncoder], Task],
  sizes: Sizes = image_sizes,
  head_bytes: HeadBytes = no_bytes,
) -> Method:
  """The method, without labels, of a function that takes the encoder that the config describes."""

  def make_with_encoder(config: FrozenConfigDict, source: sources.Source, start: StartFor) -> Task:
    return make(config, source, make_encoder(config, source, start))

  return Method(make_with_encoder, sizes, head_bytes, labels=False)


TASKS = {
  'classify': Method(classification),
  'dino': from_encoder(dino.make, views.sizes, dino.head_bytes),
  'lejepa': from_encoder(lejepa.make, views.sizes),
  'mae': from_encoder(mae.make),
}


def method(name: str) -> Method:
  """The method of TASKS, or of any 'package.module:name', which makes the task of one image."""
  if lookup.is_path(name):
    return Method(lookup.imported(name, 'task'))
  return lookup.named(name, TASKS, 'task')


def checkpoint_defaults(
  config: FrozenConfigDict, folder: str | os.PathLike[str] | None
) -> tuple[FrozenConfigDict, convert.Checkpoint | None]:
  """The config with what its checkpoint decides, and that checkpoint if it was opened for it.

  These are the fields of its model and the pixels that it takes, where the config leaves them open;
  not how it was initialised and regularised, or is computed. A new head is one without the tanh
  layer that some were pre-trained with, as in the ViT paper. Once the run in the folder has a state
  of its own, its config has these defaults.
  """
  checkpoint, model, pixels = None, {}, {}
  if config.pretrained:
    resumes = folder and any(pathlib.Path(folder).glob('checkpoints/[0-9]*'))
    if folder and resumes and (previous := workdir.read_config(pathlib.Path(folder))):
      model, pixels = previous['model'], previous['data']
    else:
      checkpoint = open_pretrained(config)
      model, pixels = {'name': checkpoint.name, **checkpoint.fields}, checkpoint.preprocess
  skipped = {*NOT_DEFAULTS, *models.COMPUTE, *(['representation'] if config.new_head else [])}
  whole, channels = config.to_dict(), config.data.channels
  for field, default in model.items():
    if field not in skipped and default is not None and whole['model'].get(field, 0) in (None, ''):
      whole['model'][field] = models.tupled(default)
  fits = all(len(pixels.get(field) or ()) == channels for field in PIXELS)
  for field in PIXELS:
    if whole['data'][field] is None:
      whole['data'][field] = models.tupled(pixels[field]) if fits else (0.5,) * channels
  return FrozenConfigDict(whole), checkpoint


def open_pretrained(config: FrozenConfigDict) -> convert.Checkpoint:
  """The checkpoint that a config starts from; ValueError if it is not of the variant named."""
  path = published.local(config.pretrained, config.pretrained_dir)
  checkpoint = convert.read(path, heads=config.model.heads)
  name = config.model.name
  if name and models.canonical(name) != models.canonical(checkpoint.name):
    raise ValueError(f'{config.pretrained} is a {checkpoint.name}, model.name is {name!r}')
  return checkpoint


def pretrained_crc(
  config: FrozenConfigDict,
  checkpoint: convert.Checkpoint | None,
  folder: str | os.PathLike[str] | None,
) -> int | None:
  """The `tree_crc` of the arrays that a run starts from; None where there are none, or no folder.

  Also None where they are not read: a run that resumes needs them only to compare them, when they
  are said to be elsewhere, and are there.
  """
  previous = workdir.read_config(pathlib.Path(folder)) if folder else None
  if checkpoint is None and config.pretrained and previous:
    new = workdir.as_json(config)
    if any(previous[field] != new[field] for field in ('pretrained', 'pretrained_dir')):
      with contextlib.suppress(FileNotFoundError):
        checkpoint = open_pretrained(config)
  if not folder or checkpoint is None:
    return None
  decoder = checkpoint.decoder.params if checkpoint.decoder else {}
  return tree_crc({**checkpoint.arrays, **({'decoder': decoder} if decoder else {})})


def pretrained_start(
  config: FrozenConfigDict,
  classes: Sequence[str],
  model: models.Model,
  *,
  checkpoint: convert.Checkpoint | None,
) -> GiveStart | None:
  """Gives a model the parameters of `config.pretrained`; a head that is kept is for `classes`.

  They are read now from a checkpoint that is open; one that is not is opened when they are needed.
  """

  def adapted(checkpoint: convert.Checkpoint) -> Start:
    old_classes, new_classes = checkpoint.fields.get('num_classes', 0), model.num_classes
    if not config.new_head and old_classes != new_classes:
      raise ValueError(
        f'the head of {config.pretrained} is for {quantity(old_classes, "class")}, '
        f'{config.data.source} has {new_classes:,}: new_head=True starts with a new one'
      )
    params, report = adapt.params(
      checkpoint,
      model,
      image_size=config.image_size,
      channels=config.data.channels,
      new_head=config.new_head,
      classes=classes if model.num_classes == len(classes) else (),
      seed=config.seed,
    )
    return Start(params, report, checkpoint.decoder)

  if not config.pretrained:
    return None
  if checkpoint is None:
    return functools.cache(lambda: adapted(open_pretrained(config)))
  start = adapted(checkpoint)
  return lambda: start


def make_model(config: FrozenConfigDict, num_classes: int) -> models.Model:
  """`build_model`, saving what suits this machine's devices."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get('bytes_limit')
  model = build_model(config, num_classes)
  return fit_memory(config, model, limit=limit, platform=device.platform)


def build_model(config: FrozenConfigDict, num_classes: int) -> models.Model:
  """The config's model; without a dtype of its own it computes in the device's."""
  chosen = {field: value for field, value in config.model.items() if value is not None}
  fields = models.default_fields(config.model.name) | chosen
  model = models.build(fields.pop('name'), num_classes=num_classes, **fields)
  models.check_size(model, config.image_size)
  if config.freeze.layers and 'unroll' not in chosen and hasattr(model, 'unroll'):
    # Only in a straight-line program are the gradients of some of its layers left out.
    return model.clone(unroll=model.depth)
  return model


def fit_memory(
  config: FrozenConfigDict,
  model: models.Model,
  *,
  limit: float | None,
  platform: str,
  devices: Sequence[jax.Device] | None = None,
) -> models.Model:
  """The model with the fastest `remat` by which a step fits its device's memory, by formula.

  Where that recomputes, its layers are a loop: unrolled, compilers forget nothing that is computed
  again. A CPU, which does not say what memory it has, is fastest with `memory.lean_loop`. What the
  config chooses stays.

  Args:
    config: of the run.
    model: without `remat`.
    limit: bytes that a program may take of a device; None where it does not say.
    platform: JAX's name of the kind of device.
    devices: of the mesh, or as many; None for all of this machine's.
  """
  if config.model.get('remat') is not None or not isinstance(model, memory.Blocks):
    return model
  if platform == 'cpu':
    return memory.lean_loop(model)
  if limit is None:
    return model
  axes = (config.system.data, config.system.fsdp, config.system.tensor)
  mesh = sharding.make_mesh(*axes, devices=devices)
  (height, width), channels = config.image_size, config.data.channels
  copies = 5 if config.ema else 4  # parameters, gradient and two moments, in float32
  state = 4 * copies * models.count(model, height, width, channels)
  images = config.batch_size // config.accumulate // (mesh.shape['data'] * mesh.shape['fsdp'])
  state //= mesh.shape['fsdp'] * mesh.shape['tensor']
  remat = memory.fitting_remat(
    model,
    batch=images,
    tokens=encoded_tokens(config, model),
    others=state + images * method(config.task).head_bytes(config, model),
    memory=int(limit),
    platform=platform,
  )
  return model.clone(remat=remat, unroll=model.unroll or (None if remat == 'none' else 1))


def encoded_tokens(config: FrozenConfigDict, model: memory.Blocks) -> list[int]:
  """The tokens of each image of an example that an update encodes: it, or views of it."""
  sizes = method(config.task).sizes(config)
  cells = (math.prod(side // patch for side, patch in zip(size, model.patch)) for size in sizes)
  return [count + getattr(model, 'prefix', 0) for count in cells]


def make_schedule(section: FrozenConfigDict, epoch: float, total: int) -> optim.Schedule:
  """The config's learning rate, its durations turned into steps: a percentage is of its own."""
  begin = optim.steps(section.begin, epoch=epoch, total=total)
  steps = functools.partial(optim.steps, epoch=epoch, total=total - begin)
  durations = {name: steps(section[name]) for name in ('warmup', 'cooldown', 'timescale')}
  boundaries = tuple(steps(duration) for duration in section.boundaries)
  fields = dict(section) | durations | {'boundaries': boundaries, 'begin': begin}
  return optim.make_schedule(**fields, total=total)


def make_transforms(
  data: FrozenConfigDict, size: tuple[int, int], source: sources.Source
) -> dict[str, transforms.Transform]:
  """The config's transforms for 'train' and 'evaluation', tried on an image of the training set."""
  lines = {'train': data.augment, 'evaluation': data.preprocess}
  composed = {use: transforms.compose(line, size, data.channels) for use, line in lines.items()}
  image = first_image(source, data.channels)
  for use, transform in composed.items():
    height, width = output_size(transform, image, use)
    if (height, width) != tuple(size):
      raise ValueError(
        f'the {use} transforms give images of {height}x{width} pixels, image_size is '
        f'{size[0]}x{size[1]}'
      )
  return composed


def describe_crops(
  data: FrozenConfigDict,
  size: tuple[int, int],
  composed: Mapping[str, transforms.Transform],
  image: np.ndarray,
) -> Iterator[str]:
  """A line for each of the transforms whose crop leaves less than MIN_CROP of an image."""
  for use, line in (('train', data.augment), ('evaluation', data.preprocess)):
    fraction = transforms.crop_fraction(composed[use], image)
    if fraction < MIN_CROP:
      yield (
        f'the {use} transforms {line!r} show {fraction:.1%} of an image at {size[0]}x{size[1]}: '
        "'resize(scale=8/7)' and 'resize_small(scale=8/7)' follow image_size"
      )


def output_size(transform: transforms.Transform, image: np.ndarray, use: str) -> tuple[int, int]:
  """(height, width) of what transforms make of an image; ValueError if that is no image."""
  try:
    output = transform(image, np.random.default_rng(0))
  except ValueError:
    raise
  except (Exception, SystemExit) as error:  # of a step from elsewhere, whatever it does
    raise ValueError(f'the {use} transforms fail: {error_line(error)}') from error
  is_array = isinstance(output, np.ndarray)
  channels = transform.channels
  if not is_array or output.dtype != np.uint8 or output.shape[2:] != (channels,):
    form = f'{output.dtype} {output.shape}' if is_array else type(output).__name__
    raise ValueError(f'the {use} transforms give {form}, must give uint8 (H, W, {channels})')
  return output.shape[0], output.shape[1]


def with_data_options(config: FrozenConfigDict) -> FrozenConfigDict:
  """The config with what `data.columns` and `data.antialias` make of its source and transforms.

  The columns become part of the source's name, by which all else opens it; antialiasing part of
  the lines, where the config asks for it or reads people's own photos.
  """
  whole = config.to_dict()
  data = whole['data']
  data['source'] = sources.with_columns(config.data.source, config.data.columns)
  data['columns'] = ''
  if sources.antialiases(config.data.source, config.data.antialias):
    for field in ('augment', 'preprocess'):
      data[field] = transforms.antialiased(data[field])
  return FrozenConfigDict(whole)


def with_metric(config: FrozenConfigDict, task: Task) -> FrozenConfigDict:
  """The config with a metric that the task ranks by: its usual one where it names none."""
  names = [*task.ranks, *task.more_ranks] + [knn.ACCURACY] * bool(config.evaluation.knn)
  metric = config.evaluation.metric or names[0]
  if (metric.removeprefix('ema_') if config.ema else metric) not in names:
    if metric.removeprefix('ema_') == knn.ACCURACY and not config.evaluation.knn:
      raise ValueError(f'evaluation.metric is {metric!r}, needs a labelled set in evaluation.knn')
    raise ValueError(f'unknown evaluation.metric {metric!r}{nearest(metric, names)}')
  whole = config.to_dict()
  whole['evaluation']['metric'] = metric
  return FrozenConfigDict(whole)


def make_probe(config: FrozenConfigDict, task: Task) -> knn.Probe | None:
  """What measures the config's run by nearest neighbours, if it is to be."""
  evaluation = config.evaluation
  if not evaluation.knn:
    return None
  if getattr(task.model, 'pool', '') == 'none':
    raise ValueError("evaluation.knn needs features of images: model.pool 'none' gives patches'")
  try:
    splits = {'train': evaluation.knn_train, 'test': evaluation.knn_test}
    return knn.open_probe(evaluation.knn, **splits, k=evaluation.knn_k)
  except (ValueError, OSError) as error:
    raise ValueError(f'evaluation.knn: {error}') from error


def open_splits(config: FrozenConfigDict) -> dict[str, sources.Source]:
  """The config's sources by use, checked to be fit for training."""
  data, name = config.data, config.data.source
  named = {use: data[use] for use in ('train', 'validation', 'test') if data[use]}
  splits = sources.open_splits(name, named)
  train = splits['train']
  if config.batch_size > len(train):
    raise ValueError(
      f'batch_size {config.batch_size} exceeds the {len(train)} training images of {name}'
    )
  for use, source in splits.items():
    if source.classes != train.classes:
      raise ValueError(f'{name}: split {data[use]!r} has other classes than {use!r}')
    if use != 'train' and (shared := sources.overlap(train, source)):
      raise ValueError(
        f'data.{use} {data[use]!r} overlaps data.train {data.train!r} of {name}: '
        f'{quantity(shared, "image")} in common'
      )
  return splits


def check_labels(config: FrozenConfigDict, source: sources.Source, scores: str) -> None:
  """Raises ValueError for labels that a loss with such scores cannot learn."""
  if source.empty_classes:
    names = first_few([repr(printable(name)) for name in source.empty_classes])
    message = f'{config.data.source}: no images of class {names} in train'
    raise ValueError(sources.explained(message, source))
  if scores == 'softmax' and label_shape(source):
    raise ValueError(
      f"images of {config.data.source} are multi-label: objective.loss must be 'sigmoid'"
    )


def check_division(config: FrozenConfigDict, mesh: Mesh) -> None:
  """Raises ValueError if the batch does not divide by the devices, and that by `accumulate`."""
  sharding.batch_shard(config.batch_size, mesh)
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if config.batch_size % (config.accumulate * parts):
    raise ValueError(
      f'batch_size {config.batch_size} does not divide into accumulate={config.accumulate} '
      f'micro-batches on {quantity(parts, "device")}'
    )
