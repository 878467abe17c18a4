"""`vit report`: a run as a page and a picture, `report.html` and `report.png` in its folder."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax import analysis, bundle, files, lookup, metrics, workdir
from vit_jax.evaluate import accuracy, inputs, results
from vit_jax.images import transforms
from vit_jax.models import vit
from vit_jax.text import one_line, to_stderr
from vit_jax.views.report_page import Facts, Mistake, as_html, as_png

PAGE, PICTURE = 'report.html', 'report.png'
ERRORS = (ValueError, OSError, jax.errors.JaxRuntimeError)  # of data, files and devices
Say = Callable[[str], object]


def gather(
  folder: pathlib.Path,
  *,
  evaluation: dict[str, Any] | None = None,
  data: inputs.Split | None = None,
) -> Facts:
  """What a run's files tell; nothing is measured.

  Args:
    folder: of the run.
    evaluation: the numbers of its model, of `accuracy.evaluate_model`; None reads the run's own.
    data: that they are of, if it is open.

  Raises:
    FileNotFoundError, ValueError: if the folder is not a run's.
  """
  own = own_evaluation(folder)
  return with_evaluation(read(folder, own), evaluation or own, data)


def own_evaluation(folder: pathlib.Path) -> dict[str, Any] | None:
  """A run's evaluation, if it is of a split that the run's config names; None otherwise."""
  values, file = results.read(folder), folder / 'config.json'
  config = files.read_object(file) if values and file.is_file() else {}
  data = config.get('data')
  if values is None or not isinstance(data, dict):
    return None
  where = data.get('source'), data.get(values['use'])
  return values if (values['source'], values['split']) == where else None


def read(folder: pathlib.Path, evaluation: dict[str, Any] | None) -> Facts:
  """What a run's files tell; of its evaluation only the step is read."""
  config = files.read_object(folder / 'config.json') if (folder / 'config.json').is_file() else {}
  if not isinstance(config.get('data'), dict) or not isinstance(config.get('model'), dict):
    raise ValueError(f'{folder} is not the folder of a run: no config.json of one is there')
  rows, ranks = metrics.read_rows(folder / 'metrics.jsonl'), workdir.read_ranks(folder)
  step = evaluation['step'] if evaluation else None
  facts = Facts(
    folder=folder,
    rows=rows,
    config=config,
    environment=read_provenance(folder / workdir.ENVIRONMENT),
    ranks=ranks,
    step=metrics.model_step(config, rows, ranks) if step is None else step,
    model=None,
    measured=None,
    mistakes=[],
    left_out=[],
  )
  if not is_finished(folder):
    return with_omission(facts, 'the training is not finished: there is no model yet')
  try:
    model = bundle.read(folder)
  except ERRORS as error:
    return with_omission(facts, f'the model could not be read: {one_line(error)}')
  if not model.is_finite:
    return with_omission(facts, 'the model has parameters that are not finite')
  return dataclasses.replace(facts, model=model)


def is_finished(folder: pathlib.Path) -> bool:
  return (folder / 'model').exists()


def with_evaluation(
  facts: Facts, evaluation: dict[str, Any] | None, data: inputs.Split | None = None
) -> Facts:
  """The same with the numbers of the model, and the images of its most confident mistakes."""
  if not is_finished(facts.folder):
    return facts
  if evaluation is None:
    splits = facts.config['data']
    if splits.get('test') or splits.get('validation'):
      return with_omission(facts, f'{results.FILE} is missing or damaged: see vit report')
    return with_omission(facts, 'the run kept no split to measure its model on; see --split')
  facts = dataclasses.replace(facts, measured=evaluation)
  if evaluation.get('loss', 0) is None:
    facts = with_omission(facts, 'the loss of the model is not finite')
  if facts.model is None or not evaluation.get('mistakes'):
    return facts
  try:
    name, split = evaluation['source'], evaluation['split']
    data = data or inputs.open_split(facts.folder, on=name, split=split)
  except ERRORS as error:
    return with_omission(facts, f'the data cannot be opened: {one_line(error)}')
  try:
    return with_mistakes(facts, data)
  except ERRORS as error:
    return with_omission(facts, f'its mistakes could not be drawn: {one_line(error)}')


def read_provenance(path: pathlib.Path) -> dict[str, Any]:
  """A run's `workdir.ENVIRONMENT`, of strings and the dict 'packages'; {} where it is damaged."""
  try:
    values = files.read_object(path)
  except (OSError, ValueError):
    return {}
  packages = values.get('packages')
  return values | {'packages': packages if isinstance(packages, dict) else {}}


def training_batch(config: dict[str, Any]) -> int:
  """Images at a time on each device: as many as training had on so many, at most `inputs.BATCH`."""
  rows, pieces = config.get('batch_size'), config.get('accumulate', 1)
  if type(rows) is not int or type(pieces) is not int or pieces < 1:
    return inputs.BATCH
  return min(max(rows // pieces // jax.device_count(), 1), inputs.BATCH)


def with_omission(facts: Facts, line: str) -> Facts:
  return dataclasses.replace(facts, left_out=[*facts.left_out, line])


def with_mistakes(facts: Facts, data: inputs.Split) -> Facts:
  """The same with the images of the most confident mistakes.

  Raises:
    ValueError: if the data is not that which was measured.
  """
  model, values = facts.model, facts.measured
  assert model is not None and values is not None
  transform = transforms.compose(model.preprocess.steps, model.preprocess.size)
  placed = dataclasses.replace(model, params=jax.device_put(model.params))
  mistakes = []
  for row in values['mistakes']:
    index, name = row['index'], row['image']
    if index >= len(data.source) or data.source.describe(index) != name:
      raise ValueError(f'{name} is no longer image {index} of split {data.split} of {data.name}')
    image = transform(data.source[index]['image'], np.random.default_rng(0))
    fields = {name: row[name] for name in ('label', 'guess', 'confidence')}
    mistakes.append(Mistake(row['image'], image, **fields, attention=last_attention(placed, image)))
  return dataclasses.replace(facts, mistakes=mistakes)


def last_attention(run: bundle.Bundle, image: np.ndarray) -> np.ndarray | None:
  """(R, C): how much of each patch the tokens that the head reads take up in the last layer.

  It is the mean of the heads; None of a model without attention, or where it is not finite.
  """
  if not isinstance(run.model, vit.ViT):
    return None
  trace, last = analysis.trace(run, image), run.model.depth - 1
  weights = analysis.attention_weights(
    run.params, trace.layers[last], last, model=run.model, grid=trace.grid
  )  # (A, T, T)
  read = analysis.reading(run.model, trace) @ np.asarray(weights).mean(axis=0)  # (T,)
  return np.asarray(read[trace.prefix :].reshape(trace.grid)) if np.isfinite(read).all() else None


# The commands


def write(facts: Facts) -> None:
  """Writes `report.html` and `report.png` into a run's folder, each whole or not at all."""
  contents = {PAGE: as_html(facts).encode(errors='replace'), PICTURE: as_png(facts)}
  with contextlib.ExitStack() as both:  # neither is replaced before both are written
    for name, content in contents.items():
      both.enter_context(files.replacing(facts.folder / name)).write(content)


def after_training(folder: str | os.PathLike[str], say: Say) -> None:
  """Writes the report from what the run has written; what goes wrong is told in a line."""
  if jax.process_index() > 0:
    return
  try:
    facts = gather(pathlib.Path(folder))
    write(facts)
  except Exception as error:  # a run that is done must not fail for its report
    say(f'no report: {one_line(error)}')
    return
  for line in facts.left_out:
    say(f'report: {line}')
  say(f'the report is {pathlib.Path(folder) / PAGE}')


def measured(
  folder: pathlib.Path,
  *,
  on: str = '',
  split: str = '',
  batch_size: int | None = None,
  say: Say = to_stderr,
) -> Facts:
  """`gather`, with the numbers of the model measured now where the run has not the ones asked for.

  Those of the run's own split are then written as its evaluation, unless there is one.

  Args:
    folder: of the run.
    on, split: another data set or split than the run's test, or without one validation, split.
    batch_size: images at a time on each device; None is `training_batch`, and needs no new measure.
    say: takes a line for each image that cannot be read.

  Raises:
    FileNotFoundError, ValueError: if the folder is not a run's, for a batch size below 1, or if
      the data of `on` and `split` cannot be opened.
  """
  if batch_size is not None and batch_size < 1:
    raise ValueError(f'the batch size must be at least 1, got {batch_size}')
  previous = own_evaluation(folder)
  facts = read(folder, previous)
  splits = facts.config['data']
  use = next((use for use in ('test', 'validation') if splits.get(use)), None)
  asked = bool(on or split or batch_size)
  if facts.model is None or not (asked or use) or (previous and not asked):
    return with_evaluation(facts, previous)
  if lookup.is_path(facts.config.get('task', '')):
    task = facts.config['task']
    return with_omission(facts, f'only training measures {task}: see {results.FILE}')
  try:
    data = inputs.open_split(folder, on=on, split=split)
  except ERRORS as error:
    if on or split:  # bad input, for which no report is lost
      raise
    return with_omission(facts, f'the data cannot be opened: {one_line(error)}')
  if (
    previous
    and not batch_size
    and (data.name, data.split) == (previous['source'], previous['split'])
  ):
    return with_evaluation(facts, previous, data)
  rows = batch_size or training_batch(facts.config)
  try:
    values = files.finite(accuracy.evaluate_model(facts.model, data, batch_size=rows, say=say))
  except ERRORS as error:
    return with_omission(facts, f'the model could not be measured: {one_line(error)}')
  if use and not previous and (data.name, data.split) == (splits['source'], splits[use]):
    values |= {'step': facts.step, 'use': use}
    results.write(folder, values)
  return with_evaluation(facts, values, data)
