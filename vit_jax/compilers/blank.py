"""A config's plan for chips that are not here, and for data that need not be.

A step depends on the size of its images and the number of classes alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections.config_dict import FrozenConfigDict

from vit_jax import models, plan
from vit_jax.compilers import Chips
from vit_jax.sources import Record, Source, presets

IMAGENET = 1_281_167, 1000  # images to train on, and their classes
DIGITS = 10
FITTED = ('remat', 'unroll')  # fields of a model, by the memory of its device


@dataclasses.dataclass(frozen=True)
class Blank:
  """Records of a black image, whose labels are all classes in turn."""

  size: tuple[int, int, int]
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    return {'image': np.zeros(self.size, np.uint8), 'label': self.labels[index]}


def plan_without_data(
  config: FrozenConfigDict,
  devices: Sequence[jax.Device],
  *,
  chips: Chips,
  classes: int | None = None,
) -> tuple[plan.Plan, list[str]]:
  """The plan of a config on such devices, and lines on what was assumed for it.

  Args:
    config: of `vit_jax.config.load`.
    devices: of the mesh: those chips, or as many that stand for them.
    chips: for which the model's type and `remat` are chosen, where the config chooses none.
    classes: how many the data set has; None for what its name says.
  """
  count, notes = class_count(config, classes)
  whole: dict[str, Any] = config.to_dict()
  if whole['model']['dtype'] is None:
    whole['model']['dtype'] = 'float32' if chips.kind == 'cpu' else 'bfloat16'
  if config.pretrained:
    whole['model']['name'] = config.model.name or pretrained_name(config.pretrained)
    whole |= {'pretrained': '', 'new_head': True}
    notes.append(f'{config.pretrained} is not read: a {whole["model"]["name"]} starts as new')
  settings = FrozenConfigDict(whole)
  model = plan.build_model(settings, count)
  fitted = plan.fit_memory(
    settings, model, limit=chips.limit, platform=chips.chip.platform, devices=devices
  )
  whole['model'] |= {name: getattr(fitted, name) for name in FITTED if hasattr(fitted, name)}
  size = (*config.image_size, config.data.channels)
  labels = np.arange(max(IMAGENET[0], config.batch_size), dtype=np.int32) % max(count, 1)
  source = Source(Blank(size, labels), tuple(f'class {index}' for index in range(count)))
  splits = {'train': source}
  return plan.make_plan(FrozenConfigDict(whole), splits=splits, devices=devices), notes


def class_count(config: FrozenConfigDict, classes: int | None) -> tuple[int, list[str]]:
  """How many classes a data set has by its name; 1,000, and a line that says so, for others.

  None for a task that reads no labels.
  """
  if not plan.method(config.task).labels:
    return 0, []
  if classes is not None:
    return classes, []
  source = config.data.source
  if preset := presets.find(source):
    return preset.classes, []
  if source == 'digits':
    return DIGITS, []
  return IMAGENET[1], [f'the classes of {source} are not counted: {IMAGENET[1]:,}, or --classes']


def pretrained_name(checkpoint: str) -> str:
  """The model that a published checkpoint's name begins with, 'B_16' or 'B_16-i21k-...'."""
  try:
    return models.canonical(checkpoint.rpartition('/')[2].removesuffix('.npz').partition('-')[0])
  except ValueError:
    raise ValueError(
      f'pretrained {checkpoint!r} does not say its model: --config.model.name=NAME does'
    ) from None
