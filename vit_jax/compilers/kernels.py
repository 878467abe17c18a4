"""Cycles of Pallas kernels for TPUs, of which libtpu estimates none: their instructions, counted.

libtpu writes the instructions of a kernel down when it is asked to as it starts, so kernels are
compiled once more, alone, in a process of their own: JSON in, JSON out. A core takes one of these
very long words a cycle, as long as it waits for nothing.
"""

import dataclasses
import json
import math
import operator
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import jax

from vit_jax import compilers, files
from vit_jax.compilers import Chips, tpu
from vit_jax.compilers.program import DTYPES, ArrayType, Kernel, sides

LABEL = 'final_bundles'  # libtpu's, of the last form of a kernel's instructions
FUNCTION = 'ffi_call'  # by which JAX names a call into a kernel, and libtpu what it writes of it
INSTRUCTION = re.compile(r'^ *0x', re.MULTILINE)
GRID = re.compile(r'iteration_bounds: \(([\d, ]+)\)')
WINDOW = re.compile(  # of an array, that a step of the grid has of it
  r'window shape is \w+\[([\d,]+)\], while the full shape is \w+\[([\d,]+)\]'
)


def count_cycles(chips: Chips, kernels: Sequence[Kernel]) -> list[int] | None:
  """Cycles of one call of each kernel on such chips; None where libtpu does not write them."""
  with tempfile.TemporaryDirectory() as folder:
    flags = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
    flags += f' --xla_jf_dump_llo_pass_label_regex={LABEL}'
    request = {
      'chips': chips.name,
      'folder': folder,
      'kernels': list(map(dataclasses.asdict, kernels)),
    }
    done = subprocess.run(
      [sys.executable, '-m', 'vit_jax.compilers.kernels'],
      input=json.dumps(request),
      capture_output=True,
      text=True,
      env={**os.environ, 'LIBTPU_INIT_ARGS': f'{os.environ.get("LIBTPU_INIT_ARGS", "")} {flags}'},
    )
  return json.loads(done.stdout) if done.returncode == 0 else None


def main() -> int:
  """Answers the request on standard input."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  request = json.load(sys.stdin)
  device = tpu.devices(compilers.parse(request['chips']))[0]
  folder = pathlib.Path(request['folder'])
  cycles = [cycles_of(Kernel(**fields), device, folder) for fields in request['kernels']]
  print(files.as_json(cycles), file=out, flush=True)
  return 0


def cycles_of(kernel: Kernel, device: jax.Device, folder: pathlib.Path) -> int:
  """Cycles of a call: the kernel is compiled, and what libtpu wrote of it in a folder is read."""
  compile_alone(kernel, device)
  (path,) = folder.glob(f'*-{FUNCTION}*-{LABEL}.txt')
  text = path.read_text('utf-8')
  path.unlink()
  return cycles(text)


def compile_alone(kernel: Kernel, device: jax.Device) -> None:
  """Compiles a program that is one call of a kernel on one device."""
  split = jax.sharding.SingleDeviceSharding(device)
  call = jax.ffi.ffi_call(
    'tpu_custom_call',
    [abstract(result) for result in kernel.results],
    custom_call_api_version=1,
    legacy_backend_config=kernel.config,
  )
  jax.jit(call).lower(*(abstract(operand, split) for operand in kernel.operands)).compile()


def abstract(array: ArrayType, split: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
  kind, shape = array
  return jax.ShapeDtypeStruct(tuple(shape), DTYPES[kind], sharding=split)


def cycles(text: str) -> int:
  """The instructions of a kernel as libtpu writes them, times the steps of its grid."""
  return len(INSTRUCTION.findall(text)) * steps(text)


def steps(text: str) -> int:
  """Steps of a kernel's grid: its bounds, or where libtpu writes none the windows of an array.

  It writes none where all operands are in fast memory, as those of S/16's attention are.
  """
  if grid := GRID.search(text):
    return math.prod(sides(grid[1]))
  windows = [(sides(whole), sides(part)) for part, whole in WINDOW.findall(text)]
  counts = (map(math.ceil, map(operator.truediv, *shapes)) for shapes in windows)
  return max(map(math.prod, counts), default=1)


if __name__ == '__main__':
  sys.exit(main())
