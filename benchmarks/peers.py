"""The peer that the benchmarks compare with: timm's model under torch.compile.

A worker, as in `vit_jax.commands.bench`, that needs torch and timm only: facts, then a line for
each turn, then the peak of memory. Training is bfloat16 autocast over float32 parameters (float32
on a CPU), gradient clipping and fused AdamW; inference has its parameters in the type of the
computation. Images are uint8 on the device, normalised there. timm's GELU is the exact one,
vit_jax's the tanh approximation; everything else of the two models is the same arithmetic.
"""

import argparse
import importlib
import itertools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

SIZES = {'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large'}
CLASSES = 1000
BATCHES = 4


def command(case: Any, *, python: str) -> list[str]:
  """Starts the peer's worker for a `vit_jax.commands.bench.Case` in some interpreter."""
  options = {name: getattr(case, name) for name in ('mode', 'batch', 'image_size', 'depth')}
  flags = [f'--{k.replace("_", "-")}={v}' for k, v in options.items() if v is not None]
  return [
    python,
    str(pathlib.Path(__file__).resolve()),
    case.model,
    f'--dtype={case.dtype}',
    *flags,
  ]


def timm_name(model: str) -> str:
  """'ViT-B/16' -> 'vit_base_patch16_224'."""
  match = re.fullmatch(r'ViT-(\w+)/(\d+)', model)
  if not match or match[1] not in SIZES:
    raise ValueError(f'timm has no {model!r}; known: ViT-{{{",".join(SIZES)}}}/16')
  return f'vit_{SIZES[match[1]]}_patch{match[2]}_224'


def imported_timm() -> Any:
  """timm; also where torchvision, which it imports, comes without the operators it registers."""
  try:
    return importlib.import_module('timm')
  except RuntimeError as error:
    if 'torchvision::nms' not in str(error):
      raise
  import torch

  for name in [name for name in sys.modules if name.split('.')[0] in ('timm', 'torchvision')]:
    del sys.modules[name]
  library = torch.library.Library('torchvision', 'DEF')
  for operator in ('nms', 'qnms'):
    library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  timm = importlib.import_module('timm')
  timm.operators = library  # a library that is collected takes its operators with it
  return timm


class Peer:
  """One configuration of timm's model; `seconds(count)` runs steps, the first of which compile."""

  def __init__(self, flags: argparse.Namespace):
    import torch

    self.flags, self.torch, timm = flags, torch, imported_timm()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')
    self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    self.dtype = getattr(torch, flags.dtype)
    fields = {} if flags.depth is None else {'depth': flags.depth}
    model = timm.create_model(
      timm_name(flags.model), img_size=flags.image_size, num_classes=CLASSES, **fields
    )
    self.model = model.to(self.device)
    self.batches = itertools.cycle(self.synthetic())
    self.compiled, self.note = not flags.eager, None
    self.steps = self.make_steps()

  def make_steps(self) -> Iterator[Any]:
    return self.updates() if self.flags.mode == 'train' else self.outputs()

  def synthetic(self) -> list[tuple[Any, Any]]:
    """Random uint8 images (N, 3, H, W) and labels (N,)."""
    torch, side, count = self.torch, self.flags.image_size, self.flags.batch
    return [
      (
        torch.randint(256, (count, 3, side, side), dtype=torch.uint8, device=self.device),
        torch.randint(CLASSES, (count,), device=self.device),
      )
      for _ in range(BATCHES)
    ]

  def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
    return self.torch.compile(function, mode=self.flags.compile_mode) if self.compiled else function

  def updates(self) -> Iterator[Any]:
    """A whole training step each."""
    torch, model = self.torch, self.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def loss(images: Any, labels: Any) -> Any:
      mixed = self.dtype != torch.float32
      with torch.autocast(self.device.type, self.dtype, enabled=mixed):
        logits = model((images.float() - 127.5) / 127.5)
      return torch.nn.functional.cross_entropy(logits.float(), labels)

    forward = self.compile(loss)
    while True:
      value = forward(*next(self.batches))
      value.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
      yield value

  def outputs(self) -> Iterator[Any]:
    """The logits of a batch each."""
    model = self.model.eval().to(self.dtype)
    forward = self.compile(lambda x: model(((x.float() - 127.5) / 127.5).to(self.dtype)).float())
    while True:
      with self.torch.inference_mode():
        logits = forward(next(self.batches)[0])
      yield logits

  def first(self) -> float:
    """Seconds of the first step; an eager one where compiling fails, and `note` says so."""
    began = time.perf_counter()
    try:
      self.seconds(1)
    except (
      Exception
    ) as error:  # the compiler's own, of any type; an eager step raises its own again
      if not self.compiled:
        raise
      self.compiled = False
      self.note = f'torch.compile failed: {type(error).__name__}: {str(error).strip()[:200]}'
      self.torch.compiler.reset()
      self.model.zero_grad(set_to_none=True)
      self.steps = self.make_steps()
      self.seconds(1)
    return time.perf_counter() - began

  def seconds(self, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
      next(self.steps)
    if self.device.type == 'cuda':
      self.torch.cuda.synchronize()
    return time.perf_counter() - began

  def facts(self) -> dict[str, Any]:
    first, flags, versions = self.first(), self.flags, {}
    for name in ('torch', 'timm', 'triton'):
      if name in sys.modules:
        versions[name] = getattr(sys.modules[name], '__version__', None)
    return {
      'model': timm_name(flags.model),
      **{name: getattr(flags, name) for name in ('mode', 'batch', 'image_size', 'dtype', 'depth')},
      'first_step_seconds': first,
      'compiled': flags.compile_mode if self.compiled else None,
      'note': self.note,
      'omp_wait_policy': os.environ['OMP_WAIT_POLICY'],
      'versions': versions,
    }

  def peak_bytes(self) -> dict[str, int | None]:
    """As `vit_jax.commands.bench.peak_bytes`."""
    cuda = self.device.type == 'cuda'
    status = pathlib.Path('/proc/self/status')
    match = re.search(r'VmHWM:\s*(\d+) kB', status.read_text('utf-8')) if status.exists() else None
    return {
      'device': self.torch.cuda.max_memory_allocated() if cuda else None,
      'host': int(match[1]) * 1024 if match else None,
    }


def serve(flags: argparse.Namespace) -> int:
  """As `vit_jax.commands.bench.serve`."""
  # Threads that spin while they wait took 30 times as long a step where other programs ran too.
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  out = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)
  peer = Peer(flags)
  facts = peer.facts()
  count = flags.steps or max(1, round(flags.turn / (peer.seconds(2) / 2)))
  print(json.dumps(facts), file=out)
  for _ in sys.stdin:
    print(json.dumps({'steps': count, 'seconds': peer.seconds(count)}), file=out)
  print(json.dumps({'peak_bytes': peer.peak_bytes()}), file=out)
  return 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(description='A worker; benchmarks/cpu.py and gpu.py start it.')
  flags.add_argument('model', help='ViT-B/16')
  flags.add_argument('--mode', choices=('train', 'infer'), required=True)
  flags.add_argument('--batch', type=int, required=True)
  flags.add_argument('--image-size', type=int, default=224)
  flags.add_argument('--dtype', choices=('float32', 'bfloat16'), required=True)
  flags.add_argument('--depth', type=int)
  flags.add_argument('--compile-mode', default='default', help="torch.compile's")
  flags.add_argument('--eager', action='store_true', help='do not compile')
  flags.add_argument('--turn', type=float, default=1.0, help='seconds of a turn')
  flags.add_argument('--steps', type=int, help='steps of a turn, instead')
  return flags


if __name__ == '__main__':
  try:
    sys.exit(serve(parser().parse_args()))
  except ModuleNotFoundError as missing:
    sys.exit(f'skipped: {missing.name} is not installed')
