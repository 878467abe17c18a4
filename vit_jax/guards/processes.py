"""The processes of one run: they join, agree, wait for each other, stop at one step, end together.

JAX notices a dead process after a hundred seconds, then aborts the others, and never notices one
that hangs. So every process beats in the key-value store of JAX's coordinator, which process 0
holds, and process 0 listens. One that ends early says why in the same store, and all end with it.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

from vit_jax.guards import native, stopping
from vit_jax.text import message_line, one_line, to_stderr

BEATS, VERDICTS, STOP = 'vit_jax/beats', 'vit_jax/verdicts', 'vit_jax/stop'
INTERVAL = 1.0  # seconds between beats
STILL = 60.0  # seconds without progress until the first line about it
LINGER = 5.0  # seconds that process 0, with the store, leaves the others to read why it ends
FAILED = 1  # exit code, as of `commands`
RESUMES = 'the same command resumes'
# In errors of Gloo, NCCL and the coordinator where another process is gone.
OF_OTHERS = re.compile(r'gloo|nccl|coordination|connection|socket', re.IGNORECASE)
MISSING = re.compile(r'timed out task names:((?:\s+\d+$)+)', re.MULTILINE)


class Client(Protocol):
  """The client of JAX's coordinator, as far as it is used; jaxlib has no types for it."""

  def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None: ...
  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
  def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


class Beat(NamedTuple):
  """What a process says of itself once in a while."""

  number: int
  step: int
  phase: str | None  # of `stopping`


class Group:
  """The processes of a run, seen from one of them; it is alone until it joins the others."""

  client: Client

  def __init__(self) -> None:
    self.index, self.count = 0, 1
    self.heartbeat, self.patience = 20.0, 3600.0
    self.beats: dict[int, Beat] = {}
    self.still, self.due = 0.0, STILL  # seconds without progress, and until a line about it
    self.meeting = False  # whether the main thread waits for the others
    self.silent: dict[int, float] = {}  # seconds since each was heard, but not while suspended
    self.asks, self.reported, self.over = threading.Event(), threading.Event(), threading.Event()
    self.stepping = threading.Lock()
    self.step, self.last_step = 0, sys.maxsize
    self.threads: list[threading.Thread] = []

  def join(self, heartbeat: float, patience: float) -> None:
    """Begins to beat and to listen, once JAX's coordinator is up.

    Args:
      heartbeat: seconds without a beat after which a process counts as dead.
      patience: seconds that the run may stay at one step and phase, such as for a compiler.
    """
    from jax._src import distributed

    state = distributed.global_state
    self.client = cast(Client, state.client)
    self.index, self.count = state.process_id, state.num_processes
    self.heartbeat, self.patience = heartbeat, patience
    self.silent = dict.fromkeys(range(self.count if self.index == 0 else 1), 0.0)
    stopping.at_exit(
      lambda: self.tell(0, f'{self.name(self.index)} was ended by a signal; {RESUMES}')
    )
    self.threads = [threading.Thread(target=f, daemon=True) for f in (self.beat, self.listen)]
    for thread in self.threads:
      thread.start()

  def name(self, *indices: int) -> str:
    plural = 'es' * (len(indices) > 1)
    return f'process{plural} {", ".join(map(str, indices))} of {self.count}'

  def write(self, folder: str, text: str) -> None:
    self.client.key_value_set(f'{folder}/{self.index}', text, True)

  def read(self, folder: str) -> dict[int, str]:
    """What each process has written there, in their order."""
    rows = self.client.key_value_dir_get(f'{folder}/')
    return dict(sorted((int(key.rpartition('/')[2]), text) for key, text in rows))

  def beat(self) -> None:
    """Shows that this process lives, and obeys what the others say; in a thread of its own."""
    agreement = threading.Thread(target=self.agree_to_stop, daemon=True)
    try:
      for number in itertools.count():
        self.write(BEATS, json.dumps([number, self.step, stopping.PROCESS.phase]))
        beats = self.read(BEATS) if self.index == 0 else {0: json.dumps([number, 0, None])}
        self.hear({index: Beat(*json.loads(text)) for index, text in beats.items()})
        self.obey(self.read(VERDICTS))
        if agreement.ident is None and (self.asks.is_set() or self.read(STOP)):
          agreement.start()
        if self.over.wait(INTERVAL):
          return
    except RuntimeError as error:  # the store is gone, or has a verdict of JAX's
      self.end(FAILED, f'{self.describe_end(str(error)) or f"{self.name(0)} has ended"}; {RESUMES}')

  def hear(self, beats: dict[int, Beat]) -> None:
    """Takes note of the processes that have beaten since the last time, and of progress."""
    for index, beat in beats.items():
      previous = self.beats.get(index)
      if beat != previous:
        self.silent[index] = 0.0
      if self.index == 0 and (previous is None or beat[1:] != previous[1:]):
        self.still, self.due = 0.0, STILL
    self.beats = beats

  def listen(self) -> None:
    """Ends this process when another has been silent for too long; in a thread of its own.

    It makes no call that may block: where process 0 is stopped, `beat` hangs in one.
    """
    while not self.over.wait(INTERVAL):
      if message := self.overdue(INTERVAL):
        message = f'{message}; {RESUMES}'
        self.end(FAILED, message, tells=message if self.index == 0 else None)
      if self.still > self.due and (self.meeting or stopping.PROCESS.phase == 'loop'):
        to_stderr(f'vit train: waiting for {self.slowest()} for {self.still:.0f} s')
        self.due = 2 * self.still

  def overdue(self, seconds: float) -> str | None:
    """Which process has not been heard for too long, so many seconds on, or does not go on."""
    self.still += seconds if self.index == 0 else 0
    for index in self.silent:
      self.silent[index] += seconds
      if self.silent[index] > self.heartbeat:
        return f'{self.name(index)} has not answered for {self.heartbeat:.0f} s'
    if self.still > self.patience:
      return f'{self.slowest()} has not gone on for {self.patience:.0f} s'
    return None

  def slowest(self) -> str:
    """The process that is furthest behind, and what it does."""
    index = min(self.beats, key=lambda index: (self.beats[index].step, -index))
    return f'{self.name(index)} (step {self.beats[index].step}, {self.beats[index].phase})'

  def obey(self, verdicts: dict[int, str]) -> None:
    """Ends this process where another has said why it ends."""
    for index, text in verdicts.items():
      code, message = json.loads(text)
      if index != self.index and message:
        self.end(code, message, tells='')

  def tell(self, code: int, message: str) -> None:
    """Tells the others, once, why this process ends; '' where it is because of them."""
    if self.reported.is_set() or self.over.is_set():
      return
    self.reported.set()
    with contextlib.suppress(RuntimeError):
      self.write(VERDICTS, json.dumps([code, message]))
      deadline = time.monotonic() + LINGER
      alive = {index for index, silence in self.silent.items() if silence <= self.heartbeat}
      while self.index == 0 and alive - self.read(VERDICTS).keys() and time.monotonic() < deadline:
        time.sleep(INTERVAL / 10)

  def end(self, code: int, message: str, *, tells: str | None = None) -> None:
    """Ends this process with a line, from a thread; first it tells the others, if there is what."""
    if self.over.is_set():
      return
    if tells is not None:
      self.tell(code, tells)
    self.reported.set()
    stopping.end(code, f'vit train: {message}\n')

  def abort(self, text: str) -> None:
    """Ends this process where C++ aborts it, which wrote that text."""
    if self.over.is_set():  # all is written, and the others are leaving
      os._exit(0)
    self.reported.set()
    fatal = re.findall(r'^F\d{4} [^\]]*\] (.*)', text, re.MULTILINE)
    reason = (
      self.describe_end(text) or f'aborted by a library: {fatal[-1] if fatal else text[-200:]}'
    )
    stopping.end(FAILED, message_line(f'vit train: {reason}; {RESUMES}') + '\n')

  def describe_end(self, text: str) -> str | None:
    """The words for an error of JAX's coordinator, or its client; None for another error."""
    if missing := missing_in(text):
      return f'{self.name(*missing)} did not come'
    if again := re.search(r'ABORTED: (\d+) unexpectedly tried to connect', text):
      return f'{self.name(int(again[1]))} was started again'
    if 'newer incarnation' in text:
      return f'{self.name(self.index)} was started twice'
    if 'RegisterTask' in text:
      return f'{self.name(0)} does not answer'
    if 'distributed service' in text:
      return f'{self.name(0)} has ended' if self.index else 'another process has ended'
    return None

  def agree_to_stop(self) -> None:
    """Has all processes stop at the first step that none has passed; in a thread of its own."""
    with self.stepping, contextlib.suppress(RuntimeError):
      self.write(STOP, str(self.step))
      self.client.wait_at_barrier(STOP, int(1000 * self.heartbeat))
      self.last_step = max(map(int, self.read(STOP).values())) + 1

  def part(self) -> None:
    """Waits until all processes have come to the end, and leaves them."""
    import jax

    meet('the end of the run')
    self.over.set()
    for thread in self.threads:
      thread.join(self.heartbeat)
    jax.distributed.shutdown()


GROUP = Group()  # a process is in one


def start_processes(args: argparse.Namespace) -> None:
  """Joins the other processes of a run on several hosts, where flags or environment name them."""
  flags = {
    name: getattr(args, name) for name in ('coordinator_address', 'num_processes', 'process_id')
  }
  values = {
    name: os.environ.get(f'JAX_{name.upper()}') if flag is None else flag
    for name, flag in flags.items()
  }
  named = {name: value for name, value in values.items() if value is not None}
  limits = {name: getattr(args, f'{name}_timeout') for name in TIMEOUTS}
  for name, seconds in limits.items():
    if seconds < 1:
      raise ValueError(f'{name}_timeout is {seconds}, must be a second or more')
  if args.distributed and not named:
    join(None, None, None, **limits)
  elif named:
    if missing := ', '.join(name for name in values if name not in named):
      raise ValueError(f'several hosts need {missing} too; there is {named}')
    try:
      count, index = int(named['num_processes']), int(named['process_id'])
    except ValueError:
      raise ValueError(f'num_processes and process_id are whole numbers, got {named}') from None
    if not 0 <= index < count:
      raise ValueError(f'process_id is {index}, must lie in 0..{count - 1}')
    join(named['coordinator_address'], count, index, **limits)


TIMEOUTS = {  # seconds, of flags that end in _timeout
  'initialization': (300, 'that the processes have to come'),
  'heartbeat': (20, 'of silence after which a process counts as dead'),
  'stall': (3600, 'that a run may stay at one step and phase, such as to compile or evaluate'),
}


def join(
  address: str | None,
  count: int | None,
  index: int | None,
  *,
  initialization: int,
  heartbeat: int,
  stall: int,
) -> None:
  """Joins the other processes of a run, which ends with the first of them that fails.

  Args:
    address: HOST:PORT of process 0; None: JAX finds it, as it does count and index.
    count: of processes.
    index: of this process, from 0.
    initialization, heartbeat, stall: seconds, see TIMEOUTS.
  """
  import jax
  from jax._src import distributed

  GROUP.index, GROUP.count = index or 0, count or 1
  stopping.join(native.guard(GROUP.abort))
  jax.config.update('jax_enable_preemption_service', False)  # it takes SIGTERM from `stopping`
  start = distributed._jax.get_distributed_runtime_service
  # So that the coordinator ends before its clients do, and says who is missing.
  distributed._jax.get_distributed_runtime_service = functools.partial(
    start, cluster_register_timeout=initialization
  )
  notice = threading.Timer(STILL, to_stderr, ['vit train: waiting for the other processes to come'])
  notice.daemon = True
  notice.start()
  try:
    jax.distributed.initialize(
      address,
      count,
      index,
      initialization_timeout=initialization + int(LINGER),
      heartbeat_timeout_seconds=2 * heartbeat + 10,  # after `Group`, which says who it was
      shutdown_timeout_seconds=heartbeat,
    )
  except RuntimeError as error:
    raise ValueError(f'cannot join the other processes: {error}') from error
  finally:
    notice.cancel()
    distributed._jax.get_distributed_runtime_service = start
  GROUP.join(heartbeat, stall)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends every process of a run when one of them does not come to the end of the block."""
  try:
    yield
    if GROUP.threads:
      GROUP.part()
  except BaseException as error:
    if GROUP.threads:
      if OF_OTHERS.search(str(error)):
        time.sleep(GROUP.heartbeat + LINGER)  # the group's threads learn, and say, who it was
      message = f'{GROUP.name(GROUP.index)}: {one_line(error)}'
      GROUP.tell(getattr(error, 'code', FAILED), message)
    raise


def all_stop(step: int, asked: bool) -> bool:
  """Whether the loop ends after this step: for all processes alike, if one of them is asked to."""
  if GROUP.count == 1:
    return asked
  if asked:
    GROUP.asks.set()
  with GROUP.stepping:
    GROUP.step = step
    return step >= GROUP.last_step


def gathered(name: str, text: str) -> list[str]:
  """The text of every process, in their order, for all of them."""
  if GROUP.count == 1:
    return [text]
  GROUP.write(f'vit_jax/{name}', text)
  meet(name)
  texts = GROUP.read(f'vit_jax/{name}')
  meet(name)  # before the name is used again
  return list(texts.values())


def agreed(value: object) -> bool:
  """Whether the first process's value is true, for all processes alike."""
  return gathered('agreed', str(bool(value)))[0] == 'True'


def missing_in(text: str) -> list[int]:
  """The processes that an error of the coordinator says have not come."""
  lists = MISSING.findall(text)
  return sorted(map(int, lists[-1].split())) if lists else []


def meet(name: str) -> None:
  """Waits for all processes; TimeoutError names those that live and did not come."""
  if GROUP.count == 1:
    return
  GROUP.meeting = True
  try:
    GROUP.client.wait_at_barrier(name, int(1000 * GROUP.patience))
  except RuntimeError as error:
    if not (missing := missing_in(str(error))):
      raise
    line = f'{GROUP.name(*missing)} did not come to {name} within {GROUP.patience:.0f} s'
    raise TimeoutError(line) from error
  finally:
    GROUP.meeting = False
