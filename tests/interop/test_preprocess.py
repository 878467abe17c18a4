"""Lines that stand for other libraries' preprocessing give their pixels, where PIL makes them."""

import numpy as np
import pytest
from PIL import Image

from tests.interop import peers
from vit_jax.data import transforms

SIZES = [
  (375, 500), (500, 375), (333, 500), (257, 256), (231, 259), (301, 227), (1000, 333), (97, 150),
  (256, 341), (767, 511), (224, 224), (259, 256), (480, 641),
]  # fmt: skip


def pair(image):
  return {'height': image[0], 'width': image[1]}


def timm_eval(size, **how):
  how = {'is_training': False, 'normalize': False} | how
  step = peers.timm.data.create_transform(input_size=(3, *size), **how)
  return lambda image: np.asarray(step(image)).transpose(1, 2, 0)


def torchvision_eval(image):
  functional = peers.torchvision.transforms.functional
  small = functional.resize(image, [256], functional.InterpolationMode.BILINEAR)
  return np.asarray(functional.center_crop(small, [224, 224]))


def transformers_eval(name, **how):
  step = getattr(peers.transformers, name)(**how, do_rescale=False, do_normalize=False)

  def apply(image):
    return np.asarray(step(image, return_tensors='np')['pixel_values'])[0].transpose(1, 2, 0)

  return apply


CLIP = {'size': {'shortest_edge': 256}, 'resample': 3, 'crop_size': pair((224, 224))}
CASES = {
  'torchvision': (
    "crop_ratio(ratio=0.875, method='bilinear_antialias')",
    (224, 224),
    torchvision_eval,
  ),
  'timm': (
    'crop_ratio(ratio=0.9)',
    (224, 224),
    timm_eval((224, 224), interpolation='bicubic', crop_pct=0.9),
  ),
  'timm whole': (
    "crop_ratio(ratio=1.0, method='bilinear_antialias')",
    (256, 256),
    timm_eval((256, 256), interpolation='bilinear', crop_pct=1.0),
  ),
  'timm oblong': (
    'crop_ratio(ratio=0.95)',
    (224, 320),
    timm_eval((224, 320), interpolation='bicubic', crop_pct=0.95),
  ),
  'timm squash': (
    "resize(248, method='bicubic_antialias') | central_crop(rounding='nearest')",
    (224, 224),
    timm_eval((224, 224), interpolation='bicubic', crop_pct=0.9, crop_mode='squash'),
  ),
  'transformers': (
    "resize_small(256, method='bicubic_antialias', rounding='down') | central_crop",
    (224, 224),
    transformers_eval('CLIPImageProcessorPil', do_center_crop=True, **CLIP),
  ),
  'transformers squash': (
    "resize(method='bilinear_antialias')",
    (224, 224),
    transformers_eval('ViTImageProcessorPil', size=pair((224, 224)), resample=2),
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_a_line_gives_the_pixels_of_the_library_that_it_stands_for(name):
  line, size, theirs = CASES[name]
  ours = transforms.compose(line, size)
  rng = np.random.default_rng(0)
  for sides in SIZES:
    image = rng.integers(0, 256, (*sides, 3), dtype=np.uint8)
    expected = theirs(Image.fromarray(image))
    np.testing.assert_array_equal(ours(image, rng), expected, err_msg=str(sides))
