"""Every file of a run, finished or stopped half way, damaged in each way."""

import dataclasses
import json
import pathlib
import random
import re
import shutil
from collections.abc import Callable

from injection.cases import Case, Outcome, Trial
from injection.phases import BEGUN
from injection.runs import DIGITS, Ended, differences, normal_name, stopped

HISTORY = ('metrics.jsonl', 'events')
OTHER = DIGITS.but('another seed', seed=1)


def truncate(file: pathlib.Path, _: pathlib.Path) -> None:
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: pathlib.Path, _: pathlib.Path) -> None:
  file.write_bytes(b'')


def flip(file: pathlib.Path, _: pathlib.Path) -> None:
  data = bytearray(file.read_bytes())
  if data:
    data[len(data) // 2] ^= 0x10
  file.write_bytes(data)


def remove(file: pathlib.Path, _: pathlib.Path) -> None:
  file.unlink()


def swap(file: pathlib.Path, other: pathlib.Path) -> None:
  shutil.copyfile(other, file)


def renew(file: pathlib.Path, _: pathlib.Path) -> None:
  """Writes a number of a format that is not yet in use."""
  data = json.loads(file.read_text('utf-8'))
  file.write_text(json.dumps({**data, 'format': data['format'] + 1000}), 'utf-8')


WAYS = {
  'cut in half': truncate,
  'emptied': empty,
  'with a flipped bit': flip,
  'removed': remove,
  "replaced by another run's": swap,
  'from a newer version': renew,
}


def files_by_kind(run: pathlib.Path) -> dict[str, pathlib.Path]:
  """A file of each kind, by name, of the newest checkpoint alone and of all else."""
  newest = max((run / 'checkpoints').iterdir(), key=lambda folder: int(folder.name))
  files = [f for f in sorted(run.rglob('*')) if f.is_file()]
  files = [f for f in files if newest in f.parents or run / 'checkpoints' not in f.parents]
  return {normal_name(run, file): file for file in files}


def has_format(file: pathlib.Path) -> bool:
  """Whether a file is JSON that says of which format it is."""
  return file.suffix == '.json' and '"format":' in file.read_text('utf-8')


def damaged(way: str, finished: bool) -> Callable[[Trial], Outcome]:
  """Damages the file of the trial's index."""

  def hurt(trial: Trial) -> Outcome:
    lab, step = trial.lab, 8 if finished else BEGUN
    unhurt = lab.unhurt(DIGITS)
    shutil.copytree(unhurt, trial.run) if finished else stopped(unhurt, trial.run, step)
    files = files_by_kind(trial.run)
    if WAYS[way] is renew:
      files = {name: file for name, file in files.items() if has_format(file)}
    names = random.Random(way).sample(list(files), len(files))  # so that a few are of all kinds
    name = names[trial.index % len(names)]
    counterpart = name.replace(f'checkpoints/{step}/', 'checkpoints/8/')
    WAYS[way](files[name], files_by_kind(lab.unhurt(OTHER))[counterpart])
    return judged(trial, name, finished=finished)

  return hurt


def judged(trial: Trial, name: str, *, finished: bool) -> Outcome:
  """The run is as if unhurt, or refused by one line that names the file.

  A finished run goes without a checkpoint that was damaged: its model is intact. Rows and events
  that are lost are not made again: they are a history.
  """
  ended = trial.lab.start(DIGITS, trial.run).wait()
  outcome = Outcome(ended.rudeness(), line=shown(ended, name), recovery=ended.seconds, note=name)
  if ended.code in (1, 2):
    base = pathlib.PurePath(name).name
    names = base in ended.line or 'holds another run' in ended.line
    return dataclasses.replace(outcome, faults=outcome.faults + [ended.line] * (not names))
  if ended.code != 0:
    return dataclasses.replace(outcome, faults=[*outcome.faults, f'ends with {ended.code}'])
  in_checkpoint = name.startswith('checkpoints/')
  faults = differences(
    trial.run,
    trial.lab.unhurt(DIGITS),
    extras=r'checkpoints/\d+\.(damaged|unused)|model\.unused|model/README.md.old',
    without=name if name in HISTORY else r'checkpoints/' if finished and in_checkpoint else r'a^',
  )
  return dataclasses.replace(outcome, faults=outcome.faults + faults)


def shown(ended: Ended, name: str) -> str:
  """The line about the damage, where there is one."""
  return ended.matching(re.escape(pathlib.PurePath(name).name)) or ended.matching('damaged')


PROMISE = 'made again as it was, set aside or refused by one line that names it'
CASES = [
  Case(f'damage/a file of a {state} run {way}', PROMISE, 32, damaged(way, state == 'finished'))
  for state in ('finished', 'stopped')
  for way in WAYS
]
