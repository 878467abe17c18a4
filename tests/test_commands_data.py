"""`vit data`: what it says of a set of images is what there is, and what it writes is whole."""

import dataclasses
import io
import json
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from vit_jax import __main__ as vit
from vit_jax import commands, pipeline, sources, text
from vit_jax import config as configs
from vit_jax.commands import data, flags
from vit_jax.images import decoding, transforms
from vit_jax.sources import arrays, presets, survey
from vit_jax.sources import columns as fields
from vit_jax.views import sheet as views

RNG = np.random.default_rng(0)


def encoded(height=6, width=9, form='JPEG', seed=None):
  rng = RNG if seed is None else np.random.default_rng(seed)
  out = io.BytesIO()
  picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
  picture.save(out, form, **({} if form == 'GIF' else {'quality': 90}))
  return out.getvalue()


TWIN, BROKEN, EMPTY = encoded(8, 4, 'PNG', seed=1), b'GIF89a but no more', b''
PIXELS = RNG.integers(0, 256, (3, 5, 3), dtype=np.uint8)
SETS = {
  'train': [(TWIN, 0), (encoded(), 0), (BROKEN, 0), (TWIN, 1), (encoded(20, 30), 1), (EMPTY, 1)],
  'validation': [(PIXELS, 0), (PIXELS.reshape(5, 3, 3), 1), (PIXELS.copy(), -1), (encoded(), 7)],
  'test': [(TWIN, 0), (EMPTY, 1), (encoded(), 1)],
}
CLASSES = ('rose', 'tulip', 'lily')


class Records:
  """Records that are made when they are read."""

  def __init__(self, images):
    self.images = images

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    image, label = self.images[index]
    if isinstance(image, Exception):
      raise image
    return {'image': image, 'label': np.asarray(label, np.int32)}


def source(images, classes=CLASSES, name='set'):
  return sources.Source(Records(images), classes, f'{name}/{{}}.jpg'.format)


def install(monkeypatch, sets, classes=CLASSES):
  """Makes 'arrays:mine' a data set of these splits."""
  made = {split: source(images, classes, split) for split, images in sets.items()}
  module = types.SimpleNamespace(
    splits=lambda kind, name: {split: lambda one=one: one for split, one in made.items()}
  )
  import_module = data.importlib.import_module
  monkeypatch.setattr(
    data.importlib,
    'import_module',
    lambda name: module if name == 'vit_jax.sources.arrays' else import_module(name),
  )
  return made


@pytest.fixture
def mine(monkeypatch):
  return install(monkeypatch, SETS)


def run(*words):
  return vit.main(['data', *words])


def as_json(capsys, *words):
  code = run('show', 'arrays:mine', '--format', 'json', *words)
  return code, json.loads(capsys.readouterr().out)


def test_a_report_counts_images_classes_bytes_and_sizes(mine, capsys):
  code, report = as_json(capsys)
  train, validation = report['splits']['train'], report['splits']['validation']
  assert (code, report['classes']) == (3, list(CLASSES))
  assert train['count'] == 6
  assert train['per_class'] == [3, 3, 0]
  assert (train['largest'], train['smallest'], train['empty']) == ('rose', 'lily', ['lily'])
  assert train['bytes'] == sum(len(image) for image, _ in SETS['train'])
  assert train['height'] == {'min': 6, 'median': 8, 'max': 20}
  assert train['width'] == {'min': 4, 'median': 6, 'max': 30}
  assert validation['per_class'] == [1, 1, 0]
  assert validation['unlabelled'] == 2  # -1 and 7
  assert validation['bytes'] == 3 * PIXELS.nbytes + len(SETS['validation'][3][0])


def test_unreadable_images_are_named_with_what_is_wrong_with_them(monkeypatch, capsys):
  gone = OSError(5, 'Input/output error')
  install(monkeypatch, {'train': [(BROKEN, 0), (EMPTY, 1), (gone, 1), (TWIN, 2)]})
  code, report = as_json(capsys)
  reasons = {bad['image']: bad['reason'] for bad in report['splits']['train']['unreadable']}
  assert code == 3
  assert list(reasons) == ['train/0.jpg', 'train/1.jpg', 'train/2.jpg']
  assert 'empty' in reasons['train/1.jpg'] and reasons['train/2.jpg'] == 'Input/output error'
  assert report['splits']['train']['height'] == {'min': 8, 'median': 8, 'max': 8}


def test_equal_files_and_equal_pixels_are_duplicates_and_unreadable_ones_are_not(mine, capsys):
  _, report = as_json(capsys)
  twins = report['duplicates']
  assert twins['within'] == {'train': 1, 'validation': 1}
  assert twins['between'] == [{'splits': ['train', 'test'], 'images': 1}]
  named = [[one['image'] for one in group] for group in twins['groups']]
  assert named == [
    ['train/0.jpg', 'train/3.jpg', 'test/0.jpg'],
    ['validation/0.jpg', 'validation/2.jpg'],  # not 1, of the same bytes in another shape
  ]


def brute(digests):
  """Images of a later split that are in an earlier one, pair by pair."""
  return {
    (a, b): sum(x in list(digests[a]) for x in digests[b])
    for a in digests
    for b in digests
    if a < b and set(digests[a]) & set(digests[b])
  }


@pytest.mark.parametrize('seed', range(5))
def test_duplicates_are_those_that_a_comparison_of_all_with_all_finds(seed):
  rng = np.random.default_rng(seed)
  surveys, digests = {}, {}
  for name in 'abc':
    digests[name] = rng.integers(0, 12, rng.integers(1, 10)).astype(np.uint64)
    count = len(digests[name])
    surveys[name] = survey.Survey(source([(b'', 0)] * count))
    surveys[name].label_sets[()] = 0
    surveys[name].sides[:], surveys[name].digests[:] = 1, digests[name]
  report = survey.report('x', surveys)['duplicates']
  pairs = {tuple(pair['splits']): pair['images'] for pair in report['between']}
  assert pairs == brute(digests)
  twice = {name: len(rows) - len(set(rows.tolist())) for name, rows in digests.items()}
  assert report['within'] == {name: count for name, count in twice.items() if count}


def photograph(seed):
  """Smooth noise with contrast (60, 80, 3)."""
  noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
  return Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC)


def saved(picture, form, **options):
  out = io.BytesIO()
  picture.save(out, form, **options)
  return out.getvalue()


def test_a_picture_saved_anew_in_another_split_is_a_near_duplicate(monkeypatch, capsys):
  one, two, three, four = (photograph(seed) for seed in range(4))
  grey = Image.new('RGB', (80, 60), (90, 90, 90))
  train = [(saved(picture, 'PNG'), 0) for picture in (one, two, three, grey)]
  test = [
    (saved(one, 'JPEG', quality=50), 0),
    (saved(two.resize((40, 30)), 'PNG'), 1),
    (saved(four, 'PNG'), 1),
    (saved(Image.new('RGB', (80, 60), (91, 90, 90)), 'PNG'), 0),  # of these neither shows a thing
  ]
  install(monkeypatch, {'train': train, 'test': test})
  code, report = as_json(capsys)
  near = report['near_duplicates']
  assert (code, near['between']) == (0, [{'splits': ['train', 'test'], 'images': 2}])
  assert [[one['image'] for one in pair] for pair in near['pairs']] == [
    ['train/0.jpg', 'test/0.jpg'],
    ['train/1.jpg', 'test/1.jpg'],
  ]
  run('show', 'arrays:mine')
  printed = capsys.readouterr().out
  assert 'images of test that are nearly in train too: 2\n  train/0.jpg ~ test/0.jpg\n' in printed


def test_the_same_picture_in_two_classes_is_a_conflict_in_whatever_file(monkeypatch, capsys):
  same, other = encoded(seed=5), encoded(seed=6)
  copy = saved(Image.open(io.BytesIO(same)), 'BMP')
  labels = [(same, 0), (other, 1), (copy, 2), (other, 1), (same, -1)]
  install(monkeypatch, {'train': labels})
  code, report = as_json(capsys)
  assert code == 3
  assert report['conflicts'] == [
    [
      {'split': 'train', 'image': 'train/0.jpg', 'classes': ['rose']},
      {'split': 'train', 'image': 'train/2.jpg', 'classes': ['lily']},
    ]
  ]
  run('show', 'arrays:mine')
  assert '  train/0.jpg (rose) = train/2.jpg (lily)\n' in capsys.readouterr().out


def test_images_of_hardly_any_levels_are_told(monkeypatch, capsys):
  dark = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24) * 7 % 4096  # 12 bits in 16
  pictures = [(saved(Image.fromarray(dark + np.uint16(i)), 'PNG'), i % 2) for i in range(4)]
  sets = install(monkeypatch, {'train': pictures, 'test': [(encoded(seed=7), 0)]})
  splits = as_json(capsys)[1]['splits']
  assert splits['train']['contrast'] == {'min': 15, 'median': 15, 'max': 15}
  assert 'use 15 of 255 levels' in splits['train']['warning'] and not splits['test']['warning']
  assert survey.sampled_contrasts(sets['train']) == [15] * 4
  others = [(BROKEN, 0), (np.zeros((2, 2, 3), np.float32), 0), (None, 0), (PIXELS, 0)]
  assert survey.sampled_contrasts(source(others)) == [survey.contrast(PIXELS)]


def test_a_table_says_what_is_wrong_and_names_a_few(mine, capsys):
  assert run('show', 'arrays:mine') == 3
  captured = capsys.readouterr()
  assert captured.err == ''  # no bar where there is no terminal
  for line in [
    'arrays:mine, 3 classes',
    'classes without an image in train: 1',
    '  lily',
    'images of validation without a label among the classes: 2',
    'unreadable images of train: 2',
    'images of train that are there already: 1',
    '  train/0.jpg = train/3.jpg',
    'images of test that are in train too: 1',
    '  train/0.jpg = test/0.jpg',
  ]:
    assert line in captured.out.splitlines()


def test_what_is_passed_over_is_in_the_report(monkeypatch, capsys):
  items = (sources.PassedOver('hidden', '.png', 3), sources.PassedOver('unknown column', 'width'))
  sets = {'train': [(TWIN, 0), (encoded(), 1)]}
  one = dataclasses.replace(source(sets['train']), passed_over=items)
  monkeypatch.setattr(sources, 'splits_of', lambda name: {'train': lambda: one.subset([1, 0])})
  assert as_json(capsys)[1]['passed_over'] == [dataclasses.asdict(item) for item in items]
  run('show', 'arrays:mine')
  assert 'passed over: 3 .png (hidden), 1 width (unknown column)\n' in capsys.readouterr().out


def test_a_set_without_faults_ends_with_0_and_one_split_may_be_chosen(monkeypatch, capsys):
  install(monkeypatch, {'train': [(encoded(), 0)] * 3, 'test': [(BROKEN, 1)]})
  assert run('show', 'arrays:mine', '--split', 'train[:2]') == 0
  out = capsys.readouterr().out
  assert 'train[:2]' in out and 'test' not in out
  assert run('show', 'arrays:mine') == 3


def test_images_without_labels_are_shown_without_classes_and_saved_without_folders(
  monkeypatch, tmp_path, capsys
):
  images = [encoded(seed=seed) for seed in range(2)]
  unlabelled = sources.Source([{'image': image} for image in images], ())
  monkeypatch.setattr(sources, 'splits_of', lambda name: {'train': lambda: unlabelled})
  assert run('show', 'images:mine') == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'images:mine, no labels' and 'class' not in ''.join(lines)
  assert run('save', 'images:mine', str(tmp_path)) == 0
  assert [(tmp_path / f'00000{i}.jpg').read_bytes() for i in range(2)] == images


def test_an_empty_split_is_left_out_unless_it_is_asked_for(monkeypatch, capsys):
  install(monkeypatch, {'train': [(PIXELS, 0), (TWIN, 1)], 'validation': []})
  assert run('show', 'arrays:mine') == 0
  captured = capsys.readouterr()
  assert captured.err == 'arrays:mine has no images in validation\n'
  assert 'validation' not in captured.out
  assert run('show', 'arrays:mine', '--split', 'validation') == 2
  install(monkeypatch, {'train': []})
  assert run('show', 'arrays:mine') == 2
  assert capsys.readouterr().err.endswith('vit data: arrays:mine has no images\n')


def test_names_of_any_characters_stay_on_their_line(monkeypatch, capsys):
  install(monkeypatch, {'train': [(PIXELS, 0), (TWIN, 1)]}, ('new\nline', 'caf\udce9', 'no\tne'))
  assert run('show', 'arrays:mine') == 0
  printed = capsys.readouterr().out.splitlines()
  assert [line for line in printed if line.startswith(('new\\nline ', 'caf\\xe9 ', 'no\\tne '))]
  assert '  no\\tne' in printed
  assert '0 (no\\tne) to 1 (new\\nline)' in printed[2]


def test_classes_of_the_same_size_are_shown_by_that(monkeypatch, capsys):
  install(monkeypatch, {'train': [(PIXELS, 0), (TWIN, 1)]}, ('rose', 'tulip'))
  assert run('show', 'arrays:mine') == 0
  assert capsys.readouterr().out.splitlines()[2].endswith('1 each')


def test_many_classes_are_shown_by_the_largest_and_the_smallest(monkeypatch, capsys):
  classes = tuple(f'class{i}' for i in range(50))
  images = [(PIXELS + np.uint8(i), i) for i in range(50) for _ in range(i + 1)]
  install(monkeypatch, {'train': images}, classes)
  assert run('show', 'arrays:mine') == 0
  out = capsys.readouterr().out
  assert '(38 others)' in out and 'class49' in out and 'class0 ' in out and 'class20' not in out
  _, report = as_json(capsys)
  assert report['splits']['train']['per_class'] == list(range(1, 51))


def test_labels_of_a_multi_label_image_all_count(monkeypatch, capsys):
  labels = [[0, 2, -1], [2, -1, -1], [-1, -1, -1]]
  install(monkeypatch, {'train': [(encoded(), row) for row in labels]})
  code, report = as_json(capsys)
  train = report['splits']['train']
  assert (code, train['per_class'], train['unlabelled']) == (0, [1, 0, 2], 1)


def test_threads_change_nothing_but_the_pace(mine, capsys):
  reports = [as_json(capsys, '--threads', threads)[1] for threads in ('1', '5')]
  assert all(report.pop('images_per_second') > 0 for report in reports)
  assert reports[0] == reports[1]


def test_threads_stay_a_few_items_ahead():
  begun = []
  results = survey.in_order(lambda item: begun.append(item) or -item, range(1000), threads=2)
  assert [next(results) for _ in range(3)] == [0, -1, -2]
  assert len(begun) <= 3 + 2 * 2 + 1
  results.close()
  assert len(begun) < 20


# The sheet


LINE = 'inception_crop(area_min=0.3) | flip'


def sheet(tmp_path, *words):
  file = tmp_path / 'sheet.png'
  code = run('show', 'digits', '--split', 'validation', '--size', '12', '--out', str(file), *words)
  return code, np.asarray(Image.open(file))


def test_a_sheet_has_images_as_rows_and_what_training_draws_of_them_as_columns(tmp_path, capsys):
  code, image = sheet(tmp_path, '--augment', LINE, '--seed', '3')
  rows, columns = data.SHEET
  tiles = np.zeros((rows, columns, 12, 12, 3), np.uint8)
  times = 6  # so that a tile has 64 pixels at least
  assert code == 0 and views.tile_size(tiles) == (72, 72)
  source = sources.open_source('digits', 'validation')
  transform = transforms.compose(LINE, (12, 12))
  for row, index in {0: 0, rows - 1: len(source) - 1}.items():
    examples = pipeline.BatchBuilder(source, {'image': fields.image(transform)}, columns, seed=3)
    for epoch in range(columns):
      examples.add(index, epoch)
    drawn = examples.arrays()['image']
    for column in range(columns):
      x, y = views.place(tiles, row, 1 + column, lines=2)
      tile = image[y : y + 72 : times, x : x + 72 : times]
      np.testing.assert_array_equal(tile, drawn[column])
    x, y = views.place(tiles, row, 0, lines=2)
    whole = source[index]['image'].repeat(9, 0).repeat(9, 1)  # 8 x 8, as it is
    np.testing.assert_array_equal(image[y : y + 72, x : x + 72], whole)
  assert len(np.unique(drawn, axis=0)) > columns / 2


@pytest.mark.parametrize(
  'words, recipe, size',
  [((), 'digits', (8, 8)), (('--config', 'scratch:digits'), 'scratch:digits', (32, 32))],
)
def test_a_sheet_has_the_transforms_of_a_recipe_and_says_which(words, recipe, size):
  augmentation = data.training_augmentation(flags.parse('data', ['show', 'digits', *words]))
  config = configs.load(recipe)
  assert (augmentation.recipe, augmentation.line) == (recipe, config.data.augment)
  assert augmentation.transform.size == size == tuple(config.image_size)


def test_a_sheet_is_the_same_for_a_seed_and_another_for_another(tmp_path):
  first, again, other = (sheet(tmp_path, '--augment', LINE, '--seed', seed)[1] for seed in '110')
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


def test_a_sheet_shows_images_that_can_be_read_and_no_others(monkeypatch, tmp_path):
  install(monkeypatch, {'train': [(BROKEN, 0), (PIXELS, 1), (EMPTY, 1)]})
  file = tmp_path / 'sheet.png'
  words = ['--out', str(file), '--size', '4', '--augment', 'resize']
  assert run('show', 'arrays:mine', *words) == 3
  tiles = np.zeros((1, data.SHEET[1], 4, 4, 3), np.uint8)
  height, width, _ = np.asarray(Image.open(file)).shape
  assert (width, height) == tuple(
    place - views.GAP + views.MARGIN for place in views.place(tiles, 1, 9, lines=2)[:2]
  )


def test_ctrl_c_leaves_the_png_that_was_there_and_no_half_of_one(monkeypatch, tmp_path):
  file = tmp_path / 'sheet.png'
  file.write_bytes(b'before')

  def ctrl_c(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, 'replace', ctrl_c)
  assert run('show', 'digits', '--split', 'test[:9]', '--size', '8', '--out', str(file)) == 130
  assert os.listdir(tmp_path) == ['sheet.png']
  assert file.read_bytes() == b'before'


@pytest.mark.parametrize(
  'words, said',
  [
    (['digit'], 'did you mean digits'),
    (['digits:x'], 'unknown dataset'),
    (['digits', '--split', 'tset'], 'did you mean test'),
    (['digits', '--out', 'OUT.jpg'], '.png'),
    (['digits', '--out', '/nowhere/at/all.png'], '/nowhere/at/all.png'),
    (['digits', '--out', 'OUT.png', '--augment', 'flop'], 'did you mean flip'),
    (['digits', '--augment', 'flip'], '--out'),
    (['digits', '--threads', '0'], '--threads'),
    (['digits', '--out', 'OUT.png', '--size', '-1'], '--size'),
    (['digits', '--out', 'OUT.png', '--augment', 'random_crop(9)'], 'image 0: a crop of 9x9'),
    (['digits', '--out', 'OUT.png', '--size', '8', '--augment', 'resize(4)'], '4x4 pixels, --size'),
    (['digits', '--out', 'OUT.png', '--size', '100000'], '--size must be from 1 to 1182'),
    (['digits', '--out', 'OUT.png', '--augment', 'resize(100000)'], 'from 1 to 16,384'),
    (['digits', '--out', 'OUT.png', '--seed', '-1'], '--seed must be from 0 to 4294967295'),
  ],
)
def test_what_cannot_be_shown_is_refused_on_one_line_before_all_is_read(
  words, said, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(data, 'survey_split', None)
  assert run('show', *(word.replace('OUT', str(tmp_path / 'out')) for word in words)) == 2
  captured = capsys.readouterr()
  assert captured.err.count('\n') == 1 and said in captured.err
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('kind', ['folder', 'denied'])
def test_a_sheet_that_cannot_be_written_is_named_itself(kind, tmp_path, capsys, monkeypatch):
  out = tmp_path / 'sheet.png'
  if kind == 'folder':
    out.mkdir()
  else:

    def denied(**_):
      raise PermissionError(13, 'Permission denied', 'another')

    monkeypatch.setattr(data.tempfile, 'TemporaryFile', denied)
  monkeypatch.setattr(data, 'survey_split', None)
  assert run('show', 'digits', '--out', str(out)) == 2
  reason = {'folder': 'Is a directory', 'denied': 'Permission denied'}[kind]
  assert capsys.readouterr().err == f'vit data: --out {out} cannot be written: {reason}\n'


def test_help_tells_the_exit_codes(capsys):
  with pytest.raises(SystemExit):
    run('show', '--help')
  assert '3 if an image cannot be read' in ' '.join(capsys.readouterr().out.split())


# Save, prepare, list


FORMS = {'JPEG': 'jpg', 'PNG': 'png', 'WEBP': 'webp', 'BMP': 'bmp', 'GIF': 'gif', 'TIFF': 'tif'}
FORMS |= {'AVIF': 'avif'} if '.avif' in decoding.formats() else {}


def test_encoded_images_are_saved_as_they_are_and_pixels_as_png(tmp_path):
  images = [(encoded(form=form), 0) for form in FORMS] + [(PIXELS, 1)]
  assert data.save_images(source(images), tmp_path) == (len(images), [])
  for index, ending in enumerate(FORMS.values()):
    assert (tmp_path / 'rose' / f'{index:06d}.{ending}').read_bytes() == images[index][0]
  (pixels,) = (tmp_path / 'tulip').iterdir()
  np.testing.assert_array_equal(np.asarray(Image.open(pixels)), PIXELS)


@pytest.mark.parametrize(
  'labels, count, indices',
  [
    (np.repeat(np.arange(4), 5), 8, [0, 1, 5, 6, 10, 11, 15, 16]),  # two of each
    (np.repeat(np.arange(4), 5), 2, [0, 15]),  # the first and the last class
    (np.array([0, 0, 0, 0, 1, 2]), 5, [0, 1, 2, 4, 5]),  # of the one that has more
    (np.arange(100) % 10, 10, range(10)),
    (np.arange(3), 7, range(3)),
    (np.eye(9, dtype=np.int32), 3, [0, 4, 8]),  # multi-label
    (None, 3, [0, 4, 8]),
  ],
)
def test_a_number_of_images_is_spread_over_the_classes(labels, count, indices):
  records = [{}] * 9 if labels is None else arrays.Pixels(np.zeros((len(labels), 2, 2)), labels)
  assert list(data.spread(sources.Source(records, tuple('abcdefghij')), count)) == list(indices)


@pytest.mark.parametrize('name', ['../out', '/etc/x', '..', '.', '', 'a\\..\\b', 'a\0b'])
def test_a_class_name_leads_to_no_other_folder(name, tmp_path):
  folder = tmp_path / 'in' / 'here'
  data.save_images(source([(PIXELS, 1)], ('rose', name)), folder)
  (file,) = (path for path in tmp_path.rglob('*') if path.is_file())
  assert file.parent.parent == folder


def test_classes_of_the_same_name_get_folders_of_their_own():
  folders = data.class_folders(['crane', 'a/b', 'a_b', 'crane', 'a b.c'])
  assert folders == ['crane', '1_a_b', 'a_b', '3_crane', 'a b.c']


@pytest.mark.parametrize(
  'image, label, said',
  [
    (PIXELS, -1, 'label -1 is none of the 3 classes'),
    (PIXELS, 3, 'label 3 is none of the 3 classes'),
    (b'text', 0, 'not an image'),
    (EMPTY, 0, 'the file is empty'),
    (OSError(5, 'Input/output error'), 0, 'Input/output error'),
  ],
)
def test_an_image_that_cannot_be_saved_is_named_and_the_others_are_saved(
  image, label, said, tmp_path
):
  result = data.save_images(source([(PIXELS, 0), (image, label), (PIXELS, 1)]), tmp_path)
  assert result == (2, [f'set/1.jpg: {said}'])
  assert sorted(path.name for path in tmp_path.rglob('*.png')) == ['000000.png', '000002.png']


def test_multi_label_images_are_not_saved(tmp_path):
  with pytest.raises(ValueError, match='multi-label'):
    data.save_images(source([(PIXELS, [0, 1])]), tmp_path)
  assert os.listdir(tmp_path) == []


def test_save_ends_with_3_and_names_what_show_calls_unreadable(monkeypatch, tmp_path, capsys):
  install(monkeypatch, {'train': [], 'validation': [(BROKEN, 0), (PIXELS, 0), (EMPTY, 1)]})
  assert run('show', 'arrays:mine', '--format', 'json') == 3
  shown = json.loads(capsys.readouterr().out)['splits']['validation']['unreadable']
  assert run('save', 'arrays:mine', str(tmp_path)) == 3
  captured = capsys.readouterr()
  assert captured.err.splitlines() == [
    f'vit data: {bad["image"]}: {bad["reason"]}' for bad in shown
  ]
  assert captured.out == f'1 image of arrays:mine, split validation, in {tmp_path}; 2 not\n'


def test_save_takes_the_test_split_where_there_is_one(mine, tmp_path, capsys):
  assert run('save', 'arrays:mine', str(tmp_path)) == 3
  assert 'split test' in capsys.readouterr().out


@pytest.mark.parametrize(
  'words, said',
  [
    (['digit', 'OUT'], 'did you mean digits'),
    (['digits', 'OUT', '--split', 'tset'], 'did you mean test'),
    (['digits', 'OUT', '--count', '-5'], '-5'),
  ],
)
def test_what_cannot_be_saved_is_refused(words, said, tmp_path, capsys):
  assert run('save', *(word.replace('OUT', str(tmp_path / 'out')) for word in words)) == 2
  captured = capsys.readouterr()
  assert captured.err.count('\n') == 1 and said in captured.err
  assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_saved_to_is_named(mine, tmp_path, capsys):
  (tmp_path / 'file').touch()
  assert run('save', 'arrays:mine', str(tmp_path / 'file')) == 2
  assert capsys.readouterr().err == f'vit data: {tmp_path}/file/rose: Not a directory\n'


PRESETS = {
  'one': presets.Preset('tfds:one:1.0.0', {'train': 'train[:98%]', 'test': 'test'}, 10, 500),
  'mine': presets.Preset('arrays:mine', {'train': 'train[:2]', 'test': 'test'}, 3),
}


def test_the_presets_are_listed_with_their_splits(monkeypatch, capsys):
  monkeypatch.setattr(presets, 'PRESETS', PRESETS)
  assert run('list') == 0
  words = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ' '.join(words[1]) == 'one tfds:one:1.0.0 10 500 train train[:98%], test test'
  assert run('list', '--format', 'json') == 0
  report = json.loads(capsys.readouterr().out)
  assert report['one'] == {
    'source': 'tfds:one:1.0.0',
    'splits': {'train': 'train[:98%]', 'test': 'test'},
    'classes': 10,
    'steps': 500,
    'warmup': 0,
    'rates': {},
  }


def test_every_preset_is_listed(capsys):
  assert run('list', '--format', 'json') == 0
  assert list(json.loads(capsys.readouterr().out)) == list(presets.PRESETS)


def test_a_preset_is_shown_in_its_own_splits(mine, monkeypatch, capsys):
  monkeypatch.setattr(presets, 'PRESETS', PRESETS)
  run('show', 'mine', '--format', 'json')
  report = json.loads(capsys.readouterr().out)
  assert {name: split['count'] for name, split in report['splits'].items()} == {
    'train': 2,
    'test': 3,
  }


def test_prepare_leaves_the_work_to_tfds_and_says_what_fails(monkeypatch, capsys):
  def prepare(name, *, say):
    say(f'prepares {name}')
    raise ValueError('there is\nno such set')

  tfds = types.SimpleNamespace(prepare=prepare)
  monkeypatch.setattr(data.importlib, 'import_module', {'vit_jax.sources.tfds': tfds}.__getitem__)
  args = flags.parse('data', ['prepare', 'cifar10'])
  assert commands.run('data', lambda: data.run(args)) == 2
  assert capsys.readouterr().err == 'prepares cifar10\nvit data: there is no such set\n'


@pytest.mark.parametrize('is_terminal', [True, False])
def test_progress_shows_on_a_terminal_alone(is_terminal, monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr(stream, 'isatty', lambda: is_terminal, raising=False)
  monkeypatch.setattr(sys, 'stderr', stream)
  with text.progress(4, description='[a]', unit='images') as advance:
    advance(3)
  with text.progress(None, description='b', unit='bytes') as advance:
    advance(2048)
  for part in ('[a] ', '3/4', ' images ', 'b ', '2.0/? kB'):
    assert (part in stream.getvalue()) is is_terminal
  assert is_terminal or not stream.getvalue()
