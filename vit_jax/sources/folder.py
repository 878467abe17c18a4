"""Image files on disk: 'folder:PATH' of class folders.

N files, L labels of an image. Paths lie end to end in one array, so that a million take some 50 MB.
The list of those in a folder is kept in ~/.cache/vit_jax/index and holds while no folder in it has
changed.
"""

import array
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from vit_jax import files, sources
from vit_jax.images import decoding
from vit_jax.sources import PassedOver, Record, Source, Splits
from vit_jax.text import first_few, printable, quantity

SYSTEM_FOLDERS = (  # that archives, storage devices and desktops make: previews, and deleted files
  b'__MACOSX', b'@eaDir', b'@Recycle', b'#recycle', b'#snapshot', b'$RECYCLE.BIN', b'lost+found',
  b'System Volume Information',
)  # fmt: skip
# Further names of splits, where every folder has one of a split: beside others they may be classes,
# and beside 'train' what is not to be seen
MORE_SPLITS = {
  'dev': 'validation',
  'dev_set': 'validation',
  'eval': 'test',
  'evaluation': 'test',
  'holdout': 'test',
  'hold_out': 'test',
  'held_out': 'test',
}
RECENT = 2_000_000_000  # ns: FAT counts times in steps of two seconds, the coarsest in use
FORMAT = 5  # of the index in the cache


@dataclasses.dataclass(frozen=True)
class Files:
  """Image files, read when indexed."""

  root: bytes  # what relative paths are relative to
  paths: np.ndarray  # of all files end to end, uint8
  offsets: np.ndarray  # (N + 1,) where each path begins
  labels: np.ndarray | None  # (N,) int32, or (N, L) padded with -1; None where nothing has one

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> Record:
    with open(os.fsdecode(self.path(index)), 'rb', buffering=0) as file:
      image = file.read()
    return (
      {'image': image} if self.labels is None else {'image': image, 'label': self.labels[index]}
    )

  def path(self, index: int) -> bytes:
    """The absolute path of a file."""
    begin, end = self.offsets[index], self.offsets[index + 1]
    return os.path.join(self.root, self.paths[begin:end].tobytes())

  def describe(self, index: int) -> str:
    return printable(self.path(index))


# Folders


def splits(kind: str, path: str) -> Splits:
  """The splits of class folders, perhaps below folders for splits.

  'train' names the classes. Without it the other splits do: they can be measured.
  """
  return index_splits(indexed(folder_root(path), kind, make_index))


def folder_root(path: str) -> bytes:
  """The real path of a folder; FileNotFoundError or ValueError for what is none."""
  path = os.path.expanduser(path)
  if not os.path.exists(path):
    raise FileNotFoundError(f'{printable(path)}: no such folder{files.did_you_mean(path)}')
  if not os.path.isdir(path):
    raise ValueError(f'{printable(path)} is not a folder; if it is an archive, unpack it first')
  return os.fsencode(os.path.realpath(path))


def index_splits(index: 'Index') -> Splits:
  """The splits of what a folder holds; without a 'validation', some of 'train' is held out."""
  ends = np.cumsum(list(index.counts.values())).tolist()
  indices = {
    split: range(end - count, end) for (split, count), end in zip(index.counts.items(), ends)
  }
  source = Source(
    index.files,
    index.classes,
    index.files.describe,
    passed_over=index.passed_over,
    notes=split_notes(index),
    empty_classes=empty_classes(index, indices.get('train', range(0))),
  )
  labels = index.files.labels
  if labels is None:  # a tenth of all images
    labels = np.zeros(len(index.files), np.int32)
  return sources.with_validation(source, indices, labels)


def empty_classes(index: 'Index', train: range) -> tuple[str, ...]:
  """The classes without an image in 'train', which names them; none where there is no such."""
  if not train or index.files.labels is None:
    return ()
  present = set(index.files.labels[train.start : train.stop].tolist())
  return tuple(name for label, name in enumerate(index.classes) if label not in present)


def split_notes(index: 'Index') -> tuple[str, ...]:
  """A line on folders that are splits by a name of MORE_SPLITS."""
  if 'train' in index.counts:
    return ()
  names = sorted(name for name in index.folders if name and b'/' not in name)
  words = [
    f'{printable(name)} as {MORE_SPLITS[split_key(name)]}'
    for name in names
    if split_key(name) in MORE_SPLITS
  ]
  return (f'folders read as splits: {", ".join(words)}',) * bool(words)


def split_key(name: bytes) -> str:
  """A folder's name without regard to case, and spaces and hyphens as underscores."""
  return re.sub(r'[\s-]+', '_', printable(name).lower())


def indexed(root: bytes, kind: str, make: Callable[[bytes], 'Index']) -> 'Index':
  """The index of a folder by a kind of source, from the cache where that still holds, else made."""
  index = load_index(root, kind)
  if index is None:
    started = time.time_ns()
    try:
      index = make(root)
    except OSError as error:
      where = printable(error.filename or root)
      raise ValueError(f'{where} cannot be read: {error.strerror or error}') from None
    # A folder that changed just now may change again without another time of change.
    if max(changed for changed, _ in index.folders.values()) < started - RECENT:
      save_index(index, kind)
  return index


@dataclasses.dataclass(frozen=True)
class Index:
  """What a folder holds."""

  files: Files  # of all splits, one after another in the order of SPLITS
  classes: tuple[str, ...]  # names of the class folders of 'train', without it of all splits
  counts: dict[str, int]  # {split: how many of the files are its}
  folders: dict[bytes, tuple[int, int]]  # {path, relative to the root: its `times`}
  passed_over: tuple[PassedOver, ...]


class PathList:
  """Paths of files end to end, as they are added."""

  def __init__(self) -> None:
    self.paths, self.lengths = bytearray(), array.array('q')

  def __len__(self) -> int:
    return len(self.lengths)

  def add(self, paths: Sequence[bytes]) -> None:
    self.paths += b''.join(paths)
    self.lengths.extend(map(len, paths))

  def files(self, root: bytes, labels: np.ndarray | None) -> Files:
    offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
    return Files(root, np.frombuffer(self.paths, np.uint8), offsets, labels)


class Walk:
  """A walk through a folder, of which `root` is the real path, that stays inside it.

  Fields:
    folders: {path, relative to the root: its `times`} of all that were listed.
    outside: links that lead out of the root.
    counts: {path of a folder: how many of its files are not read, by (reason, suffix)}.
  """

  def __init__(self, root: bytes):
    self.root = root
    self.suffixes = tuple(map(str.encode, decoding.formats()))
    self.folders: dict[bytes, tuple[int, int]] = {}
    self.outside: set[bytes] = set()
    self.counts: dict[bytes, collections.Counter[tuple[str, str]]] = {}

  def listed(self, folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Names of the folders and of the images in a folder, sorted; what is neither is counted."""
    path = os.path.join(self.root, folder)
    self.folders.setdefault(folder, times(path))  # as it was before it is listed
    folders: list[bytes] = []
    images: list[bytes] = []
    counts = self.counts[folder] = collections.Counter()
    with os.scandir(path) as entries:
      for entry in entries:
        is_folder = entry.is_dir(follow_symlinks=False)
        if reason := skip_reason(entry.name):
          if is_folder:
            self.pass_over(os.path.join(folder, entry.name), reason)
          else:
            counts[reason, suffix_of(entry.name)] += 1
        elif entry.is_symlink():
          self.follow(entry, folders, images, counts)
        elif is_folder:
          folders.append(entry.name)
        elif reason := self.file_error(entry.name, entry.is_file(follow_symlinks=False)):
          counts[reason, suffix_of(entry.name)] += 1
        else:
          images.append(entry.name)
    return sorted(folders), sorted(images)

  def follow(
    self,
    link: os.DirEntry[bytes],
    folders: list[bytes],
    images: list[bytes],
    counts: collections.Counter[tuple[str, str]],
  ) -> None:
    """Adds a link to one of the lists; one that leads nowhere counts as an image if named so."""
    real = os.path.realpath(link.path)
    is_folder = os.path.isdir(real)
    is_file = os.path.isfile(real) or not os.path.exists(real)
    if reason := '' if is_folder else self.file_error(link.name, is_file):
      counts[reason, suffix_of(link.name)] += 1
    elif is_inside(self.root, real):
      (folders if is_folder else images).append(link.name)
    else:
      self.outside.add(link.path)

  def file_error(self, name: bytes, is_regular: bool) -> str:
    """Why what is no folder is no image; '' for an image."""
    if not name.lower().endswith(self.suffixes):
      return decoding.suffix_error(suffix_of(name))
    return '' if is_regular else 'no regular file'

  def pass_over(self, folder: bytes, reason: str) -> None:
    """Counts all files at or below a folder as not read, once; follows no link."""
    if folder in self.counts:
      return
    counts = self.counts[folder] = collections.Counter()
    for path, _, names in os.walk(os.path.join(self.root, folder)):
      self.folders.setdefault(os.path.relpath(path, self.root), times(path))
      counts.update((reason, suffix_of(name)) for name in names)

  def images_below(self, folder: bytes) -> Iterator[list[bytes]]:
    """Paths of the images of each folder at or below one.

    A folder that links lead to once more is skipped, and so are those that `folder` lies in.
    """
    visited, above = set(), folder
    while above:
      above = os.path.dirname(above)
      visited.add(os.path.realpath(os.path.join(self.root, above)))
    waiting = [folder]
    while waiting:
      path = waiting.pop()
      real = os.path.realpath(os.path.join(self.root, path))
      if real in visited:
        self.counts[path] = collections.Counter([('a folder that is read already', 'link')])
        continue
      visited.add(real)
      folders, images = self.listed(path)
      yield [os.path.join(path, name) for name in images]
      waiting.extend(os.path.join(path, name) for name in reversed(folders))

  def check_links(self) -> None:
    """Raises ValueError if links lead out of the root."""
    if self.outside:
      where, links = printable(self.root), first_few(names_of(sorted(self.outside)))
      lead = 'leads' if len(self.outside) == 1 else 'lead'
      count = quantity(len(self.outside), 'link')
      raise ValueError(f'{where}: {count} {lead} out of the folder: {links}')

  @property
  def passed_over(self) -> tuple[PassedOver, ...]:
    """All that was not read, so far."""
    total: collections.Counter[tuple[str, str]] = collections.Counter()
    for counts in self.counts.values():
      total.update(counts)
    return tuple(PassedOver(*key, count) for key, count in sorted(total.items()))


def skip_reason(name: bytes) -> str:
  """Why a file or folder of that name is not looked at; '' where it is."""
  if name in SYSTEM_FOLDERS:
    return f'in {name.decode()}'
  return 'hidden' if name.startswith(b'.') else ''


def suffix_of(path: bytes) -> str:
  """'.png' of 'a/1.PNG'; '' where there is none."""
  return printable(os.path.splitext(path)[1].lower())


def times(folder: bytes) -> tuple[int, int]:
  """When its list of files changed, in ns: mtime, which tar and rsync set back, and ctime."""
  status = os.stat(folder)
  return status.st_mtime_ns, status.st_ctime_ns


def is_inside(root: bytes, real: bytes) -> bool:
  """Whether a real path is a folder or in it."""
  return real == root or real.startswith(os.path.join(root, b''))


def make_index(root: bytes) -> Index:
  """The index of a folder, by a walk through all of it."""
  walk = Walk(root)
  splits = split_folders(walk)
  names = class_folders(walk, splits)
  label_of = class_lookup(names)
  paths, labels, sizes = PathList(), [], []
  counts, unknown = {}, []
  for split, folder in splits.items():
    before = len(paths)
    for name in walk.listed(folder)[0]:
      label = label_of(name)
      if label is None:
        unknown.append(f'{printable(name)!r} in {split}')
        continue
      begin = len(paths)
      for images in walk.images_below(os.path.join(folder, name)):
        paths.add(images)
      labels.append(label)
      sizes.append(len(paths) - begin)
    counts[split] = len(paths) - before
  classes = tuple(name.decode('utf-8', 'backslashreplace') for name in names)
  check_walk(walk, splits, names)
  pass_over_strays(walk, splits, 'in no class folder')
  if unknown:
    raise ValueError(f'{printable(root)}: train lacks class {first_few(unknown)}')
  records = paths.files(root, np.repeat(np.asarray(labels, np.int32), sizes))
  return Index(records, classes, counts, walk.folders, walk.passed_over)


def class_folders(walk: Walk, splits: Mapping[str, bytes]) -> list[bytes]:
  """Names of the folders that name the classes, sorted."""
  naming = [splits['train']] if 'train' in splits else splits.values()
  return sorted({name for folder in naming for name in walk.listed(folder)[0]})


def pass_over_strays(walk: Walk, splits: Mapping[str, bytes], reason: str) -> None:
  """Counts images right in the root or a split's folder, and all that lies beside such folders."""
  pass_over_beside(walk, splits)
  for folder in {b'', *splits.values()}:
    pass_over_images(walk, folder, reason)


def pass_over_beside(walk: Walk, splits: Mapping[str, bytes]) -> None:
  """Counts all that lies in folders beside those of splits, where there are such."""
  if b'' in splits.values():
    return
  for name in set(walk.listed(b'')[0]) - set(splits.values()):
    walk.pass_over(name, f'in {printable(name)}, which is no split')


def pass_over_images(walk: Walk, folder: bytes, reason: str) -> None:
  """Counts the images right in a folder as not read."""
  images = walk.listed(folder)[1]
  walk.counts[folder].update((reason, suffix_of(name)) for name in images)


def check_walk(walk: Walk, splits: Mapping[str, bytes], names: Sequence[bytes]) -> None:
  """Raises ValueError for a folder that is no data set; `names` are those of the classes."""
  walk.check_links()
  where, (first, *_) = printable(walk.root), splits.values()
  if not names:
    raise ValueError(f'{printable(os.path.join(walk.root, first))} holds no class folders')
  folder = os.path.join(first, names[0])
  if len(names) == 1 and os.path.join(folder, b'train') in walk.folders:
    within = printable(os.path.join(walk.root, folder))
    raise ValueError(f'{where} holds one folder of split folders; did you mean {within}?')


def split_folders(walk: Walk) -> dict[str, bytes]:
  """{split: its folder}, in the order of SPLITS; the root is 'train' where there are none.

  Names of MORE_SPLITS count where all have the name of a split, and none that of 'train'.
  """
  names = walk.listed(b'')[0]
  splits = sources.SPLIT_NAMES | MORE_SPLITS
  if not all(split_key(name) in splits for name in names) or any(
    splits[split_key(name)] == 'train' for name in names
  ):
    splits = sources.SPLIT_NAMES
  folders: dict[str, list[bytes]] = {}
  for name in names:
    if split := splits.get(split_key(name)):
      folders.setdefault(split, []).append(name)
  if not folders:
    return {'train': b''}
  where = printable(walk.root)
  for split, paths in folders.items():
    if len(paths) > 1:
      raise ValueError(f'{where} has several folders of {split}: {first_few(names_of(paths))}')
  strays = set(names) - {paths[0] for paths in folders.values()}
  if strays and 'train' not in folders:
    others = first_few(names_of(paths[0] for paths in folders.values()))
    beside = first_few(names_of(sorted(strays)))
    raise ValueError(f'{where} has {others} but no train, and beside them {beside}')
  return {split: folders[split][0] for split in sources.SPLITS if split in folders}


def names_of(paths: Iterable[bytes]) -> list[str]:
  return [printable(path) for path in paths]


def class_lookup(names: Sequence[bytes]) -> Callable[[bytes], int | None]:
  """A function that gives the label of a name, or of the only one that differs in case alone."""
  alike = [folded_name(name) for name in names]
  counts = collections.Counter(alike)
  folded = {name: label for label, name in enumerate(alike) if counts[name] == 1}
  exact = {name: label for label, name in enumerate(names)}
  return lambda name: exact.get(name, folded.get(folded_name(name)))


def folded_name(name: bytes) -> str:
  return unicodedata.normalize('NFC', os.fsdecode(name)).casefold()


# The cache of indices


def cache_file(root: bytes, kind: str) -> str | None:
  """Where the index of a folder by a kind of source is kept; None for a user without a home."""
  name = hashlib.sha256(root).hexdigest()[:32]
  folder = files.cache_folder('index')
  return os.path.join(folder, f'{name}.{kind}.npz') if os.path.isabs(folder) else None


def save_index(index: Index, kind: str) -> None:
  """Keeps an index by a kind of source in the cache, where that can be done."""
  path = cache_file(index.files.root, kind)
  if path is None:
    return
  with contextlib.suppress(OSError):  # a full disk, a home that is read-only: walks again next time
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with files.replacing(path) as file:
      np.savez(
        file,
        format=np.int64(FORMAT),
        root=packed([index.files.root]),
        paths=index.files.paths,
        offsets=index.files.offsets,
        labels=packed([]) if index.files.labels is None else index.files.labels,
        classes=packed([name.encode() for name in index.classes]),
        counts=np.array([index.counts.get(split, -1) for split in sources.SPLITS]),
        folders=packed(list(index.folders)),
        times=np.array(list(index.folders.values())),  # (folders, 2)
        suffixes=packed(list(map(str.encode, decoding.formats()))),
        passed_over=packed(
          [json.dumps(list(map(dataclasses.astuple, index.passed_over))).encode()]
        ),
      )


def load_index(root: bytes, kind: str) -> Index | None:
  """The index of a folder in the cache, if it is there, intact and still true."""
  path = cache_file(root, kind)
  if path is None or not os.path.isfile(path):
    return None
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
      if int(arrays['format']) != FORMAT or arrays['root'].tobytes() != root:
        return None
      if unpacked(arrays['suffixes']) != list(map(str.encode, decoding.formats())):
        return None  # other files are read here
      before = map(tuple, arrays['times'].tolist())
      folders = dict(zip(unpacked(arrays['folders']), before, strict=True))
      if any(times(os.path.join(root, name)) != time for name, time in folders.items()):
        return None
      classes = tuple(name.decode() for name in unpacked(arrays['classes']) if name)
      labels = arrays['labels'] if classes else None
      paths = Files(root, arrays['paths'], arrays['offsets'], labels)
      passed_over = tuple(
        PassedOver(str(reason), str(kind), int(count))
        for reason, kind, count in json.loads(arrays['passed_over'].tobytes())
      )
      sizes = zip(sources.SPLITS, arrays['counts'].tolist(), strict=True)
    counts = {split: size for split, size in sizes if size >= 0}
    index = Index(paths, classes, counts, folders, passed_over)
    return index if is_sound(index) else None
  except Exception:  # of whatever kind a reader raises over hostile bytes
    return None


def is_sound(index: Index) -> bool:
  """Whether the parts of an index that was read fit together."""
  files = index.files
  return (
    (files.paths.dtype, files.offsets.dtype) == (np.uint8, np.int64)
    and files.paths.ndim == files.offsets.ndim == 1
    and (files.offsets[0], files.offsets[-1]) == (0, len(files.paths))
    and bool((np.diff(files.offsets) > 0).all())
    and (files.labels is None or are_labels(files.labels, len(files), len(index.classes)))
    and sum(index.counts.values()) == len(files)
    and bool(index.counts)
  )


def are_labels(labels: np.ndarray, count: int, classes: int) -> bool:
  """Whether an array can be the labels of so many images of class folders."""
  return (
    labels.dtype == np.int32
    and labels.shape == (count,)
    and bool(((labels >= 0) & (labels < classes)).all())
  )


def packed(names: Sequence[bytes]) -> np.ndarray:
  return np.frombuffer(b'\0'.join(names), np.uint8)


def unpacked(names: np.ndarray) -> list[bytes]:
  return names.tobytes().split(b'\0')
