"""Image files on disk: 'folder:PATH' of class folders.

N files. Paths lie end to end in one array, so that a million take some 50 MB. The list of those in
a folder is kept in ~/.cache/vit_jax/index and holds while no folder in it has changed.
"""

import array
import collections
import dataclasses
import functools
import hashlib
import os
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import sources
from vit_jax.sources import Record, Source, Splits

SUFFIXES = (b'.jpg', b'.jpeg', b'.png', b'.webp', b'.bmp', b'.gif', b'.tif', b'.tiff')
SPLITS = {
  'train': 'train',
  'training': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
  'testing': 'test',
}
ORDER = ('train', 'validation', 'test')
SHARE = 0.1  # of the training images, where there are none for validation
NAMED = 5  # things of a kind that an error names; it counts the others
FRESH = 2_000_000_000  # ns; some file systems count time in steps of two seconds
FORMAT = 1  # of the index in the cache


@dataclasses.dataclass(frozen=True)
class Files(Sequence[Record]):
  """Labelled files, read when indexed.

  Fields:
    root: what relative paths are relative to.
    paths: of all files end to end, uint8.
    offsets: (N + 1,) where each path begins.
    labels: (N,) int32, or (N, L) filled up with -1.
  """

  root: bytes
  paths: np.ndarray
  offsets: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: Any) -> Any:
    with open(os.fsdecode(self.path(index)), 'rb', buffering=0) as file:
      return {'image': file.read(), 'label': self.labels[index]}

  def path(self, index: int) -> bytes:
    """Of a file, absolute."""
    begin, end = self.offsets[index], self.offsets[index + 1]
    return os.path.join(self.root, self.paths[begin:end].tobytes())

  def describe(self, index: int) -> str:
    return shown(self.path(index))


def shown(path: bytes | str) -> str:
  """A path for a message, on one line whatever it holds."""
  text = os.fsdecode(path)
  if text.isprintable():
    return text
  return ''.join(map(escaped, text))


def escaped(character: str) -> str:
  """A character, or how Python writes it; '\\xff' for a byte that is no text."""
  if character.isprintable():
    return character
  if '\udc80' <= character <= '\udcff':  # as os.fsdecode has such a byte
    return f'\\x{ord(character) - 0xDC00:02x}'
  return character.encode('unicode_escape').decode()


def some(items: Sequence[str]) -> str:
  """The first NAMED items and how many more there are, for an error."""
  more = len(items) - NAMED
  return ', '.join(items[:NAMED]) + (f' and {more:,} more' if more > 0 else '')


def parted(source: Source, places: Mapping[str, Any], labels: np.ndarray) -> Splits:
  """Splits of a source by their indices; without 'validation', it is a share of each class.

  Args:
    source: of all splits.
    places: {split: its indices, a range or an array}.
    labels: of all of the source; the first of several counts.
  """
  places = dict(places)
  if 'validation' not in places:
    train = np.asarray(places['train'])
    first = labels[train] if labels.ndim == 1 else labels[train, 0]
    places['train'], places['validation'] = (
      train[side] for side in sources.held_out(first, share=SHARE)
    )
  return {name: functools.partial(source.part, places[name]) for name in ORDER if name in places}


# Folders


def splits(kind: str, rest: str) -> Splits:
  """Of class folders, below folders for the splits or not; 'train' gives the classes, by name.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if it is no data set, in one line.
  """
  path = os.path.expanduser(rest)
  if not os.path.exists(path):
    raise FileNotFoundError(f'{shown(path)}: no such folder')
  if not os.path.isdir(path):
    raise ValueError(f'{shown(path)} is not a folder; if it is an archive, unpack it first')
  root = os.fsencode(os.path.realpath(path))
  index = remembered(root)
  if index is None:
    started = time.time_ns()
    try:
      index = walked(root)
    except OSError as error:
      where = shown(error.filename or path)
      raise ValueError(f'{where} cannot be read: {error.strerror or error}') from None
    if (
      max(changed for changed, _ in index.folders.values()) < started - FRESH
    ):  # else it may change yet at the same time
      remember(index)
  ends = np.cumsum(list(index.counts.values())).tolist()
  places = {
    split: range(end - count, end) for (split, count), end in zip(index.counts.items(), ends)
  }
  source = Source(index.files, index.classes, index.files.describe)
  return parted(source, places, index.files.labels)


@dataclasses.dataclass(frozen=True)
class Index:
  """What a folder holds.

  Fields:
    files: of all splits, one after another in ORDER.
    classes: names of the class folders of 'train'.
    counts: {split: how many of the files are its}.
    folders: {path of each folder, relative to the root: its `times`}.
  """

  files: Files
  classes: tuple[str, ...]
  counts: dict[str, int]
  folders: dict[bytes, tuple[int, int]]


class Walk:
  """A walk through a folder that stays inside it.

  Args:
    root: the real path of the folder.

  Attributes:
    folders: {path of each folder seen, relative to the root: its `times`}.
    outside: links that lead out of the root.
  """

  def __init__(self, root: bytes):
    self.root = root
    self.folders: dict[bytes, tuple[int, int]] = {}
    self.outside: set[bytes] = set()

  def listed(self, folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Names of the folders and of the images in a folder, sorted; hidden ones are left out."""
    path = os.path.join(self.root, folder)
    self.folders.setdefault(folder, times(path))  # as it was before it is listed
    folders: list[bytes] = []
    images: list[bytes] = []
    with os.scandir(path) as entries:
      for entry in entries:
        name = entry.name
        if name.startswith(b'.'):
          continue
        if entry.is_symlink():
          self.follow(entry, folders, images)
        elif entry.is_dir(follow_symlinks=False):
          folders.append(name)
        elif name.lower().endswith(SUFFIXES) and entry.is_file(follow_symlinks=False):
          images.append(name)
    return sorted(folders), sorted(images)

  def follow(self, link: os.DirEntry[bytes], folders: list[bytes], images: list[bytes]) -> None:
    """Adds a link to one of the lists; one that leads nowhere counts as an image if named so."""
    real = os.path.realpath(link.path)
    kind = folders if os.path.isdir(real) else images
    if kind is images and not link.name.lower().endswith(SUFFIXES):
      return
    if not inside(self.root, real):
      self.outside.add(link.path)
    elif kind is folders or os.path.isfile(real) or not os.path.exists(real):
      kind.append(link.name)

  def images_below(self, folder: bytes) -> Iterator[list[bytes]]:
    """Paths of the images of each folder at or below one.

    A folder that links lead to once more is skipped, and so are those that `folder` lies in.
    """
    seen, above = set(), folder
    while above:
      above = os.path.dirname(above)
      seen.add(os.path.realpath(os.path.join(self.root, above)))
    waiting = [folder]
    while waiting:
      at = waiting.pop()
      real = os.path.realpath(os.path.join(self.root, at))
      if real in seen:
        continue
      seen.add(real)
      folders, images = self.listed(at)
      yield [os.path.join(at, name) for name in images]
      waiting.extend(os.path.join(at, name) for name in reversed(folders))


def times(folder: bytes) -> tuple[int, int]:
  """When its list of files changed, in ns: as told, which tar and rsync set back, and in truth."""
  found = os.stat(folder)
  return found.st_mtime_ns, found.st_ctime_ns


def inside(root: bytes, real: bytes) -> bool:
  """Whether a real path is a folder or in it."""
  return real == root or real.startswith(os.path.join(root, b''))


def walked(root: bytes) -> Index:
  """The index of a folder, by a walk through all of it.

  Raises:
    ValueError: if its folders are no data set.
    OSError: if one cannot be listed.
  """
  walk, where = Walk(root), shown(root)
  places = split_folders(walk)
  known = walk.listed(places['train'])[0]
  classes = tuple(name.decode('utf-8', 'backslashreplace') for name in known)
  label_of = class_lookup(known)
  paths, lengths, labels, sizes = bytearray(), array.array('q'), [], []
  counts, unknown = {}, []
  for split, place in places.items():
    before = len(lengths)
    for name in walk.listed(place)[0]:
      label = label_of(name)
      if label is None:
        unknown.append(f'{shown(name)!r} in {split}')
        continue
      begin = len(lengths)
      for found in walk.images_below(os.path.join(place, name)):
        paths += b''.join(found)
        lengths.extend(map(len, found))
      labels.append(label)
      sizes.append(len(lengths) - begin)
    counts[split] = len(lengths) - before
  if walk.outside:
    links = some(names_of(sorted(walk.outside)))
    raise ValueError(f'{where}: {len(walk.outside):,} links lead out of the folder: {links}')
  if not classes:
    raise ValueError(f'{shown(os.path.join(root, places["train"]))} holds no class folders')
  if empty := [repr(name) for name, size in zip(classes, sizes) if not size]:
    raise ValueError(f'{where}: no images of class {some(empty)} in train')
  if len(classes) == 1 and os.path.join(places['train'], known[0], b'train') in walk.folders:
    within = shown(os.path.join(root, places['train'], known[0]))
    raise ValueError(f'{where} holds one folder of split folders; did you mean {within}?')
  check_count(where, classes)
  if unknown:
    raise ValueError(f'{where}: train lacks class {some(unknown)}')
  offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
  files = Files(
    root, np.frombuffer(paths, np.uint8), offsets, np.repeat(np.asarray(labels, np.int32), sizes)
  )
  return Index(files, classes, counts, walk.folders)


def split_folders(walk: Walk) -> dict[str, bytes]:
  """{split: its folder} in ORDER; the root is 'train' where there are none."""
  found: dict[str, list[bytes]] = {}
  for name in walk.listed(b'')[0]:
    if split := SPLITS.get(shown(name).lower()):
      found.setdefault(split, []).append(name)
  if not found:
    return {'train': b''}
  for split, names in found.items():
    if len(names) > 1:
      raise ValueError(
        f'{shown(walk.root)} has several folders of {split}: {some(names_of(names))}'
      )
  if 'train' not in found:
    others = some(names_of(names[0] for names in found.values()))
    raise ValueError(f'{shown(walk.root)} has {others} but no train, which gives the classes')
  return {split: found[split][0] for split in ORDER if split in found}


def names_of(paths: Iterable[bytes]) -> list[str]:
  return [shown(path) for path in paths]


def class_lookup(known: Sequence[bytes]) -> Callable[[bytes], int | None]:
  """Gives the place of a name, or of the only one that differs in case alone."""
  alike = [folded_name(name) for name in known]
  times = collections.Counter(alike)
  folded = {name: label for label, name in enumerate(alike) if times[name] == 1}
  exact = {name: label for label, name in enumerate(known)}
  return lambda name: exact.get(name, folded.get(folded_name(name)))


def folded_name(name: bytes) -> str:
  return unicodedata.normalize('NFC', os.fsdecode(name)).casefold()


def check_count(where: str, classes: Sequence[str]) -> None:
  if len(classes) < 2:
    only = f'only one class, {classes[0]!r}' if classes else 'no classes'
    raise ValueError(f'{where} has {only}; two at least are wanted')


# The cache of indices


def cache_file(root: bytes) -> str | None:
  """Where the index of a folder is kept; None for a user without a home."""
  name = hashlib.sha256(root).hexdigest()[:32]
  folder = cache_folder('index')
  return os.path.join(folder, f'{name}.npz') if os.path.isabs(folder) else None


def cache_folder(kind: str) -> str:
  """Where what was made or fetched once is kept; no absolute path for a user without a home."""
  base = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(base):  # as its specification says
    base = os.path.expanduser('~/.cache')
  return os.path.join(base, 'vit_jax', kind)


def remember(index: Index) -> None:
  """Keeps an index, where that can be done."""
  file, files = cache_file(index.files.root), index.files
  if file is None:
    return
  partial = None
  try:
    os.makedirs(os.path.dirname(file), exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix='.partial', dir=os.path.dirname(file))
    with open(handle, 'wb') as opened:
      np.savez(
        opened,
        format=np.int64(FORMAT),
        root=packed([files.root]),
        paths=files.paths,
        offsets=files.offsets,
        labels=files.labels,
        classes=packed([name.encode() for name in index.classes]),
        counts=np.array([index.counts.get(split, -1) for split in ORDER]),
        folders=packed(list(index.folders)),
        times=np.array(list(index.folders.values())),  # (folders, 2)
      )
    os.replace(partial, file)
  except OSError:  # a full disk, a home that is read-only: the next run walks again
    if partial is not None and os.path.exists(partial):
      os.remove(partial)


def remembered(root: bytes) -> Index | None:
  """The kept index of a folder, if it is there, intact and still true."""
  file = cache_file(root)
  if file is None or not os.path.isfile(file):
    return None
  try:
    with open(file, 'rb') as opened, np.load(opened, allow_pickle=False) as kept:
      if int(kept['format']) != FORMAT or kept['root'].tobytes() != root:
        return None
      then = map(tuple, kept['times'].tolist())
      folders = dict(zip(unpacked(kept['folders']), then, strict=True))
      if any(times(os.path.join(root, at)) != seen for at, seen in folders.items()):
        return None
      files = Files(root, kept['paths'], kept['offsets'], kept['labels'])
      classes = tuple(name.decode() for name in unpacked(kept['classes']))
      sizes = zip(ORDER, kept['counts'].tolist(), strict=True)
    counts = {split: size for split, size in sizes if size >= 0}
    index = Index(files, classes, counts, folders)
    return index if is_sound(index) else None
  except Exception:  # of whatever kind a reader raises over hostile bytes
    return None


def is_sound(index: Index) -> bool:
  """Whether the parts of an index that was read fit together."""
  files = index.files
  return (
    (files.paths.dtype, files.offsets.dtype, files.labels.dtype) == (np.uint8, np.int64, np.int32)
    and files.paths.ndim == files.labels.ndim == 1
    and files.offsets.shape == (len(files) + 1,)
    and (files.offsets[0], files.offsets[-1]) == (0, len(files.paths))
    and bool((np.diff(files.offsets) > 0).all())
    and bool(((files.labels >= 0) & (files.labels < len(index.classes))).all())
    and sum(index.counts.values()) == len(files)
    and 'train' in index.counts
  )


def packed(names: Sequence[bytes]) -> np.ndarray:
  return np.frombuffer(b'\0'.join(names), np.uint8)


def unpacked(names: np.ndarray) -> list[bytes]:
  return names.tobytes().split(b'\0')
