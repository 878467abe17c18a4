"""`vit serve`: a page to try a model on, and the same answers for programs."""

import argparse
import contextlib
import importlib
import sys

from vit_jax.commands import warn
from vit_jax.guards import stopping
from vit_jax.text import to_stdout


def run(args: argparse.Namespace) -> int:
  """0 when a signal has ended it and all that ran was answered."""
  check(args)
  from vit_jax.serving import front, listening, served, server
  from vit_jax.serving.requests import Limits

  limits = Limits(image_bytes=args.max_mb << 20, queue=args.queue, seconds=args.timeout)
  with contextlib.closing(listening.bind(args.host, args.port)) as listener:
    model = served.load(args.run, args.checkpoint)
    for line in model.run.defects if model.run else []:
      warn('serve', line)
    if not front.is_loopback(args.host):
      warn('serve', f'--host {args.host}: there is no password: whoever reaches it can use it')
    options = dict(host=args.host, limits=limits, batch=args.batch, nearest=args.nearest)
    with server.running(model, listener, **options) as ended:
      to_stdout(model, f'{listening.url(listener)}  (Ctrl-C ends)')
      sys.stdout.flush()
      with contextlib.suppress(stopping.Stopped):
        ended.wait()
        raise RuntimeError('the server has ended by itself')
  return 0


def check(args: argparse.Namespace) -> None:
  """Raises ValueError for flags out of range, and where uvicorn is not installed."""
  if not 0 <= args.port < 65536:
    raise ValueError(f'--port is {args.port}, must be 0 to 65535')
  if not 0 < args.timeout <= 3600:
    raise ValueError(f'--timeout is {args.timeout:g}, must be above 0, and 3600 s at most')
  if args.nearest < 0:
    raise ValueError(f'--nearest is {args.nearest}, must be a number of photos')
  try:
    importlib.import_module('uvicorn')
  except ModuleNotFoundError:
    raise ValueError("uvicorn is not installed: pip install 'vit_jax[serve]'") from None
