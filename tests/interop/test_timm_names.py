"""Every name of timm's plain Transformers: its details are ours, or it is refused.

timm's config.json holds only the arguments that differ from what a name stands for, so the name
itself says the activation, epsilon and block. A block whose arrays have the usual names but which
computes something else must not be taken for the usual one.
"""

import re

import pytest

import vit_jax
from tests.interop import ours, peers

timm = peers.timm

MODULES = ('vision_transformer', 'deit', 'eva', 'beit')
ACTIVATIONS = {'GELU': 'gelu_erf', 'GELUTanh': 'gelu_tanh', 'QuickGELU': 'quick_gelu'}
POOLS = {'token': 'token', 'avg': 'gap', 'map': 'map', '': 'none'}
PLAIN = ('Block', 'Attention', 'LayerNorm')


def small(arch):
  side = 4 * int((re.search(r'patch(\d+)', arch) or ['', 16])[1])
  sizes = dict(embed_dim=96, depth=1, num_heads=2, num_classes=5, img_size=side)
  return timm.create_model(arch, **sizes)


def names():
  return [name for module in MODULES for name in timm.list_models(module=module)]


def is_plain(module):
  block = module.blocks[0]
  kinds = [type(part).__name__ for part in (block, getattr(block, 'attn', None))]
  norm = type(getattr(block, 'norm1', None)).__name__
  if (*kinds, norm) != PLAIN or 'Beit' in type(module).__name__:
    return False
  inner = [*block.attn.norm.parameters(), *block.mlp.norm.parameters()]  # as BEiT-3 has
  return not inner and type(block.mlp).__name__ in ('Mlp', 'GluMlp')


def places_registers(module):
  """Whether the table of positions has rows for registers, which no model of ours has."""
  return module.num_reg_tokens and not module.no_embed_class


def details(module):
  """What a plain model's name stands for, in our fields."""
  block = module.blocks[0]
  activation = type(block.mlp.act).__name__
  values = {
    'norm_eps': block.norm1.eps,
    'pool': POOLS[module.global_pool],
    'heads': block.attn.num_heads,
    'swiglu': activation == 'SiLU',
    'registers': module.num_reg_tokens,
    'final_norm': final_norm(module),
  }
  if activation != 'SiLU':
    values['activation'] = ACTIVATIONS[activation]
  return values


def final_norm(module):
  if hasattr(module.fc_norm, 'weight'):
    return 'pooled'
  return 'tokens' if hasattr(module.norm, 'weight') else 'none'


def test_every_plain_name_stands_for_what_timm_builds(tmp_path):
  wrong, count = [], 0
  for arch in names():
    try:
      module = small(arch)
    except Exception:  # timm takes no such size: `sapiens2`
      continue
    if not is_plain(module):
      continue
    count += 1
    peers.save_timm(module, tmp_path / arch)
    try:
      model = vit_jax.load(tmp_path / arch).model
    except ValueError as error:
      if not places_registers(module):
        wrong.append(f'{arch}: {error}')
      continue
    wanted = details(module)
    got = {field: getattr(model, field) for field in wanted}
    if got != wanted:
      differ = [
        f'{key} {got[key]!r}, not {wanted[key]!r}' for key in wanted if got[key] != wanted[key]
      ]
      wrong.append(f'{arch}: {", ".join(differ)}')
  assert not wrong, '\n'.join(wrong)
  assert count > 150


OTHERS = (
  'vit_base_patch16_rpn_224',
  'vit_base_patch16_xp_224',
  'vit_small_patch16_18x2_224',
  'vit_dwee_patch16_reg1_gap_256',
  'vit_base_patch16_rope_224',
  'vit_base_patch16_rope_mixed_224',
  'vit_base_patch16_rope_ape_224',
  'vit_base_patch16_rope_reg1_gap_256',
  'vit_mediumd_patch16_rope_reg1_gap_256',
  'vit_base_patch16_lingbot',
  'vit_giant_patch16_lingbot',
  'vit_pe_core_base_patch16_224',
  'vit_pe_spatial_base_patch16_512',
  'vit_tiny_patch16_dinov3_qkvb',
  'vit_7b_patch16_dinov3',
  'vit_huge_plus_patch16_dinov3',
  'eva_giant_patch14_224',
  'eva_large_patch14_196',
  'eva02_tiny_patch14_224',
  'eva02_base_patch14_224',
  'eva02_base_patch16_clip_224',
  'eva02_enormous_patch14_clip_224',
  'beit_base_patch16_224',
  'beitv2_base_patch16_224',
  'beit3_base_patch16_224',
  'aimv2_large_patch14_224',
  'flexivit_small',
  'test_vit',
  'test_vit2',
  'test_vit3',
  'test_vit4',
)


@pytest.mark.parametrize('arch', OTHERS)
def test_a_name_is_refused_or_right(arch, tmp_path):
  module = peers.seeded(small(arch))
  peers.save_timm(module, tmp_path / 'model')
  try:
    run = vit_jax.load(tmp_path / 'model')
  except ValueError:
    return
  images = ours.pictures(run.preprocess.size)  # a model of any size says that of its name
  theirs = {'logits': peers.run(peers.logits_of, module, images)['logits'].numpy()}
  ours.check_bisected(ours.trace(run, images), theirs)
