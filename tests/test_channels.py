"""Images of other channels than RGB, from their file to a gradient, a prediction and a program.

N images, H, W pixels, C channels.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vit_jax.images import decoding, transforms

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 10, 3), np.uint8)
RGBA = RNG.integers(0, 256, (12, 10, 4), np.uint8)
BANDS = RNG.integers(0, 256, (12, 10, 5), np.uint8)
GEOMETRY = (  # steps that treat every channel alike
  *('resize(7, 9)', "resize(7, method='bicubic')", "resize(7, method='bicubic_antialias')"),
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
  with pytest.raises(decoding.BadImage, match='3 bands, 5 channels are wanted'):
    decoding.decode(encoded(RGB, 'JPEG'), 5)


@pytest.mark.quick
def test_pixels_of_other_channels_than_those_wanted_are_refused_but_for_grey():
  grey = RGB[..., :1]
  np.testing.assert_array_equal(transformed(grey, '', 3), np.repeat(grey, 3, axis=-1))
  np.testing.assert_array_equal(transformed(BANDS, '', 5), BANDS)
  for image, channels in ((RGB, 1), (BANDS, 3), (grey, 4)):
    message = f'images have {image.shape[-1]} channels, {channels} are wanted'
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
  with pytest.raises(decoding.BadImage, match='1 bands, 6 channels'):
    decoding.decode(file.getvalue(), 6)


@pytest.mark.quick
@pytest.mark.parametrize('channels', [1, 3, 4, 6])
def test_a_tiff_of_other_bands_than_those_wanted_names_both(channels):
  with pytest.raises(decoding.BadImage, match=f'has 5 bands, {channels} channels are wanted'):
    decoding.decode(tiff(BANDS), channels)


@pytest.mark.quick
def test_bands_that_are_stored_in_parts_that_do_not_fit_are_refused():
  with pytest.raises(decoding.BadImage, match='bands of 12 rows in parts of 5'):
    decoding.decode(tiff(BANDS, planar=2, rows=5), 5)
