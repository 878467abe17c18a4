"""Writing a model in another's names: a dialect's module says what it can, this writes it.

D width, K classes.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import files, models
from vit_jax.convert import (
  adapt,
  architecture,
  engine,
  google,
  huggingface_writing,
  preprocess,
  timm_writing,
  torchvision,
  weights,
)
from vit_jax.convert.engine import Arrays, Checkpoint, Exportable, ExportSpec
from vit_jax.convert.families import FAMILIES, class_names, prepared, scores_of
from vit_jax.convert.preprocess import fit_levels
from vit_jax.text import first_few, nearest

# Values that any dialect can say, of fields that few have another value to say for.
SUPPORTED: Mapping[str, Sequence[Any]] = {
  'pool_prefix': (None,),
  'pool_heads': (None,),
  'pool_mlp_dim': (None,),
  'positions': ('learned', 'sincos2d', 'rope', 'none'),
  'rope_grid': ('centres',),
  'rope_offset': (0.0,),
  'rope_reference': (None,),
  'rope_axes': ('yx',),
  'rope_interleaved': (False,),
  'relative_positions': ('none',),
  'norm': ('layer',),
  'embed_norm': (False,),
  'attention_norm': (False,),
  'mlp_norm': (False,),
  'proj_bias': (True,),
  'post_norm': (False,),
  'parallel': (False,),
}


def translated(source: Exportable, spec: ExportSpec, to: str) -> Arrays:
  """The source's arrays in a dialect's names; ValueError names all that the dialect cannot say."""
  model = source.model
  refused = [
    f'{field} {getattr(model, field)!r}'
    for field, values in {**SUPPORTED, **spec.supported}.items()
    if hasattr(model, field) and getattr(model, field) not in values
  ]
  params = models.flat(jax.device_get(source.params))
  ours = {name: np.asarray(leaf) for name, leaf in params.items()}
  if not refused:
    ours = rewritten(source, ours, spec.rewrites)
    theirs, refused = engine.to_theirs(spec.table, ours)
  if refused:
    raise ValueError(f'{to} has no way to say {", ".join(refused)}')
  return spec.finish(theirs)


def rewritten(source: Exportable, arrays: Arrays, rewrites: Mapping[str, Any]) -> Arrays:
  """The arrays of the same function with some fields of its model changed: missing biases are 0."""
  model = source.model
  fields = models.fields(model)
  rewrites = {field: value for field, value in rewrites.items() if field in fields}
  if all(fields[field] == value for field, value in rewrites.items()):
    return arrays
  size, channels = source.preprocess.size, source.preprocess.channels
  checkpoint = Checkpoint('', 'vit_jax', source.name, fields, arrays, size)
  params, _ = adapt.params(
    checkpoint,
    model.clone(**rewrites),
    image_size=size,
    channels=channels,
    new_head=None,
    zero_biases=True,
  )
  return models.flat(params)


def notes(source: Exportable, spec: ExportSpec, configs: Mapping[str, Any]) -> list[str]:
  """What a dialect's readers will do otherwise than the source: `configs` is all they have."""
  model = source.model
  lines = [
    f'{field} is {getattr(model, field)}, but its readers take {" or ".join(map(str, values))}'
    for field, values in spec.reader_defaults.items()
    if hasattr(model, field)
    and getattr(model, field) not in values
    and (field != 'stem_numerics' or getattr(model, 'stem', None) is not None)
  ]
  lines += class_notes(source, configs)
  return lines + preprocess_notes(source, spec, configs) + size_notes(source, spec, configs)


def class_notes(source: Exportable, configs: Mapping[str, Any]) -> list[str]:
  """Where classes are called, or scored, otherwise by a reader of what is written."""
  config = configs.get('config.json', {})
  scores, lines = scores_of(config), []
  if source.classes != class_names(config, models.fields(source.model)):
    lines += [f'classes are {first_few(source.classes, 3)}, but its readers take their numbers']
  if source.classes and source.scores != scores:
    lines += [f'scores are a {source.scores} of the logits, but its readers take their {scores}']
  return lines


def preprocess_notes(source: Exportable, spec: ExportSpec, configs: Mapping[str, Any]) -> list[str]:
  """Where images look otherwise to a reader of what is written."""
  ours, family = source.preprocess, next(f for f in FAMILIES if f.table is spec.table)
  config = {**configs.get('config.json', {})}
  if 'preprocessor_config.json' in configs:
    config['preprocessor'] = configs['preprocessor_config.json']
  published, _ = family.published(models.flat(source.params), '')
  theirs, _ = fit_levels(family.preprocess(config) | published, ours.channels)
  theirs = prepared(theirs, ours.size)
  lines = []
  if not preprocess.same_pixels(ours.steps, theirs['steps'], ours.size):
    lines.append(f'preprocessing is {ours.steps!r}, but its readers take {theirs["steps"]!r}')
  for name in ('mean', 'std'):
    our_values, their_values = (
      tuple(getattr(ours, name)),
      tuple(theirs.get(name, (0.5,) * ours.channels)),
    )
    if our_values != their_values:
      lines.append(f'{name} is {our_values}, but its readers take {their_values}')
  return lines


def size_notes(source: Exportable, spec: ExportSpec, configs: Mapping[str, Any]) -> list[str]:
  """What a lone file does not say of the size of its images: a table is taken for a square."""
  if configs:
    return []
  fields = {**models.fields(source.model), **spec.rewrites}
  height, width = source.preprocess.size
  rows, columns = (side // patch for side, patch in zip((height, width), source.model.patch))
  if 'tokens_dim' in fields or str(fields.get('positions')).startswith('learned'):
    tokens = source.model.prefix - source.model.registers if 'registers' in fields else 0
    table = rows * columns + (tokens if fields.get('cls_position') else 0)
    if rows == columns:
      return []
    if any(architecture.is_square(table - n) for n in {0, tokens}):
      return [f'positions are for {height}x{width}, but its readers take them for a square']
    return [f'positions are for {height}x{width}: give image_size to read them']
  usual = architecture.image_size(fields, {}, ())
  line = f'images are {height}x{width}, but its readers take {usual[0]}x{usual[1]}'
  return [] if usual == (height, width) else [line]


def write_folder(
  folder: str | os.PathLike[str],
  arrays: Arrays,
  configs: Mapping[str, Any],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """A folder with model.safetensors and JSON files, whole or not at all; an older one goes."""
  with files.staging(folder) as new:
    write_files(new, arrays, configs, metadata)


def write_files(
  folder: pathlib.Path,
  arrays: Arrays,
  configs: Mapping[str, Any],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Makes a folder with model.safetensors and JSON files."""
  folder.mkdir()
  weights.write_safetensors(folder / weights.FILES[0], arrays, metadata)
  for name, config in configs.items():
    (folder / name).write_text(files.as_json(config, indent=2), 'utf-8')


FILE_WRITERS: dict[str, Callable[[pathlib.Path, Arrays], None]] = {
  '.npz': weights.write_npz,
  '.safetensors': lambda path, arrays: weights.write_safetensors(path, arrays, {'format': 'pt'}),
  '.pth': weights.write_torch,
  '.pt': weights.write_torch,
  '.bin': weights.write_torch,
}
WRITERS: dict[str, Callable[[Exportable], ExportSpec]] = {
  'npz': google.export_spec,
  'bigvision': google.big_vision_export_spec,
  'timm': timm_writing.export_spec,
  'hf': huggingface_writing.export_spec,
  'torchvision': torchvision.export_spec,
}
TORCH = ('.pth', '.safetensors', '.pt', '.bin')
FOLDER = ''  # the suffix of whatever is not in FILE_WRITERS
SUFFIXES = {
  'npz': ('.npz',),
  'bigvision': ('.npz',),
  'timm': (FOLDER, *TORCH),
  'hf': (FOLDER,),
  'torchvision': TORCH,
}


def suffix(path: pathlib.Path, to: str) -> str:
  """The one of SUFFIXES by which a dialect is written to a path."""
  ending = path.suffix if path.suffix in FILE_WRITERS else FOLDER
  if ending not in SUFFIXES[to]:
    choices = [choice or 'a folder' for choice in SUFFIXES[to]]
    raise ValueError(f'{path}: {to} is written to {" or ".join(choices)}')
  return ending


def write(path: str | os.PathLike[str], source: Exportable, *, to: str) -> list[str]:
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
  if to not in WRITERS:
    raise ValueError(f'unknown dialect {to!r}{nearest(to, list(WRITERS))}')
  path = pathlib.Path(path)
  if os.path.lexists(path):
    raise ValueError(f'{path} exists already')
  form = suffix(path, to)
  spec = WRITERS[to](source)
  arrays = translated(source, spec, to)
  if form == FOLDER:
    write_folder(path, arrays, spec.configs, {'format': 'pt'})
    return notes(source, spec, spec.configs)
  path.parent.mkdir(parents=True, exist_ok=True)
  FILE_WRITERS[form](path, arrays)
  lines = notes(source, spec, {})
  if to == 'timm':
    lines.append(f'open it with {timm_writing.call(path, spec.configs["config.json"])}')
  return lines
