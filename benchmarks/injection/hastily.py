"""Runs with shorter waits, so that a fault that takes minutes to be given up takes seconds.

  python -m injection.hastily MODULE.NAME=SECONDS ... train ...

is `vit train ...`, where modules of `vit_jax.guards` have other constants.
"""

import importlib
import sys


def main() -> None:
  words = sys.argv[1:]
  while '=' in words[0]:
    name, _, seconds = words.pop(0).partition('=')
    module, _, constant = name.partition('.')
    guard = importlib.import_module(f'vit_jax.guards.{module}')
    getattr(guard, constant)  # which there must be
    setattr(guard, constant, float(seconds))
  from vit_jax.__main__ import console

  sys.argv[1:] = words
  console()


if __name__ == '__main__':
  main()
