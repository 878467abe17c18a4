"""`vit search`: what it lists is what brute force lists, of images where that is known."""

import argparse
import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from tests import browser
from tests.conftest import drawn, shapes, tiny
from vit_jax import bundle, commands
from vit_jax.__main__ import main
from vit_jax.commands import search as search_command
from vit_jax.commands.search import as_csv
from vit_jax.evaluate import curation, neighbours
from vit_jax.evaluate.collection import Item, Selection

SIZE = (16, 16)


def features(count=60, width=6, seed=0):
  return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def cosines(values):
  directions = np.float64(values) / np.linalg.norm(np.float64(values), axis=1, keepdims=True)
  return directions @ directions.T


def test_similar_pairs_are_all_of_that_cosine_once_the_likest_first():
  values = features()
  pairs = curation.similar_pairs(neighbours.nearest_others(values, k=30), 0.8)
  expected = cosines(values)
  index = [(i, j) for i, j in itertools.combinations(range(60), 2) if expected[i, j] >= 0.8]
  index.sort(key=lambda pair: -expected[pair])
  assert len(index) > 20 and list(map(tuple, pairs.index.tolist())) == index
  np.testing.assert_allclose(pairs.similarity, [expected[pair] for pair in index], atol=1e-6)


def test_outliers_are_those_of_the_lowest_mean_cosine_with_their_nearest_others():
  values = features()
  order, typical = curation.outliers(neighbours.nearest_others(values, k=7))
  expected = cosines(values)
  np.fill_diagonal(expected, -np.inf)
  mean = np.sort(expected, axis=1)[:, -7:].mean(1)
  np.testing.assert_array_equal(order, np.argsort(mean))
  np.testing.assert_allclose(typical, np.sort(mean), atol=1e-6)


def test_a_label_is_doubted_where_neighbours_with_labels_vote_for_another():
  values = np.eye(3, dtype=np.float32)[[0] * 8 + [1] * 8] + 0.05 * features(16, 3)
  labels = np.array([0] * 7 + [1] * 9)  # image 7 lies among the first, and is labelled 1
  labels[[3, 12]] = -1
  doubts = curation.label_doubts(neighbours.nearest_others(values, k=5), labels, 2)
  assert (doubts.index.tolist(), doubts.suggestion.tolist()) == ([7], [0])
  np.testing.assert_allclose(doubts.votes, [[1, 0]], atol=1e-6)


def test_a_diverse_subset_is_farthest_first_and_within_twice_the_best_angle():
  values = features(14, 3)
  similarity = cosines(values)
  mean = (values / np.linalg.norm(values, axis=1, keepdims=True)).sum(0)
  first = int((values @ mean / np.linalg.norm(values, axis=1)).argmax())
  chosen = [first]
  while len(chosen) < 4:
    nearness = similarity[:, chosen].max(1)
    chosen.append(int(np.where(np.isin(np.arange(14), chosen), np.inf, nearness).argmin()))
  result, likeness = curation.diverse(values, 4)
  assert result.tolist() == chosen

  def angle(subset):
    return np.arccos(np.clip(similarity[:, list(subset)].max(1), -1, 1)).max()

  assert np.arccos(likeness[-1]) == pytest.approx(angle(chosen), abs=1e-3)
  assert angle(chosen) <= 2 * min(map(angle, itertools.combinations(range(14), 4)))
  everything, _ = curation.diverse(values, 99)
  assert sorted(everything.tolist()) == list(range(14))


# The command


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  vit = tiny(patch=8, depth=1, num_classes=0)
  preprocess = bundle.Preprocess('resize', SIZE)
  bundle.write(folder, bundle.Bundle(vit, drawn(shapes(vit, SIZE)), (), preprocess, 'ViT-Ti/16'))
  return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Red and blue images, one red among the blue ones, two copies, a near one, and one broken."""
  folder = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for name, channel in (('blue', 2), ('red', 0)):
    (folder / name).mkdir()
    for number in range(6):
      pixels = np.full((24, 24, 3), 40)
      pixels[..., channel] = 200
      pixels[4 * number : 4 * number + 4] += 15
      image = Image.fromarray((pixels + rng.integers(0, 20, pixels.shape)).astype(np.uint8))
      image.save(
        folder / ('blue' if (name, number) == ('red', 5) else name) / f'{name}{number}.png'
      )
  copy = folder / 'red/red0.png'
  (folder / 'red/copy.png').write_bytes(copy.read_bytes())
  with Image.open(copy) as image:
    image.save(folder / 'red/same.bmp')
    image.save(folder / 'red/near.jpg', quality=98, subsampling=0)
  (folder / 'blue/broken.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  return folder


def search(*words):
  return main(['search', *map(str, words)])


def rows_of(out):
  """The names of each group of each list of search.csv."""
  with (out / 'search.csv').open(encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  groups = {}
  for row in rows:
    group = groups.setdefault((row['list'], int(row['group'])), [])
    group.append(row['image'].rpartition('/')[2])
  return rows, groups


def test_copies_near_ones_and_a_wrong_label_are_listed_and_a_broken_file_is_named(
  model, photos, tmp_path, capsys
):
  out = tmp_path / 'out'
  words = (model, f'folder:{photos}', '--cache', tmp_path / 'kept', '--out', out, '--k', 4)
  assert search(*words, '--near', '0.99999', '--diverse', 3) == commands.INCOMPLETE
  streams = capsys.readouterr()
  assert '1 image could not be read' in streams.err and 'broken.png' in streams.err
  rows, groups = rows_of(out)
  assert sorted(groups['duplicates', 1]) == ['copy.png', 'red0.png', 'same.bmp']
  assert all('near.jpg' in groups['near', number] for number in (1, 2, 3))
  assert ('near', 4) not in groups  # the pairs of equal pixels are duplicates
  suspects = [row for row in rows if row['list'] == 'labels']
  names = [(row['image'].rpartition('/')[2], row['suggestion']) for row in suspects]
  assert names == [('red5.png', 'red')]
  assert len(groups['outliers', 1]) == 15 and len(groups['diverse', 1]) == 3
  assert '3 pairs of a cosine' in streams.out
  kept = [*(tmp_path / 'kept').iterdir()]
  assert search(*words, '--only', 'outliers', '--format', 'json') == commands.INCOMPLETE
  (selection,) = json.loads(capsys.readouterr().out)
  assert selection['list'] == 'outliers' and len(selection['rows']) == 15
  assert [*(tmp_path / 'kept').iterdir()] == kept


def test_an_image_is_nearest_to_itself_and_then_to_its_kind(model, photos, tmp_path, capsys):
  query = photos / 'blue/blue3.png'
  words = (model, photos, query, '--cache', '', '--k', 5, '--out', tmp_path)
  assert search(*words) == commands.INCOMPLETE
  rows, groups = rows_of(tmp_path)
  assert groups['neighbours', 1][:2] == ['blue3.png', 'blue3.png']  # the query, itself
  assert all(name.startswith('blue') for name in groups['neighbours', 1])
  assert float(rows[1]['similarity']) == pytest.approx(1, abs=1e-6)
  assert {row['list'] for row in rows} == {'neighbours'}


def test_names_that_a_spreadsheet_computes_are_quoted_where_asked_for_and_numbers_are_not():
  item = Item(0, '=cmd.png', -0.5, '@rose', '+tulip')
  selections = [Selection('labels', '', [('', [item])])]
  rows = [as_csv(selections, quote_formulas=quote).splitlines()[1] for quote in (False, True)]
  assert rows[0] == 'labels,1,1,=cmd.png,-0.5,@rose,+tulip'
  assert rows[1] == "labels,1,1,'=cmd.png,-0.5,'@rose,'+tulip"


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['{photos}', '--near', '1.5'], '--near is a cosine, from -1 to 1, got 1.5'),
    (['{photos}', '--only', 'diverse'], '--only diverse wants --diverse N'),
    (['{photos}/nowhere'], "unknown dataset"),
    (['{photos}', '{photos}/nowhere.png'], 'nowhere.png: there is no such file'),
    (['{photos}', '--out', '{photos}/red/red0.png'], 'is no folder'),
    (['{photos}', '--quote-formulas'], '--quote-formulas is of search.csv: give --out DIR'),
    (['images:{photos}', '--split', 'tst'], "no split 'tst'"),
  ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_line(words, line, model, photos, capsys):
  assert search(model, *(word.format(photos=photos) for word in words)) == commands.BAD_INPUT
  error = capsys.readouterr().err
  assert line in error and len(error.splitlines()) == 1


def test_the_page_opens_photos_by_key_and_fits_a_phone(model, photos, tmp_path, capsys):
  query = photos / 'blue/blue3.png'
  words = (model, photos, query, '--cache', '', '--out', tmp_path, '--only', 'near', 'outliers')
  assert search(*words, '--near', '-1') == commands.INCOMPLETE
  page = tmp_path / 'search.html'
  assert str(photos) not in page.read_text('utf-8') and page.stat().st_size < 200_000
  with browser.chromium() as tab:
    tab.window(390, 800, dark=True)
    tab.open(page)
    assert tab.run('document.documentElement.scrollWidth') <= 390
    tab.run("document.querySelector('.strip .photo').focus()")
    tab.press('Enter')
    assert tab.run("document.getElementById('zoom').open")
    assert 'blue3.png' in tab.text('#zoom-content')
    assert not tab.errors
    assert [url for url in tab.requested if not url.startswith('data:')] == [page.as_uri()]


def test_wrong_labels_are_not_looked_for_where_there_are_no_labels(monkeypatch, capsys):
  unlabelled = {'duplicates': lambda images, args: 'some', 'labels': lambda images, args: None}
  monkeypatch.setattr(search_command, 'SELECTIONS', unlabelled)
  args = argparse.Namespace(only=['labels', 'labels'], diverse=0, photos='pics')
  with pytest.raises(ValueError, match='pics have no single label'):
    search_command.selected(None, None, args)
  args.only = ['duplicates', 'labels']
  assert search_command.selected(None, None, args) == ['some']
  assert 'pics have no single label' in capsys.readouterr().err
