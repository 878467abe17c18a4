"""`vit vtab`: a checkpoint on the 19 tasks of VTAB-1k (arXiv 1910.04867), fine-tuned.

For each task every learning rate is tried on 800 images and looked at on 200 others; with the best
the model is trained once more on all 1,000, and that one is measured, once, on the full test set.
Each of these is a run in a folder of its own, so that what was done is not done again.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from vit_jax import config, files, metrics, plan, train
from vit_jax.commands import warn
from vit_jax.evaluate import results
from vit_jax.sources import presets
from vit_jax.text import columns, nearest, one_line, percent, redacted, to_stderr, to_stdout

RESULT = 'vtab.json'
WHOLE = 'evaluation.patience=0'  # so that the last parameters are those that are measured
FINAL = ('data.train=trainval', 'data.validation=', 'data.test=test', WHOLE)
SWEPT = ('data.train=train', 'data.validation=validation', 'data.test=', WHOLE)
GROUP = {task: group for group, tasks in presets.VTAB.items() for task in tasks}


class RunStopped(Exception):
  """A run was stopped, and saved."""


@dataclasses.dataclass(frozen=True)
class Protocol:
  """What is trained, and where."""

  model: str  # as the config's argument has it: a name, a path or a URL
  workdir: pathlib.Path  # of all runs: TASK/rate_0.01 and TASK/final
  rates: Sequence[float]  # learning rates to try
  recipe: str  # a config that takes MODEL,TASK
  overrides: list[str]  # 'FIELD=VALUE' for all runs

  def evaluate(self, task: str) -> dict[str, Any]:
    """The result of a task: the missing runs are trained first.

    'rate' is the one with the best validation accuracy, of equals the smallest; 'search' that
    accuracy of each, without those whose loss was not finite; 'validation_accuracy' and
    'validation_count' are of the best; 'accuracy' and 'count' of the test, after training on all
    images.
    """
    folder, search = self.workdir / task, {}
    for rate in sorted(self.rates):
      try:
        run_folder = self.run(task, folder / f'rate_{rate:g}', rate, SWEPT)
        search[rate] = read_measures(run_folder, 'validation')
      except FloatingPointError as error:
        to_stderr(f'{task}, rate {rate:g}: {one_line(error)}')
    if not search:
      raise ValueError('none of the rates gave a finished run')
    best = max(search, key=lambda rate: search[rate]['accuracy'])
    test = read_measures(self.run(task, folder / 'final', best, FINAL), 'test')
    return {
      'rate': best,
      'search': {f'{rate:g}': measures['accuracy'] for rate, measures in search.items()},
      'validation_accuracy': search[best]['accuracy'],
      'validation_count': int(search[best]['count']),
      'accuracy': test['accuracy'],
      'count': int(test['count']),
    }

  def check(self, task: str) -> None:
    """Raises ValueError or OSError for a recipe or a checkpoint that cannot be had for any task."""
    recipe = config.load(f'{self.recipe}:{self.model},{task}', self.overrides)
    if recipe.pretrained:
      plan.open_pretrained(recipe)

  def run(
    self, task: str, folder: pathlib.Path, rate: float, splits: Sequence[str]
  ) -> pathlib.Path:
    """Trains a run, or resumes it; its folder."""
    overrides = [*self.overrides, f'schedule.learning_rate={rate}', *splits]
    recipe = config.load(f'{self.recipe}:{self.model},{task}', overrides)
    with train.owned(folder) as owner:
      ready = plan.make_plan(recipe, folder)
      ready.claim(folder)
      to_stderr(f'{folder}: {task}, rate {rate:g}')
      with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        finished = train.train(ready, folder, owner=owner)
    jax.clear_caches()  # of dozens of runs, compiled programs would pile up
    if not finished:
      raise RunStopped
    return folder


def run(args: argparse.Namespace) -> int:
  """0; 3 if tasks were left out."""
  for name in ('absl', 'asyncio'):  # as in `vit train`
    logging.getLogger(name).setLevel(logging.CRITICAL)
  try:
    if args.show:
      report = read_results(pathlib.Path(args.workdir))
    else:
      names = [task_name(task) for task in args.tasks or GROUP]
      with train.owned(args.workdir):  # of two sweeps one would undo the other's results
        report = sweep(make_protocol(args), names)
  except RunStopped:
    return 0  # the run has said so
  if args.format == 'json':
    print(files.as_json(report))
  else:
    to_stdout(*lines(report))
  return 3 if report['failed'] else 0


def read_measures(run: pathlib.Path, use: str) -> dict[str, float]:
  """The 'accuracy' and 'count' of a run's model, on its 'test' or 'validation' split."""
  values = results.read(run) or {}
  if values.get('use') != use:  # of the other split, or a run from before there was a file
    rows = metrics.read_rows(run / metrics.FILE)
    last = [row for row in rows if metrics.has_split(row, use)][-1:]
    values = {name.removeprefix(f'{use}/'): row[name] for row in last for name in row}
    values['use'] = use
  if values.get('use') != use or values.get('accuracy') is None:
    raise ValueError(f'{run} is no finished run: it measured nothing on its {use} split')
  return {name: values[name] for name in ('accuracy', 'count')}


def sweep(protocol: Protocol, tasks: Sequence[str]) -> dict[str, Any]:
  """The results of tasks, which are written to `RESULT` in the folder after each.

  A task that fails is reported and left out, and the sweep continues. What the file has of
  this model's other tasks stays there.
  """
  report: dict[str, Any] = {'model': redacted(protocol.model), 'tasks': previous_results(protocol)}
  report |= {'failed': {}, 'means': {}}
  protocol.check(tasks[0])
  protocol.workdir.mkdir(parents=True, exist_ok=True)
  for task in tasks:
    try:
      report['tasks'][task] = protocol.evaluate(task)
    except (ValueError, OSError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
      report['failed'][task] = one_line(error)
      warn('vtab', f'{task} is left out: {one_line(error)}')
    report['means'] = means(report['tasks'])
    files.write_json(protocol.workdir / RESULT, report)
  return report


def previous_results(protocol: Protocol) -> dict[str, Any]:
  """The finished tasks of this model that the file tells of."""
  try:
    previous = read_results(protocol.workdir)
    return dict(previous['tasks']) if previous['model'] == redacted(protocol.model) else {}
  except (ValueError, KeyError, TypeError):
    return {}


def means(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """The mean test accuracy of each group and of all tasks, over 'done' of 'tasks' ones."""
  groups = {**presets.VTAB, 'all': tuple(GROUP)}
  result = {}
  for group, members in groups.items():
    done = [tasks[task]['accuracy'] for task in members if task in tasks]
    mean = statistics.mean(done) if done else None
    result[group] = {'accuracy': mean, 'done': len(done), 'tasks': len(members)}
  return result


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
  """What `sweep` wrote to a folder."""
  file = workdir / RESULT
  values = files.read_object(file) if file.is_file() else {}
  if not values.get('tasks'):
    raise ValueError(f'{workdir} has no finished task: there is nothing to show')
  return values


def lines(values: Mapping[str, Any]) -> Iterator[str]:
  """Results as text."""
  rows = [('task', 'group', 'rate', 'validation', 'of', 'test', 'of')]
  for task, row in values['tasks'].items():
    validation = percent(row['validation_accuracy']), row['validation_count']
    test = percent(row['accuracy']), row['count']
    rows.append((task, GROUP[task], f'{row["rate"]:g}', *validation, *test))
  yield from columns(rows)
  for task, reason in values['failed'].items():
    yield f'{task} ({GROUP[task]}) left out: {reason}'
  yield ''
  means = [
    (f'mean of {group}', percent(row['accuracy']), f'{row["done"]} of {row["tasks"]} tasks')
    for group, row in values['means'].items()
    if row['done']
  ]
  yield from columns([('', 'test', ''), *means])


def make_protocol(args: argparse.Namespace) -> Protocol:
  """What the flags ask for."""
  if not args.model:
    raise ValueError('MODEL is missing: a name, a path or a URL')
  for rate in args.rates:
    if not 0 < rate < math.inf:
      raise ValueError(f'--rates {rate:g} must be above 0')
  fixed = {text.partition('=')[0] for text in (*FINAL, *SWEPT)}
  fixed |= {'data.source', 'schedule.learning_rate'}
  for override in args.overrides:
    if (field := override.partition('=')[0]) in fixed:
      raise ValueError(f'{field} is what the protocol sets' + '; see --rates' * ('rate' in field))
  return Protocol(args.model, pathlib.Path(args.workdir), args.rates, args.config, args.overrides)


def task_name(task: str) -> str:
  """A task by its name, 'vtab/NAME' or NAME; ValueError for another."""
  name = task.removeprefix('vtab/')
  if name not in GROUP:
    raise ValueError(f'unknown task {task!r}{nearest(name, list(GROUP))}')
  return name
