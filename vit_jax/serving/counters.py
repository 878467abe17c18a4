"""What a server has done since it began, in Prometheus' text format."""

import bisect
import collections
from collections.abc import Iterator

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
TYPE = 'text/plain; version=0.0.4; charset=utf-8'


class Histogram:
  """How often values fell below each of some bounds, their sum and number."""

  def __init__(self, bounds: tuple[float, ...]):
    self.bounds, self.total = bounds, 0.0
    self.counts = [0] * (len(bounds) + 1)  # the last is of values beyond all bounds

  def add(self, value: float) -> None:
    self.counts[bisect.bisect_left(self.bounds, value)] += 1
    self.total += value

  def lines(self, name: str, meaning: str) -> Iterator[str]:
    yield from head(name, meaning, 'histogram')
    below = 0
    for bound, count in zip((*self.bounds, '+Inf'), self.counts):
      below += count
      yield f'{name}_bucket{{le="{bound}"}} {below}'
    yield f'{name}_sum {self.total:.6f}'
    yield f'{name}_count {below}'


class Counters:
  """Requests by path and status, how long predictions took, and the batches."""

  def __init__(self) -> None:
    self.requests: collections.Counter[tuple[str, int]] = collections.Counter()
    self.latency = Histogram(SECONDS)
    self.batches = Histogram(IMAGES)
    self.batch_seconds = Histogram(SECONDS)

  def add_batch(self, count: int, seconds: float) -> None:
    """Counts a batch of so many images; in the thread of the batches alone."""
    self.batches.add(count)
    self.batch_seconds.add(seconds)

  def add_request(self, path: str, status: int, seconds: float) -> None:
    """Counts a request; `path` is one of the server's own, or 'other'."""
    self.requests[path, status] += 1
    if path == '/predict' and status == 200:
      self.latency.add(seconds)

  def text(self, *, waiting: int) -> str:
    """All of it, and how many images wait at this moment."""
    lines = [*head('vit_requests_total', 'Requests by path and status.', 'counter')]
    for (path, status), count in sorted(self.requests.items()):
      lines.append(f'vit_requests_total{{path="{path}",status="{status}"}} {count}')
    lines += head('vit_queue_images', 'Images that wait or are computed.', 'gauge')
    lines.append(f'vit_queue_images {waiting}')
    lines += self.latency.lines('vit_predict_seconds', 'Seconds of answered predictions.')
    lines += self.batches.lines('vit_batch_images', 'Images of each batch.')
    lines += self.batch_seconds.lines('vit_batch_seconds', 'Seconds of each batch.')
    return '\n'.join(lines) + '\n'


def head(name: str, meaning: str, kind: str) -> Iterator[str]:
  yield f'# HELP {name} {meaning}'
  yield f'# TYPE {name} {kind}'
