"""What commit 77f7801 wrote and took still works: runs, models, fields, recipes, commands.

tests/data/run_77f7801/README.md says how its files were made. They never change: what breaks one
of these tests breaks the runs and scripts that people have.
"""

import json
import pathlib
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.test_run import contents
from vit_jax import __main__ as commands
from vit_jax import config, main, models, sources
from vit_jax.commands import data

THEN = pathlib.Path(__file__).parent / 'data/run_77f7801'
EXPECTED = json.loads((THEN / 'expected.json').read_text())
INTERFACE = json.loads((THEN / 'interface.json').read_text())
COMMAND = json.loads((THEN / 'stopped/environment.json').read_text())['command']
STOPPED_AT, RUN = 195, pathlib.Path('runs/digits')
# Softmax ignores it: its gradient is rounding alone, which Adam makes as large as any other.
NOISE = 'encoder/blocks/attention/key/bias'
RATES = {'train/images_per_second', 'train/data_wait'}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
  """The commands of then name paths from the folder that they run in."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def copied(name, path=RUN):
  """A copy of what was made then, at the path that the command lines of then have."""
  shutil.copytree(THEN / name, path)
  return path


def vit(*words, capsys):
  """What a command prints, which must end well."""
  assert commands.main(words) == 0
  return capsys.readouterr().out


def vit_train(line=COMMAND):
  """The exit code of `vit train ...`."""
  return main.main(shlex.split(line)[2:])


def lines_of(folder):
  return (folder / 'metrics.jsonl').read_text().splitlines()


def params_of(path):
  """{'head/bias': array, ...} of a run's or a bundle's model."""
  return models.flat(jax.device_get(vit_jax.load(path).params))


# Runs


def test_a_finished_run_says_so_and_keeps_its_model(capsys):
  folder = copied('finished')
  assert vit_train() == 0
  assert re.search(f'{RUN} is finished.*{RUN}/model', capsys.readouterr().out)
  for name in ('model', 'checkpoints'):
    assert contents(folder / name) == contents(THEN / 'finished' / name)
  assert lines_of(folder) == lines_of(THEN / 'finished')


def test_a_checkpoint_of_the_end_becomes_the_model_that_it_became(capsys):
  folder = copied('finished')
  shutil.rmtree(folder / 'model')
  assert vit_train() == 0
  assert 'damaged' not in capsys.readouterr().out
  expected = params_of(THEN / 'finished')
  params = params_of(folder)
  assert list(params) == list(expected)
  assert not [name for name in params if not np.array_equal(params[name], expected[name])]


@pytest.fixture(scope='module')
def resumed(tmp_path_factory):
  """A run that was stopped at 77f7801 and is carried to its end here."""
  folder = tmp_path_factory.mktemp('resumed')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    copied('stopped')
    assert vit_train() == 0
  return folder / RUN


def test_a_stopped_run_resumes_at_the_step_where_it_was_stopped(resumed):
  before, after = lines_of(THEN / 'stopped'), lines_of(resumed)
  assert json.loads(before[-1])['step'] == STOPPED_AT
  assert after[: len(before)] == before
  assert not list((resumed / 'checkpoints').glob('*.damaged'))


def test_a_resumed_run_measures_what_the_one_that_was_not_stopped_did(resumed):
  rows = [json.loads(line) for line in lines_of(resumed)]
  assert len(rows) == len(EXPECTED['rows'])
  for row, expected in zip(rows, EXPECTED['rows']):
    assert {name: row[name] for name in row.keys() & expected.keys()} == pytest.approx(
      expected, rel=1e-5
    )
    assert row.keys() >= expected.keys() | (RATES if 'train/loss' in expected else set())


def test_a_resumed_run_ends_with_the_same_parameters(resumed):
  params, expected = params_of(resumed), params_of(THEN / 'finished')
  assert list(params) == list(expected)
  for name, value in expected.items():
    if name != NOISE:  # the other parameters: 2e-7 of a tensor's largest was measured
      atol = 1e-5 * np.abs(value).max()
      np.testing.assert_allclose(params[name], value, rtol=0, atol=atol, err_msg=name)


# Its model


@pytest.mark.parametrize(
  'name, words',
  [
    ('finished', ()),
    ('finished', ('--on', 'digits', '--split', 'test')),
    ('finished/model', ('--on', 'digits', '--split', 'test')),
  ],
)
def test_a_model_measures_what_it_measured(name, words, capsys):
  copied(name)
  values = json.loads(vit('evaluate', str(RUN), *words, '--format', 'json', capsys=capsys))
  expected = EXPECTED['evaluate']
  for field in ('model', 'source', 'split', 'count', 'accuracy', 'top5', 'confusion'):
    assert values[field] == expected[field], field
  for field in ('loss', 'calibration_error'):
    assert values[field] == pytest.approx(expected[field], rel=1e-5), field


@pytest.mark.parametrize('name', ['finished', 'finished/model'])
def test_a_model_names_the_images_that_it_named(name, capsys):
  copied(name)
  images = f'{RUN}/test_images'
  # The first images of the split, which `--count 4` took then.
  data.save_images(sources.open_source('digits', 'test[:4]'), images)
  rows = json.loads(vit('predict', str(RUN), images, '--format', 'json', capsys=capsys))
  assert [row['file'] for row in rows] == [row['file'] for row in EXPECTED['predict']]
  run = vit_jax.load(RUN)
  for row, expected in zip(rows, EXPECTED['predict']):
    for ranked in (row['predictions'], run.predict(row['file'], top=3)):
      assert ranked == [
        {'label': entry['label'], 'score': pytest.approx(entry['score'], rel=1e-5)}
        for entry in expected['predictions']
      ]


def test_a_run_gets_its_report(capsys):
  folder = copied('finished')
  pages = vit('report', str(RUN), capsys=capsys).split()
  assert pages == [f'{RUN}/report.html', f'{RUN}/report.png']
  assert '64.6' in (folder / 'report.html').read_text()  # % of the test images


# Fields, recipes and commands


@pytest.mark.quick
@pytest.mark.parametrize('table', ['defaults', 'values'])
def test_every_field_takes_the_values_that_it_took(table):
  fields = INTERFACE[table]
  loaded = config.load('default', [f'{field}={value}' for field, value in fields.items()])
  as_json = json.loads(json.dumps(loaded.to_dict()))
  for field, value in fields.items():
    section, _, name = field.rpartition('.')
    assert (as_json[section] if section else as_json)[name] == value, field


@pytest.mark.quick
@pytest.mark.parametrize('field, value', INTERFACE['old_fields'].items())
def test_every_field_of_vision_transformer_is_still_taken(field, value, capsys):
  config.load('digits', [f'{field}={value}'])
  assert f'--config.{field}' in capsys.readouterr().err  # with its name of today


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder with photos/ of two classes, in which the commands of recipes run."""
  folder = tmp_path_factory.mktemp('recipes')
  for index in range(48):
    path = folder / f'photos/{("rose", "tulip")[index % 2]}/{index}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  return folder


@pytest.mark.quick
@pytest.mark.parametrize('line', INTERFACE['commands'])
def test_a_command_line_of_then_is_a_config(line, photos, monkeypatch):
  monkeypatch.chdir(photos)
  _, _, words = re.split('(vit train|vit_jax.main) ', line)
  pairs = [word.partition('=') for word in shlex.split(words)]
  flags = {name: value for name, _, value in pairs}
  spec, workdir = flags.pop('--config'), flags.pop('--workdir')
  overrides = [f'{name.removeprefix("--config.")}={value}' for name, value in flags.items()]
  assert config.load(spec, overrides).duration and workdir


@pytest.mark.quick
@pytest.mark.parametrize('command, flags', INTERFACE['flags'].items())
def test_a_command_has_the_flags_that_it_had(command, flags, capsys):
  with pytest.raises(SystemExit) as end:
    commands.main([*command.split(), '--help'])
  assert end.value.code == 0
  described = set(re.findall(r'(?<![\w-])--[a-zA-Z][\w-]*', capsys.readouterr().out))
  assert described >= set(flags)
