"""What a training step takes by arithmetic, without a compiler: memory, FLOPs, bytes sent."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax.compilers import Chip, program
from vit_jax.compilers.forecast import Formulas, Memory
from vit_jax.models import Tree, vit
from vit_jax.models.memory import Blocks, activation_bytes
from vit_jax.plan import Plan, encoded_tokens, method
from vit_jax.step import State


def formulas(plan: Plan, state: State, batch: Tree, fixed: Tree, *, chip: Chip) -> Formulas:
  """The arithmetic of a step with such abstract arguments, on chips of a kind."""
  count = flops(plan)
  return Formulas(
    memory=memory(plan, state, batch, fixed, platform=chip.platform),
    flops=count,
    seconds=count / chip.peak if chip.peak else None,
    sent=sent(plan, plan.frozen.trainable(state.params)),
  )


def memory(plan: Plan, state: State, batch: Tree, fixed: Tree, *, platform: str) -> Memory:
  """The bytes of abstract arrays with shardings, and of what the model keeps of the batch."""
  trained = plan.frozen.trainable(state.params)
  return Memory(
    parameters=held(state.params),
    optimizer=held(state.opt_state),
    average=held(state.ema),
    fixed=held(fixed),
    gradients=held(trained),
    batch=held(batch),
    activations=activations(plan, platform),
  )


def held(tree: Tree) -> int:
  """Bytes that a device holds of abstract arrays with shardings."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(shard(leaf)) * leaf.dtype.itemsize for leaf in leaves)


def shard(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
  """The sides of a device's part of an abstract array."""
  return leaf.sharding.shard_shape(leaf.shape)


def device_images(plan: Plan) -> int:
  """Images of an update on a device, or on those that share its rows."""
  return plan.config.batch_size // (plan.mesh.shape['data'] * plan.mesh.shape['fsdp'])


def activations(plan: Plan, platform: str) -> int | None:
  """Bytes that a micro-batch leaves for the backward pass; None of other models than blocks."""
  model = plan.task.model
  if not isinstance(model, Blocks):
    return None
  lengths, images = encoded_tokens(plan.config, model), device_images(plan)
  example = sum(activation_bytes(model, n, model.remat, platform=platform) for n in lengths)
  example += method(plan.config.task).head_bytes(plan.config, model)
  return images // plan.config.accumulate * example


def flops(plan: Plan) -> int:
  """FLOPs of a device in an update, without those of recomputation; 0 where not known."""
  return plan.update_flops * device_images(plan) // plan.mesh.shape['tensor']


def sent(plan: Plan, params: Tree) -> float:
  """Bytes that a device must send in an update, in rings.

  A gradient is summed once, in float32. A parameter that 'fsdp' splits is gathered for the forward
  and for the backward pass in the type of the computation, its gradient scattered, and each part
  summed over 'data'. 'tensor' sums the tokens of a layer twice in each pass.
  """
  model, sides = plan.task.model, plan.mesh.shape
  item = jnp.dtype(getattr(model, 'dtype', 'float32')).itemsize
  total = sum(sent_of(leaf, plan.mesh, item) for leaf in jax.tree.leaves(params))
  if sides['tensor'] == 1 or not isinstance(model, vit.ViT):
    return total
  size = device_images(plan) * sum(encoded_tokens(plan.config, model)) * model.width * item
  return total + model.depth * 4 * program.sent('all-reduce', size, sides['tensor'])


def sent_of(leaf: jax.ShapeDtypeStruct, mesh: Mesh, item: int) -> float:
  """The bytes of one parameter, gathered in numbers of `item` bytes, and of its gradient."""
  data, fsdp = mesh.shape['data'], mesh.shape['fsdp']
  count = math.prod(shard(leaf))
  size = count * leaf.dtype.itemsize
  if 'fsdp' not in leaf.sharding.spec:
    return program.sent('all-reduce', size, data * fsdp)
  gathered = 2 * program.sent('all-gather', count * fsdp * item, fsdp)
  scattered = program.sent('reduce-scatter', size * fsdp, fsdp)
  return gathered + scattered + program.sent('all-reduce', size, data)
