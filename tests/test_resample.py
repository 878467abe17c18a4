"""Tables and kernels for another input equal what each family's own code makes of them.

tests/data/resample.npz holds what that code gave on a CPU, with torch 2.13.0, timm 1.0.31,
torchvision 0.28.0, transformers 5.23.0 and SciPy 1.17.1, in float32, for inputs of `draw`. A name
reads 'positions RULE GRID NEW_GRID PEER', 'patch_kernel RULE SIZE NEW_SIZE PEER' or
'channels COUNT PEER'; the peers' functions are

  scipy         scipy.ndimage.zoom(grid, order=1)
  torch         torch.nn.functional.interpolate(mode='bilinear', antialias=True)
  timm          layers.resample_abs_pos_embed, layers.resample_patch_embed (its intermediate type
                set to float64, without which it is off by 2e-5), models.adapt_input_conv
  torchvision   models.vision_transformer.interpolate_embeddings
  transformers  ViTModel(config).embeddings.interpolate_pos_encoding
  naflexvit     timm's NaFlexEmbeds(pos_embed_ar_preserving=True)._apply_learned_pos_embed
"""

import pathlib

import jax
import numpy as np
import pytest

from vit_jax.convert import resample

pytestmark = pytest.mark.arithmetic

RULES = list(resample.RULES)


@pytest.mark.parametrize('old, new', [(4, 6), (6, 4), (14, 24), (1, 3)])
def test_relative_positions_of_another_grid_are_means_of_old_ones_and_mirrored(old, new):
  weights = resample.relative_matrix(old, new)
  assert weights.shape == (2 * new - 1, 2 * old - 1)
  np.testing.assert_allclose(weights.sum(axis=1), 1)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)
  np.testing.assert_array_equal(weights[new - 1], np.eye(2 * old - 1)[old - 1])  # no distance


with np.load(pathlib.Path(__file__).parent / 'data' / 'resample.npz') as file:
  PEERS = dict(file)


def draw(*shape):
  return np.random.RandomState(0).randn(*shape).astype(np.float32)


def pair(text):
  """(14, 16) of '14x16'."""
  return tuple(int(side) for side in text.split('x'))


def peers(function):
  return [name for name in PEERS if name.startswith(function)]


def test_every_rule_has_a_peer():
  assert {name.split()[1] for name in peers('positions')} == set(RULES)


@pytest.mark.parametrize('name', peers('positions'))
def test_positions_equal_their_peers(name):
  _, rule, grid, new, _ = name.split()
  result = resample.positions(draw(np.prod(pair(grid)), 2), pair(grid), pair(new), rule)
  # Peers find coordinates, of 16 at most, in float32: 2^-24 * 16, in each of two directions
  np.testing.assert_allclose(result, PEERS[name], atol=2e-6 * np.abs(result).max(), rtol=0)


KERNELS = {'16x16': (16, 16, 1, 1), '4x4': (4, 4, 3, 2)}


@pytest.mark.parametrize('name', peers('patch_kernel'))
def test_patch_kernels_equal_their_peers(name):
  _, rule, size, new, _ = name.split()
  result = resample.patch_kernel(draw(*KERNELS[size]), pair(new), rule)
  np.testing.assert_allclose(result, PEERS[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize('name', peers('channels'))
def test_channels_equal_their_peers(name):
  result = resample.channels(draw(2, 2, 3, 2), int(name.split()[1]))
  np.testing.assert_allclose(result, PEERS[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
  'old, new, expected',
  [
    ([[1, 2], [3, 4]], 3, [[1, 1.5, 2], [2, 2.5, 3], [3, 3.5, 4]]),
    (np.arange(16).reshape(4, 4), 2, [[0, 3], [12, 15]]),
    (np.arange(16).reshape(4, 4), 3, [[0, 1.5, 3], [6, 7.5, 9], [12, 13.5, 15]]),
    (np.arange(16).reshape(4, 4), 1, [[0]]),
    ([[7]], 2, [[7, 7], [7, 7]]),
  ],
)
def test_the_corners_of_a_google_table_stay(old, new, expected):
  grid = np.shape(old)
  result = resample.positions(np.reshape(old, (-1, 1)), grid, (new, new), 'bilinear_align_corners')
  np.testing.assert_allclose(result.reshape(new, new), expected, atol=1e-6)


def test_a_google_table_from_14_to_24_has_its_published_sum():
  table = np.random.RandomState(0).randn(196, 8)
  result = resample.positions(table, (14, 14), (24, 24), 'bilinear_align_corners')
  # 4608 float32 terms
  np.testing.assert_allclose(result.sum(dtype=np.float64), -97.91457, atol=2e-5)


SIDES = [(old, new) for old in (1, 2, 3, 7, 14, 16) for new in (1, 2, 3, 8, 14, 37)]


@pytest.mark.quick
@pytest.mark.parametrize('rule', RULES)
def test_a_matrix_keeps_what_is_constant_and_is_its_own_mirror_image(rule):
  for old, new in SIDES:
    matrix = resample.matrix(rule, old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    if not (resample.RULES[rule].align_corners and new == 1):  # which takes the first
      np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)


@pytest.mark.quick
@pytest.mark.parametrize('rule', RULES)
def test_the_same_size_changes_no_bit(rule):
  for side in range(1, 41):
    np.testing.assert_array_equal(resample.matrix(rule, side, side), np.eye(side))
  table = draw(6, 4)
  np.testing.assert_array_equal(resample.positions(table, (2, 3), (2, 3), rule), table)
  kernel = draw(2, 3, 3, 4)
  np.testing.assert_array_equal(resample.patch_kernel(kernel, (2, 3), rule), kernel)


@pytest.mark.parametrize('rule', [rule for rule in RULES if not resample.RULES[rule].square])
def test_rows_then_columns_equal_both_at_once(rule):
  table = draw(35, 4)
  rows = resample.positions(table, (7, 5), (4, 5), rule)
  result = resample.positions(rows, (4, 5), (4, 9), rule)
  np.testing.assert_allclose(result, resample.positions(table, (7, 5), (4, 9), rule), atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize('rule', [rule for rule in RULES if resample.RULES[rule].square])
def test_a_square_rule_gives_the_corner_of_a_square_grid(rule):
  table = draw(16, 4)
  result = resample.positions(table, (4, 4), (5, 9), rule)
  square = resample.positions(table, (4, 4), (9, 9), rule.removesuffix('_square'))
  np.testing.assert_array_equal(result, square[: 5 * 9])


@pytest.mark.parametrize('rule', RULES)
def test_a_turned_table_gives_the_turned_result(rule):
  field = draw(7, 5, 4)
  result = resample.positions(field.reshape(-1, 4), (7, 5), (4, 9), rule).reshape(4, 9, 4)
  turned = field.swapaxes(0, 1).reshape(-1, 4)
  turned = resample.positions(turned, (5, 7), (9, 4), rule).reshape(9, 4, 4)
  np.testing.assert_allclose(turned.swapaxes(0, 1), result, atol=1e-6)


SHRINK, GROW = ((7, 5), (4, 2)), ((4, 6), (9, 7))


@pytest.mark.parametrize(
  'rule, method, sides',
  [
    ('bicubic_antialias', 'bicubic', SHRINK),
    ('bicubic_antialias', 'bicubic', GROW),
    ('bilinear_antialias', 'linear', SHRINK),
    ('bilinear_antialias', 'linear', GROW),
    ('bilinear', 'linear', GROW),
  ],
)
def test_half_pixel_rules_equal_jax(rule, method, sides):
  grid, new = sides
  field = draw(*grid, 4)
  expected = jax.image.resize(field, (*new, 4), method).reshape(-1, 4)
  result = resample.positions(field.reshape(-1, 4), grid, new, rule)
  # JAX finds coordinates, of 9 at most, in float32
  np.testing.assert_allclose(result, expected, atol=2e-6 * np.abs(result).max(), rtol=0)


def resized(patch, new, rule):
  """A patch (P, Q, C) as images are resized, in float64: (P', Q', C)."""
  down, across = (resample.matrix(rule, *sides) for sides in zip(patch.shape, new))
  return np.einsum('yp,xq,pqc->yxc', down, across, patch)


@pytest.mark.parametrize('new', [(8, 8), (5, 9), (4, 7)])
@pytest.mark.parametrize('rule', RULES)
def test_a_larger_patch_embeds_to_the_same_token(rule, new):
  patch, kernel = draw(4, 6, 3), draw(4, 6, 3, 2)
  result = np.tensordot(resized(patch, new, rule), resample.patch_kernel(kernel, new, rule), 3)
  # a sum of up to 192 products with float32 weights
  np.testing.assert_allclose(result, np.tensordot(patch, kernel, 3), atol=1e-5)


@pytest.mark.parametrize('rule', RULES)
def test_a_smaller_patch_embeds_to_the_nearest_token(rule):
  """The error that is left, B^T w' - w, is at right angles to whatever a kernel can reach."""
  kernel, new = draw(8, 6, 1, 1), (3, 5)
  down, across = resample.matrix(rule, 8, 3), resample.matrix(rule, 6, 5)
  result = resample.patch_kernel(kernel, new, rule)[..., 0, 0]
  error = down.T @ result @ across - kernel[..., 0, 0]
  assert np.abs(error).max() > 0.1
  np.testing.assert_allclose(down @ error @ across.T, 0, atol=1e-6)


def embedded(grey, kernel):
  """The token of a grey patch (P, Q) whose channels are all equal."""
  return np.einsum('pq,pqcd->d', grey, kernel)


@pytest.mark.quick
@pytest.mark.parametrize('old, new', [(3, 1), (3, 3), (3, 6), (1, 4), (5, 1), (2, 4), (5, 5)])
def test_a_grey_patch_embeds_to_the_same_token_through_other_channels(old, new):
  grey, kernel = draw(4, 4), draw(4, 4, old, 2)
  result = resample.channels(kernel, new)
  assert (result.shape, result.dtype) == ((4, 4, new, 2), np.float32)
  np.testing.assert_allclose(embedded(grey, result), embedded(grey, kernel), atol=1e-5)


@pytest.mark.quick
def test_a_kernel_for_other_channels_repeats_them_in_turn_at_their_whole_weight():
  kernel = draw(2, 2, 5, 1)
  np.testing.assert_array_equal(resample.channels(kernel, 2), kernel[:, :, [0, 1]] * 2.5)
  turns = kernel[:, :, [0, 1, 2, 3, 4, 0, 1]] * np.float32(5 / 7)
  np.testing.assert_allclose(resample.channels(kernel, 7), turns, rtol=1e-6)
  with pytest.raises(ValueError, match='for 0 channels of one for 3'):
    resample.channels(draw(2, 2, 3, 1), 0)


@pytest.mark.quick
def test_an_unknown_rule_lists_the_known():
  with pytest.raises(ValueError, match=r"'nearest'; known: bilinear_align_corners, bilinear, "):
    resample.positions(draw(4, 1), (2, 2), (3, 3), 'nearest')
  with pytest.raises(ValueError, match="unknown rule 'nearest'"):
    resample.patch_kernel(draw(2, 2, 3, 1), (3, 3), 'nearest')


@pytest.mark.quick
def test_a_table_that_does_not_fill_its_grid_is_an_error():
  with pytest.raises(ValueError, match='197 position embeddings do not make a grid of 14x14'):
    resample.positions(draw(197, 1), (14, 14), (24, 24), 'bilinear')


@pytest.mark.quick
def test_a_grid_without_patches_is_an_error():
  with pytest.raises(ValueError, match='cannot resize a side from 2 to 0'):
    resample.positions(draw(4, 1), (2, 2), (0, 3), 'bilinear')
