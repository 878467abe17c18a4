"""What is foretold of a config's training step: plain values, of a device and an update."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes by arithmetic.

  Fields:
    parameters, optimizer, average, fixed: what a device holds of the state, and of the task.
    gradients: of its trained parameters, while they are summed.
    batch: images, labels and mask.
    activations: what a step has at its height, see `models.memory`, as if 'tensor' split nothing;
      None of models that are no stacks of blocks.
  """

  parameters: int
  optimizer: int
  average: int
  fixed: int
  gradients: int
  batch: int
  activations: int | None

  @property
  def state(self) -> int:
    """What no smaller batch frees."""
    return self.parameters + self.optimizer + self.average + self.fixed

  @property
  def total(self) -> int:
    return self.state + self.gradients + self.batch + (self.activations or 0)


@dataclasses.dataclass(frozen=True)
class Formulas:
  """Arithmetic: about what a step takes of memory, and the least of all else.

  Fields:
    memory: bytes.
    flops: without those of recomputation; 0 where they are not known.
    seconds: of the FLOPs at the device's peak; None where that is not known.
    sent: bytes to other devices.
  """

  memory: Memory
  flops: int
  seconds: float | None
  sent: float


@dataclasses.dataclass(frozen=True)
class Estimates:
  """What the compiler says; of a program that is too large only the first three.

  Fields:
    fits: whether the program fits the device's memory.
    temporary: bytes beside arguments and results.
    compile_seconds: on this machine.
    total: bytes of arguments, results that do not take their place, and temporary arrays.
    cycles, seconds: of a step; None where this compiler estimates none.
    kernels: calls of Pallas kernels, of which the compiler estimates no cycles.
    kernel_cycles: theirs among the cycles, by counting their instructions; None where those are
      not to be had, and neither cycles nor seconds have them.
    images_per_second: of all devices.
    share_of_peak: of the model's FLOPs.
    collectives: by operation: how often it is run, and bytes that a device sends by it.
    sent: bytes that a device sends in all.
    copies, copied: of arrays as large as a parameter: how many, and bytes.
    cached: whether this program was compiled at an earlier time.
  """

  fits: bool
  temporary: float
  compile_seconds: float
  total: int | None = None
  cycles: int | None = None
  seconds: float | None = None
  kernels: int = 0
  kernel_cycles: int | None = 0
  images_per_second: float | None = None
  share_of_peak: float | None = None
  collectives: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
  sent: float | None = None
  copies: int = 0
  copied: int = 0
  cached: bool = False


@dataclasses.dataclass(frozen=True)
class Forecast:
  """A config's training step on chips that are not here.

  Fields:
    chips, devices: their name, and how many devices JAX has of them.
    model, classes, parameters: the model's name and size.
    batch_size, device_images: images of an update, in all and on those devices that share rows.
    accumulate, remat, mesh: how they are computed.
    limit: bytes that a program may take of a device; None: as the machine has.
    notes: lines on what was assumed.
    missing: a line on why nothing was compiled, such as what to install; '' where it was.
    compiler: its packages and their versions.
    formulas: arithmetic.
    program: the compiler's estimates; None where it is missing.
    change: fields of the config that `search` set.
    tried: where it does not fit, what was compiled instead.
  """

  chips: str
  devices: int
  model: str
  classes: int
  parameters: int
  batch_size: int
  device_images: int
  accumulate: int
  remat: str | None
  mesh: Mapping[str, int]
  limit: float | None
  notes: tuple[str, ...]
  missing: str
  compiler: str
  formulas: Formulas
  program: Estimates | None = None
  change: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
  tried: tuple['Forecast', ...] = ()

  @property
  def needed(self) -> float:
    """Bytes of a device: the compiler's; where it fails, its temporary ones and the state's.

    Without a compiler those of arithmetic.
    """
    if self.program is None:
      return self.formulas.memory.total
    return self.program.total or self.formulas.memory.state + self.program.temporary

  @property
  def fits(self) -> bool:
    """By the compiler; without it, whether what arithmetic counts does."""
    if self.program is not None:
      return self.program.fits
    return self.limit is None or self.needed <= self.limit


def from_json(fields: Mapping[str, Any]) -> Forecast:
  """The forecast of `dataclasses.asdict`, once it was JSON."""
  formulas, program = fields['formulas'], fields['program']
  return Forecast(
    **{
      **fields,
      'notes': tuple(fields['notes']),
      'formulas': Formulas(**{**formulas, 'memory': Memory(**formulas['memory'])}),
      'program': Estimates(**program) if program else None,
      'tried': tuple(map(from_json, fields['tried'])),
    }
  )
