"""Our operations in Pillow's dialect against timm's, torchvision's and DeiT's, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image as pil
from PIL import ImageFilter

from tests.interop.peers import timm, torchvision
from vit_jax.images import augment

auto_augment = timm.data.auto_augment
functional = torchvision.transforms.functional

RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:61, :90]
SMOOTH = np.stack([COLUMNS + 60, 3 * ROWS + 20, ROWS + COLUMNS], -1).astype(np.uint8)
IMAGES = [RNG.integers(0, 256, (47, 64, 3), dtype=np.uint8), SMOOTH]
FILL = (124, 116, 104)


def same(actual, expected):
  np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


def timms(name, level, sign, resample, monkeypatch):
  """timm's operation of a name, level and sign, as a function of a PIL image."""
  monkeypatch.setattr(auto_augment, '_randomly_negate', lambda value: sign * value)
  hparams = dict(img_mean=FILL, interpolation=pil.Resampling[resample], magnitude_max=20)
  return auto_augment.AugmentOp(name, prob=1.0, magnitude=10 * level, hparams=hparams)


@pytest.mark.parametrize('resample', ['BILINEAR', 'BICUBIC'])
@pytest.mark.parametrize('name', [*augment.LEVELS, 'AutoContrast', 'Equalize', 'Invert'])
def test_an_operation_of_rand_augment_equals_timms(name, resample, monkeypatch):
  for image in map(pil.fromarray, IMAGES):
    for level in (0.0, 0.13, 0.5, 0.9, 0.97, 1.0, 1.5):
      for sign in (-1, 1):
        value = augment.LEVELS[name](level, sign) if name in augment.LEVELS else None
        if name.startswith('Posterize') and value < 1:
          continue  # timm's raises with this Pillow
        expected = timms(name, level, sign, resample, monkeypatch)(image)
        same(augment.apply_timm(image, name, level, sign, resample, FILL), expected)


@pytest.mark.parametrize(
  'spec',
  [
    *('rand', 'rand-m9-mstd0.5-inc1', 'rand-n3-p0.7-mmax15'),
    *('rand-mstd101-tweights', 'rand-t3a', 'rand-m7-t3aw'),
  ],
)
def test_a_string_means_what_it_does_to_timm(spec):
  theirs = auto_augment.rand_augment_transform(spec)
  options = augment.parse_spec(spec)
  names, weights = augment.operations(options)
  assert names == [op.name for op in theirs.ops]
  assert options['n'] == theirs.num_layers
  assert (weights is None) == (theirs.choice_weights is None)
  if weights is not None:
    np.testing.assert_allclose(weights, theirs.choice_weights, rtol=1e-12)
  op = theirs.ops[0]
  assert (options['m'], options['p']) == (op.magnitude, op.prob)
  assert options['mmax'] == (op.magnitude_max or 10)
  mstd = options['mstd']
  assert (float('inf') if mstd > 100 else mstd) == op.magnitude_std


SPACE = torchvision.transforms.TrivialAugmentWide()._augmentation_space(augment.BINS)


def test_trivial_augment_draws_from_torchvisions_space():
  assert set(augment.TRIVIAL) == set(SPACE)


@pytest.mark.parametrize('name', SPACE)
def test_an_operation_of_trivial_augment_equals_torchvisions(name):
  magnitudes, signed = SPACE[name]
  theirs = [float(m) for m in magnitudes] if magnitudes.ndim else [0.0]
  theirs += [-m for m in theirs] if signed else []
  ours = augment.TRIVIAL[name]
  ours = [None] if ours is None else [value.item() for value in ours]
  if name.startswith('Translate'):
    ours = [-value for value in ours]  # they move the image, we the place it is read from
  assert len(ours) == len(theirs)
  for image in map(pil.fromarray, IMAGES):
    for value, magnitude in zip(ours, theirs):
      nearest = functional.InterpolationMode.NEAREST
      expected = torchvision.transforms.autoaugment._apply_op(
        image, name, magnitude, interpolation=nearest, fill=None
      )
      same(augment.apply_trivial(image, name, value), expected)


def test_the_parts_of_three_augment_equal_deits():
  generator = np.random.default_rng(3)
  for image in IMAGES:
    theirs = pil.fromarray(image)
    same(augment.grayscale(1.0)(image, generator), torchvision.transforms.Grayscale(3)(theirs))
    same(augment.solarization(1.0)(image, generator), functional.solarize(theirs, 128))
    for radius in (0.1, 0.7, 2.0):
      expected = theirs.filter(ImageFilter.GaussianBlur(radius=radius))
      same(augment.gaussian_blur(1.0, radius, radius)(image, generator), expected)


@pytest.mark.parametrize('factor', [0.0, 0.6, 1.0, 1.4])
def test_a_part_of_color_jitter_equals_torchvisions(factor):
  named = {
    'Brightness': functional.adjust_brightness,
    'Contrast': functional.adjust_contrast,
    'Color': functional.adjust_saturation,
  }
  for image in map(pil.fromarray, IMAGES):
    for name, theirs in named.items():
      same(augment.enhance(image, name, factor), theirs(image, factor))


@pytest.mark.parametrize('shift', [-0.5, -0.1, -0.001, 0.0, 0.2, 0.5])
def test_a_shift_of_hue_equals_torchvisions(shift):
  for image in map(pil.fromarray, IMAGES):
    same(augment.shift_hue(image, shift), functional.adjust_hue(image, shift))
