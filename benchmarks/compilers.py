"""What a compiler says of our training step, and of a peer's model under the same step, as JSON.

python benchmarks/compilers.py [OUT] [--models B/16 ...] [--chips v5e:2x2] [--images 128]
  [--big-vision PATH]

The step is that of configs/default.py in bfloat16: AdamW and clipping, at 224 pixels. PATH is a
clone of github.com/google-research/big_vision, whose model then takes the place of ours; none of
its code is here. Needs 'vit_jax[plan-tpu]', or for GPUs 'vit_jax[plan-cuda]'; no chip is touched.
B/16 takes four minutes on two cores. OUT is written after each row, and keeps those of others.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import vit_jax
from vit_jax import compilers, files, models
from vit_jax.commands import bench
from vit_jax.compilers.forecast import Forecast

PEER = 'benchmarks.peer_models:BigVision'
SIZES = ('width', 'depth', 'heads', 'mlp_dim')


def forecasts(size: str, chips: str, images: int, *, peer: str) -> Iterator[tuple[str, Forecast]]:
  """Our step of a ViT, and the same step of big_vision's, if there is its code."""
  devices = compilers.parse(chips).devices
  overrides = [f'batch_size={images * devices}', 'model.dtype=bfloat16']
  variant = models.VARIANTS[f'ViT-{size}']
  fields = [f'model.{field}={variant[field]}' for field in SIZES]
  fields += [f'model.patch={variant["patch"][0]}', f'model.name={PEER}']
  choices = {'vit_jax': [f'model.name={size}', 'model.remat=none']}
  choices |= {'big_vision': fields} if peer else {}
  for code, words in choices.items():
    yield code, vit_jax.plan_for('default', chips, overrides=[*overrides, *words], tries=0)


def row(name: str, result: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
  """A forecast, as JSON has it, as a row of docs/performance.md, its cycles also by ours."""
  program = result['program']
  if program is None:
    return f'| {name} | {result["missing"]} |'
  cycles, base = program['cycles'], ours['program']['cycles']
  cells = [
    name,
    f'{result["device_images"]:,}',
    f'{cycles / 1e6:.1f}' if cycles else '',
    f'{cycles / base:.2f}' if cycles and base else '',
    f'{(program["kernel_cycles"] or 0) / 1e6:.1f}',
    f'{program["temporary"] / 2**30:.1f} GiB',
    f'{program["compile_seconds"]:.0f} s',
  ]
  return f'| {" | ".join(cells)} |'


def commit(path: str) -> str:
  """The commit of a clone; '' where git knows none."""
  words = ['git', '-C', path, 'rev-parse', 'HEAD']
  done = subprocess.run(words, capture_output=True, text=True)
  return done.stdout.strip() if done.returncode == 0 else ''


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument('out', nargs='?', default='benchmarks/results/compilers.json')
  parser.add_argument('--models', nargs='+', default=['S/16', 'B/16'], metavar='SIZE/PATCH')
  parser.add_argument('--chips', default='v5e:2x2')
  parser.add_argument('--images', type=int, default=128, help='of a device')
  parser.add_argument('--big-vision', default='', metavar='PATH')
  flags = parser.parse_args()
  if unknown := [size for size in flags.models if f'ViT-{size}' not in models.VARIANTS]:
    parser.error(f'--models {unknown[0]} is no size of a ViT, as B/16 is')
  if flags.big_vision and not pathlib.Path(flags.big_vision, 'big_vision/models').is_dir():
    parser.error(f'--big-vision {flags.big_vision} has no folder big_vision/models')
  paths = [os.path.abspath(flags.big_vision)] if flags.big_vision else []
  os.environ['PYTHONPATH'] = os.pathsep.join([*paths, os.environ.get('PYTHONPATH', '')])
  out = pathlib.Path(flags.out)
  rows: dict[str, Any] = files.read_object(out)['rows'] if out.exists() else {}
  for size in flags.models:
    where = f'{size}, {flags.chips}, {flags.images}'
    for code, result in forecasts(size, flags.chips, flags.images, peer=flags.big_vision):
      origin = {'provenance': bench.provenance()}
      if code == 'big_vision':
        origin['big_vision'] = commit(flags.big_vision)
      rows[f'{code} {where}'] = dataclasses.asdict(result) | origin
      print(row(f'{code} {where}', rows[f'{code} {where}'], rows[f'vit_jax {where}']), flush=True)
      bench.write_results(out, {'rows': rows})
  return 0


if __name__ == '__main__':
  sys.exit(main())
