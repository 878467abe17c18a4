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

from vit_jax import files
from vit_jax.text import one_line

FILE = 'seal.json'
FORMAT = 2  # the first was the table of the files alone
NAMED = 3  # fields that differ, in a message


@dataclasses.dataclass(frozen=True)
class Origin:
  """Of which run and step a folder is; a field that is None is not known, or does not matter.

  Fields:
    step: of the parameters.
    config: {'model.width': 16, ...}, as JSON: the fields that are the same in all starts of a run.
    data: the CRC-32 of what is the same of its data.
  """

  step: int | None = None
  config: Mapping[str, files.JSON] | None = None
  data: int | None = None

  def difference(self, other: 'Origin') -> str:
    """Why a folder of another origin is not of this one, in a few words; '' where it may be."""
    if None not in (self.step, other.step) and self.step != other.step:
      return f'it is of step {other.step}'
    theirs, ours = other.config or {}, self.config or {}
    fields = [name for name in theirs if name in ours and theirs[name] != ours[name]]
    if fields:
      values = [f'{name} is {theirs[name]!r:.40} there, {ours[name]!r:.40} here' for name in fields]
      more = f' and {len(fields) - NAMED} more' * (len(fields) > NAMED)
      return f"it is another run's: {'; '.join(values[:NAMED])}{more}"
    if None not in (self.data, other.data) and self.data != other.data:
      return 'it is of a run on other data'
    return ''


@dataclasses.dataclass(frozen=True)
class Seal:
  """What `write` wrote: {file: [size, CRC-32]}, and the folder's origin."""

  files: Mapping[str, list[int]]
  origin: Origin = Origin()


class Broken(ValueError):
  """A folder has no seal, or one that cannot be read."""


class Newer(ValueError):
  """A file is of a newer version of this package."""


def write(folder: pathlib.Path, names: Iterable[str | os.PathLike[str]], origin: Origin) -> None:
  """Seals files of a folder."""
  table = {str(name): checksum(folder / name) for name in sorted(map(str, names))}
  files.write_json(folder / FILE, {'format': FORMAT, **dataclasses.asdict(origin), 'files': table})


def read(folder: pathlib.Path) -> Seal:
  """The seal of a folder.

  Raises:
    Broken: if it is missing or damaged.
    Newer: if it is of a newer format.
  """
  try:
    values = json.loads((folder / FILE).read_text('utf-8'))
    if 'format' not in values:
      return Seal(checked_table(values))
    check_format(folder / FILE, values['format'], FORMAT)
    step, config, data = (values[field.name] for field in dataclasses.fields(Origin))
    if type(step) not in (int, type(None)) or not isinstance(config, dict | None):
      raise ValueError('its fields are of other types')
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
    raise ValueError(f'{FILE} lists nothing')
  return values


def check_format(file: pathlib.Path, number: object, newest: int) -> None:
  """Raises Newer if a file is of a format that only a later version of this package reads."""
  if type(number) is int and number > newest:
    line = f'{file} is of format {number}, a newer version of vit_jax wrote it'
    raise Newer(one_line(f'{line}: this one reads up to {newest}'))


def damage(folder: pathlib.Path, *, largest: float = float('inf')) -> str:
  """What is wrong with a sealed folder, in a few words; '' if every file is as it was sealed.

  Args:
    folder: that `write` sealed.
    largest: size in bytes of the files that are read; of larger ones the size alone is compared.
  """
  try:
    table = read(folder).files
  except Broken as error:
    return str(error)
  for name, sealed in table.items():
    file = folder / name
    if not file.is_file():
      return f'{name} is missing'
    size = file.stat().st_size
    if [size] != sealed[:1] or (size <= largest and checksum(file) != sealed):
      return f'{name} has changed'
  return ''


def fault(folder: pathlib.Path, origin: Origin, *, largest: float = float('inf')) -> str:
  """Why a folder is not used, as a predicate; '' where it is whole and of this origin."""
  try:
    if difference := origin.difference(read(folder).origin):
      return f'is not used: {difference}'
  except Broken:
    pass  # `damage` says it
  if reason := damage(folder, largest=largest):
    return f'is damaged ({reason}): not used'
  return ''


def checksum(file: pathlib.Path) -> list[int]:
  """[size, CRC-32] of a file."""
  crc, size = 0, 0
  with file.open('rb') as stream:
    while chunk := stream.read(1 << 22):  # 4 MiB: files are of GB
      crc, size = zlib.crc32(chunk, crc), size + len(chunk)
  return [size, crc]
