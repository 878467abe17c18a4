"""Small changes to a model that stays as it is: low-rank adaptation (LoRA, arXiv 2106.09685).

L layers, D width, R rank.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from vit_jax import models, plan, tasks

ADAPTED = ('attention/query', 'attention/value', 'mlp/up', 'mlp/down')  # (L, D, ...)


def lora(task, *, rank=4, alpha=8.0):
  """The task of (L, D, ...) kernels + alpha / rank a b, and of the head; all else is `fixed`."""
  if task.start is None:
    raise ValueError('LoRA adapts a checkpoint: config.pretrained is empty, must name one')
  head, report = task.start().params['head'], task.start().report
  base = models.flat({**task.start().params, 'head': {}})
  adapted = [f'encoder/blocks/{part}/kernel' for part in ADAPTED]

  def init(key):
    params = {}
    for index, name in enumerate(adapted):
      layers, width, *outputs = base[name].shape
      a = jax.random.normal(jax.random.fold_in(key, index), (layers, width, rank)) / width**0.5
      params[name] = {'a': a, 'b': jnp.zeros((layers, rank, *outputs))}
    return unflatten_dict(params, sep='/') | {'head': task.init(key)['head']}

  def merged(params, base):
    """The parameters of the task: a b added to the base."""
    whole, adapters = dict(base), models.flat(params)
    for name in adapted:
      change = jnp.einsum('ldr,lr...->ld...', adapters[f'{name}/a'], adapters[f'{name}/b'])
      whole[name] = whole[name] + alpha / rank * change
    return unflatten_dict(whole, sep='/') | {'head': params['head']}

  def loss(params, batch, key, fixed):
    return task.loss(merged(params, fixed['base']), batch, key, fixed)

  return dataclasses.replace(
    task,
    init=init,
    loss=loss,
    measure=lambda params, batch, fixed: task.measure(merged(params, fixed['base']), batch, fixed),
    deliver=lambda params: task.deliver(jax.device_get(merged(params, base))),
    fixed={**task.fixed, 'base': base},
    start=lambda: tasks.Start({'head': head}, report),
    about=(*task.about, f'LoRA of {len(adapted)} kernels: rank {rank}, alpha {alpha:g}'),
  )


def make(config, source, start):
  """Classification, adapted."""
  return lora(plan.classification(config, source, start))
