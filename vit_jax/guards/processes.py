"""Several processes of one run: how they find each other, agree and wait for each other."""

import argparse
import os

import numpy as np

from vit_jax.guards import stopping


def start_processes(args: argparse.Namespace) -> None:
  """Joins the other processes of a run on several hosts, where flags or environment name them."""
  flags = {
    name: getattr(args, name) for name in ('coordinator_address', 'num_processes', 'process_id')
  }
  values = {
    name: os.environ.get(f'JAX_{name.upper()}') if flag is None else flag
    for name, flag in flags.items()
  }
  named = {name: value for name, value in values.items() if value is not None}
  if args.distributed and not named:
    initialize(None, None, None)
  elif named:
    if missing := ', '.join(name for name in values if name not in named):
      raise ValueError(f'several hosts need {missing} too; there is {named}')
    try:
      count, index = int(named['num_processes']), int(named['process_id'])
    except ValueError:
      raise ValueError(f'num_processes and process_id are whole numbers, got {named}') from None
    if not 0 <= index < count:
      raise ValueError(f'process_id is {index}, must lie in 0..{count - 1}')
    initialize(named['coordinator_address'], count, index)


def initialize(address: str | None, count: int | None, index: int | None) -> None:
  import jax

  try:
    jax.distributed.initialize(address, count, index)
  except RuntimeError as error:
    raise ValueError(f'cannot join the other processes: {error}') from error
  stopping.join()


def agreed(value: object) -> bool:
  """Whether the first process's value is true, for all processes alike."""
  import jax

  if jax.process_count() == 1:
    return bool(value)
  from jax.experimental import multihost_utils

  return bool(multihost_utils.broadcast_one_to_all(np.asarray(bool(value))))


def sync(name: str) -> None:
  """Waits for all processes."""
  import jax

  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
