"""From one peer to another through us: the second computes what the first did."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.interop import ours, peers
from vit_jax import __main__, bundle
from vit_jax.evaluate import parity

TO_TIMM = (
  'hf vit eps 1e-6',
  'hf vit eps 1e-6 tanh no qkv bias',
  'hf deit distilled eps 1e-6',
  'hf dinov2',
  'hf dinov2 swiglu',
  'hf dinov2 registers',
  'hf dinov3',
  'hf dinov3 gated',
  'hf clip',
  'hf clip projection',
  'hf siglip',
  'hf siglip classes',
  'torchvision',
)
TO_HF = (
  'vit token',
  'deit',
  'deit distilled',
  'dinov2',
  'dinov2 registers',
  'dinov2 swiglu registers',
  'dinov3 token no head',
  'clip no head',
  'siglip map tanh no head',
  'torchvision',
)
TO_TORCHVISION = ('vit token', 'deit', 'hf vit eps 1e-6')
TO_NPZ = (
  ('vit token', 'npz'),
  ('siglip map', 'npz'),
  ('siglip map', 'bigvision'),
  ('siglip gap', 'bigvision'),
  ('hybrid stem', 'npz'),
  ('hybrid r26', 'npz'),
  ('bit', 'npz'),
)
REFUSED = (
  ('hf dinov2 classes', 'timm'),  # no head of timm reads class token and mean
  ('hf vit pooler', 'timm'),  # nor has it a tanh layer before the head
  ('dinov3 token', 'hf'),  # transformers has no DINOv3 with classes
  ('mixer', 'hf'),
  ('bit', 'torchvision'),
  ('siglip map', 'torchvision'),
  ('vit registers', 'torchvision'),
  ('vit qk_norm', 'torchvision'),
  ('vit qk_norm', 'npz'),
  ('vit layer scale', 'npz'),
  ('dinov3 token', 'npz'),
  ('deit distilled', 'torchvision'),
)


def check(built, call, module, tolerance=ours.TOLERANCE):
  images = ours.pictures(built.size)
  first = peers.run(built.call, built.module, images)['logits'].numpy()
  second = peers.run(call, module, images)['logits'].numpy()
  assert ours.difference(second, first) <= tolerance


@pytest.mark.parametrize('name', TO_TIMM)
def test_timm_computes_what_another_peer_does(name, peer, tmp_path):
  out = ours.convert(peer(name).path, tmp_path / 'model', 'timm')
  check(peer(name), peers.logits_of, peers.open_timm(out))


def test_timms_epsilon_moves_a_model_of_hugging_face_little(peer, tmp_path):
  # transformers' ViT says 1e-12 and timm's 1e-6, which no file can change. A norm of variance v
  # shrinks by 1 - 5e-7 / v; v is at least 0.3 here, in 7 norms one after another: 2e-5.
  out = ours.convert(peer('hf vit').path, tmp_path / 'model', 'timm')
  check(peer('hf vit'), peers.logits_of, peers.open_timm(out), 2e-5)


@pytest.mark.parametrize('name', TO_HF)
def test_transformers_computes_what_another_peer_does(name, peer, tmp_path):
  out = ours.convert(peer(name).path, tmp_path / 'model', 'hf')
  check(peer(name), peers.whichever, peers.open_named(out))


def test_a_model_without_a_head_is_transformers_model_without_a_pooler(peer, tmp_path):
  built, images = peer('vit no head'), ours.pictures(peer('vit no head').size)
  module = peers.open_named(ours.convert(built.path, tmp_path / 'model', 'hf'))
  assert type(module).__name__ == 'ViTModel'
  call = lambda module, images: {'logits': module(images).last_hidden_state[:, 0]}  # noqa: E731
  logits = peers.run(call, module, images)['logits']
  wanted = peers.run(built.call, built.module, images)['logits']
  assert ours.difference(logits.numpy(), wanted.numpy()) <= ours.TOLERANCE


@pytest.mark.parametrize('name', TO_TORCHVISION)
def test_torchvision_computes_what_another_peer_does(name, peer, tmp_path):
  run = vit_jax.load(peer(name).path)
  out = ours.convert(run, tmp_path / 'model.safetensors', 'torchvision')
  module = peers.torchvision.models.VisionTransformer(
    image_size=64,
    patch_size=16,
    num_layers=run.model.depth,
    num_heads=run.model.heads,
    hidden_dim=run.model.width,
    mlp_dim=run.model.mlp_dim,
    num_classes=7,
  )
  module.load_state_dict(peers.safetensors.torch.load_file(out))
  check(peer(name), peers.logits_of, module)


@pytest.mark.parametrize('name, to', TO_NPZ)
def test_timm_opens_our_npz(name, to, peer, tmp_path):
  out = ours.convert(peer(name).path, tmp_path / 'model.npz', to)
  described = json.loads((peer(name).path / 'config.json').read_text())
  module = peers.timm.create_model(described['architecture'], **described['model_args'])
  peers.seeded(module)
  with peers.torch.no_grad():
    for parameter in module.parameters():
      parameter.add_(1)  # what the file does not fill shows
  module.load_pretrained(str(out))
  check(peer(name), peers.logits_of, module)


@pytest.mark.parametrize('name', ['clip quickgelu', 'clip erf'])
def test_transformers_computes_what_a_clip_file_of_its_authors_does(name, peer, tmp_path):
  built = peer(name)
  file = tmp_path / 'clip.safetensors'
  safetensors.numpy.save_file(peers.openai_clip(dict(built.source)), file)
  run = vit_jax.load(built.path)
  model = run.model.clone(head_bias=None)
  params = vit_jax.load_params(file, model, image_size=built.size)
  out = ours.convert(ours.replaced(run, model, params), tmp_path / 'model', 'hf')
  images = ours.pictures(built.size)
  module = peers.open_named(out)
  assert type(module).__name__ == 'CLIPVisionModelWithProjection'
  theirs = peers.run(built.call, built.module, images)['logits'] - built.module.head.bias
  logits = peers.run(peers.whichever, module, images)['logits']
  assert ours.difference(logits.numpy(), theirs.detach().numpy()) <= ours.TOLERANCE


@pytest.mark.parametrize('name, to', REFUSED)
def test_a_dialect_that_cannot_say_a_model_is_refused(name, to, peer, tmp_path):
  with pytest.raises(ValueError):
    ours.convert(peer(name).path, tmp_path / 'model', to)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['vit token', 'hf vit', 'torchvision'])
def test_a_bundle_keeps_every_bit(name, peer, tmp_path):
  run = vit_jax.load(peer(name).path)
  again = vit_jax.load(ours.convert(run, tmp_path / 'bundle', 'bundle'))
  assert again.model == run.model
  ours.same_params(again.params, run.params)
  assert again.preprocess == run.preprocess


@pytest.mark.parametrize(
  'name, to', [('hf vit eps 1e-6', 'timm'), ('vit token', 'hf'), ('dinov3', 'timm')]
)
def test_the_command_line_converts_and_checks(name, to, peer, tmp_path, capsys):
  out = tmp_path / 'model'
  # in this process, where conftest.py has made the libraries importable without torchvision's own
  code = __main__.main(['convert', str(peer(name).path), str(out), '--to', to, '--check'])
  printed = capsys.readouterr()
  assert code == 0, printed
  assert printed.out.count('largest difference') == 2
  assert 'block 0' in printed.out


def checked(source, out, to):
  """Whether `vit convert --check` finds what was written near enough, and the line it tells."""
  run = bundle.read(source, native=True)
  return parity.compare(run, {'read': (str(source), 'vit_jax'), 'written': (str(out), to)})


HEADLESS = [  # and one of the arrays after the blocks, which are the last that are read
  ('hf siglip', 'hf', r'\.head\.mlp\.fc2\.bias', 'pre_logits'),
  ('hf siglip', 'hf', r'post_layernorm\.bias', 'encoded'),
  ('hf siglip', 'timm', r'attn_pool\.mlp\.fc2\.bias', 'pre_logits'),
  ('hf clip', 'hf', r'post_layernorm\.bias', 'pre_logits'),
  ('hf clip', 'timm', r'^norm\.bias', 'encoded'),
  ('hf dinov2', 'hf', r'layernorm\.bias', 'encoded'),
  ('siglip map tanh no head', 'timm', r'attn_pool\.probe|attn_pool\.latent', 'pre_logits'),
]


@pytest.mark.parametrize('name, to, spoilt, place', HEADLESS)
def test_what_follows_the_blocks_is_compared_without_a_head(
  name, to, spoilt, place, peer, tmp_path
):
  out = ours.convert(peer(name).path, tmp_path / 'model', to)
  text, fine = checked(peer(name).path, out, to)
  assert fine and f'{place} ' in text, text
  arrays = safetensors.numpy.load_file(out / 'model.safetensors')
  (array,) = [n for n in arrays if re.search(spoilt, n)]
  arrays[array] = np.full_like(arrays[array], 7)
  safetensors.numpy.save_file(arrays, out / 'model.safetensors', {'format': 'pt'})
  text, fine = checked(peer(name).path, out, to)
  assert not fine, text


@pytest.mark.parametrize('to', ['hf', 'timm'])
@pytest.mark.parametrize('kind', ['CLIP', 'Siglip'])
def test_the_image_tower_of_a_model_with_a_text_tower_is_compared(kind, to, tmp_path, capsys):
  images = dict(peers.HF_TINY)
  words = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80)
  words |= dict(vocab_size=9, projection_dim=16) if kind == 'CLIP' else dict(vocab_size=9)
  images |= dict(projection_dim=16) if kind == 'CLIP' else {}
  config = getattr(peers.transformers, f'{kind}Config')(vision_config=images, text_config=words)
  module = peers.seeded(getattr(peers.transformers, f'{kind}Model')(config))
  module.save_pretrained(tmp_path / 'whole')
  words = [str(tmp_path / 'whole'), str(tmp_path / 'out'), '--to', to, '--check']
  assert __main__.main(['convert', *words]) == 0
  printed = capsys.readouterr().out
  assert printed.count('largest difference') == 2
  assert len(re.findall(r'block 2 \d', printed)) == 2  # wherever the largest is
  assert printed.count('logits ') >= 2


def test_a_file_that_no_library_runs_is_read_again_where_its_source_is_run(peer, tmp_path):
  out = ours.convert(peer('vit token').path, tmp_path / 'model.npz', 'npz')
  run = bundle.read(peer('vit token').path, native=True)
  sides = {'read': (str(peer('vit token').path), 'timm'), 'written': (str(out), 'npz')}
  text, fine = parity.compare(run, sides)
  assert fine and 'by timm' in text and 'read again by us' in text
  arrays = dict(np.load(out))
  np.savez(out, **arrays | {'head/bias': arrays['head/bias'] + 1})
  text, fine = parity.compare(run, sides)
  assert not fine, text
