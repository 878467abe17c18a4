"""`vit NAME`: flags without JAX, one line for what is wrong, one exit code."""

import argparse
import os
import platform
import subprocess
import sys
import time

import pytest

from vit_jax import __main__ as vit
from vit_jax import analysis, commands, export
from vit_jax.commands import bench, compiled, flags, inspect, search
from vit_jax.commands import evaluate as evaluate_command
from vit_jax.convert import published, writing
from vit_jax.evaluate import fewshot, inputs
from vit_jax.guards import allocation

HEAVY = ('jax', 'flax', 'numpy', 'orbax', 'grain', 'PIL')


def parser_of(name):
  parser = argparse.ArgumentParser()
  getattr(flags, name)(parser)
  return {action.dest: action for action in parser._actions}


def test_every_help_comes_without_jax_and_numpy():
  code = f"""
import contextlib, sys
from vit_jax.__main__ import COMMANDS, main
for name in COMMANDS:
  with contextlib.suppress(SystemExit):
    main([name, '--help'])
sys.exit(str(set(sys.modules) & {{*{HEAVY!r}}} or ''))
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert not done.stderr.strip()
  assert all(f'vit {name}' in done.stdout for name in vit.COMMANDS)


@pytest.mark.parametrize(
  ('command', 'flag', 'table'),
  [
    ('evaluate', 'method', evaluate_command.METHODS),
    ('inspect', 'only', inspect.NAMES),
    ('search', 'only', search.SELECTIONS),
    ('inspect', 'fusion', analysis.FUSIONS),
    ('convert', 'to', (*writing.WRITERS, 'bundle')),
    ('bench', 'mode', (*bench.MODES, 'both')),
  ],
)
def test_the_choices_of_a_flag_are_those_of_the_table_that_it_chooses_from(command, flag, table):
  assert list(parser_of(command)[flag].choices) == list(table)


def test_defaults_are_those_of_what_the_flags_set():
  defaults = {name: action.default for name, action in parser_of('bench').items()}
  case = bench.Case()
  for field in ('model', 'batch', 'image_size', 'dtype', 'unroll', 'depth'):
    assert defaults[field] == getattr(case, field)
  evaluation = parser_of('evaluate')
  assert evaluation['shots'].default == list(fewshot.SHOTS)
  assert evaluation['seeds'].default == list(fewshot.SEEDS)
  assert evaluation['batch_size'].default == inputs.BATCH
  assert parser_of('models')['index'].default == published.INDEX
  assert parser_of('export')['to'].help.startswith(', '.join(export.SUFFIXES))


def test_bad_input_is_one_line_and_two(capsys):
  def command():
    raise ValueError('a\nb\x1b[31m')

  assert commands.run('name', command) == 2
  assert capsys.readouterr().err == 'vit name: a b\\x1b[31m\n'


def test_a_file_of_the_system_is_named_before_what_is_wrong_with_it(capsys, tmp_path):
  assert commands.run('name', lambda: (tmp_path / 'absent').stat().st_mode) == 2
  assert capsys.readouterr().err == f'vit name: {tmp_path / "absent"}: No such file or directory\n'


def test_an_error_may_end_a_command_with_a_code_of_its_own(capsys):
  def command():
    with commands.ending(7, RuntimeError, prefix='--check: '):
      raise RuntimeError('no')

  assert commands.run('name', command) == 7
  assert capsys.readouterr().err == 'vit name: --check: no\n'


@pytest.mark.parametrize('folder', ['run', 'not there', ''])
def test_what_is_not_of_the_input_is_one_line_and_a_traceback_in_a_file(
  folder, tmp_path, monkeypatch, capsys
):
  def command():
    raise RuntimeError('RESOURCE_EXHAUSTED: ' + 'out of memory ' * 50 + '\nat 0x7f')

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  (tmp_path / 'run').mkdir()
  assert commands.run('name', command, folder=folder and str(tmp_path / folder)) == commands.FAILED
  (line,) = capsys.readouterr().err.splitlines()
  place = tmp_path / ('run' if folder == 'run' else 'cache/vit_jax/errors')
  assert line.startswith('vit name: RuntimeError: RESOURCE_EXHAUSTED: out of memory')
  assert line.endswith(f'; the traceback is in {place / "error.txt"}') and len(line) <= 300
  text = (place / 'error.txt').read_text()
  assert text.startswith('Traceback') and text.endswith('at 0x7f\n') and 'in command' in text


STEPS = """
import ctypes, resource
from vit_jax import commands
libc, size = ctypes.CDLL(None), 1 << 27
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def step():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = libc.malloc(size)
  libc.memset(block, 1, size)
  libc.free(block)
  pages = size // resource.getpagesize()
  print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages > 0.1)
  return 0

commands.console(step)
"""


@pytest.mark.skipif(not allocation.on_request(), reason='no huge pages for who asks')
@pytest.mark.parametrize(
  ('variables', 'small'), [({}, 'False'), ({allocation.VARIABLE: ''}, 'True')]
)
def test_a_command_has_huge_pages_unless_the_variable_decides(variables, small):
  env = {name: v for name, v in os.environ.items() if name != allocation.VARIABLE} | variables
  words = [sys.executable, '-c', STEPS]
  done = subprocess.run(
    words, env=env | {'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == [small]


def test_a_command_goes_on_where_it_cannot_start_again(monkeypatch, tmp_path):
  monkeypatch.delenv(allocation.VARIABLE)
  monkeypatch.setattr(allocation, 'on_request', lambda: True)
  monkeypatch.setattr(allocation, 'PLUGINS', ())
  monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
  allocation.use_huge_pages()
  assert os.environ[allocation.VARIABLE] == allocation.TUNABLES  # for what this one starts


GIVEN_BACK = """
import ctypes, pathlib, re
from vit_jax.guards import allocation
libc, size, count = ctypes.CDLL(None), 1 << 16, 1 << 10
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def resident():
  return int(re.search(r'VmRSS:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]) << 10

before = resident()
*blocks, last = [libc.malloc(size) for _ in range(count)]  # the last stays, at the heap's end
for block in blocks:
  libc.memset(block, 1, size)
for block in blocks:
  libc.free(block)
print(resident() - before > 0.9 * size * count)
allocation.give_back()
print(resident() - before > 0.1 * size * count)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of the GNU C library')
def test_memory_that_is_free_can_be_given_back():
  words, env = [sys.executable, '-c', GIVEN_BACK], os.environ | {'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
  assert done.stdout.split() == ['True', 'False']


def test_an_accelerator_may_be_found_where_one_of_its_plugins_is(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert not allocation.has_accelerator()
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(allocation, 'PLUGINS', ('no_plugin', 'json'))
  assert allocation.has_accelerator()


COMPILE = """
from vit_jax.commands import compiled
compiled.keep()
import jax, sys
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append('cache_hits' in name))
print(float(jax.jit(lambda x: x * 3)(2.0)), any(hits))
"""


def compile_once(home, **more):
  unset = ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME')
  env = {name: value for name, value in os.environ.items() if name not in unset}
  env |= {'HOME': str(home), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', **more}
  words = [sys.executable, '-c', COMPILE]
  done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
  assert done.stderr == ''
  return done.stdout.split()


def test_the_next_process_reads_what_one_has_compiled(tmp_path):
  assert compile_once(tmp_path) == ['6.0', 'False']
  assert compile_once(tmp_path) == ['6.0', 'True']
  assert len(list(tmp_path.glob('.cache/vit_jax/compiled/*/*-cache'))) == 1


def test_nothing_is_kept_where_it_is_switched_off_or_cannot_be(tmp_path):
  assert compile_once(tmp_path, JAX_ENABLE_COMPILATION_CACHE='false') == ['6.0', 'False']
  assert compile_once('/dev/null') == ['6.0', 'False']
  assert not list(tmp_path.iterdir())


def test_the_programs_used_longest_ago_go_beyond_the_limit(tmp_path):
  for index, age in enumerate((60, 7200, 10_800, 14_400)):  # seconds; the first may be in use
    used = time.time() - age
    (tmp_path / f'{index}').write_bytes(bytes(100))
    os.utime(tmp_path / f'{index}', (used, used))
  compiled.prune(tmp_path, limit=250)
  assert sorted(file.name for file in tmp_path.iterdir()) == ['0', '1']
  compiled.prune(tmp_path, limit=0)
  assert [file.name for file in tmp_path.iterdir()] == ['0']


def test_the_doctor_says_where_programs_are_kept(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  (tmp_path / 'a').write_bytes(bytes(2000))
  assert f'kept in {tmp_path}: 2 kB' in compiled.describe()
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', '0')
  assert compiled.describe().startswith('compiled programs are not kept')
