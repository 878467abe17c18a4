"""What compilers say of recipes at their stated hardware, and which sharding a size needs, as JSON.

python benchmarks/plan.py [OUT] [--recipes NAME ...] [--sizes]

Recipes are compiled whole, each for a minute to ten on 2 cores, and once: programs are kept. Where
a compiler is missing, 'vit_jax[plan-tpu]' or 'vit_jax[plan-cuda]', a row is of formulas. --sizes is
of formulas alone, and compiles nothing. OUT is written after each row, and keeps those that it has
of others, each with its own provenance.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import vit_jax
from vit_jax import files
from vit_jax.commands import bench
from vit_jax.compilers.forecast import Forecast

RECIPES = {  # config: the chips of its header, or some of their kind where it has no number
  'digits': 'cpu:1',
  'vit_s16_i1k': 'v3:2x2',
  'pretrain:B/16,imagenet2012': 'v5e:8x8',
  'pretrain:L/16,imagenet21k': 'v5p:4x4x4',
  'augreg:B_16,imagenet2012': 'a100:1',
  'augreg:pretrain,B/16,imagenet2012,medium2': 'v5e:8x8',
  'bit:imagenet2012': 'v3:8x8',
  'deit3:S/16': 'a100:8',
  'deit3:B/16': 'a100:8',
  'deit3:L/16': 'a100:32',
  'deit3:H/14': 'a100:32',
  'finetune:B_16,cifar10': 'a100:8',
  'food101': 'a100:1',
  'mixer': 'v3:8x8',
  'transfer:B_32,cifar10': 'a100:1',
}
SIZES = ('B/16', 'L/16', 'H/14', 'g/14', 'G/14')
CHIPS = {'v5e': '16x16', 'v5p': '4x8x8', 'v6e': '16x16', 'h100': '256'}  # 256 of each
IMAGES = 32  # of a device: fewer leave it idle
POLICIES = ('none', 'full')  # of model.remat
FILLED = 0.85  # of the limit, by formulas: a compiler needs more than they count


def recipes(names: list[str]) -> Iterator[tuple[str, Forecast]]:
  """A forecast for each recipe that is not refused; of others a line says why."""
  for name in names or RECIPES:
    try:
      yield name, vit_jax.plan_for(name, RECIPES[name], tries=0)
    except ValueError as error:
      print(f'{name}: {error}', file=sys.stderr)


def sizes() -> Iterator[tuple[str, Forecast]]:
  """By formulas, for each size and chip, the least sharding and recomputation that fit."""
  for model in SIZES:
    for kind, topology in CHIPS.items():
      yield f'{model} {kind}', least(model, f'{kind}:{topology}')


def least(model: str, chips: str) -> Forecast:
  """The first of fsdp=1, 2, 4 ... that fits with some policy; the last where none does."""
  for fsdp in (1, 2, 4, 8, 16):
    for remat in POLICIES:
      fields = {'model.name': model, 'model.remat': remat, 'system.fsdp': fsdp}
      fields |= {'batch_size': 256 * IMAGES, 'schedule.warmup': '5%'}
      overrides = [f'{field}={value}' for field, value in fields.items()]
      result = vit_jax.plan_for('default', chips, overrides=overrides, formulas=True)
      if result.limit and result.needed <= FILLED * result.limit:
        return result
  return result


def row(name: str, result: Forecast) -> str:
  """A forecast as a row of a table."""
  program = result.program
  rate = program.images_per_second if program else None
  cells = [
    name,
    result.chips,
    'compiled' if program else 'formulas',
    'yes' if result.fits else 'no',
    f'{result.needed / 2**30:.2f}',
    f'{result.formulas.memory.state / 2**30:.2f}',
    f'fsdp={result.mesh["fsdp"]} remat={result.remat}',
    f'{rate:,.0f}' if rate else '',
  ]
  return f'| {" | ".join(cells)} |'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument('out', nargs='?', default='benchmarks/results/plan.json')
  parser.add_argument('--recipes', nargs='*', choices=list(RECIPES))
  parser.add_argument('--sizes', action='store_true')
  flags = parser.parse_args()
  out = pathlib.Path(flags.out)
  rows: dict[str, Any] = files.read_object(out)['rows'] if out.exists() else {}
  for name, result in sizes() if flags.sizes else recipes(flags.recipes or []):
    print(row(name, result), flush=True)
    rows[name] = {**dataclasses.asdict(result), 'provenance': bench.provenance()}
    bench.write_results(out, {'rows': rows})
  return 0


if __name__ == '__main__':
  sys.exit(main())
