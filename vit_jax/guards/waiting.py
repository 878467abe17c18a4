"""Waits have names: what lasts for a minute says so, on a line from a thread of its own.

  with waiting('data', lambda: 'worker 1 of 2', limit=300): ...

prints "waiting for data since 12:01:05 (worker 1 of 2)" after 60 s, again after 120 s, 240 s and so
on, and raises TimeoutError after 300 s. Standard library alone: imports are waited for, too.
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

from vit_jax.text import to_stderr

T = TypeVar('T')
FIRST = 60.0  # seconds until the first line
TICK = 0.5  # seconds between looks at the clock


@dataclasses.dataclass
class Wait:
  """Something that is waited for, in one thread.

  Fields:
    noun: what it is, after "waiting for".
    detail: more about it, asked from another thread; None where there is no more.
    limit: seconds that it may last.
    began: by `time.monotonic()`.
    due: seconds after `began` at which the next line is due.
  """

  noun: str
  detail: Callable[[], str] | None
  limit: float
  began: float
  due: float

  @property
  def seconds(self) -> float:
    return time.monotonic() - self.began

  def __str__(self) -> str:
    since = time.strftime('%H:%M:%S', time.localtime(time.time() - self.seconds))
    detail = ''
    with contextlib.suppress(Exception):  # it is computed from what another thread is changing
      detail = f' ({self.detail()})' if self.detail else ''
    return f'waiting for {self.noun} since {since}{detail}'


class Watchdog:
  """The waits of each thread, the innermost last, and a thread that looks at them."""

  def __init__(self) -> None:
    self.waits: dict[int, list[Wait]] = {}
    self.thread: threading.Thread | None = None

  def start(self) -> None:
    """Starts its thread, unless it runs."""
    if self.thread is None or not self.thread.is_alive():
      self.thread = threading.Thread(target=self.watch, name='waiting', daemon=True)
      self.thread.start()

  def watch(self) -> None:
    while True:
      time.sleep(TICK)
      for thread, waits in list(self.waits.items()):
        self.report(waits.copy())
        if any(wait.seconds > wait.limit for wait in waits.copy()):
          interrupt(thread)

  def report(self, waits: list[Wait]) -> None:
    """Prints the innermost of a thread's waits that are due."""
    due = [wait for wait in waits if wait.seconds > wait.due]
    if due:
      to_stderr(f'vit: {due[-1]}')
    for wait in due:
      wait.due = 2 * wait.seconds


WATCHDOG = Watchdog()  # one for a process, as its main thread is


@contextlib.contextmanager
def waiting(
  noun: str, detail: Callable[[], str] | None = None, *, limit: float = math.inf
) -> Iterator[None]:
  """Names what is waited for inside, for the line that says so.

  Args:
    noun: what, after "waiting for".
    detail: more about it; it is called in another thread.
    limit: seconds after which TimeoutError is raised; in the main thread alone, where
      `stopping.install` was called, and not while C++ runs there.
  """
  WATCHDOG.start()
  waits = WATCHDOG.waits.setdefault(threading.get_ident(), [])
  depth = len(waits)
  waits.append(Wait(noun, detail, limit, time.monotonic(), FIRST))
  try:
    yield
  finally:
    del waits[depth:]  # also what a signal's exception kept from being removed


def current() -> str | None:
  """The line about what the main thread has waited for longer than FIRST; None where it has not."""
  waits = WATCHDOG.waits.get(threading.main_thread().ident or 0, [])
  return next((str(wait) for wait in reversed(waits) if wait.seconds > FIRST), None)


def interrupt(thread: int) -> None:
  """Has `expire` called in the main thread, if that is the thread."""
  handled = signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN, None)
  if thread == threading.main_thread().ident and handled:
    signal.pthread_kill(thread, signal.SIGALRM)


def expire(number: int = signal.SIGALRM, frame: FrameType | None = None) -> None:
  """Raises TimeoutError where a wait of this thread has lasted too long; a handler of SIGALRM."""
  for wait in reversed(WATCHDOG.waits.get(threading.get_ident(), [])):
    if wait.seconds > wait.limit:
      error = TimeoutError(f'{wait.noun} took more than {wait.limit:g} s')
      wait.limit = math.inf  # it is raised once
      raise error


def in_background(action: Callable[[], T]) -> Future[T]:
  """The future result of an action on a disk, which a thread of its own waits for."""
  outcome: Future[T] = Future()

  def run() -> None:
    try:
      outcome.set_result(action())
    except BaseException as error:
      outcome.set_exception(error)

  threading.Thread(target=run, daemon=True).start()
  return outcome


def result(outcome: Future[T], seconds: float) -> T:
  """The result of `in_background`; TimeoutError where the disk does not answer, who waits on."""
  try:
    return outcome.result(seconds)
  except TimeoutError:
    if outcome.done():
      raise
    raise TimeoutError(f'the disk has not answered for {seconds:.0f} s') from None


def in_time(action: Callable[[], T], seconds: float) -> T:
  """The result of an action on a disk; TimeoutError where that does not answer."""
  return result(in_background(action), seconds)
