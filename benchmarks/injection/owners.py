"""Two processes that want one folder."""

import dataclasses
import json
import re
import signal
from collections.abc import Callable

from injection.cases import Case, Outcome, Trial, resumed
from injection.runs import DIGITS, Ended, differences, last_row


def second_start(trial: Trial) -> Outcome:
  """A second start while the first one is held still at its first steps."""
  trial.lab.unhurt(DIGITS)
  first = trial.lab.cold('vit_jax.main', *DIGITS.words(trial.run))
  first.until(first.says('^step 2/'))
  first.send(signal.SIGSTOP)
  second = trial.lab.cold('vit_jax.main', *DIGITS.words(trial.run)).wait()
  first.send(signal.SIGCONT)
  first.wait()
  faults = refusal(second, str(first.pid))
  outcome = resumed(trial, DIGITS, first)
  return dataclasses.replace(
    outcome, faults=faults + outcome.faults, line=second.line, exit=second.seconds
  )


def refusal(ended: Ended, pid: str) -> list[str]:
  """How a refused start differs from code 2 and one line with the owner's process."""
  faults = [] if ended.code == 2 else [f'the second start ends with {ended.code}: {ended.line}']
  if len(ended.err) != 1 or not re.search(rf'\b{pid}\b', ended.line):
    faults.append(f'not one line that names process {pid}: {ended.err}')
  return faults + ended.rudeness()


def starts_at_once(count: int) -> Callable[[Trial], Outcome]:
  """So many starts at the same moment: one runs, the others are refused."""

  def hurt(trial: Trial) -> Outcome:
    unhurt = trial.lab.unhurt(DIGITS)
    words = DIGITS.words(trial.run)
    processes = [trial.lab.cold('vit_jax.main', *words) for _ in range(count)]
    ends = {process.pid: process.wait() for process in processes}
    winners = [pid for pid, ended in ends.items() if ended.code == 0]
    if len(winners) != 1:
      return Outcome([f'ended with {[ended.code for ended in ends.values()]}'])
    losers = [ended for pid, ended in ends.items() if pid != winners[0]]
    faults = [fault for ended in losers for fault in refusal(ended, str(winners[0]))]
    seconds = max(ended.seconds for ended in losers)
    return Outcome(faults + differences(trial.run, unhurt), line=losers[0].line, exit=seconds)

  return hurt


def dead_elsewhere(trial: Trial) -> Outcome:
  """A start in the folder of a run that was killed on another machine."""
  trial.lab.unhurt(DIGITS)
  first = trial.lab.cold('vit_jax.main', *DIGITS.words(trial.run))
  first.until(first.says('^step 2/'))
  first.send(signal.SIGKILL)
  first.wait()
  file = trial.run / 'lock.json'
  if not file.exists():
    return Outcome(['a killed run leaves no lock'])
  holder = json.loads(file.read_text('utf-8')) | {'host': 'elsewhere', 'machine': 'elsewhere'}
  file.write_text(json.dumps(holder), 'utf-8')
  trained = last_row(trial.run)
  ended, faults = trial.lab.repaired(DIGITS, trial.run)
  line = ended.matching('elsewhere')
  faults += ['nothing is said of the other host'] * (not line)
  return Outcome(faults, lost=ended.repeated(trained), recovery=ended.seconds, line=line)


CASES = [
  Case(
    'owners/a second start',
    'ends with 2 and one line that names the first, which goes on',
    3,
    second_start,
  ),
  Case('owners/two starts at one moment', 'one runs; the other ends with 2', 5, starts_at_once(2)),
  Case('owners/ten starts at one moment', 'one runs; the others end with 2', 1, starts_at_once(10)),
  Case(
    'owners/a run that was killed on another host',
    'is taken over when its heartbeat has been still for 30 s',
    1,
    dead_elsewhere,
  ),
]
