"""The one evaluation: a task's measure over every batch of a split, its sums in float64.

B batch, N examples.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.pipeline import DataError
from vit_jax.sharding import for_mesh
from vit_jax.tasks import WIDE, Array, Batch, Fixed, Measure, Params, Rows, Sums, Task

AHEAD = 2  # batches that the host is ahead of the device
LARGEST = 2**27  # numbers of one kind of rows that are held: 512 MiB of float32
NOTHING = 'nothing to evaluate: not one of the images can be read, or has a label'

Counted = Callable[[Params, Batch, Fixed], tuple[Sums, Rows, Array]]


@functools.lru_cache(maxsize=32)  # one function for one measure, by which JAX finds its program
def counted(measure: Measure, mesh: Mesh) -> Counted:
  """A task's measure, and as a third how many examples of the batch could be read: ()."""
  measure = for_mesh(measure, mesh)

  def batch_measure(params: Params, batch: Batch, fixed: Fixed) -> tuple[Sums, Rows, Array]:
    return *measure(params, batch, fixed), batch['mask'].sum()

  return batch_measure


def jit_measure(measure: Measure, batch: Batch) -> jax.stages.Wrapped:
  """`counted`, jitted; with several processes each gets the results of all.

  Args:
    measure: of a task. For the same function, nothing is compiled again.
    batch: such as will be measured, on its devices.
  """
  split: Any = next(iter(batch.values())).sharding
  mesh = split.mesh
  if jax.process_count() == 1:
    return jax.jit(counted(measure, mesh))
  return jax.jit(counted(measure, mesh), out_shardings=NamedSharding(mesh, PartitionSpec()))


def evaluate(
  task: Task,
  params: Params,
  batches: Iterable[Batch],
  *,
  fixed: Fixed | None = None,
  keep: int = 0,
  wide: bool = True,
  compiled: Counted | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
  """The sums of a task's measure over batches, and the rows of the first `keep` examples.

  Args:
    task: whose `read` and `details` the result is for.
    params: to be measured, on the mesh.
    batches: on the mesh, of the task's evaluation columns and 'mask'.
    fixed: of the task, on the mesh.
    keep: N, whose rows are kept; 0: of none. Of rows with many numbers each, as the logits of many
      classes, no more are kept than LARGEST numbers: their array is then shorter.
    wide: whether rows of WIDE are kept too.
    compiled: of `jit_measure`; None compiles it.

  Returns:
    {name: float64}, {name: (N, ...)}, and how many examples could be read, on all hosts.

  Raises:
    DataError: if no example counts.
  """
  totals: dict[str, Any] = {}
  parts: dict[str, list[np.ndarray]] = {}
  readable = 0

  def running() -> Iterator[Any]:
    measure = compiled
    for batch in batches:
      measure = measure or jit_measure(task.measure, batch)
      sums, rows, count = measure(params, batch, fixed or {})
      chosen = {name for name in rows if keep and (wide or name not in WIDE)}
      yield sums, {name: rows[name] for name in chosen}, count

  for sums, rows, count in fetched(running()):
    readable += int(count)
    for name, value in sums.items():
      totals[name] = totals.get(name, 0) + np.asarray(value, np.float64)
    for name, values in rows.items():
      batches_of_rows = parts.setdefault(name, [])
      if len(batches_of_rows) * values.size < LARGEST:  # batches are of one size
        batches_of_rows.append(values)
  if not totals or not totals['count']:
    raise DataError(NOTHING)
  joined = {name: np.concatenate(batches_of_rows)[:keep] for name, batches_of_rows in parts.items()}
  return totals, joined, readable


def fetched(results: Iterator[Any]) -> Iterator[Any]:
  """Each result on the host, in order, while the device works on the next ones."""
  running = collections.deque[Any]()
  for result in results:
    running.append(result)
    if len(running) > AHEAD:
      yield jax.device_get(running.popleft())
  yield from map(jax.device_get, running)
