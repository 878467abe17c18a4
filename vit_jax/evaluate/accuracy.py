"""A classifier on a split: every measure of it, over the same images; as JSON and as text.

K classes that are scored.
"""

import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import bundle, files, sharding, sources
from vit_jax.evaluate import inputs, loop
from vit_jax.sources import imagenet, labels
from vit_jax.tasks import Task, classify
from vit_jax.text import to_stderr

RESULT = 'evaluation.json'  # in the folder of a run: what became its model, measured
COUNTS = ('count', 'unlabelled', 'bad_images', 'step')  # of an evaluation, and no measure
SHARES = ('accuracy', 'calibration_error', 'mean_average_precision')  # measures told in percent


def of_model(
  found: bundle.Bundle,
  split: inputs.Split,
  *,
  label_map: str | os.PathLike[str] = '',
  preprocess: str = '',
  batch_size: int = inputs.BATCH,
  say: Callable[[str], object] = to_stderr,
) -> dict[str, Any]:
  """Every measure of a model on a split, all over the same images.

  Args:
    found: the model, of `vit_jax.load` or `bundle.read`.
    split: of `inputs.opened`.
    label_map: see `labels.match`.
    preprocess: another line of transforms than the model's; '' for its own.
    batch_size: images at a time on each device.
    say: takes a line for each image that cannot be read.

  Returns:
    'source', 'split'; 'matched', how the classes were; 'count' of images scored, 'unlabelled' and
    'bad_images' of those that were not; 'accuracy', 'top5' (or fewer, if there are fewer classes),
    'loss'; 'calibration_error' and its 'calibration', a dict for each bin; 'classes', a dict of
    'name', 'count', 'precision' and 'recall' for each, None where that is 0 / 0; 'confusion', K
    lists of K counts, a row for each true class, and 'confused', its largest entries off the
    diagonal; 'mistakes', the most confident ones, a dict of 'image', what messages call
    it, its 'index' in the split, 'label', of several the first, 'guess' and 'confidence' for each.
    Of images with several labels there is no confusion (see `classify.measure`), and where the
    model has sigmoid scores, 'mean_average_precision'.

  Raises:
    DataError, ValueError: if the model has no head or other classes, or no image can be scored.
  """
  if not found.classes:
    raise ValueError(f'{found.name} has no head here: knn, fewshot and linear measure its features')
  matched = labels.match(
    split.source.classes,
    found.classes,
    used=imagenet.used(split.name),
    label_map=label_map,
  )
  ready = inputs.preprocess_of(found, split, preprocess)
  task = classify.classify(
    found.model, classes=matched.names, preprocess=ready, scores=found.scores
  )
  fixed = {'columns': matched.columns, 'places': np.append(matched.places, -1)}
  mesh = sharding.make_mesh()
  params, fixed = sharding.place((found.params, fixed), mesh)
  examples = len(split.source)
  with inputs.placed_batches(split, ready, mesh, batch_size=batch_size, say=say) as read:
    batches, _ = read
    sums, rows, readable = loop.evaluate(task, params, batches, fixed=fixed, keep=examples)
  described = {'source': split.name, 'split': split.split}
  values = result(task, sums, rows, split.source, readable=readable)
  return described | values | {'matched': matched.how}


def result(
  task: Task,
  sums: Mapping[str, Any],
  rows: Mapping[str, np.ndarray],
  source: sources.Source,
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


def write_result(folder: str | os.PathLike[str], values: dict[str, Any]) -> None:
  """Writes `RESULT` into a run's folder, whole or not at all.

  Args:
    folder: of the run.
    values: of `of_model` or `result`, with 'source', 'split', 'step', that became the model or None
      if that is not known, and 'use' of the split: 'test' or 'validation'.
  """
  with files.replacing(pathlib.Path(folder) / RESULT) as file:
    file.write(files.as_json(values).encode())


def read_result(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
  """What `write_result` wrote into a run's folder; None where it is missing or damaged."""
  try:
    found = files.read_object(pathlib.Path(folder) / RESULT)
    return found if is_result(found) else None
  except (OSError, ValueError, RecursionError):
    return None


def is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**53


def is_number(value: Any) -> bool:
  """Whether it is a measure: a finite number, or None for one that is not."""
  return value is None or (type(value) in (int, float) and abs(value) <= 2.0**1023)


def is_text(value: Any) -> bool:
  return isinstance(value, str)


FIELDS: dict[str, Callable[[Any], bool]] = {  # that every evaluation of a run has
  'source': is_text,
  'split': is_text,
  'use': lambda value: value in ('test', 'validation'),
  'step': lambda value: value is None or is_count(value),
  'count': is_count,
}
TABLES: dict[str, dict[str, Callable[[Any], bool]]] = {  # that some tasks add, a dict for each row
  'classes': {'name': is_text, 'count': is_count, 'precision': is_number, 'recall': is_number},
  'confused': {'label': is_text, 'guess': is_text, 'count': is_count},
  'calibration': {'count': is_count}
  | dict.fromkeys(('from', 'to', 'confidence', 'accuracy'), is_number),
  'mistakes': {'index': is_count, 'confidence': is_number}
  | dict.fromkeys(('image', 'label', 'guess'), is_text),
}


def is_result(found: Mapping[str, Any]) -> bool:
  """Whether an object of JSON is what `write_result` writes."""
  return (
    all(name in found and fits(found[name]) for name, fits in FIELDS.items())
    and all(is_number(found[name]) for name in (*SHARES, 'loss') if name in found)
    and all(is_number(value) for name, value in found.items() if is_top(name))
    and all(is_table(found[name], fields) for name, fields in TABLES.items() if name in found)
    and (found.get('confusion') is None or is_confusion(found['confusion'], found.get('classes')))
  )


def is_table(rows: Any, fields: Mapping[str, Callable[[Any], bool]]) -> bool:
  """Whether it is a list of dicts with these fields."""
  return isinstance(rows, list) and all(
    isinstance(row, dict) and all(name in row and fits(row[name]) for name, fits in fields.items())
    for row in rows
  )


def is_confusion(rows: Any, classes: Sequence[Any] | None) -> bool:
  """Whether it is K lists of K counts; ValueError for rows that are no array."""
  matrix, count = np.array(rows), len(classes or ())
  return matrix.shape == (count, count) and matrix.dtype.kind == 'i' and bool((matrix >= 0).all())


def numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
  """The measures among what an evaluation or a row of training has: accuracies come first.

  They are a task's, of any name; None is one that is not finite.
  """
  lists = (*TABLES, 'confusion', *COUNTS)
  found = {name: v for name, v in values.items() if name not in lists and is_number(v)}
  first = [name for name in found if name == 'accuracy' or is_top(name)]
  return {name: found[name] for name in [*sorted(first), *found]}


def is_top(name: str) -> bool:
  """Whether a measure is the accuracy of the first few classes, as 'top5' is."""
  return re.fullmatch(r'top\d+', name) is not None


def is_share(name: str) -> bool:
  """Whether a measure is told in percent."""
  return name in SHARES or is_top(name)


def words(name: str) -> str:
  """The name of a measure for a reader: 'top5' -> 'top-5 accuracy'."""
  return f'top-{name[3:]} accuracy' if is_top(name) else name.replace('_', ' ')


def of_run(
  path: str | os.PathLike[str],
  *,
  on: str = '',
  split: str = '',
  label_map: str | os.PathLike[str] = '',
  preprocess: str = '',
  batch_size: int = inputs.BATCH,
) -> dict[str, Any]:
  """`of_model` of a run, or of any checkpoint on a data set.

  Args:
    path: of the run or checkpoint.
    on, split: see `inputs.opened`.
    label_map, preprocess, batch_size: see `of_model`.

  Raises:
    FileNotFoundError, ValueError: if there is no such model or data, or they do not fit.
  """
  found = bundle.read(path)
  data = inputs.opened(path, on=on, split=split)
  return of_model(found, data, label_map=label_map, preprocess=preprocess, batch_size=batch_size)


def lines(found: dict[str, Any]) -> list[str]:
  """What `of_model` gives, as text."""
  top = next(filter(is_top, found))
  shown = (
    f'accuracy {found["accuracy"]:.2%}  top-{top[3:]} {found[top]:.2%}  loss {found["loss"]:.4f}  '
    f'calibration error {found["calibration_error"]:.2%}'
  )
  if found.get('mean_average_precision') is not None:
    shown += f'  mean average precision {found["mean_average_precision"]:.2%}'
  rows = by_recall(found['classes'])
  worst = [row for row in rows if row['count'] or row['precision'] is not None][: classify.CONFUSED]
  width = max(len('class'), *(len(row['name'][:40]) for row in worst))
  told = [shown, f'classes: {found["matched"]}', '']
  told.append(f'{"class":{width}}  images  precision  recall')
  for row in worst:
    precision, recall = (
      f'{row[key]:.1%}' if row[key] is not None else '-' for key in ('precision', 'recall')
    )
    told.append(f'{row["name"][:40]:{width}}  {row["count"]:6}  {precision:>9}  {recall:>6}')
  if rest := unlisted(rows, worst):
    told.append(rest)
  pairs = [f'{p["label"]} as {p["guess"]} {p["count"]}' for p in found['confused'][:5]]
  return told + ([f'most confused: {", ".join(pairs)}'] if pairs else [])


def by_recall(classes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """The lowest first, classes without images last."""
  return sorted(classes, key=lambda row: math.inf if row['recall'] is None else row['recall'])


def unlisted(classes: Sequence[dict[str, Any]], listed: Sequence[dict[str, Any]]) -> str:
  """What is told of the classes that a list `by_recall` leaves out; '' if there are none."""
  without = sum(not row['count'] for row in classes) - sum(not row['count'] for row in listed)
  others = len(classes) - len(listed) - without
  parts = [f'{others:,} with no lower recall'] * bool(others)
  parts += [f'{without:,} without images'] * bool(without)
  return f'... and {len(classes) - len(listed):,} more: {", ".join(parts)}' if parts else ''
