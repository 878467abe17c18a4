"""`vit report`: the page and the picture of a run."""

import argparse
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vit_jax import files, lookup
from vit_jax.commands import BAD_INPUT, ending, warn
from vit_jax.evaluate import accuracy, inputs, results
from vit_jax.text import one_line, to_stderr, to_stdout
from vit_jax.views.facts import (
  ERRORS,
  Facts,
  gather,
  is_finished,
  own_evaluation,
  read,
  with_evaluation,
  with_omission,
  with_repeats,
)
from vit_jax.views.report import PAGE, PICTURE, write


def run(args: argparse.Namespace) -> int:
  """0; 3 if the report lacks something."""
  with ending(BAD_INPUT, jax.errors.JaxRuntimeError):
    folder = pathlib.Path(args.run)
    facts = measure(
      folder,
      on=args.on,
      split=args.split,
      batch_size=args.batch_size,
      checkpoint=args.checkpoint,
    )
    facts = with_repeats(facts)
    write(facts)
  for line in facts.left_out:
    warn('report', line)
  to_stdout(facts.folder / PAGE, facts.folder / PICTURE)
  return 3 if facts.left_out else 0


def measure(
  folder: pathlib.Path,
  *,
  on: str = '',
  split: str = '',
  batch_size: int | None = None,
  checkpoint: str = '',
  say: Callable[[str], object] = to_stderr,
) -> Facts:
  """`gather`, with the numbers of the model measured now where the run has not the ones asked for.

  Those of a finished run's model on its own split are then written as its evaluation, unless there
  is one.

  Args:
    folder: of the run.
    on, split: another data set or split than the run's test, or without one validation, split.
    batch_size: images at a time on each device; None is `training_batch`, and needs no new measure.
    checkpoint: which state of the run, see `bundle.read`; '' is the model of a finished one.
    say: takes a line for each image that cannot be read, and on a split that may surprise.
  """
  if batch_size is not None and batch_size < 1:
    raise ValueError(f'the batch size must be at least 1, got {batch_size}')
  asked, latest = bool(on or split or batch_size), None if checkpoint else own_evaluation(folder)
  if latest and not asked and not is_finished(folder):
    return gather(folder)  # the page that training writes
  previous = latest if is_finished(folder) else None
  facts = read(folder, previous, checkpoint)
  splits = facts.config['data']
  use = next((use for use in ('test', 'validation') if splits.get(use)), None)
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
  is_previous = previous and (data.name, data.split) == (previous['source'], previous['split'])
  if is_previous and not batch_size:
    return with_evaluation(facts, previous, data)
  for line in data.notes:
    say(line)
  rows = batch_size or training_batch(facts.config)
  try:
    values = files.finite(accuracy.evaluate_model(facts.model, data, batch_size=rows, say=say))
  except ERRORS as error:
    return with_omission(facts, f'the model could not be measured: {one_line(error)}')
  is_usual = bool(use) and (data.name, data.split) == (splits['source'], splits[use])
  if is_usual and is_finished(folder) and not (previous or checkpoint):
    values |= {'step': facts.step, 'use': use}
    results.write(folder, values)
  return with_evaluation(facts, values, data)


def training_batch(config: Mapping[str, Any]) -> int:
  """Images at a time on each device: as many as training had on so many, at most `inputs.BATCH`."""
  rows, pieces = config.get('batch_size'), config.get('accumulate', 1)
  if type(rows) is not int or type(pieces) is not int or pieces < 1:
    return inputs.BATCH
  return min(max(rows // pieces // jax.device_count(), 1), inputs.BATCH)
