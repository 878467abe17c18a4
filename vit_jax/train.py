"""Training: the state, one step as a pure function, and the loop.

B batch, K classes.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax import bundle, checkpoint, metrics, models, objective, optim, sharding
from vit_jax.evaluate import accuracy

Array = jax.Array


@flax.struct.dataclass
class State:
  """All that training changes; everything else follows from the config.

  Fields:
    step: updates made, () int32.
    params: the model's parameters, float32.
    opt_state: the optimiser's.
    ema: averaged parameters, or None.
  """

  step: Array
  params: Any
  opt_state: Any
  ema: Any

  @property
  def model_params(self) -> Any:
    """What becomes the model: the average where one is kept."""
    return self.params if self.ema is None else self.ema


def make_step(
  loss: Callable[[Any, objective.Batch, Array], tuple[Array, objective.Sums]],
  tx: optax.GradientTransformation,
  schedule: optim.Schedule,
  *,
  seed: int = 0,
  accumulate: int = 1,
  ema: float = 0.0,
) -> Callable[[State, objective.Batch], tuple[State, dict[str, Any]]]:
  """One update as a pure function: step(state, batch) -> state, measured.

  An update whose loss or gradient is not finite is left out: only the step counts on.

  Args:
    loss: of `objective.make_objective`.
    tx: the optimiser.
    schedule: its learning rate, to be logged.
    seed: of dropout: the key is fold_in(seed, step).
    accumulate: micro-batches that the gradient is summed over, each with a key of its own.
    ema: decay of the averaged parameters.
  """

  def step(state: State, batch: objective.Batch) -> tuple[State, dict[str, Any]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    sums, grads = gradient(loss, state.params, batch, key, accumulate=accumulate)
    norm = optax.global_norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = None
    if state.ema is not None:
      average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, state.ema, params)
    finite = jnp.isfinite(sums['loss']) & jnp.isfinite(norm)
    new, old = (params, opt_state, average), (state.params, state.opt_state, state.ema)
    kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    latest = {'grad_norm': norm, 'learning_rate': schedule(state.step)}
    return State(state.step + 1, *kept), {'sums': sums, 'latest': latest, 'finite': finite}

  return step


def gradient(
  loss: Callable[..., Any], params: Any, batch: objective.Batch, key: Array, *, accumulate: int
) -> tuple[objective.Sums, Any]:
  """Sums over the batch and the gradient of its mean loss, in equal micro-batches."""
  summed = jax.grad(loss, has_aux=True)

  def add(total: Any, indexed: tuple[Array, objective.Batch]) -> tuple[Any, None]:
    index, micro = indexed
    grads, sums = summed(params, micro, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, (grads, sums)), None

  if accumulate == 1:
    grads, sums = summed(params, batch, jax.random.fold_in(key, 0))
  else:
    # Row j of micro-batch i is row j * accumulate + i: a device's rows stay on it.
    micro = {
      name: rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1)
      for name, rows in batch.items()
    }
    first = jax.tree.map(lambda rows: rows[0], micro)
    zeros = jax.tree.map(
      lambda shape: jnp.zeros(shape.shape, shape.dtype),
      jax.eval_shape(summed, params, first, key),
    )
    (grads, sums), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))
  count = jnp.maximum(sums['count'], 1)
  return sums, jax.tree.map(lambda g: g / count, grads)


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that follows from a config before anything is computed; its making checks every name.

  Fields named as in the config are the config's; durations are in steps.
  """

  config: Any
  mesh: Mesh
  model: nn.Module
  classes: tuple[str, ...]
  splits: dict[str, Any]
  transforms: dict[str, Any]
  total: int
  evaluate_every: int
  checkpoint_every: int
  patience: int
  log_every: int
  step: Callable[[State, objective.Batch], tuple[State, dict[str, Any]]]
  loss: Callable[..., Any]
  tx: optax.GradientTransformation

  @property
  def preprocess(self) -> bundle.Preprocess:
    data = self.config.data
    return bundle.Preprocess(data.preprocess, self.config.image_size, data.mean, data.std)

  @property
  def averaged(self) -> bool:
    return self.config.ema > 0

  def init(self) -> State:
    """A new state, made in place on the mesh; the same for every mesh."""
    return jax.jit(self.new_state, out_shardings=self.shardings())()

  def new_state(self) -> State:
    images = jnp.zeros((1, *self.config.image_size, 3))
    params = self.model.init(jax.random.key(self.config.seed), images)['params']
    average = jax.tree.map(jnp.copy, params) if self.averaged else None
    return State(jnp.zeros((), jnp.int32), params, self.tx.init(params), average)

  def shapes(self) -> State:
    """The state's shapes, types and shardings, without its arrays."""
    shapes = jax.eval_shape(self.new_state)
    return jax.tree.map(
      lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
      shapes,
      sharding.tree_sharding(shapes, self.mesh),
    )

  def shardings(self) -> State:
    return jax.tree.map(lambda leaf: leaf.sharding, self.shapes())

  def reading(self) -> Any:
    from vit_jax.data import pipeline

    system = self.config.system
    share = sharding.batch_share(self.config.batch_size, self.mesh)
    return pipeline.Reading(share=share, threads=system.threads, workers=system.workers)

  @contextlib.contextmanager
  def training_batches(self, start: int) -> Iterator[Iterator[objective.Batch]]:
    """Global batches on the mesh from step `start` on."""
    from vit_jax.data import pipeline

    config = self.config
    with pipeline.training_batches(
      self.splits['train'],
      self.transforms['train'],
      batch_size=config.batch_size,
      seed=config.seed,
      start=start,
      reading=self.reading(),
    ) as batches:
      yield sharding.prefetch(batches, self.mesh, depth=config.system.prefetch)

  def evaluate(self, step: Callable[..., Any], params: Any, split: str) -> dict[str, float]:
    """Loss and accuracy of parameters on a split."""
    from vit_jax.data import pipeline

    with pipeline.evaluation_batches(
      self.splits[split],
      self.transforms['evaluation'],
      batch_size=self.config.batch_size,
      reading=dataclasses.replace(self.reading(), workers=0),
    ) as batches:
      return accuracy.over(step, params, sharding.prefetch(batches, self.mesh))


def make_plan(config: Any) -> Plan:
  """Reads the config once and checks what it names.

  Raises:
    ValueError: for a name, size or combination that cannot be.
  """
  from vit_jax.data import sources, transforms

  data, system = config.data, config.system
  mesh = sharding.make_mesh(system.data, system.fsdp, system.tensor)
  sharding.batch_share(config.batch_size, mesh)
  if config.batch_size % (config.accumulate * mesh.shape['data'] * mesh.shape['fsdp']):
    raise ValueError(
      f'batch_size {config.batch_size} does not divide into accumulate={config.accumulate} '
      f'micro-batches on {mesh.shape["data"] * mesh.shape["fsdp"]} devices'
    )
  named = {'train': data.train, 'validation': data.validation, 'test': data.test}
  splits = {use: sources.open_source(data.source, name) for use, name in named.items() if name}
  classes = splits['train'].classes
  epoch = len(splits['train']) / config.batch_size
  total = optim.steps(config.duration, epoch=epoch)
  check_metric(config)
  if total < 1:
    raise ValueError(f'duration {config.duration!r} is less than a step')

  def steps(duration: int | str) -> int:
    return optim.steps(duration, epoch=epoch, total=total)

  fields = dict(config.model)
  accelerated = jax.default_backend() != 'cpu'
  fields['dtype'] = fields['dtype'] or ('bfloat16' if accelerated else 'float32')
  model = models.build(fields.pop('name'), num_classes=len(classes), **fields)
  models.check_size(model, config.image_size)
  settings = dict(config.schedule) | {
    'total': total,
    'warmup': steps(config.schedule.warmup),
    'cooldown': steps(config.schedule.cooldown),
    'timescale': steps(config.schedule.timescale),
    'boundaries': tuple(steps(duration) for duration in config.schedule.boundaries),
  }
  schedule = optim.make_schedule(**settings)
  tx = optim.make_optimizer(schedule=schedule, **config.optimizer)
  loss = objective.make_objective(model.apply, mean=data.mean, std=data.std, **config.objective)
  ready = {
    'train': transforms.compose(data.augment, config.image_size),
    'evaluation': transforms.compose(data.preprocess, config.image_size),
  }
  for use, transform in ready.items():
    check_transform(use, transform, splits['train'][0]['image'], config.image_size)
  return Plan(
    config=config,
    mesh=mesh,
    model=model,
    classes=classes,
    splits=splits,
    transforms=ready,
    total=total,
    evaluate_every=steps(config.evaluation.every) if data.validation else 0,
    checkpoint_every=steps(config.checkpoint.every),
    patience=steps(config.evaluation.patience),
    log_every=steps(system.log_every),
    step=make_step(
      loss, tx, schedule, seed=config.seed, accumulate=config.accumulate, ema=config.ema
    ),
    loss=loss,
    tx=tx,
  )


def check_metric(config: Any) -> None:
  """Raises ValueError if what ranks the evaluations is not among what they measure."""
  known = ['accuracy', 'loss'] + ['ema_accuracy', 'ema_loss'] * (config.ema > 0)
  metric = config.evaluation.metric
  if metric not in known:
    raise ValueError(f'unknown evaluation.metric {metric!r}{models.nearest(metric, known)}')
  if not config.data.validation and optim.steps(config.evaluation.patience, epoch=1e9, total=10**9):
    raise ValueError('evaluation.patience needs a split to look at: data.validation is empty')


def check_transform(use: str, transform: Any, image: Any, size: tuple[int, int]) -> None:
  """Raises ValueError if the transforms do not give images of the size that the model takes."""
  rows, columns, _ = transform(image, np.random.default_rng(0)).shape
  if (rows, columns) != tuple(size):
    raise ValueError(
      f'the {use} transforms give images of {rows}x{columns} pixels, image_size is '
      f'{size[0]}x{size[1]}'
    )


def train(plan: Plan, workdir: str | os.PathLike[str]) -> bool:
  """Carries out a run, or goes on with it where it was; writes the model at its end.

  Args:
    plan: of `make_plan`.
    workdir: the run's folder, which `claim` has made this plan's.

  Returns:
    Whether the run is finished: False if it was interrupted, and saved.

  Raises:
    FloatingPointError: when a loss or gradient is not finite; names the step and the tensor.
    OSError: when a checkpoint cannot be written.
  """
  config, folder = plan.config, pathlib.Path(workdir)
  display = metrics.Display(plan.total)
  if (folder / 'model' / bundle.DESCRIPTION).exists():
    display.say(f'{folder} is finished: its model is in {folder / "model"}')
    return True
  saved = checkpoint.Checkpoints(
    folder / 'checkpoints',
    keep_latest=config.checkpoint.keep_latest,
    keep_best=config.checkpoint.keep_best,
    metric=config.evaluation.metric,
    say=display.say,
  )
  start, state = saved.restore(plan.shapes()) or (0, plan.init())
  introduce(plan, start, display)
  log = metrics.Log(folder, start=start)
  with contextlib.closing(saved), contextlib.closing(log), display:
    evaluate = Evaluator(plan, log, display)
    step, state = loop(plan, state, start, evaluate, saved, log, display)
    finished = step == plan.total or is_stale(plan, step, saved)
    if finished:
      finish(plan, state, step, evaluate, saved, folder, display)
    else:
      display.say(f'stopped at step {step}, saved: the same command goes on from there')
  return finished


def loop(
  plan: Plan,
  state: State,
  step: int,
  evaluate: 'Evaluator',
  saved: checkpoint.Checkpoints,
  log: metrics.Log,
  display: metrics.Display,
) -> tuple[int, State]:
  """Updates until the end, or until patience or the user ends it: the last step and state."""
  stale = is_stale(plan, step, saved)
  if stale or step == plan.total:
    return step, state
  with (
    interruption(display.say) as interrupted,
    plan.training_batches(step) as batches,
    jax.transfer_guard('disallow'),
  ):
    first = next(batches)
    update = display.compiled('training step', jax.jit(plan.step, donate_argnums=0), state, first)
    batches = itertools.chain([first], batches)
    watch = Watch(plan, log, display)
    while step < plan.total and not stale:
      batch = watch.waiting(lambda: next(batches))
      state, measured = update(state, batch)
      step += 1
      watch.add(step, state, batch, measured)
      stop = interrupted() or saved.interrupted(step)
      evaluation = due(step, plan.evaluate_every, plan.total)
      if evaluation or stop or step == plan.total or due(step, plan.checkpoint_every, plan.total):
        with watch.settled(state):
          saved.save(step, state, evaluate(step, state) if evaluation else None)
          stale = is_stale(plan, step, saved)
      if stop:
        break
    watch.settle(state)
  return step, state


def due(step: int, every: int, total: int) -> bool:
  """Whether something done every so many steps, and at the end, is due; 0 is never."""
  return bool(every) and (step % every == 0 or step == total)


def is_stale(plan: Plan, step: int, saved: checkpoint.Checkpoints) -> bool:
  """Whether no evaluation has been better than the best for as long as patience lasts."""
  best = saved.best_step() if plan.patience else None
  return best is not None and step - best >= plan.patience


class Evaluator:
  """Measures a state, and tells the result."""

  def __init__(self, plan: Plan, log: metrics.Log, display: metrics.Display):
    data = plan.config.data
    self.plan, self.log, self.display = plan, log, display
    step = accuracy.make_step(
      plan.model.apply, mean=data.mean, std=data.std, loss=plan.config.objective.loss
    )
    self.step: Callable[..., Any] = display.compiled_once('evaluation step', jax.jit(step))

  def __call__(self, step: int, state: State) -> dict[str, float]:
    """Validation of the parameters, and of their average as 'ema_loss' and 'ema_accuracy'."""
    values = self.plan.evaluate(self.step, state.params, 'validation')
    if state.ema is not None:
      averaged = self.plan.evaluate(self.step, state.ema, 'validation')
      values |= {f'ema_{name}': averaged[name] for name in ('loss', 'accuracy')}
    self.tell(step, 'validation', values)
    return values

  def test(self, step: int, state: State) -> None:
    """The test split, with the parameters that become the model."""
    self.tell(step, 'test', self.plan.evaluate(self.step, state.model_params, 'test'))

  def tell(self, step: int, split: str, values: dict[str, float]) -> None:
    self.log.write(step, metrics.prefixed(split, values))
    shown = [f'{name} {value:.4f}' for name, value in values.items() if name != 'count']
    self.display.say(f'step {step}  {split}  {"  ".join(shown)}  ({values["count"]:.0f} images)')


class Watch:
  """Reads each step's numbers one step later, so that the device never waits for them."""

  def __init__(self, plan: Plan, log: metrics.Log, display: metrics.Display):
    self.plan, self.log, self.display = plan, log, display
    self.meter = metrics.Meter()
    self.waiting = self.meter.waiting
    self.pending: tuple[int, objective.Batch, dict[str, Any]] | None = None

  def add(self, step: int, state: State, batch: objective.Batch, measured: Any) -> None:
    """Takes the numbers of the update to `step`, and reads those of the one before."""
    self.settle(state)
    self.pending = (step, batch, measured)

  def settle(self, state: State) -> None:
    """Reads what is pending; raises FloatingPointError if it is not finite."""
    if self.pending is None:
      return
    step, batch, measured = self.pending
    self.pending = None
    measured = jax.device_get(measured)
    if not measured['finite']:
      with jax.transfer_guard('allow'):
        tensor = first_nonfinite(self.plan, step, state.params, batch)
      raise FloatingPointError(f'step {step}: {tensor} is not finite; nothing of it was saved')
    self.meter.add(measured['sums'], measured['latest'])
    self.display.step(step)
    if due(step, self.plan.log_every, self.plan.total):
      values = self.meter.read()
      if peak := metrics.peak_flops():
        used = 3 * self.plan.model.flops(*self.plan.config.image_size)
        values['mfu'] = used * values['images_per_second'] / (peak * jax.device_count())
      self.log.write(step, metrics.prefixed('train', values))
      self.display.show(step, values)

  @contextlib.contextmanager
  def settled(self, state: State) -> Iterator[None]:
    """Reads what is pending, and keeps what follows out of the rates."""
    self.settle(state)
    with self.meter.paused():
      yield


def first_nonfinite(plan: Plan, step: int, params: Any, batch: objective.Batch) -> str:
  """The first tensor of an update to `step` that is not finite, in the order of computation."""
  data = plan.config.data

  def flags(params: Any, batch: objective.Batch) -> dict[str, Array]:
    key = jax.random.fold_in(jax.random.key(plan.config.seed), step - 1)
    images = objective.normalize(batch['image'], data.mean, data.std)
    logits, out = plan.model.apply(
      {'params': params}, images, train=True, rngs={'dropout': jax.random.fold_in(key, 0)}
    )
    named = {f'parameter {k}': v for k, v in bundle.flat(params).items()}
    named |= {'images': images, 'embedded': out['embedded']}
    named |= {f'blocks[{i}]': block for i, block in enumerate(out['blocks'])}
    named |= {'pre_logits': out['pre_logits'], 'logits': logits}
    if jnp.issubdtype(batch['label'].dtype, jnp.floating):
      named['labels'] = batch['label']
    sums, grads = gradient(plan.loss, params, batch, key, accumulate=plan.config.accumulate)
    named |= {'loss': sums['loss']}
    named |= {f'gradient of {k}': v for k, v in bundle.flat(grads).items()}
    return {name: jnp.isfinite(value).all() for name, value in named.items()}

  found = jax.device_get(jax.jit(flags)(params, batch))
  # jit sorts the keys of a dict; the order of computation is that of `flags`.
  order = jax.eval_shape(flags, params, batch)
  return next((name for name in order if not found[name]), 'the gradient norm')


@contextlib.contextmanager
def interruption(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
  """SIGTERM and Ctrl-C ask the loop to end after its step; the second one ends it at once.

  With several processes SIGTERM is left to Orbax, which has all of them stop at the same step.
  """
  asked = threading.Event()
  signals = [signal.SIGINT, signal.SIGTERM] if jax.process_count() == 1 else []
  if threading.current_thread() is not threading.main_thread():
    signals = []

  def ask(number: int, _: Any) -> None:
    say(f'{signal.Signals(number).name}: saving after this step; once more ends at once')
    asked.set()
    restore()

  before = {number: signal.getsignal(number) for number in signals}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  for number in signals:
    signal.signal(number, ask)
  try:
    yield asked.is_set
  finally:
    restore()


def claim(workdir: str | os.PathLike[str], config: Any) -> None:
  """Makes the folder this run's, or makes sure that it is.

  Raises:
    ValueError: if it holds a run with another config; names the fields.
    OSError: if it cannot be written.
  """
  folder = pathlib.Path(workdir)
  ours = json.loads(json.dumps(config.to_dict()))
  file = folder / 'config.json'
  if file.exists():
    theirs = json.loads(file.read_text())
    differing = [
      f'{name} is {old!r} there and {new!r} here'
      for name, old, new in differences(theirs, ours)
      if not name.startswith('system.')
    ]
    if differing:
      raise ValueError(f'{folder} holds another run: {"; ".join(differing)}')
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix('.partial')
    partial.write_text(json.dumps(ours, indent=1))
    os.replace(partial, file)


def differences(old: Any, new: Any, prefix: str = '') -> Iterator[tuple[str, Any, Any]]:
  """(name, old value, new value) of every field in which two nested dicts differ."""
  for name in [*old, *(name for name in new if name not in old)]:
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      yield from differences(a, b, f'{prefix}{name}.')
    elif a != b:
      yield prefix + name, a, b


def introduce(plan: Plan, start: int, display: metrics.Display) -> None:
  """Says what is about to be trained, on what and with what."""
  config, mesh = plan.config, plan.mesh
  shape = (*config.image_size, 3)
  for line in metrics.summary(plan.model, plan.shapes().params, shape, config.batch_size):
    display.say(line)
  device = jax.devices()[0]
  grid = ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  display.say(
    f'{config.model.name} in {plan.model.dtype} on {mesh.size} {device.device_kind} ({grid}); '
    f'{len(plan.splits["train"]):,} training images of {config.data.source}, '
    f'{len(plan.classes)} classes, {plan.total:,} steps'
  )
  if start:
    display.say(f'goes on from step {start}')


def finish(
  plan: Plan,
  state: State,
  step: int,
  evaluate: Evaluator,
  saved: checkpoint.Checkpoints,
  folder: pathlib.Path,
  display: metrics.Display,
) -> None:
  """Takes the best state if patience asks for it, tests it, and writes the model."""
  best = saved.best_step() if plan.patience else None
  if best is not None and best != step:
    saved.wait()
    restored = saved.restore(plan.shapes(), best)
    if restored is not None:
      state = restored[1]
      display.say(f'takes the parameters of step {best}, the best on validation')
  if 'test' in plan.splits:
    evaluate.test(step, state)
  model = bundle.Bundle(
    plan.model, gathered(state.model_params), plan.classes, plan.preprocess, plan.config.model.name
  )
  if jax.process_index() == 0:
    bundle.write(folder / 'model', model)
  checkpoint.sync('bundle')
  display.say(f'the model is in {folder / "model"}; try: vit predict {folder} IMAGE...')


def gathered(tree: Any) -> Any:
  """A tree of arrays on the mesh, whole and on the host of every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
