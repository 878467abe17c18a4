"""Images in a NumPy archive: 'arrays:FILE.npz', as Keras and MedMNIST write them.

N images, H x W pixels, K classes, L labels of an image at most.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.sources import Record, Source, Splits, folder, table

IMAGES, LABELS = ('images', 'image', 'x'), ('labels', 'label', 'y')
CLASSES = ('classes', 'class_names')


def splits(kind: str, rest: str) -> Splits:
  """Of an archive with 'images' and 'labels', or with 'x_train', 'train_labels' and so on.

  Images are uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), labels integers (N,) or (N, 1), or
  (N, K) of 0 and 1 where an image has several. 'classes' may name them. Without images for
  validation, they are a share of the training images.

  Raises:
    FileNotFoundError: if the file is not there.
    ValueError: if it is not such an archive, in one line.
  """
  path = os.path.expanduser(rest)
  table.check_file(path)
  archive = Archive(path, folder.shown(path))
  names = archive.splits()
  given = {split: archive.labels(label) for split, (_, label) in names.items()}
  classes = archive.classes(given)
  labels = {split: as_indices(array) for split, array in given.items()}
  folder.check_count(archive.where, classes)

  def opened(split: str) -> Source:
    images = archive.images(names[split][0])
    count, held = len(images), labels[split]
    if count != len(held):
      image, label = names[split]
      raise ValueError(f'{archive.where}: {count} {image} but {len(held)} {label}')
    describe = f'{archive.where}, image {{}} of {split}'.format
    return Source(Pixels(images, held), classes, describe)

  if 'validation' in names:
    return {split: functools.partial(opened, split) for split in names}
  found = folder.parted(opened('train'), {'train': range(len(labels['train']))}, labels['train'])
  return {**found, **{s: functools.partial(opened, s) for s in names if s != 'train'}}


@dataclasses.dataclass(frozen=True)
class Pixels(Sequence[Record]):
  """Labelled images in an array.

  Fields:
    images: (N, H, W) or (N, H, W, 1) grey, or (N, H, W, 3), uint8.
    labels: (N,) int32, or (N, L) filled up with -1.
  """

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: Any) -> Any:
    image = self.images[index]
    if image.ndim == 2:
      image = image[..., None]  # (H, W, 1)
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image  # (H, W, 3)
    return {'image': image, 'label': self.labels[index]}


@dataclasses.dataclass(frozen=True)
class Archive:
  """An .npz file.

  Fields:
    path: of it.
    where: the path for messages.
  """

  path: str
  where: str

  def read(self, name: str | None = None) -> Any:
    """An array of the file; without a name, the names of all.

    Raises:
      ValueError: if the file is damaged, or the array is not plain numbers or text.
    """
    try:
      with open(self.path, 'rb') as file, np.load(file, allow_pickle=False) as archive:
        return archive[name] if name else [str(name) for name in archive.files]
    except Exception as error:  # of whatever kind a reader raises over hostile bytes
      at = f'{self.where}, {name}' if name else self.where
      if 'allow_pickle' in str(error) and name:
        raise ValueError(f'{at}: an array of objects; numbers are wanted') from None
      raise ValueError(f'{at}: damaged, or no .npz archive') from None

  def splits(self) -> dict[str, tuple[str, str]]:
    """{split: (name of its images, of its labels)}."""
    held = {name.lower(): name for name in self.read()}
    found: dict[str, tuple[str, str]] = {}
    for alias, split in {'': 'train', **folder.SPLITS}.items():
      image, label = first_of(held, IMAGES, alias), first_of(held, LABELS, alias)
      if image is None:
        continue
      if label is None:
        raise ValueError(f'{self.where} has {image} but no labels for them, only {listed(held)}')
      if split in found:
        raise ValueError(f'{self.where} has both {found[split][0]} and {image} for {split}')
      found[split] = image, label
    if 'train' not in found:
      raise ValueError(
        f'{self.where} has neither images and labels nor x_train and y_train, but {listed(held)}'
      )
    return {split: found[split] for split in folder.ORDER if split in found}

  def images(self, name: str) -> np.ndarray:
    """Uint8 (N, H, W) or (N, H, W, C), C 1 or 3."""
    file = os.stat(self.path)
    images = shared(self, name, (file.st_mtime_ns, file.st_size))
    if images.dtype != np.uint8:
      raise ValueError(
        f'{self.where}, {name}: images are {images.dtype}; uint8 0 ... 255 is wanted'
      )
    good = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))
    if not good or 0 in images.shape[1:]:
      wanted = '(N, H, W), (N, H, W, 1) or (N, H, W, 3)'
      raise ValueError(f'{self.where}, {name}: images are {images.shape}; {wanted} is wanted')
    return images

  def labels(self, name: str) -> np.ndarray:
    """(N,) int32 from 0 on, or (N, K) bool."""
    labels, at = self.read(name), f'{self.where}, {name}'
    if labels.ndim == 2 and labels.shape[1] > 1:
      if labels.dtype.kind not in 'biuf' or not np.isin(labels, (0, 1)).all():
        raise ValueError(f'{at}: labels are {labels.shape}; each is to be 0 or 1, or only one')
      return labels.astype(bool)
    if labels.dtype.kind not in 'iu' or labels.ndim not in (1, 2) or labels.size != len(labels):
      raise ValueError(f'{at}: labels are {labels.dtype} {labels.shape}; integers (N,) are wanted')
    labels = labels.reshape(-1)  # (N,)
    for index in np.flatnonzero((labels < 0) | (labels >= table.MAX_CLASSES))[:1].tolist():
      what = 'is negative' if labels[index] < 0 else f'exceeds {table.MAX_CLASSES - 1:,}'
      raise ValueError(f'{at}: label {labels[index]} of image {index} {what}')
    return labels.astype(np.int32)

  def classes(self, labels: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Their names, by default the numbers up to the largest in train."""
    held = {name.lower(): name for name in self.read()}
    name = next((held[name] for name in CLASSES if name in held), None)
    train = labels['train']
    if name is None:
      count = train.shape[1] if train.ndim == 2 else int(train.max(initial=-1)) + 1
      if train.ndim == 1 and (gaps := table.gaps_of(np.unique(train).tolist(), count)):
        raise ValueError(f'{self.where}: {gaps}')
      known = tuple(map(str, range(count)))
    else:
      names = self.read(name)
      if names.dtype.kind not in 'US' or names.ndim != 1:
        raise ValueError(
          f'{self.where}, {name}: {names.dtype} {names.shape}; names (K,) are wanted'
        )
      known = tuple(
        n.decode('utf-8', 'replace') if isinstance(n, bytes) else n for n in names.tolist()
      )
    for split, given in labels.items():
      if given.ndim == 2 and given.shape[1] != len(known):
        what = f'labels in {split} are for {given.shape[1]} classes; there are {len(known)}'
        raise ValueError(f'{self.where}: {what}')
      if given.ndim == 1 and (largest := given.max(initial=-1)) >= len(known):
        what = f'label {largest} in {split} is out of range of {len(known)} classes'
        raise ValueError(f'{self.where}: {what}')
      if given.ndim != labels['train'].ndim:
        raise ValueError(f'{self.where}: several labels of an image in some splits, one in others')
    return known


def as_indices(labels: np.ndarray) -> np.ndarray:
  """Labels (N,) as they are, (N, K) bool as (N, L) int32 filled up with -1."""
  if labels.ndim == 1:
    return labels
  return table.filled_up(np.nonzero(labels)[1], labels.sum(axis=1))


def first_of(held: Mapping[str, str], names: Sequence[str], split: str) -> str | None:
  """The array 'x_train', 'train_x' and so on; without a split, 'x'."""
  for name in names:
    for candidate in (f'{name}_{split}', f'{split}_{name}') if split else (name,):
      if candidate in held:
        return held[candidate]
  return None


def listed(names: Mapping[str, str]) -> str:
  return folder.some([folder.shown(name) for name in names.values()]) or 'nothing'


@functools.lru_cache(maxsize=2)
def shared(archive: Archive, name: str, stamp: tuple[int, int]) -> np.ndarray:
  """An array, once in memory for all splits that are parts of it while the file is the same."""
  return archive.read(name)
