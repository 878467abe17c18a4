"""The short way of `vit train`: a data set, and a recipe for its size and this machine.

`vit train folder:photos` is spelt out as a recipe, fields and a folder, and said so: the long line
gives the same run, to the bit. The same short line resumes that run, also where the machine, whose
part of the choice the run then keeps, is another.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence

import jax
from ml_collections.config_dict import FrozenConfigDict

from vit_jax import config, convert, models, workdir
from vit_jax.convert import published
from vit_jax.guards import legs
from vit_jax.plan import Plan, make_plan
from vit_jax.sources import KINDS, open_source, presets
from vit_jax.text import quantity, redacted, to_stdout

RUNS = 'runs'  # the folder of runs without a --workdir
LARGE = 100_000  # images from which on a whole ViT-S/16 is trained from scratch
CPU_SIDE = 224  # pixels at most, where a CPU fine-tunes; elsewhere as the recipe has it
# Pixels that a device takes at a time: 8 images for ImageNet, 64 of those that one fine-tunes on.
PIXELS = {'cpu': 8 * 224**2, 'others': 64 * 384**2}
# What may follow from the machine: not part of what makes a line's run that line's.
BY_MACHINE = ('image_size', 'accumulate', 'batch_size', 'schedule.learning_rate')


@dataclasses.dataclass(frozen=True)
class Line:
  """`vit train` spelt out.

  Fields:
    spec: of --config; None for the config in the folder.
    fields: FIELD=VALUE each.
    workdir: the run's folder.
  """

  spec: str | None
  fields: tuple[str, ...]
  workdir: str

  def config(self) -> FrozenConfigDict:
    if self.spec is not None:
      return config.load(self.spec, self.fields)
    return workdir.resumed_config(pathlib.Path(self.workdir), self.fields)

  def __str__(self) -> str:
    fields = [f'--config.{field}' for field in self.fields]
    words = [f'--config={self.spec}', f'--workdir={self.workdir}', *fields]
    return redacted(f'vit train {shlex.join(words)}')


def expand(args: argparse.Namespace) -> Line:
  """The long form of the flags of `vit train`; says which recipe a data set gets.

  Raises:
    ValueError, FileNotFoundError: for a data set or model that is none, or is not there.
  """
  if not args.source:
    return Line(args.config, tuple(args.overrides), args.workdir)
  if args.workdir is None and jax.process_count() > 1:
    raise ValueError('several processes need --workdir, which names one folder for all')
  if workdir.read_data(pathlib.Path(args.source)):
    words = shlex.join(['vit', 'train', f'--workdir={args.source}'])
    raise ValueError(f'{args.source} is a run, no data set: {words} resumes it')
  source = as_source(args.source)
  train = open_source(source, 'train')
  fields = dict(field.partition('=')[::2] for field in args.overrides)
  if train.classes:
    spec = recipe(source, args.start, len(train), folder=fields.get('pretrained_dir', ''))
  else:
    spec = unlabelled_recipe(source, args.start)
  line = Line(spec, chosen_fields(spec, args.start, last_of_each(args.overrides)), '')
  line = placed(line, [args.workdir] if args.workdir is not None else folders(source), args)
  if jax.process_index() == 0:
    counts = quantity(len(train), 'image')
    counts += f' of {quantity(len(train.classes), "class")}' if train.classes else ' without labels'
    to_stdout(*describe(f'{source}, {counts} to train on', line))
  return line


def as_source(text: str) -> str:
  """A data set as a config names it: the folder or table of a path too."""
  text = text.rstrip('/') or text
  if text in KINDS or presets.find(text) or not os.path.exists(text):
    return text
  kinds = {'.csv': 'csv', '.parquet': 'parquet', '.npz': 'arrays'}
  kind = 'folder' if os.path.isdir(text) else kinds.get(pathlib.Path(text).suffix)
  return f'{kind}:{text}' if kind else text


# Which recipe


def recipe(source: str, start: str, count: int, *, folder: str = '') -> str:
  """The spec of the recipe for so many images, and a model, file, URL or run to start from, or ''.

  It follows from these alone, so that the same line has the same recipe on any machine. A model's
  name means its file here, or in the `folder` of checkpoints, before a published one.
  """
  if not start and source == 'digits':
    return 'digits'
  if not start:
    return f'pretrain:S/16,{source}' if count >= LARGE else f'scratch:{source}'
  names = (start, f'{start}.npz')
  for path in (*names, *(os.path.join(folder, name) for name in names)):
    if '://' in start or os.path.exists(path):
      return f'finetune:{path},{source}'
  name = models.canonical(start.removesuffix('.npz'))
  try:
    published.augreg(start)
  except ValueError:
    return f'{"mixer" if name.startswith("Mixer") else "finetune"}:{name},{source}'
  return f'augreg:{start},{source}'


def unlabelled_recipe(source: str, start: str) -> str:
  """The spec of the recipe for images without labels; ValueError where it would have to guess."""
  if start:
    raise ValueError(
      f'{source} has no labels: what goes on from {redacted(start)} has to say how, as in '
      f'vit train --config=mae:B/16,{source},{redacted(start)} --workdir=RUN, or dino, lejepa'
    )
  return f'mae:S/16,{source}'


def chosen_fields(spec: str, start: str, asked: tuple[str, ...]) -> tuple[str, ...]:
  """The fields that this machine decides, where they are not asked for, and those that are."""
  names = {field.partition('=')[0] for field in asked}
  plain, chosen = config.load(spec), config.load(spec, asked)
  sides = [max(chosen.image_size)]
  if os.path.exists(start):
    sides.append(own_side(start))
  if start and jax.default_backend() == 'cpu':
    sides.append(CPU_SIDE)
  fields: dict[str, object] = {}
  if min(sides) < sides[0] and 'image_size' not in names:
    fields['image_size'] = min(sides)
    chosen = config.load(spec, [*asked, f'image_size={min(sides)}'])
  fields |= fit(plain, chosen)
  decided = [f'{name}={value}' for name, value in fields.items() if name not in names]
  return (*decided, *asked)


def own_side(path: str) -> int:
  """The pixels of a side that a run or bundle of ours takes; 2**14 of any other checkpoint."""
  with contextlib.suppress(ValueError, OSError):  # the plan will say what is wrong with it
    checkpoint = convert.read(path)
    if checkpoint.dialect == 'vit_jax':
      return max(checkpoint.preprocess['size'])
  return config.SIDE


def fit(plain: FrozenConfigDict, chosen: FrozenConfigDict) -> dict[str, object]:
  """Batch, micro-batches and rate for this machine, where they are not as chosen, by their fields.

  Every device gets as many images, and takes PIXELS at a time; the rate is in proportion to the
  batch.

  Args:
    plain: the recipe.
    chosen: with the fields that the user sets.
  """
  devices, batch = jax.device_count(), chosen.batch_size
  if batch == plain.batch_size:  # and is not asked for
    batch = -(-batch // devices) * devices
  rows, limit = max(batch // devices, 1), PIXELS.get(jax.default_backend(), PIXELS['others'])
  height, width = chosen.image_size
  fits = (n for n in range(1, rows) if rows % n == 0 and rows // n * height * width <= limit)
  parts = next(fits, rows)
  rate = float(f'{plain.schedule.learning_rate * batch / plain.batch_size:.4g}')
  fields: dict[str, object] = {'batch_size': batch, 'accumulate': parts}
  fields |= {'schedule.learning_rate': rate} if batch != plain.batch_size else {}
  standard = {'batch_size': chosen.batch_size, 'accumulate': chosen.accumulate}
  return {name: value for name, value in fields.items() if value != standard.get(name)}


# Which folder


def folders(source: str) -> Iterator[str]:
  """runs/photos, runs/photos-2 and so on, for 'folder:/data/photos'."""
  kind, _, path = source.partition(':')
  is_folder = kind in ('folder', 'images')
  path = os.path.abspath(os.path.expanduser(path)) if is_folder else path or kind
  stem = pathlib.PurePath(path.partition('?')[0]).name.removesuffix(f'.{kind}').removesuffix('.npz')
  name = re.sub(r'[^\w.-]+', '_', stem).strip('._-') or kind
  for number in itertools.count(1):
    yield os.path.join(RUNS, name if number == 1 else f'{name}-{number}')


def placed(line: Line, choices: Iterator[str] | Sequence[str], args: argparse.Namespace) -> Line:
  """The line with the first folder that is free, or has this line's run, whose fields it takes.

  A folder that the user names is taken in any case: `workdir.claim` says what is wrong with it.
  """
  asked = {field.partition('=')[0] for field in args.overrides}
  for folder in choices:
    line = dataclasses.replace(line, workdir=folder)
    if not is_run(folder):
      return line
    stored = fields_of_run(line, frozenset(BY_MACHINE) - asked)
    if stored is not None:
      return dataclasses.replace(line, fields=merged(line.fields, stored))
    if args.workdir is None:
      to_stdout(f'{folder} holds another run')
  return line


def is_run(folder: str) -> bool:
  """Whether a folder holds a run, perhaps one that has lost its config."""
  return any(os.path.lexists(os.path.join(folder, name)) for name in ('config.json', 'checkpoints'))


def fields_of_run(line: Line, free: frozenset[str]) -> dict[str, object] | None:
  """What the run in a line's folder has otherwise: of free fields, or by its legs; else None."""
  folder = pathlib.Path(line.workdir)
  stored, data = workdir.read_config(folder), workdir.read_data(folder)
  if stored is None or data is None:
    return None
  plan = make_plan(line.config(), folder)
  if not same_data(plan, data):
    return None
  run_legs = legs.read(folder)
  begun = legs.config_at(stored, run_legs, step=0)
  fields = workdir.differing_fields(begun, workdir.as_json(plan.config))
  differing = {name for name, *_ in fields if not name.startswith(workdir.MAY_DIFFER)}
  if differing - free:
    return None
  changed = {name for leg in run_legs for name in leg.fields}
  return {name: value for name, value in workdir.leaves(stored) if name in differing | changed}


def same_data(plan: Plan, data: dict[str, object]) -> bool:
  return {**data, **workdir.describe_data(plan.splits['train'])} == data


def last_of_each(fields: Sequence[str]) -> tuple[str, ...]:
  """Fields without those that a later one replaces."""
  return tuple({field.partition('=')[0]: field for field in fields}.values())


def merged(fields: Sequence[str], values: dict[str, object]) -> tuple[str, ...]:
  """Fields with these values in the place of, or after, their own."""
  others = [field for field in fields if field.partition('=')[0] not in values]
  return (*(f'{name}={value}' for name, value in values.items()), *others)


# What is said


def describe(data: str, line: Line) -> Iterator[str]:
  """Three lines: the recipe and why, what it does here, and the line that spells it out."""
  chosen = line.config()
  height, width = chosen.image_size
  duration = chosen.duration if isinstance(chosen.duration, str) else f'{chosen.duration} steps'
  duration = re.sub('^1 (.*)s$', '1 \\1', duration)
  parts = f' in {chosen.accumulate} parts' * (chosen.accumulate > 1)
  yield f'{data}: {purpose((line.spec or "").partition(":")[0], chosen)}'
  yield (
    f'{duration} at {height}x{width} pixels, batches of {chosen.batch_size}{parts}, '
    f'learning rate {chosen.schedule.learning_rate:g}, on '
    f'{quantity(jax.device_count(), jax.devices()[0].device_kind)}'
  )
  yield f'in full: {line}'


def purpose(name: str, chosen: FrozenConfigDict) -> str:
  """What a recipe starts from, and what would be better."""
  if chosen.pretrained:
    folder, is_here = chosen.pretrained_dir, os.path.exists(chosen.pretrained)
    where = f', fetched once from {folder},' if '://' in folder and not is_here else ''
    return f'fine-tunes {redacted(chosen.pretrained)}{where} by recipe {name}'
  if chosen.task != 'classify':
    return f'an encoder by recipe {name}; others without labels are dino and lejepa'
  line = f'a ViT from scratch by recipe {name}'
  if name == 'digits':
    return line
  file = published.RECOMMENDED['R_Ti_16'].file
  return (
    f'{line}; photos are learned better from a published one: --from R_Ti_16 fetches '
    f'{published.AUGREG}/{file}.npz'
  )
