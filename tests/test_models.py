"""Names, spellings and fields of all models."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.conftest import flat, tiny
from vit_jax import __main__ as cli
from vit_jax import models
from vit_jax.models import mixer, resnet, vit

PUBLISHED = {
  'ViT-Ti/16': 5_717_416,
  'ViT-S/16': 22_050_664,
  'ViT-S/32': 22_878_952,
  'ViT-B/8': 86_576_872,
  'ViT-B/16': 86_567_656,
  'ViT-B/32': 88_224_232,
  'ViT-L/16': 304_326_632,
  'ViT-L/32': 306_535_400,
  'ViT-H/14': 632_045_800,
  'R+ViT-Ti/16': 6_337_704,
  'R26+ViT-S/32': 36_431_912,
  'R26+ViT-B/32': 101_383_976,
  'R50+ViT-B/16': 98_659_112,
  'R50+ViT-L/32': 328_994_856,
  'DeiT3-S/16': 22_059_496,
  'DeiT3-B/16': 86_585_320,
  'Mixer-B/16': 59_880_472,
  'Mixer-B/32': 60_293_428,
  'Mixer-L/16': 208_196_168,
  'BiT-R50x1': 25_549_352,
  'BiT-R101x1': 44_541_480,
  'BiT-R152x2': 236_335_208,
  'BiT-R152x4': 936_533_224,
}


@pytest.mark.quick
@pytest.mark.parametrize('name', PUBLISHED)
def test_parameters_are_as_many_as_published(name):
  assert models.count(vit_jax.build(name)) == PUBLISHED[name]


ALIASES = {
  'ViT-Ti/16': 'vit_tiny_patch16 ti16 deit_tiny_patch16_224',
  'ViT-B/16': 'ViT-B_16 B_16 b16 B/16 vit-b/16 vit_base_patch16_224 deit_base_patch16_384.fb_in1k '
  'vit_base_patch16_384.augreg_in21k_ft_in1k',
  'ViT-So400m/14': 'So400m_14 vit_so400m_patch14_224',
  'ViT-So150m/16': 'So150m_16 so150m/16 vit_so150m_patch16_256',
  'ViT-g-opt/16': 'g-opt/16 ViT-g-opt_16 vit_giantopt_patch16_384',
  'ViT-G-opt/16': 'G-opt/16',
  'DeiT3-S/16': 'deit3_small_patch16_224 deit3_small_patch16_384.fb_in22k_ft_in1k DeiT3-S_16',
  'DeiT3-H/14': 'deit3_huge_patch14_224',
  'ViT-g/14': 'g14 vit_giant_patch14_224',
  'ViT-G/14': 'G14 vit_gigantic_patch14_224',
  'R+ViT-Ti/16': 'R_Ti_16 vit_tiny_r_s16_p8_224',
  'R26+ViT-S/32': 'R26_S_32 vit_small_r26_s32_224',
  'R50+ViT-B/16': 'R50+ViT-B_16 R50_B_16 r50_b16 vit_base_r50_s16_384.orig_in21k_ft_in1k',
  'R50+ViT-L/32': 'vit_large_r50_s32_224',
  'Mixer-B/16': 'Mixer-B_16 mixer_b16',
  'Mixer-L/16': 'mixer_l16_224.goog_in21k',
  'Mixer-H/14': 'Mixer-H_14 mixer_h14',
  'BiT-R50x1': 'BiT-M-R50x1 resnetv2_50x1_bit',
  'BiT-R152x4': 'resnetv2_152x4_bit.goog_in21k',
}


@pytest.mark.quick
@pytest.mark.parametrize('name', ALIASES)
def test_an_alias_stands_for_its_variant(name):
  for alias in ALIASES[name].split():
    assert models.canonical(alias) == name and vit_jax.build(alias) == vit_jax.build(name)


UNKNOWN = {
  r'ViT-\w+/\d+': ['ViT-B/17', 'ViT-C/16', '', 'vit_base_patch16_clip_224.openai', 'B'],
  'R50': ['R50+ViT-B/32'],
  'Mixer-B/16': ['Mixer-B/14'],
  'BiT-R50x3': ['BiT-R50x4'],
  'ViT-': ['deit_huge_patch14_224', 'resnet50'],
  'BiT-': ['resnet50'],
}


@pytest.mark.quick
@pytest.mark.parametrize('nearest', UNKNOWN)
def test_an_unknown_name_lists_known_ones(nearest):
  for name in UNKNOWN[nearest]:
    with pytest.raises(ValueError, match=f'unknown model {re.escape(repr(name))}; .*{nearest}'):
      vit_jax.build(name)


@pytest.mark.quick
def test_a_variant_is_of_its_family():
  kinds = {'ViT-B/16': vit.ViT, 'R50+ViT-B/16': vit.ViT, 'Mixer-B/16': mixer.Mixer}
  kinds |= {'BiT-R50x1': resnet.ResNet}
  assert {name: type(vit_jax.build(name)) for name in kinds} == kinds


@pytest.mark.quick
@pytest.mark.parametrize('name', ['R26+ViT-S/32', 'Mixer-L/16', 'BiT-R101x3'])
def test_fields_build_the_same_model_again_through_json(name):
  model = vit_jax.build(name, num_classes=3, head_bias=None)
  fields = json.loads(json.dumps(models.fields(model)))
  assert vit_jax.build(name, **fields) == model


@pytest.mark.quick
def test_none_leaves_the_value_where_a_field_has_no_none_of_its_own():
  model = vit_jax.build('R26+ViT-S/32', width=None, stem=None, head_bias=None)
  assert (model.width, model.stem, model.head_bias) == (384, None, None)


@pytest.mark.quick
@pytest.mark.parametrize(
  'name, field, value',
  [
    ('Mixer-B/16', 'heads', 12),
    ('Mixer-B/16', 'tokens_dim', 0),
    ('Mixer-B/16', 'activation', 'relu'),
    ('Mixer-B/16', 'drop_path', 1.0),
    ('BiT-R50x1', 'width', 64),
    ('BiT-R50x1', 'blocks', (3, 0)),
    ('BiT-R50x1', 'blocks', 3),
    ('BiT-R50x1', 'width_factor', 0.5),
    ('BiT-R50x1', 'numerics', 'torch'),
    ('ViT-B/16', 'stem', 'deep'),
    ('ViT-B/16', 'stem', (2, -1)),
    ('ViT-B/16', 'stem_width', 0),
    ('ViT-B/16', 'stem_numerics', 'torch'),
    ('ViT-B/16', 'class_token', 1),
    ('ViT-B/16', 'distillation', 'heads'),
    ('ViT-B/16', 'rope_theta', 0.0),
    ('ViT-B/16', 'final_norm', True),
    ('ViT-B/16', 'embed_bias', 'no'),
    ('ViT-B/16', 'qkv_bias', True),
    ('ViT-B/16', 'head_bias', 'no'),
    ('ViT-B/16', 'width', float('inf')),
    ('ViT-B/16', 'width', 'wide'),
    ('ViT-B/16', 'patch', 'ab'),
    ('ViT-B/16', 'registers', -1),
    ('ViT-B/16', 'representation', -3),
    ('ViT-B/16', 'unroll', -1),
    ('ViT-B/16', 'num_classes', -1),
    ('ViT-B/16', 'dropout', '0.1'),
    ('ViT-B/16', 'norm_eps', -1.0),
    ('ViT-B/16', 'layer_scale', 'small'),
  ],
)
def test_a_value_that_a_field_does_not_take_is_one_line_that_names_it(name, field, value):
  with pytest.raises(ValueError, match=field) as error:
    vit_jax.build(name, **{field: value})
  assert '\n' not in str(error.value)


@pytest.mark.quick
@pytest.mark.parametrize(
  'name, fields, message',
  [
    ('R50+ViT-B/16', dict(patch=8), '8x8 pixels do not divide into cells of the stem, 16 wide'),
    ('R50+ViT-B/16', dict(stem_width=48), 'stem_width is 48, must be a multiple of 32'),
    ('ViT-B/16', dict(pool='token_gap', class_token=False), "'token_gap' needs the class token"),
    ('ViT-B/16', dict(pool='none', distillation='head'), "'head' needs a pool"),
    ('ViT-B/16', dict(positions='rope', heads=128), 'rope positions need heads that 4 divides'),
  ],
)
def test_fields_that_do_not_go_together_are_an_error(name, fields, message):
  with pytest.raises(ValueError, match=message):
    vit_jax.build(name, **fields)


SMALL = {
  'vit': lambda **fields: tiny(width=96, depth=1, distillation='head', **fields),
  'mixer': lambda **fields: vit_jax.build(
    'Mixer-S/16', patch=4, width=96, depth=1, tokens_dim=4, mlp_dim=8, unroll=1, **fields
  ),
  'bit': lambda **fields: vit_jax.build('BiT-R50x1', blocks=(1,), **fields),
}


def first_params(model, seed=0):
  """The parameters that a model starts with."""
  images = jnp.zeros((1, 8, 12, 3))
  return flat(jax.jit(model.init)(jax.random.key(seed), images)['params'])


@pytest.mark.quick
@pytest.mark.parametrize('family', SMALL)
def test_a_head_starts_at_zero_or_is_drawn_and_nothing_else_changes(family):
  default, normal = (
    SMALL[family](num_classes=300),
    SMALL[family](num_classes=300, head_init='normal'),
  )
  assert default == SMALL[family](num_classes=300, head_init='zeros')
  zeros, drawn, other = first_params(default), first_params(normal), first_params(normal, seed=1)
  kernels = {name for name in zeros if name.startswith('head') and name.endswith('kernel')}
  assert kernels == {'head/kernel'} | ({'head_dist/kernel'} if family == 'vit' else set())
  for name, leaf in zeros.items():
    if name in kernels:
      assert not leaf.any() and not np.array_equal(drawn[name], other[name])
      # 28,800 numbers or more: five times the deviation of their deviation, and of their mean
      assert np.std(drawn[name]) == pytest.approx(0.02, rel=5 / np.sqrt(2 * 28_800))
      assert abs(np.mean(drawn[name])) < 5 * 0.02 / np.sqrt(28_800)
    else:
      np.testing.assert_array_equal(drawn[name], leaf)
  if family == 'vit':
    assert not np.array_equal(drawn['head/kernel'], drawn['head_dist/kernel'])


@pytest.mark.quick
@pytest.mark.parametrize('name', ['ViT-B/16', 'R26+ViT-S/32', 'Mixer-B/16', 'BiT-R50x1'])
def test_a_start_of_the_head_that_there_is_not_lists_those_that_there_are(name):
  with pytest.raises(ValueError, match=r"^head_init is 'ones', known: zeros, normal$"):
    vit_jax.build(name, head_init='ones')


@pytest.mark.quick
def test_the_table_has_a_row_for_every_kind(capsys):
  assert cli.main(['models', 'ViT-Ti/16', 'R_Ti_16', 'Mixer-B/16', 'BiT-R50x1']) == 0
  title, *rows, _ = capsys.readouterr().out.splitlines()
  columns = ['model', 'width', 'depth', 'heads', 'MLP', 'parameters', 'GFLOP']
  assert title.split() == columns
  assert [row.split() for row in rows] == [
    ['ViT-Ti/16', '192', '12', '3', '768', '5,717,416', '2.51'],
    ['R+ViT-Ti/16', '192', '12', '3', '768', '6,337,704', '0.87'],
    ['Mixer-B/16', '768', '12', '-', '3072', '59,880,472', '25.20'],
    ['BiT-R50x1', '-', '-', '-', '-', '25,549,352', '8.18'],
  ]
  assert len({len(line) for line in (title, *rows)}) == 1
