"""Laws of what strangers write: names on a terminal, secrets in URLs, numbers in configs."""

import ast
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import drawn, shapes, tiny
from tests.structure import ROOT, sources
from vit_jax import __main__ as vit
from vit_jax import bundle, config, text, workdir

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


def test_every_line_is_printed_by_the_module_that_escapes():
  allowed = {'vit_jax.text', 'vit_jax.commands.bench', 'vit_jax.__main__'}  # the last two: no names
  library = {name: source for name, source in sources(ROOT).items() if name not in allowed}
  bare = [
    source.at(node)
    for source in library.values()
    for node in source.nodes(ast.Call)
    if getattr(node.func, 'id', '') == 'print' and 'as_json(' not in ast.unparse(node)
  ]
  assert bare == []


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
