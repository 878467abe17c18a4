"""Hugging Face's folders beyond the usual: other configurations, files and towers."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
import transformers

import vit_jax
from tests.interop import ours, peers
from vit_jax.images import transforms

ViT = functools.partial(peers.hf_family, 'ViTForImageClassification', 'ViTConfig', 'vit.layers')
DINO3 = functools.partial(peers.hf_family, 'DINOv3ViTModel', 'DINOv3ViTConfig', 'model.layer')
SMALL = peers.HF_TINY | {'num_hidden_layers': 1}

UNUSUAL = {
  'relu': ViT(peers.logits, **SMALL | {'hidden_act': 'relu'}),
  'quick_gelu': ViT(peers.logits, **SMALL | {'hidden_act': 'quick_gelu'}),
  'gelu_new': ViT(peers.logits, **SMALL | {'hidden_act': 'gelu_new'}),
  'gelu_fast': ViT(peers.logits, **SMALL | {'hidden_act': 'gelu_fast'}),
  'epsilon': ViT(peers.logits, **SMALL | {'layer_norm_eps': 1e-2}),
  'non-square image': ViT(peers.logits, **SMALL | {'image_size': (64, 96)}),
  'non-square patch': ViT(peers.logits, **SMALL | {'patch_size': (16, 8)}),
  'pooler of another width': peers.hf_family(
    'ViTModel', 'ViTConfig', 'layers', peers.pooled, **SMALL, pooler_output_size=24
  ),
  'pooler with another activation': peers.hf_family(
    'ViTModel', 'ViTConfig', 'layers', peers.pooled, **SMALL, pooler_act='relu'
  ),
  'DINOv3 with key bias': DINO3(peers.pooled, key_bias=True, **SMALL),
  'DINOv3 without projection bias': DINO3(peers.pooled, proj_bias=False, **SMALL),
  'DINOv3 without MLP bias': DINO3(peers.pooled, mlp_bias=False, **SMALL),
  'DINOv3 with another theta': DINO3(peers.pooled, rope_theta=30.0, **SMALL),
  'DINOv3 gated with GELU': DINO3(peers.pooled, use_gated_mlp=True, **SMALL),
  'DINOv2 without qkv bias': peers.hf_family(
    'Dinov2Model',
    'Dinov2Config',
    'encoder.layer',
    peers.pooled,
    **peers.DINO_TINY | {'num_hidden_layers': 1, 'qkv_bias': False},
  ),
  'CLIP with GELU': peers.hf_family(
    'CLIPVisionModel',
    'CLIPVisionConfig',
    'encoder.layers',
    peers.pooled,
    **SMALL,
    hidden_act='gelu',
  ),
  'CLIP with another epsilon': peers.hf_family(
    'CLIPVisionModel',
    'CLIPVisionConfig',
    'encoder.layers',
    peers.pooled,
    **SMALL,
    layer_norm_eps=1e-2,
  ),
}


@pytest.mark.parametrize('name', list(UNUSUAL))
def test_a_configuration_is_refused_or_right(name, tmp_path):
  built = UNUSUAL[name](tmp_path)
  images = ours.pictures(built.size)
  theirs = built.trace(images)
  try:
    run = vit_jax.load(tmp_path)
  except ValueError:
    return
  ours.check_bisected(ours.trace(run, images), theirs)


# These must not be refused: published checkpoints are so.
@pytest.mark.parametrize('name', ['quick_gelu', 'epsilon', 'CLIP with GELU', 'non-square image'])
def test_a_configuration_is_read(name, tmp_path):
  UNUSUAL[name](tmp_path)
  vit_jax.load(tmp_path)


@pytest.mark.parametrize(
  'model, config',
  [
    ('BeitModel', 'BeitConfig'),
    ('ViTMSNModel', 'ViTMSNConfig'),
    ('IJepaModel', 'IJepaConfig'),
    ('ViTMAEModel', 'ViTMAEConfig'),
  ],
)
def test_an_architecture_of_similar_names_is_refused_or_right(model, config, tmp_path):
  described = getattr(transformers, config)(**SMALL)
  described.mask_ratio = 0.0  # of ViTMAE
  module = peers.seeded(getattr(transformers, model)(described))
  module.save_pretrained(tmp_path)
  try:
    run = vit_jax.load(tmp_path)
  except ValueError:
    return
  images = ours.pictures((64, 64))

  def call(module, images):  # the mean, as ViTMAE shuffles the tokens
    return {'mean': module(images).last_hidden_state.mean(dim=1)}

  theirs = peers.run(call, module, images)['mean'].numpy()
  assert ours.difference(ours.trace(run, images)['encoded'].mean(axis=1), theirs) <= ours.TOLERANCE


def towers(kind, text, vision, **fields):
  """A model of an image and a text tower."""
  text = (
    dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32) | text
  )
  config = getattr(transformers, f'{kind}Config')(text_config=text, vision_config=vision, **fields)
  return peers.seeded(getattr(transformers, f'{kind}Model')(config))


@pytest.mark.parametrize('kind', ['CLIP', 'Siglip'])
def test_the_image_tower_of_a_pair_is_read_alone(kind, tmp_path):
  fields = {'projection_dim': 48} if kind == 'CLIP' else {}
  text = {'vocab_size': 50, 'max_position_embeddings': 8}
  module = towers(kind, text, peers.HF_TINY, **fields)
  module.save_pretrained(tmp_path)
  images = ours.pictures((64, 64))

  def call(module, images):
    features = module.get_image_features(images)
    return {'logits': getattr(features, 'pooler_output', features)}

  theirs = peers.run(call, module, images)['logits'].numpy()
  run = vit_jax.load(tmp_path)
  ours.check_bisected(ours.trace(run, images), {'logits': theirs})


def test_shards_and_pickles_of_a_folder_are_read(peer, tmp_path):
  built = peer('hf vit')
  whole = vit_jax.load(built.path)
  built.module.save_pretrained(tmp_path / 'shards', max_shard_size='50KB')
  assert len(list((tmp_path / 'shards').glob('*.safetensors'))) > 1
  (tmp_path / 'pickle').mkdir()
  (tmp_path / 'pickle' / 'config.json').write_bytes((built.path / 'config.json').read_bytes())
  torch.save(built.module.state_dict(), tmp_path / 'pickle' / 'pytorch_model.bin')
  for folder in ('shards', 'pickle'):
    run = vit_jax.load(tmp_path / folder)
    assert run.model == whole.model
    ours.same_params(run.params, whole.params)


def test_bfloat16_is_read_as_the_same_numbers_in_float32(tmp_path):
  built = ViT(peers.logits, **SMALL)(tmp_path / 'float32')
  built.module.to(torch.bfloat16).save_pretrained(tmp_path / 'bfloat16')
  again = type(built.module).from_pretrained(tmp_path / 'bfloat16', dtype=torch.float32)
  theirs = peers.run(lambda m, x: peers.logits(m(x)), again, ours.pictures((64, 64)))
  run = vit_jax.load(tmp_path / 'bfloat16')
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(run.params))
  actual = ours.trace(run, ours.pictures((64, 64)))
  ours.check_bisected(actual, {'logits': theirs['logits'].numpy()})


PROCESSOR = dict(
  size={'height': 64, 'width': 64},
  image_mean=[0.4, 0.5, 0.6],
  image_std=[0.2, 0.3, 0.4],
  resample=3,
)


EDGE = {'size': {'shortest_edge': 64}}
BARE = {  # preprocessor_config.json that leaves things to the class that it names
  'CLIP of before 2022': ('CLIP', {'feature_extractor_type': 'CLIPFeatureExtractor', 'size': 64}),
  'CLIP': ('CLIP', EDGE),
  'CLIP without normalization': ('CLIP', {**EDGE, 'do_normalize': False}),
  'ViT': ('ViT', {'size': {'height': 64, 'width': 64}}),
  'ViT of one number': ('ViT', {'size': 64}),
  'ViT with a crop': ('ViT', {'size': {'height': 80, 'width': 72}, 'do_center_crop': True}),
  'CLIP of one number for both': ('CLIP', {'size': 80, 'default_to_square': True}),
  'ViT of bytes': (
    'ViT',
    {'size': 64, 'do_rescale': False, 'image_mean': [127.5] * 3, 'image_std': [99.0] * 3},
  ),
  'ViT to [-1, 1]': (
    'ViT',
    {'size': 64, 'rescale_factor': 1 / 127.5, 'image_mean': [1.0] * 3, 'image_std': [1.0] * 3},
  ),
  'ViT without normalization': ('ViT', {'size': 64, 'do_normalize': False}),
  'DeiT': ('DeiT', {'size': 73}),
  'Siglip': ('Siglip', {'size': {'height': 64, 'width': 64}}),
  'Bit': ('Bit', EDGE),
  'DINOv3ViT': ('DINOv3ViT', {'size': {'height': 64, 'width': 64}}),
}


@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('name', BARE)
def test_a_processor_takes_what_its_file_leaves_out_from_its_class(name, nested, peer, tmp_path):
  kind, values = BARE[name]
  for file in peer('hf vit').path.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  if 'feature_extractor_type' not in values:
    values = {'image_processor_type': f'{kind}ImageProcessor', **values}
  if kind in ('CLIP', 'DeiT', 'Bit') or 'do_center_crop' in values:
    values = {**values, 'crop_size': 64}
  file = 'processor_config.json' if nested else 'preprocessor_config.json'
  (tmp_path / file).write_text(json.dumps({'image_processor': values} if nested else values))
  processor = getattr(transformers, f'{kind}ImageProcessor').from_pretrained(tmp_path)
  image = ours.pictures((128, 192), 1)[0]
  image = ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)
  wanted = processor(image, return_tensors='pt')['pixel_values'][0].permute(1, 2, 0).numpy()
  looks = vit_jax.load(tmp_path).preprocess
  assert looks.size == (64, 64)
  pixels = transforms.compose(looks.steps, looks.size)(image, np.random.default_rng(0)) / 255
  actual = (pixels - np.array(looks.mean)) / np.array(looks.std)
  # One of 255 levels, by which PIL and torchvision round a resized image otherwise
  assert np.abs(actual - wanted).max() <= 1.01 / 255 / min(looks.std)


def test_preprocessing_goes_in_and_out(peer, tmp_path):
  for file in peer('hf vit').path.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  kind = 'ViTImageProcessor'
  text = json.dumps(PROCESSOR | {'image_processor_type': kind, 'do_resize': True})
  (tmp_path / 'preprocessor_config.json').write_text(text)
  run = vit_jax.load(tmp_path)
  assert run.preprocess.size == (64, 64)
  np.testing.assert_allclose(run.preprocess.mean, PROCESSOR['image_mean'])
  np.testing.assert_allclose(run.preprocess.std, PROCESSOR['image_std'])
  out = ours.convert(run, tmp_path / 'out', 'hf')
  written = json.loads((out / 'preprocessor_config.json').read_text())
  for field in ('size', 'image_mean', 'image_std', 'resample'):
    assert written[field] == PROCESSOR[field], field


def test_timms_preprocessing_goes_in_and_out(peer, tmp_path):
  built = peer('siglip map')
  first = json.loads((built.path / 'config.json').read_text())['pretrained_cfg']
  run = vit_jax.load(built.path)
  np.testing.assert_allclose(run.preprocess.mean, first['mean'])
  np.testing.assert_allclose(run.preprocess.std, first['std'])
  out = ours.convert(run, tmp_path / 'model', 'timm')
  again = json.loads((out / 'config.json').read_text())['pretrained_cfg']
  for field in ('input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std'):
    if field in first:
      assert again[field] == first[field], field


@pytest.mark.parametrize('kind', ['TimmWrapperForImageClassification', 'TimmWrapperModel'])
def test_a_model_of_timm_is_read_as_transformers_saves_it(kind, tmp_path):
  fields = {'img_size': 64, 'embed_dim': 64, 'depth': 1, 'num_heads': 2}
  config = transformers.TimmWrapperConfig.from_dict(
    {
      'architecture': 'deit3_small_patch16_224',
      'num_classes': 7,
      'model_args': fields,
      'problem_type': 'multi_label_classification',
    }
  )
  module = peers.seeded(getattr(transformers, kind)(config))
  module.save_pretrained(tmp_path)
  images = ours.pictures((64, 64))
  theirs = peers.run(peers.whichever, module, images)['logits'].numpy()
  run = vit_jax.load(tmp_path)
  assert run.scores == 'sigmoid'
  ours.check_bisected(ours.trace(run, images), {'logits': theirs})


def test_relative_positions_in_bfloat16_that_all_layers_share_are_added_in_float32(tmp_path):
  fields = SMALL | {'use_relative_position_bias': True, 'use_shared_relative_position_bias': True}
  module = peers.seeded(transformers.BeitModel(transformers.BeitConfig(**fields)))
  module.to(torch.bfloat16).save_pretrained(tmp_path)
  images = ours.pictures((64, 64))
  call = lambda module, images: peers.pooled(module(images))  # noqa: E731
  theirs = peers.run(call, module.float(), images)['logits'].numpy()
  ours.check_bisected(ours.trace(vit_jax.load(tmp_path), images), {'logits': theirs})
