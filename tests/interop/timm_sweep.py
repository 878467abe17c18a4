"""Loads every ViT-like name of timm's as its hub publishes it, and compares the logits.

`python -m tests.interop.timm_sweep RESULTS.jsonl [NAME ...]` appends a line for each name that the
file does not have yet, so that it goes on where it was stopped; then it prints the counts.

element under the names that the whole model has, built without memory.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch

import vit_jax
from tests.interop import ours, peers, timm_table
from vit_jax.convert import timm_names

timm = peers.timm

# Logits of one size: float32 resolves 1.2e-7 of them, and the two sides add up in other orders.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of one name: 'equal', 'differs' or 'refused', the difference, or the line."""

  name: str
  status: str
  difference: float = 0.0
  line: str = ''


def arguments(name: str) -> dict[str, Any]:
  """All arguments of a name's constructor; {} of one that the table has no defaults for."""
  row = dict(timm_names.table()['architectures'][name])
  return timm_names.table()['defaults'].get(row.pop('constructor'), {}) | row


def reductions(name: str) -> Iterator[dict[str, Any]]:
  """Arguments that make a small model, the smallest first; timm does not take all of them."""
  args = arguments(name)
  depth = 'num_blocks' if 'num_blocks' in args else 'depth'
  small: dict[str, Any] = {'num_classes': 5, depth: 2}
  if 'layers' in args:
    yield {'num_classes': 5, 'layers': [1, 1, 1, 1]}
  if 'embed_dim' in args:
    small['img_size'] = image_side(name)
    small |= {'num_kv_heads': args['num_kv_heads'][7:9]} if args.get('num_kv_heads') else {}
    yield {'embed_dim': 8 * args.get('num_heads', 8)} | small
  yield small
  yield {'num_classes': 5}


def image_side(name: str) -> int:
  """Pixels of a side: 4 patches; of a hybrid 256, as GroupNorm over few cells amplifies errors."""
  args = arguments(name)
  return 4 * args['patch_size'] if args.get('embed_layer', 'PatchEmbed') == 'PatchEmbed' else 256


def small(name: str) -> torch.nn.Module:
  """The name's model, shallow and narrow, with every parameter drawn."""
  errors = []
  for args in reductions(name):
    try:
      return peers.seeded(timm.create_model(name, **args))
    except Exception as error:
      errors.append(f'{args}: {type(error).__name__} {error}')
  raise ValueError(f'timm builds no small {name}: {"; ".join(errors)}')


def hollow(name: str, folder: pathlib.Path) -> None:
  """A folder with the config.json of a whole model, and one number for each of its arrays."""
  with torch.device('meta'):
    module = timm.create_model(name)
  state = {key: torch.ones(1) for key in module.state_dict()}
  folder.mkdir(parents=True)
  safetensors.torch.save_file(state, folder / 'model.safetensors', metadata={'format': 'pt'})
  timm.models._hub.save_config_for_hf(module, str(folder / 'config.json'))


def is_refused(name: str) -> bool:
  """Whether the table alone refuses the name."""
  try:
    call = timm_names.called({}, name, 'VisionTransformer')
    timm_names.check(call)
  except ValueError:
    return True
  return False


def result(name: str, folder: pathlib.Path) -> Result:
  """Saves, loads and compares one name."""
  if is_refused(name):
    hollow(name, folder)
    module = None
  else:
    module = small(name)
    peers.save_timm(module, folder)
  try:
    run = vit_jax.load(folder)
  except ValueError as error:
    return Result(name, 'refused', line=str(error).removeprefix(f'{folder}: '))
  if module is None:
    return Result(name, 'differs', line='the table refuses it, but it loads')
  images = ours.pictures(run.preprocess.size, 2)
  theirs = peers.run(peers.logits_of, module, images)['logits'].numpy()
  mine = np.asarray(ours.trace(run, images)['logits'])
  distance = ours.difference(mine, theirs) / max(1.0, float(np.abs(theirs).max()))
  return Result(name, 'equal' if distance <= TOLERANCE else 'differs', distance)


def sweep(path: pathlib.Path, names: Sequence[str]) -> list[Result]:
  """The results of all names: those of the file, and of the others, which are appended to it."""
  lines = path.read_text().splitlines() if path.exists() else []
  results = {r.name: r for r in (Result(**json.loads(line)) for line in lines)}
  for name in names:
    if name not in results:
      with tempfile.TemporaryDirectory() as folder:
        results[name] = result(name, pathlib.Path(folder) / 'model')
      with path.open('a') as file:
        file.write(json.dumps(dataclasses.asdict(results[name])) + '\n')
  return [results[name] for name in names]


def main(path: str, *names: str) -> None:
  results = sweep(pathlib.Path(path), names or timm_table.names())
  for status in ('equal', 'refused', 'differs'):
    print(f'{status} {sum(r.status == status for r in results)} of {len(results)}')
  for r in results:
    if r.status == 'differs':
      print(f'{r.name}: {r.difference:.1e} {r.line}')


if __name__ == '__main__':
  main(*sys.argv[1:])
