"""Images of other channels than three: timm's kernels, and its models of grey and of many bands."""

import json

import numpy as np
import pytest
import torch

import vit_jax
from tests.interop import ours, peers
from vit_jax import convert
from vit_jax.convert import resample

timm = peers.timm
TINY = dict(img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=3)


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 8, 13])
def test_a_kernel_for_other_channels_is_that_of_timm(count):
  kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 5), np.float32)  # (P, P, C, D)
  theirs = timm.models.adapt_input_conv(
    count, torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
  )
  theirs = theirs.numpy().transpose(2, 3, 1, 0)
  np.testing.assert_allclose(resample.channels(kernel, count), theirs, atol=1e-6)


@pytest.mark.parametrize('count', [1, 5])
def test_a_model_of_timm_with_in_chans_is_read_and_written(count, tmp_path):
  theirs = timm.create_model('vit_tiny_patch16_224', in_chans=count, **TINY).eval()
  args = {'in_chans': count, **TINY}
  levels = {'mean': (0.4,) * count, 'std': (0.3,) * count, 'input_size': (count, 32, 32)}
  theirs.pretrained_cfg = {**theirs.pretrained_cfg, **levels, 'num_classes': 3}
  timm.models.save_for_hf(theirs, tmp_path / 'timm', model_args=args)
  run = vit_jax.load(tmp_path / 'timm')
  assert run.preprocess.shape == (32, 32, count)
  np.testing.assert_allclose(run.preprocess.mean, levels['mean'])
  images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, count), np.uint8)
  normalised = (images / np.float32(255) - np.float32(0.4)) / np.float32(0.3)
  logits = ours.trace(run, normalised)['logits']
  assert convert.write(tmp_path / 'again', run, to='timm') == []
  again = timm.create_model(f'local-dir:{tmp_path}/again', pretrained=True).eval()
  pixels = torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy())
  for module in (theirs, again):
    with torch.no_grad():
      np.testing.assert_allclose(logits, module(pixels).numpy(), atol=1e-5)  # of logits about 1


def test_a_mean_of_rgb_becomes_its_mean_value_for_grey_as_in_timm(tmp_path, capsys):
  theirs = timm.create_model('vit_tiny_patch16_224', in_chans=1, **TINY)
  levels = {'mean': (0.2, 0.3, 0.7), 'std': (0.2, 0.2, 0.5)}
  theirs.pretrained_cfg = {**theirs.pretrained_cfg, **levels}
  timm.models.save_for_hf(theirs, tmp_path / 'timm', model_args={'in_chans': 1, **TINY})
  file = tmp_path / 'timm' / 'config.json'
  described = json.loads(file.read_text())
  expected = {name: described['pretrained_cfg'][name] for name in levels}  # one number each
  described['pretrained_cfg'] |= levels  # as older versions of timm write it
  file.write_text(json.dumps(described))
  run = vit_jax.load(tmp_path / 'timm')
  np.testing.assert_allclose(run.preprocess.mean, expected['mean'])
  np.testing.assert_allclose(run.preprocess.std, expected['std'])
  assert 'mean is of RGB, images have 1 channel: takes its mean value' in capsys.readouterr().err
