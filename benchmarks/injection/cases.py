"""A case: a fault, what is promised of it, and the function that injects it into a run."""

import dataclasses
import pathlib
import random
import signal
from collections.abc import Callable

from injection.runs import Lab, Process, Recipe, last_row


@dataclasses.dataclass(frozen=True)
class Trial:
  """One try of a case: where, and all that is random in it."""

  lab: Lab
  index: int  # of the try, from 0
  rng: random.Random  # seeded by the case and the index
  run: pathlib.Path  # where a run can be made; nothing is there yet


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a run that was hurt.

  Fields:
    faults: how that differs from what is promised; [] where it does not.
    lost: steps that were computed twice.
    exit: seconds from the fault, or from the second signal, to the end of the hurt process.
    recovery: seconds of the start that made the run whole.
    line: what was shown to the user.
    count: how often the run was hurt.
    note: which of the case's faults it was.
  """

  faults: list[str]
  lost: int | None = None
  exit: float | None = None
  recovery: float | None = None
  line: str = ''
  count: int = 1
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Case:
  """A fault by name, the promise, and how it is injected.

  Fields:
    name: KIND/FAULT.
    promise: what a user may rely on, in words.
    tries: how many make the table of docs/reliability.md.
    hurt: makes, hurts and examines one run.
    obstacle: why this machine cannot try it; '' where it can.
    row: of the table, which several cases may share; '': its own.
  """

  name: str
  promise: str
  tries: int
  hurt: Callable[[Trial], Outcome]
  obstacle: Callable[[], str] = lambda: ''
  row: str = ''


def resumed(trial: Trial, recipe: Recipe, process: Process, **options: str) -> Outcome:
  """The outcome of a run whose process is ending, and which the same line has to finish."""
  hurt, trained = process.wait(), last_row(trial.run)
  ended, faults = trial.lab.repaired(recipe, trial.run, **options)
  return Outcome(
    faults=hurt.rudeness() + faults,
    lost=ended.repeated(trained),
    recovery=ended.seconds,
    line=ended.matching('resumes at step') if hurt.code == -signal.SIGKILL else hurt.line,
  )
