"""Configs: found by path or name, overridden by `--config.FIELD=VALUE`, checked field by field."""

import ast
import difflib
import functools
import importlib.util
import inspect
import os
import pathlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from vit_jax import lookup, optim, pipeline
from vit_jax.images.decoding import MAX_CHANNELS
from vit_jax.sources import presets
from vit_jax.tasks import distil
from vit_jax.text import to_stderr

SHIPPED = pathlib.Path(__file__).parent / 'configs'
TEXT = 10_000  # characters of a text, or parts of a tuple
SIDE, UNITS, COUNT, REAL = 2**14, 2**18, 2**20, 1e6  # far beyond use: what they refuse is a slip
RANGES = {  # min, and what it must be below; of a tuple, each part
  'seed': (0, 2**32),
  'batch_size': (1, COUNT),
  'accumulate': (1, COUNT),
  'ema': (0, 1),
  'image_size': (1, SIDE),
  'model.patch': (1, SIDE),
  'model.width': (1, UNITS),
  'model.depth': (0, UNITS),
  'model.heads': (1, UNITS),
  'model.mlp_dim': (1, UNITS),
  'model.tokens_dim': (1, UNITS),
  'model.blocks': (0, UNITS),
  'model.width_factor': (1, UNITS),
  'model.pool_heads': (1, UNITS),
  'model.pool_mlp_dim': (1, UNITS),
  'model.rope_theta': (0, REAL * REAL),
  'model.rope_offset': (-REAL, REAL),
  'model.rope_reference': (1, SIDE),
  'model.relative_hidden': (1, UNITS),
  'model.representation': (0, UNITS),
  'model.registers': (0, UNITS),
  'model.stem': (0, UNITS),
  'model.stem_width': (1, UNITS),
  'model.layer_scale': (-REAL, REAL),
  'model.drop_path': (0, 1),
  'model.dropout': (0, 1),
  'model.attention_dropout': (0, 1),
  'model.norm_eps': (0, REAL),
  'model.head_bias': (-REAL, REAL),
  'model.unroll': (1, UNITS),
  'data.repeats': (1, COUNT),
  'data.channels': (1, MAX_CHANNELS + 1),
  'data.mean': (-REAL, REAL),
  'data.std': (0, REAL),
  'views.global_count': (1, UNITS),
  'views.global_size': (1, SIDE),
  'views.global_area': (0, 2),
  'views.local_count': (0, UNITS),
  'views.local_size': (1, SIDE),
  'views.local_area': (0, 2),
  'dino.prototypes': (2, COUNT),
  'dino.hidden': (1, UNITS),
  'dino.bottleneck': (1, UNITS),
  'dino.student_temperature': (1e-3, REAL),
  'dino.first_temperature': (1e-3, REAL),
  'dino.teacher_temperature': (1e-3, REAL),
  'dino.centre_momentum': (0, 1),
  'dino.ibot': (0, REAL),
  'dino.hidden_area': (0, 1),
  'dino.koleo': (0, REAL),
  'objective.smoothing': (0, 1),
  'objective.mixup': (0, REAL),
  'objective.cutmix': (0, REAL),
  'objective.gamma': (0, REAL),
  'teacher.temperature': (0, REAL),
  'teacher.weight': (0, REAL),
  'lejepa.weight': (0, 1),
  'lejepa.directions': (1, UNITS),
  'lejepa.points': (2, UNITS),
  'lejepa.t_max': (0.01, REAL),
  'lejepa.hidden': (1, UNITS),
  'lejepa.outputs': (1, UNITS),
  'mae.mask': (0, 1),
  'mae.decoder_depth': (1, UNITS),
  'mae.decoder_width': (4, UNITS),
  'mae.decoder_heads': (1, UNITS),
  'optimizer.weight_decay': (0, REAL),
  'optimizer.weight_decay_end': (0, REAL),
  'optimizer.clip': (0, REAL * REAL),
  'optimizer.b1': (0, 1),
  'optimizer.b2': (0, 1),
  'optimizer.eps': (0, REAL),
  'optimizer.momentum': (0, 1),
  'optimizer.layer_decay': (0, REAL),
  'optimizer.sam': (0, REAL),
  'optimizer.gsam': (0, REAL),
  'optimizer.sam_min': (0, REAL),
  'freeze.layers': (0, UNITS),
  'schedule.learning_rate': (0, 1e38),  # of float32: one that diverges is told by its loss
  'schedule.end': (0, REAL),
  'schedule.factor': (0, REAL),
  'evaluation.knn_k': (1, COUNT),
  'checkpoint.keep_latest': (1, COUNT),
  'checkpoint.keep_best': (1, COUNT),
  'system.data': (-1, COUNT),
  'system.fsdp': (1, COUNT),
  'system.tensor': (1, COUNT),
  'system.threads': (1, 1025),
  'system.workers': (0, 1025),
  'system.prefetch': (0, 1025),
  'system.data_timeout': (1, REAL),
}
EXAMPLES = {'data.antialias': True, 'system.log_every': '50 steps'}  # where the default is None
LEVELS = ('data.mean', 'data.std')  # None, or a number for each of data.channels

Old = Callable[[ConfigDict, str], dict[str, str]]  # an old field's value -> overrides of today


def old_dataset(config: ConfigDict, value: str) -> dict[str, str]:
  """A preset, a folder of images, or a set of TFDS, which may have no images for validation."""
  if value in presets.PRESETS or ':' in value:
    return {'data.source': value}
  if os.path.isdir(value):
    return {'data.source': f'folder:{value}'}
  return {'data.source': f'tfds:{value}', 'data.validation': ''}


def old_split(use: str, config: ConfigDict, value: str) -> dict[str, str]:
  """A split of a set of TFDS, or the preset's of the same images."""
  preset = presets.PRESETS.get(config.data.source)
  same = preset is not None and preset.splits.get(use) == value
  return {f'data.{use}': use if same else value}


# Fields of google-research/vision_transformer: what each is now, with the same values or translated
# ones; None: nothing.
OLD: dict[str, str | Old | None] = {
  'dataset': old_dataset,
  'pp.train': functools.partial(old_split, 'train'),
  'pp.test': functools.partial(old_split, 'test'),
  'pp.crop': 'image_size',
  'pp.resize': lambda config, side: {'data.augment': f'resize({side}) | random_crop | flip'},
  'base_lr': 'schedule.learning_rate',
  'decay_type': 'schedule.name',
  'warmup_steps': 'schedule.warmup',
  'total_steps': 'duration',
  'batch': 'batch_size',
  'batch_eval': None,
  'accum_steps': 'accumulate',
  'grad_norm_clip': 'optimizer.clip',
  'optim_dtype': 'optimizer.momentum_dtype',
  'eval_every': 'evaluation.every',
  'checkpoint_every': 'checkpoint.every',
  'progress_every': 'system.log_every',
  'prefetch': 'system.prefetch',
  'shuffle_buffer': None,
  'model.transformer.dropout_rate': 'model.dropout',
  'model.transformer.attention_dropout_rate': 'model.attention_dropout',
}


def load(spec: str, overrides: Sequence[str] = ()) -> FrozenConfigDict:
  """The checked config that a command line asks for.

  Args:
    spec: 'PATH.py', 'PATH.py:ARG', or the name of a shipped config, 'digits' or 'digits:ARG'; ARG
      is handed to its `get_config`.
    overrides: 'FIELD=VALUE' each, 'model.width=192'; values are Python literals or plain text.

  Raises:
    ValueError: one line with everything that is wrong.
    FileNotFoundError: if there is no such config.
  """
  return with_overrides(call_get_config(*find(spec)).to_dict(), overrides)


def with_overrides(fields: Mapping[str, Any], overrides: Sequence[str]) -> FrozenConfigDict:
  """The checked config of nested fields, after 'FIELD=VALUE' each; see `load`."""
  config = ConfigDict(fields, type_safe=False)
  if errors := [error for override in overrides if (error := assign(config, override))]:
    raise ValueError('; '.join(errors))
  return validated(config)


def find(spec: str) -> tuple[pathlib.Path, str]:
  """The file that a spec names, and its argument: a path first, then a shipped config."""
  name, _, argument = spec.partition(':')
  path = pathlib.Path(name)
  if path.suffix == '.py' and path.is_file():
    return path, argument
  stem = name.removesuffix('.py').removeprefix('vit_jax/').removeprefix('configs/')
  shipped = SHIPPED / f'{stem}.py'
  if shipped.is_file():
    return shipped, argument
  names = sorted(file.stem for file in SHIPPED.glob('[!_]*.py') if file.stem != 'default')
  raise FileNotFoundError(f'no config {name!r}; shipped: {", ".join(names)}')


def call_get_config(path: pathlib.Path, argument: str) -> ConfigDict:
  """What the file's `get_config` returns; a mistake in it is an error with its line."""
  spec = importlib.util.spec_from_file_location('config', path.resolve())
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    takes_argument = bool(inspect.signature(module.get_config).parameters)
    if argument and not takes_argument:
      raise ValueError(f'takes no argument, got {argument!r}')
    config = module.get_config(argument) if takes_argument else module.get_config()
  except (Exception, SystemExit) as error:
    text = ' '.join(str(error).split())
    shipped = path.resolve().parent == SHIPPED.resolve()
    if shipped and isinstance(error, ValueError | OSError):  # of its argument
      raise ValueError(f'config {path.stem}: {text}') from error
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
    line = f'{path}:{lines[-1]}' if lines else str(path)
    raise ValueError(f'{line}: {type(error).__name__}: {text}') from error
  if not isinstance(config, ConfigDict):
    raise ValueError(f'{path}: get_config returned {type(config).__name__}, not a ConfigDict')
  return config


def assign(config: ConfigDict, override: str) -> str:
  """Sets one 'FIELD=VALUE'; returns what is wrong with it, or ''."""
  field, separator, text = override.partition('=')
  if not separator:
    return f'{override!r} is not FIELD=VALUE'
  if field in OLD:
    return assign_old(config, field, text)
  if len(field) > TEXT or len(text) > TEXT:
    return f'{field[:80]} has {len(text):,} characters, at most {TEXT:,} are read'
  if field not in (fields := flat(default())):
    return unknown_field(field, list(fields))
  try:
    set_field(config, field, as_field(field, literal(text), *fields[field]))
  except ValueError as error:
    return f'{field} {error}'
  return ''


def assign_old(config: ConfigDict, field: str, text: str) -> str:
  """Sets one of OLD, and prints its name of today; returns what is wrong with it, or ''."""
  new = OLD[field]
  if new is None:
    to_stderr(f'--config.{field} has no effect: there is nothing like it')
    return ''
  values = {new: text} if isinstance(new, str) else new(config, text)
  today = [f'{name}={value}' for name, value in values.items()]
  flags = ' '.join(f'--config.{override}' for override in today)
  to_stderr(f'--config.{field}={text} is now {flags}')
  return '; '.join(error for override in today if (error := assign(config, override)))


def literal(text: str) -> object:
  """'3' -> 3, '1e-3' -> 0.001, '8,8' -> (8, 8), 'true' -> True, None -> None; text as it is."""
  try:
    return ast.literal_eval(text.title() if text.lower() in ('true', 'false') else text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deep
    return text


def validated(config: ConfigDict) -> FrozenConfigDict:
  """The config with its values in their fields' types, immutable: here alone they are checked.
  All that is wrong is in one ValueError: fields first, then values, alone and with one another.
  """
  schema, fields = flat(default()), flat(config)
  errors = [unknown_field(field, list(schema)) for field in fields if field not in schema]
  errors += [f'field {field!r} is missing' for field in schema if field not in fields]
  clean = ConfigDict(default().to_dict(), type_safe=False)
  for field, standard in schema.items():
    if field in fields:
      try:
        set_field(clean, field, as_field(field, fields[field][0], *standard))
      except ValueError as error:
        errors.append(f'{field} {error}')
  if errors := errors or [*range_errors(clean), *value_errors(clean)]:
    raise ValueError('; '.join(errors))
  return FrozenConfigDict(clean)


def range_errors(config: ConfigDict) -> Iterator[str]:
  """What is wrong with the fields of RANGES."""
  fields = flat(config)
  for field, (low, high) in RANGES.items():
    value = fields[field][0]
    parts = value if isinstance(value, tuple) else () if value is None else (value,)
    if not all(isinstance(part, int | float) and low <= part < high for part in parts):
      yield f'{field} is {shown(value)}, must be at least {low} and below {high}'


def value_errors(config: ConfigDict) -> Iterator[str]:
  """What is wrong with the other fields, alone or with one another."""
  data, evaluation = config.data, config.evaluation
  if not data.train:
    yield 'data.train is empty, must name a split'
  for field, values in (('data.mean', data.mean), ('data.std', data.std)):
    if values is not None and len(values) != data.channels:
      value = values[0] if len(values) == 1 else values
      yield f'{field} is {value}, not tuple of {data.channels} or None, as data.channels is'
  if data.std is not None and min(data.std, default=1) <= 0:
    yield f'data.std is {data.std}, must be positive'
  if data.bad_images not in pipeline.POLICIES:
    yield f'data.bad_images is {data.bad_images!r}; known: {", ".join(pipeline.POLICIES)}'
  if not (config.new_head or config.pretrained):
    yield 'new_head is False, but without pretrained there is no head to keep'
  if not 0 < config.optimizer.layer_decay <= 1:
    yield f'optimizer.layer_decay is {config.optimizer.layer_decay}, must be above 0 and at most 1'
  evaluates = data.validation and optim.steps(evaluation.every, epoch=1, total=1)
  if optim.steps(evaluation.patience, epoch=1, total=1) and not evaluates:
    yield 'evaluation.patience needs data.validation and evaluation.every'
  if evaluation.knn and not evaluates:
    yield 'evaluation.knn needs data.validation and evaluation.every'
  try:
    optim.seconds(config.time_limit)
  except ValueError as error:
    yield f'time_limit {error}'
  try:
    distil.check(config.teacher.kind, config.teacher.temperature, config.teacher.weight)
  except ValueError as error:
    yield str(error)


def default() -> ConfigDict:
  return call_get_config(SHIPPED / 'default.py', '')


def flat(config: ConfigDict, prefix: str = '') -> dict[str, tuple[Any, type]]:
  """{'model.width': (value, type)} of every field."""
  fields: dict[str, tuple[Any, type]] = {}
  for name in list(config):
    value = config[name]
    if isinstance(value, ConfigDict):
      fields |= flat(value, f'{prefix}{name}.')
    else:
      fields[prefix + name] = (value, config.get_type(name))
  return fields


def as_field(field: str, value: object, standard: object, kind: type) -> object:
  """A value in the type of that field, by its default or its example."""
  if isinstance(value, str | tuple | list) and len(value) > TEXT:
    raise ValueError(f'has a length of {len(value):,}, at most {TEXT:,} is read')
  example = EXAMPLES.get(field) if standard is None and value is not None else standard
  if field in LEVELS and value is not None:
    value = value if isinstance(value, tuple | list) else (value,)
    example = (0.5,) * len(value)
  if field == 'time_limit' and type(value) is int:
    value = str(value)  # "'90' is not a time such as '11h'" helps more than "90 is not str"
  return coerced(value, example, kind)


def coerced(value: object, standard: object, kind: type) -> object:
  """A value in the type of its field, which the default config shows by example."""
  items = standard if isinstance(standard, tuple) else ()
  if value is None and standard is None:
    return None
  if kind is str and is_duration(standard):
    optim.steps(value, epoch=1, total=1)  # raises where it is none
    return value
  if kind is tuple and type(value) is int and (standard is None or len(items) == 2):
    return (value, value)  # one number for a pair of sides
  if kind is tuple and isinstance(value, list | tuple):
    if not items:
      return tuple(value)
    if len(value) == len(items):
      item = type(items[0])
      return tuple(coerced(part, item(), item) for part in value)
  elif kind is float and type(value) is int and abs(value) < 2**63:
    return float(value)
  elif type(value) is kind:
    return value
  wanted = kind.__name__ + (f' of {len(items)}' if items else '')
  raise ValueError(f'is {shown(value)}, not {wanted}{" or None" * (standard is None)}')


def shown(value: object) -> str:
  """A value as Python writes it, which it does not do of very large numbers."""
  try:
    return repr(value)
  except (ValueError, RecursionError):
    return f'{type(value).__name__} of unprintable size'


def is_duration(value: object) -> bool:
  return isinstance(value, str) and optim.DURATION.fullmatch(value) is not None


def set_field(config: ConfigDict, field: str, value: object) -> None:
  *parents, leaf = field.split('.')
  for parent in parents:
    config = config[parent]
  config[leaf] = value


def unknown_field(field: str, fields: list[str]) -> str:
  """'unknown field ...' with the nearest one, by its whole name or the last part of it."""
  if any(name.startswith(field + '.') for name in fields):
    return f'{field!r} is a section: set its fields, {field}.NAME'
  spelt = {name.rpartition('.')[2]: name for name in fields} | {name: name for name in fields}
  if field in lookup.FIELDS:
    return f'unknown field {field!r}; did you mean {lookup.FIELDS[field]!r}?'
  [close] = difflib.get_close_matches(field, spelt, n=1, cutoff=0.0)
  return f'unknown field {field!r}; did you mean {spelt[close]!r}?'
