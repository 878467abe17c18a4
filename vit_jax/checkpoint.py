"""A run's checkpoints, which it resumes from: Orbax writes them, checksums guard them.

Orbax restores damaged arrays without an error. So each step carries a seal, the size and CRC-32 of
each file of its items, written before the step gets its name; it is trusted only while they match.
"""

import itertools
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax import files, models
from vit_jax.guards import processes, stopping
from vit_jax.models import Tree

SEAL = 'seal.json'
DAMAGED = '.damaged'


class Checkpoints:
  """Saves and restores the state of one run.

  Args:
    folder: of the checkpoints; made if absent.
    metric: name of the number that ranks evaluated steps.
    sign: 1 where more of it is better, -1 where less is.
    keep_latest, keep_best: how many of the newest and of the best evaluated steps stay.
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
    say: Callable[[str], None] = logging.warning,
  ):
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

    self.folder = pathlib.Path(folder).absolute()
    self.metric, self.sign, self.say, self.saving = metric, sign, say, -1
    best = keep.BestN(get_metric_fn=self.rank, n=keep_best, keep_checkpoints_without_metrics=False)
    policy = keep.AnyPreservationPolicy([keep.LatestN(keep_latest), best])
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      best_fn=self.rank,  # without it Orbax drops the metrics
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self.seal_saved),
    )
    self.manager = ocp.CheckpointManager(self.folder, item_names=('state', 'sums'), options=options)

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
  ) -> None:
    """Starts to write the state; returns once it is copied off the device; raises like `wait`.

    Args:
      step: of the state.
      state: a tree of arrays, of all processes together.
      metrics: of the evaluation at this step, if there was one.
      sums: of the steps since the last logged row, see `sums_at`.
    """
    import orbax.checkpoint as ocp

    self.wait()
    self.saving = step
    ranked = None if metrics is None else metrics | {'step': float(step)}
    state_args, sums_args = ocp.args.StandardSave(state), ocp.args.JsonSave(sums or {})
    items = ocp.args.Composite(state=state_args, sums=sums_args)
    allowed = jax.transfer_guard_device_to_host('allow')  # the copy that is meant
    with stopping.phase('save'), allowed:
      self.manager.save(step, args=items, metrics=ranked, force=True)

  def seal_saved(self) -> None:
    """Seals the step that is being saved.

    Orbax 0.12 calls it when all files are written and before it renames the step from a temporary
    name, so that no step without a seal ever has a name; where it writes without one, as to a
    bucket, the step has its name already.
    """
    from orbax.checkpoint.path import step as names

    temporary = self.folder.glob(f'{self.saving}{names.TMP_DIR_SUFFIX}*')
    seal(next(temporary, self.folder / str(self.saving)))

  def wait(self) -> None:
    """Returns when all that was saved is written; OSError if it cannot be, as on a full disk."""
    try:
      with stopping.phase('save'):
        self.manager.wait_until_finished()
    except Exception as error:  # whatever the storage raised in the background
      step = self.folder / str(self.saving)
      raise OSError(f'checkpoint {step} could not be written: {error}') from error

  def steps(self) -> list[int]:
    """The steps in the folder, oldest first, damaged ones too."""
    return sorted(self.manager.all_steps())

  def best_step(self) -> int | None:
    """The evaluated step with the best metric; None before the first."""
    self.wait()  # Orbax reads a step's metrics under its name
    measured = {step: metrics for step in self.steps() if (metrics := self.manager.metrics(step))}
    return max(measured, key=lambda step: self.rank(measured[step]), default=None)

  def restore(self, like: Tree) -> tuple[int, Tree] | None:
    """The newest intact step and its state; None where there is none.

    Damaged steps are named, and set aside under another name. `like` is a tree of
    `jax.ShapeDtypeStruct` with shardings, which may differ from the saved ones.
    """
    steps = self.steps()
    for step in reversed(steps):
      if (state := self.restore_step(step, like)) is not None:
        return step, state
    if steps:
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
    folder = self.folder / str(step)
    if not processes.agreed(reason := damage(folder) if jax.process_index() == 0 else None):
      items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
      try:
        return self.manager.restore(step, args=items)['state']
      except (KeyError, TypeError, ValueError) as error:  # it is intact, and of something else
        text = ' '.join(str(error).split())[:200]
        raise OSError(f'checkpoint {folder} is of another model or optimiser: {text}') from error
    self.say(f'checkpoint {folder} is damaged ({reason}): not used')
    if jax.process_index() == 0:
      os.replace(folder, unused(folder.with_name(folder.name + DAMAGED)))
    processes.sync(f'step {step} is set aside')
    self.manager.reload()
    return None

  def interrupted(self, step: int) -> bool:
    """Whether a SIGTERM has come to any of several processes: true for all at the same step.

    `jax.distributed` takes the signal there, in jax 0.10 to 0.12 (tests/test_abilities.py).
    """
    return jax.process_count() > 1 and self.manager.reached_preemption(step)

  def close(self) -> None:
    """Waits, then frees what Orbax holds; raises like `wait`."""
    self.wait()
    self.manager.close()


def seal(step: pathlib.Path) -> None:
  """Writes the size and CRC-32 of every file of a step's items into its folder."""
  items = (file for folder in step.iterdir() if folder.is_dir() for file in folder.rglob('*'))
  table = {str(file.relative_to(step)): checksum(file) for file in items if file.is_file()}
  (step / SEAL).write_text(files.as_json(table, indent=0), 'utf-8')


def damage(step: pathlib.Path) -> str | None:
  """What is wrong with a sealed step, in a few words; None if every file is as it was sealed."""
  try:
    table = json.loads((step / SEAL).read_text('utf-8'))
    if not isinstance(table, dict) or not table:
      raise ValueError(f'{SEAL} lists nothing')
  except FileNotFoundError:
    return f'{SEAL} is missing'
  except (OSError, ValueError):
    return f'{SEAL} cannot be read'
  for name, sealed in table.items():
    if not (step / name).is_file():
      return f'{name} is missing'
    if checksum(step / name) != sealed:
      return f'{name} has changed'
  return None


def checksum(file: pathlib.Path) -> list[int]:
  """[size, CRC-32] of a file."""
  crc, size = 0, 0
  with file.open('rb') as stream:
    while chunk := stream.read(1 << 22):  # 4 MiB: files are of GB
      crc, size = zlib.crc32(chunk, crc), size + len(chunk)
  return [size, crc]


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
