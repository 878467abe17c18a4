"""What the C library does with memory that is freed.

XLA's programs for a CPU allocate their temporary memory, 1 GiB in training S/16, at every step. The
GNU C library gives so large a block back to the system when it is freed, and the next step waits
for each of its pages to be cleared: a sixth of its time.
"""

import ctypes
import importlib.util
import os
from collections.abc import Callable

# Of malloc.h, with their values here: nothing is given back, large blocks come from the heap as
# all do, and threads share that one, as XLA frees and allocates in threads of its own.
OPTIONS = {'M_TRIM_THRESHOLD': (-1, -1), 'M_MMAP_MAX': (-4, 0), 'M_ARENA_MAX': (-8, 1)}
PLUGINS = ('jax_plugins', 'libtpu')  # what JAX needs for any device but a CPU


def keep_freed() -> None:
  """Keeps memory that is freed for the next allocation, where JAX has a CPU alone.

  To be called before any thread starts. It leaves other C libraries as they are, and this one where
  its own variables, MALLOC_*, decide; and processes with accelerators, whose many threads decode
  images and would wait for one heap.
  """
  if any(name.startswith('MALLOC_') for name in os.environ) or has_accelerator():
    return
  if mallopt := library_function('mallopt'):
    for option, value in OPTIONS.values():
      mallopt(option, value)


def give_back() -> None:
  """Gives memory that is free to the system, such as what compiling a program took, 0.3 GiB."""
  if trim := library_function('malloc_trim'):
    trim(0)


def library_function(name: str) -> Callable[..., int] | None:
  """A function of the GNU C library; None where there is another."""
  try:
    library = ctypes.CDLL(None)
  except (OSError, TypeError):  # of Windows
    return None
  function: Callable[..., int] | None = getattr(library, name, None)  # macOS and musl have none
  return function


def has_accelerator() -> bool:
  """Whether JAX may find a device that is not a CPU."""
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    return False
  return any(importlib.util.find_spec(name) for name in PLUGINS)
