"""What a run's files tell, for its report: nothing here measures."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import analysis, bundle, files, metrics, workdir
from vit_jax.evaluate import inputs, results
from vit_jax.models import vit
from vit_jax.text import one_line
from vit_jax.views.charts import Chart

ERRORS = (ValueError, OSError, jax.errors.JaxRuntimeError)  # of data, files and devices
POINTS = 600  # of a curve at most
LARGEST = 1e100  # number of a chart, which its axis can hold
RATES = {  # of training: the title of each chart, and whether it is a fraction
  'learning_rate': ('Learning rate', False),
  'images_per_second': ('Images a second', False),
  'data_wait': ('Time waiting for data', True),
}


@dataclasses.dataclass(frozen=True)
class Mistake:
  """An image that was taken for something else.

  Fields:
    name: what the data set calls it.
    image: (H, W, C) uint8, as the model took it.
    label, prediction: names of classes.
    confidence: the probability of the prediction.
    attention: (R, C), of `last_attention`; None for a model without attention.
  """

  name: str
  image: np.ndarray
  label: str
  prediction: str
  confidence: float
  attention: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Facts:
  """All that a report tells.

  Fields:
    folder: of the run.
    rows: of `metrics.jsonl`.
    config: as JSON has it.
    environment: of `workdir.record`; {} if it is not there.
    model: with its parameters on the host: of a run that is not finished its best so far; None
      while there is none.
    ranks: of the run's task: the numbers that its evaluations can be ranked by.
    step: whose parameters became the model, or would now; None if nothing tells it.
    measured: an evaluation of the model, see `accuracy.evaluate_model`: a task's numbers, whatever
      their names, and details of which a task may lack any; None if there is none.
    mistakes: the most confident first.
    left_out: why something is not there, in lines.
  """

  folder: pathlib.Path
  rows: list[dict[str, Any]]
  config: dict[str, Any]
  environment: dict[str, Any]
  ranks: Mapping[str, int]
  step: int | None
  model: bundle.Bundle | None
  measured: dict[str, Any] | None
  mistakes: list[Mistake]
  left_out: list[str]

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of what was logged under a name."""
    points = [(row['step'], row[name]) for row in self.rows if usable(row.get(name))]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values

  def charts(self) -> list[Chart]:
    """The loss, what else the task ranks by, in training and evaluation, and the rates."""
    charts = []
    for name in dict.fromkeys(('loss', *self.ranks)):
      title = results.display_name(name)
      logged = (f'train/{name}', f'validation/{name}', f'validation/ema_{name}')
      lines = {key: thinned(*self.curve(key)) for key in logged}
      charts.append(Chart(title[:1].upper() + title[1:], lines, results.is_fraction(name)))
    for name, (title, is_fraction) in RATES.items():
      key = f'train/{name}'
      charts.append(Chart(title, {key: thinned(*self.curve(key))}, is_fraction))
    return charts


def usable(value: Any) -> bool:
  """Whether it is a finite number, and not so large that a chart's axis would not be."""
  return type(value) in (int, float) and abs(value) < LARGEST


def seconds_of_steps(facts: Facts) -> float:
  """How long the training steps took, evaluations left out, by the rates that were logged."""
  steps, rates = facts.curve('train/images_per_second')
  batch = facts.config.get('batch_size')
  batch = batch if type(batch) is int else 0
  taken = np.diff(steps, prepend=0) * batch / np.maximum(rates, 1e-9)
  return float(taken.sum())


def gather(folder: pathlib.Path) -> Facts:
  """What a run's files tell; nothing is measured.

  Raises:
    FileNotFoundError, ValueError: if the folder is not a run's.
  """
  evaluation = own_evaluation(folder)
  return with_evaluation(read(folder, evaluation), evaluation)


def own_evaluation(folder: pathlib.Path) -> dict[str, Any] | None:
  """A run's evaluation, if it is of a split that the run's config names; None otherwise."""
  values, file = results.read(folder), folder / 'config.json'
  config = files.read_object(file) if values and file.is_file() else {}
  data = config.get('data')
  if values is None or not isinstance(data, dict):
    return None
  where = data.get('source'), data.get(values['use'])
  return values if (values['source'], values['split']) == where else None


def read(folder: pathlib.Path, evaluation: dict[str, Any] | None, checkpoint: str = '') -> Facts:
  """What a run's files tell; of its evaluation only the step is read.

  `checkpoint` is which of its states is its model, see `bundle.read`.
  """
  config = files.read_object(folder / 'config.json') if (folder / 'config.json').is_file() else {}
  if not isinstance(config.get('data'), dict) or not isinstance(config.get('model'), dict):
    raise ValueError(f'{folder} is not the folder of a run: no config.json of one is there')
  rows, ranks = metrics.read_rows(folder / metrics.FILE), workdir.read_ranks(folder)
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
  try:
    model = bundle.read(folder, checkpoint)
  except FileNotFoundError as error:
    return with_omission(facts, f'there is no model yet: {one_line(error)}')
  except ERRORS as error:
    return with_omission(facts, f'the model could not be read: {one_line(error)}')
  if line := model.not_finite:
    return with_omission(facts, f'the model has parameters that are not finite: {line}')
  step = facts.step if is_finished(folder) and not checkpoint else model.step
  return dataclasses.replace(facts, model=model, step=step)


def is_finished(folder: pathlib.Path) -> bool:
  return (folder / 'model').exists()


def with_evaluation(
  facts: Facts, evaluation: dict[str, Any] | None, data: inputs.Split | None = None
) -> Facts:
  """The same with the numbers of the model, and the images of its most confident mistakes."""
  if evaluation is None and not is_finished(facts.folder):
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


def with_omission(facts: Facts, line: str) -> Facts:
  return dataclasses.replace(facts, left_out=[*facts.left_out, line])


def with_mistakes(facts: Facts, data: inputs.Split) -> Facts:
  """The same with the images of the most confident mistakes.

  Raises:
    ValueError: if the data is not that which was measured.
  """
  model, values = facts.model, facts.measured
  assert model is not None and values is not None
  transform = model.preprocess.transform
  placed = dataclasses.replace(model, params=jax.device_put(model.params))
  mistakes = []
  for row in values['mistakes']:
    index, name = row['index'], row['image']
    if index >= len(data.source) or data.source.describe(index) != name:
      raise ValueError(f'{name} is no longer image {index} of split {data.split} of {data.name}')
    image = transform(data.source[index]['image'], np.random.default_rng(0))
    attention = last_attention(placed, image)
    mistakes.append(Mistake(name, image, row['label'], row['guess'], row['confidence'], attention))
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


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """At most `POINTS` points of a curve, the first and the last among them."""
  chosen = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int))
  return steps[chosen], values[chosen]
