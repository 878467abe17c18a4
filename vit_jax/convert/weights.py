"""Weight files as flat {name: array}: npz, safetensors, PyTorch, Orbax; the first three also out.

Nothing in a file is executed, and a file is not believed: sizes, places and checksums are compared
with the bytes there are before anything is allocated. What is stored uncompressed is not copied:
the arrays are read-only views of the mapped file. Such a file may be replaced while they live, as
the writers here do, but must not be cut short in place: the system then ends the process (SIGBUS).
"""

import contextlib
import functools
import importlib.util
import io
import json
import math
import mmap
import os
import pathlib
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import ml_dtypes
import numpy as np

from vit_jax import files
from vit_jax.text import one_line

Path = str | os.PathLike[str]
Arrays = dict[str, np.ndarray]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {  # by their names in safetensors
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': BFLOAT16,
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U64': np.dtype('<u8'),
  'U32': np.dtype('<u4'),
  'U16': np.dtype('<u2'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
STORAGES = {  # of PyTorch
  'torch DoubleStorage': 'F64',
  'torch FloatStorage': 'F32',
  'torch HalfStorage': 'F16',
  'torch BFloat16Storage': 'BF16',
  'torch LongStorage': 'I64',
  'torch IntStorage': 'I32',
  'torch ShortStorage': 'I16',
  'torch CharStorage': 'I8',
  'torch ByteStorage': 'U8',
  'torch BoolStorage': 'BOOL',
}
ORDERED_DICT = 'collections OrderedDict'
REBUILD_TENSOR = 'torch._utils _rebuild_tensor_v2'
REBUILD_PARAMETER = 'torch._utils _rebuild_parameter'
GLOBALS = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *STORAGES}
SAFE_TORCH = (2, 6)  # before it weights_only=True could be made to run code (CVE-2025-32434)

SHARDS = '.index.json'
FILES = (
  'model.safetensors',
  'model.safetensors' + SHARDS,
  'pytorch_model.bin',
  'pytorch_model.bin' + SHARDS,
  'open_clip_model.safetensors',
  'open_clip_pytorch_model.bin',
)
WEIGHTS = ('.npz', '.safetensors', '.bin', '.pth', '.pt', '.ckpt')
LFS = b'version https://git-lfs.github.com/spec/'
ITEMS = ('.', 'state', 'default')  # where in a checkpoint's folder Orbax puts the arrays

# What a hostile file can cost. Arrays take at most the larger of EXPANSION times the file's bytes
# and LEAST_TOTAL: zeros compress 1000-fold, and a small file of them is nothing to fear.
EXPANSION, LEAST_TOTAL = 200, 2**30
DEFLATE = 1032  # the most bytes that one byte of a deflate stream can stand for
NPY_HEADER = 10_000  # bytes, numpy's own limit
JSON_HEADER = 100_000_000  # bytes, the safetensors library's own limit
PICKLE, OPCODES = 2**26, 1_000_000  # bytes and instructions; a tensor takes 40
VALUES, NAME = 300_000, 512  # nested values, of shared ones each time met; characters of a name
RANK = 32
CHUNK = 2**20
WRITTEN = 2**16  # bytes at a time: Linux caches larger pieces in larger pages, which are scarce
ALIGNMENT = 64  # of arrays in the zip files written here


def read(path: Path) -> Arrays:
  """The arrays of a weight file of any kind, which its first bytes tell, not its suffix.

  Args:
    path: a .npz, .safetensors or PyTorch file; the index of a file in shards, or the name of the
      file that it stands for; an Orbax item, or the step that has it; or a folder with one
      of these under its usual name, of several the first of FILES.

  Returns:
    Read-only arrays. Those of an Orbax item are named with '/' and are its `params` if it has
    such a part; those of nested PyTorch dictionaries are named with '.'.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: one line that names the file and what is wrong with it.
  """
  found = find(pathlib.Path(path))
  if found.is_dir():
    return read_orbax(found)
  if found.name.endswith(SHARDS):
    return read_shards(found)
  return reader(found)(found)


def find(path: pathlib.Path) -> pathlib.Path:
  """The one weight file, index of shards or Orbax item that a path means."""
  if path.is_dir():
    found = [path / name for name in FILES if (path / name).is_file()]
    found += [path / item for item in ITEMS if (path / item / '_METADATA').is_file()]
    if not found:
      wanted = ', '.join(FILES)
      there = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHTS)
      hint = f'; name one of its files: {", ".join(there[:8])}' if there else ''
      raise FileNotFoundError(
        one_line(f'{path} holds no weights: neither {wanted} nor an Orbax item{hint}')
      )
    return found[0]
  index = path.with_name(path.name + SHARDS)
  found = [file for file in (path, index) if file.exists()]
  if not found:
    raise FileNotFoundError(one_line(f'{path}: there is no such file or folder'))
  if not found[0].is_file():
    raise ValueError(one_line(f'{found[0]} is neither a file nor a folder'))
  if re.search(r'-\d+-of-\d+\.', path.name):
    index = path.with_name(re.sub(r'-\d+-of-\d+(?=\.)', '', path.name) + SHARDS)
    if index.exists():
      raise ValueError(
        one_line(f'{path} is one of several: give {index.name}, which lies beside it')
      )
  return found[0]


def reader(path: pathlib.Path) -> Callable[[Path], Arrays]:
  """The function that reads files which begin like this one."""
  with opened(path) as (file, data):
    head = data[:9].tobytes()
    if data[: len(LFS)].tobytes() == LFS:
      raise ValueError('it is a pointer of git-lfs, not the file: fetch that with `git lfs pull`')
    if head.startswith((b'PK\3\4', b'PK\5\6')):
      with unzipped(file) as archive:
        pickled = any(name.endswith('/data.pkl') for name in archive.namelist())
      return read_torch if pickled else read_npz
    if path.suffix == '.safetensors' or head.endswith(b'{'):
      return read_safetensors
    if head.startswith(b'\x80'):  # a pickle: PyTorch before 1.6
      return read_torch
    raise ValueError('it is none of npz, safetensors, PyTorch and Orbax')


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], np.ndarray]]:
  """A file and its bytes, mapped; all that goes wrong with them is a ValueError of one line."""
  with open(path, 'rb') as file, files.naming(path):
    if not os.fstat(file.fileno()).st_size:
      raise ValueError('it is empty')
    yield file, np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


@contextlib.contextmanager
def unzipped(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
  """A zip file, whose directory stands at its end."""
  try:
    archive = zipfile.ZipFile(file)
  except zipfile.BadZipFile:
    raise ValueError('it is cut short or damaged: a zip file without its directory') from None
  with archive:
    yield archive


def check_total(total: int, size: int) -> None:
  """Raises ValueError if arrays of `total` bytes are more than a file of `size` may hold."""
  limit = max(EXPANSION * size, LEAST_TOTAL)
  if total > limit:
    raise ValueError(f'{total} bytes of arrays in {size}, at most {limit} are read')


def array(name: str, raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
  """Bytes as a read-only array, not copied."""
  wanted = math.prod(shape) * dtype.itemsize
  if len(shape) > RANK or min(shape, default=0) < 0 or wanted != raw.size:
    found = f'{raw.size} bytes' if len(shape) <= RANK else f'{len(shape)} dimensions'
    raise ValueError(f'{name!r} has {found} for shape {shape[:RANK]} of {dtype}')
  check_bool(name, raw, dtype)
  values = raw.view(dtype).reshape(shape)
  values.flags.writeable = False
  return values


def check_bool(name: str, raw: np.ndarray, dtype: np.dtype) -> None:
  if dtype.kind == 'b' and raw.max(initial=0) > 1:
    raise ValueError(f'{name!r} has bytes other than 0 and 1 for bool')


# ---- zip ----


def members(archive: zipfile.ZipFile, data: np.ndarray) -> dict[str, zipfile.ZipInfo]:
  """What a zip file holds, once it is known to lie inside the file, apart, and to fit its bytes."""
  named: dict[str, zipfile.ZipInfo] = {}
  for info in archive.infolist():
    if info.filename in named:
      raise ValueError(f'member {info.filename!r} comes twice')
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise ValueError(f'member {info.filename!r} is encrypted or compressed in an unusual way')
    packed, size = info.compress_size, info.file_size
    stored = info.compress_type == zipfile.ZIP_STORED
    if (packed != size) if stored else (size > DEFLATE * packed):
      raise ValueError(f'member {info.filename!r} claims {size} bytes in {packed}')
    named[info.filename] = info
  check_total(sum(info.file_size for info in named.values()), data.size)
  spans = sorted((info.header_offset, span(info, data).stop) for info in named.values())
  ends = [0, *(end for _, end in spans)]
  starts = [*(start for start, _ in spans), archive.start_dir]
  if any(start < end for start, end in zip(starts, ends)):
    raise ValueError('its members overlap')
  return named


def span(info: zipfile.ZipInfo, data: np.ndarray) -> slice:
  """Where in the file the bytes of a member are."""
  header = data[info.header_offset : info.header_offset + 30].tobytes()
  if header[:4] != b'PK\3\4' or len(header) < 30:
    raise ValueError(f'member {info.filename!r} is not where the directory says')
  start = info.header_offset + 30 + sum(struct.unpack('<HH', header[26:]))
  return slice(start, start + info.compress_size)


def contents(archive: zipfile.ZipFile, info: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
  """The bytes of a member, its checksum compared; mapped if it is stored uncompressed."""
  if info.compress_type == zipfile.ZIP_STORED:
    raw = data[span(info, data)]
    if zlib.crc32(raw.data) != info.CRC:
      raise ValueError(f'member {info.filename!r} is damaged: its checksum differs')
    return raw
  raw = np.empty(info.file_size, np.uint8)
  filled = 0
  with archive.open(info) as stream:  # compares the checksum at the end
    while chunk := stream.read(CHUNK):
      raw[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
      filled += len(chunk)
  if filled < info.file_size:
    raise ValueError(f'member {info.filename!r} ends after {filled} of {info.file_size} bytes')
  return raw


# ---- npz ----

NPY = re.compile(
  r"\{ *'descr': *(?P<dtype>'[^']*'|\[.*\]) *, *"
  r"'fortran_order': *(?P<fortran>True|False) *, *"
  r"'shape': *\((?P<shape>[\d, ]*)\) *,? *\}\s*",
)


def read_npz(path: Path) -> Arrays:
  """The arrays of a .npz; those that hold Python objects are refused."""
  with opened(path) as (file, data), unzipped(file) as archive:
    arrays = {}
    for member, info in members(archive, data).items():
      if not member.endswith('.npy'):
        raise ValueError(f'member {member!r} is not an array')
      name = member.removesuffix('.npy')
      arrays[name] = read_npy(name, contents(archive, info, data))
    return arrays


def read_npy(name: str, raw: np.ndarray) -> np.ndarray:
  """The array in the bytes of a .npy file."""
  magic, major = raw[:6].tobytes(), raw[6:7].tobytes()
  if magic != b'\x93NUMPY' or major not in (b'\1', b'\2', b'\3'):
    raise ValueError(f'{name!r} is not a .npy file of version 1, 2 or 3')
  start = 10 if major == b'\1' else 12
  end = start + int.from_bytes(raw[8:start].tobytes(), 'little')
  if end > min(raw.size, NPY_HEADER):
    raise ValueError(f'{name!r} has a header of {end} bytes in {raw.size}')
  match = NPY.fullmatch(raw[start:end].tobytes().decode('latin1'))
  if match is None:
    raise ValueError(f'{name!r} has a header that no array has')
  shape = tuple(int(size) for size in match['shape'].replace(',', ' ').split())
  dtype = npy_dtype(name, match['dtype'].strip("'"))
  fortran = match['fortran'] == 'True'
  values = array(name, raw[end:], dtype, shape[::-1] if fortran else shape)
  values = values.T if fortran else values
  if not dtype.isnative:
    values = values.astype(native(dtype))
    values.flags.writeable = False
  return values


def npy_dtype(name: str, text: str) -> np.dtype:
  """The dtype of a .npy header's `descr`."""
  if re.fullmatch(r'[<|]V2', text):  # numpy has no name for it
    return BFLOAT16
  if re.fullmatch(r'[<>|=]?(f[248]|[iu][1248]|b1)', text):
    return np.dtype(text)
  if 'O' in text:
    raise ValueError(f'{name!r} holds Python objects, not arrays: refused')
  raise ValueError(f'{name!r} has dtype {text[:40]!r}, which is not one of numbers')


# ---- safetensors ----


def read_safetensors(path: Path) -> Arrays:
  """The arrays of one .safetensors file."""
  with opened(path) as (_, data):
    header, body = split_safetensors(data)
    header.pop('__metadata__', None)
    fields = {name: safetensors_fields(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, (start, stop)) in sorted(fields.items(), key=lambda item: item[1][2]):
      if start != end or stop < start:
        raise ValueError(f'{name!r} is at bytes {start} to {stop}, after one that ends at {end}')
      end = stop
    if end != body.size:
      raise ValueError(f'its arrays take {end} bytes of {body.size}')
    return {
      name: array(name, body[start:stop], dtype, shape)
      for name, (dtype, shape, (start, stop)) in fields.items()
    }


def split_safetensors(data: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
  """The header and the bytes of the arrays."""
  size = int.from_bytes(data[:8].tobytes(), 'little')
  if data.size < 8 or size > min(data.size - 8, JSON_HEADER):
    raise ValueError(f'its header claims {size} bytes of {data.size}')
  return files.read_json(data[8 : 8 + size].tobytes()), data[8 + size :]


def safetensors_fields(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
  """The dtype, the shape and the place of an array, from its entry in the header."""
  if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
    raise ValueError(f'{name!r} is not described by dtype, shape and data_offsets')
  dtype, shape, place = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(f'{name!r} has dtype {str(dtype)[:40]!r}, not one of {", ".join(DTYPES)}')
  if not sizes(shape) or not sizes(place) or len(place) != 2:
    raise ValueError(f'{name!r} has a shape or offsets that are no sizes')
  return DTYPES[dtype], tuple(shape), tuple(place)


def sizes(value: Any) -> bool:
  """Whether it is a list or tuple of few numbers from 0 to 2^63."""
  return (
    isinstance(value, list | tuple)
    and len(value) <= RANK
    and all(type(size) is int and 0 <= size < 2**63 for size in value)
  )


def read_shards(index: Path) -> Arrays:
  """The arrays of all the files, .safetensors or PyTorch's, that an index names."""
  index = pathlib.Path(index)
  with opened(index) as (_, data):
    places = files.read_json(data[:JSON_HEADER].tobytes()).get('weight_map')
    if not isinstance(places, dict) or not all(map(shard_name, places.values())):
      raise ValueError('its weight_map does not map names to .safetensors or .bin files beside it')
  shards = {}
  for file in sorted({*places.values()}):
    shard = index.with_name(file)
    shards[file] = read_safetensors(shard) if shard.suffix == '.safetensors' else read_torch(shard)
  found = {(name, file) for file, arrays in shards.items() for name in arrays}
  if wrong := sorted(places.items() ^ found):
    listed = '; '.join(f'{name!r} of {file}' for name, file in wrong[:5])
    raise ValueError(one_line(f'{index} does not list just what its files hold: {listed}'))
  return {name: shards[file][name] for name, file in places.items()}


def shard_name(file: Any) -> bool:
  return isinstance(file, str) and bool(re.fullmatch(r'[^/\\\0]+\.(safetensors|bin)', file))


# ---- PyTorch ----


@dataclass(frozen=True)
class Global:
  """What a pickle names by module and name; here it stays a name."""

  name: str


@dataclass(frozen=True)
class Storage:
  """The memory that tensors are views of: bytes, and the dtype of its elements."""

  raw: np.ndarray
  dtype: np.dtype

  @property
  def size(self) -> int:
    return self.raw.size // self.dtype.itemsize


def read_torch(path: Path) -> Arrays:
  """The tensors of a file by `torch.save`; nested dictionaries are joined with '.'.

  PyTorch itself is needed only for files from before 1.6, and for those that ask for more than the
  restricted reader gives. Its own safe mode decides about these.
  """
  with opened(path) as (_, data):
    zipped = data[:2].tobytes() == b'PK'
  if not zipped:
    return load_with_torch(path)
  try:
    return read_torch_restricted(path)
  except files.Unlisted as error:
    try:
      return load_with_torch(path)
    except ValueError:  # without PyTorch, or it refuses as well
      raise error from None


def read_torch_restricted(path: Path) -> Arrays:
  """The tensors of a file by `torch.save` since 1.6, read without PyTorch and without `pickle`.

  The few pickle instructions that such files consist of are interpreted here: none of them can
  import or call anything, and names outside GLOBALS are refused.
  """
  with opened(path) as (file, data), unzipped(file) as archive:
    infos = members(archive, data)
    pickles = [name for name in infos if name.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise ValueError(f'it has {len(pickles)} members data.pkl, not one')
    root = pickles[0].removesuffix('data.pkl')

    def member(name: str) -> np.ndarray:
      if (info := infos.get(root + name)) is None:
        raise ValueError(f'member {root + name!r} is missing')
      if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f'member {root + name!r} is compressed, which PyTorch does not do')
      return contents(archive, info, data)

    if root + 'byteorder' in infos and member('byteorder').tobytes() != b'little':
      raise ValueError("its member byteorder does not say 'little'")

    @functools.cache
    def storage(kind: str, key: str, count: int) -> Storage:
      raw, dtype = member('data/' + key), DTYPES[STORAGES[kind]]
      if raw.size != count * dtype.itemsize:
        raise ValueError(f'storage {key!r} has {raw.size} bytes, not {count} of {dtype}')
      check_bool(f'storage {key}', raw, dtype)
      return Storage(raw, dtype)

    arrays = flatten(unpickle(member('data.pkl').data, storage), '.', np.ndarray)
    check_total(sum(values.nbytes for values in arrays.values()), data.size)
    return arrays


MARK = object()
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
TUPLES = {'EMPTY_TUPLE': 0, 'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def unpickle(text: memoryview, storage: Callable[[str, str, int], Storage]) -> Any:
  """What a pickle of tensors describes, made of dictionaries, lists, tuples, numbers and arrays.

  Args:
    text: the pickle.
    storage: gives the storage of a kind, a key and a number of elements.
  """
  if len(text) > PICKLE:
    raise ValueError(f'its pickle has {len(text)} bytes, at most {PICKLE} are read')
  stack: list[Any] = []
  memo: dict[Any, Any] = {}
  for count, (opcode, value, _) in enumerate(pickletools.genops(bytes(text))):
    if count > OPCODES:
      raise ValueError(f'its pickle has more than {OPCODES} instructions')
    match opcode.name:
      case 'PROTO' | 'FRAME':
        pass
      case 'STOP':
        return stack.pop()
      case 'MARK':
        stack.append(MARK)
      case 'EMPTY_DICT':
        stack.append({})
      case 'EMPTY_LIST':
        stack.append([])
      case 'TUPLE':
        stack.append(tuple(since_mark(stack)))
      case 'SETITEM' | 'SETITEMS':
        items = popped(stack, 2) if opcode.name == 'SETITEM' else since_mark(stack)
        typed(stack[-1], dict).update(zip(map(key, items[::2]), items[1::2], strict=True))
      case 'APPEND' | 'APPENDS':
        items = popped(stack, 1) if opcode.name == 'APPEND' else since_mark(stack)
        typed(stack[-1], list).extend(items)
      case 'BINPUT' | 'LONG_BINPUT':
        memo[value] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(memo[value])
      case 'GLOBAL':
        stack.append(listed(str(value)))
      case 'STACK_GLOBAL':
        stack.append(listed('{} {}'.format(*popped(stack, 2))))
      case 'BINPERSID':
        stack.append(storage_of(typed(stack.pop(), tuple), storage))
      case 'REDUCE':
        function, arguments = popped(stack, 2)
        stack.append(call(typed(function, Global).name, typed(arguments, tuple)))
      case 'BUILD':  # gives an OrderedDict attributes, of which no tensor is one
        stack.pop()
        typed(stack[-1], dict)
      case 'BININT' | 'BININT1' | 'BININT2' | 'LONG1' | 'BINFLOAT':
        stack.append(value)
      case 'BINUNICODE' | 'SHORT_BINUNICODE':
        stack.append(value)
      case name if name in CONSTANTS:
        stack.append(CONSTANTS[name])
      case name if name in TUPLES:
        stack.append(tuple(popped(stack, TUPLES[name])))
      case name:
        raise ValueError(f'its pickle has the instruction {name}, which no weights need: refused')
  raise ValueError('its pickle does not end')


def popped(stack: list[Any], count: int) -> list[Any]:
  """The last `count` values, which leave the stack."""
  if len(stack) < count:
    raise ValueError('its pickle takes more than it has put')
  start = len(stack) - count
  values = stack[start:]
  del stack[start:]
  return values


def since_mark(stack: list[Any]) -> list[Any]:
  """The values above the last mark, which leave the stack with it."""
  values = []
  while (value := stack.pop()) is not MARK:
    values.append(value)
  return values[::-1]


def typed(value: Any, kind: type) -> Any:
  if not isinstance(value, kind):
    raise ValueError(f'its pickle has {type(value).__name__} in the place of {kind.__name__}')
  return value


def key(value: Any) -> Any:
  """The key of a dictionary: text or a moderate number, as others can be made to hash alike."""
  if not isinstance(value, str | int) or (isinstance(value, int) and abs(value) >= 2**60):
    raise ValueError(f'its pickle has a {type(value).__name__} as the key of a dictionary')
  return value


def listed(name: str) -> Global:
  if name not in GLOBALS:
    asked = name[:80].replace(' ', '.')
    raise files.Unlisted(f'it asks for {asked!r}, which is code and not weights: refused')
  return Global(name)


def storage_of(persistent: tuple[Any, ...], storage: Callable[[str, str, int], Storage]) -> Storage:
  """The storage that a persistent id means: ('storage', kind, key, device, number of elements)."""
  tag, kind, name, _, count = persistent
  if tag != 'storage' or not isinstance(name, str) or not sizes((count,)):
    raise ValueError('its pickle refers to something other than a storage')
  if typed(kind, Global).name not in STORAGES:
    raise ValueError(f'its pickle has {kind.name!r} in the place of a storage type')
  return storage(kind.name, name, count)


def call(function: str, arguments: tuple[Any, ...]) -> Any:
  """What a function would give that a pickle may name."""
  if function == ORDERED_DICT and not arguments:
    return {}
  if function == REBUILD_TENSOR and len(arguments) >= 4:
    return tensor(*arguments[:4])
  if function == REBUILD_PARAMETER and arguments:
    return typed(arguments[0], np.ndarray)
  raise ValueError(f'its pickle calls {function!r} with {len(arguments)} arguments')


def tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
  """A view of a storage; offset and strides are in elements."""
  storage = typed(storage, Storage)
  if not sizes((offset,)) or not sizes(shape) or not sizes(strides) or len(shape) != len(strides):
    raise ValueError('a tensor has a shape, strides or an offset that are no sizes')
  count = math.prod(shape)
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
  if count > storage.size or (count and last >= storage.size):
    raise ValueError(f'a tensor of shape {shape} exceeds its storage of {storage.size}')
  if not count:
    return array('a tensor', storage.raw[:0], storage.dtype, tuple(shape))
  step = storage.dtype.itemsize
  steps = [step * stride for stride in strides]
  return np.ndarray(shape, storage.dtype, storage.raw.data, step * offset, steps)


def flatten(tree: Any, separator: str, kind: type) -> dict[str, Any]:
  """{'model.blocks.0.weight': leaf} of nested dictionaries and lists; other leaves are left out."""
  if not isinstance(tree, dict):
    raise ValueError(f'it holds a {type(tree).__name__}, not a dictionary of arrays')
  leaves: dict[str, Any] = {}
  waiting: list[tuple[str, Any]] = [('', tree)]
  met = 0
  while waiting:
    name, node = waiting.pop()
    if isinstance(node, kind):
      if name in leaves:
        raise ValueError(f'{name!r} comes twice')
      leaves[name] = node
      continue
    met += len(node)
    if met > VALUES:
      raise ValueError(f'it nests more than {VALUES} values')
    items = list(node.items() if isinstance(node, dict) else enumerate(node))
    for part, child in reversed(items):
      if isinstance(child, dict | list | tuple | kind):
        longer = f'{name}{separator}{part}' if name else str(part)
        if len(longer) > NAME:
          raise ValueError(f'{longer[:40]!r} begins a name of over {NAME} characters')
        waiting.append((longer, child))
  return leaves


def load_with_torch(path: Path) -> Arrays:
  """The tensors of a file that PyTorch itself loads, with weights_only=True."""
  with opened(path):
    wanted = '.'.join(map(str, SAFE_TORCH))
    if importlib.util.find_spec('torch') is None:
      how = f'install torch>={wanted}, or save it again with it'
      raise ValueError(f'it is a pickle, as PyTorch wrote before 1.6: {how}')
    import torch

    if tuple(map(int, torch.__version__.split('.')[:2])) < SAFE_TORCH:
      raise ValueError(f'it takes torch>={wanted}, and {torch.__version__} is installed')
    zipped = zipfile.is_zipfile(path)
    try:
      tree = torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # whose message tells how to run the code all the same
      asked = re.search(r'GLOBAL (\S+)', str(error))
      what = f'{asked[1][:80]!r}, which is code' if asked else 'more than weights'
      raise ValueError(f'it asks for {what}: PyTorch refuses') from None
    arrays = {}
    for name, values in flatten(tree, '.', torch.Tensor).items():
      values = values.detach()
      if values.dtype == torch.bfloat16:
        arrays[name] = values.view(torch.int16).numpy().view(BFLOAT16)
      else:
        arrays[name] = values.numpy()
      arrays[name].flags.writeable = False
    check_dtypes(arrays)
    return arrays


def check_dtypes(arrays: Mapping[str, Any]) -> None:
  """Raises ValueError for the first array that is not of numbers which we know."""
  for name, values in arrays.items():
    if native(values.dtype) not in DTYPES.values():
      raise ValueError(f'{name!r} has dtype {values.dtype}, not one of {", ".join(DTYPES)}')


def native(dtype: np.dtype) -> np.dtype:
  return dtype if dtype.isnative else dtype.newbyteorder('=')


# ---- Orbax ----


def read_orbax(folder: Path) -> Arrays:
  """The arrays of an Orbax item, named with '/'; only its `params`, if it has such a part."""
  import orbax.checkpoint as ocp
  from jax import tree_util

  folder = pathlib.Path(folder).absolute()
  with files.naming(folder):
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    wanted = {'params': tree['params']} if 'params' in tree else tree
    shapes = flatten(wanted, '/', ocp.metadata.ArrayMetadata)
    check_dtypes(shapes)
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values())
    check_total(total, sum(file.stat().st_size for file in folder.rglob('*')))
    how = tree_util.tree_map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
    restored = handler.restore(folder, args=args)
    arrays = flatten(restored.get('params', restored), '/', np.ndarray)
    for values in arrays.values():
      values.flags.writeable = False
    return arrays


# ---- out ----


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes an uncompressed .npz, whole or not at all.

  `numpy.load` gives bfloat16 back as bytes, '|V2'; `read` gives it as it was.

  Raises:
    OSError: one that names the file, if it cannot be written.
    ValueError: if an array is not of numbers; this holds for all that write here.
  """
  check_arrays(arrays)
  with files.replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
    for name, values in arrays.items():
      dtype = native(values.dtype)
      header = io.BytesIO()
      described = {'descr': dtype.str, 'fortran_order': False, 'shape': tuple(values.shape)}
      np.lib.format.write_array_header_1_0(header, described)
      add_member(file, archive, f'{name}.npy', header.getvalue(), flat_bytes(values, dtype))


def write_safetensors(
  path: Path,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a .safetensors, whole or not at all, widest dtypes first as the library does."""
  check_arrays(arrays)
  if '__metadata__' in arrays:
    raise ValueError("an array cannot be named '__metadata__' in a .safetensors")
  names = {dtype: name for name, dtype in DTYPES.items()}
  header: dict[str, Any] = {} if metadata is None else {'__metadata__': dict(metadata)}
  order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
  end = 0
  for name in order:
    dtype, shape = native(arrays[name].dtype), arrays[name].shape
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': names[dtype], 'shape': list(shape), 'data_offsets': [start, end]}
  text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with files.replacing(path) as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in order:
      data = flat_bytes(arrays[name], native(arrays[name].dtype)).data
      for start in range(0, len(data), WRITTEN):
        file.write(data[start : start + WRITTEN])


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes an OrderedDict of float32 tensors as `torch.save` does, whole or not at all.

  PyTorch is not needed. Only floating point arrays, of any width, can be written.
  """
  check_arrays(arrays)
  dtype = DTYPES['F32']
  floats = {DTYPES[name] for name in ('F64', 'F32', 'F16', 'BF16')}
  if wrong := [name for name in arrays if native(arrays[name].dtype) not in floats]:
    raise ValueError(f'{wrong[0]!r} has dtype {arrays[wrong[0]].dtype}: tensors here are float32')
  with files.replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
    add_member(file, archive, 'archive/data.pkl', pickle_tensors(arrays))
    add_member(file, archive, 'archive/byteorder', b'little')
    for count, values in enumerate(arrays.values()):
      add_member(file, archive, f'archive/data/{count}', flat_bytes(values, dtype))
    add_member(file, archive, 'archive/version', b'3\n')


def pickle_tensors(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The pickle of an OrderedDict of contiguous float32 tensors, storage i for the i-th."""
  ordered_dict = pickle_global(ORDERED_DICT) + b')R'  # called with an empty tuple
  parts = [b'\x80\2', ordered_dict, b'(']
  for count, (name, values) in enumerate(arrays.items()):
    shape = tuple(map(int, values.shape))
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    parts += [pickle_literal(name), pickle_global(REBUILD_TENSOR), b'((']
    parts += [pickle_literal('storage'), pickle_global('torch FloatStorage')]
    parts += [pickle_literal(value) for value in (str(count), 'cpu', math.prod(shape))]
    parts += [b'tQ', *(pickle_literal(value) for value in (0, shape, strides, False))]
    parts += [ordered_dict, b'tR']  # no hooks; the tuple of arguments; the call
  return b''.join([*parts, b'u.'])


def pickle_global(name: str) -> bytes:
  return b'c' + name.replace(' ', '\n').encode() + b'\n'


def pickle_literal(value: Any) -> bytes:
  """The instructions for one value, less those that begin and end a pickle."""
  return pickle.dumps(value, 2)[2:-1]


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError for what none of our formats can hold."""
  for name in arrays:
    if not isinstance(name, str) or not 0 < len(name) <= NAME or '\0' in name:
      raise ValueError(f'{name!r} cannot be the name of an array')
  check_dtypes(arrays)


def add_member(file: IO[bytes], archive: zipfile.ZipFile, name: str, *parts: Any) -> None:
  """Adds an uncompressed member whose bytes begin at a multiple of ALIGNMENT in the file."""
  info = zipfile.ZipInfo(name)  # dated 1980: the same arrays give the same file
  info.file_size = sum(len(part) for part in parts)
  large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT  # then zipfile adds a field of 20 bytes
  start = file.tell() + 30 + len(name.encode()) + 4 + (20 if large else 0)
  padding = -start % ALIGNMENT
  info.extra = struct.pack('<HH', 0x4246, padding) + bytes(padding)  # the field that PyTorch uses
  with archive.open(info, 'w') as stream:
    for part in parts:
      stream.write(part)


def flat_bytes(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """The bytes of an array in C order; copied only if it is not so already, or of another dtype."""
  return np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8)
