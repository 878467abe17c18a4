"""Makes the .pth files beside it, with PyTorch 2.13: python tests/data/make_pth.py"""

import argparse
import collections
import os
import pathlib

import torch

HERE = pathlib.Path(__file__).parent


class Evil:
  """Runs a command when it is unpickled."""

  def __reduce__(self):
    return os.system, ('touch evil_was_here',)


def save(name, value, **options):
  torch.save(value, HERE / f'{name}.pth', **options)


grid = torch.arange(12.0).reshape(3, 4)
layer = torch.nn.Sequential(collections.OrderedDict(head=torch.nn.Linear(4, 3)))
with torch.no_grad():
  layer.head.weight.copy_(grid)
  layer.head.bias.copy_(torch.arange(3.0))
whole = {
  'int64': torch.arange(5),
  'int32': torch.arange(5, dtype=torch.int32),
  'int16': torch.arange(5, dtype=torch.int16),
  'int8': torch.arange(-2, 3, dtype=torch.int8),
  'uint8': torch.arange(5, dtype=torch.uint8),
  'bool': torch.arange(5) % 2 == 0,
  'float64': torch.arange(5, dtype=torch.float64),
  'scalar': torch.tensor(7.0),
  'empty': torch.zeros(0, 4),
}

save('state_dict', layer.state_dict())
save('nested', {'model': {'cls_token': grid}, 'epoch': 3, 'name': 'x', 'list': [grid[0], None]})
save('narrow', {'bf16': grid.to(torch.bfloat16), 'f16': grid.half()})
save('dtypes', whole)
save('strided', {'transposed': grid.T, 'columns': grid[:, 1::2], 'row': grid[1]})
save('shared', {'whole': grid, 'last': grid[2]})
save('parameter', {'weight': torch.nn.Parameter(grid)})
save('protocol4', {'model': layer.state_dict(), 'epoch': 3}, pickle_protocol=4)
save('legacy', layer.state_dict(), _use_new_zipfile_serialization=False)
save('namespace', {'model': {'w': grid}, 'args': argparse.Namespace(lr=0.1)})
save('evil', {'w': grid, 'x': Evil()})
save('evil_legacy', {'w': grid, 'x': Evil()}, _use_new_zipfile_serialization=False)
