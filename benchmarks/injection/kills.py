"""SIGKILL at random moments and in each phase."""

import dataclasses
import signal
from collections.abc import Callable

from injection.cases import Case, Outcome, Trial, resumed
from injection.phases import PHASES, begun, start_marked
from injection.runs import DIGITS, PHOTOS, Recipe, last_row

KILLS = 8  # of one run, each of its starts at a random moment
MOST_LOST = 2  # steps, where each is saved: the one that is being saved, and one after it


def judged(outcome: Outcome, lost: int) -> Outcome:
  faults = outcome.faults + [f'{lost} steps are lost'] * (lost > MOST_LOST)
  return dataclasses.replace(outcome, lost=lost, faults=faults)


def killed_at_random(recipe: Recipe) -> Callable[[Trial], Outcome]:
  """Kills a run and its next starts, then lets one finish."""

  def hurt(trial: Trial) -> Outcome:
    lab, lost, kills = trial.lab, 0, 0
    duration = lab.duration(recipe)
    for _ in range(KILLS):
      trained, process = last_row(trial.run), lab.start(recipe, trial.run)
      process.until(lambda: False, limit=trial.rng.uniform(0, duration))
      if not process.alive():
        break
      process.send(signal.SIGKILL)
      lost = max(lost, process.wait().repeated(trained))
      kills += 1
    outcome = resumed(trial, recipe, process)
    return dataclasses.replace(judged(outcome, max(lost, outcome.lost or 0)), count=kills)

  return hurt


def killed_in(phase: str) -> Callable[[Trial], Outcome]:
  """Kills a run that resumes near its end, somewhere in a phase."""

  def hurt(trial: Trial) -> Outcome:
    begun(trial, phase)
    process = start_marked(trial, phase)
    process.until(lambda: False, limit=trial.rng.uniform(0, 0.3))
    process.send(signal.SIGKILL)
    outcome = resumed(trial, DIGITS, process)
    return judged(outcome, outcome.lost or 0)

  return hurt


PROMISE = 'the same line makes the same bits; at most what was not yet saved is computed again'
CASES = [
  Case('kills/SIGKILL at random moments', PROMISE, 25, killed_at_random(DIGITS)),
  Case('kills/SIGKILL at random moments, two workers', PROMISE, 3, killed_at_random(PHOTOS)),
  *(
    Case(f'kills/SIGKILL in {phase}', PROMISE, 2, killed_in(phase), row='SIGKILL in each phase')
    for phase in PHASES
  ),
]
