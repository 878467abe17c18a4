"""Loss and accuracy over a split: every image once, sums crossing the batches."""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from vit_jax import bundle, metrics, objective, sharding
from vit_jax.data.pipeline import DataError


def make_step(
  apply: Callable[..., Any], *, mean: Sequence[float], std: Sequence[float], loss: str = 'softmax'
) -> Callable[[Any, objective.Batch], objective.Sums]:
  """step(params, batch) -> `objective.measure`'s sums, without dropout or label smoothing."""

  def step(params: Any, batch: objective.Batch) -> objective.Sums:
    logits, _ = apply({'params': params}, objective.normalize(batch['image'], mean, std))
    return objective.measure(logits, batch, loss=loss)

  return step


def over(
  step: Callable[[Any, objective.Batch], objective.Sums],
  params: Any,
  batches: Iterable[objective.Batch],
) -> dict[str, float]:
  """'loss', 'accuracy' and the 'count' of images they are means over.

  Raises:
    DataError: if that is none.
  """
  total = {'loss': 0.0, 'correct': 0.0, 'count': 0.0}
  running: list[objective.Sums] = []

  def add(sums: objective.Sums) -> None:
    for name, value in jax.device_get(sums).items():
      total[name] += float(value)

  for batch in batches:
    running.append(step(params, batch))
    if len(running) > 2:  # the host stays that far ahead of the device
      add(running.pop(0))
  for sums in running:
    add(sums)
  if not total['count']:
    raise DataError('nothing to evaluate: not one of the images can be read, or has a label')
  return metrics.means(total) | {'count': total['count']}


def of_run(path: str, *, split: str = '', batch_size: int = 256) -> dict[str, Any]:
  """Loss and accuracy of a finished run's model, and the 'source', 'split' and 'count' behind.

  Images that cannot be read are told, counted as 'bad_images', and not scored.

  Args:
    path: the run's folder.
    split: of the run's data source; '' means its test split, or without one its validation split.
    batch_size: images at a time on each device.

  Raises:
    FileNotFoundError, ValueError: if there is no such run or split.
  """
  from vit_jax.data import pipeline, sources, transforms

  if batch_size < 1:
    raise ValueError(f'the batch size must be at least 1, got {batch_size}')
  found = bundle.read(path)
  file = pathlib.Path(path) / 'config.json'
  config = json.loads(file.read_text()) if file.is_file() else {}
  if 'data' not in config:
    raise ValueError(f'{path} is a bundle, not the folder of a run: it names no data')
  data = config['data']
  split = split or data['test'] or data['validation']
  if not split:
    raise ValueError(f'{path} names no test or validation split: give one by --split')
  source = sources.open_source(data['source'], split)
  if source.classes != found.classes:
    raise ValueError(f'{data["source"]} has other classes than the model of {path}')
  mesh = sharding.make_mesh()
  batch_size *= mesh.size
  step = make_step(
    found.model.apply,
    mean=found.preprocess.mean,
    std=found.preprocess.std,
    loss=config['objective']['loss'],
  )
  unreadable = pipeline.Unreadable(source, limit=None)
  with pipeline.evaluation_batches(
    source,
    transforms.compose(found.preprocess.steps, found.preprocess.size),
    batch_size=batch_size,
    unreadable=unreadable,
  ) as batches:
    params = sharding.place(found.params, mesh)
    values = over(jax.jit(step), params, sharding.prefetch(batches, mesh))
  counts = {'bad_images': unreadable.count}
  return {'source': data['source'], 'split': split, **values, **counts}


def main(argv: Sequence[str]) -> int:
  """`vit evaluate`: 0, or 2 for bad input."""
  flags = argparse.ArgumentParser(prog='vit evaluate', description='Measures a trained model.')
  flags.add_argument('run', help="a run's folder")
  flags.add_argument('--split', default='', help="default: the run's test split")
  flags.add_argument('--batch-size', type=int, default=256, help='images per device')
  flags.add_argument('--format', choices=('table', 'json'), default='table')
  given = flags.parse_args(argv)
  try:
    found = of_run(given.run, split=given.split, batch_size=given.batch_size)
  except (ValueError, OSError) as error:
    print(f'vit evaluate: {error}', file=sys.stderr)
    return 2
  if given.format == 'json':
    print(json.dumps(found))
  else:
    bad = f', {found["bad_images"]} unreadable' if found['bad_images'] else ''
    print(f'{found["source"]}, split {found["split"]}, {found["count"]:.0f} images{bad}')
    print(f'accuracy {found["accuracy"]:.2%}  loss {found["loss"]:.4f}')
  return 0
