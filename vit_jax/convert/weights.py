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
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from vit_jax import files
from vit_jax.convert import pickles
from vit_jax.convert.pickles import RANK, Storage, is_sizes
from vit_jax.text import first_few, one_line

Path = str | os.PathLike[str]
Arrays = dict[str, np.ndarray]
Tree = Any  # nested dictionaries and lists, with arrays among their leaves

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
VALUES, NAME = 300_000, 512  # nested values, of shared ones each time met; characters of a name
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
  path = find(pathlib.Path(path))
  if path.is_dir():
    return read_orbax(path)
  if path.name.endswith(SHARDS):
    return read_shards(path)
  return reader(path)(path)


def find(path: pathlib.Path) -> pathlib.Path:
  """The one weight file, index of shards or Orbax item that a path means."""
  if path.is_dir():
    return find_in_folder(path)
  index = path.with_name(path.name + SHARDS)
  matches = [file for file in (path, index) if file.exists()]
  if not matches:
    hint = files.did_you_mean(path)
    raise FileNotFoundError(one_line(f'{path}: there is no such file or folder{hint}'))
  if not matches[0].is_file():
    raise ValueError(one_line(f'{matches[0]} is neither a file nor a folder'))
  if re.search(r'-\d+-of-\d+\.', path.name):
    index = path.with_name(re.sub(r'-\d+-of-\d+(?=\.)', '', path.name) + SHARDS)
    if index.exists():
      raise ValueError(
        one_line(f'{path} is one of several: give {index.name}, which lies beside it')
      )
  return matches[0]


def find_in_folder(folder: pathlib.Path) -> pathlib.Path:
  """The weight file of a usual name in a folder, the first of FILES; or its Orbax item."""
  for name in FILES:
    if (folder / name).is_file():
      return folder / name
  for item in ITEMS:
    if (folder / item / '_METADATA').is_file():
      return folder / item
  names = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHTS)
  hint = f'; name one of its files: {", ".join(names[:8])}' if names else ''
  raise FileNotFoundError(
    one_line(f'{folder} holds no weights: neither {", ".join(FILES)} nor an Orbax item{hint}')
  )


def reader(path: pathlib.Path) -> Callable[[Path], Arrays]:
  """The function that reads files which begin like this one."""
  with mapped(path) as (file, data):
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
def mapped(path: Path) -> Iterator[tuple[IO[bytes], np.ndarray]]:
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
    actual = f'{raw.size} bytes' if len(shape) <= RANK else f'{len(shape)} dimensions'
    raise ValueError(f'{name!r} has {actual} for shape {shape[:RANK]} of {dtype}')
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
  with mapped(path) as (file, data), unzipped(file) as archive:
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
  with mapped(path) as (_, data):
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


def safetensors_fields(
  name: str, entry: object
) -> tuple[np.dtype, tuple[int, ...], tuple[int, ...]]:
  """The dtype, the shape and the place of an array, from its entry in the header."""
  if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
    raise ValueError(f'{name!r} is not described by dtype, shape and data_offsets')
  dtype, shape, place = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(f'{name!r} has dtype {str(dtype)[:40]!r}, not one of {", ".join(DTYPES)}')
  if not is_sizes(shape) or not is_sizes(place) or len(place) != 2:
    raise ValueError(f'{name!r} has a shape or offsets that are no sizes')
  return DTYPES[dtype], tuple(shape), tuple(place)


def read_shards(index: Path) -> Arrays:
  """The arrays of all the files, .safetensors or PyTorch's, that an index names."""
  index = pathlib.Path(index)
  with mapped(index) as (_, data):
    places = files.read_json(data[:JSON_HEADER].tobytes()).get('weight_map')
    if not isinstance(places, dict) or not all(map(shard_name, places.values())):
      raise ValueError('its weight_map does not map names to .safetensors or .bin files beside it')
  names = sorted({*places.values()})
  if missing := [file for file in names if not index.with_name(file).is_file()]:
    verb = 'is' if len(missing) == 1 else 'are'
    raise FileNotFoundError(one_line(f'{index} lists {first_few(missing)}, which {verb} not there'))
  shards = {}
  for file in names:
    shard = index.with_name(file)
    shards[file] = read_safetensors(shard) if shard.suffix == '.safetensors' else read_torch(shard)
  contained = {(name, file) for file, arrays in shards.items() for name in arrays}
  if wrong := sorted(places.items() ^ contained):
    listed = '; '.join(f'{name!r} of {file}' for name, file in wrong[:5])
    raise ValueError(one_line(f'{index} does not list just what its files hold: {listed}'))
  return {name: shards[file][name] for name, file in places.items()}


def shard_name(file: object) -> bool:
  return isinstance(file, str) and bool(re.fullmatch(r'[^/\\\0]+\.(safetensors|bin)', file))


# ---- PyTorch ----


def read_torch(path: Path) -> Arrays:
  """The tensors of a file by `torch.save`; nested dictionaries are joined with '.'.

  PyTorch itself is needed only for files from before 1.6, and for those that ask for more than the
  restricted reader gives. Its own safe mode decides about these.
  """
  with mapped(path) as (_, data):
    zipped = data[:2].tobytes() == b'PK'
  if not zipped:
    return load_with_torch(path)
  try:
    return read_torch_restricted(path)
  except files.Refused as error:
    try:
      return load_with_torch(path)
    except ValueError:  # without PyTorch, or it refuses as well
      raise error from None


def read_torch_restricted(path: Path) -> Arrays:
  """The tensors of a file by `torch.save` since 1.6, read without PyTorch: see `pickles`."""
  with mapped(path) as (file, data), unzipped(file) as archive:
    infos = members(archive, data)
    roots = [name.removesuffix('data.pkl') for name in infos if name.endswith('/data.pkl')]
    if len(roots) != 1:
      raise ValueError(f'it has {len(roots)} members data.pkl, not one')
    [root] = roots

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
      raw, dtype = member('data/' + key), DTYPES[pickles.STORAGES[kind]]
      if raw.size != count * dtype.itemsize:
        raise ValueError(f'storage {key!r} has {raw.size} bytes, not {count} of {dtype}')
      check_bool(f'storage {key}', raw, dtype)
      return Storage(raw, dtype)

    arrays = flatten(pickles.unpickle(member('data.pkl').data, storage), '.', np.ndarray)
    check_total(sum(values.nbytes for values in arrays.values()), data.size)
    return arrays


def flatten(tree: Tree, separator: str, kind: type) -> dict[str, Any]:
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
  with mapped(path):
    wanted = '.'.join(map(str, SAFE_TORCH))
    if importlib.util.find_spec('torch') is None:
      advice = f'install torch>={wanted}, or save it again with it'
      raise ValueError(f'it is a pickle, as PyTorch wrote before 1.6: {advice}')
    import torch

    if tuple(map(int, torch.__version__.split('.')[:2])) < SAFE_TORCH:
      raise ValueError(f'it takes torch>={wanted}, and {torch.__version__} is installed')
    zipped = zipfile.is_zipfile(path)
    try:
      tree = torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # whose message tells how to run the code all the same
      asked = re.search(r'GLOBAL (\S+)', str(error))
      refused = f'{asked[1][:80]!r}, which is code' if asked else 'more than weights'
      raise ValueError(f'it asks for {refused}: PyTorch refuses') from None
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
  """Raises ValueError for the first array, or its metadata, that is not of numbers we know."""
  for name, values in arrays.items():
    if native(values.dtype) not in DTYPES.values():
      raise ValueError(f'{name!r} has dtype {values.dtype}, not one of {", ".join(DTYPES)}')


def native(dtype: np.dtype) -> np.dtype:
  return dtype if dtype.isnative else dtype.newbyteorder('=')


# ---- Orbax ----


def read_orbax(folder: Path, part: str = 'params') -> Arrays:
  """The arrays of an Orbax item, named with '/'; of one of its parts only, if it has that."""
  import orbax.checkpoint as ocp
  from jax import tree_util

  folder = pathlib.Path(folder).absolute()
  with files.naming(folder):
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    wanted = {part: tree[part]} if part in tree else tree
    shapes = flatten(wanted, '/', ocp.metadata.ArrayMetadata)
    check_dtypes(shapes)
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values())
    check_total(total, sum(file.stat().st_size for file in folder.rglob('*')))
    as_numpy = tree_util.tree_map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    restored = handler.restore(folder, args=args)
    arrays = flatten(restored.get(part, restored), '/', np.ndarray)
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
  path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
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
      data = flat_bytes(arrays[name], native(arrays[name].dtype))
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
    add_member(file, archive, 'archive/data.pkl', pickles.tensors(arrays))
    add_member(file, archive, 'archive/byteorder', b'little')
    for count, values in enumerate(arrays.values()):
      add_member(file, archive, f'archive/data/{count}', flat_bytes(values, dtype))
    add_member(file, archive, 'archive/version', b'3\n')


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError for what none of our formats can hold."""
  for name in arrays:
    if not isinstance(name, str) or not 0 < len(name) <= NAME or '\0' in name:
      raise ValueError(f'{name!r} cannot be the name of an array')
  check_dtypes(arrays)


def add_member(
  file: IO[bytes], archive: zipfile.ZipFile, name: str, *parts: bytes | memoryview
) -> None:
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


def flat_bytes(values: np.ndarray, dtype: np.dtype) -> memoryview:
  """The bytes of an array in C order; copied only if it is not so already, or of another dtype."""
  return np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8).data
