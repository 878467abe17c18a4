"""Two processes compute what one computes; each reads its share, one writes."""

import concurrent.futures
import contextlib
import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from jax._src.lib import _jax

from tests.test_run import (
  PLAIN,
  ROOT,
  STEPS,
  cache,
  contents,
  ended,
  environment,
  flags,
  names_by_step,
  rows_of,
  shared,
  started,
  steps_kept,
  vit_train,
  whole,
)
from vit_jax.evaluate import results
from vit_jax.guards import processes

__all__ = ['cache', 'whole']

FIELDS = {'system.fsdp': 2, 'checkpoint.every': '4 steps'}

# `vit train`, which notes what this process read and how long it took in its folder.
NOTING = """
import json, pathlib, sys
from vit_jax import main, sharding
from vit_jax import pipeline
rows = []
put = sharding.put
def noting(batch, mesh, **how):
  if 'image' in batch:  # or features, to be compared
    rows.append([int(batch['image'].shape[0]), int(batch['image'].astype(int).sum())])
  return put(batch, mesh, **how)
sharding.put = noting
if __name__ == '__main__':
  code = main.main(sys.argv[2:])
  pathlib.Path(sys.argv[1]).write_text(json.dumps(rows))
  sys.exit(code)
"""


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@pytest.fixture(scope='session')
def pair(tmp_path_factory, cache):
  """A run of two processes with two devices each: one told by flags, one by its environment."""

  def make(folder):
    (folder / 'noting.py').write_text(NOTING)
    address = f'127.0.0.1:{free_port()}'
    asked = flags(FIELDS | {'system.report': True})
    words = ['--config=digits', f'--workdir={folder / "run"}', *asked]
    by_flags = [f'--coordinator_address={address}', '--num_processes=2', '--process_id=0']
    variables = {
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': '2',
      'JAX_PROCESS_ID': '1',
    }
    processes = []
    for index, (more, env) in enumerate([(by_flags, {}), ([], variables)]):
      noting = [folder / 'noting.py', folder / f'rows{index}.json']
      processes.append(started([*noting, *words, *more], environment(cache, devices=2, **env)))
    for index, process in enumerate(processes):
      code, out, err = ended(process)
      (folder / f'process{index}.json').write_text(json.dumps([code, out, err]))

  return shared(tmp_path_factory, 'pair', make)


def told_by(pair, index):
  return json.loads((pair / f'process{index}.json').read_text())


def test_both_processes_exit_with_zero_and_only_the_first_speaks(pair):
  assert f'step {STEPS}/{STEPS}' in told_by(pair, 0)[1]
  lines = told_by(pair, 1)[1].splitlines()
  ours = [line for line in lines if '[Gloo]' not in line and 'peer ranks' not in line]
  assert not ''.join(ours).strip()  # Gloo's threads break each other's lines
  for index in (0, 1):
    code, _, err = told_by(pair, index)
    assert code == 0 and 'Traceback' not in err, err


def losses(run):
  return [row['train/loss'] for row in rows_of(run) if 'train/loss' in row]


def test_two_processes_have_the_loss_curve_of_one(pair, whole):
  # 1e-5: float32 sums over other devices in another order, through eight updates.
  np.testing.assert_allclose(losses(pair / 'run'), losses(whole), rtol=1e-5)


def test_two_processes_write_every_row_once(pair, whole):
  assert names_by_step(pair / 'run') == names_by_step(whole)
  counts = [row['test/count'] for row in rows_of(pair / 'run') if 'test/count' in row]
  assert counts == [359]


def test_each_process_reads_its_shard_of_every_batch(pair):
  mine, theirs = (json.loads((pair / f'rows{index}.json').read_text()) for index in (0, 1))
  assert len(mine) == len(theirs)
  # Half of a batch of 32, and of the micro-batches of 16 that evaluation takes.
  assert {size for size, _ in mine} == {16, 8} == {size for size, _ in theirs}
  assert all(a[1] != b[1] for a, b in zip(mine[:STEPS], theirs))  # other images


def test_two_processes_leave_what_one_leaves(pair, whole):
  names = {name for name in contents(pair / 'run') if name.startswith(('model', 'config', 'metr'))}
  assert names == {
    'config.json',
    'metrics.jsonl',
    'model.json',
    'model/README.md',
    'model/config.json',
    'model/model.safetensors',
    'model/seal.json',
  }
  assert len(list((pair / 'run').glob('events*'))) == 1
  assert steps_kept(pair / 'run') == [4, STEPS]


def test_the_first_process_writes_a_report_of_what_both_have_measured(pair):
  held = json.loads((pair / 'run/environment.json').read_text())
  assert held['processes'] == 2 and held['devices'].startswith('4 ')
  assert held['command'].startswith('vit train --config=digits')
  assert held['command'].endswith('--num_processes=2 --process_id=0')
  text = (pair / 'run/report.html').read_text()
  assert 'report: ' not in told_by(pair, 0)[1]
  points = re.findall(r'<title>training, step \d+: ', text)
  assert len(points) == 2 * STEPS and len(losses(pair / 'run')) == STEPS  # and accuracies
  values = results.read(pair / 'run')
  assert (values['step'], values['use'], np.sum(values['confusion'])) == (8, 'test', 359)
  right = f'{100 * values["accuracy"]:.2f}%'
  assert f'<b>{right}</b>accuracy</div>' in text
  assert 'Measured at step 8 on 359 images, split test of digits.' in text
  assert text.count('class="pair"') == len(values['mistakes']) > 0
  assert 'aria-labelledby="confusion"' in text and (pair / 'run/report.png').is_file()


def test_one_process_resumes_the_run_of_two(pair, whole, tmp_path, capsys):
  run = tmp_path / 'run'
  shutil.copytree(pair / 'run', run, ignore=shutil.ignore_patterns('model', '8'))
  assert vit_train(run, FIELDS) == 0
  output = capsys.readouterr()
  assert re.search(r'resumes at step 4$', output.out, re.MULTILINE) and output.err == ''
  np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-5)
  assert names_by_step(run) == names_by_step(whole)


def test_a_usage_error_of_one_process_needs_no_other(cache, tmp_path):
  words = ['-m', 'vit_jax.main', '--config=digits', f'--workdir={tmp_path}', '--nothing']
  code, _, err = ended(started(words, environment(cache)))
  assert code == 2 and '--nothing' in err.splitlines()[-1]
  assert ROOT.is_dir() and list(tmp_path.iterdir()) == []


# Processes that fail, with two CPU devices between them: each line is all that they print

ENDLESS = PLAIN | {'duration': '4000 steps', 'evaluation.every': '4000 steps'}
ENDLESS |= {'checkpoint.every': '4000 steps', 'checkpoint.keep_latest': 1}


def group_of(folder, cache, count=2, *, present=None, fields=({}, {}), more=()):
  """The processes of a run, those that are present; the fields of the last hold for others too."""
  address = f'127.0.0.1:{free_port()}'
  members = []
  for index in range(count) if present is None else present:
    words = ['-m', 'vit_jax.main', '--config=digits', f'--workdir={folder / "run"}']
    words += flags(ENDLESS | fields[min(index, len(fields) - 1)])
    words += [f'--coordinator_address={address}', f'--num_processes={count}']
    words += [f'--process_id={index}', *more]
    members.append(started(words, environment(cache)))
  return members


def endings(members):
  """[(exit code, what standard error says), ...]"""
  return [(code, err) for code, _, err in map(ended, members)]


def await_rows(folder, members, count):
  """Returns when so many rows are in the metrics, which the first process writes."""
  rows, deadline = folder / 'run/metrics.jsonl', time.monotonic() + 240
  while not rows.exists() or rows.read_text().count('\n') < count:
    if any(process.poll() is not None for process in members) or time.monotonic() > deadline:
      raise AssertionError(f'ended too early: {endings(members)}')
    time.sleep(0.01)


def test_processes_with_different_configs_or_data_say_in_which_fields(cache, tmp_path):
  fields = ({}, {'seed': 1, 'data.train': 'train[:50%]'})
  ends = endings(group_of(tmp_path, cache, fields=fields))
  assert ends[0] == ends[1] and ends[0][0] == 2
  [line] = ends[0][1].splitlines()
  assert 'seed is 0 in process 0 and 1 in process 1' in line
  assert re.search(r'source.images is \d+ in process 0 and \d+ in process 1', line)
  assert not (tmp_path / 'run').exists()


def test_a_process_that_fails_tells_the_others_why(cache, tmp_path):
  ends = endings(group_of(tmp_path, cache, fields=({}, {'data.source': '/nowhere'})))
  assert [code for code, _ in ends] == [2, 2]
  theirs, line = (err.splitlines() for _, err in ends)
  assert line[0].startswith("vit train: unknown dataset '/nowhere'") and len(line) == 1
  assert theirs == [line[0].replace('vit train: ', 'vit train: process 1 of 2: ')]


def test_processes_that_did_not_come_are_named(cache, tmp_path):
  more = ['--initialization_timeout=1']
  [(code, err)] = endings(group_of(tmp_path, cache, 3, present=[0], more=more))
  assert code == 1
  assert err == 'vit train: processes 1, 2 of 3 did not come; the same command resumes\n'


def test_a_signal_to_one_process_saves_all_and_a_dead_one_ends_them(cache, tmp_path):
  members = group_of(tmp_path, cache)
  await_rows(tmp_path, members, 5)
  members[1].terminate()
  assert endings(members) == [(0, ''), (0, '')]
  [step] = steps_kept(tmp_path / 'run')
  assert len(losses(tmp_path / 'run')) == step
  members = group_of(tmp_path, cache, more=['--heartbeat_timeout=3'])
  await_rows(tmp_path, members, step + 5)
  members[1].kill()
  line = 'vit train: process 1 of 2 has not answered for 3 s; the same command resumes\n'
  assert endings(members) == [(1, line), (-signal.SIGKILL, '')]


def test_a_stopped_first_process_ends_the_others(cache, tmp_path):
  first, second = group_of(tmp_path, cache, more=['--heartbeat_timeout=3'])
  await_rows(tmp_path, [first, second], 5)
  first.send_signal(signal.SIGSTOP)
  line = 'vit train: process 0 of 2 has not answered for 3 s; the same command resumes\n'
  assert endings([second]) == [(1, line)]
  first.kill()
  assert ended(first)[0] == -signal.SIGKILL


@contextlib.contextmanager
def groups(count):
  """Groups of one process each, in threads of this one, that share the store of a coordinator."""
  address = f'127.0.0.1:{free_port()}'
  service = _jax.get_distributed_runtime_service(address, count)
  members = [processes.Group() for _ in range(count)]
  for index, member in enumerate(members):
    member.client = _jax.get_distributed_runtime_client(address, index)
    member.index, member.count = index, count
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    list(pool.map(lambda member: member.client.connect(), members))
    yield members, pool
    list(pool.map(lambda member: member.client.shutdown(), members))
  service.shutdown()


def test_all_stop_at_the_first_step_that_none_has_passed():
  with groups(3) as (members, pool):
    for member, step in zip(members, (5, 7, 6)):
      member.step = step
    list(pool.map(lambda member: member.agree_to_stop(), members))
    assert [member.last_step for member in members] == [8, 8, 8]


def test_the_process_that_is_furthest_behind_is_named_and_ends_the_run():
  group = processes.Group()
  group.count, group.silent = 3, {0: 0.0, 1: 0.0, 2: 0.0}
  group.heartbeat, group.patience = 50.0, 100.0
  for number in range(5):  # all beat, every 25 s
    beats = {0: processes.Beat(number, 7, 'loop'), 1: processes.Beat(number, 6, 'data')}
    group.hear(beats | {2: processes.Beat(number, 7, 'loop')})
    reason = group.overdue(25.0)
    assert (reason is None) == (number < 4)
  assert reason == 'process 1 of 3 (step 6, data) has not gone on for 100 s'


COORDINATOR = 'F1130 10:18 7 client.h:80] Terminating process because the JAX distributed service '
TIMED_OUT = 'detected fatal errors: Barrier timed out. Some timed out task names:\n1\n3\n\nRPC: X\n'


RESTARTED = 'ABORTED: 1 unexpectedly tried to connect with a different incarnation. It has likely'


@pytest.mark.parametrize(
  'text, line',
  [
    (COORDINATOR + TIMED_OUT, 'processes 1, 3 of 4 did not come'),
    (
      COORDINATOR + 'detected fatal errors.\n\nRPC: /RegisterTask',
      'process 0 of 4 does not answer',
    ),
    (COORDINATOR + 'detected fatal errors.\nSocket closed', 'process 0 of 4 has ended'),
    (COORDINATOR + 'ALREADY_EXISTS: newer incarnation', 'process 2 of 4 was started twice'),
    (COORDINATOR + RESTARTED, 'process 1 of 4 was started again'),
    ('F1130 10:18:45.6 7 a.cc:8] Check failed: x\n*** Check', None),
  ],
)
def test_an_error_of_the_coordinator_becomes_a_line(text, line):
  group = processes.Group()
  group.index, group.count = 2, 4
  assert group.describe_end(text) == line
