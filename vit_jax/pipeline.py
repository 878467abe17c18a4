"""Batches of a source, made ahead: shuffled and augmented for training, padded for evaluation.

B batch, N records. Order and augmentation depend on the seed, the epoch and a record's index alone,
so that any number of hosts, workers or threads, and a run resumed at any step, see the same. What a
batch holds is what the columns say; the pipeline knows nothing of images.
"""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import pathlib
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vit_jax.guards.waiting import waiting
from vit_jax.guards.writing import Appender
from vit_jax.images.decoding import BadImage
from vit_jax.sources import Source
from vit_jax.sources.balance import Groups
from vit_jax.sources.columns import TRIES, Columns
from vit_jax.text import reason, to_stderr

if TYPE_CHECKING:
  import grain

HostBatch = dict[str, np.ndarray]
Batches: TypeAlias = 'Generator[HostBatch] | grain.DatasetIterator[HostBatch]'

POLICIES = ('substitute', 'error')
MAX_NAMED = 20  # unreadable images that are reported by name: a screen of them
MAX_UNREADABLE = 0.01  # fraction of the images: more are a broken disk or half a download
REOPENS = 3  # times in a row that readers are replaced before a run ends
CLOSING = 3.0  # seconds that workers have to end by themselves
ENDLESS = 2**60  # steps: more than any run takes, and Grain's indices are int64
TRACKER = 'ignore:resource_tracker:UserWarning'


class DataError(ValueError):
  """A data set that a run cannot continue with."""


class ReaderLost(Exception):
  """A reader that was killed, or gives nothing."""


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a process reads: its rows of each batch, and by how many threads and workers.

  Fields:
    shard: (index, count): this process reads slice `index` of `count` equal slices of rows.
    threads: that prepare batches, in each worker or, without workers, in this process.
    workers: processes beside this one; 0 for none. Threads are enough while they can keep up.
    timeout: seconds without a batch after which threads or workers are replaced.
  """

  shard: tuple[int, int] = (0, 1)
  threads: int = 2
  workers: int = 0
  timeout: float = 300.0


class Unreadable:
  """The images of a source that could not be read, each reported once.

  Args:
    source: whose images.
    policy: 'substitute' continues with others in their place while they are few, 'error' stops.
    say: takes a line for each of the first MAX_NAMED.
    limit: the largest fraction of the source's images; None for any.
    file: keeps the list of them all, for when a run is resumed; None keeps none.
  """

  def __init__(
    self,
    source: Source,
    *,
    policy: str = 'substitute',
    say: Callable[[str], object] = to_stderr,
    limit: float | None = MAX_UNREADABLE,
    file: pathlib.Path | None = None,
  ):
    if policy not in POLICIES:
      raise ValueError(f'unknown policy {policy!r}; known: {", ".join(POLICIES)}')
    self.source, self.policy, self.say, self.limit = source, policy, say, limit
    self.rows = Appender(file, say) if file else None
    self.indices = read_indices(file, len(source))

  @property
  def count(self) -> int:
    return len(self.indices)

  def report(self, batch: HostBatch, columns: Columns) -> HostBatch:
    """The batch without its column 'unreadable', whose indices are reported.

    DataError at the first with the policy 'error', else when there are too many.
    """
    rows = batch.pop('unreadable')
    for index in sorted(set(rows[rows >= 0].tolist()) - self.indices):
      line = f'{self.source.describe(index)}: {read_error(self.source, index, columns)}'
      if self.policy == 'error':
        raise DataError(f'{line} (data.bad_images=substitute continues without it)')
      self.indices.add(index)
      if self.count <= MAX_NAMED:
        self.say(line + '; more are counted, not named' * (self.count == MAX_NAMED))
      if self.rows:
        self.rows.write(f'{index} {line}\n'.encode(errors='backslashreplace'))
        with contextlib.suppress(OSError):  # which it has said
          self.rows.flush()
      if self.limit is not None and self.count > self.limit * len(self.source):
        count = f'{self.count} of {len(self.source)} images cannot be read, over {self.limit:.0%}'
        raise DataError(f'{count}; the last: {line}')
    return batch


def read_indices(file: pathlib.Path | None, count: int) -> set[int]:
  """The indices, of so many images, that a file of unreadable ones lists; no damaged line."""
  if file is None or not file.is_file():
    return set()
  words = (line.split(' ', 1)[0] for line in file.read_text('utf-8', errors='replace').splitlines())
  return {int(word) for word in words if word.isdecimal() and int(word) < count}


def read_error(source: Source, index: int, columns: Columns) -> str:
  """What is wrong with a record that could not be read."""
  try:
    record = dict(source[index])
    for column in columns.values():
      column.fill(record, None if column.view is None else np.random.default_rng(0))
  except Exception as error:
    return reason(error)
  return 'could be read only now'


def training_batches(
  source: Source,
  columns: Columns,
  *,
  batch_size: int,
  seed: int,
  start: int = 0,
  repeats: int = 1,
  groups: Groups | None = None,
  unreadable: Unreadable | None = None,
  reading: Reading = Reading(),
) -> AbstractContextManager[Iterator[HostBatch]]:
  """Endless batches from step `start` on: epoch after epoch, each in another order.

  Args:
    source: to read.
    columns: of a batch; their generators are seeded by (seed, epoch, index, repeat, view).
    batch_size: B over all processes; this one's batches hold B / reading.shard[1] rows.
    seed: of order and augmentation.
    start: the step that the run resumes at.
    repeats: times that an image comes in a row, each augmented anew; an epoch then holds
      N / repeats images ("repeated augmentation", arXiv 1902.05509).
    groups: that are to be equally likely, see `balanced_order`; None takes every record once in an
      epoch.
    unreadable: takes the images that could not be read; None stops at the first.
    reading: by this process.

  Yields:
    (inside the context) an iterator of the columns, (rows, *shape) each, and 'mask' (rows,) of 1.
  """
  shard, count = reading.shard
  rows = batch_size // count

  def make_batch(step: int) -> HostBatch:
    first = (step * count + shard) * rows
    batch = BatchBuilder(source, columns, rows, seed=seed)
    for position in range(first, first + rows):
      epoch, offset = divmod(position, len(source))
      image, repeat = divmod(offset, repeats)
      indices = order if groups is None else functools.partial(balanced_order, groups)
      batch.add(int(indices(len(source), seed, epoch)[image]), epoch, repeat)
    return batch.arrays()

  unreadable = unreadable or Unreadable(source, policy='error')
  return read_batches(range(start, ENDLESS), make_batch, columns, unreadable, reading)


def evaluation_batches(
  source: Source,
  columns: Columns,
  *,
  batch_size: int,
  unreadable: Unreadable | None = None,
  reading: Reading = Reading(),
) -> AbstractContextManager[Iterator[HostBatch]]:
  """Every record once, in order; rows that fill up the last batch have mask 0.

  So have, where `unreadable` is given, records that cannot be read. All processes yield the same
  number of batches.
  """
  shard, count = reading.shard
  rows, steps = batch_size // count, -(-len(source) // batch_size)

  def make_batch(step: int) -> HostBatch:
    first = (step * count + shard) * rows
    batch = BatchBuilder(source, columns, rows, seed=0, substitute=False)
    for position in range(first, first + rows):
      batch.add(min(position, len(source) - 1), counts=position < len(source))
    return batch.arrays()

  unreadable = unreadable or Unreadable(source, policy='error')
  return read_batches(range(steps), make_batch, columns, unreadable, reading)


@contextlib.contextmanager
def read_batches(
  steps: range,
  make_batch: Callable[[int], HostBatch],
  columns: Columns,
  unreadable: Unreadable,
  reading: Reading,
) -> Iterator[Iterator[HostBatch]]:
  """The batches of some steps, made ahead, and reports what could not be read."""
  with contextlib.closing(reopening(steps, make_batch, reading, unreadable.say)) as batches:
    yield (unreadable.report(batch, columns) for batch in batches)


def reopening(
  steps: range,
  make_batch: Callable[[int], HostBatch],
  reading: Reading,
  say: Callable[[str], object],
) -> Generator[HostBatch]:
  """The batches of some steps; readers that are killed, or give nothing, are replaced.

  Raises:
    DataError: when REOPENS in a row have given nothing either.
  """
  failures = 0
  while steps:
    try:
      with iterate(steps, make_batch, reading) as batches:
        for batch in batches:
          steps, failures = steps[1:], 0
          yield batch
    except ReaderLost as error:
      failures += 1
      if failures > REOPENS:
        raise DataError(f'{error}; so had {REOPENS} readers before it') from error
      say(f'{error}: reads on with new ones')


@functools.lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> np.ndarray:
  """The indices 0 ... count - 1 in the order of an epoch."""
  # BatchBuilder's counters end in a repeat, which is never that large: no stream is used twice.
  rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, 2**63]))
  return rng.permutation(np.arange(count, dtype=np.int32 if count < 2**31 else np.int64))


@functools.lru_cache(maxsize=2)
def balanced_order(groups: Groups, count: int, seed: int, epoch: int) -> np.ndarray:
  """As many indices as an epoch has, in which each group comes as often as another, but for one.

  A group that is smaller than its part comes whole, again and again; of a larger one it is another
  choice in each epoch.
  """
  rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, 2**63]))
  number = len(groups.indices)
  part, extra = divmod(count, number)
  sizes = part + (rng.permutation(number) < extra)
  parts = [
    np.concatenate([rng.permutation(group) for _ in range(-(-size // len(group)))] or [group])[
      :size
    ]
    for group, size in zip(groups.indices, sizes.tolist())
  ]
  return rng.permutation(np.concatenate(parts))


class BatchBuilder:
  """A batch that `count` examples are added to; columns draw from generators of that seed.

  With `substitute` another record takes the place of one that cannot be read.
  """

  def __init__(
    self, source: Source, columns: Columns, count: int, *, seed: int, substitute: bool = True
  ):
    self.source, self.columns, self.substitute = source, columns, substitute
    self.bits = np.random.Philox(key=seed)
    self.rng, self.state = np.random.Generator(self.bits), self.bits.state
    self.rows = {name: np.empty((count, *c.shape), c.dtype) for name, c in columns.items()}
    self.mask = np.zeros(count, np.float32)
    self.unreadable = np.full(count, -1, np.int64)
    self.row = 0

  def add(self, index: int, epoch: int = 0, repeat: int = 0, *, counts: bool = True) -> None:
    """Makes an example of a record; `counts` becomes its mask.

    Raises:
      DataError: if neither it nor any of the TRIES after it can be read, or for one that does not
        fit its columns.
    """
    row, tries = self.row, TRIES if self.substitute else 1
    self.row += 1
    for position in range(index, index + tries):
      candidate = position % len(self.source)
      try:
        self.fill(row, candidate, epoch, repeat)
      except (BadImage, OSError) as error:
        self.unreadable[row], last = index, error
        continue
      except ValueError as error:
        raise DataError(f'{self.source.describe(candidate)}: {reason(error)}') from None
      except Exception as error:  # a column of somebody else's task may raise anything
        line = f'{type(error).__name__}: {reason(error)}'
        raise DataError(f'{self.source.describe(candidate)}: {line}') from error
      self.mask[row] = counts
      return
    if self.substitute:
      message = f'{tries} images in a row cannot be read, from {self.source.describe(index)} on'
      raise DataError(f'{message}; the last: {reason(last)}')
    for name, column in self.columns.items():
      self.rows[name][row] = column.empty

  def fill(self, row: int, index: int, epoch: int, repeat: int) -> None:
    """Fills a row of every column from a record."""
    record = dict(self.source[index])  # of this example alone
    for name, column in self.columns.items():
      if column.view is None:
        value = np.asarray(column.fill(record, None))
      else:
        # As Philox(key=seed, counter=...), at a fifth of the time. The first word counts samples,
        # so a view begins 2^48 samples after the one before.
        self.state['state']['counter'][:] = (column.view << 48, index, epoch, repeat)
        self.bits.state = self.state
        value = np.asarray(column.fill(record, self.rng))
      if value.shape != column.shape or not np.can_cast(value.dtype, column.dtype, 'same_kind'):
        wanted = f'{np.dtype(column.dtype)} {column.shape}'
        raise ValueError(f'column {name!r} is {value.dtype} {value.shape}, must be {wanted}')
      differs = value.dtype != column.dtype  # images do not, and it is quick for others
      if differs and value.dtype.kind in 'iu' and (value.astype(column.dtype) != value).any():
        raise ValueError(f'column {name!r} has a number that {np.dtype(column.dtype)} cannot hold')
      self.rows[name][row] = value

  def arrays(self) -> HostBatch:
    """The columns, 'mask', and 'unreadable' (rows,), the index of what could not be read, or -1."""
    return {**self.rows, 'mask': self.mask, 'unreadable': self.unreadable}


@contextlib.contextmanager
def iterate(
  steps: range, make_batch: Callable[[int], HostBatch], reading: Reading
) -> Iterator[Iterator[HostBatch]]:
  """The batches of some steps, made ahead by threads or workers, which end with the context."""
  iterator: Batches = (
    by_workers(steps, make_batch, reading)
    if reading.workers
    else by_threads(steps, make_batch, reading.threads)
  )
  batches = (next_batch(iterator, number, reading) for number in range(len(steps)))
  try:
    if reading.workers:
      with sigint_blocked():  # workers inherit it: Ctrl-C is for the main process to handle
        first = next(batches)
      yield map(copy_batch, itertools.chain([first], batches))
    else:
      yield batches
  finally:
    close(iterator)


def by_threads(
  steps: range, make_batch: Callable[[int], HostBatch], threads: int
) -> Generator[HostBatch]:
  """Batches that so many threads make: two of each are in memory, one that waits to be taken.

  What Grain's would do; to import Grain takes half a second, as it imports Orbax.
  """
  pool, remaining = ThreadPoolExecutor(threads, 'data'), iter(steps)
  try:
    ahead = deque(
      pool.submit(make_batch, step) for step in itertools.islice(remaining, 2 * threads)
    )
    while ahead:
      batch = ahead.popleft().result()
      ahead.extend(pool.submit(make_batch, step) for step in itertools.islice(remaining, 1))
      yield batch
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def by_workers(
  steps: range, make_batch: Callable[[int], HostBatch], reading: Reading
) -> 'grain.DatasetIterator[HostBatch]':
  """Batches that Grain's processes make, each with threads of its own.

  A thread makes a whole batch: Grain costs as much for an image as for many.
  """
  import grain

  dataset = grain.MapDataset.range(steps.start, steps.stop).map(make_batch)
  options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=2 * reading.threads)
  mark_flags_parsed()
  silence_tracker()
  workers = grain.multiprocessing.MultiprocessingOptions(num_workers=reading.workers)
  return iter(dataset.to_iter_dataset(options).mp_prefetch(workers))


def next_batch(iterator: Iterator[HostBatch], number: int, reading: Reading) -> HostBatch:
  """Batch `number` of an iterator; ReaderLost where its worker was killed, or gives nothing."""
  count = reading.workers
  worker = f'worker {number % count + 1} of {count}' if count else ''  # they take turns
  try:
    with waiting('data', (lambda: worker) if worker else None, limit=reading.timeout):
      return next(iterator)
  except TimeoutError:
    raise ReaderLost(f'no data for {reading.timeout:g} s{worker and f" from {worker}"}') from None
  except RuntimeError as error:
    if 'terminated unexpectedly' in str(error):  # as Grain (0.2) has it
      raise ReaderLost(f'{worker} has died') from error
    raise


def close(iterator: Batches) -> None:
  """Ends an iterator's threads and workers; those that do not end by themselves are killed."""
  closing = threading.Thread(target=iterator.close, daemon=True)
  closing.start()
  closing.join(CLOSING)
  if closing.is_alive():
    for child in multiprocessing.active_children():
      if 'grain' in child.name:
        child.kill()
    closing.join(CLOSING)


@contextlib.contextmanager
def sigint_blocked() -> Iterator[None]:
  """Threads and processes started inside never get Ctrl-C, which waits in this thread meanwhile."""
  resource_tracker.ensure_running()  # it would unblock the signal
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def copy_batch(batch: HostBatch) -> HostBatch:
  """A copy of a batch that lies in memory shared with a worker, which must be free at exit."""
  return {name: np.array(rows) for name, rows in batch.items()}


def silence_tracker() -> None:
  """Has Python free the batches that workers hold at the end without a warning.

  Grain (0.2) does not unlink their shared memory. The process that tracks it inherits our filters.
  """
  if TRACKER not in sys.warnoptions:
    sys.warnoptions.append(TRACKER)


def mark_flags_parsed() -> None:
  """Grain's workers read absl flags, which are not parsed where absl does not start the program."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
