"""Masked autoencoders against transformers' ViTMAEForPreTraining: loss, gradients, files."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax
from tests.interop import peers
from vit_jax import __main__ as commands
from vit_jax import bundle, convert, models
from vit_jax.images import transforms
from vit_jax.tasks import mae
from vit_jax.tasks.encoder import ImageEncoder

transformers = peers.transformers
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
NOISE = RNG.random((3, 16), np.float32)  # of 4 x 4 patches
TOLERANCE = 1e-5  # of losses and gradients near 1
FIELDS = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
  image_size=32,
  patch_size=8,
  decoder_hidden_size=16,
  decoder_num_hidden_layers=3,
  decoder_num_attention_heads=2,
  decoder_intermediate_size=40,
  layer_norm_eps=1e-6,
)


def peer(normalise):
  """A seeded one, whose decoder has the positions that its own code gives, as published ones do.

  A new one has zeros there: transformers 5.23 fills them, and then initialises them away.
  """
  config = transformers.ViTMAEConfig(norm_pix_loss=normalise, **FIELDS)
  module = peers.seeded(transformers.ViTMAEForPreTraining(config))
  token = module.decoder.mask_token.detach().clone()
  module.decoder.initialize_weights(NOISE.shape[1])
  module.decoder.mask_token.data = token
  return module


def their_loss(module):
  pixels = torch.from_numpy((IMAGES / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2).copy())
  return module(pixels, noise=torch.from_numpy(NOISE)).loss


def their_gradients(module, folder):
  """Each parameter's gradient in our names, by way of a file that has them for weights."""
  their_loss(module).backward()
  gradients = copy.deepcopy(module)
  for (name, parameter), source in zip(gradients.named_parameters(), module.parameters()):
    if name == 'decoder.decoder_pos_embed':
      continue
    parameter.data = torch.zeros_like(source) if source.grad is None else source.grad
  gradients.save_pretrained(folder)
  return models.flat(parameters(bundle.read(folder)))


def parameters(source):
  return {**source.params, 'decoder': source.decoder.params}


def our_loss_and_gradients(source):
  """The mean over images, as theirs is, of a bundle with a decoder."""
  size = source.preprocess.size
  uses = dict.fromkeys(('train', 'evaluation'), transforms.compose('resize', size, 3))
  preprocess = bundle.Preprocess('resize', size)
  encoder = ImageEncoder(source.model, uses, preprocess, source.name, None)
  decoder = source.decoder
  options = {'mask': decoder.mask, 'normalise': decoder.normalise}
  task = mae.mae(encoder, source.model, decoder.model, **options)
  batch = {'image': IMAGES, 'noise': NOISE, 'mask': np.ones(len(IMAGES), np.float32)}

  def loss(params):
    fixed = {'ema': None, 'step': jnp.zeros((), jnp.int32)}
    return task.loss(params, batch, jax.random.key(0), fixed)[0] / len(IMAGES)

  value, gradients = jax.jit(jax.value_and_grad(loss))(parameters(source))
  return float(value), models.flat(jax.device_get(gradients))


@pytest.fixture(scope='module', params=[True, False], ids=['normalised', 'pixels'])
def saved(request, tmp_path_factory):
  """A peer, the folder that it saved, and ours made of it."""
  module, folder = peer(request.param), tmp_path_factory.mktemp('vit_mae')
  module.save_pretrained(folder)
  return module, folder, bundle.read(folder)


def test_loss_and_every_gradient_are_those_of_transformers(saved, tmp_path):
  module, _, ours = saved
  value, gradients = our_loss_and_gradients(ours)
  np.testing.assert_allclose(value, their_loss(module).item(), rtol=0, atol=TOLERANCE)
  theirs = their_gradients(module, tmp_path)
  assert gradients.keys() == theirs.keys()
  for name, gradient in gradients.items():
    assert name == 'positions' or np.abs(gradient).max() > 1e-4 or name.endswith('key/bias'), name
    np.testing.assert_allclose(gradient, theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)


def test_the_names_in_memory_are_read_as_those_on_disk(saved, tmp_path):
  module, folder, ours = saved
  other = tmp_path / 'memory'
  other.mkdir()
  torch.save(module.state_dict(), other / 'pytorch_model.bin')
  (other / 'config.json').write_text((folder / 'config.json').read_text())
  again = models.flat(parameters(bundle.read(other)))
  for name, leaf in models.flat(parameters(ours)).items():
    np.testing.assert_array_equal(again[name], leaf, err_msg=name)


def test_what_is_written_is_a_model_of_transformers_with_an_equal_loss(saved, tmp_path):
  module, _, ours = saved
  bundle.write(tmp_path / 'bundle', ours)
  convert.write(tmp_path / 'hf', bundle.read(tmp_path / 'bundle'), to='hf')
  again, info = transformers.ViTMAEForPreTraining.from_pretrained(
    tmp_path / 'hf', output_loading_info=True
  )
  assert not any(info.values()), info
  np.testing.assert_allclose(their_loss(again).item(), their_loss(module).item(), rtol=1e-6)


def test_its_encoder_goes_to_timm(saved, tmp_path):
  _, _, ours = saved
  convert.write(tmp_path / 'timm', ours, to='timm')
  again = vit_jax.load(tmp_path / 'timm')
  assert again.decoder is None
  for name, leaf in models.flat(ours.params).items():
    np.testing.assert_allclose(models.flat(again.params)[name], leaf, rtol=0, atol=1e-6)


def test_the_check_of_vit_convert_runs_both_sides_unmasked(saved, tmp_path, capsys):
  _, folder, _ = saved
  line = ['convert', str(folder), str(tmp_path / 'hf'), '--to', 'hf', '--check']
  assert commands.main(line) == 0, capsys.readouterr()
  assert capsys.readouterr().out.count('by transformers: largest difference') == 2


def test_the_encoder_alone_is_a_vit_of_transformers(saved, tmp_path):
  _, folder, ours = saved
  line = ['convert', str(folder), str(tmp_path / 'vit'), '--to', 'hf', '--encoder-only']
  assert commands.main(line) == 0
  module = transformers.ViTModel.from_pretrained(tmp_path / 'vit', add_pooling_layer=False)
  pixels = np.float32(IMAGES / 127.5 - 1)
  theirs = peers.run(lambda m, x: m(x).last_hidden_state, module, pixels)
  _, out = ours.model.apply({'params': ours.params}, pixels)
  np.testing.assert_allclose(out['encoded'], theirs, rtol=0, atol=TOLERANCE)
