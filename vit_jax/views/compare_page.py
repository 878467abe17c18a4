"""The page of several runs beside one another."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.evaluate import results
from vit_jax.text import quantity, without_folders
from vit_jax.views import charts, curves, html, photos, svg
from vit_jax.views.charts import Chart
from vit_jax.views.comparison import (
  SHOWN,
  Comparison,
  Member,
  RunGroup,
  guesses,
  labels,
  mean_text,
  test_line,
)
from vit_jax.views.html import escape, table
from vit_jax.views.report_page import measure_text

NOTHING = '—'
TITLES = {'train': 'training', 'validation': 'validation'}  # of charts, by what was logged


def as_html(comparison: Comparison) -> str:
  """One file that asks for no other."""
  sections = {
    'Results': results_section(comparison),
    'Fields that differ': fields_section(comparison),
    'Curves': curves_section(comparison),
    'Tests on the same images': tests_section(comparison),
    'Where they disagree': disagreements_section(comparison),
  }
  members = comparison.members
  left_out = ' '.join(f'{escape(line)}.' for line in comparison.left_out)
  is_small = min(members[0].facts.config.get('image_size') or [0]) < photos.SMALL
  return html.page(
    f'{quantity(len(members), "run")} compared',
    sections,
    lead=opening(comparison) + f'<p class="faint">{left_out}</p>' * bool(left_out),
    style=html.asset('compare.css') + photos.style(comparison.photos),
    is_small=is_small,
  )


def opening(comparison: Comparison) -> str:
  """A sentence on which group is best, by what its task ranks by, and by how much."""
  groups, ranks = comparison.groups, comparison.members[0].facts.ranks
  name = next(iter(ranks), '')
  means = {g.name: statistics.mean(g.numbers()[name]) for g in groups if name in g.numbers()}
  if len(groups) < 2 or len(means) < len(groups) or len(measured_on(comparison.members)) > 1:
    return ''
  first, second = sorted(groups, key=lambda group: -ranks[name] * means[group.name])[:2]
  if means[first.name] == means[second.name]:
    return ''
  return (
    f'<p class="verdict">Best by {escape(results.display_name(name))}: {escape(first.name)}, '
    f'{group_text(first, name)}; then {escape(second.name)}, {group_text(second, name)}.</p>'
  )


def results_section(comparison: Comparison) -> str:
  """What was measured of each group, with its spread, and of each run."""
  groups = comparison.groups
  names = measures(groups)
  rows = [
    (g.name, *(group_text(g, name) for name in names), ', '.join({m.state for m in g.members}))
    for g in groups
  ]
  titles = ('', *map(results.display_name, names), 'state')
  shown = table(titles, rows)
  on = ''.join(f'<p>{escape(line)}.</p>' for line in measured_on(comparison.members))
  if len(comparison.members) == len(groups):
    return on + shown
  runs = [(m.name, *(member_text(m, name) for name in names), m.state) for m in comparison.members]
  spread = (
    '<p class="faint">Runs that differ by their seed alone are one row: the mean ± the '
    'sample standard deviation.</p>'
  )
  each = f'<details><summary>each run</summary>{table(titles, runs)}</details>'
  return on + spread + shown + each


def measures(groups: Sequence[RunGroup]) -> list[str]:
  """The names of all that was measured of any group."""
  return list(dict.fromkeys(name for group in groups for name in group.numbers()))


def measured_on(members: Sequence[Member]) -> list[str]:
  """On what runs were measured, a line for each set of images."""
  sets: dict[str, list[str]] = {}
  for member in members:
    if values := member.values:
      source = without_folders(values['source'])
      images = f'{quantity(values["count"], "image")}, split {values["split"]} of {source}'
      sets.setdefault(images, []).append(member.name)
  if len(sets) == 1:
    return [f'Measured on {next(iter(sets))}']
  return [f'{", ".join(names)}: measured on {images}' for images, names in sets.items()]


def group_text(group: RunGroup, name: str) -> str:
  values = group.numbers().get(name)
  return mean_text(values, lambda v: measure_text(name, v)) if values else NOTHING


def member_text(member: Member, name: str) -> str:
  value = results.numbers(member.values).get(name)
  return NOTHING if value is None else measure_text(name, value)


def fields_section(comparison: Comparison) -> str:
  """The fields in which configs differ: a row for each, a column for each run."""
  if not comparison.fields:
    return '<p>None: the runs differ by the machine alone.</p>'
  names = [member.name for member in comparison.members]
  rows = [
    (name, *(field_text(value) for value in values)) for name, values in comparison.fields.items()
  ]
  return table(('field', *names), rows)


def field_text(value: Any) -> str:
  """A value of a config; absolute paths are their last part."""
  return without_folders(str(value)) if value not in ('', None) else NOTHING


def curves_section(comparison: Comparison) -> str:
  """The curves of all groups over one another."""
  bands = any(len(group.members) > 1 for group in comparison.groups)
  note = '<p class="faint">Of several seeds: the mean, and a band from lowest to highest.</p>'
  return note * bands + svg.gallery(run_charts(comparison.groups))


def run_charts(groups: Sequence[RunGroup]) -> list[Chart]:
  """A chart for each logged name: validation's measures, then training's loss and rate."""
  ranks = dict.fromkeys(name for g in groups for m in g.members for name in m.facts.ranks)
  names = [f'validation/{name}' for name in dict.fromkeys(('loss', *ranks))]
  return [chart(groups, name) for name in (*names, 'train/loss', 'train/learning_rate')]


def chart(groups: Sequence[RunGroup], name: str) -> Chart:
  """What was logged under a name: a line for each group."""
  split, _, measure = name.partition('/')
  lines, bands = {}, {}
  for group in groups:
    steps, values = common_curve(group, name)
    xs, ys = charts.thinned(steps, values.mean(0))
    lines[group.name] = xs, ys
    if len(group.members) > 1:
      at = np.searchsorted(steps, xs)
      bands[group.name] = values.min(0)[at], values.max(0)[at]
  epochs = {curves.steps_of_epoch(m.facts) for g in groups for m in g.members}
  return Chart(
    f'{TITLES[split]} {results.display_name(measure)}'.strip().capitalize(),
    lines,
    results.is_fraction(measure),
    bands=bands,
    epoch=epochs.pop() if len(epochs) == 1 else 0,
  )


def common_curve(group: RunGroup, name: str) -> tuple[np.ndarray, np.ndarray]:
  """The steps (S,) at which all runs of a group logged a name, and their values (R, S)."""
  logged = [dict(zip(*member.facts.curve(name))) for member in group.members]
  steps = sorted(set.intersection(*map(set, logged)))
  values = [[run[step] for step in steps] for run in logged]
  return np.array(steps, float), np.array(values, float).reshape(len(logged), len(steps))


def tests_section(comparison: Comparison) -> str:
  """Each test in a sentence, and what they do not say."""
  if not comparison.tests:
    return '<p>There is one group of runs, which differ by their seed alone.</p>'
  lines = ''.join(f'<li>{escape(test_line(t))}</li>' for t in comparison.tests)
  note = (
    '<p class="faint">p is how often models that are equally good differ so much on other images '
    'of the same kind. It says nothing of other seeds, for which see the spread, and is not '
    'corrected for the number of tests.</p>'
  )
  return f'<ul>{lines}</ul>{note}'


def disagreements_section(comparison: Comparison) -> str:
  """Photos on which some are right and others wrong, with what each says."""
  rows = comparison.disagreements
  if not rows:
    return '<p>No image, or not measured on the same images.</p>'
  shown = [row for row in rows[:SHOWN] if row in comparison.photos.uris]
  truth = labels(comparison.members[0].values)
  says = {g.name: [guesses(member) for member in g.members] for g in comparison.groups}
  figures = ''.join(
    f'<figure>{photos.thumbnail(comparison.photos, row, truth[row])}<figcaption>'
    f'<b>{escape(truth[row])}</b>{verdicts(says, row, truth[row])}</figcaption></figure>'
    for row in shown
  )
  count = f'{quantity(len(rows), "image")}, of which {len(shown)} are shown'
  return f'<p>{count}, those first that differ most.</p><div class="strip">{figures}</div>'


def verdicts(says: Mapping[str, Sequence[Sequence[str]]], row: int, truth: str) -> str:
  """What each group's runs take an image for, a line for each."""
  return ''.join(verdict(name, [run[row] for run in runs], truth) for name, runs in says.items())


def verdict(name: str, said: Sequence[str], truth: str) -> str:
  """What the runs of a group take an image for, and whether all, some or none are right."""
  right = [guess == truth for guess in said]
  mark, style = ('✓', 'right') if all(right) else ('±', 'mixed') if any(right) else ('✗', 'wrong')
  return f'<br><span class="{style}">{mark} {escape(name)}: {escape(", ".join(said))}</span>'
