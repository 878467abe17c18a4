"""Programs for chips that are not here: what their compiler says of a config's training step.

`search` asks, and a `worker`, a process of its own, compiles and answers with a `forecast`. The
compilers are tpu, cuda and cpu; `program` reads what they make, `formulas` is the arithmetic.

Chips are named 'KIND:TOPOLOGY', 'v5e:4x4' or 'h100:8': TPUs by the sides of their mesh, others by
how many.
"""

import dataclasses
import math
import os
import re

from vit_jax.text import nearest

MAX_CHIPS = 1 << 13  # of the largest pods


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of chip, by its maker's data sheet.

  Fields:
    platform: whose compiler knows it: 'tpu', 'cuda' or 'cpu'.
    peak: bfloat16 matrix FLOP/s of a device, dense; None where no fraction of it is stated.
    memory: bytes of a device: of TPUs what libtpu lets a program have, of GPUs all that
      CUDA has of it. None: as much as the machine has.
    clock: cycles a second, of the compiler's estimates; None where it gives none, or is not public.
    host: the sides of the mesh of its chips; of GPUs how many, or fewer.
    devices: JAX's of a chip: v3 and TPU7x have two cores, each compiled for as a device. Those of
      v4 and v5p are one device, as they are on its hosts.
  """

  platform: str
  peak: float | None
  memory: float | None
  clock: float | None
  host: tuple[int, ...]
  devices: int = 1


GIB = 2**30
CHIPS = {
  'v3': Chip('tpu', 123e12 / 2, 15.48 * GIB, 0.94e9, (2, 2), devices=2),
  'v4': Chip('tpu', 275e12, 30.75 * GIB, 1.05e9, (2, 2, 1)),
  'v5e': Chip('tpu', 197e12, 15.75 * GIB, 1.5e9, (2, 2)),
  'v5p': Chip('tpu', 459e12, 95.74 * GIB, 1.75e9, (2, 2, 1)),
  'v6e': Chip('tpu', 918e12, 31.25 * GIB, 1.75e9, (2, 2)),
  'tpu7x': Chip('tpu', 2307e12 / 2, 94.75 * GIB, None, (2, 2, 1), devices=2),
  'a100': Chip('cuda', 312e12, 79.15 * GIB, None, (8,)),
  'h100': Chip('cuda', 989e12, 84_929_347_584, None, (8,)),
  'h200': Chip('cuda', 989e12, 139.81 * GIB, None, (8,)),
  'a10': Chip('cuda', 125e12, 23_609_475_072, None, (8,)),
  'l4': Chip('cuda', 121e12, 21.96 * GIB, None, (8,)),
  'rtx3090': Chip('cuda', 71e12, 23.69 * GIB, None, (8,)),
  'rtx4060': Chip('cuda', None, 7.63 * GIB, None, (8,)),
  'rtx4090': Chip('cuda', 165e12, 23.64 * GIB, None, (8,)),
  'cpu': Chip('cpu', None, None, None, (1,)),
}


@dataclasses.dataclass(frozen=True)
class Chips:
  """Chips of one kind, as they are joined.

  Fields:
    name: as `parse` takes it.
    kind: of CHIPS.
    sides: of the mesh of TPUs; (how many,) of others.
  """

  name: str
  kind: str
  sides: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def devices(self) -> int:
    """JAX's devices of all chips."""
    return math.prod(self.sides) * self.chip.devices

  @property
  def limit(self) -> float | None:
    """Bytes that a program may take of a device; None: as the machine has.

    Of a GPU's memory JAX takes three quarters, or as much as its variable says.
    """
    memory = self.chip.memory
    if memory is None or self.chip.platform != 'cuda':
      return memory
    return memory * float(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 0.75))


def parse(name: str) -> Chips:
  """The chips of a name, 'v5e:4x4' or 'h100:8'; ValueError with the nearest for any other."""
  kind, _, topology = name.lower().partition(':')
  if kind not in CHIPS:
    raise ValueError(f'unknown chip {kind!r}{nearest(kind, list(CHIPS))}')
  host = CHIPS[kind].host
  if not re.fullmatch(r'\d+(x\d+)*', topology) or topology.count('x') + 1 != len(host):
    wanted = 'how many' if len(host) == 1 else f'{len(host)} sides'
    raise ValueError(
      f'chips {name!r} of topology {topology!r}: {kind} wants {wanted}, {joined(kind, host)}'
    )
  sides = tuple(map(int, topology.split('x')))
  if not 0 < math.prod(sides) <= MAX_CHIPS:
    raise ValueError(f'chips {name!r}: {math.prod(sides):,} of them, must be 1 to {MAX_CHIPS:,}')
  if (whole := whole_hosts(sides, host)) != sides:
    raise ValueError(
      f'chips {name!r} are no whole hosts of {joined(kind, host)}; the nearest are '
      f'{joined(kind, whole)}'
    )
  return Chips(joined(kind, sides), kind, sides)


def whole_hosts(sides: tuple[int, ...], host: tuple[int, ...]) -> tuple[int, ...]:
  """The least sides, not under these, that are whole hosts, one chip, or GPUs of one host."""
  if math.prod(sides) == 1 or (len(host) == 1 and sides < host):
    return sides
  return tuple(math.ceil(side / each) * each for side, each in zip(sides, host))


def joined(kind: str, sides: tuple[int, ...]) -> str:
  """The name of chips."""
  return f'{kind}:{"x".join(map(str, sides))}'
