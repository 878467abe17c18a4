"""Batches of real data: what cannot be read, what is repeated, and what a run refuses."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import drawn, forward, shapes, tiny
from vit_jax import bundle, pipeline, plan, sources, workdir
from vit_jax import main as vit
from vit_jax.config import default, load
from vit_jax.guards import waiting
from vit_jax.images import transforms
from vit_jax.sources.columns import Column, labelled_images

CLASSES = ('even', 'odd')


def jpeg(value):
  file = io.BytesIO()
  Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(file, 'JPEG')
  return file.getvalue()


def photos(count, *, bad=(), gone=()):
  """Encoded images whose grey level is their index; some damaged, some vanished."""

  class Records:
    def __len__(self):
      return count

    def __getitem__(self, index):
      if index in gone:
        raise FileNotFoundError(2, 'No such file or directory', f'{index}.jpg')
      data = b'junk' if index in bad else jpeg(index % 250)
      return {'image': data, 'label': np.int32(index % 2)}

  return sources.Source(Records(), CLASSES, 'photos/{}.jpg'.format)


TRANSFORM = transforms.compose('inception_crop | flip', (8, 8))


def taken(source, steps, *, batch_size=20, transform=TRANSFORM, unreadable=None, **options):
  unreadable = unreadable or pipeline.Unreadable(source, say=str)
  with pipeline.training_batches(
    source,
    labelled_images(source, transform),
    batch_size=batch_size,
    seed=3,
    unreadable=unreadable,
    **options,
  ) as batches:
    read = [next(batches) for _ in range(steps)]
  return {name: np.concatenate([batch[name] for batch in read]) for name in read[0]}


def grey(images):
  return images.reshape(len(images), -1).mean(-1).round().astype(int).tolist()


def test_an_image_that_a_transform_gives_in_another_size_is_named():
  transform = transforms.compose('resize(4, 6)', (4, 4))
  with pytest.raises(pipeline.DataError, match='jpg: the transforms give 4x6 pixels, not 4x4'):
    taken(photos(30), 1, transform=transform)


# What a random choice depends on


def noise(image, rng):
  return np.asarray(rng.integers(0, 256, (1, 4, 3)), np.uint8)


NOISY = transforms.Transform((noise,), (1, 4))


@pytest.mark.parametrize('batch_size', [1, 4, 30, 60])
def test_order_and_augmentation_are_the_same_for_any_size_of_batch(batch_size):
  images, labels = np.zeros((30, 1, 4, 3), np.uint8), np.arange(30, dtype=np.int32)
  records = [{'image': image, 'label': label} for image, label in zip(images, labels)]
  source = sources.Source(records, tuple(map(str, labels)))
  want = taken(source, 6, batch_size=20, transform=NOISY)
  got = taken(source, 120 // batch_size, batch_size=batch_size, transform=NOISY)
  for name, rows in want.items():
    np.testing.assert_array_equal(got[name], rows)


def test_repeats_come_in_a_row_each_augmented_anew_and_an_epoch_holds_a_share():
  images, labels = np.zeros((30, 1, 4, 3), np.uint8), np.arange(30, dtype=np.int32)
  records = [{'image': image, 'label': label} for image, label in zip(images, labels)]
  source = sources.Source(records, tuple(map(str, labels)))
  once = taken(source, 3, transform=NOISY)
  batch = taken(source, 3, transform=NOISY, repeats=3)
  assert batch['label'][:30].tolist() == np.repeat(once['label'][:10], 3).tolist()
  assert batch['label'][30:].tolist() == np.repeat(once['label'][30:40], 3).tolist()
  assert len(np.unique(batch['image'].reshape(60, -1), axis=0)) == 60
  np.testing.assert_array_equal(batch['image'][:30:3], once['image'][:10])


# Images that cannot be read


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_gets_the_next_one_in_its_place_and_is_reported_once(workers):
  source, said = photos(300, bad={7}, gone={100}), []
  unreadable = pipeline.Unreadable(source, say=said.append)
  reading = pipeline.Reading(workers=workers)
  batch = taken(source, 30, unreadable=unreadable, reading=reading)
  assert sorted(said) == ['photos/100.jpg: No such file or directory', 'photos/7.jpg: not an image']
  assert unreadable.count == 2 and batch['mask'].all()
  epoch = np.bincount(grey(batch['image'][:300]), minlength=250)
  whole = taken(photos(300), 15)
  want = np.bincount(grey(whole['image']), minlength=250)
  want[[7, 8, 100, 101]] += [-1, 1, -1, 1]
  np.testing.assert_array_equal(epoch, want)


def test_the_policy_error_stops_at_the_first_by_its_name():
  source = photos(300, bad={7})
  with pytest.raises(pipeline.DataError, match=r'photos/7.jpg: not an image .*substitute'):
    taken(source, 15, unreadable=pipeline.Unreadable(source, policy='error'))


def test_one_in_a_hundred_may_be_unreadable_and_no_more():
  assert len(taken(photos(100, bad={7}), 5)['label']) == 100
  with pytest.raises(pipeline.DataError, match='2 of 100 images cannot be read, over 1%; the last'):
    taken(photos(100, bad={7, 9}), 5)


def test_a_set_that_vanishes_is_one_error_not_an_endless_search():
  with pytest.raises(pipeline.DataError, match=r'100 images in a row .* No such file'):
    taken(photos(300, gone=range(300)), 1)


def test_a_label_that_no_class_has_is_an_error():
  records = [{'image': np.zeros((8, 8, 3), np.uint8), 'label': np.int32(i)} for i in range(40)]
  with pytest.raises(pipeline.DataError, match='is none of 2 classes'):
    taken(sources.Source(records, CLASSES), 2)


@pytest.mark.parametrize('bad', [{7}, set(range(16)), set(range(300))])
def test_evaluation_reports_what_it_cannot_read_and_does_not_score_it(bad):
  source, said = photos(300, bad=bad), []
  unreadable = pipeline.Unreadable(source, say=said.append, limit=None)
  transform = transforms.compose('resize', (8, 8))
  for _ in range(2):
    with pipeline.evaluation_batches(
      source, labelled_images(source, transform), batch_size=64, unreadable=unreadable
    ) as batches:
      read = list(batches)
    mask = np.concatenate([batch['mask'] for batch in read])
    assert mask.tolist() == [float(i not in bad) for i in range(300)] + [0.0] * 20
  assert unreadable.count == len(bad) and len(said) == min(len(bad), pipeline.MAX_NAMED)


def test_labels_of_a_multi_label_image_stay_together():
  labels = [np.array([i % 2, -1 if i % 3 else 1 - i % 2], np.int32) for i in range(40)]
  records = [{'image': np.zeros((8, 8, 3), np.uint8), 'label': label} for label in labels]
  batch = taken(sources.Source(records, CLASSES), 2)
  assert batch['label'].shape == (40, 2) and batch['label'].dtype == np.int32
  assert sorted(map(tuple, batch['label'])) == sorted(map(tuple, labels))


# Splits


def test_splits_are_cut_and_joined_as_tfds_says():
  source = photos(201)
  splits = {'train': lambda: source, 'test': lambda: photos(10)}

  def labels(text):
    source = sources.select('photos', splits, text)
    return [source.describe(i) for i in range(len(source))]

  whole = [f'photos/{i}.jpg' for i in range(201)]
  for text, want in {
    'train': whole,
    'train[:98%]': whole[:197],
    'train[98%:]': whole[197:],
    'train[ 10 : 20 ]': whole[10:20],
    'train[-5:]': whole[-5:],
    'train[:-5]': whole[:-5],
    'train[-10%:]': whole[-20:],
    'train[50%:50%]': [],
    'train[:1000]': whole,
    'test+train[:2]': whole[:10] + whole[:2],
  }.items():
    assert labels(text) == want, text
  for text, said in {
    'trian': "no split 'trian'.*did you mean train",
    'train[:x]': 'is no split such as',
    'train[5]': 'is no split such as',
    '': 'is no split such as',
  }.items():
    with pytest.raises(ValueError, match=said):
      sources.select('photos', splits, text)


@pytest.mark.parametrize('share', [0.1, 0.5])
def test_a_held_out_fraction_is_the_same_part_of_every_class_and_of_all_runs(share):
  labels = np.repeat([0, 1, 2, 3], [100, 50, 1, 2])
  train, held = sources.hold_out(labels, share)
  assert sorted([*train, *held]) == list(range(len(labels)))
  counts = np.bincount(labels[held], minlength=4).tolist()
  assert counts == [round(100 * share), round(50 * share), 0, 1]
  np.testing.assert_array_equal(sources.hold_out(labels, share)[1], held)


# Runs


def test_fewer_images_than_a_batch_are_refused(tmp_path, capsys):
  code = vit.main(['--config=digits', f'--workdir={tmp_path}', '--config.batch_size=2048'])
  line = capsys.readouterr().err
  assert code == 2 and line.count('\n') == 1
  assert 'batch_size 2048 exceeds the 1259 training images of digits' in line
  assert not any(tmp_path.iterdir())


def data(count, *classes):
  return sources.Source(range(count), classes)


def test_data_that_changes_under_a_run_is_refused(tmp_path):
  config = default()
  for _ in range(2):
    workdir.claim(tmp_path, config, data(9, 'cat', 'dog'))
  for source, said in {
    data(9, 'cat', 'dog', 'owl'): '2 classes there and 3 here, new owl$',
    data(9, 'cat', 'owl'): 'gone dog, new owl$',
    data(9, 'dog', 'cat'): 'in another order$',
    data(8, 'cat', 'dog'): '9 training images there and 8 here$',
  }.items():
    with pytest.raises(ValueError, match=f'holds a run on other data: .*{said}'):
      workdir.claim(tmp_path, config, source)
  held = json.loads((tmp_path / 'data.json').read_text())
  assert held == {'images': 9, 'classes': ['cat', 'dog']}


def test_a_run_resumes_where_its_data_now_is_and_says_so(tmp_path):
  config, lines = default(), []
  config.data.source, config.teacher.checkpoint = 'folder:/tmp/1/photos', '/tmp/1/teacher'
  arguments = dict(fixed_crc=3, say=lines.append)
  workdir.claim(tmp_path, config, data(9, 'cat', 'dog'), **arguments)
  config.data.source, config.teacher.checkpoint = 'folder:/tmp/2/photos', '/tmp/2/teacher'
  with pytest.raises(ValueError, match='another teacher'):
    workdir.claim(tmp_path, config, data(9, 'cat', 'dog'), fixed_crc=4)
  with pytest.raises(ValueError, match='9 training images there and 8 here'):
    workdir.claim(tmp_path, config, data(8, 'cat', 'dog'), fixed_crc=3)
  assert not lines
  workdir.claim(tmp_path, config, data(9, 'cat', 'dog'), **arguments)
  assert len(lines) == 2
  assert "data.source was 'folder:/tmp/1/photos' and is 'folder:/tmp/2/photos'" in lines[0]
  workdir.claim(tmp_path, config, data(9, 'cat', 'dog'), **arguments)
  assert len(lines) == 2
  (tmp_path / 'data.json').unlink()  # that number and classes are the same is not known then
  config.data.source = 'folder:/tmp/3/photos'
  with pytest.raises(ValueError, match='another run: data'):
    workdir.claim(tmp_path, config, data(9, 'cat', 'dog'), **arguments)


def test_a_run_resumes_where_the_checkpoint_that_it_started_from_now_is(tmp_path):
  model = tiny(num_classes=10)
  looks = bundle.Preprocess('resize', (16, 16))
  source = bundle.Bundle(
    model, drawn(shapes(model, (16, 16))), (*'0123456789',), looks, 'ViT-Ti/16'
  )
  other = jax.tree.map(lambda leaf: leaf + 1, source.params)
  bundle.write(tmp_path / '1', source)
  run, lines = tmp_path / 'run', []

  def start(name, params=source.params):
    if params is not None:
      bundle.write(tmp_path / name, dataclasses.replace(source, params=params))
    fields = [f'pretrained={tmp_path / name}', 'image_size=16', 'batch_size=16', 'new_head=True']
    made = plan.make_plan(load('finetune:Ti_16,digits', fields), run)
    with contextlib.redirect_stderr(io.StringIO()) as out:
      made.claim(run)
    lines.append(out.getvalue())

  start('1')
  start('2')
  assert "/1' and is '" in lines[1] and 'with the same arrays' in lines[1]
  with pytest.raises(ValueError, match='another checkpoint to start from, whose arrays differ'):
    start('3', other)
  (run / 'checkpoints' / '5').mkdir(parents=True)  # of its own
  with pytest.raises(ValueError, match='another checkpoint to start from, whose arrays differ'):
    start('3', other)
  start('gone', None)  # told, and the number that it is compared by is kept
  assert "/gone'" in lines[2] and 'with checkpoints of its own' in lines[2]
  with pytest.raises(ValueError, match='another checkpoint to start from, whose arrays differ'):
    start('3', other)


@pytest.mark.parametrize('decay, total, said', [(0.9999, 1000, '90%'), (0.999, 2000, '14%')])
def test_an_average_that_is_mostly_the_first_parameters_is_told(decay, total, said):
  """An average a <- d a + (1 - d) p has the weight d^t left for what it began with."""
  line = plan.describe_average(decay, total)
  assert f'are to {said} the first ones after {total:,} steps' in line
  shorter = float(re.search(r'--config.ema=([0-9.]+) leaves 1%', line)[1])
  assert 0.005 < shorter**total < 0.02
  assert not plan.describe_average(shorter, total) and not plan.describe_average(0.0, total)


def test_a_run_may_resume_under_another_policy(tmp_path):
  config = default()
  config.data.bad_images = 'error'
  workdir.claim(tmp_path, config, data(9, 'cat', 'dog'))
  config.data.bad_images = 'substitute'
  workdir.claim(tmp_path, config, data(9, 'cat', 'dog'))


def test_a_misspelt_policy_is_refused_before_anything_is_written(tmp_path, capsys):
  run = tmp_path / 'run'
  code = vit.main(['--config=digits', f'--workdir={run}', '--config.data.bad_images=eror'])
  line = capsys.readouterr().err
  assert code == 2 and line.count('\n') == 1 and "'eror'; known: substitute, error" in line
  assert not run.exists()


def photos_on_disk(folder, *, train=120, val=12):
  for split, count in (('train', train), ('val', val)):
    for index in range(count):
      file = folder / split / CLASSES[index % 2] / f'{index}.jpg'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(jpeg(index))


TINY = ['model.width=16', 'model.depth=1', 'model.heads=2', 'model.mlp_dim=16', 'model.patch=4']
TINY += ['image_size=8', 'batch_size=8', 'duration=4 steps', 'evaluation.every=2 steps']
TINY += ['schedule.name=constant', 'schedule.warmup=0 steps', 'data.preprocess=resize']
TINY += ['system.log_every=1 steps']


def trained(tmp_path, *overrides):
  words = [f'--config.{word}' for word in (*TINY, f'data.source=folder:{tmp_path / "photos"}')]
  words += [f'--config.{word}' for word in overrides]
  return vit.main(['--config=default', f'--workdir={tmp_path / "run"}', *words])


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  photos_on_disk(tmp_path / 'photos')
  return tmp_path / 'photos'


def rows(tmp_path):
  return [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]


def test_a_run_counts_what_it_cannot_read_and_remembers_it(folder, tmp_path, capsys):
  (folder / 'train/odd/7.jpg').write_bytes(b'')
  (folder / 'val/odd/3.jpg').write_bytes(b'junk')
  assert trained(tmp_path, 'duration=16 steps', 'evaluation.every=8 steps') == 0
  printed = capsys.readouterr().out
  assert (
    printed.count('7.jpg: the file is empty') == 1 and printed.count('3.jpg: not an image') == 1
  )
  assert '(11 images, 1 unreadable)' in printed
  metrics = rows(tmp_path)
  assert [row['train/bad_images'] for row in metrics if 'train/bad_images' in row][-1] == 1
  counts = {row['validation/count'] for row in metrics if 'validation/count' in row}
  assert counts == {11.0}
  assert 'train/odd/7.jpg: the file is empty' in (tmp_path / 'run/unreadable_train.txt').read_text()


def test_an_evaluation_without_an_image_is_no_score(folder, tmp_path, capsys):
  for file in (folder / 'val').rglob('*.jpg'):
    file.write_bytes(b'')
  assert trained(tmp_path) == 1
  printed = capsys.readouterr()
  assert printed.err.count('\n') == 1 and 'nothing to evaluate' in printed.err
  assert not any('validation/loss' in row for row in rows(tmp_path))


def test_a_set_that_vanishes_ends_a_run_with_one_line(folder, tmp_path, capsys, monkeypatch):
  read = sources.Source.__getitem__

  def vanishing(self, index):
    if (tmp_path / 'run/data.json').exists():
      shutil.rmtree(folder, ignore_errors=True)
    return read(self, index)

  monkeypatch.setattr(sources.Source, '__getitem__', vanishing)
  assert trained(tmp_path) == 1
  printed = capsys.readouterr().err
  assert printed.count('\n') == 1 and '100 images in a row cannot be read' in printed


def test_an_image_that_a_transform_cannot_take_is_named(folder, tmp_path, capsys):
  Image.new('RGB', (5, 5)).save(folder / 'train/even/small.png')
  assert trained(tmp_path, 'data.augment=random_crop(8)', 'duration=2 epochs') == 1
  printed = capsys.readouterr().err
  assert printed.count('\n') == 1
  assert 'even/small.png: a crop of 8x8 exceeds the image of 5x5' in printed


def test_multi_label_images_need_the_sigmoid_loss_and_give_independent_scores(
  folder, tmp_path, capsys
):
  table = [
    f'{file},{file.parent.name}|all,{file.parent.parent.name}' for file in folder.rglob('*.jpg')
  ]
  (tmp_path / 'photos.csv').write_text('\n'.join(['path,label,split', *table]))
  source = f'data.source=csv:{tmp_path / "photos.csv"}'
  assert trained(tmp_path, source) == 2
  assert "multi-label: objective.loss must be 'sigmoid'" in capsys.readouterr().err
  assert trained(tmp_path, source, 'objective.loss=sigmoid') == 0
  run = vit_jax.load(tmp_path / 'run')
  predictions = run.predict(np.zeros((8, 8, 3), np.uint8), top=3)
  logits, _ = forward(run.model, run.params, -np.ones((1, 8, 8, 3), np.float32))
  want = sorted(1 / (1 + np.exp(-np.asarray(logits[0]))), reverse=True)
  np.testing.assert_allclose([each['score'] for each in predictions], want, rtol=1e-5)


def test_few_of_many_unreadable_images_are_named_and_all_are_listed(tmp_path):
  source, said = photos(60, bad=range(30)), []
  options = dict(say=said.append, limit=None, file=tmp_path / 'unreadable.txt')
  unreadable = pipeline.Unreadable(source, **options)
  taken(source, 6, unreadable=unreadable)
  assert unreadable.count == 30 and len(said) == pipeline.MAX_NAMED
  assert said[-1].endswith('; more are counted, not named')
  assert len((tmp_path / 'unreadable.txt').read_text().splitlines()) == 30
  again = pipeline.Unreadable(source, **options)
  taken(source, 6, unreadable=again)
  assert again.count == 30 and len(said) == pipeline.MAX_NAMED


@pytest.fixture
def expiring(monkeypatch):
  """Ends waits in this process that take too long, as `stopping.install` does elsewhere."""
  monkeypatch.setattr(waiting, 'TICK', 0.02)
  before = signal.signal(signal.SIGALRM, waiting.expire)
  yield
  signal.signal(signal.SIGALRM, before)


def test_a_worker_that_is_killed_or_stopped_is_replaced_and_no_image_lost(
  expiring, monkeypatch, capfd
):
  monkeypatch.setattr(pipeline, 'CLOSING', 0.2)
  source, said, images = photos(300), [], []

  def say(line):
    said.append(line)
    late.undo()

  reading = pipeline.Reading(workers=1)
  unreadable = pipeline.Unreadable(source, say=say)
  columns, options = labelled_images(source, TRANSFORM), dict(batch_size=20, seed=3)
  with (
    pytest.MonkeyPatch.context() as late,
    pipeline.training_batches(
      source, columns, **options, unreadable=unreadable, reading=reading
    ) as batches,
  ):
    for number in (signal.SIGKILL, signal.SIGSTOP):
      images += [next(batches)['image'] for _ in range(3)]
      (worker,) = multiprocessing.active_children()
      os.kill(worker.pid, number)
    late.setattr(waiting.Wait, 'seconds', 1e3)  # all that is waited for has lasted that long
    images += [next(batches)['image'] for _ in range(8)]  # more than there are ahead
  assert said == [
    'worker 1 of 1 has died: reads on with new ones',
    'no data for 300 s from worker 1 of 1: reads on with new ones',
  ]
  assert re.search(r'^vit: waiting for data since .* \(worker 1 of 1\)$', capfd.readouterr().err)
  np.testing.assert_array_equal(np.concatenate(images), taken(source, 14)['image'])


def test_a_source_that_never_answers_ends_with_one_line(expiring):
  answers, source, said = threading.Event(), photos(3), []
  columns = {'number': Column((), np.int32, lambda record, rng: answers.wait())}
  unreadable = pipeline.Unreadable(source, say=said.append)
  options = dict(batch_size=2, seed=3, unreadable=unreadable, reading=pipeline.Reading(timeout=0.1))
  with (
    pytest.raises(pipeline.DataError, match=r'no data for 0\.1 s; so had 3 readers before it'),
    pipeline.training_batches(source, columns, **options) as batches,
  ):
    next(batches)
  assert said == ['no data for 0.1 s: reads on with new ones'] * 3
  answers.set()


WORKERS = """
import numpy as np
from vit_jax import pipeline, sources
from vit_jax.images import transforms
from vit_jax.sources.columns import labelled_images

if __name__ == '__main__':
  image = np.zeros((90, 90, 3), np.uint8)
  records = [{'image': image, 'label': np.int32(i % 2)} for i in range(99)]
  source = sources.Source(records, ('a', 'b'))
  transform = transforms.compose('inception_crop', (64, 64))
  reading = pipeline.Reading(workers=2)
  columns = labelled_images(source, transform)
  with pipeline.training_batches(source, columns, batch_size=32, seed=0, reading=reading) as b:
    print(next(b)['image'].shape)
  del b
"""


def test_workers_end_without_a_word(tmp_path):
  (tmp_path / 'script.py').write_text(WORKERS)
  root = pathlib.Path(pipeline.__file__).parents[2]
  done = subprocess.run(
    [sys.executable, str(tmp_path / 'script.py')],
    # of features that it is told to go without, OpenCV warns
    env={**os.environ, 'PYTHONPATH': str(root), 'OPENCV_CPU_DISABLE': ''},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '(32, 64, 64, 3)\n', '')
