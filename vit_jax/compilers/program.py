"""A compiled program as XLA writes it: what it does, how often, and what it sends.

Text alone: no JAX. An instruction is a line 'NAME = SHAPE OPERATION(OPERANDS), ATTRIBUTES'.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping

DTYPES = {  # NumPy's names of XLA's types
  'pred': 'bool', 's8': 'int8', 'u8': 'uint8', 's16': 'int16', 'u16': 'uint16', 's32': 'int32',
  'u32': 'uint32', 'f16': 'float16', 'bf16': 'bfloat16', 'f32': 'float32',
}  # fmt: skip
HEAD = re.compile(r'(?P<entry>ENTRY )?%?(?P<name>\S+) \(.*\) -> .*\{$')
LINE = re.compile(r'\s*(?:ROOT )?%?(?P<name>\S+) = (?P<shape>.*?[\])}]) (?P<operation>[\w-]+)\(')
ARRAY = re.compile(r'(?P<type>[a-z]\w*)\[(?P<sides>[\d,]*)\]')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
KERNEL = 'custom_call_target="tpu_custom_call"'
BEGINS = 'async-collective-start'  # a fusion of libtpu: others that carry it on have its channel
SCATTERS = 'all-reduce-scatter'  # a fusion of libtpu: an all-reduce of which a device has its part


ArrayType = tuple[str, tuple[int, ...]]  # XLA's type and the sides


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program."""

  name: str
  shape: str
  operation: str
  line: str

  @property
  def bytes(self) -> int:
    """Bytes of the result; of a tuple, of all its arrays."""
    return sum(map(array_bytes, array_types(self.shape)))

  @property
  def cycles(self) -> int:
    """The compiler's estimate; 0 where it gives none."""
    match = re.search(r'"estimated_cycles":"(\d+)"', self.line)
    return int(match[1]) if match else 0

  @property
  def channel(self) -> str:
    """The number of a collective; '' where it has none."""
    match = re.search(r'channel_id=(\d+)', self.line)
    return match[1] if match else ''

  def named(self, attribute: str) -> list[str]:
    """The computations that an attribute names, such as 'body'."""
    match = re.search(rf'\b{attribute}=(\{{[^}}]*\}}|\S+)', self.line)
    return re.findall(r'[\w.<>-]+', match[1]) if match else []


@dataclasses.dataclass(frozen=True)
class Listing:
  """Its computations by name, and the name of the one that is run."""

  computations: Mapping[str, list[Instruction]]
  entry: str

  def fused_collectives(self, fusion: Instruction) -> list[Instruction]:
    """The collectives that a fusion is, or begins; not those that it carries on or ends."""
    parts = [
      part
      for name in fusion.named('calls')
      for part in self.computations.get(name, ())
      if collective(part)
    ]
    begins = fusion.name.startswith(BEGINS)
    return [part for part in parts if begins or part.channel not in self.begun]

  @functools.cached_property
  def begun(self) -> frozenset[str]:
    """The channels of collectives that begin in a fusion of their own."""
    fusions = (step for steps in self.computations.values() for step in steps)
    names = [
      name for step in fusions if step.name.startswith(BEGINS) for name in step.named('calls')
    ]
    parts = (part for name in names for part in self.computations.get(name, ()))
    return frozenset(part.channel for part in parts if part.channel)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A Pallas kernel for TPUs.

  Fields:
    operands, results: types of its arrays.
    config: what XLA is handed of it, JSON: the kernel as Mosaic takes it.
  """

  operands: tuple[ArrayType, ...]
  results: tuple[ArrayType, ...]
  config: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """Instructions of one kind that a device sends by, `count` times in all.

  Fields:
    operation: of COLLECTIVES.
    group: devices that exchange.
    size: bytes of what is reduced or gathered, whole.
    count: how often it is run.
  """

  operation: str
  group: int
  size: int
  count: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a ring, which is the least for its operation."""
    return self.count * sent(self.operation, self.size, self.group)


def sent(operation: str, size: float, group: int) -> float:
  """Bytes that each device of a group sends in a ring to reduce or gather `size` bytes."""
  if operation == 'collective-permute':
    return size
  once = size * (group - 1) / group
  return 2 * once if operation == 'all-reduce' else once


def read(text: str) -> Listing:
  """The program of `jax.stages.Compiled.as_text`."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    if line.startswith('}'):
      current = None
    elif current is None:
      if head := HEAD.match(line):
        current = computations.setdefault(head['name'], [])
        entry = head['name'] if head['entry'] else entry
    elif match := LINE.match(line):
      current.append(Instruction(match['name'], match['shape'], match['operation'], line))
  return Listing(computations, entry)


def executed(program: Listing) -> Iterator[tuple[Instruction, int]]:
  """Each instruction with how often it is run, those of loops and branches in their place.

  Of a condition's branches the dearest is taken. What is fused is one instruction, but for the
  collectives in it.
  """
  return within(program, program.entry, 1)


def within(program: Listing, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
  for instruction in program.computations.get(name, ()):
    match instruction.operation:
      case 'while':
        (body,) = instruction.named('body')
        yield from within(program, body, times * trips(program, instruction))
      case 'conditional':
        names = instruction.named('branch_computations')
        names = names or [
          *instruction.named('true_computation'),
          *instruction.named('false_computation'),
        ]
        yield from within(program, max(names, key=lambda branch: cost(program, branch)), times)
      case 'call':
        yield from within(program, instruction.named('to_apply')[0], times)
      case 'fusion' | 'async-start' if not instruction.name.startswith(SCATTERS):
        yield instruction, times
        yield from ((part, times) for part in program.fused_collectives(instruction))
      case _:
        yield instruction, times


def trips(program: Listing, loop: Instruction) -> int:
  """How often a loop is run: as XLA states it, or the bound that its condition compares with.

  libtpu states none. JAX's loops over layers count up from 0 by 1.
  """
  if stated := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line):
    return int(stated[1])
  (condition,) = loop.named('condition')
  lines = [step.line for step in program.computations[condition]]
  bounds = [int(match[1]) for line in lines if (match := re.search(r' constant\((\d+)\)', line))]
  return bounds[0] if len(bounds) == 1 else 1


def cost(program: Listing, name: str) -> tuple[int, int]:
  """What a branch takes: cycles, where they are estimated, and instructions."""
  steps = list(within(program, name, 1))
  return sum(step.cycles * times for step, times in steps), len(steps)


def cycles(program: Listing) -> int:
  """The compiler's estimates added up; 0 where it gives none."""
  return sum(instruction.cycles * times for instruction, times in executed(program))


def kernels(program: Listing) -> dict[Kernel, int]:
  """Its Pallas kernels, of whose cycles there is no estimate, and how often each is run."""
  calls: dict[Kernel, int] = {}
  for instruction, times in executed(program):
    if KERNEL in instruction.line:
      kernel = kernel_of(instruction)
      calls[kernel] = calls.get(kernel, 0) + times
  return calls


def kernel_of(call: Instruction) -> Kernel:
  """The kernel that an instruction calls."""
  operands = call.line.partition('operand_layout_constraints={')[2].partition('}}')[0]
  config, _ = json.JSONDecoder().raw_decode(call.line.partition('backend_config=')[2])
  fields = {'custom_call_config': config['custom_call_config']}
  return Kernel(array_types(operands), array_types(call.shape), json.dumps(fields))


def collectives(program: Listing, devices: int) -> list[Collective]:
  """What the devices exchange; alike instructions are one."""
  counts: dict[tuple[str, int, int], int] = {}
  for instruction, times in executed(program):
    if operation := collective(instruction):
      group = group_size(instruction.line, devices)
      key = operation, group, whole_bytes(instruction, operation, group)
      counts[key] = counts.get(key, 0) + times
  return [Collective(*key, count) for key, count in counts.items()]


def by_operation(exchanges: Iterable[Collective]) -> dict[str, tuple[int, float]]:
  """{operation: how often it is run, bytes that a device sends by it}."""
  result: dict[str, tuple[int, float]] = {}
  for exchange in exchanges:
    count, size = result.get(exchange.operation, (0, 0.0))
    result[exchange.operation] = count + exchange.count, size + exchange.sent
  return result


def collective(instruction: Instruction) -> str:
  """The collective that an instruction begins or is; '' for any other."""
  if instruction.operation == 'fusion' and instruction.name.startswith(SCATTERS):
    return 'reduce-scatter'
  operation = instruction.operation.removesuffix('-start')
  return operation if operation in COLLECTIVES else ''


def whole_bytes(instruction: Instruction, operation: str, group: int) -> int:
  """Bytes of what is reduced or gathered, before it is split or after it is whole."""
  size, starts = instruction.bytes, instruction.operation.endswith('-start')
  if operation in ('all-gather', 'reduce-scatter') and starts:  # of parts and whole
    return size * group // (group + 1)
  if operation == 'collective-permute' and starts:
    return size // 2
  return size * group if operation == 'reduce-scatter' else size


def group_size(line: str, devices: int) -> int:
  """Devices of a group, of all the forms that XLA writes groups in."""
  if axes := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line):
    sizes = dict(re.findall(r"('\w+')=(\d+)", axes[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", axes[2]))
  if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return listed[1].count(',') + 1
  if regular := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(regular[1])
  return devices


def copies(program: Listing, arrays: Iterable[ArrayType]) -> tuple[int, int]:
  """How many copies are made of arrays of such types, their sides in any order; their bytes.

  What is fetched ahead into a core's own memory, S(1) in XLA's words, is no copy.
  """
  sizes = {(kind, *sorted(shape)) for kind, shape in arrays}
  count = total = 0
  for instruction, times in executed(program):
    if instruction.operation != 'copy' or 'S(1)' in instruction.shape:
      continue
    ((kind, shape),) = array_types(instruction.shape)
    if (kind, *sorted(shape)) in sizes:
      count, total = count + times, total + times * instruction.bytes
  return count, total


def array_types(shape: str) -> tuple[ArrayType, ...]:
  """The arrays of a shape as XLA writes it, one or a tuple."""
  return tuple((match['type'], sides(match['sides'])) for match in ARRAY.finditer(shape))


def sides(text: str) -> tuple[int, ...]:
  """'8,4' -> (8, 4)."""
  return tuple(int(side) for side in text.split(',') if side)


def array_bytes(array: ArrayType) -> int:
  """Bytes of an array; a type says its bits, f32, but for 'pred', of eight, and tokens, of none."""
  kind, shape = array
  bits = re.search(r'\d+', kind)
  return math.prod(shape) * (int(bits[0]) if bits else 8 * (kind == 'pred')) // 8
