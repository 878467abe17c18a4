"""Where images come from: a source is a sequence of {'image': uint8 (H, W, 3), 'label': int}."""

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax import models

Record = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """One split of a data set, read by index.

  Fields:
    records: any sequence of records.
    classes: the name of each label.
  """

  records: Sequence[Record]
  classes: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Record:
    return self.records[index]


def open_source(name: str, split: str) -> Source:
  """The split of the data set of that name.

  Args:
    name: 'digits', the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships.
    split: of that data set; digits has 'train' (70 %), 'validation' (10 %) and 'test' (20 %).

  Raises:
    ValueError: for an unknown data set or split.
  """
  if name not in DATASETS:
    raise ValueError(f'unknown dataset {name!r}{models.nearest(name, list(DATASETS))}')
  return DATASETS[name](split)


def open_digits(split: str) -> Source:
  """Alpaydin & Kaynak's digits (UCI, 1998), split once and for all by a fixed seed.

  The order does not depend on a run's seed, so that test images stay test images.
  """
  images, labels = digits()
  shuffled = np.random.Generator(np.random.Philox(20)).permutation(len(labels))
  test, validation = len(labels) // 5, len(labels) // 10
  ends = {'test': (0, test), 'validation': (test, test + validation)}
  ends['train'] = (test + validation, len(labels))
  if split not in ends:
    raise ValueError(f'digits has no split {split!r}{models.nearest(split, list(ends))}')
  chosen = shuffled[slice(*ends[split])]
  records = [{'image': images[i], 'label': labels[i]} for i in chosen]
  return Source(records, tuple('0123456789'))


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
  """(1797, 8, 8, 3) uint8 and (1797,) int32; the 17 grey levels are spread over 0..255."""
  from sklearn import datasets

  data = datasets.load_digits()
  grey = np.round(data.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
  return np.repeat(grey[..., None], 3, axis=-1), data.target.astype(np.int32)


DATASETS: dict[str, Callable[[str], Source]] = {'digits': open_digits}


def save_images(source: Source, folder: str | os.PathLike[str], *, count: int | None = None) -> int:
  """Writes the first `count` images of a source, or all, as FOLDER/CLASS/INDEX.png: how many."""
  from PIL import Image

  indices = range(len(source))[:count]
  for index in indices:
    record = source[index]
    file = pathlib.Path(folder) / source.classes[int(record['label'])] / f'{index:06d}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(record['image']).save(file)
  return len(indices)


def main(argv: Sequence[str]) -> int:
  """`vit data save SOURCE FOLDER`: 0, or 2 for bad input."""
  flags = argparse.ArgumentParser(prog='vit data', description='Looks at data sets.')
  save = flags.add_subparsers(dest='command', required=True).add_parser('save', help='as PNG files')
  save.add_argument('source', help=f'one of: {", ".join(DATASETS)}')
  save.add_argument('folder', help='gets a folder for each class')
  save.add_argument('--split', default='test')
  save.add_argument('--count', type=int, help='the first ones; default: all')
  given = flags.parse_args(argv)
  try:
    if given.count is not None and given.count < 1:
      raise ValueError(f'--count must be at least 1, got {given.count}')
    written = save_images(open_source(given.source, given.split), given.folder, count=given.count)
  except (ValueError, OSError) as error:
    print(f'vit data: {error}', file=sys.stderr)
    return 2
  print(f'{written} images of {given.source}, split {given.split}, are in {given.folder}')
  return 0
