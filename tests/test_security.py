"""Laws of what strangers write: names on a terminal, secrets in URLs, numbers in configs."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import drawn, shapes, tiny
from vit_jax import __main__ as vit
from vit_jax import bundle, config, files, sources, text, workdir

HOSTILE = (
  '=\x1b[2Jcat\u202egnp\u200b\r\n\x9b31m'  # clears the screen, is read backwards, in two lines
)
SECRET = 'https://me:pa@ss@host.example/a.npz?X-Amz-Signature=beef&token=beef#beef'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A tiny bundle of random parameters, with a class of a stranger's name."""
  model = tiny()
  names = (HOSTILE, *map(str, range(1, model.num_classes)))
  prepared = bundle.Preprocess('resize', (8, 8), (0.5,) * 3, (0.5,) * 3)
  folder = tmp_path_factory.mktemp('model') / 'bundle'
  bundle.write(
    folder, bundle.Bundle(model, drawn(shapes(model, (8, 8))), names, prepared, 'ViT-Ti/16')
  )
  return folder


@pytest.fixture
def photos(tmp_path):
  """A folder of two class folders, of which one and its image have a stranger's name."""
  for name in (HOSTILE.replace('/', ''), '1'):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'photos' / name / f'{name}.png')
  return tmp_path / 'photos'


def lines_of(words, capsys, code=0):
  """What a command prints, line by line; nothing of it may steer a terminal."""
  assert vit.main([*map(str, words)]) == code
  output = capsys.readouterr()
  lines = (output.out + output.err).split('\n')
  assert [line for line in lines if not line.isprintable()] == []
  return lines


def test_a_strangers_name_steers_no_terminal(model, photos, capsys):
  (photos / 'notes\x1b.tx\u202et').write_text('no image')
  escaped = text.printable(HOSTILE)
  assert any(escaped in line for line in lines_of(['predict', model, photos, '--top', 99], capsys))
  lines_of(['predict', model, photos / f'{HOSTILE}.jpg'], capsys, 3)
  lines_of(['evaluate', model, '--on', f'folder:{photos}', '--split', 'all'], capsys)
  lines_of(['data', 'show', f'folder:{photos}'], capsys, 3)
  lines_of([HOSTILE], capsys, 2)


def test_a_table_in_csv_is_read_back_and_computes_nothing_where_asked(model, photos, capsys):
  words = ['predict', str(model), str(photos), '--top', '99', '--format', 'csv']

  def labels(*flags):
    assert vit.main([*words, *flags]) == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=''), strict=True)
    return {row['label'] for row in rows}

  assert HOSTILE in labels()
  assert {f"'{HOSTILE}", '1'} < labels('--quote-formulas')


@pytest.mark.parametrize(
  ('words', 'shown'),
  [
    (SECRET, 'https://***@host.example/a.npz?***'),
    ('http://host:80/a?b', 'http://host:80/a?***'),
    ("'gs://bucket/a.npz' is not", "'gs://bucket/a.npz' is not"),
    ('a hf_abcdefghijklmnopqrst', 'a hf_***'),
    ('why? user@host', 'why? user@host'),
  ],
)
def test_what_lets_others_in_is_in_no_text(words, shown):
  assert text.redacted(words) == shown
  assert text.redacted(shown) == shown


def test_a_message_is_one_line_of_at_most_300_characters_with_its_two_ends():
  line = text.message_line('begins\n' + 'x' * 10**6 + ' ends')
  assert len(line) == 300 and line.startswith('begins x') and line.endswith('x ends')
  assert text.message_line('\x1b' * 300).isprintable()


def test_a_runs_files_hold_no_secret_and_it_resumes(tmp_path, monkeypatch):
  loaded = config.load('digits', [f'pretrained={SECRET}', f'pretrained_dir={SECRET}'])
  for _ in range(2):
    workdir.claim(tmp_path, loaded)
  workdir.record(tmp_path, f'vit train --config.pretrained={SECRET}')
  written = ''.join(file.read_text() for file in tmp_path.iterdir())
  assert 'beef' not in written and 'ss@' not in written
  (tmp_path / 'config.json').write_text(json.dumps(loaded.to_dict()))  # as earlier versions did
  workdir.claim(tmp_path, loaded)


LISTS = ('schedule.boundaries', 'views.global_augment')  # of durations and of lines
NUMBERS = {
  field
  for field, (_, kind) in config.flat(config.default()).items()
  if kind in (int, float) or (kind is tuple and field not in LISTS)
}


def test_every_number_of_a_config_has_bounds():
  assert {*config.RANGES} == NUMBERS
  assert all(low < high < float('inf') for low, high in config.RANGES.values())


@pytest.mark.parametrize(
  'value',
  ['1e39', '-1e39', '9' * 4000, '9' * 5000, '-' * 5000 + '1', '[' * 5000, 'nan', '1e999'],
  ids=lambda value: value[:5],
)
def test_no_number_is_beyond_its_bounds(value):
  fields = config.flat(config.default())
  reals = {field for field in NUMBERS if fields[field][1] is float or field in config.LEVELS}
  pairs = {field for field in NUMBERS if field.endswith('_area')}
  # Wrong types are told before values out of bounds.
  for group in (reals, pairs, NUMBERS - reals - pairs):
    with pytest.raises(ValueError, match='is') as error:
      config.load('digits', [f'{field}={value}' for field in group])
    errors = str(error.value).split('; ')
    assert group <= {line.split()[0] for line in errors}
    assert max(map(len, errors)) < 10_000


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('data.augment', 'x' * 10**6, 'has 1,000,000 characters, at most 10,000'),
    ('duration', '999999999999 steps', 'must be below 2,147,483,648'),
    ('batch_size', 10**5000, 'int of unprintable size'),
    ('model.blocks', (1,) * 10**5, 'has a length of 100,000, at most 10,000'),
  ],
  ids=['text', 'steps', 'int', 'tuple'],
)
def test_a_value_of_any_size_is_one_error(field, value, words):
  loaded = config.default()
  if isinstance(value, str):
    with pytest.raises(ValueError, match=words):
      config.load('digits', [f'{field}={value}'])
  else:
    config.set_field(loaded, field, value)
    with pytest.raises(ValueError, match=words) as error:
      config.validated(loaded)
    assert len(str(error.value)) < 1000


def test_json_that_is_nested_deep_is_an_error():
  for opening in ('[', '{"a":'):
    with pytest.raises(ValueError, match='nested too deep'):
      files.parse(opening * 10**6)


def test_a_class_that_a_tfds_folder_names_is_not_imported(tmp_path):
  feature = {'pythonClassName': 'tensorflow_datasets.core.features.image_feature.Image'}
  inner = {'features': {'image': feature, 'label': {'pythonClassName': 'antigravity.Feature'}}}
  (tmp_path / 'features.json').write_text(json.dumps({'featuresDict': inner}))
  (tmp_path / 'dataset_info.json').write_text('{"name": "photos"}')
  with pytest.raises(ValueError, match=r"names 'antigravity\.Feature', which is code"):
    sources.splits_of(f'tfds:{tmp_path}')
  assert 'antigravity' not in sys.modules
