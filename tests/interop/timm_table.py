"""Writes vit_jax/convert/timm_names.json: what every ViT-like name of timm's builds.

`python -m tests.interop.timm_table` writes it anew, which tests/interop/test_timm_names.py holds it
to. No model is built: the call of the constructor is caught just before it.
"""

import dataclasses
import functools
import importlib
import inspect
import json
import pathlib
import sys
from typing import Any

import torch

from tests.interop import peers
from vit_jax.convert import timm_names

timm = peers.timm
naflexvit = timm.models.naflexvit

# timm's modules of plain Transformers and Mixers over patches, one resolution throughout: 341 names
# in timm 1.0.31. BiT's names, which are ResNets, come from another module.
MODULES = (
  'vision_transformer',
  'deit',
  'eva',
  'beit',
  'vision_transformer_hybrid',
  'vision_transformer_relpos',
  'vision_transformer_sam',
  'naflexvit',
  'vitamin',
  'mlp_mixer',
  'deepseek_vit',
  'gemma4_vit',
  'qwen3_vit',
)
BIT = 'resnetv2'


def names() -> list[str]:
  """All ViT-like names of timm."""
  return [name for module in MODULES for name in timm.list_models(module=module)]


class Caught(Exception):
  """A constructor's class and arguments, in the place of its call."""

  def __init__(self, constructor: type, arguments: dict[str, Any]) -> None:
    super().__init__(constructor)
    self.constructor = constructor
    self.arguments = arguments


def catch(constructor: type, variant: str, pretrained: bool, *_: Any, **arguments: Any) -> None:
  raise Caught(constructor, arguments)


def calls() -> dict[str, Caught]:
  """The call that each name stands for."""
  caught = {}
  for name in (*MODULES, BIT):
    module = importlib.import_module(f'timm.models.{name}')
    build = module.build_model_with_cfg
    module.build_model_with_cfg = catch
    try:
      for arch in timm.list_models(module=name):
        if name != BIT or arch.endswith('_bit'):
          with torch.device('meta'):
            caught[arch] = call(arch)
    finally:
      module.build_model_with_cfg = build
  return caught


def call(arch: str) -> Caught:
  try:
    timm.create_model(arch)
  except Caught as caught:
    return caught
  raise ValueError(f'{arch} calls no constructor')


def spelled(value: Any) -> Any:
  """A value as JSON has it; a class, or a part of its call, by name: 'LayerNorm(eps=1e-05)'."""
  if isinstance(value, functools.partial):
    keywords = ', '.join(f'{key}={spelled(item)}' for key, item in value.keywords.items())
    return f'{spelled(value.func)}({keywords})'
  if inspect.isclass(value) or inspect.isfunction(value):
    return value.__name__
  if isinstance(value, torch.nn.Module):
    return type(value).__name__
  if isinstance(value, (tuple, list)):
    return [spelled(item) for item in value]
  return value


def arguments_in(caught: Caught) -> dict[str, Any]:
  """The arguments of a call; those of NaFlexVit are in an object, but for the sizes."""
  arguments = dict(caught.arguments)
  if (cfg := arguments.pop('cfg', None)) is not None:
    arguments |= {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
  return arguments


def arguments_of(constructor: type) -> dict[str, Any]:
  """Names and defaults of the arguments that a model of ours may read."""
  parameters = inspect.signature(constructor).parameters.values()
  return {
    p.name: None if p.default is p.empty else spelled(p.default)
    for p in parameters
    if p.name not in ('cfg', 'device', 'dtype') and p.kind is p.POSITIONAL_OR_KEYWORD
  }


def table() -> dict[str, Any]:
  """The contents of timm_names.json."""
  constructors = {
    'VisionTransformer': timm.models.VisionTransformer,
    'Eva': timm.models.Eva,
    'Beit': timm.models.Beit,
    'VisionTransformerRelPos': timm.models.VisionTransformerRelPos,
    'MlpMixer': timm.models.MlpMixer,
    'ResNetV2': timm.models.ResNetV2,
  }
  defaults = {name: arguments_of(constructor) for name, constructor in constructors.items()}
  embedding = arguments_of(naflexvit.NaFlexVitCfg)
  defaults['NaFlexVit'] = embedding | arguments_of(naflexvit.NaFlexVit)
  architectures = {}
  for arch, caught in calls().items():
    kind = caught.constructor.__name__.removesuffix('Distilled')  # its own arrays show that
    usual = defaults.get(kind, {})
    values = {key: spelled(v) for key, v in arguments_in(caught).items() if key in usual}
    # The pool of pretrained_cfg comes before the usual one, but not before one that a name states
    unusual = {k: v for k, v in values.items() if v != usual[k] or k == 'global_pool'}
    architectures[arch] = {'constructor': kind, **unusual}
  registry = sys.modules['timm.models._registry']
  former = {
    old: new.split('.')[0]
    for old, new in registry._deprecated_models.items()
    if new and new.split('.')[0] in architectures
  }
  return {
    'timm': timm.__version__,
    'defaults': defaults,
    'architectures': architectures,
    'former': former,
  }


def text() -> str:
  """The same, a line for each name."""
  sections = []
  for key, value in table().items():
    if isinstance(value, dict):
      lines = ',\n'.join(f'  {json.dumps(k)}: {json.dumps(value[k])}' for k in sorted(value))
      sections.append(f'{json.dumps(key)}: {{\n{lines}\n}}')
    else:
      sections.append(f'{json.dumps(key)}: {json.dumps(value)}')
  return '{\n' + ',\n'.join(sections) + '\n}\n'


if __name__ == '__main__':
  path = pathlib.Path(timm_names.__file__).with_name(timm_names.TABLE)
  path.write_text(text())
