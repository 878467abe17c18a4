"""`vit train`: flags, devices, processes; then over to `train`.

python -m vit_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]
"""

import argparse
import contextlib
import logging
import shlex
import sys
from collections.abc import Sequence

from vit_jax import commands
from vit_jax.commands import BAD_INPUT, FAILED, INPUT_ERRORS, NOT_FINITE, compiled, ending
from vit_jax.commands.flags import Parser, overrides
from vit_jax.guards import failing, processes, stopping, streams


def main(argv: Sequence[str] | None = None) -> int:
  """Trains, or resumes a run.

  Returns:
    0 when it finished, or was stopped and saved; 1 when it failed; 2 for bad input; 4 for numbers
    that are not finite. `commands` has them all.
  """
  start = 'python -m vit_jax.main' if argv is None else 'vit train'
  words = list(sys.argv[1:] if argv is None else argv)
  fields, other_words = overrides(words)
  args = parser().parse_args(other_words)
  compiled.keep()
  # What Orbax logs is either meant, or raised as well.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  command = f'{start} {shlex.join(words)}'
  with stopping.phase('run'), streams.lossy_stdout():
    return commands.run(
      'train',
      lambda: run(args, fields, command=command),
      errors=(),
      folder=args.workdir,
    )


@processes.together()
def run(args: argparse.Namespace, fields: list[str], *, command: str) -> int:
  """Plans a run and trains it; JAX is imported, and finds its devices, only now."""
  with contextlib.ExitStack() as stack:
    with ending(BAD_INPUT, *INPUT_ERRORS):
      with stopping.phase('import'):
        processes.start_processes(args)
        from vit_jax import config, plan, train
        from vit_jax.pipeline import DataError

      owner = stack.enter_context(train.owned(args.workdir))
      with stopping.phase('data'):
        ready = plan.make_plan(config.load(args.config, fields), args.workdir)
        ready.claim(args.workdir)
    with ending(FAILED, OSError, DataError), ending(NOT_FINITE, FloatingPointError):
      if train.train(ready, args.workdir, command=command, owner=owner):
        failing.forget(args.workdir)
  return 0


def parser() -> argparse.ArgumentParser:
  flags = Parser(
    prog='vit train',
    description='Trains a model, or resumes a run where it was.',
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
  for name, (seconds, meaning) in processes.TIMEOUTS.items():
    hosts.add_argument(
      f'--{name}_timeout',
      type=int,
      default=seconds,
      metavar='SECONDS',
      help=f'{meaning}; {seconds}',
    )
  return flags


if __name__ == '__main__':
  commands.console(main)
