"""Using a trained model: `load` it, then `predict`, `features`, `attention`; and `vit predict`.

N images, K classes, F pre-logits.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import jax
import numpy as np

from vit_jax import analysis, bundle, sharding
from vit_jax.evaluate.predictions import Prediction
from vit_jax.images import transforms
from vit_jax.models import Model, Params
from vit_jax.models.vit import ViT
from vit_jax.sources import loose
from vit_jax.sources.loose import Image, Loose
from vit_jax.text import progress

T = TypeVar('T')
MEMORY = 1 << 29  # bytes of a layer's values at a time
MANY = 100  # images above which a terminal sees a bar


def check_choice(top: int, threshold: float, prefix: str = '') -> None:
  """Raises ValueError for a number of classes or a least score that cannot be.

  `prefix` is before their names, as of flags.
  """
  if not isinstance(top, int | np.integer) or top < 1:
    raise ValueError(f'{prefix}top must be at least 1, and whole, got {top!r}')
  if not isinstance(threshold, int | float | np.number) or not 0 <= threshold <= 1:
    raise ValueError(f'{prefix}threshold must be in [0, 1], got {threshold!r}')


@dataclasses.dataclass(frozen=True, repr=False)
class Run(bundle.Bundle):
  """A trained model, ready to use: see `bundle.Bundle` for its fields.

  `predict`, `features` and `attention` take images as `sources.loose.listed` says: a path, folder,
  pattern, URL, the bytes of a file or it opened for these, a picture of Pillow, an array (H, W),
  (H, W, C) or (N, H, W, C) of uint8 or of floats from 0 to 1, or a list of any. C is the channels
  that the model takes, `preprocess.channels`, or 1 where these are 3. A generator gives an iterator
  of results, which reads so many images ahead as make a batch.
  """

  @overload
  def predict(
    self,
    images: Iterator[Image],
    *,
    top: int = ...,
    threshold: float = ...,
    batch_size: int | None = ...,
  ) -> Iterator[list[Prediction]]: ...
  @overload
  def predict(
    self,
    images: Image | Sequence[Image],
    *,
    top: int = ...,
    threshold: float = ...,
    batch_size: int | None = ...,
  ) -> list[Any]: ...
  def predict(
    self,
    images: Image | Iterable[Image],
    *,
    top: int = 5,
    threshold: float = 0.0,
    batch_size: int | None = None,
  ) -> list[Any] | Iterator[list[Prediction]]:
    """The most likely classes.

    Args:
      images: one image, or several.
      top: how many classes at most.
      threshold: the least score of a class, in [0, 1].
      batch_size: images at a time; by default as many as suit the model and its image size.

    Returns:
      [{'label': 'rose', 'score': 0.98}, ...] for one image, best first, and a list of such lists
      for several. Scores are probabilities: of all classes together, or of each by itself where
      the model was trained with the sigmoid loss.

    Raises:
      FileNotFoundError, ValueError: for a file that is not there, no image, or a model without
        classes.
    """
    check_choice(top, threshold)
    self.check_classes()
    return self.each(
      images,
      lambda items: (
        self.ranked(values['scores'], top, threshold)
        for _, values in self.outputs(items, batch_size)
      ),
    )

  def check_classes(self) -> None:
    """Raises ValueError for a model whose logits are no classes', or are of patches."""
    if not self.classes:
      raise ValueError(
        f'{self.name} has no head here, so it names no classes: vit features writes its features, '
        'vit search compares photos by them, and finetune:RUN,DATASET trains a head'
      )
    if not self.names_images:
      raise ValueError(f"{self.name} has pool 'none': it names classes of patches, not of an image")

  @overload
  def features(
    self, images: Iterator[Image], *, batch_size: int | None = ...
  ) -> Iterator[np.ndarray]: ...
  @overload
  def features(
    self, images: Image | Sequence[Image], *, batch_size: int | None = ...
  ) -> np.ndarray: ...
  def features(
    self, images: Image | Iterable[Image], *, batch_size: int | None = None
  ) -> np.ndarray | Iterator[np.ndarray]:
    """What the head reads, float32: (F,) for one image, (N, F) for several.

    On one device; `vit_jax.evaluate.features.extract` uses all, for a data set or many files.
    """
    result = self.each(
      images,
      lambda items: (values['pre_logits'] for _, values in self.outputs(items, batch_size)),
    )
    return np.stack(result) if isinstance(result, list) else result

  @overload
  def attention(self, images: Iterator[Image]) -> Iterator[analysis.Attention]: ...
  @overload  # a str is a sequence of str too, but taken for one path
  def attention(self, images: Image) -> analysis.Attention: ...  # type: ignore[overload-overlap]
  @overload
  def attention(self, images: Sequence[Image]) -> list[analysis.Attention]: ...
  def attention(
    self, images: Image | Iterable[Image]
  ) -> analysis.Attention | list[analysis.Attention] | Iterator[analysis.Attention]:
    """The attention weights of every head of every layer.

    `.weights` is (L, A, T, T); `.maps()` and `.rollout_maps()` are by patch. Several images give
    a list. All weights of an image are in memory at once: 22 MB for B/16 at 224 pixels, 4 GB for
    H/14 at 518, for which `vit inspect` has what pictures need.

    Raises:
      FileNotFoundError, ValueError: for a file that is not there, no image, or a model without
        attention.
    """
    analysis.check_attention(self.model)
    return self.each(
      images, lambda items: (analysis.attention(self, self.prepared(item)) for item in items)
    )

  def each(
    self,
    images: Image | Iterable[Image],
    results: Callable[[Iterable[Loose]], Iterator[T]],
  ) -> T | list[T] | Iterator[T]:
    """The results of images: of one itself, of several a list, of an iterator an iterator."""
    if isinstance(images, Iterator) and not loose.is_one(images):  # an open file is both
      return results(loose.listed(images))
    items = list(loose.listed(images))
    if not items:
      raise ValueError('no images')
    shown = progress(len(items), unit='images') if len(items) > MANY else contextlib.nullcontext()
    with shown as advance:
      values = []
      for value in results(items):
        values.append(value)
        if advance:
          advance(1)
    return values[0] if loose.is_one(images) else values

  def outputs(
    self,
    images: Iterable[Loose],
    batch_size: int | None = None,
    *,
    failed: list[str] | None = None,
  ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The name of each image, and its 'scores' (K,) and 'pre_logits' (F,).

    Args:
      images: of `loose.listed`; as many as make a batch are read ahead.
      batch_size: None for `images_at_a_time`.
      failed: gets a line for each image that cannot be read, which is left out; None raises.
    """
    if batch_size is not None and batch_size < 1:
      raise ValueError(f'the batch size must be at least 1, got {batch_size}')
    size = batch_size or images_at_a_time(self.model, self.preprocess.size)

    def prepared(image: Loose) -> np.ndarray | Exception:
      try:
        return self.prepared(image)
      except (ValueError, FileNotFoundError) as error:
        return error

    waiting = iter(images)
    with concurrent.futures.ThreadPoolExecutor() as threads:
      while chunk := list(itertools.islice(waiting, size)):
        good = []
        for image, pixels in zip(chunk, threads.map(prepared, chunk)):
          if isinstance(pixels, np.ndarray):
            good.append((image.name, pixels))
          elif failed is None:
            raise pixels
          else:
            failed.append(str(pixels))
        if good:
          values = self.forward([pixels for _, pixels in good], batch_size=size)
          for index, (name, _) in enumerate(good):
            yield name, {key: rows[index] for key, rows in values.items()}

  def export(self, path: str | os.PathLike[str], *, to: str = '', check: bool = True) -> list[str]:
    """Writes the model for others: 'flowers.stablehlo', 'flowers.onnx', 'flowers.npz', or a folder.

    A folder gets the card of the run. `vit_jax.export.write` says what the arguments are, what it
    raises, and what the lines tell.
    """
    from vit_jax import export  # which no prediction needs

    return export.write(path, self, to=to, check=check)

  def ranked(self, scores: np.ndarray, top: int, threshold: float = 0.0) -> list[Prediction]:
    """The `top` classes of (K,) scores that reach the threshold, best first."""
    best = np.argsort(-scores, kind='stable')[:top]
    predictions = (Prediction(label=self.classes[k], score=float(scores[k])) for k in best)
    return [prediction for prediction in predictions if not prediction['score'] < threshold]

  def prepared(self, image: Image | Loose) -> np.ndarray:
    """An image as the model takes it: uint8, the size of `preprocess`."""
    if not isinstance(image, Loose):
      image = loose.only(image)
    pixels = image.pixels(self.preprocess.channels)
    return np.ascontiguousarray(self.transform(pixels, np.random.default_rng(0)))

  def forward(
    self, prepared: Sequence[np.ndarray], *, batch_size: int | None = None
  ) -> dict[str, np.ndarray]:
    """'scores' (N, K) and 'pre_logits' (N, F) of prepared images, in batches of one shape."""
    batch_size = batch_size or images_at_a_time(self.model, self.preprocess.size)
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

    return jax.jit(sharding.for_mesh(apply, sharding.one_device()))


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


def images_at_a_time(model: Model, size: tuple[int, int]) -> int:
  """How many images of (height, width) a forward pass takes: a power of two, at most 256.

  It follows from what the widest layer has in memory: the hidden MLP, q, k, v and the attention
  weights of a ViT; of any other model 64 numbers for each pixel.
  """
  pixels = math.prod(size)
  floats = 64.0 * pixels
  if isinstance(model, ViT):
    tokens = pixels / math.prod(model.patch)
    floats = 16 * tokens * model.width + model.heads * tokens**2
  fit = MEMORY // int(4 * floats)
  return min(1 << (max(fit, 1).bit_length() - 1), 256)
