"""Numbers that the reference implementations computed: logits, a training run, schedules."""

import pathlib

import jax
import numpy as np
import pytest

import vit_jax
from tests.golden import weights
from tests.google_names import drawn_params

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden/golden.npz')

MODELS = {
  'vit_ti16_224': ('ViT-Ti/16', dict()),
  'vit_s32_224': ('ViT-S/32', dict()),
  'bv_s16_gap_sincos_rep': (
    'ViT-S/16',
    dict(pool='gap', positions='sincos2d', representation=384),
  ),
  'bv_s16_map': ('ViT-S/16', dict(pool='map')),
}


@pytest.mark.parametrize('key', MODELS)
def test_logits_equal_the_reference_implementation(key):
  name, fields = MODELS[key]
  model = vit_jax.build(name, unroll=1, **fields)
  params = drawn_params(model, 224, big_vision=key.startswith('bv'))
  with jax.default_matmul_precision('highest'):
    logits, _ = jax.jit(model.apply)({'params': params}, weights.images(2, 224))
  # 1e-5 of the logits' scale: float32 sums of up to 1,536 terms, reordered, over 12 layers
  np.testing.assert_allclose(logits, GOLDEN[key], rtol=1e-5, atol=1e-5)
