"""Laws of views: crops of an image, each random by (seed, epoch, index, view), decoded once."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax import config as configs
from vit_jax import pipeline, sources
from vit_jax.images import decoding, transforms
from vit_jax.sources.columns import image, shared_images
from vit_jax.tasks import views

pytestmark = pytest.mark.quick

COUNT, SEED = 3, 5
CROPS = {  # of a JPEG of 500x360: at scales 1, 1/2 and 1/8 of it
  'global0': transforms.compose('inception_crop(area_min=0.3) | flip', (64, 64)),
  'global1': transforms.compose('inception_crop(area_min=0.3) | flip', (64, 64)),
  'local0': transforms.compose('inception_crop(area_max=0.3) | flip', (24, 24)),
  'local1': transforms.compose('inception_crop(area_max=0.3) | flip', (24, 24)),
  'whole': transforms.compose('resize', (32, 32)),
}


@pytest.fixture(scope='module')
def photos():
  """Three JPEG files of noise with slow and fast waves, 500x360."""
  rng = np.random.default_rng(0)
  files = []
  for _ in range(COUNT):
    small = rng.integers(0, 256, (36, 50, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((500, 360)).save(buffer, 'JPEG', quality=90)
    files.append(buffer.getvalue())
  return files


@pytest.fixture
def source(photos):
  return sources.Source([{'image': file} for file in photos], ())


def batches(source, columns, **options):
  reading = pipeline.Reading(threads=options.pop('threads', 1))
  with pipeline.training_batches(
    source, columns, batch_size=2, seed=SEED, reading=reading, **options
  ) as rows:
    return [next(rows) for _ in range(3)]


def test_views_that_share_a_decoding_are_what_each_is_alone(source):
  together = batches(source, shared_images(CROPS), threads=2)
  for view, (name, transform) in enumerate(CROPS.items()):
    alone = batches(source, {name: image(transform, view=view)})
    for many, one in zip(together, alone):
      np.testing.assert_array_equal(many[name], one[name])


def test_a_file_is_decoded_at_most_once_at_each_scale(source, monkeypatch):
  scales = []
  rows = decoding.Encoded.rows
  monkeypatch.setattr(
    decoding.Encoded, 'rows', lambda self, *args: scales.append(args[1]) or rows(self, *args)
  )
  builder = pipeline.BatchBuilder(source, shared_images(CROPS), COUNT, seed=SEED)
  for index in range(COUNT):
    scales.clear()
    builder.add(index)
    assert len(set(scales)) > 1 and len(scales) == len(set(scales)) < len(CROPS)


def test_records_in_memory_keep_nothing_of_what_is_decoded(source):
  batches(source, shared_images(CROPS))
  assert [list(record) for record in source.records] == [['image']] * COUNT


def test_columns_of_a_config_are_its_global_and_then_its_local_views():
  fields = {'global_count': 2, 'local_count': 3, 'local_size': '16,24', 'augment': "'flip'"}
  words = [f'views.{name}={value}' for name, value in fields.items()]
  columns = views.columns(configs.load('digits', words))
  names = ['global0', 'global1', 'local0', 'local1', 'local2']
  assert [(name, column.view) for name, column in columns.items()] == list(zip(names, range(5)))
  assert [c.shape for c in columns.values()] == [(8, 8, 3)] * 2 + [(16, 24, 3)] * 3


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('local_area=0.5,0.2', r'views.local_area is \(0.5, 0.2\), must be two parts of an area'),
    ('global_count=0', 'views.global_count is 0, must be at least 1'),
    ('augment=flop', "unknown transform 'flop'"),
  ],
)
def test_views_that_cannot_be_are_refused_in_a_line(word, message):
  with pytest.raises(ValueError, match=message):
    views.columns(configs.load('digits', [f'views.{word}']))
