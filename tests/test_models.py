"""Names, spellings and fields of all models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.conftest import flat, tiny
from vit_jax import __main__ as cli
from vit_jax import models
from vit_jax.models import mixer, resnet, vit


@pytest.mark.quick
@pytest.mark.parametrize(
  'alias, name',
  [
    ('R50+ViT-B_16', 'R50+ViT-B/16'),
    ('R50_B_16', 'R50+ViT-B/16'),
    ('r50_b16', 'R50+ViT-B/16'),
    ('R_Ti_16', 'R+ViT-Ti/16'),
    ('R26_S_32', 'R26+ViT-S/32'),
    ('vit_base_r50_s16_384.orig_in21k_ft_in1k', 'R50+ViT-B/16'),
    ('vit_large_r50_s32_224', 'R50+ViT-L/32'),
    ('vit_small_r26_s32_224', 'R26+ViT-S/32'),
    ('vit_tiny_r_s16_p8_224', 'R+ViT-Ti/16'),
    ('Mixer-B_16', 'Mixer-B/16'),
    ('mixer_b16', 'Mixer-B/16'),
    ('mixer_l16_224.goog_in21k', 'Mixer-L/16'),
    ('BiT-M-R50x1', 'BiT-R50x1'),
    ('resnetv2_50x1_bit', 'BiT-R50x1'),
    ('resnetv2_152x4_bit.goog_in21k', 'BiT-R152x4'),
    ('deit_tiny_patch16_224', 'ViT-Ti/16'),
    ('deit_base_patch16_384.fb_in1k', 'ViT-B/16'),
  ],
)
def test_an_alias_stands_for_its_variant(alias, name):
  assert models.canonical(alias) == name


@pytest.mark.quick
@pytest.mark.parametrize(
  'name, nearest',
  [
    ('R50+ViT-B/32', 'R50'),
    ('Mixer-B/14', 'Mixer-B/16'),
    ('BiT-R50x4', 'BiT-R50x3'),
    ('deit_huge_patch14_224', 'ViT-'),
    ('resnet50', 'BiT-'),
  ],
)
def test_an_unknown_name_lists_known_ones(name, nearest):
  with pytest.raises(ValueError, match=f'unknown model .*; .*{nearest}'):
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
  'vit': lambda **fields: tiny(width=96, distillation='head', **fields),
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
