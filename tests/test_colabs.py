"""The notebooks are their scripts, hold no outputs, and at the reduced setting run to the end."""

import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import types
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from tests.compiling import xla_flags
from vit_jax import config
from vit_jax.__main__ import main
from vit_jax.commands import flags, short
from vit_jax.convert import published

jupytext = pytest.importorskip('jupytext')
pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')
TransformerManager = pytest.importorskip('IPython.core.inputtransformer2').TransformerManager

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ('checkpoints', 'finetune', 'look_inside', 'pretrain_small')
SECONDS = 180  # that a notebook may take on a CPU


def read(name, kind):
  """A notebook, from its script or from itself."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # what nbformat deprecates is not ours
    return jupytext.read(ROOT / 'colabs' / f'{name}.{kind}')


def cells(notebook):
  return [(cell.cell_type, cell.source, cell.metadata.get('tags')) for cell in notebook.cells]


@pytest.fixture
def no_report():
  """A notebook shows its report: training writes it here, as it does for users."""


@pytest.fixture
def small(tmp_path, monkeypatch):
  """The folder that a notebook runs in, at the reduced setting."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('VIT_JAX_SMALL', '1')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))  # where an index of each data set is kept
  backend = plt.get_backend()
  plt.switch_backend('module://matplotlib_inline.backend_inline')  # as in Jupyter
  yield tmp_path
  plt.switch_backend(backend)


class Shell:
  """Runs the `!vit` lines of a notebook in this process, where JAX has started already."""

  def __init__(self, values):
    self.values = values

  def system(self, line):
    command, *words = shlex.split(line.format(**self.values))
    assert (command, main(words)) == ('vit', 0), line


def numbers(name, capsys):
  """Runs the cells of a notebook in this process; the last cell's numbers."""
  values = {}
  values['get_ipython'] = lambda: Shell(values)
  for cell in read(name, 'ipynb').cells:
    if cell.cell_type == 'code':
      capsys.readouterr()
      exec(TransformerManager().transform_cell(cell.source), values)
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def numbers_of_kernel(name, folder):
  """The same, of a notebook that Jupyter runs in a process of its own."""
  shutil.copy(ROOT / 'colabs' / f'{name}.ipynb', folder)
  command = [sys.executable, '-c', 'from nbclient.cli import main; main()', f'{name}.ipynb']
  command += [f'--output={name}_done', '--kernel_name=python3']
  options = dict(cwd=folder, capture_output=True, text=True, timeout=SECONDS)
  process = subprocess.run(command, **options)
  assert process.returncode == 0, process.stderr[-3000:]
  last = json.loads((folder / f'{name}_done.ipynb').read_text())['cells'][-1]
  printed = ''.join(line for output in last['outputs'] for line in output.get('text', []))
  return json.loads(printed.splitlines()[-1])


def test_every_notebook_has_its_script():
  names = {file.name for file in (ROOT / 'colabs').iterdir() if file.suffix in ('.py', '.ipynb')}
  assert names == {f'{name}.{kind}' for name in NAMES for kind in ('py', 'ipynb')}


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_equals_its_script(name):
  assert cells(read(name, 'ipynb')) == cells(read(name, 'py'))


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_holds_no_outputs(name):
  code = [cell for cell in read(name, 'ipynb').cells if cell.cell_type == 'code']
  assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


def test_all_notebooks_install_in_the_same_way():
  first = [next(c.source for c in read(n, 'py').cells if c.cell_type == 'code') for n in NAMES]
  assert len(set(first)) == 1 and "find_spec('vit_jax') is None" in first[0]


@pytest.fixture
def first_cell(tmp_path, monkeypatch):
  """Runs the first cell with vit_jax not installed and pip's words recorded; gives those words."""
  monkeypatch.chdir(tmp_path)
  source = next(c.source for c in read('finetune', 'py').cells if c.cell_type == 'code')
  commands, find_spec = [], importlib.util.find_spec
  absent = ('vit_jax', 'jax_cuda12_plugin')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda n: None if n in absent else find_spec(n))
  monkeypatch.setattr(subprocess, 'run', lambda words, check: commands.append(words))
  monkeypatch.setattr(os, 'environ', dict(os.environ))

  def run(address=''):
    exec(source.replace("ADDRESS = ''", f'ADDRESS = {address!r}'), {})
    return commands[-1][5:]

  return run


@pytest.fixture
def colab(monkeypatch):
  """Colab's module, where a user uploads the names in the list."""
  uploads = []
  files = types.SimpleNamespace(upload=lambda: dict.fromkeys(uploads, b''))
  package = types.ModuleType('google.colab')
  package.files = files
  monkeypatch.setitem(sys.modules, 'google', types.ModuleType('google'))
  monkeypatch.setitem(sys.modules, 'google.colab', package)
  return uploads


def test_the_first_cell_takes_an_uploaded_wheel_where_nothing_is_filled_in(first_cell, colab):
  colab.append('vit_jax-0.1.0-py3-none-any.whl')
  assert first_cell()[0] == 'vit_jax-0.1.0-py3-none-any.whl'


def test_the_first_cell_takes_the_address_or_a_wheel_that_is_here_without_asking(first_cell, colab):
  pathlib.Path('vit_jax-1-py3-none-any.whl').touch()
  assert first_cell()[0] == 'vit_jax-1-py3-none-any.whl'
  assert first_cell('git+https://host/a/b')[0] == 'git+https://host/a/b'


def test_without_an_upload_the_first_cell_says_what_is_missing(first_cell, colab):
  with pytest.raises(ValueError, match='ADDRESS must say where vit_jax is'):
    first_cell()


def test_the_cuda_that_jax_has_stays_with_it(first_cell, monkeypatch):
  find_spec = importlib.util.find_spec
  with_cuda = lambda name: name if name == 'jax_cuda12_plugin' else find_spec(name)  # noqa: E731
  monkeypatch.setattr(importlib.util, 'find_spec', with_cuda)
  assert first_cell('somewhere') == ['somewhere', 'jax[cuda12]']


def settings(name):
  """The values of a notebook's parameter cell, which has the tag of papermill, at full setting."""
  (cell,) = [c for c in read(name, 'py').cells if 'parameters' in c.metadata.get('tags', [])]
  values = {'os': os}
  exec(cell.source, values)
  assert values['SMALL'] is False
  return values


@pytest.mark.parametrize('data', ['cifar10', 'food101', 'folder:photos'])
def test_the_full_setting_of_finetune_is_a_recipe(tmp_path, monkeypatch, data):
  monkeypatch.delenv('VIT_JAX_SMALL', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path)
  for number in range(40):
    file = pathlib.Path('photos', 'train', 'ab'[number % 2], f'{number}.png')
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(file)
  chosen = settings('finetune')
  words = shlex.split(f'{data} --from {chosen["START"]} {chosen["FLAGS"]}')
  args = flags.parse('train', words)
  recipe = config.load(short.recipe(data, args.start, count=40), args.overrides)
  assert (recipe.duration, recipe.image_size) == ('10 epochs', (224, 224))
  assert recipe.pretrained == published.RECOMMENDED['S_16'].file


@pytest.mark.parametrize(
  'name, value, model',
  [
    ('look_inside', 'MODEL', 'Ti_16'),
    ('checkpoints', 'CHECKPOINT', 'Ti_16'),
    ('checkpoints', 'OTHER', 'S_16'),
  ],
)
def test_the_full_setting_names_a_fine_tuned_form_of_a_recommended_file(
  monkeypatch, name, value, model
):
  monkeypatch.delenv('VIT_JAX_SMALL', raising=False)
  whole = f'{published.AUGREG}/{published.RECOMMENDED[model].file}--imagenet2012-'
  assert settings(name)[value].startswith(whole)


def test_finetune_learns_to_tell_photos(small, capsys):
  results = numbers('finetune', capsys)
  assert results['accuracy'] > 0.8  # half by chance
  assert results['classes predicted'] > 1
  assert results['rows of attention sum to'] == pytest.approx(1, abs=1e-5)


def test_look_inside_draws_what_attention_is(small, capsys):
  results = numbers('look_inside', capsys)
  assert results['attention sums off by'] < 1e-5 and results['rollout sums off by'] < 1e-5
  assert 0 < results['nearest head'] <= results['furthest head'] < results['diagonal']
  assert results['pictures'] == 4 + 2 * 3  # of the model; of each image


def test_checkpoints_keep_their_logits_in_other_names(small, capsys):
  results = numbers('checkpoints', capsys)
  assert set(results['differences']) == {'npz', 'bigvision', 'timm', 'hf', 'bundle'}
  assert not any(results['differences'].values())  # only names and layouts change
  assert results['between the two'] > 0.01  # so logits do tell models apart
  assert results['new head'] == 0 and results['positions'] == 1 + (48 // 16) ** 2


def test_pretrain_small_learns_digits_in_jupyter(small, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', xla_flags(1))  # as most people have
  results = numbers_of_kernel('pretrain_small', small)
  assert results['last loss'] < results['first loss']
  assert results['test accuracy'] > 0.8  # a tenth by chance
  assert results['predictions'] == 8
