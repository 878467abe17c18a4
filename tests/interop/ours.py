"""Our side: load, apply, compare, convert.

N images, T tokens, D width, L layers, K classes.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

import vit_jax
import vit_jax.convert
from tests import conftest
from vit_jax import bundle

# Logits and activations are near 1; float32 there resolves 1.2e-7, and matmuls of a few hundred
# terms, which the two sides add up in different orders, leave some tens of these.
TOLERANCE = 5e-6


def pictures(size: tuple[int, int], count: int = 3) -> np.ndarray:
  return conftest.pictures(count, size)


@functools.partial(jax.jit, static_argnames='model')
def apply(model: Any, params: Any, images: np.ndarray) -> Any:
  with jax.default_matmul_precision('highest'):
    logits, out = model.apply({'params': params}, images)
  return out | {'logits': logits}


def trace(run: Any, images: np.ndarray) -> dict[str, np.ndarray]:
  """Our logits and intermediates."""
  return jax.device_get(apply(run.model, run.params, images))


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  if ours.shape != theirs.shape:
    raise AssertionError(f'shapes {ours.shape} and {theirs.shape}')
  return float(np.abs(ours - theirs).max())


def bisected(ours: dict[str, Any], theirs: dict[str, np.ndarray]) -> dict[str, float]:
  """The largest difference at every place that both know, in the order of computation.

  That of activations is told in units of their largest value, as float32 rounds them; it is the
  logits' own, as they are what is promised.
  """
  places = {}

  def compare(place: str, distance: np.ndarray, wanted: np.ndarray, unit: float) -> None:
    places[place] = difference(distance, wanted) / unit

  if 'embedded' in theirs:
    embedded = ours.get('embedded')
    if embedded is None:  # a Mixer's patches
      embedded = ours['patches'].reshape(theirs['embedded'].shape)
    compare('embedded', embedded, theirs['embedded'], size(theirs['embedded']))
  for layer, block in enumerate(theirs.get('blocks', ())):
    compare(f'block {layer}', ours['blocks'][layer], block, size(block))
  for name in ('head', 'head_dist', 'logits'):
    if name in theirs:
      compare(name, ours[name], theirs[name], 1)
  return places


def size(values: np.ndarray) -> float:
  return max(1, float(np.abs(values).max()))


def check_bisected(ours: Any, theirs: Any, tolerance: float = TOLERANCE) -> None:
  """Raises AssertionError with the first place that differs, and the difference everywhere."""
  places = bisected(ours, theirs)
  for place, distance in places.items():
    summary = ', '.join(f'{name} {value:.1e}' for name, value in places.items())
    assert distance <= tolerance, (
      f'differs from {place} on, by {distance:.2e} > {tolerance:.0e}: {summary}'
    )


def check_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
  """Raises AssertionError with all names that only one side has, and all unequal arrays."""
  wrong = [f'{name} is missing' for name in theirs if name not in ours]
  wrong += [f'{name} is new' for name in ours if name not in theirs]
  for name in theirs.keys() & ours.keys():
    a, b = ours[name], theirs[name]
    if a.shape != b.shape or a.dtype != b.dtype:
      wrong.append(f'{name} is {a.dtype} {a.shape}, was {b.dtype} {b.shape}')
    elif a.tobytes() != b.tobytes():
      wrong.append(f'{name} differs by {np.abs(a - b).max():.1e}')
  assert not wrong, '; '.join(sorted(wrong))


def same_params(a: Any, b: Any) -> None:
  """Raises AssertionError unless two parameter trees are bit-equal."""
  flat_a, flat_b = conftest.flat(a), conftest.flat(b)
  check_equal({k: np.asarray(v) for k, v in flat_a.items()}, jax.device_get(flat_b))


def convert(source: pathlib.Path | Any, target: pathlib.Path, to: str) -> pathlib.Path:
  """A loaded run, or a file, in another dialect; gives the path to read it from."""
  run = vit_jax.load(source) if isinstance(source, pathlib.Path) else source
  if to == 'bundle':
    bundle.write(target, run)
  else:
    vit_jax.convert.write(target, run, to=to)
  return target


def replaced(run: Any, model: Any, params: Any) -> Any:
  """The run with another model, and parameters."""
  return dataclasses.replace(run, model=model, params=params)
