"""Laws of using a trained model: predict, features, evaluate, and a bundle on disk."""

import base64
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import vit_jax
from tests.conftest import drawn, shapes
from tests.test_run import (
  ROOT,
  assert_same_bits,
  cache,
  contents,
  environment,
  vit_train,
  whole,
)  # fmt: skip
from vit_jax import __main__ as vit
from vit_jax import bundle, models, predict, sources
from vit_jax.commands import doctor
from vit_jax.convert import bundles
from vit_jax.evaluate import predictions

__all__ = ['cache', 'whole']


@pytest.fixture(scope='module')
def run(whole):
  return vit_jax.load(whole)


@pytest.fixture(scope='module')
def images():
  """Eight test images of the digits, (8, 8, 3) uint8."""
  test = sources.open_source('digits', 'test')
  return [test[i]['image'] for i in range(8)]


@pytest.fixture
def folder(images, tmp_path):
  """A folder with five of them as PNG files."""
  folder = tmp_path / 'images'
  folder.mkdir()
  for i in range(5):
    Image.fromarray(images[i]).save(folder / f'{i}.png')
  return folder


@pytest.fixture
def copied(whole, tmp_path):
  """A finished run without its checkpoints, to be spoilt."""
  run = tmp_path / 'copied'
  shutil.copytree(whole, run, ignore=shutil.ignore_patterns('checkpoints', 'events*'))
  return run


def files(folder):
  return [str(f) for f in sorted(folder.iterdir())]


# Predictions in Python


def test_a_run_is_shown_in_a_line(run):
  assert repr(run) == f'Run({run.name}, 8x8 pixels, 10 classes)'


def test_scores_fall_and_sum_to_one_over_all_classes(run, images):
  ranked = run.predict(images[0], top=10)
  scores = [guess['score'] for guess in ranked]
  assert scores == sorted(scores, reverse=True)
  assert sum(scores) == pytest.approx(1, abs=1e-5)
  assert sorted(guess['label'] for guess in ranked) == list('0123456789')


def test_one_image_is_predicted_as_in_a_list(run, images):
  listed = run.predict(images)
  assert len(listed) == 8 and [len(ranked) for ranked in listed] == [5] * 8
  alone = run.predict(images[3])
  assert [g['label'] for g in alone] == [g['label'] for g in listed[3]]
  assert [g['score'] for g in alone] == pytest.approx([g['score'] for g in listed[3]], abs=1e-6)


def test_other_images_in_the_batch_do_not_change_scores(run, images):
  forward = run.forward
  alone = [forward([run.prepared(image)])['scores'][0] for image in images]
  for order in (images, images[::-1], images[:3]):
    together = forward([run.prepared(image) for image in order], batch_size=3)['scores']
    expected = alone[::-1] if order[0] is images[-1] else alone[: len(order)]
    np.testing.assert_allclose(together, expected, atol=1e-6)


def test_a_path_and_an_array_are_the_same_image(run, images, folder):
  by_path = run.predict(str(folder / '2.png'))
  assert by_path == run.predict(folder / '2.png') == run.predict(images[2])


def test_more_classes_than_there_are_gives_all(run, images):
  assert len(run.predict(images[0], top=99)) == 10


@pytest.mark.parametrize('top', [0, -1, 1.5, '3'])
def test_what_is_no_number_of_classes_is_refused(run, images, top):
  with pytest.raises(ValueError, match=f'top.*{top}'):
    run.predict(images[0], top=top)


def test_features_are_what_the_head_reads(run, images):
  features = run.features(images)
  assert features.shape == (8, run.model.width) and features.dtype == np.float32
  np.testing.assert_allclose(run.features(images[0]), features[0], atol=1e-6)
  head = jax.device_get(run.params['head'])
  logits = features @ head['kernel'] + head['bias']
  labels = [ranked[0]['label'] for ranked in run.predict(images)]
  assert labels == [run.classes[k] for k in logits.argmax(1)]


# Any image


def forms(image, path):
  """One image (H, W, 3) in every form that is taken, by the form's name."""
  picture = Image.open(path)
  data = path.read_bytes()
  return {
    'path': path,
    'text': str(path),
    'pattern': f'{path.parent}/{path.name[0]}*.png',
    'data URL': f'data:image/png;base64,{base64.b64encode(data).decode()}',
    'bytes': data,
    'memory': memoryview(data),
    'open file': io.BytesIO(data),
    'picture': picture,
    'pixels': image,
    'JAX': jnp.asarray(image),
    'float32': (image / 255).astype(np.float32),
    'float64': image / 255,
    'four dimensions': image[None],
    'list': [path],
    'nested': [[path]],
    'tuple of arrays': (image,),
    'array of paths': np.array([str(path)]),
  }


SEVERAL = ('pattern', 'four dimensions', 'list', 'nested', 'tuple of arrays', 'array of paths')


def test_an_image_is_the_same_in_every_form(run, images, folder):
  expected = run.predict(images[2])
  for form, image in forms(images[2], folder / '2.png').items():
    answer = run.predict(image)
    assert answer == ([expected] if form in SEVERAL else expected), form
  np.testing.assert_array_equal(run.features(folder / '2.png'), run.features([images[2]])[0])
  assert run.attention(jnp.asarray(images[2])).weights.shape[0] == run.model.depth


def test_grey_is_one_channel_with_or_without_an_axis(run, images):
  grey = images[2][..., 0]
  assert run.predict(grey) == run.predict(grey[..., None]) == run.predict(images[2])


def test_a_folder_is_all_of_its_images_in_order(run, folder):
  assert run.predict(folder) == run.predict(files(folder)) == run.predict(f'{folder}/*.png')
  assert run.features(folder).shape == (5, run.model.width)


def test_a_generator_gives_its_results_as_they_come(run, images):
  taken = []

  def camera():
    for index in itertools.count():
      taken.append(index)
      yield images[index % 8]

  results = run.predict(camera(), top=1, batch_size=2)
  assert taken == []
  first = [next(results), next(results), next(results)]
  assert taken == [0, 1, 2, 3] and first == run.predict(images[:3], top=1, batch_size=2)
  np.testing.assert_allclose(next(run.features(camera(), batch_size=1)), run.features(images[0]))
  assert next(run.attention(camera())).weights.ndim == 4


@pytest.mark.parametrize('count', [100, 101])
def test_over_a_hundred_images_get_a_bar(count, run, images, monkeypatch):
  totals, advances = [], []

  @contextlib.contextmanager
  def bar(total, **_):
    totals.append(total)
    yield advances.append

  monkeypatch.setattr(predict, 'progress', bar)
  run.features(np.stack([images[0]] * count))
  assert totals == [101] * (count > 100) and sum(advances) == (count > 100) * count


def test_a_threshold_leaves_out_what_is_below_it(run, images):
  ranked = run.predict(images[0], top=10)
  least = ranked[2]['score']
  assert run.predict(images[0], top=10, threshold=least) == ranked[:3]
  assert run.predict(images[0], threshold=1.0) == []
  with pytest.raises(ValueError, match=r'threshold must be in \[0, 1\], got 40'):
    run.predict(images[0], threshold=40)
  with pytest.raises(ValueError, match='got None'):
    run.predict(images[0], threshold=None)


@pytest.mark.parametrize(
  ('image', 'said'),
  [
    (np.zeros((8, 8, 4), np.uint8), 'not uint8 (8, 8, 4)'),
    (np.zeros((3, 8, 8), np.uint8), 'array.transpose(1, 2, 0)'),
    (np.zeros((1, 2, 8, 8, 3), np.uint8), 'not uint8 (1, 2, 8, 8, 3)'),
    (np.full((8, 8, 3), -0.5, np.float32), '(array + 1) / 2'),
    (np.full((8, 8, 3), 90.0), 'array / 255'),
    (np.full((8, 8, 3), 300.0), 'array.clip(0, 1)'),
    (np.full((8, 8, 3), np.nan), 'not finite'),
    (np.full((8, 8, 3), 90), "array.astype('uint8')"),
    (np.full((8, 8, 3), 900), 'uint8, or floats from 0 to 1, not int64 (8, 8, 3)'),
    (np.zeros((8, 8, 3), bool), 'not bool (8, 8, 3): array / 1 is'),
    (np.full((8, 8, 3), 256, np.uint16), 'not uint16 (8, 8, 3): array / 65535 is'),
    (np.full((8, 8, 3), 90, np.uint16), "array.astype('uint8') is"),
    (io.StringIO('rose'), "not str: open(..., 'rb')"),
    (None, 'NoneType is no image'),
    ({'image': b''}, 'dict is no image'),
    (b'', 'the file is empty'),
    (b'rose', 'not an image'),
    ('data:image/png;base64,a', 'base64 cannot be decoded'),
    ('data:image/png', 'has no comma'),
    ('file:///etc/passwd', 'no URL of an image'),
    ('ftp://a.b/c.png', 'no URL of an image'),
  ],
)
def test_what_is_no_image_is_refused_with_what_to_do(run, image, said):
  with pytest.raises(ValueError, match=re.escape(said)) as error:
    run.predict(image)
  assert '\n' not in str(error.value)


def test_batches_are_smaller_for_larger_models_and_images():
  sizes = [
    predict.images_at_a_time(vit_jax.build(name), (side, side))
    for name, side in [('ViT-Ti/16', 224), ('ViT-B/16', 224), ('ViT-B/16', 512), ('ViT-H/14', 518)]
  ]
  assert sizes == [128, 32, 4, 2]
  assert predict.images_at_a_time(vit_jax.build('BiT-R50x1'), (224, 224)) >= 8


def test_an_image_without_pixels_is_refused(run):
  with pytest.raises(ValueError, match=r'\(0, 8, 3\)'):
    run.predict(np.zeros((0, 8, 3), np.uint8))


def test_no_images_are_refused(run):
  with pytest.raises(ValueError, match='no images'):
    run.predict([])


def test_a_missing_file_is_named(run, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'rose\.jpg'):
    run.predict(tmp_path / 'rose.jpg')


# vit predict


def test_table_csv_and_json_say_what_python_says(run, whole, folder, capsys):
  expected = dict(zip(files(folder), run.predict(files(folder), top=3)))
  command = ['predict', str(whole), str(folder), '--top', '3']

  assert vit.main(command) == 0
  lines = capsys.readouterr().out.splitlines()
  for line, (file, ranked) in zip(lines, expected.items(), strict=True):
    guesses = '  '.join(f'{g["label"]} {g["score"]:.1%}' for g in ranked)
    assert line == f'{file}  {guesses}'

  assert vit.main([*command, '--format', 'csv']) == 0
  rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
  assert list(rows[0]) == ['file', 'rank', 'label', 'score'] and len(rows) == 15
  wanted = [(f, str(i), g['label']) for f, r in expected.items() for i, g in enumerate(r, 1)]
  assert [(row['file'], row['rank'], row['label']) for row in rows] == wanted
  scores = [g['score'] for ranked in expected.values() for g in ranked]
  assert [float(row['score']) for row in rows] == pytest.approx(scores, abs=2e-6)

  assert vit.main([*command, '--format', 'json']) == 0
  output = capsys.readouterr()
  result = json.loads(output.out)
  assert [entry['file'] for entry in result] == list(expected) and output.err == ''
  for entry in result:
    ranked = entry['predictions']
    assert [g['label'] for g in ranked] == [g['label'] for g in expected[entry['file']]]
    assert ranked == sorted(ranked, key=lambda g: -g['score'])
    assert sum(g['score'] for g in ranked) <= 1 + 1e-6


def spoilt(folder):
  """Files that are no images, by name, with what is to be said of each."""
  good = (folder / '0.png').read_bytes()
  (folder / 'cut.png').write_bytes(good[: len(good) // 2])
  (folder / 'empty.jpg').write_bytes(b'')
  (folder / 'text.gif').write_text('rose')
  (folder / 'lost.png').symlink_to(folder / 'nowhere.png')
  (folder / 'ring.png').symlink_to(folder / 'ring.png')
  return {
    'cut.png': 'damaged image',
    'empty.jpg': 'empty',
    'text.gif': 'not an image',
    'lost.png': 'no such file',
    'ring.png': 'symbolic links',
  }


def test_bad_files_are_named_and_the_others_predicted(whole, folder, capsys):
  good, bad = files(folder), spoilt(folder)
  (folder / 'folder.png').mkdir()
  assert vit.main(['predict', str(whole), str(folder), '--format', 'json']) == 3
  output = capsys.readouterr()
  assert [entry['file'] for entry in json.loads(output.out)] == good
  lines = output.err.splitlines()
  for name, fault in bad.items():
    [line] = [line for line in lines if name in line]
    assert line.startswith('vit predict: ') and fault in line
  assert len(lines) - len(bad) <= 1  # a folder that is named like an image may be told


def test_a_bad_file_named_alone_is_exit_3_and_still_valid_json(whole, tmp_path, capsys):
  missing = str(tmp_path / 'rose.jpg')
  assert vit.main(['predict', str(whole), missing, '--format', 'json']) == 3
  output = capsys.readouterr()
  assert json.loads(output.out) == []
  assert output.err == f'vit predict: {missing}: there is no such file\n'


def test_a_file_that_cannot_be_read_is_named(whole, folder, capsys):
  # Root may read any file; this one fails when it is read.
  assert vit.main(['predict', str(whole), '/proc/self/mem', str(folder / '0.png')]) == 3
  output = capsys.readouterr()
  assert '/proc/self/mem' in output.err and output.err.count('\n') == 1
  assert '0.png' in output.out


def run_python(words, **options):
  """A process of Python, ended."""
  env = environment(jax.config.jax_compilation_cache_dir)
  words = [sys.executable, *words]
  return subprocess.run(words, env=env, cwd=ROOT, stderr=subprocess.PIPE, timeout=300, **options)


# A file of predictions


def predict_to(whole, folder, out, *more):
  return vit.main(['predict', str(whole), str(folder), '--out', str(out), *more])


@pytest.mark.parametrize('suffix', ['.csv', '.json', '.jsonl'])
def test_a_file_that_was_torn_anywhere_is_completed_to_the_same_bytes(
  suffix, whole, run, folder, tmp_path, monkeypatch, capsys
):
  out = tmp_path / f'out{suffix}'
  assert predict_to(whole, folder, out) == 0
  text, expected = out.read_bytes(), run.predict(folder, top=3)
  if suffix == '.csv':
    labels = [row['label'] for row in csv.DictReader(io.StringIO(text.decode()))]
    assert labels == [p['label'] for ranked in expected for p in ranked]
  else:
    lines = json.loads(text) if suffix == '.json' else map(json.loads, text.splitlines())
    assert {row['file']: row['predictions'] for row in lines} == dict(zip(files(folder), expected))
  counts, forward = [], predict.Run.forward

  def counted(self, prepared, **options):
    counts.append(len(prepared))
    return forward(self, prepared, **options)

  monkeypatch.setattr(predict.Run, 'forward', counted)
  for cut in (0, 1, len(text) // 3, len(text) // 2, len(text) - 1, len(text)):
    out.write_bytes(text[:cut])
    counts.clear()
    assert predict_to(whole, folder, out) == 0
    assert out.read_bytes() == text and sum(counts) <= 5 - (cut > len(text) // 4)
  assert '4 were there' in capsys.readouterr().out or suffix != '.csv'


def test_an_image_whose_name_is_quoted_for_spreadsheets_is_predicted_once(tmp_path):
  for _ in range(2):
    with predictions.completing(str(tmp_path / 'p.csv'), {}, quote_formulas=True) as results:
      for name in ('=1.png', 'b.png'):
        if not results.has(name):
          results.add(name, [])
  assert (tmp_path / 'p.csv').read_bytes() == b"file,rank,label,score\r\n'=1.png,,,\r\nb.png,,,\r\n"


def test_another_choice_model_or_file_is_refused_and_nothing_lost(
  whole, copied, folder, tmp_path, capsys
):
  out, other = tmp_path / 'out.jsonl', tmp_path / 'other.csv'
  other.write_text('mine')
  assert predict_to(whole, folder, out) == 0
  before = contents(tmp_path)
  capsys.readouterr()
  assert predict_to(whole, folder, out, '--top', '5') == 2
  assert 'another choice: top was 3 and is 5' in capsys.readouterr().err
  assert predict_to(whole, folder, other) == 2
  assert f'{other} is there, and not of' in capsys.readouterr().err
  assert predict_to(whole, folder, tmp_path / 'out.txt') == 2
  assert '.csv, .json, .jsonl' in capsys.readouterr().err
  assert contents(tmp_path) == before
  arrays = load_file(copied / 'model/model.safetensors')
  edit(copied / 'model/model.safetensors', {k: v + 1 for k, v in arrays.items()})
  assert predict_to(copied, folder, out) == 2
  assert 'predictions of another model' in capsys.readouterr().err
  assert out.read_bytes() == before['out.jsonl']


def test_an_image_without_a_class_above_the_threshold_is_still_told(
  whole, folder, tmp_path, capsys
):
  assert vit.main(['predict', str(whole), str(folder / '0.png'), '--threshold', '1']) == 0
  assert capsys.readouterr().out == f'{folder / "0.png"}  (no class reaches 100.0%)\n'
  out = tmp_path / 'out.csv'
  assert predict_to(whole, folder / '0.png', out, '--threshold', '1') == 0
  assert out.read_text() == f'file,rank,label,score\n{folder / "0.png"},,,\n'


EVERY_FORM = """
import sys
from vit_jax import __main__ as vit

paths = sys.argv[1:]
for form in ('table', 'csv', 'json'):
  sys.argv[1:] = ['predict', *paths, '--format', form]
  try:
    vit.console()
  except SystemExit as end:
    assert not end.code
"""


def test_a_file_name_that_is_not_unicode_is_predicted(whole, images, tmp_path):
  name = os.fsencode(tmp_path) + b'/\xff.png'
  Image.fromarray(images[0]).save(tmp_path / 'a.png')
  os.rename(tmp_path / 'a.png', name)
  ended = run_python(['-c', EVERY_FORM, whole, tmp_path], stdout=subprocess.PIPE)
  assert (ended.returncode, ended.stderr) == (0, b'')
  assert ended.stdout.count(b'.png') >= 3


def test_an_image_of_any_mode_size_and_case_is_predicted(whole, tmp_path, capsys):
  for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'I', 'F', 'CMYK'):
    suffix = '.tiff' if mode in ('F', 'CMYK', 'I') else '.PNG'
    Image.new(mode, (300, 2)).save(tmp_path / f'{mode.replace(";", "")}{suffix}')
  assert vit.main(['predict', str(whole), str(tmp_path), '--format', 'json']) == 0
  output = capsys.readouterr()
  assert len(json.loads(output.out)) == 10 and output.err == ''


def test_a_folder_without_images_is_named_and_the_others_predicted(whole, folder, tmp_path, capsys):
  empty = tmp_path / 'empty'
  empty.mkdir()
  (empty / 'notes.txt').write_text('mine')
  assert vit.main(['predict', str(whole), str(empty), str(folder)]) == 3
  output = capsys.readouterr()
  assert output.err.splitlines() == [
    f'vit predict: {empty}: passed over: 1 .txt (no image format that is read)',
    f'vit predict: {empty}: no images in this folder',
  ]
  assert len(output.out.splitlines()) == len(files(folder))


def test_top_below_one_is_refused(whole, folder, capsys):
  assert vit.main(['predict', str(whole), str(folder), '--top', '0']) == 2
  assert '--top' in capsys.readouterr().err


# Runs and bundles that cannot be used


def refused(path, capsys):
  """What `vit predict` says of a run, which is one line, with exit code 2."""
  assert vit.main(['predict', str(path), 'rose.jpg']) == 2
  output = capsys.readouterr()
  assert output.out == '' and output.err.count('\n') == 1
  return output.err


def test_a_run_that_is_none_is_refused(tmp_path, capsys):
  assert 'no such file or folder' in refused(tmp_path / 'nowhere', capsys)
  assert 'holds no weights' in refused(tmp_path, capsys)
  (tmp_path / 'rose.jpg').write_bytes(b'')
  assert 'rose.jpg' in refused(tmp_path / 'rose.jpg', capsys)


def test_of_a_path_that_is_not_there_the_nearest_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name in ('runs/photos', 'photos'):
    (tmp_path / name).mkdir(parents=True)
  assert refused('runs/photo', capsys).endswith('folder; did you mean runs/photos?\n')
  for name, match in (('photo', 'folder:photos'), ('folder:photo', 'photos')):
    with pytest.raises((ValueError, OSError), match=rf'; did you mean {match}\?$'):
      sources.open_source(name, 'train')


def edit(file, arrays):
  """Puts other arrays into a bundle on purpose."""
  save_file(arrays, file)
  (file.parent / 'seal.json').unlink()


def test_weights_that_are_not_as_they_were_written_are_refused(copied, capsys):
  file = copied / 'model/model.safetensors'
  data = file.read_bytes()
  file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  line = refused(copied, capsys)
  assert 'is damaged' in line and 'if it was changed on purpose, remove seal.json' in line
  (file.parent / 'seal.json').unlink()
  assert vit_jax.load(copied)


def test_a_bundle_of_a_newer_version_is_refused_by_its_name(copied, capsys):
  file = copied / 'model/config.json'
  file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
  assert 'is of format 2, a newer version of vit_jax wrote it' in refused(copied, capsys)


def test_all_wrong_arrays_are_named_at_once(copied, capsys):
  file = copied / 'model/model.safetensors'
  arrays = load_file(file)
  del arrays['head/bias']
  arrays['encoder/norm/scale'] = arrays['encoder/norm/scale'][1:].copy()
  arrays['tail/kernel'] = np.zeros(3, np.float32)
  edit(file, arrays)
  line = refused(copied, capsys)
  assert 'head/bias is missing' in line and 'tail/kernel is unexpected' in line
  assert 'encoder/norm/scale has shape (15,), not (16,)' in line


def strict(text):
  """The value of JSON, which has no NaN."""
  return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))


@pytest.mark.parametrize(
  'name, value, line',
  [
    ('encoder/norm/scale', np.nan, '16 parameters are not finite, the first of encoder/norm/scale'),
    ('head/kernel', 0.0, 'the head is all zero: it gives the same scores for every image'),
  ],
)
def test_a_model_without_an_answer_says_so(name, value, line, copied, folder, tmp_path, capsys):
  file = copied / 'model/model.safetensors'
  arrays = load_file(file)
  arrays[name] = np.full_like(arrays[name], value)
  edit(file, arrays)
  model = str(copied)
  for words in (
    ['predict', model, str(folder), '--format', 'json'],
    ['evaluate', model, '--on', 'digits', '--split', 'test[:8]', '--format', 'json'],
    ['convert', model, str(tmp_path / 'converted'), '--to', 'timm'],
    ['export', model, '--to', 'npz', '--out', str(tmp_path / 'model.npz'), '--no-check'],
  ):
    assert vit.main(words) == 0, words
    output = capsys.readouterr()
    assert f'vit {words[0]}: {line}' in output.err
    if '--format' in words:
      assert strict(output.out)
  if np.isnan(value):
    assert vit.main(['export', model, '--to', 'npz', '--out', str(tmp_path / 'other.npz')]) == 2
    assert f'vit export: {line}, so that no check succeeds' in capsys.readouterr().err


@pytest.mark.parametrize('spoil', ['transposed', 'missing'])
def test_a_bundle_whose_head_does_not_fit_its_classes_is_not_given_a_new_one(spoil, copied, capsys):
  file = copied / 'model/model.safetensors'
  arrays = load_file(file)
  kernel = arrays.pop('head/kernel')
  if spoil == 'transposed':
    arrays['head/kernel'] = kernel.T.copy()
  edit(file, arrays)
  assert 'head/kernel' in refused(copied, capsys)


def described(copied, **changes):
  """Changes fields of a bundle's description: 'model.width' as model__width."""
  file = copied / 'model/config.json'
  description = json.loads(file.read_text())
  for name, value in changes.items():
    *parents, leaf = name.split('__')
    section = description
    for parent in parents:
      section = section[parent]
    section[leaf] = value
  file.write_text(json.dumps(description))


@pytest.mark.parametrize('text', ['', '{"model": ', '[]', 'null', '{}'])
def test_a_description_that_is_none_is_refused(text, copied, capsys):
  file = copied / 'model/config.json'
  file.write_text(text)
  assert str(file) in refused(copied, capsys)


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'model__name': 'ViT-Q/16'}, 'ViT-Q/16'),
    ({'model__widht': 3}, 'widht'),
    ({'model__width': 'wide'}, 'width'),
    ({'model__patch': 'p'}, 'patch'),
    ({'model__width': 18}, 'shape'),
    ({'model__depth': 3}, 'shape'),
    ({'preprocess__steps': 'rezise'}, 'rezise'),
    ({'preprocess__size': [8]}, 'size'),
    ({'preprocess__size': [9, 9]}, '9x9'),
    ({'preprocess__mean': [0.5, 0.5]}, 'mean'),
    ({'preprocess__speed': 1}, 'speed'),
    ({'classes': ['0', '1']}, 'classes'),
  ],
)
def test_a_description_that_does_not_fit_is_refused(changes, said, copied, folder, capsys):
  described(copied, **changes)
  assert vit.main(['predict', str(copied), str(folder)]) == 2
  output = capsys.readouterr()
  assert output.err.count('\n') == 1 and said in output.err


# Bundles


def test_a_bundle_goes_to_disk_and_back_with_every_bit(run, tmp_path):
  bundle.write(tmp_path / 'model', run)
  back = bundle.read(tmp_path / 'model')
  assert_same_bits(models.flat(back.params), models.flat(run.params))
  assert (back.model, back.classes, back.name) == (run.model, run.classes, run.name)
  assert back.preprocess == run.preprocess
  files = ['README.md', 'config.json', 'model.safetensors', 'seal.json']
  assert sorted(contents(tmp_path)) == [f'model/{name}' for name in files]


def test_a_run_loads_by_its_folder_its_bundle_and_a_file_of_it(run, whole):
  for path in (whole, whole / 'model', whole / 'model/model.safetensors', str(whole)):
    assert_same_bits(models.flat(vit_jax.load(path).params), models.flat(run.params))


def test_load_params_of_a_run_are_its_params(run, whole):
  params = vit_jax.load_params(whole, run.model)
  assert_same_bits(models.flat(params), models.flat(run.params))


def test_load_params_refuses_another_model_with_all_that_differs(run, whole):
  wider = run.model.clone(width=32)
  with pytest.raises(ValueError, match=r'embed/kernel has shape.*head/kernel has shape'):
    vit_jax.load_params(whole, wider, image_size=8)


OTHER = dict(
  num_classes=3,
  patch=(4, 8),
  width=8,
  depth=1,
  heads=2,
  mlp_dim=12,
  pool='map',
  pool_prefix=False,
  pool_heads=4,
  pool_mlp_dim=20,
  class_token=True,
  positions='rope',
  cls_position=False,
  rope_theta=50.0,
  rope_grid='cells',
  rope_offset=0.5,
  rope_reference=(3, 5),
  rope_axes='xy',
  rope_interleaved=True,
  relative_positions='mlp',
  relative_hidden=6,
  representation=5,
  registers=2,
  distillation='token',
  stem=(),
  stem_width=32,
  stem_numerics='timm',
  layer_scale=0.5,
  drop_path=0.1,
  dropout=0.2,
  attention_dropout=0.3,
  embed_bias=False,
  qkv_bias='qv',
  qk_norm=True,
  proj_bias=False,
  post_norm=True,
  parallel=True,
  attention_norm=True,
  mlp_norm=True,
  embed_norm=True,
  norm='rms',
  swiglu=True,
  pre_norm=True,
  final_norm='pooled',
  activation='quick_gelu',
  norm_eps=1e-3,
  head_bias=-2.0,
)


def test_every_field_of_a_model_survives_a_bundle(tmp_path):
  standard = models.fields(vit_jax.build('ViT-Ti/16'))
  omitted = {field for field in standard if field in bundles.OMITTED}
  assert set(OTHER) | omitted == set(standard)  # a new field belongs into OTHER
  assert [f for f in OTHER if OTHER[f] == standard[f]] == []
  model = vit_jax.build('ViT-Ti/16', **OTHER)
  params = drawn(shapes(model, (8, 8)))
  size = bundle.Preprocess('resize', (8, 8), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  bundle.write(tmp_path, bundle.Bundle(model, params, ('a', 'b', 'ç'), size, 'ViT-Ti/16'))
  back = bundle.read(tmp_path)
  assert back.model == model and back.preprocess == size and back.classes == ('a', 'b', 'ç')
  assert_same_bits(models.flat(back.params), models.flat(params))


def test_a_bundle_does_not_say_how_its_head_started(run, tmp_path):
  other = dataclasses.replace(run, model=run.model.clone(head_init='normal'))
  bundle.write(tmp_path / 'zeros', run)
  bundle.write(tmp_path / 'normal', other)
  assert contents(tmp_path / 'zeros') == contents(tmp_path / 'normal')
  assert 'head_init' not in (tmp_path / 'zeros/config.json').read_text()
  back = bundle.read(tmp_path / 'normal')
  assert back.model == run.model
  assert_same_bits(models.flat(back.params), models.flat(run.params))


def test_a_bundle_cut_off_in_the_writing_leaves_the_old_one(run, tmp_path, monkeypatch):
  bundle.write(tmp_path / 'model', run)
  before = contents(tmp_path)

  def killed(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(json, 'dumps', killed)
    bundle.write(tmp_path / 'model', run)
  assert {
    name: data for name, data in contents(tmp_path).items() if 'partial' not in name
  } == before
  bundle.write(tmp_path / 'model', run)
  assert contents(tmp_path) == before


# vit models, doctor


@pytest.mark.parametrize('words', ['--image-size 0', '--image-size -16', '--image-size 10', 'B_17'])
def test_models_refuses_other_models_and_an_image_size_that_holds_no_patch(words, capsys):
  assert vit.main(['models', *words.split()]) == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_doctor_finds_nothing_wrong_here(monkeypatch, capsys):
  monkeypatch.setattr(doctor, 'nvidia_gpu', lambda: None)
  assert vit.main(['doctor']) == 0
  output = capsys.readouterr()
  assert 'all is well' in output.out and output.err == ''
  assert f'{jax.device_count()} cpu device' in output.out and jax.__version__ in output.out


def test_doctor_warns_of_a_gpu_that_jax_does_not_use(monkeypatch, capsys):
  monkeypatch.setattr(doctor, 'nvidia_gpu', lambda: 'an NVIDIA GPU')
  assert vit.main(['doctor']) == 1
  output = capsys.readouterr()
  assert 'this machine has an NVIDIA GPU, but JAX RUNS ON THE CPU' in output.err


def test_doctor_names_packages_that_are_missing(monkeypatch, capsys):
  result = doctor.installed
  monkeypatch.setattr(doctor, 'nvidia_gpu', lambda: None)
  monkeypatch.setattr(doctor, 'installed', lambda name: None if name == 'grain' else result(name))
  assert vit.main(['doctor']) == 1
  assert 'missing: grain' in capsys.readouterr().err


def test_a_reader_that_has_had_enough_is_no_error():
  reading, writing = os.pipe()
  os.close(reading)
  ended = run_python(['-m', 'vit_jax', 'models', 'ViT-Ti/16'], stdout=writing)
  os.close(writing)
  assert (ended.returncode, ended.stderr) == (0, b'')


def test_a_finished_run_whose_model_was_lost_makes_it_again(whole, tmp_path, capsys):
  run = tmp_path / 'run'
  shutil.copytree(whole, run, ignore=shutil.ignore_patterns('[1-7]'))
  (run / 'model/model.safetensors').unlink()
  assert vit_train(run) == 0
  assert contents(run / 'model') == contents(whole / 'model')
