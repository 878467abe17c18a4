"""Data that changes while a run reads it."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable

from injection.cases import Case, Outcome, Trial, resumed
from injection.readers import LONG


def delete(folder: pathlib.Path) -> str:
  (folder / 'class0/0.jpg').unlink()
  return '0.jpg'


def replace(folder: pathlib.Path) -> str:
  (folder / 'class0/3.jpg').write_bytes(bytes(range(256)) * 4)
  return '3.jpg'


def rename_class(folder: pathlib.Path) -> str:
  os.replace(folder / 'class1', folder / 'moved')
  return 'class1'


def rename_all(folder: pathlib.Path) -> str:
  os.replace(folder, folder.with_name('moved'))
  return 'photos.*No such file'


def changed(change: Callable[[pathlib.Path], str]) -> Callable[[Trial], Outcome]:
  """Changes the photos at the second step, and brings them back for the next start."""

  def hurt(trial: Trial) -> Outcome:
    trial.lab.unhurt(LONG)
    photos, backup = trial.lab.folder / 'photos', trial.lab.folder / 'tries/photos'
    shutil.rmtree(backup, ignore_errors=True)
    shutil.copytree(photos, backup)
    process = trial.lab.start(LONG, trial.run)
    process.until(process.says('^step 2/'))
    name = change(photos)
    ended = process.wait()
    shutil.rmtree(photos, ignore_errors=True)
    shutil.rmtree(photos.with_name('moved'), ignore_errors=True)
    shutil.move(backup, photos)
    faults = [] if ended.code == 1 else [f'ends with {ended.code}: {ended.line}'[:200]]
    line = ended.matching(name)
    faults += [f'no line names {name}: {ended.line}'[:200]] * (not line)
    outcome = resumed(trial, LONG, process, extras='unreadable_')
    return dataclasses.replace(outcome, faults=faults + outcome.faults, line=line)

  return hurt


PROMISE = 'ends with 1 and one line that names the file, over 1 % of all; whole again, it resumes'
CASES = [
  Case('photos/an image is deleted', PROMISE, 1, changed(delete)),
  Case('photos/an image becomes garbage', PROMISE, 1, changed(replace)),
  Case('photos/the folder of a class is renamed', PROMISE, 1, changed(rename_class)),
  Case('photos/the folder of all is renamed', PROMISE, 1, changed(rename_all)),
]
