"""AIMv2's names: transformers' and Apple's own (Fini et al., arXiv 2411.14402).

Its blocks have RMSNorm, gated MLPs and no biases; features are the mean of the tokens.
"""

from typing import Any

from vit_jax.convert import huggingface, kinds
from vit_jax.convert.engine import TABLE, Arrays, Declared, Family, rows
from vit_jax.convert.huggingface import attention
from vit_jax.convert.huggingface_images import preprocess
from vit_jax.convert.timm import BLOCKS, conv, dense, merged, projected

LAYER = 'encoder.layers.{i}'
TRANSFORMERS = rows(
  conv('embed', 'embeddings.patch_embed'),
  [
    ('embed_norm/scale', 'embeddings.rms_norm.weight'),
    ('positions', 'embeddings.position_embedding.weight', TABLE),
  ],
  attention(*(f'{LAYER}.attention.{part}_proj' for part in ('q', 'k', 'v', 'out'))),
  [(f'{BLOCKS}/norm{n}/scale', f'{LAYER}.rms_norm{n}.weight') for n in (1, 2)],
  *(dense(f'{BLOCKS}/mlp/{part}', f'{LAYER}.ffn.{part}_proj') for part in ('gate', 'up', 'down')),
  [('encoder/norm/scale', 'rms_norm.weight')],
)
TRUNK = 'trunk.blocks.{i}'
APPLE = rows(
  conv('embed', 'preprocessor.patchifier.proj'),
  [
    ('embed_norm/scale', 'preprocessor.patchifier.norm.weight'),
    ('positions', 'preprocessor.pos_embed'),
  ],
  projected(f'{BLOCKS}/attention/{{query,key,value}}', f'{TRUNK}.attn.qkv'),
  merged(f'{BLOCKS}/attention/out', f'{TRUNK}.attn.proj'),
  [(f'{BLOCKS}/norm{n}/scale', f'{TRUNK}.norm_{n}.weight') for n in (1, 2)],
  *(
    dense(f'{BLOCKS}/mlp/{part}', f'{TRUNK}.mlp.fc{n}')
    for part, n in (('gate', 1), ('up', 3), ('down', 2))
  ),
  [('encoder/norm/scale', 'trunk.post_trunk_norm.weight')],
)
DEFAULTS = {'num_attention_heads': 8, 'rms_norm_eps': 1e-5}  # of transformers' class
FIELDS = {
  'model_type': kinds.one_of('aimv2_vision_model', 'aimv2'),
  **dict.fromkeys(('hidden_size', 'intermediate_size', 'num_attention_heads'), kinds.COUNT),
  'num_channels': kinds.COUNT,
  'num_hidden_layers': kinds.LAYERS,
  **dict.fromkeys(('image_size', 'patch_size'), kinds.SIDES),
  'rms_norm_eps': kinds.EPSILON,
  'hidden_act': kinds.one_of('silu', 'swish'),
  **dict.fromkeys(('qkv_bias', 'mlp_bias', 'use_bias'), kinds.one_of(False)),
  **dict.fromkeys(('use_head', 'is_native'), kinds.one_of(False)),
}


def locate(config: dict[str, Any]) -> tuple[str, ...]:
  """The keys to the object in config.json that describes the image tower."""
  return ('vision_config',) if config.get('vision_config') is not None else ()


def declared(config: dict[str, Any]) -> Declared:
  """What config.json says of the arrays' shapes."""
  described = {key: config[key] for key in config.keys() - {'model_type'}}
  return huggingface.declared(DEFAULTS | described if 'model_type' in config else described)


def details(theirs: Arrays, ours: Arrays, config: dict[str, Any]) -> dict[str, Any]:
  """Fields of the model that its arrays do not show."""
  eps = float(config.get('rms_norm_eps', DEFAULTS['rms_norm_eps']))
  return {'activation': 'gelu_erf', 'norm': 'rms', 'norm_eps': eps, 'proj_bias': False}


PROMISES = (
  *('embed/kernel', 'embed/bias', 'embed_norm/scale', 'positions', 'encoder/norm/scale'),
  *(f'{BLOCKS}/norm{n}/scale' for n in (1, 2)),
  *(f'{BLOCKS}/attention/{part}/kernel' for part in ('query', 'key', 'value', 'out')),
  *(f'{BLOCKS}/mlp/{part}/kernel' for part in ('gate', 'up', 'down')),
)
FAMILIES = tuple(
  Family(
    dialect='huggingface',
    model='ViT',
    signs=signs,
    table=table,
    details=details,
    preprocess=lambda config: preprocess(config, usual='CLIP'),
    renames=((r'^vision_model\.', ''),),
    head_width=128,
    drops=huggingface.DROPS,
    fields=huggingface.FIELDS,
    locate=locate,
    tower=FIELDS,
    declared=declared,
    contradictions=huggingface.contradictions,
    promises=lambda theirs, ours, config: PROMISES,
  )
  for table, signs in (
    (
      TRANSFORMERS,
      (
        r'(vision_model\.)?embeddings\.patch_embed\.weight',
        r'(vision_model\.)?encoder\.layers\.0\.rms_norm1\.weight',
      ),
    ),
    (APPLE, (r'preprocessor\.patchifier\.proj\.weight', r'trunk\.blocks\.0\.norm_1\.weight')),
  )
)
