"""`vit NAME`: its flags, from commands/flags.py, then `run` of commands/NAME.py.

JAX is imported by what a command calls, so that help, versions and wrong flags answer at once.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from vit_jax import __version__, commands
from vit_jax.commands import compiled, flags
from vit_jax.commands.words import command_hint
from vit_jax.text import nearest, to_stderr

COMMANDS = {
  'train': 'train a model, or resume a run',
  'predict': 'name what images show',
  'evaluate': 'measure a model on a split',
  'probe': 'measure what frozen features tell apart, of images or patches',
  'sweep': 'train runs over a grid of fields, and compare them',
  'vtab': 'fine-tune a checkpoint on the tasks of VTAB-1k',
  'report': 'write a page and a picture about a run',
  'compare': 'set several runs beside one another',
  'features': 'write what the head of a model reads',
  'search': 'find like, equal, odd and mislabelled photos by features',
  'inspect': 'draw what a model looks at',
  'serve': 'a page to try a model on, and answers over HTTP',
  'convert': "write a checkpoint in another library's names",
  'export': 'write a model for others to run: StableHLO, ONNX',
  'models': 'list the models, and published files',
  'data': 'look at data sets, save, prepare and list them',
  'bench': 'measure speed and memory',
  'plan': 'say whether a config fits chips that are not here, and how fast it is',
  'doctor': 'say what this machine has, and what is wrong with it',
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; 2 where there is none of that name."""
  words = list(sys.argv[1:] if argv is None else argv)
  if not words or words[0] in ('-h', '--help', 'help'):
    print('vit COMMAND [--help]\n')
    for name, description in COMMANDS.items():
      print(f'  {name:9} {description}')
    return 0 if words else 2
  name = words[0]
  if name == '--version':
    print(f'vit_jax {__version__}')
    return 0
  if name not in COMMANDS:
    hint = command_hint(name) or nearest(name, list(COMMANDS))
    to_stderr(f'vit: unknown command {name!r}{hint}')
    return 2
  return call(name, words[1:])


def call(name: str, words: Sequence[str]) -> int:
  """The exit code of a command with these words; `vit train` is `vit_jax.main`."""
  if name == 'train':
    return importlib.import_module('vit_jax.main').main(words)
  args = flags.parse(name, words)
  compiled.keep()
  return commands.run(name, lambda: importlib.import_module(f'vit_jax.commands.{name}').run(args))


def console() -> NoReturn:
  """`main` as a process of its own."""
  commands.console(main)


if __name__ == '__main__':
  console()
