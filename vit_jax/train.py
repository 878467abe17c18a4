"""Training, of any task: the loop, what it measures on the way, and what it leaves behind."""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, checkpoint, finish, metrics, pipeline, sharding
from vit_jax.evaluate import knn, results
from vit_jax.evaluate import loop as evaluation
from vit_jax.guards import processes, stopping, writing
from vit_jax.guards.owner import Owner
from vit_jax.pipeline import DataError
from vit_jax.plan import Plan, describe_average
from vit_jax.sources import lines_about
from vit_jax.sources.survey import contrast_warning, sampled_contrasts
from vit_jax.step import Measured, State, untraced
from vit_jax.tasks import Batch, Fixed, Params
from vit_jax.views import report
from vit_jax.workdir import ENVIRONMENT, record


def abstract_state(plan: Plan) -> State:
  """Shapes, types and shardings of the state, without its arrays."""
  return jax.tree.map(
    lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
    plan.state_shapes,
    sharding.tree_sharding(plan.state_shapes, plan.mesh),
  )


def placed_state(plan: Plan) -> State:
  """The first state, initialised in place on the mesh; the same for every mesh."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(plan))
  start = sharding.place(plan.task.start().params, plan.mesh) if plan.task.start else {}
  return jax.jit(plan.first_state, out_shardings=shardings, donate_argnums=0)(start)


@dataclasses.dataclass(frozen=True)
class Training:
  """One start of a run: its plan, and what it writes to."""

  plan: Plan
  fixed: Fixed  # the task's, on the mesh
  owner: Owner
  saved: checkpoint.Checkpoints
  log: metrics.Log
  display: metrics.Display
  unreadable: dict[str, pipeline.Unreadable]  # by use of the split
  ends: float  # when the time limit is over, in `time.monotonic()`

  @property
  def folder(self) -> pathlib.Path:
    """The run's."""
    return self.owner.folder


def owned(workdir: str | os.PathLike[str]) -> Owner:
  """A context in which a run's folder is this process's, or its first process's."""
  return Owner(workdir, first=jax.process_index() == 0, at_end=report.end_live)


def train(
  plan: Plan,
  workdir: str | os.PathLike[str],
  *,
  command: str = '',
  owner: Owner | None = None,
) -> bool:
  """Runs or resumes a run; writes the model at its end.

  Args:
    plan: of `make_plan`.
    workdir: the run's folder, which `claim` has made this plan's.
    command: the line that was typed, for the record; '' where there was none.
    owner: of the folder, where the caller has taken it already.

  Returns:
    Whether the run is finished: False if it was interrupted or its time was over, and it is saved.

  Raises:
    FloatingPointError: when a loss or gradient is not finite; names the step and the tensor.
    OSError: when the record or a checkpoint cannot be written.
    ValueError: when the folder is in use.
  """
  with contextlib.nullcontext(owner) if owner else owned(workdir) as owner:
    return start(plan, owner, command)


def start(plan: Plan, owner: Owner, command: str) -> bool:
  """`train` in a folder that is this process's."""
  folder = owner.folder
  ends = time.monotonic() + (plan.time_limit or float('inf'))
  epoch = len(plan.splits['train']) / plan.config.batch_size
  display = metrics.Display(plan.total, epoch=epoch, batch=plan.config.batch_size)
  if jax.process_index() == 0:
    finish.remove_unfinished(folder)
  lost = finish.lost(plan, folder, display.say)
  if finish.MODEL not in lost:
    finish.remove_best(folder)
  if not lost:
    display.say(f'{folder} is finished: its model is in {folder / "model"}')
    return True
  owner.update(state='starting', total=plan.total)
  if jax.process_index() == 0 and lost & {finish.MODEL, ENVIRONMENT}:
    record(folder, command)
  finished = True
  if lost & {finish.MODEL, results.FILE}:
    with contextlib.closing(plan.checkpoints(folder, display.say)) as saved:
      if finish.MODEL in lost:
        finished = run_to_end(plan, owner, saved, display, ends)
      else:
        measure_again(plan, owner, saved, display)
  if finished:  # and nothing of it is left on the devices
    finish.describe(plan, folder, display.say)
  owner.update(state='finished' if finished else 'stopped')
  return finished


def check_leg(plan: Plan, folder: pathlib.Path, start: int) -> None:
  """Raises OSError where a run's last leg has lost the checkpoint that it begins at."""
  if plan.legs and start < plan.legs[-1].step:
    begin = f'begins at step {plan.legs[-1].step:,}, whose checkpoint is lost'
    raise OSError(
      f'the last leg of {folder} {begin}: the newest is of step {start:,}, from which --change or '
      '--extend begins another'
    )


@contextlib.contextmanager
def training_from(
  start: int,
  plan: Plan,
  owner: Owner,
  saved: checkpoint.Checkpoints,
  display: metrics.Display,
  ends: float = float('inf'),
) -> Iterator[Training]:
  """One start of a run, whose rows of metrics up to a step are those of earlier ones."""
  fixed = sharding.place(plan.task.fixed, plan.mesh)
  unreadable = {use: plan.unreadable(use, display.say, owner.folder) for use in plan.splits}
  others = plan.loggers(owner.folder, display.say)
  log = metrics.Log(owner.folder, start=start, others=others, say=display.say)
  with contextlib.closing(log), display:
    yield Training(plan, fixed, owner, saved, log, display, unreadable, ends)
    log.settle()


def run_to_end(
  plan: Plan,
  owner: Owner,
  saved: checkpoint.Checkpoints,
  display: metrics.Display,
  ends: float,
) -> bool:
  """Trains from the saved state, or a first one, to the model, or to where it is stopped."""
  with stopping.phase('restore'):
    start, state = saved.restore(abstract_state(plan)) or (0, placed_state(plan))
  check_leg(plan, owner.folder, start)
  with training_from(start, plan, owner, saved, display, ends) as training:
    introduce(training, start)
    best = finish.Best(plan, owner.folder, saved, display.say)
    owner.update(step=start, last_save=saved.latest)
    live = finish.Live(plan, owner, training.log, display.say)
    live.resume()
    evaluate = Evaluator(training, best, live)
    evaluate.overdue(start, state)
    step, state = loop(training, state, start, evaluate)
    finished = step == plan.total or is_stale(training, step)
    if finished:
      deliver(training, state, step, evaluate)
    else:
      display.say(f'stopped at step {step}, saved: the same command resumes there')
    live.settle()
  return finished


def measure_again(
  plan: Plan, owner: Owner, saved: checkpoint.Checkpoints, display: metrics.Display
) -> None:
  """Measures the model of a finished run by its checkpoint, where that is still there."""
  step, state = finish.model_step(owner.folder), None
  with stopping.phase('restore'):
    if step in saved.steps():
      state = saved.restore_step(step, abstract_state(plan))
  if state is None:
    folder = shlex.quote(str(owner.folder))
    display.say(f'checkpoint {step} is not there: `vit report {folder}` measures the model')
    return
  with training_from(plan.total, plan, owner, saved, display) as training:
    Evaluator(training).last(step, state)


def loop(training: Training, state: State, start: int, evaluate: 'Evaluator') -> tuple[int, State]:
  """Updates until the end, or until patience, time or the user ends it: the last step and state."""
  plan, saved, step = training.plan, training.saved, start
  if is_stale(training, step) or step == plan.total:
    return step, state
  with (
    stopping.time_limit(training.ends, plan.config.time_limit, training.display.say) as over,
    plan.training_batches(step, training.unreadable['train']) as batches,
    jax.transfer_guard('disallow'),
  ):
    with stopping.phase('data'):
      first = next(batches)
    update = training.display.compiled('training step', updater(plan), state, first, training.fixed)
    processes.meet('the compiled training step')
    watch = Watch(training, itertools.chain([first], batches), saved.sums_at(step) if step else {})
    with stopping.phase('loop'):
      while step < plan.total and (batch := watch.next_batch()):
        state, measured = update(state, batch, training.fixed)
        step += 1
        watch.add(step, state, batch, measured)
        if processes.all_stop(step, stopping.asked() or over()):
          break
        periods = (plan.evaluate_every, plan.checkpoint_every)
        if any(due(step, every, plan.total) for every in periods) or saved.is_owed():
          watch.save(step, state, evaluate)
          if is_stale(training, step) or watch.error:
            break
      if step > start and not saved.is_saved(step):
        watch.save(step, state, surely=True)  # an evaluation that is due is the next start's
      watch.settle(state)
      training.owner.update(last_save=saved.latest)
      if watch.error:
        raise watch.error
  return step, state


def updater(plan: Plan) -> jax.stages.Wrapped:
  """The jitted training step; the state that goes in is gone, its memory is the new one's."""
  same = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(plan))
  return jax.jit(untraced(plan.step()), donate_argnums=0, out_shardings=(same, None))


def due(step: int, every: int, total: int) -> bool:
  """Whether something done every so many steps, and at the end, is due; 0 is never."""
  return bool(every) and (step % every == 0 or step == total)


def is_stale(training: Training, step: int) -> bool:
  """Whether the evaluations up to a step have not bettered the best for as long as patience.

  It begins anew with a leg of the run.
  """
  plan = training.plan
  best = training.saved.best_step() if plan.patience else None
  begin = plan.legs[-1].step if plan.legs else 0
  if best is None:
    return False
  return step - step % plan.evaluate_every - max(best, begin) >= plan.patience


class Evaluator:
  """Measures a state, and reports the result; `best` and `live` take validations if there."""

  def __init__(
    self,
    training: Training,
    best: finish.Best | None = None,
    live: finish.Live | None = None,
  ):
    self.training, self.best, self.live = training, best, live
    self.compiled: Callable[..., Any] | None = None
    self.latest: tuple[int, dict[str, Any]] = (-1, {})  # validation's result, kept without a test

  def __call__(self, step: int, state: State) -> dict[str, float]:
    """Validation of the parameters, and of their average, whose names begin with 'ema_'."""
    plan = self.training.plan
    by_details = not plan.task_ranks.keys() <= plan.task.ranks.keys()
    keep, wide = len(plan.splits['validation']), by_details or 'test' not in plan.splits
    keep_params = keep if by_details or state.ema is None else 0
    values, result = self.measure('validation', state.params, keep=keep_params, wide=wide)
    if state.ema is not None:
      averaged, result = self.measure('validation', state.ema, keep=keep, wide=wide)
      values |= {f'ema_{name}': averaged[name] for name in plan.task_ranks}
    of_delivered = self.probed(state.model_params, step)
    prefix, result = 'ema_' * (state.ema is not None), result | of_delivered
    values |= {f'{prefix}{name}': value for name, value in of_delivered.items()}
    self.latest = (step, result if wide else {})
    self.report(step, 'validation', values)
    if line := plan.task.collapse(values):
      self.training.display.say(f'step {step}: {line}')
    if self.live is not None and result:
      self.live.update(self.described('validation', step) | result)
    if self.best is not None:
      self.best.update(step, state.model_params, values)
    return values

  def probed(self, params: Params, step: int | None = None) -> dict[str, float]:
    """The k-NN accuracy of what would be delivered, where it is asked for.

    With the step of a validation also writes what it makes of photos, where the report shows that.
    """
    plan, say = self.training.plan, self.training.display.say
    live = self.live if step is not None and self.live is not None and self.live.looks else None
    if plan.probe is None and live is None:
      return {}
    with stopping.phase('evaluation'), jax.transfer_guard('allow'):
      model = plan.task.deliver(sharding.gathered(params))
      if live is not None and step is not None:
        live.look(step, model)
      return {knn.ACCURACY: plan.probe.accuracy(model, say=say)} if plan.probe else {}

  def described(self, use: str, step: int) -> dict[str, Any]:
    """What an evaluation is of, as its file has it."""
    data = self.training.plan.config.data
    return {'source': data.source, 'split': data[use], 'step': step, 'use': use}

  def overdue(self, step: int, state: State) -> None:
    """Validates a state that was saved before its evaluation, as when a signal came in it."""
    plan, saved = self.training.plan, self.training.saved
    if step and due(step, plan.evaluate_every, plan.total) and not saved.is_evaluated(step):
      self.training.log.drop('validation', step)
      saved.add_metrics(step, self(step, state))

  def last(self, step: int, state: State) -> None:
    """What is delivered, on the test split, or without one on validation: to `evaluation.json`."""
    plan = self.training.plan
    use = next((use for use in ('test', 'validation') if use in plan.splits), None)
    if use is None:
      return
    measured, result = self.latest
    if use == 'test' or measured != step:
      values, result = self.measure(use, state.model_params, keep=len(plan.splits[use]))
      result |= self.probed(state.model_params)
    if use == 'test':
      self.training.log.drop(use)
      self.report(step, use, values)
    if jax.process_index() == 0:
      folder, values = self.training.folder, self.described(use, step) | result
      write = functools.partial(results.write, folder, values)
      writing.write_surely(folder / results.FILE, write, self.training.display.say)

  def measure(
    self, use: str, params: Params, *, keep: int = 0, wide: bool = True
  ) -> tuple[dict[str, float], dict[str, Any]]:
    """The task's numbers on a split; and with rows kept all there is, as JSON, see `evaluate`."""
    training = self.training
    task, unreadable = training.plan.task, training.unreadable[use]
    with (
      stopping.phase('test' if use == 'test' else 'evaluation'),
      training.plan.evaluation_batches(use, unreadable) as batches,
    ):
      first = next(batches)
      if self.compiled is None:
        measure = evaluation.jit_measure(task.measure, first)
        args = (params, first, training.fixed)
        self.compiled = training.display.compiled('evaluation step', measure, *args)
      batches = itertools.chain([first], batches)
      sums, rows, readable = evaluation.evaluate(
        task, params, batches, fixed=training.fixed, keep=keep, wide=wide, compiled=self.compiled
      )
    source = training.plan.splits[use]
    values = task.read(sums) | {'bad_images': len(source) - readable}
    result = results.summarize(task, sums, rows, source, readable=readable) if keep else {}
    for name in training.plan.task_ranks.keys() - values.keys() if keep else ():
      if result[name] is None:
        raise DataError(f'evaluation.metric is {name}, which {use} has not: see docs/evaluation.md')
      values[name] = result[name]
    return values, result

  def report(self, step: int, split: str, values: dict[str, float]) -> None:
    """Writes the numbers of a split to the log, and shows them on a line."""
    self.training.log.write(step, metrics.prefixed(split, values))
    self.training.owner.update(last_evaluation={'step': step, 'split': split, **values})
    bad = values.get('bad_images')
    counts = f'{values["count"]:.0f} images' + f', {bad} unreadable' * bool(bad)
    measures = {k: value for k, value in values.items() if k not in ('count', 'bad_images')}
    self.training.display.say(f'step {step}  {split}  {metrics.numbers(measures)}  ({counts})')


class Collapsed(Exception):
  """Features have collapsed, in a run that is to end then."""


class Watch:
  """The loop's other half: it takes batches, reads what steps measure, and saves.

  Each step's numbers are read one step later, so that the device never waits for them.
  """

  def __init__(self, training: Training, batches: Iterator[Batch], sums: dict[str, Any]):
    self.training, self.batches = training, batches
    self.error: pipeline.DataError | Collapsed | None = None  # raised when the state is saved
    self.meter = metrics.Meter(training.plan.task.read, sums)
    self.pending: tuple[int, Batch, Measured] | None = None
    self.evaluated: dict[int, dict[str, float]] = {}  # the latest evaluation, by its step
    self.best = training.saved.best_rank()
    training.display.resume(training.plan.metric, training.plan.sign * self.best[0])

  def next_batch(self) -> Batch | None:
    """The next batch; None where a signal ends the wait for it, or there is none: `error`."""
    try:
      with contextlib.suppress(stopping.Stopped), stopping.phase('data'):
        return self.meter.waiting(lambda: next(self.batches))
    except pipeline.DataError as error:
      if jax.process_count() > 1:  # the others do not save at this step
        raise
      self.error = error
    return None

  def save(
    self, step: int, state: State, evaluate: 'Evaluator | None' = None, *, surely: bool = False
  ) -> None:
    """Saves a state, with its evaluation if that is due, and no signal ends it.

    What is not saved `surely` may be lost on a full disk: a later state takes its place, but where
    patience may want this one.
    """
    plan = self.training.plan
    self.settle(state)
    with self.meter.paused():
      evaluates = due(step, plan.evaluate_every, plan.total) and step not in self.evaluated
      if evaluate and evaluates:
        with contextlib.suppress(stopping.Stopped):
          self.evaluated = {step: evaluate(step, state)}
      values = self.evaluated.get(step)
      surely = surely or bool(plan.patience and values)
      self.training.log.flush()  # a run that resumes here has the rows up to here
      self.training.saved.save(step, state, values, self.meter.state(), surely=surely)
      if values:
        self.best = max(self.best, self.training.saved.rank({**values, 'step': float(step)}))
        if plan.config.evaluation.stop_on_collapse and (line := plan.task.collapse(values)):
          self.error = Collapsed(f'step {step}, saved: {line}')
    self.training.display.resume(plan.metric, plan.sign * self.best[0])

  def add(self, step: int, state: State, batch: Batch, measured: Measured) -> None:
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
        tensor = first_nonfinite(self.training.plan, self.training.fixed, step, state, batch)
      if np.isfinite([measured['sums']['loss'], measured['latest']['grad_norm']]).all():
        tensor = f'the update of {tensor}'
      raise FloatingPointError(f'step {step}: {tensor} is not finite; nothing of it was saved')
    self.meter.add(measured['sums'], measured['latest'])
    self.training.display.step(step, measured['sums'])
    self.training.owner.update(step=step, last_save=self.training.saved.latest)
    if due(step, self.training.plan.log_every, self.training.plan.total):
      self.log(step)

  def log(self, step: int) -> None:
    """Writes and shows a row of the steps since the last one."""
    plan, values = self.training.plan, self.meter.read()
    if not plan.frozen and getattr(plan.task.model, 'dtype', '') == 'bfloat16':
      values |= metrics.utilization(plan.update_flops, values['images_per_second'])
    values['bad_images'] = self.training.unreadable['train'].count
    self.training.log.write(step, metrics.prefixed('train', values))
    self.training.display.show(step, values)
    rate, images = values['images_per_second'], (plan.total - step) * plan.config.batch_size
    eta = round(images / rate) if rate else None
    self.training.owner.update(images_per_second=rate, eta_seconds=eta)


def first_nonfinite(plan: Plan, fixed: Fixed, step: int, state: State, batch: Batch) -> str:
  """The first tensor of the update to `step` that is not finite, in the order of computation.

  The step runs once more for its trace, with the same parameters, batch and key: no later one has
  changed the state. Where the loss and its gradient were finite, the update was made, and shows.
  """
  before = dataclasses.replace(state, step=jnp.asarray(step - 1, jnp.int32))
  update = plan.step()
  try:
    trace = jax.jit(lambda *args: update(*args)[1]['trace'])(before, batch, fixed)
  except jax.errors.JaxRuntimeError:  # there may be no memory for it
    return 'the loss or the gradient'
  flags = zip(trace.names, jax.device_get(trace.finite))
  return next((name for name, is_finite in flags if not is_finite), "the gradient's norm")


def introduce(training: Training, start: int) -> None:
  """Says what is about to be trained, on what and with what."""
  plan, display = training.plan, training.display
  config, mesh, model = plan.config, plan.mesh, plan.task.model
  params = abstract_state(plan).params
  for line in metrics.summary(params, plan.forward_flops, plan.update_flops * config.batch_size):
    display.say(line)
  device, source = jax.devices()[0], plan.splits['train']
  grid = ' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  name = config.task if model is None else config.model.name
  dtype = getattr(model, 'dtype', '')
  display.say(
    f'{name}{dtype and f" in {dtype}"} on {mesh.size} {device.device_kind} ({grid}); '
    f'{len(source):,} training examples of {config.data.source}, {plan.total:,} steps'
  )
  contrasts = sampled_contrasts(source, config.data.channels)
  for line in [*lines_about(source), contrast_warning(contrasts)]:
    if line:
      display.say(f'{config.data.source}: {line}')
  for line in plan.task.about:
    display.say(line)
  if not plan.task.average and (line := describe_average(config.ema, plan.total)):
    display.say(line)
  if plan.frozen:
    display.say(plan.describe_frozen(params))
  if whole := sharding.unsplit(params, mesh):
    display.say(f'not split as asked, for their axes do not divide: {", ".join(whole)}')
  if plan.legs:
    display.say(f'leg {len(plan.legs) + 1} of the run, {plan.legs[-1]}')
  if start:
    display.say(f'resumes at step {start}')
  elif plan.task.start:
    display.say(str(plan.task.start().report))


def deliver(training: Training, state: State, step: int, evaluate: Evaluator) -> None:
  """Writes the model, of the best state if patience asks for it, and measures it."""
  plan, saved, folder = training.plan, training.saved, training.folder
  saved.wait()  # so that the model is not all that a kill leaves
  evaluate.overdue(step, state)
  if plan.patience and (best := saved.restore_best(abstract_state(plan))):
    step, state = best
    training.display.say(f'takes the parameters of step {step}, the best on validation')
  with stopping.phase('bundle'):
    model = plan.task.deliver(sharding.gathered(state.model_params))
    if jax.process_index() == 0:
      finish.set_stranger_aside(plan, folder)
      file, origin = folder / finish.MODEL, saved.origin_of(step)
      writing.write_surely(file, lambda: bundle.write(file, model, origin), training.display.say)
    processes.meet('the model')
  finish.remove_best(folder)
  if processes.agreed(jax.process_index() == 0 and finish.evaluation_fault(plan, folder)):
    evaluate.last(step, state)
