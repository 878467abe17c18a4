"""A run's checkpoints: Orbax writes them in the background, checksums guard them.

Orbax restores damaged arrays without an error. So each committed step gets a seal, the size and
CRC-32 of each of its files; a step is trusted only while it matches.
"""

import json
import logging
import os
import pathlib
import threading
import zlib
from collections.abc import Callable
from typing import Any

import jax

SEAL = 'seal.json'
DAMAGED = '.damaged'


class Checkpoints:
  """Saves and restores the state of one run.

  Args:
    folder: of the checkpoints; made if absent.
    keep_latest: how many of the newest steps stay.
    keep_best: how many of the best evaluated steps stay.
    metric: name of the metric that ranks them; one that ends in 'loss' is better when smaller.
    say: takes a line for the user.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    keep_latest: int = 1,
    keep_best: int = 1,
    metric: str = 'accuracy',
    say: Callable[[str], None] = logging.warning,
  ):
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

    self.folder = pathlib.Path(folder).absolute()
    self.sign = -1 if metric.endswith('loss') else 1
    self.metric, self.say = metric, say
    self.sealing: threading.Thread | None = None
    self.failure = ''
    best = keep.BestN(get_metric_fn=self.rank, n=keep_best, keep_checkpoints_without_metrics=False)
    policy = keep.AnyPreservationPolicy([keep.LatestN(keep_latest), best])
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      best_fn=self.rank,  # without it Orbax drops the metrics
      cleanup_tmp_directories=True,
    )
    self.manager = ocp.CheckpointManager(self.folder, item_names=('state',), options=options)

  def rank(self, metrics: dict[str, float]) -> tuple[float, float]:
    """Orders evaluated steps, best last; of equal ones the earlier is better."""
    value = self.sign * metrics.get(self.metric, float('nan'))
    return (value if value == value else -float('inf'), -metrics['step'])

  def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
    """Starts to write the state; returns once it is copied off the device.

    Args:
      step: of the state.
      state: a tree of arrays, of all processes together.
      metrics: of the evaluation at this step, if there was one.
    """
    import orbax.checkpoint as ocp

    self.wait()
    ranked = None if metrics is None else metrics | {'step': float(step)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(state))
    self.manager.save(step, args=items, metrics=ranked, force=True)
    if jax.process_index() == 0:
      self.sealing = threading.Thread(target=self.seal_when_written, args=(step,))
      self.sealing.start()

  def seal_when_written(self, step: int) -> None:
    try:
      self.manager.wait_until_finished()
      seal(self.folder / str(step))
    except Exception as error:  # of the writing thread: told at the next `wait`
      self.failure = f'checkpoint {self.folder / str(step)} could not be written: {error}'

  def wait(self) -> None:
    """Returns when all that was saved is written and sealed.

    Raises:
      OSError: if it could not be written, to a full disk for one; the steps before it are intact.
    """
    if self.sealing is not None:
      self.sealing.join()
      self.sealing = None
    if self.failure:
      failure, self.failure = self.failure, ''
      raise OSError(failure)
    self.manager.wait_until_finished()

  def steps(self) -> list[int]:
    """The steps there are, oldest first, damaged ones too."""
    return sorted(self.manager.all_steps())

  def best_step(self) -> int | None:
    """The evaluated step with the best metric; None before the first."""
    found = [(metrics, step) for step in self.steps() if (metrics := self.manager.metrics(step))]
    return max(found, key=lambda pair: self.rank(pair[0]))[1] if found else None

  def restore(self, like: Any, step: int | None = None) -> tuple[int, Any] | None:
    """The state of the newest intact step, or of `step`; None where there is none.

    Damaged steps, and those whose writing was cut off, are named, and set aside under another name.

    Args:
      like: a tree of `jax.ShapeDtypeStruct` with shardings, which may differ from the saved ones.
      step: which; None means the newest.
    """
    import orbax.checkpoint as ocp

    for candidate in reversed(self.steps()) if step is None else [step]:
      fault = damage(self.folder / str(candidate))
      if fault is None:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return candidate, self.manager.restore(candidate, args=items)['state']
      self.say(f'checkpoint {self.folder / str(candidate)} is damaged ({fault}): not used')
      self.set_aside(candidate)
    return None

  def set_aside(self, step: int) -> None:
    sync(f'all found step {step} damaged')
    if jax.process_index() == 0:
      folder = self.folder / str(step)
      os.replace(folder, unused(folder.with_name(folder.name + DAMAGED)))
    sync(f'step {step} is set aside')
    self.manager.reload()

  def interrupted(self, step: int) -> bool:
    """Whether a scheduler has announced to any of several processes that it will end the run."""
    return jax.process_count() > 1 and self.manager.reached_preemption(step)

  def close(self) -> None:
    self.wait()
    self.manager.close()


def seal(folder: pathlib.Path) -> None:
  """Writes the size and CRC-32 of every file below `folder` into it, all at once."""
  table = {str(file.relative_to(folder)): checksum(file) for file in files(folder)}
  partial = folder / (SEAL + '.partial')
  partial.write_text(json.dumps(table, indent=0))
  os.replace(partial, folder / SEAL)


def damage(folder: pathlib.Path) -> str | None:
  """What is wrong with a sealed folder, in a few words; None if every file is as it was sealed."""
  try:
    table = json.loads((folder / SEAL).read_text())
  except FileNotFoundError:
    return 'its writing was cut off'
  except (OSError, ValueError):
    return f'{SEAL} cannot be read'
  for name, sealed in table.items():
    file = folder / name
    if not file.is_file():
      return f'{name} is missing'
    if checksum(file) != sealed:
      return f'{name} has changed'
  return None


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(f for f in folder.rglob('*') if f.is_file() and not f.name.startswith(SEAL))


def checksum(file: pathlib.Path) -> list[int]:
  """[size, CRC-32] of a file."""
  crc = 0
  with file.open('rb') as opened:
    while chunk := opened.read(1 << 22):
      crc = zlib.crc32(chunk, crc)
  return [file.stat().st_size, crc]


def unused(path: pathlib.Path) -> pathlib.Path:
  """The path itself, or with the first number that makes it new."""
  number = 1
  candidate = path
  while candidate.exists():
    number += 1
    candidate = path.with_name(f'{path.name}{number}')
  return candidate


def sync(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
