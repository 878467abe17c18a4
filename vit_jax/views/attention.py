"""`attention.html`, and what pages that need nothing but a browser are made of.

H, W pixels of an image, L layers, A heads, T tokens, Q queries: the tokens, and the head where it
reads more than one of them.
"""

import base64
import dataclasses
import gzip
import html
import importlib.resources
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax import analysis
from vit_jax.models import vit

if TYPE_CHECKING:
  from PIL.Image import Image

UNIT = 1e-4  # of a stored weight: a hundredth of a percent, the last digit that is shown
DISCARDS = (0.0, 0.5, 0.75, 0.9)  # of rollout
LARGEST = 2**29 - 2**20  # letters of a text that browsers can hold
READER = 'what the classifier reads'
RAMP = np.array([(0, 0, 10), (80, 18, 110), (185, 52, 84), (248, 140, 16), (252, 253, 170)])


@dataclasses.dataclass(frozen=True)
class AttendedImage:
  """What a model made of an image.

  Fields:
    name: of the image.
    image: (H, W, 3) uint8, as the model took it.
    predictions: [{'label': 'rose', 'score': 0.98}, ...], best first; of a model without a head [].
    attention: all its weights.
  """

  name: str
  image: np.ndarray
  predictions: Sequence[Mapping[str, Any]]
  attention: analysis.Attention


def attention(title: str, model: vit.ViT, images: Iterable[AttendedImage]) -> str:
  """The page: every head of every layer, and the rollout, for every query of every image.

  Weights are stored in hundredths of a percent, and so is the mean of the heads: the page shows
  each of these arrays rounded to that, exactly; a highest or lowest head is one of them.

  Args:
    title: of the model.
    model: which the images, all of one size, were seen by.
    images: at least one; one at a time is held.

  Raises:
    ValueError: if there is no image, they differ in size, or browsers could not hold one's weights.
  """
  packs: list[str] = []
  images_facts = []
  grids = set()
  for image in images:
    packs.append(packed(image.attention))
    if len(packs[-1]) > LARGEST:
      raise ValueError(f'{len(packs[-1]) >> 20} MiB of weights are more than a browser holds')
    images_facts.append(image_facts(image))
    whole = image.attention
    grids.add((whole.weights.shape, whole.grid, len(readers(whole)) > 0))
  if len(grids) != 1:
    raise ValueError('a page of attention is of one or more images, all of one size')
  ((layers, heads, *_), (rows, columns), reads_tokens) = grids.pop()
  facts = {
    'layers': layers,
    'heads': heads,
    'rows': rows,
    'columns': columns,
    'prefix': prefix(model),
    'readers': [READER] * reads_tokens,
    'discards': DISCARDS,
    'ramp': RAMP.tolist(),
    'images': images_facts,
  }
  return render(
    'attention.html',
    title=html.escape(title),
    style=asset('style.css'),
    script=asset('attention.js'),
    told=script_json(facts),
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


def packed(whole: analysis.Attention) -> str:
  """The weights of heads and their mean, (L, A + 1, Q, T), then rollouts (R, L, Q, T), as base64.

  Little-endian uint16, in `UNIT`, compressed by gzip.
  """
  zipped = io.BytesIO()
  read = readers(whole).astype(np.float64)  # (0 or 1, T)
  with gzip.GzipFile(fileobj=zipped, mode='wb', compresslevel=6, mtime=0) as file:

    def write(matrix: np.ndarray) -> None:  # (T, T)
      rows = np.concatenate([matrix, read @ matrix])  # (Q, T)
      if not np.isfinite(rows).all():
        raise ValueError('the attention of the model is not finite')
      file.write(np.rint(rows / UNIT).astype('<u2').tobytes())

    for layer in whole.weights:
      heads = layer.astype(np.float64)
      for matrix in (*heads, heads.mean(axis=0)):
        write(matrix)
    for discard in DISCARDS:
      for matrix in whole.rollout(discard=discard):
        write(matrix.astype(np.float64))
  return base64.b64encode(zipped.getvalue()).decode()


def image_facts(image: AttendedImage) -> dict[str, Any]:
  """An image as the page's script takes it."""
  predictions = [{'label': str(g['label']), 'score': float(g['score'])} for g in image.predictions]
  facts = {'name': image.name, 'width': image.image.shape[1], 'predictions': predictions}
  return facts | {'src': data_uri(image.image)}


def data_uri(pixels: 'np.ndarray | Image', form: str = 'PNG', **options: Any) -> str:
  """A picture as a `data:` URL.

  Args:
    pixels: (H, W, 3) or, with opacity, (H, W, 4) uint8; or an image of Pillow.
    form: of the file that it holds, as Pillow names it.
    options: further arguments of Pillow's `save`.
  """
  from PIL import Image as images

  stream = io.BytesIO()
  image = images.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
  image.save(stream, form, **options)
  return file_uri(stream.getvalue(), form)


def file_uri(content: bytes, form: str = 'PNG') -> str:
  """A picture's file as a `data:` URL."""
  return f'data:image/{form.lower()};base64,{base64.b64encode(content).decode()}'


def heatmap(weights: np.ndarray, *, strength: float = 0.7) -> str:
  """(rows, columns) weights as the address of a picture to lay over the image."""
  alpha = np.full((*weights.shape, 1), 255 * strength)
  mixed = colours(weights / max(weights.max(), 1e-30))
  return data_uri(np.rint(np.concatenate([mixed, alpha], axis=-1)).astype(np.uint8))


def colours(fractions: np.ndarray) -> np.ndarray:
  """(...) shares in [0, 1] -> (..., 3) of `RAMP`, [0, 255]."""
  stops = np.linspace(0, 1, len(RAMP))
  return np.stack([np.interp(fractions, stops, channel) for channel in RAMP.T], axis=-1)


def asset(name: str) -> str:
  """The text of a file of `vit_jax/views`."""
  return importlib.resources.files('vit_jax').joinpath('views', name).read_text('utf-8')


def render(name: str, **parts: str) -> str:
  """A page of `vit_jax/views` with every {{part}} in its place."""
  return re.sub(r'\{\{(\w+)\}\}', lambda match: parts[match[1]], asset(name))


def script_json(value: object) -> str:
  """JSON that no text in it can break out of a script element with."""
  return json.dumps(value, allow_nan=False).replace('<', '\\u003c')
