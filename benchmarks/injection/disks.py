"""A disk that is full, over its quota, broken, read-only, slow, or gone.

A fault begins at the ninth step, after two checkpoints. One that passes lasts three seconds, while
the run goes on; one that lasts is there until the process has ended, and mended before the same
line starts again. The run waits for its disk for 15 s, not five minutes.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from injection.cases import Case, Outcome, Trial, resumed
from injection.runs import DIGITS, Ended, Process
from vit_jax.guards import owner

# By SGD: Adam makes rounding as large as any gradient, where the true one is 0, as of key biases.
LONG = DIGITS.but(
  'long',
  duration='40 steps',
  evaluation__every='20 steps',
  checkpoint__every='4 steps',
  optimizer__name='sgd',
)
PASSES = 3.0  # seconds
# In the place of 300, 10 and 60 seconds
HASTE = ('writing.RETRY_FOR=15', 'writing.RETRY_EVERY=3', 'writing.PROBE=5')
BOUND = 45.0  # seconds from the fault to the end of a process that cannot save
SLOW = 10  # milliseconds that each write takes
HANGS = 3_600_000  # the same of a disk that does not answer


@functools.cache
def shim() -> pathlib.Path:
  """disk.c as a library; raises OSError without a compiler."""
  library = pathlib.Path(tempfile.mkdtemp(prefix='disk')) / 'disk.so'
  source = pathlib.Path(__file__).with_name('disk.c')
  command = ['gcc', '-shared', '-fPIC', '-O1', str(source), '-o', str(library), '-ldl']
  result = subprocess.run(command, capture_output=True, text=True)
  if result.returncode:
    raise OSError(result.stderr)
  return library


def no_shim() -> str:
  return '' if shutil.which('gcc') else 'there is no gcc'


@functools.cache
def no_mount() -> str:
  """Why no tmpfs can be mounted; '' where it can."""
  with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
    if mount(pathlib.Path(folder), '1m'):
      subprocess.run(['umount', folder], check=True)
      return ''
  return 'no tmpfs can be mounted: needs root on Linux'


def mount(folder: pathlib.Path, size: str) -> bool:
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
  return subprocess.run(command, capture_output=True).returncode == 0


@dataclasses.dataclass(frozen=True)
class Disk:
  """A run's place, and how it is broken and mended."""

  run: pathlib.Path
  env: dict[str, str]
  break_it: Callable[[], object]
  mend: Callable[[], object]


@contextlib.contextmanager
def failing(trial: Trial, number: int, milliseconds: int = 0) -> Iterator[Disk]:
  """Every call that writes into the run's folder fails with an errno, or takes its time."""
  fault = trial.run.with_name('fault')
  env = {'LD_PRELOAD': str(shim()), 'DISK_FOLDER': str(trial.run), 'DISK_FAULT': str(fault)}
  text = f'{number} {milliseconds}'
  try:
    yield Disk(
      trial.run, env, lambda: fault.write_text(text), lambda: fault.unlink(missing_ok=True)
    )
  finally:
    fault.unlink(missing_ok=True)


@contextlib.contextmanager
def full(trial: Trial) -> Iterator[Disk]:
  """The run lies on a real disk of 32 MiB, of which another program takes the rest."""
  trial.run.mkdir(parents=True)
  mount(trial.run, '32m')
  ballast = trial.run / 'ballast'

  def fill() -> None:
    with contextlib.suppress(OSError), ballast.open('wb', buffering=0) as file:
      while True:
        file.write(bytes(4096))

  try:
    yield Disk(trial.run / 'run', {}, fill, ballast.unlink)
  finally:
    subprocess.run(['umount', '-l', str(trial.run)], check=True)


@contextlib.contextmanager
def vanishing(trial: Trial) -> Iterator[Disk]:
  """The run's folder is renamed, and later renamed back in the place of what is there."""
  away = trial.run.with_name('away')
  shutil.rmtree(away, ignore_errors=True)

  def bring_back() -> None:
    shutil.rmtree(trial.run, ignore_errors=True)
    os.replace(away, trial.run)

  yield Disk(trial.run, {}, lambda: os.replace(trial.run, away), bring_back)


@contextlib.contextmanager
def removed(trial: Trial) -> Iterator[Disk]:
  yield Disk(trial.run, {}, lambda: shutil.rmtree(trial.run, ignore_errors=True), lambda: None)


Broken = Callable[[Trial], contextlib.AbstractContextManager[Disk]]


def passing(broken: Broken) -> Callable[[Trial], Outcome]:
  """The fault is over before the run is: the run ends as if there had been none."""

  def hurt(trial: Trial) -> Outcome:
    trial.lab.unhurt(LONG)
    with broken(trial) as disk:
      process = begin(trial, disk)
      process.until(lambda: False, limit=PASSES)
      disk.mend()
      ended = process.wait()
      return judged(trial, disk, process, ended, codes=(0,))

  return hurt


def lasting(
  broken: Broken,
  codes: tuple[int, ...] = (1,),
  *,
  state: str = '',
  bound: float = BOUND,
) -> Callable[[Trial], Outcome]:
  """The fault outlasts the process: that ends with a line, and the next start loses nothing.

  `state` is that of `status.json` then; '' where the disk may have kept another.
  """

  def hurt(trial: Trial) -> Outcome:
    trial.lab.unhurt(LONG)
    with broken(trial) as disk:
      process = begin(trial, disk)
      since = time.monotonic()
      ended = process.wait()
      seconds = process.start + ended.seconds - since
      status = owner.read(disk.run) if state else None
      disk.mend()
      outcome = judged(trial, disk, process, ended, codes=codes)
      faults = [f'ends after {seconds:.0f} s'] * (seconds > bound)
      if state and (status or {}).get('state') != state:
        faults.append(f'status.json says {status}'[:200])
      return dataclasses.replace(outcome, exit=seconds, faults=outcome.faults + faults)

  return hurt


def begin(trial: Trial, disk: Disk) -> Process:
  """A run whose disk has just been broken, at its ninth step."""
  words = ['injection.hastily', *HASTE, 'train', *LONG.words(disk.run)]
  process = trial.lab.cold(*words, **disk.env)
  process.until(process.says('^step 9/'))
  disk.break_it()
  return process


def judged(
  trial: Trial, disk: Disk, process: Process, ended: Ended, *, codes: tuple[int, ...]
) -> Outcome:
  faults = [] if ended.code in codes else [f'ends with {ended.code}: {ended.line}'[:200]]
  at_disk = dataclasses.replace(trial, run=disk.run)
  outcome = resumed(at_disk, LONG, process)
  refusal = ended.matching('(?i)no space|quota|input/output|read-only|could not be written')
  line = ended.line if ended.code else refusal
  return dataclasses.replace(outcome, faults=faults + outcome.faults, line=line)


def by_errno(number: int) -> Broken:
  return lambda trial: failing(trial, number)


PASSING = 'said on one line; training goes on, saves again, and ends as if nothing had been'
LASTING = 'ends with 1 and one line that names the newest checkpoint; the same line resumes there'
ERRNOS = {
  'a full disk': errno.ENOSPC,
  'a quota': errno.EDQUOT,
  'errors of the disk': errno.EIO,
  'a read-only disk': errno.EROFS,
}
CASES = [
  Case('disks/a full tmpfs, for 3 s', PASSING, 2, passing(full), no_mount),
  Case('disks/a full tmpfs', LASTING, 2, lasting(full, state='failed'), no_mount),
  *(
    case
    for name, number in ERRNOS.items()
    for case in [
      Case(f'disks/{name}, for 3 s', PASSING, 1, passing(by_errno(number)), no_shim),
      Case(f'disks/{name}', LASTING, 1, lasting(by_errno(number)), no_shim),
    ]
  ),
  Case(
    'disks/a disk that hangs for 3 s',
    'as if nothing had been',
    1,
    passing(lambda trial: failing(trial, 0, HANGS)),
    no_shim,
  ),
  Case(
    'disks/a disk that hangs',
    LASTING,
    1,
    lasting(lambda trial: failing(trial, 0, HANGS), bound=2 * BOUND),  # each look takes 5 s
    no_shim,
  ),
  Case(
    f'disks/writes of {SLOW} ms',
    'as if nothing had been',
    1,
    lasting(lambda trial: failing(trial, 0, SLOW), codes=(0,)),
    no_shim,
  ),
  Case('disks/the folder is renamed for 3 s', PASSING, 1, passing(vanishing)),
  Case('disks/the folder is renamed', LASTING, 2, lasting(vanishing)),
  Case('disks/the folder is removed', LASTING, 2, lasting(removed)),
]
