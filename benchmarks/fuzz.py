"""Spoiled files and configs of every kind: each is accepted, or refused in one line.

python benchmarks/fuzz.py [KIND...] [--count 1000] [--seed 0] [--start 0]
  [--seconds 20] [--memory 2] [--verbose]

A case is a good input that a generator spoils, whose seed is (seed, number of the case): `--start N
--count 1` makes one again. Faults are: an error that is no line (a traceback), several lines, one
of over 300 characters or with what steers a terminal, what a C library prints, over --seconds, over
--memory GiB, and the end of the process. Every kind runs in a process of its own, which is started
again behind a case that ends it. Prints a row of counts for each kind and a line for each fault;
ends with 1 if there is a fault. Without pyarrow there is no `parquet`, without uvicorn no `serve`.
"""

import argparse
import base64
import contextlib
import functools
import importlib.util
import io
import json
import os
import pathlib
import re
import resource
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

Rng = np.random.Generator
Case = Callable[[Rng], object]  # spoils an input, and reads it as a command does

SIZE, CLASSES = (8, 8), ('ant', 'bee', 'cat')
START = 300.0  # seconds until a process has made its good inputs
HEADROOM = 8 * 2**30  # bytes that a process may map beyond those it has at its start

# ---- what spoils ----

NUMBERS = (
  0,
  -1,
  1,
  2,
  255,
  2**31 - 1,
  2**31,
  2**53,
  2**63,
  10**30,
  -(2**63),
  0.5,
  -0.0,
  1e30,
  1e308,
)
TEXTS = (
  '', ' ', 'nan', 'inf', '-', '0', '1e999', '9' * 5000, 'x' * 100_000, '\x00', '\x1b[2J\r\n\u202e',
  '../' * 40 + 'etc/passwd', '=1+1', '{}', '[' * 5000, '(' * 300, '-' * 5000 + '1', '%s%n', 'None',
  "'", '"', '\udc80', 'http://169.254.169.254/a', 'os:system', 'builtins:exec', '(a+)+$',
)  # fmt: skip


def deep(depth: int) -> Any:
  value: Any = []
  for _ in range(depth):
    value = [value]
  return value


def hostile(rng: Rng) -> Any:
  """A value that JSON may hold and no reader wants."""
  choices = (NUMBERS, TEXTS, (None, True, False, [], {}, [1] * 1000, {'a': 1}, deep(100)))
  group = choices[rng.integers(len(choices))]
  return group[rng.integers(len(group))]


def mutated(data: bytes, rng: Rng) -> bytes:
  """Bytes with one to three faults: cut, flipped, drawn, doubled, left out, extreme, copied."""
  spoiled = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    if not spoiled:
      break
    start, other = (int(rng.integers(len(spoiled))) for _ in range(2))
    # faults near the beginning, where headers are, are as likely as all others
    start = start if rng.random() < 0.5 else min(start, int(rng.integers(256)))
    stop = start + int(rng.integers(1, 17))
    match rng.integers(7):
      case 0:
        del spoiled[start:]
      case 1:
        spoiled[start] ^= 1 << int(rng.integers(8))
      case 2:
        spoiled[start:stop] = rng.bytes(stop - start)
      case 3:
        spoiled[start:start] = spoiled[start : start + int(rng.integers(1, 2000))]
      case 4:
        del spoiled[start:stop]
      case 5:
        width = int(rng.choice([1, 2, 4, 8]))
        spoiled[start : start + width] = [b'\xff', b'\0', b'\x7f'][rng.integers(3)] * width
      case 6:
        spoiled[start:stop] = spoiled[other : other + stop - start]
  return bytes(spoiled)


def mutated_json(value: Any, rng: Rng) -> Any:
  """A value of JSON with one part replaced, taken out or put under another name."""
  if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
    return hostile(rng)
  if isinstance(value, list):
    at = int(rng.integers(len(value)))
    return [*value[:at], mutated_json(value[at], rng), *value[at + 1 :]]
  name = list(value)[rng.integers(len(value))]
  rest = {key: part for key, part in value.items() if key != name}
  match rng.integers(6):
    case 0:
      return rest
    case 1:
      return rest | {str(hostile(rng))[:200]: value[name]}
  return value | {name: mutated_json(value[name], rng)}


def mutated_document(data: bytes, rng: Rng) -> bytes:
  """A JSON file that is spoiled in what it says, or as bytes."""
  if rng.random() < 0.3:
    return mutated(data, rng)
  if rng.random() < 0.05:
    return b'[' * 10**6 if rng.random() < 0.5 else b'{"a":' * 10**6
  text = json.dumps(mutated_json(json.loads(data), rng))
  return text.encode()


def mutated_table(data: bytes, rng: Rng) -> bytes:
  """A CSV file that is spoiled in a cell or a line, or as bytes."""
  if rng.random() < 0.3:
    return mutated(data, rng)
  lines = data.decode().splitlines()
  row = int(rng.integers(len(lines)))
  cells = lines[row].split(',')
  cells[rng.integers(len(cells))] = str(hostile(rng))
  lines[row] = ','.join(cells)
  if rng.random() < 0.3:
    lines.insert(row, lines[rng.integers(len(lines))])
  return '\n'.join(lines).encode('utf-8', 'surrogateescape')


def mutated_zip(data: bytes, rng: Rng) -> bytes:
  """An archive that is spoiled as bytes, or in one member whose checksum is right again."""
  if rng.random() < 0.4:
    return mutated(data, rng)
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = [(info, archive.read(info)) for info in archive.infolist()]
  at = int(rng.integers(len(members)))
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    for index, (info, content) in enumerate(members):
      spoiled = mutated(content, rng) if index == at else content
      archive.writestr(info.filename, spoiled, info.compress_type)
  return out.getvalue()


# ---- what is spoiled ----


def in_folder(folder: pathlib.Path, read: Callable[[pathlib.Path], object]) -> Case:
  """Spoils one file of a folder, or takes it away, and reads the whole."""
  good = folder.with_name(f'{folder.name}.good')
  shutil.copytree(folder, good)
  files = sorted(path.relative_to(good) for path in good.rglob('*') if path.is_file())

  def case(rng: Rng) -> object:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    file = files[rng.integers(len(files))]
    if rng.random() < 0.03:
      (folder / file).unlink()
    else:
      (folder / file).write_bytes(spoiler(file)((good / file).read_bytes(), rng))
    return read(folder)

  return case


def spoiler(path: pathlib.Path) -> Callable[[bytes, Rng], bytes]:
  """What spoils a file, by its kind."""
  kinds = {'.json': mutated_document, '.csv': mutated_table}
  zips = dict.fromkeys(('.npz', '.pth', '.stablehlo'), mutated_zip)
  return (kinds | zips).get(path.suffix, mutated)


def of_file(path: pathlib.Path, read: Callable[[pathlib.Path], object]) -> Case:
  """Spoils a file and reads it."""
  good = path.read_bytes()

  def case(rng: Rng) -> object:
    path.write_bytes(spoiler(path)(good, rng))
    return read(path)

  return case


def model(**fields: Any) -> Any:
  """A bundle of a tiny model with parameters drawn at random."""
  import jax
  import jax.numpy as jnp

  from vit_jax import bundle, models

  tiny = {'patch': (4, 4), 'width': 8, 'depth': 2, 'heads': 2, 'mlp_dim': 16, 'num_classes': 3}
  vit = models.build('ViT-Ti/16', **(tiny | fields))
  images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
  shapes = jax.eval_shape(vit.init, jax.random.key(0), images)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)), shapes)
  preprocess = bundle.Preprocess('resize', SIZE, (0.5,) * 3, (0.5,) * 3)
  return bundle.Bundle(vit, params, CLASSES, preprocess, 'ViT-Ti/16')


def checkpoint(to: str, name: str, folder: pathlib.Path) -> Case:
  """A checkpoint in a dialect."""
  from vit_jax import bundle, convert

  path = folder / name
  if to == 'bundle':
    bundle.write(path, model())
  else:
    bert = {'norm_eps': 1e-12 if to == 'hf' else 1e-6, 'activation': 'gelu_erf'}
    google = {'activation': 'gelu_tanh', 'norm_eps': 1e-6}
    convert.write(path, model(**(google if to == 'npz' else bert)), to=to)
  return (in_folder if path.is_dir() else of_file)(path, bundle.read)


def orbax(folder: pathlib.Path) -> Case:
  """An item of Orbax, which has no checksums of its own."""
  import orbax.checkpoint as ocp

  from vit_jax.convert import weights

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / 'item', model().params)
  return in_folder(folder / 'item', weights.read)


def exported(folder: pathlib.Path) -> Case:
  """A StableHLO program; what is spoiled has the digest that the JSON beside it says."""
  import hashlib

  from vit_jax import export

  (folder / 'program').mkdir()
  path = folder / 'program' / 'tiny.stablehlo'
  export.write(path, model(), to='stablehlo', check=False)

  def read(folder: pathlib.Path) -> object:
    beside = export.beside(folder / path.name)
    with contextlib.suppress(ValueError, OSError, TypeError, RecursionError):
      description = json.loads(beside.read_text('utf-8'))
      data = (folder / path.name).read_bytes()
      description['sha256'] = hashlib.sha256(data).hexdigest()
      beside.write_text(json.dumps(description), 'utf-8')
    return export.load(folder / path.name)

  return in_folder(folder / 'program', read)


def images(folder: pathlib.Path) -> Case:
  """Image files of every format, read with 1 to 5 channels."""
  from vit_jax.images import decoding

  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)
  forms: list[tuple[str, str, dict[str, Any]]] = [
    *((form, 'RGB', {}) for form in ('JPEG', 'BMP', 'WEBP', 'TIFF', 'AVIF')),
    *(('PNG', mode, {}) for mode in ('RGBA', 'P', 'I;16')),
    *(('JPEG', mode, {'progressive': mode == 'RGB'}) for mode in ('RGB', 'L', 'CMYK')),
    *(('TIFF', 'RGB', {'compression': name}) for name in ('tiff_lzw', 'tiff_deflate', 'jpeg')),
    *(('TIFF', mode, {'compression': 'packbits'}) for mode in ('CMYK', 'F')),
    ('GIF', 'P', {}),
    ('WEBP', 'RGBA', {'lossless': True}),
  ]
  suffixes = decoding.formats().values()
  seeds = []
  for form, mode, options in forms:
    if form in suffixes:
      file = io.BytesIO()
      Image.fromarray(pixels).convert('L' if mode == 'I;16' else mode).convert(mode).save(
        file, form, **options
      )
      seeds.append(file.getvalue())

  def case(rng: Rng) -> object:
    data = mutated(seeds[rng.integers(len(seeds))], rng)
    return decoding.decode(data, int(rng.choice([3, 3, 3, 1, 4, 5])))

  return case


def configs(folder: pathlib.Path) -> Case:
  """Fields of a config with values that nobody means, to the plan of the run."""
  from vit_jax import config, plan

  fields = list(config.flat(config.default()))
  small = ['model.width=16', 'model.depth=1', 'model.heads=2', 'model.mlp_dim=16', 'duration=3']

  def case(rng: Rng) -> object:
    overrides = []
    for _ in range(rng.integers(1, 3)):
      value = hostile(rng)
      if rng.random() < 0.2:
        value = (value, hostile(rng))
      if rng.random() < 0.2:
        value = f'{rng.choice(["resize", "random_crop", "randaug", "flip"])}({value})'
      if rng.random() < 0.3:
        value = f'{NUMBERS[rng.integers(len(NUMBERS))]} {rng.choice(["steps", "epochs", "h"])}'
      overrides.append(f'{fields[rng.integers(len(fields))]}={value}')
    return plan.make_plan(config.load('digits', [*small, *overrides]), folder / 'run')

  return case


def png(index: int) -> bytes:
  file = io.BytesIO()
  pixels = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def read_source(name: str) -> object:
  """All splits of a data set, and their first images."""
  from vit_jax import sources
  from vit_jax.images import decoding

  splits = {split: open_split() for split, open_split in sources.splits_of(name).items()}
  for source in splits.values():
    sources.notes_about(source)
    for index in range(min(len(source), 2)):
      decoding.as_pixels(source[index]['image'])
  return splits


def csv_table(folder: pathlib.Path) -> Case:
  """A table of paths and labels."""
  for index in range(6):
    (folder / f'{index}.png').write_bytes(png(index))
  rows = [
    f'{index}.png,{CLASSES[index % 3]},{"train" if index < 4 else "test"}' for index in range(6)
  ]
  path = folder / 'photos.csv'
  path.write_text('\n'.join(['path,label,split', *rows]))
  return of_file(path, lambda path: read_source(f'csv:{path}'))


def parquet(folder: pathlib.Path) -> Case:
  """A table with the images in it."""
  import pyarrow
  from pyarrow import parquet as tables

  path = folder / 'photos.parquet'
  columns = {'image': [png(index) for index in range(6)], 'label': [0, 1, 2] * 2}
  tables.write_table(pyarrow.table(columns), path)
  return of_file(path, lambda path: read_source(f'parquet:{path}'))


def arrays(folder: pathlib.Path) -> Case:
  """Images and labels in a .npz."""
  path = folder / 'photos.npz'
  np.savez_compressed(path, x=np.zeros((6, *SIZE, 3), np.uint8), y=np.arange(6) % 3)
  return of_file(path, lambda path: read_source(f'arrays:{path}'))


def array_record(folder: pathlib.Path) -> Case:
  """A set of TensorFlow Datasets in ArrayRecord files."""
  root = prepare_tfds(folder)
  return in_folder(root, lambda path: read_source(f'tfds:{path}'))


def tfrecord(folder: pathlib.Path) -> Case:
  """The same set in TFRecord files, which TFDS writes with TensorFlow alone."""
  from vit_jax.sources import tfds
  from vit_jax.sources import tfrecord as records

  root = prepare_tfds(folder)
  for path in root.glob('*.array_record-*'):
    with open(str(path).replace('array_record', 'tfrecord'), 'wb') as file:
      for index in range(len(CLASSES) * 2):
        data = tfds.read_array_record(str(path), index)
        sums = records.masked(records.crc32c(data)).to_bytes(4, 'little')
        file.write(records.header(len(data)) + data + sums)
    path.unlink()
  info = root / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  return in_folder(root, lambda path: read_source(f'tfds:{path}'))


def prepare_tfds(folder: pathlib.Path) -> pathlib.Path:
  """The folder of a set of six images in ArrayRecord files."""
  import tensorflow_datasets

  features = tensorflow_datasets.features.FeaturesDict(
    {
      'image': tensorflow_datasets.features.Image(shape=(None, None, 3), encoding_format='png'),
      'label': tensorflow_datasets.features.ClassLabel(names=CLASSES),
    }
  )

  with tensorflow_datasets.core.registered.skip_registration():

    class FuzzedPhotos(tensorflow_datasets.core.GeneratorBasedBuilder):
      VERSION = tensorflow_datasets.core.Version('1.0.0')

      def _info(self) -> Any:
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

      def _split_generators(self, dl_manager: Any) -> Any:
        return {'train': self._generate_examples()}

      def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(6):
          yield index, {'image': io.BytesIO(png(index)), 'label': index % 3}

  builder = FuzzedPhotos(data_dir=str(folder / 'data'), file_format='array_record')
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


def label_map(folder: pathlib.Path) -> Case:
  """A file with the model's class of each class of the data."""
  from vit_jax.sources import labels

  path = folder / 'map.json'
  path.write_text(json.dumps({'ant': 'bee', 'bee': 0, 'cat': None}))
  return of_file(path, lambda path: labels.read_map(path, CLASSES, CLASSES, needed=CLASSES))


def run_files(folder: pathlib.Path) -> Case:
  """What a run keeps beside its checkpoints."""
  from vit_jax import config, metrics, workdir

  loaded = config.load('digits')
  (folder / 'run').mkdir()
  workdir.claim(folder / 'run', loaded, say=lambda line: None)
  rows = [{'step': step, 'train/loss': 1.0} for step in range(3)]
  (folder / 'run' / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))

  def read(path: pathlib.Path) -> object:
    metrics.read_rows(path / 'metrics.jsonl')
    workdir.read_ranks(path)
    return workdir.claim(path, loaded, say=lambda line: None)

  return in_folder(folder / 'run', read)


SECRET = 'what no answer may hold'
SERVERS = contextlib.ExitStack()  # they run until it is closed, or the process ends


def served(folder: pathlib.Path) -> Case:
  """Requests to a server of a tiny model, which has to answer the next one and reads no file."""
  from vit_jax import bundle
  from vit_jax.serving import listening, server
  from vit_jax.serving import served as models
  from vit_jax.serving.requests import Limits

  bundle.write(folder / 'model', model())
  (folder / 'secret.png').write_text(SECRET)
  listener = listening.bind('127.0.0.1', 0)
  limits = Limits(image_bytes=1 << 20, seconds=5.0)
  tiny = models.load(folder / 'model')
  SERVERS.enter_context(
    server.running(tiny, listener, limits=limits, batch=8, say=lambda line: None)
  )
  address = listener.getsockname()
  good = good_requests(f'{folder}/secret.png')

  def case(rng: Rng) -> object:
    status, answer = exchange(address, spoiled_request(*good[rng.integers(len(good))], rng))
    if SECRET.encode() in answer:
      raise RuntimeError('the answer holds what is in a file')
    if status in (500, 504):
      raise RuntimeError(f'a fault of the server: {answer[-200:]!r}')
    health = b'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'
    if exchange(address, health)[0] != 200:
      raise RuntimeError('the next request is not answered')
    if not 200 <= status < 300:
      raise ValueError(f'status {status}')
    return answer

  return case


def good_requests(path: str) -> list[tuple[str, list[str], bytes]]:
  """First lines, headers and bodies: what is served, and what asks for a file."""
  text = base64.b64encode(png(0)).decode()
  kinds = ['Content-Type: application/json']
  posts = [('/predict', [], png(1)), ('/predict?top=2', ['Content-Type: image/png'], png(2))]
  posts += [(name, [], png(3)) for name in ('/look', '/nearest', '/occlusion?label=bee')]
  documents = [{'image': text}, {'images': [text, text], 'top': 2}, {'image': path, 'path': path}]
  posts += [('/predict', kinds, json.dumps(document).encode()) for document in documents]
  gets = ['/', '/health', '/metrics', path, f'/..{path}', f'/%2e%2e{path}', f'//..;{path}']
  gets += [f'file://{path}', f'/predict?file={path}', '/%0d%0aSet-Cookie:%20a=b', '/\\..\\x', '*']
  lines = [(f'GET {target} HTTP/1.1', [], b'') for target in gets]
  return lines + [(f'POST {target} HTTP/1.1', words, body) for target, words, body in posts]


HEADERS = (
  'Content-Length: -1', 'Content-Length: 99999999999', 'Content-Length: 1e3', 'Content-Length: 5',
  'Transfer-Encoding: chunked', 'Transfer-Encoding: gzip', 'Content-Encoding: gzip', 'Host: evil',
  'Expect: 100-continue', 'Upgrade: websocket\r\nConnection: upgrade', 'X: ' + 'a' * 70_000,
  'Content-Type: multipart/form-data; boundary=a', 'Content-Type: \x00', 'Range: bytes=0-',
  'Origin: null', 'Sec-Fetch-Site: cross-site', 'X: a\nY: b', ' folded', ': nameless', 'Cookie',
  '\r\n'.join(f'X{index}: a' for index in range(900)), 'Connection: keep-alive', 'TE: trailers',
)  # fmt: skip


def spoiled_request(line: str, headers: list[str], body: bytes, rng: Rng) -> bytes:
  """A request that is spoiled in its body, its headers or as bytes, or comes several times."""
  if body and rng.random() < 0.5:
    body = (mutated_document if body.startswith(b'{') else mutated)(body, rng)
  headers = ['Host: localhost', *headers]
  if body and rng.random() < 0.9:
    headers.append(f'Content-Length: {len(body)}')
  if rng.random() < 0.5:
    headers.insert(int(rng.integers(len(headers) + 1)), HEADERS[rng.integers(len(HEADERS))])
  data = '\r\n'.join([line, *headers, '', '']).encode('latin-1', 'replace') + body
  if rng.random() < 0.3:
    data = mutated(data, rng)
  return data * int(rng.choice([1, 1, 1, 2, 20]))


def exchange(address: tuple[str, int], data: bytes) -> tuple[int, bytes]:
  """The status, 0 without one, and all that a server sends until it ends the connection."""
  answer = b''
  try:
    with socket.create_connection(address, timeout=15) as connection:
      with contextlib.suppress(ConnectionError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
      with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
          answer += part
  except OSError as error:
    raise RuntimeError(f'no answer: {error}') from None
  status = re.match(rb'HTTP/1.1 (\d{3}) ', answer)
  return int(status[1]) if status else 0, answer


KINDS: dict[str, Callable[[pathlib.Path], Case]] = {
  'configs': configs,
  'images': images,
  'npz': functools.partial(checkpoint, 'npz', 'tiny.npz'),
  'safetensors': functools.partial(checkpoint, 'timm', 'tiny.safetensors'),
  'pytorch': functools.partial(checkpoint, 'timm', 'tiny.pth'),
  'huggingface': functools.partial(checkpoint, 'hf', 'hf'),
  'timm': functools.partial(checkpoint, 'timm', 'timm'),
  'bundle': functools.partial(checkpoint, 'bundle', 'bundle'),
  'orbax': orbax,
  'exported': exported,
  'csv': csv_table,
  'parquet': parquet,
  'arrays': arrays,
  'tfrecord': tfrecord,
  'arrayrecord': array_record,
  'json': label_map,
  'run': run_files,
  'serve': served,
}


NEEDS = {'parquet': 'pyarrow', 'serve': 'uvicorn'}  # the package of a kind


def kinds() -> list[str]:
  """Those whose packages are installed."""
  return [name for name in KINDS if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]


# ---- one case ----


class Outcome(NamedTuple):
  """What came of a case: 'accepted', 'refused' or 'fault', the line or the fault, the cost."""

  result: str
  line: str
  seconds: float = 0.0
  peak: int = 0  # bytes beyond those before


def outcome(case: Case, rng: Rng) -> Outcome:
  """Runs a case as a command would."""
  from vit_jax import commands, text

  errors, results = io.StringIO(), io.StringIO()
  try:
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(results):
      code = commands.run('fuzz', lambda: (case(rng), 0)[1])
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt):
      raise
    return Outcome('fault', text.message_line(f'{type(error).__name__}: {error}'))
  lines = errors.getvalue().splitlines()
  wrong = [line for line in lines if len(line) > text.LINE or not line.isprintable()]
  if code == commands.FAILED:  # an error that is none of its input: its traceback is in a file
    return Outcome('fault', lines[-1] if lines else 'no line')
  if wrong or (code and not lines):
    return Outcome('fault', text.message_line(f'no line of a message: {wrong}'))
  return Outcome('refused' if code else 'accepted', lines[-1] if code else '')


def measured(case: Case, rng: Rng, noise: IO[bytes]) -> Outcome:
  """`outcome` with its cost; what came on the file descriptors 1 and 2 is a fault."""
  before, size = memory('VmRSS'), os.fstat(noise.fileno()).st_size
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
  began = time.perf_counter()
  result = outcome(case, rng)
  seconds, peak = time.perf_counter() - began, memory('VmHWM') - before
  if printed := os.pread(noise.fileno(), 300, size):
    result = Outcome('fault', f'a library prints {printed!r}')
  return result._replace(seconds=seconds, peak=peak)


def memory(name: str) -> int:
  """A line of Linux's account of this process, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition(f'{name}:')[2].split()[0]) * 1024


def serve(kind: str, seed: int, start: int, stop: int) -> None:
  """Runs cases, and writes a line of JSON before and after each."""
  from vit_jax.guards import failing

  failing.install()  # as every command does
  out = os.fdopen(os.dup(1), 'w', buffering=1)
  with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as noise:
    os.dup2(noise.fileno(), 1)
    case = KINDS[kind](pathlib.Path(folder))
    sys.stdout.flush()
    os.dup2(noise.fileno(), 2)
    bytes_mapped = memory('VmSize')
    resource.setrlimit(resource.RLIMIT_AS, (bytes_mapped + HEADROOM, resource.RLIM_INFINITY))
    for number in range(start, stop):
      print('{}', file=out)
      result = measured(case, np.random.default_rng((seed, number)), noise)
      print(json.dumps(result._asdict()), file=out)


# ---- all cases ----


def outcomes(kind: str, args: argparse.Namespace) -> Iterator[tuple[int, Outcome]]:
  """Every case of a kind and what came of it; a process that hangs or ends is replaced."""
  number, stop = args.start, args.start + args.count
  while number < stop:
    words = [sys.executable, __file__, kind, '--serve', '--seed', str(args.seed)]
    words += ['--start', str(number), '--count', str(stop - number)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
      lines = line_reader(process)
      if not lines(START):
        process.kill()
        raise SystemExit(f'{kind}: its good inputs cannot be made: run it with --serve')
      while number < stop:
        line = lines(args.seconds)
        if line is None or (line == '' and process.wait() is not None):
          process.kill()
          end = 'no end' if line is None else f'the process ends with {process.returncode}'
          yield number, Outcome('fault', end, args.seconds)
          number += 1
          break
        yield number, Outcome(**json.loads(line))
        number += 1
        if number < stop:
          lines(args.seconds)
      process.kill()


def line_reader(process: subprocess.Popen[bytes]) -> Callable[[float], str | None]:
  """A function that waits some seconds for a line: None where none comes, '' at the end."""
  assert process.stdout
  descriptor, pending = process.stdout.fileno(), bytearray()

  def next_line(seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    while b'\n' not in pending:
      ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
      if not ready:
        return None
      if not (data := os.read(descriptor, 1 << 16)):
        return ''
      pending.extend(data)
    line, _, rest = bytes(pending).partition(b'\n')
    pending[:] = rest
    return line.decode()

  return next_line


def run(kind: str, args: argparse.Namespace) -> list[object]:
  """A row of the table; faults are printed as they come."""
  counts = dict.fromkeys(('accepted', 'refused', 'fault'), 0)
  slowest, peak = 0.0, 0
  for number, result in outcomes(kind, args):
    if result.peak > args.memory * 2**30:
      result = result._replace(result='fault', line=f'takes {result.peak / 2**30:.1f} GiB')
    counts[result.result] += 1
    slowest, peak = max(slowest, result.seconds), max(peak, result.peak)
    if result.result == 'fault':
      print(f'{kind} --seed {args.seed} --start {number} --count 1: {result.line}', flush=True)
    elif args.verbose:
      print(f'{kind} {number}: {result.result} {result.line}', flush=True)
  return [kind, args.count, *counts.values(), f'{slowest:.1f}', f'{peak / 2**20:.0f}']


def main() -> int:
  """1 where there was a fault."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('kinds', nargs='*', metavar='KIND', help=f'{", ".join(KINDS)}; default: all')
  for name, default in (('count', 1000), ('seed', 0), ('start', 0)):
    parser.add_argument(f'--{name}', type=int, default=default)
  parser.add_argument('--seconds', type=float, default=20.0, help='of a case')
  parser.add_argument('--memory', type=float, default=2.0, help='GiB of a case')
  parser.add_argument('--verbose', action='store_true', help='a line for every case')
  parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if unknown := set(args.kinds) - {*KINDS}:
    parser.error(f'unknown {", ".join(sorted(unknown))}; known: {", ".join(KINDS)}')
  if args.serve:
    serve(args.kinds[0], args.seed, args.start, args.start + args.count)
    return 0
  rows = [run(kind, args) for kind in args.kinds or kinds()]
  from vit_jax.text import columns

  titles = ['kind', 'cases', 'accepted', 'refused', 'faults', 'slowest, s', 'peak, MiB']
  print(*columns([titles, *rows]), sep='\n')
  return int(any(row[4] for row in rows))


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  sys.exit(main())
