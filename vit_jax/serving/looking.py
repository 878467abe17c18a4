"""What the page shows of one image: attention and rollout from every patch, and occlusion.

H, W pixels, C channels; R, C rows and columns of patches, P = R C; T tokens, L layers shown; Q
queries: what the classifier reads, then the patches where there is room for them.
"""

import base64
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from vit_jax import analysis, predict
from vit_jax.images.decoding import displayed
from vit_jax.models import vit
from vit_jax.views import html

UNIT = 1e-4  # of a weight: a hundredth of a percent
ROOM = 4 << 20  # bytes of the weights of attention, and as many of rollout
SQUARES_MIN = 4  # down and across, however slow the model is


def shown_image(image: np.ndarray) -> str:
  """An image (H, W, C) as the model takes it, as a `data:` URL."""
  return html.data_uri(displayed(image))


def attention(run: predict.Run, image: np.ndarray) -> dict[str, object]:
  """Attention, mean of heads, and rollout of an image (H, W, C) as `Served.prepared` makes it.

  Returns:
    'rows', 'columns' and 'queries'; 'layers', counted from 1: as many as ROOM has space for, the
    last always; 'attention' and 'rollout', base64 of little-endian uint16 (L, Q, P) in UNIT.

  Raises:
    ValueError: for a model without attention.
  """
  model = analysis.check_attention(run.model)
  traced = analysis.trace(run, image)
  read = analysis.reading(model, traced)
  patches, prefix = math.prod(traced.grid), traced.prefix
  queries = 1 + patches if 2 * (1 + patches) * patches <= ROOM else 1
  layers = evenly(model.depth, ROOM // (2 * queries * patches))
  attended, rolled = [], []
  rollout = jnp.eye(len(read))
  for layer, weights in enumerate(analysis.layer_weights(run, traced), 1):
    rollout = analysis.rollout_step(weights, rollout)
    if layer in layers:
      attended.append(query_rows(np.asarray(weights.mean(axis=0)), read, prefix)[:queries])
      rolled.append(query_rows(np.asarray(rollout), read, prefix)[:queries])
  rows, columns = traced.grid
  return {
    'rows': rows,
    'columns': columns,
    'queries': queries,
    'layers': layers,
    'attention': packed(attended),
    'rollout': packed(rolled),
  }


def evenly(depth: int, count: int) -> list[int]:
  """At most `count`, at least one, of the layers 1 to `depth`, the last among them."""
  chosen = np.linspace(depth, 1, max(min(depth, count), 1)).round().astype(int)
  return sorted(set(chosen.tolist()))


def query_rows(matrix: np.ndarray, read: np.ndarray, prefix: int) -> np.ndarray:
  """(1 + P, P) of (T, T): what goes to patches from what the classifier reads, and from each."""
  return np.concatenate([(read @ matrix)[None], matrix[prefix:]])[:, prefix:]


def packed(layers: Sequence[np.ndarray]) -> str:
  """Weights (L, Q, P) as base64; ValueError where they are not finite."""
  weights = np.stack(layers)
  if not np.isfinite(weights).all():
    raise ValueError('the attention of the model is not finite')
  return base64.b64encode(np.rint(weights / UNIT).astype('<u2').tobytes()).decode()


def has_attention(run: predict.Run) -> bool:
  return isinstance(run.model, vit.ViT)


def occlusion(
  run: predict.Run,
  image: np.ndarray,
  label: int,
  *,
  scores: Callable[[list[np.ndarray]], np.ndarray],
  squares: int,
) -> dict[str, object]:
  """How the score of a class falls where a grey square hides part of an image.

  Args:
    run: the model.
    image: (H, W, C) uint8, as `Served.prepared` makes it.
    label: the number of the class.
    scores: (N, K) of a list of images.
    squares: that may be tried, about; steps are as large as that asks for.

  Returns:
    'score' of the whole image, 'square', its height and width in pixels, 'rows' and 'columns' of
    cells about as large as a step, and 'drop' by these: the mean drop of the squares that hide one.
  """
  size = run.preprocess.size
  square, stride = fitting_squares(*analysis.occlusion_steps(run.model, size), size, squares)
  result = analysis.occlusion(
    scores, image, label, square=square, stride=stride, grey=analysis.grey_colour(run.preprocess)
  )
  drop = cells(result.field(size), stride)
  return {
    'rows': len(drop),
    'columns': len(drop[0]),
    'score': result.score,
    'square': list(square),
    'drop': drop.tolist(),
  }


def cells(field: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
  """The means of a field (H, W) over cells of one size, about a stride's."""
  counts = [max(round(side / step), 1) for side, step in zip(field.shape, stride)]
  tops, lefts = (
    np.linspace(0, side, count, endpoint=False).round().astype(int)
    for side, count in zip(field.shape, counts)
  )
  sums, areas = (
    np.add.reduceat(np.add.reduceat(values, tops, axis=0), lefts, axis=1)
    for values in (field, np.ones_like(field))
  )
  return sums / areas


def fitting_squares(
  square: tuple[int, int], stride: tuple[int, int], size: tuple[int, int], count: int
) -> tuple[tuple[int, int], tuple[int, int]]:
  """A square and a stride, both doubled until at most `count` squares fill an image."""

  def total() -> int:
    sides = zip(size, square, stride)
    return math.prod(len(analysis.starts(*side)) for side in sides)

  while total() > max(count, SQUARES_MIN**2):
    stride = (2 * stride[0], 2 * stride[1])
    square = (min(2 * square[0], size[0]), min(2 * square[1], size[1]))
  return square, stride
