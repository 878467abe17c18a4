"""Runs other libraries' models beside ours, where they are installed: `vit convert --check`.

N images, T tokens, D width, L layers, K classes.
"""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import bundle, convert
from vit_jax.convert import timm_writing

LIBRARIES = {'timm': 'timm', 'hf': 'transformers', 'torchvision': 'torchvision'}
TO = {'huggingface': 'hf'}
ENOUGH = 1e-4  # of the largest value: float32 sums in another order reach about 1e-5

Trace = dict[str, np.ndarray]
Module = Any  # torch.nn.Module: torch need not be here
Tensor = Any  # torch.Tensor
Model = Any  # of ours, with the fields of any family
Distances = dict[str, float]


def compare(ours: bundle.Bundle, sides: Mapping[str, tuple[str, str]]) -> tuple[str, bool]:
  """Lines that say how far a converted model is from its source, and whether it is near enough.

  Each side is run by its own library on two random images, if that is installed, and held
  against ours, block by block. What was written is read again where its own cannot run it.

  Args:
    ours: what was read.
    sides: path and dialect of what was 'read' and of what was 'written'.

  Raises:
    ValueError: if a library does not open or run its file, or computes nothing that we do.
  """
  images = random_images(ours.preprocess.shape)
  trace = our_trace(ours, images)
  results: dict[str, Distances] = {}
  for side, (path, dialect) in sides.items():
    kind = TO.get(dialect, dialect)
    if kind in LIBRARIES and usable(LIBRARIES[kind]):
      theirs = their_trace(kind, path, ours, images)
      results[f'{path}, {side}, by {LIBRARIES[kind]}'] = distances(trace, theirs)
    elif side == 'written':
      again = our_trace(read_again(path, ours), images)
      title = f'{path}, read again by us, as no library of its own is here'
      results[title] = distances(trace, again)
  lines = [summary(title, result) for title, result in results.items()]
  return '\n'.join(lines), all(max(result.values()) <= ENOUGH for result in results.values())


def summary(title: str, result: Distances) -> str:
  """A line with the largest difference, where it is, and all others."""
  place = max(result, key=lambda name: result[name])
  listed = ', '.join(f'{name} {value:.1e}' for name, value in result.items())
  return (
    f'{title}: largest difference {result[place]:.1e} of the largest value, at {place}; {listed}'
  )


def distances(ours: Trace, theirs: Trace) -> Distances:
  """The largest difference at each place that both know, in units of their largest value there.

  It is infinite where either has a value that is not finite.
  """
  places = [name for name in ours if name in theirs]
  if not places:
    our_places, their_places = (', '.join(trace) or 'nothing' for trace in (ours, theirs))
    raise ValueError(f'nothing to compare: {our_places} here, {their_places} there')
  return {name: distance(name, ours[name], theirs[name]) for name in places}


def distance(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
  if ours.shape != theirs.shape:
    raise ValueError(f'{name} has shape {ours.shape} here, {theirs.shape} there')
  if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
    return float('inf')
  difference, unit = np.abs(ours - theirs).max(initial=0), np.abs(theirs).max(initial=0)
  if not difference:
    return 0.0
  return float(difference / unit) if unit else float('inf')


def read_again(path: str, ours: bundle.Bundle) -> bundle.Bundle:
  """What was written, as a model: a lone file as the source's, whose fields it does not have."""
  if pathlib.Path(path).is_dir():
    return bundle.read(path, native=True)
  size, channels = ours.preprocess.size, ours.preprocess.channels
  params = bundle.load_params(path, ours.model, image_size=size, channels=channels, report=None)
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


def random_images(shape: tuple[int, int, int]) -> np.ndarray:
  """Two images (2, height, width, channels), uniform in [-1, 1]."""
  return np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)


def our_trace(ours: bundle.Bundle, images: np.ndarray) -> Trace:
  """Every block's output, all tokens after the last norm, what the head reads, and the logits."""
  model = ours.model.clone(dtype='float32')
  with jax.default_matmul_precision('highest'):
    logits, out = jax.jit(model.apply)({'params': ours.params}, images)
  trace = {f'block {layer}': block for layer, block in enumerate(out.get('blocks', ()))}
  trace |= {name: out[name] for name in ('encoded', 'pre_logits')}
  if ours.model.num_classes:
    trace['logits'] = logits
  return {name: np.asarray(values) for name, values in trace.items()}


# ---- theirs ----


def their_trace(kind: str, path: str, ours: bundle.Bundle, images: np.ndarray) -> Trace:
  """What a library computes at those of our places that it has; ValueError whatever it raises."""
  library = LIBRARIES[kind]
  try:
    module = OPENERS[kind](pathlib.Path(path), ours).eval().float()
    return torch_trace(kind, module, images, ours.model)
  except Exception as error:  # of whatever kind a library raises over a file
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise ValueError(f'{library} does not run {path} ({reason})') from None


def open_timm(path: pathlib.Path, ours: bundle.Bundle) -> Module:
  import timm

  if path.is_dir() and (path / 'config.json').is_file():
    return timm.create_model(f'local-dir:{path}', pretrained=True)
  config = timm_writing.export_spec(ours).configs['config.json']
  file = path / 'model.safetensors' if path.is_dir() else path
  return timm.create_model(
    config['architecture'],
    checkpoint_path=str(file),
    num_classes=config['num_classes'],
    **config['model_args'],
  )


def open_transformers(path: pathlib.Path, ours: bundle.Bundle) -> Module:
  import transformers

  folder = path if path.is_dir() else path.parent
  described = json.loads((folder / 'config.json').read_text('utf-8'))
  names = described.get('architectures') or ['AutoModel']
  return getattr(transformers, names[0]).from_pretrained(folder)


def open_torchvision(path: pathlib.Path, ours: bundle.Bundle) -> Module:
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
  if not model.num_classes:
    del module.heads.head
  arrays = convert.weights.read(path)
  module.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})
  return module


OPENERS = {'timm': open_timm, 'hf': open_transformers, 'torchvision': open_torchvision}


def torch_trace(kind: str, module: Module, images: np.ndarray, model: Model) -> Trace:
  """What a module computes, under the names of `our_trace`."""
  import torch

  trace: dict[str, Any] = {}

  def keep(name: str) -> Callable[..., None]:
    def hook(_: Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
      trace[name] = output[0] if isinstance(output, tuple) else output

    return hook

  tower = getattr(module, 'vision_model', module)  # without the text's
  for layer, block in enumerate(layers(tower, getattr(model, 'depth', 0))):
    block.register_forward_hook(keep(f'block {layer}'))
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    trace |= RUNNERS[kind](module, pixels, model)
  return {name: values.numpy() for name, values in trace.items() if values is not None}


def layers(module: Module, depth: int) -> Iterable[Module]:
  """The container of the encoder's blocks: the first with that many members of one class."""
  import torch

  for part in module.modules():
    listed = isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential))
    if listed and len(part) == depth and len({type(block) for block in part}) == 1:
      return part
  return ()


def run_timm(module: Module, pixels: Tensor, model: Model) -> dict[str, Tensor]:
  encoded = module.forward_features(pixels)
  logits = module.forward_head(encoded)
  trace = {'encoded': encoded.permute(0, 2, 3, 1) if encoded.ndim == 4 else encoded}  # (N, h, w, C)
  if model.num_classes:
    unpooled = getattr(model, 'pool', '') == 'none'  # every token is classified there
    return trace | {'logits': logits[:, model.prefix :] if unpooled else logits}
  is_vit = hasattr(model, 'pool')
  if is_vit and (model.pool == 'none' or model.distillation != 'none'):
    return trace  # it gives all tokens, or the mean of two
  return trace | {'pre_logits': logits}


def run_transformers(module: Module, pixels: Tensor, model: Model) -> dict[str, Tensor]:
  if type(module).__name__.startswith('ViTMAE'):
    return run_masked(module, pixels)
  whole = hasattr(module, 'text_model')  # CLIP or SigLIP, of which we have the image tower
  output = (module.vision_model if whole else module)(pixels)
  pooled = getattr(output, 'pooler_output', None)
  logits = getattr(output, 'logits', getattr(output, 'image_embeds', None))
  if whole and hasattr(module, 'visual_projection'):
    logits = module.visual_projection(pooled)
  trace = {'logits': logits}
  if not model.pre_norm:  # CLIP gives its tokens before the last norm
    trace['encoded'] = getattr(output, 'last_hidden_state', None)
  random = type(module).__name__ in ('ViTModel', 'DeiTModel') and not model.representation
  if model.pool in ('token', 'map') and not random:  # initialised, where the file has no pooler
    trace['pre_logits'] = pooled
  return trace


def run_masked(module: Module, pixels: Tensor) -> dict[str, Tensor]:
  """The encoder of a masked autoencoder, which hides nothing and leaves the patches in order."""
  import torch

  encoder: Module = getattr(module, 'vit', module)
  encoder.embeddings.config.mask_ratio = 0.0
  order = torch.arange(encoder.embeddings.patch_embeddings.num_patches, dtype=torch.float32)
  output = encoder(pixels, noise=order[None].repeat(len(pixels), 1))
  return {'encoded': output.last_hidden_state}


def run_torchvision(module: Module, pixels: Tensor, model: Model) -> dict[str, Tensor]:
  trace: dict[str, Tensor] = {}
  module.encoder.register_forward_hook(lambda _, __, output: trace.update(encoded=output))
  output = module(pixels)
  return trace | {'logits' if model.num_classes else 'pre_logits': output}


RUNNERS = {'timm': run_timm, 'hf': run_transformers, 'torchvision': run_torchvision}
