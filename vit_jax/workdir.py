"""A run's folder: whose it is, whether a config may resume it, and with what it was made."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vit_jax import files
from vit_jax.guards import legs, processes, seals
from vit_jax.guards.legs import Leg
from vit_jax.guards.owner import folder_of
from vit_jax.text import MASK, redacted, to_stderr

# `vit doctor` and `vit bench` read versions and commit here, where jax may be broken and
# ml_collections not installed: both are imported where they are used.
if TYPE_CHECKING:
  from ml_collections.config_dict import ConfigDict, FrozenConfigDict

  from vit_jax.sources import Source

CONFIG, DATA, ENVIRONMENT = 'config.json', 'data.json', 'environment.json'
# Between the starts of a run. What data.antialias says is in data.augment and data.preprocess.
MAY_DIFFER = ('system.', 'data.bad_images', 'data.antialias', 'time_limit')
# Where a run's data, its teacher and what it starts from are may differ; what DATA keeps may not.
LOCATIONS = {
  'data.source': ('images', 'classes'),
  'teacher.checkpoint': ('fixed',),
  'pretrained': ('pretrained',),
  'pretrained_dir': ('pretrained',),
}
SAME = {'images': 'as many images', 'classes': 'the same classes'}
SAME |= {'fixed': 'the same arrays', 'pretrained': 'the same arrays'}
NAMED = 3  # fields and flags that an error shows
OLD_RANKS = {'accuracy': 1, 'loss': -1}  # of a run whose data.json has none: a classifier's
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
  'Pillow',
  'opencv-python-headless',
  'simplejpeg',
  'rich',
  'tensorboardX',
  'scikit-learn',
  'matplotlib',
)


def claim(
  workdir: str | os.PathLike[str],
  config: 'FrozenConfigDict',
  source: 'Source | None' = None,
  *,
  ranks: Mapping[str, int] | None = None,
  fixed_crc: int | None = None,
  pretrained_crc: int | None = None,
  run_legs: Sequence[Leg] = (),
  say: Callable[[str], object] = to_stderr,
) -> None:
  """Makes the folder this run's, or makes sure that it is; a leg that is new begins.

  A run may resume with its data elsewhere, such as in the folder of another job: it is the same if
  it has as many images of the same classes. So may the checkpoint that it started from, if its
  arrays are the same; a run with checkpoints of its own has no need of it. Where the file of its
  config or of its data is missing or damaged, the seals of its checkpoints and its model say whose
  the folder is.

  Args:
    workdir: the folder.
    config: of the run.
    source: its training images, whose classes and number must stay the same, too.
    ranks: of its task, kept for those who read what was measured.
    fixed_crc: `checkpoint.tree_crc` of its task's `fixed` arrays, such as a teacher's, which must
      stay the same, too; None where it has none.
    pretrained_crc: the same of the arrays that it starts from; None where they are not read.
    run_legs: those that the run has after its first, and perhaps one that is new.
    say: takes a line for each of LOCATIONS that differs, and for a file that is written anew.

  Raises:
    ValueError: if it holds a run with another config or other data, names what differs; if it is
      of a newer version.
    OSError: if it cannot be written.
  """
  import jax

  folder = folder_of(workdir)
  new_config, data = as_json(config), describe_data(source, fixed_crc)
  start = {'pretrained': pretrained_crc} if pretrained_crc is not None else {}
  check_processes_agree(new_config, data | start)
  lines = [*check_belongs(folder, new_config, data, start, run_legs)]  # none where it is refused
  for line in lines:
    say(f'resumes {folder}: {line}')
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    if len(run_legs) > len(legs.read(folder)):
      legs.archive(folder, len(run_legs))
      legs.write(folder, run_legs)
    old = read_data(folder) or {}
    start = {key: old[key] for key in ('pretrained',) if key in old} | start
    data |= start | ({'ranks': dict(ranks)} if ranks is not None else {})
    files.write_json(folder / DATA, data)
    files.write_json(folder / CONFIG, new_config)


def describe_data(source: 'Source | None', fixed_crc: int | None = None) -> dict[str, Any]:
  """What must stay the same of a run's data, as DATA has it; see `claim`."""
  data: dict[str, Any] = {}
  data |= {'images': len(source), 'classes': list(source.classes)} if source else {}
  return data | ({'fixed': fixed_crc} if fixed_crc is not None else {})


def origin(config: Mapping[str, Any], data: Mapping[str, Any]) -> seals.Origin:
  """Whose a checkpoint or model of a run is.

  Args:
    config: of `as_json`.
    data: of `describe_data`.
  """
  fields = {
    name: value
    for name, value in leaves(config)
    if name not in LOCATIONS and not name.startswith(MAY_DIFFER)
  }
  return seals.Origin(None, fields, zlib.crc32(files.as_json(data).encode()) if data else None)


def leaves(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """(dotted name, value) of every field of nested dicts."""
  for name, value in config.items():
    if isinstance(value, dict):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def sealed_origin(folder: pathlib.Path) -> seals.Origin | None:
  """Whose the run in a folder is by its newest seal that says it; None where none does.

  Raises:
    seals.Newer: if any seal is of a newer format.
  """
  steps = (folder / 'checkpoints').glob('[0-9]*')
  newest = sorted(steps, key=lambda step: (len(step.name), step.name), reverse=True)
  origins = []
  for sealed in (folder / 'model', *newest):
    with contextlib.suppress(seals.Broken):
      origins.append(seals.read(sealed).origin)
  return next((value for value in origins if value.config), None)


def check_belongs(
  folder: pathlib.Path,
  config: dict[str, Any],
  data: dict[str, Any],
  start: dict[str, int],
  run_legs: Sequence[Leg],
) -> Iterator[str]:
  """Raises ValueError if a folder holds another run; lines on what differs, or was lost, of it.

  `start` is what DATA keeps of the arrays that a run starts from: {} where they are not read.
  """
  sealed, old_config, old_data = sealed_origin(folder), read_config(folder), read_data(folder)
  if old_config is not None:
    old_config = legs.config_at(old_config, run_legs)
    same = unchanged(old_data or {}, data | start)
    yield from check_config(folder, old_config, config, same=same)
  if old_data and old_config is not None:
    check_data(folder, old_data, data | start)
  stored = {CONFIG: old_config, DATA: old_data or not data or None}
  for file in (folder / name for name, value in stored.items() if value is None):
    damaged = f'{file} is damaged' if file.exists() else f'{file} is missing'
    if sealed is None and file.exists():
      advice = 'remove it if the config and data here are those of the run'
      raise ValueError(f'{damaged}, and no checkpoint says whose the folder is: {advice}')
    if sealed is not None:
      then = legs.config_at(config, run_legs, sealed.step)
      if difference := origin(then, data).difference(sealed):
        raise ValueError(f'{damaged}, and its checkpoints are {difference}')
      yield f'{damaged}: written anew, its checkpoints are of this run'


def unchanged(old: dict[str, Any], data: dict[str, Any]) -> dict[str, str]:
  """What DATA keeps, and in words how a run has it as before, where both tell."""
  same = {key: text for key, text in SAME.items() if key in old and key in data}
  unread = 'pretrained' in old and 'pretrained' not in data
  return same | ({'pretrained': 'checkpoints of its own'} if unread else {})


def as_json(config: 'ConfigDict | FrozenConfigDict') -> dict[str, Any]:
  """A config as a file of JSON gives it back, with lists for tuples."""
  return json.loads(files.as_json(config.to_dict()), object_hook=without_secrets)


def without_secrets(section: dict[str, Any]) -> dict[str, Any]:
  """A section of a config as files of a run have it, see `text.redacted`."""
  return {k: redacted(v) if isinstance(v, str) else v for k, v in section.items()}


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
  """The config of the run in a folder, as JSON has it; None where it is missing or damaged.

  It is that of the last leg, also where a kill came between that leg's file and this one.
  """
  from vit_jax.config import default

  try:
    text = files.as_json(files.read_object(folder / CONFIG))
    config = with_defaults(json.loads(text, object_hook=without_secrets), as_json(default()))
    return legs.config_at(config, legs.read(folder))
  except (OSError, ValueError):
    return None


def resumed_config(folder: pathlib.Path, overrides: Sequence[str] = ()) -> 'FrozenConfigDict':
  """The config of the run in a folder, checked, with 'FIELD=VALUE' each in the place of its own.

  Raises:
    ValueError: if there is none, it is damaged, or it wants what was not written for its secrets.
  """
  from vit_jax.config import with_overrides

  stored = read_config(folder)
  if stored is None:
    state = 'is damaged' if (folder / CONFIG).exists() else 'is not there'
    raise ValueError(f'{folder / CONFIG} {state}: give the data set, or --config, of the run')
  config = with_overrides(stored, overrides)
  for name, value in leaves(config.to_dict()):
    if isinstance(value, str) and MASK in value:
      raise ValueError(f'{folder / CONFIG} keeps no secrets: give --config.{name}=... as it was')
  return config


def with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
  """A stored config with the default of every field that is newer than it."""
  whole = defaults | config
  for name, section in defaults.items():
    if isinstance(section, dict) and isinstance(whole[name], dict):
      whole[name] = with_defaults(whole[name], section)
  return whole


def read_ranks(folder: pathlib.Path) -> Mapping[str, int]:
  """What the evaluations of the run in a folder can be ranked by, as `Task.ranks`."""
  try:
    ranks = json.loads(files.read_bytes(folder / DATA))['ranks']
    if ranks and all(type(sign) is int and abs(sign) == 1 for sign in ranks.values()):
      return ranks
  except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
    pass
  return OLD_RANKS


def check_config(
  folder: pathlib.Path,
  old_config: dict[str, Any],
  new_config: dict[str, Any],
  *,
  same: Mapping[str, str],
) -> list[str]:
  """Lines on the LOCATIONS that differ, where `same` says of all that DATA keeps of them how it is.

  Those of the stored fields that are not the default come first in a message.

  Raises:
    ValueError: if anything else of a run's config differs, but for MAY_DIFFER.
  """
  from vit_jax.config import default

  usual = dict(leaves(as_json(default())))
  differing, moved, flags, changes = [], [], [], []
  fields = differing_fields(old_config, new_config)
  for name, old, new in sorted(fields, key=lambda field: field[1] == usual.get(field[0])):
    if new and name in LOCATIONS and same.keys() >= {*LOCATIONS[name]}:
      reasons = ' and '.join(same[key] for key in LOCATIONS[name])
      moved.append(f'{name} was {old!r} and is {new!r}, with {reasons}')
    elif not name.startswith(MAY_DIFFER):
      differing.append(f'{name} is {old!r} there and {new!r} here')
      flags.append(f'--config.{name}={old}')
      changes.append(f'{name}={new}')
  if differing:
    more = f' and {len(differing) - NAMED} more' * (len(differing) > NAMED)
    raise ValueError(
      f'{folder} holds another run: {"; ".join(differing[:NAMED])}{more}. '
      f'To resume it, give what it has, as by {shlex.join(flags[:NAMED])}; to change it from its '
      f'newest checkpoint on, --change {shlex.join(changes[:NAMED])}'
    )
  return moved


def differing_fields(
  old: dict[str, Any], new: dict[str, Any], prefix: str = ''
) -> Iterator[tuple[str, object, object]]:
  """(name, old value, new value) of every field in which two nested dicts differ."""
  for name in old | new:
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      yield from differing_fields(a, b, f'{prefix}{name}.')
    elif a != b:
      yield prefix + name, a, b


def read_data(folder: pathlib.Path) -> dict[str, Any] | None:
  """What a run keeps of its data; None where that is missing or damaged."""
  try:
    data = files.read_object(folder / DATA)
  except (OSError, ValueError):
    return None
  fits = type(data.get('images')) is int and isinstance(data.get('classes'), list)
  return data if fits else None


def check_data(folder: pathlib.Path, old: dict[str, Any], data: dict[str, Any]) -> None:
  """Raises ValueError if a run's data is not what it was."""
  images, classes = old['images'], old['classes']
  changes = []
  if old.get('fixed') != data.get('fixed'):
    changes.append('another teacher, whose arrays differ')
  if 'pretrained' in old and data.get('pretrained', old['pretrained']) != old['pretrained']:
    changes.append('another checkpoint to start from, whose arrays differ')
  if images != data['images']:
    changes.append(f'{images:,} training images there and {data["images"]:,} here')
  if classes != data['classes']:
    removed = [name for name in classes if name not in data['classes']][:3]
    added = [name for name in data['classes'] if name not in classes][:3]
    changes.append(
      f'{len(classes)} classes there and {len(data["classes"])} here'
      + f', gone {", ".join(map(str, removed))}' * bool(removed)
      + f', new {", ".join(added)}' * bool(added)
      + ', in another order' * (not removed and not added)
    )
  if changes:
    raise ValueError(f'{folder} holds a run on other data: {"; ".join(changes)}')


def check_processes_agree(config: dict[str, Any], data: dict[str, Any]) -> None:
  """Raises ValueError, with what differs, if processes were started with other configs or data."""
  shared = {name: value for name, value in config.items() if name != 'system'} | {'source': data}
  first, *others = map(json.loads, processes.gathered('the config', files.as_json(shared)))
  for index, other in enumerate(others, start=1):
    differing = [
      f'{name} is {old!r:.60} in process 0 and {new!r:.60} in process {index}'
      for name, old, new in differing_fields(first, other)
    ]
    if differing:
      raise ValueError(f'the processes were started differently: {"; ".join(differing)}')


def record(folder: pathlib.Path, command: str) -> None:
  """Writes command, time, versions and devices of this start of a run into its folder."""
  import jax

  devices = jax.devices()
  versions = {name: installed(name) for name in PACKAGES}
  environment = {
    'command': redacted(command),
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    **{name: value for name, value in source().items() if value is not None},
    'python': platform.python_version(),
    'platform': platform.platform(),
    'devices': f'{len(devices)} {devices[0].device_kind}',
    'processes': jax.process_count(),
    'packages': {name: version for name, version in versions.items() if version},
  }
  files.write_json(folder / ENVIRONMENT, environment)


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
    result = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None
  return None


def installed(package: str) -> str | None:
  """The version of a package; None where it is not installed."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
