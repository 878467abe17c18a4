"""`vit inspect`: pictures of what a model looks at, and the arrays behind them."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import analysis, files, models, predict
from vit_jax.commands import BAD_INPUT, ending, warn
from vit_jax.convert import weights
from vit_jax.evaluate import inputs
from vit_jax.images import transforms
from vit_jax.models import vit
from vit_jax.text import nearest, one_line, progress, reason, si
from vit_jax.views import attention, pictures

INDEX = 'inspect.json'
PAGE = 1 << 28  # bytes of attention weights of an image that attention.html shows, at most
PAGES = 1 << 27  # of all its images; of these a page holds about half
SIDE = 4096  # pixels of a picture's side, about: more tiles are not drawn
DRAWN = {  # of each of these
  'model': ('filters', 'positions'),
  'images': ('distances', 'layers', 'page'),
  'image': ('attention', 'rollout', 'evidence', 'occlusion'),
}
NAMES = tuple(name for names in DRAWN.values() for name in names)
OF_ATTENTION = ('distances', 'page', 'attention', 'rollout')
OF_CLASSES = ('evidence', 'occlusion')


@dataclasses.dataclass(frozen=True)
class Image:
  """One image to look at.

  Fields:
    name: its path, or its place in a split.
    pixels: uint8, as the model takes it.
    label: the name of its class, where a data set tells it.
  """

  name: str
  pixels: np.ndarray
  label: str = ''


@dataclasses.dataclass(frozen=True)
class Task:
  """What is asked for.

  Fields:
    run: the model.
    given: the flags.
    wanted: of NAMES, what is to be drawn and can be.
  """

  run: predict.Run
  given: argparse.Namespace
  wanted: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Drawing:
  """What becomes of one analysis: a picture, the arrays that it shows, and a line about it."""

  file: bytes
  arrays: Mapping[str, np.ndarray]
  told: str


def run(args: argparse.Namespace) -> int:
  """0; 3 if some images could not be read."""
  args.only = args.only or NAMES
  with ending(BAD_INPUT, jax.errors.JaxRuntimeError):
    lines, failed = inspected(args)
  print('\n'.join(lines))
  for line in failed:
    warn('inspect', line)
  return 3 if failed else 0


def inspected(given: argparse.Namespace) -> tuple[list[str], list[str]]:
  """Does what the flags ask for: lines about it, and about images that could not be read."""
  check(given)
  run = predict.load(given.model)
  if not isinstance(run.model, models.Model):
    raise ValueError(f'{given.model} is a {run.name}: only our own models can be looked into')
  if not run.is_finite:
    raise ValueError(f'{given.model} has parameters that are not finite')
  if given.label and given.label not in run.classes:
    near = nearest(given.label, list(run.classes[:SIDE]))
    raise ValueError(f'--label {given.label!r} is no class of {given.model}{near}')
  task = Task(run, given)
  check_squares(task)
  images, failed = chosen(task) if set(given.only) - set(DRAWN['model']) else ([], [])
  absent = {name: why for name, why in left_out(run, images).items() if name in given.only}
  if set(given.only) <= set(absent):
    raise ValueError('; '.join(failed or dict.fromkeys(absent.values())))
  wanted = {name for name in given.only if name not in absent}
  task = dataclasses.replace(task, wanted=frozenset(wanted))
  with staged(pathlib.Path(given.out)) as folder:
    told = drawn_of_model(task, folder) | drawn_of_images(task, images, folder)
    with progress(len(images), unit='images') as advance:
      shown = []
      for number, image in enumerate(images):
        shown.append(drawn_of_image(task, image, folder, number))
        advance(1)
    index = {'model': str(given.model), 'pictures': told, 'images': shown, 'left_out': absent}
    index['settings'] = settings(task)
    (folder / INDEX).write_text(json.dumps(index, indent=1, allow_nan=False))
  return lines_of(index, given.out), failed


def check(given: argparse.Namespace) -> None:
  """Raises ValueError for flags that do not go together, before anything is computed."""
  analysis.check_rollout(given.fusion, given.discard)
  if not given.out:
    raise ValueError('--out is empty, must be a folder')
  if given.count < 1:
    raise ValueError(f'--count must be at least 1, got {given.count}')
  if min(given.square, given.stride) < 0:
    raise ValueError('--square and --stride are numbers of pixels')
  if given.images and (given.on or given.split):
    raise ValueError('give images, or a data set by --on and --split, not both')
  out = pathlib.Path(given.out)
  there = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
  if not there.is_dir() or not os.access(there, os.W_OK):
    raise ValueError(f'--out {given.out} cannot be written')


def check_squares(task: Task) -> None:
  """Raises ValueError for squares that do not fit the model's images."""
  analysis.check_squares(task.run.preprocess.size, *squares(task))


def settings(task: Task) -> dict[str, Any]:
  """What the pictures were made by."""
  square, stride = squares(task)
  given = task.given
  made = {'fusion': given.fusion, 'discard': given.discard, 'label': given.label}
  return made | {'square': square, 'stride': stride}


# Images


def chosen(task: Task) -> tuple[list[Image], list[str]]:
  """The images to look at, and a line for each that cannot be read; none where none are known."""
  images: list[Image] = []
  failed: list[str] = []
  try:
    named = named_images(task.given)
  except (ValueError, OSError) as error:
    if task.given.images or task.given.on or task.given.split:
      raise
    return [], [f"the run's images cannot be read: {one_line(error)}"]
  for name, read in named:
    try:
      source, label = read()
      images.append(Image(name, task.run.prepared(source), label))
    except (ValueError, OSError) as error:
      told = reason(error)
      failed.append(told if name in told else f'{name}: {told}')
  return images, failed


Named = tuple[str, Callable[[], tuple[predict.Source, str]]]


def named_images(given: argparse.Namespace) -> list[Named]:
  """The names of the images asked for, and what reads each and tells its class."""
  for path in given.images:
    if not os.path.lexists(path):
      raise FileNotFoundError(f'{path}: there is no such file')
  if given.images:
    return [(path, functools.partial(of_file, path)) for path in predict.image_files(given.images)]
  if given.on or is_run(given.model):
    return of_split(inputs.open_split(given.model, on=given.on, split=given.split), given.count)
  return []


def of_file(path: str) -> tuple[str, str]:
  """An image whose class is not told."""
  return path, ''


def is_run(path: str) -> bool:
  """Whether a path is of a run, whose config names data."""
  try:
    inputs.data_of(path)
  except ValueError:
    return False
  return True


def of_split(split: inputs.Split, count: int) -> list[Named]:
  """Images that lie evenly in a split."""
  source, total = split.source, len(split.source)

  def read(index: int) -> tuple[np.ndarray, str]:
    record = source[index]
    label = np.asarray(record.get('label', -1))
    name = source.classes[int(label)] if label.ndim == 0 and label >= 0 else ''
    return transforms.as_pixels(record['image']), name

  places = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()
  return [(source.describe(index), functools.partial(read, index)) for index in places]


# What is drawn


def left_out(run: predict.Run, images: Sequence[Image]) -> dict[str, str]:
  """Why something cannot be drawn of a model, by its name."""
  reasons: dict[str, str] = {}

  def leave(names: Sequence[str], reason: str) -> None:
    reasons.update({name: reason for name in names if name not in reasons})

  model = run.model
  if not isinstance(model, vit.ViT):
    leave(('positions',), f'{analysis.family_of(model)} has no position embeddings')
    leave(OF_ATTENTION, f'{analysis.family_of(model)} has no attention')
  elif model.positions == 'none':
    leave(('positions',), 'this ViT has no position embeddings')
  if not run.classes:
    leave(OF_CLASSES, 'the model has no head here, so no classes')
  elif not run.names_images:
    leave(OF_CLASSES, 'with pool none the model names classes of patches, not of an image')
  if not images:
    leave((*DRAWN['images'], *DRAWN['image']), 'there is no image to look at: give some')
  if not shown_in_page(run):
    size = weights_size(run) / 1e9
    leave(('page',), f'one image has {size:.1f} GB of attention weights, too many for a page')
  return reasons


def weights_size(run: predict.Run) -> int:
  """Bytes of all attention weights of an image; 0 without any."""
  model = run.model
  if not isinstance(model, vit.ViT):
    return 0
  rows, columns = analysis.grid_of(model, run.preprocess.size)
  return 4 * model.depth * model.heads * (model.prefix + rows * columns) ** 2


def shown_in_page(run: predict.Run) -> int:
  """How many images' attention a page holds: one that is large, or several that are not."""
  size = max(weights_size(run), 1)
  return min(PAGE // size, max(PAGES // size, 1))


def drawn_of_model(task: Task, folder: pathlib.Path) -> dict[str, str]:
  """Draws what depends on the weights alone; a line about each."""
  drawings = {'filters': filters, 'positions': positions}
  return {
    name: written(folder, name, draw(task.run))
    for name, draw in drawings.items()
    if name in task.wanted
  }


def drawn_of_images(task: Task, images: Sequence[Image], folder: pathlib.Path) -> dict[str, str]:
  """Draws what all images show together; a line about each."""
  drawings = {'distances': distances, 'layers': layers}
  told = {
    name: written(folder, name, draw(task.run, images))
    for name, draw in drawings.items()
    if name in task.wanted
  }
  if 'page' in task.wanted:
    shown = images[: shown_in_page(task.run)]
    size = (folder / 'attention.html').write_text(page_of(task, shown))
    told['page'] = f'every weight of {len(shown)} of {counted(images)}, {si(size)}B'
  return told


def page_of(task: Task, images: Sequence[Image]) -> str:
  """The text of attention.html."""
  run: Any = task.run
  looks = (look(run, image.pixels, named(image)) for image in images)
  return attention.attention(pathlib.Path(task.given.model).name, run.model, looks)


def look(run: predict.Run, image: np.ndarray, name: str, *, top: int = 5) -> attention.Seen:
  """What a model makes of an image (H, W, 3) uint8, as `run.prepared` makes it.

  Raises:
    ValueError: if the model has no attention.
  """
  guesses = run.ranked(run.forward([image])['scores'][0], top) if run.names_images else []
  return attention.Seen(name, image, guesses, analysis.attention(run, image))


def named(image: Image) -> str:
  """An image's name without folders, and its class where that is known."""
  return pathlib.Path(image.name).name + f', {image.label}' * bool(image.label)


def drawn_of_image(task: Task, image: Image, folder: pathlib.Path, number: int) -> dict[str, Any]:
  """Draws what one image shows, into a folder of its own; what there is to tell about it."""
  name = re.sub(r'[^\w.-]+', '_', pathlib.Path(image.name).stem)[:60]
  own = folder / f'{number:02d}_{name}'
  guesses: list[dict[str, Any]] = []
  if task.run.names_images:
    scores = task.run.forward([image.pixels])['scores'][0]
    if not np.isfinite(scores).all():
      raise ValueError(f'the model gives {image.name} scores that are not finite')
    guesses = task.run.ranked(scores, 5)
  told: dict[str, str] = {}
  for kind, drawing in drawings_of_image(task, image, guesses):
    own.mkdir(exist_ok=True)
    told[kind] = written(own, kind, drawing)
  shown = {'file': image.name, 'label': image.label, 'folder': own.name}
  return shown | {'predictions': guesses, 'pictures': told}


def drawings_of_image(
  task: Task, image: Image, guesses: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Drawing]]:
  """Each drawing of one image, with its name."""
  if task.wanted.isdisjoint(DRAWN['image']):
    return
  seen = analysis.trace(task.run, image.pixels)
  if not task.wanted.isdisjoint(('attention', 'rollout')):
    yield from of_attention(task, image, seen)
  if not task.wanted.isdisjoint(OF_CLASSES):
    label = task.run.classes.index(task.given.label or guesses[0]['label'])
    yield from of_classes(task, image, seen, label)


def counted(images: Sequence[Image]) -> str:
  """'1 image' or '2 images'."""
  return f'{len(images)} image{"s" * (len(images) != 1)}'


def filters(run: predict.Run) -> Drawing:
  found = analysis.filters(run.model, run.params)
  rows, columns = found.components.shape[1:3]
  told = (
    f'{len(found.components)} principal components of the {found.count} filters of {rows}x{columns}'
    f' pixels of {found.of}: {found.variance.sum():.1%} of their variance'
  )
  arrays = {'components': found.components, 'variance': found.variance}
  return Drawing(pictures.filters(found.components, told), arrays, told)


def positions(run: predict.Run) -> Drawing:
  found = analysis.position_similarity(run.model, run.params, run.preprocess.size)
  rows, columns = found.patches.shape[:2]
  told = f'cosine similarity of {found.of}, {rows}x{columns} patches'
  arrays = {'patches': found.patches, 'prefix': found.prefix}
  return Drawing(pictures.positions(found.patches, told), arrays, told)


def distances(run: predict.Run, images: Sequence[Image]) -> Drawing:
  each = np.stack([
    analysis.attention_summary(run, analysis.trace(run, image.pixels))['distances']
    for image in images
  ])  # fmt: skip
  seen = np.isfinite(each)  # a head may read no patch of an image
  mean = np.where(seen, each, 0).sum(axis=0) / np.where(seen.any(axis=0), seen.sum(axis=0), np.nan)
  told = f'mean attention distance over {counted(images)}'
  if seen.any():
    told += f': {np.nanmin(mean):.1f} to {np.nanmax(mean):.1f} pixels'
  return Drawing(pictures.distances(mean, told), {'distances': mean, 'images': each}, told)


def layers(run: predict.Run, images: Sequence[Image]) -> Drawing:
  found = analysis.layer_similarity(run, [image.pixels for image in images])
  tokens = not hasattr(run.model, 'blocks')
  first = 'embedded' if tokens else 'root'
  names = [first, *(f'{layer}' if tokens else f'stage {layer}' for layer in range(1, len(found)))]
  layers = f'the embedding and {len(found) - 1} layers' if tokens else f'{len(found)} stages'
  told = f'linear CKA of {layers}, patches of {counted(images)}'
  return Drawing(pictures.layers(found, names, told), {'similarity': found}, told)


def of_attention(task: Task, image: Image, seen: analysis.Trace) -> Iterator[tuple[str, Drawing]]:
  """Maps of every head, and their rollout, of one image."""
  given = task.given
  found = analysis.attention_summary(task.run, seen, fusion=given.fusion, discard=given.discard)
  if 'attention' in task.wanted:
    told = 'attention from what the classifier reads to each patch, each map by its own scale'
    arrays = {'maps': found['maps'], 'distances': found['distances']}
    if seen.pool is not None:
      arrays['pool'] = np.asarray(seen.pool)[:, seen.prefix :].reshape(-1, *seen.grid)
    drawn = pictures.attention(image.pixels, thinned(found['maps']), told)
    yield 'attention', Drawing(drawn, arrays, told)
  if 'rollout' in task.wanted:
    told = f'attention rollout, {given.fusion} of heads, each layer by its own scale'
    told += f', smallest {given.discard:.0%} of weights discarded' * bool(given.discard)
    drawn = pictures.rollout(image.pixels, found['rollout'], told)
    yield 'rollout', Drawing(drawn, {'rollout': found['rollout']}, told)


def thinned(maps: np.ndarray) -> np.ndarray:
  """Maps (L, A, R, C), or every second, third ... row and column, as a picture has room for."""
  step = 1
  while max(maps.shape[0] * maps.shape[2], maps.shape[1] * maps.shape[3]) / step > SIDE:
    step += 1
  return maps[:, :, ::step, ::step]


def of_classes(
  task: Task, image: Image, seen: analysis.Trace, label: int
) -> Iterator[tuple[str, Drawing]]:
  """Where in one image a class comes from."""
  if 'evidence' in task.wanted:
    found = analysis.evidence(task.run, seen, [label])[..., 0]  # (R, C)
    told = f'evidence of {task.run.classes[label]}: the logit of each patch by itself'
    told += ', read in the place of the class token' * (
      getattr(task.run.model, 'pool', '') == 'token'
    )
    told += f', {found.min():.2f} to {found.max():.2f}'
    drawn = pictures.beside(image.pixels, found - found.mean(), 'logit, less its mean', told, 0.5)
    yield 'evidence', Drawing(drawn, {'logits': found, 'label': np.array(label)}, told)
  if 'occlusion' in task.wanted:
    yield 'occlusion', occlusion(task, image, label)


def occlusion(task: Task, image: Image, label: int) -> Drawing:
  run, (square, stride) = task.run, squares(task)
  found = analysis.occlusion(
    lambda hidden: run.forward(hidden)['scores'],
    image.pixels,
    label,
    square=square,
    stride=stride,
    grey=analysis.grey_of(run.preprocess),
  )
  told = f'occlusion of {run.classes[label]}, {found.score:.1%}: a grey square of '
  told += f'{square[0]}x{square[1]} pixels takes {100 * found.drop.max():.2g} points at most'
  field = analysis.single(found.field(image.pixels.shape[:2]))
  arrays = {'drop': found.drop, 'tops': found.tops, 'lefts': found.lefts, 'field': field}
  arrays |= {'square': np.array(square), 'score': np.array(found.score), 'label': np.array(label)}
  drawn = pictures.beside(image.pixels, 100 * field, 'drop of the score (points)', told, 5)
  return Drawing(drawn, arrays, told)


def squares(task: Task) -> tuple[tuple[int, int], tuple[int, int]]:
  """Height and width of the occluding square, and of its step."""
  size = task.run.preprocess.size
  square, stride = analysis.occlusion_steps(task.run.model, size)
  if task.given.square:
    square = (task.given.square, task.given.square)
  if task.given.stride:
    stride = (min(task.given.stride, size[0]), min(task.given.stride, size[1]))
  return square, stride


# Files


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to write into, whose files go to `out` when all went well, and are gone otherwise.

  Files of the same names are replaced. Where there are images among the new files, the pictures of
  images that `out` has of an earlier command are removed. Others stay.
  """
  beside = out if out.is_dir() else out.absolute().parent
  beside.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.vit-', dir=beside, ignore_cleanup_errors=True) as hold:
    yield pathlib.Path(hold)
    new = [path.relative_to(hold) for path in pathlib.Path(hold).rglob('*') if path.is_file()]
    for place in (out / file for file in new):
      if place.is_dir() or (os.path.lexists(place.parent) and not place.parent.is_dir()):
        raise ValueError(f'{place} cannot be written: another file or folder is in the way')
    if any(len(file.parts) > 1 for file in new):
      remove_images(out)
    for file in sorted(new, key=lambda file: file.name == INDEX):  # which tells of the others last
      (out / file).parent.mkdir(parents=True, exist_ok=True)
      os.replace(hold / file, out / file)


def remove_images(out: pathlib.Path) -> None:
  """Removes the pictures of images that an earlier command's index in `out` tells of."""
  with contextlib.suppress(ValueError, OSError, TypeError, KeyError):
    for image in files.read_object(out / INDEX)['images']:
      folder = out / pathlib.Path(image['folder']).name
      for kind in DRAWN['image']:
        for suffix in ('png', 'npz'):
          (folder / f'{kind}.{suffix}').unlink(missing_ok=True)
      with contextlib.suppress(OSError):  # what somebody else put there stays
        folder.rmdir()


def written(folder: pathlib.Path, name: str, drawing: Drawing) -> str:
  """Writes NAME.png and NAME.npz; the line about them."""
  (folder / f'{name}.png').write_bytes(drawing.file)
  weights.write_npz(folder / f'{name}.npz', {k: np.asarray(v) for k, v in drawing.arrays.items()})
  return drawing.told


def lines_of(index: Mapping[str, Any], out: str) -> list[str]:
  """What was drawn, and what was not, for people."""
  named = {'page': 'attention.html'}
  lines = [f'{named.get(name, name + ".png")}: {told}' for name, told in index['pictures'].items()]
  for image in index['images']:
    guesses = '  '.join(f'{g["label"]} {g["score"]:.1%}' for g in image['predictions'][:3])
    parts = [', '.join(image['pictures']), f'is {image["label"]}' * bool(image['label']), guesses]
    lines.append(f'{image["folder"]}: {"; ".join(filter(None, parts))}')
  reasons: dict[str, list[str]] = {}
  for name, cause in index['left_out'].items():
    reasons.setdefault(cause, []).append(name)
  lines += [f'left out {", ".join(names)}: {cause}' for cause, names in reasons.items()]
  return [*lines, f'pictures and arrays are in {out}']
