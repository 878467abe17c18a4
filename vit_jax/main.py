"""`vit train`: flags, devices, processes; then over to `train`.

python -m vit_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
  """Trains, or goes on with a run.

  Returns:
    0 when it finished, or was stopped and saved; 1 when it failed; 2 for bad input.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  overrides = [word.removeprefix('--config.') for word in argv if word.startswith('--config.')]
  flags = parser().parse_args([word for word in argv if not word.startswith('--config.')])
  start_processes(flags)
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax warns of what is meant
  from vit_jax import config, plan, train

  try:
    asked = config.load(flags.config, overrides)
    ready = plan.make_plan(asked)
    plan.claim(flags.workdir, asked)
  except (ValueError, OSError) as error:
    return failure(error, 2)
  try:
    train.train(ready, flags.workdir)
  except (FloatingPointError, OSError) as error:
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
  """Joins the other processes of a run on several hosts, where flags or environment name them."""
  import jax

  environment = 'JAX_COORDINATOR_ADDRESS' in os.environ
  if flags.distributed or flags.coordinator_address or environment:

    def number(flag: int | None, variable: str) -> int | None:
      return int(os.environ[variable]) if flag is None and variable in os.environ else flag

    jax.distributed.initialize(
      flags.coordinator_address,
      number(flags.num_processes, 'JAX_NUM_PROCESSES'),
      number(flags.process_id, 'JAX_PROCESS_ID'),
    )


if __name__ == '__main__':
  sys.exit(main())
