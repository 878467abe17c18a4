"""Images with masks for segmentation: a PNG of class indices beside each image.

H, W pixels of an image and of its mask, K classes.
"""

import collections
import dataclasses
import os
import pathlib

import numpy as np

from vit_jax.sources import SPLIT_NAMES, loose
from vit_jax.text import printable, quantity

IGNORED = 255  # an index of pixels that are neither learned from nor judged
MODES = ('1', 'L', 'P', 'I', 'I;16')  # of Pillow: one number a pixel
HELD_OUT = 5  # of so many images the last is tested, where no folders name splits


@dataclasses.dataclass(frozen=True)
class MaskedImage:
  """An image file, and that of its mask."""

  image: str
  mask: str


def open_pairs(images: str, masks: str) -> dict[str, list[MaskedImage]]:
  """{'train': pairs, 'test': pairs} of two folders, where paths are equal but for their suffixes.

  Folders right below, such as train and val, name splits, of which any but 'train' is tested. In
  their absence every fifth image in the order of names is. Images without a mask are left out.

  Raises:
    ValueError: for a folder that is not there, one without masks, a mask without an image, or
      fewer than two pairs, or pairs of one split alone.
  """
  for folder in (images, masks):
    if not os.path.isdir(folder):
      raise ValueError(
        f'{folder} is no folder: masks are looked for in DIR/masks beside DIR/images'
      )
  by_stem = {stem(path, images): path for path in loose.below(images, lambda line: None)}
  files = sorted(map(str, pathlib.Path(masks).rglob('*.png')))
  if not files:
    raise ValueError(f'{masks} has no PNG files: a mask is a PNG of class indices')
  alone = [path for path in files if stem(path, masks) not in by_stem]
  if alone:
    raise ValueError(
      f'{quantity(len(alone), "mask")} without an image of the same name in {images}, such as '
      f'{printable(alone[0])}'
    )
  pairs = {stem(path, masks): MaskedImage(by_stem[stem(path, masks)], path) for path in files}
  splits: dict[str, list[MaskedImage]] = collections.defaultdict(list)
  for number, (name, pair) in enumerate(pairs.items(), 1):
    split = SPLIT_NAMES.get(name.partition('/')[0].lower(), '') if '/' in name else ''
    is_tested = split != 'train' if split else number % HELD_OUT == 0
    splits['test' if is_tested else 'train'].append(pair)
  if len(pairs) > 1 and 'test' not in splits:  # of so few
    splits['test'].append(splits['train'].pop())
  if len(splits) < 2:
    raise ValueError(f'{masks} has {quantity(len(pairs), "mask")}: to learn and to test wants both')
  return dict(splits)


def stem(path: str, root: str) -> str:
  """A path below a folder, without its suffix."""
  return pathlib.PurePath(os.path.relpath(path, root)).with_suffix('').as_posix()


def read_mask(path: str) -> np.ndarray:
  """(H, W) class indices of a mask, a palette's by their index; IGNORED is none.

  Raises:
    ValueError: for colours instead of indices, or what is no image.
  """
  from PIL import Image, UnidentifiedImageError

  try:
    mask = Image.open(path)
  except UnidentifiedImageError:
    raise ValueError(f'{printable(path)}: not an image') from None
  with mask:
    if mask.mode not in MODES:
      raise ValueError(
        f'{printable(path)} is {mask.mode}: a mask has one class index for each pixel, as grey '
        'levels or a palette'
      )
    return np.asarray(mask).astype(np.int64)


def check_size(mask: np.ndarray, image: np.ndarray, path: str) -> None:
  """Raises ValueError for a mask (H, W) of another size than its image (H, W, C)."""
  if mask.shape != image.shape[:2]:
    sizes = [f'{height}x{width}' for height, width in (mask.shape, image.shape[:2])]
    raise ValueError(f'{printable(path)} is {sizes[0]}, its image {sizes[1]}')


def check_indices(indices: np.ndarray, path: str, classes: int) -> None:
  """Raises ValueError for an index beyond so many classes."""
  wrong = indices[(indices != IGNORED) & ((indices < 0) | (indices >= classes))]
  if wrong.size:
    raise ValueError(
      f'{printable(path)} has index {wrong[0]}: the classes are {classes}, 0 to {classes - 1}; '
      f'{IGNORED} is ignored'
    )


def read_classes(path: str) -> tuple[str, ...]:
  """The names of classes, a line each, in the order of their indices."""
  names = tuple(pathlib.Path(path).read_text('utf-8').splitlines())
  if not names or not all(name.strip() for name in names):
    raise ValueError(f'{path}: wants the name of a class in each line')
  return names
