"""docs/extending.md: each of its files, written into an empty folder, does what its line says."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

import vit_jax
from vit_jax import __main__ as commands
from vit_jax import config, lookup
from vit_jax.plan import make_plan

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'extending.md').read_text()
FILES = dict(re.findall(r'```python\n# (\S+)\n(.*?)```', TEXT, re.DOTALL))
LINES = re.findall(r'^vit (.*)$', TEXT, re.MULTILINE)
SHORT = ['--config.duration=3', '--config.batch_size=32']
PLAIN = ['--config.optimizer.name=sgd', '--config.optimizer.weight_decay=0']


def shortened(line):
  """The words of a line, with few steps, a shallow model and an optimiser that is soon traced."""
  words = shlex.split(line)
  if not line.startswith('train'):
    return words
  shallow = ['--config.model.depth=1'] if 'small.py' in line else []
  plain = [] if 'optimizer' in line else PLAIN
  return [*words, *SHORT, *shallow, *plain]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A working folder with the document's files."""
  path = tmp_path_factory.mktemp('extending')
  for name, text in FILES.items():
    (path / name).write_text(text)
  return path


@pytest.fixture
def here(folder, monkeypatch):
  """The working folder; modules of it are imported anew."""
  monkeypatch.chdir(folder)
  monkeypatch.setattr(sys, 'path', [*sys.path, str(folder)])
  yield folder
  for name in FILES:
    sys.modules.pop(name.removesuffix('.py'), None)


def test_every_file_has_at_most_ten_lines_beside_its_imports():
  assert len(FILES) >= 9
  for name, text in FILES.items():
    code = [line for line in text.splitlines() if line.strip() and 'import' not in line]
    assert len(code) <= 10, name


@pytest.mark.parametrize('line', LINES, ids=[line.split('runs/')[-1].split()[0] for line in LINES])
def test_every_line_of_the_document_runs(here, line, capsys):
  assert commands.main(shortened(line)) == 0, capsys.readouterr().err


def run_of(here, name):
  """A run of the document, which the test of its lines has made, or makes it."""
  (line,) = [line for line in LINES if line.startswith('train') and f'runs/{name}' in line]
  assert commands.main(shortened(line)) == 0
  return here / 'runs' / name


def test_a_model_from_elsewhere_is_opened_again_and_predicts_in_another_process(here):
  run = run_of(here, 'mlp')
  described = json.loads((run / 'model' / 'config.json').read_text())
  assert described['model'] == {'name': 'nets:Mlp', 'num_classes': 10, 'width': 48}
  image = np.zeros((8, 8, 3), np.uint8)
  expected = vit_jax.load(run).predict(image, top=1)
  code = f'import vit_jax, numpy as np; print(vit_jax.load({str(run)!r}).predict('
  code += 'np.zeros((8, 8, 3), np.uint8), top=1))'
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  result = subprocess.run(
    [sys.executable, '-c', code], cwd=here, env=env, capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == str(expected)


def test_a_loss_from_elsewhere_decides_the_scores_of_the_model(here):
  run = run_of(here, 'focal')
  assert vit_jax.load(run).scores == 'softmax'
  assert commands.main(['evaluate', str(run)]) == 0


def test_a_run_with_names_from_elsewhere_is_finished_or_resumes_by_the_same_line(here, capsys):
  run_of(here, 'calm')
  run_of(here, 'calm')
  assert 'is finished' in capsys.readouterr().out


def test_a_transform_from_elsewhere_goes_through_workers(here, capsys):
  (line,) = [line for line in LINES if 'runs/salt' in line]
  words = shortened(line.replace('runs/salt', 'runs/salt_by_workers'))
  assert commands.main([*words, '--config.system.workers=1']) == 0, capsys.readouterr().err


def test_a_logger_from_elsewhere_gets_every_row(here):
  run = run_of(here, 'lines')
  rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  lines = (run / 'lines.txt').read_text().splitlines()
  assert [int(line.split()[0]) for line in lines] == [row['step'] for row in rows]


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_logger_of_the_document_hands_every_number_to_its_library(name, here, monkeypatch):
  library = mock.MagicMock()
  monkeypatch.setitem(sys.modules, name, library)
  logger = importlib.import_module(f'{name}_log').Run(here, {'seed': 0})
  logger.write(3, {'train/loss': 0.5})
  logger.close()
  run = library.init.return_value
  log, end = (run.log, run.finish) if name == 'wandb' else (library.log_metrics, library.end_run)
  log.assert_called_once_with({'train/loss': 0.5}, step=3)
  end.assert_called_once_with()


@pytest.mark.parametrize('name', ['failing', 'empty'])
def test_a_logger_that_cannot_be_begun_costs_a_line(name, here, tmp_path, monkeypatch):
  (tmp_path / 'bad_loggers.py').write_text(
    'def failing(folder, config):\n  raise ConnectionError("no server")\n'
    'def empty(folder, config):\n  return object()\n'
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  lines = []
  loaded = config.load('digits', [f'system.logger=bad_loggers:{name}'])
  assert make_plan(loaded).loggers(tmp_path, lines.append) == []
  (line,) = lines
  assert f"logger 'bad_loggers:{name}'" in line and 'training goes on without it' in line


BAD = {
  'no module': ('--config.objective.loss=absent:focal', "there is no module 'absent'"),
  'no name': ('--config.objective.loss=losses:absent', "losses has no 'absent'"),
  'not callable': ('--config.objective.loss=bad:NUMBER', 'is int, not a function'),
  'no scores': ('--config.objective.loss=bad:mean', 'set objective.scores'),
  'a mean': (
    '--config.objective.loss=bad:mean --config.objective.scores=softmax',
    'must give (32,): one for each image',
  ),
  'a loss that fails': ('--config.objective.loss=bad:failing', 'ZeroDivisionError'),
  'other scores': ('--config.objective.scores=sigmoid', 'a softmax loss makes softmax scores'),
  'unmarked step': ("--config.data.augment='bad:plain()'", 'not marked by @vit_jax.extension'),
  'a step of floats': ("--config.data.augment='bad:floats()'", 'must give uint8 (H, W, 3)'),
  'a step that fails': ("--config.data.augment='bad:breaking()'", 'IndexError'),
  'unmarked source': ('--config.data.source=bad:source', 'not marked by @vit_jax.extension'),
  'no splits': ('--config.data.source=bad:nothing', 'gives no {split: function'),
  'unmarked model': ('--config.model.name=bad:Unmarked', 'not marked by @vit_jax.extension'),
  'no module class': ('--config.model.name=bad:nothing', 'no class of a flax.linen.Module'),
  'a model without features': ('--config=other.py:Bare', "a dict with 'pre_logits'"),
  'a model that fails': ('--config=other.py:Failing', 'IndexError'),
  'a module that exits': ('--config.objective.loss=leaving:x', 'SystemExit'),
  'a loss that exits': ('--config.objective.loss=bad:leave', 'SystemExit'),
  'a task that fails': ('--config.task=bad:lookup_error', 'KeyError'),
  'a task without ranks': ('--config.task=bad:unranked', 'has no ranks'),
  'ranks that are not read': ('--config.task=bad:unread', 'read gives no zork'),
  'the name of the average': ('--config.task=bad:averaged', "named 'ema', which each step has"),
  'a start of nothing': ('--config.task=bad:misstarted', 'the task starts with zork'),
  'an optimiser of other shapes': (
    '--config.optimizer.name=bad:scalar --config.optimizer.weight_decay=0',
    'bad:scalar: ',
  ),
  'an optimiser that asks for more': (
    '--config.optimizer.name=optax:lbfgs --config.optimizer.weight_decay=0',
    'optax:lbfgs: ',
  ),
  'lacking fields': ('--config.model.name=nets:Mlp', 'of nets:Mlp; did you mean width?'),
  'no optimiser': ('--config.optimizer.name=bad:mean', 'set it to 0.0'),
  'an optimiser that is none': (
    '--config.optimizer.name=bad:started --config.optimizer.weight_decay=0',
    'not an optax transformation',
  ),
  'unread value': ('--config.optimizer.name=optimisers:sign_descent', 'set it to 0.0'),
  'no task': ('--config.task=bad:task', 'must give a Task'),
  'unknown task': ('--config.task=classfy', 'did you mean classify?'),
  'no logger': ('--config.system.logger=absent:Lines', "there is no module 'absent'"),
  'a module that fails': ('--config.objective.loss=broken:x', 'broken:x'),
}
OTHER = """
import net

def get_config(name):
  config = net.get_config()
  config.model.name, config.model.width = f'bad:{name}', None
  return config
"""
WRONG = """
import dataclasses
import flax.linen as nn
import jax
import numpy as np
import optax
import vit_jax
from vit_jax import plan, tasks

NUMBER = 3

def mean(logits, targets):
  return -(targets * jax.nn.log_softmax(logits)).mean()

def failing(logits, targets):
  return 1 / 0
failing.scores = 'softmax'

def plain():
  return lambda image, rng: image

@vit_jax.extension
def floats():
  return lambda image, rng: image / 2.0

@vit_jax.extension
def breaking():
  return lambda image, rng: [][1]

def source():
  return {}

def started(schedule):
  return schedule

@vit_jax.extension
def nothing():
  return 3

def task(config, source, start):
  return 'nothing'

def leave(logits, targets):
  raise SystemExit(0)
leave.scores = 'softmax'

def lookup_error(config, source, start):
  return {}['nothing']

def changed(config, source, begin, **fields):
  return dataclasses.replace(plan.classification(config, source, begin), **fields)

def unranked(*args):
  return changed(*args, ranks={})

def unread(*args):
  return changed(*args, ranks={'zork': 1})

def misstarted(*args):
  return changed(*args, start=lambda: tasks.Start({'zork': np.zeros(3)}))

def averaged(*args):
  return changed(*args, fixed={'ema': np.zeros(3)})

def scalar(schedule):
  def update(grads, state, params=None):
    return jax.tree.map(lambda g: g.reshape(-1, 1), grads), state
  return optax.GradientTransformation(lambda params: (), update)

class Unmarked(nn.Module):
  num_classes: int

@vit_jax.extension
class Bare(nn.Module):
  num_classes: int
  @nn.compact
  def __call__(self, images, train=False, attention=False):
    return nn.Dense(self.num_classes)(images.reshape(len(images), -1)), {}

@vit_jax.extension
class Failing(nn.Module):
  num_classes: int
  def __call__(self, images, train=False, attention=False):
    return [][1]
"""


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_used_is_one_line_before_anything_is_written(case, here, capsys):
  (here / 'bad.py').write_text(WRONG)
  (here / 'broken.py').write_text('raise RuntimeError("no")')
  (here / 'leaving.py').write_text('import sys; sys.exit(0)')
  (here / 'other.py').write_text(OTHER)
  words, expected = BAD[case]
  line = ['train', '--config=small.py', '--workdir=refused', *SHORT, *shlex.split(words)]
  assert commands.main(line) == 2
  (message,) = capsys.readouterr().err.splitlines()
  assert expected in message
  assert not (here / 'refused').exists()
  sys.modules.pop('bad', None)


def test_a_models_file_cannot_have_just_anything_called(here):
  run = run_of(here, 'focal')
  file = run / 'model' / 'config.json'
  text = file.read_text()
  for path, key, value in (
    ('model', 'name', 'os:getcwd'),
    ('model', 'name', 'subprocess:Popen'),
    ('preprocess', 'steps', 'os:system("touch called")'),
  ):
    described = json.loads(text)
    described[path][key] = value
    file.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r'flax|unknown field|extension'):
      vit_jax.load(run)
  file.write_text(text)
  assert not (here / 'called').exists()


def test_marked_functions_stay_what_they_are():
  def step():
    return 3

  assert lookup.extension(step) is step and step() == 3
