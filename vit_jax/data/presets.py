"""Data sets by a short name: where they are, their splits, and what was published on them."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Preset:
  """A data set by a short name.

  Fields:
    source: as `sources.open_source` takes it.
    splits: of 'train', 'validation' and 'test', what each means in the source's own split language.
    classes: how many.
    steps: of fine-tuning at batch 512, as published; 0 where nothing was.
  """

  source: str
  splits: Mapping[str, str]
  classes: int
  steps: int = 0


PRESETS: dict[str, Preset] = {}
