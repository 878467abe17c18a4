"""Real runs of `vit train` in processes of their own, and what they leave compared with another's.

A run is tiny: eight updates of a ViT with one layer, on digits or on 60 photos that two workers
read. It saves and logs at every step, so that every moment has something to lose.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from injection.warm import Forge, Fork
from vit_jax.guards import allocation

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 180.0  # seconds after which a process counts as hanging
GRACE = 10.0  # seconds in which the processes that it started have to end too
LONGEST = 300  # characters of a line
MARKER = 'commit_success.txt'  # of Orbax, which asks for it in buckets alone
SILENCE = 70.0  # seconds without a line: one comes after 60, on a machine that is not busy
VARIABLE = (  # columns of metrics.jsonl that depend on clocks, or on which files came back
  'train/images_per_second',
  'train/data_wait',
  'train/mfu',
  'train/bad_images',
)
STEPS = 8
TINY = {
  'image_size': (8, 8),
  'task': 'injection.ordered:classify',
  'model.patch': (4, 4),
  'model.width': 16,
  'model.depth': 1,
  'model.heads': 2,
  'model.mlp_dim': 32,
  'model.unroll': 1,
  'model.drop_path': 0.0,
  'batch_size': 32,
  'ema': 0.5,
  'duration': f'{STEPS} steps',
  'optimizer.name': 'adamw',
  'schedule.name': 'constant',
  'schedule.learning_rate': 1e-2,
  'schedule.warmup': '2 steps',
  'evaluation.every': '4 steps',
  'checkpoint.every': '1 steps',
  'checkpoint.keep_latest': 2,
  'system.log_every': '1 steps',
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a run is of: a name, and the fields in which it differs from TINY."""

  name: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  devices: int = 1

  def but(self, name: str, **fields: Any) -> 'Recipe':
    """Another of that name; `__` in a field stands for a dot."""
    changes = {field.replace('__', '.'): value for field, value in fields.items()}
    return dataclasses.replace(self, name=name, fields={**self.fields, **changes})

  def words(self, run: pathlib.Path) -> list[str]:
    fields = {**TINY, **self.fields}
    flags = [f'--config.{name}={value}' for name, value in fields.items()]
    return ['--config=digits', f'--workdir={run}', *flags]


DIGITS = Recipe('digits')
PHOTOS = DIGITS.but(
  'photos',
  data__source='folder:photos',
  data__test='',
  data__augment='inception_crop | flip',
  batch_size=16,
  system__workers=2,
)


@dataclasses.dataclass(frozen=True)
class Ended:
  """A process that is over: its exit code, None where it hung and was killed, and its lines."""

  code: int | None
  seconds: float
  out: list[str]
  err: list[str]
  orphans: int = 0  # processes of its session that outlived it
  silence: float = 0.0  # seconds, the longest time between two lines

  @property
  def line(self) -> str:
    """What it said last on standard error, or else that is not about the model's place."""
    lines = [line for line in self.err if line.strip()] or [line for line in self.out if line]
    return lines[-1] if lines else ''

  def matching(self, pattern: str) -> str:
    """The first line, of either stream, in which a pattern is found; '' without one."""
    return next((line for line in self.out + self.err if re.search(pattern, line)), '')

  def resumed_step(self) -> int:
    match = re.search(r'resumes at step (\d+)', '\n'.join(self.out))
    return int(match[1]) if match else 0

  def repeated(self, trained: int) -> int:
    """How many of the steps that had been trained, and logged, it trained again."""
    first = re.search(r'^step (\d+)/', '\n'.join(self.out), re.MULTILINE)
    return max(trained - int(first[1]) + 1, 0) if first else 0

  def rudeness(self) -> list[str]:
    """What no process may do: hang, show a traceback or a long line."""
    faults = ['hangs'] if self.code is None else []
    faults += [f'leaves running: {self.orphans}'] * (self.orphans > 0)
    faults += [f'says nothing for {self.silence:.0f} s'] * (self.silence > SILENCE)
    if self.code is not None and self.code < 0 and self.code != -signal.SIGKILL:
      faults.append(f'ended by {signal.Signals(-self.code).name}')
    if any('Traceback (most' in line for line in self.out + self.err):
      faults.append(f'a traceback: {self.line[:100]}')
    long = [line for line in self.out + self.err if len(line) > LONGEST]
    return faults + [f'a line of {len(line)} characters: {line[:60]}...' for line in long[:1]]


class Process:
  """A process that leads a session of its own; its lines are read as they come."""

  def __init__(self, popen: 'subprocess.Popen[str] | Fork'):
    self.start = self.heard = time.monotonic()
    self.silence = 0.0
    self.popen = popen
    self.ended: Ended | None = None
    self.out: list[str] = []
    self.err: list[str] = []
    streams = [(popen.stdout, self.out), (popen.stderr, self.err)]
    self.readers = [threading.Thread(target=self.read, args=pair, daemon=True) for pair in streams]
    for reader in self.readers:
      reader.start()

  @property
  def pid(self) -> int:
    return self.popen.pid

  def read(self, stream: IO[str], lines: list[str]) -> None:
    with stream:
      for line in stream:
        lines.append(line.rstrip('\n'))
        self.hear()
    self.hear()  # the end

  def hear(self) -> None:
    now = time.monotonic()
    self.silence, self.heard = max(self.silence, now - self.heard), now

  def alive(self) -> bool:
    return self.popen.poll() is None

  def send(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      self.popen.send_signal(number)

  def until(self, condition: Callable[[], object], limit: float = LIMIT) -> bool:
    """Waits for a condition; False where the process ended, or the limit passed, before."""
    end = time.monotonic() + limit
    while not condition():
      if not self.alive() or time.monotonic() > end:
        return bool(condition())
      time.sleep(0.002)
    return True

  def says(self, pattern: str) -> Callable[[], bool]:
    return lambda: any(re.search(pattern, line) for line in self.out + self.err)

  def workers(self) -> list[int]:
    """The process's children that read images."""
    return [pid for pid in children(self.pid) if b'spawn_main' in command_line(pid)]

  def wait(self, limit: float = LIMIT) -> Ended:
    """Its end; all of its session is killed, after the limit or with it."""
    if self.ended:
      return self.ended
    code: int | None
    try:
      code = self.popen.wait(limit)
    except subprocess.TimeoutExpired:
      code = None
    seconds = time.monotonic() - self.start
    orphans = 0 if code is None else outlived_by(self.pid)
    self.kill_session()
    self.popen.wait()
    for reader in self.readers:
      reader.join(5)
    self.ended = Ended(code, seconds, list(self.out), list(self.err), orphans, self.silence)
    return self.ended

  def kill_session(self) -> None:
    if self.ended:  # another may have its number
      return
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.pid, signal.SIGKILL)


def spawn(words: Sequence[str], env: Mapping[str, str], cwd: pathlib.Path) -> Process:
  """A process with all of its environment."""
  return Process(
    subprocess.Popen(
      list(words),
      env=dict(env),
      cwd=cwd,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      errors='replace',
      start_new_session=True,
    )
  )


def outlived_by(session: int) -> int:
  """How many processes of a session still run GRACE seconds after its first one."""
  end = time.monotonic() + GRACE
  while (count := sum(map(is_running, members(session)))) and time.monotonic() < end:
    time.sleep(0.02)
  return count


def members(session: int) -> list[int]:
  """The processes of a session, of Linux's /proc."""
  pids = [int(folder.name) for folder in pathlib.Path('/proc').iterdir() if folder.name.isdigit()]
  return [pid for pid in pids if session_of(pid) == session]


def session_of(pid: int) -> int:
  with contextlib.suppress(OSError):
    return os.getsid(pid)
  return -1


def is_running(pid: int) -> bool:
  """Whether a process is there and no zombie."""
  with contextlib.suppress(OSError):
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  return False


def children(pid: int) -> list[int]:
  """The processes that one has started, of Linux's /proc."""
  pids = []
  for task in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    with contextlib.suppress(OSError):
      pids += [int(word) for word in task.read_text().split()]
  return pids


def command_line(pid: int) -> bytes:
  with contextlib.suppress(OSError):
    return pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
  return b''


class Lab:
  """Where runs are made and hurt: a folder, an environment, and the unhurt runs by recipe."""

  def __init__(self, folder: pathlib.Path, *, compiled: str | None = None):
    self.folder = folder
    self.compiled = compiled or str(folder / 'compiled')  # programs, kept for the next processes
    self.references: dict[str, pathlib.Path] = {}
    self.seconds: dict[str, float] = {}
    self.processes: list[Process] = []
    self.forge: Forge | None = None
    for name in ('home', 'tmp', 'unhurt', 'tries', 'photos'):
      shutil.rmtree(folder / name, ignore_errors=True)
      (folder / name).mkdir(parents=True)
    write_photos(folder / 'photos')

  def environment(self, devices: int = 1, **more: str) -> dict[str, str]:
    """All of the environment of a process on so many CPU devices."""
    quick = '--xla_backend_optimization_level=0 --xla_force_host_platform_device_count='
    return {
      'PATH': os.environ['PATH'],
      'HOME': str(self.folder / 'home'),
      'TMPDIR': str(self.folder / 'tmp'),
      'LANG': 'C.UTF-8',
      'PYTHONPATH': f'{ROOT}:{ROOT / "benchmarks"}',
      'JAX_PLATFORMS': 'cpu',
      allocation.VARIABLE: allocation.TUNABLES,  # a fork that starts again would lose its socket
      'XLA_FLAGS': f'{quick}{devices}',
      'JAX_COMPILATION_CACHE_DIR': self.compiled,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
      **more,
    }

  def start(self, recipe: Recipe, run: pathlib.Path) -> Process:
    """The line that makes a run of a recipe, or resumes it; on one device without its imports."""
    words = ['vit_jax.main', *recipe.words(run)]
    return self.warm(*words) if recipe.devices == 1 else self.cold(*words, devices=recipe.devices)

  def warm(self, *words: str) -> Process:
    """`python -m WORDS`, forked from a process that has imported what a run needs."""
    self.forge = self.forge or Forge(self.environment(), str(self.folder))
    return self.add(Process(self.forge.start(words)))

  def cold(
    self, *words: str, devices: int = 1, folder: pathlib.Path | None = None, **env: str
  ) -> Process:
    """`python -m WORDS`."""
    environment = self.environment(devices, **env)
    return self.add(spawn([sys.executable, '-m', *words], environment, folder or self.folder))

  def add(self, process: Process) -> Process:
    self.processes.append(process)
    return process

  def close(self) -> None:
    """Ends what still runs."""
    for process in self.processes:
      process.kill_session()
    if self.forge:
      self.forge.close()

  def unhurt(self, recipe: Recipe) -> pathlib.Path:
    """The folder of a run of a recipe that nothing happens to, made once."""
    if recipe.name not in self.references:
      self.references[recipe.name] = run = self.folder / 'unhurt' / recipe.name
      self.whole(recipe, run)
    return self.references[recipe.name]

  def duration(self, recipe: Recipe) -> float:
    """Seconds that a run takes, its programs compiled before."""
    self.unhurt(recipe)
    if recipe.name not in self.seconds:
      with self.fresh('timed') as run:
        self.seconds[recipe.name] = self.whole(recipe, run).seconds
    return self.seconds[recipe.name]

  def whole(self, recipe: Recipe, run: pathlib.Path) -> Ended:
    ended = self.start(recipe, run).wait()
    if ended.code != 0 or ended.rudeness():
      raise RuntimeError(f'the unhurt run of {recipe.name} fails: {ended}')
    return ended

  @contextlib.contextmanager
  def fresh(self, name: str) -> Iterator[pathlib.Path]:
    """A path for a run, that is free now and again afterwards."""
    run = self.folder / 'tries' / name
    shutil.rmtree(run, ignore_errors=True)
    try:
      yield run
    finally:
      shutil.rmtree(run, ignore_errors=True)

  def without_place(self, line: str) -> str:
    """A line without the names of this folder and this machine."""
    for place in (f'{self.folder}/tries/', f'{self.folder}/'):
      line = line.replace(place, '')
    return re.sub(rf'\b{re.escape(socket.gethostname())}\b', 'HOST', line)

  def debris(self) -> list[str]:
    """Temporary files that are still there; they are removed."""
    names = sorted(path.name for path in (self.folder / 'tmp').iterdir())
    shutil.rmtree(self.folder / 'tmp')
    (self.folder / 'tmp').mkdir()
    return [f'in TMPDIR: {" ".join(names)}'[:200]] if names else []

  def repaired(self, recipe: Recipe, run: pathlib.Path, **options: Any) -> tuple[Ended, list[str]]:
    """The same line once more, and how what it leaves differs from the unhurt run."""
    ended = self.start(recipe, run).wait()
    faults = ended.rudeness()
    if ended.code != 0:
      return ended, [*faults, f'ends with {ended.code}: {ended.line[:200]}']
    return ended, faults + differences(run, self.unhurt(recipe), **options) + self.debris()


def stopped(run: pathlib.Path, copy: pathlib.Path, step: int) -> pathlib.Path:
  """A copy of a finished run as a stop at a step leaves it."""
  end = ('model', 'evaluation.json', 'report.html', 'report.png')
  later = [name.name for name in (run / 'checkpoints').iterdir() if int(name.name) > step]
  return shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*end, *later))


def write_photos(folder: pathlib.Path) -> None:
  """60 JPEGs of 24 x 24 pixels in three classes, each a gradient of its own."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for index in range(60):
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
    (folder / f'class{index % 3}').mkdir(exist_ok=True)
    photo = corners.resize((24, 24), Image.Resampling.BICUBIC)
    photo.save(folder / f'class{index % 3}' / f'{index}.jpg', quality=95)


# Comparison


def differences(
  run: pathlib.Path,
  unhurt: pathlib.Path,
  *,
  extras: str = r'a^',
  without: str = r'a^',
) -> list[str]:
  """How a run differs from another; [] where they are equal to the bit but for clocks.

  Args:
    extras: a pattern of the names of files that it may have beside the other's.
    without: a pattern of the names of files that are not compared.
  """
  faults = []
  names, expected = (
    {name for name in file_names(side) if not re.match(without, name)} for side in (run, unhurt)
  )
  if surplus := [name for name in sorted(names - expected) if not re.match(extras, name)]:
    faults.append(f'debris: {" ".join(surplus)}'[:200])
  if missing := sorted(expected - names):
    return [*faults, f'missing: {" ".join(missing)}'[:200]]
  for name in ('model/model.safetensors', 'model/config.json', 'config.json', 'data.json'):
    if (run / name).read_bytes() != (unhurt / name).read_bytes():
      faults.append(f'{name} differs')
  if any(name.startswith('checkpoints/') for name in expected):
    faults += [f'{name} differs' for name in different_arrays(run, unhurt)[:3]]
  if 'metrics.jsonl' in expected and rows_of(run) != rows_of(unhurt):
    faults.append(f'metrics.jsonl differs: {first_difference(rows_of(run), rows_of(unhurt))}')
  if evaluation_of(run) != evaluation_of(unhurt):
    faults.append('evaluation.json differs')
  pages = [run / name for name in expected if name.endswith('.html')]
  faults += [f'{page.name} is cut off' for page in pages if b'</html>' not in page.read_bytes()]
  return faults


def file_names(run: pathlib.Path) -> set[str]:
  """The names of a run's files; those that change from run to run, by kind.

  Without whole checkpoints but the newest: which of the others stay depends on which were made.
  """
  folders = [folder for folder in (run / 'checkpoints').glob('*') if folder.name.isdigit()]
  newest = max(folders, key=lambda folder: int(folder.name), default=None)
  older = {folder for folder in folders if folder != newest and (folder / 'seal.json').exists()}
  paths = (path for path in run.rglob('*') if path.is_file() and path.name != MARKER)
  return {normal_name(run, path) for path in paths if not older.intersection(path.parents)}


def normal_name(run: pathlib.Path, path: pathlib.Path) -> str:
  name = re.sub(r'^events\..*', 'events', str(path.relative_to(run)))
  return re.sub(r'/d/[0-9a-f]+$', '/d/*', name)


def rows_of(run: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl without what may vary."""
  lines = (run / 'metrics.jsonl').read_text('utf-8', 'replace').splitlines()
  rows = [as_object(line) for line in lines]
  return [{name: value for name, value in row.items() if name not in VARIABLE} for row in rows]


def as_object(line: str) -> dict[str, Any]:
  with contextlib.suppress(ValueError):
    if isinstance(row := json.loads(line), dict):
      return row
  return {'unreadable': line[:50]}


def last_row(run: pathlib.Path) -> int:
  """The newest step that was logged; 0 without one."""
  with contextlib.suppress(OSError):
    return max((row.get('step', 0) for row in rows_of(run)), default=0)
  return 0


def first_difference(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
  for row, other in zip(rows, others):
    if row != other:
      names = [name for name in {**row, **other} if row.get(name) != other.get(name)]
      return f'step {other.get("step")}: {" ".join(names)}'[:150]
  return f'{len(rows)} rows, not {len(others)}'


def evaluation_of(run: pathlib.Path) -> object:
  try:
    return json.loads((run / 'evaluation.json').read_text('utf-8'))
  except ValueError:
    return 'unreadable'


def different_arrays(run: pathlib.Path, other: pathlib.Path) -> list[str]:
  """The names of the arrays of the newest checkpoint that are not equal to the bit."""
  arrays, others = newest_state(run), newest_state(other)
  if arrays.keys() != others.keys():
    return [f'checkpoint, names of arrays: {sorted(arrays.keys() ^ others.keys())[:3]}']
  return [name for name in arrays if arrays[name].tobytes() != others[name].tobytes()]


def newest_state(run: pathlib.Path) -> dict[str, np.ndarray]:
  import jax
  import orbax.checkpoint as ocp

  steps = [int(f.name) for f in (run / 'checkpoints').iterdir() if f.name.isdigit()]
  folder = run / 'checkpoints' / str(max(steps))
  with ocp.PyTreeCheckpointer() as checkpointer:  # to NumPy, whatever devices it was saved from
    saved = checkpointer.metadata(folder / 'state').item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    tree = checkpointer.restore(folder / 'state', restore_args=as_numpy)
  leaves = jax.tree_util.tree_leaves_with_path({'step': max(steps), 'state': tree})
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
