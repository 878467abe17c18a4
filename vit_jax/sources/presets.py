"""Data sets by a short name: where they are, their splits, and what was published on them.

ImageNet-21k is no set that TFDS can download. 'imagenet21k' reads one of your own that TFDS can
read, with a split 'full', from $TFDS_DATA_DIR/imagenet21k/VERSION; a 'folder:PATH' does as well.
So it is with JFT, which is private; where it is multi-label, let 'label' be a Sequence(ClassLabel).

The tasks of VTAB-1k (arXiv 1910.04867) are 'vtab/NAME', with splits, classes and labels of
google-research/task_adaptation: 'train' is its train800, 'validation' its val200, 'trainval' both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Preset:
  """A data set by a short name.

  Fields:
    source: as `sources.open_source` takes it.
    splits: 'train', 'validation', 'test' and, in VTAB, 'trainval': what each means in the source's
      own split language. A set for evaluation has only 'test'.
    classes: how many.
    steps, warmup: of fine-tuning at batch 512, as published; 0 where nothing was.
    rates: of that fine-tuning by whose recipe it is, or its 'recipe MODEL' where a model has one of
      its own.
  """

  source: str
  splits: Mapping[str, str]
  classes: int
  steps: int = 0
  warmup: int = 0
  rates: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Label:
  """A label that a TFDS set does not have as such, as google-research/task_adaptation makes it."""

  feature: str  # that it is made from
  classes: tuple[str, ...]
  value: Callable[[Any], np.int32]  # (feature) -> the label


Objects = Mapping[str, np.ndarray]  # a feature of TFDS: an array of each property of the objects


# task_adaptation/data/clevr.py and kitti.py
CLEVR_DISTANCES = np.array([0, 8, 8.5, 9, 9.5, 10, 100], np.float32)
KITTI_DISTANCES = np.array([-100, 8, 20, 999], np.float32)
VEHICLES = 3  # types of KITTI below this one: car, van, truck


def interval(value: float, bounds: np.ndarray) -> np.int32:
  """The index of the last bound below a value."""
  return np.int32(np.searchsorted(bounds, np.float32(value), side='left') - 1)


def clevr_count(objects: Objects) -> np.int32:
  """How many objects there are, of 3 to 10, as 0 to 7."""
  return np.int32(len(objects['size']) - 3)


def clevr_distance(objects: Objects) -> np.int32:
  """How far the closest object is from the camera, in steps."""
  return interval(np.min(np.asarray(objects['pixel_coords'])[:, 2]), CLEVR_DISTANCES)


def kitti_distance(objects: Objects) -> np.int32:
  """How far the closest vehicle is from the camera, in steps; the last without a vehicle."""
  depth = np.asarray(objects['location']).reshape(-1, 3)[:, 2]
  vehicles = depth[np.asarray(objects['type']) < VEHICLES]
  return interval(np.min(vehicles, initial=1000), KITTI_DISTANCES)  # over 999: no vehicle


def dsprites_location(position: int) -> np.int32:
  """The x position, of 32, by twos."""
  return np.int32(position // 2)


def dsprites_orientation(orientation: int) -> np.int32:
  """The orientation, of 40, by two and a half."""
  return np.int32(orientation // 2.5)


SIXTEEN = tuple(map(str, range(16)))
LABELS = {
  'clevr/count': Label('objects', tuple(f'{n} objects' for n in range(3, 11)), clevr_count),
  'clevr/distance': Label(
    'objects', ('to 8', 'to 8.5', 'to 9', 'to 9.5', 'to 10', 'over 10'), clevr_distance
  ),
  'kitti/distance': Label('objects', ('to 8 m', 'to 20 m', 'over 20 m', 'none'), kitti_distance),
  'dsprites/location': Label('label_x_position', SIXTEEN, dsprites_location),
  'dsprites/orientation': Label('label_orientation', SIXTEEN, dsprites_orientation),
}

VTAB = {
  'natural': ('caltech101', 'cifar100', 'dtd', 'flowers', 'pets', 'sun397', 'svhn'),
  'specialized': ('patch_camelyon', 'eurosat', 'resisc45', 'retinopathy'),
  'structured': (
    'clevr_count',
    'clevr_distance',
    'dmlab',
    'kitti_distance',
    'dsprites_location',
    'dsprites_orientation',
    'smallnorb_azimuth',
    'smallnorb_elevation',
  ),
}


def first_percent(percent: int, test: str = 'test') -> dict[str, str]:
  """Splits where train is so much of the set's own and validation the rest of that."""
  return {'train': f'train[:{percent}%]', 'validation': f'train[{percent}%:]', 'test': test}


def vtab(source: str, classes: int, validation: str, test: str = 'test') -> Preset:
  """A task of VTAB-1k; 2,500 steps are ViT's, for all of them (arXiv 2010.11929, table 4)."""
  train = 'train[:800]'
  splits = {'train': train, 'validation': validation, 'test': test}
  splits['trainval'] = f'{train}+{validation}'
  return Preset(f'tfds:{source}', splits, classes, 2500, 500)


VALIDATION = 'validation[:200]'
# Of a set without validation, task_adaptation takes it from 60, 80 or 90 % of train on.
CLEVR = ('train[63000:63200]', 'validation')
DSPRITES = ('train[589824:590024]', 'train[663552:]')
SMALLNORB = ('test[:200]', 'test[50%:]')
RETINOPATHY = 'diabetic_retinopathy_detection/btgraham-300:3.*.*'
FULL = {'train': 'full[51200:]', 'validation': 'full[:51200]'}

GOOGLE, BIG_VISION = 'vision_transformer', 'big_vision'  # whose rates
CIFAR10 = {GOOGLE: 0.03, f'{GOOGLE} ViT-B/16': 0.01, BIG_VISION: 0.003}
CIFAR100 = {GOOGLE: 0.03, BIG_VISION: 0.01}
IMAGENET = {GOOGLE: 0.03, BIG_VISION: 0.03}
SMALL = {GOOGLE: 0.003, BIG_VISION: 0.003}  # big_vision's for both: vision_transformer has none

PRESETS: dict[str, Preset] = {
  'cifar10': Preset('tfds:cifar10', first_percent(98), 10, 10_000, 500, CIFAR10),
  'cifar100': Preset('tfds:cifar100', first_percent(98), 100, 10_000, 500, CIFAR100),
  'food101': Preset('tfds:food101', first_percent(98, 'validation'), 101),
  'imagenet2012': Preset(
    'tfds:imagenet2012', first_percent(99, 'validation'), 1000, 20_000, 500, IMAGENET
  ),
  'imagenet2012_real': Preset('tfds:imagenet2012_real', {'test': 'validation'}, 1000),
  'imagenet21k': Preset('tfds:imagenet21k', FULL, 21_843),
  'imagenet_a': Preset('tfds:imagenet_a', {'test': 'test'}, 1000),
  'imagenet_r': Preset('tfds:imagenet_r', {'test': 'test'}, 1000),
  'imagenet_v2': Preset('tfds:imagenet_v2/matched-frequency', {'test': 'test'}, 1000),
  'oxford_flowers102': Preset('tfds:oxford_flowers102', first_percent(90), 102, 500, 100, SMALL),
  'oxford_iiit_pet': Preset('tfds:oxford_iiit_pet', first_percent(90), 37, 500, 100, SMALL),
  'vtab/caltech101': vtab('caltech101:3.*.*', 102, 'train[2754:2954]'),
  'vtab/cifar100': vtab('cifar100:3.*.*', 100, 'train[45000:45200]'),
  'vtab/dtd': vtab('dtd:3.*.*', 47, VALIDATION),
  'vtab/flowers': vtab('oxford_flowers102:2.*.*', 102, VALIDATION),
  'vtab/pets': vtab('oxford_iiit_pet', 37, 'train[2944:3144]'),
  'vtab/sun397': vtab('sun397/tfds:4.*.*', 397, VALIDATION),
  'vtab/svhn': vtab('svhn_cropped:3.*.*', 10, 'train[65931:66131]'),
  'vtab/patch_camelyon': vtab('patch_camelyon:2.*.*', 2, VALIDATION),
  'vtab/eurosat': vtab('eurosat/rgb:2.*.*', 10, 'train[16200:16400]', 'train[21600:]'),
  'vtab/resisc45': vtab('resisc45:3.*.*', 45, 'train[18900:19100]', 'train[25200:]'),
  'vtab/retinopathy': vtab(RETINOPATHY, 5, VALIDATION),
  'vtab/clevr_count': vtab('clevr:3.*.*?label=count', 8, *CLEVR),
  'vtab/clevr_distance': vtab('clevr:3.*.*?label=distance', 6, *CLEVR),
  'vtab/dmlab': vtab('dmlab:2.*.*', 6, VALIDATION),
  'vtab/kitti_distance': vtab('kitti:3.*.*?label=distance', 4, VALIDATION),
  'vtab/dsprites_location': vtab('dsprites:2.*.*?label=location', 16, *DSPRITES),
  'vtab/dsprites_orientation': vtab('dsprites:2.*.*?label=orientation', 16, *DSPRITES),
  'vtab/smallnorb_azimuth': vtab('smallnorb:2.*.*?label=label_azimuth', 18, *SMALLNORB),
  'vtab/smallnorb_elevation': vtab('smallnorb:2.*.*?label=label_elevation', 9, *SMALLNORB),
}


def find(name: str) -> Preset | None:
  """The preset of that name; what follows a '?' goes on to its source, 'cifar10?data_dir=/data'."""
  short, _, options = name.partition('?')
  preset = PRESETS.get(short)
  if preset and options:
    joint = '&' if '?' in preset.source else '?'
    return dataclasses.replace(preset, source=f'{preset.source}{joint}{options}')
  return preset
