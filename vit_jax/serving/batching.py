"""Images of many requests in few batches: one thread runs the model on what waits.

B images in a batch, H, W pixels and C channels of one.
"""

import collections
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

import numpy as np

Rows = dict[str, np.ndarray]
Step = Callable[[np.ndarray], Rows]  # uint8 (B, H, W, C) -> arrays (B, ...) by name

ALWAYS = 8  # images of the largest batch that is compiled whether it pays or not
GAIN = 1.1  # by which a batch of twice as many must raise images/s to be worth its program
NEAR = 0.9  # of the best images/s: what comes so near is as good, and of these the largest is taken
REPEATS, ENOUGH = 3, 0.5  # times that a batch is timed, and seconds after which once is enough


class Busy(Exception):
  """More images wait than may; `seconds` is when as many will have been answered."""

  def __init__(self, seconds: int):
    super().__init__(f'too many images are waiting: try again in {seconds} s')
    self.seconds = seconds


def timed_sizes(step: Step, shape: tuple[int, ...], *, largest: int) -> dict[int, float]:
  """{B: seconds of a step of B images}, for powers of two so far as larger ones pay.

  Every size in it is compiled when this returns, so that no request waits for a compiler.

  Args:
    step: the model.
    shape: (H, W, C) of an image.
    largest: batch that is tried.
  """
  seconds: dict[int, float] = {}
  size = 1
  while size <= largest:
    seconds[size] = fastest(step, np.zeros((size, *shape), np.uint8))
    if size > ALWAYS and seconds[size] * GAIN > 2 * seconds[size // 2]:
      break
    size *= 2
  return seconds


def fastest(step: Step, images: np.ndarray) -> float:
  """The shortest time of a step in seconds, after one that compiles."""
  step(images)
  times: list[float] = []
  while len(times) < REPEATS and sum(times) < ENOUGH:
    began = time.perf_counter()
    step(images)
    times.append(time.perf_counter() - began)
  return min(times)


def best_size(waiting: int, seconds: Mapping[int, float]) -> int:
  """The batch that answers most images a second where so many wait; of near ones the largest.

  It may be larger than what waits: where a device computes 8 images as fast as 5, the 5 go as 8.
  """
  useful = {size: cost for size, cost in seconds.items() if size < 2 * waiting}
  rates = {size: min(waiting, size) / cost for size, cost in useful.items()}
  enough = NEAR * max(rates.values())
  return max(size for size, rate in rates.items() if rate >= enough)


class Batcher:
  """A queue of images, and the thread that answers them in batches of fixed sizes.

  Images of requests come first; those that are patient, as of an explanation, are taken when no
  other waits.

  Args:
    step: the model.
    seconds: {B: seconds of its step}, of `timed_sizes`.
    limit: images of requests that may wait or be computed at once.
    report: takes the number of images of each batch and the seconds it took, in the thread.
  """

  def __init__(
    self,
    step: Step,
    seconds: Mapping[int, float],
    *,
    limit: int,
    report: Callable[[int, float], object] = lambda count, seconds: None,
  ):
    self.step, self.seconds, self.limit, self.report = step, dict(seconds), limit, report
    self.rate = max(size / cost for size, cost in self.seconds.items())  # images a second
    self.admitted = 0
    self.urgent: collections.deque[tuple[np.ndarray, Future[Rows]]] = collections.deque()
    self.patient: collections.deque[tuple[np.ndarray, Future[Rows]]] = collections.deque()
    self.changed = threading.Condition()
    self.closing = False
    self.thread = threading.Thread(target=self.run, name='batches', daemon=True)
    self.thread.start()

  @contextlib.contextmanager
  def admit(self, count: int) -> Iterator[None]:
    """Makes room for the images of a request, from before they are decoded until they are answered.

    It is called in one thread, the server's.

    Raises:
      Busy: where there is none.
    """
    if self.admitted + count > self.limit:
      raise Busy(max(1, math.ceil(self.admitted / self.rate)))
    self.admitted += count
    try:
      yield
    finally:
      self.admitted -= count

  def submit(self, image: np.ndarray, *, patient: bool = False) -> Future[Rows]:
    """The rows of one image (H, W, C), when they are computed; cancelled, it is passed over."""
    result: Future[Rows] = Future()
    with self.changed:
      if self.closing:
        raise RuntimeError('the server is ending')
      (self.patient if patient else self.urgent).append((image, result))
      self.changed.notify()
    return result

  def run(self) -> None:
    """Answers batches until `close`."""
    while batch := self.next_batch():
      answer(self.step, batch, self.report, self.seconds)

  def next_batch(self) -> list[tuple[np.ndarray, 'Future[Rows]']]:
    """Waits for images, and takes as many as are best computed at once; [] at the end."""
    with self.changed:
      while True:
        self.changed.wait_for(lambda: self.urgent or self.patient or self.closing)
        if not (lane := self.urgent or self.patient):
          return []
        size = best_size(len(lane), self.seconds)
        taken = [lane.popleft() for _ in range(min(size, len(lane)))]
        if batch := [pair for pair in taken if pair[1].set_running_or_notify_cancel()]:
          return batch

  def close(self) -> None:
    """Ends the thread; what still waits is cancelled."""
    with self.changed:
      self.closing = True
      for lane in (self.urgent, self.patient):
        for _, result in lane:
          result.cancel()
        lane.clear()
      self.changed.notify()
    self.thread.join()


def answer(
  step: Step,
  batch: list[tuple[np.ndarray, 'Future[Rows]']],
  report: Callable[[int, float], object],
  sizes: Mapping[int, float],
) -> None:
  """Computes a batch, filled up with zeros to one of the sizes, and gives each image its rows."""
  images = np.stack([image for image, _ in batch])  # (B, H, W, C)
  size = min(size for size in sizes if size >= len(batch))
  padding = np.zeros((size - len(batch), *images.shape[1:]), np.uint8)
  began = time.perf_counter()
  try:
    arrays = step(np.concatenate([images, padding]) if len(padding) else images)
  except Exception as error:  # of the device: these images fail, the next may not
    for _, result in batch:
      result.set_exception(error)
    return
  report(len(batch), time.perf_counter() - began)
  for row, (_, result) in enumerate(batch):
    result.set_result({name: values[row] for name, values in arrays.items()})
