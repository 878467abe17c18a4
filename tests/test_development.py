"""What a run keeps of how its encoder developed, and what the report shows of it."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from tests.test_run import cache
from tests.test_tasks import folder_of
from vit_jax import bundle, sources
from vit_jax.evaluate import development, inputs, reconstruct
from vit_jax.evaluate.features import extract
from vit_jax.views.facts import gather
from vit_jax.views.report_page import as_html

__all__ = ['cache', 'folder_of']  # of this module too


def drawn(step, seed=0):
  rng = np.random.default_rng(seed)
  photos = np.arange(2, dtype=np.int64)
  colours = rng.integers(0, 256, (1, 2, 4, 4, 3), np.uint8)
  return development.Development(photos, np.array([step]), rng.integers(0, 9, (1, 2, 3)), colours)


def test_the_first_and_the_last_point_in_time_stay_and_others_are_spread_evenly(tmp_path):
  for step in range(10, 510, 10):
    development.add(tmp_path, drawn(step, seed=step))
  steps = development.read(tmp_path).steps
  assert len(steps) == development.POINTS and (steps[0], steps[-1]) == (10, 500)
  spans = np.diff(steps)
  assert (spans > 0).all() and spans.max() <= 4 * spans.min()


def test_a_point_in_time_takes_the_place_of_those_after_its_step(tmp_path):
  for step in (10, 20, 30, 20):
    development.add(tmp_path, drawn(step))
  assert development.read(tmp_path).steps.tolist() == [10, 20]


def test_other_photos_begin_anew(tmp_path):
  development.add(tmp_path, drawn(10))
  development.add(tmp_path, dataclasses.replace(drawn(20), photos=np.int64([3, 4])))
  assert development.read(tmp_path).steps.tolist() == [20]


def test_a_file_that_is_damaged_tells_nothing(tmp_path):
  assert development.read(tmp_path) is None
  file = tmp_path / development.FILE
  development.add(tmp_path, drawn(10))
  file.write_bytes(file.read_bytes()[:-200])
  assert development.read(tmp_path) is None


@pytest.mark.parametrize('order', [*itertools.permutations(range(3))])
def test_components_that_change_places_and_signs_keep_their_colours(order):
  colours = drawn(10).colours[0]
  turned = colours[..., order].copy()
  turned[..., 1] = 255 - turned[..., 1]
  np.testing.assert_array_equal(development.aligned(colours, turned), colours)


@pytest.fixture(scope='module')
def looked(folder_of, tmp_path_factory):
  """(model, split, development, page) of a masked autoencoder's run that was looked at twice."""
  folder = tmp_path_factory.mktemp('looked') / 'run'
  shutil.copytree(folder_of('mae') / 'whole', folder)
  (folder / development.FILE).unlink(missing_ok=True)
  run, source = bundle.read(folder), sources.open_source('digits', 'validation')
  split = inputs.Split('digits', 'validation', source)
  for step in (5, 10):
    development.add(folder, development.look(run, split, step))
  return run, split, development.read(folder), as_html(gather(folder))


def test_a_report_shows_photos_with_the_most_similar_images(looked):
  run, split, looks, page = looked
  assert looks.colours.shape == (2, 8, 2, 2, 3) and looks.steps.tolist() == [5, 10]
  values = extract(run, split).values
  values = values / np.linalg.norm(values, axis=1, keepdims=True)
  for photo, nearest in zip(looks.photos, looks.nearest[0], strict=True):
    cosines = np.delete(values @ values[photo], photo)
    np.testing.assert_allclose(values[nearest] @ values[photo], np.sort(cosines)[:-5:-1], atol=1e-6)
  assert page.count('class="pixels"') == 2 * 8
  captions = [page.count(f'data-caption="neighbour {place} at step 10') for place in range(1, 6)]
  assert captions == [8, 8, 8, 8, 0]


def test_a_report_shows_what_a_masked_autoencoder_fills_in(looked):
  run, split, looks, page = looked
  images = [run.preprocess.transform(split.source[int(row)]['image'], None) for row in looks.photos]
  pictures = reconstruct.reconstruct(run, np.stack(images))
  np.testing.assert_array_equal(looks.masked, pictures.masked)
  np.testing.assert_array_equal(looks.reconstructed, np.stack([pictures.pixels] * 2))
  assert [page.count(f'filled in at step {step}') for step in (5, 10)] == [8, 8]
  assert page.count('alt="visible patches of') == 8


def test_pictures_that_are_kept_are_small_and_in_colour():
  pictures = development.small(np.zeros((2, 200, 100, 1), np.uint8))
  assert pictures.shape == (2, 96, 48, 3)


def test_a_run_without_reconstructions_begins_them_anew(tmp_path):
  development.add(tmp_path, drawn(10))
  masked = np.zeros((2, 8, 8, 3), np.uint8)
  now = dataclasses.replace(drawn(20), masked=masked, reconstructed=masked[None])
  development.add(tmp_path, now)
  assert development.read(tmp_path).steps.tolist() == [20]
  development.add(tmp_path, dataclasses.replace(now, steps=np.int64([30])))
  assert development.read(tmp_path).reconstructed.shape == (2, 2, 8, 8, 3)
