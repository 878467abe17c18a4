"""The authors' own files, by their names: as timm's files of the same weights."""

import pytest
import safetensors.numpy
import torch

import vit_jax
from tests.interop import ours, peers

# name of a timm family -> how its authors name those arrays
ORIGINALS = {
  'Facebook DINOv2': ('dinov2', peers.facebook_dinov2),
  'Facebook DINOv2 with registers': ('dinov2 registers', peers.facebook_dinov2),
  'Facebook DINOv2 with SwiGLU': ('dinov2 swiglu', peers.facebook_dinov2),
  'Facebook DINOv2 with both': ('dinov2 swiglu registers', peers.facebook_dinov2),
  'Facebook DeiT': ('deit', dict),
  'Facebook DeiT distilled': ('deit distilled', dict),
  'Facebook DeiT III': ('deit3', peers.facebook_deit3),
  'Facebook DINOv3': ('dinov3 qkv bias', peers.facebook_dinov3),
  'Facebook DINOv3 gated': ('dinov3 gated qkv bias', peers.facebook_dinov3),
  'OpenAI CLIP': ('clip quickgelu', peers.openai_clip),
  'open_clip': ('clip erf', peers.openai_clip),
  'open_clip around timm': ('siglip map', peers.open_clip_trunk),
  'linear patches': ('vit token', peers.linear_patches),
  'torch.nn.DataParallel': ('vit token', lambda state: peers.wrapped('module.', state)),
}


def original(peer, name):
  """(the family's peer, the arrays as its authors name them, our run of timm's file)."""
  family, rename = ORIGINALS[name]
  built = peer(family)
  return built, rename(dict(built.source)), vit_jax.load(built.path)


def without_head_bias(run):
  """A CLIP projection has no bias: timm's file of it has zeros there, ours none."""
  params = dict(run.params, head={'kernel': run.params['head']['kernel']})
  return run.model.clone(head_bias=None), params


# timm adds that position to the class token: their arrays differ from its, not what they compute.
WITH_REGISTERS = ('Facebook DINOv2 with registers', 'Facebook DINOv2 with both')


@pytest.mark.parametrize('name', [name for name in ORIGINALS if name not in WITH_REGISTERS])
def test_load_params_reads_the_authors_names(name, peer, tmp_path):
  built, arrays, run = original(peer, name)
  file = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file(arrays, file)
  model, wanted = run.model, run.params
  if name in ('OpenAI CLIP', 'open_clip'):
    model, wanted = without_head_bias(run)
  params = vit_jax.load_params(file, model, image_size=built.size)
  ours.same_params(params, wanted)


@pytest.mark.parametrize('name', WITH_REGISTERS)
def test_a_class_tokens_own_position_beside_registers_is_kept(name, peer, tmp_path):
  built, arrays, run = original(peer, name)
  file = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file(arrays, file)
  model = run.model.clone(cls_position=True)
  params = vit_jax.load_params(file, model, image_size=built.size)
  actual = ours.apply(model, params, ours.pictures(built.size))
  ours.check_bisected(actual, built.trace(ours.pictures(built.size)))


def test_load_params_reads_a_pth_of_facebook(peer, tmp_path):
  built, _, run = original(peer, 'Facebook DeiT distilled')
  file = tmp_path / 'deit.pth'
  torch.save({'model': built.module.state_dict()}, file)
  ours.same_params(vit_jax.load_params(file, run.model, image_size=built.size), run.params)


def test_load_params_reads_torchvisions_older_names(peer, tmp_path):
  built = peer('torchvision')
  file = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file(peers.before_0_13(built.source), file)
  run = vit_jax.load(built.path)
  ours.same_params(vit_jax.load_params(file, run.model, image_size=built.size), run.params)


def test_load_infers_the_architecture_of_a_bare_file(peer, tmp_path):
  # heads of 64, as every published model of these families has
  for name in ('OpenAI CLIP', 'open_clip'):
    _, arrays, _ = original(peer, name)
    file = tmp_path / f'{name}.safetensors'
    safetensors.numpy.save_file(arrays, file)
    actual = vit_jax.load(file).model
    assert (actual.heads, actual.depth, actual.width, actual.pre_norm) == (2, 3, 128, True)
    assert actual.head_bias is None
