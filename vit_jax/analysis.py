"""Looking inside a model: what it attends to, what its layers share, where a class comes from.

Arrays only; `vit_jax.views.pictures` draws them, `vit inspect` writes both. One image is taken at a
time and its attention one layer at a time, so that memory stays within one layer's weights,
whatever the depth. H, W pixels; R, C rows and columns of patches, P = R C; T tokens, D width, A
heads, L depth, K classes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from vit_jax import bundle, models
from vit_jax.convert import resample
from vit_jax.models import Params, layers, resnet, vit

Array = jax.Array

FUSIONS: dict[str, Callable[..., Array]] = {'mean': jnp.mean, 'max': jnp.max, 'min': jnp.min}
COMPONENTS = 28  # of the filters: ViT's figure 7, left
EXAMPLES = 1024  # patches that layers are compared on
STEPS = 14  # of a square that hides part of an image, down and across
TAILS = (1, 99)  # percentiles between which a colour spans its values: few patches are far outside
AT_A_TIME = 8  # images whose tokens are computed together
FLAT = 1e-5  # of a token's length: components that span less are rounding, and are not magnified


# Weights alone


@dataclasses.dataclass(frozen=True)
class Filters:
  """The principal components of what a model looks at pixels with.

  Fields:
    components: (n, rows, columns, C) float32 of unit length, the first explains most; the largest
      value of each is positive.
    variance: (n,) float32, the fraction of the filters' variance that each explains.
    count: of the filters.
    of: what they are, in words.
  """

  components: np.ndarray
  variance: np.ndarray
  count: int
  of: str


def filters(model: models.Model, params: Params, *, count: int = COMPONENTS) -> Filters:
  """The first principal components of the first filters (ViT, arXiv 2010.11929, figure 7).

  Each filter of the patch embedding is a point, its mean over filters is taken off. Of hybrids and
  BiT, whose patches are not of pixels, the filters are those of the ResNet's first convolution,
  standardised as it uses them. There are fewer components where there are fewer filters.
  """
  kernel, of = pixel_kernel(model, params)
  *shape, total = kernel.shape
  points = kernel.reshape(-1, total).T.astype(np.float64)  # (filters, rows * columns * C)
  _, scales, axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
  axes = axes[: min(count, max(total - 1, 1))]
  largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
  components = np.where(largest < 0, -axes, axes).reshape(-1, *shape)
  fraction = np.square(scales) / max(np.square(scales).sum(), np.finfo(float).tiny)
  fraction = fraction[: len(axes)]
  return Filters(as_float32(components), as_float32(fraction), total, of)


def pixel_kernel(model: models.Model, params: Params) -> tuple[np.ndarray, str]:
  """The kernel (rows, columns, C, filters) that reads pixels, and its name."""
  if isinstance(model, resnet.ResNet):
    root, numerics = params['root'], model.numerics
  elif isinstance(model, vit.ViT) and model.stem is not None:
    root, numerics = params['stem']['root'], model.stem_numerics
  else:
    return np.asarray(params['embed']['kernel']), 'the patch embedding'
  kernel = resnet.standardized(jnp.asarray(root['conv']['kernel']), resnet.NUMERICS[numerics])
  return np.asarray(kernel), "the ResNet's first convolution"


@dataclasses.dataclass(frozen=True)
class PositionSimilarity:
  """How alike the positions of patches are: cosines.

  Fields:
    patches: (R, C, R, C) float32, [r, c] is the picture of all patches seen from patch (r, c).
    prefix: (rows, R, C) float32, the class and the distillation token seen by all patches, where
      the table has rows for them.
    of: what was compared, in words.
  """

  patches: np.ndarray
  prefix: np.ndarray
  of: str


def position_similarity(
  model: models.Model, params: Params, size: tuple[int, int]
) -> PositionSimilarity:
  """The cosine similarity of position embeddings (ViT, arXiv 2010.11929, figure 7, middle).

  Of positions that are a rotation there is no table: compared are the sines and cosines of all its
  angles, so the similarity is the mean cosine of the angles between two patches. An embedding that
  is zero is like none: 0.

  Args:
    model, params: the model.
    size: (height, width) of its images in pixels.

  Raises:
    ValueError: for a model that has no positions.
  """
  prefix, table, of = position_tables(model, params, size)
  rows, columns = patch_grid(model, size)
  patch_cosines = as_float32(unit(table) @ unit(table).T)  # (P, P)
  prefix_cosines = as_float32(unit(prefix) @ unit(table).T)  # (rows, P)
  return PositionSimilarity(
    patch_cosines.reshape(rows, columns, rows, columns),
    prefix_cosines.reshape(-1, rows, columns),
    of,
  )


def position_tables(
  model: models.Model, params: Params, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, str]:
  """Positions of tokens before the patches, of patches (P, D), and what they are."""
  kind = model.positions if isinstance(model, vit.ViT) else 'none'
  if not isinstance(model, vit.ViT) or kind == 'none':
    family = 'a ViT without positions' if isinstance(model, vit.ViT) else family_name(model)
    raise ValueError(f'{family} has no position embeddings')
  rows, columns = patch_grid(model, size)
  if model.has_table:
    table = np.asarray(params['positions'], np.float32)[0]
    if len(table) != model.position_rows + rows * columns:
      raise ValueError(f'{len(table)} position embeddings are not of {rows}x{columns} patches')
    return table[: model.position_rows], table[model.position_rows :], 'learned positions'
  if kind == 'sincos2d':
    table, of = vit.sincos2d(rows, columns, model.width), 'fixed sines and cosines'
  else:
    angles = np.asarray(model.rope(rows, columns))
    table, of = np.concatenate([*angles], axis=1), 'rotations of queries and keys'
  return np.zeros((0, table.shape[1]), np.float32), table, of


def as_float32(values: npt.ArrayLike) -> np.ndarray:
  """An array on the host, in float32."""
  return np.asarray(values, np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows of length one, float64; of zeros, zeros."""
  rows = rows.astype(np.float64)
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def family_name(model: models.Model) -> str:
  """'a ViT', 'a Mixer' or 'a ResNet'."""
  return f'a {type(model).__name__}'


def patch_grid(model: models.Model, size: tuple[int, int]) -> tuple[int, int]:
  """Rows and columns of the patches of an image of `size` (height, width)."""
  return size[0] // model.patch[0], size[1] // model.patch[1]


# One image


@dataclasses.dataclass(frozen=True)
class Activations:
  """What one image leaves on its way through a model, on the device.

  Fields:
    logits: (K,) float32.
    layers: the input of the first block and the output of each block, L + 1 times (T, D); of a
      ResNet the output of its root and of every stage, (rows, columns, channels).
    encoded: (T, D), after the last norm; of a ResNet (rows, columns, channels).
    pool: (A, T), what attention pooling weighs tokens by; None for any other pooling.
    prefix: tokens before the patches.
    grid: R, C; of a ResNet those of its last stage.
  """

  logits: Array
  layers: Sequence[Array] | Array
  encoded: Array
  pool: Array | None
  prefix: int
  grid: tuple[int, int]


def trace(run: bundle.Bundle, image: np.ndarray) -> Activations:
  """Takes an image (H, W, C) uint8, as `run.preprocess` makes it, through a model."""
  model, preprocess = run.model, run.preprocess
  if image.dtype != np.uint8 or image.shape != preprocess.shape:
    expected = 'x'.join(map(str, preprocess.shape))
    raise ValueError(f'an image here is uint8 {expected}, not {image.dtype} {image.shape}')
  arrays = traced_arrays(
    run.params, image[None], model=model, mean=tuple(preprocess.mean), std=tuple(preprocess.std)
  )
  tokens = not isinstance(model, resnet.ResNet)
  grid = patch_grid(model, preprocess.size) if tokens else arrays['encoded'].shape[:2]
  prefix = model.prefix if isinstance(model, vit.ViT) else 0
  return Activations(**arrays, prefix=prefix, grid=grid)


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std'))
def traced_arrays(
  params: Params,
  images: Array,
  *,
  model: models.Model,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> dict[str, Any]:
  """The arrays of `Activations` of an image (1, H, W, C) uint8; no attention weights are kept."""
  map_pool = getattr(model, 'pool', '') == 'map'
  logits, out = bundle.forward(model, params, images, mean=mean, std=std, attention=map_pool)
  layers: Any
  if isinstance(model, resnet.ResNet):
    layers = [stage[0] for stage in (out['stem'], *out['stages'])]
  else:
    first = out['embedded'] if 'embedded' in out else out['patches'].reshape(out['encoded'].shape)
    layers = jnp.concatenate([first[None], out['blocks']])[:, 0]  # (L + 1, T, D)
  pool = out['pool_attention'][0, :, 0] if map_pool else None
  return {'logits': logits[0], 'layers': layers, 'encoded': out['encoded'][0], 'pool': pool}


# Attention


def layer_weights(run: bundle.Bundle, trace: Activations) -> Iterator[Array]:
  """The attention weights (A, T, T) of one layer after another, float32, on the device.

  Row i has the weight of every token in what token i reads. They are computed by the model's own
  block from what that layer was given in the forward pass; nothing is kept of them.

  Raises:
    ValueError: for a model without attention.
  """
  model = check_attention(run.model)
  params = jax.device_put(run.params)
  for layer in range(model.depth):
    yield attention_weights(params, trace.layers[layer], layer, model=model, grid=trace.grid)


def check_attention(model: models.Model) -> vit.ViT:
  """The model; ValueError for one without attention."""
  if not isinstance(model, vit.ViT):
    raise ValueError(f'{family_name(model)} has no attention')
  return model


@functools.partial(jax.jit, static_argnames=('model', 'grid'))
def attention_weights(params: Params, tokens: Array, layer: int | Array, **options: Any) -> Array:
  """A layer's weights alone, as `block` gives them: its MLP is not computed."""
  return block(params, tokens, layer, **options)[1]


def block(
  params: Params, tokens: Array, layer: int | Array, *, model: vit.ViT, grid: tuple[int, int]
) -> tuple[Array, Array]:
  """A layer's output (T, D) and its weights (A, T, T), of its input (T, D)."""
  layer_params = jax.tree.map(lambda leaf: leaf[layer], params['encoder']['blocks'])
  module = vit.Block(**model.block_fields(grid, train=False, attention=True), drop_path=False)
  x, out = module.apply({'params': layer_params}, tokens[None], jnp.zeros(()), model.rope(*grid))
  return x[0], out['attention'][0]


@dataclasses.dataclass(frozen=True, repr=False)
class Attention:
  """The attention of one image, whole: 4 L A T^2 bytes.

  Tokens are ordered class, distillation, registers, patches row by row.

  Fields:
    weights: (L, A, T, T) float32; rows sum to 1.
    read: (T,) float32, sums to 1: how much of each token of the last layer the head reads, see
      `reading`.
    grid: R, C.
    prefix: tokens before the patches.
    patch: (height, width) of a patch in pixels.
    pool: (A, T) float32, what attention pooling weighs tokens by; None for any other pooling.
  """

  weights: np.ndarray
  read: np.ndarray
  grid: tuple[int, int]
  prefix: int
  patch: tuple[int, int]
  pool: np.ndarray | None = None

  def __repr__(self) -> str:
    layers, heads, tokens, _ = self.weights.shape
    patches = f'{self.grid[0]}x{self.grid[1]} patches'
    return f'Attention({layers} layers, {heads} heads, {tokens} tokens, {patches})'

  def maps(self, token: int | None = None) -> np.ndarray:
    """(L, A, R, C): how much of each patch is read, in every head of every layer.

    Args:
      token: by which token; None is by what the head reads: the class token, or where the head
        reads others their mean by `read`. What goes to tokens before the patches is left out, so a
        map sums to 1 at most.

    Raises:
      ValueError: for a token that there is not.
    """
    tokens = len(self.read)
    if token is not None and not 0 <= token < tokens:
      raise ValueError(f'token is {token}, must be 0 to {tokens - 1}')
    by = self.read if token is None else np.eye(tokens, dtype=np.float32)[token]
    rows = np.einsum('t,lats->las', by, self.weights)[..., self.prefix :]
    return rows.reshape(*rows.shape[:2], *self.grid)

  def distances(self) -> np.ndarray:
    """(L, A) pixels, see `mean_attention_distance`."""
    apart = patch_distances(self.grid, self.patch)
    return np.stack([np.asarray(mean_attention_distance(layer, apart)) for layer in self.weights])

  def rollout(self, *, fusion: str = 'mean', discard: float = 0.0) -> np.ndarray:
    """(L, T, T) float32: [l] is the rollout of the first l + 1 layers, see `rollout_step`.

    Raises:
      ValueError: for an unknown fusion, or a fraction of weights outside [0, 1).
    """
    check_rollout(fusion, discard)
    step, steps = jnp.eye(len(self.read)), []
    for layer in self.weights:
      step = rollout_step(layer, step, fusion=fusion, discard=discard)
      steps.append(np.asarray(step))
    return np.stack(steps)

  def rollout_maps(self, *, fusion: str = 'mean', discard: float = 0.0) -> np.ndarray:
    """(L, R, C): how much of each patch is in what the head would read of each layer's tokens."""
    rows = self.read @ self.rollout(fusion=fusion, discard=discard)  # (L, T)
    return rows[:, self.prefix :].reshape(-1, *self.grid)


def attention(run: bundle.Bundle, image: np.ndarray) -> Attention:
  """All attention weights of an image (H, W, C) uint8, as `run.preprocess` makes it.

  `attention_summary` gives what pictures need of a model too large for this.

  Raises:
    ValueError: for a model without attention.
  """
  model = check_attention(run.model)
  traced = trace(run, image)
  return Attention(
    weights=np.stack([np.asarray(layer) for layer in layer_weights(run, traced)]),
    read=reading(model, traced),
    grid=traced.grid,
    prefix=traced.prefix,
    patch=model.patch,
    pool=None if traced.pool is None else np.asarray(traced.pool),
  )


def reading(model: vit.ViT, trace: Activations) -> np.ndarray:
  """(T,) float32: how much of each token of the last layer the head reads; sums to 1.

  The class token alone for pool 'token', all patches alike for 'gap' and 'none', half and half for
  'token_gap', and the mean over heads of the pooling's own weights for 'map'. A head for the
  distillation token has half a say.
  """
  if trace.pool is not None:
    read = np.asarray(trace.pool, np.float32).mean(0)
  else:
    token, patches = np.zeros((2, trace.prefix + math.prod(trace.grid)), np.float32)
    token[0], patches[trace.prefix :] = 1, 1 / math.prod(trace.grid)
    fraction = {'token': 1.0, 'token_gap': 0.5}.get(model.pool, 0.0)
    read = fraction * token + (1 - fraction) * patches
  if model.distillation == 'head':
    read = read / 2
    read[1] += 0.5
  return as_float32(read)


def attention_summary(
  run: bundle.Bundle, trace: Activations, *, fusion: str = 'mean', discard: float = 0.0
) -> dict[str, np.ndarray]:
  """What `Attention` tells of an image, without its weights ever being there together.

  Returns:
    'maps' (L, A, R, C), 'distances' (L, A) in pixels and 'rollout' (L, R, C), as `Attention.maps`,
    `.distances` and `.rollout_maps` give them.

  Raises:
    ValueError: for a model without attention, or a rollout that there is not.
  """
  model = check_attention(run.model)
  check_rollout(fusion, discard)
  read = jnp.asarray(reading(model, trace))
  apart = patch_distances(trace.grid, model.patch)
  before = jnp.eye(len(read))
  parts: dict[str, list[np.ndarray]] = {'maps': [], 'distances': [], 'rollout': []}
  for weights in layer_weights(run, trace):
    before = rollout_step(weights, before, fusion=fusion, discard=discard)
    parts['maps'].append(np.asarray(jnp.einsum('t,ats->as', read, weights, precision='highest')))
    parts['distances'].append(np.asarray(mean_attention_distance(weights, apart)))
    parts['rollout'].append(np.asarray(jnp.matmul(read, before, precision='highest')))
  arrays = {name: np.stack(values) for name, values in parts.items()}
  for name in ('maps', 'rollout'):
    patches = arrays[name][..., trace.prefix :]
    arrays[name] = patches.reshape(*patches.shape[:-1], *trace.grid)
  return arrays


def patch_distances(grid: tuple[int, int], patch: tuple[int, int]) -> np.ndarray:
  """(P, P) float32: pixels between the centres of patches, which are `patch` high and wide.

  A hybrid's patch is that of the picture: its stem's stride is in it.
  """
  rows, columns = (np.arange(n) * side for n, side in zip(grid, patch))
  y, x = np.repeat(rows, grid[1]), np.tile(columns, grid[0])
  return np.hypot(y[:, None] - y, x[:, None] - x).astype(np.float32)


@jax.jit
def mean_attention_distance(weights: Array, apart: Array) -> Array:
  """(A,) pixels: the mean attention distance of each head (arXiv 2010.11929, figure 7, right).

  Of a patch's query it is the distance to all patches, weighted by how much it attends to them;
  what it attends to tokens without a place is left out, and the other weights sum to 1. Then the
  mean over queries; one that attends to no patch at all is left out.

  Args:
    weights: (A, T, T), the patches last.
    apart: (P, P) pixels, of `patch_distances`.
  """
  count = len(apart)
  patches = jnp.asarray(weights)[:, -count:, -count:]  # (A, P, P)
  total = patches.sum(-1)
  far = jnp.einsum('aij,ij->ai', patches, apart, precision='highest')
  return jnp.nanmean(jnp.where(total > 0, far / total, jnp.nan), axis=1)


def check_rollout(fusion: str, discard: float) -> None:
  """Raises ValueError for an unknown way to join heads, or a fraction of weights outside [0, 1)."""
  if fusion not in FUSIONS:
    raise ValueError(f'unknown fusion {fusion!r}; known: {", ".join(FUSIONS)}')
  if not 0 <= discard < 1:
    raise ValueError(f'discard is {discard}, must lie in [0, 1)')


@functools.partial(jax.jit, static_argnames=('fusion', 'discard'))
def rollout_step(
  weights: Array, before: Array, *, fusion: str = 'mean', discard: float = 0.0
) -> Array:
  """The rollout (T, T) of one more layer (Abnar and Zuidema, arXiv 2005.00928, equation 1).

  Heads are joined by their mean, maximum or minimum; the `discard` fraction of the whole matrix's
  weights, the smallest, becomes 0 (but for those equal to the smallest that stays); the identity
  is added for the residual branch, rows are scaled to sum to 1, and multiplied with the layers
  before. With the mean, and nothing discarded, that is (weights + 1) / 2 of the paper.

  Args:
    weights: (A, T, T).
    before: (T, T), the rollout of the layers before; of none, the identity.
    fusion: of FUSIONS.
    discard: in [0, 1).
  """
  fused = FUSIONS[fusion](jnp.asarray(weights), axis=0)  # (T, T)
  count = int(discard * fused.size)
  if count:
    fused = jnp.where(fused < jnp.sort(fused, axis=None)[count], 0, fused)
  mixed = fused + jnp.eye(len(fused))
  mixed = mixed / mixed.sum(axis=1, keepdims=True)
  return jnp.matmul(mixed, before, precision='highest')


# Layers side by side


def cka(x: np.ndarray, y: np.ndarray) -> float:
  """Linear centred kernel alignment of n examples (Kornblith et al., arXiv 1905.00414, section 3).

  1 for what is the same but for rotation, shift and one scale; with few examples and many features
  it is too large. NaN where all examples are the same.

  Args:
    x, y: (n, features), of the same examples in the same order.
  """
  return float(cka_matrix([x, y])[0, 1])


def cka_matrix(features: Sequence[np.ndarray]) -> np.ndarray:
  """(l, l) float64 linear CKA of l representations (n, features) of the same examples."""
  grams = []
  for x in features:
    centred = x - np.mean(x, 0, np.float64)
    gram = (centred @ centred.T).reshape(-1)  # (n^2,)
    norm = np.linalg.norm(gram)
    grams.append(gram / norm if norm else np.full_like(gram, np.nan))
  stacked = np.stack(grams)
  return stacked @ stacked.T


def layer_features(trace: Activations, patches: np.ndarray) -> list[np.ndarray]:
  """The tokens (n, D) of some patches in each of `Activations.layers`.

  A ResNet's layers have a grid each: all are brought to the last one's, with antialiasing.

  Args:
    trace: of one image.
    patches: (n,) their numbers, row by row.
  """
  if isinstance(trace.layers, Array):
    return list(as_float32(trace.layers[:, trace.prefix + patches]))
  brought = []
  for layer in trace.layers:
    down, across = (
      resample.matrix('bilinear_antialias', old, new) for old, new in zip(layer.shape, trace.grid)
    )
    cells = np.einsum('yr,xc,rcd->yxd', down, across, as_float32(layer), optimize=True)
    brought.append(as_float32(cells.reshape(-1, cells.shape[-1])[patches]))
  return brought


def sample_patches(grid: tuple[int, int], *, images: int, image: int) -> np.ndarray:
  """Numbers of the patches of one of `images` that layers are compared on: EXAMPLES in all."""
  count, per_image = math.prod(grid), max(EXAMPLES // images, 1)
  return np.sort(np.random.default_rng(image).permutation(count)[:per_image])


def layer_similarity(run: bundle.Bundle, images: Sequence[np.ndarray]) -> np.ndarray:
  """(L + 1, L + 1) linear CKA of what goes into the first block and comes out of each block.

  The examples are patches: EXAMPLES of them, the same number from each image, chosen at random but
  always the same; fewer where there are fewer. Of a ResNet the layers are root and stages, the
  examples the cells of its last.
  """
  parts = []
  for index, image in enumerate(images):
    traced = trace(run, image)
    chosen = sample_patches(traced.grid, images=len(images), image=index)
    parts.append(layer_features(traced, chosen))
  return cka_matrix([np.concatenate(layer) for layer in zip(*parts)])


# Patches as colours


@dataclasses.dataclass(frozen=True)
class PatchColours:
  """The first three principal components of patch tokens, as red, green and blue.

  Fields:
    colours: (N, R, C, 3) float32 in [0, 1].
    variance: (3,) float32, the fraction of the tokens' variance that each explains.
  """

  colours: np.ndarray
  variance: np.ndarray


def patch_tokens(run: bundle.Bundle, images: Sequence[np.ndarray]) -> np.ndarray:
  """(N, R, C, D) float32 tokens of patches after the last norm; of a ResNet its last stage's cells.

  Args:
    run: the model.
    images: N of (H, W, C) uint8, as `run.preprocess` makes them.
  """
  model, preprocess = run.model, run.preprocess
  prefix = model.prefix if isinstance(model, vit.ViT) else 0
  mean, std = tuple(preprocess.mean), tuple(preprocess.std)
  params, parts = jax.device_put(run.params), []
  for first in range(0, len(images), AT_A_TIME):
    batch = np.stack(images[first : first + AT_A_TIME])
    encoded = encoded_array(params, batch, model=model, mean=mean, std=std)
    grid = encoded.shape[1:3] if encoded.ndim == 4 else patch_grid(model, preprocess.size)
    tokens = encoded.reshape(len(batch), -1, encoded.shape[-1])[:, prefix:]  # (n, P, D)
    parts.append(as_float32(tokens).reshape(len(batch), *grid, -1))
  return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std'))
def encoded_array(
  params: Params,
  images: Array,
  *,
  model: models.Model,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Array:
  """What the encoder gives for images (N, H, W, C) uint8: (N, T, D), or (N, R, C, D)."""
  return bundle.forward(model, params, images, mean=mean, std=std)[1]['encoded']


def patch_colours(tokens: np.ndarray) -> PatchColours:
  """Colours of patches by what they have in common (DINOv2, arXiv 2304.07193, figure 1).

  The components are of all patches of all images together, so that a colour means the same in
  each; each spans the values between the percentiles TAILS. A component's sign is that of its
  skewness: bright is what fewer patches have. So a rotation or a flip of the features, as between
  two trainings, changes no picture; nor does their scale.

  Args:
    tokens: (N, R, C, D) with D at least 3, such as `patch_tokens` gives.

  Raises:
    ValueError: for tokens that are not finite.
  """
  if not np.isfinite(tokens).all():
    raise ValueError('the tokens of patches are not finite')
  points = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)  # (n, D)
  length = np.linalg.norm(points) / math.sqrt(len(points))  # of a token, the root mean square
  points -= points.mean(0)
  variances, axes = np.linalg.eigh(points.T @ points)  # ascending
  scores = points @ axes[:, :-4:-1]  # (n, 3)
  scores *= np.where((scores**3).sum(0) < 0, -1, 1)
  low, high = np.percentile(scores, TAILS, axis=0)
  smallest = np.finfo(float).tiny
  colours = np.clip((scores - low) / np.maximum(high - low, FLAT * length + smallest), 0, 1)
  fractions = variances[:-4:-1] / max(variances.sum(), smallest)
  return PatchColours(as_float32(colours).reshape(*tokens.shape[:3], 3), as_float32(fractions))


# Where a class comes from


class Readout(vit.ViT):
  """A ViT's pooling and head alone, with its parameters."""

  @nn.compact
  def __call__(self, tokens: Array) -> Array:  # type: ignore[override]
    """(N, prefix + 1, D), after the encoder's last norm -> (N, K)."""
    logits, _ = self.readout(tokens, 1, train=False, attention=False)
    return logits[:, 0] if self.pool == 'none' else logits


def evidence(run: bundle.Bundle, trace: Activations, labels: Sequence[int]) -> np.ndarray:
  """(R, C, labels) float32: the logits of some classes, of each patch by itself.

  A patch's logits are those that the head gives if its last token stands for all patches; tokens
  before the patches, where pooling reads them, stay. With pool 'gap' and 'token_gap', of a Mixer
  and of a ResNet (there it is the class activation map of arXiv 1512.04150) the mean over patches
  is then the image's logits, if neither a norm nor a tanh layer lies between. With pool 'token'
  the head never saw a patch's token in training: it is read in the place of the class token.

  Raises:
    ValueError: for a model without a head.
  """
  model = run.model
  if not model.num_classes:
    raise ValueError(f'{run.name} has no head here, so no classes')
  tokens = trace.encoded.reshape(-1, trace.encoded.shape[-1])  # (T, D)
  logits = patch_logits(run.params, tokens, np.asarray(labels, np.int32), model=model)
  return np.asarray(logits).reshape(*trace.grid, len(labels))


@functools.partial(jax.jit, static_argnames='model')
def patch_logits(params: Params, tokens: Array, labels: Array, *, model: models.Model) -> Array:
  """(P, labels) of the last tokens (T, D)."""
  if isinstance(model, vit.ViT):
    before, patches = tokens[None, : model.prefix], tokens[model.prefix :, None]  # (P, 1, D)
    prefix = patches if model.pool == 'token' else before
    if model.pool == 'token' and model.distillation == 'head':
      prefix = jnp.concatenate([patches, patches], 1)
    prefix = jnp.broadcast_to(prefix, (len(patches), *prefix.shape[1:]))
    alone = jnp.concatenate([prefix, patches], 1)
    readout: Any = Readout(**models.fields(model))
    logits = readout.apply({'params': params}, alone)
  else:
    head: Any = layers.classifier(
      model.num_classes, model.head_bias, init=model.head_init, name='head'
    )
    logits = head.apply({'params': params['head']}, tokens.astype(jnp.float32))
  return logits[:, labels]


@dataclasses.dataclass(frozen=True)
class Occlusion:
  """How a class's score falls as a grey square hides part of an image.

  Fields:
    drop: (rows, columns) float32, the score of the whole image less that with the square.
    tops: (rows,) where the square begins, in pixels from above.
    lefts: (columns,) and from the left.
    square: its side (height, width) in pixels.
    score: of the whole image.
  """

  drop: np.ndarray
  tops: np.ndarray
  lefts: np.ndarray
  square: tuple[int, int]
  score: float

  def field(self, size: tuple[int, int]) -> np.ndarray:
    """(H, W): the mean drop of all squares that hide a pixel; NaN where none does."""
    total, count = np.zeros((2, *size))
    for (row, column), drop in np.ndenumerate(self.drop):
      y, x = self.tops[row], self.lefts[column]
      place = slice(y, y + self.square[0]), slice(x, x + self.square[1])
      total[place] += drop
      count[place] += 1
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)


def occlusion(
  scores: Callable[[list[np.ndarray]], np.ndarray],
  image: np.ndarray,
  label: int,
  *,
  square: tuple[int, int],
  stride: tuple[int, int],
  grey: Sequence[int] = (127,),
) -> Occlusion:
  """Hides an image square by square (Zeiler and Fergus, arXiv 1311.2901, section 4.2).

  The squares begin at multiples of the stride, and the last ones end with the image.

  Args:
    scores: of a list of images: (N, K).
    image: (H, W, C) uint8.
    label: of the class.
    square: height and width in pixels.
    stride: pixels between squares, down and across.
    grey: of the square, uint8, of each channel or of all.

  Raises:
    ValueError: for a square that is larger than the image, or a stride below 1.
  """
  check_squares(image.shape, square, stride)
  tops, lefts = (starts(*sides) for sides in zip(image.shape, square, stride))
  places = [(y, x) for y in tops for x in lefts]
  hidden = [hide(image, place, square, grey) for place in places]
  whole, *hidden_scores = scores([image, *hidden])[:, label]
  drop = as_float32(whole - np.array(hidden_scores).reshape(len(tops), len(lefts)))
  return Occlusion(drop, tops, lefts, square, float(whole))


def check_squares(size: tuple[int, ...], square: tuple[int, int], stride: tuple[int, int]) -> None:
  """Raises ValueError for squares that do not fit an image of (height, width, ...)."""
  fits = all(1 <= extent <= side for extent, side in zip(square, size))
  if not fits or min(stride) < 1:
    raise ValueError(
      f'a square of {square[0]}x{square[1]} every {stride[0]}x{stride[1]} pixels does not fit '
      f'an image of {size[0]}x{size[1]}'
    )


def starts(side: int, square: int, stride: int) -> np.ndarray:
  """Where squares begin on a side, so that every pixel is hidden if the stride allows."""
  return np.union1d(np.arange(0, side - square + 1, stride), side - square)


def hide(
  image: np.ndarray, place: tuple[int, int], square: tuple[int, int], grey: Sequence[int]
) -> np.ndarray:
  """A copy of an image with a grey square whose upper left corner is at `place`."""
  hidden, (y, x) = image.copy(), place
  hidden[y : y + square[0], x : x + square[1]] = grey
  return hidden


def occlusion_steps(
  model: models.Model, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
  """A square, two strides wide, and a stride of whole patches: about STEPS down and across."""
  height, width = (
    patch * math.ceil(side / STEPS / patch) for side, patch in zip(size, model.patch)
  )
  square = min(2 * height, size[0]), min(2 * width, size[1])
  return square, (height, width)


def grey_colour(preprocess: bundle.Preprocess) -> tuple[int, ...]:
  """The uint8 colour that a model sees as zeros, or nearly."""
  return tuple(int(np.clip(round(255 * mean), 0, 255)) for mean in preprocess.mean)
