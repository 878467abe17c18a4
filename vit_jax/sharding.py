"""One mesh (data, fsdp, tensor), a table of rules for parameters, and placing trees and batches."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import models
from vit_jax.models import Tree
from vit_jax.models.layers import AXES, IMAGE_AXES
from vit_jax.text import quantity

T = TypeVar('T')
BATCH = P(IMAGE_AXES)

# The first pattern found in a parameter's name says how its axes are split; 'tensor' splits heads,
# MLP channels and classes (arXiv 1909.08053), 'fsdp' the width. Others are whole on every device.
RULES: tuple[tuple[str, P], ...] = (
  (r'blocks/attention/(query|key|value)/kernel$', P(None, 'fsdp', 'tensor', None)),  # L, D, A, D/A
  (r'blocks/attention/(query|key|value)/bias$', P(None, 'tensor', None)),
  (r'blocks/attention/relative/(table|down/kernel)$', P(None, None, 'tensor')),  # L, rows or M, A
  (r'blocks/attention/relative/down/bias$', P(None, 'tensor')),
  (r'blocks/attention/out/kernel$', P(None, 'tensor', None, 'fsdp')),  # L, A, D/A, D
  (r'blocks/(mlp|channels)/(up|gate)/kernel$', P(None, 'fsdp', 'tensor')),  # L, D, M
  (r'blocks/(mlp|channels|tokens)/(up|gate)/bias$', P(None, 'tensor')),
  (r'blocks/(mlp|channels)/down/kernel$', P(None, 'tensor', 'fsdp')),  # L, M, D
  (r'blocks/tokens/up/kernel$', P(None, None, 'tensor')),  # L, T, S
  (r'blocks/tokens/down/kernel$', P(None, 'tensor', None)),  # L, S, T
  (r'pool/attention/(query|key|value)/kernel$', P('fsdp', 'tensor', None)),  # D, A, D/A
  (r'pool/attention/out/kernel$', P('tensor', None, 'fsdp')),  # A, D/A, D
  (r'pool/mlp/up/kernel$', P('fsdp', 'tensor')),  # D, M
  (r'pool/mlp/down/kernel$', P('tensor', 'fsdp')),  # M, D
  (r'embed/kernel$', P(None, None, None, 'fsdp')),  # P, P, C, D
  (r'/conv(\d|_proj)?/kernel$', P(None, None, None, 'fsdp')),  # rows, columns, C, features
  (r'(pre_logits|projection)/kernel$', P('fsdp', None)),
  (r'head(_dist)?/kernel$', P('fsdp', 'tensor')),  # D, K
  (r'head(_dist)?/bias$', P('tensor')),
)


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Devices, or all there are, as (data, fsdp, tensor); one -1 takes what the others leave."""
  shape, count = [data, fsdp, tensor], len(devices or jax.devices())
  fixed = int(np.prod([size for size in shape if size != -1]))
  if shape.count(-1) == 1 and fixed > 0 and count % fixed == 0:
    shape[shape.index(-1)] = count // fixed
  if min(shape) < 1 or int(np.prod(shape)) != count:
    sizes = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, (data, fsdp, tensor)))
    raise ValueError(f'mesh ({sizes}) does not fit {quantity(count, "device")}')
  return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def local_mesh() -> Mesh:
  """The devices of this process, for what it computes alone."""
  return make_mesh(devices=jax.local_devices())


def tree_sharding(tree: Tree, mesh: Mesh) -> Tree:
  """A NamedSharding for every leaf of a tree of arrays or shapes, by RULES.

  An optimiser's moments carry their parameter's name at the end of their own and follow it. An axis
  that does not divide, or an array of another rank (a factored moment), stays whole.
  """
  return models.map_named(
    lambda name, leaf: NamedSharding(mesh, fitted(rule(name), leaf.shape, mesh)), tree
  )


def rule(name: str) -> P:
  """The split that RULES ask for a parameter of that name."""
  return next((spec for pattern, spec in RULES if re.search(pattern, name)), P())


def fitted(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
  """The spec without the axes that do not divide the shape."""
  if len(spec) != len(shape):
    return P()
  axes = zip(spec, shape)
  return P(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in axes))


def unsplit(params: Tree, mesh: Mesh) -> list[str]:
  """The parameters with an axis that RULES would split and that does not divide."""

  def stays_whole(name: str, leaf: jax.Array) -> bool:
    spec = rule(name)
    pairs = zip(spec, fitted(spec, leaf.shape, mesh))
    return any(axis and mesh.shape[axis] > 1 and part is None for axis, part in pairs)

  return [name for name, leaf in models.flat(params).items() if stays_whole(name, leaf)]


def place(tree: Tree, mesh: Mesh) -> Tree:
  """A tree of host arrays on the mesh, by RULES."""
  return jax.device_put(tree, tree_sharding(tree, mesh))


def one_device() -> Mesh:
  """The mesh of a program that runs on the process's first device alone."""
  return make_mesh(1, 1, 1, devices=jax.local_devices()[:1])


def for_mesh(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
  """The function, traced as part of a program for that mesh, whose devices choose its kernels."""

  @functools.wraps(function)
  def traced(*args: object) -> T:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return traced


def batch_shard(batch_size: int, mesh: Mesh) -> tuple[int, int]:
  """Which of how many equal slices of rows of a global batch this process feeds: (index, count).

  Processes whose devices split only parameters between them feed the same rows.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % parts:
    raise ValueError(
      f'a batch of {batch_size} does not divide by the {parts} devices that share it '
      f'(data={mesh.shape["data"]} x fsdp={mesh.shape["fsdp"]})'
    )
  rows_of: dict[int, set[tuple[int, int]]] = {}  # of each process
  split: Any = NamedSharding(mesh, BATCH).devices_indices_map((batch_size,))  # JAX's has no types
  for device, (rows,) in split.items():
    rows_of.setdefault(device.process_index, set()).add(rows.indices(batch_size)[:2])
  shards = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
  if sum(map(len, shards)) != parts or len({len(rows) for rows in shards}) != 1:
    raise ValueError(f'the hosts do not share the rows of a batch evenly: {shards}')
  return shards.index(tuple(sorted(rows_of[jax.process_index()]))), len(shards)


def put(batch: dict[str, np.ndarray], mesh: Mesh, *, shards: int = 1) -> dict[str, jax.Array]:
  """This process's rows, one of `shards` slices of a global batch split over data and fsdp."""
  sharding = NamedSharding(mesh, BATCH)

  def global_rows(rows: np.ndarray) -> jax.Array:
    shape = (rows.shape[0] * shards, *rows.shape[1:])
    return jax.make_array_from_process_local_data(sharding, rows, shape)

  with jax.transfer_guard_host_to_device('allow'):  # the transfer that is meant
    return jax.tree.map(global_rows, batch)


def prefetch(
  batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, *, depth: int = 2, shards: int = 1
) -> Iterator[dict[str, jax.Array]]:
  """Batches on the mesh, `depth` of them on their way while the device works."""
  ahead: list[dict[str, jax.Array]] = []
  for batch in batches:
    ahead.append(put(batch, mesh, shards=shards))
    if len(ahead) > depth:
      yield ahead.pop(0)
  yield from ahead


def gathered(tree: Tree) -> Tree:
  """A tree of arrays on the mesh, whole and on the host of every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
