"""`vit train`: flags, devices, processes; then over to `train`.

python -m vit_jax.main DATA [--from MODEL] [--workdir DIR] [--config.FIELD=VALUE ...]
python -m vit_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]
python -m vit_jax.main --workdir=RUN [--extend DURATION] [--change FIELD=VALUE ...]
"""

import argparse
import contextlib
import logging
import os
import pathlib
import shlex
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence

from vit_jax import commands
from vit_jax.commands import BAD_INPUT, FAILED, INPUT_ERRORS, NOT_FINITE, compiled, ending, flags
from vit_jax.guards import failing, processes, stopping, streams
from vit_jax.text import to_stderr

DISPLAYS = (
  'DISPLAY',
  'WAYLAND_DISPLAY',
  'BROWSER',
)  # variables of which one says that there is one


def main(argv: Sequence[str] | None = None) -> int:
  """Trains, or resumes a run.

  Returns:
    0 when it finished, or was stopped and saved; 1 when it failed; 2 for bad input; 4 for numbers
    that are not finite. `commands` has them all.
  """
  start = 'python -m vit_jax.main' if argv is None else 'vit train'
  words = list(sys.argv[1:] if argv is None else argv)
  args = flags.parse('train', words)
  compiled.keep()
  # What Orbax logs is either meant, or raised as well.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  command = f'{start} {shlex.join(words)}'
  with stopping.phase('run'), streams.lossy_stdout():
    return commands.run(
      'train',
      lambda: run(args, command=command),
      errors=(),
      folder=args.workdir or '',
    )


@processes.together()
def run(args: argparse.Namespace, *, command: str) -> int:
  """Plans a run and trains it; JAX is imported, and finds its devices, only now."""
  with contextlib.ExitStack() as stack:
    with ending(BAD_INPUT, *INPUT_ERRORS):
      with stopping.phase('import'):
        processes.start_processes(args)
        from vit_jax import plan, train
        from vit_jax.commands import legs, short
        from vit_jax.pipeline import DataError

      with stopping.phase('data'):
        line = short.expand(args)
      owner = stack.enter_context(train.owned(line.workdir))
      with stopping.phase('data'):
        if args.extend or args.change:
          ready = legs.make_leg(line.config(), pathlib.Path(line.workdir), args, command)
        else:
          ready = plan.make_plan(line.config(), line.workdir)
        ready.claim(line.workdir)
    if args.open and not args.process_id:
      open_report(pathlib.Path(line.workdir))
    with (
      ending(FAILED, OSError, DataError, train.Collapsed),
      ending(NOT_FINITE, FloatingPointError),
    ):
      if train.train(ready, line.workdir, command=command, owner=owner):
        failing.forget(line.workdir)
  return 0


def open_report(folder: pathlib.Path) -> None:
  """Opens the page of a run in a browser, as soon as it is current; without a display, says where.

  That of an earlier start says that the run has stopped, and is not read again.
  """
  from vit_jax.views import report

  page = folder / report.PAGE
  has_display = sys.platform in ('darwin', 'win32') or any(map(os.environ.get, DISPLAYS))
  if not has_display:
    to_stderr(f'--open: there is no display here; {page} will be there after the first evaluation')
    return

  def wait() -> None:
    while not report.is_current(folder):
      time.sleep(1)
    webbrowser.open(page.resolve().as_uri())

  threading.Thread(target=wait, daemon=True).start()  # which ends with the run


if __name__ == '__main__':
  commands.console(main)
