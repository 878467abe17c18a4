"""What the C library does with large blocks of memory, and with those that are freed.

XLA's programs for a CPU allocate their temporary memory, 0.2 to 0.5 GiB in training Ti/16 and S/16,
at every step. The GNU C library maps so large a block and gives it back when it is freed, so that
the next step waits for each of its pages to be cleared: in pages of 4 KiB a tenth of its time, in
huge ones of 2 MiB half of that. The library asks for huge pages only where a variable says so as
the process starts.
"""

import contextlib
import ctypes
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable

VARIABLE = 'GLIBC_TUNABLES'
MIB = 1 << 20
TUNABLES = ':'.join(
  f'glibc.malloc.{name}={value}'
  for name, value in {
    'hugetlb': 1,  # since version 2.35; to older ones unknown, and of no effect
    'mmap_threshold': 32 * MIB,  # decoded images, of 1 MiB, are smaller, and stay with the process
    'trim_threshold': 64 * MIB,
  }.items()
)
KERNEL = '/sys/kernel/mm/transparent_hugepage/enabled'
PLUGINS = ('jax_plugins', 'libtpu')  # what JAX needs for any device but a CPU


def use_huge_pages() -> None:
  """Starts this program again, as the same process, with huge pages for large blocks.

  To be called before anything else happens. Nothing does where that would be without effect: where
  Linux has no huge pages for who asks, or gives them unasked; in processes with accelerators, whose
  programs allocate nothing here; and where the variable is set, by the user or by this function.
  Where the system refuses a second start, as of a line of the largest size, this one goes on.
  """
  if VARIABLE in os.environ or not sys.executable or has_accelerator() or not on_request():
    return
  os.environ[VARIABLE] = TUNABLES
  with contextlib.suppress(OSError):
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def on_request() -> bool:
  """Whether the kernel has huge pages for processes that ask for them, and no others."""
  try:
    return '[madvise]' in pathlib.Path(KERNEL).read_text('ascii')
  except OSError:
    return False


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
