"""What a run reports: JSON lines, TensorBoard, a progress bar, rates, a summary of the model."""

import contextlib
import functools
import json
import math
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from vit_jax import files, optim, text
from vit_jax.guards import allocation, stopping, writing
from vit_jax.guards.waiting import waiting
from vit_jax.guards.writing import Appender
from vit_jax.models import Tree
from vit_jax.sources import tfrecord

T = TypeVar('T')

# bfloat16 matrix FLOP/s of one device, dense, from the makers' data sheets.
PEAK_FLOPS = {  # the first name found in a device's kind counts
  'H100 PCIe': 756e12,
  'H100 NVL': 835e12,
  'H100': 989e12,
  'H200': 989e12,
  'A100': 312e12,
  'TPU v3': 61.5e12,  # a device is one of a chip's two cores
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,  # v5p
  'TPU v6 lite': 918e12,
  'TPU7x': 1153.5e12,  # a device is one of a chip's two cores
}

FILE = 'metrics.jsonl'  # in the folder of a run
RECENT = 0.04  # weight of a step in the means of a bar: some fifty steps count
UNSHOWN = ('grad_norm', 'learning_rate', 'bad_images')  # in a line about training


def peak_flops() -> float | None:
  """bfloat16 FLOP/s of one of this machine's devices; None where it is not in the table."""
  kind = jax.devices()[0].device_kind
  return next((peak for name, peak in PEAK_FLOPS.items() if name in kind), None)


def utilization(flops: int, images_per_second: float) -> dict[str, float]:
  """'mfu', the fraction of the devices' peak that a model's matmuls take; {} if not known.

  The FLOPs are those of an image in an update, see `Plan.update_flops`.
  """
  if not (flops and (peak := peak_flops())):
    return {}
  return {'mfu': flops * images_per_second / (peak * jax.device_count())}


class Logger(Protocol):
  """What a config's `system.logger` gives."""

  def write(self, step: int, values: dict[str, float]) -> None: ...

  def close(self) -> None: ...


class Log:
  """Metrics by step, to `metrics.jsonl` and TensorBoard events in a folder.

  A run resumes from its checkpoint, at step `start`: what was written after it is taken out first.
  What a disk refuses, or does not answer to, waits in memory, and what another logger raises is
  told: neither ends a run, unless `settle` asks for it, or the memory for them is full.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    start: int = 0,
    others: Sequence[Logger] = (),
    say: Callable[[str], object] = text.to_stderr,
  ):
    self.others, self.say, self.failed = others, say, list[Logger]()
    self.path = pathlib.Path(folder) / FILE
    self.writes = jax.process_index() == 0
    if not self.writes:
      return
    self.rewrite([row for row in read_rows(self.path) if row['step'] <= start])
    self.rows = Appender(self.path, say)
    name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'
    self.events = Appender(self.path.with_name(name), say)
    self.events.write(*first_events(start + 1))

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds {'train/loss': ...} at a step; the first process alone writes."""
    if not self.writes:
      return
    row = {'step': step, **{name: plain(value) for name, value in values.items()}}
    if self.rows.is_full():
      self.settle()
    self.rows.write(f'{files.as_json(row)}\n'.encode())
    self.events.write(scalars_event(step, values))
    for logger in self.others:
      self.guarded(logger, functools.partial(logger.write, step, values))

  def flush(self) -> None:
    """Writes the rows that wait, where the disk takes them."""
    for appender in (self.rows, self.events) if self.writes else ():
      with contextlib.suppress(OSError):
        appender.flush()

  def rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Puts these rows into the file, whole or not at all."""
    with waiting(f'{self.path} to be written'), files.replacing(self.path) as file:
      file.write(''.join(files.as_json(row) + '\n' for row in rows).encode())

  def drop(self, split: str, step: int = 0) -> None:
    """Takes out what was measured on a split from a step on, which is about to be done again."""
    if not self.writes:
      return
    self.settle()
    rows = read_rows(self.path)
    previous = [row for row in rows if row['step'] < step or not has_split(row, split)]
    if previous != rows:
      writing.write_surely(self.path, functools.partial(self.rewrite, previous), self.say)

  def settle(self) -> None:
    """Returns when all rows are written; OSError if the disk refuses them for minutes."""
    if self.writes:
      self.flush()  # TensorBoard's are a copy: one try is enough
      writing.persistently(self.rows.flush, lambda error: None)  # which it has said

  def close(self) -> None:
    """Ends the other loggers, when what waits is written or has been tried."""
    self.flush()
    for logger in self.others if self.writes else ():
      self.guarded(logger, logger.close)

  def guarded(self, logger: Logger, action: Callable[[], object]) -> None:
    """Has another logger do something; its first error is told, and none ends the run."""
    try:
      action()
    except Exception as error:  # whatever others' code raises
      if logger not in self.failed:
        self.say(f'{type(logger).__name__}: {text.error_line(error)}; training goes on')
      self.failed.append(logger)


def first_events(start: int) -> Iterator[bytes]:
  """How a file of TensorBoard's begins; what other files have from step `start` on is hidden."""
  from tensorboardX.proto.event_pb2 import SessionLog

  yield event(file_version='brain.Event:2')
  yield event(step=start, session_log=SessionLog(status=SessionLog.START))


def scalars_event(step: int, values: Mapping[str, float]) -> bytes:
  """Numbers by their names, for TensorBoard."""
  from tensorboardX.proto.summary_pb2 import Summary

  scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
  return event(step=step, summary=Summary(value=scalars))


def event(**fields: object) -> bytes:
  """A record of TensorBoard's file."""
  from tensorboardX.proto.event_pb2 import Event

  return tfrecord.record(Event(wall_time=time.time(), **fields).SerializeToString())


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a metrics file; lines that were cut off or damaged are left out.

  Without the file there are none; OSError for what is no file, such as a folder or a pipe.
  """
  rows: list[dict[str, Any]] = []
  if not os.path.lexists(path):
    return rows
  with files.open_regular(path) as file:
    for line in file:
      with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line.decode(errors='replace'))
        if isinstance(row, dict) and type(step := row.get('step')) is int and 0 <= step < 2**53:
          rows.append(row)
  return rows


def has_split(row: Mapping[str, Any], split: str) -> bool:
  """Whether a row of the file holds what was measured on a split."""
  return any(name.startswith(f'{split}/') for name in row)


def model_results(rows: Sequence[Mapping[str, Any]], step: int | None) -> dict[str, dict[str, Any]]:
  """What was measured of the parameters of a step that became a run's model: the average if kept.

  Returns:
    'validation' and 'test', where they were measured at that step: 'step', and every number by its
    name; a value that is not finite is None. Where the average was measured, its numbers alone.
  """
  measured = {}
  for use in ('validation', 'test'):
    for row in rows:
      if row['step'] == step and has_split(row, use):
        prefix, average = f'{use}/', f'{use}/ema_'
        values = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        if ema := {k.removeprefix(average): v for k, v in row.items() if k.startswith(average)}:
          values = {k: v for k, v in values.items() if k in ('count', 'bad_images')} | ema
        measured[use] = {'step': step, **values}
  return measured


def model_step(
  config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ranks: Mapping[str, int]
) -> int | None:
  """The step whose parameters became the model, or would if the run ended here; None: not known.

  A finished run's `evaluation.json` has it; this is for others, and for those from before there was
  one. It is the step that was tested; without a test the best on validation if the run has
  patience, as `checkpoint.Checkpoints.rank` has it, and otherwise the last that was validated.
  """
  if tested := [row['step'] for row in rows if has_split(row, 'test')]:
    return tested[-1]
  validated = [row for row in rows if has_split(row, 'validation')]
  evaluation = config.get('evaluation', {})
  if not validated or not optim.steps(evaluation.get('patience', 0), epoch=1, total=1):
    return max((row['step'] for row in validated), default=None)
  name = evaluation['metric'].removeprefix('ema_')
  sign, name = ranks.get(name, 1), f'validation/{"ema_" * bool(config.get("ema"))}{name}'

  def rank(row: Mapping[str, Any]) -> tuple[float, int]:
    value = row.get(name)
    return (-math.inf if value is None else sign * value, -row['step'])

  return max(validated, key=rank)['step']


def plain(value: float) -> float | None:
  """A number as JSON can hold it, to seven digits; what is not finite becomes null."""
  return float(f'{float(value):.7g}') if math.isfinite(value) else None


class Meter:
  """Sums what steps measured since the last reading, and how the time went.

  `sums` are of the steps since the last reading that a run resumes after.
  """

  def __init__(
    self,
    read: Callable[[Mapping[str, Any]], dict[str, float]],
    sums: Mapping[str, Any] | None = None,
  ):
    self.read_sums = read
    self.begin(sums or {})

  def begin(self, sums: Mapping[str, Any]) -> None:
    self.sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    self.before = float(self.sums.get('count', 0))  # examples that took none of this time
    self.latest: dict[str, float] = {}
    self.waited, self.began = 0.0, time.perf_counter()

  def waiting(self, fetch: Callable[[], T]) -> T:
    """`fetch()`, its time counted as waiting for data."""
    began = time.perf_counter()
    result = fetch()
    self.waited += time.perf_counter() - began
    return result

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """The time inside counts towards no rate."""
    began = time.perf_counter()
    yield
    self.began += time.perf_counter() - began

  def add(self, sums: Mapping[str, Any], latest: dict[str, float]) -> None:
    """One step's sums, of a task, and values of which the last one counts."""
    for name, value in sums.items():
      self.sums[name] = self.sums.get(name, 0.0) + np.asarray(value, np.float64)
    self.latest = latest

  def state(self) -> dict[str, Any]:
    """The sums since the last reading, as JSON."""
    return {name: np.asarray(value).tolist() for name, value in self.sums.items()}

  def read(self) -> dict[str, float]:
    """The task's numbers, rates and last values since the last reading."""
    seconds = max(time.perf_counter() - self.began, 1e-9)
    values = self.read_sums(self.sums)
    values['images_per_second'] = (values.pop('count') - self.before) / seconds
    values['data_wait'] = self.waited / seconds
    values |= {name: float(value) for name, value in self.latest.items()}
    self.begin({})
    return values


def prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
  return {f'{prefix}/{name}': value for name, value in values.items()}


class Pace:
  """Means of the latest steps, from the first on: of the loss, and of the seconds of a step."""

  def __init__(self) -> None:
    self.loss, self.seconds, self.count = 0.0, 0.0, 0
    self.resume()

  def resume(self) -> None:
    """Begins to time the next step; what was before is no part of it."""
    self.began = time.perf_counter()

  def add(self, sums: Mapping[str, Any]) -> None:
    """Takes the sums of a step, 'loss' and 'count' among them, and the time since the last."""
    now, self.count = time.perf_counter(), self.count + 1
    weight = max(1 / self.count, RECENT)
    loss = float(sums['loss']) / max(float(sums['count']), 1)
    self.loss += weight * (loss - self.loss)
    self.seconds += weight * (now - self.began - self.seconds)
    self.began = now


class Display:
  """A live bar on a terminal, plain lines elsewhere, nothing on hosts but the first.

  The bar shows, from the first step on, the time that remains and the best validation, and where
  its line has room the mean loss of the latest steps, epoch and speed.

  Args:
    total: steps of the run.
    epoch: steps of an epoch.
    batch: images of a step.
  """

  def __init__(self, total: int, *, epoch: float, batch: int):
    from rich.console import Console

    self.console = Console(quiet=jax.process_index() > 0)
    self.total, self.epoch, self.batch = total, epoch, batch
    self.bars = text.progress_bars(console=self.console, eta=False)
    self.draw = text.drawing(self.bars)
    self.task = self.bars.add_task('', total=total, note='')
    self.pace, self.waits = Pace(), ''
    self.best: tuple[str, ...] = ('',)  # the best validation, in words of different length

  def __enter__(self) -> 'Display':
    self.bars.start()
    return self

  def __exit__(self, *_: object) -> None:
    self.bars.stop()

  def say(self, line: str) -> None:
    """A line that stays, above the bar."""
    self.console.print(text.message_line(line), highlight=False, markup=False, soft_wrap=True)

  def compiled(self, name: str, function: jax.stages.Wrapped, *args: Tree) -> Callable[..., Any]:
    """A jitted function compiled for such arguments; shows that, then says how long it took."""
    shown = self.bars.tasks[self.task]
    before, note = shown.description, shown.fields['note']
    self.bars.update(self.task, description=f'compiling the {name}', note='', refresh=True)
    if not self.console.is_terminal:
      self.say(f'compiling the {name} ...')
    began = time.perf_counter()
    with stopping.phase('compile'):
      result = function.lower(*args).compile()
      allocation.give_back()
    self.bars.update(self.task, description=before, note=note, refresh=True)
    self.say(f'compiled the {name} in {time.perf_counter() - began:.1f} s')
    return result

  def step(self, step: int, sums: Mapping[str, Any]) -> None:
    """Shows a step, of its sums."""
    self.pace.add(sums)
    self.bars.update(self.task, completed=step, note=self.note(step))
    self.draw()

  def resume(self, metric: str, best: float) -> None:
    """Times the next step from now on; the best validation is infinite where there is none yet."""
    forms = f'best {metric} {best:.4f}', f'best {best:.4f}'
    self.best = forms if math.isfinite(best) else ('',)
    self.pace.resume()

  def note(self, step: int) -> str:
    """What stands behind the bar: as much as its line has room for, the most important first."""
    pace, console = self.pace, self.console
    eta = f'ETA {text.clock(pace.seconds * (self.total - step))}'
    epochs = f'epoch {step / self.epoch:.2f}/{self.total / self.epoch:.4g}'
    rate = f'{self.batch / max(pace.seconds, 1e-9):,.0f} images/s'
    count = len(f' {self.total}/{self.total} ')
    room = console.width - text.bar_width(console) - count - 1
    best = next((form for form in self.best if len(f'{eta}  {form}') <= room), '')
    return text.fitting([eta, best, f'loss {pace.loss:.4f}', epochs, rate, self.waits], room)

  def show(self, step: int, values: dict[str, float]) -> None:
    """The latest numbers on a line, with the time that remains; a bar takes waits and MFU alone."""
    self.waits = f'data wait {values["data_wait"]:.1%}'
    if 'mfu' in values:
      self.waits += f'  MFU {values["mfu"]:.1%}'
    if self.console.is_terminal:
      return
    rates = ('images_per_second', 'data_wait', 'mfu')
    measures = {name: values[name] for name in values if name not in (*rates, *UNSHOWN)}
    eta = f'  ETA {self.pace.seconds * (self.total - step):.0f} s'
    rate = f'{values["images_per_second"]:,.0f} images/s'
    self.say(f'step {step}/{self.total}  {numbers(measures)}  {rate}  {self.waits}{eta}')


def numbers(values: Mapping[str, float]) -> str:
  """Measures on a line: 'loss 0.1234  accuracy 0.9876'."""
  return '  '.join(f'{name} {value:.4f}' for name, value in values.items())


def summary(params: Tree, forward: int, update: int) -> list[str]:
  """Lines of a table: the parameters by part; FLOPs of an image and an update, 0 if not known."""
  parts = dict(params)
  parts |= {f'encoder/{name}': part for name, part in parts.pop('encoder', {}).items()}
  rows = [
    (name, len(jax.tree.leaves(part)), f'{parameters(part):,}')
    for name, part in [*parts.items(), ('total', params)]
  ]
  flops = [f'{text.si(forward)} an image forward'] * bool(forward)
  flops += [f'{text.si(update)} an update'] * bool(update)
  lines = [*text.columns([('part', 'arrays', 'parameters'), *rows])]
  return lines + [f'FLOPs: {", ".join(flops)}'] * bool(flops)


def parameters(tree: Tree) -> int:
  """How many numbers a tree of arrays or shapes holds."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
