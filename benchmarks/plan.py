"""What compilers say of recipes at their stated hardware, and which sharding a size needs, as JSON.

python benchmarks/plan.py [OUT] [--recipes NAME ...] [--formulas]
python benchmarks/plan.py [OUT] --sizes [NAME ...] [--formulas]

Programs are compiled whole, each for a minute to ten on 2 cores, and once: what was said of them is
kept. Where a compiler is missing, 'vit_jax[plan-tpu]' or 'vit_jax[plan-cuda]', and with --formulas,
a row is of formulas. OUT is written after each row, and keeps those that it has of others, each
with its own provenance.
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
from vit_jax.compilers.forecast import Estimates, Forecast

RECIPES = {  # config: the chips of its header, or some of their kind where it has no number
  'digits': 'cpu:1',
  'dino:B/16,imagenet2012': 'l4:1',
  'dino:S/16,imagenet2012': 'rtx4060:1',
  'lejepa:B/16,imagenet2012': 'l4:1',
  'lejepa:S/16,imagenet2012': 'rtx4060:1',
  'mae:B/16,imagenet2012': 'l4:1',
  'mae:S/16,imagenet2012': 'rtx4060:1',
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
  'scratch:digits': 'cpu:1',
  'transfer:B_32,cifar10': 'a100:1',
  'vtab:B_16,caltech101': 'a100:1',
}
SIZES = ('B/16', 'L/16', 'H/14', 'g/14', 'G/14')
CHIPS = ('v5e:2x4', 'v5p:2x2x2', 'v6e:2x4', 'h100:8')  # eight devices of each
IMAGES = 32  # of a device: fewer leave it idle
FILLED = 0.9  # of the limit, by formulas


def recipes(names: list[str], *, formulas: bool) -> Iterator[tuple[str, Forecast]]:
  """A forecast for each recipe that is not refused; of others a line says why."""
  for name in names or RECIPES:
    try:
      yield name, vit_jax.plan_for(name, RECIPES[name], tries=0, formulas=formulas)
    except ValueError as error:
      print(f'{name}: {error}', file=sys.stderr)


def sizes(models: list[str], *, formulas: bool) -> Iterator[tuple[str, Forecast]]:
  """For each size and chip the least fsdp that fits by formulas, compiled."""
  for model in models or SIZES:
    for chips in CHIPS:
      overrides, result = least(model, chips)
      if not formulas:
        result = vit_jax.plan_for('default', chips, overrides=overrides, tries=0)
      yield f'{model} on {chips.partition(":")[0]}', result


def least(model: str, chips: str) -> tuple[list[str], Forecast]:
  """The overrides of the first of fsdp=1, 2, 4, 8 that fits, the last where none does."""
  for fsdp in (1, 2, 4, 8):
    fields = {'model.name': model, 'system.fsdp': fsdp, 'batch_size': 8 * IMAGES}
    overrides = [f'{field}={value}' for field, value in fields.items()]
    result = vit_jax.plan_for('default', chips, overrides=overrides, formulas=True)
    if result.limit and result.needed <= FILLED * result.limit:
      break
  return overrides, result


def row(name: str, result: Forecast) -> str:
  """A forecast as a row of docs/scaling.md."""
  program = result.program
  limit = f' of {result.limit / 2**30:.2f}' if result.limit else ''
  cells = [
    f'`{name}`',
    f'`{result.chips}`',
    f'{result.device_images:,}',
    f'fsdp={result.mesh["fsdp"]} remat={result.remat}',
    f'{result.needed / 2**30:.2f}{limit}' + ', does not fit' * (not result.fits),
    f'{result.formulas.memory.total / 2**30:.2f}',
    'by formulas' if not program else speed(program),
  ]
  return f'| {" | ".join(cells)} |'


def speed(program: Estimates) -> str:
  """Images a second of all chips and the share of their peak, where the compiler estimates them."""
  if not program.images_per_second:
    return ''
  return f'{program.images_per_second:,.0f}, {program.share_of_peak:.1%}'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument('out', nargs='?', default='benchmarks/results/plan.json')
  parser.add_argument('--recipes', nargs='*', choices=list(RECIPES))
  parser.add_argument('--sizes', nargs='*', choices=SIZES)
  parser.add_argument('--formulas', action='store_true')
  flags = parser.parse_args()
  out = pathlib.Path(flags.out)
  rows: dict[str, Any] = files.read_object(out)['rows'] if out.exists() else {}
  results = (
    recipes(flags.recipes or [], formulas=flags.formulas)
    if flags.sizes is None
    else sizes(flags.sizes, formulas=flags.formulas)
  )
  for name, result in results:
    print(row(name, result), flush=True)
    rows[name] = {**dataclasses.asdict(result), 'provenance': bench.provenance()}
    bench.write_results(out, {'rows': rows})
  return 0


if __name__ == '__main__':
  sys.exit(main())
