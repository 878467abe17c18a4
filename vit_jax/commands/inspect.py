"""`vit inspect`: pictures of what a model looks at, and the arrays behind them."""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import analysis, files, models, predict
from vit_jax.commands import BAD_INPUT, ending, warn
from vit_jax.convert import weights
from vit_jax.evaluate import faithfulness, inputs, reconstruct
from vit_jax.evaluate.predictions import Prediction
from vit_jax.images import transforms
from vit_jax.images.decoding import omitted_channels
from vit_jax.models import vit
from vit_jax.sources import loose
from vit_jax.text import (
  nearest,
  one_line,
  progress,
  quantity,
  reason,
  si,
  to_stdout,
  without_folders,
)
from vit_jax.views import attention, look, pictures

INDEX = 'inspect.json'
HELD = 1 << 33  # bytes of attention weights of an image that are computed for attention.html
PAGE = 1 << 28  # bytes of attention weights of an image that attention.html shows, at most
PAGES = 1 << 27  # of all its images; of these a page holds about half
SHARP = 672  # pixels of a side of an image in attention.html, at most
SIDE = 4096  # pixels of a picture's side, about: more tiles are not drawn
KINDS = {  # of each of these
  'model': ('filters', 'positions'),
  'images': ('distances', 'layers', 'pca', 'reconstruction', 'page'),
  'image': ('attention', 'rollout', 'evidence', 'occlusion'),
}
NAMES = tuple(name for names in KINDS.values() for name in names)
ATTENTION_KINDS = ('distances', 'page', 'attention', 'rollout')
CLASS_KINDS = ('evidence', 'occlusion')
MAPS: dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = {  # what explains, of arrays
  'attention': lambda arrays: arrays['maps'][-1].mean(axis=0),
  'rollout': lambda arrays: arrays['rollout'][-1],
  'evidence': lambda arrays: arrays['logits'],
  'occlusion': lambda arrays: arrays['field'],
}

Sides = tuple[int, int]  # height and width in pixels


@dataclasses.dataclass(frozen=True)
class Image:
  """One image to look at."""

  name: str  # its path, or its place in a split
  pixels: np.ndarray  # uint8, as the model takes it
  label: str = ''  # the name of its class, where a data set tells it
  sharp: np.ndarray | None = None  # the same view with more of its file's pixels, for a page


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for."""

  run: predict.Run
  args: argparse.Namespace
  square: Sides  # of the occluding square,
  stride: Sides  # and of its step
  wanted: frozenset[str] = frozenset()  # the kinds among NAMES to draw
  shuffled: predict.Run | None = None  # with shuffled weights, where faithfulness is measured


@dataclasses.dataclass(frozen=True)
class Drawing:
  """What becomes of one analysis: a picture, the arrays that it shows, and a line about it."""

  draw: Callable[[], bytes]  # the picture's file
  arrays: Mapping[str, np.ndarray]
  title: str


def run(args: argparse.Namespace) -> int:
  """0; 3 if some images could not be read."""
  with ending(BAD_INPUT, jax.errors.JaxRuntimeError):
    lines, failed = draw_all(args)
  to_stdout(*lines)
  for line in failed:
    warn('inspect', line)
  return 3 if failed else 0


def draw_all(args: argparse.Namespace) -> tuple[list[str], list[str]]:
  """Draws what the flags ask for: lines about it, and about images that could not be read."""
  check(args)
  run = predict.load(args.model, args.checkpoint)
  if not isinstance(run.model, models.Model):
    raise ValueError(f'{args.model} is a {run.name}: only our own models can be looked into')
  if line := run.not_finite:
    raise ValueError(f'{args.model}: {line}')
  if args.label and args.label not in run.classes:
    near = nearest(args.label, list(run.classes[:SIDE]))
    raise ValueError(f'--label {args.label!r} is no class of {args.model}{near}')
  args.only = args.only or usual_names(run)
  request = Request(run, args, *squares(run, args))
  images, failed = load_images(request) if set(args.only) - set(KINDS['model']) else ([], [])
  absent = {name: reason for name, reason in exclusions(run, images).items() if name in args.only}
  if set(args.only) <= set(absent):
    raise ValueError('; '.join(failed or dict.fromkeys(absent.values())))
  wanted = {name for name in args.only if name not in absent}
  request = dataclasses.replace(request, wanted=frozenset(wanted))
  if args.faithfulness == 'on' and run.names_images and wanted.intersection(KINDS['image']):
    shuffled = dataclasses.replace(run, params=faithfulness.shuffle(run.params))
    request = dataclasses.replace(request, shuffled=shuffled)
  with staged(pathlib.Path(args.out)) as folder:
    with progress(len(images), unit='images') as advance:
      shown = []
      for number, image in enumerate(images):
        shown.append(draw_image(request, image, folder, number))
        advance(1)
    lines = draw_overview(request, images, folder, shown)
    index = {
      'model': without_folders(args.model),
      'pictures': lines,
      'images': shown,
      'left_out': absent,
    }
    settings = {'fusion': args.fusion, 'discard': args.discard, 'label': args.label}
    index['settings'] = settings | {'square': request.square, 'stride': request.stride}
    files.write_json(folder / INDEX, index)
    (folder / 'index.html').write_text(look.index(index), 'utf-8')
  return describe(index, args.out), failed


def usual_names(run: predict.Run) -> tuple[str, ...]:
  """What is drawn of a model where nobody says; what it fills in, of a masked autoencoder alone."""
  return tuple(name for name in NAMES if name != 'reconstruction' or run.decoder)


def check(args: argparse.Namespace) -> None:
  """Raises ValueError for flags that do not go together, before anything is computed."""
  analysis.check_rollout(args.fusion, args.discard)
  if not args.out:
    raise ValueError('--out is empty, must be a folder')
  if args.count < 1:
    raise ValueError(f'--count must be at least 1, got {args.count}')
  if min(args.square, args.stride) < 0:
    raise ValueError('--square and --stride are numbers of pixels')
  if args.images and (args.on or args.split):
    raise ValueError('give images, or a data set by --on and --split, not both')
  out = pathlib.Path(args.out)
  existing = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
  if not existing.is_dir() or not os.access(existing, os.W_OK):
    raise ValueError(f'--out {args.out} cannot be written')


# Images


def load_images(request: Request) -> tuple[list[Image], list[str]]:
  """The images to look at, and a line for each that cannot be read."""
  images: list[Image] = []
  failed: list[str] = []
  try:
    sources = named_images(request.args, request.run.preprocess.channels)
  except (ValueError, OSError) as error:
    if request.args.images or request.args.on or request.args.split:
      raise
    return [], [f"the run's images cannot be read: {one_line(error)}"]
  for name, read in sources:
    try:
      source, label = read()
      pixels = request.run.prepared(source)
      paged = 'page' in request.args.only and len(images) < shown_in_page(request.run)
      images.append(Image(name, pixels, label, sharper(request.run, source) if paged else None))
    except (ValueError, OSError) as error:
      message = reason(error)
      failed.append(message if name in message else f'{name}: {message}')
  return images, failed


def sharper(run: predict.Run, source: loose.Image) -> np.ndarray | None:
  """An image as the model takes it but with more of its own pixels: about SHARP on a side.

  None where it has no more, or the preprocessing names pixels, so that it is of one size alone.
  """
  preprocess = run.preprocess
  original = loose.only(source).pixels(preprocess.channels)
  factor = min(
    SHARP // max(preprocess.size),
    *(pixels // side for pixels, side in zip(original.shape, preprocess.size)),
  )
  if factor < 2 or re.search(r'\(\s*\d', preprocess.steps):
    return None
  size = factor * preprocess.size[0], factor * preprocess.size[1]
  larger = dataclasses.replace(preprocess, size=size)
  return np.ascontiguousarray(larger.transform(original, np.random.default_rng(0)))


Named = tuple[str, Callable[[], tuple[loose.Image, str]]]


def named_images(args: argparse.Namespace, channels: int) -> list[Named]:
  """The names of the images asked for, and what reads each and tells its class."""
  for path in args.images:
    if not os.path.lexists(path):
      raise FileNotFoundError(f'{path}: there is no such file')
  if args.images:
    paths = loose.image_files(args.images)
    return [(path, functools.partial(without_label, path)) for path in paths]
  if args.on or is_run(args.model):
    split = inputs.open_split(args.model, on=args.on, split=args.split)
    return evenly_spaced(split, args.count, channels)
  return []


def without_label(path: str) -> tuple[str, str]:
  """An image without a label."""
  return path, ''


def is_run(path: str) -> bool:
  """Whether a path is of a run, whose config names data."""
  try:
    inputs.data_of(path)
  except ValueError:
    return False
  return True


def evenly_spaced(split: inputs.Split, count: int, channels: int = 3) -> list[Named]:
  """Images that lie evenly in a split, of the channels that the model takes."""
  source, total = split.source, len(split.source)

  def read(index: int) -> tuple[np.ndarray, str]:
    record = source[index]
    label = np.asarray(record.get('label', -1))
    name = source.classes[int(label)] if label.ndim == 0 and label >= 0 else ''
    return transforms.as_pixels(record['image'], channels), name

  places = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()
  return [(source.describe(index), functools.partial(read, index)) for index in places]


# Drawing


def exclusions(run: predict.Run, images: Sequence[Image]) -> dict[str, str]:
  """Why some kinds cannot be drawn for a model, by kind."""
  reasons: dict[str, str] = {}

  def leave(names: Sequence[str], reason: str) -> None:
    reasons.update({name: reason for name in names if name not in reasons})

  model = run.model
  if not isinstance(model, vit.ViT):
    leave(('positions',), f'{analysis.family_name(model)} has no position embeddings')
    leave(ATTENTION_KINDS, f'{analysis.family_name(model)} has no attention')
  elif model.positions == 'none':
    leave(('positions',), 'this ViT has no position embeddings')
  if run.decoder is None:
    leave(('reconstruction',), 'there is no decoder, which a masked autoencoder has')
  if not run.classes:
    leave(CLASS_KINDS, 'the model has no head here, so no classes')
  elif not run.names_images:
    leave(CLASS_KINDS, 'with pool none the model names classes of patches, not of an image')
  if not images:
    leave((*KINDS['images'], *KINDS['image']), 'there is no image to look at: give some')
  if not shown_in_page(run):
    size = weights_size(run) / 1e9
    leave(('page',), f'one image has {size:.1f} GB of attention weights, too many to hold')
  return reasons


def weights_size(run: predict.Run, side: int = 1) -> int:
  """Bytes of all attention weights of an image, of blocks of side x side patches; 0 without any."""
  model = run.model
  if not isinstance(model, vit.ViT):
    return 0
  rows, columns = analysis.patch_grid(model, run.preprocess.size)
  cells = -(-rows // side) * -(-columns // side)
  return 4 * model.depth * model.heads * (model.prefix + cells) ** 2


def page_side(run: predict.Run) -> int:
  """How many patches wide the blocks are that a page takes together, to have PAGE bytes at most."""
  return next(side for side in itertools.count(1) if weights_size(run, side) <= PAGE)


def shown_in_page(run: predict.Run) -> int:
  """How many images' attention a page holds: one that is large, or several that are not."""
  if weights_size(run) > HELD:
    return 0
  size = max(weights_size(run, page_side(run)), 1)
  return min(PAGE // size, max(PAGES // size, 1))


def draw_overview(
  request: Request, images: Sequence[Image], folder: pathlib.Path, entries: Sequence[dict[str, Any]]
) -> dict[str, str]:
  """Draws what the weights alone, and all images together, show; a line about each.

  `entries` are what `draw_image` tells of the images, whose arrays lie in `folder`.
  """
  run = request.run
  drawings: dict[str, Callable[[], Drawing]] = {
    'filters': lambda: filters(run),
    'positions': lambda: positions(run),
    'distances': lambda: distances(run, images),
    'layers': lambda: layers(run, images),
    'pca': lambda: pca(run, images),
    'reconstruction': lambda: reconstruction(run, images),
  }
  wanted = [name for name in drawings if name in request.wanted]
  lines = {name: write(folder, name, drawings[name]()) for name in wanted}
  if 'page' in request.wanted:
    shown, side = images[: shown_in_page(request.run)], page_side(request.run)
    page = attention_page(request, shown, folder, entries, side).encode()
    (folder / 'attention.html').write_bytes(page)
    weights = 'every weight' if side == 1 else f'weights of blocks of {side}x{side} patches'
    lines['page'] = f'{weights} of {len(shown)} of {image_count(images)}, {si(len(page))}B'
  return lines


def attention_page(
  request: Request,
  images: Sequence[Image],
  folder: pathlib.Path,
  entries: Sequence[dict[str, Any]],
  side: int,
) -> str:
  """The text of attention.html, of blocks of `side` patches."""
  run: Any = request.run
  looks = (
    dataclasses.replace(
      attended_image(run, image.pixels, caption(image)),
      sharp=image.sharp,
      explanations=explanations(run, folder, entry),
      judged=entry.get('faithfulness', {}).get('sentences', {}),
    )
    for image, entry in zip(images, entries)
  )
  return attention.attention(pathlib.Path(request.args.model).name, run.model, looks, side=side)


def explanations(
  run: predict.Run, folder: pathlib.Path, entry: Mapping[str, Any]
) -> dict[str, attention.Explanation]:
  """Evidence and occlusion of an image over its patches, of those that were drawn."""
  grid = analysis.patch_grid(run.model, run.preprocess.size)
  maps = {}
  for kind in sorted(set(CLASS_KINDS) & set(entry['pictures'])):
    arrays = np.load(folder / entry['folder'] / f'{kind}.npz')
    values = faithfulness.cell_means(MAPS[kind](arrays), grid)
    factor, unit = (1, 'logit') if kind == 'evidence' else (100, 'points of the score')
    title = entry['pictures'][kind]
    maps[kind] = attention.Explanation(factor * values, unit, title[:1].upper() + title[1:])
  return maps


def attended_image(
  run: predict.Run, image: np.ndarray, name: str, *, top: int = 5
) -> attention.AttendedImage:
  """What a model with attention makes of an image (H, W, 3) uint8, as `run.prepared` makes it."""
  predictions = run.ranked(run.forward([image])['scores'][0], top) if run.names_images else []
  return attention.AttendedImage(name, image, predictions, analysis.attention(run, image))


def caption(image: Image) -> str:
  """An image's name without folders, and its class where that is known."""
  words = pathlib.Path(image.name).name, image.label, omitted_channels(image.pixels.shape[2])
  return ', '.join(filter(None, words))


def draw_image(request: Request, image: Image, folder: pathlib.Path, number: int) -> dict[str, Any]:
  """Draws what one image shows, into a folder of its own; what there is to tell about it."""
  name = re.sub(r'[^\w.-]+', '_', pathlib.Path(image.name).stem)[:60]
  subfolder = folder / f'{number:02d}_{name}'
  predictions: list[Prediction] = []
  if request.run.names_images:
    scores = request.run.forward([image.pixels])['scores'][0]
    if not np.isfinite(scores).all():
      raise ValueError(f'the model gives {image.name} scores that are not finite')
    predictions = request.run.ranked(scores, 5)
  drawings = dict(image_drawings(request, image, predictions))
  if drawings:
    subfolder.mkdir(exist_ok=True)
  lines = {kind: write(subfolder, kind, drawing) for kind, drawing in drawings.items()}
  file = without_folders(image.name)  # the folder of pictures may be sent to others
  entry: dict[str, Any] = {'file': file, 'label': image.label, 'folder': subfolder.name}
  entry |= {'predictions': predictions, 'pictures': lines}
  if request.shuffled is None:
    return entry
  return entry | {'faithfulness': faithfulness_entry(request, image, predictions, drawings)}


def faithfulness_entry(
  request: Request,
  image: Image,
  predictions: Sequence[Prediction],
  drawings: Mapping[str, Drawing],
) -> dict[str, Any]:
  """The figures of an image's explanations, and a sentence about each, for `inspect.json`."""
  run, shuffled = request.run, request.shuffled or request.run
  label = explained_class(request, predictions)
  others = image_drawings(dataclasses.replace(request, run=shuffled), image, predictions)
  grey = analysis.grey_colour(run.preprocess)
  result = faithfulness.measure(
    lambda hidden: run.forward(hidden)['scores'],
    image.pixels,
    label,
    {kind: MAPS[kind](drawing.arrays) for kind, drawing in drawings.items()},
    {kind: MAPS[kind](drawing.arrays) for kind, drawing in others},
    grid=analysis.trace(run, image.pixels).grid,
    grey=grey,
  )
  sentences = {kind: faithfulness.sentence(result, kind) for kind in drawings}
  entry = {'label': run.classes[label], 'baseline': grey, 'sentences': sentences}
  return entry | faithfulness.as_json(result)


def image_drawings(
  request: Request, image: Image, predictions: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Drawing]]:
  """Each drawing of one image, with its name."""
  if request.wanted.isdisjoint(KINDS['image']):
    return
  trace = analysis.trace(request.run, image.pixels)
  if not request.wanted.isdisjoint(('attention', 'rollout')):
    yield from attention_drawings(request, image, trace)
  if not request.wanted.isdisjoint(CLASS_KINDS):
    yield from class_drawings(request, image, trace, explained_class(request, predictions))


def explained_class(request: Request, predictions: Sequence[Mapping[str, Any]]) -> int:
  """The class of --label, or the likeliest."""
  return request.run.classes.index(request.args.label or predictions[0]['label'])


def image_count(images: Sequence[Image]) -> str:
  """'1 image' or '2 images'."""
  return quantity(len(images), 'image')


def filters(run: predict.Run) -> Drawing:
  result = analysis.filters(run.model, run.params)
  _, rows, columns, channels = result.components.shape
  omitted = omitted_channels(channels)
  title = (
    f'{len(result.components)} principal components of the {result.count} filters '
    f'of {rows}x{columns} pixels of {result.of}: {result.variance.sum():.1%} of their variance'
    + f'; {omitted}'
    * bool(omitted)
  )
  arrays = {'components': result.components, 'variance': result.variance}
  return Drawing(functools.partial(pictures.filters, result.components, title), arrays, title)


def positions(run: predict.Run) -> Drawing:
  result = analysis.position_similarity(run.model, run.params, run.preprocess.size)
  rows, columns = result.patches.shape[:2]
  title = f'cosine similarity of {result.of}, {rows}x{columns} patches'
  arrays = {'patches': result.patches, 'prefix': result.prefix}
  return Drawing(functools.partial(pictures.positions, result.patches, title), arrays, title)


def distances(run: predict.Run, images: Sequence[Image]) -> Drawing:
  per_image = np.stack([
    analysis.attention_summary(run, analysis.trace(run, image.pixels))['distances']
    for image in images
  ])  # fmt: skip
  finite = np.isfinite(per_image)  # a head may read no patch of an image
  mean = np.where(finite, per_image, 0).sum(axis=0) / np.where(
    finite.any(axis=0), finite.sum(axis=0), np.nan
  )
  title = f'mean attention distance over {image_count(images)}'
  if finite.any():
    title += f': {np.nanmin(mean):.1f} to {np.nanmax(mean):.1f} pixels'
  draw = functools.partial(pictures.distances, mean, title)
  return Drawing(draw, {'distances': mean, 'images': per_image}, title)


def layers(run: predict.Run, images: Sequence[Image]) -> Drawing:
  result = analysis.layer_similarity(run, [image.pixels for image in images])
  tokens = not hasattr(run.model, 'blocks')
  first = 'embedded' if tokens else 'root'
  names = [first, *(f'{layer}' if tokens else f'stage {layer}' for layer in range(1, len(result)))]
  compared = f'the embedding and {len(result) - 1} layers' if tokens else f'{len(result)} stages'
  title = f'linear CKA of {compared}, patches of {image_count(images)}'
  draw = functools.partial(pictures.layers, result, names, title)
  return Drawing(draw, {'similarity': result}, title)


def pca(run: predict.Run, images: Sequence[Image]) -> Drawing:
  pixels = [image.pixels for image in images]
  result = analysis.patch_colours(analysis.patch_tokens(run, pixels))
  title = (
    f'first three principal components of the patch tokens of {image_count(images)} as red, green '
    f'and blue: {result.variance.sum():.1%} of their variance'
  )
  arrays = {'colours': result.colours, 'variance': result.variance}
  return Drawing(functools.partial(pictures.colours, pixels, result.colours, title), arrays, title)


def reconstruction(run: predict.Run, images: Sequence[Image]) -> Drawing:
  pixels = np.stack([image.pixels for image in images])
  result = reconstruct.reconstruct(run, pixels)
  title = (
    f'{result.hidden.mean():.0%} of the patches of {image_count(images)}, filled in by the decoder'
  )
  title += "; mean and contrast of each are the original's" * result.borrows
  arrays = {'hidden': result.hidden, 'pixels': result.pixels}
  columns = (pixels, result.masked, result.pixels)
  return Drawing(functools.partial(pictures.reconstruction, columns, title), arrays, title)


def attention_drawings(
  request: Request, image: Image, trace: analysis.Activations
) -> Iterator[tuple[str, Drawing]]:
  """Maps of every head, and their rollout, of one image."""
  args = request.args
  result = analysis.attention_summary(request.run, trace, fusion=args.fusion, discard=args.discard)
  if 'attention' in request.wanted:
    title = 'attention from what the classifier reads to each patch, each map by its own scale'
    arrays = {'maps': result['maps'], 'distances': result['distances']}
    if trace.pool is not None:
      arrays['pool'] = np.asarray(trace.pool)[:, trace.prefix :].reshape(-1, *trace.grid)
    thinned = thinned_maps(result['maps'])
    draw = functools.partial(pictures.attention, image.pixels, thinned, title)
    yield 'attention', Drawing(draw, arrays, title)
  if 'rollout' in request.wanted:
    title = f'attention rollout, {args.fusion} of heads, each layer by its own scale'
    title += f', smallest {args.discard:.0%} of weights discarded' * bool(args.discard)
    draw = functools.partial(pictures.rollout, image.pixels, result['rollout'], title)
    yield 'rollout', Drawing(draw, {'rollout': result['rollout']}, title)


def thinned_maps(maps: np.ndarray) -> np.ndarray:
  """Maps (L, A, R, C), or every second, third ... row and column, as a picture has room for."""
  step = 1
  while max(maps.shape[0] * maps.shape[2], maps.shape[1] * maps.shape[3]) / step > SIDE:
    step += 1
  return maps[:, :, ::step, ::step]


def class_drawings(
  request: Request, image: Image, trace: analysis.Activations, label: int
) -> Iterator[tuple[str, Drawing]]:
  """Where in one image a class comes from."""
  if 'evidence' in request.wanted:
    logits = analysis.evidence(request.run, trace, [label])[..., 0]  # (R, C)
    has_token = getattr(request.run.model, 'pool', '') == 'token'
    title = f'evidence of {request.run.classes[label]}: the logit of each patch by itself'
    title += ', read in the place of the class token' * has_token
    title += f', {logits.min():.2f} to {logits.max():.2f}'
    centred = logits - logits.mean()
    draw = functools.partial(
      pictures.beside, image.pixels, centred, 'logit, less its mean', title, 0.5
    )
    yield 'evidence', Drawing(draw, {'logits': logits, 'label': np.array(label)}, title)
  if 'occlusion' in request.wanted:
    yield 'occlusion', occlusion(request, image, label)


def occlusion(request: Request, image: Image, label: int) -> Drawing:
  run, square = request.run, request.square
  result = analysis.occlusion(
    lambda hidden: run.forward(hidden)['scores'],
    image.pixels,
    label,
    square=square,
    stride=request.stride,
    grey=analysis.grey_colour(run.preprocess),
  )
  title = f'occlusion of {run.classes[label]}, {result.score:.1%}: a grey square of '
  title += f'{square[0]}x{square[1]} pixels takes {100 * result.drop.max():.2g} points at most'
  field = analysis.as_float32(result.field(image.pixels.shape[:2]))
  arrays = {'drop': result.drop, 'tops': result.tops, 'lefts': result.lefts, 'field': field}
  arrays |= {'square': np.array(square), 'score': np.array(result.score), 'label': np.array(label)}
  draw = functools.partial(
    pictures.beside, image.pixels, 100 * field, 'drop of the score (points)', title, 5
  )
  return Drawing(draw, arrays, title)


def squares(run: predict.Run, args: argparse.Namespace) -> tuple[Sides, Sides]:
  """Height and width of the occluding square, and of its step, which fit the model's images."""
  size = run.preprocess.size
  square, stride = analysis.occlusion_steps(run.model, size)
  if args.square:
    square = (args.square, args.square)
  if args.stride:
    stride = (min(args.stride, size[0]), min(args.stride, size[1]))
  analysis.check_squares(size, square, stride)
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
  with files.hidden_folder(beside) as hold:
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
      for kind in KINDS['image']:
        for suffix in ('png', 'npz'):
          (folder / f'{kind}.{suffix}').unlink(missing_ok=True)
      with contextlib.suppress(OSError):  # what somebody else put there stays
        folder.rmdir()


def write(folder: pathlib.Path, name: str, drawing: Drawing) -> str:
  """Writes NAME.png and NAME.npz; the line about them."""
  (folder / f'{name}.png').write_bytes(drawing.draw())
  weights.write_npz(folder / f'{name}.npz', {k: np.asarray(v) for k, v in drawing.arrays.items()})
  return drawing.title


def describe(index: Mapping[str, Any], out: str) -> list[str]:
  """The pictures that were written, and those that were left out, as lines."""
  lines = []
  for name, title in index['pictures'].items():
    lines.append(f'{"attention.html" if name == "page" else name + ".png"}: {title}')
  for image in index['images']:
    predictions = '  '.join(f'{g["label"]} {g["score"]:.1%}' for g in image['predictions'][:3])
    label = f'is {image["label"]}' * bool(image['label'])
    parts = filter(None, [', '.join(image['pictures']), label, predictions])
    lines.append(f'{image["folder"]}: {"; ".join(parts)}')
    sentences = image.get('faithfulness', {}).get('sentences', {})
    lines += [f'  {kind}: {sentence}' for kind, sentence in sentences.items()]
  reasons: dict[str, list[str]] = {}
  for name, cause in index['left_out'].items():
    reasons.setdefault(cause, []).append(name)
  lines += [f'left out {", ".join(names)}: {cause}' for cause, names in reasons.items()]
  return [*lines, f'pictures and arrays are in {out}: begin with index.html']
