"""The one evaluation: a task's measure over every batch of a split, its sums in float64.

B batch, N examples.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.data.pipeline import DataError
from vit_jax.tasks import Batch, Fixed, Params, Task

AHEAD = 2  # batches that the host is ahead of the device
LARGEST = 2**27  # numbers of one kind of rows that are held: 512 MiB of float32
NOTHING = 'nothing to evaluate: not one of the images can be read, or has a label'

Step = Callable[[Params, Batch, Fixed], Any]


def make_step(measure: Step, batch: Batch) -> Step:
  """A task's measure, jitted; with several processes each gets the results of all.

  Args:
    measure: of a task. For the same function, nothing is compiled again.
    batch: such as will be measured, on its devices.
  """
  if jax.process_count() == 1:
    return jax.jit(measure)
  sharding: Any = next(iter(batch.values())).sharding
  return jax.jit(measure, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))


def evaluate(
  task: Task,
  params: Params,
  batches: Iterable[Batch],
  *,
  fixed: Fixed | None = None,
  keep: int = 0,
  step: Step | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The sums of a task's measure over batches, and the rows of the first `keep` examples.

  Args:
    task: whose `read` and `details` the result is for.
    params: to be measured, on the mesh.
    batches: on the mesh, of the task's evaluation columns and 'mask'.
    fixed: of the task, on the mesh.
    keep: N, whose rows are kept; 0: of none. Of rows with many numbers each, as the logits of many
      classes, no more are kept than LARGEST numbers: their array is then shorter.
    step: the measure, compiled; None compiles it.

  Returns:
    {name: float64}, and {name: (N, ...)}.

  Raises:
    DataError: if no example counts.
  """
  totals: dict[str, Any] = {}
  rows: dict[str, list[np.ndarray]] = {}

  def running() -> Iterator[Any]:
    measure = step
    for batch in batches:
      measure = measure or make_step(task.measure, batch)
      sums, kept = measure(params, batch, fixed or {})
      yield sums, kept if keep else {}

  for sums, kept in fetched(running()):
    for name, value in sums.items():
      totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)
    for name, values in kept.items():
      parts = rows.setdefault(name, [])
      if sum(part.size for part in parts) < LARGEST:
        parts.append(values)
  if not totals or not totals['count']:
    raise DataError(NOTHING)
  return totals, {name: np.concatenate(parts)[:keep] for name, parts in rows.items()}


def fetched(results: Iterator[Any]) -> Iterator[Any]:
  """Each result on the host, in order, while the device works on the next ones."""
  running = collections.deque[Any]()
  for result in results:
    running.append(result)
    if len(running) > AHEAD:
      yield jax.device_get(running.popleft())
  yield from map(jax.device_get, running)
