"""Several processes of one run, on loopback, one of which fails."""

import dataclasses
import errno
import pathlib
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from injection.cases import Case, Outcome, Trial
from injection.devices import far
from injection.disks import LONG, failing, no_shim
from injection.runs import PHOTOS, Ended, Lab, Process, Recipe, differences, last_row

BOUND = 30.0  # seconds from the fault of one process to the end of the others
LATE = 8.0  # seconds that the last process comes after the first
SILENT_FLAGS = ('--num_processes=2', '--process_id=0', '--initialization_timeout=8')
ONE_READER = PHOTOS.but('photos of two', system__workers=0)


def free_address() -> str:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{probe.getsockname()[1]}'


def together(
  lab: Lab,
  run: pathlib.Path,
  count: int,
  recipe: Recipe = LONG,
  *,
  odd: Sequence[str] = (),
  late: float = 0.0,
  elsewhere: pathlib.Path | None = None,
  env: Mapping[str, str] | None = None,
) -> list[Process]:
  """Starts all processes of a run.

  Args:
    odd: flags of the last process alone.
    late: seconds that it is started after the others.
    elsewhere: the folder that it is started in.
    env: more of its environment.
  """
  address, processes = free_address(), []
  for index in range(count):
    is_last = index == count - 1
    time.sleep(late * is_last)
    flags = [f'--coordinator_address={address}', f'--num_processes={count}']
    flags += [f'--process_id={index}', *(odd if is_last else ())]
    words = ['vit_jax.main', *recipe.words(run), *flags]
    odd_env = dict(env or {}) if is_last else {}
    processes.append(lab.cold(*words, folder=elsewhere if is_last else None, **odd_env))
  return processes


def unhurt(lab: Lab, count: int) -> pathlib.Path:
  """A run of so many processes that nothing happens to."""
  name = f'{count} processes'
  if name not in lab.references:
    run = lab.folder / 'unhurt' / name
    for ended in [process.wait() for process in together(lab, run, count)]:
      if ended.code != 0:
        raise RuntimeError(f'the unhurt run of {name} fails: {ended}')
    lab.references[name] = run
  return lab.references[name]


def again(trial: Trial, count: int) -> tuple[Outcome, list[Ended]]:
  """The outcome of the same line on all hosts once more."""
  trained, began = last_row(trial.run), time.monotonic()
  ends = [process.wait() for process in together(trial.lab, trial.run, count)]
  seconds = time.monotonic() - began
  faults = [fault for ended in ends for fault in ended.rudeness()]
  if codes := [ended.code for ended in ends if ended.code != 0]:
    return Outcome([*faults, f'then ends with {codes}: {ends[0].line}'[:200]]), ends
  faults += differences(trial.run, unhurt(trial.lab, count))
  return Outcome(faults, lost=ends[0].repeated(trained), recovery=seconds), ends


def curve(count: int) -> Callable[[Trial], Outcome]:
  def hurt(trial: Trial) -> Outcome:
    one = dataclasses.replace(LONG, name=f'one process, {count} devices', devices=count)
    return Outcome(far(unhurt(trial.lab, count), trial.lab.unhurt(one)))

  return hurt


def hurt_one(count: int, index: int, number: int) -> Callable[[Trial], Outcome]:
  """Sends a signal to one process at its second step: the others end, and say whose fault it is."""

  def hurt(trial: Trial) -> Outcome:
    unhurt(trial.lab, count)
    processes = together(trial.lab, trial.run, count)
    processes[0].until(processes[0].says('^step 2/'))
    processes[index].send(number)
    since = time.monotonic()
    others = [process for place, process in enumerate(processes) if place != index]
    ends = [process.wait(3 * BOUND) for process in others]
    seconds = max(p.start + ended.seconds - since for p, ended in zip(others, ends))
    processes[index].kill_session()
    processes[index].wait()
    faults = [fault for ended in ends for fault in ended.rudeness()]
    faults += [f'ends with {ended.code}: {ended.line}'[:200] for ended in ends if ended.code != 1]
    faults += [f'ends after {seconds:.0f} s'] * (seconds > BOUND)
    name = f'process {index} of {count}'
    faults += [f'does not name {name}: {e.line}'[:200] for e in ends if not e.matching(name)]
    outcome, _ = again(trial, count)
    line = ends[0].matching(name) or ends[0].line
    return dataclasses.replace(outcome, faults=faults + outcome.faults, exit=seconds, line=line)

  return hurt


def without_room(trial: Trial) -> Outcome:
  """The disk of the second process is full for some of its saves: both save later, and finish."""
  unhurt(trial.lab, 2)
  with failing(trial, errno.ENOSPC) as disk:
    processes = together(trial.lab, trial.run, 2, env=disk.env)
    processes[0].until(processes[0].says('^step 2/'))
    disk.break_it()
    processes[0].until(processes[0].says('^step 14/'))
    disk.mend()
    ends = [process.wait() for process in processes]
  faults = [fault for ended in ends for fault in ended.rudeness()]
  faults += [f'ends with {ended.code}: {ended.line}'[:200] for ended in ends if ended.code != 0]
  line = ends[0].matching('No space left')
  faults += ['nothing is said of the disk'] * (not line)
  return Outcome(faults or differences(trial.run, unhurt(trial.lab, 2)), line=line)


def asked_to_stop(number: int, index: int) -> Callable[[Trial], Outcome]:
  """Sends a signal to one of two processes: both stop at one step, saved."""

  def hurt(trial: Trial) -> Outcome:
    unhurt(trial.lab, 2)
    processes = together(trial.lab, trial.run, 2)
    processes[0].until(processes[0].says('^step 2/'))
    processes[index].send(number)
    since = time.monotonic()
    ends = [process.wait() for process in processes]
    seconds = max(p.start + ended.seconds - since for p, ended in zip(processes, ends))
    faults = [fault for ended in ends for fault in ended.rudeness()]
    faults += [f'ends with {ended.code}: {ended.line}'[:200] for ended in ends if ended.code != 0]
    outcome, _ = again(trial, 2)
    line = ends[0].matching('stopped at step') or ends[0].line
    return dataclasses.replace(outcome, faults=faults + outcome.faults, exit=seconds, line=line)

  return hurt


def late(trial: Trial) -> Outcome:
  reference = unhurt(trial.lab, 2)
  ends = [process.wait() for process in together(trial.lab, trial.run, 2, late=LATE)]
  faults = [fault for ended in ends for fault in ended.rudeness()]
  faults += [f'ends with {ended.code}: {ended.line}'[:200] for ended in ends if ended.code != 0]
  return Outcome(faults or differences(trial.run, reference), line=ends[0].line)


def silent(trial: Trial) -> Outcome:
  """The second process never comes."""
  flags = [f'--coordinator_address={free_address()}', *SILENT_FLAGS]
  ended = trial.lab.cold('vit_jax.main', *LONG.words(trial.run), *flags).wait()
  faults = ended.rudeness()
  faults += [f'ends with {ended.code}: {ended.line}'[:200]] * (ended.code not in (1, 2))
  faults += [f'ends after {ended.seconds:.0f} s'] * (ended.seconds > BOUND)
  faults += [f'does not name process 1: {ended.line}'[:200]] * (not ended.matching('process 1'))
  return Outcome(faults, exit=ended.seconds, line=ended.line)


def refused(ends: Sequence[Ended], pattern: str, since: float) -> Outcome:
  """All processes end with 2 and a line that matches."""
  faults = [fault for ended in ends for fault in ended.rudeness()]
  faults += [f'ends with {ended.code}: {ended.line}'[:200] for ended in ends if ended.code != 2]
  faults += [f'no line has {pattern}: {e.line}'[:200] for e in ends if not e.matching(pattern)]
  line = ends[0].matching(pattern) or ends[0].line
  return Outcome(faults, line=line, exit=time.monotonic() - since)


def other_config(trial: Trial) -> Outcome:
  since = time.monotonic()
  processes = together(trial.lab, trial.run, 2, odd=['--config.seed=1'])
  return refused([process.wait() for process in processes], 'seed', since)


def other_data(trial: Trial) -> Outcome:
  """The second host's folder of photos lacks one."""
  elsewhere, since = trial.lab.folder / 'tries/elsewhere', time.monotonic()
  shutil.rmtree(elsewhere, ignore_errors=True)
  shutil.copytree(trial.lab.folder / 'photos', elsewhere / 'photos')
  (elsewhere / 'photos/class0/3.jpg').unlink()
  processes = together(trial.lab, trial.run, 2, ONE_READER, elsewhere=elsewhere)
  return refused([process.wait() for process in processes], 'process 1', since)


def across(counts: Sequence[int]) -> Callable[[Trial], Outcome]:
  """Stops a run by SIGTERM on so many processes, then so many, and lets the last ones finish."""

  def hurt(trial: Trial) -> Outcome:
    faults, steps = [], []
    for place, count in enumerate(counts):
      processes = together(trial.lab, trial.run, count)
      if place < len(counts) - 1:
        processes[0].until(processes[0].says(rf'^step {8 * place + 4}/'))
        processes[0].send(signal.SIGTERM)
      ends = [process.wait() for process in processes]
      faults += [fault for ended in ends for fault in ended.rudeness()]
      faults += [f'ends with {ended.code}: {ended.line}'[:200] for ended in ends if ended.code]
      steps.append(ends[0].resumed_step())
    if sorted(set(steps)) != steps:
      faults.append(f'resumed at {steps}')
    return Outcome(faults or far(trial.run, unhurt(trial.lab, 2)), count=len(counts) - 1)

  return hurt


DEAD = 'the others end with 1 within 30 s and name it; the same line makes the same bits'
CASES = [
  Case('hosts/2 processes, unhurt', 'the curve of one process', 1, curve(2)),
  Case('hosts/4 processes, unhurt', 'the curve of one process', 1, curve(4)),
  *(
    Case(f'hosts/{sent.name} to process {index} of {count}', DEAD, 1, hurt_one(count, index, sent))
    for count, index, sent in [
      (2, 0, signal.SIGKILL),
      (2, 1, signal.SIGKILL),
      (4, 2, signal.SIGKILL),
      (2, 0, signal.SIGSTOP),
      (2, 1, signal.SIGSTOP),
    ]
  ),
  *(
    Case(
      f'hosts/{number.name} to process {index} of 2',
      'both stop at one step, saved, with 0; the same line makes the same bits',
      1,
      asked_to_stop(number, index),
    )
    for number, index in [(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGINT, 0)]
  ),
  Case(
    'hosts/a full disk of process 1 of 2',
    'said on one line; both go on, and save when both can',
    1,
    without_room,
    no_shim,
  ),
  Case('hosts/a process that never comes', 'the other ends in time and names it', 1, silent),
  Case(f'hosts/a process that comes {LATE:.0f} s late', 'is waited for', 1, late),
  Case('hosts/another config on process 1', 'both end with 2 and name it', 1, other_config),
  Case('hosts/other data on process 1', 'both end with 2 and name the process', 1, other_data),
  Case('hosts/2, 1, 4, 2 processes', 'the same curve', 1, across((2, 1, 4, 2))),
]
