"""Our parameter tree filled by the golden rule: each array drawn from its name in the reference."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden import weights
from vit_jax.models import mixer

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
  r'stem/root/conv/kernel': r'conv_root/kernel',
  r'stem/root/norm/(\w+)': r'gn_root/\1',
  r'stem/stage(\d)/(unit\d+)/(conv\w+)/kernel': r'block\1/\2/\3/kernel',
  r'stem/stage(\d)/(unit\d+)/norm(\w+)/(\w+)': r'block\1/\2/gn\3/\4',
}
MIXER_LEAVES = {
  r'embed/(\w+)': r'stem/\1',
  r'encoder/norm/(\w+)': r'pre_head_layer_norm/\1',
  r'encoder/blocks/norm1/(\w+)': r'MixerBlock_{i}/LayerNorm_0/\1',
  r'encoder/blocks/norm2/(\w+)': r'MixerBlock_{i}/LayerNorm_1/\1',
  r'encoder/blocks/tokens/up/(\w+)': r'MixerBlock_{i}/token_mixing/Dense_0/\1',
  r'encoder/blocks/tokens/down/(\w+)': r'MixerBlock_{i}/token_mixing/Dense_1/\1',
  r'encoder/blocks/channels/up/(\w+)': r'MixerBlock_{i}/channel_mixing/Dense_0/\1',
  r'encoder/blocks/channels/down/(\w+)': r'MixerBlock_{i}/channel_mixing/Dense_1/\1',
  r'(head/\w+)': r'\1',
}


def google_name(ours, names=LEAVES):
  """'encoder/blocks/norm1/scale' -> 'Transformer/encoderblock_{i}/LayerNorm_0/scale'."""
  for pattern, theirs in names.items():
    if re.fullmatch(pattern, ours):
      return re.sub(pattern, theirs, ours)
  raise KeyError(ours)


def drawn_params(model, size, *, big_vision=False, draw=weights.draw):
  """The golden weights in our tree; big_vision keeps its positions at the top level."""
  names = LEAVES | ({r'positions': 'pos_embedding'} if big_vision else {})
  if isinstance(model, mixer.Mixer):
    names = MIXER_LEAVES
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))['params']

  def fill(path, leaf):
    theirs = google_name('/'.join(key.key for key in path), names)
    if '{i}' not in theirs:
      return draw(theirs, leaf.shape)
    layers = [draw(theirs.format(i=i), leaf.shape[1:]) for i in range(leaf.shape[0])]
    return np.stack(layers)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def half_normal(name, shape):
  """The rule of the reference's small models: half a standard normal, scales around 1."""
  values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
  return np.float32(0.5 * values + name.endswith('scale'))


def half_normal_logits(model, size):
  """(2, K) of a small model with such weights and uniform images, compiled."""
  images = np.random.RandomState(0).uniform(-1, 1, (2, size, size, 3))
  params = drawn_params(model, size, draw=half_normal)
  return jax.jit(model.apply)({'params': params}, np.float32(images))[0]


OLD = {  # the parts of a block in the numbers of the paper's files
  'LayerNorm_1': 'LayerNorm_2',
  'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
  'MlpBlock_0': 'MlpBlock_3',
}


def google_arrays(params, *, old=True, big_vision=False, names=LEAVES):
  """{their name: array} of our tree, a layer at a time; big_vision numbers them in the new way."""
  arrays = {}

  def add(path, leaf):
    theirs = google_name('/'.join(key.key for key in path), names)
    for i in range(leaf.shape[0] if '{i}' in theirs else 1):
      name = theirs.format(i=i)
      if big_vision:
        name = name.replace('Transformer/posembed_input/', '')
      elif old and name.startswith('Transformer/encoderblock'):
        for new, number in OLD.items():
          name = name.replace(new, number)
      arrays[name] = np.asarray(leaf[i] if '{i}' in theirs else leaf)

  jax.tree_util.tree_map_with_path(add, params)
  return arrays
