"""Writing a model in another's names: a dialect's module says what it can, this writes it.

D width, K classes.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from vit_jax import files, models
from vit_jax.convert import (
  adapt,
  architecture,
  engine,
  google,
  huggingface,
  preprocess,
  timm,
  torchvision,
  weights,
)
from vit_jax.convert.engine import Arrays, Checkpoint, Spoken
from vit_jax.convert.families import FAMILIES, prepared
from vit_jax.text import nearest


class Source(Protocol):
  """What is written: a bundle or a run."""

  @property
  def model(self) -> Any: ...
  @property
  def params(self) -> Any: ...
  @property
  def classes(self) -> tuple[str, ...]: ...
  @property
  def preprocess(self) -> Any: ...
  @property
  def name(self) -> str: ...


def translated(source: Source, spoken: Spoken, to: str) -> Arrays:
  """The source's arrays in a dialect's names.

  Raises:
    ValueError: one line that names everything of the model that the dialect cannot say.
  """
  model = source.model
  refused = [
    f'{field} {getattr(model, field)!r}'
    for field, values in spoken.fields.items()
    if getattr(model, field, values[0]) not in values
  ]
  params = models.flat(jax.device_get(source.params))
  ours = {name: np.asarray(leaf) for name, leaf in params.items()}
  if not refused:
    ours = changed(source, ours, spoken.becomes)
    theirs, left = engine.back(spoken.table, ours)
    refused = left
  if refused:
    raise ValueError(f'{to} has no way to say {", ".join(refused)}')
  return spoken.finish(theirs)


def changed(source: Source, arrays: Arrays, becomes: Mapping[str, Any]) -> Arrays:
  """The arrays of the same function with some fields of its model changed: missing biases are 0."""
  model = source.model
  known = models.fields(model)
  becomes = {field: value for field, value in becomes.items() if field in known}
  if all(known[field] == value for field, value in becomes.items()):
    return arrays
  size = source.preprocess.size
  held = Checkpoint('', 'vit_jax', source.name, known, arrays, size)
  params, _ = adapt.params(
    held, model.clone(**becomes), image_size=size, new_head=None, zero_biases=True
  )
  return models.flat(params)


def notes(source: Source, spoken: Spoken, configs: Mapping[str, Any]) -> list[str]:
  """What a dialect's readers will do otherwise than the source: `configs` is all they are told."""
  model = source.model
  told = [
    f'{field} is {getattr(model, field)}, but its readers take {" or ".join(map(str, values))}'
    for field, values in spoken.assumed.items()
    if getattr(model, field, values[0]) not in values
    and (field != 'stem_numerics' or model.stem is not None)
  ]
  return told + preprocess_notes(source, spoken, configs) + size_notes(source, spoken, configs)


def preprocess_notes(source: Source, spoken: Spoken, configs: Mapping[str, Any]) -> list[str]:
  """Where images look otherwise to a reader of what is written."""
  ours, family = source.preprocess, next(f for f in FAMILIES if f.table is spoken.table)
  config = {**configs.get('config.json', {})}
  if 'preprocessor_config.json' in configs:
    config['preprocessor'] = configs['preprocessor_config.json']
  found = prepared(family.preprocess(config), ours.size)
  told = []
  if not preprocess.same(ours.steps, found['steps'], ours.size):
    told.append(f'preprocessing is {ours.steps!r}, but its readers take {found["steps"]!r}')
  for name in ('mean', 'std'):
    here, there = tuple(getattr(ours, name)), tuple(found.get(name, (0.5, 0.5, 0.5)))
    if here != there:
      told.append(f'{name} is {here}, but its readers take {there}')
  return told


def size_notes(source: Source, spoken: Spoken, configs: Mapping[str, Any]) -> list[str]:
  """What a lone file does not tell of the size of its images: a table is taken for a square."""
  if configs:
    return []
  fields = {**models.fields(source.model), **spoken.becomes}
  height, width = source.preprocess.size
  rows, columns = (side // patch for side, patch in zip((height, width), source.model.patch))
  if 'tokens_dim' in fields or fields.get('positions') == 'learned':
    tokens = source.model.prefix - source.model.registers if 'registers' in fields else 0
    table = rows * columns + (tokens if fields.get('cls_position') else 0)
    if rows == columns:
      return []
    if any(architecture.is_square(table - n) for n in {0, tokens}):
      return [f'positions are for {height}x{width}, but its readers take them for a square']
    return [f'positions are for {height}x{width}: give image_size to read them']
  usual = architecture.image_size(fields, {}, ())
  told = f'images are {height}x{width}, but its readers take {usual[0]}x{usual[1]}'
  return [] if usual == (height, width) else [told]


def write_folder(
  folder: str | os.PathLike[str], arrays: Arrays, configs: Mapping[str, Any], metadata: Any = None
) -> None:
  """A folder with model.safetensors and JSON files, whole or not at all; an older one goes.

  Raises:
    OSError: one that names the folder, if it cannot be written.
  """
  with files.staging(folder) as new:
    new.mkdir()
    weights.write_safetensors(new / weights.FILES[0], arrays, metadata)
    for name, config in configs.items():
      (new / name).write_text(json.dumps(config, indent=2))


WRITERS: dict[str, Callable[[pathlib.Path, Arrays], None]] = {
  '.npz': weights.write_npz,
  '.safetensors': lambda path, arrays: weights.write_safetensors(path, arrays, {'format': 'pt'}),
  '.pth': weights.write_torch,
  '.pt': weights.write_torch,
  '.bin': weights.write_torch,
}
SPEAKERS: dict[str, Callable[[Source], Spoken]] = {
  'npz': google.spoken,
  'bigvision': google.spoken_big_vision,
  'timm': timm.spoken,
  'hf': huggingface.spoken,
  'torchvision': torchvision.spoken,
}
TORCH = ('.pth', '.safetensors', '.pt', '.bin')
FOLDER = ''  # the suffix of whatever is not in WRITERS
SUFFIXES = {
  'npz': ('.npz',),
  'bigvision': ('.npz',),
  'timm': (FOLDER, *TORCH),
  'hf': (FOLDER,),
  'torchvision': TORCH,
}


def suffix(path: pathlib.Path, to: str) -> str:
  """The one of SUFFIXES by which a dialect is written to a path.

  Raises:
    ValueError: if the dialect is not written to such a path.
  """
  found = path.suffix if path.suffix in WRITERS else FOLDER
  if found not in SUFFIXES[to]:
    known = [known or 'a folder' for known in SUFFIXES[to]]
    raise ValueError(f'{path}: {to} is written to {" or ".join(known)}')
  return found


def write(path: str | os.PathLike[str], source: Source, *, to: str) -> list[str]:
  """Writes a model in another's names: a file by its suffix, or a folder with its configuration.

  Args:
    path: new; a .npz for 'npz' and 'bigvision', a folder for 'hf', a folder, .safetensors or .pth
      for 'timm', .safetensors or .pth for 'torchvision'.
    source: a run or bundle, as `vit_jax.load` gives it.
    to: 'npz', 'bigvision', 'timm', 'hf' or 'torchvision'.

  Returns:
    What their readers compute otherwise than the model does, a line each: usually nothing. How
    to open a lone file of timm's.

  Raises:
    ValueError: if the path exists or has another suffix, or the dialect cannot say the model.
  """
  if to not in SPEAKERS:
    raise ValueError(f'unknown dialect {to!r}{nearest(to, list(SPEAKERS))}')
  path = pathlib.Path(path)
  if os.path.lexists(path):
    raise ValueError(f'{path} exists already')
  form = suffix(path, to)
  spoken = SPEAKERS[to](source)
  arrays = translated(source, spoken, to)
  if form == FOLDER:
    write_folder(path, arrays, spoken.configs, {'format': 'pt'})
    return notes(source, spoken, spoken.configs)
  path.parent.mkdir(parents=True, exist_ok=True)
  WRITERS[form](path, arrays)
  told = notes(source, spoken, {})
  if to == 'timm':
    told.append(f'open it with {timm.call(path, spoken.configs["config.json"])}')
  return told
