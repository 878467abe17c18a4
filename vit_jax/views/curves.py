"""The charts of a run: its losses and measures, its rates and its schedule, and why they differ."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from vit_jax import optim
from vit_jax.evaluate import results
from vit_jax.guards import legs
from vit_jax.plan import make_schedule
from vit_jax.text import number
from vit_jax.views.charts import Chart, simplified, thinned
from vit_jax.views.facts import Facts

RATES = {  # of training: the title of each chart, and whether it is a fraction
  'learning_rate': ('Learning rate', False),
  'images_per_second': ('Images a second', False),
  'data_wait': ('Time waiting for data', True),
}
LINES = {  # of the logged names: what begins each, and what it is in words
  'train/': 'training',
  'validation/': 'validation',
  'validation/ema_': 'validation, averaged parameters',
}
LOGGED, SCHEDULE = 'logged', 'schedule'
VISIBLE = 1e-3  # of a chart's height: a fifth of a pixel
STEPS = 2**20  # of a schedule that are computed, evenly over it where there are more
# Fields of config.model by which a model is another in training, as a reason says it
RANDOM = {'drop_path': 'drop path', 'dropout': 'dropout', 'attention_dropout': 'attention dropout'}


def charts(facts: Facts) -> list[Chart]:
  """The loss, what else the task measures, in training and evaluation, and the rates."""
  options: dict[str, Any] = {'epoch': steps_of_epoch(facts), 'marks': leg_marks(facts)}
  result = []
  for name in dict.fromkeys(('loss', *facts.ranks, *parts(facts))):
    title = results.display_name(name)
    lines = {words: thinned(*facts.curve(key + name)) for key, words in LINES.items()}
    note = gap(facts) if name == 'loss' else ''
    chart = Chart(title[:1].upper() + title[1:], lines, results.is_fraction(name), **options)
    result.append(dataclasses.replace(chart, note=note))
  for name, (title, is_fraction) in RATES.items():
    lines = {LOGGED: thinned(*facts.curve(f'train/{name}'))}
    if name == 'learning_rate' and (line := schedule(facts)):
      lines[SCHEDULE] = line
    result.append(Chart(title, lines, is_fraction, exact=(SCHEDULE,), **options))
  return result


def parts(facts: Facts) -> list[str]:
  """Names of what was logged of training and validation both, as the parts of a loss are."""
  train, validation = (
    {key.removeprefix(use) for row in facts.rows for key in row if key.startswith(use)}
    for use in ('train/', 'validation/')
  )
  return sorted((train & validation) - {*results.COUNTS})


def steps_of_epoch(facts: Facts) -> float:
  """How many updates see as many images as there are; 0 where that is not known."""
  images, batch = facts.data.get('images'), facts.config.get('batch_size')
  return images / batch if type(images) is int and type(batch) is int and batch > 0 else 0


def leg_marks(facts: Facts) -> dict[float, str]:
  """By step, what began there of a run that was extended or changed."""
  return {leg.step: str(leg) for leg in facts.legs}


def total_steps(facts: Facts) -> int:
  """The steps of the whole run, of its status or of its config; 0 where neither says."""
  total = facts.status.get('total')
  if type(total) is int:
    return total
  try:
    return optim.steps(facts.config['duration'], epoch=steps_of_epoch(facts))
  except (KeyError, TypeError, ValueError, ZeroDivisionError):
    return 0


def schedule(facts: Facts) -> tuple[np.ndarray, np.ndarray] | None:
  """The learning rate of every step of the whole run, as the optimiser is given it in each leg."""
  ends = [*(leg.step for leg in facts.legs), total_steps(facts)]
  bounds = [(first, last) for first, last in itertools.pairwise([0, *ends]) if first < last]
  try:
    parts = [rates_of_leg(facts, first, last) for first, last in bounds]
  except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
    return None  # of another version
  if not parts:
    return None
  steps, rates = map(np.concatenate, zip(*parts))
  return simplified(steps, rates, VISIBLE * np.ptp(rates))


def rates_of_leg(facts: Facts, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
  """The steps of a leg, the update to each of which it is, and their learning rates."""
  config, epoch = legs.config_at(facts.config, facts.legs, first + 1), steps_of_epoch(facts)
  section = FrozenConfigDict({'begin': 0, **config['schedule']})
  rate = make_schedule(section, epoch, optim.steps(config['duration'], epoch=epoch))
  at = np.unique(np.linspace(first, last - 1, min(last - first, STEPS)).round())
  rates = np.asarray(jnp.vectorize(rate)(jnp.asarray(at)), float)
  return at + 1, rates  # the update from step s is logged at s + 1


def gap(facts: Facts) -> str:
  """Why the training loss lies above validation's, where it does and the config has reasons."""
  losses = {split: facts.curve(f'{split}/loss') for split in ('train', 'validation')}
  if not all(len(steps) for steps, _ in losses.values()):
    return ''
  (_, train), (_, validation) = losses['train'], losses['validation']
  if train[-1] <= validation[-1]:
    return ''
  because = reasons(facts.config, len(facts.data.get('classes', ())))
  listed = '; '.join(because) or 'it is a mean over steps in which the model was still worse'
  return (
    f'Training ends at {number(train[-1])}, above validation at {number(validation[-1])}. In '
    f'training alone: {listed}.'
  )


def reasons(config: Mapping[str, Any], classes: int) -> list[str]:
  """What makes this run's training loss higher than the same model's on plain images."""
  objective, model = config.get('objective', {}), config.get('model', {})
  lines = []
  if smoothing := objective.get('smoothing'):
    is_softmax = objective.get('loss') == 'softmax'
    lowest = floor(smoothing, classes) if is_softmax else ''
    lines.append(f'label smoothing of {smoothing:g}{lowest}')
  mixed = [f'{name} {objective[name]:g}' for name in ('mixup', 'cutmix') if objective.get(name)]
  if mixed:
    lines.append(f'images that are blended, with soft labels ({", ".join(mixed)})')
  if augment := config.get('data', {}).get('augment'):
    lines.append(f'augmented images ({augment})')
  lines += [f'{words} of {model[name]:g}' for name, words in RANDOM.items() if model.get(name)]
  if objective.get('class_weights'):
    lines.append('weights of the classes')
  if (config.get('teacher') or {}).get('checkpoint'):
    lines.append("the teacher's part of the loss")
  return lines


def floor(smoothing: float, classes: int) -> str:
  """The lowest softmax loss that label smoothing leaves: the entropy of the smoothed label."""
  if classes < 2 or not 0 < smoothing < 1:
    return ''
  other = smoothing / classes
  top = 1 - smoothing + other
  entropy = -(top * np.log(top) + (classes - 1) * other * np.log(other))
  return f', with which the loss is {entropy:.3g} at least'
