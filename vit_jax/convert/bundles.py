"""Our own form of a model on disk: a folder with `model.safetensors` and `config.json`."""

import contextlib
import pathlib

import numpy as np

from vit_jax import files, models
from vit_jax.convert import decoders, weights
from vit_jax.convert.engine import Checkpoint
from vit_jax.convert.resample import DEFAULT_RULE, RULES
from vit_jax.guards import seals

WEIGHTS, DESCRIPTION = 'model.safetensors', 'config.json'
FORMAT = 1
SCORES = ('softmax', 'sigmoid')
# Fields that a bundle leaves out: a device decides how to compute, and its head is initialised.
OMITTED = (*models.COMPUTE, 'head_init')


def read(folder: pathlib.Path) -> Checkpoint:
  """The checkpoint in the two files of a bundle's folder."""
  check_format(folder)
  check_weights(folder)
  description, arrays = files.read_object(folder / DESCRIPTION), weights.read(folder / WEIGHTS)
  return described(description, arrays, file=folder / DESCRIPTION, path=folder / WEIGHTS)


def described(
  description: files.JSON, arrays: weights.Arrays, *, file: pathlib.Path, path: pathlib.Path
) -> Checkpoint:
  """The checkpoint that arrays are by a description, which is read from `file`; they are at `path`.

  Raises:
    ValueError: if it does not describe a model.
  """
  try:
    fields = {field: models.tupled(value) for field, value in description['model'].items()}
    preprocess = {f: models.tupled(value) for f, value in description['preprocess'].items()}
    name = fields.pop('name')
    complete = models.fields(models.build(name, **fields))  # with the defaults of today
    arrays = {name: np.array(array, np.float32) for name, array in arrays.items()}
    decoder = None
    if (decoding := description.get('decoder')) is not None:
      arrays, decoder_arrays = decoders.split(arrays)
      decoder = decoders.described(decoding, decoder_arrays, width=complete['width'])
    return Checkpoint(
      path=str(path),
      dialect='vit_jax',
      name=name,
      fields={field: value for field, value in complete.items() if field not in OMITTED},
      arrays=arrays,
      size=as_size(preprocess['size']),
      classes=tuple(description['classes']),
      preprocess=preprocess,
      scores=as_scores(description.get('scores', 'softmax')),
      resample=as_rule(description.get('resample', DEFAULT_RULE)),
      decoder=decoder,
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{file} does not describe a model: {error}') from None


def check_format(folder: pathlib.Path) -> None:
  """Raises ValueError if a bundle is of a newer version of this package."""
  number = None
  with contextlib.suppress(OSError, ValueError):  # `read` says what is wrong with it
    number = files.read_object(folder / DESCRIPTION).get('format')
  seals.check_format(folder / DESCRIPTION, number, FORMAT)


def check_weights(folder: pathlib.Path) -> None:
  """Raises ValueError if a bundle's weights are not as they were sealed; many have no seal."""
  with contextlib.suppress(seals.Broken):
    sealed = seals.read(folder).files.get(WEIGHTS)
    if sealed and seals.checksum(folder / WEIGHTS) != sealed:
      advice = f'if it was changed on purpose, remove {seals.FILE}'
      raise ValueError(f'{folder / WEIGHTS} is damaged: it is not as it was written; {advice}')


def as_scores(scores: object) -> str:
  """Raises ValueError if it is no way from logits to scores."""
  if not isinstance(scores, str) or scores not in SCORES:
    raise ValueError(f'scores are {scores!r}, not {" or ".join(SCORES)}')
  return scores


def as_rule(rule: object) -> str:
  """Raises ValueError if it is no rule for a table of positions."""
  if not isinstance(rule, str) or rule not in RULES:
    raise ValueError(f'resample is {rule!r}, none of {", ".join(RULES)}')
  return rule


def as_size(size: object) -> tuple[int, int]:
  """Raises ValueError if it is no height and width."""
  if not isinstance(size, tuple) or [type(side) for side in size] != [int, int]:
    raise ValueError(f'preprocess size is {size}, not a height and a width')
  return size


def exists(folder: pathlib.Path) -> bool:
  """Whether the folder has both files of a bundle."""
  return (folder / DESCRIPTION).is_file() and (folder / WEIGHTS).is_file()


def candidates(path: pathlib.Path) -> list[pathlib.Path]:
  """Where a path's bundle may be: beside the file, or in the folder of a run or of the bundle."""
  return [path.parent] if path.is_file() else [path / 'model', path]


def folder_of(path: pathlib.Path) -> pathlib.Path | None:
  """The folder of the bundle that a path means; None where another's checkpoint is there."""
  for folder in candidates(path):
    if exists(folder) and (not path.is_file() or path.name in (DESCRIPTION, WEIGHTS)):
      try:
        foreign = 'format' not in files.read_object(folder / DESCRIPTION)
      except ValueError:
        foreign = False  # `read` says what is wrong with it
      if not foreign or folder == path / 'model':
        return folder
  return None


def missing(path: pathlib.Path) -> str:
  """What a path lacks of a run or bundle; '' if it is neither."""
  for folder in candidates(path):
    present = [name for name in (DESCRIPTION, WEIGHTS) if (folder / name).is_file()]
    if len(present) == 1 and folder != path:
      return f'{folder / (WEIGHTS if present == [DESCRIPTION] else DESCRIPTION)} is missing'
  return ''
