"""Laws of weight files: what goes in comes out, and no file does more than be read or refused."""

import argparse
import io
import json
import os
import pathlib
import pickle
import resource
import shutil
import struct
import subprocess
import time
import tracemalloc
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax import files, metrics
from vit_jax.convert import pickles, weights
from vit_jax.guards import lock, seals

DATA = pathlib.Path(__file__).parent / 'data'  # made by its make_pth.py
GRID = np.arange(12, dtype=np.float32).reshape(3, 4)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WRITERS = {
  'npz': weights.write_npz,
  'safetensors': weights.write_safetensors,
  'pth': weights.write_torch,
}
MUTANTS = 500  # of each format
MOST = 2**26  # bytes that a small hostile file may cost
LONGEST = 20.0  # seconds for one, on a machine that is busy with other things


def every_dtype():
  """An array of each dtype, and of each layout."""
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.integers(0, 2 if dtype.kind == 'b' else 100, (3, 5)).astype(dtype)
    for name, dtype in weights.DTYPES.items()
  }
  layouts = {
    'block/0/scalar': np.float32(3).reshape(()),
    'empty': np.zeros((0, 4), np.float32),
    'fortran': np.asfortranarray(arrays['F32']),
    'strided': arrays['F64'][::2, 1:],
    'big_endian': arrays['F32'].astype('>f4'),
    'é': arrays['BF16'].T,
  }
  return arrays | layouts


def floats(arrays):
  return {k: v for k, v in arrays.items() if v.dtype == BFLOAT16 or v.dtype.kind == 'f'}


def assert_same(actual, wanted):
  assert set(actual) == set(wanted)
  for name, values in wanted.items():
    assert actual[name].dtype == weights.native(values.dtype), name
    assert actual[name].shape == values.shape, name
    np.testing.assert_array_equal(actual[name], values, err_msg=name)
    assert not actual[name].flags.writeable, name


def root(array):
  """What an array is a view of in the end."""
  while isinstance(array, np.ndarray | memoryview):
    array = array.base if isinstance(array, np.ndarray) else array.obj
  return array


def zipped(members, compression=zipfile.ZIP_STORED):
  """The bytes of a zip file of [(name, bytes)]."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', compression) as archive:
    for name, content in members:
      archive.writestr(zipfile.ZipInfo(name), content, compression)
  return file.getvalue()


def unzipped(data):
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    return [(info.filename, archive.read(info)) for info in archive.infolist()]


def npy(values):
  file = io.BytesIO()
  np.save(file, values)
  return file.getvalue()


def pth(pickled, storages=None):
  """The bytes of a .pth with this pickle."""
  storages = {'0': GRID.tobytes()} if storages is None else storages
  members = [(f'archive/data/{key}', content) for key, content in storages.items()]
  return zipped([('archive/data.pkl', pickled), *members])


def with_field(data, offset, value, width='<I'):
  """A zip file whose first directory entry has another value at an offset."""
  data = bytearray(data)
  struct.pack_into(width, data, data.index(b'PK\1\2') + offset, value)
  return bytes(data)


def bomb(name, declared, blocks):
  """A zip whose one member claims to unfold to `declared` bytes, and does to `blocks` MiB.

  Its checksum fits the first MiB, so that nothing but the size is wrong.
  """
  crc = zlib.crc32(bytes(2**20))
  compress = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
  block = compress.compress(bytes(2**20)) + compress.flush(zlib.Z_FULL_FLUSH)
  packed = block * blocks + compress.flush()
  fields = struct.pack('<HHHHHIIIHH', 20, 0, 8, 0, 33, crc, len(packed), declared, len(name), 0)
  local = b'PK\3\4' + fields + name + packed
  central = b'PK\1\2' + struct.pack('<H', 20) + fields + struct.pack('<HHHII', 0, 0, 0, 0, 0) + name
  return local + central + struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, 1, 1, *sizes(central, local), 0)


def sizes(*parts):
  return [len(part) for part in parts]


def safetensors(header):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + GRID.tobytes()


def entry(dtype='F32', shape=(3, 4), place=(0, 48)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(place)}


def refusal(path, read=weights.read):
  """The one line that a file is refused with; None if it is read."""
  started = time.monotonic()
  tracemalloc.start()
  try:
    arrays = read(path)
  except (FileNotFoundError, ValueError) as error:
    assert type(error) in (FileNotFoundError, ValueError, files.Refused)
    line = str(error)
    assert path.name in line
    assert line.isprintable(), line
    return line
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST
    assert time.monotonic() - started < LONGEST
  for values in arrays.values():
    values.tobytes()  # touches all of it
  return None


def refused(tmp_path, name, data, read=weights.read):
  path = tmp_path / name
  path.write_bytes(data)
  line = refusal(path, read)
  assert line is not None, 'it was read'
  return line


# ---- what goes in comes out ----


@pytest.mark.quick
@pytest.mark.parametrize('suffix', WRITERS)
def test_what_is_written_is_read_back(tmp_path, suffix):
  arrays = floats(every_dtype()) if suffix == 'pth' else every_dtype()
  path = tmp_path / f'x.{suffix}'
  WRITERS[suffix](path, arrays)
  wanted = {k: v.astype(np.float32) for k, v in arrays.items()} if suffix == 'pth' else arrays
  read = weights.read(path)
  assert list(read) == list(arrays) or suffix == 'safetensors'
  assert_same(read, wanted)
  assert not list(tmp_path.glob('*.partial'))


@pytest.mark.parametrize('suffix', WRITERS)
def test_the_same_arrays_give_the_same_file(tmp_path, suffix):
  contents = []
  for name in ('x', 'y'):
    WRITERS[suffix](tmp_path / name, floats(every_dtype()))
    contents.append((tmp_path / name).read_bytes())
  assert contents[0] == contents[1]


@pytest.mark.parametrize('suffix', WRITERS)
def test_what_is_stored_is_mapped_and_aligned(tmp_path, suffix):
  path = tmp_path / f'x.{suffix}'
  WRITERS[suffix](path, {'b': np.ones(3, np.float32), 'a/k': GRID})
  for values in weights.read(path).values():
    assert type(root(values)).__name__ == 'mmap'
    assert values.flags.aligned


@pytest.mark.parametrize('suffix', WRITERS)
def test_arrays_outlive_the_replacement_of_their_file(tmp_path, suffix):
  path = tmp_path / f'x.{suffix}'
  WRITERS[suffix](path, {'a': GRID})
  arrays = weights.read(path)
  WRITERS[suffix](path, {'a': 2 * arrays['a']})
  np.testing.assert_array_equal(arrays['a'], GRID)
  np.testing.assert_array_equal(weights.read(path)['a'], 2 * GRID)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_an_npz_is_what_numpy_says(tmp_path, save):
  arrays = {k: v for k, v in every_dtype().items() if v.dtype != BFLOAT16}
  save(tmp_path / 'x.npz', **arrays)
  with np.load(tmp_path / 'x.npz') as wanted:
    assert_same(weights.read(tmp_path / 'x.npz'), wanted)


def test_numpy_reads_our_npz(tmp_path):
  arrays = every_dtype()
  weights.write_npz(tmp_path / 'x.npz', arrays)
  with np.load(tmp_path / 'x.npz') as read:
    assert list(read) == list(arrays)
    for name, values in arrays.items():
      view = read[name].view(BFLOAT16) if values.dtype == BFLOAT16 else read[name]
      np.testing.assert_array_equal(view, values)


def test_an_npz_of_numpy_holds_bfloat16(tmp_path):
  np.savez(tmp_path / 'x.npz', a=GRID.astype(BFLOAT16), b=GRID.astype(BFLOAT16).view('V2'))
  wanted = {'a': GRID.astype(BFLOAT16), 'b': GRID.astype(BFLOAT16)}
  assert_same(weights.read(tmp_path / 'x.npz'), wanted)


def test_safetensors_are_what_the_library_says(tmp_path):
  arrays = {k: np.ascontiguousarray(v) for k, v in every_dtype().items() if v.dtype.isnative}
  numbers = {k: v for k, v in arrays.items() if v.dtype != BFLOAT16}
  save_file(numbers, str(tmp_path / 'theirs.safetensors'), metadata={'format': 'pt'})
  assert_same(weights.read(tmp_path / 'theirs.safetensors'), numbers)
  weights.write_safetensors(tmp_path / 'ours.safetensors', numbers, {'format': 'pt'})
  read = load_file(str(tmp_path / 'ours.safetensors'))
  assert set(read) == set(numbers)
  for name, values in numbers.items():
    np.testing.assert_array_equal(read[name], values)


def test_safetensors_of_one_dtype_are_byte_for_byte_the_library_s(tmp_path):
  arrays = {'b/k': GRID, 'a': GRID[0].copy(), 'é': GRID.T.copy()}
  save_file(arrays, str(tmp_path / 'theirs'), metadata={'format': 'pt'})
  weights.write_safetensors(tmp_path / 'ours', arrays, {'format': 'pt'})
  assert (tmp_path / 'ours').read_bytes() == (tmp_path / 'theirs').read_bytes()


def test_shards_of_pytorch_are_read_as_one(tmp_path):
  parts = {'a': GRID}, {'b': GRID[0].copy()}
  places = {}
  for i, arrays in enumerate(parts, 1):
    name = f'pytorch_model-0000{i}-of-00002.bin'
    weights.write_torch(tmp_path / name, arrays)
    places |= dict.fromkeys(arrays, name)
  index = tmp_path / 'pytorch_model.bin.index.json'
  index.write_text(json.dumps({'weight_map': places}))
  assert_same(weights.read(tmp_path), parts[0] | parts[1])
  with pytest.raises(ValueError, match=f'give {index.name}'):
    weights.read(tmp_path / places['b'])


def test_a_pointer_of_git_lfs_says_how_to_fetch_the_file(tmp_path):
  text = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n'
  for name in ('x.safetensors', 'x.npz', 'x.bin'):
    assert 'git lfs pull' in refused(tmp_path, name, text)


def test_a_folder_of_other_files_lists_them(tmp_path):
  weights.write_npz(tmp_path / 'mine.npz', {'a': GRID})
  with pytest.raises(FileNotFoundError, match=r'name one of its files: mine\.npz'):
    weights.read(tmp_path)


def test_a_name_with_a_line_break_makes_no_second_line(tmp_path):
  path = tmp_path / 'a\nb.npz'
  for content in (None, b'x'):
    if content:
      path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
      weights.read(path)
    assert len(str(caught.value).splitlines()) == 1


def test_shards_are_read_as_one(tmp_path):
  places = {'a': 'model-1.safetensors', 'b': 'model-2.safetensors', 'c': 'model-1.safetensors'}
  weights.write_safetensors(tmp_path / 'model-1.safetensors', {'a': GRID, 'c': GRID[0]})
  weights.write_safetensors(tmp_path / 'model-2.safetensors', {'b': GRID.T})
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': places}))
  for path in (index, tmp_path / 'model.safetensors', tmp_path):
    assert_same(weights.read(path), {'a': GRID, 'b': GRID.T, 'c': GRID[0]})
  for wrong in (places | {'d': 'model-2.safetensors'}, places | {'a': 'model-2.safetensors'}):
    index.write_text(json.dumps({'weight_map': wrong}))
    assert 'does not list' in refusal(index)
  index.write_text(json.dumps({'weight_map': {'a': '../model-1.safetensors'}}))
  assert 'beside it' in refusal(index)
  index.write_text(json.dumps({'weight_map': {'a': 'model-3.safetensors'}}))
  with pytest.raises(FileNotFoundError) as caught:
    weights.read(index)
  assert str(caught.value) == f'{index} lists model-3.safetensors, which is not there'


def test_of_several_sets_of_weights_in_a_folder_the_safetensors_are_taken(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no weights'):
    weights.read(tmp_path)
  weights.write_torch(tmp_path / 'pytorch_model.bin', {'a': GRID})
  assert_same(weights.read(tmp_path), {'a': GRID})
  weights.write_safetensors(tmp_path / 'model.safetensors', {'b': GRID})
  assert_same(weights.read(tmp_path), {'b': GRID})


def test_a_file_is_known_by_its_content(tmp_path):
  for suffix, write in WRITERS.items():
    for name in ('x.bin', 'x'):
      write(tmp_path / name, {suffix: GRID})
      assert_same(weights.read(tmp_path / name), {suffix: GRID})


def test_what_is_absent_is_not_found(tmp_path):
  for path in (tmp_path / 'x.npz', tmp_path / 'a' / 'b', tmp_path / 'model.safetensors'):
    with pytest.raises(FileNotFoundError, match=path.name):
      weights.read(path)


def test_a_pipe_in_the_place_of_a_file_of_a_run_is_not_waited_for(tmp_path):
  for name in ('lock.json', seals.FILE, 'metrics.jsonl'):
    os.mkfifo(tmp_path / name)
  with pytest.raises(ValueError, match=r'lock\.json cannot be read: .*not a regular file'):
    files.read_object(tmp_path / 'lock.json')
  with pytest.raises(OSError, match='not a regular file'):
    lock.read(tmp_path / 'lock.json')
  with pytest.raises(seals.Broken, match='cannot be read'):
    seals.read(tmp_path)
  with pytest.raises(OSError, match='not a regular file'):
    metrics.read_rows(tmp_path / 'metrics.jsonl')


def test_a_file_that_is_too_large_to_be_of_a_run_is_not_read_whole(tmp_path):
  with open(tmp_path / 'zeros', 'wb') as file:
    file.truncate(files.MAX_SIZE + 1)
  with pytest.raises(OSError, match='has more than 268,435,456 bytes'):
    files.read_bytes(tmp_path / 'zeros')


def test_what_is_no_file_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  assert 'neither a file' in refusal(tmp_path / 'pipe')


# ---- PyTorch ----

WANTED = {  # what PyTorch wrote
  'state_dict': {'head.weight': GRID, 'head.bias': GRID[0, :3]},
  'nested': {'model.cls_token': GRID, 'list.0': GRID[0]},
  'narrow': {'bf16': GRID.astype(BFLOAT16), 'f16': GRID.astype(np.float16)},
  'strided': {'transposed': GRID.T, 'columns': GRID[:, 1::2], 'row': GRID[1]},
  'shared': {'whole': GRID, 'last': GRID[2]},
  'parameter': {'weight': GRID},
  'protocol4': {'model.head.weight': GRID, 'model.head.bias': GRID[0, :3]},
  'dtypes': {
    'int64': np.arange(5),
    'int32': np.arange(5, dtype=np.int32),
    'int16': np.arange(5, dtype=np.int16),
    'int8': np.arange(-2, 3, dtype=np.int8),
    'uint8': np.arange(5, dtype=np.uint8),
    'bool': np.arange(5) % 2 == 0,
    'float64': np.arange(5.0),
    'scalar': np.float32(7).reshape(()),
    'empty': np.zeros((0, 4), np.float32),
  },
}


@pytest.mark.quick
@pytest.mark.parametrize('name', WANTED)
def test_a_file_of_pytorch_is_read_without_it(name):
  actual = weights.read_torch_restricted(DATA / f'{name}.pth')
  assert list(actual) == list(WANTED[name])
  assert_same(actual, WANTED[name])


def test_tensors_that_share_a_storage_are_views_of_it():
  arrays = weights.read_torch_restricted(DATA / 'shared.pth')
  assert np.shares_memory(arrays['whole'], arrays['last'])


def test_pytorch_reads_what_is_written(tmp_path):
  torch = pytest.importorskip('torch')
  arrays = floats(every_dtype())
  weights.write_torch(tmp_path / 'x.pth', arrays)
  for mapped in (False, True):
    tensors = torch.load(tmp_path / 'x.pth', weights_only=True, mmap=mapped)
    assert list(tensors) == list(arrays)
    for name, values in arrays.items():
      np.testing.assert_array_equal(tensors[name].numpy(), values.astype(np.float32))


def test_pytorch_agrees_with_the_restricted_reader():
  pytest.importorskip('torch')
  for name in set(WANTED) - {'protocol4'}:  # which its safe mode does not read
    assert_same(weights.load_with_torch(DATA / f'{name}.pth'), WANTED[name])
  assert_same(weights.read(DATA / 'legacy.pth'), WANTED['state_dict'])


def test_without_pytorch_its_old_format_says_what_to_do(monkeypatch):
  monkeypatch.setattr(weights.importlib.util, 'find_spec', lambda name: None)
  line = refusal(DATA / 'legacy.pth')
  assert 'install torch>=2.6, or save it again' in line


@pytest.mark.quick
def test_code_in_a_file_of_pytorch_is_named_and_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for read in (weights.read, weights.read_torch_restricted):
    assert "asks for 'posix.system'" in refusal(DATA / 'evil.pth', read)
  assert refusal(DATA / 'evil_legacy.pth')
  assert not list(tmp_path.iterdir())


class Evil:
  """Leaves a file behind when it is unpickled."""

  def __init__(self, call):
    self.call = call

  def __reduce__(self):
    return self.call


class Built:
  """Asks for BUILD with a state."""

  def __init__(self):
    self.state = 1


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_is_ever_obeyed(tmp_path, monkeypatch, protocol):
  monkeypatch.chdir(tmp_path)
  calls = [
    (os.system, ('touch evil_was_here',)),
    (eval, ("open('evil_was_here', 'w')",)),
    (exec, ("open('evil_was_here', 'w')",)),
    (open, ('evil_was_here', 'w')),
    (pathlib.Path.touch, (pathlib.Path('evil_was_here'),)),
    (getattr, ('', 'join')),
  ]
  for call in calls:
    pickled = pickle.dumps({'a': Evil(call)}, protocol)
    assert refused(tmp_path, 'x.pth', pth(pickled))
    assert refused(tmp_path, 'x.bin', pickled)
  assert refused(tmp_path, 'x.pth', pth(pickle.dumps({'a': Built()}, protocol)))
  objects = np.array([Evil(calls[0])], object)
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': (1,)})
  members = [('a.npy', file.getvalue() + pickle.dumps(objects, protocol))]
  assert 'Python objects' in refused(tmp_path, 'x.npz', zipped(members))
  assert not (tmp_path / 'evil_was_here').exists()


@pytest.mark.parametrize('protocol', (2, 3, 4, 5))
def test_the_options_of_a_training_script_beside_weights_are_passed_over(protocol):
  assert_same(weights.read(DATA / 'namespace.pth'), {'model.w': GRID})
  options = argparse.Namespace(lr=0.1, model='vit', crop=[1, 2], parts={'a': None})
  text = pickle.dumps({'epoch': 3, 'args': options, 'arch': 'vit'}, protocol)
  assert pickles.unpickle(memoryview(text), None) == {'epoch': 3, 'args': {}, 'arch': 'vit'}


def rebuilt(offset=0, shape=(3, 4), strides=(4, 1), *, kind='FloatStorage', key='0', count=12):
  """A pickle of {'a': tensor} with these arguments."""
  parts = [b'\x80\2}', pickles.literal('a'), pickles.global_name(pickles.REBUILD_TENSOR)]
  parts += [b'((', pickles.literal('storage'), pickles.global_name(f'torch {kind}')]
  parts += [pickles.literal(value) for value in (key, 'cpu', count)]
  parts += [b'tQ', *(pickles.literal(value) for value in (offset, shape, strides, False))]
  return b''.join([*parts, pickles.global_name(pickles.ORDERED_DICT), b')RtRs.'])


def test_the_tensor_that_the_next_test_spoils_is_read(tmp_path):
  (tmp_path / 'x.pth').write_bytes(pth(rebuilt()))
  assert_same(weights.read(tmp_path / 'x.pth'), {'a': GRID})


@pytest.mark.parametrize(
  'wrong, word',
  [
    ({'offset': 1}, 'exceeds'),
    ({'offset': -1}, 'no sizes'),
    ({'offset': 2**62}, 'exceeds'),
    ({'offset': 1.0}, 'no sizes'),
    ({'offset': True}, 'no sizes'),
    ({'shape': (3, 5)}, 'exceeds'),
    ({'shape': (-3, 4)}, 'no sizes'),
    ({'shape': (2**40, 2**40), 'strides': (0, 0)}, 'exceeds'),
    ({'shape': (2**62, 2**62, 0), 'strides': (1, 1, 1)}, 'cannot be read'),
    ({'shape': (1,) * 40, 'strides': (1,) * 40}, 'no sizes'),
    ({'shape': 12, 'strides': 1}, 'no sizes'),
    ({'strides': (4, -1)}, 'no sizes'),
    ({'strides': (2**62, 2**62)}, 'exceeds'),
    ({'strides': (4,)}, 'no sizes'),
    ({'kind': 'DoubleStorage'}, '48 bytes'),
    ({'kind': 'QInt8Storage'}, 'QInt8Storage'),
    ({'key': '1'}, 'missing'),
    ({'key': '../data.pkl'}, 'missing'),
    ({'key': 0}, 'other than a storage'),
    ({'count': 2**62}, '48 bytes'),
    ({'count': -12}, 'other than a storage'),
    ({'kind': 'BoolStorage', 'count': 48, 'shape': (48,), 'strides': (1,)}, 'bool'),
  ],
)
def test_a_tensor_stays_inside_its_storage(tmp_path, wrong, word):
  assert word in refused(tmp_path, 'x.pth', pth(rebuilt(**wrong)))


def laughs():
  """A dictionary that shares two below it, which share two below them, 2^60 in all."""
  levels = b''.join(b'}q%c(X\1\0\0\0ah%cX\1\0\0\0bh%cu0' % (i, i - 1, i - 1) for i in range(1, 61))
  return b'\x80\2}q\0' + levels.replace(b'u0', b'u') + b'.'


def test_small_pickles_do_not_grow_large(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, 'OPCODES', 20_000)  # a fiftieth, as tracing memory is slow
  monkeypatch.setattr(weights, 'VALUES', 10_000)
  long = pickle.dumps('a' * 2**20, 2)[2:-1]
  cases = {
    'shared': (laughs(), 'nests more than'),
    'a circle': (b'\x80\2}q\0X\1\0\0\0ah\0s.', 'name of over'),
    'a circle of long names': (b'\x80\2}q\5' + long + b'h\5s.', 'name of over'),
    'a circle of a list': (b'\x80\2}X\0\0\0\0]q\0h\0as.', 'name of over'),
    'deep': (b'\x80\2' + b'}X\1\0\0\0a' * 4_000 + b'}' + b's' * 4_000 + b'.', 'name of over'),
    'many': (b'\x80\2' + b'N' * 20_001 + b'.', 'instructions'),
    'marks': (b'\x80\2' + b'(' * 9_000 + b't' * 9_000 + b'.', 'not a dictionary'),
    'keys that hash alike': (b'\x80\2}(' + pickle.dumps(2**61 - 1, 2)[2:-1] + b'Nu.', 'the key of'),
    'duplicated': (b'\x80\2}' + b'2' * 100 + b'.', 'instruction DUP'),
    'without an end': (b'\x80\2}', 'cannot be read'),
    'empty': (b'', 'cannot be read'),
    'a number': (b'\x80\2K\1.', 'int, not a dictionary'),
    'nothing on the stack': (b'\x80\2s.', 'more than it has put'),
    'one mark': (b'\x80\2u.', 'cannot be read'),
    'an unknown memo': (b'\x80\2h\1.', 'cannot be read'),
    'a call of a number': (b'\x80\2K\1)R.', 'in the place of Global'),
    'a name from numbers': (b'\x80\4K\1K\2\x93.', "asks for '1.2'"),
  }
  for name, (pickled, word) in cases.items():
    line = refused(tmp_path, 'x.pth', pth(pickled))
    assert word in line, f'{name}: {line}'


def test_attributes_do_not_reach_what_they_are_set_on(tmp_path):
  """BUILD may follow an OrderedDict only, and what it sets is dropped."""
  ordered = pickles.global_name(pickles.ORDERED_DICT)
  state = b'}' + pickles.literal('name') + pickles.literal('x') + b's'
  for target in (ordered, rebuilt()[3:-2], b'K\1', b'X\1\0\0\0a'):
    assert refused(tmp_path, 'x.pth', pth(b'\x80\2' + target + state + b'b.'))
  tensor = rebuilt()[2:-1]
  (tmp_path / 'x.pth').write_bytes(pth(b'\x80\2' + tensor + state + b'b.'))
  assert_same(weights.read(tmp_path / 'x.pth'), {'a': GRID})


def test_a_file_of_pytorch_is_whole(tmp_path):
  two = [('a/data.pkl', rebuilt()), ('b/data.pkl', rebuilt()), ('a/data/0', GRID.tobytes())]
  assert '2 members data.pkl' in refused(tmp_path, 'x.pth', zipped(two))
  packed = zipped(unzipped(pth(rebuilt())), zipfile.ZIP_DEFLATED)
  assert 'compressed' in refused(tmp_path, 'x.pth', packed)
  big = zipped([*unzipped(pth(rebuilt())), ('archive/byteorder', b'big')])
  assert 'byteorder' in refused(tmp_path, 'x.pth', big)
  damaged = bytearray(pth(rebuilt()))
  damaged[damaged.index(GRID.tobytes()) + 5] ^= 1
  assert 'checksum' in refused(tmp_path, 'x.pth', bytes(damaged))


# ---- npz that lie ----


@pytest.mark.parametrize(
  'old, new, word',
  [
    (b"'<f4'", b"'|O' ", 'Python objects'),
    (b"'<f4'", b"'<U4'", 'not one of numbers'),
    (b"'<f4'", b"'|S4'", 'not one of numbers'),
    (b"'<f4'", b"'<c8'", 'not one of numbers'),
    (b"'<f4'", b"'|V4'", 'not one of numbers'),
    (b"'<f4'", b"'<M8'", 'not one of numbers'),
    (b"'<f4'", b"'f16'", 'not one of numbers'),
    (b"'<f4'", b"'<f8'", '48 bytes'),
    (b"'<f4'", b'[1,2]', 'not one of numbers'),
    (b'(3, 4), ', b'(-3, 4),', 'no array has'),
    (b'(3, 4), ', b'(3, 5), ', '48 bytes'),
    (b'(3, 4), ', b'(3 * 4),', 'no array has'),
    (b'(3, 4), }' + b' ' * 30, b'(99999999999, 99999999999), }' + b' ' * 10, '48 bytes'),
    (b'(3, 4), }' + b' ' * 30, b'(0, 9999999999999999999, ), }' + b' ' * 10, '48 bytes'),
    (b'False', b'Maybe', 'no array has'),
    (b'\x93NUMPY\1', b'\x93NUMPY\4', 'version'),
    (b'\x93NUMPY\1', b'\x93NUMPY\2', 'header'),
    (b'\x93NUMPY', b'\x93NUMPI', 'version'),
    (b'\1\0v\0', b'\1\0\xff\xff', 'header'),
    (b'{', b'[', 'no array has'),
  ],
)
def test_a_header_of_numpy_is_not_believed(tmp_path, old, new, word):
  content = npy(GRID)
  assert old in content
  line = refused(tmp_path, 'x.npz', zipped([('a.npy', content.replace(old, new, 1))]))
  assert word in line
  assert "'a'" in line


def overlapping():
  """Two members in one place."""
  data = zipped([('a.npy', npy(GRID)), ('b.npy', npy(GRID))])
  second = data.rindex(b'PK\1\2')
  return data[: second + 42] + struct.pack('<I', 0) + data[second + 46 :]


def test_a_directory_of_a_zip_is_not_believed(tmp_path):
  one = zipped([('a.npy', npy(GRID))])
  with pytest.warns(UserWarning, match='Duplicate name'):
    twice = zipped([('a.npy', npy(GRID))] * 2)
  cases = {
    'twice': (twice, 'comes twice'),
    'overlap': (overlapping(), 'overlap'),
    'the checksum': (with_field(one, 16, 1), 'checksum'),
    'a longer member': (with_field(one, 24, 2**31), 'claims'),
    'a longer member, twice': (with_field(with_field(one, 24, 2**30), 20, 2**30), 'overlap'),
    'another place': (with_field(one, 42, 7), 'where the directory says'),
    'no place': (with_field(one, 42, 2**31), 'where the directory says'),
    'another compression': (with_field(one, 10, 12, '<H'), 'unusual'),
    'encrypted': (with_field(one, 8, 1, '<H'), 'encrypted'),
    'deflated': (with_field(one, 10, 8, '<H'), 'cannot be read'),
    'not an array': (zipped([('readme.txt', b'x')]), 'not an array'),
    'a text': (zipped([('a.npy', b'hello')]), 'version'),
    'only a head': (b'PK\3\4', 'cut short'),
    'the first half': (one[: len(one) // 2], 'cut short'),
  }
  for name, (data, word) in cases.items():
    line = refused(tmp_path, 'x.npz', data)
    assert word in line, f'{name}: {line}'


def test_a_zip_bomb_stays_packed(tmp_path):
  blocks = 9_000  # 9 GiB from 9 MB
  declared = bomb(b'a.npy', 3 * 2**30, blocks)
  assert len(declared) < 10_000_000
  assert 'bytes of arrays' in refused(tmp_path, 'x.npz', declared)
  assert 'version' in refused(tmp_path, 'x.npz', bomb(b'a.npy', 2**20, blocks))
  assert 'claims' in refused(tmp_path, 'x.npz', bomb(b'a.npy', 2**30, 1))
  assert 'ends after' in refused(tmp_path, 'x.npz', bomb(b'a.npy', 2**20 + 1000, 1))


def test_many_zeros_are_no_bomb(tmp_path):
  zeros = np.zeros((50, 2**18), np.float32)  # 50 MiB in 50 kB
  np.savez_compressed(tmp_path / 'x.npz', a=zeros)
  np.testing.assert_array_equal(weights.read(tmp_path / 'x.npz')['a'], zeros)


# ---- safetensors that lie ----


@pytest.mark.parametrize(
  'header, word',
  [
    ({'a': entry('F8_E4M3', (48,))}, "'F8_E4M3'"),
    ({'a': entry('F64')}, '48 bytes'),
    ({'a': entry(['F32'])}, 'dtype'),
    ({'a': entry('BOOL', (48,))}, 'bool'),
    ({'a': entry(shape=(3, 5))}, '48 bytes'),
    ({'a': entry(shape=(-3, -4))}, 'no sizes'),
    ({'a': entry(shape=(2**62, 2**62))}, '48 bytes'),
    ({'a': entry(shape=(3.0, 4))}, 'no sizes'),
    ({'a': entry(shape=(True, 12))}, 'no sizes'),
    ({'a': entry(shape=(1,) * 40)}, 'no sizes'),
    ({'a': entry(place=(0, 47))}, '47 bytes of 48'),
    ({'a': entry(place=(0, 2**60))}, 'bytes of 48'),
    ({'a': entry(place=(4, 48))}, 'after one that ends at 0'),
    ({'a': entry(place=(48, 0))}, 'at bytes 48 to 0'),
    ({'a': entry(place=(0, 48, 48))}, 'no sizes'),
    ({'a': entry(), 'b': entry()}, 'after one that ends at 48'),
    ({'a': entry(shape=(6,), place=(0, 24)), 'b': entry(shape=(5,), place=(28, 48))}, '24'),
    ({'a': entry() | {'extra': 1}}, 'described by'),
    ({'a': 1}, 'described by'),
    ({'a': {}}, 'described by'),
    ({}, '0 bytes of 48'),
    ([1], 'not an object'),
    (b'{"a":' + json.dumps(entry()).encode() + b',"a":{}}', "'a' comes twice"),
    (b'{"a":' * 200_000, 'cannot be read'),
    (b'[' * 200_000, 'cannot be read'),
    (b'{"a":{"dtype":"F32","shape":[' + b'9' * 9000 + b'],"data_offsets":[0,48]}}', 'cannot'),
    (b'{"a":NaN}', 'described by'),
    (b'{\xff}', 'cannot be read'),
    (b'', 'cannot be read'),
  ],
)
def test_a_header_of_safetensors_is_not_believed(tmp_path, header, word):
  assert word in refused(tmp_path, 'x.safetensors', safetensors(header))


def test_a_header_must_fit_its_file(tmp_path):
  for data in (b'', b'1234567', bytes(8), b'\xff' * 20, (9).to_bytes(8, 'little') + b'{}'):
    assert refused(tmp_path, 'x.safetensors', data)


# ---- mutants ----


def mutated(data, rng):
  """The bytes, with one thing wrong."""
  data = bytearray(data)
  at, to = sorted(int(i) for i in rng.integers(0, len(data) + 1, 2))
  match rng.integers(8):
    case 0:
      return bytes(data[:at])
    case 1:
      for place in rng.integers(0, len(data), 1 + rng.integers(4)):
        data[place] ^= 1 << int(rng.integers(8))
    case 2:
      data[at:to] = rng.bytes(min(to - at, 20))
    case 3:
      data[at:at] = data[at:to]
    case 4:
      del data[at : min(to, at + 8)]
    case 5:
      width = int(rng.choice([1, 2, 4, 8]))
      data[at : at + width] = rng.choice([b'\xff', b'\0', b'\x7f']).item()[:1] * width
    case 6:
      other = int(rng.integers(len(data)))
      data[at : at + 16] = data[other : other + 16]
    case 7:
      for place in rng.integers(0, len(data), 3):
        data[place] = int(rng.integers(256))
  return bytes(data)


def mutant(data, rng):
  """Spoiled as a whole; or one member spoiled, dropped or doubled, its checksums made to fit."""
  if data[:2] != b'PK' or rng.random() < 0.4:
    return mutated(data, rng)
  members = unzipped(data)
  at = int(rng.integers(len(members)))
  name, content = members[at]
  match rng.integers(8):
    case 0:
      del members[at]
    case 1:
      members.append(('copy/' + name, content))
    case _:
      members[at] = (name, mutated(content, rng) if content else b'x')
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    compression = archive.infolist()[0].compress_type
  return zipped(members, compression)


def small():
  return {'a/kernel': GRID, 'b': GRID.astype(BFLOAT16).T, 'c': np.float64(2), 'e': GRID[:0]}


def seed_npz(path):
  weights.write_npz(path, small())


def seed_compressed(path):
  np.savez_compressed(path, **small())


def seed_safetensors(path):
  weights.write_safetensors(path, small(), {'format': 'pt'})


def seed_pth(path):
  path.write_bytes((DATA / 'nested.pth').read_bytes())


def seed_strided(path):
  path.write_bytes((DATA / 'strided.pth').read_bytes())


@pytest.mark.parametrize(
  'suffix, seed, read',
  [
    pytest.param('npz', seed_npz, weights.read, id='npz', marks=pytest.mark.quick),
    pytest.param('npz', seed_compressed, weights.read, id='npz compressed'),
    pytest.param('safetensors', seed_safetensors, weights.read, id='safetensors'),
    pytest.param('pth', seed_pth, weights.read_torch_restricted, id='pth'),
    pytest.param('pth', seed_strided, weights.read_torch_restricted, id='pth strided'),
  ],
)
def test_a_mutant_is_read_or_refused_in_a_line(tmp_path, monkeypatch, suffix, seed, read):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / f'mutant.{suffix}'
  seed(path)
  data = path.read_bytes()
  assert refusal(path, read) is None
  lines = []
  for number in range(MUTANTS):
    path.write_bytes(mutant(data, np.random.default_rng(number)))
    lines.append(refusal(path, read))
  refusals = sum(line is not None for line in lines)
  assert MUTANTS / 3 < refusals < MUTANTS  # some only rename an array, or spoil what is padding
  assert [file.name for file in tmp_path.iterdir()] == [path.name]


# ---- Orbax ----


@pytest.fixture(scope='module')
def steps(tmp_path_factory):
  """Checkpoints of a state: by item name, by default, and of the parameters alone."""
  import jax.numpy as jnp
  import orbax.checkpoint as ocp

  folder = tmp_path_factory.mktemp('orbax')
  params = {'enc': {'k': jnp.asarray(GRID), 'b': jnp.ones(3, jnp.bfloat16)}}
  state = {'step': jnp.int32(3), 'params': params, 'opt': [{'m': jnp.zeros(4)}, None]}
  with ocp.CheckpointManager(folder / 'named', item_names=('state',)) as manager:
    manager.save(3, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
  with ocp.CheckpointManager(folder / 'unnamed') as manager:
    manager.save(3, args=ocp.args.StandardSave(state))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / 'alone', params)
    # Of several arrays that fail at once, Orbax leaves all but the first to complain later.
    checkpointer.save(folder / 'one', {'k': jnp.asarray(GRID)})
  return folder


@pytest.mark.parametrize(
  'item', ['named/3', 'named/3/state', 'unnamed/3', 'unnamed/3/default', 'alone']
)
def test_orbax_gives_the_parameters(steps, item):
  wanted = {'enc/b': np.ones(3, BFLOAT16), 'enc/k': GRID}
  assert_same(weights.read(steps / item), wanted)


def test_a_damaged_orbax_item_is_refused(steps, tmp_path):
  for spoil in ('manifest.ocdbt', '_METADATA'):
    item = tmp_path / spoil
    shutil.copytree(steps / 'one', item)
    (item / spoil).write_bytes(b'{"tree_metadata": 1')
    with pytest.raises(ValueError, match=spoil) as caught:
      weights.read(item)
    assert str(caught.value).isprintable()


# ---- writing that fails ----


@pytest.mark.parametrize('suffix', WRITERS)
def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, suffix):
  path = tmp_path / f'x.{suffix}'
  WRITERS[suffix](path, {'a': GRID})
  before = path.read_bytes()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))  # as on a disk that is full
  try:
    with pytest.raises(OSError, match=path.name):
      WRITERS[suffix](path, {'a': np.zeros(2**18, np.float32)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [file.name for file in tmp_path.iterdir()] == [path.name]
  assert path.read_bytes() == before
  for bad in (path / 'below.npz', tmp_path / 'absent' / 'x.npz'):
    with pytest.raises(OSError, match=bad.name):
      WRITERS[suffix](bad, {'a': GRID})


@pytest.mark.parametrize('suffix', WRITERS)
def test_what_no_file_can_hold_is_not_written(tmp_path, suffix):
  wrong = [
    {'a': np.array(['text'])},
    {'a': np.array([None])},
    {'a': np.zeros(2, np.complex64)},
    {'': GRID},
    {'a\0b': GRID},
    {'a' * 1000: GRID},
    {3: GRID},
  ]
  for arrays in wrong:
    with pytest.raises(ValueError, match=r'array|dtype'):
      WRITERS[suffix](tmp_path / 'x', arrays)
  assert not list(tmp_path.iterdir())


def test_only_floats_become_tensors(tmp_path):
  with pytest.raises(ValueError, match="'n' has dtype int64"):
    weights.write_torch(tmp_path / 'x', {'a': GRID, 'n': np.arange(3)})


def test_writing_makes_no_second_copy_of_everything(tmp_path):
  arrays = {str(i): np.zeros(2**18, np.float32) for i in range(16)}  # 16 of 1 MiB
  for suffix, write in WRITERS.items():
    tracemalloc.start()
    write(tmp_path / suffix, arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22, suffix


@pytest.mark.parametrize('number', [float('nan'), float('inf'), -float('inf')])
def test_a_json_file_has_null_for_a_number_that_is_not_finite(number, tmp_path):
  files.write_json(tmp_path / 'a.json', {'loss': [1.5, number], 'best': number})
  text = (tmp_path / 'a.json').read_text()
  assert json.loads(text, parse_constant=pytest.fail) == {'loss': [1.5, None], 'best': None}


# What was not completed


def test_what_dead_processes_did_not_complete_is_removed_and_nothing_else(tmp_path):
  with subprocess.Popen(['true']) as dead:
    pass
  host, _, token = files.writer().split('-')
  reborn, new, old = '01234567', '00000001', '00000002'  # in a pod; other hosts
  gone = [f'{host}-{dead.pid}-{token}', f'{host}-{os.getpid()}-{reborn}', f'{old}-1-{token}']
  living = [f'{host}-1-{token}', files.writer(), f'{new}-1-{token}']
  for name in (*gone, *living):
    (tmp_path / f'.report.html.{name}-89abcdef').touch()
    (tmp_path / f'.vit.{name}-a_b0c1d2' / 'new').mkdir(parents=True)
  for path in tmp_path.glob(f'.*.{old}-*'):
    os.utime(path, (0, 0))
  for name in ('.report.html', '.git', f'.report.html.{token}', f'report.{gone[0]}-89abcdef'):
    (tmp_path / name).touch()
  before = set(os.listdir(tmp_path))
  removed = files.remove_partial(tmp_path)
  assert len(removed) == 6 and all(any(name in path for name in gone) for path in removed)
  assert set(os.listdir(tmp_path)) == before - set(removed)


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  events = []
  sync, replace, rename = os.fsync, os.replace, os.rename

  def fsync(descriptor):
    events.append(pathlib.Path(os.readlink(f'/proc/self/fd/{descriptor}')).name)
    sync(descriptor)

  def moved(move):
    return lambda a, b: (events.append(f'-> {pathlib.Path(b).name}'), move(a, b))

  monkeypatch.setattr(os, 'fsync', fsync)
  monkeypatch.setattr(os, 'replace', moved(replace))
  monkeypatch.setattr(os, 'rename', moved(rename))
  files.write_json(tmp_path / 'a.json', {})
  assert files.PARTIAL.fullmatch(events[0])
  assert events[1:] == ['-> a.json', tmp_path.name]
  events.clear()
  with files.staging(tmp_path / 'model') as new:
    new.mkdir()
    (new / 'weights').write_text('1')
  assert {*events[:3]} == {'new', 'model', 'weights'}
  assert events[3:] == ['-> model', tmp_path.name]
