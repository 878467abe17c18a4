"""What several runs tell beside one another: nothing here measures.

R runs in G groups, N images.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import config as configs
from vit_jax import files, workdir
from vit_jax.evaluate import inputs, paired, results
from vit_jax.text import one_line, quantity, without_folders
from vit_jax.views import photos
from vit_jax.views.facts import (
  ERRORS,
  Facts,
  is_finished,
  own_evaluation,
  read_logs,
  root_of,
  transform_of,
)
from vit_jax.views.photos import Images, Photos

ALL_PAIRS = 5  # groups, up to which each is tested against each; beyond, each against the first
SHOWN = 24  # images of the page on which runs disagree
NAMED = 2  # fields in the name of a group, at most


@dataclasses.dataclass(frozen=True)
class Member:
  """One run of a comparison, by a name that no other of them has."""

  name: str
  facts: Facts

  @property
  def values(self) -> dict[str, Any]:
    """What was measured of its model; of a run that trains, of its latest validation."""
    return self.facts.measured or {}

  @property
  def state(self) -> str:
    """'finished', or how far it is."""
    step, state = self.values.get('step'), self.facts.status.get('state', 'not finished')
    if is_finished(self.facts.folder):
      return 'finished' if self.values else 'finished, not measured'
    return f'{state}, measured at step {step:,}' if step is not None else f'{state}, not measured'


@dataclasses.dataclass(frozen=True)
class RunGroup:
  """Runs that differ by their seed alone."""

  name: str
  members: tuple[Member, ...]

  def numbers(self) -> dict[str, list[float]]:
    """Each measure that all of its measured runs have, by name: a value for each of them."""
    measured = [results.numbers(member.values) for member in self.members if member.values]
    first = measured[0] if measured else {}
    names = [n for n in first if all(values.get(n) is not None for values in measured)]
    return {name: [float(values[name] or 0) for values in measured] for name in names}

  def right(self) -> np.ndarray:
    """(N,): how often its runs were right of each image."""
    return np.mean([m.values['images']['right'] for m in self.members], axis=0)


@dataclasses.dataclass(frozen=True)
class Test:
  """A test of two groups on the same images, or why there is none."""

  first: str
  second: str
  result: paired.Result | None
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class Comparison:
  """All that a page of several runs tells.

  Fields:
    groups: of the runs, in the order in which they came.
    fields: by dotted name those of the configs that differ, a value for each run.
    tests: of pairs of groups.
    disagreements: images that some groups have right and others wrong, those first where they
      differ most: rows of the evaluations' 'images'.
    photos: of these, by row.
    left_out: why something is not there, in lines.
  """

  groups: tuple[RunGroup, ...]
  fields: Mapping[str, list[Any]]
  tests: list[Test]
  disagreements: list[int]
  photos: Photos = dataclasses.field(default_factory=Photos)
  left_out: list[str] = dataclasses.field(default_factory=list)

  @property
  def members(self) -> list[Member]:
    return [member for group in self.groups for member in group.members]


def read(folders: Sequence[str]) -> Comparison:
  """What runs tell of one another.

  Raises:
    ValueError: for fewer than two runs, one that comes twice, or a folder that is no run's.
  """
  paths = [pathlib.Path(folder) for folder in folders]
  if len(paths) < 2:
    raise ValueError(f'to compare wants at least two runs, got {len(paths)}')
  for a, b in itertools.combinations(paths, 2):
    if os.path.realpath(a) == os.path.realpath(b):
      raise ValueError(f'{a} and {b} are the same run')
  members = [Member(name, read_run(path)) for name, path in zip(short_names(paths), paths)]
  groups = grouped(members)
  members = [member for group in groups for member in group.members]
  tests = [test(*pair) for pair in pairs(groups)]
  comparison = Comparison(groups, differing_fields(members), tests, disagreements(groups))
  lines = [f'{m.name} is {m.state}' for m in members if m.state != 'finished']
  lines += [line for group in groups for line in repeated_seeds(group)]
  return with_photos(dataclasses.replace(comparison, left_out=lines))


def read_run(folder: pathlib.Path) -> Facts:
  """A run's files, without its model; its config has the default of a field newer than it."""
  evaluation = own_evaluation(folder)
  facts = read_logs(folder, evaluation)
  whole = workdir.with_defaults(facts.config, workdir.as_json(configs.default()))
  return dataclasses.replace(facts, config=whole, measured=evaluation)


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
  """As many of each path's last parts as tell the runs apart."""
  parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
  for count in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(part[-count:]) for part in parts]
    if len({*names}) == len(names):
      break
  return names


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a run that make it another: not the machine's."""
  leaves = workdir.leaves(config)
  return {name: value for name, value in leaves if not name.startswith(workdir.MAY_DIFFER)}


def grouped(members: Sequence[Member]) -> tuple[RunGroup, ...]:
  """Runs that differ by seed alone, together."""
  groups: dict[str, list[Member]] = {}
  for member in members:
    fields = compared(member.facts.config) | {'seed': None}
    groups.setdefault(files.as_json(fields), []).append(member)
  firsts = [group[0] for group in groups.values()]
  differing = differing_fields(firsts)
  return tuple(
    RunGroup(group_name(group, index, differing), tuple(group))
    for index, group in enumerate(groups.values())
  )


def repeated_seeds(group: RunGroup) -> list[str]:
  """Lines on runs of a group that have the same seed too, and so add nothing to its spread."""
  names: dict[Any, list[str]] = {}
  for member in group.members:
    names.setdefault(member.facts.config.get('seed'), []).append(member.name)
  return [
    f'{" and ".join(same)} have the same config and seed {seed}'
    for seed, same in names.items()
    if len(same) > 1
  ]


def group_name(group: Sequence[Member], index: int, differing: Mapping[str, list[Any]]) -> str:
  """A run's name; of several, in what they differ from the other groups."""
  if len(group) == 1:
    return group[0].name
  fields = {name: values[index] for name, values in differing.items() if name != 'seed'}
  named = ', '.join(f'{name.rpartition(".")[2]} {value}' for name, value in fields.items())
  return f'{named if 0 < len(fields) <= NAMED else group[0].name} ({len(group)} seeds)'


def differing_fields(members: Sequence[Member]) -> dict[str, list[Any]]:
  """By dotted name the fields in which runs differ, a value for each; None where one has none."""
  configs = [compared(member.facts.config) for member in members]
  names = dict.fromkeys(itertools.chain.from_iterable(configs))
  values = {name: [config.get(name) for config in configs] for name in names}
  return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


# Pairs of groups


def pairs(groups: Sequence[RunGroup]) -> list[tuple[RunGroup, RunGroup]]:
  """Those that are tested: all, or of many groups each with the first."""
  if len(groups) <= ALL_PAIRS:
    return list(itertools.combinations(groups, 2))
  return [(groups[0], group) for group in groups[1:]]


def test(first: RunGroup, second: RunGroup) -> Test:
  """Whether two groups differ on the images that both were measured on."""
  members = [*first.members, *second.members]
  reason = next(filter(None, (pair_fault(members[0], m) for m in members)), '')
  if reason:
    return Test(first.name, second.name, None, reason)
  return Test(first.name, second.name, paired.compare(first.right(), second.right()))


def pair_fault(first: Member, second: Member) -> str:
  """Why two runs were not measured on the same images; '' if they were."""
  for member in (first, second):
    if not member.values.get('images', {}).get('index'):
      return f'{member.name} has no evaluation with a row for each image'
  a, b = first.values, second.values
  if (a['source'], a['split']) != (b['source'], b['split']):
    sources = [f'split {v["split"]} of {without_folders(v["source"])}' for v in (a, b)]
    return f'{first.name} was measured on {sources[0]}, {second.name} on {sources[1]}'
  if a['images']['index'] != b['images']['index'] or labels(a) != labels(b):
    return f'{first.name} and {second.name} were measured on other images, or with other labels'
  return ''


def labels(values: Mapping[str, Any]) -> list[str]:
  """The label of each image of an evaluation by name; '' of none."""
  names = [row['name'] for row in values['classes']] + ['']
  return [names[label] for label in values['images']['label']]


def disagreements(groups: Sequence[RunGroup]) -> list[int]:
  """Rows of images that not all groups have equally right, the most differing first.

  None where the runs were not measured on the same images.
  """
  members = [member for group in groups for member in group.members]
  if len(groups) < 2 or any(pair_fault(members[0], member) for member in members):
    return []
  spread = np.ptp([group.right() for group in groups], axis=0)
  rows = np.argsort(-spread, kind='stable')
  return rows[spread[rows] > 0].tolist()


def with_photos(comparison: Comparison) -> Comparison:
  """The same with the photos of the first disagreements."""
  facts, rows = comparison.members[0].facts, comparison.disagreements[:SHOWN]
  if not rows or facts.measured is None:
    return comparison
  index = facts.measured['images']['index']
  try:
    on, split = facts.measured['source'], facts.measured['split']
    data, transform = inputs.open_split(facts.folder, on=on, split=split), transform_of(facts)
    read_photo = functools.partial(photo_of, data, transform)
    pictures = {row: read_photo(index[row]) for row in rows}
    named = {row: data.source.describe(index[row]) for row in rows}
  except (*ERRORS, IndexError) as error:
    line = f'the images could not be shown: {one_line(error)}'
    return dataclasses.replace(comparison, left_out=[*comparison.left_out, line])
  names = {row: without_folders(name, root_of(data.name)) for row, name in named.items()}
  return dataclasses.replace(comparison, photos=Photos(pictures, names))


def photo_of(
  data: inputs.Split, transform: Callable[[np.ndarray, np.random.Generator], np.ndarray], index: int
) -> str:
  """An image as the model took it, as a `data:` URL."""
  return photos.photo(transform(data.source[index]['image'], np.random.default_rng(0)))


def guesses(member: Member) -> list[str]:
  """What a run took each image for."""
  images = Images.of(member.values)
  return [images.names[guess] for guess in images.guess] if images else []


# Numbers


def mean_text(values: Sequence[float], text: Callable[[float], str]) -> str:
  """One value, or a mean with the sample standard deviation of several."""
  if len(values) == 1:
    return text(values[0])
  return f'{text(statistics.mean(values))} ± {text(statistics.stdev(values))}'


def test_line(test: Test) -> str:
  """A test in a sentence."""
  if test.result is None:
    return f'{test.first} and {test.second}: not tested, as {test.reason}.'
  result = test.result
  images = quantity(result.better + result.worse, 'image')
  return (
    f'{test.second} against {test.first}: {100 * result.difference:+.2f} points; better on '
    f'{result.better:,} and worse on {result.worse:,} of the {images} that they differ on; '
    f'p {p_text(result.p)} by {result.test}.'
  )


def p_text(p: float) -> str:
  """'= 0.031', or '< 0.001'."""
  return '< 0.001' if p < 0.001 else f'= {p:.2g}'


def as_json(comparison: Comparison) -> dict[str, Any]:
  """All of it as JSON."""
  return files.finite(
    {
      'groups': [
        {
          'name': group.name,
          'runs': [
            {
              'name': m.name,
              'seed': m.facts.config.get('seed'),
              'state': m.state,
              'step': m.values.get('step'),
              'source': m.values.get('source'),
              'split': m.values.get('split'),
              'measures': results.numbers(m.values),
            }
            for m in group.members
          ],
          'means': {name: statistics.mean(values) for name, values in group.numbers().items()},
          'deviations': {
            name: statistics.stdev(values) if len(values) > 1 else math.nan
            for name, values in group.numbers().items()
          },
        }
        for group in comparison.groups
      ],
      'fields': dict(comparison.fields),
      'tests': [
        {'first': test.first, 'second': test.second, 'reason': test.reason}
        | (dataclasses.asdict(test.result) if test.result else {})
        for test in comparison.tests
      ],
      'disagreements': comparison.disagreements,
      'left_out': comparison.left_out,
    }
  )
