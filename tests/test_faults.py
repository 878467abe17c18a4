"""What the injection of faults notices, and one of its cases; all are in benchmarks/faults.py."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'benchmarks'))

import faults
from injection import cases, runs

ROOT = pathlib.Path(__file__).parents[1]


def page():
  return (ROOT / 'docs/reliability.md').read_text('utf-8')


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
  folder, compiled = tmp_path_factory.mktemp('lab'), os.environ['JAX_COMPILATION_CACHE_DIR']
  with contextlib.closing(runs.Lab(folder, compiled=compiled)) as lab:
    yield lab


def change_a_row(run):
  rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  rows[2]['train/loss'] += 1e-6
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def change_a_parameter(run):
  file = run / 'model/model.safetensors'
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)


def take_another_checkpoint(run):
  newest, older = (run / f'checkpoints/{step}/state' for step in (runs.STEPS, runs.STEPS - 1))
  shutil.rmtree(newest)
  shutil.copytree(older, newest)


@pytest.mark.parametrize(
  'hurt, line',
  [
    (change_a_row, 'metrics.jsonl differs: step 3: train/loss'),
    (change_a_parameter, 'model/model.safetensors differs'),
    (take_another_checkpoint, "['state']['ema']['embed']['bias'] differs"),
    (lambda run: (run / '.partial').touch(), 'debris: .partial'),
    (lambda run: (run / 'evaluation.json').unlink(), 'missing: evaluation.json'),
  ],
)
def test_a_run_that_was_hurt_differs_and_a_copy_does_not(hurt, line, lab, tmp_path):
  unhurt = lab.unhurt(runs.DIGITS)
  run = shutil.copytree(unhurt, tmp_path / 'run')
  assert runs.differences(run, unhurt) == []
  hurt(run)
  assert line in runs.differences(run, unhurt)


@pytest.mark.parametrize(
  'script, line',
  [
    ('import time; time.sleep(60)', 'hangs'),
    ('1 / 0', 'a traceback: ZeroDivisionError: division by zero'),
    ('print("=" * 301)', f'a line of 301 characters: {"=" * 60}...'),
    ('import os; os.abort()', 'ended by SIGABRT'),
    ('import subprocess; subprocess.Popen(["sleep", "60"])', 'leaves running: 1'),
    ('print("=" * 300)', None),
  ],
)
def test_what_no_process_may_do_is_noticed(script, line, tmp_path, monkeypatch):
  monkeypatch.setattr(runs, 'GRACE', 0.1)
  process = runs.spawn([sys.executable, '-Sc', script], {}, tmp_path)
  assert process.wait(2.0).rudeness() == [line] * (line is not None)


def test_steps_that_are_trained_again_are_counted_from_the_first_that_is_shown():
  ended = runs.Ended(0, 1.0, ['resumes at step 4', 'step 5/8  loss 1.0', 'step 6/8  loss 0.9'], [])
  assert [ended.repeated(trained) for trained in (4, 6, 0)] == [0, 2, 0]
  assert runs.Ended(0, 1.0, ['the report is made again'], []).repeated(8) == 0


def test_a_minute_without_a_line_is_noticed():
  assert runs.Ended(0, 90.0, [], [], silence=71.0).rudeness() == ['says nothing for 71 s']
  assert runs.Ended(0, 90.0, [], [], silence=61.0).rudeness() == []


def test_a_report_has_all_tries_of_the_newest_commit_in_a_file(tmp_path, capsys):
  file = tmp_path / 'results.jsonl'
  faults.record(file, 'kills/SIGKILL in loop 0 0', 'old', cases.Outcome(['hangs']))
  for phase, fault in [('loop', []), ('save', ['model differs'])]:
    faults.record(file, f'kills/SIGKILL in {phase} 0 0', 'new', cases.Outcome(fault, lost=0))
  assert faults.main(['--table', str(file)]) == 1
  lines = capsys.readouterr().out.splitlines()
  assert '| SIGKILL in each phase | 2 | 1 | 0 |  |  |  |' in lines
  assert '- kills/SIGKILL in save: model differs' in lines
  assert '- a quota' in lines and '- SIGKILL in each phase' not in lines
  assert not any(': hangs' in line for line in lines)


def test_results_of_one_commit_are_not_made_twice(tmp_path):
  outcome = cases.Outcome(['hangs'], lost=1, count=4)
  file = tmp_path / 'results.jsonl'
  faults.record(file, 'kills/x 0 0', 'abc', outcome)
  assert faults.read_results(file, 'abc') == {'kills/x 0 0': outcome}
  assert faults.read_results(file, 'abd') == {}


def test_a_row_has_counts_the_worst_loss_and_end_and_the_median_of_recoveries():
  outcomes = [
    cases.Outcome([], lost=0, exit=1.0, recovery=4.0, count=4),
    cases.Outcome(['hangs'], lost=2, exit=9.0, recovery=6.0, line='a|b'),
  ]
  assert faults.row('x', outcomes) == ('x', '5', '4', '2', '9.0 s', '5.0 s', 'a\\|b')


def test_a_run_that_is_killed_while_it_writes_its_model_ends_as_if_unhurt(lab):
  case = next(case for case in faults.CASES if case.name == 'kills/SIGKILL in bundle')
  outcome = faults.tried(lab, case, 0, random.Random(0))
  assert outcome.faults == []
  assert outcome.line.startswith('resumes at step 8')


@pytest.mark.parametrize(
  'codes, state, code',
  [
    ([0], 'finished', 0),
    ([1, 137, 0], 'finished', 0),
    ([1, 0], 'stopped', 75),
    ([2, 0], 'failed', 2),
    ([1] * 10, 'failed', 1),
  ],
)
def test_the_script_starts_a_run_again_until_it_is_finished_or_refused(
  codes, state, code, tmp_path
):
  (script,) = re.findall(r'^#!.*until_finished[^`]*', page(), re.MULTILINE | re.DOTALL)
  (tmp_path / 'status.json').write_text(json.dumps({'state': state}, indent=1))
  (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
  command = 'read -r code < codes; sed -i 1d codes; exit $code'
  words = ['bash', '-c', script, 'until_finished.sh', str(tmp_path), 'bash', '-c', command]
  ended = subprocess.run(words, cwd=tmp_path, env=os.environ | {'PAUSE': '0'})
  assert ended.returncode == code
