"""A socket, and uvicorn that serves an application on it in a thread of its own."""

import asyncio
import contextlib
import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vit_jax.serving.front import Front
from vit_jax.serving.requests import Limits
from vit_jax.text import reason, to_stderr

HEADER_BYTES = 16 << 10  # of a request's first line and headers
HEADER_SECONDS = 10.0  # from a connection, or the answer before, to the end of the headers
READING_SECONDS = 10.0  # for a client to read its answer
KEEP_SECONDS = 5  # that a connection stays open for a next request
BACKLOG = 64  # connections that the system holds until they are accepted
END_SECONDS = 4  # for what runs when the server ends; after a signal the process has 5
START_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Clients:
  """What the connections of a server share.

  Fields:
    limits: how many there may be, and how long a request takes.
    say: takes a line about what is no request.
    connections: those that are open.
  """

  limits: Limits
  say: Callable[[str], object]
  connections: 'set[Connection]' = dataclasses.field(default_factory=set)

  def add(self, connection: 'Connection') -> None:
    """Adds one; of too many, those are dropped that wait for their clients longest."""
    self.connections.add(connection)
    excess = len(self.connections) - self.limits.connections
    if excess > 0:
      waiting = [other for other in self.connections if other.waits_for_client]
      for other in sorted(waiting, key=lambda other: other.waits_since)[:excess]:
        other.transport.abort()

  async def drop_late(self) -> None:
    """Drops those whose headers are late, or whose answers are not read."""
    now = time.monotonic()
    for connection in list(self.connections):
      allowed = HEADER_SECONDS
      if not connection.waits_for_header:
        allowed += self.limits.seconds + READING_SECONDS
      if now - connection.waits_since > allowed:
        connection.transport.abort()


class Connection(H11Protocol):
  """An HTTP/1.1 connection that can be dropped where its client keeps the server waiting.

  `waits_since` is when it was accepted, or answered last, by `time.monotonic`.
  """

  clients: ClassVar[Clients]

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    self.waits_since = time.monotonic()
    assert isinstance(transport, asyncio.Transport)
    super().connection_made(transport)
    self.clients.add(self)

  def connection_lost(self, exc: Exception | None) -> None:
    super().connection_lost(exc)
    self.clients.connections.discard(self)

  def eof_received(self) -> bool:  # type: ignore[override, unused-ignore]
    """Keeps the connection of a client that sends no more, until its request is answered."""
    if self.waits_for_client:
      return False
    self.cycle.keep_alive = False
    return True

  def on_response_complete(self) -> None:
    self.waits_since = time.monotonic()
    super().on_response_complete()

  @property
  def waits_for_header(self) -> bool:
    return self.cycle is None or bool(self.cycle.response_complete)

  @property
  def waits_for_client(self) -> bool:
    """Whether its client owes headers, or the end of a body."""
    return self.waits_for_header or bool(self.cycle.more_body)

  def send_400_response(self, msg: str) -> None:
    """Answers, and logs, what is no HTTP, has headers that are too long, or a body cut short."""
    address = self.client[0] if self.client else '-'
    self.clients.say(f'{time.strftime("%H:%M:%S")} {address} no HTTP request 400')
    super().send_400_response(msg)


def bind(host: str, port: int) -> socket.socket:
  """A socket that is bound, at a free port where `port` is 0.

  Raises:
    ValueError: for an address that is not of this machine, or a port that cannot be had.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
  except (OSError, UnicodeError) as error:
    raise ValueError(f'--host {host}: {reason(error)}') from None
  listener = socket.socket(family, kind, protocol)
  try:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
  except OSError as error:
    listener.close()
    advice = '; --port 0 takes a free one' if port else ''
    raise ValueError(f'{host} port {port}: {reason(error)}{advice}') from None
  return listener


def url(listener: socket.socket) -> str:
  """The address of a bound socket for a browser; of all addresses this machine's own."""
  host, port = listener.getsockname()[:2]
  host = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)
  return f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'


@contextlib.contextmanager
def serving(front: Front, listener: socket.socket, limits: Limits) -> Iterator[threading.Event]:
  """Serves inside of the context; at its end no request is taken, and those that run are answered.

  Yields:
    What is set when the server has ended. It answers in a thread, so that signals come to this one;
    that is not to be joined: Python 3.11 takes a thread for ended where a signal interrupts `join`.
  """
  clients = Clients(limits, front.say)
  config = uvicorn.Config(
    front,
    http=type('LimitedConnection', (Connection,), {'clients': clients}),
    ws='none',
    loop='asyncio',
    lifespan='off',
    log_config=None,
    access_log=False,
    proxy_headers=False,
    server_header=False,
    backlog=BACKLOG,
    timeout_keep_alive=KEEP_SECONDS,
    timeout_graceful_shutdown=END_SECONDS,
    callback_notify=clients.drop_late,
    timeout_notify=1,
    h11_max_incomplete_event_size=HEADER_BYTES,
  )
  server = uvicorn.Server(config)
  ended = threading.Event()

  def run() -> None:
    try:
      server.run([listener])
    finally:
      ended.set()

  with logged():
    threading.Thread(target=run, name='server', daemon=True).start()
    try:
      wait_until_started(server, ended)
      yield ended
    finally:
      server.should_exit = True
      ended.wait(END_SECONDS + 0.5)


def wait_until_started(server: uvicorn.Server, ended: threading.Event) -> None:
  """Waits for a server to take requests; RuntimeError if it does not."""
  ends = time.monotonic() + START_SECONDS
  while not server.started:
    if ended.is_set() or time.monotonic() > ends:
      raise RuntimeError('the server did not start')
    time.sleep(0.01)


class LogLines(logging.Handler):
  """Messages of uvicorn as lines like ours; what they are of is logged by `Front`."""

  def emit(self, record: logging.LogRecord) -> None:
    to_stderr(f'vit serve: {record.getMessage().strip()}')


@contextlib.contextmanager
def logged() -> Iterator[None]:
  """Has errors of uvicorn printed as lines; its warnings are of what `Connection` logs."""
  logger, handler = logging.getLogger('uvicorn.error'), LogLines(logging.ERROR)
  level, propagates = logger.level, logger.propagate
  logger.addHandler(handler)
  logger.setLevel(logging.ERROR)
  logger.propagate = False
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagates
