"""Workers that read images, killed and stopped."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable

from injection.cases import Case, Outcome, Trial, resumed
from injection.runs import PHOTOS

LONG = PHOTOS.but(
  'many photos',
  duration='80 steps',
  evaluation__every='40 steps',
  checkpoint__every='10 steps',
  system__data_timeout=20,
)


def hurt_workers(number: int, count: int) -> Callable[[Trial], Outcome]:
  """Sends a signal to so many of a run's two workers."""

  def hurt(trial: Trial) -> Outcome:
    trial.lab.unhurt(LONG)
    process = trial.lab.start(LONG, trial.run)
    process.until(process.says('^step 2/'))
    workers = process.workers()
    faults = [] if len(workers) >= 2 else [f'{len(workers)} workers, not two']
    for pid in trial.rng.sample(workers, min(count, len(workers))):
      os.kill(pid, number)
    since = time.monotonic()
    ended = process.wait()
    seconds = process.start + ended.seconds - since
    faults += [] if ended.code in (0, 1) else [f'ends with {ended.code}: {ended.line}'[:200]]
    outcome = resumed(trial, LONG, process)
    line = ended.matching('worker|reader') or ended.line
    return dataclasses.replace(outcome, faults=faults + outcome.faults, exit=seconds, line=line)

  return hurt


PROMISE = 'replaced, or the run ends saved with one line; the same bits in the end'
CASES = [
  Case('readers/SIGKILL to one of two workers', PROMISE, 3, hurt_workers(signal.SIGKILL, 1)),
  Case('readers/SIGKILL to both workers', PROMISE, 2, hurt_workers(signal.SIGKILL, 2)),
  Case('readers/SIGSTOP to one of two workers', PROMISE, 1, hurt_workers(signal.SIGSTOP, 1)),
]
