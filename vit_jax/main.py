"""`vit train`: flags, devices, processes; then over to `train`.

python -m vit_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
  """Trains, or goes on with a run.

  Returns:
    0 when it finished, or was stopped and saved; 1 when it failed; 2 for bad input.
  """
  start = 'python -m vit_jax.main' if argv is None else 'vit train'
  argv = list(sys.argv[1:] if argv is None else argv)
  overrides = [word.removeprefix('--config.') for word in argv if word.startswith('--config.')]
  flags = parser().parse_args([word for word in argv if not word.startswith('--config.')])
  # What Orbax logs is either meant, or raised as well.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  try:
    start_processes(flags)
    from vit_jax import config, plan, train
    from vit_jax.pipeline import DataError

    asked = config.load(flags.config, overrides)
    ready = plan.make_plan(asked, flags.workdir)
    ready.claim(flags.workdir)
  except (ValueError, OSError) as error:
    return failure(error, 2)
  try:
    train.train(ready, flags.workdir, command=f'{start} {shlex.join(argv)}')
  except (FloatingPointError, OSError, DataError) as error:
    return failure(error, 1)
  except KeyboardInterrupt:
    return failure('interrupted; the same command goes on from the last checkpoint', 130)
  return 0


def failure(error: object, code: int) -> int:
  """Says what went wrong on one line."""
  print(f'vit train: {" ".join(str(error).split())}', file=sys.stderr)
  return code


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit train',
    description='Trains a model, or goes on with a run where it was.',
    epilog='--config.FIELD=VALUE replaces a field: --config.schedule.learning_rate=3e-4',
    allow_abbrev=False,
  )
  flags.add_argument('--config', required=True, help='PATH.py[:ARG], or the name of a shipped one')
  flags.add_argument('--workdir', required=True, help="the run's folder")
  hosts = flags.add_argument_group('several hosts', 'or JAX_COORDINATOR_ADDRESS and its companions')
  hosts.add_argument('--distributed', action='store_true', help='find the others: TPU pod, SLURM')
  hosts.add_argument('--coordinator_address', help='HOST:PORT of process 0')
  hosts.add_argument('--num_processes', type=int)
  hosts.add_argument('--process_id', type=int)
  return flags


def start_processes(flags: argparse.Namespace) -> None:
  """Joins the other processes of a run on several hosts, where flags or environment name them.

  Raises:
    ValueError: if they are named by halves.
  """
  named = {
    name: os.environ.get(f'JAX_{name.upper()}') if flag is None else flag
    for name, flag in vars(flags).items()
    if name in ('coordinator_address', 'num_processes', 'process_id')
  }
  given = {name: value for name, value in named.items() if value is not None}
  if flags.distributed and not given:
    initialize(None, None, None)
  elif given:
    if len(given) < 3:
      missing = ', '.join(name for name in named if name not in given)
      raise ValueError(f'several hosts need {missing} too; there is {given}')
    try:
      count, index = int(given['num_processes']), int(given['process_id'])
    except ValueError:
      raise ValueError(f'num_processes and process_id are whole numbers, got {given}') from None
    if not 0 <= index < count:
      raise ValueError(f'process_id is {index}, must lie in 0..{count - 1}')
    initialize(given['coordinator_address'], count, index)


def initialize(address: str | None, count: int | None, index: int | None) -> None:
  import jax

  try:
    jax.distributed.initialize(address, count, index)
  except RuntimeError as error:
    raise ValueError(f'cannot join the other processes: {error}') from error


if __name__ == '__main__':
  sys.exit(main())
