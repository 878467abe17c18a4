"""Two processes compute what one computes; each reads its share, one writes."""

import json
import re
import shutil
import socket

import numpy as np
import pytest

from tests.test_run import (
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
    'model/README.md',
    'model/config.json',
    'model/model.safetensors',
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
  points = re.findall(r'<title>train/loss, step \d+: ', text)
  assert len(points) == STEPS == len(losses(pair / 'run'))
  values = results.read(pair / 'run')
  assert (values['step'], values['use'], np.sum(values['confusion'])) == (8, 'test', 359)
  right = f'{100 * values["accuracy"]:.2f}%'
  assert f'<b>{right}</b>accuracy on 359 images, split test of digits' in text
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
