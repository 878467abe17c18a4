"""The seal of a folder: size and CRC-32 of each of its files, and of which run and step it is.

A checkpoint and a run's model carry one. Orbax restores damaged arrays without an error, and a
folder may be renamed or come from another run: what is in it is used only while its seal agrees.
"""

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vit_jax import files
from vit_jax.text import one_line

FILE = 'seal.json'
FORMAT = 2  # the first was the table of the files alone
NAMED = 3  # fields that differ, in a message


@dataclasses.dataclass(frozen=True)
class Origin:
  """The run and the step that a folder is of; None is not known, or does not matter.

  Fields:
    step: of the parameters.
    config: {'model.width': 16, ...}, as JSON: the fields that are the same in all starts of a run.
    data: the CRC-32 of what is the same of its data.
  """

  step: int | None = None
  config: Mapping[str, files.JSON] | None = None
  data: int | None = None

  def difference(self, other: 'Origin') -> str:
    """What a folder of another origin is instead, in a few words; '' where it may be of this."""
    if None not in (self.step, other.step) and self.step != other.step:
      return f'of step {other.step}'
    theirs, ours = other.config or {}, self.config or {}
    fields = [name for name in theirs if name in ours and theirs[name] != ours[name]]
    if fields:
      values = [f'{name} is {theirs[name]!r:.40} there, {ours[name]!r:.40} here' for name in fields]
      more = f' and {len(fields) - NAMED} more' * (len(fields) > NAMED)
      return f'of another run: {"; ".join(values[:NAMED])}{more}'
    if None not in (self.data, other.data) and self.data != other.data:
      return 'of a run on other data'
    return ''


@dataclasses.dataclass(frozen=True)
class Seal:
  """What `write` wrote: {file: [size, CRC-32]}, and the folder's origin."""

  files: Mapping[str, list[int]]
  origin: Origin = Origin()

  def damage(self, folder: pathlib.Path, names: Iterable[str]) -> str:
    """What is wrong with those of a folder's files that are sealed, in a few words; or ''."""
    for name in names:
      if name in self.files and not (folder / name).is_file():
        return f'{name} is missing'
      if name in self.files and checksum(folder / name) != self.files[name]:
        return f'{name} has changed'
    return ''


class Broken(ValueError):
  """A folder has no seal, or one that cannot be read."""


class Newer(ValueError):
  """A file is of a newer version of this package."""


class Fault(NamedTuple):
  """Why a folder is not used, as a predicate, and the suffix of its name when it is set aside."""

  line: str
  suffix: str


def write(folder: pathlib.Path, names: Iterable[str | os.PathLike[str]], origin: Origin) -> None:
  """Seals files of a folder."""
  write_table(
    folder, {str(name): checksum(folder / name) for name in sorted(map(str, names))}, origin
  )


def write_table(folder: pathlib.Path, table: Mapping[str, list[int]], origin: Origin) -> None:
  values = {'format': FORMAT, **dataclasses.asdict(origin), 'files': table}
  files.write_json(folder / FILE, values | {'crc32': digest(values)})


def digest(values: files.JSON) -> str:
  """The CRC-32 of what a seal holds, by which it is whole itself."""
  return f'{zlib.crc32(files.as_json(values).encode()):08x}'


def read(folder: pathlib.Path) -> Seal:
  """The seal of a folder.

  Raises:
    Broken: if it is missing or damaged.
    Newer: if it is of a newer format.
  """
  try:
    values = json.loads(files.read_bytes(folder / FILE))
    if 'format' not in values:
      return Seal(checked_table(values))
    check_format(folder / FILE, values['format'], FORMAT)
    if values.pop('crc32') != digest(values):
      raise ValueError('it has changed')
    step, config, data = (values[field.name] for field in dataclasses.fields(Origin))
    return Seal(checked_table(values['files']), Origin(step, config, data))
  except FileNotFoundError:
    raise Broken(f'{FILE} is missing') from None
  except Newer:
    raise
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    raise Broken(f'{FILE} cannot be read') from None


def checked_table(values: files.JSON) -> dict[str, list[int]]:
  """A table of checksums; ValueError for anything else."""
  if not isinstance(values, dict) or not values:
    raise ValueError('it lists nothing')
  if any(not isinstance(row, list) for row in values.values()):
    raise ValueError('it lists something else')
  return values


def check_format(file: pathlib.Path, number: object, newest: int) -> None:
  """Raises Newer if a file is of a format that only a later version of this package reads."""
  if type(number) is int and number > newest:
    line = f'{file} is of format {number}, a newer version of vit_jax wrote it'
    raise Newer(one_line(f'{line}: this one reads up to {newest}'))


def damage(folder: pathlib.Path) -> str:
  """What is wrong with a sealed folder, in a few words; '' if every file is as it was sealed."""
  try:
    seal = read(folder)
  except Broken as error:
    return str(error)
  return seal.damage(folder, seal.files)


def stranger(folder: pathlib.Path, origin: Origin) -> Fault | None:
  """Why a folder is not of an origin; None where it is, or does not say."""
  try:
    difference = origin.difference(read(folder).origin)
  except Broken:
    return None
  return Fault(f'is {difference}', '.unused') if difference else None


def damaged(reason: str) -> Fault | None:
  """The fault that `damage` is; None for ''."""
  return Fault(f'is damaged ({reason})', '.damaged') if reason else None


def fault(folder: pathlib.Path, origin: Origin) -> Fault | None:
  """Why a folder is not used; None where it is whole and of this origin."""
  return stranger(folder, origin) or damaged(damage(folder))


def add(folder: pathlib.Path, name: str, origin: Origin) -> None:
  """Seals one more file of a folder, or seals it again."""
  write_table(folder, {**read(folder).files, name: checksum(folder / name)}, origin)


def checksum(file: pathlib.Path) -> list[int]:
  """[size, CRC-32] of a file."""
  crc, size = 0, 0
  with files.open_regular(file) as stream:
    while chunk := stream.read(1 << 22):  # 4 MiB: files are of GB
      crc, size = zlib.crc32(chunk, crc), size + len(chunk)
  return [size, crc]
