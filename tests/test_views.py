"""Laws of views: crops of an image, each random by (seed, epoch, index, view), decoded once."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import drawn
from vit_jax import bundle, pipeline, plan, sharding, sources
from vit_jax import config as configs
from vit_jax.convert import resample
from vit_jax.images import decoding, transforms
from vit_jax.sources.columns import image, shared_images
from vit_jax.tasks import views
from vit_jax.tasks.encoder import ImageEncoder

pytestmark = [pytest.mark.quick, pytest.mark.arithmetic]

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


@pytest.mark.parametrize('task', ['classify', 'mae', 'dino', 'lejepa'])
def test_an_update_encodes_the_one_image_of_an_example_or_its_views(task):
  words = [f'task={task}', 'image_size=24,16', 'views.local_size=8,16', 'views.local_count=1']
  tokens = plan.encoded_tokens(configs.load('digits', words), encoder().model)
  assert tokens == ([7, 7, 3] if task in ('dino', 'lejepa') else [7])


def test_global_views_have_their_own_transforms_in_turn_and_local_ones_theirs():
  lines = [f'solarization(1.0, {threshold})' for threshold in (0, 100, 200)]
  words = [f'views.global_augment={lines[0]!r},{lines[1]!r}', f'views.local_augment={lines[2]}']
  counts = ['views.global_count=3', 'views.local_count=2', 'views.augment=solarization(1.0, 250)']
  record, rng = {'image': np.full((9, 9, 3), (60, 120, 255), np.uint8)}, np.random.default_rng(0)
  columns = views.columns(configs.load('digits', words + counts)).values()
  pixels = [column.fill(dict(record), rng)[0, 0].tolist() for column in columns]
  first, second, local = [195, 135, 255], [60, 135, 0], [60, 120, 0]
  assert pixels == [first, second, first, local, local]


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('global_augment=flip', "views.global_augment is 'flip', not tuple of 2"),
    ("global_augment='','flop'", "unknown transform 'flop'"),
    ('local_area=0.5,0.2', r'views.local_area is \(0.5, 0.2\), must be two parts of an area'),
    ('global_count=0', 'views.global_count is 0, must be at least 1'),
    ('augment=flop', "unknown transform 'flop'"),
  ],
)
def test_views_that_cannot_be_are_refused_in_a_line(word, message):
  with pytest.raises(ValueError, match=message):
    views.columns(configs.load('digits', [f'views.{word}']))


# Features of views


def encoder(name='ViT-Ti/16', **fields):
  """A tiny encoder of images of 24x16, in patches of 8."""
  fields = {'patch': (8, 8), 'depth': 1, 'width': 16, 'mlp_dim': 32, **fields}
  fields |= {'heads': 2} if name.startswith('ViT') else {}
  model = vit_jax.build(name, num_classes=0, **fields)
  return ImageEncoder(model, {}, bundle.Preprocess('resize', (24, 16)), name, None)


@pytest.mark.parametrize('fields', [{}, {'pool': 'gap', 'registers': 2}, {'cls_position': False}])
def test_positions_at_another_size_are_those_that_a_checkpoint_gets(fields):
  small = encoder(**fields)
  params = drawn(jax.eval_shape(small.init, jax.random.key(0)))
  [table], tokens = params['positions'], small.model.position_rows
  patches = resample.positions(table[tokens:], (3, 2), (5, 1), resample.DEFAULT_RULE)
  resized = small.at_size(params, (40, 8))
  np.testing.assert_allclose(resized['positions'], [[*table[:tokens], *patches]], atol=1e-6)
  others = {name: leaf is params[name] for name, leaf in resized.items() if name != 'positions'}
  assert all(others.values())


def test_a_gradient_passes_to_positions_from_another_size():
  small = encoder()
  params = drawn(jax.eval_shape(small.init, jax.random.key(0)))
  table = jax.grad(lambda p: small.at_size(p, (40, 8))['positions'].sum())(params)['positions']
  np.testing.assert_allclose(table.sum(), params['positions'].shape[2] * (1 + 5), rtol=1e-5)


@pytest.mark.parametrize('positions', ['rope', 'sincos2d', 'none'])
def test_parameters_without_a_table_are_the_same_at_every_size(positions):
  small = encoder(positions=positions)
  params = jax.eval_shape(small.init, jax.random.key(0))
  assert small.at_size(params, (40, 8)) is params
  small.check_size((40, 8))


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('Mixer-S/16', {'tokens_dim': 8}, 'tokens/down/bias'),
    ('ViT-Ti/16', {'relative_positions': 'table'}, 'relative/table'),
  ],
)
def test_models_of_one_size_are_refused_at_another(name, fields, message):
  small = encoder(name, **fields)
  small.check_size((24, 16))
  with pytest.raises(
    ValueError, match=f'images of 24x16, not of 40x8, where its .*{message} differs'
  ):
    small.check_size((40, 8))
  with pytest.raises(ValueError, match='42x8 does not divide into patches'):
    small.check_size((42, 8))


def test_features_of_views_are_those_of_each_alone_on_the_device_of_the_image():
  small = encoder()
  params = drawn(jax.eval_shape(small.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  sizes = {'global0': (24, 16), 'global1': (24, 16), 'local0': (8, 16)}
  batch = {name: rng.integers(0, 256, (8, *size, 3), np.uint8) for name, size in sizes.items()}
  batch = sharding.put(batch, sharding.make_mesh())

  def compared(params, batch):
    together = views.features(small, params, batch)
    alone = [small.apply(small.at_size(params, s), batch[name])[0] for name, s in sizes.items()]
    return together, jnp.stack(alone, axis=1)

  program = jax.jit(compared).lower(params, batch).compile()
  assert 'all-gather' not in program.as_text() and 'all-to-all' not in program.as_text()
  np.testing.assert_allclose(*program(params, batch), atol=1e-5)
