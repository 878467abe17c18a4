"""`vit sweep`: a run for each point of a grid, one after another, then `vit compare` of them."""

import argparse
import dataclasses
import itertools
import math
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from vit_jax import config, plan, workdir
from vit_jax.commands import compare, warn
from vit_jax.guards import stopping
from vit_jax.guards.owner import Owner, folder_of
from vit_jax.text import quantity, redacted, to_stderr, to_stdout
from vit_jax.views import comparison

WHOLE_NUMBERS = re.compile(r'(-?\d+):(-?\d+)')  # 0:3, which are 0 1 2
SEPARATORS = re.compile(r',(?![^()\[\]]*[)\]])')  # commas that are not inside of brackets
POLL = 0.2  # seconds between looks at a run's process
LARGEST = 10_000  # runs of a grid


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of a grid.

  Fields:
    folder: of the run.
    spec: of --config.
    fields: FIELD=VALUE each.
  """

  folder: pathlib.Path
  spec: str
  fields: tuple[str, ...]

  @property
  def words(self) -> list[str]:
    """The words of its `vit train`."""
    fields = [f'--config.{field}' for field in self.fields]
    return ['train', f'--config={self.spec}', f'--workdir={self.folder}', *fields]

  @property
  def is_finished(self) -> bool:
    return (self.folder / 'model').exists()

  def check_folder(self) -> None:
    """Raises ValueError if the folder has the run of other fields or data, naming them."""
    mine = plan.make_plan(config.load(self.spec, self.fields), self.folder)
    data = workdir.describe_data(mine.splits['train'], mine.fixed_crc)
    for line in workdir.check_belongs(
      self.folder, workdir.as_json(mine.config), data, {}, mine.legs
    ):
      to_stderr(line)


def run(args: argparse.Namespace) -> int:
  """0, also where it was stopped; 3 if a run failed."""
  points = grid(args.config, args.grid, args.overrides, folder_of(args.workdir))
  for point in points:  # before the first is trained for hours
    config.load(point.spec, point.fields)
  if args.print:
    to_stdout(*(redacted(f'vit {shlex.join(point.words)}') for point in points))
    return 0
  with Owner(args.workdir):  # of two sweeps one would wait for the other's runs
    earlier = [point for point in points if point.is_finished]
    failed = train_all(points)
  if failed is None:
    return 0
  failed |= check_all(earlier)
  finished = [point.folder for point in points if point.is_finished and point.folder not in failed]
  if len(finished) > 1:
    compared = comparison.read([*map(str, finished)])
    to_stdout(*compare.lines(compared), '', *compare.write(compared, pathlib.Path(args.workdir)))
  for line in failed.values():
    warn('sweep', line)
  return 3 if failed else 0


def train_all(points: Sequence[Point]) -> dict[pathlib.Path, str] | None:
  """Trains all that are not finished; a line for each folder that failed, None if stopped."""
  failed = {}
  for number, point in enumerate(points, 1):
    to_stderr(f'run {number} of {len(points)}: {point.folder}')
    if point.is_finished:
      to_stderr('it is finished')
      continue
    code = train_one(point)
    if code:
      failed[point.folder] = f'{point.folder} failed with exit code {code}: see the lines above'
    elif not point.is_finished:
      to_stderr('stopped: the same command goes on')
      return None
  return failed


def check_all(points: Sequence[Point]) -> dict[pathlib.Path, str]:
  """A line for each folder whose finished run is of other fields or data than its point.

  To be called after the last run: what plans a run takes the devices of its process, and those of
  an accelerator are only one process's.
  """
  failed = {}
  for point in points:
    try:
      point.check_folder()
    except (OSError, ValueError) as error:
      failed[point.folder] = str(error)
  return failed


def train_one(point: Point) -> int:
  """The exit code of a run in a process of its own, whose memory is free when it ends.

  It is of a session of its own, so that a terminal's Ctrl-C comes once: from here.
  """
  words = [sys.executable, '-m', 'vit_jax', *point.words]
  child = subprocess.Popen(words, stdout=sys.stderr, start_new_session=True)  # stdout: results
  stopping.at_exit(child.terminate)
  is_asked = False
  with stopping.phase('loop'):
    while (code := child.poll()) is None:
      if stopping.asked() and not is_asked:
        child.terminate()  # it saves, and ends with 0
        is_asked = True
      time.sleep(POLL)
  return code


def grid(
  spec: str, axes: Sequence[str], overrides: Sequence[str], workdir: pathlib.Path
) -> list[Point]:
  """The runs of a grid, the last axis varying first.

  Raises:
    ValueError: for an axis that is none, a field that is set twice, or too many runs.
  """
  values = {}
  fixed = [override.partition('=')[0] for override in overrides]
  for axis in axes:
    field, _, text = axis.partition('=')
    if not field or not text:
      raise ValueError(f'--grid wants FIELD=VALUES, such as seed=0:3, not {axis!r}')
    if field in values or field in fixed:
      raise ValueError(f'{field} is set twice')
    values[field] = axis_values(field, text)
  if (count := math.prod(map(len, values.values()))) > LARGEST:
    raise ValueError(f'the grid has {quantity(count, "run")}, more than {LARGEST:,}')
  points = []
  for chosen in itertools.product(*values.values()):
    fields = tuple(f'{field}={value}' for field, value in zip(values, chosen))
    points.append(Point(workdir / folder_name(fields), spec, (*overrides, *fields)))
  if len({point.folder for point in points}) < len(points):
    raise ValueError(
      'two runs of the grid would have the same folder: a value comes twice, or two differ only in '
      'characters that a folder has no place for'
    )
  return points


def axis_values(field: str, text: str) -> list[str]:
  """'1e-3,3e-3' -> ['1e-3', '3e-3'], '0:3' -> ['0', '1', '2']."""
  if match := WHOLE_NUMBERS.fullmatch(text):
    start, end = map(int, match.groups())
    if not 0 < end - start <= LARGEST:
      raise ValueError(
        f'--grid {field}={text} has no values: it wants START:END, with END left out'
      )
    return [*map(str, range(start, end))]
  values = [value.strip() for value in SEPARATORS.split(text)]
  if not all(values):
    raise ValueError(f'--grid {field}={text} has an empty value')
  return values


def folder_name(fields: Sequence[str]) -> str:
  """'schedule.learning_rate=1e-3', 'seed=0' -> 'learning_rate=1e-3,seed=0', of safe characters."""
  pairs = [field.split('=', 1) for field in fields]
  short = [name.rpartition('.')[2] for name, _ in pairs]
  names = short if len({*short}) == len(short) else [name for name, _ in pairs]
  parts = (f'{name}={value}' for name, (_, value) in zip(names, pairs))
  return re.sub(r'[^\w.,=+-]', '_', ','.join(parts))[:200]
