"""Images/s of `vit serve` under 16 clients, and of the model's step alone, as JSON.

python benchmarks/serve.py [OUT] [--models NAME...] [--clients 16] [--turns 3] [--turn 10]

Each client is a thread of one other process that posts a JPEG of 500 x 375 pixels and waits for the
answer, again and again, on one connection. They take turns with the bare step, the same compiled
function in the batch in which it computes most images/s. Decoding, HTTP and the clients take their
time of the same processors. Seconds of processors for an image, of the clients too, say the same on
a machine that does other things. Takes about 2 minutes on 2 cores.
"""

import argparse
import contextlib
import http.client
import io
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

CLASSES = 1000


def photo() -> bytes:
  """A JPEG of 500 x 375 pixels, with as much detail as a photo's: about 40 kB."""
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
  smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
  noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(noisy).save(file, 'JPEG', quality=85)
  return file.getvalue()


def post(address: str, data: bytes, ends: float, counts: list[int]) -> None:
  """Posts an image until a time of `time.monotonic()`; appends how often it was answered."""
  count = 0
  with contextlib.closing(http.client.HTTPConnection(address, timeout=120)) as connection:
    while time.monotonic() < ends:
      connection.request('POST', '/predict', data)
      reply = connection.getresponse()
      reply.read()
      if reply.status != 200:
        raise RuntimeError(f'status {reply.status}')
      count += 1
  counts.append(count)


def clients(url: str, count: int, seconds: float) -> None:
  """For every line of input, a line: images that so many clients got, and seconds it took."""
  address, data = urllib.parse.urlsplit(url).netloc, photo()
  for _ in sys.stdin:
    began, used, counts = time.monotonic(), time.process_time(), list[int]()
    threads = [
      threading.Thread(target=post, args=(address, data, began + seconds, counts))
      for _ in range(count)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    if len(counts) < count:
      raise SystemExit('a client failed')
    passed = time.monotonic() - began
    print(sum(counts), passed, time.process_time() - used, flush=True)


def model(name: str) -> Any:
  """A model with random parameters, as the server takes it."""
  from vit_jax import bundle, predict
  from vit_jax.commands import bench
  from vit_jax.serving import served

  case = bench.Case(name, 'infer')
  params = bench.random_params(case.build(), case)
  names = tuple(f'class {number}' for number in range(CLASSES))
  preprocess = bundle.Preprocess('resize_small(256) | central_crop(224)', (224, 224))
  run = predict.Run(case.build(), params, names, preprocess, name)
  return served.wrapped(run, name)


class Turn(NamedTuple):
  """How many images a second, and the seconds of processors for each."""

  rate: float
  processor_seconds: float


def bare(step: Callable[[np.ndarray], Any], images: np.ndarray, seconds: float) -> Turn:
  """A step one after another."""
  began, used, count = time.monotonic(), time.process_time(), 0
  while (passed := time.monotonic() - began) < seconds:
    step(images)
    count += len(images)
  return Turn(count / passed, (time.process_time() - used) / count)


def served(ask: IO[str], answers: IO[str]) -> Turn:
  """The clients' turn, over the pipes of their process."""
  used = time.process_time()
  print('turn', file=ask, flush=True)
  count, passed, of_clients = map(float, answers.readline().split())
  return Turn(count / passed, (time.process_time() - used + of_clients) / count)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
  """Turns of the bare step and of the server, and their ratio."""
  from vit_jax.serving import batching, listening, server

  answers = model(name)
  seconds = batching.timed_sizes(answers.step, answers.shape, largest=64)
  size = max(seconds, key=lambda size: size / seconds[size])
  images = np.zeros((size, *answers.shape), np.uint8)
  turns: dict[str, list[Turn]] = {'bare': [], 'served': []}
  listener = listening.bind('127.0.0.1', 0)
  with server.running(answers, listener, nearest=0, say=lambda line: None):
    words = [sys.executable, __file__, '--ask', listening.url(listener)]
    words += [f'--clients={args.clients}', f'--turn={args.turn}']
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
      assert child.stdin and child.stdout
      for _ in range(args.turns):
        turns['bare'].append(bare(answers.step, images, args.turn))
        turns['served'].append(served(child.stdin, child.stdout))
      child.stdin.close()
  result: dict[str, Any] = {'model': name, 'clients': args.clients, 'batch': size}
  for kind, of_kind in turns.items():
    rates, costs = zip(*of_kind)
    result[kind] = {'images_per_second': list(rates), 'processor_seconds': list(costs)}
  result['ratio'] = median(result, 'served', 'images_per_second') / median(
    result, 'bare', 'images_per_second'
  )
  result['ratio_of_processor_seconds'] = median(result, 'bare', 'processor_seconds') / median(
    result, 'served', 'processor_seconds'
  )
  return result


def median(result: dict[str, Any], kind: str, measured: str) -> float:
  return statistics.median(result[kind][measured])


def main() -> int:
  args = parser().parse_args()
  if args.ask:
    clients(args.ask, args.clients, args.turn)
    return 0
  from vit_jax.commands import bench

  results: dict[str, Any] = {'provenance': bench.provenance(), 'results': []}
  for name in args.models:
    result = measure(name, args)
    results['results'].append(result)
    bench.write_results(args.out, results)
    rates = (median(result, kind, 'images_per_second') for kind in ('served', 'bare'))
    print(f'{name}: {next(rates):.1f} images/s of {args.clients} clients, ', end='')
    print(f'the step in batches of {result["batch"]} alone {next(rates):.1f}', end='')
    print(f': {result["ratio"]:.2f}, by seconds of processors ', end='')
    print(f'{result["ratio_of_processor_seconds"]:.2f}')
  return 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  flags.add_argument('out', nargs='?', default='benchmarks/results/serve.json')
  flags.add_argument('--models', nargs='+', default=['ViT-Ti/16', 'ViT-S/16'])
  flags.add_argument('--clients', type=int, default=16)
  flags.add_argument('--turns', type=int, default=3)
  flags.add_argument('--turn', type=float, default=10.0, help='seconds of each')
  flags.add_argument('--ask', default='', help=argparse.SUPPRESS)
  return flags


if __name__ == '__main__':
  sys.exit(main())
