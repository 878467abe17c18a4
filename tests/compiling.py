"""How the programs of tests are compiled: fast rather than well, and once for all processes.

Imports neither JAX nor the library: what it gives is set before they are imported.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import tempfile
import zlib

# Compiling takes most of the time. For the update of a tiny model LLVM at level 0 takes a sixth of
# it; XLA's older emitters of fusions, not by way of MLIR, half as long as its new ones; and a small
# program in one piece a sixth less than in several.
QUICK = '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # 0.12 has no such flag, and aborts
  QUICK += ' --xla_cpu_use_fusion_emitters=false'
FLAGS = os.environ.get('XLA_FLAGS', '')  # of whoever runs the tests, for their processes too
LIMIT = 2**30  # bytes of compiled programs that are kept for the next run


def xla_flags(devices):
  """XLA_FLAGS of a process on so many CPU devices, which compiles fast."""
  words = f'{FLAGS} {QUICK} --xla_force_host_platform_device_count={devices}'.split()
  return ' '.join(dict.fromkeys(words))  # pytest-xdist's processes have them already


def program_cache():
  """JAX's variables for a folder of compiled programs, which outlives the run where it can.

  JAX's own folder if it is set, else one in the user's cache, else a temporary one. The key of a
  program holds its code, the versions, the flags and what the processor can do.
  """
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if not folder:
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = os.path.join(home, 'vit_jax_tests')
    try:
      os.makedirs(folder, exist_ok=True)
      tempfile.TemporaryFile(dir=folder).close()
    except OSError:
      folder = tempfile.mkdtemp(prefix='vit_jax_tests')
    tidy(pathlib.Path(folder), LIMIT)
  return {
    'JAX_COMPILATION_CACHE_DIR': folder,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


def tidy(folder, limit):
  """Removes the programs that a killed process left half written, and the oldest above `limit`.

  JAX would warn of one that is damaged, and compile it anew, each time. A program that another run
  is writing may be taken for damaged: it is compiled once more.
  """
  checked = folder / 'checked'
  since = checked.stat().st_mtime if checked.exists() else 0
  files = []
  for file in folder.glob('*-cache'):
    with contextlib.suppress(FileNotFoundError):  # another run tidies too
      stat = file.stat()
      if stat.st_mtime >= since and not whole(file.read_bytes()):
        file.unlink()
      else:
        files.append((stat.st_mtime, stat.st_size, file))
  total = 0
  for _, size, file in sorted(files, reverse=True):
    total += size
    if total > limit:
      file.unlink(missing_ok=True)
  checked.touch()


def whole(data):
  """Whether a stream of zlib has its end; any other form of a program is taken for whole."""
  if data[:1] != b'\x78':
    return len(data) > 0
  stream = zlib.decompressobj()
  try:
    stream.decompress(data)
  except zlib.error:
    return False
  return stream.eof
