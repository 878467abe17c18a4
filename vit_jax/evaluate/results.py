"""`evaluation.json` of a run: what a task's measures gave on a split, as written and as read.

While it trains, `validation.json` has the same of its latest validation.

N images, K classes.
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
from vit_jax.evaluate import neighbours
from vit_jax.guards import seals
from vit_jax.sources import Source
from vit_jax.tasks import Task

FILE = 'evaluation.json'  # in the folder of a run: what became its model, measured
VALIDATION = 'validation.json'  # the latest validation on the way
COUNTS = ('count', 'unlabelled', 'bad_images', 'step')  # of an evaluation, and no measure
FRACTIONS = (  # measures that are shown in percent
  'accuracy',
  'knn_accuracy',
  'calibration_error',
  'mean_average_precision',
  'auroc',
  'balanced_accuracy',
  'f1_micro',
  'f1_macro',
  'f1_weighted',
)

COLUMNS = {  # of 'images': the type of each column, and the digits after the point that are kept
  'index': (int, 0),
  'label': (int, 0),
  'guess': (int, 0),
  'right': (int, 0),
  'confidence': (float, 7),
  'loss': (float, 7),
}
BY_FEATURES = {'neighbour': (int, 0), 'typical': (float, 7)}  # columns where features are held
LARGEST_IMAGES = 100_000  # whose columns are kept: 5 MB of JSON


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
    sums, rows: of `loop.evaluate`; where rows have the COLUMNS of each image, so has the result.
    source: what was measured on; it names the images of 'mistakes'.
    readable: how many of its images could be read.
  """
  numbers = task.read(sums)
  values = {**numbers, 'count': int(numbers['count']), **task.details(sums, rows)}
  for mistake in values.get('mistakes', ()):
    mistake['image'] = source.describe(mistake['index'])
  if rows.keys() >= COLUMNS.keys() - {'index'}:
    values['images'] = image_columns(rows, len(values.get('classes', ())))
  counts = {'unlabelled': readable - values['count'], 'bad_images': len(source) - readable}
  return values | counts


def image_columns(rows: Mapping[str, np.ndarray], classes: int) -> dict[str, list[Any]]:
  """'images' of an evaluation: what was measured of each image, one list for each of COLUMNS.

  'index' is the image's in its split, ascending; 'label' (the first of several, -1 of none) and
  'guess' are indices in 'classes'; 'right' is 1 or 0; 'confidence' is the probability of the
  guess, 'loss' the image's own. Of images of one label whose features are held, 'neighbour' is the
  class of those with the most similar features, and 'typical' the cosine of its features and the
  mean of its class. Two models that are measured on the same split have the same images here, so
  that they can be compared in pairs.

  Args:
    rows: (N,) 'label', 'guess', 'right', 'confidence' and 'loss', with 'right' -1 for an image that
      was not scored, which is left out. Of more than LARGEST_IMAGES, so many evenly over all.
      Where there are 'features' (N, F), without 'labels', see BY_FEATURES.
    classes: K.
  """
  scored = np.flatnonzero(rows['right'] >= 0)
  spread = np.linspace(0, len(scored) - 1, min(len(scored), LARGEST_IMAGES))
  index = scored[np.rint(spread).astype(int)]
  columns = {'index': index} | {name: rows[name][index] for name in COLUMNS if name != 'index'}
  features = rows.get('features')
  if features is not None and len(features) == len(rows['right']) and 'labels' not in rows:
    values, labels = features[index], columns['label'].astype(int)
    is_usable = len(index) >= 2 and (labels >= 0).all()
    if is_usable and np.isfinite(values).all():
      columns |= neighbours.columns(values, labels, classes)
  return {
    name: np.round(columns[name].astype(kind), digits).tolist()
    for name, (kind, digits) in (COLUMNS | BY_FEATURES).items()
    if name in columns
  }


def write(folder: str | os.PathLike[str], values: dict[str, Any], name: str = FILE) -> None:
  """Writes an evaluation into a run's folder, whole or not at all, with its checksum.

  `FILE` has that of the model's weights, too.

  Args:
    folder: of the run.
    values: of `accuracy.evaluate_model` or `summarize`, with 'source', 'split', 'step', that became
      the model or None if that is not known, and 'use' of the split: 'test' or 'validation'.
    name: `FILE` or `VALIDATION`.
  """
  if name == FILE:
    with contextlib.suppress(seals.Broken):
      values = values | {'weights': weights(seals.read(pathlib.Path(folder) / 'model'))}
  with files.replacing(pathlib.Path(folder) / name) as file:
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


def read(folder: str | os.PathLike[str], name: str = FILE) -> dict[str, Any] | None:
  """What `write` wrote into a run's folder; None where it is missing or damaged."""
  try:
    values = files.read_object(pathlib.Path(folder) / name)
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
    and ('images' not in values or are_images(values['images'], values.get('classes')))
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


def are_images(columns: object, classes: Sequence[Any] | None) -> bool:
  """Whether it is what `image_columns` gives for K classes; ValueError for ragged rows."""
  if not isinstance(columns, dict) or not all(isinstance(c, list) for c in columns.values()):
    return False
  if not COLUMNS.keys() <= columns.keys() <= COLUMNS.keys() | BY_FEATURES.keys():
    return False
  if len({len(column) for column in columns.values()}) > 1:
    return False
  kinds = {name: kind for name, (kind, _) in (COLUMNS | BY_FEATURES).items()}
  whole = {name: np.array(c) for name, c in columns.items() if kinds[name] is int}
  count = len(classes or ())
  limits = {'index': (0, 2**53), 'label': (-1, count), 'right': (0, 2)}
  return (
    all(column.dtype.kind == 'i' for column in whole.values())
    and bool((np.diff(whole['index']) > 0).all())
    and all(
      bool(((column >= low) & (column < high)).all())
      for name, column in whole.items()
      for low, high in [limits.get(name, (0, count))]
    )
    and all(all(map(is_number, columns[name])) for name in columns.keys() - whole.keys())
  )


def numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
  """The measures among what an evaluation or a row of training has: accuracies come first.

  They are a task's, of any name; None is one that is not finite. The accuracy of the first few
  classes is none where these are all, as earlier versions have it.
  """
  lists = (*TABLES, 'confusion', 'images', *COUNTS)
  count = len(values.get('classes', ()))
  measures = {
    name: value
    for name, value in values.items()
    if name not in lists and is_number(value) and not is_top_of_all(name, count)
  }
  first = [name for name in measures if name == 'accuracy' or is_top(name)]
  return {name: measures[name] for name in [*sorted(first), *measures]}


def is_top(name: str) -> bool:
  """Whether a measure is the accuracy of the first few classes, as 'top5' is."""
  return re.fullmatch(r'top\d+', name) is not None


def is_top_of_all(name: str, classes: int) -> bool:
  """Whether a measure is the accuracy of the first few classes, and these are all of so many."""
  return is_top(name) and 0 < classes <= int(name[3:])


def is_fraction(name: str) -> bool:
  """Whether a measure is shown in percent."""
  return name in FRACTIONS or is_top(name)


def display_name(name: str) -> str:
  """The name of a measure for a reader: 'top5' -> 'top-5 accuracy'."""
  if is_top(name):
    return f'top-{name[3:]} accuracy'
  return name.replace('_', ' ').replace('knn', 'k-NN').replace('auroc', 'AUROC').replace('f1', 'F1')
