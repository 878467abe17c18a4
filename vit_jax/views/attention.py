"""`attention.html`: every attention weight of some images, as a page.

H, W pixels of an image, R, C its patches, L layers, A heads, T tokens, Q queries: the tokens, and
the head where it reads more than one of them. Where patches are taken together, R, C and T are of
blocks of them.
"""

import base64
import dataclasses
import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import analysis
from vit_jax.images.decoding import displayed
from vit_jax.models import vit
from vit_jax.views import html

UNIT = 1e-4  # of a stored weight: a hundredth of a percent, the last digit that is shown
DISCARDS = (0.0, 0.5, 0.75, 0.9)  # of rollout
LARGEST = 2**29 - 2**20  # letters of a text that browsers can hold
READER = 'what the classifier reads'
BLOCKS = (
  '<p>There are too many patches to show each: a cell is a block of {side}x{side} of them, smaller '
  'at the right and lower edge. It gets what its patches get together, and asks as they do on '
  'average.</p>'
)


@dataclasses.dataclass(frozen=True)
class AttendedImage:
  """What a model made of an image.

  Fields:
    name: of the image.
    image: (H, W, C) uint8, as the model took it.
    predictions: [{'label': 'rose', 'score': 0.98}, ...], best first; of a model without a head [].
    attention: all its weights.
    sharp: the same view in more pixels, to be shown instead; None where there are no more.
    explanations: what else explains a class, drawn over the patches.
    judged: by 'attention', 'rollout' and names of `explanations`: how faithful it is, in words.
  """

  name: str
  image: np.ndarray
  predictions: Sequence[Mapping[str, Any]]
  attention: analysis.Attention
  sharp: np.ndarray | None = None
  explanations: Mapping[str, 'Explanation'] = dataclasses.field(default_factory=dict)
  judged: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Explanation:
  """A map of one class over the patches.

  Fields:
    values: (R, C).
    unit: of a value, in words.
    title: what was explained, in words.
  """

  values: np.ndarray
  unit: str
  title: str


def attention(title: str, model: vit.ViT, images: Iterable[AttendedImage], *, side: int = 1) -> str:
  """The page: every head of every layer, and the rollout, for every query of every image.

  Weights are stored in hundredths of a percent, and so is the mean of the heads: the page shows
  each of these arrays rounded to that, exactly; a highest or lowest head is one of them.

  Args:
    title: of the model.
    model: which the images, all of one size, were seen by.
    images: at least one; one at a time is held.
    side: of the blocks of patches that are taken together, see `blocked`.

  Raises:
    ValueError: if there is no image, they differ in size, or browsers could not hold one's weights.
  """
  packs: list[str] = []
  images_facts = []
  grids = set()
  for image in images:
    packs.append(packed(image.attention, side=side))
    if len(packs[-1]) > LARGEST:
      raise ValueError(f'{len(packs[-1]) >> 20} MiB of weights are more than a browser holds')
    images_facts.append(image_facts(image, side))
    whole = image.attention
    grids.add((whole.weights.shape, whole.grid, len(readers(whole)) > 0))
  if len(grids) != 1:
    raise ValueError('a page of attention is of one or more images, all of one size')
  ((layers, heads, *_), (rows, columns), reads_tokens) = grids.pop()
  facts = {
    'layers': layers,
    'heads': heads,
    'rows': block_sizes(rows, side),
    'columns': block_sizes(columns, side),
    'prefix': prefix(model),
    'readers': [READER] * reads_tokens,
    'discards': DISCARDS,
    'ramp': html.RAMP.tolist(),
    'images': images_facts,
  }
  return html.render(
    'attention.html',
    title=html.escape(title),
    blocks=BLOCKS.format(side=side) * (side > 1),
    style=html.asset('style.css'),
    script=html.asset('attention.js'),
    facts=html.script_json(facts),
    weights='\n'.join(
      f'<script type="application/octet-stream" id="weights-{number}">{pack}</script>'
      for number, pack in enumerate(packs)
    ),
  )


def prefix(model: vit.ViT) -> list[str]:
  """The names of the tokens before the patches, in their order."""
  names = ['class token'] * model.has_class_token
  names += ['distillation token'] * (model.distillation != 'none')
  return names + [f'register {number + 1}' for number in range(model.registers)]


def readers(whole: analysis.Attention) -> np.ndarray:
  """(1, T) how much of each token the head reads; (0, T) where that is one token."""
  return whole.read[None, :] if whole.read.max() < 1 else whole.read[None, :][:0]


def block_sizes(count: int, side: int) -> list[int]:
  """How many of the patches in a row or column each block has: all `side`, but for the last."""
  return [min(side, count - begin) for begin in range(0, count, side)]


def block_sums(values: np.ndarray, side: int) -> np.ndarray:
  """(N, R, C) of patches, summed over blocks."""
  for axis in (1, 2):
    values = np.add.reduceat(values, np.arange(0, values.shape[axis], side), axis=axis)
  return values


def blocked(rows: np.ndarray, whole: analysis.Attention, side: int) -> np.ndarray:
  """(Q, T) weights of patches as those of blocks: summed over keys, the mean over queries.

  So the rows of blocks sum to what those of patches do. Tokens before the patches, and what the
  head reads, stay.
  """
  if side == 1:
    return rows

  def summed(rows: np.ndarray) -> np.ndarray:
    sums = block_sums(rows[:, whole.prefix :].reshape(-1, *whole.grid), side)
    return np.concatenate([rows[:, : whole.prefix], sums.reshape(len(rows), -1)], axis=1)

  tokens = len(whole.read)
  keys = summed(rows)
  counts = summed(np.ones((1, tokens)))  # (1, T of blocks)
  return np.concatenate([(summed(keys[:tokens].T) / counts).T, keys[tokens:]])


def packed(whole: analysis.Attention, *, side: int = 1) -> str:
  """The weights of heads and their mean, (L, A + 1, Q, T), then rollouts (R, L, Q, T), as base64.

  uint16, in `UNIT`: of each (Q, T) its low bytes, then its high ones, mostly 0, which takes
  a tenth to a sixth less than pairs of both. Compressed by gzip.
  """
  zipped = io.BytesIO()
  read = readers(whole).astype(np.float64)  # (0 or 1, T)
  with gzip.GzipFile(fileobj=zipped, mode='wb', compresslevel=6, mtime=0) as file:

    def write(matrix: np.ndarray) -> None:  # (T, T)
      rows = blocked(np.concatenate([matrix, read @ matrix]), whole, side)  # (Q, T)
      if not np.isfinite(rows).all():
        raise ValueError('the attention of the model is not finite')
      stored = np.rint(rows / UNIT).astype(np.uint16)
      file.write(np.stack([stored & 255, stored >> 8]).astype(np.uint8).tobytes())

    for layer in whole.weights:
      heads = layer.astype(np.float64)
      for matrix in (*heads, heads.mean(axis=0)):
        write(matrix)
    for discard in DISCARDS:
      for matrix in whole.rollout(discard=discard):
        write(matrix.astype(np.float64))
  return base64.b64encode(zipped.getvalue()).decode()


def image_facts(image: AttendedImage, side: int) -> dict[str, Any]:
  """An image as the page's script takes it."""
  predictions = [{'label': str(g['label']), 'score': float(g['score'])} for g in image.predictions]
  pixels, form = (image.image, 'PNG') if image.sharp is None else (image.sharp, 'JPEG')
  facts = {'name': image.name, 'width': pixels.shape[1], 'predictions': predictions}
  explanations = {
    name: {
      'values': as_stored(block_means(each.values, side)),
      'unit': each.unit,
      'title': each.title,
    }
    for name, each in image.explanations.items()
  }
  facts |= {'explanations': explanations, 'judged': dict(image.judged)}
  return facts | {'src': html.data_uri(displayed(pixels), form)}


def block_means(values: np.ndarray, side: int) -> np.ndarray:
  """(R, C) of patches -> the means of their blocks."""
  return (block_sums(values[None], side) / block_sums(np.ones_like(values)[None], side))[0]


def as_stored(values: np.ndarray) -> list[float]:
  """(R, C) values row by row, with four digits after the point; what is not finite is 0."""
  return np.nan_to_num(values, posinf=0, neginf=0).ravel().round(4).tolist()
