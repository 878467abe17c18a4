"""Laws of looking inside: an analysis is what its definition says, of what the model computed."""

import argparse
import dataclasses
import functools
import io
import json
import math
import pathlib
import shlex
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import SIZE, drawn, forward, shapes, tiny
from tests.test_docs import blocks, coded, table
from tests.test_run import ended, environment, started
from vit_jax import __main__ as vit
from vit_jax import analysis, bundle, models, predict, sources
from vit_jax.commands import flags
from vit_jax.commands import inspect as inspection
from vit_jax.evaluate import faithfulness
from vit_jax.text import si
from vit_jax.views import pictures

NAMES = ('ant', 'bee', 'cat', 'dog', 'elk')


def run_of(model, size=SIZE, name='ViT-Ti/16'):
  """A model whose every parameter is drawn, ready to use."""
  options = bundle.Preprocess('resize', size)
  return predict.Run(model, drawn(shapes(model, size)), NAMES, options, name)


@functools.cache
def vit_of(**fields):
  return run_of(tiny(**(dict(depth=2) | fields)))


@functools.cache
def mixer_of():
  return run_of(vit_jax.build('Mixer-S/16', num_classes=5, patch=4, width=16, depth=2,
                              tokens_dim=8, mlp_dim=24, unroll=1), name='Mixer-S/16')  # fmt: skip


@functools.cache
def hybrid_of():
  return run_of(tiny(patch=(32, 32), depth=1, stem=(), stem_width=32), (32, 64))


@functools.cache
def resnet_of():
  return run_of(vit_jax.build('BiT-R50x1', num_classes=5, blocks=(1, 1)), (32, 48), 'BiT-R50x1')


def picture(seed=0, size=SIZE):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def seen_by(run, seed=0):
  """A picture, the trace that it leaves, and what the usual forward pass gives for it."""
  image = picture(seed, run.preprocess.size)
  normal = np.float32(image[None] / 127.5 - 1)
  logits, out = forward(run.model, run.params, normal)
  return analysis.trace(run, image), logits[0], out


def close(result, expected, atol=1e-5):
  np.testing.assert_allclose(np.asarray(result), np.asarray(expected), atol=atol, rtol=0)


VARIANTS = {
  'token': dict(pool='token'),
  'gap': dict(pool='gap'),
  'map': dict(pool='map', class_token=True),
  'token_gap': dict(pool='token_gap'),
  'none': dict(pool='none', class_token=True),
  'registers': dict(pool='gap', class_token=True, registers=2, cls_position=False),
  'distilled': dict(pool='token', distillation='head'),
  'dinov3': dict(positions='rope', registers=1, swiglu=True, layer_scale=0.5, qk_norm=True),
  'normed': dict(pool='gap', final_norm='pooled', representation=7, pre_norm=True),
}
EACH = pytest.mark.parametrize('variant', VARIANTS)


# What the forward pass really used


@EACH
def test_weights_are_those_of_the_forward_pass(variant):
  run = vit_of(**VARIANTS[variant])
  trace = analysis.trace(run, picture())
  normal = np.float32(picture()[None] / 127.5 - 1)
  logits, out = forward(run.model, run.params, normal, attention=True)
  close(np.stack(list(analysis.layer_weights(run, trace))), out['attention'][:, 0])
  close(trace.logits, logits[0])
  close(trace.layers, np.concatenate([out['embedded'][None], out['blocks']])[:, 0])
  assert (trace.pool is None) == (variant != 'map')
  if trace.pool is not None:
    close(trace.pool, out['pool_attention'][0, :, 0])


@EACH
def test_a_layer_with_its_weights_gives_what_the_forward_pass_gave_without_them(variant):
  run = vit_of(**VARIANTS[variant])
  trace = analysis.trace(run, picture())
  for layer in range(run.model.depth):
    layer_input = trace.layers[layer]
    made, weights = analysis.block(run.params, layer_input, layer, model=run.model, grid=trace.grid)
    close(made, trace.layers[layer + 1])
    close(weights.sum(-1), np.ones(weights.shape[:2]))


def test_a_hybrids_weights_are_those_of_the_forward_pass():
  run = hybrid_of()
  normal = np.float32(picture(0, (32, 64))[None] / 127.5 - 1)
  _, asked = forward(run.model, run.params, normal, attention=True)
  result = run.attention(picture(0, (32, 64)))
  close(result.weights, asked['attention'][:, 0])


def test_memory_holds_the_weights_of_one_layer_and_not_of_all():
  model = tiny(depth=12, pool='map')
  params = shapes(model, (64, 64))
  tokens = 16 * 16
  one = 4 * model.heads * tokens**2
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
  half = (0.5, 0.5, 0.5)
  whole = analysis.traced_arrays.lower(params, image, model=model, mean=half, std=half).compile()
  layer = analysis.attention_weights.lower(
    params, jax.ShapeDtypeStruct((tokens, 16), jnp.float32), 0, model=model, grid=(16, 16)
  ).compile()
  for program in (whole, layer):
    assert 0 < program.memory_analysis().temp_size_in_bytes < 6 * one  # of the 12


@pytest.mark.parametrize('pool', ['token', 'gap', 'token_gap'])
def test_what_is_read_of_the_last_tokens_is_what_the_head_gets(pool):
  run = vit_of(**VARIANTS[pool])
  trace, _, out = seen_by(run)
  read, encoded = analysis.reading(run.model, trace), np.asarray(trace.encoded)
  if pool == 'token_gap':
    expected = np.asarray(out['pre_logits'][0]).reshape(2, -1).mean(0)
  else:
    expected = out['pre_logits'][0]
  close(read @ encoded, expected)
  assert read.sum() == pytest.approx(1, abs=1e-6)


def test_the_distillation_token_has_half_a_say_and_the_probe_reads_as_it_attends():
  trace, _, _ = seen_by(vit_of(**VARIANTS['distilled']))
  read = analysis.reading(vit_of(**VARIANTS['distilled']).model, trace)
  np.testing.assert_array_equal(read, [0.5, 0.5, *[0] * 6])
  run = vit_of(**VARIANTS['map'])
  trace, _, _ = seen_by(run)
  close(analysis.reading(run.model, trace), np.asarray(trace.pool).mean(0))


# Attention maps


def test_maps_are_the_class_tokens_row():
  run = vit_of(**VARIANTS['token'])
  result = run.attention(picture())
  close(result.maps(), result.weights[:, :, 0, 1:].reshape(2, 2, 2, 3), atol=0)
  close(result.maps(3), result.weights[:, :, 3, 1:].reshape(2, 2, 2, 3), atol=0)
  for token in (-1, 7):
    with pytest.raises(ValueError, match=f'token is {token}'):
      result.maps(token)


def test_maps_of_mean_pooling_are_the_mean_over_patches_and_registers_are_left_out():
  result = vit_of(**VARIANTS['registers']).attention(picture())
  assert result.prefix == 3 and result.weights.shape == (2, 2, 9, 9)
  close(result.maps(), result.weights[:, :, 3:, 3:].mean(2).reshape(2, 2, 2, 3), atol=1e-7)


@EACH
def test_a_summary_is_what_all_the_weights_tell(variant):
  run = vit_of(**VARIANTS[variant])
  whole = run.attention(picture())
  for options in (dict(), dict(fusion='max', discard=0.3)):
    result = analysis.attention_summary(run, analysis.trace(run, picture()), **options)
    close(result['maps'], whole.maps(), atol=1e-6)
    close(result['distances'], whole.distances())
    close(result['rollout'], whole.rollout_maps(**options), atol=1e-6)


def test_attention_of_a_file_is_that_of_its_pixels(tmp_path):
  run = vit_of()
  Image.fromarray(picture()).save(tmp_path / 'rose.png')
  result, listed = run.attention(tmp_path / 'rose.png'), run.attention([picture(), picture(1)])
  np.testing.assert_array_equal(result.weights, listed[0].weights)
  assert repr(result) == 'Attention(2 layers, 2 heads, 7 tokens, 2x3 patches)'
  assert len(listed) == 2 and not np.array_equal(listed[0].weights, listed[1].weights)


@pytest.mark.parametrize('run, name', [(mixer_of, 'Mixer'), (resnet_of, 'ResNet')])
def test_what_has_no_attention_says_so(run, name):
  with pytest.raises(ValueError, match=f'a {name} has no attention'):
    run().attention(picture(0, run().preprocess.size))


# Rollout


def random_weights(layers=3, heads=2, tokens=7, seed=0):
  scores = np.random.default_rng(seed).standard_normal((layers, heads, tokens, tokens))
  weights = np.exp(scores)
  return np.float32(weights / weights.sum(-1, keepdims=True))


def attention_of(weights, **more):
  tokens = weights.shape[-1]
  fields = dict(read=np.eye(tokens, dtype=np.float32)[0], grid=(2, 3), prefix=1, patch=(4, 4))
  return analysis.Attention(weights, **(fields | more))


@pytest.mark.parametrize('fusion', analysis.FUSIONS)
@pytest.mark.parametrize('discard', [0.0, 0.5, 0.99])
def test_rows_of_rollout_sum_to_one(fusion, discard):
  result = attention_of(random_weights()).rollout(fusion=fusion, discard=discard)
  assert result.shape == (3, 7, 7) and result.min() >= 0
  close(result.sum(-1), np.ones((3, 7)), atol=1e-6)


def test_rollout_is_the_product_of_the_papers_layers():
  weights = random_weights()
  expected = np.eye(7)
  for layer in weights:
    expected = (0.5 * layer.mean(0) + 0.5 * np.eye(7)) @ expected
  close(attention_of(weights).rollout()[-1], expected, atol=1e-6)


def test_rollout_of_attention_to_oneself_stays_where_it_is():
  weights = np.tile(np.eye(7, dtype=np.float32), (3, 2, 1, 1))
  for fusion in analysis.FUSIONS:
    close(attention_of(weights).rollout(fusion=fusion), np.tile(np.eye(7), (3, 1, 1)), atol=0)


@pytest.mark.parametrize(
  'fusion, discard, rows',
  [
    ('mean', 0.0, [[0.6, 0.4], [0.3, 0.7]]),
    ('max', 0.0, [[0.8, 0.6], [0.4, 0.8]]),
    ('min', 0.0, [[0.4, 0.2], [0.2, 0.6]]),
    ('mean', 0.3, [[0.6, 0.4], [0.0, 0.7]]),  # one of the four, whichever row it is in
    ('mean', 0.5, [[0.6, 0.0], [0.0, 0.7]]),
    ('mean', 0.9, [[0.0, 0.0], [0.0, 0.7]]),  # a row may lose all: the identity stays
  ],
)
def test_heads_are_joined_and_the_smallest_weights_left_out(fusion, discard, rows):
  weights = np.float32([[[0.8, 0.2], [0.4, 0.6]], [[0.4, 0.6], [0.2, 0.8]]])
  expected = np.add(rows, np.eye(2))
  result = analysis.rollout_step(weights, jnp.eye(2), fusion=fusion, discard=discard)
  close(result, expected / expected.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize('options', [dict(fusion='median'), dict(discard=1.0), dict(discard=-0.1)])
def test_a_rollout_that_there_is_not_is_refused(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    attention_of(random_weights()).rollout(**options)
  with pytest.raises(ValueError, match=next(iter(options))):
    analysis.attention_summary(vit_of(), analysis.trace(vit_of(), picture()), **options)


# Distances


@pytest.mark.parametrize('count', [2, 7, 30])
def test_uniform_attention_in_a_row_of_patches_has_its_closed_form(count):
  uniform = np.full((1, count, count), 1 / count, np.float32)
  far = analysis.mean_attention_distance(uniform, analysis.patch_distances((1, count), (16, 16)))
  assert far[0] == pytest.approx(16 * (count**2 - 1) / (3 * count), rel=1e-5)


def test_uniform_attention_on_a_grid_has_the_mean_over_all_offsets():
  rows, columns, high, wide = 5, 3, 8, 16
  expected = 0.0
  for y in range(-rows + 1, rows):
    for x in range(-columns + 1, columns):
      share = (rows - abs(y)) * (columns - abs(x)) / (rows * columns) ** 2
      expected += share * math.hypot(high * y, wide * x)
  tokens = rows * columns + 2
  uniform = np.full((4, tokens, tokens), 1 / tokens, np.float32)  # two are no patches
  apart = analysis.patch_distances((rows, columns), (high, wide))
  close(analysis.mean_attention_distance(uniform, apart), np.full(4, expected), atol=1e-4)


def test_attention_to_oneself_goes_no_way_and_to_the_neighbour_one_patch():
  apart = analysis.patch_distances((1, 4), (16, 16))
  weights = np.eye(4, dtype=np.float32)[None]
  assert analysis.mean_attention_distance(weights, apart)[0] == 0
  close(analysis.mean_attention_distance(weights[:, [1, 0, 3, 2]], apart), [16], atol=0)


def test_what_goes_to_other_tokens_has_no_distance():
  weights = random_weights(1, 2, 7)[0]
  apart = analysis.patch_distances((2, 3), (4, 4))
  half = np.concatenate([np.ones((2, 7, 1)), weights[..., 1:]], -1).astype(np.float32) / 2
  close(
    analysis.mean_attention_distance(half, apart), analysis.mean_attention_distance(weights, apart)
  )
  weights[:, 3] = np.eye(7)[0]  # a patch that attends to no patch
  others = np.delete(weights[:, 1:], 2, 1)[..., 1:]
  expected = (others * np.delete(apart, 2, 0)).sum(-1) / others.sum(-1)
  close(analysis.mean_attention_distance(weights, apart), expected.mean(-1))


def test_a_hybrids_patch_has_its_stems_stride_in_it():
  result = hybrid_of().attention(picture(0, (32, 64)))
  assert result.grid == (1, 2) and result.patch == (32, 32)
  weights = np.eye(3, dtype=np.float32)[[0, 2, 1]]  # each of the two patches attends to the other
  moved = dataclasses.replace(result, weights=np.tile(weights, (1, 2, 1, 1)))
  close(moved.distances(), [[32, 32]], atol=1e-5)


# Filters and positions


@pytest.mark.parametrize(
  'run, shape, name',
  [
    (vit_of, (15, 4, 4, 3), 'patch embedding'),
    (mixer_of, (15, 4, 4, 3), 'patch embedding'),
    (hybrid_of, (28, 7, 7, 3), 'first convolution'),
    (resnet_of, (28, 7, 7, 3), 'first convolution'),
  ],
)
def test_filters_are_orthonormal_and_the_first_explain_most(run, shape, name):
  result = analysis.filters(run().model, run().params)
  assert result.components.shape == shape and result.of.endswith(name)
  flat = result.components.reshape(len(result.components), -1)
  close(flat @ flat.T, np.eye(len(flat)))
  assert (np.diff(result.variance) <= 0).all() and result.variance.sum() <= 1 + 1e-6
  assert (flat.max(1) >= -flat.min(1) - 1e-6).all()


def test_filters_of_two_kinds_have_one_principal_component_each():
  model = tiny(width=16)
  kernel = np.zeros((4, 4, 3, 16), np.float32)
  kernel[1, 2, 0, :8] = np.tile([3, -3], 4)
  kernel[0, 0, 2, 8:] = np.tile([-1, 1], 4)
  result = analysis.filters(model, {'embed': {'kernel': kernel + 5}})
  expected = np.zeros((2, 4, 4, 3))
  expected[0, 1, 2, 0] = expected[1, 0, 0, 2] = 1
  close(result.components[:2], expected, atol=1e-6)
  close(result.variance[:3], [0.9, 0.1, 0], atol=1e-6)


def test_filters_of_a_resnet_are_standardised_as_it_uses_them():
  run = resnet_of()
  kernel, _ = analysis.pixel_kernel(run.model, run.params)
  close(kernel.mean((0, 1, 2)), np.zeros(64))
  close(kernel.std((0, 1, 2)), np.ones(64), atol=1e-4)


def test_similarity_of_learned_positions_is_a_cosine_and_leaves_class_rows_out():
  run = vit_of(distillation='token')
  result = analysis.position_similarity(run.model, run.params, SIZE)
  table = np.asarray(run.params['positions'])[0]
  unit = table / np.linalg.norm(table, axis=1, keepdims=True)
  close(result.patches[1, 2], (unit[2:] @ unit[2 + 5]).reshape(2, 3), atol=1e-6)
  close(result.prefix, (unit[:2] @ unit[2:].T).reshape(2, 2, 3), atol=1e-6)
  close(np.einsum('rcrc->rc', result.patches), np.ones((2, 3)), atol=1e-6)


@pytest.mark.parametrize('positions', ['sincos2d', 'rope'])
def test_similarity_of_computed_positions_depends_on_the_offset_alone(positions):
  run = vit_of(positions=positions)
  result = analysis.position_similarity(run.model, run.params, (24, 24))
  close(result.patches[1:, 1:, 1:, 1:], result.patches[:-1, :-1, :-1, :-1], atol=1e-5)
  close(np.einsum('rcrc->rc', result.patches), np.ones((6, 6)), atol=1e-6)
  assert result.prefix.shape == (0, 6, 6)


def test_positions_that_are_zero_are_like_none():
  params = {'positions': np.zeros((1, 7, 16), np.float32)}
  assert not analysis.position_similarity(tiny(), params, SIZE).patches.any()


@pytest.mark.parametrize(
  'run, said',
  [
    (lambda: vit_of(positions='none'), 'a ViT without positions'),
    (mixer_of, 'a Mixer'),
    (resnet_of, 'a ResNet'),
  ],
)
def test_what_has_no_positions_says_so(run, said):
  with pytest.raises(ValueError, match=f'{said} has no position embeddings'):
    analysis.position_similarity(run().model, run().params, run().preprocess.size)


# Similarity of layers


def test_cka_of_a_matrix_with_itself_is_one_however_it_is_turned():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((40, 6))
  turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
  assert analysis.cka(x, x) == pytest.approx(1, abs=1e-6)
  assert analysis.cka(x, 3 * x @ turn + 7) == pytest.approx(1, abs=1e-6)
  assert analysis.cka(x, x * [5, 1, 1, 1, 1, 1]) < 0.95


def test_cka_is_that_of_the_covariances():
  rng = np.random.default_rng(1)
  x, y = rng.standard_normal((30, 5)), rng.standard_normal((30, 8))
  y[:, :3] += x[:, :3]
  a, b = x - x.mean(0), y - y.mean(0)
  norm = np.linalg.norm
  expected = norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
  assert analysis.cka(x, y) == analysis.cka(y, x) == pytest.approx(expected, abs=1e-6)


def test_cka_of_what_has_nothing_in_common_is_zero_and_of_nothing_unknown():
  x = np.array([[1, 0], [-1, 0], [0, 0], [0, 0]])
  y = np.array([[0, 0], [0, 0], [0, 1], [0, -1]])
  assert analysis.cka(x, y) == pytest.approx(0, abs=1e-7)
  assert math.isnan(analysis.cka(x, np.ones((4, 2))))


@pytest.mark.parametrize('run, layers', [(vit_of, 3), (mixer_of, 3), (resnet_of, 3)])
def test_layers_are_compared_on_the_patches_of_all_images(run, layers):
  run = run()
  images = [picture(seed, run.preprocess.size) for seed in range(3)]
  result = analysis.layer_similarity(run, images)
  assert result.shape == (layers, layers)
  close(result, result.T)
  close(np.diag(result), np.ones(layers))
  traces = [analysis.trace(run, image) for image in images]
  if isinstance(run.model, models.vit.ViT):
    first, last = (np.concatenate([t.layers[i, t.prefix :] for t in traces]) for i in (0, -1))
    assert result[0, -1] == pytest.approx(analysis.cka(first, last), abs=1e-6)
  assert not np.allclose(result, 1)


def test_a_sample_of_patches_is_the_same_each_time_and_no_patch_twice(monkeypatch):
  monkeypatch.setattr(analysis, 'EXAMPLES', 20)
  for image in range(2):
    chosen = analysis.sample_patches((4, 5), images=2, image=image)
    assert len(set(chosen.tolist())) == 10 and chosen.max() < 20
    np.testing.assert_array_equal(chosen, analysis.sample_patches((4, 5), images=2, image=image))


# Patches as colours


def test_independent_traits_of_patches_are_red_green_and_blue_in_all_images_alike():
  fourth = np.arange(4) == 3
  traits = np.stack(np.meshgrid(fourth, fourth, fourth, indexing='ij'), -1)  # (N, R, C, 3)
  axes = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0][:3]
  result = analysis.patch_colours((traits * [3, 2, 1]) @ axes + 5)
  close(result.colours, traits)
  close(result.variance, np.array([9, 4, 1]) / 14)


def test_no_rotation_flip_shift_or_scale_of_features_changes_a_colour():
  tokens = np.random.default_rng(0).gamma(2, size=(2, 6, 5, 7)) * [5, 3, 2, 1, 1, 1, 1]
  turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((7, 7)))
  colours = analysis.patch_colours(tokens).colours
  close(analysis.patch_colours(3 * tokens @ -turn + 7).colours, colours)
  assert colours.min() == 0 and colours.max() == 1


def test_patches_that_are_all_alike_have_one_colour():
  noise = 1e-7 * np.random.default_rng(0).standard_normal((1, 4, 4, 8))
  for tokens in (np.float32(1 + noise), np.zeros((1, 4, 4, 8))):
    assert np.ptp(analysis.patch_colours(tokens).colours) < 0.1


@pytest.mark.parametrize('run', [lambda: vit_of(registers=2), mixer_of, resnet_of])
def test_tokens_of_patches_are_the_last_of_the_forward_pass_without_those_before(run):
  images = [picture(seed, run().preprocess.size) for seed in range(2)]
  tokens = analysis.patch_tokens(run(), images)
  for image, grid in zip(images, tokens):
    _, out = forward(run().model, run().params, np.float32(image[None] / 127.5 - 1))
    encoded = out['encoded'].reshape(-1, tokens.shape[-1])
    close(grid.reshape(-1, tokens.shape[-1]), encoded[-grid[..., 0].size :])


# Evidence


@pytest.mark.parametrize('run', [
  lambda: vit_of(pool='gap'),
  lambda: vit_of(pool='gap', class_token=True, registers=1),
  lambda: vit_of(pool='token_gap'),
  lambda: vit_of(pool='gap', class_token=True, distillation='head'),
  mixer_of,
  resnet_of,
])  # fmt: skip
def test_the_evidence_of_all_patches_makes_the_logits(run):
  trace, logits, _ = seen_by(run())
  result = analysis.evidence(run(), trace, range(5))
  assert result.shape == (*trace.grid, 5)
  close(result.mean((0, 1)), logits)


@pytest.mark.parametrize('variant', [name for name in VARIANTS if 'token' not in name])
def test_the_evidence_of_an_only_patch_is_the_logits(variant):
  fields = dict(depth=1, pool='gap') | VARIANTS[variant]
  if fields['pool'] == 'token':
    fields |= dict(pool='gap', class_token=True)
  run = run_of(tiny(**fields), (4, 4))
  trace, logits, _ = seen_by(run)
  close(analysis.evidence(run, trace, range(5))[0, 0], logits.reshape(-1))


@pytest.mark.parametrize('fields', [{}, dict(distillation='head'), dict(registers=2)])
def test_with_a_class_token_a_patch_is_read_in_its_place(fields):
  run = vit_of(pool='token', representation=7, **fields)
  trace, _, _ = seen_by(run)
  params = run.params
  patches = np.asarray(trace.encoded)[trace.prefix :]
  hidden = np.tanh(patches @ params['pre_logits']['kernel'] + params['pre_logits']['bias'])
  expected = hidden @ params['head']['kernel'] + params['head']['bias']
  if fields.get('distillation'):
    other = patches @ params['head_dist']['kernel'] + params['head_dist']['bias']
    expected = (expected + other) / 2
  close(analysis.evidence(run, trace, [3, 1]), expected[:, [3, 1]].reshape(2, 3, 2))


def test_without_a_head_there_is_no_evidence():
  run = vit_of(num_classes=0)
  with pytest.raises(ValueError, match='no head'):
    analysis.evidence(run, analysis.trace(run, picture()), [0])


# Occlusion


def brightness(images):
  """Scores of two classes: how bright the upper left quarter of 8 x 12 pixels is, and nothing."""
  bright = np.stack(images)[:, :4, :6].mean((1, 2, 3)) / 255
  return np.stack([bright, np.zeros(len(images))], 1)


def test_a_square_takes_what_it_hides():
  white = np.full((8, 12, 3), 255, np.uint8)
  result = analysis.occlusion(brightness, white, 0, square=(4, 6), stride=(4, 6), grey=(0, 0, 0))
  close(result.drop, [[1, 0], [0, 0]], atol=1e-6)
  assert result.score == 1 and (result.tops.tolist(), result.lefts.tolist()) == ([0, 4], [0, 6])
  field = result.field((8, 12))
  assert (field[:4, :6] == 1).all() and field.sum() == 24


def test_a_class_that_sees_nothing_loses_nothing():
  result = analysis.occlusion(brightness, picture(), 1, square=(3, 3), stride=(2, 2))
  assert not result.drop.any()


@pytest.mark.parametrize('square, stride', [((3, 5), (2, 3)), ((8, 12), (1, 1)), ((1, 1), (1, 1))])
def test_squares_hide_every_pixel_and_end_with_the_image(square, stride):
  result = analysis.occlusion(brightness, picture(), 0, square=square, stride=stride)
  assert result.tops[-1] + square[0] == 8 and result.lefts[-1] + square[1] == 12
  assert result.drop.shape == (len(result.tops), len(result.lefts))
  assert np.isfinite(result.field((8, 12))).all()


def test_a_pixel_has_the_mean_of_the_squares_that_hide_it_and_none_where_none_does():
  result = analysis.Occlusion(
    np.array([[1, 3]], np.float32), np.array([0]), np.array([0, 1]), (1, 2), 0.5
  )
  np.testing.assert_array_equal(result.field((2, 3)), [[1, 2, 3], [np.nan] * 3])


def test_a_models_drops_are_those_of_its_scores():
  run = vit_of()
  image = picture()
  scores = lambda images: run.forward(images)['scores']  # noqa: E731
  result = analysis.occlusion(scores, image, 2, square=(4, 4), stride=(4, 8), grey=(1, 2, 3))
  hidden = image.copy()
  hidden[4:8, 8:12] = (1, 2, 3)
  whole, less = run.forward([image, hidden])['scores'][:, 2]
  assert result.drop[1, 1] == pytest.approx(whole - less, abs=1e-6)


@pytest.mark.parametrize('square, stride', [((9, 1), (1, 1)), ((0, 1), (1, 1)), ((1, 1), (1, 0))])
def test_squares_that_do_not_fit_are_refused(square, stride):
  with pytest.raises(ValueError, match='does not fit an image of 8x12'):
    analysis.occlusion(brightness, picture(), 0, square=square, stride=stride)


@pytest.mark.parametrize(
  'patch, size, square, stride',
  [
    ((16, 16), (224, 224), (32, 32), (16, 16)),
    ((14, 14), (518, 518), (84, 84), (42, 42)),
    ((32, 32), (224, 224), (64, 64), (32, 32)),
    ((2, 2), (8, 8), (4, 4), (2, 2)),
    ((8, 8), (8, 8), (8, 8), (8, 8)),
  ],
)
def test_squares_are_of_whole_patches_about_fourteen_across(patch, size, square, stride):
  assert analysis.occlusion_steps(tiny(patch=patch), size) == (square, stride)


def test_grey_is_what_the_model_sees_as_nothing():
  assert analysis.grey_colour(bundle.Preprocess('resize', SIZE, (0.0, 0.4, 1.0))) == (0, 102, 255)


# Faithfulness


GRID = 3, 4
PARTS = np.random.default_rng(7).permutation(12) / 66.0  # of the score: each patch's, in all 1


def sum_of_patches(images):
  """(N, 1) scores of 6x8 images: patches, all 255 or 0, weighed by PARTS."""
  cells = np.stack(images)[:, ::2, ::2, 0].reshape(len(images), -1) / 255
  return cells @ PARTS[:, None]


def areas_of(values):
  white = np.full((6, 8, 3), 255, np.uint8)
  order = faithfulness.ranking(np.reshape(values, GRID), GRID)
  return faithfulness.order_areas(sum_of_patches, white, 0, order, grid=GRID, grey=(0,))


def test_of_a_score_that_is_a_sum_over_patches_its_parts_are_the_most_faithful_order():
  best, worst = areas_of(PARTS), areas_of(-PARTS)
  close(best.insertion, 1 - best.deletion, atol=1e-12)
  close([best.deletion, best.insertion], [worst.insertion, worst.deletion], atol=1e-12)
  kept = np.cumsum([0, *np.sort(PARTS)])[::-1]  # as the largest go first
  counts = np.array(faithfulness.hidden_counts(12))
  close(best.deletion, np.trapezoid(kept[counts], counts / 12), atol=1e-12)
  for seed in range(20):
    other = areas_of(np.random.default_rng(seed).random(12))
    assert best.deletion < other.deletion and best.insertion > other.insertion


def test_a_random_explanation_has_the_area_of_chance_and_beats_it_no_more_often():
  result = faithfulness.measure(
    sum_of_patches,
    np.full((6, 8, 3), 255, np.uint8),
    0,
    {str(seed): np.random.default_rng(99 + seed).random(GRID) for seed in range(40)}
    | {'parts': PARTS.reshape(GRID), 'pixels': np.kron(PARTS.reshape(GRID), np.ones((2, 2)))},
    {'parts': -PARTS.reshape(GRID)},
    grid=GRID,
    grey=(0,),
  )
  beaten = [result.chance.is_beaten_by(areas) for areas in result.explanations.values()]
  assert sum(beaten[:40]) <= 6 and beaten[40:] == [True, True]
  close(np.mean([e.deletion for e in list(result.explanations.values())[:40]]), 0.5, atol=0.03)
  assert abs(result.chance.mean.deletion - 0.5) < 3 * result.chance.spread.deletion
  assert result.explanations['parts'] == result.explanations['pixels']
  assert 'no better than chance.' in faithfulness.sentence(result, 'parts')
  assert result.passes == 2 * 8 * (faithfulness.SEEDS + 43)


def test_an_order_of_one_patch_is_no_better_than_chance():
  white = np.full((6, 8, 3), 255, np.uint8)
  score = lambda images: np.mean(images, axis=(1, 2, 3))[:, None] / 255  # noqa: E731
  result = faithfulness.measure(
    score, white, 0, {'only': np.ones((1, 1))}, {}, grid=(1, 1), grey=(0,)
  )
  assert result.explanations['only'] == faithfulness.Areas(0.5, 0.5)
  assert faithfulness.sentence(result, 'only').endswith('no better than chance.')


def test_shuffled_weights_have_the_same_values_in_other_places():
  params = vit_of().params
  other = faithfulness.shuffle(params)
  same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other))]
  assert sum(same) < len(same) / 4
  for leaf, shuffled in zip(jax.tree.leaves(params), jax.tree.leaves(other)):
    assert np.array_equal(np.sort(leaf, axis=None), np.sort(shuffled, axis=None))


def test_an_image_of_another_size_is_refused():
  with pytest.raises(ValueError, match=r'uint8 8x12x3, not uint8 \(8, 8, 3\)'):
    analysis.trace(vit_of(), picture(0, (8, 8)))


# vit inspect


def saved(run, folder):
  bundle.write(folder / 'model', run)
  return str(folder / 'model')


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / 'photos'
  folder.mkdir()
  for i in range(2):
    Image.fromarray(picture(i)).save(folder / f'rose {i}.png')
  return folder


def files_in(folder):
  return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def inspect(*words):
  return vit.main(['inspect', *map(str, words)])


OF_IMAGE = ('attention', 'rollout', 'evidence', 'occlusion')


def test_inspect_writes_every_picture_with_the_arrays_of_the_analysis(tmp_path, photos, capsys):
  run, out = vit_of(), tmp_path / 'out'
  words = ('--fusion', 'max', '--discard', '0.4', '--square', '3', '--stride', '2')
  assert inspect(saved(run, tmp_path), photos, '--out', out, '--label', 'dog', *words) == 0
  output = capsys.readouterr()
  assert output.err == '' and str(out) in output.out
  expected = {'inspect.json', 'index.html', 'attention.html'}
  for suffix in ('png', 'npz'):
    expected |= {f'{n}.{suffix}' for n in ('filters', 'positions', 'distances', 'layers', 'pca')}
    expected |= {f'{n:02d}_rose_{n}/{kind}.{suffix}' for n in range(2) for kind in OF_IMAGE}
  assert files_in(out) == expected
  for path in out.rglob('*.png'):
    with Image.open(path) as drawn:
      assert min(drawn.size) > 100 and len(drawn.convert('RGB').getcolors(1 << 24)) > 10, path
  index = json.loads((out / 'inspect.json').read_text())
  assert [image['folder'] for image in index['images']] == ['00_rose_0', '01_rose_1']
  assert index['images'][1]['predictions'] == run.predict(picture(1), top=5)
  assert_arrays_of_analysis(run, out)
  figures = index['images'][1]['faithfulness']
  assert figures['label'] == 'dog' and figures['baseline'] == [128] * 3
  order = faithfulness.ranking(np.load(out / '01_rose_1/rollout.npz')['rollout'][-1], (2, 3))
  areas = faithfulness.order_areas(
    lambda images: run.forward(images)['scores'], picture(1), 3, order, grid=(2, 3), grey=(128,)
  )
  close(figures['explanations']['rollout']['deletion'], areas.deletion)
  assert set(figures['shuffled']) == set(figures['sentences']) == set(OF_IMAGE)
  assert figures['sentences']['rollout'] in output.out


def assert_arrays_of_analysis(run, out):
  whole = run.attention(picture(1))
  arrays = {path.stem: dict(np.load(path)) for path in (out / '01_rose_1').glob('*.npz')}
  close(arrays['attention']['maps'], whole.maps(), atol=1e-6)
  close(arrays['rollout']['rollout'], whole.rollout_maps(fusion='max', discard=0.4), atol=1e-6)
  trace = analysis.trace(run, picture(1))
  close(arrays['evidence']['logits'], analysis.evidence(run, trace, [3])[..., 0])
  assert arrays['occlusion']['drop'].shape == (4, 6) and arrays['occlusion']['label'] == 3
  each = [run.attention(picture(i)).distances() for i in range(2)]
  close(np.load(out / 'distances.npz')['distances'], np.mean(each, 0))
  similar = analysis.layer_similarity(run, [picture(0), picture(1)])
  close(np.load(out / 'layers.npz')['similarity'], similar)
  tokens = analysis.patch_tokens(run, [picture(0), picture(1)])
  close(np.load(out / 'pca.npz')['colours'], analysis.patch_colours(tokens).colours)


@pytest.mark.parametrize('run', [mixer_of, resnet_of])
def test_what_a_model_has_not_is_left_out_with_a_line(run, tmp_path, photos, capsys):
  out = tmp_path / 'out'
  assert inspect(saved(run(), tmp_path), photos / 'rose 0.png', '--out', out) == 0
  output = capsys.readouterr().out
  family = type(run().model).__name__
  assert f'left out positions: a {family} has no position embeddings' in output
  assert f'left out distances, page, attention, rollout: a {family} has no attention' in output
  remaining = {'filters', 'layers', 'pca', '00_rose_0/evidence', '00_rose_0/occlusion'}
  assert {f'{name}.png' for name in remaining} < files_in(out)
  assert inspect(saved(run(), tmp_path), photos, '--out', out, '--only', 'rollout') == 2


@pytest.mark.parametrize('fields, said', [
  (dict(num_classes=0), 'evidence, occlusion: the model has no head'),
  (dict(pool='none'), 'evidence, occlusion: with pool none'),
  (dict(positions='none'), 'positions: this ViT has no position'),
])  # fmt: skip
def test_a_model_without_something_shows_the_rest(fields, said, tmp_path, photos, capsys):
  run = vit_of(**fields)
  if not run.model.num_classes:
    run = dataclasses.replace(run, classes=())
  image = photos / 'rose 0.png'
  assert inspect(saved(run, tmp_path), image, '--out', tmp_path / 'out') == 0
  assert f'left out {said}' in capsys.readouterr().out
  shown = {'filters.png', '00_rose_0/rollout.png', 'attention.html'}
  assert shown < files_in(tmp_path / 'out')


def test_without_images_the_weights_are_drawn(tmp_path, capsys):
  assert inspect(saved(vit_of(), tmp_path), '--out', tmp_path / 'out') == 0
  assert 'there is no image to look at' in capsys.readouterr().out
  expected = {f'{n}.{suffix}' for n in ('filters', 'positions') for suffix in ('png', 'npz')}
  assert files_in(tmp_path / 'out') == expected | {'inspect.json', 'index.html'}


def test_images_of_a_data_set_lie_evenly_in_it(tmp_path):
  out = tmp_path / 'out'
  words = ('--on', 'digits', '--split', 'test', '--count', '3', '--only', 'rollout')
  assert inspect(saved(vit_of(), tmp_path), '--out', out, *words) == 0
  index = json.loads((out / 'inspect.json').read_text())
  assert [image['file'] for image in index['images']] == ['image 0', 'image 179', 'image 358']
  records = sources.open_source('digits', 'test')
  labels = [str(records[place]['label']) for place in (0, 179, 358)]
  assert [image['label'] for image in index['images']] == labels


def test_the_index_tells_no_absolute_path(tmp_path, photos):
  out, model = tmp_path / 'out', saved(vit_of(), tmp_path)
  assert inspect(model, photos / 'rose 0.png', '--out', out, '--only', 'rollout') == 0
  text = (out / 'inspect.json').read_text() + (out / 'index.html').read_text()
  assert 'rose 0.png' in text and str(tmp_path) not in text


def test_pictures_of_images_of_an_earlier_command_are_removed_and_nothing_else(tmp_path, photos):
  out, model = tmp_path / 'out', saved(vit_of(), tmp_path)
  only = ('--out', out, '--only', 'rollout')
  assert inspect(model, photos, *only) == 0
  (out / '01_rose_1/notes.txt').write_text('mine')
  Image.fromarray(picture(2)).save(tmp_path / 'tulip.png')
  assert inspect(model, tmp_path / 'tulip.png', *only) == 0
  assert files_in(out) == {
    'inspect.json', 'index.html', '00_tulip/rollout.png', '00_tulip/rollout.npz',
    '01_rose_1/notes.txt',
  }  # fmt: skip
  assert inspect(model, '--out', out, '--only', 'filters') == 0
  assert '00_tulip/rollout.png' in files_in(out)  # as no image was drawn


def test_a_folder_in_the_way_is_named_before_anything_is_replaced(tmp_path, capsys):
  out = tmp_path / 'out'
  (out / 'positions.png').mkdir(parents=True)
  assert inspect(saved(vit_of(), tmp_path), '--out', out) == 2
  output = capsys.readouterr().err
  assert output.count('\n') == 1 and f'{out / "positions.png"} cannot be written' in output
  assert files_in(out) == set() and [path.name for path in out.iterdir()] == ['positions.png']


def test_a_head_that_reads_no_patch_has_no_distance_and_the_others_have(monkeypatch):
  nan = np.nan
  each = iter(np.float32([[[nan, 2.0], [nan, 4.0]], [[nan, nan], [6.0, 8.0]]]))
  monkeypatch.setattr(analysis, 'attention_summary', lambda run, trace: {'distances': next(each)})
  images = [inspection.Image(str(index), picture(index)) for index in range(2)]
  drawn = inspection.distances(vit_of(), images)
  np.testing.assert_array_equal(drawn.arrays['distances'], [[nan, 2.0], [6.0, 6.0]])
  assert drawn.title == 'mean attention distance over 2 images: 2.0 to 6.0 pixels'


def test_a_run_whose_data_is_gone_shows_its_weights(tmp_path, capsys):
  model = saved(vit_of(), tmp_path)
  (tmp_path / 'config.json').write_text('{"data": {"source": "folder:gone", "test": "test"}}')
  assert inspect(tmp_path, '--out', tmp_path / 'out', '--only', 'filters', 'rollout') == 3
  output = capsys.readouterr().err
  assert output.count('\n') == 1 and 'gone' in output and model
  assert 'filters.png' in files_in(tmp_path / 'out')


@pytest.mark.parametrize('spoilt, said', [(np.nan, 'parameters are not finite'), (1e30, 'finite')])
def test_a_model_that_is_not_finite_is_refused(spoilt, said, tmp_path, photos, capsys):
  run = vit_of()
  params = jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(spoilt), run.params)
  model = saved(dataclasses.replace(run, params=params), tmp_path)
  assert inspect(model, photos, '--out', tmp_path / 'out', '--only', 'evidence') == 2
  output = capsys.readouterr().err
  assert output.splitlines()[-1].startswith('vit inspect: ') and said in output


def test_a_page_of_attention_has_only_as_many_images_as_it_holds(tmp_path, photos, monkeypatch):
  run, out = vit_of(), tmp_path / 'out'
  monkeypatch.setattr(inspection, 'PAGE', run.attention(picture()).weights.nbytes)
  assert inspect(saved(run, tmp_path), photos, '--out', out, '--only', 'page') == 0
  index = json.loads((out / 'inspect.json').read_text())
  size = si((out / 'attention.html').stat().st_size)
  assert index['pictures']['page'] == f'every weight of 1 of 2 images, {size}B'
  monkeypatch.setattr(inspection, 'HELD', run.attention(picture()).weights.nbytes - 1)
  assert inspect(saved(run, tmp_path), photos, '--out', out, '--only', 'page') == 2


@pytest.mark.parametrize('steps, factor', [
  ('resize', 2), ('resize(scale=8/7) | central_crop', 2), ('resize(9, 13) | central_crop', None)
])  # fmt: skip
def test_a_page_shows_the_view_of_the_model_in_more_of_the_files_pixels(steps, factor):
  run = dataclasses.replace(vit_of(), preprocess=bundle.Preprocess(steps, SIZE))
  smooth = np.add.outer(np.arange(2 * SIZE[0] + 1), np.arange(2 * SIZE[1] + 5)) * 5
  original = np.repeat(np.uint8(smooth)[..., None], 3, axis=2)
  sharp = inspection.sharper(run, original)
  if factor is None:
    assert sharp is None
  else:
    assert sharp.shape == (2 * SIZE[0], 2 * SIZE[1], 3)
    halved = sharp.reshape(SIZE[0], 2, SIZE[1], 2, 3).mean((1, 3))
    close(halved, run.prepared(original), atol=5)  # of 0 to 190: the same view
  assert inspection.sharper(run, picture()) is None


def test_an_image_that_cannot_be_read_is_named_and_the_others_drawn(tmp_path, photos, capsys):
  (photos / 'broken.png').write_bytes(b'no image')
  words = ('--out', tmp_path / 'out', '--only', 'rollout')
  assert inspect(saved(vit_of(), tmp_path), photos, *words) == 3
  output = capsys.readouterr().err
  assert output.count('\n') == 1 and 'broken.png' in output
  assert {'00_rose_0/rollout.png', '01_rose_1/rollout.png'} < files_in(tmp_path / 'out')


@pytest.mark.parametrize(
  'words, said',
  [
    (['MODEL', '--out', 'OUT', '--label', 'yak'], 'yak'),
    (['MODEL', '--out', 'OUT', '--discard', '1'], 'discard is 1.0'),
    (['MODEL', '--out', 'OUT', '--square', '9'], 'square of 9x9'),
    (['MODEL', '--out', 'OUT', '--stride', '-1'], '--stride'),
    (['MODEL', '--out', 'OUT', '--count', '0'], '--count'),
    (['MODEL', '--out', 'OUT', '--on', 'digit'], 'did you mean digits'),
    (['MODEL', '--out', 'OUT', '--only', 'rollout'], 'there is no image'),
    (['MODEL', 'nowhere.png', '--out', 'OUT', '--only', 'rollout'], 'nowhere.png'),
    (['MODEL', 'rose.png', '--on', 'digits', '--out', 'OUT'], 'not both'),
    (['MODEL', '--out', 'MODEL/config.json'], 'config.json'),
    (['MODEL', '--out', ''], '--out is empty'),
    (['MODEL', 'nowhere.png', '--out', 'OUT'], 'nowhere.png: there is no such file'),
    (['nowhere', '--out', 'OUT'], 'nowhere'),
  ],
)
def test_what_cannot_be_inspected_is_refused_in_one_line(words, said, tmp_path, capsys):
  places = {'MODEL': saved(vit_of(), tmp_path), 'OUT': str(tmp_path / 'out')}
  before = files_in(tmp_path)
  for name, place in places.items():
    words = [word.replace(name, place) for word in words]
  assert inspect(*words) == 2
  output = capsys.readouterr()
  assert output.err.count('\n') == 1 and said in output.err and output.out == ''
  assert files_in(tmp_path) == before and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('error, code', [(OSError(28, 'disk full'), 2), (KeyboardInterrupt, 130)])
def test_what_fails_half_way_leaves_what_was_there(error, code, tmp_path, photos, monkeypatch):
  out, model = tmp_path / 'out', saved(vit_of(), tmp_path)
  out.mkdir()
  (out / 'notes.txt').write_text('mine')
  (out / 'filters.png').write_text('old')

  def full(*_, **__):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(inspection, 'occlusion', full)
    assert inspect(model, photos, '--out', out) == code
  assert files_in(out) == {'notes.txt', 'filters.png'}
  assert (out / 'filters.png').read_text() == 'old' and not list(tmp_path.rglob('.vit.*'))
  assert inspect(model, '--out', out) == 0
  assert (out / 'notes.txt').read_text() == 'mine' and len(files_in(out)) == 7
  assert (out / 'filters.png').stat().st_size > 100


def test_what_is_terminated_ends_with_its_code_and_leaves_nothing(tmp_path, photos):
  for index in range(40):  # enough to be in the middle of
    Image.fromarray(picture(index)).save(photos / f'tulip {index}.png')
  words = ['-m', 'vit_jax', 'inspect', saved(vit_of(), tmp_path), photos, '--out', tmp_path / 'out']
  process = started(words, environment(jax.config.jax_compilation_cache_dir))
  while process.poll() is None and not list(tmp_path.glob('.vit.*/00_*')):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  code, _, err = ended(process)
  assert code == 143 and 'Traceback' not in err and 'Fatal' not in err
  assert not (tmp_path / 'out').exists() and not list(tmp_path.glob('.vit.*'))


# Pictures


def test_a_rollout_is_drawn_layer_by_layer(monkeypatch):
  drawn = {}
  monkeypatch.setattr(pictures, 'overlays', lambda image, fields, titles, title: drawn.update(
    zip(titles, fields)
  ))  # fmt: skip
  maps = random_weights(2, 3, 6)[:, 0]
  pictures.rollout(picture(), maps, 'rollout')
  assert list(drawn) == ['layer 1', 'layer 2', 'layer 3'][: len(maps)]
  for layer, name in enumerate(drawn):
    np.testing.assert_array_equal(drawn[name], maps[layer])


def test_equal_arrays_make_equal_pictures_and_others_do_not():
  image, maps = picture(), random_weights(2, 3, 6)
  drawn = pictures.attention(image, maps, 'maps')
  assert drawn == pictures.attention(image, maps.copy(), 'maps')
  assert drawn != pictures.attention(image, maps[:, ::-1], 'maps')


def test_tiles_lie_in_order_with_gaps_between():
  result = pictures.tiled(np.arange(12.0).reshape(2, 3, 1, 2))
  nan = np.nan
  expected = [[0, 1, nan, 2, 3, nan, 4, 5], [nan] * 8, [6, 7, nan, 8, 9, nan, 10, 11]]
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('draw', [
  lambda: pictures.filters(np.ones((1, 2, 2, 3)), 'alike'),
  lambda: pictures.positions(np.zeros((20, 1, 20, 1)), 'a column'),
  lambda: pictures.distances(np.zeros((30, 2)), 'no way'),
  lambda: pictures.layers(np.full((40, 40), np.nan), [str(i) for i in range(40)], 'unknown'),
  lambda: pictures.attention(picture(), np.zeros((1, 1, 2, 3)), 'nothing'),
  lambda: pictures.rollout(picture(), np.zeros((1, 2, 3)), 'one layer'),
  lambda: pictures.rollout(picture(), np.zeros((48, 2, 3)), 'many'),
  lambda: pictures.colours([picture()] * 30, np.zeros((30, 2, 3, 3)), 'one colour'),
  lambda: pictures.beside(picture(), np.full((8, 12), np.nan), 'x', 'unknown', 0),
])  # fmt: skip
def test_a_picture_of_nothing_is_a_picture(draw):
  with Image.open(io.BytesIO(draw())) as drawn:
    assert drawn.format == 'PNG' and max(drawn.size) < 2000


# docs/look_inside.md

DOCUMENT = pathlib.Path(__file__).parents[1] / 'docs' / 'look_inside.md'


@pytest.fixture
def in_docs_folder(tmp_path, photos, monkeypatch):
  """The folder that the page's examples run in, with the run and the images that they name."""
  run = dataclasses.replace(vit_of(), classes=('rose', *NAMES[1:]))
  (tmp_path / 'runs' / 'flowers').mkdir(parents=True)
  bundle.write(tmp_path / 'runs' / 'flowers' / 'model', run)
  data = {'source': 'digits', 'test': 'test', 'validation': 'validation'}
  (tmp_path / 'runs' / 'flowers' / 'config.json').write_text(json.dumps({'data': data}))
  Image.fromarray(picture(5)).save(tmp_path / 'rose.jpg')
  monkeypatch.chdir(tmp_path)
  return tmp_path


COMMANDS = [line for (block,) in [blocks(DOCUMENT, '')] for line in block.splitlines()]


@pytest.mark.parametrize('line', COMMANDS)
def test_a_command_of_the_page_runs(line, in_docs_folder, capsys):
  words = [*shlex.split(line), '--count', '2']  # of a data set
  assert words[:2] == ['vit', 'inspect'] and vit.main(words[1:]) == 0
  output = capsys.readouterr()
  assert output.err == '' and 'left out' not in output.out
  index = json.loads(
    (in_docs_folder / words[words.index('--out') + 1] / 'inspect.json').read_text()
  )
  assert len(index['images']) == (1 if words[3] == 'rose.jpg' else 2) or '--only' in words


def test_the_python_of_the_page_runs_and_its_comments_are_right(in_docs_folder):
  (block,) = blocks(DOCUMENT, 'python')
  values = {}
  exec(block, values)
  assert values['attention'].weights.shape == (2, 2, 7, 7)
  assert values['attention'].maps().shape == (2, 2, 2, 3)
  assert values['attention'].rollout_maps().shape == (2, 2, 3)
  assert values['evidence'].shape == (2, 3, 5)


def test_every_picture_and_every_flag_is_told():
  rows = table('name', DOCUMENT)
  assert [coded(row[0])[0] for row in rows] == list(inspection.NAMES)
  output = DOCUMENT.read_text()
  parser = argparse.ArgumentParser()
  flags.inspect(parser)
  options = {option for action in parser._actions for option in action.option_strings}
  assert [option for option in options - {'-h', '--help'} if option not in output] == []


def test_the_arrays_told_are_those_that_are_written(in_docs_folder):
  bundle.write('runs/flowers/model', vit_of(**VARIANTS['map']))  # which has all of them
  assert vit.main(['inspect', 'runs/flowers', 'rose.jpg', '--out', 'out']) == 0
  for row in table('name', DOCUMENT):
    (name,), arrays = coded(row[0]), [text.split()[0] for text in coded(row[2])]
    if name not in ('page', 'reconstruction'):  # the latter is of a masked autoencoder
      (file,) = (in_docs_folder / 'out').rglob(f'{name}.npz')
      assert sorted(arrays) == sorted(np.load(file)), name


def test_the_sizes_told_are_those_that_hold():
  output = ' '.join(DOCUMENT.read_text().split())
  assert f'{analysis.EXAMPLES:,} patches' in output
  assert f'first {analysis.COMPONENTS} principal components' in output
  assert f'{inspection.PAGE >> 20} MiB' in output
