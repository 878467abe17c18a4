"""Arrays of timm and of what is close to it, brought to the names and forms of one table.

D width, P pixels of a patch side, C channels, T tokens, R rows.
"""

import math
import re
from collections.abc import Callable

import numpy as np

from vit_jax.convert.engine import Arrays, renamed

LONGEST = 512  # patches on a side of a grid: 8,192 pixels by 16


def tidy(arrays: Arrays) -> Arrays:
  """Patch weights (D, pixels) as kernels; a gated MLP's joint array under a name of its own."""
  out: Arrays = {}
  for name, array in arrays.items():
    if name == 'patch_embed.proj.weight' and array.ndim == 2:
      side = round((array.shape[1] / 3) ** 0.5)
      array = array.reshape(array.shape[0], 3, side, side)
    out[re.sub(r'(blocks\.\d+\.mlp)\.fc1\.', gated(arrays), name)] = array
  return with_relative_positions(with_scales(with_heads(out)))


def tidy_eva(arrays: Arrays) -> Arrays:
  """The same with the two layers of a gated MLP's joint array apart, as Eva mostly has them."""
  out: Arrays = {}
  for name, array in tidy(arrays).items():
    if '.mlp.w12.' in name:
      gate, up = np.split(array, 2)
      out |= {name.replace('w12', 'fc1_g'): gate, name.replace('w12', 'fc1'): up}
    else:
      out[name] = array
  return out


def tidy_naflex(arrays: Arrays) -> Arrays:
  """A NaFlexVit's arrays as a VisionTransformer's: patches as kernels, positions as one table."""
  out: Arrays = {}
  for name, array in arrays.items():
    name = re.sub(r'^embeds\.(?=(proj|norm)\.)', 'patch_embed.', name).removeprefix('embeds.')
    if name == 'patch_embed.proj.weight' and array.ndim == 2:
      array = kernel_of_pixels(array)
    if name == 'pos_embed' and array.ndim == 4:
      array = array.reshape(1, -1, array.shape[-1])  # (1, T, D)
    out[name] = array
  rows, columns = out.get('pos_embed_y'), out.get('pos_embed_x')
  if rows is not None and columns is not None and are_factors(rows, columns):
    del out['pos_embed_y'], out['pos_embed_x']
    grid = np.add(rows[:, :, None], columns[:, None], dtype=np.float32)  # (1, R, C, D)
    out['pos_embed'] = grid.reshape(1, -1, grid.shape[-1])
  return out


def are_factors(rows: np.ndarray, columns: np.ndarray) -> bool:
  """Whether arrays are a table for rows (1, R, D) and one for columns (1, C, D) of a grid.

  One for more than LONGEST is refused: the grid would fill the memory.
  """
  if not rows.ndim == columns.ndim == 3 or rows.shape[::2] != columns.shape[::2]:
    return False
  if (longest := max(rows.shape[1], columns.shape[1])) > LONGEST:
    raise ValueError(f'embeds.pos_embed_y and _x are of {longest:,} cells, more than {LONGEST}')
  return True


def kernel_of_pixels(matrix: np.ndarray) -> np.ndarray:
  """Weights (D, P * P * C) of square patches, the channels last, as a kernel (D, C, P, P).

  Images have 3 channels where that leaves a square, otherwise 1.
  """
  pixels = matrix.shape[1]
  for count in (3, 1):
    side = math.isqrt(pixels // count)
    if pixels == count * side**2:
      return matrix.reshape(-1, side, side, count).transpose(0, 3, 1, 2)
  raise ValueError(f'embeds.proj.weight has shape {matrix.shape}, of no square patches')


def with_heads(arrays: Arrays) -> Arrays:
  """Keys and values with a head for each query's: those of a group are equal, as grouped queries
  (arXiv 2305.13245) read them.
  """
  out = dict(arrays)
  for name, queries in arrays.items():
    if not (match := re.fullmatch(r'(blocks\.\d+\.attn\.)q_proj\.(weight|bias)', name)):
      continue
    width = arrays.get(f'{match[1]}q_norm.weight', queries).shape[0]  # of a head
    for part in ('k', 'v'):
      array = arrays.get(f'{match[1]}{part}_proj.{match[2]}', queries)
      if len(array) != len(queries) and array.size and len(array) % width == 0:
        heads = array.reshape(-1, width, *array.shape[1:])
        groups = np.repeat(heads, len(queries) // len(array), axis=0)
        out[f'{match[1]}{part}_proj.{match[2]}'] = groups.reshape(-1, *array.shape[1:])
  return out


def with_scales(arrays: Arrays) -> Arrays:
  """Ones for the layer scale of MLPs where only attention has one, as in Sapiens2.

  Its queries are apart from the keys, and normalised: elsewhere an array that is not in the file is
  missed.
  """
  match = re.compile(r'(blocks\.\d+\.)gamma_1')
  blocks = [block[1] for name in arrays if (block := match.fullmatch(name))]
  signs = ('attn.q_proj.weight', 'attn.q_norm.weight')
  if any(f'{block}gamma_2' in arrays for block in blocks) or not all(
    f'{block}{sign}' in arrays for block in blocks for sign in signs
  ):
    return arrays
  return arrays | {f'{block}gamma_2': np.ones_like(arrays[f'{block}gamma_1']) for block in blocks}


def with_relative_positions(arrays: Arrays) -> Arrays:
  """Relative positions in every layer's attention, where all layers share them.

  A table of all and one of each, of which BEiT adds up what it reads, are their sum.
  """
  shared = re.compile(r'(?:rel_pos_bias|shared_rel_pos)\.(.+)')
  layers = {match[0] for name in arrays if (match := re.match(r'blocks\.\d+\.', name))}
  out = {
    re.sub(r'(blocks\.\d+\.attn\.)rel_pos\.', r'\1', name): array
    for name, array in arrays.items()
    if not shared.fullmatch(name)
  }
  for name, array in arrays.items():
    if match := shared.fullmatch(name):
      for layer in layers:
        single = out.get(f'{layer}attn.{match[1]}')
        both = array
        if single is not None and single.shape == array.shape:
          both = np.add(single, array, dtype=np.float32)
        out[f'{layer}attn.{match[1]}'] = both
  return out


def tidy_parallel(arrays: Arrays) -> Arrays:
  """A ParallelScalingBlock's arrays under the names of a Block's.

  What attention and MLP share, a norm and a layer scale, each of them gets.
  """
  out: Arrays = {}
  for name, array in arrays.items():
    match = re.fullmatch(r'(blocks\.\d+\.)(in_norm|in_proj|ls)\.(\w+)', name)
    if match is None:
      out[name] = array
    elif match[2] == 'in_proj':
      hidden = len(array) - 3 * len(arrays.get(f'{match[1]}in_norm.weight', array))
      mlp, qkv = np.split(array, [max(hidden, 0)])
      out |= {f'{match[1]}mlp.fc1.{match[3]}': mlp, f'{match[1]}attn.qkv.{match[3]}': qkv}
    else:
      part = match[2].removeprefix('in_')
      out |= {f'{match[1]}{part}{n}.{match[3]}': array for n in (1, 2)}
  return tidy(renamed(out, PARALLEL_RENAMES))


PARALLEL_RENAMES = (
  (r'^(blocks\.\d+)\.([qk]_norm)\.', r'\1.attn.\2.'),
  (r'^(blocks\.\d+)\.attn_out_proj\.', r'\1.attn.proj.'),
  (r'^(blocks\.\d+)\.mlp_out_proj\.', r'\1.mlp.fc2.'),
  (r'^(blocks\.\d+)\.mlp_bias$', r'\1.mlp.fc1.bias'),
)


def gated(arrays: Arrays) -> Callable[[re.Match[str]], str]:
  """What stands for 'blocks.0.mlp.fc1.': it holds two layers where the next reads half its rows."""

  def name(match: re.Match[str]) -> str:
    up, down = arrays.get(f'{match[1]}.fc1.weight'), arrays.get(f'{match[1]}.fc2.weight')
    if up is None or down is None or not up.ndim == down.ndim == 2:
      return match[0]
    joint = up.shape[0] == 2 * down.shape[1]
    return f'{match[1]}.{"w12" if joint else "fc1"}.'

  return name


def openai(arrays: Arrays) -> Arrays:
  """OpenAI's and open_clip's image tower in timm's names."""
  renames = (
    (r'^class_embedding$', 'cls_token'),
    (r'^positional_embedding$', 'pos_embed'),
    (r'^conv1\.', 'patch_embed.proj.'),
    (r'^ln_pre\.', 'norm_pre.'),
    (r'^ln_post\.', 'norm.'),
    (r'^transformer\.resblocks\.', 'blocks.'),
    (r'\.ln_([12])\.', r'.norm\1.'),
    (r'\.attn\.in_proj_(weight|bias)$', r'.attn.qkv.\1'),
    (r'\.attn\.out_proj\.', '.attn.proj.'),
    (r'\.mlp\.c_fc\.', '.mlp.fc1.'),
    (r'\.mlp\.c_proj\.', '.mlp.fc2.'),
    (r'^proj$', 'head.weight'),
  )
  out = renamed(arrays, renames)
  out['cls_token'] = out['cls_token'].reshape(1, 1, -1)
  if 'pos_embed' in out:
    out['pos_embed'] = out['pos_embed'][None]
  if 'head.weight' in out:
    out['head.weight'] = out['head.weight'].T
  return out


def dinov3(arrays: Arrays) -> Arrays:
  """Facebook's DINOv3 in timm's names: the bias of the keys is masked there, so it goes."""
  out: Arrays = {}
  for name, array in arrays.items():
    if name.endswith('.attn.qkv.bias'):
      query, _, value = np.split(array, 3)
      out |= {name.replace('qkv.bias', 'q_bias'): query, name.replace('qkv.bias', 'v_bias'): value}
    else:
      out[name] = array
  return out
