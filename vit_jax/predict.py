"""Using a trained model: `load` it, then `predict`, `features`, `attention`; and `vit predict`.

N images, K classes, F pre-logits.
"""

import dataclasses
import functools
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import jax
import numpy as np

from vit_jax import analysis, bundle
from vit_jax.images import transforms
from vit_jax.sources import describe_passed_over, folder
from vit_jax.tasks import Params
from vit_jax.text import to_stderr

BATCH = 32  # images at a time
Source = str | os.PathLike[str] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Run(bundle.Bundle):
  """A trained model, ready to use: see `bundle.Bundle` for its fields.

  Images are given as a path, an array (H, W, C) uint8, or a list of these: C is the channels that
  the model takes, `preprocess.channels`, or 1 where these are 3.
  """

  def predict(self, images: Source | Sequence[Source], *, top: int = 5) -> list[Any]:
    """The most likely classes.

    Args:
      images: one image, or a list of them.
      top: how many classes.

    Returns:
      [{'label': 'rose', 'score': 0.98}, ...] for one image, best first, and a list of such lists
      for several. Scores are probabilities: of all classes together, or of each by itself where
      the model was trained with the sigmoid loss.

    Raises:
      FileNotFoundError, ValueError: for a file that is not there, no image, or a model without
        classes.
    """
    if top < 1:
      raise ValueError(f'top must be at least 1, got {top}')
    self.check_classes()
    if isinstance(images, (str, os.PathLike, np.ndarray)):
      return self.predict([images], top=top)[0]
    scores = self.forward([self.prepared(image) for image in images])['scores']
    return [self.ranked(row, top) for row in scores]

  def check_classes(self) -> None:
    """Raises ValueError for a model whose logits are no classes', or are of patches."""
    if not self.classes:
      raise ValueError(f'{self.name} has no head here: it gives features, but names no classes')
    if not self.names_images:
      raise ValueError(f"{self.name} has pool 'none': it names classes of patches, not of an image")

  def features(self, images: Source | Sequence[Source]) -> np.ndarray:
    """What the head reads, float32: (F,) for one image, (N, F) for a list.

    On one device; `vit_jax.evaluate.features.extract` uses all, for a data set or many files.
    """
    if isinstance(images, (str, os.PathLike, np.ndarray)):
      return self.features([images])[0]
    parts = [
      self.forward([self.prepared(image) for image in images[start : start + BATCH]])
      for start in range(0, max(len(images), 1), BATCH)  # so that few images are in memory
    ]
    return np.concatenate([part['pre_logits'] for part in parts])

  @overload  # a str is a sequence of str too, but taken for one path
  def attention(self, images: Source) -> analysis.Attention: ...  # type: ignore[overload-overlap]
  @overload
  def attention(self, images: Sequence[Source]) -> list[analysis.Attention]: ...
  def attention(
    self, images: Source | Sequence[Source]
  ) -> analysis.Attention | list[analysis.Attention]:
    """The attention weights of every head of every layer.

    `.weights` is (L, A, T, T); `.maps()` and `.rollout_maps()` are by patch. A list of images gives
    a list. All weights of an image are in memory at once: 22 MB for B/16 at 224 pixels, 4 GB for
    H/14 at 518, for which `vit inspect` has what pictures need.

    Raises:
      FileNotFoundError, ValueError: for a file that is not there, no image, or a model without
        attention.
    """
    analysis.check_attention(self.model)
    if isinstance(images, (str, os.PathLike, np.ndarray)):
      return analysis.attention(self, self.prepared(images))
    return [analysis.attention(self, self.prepared(image)) for image in images]

  def export(self, path: str | os.PathLike[str], *, to: str = '', check: bool = True) -> list[str]:
    """Writes the model for others: 'flowers.stablehlo', 'flowers.onnx', 'flowers.npz', or a folder.

    A folder gets the card of the run. `vit_jax.export.write` says what the arguments are, what it
    raises, and what the lines tell.
    """
    from vit_jax import export  # which no prediction needs

    return export.write(path, self, to=to, check=check)

  def ranked(self, scores: np.ndarray, top: int) -> list[dict[str, Any]]:
    """The `top` classes of (K,) scores, best first."""
    best = np.argsort(-scores, kind='stable')[:top]
    return [{'label': self.classes[k], 'score': float(scores[k])} for k in best]

  def prepared(self, image: Source) -> np.ndarray:
    """An image as the model takes it: uint8, the size of `preprocess`."""
    channels = self.preprocess.channels
    if not isinstance(image, np.ndarray):
      image = read_image(image, channels)
    fits = image.ndim == 3 and image.shape[2] in {channels, 1 if channels == 3 else channels}
    if image.dtype != np.uint8 or not fits or not image.size:
      raise ValueError(f'an image is uint8 (H, W, {channels}), not {image.dtype} {image.shape}')
    return np.ascontiguousarray(self.transform(image, np.random.default_rng(0)))

  def forward(
    self, prepared: Sequence[np.ndarray], *, batch_size: int = BATCH
  ) -> dict[str, np.ndarray]:
    """'scores' (N, K) and 'pre_logits' (N, F) of prepared images, in batches of one shape."""
    results: list[dict[str, np.ndarray]] = []
    for start in range(0, len(prepared), batch_size):
      rows = np.stack(prepared[start : start + batch_size])
      size = min(batch_size, 1 << (len(rows) - 1).bit_length())  # few shapes, so few compilations
      padding = np.zeros((size - len(rows), *rows.shape[1:]), np.uint8)
      outputs = jax.device_get(self.apply(self.params, np.concatenate([rows, padding])))
      results.append({name: values[: len(rows)] for name, values in outputs.items()})
    if not results:
      raise ValueError('no images')
    return {name: np.concatenate([outputs[name] for outputs in results]) for name in results[0]}

  @functools.cached_property
  def transform(self) -> transforms.Step:
    return self.preprocess.transform

  @functools.cached_property
  def apply(self) -> Callable[[Params, np.ndarray], dict[str, jax.Array]]:
    """(params, uint8 images) -> 'scores' and 'pre_logits', jitted."""

    def apply(params: Params, images: jax.Array) -> dict[str, jax.Array]:
      preprocess = self.preprocess
      logits, out = bundle.forward(
        self.model, params, images, mean=preprocess.mean, std=preprocess.std
      )
      scores = getattr(jax.nn, self.scores)(logits)
      return {'scores': scores, 'pre_logits': out['pre_logits'].astype('float32')}

    return jax.jit(apply)


def load(path: str | os.PathLike[str], checkpoint: str = '') -> Run:
  """A model from a run's folder, a bundle, or any published checkpoint.

  Args:
    path: of it.
    checkpoint: which state of a run: 'best', 'latest' or a step; see `bundle.read`.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged, or of no kind that `docs/checkpoints.md` lists.
  """
  bundled = bundle.read(path, checkpoint)
  return Run(**vars(bundled) | {'params': jax.device_put(bundled.params)})


def read_image(path: str | os.PathLike[str], channels: int = 3) -> np.ndarray:
  """An image file as (H, W, C) uint8; its errors name the file."""
  try:
    if os.path.isdir(path):
      raise ValueError('no images in this folder')
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
      raise ValueError('not a regular file')
    return transforms.decode(pathlib.Path(path).read_bytes(), channels)
  except ValueError as error:
    raise ValueError(f'{os.fspath(path)}: {error}') from None
  except FileNotFoundError:
    raise FileNotFoundError(f'{os.fspath(path)}: there is no such file') from None
  except OSError as error:
    raise ValueError(f'{os.fspath(path)}: {error.strerror}') from None


def image_files(paths: Iterable[str], *, say: Callable[[str], object] = to_stderr) -> list[str]:
  """The paths, with each folder replaced by the images below it, in order of their names.

  They are those that 'folder:' reads, wherever they lie. A folder without images stays, and is
  reported as a file that is no image.

  Args:
    paths: files and folders.
    say: takes a line of what is passed over in each folder.

  Raises:
    ValueError: if links lead out of a folder.
  """
  result: list[str] = []
  for path in paths:
    if not os.path.isdir(path):
      result.append(path)
      continue
    walk = folder.Walk(os.fsencode(os.path.realpath(path)))
    images = [name for names in walk.images_below(b'') for name in names]
    walk.check_links()
    result += sorted(os.path.join(path, os.fsdecode(name)) for name in images) or [path]
    if line := describe_passed_over(walk.passed_over):
      say(f'{path}: {line}')
  return result
