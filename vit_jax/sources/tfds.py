"""Data sets of TensorFlow Datasets, read without TensorFlow: ArrayRecord files, or TFRecord files.

'tfds:NAME[:VERSION]', NAME with its configuration where it has one, or 'tfds:FOLDER' of a version.
After '?', joined by '&': data_dir=FOLDER, where TFDS keeps its sets ($TFDS_DATA_DIR, otherwise
~/tensorflow_datasets); label=FEATURE, or the name of a label of `presets.LABELS`; image=FEATURE.

A set that is there in no version that fits is downloaded and prepared.
"""

import bisect
import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import json
import os
import pathlib
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.features import FeatureConnector, FeaturesDict
from tensorflow_datasets.core.registered import DatasetNotFoundError

from vit_jax import files
from vit_jax.sources import Record, Source, Splits, presets, tfrecord
from vit_jax.sources.classes import pad_one
from vit_jax.sources.tfds_prepare import make_ready, missing_package, shards, to_array_record
from vit_jax.text import first_line, nearest, to_stderr

OPTIONS = ('data_dir', 'label', 'image')
FEATURES = 'features.json'  # of a prepared set
FORMATS = ('array_record', 'tfrecord')  # the first that a set has is read
ALL_LABELLED = ('imagenet2012_real',)  # sets whose images without a label are not to be scored
LABEL_NAMES = ('label', 'real_label', 'labels')  # the first that holds classes
FILE_NAMES = ('file_name', 'filename', 'image/file_name', 'image/filename', 'name', 'id')
# Open readers: no more than half of the files that a process may open
MAX_READERS = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 4096)


@dataclasses.dataclass(frozen=True)
class Name:
  """The parts of 'cifar10:3.0.2?data_dir=FOLDER'."""

  text: str
  data_dir: str | None = None
  label: str | None = None
  image: str | None = None

  @property
  def folder(self) -> str:
    """Where a set is looked for that is not named by its folder."""
    return self.data_dir or str(tfds.core.constants.DATA_DIR)


def parse(name: str) -> Name:
  """The parts of a name."""
  text, _, tail = name.partition('?')
  options = dict(option.partition('=')[::2] for option in tail.split('&') if option)
  for option in options:
    if option not in OPTIONS:
      raise ValueError(f'unknown option {option!r} of tfds:{name}{nearest(option, list(OPTIONS))}')
  data_dir = options.pop('data_dir', None) or os.environ.get('TFDS_DATA_DIR')
  return Name(text, data_dir and os.path.expanduser(data_dir), **options)


def splits(kind: str, name: str) -> Splits:
  """The splits of a set, which is downloaded and prepared if it is not there."""
  parts = parse(name)
  builder = make_builder(parts)
  choose_columns(builder.name, builder.info.features, parts)  # an error before it is downloaded
  make_ready(builder, parts.text, parts.folder, say=to_stderr)
  columns, classes = choose_columns(builder.name, builder.info.features, parts)
  return {
    split: functools.partial(open_split, builder, split, columns, classes)
    for split in builder.info.splits
  }


def open_split(
  builder: DatasetBuilder, split: str, columns: 'Columns', classes: tuple[str, ...]
) -> Source:
  """A split as a source."""
  info = builder.info.splits[split]
  file_format = format_of(builder)
  files = shards(builder, split, file_format)
  missing = [file for file in files if not os.path.isfile(file)]
  if missing:
    raise ValueError(
      f'{builder.data_dir} lacks {len(missing)} of the {len(files)} files of split {split!r}, '
      f'such as {os.path.basename(missing[0])}'
    )
  read = tfrecord.read if file_format == 'tfrecord' else read_array_record
  ends = tuple(itertools.accumulate(info.shard_lengths))
  records = Shards(f'{builder.name}/{split}', files, ends, read, columns)
  return Source(records, classes, records.describe)


def format_of(builder: DatasetBuilder) -> str:
  """The format in which a prepared set is read, one of FORMATS."""
  available = {form.value for form in builder.info.available_file_formats()} or {'tfrecord'}
  for file_format in FORMATS:
    if file_format in available:
      return file_format
  raise ValueError(
    f'{builder.data_dir} holds {", ".join(sorted(available))} files; known: {", ".join(FORMATS)}'
  )


@dataclasses.dataclass(frozen=True)
class Columns:
  """What is read of an example, in a form that can be sent to worker processes."""

  features: str  # those that are read, as JSON
  image: str
  label: str
  value: Callable[[Any], Any]  # (feature) -> the label, int32 or a vector of them
  pixels: Callable[[Any], np.ndarray] | None  # (feature) -> uint8 (H, W, C); None: a file's bytes
  file: tuple[str, str] | tuple[()]  # name and, as JSON, feature of the file's name


@dataclasses.dataclass(frozen=True)
class Shards:
  """The records of a split, in files."""

  name: str  # in messages
  files: tuple[str, ...]
  ends: tuple[int, ...]  # of each file, the index after its last record
  read: Callable[[str, int], bytes]  # (file, index in it) -> a serialized tf.train.Example
  columns: Columns

  def __len__(self) -> int:
    return self.ends[-1] if self.ends else 0

  def __getitem__(self, index: int) -> Record:
    columns = self.columns
    example = self.parse(index, columns.features)
    image = example[columns.image]
    try:
      label = columns.value(example[columns.label])
    except ValueError as error:
      raise ValueError(f'{self.name}[{index}]: {error}') from error
    return {'image': image if columns.pixels is None else columns.pixels(image), 'label': label}

  def parse(self, index: int, features: str) -> dict[str, Any]:
    """Some features of an example; of images, the bytes of their files."""
    index = range(len(self))[index]
    shard = bisect.bisect_right(self.ends, index)
    file, record = self.files[shard], index - (self.ends[shard - 1] if shard else 0)
    serialized = self.read(file, record)
    spec, decoders = spec_of(features)
    try:
      return spec.deserialize_example_np(serialized, decoders=decoders)
    except Exception as error:  # of several kinds
      reason = first_line(error)
      raise OSError(f'{file}, record {record}: it is no such example ({reason})') from error

  def describe(self, index: int) -> str:
    """'cifar10/train[17]', and the name of its file where that is known."""
    name = f'{self.name}[{index}]'
    if self.columns.file:
      key, features = self.columns.file
      with contextlib.suppress(OSError):
        text = self.parse(index, features)[key]
        return f'{name} ({text.decode(errors="replace") if isinstance(text, bytes) else text})'
    return name


@functools.lru_cache(maxsize=64)
def spec_of(features: str) -> tuple[FeaturesDict, dict[str, object]]:
  """Features from JSON, and decoders that leave images encoded."""
  spec = FeatureConnector.from_json(json.loads(features))
  images = [key for key, feature in spec.items() if isinstance(feature, tfds.features.Image)]
  return spec, {key: tfds.decode.SkipDecoding() for key in images}


def read_array_record(path: str, index: int) -> bytes:
  """A record of an ArrayRecord file, whose checksums it verifies itself."""
  try:
    return reader(path).read([index])[0]
  except Exception as error:  # a RuntimeError, mostly
    raise OSError(f'{path}, record {index}: {first_line(error)}') from error


@functools.lru_cache(maxsize=MAX_READERS)
def reader(path: str) -> array_record_module.ArrayRecordReader:
  """An open file, which threads may share; read by single records, without reading ahead."""
  return array_record_module.ArrayRecordReader(
    path, options='readahead_buffer_size:0', file_reader_buffer_size=32768
  )


def choose_columns(
  dataset: str, features: FeaturesDict, name: Name
) -> tuple[Columns, tuple[str, ...]]:
  """What is read of an example, and the names of the classes."""
  image = choose_image(features, name)
  derived = presets.LABELS.get(f'{dataset}/{name.label}')
  value: Callable[[Any], Any]
  if derived:
    label, classes, value = derived.feature, derived.classes, derived.value
  else:
    label = choose_label(dataset, features, name)
    feature = features[label]
    multi_label = isinstance(feature, tfds.features.Sequence)
    classes = tuple((feature.feature if multi_label else feature).names)
    value = pad_one if multi_label else np.int32
    value = known_classes if dataset in ALL_LABELLED else value
  texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
  file = next((key for key in FILE_NAMES if key in texts), '')
  encoded = isinstance(features[image], tfds.features.Image)
  return Columns(
    features=as_json(features, image, label),
    image=image,
    label=label,
    value=value,
    pixels=PIXELS.get(dataset) if encoded else np.asarray,
    file=(file, as_json(features, file)) if file else (),
  ), classes


def known_classes(labels: np.ndarray) -> np.ndarray:
  """As `pad_one`, but an image without a class is one whose classes are not known."""
  return pad_one(labels if len(labels) else None)


def as_json(features: FeaturesDict, *keys: str) -> str:
  """Some of the features, as JSON."""
  return json.dumps(FeaturesDict({key: features[key] for key in keys}).to_json())


def choose_image(features: FeaturesDict, name: Name) -> str:
  """The feature asked for, 'image', or the first that holds images."""
  images = [key for key, feature in features.items() if is_image(feature)]
  if not images:
    raise ValueError(f'{name.text} has no images; its features: {", ".join(features)}')
  if name.image is not None and name.image not in images:
    raise ValueError(f'{name.text} has no images {name.image!r}{nearest(name.image, images)}')
  return name.image or ('image' if 'image' in images else images[0])


def is_image(feature: FeatureConnector) -> bool:
  """Whether it is an encoded image, or a tensor (H, W, C) of uint8."""
  if isinstance(feature, tfds.features.Image):
    return np.dtype(feature.np_dtype) in (np.uint8, np.uint16)
  is_tensor = type(feature) is tfds.features.Tensor and np.dtype(feature.np_dtype) == np.uint8
  return is_tensor and len(feature.shape) == 3 and feature.shape[-1] is not None


def choose_label(dataset: str, features: FeaturesDict, name: Name) -> str:
  """The feature asked for, one of LABEL_NAMES, or the first that holds classes."""
  labels = [key for key, feature in features.items() if is_label(feature)]
  derived = [key.partition('/')[2] for key in presets.LABELS if key.startswith(f'{dataset}/')]
  if name.label is not None and name.label not in labels:
    raise ValueError(
      f'{name.text} has no label {name.label!r}{nearest(name.label, labels + derived)}'
    )
  if not labels:
    hint = f'; use ?label={" or ".join(derived)}' if derived else ''
    raise ValueError(f'{name.text} has no feature of classes among {", ".join(features)}{hint}')
  return name.label or next((key for key in LABEL_NAMES if key in labels), labels[0])


def is_label(feature: FeatureConnector) -> bool:
  """Whether it is a class or a sequence of classes."""
  if isinstance(feature, tfds.features.Sequence):
    feature = feature.feature
  return isinstance(feature, tfds.features.ClassLabel)


def brighten(image: bytes) -> np.ndarray:
  """The image of a file whose pixels are 0 and 1, as 0 and 255."""
  from PIL import Image

  with Image.open(io.BytesIO(image)) as file:
    return 255 * np.asarray(file.convert('L'))[..., None]


PIXELS = {'dsprites': brighten}  # sets whose files are not as they are meant to be seen


def prepare(name: str, *, say: Callable[[str], object]) -> None:
  """Makes a data set ready: downloads what is not there, adds ArrayRecord files to TFRecord files.

  `name` is of a preset, or as in a source, with or without 'tfds:'; `say` takes a line for each
  thing done.
  """
  preset = presets.find(name)
  source = preset.source if preset else name
  kind, _, path = source.partition(':')
  if preset and kind != 'tfds':
    raise ValueError(f'{name} is {source}: only sets of TFDS are prepared')
  parts = parse(path if kind == 'tfds' else source)
  builder = make_builder(parts)
  make_ready(builder, parts.text, parts.folder, say=say)
  if format_of(builder) != 'array_record':
    to_array_record(builder)
    say(f'{builder.data_dir} now has ArrayRecord files beside its TFRecord files')
  counts = [f'{split} {info.num_examples}' for split, info in builder.info.splits.items()]
  say(f'{builder.info.full_name} is ready in {builder.data_dir}: {", ".join(counts)}')


def check_features(folder: pathlib.Path) -> None:
  """Raises Refused if a prepared set names classes of other packages, which TFDS would import."""
  file = folder / FEATURES
  pending: list[files.JSON] = [files.read_object(file)] if file.exists() else []
  while pending:
    part = pending.pop()
    pending += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    names = [part.get(key) for key in ('pythonClassName', 'type')] if isinstance(part, dict) else []
    for name in names:
      if isinstance(name, str) and '.' in name and not name.startswith('tensorflow_datasets.'):
        raise files.Refused(f'{file} names {name!r}, which is code and no feature of TFDS')


def make_builder(name: Name) -> DatasetBuilder:
  """The TFDS builder of a set: of a version that lies there prepared, else from TFDS's code."""
  folder = pathlib.Path(name.text).expanduser()
  is_folder = (folder / 'dataset_info.json').is_file()
  if not is_folder and (folder.is_absolute() or name.text.startswith(('.', '~'))):
    raise ValueError(f'{folder} holds no data set prepared by TFDS (no dataset_info.json)')
  try:
    if is_folder:
      check_features(folder)
      return tfds.builder_from_directory(folder)
    with contextlib.suppress(DatasetNotFoundError):
      return read_only_builder.builder_from_files(name.text, data_dir=name.data_dir)
    return tfds.builder(name.text, data_dir=name.data_dir, file_format='array_record')
  except DatasetNotFoundError as error:
    close = difflib.get_close_matches(name.text, tfds.list_builders(with_community_datasets=False))
    hint = nearest(name.text, close) if close else ''
    text = f'{name.text} is neither in {name.folder} nor a set that TFDS can download{hint}'
    raise ValueError(text) from error
  except Exception as error:  # of several kinds: no such version, a damaged dataset_info.json
    message = missing_package(name.text, error) or f'{name.text}: {first_line(error)}'
    raise ValueError(message) from error
