"""Training: the state, one step as a pure function, and the loop.

B batch, K classes.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax import (
  bundle,
  card,
  checkpoint,
  metrics,
  models,
  objective,
  optim,
  provenance,
  sharding,
)
from vit_jax.data import pipeline
from vit_jax.evaluate import accuracy
from vit_jax.plan import Plan

Array = jax.Array


@flax.struct.dataclass
class State:
  """All that training changes; everything else follows from the config.

  Fields:
    step: updates made, () int32.
    params: the model's parameters, float32.
    opt_state: the optimiser's, of what is trained.
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
  frozen: optim.Frozen = optim.ALL_TRAINED,
) -> Callable[[State, objective.Batch], tuple[State, dict[str, Any]]]:
  """One update as a pure function: step(state, batch) -> state, measured.

  With a loss or gradient that is not finite nothing is updated but the step; 'finite' says whether
  these and the update were.

  Args:
    loss: of `objective.make_objective`.
    tx: the optimiser.
    schedule: its learning rate, to be logged.
    seed: of dropout: the key is fold_in(seed, step).
    accumulate: micro-batches that the gradient is summed over, each with a key of its own.
    ema: decay of the averaged parameters.
    frozen: what is not trained: it stays as it is, to the bit, in the average too.
  """

  def update(state: State, grads: Any) -> tuple[State, Array]:
    trained = frozen.rest(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    average = None
    if state.ema is not None:
      mean = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, frozen.rest(state.ema), trained)
      average = frozen.with_rest(state.ema, mean)
    params = frozen.with_rest(state.params, trained)
    new = State(state.step + 1, params, opt_state, average)
    return new, jnp.isfinite(optax.tree.norm(updates))

  def leave(state: State, grads: Any) -> tuple[State, Array]:
    skipped = State(state.step + 1, state.params, state.opt_state, state.ema)
    return skipped, jnp.asarray(False)

  def step(state: State, batch: objective.Batch) -> tuple[State, dict[str, Any]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    sums, grads = gradient(loss, state.params, batch, key, accumulate=accumulate, frozen=frozen)
    norm = optax.tree.norm(grads)
    usable = jnp.isfinite(sums['loss']) & jnp.isfinite(norm)
    # A branch, as a choice between old and new would hold both in memory.
    new, finite = jax.lax.cond(usable, update, leave, state, grads)
    latest = {'grad_norm': norm, 'learning_rate': schedule(state.step)}
    return new, {'sums': sums, 'latest': latest, 'finite': finite}

  return step


def gradient(
  loss: Callable[..., Any],
  params: Any,
  batch: objective.Batch,
  key: Array,
  *,
  accumulate: int,
  frozen: optim.Frozen = optim.ALL_TRAINED,
) -> tuple[objective.Sums, Any]:
  """Sums over the batch and its mean loss's gradient by what is trained, in equal micro-batches."""

  def loss_of_rest(rest: Any, batch: objective.Batch, key: Array) -> tuple[Array, objective.Sums]:
    return loss(frozen.with_rest(params, rest), batch, key)

  summed, trained = jax.grad(loss_of_rest, has_aux=True), frozen.rest(params)

  def add(total: Any, indexed: tuple[Array, objective.Batch]) -> tuple[Any, None]:
    index, micro = indexed
    grads, sums = summed(trained, micro, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, (grads, sums)), None

  if accumulate == 1:
    grads, sums = summed(trained, batch, jax.random.fold_in(key, 0))
  else:
    # Row j of micro-batch i is row j * accumulate + i: a device's rows stay on it.
    micro = {
      name: rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1)
      for name, rows in batch.items()
    }
    first = jax.tree.map(lambda rows: rows[0], micro)
    zeros = jax.tree.map(
      lambda shape: jnp.zeros(shape.shape, shape.dtype),
      jax.eval_shape(summed, trained, first, key),
    )
    (grads, sums), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))
  count = jnp.maximum(sums['count'], 1)
  return sums, jax.tree.map(lambda g: g / count, grads)


def first_state(plan: Plan, params: Any) -> State:
  """The state of those parameters before the first step."""
  average = jax.tree.map(jnp.copy, params) if plan.config.ema else None
  return State(jnp.zeros((), jnp.int32), params, plan.tx.init(plan.frozen.rest(params)), average)


def new_state(plan: Plan) -> State:
  """A state before its first step, with parameters drawn from the seed."""
  images = jnp.zeros((1, *plan.config.image_size, 3))
  return first_state(plan, plan.model.init(jax.random.key(plan.config.seed), images)['params'])


def abstract_state(plan: Plan) -> State:
  """Shapes, types and shardings of the state, without its arrays."""
  shapes = jax.eval_shape(lambda: new_state(plan))
  return jax.tree.map(
    lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
    shapes,
    sharding.tree_sharding(shapes, plan.mesh),
  )


def placed_state(plan: Plan) -> State:
  """A first state, made in place on the mesh; the same for every mesh."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(plan))
  if plan.pretrained is None:
    return jax.jit(lambda: new_state(plan), out_shardings=shardings)()
  params = sharding.place(plan.pretrained().params, plan.mesh)
  first = functools.partial(first_state, plan)
  return jax.jit(first, out_shardings=shardings, donate_argnums=0)(params)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run writes to, for the functions that carry it out."""

  plan: Plan
  folder: pathlib.Path
  saved: checkpoint.Checkpoints
  log: metrics.Log
  display: metrics.Display
  unreadable: dict[str, pipeline.Unreadable]  # by use of the split
  ends: float  # of `time.monotonic()`, when the time limit is over


def train(plan: Plan, workdir: str | os.PathLike[str], *, command: str = '') -> bool:
  """Carries out a run, or goes on with it where it was; writes the model at its end.

  Args:
    plan: of `make_plan`.
    workdir: the run's folder, which `claim` has made this plan's.
    command: the line that was typed, for the record; '' where there was none.

  Returns:
    Whether the run is finished: False if it was interrupted or its time was over, and it is saved.

  Raises:
    FloatingPointError: when a loss or gradient is not finite; names the step and the tensor.
    OSError: when the record or a checkpoint cannot be written.
  """
  folder = pathlib.Path(workdir)
  ends = time.monotonic() + (plan.time_limit or float('inf'))
  display = metrics.Display(plan.total)
  if checkpoint.agreed(bundle.exists(folder / 'model')):
    display.say(f'{folder} is finished: its model is in {folder / "model"}')
    return True
  if jax.process_index() == 0:
    provenance.record(folder, command)
  with contextlib.closing(checkpoints(plan, folder, display.say)) as saved:
    finished = carry_out(plan, folder, saved, display, ends)
  if finished:  # and nothing of it is left on the devices
    tell_end(plan, folder, display.say)
  return finished


def checkpoints(
  plan: Plan, folder: pathlib.Path, say: Callable[[str], None]
) -> checkpoint.Checkpoints:
  """Those of a run."""
  how = plan.config.checkpoint
  return checkpoint.Checkpoints(
    folder / 'checkpoints',
    keep_latest=how.keep_latest,
    keep_best=how.keep_best,
    metric=plan.metric,
    say=say,
  )


def carry_out(
  plan: Plan,
  folder: pathlib.Path,
  saved: checkpoint.Checkpoints,
  display: metrics.Display,
  ends: float,
) -> bool:
  """From the state that was saved, or a first one, to the model, or to where it is stopped."""
  start, state = saved.restore(abstract_state(plan)) or (0, placed_state(plan))
  log = metrics.Log(folder, start=start)
  unreadable = {use: plan.unreadable(use, display.say, folder) for use in plan.splits}
  run = Run(plan, folder, saved, log, display, unreadable, ends)
  introduce(run, start)
  with contextlib.closing(log), display:
    evaluate = Evaluator(run)
    step, state = loop(run, state, start, evaluate)
    finished = step == plan.total or is_stale(run, step)
    if finished:
      finish(run, state, step, evaluate)
    else:
      display.say(f'stopped at step {step}, saved: the same command goes on from there')
  return finished


def tell_end(plan: Plan, folder: pathlib.Path, say: Callable[[str], None]) -> None:
  """Writes the report if it is asked for, and says where the model is."""
  if plan.config.system.report:
    from vit_jax import report  # what it needs is loaded when it is needed

    report.after_training(folder, say)
  say(f'the model is in {folder / "model"}; try: vit predict {folder} IMAGE...')


def loop(run: Run, state: State, step: int, evaluate: 'Evaluator') -> tuple[int, State]:
  """Updates until the end, or until patience, time or the user ends it: the last step and state."""
  plan, saved = run.plan, run.saved
  stale = is_stale(run, step)
  if stale or step == plan.total:
    return step, state
  with (
    interruption(run.display.say) as interrupted,
    time_limit(run) as over,
    plan.training_batches(step, run.unreadable['train']) as batches,
    jax.transfer_guard('disallow'),
  ):
    first = next(batches)
    update = run.display.compiled('training step', updater(plan), state, first)
    batches = itertools.chain([first], batches)
    watch = Watch(run)
    while step < plan.total and not stale:
      batch = watch.waiting(lambda: next(batches))
      state, measured = update(state, batch)
      step += 1
      watch.add(step, state, batch, measured)
      stop = interrupted() or over() or saved.interrupted(step)
      evaluation = due(step, plan.evaluate_every, plan.total)
      if evaluation or stop or step == plan.total or due(step, plan.checkpoint_every, plan.total):
        with watch.settled(state):
          saved.save(step, state, evaluate(step, state) if evaluation else None)
          stale = is_stale(run, step)
      if stop:
        break
    watch.settle(state)
  return step, state


def updater(plan: Plan) -> Any:
  """The jitted training step; the state that goes in is gone, its memory is the new one's."""
  config = plan.config
  step = make_step(
    plan.loss,
    plan.tx,
    plan.schedule,
    seed=config.seed,
    accumulate=config.accumulate,
    ema=config.ema,
    frozen=plan.frozen,
  )
  same = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(plan))
  return jax.jit(step, donate_argnums=0, out_shardings=(same, None))


def due(step: int, every: int, total: int) -> bool:
  """Whether something done every so many steps, and at the end, is due; 0 is never."""
  return bool(every) and (step % every == 0 or step == total)


def is_stale(run: Run, step: int) -> bool:
  """Whether the evaluations up to a step have not bettered the best for as long as patience."""
  best = run.saved.best_step() if run.plan.patience else None
  return best is not None and step - step % run.plan.evaluate_every - best >= run.plan.patience


class Evaluator:
  """Measures a state, and tells the result."""

  def __init__(self, run: Run):
    self.run = run
    config = run.plan.config
    step = accuracy.make_step(
      run.plan.model.apply,
      mean=config.data.mean,
      std=config.data.std,
      loss=config.objective.loss,
    )
    self.step: Callable[..., Any] = run.display.compiled_once('evaluation step', jax.jit(step))

  def __call__(self, step: int, state: State) -> dict[str, float]:
    """Validation of the parameters, and of their average as 'ema_loss' and 'ema_accuracy'."""
    values = self.over('validation', state.params)
    if state.ema is not None:
      averaged = self.over('validation', state.ema)
      values |= {f'ema_{name}': averaged[name] for name in ('loss', 'accuracy')}
    self.tell(step, 'validation', values)
    return values

  def test(self, step: int, state: State) -> None:
    """The test split, with the parameters that become the model."""
    self.tell(step, 'test', self.over('test', state.model_params))

  def over(self, use: str, params: Any) -> dict[str, float]:
    unreadable = self.run.unreadable[use]
    with self.run.plan.evaluation_batches(use, unreadable) as batches:
      return accuracy.over(self.step, params, batches) | {'bad_images': unreadable.count}

  def tell(self, step: int, split: str, values: dict[str, float]) -> None:
    self.run.log.write(step, metrics.prefixed(split, values))
    counts = f'{values["count"]:.0f} images'
    if bad := values.get('bad_images'):
      counts += f', {bad} unreadable'
    shown = [f'{k} {value:.4f}' for k, value in values.items() if k not in ('count', 'bad_images')]
    self.run.display.say(f'step {step}  {split}  {"  ".join(shown)}  ({counts})')


class Watch:
  """Reads each step's numbers one step later, so that the device never waits for them."""

  def __init__(self, run: Run):
    self.run = run
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
        try:
          tensor = first_nonfinite(self.run.plan, step, state.params, batch)
        except jax.errors.JaxRuntimeError:  # there may be no memory for a whole batch at once
          tensor = 'the loss or the gradient'
      raise FloatingPointError(f'step {step}: {tensor} is not finite; nothing of it was saved')
    self.meter.add(measured['sums'], measured['latest'])
    plan, display = self.run.plan, self.run.display
    display.step(step)
    if due(step, plan.log_every, plan.total):
      values = self.meter.read()
      whole = plan.model.dtype == 'bfloat16' and not plan.frozen
      if whole and (peak := metrics.peak_flops()):
        used = 3 * plan.model.flops(*plan.config.image_size)
        values['mfu'] = used * values['images_per_second'] / (peak * jax.device_count())
      values['bad_images'] = self.run.unreadable['train'].count
      self.run.log.write(step, metrics.prefixed('train', values))
      display.show(step, values)

  @contextlib.contextmanager
  def settled(self, state: State) -> Iterator[None]:
    """Reads what is pending, and keeps what follows out of the rates."""
    self.settle(state)
    with self.meter.paused():
      yield


def first_nonfinite(plan: Plan, step: int, params: Any, batch: objective.Batch) -> str:
  """The first tensor of an update to `step` that is not finite, in the order of computation.

  It is computed again, in one batch, with parameters that may be an update later.
  """
  data = plan.config.data
  names: list[str] = []

  def flags(params: Any, batch: objective.Batch) -> list[Array]:
    key = jax.random.fold_in(jax.random.key(plan.config.seed), step - 1)
    images = objective.normalize(batch['image'], data.mean, data.std)
    logits, out = plan.model.apply(
      {'params': params}, images, train=True, rngs={'dropout': jax.random.fold_in(key, 0)}
    )
    sums, grads = gradient(
      plan.loss, params, batch, key, accumulate=plan.config.accumulate, frozen=plan.frozen
    )
    tensors = [(f'parameter {name}', leaf) for name, leaf in models.flat(params).items()]
    tensors += [('images', images), ('labels', batch['label']), *intermediates(out)]
    tensors += [('logits', logits), ('loss', sums['loss'])]
    tensors += [(f'gradient of {name}', leaf) for name, leaf in models.flat(grads).items()]
    names.extend(name for name, _ in tensors)
    return [jnp.isfinite(tensor).all() for _, tensor in tensors]

  found = jax.device_get(jax.jit(flags)(params, batch))
  return next((name for name, finite in zip(names, found) if not finite), 'the update')


def intermediates(out: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
  """What a model returns beside its logits by name, in order; of stacks, every layer."""
  for name, tensor in out.items():
    if name in ('blocks', 'stages'):
      yield from ((f'{name}[{layer}]', output) for layer, output in enumerate(tensor))
    else:
      yield name, tensor


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


@contextlib.contextmanager
def time_limit(run: Run) -> Iterator[Callable[[], bool]]:
  """Asks the loop to end after its step when the run's time is over.

  With several processes the first one's clock counts: it tells the others as a scheduler would, by
  a SIGTERM to itself, which Orbax has all of them stop for at the same step.
  """
  over = threading.Event()

  def end() -> None:
    run.display.say(f'the time limit, {run.plan.config.time_limit}, is over: saving')
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      over.set()

  if run.ends == float('inf') or jax.process_index() > 0:
    yield over.is_set
    return
  timer = threading.Timer(max(run.ends - time.monotonic(), 0), end)
  timer.daemon = True
  timer.start()
  try:
    yield over.is_set
  finally:
    timer.cancel()


def introduce(run: Run, start: int) -> None:
  """Says what is about to be trained, on what and with what."""
  plan, display = run.plan, run.display
  config, mesh = plan.config, plan.mesh
  shape = (*config.image_size, 3)
  for line in metrics.summary(plan.model, abstract_state(plan).params, shape, config.batch_size):
    display.say(line)
  device = jax.devices()[0]
  grid = ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  display.say(
    f'{config.model.name} in {plan.model.dtype} on {mesh.size} {device.device_kind} ({grid}); '
    f'{len(plan.splits["train"]):,} training images of {config.data.source}, '
    f'{len(plan.classes)} classes, {plan.total:,} steps'
  )
  if plan.frozen:
    display.say(freezing(plan))
  if whole := sharding.unsplit(abstract_state(plan).params, mesh):
    display.say(f'not split as asked, for their axes do not divide: {", ".join(whole)}')
  if start:
    display.say(f'goes on from step {start}')
  elif plan.pretrained:
    display.say(str(plan.pretrained().report))


def freezing(plan: Plan) -> str:
  """How much of the model is trained, and what the rest is."""
  params = abstract_state(plan).params
  trained = metrics.parameters(jax.eval_shape(plan.frozen.rest, params))
  rest = 'the rest is frozen'
  if not plan.config.pretrained:
    rest += ' as it was drawn: without config.pretrained it has learnt nothing'
  return f'trains {trained:,} of {metrics.parameters(params):,} parameters; {rest}'


def finish(run: Run, state: State, step: int, evaluate: Evaluator) -> None:
  """Takes the best state if patience asks for it, tests it, and writes the model."""
  plan, display = run.plan, run.display
  if plan.patience and (best := run.saved.restore_best(abstract_state(plan))):
    step, state = best
    display.say(f'takes the parameters of step {step}, the best on validation')
  if 'test' in plan.splits:
    evaluate.test(step, state)
  model = bundle.Bundle(
    plan.model,
    gathered(state.model_params),
    plan.classes,
    plan.preprocess,
    plan.config.model.name,
    scores=plan.config.objective.loss,
  )
  if jax.process_index() == 0:
    bundle.write(run.folder / 'model', model)
    card.write(run.folder, model, plan.config, step=step)
  checkpoint.sync('bundle')


def gathered(tree: Any) -> Any:
  """A tree of arrays on the mesh, whole and on the host of every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
