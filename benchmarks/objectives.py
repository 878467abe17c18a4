"""Objectives without labels: a step against its model's passes alone, and views against decoding.

python benchmarks/objectives.py [NAME ...] [--model Ti/16] [--batch-size 16] [--rounds 5]

For each objective, an update of `config.task` and the passes that it cannot do without (forward
and backward of the student at each size of views and of a decoder, forward of a teacher) take turns
on the same batch of digits at 224 pixels. The ratio is an update to the sum of its passes, of each
round; on a CPU by its seconds in all threads, on an accelerator by the clock.

`views` is the pipeline instead: CPU seconds of an example with one global view, with two, and with
two and six local ones, of photo-like JPEGs in memory, decoded once for all views or once for each.
About 4 minutes on 2 cores.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config, pipeline, plan, sources, train
from vit_jax.commands import bench
from vit_jax.images import transforms
from vit_jax.models.decoder import patch_grid
from vit_jax.sources.columns import Column, image, shared_images
from vit_jax.tasks import mae
from vit_jax.tasks.encoder import ImageEncoder

Arrays = dict[str, Any]
Pass = Callable[[Arrays, Arrays], Any]  # (params, batch) -> arrays

WANTED = {'step / passes': 1.1, 'two views / twice one': 0.9}


# The passes of each objective


def stacked(batch: Arrays, kind: str) -> jax.Array:
  """The views (N V, H, W, C) of a kind."""
  views = [rows for name, rows in batch.items() if name.startswith(kind)]
  return jnp.stack(views, axis=1).reshape(-1, *views[0].shape[1:])


def forward(encoder: ImageEncoder, kind: str) -> Pass:
  """A teacher's pass over the views of a kind."""

  def features(params: Arrays, batch: Arrays) -> jax.Array:
    images = stacked(batch, kind)
    sized = encoder.at_size(params, (images.shape[1], images.shape[2]))
    return encoder.apply(sized, images)[0]

  return features


def gradient(encoder: ImageEncoder, kind: str) -> Pass:
  """A student's pass over the views of a kind, and back."""
  features = forward(encoder, kind)
  return jax.grad(lambda params, batch: jnp.square(features(params, batch)).sum())


def of_student(encoder: ImageEncoder) -> list[Pass]:
  return [gradient(encoder, kind) for kind in ('global', 'local')]


def of_student_and_teacher(encoder: ImageEncoder) -> list[Pass]:
  return [*of_student(encoder), forward(encoder, 'global')]


def of_masked(encoder: ImageEncoder) -> list[Pass]:
  """The encoder's pass over the visible patches, the decoder's over all, and back."""
  section, model, channels = config.load('default').mae, encoder.model, encoder.preprocess.channels
  decoder = mae.make_decoder(section, model, channels=channels)
  grid = patch_grid(model, encoder.preprocess.size)
  count = mae.visible_count(grid[0] * grid[1], section.mask)

  def encoded(params: Arrays, batch: Arrays) -> jax.Array:
    visible = batch['noise'].argsort(axis=1)[:, :count]
    out = encoder.apply(params, batch['image'], visible=visible, train=True)[1]
    return jnp.square(out['encoded']).sum()

  def decoded(params: Arrays, batch: Arrays) -> jax.Array:
    order = batch['noise'].argsort(axis=1)
    tokens = jnp.ones((len(order), model.prefix + count, model.width))
    predictions, _ = decoder.apply({'params': params['decoder']}, tokens, order, grid, train=True)
    return jnp.square(predictions).sum()

  return [jax.grad(encoded), jax.grad(decoded)]


# Of each objective: the fields that it needs, and its passes.
OBJECTIVES: dict[str, tuple[list[str], Callable[[ImageEncoder], list[Pass]]]] = {
  'lejepa': ([], of_student),
  'dino': (['ema=0.996', 'dino.prototypes=8192'], of_student_and_teacher),
  'mae': ([], of_masked),
}


# Steps


def setup(name: str, flags: argparse.Namespace) -> tuple[Any, list[Pass], Any, Arrays]:
  """The update of an objective, its passes, its first state and a batch."""
  fields, passes = OBJECTIVES[name]
  words = [f'task={name}', f'model.name=ViT-{flags.model}', f'batch_size={flags.batch_size}']
  empty = [f'model.{field}=None' for field in ('patch', 'width', 'depth', 'heads', 'mlp_dim')]
  words += [
    *empty,
    'model.pool=token',
    'model.drop_path=0.0',
    'optimizer.name=adamw',  # muon's products of large kernels would be most of an update
    'image_size=224',
    'data.augment=resize',
  ]
  words += fields
  asked = plan.make_plan(config.load('digits', words))
  unreadable = asked.unreadable('train', print, pathlib.Path())
  with asked.training_batches(0, unreadable) as batches:
    batch = dict(next(batches))
  encoder = plan.make_encoder(asked.config, asked.splits['train'], lambda model: None)
  return train.updater(asked), passes(encoder), train.placed_state(asked), batch


def seconds(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
  """What a call takes, and what it gives."""
  clock = time.process_time if jax.default_backend() == 'cpu' else time.perf_counter
  before = clock()
  result = jax.block_until_ready(function(*arguments))
  return clock() - before, result


def measured(name: str, flags: argparse.Namespace) -> dict[str, Any]:
  """The seconds of an update and of its passes in turn, and their ratio, over the rounds."""
  update, passes, state, batch = setup(name, flags)
  programs = [jax.jit(one) for one in passes]

  def turn() -> list[float]:
    nonlocal state  # the update writes into it
    alone = [seconds(program, state.params, batch)[0] for program in programs]
    step, (state, _) = seconds(update, state, batch, {})
    return [step, *alone]

  turn()  # compiles
  rounds = [turn() for _ in range(flags.rounds)]
  ratios = [step / sum(alone) for step, *alone in rounds]
  return {
    'step': bench.spread([step for step, *_ in rounds]),
    'passes': [bench.spread([row[i] for row in rounds]) for i in range(1, len(rounds[0]))],
    'step / passes': bench.spread(ratios),
  }


# Views


def photos(height: int, width: int, count: int) -> sources.Source:
  """JPEGs of photographs with sensor noise, of quality 90."""
  import cv2
  import simplejpeg
  from sklearn import datasets

  rng, records = np.random.default_rng(0), []
  images = datasets.load_sample_images().images
  for index in range(count):
    large = cv2.resize(images[index % len(images)], (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = large + rng.normal(0, 4, (height, width, 1))
    levels = np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8))
    records.append({'image': simplejpeg.encode_jpeg(levels, 90, colorsubsampling='420')})
  return sources.Source(records, ())


def crops(globals_: int, locals_: int) -> dict[str, transforms.Transform]:
  most = transforms.compose('inception_crop(area_min=0.3) | flip', (224, 224))
  part = transforms.compose('inception_crop(area_min=0.05, area_max=0.3) | flip', (96, 96))
  views = {f'global{view}': most for view in range(globals_)}
  return views | {f'local{view}': part for view in range(locals_)}


def apart(views: dict[str, transforms.Transform]) -> dict[str, Column]:
  """Columns that decode a file each for itself."""
  return {name: image(crop, view=view) for view, (name, crop) in enumerate(views.items())}


def milliseconds(source: sources.Source, columns: Any, count: int) -> float:
  """CPU time of an example."""
  builder = pipeline.BatchBuilder(source, columns, count, seed=0)
  before = time.process_time()
  for index in range(count):
    builder.add(index % len(source), epoch=index // len(source))
  return (time.process_time() - before) / count * 1000


def views(flags: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
  """The costs of views of small and large photos, and their ratios, over the rounds."""
  kinds = {'one': crops(1, 0), 'two': crops(2, 0), 'eight': crops(2, 6)}
  columns = {name: shared_images(of) for name, of in kinds.items()}
  columns['one'] = apart(kinds['one'])
  columns['eight apart'] = apart(kinds['eight'])
  for (height, width), count in {(375, 500): 64, (3000, 4000): 12}.items():
    source = photos(height, width, min(count, 32))
    rounds = [
      {name: milliseconds(source, each, count) for name, each in columns.items()}
      for _ in range(flags.rounds)
    ]
    costs = {name: bench.spread([row[name] for row in rounds]) for name in columns}
    ratios = {
      'two views / twice one': [row['two'] / row['one'] / 2 for row in rounds],
      'eight / eight apart': [row['eight'] / row['eight apart'] for row in rounds],
    }
    yield f'views of {width}x{height}', costs | {n: bench.spread(r) for n, r in ratios.items()}


def main() -> int:
  flags = parser().parse_args()
  results: dict[str, Any] = {'provenance': bench.provenance()}
  for name in flags.names or [*OBJECTIVES, 'views']:
    rows = views(flags) if name == 'views' else [(name, measured(name, flags))]
    for title, row in rows:
      results[title] = row
      bench.write_results(flags.out, results)
      for key, value in row.items():
        if isinstance(value, dict):
          wanted = f', wanted {WANTED[key]}' if key in WANTED else ''
          spans = f'{value["median"]:.4g} ({value["min"]:.4g} to {value["max"]:.4g})'
          print(f'{title}: {key} {spans}{wanted}', flush=True)
  return 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(description='Measures objectives without labels.')
  flags.add_argument('names', nargs='*', choices=[[], *OBJECTIVES, 'views'], help='all by default')
  flags.add_argument('--out', default='benchmarks/results/objectives.json', help='%(default)s')
  flags.add_argument('--model', default='Ti/16')
  flags.add_argument('--batch-size', type=int, default=16)
  flags.add_argument('--rounds', type=int, default=5)
  return flags


if __name__ == '__main__':
  sys.exit(main())
