"""Features of images: what a model's head reads.

N images, F features of one, L labels of one at most.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import bundle, files, models, pipeline, sharding, sources
from vit_jax.convert import weights
from vit_jax.evaluate import inputs, loop
from vit_jax.tasks import Batch, Params
from vit_jax.text import to_stderr

FORMAT = 2  # of the cache
PART = 4096  # images of a file of the cache: what an interruption loses at most
SUFFIXES = ('.npz', '.parquet')
Colour = tuple[float, ...]  # a number for each channel
Forward = Callable[[Params, Batch], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of the images of a split that could be read.

  Fields:
    values: (N, F) float32.
    labels: (N,) int32, or (N, L) where images have several; -1: none.
    indices: (N,) of the images in the split.
    classes: the name of each label.
    source, split: where they are from.
    bad_images: how many could not be read.
  """

  values: np.ndarray
  labels: np.ndarray
  indices: np.ndarray
  classes: tuple[str, ...]
  source: str
  split: str
  bad_images: int = 0

  def __len__(self) -> int:
    return len(self.values)

  def check_finite(self) -> None:
    """Raises ValueError for features that are not finite."""
    if not np.isfinite(self.values).all():
      raise ValueError(f'the model gives features of {self.source} that are not finite')

  def labelled(self) -> 'Features':
    """Those of images that have a label, of which each has one.

    Raises:
      ValueError: if images have several, or none has one; for features that are not finite.
    """
    self.check_finite()
    if self.labels.ndim > 1:
      raise ValueError(f'images of {self.source} are multi-label: accuracy alone measures these')
    chosen = self.labels >= 0
    if not chosen.any():
      raise ValueError(f'no image of split {self.split!r} of {self.source} has a label')
    if chosen.all():
      return self
    return self.subset(np.flatnonzero(chosen))

  def subset(self, rows: np.ndarray, split: str = '') -> 'Features':
    """Those of some rows, perhaps under another name of their split."""
    values, labels, indices = self.values[rows], self.labels[rows], self.indices[rows]
    name = split or self.split
    return dataclasses.replace(self, values=values, labels=labels, indices=indices, split=name)

  def held_out(self, fraction: float) -> tuple['Features', 'Features']:
    """All but a fraction of each class, and that, see `sources.hold_out`; each has one label."""
    others, rows = sources.hold_out(self.labels, fraction)
    return self.subset(others), self.subset(rows, f'{fraction:.0%} of {self.split}')


@functools.lru_cache(maxsize=32)  # one function for one model, by which JAX finds its program
def make_forward(model: models.Model, mesh: Mesh, *, mean: Colour, std: Colour) -> Forward:
  """(params, batch on the mesh) -> 'values', the pre-logits in float32, its 'labels' and 'mask'."""

  def forward(params: Params, batch: Batch) -> dict[str, jax.Array]:
    _, out = bundle.forward(model, params, batch['image'], mean=mean, std=std)
    values = out['pre_logits'].astype('float32')
    return {'values': values, 'labels': batch['label'], 'mask': batch['mask']}

  return jax.jit(sharding.for_mesh(forward, mesh))


def extract(
  run: bundle.Bundle,
  split: inputs.Split,
  *,
  preprocess: str = '',
  batch_size: int = inputs.BATCH,
  cache: str | os.PathLike[str] = '',
  say: Callable[[str], object] = to_stderr,
  advance: Callable[[int], object] = lambda count: None,
) -> Features:
  """The features of every image of a split, in order, computed on all devices of this process.

  They are held in memory: 4 N F bytes.

  Args:
    run: the model, of `vit_jax.load` or `bundle.read`.
    split: of `inputs.open_split` or `inputs.image_split`.
    preprocess: another line of transforms than the model's; '' for its own.
    batch_size: images at a time on each device.
    cache: a folder that keeps them, PART images in a file, for the next time or for who goes on
      after an interruption, see `cache_file`; '' for none.
    say: takes a line for each image that cannot be read.
    advance: takes how many more images are done.

  Raises:
    DataError: if no image can be read.
    ValueError: for a model that gives features of patches only.
  """
  ready = inputs.preprocess_of(run, split, preprocess)
  if getattr(run.model, 'pool', '') == 'none':
    raise ValueError(f'{run.name} with pool none has no features of an image, only of its patches')
  mesh = sharding.local_mesh()
  forward = make_forward(run.model, mesh, mean=tuple(ready.mean), std=tuple(ready.std))
  place = functools.cache(lambda: sharding.place(run.params, mesh))  # if anything is computed

  def computed(part: inputs.Split) -> Features:
    with inputs.placed_batches(part, ready, mesh, batch_size=batch_size, say=say) as read:
      batches, unreadable = read
      outputs = loop.fetched(forward(place(), batch) for batch in batches)
      arrays = readable_rows(outputs, len(part.source), advance)
    return features_of(part, arrays, unreadable.count)

  if not cache:
    features = computed(split)
  else:
    digest = model_digest(run, ready)
    pairs = ((cache_file(cache, digest, part), part) for part in parts(split))
    features = joined(split, (cached_part(file, part, computed, advance) for file, part in pairs))
  if not len(features):
    raise pipeline.DataError('no features: not one of the images can be read')
  return features


def features_of(split: inputs.Split, arrays: Mapping[str, np.ndarray], bad_images: int) -> Features:
  """'values', 'labels' and 'indices' of a split, as its features."""
  values, labels, indices = (arrays[name] for name in ('values', 'labels', 'indices'))
  classes = split.source.classes
  return Features(values, labels, indices, classes, split.name, split.split, bad_images)


def readable_rows(
  batches: Iterator[dict[str, np.ndarray]], total: int, advance: Callable[[int], object]
) -> dict[str, np.ndarray]:
  """Batches as whole arrays of the images that could be read, with their 'indices' in the split.

  Args:
    batches: arrays by name, (B, ...) each, and 'mask' (B,).
    total: images of the split, for which memory is taken once.
    advance: takes how many more images are done.
  """
  arrays: dict[str, np.ndarray] = {}
  count = first = 0  # images that could be read, and of all those before the batch
  for rows in batches:
    readable = rows.pop('mask') > 0
    rows['indices'] = np.arange(first, first + len(readable))
    advance(min(len(readable), total - first))
    first += len(readable)
    end = count + int(readable.sum())
    for name, column in rows.items():
      if name not in arrays:
        arrays[name] = np.empty((total, *column.shape[1:]), column.dtype)
      arrays[name][count:end] = column[readable]
    count = end
  return {name: array[:count] for name, array in arrays.items()}


# The cache


def user_cache() -> str:
  """The user's folder that keeps features, made if need be; '' where it cannot be written."""
  folder = pathlib.Path(files.cache_folder('features'))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / '.writable').touch()
  except OSError:
    return ''
  return str(folder)


def parts(split: inputs.Split) -> Iterator[inputs.Split]:
  """A split in parts of PART images, each with where it begins in its name."""
  total = len(split.source)
  for first in range(0, total, PART):
    source = split.source.subset(range(first, min(first + PART, total)))
    yield dataclasses.replace(split, split=f'{split.split}+{first}', source=source)


def joined(split: inputs.Split, parts: Iterator[Features]) -> Features:
  """The features of all parts of a split, in order."""
  total = len(split.source)
  arrays: dict[str, np.ndarray] = {}
  count = first = 0  # images that could be read, and of all those before the part
  for part in parts:
    end = count + len(part)
    columns = {'values': part.values, 'labels': part.labels, 'indices': first + part.indices}
    for name, column in columns.items():
      if name not in arrays:
        arrays[name] = np.empty((total, *column.shape[1:]), column.dtype)
      arrays[name][count:end] = column
    count, first = end, first + len(part) + part.bad_images
  arrays = {name: array[:count] for name, array in arrays.items()}
  return features_of(split, arrays, total - count)


def cached_part(
  file: pathlib.Path,
  part: inputs.Split,
  computed: Callable[[inputs.Split], Features],
  advance: Callable[[int], object],
) -> Features:
  """The features of a part, of its file or else computed and written to it."""
  if features := remembered(file, part):
    advance(len(part.source))
    return features
  features = computed(part)
  remember(file, features)
  return features


def model_digest(run: bundle.Bundle, preprocess: bundle.Preprocess) -> str:
  """A digest of a model's fields and the bytes of its parameters, and of its preprocessing."""
  digest = hashlib.blake2b(digest_size=16)
  fields = {name: str(value) for name, value in models.fields(run.model).items()}
  fields.pop('head_init', None)  # has done what it does
  key = [FORMAT, type(run.model).__name__, fields, dataclasses.asdict(preprocess)]
  digest.update(json.dumps(key, sort_keys=True).encode())
  for name, array in sorted(models.flat(jax.device_get(run.params)).items()):
    digest.update(f'{name} {array.shape} {array.dtype}'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def cache_file(
  folder: str | os.PathLike[str], model_digest: str, part: inputs.Split
) -> pathlib.Path:
  """Where a folder keeps the features of a model and a part of a split.

  The name depends on the digest of the model and its preprocessing, on the names of data set and
  split, where the part begins, the number of images, the classes; and of images that are files on
  their paths, sizes and times. Where others change under the same name, the folder is to be
  deleted.
  """
  source = part.source
  digest = hashlib.blake2b(digest_size=16)
  key = [model_digest, part.name, part.split, len(source), list(source.classes)]
  digest.update(json.dumps(key).encode())
  for index in range(len(source)):
    if path := sources.path_of(source.records, index):
      with contextlib.suppress(OSError):  # which reading it says
        status = os.stat(path)
        digest.update(os.fsencode(path) + f' {status.st_size} {status.st_mtime_ns}\n'.encode())
  return pathlib.Path(folder) / f'{digest.hexdigest()}.npz'


def remember(file: pathlib.Path, features: Features) -> None:
  """Keeps features, whole or not at all.

  Raises:
    OSError: if they cannot be written.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  arrays = {name: getattr(features, name) for name in ('values', 'labels', 'indices')}
  weights.write_npz(file, arrays | {'bad_images': np.asarray(features.bad_images)})


def remembered(file: pathlib.Path, split: inputs.Split) -> Features | None:
  """Kept features, if they are there and intact."""
  if not file.is_file():
    return None
  try:
    arrays = {name: np.asarray(array) for name, array in weights.read(file).items()}
    features = features_of(split, arrays, int(arrays['bad_images']))
  except (KeyError, OSError, ValueError):
    return None
  lengths = {len(features), len(features.labels), len(features.indices)}
  return features if lengths == {len(split.source) - features.bad_images} else None


# Files


def write(path: str | os.PathLike[str], features: Features, names: Sequence[str]) -> None:
  """Writes features to a .npz or .parquet file, whole or not at all.

  A .npz holds 'features' (N, F) float32, 'labels' (N,) or (N, L) int32, 'names' (N,) and 'classes'
  as text. A .parquet table has a row for an image: 'name', 'label' (a list where there may be
  several), 'class' (of one label; null without) and 'features', a list of F floats; its metadata
  has 'classes' as JSON, 'source' and 'split'.

  Args:
    path: of the file.
    features: the features.
    names: (N,) of the images.

  Raises:
    ValueError: for a file of another kind, or without pyarrow for a .parquet.
    OSError: if it cannot be written.
  """
  check_suffix(path)
  with files.replacing(path) as file:
    if pathlib.Path(path).suffix == '.npz':
      np.savez(
        file,
        features=features.values,
        labels=features.labels,
        names=np.asarray(names, np.str_),
        classes=np.asarray(features.classes, np.str_),
      )
    else:
      write_table(file, features, names)


def check_suffix(path: str | os.PathLike[str]) -> None:
  """Raises ValueError for a file that `write` cannot write."""
  if pathlib.Path(path).suffix not in SUFFIXES:
    raise ValueError(f'{path}: features are written to a file {" or ".join(SUFFIXES)}')
  if pathlib.Path(path).suffix == '.parquet':
    try:
      import pyarrow  # noqa: F401
    except ModuleNotFoundError:
      raise ValueError(f'{path}: to write Parquet files, pip install pyarrow') from None


def write_table(file: IO[bytes], features: Features, names: Sequence[str]) -> None:
  """Writes features to an open file as a Parquet table."""
  import pyarrow as pa
  from pyarrow import parquet

  flat = pa.array(features.values.reshape(-1))
  columns = {
    'name': pa.array(list(names), pa.string()),
    'features': pa.FixedSizeListArray.from_arrays(flat, features.values.shape[1]),
  }
  if features.labels.ndim == 1:
    columns['label'] = pa.array(features.labels)
    labels = features.labels.tolist()
    class_names = [features.classes[label] if label >= 0 else None for label in labels]
    columns['class'] = pa.array(class_names, pa.string())
  else:
    lists = [[label for label in row if label >= 0] for row in features.labels.tolist()]
    columns['label'] = pa.array(lists, pa.list_(pa.int32()))
  about = {
    'classes': files.as_json(list(features.classes)),
    'source': features.source,
    'split': features.split,
  }
  parquet.write_table(pa.table(columns).replace_schema_metadata(about), file)
