"""What a report opens with: how the run goes while it trains, and a sentence on what was right."""

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.text import percent, quantity, without_folders
from vit_jax.views.facts import Facts
from vit_jax.views.html import escape

NAMED = 5  # classes in the sentence
RELOAD = 20  # seconds until a page of a run that trains is read again
PATIENT = 600  # seconds at least without a newer page, after which it is not read again
REFRESH = re.compile('<noscript><meta http-equiv="refresh".*?<meta name="live"[^>]*>')
TITLE_END = '</title>\n'  # after which those tags are
PROGRESS = re.compile('<p class="live" role="status">.*?</p>')


def lead(facts: Facts) -> str:
  """How the run goes, and what was right, as HTML."""
  progress = progress_text(facts.status, facts.written, is_live=facts.is_live)
  right = verdict(facts.measured or {})
  return as_progress(progress) + f'<p class="verdict">{escape(right)}</p>' * bool(right)


def as_progress(text: str) -> str:
  """The paragraph of how a run goes; '' without a text."""
  return f'<p class="live" role="status">{escape(text)}</p>' * bool(text)


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


def ended(page: str, status: Mapping[str, Any]) -> str:
  """The page of a run that trained, as its status now is; any other page as it is."""
  if not REFRESH.search(page):
    return page
  progress = progress_text(status, datetime.datetime.now(datetime.UTC), is_live=False)
  return with_progress(page, progress)


def resumed(page: str, facts: Facts) -> str:
  """The page of a run that had not finished, which now trains again; any other page as it is."""
  if not PROGRESS.search(page):
    return page
  progress = progress_text(facts.status, facts.written, is_live=True)
  return with_progress(page, progress, refresh(facts))


def with_progress(page: str, progress: str, refresh: str = '') -> str:
  """A page with another text of how its run goes, and other tags that have it read itself again."""
  page = REFRESH.sub('', page, count=1).replace(TITLE_END, TITLE_END + refresh, 1)
  return PROGRESS.sub(lambda _: as_progress(progress), page, count=1)


def seconds_between(facts: Facts) -> int:
  """The time from one validation to the next, as far as the rates tell; 0 where they do not."""
  steps, _ = facts.curve('validation/count')
  _, rates = facts.curve('train/images_per_second')
  batch = facts.config.get('batch_size')
  if len(steps) < 2 or not len(rates) or type(batch) is not int or rates[-1] <= 0:
    return 0
  return math.ceil((steps[-1] - steps[-2]) * batch / rates[-1])


def progress_text(status: Mapping[str, Any], written: datetime.datetime, *, is_live: bool) -> str:
  """How far a run is that is not finished, on a page written then; '' of one that is finished."""
  state = status.get('state')
  if state is None or state == 'finished':
    return ''
  parts = [{'stopped': 'Stopped', 'failed': 'Failed'}.get(state, 'Training')]
  if status.get('stale'):
    parts = ['The process that trained it is gone']
  step, total, save = (status.get(name) for name in ('step', 'total', 'last_save'))
  if type(step) is int and type(total) is int and total:
    parts.append(f'step {step:,} of {total:,} ({step / total:.0%})')
  eta = status.get('eta_seconds')
  if is_live and isinstance(eta, int | float):
    parts.append(f'{time_text(eta)} to go')
  saved = save.get('step') if isinstance(save, Mapping) else None
  parts.append(f'last saved at step {saved:,}' if type(saved) is int else 'not saved yet')
  if message := status.get('message'):
    parts.append(without_folders(str(message)))
  again = ', read again by itself' if is_live else '; the same command resumes'
  return f'{", ".join(parts)}. Written {written:%Y-%m-%d %H:%M:%S} UTC{again}.'


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
