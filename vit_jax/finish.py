"""The parts of a finished run: what is wrong with each, and what is written after its model.

Every start of a run looks at all of them, so that what a kill took or a disk damaged is made again.
"""

import contextlib
import functools
import pathlib
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import jax

from vit_jax import bundle, checkpoint, files, metrics, sharding, workdir
from vit_jax.convert import bundles, runs
from vit_jax.evaluate import development, results
from vit_jax.evaluate.inputs import Split
from vit_jax.guards import owner, processes, seals, stopping, waiting, writing
from vit_jax.pipeline import DataError
from vit_jax.plan import Plan
from vit_jax.tasks import Params
from vit_jax.text import one_line
from vit_jax.views import card, report

MODEL, CARD, CHECKPOINTS = 'model', f'model/{bundle.CARD}', 'checkpoints'
Say = Callable[[str], object]


def remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what processes that are dead were writing, or removing, in a run's folder."""
  files.remove_partial(folder, folder / MODEL, folder / CHECKPOINTS)
  checkpoint.remove_unfinished(folder / CHECKPOINTS)


class Best:
  """Writes the bundle of the best evaluation so far, while a run has no model yet.

  It is there before the checkpoint of that step, and gone where it could not be written: what is
  there is never of an evaluation that was bettered.
  """

  def __init__(self, plan: Plan, folder: pathlib.Path, saved: checkpoint.Checkpoints, say: Say):
    self.plan, self.path, self.saved, self.say = plan, folder / runs.BEST, saved, say
    self.rank = saved.best_rank()

  def update(self, step: int, params: Params, values: Mapping[str, float]) -> None:
    """Takes the parameters of a step if its evaluation is the best; an error is a line."""
    rank = self.saved.rank({**values, 'step': float(step)})
    if rank <= self.rank:
      return
    self.rank = rank
    with stopping.phase('bundle'), jax.transfer_guard('allow'):  # a task may compute its model
      model = self.plan.task.deliver(sharding.gathered(params))
      if jax.process_index() == 0:
        self.write(model, self.saved.origin_of(step))

  def write(self, model: bundle.Bundle, origin: seals.Origin) -> None:
    """Writes a bundle, or removes the one of an earlier step, and says why."""
    written = False
    try:
      # A folder that is gone is not made anew.
      waiting.in_time(lambda: writing.probe(self.saved.folder, 0), writing.PROBE)
      write = functools.partial(bundle.write, self.path, model, origin)
      writing.while_it_answers(write, self.saved.folder)
      written = True
    except OSError as error:
      self.say(f'{self.path} could not be written: {writing.refusal(error)}')
    finally:
      if not written:
        remove_best(self.path.parent)


class Live:
  """Writes each validation of a run, and its page, for who looks at it while it trains.

  A thread does, the latest first, so that training waits for neither and a disk that hangs holds
  nobody up; what fails is a line.
  """

  def __init__(self, plan: Plan, holder: owner.Owner, log: metrics.Log, say: Say):
    self.plan, self.owner, self.log, self.say = plan, holder, log, say
    self.lock = threading.Lock()  # of the next two
    self.latest: dict[str, Any] | None = None
    self.attempt: Future[None] | None = None

  def resume(self) -> None:
    """Has the page of an earlier start say that the run trains, if it can be written."""
    if jax.process_index() > 0:
      return
    with contextlib.suppress(OSError, ValueError):
      waiting.in_time(
        lambda: report.resume_live(self.owner.folder, self.owner.status), writing.PROBE
      )

  def update(self, evaluation: dict[str, Any]) -> None:
    """Begins to write an evaluation, with what it is of, as `results.write` takes it."""
    if jax.process_index() > 0:
      return
    with self.lock:
      self.latest = evaluation
      self.attempt = self.attempt or waiting.in_background(self.write_all)

  @property
  def looks(self) -> bool:
    """Whether what the model makes of photos is kept: of an encoder, for the report."""
    has_classes = getattr(self.plan.task.model, 'num_classes', 1)
    return not has_classes and self.plan.config.system.report

  def look(self, step: int, model: bundle.Bundle) -> None:
    """Writes what the model of a step makes of photos; an error is a line."""
    if jax.process_index() > 0:
      return
    data = self.plan.config.data
    split = Split(data.source, data.validation, self.plan.splits['validation'])
    try:
      development.add(self.owner.folder, development.look(model, split, step))
    except (ValueError, OSError, DataError, jax.errors.JaxRuntimeError) as error:
      self.say(f'no photos over time: {one_line(error)}')

  def write_all(self) -> None:
    while evaluation := self.next():
      self.write(evaluation)

  def next(self) -> dict[str, Any] | None:
    """The latest evaluation that is not written; None, and the attempt is over, without one."""
    with self.lock:
      evaluation, self.latest = self.latest, None
      self.attempt = self.attempt if evaluation else None
    return evaluation

  def write(self, evaluation: dict[str, Any]) -> None:
    folder = self.owner.folder
    try:
      results.write(folder, evaluation, results.VALIDATION)
    except OSError as error:
      self.say(f'{folder / results.VALIDATION} could not be written: {writing.refusal(error)}')
    self.log.flush()
    if self.plan.config.system.report:
      source = self.plan.splits['validation']
      report.while_training(folder, evaluation, self.owner.status, source, self.say)
      if self.owner.ended.is_set():  # while the page was made
        with contextlib.suppress(OSError):
          report.end_live(folder, self.owner.status)

  def settle(self) -> None:
    """Returns when all is written, or the disk hangs."""
    with self.lock:
      attempt = self.attempt
    if attempt is not None:
      with contextlib.suppress(TimeoutError):
        waiting.result(attempt, writing.PROBE)


def remove_best(folder: pathlib.Path) -> None:
  """Removes the bundle of a run's best evaluation: its checkpoint stays."""
  if jax.process_index() == 0:
    remove = functools.partial(shutil.rmtree, folder / runs.BEST, ignore_errors=True)
    with contextlib.suppress(OSError):  # of a disk that does not answer
      waiting.in_time(remove, writing.PROBE)


def lost(plan: Plan, folder: pathlib.Path, say: Say) -> set[str]:
  """The parts of a finished run that are missing or damaged, for all processes alike.

  Without a whole model it is that alone: the others are made after it. What is there and is lost is
  named, and so is what cannot be made again: checkpoints that no model needs, rows of metrics.
  """
  faults: dict[str, str] = {}
  if jax.process_index() == 0:
    faults = find_faults(plan, folder)
    if (folder / MODEL).exists():
      for part, fault in faults.items():
        say(f'{folder / part} {fault}: it is made again')
    for line in losses(plan, folder, set_aside=MODEL not in faults):
      say(line)
  return {part for part in (MODEL, *CHECKS) if processes.agreed(faults.get(part))}


def find_faults(plan: Plan, folder: pathlib.Path) -> dict[str, str]:
  """What is wrong with the parts of a run, as predicates."""
  if fault := model_fault(plan, folder):
    return {MODEL: fault}
  if not (folder / MODEL / seals.FILE).exists() or seals.read(folder / MODEL).origin.step is None:
    return {}  # of a version that wrote no seals, or not of training: it is finished as it is
  return {part: fault for part, check in CHECKS.items() if (fault := check(plan, folder))}


def model_fault(plan: Plan, folder: pathlib.Path) -> str:
  """What is wrong with the model."""
  model = folder / MODEL
  if not model.exists():
    return 'is missing'
  if not (model / seals.FILE).exists() and workdir.sealed_origin(folder) is None:
    try:
      bundles.read(model)
    except (OSError, ValueError) as error:
      return f'is damaged ({error})'
    return ''
  fault = seals.fault(model, plan.origin_of(runs.step_of(model)))
  return fault.line if fault else ''


def set_stranger_aside(plan: Plan, folder: pathlib.Path) -> None:
  """Gives a model of another run, in this one's folder, another name: it may be the only copy."""
  model = folder / MODEL
  if fault := seals.stranger(model, plan.origin_of(runs.step_of(model))):
    model.rename(checkpoint.unused(model.with_name(MODEL + fault.suffix)))


def model_step(folder: pathlib.Path) -> int:
  """The step whose parameters a run's sealed model has; ValueError where its seal has none."""
  step = seals.read(folder / MODEL).origin.step
  if step is None:
    raise ValueError(f'{folder / MODEL} does not say of which step it is')
  return step


def evaluation_fault(plan: Plan, folder: pathlib.Path) -> str:
  """What is wrong with the evaluation of the model that is there."""
  if not plan.splits.keys() & {'test', 'validation'}:
    return ''
  seal, values = seals.read(folder / MODEL), results.read(folder)
  if values is None:
    return missing_or_damaged(folder / results.FILE)
  if not results.is_of(values, seal):
    return 'is of another model'
  rows = metrics.model_results(metrics.read_rows(folder / metrics.FILE), values['step'])
  return '' if values['use'] in rows else f'is not in {metrics.FILE}'


def card_fault(plan: Plan, folder: pathlib.Path) -> str:
  """What is wrong with the model's card; who changed its text meant it."""
  file = folder / CARD
  whole = file.is_file() and card.is_whole(file.read_text('utf-8', errors='replace'))
  return '' if whole else missing_or_damaged(file)


def report_fault(plan: Plan, folder: pathlib.Path) -> str:
  """What is wrong with the report, where one is asked for."""
  if not plan.config.system.report:
    return ''
  return '' if report.is_whole(folder) else missing_or_damaged(folder / report.PAGE)


def environment_fault(plan: Plan, folder: pathlib.Path) -> str:
  return object_fault(folder / workdir.ENVIRONMENT)


def status_fault(plan: Plan, folder: pathlib.Path) -> str:
  return object_fault(folder / owner.STATUS)


def object_fault(file: pathlib.Path) -> str:
  """What is wrong with a file that holds a JSON object."""
  try:
    files.read_object(file)
  except (OSError, ValueError):
    return missing_or_damaged(file)
  return ''


def missing_or_damaged(file: pathlib.Path) -> str:
  return 'is damaged' if file.exists() else 'is missing'


CHECKS: dict[str, Callable[[Plan, pathlib.Path], str]] = {  # by part, in the order of their making
  workdir.ENVIRONMENT: environment_fault,
  results.FILE: evaluation_fault,
  CARD: card_fault,
  report.PAGE: report_fault,
  owner.STATUS: status_fault,
}


def losses(plan: Plan, folder: pathlib.Path, *, set_aside: bool) -> list[str]:
  """Lines on what is lost of a run and cannot be made again.

  Args:
    plan: of the run.
    folder: of the run.
    set_aside: whether to set the newest checkpoint aside if it is damaged, as restoring it does.
  """
  lines, file = [], folder / metrics.FILE
  steps = checkpoint.step_folders(folder / CHECKPOINTS)
  if steps and (fault := rows_fault(file)):
    lines.append(f'{file} {fault}: what was measured then is lost')
  if steps and set_aside:
    newest = folder / CHECKPOINTS / str(steps[0])
    if unusable := seals.fault(newest, plan.origin_of(steps[0])):
      newest.rename(checkpoint.unused(newest.with_name(newest.name + unusable.suffix)))
      lines.append(f'checkpoint {newest} {unusable.line}: set aside, the model does not need it')
  return lines


def rows_fault(file: pathlib.Path) -> str:
  """What is wrong with a run's metrics; a last line that a kill cut off is written again."""
  if not file.is_file():
    return 'is missing'
  text = file.read_text('utf-8', errors='replace')
  lines = [line for line in text.splitlines() if line.strip()]
  damaged = len(lines) - len(metrics.read_rows(file)) - (bool(lines) and not text.endswith('\n'))
  if not lines:
    return 'is empty'
  return f'has {damaged} damaged lines' if damaged > 0 else ''


def describe(plan: Plan, folder: pathlib.Path, say: Say) -> None:
  """Writes the card and the report that are not there, and says where the model is."""
  if jax.process_index() == 0 and card_fault(plan, folder):
    with stopping.phase('card'):
      model, step = bundle.read(folder), model_step(folder)
      write = functools.partial(card.write, folder, model, plan.config, step=step)
      writing.write_surely(folder / CARD, write, say)
  if jax.process_index() == 0 and report_fault(plan, folder):
    with stopping.phase('report'):
      report.after_training(folder, say)
  use = 'predict' if getattr(plan.task.model, 'num_classes', 1) else 'inspect'
  say(f'the model is in {folder / MODEL}; try: vit {use} {shlex.quote(str(folder))} IMAGE...')
