"""Time and memory of `vit convert` from .npz to a bundle, against numpy.load and a copy.

The copy is of the arrays in memory, or of the file on disk, as what is converted is written too.

  python benchmarks/convert.py [--model ViT-B/16] [--rounds 7] [--out FILE.json]

Every turn is a process of its own and the two take turns, after two rounds that do not count: a
virtual machine gets memory for the page cache slowly the first time. Figures are medians, the ratio
is of each round; disks are synced between turns. Weights are random. Memory is the process's peak,
its imports included, which are reported.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from vit_jax.commands import bench

WARM = 2  # rounds
COPY = """
arrays = np.load(sys.argv[1])
copies = {name: arrays[name].copy() for name in arrays.files}
"""
FILE_COPY = """
import shutil
arrays = np.load(sys.argv[1])
loaded = {name: arrays[name] for name in arrays.files}
shutil.copyfile(sys.argv[1], sys.argv[2])
"""
CONVERT = """
bundle.write(sys.argv[2], bundle.read(sys.argv[1], native=True))
"""
TURN = """
import resource, sys, time
import numpy as np
import jax
from vit_jax import bundle, models
models.device_dtype()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, before * 1024, peak * 1024)
"""


def turn(work: str, file: pathlib.Path, folder: pathlib.Path) -> list[float]:
  """[seconds, bytes before, peak bytes] of one process."""
  os.sync()  # what earlier turns left to write would slow this one
  command = [sys.executable, '-c', TURN.format(work=work), str(file), str(folder)]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  return [float(word) for word in done.stdout.split()]


def write_weights(name: str, file: pathlib.Path) -> None:
  """Random weights of a model in Google's names, made in a process that then ends."""
  code = """
import sys, jax, numpy as np
from vit_jax import models, convert
from vit_jax.convert import engine, google, weights
model = models.build(sys.argv[1])
side = 224
images = jax.ShapeDtypeStruct((1, side, side, 3), 'float32')
shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
rng = np.random.default_rng(0)
ours = {}
draw = lambda leaf: rng.standard_normal(leaf.shape, np.float32)
models.map_named(lambda name, leaf: ours.setdefault(name, draw(leaf)), shapes)
weights.write_npz(sys.argv[2], engine.to_theirs(google.GOOGLE, ours)[0])
"""
  subprocess.run([sys.executable, '-c', code, name, str(file)], check=True)


def main() -> None:
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument('--model', default='ViT-B/16')
  flags.add_argument('--rounds', type=int, default=7)
  flags.add_argument('--out')
  args = flags.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    file = pathlib.Path(scratch) / 'weights.npz'
    write_weights(args.model, file)
    size = file.stat().st_size
    turns: dict[str, list[list[float]]] = {'copy': [], 'file_copy': [], 'convert': []}
    for round_ in range(WARM + args.rounds):
      turns['copy'].append(turn(COPY, file, file))
      turns['file_copy'].append(turn(FILE_COPY, file, pathlib.Path(scratch) / 'copied.npz'))
      os.remove(f'{scratch}/copied.npz')
      turns['convert'].append(turn(CONVERT, file, pathlib.Path(scratch) / f'bundle{round_}'))
      subprocess.run(['rm', '-r', f'{scratch}/bundle{round_}'], check=True)
    turns = {name: taken[WARM:] for name, taken in turns.items()}
  ratios = {
    name: [ours[0] / theirs[0] for theirs, ours in zip(turns[name], turns['convert'])]
    for name in ('copy', 'file_copy')
  }
  results = {
    'provenance': bench.provenance(),
    'model': args.model,
    'rounds': args.rounds,
    'file_bytes': size,
    'seconds': {name: statistics.median(t[0] for t in taken) for name, taken in turns.items()},
    'ratio': {name: bench.spread(values) for name, values in ratios.items()},
    'peak_bytes': max(t[2] for t in turns['convert']),
    'peak_over_file': max(t[2] for t in turns['convert']) / size,
    'imports_bytes': max(t[1] for t in turns['convert']),
  }
  print(json.dumps(bench.round_floats(results), indent=1))
  if args.out:
    bench.write_results(args.out, results)


if __name__ == '__main__':
  main()
