"""Batches of a source, by Grain: shuffled and augmented for training, padded for evaluation.

B batch, N images. Order and augmentation depend on the seed and an example's position in the run
alone, so that any number of hosts, workers or threads, and a run resumed at any step, see the same.
"""

import contextlib
import dataclasses
import itertools
import signal
import threading
from collections.abc import Iterator

import numpy as np

from vit_jax.data import transforms
from vit_jax.data.sources import Record, Source

HostBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a process reads: its share of each batch, and by how many threads and workers.

  Fields:
    share: (index, count): this process takes run `index` of `count` equal runs of rows.
    threads: that prepare batches, in each worker or, without workers, in this process.
    workers: processes beside this one; 0 for none. Threads do while they can keep up.
  """

  share: tuple[int, int] = (0, 1)
  threads: int = 2
  workers: int = 0


@contextlib.contextmanager
def training_batches(
  source: Source,
  transform: transforms.Step,
  *,
  batch_size: int,
  seed: int,
  start: int = 0,
  reading: Reading = Reading(),
) -> Iterator[Iterator[HostBatch]]:
  """Endless batches from step `start` on: epoch after epoch, each in an order of its own.

  Args:
    source: to read.
    transform: of `transforms.compose`; its generator is seeded by (seed, position).
    batch_size: B over all processes; this one's batches hold B / reading.share[1] rows.
    seed: of order and augmentation.
    start: steps already taken.
    reading: this process's part.

  Yields:
    (inside the context) an iterator of {'image': uint8 (rows, H, W, 3), 'label', 'mask'}.
  """
  import grain

  index, count = reading.share
  dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  # Transforms before the share is taken: their seed is then the position in the whole run.
  dataset = dataset.random_map(lambda record, rng: transformed(record, transform, rng))
  # Whole shares first, then every count-th: rows keep the order that one process would give them.
  dataset = dataset.batch(batch_size // count, drop_remainder=True)[start * count + index :: count]
  with opened(dataset, reading) as batches:
    yield batches


@contextlib.contextmanager
def evaluation_batches(
  source: Source,
  transform: transforms.Step,
  *,
  batch_size: int,
  reading: Reading = Reading(),
) -> Iterator[Iterator[HostBatch]]:
  """Every image once, in order; rows that fill up the last batch have mask 0.

  All processes yield the same number of batches.
  """
  import grain

  index, count = reading.share
  batches = -(-len(source) // batch_size)
  rng = np.random.default_rng(0)  # evaluation transforms draw nothing from it

  def example(position: int) -> Record:
    record = transformed(source[min(position, len(source) - 1)], transform, rng)
    return record | {'mask': np.asarray(position < len(source), np.float32)}

  dataset = grain.MapDataset.range(batches * batch_size).map(example)
  dataset = dataset.batch(batch_size // count, drop_remainder=True)[index::count]
  with opened(dataset, reading) as rows:
    yield rows


def transformed(record: Record, transform: transforms.Step, rng: np.random.Generator) -> Record:
  """The record with its image transformed, its label, and mask 1."""
  image = np.ascontiguousarray(transform(record['image'], rng))
  return {'image': image, 'label': record['label'], 'mask': np.ones((), np.float32)}


@contextlib.contextmanager
def opened(dataset, reading: Reading) -> Iterator[Iterator[HostBatch]]:
  """A Grain data set as an iterator whose threads and workers end with the context."""
  import grain

  options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=2 * reading.threads)
  iterable = dataset.to_iter_dataset(options)
  if reading.workers:
    mark_flags_parsed()
    workers = grain.multiprocessing.MultiprocessingOptions(num_workers=reading.workers)
    iterable = iterable.mp_prefetch(workers)
  iterator = iter(iterable)
  try:
    if reading.workers:
      with sigint_ignored():  # workers inherit it: Ctrl-C is for the main process to handle
        first = next(iterator)
      yield map(owned, itertools.chain([first], iterator))
    else:
      yield iterator
  finally:
    iterator.close()


@contextlib.contextmanager
def sigint_ignored() -> Iterator[None]:
  """Processes started inside ignore Ctrl-C; this one does for that while."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def owned(batch: HostBatch) -> HostBatch:
  """A copy of a batch that lies in memory shared with a worker, which must be free at exit."""
  return {name: np.array(rows) for name, rows in batch.items()}


def mark_flags_parsed() -> None:
  """Grain's workers read absl flags, which nobody parses where absl does not start the program."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
