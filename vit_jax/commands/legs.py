"""`vit train --extend --change`: a new leg of a run, from its newest checkpoint on.

The same line again resumes that leg while it is not finished.
"""

import argparse
import dataclasses
import datetime
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence

import jax
from ml_collections.config_dict import ConfigDict, FrozenConfigDict

from vit_jax import config as configs
from vit_jax import files, models, optim, workdir
from vit_jax.checkpoint import step_folders
from vit_jax.guards import legs
from vit_jax.guards.legs import Leg
from vit_jax.plan import Plan, make_plan
from vit_jax.text import redacted

DURATION, BEGIN, RAMPS = 'duration', 'schedule.begin', ('schedule.warmup', 'schedule.cooldown')
# Fields of a model that its function does not depend on, once it is trained.
MAY_CHANGE = ('dropout', 'attention_dropout', 'drop_path', *models.COMPUTE)
ORDER = 'the order of the images, of which an epoch would show some twice'
NETWORK = 'the network that the parameters are of'
START = 'what the run has started from'
FIXED = {  # what no leg changes, fields and sections of them, and what each is
  'seed': ORDER,
  'batch_size': 'what a step is, and so where in the data the run is: accumulate changes its '
  'memory, schedule.learning_rate its effect',
  'data.source': ORDER,
  'data.columns': ORDER,
  'data.train': ORDER,
  'data.repeats': ORDER,
  'data.balance': ORDER,
  'data.validation': 'what the evaluations so far were measured on',
  'task': 'what is learned',
  'teacher.checkpoint': 'what is learned from',
  'teacher.kind': 'what is learned from',
  'pretrained': START,
  'pretrained_dir': START,
  'new_head': START,
  'model': NETWORK,
}


def make_leg(
  config: FrozenConfigDict, folder: pathlib.Path, args: argparse.Namespace, command: str
) -> Plan:
  """The plan of a run's new leg, or of its last one where that was asked for by the same flags.

  Args:
    config: of the line; what earlier legs have changed is taken from the run.
    folder: the run's.
    args: 'extend', a duration or '', and 'change', FIELD=VALUE each.
    command: the line that was typed, for the record.

  Raises:
    ValueError: for what is no run, or cannot be changed in one.
  """
  stored, steps = workdir.read_config(folder), step_folders(folder / 'checkpoints')
  if stored is None or not steps:
    lacking = 'no run' if stored is None else 'no checkpoint'
    raise ValueError(f'{folder} holds {lacking}: --extend and --change go on from one')
  previous, values = legs.read(folder), dict(workdir.leaves(stored))
  config = with_fields(config, {name: values[name] for leg in previous for name in leg.fields})
  before = make_plan(of_run(values, config), folder)
  is_over = (folder / 'model').exists() or steps[0] >= before.total
  request = {'extend': args.extend, 'change': [*args.change]}
  if previous and previous[-1].request == request and steps[0] >= previous[-1].step and not is_over:
    return make_plan(config, folder)
  asked = configs.with_overrides(config.to_dict(), overrides(before, request, steps[0], is_over))
  check_end(folder, config, asked, before, steps[0])
  after = make_plan(asked, folder)
  fields = changes(stored, config, asked, after, args.change)
  if not fields:
    return after
  check_fields(folder, fields)
  if after.total <= steps[0]:
    raise ValueError(f'{folder} is at its end, step {steps[0]:,}: --extend says how far it goes on')
  check_shapes(folder, fields, before, after)
  time = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  leg = Leg(steps[0], fields, request, redacted(command), time)
  return dataclasses.replace(after, legs=legs.followed(previous, leg))


def with_fields(config: FrozenConfigDict, values: Mapping[str, files.JSON]) -> FrozenConfigDict:
  """A config with these values of fields, by their dotted names."""
  new = ConfigDict(config.to_dict(), type_safe=False)
  for name, value in values.items():
    configs.set_field(new, name, value)
  return configs.validated(new)


def of_run(values: Mapping[str, files.JSON], config: FrozenConfigDict) -> FrozenConfigDict:
  """The config of a run by its stored values, but for what each start of it may say anew."""
  names = configs.flat(ConfigDict(config.to_dict()))
  return with_fields(
    config,
    {
      name: value
      for name, value in values.items()
      if name in names and name not in workdir.LOCATIONS and not name.startswith(workdir.MAY_DIFFER)
    },
  )


def overrides(
  before: Plan, request: Mapping[str, files.JSON], newest: int, is_over: bool
) -> list[str]:
  """FIELD=VALUE of all that a request changes.

  An extension is added to the end of the run, or where it is over already, as by its patience, to
  its newest step. There the schedule begins anew, with ramps in proportion to its length; in a run
  that is on its way it goes on where it is, as that of the new duration.
  """
  change, names = [*request['change']], asked_names(request['change'])
  if request['extend']:
    if DURATION in names:
      raise ValueError('--extend and --change duration=... both say where the run ends')
    if not (more := optim.steps(request['extend'], epoch=epoch_of(before))):
      raise ValueError(f'--extend is {request["extend"]!r}, must be at least a step')
    change.append(f'{DURATION}={(newest if is_over else before.total) + more} steps')
  if is_over and BEGIN not in names and DURATION in asked_names(change):
    ramps = (field for field in ramp_fields(before) if not asked_names([field]) & names)
    change += [f'{BEGIN}={newest} steps', *ramps]
  return change


def epoch_of(plan: Plan) -> float:
  """Steps in an epoch."""
  return len(plan.splits['train']) / plan.config.batch_size


def asked_names(change: Sequence[str]) -> set[str]:
  """The fields of FIELD=VALUE each."""
  return {field.partition('=')[0] for field in change}


def ramp_fields(plan: Plan) -> Iterator[str]:
  """Warm-up and cool-down as parts of a plan's schedule, where they are so many steps or epochs."""
  epoch, section = epoch_of(plan), plan.config.schedule
  span = plan.total - optim.steps(section.begin, epoch=epoch, total=plan.total)
  for name in RAMPS:
    duration = section[name.partition('.')[2]]
    length = optim.steps(duration, epoch=epoch, total=span)
    if length and '%' not in str(duration):
      yield f'{name}={100 * length / span:.4f}%'


def changes(
  stored: files.JSON,
  config: FrozenConfigDict,
  asked: FrozenConfigDict,
  after: Plan,
  change: Sequence[str],
) -> dict[str, list[files.JSON]]:
  """{field: [the run's value, the new one]} of the fields that are asked for and differ."""
  new = workdir.as_json(config), workdir.as_json(asked)
  names = asked_names(change) | {name for name, *_ in workdir.differing_fields(*new)}
  return {
    name: [old, value]
    for name, old, value in workdir.differing_fields(stored, workdir.as_json(after.config))
    if name in names and not name.startswith(workdir.MAY_DIFFER)
  }


def check_fields(folder: pathlib.Path, fields: Mapping[str, object]) -> None:
  """Raises ValueError for fields that no leg changes."""
  free = {f'model.{name}' for name in MAY_CHANGE}
  reasons = {name: FIXED.get(name, FIXED.get(name.partition('.')[0])) for name in fields}
  if wrong := [
    f'{name} cannot change, it is {reason}'
    for name, reason in reasons.items()
    if reason and name not in free
  ]:
    raise ValueError(f'{folder}: {"; ".join(wrong)}. {advice(folder)}')


def advice(folder: pathlib.Path) -> str:
  return f'A new run starts from this one with --config={shlex.quote(f"finetune:{folder},DATA")}'


def check_end(
  folder: pathlib.Path,
  config: FrozenConfigDict,
  asked: FrozenConfigDict,
  before: Plan,
  newest: int,
) -> None:
  """Raises ValueError for an end that the run has passed."""
  total = optim.steps(asked.duration, epoch=epoch_of(before))
  if total <= newest and asked.duration != config.duration:
    raise ValueError(f'duration {asked.duration!r} is {total:,} steps, {folder} is at {newest:,}')


def check_shapes(
  folder: pathlib.Path, fields: Mapping[str, object], before: Plan, after: Plan
) -> None:
  """Raises ValueError where the new state could not be restored from the old one's checkpoint."""
  old, new = before.state_shapes, after.state_shapes
  parts = {'params': 'parameters', 'ema': 'average', 'opt_state': 'state of the optimiser'}
  for name, words in parts.items():
    if layout(getattr(old, name)) != layout(getattr(new, name)):
      raise ValueError(
        f'{folder}: {", ".join(fields)} cannot change, for the {words} would be of other shapes. '
        + advice(folder)
      )


def layout(tree: models.Tree) -> tuple[object, ...]:
  """The structure of a tree of shapes, and each of them."""
  return jax.tree.structure(tree), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))
