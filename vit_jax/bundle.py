"""A model on disk: `model.safetensors` with the parameters, `config.json` with all else.

N images, K classes.
"""

import dataclasses
import math
import numbers
import os
import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import convert, files, models
from vit_jax.convert import adapt, bundles, decoders, engine, writing
from vit_jax.convert.preprocess import Preprocess as Preprocess
from vit_jax.convert.preprocess import scale_steps
from vit_jax.convert.resample import DEFAULT_RULE
from vit_jax.guards import seals
from vit_jax.images import decoding, transforms
from vit_jax.models.decoder import TrainedDecoder
from vit_jax.text import error_line, quantity, to_stderr

CARD = 'README.md'
LARGEST = 1e30  # of a mean or deviation: its inverse is a float32 too


@dataclasses.dataclass(frozen=True, repr=False)
class Bundle:
  """A model with its parameters, class names and preprocessing.

  Fields:
    model: a flax module, as `vit_jax.build` gives it.
    params: its parameters, a tree of float32 arrays.
    classes: the name of each label.
    preprocess: of its images.
    name: the variant that `vit_jax.build` made it from.
    scores: what logits become: 'softmax', fractions of one, or 'sigmoid', where an image may be of
      several classes.
    resample: the rule for its positions at another image size, of `convert.resample.RULES`: that of
      the code which it comes from.
    card: the text of README.md in its folder; '' where there is none. It is of these parameters:
      who replaces them gives `card=''` too.
    step: of the run whose parameters these are, see `read`; None where they are no run's.
    decoder: that was trained beside it, of a masked autoencoder; None where there is none.
  """

  model: models.Model
  params: models.Tree
  classes: tuple[str, ...]
  preprocess: Preprocess
  name: str
  scores: str = 'softmax'
  resample: str = DEFAULT_RULE
  card: str = ''
  step: int | None = None
  decoder: TrainedDecoder | None = None

  def __repr__(self) -> str:
    size = 'x'.join(map(str, self.preprocess.size))
    classes = quantity(len(self.classes), 'class')
    return f'{type(self).__name__}({self.name}, {size} pixels, {classes})'

  @property
  def names_images(self) -> bool:
    """Whether logits are (N, K) of named classes: not without a head, nor with pool 'none'."""
    return bool(self.classes) and getattr(self.model, 'pool', '') != 'none'

  @property
  def not_finite(self) -> str:
    """A line on parameters that are not finite numbers; '' where all are."""
    params = models.flat(jax.device_get(self.params))
    counts = {name: int((~np.isfinite(leaf)).sum()) for name, leaf in params.items()}
    names = [name for name, count in counts.items() if count]
    total = sum(counts.values())
    verb = 'is' if total == 1 else 'are'
    described = f'{quantity(total, "parameter")} {verb} not finite'
    return f'{described}, the first of {names[0]}' if names else ''

  @property
  def defects(self) -> list[str]:
    """Why no answer means anything, a line each: parameters not finite, a head of zeros."""
    lines = [line for line in [self.not_finite] if line]
    params = models.flat(jax.device_get(self.params))
    heads = [leaf for name, leaf in params.items() if re.fullmatch(r'head(_dist)?/kernel', name)]
    if heads and not any(leaf.any() for leaf in heads):
      lines.append('the head is all zero: it gives the same scores for every image')
    return lines


def forward(
  model: models.Model,
  params: models.Tree,
  images: jax.Array,
  *,
  mean: Sequence[float],
  std: Sequence[float],
  variables: Mapping[str, models.Tree] = types.MappingProxyType({}),
  **options: Any,
) -> tuple[jax.Array, dict[str, Any]]:
  """Logits (N, K) of uint8 images (N, height, width, C), and the model's other outputs.

  `variables` are the model's beside its parameters; `options` are further arguments of its call, as
  `attention`.
  """
  images = normalize(images, mean, std)
  logits, out = model.apply({'params': params, **variables}, images, **options)
  return logits, dict(out)


def write(
  folder: str | os.PathLike[str], bundle: Bundle, origin: seals.Origin | None = None
) -> None:
  """Writes a bundle or a run, sealed, whole or not at all: it is there when it is complete.

  Its card is written last, as it is no part of the model. `origin` is of the run that it is of.
  """
  arrays = jax.device_get(saved_arrays(bundle))
  with files.staging(folder) as new:
    writing.write_files(new, arrays, {bundles.DESCRIPTION: describe(bundle)})
    seals.write(new, [bundles.WEIGHTS, bundles.DESCRIPTION], origin or seals.Origin())
  if bundle.card:
    with files.replacing(pathlib.Path(folder) / CARD) as file:
      file.write(bundle.card.encode())


def saved_arrays(bundle: Bundle) -> dict[str, Any]:
  """The arrays that a bundle's file has, by name: of its model, and of the decoder beside it."""
  decoder = {'decoder': bundle.decoder.params} if bundle.decoder else {}
  return models.flat({**bundle.params, **decoder})


def describe(bundle: Bundle) -> dict[str, Any]:
  """All of a bundle but its parameters and its card, as JSON."""
  fields = {k: v for k, v in models.fields(bundle.model).items() if k not in bundles.OMITTED}
  return {
    'format': bundles.FORMAT,
    'model': {'name': bundle.name, **fields},
    'preprocess': dataclasses.asdict(bundle.preprocess),
    'classes': list(bundle.classes),
    'scores': bundle.scores,
    'resample': bundle.resample,
    **({'decoder': decoders.describe(bundle.decoder)} if bundle.decoder else {}),
  }


def read(path: str | os.PathLike[str], checkpoint: str = '', *, native: bool = False) -> Bundle:
  """The bundle in a folder, of a run at any time, or made of a published checkpoint.

  A line on standard error says which state of a run it is, where that is not its model.

  Args:
    path: of the folder or file, or its URL.
    checkpoint: of a run: 'best', 'latest' or a step. '' is the model of a finished run; of another
      the best by its evaluations so far, and before the first of them the newest.
    native: for images of the size that the table of positions is for, where the file's
      preprocessing names another, so that no array is resampled.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged, or of no dialect that `vit_jax.convert` knows; for a state that a
      run has not.
  """
  source = convert.read(path, checkpoint=checkpoint)
  for line in lines_about(source):
    to_stderr(line)
  return from_checkpoint(source, native=native)


def lines_about(checkpoint: convert.Checkpoint) -> list[str]:
  """What a user should know of what was read."""
  stage = [checkpoint.stage] if checkpoint.stage else []
  return stage + [f'{checkpoint.path}: {note}' for note in checkpoint.notes]


def from_checkpoint(checkpoint: convert.Checkpoint, *, native: bool = False) -> Bundle:
  """The bundle that a checkpoint is; see `read`."""
  folder, file = os.path.split(checkpoint.path)
  is_bundle = file == bundles.WEIGHTS and checkpoint.dialect == 'vit_jax' and checkpoint.preprocess
  description = pathlib.Path(folder, bundles.DESCRIPTION) if is_bundle else checkpoint.path
  try:
    fields = models.default_fields(checkpoint.name) | checkpoint.fields
    model = models.build(checkpoint.name, **fields)
    preprocess = Preprocess(**{'steps': 'resize', 'size': checkpoint.size, **checkpoint.preprocess})
    channels = engine.channels(checkpoint.arrays) or preprocess.channels
    if preprocess.channels != channels:
      raise ValueError(f'preprocess mean is for {preprocess.channels} channels, not {channels}')
    if native and preprocess.size != checkpoint.size:
      steps = scale_steps(preprocess.steps, preprocess.size, checkpoint.size)
      preprocess = dataclasses.replace(preprocess, steps=steps, size=checkpoint.size)
    check(model, preprocess, checkpoint.classes)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{description} does not describe a model: {error}') from None
  params, _ = adapt.params(
    checkpoint, model, image_size=preprocess.size, channels=preprocess.channels, new_head=None
  )
  card = ''  # others' is of their library
  if is_bundle and pathlib.Path(folder, CARD).is_file():
    card = pathlib.Path(folder, CARD).read_text('utf-8', errors='replace')
  return Bundle(
    model,
    params,
    checkpoint.classes,
    preprocess,
    checkpoint.name,
    scores=checkpoint.scores,
    resample=checkpoint.resample,
    card=card,
    step=checkpoint.step,
    decoder=checkpoint.decoder,
  )


def check_model(model: nn.Module, shape: tuple[int, int, int]) -> None:
  """Raises ValueError for a model from elsewhere that does not answer as ours do, on shapes alone.

  It must take (1, height, width, channels) images, and give float32 (1, K) and a dict with
  'pre_logits'.
  """
  if isinstance(model, models.Model):
    return
  images = jax.ShapeDtypeStruct((1, *shape), np.float32)
  try:
    answer, _ = jax.eval_shape(model.init_with_output, jax.eval_shape(jax.random.key, 0), images)
  except (Exception, SystemExit) as error:  # whatever it does
    raise ValueError(f'the model fails: {error_line(error)}') from error
  fine = isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)
  if not fine or 'pre_logits' not in answer[1]:
    raise ValueError("the model must give (logits, a dict with 'pre_logits')")
  if answer[0].shape[:1] != (1,) or answer[0].ndim != 2 or answer[0].dtype != np.float32:
    logits = f'{answer[0].dtype} {answer[0].shape}'
    raise ValueError(f'the model gives logits {logits}, must give float32 (1, K)')


def check(model: models.Model, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
  """Raises ValueError for the first part of a bundle that does not fit the others."""
  if len(classes) != model.num_classes:
    raise ValueError(f'{len(classes)} classes for a head of {model.num_classes}')
  models.check_size(model, bundles.as_size(preprocess.size))
  for name, low in (('mean', -LARGEST), ('std', 1 / LARGEST)):
    values = getattr(preprocess, name)
    fine = isinstance(values, tuple | list) and all(type(value) in (int, float) for value in values)
    if not fine or not values or not all(low <= value <= LARGEST for value in values):
      more = ' above 0' if low > 0 else ''
      raise ValueError(
        f'preprocess {name} is {values}, not three finite numbers{more}, or as many as channels'
      )
  if len(preprocess.mean) != len(preprocess.std):
    counts = f'{len(preprocess.mean)} channels, std for {len(preprocess.std)}'
    raise ValueError(f'preprocess mean is for {counts}')
  check_model(model, preprocess.shape)
  check_steps(preprocess.steps)
  transforms.compose(preprocess.steps, preprocess.size, preprocess.channels)


def check_steps(steps: object) -> None:
  """Raises ValueError for a line whose images would not fit into memory."""
  if not isinstance(steps, str):
    raise ValueError(f'preprocess steps are {steps!r}, not a line of text')
  for step in steps.split('|'):
    sides = [int(number) for number in re.findall(r'(?<![\w.])\d+(?![\w.])', step)[:2]]
    if math.prod(sides * 2 if len(sides) == 1 else sides) > decoding.MAX_PIXELS:
      raise ValueError(f'{step.strip()!r} gives more than {decoding.MAX_PIXELS:,} pixels')


def load_params(
  path: str | os.PathLike[str],
  model: models.Model,
  *,
  image_size: int | tuple[int, int] | None = None,
  channels: int | None = None,
  resample: str | None = None,
  new_head: bool = False,
  classes: Sequence[str] = (),
  seed: int = 0,
  report: Callable[[str], object] | None = to_stderr,
) -> models.Tree:
  """The parameters of a model from any checkpoint, as a tree of float32 arrays.

  Takes Google's and big_vision's .npz, timm's, torchvision's and Hugging Face's files, and our own
  runs and bundles (docs/checkpoints.md lists them). Positions are resampled to the image size,
  the patch kernel to the model's patch and channels; class token, its position, the last norm and
  the head become the model's. A head for another number of classes starts as the model's
  `head_init` says, at zero if it says nothing.

  Args:
    path: of the file or folder, or its URL.
    model: which they are for.
    image_size: (height, width) in pixels that it will take, or one number for both; None is the
      size that the checkpoint is for.
    channels: of the images; None is those of the checkpoint, 3 where no kernel tells.
    resample: 'bilinear_align_corners' (Google), 'bicubic_antialias' (timm), 'bicubic' (Hugging
      Face), 'bicubic_align_corners' (torchvision) or another of `convert.resample.RULES`; None is
      that of the checkpoint's own kind, which a bundle keeps.
    new_head: start with a new head even if the checkpoint's fits.
    classes: the names of the model's classes, in whose order the columns of a head that fits are
      then put; by default they stay in the checkpoint's.
    seed: of a new head that is random.
    report: takes the text that says what was loaded, renamed, resampled, reset and dropped; by
      default it goes to standard error if the checkpoint is not of ours, or was changed.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: one that names every missing, unexpected and misshapen array; for a head of other
      classes than those named.
  """
  check_arguments(model, channels, resample, seed, classes)
  size = None if image_size is None else height_width(image_size)
  source = convert.read(path, heads=getattr(model, 'heads', None), image_size=size)
  params, changes = adapt.params(
    source,
    model,
    image_size=size or source.size,
    channels=channels or engine.channels(source.arrays) or 3,
    rule=resample,
    new_head=new_head,
    classes=classes,
    seed=seed,
  )
  if report is not None and (
    source.dialect != 'vit_jax' or source.stage or changes.changed or report is not to_stderr
  ):
    report(str(changes))
  return params


def height_width(image_size: object) -> tuple[int, int]:
  """(height, width) of one whole number, or two; ValueError for anything else."""
  sides = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size,) * 2
  if len(sides) != 2 or not all(is_whole(side) and side > 0 for side in sides):
    raise ValueError(f'image_size is {image_size!r}, not one or two numbers of pixels')
  return (int(sides[0]), int(sides[1]))


def check_arguments(
  model: object, channels: object, resample: object, seed: object, classes: Sequence[str]
) -> None:
  """Raises ValueError for an argument of `load_params` of a wrong kind."""
  if not isinstance(model, nn.Module):
    advice = f': vit_jax.build({model!r}) gives one' if isinstance(model, str) else ''
    raise ValueError(f'model is {model!r:.80}, not a model{advice}')
  if channels is not None and (not is_whole(channels) or channels < 1):
    raise ValueError(f'channels is {channels!r}, not a whole number from 1 on')
  if not is_whole(seed):
    raise ValueError(f'seed is {seed!r}, not a whole number')
  if resample is not None and not isinstance(resample, str):
    raise ValueError(f'resample is {resample!r}, not the name of a rule')
  count = getattr(model, 'num_classes', 0)
  if classes and len(classes) != count:
    raise ValueError(f'{len(classes)} classes are named, the model has {count}')


def is_whole(value: object) -> TypeGuard[int]:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """uint8 images to float32 (x / 255 - mean) / std; mean = std = 0.5 gives [-1, 1]."""
  mean_255, std_255 = (255 * jnp.asarray(x).reshape(1, 1, 1, -1) for x in (mean, std))
  return (images.astype(jnp.float32) - mean_255) / std_255
