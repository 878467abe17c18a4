"""Augmentations against TensorFlow's own outputs, and the laws that every step keeps.

data/randaug.npz holds 'image' (32, 24, 3) and, as '{operation} {magnitude} {sign}', what TensorFlow
2.15.1 with tensorflow_addons 0.23 made of it by the functions of big_vision's pp/autoaugment.py, in
a tf.function of an image whose size it does not know, TF_ENABLE_ONEDNN_OPTS=0. TensorFlow 2.21 with
ImageProjectiveTransformV3 gives the same.
"""

import pathlib

import numpy as np
import pytest
from PIL import Image as pil

from vit_jax.images import augment, randaug

GOLDEN = dict(np.load(pathlib.Path(__file__).parent / 'data' / 'randaug.npz'))
IMAGE = GOLDEN.pop('image')
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)
STEPS = {
  **{name: make() for name, make in augment.STEPS.items() if name != 'color_jitter'},
  'color_jitter': augment.color_jitter(0.4, hue=0.2),
  'randaug 0': augment.randaug(3, 0),
  'randaug 30': augment.randaug(3, 30),
  'rand_augment 3aw': augment.rand_augment('rand-m10-n4-p1-mstd101-t3aw'),
  'grayscale 1': augment.grayscale(1.0),
  'solarization 1': augment.solarization(1.0),
  'gaussian_blur 1': augment.gaussian_blur(1.0),
  'random_erasing pixel': augment.random_erasing(1.0),
  'random_erasing rand': augment.random_erasing(1.0, mode='rand'),
  'random_erasing const': augment.random_erasing(1.0, mode='const'),
}

pytestmark = [pytest.mark.quick, pytest.mark.arithmetic]


def rng(seed=0):
  return np.random.default_rng(seed)


def operated(image, name, magnitude, sign=1):
  operation, argument = randaug.RANDAUG[name]
  if argument is None:
    return operation(image)
  return operation(image, sign * argument(magnitude / 10))


@pytest.mark.parametrize('name', [name for name in randaug.RANDAUG if name != 'Cutout'])
def test_an_operation_of_randaug_equals_tensorflows(name):
  cases = [key for key in GOLDEN if key.split()[0] == name]
  assert cases
  for case in cases:
    _, magnitude, sign = case.split()
    image = operated(IMAGE, name, int(magnitude), int(sign))
    np.testing.assert_array_equal(image, GOLDEN[case], err_msg=case)


def test_randaug_has_the_16_operations_of_the_recipe_in_its_order():
  expected = 'AutoContrast Equalize Invert Rotate Posterize Solarize Color Contrast Brightness '
  expected += 'Sharpness ShearX ShearY TranslateX TranslateY Cutout SolarizeAdd'
  assert list(randaug.RANDAUG) == expected.split()


def test_a_cutout_is_a_grey_square_about_its_centre_cut_at_the_border():
  image = randaug.cutout(NOISE, 4, 2, 20)
  expected = NOISE.copy()
  expected[0:6, 16:24] = 128
  np.testing.assert_array_equal(image, expected)


def test_solarize_at_magnitude_10_inverts_as_its_threshold_of_256_is_a_byte():
  np.testing.assert_array_equal(operated(NOISE, 'Solarize', 10), 255 - NOISE)
  np.testing.assert_array_equal(
    operated(NOISE, 'Solarize', 15), np.where(NOISE < 128, NOISE, 255 - NOISE)
  )


def test_randaug_draws_every_operation_as_often_and_both_signs(monkeypatch):
  drawn = []
  for name, (_, argument) in randaug.RANDAUG.items():

    def note(image, value=None, *_, name=name):
      drawn.append((name, value))
      return image

    monkeypatch.setitem(randaug.RANDAUG, name, (note, argument))
  step, generator = augment.randaug(2, 10), rng()
  for _ in range(1600):
    step(NOISE, generator)
  assert len(drawn) == 3200
  counts = {name: sum(drawn_name == name for drawn_name, _ in drawn) for name in randaug.RANDAUG}
  assert min(counts.values()) > 150  # 200 are expected, 14 the standard deviation
  assert max(counts.values()) < 250
  for name in randaug.SIGNED:
    up = sum(value > 0 for drawn_name, value in drawn if drawn_name == name)
    assert 0.35 < up / counts[name] < 0.65


@pytest.mark.parametrize('name', STEPS)
def test_a_step_gives_bytes_of_the_same_shape_and_leaves_its_input(name):
  image, generator = NOISE.copy(), rng()
  image.flags.writeable = False
  for _ in range(20):
    output = STEPS[name](image, generator)
    assert output.dtype == np.uint8
    assert output.shape == image.shape
  np.testing.assert_array_equal(image, NOISE)


@pytest.mark.parametrize('name', STEPS)
def test_the_same_generator_gives_the_same_images(name):
  first, second = rng(7), rng(7)
  for _ in range(5):
    np.testing.assert_array_equal(STEPS[name](NOISE, first), STEPS[name](NOISE, second))


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (2, 2)])
@pytest.mark.parametrize('name', STEPS)
def test_an_image_of_a_pixel_or_a_line_stays_one(name, shape):
  image, generator = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8), rng()
  for _ in range(60):
    assert STEPS[name](image, generator).shape == image.shape


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (2, 9)])
@pytest.mark.parametrize('name', randaug.RANDAUG)
def test_an_operation_takes_images_of_a_pixel_or_a_line(name, shape):
  image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
  for magnitude in (0, 4, 10, 20, 30):
    output = randaug.apply_operation(image, name, magnitude, rng())
    assert (output.shape, output.dtype) == (image.shape, np.uint8)


@pytest.mark.parametrize('name', STEPS)
def test_a_mirrored_view_gives_what_its_copy_does(name):
  view = NOISE[:, ::-1]
  for seed in range(10):
    output, expected = (STEPS[name](x, rng(seed)) for x in (view, view.copy()))
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize('name', [*augment.LEVELS, 'AutoContrast', 'Equalize', 'Invert'])
@pytest.mark.parametrize('level', [0, 0.5, 1])
def test_every_operation_of_timm_takes_every_level(name, level):
  image = pil.fromarray(NOISE)
  for sign in (-1, 1):
    output = augment.apply_timm(image, name, level, sign, 'BICUBIC', (1, 2, 3))
    assert (output.size, output.mode) == (image.size, 'RGB')


def test_a_config_string_of_timm_is_parsed():
  options = augment.parse_spec('rand-m9-n3-p0.7-mstd0.5-mmax12-inc1')
  assert options == dict(m=9, n=3, p=0.7, mstd=0.5, mmax=12, inc=1, t='')
  assert augment.parse_spec('rand') == dict(m=10, n=2, p=0.5, mstd=0, mmax=10, inc=0, t='')
  assert 'ColorIncreasing' in augment.operations(options)[0]
  assert 'Color' in augment.operations(augment.parse_spec('rand'))[0]
  weights = augment.operations(augment.parse_spec('rand-tweights'))[1]
  assert weights[0] == pytest.approx(3 / 10.1)


def test_the_magnitude_is_normal_within_its_bounds_or_uniform_below_it():
  generator = rng()
  noisy = augment.parse_spec('rand-m9-mstd0.5')
  drawn = np.array([augment.sample_magnitude(noisy, generator) for _ in range(4000)])
  assert drawn.max() == 10
  assert np.median(drawn) == pytest.approx(9, abs=0.05)
  assert (drawn < 8.5).mean() == pytest.approx(0.159, abs=0.03)
  uniform = augment.parse_spec('rand-m8-mstdinf')
  drawn = [augment.sample_magnitude(uniform, generator) for _ in range(4000)]
  assert np.mean(drawn) == pytest.approx(4, abs=0.2)
  assert augment.sample_magnitude(augment.parse_spec('rand-m12-mmax20'), generator) == 12


def test_three_augment_is_grey_solarized_or_blurred_a_third_of_the_time_each():
  grey = np.asarray(pil.fromarray(NOISE).convert('L').convert('RGB'))
  solarized = np.where(NOISE < 128, NOISE, 255 - NOISE)
  step, generator = augment.three_augment(), rng()
  kinds = [0, 0, 0]
  for _ in range(600):
    output = step(NOISE, generator)
    kinds[0 if (output == grey).all() else 1 if (output == solarized).all() else 2] += 1
  assert min(kinds) > 150


def test_color_jitter_draws_factors_within_its_range():
  white = np.full((2, 2, 3), 100, np.uint8)
  step, generator = augment.color_jitter(0.4, 0.0, 0.0), rng()
  drawn = np.array([step(white, generator)[0, 0, 0] for _ in range(500)])
  assert 60 <= drawn.min() < 64
  assert 136 < drawn.max() <= 140
  np.testing.assert_array_equal(augment.color_jitter(0.0)(NOISE, generator), NOISE)


def test_random_erasing_erases_that_often_a_rectangle_of_that_area():
  image = np.full((60, 50, 3), 7, np.uint8)
  step, generator = augment.random_erasing(0.25, 0.1, 0.2, mode='const'), rng()
  shares = np.array([(step(image, generator) != 7).mean() for _ in range(1000)])
  erased = shares > 0
  assert erased.mean() == pytest.approx(0.25, abs=0.05)
  assert 0.09 < shares[erased].min() < shares[erased].max() < 0.21


def test_erased_pixels_are_noise_about_grey():
  image = augment.random_erasing(1.0, 0.9, 0.95, ratio_min=0.99)(
    np.full((200, 200, 3), 7, np.uint8), rng()
  )
  drawn = image[image[..., 0] != 7].astype(float)
  assert drawn.mean() == pytest.approx(127.5, abs=2)
  assert ((drawn == 0) | (drawn == 255)).mean() == pytest.approx(0.317, abs=0.02)


BAD = {
  'unknown section': lambda: augment.rand_augment('rand-m9-x3'),
  'unknown section .w0.': lambda: augment.rand_augment('rand-m9-w0'),
  'does not begin': lambda: augment.rand_augment('m9'),
  '9 does not begin': lambda: augment.rand_augment(9),
  'm9.5. must be a whole number': lambda: augment.rand_augment('rand-m9.5'),
  'p is 2': lambda: augment.rand_augment('rand-p2'),
  "operations 'x'": lambda: augment.rand_augment('rand-tx'),
  'more operations than there are': lambda: augment.rand_augment('rand-n99-tweights'),
  'm is 99.0, not a number in .0, 30.': lambda: augment.rand_augment('rand-m99'),
  'mmax is 31': lambda: augment.rand_augment('rand-m9-mmax31'),
  'n is 17': lambda: augment.rand_augment('rand-n17'),
  'fill is': lambda: augment.rand_augment('rand-m9', fill=(0, 0, 256)),
  "resample 'cubic'": lambda: augment.rand_augment('rand-m9', resample='cubic'),
  'count is -1': lambda: augment.randaug(-1),
  'count is 2.0': lambda: augment.randaug(2.0),
  'count is 17': lambda: augment.randaug(17),
  'magnitude is 1000, not a number in .0, 30.': lambda: augment.randaug(2, 1000),
  'magnitude is -1': lambda: augment.randaug(2, -1),
  'magnitude is nan': lambda: augment.randaug(2, float('nan')),
  'probability is 1.1': lambda: augment.grayscale(1.1),
  "probability is '1'": lambda: augment.solarization('1'),
  'threshold is 300': lambda: augment.solarization(1.0, 300),
  'radius_max is 1': lambda: augment.gaussian_blur(1.0, 2, 1),
  'radius_max is inf': lambda: augment.gaussian_blur(1.0, 0, float('inf')),
  'brightness is -1': lambda: augment.color_jitter(-1),
  'saturation is': lambda: augment.color_jitter(0.1, saturation='x'),
  'hue is 0.6': lambda: augment.color_jitter(0.1, hue=0.6),
  'probability is -0.1': lambda: augment.random_erasing(-0.1),
  'area_max is 0.01': lambda: augment.random_erasing(0.5, 0.02, 0.01),
  'ratio_min is 0': lambda: augment.random_erasing(0.5, ratio_min=0),
  "mode 'noise'": lambda: augment.random_erasing(0.5, mode='noise'),
}


@pytest.mark.parametrize('message', BAD)
def test_a_bad_argument_is_a_line_when_the_step_is_made(message):
  with pytest.raises(ValueError, match=message) as error:
    BAD[message]()
  assert '\n' not in str(error.value)
