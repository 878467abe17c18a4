"""`vit report`: the page and the picture of a run."""

import argparse
import pathlib

import jax

from vit_jax.commands import BAD_INPUT, ending, warn
from vit_jax.views.report import PAGE, PICTURE, measured, write


def run(args: argparse.Namespace) -> int:
  """0; 3 if the report lacks something."""
  with ending(BAD_INPUT, jax.errors.JaxRuntimeError):
    facts = measured(
      pathlib.Path(args.run), on=args.on, split=args.split, batch_size=args.batch_size
    )
    write(facts)
  for line in facts.left_out:
    warn('report', line)
  print(facts.folder / PAGE, facts.folder / PICTURE, sep='\n')
  return 3 if facts.left_out else 0
