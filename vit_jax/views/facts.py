"""What a run's files tell, for its report: nothing here measures."""

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import analysis, bundle, files, metrics, sources, workdir
from vit_jax.evaluate import development, inputs, results
from vit_jax.evaluate.development import Development
from vit_jax.guards import legs, owner
from vit_jax.guards.legs import Leg
from vit_jax.images import transforms
from vit_jax.models import vit
from vit_jax.text import one_line, without_folders
from vit_jax.views import photos, repeats
from vit_jax.views.photos import Photos
from vit_jax.views.repeats import Repeats

ERRORS = (ValueError, OSError, jax.errors.JaxRuntimeError)  # of data, files and devices
LARGEST = 1e100  # number of a chart, which its axis can hold
WHILE_TRAINING = 150  # photos of a page that is written while training waits: about a second


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
      their names, and details of which a task may lack any; of a run that is not finished its
      latest validation; None if there is none.
    mistakes: the most confident first.
    left_out: why something is not there, in lines.
    data: of the run as `workdir.read_data` has it; {} if it is not there.
    status: of `owner.read`, how a run goes that is not finished; {} if nothing says it.
    photos: of the images that were measured.
    development: what an encoder without classes made of some photos, evaluation after evaluation.
    legs: of a run that was extended or changed, after its first.
    repeats: images that the data has twice; None where they were not looked for.
    written: when this was read.
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
  data: dict[str, Any] = dataclasses.field(default_factory=dict)
  status: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  photos: Photos = dataclasses.field(default_factory=Photos)
  development: Development | None = None
  legs: tuple[Leg, ...] = ()
  repeats: Repeats | None = None
  written: datetime.datetime = dataclasses.field(
    default_factory=lambda: datetime.datetime.now(datetime.UTC)
  )

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of what was logged under a name."""
    points = [(row['step'], row[name]) for row in self.rows if usable(row.get(name))]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return steps, values

  @property
  def is_live(self) -> bool:
    """Whether a process trains the run, as far as its files tell."""
    state = self.status.get('state')
    return state is not None and state not in owner.ENDED and not self.status.get('stale')


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
  """What a run's files tell; nothing is measured, and of an unfinished run no model is read.

  Raises:
    FileNotFoundError, ValueError: if the folder is not a run's.
  """
  evaluation = own_evaluation(folder)
  facts = read(folder, evaluation) if is_finished(folder) else read_logs(folder, evaluation)
  return with_evaluation(facts, evaluation)


def gather_live(
  folder: pathlib.Path,
  evaluation: dict[str, Any],
  status: Mapping[str, Any],
  source: sources.Source,
) -> Facts:
  """The same of a run that this process trains: no model is read, and few photos.

  Args:
    folder: of the run.
    evaluation: its latest, of `source`.
    status: of its `owner.Owner`.
    source: the split that was evaluated.
  """
  facts = dataclasses.replace(
    read_logs(folder, evaluation), status={'state': 'training'} | dict(status)
  )
  data = inputs.Split(evaluation['source'], evaluation['split'], source)
  return with_evaluation(facts, evaluation, data)


def own_evaluation(folder: pathlib.Path) -> dict[str, Any] | None:
  """A run's evaluation, if it is of a split that the run's config names; None otherwise.

  Of a run that is not finished it is the latest validation.
  """
  values = results.read(folder, results.FILE if is_finished(folder) else results.VALIDATION)
  file = folder / 'config.json'
  config = files.read_object(file) if values and file.is_file() else {}
  data = config.get('data')
  if values is None or not isinstance(data, dict):
    return None
  where = data.get('source'), data.get(values['use'])
  return values if (values['source'], values['split']) == where else None


def read(folder: pathlib.Path, evaluation: dict[str, Any] | None, checkpoint: str = '') -> Facts:
  """What a run's files and its model tell; of its evaluation only the step is read.

  `checkpoint` is which of its states is its model, see `bundle.read`.
  """
  facts = read_logs(folder, evaluation)
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


def read_logs(folder: pathlib.Path, evaluation: dict[str, Any] | None) -> Facts:
  """The same without the model."""
  config = files.read_object(folder / 'config.json') if (folder / 'config.json').is_file() else {}
  if not isinstance(config.get('data'), dict) or not isinstance(config.get('model'), dict):
    raise ValueError(f'{folder} is not the folder of a run: no config.json of one is there')
  rows, ranks = metrics.read_rows(folder / metrics.FILE), workdir.read_ranks(folder)
  step = evaluation['step'] if evaluation else None
  return Facts(
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
    data=workdir.read_data(folder) or {},
    status={} if is_finished(folder) else owner.read(folder) or {},
    legs=read_legs(folder),
  )


def read_legs(folder: pathlib.Path) -> tuple[Leg, ...]:
  """The legs of a run; none where their file is damaged."""
  try:
    return legs.read(folder)
  except (OSError, ValueError):
    return ()


def is_finished(folder: pathlib.Path) -> bool:
  return (folder / 'model').exists()


def with_evaluation(
  facts: Facts, evaluation: dict[str, Any] | None, data: inputs.Split | None = None
) -> Facts:
  """The same with the numbers of the model, and the images that show what they mean."""
  if evaluation is None and facts.left_out and not is_finished(facts.folder):
    return facts  # there is no model that could have been evaluated
  if evaluation is None:
    return with_omission(facts, no_evaluation(facts))
  facts = dataclasses.replace(facts, measured=evaluation)
  if evaluation.get('loss', 0) is None:
    facts = with_omission(facts, 'the loss of the model is not finite')
  facts = with_development(facts, data)
  if 'mistakes' not in evaluation or (is_finished(facts.folder) and facts.model is None):
    return facts
  try:
    on, split = evaluation['source'], evaluation['split']
    data = data or inputs.open_split(facts.folder, on=on, split=split)
  except ERRORS as error:
    return with_omission(facts, f'the data cannot be opened: {one_line(error)}')
  for add, name in STAGES:
    try:
      facts = add(facts, data)
    except ERRORS as error:
      facts = with_omission(facts, f'{name} could not be drawn: {one_line(error)}')
  return facts


def no_evaluation(facts: Facts) -> str:
  """Why there is no evaluation."""
  splits = facts.config['data']
  if not is_finished(facts.folder):
    return 'the training is not finished: nothing was evaluated yet'
  if splits.get('test') or splits.get('validation'):
    return f'{results.FILE} is missing or damaged: see vit report'
  return 'the run kept no split to measure its model on; see --split'


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


# Images


def transform_of(facts: Facts) -> transforms.Transform:
  """The transform of the model's images, of one that is not there yet by the config."""
  if facts.model is not None:
    return facts.model.preprocess.transform
  data, size = facts.config['data'], tuple(facts.config['image_size'])
  return transforms.compose(data['preprocess'], size, data['channels'])


def root_of(source: str) -> str:
  """The folder or file of a data set, as its name has it."""
  return source.partition(':')[2]


def with_photos(facts: Facts, data: inputs.Split) -> Facts:
  """The same with photos of the images that were measured, fewer while training waits for them."""
  assert facts.measured is not None
  images = photos.Images.of(facts.measured)
  if images is None:
    return facts
  limit = photos.LARGEST if facts.model is not None else WHILE_TRAINING
  shown = photos.read(
    images, data.source, transform_of(facts), limit=limit, root=root_of(data.name)
  )
  return dataclasses.replace(facts, photos=shown)


def with_development(facts: Facts, validation: inputs.Split | None) -> Facts:
  """The same with how an encoder developed and the photos of it, where the run's folder says it."""
  looks, config = development.read(facts.folder), facts.config['data']
  if looks is None or facts.photos.uris:
    return facts
  try:
    data = validation or inputs.open_split(
      facts.folder, on=config['source'], split=config['validation']
    )
    rows = [*dict.fromkeys([*looks.photos.tolist(), *looks.nearest.ravel().tolist()])]
    if max(rows) >= len(data.source):
      raise ValueError(f'the split has {len(data.source):,} images now, fewer than before')
    transform, root = transform_of(facts), root_of(data.name)

    def pixels(row: int) -> np.ndarray:
      return transform(data.source[row]['image'], np.random.default_rng(0))

    def name(row: int) -> str:
      return without_folders(data.source.describe(row), root)

    shown = photos.within_size(rows, pixels, name)
  except ERRORS as error:
    return with_omission(facts, f'photos over time could not be drawn: {one_line(error)}')
  return dataclasses.replace(facts, development=looks, photos=shown)


def with_mistakes(facts: Facts, data: inputs.Split) -> Facts:
  """The same with the images of the most confident mistakes.

  Raises:
    ValueError: if the data is not that which was measured.
  """
  model, values, transform = facts.model, facts.measured, transform_of(facts)
  assert values is not None
  placed = model and dataclasses.replace(model, params=jax.device_put(model.params))
  mistakes = []
  for row in values['mistakes']:
    index, name = row['index'], row['image']
    if index >= len(data.source) or data.source.describe(index) != name:
      raise ValueError(f'{name} is no longer image {index} of split {data.split} of {data.name}')
    image = transform(data.source[index]['image'], np.random.default_rng(0))
    attention = last_attention(placed, image) if placed else None
    name = without_folders(name, root_of(data.name))
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


def with_repeats(facts: Facts) -> Facts:
  """The same with what the data of a finished run has twice, see `repeats.read`.

  It is of images of one label each.
  """
  config = facts.config['data']
  if facts.model is None or not (facts.measured or {}).get('images'):
    return facts
  try:
    names = {use: config[use] for use in ('train', 'validation', 'test') if config.get(use)}
    splits = sources.open_splits(config['source'], names)
    channels = facts.model.preprocess.channels
    root = root_of(config['source'])
    twice = repeats.read(splits, transform_of(facts), channels=channels, root=root)
  except ERRORS as error:
    return with_omission(facts, f'the data could not be looked through: {one_line(error)}')
  return dataclasses.replace(facts, repeats=twice)


STAGES: tuple[tuple[Callable[[Facts, inputs.Split], Facts], str], ...] = (
  (with_photos, 'its photos'),
  (with_mistakes, 'its mistakes'),
)
