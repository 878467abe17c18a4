"""What ends a process before its work is done: SIGTERM, Ctrl-C, a closed terminal, a time limit.

Standard library alone, to be imported before anything slow. The first signal is handled in Python's
main thread, by an exception or, where a run can be saved, by `asked`. Python hears no signal while
C++ runs, as XLA's compiler does for minutes; so the signals' numbers also go through a pipe to a
thread, which ends the process where the main thread does not, and at once for the second signal.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from vit_jax.guards import waiting

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INSISTENT = (signal.SIGINT, signal.SIGTERM)  # a terminal that is closed may send two SIGHUP
ECHO = 0.1  # seconds in which the same signal counts once: `timeout` sends it to process and group
WAITS = {  # phases that are waited for, and the words for it
  'import': 'imports',
  'data': 'data',
  'compile': 'the compiler',
  'restore': 'the checkpoint to be read',
  'evaluation': 'the evaluation',
  'save': 'the checkpoint to be written',
  'test': 'the test',
  'bundle': 'the model to be written',
  'card': 'the model card',
  'report': 'the report',
}
SAVING = ('loop', 'save')  # phases that end by themselves, soon, and with everything saved
GRACE = 5.0  # seconds that the main thread has to unwind, before its process is ended
CLEANUP = 5.0  # seconds for what is removed then, on a disk that may not answer
NOTICE = 0.5  # seconds that a line has at the end, on an output that may not take it
EXIT = 20.0  # seconds that threads of others have at the end of a process that was not stopped
IMPORTING = '<frozen importlib._bootstrap>'  # the file of Python's code that imports
SHOW_CURSOR = b'\x1b[?25h'


class Stopped(KeyboardInterrupt):
  """The first signal, raised in the main thread: what is unfinished is removed on its way out.

  Not in an import, where the process is ended at once, or in the loop goes on until it saves.

  Its text is a line for the user; `code` is the exit code: in a phase of a run 0, for the same line
  resumes it, else 128 and the signal's number.
  """

  def __init__(self, number: int, phase: str | None):
    self.code = 0 if phase else 128 + number
    during = f' during {phase}; the same command resumes' if phase else ''
    super().__init__(f'stopped by {signal.Signals(number).name}{during}')


class Process:
  """What this process is doing, and the first signal that came to it."""

  def __init__(self) -> None:
    self.phases: list[str] = []
    self.phase_listeners: list[Callable[[str], object]] = []
    self.cleanups: list[Callable[[], object]] = []
    self.unraisable = sys.unraisablehook  # for all other errors
    self.number: int | None = None  # of the first signal
    self.dropped: int | None = None  # the same, where Python dropped what it raised
    self.asked = False
    self.notice: threading.Thread | None = None  # prints what the first signal asked for
    self.is_one_of_many = False
    self.stderr = 2  # file descriptor of messages

  @property
  def phase(self) -> str | None:
    """The innermost phase; None outside a run."""
    return self.phases[-1] if self.phases else None

  @property
  def saves(self) -> bool:
    """Whether the phase ends by itself, with the run saved."""
    return self.phase in SAVING or self.saves_together

  @property
  def saves_together(self) -> bool:
    """Whether this process is in the loop of many, which end it at one step."""
    return self.is_one_of_many and 'loop' in self.phases

  def report_phase(self) -> None:
    """Tells the listeners which phase is the innermost."""
    if self.phases:
      for listener in self.phase_listeners:
        listener(self.phases[-1])

  def receive(self, number: int, frame: FrameType | None = None) -> None:
    """Handles the first signal, in the main thread; the second is for `watch`."""
    if self.number is not None:
      return
    self.number = number
    if 'loop' in self.phases or self.saves:
      self.asked = True
      line = f'{signal.Signals(number).name}: saving after this step; once more ends at once'
      self.notice = threading.Thread(
        target=print, args=(line,), kwargs={'flush': True}, daemon=True
      )
      self.notice.start()
    if self.saves:
      return
    stopped = Stopped(number, self.phase)
    if not is_importing(frame):
      raise stopped
    if not self.asked:
      self.end(stopped.code, f'vit: {stopped}\n')

  def raise_again(self, unraisable: 'sys.UnraisableHookArgs') -> None:
    """Raises `Stopped` again where Python dropped it, as it does inside a callback.

    Nothing can be raised from here; a timer's signal, 10 ms on, finds the interpreter elsewhere.
    """
    if isinstance(unraisable.exc_value, Stopped):
      self.dropped, self.number = self.number, None
      signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
      self.unraisable(unraisable)

  def alarm(self, number: int, frame: FrameType | None) -> None:
    """Handles SIGALRM: it raises what `raise_again` could not, or ends a wait."""
    if self.dropped is None:
      waiting.expire()
    else:
      number, self.dropped = self.dropped, None
      self.receive(number, frame)

  def watch(self, pipe: int) -> None:
    """Ends the process at the second signal, or where the first is not obeyed."""
    first = next_signal(pipe)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)  # it may block `first`
    began = obeyed = time.monotonic()
    while not (second := next_signal(pipe, INSISTENT, timeout=0.1)) or (
      second == first and time.monotonic() - began < ECHO
    ):
      if self.saves:
        obeyed = time.monotonic()
      elif time.monotonic() - obeyed > GRACE:
        stopped = Stopped(first, self.phase)
        self.end(stopped.code, f'vit: {stopped}\n')
    self.end(128 + second)

  def end(self, code: int, line: str = '') -> NoReturn:
    """Ends the process from any thread, without what the main thread would do on its way out."""
    cleaner = threading.Thread(target=self.clean_up, args=(line,), daemon=True)
    cleaner.start()
    cleaner.join(CLEANUP)
    if self.notice is not None:
      self.notice.join(NOTICE)
    os._exit(code)

  def clean_up(self, line: str = '') -> None:
    """Ends worker processes, removes what must not outlive this, frees the terminal."""
    for child in multiprocessing.active_children():
      child.kill()
    for function in reversed(self.cleanups):
      with contextlib.suppress(Exception):
        function()
    for terminal in filter(os.isatty, (1, self.stderr)):
      os.write(terminal, SHOW_CURSOR)
    with contextlib.suppress(OSError):
      os.write(self.stderr, line.encode())


PROCESS = Process()  # signals come to a process, and so this is one for each


def install() -> None:
  """Takes SIGNALS over: among the first statements of a process, in its main thread.

  A Ctrl-C that was ignored, as below `&` of a script, is answered like any other; a SIGHUP that was
  ignored, as below `nohup`, still is.
  """
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  for number in SIGNALS:
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, PROCESS.receive)
  signal.signal(signal.SIGALRM, PROCESS.alarm)
  os.register_at_fork(after_in_child=uninstall)
  PROCESS.unraisable, sys.unraisablehook = sys.unraisablehook, PROCESS.raise_again
  threading.Thread(target=PROCESS.watch, args=(reading,), name='signals', daemon=True).start()


def uninstall() -> None:
  """Leaves signals to Python's defaults, as a process forked from this one must."""
  signal.set_wakeup_fd(-1)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.SIG_DFL)


def is_importing(frame: FrameType | None) -> bool:
  """Whether a frame is of an import: C extensions crash where an exception comes as they start."""
  while frame:
    if frame.f_code.co_filename == IMPORTING:
      return True
    frame = frame.f_back
  return False


def next_signal(
  pipe: int, numbers: tuple[signal.Signals, ...] = SIGNALS, *, timeout: float | None = None
) -> int:
  """The next of these numbers that is read from a pipe; 0 when the time is over."""
  while select.select([pipe], [], [], timeout)[0]:
    if (number := os.read(pipe, 1)[0]) in numbers:
      return number
  return 0


def join(stderr: int) -> None:
  """Has a signal raise nothing in the loop, where the other processes may wait for this one.

  Messages go to the file descriptor `stderr`.
  """
  PROCESS.is_one_of_many, PROCESS.stderr = True, stderr


def asked() -> bool:
  """Whether a first signal asks a run to save and end."""
  return PROCESS.asked


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
  """Names what a run does inside, for what a signal does there.

  In 'loop' and 'save' the first signal sets `asked`; elsewhere it raises `Stopped`, in a phase
  inside of 'loop' both, and `Stopped` again at the beginning of any later one.
  """
  # Asked for while the run was saving, or raised before and swallowed, as by an import's `except:`
  if PROCESS.number and name not in SAVING and not PROCESS.saves_together:
    raise Stopped(PROCESS.number, name)
  depth = len(PROCESS.phases)
  PROCESS.phases.append(name)
  PROCESS.report_phase()
  try:
    with waiting.waiting(WAITS[name]) if name in WAITS else contextlib.nullcontext():
      yield
  finally:
    del PROCESS.phases[depth:]  # also what a signal's exception kept from being removed
    PROCESS.report_phase()


def watch_phases(function: Callable[[str], object]) -> None:
  """Has a function called with the innermost phase, in its thread, whenever that is another."""
  PROCESS.phase_listeners.append(function)


def at_exit(function: Callable[[], object]) -> None:
  """Has a function called before the process is ended at once, as by a second signal.

  It may be called from another thread, when what it removes is gone already.
  """
  PROCESS.cleanups.append(function)


def end(code: int, line: str = '') -> NoReturn:
  """Ends the process at once, from any thread, after what `at_exit` has; the line is printed."""
  PROCESS.end(code, line)


def leave(code: int) -> NoReturn:
  """Ends a process that has done what it could, whatever threads of others still wait for."""
  if PROCESS.number is not None or PROCESS.is_one_of_many:
    PROCESS.end(code)  # XLA may crash at shutdown if a compilation was cut off, or wait for others
  timer = threading.Timer(EXIT, os._exit, [code])
  timer.daemon = True
  timer.start()
  sys.exit(code)


@contextlib.contextmanager
def time_limit(ends: float, limit: str, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
  """Asks the loop to end after its step when the run's time is over: when `time.monotonic()` ends.

  With several processes the first one's clock counts, see `processes.all_stop`.
  """
  import jax  # which is slow

  over = threading.Event()

  def expire() -> None:
    say(f'the time limit, {limit}, is over: saving')
    over.set()

  if ends == float('inf') or jax.process_index() > 0:
    yield over.is_set
    return
  timer = threading.Timer(max(ends - time.monotonic(), 0), expire)
  timer.daemon = True
  timer.start()
  try:
    yield over.is_set
  finally:
    timer.cancel()
