"""What preprocessor_config.json of Hugging Face says of images, or the class that it names."""

import math
import re
from typing import Any

from vit_jax.convert import kinds, timm
from vit_jax.convert.timm import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

Size = int | list[int] | dict[str, int]  # in any of the forms that files have
METHODS = {2: 'bilinear_antialias', 3: 'bicubic_antialias'}  # PIL's numbers
HALF = (0.5, 0.5, 0.5)
CLIP_LOOK = {
  'size': {'shortest_edge': 224},
  'crop_size': 224,
  'do_center_crop': True,
  'resample': 3,
  'image_mean': CLIP_MEAN,
  'image_std': CLIP_STD,
  'default_to_square': False,
}
SQUARE_LOOK = {
  'size': 224,
  'resample': 2,
  'image_mean': HALF,
  'image_std': HALF,
  'default_to_square': True,
}
# What transformers' image processors take where their file tells nothing; `default_to_square`
# is whether one number is both sides, or the shorter one.
PROCESSORS: dict[str, dict[str, Any]] = {
  'ViT': SQUARE_LOOK,
  'DINOv3ViT': SQUARE_LOOK | {'image_mean': IMAGENET_MEAN, 'image_std': IMAGENET_STD},
  'DeiT': SQUARE_LOOK | {'size': 256, 'resample': 3, 'crop_size': 224, 'do_center_crop': True},
  'Beit': SQUARE_LOOK | {'resample': 3, 'crop_size': 224},
  'Blip': CLIP_LOOK | {'size': 384, 'do_center_crop': False, 'default_to_square': True},
  'Siglip': SQUARE_LOOK
  | {'size': {'height': 224, 'width': 224}, 'resample': 3, 'default_to_square': False},
  'Siglip2': SQUARE_LOOK | {'max_num_patches': 256, 'patch_size': 16},
  'CLIP': CLIP_LOOK,
  'ChineseCLIP': CLIP_LOOK,
  'Bit': CLIP_LOOK,
}
IMAGENET = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD}
UNDECLARED: dict[str, dict[str, Any]] = {  # what the published files of a processor's kind have
  'ViT': {'steps': "resize(method='bilinear_antialias')"},
  'Beit': {'steps': "resize(method='bilinear_antialias')"},
  'Siglip': {'steps': "resize(method='bicubic_antialias')"},
  'DINOv3ViT': {'steps': "resize(method='bilinear_antialias')", **IMAGENET},
  'Bit': {'fraction': 224 / 256, 'method': 'bicubic_antialias', **IMAGENET},
  'CLIP': {'fraction': 1.0, 'method': 'bicubic_antialias', 'mean': CLIP_MEAN, 'std': CLIP_STD},
}


def preprocess(config: dict[str, Any], usual: str = 'ViT') -> dict[str, Any]:
  """From preprocessor_config.json: squashed, or the shorter side resized; then the centre.

  Where no file names a processor, it is the `usual` one of the family.
  """
  if 'preprocessor' not in config:
    size = {'size': sides(config['image_size'])} if 'image_size' in config else {}
    return UNDECLARED[usual] | size
  values = config['preprocessor']
  if config.get('model_type') == 'deit':
    usual = 'DeiT'
  named = values.get('image_processor_type', values.get('feature_extractor_type', usual))
  processor = re.sub(r'(ImageProcessor|FeatureExtractor)(Fast|Pil)?$', '', named)
  if processor not in PROCESSORS:
    names = ', '.join(f'{name}ImageProcessor' for name in PROCESSORS)
    raise ValueError(f'preprocessor_config.json: image_processor_type {named} is none of {names}')
  values = PROCESSORS[processor] | values
  if 'max_num_patches' in values:
    values['size'] = math.isqrt(values['max_num_patches']) * values['patch_size']
  if values['resample'] not in METHODS:
    raise ValueError(f'preprocessor_config.json: resample {values["resample"]} is none of 2 and 3')
  if processor == 'DINOv3ViT' and METHODS[values['resample']] != 'bilinear_antialias':
    raise ValueError(  # it resizes before it rounds, and bicubic leaves [0, 1]
      f'preprocessor_config.json: resample {values["resample"]} of {named} is not read, 2 is'
    )
  return {**steps_of(values), **levels(values)}


def steps_of(values: dict[str, Any]) -> dict[str, Any]:
  """The steps of an image processor, and the size of what they give."""
  method, steps = METHODS[values['resample']], []
  crop = sides(values['crop_size']) if values.get('do_center_crop') else None
  fields: dict[str, Any] = {'size': crop} if crop else {}
  if values.get('do_resize', True):
    size = edges(values['size'], square=values['default_to_square'])
    if isinstance(size, int):
      crop = crop or (size, size)  # where transformers crops nothing, its models take only squares
      steps.append(f"resize_small({size}, method='{method}', rounding='down')")
    else:
      steps.append(f"resize({size[0]}, {size[1]}, method='{method}')")
    fields['size'] = crop or size
  if crop:
    steps.append(f'central_crop({crop[0]}, {crop[1]})')
  return fields | {'steps': ' | '.join(steps)}


def levels(values: dict[str, Any]) -> dict[str, Any]:
  """Mean and std of pixels in [0, 1], though transformers' are of pixels times another factor."""
  factor = 255 * values.get('rescale_factor', 1 / 255) if values.get('do_rescale', True) else 255.0
  scale = 1.0 if math.isclose(factor, 1) else factor
  if not values.get('do_normalize', True):
    return {'mean': (0.0, 0.0, 0.0), 'std': (1 / scale,) * 3}
  mean, std = values['image_mean'], values['image_std']
  return {'mean': tuple(m / scale for m in mean), 'std': tuple(s / scale for s in std)}


def edges(size: Size, *, square: bool) -> int | tuple[int, int]:
  """The length of the shorter side, or both sides."""
  if isinstance(size, dict) and 'shortest_edge' in size:
    return int(size['shortest_edge'])
  if isinstance(size, int) and not square:
    return size
  return sides(size)


def sides(size: Size) -> tuple[int, int]:
  """(height, width) of a size."""
  return (size['height'], size['width']) if isinstance(size, dict) else timm.sides(size)


def is_size(value: object) -> bool:
  """Whether it is one that `edges` reads."""
  if not isinstance(value, dict):
    return kinds.SIDES.holds(value)
  sized = {key: side for key, side in value.items() if side is not None}
  return sized.keys() in ({'height', 'width'}, {'shortest_edge'}) and all(
    map(kinds.SIDE.holds, sized.values())
  )


SIZE = kinds.Kind(
  'a number of pixels up to 8,192, a height and a width, or a shortest_edge alone', is_size
)
CROP = kinds.Kind(
  'a number of pixels up to 8,192, or a height and a width',
  lambda v: is_size(v) and not (isinstance(v, dict) and 'shortest_edge' in v),
)
