"""What C++ libraries write to standard error, and how they abort.

JAX's client of several processes (jax 0.10 to 0.12) ends its process with a fatal message and a
stack when process 0 is gone, or has not come; jaxlib can convert no callback of Python's that would
take its place. So standard error is kept for Python, and SIGABRT gets a handler that ends the
process with one line.
"""

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable

from vit_jax.guards import streams

TAIL = 1 << 16  # bytes of what was written last: a message and its stack have 4 KiB
HANDLERS: list[object] = []  # of C, which Python must keep as long as the process lasts


def guard(end: Callable[[str], object]) -> int:
  """Lets C++ write to a file without a name, and abort through a function.

  Args:
    end: ends the process; it gets the last of what C++ wrote, and runs in the thread that aborts.

  Returns:
    The file descriptor that standard error has now.
  """
  sys.stderr.flush()
  terminal = os.dup(2)
  record, name = tempfile.mkstemp()
  os.unlink(name)
  os.dup2(record, 2)
  os.close(record)
  sys.stderr = streams.lossy(os.fdopen(terminal, 'w', encoding='utf-8', closefd=False))

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def abort(_: int) -> None:
    size = os.fstat(2).st_size
    end(os.pread(2, TAIL, max(size - TAIL, 0)).decode('utf-8', 'replace'))

  HANDLERS.append(abort)
  ctypes.CDLL(None).signal(signal.SIGABRT, abort)
  return terminal
