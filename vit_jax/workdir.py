"""Where results come from: the source of vit_jax, the packages, the machine, the command."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from vit_jax import files

NAME = 'environment.json'
ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = (
  'vit_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'tensorflow-datasets',
  'ml_collections',
  'numpy',
  'safetensors',
  'Pillow',
  'opencv-python-headless',
  'simplejpeg',
  'rich',
  'tensorboardX',
  'scikit-learn',
  'matplotlib',
)


def record(folder: str | os.PathLike[str], command: str) -> None:
  """Writes `NAME` into a run's folder: with what this start of it is carried out.

  Args:
    folder: of the run.
    command: the line that started it; '' where there was none.

  Raises:
    OSError: if it cannot be written.
  """

  with files.replacing(pathlib.Path(folder) / NAME) as file:
    file.write(json.dumps(environment(command), indent=1).encode())


def environment(command: str) -> dict[str, Any]:
  """Command, time, versions and devices of this process; 'commit' where there is one."""
  import jax

  devices = jax.devices()
  versions = {name: installed(name) for name in PACKAGES}
  return {
    'command': command,
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    **{name: value for name, value in source().items() if value is not None},
    'python': platform.python_version(),
    'platform': platform.platform(),
    'devices': f'{len(devices)} {devices[0].device_kind}',
    'processes': jax.process_count(),
    'packages': {name: version for name, version in versions.items() if version},
  }


def source() -> dict[str, Any]:
  """The 'commit' of vit_jax, and whether it has 'uncommitted_changes'; None outside a checkout."""
  commit = git('rev-parse', 'HEAD')
  changed = bool(git('status', '--porcelain')) if commit else None
  return {'commit': commit, 'uncommitted_changes': changed}


def git(*words: str) -> str | None:
  """What git says of the checkout that this package is in; None outside one."""
  if not (ROOT / '.git').exists():
    return None
  with contextlib.suppress(OSError):
    found = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None
  return None


def installed(package: str) -> str | None:
  """The version of a package; None where it is not there."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
