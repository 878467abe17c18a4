"""Folders, tables and arrays of images: the same data set is found whatever its form."""

import csv
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax import config, pipeline, plan, sources
from vit_jax.images import decoding, transforms
from vit_jax.sources import folder, loose
from vit_jax.sources.columns import labelled_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The folder of the cache, which is not the user's."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'vit_jax' / 'index'


def encoded(seed=0, kind='PNG', size=(8, 6)):
  """Bytes of a small image."""
  image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


IMAGE = encoded()


@pytest.fixture
def without_heif(monkeypatch):
  """As where pillow-heif is not installed."""
  formats = {suffix: kind for suffix, kind in decoding.formats().items() if kind != 'HEIF'}
  monkeypatch.setattr(decoding, 'formats', lambda: formats)


def write(root, *names, data=IMAGE):
  """Puts an image at each of the paths."""
  for name in names:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
  return root


def settle(root):
  """Makes all folders look old enough for their times to be trusted."""
  for path, _, _ in os.walk(root):
    os.utime(path, (10**9, 10**9))
  return root


def labelled(name, split='train'):
  """[(path relative to the folder, class)] of a source."""
  source = sources.open_source(name, split)
  root = os.path.realpath(name.partition(':')[2])
  root = root if os.path.isdir(root) else os.path.dirname(root)
  return [
    (os.path.relpath(source.describe(i), root), source.classes[source[i]['label']])
    for i in range(len(source))
  ]


def refused(text, name, split='train', kind=ValueError):
  """The message with which a source is refused, which is one line that holds a text."""
  with pytest.raises(kind) as caught:
    sources.open_source(name, split)
  message = str(caught.value)
  assert re.search(text, message) and '\n' not in message, message
  return message


# Folders


@pytest.fixture
def pets(tmp_path):
  """Two classes, three splits."""
  root = tmp_path / 'pets'
  return write(
    root, 'train/cat/1.png', 'train/dog/2.png', 'train/dog/3.png', 'val/dog/4.png', 'test/cat/5.png'
  )


def test_a_class_is_the_first_folder_below_a_split(pets):
  write(pets, 'train/cat/indoor/black/6.png')
  assert labelled(f'folder:{pets}') == [
    ('train/cat/1.png', 'cat'),
    ('train/cat/indoor/black/6.png', 'cat'),
    ('train/dog/2.png', 'dog'),
    ('train/dog/3.png', 'dog'),
  ]


def test_a_record_holds_the_bytes_of_its_file_and_an_int32(pets):
  record = sources.open_source(f'folder:{pets}', 'train')[0]
  assert record['image'] == IMAGE
  assert record['label'].dtype == np.int32


def test_splits_share_the_class_map_of_train(pets):
  assert labelled(f'folder:{pets}', 'validation') == [('val/dog/4.png', 'dog')]
  assert labelled(f'folder:{pets}', 'test') == [('test/cat/5.png', 'cat')]
  assert sources.open_source(f'folder:{pets}', 'validation').classes == ('cat', 'dog')


@pytest.mark.parametrize('name', ['VAL', 'Validation', 'valid', 'val_set'])
def test_names_of_splits_are_read_in_any_case(tmp_path, name):
  write(tmp_path / 'd', 'TRAIN/a/1.png', 'TRAIN/b/2.png', f'{name}/A/3.png')
  assert labelled(f'folder:{tmp_path}/d', 'validation') == [(f'{name}/A/3.png', 'a')]


def test_suffixes_are_read_in_any_case_and_other_files_ignored(tmp_path):
  names = ['1.JPG', '2.jpeg', '3.Png', '4.webp', '5.bmp', '6.gif', '7.tif', '8.TIFF']
  others = ['notes.txt', 'more.zip', '.hidden.png', 'png', '.git/9.png']
  root = write(
    tmp_path / 'd', *(f'train/a/{name}' for name in names + others), 'train/b/1.png', 'val/a/1.png'
  )
  read = [path for path, name in labelled(f'folder:{root}') if name == 'a']
  assert read == [f'train/a/{name}' for name in names]


@pytest.mark.parametrize('split', ['train/', ''])
def test_what_a_folder_holds_and_is_not_read_is_counted_by_reason_and_suffix(
  without_heif, tmp_path, split
):
  """Twice: from the walk, and from the cache."""
  read = [f'{split}{c}/{i}.{s}' for c in 'ab' for i, s in enumerate(['jpg', 'JFIF', 'jpe'])]
  read += [f'{split}a/deep.png/9.png']  # a folder named like an image
  root = write(tmp_path / 'd', *read)
  write(root, f'{split}a/1.HEIC', f'{split}a/2.heic', f'{split}a/notes.TXT', f'{split}a/label')
  write(root, f'{split}a/.1.png', f'{split}.git/2.png', f'{split}__MACOSX/a/3.jpg')
  write(root, f'{split}b/@eaDir/4.jpg', f'{split}5.png')
  (root / f'{split}a/again').symlink_to('../a')
  (root / f'{split}a/6.txt').symlink_to('notes.TXT')
  os.mkfifo(root / f'{split}b/7.png')
  expected = {
    ("wants pillow-heif: pip install 'vit_jax[heic]'", '.heic'): 2,
    ('no image format that is read', '.txt'): 2,
    ('no image format that is read', ''): 1,
    ('hidden', '.png'): 2,
    ('in __MACOSX', '.jpg'): 1,
    ('in @eaDir', '.jpg'): 1,
    ('in no class folder', '.png'): 1,
    ('a folder that is read already', 'link'): 1,
    ('no regular file', '.png'): 1,
  }
  if split:
    write(root, 'train/a/0.jpg', 'val/a/1.png', 'dev/a/1.png', 'dev/a/.2.png', 'holdout/3.jpg')
    write(root, 'cover.png')
    expected |= {
      ('in dev, which is no split', '.png'): 2,
      ('in holdout, which is no split', '.jpg'): 1,
      ('in no class folder', '.png'): 2,
    }
  settle(root)
  for _ in range(2):
    source = sources.open_source(f'folder:{root}', 'train+validation')
    assert {(i.reason, i.kind): i.count for i in source.passed_over} == expected
    assert sorted(path for path, _ in labelled(f'folder:{root}', 'train+validation')) == sorted(
      [*read, 'val/a/1.png'] if split else read
    )
  line = sources.describe_passed_over(source.passed_over)
  assert line.startswith('passed over: 2 ')
  assert "2 .heic (wants pillow-heif: pip install 'vit_jax[heic]')" in line
  assert '2 .txt, 1 without suffix (no image format that is read)' in line


@pytest.mark.parametrize('name', ['.heic', '.avif'])
def test_a_list_of_files_is_read_again_where_other_formats_are(
  without_heif, pets, monkeypatch, name
):
  before = labelled(f'folder:{settle(write(pets, f"train/cat/6{name}"))}')
  formats = {**decoding.formats(), '.heic': 'HEIF'}
  formats.pop('.avif', None)
  monkeypatch.setattr(decoding, 'formats', lambda: formats)
  assert len(labelled(f'folder:{pets}')) == len(before) + (1 if name == '.heic' else -1)


@pytest.mark.usefixtures('without_heif')
def test_prediction_and_training_read_the_same_files_of_a_folder(pets):
  write(pets / 'train', 'cat/6.heic', 'cat/deep.png/7.jfif', '@eaDir/8.png', '.9.png')
  (pets / 'train/dog/10.png').symlink_to('2.png')
  (pets / 'train/dog/up').symlink_to('..')
  lines = []
  images = loose.image_files([str(pets / 'train')], say=lines.append)
  assert images == [str(pets / path) for path, _ in labelled(f'folder:{pets}')]
  (line,) = lines
  assert line.startswith(f'{pets}/train: passed over: ') and '1 .heic' in line
  (pets / 'train/dog/11.png').symlink_to('/etc/passwd')
  with pytest.raises(ValueError, match='1 link leads out of the folder') as caught:
    loose.image_files([str(pets / 'train')])
  assert str(caught.value).split(': ')[1] in refused('leads out', f'folder:{pets}')


def test_classes_without_split_folders_are_for_training(tmp_path):
  write(tmp_path / 'd', *(f'{c}/{i}.png' for c in 'ab' for i in range(20)))
  train, held = labelled(f'folder:{tmp_path}/d'), labelled(f'folder:{tmp_path}/d', 'validation')
  assert len(train) == 36 and len(held) == 4
  refused("no split 'test'", f'folder:{tmp_path}/d', 'test')


def test_folders_called_training_set_and_test_set_are_splits_and_no_classes(tmp_path):
  splits = ('training_set', 'test_set')
  write(
    tmp_path / 'd', *(f'{s}/{c}/{i}.png' for s in splits for c in ('cats', 'dogs') for i in '01')
  )
  assert [*sources.splits_of(f'folder:{tmp_path}/d')] == ['train', 'validation', 'test']
  source = sources.open_source(f'folder:{tmp_path}/d', 'test')
  assert source.classes == ('cats', 'dogs') and len(source) == 4


def test_without_validation_a_tenth_of_each_class_is_held_out(tmp_path):
  write(tmp_path / 'd', *(f'train/a/{i}.png' for i in range(40)))
  write(tmp_path / 'd', *(f'train/b/{i}.png' for i in range(20)), 'test/a/0.png')
  train, held = labelled(f'folder:{tmp_path}/d'), labelled(f'folder:{tmp_path}/d', 'validation')
  assert [name for _, name in held] == ['a'] * 4 + ['b'] * 2
  assert not set(train) & set(held) and len(train + held) == 60
  assert held == labelled(f'folder:{tmp_path}/d', 'validation')


def test_a_split_is_sliced(pets):
  assert labelled(f'folder:{pets}', 'train[1:]+validation') == [
    ('train/dog/2.png', 'dog'),
    ('train/dog/3.png', 'dog'),
    ('val/dog/4.png', 'dog'),
  ]


def test_classes_that_differ_in_case_alone_stay_apart(tmp_path):
  root = write(tmp_path / 'd', 'train/a/1.png', 'train/A/2.png', 'val/A/3.png', 'val/a/4.png')
  assert [name for _, name in labelled(f'folder:{root}', 'validation')] == ['A', 'a']


def test_names_need_not_be_utf8(tmp_path):
  root = os.fsencode(tmp_path) + b'/d'
  for name in (b'caf\xe9', b'tea'):
    os.makedirs(root + b'/train/' + name)
    with open(root + b'/train/' + name + b'/one\ntwo.png', 'wb') as file:
      file.write(IMAGE)
  source = sources.open_source(f'folder:{tmp_path}/d', 'train')
  assert source.classes == ('caf\\xe9', 'tea')
  assert source[0]['image'] == IMAGE
  name = os.fsdecode(b'caf\xe9').replace('\udce9', '\\xe9')  # as the locale has it
  assert source.describe(0).endswith(f'/{name}/one\\ntwo.png')


@pytest.mark.parametrize(
  'names, text',
  [
    (['val/bird/1.png', 'test/cow/2.png'], "train lacks class 'bird' in validation, 'cow' in test"),
    (['valid/dog/1.png'], 'several folders of validation: val, valid'),
  ],
)
def test_a_folder_that_is_wrong_is_refused_in_one_line(pets, names, text):
  write(pets, *names)
  assert str(pets) in refused(text, f'folder:{pets}')


def test_a_folder_of_one_class_or_without_train_can_be_measured(tmp_path):
  one = write(tmp_path / 'one', 'rose/1.png', 'rose/2.png')
  assert sorted(labelled(f'folder:{one}', 'all')) == [
    ('rose/1.png', 'rose'),
    ('rose/2.png', 'rose'),
  ]
  name = f'folder:{write(tmp_path / "test", "test/b/1.png", "val/a/2.png", "val/b/3.png")}'
  assert labelled(name, 'test') == [('test/b/1.png', 'b')]
  assert sources.open_source(name, 'all').classes == ('a', 'b')
  refused("no split 'train'", name)


@pytest.mark.parametrize('below', ['', 'train/', 'test/'])
def test_a_folder_with_an_empty_class_can_be_measured(below, tmp_path):
  names = [f'{below}{name}' for name in ('cat/1.png', 'dog/2.png', 'emu/notes.txt')]
  name = f'folder:{write(tmp_path / "d", *names)}'
  source = sources.open_source(name, 'all')
  assert (source.classes, len(source)) == (('cat', 'dog', 'emu'), 2)
  assert source.empty_classes == (() if below == 'test/' else ('emu',))


@pytest.mark.usefixtures('without_heif')
def test_a_folder_whose_images_are_not_read_says_why(tmp_path):
  name = f'folder:{write(tmp_path / "d", "cat/1.heic", "dog/2.heic")}'
  refused("no images in split 'train'; passed over: 2 .heic", name)


def test_all_is_every_split_each_image_once(pets):
  everything = labelled(f'folder:{pets}', 'all')
  assert everything == labelled(f'folder:{pets}', 'train+validation+test')
  assert sources.overlap(*(sources.open_source(f'folder:{pets}', s) for s in ('all', 'test'))) == 1


def test_the_folder_around_a_data_set_is_refused_with_its_name(pets, tmp_path):
  write(tmp_path / 'around', 'about.png')
  os.rename(pets, tmp_path / 'around/pets')
  refused(f'did you mean {tmp_path}/around/pets', f'folder:{tmp_path}/around')


def test_a_folder_without_train_or_classes_is_refused(tmp_path):
  root = write(tmp_path / 'd', 'test/a/1.png', 'cat/2.png', 'dog/3.png')
  refused('test but no train, and beside them cat, dog', f'folder:{root}', 'test')
  refused('holds no class folders', f'folder:{write(tmp_path / "e", "1.png")}')


def test_an_empty_split_is_refused(pets):
  os.remove(pets / 'test/cat/5.png')
  assert len(sources.open_source(f'folder:{pets}', 'train')) == 3
  refused("no images in split 'test'", f'folder:{pets}', 'test')


def test_a_path_that_is_no_folder_is_refused(tmp_path):
  (tmp_path / 'pets.zip').write_bytes(b'PK')
  refused('unpack it first', f'folder:{tmp_path}/pets.zip')
  refused('no such folder$', f'folder:{tmp_path}/none', kind=FileNotFoundError)


def test_a_folder_that_may_not_be_read_is_named(pets, monkeypatch):
  def scandir(path, listed=os.scandir):
    if path.endswith(b'dog'):
      raise PermissionError(13, 'Permission denied', path)
    return listed(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  refused('train/dog cannot be read: Permission denied', f'folder:{pets}')


# Links


def test_links_that_stay_inside_are_followed(pets):
  write(pets, 'store/6.png', 'store/deep/7.png')
  (pets / 'train/cat/more').symlink_to('../../store')
  (pets / 'train/cat/8.png').symlink_to(pets / 'store/6.png')
  assert [path for path, name in labelled(f'folder:{pets}') if name == 'cat'] == [
    'train/cat/1.png',
    'train/cat/8.png',
    'train/cat/more/6.png',
    'train/cat/more/deep/7.png',
  ]


def test_the_folder_itself_may_be_a_link(pets, tmp_path):
  (tmp_path / 'link').symlink_to(pets)
  assert labelled(f'folder:{tmp_path}/link') == labelled(f'folder:{pets}')


@pytest.mark.parametrize('link', ['train/cat/6.png', 'train/cat/more', 'train/bird', 'valid'])
@pytest.mark.parametrize('exists', [True, False])
def test_links_that_lead_out_are_refused(pets, tmp_path, link, exists):
  outside = write(tmp_path / 'outside', 'a/1.png') / ('a/1.png' if 'png' in link else 'a')
  if not exists and 'png' not in link:
    outside = outside / '..' / 'a'
  elif not exists:
    outside.unlink()
  (pets / link).symlink_to(outside)
  message = refused(f'1 link leads out of the folder: .*{link}', f'folder:{pets}')
  assert str(pets) in message


def test_the_first_links_that_lead_out_are_named_and_all_counted(pets):
  for number in range(9):
    (pets / f'train/cat/l{number}.png').symlink_to('/etc/passwd')
  refused('9 links lead out of the folder: .*l0.png, .*l4.png and 4 more', f'folder:{pets}')


def test_a_folder_beside_one_of_the_same_beginning_is_outside(pets, tmp_path):
  write(tmp_path / 'pets2', '1.png')
  (pets / 'train/cat/6.png').symlink_to(tmp_path / 'pets2/1.png')
  refused('out of the folder', f'folder:{pets}')


def test_links_in_a_circle_end(pets):
  before = labelled(f'folder:{pets}')
  (pets / 'train/cat/self').symlink_to('.')
  (pets / 'train/cat/up').symlink_to('../..')
  (pets / 'train/cat/none').symlink_to('none')
  for a in range(12):
    for b in range(12):
      (pets / f'train/cat/{a}').mkdir(exist_ok=True)
      (pets / f'train/cat/{a}/to{b}').symlink_to(f'../{b}')
  assert labelled(f'folder:{pets}') == before


def test_a_pipe_is_no_image(pets):
  before = labelled(f'folder:{pets}')
  os.mkfifo(pets / 'train/cat/6.png')
  (pets / 'train/cat/7.png').symlink_to('6.png')
  assert labelled(f'folder:{pets}') == before


# The cache


@pytest.fixture
def walks(monkeypatch):
  """Grows with each walk through a folder."""
  visits, make_index = [], folder.make_index
  monkeypatch.setattr(folder, 'make_index', lambda root: visits.append(root) or make_index(root))
  return visits


def test_a_folder_is_walked_through_once(pets, walks):
  settle(pets)
  first = [labelled(f'folder:{pets}', split) for split in ('train', 'validation', 'test')]
  assert first == [labelled(f'folder:{pets}', split) for split in ('train', 'validation', 'test')]
  assert len(walks) == 1


@pytest.mark.parametrize(
  'change',
  [
    lambda root: write(root, 'train/cat/6.png'),
    lambda root: write(root, 'train/cat/deep/6.png'),
    lambda root: write(root, 'validation/cat/6.png') and os.rename(root / 'val', root / '.val'),
    lambda root: os.remove(root / 'train/dog/3.png'),
    lambda root: os.rename(root / 'train/dog/3.png', root / 'train/dog/4.png'),
    lambda root: (
      os.rename(root / 'train/dog', root / 'train/wolf')
      or os.rename(root / 'val/dog', root / 'val/wolf')
    ),
  ],
)
def test_any_change_of_a_folder_is_seen(pets, walks, cache, change):
  before = labelled(f'folder:{settle(pets)}')
  change(pets)
  after = [labelled(f'folder:{pets}', split) for split in ('train', 'validation')]
  assert len(walks) > 1
  for file in cache.iterdir():
    file.unlink()
  assert after == [labelled(f'folder:{pets}', split) for split in ('train', 'validation')]
  assert (before, [('val/dog/4.png', 'dog')]) != tuple(after)


def test_a_change_whose_time_is_set_back_is_seen(pets):
  before = labelled(f'folder:{settle(pets)}')
  settle(write(pets, 'train/cat/6.png'))  # as tar and rsync do
  assert len(labelled(f'folder:{pets}')) == len(before) + 1


def test_a_folder_that_changed_just_now_is_not_cached(pets, walks, cache):
  labelled(f'folder:{pets}')
  labelled(f'folder:{pets}')
  assert len(walks) == 2 and not cache.exists()


@pytest.mark.parametrize(
  'damage',
  [
    lambda data: b'',
    lambda data: b'not a zip file',
    lambda data: data[: len(data) // 2],
    lambda data: data.replace(b'train/cat', b'train/cow'),
    lambda data: data[:-1],
  ],
)
def test_a_damaged_cache_is_rebuilt(pets, walks, cache, damage):
  before = labelled(f'folder:{settle(pets)}')
  (file,) = cache.iterdir()
  data = file.read_bytes()
  file.write_bytes(damage(data))
  assert labelled(f'folder:{pets}') == before and len(walks) == 2
  assert file.stat().st_size == len(data)
  labelled(f'folder:{pets}')
  assert len(walks) == 2


@pytest.mark.parametrize(
  'name, value',
  [
    ('format', np.int64(99)),
    ('root', np.frombuffer(b'/elsewhere', np.uint8)),
    ('labels', np.int32([0, 0, 0, 0, 7])),
    ('labels', np.int32([0])),
    ('offsets', np.zeros(6, np.int64)),
    ('offsets', np.zeros(6, object)),
    ('counts', np.array([1, 1, 1])),
    ('paths', np.zeros(4, np.float32)),
    ('times', np.zeros(1, np.int64)),
  ],
)
def test_a_foreign_cache_is_ignored(pets, walks, cache, name, value):
  before = labelled(f'folder:{settle(pets)}')
  (file,) = cache.iterdir()
  with np.load(file) as index:
    arrays = {**index, name: value}
  np.savez(file, **arrays)
  assert labelled(f'folder:{pets}') == before and len(walks) == 2


def test_a_cache_that_cannot_be_written_is_done_without(pets, monkeypatch, tmp_path):
  settle(pets)
  (tmp_path / 'file').write_bytes(b'')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert len(labelled(f'folder:{pets}')) == 3
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setattr(folder, 'cache_file', lambda root, kind: None)
  assert len(labelled(f'folder:{pets}')) == 3


def test_a_disk_that_is_full_leaves_nothing_in_the_cache(pets, cache, monkeypatch):
  def full(*args, **arrays):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full)
  assert len(labelled(f'folder:{settle(pets)}')) == 3
  assert not list(cache.iterdir())


def test_a_relative_xdg_cache_home_is_ignored(monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', 'cache')
  monkeypatch.setenv('HOME', '/home/somebody')
  assert folder.cache_file(b'/data', 'folder').startswith('/home/somebody/.cache/vit_jax/index/')


# Images without labels


def unlabelled(root, split='train'):
  """The paths of a split of a folder of images, relative to it."""
  source = sources.open_source(f'images:{root}', split)
  assert source.classes == () and all(source[i].keys() == {'image'} for i in range(len(source)))
  return [os.path.relpath(source.describe(i), os.path.realpath(root)) for i in range(len(source))]


def test_images_are_read_at_any_depth_and_judged_as_those_of_class_folders(tmp_path):
  root = write(tmp_path / 'd', 'a.png', 'b/c.jpg', 'b/d/e/f.webp', '.g/h.png', 'notes.txt')
  assert sorted(unlabelled(root, 'all')) == ['a.png', 'b/c.jpg', 'b/d/e/f.webp']
  reasons = {(p.reason, p.kind) for p in sources.open_source(f'images:{root}', 'all').passed_over}
  assert reasons == {('hidden', '.png'), (decoding.suffix_error('.txt'), '.txt')}


def test_a_tenth_of_images_without_labels_is_held_out_and_always_the_same(tmp_path):
  root = write(tmp_path / 'd', *(f'{i % 3}/{i}.png' for i in range(40)))
  train, validation = unlabelled(root), unlabelled(root, 'validation')
  assert (len(train), len(validation)) == (36, 4) and not {*train} & {*validation}
  assert unlabelled(root, 'validation') == validation


def test_folders_of_splits_are_splits_of_images_without_labels(pets):
  write(pets, 'other/6.png', '7.png', 'train/8.png')
  assert unlabelled(pets) == [
    'train/8.png',
    'train/cat/1.png',
    'train/dog/2.png',
    'train/dog/3.png',
  ]
  assert unlabelled(pets, 'validation') == ['val/dog/4.png']
  assert len(unlabelled(pets, 'all')) == 6
  passed_over = sources.open_source(f'images:{pets}', 'test').passed_over
  assert {p.reason for p in passed_over} == {
    'beside the folders of splits',
    'in other, which is no split',
  }


def test_a_folder_has_an_index_of_its_own_as_images_and_as_classes(pets, cache):
  settle(pets)
  before = [unlabelled(pets), labelled(f'folder:{pets}')]
  assert len(list(cache.iterdir())) == 2
  assert [unlabelled(pets), labelled(f'folder:{pets}')] == before


def test_images_without_labels_that_cannot_be_are_refused(pets, tmp_path):
  write(tmp_path / 'none', 'notes.txt')
  refused("no images in split 'train'; passed over: 1 .txt", f'images:{tmp_path}/none')
  refused('no such folder', f'images:{tmp_path}/gone', kind=FileNotFoundError)
  many = [f'train/{i}.png' for i in range(9)]
  loaded = config.load('default', [f'data.source=images:{write(pets, *many)}', 'batch_size=8'])
  with pytest.raises(ValueError, match=r'has no labels.*lejepa, mae and dino learn'):
    plan.make_plan(loaded)


# From files to batches

SMALL = transforms.compose('resize(4, 4)', (4, 4))


def batches(source, count, *, said=None, policy='substitute'):
  unreadable = pipeline.Unreadable(
    source, policy=policy, say=(said if said is not None else []).append
  )
  with pipeline.training_batches(
    source, labelled_images(source, SMALL), batch_size=8, seed=0, unreadable=unreadable
  ) as read:
    return [next(read) for _ in range(count)]


@pytest.fixture
def many(tmp_path):
  """120 images of two classes."""
  root = tmp_path / 'many'
  for number in range(120):
    kind = ('PNG', 'JPEG')[number % 2]
    name = f'train/{"ab"[number % 3 == 0]}/{number}.{kind.lower()}'
    write(root, name, data=encoded(number, kind))
  return root


def test_a_folder_becomes_batches(many):
  source = sources.open_source(f'folder:{many}', 'train')
  read = batches(source, 3)
  labels = [record['label'] for record in map(source.__getitem__, pipeline.order(108, 0, 0)[:24])]
  np.testing.assert_array_equal(np.concatenate([batch['label'] for batch in read]), labels)
  assert read[0]['image'].shape == (8, 4, 4, 3) and read[0]['image'].dtype == np.uint8


def test_a_file_that_vanishes_is_named_and_replaced(many):
  source = sources.open_source(f'folder:{many}', 'train')
  os.remove(source.describe(7))
  with pytest.raises(FileNotFoundError, match=re.escape(os.path.basename(source.describe(7)))):
    source[7]
  said = []
  batches(source, 14, said=said)
  assert said == [f'{source.describe(7)}: No such file or directory']


# CSV


def table(root, rows, header=('path', 'label'), name='table.csv'):
  """Writes a CSV file."""
  root.mkdir(parents=True, exist_ok=True)
  with open(root / name, 'w', newline='', encoding='utf-8-sig') as file:
    csv.writer(file).writerows([header, *rows])
  return f'csv:{root / name}'


def test_a_table_says_the_same_as_folders(pets):
  splits = {'train': 'Train', 'val': 'VALID', 'test': 'test'}
  rows = [
    (path, path.split('/')[1], splits[path.split('/')[0]])
    for split in ('train', 'validation', 'test')
    for path, _ in labelled(f'folder:{pets}', split)
  ]
  name = table(pets, rows, ('file', 'Class', 'split'))
  for split in ('train', 'validation', 'test'):
    assert labelled(name, split) == labelled(f'folder:{pets}', split)
    record = sources.open_source(name, split)[0]
    assert record['image'] == IMAGE and record['label'].dtype == np.int32


@pytest.mark.parametrize('image', ['path', 'FILE', 'filename', ' image'])
@pytest.mark.parametrize('label', ['label', 'Class', 'target'])
def test_columns_go_by_several_names(pets, image, label):
  name = table(pets, [('train/cat/1.png', 'x'), ('train/dog/2.png', 'y')], (image, label))
  assert labelled(name) == [('train/cat/1.png', 'x'), ('train/dog/2.png', 'y')]


@pytest.mark.parametrize(
  'image, label',
  [('file_name', 'category'), ('Image Path', 'class_name'), ('image_id', 'Class-Name')],
)
def test_columns_go_by_the_names_of_other_programs(pets, image, label):
  rows = [('640', 'train/cat/1.png', 'x', ''), ('480', 'train/dog/2.png', 'y', '')]
  name = table(pets, rows, ('width', image, label, ''))
  assert labelled(name) == [('train/cat/1.png', 'x'), ('train/dog/2.png', 'y')]
  passed_over = sources.open_source(name, 'train[:1]').passed_over
  assert [(item.reason, item.kind) for item in passed_over] == [('unknown column', 'width')]


def test_an_image_may_be_called_without_its_suffix(pets):
  write(pets, '6.b.JPG')
  rows = [('train/cat/1', 'x'), ('6.b', 'y'), ('train/dog/2.png', 'y')]
  name = table(pets, rows, ('image_id', 'dx'), name='ids.csv')
  source = sources.open_source(f'{name}?label=dx', 'train+validation')
  files = [os.path.relpath(source.describe(index), pets) for index in range(len(source))]
  assert sorted(files) == ['6.b.JPG', 'train/cat/1.png', 'train/dog/2.png']


def test_columns_may_be_named(pets):
  rows = [('train/cat/1.png', 'x', 'train'), ('train/dog/2.png', 'y', 'train')]
  rows = [(*row, 'z') for row in [*rows, ('val/dog/4.png', 'y', 'val')]]
  name = table(pets, rows, ('Photo 1', 'kind', 'fold', 'label'))
  refused('no column path .*data.columns names them', name)
  source = f'data.source={name}'
  loaded = config.load('digits', [source, 'data.columns=image=photo 1, label=kind,split=fold'])
  named = plan.with_data_options(loaded).data.source
  assert sources.open_source(named, 'train').classes == ('x', 'y')
  assert labels_of(named, 'validation') == (('x', 'y'), ['y'])
  refused("no column 'sort'; it has 'Photo 1', 'kind'", sources.with_columns(name, 'label=sort'))
  refused('named by image=COLUMN, .*got .color=kind', sources.with_columns(name, 'color=kind'))
  with pytest.raises(ValueError, match='folder:x has no columns to be named'):
    sources.with_columns('folder:x', 'label=kind')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('before', ['', 'sep={}\r\n'])
@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_a_table_is_read_as_spreadsheets_write_it(pets, encoding, before, delimiter):
  lines = [['path', ' "label"'], ['train/cat/1.png', ' "caf\u00e9, a; b"'], ['val/dog/4.png', ' x']]
  text = before.format(delimiter) + '\r\n'.join(map(delimiter.join, lines))
  (pets / 'table.csv').write_bytes(text.encode(encoding))
  read = labelled(f'csv:{pets}/table.csv')
  assert read == [('train/cat/1.png', 'caf\u00e9, a; b'), ('val/dog/4.png', 'x')]


def test_a_table_without_validation_has_a_tenth_held_out(pets):
  name = table(pets, [('train/cat/1.png', label) for label in 'ab' * 20])
  assert sorted(label for _, label in labelled(name, 'validation')) == ['a', 'a', 'b', 'b']
  assert len(labelled(name)) == 36


def test_blank_lines_and_absolute_paths_are_read(pets, tmp_path):
  other = write(tmp_path / 'other', '6.png')
  name = table(pets, [(), (other / '6.png', 'x'), ('', ''), ('train/../val/dog/4.png', 'y'), ()])
  assert [label for _, label in labelled(name)] == ['x', 'y']


def test_numbers_as_labels_are_classes_from_0_to_the_largest(pets):
  name = table(pets, [('train/cat/1.png', 10), ('train/dog/2.png', 2)])
  source = sources.open_source(name, 'train')
  assert source.classes == tuple(map(str, range(11)))
  assert [source[0]['label'], source[1]['label']] == [10, 2]


def labels_of(name, split='train'):
  """The classes of a split, and the name of each image's."""
  source = sources.open_source(name, split)
  return source.classes, [source.classes[source[i]['label']] for i in range(len(source))]


@pytest.mark.parametrize('kind', ['csv', 'arrays'])
def test_numbers_from_1_are_as_many_classes_and_that_is_told(pets, kind):
  numbers = np.array([3, 1, 2, 1])
  if kind == 'csv':
    name = table(pets, [('train/cat/1.png', n) for n in numbers])
  else:
    name = arrays(pets, x_train=np.zeros((4, 2, 2), np.uint8), y_train=numbers)
  classes, labels = labels_of(name, 'train+validation')
  assert (classes, sorted(labels)) == (('1', '2', '3'), ['1', '1', '2', '3'])
  (note,) = sources.open_source(name, 'train').notes
  assert note == 'labels are numbered from 1: classes are 1 to 3'


def test_numbers_from_1_in_train_and_0_in_test_are_refused(pets):
  images = np.zeros((3, 2, 2), np.uint8)
  splits = {'x_train': images, 'y_train': [1, 2, 3], 'x_test': images, 'y_test': [0, 1, 2]}
  refused('label 0 in test is out of range of 3 classes, numbered from 1', arrays(pets, **splits))
  rows = [('train/cat/1.png', n, 'train') for n in (1, 2, 3)] + [('val/dog/4.png', 0, 'test')]
  refused('line 5: train lacks label 0', table(pets, rows, ('path', 'label', 'split')))


def test_numbers_with_leading_zeros_are_names(pets):
  """As of folders; '1' is '01' where there is no other such name."""
  rows = [('train/cat/1.png', name, 'train') for name in ('01', '02', '10')]
  header = ('path', 'label', 'split')
  rows += [('val/dog/4.png', name, 'test') for name in ('1', '2', '10')]
  assert labels_of(table(pets, rows, header), 'test') == (('01', '02', '10'), ['01', '02', '10'])
  both = [('train/cat/1.png', name, 'train') for name in ('007', '7', '8')]
  assert labels_of(table(pets, both, header)) == (('007', '7', '8'), ['007', '7', '8'])


MISSING = ['nan', 'NaN', '', '<NA>', '#N/A', 'N/A', 'NULL', 'None', 'NA']


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
@pytest.mark.parametrize('label', MISSING)
def test_a_missing_label_is_unknown_as_whatever_it_is_written_and_is_counted(pets, kind, label):
  labels = ['none', label, 'b']
  if kind == 'csv':
    name = table(pets, [(ANY, text) for text in labels])
  else:
    name = parquet(pets, {'image': [IMAGE] * 3, 'label': labels})
  assert rows_of(name) == (('b', 'none'), [1, -1, 0])
  (note,) = sources.open_source(name, 'train').notes
  assert f"labels read as missing, so that their images are of unknown class: 1 '{label}'" in note


@pytest.mark.parametrize('kind', ['csv', 'arrays'])
def test_a_set_of_which_no_label_is_known_is_opened_and_has_no_class(pets, kind):
  name = (
    table(pets, [(ANY, '')]) if kind == 'csv' else arrays(pets, x_test=grey(1), y_test=[np.nan])
  )
  split = 'train' if kind == 'csv' else 'test'
  source = sources.open_source(name, split)
  assert (source.classes, source[0]['label']) == ((), -1)


@pytest.mark.parametrize('cell', ["['a', 'b']", '[1, 0]', '[]', '["a"]'])
def test_the_text_of_a_list_is_no_class(pets, cell):
  refused("line 2: .* is the text of a list: join labels by '|'", table(pets, [(ANY, cell)]))
  assert rows_of(table(pets, [(ANY, '[x]'), (ANY, 'y')]))[0] == ('[x]', 'y')


def test_another_text_may_be_what_is_missing(pets):
  name = table(pets, [(ANY, label) for label in ('None', '-', 'b')])
  assert rows_of(f'{name}?missing=-') == (('None', 'b'), [0, -1, 1])


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'arrays'])
def test_whole_floats_are_numbers_of_classes_and_that_is_told(pets, kind):
  """As pandas writes integers beside missing ones."""
  labels = [0.0, 2.0, float('nan'), 1.0]
  if kind == 'csv':
    name = table(pets, [(ANY, label) for label in labels])
  elif kind == 'parquet':
    name = parquet(pets, {'image': [IMAGE] * 4, 'label': labels})
  else:
    name = arrays(pets, x_train=grey(4), y_train=labels, x_val=grey(4), y_val=labels)
  assert rows_of(name) == (('0', '1', '2'), [0, 2, -1, 1])
  assert sources.open_source(name, 'train').notes[0] == (
    'labels such as 0.0 are whole, so they are read as numbers of classes'
  )


def test_labels_may_leave_gaps_of_nine_classes_in_ten(pets):
  name = table(pets, [('train/cat/1.png', 0), ('train/dog/2.png', 19)])
  assert len(sources.open_source(name, 'train').classes) == 20


def test_multi_label_images_have_a_padded_vector(pets):
  rows = [('train/cat/1.png', 'b|a'), ('train/dog/2.png', 'c | c'), ('val/dog/4.png', 'a')]
  source = sources.open_source(table(pets, rows), 'train')
  assert source.classes == ('a', 'b', 'c')
  labels = np.stack([source[i]['label'] for i in range(3)])
  assert labels.dtype == np.int32 and labels.tolist() == [[1, 0], [2, -1], [0, -1]]


ANY = 'train/cat/1.png'


def rows_of(name):
  """The labels of the rows of 'train', where none is held out for validation."""
  source = sources.open_source(name, 'train')
  return source.classes, [source[i]['label'].tolist() for i in range(len(source))]


def test_an_empty_label_is_no_class_in_a_multi_label_table_and_a_question_mark_unknown(pets):
  labels = ['b|a', '', '?', 'a']
  name = table(pets, [(ANY, label) for label in labels])
  assert rows_of(name) == (('a', 'b'), [[1, 0], [-1, -1], [-2, -2], [0, -1]])
  refused("line 4: '.' beside other labels", table(pets, [(ANY, 'a'), (ANY, 'b'), (ANY, 'a|?')]))


def test_a_question_mark_is_unknown_where_each_image_has_one_label(pets):
  assert rows_of(table(pets, [(ANY, label) for label in 'b?a'])) == (('a', 'b'), [1, -1, 0])


def bits(pets, rows, header=('path', 'wet', 'cold', 'dark')):
  return table(pets, [(ANY, *row) for row in rows], header)


def test_columns_of_0_and_1_are_classes(pets):
  rows = [(1, 0, True), (0, 0, 0), ('', '?', 'nan'), ('0.0', '1.0', False)]
  padded = [[0, 2], [-1, -1], [-2, -2], [1, -1]]
  assert rows_of(bits(pets, rows)) == (('wet', 'cold', 'dark'), padded)
  assert rows_of(bits(pets, [(1, 0, 1), (-1, '', '-1.0')]))[1] == [[0, 2], [-2, -2]]


def test_columns_of_which_each_row_has_one_give_a_label_each(pets):
  assert rows_of(bits(pets, [(0, 1, 0), (1, 0, 0)])) == (('wet', 'cold', 'dark'), [1, 0])


ONE_HOT = [[0, 1, 0], [1, 0, 1], [-1, -1, -1], [0, 0, 0]]


def test_lists_of_0_and_1_in_parquet_are_one_for_each_class(pets):
  """A list of numbers of classes holds none of them twice."""
  name = parquet(pets, {'image': [IMAGE] * 4, 'label': ONE_HOT})
  assert rows_of(name) == (('0', '1', '2'), [[1, -1], [0, 2], [-2, -2], [-1, -1]])
  name = parquet(pets, {'image': [IMAGE] * 2, 'label': [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]})
  assert rows_of(name) == (('0', '1', '2'), [1, 0])
  refused('one-hot or', parquet(pets, {'image': [IMAGE] * 2, 'label': [[0, 1, 0], [0, 0]]}))


def test_columns_of_parquet_of_0_and_1_are_classes(pets):
  rows = [(True, 0.0), (False, 1.0), (None, None), (False, 0.0)]
  wet, cold = zip(*rows)
  name = parquet(pets, {'image': [IMAGE] * 4, 'wet': wet, 'cold': cold})
  assert rows_of(name) == (('wet', 'cold'), [[0], [1], [-2], [-1]])


def test_a_column_that_is_not_0_and_1_is_no_class(pets):
  refused("line 3: dark is '7', must be 0 or 1", bits(pets, [(0, 1, 0), (0, 1, 7)]))
  refused("line 2: wet is '-1.0', must be 0 or 1: all classes", bits(pets, [('-1.0', 1, 0)]))
  refused('no column label .* are classes, of 0 and 1', bits(pets, [('mild', 1, 0), (0, 1, 0)]))


def test_labels_with_a_fraction_are_a_regression_and_no_classes(pets):
  refused('labels such as 1.5 are .* to regress', table(pets, [(ANY, '2'), (ANY, '1.5')]))
  refused('such as 0.5 are .* to regress', parquet(pets, {'image': [IMAGE], 'label': [0.5]}))
  refused('such as 0.5 are .* to regress', arrays(pets, x=grey(2), y=[0.5, 1.0]))
  for names in (('1.5', 'x'), ('e1', 'e2'), ('007', '008')):
    assert rows_of(table(pets, [(ANY, name) for name in names]))[0] == names


@pytest.mark.parametrize(
  'labels, text',
  [
    (['0.5', 'inf', '1.25'], 'labels such as 0.5 are .* to regress'),
    (['0', '-Infinity', '1'], 'labels such as -Infinity are .* to regress'),
    (['0.5', '1.25', 'unclear'], 'labels such as 0.5 are .* to regress'),
    (['0,5', '1,0'], 'labels such as 0,5 are several numbers, or one with a decimal comma'),
    (['2', '16 0', '25 16'], "labels such as 16 0 are several numbers, .* by '|'"),
  ],
)
def test_numbers_that_are_a_quantity_or_several_labels_are_no_classes(pets, labels, text):
  refused(text, table(pets, [(ANY, label) for label in labels]))


@pytest.mark.parametrize(
  'labels, joined',
  [
    (['a, b', 'a', 'b, c'], 'a, b'),
    (['haze water', 'clear', 'clear water', 'haze'], 'haze water'),
    (['maillot', 'maillot, tank suit'], ''),
    (['red fox', 'arctic fox', 'red panda', 'arctic hare'], ''),
    (['a|b', 'a', 'b'], ''),
  ],
)
def test_names_that_look_like_several_labels_are_told(pets, labels, joined):
  notes = sources.open_source(table(pets, [(ANY, label) for label in labels]), 'train').notes
  line = f"labels such as {joined!r} may be several, and are read as one: '|' joins labels"
  assert notes == (line,) * bool(joined)


def test_true_is_one_class_in_whatever_case(pets):
  name = table(pets, [(ANY, name) for name in ('True', 'TRUE', 'false', 'False')])
  classes, labels = labels_of(name, 'train+validation')
  assert (classes, sorted(labels)) == (('False', 'True'), ['False', 'False', 'True', 'True'])
  for names in (('FALSE', 'TRUE'), ('TRUE', 'True', 'maybe')):
    assert rows_of(table(pets, [(ANY, name) for name in names]))[0] == names


def test_multi_label_images_are_stratified_by_the_first(pets):
  name = table(pets, [('train/cat/1.png', label) for label in ['a|b', 'b|a'] * 10])
  source = sources.open_source(name, 'validation')
  assert sorted(source[i]['label'].tolist() for i in range(len(source))) == [[0, 1], [1, 0]]


def test_every_bad_row_is_counted_and_the_first_are_named(pets):
  good = ('train/cat/1.png', 'x', 'train')
  bad = [
    ('', 'x', 'train'),
    ('train/cat/1.png', 'x|', 'train'),
    ('train/cat/1.png', 'x', 'trian'),
    ('../pets2/1.png', 'x', 'train'),
    ('train/cat', 'x', 'train'),
    ('train/cat/1.png', 'x'),
    ('a\0b.png', 'x', 'train'),
  ]
  message = refused('7 bad rows: ', table(pets, [good, *bad, good], ('path', 'label', 'split')))
  assert str(pets / 'table.csv') in message
  for text in (
    'line 3: no path;',
    "line 4: '' beside other labels;",
    "line 5: unknown split 'trian';",
    'line 6: ../pets2/1.png leads out of',
    'line 7: train/cat is not a file; and 2 more',
  ):
    assert text in message


@pytest.mark.parametrize('link', ['train/cat/6.png', 'out'])
def test_a_link_in_a_table_that_leads_out_is_refused(pets, tmp_path, link):
  outside = write(tmp_path / 'outside', '1.png')
  (pets / link).symlink_to(outside if link == 'out' else outside / '1.png')
  path = 'out/1.png' if link == 'out' else link
  refused(f'line 3: {path} leads out', table(pets, [('train/cat/1.png', 'x'), (path, 'y')]))


def test_a_link_in_a_table_that_stays_inside_is_followed(pets):
  (pets / '6.png').symlink_to('train/cat/1.png')
  source = sources.open_source(table(pets, [('6.png', 'x'), ('val/dog/4.png', 'y')]), 'train')
  assert source[0]['image'] == IMAGE


@pytest.mark.parametrize(
  'rows, text',
  [
    ([('1', 'train'), ('-2', 'train')], 'line 3: label -2 is negative'),
    ([('1', 'train'), ('0', 'train'), ('2', 'val')], 'line 4: train lacks label 2'),
    ([('1', 'train'), ('99999999999', 'train')], 'line 3: label 99999999999 is out of range'),
    ([('0', 'train'), ('20', 'train')], 'line 3: label 20 stands for 21 classes, of which 2 have'),
    ([('+900', 'train'), ('2', 'train')], 'line 2: label 900 stands for 901 classes'),
    ([('a', 'train'), ('b', 'train'), ('c', 'test')], "line 4: train lacks class 'c'"),
    ([('a', 'val'), ('b', 'test')], "no split 'train'"),
    ([], 'no rows of train'),
  ],
)
def test_labels_that_cannot_be_are_refused(pets, rows, text):
  rows = [('train/cat/1.png', label, split) for label, split in rows]
  refused(text, table(pets, rows, ('path', 'label', 'split')))


def test_a_table_of_images_that_are_not_there_is_refused(pets):
  refused('not one of its 2 images is there: .*/no/1.png', table(pets, [('no/1.png', 'x')] * 2))
  name = table(pets, [('no/1.png', 'x'), ('train/cat/1.png', 'y')])
  with pytest.raises(FileNotFoundError):  # one is left to data.bad_images
    sources.open_source(name, 'train')[0]


def test_a_file_that_is_no_table_is_refused(pets):
  refused('no such file', f'csv:{pets}/none.csv', kind=FileNotFoundError)
  refused('is not a file', f'csv:{pets}')
  refused('is not UTF-8', f'csv:{pets}/train/cat/1.png')
  refused('no column path .*it has none', f'csv:{write(pets, "empty.csv", data=b"")}/empty.csv')
  refused("no column label .*it has 'path', 'x'", table(pets, [], ('path', 'x')))
  (pets / 'quote.csv').write_text('path,label\n"a,b\nc,d\n')
  refused('cannot be read', f'csv:{pets}/quote.csv')


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'arrays'])
def test_a_file_that_may_not_be_read_is_reported_as_such(kind, tmp_path, monkeypatch):
  file = tmp_path / 'secret'
  file.write_bytes(b'any')

  def denied(path, *_):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(sources, 'open', denied, raising=False)
  if kind == 'parquet':
    pytest.importorskip('pyarrow')
  assert refused('Permission', f'{kind}:{file}') == f'{file} cannot be read: Permission denied'


# Parquet


@pytest.fixture
def pa():
  return pytest.importorskip('pyarrow')


def parquet(root, columns, *, schema=None):
  """Writes a Parquet file."""
  pa = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  parquet.write_table(pa.table(columns, schema=schema), root / 'table.parquet')
  return f'parquet:{root}/table.parquet'


def test_parquet_says_the_same_as_csv(pets):
  rows = [('train/cat/1.png', 'x', 'train'), ('train/dog/2.png', 'y', 'TRAIN')]
  rows += [('val/dog/4.png', 'y', 'val')]
  header = ('path', 'label', 'Split')
  as_csv = table(pets, rows, header)
  name = parquet(pets, {key: list(column) for key, column in zip(header, zip(*rows))})
  for split in ('train', 'validation'):
    assert labelled(name, split) == labelled(as_csv, split)


HF = b'{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'


@pytest.mark.parametrize('struct', [True, False])
def test_parquet_may_hold_the_images(pets, pa, struct):
  data = [encoded(i) for i in range(4)]
  images = [{'bytes': one, 'path': None} for one in data] if struct else data
  kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())]) if struct else pa.binary()
  schema = pa.schema([('image', kind), ('label', pa.int64())], metadata={'huggingface': HF})
  name = parquet(pets, {'image': images, 'label': [0, 1, 1, 0]}, schema=schema)
  source = sources.open_source(name, 'train')
  assert source.classes == ('cat', 'dog')
  assert [source[i]['image'] for i in range(2)] == [data[i] for i in range(2)]
  assert source.describe(1) == f'{pets}/table.parquet, row 1'
  assert batches(source, 1)[0]['image'].shape == (8, 4, 4, 3)


def test_in_parquet_null_is_unknown_and_an_empty_list_no_class(pets):
  name = parquet(pets, {'image': [IMAGE] * 4, 'label': [[1, 0], [], None, [0]]})
  assert rows_of(name) == (('0', '1'), [[1, 0], [-1, -1], [-2, -2], [0, -1]])


def test_parquet_lists_are_multi_label(pets):
  name = parquet(pets, {'image': [IMAGE] * 3, 'label': [[1], [0, 2], []]})
  source = sources.open_source(name, 'train[:1]+validation')
  assert source[0]['label'].shape == (2,)
  assert source.classes == ('0', '1', '2') and source[0]['image'] == IMAGE


@pytest.mark.parametrize(
  'columns, text',
  [
    ({'image': [IMAGE, None], 'label': [0, 1]}, 'row 1: no image'),
    ({'image': [IMAGE, IMAGE], 'label': [b'a', b'b']}, 'labels are binary'),
    ({'image': [IMAGE, IMAGE], 'label': [[0, 1], [1, 0]]}, 'are one-hot or the numbers of 2'),
    ({'image': [1, 2], 'label': [0, 1]}, 'images are int64'),
    ({'image': [IMAGE, IMAGE], 'label': [0, -1]}, 'row 1: label -1 is negative'),
    ({'image': [IMAGE, IMAGE]}, 'no column label'),
  ],
)
def test_parquet_that_is_wrong_is_refused(pets, columns, text):
  refused(text, parquet(pets, columns))


def test_damaged_parquet_is_refused(pets):
  refused('cannot be read', f'parquet:{pets}/train/cat/1.png')


def test_without_pyarrow_its_command_is_named(pets, monkeypatch):
  name = parquet(pets, {'image': [IMAGE, IMAGE], 'label': [0, 1]})
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  refused('pip install pyarrow', name)


def test_pyarrow_is_imported_for_parquet_alone(pets):
  script = (
    'import sys; from vit_jax.sources import folder; '
    f'folder.splits("folder", {str(pets)!r})["train"](); assert "pyarrow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', script], check=True)


# Arrays


def arrays(root, **named):
  """Writes an .npz file."""
  np.savez(root / 'data.npz', **named)
  return f'arrays:{root}/data.npz'


def grey(count, *shape):
  return np.arange(count * 6, dtype=np.uint8).reshape(count, 3, 2, *shape)


@pytest.mark.parametrize('keys', [('images', 'labels'), ('image', 'label'), ('x', 'y'), ('X', 'Y')])
def test_arrays_without_splits_have_a_tenth_held_out(tmp_path, keys):
  name = arrays(tmp_path, **{keys[0]: grey(40), keys[1]: np.arange(40) % 2})
  held = sources.open_source(name, 'validation')
  assert [int(held[i]['label']) for i in range(len(held))].count(0) == 2
  assert len(held) == 4 and len(sources.open_source(name, 'train')) == 36
  assert held.describe(0).startswith(f'{tmp_path}/data.npz, image ')


@pytest.mark.parametrize(
  'image, label', [('x_{}', 'y_{}'), ('{}_images', '{}_labels'), ('images_{}', 'label_{}')]
)
def test_arrays_with_splits_go_by_several_names(tmp_path, image, label):
  named = {}
  for at, split in enumerate(('train', 'val', 'test')):
    named[image.format(split)] = grey(4 + at)
    named[label.format(split)] = (np.arange(4 + at) % 2)[:, None]  # MedMNIST's (N, 1)
  name = arrays(tmp_path, **named)
  counts = [len(sources.open_source(name, split)) for split in ('train', 'validation', 'test')]
  assert counts == [4, 5, 6]
  assert sources.open_source(name, 'test')[1]['label'] == 1


@pytest.mark.parametrize('shape', [(), (1,), (3,)])
def test_arrays_keep_their_channels_and_grey_is_repeated_for_three(tmp_path, shape):
  images = np.random.default_rng(0).integers(0, 256, (4, 3, 2, *shape), np.uint8)
  source = sources.open_source(
    arrays(tmp_path, x_train=images, y_train=[0, 1, 0, 1], x_val=images, y_val=[0, 1, 0, 1]),
    'train',
  )
  np.testing.assert_array_equal(source[1]['image'], images[1].reshape(3, 2, -1))
  assert source[1]['label'].dtype == np.int32
  assert batches(source, 1)[0]['image'].shape == (8, 4, 4, 3)


@pytest.mark.parametrize('kind', [np.int64, bool, np.float32])
def test_arrays_of_0_and_1_are_multi_label(tmp_path, kind):
  hot = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], kind)
  name = arrays(tmp_path, x_train=grey(3), y_train=hot, x_val=grey(3), y_val=hot)
  source = sources.open_source(name, 'train')
  assert [source[i]['label'].tolist() for i in range(3)] == [[0, 2], [-1, -1], [1, -1]]
  assert source.classes == ('0', '1', '2', '3')


@pytest.mark.parametrize('unknown', [[-1, -1], [np.nan, np.nan]])
def test_a_row_of_an_array_that_is_minus_one_or_not_a_number_is_unknown(tmp_path, unknown):
  hot = [[1, 1], [0, 0], unknown]
  name = arrays(tmp_path, x_train=grey(3), y_train=hot, x_val=grey(3), y_val=hot)
  assert rows_of(name)[1] == [[0, 1], [-1, -1], [-2, -2]]


@pytest.mark.parametrize('kind', ['csv', 'arrays'])
def test_tables_and_arrays_of_one_class_or_without_train_can_be_measured(pets, kind):
  if kind == 'csv':
    name = table(pets, [('test/cat/5.png', 'x', 'test')], ('path', 'label', 'split'))
  else:
    name = arrays(pets, x_test=grey(1), y_test=[0])
  source = sources.open_source(name, 'test')
  assert (len(source), source.classes, source[0]['label']) == (
    1,
    ('x',) if kind == 'csv' else ('0',),
    0,
  )
  refused("no split 'train'", name)


@pytest.mark.parametrize(
  'names, expected',
  [
    (['dev', 'holdout'], {'validation': 'dev', 'test': 'holdout'}),
    (['Dev Set', 'val-set'], 'several folders of validation'),
    (['eval'], {'test': 'eval'}),
    (['valid', 'hold-out'], {'validation': 'valid', 'test': 'hold-out'}),
    (['dev', 'cat'], None),
    (['train', 'dev'], {'train': 'train'}),
  ],
)
def test_folders_that_all_have_the_name_of_a_split_are_splits(tmp_path, names, expected):
  """Classes are called so only beside others, and what lies beside 'train' is not to be seen."""
  write(tmp_path / 'd', *(f'{name}/rose/{n}.png' for name in names for n in '12'))
  if isinstance(expected, str):
    refused(expected, f'folder:{tmp_path}/d')
    return
  splits = sources.splits_of(f'folder:{tmp_path}/d')
  if expected is None:
    assert splits['train']().classes == ('cat', 'dev')
    return
  assert set(splits) - {'validation'} == set(expected) - {'validation'}
  for split, name in expected.items():
    assert all(
      f'/d/{name}/rose/' in splits[split]().describe(i) for i in range(len(splits[split]()))
    )
  if names == ['dev', 'holdout']:
    assert splits['test']().notes == ('folders read as splits: dev as validation, holdout as test',)


def test_arrays_may_name_their_classes(tmp_path):
  name = arrays(tmp_path, x=grey(4), y=[0, 1, 0, 1], classes=['cat', 'dog', 'bird'])
  assert sources.open_source(name, 'train').classes == ('cat', 'dog', 'bird')


@pytest.mark.parametrize(
  'named, text',
  [
    (dict(x=grey(4).astype(np.float32), y=[0, 1, 0, 1]), 'float32, must be uint8'),
    (dict(x=np.zeros((2, 3, 8, 8), np.uint8), y=[0, 1]), r'\(2, 3, 8, 8\), channels first: '),
    (dict(x=np.zeros((4, 3, 2, 513), np.uint8), y=[0, 1, 0, 1]), r'\(4, 3, 2, 513\)'),
    (dict(x=grey(4), y=[0, 1, 0]), '4 x but 3 y'),
    (dict(x=grey(2), y=[0, -1]), 'label -1 of image 1 is negative'),
    (dict(x=grey(2), y=[0, 2], classes=['a', 'b']), 'label 2 in train is out of range of 2'),
    (dict(x=grey(2), y=[0, 1], x_test=grey(1), y_test=[2]), 'label 2 in test is out of range of 2'),
    (dict(x=grey(2), y=[0, 2**40]), 'exceeds'),
    (dict(x=grey(2), y=[0, 20]), 'label 20 stands for 21 classes, of which 2 have images'),
    (dict(x=grey(2), y=[0.0, 1.5]), 'labels such as 1.5 are'),
    (dict(x=grey(2), y=[[0, 2], [1, 0]]), 'must be 0 and 1'),
    (dict(x=grey(2), y=[[0, 1], [1, 0]], classes=['a']), 'for 2 classes; there are 1'),
    (dict(x=grey(2), y=[0, 1], classes=[1, 2]), r'must be names \(K,\)'),
    (dict(x=grey(2)), 'x but no labels'),
    (dict(a_test=grey(2), y_test=[0, 1]), 'but a_test, y_test'),
    (dict(x=grey(2), y=[0, 1], x_train=grey(2), y_train=[0, 1]), 'both x and x_train'),
    (dict(x=grey(2), y=np.array([0, 'a'], object)), 'array of objects'),
  ],
)
def test_arrays_that_are_wrong_are_refused(tmp_path, named, text):
  assert f'{tmp_path}/data.npz' in refused(text, arrays(tmp_path, **named))


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:200], lambda data: b'x'])
def test_a_damaged_archive_is_refused(tmp_path, damage):
  arrays(tmp_path, x=grey(40), y=np.arange(40) % 2)
  file = tmp_path / 'data.npz'
  file.write_bytes(damage(file.read_bytes()))
  refused('damaged', f'arrays:{file}')


def test_other_files_of_numpy_are_refused(tmp_path):
  np.save(tmp_path / 'one.npy', grey(2))
  refused('no .npz archive', f'arrays:{tmp_path}/one.npy')
  refused('no such file', f'arrays:{tmp_path}/none.npz', kind=FileNotFoundError)
