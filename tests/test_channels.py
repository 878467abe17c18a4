"""Images of other channels than RGB, from their file to a gradient, a prediction and a program.

N images, H, W pixels, C channels.
"""

import dataclasses
import io
import pathlib
import shutil
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax import bundle, config, convert, export, main, models, plan
from vit_jax.images import decoding, transforms

pytestmark = pytest.mark.arithmetic

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 10, 3), np.uint8)
RGBA = RNG.integers(0, 256, (12, 10, 4), np.uint8)
BANDS = RNG.integers(0, 256, (12, 10, 5), np.uint8)
GEOMETRY = (  # steps that treat every channel alike
  *('resize(7, 9)', "resize(7, method='bicubic')", "resize(7, method='bicubic_antialias')"),
  *("resize(7, method='area')", 'corner_crop(7)'),
  *('resize_small(9) | random_crop(7)', 'crop_ratio(7)', 'inception_crop(7)', 'flip'),
  *('affine(30, 0.1, 0.2, 10)', "random_erasing(1.0, mode='const')"),
  *('gaussian_blur(1.0)', 'solarization(1.0)'),
)
COLOUR = (
  *('color_jitter(0.3)', 'randaug(2, 10)', 'rand_augment', 'trivial_augment', 'three_augment'),
  *('grayscale',),
)


def encoded(image, form='PNG', mode=None):
  file = io.BytesIO()
  Image.fromarray(image, mode).save(file, form, **({'quality': 100} if form == 'JPEG' else {}))
  return file.getvalue()


def transformed(image, line, channels, seed=0):
  transform = transforms.compose(line, (7, 7), channels)
  return transform(image, np.random.default_rng(seed))


@pytest.mark.quick
@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_grey_is_the_luminance_of_pillow(form):
  data = encoded(RGB, form)
  grey = np.asarray(Image.fromarray(decoding.decode(data)).convert('L'))
  np.testing.assert_array_equal(decoding.decode(data, 1), grey[..., None])
  np.testing.assert_array_equal(decoding.decode(encoded(grey), 1), grey[..., None])


@pytest.mark.quick
def test_four_channels_are_rgba_and_opaque_without_alpha():
  np.testing.assert_array_equal(decoding.decode(encoded(RGBA), 4), RGBA)
  for form in ('PNG', 'JPEG'):
    data = encoded(RGB, form)
    opaque = decoding.decode(data, 4)
    np.testing.assert_array_equal(opaque[..., :3], decoding.decode(data))
    assert (opaque[..., 3] == 255).all()


@pytest.mark.quick
@pytest.mark.parametrize('channels', [1, 4])
def test_a_jpeg_that_is_decoded_in_part_has_the_channels_too(channels):
  large = np.kron(RGB, np.ones((16, 16, 1), np.uint8))
  part = transformed(encoded(large, 'JPEG'), 'inception_crop(7)', channels)
  rgb = transformed(encoded(large, 'JPEG'), 'inception_crop(7)', 3)
  assert part.shape == (7, 7, channels)
  np.testing.assert_allclose(part, decoding.from_rgb(rgb, channels), atol=1)  # rounded once more


@pytest.mark.quick
def test_a_file_of_other_bands_than_those_wanted_is_a_bad_image():
  with pytest.raises(decoding.BadImage, match='3 bands, wanted 5'):
    decoding.decode(encoded(RGB, 'JPEG'), 5)


@pytest.mark.quick
def test_pixels_of_other_channels_than_those_wanted_are_refused_but_for_grey():
  grey = RGB[..., :1]
  np.testing.assert_array_equal(transformed(grey, '', 3), np.repeat(grey, 3, axis=-1))
  np.testing.assert_array_equal(transformed(np.repeat(grey, 3, axis=-1), '', 1), grey)
  np.testing.assert_array_equal(transformed(BANDS, '', 5), BANDS)
  for image, channels, count in (
    (RGB, 1, '3 channels'),
    (BANDS, 3, '5 channels'),
    (grey, 4, '1 channel'),
  ):
    message = f'images have {count}, wanted {channels}'
    with pytest.raises(ValueError, match=message):
      transformed(image, '', channels)


@pytest.mark.quick
@pytest.mark.parametrize('line', GEOMETRY)
def test_a_step_of_geometry_treats_every_channel_as_one_of_three(line):
  """Of channels that all are the same picture, each becomes what it becomes in RGB."""
  picture = RGB[..., :1]
  three = transformed(np.repeat(picture, 3, axis=-1), line, 3)
  for channels in (1, 2, 4, 5, 13):
    many = transformed(np.repeat(picture, channels, axis=-1), line, channels)
    assert many.shape == (*three.shape[:2], channels)
    np.testing.assert_array_equal(many, np.repeat(three[..., :1], channels, axis=-1))


@pytest.mark.quick
@pytest.mark.parametrize('line', COLOUR)
def test_a_step_of_colour_is_refused_by_name_for_other_channels(line):
  with pytest.raises(ValueError, match='of colour: it takes images of 3 channels, not 1') as info:
    transforms.compose(f'flip | {line}', (7, 7), 1)
  assert repr(line) in str(info.value)


@pytest.mark.quick
def test_a_picture_of_any_channels_can_be_displayed():
  np.testing.assert_array_equal(decoding.displayed(RGB), RGB)
  np.testing.assert_array_equal(decoding.displayed(RGB[..., :1]), np.repeat(RGB[..., :1], 3, -1))
  np.testing.assert_array_equal(decoding.displayed(BANDS), BANDS[..., :3])
  over_white = decoding.decode(encoded(RGBA)).astype(int)
  assert np.abs(decoding.displayed(RGBA) - over_white).max() <= 1  # Pillow rounds twice


def tiff(bands, *, bits=8, order='<', planar=1, predictor=1, rows=4, alpha=None, compression=8):
  """A TIFF of bands (H, W, C) in strips, as its specification has it; `compression` 8 is zlib."""
  height, width, count = bands.shape
  values = bands.astype(f'{order}u{bits // 8}')
  planes = np.moveaxis(values, -1, 0)[..., None] if planar == 2 else values[None]
  if predictor == 2:
    planes = np.diff(planes, axis=2, prepend=planes.dtype.type(0))
  strips = [plane[i : i + rows].tobytes() for plane in planes for i in range(0, height, rows)]
  strips = [zlib.compress(strip) if compression == 8 else strip for strip in strips]
  offsets = 8 + np.cumsum([0, *map(len, strips)])
  tags = {
    **{256: [width], 257: [height], 258: [bits] * count, 259: [compression], 262: [1]},
    **{273: offsets[:-1], 277: [count], 278: [rows], 279: [*map(len, strips)], 284: [planar]},
    **{317: [predictor], 338: [alpha or 0] * (count - 1), 339: [1] * count},
  }
  extra, entries, end = b'', b'', int(offsets[-1])
  for tag, numbers in tags.items():
    kind, form = (4, 'I') if tag in (273, 279) else (3, 'H')
    packed = struct.pack(f'{order}{len(numbers)}{form}', *map(int, numbers))
    if len(packed) > 4:
      place, extra = end + len(extra), extra + packed
      packed = struct.pack(f'{order}I', place)
    entries += struct.pack(f'{order}HHI', tag, kind, len(numbers)) + packed.ljust(4, b'\0')
  header = {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(f'{order}I', end + len(extra))
  directory = struct.pack(f'{order}H', len(tags)) + entries + bytes(4)
  return header + b''.join(strips) + extra + directory


@pytest.mark.quick
@pytest.mark.parametrize('options', [
  {}, dict(compression=1), dict(order='>'), dict(planar=2), dict(predictor=2),
  dict(planar=2, predictor=2), dict(rows=5), dict(rows=12, planar=2),
])  # fmt: skip
@pytest.mark.parametrize('bits', [8, 16])
def test_the_bands_of_a_tiff_are_its_channels(options, bits):
  wide = BANDS.astype(np.uint16) * 257 if bits == 16 else BANDS
  np.testing.assert_array_equal(decoding.decode(tiff(wide, bits=bits, **options), 5), BANDS)


@pytest.mark.quick
def test_pages_of_grey_are_channels_too():
  file = io.BytesIO()
  first, *others = (Image.fromarray(BANDS[..., i]) for i in range(5))
  first.save(file, 'TIFF', save_all=True, append_images=others)
  np.testing.assert_array_equal(decoding.decode(file.getvalue(), 5), BANDS)
  with pytest.raises(decoding.BadImage, match='1 bands, wanted 6'):
    decoding.decode(file.getvalue(), 6)


@pytest.mark.quick
@pytest.mark.parametrize('channels', [1, 3, 4, 6])
def test_a_tiff_of_other_bands_than_those_wanted_names_both(channels):
  with pytest.raises(decoding.BadImage, match=f'has 5 bands, wanted {channels}'):
    decoding.decode(tiff(BANDS), channels)


@pytest.mark.quick
def test_bands_that_are_stored_in_parts_that_do_not_fit_are_refused():
  with pytest.raises(decoding.BadImage, match='bands of 12 rows in parts of 5'):
    decoding.decode(tiff(BANDS, planar=2, rows=5), 5)


FLAGS = {
  **{
    'model.patch': (4, 4),
    'model.width': 8,
    'model.depth': 1,
    'model.heads': 1,
    'model.unroll': 1,
  },
  **{'model.mlp_dim': 8, 'batch_size': 8, 'duration': '2 steps', 'schedule.warmup': '0 steps'},
  **{'checkpoint.every': '1 steps', 'checkpoint.keep_latest': 2, 'system.report': False},
  **{'data.test': '', 'data.channels': 1, 'image_size': 8, 'evaluation.every': '2 steps'},
  **{'data.augment': 'random_crop | flip', 'data.preprocess': 'resize'},
}


def vit_train(source, workdir, **fields):
  values = FLAGS | {'data.source': source} | fields
  words = [f'--config.{name}={value}' for name, value in values.items()]
  return main.main(['--config=digits', f'--workdir={workdir}', *words])


def plan_of(source, **fields):
  values = FLAGS | {'data.source': source} | fields
  return plan.make_plan(config.load('digits', [f'{name}={v}' for name, v in values.items()]))


def folder_of(root, images):
  """A data set of image files in two classes, named 'folder:...'."""
  for index, image in enumerate(images):
    file = root / f'class {index % 2}' / f'{index}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
  return f'folder:{root}'


@pytest.fixture(scope='module')
def grey_run(tmp_path_factory):
  """A run of two steps on a folder of grey PNGs, and that folder."""
  root = tmp_path_factory.mktemp('grey')
  images = RNG.integers(0, 256, (24, 9, 9), np.uint8)
  source = folder_of(root / 'photos', images)
  assert vit_train(source, root / 'run') == 0
  return root / 'run', source


def parameters(run):
  return models.flat(jax.device_get(vit_jax.load(run).params))


def test_a_run_on_grey_images_resumes_as_if_it_had_not_stopped(grey_run, tmp_path):
  run, source = grey_run
  shutil.copytree(run, tmp_path / 'run')
  for part in ('checkpoints/2', 'model'):
    shutil.rmtree(tmp_path / 'run' / part)
  assert vit_train(source, tmp_path / 'run') == 0
  once, twice = parameters(run), parameters(tmp_path / 'run')
  assert once['embed/kernel'].shape == (4, 4, 1, 8)
  assert all(np.array_equal(once[name], twice[name]) for name in once)


def test_a_model_of_grey_images_predicts_of_a_file_what_it_predicts_of_its_pixels(grey_run):
  run, (folder,) = vit_jax.load(grey_run[0]), grey_run[1].split(':')[1:]
  file = next(pathlib.Path(folder).rglob('*.png'))
  pixels = np.asarray(Image.open(file))[..., None]
  assert run.preprocess.channels == 1
  assert run.predict(file) == run.predict(pixels)
  with pytest.raises(ValueError, match=r'\(H, W, 1\), not uint8 \(9, 9, 3\)'):
    run.predict(np.repeat(pixels, 3, axis=-1))


def test_a_program_of_a_model_of_grey_images_takes_one_channel(grey_run, tmp_path):
  run, path = vit_jax.load(grey_run[0]), tmp_path / 'grey.stablehlo'
  assert 'differs by 0 ' in run.export(path)[-1]
  program, images = export.load(path), RNG.integers(0, 256, (2, 8, 8, 1), np.uint8)
  assert 'uint8 (N, 8, 8, 1)' in repr(program)
  np.testing.assert_array_equal(program(images), run.forward([*images])['scores'])


@pytest.mark.parametrize('to, said', [('timm', '"in_chans": 1'), ('hf', '"num_channels": 1')])
def test_a_model_of_grey_images_is_the_same_after_another_dialect(grey_run, to, said, tmp_path):
  run, images = vit_jax.load(grey_run[0]), RNG.integers(0, 256, (2, 8, 8, 1), np.uint8)
  assert convert.write(tmp_path / to, run, to=to) == []
  again = vit_jax.load(tmp_path / to)
  assert said in (tmp_path / to / 'config.json').read_text()
  assert again.preprocess == dataclasses.replace(run.preprocess, steps=again.preprocess.steps)
  scores = [one.forward([*images])['scores'] for one in (run, again)]
  np.testing.assert_allclose(*scores, atol=1e-6)


def test_a_checkpoint_keeps_its_channels_unless_others_are_asked_for(grey_run):
  model = vit_jax.load(grey_run[0]).model
  kernel = vit_jax.load_params(grey_run[0], model)['embed']['kernel']
  assert kernel.shape == (4, 4, 1, 8)
  three = vit_jax.load_params(grey_run[0], model, channels=3, report=None)['embed']['kernel']
  np.testing.assert_allclose(three, np.repeat(kernel, 3, axis=2) / 3, rtol=1e-6)


def test_torchvision_has_no_way_to_say_grey(grey_run, tmp_path):
  with pytest.raises(ValueError, match=r'no way to say 1 channel$'):
    convert.write(tmp_path / 'grey.pth', vit_jax.load(grey_run[0]), to='torchvision')


def test_an_archive_of_bands_gives_batches_and_a_gradient_of_all_of_them(tmp_path):
  images, labels = RNG.integers(0, 256, (24, 8, 8, 5), np.uint8), np.arange(24) % 2
  np.savez(tmp_path / 'bands.npz', images=images, labels=labels)
  made = plan_of(f'arrays:{tmp_path}/bands.npz', **{'data.channels': 5})
  assert made.config.data.mean == (0.5,) * 5
  column, record = made.task.columns['image'], made.splits['train'][0]
  assert column.shape == (8, 8, 5)
  assert column.fill(record, np.random.default_rng(0)).shape == (8, 8, 5)
  params = jax.device_get(made.task.init(jax.random.key(0)))
  params['head']['kernel'] = np.ones_like(params['head']['kernel']) * [[1, -1]]
  batch = {
    'image': images[:8],
    'label': labels[:8].astype(np.int32),
    'mask': np.ones(8, np.float32),
  }
  loss = jax.jit(jax.grad(lambda p: made.task.loss(p, batch, jax.random.key(1), {})[0]))
  gradient = np.asarray(loss(params)['embed']['kernel'])  # (4, 4, 5, 8)
  assert (np.abs(gradient).max(axis=(0, 1, 3)) > 0).all()


@pytest.mark.parametrize('channels, message', [
  (4, 'images have 5 channels, wanted 4'),
  ('0', 'data.channels is 0'),
])  # fmt: skip
def test_a_run_with_other_channels_than_its_images_is_refused(channels, message, tmp_path):
  images = RNG.integers(0, 256, (24, 8, 8, 5), np.uint8)
  np.savez(tmp_path / 'bands.npz', images=images, labels=np.arange(24) % 2)
  with pytest.raises(ValueError, match=message):
    plan_of(f'arrays:{tmp_path}/bands.npz', **{'data.channels': channels})


def test_the_digits_are_grey_for_one_channel():
  made = plan.make_plan(
    config.load('digits', [f'{n}={v}' for n, v in FLAGS.items()] + ['data.channels=1'])
  )
  assert made.task.columns['image'].shape[2] == 1


def test_a_checkpoint_of_rgb_starts_a_run_on_grey_at_the_sum_of_its_channels(tmp_path):
  source = folder_of(tmp_path / 'photos', RNG.integers(0, 256, (24, 9, 9), np.uint8))
  model = vit_jax.build('ViT-Ti/16', patch=4, width=8, depth=1, heads=1, mlp_dim=8, num_classes=2)
  params = jax.device_get(model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))['params'])
  looks = bundle.Preprocess('resize', (8, 8), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
  bundle.write(tmp_path / 'rgb', bundle.Bundle(model, params, ('a', 'b'), looks, 'ViT-Ti/16'))
  made = plan_of(source, pretrained=tmp_path / 'rgb', **{'model.name': ''})
  kernel = made.task.start().params['embed']['kernel']
  np.testing.assert_allclose(kernel, params['embed']['kernel'].sum(2, keepdims=True), atol=1e-6)
  assert (made.config.data.mean, made.config.data.std) == ((0.5,), (0.5,))


def test_a_configuration_of_other_channels_than_the_kernel_is_refused(grey_run, tmp_path):
  convert.write(tmp_path / 'timm', vit_jax.load(grey_run[0]), to='timm')
  file = tmp_path / 'timm' / 'config.json'
  file.write_text(file.read_text().replace('"in_chans": 1', '"in_chans": 2'))
  with pytest.raises(ValueError, match='in_chans is 2, but the kernel has 1'):
    vit_jax.load(tmp_path / 'timm')
