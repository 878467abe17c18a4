"""Every ViT-like name of timm's, and every argument of their constructors: equal, or refused."""

import json
import pathlib

import pytest

import vit_jax
from tests.interop import ours, peers, timm_sweep, timm_table
from vit_jax.convert import timm_names

timm = peers.timm
SIZES = ('img_size', 'patch_size', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio', 'num_blocks')


def kinds():
  """One name for each different row of the table, sizes aside: the first."""
  rows = timm_names.table()['architectures']
  first = {}
  for name in timm_table.names():
    kind = {key: value for key, value in rows[name].items() if key not in SIZES}
    first.setdefault(json.dumps(kind, sort_keys=True), name)
  return sorted(first.values())


def test_the_table_is_what_timm_builds():
  file = pathlib.Path(timm_names.__file__).with_name(timm_names.TABLE)
  assert timm_table.text() == file.read_text()


def test_the_table_has_every_name_of_timm():
  assert len(timm_table.names()) == 341
  assert set(timm_table.names()) <= timm_names.table()['architectures'].keys()


@pytest.mark.parametrize('name', kinds())
def test_a_name_without_arguments_gives_equal_logits_or_is_refused(name, tmp_path):
  result = timm_sweep.result(name, tmp_path / 'model')
  expected = 'refused' if timm_sweep.is_refused(name) else 'equal'
  assert result.status == expected, result
  assert result.status == 'equal' or name in result.line


TINY = dict(img_size=64, embed_dim=64, depth=2, num_heads=4, num_classes=5)
VIT = 'vit_tiny_patch16_224'
DINOV3 = 'vit_small_patch16_dinov3'
BEIT = 'beit_base_patch16_224'
RELPOS = 'test_vit_relpos'
RPN = 'vit_relpos_small_patch16_rpn_224'
NAFLEX = 'naflexvit_base_patch16_gap'
ARGUMENTS = (
  (VIT, dict(global_pool='avg')),
  (VIT, dict(global_pool='avg', fc_norm=False)),
  (VIT, dict(global_pool='avg', pool_include_prefix=True)),
  (VIT, dict(global_pool='avgmax')),
  (VIT, dict(global_pool='max')),
  (VIT, dict(global_pool='map')),
  (VIT, dict(global_pool='map', pool_include_prefix=True)),
  (VIT, dict(global_pool='map', class_token=False)),
  (VIT, dict(global_pool='prr')),
  (VIT, dict(global_pool='')),
  (VIT, dict(global_pool='', class_token=False)),
  (VIT, dict(num_heads=2)),
  (VIT, dict(mlp_ratio=3)),
  (VIT, dict(qkv_bias=False)),
  (VIT, dict(qk_norm=True)),
  (VIT, dict(scale_attn_norm=True)),
  (VIT, dict(scale_mlp_norm=True)),
  (VIT, dict(proj_bias=False)),
  (VIT, dict(init_values=0.1)),
  (VIT, dict(pos_embed='none')),
  (VIT, dict(no_embed_class=True)),
  (VIT, dict(reg_tokens=2)),
  (VIT, dict(reg_tokens=2, no_embed_class=True)),
  (VIT, dict(pre_norm=True)),
  (VIT, dict(final_norm=False)),
  (VIT, dict(fc_norm=True)),
  (VIT, dict(dynamic_img_size=True)),
  (VIT, dict(dynamic_img_pad=True)),
  (VIT, dict(drop_rate=0.5, pos_drop_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5)),
  (VIT, dict(patch_drop_rate=0.5, drop_path_rate=0.5)),
  (VIT, dict(weight_init='jax', fix_init=True)),
  (VIT, dict(embed_norm_layer='layernorm')),
  (VIT, dict(norm_layer='rmsnorm')),
  (VIT, dict(norm_layer='layernormfp32')),
  (VIT, dict(act_layer='silu')),
  (VIT, dict(act_layer='relu')),
  (VIT, dict(act_layer='gelu_tanh')),
  (VIT, dict(act_layer='quick_gelu')),
  (VIT, dict(attn_layer='diff')),
  ('vit_giant_patch14_dinov2', dict(img_size=56, act_layer='gelu', mlp_ratio=4)),
  (DINOV3, dict(global_pool='token')),
  (DINOV3, dict(global_pool='map')),
  (DINOV3, dict(global_pool='')),
  (DINOV3, dict(global_pool='max')),
  (DINOV3, dict(num_kv_heads=2, attn_type='rope', qkv_fused=False)),
  (DINOV3, dict(num_kv_heads=2, attn_type='rope', qkv_fused=False, qk_norm=True)),
  (DINOV3, dict(qkv_bias=True)),
  (DINOV3, dict(qkv_bias=True, qkv_fused=False)),
  (DINOV3, dict(qk_norm=True)),
  (DINOV3, dict(swiglu_mlp=True)),
  (DINOV3, dict(swiglu_mlp=True, swiglu_align_to=24)),
  (DINOV3, dict(swiglu_mlp=True, scale_mlp=True)),
  (DINOV3, dict(scale_mlp=True)),
  (DINOV3, dict(scale_attn_inner=True)),
  (DINOV3, dict(attn_type='rope', qkv_bias=True)),
  (DINOV3, dict(attn_only_layer_scale=True)),
  (DINOV3, dict(class_token=False)),
  (DINOV3, dict(num_reg_tokens=0)),
  (DINOV3, dict(use_abs_pos_emb=True)),
  (DINOV3, dict(use_abs_pos_emb=True, no_embed_class=True)),
  (DINOV3, dict(use_abs_pos_emb=True, use_rot_pos_emb=False, num_reg_tokens=0)),
  (DINOV3, dict(use_rot_pos_emb=False)),
  (DINOV3, dict(rope_type='cat')),
  (DINOV3, dict(rope_type='cat', rope_grid_offset=1.0, rope_temperature=50.0)),
  (DINOV3, dict(rope_type='cat', ref_feat_shape=7, rope_rotate_half=False)),
  (DINOV3, dict(rope_type='mixed', rope_rotate_half=False)),
  (DINOV3, dict(rope_grid_offset=0.5)),
  (DINOV3, dict(rope_grid_indexing='xy')),
  (DINOV3, dict(rope_temperature=50.0)),
  (DINOV3, dict(rope_rotate_half=False)),
  (DINOV3, dict(rope_shift_coords=0.1, rope_jitter_coords=1.1, rope_rescale_coords=1.1)),
  (DINOV3, dict(use_post_norm=True)),
  (DINOV3, dict(use_pre_transformer_norm=True)),
  (DINOV3, dict(use_post_transformer_norm=False)),
  (DINOV3, dict(use_fc_norm=True)),
  (DINOV3, dict(use_fc_norm=True, use_post_transformer_norm=True)),
  (DINOV3, dict(global_pool='map', attn_pool_num_heads=2)),
  (DINOV3, dict(global_pool='map', attn_pool_mlp_ratio=2.0)),
  (DINOV3, dict(ref_feat_shape=7)),
  (DINOV3, dict(head_init_scale=0.5)),
  (BEIT, dict(global_pool='token')),
  (BEIT, dict(global_pool='')),
  (BEIT, dict(use_fc_norm=False)),
  (BEIT, dict(qkv_bias=False)),
  (BEIT, dict(swiglu_mlp=True, scale_mlp=True)),
  (BEIT, dict(scale_mlp=True)),
  (BEIT, dict(init_values=None)),
  (BEIT, dict(use_abs_pos_emb=True)),
  (BEIT, dict(use_abs_pos_emb=True, use_rel_pos_bias=False)),
  (BEIT, dict(use_shared_rel_pos_bias=True)),
  (BEIT, dict(use_shared_rel_pos_bias=True, use_rel_pos_bias=False)),
  (BEIT, dict(img_size=[64, 32])),
  (RELPOS, dict(global_pool='')),
  (RELPOS, dict(class_token=True)),
  (RELPOS, dict(class_token=True, global_pool='token', fc_norm=False)),
  (RELPOS, dict(class_token=True, rel_pos_type='bias')),
  (RELPOS, dict(rel_pos_type='bias')),
  (RELPOS, dict(rel_pos_type='bias', shared_rel_pos=True)),
  (RELPOS, dict(rel_pos_type='mlp_swin')),
  (RELPOS, dict(rel_pos_dim=24)),
  (RELPOS, dict(shared_rel_pos=True)),
  (RELPOS, dict(qk_norm=True)),
  (RELPOS, dict(img_size=[64, 32])),
  *(
    (NAFLEX, dict(patch_size=32) | args)  # 12 x 12 patches of images of 384 pixels
    for args in (
      dict(class_token=True, reg_tokens=0, global_pool='token', fc_norm=False),
      dict(global_pool='map', fc_norm=False, pool_include_prefix=True),
      dict(global_pool='map', attn_pool_num_heads=2, attn_pool_mlp_ratio=2.0),
      dict(global_pool='avg', pool_include_prefix=True),
      dict(global_pool='', final_norm=False),
      dict(global_pool='max'),
      dict(pos_embed='none'),
      dict(pos_embed='factorized', pos_embed_grid_size=(5, 7)),
      dict(pos_embed_grid_size=(9, 16)),  # as many as 12 x 12
      dict(pos_embed_interp_mode='bilinear', pos_embed_ar_preserving=True),
      dict(pos_embed_interp_mode='nearest-exact', pos_embed_antialias=False),
      dict(pos_embed_antialias=False),
      dict(pos_embed_antialias=False, pos_embed_align_corners=True),
      dict(pos_embed_align_corners=True),
      dict(pos_embed_use_grid_sample=True, use_key_only_attn_mask=True),
      dict(enable_patch_interpolator=True, dynamic_img_pad=True),
      dict(embed_proj_type='conv'),
      dict(patchify_channels_last=False),
      dict(pre_norm=True, norm_layer='rmsnorm'),
      dict(embed_norm_layer='layernorm', norm_layer='layernorm'),
      dict(scale_attn_inner_norm=True, scale_mlp_norm=True),
      dict(qkv_bias=False, qk_norm=True, proj_bias=False),
      dict(act_layer='gelu_tanh', attn_layer='attn', init_values=None),
      dict(rope_type='axial'),
      dict(rope_type='dinov3', rope_grid_offset=0.5, rope_grid_indexing='xy'),
      dict(rope_type='axial', rope_ref_feat_shape=(7, 7), rope_rotate_half=True),
      dict(attn_type='eva'),
      dict(attn_type='rope', attn_gated=True, qkv_fused=False),
      dict(swiglu_mlp=True, swiglu_align_to=24),
      dict(attn_type='rope', qkv_fused=False, num_kv_heads=2, attn_only_layer_scale=True),
    )
  ),
)


@pytest.mark.parametrize('name, args', ARGUMENTS, ids=str)
def test_an_argument_is_honoured_or_refused(name, args, tmp_path):
  module = peers.seeded(timm.create_model(name, **(TINY | args)))
  peers.save_timm(module, tmp_path)
  try:
    run = vit_jax.load(tmp_path)
  except ValueError as error:
    assert any(key in str(error) for key in args) or 'unexpected' in str(error), error
    return
  images = ours.pictures(run.preprocess.size)
  theirs = peers.run(peers.logits_of, module, images)['logits'].numpy()
  assert ours.difference(ours.trace(run, images)['logits'], theirs) <= ours.TOLERANCE


def test_a_naflexvit_under_the_name_of_another_constructor_is_refused(tmp_path):
  peers.save_timm(timm.create_model(VIT, use_naflex=True, depth=1), tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  config['model_args'].pop('use_naflex', None)  # as where the environment says it
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f'architecture {VIT} is a VisionTransformer, .* NaFlexVit'):
    vit_jax.load(tmp_path)


@pytest.mark.parametrize('name', [RPN, 'vit_base_patch16_rpn_224'])
def test_lone_arrays_that_do_not_show_the_place_of_norms_are_refused(name, tmp_path):
  peers.save_timm(peers.seeded(timm.create_model(name, **TINY)), tmp_path)
  (tmp_path / 'config.json').unlink()
  with pytest.raises(ValueError, match=r"come before attention or after, .*: keep timm's config"):
    vit_jax.load(tmp_path)


def test_the_arguments_tried_are_all_that_a_file_can_state():
  code = {'block_fn', 'mlp_layer', 'embed_layer', 'device', 'dtype'}  # no JSON names them
  tried = {key for _, args in ARGUMENTS for key in args} | TINY.keys() | code
  tried |= {'patch_size', 'in_chans', 'rope_mrope_section'}
  tried |= {'input_norm_layer'}  # no code reads it
  constructors = ('VisionTransformer', 'Eva', 'Beit', 'VisionTransformerRelPos', 'NaFlexVit')
  for constructor in constructors:
    assert timm_names.table()['defaults'][constructor].keys() <= tried
