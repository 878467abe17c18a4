"""Lines that stand for other libraries' preprocessing give their pixels, where PIL makes them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.interop import peers
from vit_jax import convert
from vit_jax.images import transforms

SIZES = [
  (375, 500), (500, 375), (333, 500), (257, 256), (231, 259), (301, 227), (1000, 333), (97, 150),
  (256, 341), (767, 511), (224, 224), (259, 256), (480, 641),
]  # fmt: skip


def pair(image):
  return {'height': image[0], 'width': image[1]}


def check_pixels(line, size, theirs):
  """Raises AssertionError unless a line does what `theirs` does, to images of many sizes."""
  ours = transforms.compose(line, size)
  rng = np.random.default_rng(0)
  for sides in SIZES:
    image = rng.integers(0, 256, (*sides, 3), dtype=np.uint8)
    expected = theirs(Image.fromarray(image))
    np.testing.assert_array_equal(ours(image, rng), expected, err_msg=f'{line} of {sides}')


# Each saves a tiny model, as its library does, to be read; the preprocessing is that of the file


def timm_folder(folder, size=(224, 224), **values):
  """A folder of timm's, and what timm does to an image for it."""
  values = dict(mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, *size), **values)
  module = peers.timm.create_model(
    'vit_tiny_patch16_224', **peers.TINY | {'img_size': size}, pretrained_cfg_overlay=values
  )
  peers.save_timm(module, folder)
  config = peers.timm.data.resolve_data_config(model=peers.open_timm(folder))
  step = peers.timm.data.create_transform(**config, normalize=False)
  return folder, lambda image: np.asarray(step(image)).transpose(1, 2, 0)


def torchvision_file(folder, weights, sizes):
  """A file called and shaped as torchvision's, but for its depth, and what is done for it."""
  side, patch, width, heads = sizes
  module = peers.torchvision.models.VisionTransformer(side, patch, 1, heads, width, 64)
  step = weights.transforms()
  path = folder / weights.url.rsplit('/', 1)[-1]
  torch.save(module.state_dict(), path)
  mean, std = np.array(step.mean), np.array(step.std)

  def apply(image):
    levels = np.asarray(step(image)).transpose(1, 2, 0) * std + mean
    return np.rint(levels * 255).astype(np.uint8)

  return path, apply


def transformers_folder(folder, kind, **values):
  """A folder with a preprocessor_config.json, and what transformers does in PIL for it."""
  config = peers.transformers.ViTConfig(**peers.HF_TINY | {'image_size': 224})
  peers.transformers.ViTForImageClassification(config).save_pretrained(folder)
  values = {'image_processor_type': f'{kind}ImageProcessor', **values}
  (folder / 'preprocessor_config.json').write_text(json.dumps(values))
  made = getattr(peers.transformers, f'{kind}ImageProcessorPil')
  step = made.from_pretrained(folder, do_rescale=False, do_normalize=False)

  def apply(image):
    return np.asarray(step(image, return_tensors='np')['pixel_values'])[0].transpose(1, 2, 0)

  return folder, apply


def timm(line, **values):
  return line, timm_folder, {'interpolation': 'bicubic', 'crop_mode': 'center'} | values


def hugging_face(line, kind, **values):
  return line, transformers_folder, {'kind': kind, **values}


def torchvision(line, kind, weights, *sizes):
  weights = peers.torchvision.models.get_model_weights(kind)[weights]
  return line, torchvision_file, {'weights': weights, 'sizes': sizes}


SWAG = "crop_ratio(ratio=1.0, method='bicubic_antialias')"
CASES = {
  'torchvision': torchvision(
    "crop_ratio(ratio=0.875, method='bilinear_antialias')",
    *('vit_b_16', 'IMAGENET1K_V1', 224, 16, 768, 12),
  ),
  'torchvision large': torchvision(
    "resize_small(242, method='bilinear_antialias', rounding='down') | "
    "central_crop(rounding='nearest')",
    *('vit_l_16', 'IMAGENET1K_V1', 224, 16, 1024, 16),
  ),
  'torchvision SWAG': torchvision(SWAG, 'vit_b_16', 'IMAGENET1K_SWAG_E2E_V1', 384, 16, 768, 12),
  'torchvision SWAG linear': torchvision(
    SWAG, 'vit_l_16', 'IMAGENET1K_SWAG_LINEAR_V1', 224, 16, 1024, 16
  ),
  'torchvision SWAG huge': torchvision(
    SWAG, 'vit_h_14', 'IMAGENET1K_SWAG_LINEAR_V1', 224, 14, 1280, 16
  ),
  'timm': timm("crop_ratio(ratio=0.9, method='bicubic_antialias')", crop_pct=0.9),
  'timm odd': timm("crop_ratio(ratio=0.965, method='bicubic_antialias')", crop_pct=0.965),
  'timm whole': timm(
    "crop_ratio(ratio=1.0, method='bilinear_antialias')",
    size=(256, 256),
    interpolation='bilinear',
    crop_pct=1.0,
  ),
  'timm oblong': timm(
    "crop_ratio(ratio=0.95, method='bicubic_antialias')", size=(224, 320), crop_pct=0.95
  ),
  'timm squash': timm("resize(method='bicubic_antialias')", crop_pct=1.0, crop_mode='squash'),
  'timm squash and cut': timm(
    "resize(235, 235, method='bicubic_antialias') | central_crop(rounding='nearest')",
    crop_pct=0.95,
    crop_mode='squash',
  ),
  'timm squash and cut oblong': timm(
    "resize(248, 355, method='bicubic_antialias') | central_crop(rounding='nearest')",
    size=(224, 320),
    crop_pct=0.9,
    crop_mode='squash',
  ),
  'transformers': hugging_face(
    "resize_small(256, method='bicubic_antialias', rounding='down') | central_crop(224, 224)",
    'CLIP',
    size={'shortest_edge': 256},
    crop_size=pair((224, 224)),
  ),
  'transformers odd': hugging_face(
    "resize_small(227, method='bilinear_antialias', rounding='down') | central_crop(224, 224)",
    'Bit',
    size={'shortest_edge': 227},
    crop_size=224,
    resample=2,
  ),
  'transformers squash': hugging_face(
    "resize(224, 224, method='bilinear_antialias')", 'ViT', size=pair((224, 224)), resample=2
  ),
  'transformers squash and cut': hugging_face(
    "resize(257, 257, method='bicubic_antialias') | central_crop(224, 224)", 'DeiT', size=257
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_a_file_that_is_read_gives_the_pixels_of_the_library_that_wrote_it(name, tmp_path):
  line, save, values = CASES[name]
  path, theirs = save(tmp_path, **values)
  checkpoint = convert.read(path, heads=2)
  assert checkpoint.preprocess['steps'] == line
  assert checkpoint.notes == ()
  check_pixels(line, checkpoint.preprocess.get('size', checkpoint.size), theirs)


def test_weights_of_torchvision_that_could_be_of_two_kinds_are_told(tmp_path):
  _, save, values = CASES['torchvision']
  path, _ = save(tmp_path, **values)
  [note] = convert.read(path.rename(tmp_path / 'flowers.pth')).notes
  assert 'IMAGENET1K_V1' in note and SWAG in note


def test_bicubic_in_floats_is_refused_where_it_is_dinov3s(tmp_path):
  folder, _ = transformers_folder(tmp_path, 'ViT', resample=3)
  config = {'image_processor_type': 'DINOv3ViTImageProcessorFast', 'resample': 3}
  (folder / 'preprocessor_config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='resample 3 of DINOv3ViTImageProcessorFast is not read'):
    convert.read(folder)
