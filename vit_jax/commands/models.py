"""`vit models`: what models there are, and which published files."""

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax import models, text
from vit_jax.commands import flags
from vit_jax.convert import published
from vit_jax.files import as_json


def run(args: argparse.Namespace) -> int:
  """A table of all variants, or of a model's files in AugReg's index."""
  check_flags(args)
  if not args.augreg:
    text.to_stdout(*variants(args.name, args.image_size))
    return 0
  short, matches = published_files(args)
  best = matches[: args.top]
  if args.format == 'json':
    print(as_json({'model': short, 'adapt': args.adapt, 'count': len(matches), 'files': best}))
  else:
    total = f'{len(best)} of {len(matches)} files of {short} in {args.index}'
    text.to_stdout(*published.table(best), total)
  return 0


def variants(names: Sequence[str], size: int) -> Iterator[str]:
  """A line for each variant with its sizes, parameters and cost."""
  if size < max(models.PATCHES):
    raise ValueError(f'--image-size must be at least {max(models.PATCHES)}, got {size}')
  chosen = [models.canonical(name) for name in names] or list(models.VARIANTS)
  for name in names:
    models.check_size(models.build(name), (size, size))
  columns = {'width': 'width', 'depth': 'depth', 'heads': 'heads', 'mlp_dim': 'MLP'}
  rows = [('model', *columns.values(), 'parameters', 'GFLOP')]
  for name in chosen:
    model = models.build(name)
    fits = size - size % model.patch[0]
    parameters, gflop = models.count(model, fits, fits), model.flops(fits, fits) / 1e9
    sizes = (getattr(model, field, '-') for field in columns)
    rows.append((name, *sizes, f'{parameters:,}', f'{gflop:.2f}'))
  yield from text.columns(rows)
  yield f'1,000 classes; GFLOP: one forward pass at {size} pixels, cut to whole patches'


def index_file(name: str) -> pathlib.Path:
  """Where an index is on this machine."""
  if '://' in name:
    return published.local(name)
  if not (path := pathlib.Path(name).expanduser()).is_file():
    raise FileNotFoundError(f'--index {name}: there is no such file')
  return path


def published_files(args: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
  """A model's short name and what AugReg's index has of it, best first."""
  if args.top < 1:
    raise ValueError(f'--top must be at least 1, got {args.top}')
  short = published.short_name(args.augreg)
  try:
    path = index_file(args.index)
  except FileNotFoundError as error:
    file = published.RECOMMENDED.get(short)
    also = f'; without an index, the recommended file is {file.file}' if file else ''
    raise FileNotFoundError(f'{error}{also}') from None
  return short, published.matches(published.read_index(path), args.augreg, args.adapt)


def check_flags(args: argparse.Namespace) -> None:
  """Raises ValueError for a flag of the published files without the model that they are of."""
  defaults = flags.parse('models', [])
  for name in ('adapt', 'index', 'top', 'format'):
    if not args.augreg and getattr(args, name) != getattr(defaults, name):
      raise ValueError(f'--{name} is of published files: --augreg MODEL says of which model')
