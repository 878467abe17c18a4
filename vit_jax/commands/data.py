"""`vit data`: looks at data sets, saves, prepares and lists them.

N images, K classes.
"""

import argparse
import dataclasses
import errno
import importlib
import io
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import files, pipeline, sources, text
from vit_jax.commands import warn
from vit_jax.images import decoding, transforms
from vit_jax.sources import PassedOver, Source, columns, presets
from vit_jax.sources.survey import Survey, has_problems, report, survey_split
from vit_jax.text import printable, quantity, reason, to_stderr, to_stdout, without_folders

MAX_CLASSES = 12  # that a table names: all, or the largest half and the smallest
MAX_NAMED = 5  # unreadable files, duplicates and empty classes that a table names of each sort
SHEET = (8, 8)  # images, augmentations of each
RANGES = {  # of flags: min, max
  'channels': (1, decoding.MAX_CHANNELS),
  'count': (1, math.inf),
  'threads': (1, 1024),
  'size': (1, math.isqrt(decoding.MAX_PIXELS // math.prod(SHEET))),
  'seed': (0, 2**32 - 1),  # as of a run
}
SUFFIXES = {b'\xff\xd8\xff': 'jpg', b'\x89PNG': 'png', b'GIF8': 'gif', b'BM': 'bmp',
            b'II*\0': 'tif', b'MM\0*': 'tif', b'II+\0': 'tif', b'MM\0+': 'tif',
            b'RIFF': 'webp'}  # fmt: skip


def run(args: argparse.Namespace) -> int:
  """0; 3 for a data set with unreadable images, or the same ones in two splits or classes."""
  check_ranges(args)
  return ACTIONS[args.action](args)


def report_lines(summary: Mapping[str, Any]) -> Iterator[str]:
  """A report for people."""
  splits = summary['splits']
  classes = summary['classes']
  count = quantity(len(classes), 'class') if classes else 'no labels'
  yield f'{printable(summary["source"])}, {count}'
  rows = [['split', 'images', 'unreadable', 'bytes', 'height', 'width']]
  rows[0] += ['images of a class'] * bool(classes)
  for name, split in splits.items():
    rows.append([
      name,
      f'{split["count"]:,}',
      str(len(split['unreadable'])),
      f'{text.si(split["bytes"])}B',
      *(
        f'{side["min"]} to {side["max"]}, median {side["median"]}' if side else ''
        for side in (split['height'], split['width'])
      ),
      *([images_of_a_class(split)] if classes else []),
    ])  # fmt: skip
  yield from text.columns(rows)
  yield ''
  if classes:
    yield from class_table(classes, splits)
  yield from summary['notes']
  if line := sources.describe_passed_over([PassedOver(**i) for i in summary['passed_over']]):
    yield line
  for name, split in splits.items():
    yield from listing(f'classes without an image in {name}', split['empty'])
    if classes and split['unlabelled']:
      yield f'images of {name} without a label among the classes: {split["unlabelled"]:,}'
    named = [f'{bad["image"]}: {bad["reason"]}' for bad in split['unreadable']]
    yield from listing(f'unreadable images of {name}', named)
    if split['warning']:
      yield f'{name}: {split["warning"]}'
  yield from duplicate_lines(summary['duplicates'])
  yield from near_lines(summary['near_duplicates'])
  named = [
    ' = '.join(f'{member["image"]} ({", ".join(member["classes"])})' for member in group[:3])
    for group in summary['conflicts']
  ]
  yield from listing('the same picture in different classes, a conflict', named)


def images_of_a_class(split: Mapping[str, Any]) -> str:
  """The smallest and the largest class of a split."""
  smallest, largest = min(split['per_class']), max(split['per_class'])
  if smallest == largest:
    return f'{largest} each'
  return f'{smallest} ({split["smallest"]}) to {largest} ({split["largest"]})'


def class_table(classes: Sequence[str], splits: Mapping[str, Any]) -> Iterator[str]:
  """Images of each class in each split: of all classes, or of the largest and the smallest."""
  counts = list(zip(*(split['per_class'] for split in splits.values())))  # K tuples
  order = sorted(range(len(counts)), key=lambda label: -sum(counts[label]))
  rows = [[classes[label], *(f'{count:,}' for count in counts[label])] for label in order]
  if len(rows) > MAX_CLASSES:
    half = MAX_CLASSES // 2
    rows[half:-half] = [[f'({len(rows) - 2 * half:,} others)', *[''] * len(splits)]]
  yield from text.columns([['class', *splits], *rows])


def duplicate_lines(duplicates: Mapping[str, Any]) -> Iterator[str]:
  """How many images there are more than once, and some of them."""
  groups: list[dict[str, list[str]]] = []  # by split, what is the same image
  for group in duplicates['groups']:
    images: dict[str, list[str]] = {}
    for member in group:
      images.setdefault(member['split'], []).append(member['image'])
    groups.append(images)
  for split, count in duplicates['within'].items():
    twice = [' = '.join(images[split][:2]) for images in groups if len(images.get(split, ())) > 1]
    yield from listing(f'images of {split} that are there already', twice, count)
  for pair in duplicates['between']:
    a, b = pair['splits']
    both = [f'{i[a][0]} = {i[b][0]}' for i in groups if a in i and b in i]
    yield from listing(f'images of {b} that are in {a} too', both, pair['images'])


def near_lines(near: Mapping[str, Any]) -> Iterator[str]:
  """How many images are nearly those of another split, and some of them."""
  for pair in near['between']:
    first, second = pair['splits']
    named = [
      f'{a["image"]} ~ {b["image"]}'
      for a, b in near['pairs']
      if (a['split'], b['split']) == (first, second)
    ]
    yield from listing(f'images of {second} that are nearly in {first} too', named)


def listing(title: str, names: Sequence[str], count: int | None = None) -> Iterator[str]:
  """A title with a count, and the first few names; nothing where there are none."""
  if names:
    yield f'{title}: {len(names) if count is None else count:,}'
    yield from (f'  {printable(name)}' for name in names[:MAX_NAMED])
    if len(names) > MAX_NAMED:
      yield '  ... (--format json names them all)'


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What a sheet shows images by.

  Fields:
    transform: of training.
    line: of it, as a config has it.
    recipe: that it is of; '' for lines that the user gave.
  """

  transform: transforms.Transform
  line: str
  recipe: str


def sheet_file(
  survey: Survey, augmentation: Augmentation, name: str, split: str, *, seed: int = 0
) -> bytes:
  """The PNG of a sheet of images of a split: as they are, and as training sees them by epoch."""
  from vit_jax.views import card, sheet

  chosen = sheet_rows(survey)
  source, channels = survey.source, augmentation.transform.channels
  originals = [decoding.as_pixels(source[index]['image'], channels) for index in chosen]
  height, width = augmentation.transform.size
  tiles = augmented(survey, chosen, augmentation.transform, seed=seed)
  root = name.partition(':')[2]
  names = [
    (', '.join(survey.classes_of(index)), without_folders(source.describe(index), root))
    for index in chosen
  ]
  title = f'{card.shown(name)}, split {split}: a row for an image'
  title += ', by its class' * bool(source.classes)
  recipe = f'recipe {card.shown(augmentation.recipe)}: ' * bool(augmentation.recipe)
  lines = f'{title}\n{recipe}{augmentation.line}, {height}x{width} pixels, seed {seed}'
  shown = [decoding.displayed(image) for image in originals]
  flat = decoding.displayed(tiles.reshape(-1, width, channels)).reshape(*tiles.shape[:4], 3)
  return sheet.draw(flat, shown, names, lines)


def sheet_rows(survey: Survey) -> list[int]:
  """The images of a sheet: of those that can be read, evenly over all."""
  readable = survey.readable
  if not len(readable):
    raise ValueError('a sheet needs an image that can be read')
  rows = min(SHEET[0], len(readable))
  return readable[np.linspace(0, len(readable) - 1, rows).round().astype(int)].tolist()


def augmented(
  survey: Survey, chosen: Sequence[int], transform: transforms.Transform, *, seed: int = 0
) -> np.ndarray:
  """Images as a training run with that seed sees them in its first epochs.

  uint8 (images, epochs, height, width, C).
  """
  epochs = SHEET[1]
  column = {'image': columns.image(transform)}
  batch = pipeline.BatchBuilder(survey.source, column, len(chosen) * epochs, seed=seed)
  for index in chosen:
    for epoch in range(epochs):
      batch.add(index, epoch)
  return batch.arrays()['image'].reshape(len(chosen), epochs, *transform.size, transform.channels)


def png(image: np.ndarray) -> bytes:
  """The PNG file of uint8 pixels (H, W, C), C from 1 to 4: grey, with alpha, RGB, RGBA."""
  from PIL import Image

  channels = image.shape[2]
  if channels > 4:
    raise ValueError(f'a PNG holds at most 4 channels, images have {channels}')
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if channels == 1 else image).save(file, 'PNG')
  return file.getvalue()


def save_images(
  source: Source, folder: str | os.PathLike[str], *, count: int | None = None
) -> tuple[int, list[str]]:
  """Writes `count` images of a source, see `spread`, or all, as FOLDER/CLASS/INDEX.SUFFIX.

  Without classes there are no folders of them. An encoded image is written as it is, pixels as
  PNG. Gives how many were written, and a line for each of the others that names it.
  """
  indices, folders = spread(source, count), class_folders(source.classes)
  failed = []
  for index in indices:
    try:
      record = source[index]
      subfolder = folders[single_label(record, len(folders))] if folders else ''
      data = image_file(record['image'])
    except (transforms.BadImage, OSError) as error:
      failed.append(f'{source.describe(index)}: {reason(error)}')
      continue
    path = pathlib.Path(folder) / subfolder / f'{index:06d}.{suffix(data)}'
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
      file.write(data)
  return len(indices) - len(failed), failed


def spread(source: Source, count: int | None) -> Sequence[int]:
  """The indices of `count` images over all classes, in order; all of them for None.

  They are the first image of each class, the second of each and so on; where an image is not left
  for each class, those of classes that lie evenly. Where no labels are in memory, or an image has
  several, they lie evenly in the source.
  """
  total, labels = len(source), sources.labels_of(source)
  if count is None or count >= total:
    return range(total)
  if labels is None or labels.ndim > 1:
    return evenly(np.arange(total), count)
  by_label = np.argsort(labels, kind='stable')
  ranks = np.empty(total, int)  # of each image in its class
  ranks[by_label] = np.arange(total) - np.searchsorted(labels[by_label], labels[by_label])
  order = np.lexsort((labels, ranks))
  last = ranks[order[count - 1]]
  whole, partial = order[ranks[order] < last], order[ranks[order] == last]
  return sorted([*whole.tolist(), *evenly(partial, count - len(whole))])


def evenly(values: np.ndarray, count: int) -> list[int]:
  """So many of the values, which lie evenly among them."""
  return values[np.linspace(0, len(values) - 1, count).astype(int)].tolist()


def image_file(image: bytes | np.ndarray) -> bytes:
  """The bytes of an image's file, which can be read; of pixels, those of a PNG."""
  if isinstance(image, np.ndarray):
    return png(image)
  transforms.decode(image)
  return image


def single_label(record: sources.Record, count: int) -> int:
  """The one label of a record; BadImage if it is none of `count` classes."""
  label = record['label']
  if np.ndim(label):
    raise ValueError('images are multi-label, so that none belongs in the folder of one class')
  if not 0 <= label < count:
    raise transforms.BadImage(f'label {label} is none of the {count} classes')
  return int(label)


def class_folders(classes: Sequence[str]) -> list[str]:
  """A folder's name for each class: the class's, unless that leads elsewhere or comes twice."""
  folders = []
  for label, name in enumerate(classes):
    safe = re.sub(r'[/\\\0]', '_', name)
    is_usable = safe == name and name.strip('. ') and classes.index(name) == label
    folders.append(name if is_usable else f'{label}_{safe}')
  return folders


def suffix(data: bytes) -> str:
  """'jpg' for the bytes of a JPEG file, and so on."""
  for magic, name in SUFFIXES.items():
    if data.startswith(magic):
      return name
  if suffix := decoding.brand_suffix(data):
    return suffix.removeprefix('.')
  raise ValueError('not an image')


def show(args: argparse.Namespace) -> int:
  """`vit data show`."""
  out = pathlib.Path(args.out) if args.out else None
  if args.augment is not None and not out:
    raise ValueError('--augment needs --out, the sheet that shows it')
  if out:
    check_out(out)
  splits = open_splits(args.source, args.split)
  augmentation = training_augmentation(args) if out else None
  if augmentation:
    check_transform(augmentation.transform, next(iter(splits.values())))
  began, total = time.perf_counter(), sum(map(len, splits.values()))
  with text.progress(total, unit='images') as advance:
    surveys = {
      split: survey_split(source, threads=args.threads, advance=advance, channels=args.channels)
      for split, source in splits.items()
    }
  summary = report(args.source, surveys)
  summary['images_per_second'] = round(total / (time.perf_counter() - began), 1)
  if args.format == 'json':
    print(files.as_json(summary, indent=1))
  else:
    to_stdout(*report_lines(summary))
    to_stdout(f'read {total:,} images at {summary["images_per_second"]:,.0f} images/s')
  if out and augmentation:
    sys.stdout.flush()
    split = next(iter(surveys))
    content = sheet_file(surveys[split], augmentation, args.source, split, seed=args.seed)
    with files.replacing(out) as file:
      file.write(content)
    words = [f'{out} shows images of {split}', f'{SHEET[1]} augmentations of each']
    words += [f'by recipe {augmentation.recipe}'] * bool(augmentation.recipe)
    to_stderr(', '.join(filter(None, [*words, decoding.omitted_channels(args.channels)])))
  return 3 if has_problems(summary) else 0


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


def open_splits(name: str, splits: Sequence[str] | None) -> dict[str, Source]:
  """The splits of those names, which must not be empty; else all that are not."""
  if splits:
    return sources.open_splits(name, {split: split for split in splits})
  every = {split: open_split() for split, open_split in sources.splits_of(name).items()}
  if empty := [split for split, source in every.items() if not len(source)]:
    to_stderr(f'{printable(name)} has no images in {", ".join(empty)}')
  if len(empty) == len(every):
    raise ValueError(f'{printable(name)} has no images')
  return {split: source for split, source in every.items() if len(source)}


def check_transform(transform: transforms.Transform, source: Source) -> None:
  """Raises ValueError if it does not take the first image that can be read, or missizes it."""
  for index in range(min(len(source), pipeline.TRIES)):
    try:
      image = transforms.as_pixels(source[index]['image'], transform.channels)
      height, width, _ = transform(image, np.random.default_rng(0)).shape
    except (transforms.BadImage, OSError):
      continue
    except ValueError as error:
      raise ValueError(f'{source.describe(index)}: {error}') from None
    if (height, width) != transform.size:
      size = '{}x{}'.format(*transform.size)
      raise ValueError(f'the transforms give {height}x{width} pixels, --size is {size}')
    return


def training_augmentation(args: argparse.Namespace) -> Augmentation:
  """The transforms of --augment and --size, and of a recipe what these do not say.

  It is that of --config, or without one what `vit train SOURCE` would choose; of a data set that
  this does not train on, configs/default.py.
  """
  from vit_jax import config as configs
  from vit_jax.commands import short
  from vit_jax.plan import with_data_options

  spec = args.config or ''
  try:
    if not spec and not (args.augment and args.size):
      source = short.as_source(args.source)
      spec = short.recipe(source, '', len(sources.open_source(source, 'train')))
    config = configs.load(spec) if spec else configs.default()
  except (ValueError, OSError):
    if args.config:
      raise
    spec, config = 'default', configs.default()
  config = with_data_options(config)
  size = (args.size, args.size) if args.size else tuple(config.image_size)
  line = args.augment or config.data.augment
  recipe = '' if args.augment else printable(spec)
  return Augmentation(transforms.compose(line, size, args.channels), line, recipe)


def split_to_save(name: str) -> str:
  """'test' if there is one, else the first that is not empty."""
  splits = sources.splits_of(name)
  if 'test' in splits:
    return 'test'
  return next((split for split, open_split in splits.items() if len(open_split())), 'train')


def save(args: argparse.Namespace) -> int:
  """`vit data save`."""
  split = args.split or split_to_save(args.source)
  source = sources.open_source(args.source, split)
  written, failed = save_images(source, args.folder, count=args.count)
  for line in failed:
    warn('data', printable(line))
  names = f'{printable(args.source)}, split {split}, in {printable(args.folder)}'
  to_stdout(f'{quantity(written, "image")} of {names}' + f'; {len(failed)} not' * bool(failed))
  return 3 if failed else 0


def prepare(args: argparse.Namespace) -> int:
  """`vit data prepare`."""
  importlib.import_module('vit_jax.sources.tfds').prepare(args.name, say=to_stderr)
  return 0


def list_presets(args: argparse.Namespace) -> int:
  """`vit data list`."""
  if args.format == 'json':
    fields = {name: dataclasses.asdict(preset) for name, preset in presets.PRESETS.items()}
    print(files.as_json(fields, indent=1))
    return 0
  rows = [['name', 'source', 'classes', 'steps', 'splits']]
  for name, preset in presets.PRESETS.items():
    splits = ', '.join(f'{split} {meaning}' for split, meaning in preset.splits.items())
    steps = f'{preset.steps:,}' if preset.steps else ''
    rows.append([name, preset.source, f'{preset.classes:,}', steps, splits])
  to_stdout(*text.columns(rows))
  return 0


def check_ranges(args: argparse.Namespace) -> None:
  """Raises ValueError for a flag out of its RANGES."""
  for name, (low, high) in RANGES.items():
    number = getattr(args, name, None)
    if number is not None and not low <= number <= high:
      limits = f'at least {low}' if math.isinf(high) else f'from {low} to {high}'
      raise ValueError(f'--{name} must be {limits}, got {number}')


ACTIONS = {'show': show, 'save': save, 'prepare': prepare, 'list': list_presets}
