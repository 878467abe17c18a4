"""A process that has imported what a run needs, and forks a run at each order.

  python -m injection.warm SOCKET

Most of a tiny run's time is imports, where there is nothing to lose. Without them, a run can be
hurt several times as often, and a random moment of it falls into its work. SOCKET is the number of
a socket's file descriptor. An order is a module and its arguments, as JSON, with file descriptors
of standard output and error; the answer is the number of the process and, at its end, its exit
code. There is one process at a time.
"""

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, NoReturn

MODULES = (
  'cv2',
  'grain',
  'injection.ordered',
  'matplotlib.pyplot',
  'orbax.checkpoint',
  'scipy.stats',
  'sklearn.datasets',
  'vit_jax.configs.digits',
  'vit_jax.finish',
  'vit_jax.main',
  'vit_jax.train',
)


class Forge:
  """The process that forks others, and the socket for its orders."""

  def __init__(self, env: Mapping[str, str], cwd: str) -> None:
    self.socket, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, '-m', 'injection.warm', str(orders.fileno())]
    self.popen = subprocess.Popen(
      words, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, pass_fds=[orders.fileno()]
    )
    orders.close()

  def start(self, words: Sequence[str]) -> 'Fork':
    """`python -m WORDS` without its imports."""
    streams = [os.pipe(), os.pipe()]
    socket.send_fds(self.socket, [json.dumps(words).encode()], [writing for _, writing in streams])
    for _, writing in streams:
      os.close(writing)
    stdout, stderr = (os.fdopen(reading, errors='replace') for reading, _ in streams)
    return Fork(self.socket, int(self.socket.recv(64)), stdout, stderr)

  def close(self) -> None:
    self.socket.close()
    self.popen.kill()
    self.popen.wait()


class Fork:
  """A process that another has forked, as if by `subprocess.Popen`."""

  def __init__(self, answers: socket.socket, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
    self.answers, self.pid, self.stdout, self.stderr = answers, pid, stdout, stderr
    self.code: int | None = None

  def poll(self) -> int | None:
    if self.code is None and select.select([self.answers], [], [], 0)[0]:
      self.code = int(self.answers.recv(64))
    return self.code

  def wait(self, timeout: float | None = None) -> int:
    end = time.monotonic() + (float('inf') if timeout is None else timeout)
    while (code := self.poll()) is None:
      if time.monotonic() > end:
        raise subprocess.TimeoutExpired('', timeout or 0)
      time.sleep(0.005)
    return code

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)


def main() -> None:
  for name in MODULES:
    importlib.import_module(name)
  orders = socket.socket(fileno=int(sys.argv[1]))
  while True:
    order, streams, _, _ = socket.recv_fds(orders, 1 << 16, 2)
    if not order:
      return
    pid = os.fork()
    if pid == 0:
      orders.close()
      become(json.loads(order), streams)
    for stream in streams:
      os.close(stream)
    orders.send(str(pid).encode())
    orders.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def become(words: Sequence[str], streams: Sequence[int]) -> NoReturn:
  """Turns a fork into the process that `python -m WORDS` would be."""
  os.setsid()
  for number, stream in enumerate(streams, start=1):
    os.dup2(stream, number)
    os.close(stream)
  # As Python would have opened them; not to be closed where another takes the descriptor over.
  sys.stdout = open(1, 'w', closefd=False)  # noqa: SIM115
  sys.stderr = open(2, 'w', 1, errors='backslashreplace', closefd=False)  # noqa: SIM115
  sys.argv[:] = words
  sys.modules.pop(words[0], None)  # else runpy warns
  runpy.run_module(words[0], run_name='__main__', alter_sys=True)
  sys.exit()


if __name__ == '__main__':
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the harness ends this process
  main()
