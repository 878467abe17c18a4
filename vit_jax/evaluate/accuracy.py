"""A classifier on a split: every measure of it, over the same images; as JSON and as text.

K classes that are scored.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import bundle, sharding, sources
from vit_jax.evaluate import inputs, loop, results
from vit_jax.sources import balance, imagenet, labels
from vit_jax.sources.classes import check_labelled
from vit_jax.tasks import classify
from vit_jax.text import columns, percent, to_stderr

UNMEASURED = 'not measured'  # a mean over no class, or of more scores than are held


def evaluate_model(
  run: bundle.Bundle,
  split: inputs.Split,
  *,
  label_map: str | os.PathLike[str] = '',
  restrict: bool = False,
  preprocess: str = '',
  batch_size: int = inputs.BATCH,
  say: Callable[[str], object] = to_stderr,
) -> dict[str, Any]:
  """Every measure of a model on a split, over the same images and all classes of the model.

  ImageNet-A and -R are scored over their 200 classes, as they are published.

  Args:
    run: the model, of `vit_jax.load` or `bundle.read`.
    split: of `inputs.open_split`.
    label_map, restrict: see `labels.match`.
    preprocess: another line of transforms than the model's; '' for its own.
    batch_size: images at a time on each device.
    say: takes a line for each image that cannot be read.

  Returns:
    'source', 'split'; 'matched', how the classes were; 'count' of images scored, 'unlabelled' and
    'bad_images' of those that were not; 'accuracy', 'top5' of more than five classes, 'loss';
    'calibration_error' and its 'calibration', a dict for each bin; 'classes', a dict of 'name',
    'count', 'precision' and 'recall' for each, None where that is 0 / 0; 'confusion', K lists of K
    counts, a row for each true class, and 'confused', its largest entries off the diagonal;
    'balanced_accuracy', 'f1_micro', 'f1_macro', 'f1_weighted' and 'auroc', see `classify.measures`;
    'mistakes', the most confident ones, a dict of 'image', what messages call it, its 'index' in
    the split, 'label' (the first of several), 'guess' (the prediction) and 'confidence' for each;
    'images', see `results.image_columns`.
    Multi-label images have no confusion (see `classify.measure`), and where the
    model has sigmoid scores, 'mean_average_precision'.

  Raises:
    DataError, ValueError: if the model has no head or other classes, or no image can be scored.
  """
  if not run.classes:
    raise ValueError(f'{run.name} has no head here: knn, fewshot and linear measure its features')
  check_labelled(split.name, split.source.classes)
  matched = match_classes(run, split, restrict=restrict, label_map=label_map)
  ready = inputs.preprocess_of(run, split, preprocess)
  task = classify.classify(run.model, classes=matched.names, preprocess=ready, scores=run.scores)
  fixed = {'columns': matched.columns, 'targets': matched.targets}
  mesh = sharding.make_mesh()
  params, fixed = sharding.place((run.params, fixed), mesh)
  examples = len(split.source)
  with inputs.placed_batches(split, ready, mesh, batch_size=batch_size, say=say) as read:
    batches, _ = read
    sums, rows, readable = loop.evaluate(task, params, batches, fixed=fixed, keep=examples)
  described = {'source': split.name, 'split': split.split}
  values = results.summarize(task, sums, rows, split.source, readable=readable)
  return described | values | {'matched': matched.method}


def match_classes(
  run: bundle.Bundle, split: inputs.Split, *, restrict: bool, label_map: str | os.PathLike[str]
) -> labels.Match:
  """`labels.match` of a model on a split, whose classes without images need be none of the model's.

  Where labels are not in memory, they are read if a class of the data is none of the model's.
  """
  source = split.source
  in_memory = sources.labels_of(source)

  def match(present: frozenset[str] | None) -> labels.Match:
    return labels.match(
      source.classes,
      run.classes,
      present=present,
      subset=imagenet.subset(split.name),
      restrict=restrict,
      label_map=label_map,
    )

  if in_memory is not None:
    return match(present_classes(source, in_memory))
  try:
    return match(None)
  except ValueError:
    return match(present_classes(source, balance.read_labels(source)))


def present_classes(source: sources.Source, values: np.ndarray) -> frozenset[str]:
  """The classes of a source that some of its labels have."""
  return frozenset(source.classes[label] for label in np.unique(values).tolist() if label >= 0)


def evaluate_run(
  path: str | os.PathLike[str],
  *,
  on: str = '',
  split: str = '',
  label_map: str | os.PathLike[str] = '',
  restrict: bool = False,
  preprocess: str = '',
  batch_size: int = inputs.BATCH,
) -> dict[str, Any]:
  """`evaluate_model` of a run, or of any checkpoint on a data set.

  Args:
    path: of the run or checkpoint.
    on, split: see `inputs.open_split`.
    label_map, restrict, preprocess, batch_size: see `evaluate_model`.

  Raises:
    FileNotFoundError, ValueError: if there is no such model or data, or they do not fit.
  """
  run = bundle.read(path)
  data = inputs.open_split(path, on=on, split=split)
  return evaluate_model(
    run,
    data,
    label_map=label_map,
    restrict=restrict,
    preprocess=preprocess,
    batch_size=batch_size,
  )


def lines(values: Mapping[str, Any]) -> list[str]:
  """What `evaluate_model` gives, as text."""
  tops = {f'top-{k[3:]}': v for k, v in results.numbers(values).items() if results.is_top(k)}
  fractions = {'accuracy': values['accuracy']} | tops
  measures = (
    '  '.join(f'{name} {value:.2%}' for name, value in fractions.items())
    + f'  loss {values["loss"]:.4f}  calibration error {values["calibration_error"]:.2%}'
  )
  rows = by_recall(values['classes'])
  worst = [row for row in rows if row['count'] or row['precision'] is not None][: classify.CONFUSED]
  table = [('class', 'images', 'precision', 'recall')]
  for row in worst:
    precision, recall = (percent(row[key], 1) for key in ('precision', 'recall'))
    table.append((row['name'][:40], row['count'], precision, recall))
  result = [measures, of_classes(values), f'classes: {values["matched"]}', '', *columns(table)]
  if others := unlisted(rows, worst):
    result.append(others)
  pairs = [f'{p["label"]} as {p["guess"]} {p["count"]}' for p in values['confused'][:5]]
  return result + ([f'most confused: {", ".join(pairs)}'] if pairs else [])


def of_classes(values: Mapping[str, Any]) -> str:
  """The measures that are a mean over classes, where `values` has them, on a line."""
  names = ['balanced_accuracy', 'f1_micro', 'f1_macro', 'f1_weighted']
  names += ['auroc', 'mean_average_precision']
  shown = {
    results.display_name(name): percent(values[name], 2) if values[name] is not None else UNMEASURED
    for name in names
    if name in values
  }
  return '  '.join(f'{name} {value}' for name, value in shown.items())


def by_recall(classes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """The lowest first, classes without images last."""
  return sorted(classes, key=lambda row: math.inf if row['recall'] is None else row['recall'])


def unlisted(classes: Sequence[dict[str, Any]], listed: Sequence[dict[str, Any]]) -> str:
  """A line on the classes that a list `by_recall` leaves out; '' if there are none."""
  without = sum(not row['count'] for row in classes) - sum(not row['count'] for row in listed)
  others = len(classes) - len(listed) - without
  parts = [f'{others:,} with no lower recall'] * bool(others)
  parts += [f'{without:,} without images'] * bool(without)
  return f'... and {len(classes) - len(listed):,} more: {", ".join(parts)}' if parts else ''
