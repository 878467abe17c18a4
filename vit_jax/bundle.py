"""A model on disk: `model.safetensors` with the parameters, `config.json` with all else."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.data import transforms

FORMAT = 1
WEIGHTS, DESCRIPTION = 'model.safetensors', 'config.json'
HOW = ('dtype', 'unroll', 'remat')  # fields that say how to compute, which a device decides


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """What happens to an image before the model.

  Fields:
    steps: a line for `vit_jax.data.transforms.compose`.
    size: (height, width) in pixels that the model takes.
    mean, std: of pixels in [0, 1], per channel: the model sees (pixel - mean) / std.
  """

  steps: str
  size: tuple[int, int]
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A model with its parameters, class names and preprocessing.

  Fields:
    model: a flax module, as `vit_jax.build` gives it.
    params: its parameters, a tree of float32 arrays.
    classes: the name of each label.
    preprocess: of its images.
    name: the variant that `vit_jax.build` made it from.
  """

  model: nn.Module
  params: Any
  classes: tuple[str, ...]
  preprocess: Preprocess
  name: str


def write(folder: str | os.PathLike[str], bundle: Bundle) -> None:
  """Writes a bundle, whole or not at all: it appears under its name when it is complete."""
  from safetensors.numpy import save_file

  folder = pathlib.Path(folder)
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  save_file(flat(jax.device_get(bundle.params)), str(partial / WEIGHTS))
  fields = {k: v for k, v in models.fields(bundle.model).items() if k not in HOW}
  description = {
    'format': FORMAT,
    'model': {'name': bundle.name, **fields},
    'preprocess': dataclasses.asdict(bundle.preprocess),
    'classes': list(bundle.classes),
  }
  (partial / DESCRIPTION).write_text(json.dumps(description, indent=1))
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(partial, folder)


def read(path: str | os.PathLike[str]) -> Bundle:
  """The bundle in a folder, or in the `model` folder of a run.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged, or not one of ours.
  """
  folder = find(path)
  try:
    description = json.loads((folder / DESCRIPTION).read_text())
    fields = dict(description['model'])
    name = fields.pop('name')
    model = models.build(name, dtype=models.device_dtype(), **fields)
    preprocess = Preprocess(**{k: tupled(v) for k, v in description['preprocess'].items()})
    classes = tuple(description['classes'])
    check(model, preprocess, classes)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{folder / DESCRIPTION} does not describe a model: {error}') from None
  params = load_params(folder, model, image_size=preprocess.size)
  return Bundle(model, params, classes, preprocess, name)


def check(model: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
  """Raises ValueError for the first part of a bundle that does not fit the others."""
  if len(classes) != model.num_classes:
    raise ValueError(f'{len(classes)} classes for a head of {model.num_classes}')
  sides = preprocess.size
  if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
    raise ValueError(f'preprocess size is {sides}, not a height and a width')
  models.check_size(model, sides)
  for name in ('mean', 'std'):
    if len(getattr(preprocess, name)) != 3:
      raise ValueError(f'preprocess {name} is {getattr(preprocess, name)}, not three numbers')
  transforms.compose(preprocess.steps, sides)


def load_params(
  path: str | os.PathLike[str],
  model: nn.Module,
  *,
  image_size: int | tuple[int, int] | None = None,
) -> Any:
  """The parameters of a model from a bundle or a run, as a tree of float32 arrays.

  Args:
    path: of the bundle or the run.
    model: which they are for.
    image_size: (height, width) in pixels that it will take, or one number for both; None is the
      size that the bundle names.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: one that names every missing, unexpected and misshapen array.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  folder = find(path)
  file = folder / WEIGHTS
  if image_size is None:
    image_size = tuple(json.loads((folder / DESCRIPTION).read_text())['preprocess']['size'])
  try:
    arrays = load_file(str(file))
  except (SafetensorError, OSError) as error:
    raise ValueError(f'{file} cannot be read ({error})') from None
  size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  wanted = flat(shapes)
  wrong = [f'{name} is missing' for name in wanted if name not in arrays]
  wrong += [f'{name} is unexpected' for name in arrays if name not in wanted]
  wrong += [
    f'{name} has shape {arrays[name].shape}, not {leaf.shape}'
    for name, leaf in wanted.items()
    if name in arrays and arrays[name].shape != leaf.shape
  ]
  if wrong:
    raise ValueError(f'{file} does not fit the model: {"; ".join(wrong)}')
  return models.map_named(lambda name, _: arrays[name].astype(np.float32), shapes)


def exists(folder: pathlib.Path) -> bool:
  """Whether the folder is a bundle's."""
  return (folder / DESCRIPTION).is_file() and (folder / WEIGHTS).is_file()


def find(path: str | os.PathLike[str]) -> pathlib.Path:
  """The bundle's folder for that of a run or of the bundle, or for one of its files."""
  path = pathlib.Path(path)
  folders = [path.parent] if path.is_file() else [path / 'model', path]
  for folder in folders:
    if exists(folder):
      return folder
  if not path.exists():
    raise FileNotFoundError(f'{path}: there is no such file or folder')
  for folder in folders:
    for here, gone in ((DESCRIPTION, WEIGHTS), (WEIGHTS, DESCRIPTION)):
      if (folder / here).is_file() and (folder != path or (path / here).name == WEIGHTS):
        raise FileNotFoundError(f'{folder / gone} is missing')
  if (path / DESCRIPTION).is_file():
    raise FileNotFoundError(f'{path} has no {WEIGHTS}: if it is a run, let its training finish')
  raise FileNotFoundError(f'{path}: no run or bundle there')


def flat(tree: Any) -> dict[str, Any]:
  """A tree as {'encoder/norm/scale': leaf}."""
  named: dict[str, Any] = {}
  models.map_named(named.setdefault, tree)
  return named


def tupled(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
