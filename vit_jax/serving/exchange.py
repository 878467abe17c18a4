"""A request and its answer, over ASGI: https://asgi.readthedocs.io."""

import asyncio
import dataclasses
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from vit_jax import files
from vit_jax.text import message_line

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DISCARD_SECONDS = 2.0  # for a body that is not read, so that its sender hears why


class Declined(Exception):
  """A request that is not answered as asked: the status, and a line for its sender.

  Args:
    retry: seconds after which it may be tried again; 0 to say nothing of it.
  """

  def __init__(self, status: int, message: object, *, retry: int = 0):
    super().__init__(message_line(message))
    self.status = status
    self.headers = {'Retry-After': str(retry)} if retry else {}


class Gone(Exception):
  """The client went away before its request was complete."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What is sent: the bytes, their content type, the status and more headers."""

  body: bytes
  kind: str
  status: int = 200
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

  async def send(self, send: Send, headers: Mapping[str, str]) -> None:
    """Sends it, with further headers."""
    sent = {**headers, **self.headers, 'Content-Type': self.kind}
    sent['Content-Length'] = str(len(self.body))
    pairs = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
    await send({'type': 'http.response.start', 'status': self.status, 'headers': pairs})
    await send({'type': 'http.response.body', 'body': self.body})


def json_answer(
  value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
  """A value of JSON; ValueError for a number that is not finite."""
  return Answer(files.as_json(value).encode(), 'application/json', status, headers or {})


def declined_answer(error: Declined) -> Answer:
  """The answer to what is refused; the connection may hold the rest of a body, and is closed."""
  headers = {**error.headers, 'Connection': 'close'}
  return json_answer({'error': str(error)}, status=error.status, headers=headers)


class Ledger:
  """The bytes of all bodies in memory; the server's thread alone counts."""

  def __init__(self, limit: int):
    self.limit, self.total = limit, 0

  def take(self, count: int) -> None:
    if self.total + count > self.limit:
      raise Declined(503, 'too many bytes of other requests are being read', retry=1)
    self.total += count

  def release(self, count: int) -> None:
    self.total -= count


class HttpRequest:
  """A request whose body is yet to come.

  Attributes:
    method, path: as sent, the path decoded.
    headers: by name in lower case; of one that comes twice the values with a comma between.
    query: the last value of each name behind the `?`.
    client: its address; '-' where it has none.
    is_complete: whether the whole body has come.
    note: what the log says of it, set by who answers.
  """

  def __init__(self, scope: Scope, receive: Receive):
    self.receive = receive
    self.method, self.path = scope['method'], scope['path']
    self.headers: dict[str, str] = {}
    for name, value in scope['headers']:
      key, text = name.decode('latin-1').lower(), value.decode('latin-1')
      self.headers[key] = f'{self.headers[key]}, {text}' if key in self.headers else text
    self.query = dict(urllib.parse.parse_qsl(scope['query_string'].decode('latin-1')))
    self.client = scope['client'][0] if scope['client'] else '-'
    self.is_complete, self.note = False, ''

  async def body(self, ledger: Ledger, limit: int) -> bytes:
    """The body; the ledger has its bytes from now on.

    Raises:
      Declined: if it is longer than the limit, or says so, or memory has no room for it.
      Gone: if the client goes.
    """
    too_long = Declined(413, f'the body is larger than {limit:,} bytes')
    if int(self.headers.get('content-length', '0')) > limit:
      raise too_long
    parts: list[bytes] = []
    size = 0
    try:
      while not self.is_complete:
        part = await self.next_part()
        if size + len(part) > limit:
          raise too_long
        ledger.take(len(part))
        size += len(part)
        parts.append(part)
    except BaseException:
      ledger.release(size)
      raise
    return b''.join(parts)

  async def next_part(self) -> bytes:
    """The next bytes of the body; the last sets `is_complete`."""
    message = await self.receive()
    if message['type'] != 'http.request':
      raise Gone
    self.is_complete = not message.get('more_body', False)
    return message.get('body', b'')

  async def discard(self) -> None:
    """Reads what is still sent, for a while: else the system resets the connection.

    Not where the client waits to be asked for the body: it then never sends it.
    """
    if self.headers.get('expect', '').lower() == '100-continue':
      return
    try:
      async with asyncio.timeout(DISCARD_SECONDS):
        while not self.is_complete:
          await self.next_part()
    except TimeoutError:
      pass
