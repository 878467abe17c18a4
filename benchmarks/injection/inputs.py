"""Configs, images, checkpoints and data sets that a stranger wrote: benchmarks/fuzz.py, by kind."""

import functools
import re
from collections.abc import Callable

import fuzz

from injection.cases import Case, Outcome, Trial

COUNT = 300  # spoiled inputs of a kind
LIMIT = 600.0  # seconds


def spoiled(kind: str) -> Callable[[Trial], Outcome]:
  """Reads spoiled inputs of a kind; the trial's index is the seed."""

  def hurt(trial: Trial) -> Outcome:
    words = [kind, f'--count={COUNT}', f'--seed={trial.index}']
    ended = trial.lab.cold('fuzz', *words).wait(LIMIT)
    row = re.search(rf'^{kind} +(\d+) +(\d+) +(\d+) +(\d+)', '\n'.join(ended.out), re.MULTILINE)
    if not row:
      return Outcome([*ended.rudeness(), f'ends with {ended.code}: {ended.line}'[:200]])
    count, accepted, refused, _ = map(int, row.groups())
    faults = [line for line in ended.out if line.startswith(f'{kind} --seed')]
    return Outcome(faults, line=f'{accepted} accepted, {refused} refused', count=count)

  return hurt


def missing(kind: str) -> str:
  return '' if kind in fuzz.kinds() else 'there is no library that writes it'


PROMISE = 'each is accepted, or refused by one line'
CASES = [
  Case(f'inputs/{kind}', PROMISE, 1, spoiled(kind), functools.partial(missing, kind))
  for kind in fuzz.KINDS
]
