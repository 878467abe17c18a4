"""Files from the web: whom a redirect may lead to, how much may come, how long it may take.

An answer is a stranger's. It is kept only whole, within LIMIT, not slower than SLOWEST, with the
digest that its publisher names, and if it is no page of HTML.
"""

import base64
import hashlib
import http.client
import ipaddress
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from typing import IO, NamedTuple

from vit_jax.text import progress, redacted

TIMEOUT = 60.0  # seconds without an answer, or without a byte of it
SLOWEST = 10_000  # bytes a second that come on average after the first TIMEOUT
LIMIT = 2**36  # bytes: three times the largest published ViT, EVA02-E in float32
BLOCK = 1 << 20  # bytes
HTML = re.compile(rb'\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b', re.I | re.S)
HUB_NAME = re.compile(r'-([0-9a-f]{8,64})\.[a-z]+$')  # as torch.hub checks: SHA-256 begins with it
HUB_FOLDER = re.compile(r'/([0-9a-f]{64})/[^/]+$')  # as OpenAI's CLIP has it


class Digest(NamedTuple):
  """What a publisher says of a file: a digest in hexadecimal, perhaps only its first digits."""

  algorithm: str
  digits: str


def request(address: str) -> http.client.HTTPResponse:
  """The answer at an http or https address, 'https://USER:PASSWORD@HOST/...' too.

  User and password go to the host that is named, and to no other that a redirect leads to.
  """
  parts = urllib.parse.urlsplit(address)
  user, at, host = parts.netloc.rpartition('@')
  question = urllib.request.Request(parts._replace(netloc=host, fragment='').geturl())
  if at:
    secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
    question.add_unredirected_header('Authorization', f'Basic {secret}')
  opener = urllib.request.build_opener(Redirects(internal=is_internal(parts.hostname or '')))
  return opener.open(question, timeout=TIMEOUT)


class Redirects(urllib.request.HTTPRedirectHandler):
  """Follows what stays in the open: not from https to http, not into a network behind this host.

  Fields:
    internal: whether the first address is in one itself, as a user may have it.
  """

  def __init__(self, *, internal: bool):
    self.internal = internal

  def redirect_request(
    self,
    req: urllib.request.Request,
    fp: IO[bytes],
    code: int,
    msg: str,
    headers: http.client.HTTPMessage,
    newurl: str,
  ) -> urllib.request.Request | None:
    """The request that follows; URLError for an address that is not followed."""
    old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
    if new.scheme != 'https' and (old.scheme, new.scheme) != ('http', 'http'):
      raise urllib.error.URLError(f'it leads from {old.scheme} to {redacted(newurl)}')
    if new.hostname != old.hostname and not self.internal and is_internal(new.hostname or ''):
      raise urllib.error.URLError(f'it leads to {redacted(newurl)}, which is no public address')
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_internal(host: str) -> bool:
  """Whether one of a host's addresses is private, loopback, link-local or otherwise not public."""
  try:
    addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None)]
  except (OSError, UnicodeError):  # a proxy may know it
    return False
  return any(not ipaddress.ip_address(address.partition('%')[0]).is_global for address in addresses)


def published_digest(address: str, headers: Message) -> Digest | None:
  """What the name of a file, or the server's headers, say of its bytes; None for nothing.

  torch.hub's files (torchvision's, DeiT's) have the first digits of their SHA-256 in their name,
  OpenAI's CLIP all in their folder; Google's storage sends the MD5 in `x-goog-hash`.
  """
  path = urllib.parse.urlsplit(address).path
  if match := HUB_NAME.search(path) or HUB_FOLDER.search(path):
    return Digest('sha256', match[1])
  values = ','.join(headers.get_all('x-goog-hash', []))
  if match := re.search(r'\bmd5=([\w+/]{22}==)', values):
    return Digest('md5', base64.b64decode(match[1]).hex())
  return None


def copy(
  answer: http.client.HTTPResponse, out: IO[bytes], name: str, digest: Digest | None
) -> None:
  """Writes what comes, under a progress bar on a terminal.

  Raises:
    ValueError: for a page of HTML, another digest than the published one, or what is too large.
    EOFError: for less than was promised.
    TimeoutError: for what comes too slowly.
  """
  size = promised_size(answer)
  check_size(size or 0, LIMIT)
  hashing = hashlib.new(digest.algorithm if digest else 'md5', usedforsecurity=False)
  with progress(size, description=f'fetching {name}', unit='bytes') as advance:
    for block in blocks(answer, LIMIT):
      out.write(block)
      hashing.update(block)
      advance(len(block))
  if digest and not (actual := hashing.hexdigest()).startswith(digest.digits):
    raise ValueError(f'its {digest.algorithm} is {actual}, published is {digest.digits}')


def read(address: str, limit: int) -> bytes:
  """What is at an address, of at most so many bytes; errors as of `request` and `copy`."""
  with request(address) as answer:
    check_size(promised_size(answer) or 0, limit)
    return b''.join(blocks(answer, limit))


def promised_size(answer: http.client.HTTPResponse) -> int | None:
  """How many bytes an answer says that it has."""
  promised = answer.headers.get('Content-Length')
  return int(promised) if promised else None


def blocks(answer: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
  """What comes, until all that was promised has; raises as `copy` does."""
  size, count, began = promised_size(answer), 0, time.monotonic()
  while block := answer.read1(BLOCK):
    if not count and HTML.match(block):
      raise ValueError('it is a page of HTML, not a file')
    count += len(block)
    check_size(count, limit)
    yield block
    if time.monotonic() - began > TIMEOUT + count / SLOWEST:
      raise TimeoutError(f'slower than {SLOWEST:,} bytes a second: {count:,} bytes came')
  if size is not None and count != size:
    raise EOFError(f'only {count:,} of {size:,} bytes came')


def check_size(size: int, limit: int) -> None:
  """Raises ValueError for more bytes than the limit."""
  if size > limit:
    raise ValueError(f'{size:,} bytes exceed the limit of {limit:,}')
