"""Every key of Hugging Face's configurations is read, or refused, or changes nothing."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import vit_jax
from tests.interop import ours, peers
from vit_jax.convert import beit, huggingface

TINY = {
  'hidden_size': 32,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 64,
  'image_size': 32,
  'patch_size': 16,
}
RELATIVE = {'use_relative_position_bias': True, 'use_shared_relative_position_bias': True}
MODELS = {  # the class, its configuration, and fields of a tiny one
  'vit': ('ViTForImageClassification', 'ViTConfig', {}),
  'vit pooler': ('ViTModel', 'ViTConfig', {}),
  'deit': ('DeiTForImageClassification', 'DeiTConfig', {}),
  'vit_msn': ('ViTMSNForImageClassification', 'ViTMSNConfig', {}),
  'vit_mae': ('ViTMAEModel', 'ViTMAEConfig', {'mask_ratio': 0.0}),
  'ijepa': ('IJepaForImageClassification', 'IJepaConfig', {}),
  'dinov2': ('Dinov2ForImageClassification', 'Dinov2Config', {}),
  'dinov2_with_registers': ('Dinov2WithRegistersModel', 'Dinov2WithRegistersConfig', {}),
  'dinov3_vit': ('DINOv3ViTModel', 'DINOv3ViTConfig', {'num_register_tokens': 3}),
  'clip': ('CLIPVisionModelWithProjection', 'CLIPVisionConfig', {'projection_dim': 48}),
  'siglip': ('SiglipVisionModel', 'SiglipVisionConfig', {}),
  'beit': ('BeitForImageClassification', 'BeitConfig', RELATIVE),
  'beit model': ('BeitModel', 'BeitConfig', RELATIVE | {'use_mean_pooling': False}),
  'data2vec-vision': ('Data2VecVisionForImageClassification', 'Data2VecVisionConfig', RELATIVE),
  'aimv2': ('Aimv2VisionModel', 'Aimv2VisionConfig', {'use_head': False}),
}
# Of training, of losses, of what else a model gives, and of transformers itself: an image's
# features and logits are the same whatever they say.
UNREAD = {
  *('attention_dropout', 'attention_probs_dropout_prob', 'hidden_dropout_prob', 'drop_path_rate'),
  *('initializer_range', 'initializer_factor', 'layerscale_value'),
  *('pos_embed_jitter', 'pos_embed_rescale', 'pos_embed_shift', 'encoder_stride'),
  *('decoder_hidden_size', 'decoder_intermediate_size', 'decoder_num_attention_heads'),
  *('decoder_num_hidden_layers', 'mask_ratio', 'norm_pix_loss', 'use_mask_token'),
  *('add_fpn', 'auxiliary_channels', 'auxiliary_concat_input', 'auxiliary_loss_weight'),
  *('auxiliary_num_convs', 'pool_scales', 'semantic_loss_ignore_index', 'use_auxiliary_head'),
  'vocab_size',
  *('apply_layernorm', 'reshape_hidden_states', 'out_features', 'out_indices', 'stage_names'),
  *transformers.PretrainedConfig().to_dict(),
}
OTHERS = {
  'hidden_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 80,
  'image_size': 48,
  'patch_size': 8,
  'num_channels': 1,
  'hidden_act': 'gelu_pytorch_tanh',
  'layer_norm_eps': 0.5,
  'rms_norm_eps': 0.5,
  'mlp_ratio': 3,
  'num_register_tokens': 2,
  'pooler_act': 'relu',
  'pooler_output_size': 24,
  'projection_dim': 24,
  'rope_theta': 10.0,
  'layer_scale_init_value': 0.0,
}


def defaults(name):
  return getattr(transformers, MODELS[name][1])().to_dict()


def save(name, folder, **fields):
  """A tiny seeded model of transformers, saved."""
  kind, config, more = MODELS[name]
  values = {key: value for key, value in TINY.items() if key in defaults(name)} | more | fields
  module = peers.seeded(getattr(transformers, kind)(getattr(transformers, config)(**values)))
  module.save_pretrained(folder)
  return module


def edit(folder, **changes):
  """Changes config.json."""
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def features(module, images):
  """Logits, or the projection, or the pooled features, or the mean of the tokens."""
  output = module(images)
  for field in ('logits', 'image_embeds', 'pooler_output'):
    if output.get(field) is not None:
      return {field: output[field]}
  return {'mean': output.last_hidden_state.mean(dim=1)}


def check_equal(run, module):
  """The same features of the same images."""
  images = ours.pictures(run.preprocess.size)[..., : module.config.num_channels]
  [(place, theirs)] = peers.run(features, module, images).items()
  out = ours.trace(run, images)
  values = out['encoded'].mean(axis=1) if place == 'mean' else out['logits']
  assert ours.difference(values, theirs.numpy()) <= ours.TOLERANCE


@pytest.mark.parametrize(
  'name, key', [(name, key) for name in MODELS for key in sorted(defaults(name).keys() - UNREAD)]
)
def test_another_value_of_a_key_is_refused_or_right(name, key, tmp_path):
  if key == 'model_type':
    save(name, tmp_path)
    edit(tmp_path, model_type='swin')
    with pytest.raises(ValueError, match='model_type is "swin"'):
      vit_jax.load(tmp_path)
    return
  other = OTHERS.get(key, not (defaults(name) | MODELS[name][2])[key])
  module = save(name, tmp_path, **{key: other})
  try:
    run = vit_jax.load(tmp_path)
  except ValueError as error:
    assert key in str(error)
  else:
    check_equal(run, module)


@pytest.mark.parametrize(
  'name, key', [(name, key) for name in MODELS for key in sorted(defaults(name).keys() & OTHERS)]
)
def test_another_value_than_the_arrays_have_is_refused_or_right(name, key, tmp_path):
  module = save(name, tmp_path)
  edit(tmp_path, **{key: OTHERS[key]})
  try:
    run = vit_jax.load(tmp_path)
  except ValueError:
    return
  again, loaded = type(module).from_pretrained(tmp_path, output_loading_info=True)
  assert not any(loaded.values())
  check_equal(run, again.eval())


def test_relative_positions_of_a_grid_that_is_no_square_are_refused(tmp_path):
  save('beit', tmp_path)
  edit(tmp_path, image_size=[16, 64])
  with pytest.raises(ValueError, match='image_size 16x64 of relative positions is no square'):
    vit_jax.load(tmp_path)


def test_what_a_file_leaves_out_is_what_transformers_takes(tmp_path):
  for types in huggingface.DEFAULTS.values():
    for name, values in types.items():
      theirs = transformers.CONFIG_MAPPING[name]().to_dict()
      if 'vision_config' not in theirs:
        assert values.items() <= theirs.items(), name
  for name in beit.TYPES:
    assert beit.DEFAULTS.items() <= transformers.CONFIG_MAPPING[name]().to_dict().items(), name
  module = save('siglip', tmp_path, hidden_size=48, num_attention_heads=12)
  config = json.loads((tmp_path / 'config.json').read_text())
  config = {key: value for key, value in config.items() if key in (*TINY, 'model_type')}
  config.pop('num_attention_heads')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  check_equal(vit_jax.load(tmp_path), module)


@pytest.mark.parametrize('parts', [('encoder',), ('vision_config_dict',), ('outer', 'image')])
def test_the_tower_of_a_larger_model_is_read_where_its_configuration_describes_it(parts, tmp_path):
  module = save('vit', tmp_path, layer_norm_eps=0.5, hidden_act='gelu_new')
  config = json.loads((tmp_path / 'config.json').read_text())
  for part in reversed(parts):
    config = {part: config, 'text_config': {'model_type': 'bert', 'hidden_size': 8}}
  (tmp_path / 'config.json').write_text(json.dumps({**config, 'model_type': 'pair'}))
  check_equal(vit_jax.load(tmp_path), module)


@pytest.mark.parametrize('processor', [True, False])
def test_an_image_that_does_not_divide_into_patches_is_cut_as_a_convolution_does(
  processor, tmp_path
):
  module = save('siglip', tmp_path, image_size=40)
  if processor:
    look = {'image_processor_type': 'SiglipImageProcessor', 'size': {'height': 40, 'width': 40}}
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(look))
  run = vit_jax.load(tmp_path)
  resize = "resize(40, 40, method='bicubic_antialias')"
  assert run.preprocess.steps == f'{resize} | corner_crop(32, 32)'
  images = ours.pictures((40, 40))
  [theirs] = peers.run(features, module, images).values()
  actual = ours.trace(run, images[:, :32, :32])['logits']
  assert ours.difference(actual, theirs.numpy()) <= ours.TOLERANCE


APPLE = (
  (r'embeddings\.patch_embed\.', 'preprocessor.patchifier.proj.'),
  (r'embeddings\.rms_norm\.', 'preprocessor.patchifier.norm.'),
  (r'encoder\.layers\.(\d+)\.attention\.out_proj', r'trunk.blocks.\1.attn.proj'),
  (r'encoder\.layers\.(\d+)\.rms_norm([12])', r'trunk.blocks.\1.norm_\2'),
  (r'encoder\.layers\.(\d+)\.ffn\.gate_proj', r'trunk.blocks.\1.mlp.fc1'),
  (r'encoder\.layers\.(\d+)\.ffn\.down_proj', r'trunk.blocks.\1.mlp.fc2'),
  (r'encoder\.layers\.(\d+)\.ffn\.up_proj', r'trunk.blocks.\1.mlp.fc3'),
  (r'^rms_norm', 'trunk.post_trunk_norm'),
)


def test_aimv2_is_read_in_apples_names_with_heads_of_128_channels(tmp_path):
  module = save('aimv2', tmp_path, hidden_size=256)
  arrays = peers.renamed(peers.arrays(tmp_path), APPLE)
  heads = 'encoder.layers.0.attention.{}_proj.weight'
  parts = [arrays.pop(heads.format(part)) for part in 'qkv']
  arrays['trunk.blocks.0.attn.qkv.weight'] = np.concatenate(parts)
  arrays['preprocessor.pos_embed'] = arrays.pop('embeddings.position_embedding.weight')[None]
  path = tmp_path / 'apple' / 'model.safetensors'
  path.parent.mkdir()
  safetensors.numpy.save_file(arrays, path)
  check_equal(vit_jax.load(path), module)


def naflex(module, images):
  """What SigLIP 2's NaFlex gives for images (N, C, height, width) of whole patches."""
  n, channels, height, width = images.shape
  rows, columns = height // 16, width // 16
  patches = images.reshape(n, channels, rows, 16, columns, 16).permute(0, 2, 4, 3, 5, 1)
  output = module(
    pixel_values=patches.reshape(n, rows * columns, -1),
    pixel_attention_mask=torch.ones(n, rows * columns),
    spatial_shapes=torch.tensor([[rows, columns]] * n),
  )
  return {'logits': output.pooler_output}


def test_naflex_is_read_at_its_own_size_and_resampled_to_others(tmp_path):
  config = transformers.Siglip2VisionConfig(
    **{key: value for key, value in TINY.items() if key != 'image_size'}, num_patches=9
  )
  module = peers.seeded(transformers.Siglip2VisionModel(config))
  module.save_pretrained(tmp_path)
  run = vit_jax.load(tmp_path)
  assert run.preprocess.size == (48, 48)
  for size in ((48, 48), (64, 32)):
    images = ours.pictures(size)
    theirs = peers.run(naflex, module, images)['logits'].numpy()
    params = vit_jax.load_params(tmp_path, run.model, image_size=size, report=None)
    actual = ours.trace(dataclasses.replace(run, params=params), images)
    ours.check_bisected(actual, {'logits': theirs})
  edit(tmp_path, num_patches=4)
  with pytest.raises(ValueError, match='num_patches is 4, but the arrays have 9'):
    vit_jax.load(tmp_path)
