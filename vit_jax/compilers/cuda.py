"""NVIDIA's compiler as JAX's CUDA plugin has it, which needs no GPU."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, NamedTuple

from vit_jax.compilers import CHIPS, Chips

if TYPE_CHECKING:
  import jax

EXTRA = 'plan-cuda'
PACKAGES: tuple[str, ...] = ('jax-cuda12-plugin', 'nvidia-cuda-nvcc-cu12')
if importlib.util.find_spec('jax_cuda13_plugin'):  # of a machine with a GPU: it brings its nvcc
  PACKAGES = ('jax-cuda13-plugin',)


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What XLA asks of a device, by NVIDIA's data sheets."""

  name: str
  cores: int  # multiprocessors
  units: int  # for float32, of a multiprocessor
  clock: float  # GHz
  bandwidth: int  # bytes of its memory a second
  cache: int  # bytes, of the second level
  capability: tuple[int, int]


class Capability(NamedTuple):
  """What a multiprocessor has, by CUDA's table of compute capabilities."""

  threads: int  # at once
  shared: int  # KiB of its memory
  block: int  # KiB of that, of a block at most


CAPABILITIES = {
  (8, 0): Capability(2048, 164, 163),
  (8, 6): Capability(1536, 100, 99),
  (8, 9): Capability(1536, 100, 99),
  (9, 0): Capability(2048, 228, 227),
}
H100 = Gpu('NVIDIA H100 80GB HBM3', 132, 128, 1.98, 3_352_000_000_000, 50 << 20, (9, 0))
GPUS = {
  'a100': Gpu('NVIDIA A100-SXM4-80GB', 108, 64, 1.41, 2_039_000_000_000, 40 << 20, (8, 0)),
  'h100': H100,
  'h200': dataclasses.replace(H100, name='NVIDIA H200', bandwidth=4_800_000_000_000),
  'a10': Gpu('NVIDIA A10', 72, 128, 1.695, 600_000_000_000, 6 << 20, (8, 6)),
  'l4': Gpu('NVIDIA L4', 58, 128, 2.04, 300_000_000_000, 48 << 20, (8, 9)),
  'rtx3090': Gpu('NVIDIA GeForce RTX 3090', 82, 128, 1.695, 936_000_000_000, 6 << 20, (8, 6)),
  'rtx4060': Gpu('NVIDIA GeForce RTX 4060', 24, 128, 2.46, 272_000_000_000, 24 << 20, (8, 9)),
  'rtx4090': Gpu('NVIDIA GeForce RTX 4090', 128, 128, 2.52, 1_008_000_000_000, 72 << 20, (8, 9)),
}
TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {block}
  threads_per_core_limit: {threads}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def environment(chips: Chips) -> dict[str, str]:
  """Variables of a process that compiles for GPUs, and sees none.

  Kernels are not timed to choose among them, as there is nothing to time them on.
  """
  flags = ['--xla_gpu_autotune_level=0', '--xla_gpu_enable_triton_gemm=false']
  if importlib.util.find_spec('nvidia') and (nvcc := importlib.util.find_spec('nvidia.cuda_nvcc')):
    flags += [f'--xla_gpu_cuda_data_dir={path}' for path in nvcc.submodule_search_locations or ()]
  return {'CUDA_VISIBLE_DEVICES': '-1', 'XLA_FLAGS': ' '.join(flags)}


def devices(chips: Chips) -> list['jax.Device']:
  """Devices to compile for, eight to a host."""
  from jax.experimental import topologies

  (count,), (host,) = chips.sides, chips.chip.host
  hosts, each = max(count // host, 1), min(count, host)
  return topologies.get_topology_desc(
    platform='cuda', target_config=target(chips.kind), topology=f'1x{hosts}x{each}'
  ).devices


def target(kind: str) -> str:
  """The device as XLA's text of a GpuTargetConfigProto."""
  gpu = GPUS[kind]
  capability, (major, minor) = CAPABILITIES[gpu.capability], gpu.capability
  return TARGET.format(
    gpu=gpu,
    shared=capability.shared << 10,
    block=capability.block << 10,
    threads=capability.threads,
    memory=CHIPS[kind].memory,
    major=major,
    minor=minor,
  )
