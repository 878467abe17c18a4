"""`vit probe`: linear segmentation on patch tokens, judged as an independent count judges it."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from tests.conftest import drawn, shapes, tiny
from vit_jax import bundle, commands
from vit_jax.__main__ import main
from vit_jax.evaluate import segmentation
from vit_jax.sources import masks

SIZE = (32, 32)


def labels(*shape, classes=4, seed=0):
  return np.random.default_rng(seed).integers(0, classes, shape)


def test_iou_is_that_of_scikit_learn_and_ignored_pixels_and_absent_classes_do_not_count():
  truth, prediction = labels(50, 40), labels(50, 40, seed=1)
  truth[:20] = prediction[20:40] = 1  # so that classes differ
  truth[:5] = masks.IGNORED
  counts = segmentation.confusion(truth, prediction, 5)
  is_counted = truth != masks.IGNORED
  pixels = truth[is_counted], prediction[is_counted]
  np.testing.assert_array_equal(counts, confusion_matrix(*pixels, labels=range(5)))
  scores = segmentation.scores(counts)
  expected = jaccard_score(*pixels, labels=range(4), average=None)
  np.testing.assert_allclose(scores['iou'][:4], expected, rtol=1e-12)
  assert scores['iou'][4] is None and scores['mean_iou'] == pytest.approx(expected.mean())
  assert scores['pixel_accuracy'] == pytest.approx(np.mean(pixels[0] == pixels[1]))


@pytest.mark.parametrize('size', [(8, 12), (7, 13), (2, 3)])
def test_cells_have_each_counted_pixel_once_in_the_patch_that_its_middle_is_in(size):
  mask = labels(*size)
  mask[0, 0] = masks.IGNORED
  expected = np.zeros((2, 3, 4), int)
  for (y, x), label in np.ndenumerate(mask):
    if label != masks.IGNORED:
      expected[int((y + 0.5) * 2 / size[0]), int((x + 0.5) * 3 / size[1]), label] += 1
  np.testing.assert_array_equal(segmentation.cell_counts(mask, (2, 3), 4), expected)


def test_logits_are_brought_to_the_pixels_as_jax_resizes():
  import jax

  logits = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
  larger = jax.image.resize(logits, (37, 50, 5), 'bilinear')
  np.testing.assert_array_equal(
    segmentation.segmented(logits, (37, 50)), np.asarray(larger).argmax(-1)
  )
  logits[..., 2] = -np.inf  # of a class that was never seen
  assert 2 not in segmentation.segmented(logits, (9, 9))


@pytest.mark.parametrize('classes', [2, 3])
def test_a_fit_to_fractions_is_where_the_gradient_of_its_loss_is_zero(classes):
  rng = np.random.default_rng(0)
  tokens = rng.standard_normal((60, 4)).astype(np.float32) * [1, 5, 2, 1] + 3
  counts = rng.integers(0, 9, (60, classes))
  counts[0] = 0  # of ignored pixels alone
  layer = segmentation.fit(np.float32(tokens), counts, 0.1)
  rows = counts.sum(1) > 0
  logits = layer(np.float64(tokens[rows]))
  expected = np.exp(logits - logits.max(1, keepdims=True))
  expected /= expected.sum(1, keepdims=True)
  fractions = counts[rows] / counts[rows].sum(1, keepdims=True)
  slope = ((tokens[rows] - layer.mean) / layer.std).T @ (expected - fractions)  # (D, K)
  penalty = layer.weights / 0.1
  if classes == 2:  # the second against the first
    slope, penalty = slope[:, 1], penalty[:, 1]
  np.testing.assert_allclose(slope + penalty, 0, atol=0.02)
  np.testing.assert_allclose((expected - fractions).sum(0), 0, atol=0.02)


# The command


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  vit = tiny(patch=4, width=32, depth=1, num_classes=0, registers=1)
  preprocess = bundle.Preprocess('resize(40) | central_crop', SIZE)
  bundle.write(
    folder, bundle.Bundle(vit, drawn(shapes(vit, SIZE), 0.1), (), preprocess, 'ViT-Ti/16')
  )
  return folder


@pytest.fixture
def scenes(tmp_path):
  """Blue ground with a red square in the mask's place, whose colour is noisy; palette masks."""
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (tmp_path / name).mkdir()
  for number in range(10):
    mask = np.zeros((48, 64), np.uint8)
    top, left = rng.integers(0, (24, 40))
    mask[top : top + 24, left : left + 24] = 1
    pixels = np.where(mask[..., None], (220, 30, 30), (30, 60, 200)) + rng.integers(
      0, 30, (48, 64, 3)
    )
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f'images/{number}.png')
    mask[0, 0] = masks.IGNORED
    indexed = Image.fromarray(mask).convert('P')
    indexed.putdata(mask.ravel().tolist())
    indexed.putpalette([255 - level for level in range(256) for _ in range(3)])
    indexed.save(tmp_path / f'masks/{number}.png')
  return tmp_path


def probe(*words):
  return main(['probe', *map(str, words)])


def test_squares_of_another_colour_are_segmented_and_the_same_twice(model, scenes, capsys):
  (scenes / 'names.txt').write_text('ground\nsquare\n')
  out = scenes / 'probe.json'
  words = (model, '--on', scenes, '--classes', scenes / 'names.txt', '--out', out)
  assert probe(*words) == 0
  values = json.loads(out.read_text())
  assert values['classes'] == ['ground', 'square'] and values['train_count'] == 8
  assert values['count'] == 2 and values['mean_iou'] > 0.85
  assert f'{values["iou"][1]:.2%}' in capsys.readouterr().out
  with Image.open(scenes / 'probe.png') as picture:
    assert min(picture.size) > 200
  assert probe(*words, '--format', 'json') == 0
  assert json.loads(capsys.readouterr().out) == values


def test_images_with_labels_are_probed_as_vit_evaluate_probes_them(model, capsys):
  words = ('--on', 'digits', '--method', 'knn', '--format', 'json', '--batch-size', '512')
  assert probe(model, *words) == 0
  probed = capsys.readouterr().out
  assert main(['evaluate', str(model), *words]) == 0
  assert capsys.readouterr().out == probed


def resized(scenes):
  Image.new('L', (9, 9)).save(scenes / 'masks/3.png')


def renamed(scenes):
  (scenes / 'masks/3.png').rename(scenes / 'masks/other.png')


def coloured(scenes):
  Image.new('RGB', (64, 48)).save(scenes / 'masks/3.png')


def beyond(scenes):
  Image.new('L', (64, 48), 7).save(scenes / 'masks/3.png')


def deep(scenes):
  Image.fromarray(np.full((48, 64), 300, np.uint16)).save(scenes / 'masks/3.png')


def broken(scenes):
  (scenes / 'images/3.png').write_bytes(b'no image')


def emptied(scenes):
  for path in (scenes / 'masks').iterdir():
    path.unlink()


@pytest.mark.parametrize(
  ('spoil', 'words', 'line'),
  [
    (resized, [], '3.png is 9x9, its image 48x64'),
    (renamed, [], '1 mask without an image of the same name in'),
    (coloured, [], '3.png is RGB: a mask has one class index for each pixel'),
    (beyond, ['--classes', 'names.txt'], '3.png has index 7: the classes are 2, 0 to 1; 255 is'),
    (broken, [], '3.png'),
    (deep, [], '3.png has index 300: the classes are 255, 0 to 254'),
    (emptied, [], 'masks has no PNG files'),
    (None, ['--masks', 'nowhere'], 'nowhere is no folder'),
    (None, ['--preprocess', 'central_crop'], '--preprocess is for images with labels'),
    (None, ['--method', 'knn'], 'masks are learned by --method linear, not knn'),
    (None, ['--out', 'a.png'], '--out a.png is for the numbers, as .json'),
  ],
)
def test_masks_that_cannot_be_learned_from_are_one_line(
  spoil, words, line, model, scenes, monkeypatch, capsys
):
  monkeypatch.chdir(scenes)
  (scenes / 'names.txt').write_text('ground\nsquare\n')
  if spoil:
    spoil(scenes)
  on = scenes / 'images' if '--masks' in words else scenes
  assert probe(model, '--on', on, '--out', 'out.json', *words) == commands.BAD_INPUT
  error = capsys.readouterr().err
  assert line in error and len(error.splitlines()) == 1 and not (scenes / 'out.json').exists()


def test_folders_that_name_splits_say_what_is_tested(scenes):
  for name in ('images', 'masks'):
    for number, split in ((0, 'train'), (1, 'val')):
      (scenes / name / split).mkdir()
      (scenes / name / f'{number}.png').rename(scenes / name / split / f'{number}.png')
    for number in range(2, 10):
      (scenes / name / f'{number}.png').unlink()
  splits = masks.open_pairs(str(scenes / 'images'), str(scenes / 'masks'))
  names = {split: [pair.image[-9:] for pair in pairs] for split, pairs in splits.items()}
  assert names == {'train': ['ain/0.png'], 'test': ['val/1.png']}
