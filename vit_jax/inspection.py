"""`vit inspect`: pictures of what a model looks at, and the arrays behind them."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import analysis, page, pictures, predict
from vit_jax.convert import files
from vit_jax.data import pipeline, show, transforms
from vit_jax.evaluate import inputs
from vit_jax.models import vit

INDEX = 'inspect.json'
PAGE = 1 << 28  # bytes of attention weights that attention.html is made of, at most
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
    source: the path, or pixels (H, W, 3) uint8.
    pixels: as the model takes it.
  """

  name: str
  source: predict.Source
  pixels: np.ndarray


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


def main(argv: Sequence[str]) -> int:
  """`vit inspect`: 0 if all went well, 2 for bad input, 3 if some images could not be read."""
  given = parser().parse_args(argv)
  try:
    lines, failed = inspected(given)
  except (ValueError, OSError) as error:
    print(f'vit inspect: {files.one_line(error)}', file=sys.stderr)
    return 2
  print('\n'.join(lines))
  for line in failed:
    print(f'vit inspect: {line}', file=sys.stderr)
  return 3 if failed else 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit inspect',
    description='Draws what a model looks at: its weights, and what it makes of images.',
    epilog='Exit code: 0; 2 for bad input; 3 if an image could not be read, which is left out.',
  )
  flags.add_argument('model', help="a run's folder, a bundle, or a published checkpoint")
  flags.add_argument(
    'images', nargs='*', help="images, and folders of images; default: of the run's test split"
  )
  flags.add_argument('--out', required=True, help='the folder that gets the pictures and arrays')
  flags.add_argument('--on', default='', help='a data set to take images from')
  flags.add_argument('--split', default='', help='default: test, or without one validation')
  flags.add_argument('--count', type=int, default=8, help='images of a data set; default: 8')
  flags.add_argument('--only', nargs='+', choices=NAMES, default=NAMES, help='default: all')
  flags.add_argument(
    '--label', default='', help='the class of evidence and occlusion; default: the likeliest'
  )
  flags.add_argument(
    '--fusion', choices=tuple(analysis.FUSIONS), default='mean', help='of heads, in the rollout'
  )
  flags.add_argument(
    '--discard', type=float, default=0.0, help='share of smallest weights that rollout leaves out'
  )
  flags.add_argument('--square', type=int, default=0, help='side of the grey square in pixels')
  flags.add_argument('--stride', type=int, default=0, help='pixels from one square to the next')
  return flags


def inspected(given: argparse.Namespace) -> tuple[list[str], list[str]]:
  """Does what the flags ask for: lines about it, and about images that could not be read."""
  check(given)
  run = predict.load(given.model)
  if given.label and given.label not in run.classes:
    raise ValueError(f'--label is {given.label!r}, which is no class of {run.name}')
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
    with show.progress(len(images)) as advance:
      shown = []
      for number, image in enumerate(images):
        shown.append(drawn_of_image(task, image, folder, number))
        advance(1)
    index = {'model': str(given.model), 'pictures': told, 'images': shown, 'left_out': absent}
    (folder / INDEX).write_text(json.dumps(index | {'settings': settings(task)}, indent=1))
  return lines_of(index, given.out), failed


def check(given: argparse.Namespace) -> None:
  """Raises ValueError for flags that do not go together, before anything is computed."""
  analysis.check_rollout(given.fusion, given.discard)
  if given.count < 1:
    raise ValueError(f'--count must be at least 1, got {given.count}')
  if min(given.square, given.stride) < 0:
    raise ValueError('--square and --stride are numbers of pixels')
  if given.images and (given.on or given.split):
    raise ValueError('give images, or a data set by --on and --split, not both')
  out = pathlib.Path(given.out)
  there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
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
  given = task.given
  images: list[Image] = []
  failed: list[str] = []
  for name, read in named_images(given):
    try:
      source = read()
      images.append(Image(name, source, task.run.prepared(source)))
    except (ValueError, OSError) as error:
      told = pipeline.told(error)
      failed.append(told if name in told else f'{name}: {told}')
  return images, failed


Named = Iterator[tuple[str, Callable[[], predict.Source]]]


def named_images(given: argparse.Namespace) -> Named:
  """The names of the images asked for, and how to read each."""
  if given.images:
    for path in predict.image_files(given.images):
      yield path, functools.partial(str, path)
  elif given.on or is_run(given.model):
    yield from of_split(inputs.opened(given.model, on=given.on, split=given.split), given.count)


def is_run(path: str) -> bool:
  """Whether a path is of a run, whose config names data."""
  try:
    inputs.data_of(path)
  except ValueError:
    return False
  return True


def of_split(split: inputs.Split, count: int) -> Named:
  """Images that lie evenly in a split."""

  def pixels(index: int) -> np.ndarray:
    return transforms.pixels(split.source[index]['image'])

  total = len(split.source)
  for index in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist():
    yield split.source.describe(index), functools.partial(pixels, index)


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
  elif getattr(model, 'pool', '') == 'none':
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
  """How many images' attention a page holds."""
  return PAGE // max(weights_size(run), 1)


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
    (folder / 'attention.html').write_text(page_of(task, shown))
    told['page'] = f'every weight of {len(shown)} of {counted(images)}'
  return told


def page_of(task: Task, images: Sequence[Image]) -> str:
  """The text of attention.html."""
  run: Any = task.run
  seen = (page.seen(run, image.source, name=pathlib.Path(image.name).name) for image in images)
  return page.attention(pathlib.Path(task.given.model).name, run.model, seen)


def drawn_of_image(task: Task, image: Image, folder: pathlib.Path, number: int) -> dict[str, Any]:
  """Draws what one image shows, into a folder of its own; what there is to tell about it."""
  name = re.sub(r'[^\w.-]+', '_', pathlib.Path(image.name).stem)[:60]
  own = folder / f'{number:02d}_{name}'
  guesses: list[dict[str, Any]] = []
  if task.run.classes and getattr(task.run.model, 'pool', '') != 'none':
    guesses = task.run.ranked(task.run.forward([image.pixels])['scores'][0], 5)
  told: dict[str, str] = {}
  for kind, drawing in drawings_of_image(task, image, guesses):
    own.mkdir(exist_ok=True)
    told[kind] = written(own, kind, drawing)
  return {'file': image.name, 'folder': own.name, 'predictions': guesses, 'pictures': told}


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
  mean = each.mean(axis=0)
  told = f'mean attention distance over {counted(images)}: {mean.min():.1f} to '
  told += f'{mean.max():.1f} pixels'
  return Drawing(pictures.distances(mean, told), {'distances': mean, 'images': each}, told)


def layers(run: predict.Run, images: Sequence[Image]) -> Drawing:
  found = analysis.layer_similarity(run, [image.pixels for image in images])
  tokens = not hasattr(run.model, 'blocks')
  first = 'embedded' if tokens else 'root'
  names = [first, *(f'{layer}' if tokens else f'stage {layer}' for layer in range(1, len(found)))]
  told = f'linear CKA of {len(found)} layers, patches of {counted(images)}'
  return Drawing(pictures.layers(found, names, told), {'similarity': found}, told)


def of_attention(task: Task, image: Image, seen: analysis.Trace) -> Iterator[tuple[str, Drawing]]:
  """Maps of every head, and their rollout, of one image."""
  given = task.given
  found = analysis.attention_summary(task.run, seen, fusion=given.fusion, discard=given.discard)
  if 'attention' in task.wanted:
    told = 'attention of what the head reads to the patches, each head by its own scale'
    arrays = {'maps': found['maps'], 'distances': found['distances']}
    if seen.pool is not None:
      arrays['pool'] = np.asarray(seen.pool)[:, seen.prefix :].reshape(-1, *seen.grid)
    drawn = pictures.attention(image.pixels, thinned(found['maps']), told)
    yield 'attention', Drawing(drawn, arrays, told)
  if 'rollout' in task.wanted:
    told = f'attention rollout, {given.fusion} of heads, {given.discard:.0%} discarded'
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
    told = f'{task.run.classes[label]}: the logit of each patch by itself'
    drawn = pictures.beside(image.pixels, found, 'logit', told, signed=False)
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
  told = f'{run.classes[label]} {found.score:.1%}: how much a grey square of '
  told += f'{square[0]}x{square[1]} pixels takes of it'
  field = analysis.single(found.field(image.pixels.shape[:2]))
  arrays = {'drop': found.drop, 'tops': found.tops, 'lefts': found.lefts, 'field': field}
  arrays |= {'square': np.array(square), 'score': np.array(found.score), 'label': np.array(label)}
  drawn = pictures.beside(image.pixels, field, 'drop of the score', told, signed=True)
  return Drawing(drawn, arrays, told)


def squares(task: Task) -> tuple[tuple[int, int], tuple[int, int]]:
  """Height and width of the occluding square, and of its step."""
  square, stride = analysis.occlusion_steps(task.run.model, task.run.preprocess.size)
  if task.given.square:
    square = (task.given.square, task.given.square)
  if task.given.stride:
    stride = (task.given.stride, task.given.stride)
  return square, stride


# Files


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to write into, whose files go to `out` when all went well, and are gone otherwise.

  Files of the same names are replaced, others stay.
  """
  beside = out if out.is_dir() else out.absolute().parent
  beside.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.vit-', dir=beside, ignore_cleanup_errors=True) as hold:
    yield pathlib.Path(hold)
    for file in sorted(path for path in pathlib.Path(hold).rglob('*') if path.is_file()):
      place = out / file.relative_to(hold)
      place.parent.mkdir(parents=True, exist_ok=True)
      os.replace(file, place)


def written(folder: pathlib.Path, name: str, drawing: Drawing) -> str:
  """Writes NAME.png and NAME.npz; the line about them."""
  (folder / f'{name}.png').write_bytes(drawing.file)
  files.write_npz(folder / f'{name}.npz', {k: np.asarray(v) for k, v in drawing.arrays.items()})
  return drawing.told


def lines_of(index: Mapping[str, Any], out: str) -> list[str]:
  """What was drawn, and what was not, for people."""
  named = {'page': 'attention.html'}
  lines = [f'{named.get(name, name + ".png")}: {told}' for name, told in index['pictures'].items()]
  for image in index['images']:
    guesses = '  '.join(f'{g["label"]} {g["score"]:.1%}' for g in image['predictions'][:3])
    drawn = ', '.join(image['pictures'])
    lines.append(f'{image["folder"]}: {drawn}' + f'; {guesses}' * bool(guesses))
  reasons: dict[str, list[str]] = {}
  for name, reason in index['left_out'].items():
    reasons.setdefault(reason, []).append(name)
  lines += [f'left out {", ".join(names)}: {reason}' for reason, names in reasons.items()]
  return [*lines, f'pictures and arrays are in {out}']
