"""Images of other channels than RGB, from their file to a gradient, a prediction and a program.

N images, H, W pixels, C channels.
"""

import io

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
