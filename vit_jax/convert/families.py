"""Whose checkpoint a file is: the families of dialects, and `read`, which recognises them."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from vit_jax import files
from vit_jax.convert import (
  aimv2,
  architecture,
  beit,
  bundles,
  decoders,
  engine,
  google,
  huggingface,
  kinds,
  published,
  runs,
  timm,
  torchvision,
  weights,
)
from vit_jax.convert.engine import Arrays, Checkpoint, Declared, Family
from vit_jax.convert.preprocess import crop_steps, fit_levels, whole_patches
from vit_jax.models.decoder import TrainedDecoder
from vit_jax.text import one_line, quantity

FAMILIES: tuple[Family, ...] = (
  *google.FAMILIES,
  *beit.FAMILIES,
  *huggingface.FAMILIES,
  *aimv2.FAMILIES,
  *torchvision.FAMILIES,
  *timm.FAMILIES,
)
OUR_NAMES = {  # one that every checkpoint of ours has
  'ViT': 'encoder/blocks/attention/query/kernel',
  'Mixer': 'encoder/blocks/tokens/up/kernel',
  'BiT': 'stage1/unit1/conv1/kernel',
}
WRAPPERS = (*google.WRAPPERS, *timm.WRAPPERS)
CONFIGS = {  # JSON files beside weights: where `configuration` has what they say
  'config.json': '',
  'preprocessor_config.json': 'preprocessor',
  'processor_config.json': '',
  'open_clip_config.json': '',
}
OTHER_FILES = {  # where the fields below these keys are, if not in config.json
  'preprocessor': 'preprocessor_config.json: ',
  'model_cfg': 'open_clip_config.json: model_cfg.',
  'preprocess_cfg': 'open_clip_config.json: preprocess_cfg.',
}
Size = tuple[int, int]


def read(
  path: str | os.PathLike[str],
  *,
  checkpoint: str = '',
  heads: int | None = None,
  image_size: Size | None = None,
) -> Checkpoint:
  """A checkpoint of any dialect, recognised by its names; nothing in it is executed.

  Args:
    path: of a run or bundle of ours, or of a step in a run's checkpoints; of a .npz, .safetensors
      or PyTorch file, an Orbax folder, or a folder as Hugging Face, timm or open_clip write it,
      with its configuration; or the URL of a file, which is fetched once.
    checkpoint: which state of a run, see `runs.read`.
    heads: attention heads, where neither a file in torch's names nor JSON beside it tells them;
      None takes those of the published model of that size.
    image_size: (height, width) in pixels that a table of positions is for which is of no square.

  Raises:
    FileNotFoundError: one that says what is missing.
    ValueError: one line, if it cannot be read, or its names are no dialect's, or it is not what
      the JSON beside it says.
  """
  text = os.fspath(path)
  path = published.fetched(text) if '://' in text else pathlib.Path(text)
  try:
    run, step = runs.of_step(path)
    if runs.is_run(run):
      return runs.read(run, checkpoint or step)
    if checkpoint:
      raise ValueError(f'{path} is not the folder of a run: it has no checkpoint {checkpoint!r}')
    folder = bundles.folder_of(path)
    return read_dialect(path, heads, image_size) if folder is None else bundles.read(folder)
  except FileNotFoundError as error:
    raise FileNotFoundError(one_line(bundles.missing(path) or error)) from None
  except OSError as error:
    raise ValueError(one_line(f'{path}: {error.strerror}')) from None


def read_dialect(path: pathlib.Path, heads: int | None, image_size: Size | None) -> Checkpoint:
  """The checkpoint in files that are no bundle of ours; see `read`."""
  arrays = weights.read(path)
  try:
    try:
      return recognised(str(path), arrays, configuration(path), heads, image_size)
    except ValueError as error:
      if not others(path):
        raise
      # Beside several weight files, JSON that does not fit this one is of another
      ignored = f'the JSON beside it is ignored, as it does not fit: {one_line(error)}'
    checkpoint = recognised(str(path), arrays, {}, heads, image_size)
    return dataclasses.replace(checkpoint, notes=(ignored, *checkpoint.notes))
  except ValueError as error:
    raise ValueError(f'{one_line(path)}: {one_line(error)}') from None


def recognised(
  path: str, arrays: Arrays, config: dict[str, Any], heads: int | None, image_size: Size | None
) -> Checkpoint:
  """The checkpoint that arrays in any dialect's names are."""
  for model, sign in OUR_NAMES.items():
    if sign in arrays:
      return without_description(path, model, arrays, image_size)
  if (match := unwrapped(without_insertions(arrays))) is None:
    if isinstance(name := config.get('architecture'), str):
      timm.constructor({'architecture': name})  # refuses by name what no model here computes
    names = ', '.join(sorted(arrays)[:3])
    raise ValueError(f'{len(arrays)} arrays ({names}, ...) with the names of no known ViT')
  family, theirs, outside = match
  config = checked(family, config)
  declared = family.declared(config)
  used, dropped = split_dropped(family, theirs)
  tidied = engine.renamed(family.tidy(used), family.renames)
  heads = declared_heads(declared, tidied, family) or heads or published_heads(family, tidied)
  pool_heads = declared.get('pool_heads', ('', None))[1]
  ours, faults = engine.to_ours(family.table, tidied, heads, pool_heads=pool_heads)
  faults = faults.respelled(engine.spelling(tidied, arrays))
  check_promises(family, tidied, ours, config, arrays, faults)
  details = family.details(tidied, ours, config)
  preprocess = family.preprocess(config)
  sizes = likely_sizes(
    ours, image_size, preprocess.get('size'), declared.get('size', ('', None))[1]
  )
  ours = architecture.fold_registers(ours, sizes)
  fields = infer_fields(family, ours, details, sizes, faults)
  check_declared(declared, fields, family.contradictions(ours, config))
  size = architecture.image_size(fields, ours, sizes)
  file = pathlib.PurePath(path).name
  published, notes = family.published(ours, file)
  decoder, decoder_notes = read_decoder(family, theirs, config, fields, size)
  preprocess, level_notes = fit_levels(preprocess | published, engine.channels(ours))
  return Checkpoint(
    path=path,
    dialect=family.dialect,
    name=architecture.variant(family.model, fields),
    fields=fields,
    arrays=ours,
    size=size,
    classes=class_names(config, fields),
    scores=scores_of(config),
    preprocess=prepared(preprocess, size, fields.get('patch')),
    resample=family.resample_of(config, file) or family.resample,
    notes=(*notes, *level_notes, *decoder_notes),
    renamed=sum(name not in ours or name not in arrays for name in used),
    dropped=(*outside, *(n for n in dropped if not (decoder and n.startswith('decoder.')))),
    faults=faults,
    decoder=decoder,
  )


def read_decoder(
  family: Family, theirs: Arrays, config: dict[str, Any], fields: dict[str, Any], size: Size
) -> tuple[TrainedDecoder | None, tuple[str, ...]]:
  """The decoder beside an encoder, if it is one that we have, and else a line on why not."""
  if 'patch' not in fields:
    return None, ()
  grid = size[0] // fields['patch'][0], size[1] // fields['patch'][1]
  try:
    return family.decoder(theirs, config, fields, grid), ()
  except ValueError as error:
    return None, (f'its decoder is left out: {one_line(error)}',)


def infer_fields(
  family: Family, ours: Arrays, details: dict[str, Any], sizes: list[Size], faults: engine.Faults
) -> dict[str, Any]:
  """Fields of the model; a ValueError, if arrays that show them are missing, names all faults."""
  try:
    return architecture.infer(family.model, ours, details, sizes)
  except ValueError as error:
    raise ValueError(f'{error}; {faults}' if faults else f'{error}') from None


def checked(family: Family, config: dict[str, Any]) -> dict[str, Any]:
  """What the family reads of a configuration, its tower's fields too; null says nothing.

  Raises ValueError that names every field with a wrong value.
  """
  values = stated({key: value for key, value in config.items() if key in family.fields})
  wrong = [
    line
    for key in values
    for line in (
      kinds.misfits(family.fields[key], values[key], OTHER_FILES[key])
      if key in OTHER_FILES and isinstance(values[key], dict)
      else kinds.misfits({key: family.fields[key]}, values, 'config.json: ')
    )
  ]
  where, inner = 'config.json: ', stated(config)
  for key in family.locate(config):
    if faults := list(kinds.misfits({key: {}}, inner, where)):  # no object
      raise ValueError(faults[0])
    inner, where = inner[key], f'{where}{key}.'
  tower = {key: value for key, value in inner.items() if key in family.tower}
  wrong += kinds.misfits(family.tower, tower, where)
  if wrong:
    raise ValueError('; '.join(wrong))
  return values | tower


def stated(config: files.JSON) -> files.JSON:
  """JSON without the fields that are null."""
  if isinstance(config, dict):
    return {key: stated(value) for key, value in config.items() if value is not None}
  return config


def split_dropped(family: Family, theirs: Arrays) -> tuple[Arrays, list[str]]:
  """The arrays that the family has a use for, and the names of the others."""
  dropped = [
    name
    for name, array in theirs.items()
    if not array.size or any(re.fullmatch(drop, name) for drop in family.drops)
  ]
  unread = {*dropped}
  return {name: array for name, array in theirs.items() if name not in unread}, dropped


def check_promises(
  family: Family,
  theirs: Arrays,
  ours: Arrays,
  config: dict[str, Any],
  arrays: Arrays,
  faults: engine.Faults,
) -> None:
  """Raises ValueError with all faults if a file lacks what its kind, or its JSON, says it has."""
  layers = [len(a) for name, a in ours.items() if name.startswith('encoder/blocks/')]
  depth = family.declared(config).get('depth', ('', 0))[1]
  absent = engine.lacking(
    family.table, theirs, family.promises(theirs, ours, config), max(depth, *layers, 0)
  )
  spelling = engine.spelling(theirs, arrays)
  named = [engine.in_file(name, spelling) for name in absent]
  if new := [name for name in named if name not in faults.missing]:
    faults.missing.extend(new)
    raise ValueError(f'{faults}')


def check_declared(
  declared: Declared, fields: dict[str, Any], contradictions: Iterable[str]
) -> None:
  """Raises ValueError for all in which the arrays are not what the JSON says."""
  wrong = [
    f'{where} is {value}, but the arrays have {fields[field]}'
    for field, (where, value) in declared.items()
    if field not in ('heads', 'size', 'num_classes') and value != fields.get(field, value)
  ]
  wrong += contradictions
  where, count = declared.get('num_classes', ('', 0))
  if count and count != fields['num_classes']:
    actual = quantity(fields['num_classes'], 'class') if fields['num_classes'] else 'no classes'
    wrong.append(f'{where} is {count}, but the head has {actual}')
  if wrong:
    raise ValueError('; '.join(wrong))


def likely_sizes(
  ours: Arrays, hint: Size | None, preprocessed: Size | None = None, declared: Size | None = None
) -> list[Size]:
  """Sizes of images that positions may be for; `hint` counts only where they are no square."""
  hint = None if architecture.may_be_square(ours) else hint
  pair = (declared, preprocessed) if 'positions' in ours else (preprocessed, declared)
  return [size for size in (*pair, hint) if size]


def prepared(fields: dict[str, Any], size: Size, patch: Size | None = None) -> dict[str, Any]:
  """Fields of `bundle.Preprocess`: a fraction of the image and a method become the steps.

  Images that do not divide into patches are cut to the `size` that those cover.
  """
  if 'fraction' in fields:
    steps = crop_steps(fields.get('size', size), fields['fraction'], fields['method'])
    fields = {name: fields[name] for name in fields.keys() - {'fraction', 'method'}}
    fields |= {'steps': steps}
  if patch and 'size' in fields:
    whole = tuple(side // part * part for side, part in zip(fields['size'], patch))
    if whole == size != fields['size']:  # as SigLIP's patches of 14 pixels on images of 384
      return fields | {'steps': whole_patches(fields['steps'], fields['size'], size), 'size': size}
  return fields


def without_description(
  path: str, model: str, arrays: Arrays, image_size: Size | None
) -> Checkpoint:
  """The checkpoint that arrays in our names are by themselves: the rest has its default."""
  arrays = {name: np.array(array, np.float32) for name, array in arrays.items()}
  arrays, decoder = decoders.split(arrays)
  sizes = likely_sizes(arrays, image_size)
  fields = architecture.infer(model, arrays, {}, sizes)
  size = architecture.image_size(fields, arrays, sizes)
  classes = class_names({}, fields)
  name = architecture.variant(model, fields)
  preprocess, _ = fit_levels({}, engine.channels(arrays))
  dropped = tuple(decoders.PREFIX + name for name in decoder)
  return Checkpoint(
    path, 'vit_jax', name, fields, arrays, size, classes, preprocess, dropped=dropped
  )


# What torch.compile, FSDP and activation checkpointing put into names, at any depth.
INSERTIONS = r'(?<![^./])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[./]'


def without_insertions(arrays: Arrays) -> Arrays:
  """The arrays under the names that they had before they were compiled, sharded or chunked.

  DINOv2 numbers its blocks 'blocks.CHUNK.LAYER' where FSDP wraps them in chunks.
  """
  names = {name: re.sub(INSERTIONS, '', name) for name in arrays}
  chunk = re.compile(r'(?<![^./])blocks\.(\d+)\.(\d+)\.')
  pairs = {(int(m[1]), int(m[2])) for name in names.values() for m in chunk.finditer(name)}
  layers = {pair: layer for layer, pair in enumerate(sorted(pairs))}
  return {
    chunk.sub(lambda m: f'blocks.{layers[int(m[1]), int(m[2])]}.', new): arrays[name]
    for name, new in names.items()
  }


def unwrapped(arrays: Arrays) -> tuple[Family, Arrays, list[str]] | None:
  """The family whose signs the names bear, its arrays without what wraps their names, the others.

  Of what stands round the names, such as an optimizer's state or a text tower, only the names of
  what is left out are returned. What wraps them is one of WRAPPERS, or whatever the one model in
  the file has before all its names.

  Raises ValueError if several models have nothing of WRAPPERS before their names.
  """
  for family in FAMILIES:
    if bears(family, arrays):
      return family, arrays, []
  for wrapper in WRAPPERS:
    inside = within(wrapper, arrays)
    if inside and (match := unwrapped(inside)):
      family, theirs, others = match
      outside = [name for name in arrays if not name.startswith(wrapper)]
      return family, theirs, outside + [wrapper + name for name in others]
  return prefixed(arrays)


def within(prefix: str, arrays: Arrays) -> Arrays:
  """The arrays whose names have the prefix, without it."""
  return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def prefixed(arrays: Arrays) -> tuple[Family, Arrays, list[str]] | None:
  """As `unwrapped`, of arrays with any prefix that only one model has."""
  matches: dict[str, Family] = {}
  for family in FAMILIES:
    pattern = re.compile(rf'(.*?[./]){family.signs[0]}')
    prefixes = {match[1] for name in arrays if (match := pattern.fullmatch(name))}
    for prefix in sorted(prefixes - matches.keys()):
      if bears(family, within(prefix, arrays)):
        matches[prefix] = family
  if len(matches) > 1:
    names = ', '.join(f'{prefix}*' for prefix in sorted(matches))
    raise ValueError(f'it holds several models, {names}: save one of them')
  for prefix, family in matches.items():
    outside = [name for name in arrays if not name.startswith(prefix)]
    return family, within(prefix, arrays), outside
  return None


def bears(family: Family, arrays: Arrays) -> bool:
  """Whether some name matches each of the family's signs, and none one that begins with '!'.

  Shapes must fit too.
  """
  signs = all(
    any(re.fullmatch(sign.removeprefix('!'), name) for name in arrays) != sign.startswith('!')
    for sign in family.signs
  )
  return signs and family.fits(arrays)


def declared_heads(declared: Declared, theirs: Arrays, family: Family) -> int | None:
  """The heads that the JSON declares; ValueError if they do not divide the width."""
  if 'heads' not in declared:
    return None
  where, heads = declared['heads']
  width = patch_width(family, theirs)
  if width and 'width' in declared:
    check_declared({'width': declared['width']}, {'width': width}, ())
  if width and width % heads:
    raise ValueError(f'{where} is {heads}, which does not divide the width {width}')
  return int(heads)


def published_heads(family: Family, theirs: Arrays) -> int:
  """Attention heads of the published model of that size."""
  width = patch_width(family, theirs)
  if not width or family.model != 'ViT':
    return 1
  if family.head_width:
    return max(width // family.head_width, 1)
  names = {row.ours: row for row in family.table}
  norms = engine.counted(names['encoder/blocks/norm1/scale'], theirs)
  depth = max(norms.values(), default=0)
  gated = any(re.search(r'mlp\.(fc1_g|gate_proj)\.', name) for name in theirs)
  return architecture.heads(width, depth, gated=gated)


def patch_width(family: Family, theirs: Arrays) -> int:
  """Channels of the patch kernel in torch's form; 0 without one."""
  names = (row.theirs for row in family.table if row.ours == 'embed/kernel')
  kernel = theirs.get(next(names, ''))
  return kernel.shape[0] if kernel is not None and kernel.ndim else 0


def others(path: pathlib.Path) -> bool:
  """Whether the JSON beside a weight file may be of another one: several are there."""
  if path.is_dir() or path.name in weights.FILES or not path.parent.is_dir():
    return False
  return any(file.suffix in weights.WEIGHTS and file != path for file in path.parent.iterdir())


def configuration(path: pathlib.Path) -> dict[str, Any]:
  """What the JSON files in a folder, or beside a weight file, say: see CONFIGS."""
  folder = path if path.is_dir() else path.parent
  config: dict[str, Any] = {}
  for name, key in CONFIGS.items():
    if (folder / name).is_file():
      values = files.read_object(folder / name)
      config |= {key: values} if key else values
  if isinstance(config.get('image_processor'), dict):  # of processor_config.json
    config['preprocessor'] = config['image_processor']
  return config


def scores_of(config: dict[str, Any]) -> str:
  """What logits become: a softmax, unless transformers' configuration says otherwise."""
  return kinds.PROBLEMS[config.get('problem_type', 'single_label_classification')]


def class_names(config: dict[str, Any], fields: dict[str, Any]) -> tuple[str, ...]:
  """Names of the labels that the configuration has; their numbers without any.

  A head without bias is no classifier, but a projection.
  """
  count = fields['num_classes']
  numbers = tuple(map(str, range(count)))
  keys = ('id2label', 'label_names', 'labels')  # the last as timm had it first
  nested = config.get('pretrained_cfg', {})
  config = config if any(key in config for key in keys) else nested
  key = next((key for key in keys if key in config), '')
  where = f'config.json: {"pretrained_cfg." * (config is nested)}{key}'
  named = config.get(key, {})
  if not named or not count or fields['head_bias'] is None:
    return numbers
  if len(named) != count:
    raise ValueError(f'{where} has {quantity(len(named), "name")} for {quantity(count, "class")}')
  if isinstance(named, dict) and (lacking := [k for k in numbers if k not in named]):
    raise ValueError(f'{where} names no label {lacking[0]}')
  labels = [named[k] for k in numbers] if isinstance(named, dict) else [*named]
  if labels == [f'LABEL_{k}' for k in numbers]:  # transformers' word for no name
    return numbers
  return tuple(labels)
