"""What a name in a config stands for: one of ours, or 'package.module:name' of somebody else's."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, TypeVar, cast

from vit_jax.text import error_line, nearest

T = TypeVar('T')
PATH = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*')
MARK = 'vit_jax_extension'


def extension(function: T) -> T:
  """Marks a transform, data set or model that files may name: `@vit_jax.extension` above it.

  A model on disk says what it is and how its images are read, and a run's folder where they are.
  What these name is called only if its author has marked it so, as otherwise a file could call
  anything that is installed. Its module is imported first: open no stranger's file in a folder with
  a stranger's modules.
  """
  setattr(function, MARK, True)
  return function


def is_path(name: object) -> TypeGuard[str]:
  """Whether a name is of the form 'package.module:name'."""
  return isinstance(name, str) and PATH.fullmatch(name) is not None


def named(name: str, table: Mapping[str, T], kind: str) -> T:
  """The entry of a table, or what 'package.module:name' imports; `kind` is 'task', 'loss' ..."""
  if name in table:
    return table[name]
  if not is_path(name):
    raise ValueError(f"unknown {kind} {name!r}{nearest(name, list(table))} (or 'module:name')")
  return cast(T, imported(name, kind))


def imported(name: str, kind: str, *, marked: bool = False) -> Callable[..., Any]:
  """What 'package.module:name' stands for; modules are also looked for in the working folder.

  `kind` is for messages; `marked` refuses what is not marked by `extension`.
  """
  module, _, attribute = name.partition(':')
  folder = os.getcwd()
  if folder not in sys.path:  # last: it hides nothing; processes that are started get it too
    sys.path.append(folder)
  try:
    value = getattr(importlib.import_module(module), attribute)
  except ModuleNotFoundError as error:
    raise ValueError(f'{kind} {name!r}: there is no module {error.name!r} here') from None
  except AttributeError:
    raise ValueError(f'{kind} {name!r}: {module} has no {attribute!r}') from None
  except (Exception, SystemExit) as error:  # whatever the module does when it is imported
    raise ValueError(f'{kind} {name!r}: {error_line(error)}') from error
  if not callable(value):
    raise ValueError(f'{kind} {name!r} is {type(value).__name__}, not a function or class')
  if marked and getattr(value, MARK, False) is not True:
    raise ValueError(
      f'{kind} {name!r} is not marked by @vit_jax.extension, which files may name alone'
    )
  return value
