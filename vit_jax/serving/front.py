"""What every request passes: whose it may be, its time, its answer's headers, its line of log."""

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping

from vit_jax.guards import failing
from vit_jax.serving.counters import Counters
from vit_jax.serving.exchange import (
  Answer,
  Declined,
  Gone,
  HttpRequest,
  Receive,
  Scope,
  Send,
  declined_answer,
)
from vit_jax.text import one_line, to_stderr

Handler = Callable[[HttpRequest], Awaitable[Answer]]

LOOPBACK = ('localhost', '127.0.0.1', '::1')
READ = ('GET', 'HEAD')  # methods that change and compute nothing
PATH = 60  # characters of a path in the log
GONE = 499  # the status in the log of a request whose client went away
HEADERS = {  # of every answer: pages of others neither read it, frame it nor guess its kind
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-store',
}


class Front:
  """An ASGI application: refuses strangers, asks a handler, counts and logs.

  Args:
    handlers: by path, then by method, 'GET' or 'POST'.
    address: that the server listens at.
    seconds: from the headers of a request to its answer.
    counters: of requests.
    say: takes the line about each request.
  """

  def __init__(
    self,
    handlers: Mapping[str, Mapping[str, Handler]],
    *,
    address: str,
    seconds: float,
    counters: Counters,
    say: Callable[[str], object] = to_stderr,
  ):
    self.handlers, self.seconds, self.counters, self.say = handlers, seconds, counters, say
    self.is_loopback = is_loopback(address)
    self.names = {*LOOPBACK, address.lower()}
    if not self.is_loopback:
      self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      return
    began, request = time.perf_counter(), HttpRequest(scope, receive)
    status = GONE
    try:
      answer = await self.answer(request)
      status = answer.status
      await answer.send(send, HEADERS)
    except Gone:
      pass
    finally:
      self.record(request, status, time.perf_counter() - began)

  async def answer(self, request: HttpRequest) -> Answer:
    """A handler's answer, or why there is none; Gone where nobody waits for it."""
    try:
      self.check(request)
      async with asyncio.timeout(self.seconds):
        return await self.handler(request)(request)
    except Declined as error:
      declined = error
    except TimeoutError:
      status, subject = (504, 'the answer') if request.is_complete else (408, 'the body')
      declined = Declined(status, f'{subject} took more than {self.seconds:g} s')
    except (Gone, asyncio.CancelledError):
      raise
    except Exception as error:  # a fault of ours: the client learns that there was one, no more
      self.say(f'vit serve: {failing.describe(error)}')
      declined = Declined(500, 'a fault of the server; its log says more')
    if declined.status != 408:  # of which more would come as late
      await request.discard()
    return declined_answer(declined)

  def handler(self, request: HttpRequest) -> Handler:
    """What answers a path and method; Declined for others."""
    methods = self.handlers.get(request.path)
    if methods is None:
      raise Declined(
        404, f'there is no {request.path[:PATH]!r} here; there are: {", ".join(self.handlers)}'
      )
    method = 'GET' if request.method == 'HEAD' else request.method
    if method not in methods:
      taken = ' and '.join(methods)
      raise Declined(405, f'{request.path} takes {taken}, not {request.method[:20]!r}')
    return methods[method]

  def check(self, request: HttpRequest) -> None:
    """Raises Declined for a name that is not the server's, and for a page of another site.

    A name of others may be made to lead here (DNS rebinding), and any page may send a form here.
    Browsers say where a page is from by `Sec-Fetch-Site`, older ones and plain HTTP by `Origin`.
    """
    host = request.headers.get('host', '')
    if not self.answers_to(host):
      raise Declined(403, f'the header Host is {host!r:.80}, no name of this server')
    site, origin = (request.headers.get(name, '') for name in ('sec-fetch-site', 'origin'))
    ours = site in ('same-origin', 'none') if site else origin in ('', f'http://{host}')
    if request.method not in READ and not ours:
      raise Declined(403, 'the request comes from a page of another site')

  def answers_to(self, host: str) -> bool:
    """Whether a Host header names this server; an address in digits cannot be rebound."""
    match = re.fullmatch(r'(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d{1,5})?', host)
    if not match:
      return False
    name = (match[1] or match[2]).lower()
    return name in self.names or (not self.is_loopback and is_address(name))

  def record(self, request: HttpRequest, status: int, seconds: float) -> None:
    """Counts a request, and says a line about it."""
    path = request.path if request.path in self.handlers else 'other'
    self.counters.add_request(path, status, seconds)
    asked = one_line(f'{request.method[:20]} {request.path[:PATH]}')
    clock, milliseconds = time.strftime('%H:%M:%S'), f'{1000 * seconds:.0f} ms'
    self.say(f'{clock} {request.client} {asked} {status} {milliseconds} {request.note}'.rstrip())


def is_address(name: str) -> bool:
  """Whether a host is an IP address in digits."""
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


def is_loopback(address: str) -> bool:
  """Whether only this machine reaches a server at an address."""
  is_digits = is_address(address)
  return address == 'localhost' or (is_digits and ipaddress.ip_address(address).is_loopback)
