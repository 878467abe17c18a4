"""`evaluation.json` of a run: what a task's measures gave on a split, as written and as read.

K classes.
"""

import contextlib
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import files
from vit_jax.convert.bundles import WEIGHTS
from vit_jax.guards import seals
from vit_jax.sources import Source
from vit_jax.tasks import Task

FILE = 'evaluation.json'  # in the folder of a run: what became its model, measured
COUNTS = ('count', 'unlabelled', 'bad_images', 'step')  # of an evaluation, and no measure
FRACTIONS = (  # measures that are shown in percent
  'accuracy',
  'calibration_error',
  'mean_average_precision',
  'auroc',
  'balanced_accuracy',
  'f1_micro',
  'f1_macro',
  'f1_weighted',
)


def summarize(
  task: Task,
  sums: Mapping[str, Any],
  rows: Mapping[str, np.ndarray],
  source: Source,
  *,
  readable: int,
) -> dict[str, Any]:
  """An evaluation as JSON: the task's numbers and details, and what was left out.

  Args:
    task: that measured.
    sums, rows: of `loop.evaluate`.
    source: what was measured on; it names the images of 'mistakes'.
    readable: how many of its images could be read.
  """
  numbers = task.read(sums)
  values = {**numbers, 'count': int(numbers['count']), **task.details(sums, rows)}
  for mistake in values.get('mistakes', ()):
    mistake['image'] = source.describe(mistake['index'])
  counts = {'unlabelled': readable - values['count'], 'bad_images': len(source) - readable}
  return values | counts


def write(folder: str | os.PathLike[str], values: dict[str, Any]) -> None:
  """Writes `FILE` into a run's folder, whole or not at all, with checksums of it and the model.

  Args:
    folder: of the run.
    values: of `accuracy.evaluate_model` or `summarize`, with 'source', 'split', 'step', that became
      the model or None if that is not known, and 'use' of the split: 'test' or 'validation'.
  """
  with contextlib.suppress(seals.Broken):
    values = values | {'weights': weights(seals.read(pathlib.Path(folder) / 'model'))}
  with files.replacing(pathlib.Path(folder) / FILE) as file:
    file.write(files.as_json(values | {'crc32': digest(values)}).encode())


def digest(values: Mapping[str, Any]) -> str:
  """The CRC-32 of an evaluation as JSON."""
  return f'{zlib.crc32(files.as_json(values).encode()):08x}'


def weights(seal: seals.Seal) -> str | None:
  """The CRC-32 of a sealed model's weights."""
  return f'{seal.files[WEIGHTS][1]:08x}' if WEIGHTS in seal.files else None


def is_of(values: Mapping[str, Any], seal: seals.Seal) -> bool:
  """Whether an evaluation can be of a sealed model: it has its step, and its weights if it says."""
  return values['step'] == seal.origin.step and values.get('weights') in (None, weights(seal))


def read(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
  """What `write` wrote into a run's folder; None where it is missing or damaged."""
  try:
    values = files.read_object(pathlib.Path(folder) / FILE)
    checksum = values.pop('crc32', None)
    return values if is_valid(values) and checksum in (None, digest(values)) else None
  except (OSError, ValueError, RecursionError):
    return None


def is_count(value: object) -> bool:
  return type(value) is int and 0 <= value < 2**53


def is_number(value: Any) -> bool:
  """Whether it is a measure: a finite number, or None for one that is not."""
  return value is None or (type(value) in (int, float) and abs(value) <= 2.0**1023)


def is_text(value: object) -> bool:
  return isinstance(value, str)


Fields = dict[str, Callable[[Any], bool]]  # by name, whether a value is one that it may have
FIELDS: Fields = {  # that every evaluation of a run has
  'source': is_text,
  'split': is_text,
  'use': lambda value: value in ('test', 'validation'),
  'step': lambda value: value is None or is_count(value),
  'count': is_count,
}
TABLES: dict[str, Fields] = {  # that some tasks add, a dict for each row
  'classes': {'name': is_text, 'count': is_count, 'precision': is_number, 'recall': is_number},
  'confused': {'label': is_text, 'guess': is_text, 'count': is_count},
  'calibration': {
    'count': is_count,
    'from': is_number,
    'to': is_number,
    'confidence': is_number,
    'accuracy': is_number,
  },
  'mistakes': {
    'index': is_count,
    'confidence': is_number,
    'image': is_text,
    'label': is_text,
    'guess': is_text,
  },
}


def is_valid(values: Mapping[str, Any]) -> bool:
  """Whether an object of JSON is what `write` writes."""
  return (
    all(name in values and fits(values[name]) for name, fits in FIELDS.items())
    and all(is_number(values[name]) for name in (*FRACTIONS, 'loss') if name in values)
    and all(is_number(value) for name, value in values.items() if is_top(name))
    and all(is_table(values[name], fields) for name, fields in TABLES.items() if name in values)
    and (
      values.get('confusion') is None or is_confusion(values['confusion'], values.get('classes'))
    )
  )


def is_table(rows: object, fields: Fields) -> bool:
  """Whether it is a list of dicts with these fields."""
  return isinstance(rows, list) and all(
    isinstance(row, dict) and all(name in row and fits(row[name]) for name, fits in fields.items())
    for row in rows
  )


def is_confusion(rows: object, classes: Sequence[Any] | None) -> bool:
  """Whether it is K lists of K counts; ValueError for rows that are no array."""
  matrix, count = np.array(rows), len(classes or ())
  return matrix.shape == (count, count) and matrix.dtype.kind == 'i' and bool((matrix >= 0).all())


def numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
  """The measures among what an evaluation or a row of training has: accuracies come first.

  They are a task's, of any name; None is one that is not finite.
  """
  lists = (*TABLES, 'confusion', *COUNTS)
  measures = {name: v for name, v in values.items() if name not in lists and is_number(v)}
  first = [name for name in measures if name == 'accuracy' or is_top(name)]
  return {name: measures[name] for name in [*sorted(first), *measures]}


def is_top(name: str) -> bool:
  """Whether a measure is the accuracy of the first few classes, as 'top5' is."""
  return re.fullmatch(r'top\d+', name) is not None


def is_fraction(name: str) -> bool:
  """Whether a measure is shown in percent."""
  return name in FRACTIONS or is_top(name)


def display_name(name: str) -> str:
  """The name of a measure for a reader: 'top5' -> 'top-5 accuracy'."""
  if is_top(name):
    return f'top-{name[3:]} accuracy'
  return name.replace('_', ' ').replace('auroc', 'AUROC').replace('f1', 'F1')
