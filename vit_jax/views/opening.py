"""What a report opens with: how the run goes while it trains, and a sentence on what was right."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.text import percent, quantity
from vit_jax.views.facts import Facts
from vit_jax.views.html import escape

NAMED = 5  # classes in the sentence
RELOAD = 20  # seconds until a page of a run that trains is read again
PATIENT = 600  # seconds at least without a newer page, after which it is not read again


def lead(facts: Facts) -> str:
  """How the run goes, and what was right, as HTML."""
  progress, right = progress_text(facts), verdict(facts.measured or {})
  parts = f'<p class="live" role="status">{escape(progress)}</p>' * bool(progress)
  return parts + f'<p class="verdict">{escape(right)}</p>' * bool(right)


def refresh(facts: Facts) -> str:
  """What has a page of a run that trains read itself again, without and with scripts."""
  if not facts.is_live:
    return ''
  patience = max(PATIENT, 3 * seconds_between(facts))
  written = int(facts.written.timestamp())
  return (
    f'<noscript><meta http-equiv="refresh" content="{RELOAD}"></noscript>'
    f'<meta name="live" content="{RELOAD},{written},{patience}">'
  )


def seconds_between(facts: Facts) -> int:
  """The time from one validation to the next, as far as the rates tell; 0 where they do not."""
  steps, _ = facts.curve('validation/count')
  _, rates = facts.curve('train/images_per_second')
  batch = facts.config.get('batch_size')
  if len(steps) < 2 or not len(rates) or type(batch) is not int or rates[-1] <= 0:
    return 0
  return math.ceil((steps[-1] - steps[-2]) * batch / rates[-1])


def progress_text(facts: Facts) -> str:
  """How far a run is that is not finished; '' of one that is."""
  status = facts.status
  state = status.get('state')
  if state is None or state == 'finished':
    return ''
  parts = [{'stopped': 'Stopped', 'failed': 'Failed'}.get(state, 'Training')]
  if status.get('stale'):
    parts = ['The process that trained it is gone']
  step, total, saved = (status.get(name) for name in ('step', 'total', 'last_save'))
  if type(step) is int and type(total) is int and total:
    parts.append(f'step {step:,} of {total:,} ({step / total:.0%})')
  eta = status.get('eta_seconds')
  if facts.is_live and isinstance(eta, int | float):
    parts.append(f'{time_text(eta)} to go')
  parts.append(f'last saved at step {saved:,}' if type(saved) is int else 'not saved yet')
  if message := status.get('message'):
    parts.append(str(message))
  written = f'Written {facts.written:%Y-%m-%d %H:%M:%S} UTC'
  again = ', read again by itself' if facts.is_live else '; the same command resumes'
  return f'{", ".join(parts)}. {written}{again}.'


def time_text(seconds: float) -> str:
  """About how long: 5025 -> '1 h 24 min'."""
  minutes = round(seconds / 60)
  if minutes >= 60:
    return f'{minutes // 60} h {minutes % 60} min'
  return f'{minutes} min' if minutes else f'{math.ceil(seconds)} s'


def verdict(values: Mapping[str, Any]) -> str:
  """What was right, what never, and what always saying one class would give; '' of other tasks."""
  classes = values.get('classes')
  if not classes or values.get('accuracy') is None:
    return ''
  count = values['count']
  right = round(values['accuracy'] * count)
  text = f'{right:,} of {quantity(count, "image")} right ({percent(values["accuracy"])})'
  if never := [row for row in classes if row['count'] and not row['recall']]:
    text += f'; never: {listed(never)}'
  if values.get('confusion') is None and not is_one_label(values):
    return f'{text}.'
  largest = max(classes, key=lambda row: row['count'])
  return f'{text}. Always saying {largest["name"]} would give {percent(largest["count"] / count)}.'


def is_one_label(values: Mapping[str, Any]) -> bool:
  """Whether each image counts for one class."""
  return sum(row['count'] for row in values['classes']) == values['count']


def listed(rows: Sequence[Mapping[str, Any]]) -> str:
  """Classes with how many images each has, the first few by name."""
  names = [f'{row["name"]} ({quantity(row["count"], "image")})' for row in rows[:NAMED]]
  others = f' and {len(rows) - NAMED:,} more' if len(rows) > NAMED else ''
  return f'{", ".join(names)}{others}'
