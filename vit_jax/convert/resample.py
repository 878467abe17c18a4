"""Published weights for other inputs: position tables, patch kernels and their channels, resized.

P, Q rows and columns of a patch; R, C rows and columns of a grid of patches; D width.
Each rule treats rows and columns alike and apart: it is its interpolation `matrix` for one side.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Rule(NamedTuple):
  """One way to interpolate.

  Args:
    kernel: the weight of a value at a distance, in steps of the old grid.
    align_corners: whether the first and last values stay where they are; otherwise the outer edges
      of their cells do (half-pixel centres).
    antialias: whether the kernel widens as the grid shrinks, and what of it lies beyond the edge is
      left out; otherwise the values at the edge go on for ever.
    square: whether a grid of positions that is no square is the corner of the square on its longer
      side, so that neighbours are as far apart in both directions.
  """

  kernel: Callable[[Array], Array]
  align_corners: bool = False
  antialias: bool = False
  square: bool = False


def triangle(distance: Array) -> Array:
  return np.maximum(1 - np.abs(distance), 0)


def cubic(distance: Array, a: float) -> Array:
  """Keys' kernel (1981), with slope `a` at distance 1."""
  d = np.abs(distance)
  near = ((a + 2) * d - (a + 3)) * d * d + 1
  far = a * (((d - 5) * d + 8) * d - 4)
  return np.select([d <= 1, d < 2], [near, far])


TORCH = functools.partial(cubic, a=-0.75)  # and OpenCV; only without antialiasing
KEYS = functools.partial(cubic, a=-0.5)  # PIL, JAX, and torch with antialiasing

RULES = {
  'bilinear_align_corners': Rule(triangle, align_corners=True),  # Google: scipy.ndimage.zoom
  'bilinear': Rule(triangle),  # tf.image.resize; timm for Google's files
  'bilinear_antialias': Rule(triangle, antialias=True),  # jax.image.resize; SigLIP 2
  'bicubic_antialias': Rule(KEYS, antialias=True),  # timm; jax.image.resize; DINOv2 with registers
  'bicubic': Rule(TORCH),  # Hugging Face, but for DINOv2 with registers
  'bicubic_align_corners': Rule(TORCH, align_corners=True),  # torchvision
}
DEFAULT_RULE = 'bicubic_antialias'  # of models of ours, and of files that no code resamples
# Where timm's NaFlexVit preserves the aspect ratio
RULES |= {f'{name}_square': rule._replace(square=True) for name, rule in RULES.items()}


def matrix(rule: str, old: int, new: int) -> Array:
  """(new, old) float64 that takes values at `old` places of one side to `new`; rows sum to 1.

  With align_corners, one new place is the first old one.
  """
  if rule not in RULES:
    raise ValueError(f'unknown rule {rule!r}; known: {", ".join(RULES)}')
  if min(old, new) < 1:
    raise ValueError(f'cannot resize a side from {old} to {new}')
  kernel, align_corners, antialias, _ = RULES[rule]
  if align_corners:
    places = np.arange(new) * (old - 1) / max(new - 1, 1)
  else:
    places = (np.arange(new) + 0.5) * old / new - 0.5
  if antialias:
    weights = kernel((places[:, None] - np.arange(old)) / max(old / new, 1))
    return weights / weights.sum(axis=1, keepdims=True)
  reached = np.arange(-2, old + 2)  # a cubic reaches two places beyond the edge
  edge = np.eye(old)[reached.clip(0, old - 1)]  # (old + 4, old)
  return kernel(places[:, None] - reached) @ edge


def positions(table: Array, grid: tuple[int, int], new_grid: tuple[int, int], rule: str) -> Array:
  """Position embeddings (R C, D) of one grid for another: (R' C', D) float32.

  The table holds patches alone: embeddings of class, distillation and register tokens are the
  caller's to set aside.
  """
  rows, columns = grid
  if len(table) != rows * columns:
    raise ValueError(f'{len(table)} position embeddings do not make a grid of {rows}x{columns}')
  if grid == new_grid:
    return np.asarray(table, np.float32)
  sides = (max(new_grid),) * 2 if rule in RULES and RULES[rule].square else new_grid
  down, across = matrix(rule, rows, sides[0]), matrix(rule, columns, sides[1])
  down, across = down[: new_grid[0]], across[: new_grid[1]]
  field = np.reshape(table, (rows, columns, -1))  # (R, C, D)
  field = np.einsum('yr,xc,rcd->yxd', down, across, field, optimize=True)  # (R', C', D)
  return field.reshape(-1, field.shape[-1]).astype(np.float32)  # (R' C', D)


def relative_positions(table: Array, grid: tuple[int, int], new_grid: tuple[int, int]) -> Array:
  """A table of relative positions (distances + others, A) of one grid for another, float32.

  BEiT's rule, as timm has it (arXiv 2106.08254): `relative_matrix` down and across. What stands
  after the distances of patches, of other tokens, stays as it is.
  """
  sides = [2 * n - 1 for n in grid]
  distances = sides[0] * sides[1]
  down, across = (relative_matrix(*pair) for pair in zip(grid, new_grid))
  field = np.reshape(table[:distances], (*sides, -1))
  field = np.einsum('yr,xc,rca->yxa', down, across, field, optimize=True)
  patches = field.reshape(-1, field.shape[-1])
  return np.concatenate([patches, table[distances:]]).astype(np.float32)


def relative_matrix(old: int, new: int) -> Array:
  """(2 new - 1, 2 old - 1): values at the distances of `old` patches, taken to those of `new`.

  Old distances are spread as 0, 1, 1 + q, 1 + q + q^2, ..., so that near ones stay, and linear
  interpolation reads the new ones between; beyond the last, the last goes on.
  """
  low, high, q = 1.01, 1.5, 1.0  # between which timm bisects for q
  while high - low > 1e-6:
    q = (low + high) / 2
    low, high = (low, q) if (1 - q ** (old - 1)) / (1 - q) > new - 1 else (q, high)
  spread = np.cumsum(q ** np.arange(old - 1))
  places = np.concatenate([-spread[::-1], [0], spread])
  wanted = np.arange(1 - new, new)
  return np.stack([np.interp(wanted, places, row) for row in np.eye(2 * old - 1)], axis=1)


def patch_kernel(kernel: Array, new: tuple[int, int], rule: str = 'bilinear') -> Array:
  """A patch embedding's kernel (P, Q, C, D) for patches of another size: (P', Q', C, D) float32.

  FlexiViT's pseudo-inverse resize (arXiv 2212.08013, eq. 3). Where `rule` resizes a patch x by the
  matrix B, the new kernel is pinv(B^T) w. Of all kernels it makes <Bx, w'> nearest to <x, w> over
  white noise x, and equal for every x where the patch grows.

  Images are resized by `rule`: big_vision's 'bilinear', timm's 'bicubic_antialias'.
  """
  rows, columns = (np.linalg.pinv(matrix(rule, *sides).T) for sides in zip(kernel.shape, new))
  return np.einsum('yp,xq,pqcd->yxcd', rows, columns, kernel, optimize=True).astype(np.float32)


def channels(kernel: Array, count: int) -> Array:
  """A patch embedding's kernel (P, Q, C, D) for images of `count` channels, as timm adapts it.

  One channel takes the sum of all; others take them in turn, times C / count. A picture whose
  channels are all equal then gives what it gave, where `count` is 1 or a multiple of C.
  """
  have = kernel.shape[2]
  if have == count:
    return kernel
  if count < 1:
    raise ValueError(f'cannot make a patch kernel for {count} channels of one for {have}')
  if count == 1:
    return kernel.sum(axis=2, keepdims=True)
  return kernel[:, :, np.arange(count) % have] * (have / count)
