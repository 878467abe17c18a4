"""SIGINT and SIGTERM, once and twice, in each phase and from the first line on."""

import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable

from injection.cases import Case, Outcome, Trial, resumed
from injection.phases import PHASES, begun, start_marked
from injection.runs import DIGITS, Process

BOUND = 30.0  # seconds to the end of a process
APART = 0.05  # seconds between two signals


def send(process: Process, number: int, times: int) -> float:
  """Sends a signal so many times; when the last was sent."""
  process.send(number)
  for _ in range(times - 1):
    time.sleep(APART)
    process.send(number)
  return time.monotonic()


def examined(trial: Trial, process: Process, number: int, times: int) -> Outcome:
  """Signals a process, and holds its end to the promise."""
  sent = send(process, number, times)
  ended = process.wait()
  seconds = process.start + ended.seconds - sent
  codes = (0,) if times == 1 else (0, 128 + number)  # the first may have ended it already
  faults = [] if ended.code in codes else [f'ends with {ended.code}, not {codes[-1]}']
  faults += [f'ends after {seconds:.0f} s'] * (seconds > BOUND)
  outcome = resumed(trial, DIGITS, process)
  line = ended.matching(signal.Signals(number).name) or ended.line
  return dataclasses.replace(outcome, faults=faults + outcome.faults, exit=seconds, line=line)


def signalled_in(phase: str, number: int, times: int) -> Callable[[Trial], Outcome]:
  def hurt(trial: Trial) -> Outcome:
    begun(trial, phase)
    return examined(trial, start_marked(trial, phase), number, times)

  return hurt


def signalled_early(number: int, times: int) -> Callable[[Trial], Outcome]:
  """Signals a run within two seconds of its first line."""

  def hurt(trial: Trial) -> Outcome:
    trial.lab.unhurt(DIGITS)
    process = trial.lab.cold('vit_jax.main', *DIGITS.words(trial.run))
    process.until(lambda: catches(process.pid, number))
    time.sleep(trial.rng.uniform(0, 2))
    return examined(trial, process, number, times)

  return hurt


def catches(pid: int, number: int) -> bool:
  """Whether a process has a handler for a signal: Python's own of SIGINT does not count."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  mask = next(int(line.split()[1], 16) for line in status.splitlines() if 'SigCgt' in line)
  return bool(mask >> (signal.SIGTERM - 1) & mask >> (number - 1) & 1)


KINDS = [(number, times) for number in (signal.SIGINT, signal.SIGTERM) for times in (1, 2)]
PROMISES = {
  1: 'saves what is complete, ends with 0 within 30 s; the same line makes the same bits',
  2: 'ends at once with 130 or 143; the same line makes the same bits',
}
TIMES = {1: 'once', 2: 'twice'}
CASES = [
  Case(f'signals/{number.name} {TIMES[times]} {place}', PROMISES[times], tries, hurt, row=row)
  for number, times in KINDS
  for place, row, tries, hurt in [
    ('in the first 2 s', '', 5, signalled_early(number, times)),
    *(
      (
        f'in {phase}',
        f'{number.name} {TIMES[times]} in each phase',
        1,
        signalled_in(phase, number, times),
      )
      for phase in PHASES
    ),
  ]
]
