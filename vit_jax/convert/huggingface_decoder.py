"""The decoder of transformers' ViTMAEForPreTraining (arXiv 2111.06377): its names, both ways.

T patches, W width.
"""

from typing import Any

import numpy as np

from vit_jax import models
from vit_jax.convert import decoders, engine, kinds
from vit_jax.convert.engine import Arrays, renamed, rows
from vit_jax.convert.timm import dense, merged, norm, projected
from vit_jax.models import vit
from vit_jax.models.decoder import Decoder, TrainedDecoder

PREFIX = 'decoder.'
BLOCKS, LAYER = 'layers/blocks', 'decoder_layers.{i}'
TABLE = rows(
  dense('embed', 'decoder_embed'),
  [('mask_token', 'mask_token')],
  norm(f'{BLOCKS}/norm1', f'{LAYER}.layernorm_before'),
  *(
    projected(f'{BLOCKS}/attention/{part}', f'{LAYER}.attention.attention.{part}')
    for part in ('query', 'key', 'value')
  ),
  merged(f'{BLOCKS}/attention/out', f'{LAYER}.attention.output.dense'),
  norm(f'{BLOCKS}/norm2', f'{LAYER}.layernorm_after'),
  dense(f'{BLOCKS}/mlp/up', f'{LAYER}.intermediate.dense'),
  dense(f'{BLOCKS}/mlp/down', f'{LAYER}.output.dense'),
  norm('layers/norm', 'decoder_norm'),
  dense('head', 'decoder_pred'),
)
RENAMES = (
  (r'^decoder_encoder\.layer\.', 'decoder_layers.'),  # as transformers 5.23 spells it on disk
  # names in its memory
  *(
    (rf'\.attention\.{part[0]}_proj\.', f'.attention.attention.{part}.')
    for part in ('query', 'key', 'value')
  ),
  (r'\.attention\.o_proj\.', '.attention.output.dense.'),
  (r'\.mlp\.fc1\.', '.intermediate.dense.'),
  (r'\.mlp\.fc2\.', '.output.dense.'),
)
MASK = kinds.Kind('a number from 0 and below 1', lambda v: kinds.is_number(v) and 0 <= v < 1)
FIELDS = {
  'decoder_num_attention_heads': kinds.COUNT,
  'mask_ratio': MASK,
  'norm_pix_loss': kinds.FLAG,
}
NEAR = 1e-4  # of positions, which are at most 1: other code computed them in float32


def read(
  theirs: Arrays, config: dict[str, Any], fields: dict[str, Any], grid: tuple[int, int]
) -> TrainedDecoder | None:
  """The decoder among a file's arrays; None where it has none.

  Args:
    theirs: the file's arrays.
    config: its config.json, where transformers' defaults hold for what it does not say.
    fields: of the encoder.
    grid: rows and columns of its patches.

  Raises:
    ValueError: if the decoder is not whole, or has other positions than the paper's.
  """
  arrays = {n.removeprefix(PREFIX): a for n, a in theirs.items() if n.startswith(PREFIX)}
  if 'decoder_embed.weight' not in arrays:
    return None
  arrays = renamed(arrays, RENAMES)
  width = len(arrays['decoder_embed.weight'])
  check_positions(arrays.pop('decoder_pos_embed', None), grid, width)
  heads = config.get('decoder_num_attention_heads', 16)
  if width % heads:
    raise ValueError(f'decoder_num_attention_heads is {heads}, which does not divide {width}')
  ours, faults = engine.to_ours(TABLE, arrays, heads)
  missing = [row.theirs for row in TABLE if row.ours not in ours]
  if faults or missing:
    raise ValueError(f'{faults}' if faults else f'{", ".join(missing)}: missing')
  depth, mlp_dim = ours['layers/blocks/mlp/up/bias'].shape
  decoder = Decoder(
    outputs=len(ours['head/bias']),
    prefix=1,
    width=width,
    depth=depth,
    heads=heads,
    mlp_dim=mlp_dim,
    activation=fields['activation'],
    norm_eps=fields['norm_eps'],
  )
  return decoders.fitted(
    decoder,
    ours,
    width=fields['width'],
    mask=config.get('mask_ratio', 0.75),
    normalise=config.get('norm_pix_loss', False),
  )


def check_positions(table: np.ndarray | None, grid: tuple[int, int], width: int) -> None:
  """Raises ValueError for positions that are not those of our decoder."""
  wanted = positions(grid, width)
  if table is None or table.shape != wanted.shape or np.abs(table - wanted).max() > NEAR:
    raise ValueError("decoder_pos_embed is not the paper's sines and cosines")


def positions(grid: tuple[int, int], width: int) -> np.ndarray:
  """The table (1, 1 + T, W) of a decoder: 0 for the class token."""
  return np.pad(vit.sincos2d(*grid, width, endpoint=False), ((1, 0), (0, 0)))[None]


def write(trained: TrainedDecoder, grid: tuple[int, int]) -> tuple[Arrays, dict[str, Any]]:
  """A decoder as transformers' arrays, and what config.json says of it.

  Raises ValueError where it reads tokens that ViTMAE has not.
  """
  model = trained.model
  if model.prefix != 1:
    raise ValueError(f'ViTMAE has one token beside the patches, the decoder reads {model.prefix}')
  theirs, refused = engine.to_theirs(TABLE, models.flat(trained.params))
  if refused:
    raise ValueError(f'ViTMAE has no way to say {", ".join(refused)}')
  arrays = {'decoder_pos_embed': positions(grid, model.width), **theirs}
  config = {
    'decoder_hidden_size': model.width,
    'decoder_num_hidden_layers': model.depth,
    'decoder_num_attention_heads': model.heads,
    'decoder_intermediate_size': model.mlp_dim,
    'mask_ratio': trained.mask,
    'norm_pix_loss': trained.normalise,
  }
  return {PREFIX + name: array for name, array in arrays.items()}, config
