"""Images in a NumPy archive: 'arrays:FILE.npz', as Keras and MedMNIST write them.

N images, H x W pixels, K classes, L labels of an image at most.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vit_jax import sources
from vit_jax.images.decoding import MAX_CHANNELS, PICTURES
from vit_jax.sources import PassedOver, Record, Source, Splits, encodings
from vit_jax.sources import classes as labelling
from vit_jax.text import first_few, printable, quantity

IMAGES, LABELS = ('images', 'image', 'x'), ('labels', 'label', 'y')
CLASSES = ('classes', 'class_names')


def splits(kind: str, path: str) -> Splits:
  """The splits of an archive with 'images' and 'labels', or 'x_train', 'train_labels' and so on.

  Images are uint8 (N, H, W), which are grey, or (N, H, W, C), labels integers (N,) or (N, 1), or
  multi-label (N, K) of 0 and 1: a row of 0 is an image of no class, one of -1 or NaN an image whose
  classes are not known. Floats (N,) are labels where all are whole, or NaN: not known. 'classes'
  may name them. Without images for validation, they are a tenth of the training images.
  """
  path = os.path.expanduser(path)
  sources.check_file(path)
  archive = Archive(path, printable(path))
  names = archive.splits()
  arrays = {split: archive.labels(label) for split, (_, label) in names.items()}
  classes, first = archive.classes(arrays)
  float_labels = archive.float_labels([label for _, label in names.values()])
  labels = {split: as_indices(array, first) for split, array in arrays.items()}

  def open_split(split: str) -> Source:
    images = archive.images(names[split][0])
    if len(images) != len(labels[split]):
      image, label = names[split]
      counts = f'{len(images)} {image} but {len(labels[split])} {label}'
      raise ValueError(f'{archive.where}: {counts}')
    describe = f'{archive.where}, image {{}} of {split}'.format
    return Source(
      Pixels(images, labels[split]),
      classes,
      describe,
      passed_over=archive.passed_over(names),
      notes=(*labelling.first_note(classes, first), *encodings.float_note(float_labels)),
    )

  result: dict[str, Callable[[], Source]]
  result = {split: functools.partial(open_split, split) for split in names}
  if 'train' in names and 'validation' not in names:
    train = {'train': range(len(labels['train']))}
    result |= sources.with_validation(open_split('train'), train, labels['train'])
  return result


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Labelled images in an array."""

  images: np.ndarray  # (N, H, W) grey or (N, H, W, C), uint8
  labels: np.ndarray  # (N,) int32, or (N, L) padded with -1

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    image = self.images[index]
    image = image[..., None] if image.ndim == 2 else image  # (H, W, C)
    return {'image': image, 'label': self.labels[index]}


@dataclasses.dataclass(frozen=True)
class Archive:
  """An .npz file."""

  path: str
  where: str  # the path in messages

  def names(self) -> dict[str, str]:
    """{in lower case: name} of its arrays."""
    try:
      with open(self.path, 'rb') as file, np.load(file, allow_pickle=False) as archive:
        return {name.lower(): name for name in archive.files}
    except Exception:  # of whatever kind a reader raises over hostile bytes
      raise ValueError(f'{self.where}: damaged, or no .npz archive') from None

  def read(self, name: str) -> np.ndarray:
    """An array of the file, of plain numbers or text."""
    try:
      with open(self.path, 'rb') as file, np.load(file, allow_pickle=False) as archive:
        if not isinstance(array := archive[name], np.ndarray):
          raise ValueError('a member that is no array')
        return array
    except Exception as error:  # as above
      if 'allow_pickle' in str(error):
        raise ValueError(f'{self.where}, {name}: an array of objects; must be numbers') from None
      raise ValueError(f'{self.where}, {name}: damaged, or no .npz archive') from None

  def splits(self) -> dict[str, tuple[str, str]]:
    """{split: (name of its images, of its labels)}."""
    names = self.names()
    pairs: dict[str, tuple[str, str]] = {}
    for alias, split in {'': 'train', **sources.SPLIT_NAMES}.items():
      image, label = find_name(names, IMAGES, alias), find_name(names, LABELS, alias)
      if image is None:
        continue
      if label is None:
        raise ValueError(f'{self.where} has {image} but no labels for them, only {listed(names)}')
      if split in pairs:
        raise ValueError(f'{self.where} has both {pairs[split][0]} and {image} for {split}')
      pairs[split] = image, label
    if not pairs:
      raise ValueError(
        f'{self.where} has neither images and labels nor x_train and y_train, but {listed(names)}'
      )
    return {split: pairs[split] for split in sources.SPLITS if split in pairs}

  def images(self, name: str) -> np.ndarray:
    """Uint8 (N, H, W) or (N, H, W, C)."""
    file = os.stat(self.path)
    images = read_once(self, name, (file.st_mtime_ns, file.st_size))
    if images.dtype != np.uint8:
      raise ValueError(f'{self.where}, {name}: images are {images.dtype}, must be uint8 0 ... 255')
    is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] <= MAX_CHANNELS)
    if not is_image or 0 in images.shape[1:]:
      wanted = f'(N, H, W) or (N, H, W, C) of up to {MAX_CHANNELS} channels'
      raise ValueError(f'{self.where}, {name}: images are {images.shape}, must be {wanted}')
    if is_channels_first(images.shape):
      advice = 'images.transpose(0, 2, 3, 1) has them last'
      raise ValueError(f'{self.where}, {name}: images are {images.shape}, channels first: {advice}')
    return images

  def labels(self, name: str) -> np.ndarray:
    """(N,) int32 from 0 on, or (N, K) int8 of 0 and 1; -1, or a row of it, is not known."""
    labels, where, largest = self.read(name), f'{self.where}, {name}', labelling.MAX_CLASSES - 1
    if labels.ndim == 2 and labels.shape[1] > 1:
      return multi_hot(labels, where)
    if is_float_column(labels):
      return whole_numbers(labels.reshape(-1), where, largest)
    if labels.dtype.kind not in 'iu' or labels.ndim not in (1, 2) or labels.size != len(labels):
      raise ValueError(f'{where}: labels are {labels.dtype} {labels.shape}, must be integers (N,)')
    return in_range(labels.reshape(-1), where, largest).astype(np.int32)

  def float_labels(self, names: Sequence[str]) -> list[str]:
    """The first label of each array of labels that are floats, one for an image, as text."""
    arrays = [self.read(name) for name in names]
    numbers = [array[~np.isnan(array)] for array in arrays if is_float_column(array)]
    return [str(array[0]) for array in numbers if len(array)]

  def classes(self, labels: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], int]:
    """Their names, and the label of the first.

    By default they are the numbers up to the largest in train, without it in any split.
    """
    if len({array.ndim for array in labels.values()}) > 1:
      raise ValueError(f'{self.where}: some splits are multi-label, others are not')
    classes, first = self.class_names(), 0
    if classes is None:
      naming = [labels['train']] if 'train' in labels else [*labels.values()]
      classes, first = self.numbered_classes(naming)
    for split, array in labels.items():
      if array.ndim == 2 and array.shape[1] != len(classes):
        count = quantity(array.shape[1], 'class')
        counts = f'labels in {split} are for {count}; there are {len(classes)}'
        raise ValueError(f'{self.where}: {counts}')
      is_outside = (array >= 0) & ((array < first) | (array >= first + len(classes)))
      if array.ndim == 1 and is_outside.any():
        problem = f'label {array[is_outside].max()} in {split} is out of range of '
        problem += quantity(len(classes), 'class') + f', numbered from {first}' * first
        raise ValueError(f'{self.where}: {problem}')
    return classes, first

  def class_names(self) -> tuple[str, ...] | None:
    """The names that an array of the file holds; None where there is no such array."""
    names = self.names()
    name = next((names[name] for name in CLASSES if name in names), None)
    if name is None:
      return None
    array = self.read(name)
    if array.dtype.kind not in 'US' or array.ndim != 1:
      raise ValueError(f'{self.where}, {name}: {array.dtype} {array.shape}, must be names (K,)')
    return tuple(
      n.decode('utf-8', 'replace') if isinstance(n, bytes) else n for n in array.tolist()
    )

  def passed_over(self, names: Mapping[str, tuple[str, str]]) -> tuple[PassedOver, ...]:
    """The arrays that are neither images nor labels, by `splits`, nor names of classes."""
    read = {name for pair in names.values() for name in pair}
    return tuple(
      PassedOver('unknown array', name)
      for folded, name in self.names().items()
      if name not in read and folded not in CLASSES
    )

  def numbered_classes(self, splits: Sequence[np.ndarray]) -> tuple[tuple[str, ...], int]:
    """'0', '1' and so on, as many as the labels of some splits stand for, and the first label."""
    if splits[0].ndim == 2:
      return labelling.numbered(splits[0].shape[1]), 0
    labels = np.concatenate(splits)
    labels = labels[labels >= 0]
    count = int(labels.max(initial=-1)) + 1
    if gaps := labelling.gaps(np.unique(labels).tolist(), count):
      raise ValueError(f'{self.where}: {gaps}')
    first = labelling.first_number(np.unique(labels).tolist())
    return labelling.numbered(count - first, first), first


def is_channels_first(shape: tuple[int, ...]) -> bool:
  """Whether images are square after 1, 3 or 4 channels, as PyTorch has them, by their shape."""
  return len(shape) == 4 and shape[1] in PICTURES and PICTURES[-1] < shape[2] == shape[3]


def is_float_column(labels: np.ndarray) -> bool:
  """Whether labels are floats, one for an image."""
  return labels.dtype.kind == 'f' and labels.ndim > 0 and labels.size == len(labels)


def whole_numbers(labels: np.ndarray, where: str, largest: int) -> np.ndarray:
  """Floats (N,) as int32, NaN as -1; ValueError for others than the numbers of classes."""
  is_number = ~np.isnan(labels)
  for value in labels[is_number & (labels != np.floor(labels))][:1].tolist():
    raise ValueError(f'{where}: labels such as {value} are {encodings.REGRESSION}')
  in_range(np.where(is_number, labels, 0), where, largest)
  return np.where(is_number, labels, -1).astype(np.int32)


def in_range(labels: np.ndarray, where: str, largest: int) -> np.ndarray:
  """The labels (N,); ValueError for one below 0 or above the largest."""
  for index in np.flatnonzero((labels < 0) | (labels > largest))[:1].tolist():
    problem = 'is negative' if labels[index] < 0 else f'exceeds {largest:,}'
    raise ValueError(f'{where}: label {labels[index]} of image {index} {problem}')
  return labels


def multi_hot(labels: np.ndarray, where: str) -> np.ndarray:
  """Numbers (N, K) as int8 of 0 and 1, or all -1; ValueError for others."""
  wanted = 'must be 0 and 1, a row of -1 or NaN where unknown, or one label an image'
  if labels.dtype.kind not in 'biuf':
    raise ValueError(f'{where}: labels are {labels.dtype} {labels.shape}, {wanted}')
  numbers = np.nan_to_num(labels.astype(np.float64), nan=-1)
  fits = np.isin(numbers, (0, 1)).all(1) | (numbers == -1).all(1)
  for index in np.flatnonzero(~fits)[:1].tolist():
    raise ValueError(f'{where}: labels {labels.shape} of image {index} {wanted}')
  return numbers.astype(np.int8)


def as_indices(labels: np.ndarray, first: int) -> np.ndarray:
  """Labels (N,) less the first number, (N, K) as (N, L) int32 padded with -1, or UNKNOWN."""
  if labels.ndim == 1:
    return np.where(labels < 0, np.int32(-1), labels - np.int32(first))
  is_label = labels > 0
  padded = labelling.pad(np.nonzero(is_label)[1], is_label.sum(axis=1))
  padded[labels.min(axis=1) < 0] = labelling.UNKNOWN
  return padded


def find_name(names: Mapping[str, str], kinds: Sequence[str], split: str) -> str | None:
  """The array 'x_train', 'train_x' and so on; without a split, 'x'."""
  for kind in kinds:
    for candidate in (f'{kind}_{split}', f'{split}_{kind}') if split else (kind,):
      if candidate in names:
        return names[candidate]
  return None


def listed(names: Mapping[str, str]) -> str:
  return first_few([printable(name) for name in names.values()]) or 'nothing'


@functools.lru_cache(maxsize=2)  # train and test; validation is part of train
def read_once(archive: Archive, name: str, stamp: tuple[int, int]) -> np.ndarray:
  """An array, once in memory for all splits that are parts of it while the file is the same."""
  return archive.read(name)
