"""What is served: a run, a bundle, a published checkpoint, or an exported StableHLO program.

B images in a batch, H, W pixels and C channels of one, K classes, F pre-logits.
"""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from vit_jax import export, models, predict
from vit_jax.images import transforms
from vit_jax.serving.batching import Rows, Step
from vit_jax.text import quantity


@dataclasses.dataclass(frozen=True)
class Served:
  """A model as the server uses it.

  Fields:
    title: its name for people, without folders.
    path: of it.
    architecture: the name of the model.
    classes: the name of each label.
    shape: (H, W, C) of its images.
    step: uint8 (B, H, W, C) -> 'scores' (B, K), and of a run 'pre_logits' (B, F); jitted.
    transform: what an image goes through first.
    run: all of it; None of an exported program.
  """

  title: str
  path: str
  architecture: str
  classes: tuple[str, ...]
  shape: tuple[int, int, int]
  step: Step
  transform: transforms.Transform
  run: predict.Run | None

  def __str__(self) -> str:
    height, width, _ = self.shape
    classes = quantity(len(self.classes), 'class')
    return f'{self.title}: {self.architecture}, {classes}, {height}x{width} pixels'

  @property
  def no_looks(self) -> str:
    """Why it cannot be looked into; '' where it can."""
    if self.run is None:
      return 'an exported program answers, but cannot be looked into'
    ours = isinstance(self.run.model, models.Model)
    return '' if ours else f'{self.architecture} is no model of ours, to be looked into'

  def prepared(self, data: bytes) -> np.ndarray:
    """The file of an image as the model takes it, (H, W, C) uint8.

    Raises:
      ValueError: for what is no image, or too large a one.
    """
    pixels = transforms.decode(data, self.shape[2])
    return np.ascontiguousarray(self.transform(pixels, np.random.default_rng(0)))

  def ranked(self, scores: np.ndarray, top: int) -> list[dict[str, str | float]]:
    """The `top` classes of (K,) scores, best first.

    Raises:
      ValueError: for scores that are not finite.
    """
    if not np.isfinite(scores).all():
      raise ValueError('the model gives scores that are not finite')
    best = np.argsort(-scores, kind='stable')[:top]
    return [{'label': self.classes[k], 'score': float(scores[k])} for k in best]


def load(path: str | os.PathLike[str], checkpoint: str = '') -> Served:
  """What is at a path, by its suffix.

  Args:
    path: of it.
    checkpoint: which state of a run, see `vit_jax.load`.

  Raises:
    FileNotFoundError: if nothing is there.
    ValueError: if it is damaged, of no kind that can be served, has no classes, or has parameters
      that are not finite; for a state that a run has not, or of a program.
  """
  if pathlib.Path(path).suffix != '.stablehlo':
    return of_run(path, checkpoint)
  if checkpoint:
    raise ValueError(f'{os.fspath(path)} is an exported program, which has no checkpoints')
  return of_program(path)


def of_run(path: str | os.PathLike[str], checkpoint: str) -> Served:
  """A run, a bundle or a published checkpoint."""
  run = predict.load(path, checkpoint)
  run.check_classes()
  if run.not_finite:
    raise ValueError(f'{os.fspath(path)}: {run.not_finite}')
  return wrapped(run, path)


def wrapped(run: predict.Run, path: str | os.PathLike[str]) -> Served:
  """A model that is loaded, from a path."""

  def step(images: np.ndarray) -> Rows:
    return jax.device_get(run.apply(run.params, images))

  return Served(
    title=title(path),
    path=os.fspath(path),
    architecture=run.name,
    classes=run.classes,
    shape=run.preprocess.shape,
    step=step,
    transform=run.preprocess.transform,
    run=run,
  )


def of_program(path: str | os.PathLike[str]) -> Served:
  """An exported program, with the JSON file beside it."""
  program = export.load(path)
  if not program.classes:
    raise ValueError(f'{os.fspath(path)} gives features: there are no classes to serve')
  return Served(
    title=title(path),
    path=os.fspath(path),
    architecture=program.model,
    classes=program.classes,
    shape=(*program.size, program.channels),
    step=lambda images: {'scores': program(images)},
    transform=transforms.compose(program.preprocess, program.size, program.channels),
    run=None,
  )


def title(path: str | os.PathLike[str]) -> str:
  """The last name of a path, 'flowers' of 'runs/flowers/'."""
  return pathlib.Path(os.path.abspath(path)).name
