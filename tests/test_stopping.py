"""Signals, in real processes: what the first and the second do in each phase, and what remains."""

import os
import signal
import subprocess
import sys

import pytest

from tests.test_run import ROOT
from vit_jax.guards import stopping, streams

# A command that waits in a phase, as the test's words say, and has a file that must not remain.
WAITING = """
import contextlib, pathlib, signal, sys, time, weakref
from vit_jax import commands, files
from vit_jax.guards import stopping

phases, obeys, debris = sys.argv[1].split(), sys.argv[2], pathlib.Path(sys.argv[3])
stopping.GRACE = 0.2
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run below nohup

class Item:
  pass

def wait():
  print('ready', flush=True)
  while not stopping.asked():
    time.sleep(0.01)

def main():
  debris.touch()
  stopping.at_exit(lambda: debris.unlink(missing_ok=True))
  with contextlib.ExitStack() as stack:
    for phase in phases:
      stack.enter_context(stopping.phase(phase))
    if obeys == 'in C++':  # where the main thread gets no signal
      signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
      print('ready', flush=True)
      time.sleep(60)
    elif obeys == 'in a callback':  # where Python drops what is raised
      item = Item()
      finalizer = weakref.ref(item, lambda _: wait())
      del item
      time.sleep(60)
    elif obeys == 'in an import':
      (debris.parent / 'slow.py').write_text('import __main__; __main__.wait()')
      sys.path.insert(0, str(debris.parent))
      with files.replacing(debris.with_name('part')), files.hidden_folder(debris.parent):
        try:
          import slow
        except KeyboardInterrupt:  # as a C extension swallows it, or crashes
          pass
    else:
      wait()
      if obeys == 'saves slowly':
        time.sleep(60)
  with stopping.phase('test'):
    return 7

commands.console(lambda: commands.run('train', main))
"""


def signalled(tmp_path, phases, obeys, *numbers):
  """(exit code, lines of stdout, of stderr, whether a file is left) of a process after signals."""
  words = [sys.executable, '-c', WAITING, phases, obeys, str(tmp_path / 'debris')]
  with subprocess.Popen(
    words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    lines = []
    for number in numbers:  # each when a line is there: 'ready', then what the first signal says
      lines.append(process.stdout.readline().strip())
      process.send_signal(number)
    out, err = process.communicate(timeout=30)
  lines += out.splitlines()
  return process.returncode, lines, err.splitlines(), (tmp_path / 'debris').exists()


INT, TERM = signal.SIGINT, signal.SIGTERM
SAVES = 'SIGTERM: saving after this step; once more ends at once'
OBEYS = ('in Python', 'in C++', 'in a callback')


@pytest.mark.parametrize('obeys', OBEYS)
@pytest.mark.parametrize('phases', ['run import', 'run compile'])
def test_a_first_signal_ends_a_run_that_has_nothing_to_save_with_zero(phases, obeys, tmp_path):
  code, lines, err, remains = signalled(tmp_path, phases, obeys, TERM)
  assert (code, lines, remains) == (0, ['ready'], False)
  assert len(err) == 1
  assert err[0].endswith(f': stopped by SIGTERM during {phases[4:]}; the same command resumes')


@pytest.mark.parametrize('number', [INT, TERM])
@pytest.mark.parametrize('obeys', OBEYS)
def test_a_first_signal_ends_a_command_that_cannot_resume_with_its_own_code(
  obeys, number, tmp_path
):
  code, lines, err, remains = signalled(tmp_path, '', obeys, number)
  assert (code, lines, remains) == (128 + number, ['ready'], False)
  assert len(err) == 1 and err[0].endswith(f': stopped by {signal.Signals(number).name}')


@pytest.mark.parametrize(('phases', 'code'), [('', 130), ('run import', 0), ('run loop data', 0)])
def test_a_signal_in_an_import_raises_nothing_there_and_leaves_nothing(phases, code, tmp_path):
  status, _, err, remains = signalled(tmp_path, phases, 'in an import', INT)
  assert (status, len(err)) == (code, 1)
  assert not remains and not list(tmp_path.glob('.*'))  # partial names begin so


def test_a_run_that_saves_ends_before_its_next_phase(tmp_path):
  code, lines, err, remains = signalled(tmp_path, 'run loop', 'in Python', TERM)
  assert (code, lines, remains) == (0, ['ready', SAVES], False)
  assert err == ['vit train: stopped by SIGTERM during test; the same command resumes']


def test_a_run_that_saves_is_left_to_do_so_until_a_second_signal(tmp_path):
  code, lines, err, remains = signalled(tmp_path, 'run loop save', 'saves slowly', TERM, INT)
  assert (code, lines, err, remains) == (130, ['ready', SAVES], [], False)


def test_a_wait_for_data_is_left_at_once(tmp_path):
  code, lines, err, remains = signalled(tmp_path, 'run loop data', 'in Python', TERM)
  assert (code, lines, remains) == (0, ['ready', SAVES], False)
  assert err == ['vit train: stopped by SIGTERM during data; the same command resumes']


def test_a_terminal_that_is_closed_has_a_run_saved_even_if_it_says_so_twice(tmp_path):
  code, lines, _, remains = signalled(tmp_path, 'run loop', 'in Python', signal.SIGHUP)
  assert (code, remains) == (0, False)
  assert lines == ['ready', SAVES.replace('SIGTERM', 'SIGHUP')]
  reading, writing = os.pipe()
  os.write(writing, bytes([signal.SIGHUP, signal.SIGHUP, INT]))
  assert stopping.next_signal(reading, stopping.INSISTENT, timeout=0) == INT
  os.close(reading)
  os.close(writing)


def test_a_closed_terminal_that_is_ignored_as_below_nohup_stays_so(tmp_path):
  program = 'import signal; from vit_jax.guards import stopping; stopping.install(); '
  program += 'print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)'
  words = ['nohup', sys.executable, '-c', program]
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.stdout == 'True\n'


@pytest.mark.parametrize(
  ('words', 'code', 'err'),
  [
    ('--version >&-', 0, ''),
    ('--version <&- >&- 2>&-', 0, ''),
    ('nonsense 2>&-', 2, ''),
    ('nonsense 2>/dev/full', 2, ''),
    ('--version | true', 0, ''),
    ('--version >/dev/full', 1, 'vit: standard output: No space left on device\n'),
    ('models --help >/dev/full', 1, 'vit: standard output: No space left on device\n'),
  ],
)
def test_a_stream_that_is_closed_or_full_takes_no_results_and_needs_no_messages(words, code, err):
  line = ['bash', '-o', 'pipefail', '-c', f'{sys.executable} -m vit_jax {words}']
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert (done.returncode, done.stderr) == (code, err)


def test_results_that_their_stream_cannot_take_are_no_fault_of_the_input():
  command = "commands.run('models', lambda: print('B/16' * 9999))"
  program = f'from vit_jax import commands; commands.console(lambda: {command})'
  line = ['bash', '-c', f'{sys.executable} -c "{program}" >/dev/full']
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert (done.returncode, done.stderr) == (
    1,
    'vit: standard output: No space left on device\n',
  )


def test_a_stream_of_messages_loses_what_its_file_cannot_take():
  with open('/dev/full', 'w') as full:
    print('lost', file=streams.lossy(full), flush=True)
    with pytest.raises(OSError, match='No space left'):
      os.write(full.fileno(), b'not lost')


FAILING = """
import sys, threading
from vit_jax import commands

class Item:
  def __del__(self):
    raise OSError(28, 'No space left on device')

def fail():
  raise RuntimeError('Event loop is closed')

def main():
  for _ in range(3):
    Item()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
  return 0

commands.console(main)
"""


def test_what_threads_and_callbacks_raise_is_a_line_each_and_no_traceback(tmp_path):
  env = os.environ | {'XDG_CACHE_HOME': str(tmp_path)}
  words = [sys.executable, '-c', FAILING]
  done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
  file = tmp_path / 'vit_jax/errors/error.txt'
  assert (done.returncode, done.stderr.splitlines()) == (
    0,
    [
      f'vit: OSError: [Errno 28] No space left on device; the traceback is in {file}',
      f'vit: RuntimeError: Event loop is closed; the traceback is in {file}',
    ],
  )
  assert 'in fail' in file.read_text()
