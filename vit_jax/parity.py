"""Runs other libraries' models beside ours, where they are installed: `vit convert --check`.

N images, T tokens, D width, L layers, K classes.
"""

import dataclasses
import importlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from vit_jax import bundle, convert
from vit_jax.convert import timm as timm_names

LIBRARIES = {'timm': 'timm', 'hf': 'transformers', 'torchvision': 'torchvision'}
TO = {'huggingface': 'hf'}
ENOUGH = 1e-4  # of the largest value: float32 sums in another order reach about 1e-5

Trace = dict[str, np.ndarray]


def compare(source: str, destination: str, to: str, ours: bundle.Bundle) -> tuple[str, bool]:
  """Lines that tell how far a converted model is from its source, and whether it is near enough.

  Each of the two is run by its own library on two random images, if that is installed, and held
  against ours, block by block. Where neither can be, what was written is read again.

  Args:
    source: path of what was read.
    destination: path of what was written.
    to: whose names it has.
    ours: what was read.

  Raises:
    ValueError: if a library does not open its file.
  """
  dialect = bundle.opened(source).dialect
  sides = {'read': (source, TO.get(dialect, dialect)), 'written': (destination, to)}
  images = random_images(ours.preprocess.size)
  here = our_trace(ours, images)
  lines, fine = [], True
  for what, (path, kind) in sides.items():
    library = LIBRARIES.get(kind)
    if library is None or not usable(library):
      continue
    try:
      module = OPENERS[kind](pathlib.Path(path), ours).eval()
    except Exception as error:  # of whatever kind a library raises over a file
      told = ' '.join(str(error).split())[:300]
      raise ValueError(f'{library} does not open {path} ({told})') from None
    found = distances(here, torch_trace(module, images, ours.model))
    place = max(found, key=lambda name: found[name])
    lines.append(
      f'{path}, {what}, by {library}: largest difference {found[place]:.1e} of the largest value, '
      f'at {place}; ' + ', '.join(f'{name} {value:.1e}' for name, value in found.items())
    )
    fine &= found[place] <= ENOUGH
  if lines:
    return '\n'.join(lines), fine
  again = read_again(destination, to, ours)
  found = distances(here, our_trace(again, images))
  place = max(found, key=lambda name: found[name])
  told = f'{destination}, read again by us: largest difference {found[place]:.1e} of the largest '
  told += f'value, at {place} (its library, and that of {source}, cannot be imported here)'
  return told, found[place] <= ENOUGH


def read_again(path: str, to: str, ours: bundle.Bundle) -> bundle.Bundle:
  """What was written, as a model; by the source's fields where `create_model` is told them."""
  if to != 'timm' or pathlib.Path(path).is_dir():
    return bundle.read(path)
  size = ours.preprocess.size
  params = bundle.load_params(path, ours.model, image_size=size, report=None)
  return dataclasses.replace(ours, params=params)


def usable(library: str) -> bool:
  """Whether a library and torch are installed, and can be imported."""
  try:
    importlib.import_module('torch')
    if library == 'transformers':
      importlib.import_module('transformers.models.vit.modeling_vit')
    importlib.import_module(library)
  except Exception:  # a broken installation raises anything
    return False
  return True


def random_images(size: tuple[int, int]) -> np.ndarray:
  """Two images (2, height, width, 3), uniform in [-1, 1]."""
  return np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def our_trace(ours: bundle.Bundle, images: np.ndarray) -> Trace:
  model = ours.model.clone(dtype='float32')
  with jax.default_matmul_precision('highest'):
    logits, out = jax.jit(model.apply)({'params': ours.params}, images)
  trace: Trace = {}
  for layer, block in enumerate(out.get('blocks', ())):
    trace[f'block {layer}'] = np.asarray(block)
  if not ours.model.num_classes and 'blocks' in out:
    return trace | {'encoded': np.asarray(out['encoded'])}
  return trace | {'logits': np.asarray(logits)}


def open_timm(path: pathlib.Path, ours: bundle.Bundle) -> Any:
  import timm

  if path.is_dir() and (path / 'config.json').is_file():
    return timm.create_model(f'local-dir:{path}', pretrained=True)
  config = timm_names.spoken(ours).configs['config.json']
  file = path / 'model.safetensors' if path.is_dir() else path
  return timm.create_model(
    config['architecture'],
    checkpoint_path=str(file),
    num_classes=config['num_classes'],
    **config['model_args'],
  )


def open_transformers(path: pathlib.Path, ours: bundle.Bundle) -> Any:
  import transformers

  folder = path if path.is_dir() else path.parent
  described = json.loads((folder / 'config.json').read_text())
  found = getattr(transformers, described['architectures'][0])
  return found.from_pretrained(folder)


def open_torchvision(path: pathlib.Path, ours: bundle.Bundle) -> Any:
  import torch
  import torchvision

  model = ours.model
  module = torchvision.models.VisionTransformer(
    image_size=ours.preprocess.size[0],
    patch_size=model.patch[0],
    num_layers=model.depth,
    num_heads=model.heads,
    hidden_dim=model.width,
    mlp_dim=model.mlp_dim,
    num_classes=model.num_classes,
    representation_size=model.representation,
  )
  arrays = convert.files.read(path)
  module.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})
  return module


OPENERS = {'timm': open_timm, 'hf': open_transformers, 'torchvision': open_torchvision}


def torch_trace(module: Any, images: np.ndarray, model: Any) -> Trace:
  """Every block's output, and the logits or the encoded tokens."""
  import torch

  trace: Trace = {}

  def keep(name: str) -> Any:
    def hook(_: Any, __: Any, output: Any) -> None:
      first = output[0] if isinstance(output, tuple) else output
      trace[name] = first.numpy()

    return hook

  for layer, block in enumerate(layers(module, getattr(model, 'depth', 0))):
    block.register_forward_hook(keep(f'block {layer}'))
  with torch.no_grad():
    output = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  for name in ('logits', 'image_embeds'):
    if getattr(output, name, None) is not None:
      trace['logits'] = getattr(output, name).numpy()
  if hasattr(output, 'last_hidden_state') and not model.pre_norm:
    trace['encoded'] = output.last_hidden_state.numpy()
  elif isinstance(output, torch.Tensor):
    trace['logits'] = output.numpy()
  return trace


def layers(module: Any, depth: int) -> Any:
  """The container of the encoder's blocks: the first with that many members of one class."""
  import torch

  for part in module.modules():
    listed = isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential))
    if listed and len(part) == depth and len({type(block) for block in part}) == 1:
      return part
  return ()


def distances(ours: Trace, theirs: Trace) -> dict[str, float]:
  """The largest difference at each place that both know, in units of its largest value there."""
  return {
    name: float(np.abs(ours[name] - theirs[name]).max() / max(1, np.abs(theirs[name]).max()))
    for name in ours
    if name in theirs and ours[name].shape == theirs[name].shape
  }
