"""Our parameter tree filled by the golden rule: each array drawn from its name in the reference."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden import weights

LEAVES = {
  r'embed/(\w+)': r'embedding/\1',
  r'cls': r'cls',
  r'positions': r'Transformer/posembed_input/pos_embedding',
  r'encoder/norm/(\w+)': r'Transformer/encoder_norm/\1',
  r'encoder/blocks/norm1/(\w+)': r'Transformer/encoderblock_{i}/LayerNorm_0/\1',
  r'encoder/blocks/norm2/(\w+)': r'Transformer/encoderblock_{i}/LayerNorm_1/\1',
  r'encoder/blocks/attention/(\w+/\w+)': (
    r'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/\1'
  ),
  r'encoder/blocks/mlp/up/(\w+)': r'Transformer/encoderblock_{i}/MlpBlock_0/Dense_0/\1',
  r'encoder/blocks/mlp/down/(\w+)': r'Transformer/encoderblock_{i}/MlpBlock_0/Dense_1/\1',
  r'pool/probe': r'MAPHead_0/probe',
  r'pool/attention/(\w+/\w+)': r'MAPHead_0/MultiHeadDotProductAttention_0/\1',
  r'pool/norm/(\w+)': r'MAPHead_0/LayerNorm_0/\1',
  r'pool/mlp/up/(\w+)': r'MAPHead_0/MlpBlock_0/Dense_0/\1',
  r'pool/mlp/down/(\w+)': r'MAPHead_0/MlpBlock_0/Dense_1/\1',
  r'(pre_logits/\w+)': r'\1',
  r'(head/\w+)': r'\1',
}


def google_name(ours, names=LEAVES):
  """'encoder/blocks/norm1/scale' -> 'Transformer/encoderblock_{i}/LayerNorm_0/scale'."""
  for pattern, theirs in names.items():
    if re.fullmatch(pattern, ours):
      return re.sub(pattern, theirs, ours)
  raise KeyError(ours)


def drawn_params(model, size, *, big_vision=False):
  """The golden weights in our tree; big_vision keeps its positions at the top level."""
  names = LEAVES | ({r'positions': 'pos_embedding'} if big_vision else {})
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))['params']

  def draw(path, leaf):
    theirs = google_name('/'.join(key.key for key in path), names)
    if '{i}' not in theirs:
      return weights.draw(theirs, leaf.shape)
    layers = [weights.draw(theirs.format(i=i), leaf.shape[1:]) for i in range(leaf.shape[0])]
    return np.stack(layers)

  return jax.tree_util.tree_map_with_path(draw, shapes)
