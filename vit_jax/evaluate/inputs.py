"""What is measured: a model on a split, in batches over all devices.

N images, B of them in a batch.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vit_jax import bundle, files, pipeline, sharding, sources
from vit_jax.sources import Record, Source, columns
from vit_jax.tasks import Batch
from vit_jax.text import quantity, to_stderr

BATCH = 256  # images at a time on each device


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of a data set.

  Fields:
    name: of the data set, as `sources.open_source` takes it.
    split: in TFDS's language.
    source: its images.
    notes: lines on why it is this split, where that may surprise, and on how it was read.
  """

  name: str
  split: str
  source: Source
  notes: tuple[str, ...] = ()


def open_split(path: str | os.PathLike[str], *, on: str = '', split: str = '') -> Split:
  """The data that a model is to be measured on.

  Args:
    path: of a run, or of another model.
    on: a data set; '' means the run's own.
    split: of it; '' means its test split, or without one its validation split, or its only one; of
      another data set than the run's, all images where it has no such split of its own.

  Raises:
    FileNotFoundError, ValueError: if there is no such data, or nothing says which.
  """
  data = {} if on else data_of(path)
  name, notes = on or data['source'], []
  split = split or data.get('test') or data.get('validation') or ''
  if not split:
    split = default_split(name) if on else test_split(name)
    if split == sources.ALL:
      line = f'{name} has no test or validation split of its own: all of its images are measured'
      line += ', also those that the run was trained on' * is_trained_on(path, name)
      notes.append(line)
  source = sources.open_source(name, split)
  return Split(name, split, source, (*notes, *sources.lines_about(source)))


def open_test_split(path: str | os.PathLike[str], *, on: str = '', split: str = '') -> Split:
  """As `open_split`, for what learns from 'train': never of images that are in it by default."""
  return open_split(path, on=on, split=split or (test_split(on) if on else ''))


def data_of(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The config of a run's data.

  Raises:
    ValueError: for what is not the folder of a run.
  """
  file = pathlib.Path(path) / 'config.json'
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    config = files.read_object(file)
    if isinstance(config['data']['source'], str):
      return config['data']
  raise ValueError(f'{path} is not the folder of a run: it names no data; --on SOURCE does')


def is_trained_on(path: str | os.PathLike[str], name: str) -> bool:
  """Whether a model is a run that was trained on the data set of that name."""
  with contextlib.suppress(ValueError):
    return data_of(path)['source'] == name
  return False


def test_split(name: str) -> str:
  """As `default_split`, but what is held out for validation instead of all images."""
  split = default_split(name)
  return 'validation' if split == sources.ALL else split


def default_split(name: str) -> str:
  """The split of a data set that is measured on where none is asked for.

  All of its images, where what is held out of them for validation is our choice and not its own.
  """
  splits = sources.splits_of(name)
  if 'test' in splits:
    return 'test'
  if isinstance(splits.get('validation'), sources.HeldOut):
    return sources.ALL
  for split in ('validation', *([*splits][: len(splits) == 1])):
    if split in splits:
      return split
  raise ValueError(f'{name} has no test split; give one of {", ".join(splits)} by --split')


def check_apart(first: Split, second: Split) -> None:
  """Raises ValueError if two splits of a data set have images in common."""
  if common := sources.overlap(first.source, second.source):
    splits = f'splits {first.split!r} and {second.split!r} of {first.name}'
    raise ValueError(
      f'{splits} have {quantity(common, "image")} in common: see --train, --validation, --split'
    )


class Paths(Sequence[Record]):
  """Image files without labels, as records of a source."""

  def __init__(self, paths: Sequence[str]):
    self.paths = paths

  def __len__(self) -> int:
    return len(self.paths)

  def path(self, index: int) -> str:
    return self.paths[index]

  def __getitem__(self, index: int) -> Record:  # type: ignore[override]
    return {'image': pathlib.Path(self.paths[index]).read_bytes()}


def image_split(paths: Sequence[str]) -> Split:
  """Image files as a split without labels."""
  return Split('', '', Source(Paths(paths), (), lambda index: str(paths[index])))


def preprocess_of(run: bundle.Bundle, split: Split, line: str = '') -> bundle.Preprocess:
  """A model's preprocessing, or with another line of transforms.

  Raises:
    ValueError: if the line does not give images of the model's size.
  """
  if not line:
    return run.preprocess
  preprocess = dataclasses.replace(run.preprocess, steps=line)
  bundle.check_steps(line)
  image = columns.first_image(split.source, preprocess.channels)
  output = preprocess.transform(image, np.random.default_rng(0)).shape
  if output[:2] != tuple(preprocess.size):
    height, width = preprocess.size
    raise ValueError(
      f'{line!r} gives {output[0]}x{output[1]} pixels; the model takes {height}x{width}'
    )
  return preprocess


@contextlib.contextmanager
def placed_batches(
  split: Split,
  preprocess: bundle.Preprocess,
  mesh: Mesh,
  *,
  batch_size: int = BATCH,
  say: Callable[[str], object] = to_stderr,
) -> Iterator[tuple[Iterator[Batch], pipeline.Unreadable]]:
  """Every image of a split once, in order, in batches on all devices.

  Args:
    split: to be read.
    preprocess: of its images.
    mesh: of the devices that share a batch.
    batch_size: images at a time on each device, at most.
    say: takes a line for each image that cannot be read.

  Yields:
    Batches as of `pipeline.evaluation_batches`, and what could not be read, whose `count` is
    complete after the last.

  Raises:
    ValueError: for a batch size below 1.
  """
  if batch_size < 1:
    raise ValueError(f'the batch size must be at least 1, got {batch_size}')
  on_each = -(-len(split.source) // mesh.size)
  rows = mesh.size * min(batch_size, 1 << (on_each - 1).bit_length())  # few shapes to compile
  unreadable = pipeline.Unreadable(split.source, say=say, limit=None)
  transform = preprocess.transform
  with pipeline.evaluation_batches(
    split.source,
    columns.labelled_images(split.source, transform),
    batch_size=rows,
    unreadable=unreadable,
  ) as batches:
    yield sharding.prefetch(batches, mesh), unreadable
