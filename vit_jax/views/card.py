"""The model card: README.md in a model's folder, written from its run.

It holds what the config and the measures say, and nothing that a clock or a path would change.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vit_jax import __version__, bundle, files, metrics
from vit_jax.evaluate import results
from vit_jax.models import mixer, resnet, vit
from vit_jax.text import number, one_line, quantity, si

SHOWN = 20  # class names
CLASSIFY = 'classify'  # the task that config.objective is for
FRONT = """---
library_name: vit_jax
pipeline_tag: {task}
tags:
- {task}
- {family}
- jax
---
"""
FAMILIES: dict[type, str] = {
  vit.ViT: 'vision-transformer',
  mixer.Mixer: 'mlp-mixer',
  resnet.ResNet: 'big-transfer',
}
LIMITS = """\
- Nothing is known of it beyond the measures above: not of other kinds of images, cameras or places,
  nor of groups of people.
{}\
- The data, and a checkpoint that training started from, have licences and biases of their own,
  which this model takes on; vit_jax does not know them.
"""
WRITTEN = 'Written by vit_jax '  # begins the last line
ALL_THE_SAME = """\
- An image of something else gets a class all the same: look at the score before the name.
"""


def write(
  folder: pathlib.Path, source: bundle.Bundle, config: Mapping[str, Any], *, step: int
) -> None:
  """Writes the card of a finished run beside its model.

  Args:
    folder: of the run, with its metrics.jsonl and, if it was measured, its evaluation.json.
    source: the model.
    config: of the run.
    step: whose parameters became the model.
  """
  rows = metrics.read_rows(folder / metrics.FILE)
  evaluation = results.read(folder)
  if evaluation and evaluation['step'] != step:
    evaluation = None
  whole = text(source, config, rows, step=step, evaluation=evaluation)
  card = folder / 'model' / bundle.CARD
  if card.is_file() and not whole.startswith(card.read_text('utf-8', errors='replace')):
    card.replace(card.with_name(f'{card.name}.old'))  # it may be someone's work
  with files.replacing(card) as file:
    file.write(whole.encode())


def is_whole(card: str) -> bool:
  """Whether a card was not cut short."""
  return any(line.startswith(WRITTEN) for line in card.splitlines())


def text(
  source: bundle.Bundle,
  config: Mapping[str, Any] | None = None,
  rows: Sequence[Mapping[str, Any]] = (),
  *,
  step: int | None = None,
  evaluation: Mapping[str, Any] | None = None,
) -> str:
  """The whole card, in Markdown.

  Args:
    source: the model.
    config: of its run, as config.json has it; None where it was trained elsewhere.
    rows: of metrics.jsonl.
    step: whose parameters the model has; without it rows tell nothing of them.
    evaluation: of `results.read`: the model's numbers on the split that it names.
  """
  sections = {'Model': model_rows(source), 'Training': training_rows(config)}
  parts = [f'{front(source)}\n# {source.name}, {kinds(source)}\n', use(source)]
  parts += [f'## {title}\n\n{table(rows)}' for title, rows in sections.items() if rows]
  measured = measures(config, rows, step, evaluation)
  parts.append(f'## Results\n\n{measured or "None were measured here."}\n')
  parts.append(f'## Limits\n\n{LIMITS.format(ALL_THE_SAME if source.classes else "")}')
  parts.append(f'{WRITTEN}{__version__}, with jax {jax.__version__}.\n')
  return '\n'.join(parts)


def front(source: bundle.Bundle) -> str:
  """What model hubs sort by."""
  task = 'image-classification' if source.classes else 'image-feature-extraction'
  family = next((tag for kind, tag in FAMILIES.items() if isinstance(source.model, kind)), 'flax')
  return FRONT.format(task=task, family=family)


def use(source: bundle.Bundle) -> str:
  """How it is run."""
  call = "run.predict('image.jpg', top=3)" if source.names_images else "run.features('image.jpg')"
  return USE.format(call=call, steps=one_line(steps(source)))


USE = """\
```python
import vit_jax

run = vit_jax.load('PATH/OF/THIS/FOLDER')
{call}
```

Images are RGB. Before the model they go through {steps}.
"""


def kinds(source: bundle.Bundle) -> str:
  return quantity(len(source.classes), 'class') if source.classes else 'features without classes'


def steps(source: bundle.Bundle) -> str:
  """The preprocessing in words."""
  line, mean, std = (getattr(source.preprocess, name) for name in ('steps', 'mean', 'std'))
  return f'`{line}`, then (pixel / 255 - mean) / std with mean {listed(mean)} and std {listed(std)}'


def listed(values: Sequence[float]) -> str:
  return ', '.join(f'{value:g}' for value in values)


def colours(channels: int) -> str:
  """What so many channels are, in words."""
  return {1: 'grey', 3: 'RGB', 4: 'RGBA'}.get(channels, quantity(channels, 'channel'))


def model_rows(source: bundle.Bundle) -> list[tuple[str, str]]:
  """What the model is."""
  model, (height, width, channels) = source.model, source.preprocess.shape
  sizes = ('patch', 'width', 'depth', 'heads', 'mlp_dim', 'blocks', 'width_factor', 'pool')
  shape = [f'{name} {dimensions(getattr(model, name))}' for name in sizes if hasattr(model, name)]
  rows = [
    ('architecture', f'{source.name}: {", ".join(shape)}'),
    ('parameters', f'{metrics.parameters(source.params):,}'),
    ('images', f'{height} x {width} pixels (height x width), {colours(channels)}'),
  ]
  if hasattr(model, 'flops'):
    flops = f'{si(model.flops(height, width, channels))} an image'
    rows.append(('floating-point operations', flops))
  if source.classes:
    names = ', '.join(source.classes[:SHOWN]) + ', …' * (len(source.classes) > SHOWN)
    rows.append(('classes', f'{len(source.classes)}: {names}'))
    one = 'shares of one' if source.scores == 'softmax' else 'of each class by itself'
    rows.append(('scores', f'{source.scores}, {one}'))
  return rows


def dimensions(value: object) -> str:
  return 'x'.join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def training_rows(config: Mapping[str, Any] | None) -> list[tuple[str, str]]:
  """How it was trained, from the run's config; nothing where there is none."""
  if config is None:
    return []
  data, objective = config['data'], config['objective']
  optimizer, schedule = config['optimizer'], config['schedule']
  start = shown(config.get('pretrained')) or 'parameters drawn at random'
  recipe = (
    f'{optimizer["name"]}, weight decay {optimizer["weight_decay"]:g}, learning rate '
    f'{schedule["learning_rate"]:g}, {schedule["name"]}, warm-up {schedule["warmup"]}'
  )
  for name in ('sam', 'gsam'):
    recipe += f', {name.upper()} {optimizer[name]:g}' if optimizer.get(name) else ''
  loss = [objective['loss']]
  loss += [f'{k} {objective[k]:g}' for k in ('smoothing', 'mixup', 'cutmix') if objective.get(k)]
  rows = [
    ('data', f'{shown(data["source"])}, split {data["train"]}'),
    ('augmentation', f'`{data["augment"]}`'),
    ('started from', start),
    ('duration', f'{config["duration"]}, {config["batch_size"]} images an update'),
    ('optimiser', recipe),
    ('seed', str(config['seed'])),
  ]
  task = config.get('task', CLASSIFY)
  rows.append(('loss', ', '.join(loss)) if task == CLASSIFY else ('task', task))
  if config.get('ema'):
    rows.append(('average', f'of the parameters, decay {config["ema"]:g}'))
  return rows


def measures(
  config: Mapping[str, Any] | None,
  rows: Sequence[Mapping[str, Any]],
  step: int | None,
  evaluation: Mapping[str, Any] | None,
) -> str:
  """A table of what was measured of these parameters, each with its split."""
  measured: dict[str, Mapping[str, Any]] = {**metrics.model_results(rows, step)}
  if evaluation:
    measured[evaluation['use']] = evaluation
  if config is None or not measured:
    return ''
  tables = {use: results.numbers(values) for use, values in measured.items()}
  names = results.numbers({name: None for table in tables.values() for name in table})
  titles = ('split', 'images', *map(results.display_name, names), 'step')
  lines = [f'| {" | ".join(titles)} |', f'|{"---|" * len(titles)}']
  for use, values in measured.items():
    split = f'{shown(config["data"]["source"])}, split {config["data"][use]}'
    numbers = [number(tables[use].get(name), '.4f') for name in names]
    cells = (cell(split), number(values.get('count'), ',.0f'), *numbers, str(values['step']))
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def shown(text: str | None) -> str:
  """A source or checkpoint, of a path that tells of a machine and its user the name alone."""
  kind, colon, path = (text or '').rpartition(':')
  private = path.startswith(('/', '~')) and not path.startswith('//')  # as a URL's does
  return f'{kind}{colon}{pathlib.PurePath(path).name if private else path}'


def table(rows: Sequence[tuple[str, str]]) -> str:
  return '\n'.join(['| | |', '|---|---|', *(f'| {k} | {cell(v)} |' for k, v in rows), ''])


def cell(value: str) -> str:
  """Text on one line that does not end its cell."""
  text = one_line(value)
  for letter, written in (('<', '&lt;'), ('|', '\\|')):
    text = text.replace(letter, written)
  return text
