"""`vit doctor`: what this machine has, and what is wrong with it."""

import argparse
import os
import platform
import shutil

from vit_jax.commands import compiled
from vit_jax.text import quantity, reason, to_stderr, to_stdout
from vit_jax.workdir import PACKAGES, installed


def run(args: argparse.Namespace) -> int:
  """Prints versions, devices and warnings; 1 if something will slow or stop a run, else 0."""
  to_stdout(f'Python {platform.python_version()}, {platform.platform()}')
  to_stdout(f'{os.cpu_count()} CPU cores')
  missing = []
  for package in PACKAGES:
    version = installed(package)
    to_stdout(f'  {package:24} {version or "MISSING"}')
    missing += [] if version else [package]
  problems = [f'missing: {", ".join(missing)}; pip install vit_jax brings them'] if missing else []
  problems += check_devices()
  to_stdout(compiled.describe())
  for problem in problems:
    to_stderr(f'!! {problem}')
  to_stdout('all is well' if not problems else f'{len(problems)} to fix, see above')
  return 1 if problems else 0


def check_devices() -> list[str]:
  """Prints JAX's devices; returns what is wrong with them."""
  try:
    import jax

    devices = jax.devices()
  except Exception as error:  # of whatever kind a broken driver or plugin raises
    return [f'JAX does not start: {reason(error)}']
  to_stdout(f'{quantity(len(devices), f"{jax.default_backend()} device")}:')
  for device in devices:
    stats = device.memory_stats() or {}
    memory = f', {stats["bytes_limit"] / 2**30:.0f} GiB' if 'bytes_limit' in stats else ''
    to_stdout(f'  {device.device_kind}{memory}')
  if jax.default_backend() == 'cpu' and (gpu := nvidia_gpu()):
    return [f'this machine has {gpu}, but JAX RUNS ON THE CPU: pip install -U "jax[cuda13]"']
  return []


def nvidia_gpu() -> str | None:
  """A sign of an NVIDIA GPU on this machine that asks nothing of JAX."""
  if os.path.exists('/proc/driver/nvidia/version') or os.path.exists('/dev/nvidia0'):
    return 'an NVIDIA GPU'
  return 'an NVIDIA driver (nvidia-smi)' if shutil.which('nvidia-smi') else None
