"""Published checkpoints in and out: every dialect is a table, read and written by one engine.

`read` gives a `Checkpoint` in our names; `write` writes one in another's.
"""

from vit_jax.convert.engine import Checkpoint
from vit_jax.convert.families import read
from vit_jax.convert.writing import write

__all__ = ['Checkpoint', 'read', 'write']
