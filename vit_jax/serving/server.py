"""A model, a socket, and all between them."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from vit_jax.serving.front import Front
from vit_jax.serving.listening import serving
from vit_jax.serving.neighbours import Neighbours
from vit_jax.serving.requests import LIMITS, Limits
from vit_jax.serving.served import Served
from vit_jax.serving.service import Service
from vit_jax.text import to_stderr

BATCH = 64  # images computed at once, at most
NEAREST = 2000  # training photos that are compared


@contextlib.contextmanager
def running(
  model: Served,
  listener: socket.socket,
  *,
  host: str = '127.0.0.1',
  limits: Limits = LIMITS,
  batch: int = BATCH,
  nearest: int = NEAREST,
  say: Callable[[str], object] = to_stderr,
) -> Iterator[threading.Event]:
  """Serves a model inside of the context; at its end what runs is answered.

  Args:
    model: that answers; all sizes of batch are compiled before the context begins.
    listener: of `listening.bind`.
    host: the address that was asked for, which decides whose requests are taken.
    limits: of what requests take.
    batch: images computed at once, at most.
    nearest: training photos that are compared with a photo.
    say: takes the line about each request.

  Yields:
    What is set when the server has ended by itself.
  """
  neighbours = Neighbours(model.run, model.path, limit=nearest)
  with contextlib.closing(Service(model, neighbours, limits, batch=batch)) as service:
    front = Front(
      service.handlers, address=host, seconds=limits.seconds, counters=service.counters, say=say
    )
    with serving(front, listener, limits) as ended:
      yield ended
