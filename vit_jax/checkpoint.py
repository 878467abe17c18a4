"""A run's checkpoints, which it resumes from: Orbax writes them, checksums guard them.

Orbax restores damaged arrays without an error. So each step carries a seal, see `guards.seals`,
written before the step gets its name; it is used only while its files are as they were sealed, and
if it is this run's and of the step that its name says.
"""

import contextlib
import datetime
import errno
import itertools
import json
import logging
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vit_jax import files, models
from vit_jax.guards import processes, seals, stopping, writing
from vit_jax.guards.owner import is_present
from vit_jax.guards.waiting import in_background, in_time
from vit_jax.models import Tree

CLOSES = 2  # tries with a manager whose threads have failed
if TYPE_CHECKING:
  from orbax.checkpoint import CheckpointManager

UNFINISHED = '.orbax-checkpoint-tmp'  # in the name of a step that Orbax is writing
REMOVED = '.removed'  # the folder of steps that are not to be kept: they get there whole
POLL = 0.01  # seconds between looks at what a thread of Orbax's does
METRICS = 'metrics/metrics'  # Orbax's file of the numbers of a step's evaluation


class Checkpoints:
  """Saves and restores the state of one run.

  Args:
    folder: of the checkpoints; made if absent.
    metric: name of the number that ranks evaluated steps.
    sign: 1 where more of it is better, -1 where less is.
    keep_latest, keep_best: how many of the newest and of the best evaluated steps stay.
    origin_of: (step) -> whose the run's seal of it says it is; steps of another are set aside.
    total: the last step of the run; None where it has no end.
    say: takes a line for the user.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    metric: str,
    sign: int,
    keep_latest: int = 1,
    keep_best: int = 1,
    origin_of: Callable[[int], seals.Origin] = seals.Origin,
    total: int | None = None,
    say: Callable[[str], None] = logging.warning,
  ):
    self.folder = pathlib.Path(folder).absolute()
    self.metric, self.sign, self.say, self.saving = metric, sign, say, -1
    self.keep_latest, self.keep_best = keep_latest, keep_best
    self.is_writing = self.is_late = self.refused = self.broken = False
    self.again = 0.0  # when to try to write again, in `time.monotonic()`
    self.answer: Future[None] | None = None  # of a disk that has refused
    self.latest: dict[str, Any] = {}  # 'step' of what was written last, and 'time' by this start
    self.origin_of, self.total = origin_of, total
    self.faulty = False  # whether any step was set aside
    self.is_of_run = is_present(self.folder.parent)
    self.folder.mkdir(parents=True, exist_ok=True)
    self.set_strangers_aside()
    self.made: CheckpointManager | None = None

  @property
  def manager(self) -> 'CheckpointManager':
    """Orbax's own, made when it is first needed: to import Orbax takes a quarter of a second."""
    if self.made is None:
      self.made = self.make_manager()
    return self.made

  def make_manager(self) -> 'CheckpointManager':
    """Orbax's own, of what the folder holds now."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

    n, latest = self.keep_best, keep.LatestN(self.keep_latest)
    best = keep.BestN(get_metric_fn=self.rank, n=n, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=keep.AnyPreservationPolicy([latest, best]),
      best_fn=self.rank,  # without it Orbax drops the metrics
      cleanup_tmp_directories=True,
      todelete_subdir=REMOVED,
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self.seal_saved,
        create_directories_asynchronously=False,  # a thread waits for those that cannot be made
      ),
    )
    return ocp.CheckpointManager(self.folder, item_names=('state', 'sums'), options=options)

  def rank(self, metrics: dict[str, float]) -> tuple[float, float]:
    """Orders evaluated steps, best last; of equal ones the earlier is better."""
    value = self.sign * metrics.get(self.metric, float('nan'))
    return (value if value == value else -float('inf'), -metrics['step'])

  def save(
    self,
    step: int,
    state: Tree,
    metrics: dict[str, float] | None = None,
    sums: dict[str, Any] | None = None,
    *,
    surely: bool = False,
  ) -> None:
    """Starts to write the state; returns once it is copied off the device.

    What the disk refuses is said once, and `is_owed` says when to save again.

    Args:
      step: of the state.
      state: a tree of arrays, of all processes together.
      metrics: of the evaluation at this step, if there was one.
      sums: of the steps since the last logged row, see `sums_at`.
      surely: returns once it is written, and tries for minutes.

    Raises:
      OSError: if that was in vain, or one of several processes was refused amid a save.
    """

    def write() -> None:
      self.begin(step, state, metrics, sums)
      if surely:
        self.wait()

    with stopping.phase('save'):
      if surely:
        self.attempt(self.wait)
        writing.persistently(write, self.report)
      elif self.is_ready():
        self.attempt(self.wait)
        self.attempt(write)

  def is_ready(self) -> bool:
    """Whether the last save is over and the disk does not hang; waits for a minute, but once."""
    end = time.monotonic() + (0 if self.is_late else writing.PROBE)
    while (in_progress := self.manager.is_saving_in_progress()) and time.monotonic() < end:
      time.sleep(POLL)
    if in_progress and not self.is_late:
      self.say(f'checkpoint {self.folder / str(self.saving)} takes long: training goes on')
    self.is_late = in_progress
    answers = self.answer is None or self.answer.done()
    return processes.agreed(not in_progress and (answers or not self.refused))

  def attempt(self, action: Callable[[], None]) -> None:
    """Does what the disk may refuse."""
    try:
      action()
    except OSError as error:
      self.report(error)

  def report(self, error: OSError) -> None:
    """Says what the disk refuses, once until it is well; raises it where others are amid a save."""
    if self.broken and processes.GROUP.count > 1:
      raise error
    if not self.refused:
      self.say(f'{error}; saves again when it can')
    self.refused, self.again = True, time.monotonic() + writing.RETRY_EVERY
    self.answer = in_background(lambda: writing.probe(self.folder, 0))

  def is_owed(self) -> bool:
    """Whether what was to be saved could not be written, and may be now; looks without waiting."""
    if jax.process_count() == 1 and self.is_writing and not self.manager.is_saving_in_progress():
      self.attempt(self.wait)
    return self.refused and processes.agreed(time.monotonic() > self.again) and self.is_ready()

  def is_saved(self, step: int) -> bool:
    """Whether this start of the run has written a step; waits until it is or cannot be."""
    self.attempt(self.wait)
    return self.latest.get('step') == step

  def begin(
    self, step: int, state: Tree, metrics: dict[str, float] | None, sums: dict[str, Any] | None
  ) -> None:
    """Starts to write a state, or raises OSError; see `save`."""
    import orbax.checkpoint as ocp

    ranked = None if metrics is None else metrics | {'step': float(step)}
    state_args, sums_args = ocp.args.StandardSave(state), ocp.args.JsonSave(sums or {})
    items = ocp.args.Composite(state=state_args, sums=sums_args)
    allowed = jax.transfer_guard_device_to_host('allow')  # the copy that is meant
    with self.refusing(step), allowed:
      self.agree(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
      self.mend()
      self.saving, self.is_writing = step, True
      self.manager.save(step, args=items, metrics=ranked, force=True)

  def agree(self, size: int) -> None:
    """Raises OSError, in all processes alike, where the disk of one takes no file, or hangs.

    Of several processes also where it has no room for a state, of so many bytes: amid a save, one
    that is refused leaves the others to wait for it in Orbax.
    """
    reason, room = '', size if processes.GROUP.count > 1 else 0
    try:
      in_time(lambda: writing.probe(self.folder, room), writing.PROBE)
      if self.is_of_run and not is_present(self.folder.parent):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    except OSError as error:
      reason = writing.refusal(error)
    if reasons := [*filter(None, processes.gathered('the disk', reason))]:
      raise OSError(reasons[0])

  def mend(self) -> None:
    """Makes the manager anew after a refusal: Orbax's has lost count of the steps, and errors.

    A folder that is gone is not made anew: where its disk was detached, nobody would look for it.
    """
    in_time(lambda: os.scandir(self.folder).close(), writing.PROBE)
    if self.broken:
      if self.manager.is_saving_in_progress():
        raise TimeoutError(f'the disk still has to write {self.saving}')
      self.free()
      self.made, self.broken = None, False

  def free(self) -> None:
    """Frees what Orbax holds, but of a manager whose disk does not answer."""
    if self.made is None:
      return
    if not self.broken:
      self.manager.close()
    elif not self.manager.is_saving_in_progress():
      for _ in range(CLOSES):  # each error of its threads is raised once more
        with contextlib.suppress(Exception):
          self.manager.close()
          break
      self.remove_unfinished()  # a thread may have written on

  def remove_unfinished(self) -> None:
    """Removes what is half written of the step to be saved: it may have filled the disk."""
    from orbax.checkpoint.path import step as names

    for path in self.folder.glob(f'{self.saving}{names.TMP_DIR_SUFFIX}*'):
      shutil.rmtree(path, ignore_errors=True)

  @contextlib.contextmanager
  def refusing(self, step: int) -> Iterator[None]:
    """Turns whatever the storage raises into an OSError, and takes away what was half written."""
    try:
      yield
    except Exception as error:  # from OSError to ValueError, from threads too
      self.broken, self.is_writing = self.broken or self.is_writing, False
      if self.broken and not isinstance(error, TimeoutError):  # of a disk that hangs
        self.remove_unfinished()
      newest = self.latest.get('step')  # the disk may be gone
      other = f'the newest is {newest}' if newest is not None else 'there is no other'
      line = f'checkpoint {self.folder / str(step)} could not be written'
      raise OSError(f'{line}: {writing.refusal(error)}; {other}') from error

  def seal_saved(self) -> None:
    """Seals the step that is being saved.

    Orbax 0.12 calls it when all files are written and before it renames the step from a temporary
    name, so that no step without a seal ever has a name; where it writes without one, as to a
    bucket, the step has its name already.
    """
    from orbax.checkpoint.path import step as names

    temporary = self.folder.glob(f'{self.saving}{names.TMP_DIR_SUFFIX}*')
    seal(next(temporary, self.folder / str(self.saving)), self.origin_of(self.saving))

  def wait(self) -> None:
    """Returns when all that was saved is written; OSError if it cannot be, as on a full disk."""
    if not self.is_writing:
      return
    with stopping.phase('save'), self.refusing(self.saving):
      writing.while_it_answers(self.manager.wait_until_finished, self.folder)
    now = datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds')
    self.is_writing, self.latest = False, {'step': self.saving, 'time': now}
    if self.refused:
      self.say(f'checkpoint {self.folder / str(self.saving)} is written')
    self.refused = False
    if jax.process_index() == 0:
      shutil.rmtree(self.folder / REMOVED, ignore_errors=True)

  def steps(self) -> list[int]:
    """The steps in the folder, oldest first, damaged ones too."""
    if processes.GROUP.count == 1 and self.made is None and not step_folders(self.folder):
      return []
    return sorted(self.manager.all_steps())

  def best_step(self) -> int | None:
    """The evaluated step with the best metric; None before the first."""
    self.attempt(self.wait)  # Orbax reads a step's metrics under its name
    self.mend()
    measured = {step: metrics for step in self.steps() if (metrics := self.manager.metrics(step))}
    return max(measured, key=lambda step: self.rank(measured[step]), default=None)

  def best_rank(self) -> tuple[float, float]:
    """The `rank` of the best evaluated step; before the first, of what all others better."""
    step = self.best_step()
    return self.rank({'step': float('inf')} if step is None else self.manager.metrics(step))

  def restore(self, like: Tree) -> tuple[int, Tree] | None:
    """The newest intact step and its state; None where there is none.

    Damaged steps are named, and set aside under another name. `like` is a tree of
    `jax.ShapeDtypeStruct` with shardings, which may differ from the saved ones.
    """
    steps = self.steps()
    for step in reversed(steps):
      if (state := self.restore_step(step, like)) is not None:
        self.latest = {'step': step}
        return step, state
    if steps or self.faulty:
      self.say(f'{self.folder} holds no intact checkpoint: the run starts anew')
    return None

  def sums_at(self, step: int) -> dict[str, Any]:
    """What `save` was given as sums; {} of a step from before there were any."""
    import orbax.checkpoint as ocp

    if not (self.folder / str(step) / 'sums').is_dir():
      return {}
    return self.manager.restore(step, args=ocp.args.Composite(sums=ocp.args.JsonRestore()))['sums']

  def restore_best(self, like: Tree) -> tuple[int, Tree] | None:
    """The best intact evaluated step and its state."""
    while (step := self.best_step()) is not None:
      if (state := self.restore_step(step, like)) is not None:
        return step, state
    return None

  def restore_step(self, step: int, like: Tree) -> Tree:
    """The state of a step, or None and the step is set aside, if it is damaged."""
    import orbax.checkpoint as ocp

    self.wait()
    fault = None
    if jax.process_index() == 0:
      fault = self.stranger(step) or seals.damaged(seals.damage(self.folder / str(step)))
    if processes.agreed(fault):
      if fault:
        self.set_aside(step, fault)
      processes.meet(f'the setting aside of step {step}')
      self.manager.reload()
      return None
    items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    try:
      return self.manager.restore(step, args=items)['state']
    except (KeyError, TypeError, ValueError) as error:  # it is intact, and of something else
      line = f'checkpoint {self.folder / str(step)} is of another model or optimiser'
      raise OSError(f'{line}: {" ".join(str(error).split())[:200]}') from error

  def stranger(self, step: int) -> seals.Fault | None:
    """Why a step is not this run's, or not the one that its name says; None where it is."""
    if self.total is not None and step > self.total:
      return seals.Fault(f'is beyond the end of the run, step {self.total}', '.unused')
    return seals.stranger(self.folder / str(step), self.origin_of(step))

  def damaged_numbers(self, step: int) -> seals.Fault | None:
    """Why the numbers of a step's evaluation cannot be ranked; None where they can, or are none."""
    folder = self.folder / str(step)
    try:
      return seals.damaged(seals.read(folder).damage(folder, [METRICS]))
    except seals.Broken:  # the state is lost then, which is named when it is wanted
      pass
    try:
      json.loads(files.read_bytes(folder / METRICS))
    except FileNotFoundError:
      pass
    except (OSError, ValueError):
      return seals.damaged(f'{METRICS} cannot be read')
    return None

  def set_strangers_aside(self) -> None:
    """Sets aside what Orbax must not see, which reads the numbers of all steps and ranks them."""
    if jax.process_index() == 0:
      for step in step_folders(self.folder):
        if fault := self.stranger(step) or self.damaged_numbers(step):
          self.set_aside(step, fault)
    processes.meet('the look through the checkpoints')

  def set_aside(self, step: int, fault: seals.Fault) -> None:
    """Names a step that is not used, and gives its folder another name."""
    folder = self.folder / str(step)
    self.say(f'checkpoint {folder} {fault.line}: not used')
    os.replace(folder, unused(folder.with_name(folder.name + fault.suffix)))
    self.faulty = True

  def is_evaluated(self, step: int) -> bool:
    """Whether a step has the numbers of its evaluation."""
    return self.manager.metrics(step) is not None

  def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
    """Gives a step that was saved before its evaluation the numbers of it, as `save` does."""
    import orbax.checkpoint.checkpoint_manager as ocp

    folder, name = self.folder / str(step), ocp.METRIC_ITEM_NAME
    if jax.process_index() == 0:
      (folder / name).mkdir(exist_ok=True)
      with files.replacing(folder / name / name) as file:
        file.write(json.dumps(metrics | {'step': float(step)}).encode())  # NaN too, as Orbax does
      seals.add(folder, f'{name}/{name}', self.origin_of(step))
    processes.meet(f'the evaluation of step {step}')
    self.manager.reload()

  def close(self) -> None:
    """Waits, then frees what Orbax holds; raises like `wait`."""
    self.wait()
    self.free()


def seal(step: pathlib.Path, origin: seals.Origin) -> None:
  """Seals every file of a step's items."""
  items = (file for folder in step.iterdir() if folder.is_dir() for file in folder.rglob('*'))
  seals.write(step, [file.relative_to(step) for file in items if file.is_file()], origin)


def step_folders(folder: pathlib.Path) -> list[int]:
  """The steps of a run's checkpoints by the names of their folders, newest first."""
  names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
  steps = (int(name) for name in names if name.isascii() and name.isdigit())
  return sorted((step for step in steps if str(step) in names), reverse=True)


def remove_unfinished(folder: pathlib.Path) -> None:
  """Removes from a run's checkpoints those that were not completed, or are to be removed."""
  for path in (*folder.glob(f'*{UNFINISHED}*'), folder / REMOVED):
    shutil.rmtree(path, ignore_errors=True)


def tree_crc(tree: Tree) -> int:
  """The CRC-32 of the names, shapes and values of a tree of arrays on the host."""
  crc = 0
  for name, leaf in sorted(models.flat(tree).items()):
    array = np.ascontiguousarray(leaf)
    crc = zlib.crc32(f'{name} {array.dtype} {array.shape}'.encode(), crc)
    crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
  return crc


def unused(path: pathlib.Path) -> pathlib.Path:
  """The path itself, or with the first number that makes it new."""
  names = (path.with_name(f'{path.name}{number}') for number in itertools.count(2))
  return next(name for name in itertools.chain([path], names) if not name.exists())
