"""`vit COMMAND`: a dispatch table. Each command's module is imported when it is called."""

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

COMMANDS = {
  'train': ('vit_jax.main', 'train a model, or go on with a run'),
  'predict': ('vit_jax.commands.predict', 'name what images show'),
  'evaluate': ('vit_jax.commands.evaluate', 'measure a model on a split'),
  'vtab': ('vit_jax.commands.vtab', 'fine-tune a checkpoint on the tasks of VTAB-1k'),
  'report': ('vit_jax.commands.report', 'write a page and a picture about a run'),
  'features': ('vit_jax.commands.features', 'write what the head of a model reads'),
  'inspect': ('vit_jax.commands.inspect', 'draw what a model looks at'),
  'convert': ('vit_jax.commands.convert', "write a checkpoint in another library's names"),
  'export': ('vit_jax.commands.export', 'write a model for others to run: StableHLO, ONNX'),
  'models': ('vit_jax.commands.models', 'list the models, and published files'),
  'data': ('vit_jax.commands.data', 'look at data sets, save, prepare and list them'),
  'bench': ('vit_jax.commands.bench', 'measure speed and memory'),
  'doctor': ('vit_jax.commands.doctor', 'say what this machine has, and what is wrong with it'),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; 2 where there is none of that name."""
  words = list(sys.argv[1:] if argv is None else argv)
  if not words or words[0] in ('-h', '--help', 'help'):
    print('vit COMMAND [--help]\n')
    for name, (_, what) in COMMANDS.items():
      print(f'  {name:9} {what}')
    return 0 if words else 2
  command, *rest = words
  if command == '--version':
    from vit_jax import __version__

    print(f'vit_jax {__version__}')
    return 0
  if command not in COMMANDS:
    from vit_jax.text import nearest

    print(f'vit: unknown command {command!r}{nearest(command, list(COMMANDS))}', file=sys.stderr)
    return 2
  try:
    code = importlib.import_module(COMMANDS[command][0]).main(rest)
    sys.stdout.flush()
    return code
  except KeyboardInterrupt:
    print(f'vit {command}: interrupted', file=sys.stderr)
    return 130
  except BrokenPipeError:  # the reader, such as `head`, has had enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def console() -> NoReturn:
  """`main` as a process of its own: it ends with the code, and SIGTERM leaves nothing half done."""
  for number in (signal.SIGINT, signal.SIGTERM):  # training has handlers of its own
    signal.signal(number, stop)
  sys.unraisablehook = dropped
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')  # a name that the terminal cannot show
  try:
    code: Any = main()
  except SystemExit as ended:
    code = ended.code
  if code in (130, 143):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # XLA may crash at shutdown if a compilation was cut off
  sys.exit(code)


def stop(number: int, frame: Any) -> NoReturn:
  """Unwinds the command, so that what is unfinished is removed."""
  raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def dropped(found: Any) -> None:
  """Stops again where Python dropped the exception of `stop`, as it does in a callback."""
  if not isinstance(found.exc_value, KeyboardInterrupt | SystemExit):
    return sys.__unraisablehook__(found)
  number = signal.SIGINT if isinstance(found.exc_value, KeyboardInterrupt) else signal.SIGTERM
  signal.signal(signal.SIGALRM, lambda _, frame: stop(number, frame))
  signal.setitimer(signal.ITIMER_REAL, 0.01)
  return None


if __name__ == '__main__':
  console()
