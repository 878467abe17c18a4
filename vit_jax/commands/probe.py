"""`vit probe`: what frozen features tell apart, of images by labels or of patches by masks."""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax import analysis, bundle, files, models
from vit_jax.commands import evaluate, warn
from vit_jax.commands.features import check_out
from vit_jax.evaluate import segmentation
from vit_jax.sources import loose, masks
from vit_jax.sources.masks import IGNORED, MaskedImage
from vit_jax.text import columns, percent, progress, quantity, to_stdout
from vit_jax.views import pictures

IMAGES, MASKS = 'images', 'masks'  # folders of a data set with masks
PATCHES = 200_000  # that a layer is fitted to, at most, evenly over all
SHOWN = 4  # images of the picture
CHUNK = 16  # images whose tokens are held beside those of the patches chosen


@dataclasses.dataclass(frozen=True)
class Example:
  """An image as the model takes it, its tokens (R, C, D), and its mask (H, W)."""

  pixels: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray


def run(args: argparse.Namespace) -> int:
  folders = mask_folders(args)
  if folders is None:
    return evaluate.run(args)
  check(args)
  values, picture = segment(args, *folders)
  if args.out:
    files.write_json(pathlib.Path(args.out), values)
    with files.replacing(pathlib.Path(args.out).with_suffix('.png')) as file:
      file.write(picture)
  if args.format == 'json':
    print(files.as_json(values))
  else:
    to_stdout(*lines(values))
  return 0


def check(args: argparse.Namespace) -> None:
  """Raises ValueError for flags that are not for masks, before anything is computed."""
  if args.method != 'linear':
    raise ValueError(f'masks are learned by --method linear, not {args.method}')
  if not args.on:
    raise ValueError('masks want the folder of their images by --on')
  for flag in ('preprocess', 'split'):
    if getattr(args, flag):
      raise ValueError(
        f'--{flag} is for images with labels: masks are of whole images, all of them'
      )
  if pathlib.Path(args.out).suffix == '.png':
    raise ValueError(f'--out {args.out} is for the numbers, as .json: a picture is put beside them')
  check_out(args.out)


def mask_folders(args: argparse.Namespace) -> tuple[str, str] | None:
  """The folders of images and of masks; None for what has labels."""
  if args.masks:
    return args.on, args.masks
  folders = os.path.join(args.on, IMAGES), os.path.join(args.on, MASKS)
  has_masks = args.on and os.path.isdir(folders[1])
  return folders if args.classes or has_masks else None


def segment(args: argparse.Namespace, images: str, folder: str) -> tuple[dict[str, Any], bytes]:
  """Fits a layer to the training masks, and measures it on the others; with a picture of some."""
  model = whole_images(bundle.read(args.model, args.checkpoint))
  for line in model.defects:
    warn('probe', line)
  splits = masks.open_pairs(images, folder)
  classes = check_masks(splits, args.classes)
  total = sum(map(len, splits.values()))
  with progress(total, description='patches', unit='images') as advance:
    layer, c = learn(model, splits['train'], len(classes), advance)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for example in examples(model, splits['test'], advance):
      prediction = segmentation.segmented(layer(example.tokens), example.mask.shape)
      counts += segmentation.confusion(example.mask, prediction, len(classes))
      if len(shown) < SHOWN:
        shown.append((example.pixels, example.mask, prediction))
  scores = segmentation.scores(counts)
  values = {
    'model': args.model,
    'step': model.step,
    'source': args.on,
    'train_count': len(splits['train']),
    'count': len(splits['test']),
    'C': c,
    **scores,
    'classes': list(classes),
  }
  title = f'linear segmentation of patches, mean IoU {percent(scores["mean_iou"])}'
  pixels, truths, predictions = zip(*shown)
  return values, pictures.segmentations(pixels, truths, predictions, classes, title)


def whole_images(model: bundle.Bundle) -> bundle.Bundle:
  """The model, which takes no crop of an image; ValueError for one that is none of ours."""
  if not isinstance(model.model, models.Model):
    raise ValueError(f'{model.name} gives no tokens of patches: only our own models do')
  return dataclasses.replace(
    model, preprocess=dataclasses.replace(model.preprocess, steps='resize')
  )


def check_masks(splits: dict[str, list[MaskedImage]], file: str) -> tuple[str, ...]:
  """The classes, after a look at every mask; without a file as many as the masks have.

  Raises:
    ValueError: for the first mask that has no indices, or one beyond the classes.
  """
  names = masks.read_classes(file) if file else ()
  largest = 0
  for pair in (pair for pairs in splits.values() for pair in pairs):
    indices = masks.read_mask(pair.mask)
    masks.check_indices(indices, pair.mask, len(names) or IGNORED)
    largest = max(largest, int(indices[indices != IGNORED].max(initial=0)))
  return names or tuple(map(str, range(largest + 1)))


def examples(
  model: bundle.Bundle, pairs: Sequence[MaskedImage], advance: Callable[[int], object]
) -> Iterator[Example]:
  """The examples of some pairs, CHUNK of them at a time."""
  channels, rng = model.preprocess.channels, np.random.default_rng(0)
  for first in range(0, len(pairs), CHUNK):
    chunk = pairs[first : first + CHUNK]
    originals = [loose.read_image(pair.image, channels) for pair in chunk]
    pixels = [np.ascontiguousarray(model.preprocess.transform(image, rng)) for image in originals]
    tokens = analysis.patch_tokens(model, pixels)
    for pair, original, image, grid in zip(chunk, originals, pixels, tokens):
      mask = masks.read_mask(pair.mask)
      masks.check_size(mask, original, pair.mask)
      yield Example(image, grid, mask)
    advance(len(chunk))


def learn(
  model: bundle.Bundle, pairs: Sequence[MaskedImage], classes: int, advance: Callable[[int], object]
) -> tuple[segmentation.Layer, float]:
  """A layer fitted to the patches of some pairs, and its C, chosen on every fifth pair of them."""
  tokens, counts, held_out = [], [], []
  stride = 0
  for number, example in enumerate(examples(model, pairs, advance), 1):
    rows, columns, width = example.tokens.shape
    stride = stride or -(-rows * columns * len(pairs) // PATCHES)
    cells = segmentation.cell_counts(example.mask, (rows, columns), classes)
    chosen = slice(number % stride, None, stride)
    tokens.append(example.tokens.reshape(-1, width)[chosen])
    counts.append(cells.reshape(-1, classes)[chosen])
    held_out.append(np.full(len(tokens[-1]), number % masks.HELD_OUT == 0))
  return segmentation.fit_best(*map(np.concatenate, (tokens, counts, held_out)))


def lines(values: dict[str, Any]) -> Iterator[str]:
  """What was measured, as text."""
  yield (
    f'{values["source"]}, {quantity(values["count"], "image")}; by a linear layer on patches of '
    f'{quantity(values["train_count"], "image")}'
  )
  yield from columns([('class', 'IoU'), *zip(values['classes'], map(percent, values['iou']))])
  right = percent(values['pixel_accuracy'])
  yield f'mean IoU {percent(values["mean_iou"])}; {right} of pixels are right'
