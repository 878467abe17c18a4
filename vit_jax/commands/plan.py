"""`vit plan`: whether a config fits chips that are not here, and how fast it is there."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from vit_jax import files
from vit_jax.commands import FAILED, INCOMPLETE, ending
from vit_jax.compilers import search
from vit_jax.compilers.forecast import Estimates, Forecast, Formulas, Memory
from vit_jax.text import columns, number, percent, quantity, si, to_stdout

PARTS = ('parameters', 'optimizer', 'average', 'fixed', 'gradients', 'batch', 'activations')


def run(args: argparse.Namespace) -> int:
  """Prints what the compiler says, or formulas where it is not installed; 3 if it does not fit."""
  with ending(FAILED, RuntimeError):
    result = search.plan_for(
      args.config,
      args.chips,
      overrides=args.overrides,
      batch_size=args.batch_size,
      classes=args.classes,
      tries=args.tries,
      formulas=args.formulas,
    )
  if args.json:
    print(files.as_json(dataclasses.asdict(result), indent=1))
  else:
    to_stdout(*lines(result))
  return 0 if result.fits else INCOMPLETE


def lines(result: Forecast) -> Iterator[str]:
  """A forecast for people."""
  mesh = ' '.join(f'{axis}={size}' for axis, size in result.mesh.items())
  head = quantity(result.classes, 'class') if result.classes else 'an encoder'
  yield (
    f'{result.model}, {head}, {si(result.parameters)} parameters, '
    f'on {result.chips}: {quantity(result.devices, "device")}, {mesh}'
  )
  yield (
    f'{quantity(result.batch_size, "image")} an update, {result.device_images:,} a device, '
    f'accumulate={result.accumulate} remat={result.remat}'
  )
  yield from result.notes
  if result.program is None:
    yield result.missing
    yield 'by formulas alone:'
  else:
    yield f'by {result.compiler}; estimates, of chips that were not asked:'
  yield f'  memory   {verdict(result)}'
  yield f'           by formulas {parts(result.formulas.memory)}'
  if result.program is None:
    yield from compute(result.formulas)
  elif result.fits:
    yield from estimates(result.program, result.formulas)
  else:
    yield from alternatives(result.tried)


def verdict(result: Forecast) -> str:
  """Whether it fits, and by how much."""
  total, limit = result.needed, result.limit
  if limit is None:
    return f'{size(total)} a device'
  margin = f'{size(limit - total)} free' if result.fits else f'{size(total - limit)} too much'
  word = 'fits' if result.fits else 'DOES NOT FIT'
  if result.fits and result.program is None and result.formulas.memory.activations is None:
    return f'not known: {size(total)} of {size(limit)} a device, and activations, not counted here'
  return f'{word}: {size(total)} of {size(limit)} a device, {margin}'


def parts(memory: Memory) -> str:
  """'parameters 0.33 GiB, optimizer 0.65 GiB'."""
  return ', '.join(f'{part} {size(count)}' for part in PARTS if (count := getattr(memory, part)))


def size(count: float) -> str:
  """Bytes in GiB, or MiB where they are few."""
  return f'{count / 2**30:.2f} GiB' if count >= 2**27 else f'{count / 2**20:.1f} MiB'


def compute(formulas: Formulas) -> Iterator[str]:
  """Time and bytes by arithmetic."""
  at_peak = f', {formulas.seconds * 1000:.1f} ms at peak' if formulas.seconds else ''
  arithmetic = f'{si(formulas.flops)}FLOP a device{at_peak}'
  yield f'  compute  {arithmetic if formulas.flops else "not known for this task"}'
  yield f'  network  {si(formulas.sent)}B sent by each device'


def estimates(program: Estimates, formulas: Formulas) -> Iterator[str]:
  """What the compiler says of a program that fits, beside its memory."""
  if program.seconds:
    yield (
      f'  time     {program.seconds * 1000:.1f} ms a step, '
      f'{program.images_per_second:,.0f} images/s, {percent(program.share_of_peak, 1)} of peak'
    )
  else:
    yield '  time     not estimated by this compiler'
  if program.kernels:
    yield f'           {kernel_time(program)}'
  sent = program.sent or 0.0
  ratio = f', {sent / formulas.sent:.2f} of the ideal' if formulas.sent else ''
  rows = sorted(program.collectives.items(), key=lambda row: -row[1][1])
  operations = ', '.join(f'{count} {name}' for name, (count, _) in rows)
  yield f'  network  {si(sent)}B sent by each device{ratio}' + f': {operations}' * bool(rows)
  yield f'  copies   {program.copies:,} of arrays as large as a parameter, {si(program.copied)}B'
  earlier = ', at an earlier time' * program.cached
  yield f'  compiled in {program.compile_seconds:.0f} s{earlier}'


def kernel_time(program: Estimates) -> str:
  """The part of the time that is in Pallas kernels, of which a compiler's own estimate has none."""
  calls = f'{quantity(program.kernels, "call")} of Pallas kernels'
  if program.kernel_cycles is None or not program.cycles:
    return f'without {calls}: not counted'
  share = percent(program.kernel_cycles / program.cycles, 1)
  return f'{share} of it in {calls}, by their instructions, as if none waited'


def alternatives(tried: Sequence[Forecast]) -> Iterator[str]:
  """What was compiled instead, a row each."""
  rows: list[tuple[object, ...]] = [('tried instead', 'memory', 'images/s')]
  for result in tried:
    change = ' '.join(f'--config.{field}={value}' for field, value in result.change.items())
    rate = result.program.images_per_second if result.program else None
    rows.append((change, verdict(result), number(rate, ',.0f')))
  yield from columns(rows)
