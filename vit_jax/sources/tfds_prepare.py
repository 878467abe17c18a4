"""Prepares data sets of TFDS: downloads them, without TensorFlow, and adds ArrayRecord files.

TFDS asks for TensorFlow where little of it is needed, so that some of its members are replaced for
the time; they are those of TFDS 4.9.10, and tests/test_tfds.py says so.
"""

import contextlib
import glob
import importlib.resources.abc
import importlib.util
import io
import logging
import os
import pathlib
import resource
import shutil
import sys
import types
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.core.utils import lazy_imports_utils

from vit_jax.sources import tfrecord
from vit_jax.text import first_line, progress

RETRIES = 5  # of a download: 6 seconds; TFDS's own 10 are 100
MAX_OPEN_FILES = 4096  # TFDS spills a large split to 1,000 files; many systems allow 1,024 in all


def make_ready(
  builder: DatasetBuilder, name: str, folder: str, *, say: Callable[[str], object]
) -> None:
  """Downloads and prepares a set that is not there; `say` takes a line if it does.

  TFDS does so in a folder of another name, which it removes if it fails. `name` and `folder` are
  for messages: of the set, and where it is looked for.
  """
  if not os.path.isdir(builder.data_dir):
    say(f'{name} is not in {folder}: it is downloaded and prepared')
    if not sys.stderr.isatty():
      tfds.disable_progress_bar()
    try:
      with without_packages(), fewer_retries(), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    except Exception as error:
      by_hand = isinstance(error, AssertionError) and builder.MANUAL_DOWNLOAD_INSTRUCTIONS
      reason = ' '.join(str(error).split()) if by_hand else first_line(error)  # what to download
      message = (
        f'{name} is not in {folder} and could not be prepared ({reason}); '
        f'to try again: vit data prepare {name}'
      )
      raise ValueError(missing_package(name, error) or message) from error
  if not builder.info.splits:
    raise ValueError(
      f'{builder.data_dir} holds no complete data set: remove it, then vit data prepare {name}'
    )


def missing_package(name: str, error: BaseException) -> str:
  """The line that says which package is missing; empty if none is."""
  cause: BaseException | None = error
  while cause and not (isinstance(cause, ImportError) and cause.name):  # TFDS raises others from it
    cause = cause.__cause__ or cause.__context__
  if not isinstance(cause, ImportError):
    return ''
  module = str(cause.name).partition('.')[0]
  package = "'vit_jax[tfds]'" if module == 'tensorflow' else module
  return f'preparing {name} needs {module}: pip install {package}'


@contextlib.contextmanager
def without_packages() -> Iterator[None]:
  """Inside, TFDS does without two packages that it imports and does not ask for.

  importlib_resources it needs for any set; Python's own serves. Of TensorFlow most builders need
  only what `Tensorflow` has; without that it could not write splits over 1 GB either, which go to
  disk in 1,000 files. TFDS imports both on first use and keeps them, TensorFlow in `_module`.
  """
  with contextlib.ExitStack() as stack:
    if not importlib.util.find_spec('importlib_resources'):
      stack.enter_context(adding(sys.modules, 'importlib_resources', importlib.resources))
    if importlib.util.find_spec('tensorflow'):
      hide_gpus()
    else:
      stack.enter_context(adding(vars(lazy_imports_utils.tensorflow), '_module', Tensorflow()))
      encoder = image_feature._ImageEncoder  # encodes the pixels that a builder gives
      stack.callback(setattr, encoder, '_encode_image', encoder._encode_image)
      encoder._encode_image = as_png
      stack.enter_context(many_files())
    yield


@contextlib.contextmanager
def fewer_retries() -> Iterator[None]:
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
  """Hides GPUs from TensorFlow, which would take all of their memory."""
  import tensorflow

  with contextlib.suppress(RuntimeError):  # it has them already
    tensorflow.config.set_visible_devices([], 'GPU')


@contextlib.contextmanager
def adding(values: MutableMapping[str, Any], key: str, value: object) -> Iterator[None]:
  """Inside, a key that is not there has a value."""
  values[key] = value
  try:
    yield
  finally:
    del values[key]


class Tensorflow:
  """The part of TensorFlow that most builders use: its functions for files. No more is there."""

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

  def __getattr__(self, name: str) -> None:
    raise ModuleNotFoundError(f'no TensorFlow, for its {name}', name='tensorflow')


def as_png(encoder: image_feature._ImageEncoder, image: np.ndarray) -> bytes:
  """The PNG file of pixels that TFDS would encode with TensorFlow; no JPEG: its pixels differ."""
  if encoder.encoding_format != 'png':
    raise ModuleNotFoundError('no TensorFlow, for its JPEG', name='tensorflow')
  image_feature._validate_np_array(image, shape=encoder.shape, dtype=encoder.np_dtype)
  channels = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(image.shape[-1], [0])  # OpenCV has BGR
  return cv2.imencode('.png', np.ascontiguousarray(image[..., channels]))[1].tobytes()


@contextlib.contextmanager
def many_files() -> Iterator[None]:
  """Inside, this process may have MAX_OPEN_FILES open, where the system lets it."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if 0 <= soft < MAX_OPEN_FILES:
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def shards(builder: DatasetBuilder, split: str, file_format: str) -> tuple[str, ...]:
  """The files of a split, in order."""
  info = builder.info.splits[split]
  template = info.filename_template.replace(filetype_suffix=file_format)
  return tuple(os.fspath(file) for file in template.sharded_filepaths(info.num_shards))


def to_array_record(builder: DatasetBuilder) -> None:
  """Writes the records of TFRecord files to ArrayRecord files too, in the same folder.

  The new files count from the moment that dataset_info.json names them, which comes last; until
  then they are in a folder of their own, as ArrayRecord's writer takes a path, not an open file.
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
      old, new = (shards(builder, split, form) for form in ('tfrecord', 'array_record'))
      with progress(info.num_examples, description=f'{builder.name}/{split}') as advance:
        for file, target, count in zip(old, new, info.shard_lengths):
          copy_records(file, work / os.path.basename(target), count)
          advance(count)
    for written in work.iterdir():
      os.replace(written, folder / written.name)
    proto = dataset_info.read_proto_from_builder_dir(folder)
    proto.alternative_file_formats.append('array_record')
    dataset_info.write_dataset_info_proto(proto, work)
    os.replace(work / 'dataset_info.json', folder / 'dataset_info.json')
  finally:
    shutil.rmtree(work, ignore_errors=True)


def copy_records(file: str, target: pathlib.Path, count: int) -> None:
  """Writes the records of a TFRecord file, `count` of them, to an ArrayRecord file."""
  writer = array_record_module.ArrayRecordWriter(str(target), 'group_size:1')
  try:
    for index in range(count):
      writer.write(tfrecord.read(file, index))
  finally:
    writer.close()
  total = len(tfrecord.index_of(file))
  written = array_record_module.ArrayRecordReader(str(target)).num_records()
  if (total, written) != (count, count):
    raise ValueError(
      f'{file} has {total} records, of which {written} were written; dataset_info.json says {count}'
    )
