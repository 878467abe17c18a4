"""A model on disk: `model.safetensors` with the parameters, `config.json` with all else."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax import convert, models
from vit_jax.convert import adapt, files
from vit_jax.convert import preprocess as lines
from vit_jax.data import transforms

FORMAT = 1
WEIGHTS, DESCRIPTION = 'model.safetensors', 'config.json'
HOW = ('dtype', 'unroll', 'remat')  # fields that say how to compute, which a device decides


def tell(text: str) -> None:
  """Prints a report to standard error."""
  print(text, file=sys.stderr)


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

  model: models.Model
  params: Any
  classes: tuple[str, ...]
  preprocess: Preprocess
  name: str


def write(folder: str | os.PathLike[str], bundle: Bundle) -> None:
  """Writes a bundle, whole or not at all: it appears under its name when it is complete."""
  folder = pathlib.Path(folder)
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  files.write_safetensors(partial / WEIGHTS, flat(jax.device_get(bundle.params)))
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


def read(path: str | os.PathLike[str], *, native: bool = False) -> Bundle:
  """The bundle in a folder, in the `model` folder of a run, or made of a published checkpoint.

  Args:
    path: of the folder or file.
    native: for images of the size that the table of positions is for, where the file's
      preprocessing names another, so that no array is resampled.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged, or of no dialect that `vit_jax.convert` knows.
  """
  source = opened(path)
  own = source.dialect == 'vit_jax' and source.preprocess
  told_by = pathlib.Path(source.path).with_name(DESCRIPTION) if own else source.path
  try:
    model = models.build(source.name, dtype=models.device_dtype(), **source.fields)
    preprocess = Preprocess(**({'steps': 'resize', 'size': source.size} | source.preprocess))
    if native and preprocess.size != source.size:
      steps = lines.scaled(preprocess.steps, preprocess.size, source.size)
      preprocess = dataclasses.replace(preprocess, steps=steps, size=source.size)
    check(model, preprocess, source.classes)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{told_by} does not describe a model: {error}') from None
  params, _ = adapt.params(source, model, image_size=preprocess.size, new_head=None)
  return Bundle(model, params, source.classes, preprocess, source.name)


def opened(path: str | os.PathLike[str], *, heads: int | None = None) -> convert.Checkpoint:
  """The checkpoint at a path: a bundle's, a run's, or any that `convert.read` knows."""
  folder = own_folder(pathlib.Path(path))
  if folder is None:
    try:
      return convert.read(path, heads=heads)
    except FileNotFoundError:
      find(path)  # says what a run or bundle lacks
      raise
  description, arrays = files.read_object(folder / DESCRIPTION), files.read(folder / WEIGHTS)
  try:
    fields = {field: tupled(value) for field, value in description['model'].items()}
    preprocess = {field: tupled(value) for field, value in description['preprocess'].items()}
    name = fields.pop('name')
    told = models.fields(models.build(name, **fields))
    return convert.Checkpoint(
      path=str(folder / WEIGHTS),
      dialect='vit_jax',
      name=name,
      fields={field: value for field, value in told.items() if field not in HOW},
      arrays={name: np.array(array, np.float32) for name, array in arrays.items()},
      size=pair(preprocess['size']),
      classes=tuple(description['classes']),
      preprocess=preprocess,
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{folder / DESCRIPTION} does not describe a model: {error}') from None


def pair(size: Any) -> tuple[int, int]:
  """Raises ValueError if it is no height and width."""
  if not isinstance(size, tuple) or [type(side) for side in size] != [int, int]:
    raise ValueError(f'preprocess size is {size}, not a height and a width')
  return size


def own_folder(path: pathlib.Path) -> pathlib.Path | None:
  """The folder of our own bundle that a path means; None where something else is there."""
  for folder in [path.parent] if path.is_file() else [path / 'model', path]:
    if exists(folder) and (not path.is_file() or path.name in (DESCRIPTION, WEIGHTS)):
      try:
        foreign = 'format' not in files.read_object(folder / DESCRIPTION)
      except ValueError:
        foreign = False  # it is read again, and told
      if not foreign or folder == path / 'model':
        return folder
  return None


def check(model: models.Model, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
  """Raises ValueError for the first part of a bundle that does not fit the others."""
  if len(classes) != model.num_classes:
    raise ValueError(f'{len(classes)} classes for a head of {model.num_classes}')
  models.check_size(model, pair(preprocess.size))
  for name in ('mean', 'std'):
    if len(getattr(preprocess, name)) != 3:
      raise ValueError(f'preprocess {name} is {getattr(preprocess, name)}, not three numbers')
  transforms.compose(preprocess.steps, preprocess.size)


def load_params(
  path: str | os.PathLike[str],
  model: models.Model,
  *,
  image_size: int | tuple[int, int] | None = None,
  channels: int = 3,
  resample: str | None = None,
  new_head: bool = False,
  report: Callable[[str], object] | None = tell,
) -> Any:
  """The parameters of a model from any checkpoint, as a tree of float32 arrays.

  Takes Google's and big_vision's .npz, timm's, torchvision's and Hugging Face's files, and our own
  runs and bundles (docs/checkpoints.md lists them). Positions are resampled to the image size,
  the patch kernel to the model's patch and channels; class token, its position, the last norm and
  the head become the model's. A head for another number of classes starts at zero.

  Args:
    path: of the file or folder.
    model: which they are for.
    image_size: (height, width) in pixels that it will take, or one number for both; None is the
      size that the checkpoint is for.
    channels: of the images.
    resample: 'bilinear_align_corners' (Google), 'bicubic_antialias' (timm), 'bicubic' (Hugging
      Face), 'bicubic_align_corners' (torchvision) or another of `convert.resample.RULES`; None is
      that of the checkpoint's own kind.
    new_head: start with a head of zeros even if the checkpoint's fits.
    report: takes the text that says what was loaded, renamed, resampled, reset and dropped; by
      default it goes to standard error if the checkpoint is not of ours, or was changed.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: one that names every missing, unexpected and misshapen array.
  """
  source = opened(path, heads=getattr(model, 'heads', None))
  height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size or source.size
  params, done = adapt.params(
    source,
    model,
    image_size=(height, width),
    channels=channels,
    rule=resample,
    new_head=new_head,
  )
  if report is not None and (source.dialect != 'vit_jax' or done.changed or report is not tell):
    report(str(done))
  return params


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
  raise FileNotFoundError(f'{path}: no run, bundle or other checkpoint there')


def flat(tree: Any) -> dict[str, Any]:
  """A tree as {'encoder/norm/scale': leaf}."""
  named: dict[str, Any] = {}
  models.map_named(named.setdefault, tree)
  return named


def tupled(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
