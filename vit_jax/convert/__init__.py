"""Published checkpoints in and out: every dialect is a table, read and written by one engine.

`read` gives a `Checkpoint` in our names; `write` writes one in another's.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.convert import architecture, engine, files, google, huggingface, timm, torchvision
from vit_jax.convert.engine import Arrays, Family
from vit_jax.convert.preprocess import cropped

FAMILIES: tuple[Family, ...] = (
  *google.FAMILIES,
  *huggingface.FAMILIES,
  *torchvision.FAMILIES,
  *timm.FAMILIES,
)
OWN = {  # a name that every checkpoint of ours has
  'ViT': 'encoder/blocks/attention/query/kernel',
  'Mixer': 'encoder/blocks/tokens/up/kernel',
  'BiT': 'stage1/unit1/conv1/kernel',
}
DIALECTS = tuple(dict.fromkeys(family.dialect for family in FAMILIES))
WRAPPERS = (*google.WRAPPERS, *timm.WRAPPERS)
CONFIGS = {
  'preprocessor_config.json': 'preprocessor',
  'config.json': '',
  'open_clip_config.json': '',
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A file's arrays in our names, and what else it says.

  Fields:
    path: of the file or folder.
    dialect: 'vit_jax', or one of DIALECTS.
    name: the variant that is nearest to the model.
    fields: of the model, as `vit_jax.build(name, **fields)` takes them.
    arrays: flat, float32, layers stacked.
    size: (height, width) in pixels of the images that the positions are for.
    classes: the name of each label; its number where the file names none.
    preprocess: fields of `transforms.Preprocess` that the file, or its kind, tells.
    resample: the rule by which the dialect's own code resamples positions.
    renamed: how many of the file's arrays have another name here.
    dropped: the file's names that no model has a use for.
    faults: arrays that are missing, unexpected or misshapen by the dialect's table.
  """

  path: str
  dialect: str
  name: str
  fields: dict[str, Any]
  arrays: Arrays
  size: tuple[int, int]
  classes: tuple[str, ...] = ()
  preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
  resample: str = 'bicubic_antialias'
  renamed: int = 0
  dropped: tuple[str, ...] = ()
  faults: engine.Faults = dataclasses.field(default_factory=engine.Faults)


def read(path: str | os.PathLike[str], *, heads: int | None = None) -> Checkpoint:
  """A checkpoint of any dialect, recognised by its names; nothing in it is executed.

  Args:
    path: of a .npz, .safetensors or PyTorch file, an Orbax folder, or a folder as Hugging Face or
      timm write it, with its configuration.
    heads: attention heads, where a file in torch's names does not tell them; None takes those of
      the published model of that size.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: one line, if it cannot be read, or its names are no dialect's.
  """
  arrays = files.read(path)
  try:
    return recognised(str(path), arrays, configuration(pathlib.Path(path)), heads)
  except (AttributeError, TypeError, KeyError, IndexError, ValueError, ArithmeticError) as error:
    what = f'{error}' if isinstance(error, ValueError) else f'unusable ({error!r})'
    raise ValueError(f'{path}: {" ".join(what.split())}') from None


def recognised(path: str, arrays: Arrays, config: dict[str, Any], heads: int | None) -> Checkpoint:
  """The checkpoint that arrays in any dialect's names are."""
  for model, sign in OWN.items():
    if sign in arrays:
      return own(path, model, {n: np.array(a, np.float32) for n, a in arrays.items()})
  found = unwrapped(arrays)
  if found is None:
    names = ', '.join(sorted(arrays)[:3])
    raise ValueError(f'{len(arrays)} arrays ({names}, ...) with the names of no known ViT')
  family, theirs, outside = found
  dropped = [name for name in theirs if matches(name, family.drops)]
  dropped += [name for name, array in theirs.items() if not array.size]
  tidied = family.tidy({name: array for name, array in theirs.items() if name not in dropped})
  tidied = engine.renamed(tidied, family.renames)
  ours, faults = engine.into(family.table, tidied, heads or told_heads(family, tidied, config))
  details = family.details(tidied, ours, config)
  if heads:
    details['heads'] = heads
  preprocess = family.preprocess(config)
  try:
    fields = architecture.infer(family.model, ours, details, preprocess.get('size'))
  except ValueError as error:
    raise ValueError(f'{error}; {faults}' if faults else f'{error}') from None
  size = architecture.image_size(fields, ours, preprocess.get('size'))
  if 'share' in preprocess:
    preprocess['steps'] = cropped(size, preprocess.pop('share'), preprocess.pop('method'))
  return Checkpoint(
    path=path,
    dialect=family.dialect,
    name=architecture.variant(family.model, fields),
    fields=fields,
    arrays=ours,
    size=size,
    classes=class_names(config, fields['num_classes']),
    preprocess=preprocess,
    resample=family.resample,
    renamed=sum(name not in ours for name in arrays),
    dropped=(*outside, *dropped),
    faults=faults,
  )


def own(path: str, model: str, arrays: Arrays) -> Checkpoint:
  """The checkpoint that arrays in our own names are; what they do not show has its default."""
  fields = architecture.infer(model, arrays, {}, None)
  size = architecture.image_size(fields, arrays, None)
  classes = class_names({}, fields['num_classes'])
  name = architecture.variant(model, fields)
  return Checkpoint(path, 'vit_jax', name, fields, arrays, size, classes)


def unwrapped(arrays: Arrays) -> tuple[Family, Arrays, list[str]] | None:
  """The family whose signs the names bear, its arrays without what wraps their names, the others.

  Of what stands round the names, such as an optimizer's state or a text tower, only the names of
  what is left out are kept.
  """
  for family in FAMILIES:
    if bears(family, arrays):
      return family, arrays, []
  for wrapper in WRAPPERS:
    inside = {n.removeprefix(wrapper): a for n, a in arrays.items() if n.startswith(wrapper)}
    if inside and (found := unwrapped(inside)):
      outside = [name for name in arrays if not name.startswith(wrapper)]
      return found[0], found[1], outside + [wrapper + name for name in found[2]]
  return None


def bears(family: Family, arrays: Arrays) -> bool:
  """Whether some name matches each of the family's signs, and none one that begins with '!'."""
  return all(
    any(re.fullmatch(sign.removeprefix('!'), name) for name in arrays) != sign.startswith('!')
    for sign in family.signs
  )


def matches(name: str, patterns: tuple[str, ...]) -> bool:
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def told_heads(family: Family, theirs: Arrays, config: dict[str, Any]) -> int:
  """Attention heads that the configuration tells, or those of the published model of that size."""
  told = config.get('vision_config', config).get('num_attention_heads')
  told = told or config.get('model_args', {}).get('num_heads')
  if told:
    return int(told)
  names = {row.ours: row for row in family.table}
  kernel = theirs.get(names['embed/kernel'].theirs) if 'embed/kernel' in names else None
  if kernel is None or not kernel.ndim:
    return 1
  norms = engine.counted(names['encoder/blocks/norm1/scale'], theirs)
  depth = max(norms.values(), default=0)
  gated = any(re.search(r'mlp\.(fc1_g|gate_proj)\.', name) for name in theirs)
  return architecture.heads(kernel.shape[0], depth, gated=gated)


def configuration(path: pathlib.Path) -> dict[str, Any]:
  """What the JSON files beside a weight file say: config.json's keys, and 'preprocessor'.

  Raises:
    ValueError: if one of them holds no JSON object.
  """
  folder = path if path.is_dir() else path.parent
  if path.is_file() and path.name not in files.FILES:
    return {}
  config: dict[str, Any] = {}
  for name, key in CONFIGS.items():
    if not (folder / name).is_file():
      continue
    found = files.read_object(folder / name)
    config |= {key: found} if key else found
  return config


def class_names(config: dict[str, Any], count: int) -> tuple[str, ...]:
  """Names of the labels, where the configuration has one for each; their numbers otherwise."""
  named = config.get('id2label') or config.get('label_names') or {}
  if isinstance(named, Mapping):
    named = [named.get(str(k), named.get(k)) for k in range(count)] if len(named) == count else []
  told = len(named) == count and all(isinstance(name, str) for name in named)
  if told and list(named) != [f'LABEL_{k}' for k in range(count)]:  # transformers' word for no name
    return tuple(named)
  return tuple(map(str, range(count)))


def write(path: str | os.PathLike[str], source: Any, *, to: str) -> list[str]:
  """Writes a model in another's names: a file by its suffix, or a folder with its configuration.

  Args:
    path: new; a .npz for 'npz' and 'bigvision', a folder for 'hf', a folder, .safetensors or .pth
      for 'timm', .safetensors or .pth for 'torchvision'.
    source: a run or bundle, as `vit_jax.load` gives it.
    to: 'npz', 'bigvision', 'timm', 'hf' or 'torchvision'.

  Returns:
    What their readers compute otherwise than the model does, a line each: usually nothing. How
    to open a lone file of timm's.

  Raises:
    ValueError: if the path exists or has another suffix, or the dialect cannot say the model.
  """
  from vit_jax.convert import translate  # which knows all dialects, and this module

  return translate.write(path, source, to)
