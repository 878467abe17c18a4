"""Pickles of PyTorch's tensors, read and written without PyTorch and without running `pickle`.

The few instructions that weight files consist of are interpreted here: none of them can import or
call anything, and names outside GLOBALS are refused.
"""

import math
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import numpy as np

from vit_jax import files

T = TypeVar('T')

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
NAMESPACE = 'argparse Namespace'  # options of a training script beside the weights: passed over
GLOBALS = {ORDERED_DICT, NAMESPACE, REBUILD_TENSOR, REBUILD_PARAMETER, *STORAGES}
PICKLE, OPCODES = 2**26, 1_000_000  # bytes and instructions; a tensor takes 40
RANK = 32  # dimensions of an array


Tree = Any  # of dictionaries, lists, tuples, numbers, text and arrays


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


MARK = object()
CONSTANTS = {'MARK': MARK, 'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
LITERALS = ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE')
TUPLES = {'EMPTY_TUPLE': 0, 'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def unpickle(text: memoryview, storage: Callable[[str, str, int], Storage]) -> Tree:
  """What a pickle of tensors describes, made of dictionaries, lists, tuples, numbers and arrays.

  `storage` gives the storage of a kind, a key and a number of elements.
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
        stack.append(allowed(str(value)))
      case 'STACK_GLOBAL':
        stack.append(allowed('{} {}'.format(*popped(stack, 2))))
      case 'BINPERSID':
        stack.append(storage_of(typed(stack.pop(), tuple), storage))
      case 'REDUCE' | 'NEWOBJ':
        function, arguments = popped(stack, 2)
        stack.append(call(typed(function, Global).name, typed(arguments, tuple)))
      case 'BUILD':  # gives an OrderedDict or a Namespace attributes, of which no tensor is one
        stack.pop()
        typed(stack[-1], dict)
      case name if name in LITERALS:
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


def typed(value: object, kind: type[T]) -> T:
  if not isinstance(value, kind):
    raise ValueError(f'its pickle has {type(value).__name__} in the place of {kind.__name__}')
  return value


def key(value: object) -> str | int:
  """The key of a dictionary: text or a moderate number, as others can be made to hash alike."""
  if not isinstance(value, str | int) or (isinstance(value, int) and abs(value) >= 2**60):
    raise ValueError(f'its pickle has a {type(value).__name__} as the key of a dictionary')
  return value


def allowed(name: str) -> Global:
  if name not in GLOBALS:
    asked = name[:80].replace(' ', '.')
    raise files.Refused(f'it asks for {asked!r}, which is code and not weights: refused')
  return Global(name)


def storage_of(persistent: tuple[Any, ...], storage: Callable[[str, str, int], Storage]) -> Storage:
  """The storage that a persistent id means: ('storage', kind, key, device, number of elements)."""
  tag, kind, name, _, count = persistent
  if tag != 'storage' or not isinstance(name, str) or not is_sizes((count,)):
    raise ValueError('its pickle refers to something other than a storage')
  if typed(kind, Global).name not in STORAGES:
    raise ValueError(f'its pickle has {kind.name!r} in the place of a storage type')
  return storage(kind.name, name, count)


def call(function: str, arguments: tuple[Any, ...]) -> dict[str, object] | np.ndarray:
  """What a function would give that a pickle may name."""
  if function in (ORDERED_DICT, NAMESPACE) and not arguments:
    return {}
  if function == REBUILD_TENSOR and len(arguments) >= 4:
    return tensor(*arguments[:4])
  if function == REBUILD_PARAMETER and arguments:
    return typed(arguments[0], np.ndarray)
  raise ValueError(f'its pickle calls {function!r} with {len(arguments)} arguments')


def tensor(
  storage: object, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
  """A view of a storage; offset and strides are in elements."""
  storage = typed(storage, Storage)
  fine = is_sizes([offset]) and is_sizes(shape) and is_sizes(strides)
  if not fine or len(shape) != len(strides):
    raise ValueError('a tensor has a shape, strides or an offset that are no sizes')
  count = math.prod(shape)
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
  if count > storage.size or (count and last >= storage.size):
    raise ValueError(f'a tensor of shape {shape} exceeds its storage of {storage.size}')
  if not count:
    return np.ndarray(shape, storage.dtype, b'')
  step = storage.dtype.itemsize
  steps = [step * stride for stride in strides]
  return np.ndarray(shape, storage.dtype, storage.raw.data, step * offset, steps)


def is_sizes(value: object) -> TypeGuard[Sequence[int]]:
  """Whether it is a list or tuple of few numbers from 0 to 2^63."""
  return (
    isinstance(value, list | tuple)
    and len(value) <= RANK
    and all(type(size) is int and 0 <= size < 2**63 for size in value)
  )


def tensors(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The pickle of an OrderedDict of contiguous float32 tensors, storage i for the i-th."""
  ordered_dict = global_name(ORDERED_DICT) + b')R'  # called with an empty tuple
  parts = [b'\x80\2', ordered_dict, b'(']
  for count, (name, values) in enumerate(arrays.items()):
    shape = tuple(map(int, values.shape))
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    parts += [literal(name), global_name(REBUILD_TENSOR), b'((']
    parts += [literal('storage'), global_name('torch FloatStorage')]
    parts += [literal(value) for value in (str(count), 'cpu', math.prod(shape))]
    parts += [b'tQ', *(literal(value) for value in (0, shape, strides, False))]
    parts += [ordered_dict, b'tR']  # no hooks; the tuple of arguments; the call
  return b''.join([*parts, b'u.'])


def global_name(name: str) -> bytes:
  return b'c' + name.replace(' ', '\n').encode() + b'\n'


def literal(value: object) -> bytes:
  """The instructions for one value, less those that begin and end a pickle."""
  return pickle.dumps(value, 2)[2:-1]
