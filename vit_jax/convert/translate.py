"""Writing a model in another's names: a dialect's module says what it can, this writes it.

D width, K classes.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from vit_jax import models
from vit_jax.convert import (
  Checkpoint,
  adapt,
  engine,
  files,
  google,
  huggingface,
  timm,
  torchvision,
)
from vit_jax.convert.engine import Arrays, Spoken


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
  ours = {name: np.asarray(leaf) for name, leaf in flat(jax.device_get(source.params)).items()}
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
  return flat(params)


def flat(tree: Any) -> Arrays:
  named: Arrays = {}
  models.map_named(named.setdefault, tree)
  return named


def notes(model: Any, spoken: Spoken) -> list[str]:
  """What a dialect's readers will compute otherwise than the model does."""
  return [
    f'{field} is {getattr(model, field)}, but its readers take {" or ".join(map(str, values))}'
    for field, values in spoken.assumed.items()
    if getattr(model, field, values[0]) not in values
    and (field != 'stem_numerics' or model.stem is not None)
  ]


def write_folder(
  folder: str | os.PathLike[str], arrays: Arrays, configs: Mapping[str, Any], metadata: Any = None
) -> None:
  """A folder with model.safetensors and JSON files, whole or not at all."""
  folder = pathlib.Path(folder)
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    files.write_safetensors(partial / 'model.safetensors', arrays, metadata)
    for name, config in configs.items():
      (partial / name).write_text(json.dumps(config, indent=2))
    if folder.exists():
      shutil.rmtree(folder)
    os.replace(partial, folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


WRITERS: dict[str, Callable[[pathlib.Path, Arrays], None]] = {
  '.npz': files.write_npz,
  '.safetensors': lambda path, arrays: files.write_safetensors(path, arrays, {'format': 'pt'}),
  '.pth': files.write_torch,
  '.pt': files.write_torch,
  '.bin': files.write_torch,
}
TORCH = ('.pth', '.safetensors', '.pt', '.bin')
SPEAKERS: dict[str, Callable[[Source], Spoken]] = {
  'npz': google.spoken,
  'bigvision': google.spoken_big_vision,
  'timm': timm.spoken,
  'hf': huggingface.spoken,
  'torchvision': torchvision.spoken,
}
FOLDERS = ('timm', 'hf')  # written as a folder where the path has no suffix


def write(path: str | os.PathLike[str], source: Source, to: str) -> list[str]:
  """See `vit_jax.convert.write`."""
  if to not in SPEAKERS:
    raise ValueError(f'unknown dialect {to!r}{models.nearest(to, list(SPEAKERS))}')
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f'{path} exists already')
  suffixes = {'npz': ('.npz',), 'bigvision': ('.npz',), 'hf': ('',), 'timm': ('', *TORCH)}
  if path.suffix not in suffixes.get(to, TORCH) and (path.suffix in WRITERS or to not in FOLDERS):
    raise ValueError(f'{path}: {to} is written to {" or ".join(suffixes.get(to, TORCH))}')
  spoken = SPEAKERS[to](source)
  arrays = translated(source, spoken, to)
  if to == 'hf' or (to == 'timm' and path.suffix not in TORCH):
    write_folder(path, arrays, spoken.configs, {'format': 'pt'})
  else:
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix](path, arrays)
  told = notes(source.model, spoken)
  if to == 'timm' and path.suffix in TORCH:
    told.append(f'open it with {timm.call(path, spoken.configs["config.json"])}')
  return told
