"""Odd places and limits: names of folders, links, a process without room, or without a home."""

import dataclasses
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence

from injection.cases import Case, Outcome, Trial, resumed
from injection.runs import DIGITS, Ended, differences, spawn

NAMES = ('with a space', 'new\nline', 'ünï ☃', '%s {0} $HOME', 'quo\'te"s', '[red]*', '.hidden')
PAUSE = 5.0  # seconds that a terminal suspends a run
NONE = '/nonexistent'
HOMES = {
  'without a home': {'HOME': NONE, 'XDG_CACHE_HOME': ''},
  'without a folder for temporary files': {'TMPDIR': NONE},
  'with a home that takes no file': {'HOME': '/proc/self'},
}
LIMITS = {  # of the shell's ulimit
  'files of 1 KiB': '-f 1',
  '40 open files': '-n 40',
  '4 GB of addresses': '-v 4000000',
}


def judged(trial: Trial, ended: Ended, run: pathlib.Path, *, note: str = '') -> Outcome:
  """A run from its start to its end, as if unhurt."""
  faults = ended.rudeness()
  if ended.code:
    faults.append(f'ends with {ended.code}: {ended.line}'[:200])
  else:
    faults += differences(run, trial.lab.unhurt(DIGITS)) + trial.lab.debris()
  return Outcome(faults, recovery=ended.seconds, note=note)


def named(trial: Trial) -> Outcome:
  name = NAMES[trial.index % len(NAMES)]
  trial.lab.unhurt(DIGITS)
  run = trial.run / name
  return judged(trial, trial.lab.start(DIGITS, run).wait(), run, note=repr(name))


def dashed(trial: Trial) -> Outcome:
  """A folder whose relative name looks like a flag."""
  trial.run.mkdir(parents=True)
  words = DIGITS.words(pathlib.Path('-workdir'))
  ended = trial.lab.cold('vit_jax.main', *words, folder=trial.run).wait()
  return judged(trial, ended, trial.run / '-workdir')


def linked(trial: Trial) -> Outcome:
  """A run begun through a link, killed, and resumed by the folder's own name."""
  trial.lab.unhurt(DIGITS)
  trial.run.mkdir(parents=True)
  link = trial.run.with_name('link')
  link.unlink(missing_ok=True)
  link.symlink_to(trial.run)
  process = trial.lab.start(DIGITS, link)
  process.until(process.says('^step 3/'))
  process.send(signal.SIGKILL)
  return resumed(trial, DIGITS, process)


def homeless(env: dict[str, str]) -> Callable[[Trial], Outcome]:
  def hurt(trial: Trial) -> Outcome:
    trial.lab.unhurt(DIGITS)
    ended = trial.lab.cold('vit_jax.main', *DIGITS.words(trial.run), **env).wait()
    return judged(trial, ended, trial.run)

  return hurt


def limited(limit: str) -> Callable[[Trial], Outcome]:
  """A run that may not have what it needs: it ends as it likes, but by one line."""

  def hurt(trial: Trial) -> Outcome:
    lab = trial.lab
    lab.unhurt(DIGITS)
    words = [sys.executable, '-m', 'vit_jax.main', *DIGITS.words(trial.run)]
    script = f'ulimit {limit}; exec "$@"'
    process = lab.add(spawn(['bash', '-c', script, 'bash', *words], lab.environment(), lab.folder))
    ended = process.wait()
    outcome = resumed(trial, DIGITS, process)
    return dataclasses.replace(outcome, exit=ended.seconds, line=ended.line if ended.code else '')

  return hurt


def suspended(trial: Trial) -> Outcome:
  """Ctrl-Z, and `fg` a while later."""
  unhurt = trial.lab.unhurt(DIGITS)
  process = trial.lab.start(DIGITS, trial.run)
  process.until(process.says('^step 2/'))
  process.send(signal.SIGTSTP)
  time.sleep(PAUSE)
  process.send(signal.SIGCONT)
  ended = process.wait()
  return Outcome(ended.rudeness() + differences(trial.run, unhurt))


def read_while_it_runs(words: Sequence[str], code: int) -> Callable[[Trial], Outcome]:
  """A command on a run that is held once it has a checkpoint."""

  def hurt(trial: Trial) -> Outcome:
    trial.lab.unhurt(DIGITS)
    process = trial.lab.start(DIGITS, trial.run)
    process.until(lambda: any(trial.run.glob('checkpoints/[0-9]/seal.json')))
    process.send(signal.SIGSTOP)
    photo = str(trial.lab.folder / 'photos/class0/0.jpg')
    args = [word.format(run=trial.run, photo=photo) for word in words]
    reader = trial.lab.cold('vit_jax', *args).wait()
    process.send(signal.SIGCONT)
    process.wait()
    faults = reader.rudeness()
    faults += [f'ends with {reader.code}: {reader.line}'[:200]] * (reader.code != code)
    outcome = resumed(trial, DIGITS, process)
    return dataclasses.replace(outcome, faults=faults + outcome.faults, line=reader.line)

  return hurt


SAME = 'as if nothing had been'
CASES = [
  Case('places/an odd name', SAME, len(NAMES), named),
  Case('places/a name that begins with a dash', SAME, 1, dashed),
  Case('places/a link, then its target', 'the same run', 1, linked),
  *(Case(f'places/{name}', SAME, 1, homeless(env)) for name, env in HOMES.items()),
  *(
    Case(f'places/{name}', 'ends by one line; without the limit it resumes', 1, limited(limit))
    for name, limit in LIMITS.items()
  ),
  Case('places/SIGTSTP, then SIGCONT', SAME, 1, suspended),
  Case(
    'places/vit report on a run',
    'a report, with 3: a task of others is measured by training alone; the run does not notice',
    1,
    read_while_it_runs(['report', '{run}'], 3),
  ),
  Case(
    'places/vit predict on a run',
    'the model so far; the run does not notice',
    1,
    read_while_it_runs(['predict', '{run}', '{photo}'], 0),
  ),
]
