"""`vit report`: a run as a page and a picture, `report.html` and `report.png` in its folder.

K classes.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import analysis, bundle, metrics, provenance
from vit_jax.convert import files
from vit_jax.data import pipeline, transforms
from vit_jax.evaluate import accuracy, inputs
from vit_jax.models import vit
from vit_jax.report_page import Facts, Mistake, as_html, as_png

PAGE, PICTURE = 'report.html', 'report.png'
FAULTS = (ValueError, OSError, jax.errors.JaxRuntimeError)  # of data, files and devices
Say = Callable[[str], object]


def gather(
  folder: pathlib.Path,
  *,
  on: str = '',
  split: str = '',
  measure: bool = True,
  batch_size: int | None = None,
  say: Say,
) -> Facts:
  """Reads a run, and measures its model.

  Args:
    folder: of the run.
    on, split: another data set or split than the run's test, or without one validation, split.
    measure: whether the model is taken over that split.
    batch_size: images at a time on each device; None is `batch_of`.
    say: takes a line for each image that cannot be read.

  Raises:
    FileNotFoundError, ValueError: if the folder is not a run's, for a batch size below 1, or if
      the data of `on` and `split` cannot be opened.
  """
  if batch_size is not None and batch_size < 1:
    raise ValueError(f'the batch size must be at least 1, got {batch_size}')
  config = files.read_object(folder / 'config.json') if (folder / 'config.json').is_file() else {}
  if not isinstance(config.get('data'), dict) or not isinstance(config.get('model'), dict):
    raise ValueError(f'{folder} is not the folder of a run: no config.json of one is there')
  found = Facts(
    folder=folder,
    rows=metrics.read_rows(folder / 'metrics.jsonl'),
    config=config,
    environment=recorded(folder / provenance.NAME),
    model=None,
    measured=None,
    mistakes=[],
    left_out=[],
  )
  if not (folder / 'model').exists():
    return with_fault(found, 'the training is not finished: there is no model yet')
  try:
    model = bundle.read(folder)
  except FAULTS as error:
    return with_fault(found, f'the model could not be read: {files.one_line(error)}')
  if not model.is_finite:
    return with_fault(found, 'the model has parameters that are not finite')
  found = dataclasses.replace(found, model=model)
  if not measure:
    return with_fault(found, 'the model was not measured here; vit report does it on one host')
  if not (on or split or config['data'].get('test') or config['data'].get('validation')):
    return with_fault(found, 'the run kept no split to measure its model on; see --split')
  try:
    data = inputs.opened(folder, on=on, split=split)
  except FAULTS as error:
    if on or split:  # bad input, for which no report is lost
      raise
    return with_fault(found, f'the data cannot be opened: {files.one_line(error)}')
  try:
    found = measured(found, data, batch_size=batch_size or batch_of(config), say=say)
  except FAULTS as error:
    return with_fault(found, f'the model could not be measured: {files.one_line(error)}')
  try:
    return looked_at(found, data)
  except FAULTS as error:
    return with_fault(found, f'its mistakes could not be drawn: {files.one_line(error)}')


def recorded(path: pathlib.Path) -> dict[str, Any]:
  """A run's `provenance.NAME`, of strings and the dict 'packages'; {} where it is damaged."""
  try:
    found = files.read_object(path)
  except (OSError, ValueError):
    return {}
  packages = found.get('packages')
  return found | {'packages': packages if isinstance(packages, dict) else {}}


def batch_of(config: dict[str, Any]) -> int:
  """Images at a time on each device: as many as training had on so many, at most `inputs.BATCH`."""
  rows, pieces = config.get('batch_size'), config.get('accumulate', 1)
  if type(rows) is not int or type(pieces) is not int or pieces < 1:
    return inputs.BATCH
  return min(max(rows // pieces // jax.device_count(), 1), inputs.BATCH)


def with_fault(found: Facts, line: str) -> Facts:
  return dataclasses.replace(found, left_out=[*found.left_out, line])


def measured(found: Facts, data: inputs.Split, *, batch_size: int, say: Say) -> Facts:
  """The same with every measure on a split; ValueError if the model's scores are not finite."""
  assert found.model is not None
  values = accuracy.of_model(found.model, data, batch_size=batch_size, say=say)
  if not math.isfinite(values['loss']):
    raise ValueError('its loss is not finite')
  return dataclasses.replace(found, measured=values)


def looked_at(found: Facts, data: inputs.Split) -> Facts:
  """The same with the images of the most confident mistakes."""
  model, values = found.model, found.measured
  assert model is not None and values is not None
  transform = transforms.compose(model.preprocess.steps, model.preprocess.size)
  placed = dataclasses.replace(model, params=jax.device_put(model.params))
  mistakes = []
  for row in values['mistakes']:
    image = transform(data.source[row['index']]['image'], np.random.default_rng(0))
    told = {name: row[name] for name in ('label', 'guess', 'confidence')}
    mistakes.append(Mistake(row['image'], image, **told, attention=attended(placed, image)))
  return dataclasses.replace(found, mistakes=mistakes)


def attended(found: bundle.Bundle, image: np.ndarray) -> np.ndarray | None:
  """(R, C): how much of each patch the tokens that the head reads take up in the last layer.

  It is the mean of the heads; None of a model without attention.
  """
  if not isinstance(found.model, vit.ViT):
    return None
  seen, last = analysis.trace(found, image), found.model.depth - 1
  weights = analysis.weights_of(
    found.params, seen.layers[last], last, model=found.model, grid=seen.grid
  )  # (A, T, T)
  read = analysis.reading(found.model, seen) @ np.asarray(weights).mean(axis=0)  # (T,)
  return np.asarray(read[seen.prefix :].reshape(seen.grid))


# The commands


def write(
  folder: str | os.PathLike[str],
  *,
  on: str = '',
  split: str = '',
  measure: bool = True,
  batch_size: int | None = None,
  say: Say = pipeline.tell,
) -> Facts:
  """Writes `report.html` and `report.png` into a run's folder, each whole or not at all.

  Args:
    folder, on, split, measure, batch_size, say: see `gather`.

  Raises:
    ValueError, OSError: if the folder is not a run's, or cannot be written to.
  """
  how: dict[str, Any] = {'on': on, 'split': split, 'measure': measure, 'batch_size': batch_size}
  found = gather(pathlib.Path(folder), **how, say=say)
  contents = {PAGE: as_html(found).encode(errors='replace'), PICTURE: as_png(found)}
  with contextlib.ExitStack() as both:  # neither is replaced before both are written
    for name, content in contents.items():
      both.enter_context(files.replacing(found.folder / name)).write(content)
  return found


def after_training(folder: str | os.PathLike[str], say: Say) -> None:
  """Writes the report; what goes wrong is told in a line.

  With several processes the model is not measured again, which would take them all.
  """
  if jax.process_index() > 0:
    return
  try:
    found = write(folder, measure=jax.process_count() == 1, say=say)
  except Exception as error:  # a run that is done must not fail for its report
    say(f'no report: {files.one_line(error)}')
    return
  for line in found.left_out:
    say(f'report: {line}')
  say(f'the report is {pathlib.Path(folder) / PAGE}')


def main(argv: Sequence[str]) -> int:
  """`vit report`: 0; 2 for bad input; 3 if the report lacks something."""
  given = parser().parse_args(argv)
  try:
    found = write(given.run, on=given.on, split=given.split, batch_size=given.batch_size)
  except FAULTS as error:
    print(f'vit report: {files.one_line(error)}', file=sys.stderr)
    return 2
  for line in found.left_out:
    print(f'vit report: {line}', file=sys.stderr)
  print(found.folder / PAGE, found.folder / PICTURE, sep='\n')
  return 3 if found.left_out else 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit report',
    description='Writes report.html and report.png into the folder of a run.',
    epilog='Exit code: 0; 2 for bad input; 3 if the report lacks something, which is told.',
  )
  flags.add_argument('run', help="a run's folder")
  flags.add_argument('--on', default='', help="a data set to measure on; default: the run's own")
  flags.add_argument('--split', default='', help='default: test, or without one validation')
  flags.add_argument(
    '--batch_size',
    '--batch-size',
    type=int,
    help='images at a time on each device; default: those of training, at most 256',
  )
  return flags
