"""The state, and one update of it as a pure function of (state, batch): of any task.

A micro-batches.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec as P

from vit_jax import models, optim
from vit_jax.models import Tree
from vit_jax.models.layers import program_device, program_mesh
from vit_jax.tasks import Array, Average, Batch, Fixed, Loss, Params, Separable, Sums


@struct.dataclass
class State:
  """All that training changes; everything else follows from the config.

  Fields:
    step: updates made, () int32; -1 - s after the update from step s failed, and then no further
      update changes anything.
    params: the task's parameters, float32.
    opt_state: the optimiser's, of what is trained.
    ema: averaged parameters, or None.
  """

  step: Array
  params: Params
  opt_state: optax.OptState
  ema: Params | None

  @property
  def model_params(self) -> Params:
    """What is delivered: the average where one is kept."""
    return self.params if self.ema is None else self.ema


@struct.dataclass
class Trace:
  """Whether tensors are finite, by name in the order of computation."""

  names: tuple[str, ...] = struct.field(pytree_node=False)
  finite: tuple[Array, ...]  # () each

  def __add__(self, other: 'Trace') -> 'Trace':
    return Trace(self.names + other.names, self.finite + other.finite)


Measured = dict[str, Any]  # 'sums', 'latest', 'finite', 'trace' of `make_step`
Step = Callable[..., tuple[State, Measured]]  # (state, batch, fixed) -> state, measured
Summed = tuple[Params, tuple[Sums, Trace]]  # gradient and sums of a batch


def trace(named: Mapping[str, Any]) -> Trace:
  """Whether each array of a tree is finite; of stacked blocks or stages, each layer by itself."""
  flags: dict[str, Array] = {}
  for name, tensor in named.items():
    for path, leaf in models.flat(tensor).items():
      whole = '/'.join(part for part in (name, path) if part)
      if name in ('blocks', 'stages') and not isinstance(tensor, Mapping):
        layers = enumerate(tensor) if not path else [(path, leaf)]
        flags |= {f'{name}[{layer}]': jnp.isfinite(rows).all() for layer, rows in layers}
      elif jnp.issubdtype(leaf.dtype, jnp.inexact):
        flags[whole] = jnp.isfinite(leaf).all()
  return Trace(tuple(flags), tuple(flags.values()))


def named_trace(prefix: str, tree: Params) -> Trace:
  """Whether each array of a tree is finite, with a word before its name."""
  return trace({f'{prefix} {name}': leaf for name, leaf in models.flat(tree).items()})


def make_step(
  loss: Loss,
  tx: optax.GradientTransformation,
  schedule: optim.Schedule,
  *,
  seed: int = 0,
  accumulate: int = 1,
  ema: float = 0.0,
  average: Average | None = None,
  frozen: optim.Frozen = optim.ALL_TRAINED,
) -> Step:
  """One update as a pure function: step(state, batch, fixed) -> state, measured.

  With a loss or gradient that is not finite nothing is updated, by this step or a later one.
  `measured` has the task's 'sums', the 'latest' 'grad_norm' and 'learning_rate', 'finite', whether
  loss, gradient and update were, and 'trace', which tensors were: `untraced`, it is not computed.

  Args:
    loss: of a task; of a `Separable` one devices add the gradient once, see `summed_over_data`.
    tx: the optimiser; it is handed `grad_fn(trained, *_)`, the gradient of the same batch with the
      same key at other parameters, which sharpness-aware ones ask for.
    schedule: its learning rate, to be logged.
    seed: the step's key is fold_in(seed, step).
    accumulate: micro-batches that the gradient is summed over, each with a key of its own.
    ema: decay of the averaged parameters.
    average: of a task: how they follow instead.
    frozen: what is not trained: it stays as it is, to the bit, in the average too.
  """
  separable = isinstance(loss, Separable)
  tx, follow = optax.with_extra_args_support(tx), average or decayed(ema)

  def step(state: State, batch: Batch, fixed: Fixed | None = None) -> tuple[State, Measured]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    fixed = {**(fixed or {}), 'ema': state.ema, 'step': state.step}

    def gradients(trained: Params) -> Summed:
      def trained_loss(
        trained: Params, batch: Batch, key: Array
      ) -> tuple[Array, tuple[Sums, Trace]]:
        params = frozen.with_trainable(state.params, trained)
        total, sums, named = loss(params, batch, key, fixed)
        return total, ({**sums, 'loss': total}, trace(named))

      return gradient(trained_loss, trained, batch, key, accumulate=accumulate, separable=separable)

    def updated(state: State, grads: Params, *, sums: Sums) -> State:
      trained = frozen.trainable(state.params)
      updates, opt_state = tx.update(
        grads, state.opt_state, trained, grad_fn=lambda other, *_: gradients(other)[0]
      )
      trained = optax.apply_updates(trained, updates)
      params, mean = frozen.with_trainable(state.params, trained), state.ema
      if mean is not None:
        new = follow(frozen.trainable(mean), trained, sums, state.step)
        mean = frozen.with_trainable(mean, new)
      return State(state.step, params, opt_state, mean)

    grads, (sums, tensors) = gradients(frozen.trainable(state.params))
    norm = optax.tree.norm(grads)
    usable = jnp.isfinite(sums['loss']) & jnp.isfinite(norm) & (state.step >= 0)
    update = functools.partial(updated, sums=sums)
    new, finite = counted(updated_if(usable, update, state, grads), usable, frozen=frozen)
    before, after = named_trace('parameter', state.params), named_trace('gradient of', grads)
    tensors = before + tensors + trace({'loss': sums['loss']}) + after
    latest = {'grad_norm': norm, 'learning_rate': schedule(state.step)}
    return new, {'sums': sums, 'latest': latest, 'finite': finite, 'trace': tensors}

  return step


def decayed(decay: float) -> Average:
  """The average that moves 1 - decay of the way to the parameters of each update."""
  return lambda average, params, *_: jax.tree.map(
    lambda a, p: decay * a + (1 - decay) * p, average, params
  )


def updated_if(
  usable: Array, updated: Callable[[State, Params], State], state: State, grads: Params
) -> State:
  """The updated state, or with a gradient that is not usable the same.

  On a CPU a branch, which writes into the memory of the old state. Compilers for TPUs and GPUs copy
  the arguments of a branch: there old or new is chosen for each element, in the pass over the
  parameters that updates them.
  """
  if program_device().platform != 'cpu':
    choose = functools.partial(jax.lax.select, usable)
    return jax.tree.map(choose, updated(state, grads), state)
  return jax.lax.cond(usable, updated, lambda state, _: state, state, grads)


def counted(state: State, usable: Array, *, frozen: optim.Frozen) -> tuple[State, Array]:
  """The state with its update counted, and whether that is finite; one that is not is marked."""
  # The barrier: else a TPU's check is fused with half of the update, and reads its arguments again.
  params = jax.lax.optimization_barrier(state.params)
  finite = usable & jnp.isfinite(optax.tree.norm(frozen.trainable(params), ord='inf'))
  step = jnp.where(finite, state.step + 1, jnp.minimum(state.step, -1 - state.step))
  return State(step, params, state.opt_state, state.ema), finite


def untraced(step: Step) -> Step:
  """The step without its trace, which jit then leaves out of the program."""

  def update(state: State, batch: Batch, fixed: Fixed | None = None) -> tuple[State, Measured]:
    new, measured = step(state, batch, fixed)
    del measured['trace']
    return new, measured

  return update


def gradient(
  loss: Callable[..., Any],
  trained: Params,
  batch: Batch,
  key: Array,
  *,
  accumulate: int,
  separable: bool = False,
) -> Summed:
  """The mean loss's gradient, and sums over the batch, taken in A equal micro-batches.

  `loss` is (trained, batch, key) -> (loss summed over the batch, (sums, trace)); that it is
  separable saves devices exchanges, see `summed_over_data`.
  """
  summed = jax.grad(loss, has_aux=True)
  if accumulate == 1:
    grads, (sums, tensors) = summed(trained, batch, jax.random.fold_in(key, 0))
  else:
    total: Callable[..., Summed] = functools.partial(accumulated, summed, accumulate=accumulate)
    if separable:
      total = summed_over_data(total)
    grads, (sums, tensors) = total(trained, batch, key)
  count = jnp.maximum(sums['count'], 1)
  return jax.tree.map(lambda g: g / count, grads), (sums, tensors)


def accumulated(
  summed: Callable[..., Summed], trained: Params, batch: Batch, key: Array, *, accumulate: int
) -> Summed:
  """What `summed` gives of a batch, (trained, batch, key) -> sums, added over A micro-batches."""

  def add(total: Tree, indexed: tuple[Array, Batch]) -> tuple[Tree, Trace]:
    index, micro = indexed
    grads, (sums, tensors) = summed(trained, micro, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, (grads, sums)), tensors

  # Row j of micro-batch i is row j * accumulate + i: a device's rows stay on it.
  micro = jax.tree.map(
    lambda rows: rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1), dict(batch)
  )
  first = jax.tree.map(lambda rows: rows[0], micro)
  shapes, (sum_shapes, _) = jax.eval_shape(summed, trained, first, key)
  zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), (shapes, sum_shapes))
  (grads, sums), tensors = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))
  return grads, (sums, jax.tree.map(lambda flags: flags.all(0), tensors))  # (A,) -> ()


def summed_over_data(total: Callable[..., Summed]) -> Callable[..., Summed]:
  """The same function of a batch, whose results devices along 'data' add once, at its end.

  Unasked, the compiler adds the gradient of every micro-batch over all devices. Each device takes
  its own rows for a batch, so that the loss must be separable.
  """
  mesh = program_mesh()
  if mesh is None or mesh.shape['data'] == 1:
    return total

  def of_device(trained: Params, batch: Batch, key: Array) -> Summed:
    return jax.tree.map(lambda leaf: leaf[None], total(trained, batch, key))

  of_devices = jax.shard_map(
    of_device,
    in_specs=(P(), P('data'), P()),
    out_specs=P('data'),
    axis_names={'data'},
    check_vma=False,
  )

  def added(trained: Params, batch: Batch, key: Array) -> Summed:
    grads, (sums, tensors) = of_devices(trained, dict(batch), key)
    grads, sums = jax.tree.map(lambda parts: parts.sum(0), (grads, sums))
    return grads, (sums, jax.tree.map(lambda flags: flags.all(0), tensors))

  return added


def make_state(
  params: Params,
  tx: optax.GradientTransformation,
  *,
  ema: bool = False,
  frozen: optim.Frozen = optim.ALL_TRAINED,
) -> State:
  """The state of those parameters before the first step."""
  average = jax.tree.map(jnp.copy, params) if ema else None
  return State(jnp.zeros((), jnp.int32), params, tx.init(frozen.trainable(params)), average)
