"""What ends a run before its last step: SIGTERM, Ctrl-C, the time limit."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax


@contextlib.contextmanager
def interruption(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
  """SIGTERM and Ctrl-C ask the loop to end after its step; the second one ends it at once.

  With several processes SIGTERM is left to JAX, whose notice reaches all of them through
  `Checkpoints.interrupted`, so that they stop at the same step. A Ctrl-C that was ignored before,
  as below `nohup` or `&` of a script, is answered like any other.
  """
  asked = threading.Event()
  handles = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
  signals = [signal.SIGINT, signal.SIGTERM] if handles else []

  def ask(number: int, _: object) -> None:
    say(f'{signal.Signals(number).name}: saving after this step; once more ends at once')
    asked.set()
    restore()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
      signal.signal(signal.SIGINT, signal.default_int_handler)

  before = {number: signal.getsignal(number) for number in signals}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  for number in signals:
    signal.signal(number, ask)
  try:
    yield asked.is_set
  finally:
    restore()


@contextlib.contextmanager
def time_limit(ends: float, limit: str, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
  """Asks the loop to end after its step when the run's time is over: when `time.monotonic()` ends.

  With several processes the first one's clock counts: it tells the others as a scheduler would, by
  a SIGTERM to itself, see `interruption`.
  """
  over = threading.Event()

  def end() -> None:
    say(f'the time limit, {limit}, is over: saving')
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      over.set()

  if ends == float('inf') or jax.process_index() > 0:
    yield over.is_set
    return
  timer = threading.Timer(max(ends - time.monotonic(), 0), end)
  timer.daemon = True
  timer.start()
  try:
    yield over.is_set
  finally:
    timer.cancel()
