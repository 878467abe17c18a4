"""Positions for images of other sizes: each peer's own way of resampling, under its name.

R, C rows and columns of a grid; D width.
"""

import json

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vit_jax
from tests.interop import ours, peers
from vit_jax.convert import resample

TORCH = {  # rule -> arguments of torch.nn.functional.interpolate
  'bilinear_align_corners': dict(mode='bilinear', align_corners=True),
  'bilinear': dict(mode='bilinear', align_corners=False),
  'bilinear_antialias': dict(mode='bilinear', align_corners=False, antialias=True),
  'bicubic_antialias': dict(mode='bicubic', align_corners=False, antialias=True),
  'bicubic': dict(mode='bicubic', align_corners=False),
  'bicubic_align_corners': dict(mode='bicubic', align_corners=True),
}
GRIDS = [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((5, 8), (8, 5)), ((37, 37), (16, 16))]


@pytest.mark.parametrize('rule', list(TORCH))
@pytest.mark.parametrize('old, new', GRIDS)
def test_a_rule_is_torchs_of_those_arguments(rule, old, new):
  field = np.random.default_rng(0).standard_normal((*old, 6)).astype(np.float32)
  # In float64, as ours inside: places up to 37 have an error of 4e-6 in torch's float32.
  theirs = F.interpolate(
    torch.from_numpy(field).double().permute(2, 0, 1)[None], new, **TORCH[rule]
  )
  actual = resample.positions(field.reshape(-1, 6), old, new, rule)
  assert ours.difference(actual.reshape(*new, 6), theirs[0].permute(1, 2, 0).numpy()) <= 5e-7


@pytest.mark.parametrize('new', [(24, 24), (7, 9)])
def test_bicubic_antialias_is_timms_resample_abs_pos_embed(new):
  table = np.random.default_rng(0).standard_normal((1, 197, 6)).astype(np.float32)
  theirs = peers.timm.layers.resample_abs_pos_embed(
    torch.from_numpy(table), new, num_prefix_tokens=1
  )[0, 1:]
  actual = resample.positions(table[0, 1:], (14, 14), new, 'bicubic_antialias')
  assert ours.difference(actual, theirs.numpy()) <= ours.TOLERANCE


@pytest.mark.parametrize('side', [8, 14, 32])
def test_the_patch_kernel_is_timms_resample_patch_embed(side):
  kernel = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
  theirs = peers.timm.layers.resample_patch_embed(torch.from_numpy(kernel), [side, side])
  actual = resample.patch_kernel(kernel.transpose(2, 3, 1, 0), (side, side), 'bicubic_antialias')
  # The pseudo-inverse has a condition number of up to 30: timm's, in float32, is off by 30 eps.
  assert ours.difference(actual.transpose(3, 2, 0, 1), theirs.numpy()) <= 2e-5


@pytest.mark.parametrize('name', ['par_gap', 'parfac_gap', 'siglip'])
def test_a_naflexvit_is_equal_on_images_of_no_square(name, tmp_path):
  fields = dict(embed_dim=64, depth=1, num_heads=4, num_classes=5)
  module = peers.seeded(peers.timm.create_model(f'naflexvit_base_patch16_{name}', **fields))
  peers.save_timm(module, tmp_path)
  model, size = vit_jax.load(tmp_path).model, (96, 320)
  params = vit_jax.load_params(tmp_path, model, image_size=size)
  images = ours.pictures(size)
  theirs = peers.run(peers.logits_of, module, images)['logits'].numpy()
  assert ours.difference(ours.apply(model, params, images)['logits'], theirs) <= ours.TOLERANCE


def checked(run, size, rule, built, theirs):
  params = vit_jax.load_params(built.path, run.model, image_size=size, resample=rule)
  actual = ours.apply(run.model, params, ours.pictures(size))
  ours.check_bisected(jax.device_get(actual), {'logits': np.asarray(theirs)})


SIZES = [(96, 96), (64, 96), (128, 48)]
RELATIVE = ('beit_base_patch16_224', 'vit_relpos_base_patch16_clsgap_224')


@pytest.mark.parametrize('size', [*SIZES, (32, 32)])
@pytest.mark.parametrize('name', RELATIVE)
def test_relative_positions_are_for_images_of_another_size_as_in_timm(name, size, tmp_path):
  args = dict(img_size=64, embed_dim=32, depth=2, num_heads=4, num_classes=5)
  module = peers.seeded(peers.timm.create_model(name, **args))
  peers.save_timm(module, tmp_path)
  module.set_input_size(size)
  theirs = peers.run(peers.logits_of, module, ours.pictures(size))['logits']
  model = vit_jax.load(tmp_path).model
  params = vit_jax.load_params(tmp_path, model, image_size=size)
  actual = ours.apply(model, params, ours.pictures(size))['logits']
  assert ours.difference(np.asarray(actual), theirs.numpy()) <= ours.TOLERANCE


TIMM = (
  'vit token',
  'vit no_embed_class',
  'vit registers',
  'deit distilled',
  'siglip map',
  'dinov3',
)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', TIMM)
def test_other_sizes_are_as_timm_loads_them(name, size, peer):
  built = peer(name)
  module = peers.timm.create_model(f'local-dir:{built.path}', pretrained=True, img_size=size)
  theirs = peers.run(peers.logits_of, module, ours.pictures(size))['logits']
  checked(vit_jax.load(built.path), size, 'bicubic_antialias', built, theirs)


HF = {
  'hf vit': 'bicubic',
  'hf deit distilled': 'bicubic',
  'hf clip': 'bicubic',
  'hf siglip': 'bicubic',
}


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', list(HF))
def test_other_sizes_are_as_transformers_interpolates_them(name, size, peer):
  built = peer(name)

  def call(module, images):
    output = module(images, interpolate_pos_encoding=True)
    return {'logits': output['logits' if 'logits' in output else 'pooler_output']}

  theirs = peers.run(call, built.module, ours.pictures(size))['logits']
  checked(vit_jax.load(built.path), size, HF[name], built, theirs)


DINO = {
  'hf dinov2': 'bicubic',
  'hf dinov2 registers': 'bicubic_antialias',
  'hf dinov3': 'bicubic',
}


@pytest.mark.parametrize('name', list(DINO))
def test_other_sizes_are_as_dino_takes_them(name, peer):
  built = peer(name)
  size = (96, 64) if name == 'hf dinov3' else (84, 70)
  theirs = peers.run(built.call, built.module, ours.pictures(size))['logits']
  checked(vit_jax.load(built.path), size, DINO[name], built, theirs)


def test_other_sizes_are_as_torchvision_interpolates_them(peer):
  built = peer('torchvision')
  state = {name: torch.from_numpy(array) for name, array in built.source.items()}
  state = peers.torchvision.models.vision_transformer.interpolate_embeddings(
    image_size=112, patch_size=16, model_state=state
  )
  module = peers.torchvision.models.VisionTransformer(
    image_size=112,
    patch_size=16,
    num_layers=3,
    num_heads=2,
    hidden_dim=128,
    mlp_dim=160,
    num_classes=7,
  )
  module.load_state_dict(state)
  theirs = peers.run(peers.logits_of, module, ours.pictures((112, 112)))['logits']
  checked(vit_jax.load(built.path), (112, 112), 'bicubic_align_corners', built, theirs)


@pytest.mark.parametrize('size', SIZES)
def test_other_sizes_of_our_npz_are_as_timm_loads_them(size, peer, tmp_path):
  built = peer('vit token')
  run = vit_jax.load(built.path)
  file = ours.convert(run, tmp_path / 'model.npz', 'npz')
  described = json.loads((built.path / 'config.json').read_text())
  module = peers.timm.create_model(
    described['architecture'], **described['model_args'] | {'img_size': size}
  )
  module.load_pretrained(str(file))
  theirs = peers.run(peers.logits_of, module, ours.pictures(size))['logits']
  checked(run, size, 'bilinear', built, theirs)


RULES = {'vit token': 'bicubic_antialias', 'torchvision': 'bicubic_align_corners'} | HF
RULES |= {name: rule for name, rule in DINO.items() if name != 'hf dinov3'}


@pytest.mark.parametrize('name', list(RULES))
def test_a_file_is_resampled_as_its_own_code_does(name, peer):
  built = peer(name)
  model = vit_jax.load(built.path).model
  size = (84, 84) if 'dino' in name else (96, 96)
  plain = vit_jax.load_params(built.path, model, image_size=size)
  named = vit_jax.load_params(built.path, model, image_size=size, resample=RULES[name])
  ours.same_params(plain, named)
