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
import glob
import importlib.resources.abc
import importlib.util
import io
import itertools
import json
import logging
import os
import pathlib
import resource
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_builder, dataset_info, read_only_builder
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.core.registered import DatasetNotFoundError
from tensorflow_datasets.core.utils import lazy_imports_utils

from vit_jax.sources import Record, Source, Splits, presets, tfrecord
from vit_jax.text import nearest, progress, to_stderr

OPTIONS = ('data_dir', 'label', 'image')
FORMATS = ('array_record', 'tfrecord')  # the first that a set has is read
LABEL_NAMES = ('label', 'real_label', 'labels')  # the first that is of a kind that can be one
FILE_NAMES = ('file_name', 'filename', 'image/file_name', 'image/filename', 'name', 'id')
MAX_LABELS = 64  # of an image with several
RETRIES = 5  # of a download: 6 seconds; TFDS's own 10 are 100
OPEN_FILES = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 4096)


@dataclasses.dataclass(frozen=True)
class Name:
  """What 'cifar10:3.0.2?data_dir=FOLDER' says."""

  text: str
  data_dir: str | None = None
  label: str | None = None
  image: str | None = None

  @property
  def folder(self) -> str:
    """Where a set without a folder of its own is looked for."""
    return self.data_dir or str(tfds.core.constants.DATA_DIR)


def parsed(rest: str) -> Name:
  """The parts of a name.

  Raises:
    ValueError: for an unknown option.
  """
  text, _, tail = rest.partition('?')
  options = dict(option.partition('=')[::2] for option in tail.split('&') if option)
  for option in options:
    if option not in OPTIONS:
      raise ValueError(f'unknown option {option!r} of tfds:{rest}{nearest(option, list(OPTIONS))}')
  data_dir = options.pop('data_dir', None) or os.environ.get('TFDS_DATA_DIR')
  return Name(text, data_dir and os.path.expanduser(data_dir), **options)


def splits(kind: str, rest: str) -> Splits:
  """Of 'tfds': those of a set, which is downloaded and prepared if it is not there.

  Raises:
    ValueError: if it cannot be, or if the set has no images or no such label.
  """
  name = parsed(rest)
  builder = builder_of(name)
  chosen_columns(builder.name, builder.info.features, name)  # refused before it is downloaded
  make_ready(builder, name, say=to_stderr)
  columns, classes = chosen_columns(builder.name, builder.info.features, name)
  return {
    split: functools.partial(opened, builder, split, columns, classes)
    for split in builder.info.splits
  }


def opened(builder: Any, split: str, columns: 'Columns', classes: tuple[str, ...]) -> Source:
  """A split as a source.

  Raises:
    ValueError: if files of it are missing, or are of a format that cannot be read.
  """
  info = builder.info.splits[split]
  format_ = format_of(builder)
  files = shards(builder, split, format_)
  missing = [file for file in files if not os.path.isfile(file)]
  if missing:
    raise ValueError(
      f'{builder.data_dir} lacks {len(missing)} of the {len(files)} files of split {split!r}, '
      f'such as {os.path.basename(missing[0])}'
    )
  read = tfrecord.read if format_ == 'tfrecord' else array_record
  ends = tuple(itertools.accumulate(info.shard_lengths))
  examples = Examples(f'{builder.name}/{split}', files, ends, read, columns)
  return Source(examples, classes, examples.describe)


def format_of(builder: Any) -> str:
  """The format in which a prepared set is read, one of FORMATS."""
  found = {format_.value for format_ in builder.info.available_file_formats()} or {'tfrecord'}
  for format_ in FORMATS:
    if format_ in found:
      return format_
  raise ValueError(
    f'{builder.data_dir} holds {", ".join(sorted(found))} files; known: {", ".join(FORMATS)}'
  )


def shards(builder: Any, split: str, format_: str) -> tuple[str, ...]:
  """The files of a split, in order."""
  info = builder.info.splits[split]
  template = info.filename_template.replace(filetype_suffix=format_)
  return tuple(os.fspath(file) for file in template.sharded_filepaths(info.num_shards))


@dataclasses.dataclass(frozen=True)
class Columns:
  """What is read of an example, in a form that another process can take.

  Fields:
    features: those that are read, as JSON.
    image, label: names of features.
    value: (feature) -> the label, int32 or a vector of them.
    pixels: (feature) -> uint8 (H, W, 3); None leaves it the bytes of a file.
    file: name and, as JSON, feature of the file's name; empty where there is none.
  """

  features: str
  image: str
  label: str
  value: Callable[[Any], Any]
  pixels: Callable[[Any], np.ndarray] | None
  file: tuple[str, str] | tuple[()]


@dataclasses.dataclass(frozen=True)
class Examples(Sequence[Record]):
  """The records of a split.

  Fields:
    name: in messages.
    files: of the split.
    ends: of each file, the index after its last record.
    read: (file, index in it) -> a serialized tf.train.Example.
    columns: what to read of it.
  """

  name: str
  files: tuple[str, ...]
  ends: tuple[int, ...]
  read: Callable[[str, int], bytes]
  columns: Columns

  def __len__(self) -> int:
    return self.ends[-1] if self.ends else 0

  def __getitem__(self, index: Any) -> Any:
    """The record at an index.

    Raises:
      OSError: naming file and record, if it cannot be read.
      ValueError: for a label that cannot be.
    """
    columns = self.columns
    example = self.parsed(index, columns.features)
    image = example[columns.image]
    try:
      label = columns.value(example[columns.label])
    except ValueError as error:
      raise ValueError(f'{self.name}[{index}]: {error}') from error
    return {'image': image if columns.pixels is None else columns.pixels(image), 'label': label}

  def parsed(self, index: int, features: str) -> dict[str, Any]:
    """Some features of an example; of images, the bytes of their files."""
    index = range(len(self))[index]
    shard = bisect.bisect_right(self.ends, index)
    file, at = self.files[shard], index - (self.ends[shard - 1] if shard else 0)
    serialized = self.read(file, at)
    spec, decoders = spec_of(features)
    try:
      return spec.deserialize_example_np(serialized, decoders=decoders)
    except Exception as error:  # of several kinds
      text = first_line(error)
      raise OSError(f'{file}, record {at}: it is no such example ({text})') from error

  def describe(self, index: int) -> str:
    """'cifar10/train[17]', and the name of its file where that is known."""
    place = f'{self.name}[{index}]'
    if self.columns.file:
      key, features = self.columns.file
      with contextlib.suppress(OSError):
        text = self.parsed(index, features)[key]
        return f'{place} ({text.decode(errors="replace") if isinstance(text, bytes) else text})'
    return place


@functools.lru_cache(maxsize=64)
def spec_of(features: str) -> tuple[Any, dict[str, Any]]:
  """Features from JSON, and decoders that leave images encoded."""
  spec = tfds.features.FeatureConnector.from_json(json.loads(features))
  images = [key for key, feature in spec.items() if isinstance(feature, tfds.features.Image)]
  return spec, {key: tfds.decode.SkipDecoding() for key in images}


def array_record(path: str, index: int) -> bytes:
  """A record of an ArrayRecord file, whose checksums it verifies itself.

  Raises:
    OSError: naming the file and the record, if it cannot be read.
  """
  try:
    return reader(path).read([index])[0]
  except Exception as error:  # a RuntimeError, mostly
    raise OSError(f'{path}, record {index}: {first_line(error)}') from error


@functools.lru_cache(maxsize=OPEN_FILES)
def reader(path: str) -> Any:
  """An open file, which threads may share."""
  return array_record_module.ArrayRecordReader(
    path, options='readahead_buffer_size:0', file_reader_buffer_size=32768
  )


def chosen_columns(dataset: str, features: Any, name: Name) -> tuple[Columns, tuple[str, ...]]:
  """What is read of an example, and the names of the classes.

  Raises:
    ValueError: if there are no images or labels, or the ones asked for are not among them.
  """
  image = chosen_image(features, name)
  derived = presets.LABELS.get(f'{dataset}/{name.label}')
  value: Callable[[Any], Any]
  if derived:
    label, classes, value = derived.feature, derived.classes, derived.value
  else:
    label = chosen_label(dataset, features, name)
    feature = features[label]
    several = isinstance(feature, tfds.features.Sequence)
    classes = tuple((feature.feature if several else feature).names)
    value = several_labels if several else np.int32
  file = next((key for key in FILE_NAMES if key in features and is_text(features[key])), '')
  encoded = isinstance(features[image], tfds.features.Image)
  return Columns(
    features=as_json(features, image, label),
    image=image,
    label=label,
    value=value,
    pixels=PIXELS.get(dataset) if encoded else in_colour,
    file=(file, as_json(features, file)) if file else (),
  ), classes


def as_json(features: Any, *keys: str) -> str:
  """Some of the features, as JSON."""
  some = tfds.features.FeaturesDict({key: features[key] for key in keys})
  return json.dumps(some.to_json())


def is_text(feature: Any) -> bool:
  return isinstance(feature, tfds.features.Text)


def chosen_image(features: Any, name: Name) -> str:
  """The feature asked for, 'image', or the first that holds images."""
  found = [key for key, feature in features.items() if is_image(feature)]
  if not found:
    raise ValueError(f'{name.text} has no images; its features: {", ".join(features)}')
  if name.image is not None and name.image not in found:
    raise ValueError(f'{name.text} has no images {name.image!r}{nearest(name.image, found)}')
  return name.image or ('image' if 'image' in found else found[0])


def is_image(feature: Any) -> bool:
  """Whether it is an encoded image, or a tensor (H, W, 1 or 3) of uint8."""
  if isinstance(feature, tfds.features.Image):
    return np.dtype(feature.np_dtype) in (np.uint8, np.uint16)
  is_tensor = type(feature) is tfds.features.Tensor and np.dtype(feature.np_dtype) == np.uint8
  return is_tensor and len(feature.shape) == 3 and feature.shape[-1] in (1, 3)


def chosen_label(dataset: str, features: Any, name: Name) -> str:
  """The feature asked for, one of LABEL_NAMES, or the first that holds classes."""
  found = [key for key, feature in features.items() if is_label(feature)]
  derived = [key.partition('/')[2] for key in presets.LABELS if key.startswith(f'{dataset}/')]
  if name.label is not None and name.label not in found:
    raise ValueError(
      f'{name.text} has no label {name.label!r}{nearest(name.label, found + derived)}'
    )
  if not found:
    known = f'; use ?label={" or ".join(derived)}' if derived else ''
    raise ValueError(f'{name.text} has no feature of classes among {", ".join(features)}{known}')
  return name.label or next((key for key in LABEL_NAMES if key in found), found[0])


def is_label(feature: Any) -> bool:
  """Whether it is a class or a sequence of classes."""
  if isinstance(feature, tfds.features.Sequence):
    feature = feature.feature
  return isinstance(feature, tfds.features.ClassLabel)


def several_labels(labels: np.ndarray) -> np.ndarray:
  """(MAX_LABELS,) int32: the labels of an image, filled up with -1."""
  if len(labels) > MAX_LABELS:
    raise ValueError(f'{len(labels)} labels; at most {MAX_LABELS} are taken')
  filled = np.full(MAX_LABELS, -1, np.int32)
  filled[: len(labels)] = labels
  return filled


def in_colour(image: np.ndarray) -> np.ndarray:
  """(H, W, 1 or 3) uint8 as (H, W, 3)."""
  return np.broadcast_to(image, (*image.shape[:2], 3))


def brightened(image: bytes) -> np.ndarray:
  """A file whose pixels are 0 and 1, as 0 and 255."""
  from PIL import Image

  with Image.open(io.BytesIO(image)) as file:
    return in_colour(255 * np.asarray(file.convert('L'))[..., None])


PIXELS = {'dsprites': brightened}  # sets whose files are not as they are meant to be seen


def prepare(name: str, *, say: Callable[[str], object]) -> None:
  """Makes a data set ready: downloads what is not there, adds ArrayRecord files to TFRecord files.

  Args:
    name: of a preset, or as in a source, with or without 'tfds:'.
    say: takes a line for each thing done.

  Raises:
    ValueError: if that cannot be.
    OSError: if a TFRecord file is damaged, or the disk is full.
  """
  preset = presets.find(name)
  source = preset.source if preset else name
  kind, _, rest = source.partition(':')
  if preset and kind != 'tfds':
    raise ValueError(f'{name} is {source}: only sets of TFDS are prepared')
  parts = parsed(rest if kind == 'tfds' else source)
  builder = builder_of(parts)
  make_ready(builder, parts, say=say)
  if format_of(builder) != 'array_record':
    convert(builder)
    say(f'{builder.data_dir} now has ArrayRecord files beside its TFRecord files')
  counts = [f'{split} {info.num_examples}' for split, info in builder.info.splits.items()]
  say(f'{builder.info.full_name} is ready in {builder.data_dir}: {", ".join(counts)}')


def builder_of(name: Name) -> Any:
  """The TFDS builder of a set: of a version that lies there prepared, otherwise from TFDS's code.

  Raises:
    ValueError: if there is neither.
  """
  folder = pathlib.Path(name.text).expanduser()
  is_folder = (folder / 'dataset_info.json').is_file()
  if not is_folder and (folder.is_absolute() or name.text.startswith(('.', '~'))):
    raise ValueError(f'{folder} holds no data set prepared by TFDS (no dataset_info.json)')
  try:
    if is_folder:
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
    text = package_wanted(name, error) or f'{name.text}: {first_line(error)}'
    raise ValueError(text) from error


def make_ready(builder: Any, name: Name, *, say: Callable[[str], object]) -> None:
  """Downloads and prepares a set that is not there.

  TFDS does so in a folder of another name, which it removes if it fails.

  Raises:
    ValueError: if that cannot be, with the reason in a line.
  """
  if not os.path.isdir(builder.data_dir):
    say(f'{name.text} is not in {name.folder}: it is downloaded and prepared')
    if not sys.stderr.isatty():
      tfds.disable_progress_bar()
    try:
      with able_to_prepare(), patient(), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    except Exception as error:
      by_hand = isinstance(error, AssertionError) and builder.MANUAL_DOWNLOAD_INSTRUCTIONS
      told = ' '.join(str(error).split()) if by_hand else first_line(error)  # what to download
      text = (
        f'{name.text} is not in {name.folder} and could not be prepared ({told}); '
        f'to try again: vit data prepare {name.text}'
      )
      raise ValueError(package_wanted(name, error) or text) from error
  if not builder.info.splits:
    raise ValueError(
      f'{builder.data_dir} holds no complete data set: remove it, then vit data prepare {name.text}'
    )


def package_wanted(name: Name, error: BaseException) -> str:
  """The line that tells which package is missing; empty if none is."""
  cause: BaseException | None = error
  while cause and not (isinstance(cause, ImportError) and cause.name):  # TFDS tells errors anew
    cause = cause.__cause__ or cause.__context__
  if not isinstance(cause, ImportError):
    return ''
  module = str(cause.name).partition('.')[0]
  package = "'vit_jax[tfds]'" if module == 'tensorflow' else module
  return f'preparing {name.text} needs {module}: pip install {package}'


def first_line(error: BaseException) -> str:
  """Of an error's text, or its kind."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def able_to_prepare() -> Iterator[None]:
  """Inside, TFDS does without two packages that it imports and does not ask for.

  importlib_resources it needs for any set. Of TensorFlow most builders need only what `Tensorflow`
  has; without that it could not write splits over 1 GB either, which go to disk in 1,000 files.
  """
  with contextlib.ExitStack() as stack:
    if not importlib.util.find_spec('importlib_resources'):
      lazy = dataset_builder.importlib_resources
      stack.enter_context(replaced(vars(lazy), '_module', importlib.resources))
    if importlib.util.find_spec('tensorflow'):
      hide_gpus()
    else:
      stack.enter_context(replaced(vars(lazy_imports_utils.tensorflow), '_module', Tensorflow()))
      encode = image_feature._ImageEncoder._encode_image
      image_feature._ImageEncoder._encode_image = as_png
      stack.callback(setattr, image_feature._ImageEncoder, '_encode_image', encode)
      stack.enter_context(many_files())
    yield


@contextlib.contextmanager
def patient() -> Iterator[None]:
  """Inside, TFDS tries a download again RETRIES times, without a warning for each."""
  logger = logging.getLogger('urllib3')
  level, retries = logger.level, downloader.MAX_RETRIES
  logger.setLevel(logging.ERROR)
  downloader.MAX_RETRIES = RETRIES
  try:
    yield
  finally:
    logger.setLevel(level)
    downloader.MAX_RETRIES = retries


def hide_gpus() -> None:
  """From TensorFlow, which would take all of their memory."""
  import tensorflow

  with contextlib.suppress(RuntimeError):  # it has them already
    tensorflow.config.set_visible_devices([], 'GPU')


@contextlib.contextmanager
def replaced(values: dict[str, Any], key: str, value: Any) -> Iterator[None]:
  """Inside, a key that is not there has a value."""
  values[key] = value
  try:
    yield
  finally:
    del values[key]


class Tensorflow:
  """What most builders take of TensorFlow: its functions for files. Anything else is missing."""

  errors = types.SimpleNamespace(ResourceExhaustedError=type('Never', (Exception,), {}))
  io = types.SimpleNamespace(
    gfile=types.SimpleNamespace(
      GFile=lambda path, mode='r': open(os.fspath(path), mode),  # noqa: SIM115
      exists=os.path.exists,
      isdir=os.path.isdir,
      listdir=os.listdir,
      glob=lambda pattern: glob.glob(os.fspath(pattern)),
      walk=os.walk,
      remove=os.remove,
    )
  )

  def __getattr__(self, name: str) -> Any:
    raise ModuleNotFoundError(f'no TensorFlow, for its {name}', name='tensorflow')


def as_png(encoder: Any, image: np.ndarray) -> bytes:
  """What TFDS encodes with TensorFlow, with the same pixels; not JPEG, which would have others."""
  if encoder.encoding_format != 'png':
    raise ModuleNotFoundError('no TensorFlow, for its JPEG', name='tensorflow')
  image_feature._validate_np_array(image, shape=encoder.shape, dtype=encoder.np_dtype)
  channels = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(image.shape[-1], [0])  # OpenCV has BGR
  return cv2.imencode('.png', np.ascontiguousarray(image[..., channels]))[1].tobytes()


@contextlib.contextmanager
def many_files() -> Iterator[None]:
  """Inside, this process may have 4,096 files open, where the system lets it."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if 0 <= soft < 4096:
    most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def convert(builder: Any) -> None:
  """Writes the records of TFRecord files to ArrayRecord files too, in the same folder.

  The new files count from the moment that dataset_info.json names them, which comes last.

  Raises:
    ValueError: if there is no room for them, or a file has not the records that it should have.
    OSError: if a file is damaged.
  """
  folder = pathlib.Path(os.fspath(builder.data_path))
  room, needed = shutil.disk_usage(folder).free, builder.info.dataset_size
  if room < needed:
    raise ValueError(f'{folder} has room for {room >> 20} MiB, and needs {needed >> 20} MiB more')
  work = folder / 'incomplete.array_record'
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir()
  try:
    for split, info in builder.info.splits.items():
      old, new = (shards(builder, split, format_) for format_ in ('tfrecord', 'array_record'))
      with progress(info.num_examples, description=f'{builder.name}/{split}') as advance:
        for file, target, count in zip(old, new, info.shard_lengths):
          copied(file, work / os.path.basename(target), count)
          advance(count)
    for written in work.iterdir():
      os.replace(written, folder / written.name)
    proto = dataset_info.read_proto_from_builder_dir(folder)
    proto.alternative_file_formats.append('array_record')
    dataset_info.write_dataset_info_proto(proto, work)
    os.replace(work / 'dataset_info.json', folder / 'dataset_info.json')
  finally:
    shutil.rmtree(work, ignore_errors=True)


def copied(file: str, target: pathlib.Path, count: int) -> None:
  """Writes the records of a TFRecord file, `count` of them, to an ArrayRecord file."""
  writer = array_record_module.ArrayRecordWriter(str(target), 'group_size:1')
  try:
    for index in range(count):
      writer.write(tfrecord.read(file, index))
  finally:
    writer.close()
  there = len(tfrecord.index_of(file))
  written = array_record_module.ArrayRecordReader(str(target)).num_records()
  if (there, written) != (count, count):
    raise ValueError(
      f'{file} has {there} records, of which {written} were written; dataset_info.json says {count}'
    )
