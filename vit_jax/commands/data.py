"""`vit data`: looks at data sets, saves, prepares and lists them.

N images, K classes.
"""

import argparse
import collections
import contextlib
import dataclasses
import errno
import hashlib
import importlib
import io
import json
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vit_jax import pipeline, sources, text
from vit_jax.images import decoding, transforms
from vit_jax.sources import Source, presets
from vit_jax.sources import columns as fields
from vit_jax.text import printable, reason, to_stderr

CHUNK = 16  # images that a thread looks at in one go
CLASSES = 12  # that a table names: all, or the largest half and the smallest
NAMED = 5  # unreadable files, duplicates and empty classes that a table names of each sort
SHEET = (8, 8)  # images, draws of each
RANGES = {  # of flags: at least, at most
  'count': (1, math.inf),
  'threads': (1, 1024),
  'size': (1, math.isqrt(decoding.MAX_PIXELS // math.prod(SHEET))),
  'seed': (0, 2**32 - 1),  # as of a run
}
SUFFIXES = {b'\xff\xd8\xff': 'jpg', b'\x89PNG': 'png', b'GIF8': 'gif', b'BM': 'bmp',
            b'II*\0': 'tif', b'MM\0*': 'tif', b'II+\0': 'tif', b'MM\0+': 'tif',
            b'RIFF': 'webp'}  # fmt: skip
T = TypeVar('T')
U = TypeVar('U')


class Seen(NamedTuple):
  """What there is to know of an image; `fault` is why it cannot be read, '' for one that can."""

  labels: np.ndarray
  size: int = 0
  height: int = 0
  width: int = 0
  digest: int = 0
  fault: str = ''


@dataclasses.dataclass
class Survey:
  """What the images of a split are.

  Fields:
    source: the split.
    sides: (N, 2) height and width; 0 for an image that cannot be read.
    digests: (N,) uint64 hashes of the bytes as they are stored, pixels where there is no file; two
      different images among 14 million share one with a probability of 5e-6.
    per_class: (K,) how many images have a label.
    size: bytes of all images, as they are stored.
    unlabelled: images without any label among the classes.
    faults: by index, why an image cannot be read.
  """

  source: Source
  sides: np.ndarray
  digests: np.ndarray
  per_class: np.ndarray
  size: int = 0
  unlabelled: int = 0
  faults: dict[int, str] = dataclasses.field(default_factory=dict)

  @property
  def readable(self) -> np.ndarray:
    """Indices of the images that can be read."""
    return np.flatnonzero(self.sides[:, 0])

  def add(self, index: int, seen: Seen) -> None:
    self.size += seen.size
    labels = seen.labels[(seen.labels >= 0) & (seen.labels < len(self.per_class))]
    self.per_class[labels] += 1
    if seen.fault:
      self.faults[index] = seen.fault
    else:
      self.unlabelled += not len(labels)
      self.sides[index], self.digests[index] = (seen.height, seen.width), seen.digest


def run(args: argparse.Namespace) -> int:
  """0; 3 for a data set with faults."""
  check_ranges(args)
  return ACTIONS[args.action](args)


def survey(source: Source, *, threads: int, advance: Callable[[int], object]) -> Survey:
  """Reads and decodes every image of a split once; `advance` takes how many more are done."""
  count = len(source)
  found = Survey(
    source,
    np.zeros((count, 2), np.int32),
    np.zeros(count, np.uint64),
    np.zeros(len(source.classes), np.int64),
  )
  chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
  look = lambda indices: [seen(source, index) for index in indices]  # noqa: E731
  with contextlib.closing(in_order(look, chunks, threads)) as results:
    for indices, chunk in zip(chunks, results):
      for index, one in zip(indices, chunk):
        found.add(index, one)
      advance(len(indices))
  return found


def in_order(
  function: Callable[[T], U], items: Iterable[T], threads: int
) -> Generator[U, None, None]:
  """function(item) of each item, by threads that are a few items ahead and no more."""
  ahead: collections.deque[Any] = collections.deque()
  pool = ThreadPoolExecutor(threads)
  try:
    for item in items:
      ahead.append(pool.submit(function, item))
      if len(ahead) > 2 * threads:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def seen(source: Source, index: int) -> Seen:
  """One image, read and decoded."""
  labels = np.zeros(0, np.int64)
  size = 0
  try:
    record = source[index]
    labels = np.atleast_1d(record['label'])
    image = record['image']
    size = image.nbytes if isinstance(image, np.ndarray) else len(image)
    height, width = transforms.as_pixels(image).shape[:2]
  except (transforms.BadImage, OSError) as error:
    return Seen(labels, size, fault=reason(error))
  return Seen(labels, size, height, width, digest(image))


def digest(image: bytes | np.ndarray) -> int:
  """Equal for equal files, and for equal pixels of images that have no file."""
  if isinstance(image, np.ndarray):
    image = repr(image.shape).encode() + image.tobytes()
  return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), 'little')


Group = list[tuple[str, int]]  # (split, index) of images that are the same


def duplicates(surveys: Mapping[str, Survey]) -> list[Group]:
  """The groups of images that are the same."""
  names = list(surveys)
  readable = [found.readable for found in surveys.values()]
  splits = np.repeat(np.arange(len(names)), [len(indices) for indices in readable])
  indices = np.concatenate(readable)
  digests = np.concatenate([s.digests[at] for s, at in zip(surveys.values(), readable)])
  order = np.argsort(digests, kind='stable')
  starts = np.concatenate([[0], np.flatnonzero(np.diff(digests[order])) + 1, [len(order)]])
  groups = []
  for at in np.flatnonzero(np.diff(starts) > 1):
    group = order[starts[at] : starts[at + 1]]
    groups.append([(names[splits[i]], int(indices[i])) for i in group])
  return sorted(groups, key=lambda group: (names.index(group[0][0]), group[0][1]))


def report(name: str, surveys: Mapping[str, Survey]) -> dict[str, Any]:
  """All that was found, as JSON has it."""
  groups = duplicates(surveys)
  within: collections.Counter[str] = collections.Counter()
  between: collections.Counter[tuple[str, str]] = collections.Counter()
  for group in groups:
    counts = collections.Counter(split for split, _ in group)
    within.update({split: count - 1 for split, count in counts.items() if count > 1})
    splits = list(counts)
    between.update({(a, b): counts[b] for i, a in enumerate(splits) for b in splits[i + 1 :]})
  return {
    'source': name,
    'classes': list(next(iter(surveys.values())).source.classes),
    'splits': {split: described(found) for split, found in surveys.items()},
    'duplicates': {
      'within': dict(within),
      'between': [{'splits': list(pair), 'images': n} for pair, n in between.items()],
      'groups': [
        [{'split': split, 'image': surveys[split].source.describe(i)} for split, i in group]
        for group in groups
      ],
    },
  }


def described(found: Survey) -> dict[str, Any]:
  """One split, as JSON has it."""
  classes, counts = found.source.classes, found.per_class
  sides = found.sides[found.readable]
  return {
    'count': len(found.source),
    'bytes': found.size,
    'height': extent(sides[:, 0]),
    'width': extent(sides[:, 1]),
    'per_class': counts.tolist(),
    'largest': classes[int(counts.argmax())],
    'smallest': classes[int(counts.argmin())],
    'empty': [name for name, count in zip(classes, counts) if not count],
    'unlabelled': int(found.unlabelled),
    'unreadable': [
      {'image': found.source.describe(index), 'reason': reason}
      for index, reason in sorted(found.faults.items())
    ],
  }


def extent(sides: np.ndarray) -> dict[str, int] | None:
  """Smallest, median and largest number of pixels."""
  if not len(sides):
    return None
  return {'min': int(sides.min()), 'median': int(np.median(sides)), 'max': int(sides.max())}


def amiss(found: Mapping[str, Any]) -> bool:
  """Whether a report tells of unreadable images, or of the same ones in two splits."""
  unreadable = any(split['unreadable'] for split in found['splits'].values())
  return unreadable or bool(found['duplicates']['between'])


def lines(found: Mapping[str, Any]) -> Iterator[str]:
  """A report for people."""
  splits = found['splits']
  yield f'{printable(found["source"])}, {len(found["classes"])} classes'
  rows = [['split', 'images', 'unreadable', 'bytes', 'height', 'width', 'images of a class']]
  for name, split in splits.items():
    least, most = min(split['per_class']), max(split['per_class'])
    rows.append([
      name,
      f'{split["count"]:,}',
      str(len(split['unreadable'])),
      f'{text.si(split["bytes"])}B',
      *(
        f'{side["min"]} to {side["max"]}, median {side["median"]}' if side else ''
        for side in (split['height'], split['width'])
      ),
      f'{least} ({split["smallest"]}) to {most} ({split["largest"]})' if least < most
      else f'{most} each',
    ])  # fmt: skip
  yield from text.columns(rows)
  yield ''
  yield from class_table(found['classes'], splits)
  for name, split in splits.items():
    yield from some(f'classes without an image in {name}', split['empty'])
    if split['unlabelled']:
      yield f'images of {name} without a label among the classes: {split["unlabelled"]:,}'
    named = [f'{bad["image"]}: {bad["reason"]}' for bad in split['unreadable']]
    yield from some(f'unreadable images of {name}', named)
  yield from duplicate_lines(found['duplicates'])


def class_table(classes: Sequence[str], splits: Mapping[str, Any]) -> Iterator[str]:
  """Images of each class in each split: of all classes, or of the largest and the smallest."""
  counts = list(zip(*(split['per_class'] for split in splits.values())))  # K tuples
  order = sorted(range(len(counts)), key=lambda label: -sum(counts[label]))
  rows = [[classes[label], *(f'{count:,}' for count in counts[label])] for label in order]
  if len(rows) > CLASSES:
    half = CLASSES // 2
    rows[half:-half] = [[f'({len(rows) - 2 * half:,} others)', *[''] * len(splits)]]
  yield from text.columns([['class', *splits], *rows])


def duplicate_lines(found: Mapping[str, Any]) -> Iterator[str]:
  """How many images there are more than once, and some of them."""

  def named(splits: Sequence[str]) -> list[str]:
    chosen = []
    for group in found['groups']:
      first: dict[str, list[str]] = {}
      for one in group:
        first.setdefault(one['split'], []).append(one['image'])
      if len(splits) == 2 and all(split in first for split in splits):
        chosen.append(' = '.join(first[split][0] for split in splits))
      elif len(splits) == 1 and len(first.get(splits[0], ())) > 1:
        chosen.append(' = '.join(first[splits[0]][:2]))
    return chosen

  for split, count in found['within'].items():
    yield from some(f'images of {split} that are there already', named([split]), count)
  for pair in found['between']:
    a, b = pair['splits']
    yield from some(f'images of {b} that are in {a} too', named([a, b]), pair['images'])


def some(title: str, names: Sequence[str], count: int | None = None) -> Iterator[str]:
  """A title with a count, and the first few names; nothing where there are none."""
  if names:
    yield f'{title}: {len(names) if count is None else count:,}'
    yield from (f'  {printable(name)}' for name in names[:NAMED])
    if len(names) > NAMED:
      yield '  ... (--format json names them all)'


def sheet(found: Survey, transform: transforms.Transform, *, seed: int = 0) -> np.ndarray:
  """Images, a row each, as a training run with that seed sees them in its first epochs.

  Args:
    found: a split; only images that can be read are chosen, evenly over all.
    transform: of training.
    seed: of the run.

  Returns:
    uint8 (rows * height, columns * width, 3).

  Raises:
    ValueError: if no image can be read.
  """
  readable = found.readable
  if not len(readable):
    raise ValueError('a sheet needs an image that can be read')
  rows, draws = min(SHEET[0], len(readable)), SHEET[1]
  chosen = readable[np.linspace(0, len(readable) - 1, rows).round().astype(int)]
  image = {'image': fields.image(transform)}
  examples = pipeline.BatchBuilder(found.source, image, rows * draws, seed=seed)
  for index in chosen:
    for epoch in range(draws):
      examples.add(int(index), epoch)
  height, width = transform.size
  grid = examples.arrays()['image'].reshape(rows, draws, height, width, 3)
  return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, draws * width, 3)


def png(image: np.ndarray) -> bytes:
  from PIL import Image

  encoded = io.BytesIO()
  Image.fromarray(image).save(encoded, 'PNG')
  return encoded.getvalue()


def write(file: pathlib.Path, data: bytes) -> None:
  """Writes a file, whole or not at all; an OSError names that file."""
  partial = file.with_name(f'.{file.name}.partial')
  try:
    partial.write_bytes(data)
    os.replace(partial, file)
  except OSError as error:
    raise OSError(error.errno, error.strerror, os.fspath(file)) from None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)


def save_images(
  source: Source, folder: str | os.PathLike[str], *, count: int | None = None
) -> tuple[int, list[str]]:
  """Writes the first `count` images of a source, or all, as FOLDER/CLASS/INDEX.SUFFIX.

  An encoded image is written as it is, pixels as PNG.

  Returns:
    How many were written; for each of the others a line that names it.

  Raises:
    ValueError: if images have several labels.
    OSError: if a file cannot be written.
  """
  indices, folders = range(len(source))[:count], class_folders(source.classes)
  failed = []
  for index in indices:
    try:
      record = source[index]
      place, data = class_of(record, len(folders)), encoded(record['image'])
    except (transforms.BadImage, OSError) as error:
      failed.append(f'{source.describe(index)}: {reason(error)}')
      continue
    file = pathlib.Path(folder) / folders[place] / f'{index:06d}.{suffix(data)}'
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, data)
  return len(indices) - len(failed), failed


def encoded(image: bytes | np.ndarray) -> bytes:
  """The bytes of an image's file, which can be read; of pixels, those of a PNG.

  Raises:
    BadImage: if they cannot.
  """
  if isinstance(image, np.ndarray):
    return png(image)
  transforms.decode(image)
  return image


def class_of(record: sources.Record, count: int) -> int:
  """The one label of a record.

  Raises:
    ValueError: if it has several.
    BadImage: if it is none of `count` classes.
  """
  label = record['label']
  if np.ndim(label):
    raise ValueError('images with lists of labels have no folder of their class')
  if not 0 <= label < count:
    raise transforms.BadImage(f'label {label} is none of the {count} classes')
  return int(label)


def class_folders(classes: Sequence[str]) -> list[str]:
  """A folder's name for each class: its own, but for one that leads elsewhere or is another's."""
  folders = []
  for label, name in enumerate(classes):
    safe = re.sub(r'[/\\\0]', '_', name)
    own = safe == name and name.strip('. ') and classes.index(name) == label
    folders.append(name if own else f'{label}_{safe}')
  return folders


def suffix(data: bytes) -> str:
  """'jpg' for the bytes of a JPEG file, and so on."""
  for magic, name in SUFFIXES.items():
    if data.startswith(magic):
      return name
  raise ValueError('not an image')


def show(given: argparse.Namespace) -> int:
  """`vit data show`."""
  out = pathlib.Path(given.out) if given.out else None
  if given.augment is not None and not out:
    raise ValueError('--augment needs --out, the sheet that shows it')
  if out:
    check_out(out)
  transform = training_transform(given) if out else None
  opened = opened_splits(given.source, given.split)
  if transform:
    check_transform(transform, next(iter(opened.values())))
  began, total = time.perf_counter(), sum(map(len, opened.values()))
  with text.progress(total, unit='images') as advance:
    surveys = {
      split: survey(source, threads=given.threads, advance=advance)
      for split, source in opened.items()
    }
  found = report(given.source, surveys)
  found['images_per_second'] = round(total / (time.perf_counter() - began), 1)
  if given.format == 'json':
    print(json.dumps(found, indent=1))
  else:
    for line in lines(found):
      print(line)
    print(f'read {total:,} images at {found["images_per_second"]:,.0f} images/s')
  if out and transform:
    sys.stdout.flush()
    split = next(iter(surveys))
    write(out, png(sheet(surveys[split], transform, seed=given.seed)))
    print(f'{out} shows images of {split}, {SHEET[1]} draws of each', file=sys.stderr)
  return 3 if amiss(found) else 0


def check_out(out: pathlib.Path) -> None:
  """Raises ValueError for a file that the sheet cannot be written to."""
  if out.suffix.lower() != '.png' or not out.parent.is_dir():
    raise ValueError(
      f'--out is {printable(str(out))!r}, must be a .png file in a folder that exists'
    )
  try:
    if out.is_dir():
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with tempfile.TemporaryFile(dir=out.parent):
      pass
  except OSError as error:
    raise ValueError(f'--out {printable(str(out))} cannot be written: {error.strerror}') from None


def opened_splits(name: str, asked: Sequence[str] | None) -> dict[str, Source]:
  """The splits asked for, which must not be empty; else all that are not.

  Raises:
    ValueError: if there is none.
  """
  if asked:
    return sources.open_splits(name, {split: split for split in asked})
  splits = {split: opened() for split, opened in sources.splits_of(name).items()}
  if empty := [split for split, source in splits.items() if not len(source)]:
    to_stderr(f'{printable(name)} has no images in {", ".join(empty)}')
  if len(empty) == len(splits):
    raise ValueError(f'{printable(name)} has no images')
  return {split: source for split, source in splits.items() if len(source)}


def check_transform(transform: transforms.Transform, source: Source) -> None:
  """Tries it on the first image that can be read, of the first few.

  Raises:
    ValueError: if it does not take that, or gives images of another size than it should.
  """
  for index in range(min(len(source), pipeline.TRIES)):
    try:
      image = transforms.as_pixels(source[index]['image'])
      rows, columns, _ = transform(image, np.random.default_rng(0)).shape
    except (transforms.BadImage, OSError):
      continue
    except ValueError as error:
      raise ValueError(f'{source.describe(index)}: {error}') from None
    if (rows, columns) != transform.size:
      wanted = '{}x{}'.format(*transform.size)
      raise ValueError(f'--augment gives images of {rows}x{columns} pixels, --size is {wanted}')
    return


def training_transform(given: argparse.Namespace) -> transforms.Transform:
  """What --augment and --size ask for; without them, as configs/default.py has it."""
  from vit_jax.config import default

  config = default()
  size = (given.size, given.size) if given.size else tuple(config.image_size)
  return transforms.compose(given.augment or config.data.augment, size)


def split_to_save(name: str) -> str:
  """'test' if there is one, else the first that is not empty."""
  splits = sources.splits_of(name)
  if 'test' in splits:
    return 'test'
  return next((split for split, opened in splits.items() if len(opened())), 'train')


def save(given: argparse.Namespace) -> int:
  """`vit data save`."""
  split = given.split or split_to_save(given.source)
  source = sources.open_source(given.source, split)
  written, failed = save_images(source, given.folder, count=given.count)
  for line in failed:
    print(f'vit data: {printable(line)}', file=sys.stderr)
  where = f'{printable(given.source)}, split {split}, are in {printable(given.folder)}'
  print(f'{written} images of {where}' + f'; {len(failed)} are not' * bool(failed))
  return 3 if failed else 0


def prepare(given: argparse.Namespace) -> int:
  """`vit data prepare`."""
  importlib.import_module('vit_jax.sources.tfds').prepare(given.name, say=to_stderr)
  return 0


def list_presets(given: argparse.Namespace) -> int:
  """`vit data list`."""
  if given.format == 'json':
    fields = {
      name: vars(preset) | {'splits': dict(preset.splits)}
      for name, preset in presets.PRESETS.items()
    }
    print(json.dumps(fields, indent=1))
    return 0
  rows = [['name', 'source', 'classes', 'steps', 'splits']]
  for name, preset in presets.PRESETS.items():
    splits = ', '.join(f'{use} {meant}' for use, meant in preset.splits.items())
    steps = f'{preset.steps:,}' if preset.steps else ''
    rows.append([name, preset.source, f'{preset.classes:,}', steps, splits])
  for line in text.columns(rows):
    print(line)
  return 0


def check_ranges(given: argparse.Namespace) -> None:
  """Raises ValueError for a flag out of its RANGES."""
  for name, (least, most) in RANGES.items():
    number = getattr(given, name, None)
    if number is not None and not least <= number <= most:
      wanted = f'at least {least}' if math.isinf(most) else f'from {least} to {most}'
      raise ValueError(f'--{name} must be {wanted}, got {number}')


ACTIONS = {'show': show, 'save': save, 'prepare': prepare, 'list': list_presets}
