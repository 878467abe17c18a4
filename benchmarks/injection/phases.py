"""Runs that note when each phase begins and stay in one of them for a moment, to be hurt there.

  python -m injection.phases MARKS PHASE SECONDS train ...

is `vit train ...`, whose phases append their names to the file MARKS.
"""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PHASES = (
  'import',
  'data',
  'compile',
  'restore',
  'loop',
  'evaluation',
  'save',
  'test',
  'bundle',
  'card',
  'report',
)
LINGERS = 0.4  # seconds that a run stays at the beginning of the phase
BEGUN = 7  # the step that a run was stopped at before it is hurt
AFTER = ('test', 'bundle', 'card', 'report')  # the last step


def begun(trial: Any, phase: str) -> None:
  """Makes the trial's run one of digits that was stopped before a phase of its end."""
  from injection.runs import DIGITS, STEPS, stopped

  stopped(trial.lab.unhurt(DIGITS), trial.run, STEPS if phase in AFTER else BEGUN)


def start_marked(trial: Any, phase: str) -> Any:
  """A start of the trial's run, which is now at the beginning of a phase."""
  from injection.runs import DIGITS

  marks = trial.run.with_name('marks')
  marks.write_text('')
  words = ['injection.phases', str(marks), phase, str(LINGERS), 'train', *DIGITS.words(trial.run)]
  process = trial.lab.cold(*words) if phase == 'import' else trial.lab.warm(*words)
  if not process.until(lambda: phase in marks.read_text().splitlines()):
    raise RuntimeError(f'no phase {phase}: {process.wait()}')
  return process


def marked(
  phase: Callable[[str], Any], marks: pathlib.Path, held: str, seconds: float
) -> Callable[[str], Any]:
  """A `stopping.phase` that notes each, and stays in the one that is named."""

  @contextlib.contextmanager
  def noting(name: str, *args: Any, **options: Any) -> Iterator[Any]:
    with phase(name, *args, **options) as value:
      with marks.open('a') as file:
        file.write(f'{name}\n')
      if name == held:
        time.sleep(seconds)
      yield value

  return noting


def main() -> None:
  from vit_jax.guards import stopping

  marks, held, seconds, *words = sys.argv[1:]
  stopping.phase = marked(stopping.phase, pathlib.Path(marks), held, float(seconds))
  from vit_jax.__main__ import console

  sys.argv[1:] = words
  console()


if __name__ == '__main__':
  main()
