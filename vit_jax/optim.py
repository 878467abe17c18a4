"""Durations, learning-rate schedules, what is trained, and optimisers, made from plain arguments.

An optimiser reads as its recipe: clip, then the method's own scaling, then decoupled weight decay
on the kernels, then the learning rate, then its decay by layers. Sharpness-aware minimisation goes
round all of it.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from vit_jax import lookup, models
from vit_jax.models import Tree
from vit_jax.text import error_line, nearest

Schedule = Callable[[int | jax.Array], jax.Array]  # step -> learning rate, ()

UNITS = r'steps?|epochs?|%'  # digits are limited, so that no number of steps is infinite
DURATION = re.compile(rf'([0-9]{{1,3}}(?:_?[0-9]{{1,3}}){{0,3}}(?:\.[0-9]+)?)\s*({UNITS})?')
TIME = re.compile(r'(?:(\d{1,6})\s*h)?\s*(?:(\d{1,6})\s*m)?\s*(?:(\d{1,6})\s*s)?')

FIRST = ('embed', 'cls', 'dist', 'registers', 'positions', 'pre_norm', 'stem', 'root')
UNIT = re.compile(r'stage(\d+)/unit(\d+)/')  # of BiT, at the start of a name
HEADS = ('head', 'head_dist', 'projection')


MAX_STEPS = 2**31  # a step is an int32


def steps(duration: object, *, epoch: float, total: int | None = None) -> int:
  """A duration in steps, rounded to the nearest; at least one, but for 0.

  Args:
    duration: 500, '500 steps', '2.5 epochs' or '5%' (of the whole run).
    epoch: steps in an epoch, a fraction too.
    total: steps of the whole run; None where a percentage makes no sense.
  """
  match = DURATION.fullmatch(str(duration).strip())
  if match is None or (match[2] == '%' and total is None):
    units = "'100 steps', '2 epochs'" + ('' if total is None else " or '5%'")
    raise ValueError(f'{duration!r} is not a duration such as {units}')
  count, unit = float(match[1]), (match[2] or 'steps').rstrip('s')
  if unit == 'step' and count % 1:
    raise ValueError(f'{duration!r} is not a whole number of steps')
  unit_steps = {'step': 1.0, 'epoch': epoch, '%': (total or 0) / 100}
  if (total_steps := count * unit_steps[unit]) >= MAX_STEPS:
    raise ValueError(f'{duration!r} is {total_steps:.3g} steps, must be below {MAX_STEPS:,}')
  return max(round(total_steps), 1) if count else 0


def seconds(text: str) -> int:
  """A time in seconds: '11h', '90m', '45s', '1h30m'; 0 for '', none; ValueError for all else."""
  match = TIME.fullmatch(text.strip())
  parts = [int(part or 0) for part in match.groups()] if match else [0]
  total = sum(part * unit for part, unit in zip(parts, (3600, 60, 1)))
  if text and not total:
    raise ValueError(f"{text!r} is not a time such as '11h', '90m', '45s' or '1h30m'")
  return total


def make_schedule(
  name: str,
  *,
  learning_rate: float,
  total: int,
  warmup: int = 0,
  cooldown: int = 0,
  end: float = 0.0,
  begin: int = 0,
  timescale: int = 10_000,
  boundaries: tuple[int, ...] = (),
  factor: float = 0.1,
) -> Schedule:
  """The learning rate of the update from step s to s + 1, for s = 0 .. total - 1.

  A linear warm-up multiplies the schedule by s / warmup, so that the first update has rate 0; a
  linear cool-down multiplies it by (total - s) / cooldown. Where it begins later, all of this holds
  of the steps after `begin`.

  Args:
    name: 'constant'; 'cosine' and 'linear' fall from `learning_rate` after warm-up to `end` at
      `total`; 'rsqrt' is learning_rate * sqrt(timescale / (s - warmup + timescale)) after warm-up
      (Zhai et al., arXiv 2106.04560); 'step' is multiplied by `factor` at each of `boundaries`.
    learning_rate: the highest.
    total, warmup, cooldown, timescale, boundaries: in steps.
    end: the rate that cosine and linear end at.
    begin: the step that counts as 0.
    factor: of 'step'.
  """
  if timescale < 1:
    raise ValueError(f'timescale is {timescale} steps, must be at least 1')
  if not 0 <= begin < total:
    raise ValueError(f'the schedule begins at step {begin}, the run ends at {total}')
  total -= begin
  if warmup + cooldown > total:
    raise ValueError(f'warm-up {warmup} and cool-down {cooldown} exceed the run of {total} steps')

  def remaining(s: jax.Array) -> jax.Array:  # 1 until warm-up ends, then falling to 0
    return 1 - jnp.clip((s - warmup) / max(total - warmup, 1), 0, 1)

  def decay(s: jax.Array) -> jax.Array:
    return jnp.sqrt(timescale / (jnp.maximum(s - warmup, 0) + timescale))

  rate_at: dict[str, Callable[[jax.Array], jax.Array]] = {
    'constant': lambda s: jnp.asarray(learning_rate),
    'cosine': lambda s: end + (learning_rate - end) * 0.5 * (1 - jnp.cos(jnp.pi * remaining(s))),
    'linear': lambda s: end + (learning_rate - end) * remaining(s),
    'rsqrt': lambda s: learning_rate * decay(s),
    'step': lambda s: learning_rate * factor ** jnp.sum(s >= jnp.asarray(boundaries, jnp.float32)),
  }
  if name not in rate_at:
    raise ValueError(f'unknown schedule {name!r}{nearest(name, list(rate_at))}')

  def schedule(step: int | jax.Array) -> jax.Array:
    s = jnp.asarray(step, jnp.float32) - begin
    rate = rate_at[name](s)
    if warmup:
      rate = rate * jnp.minimum(1.0, s / warmup)
    if cooldown:
      rate = rate * jnp.minimum(1.0, (total - s) / cooldown)
    return rate

  return schedule


def layers_of(params: Tree) -> tuple[dict[str, int | np.ndarray], int]:
  """The layer of each parameter by its name, and L, how many layers there are.

  Stem, patch embedding, tokens and positions are layer 0, block i of the encoder is layer i + 1,
  and all after the blocks is L + 1, a decoder's blocks too; of blocks stacked in one array it is a
  vector. The units of a BiT count as blocks, and its root as the stem.
  """
  named = models.flat(params)
  units = {name: (int(match[1]), int(match[2])) for name in named if (match := UNIT.match(name))}
  unit_layer = {unit: i + 1 for i, unit in enumerate(sorted(set(units.values())))}
  stacked = [leaf.shape[0] for name, leaf in named.items() if in_encoder(name)]
  depth = max([len(unit_layer), *stacked])

  def layer(name: str) -> int | np.ndarray:
    if in_encoder(name):
      return np.arange(1, depth + 1)
    if name in units:
      return unit_layer[units[name]]
    return 0 if name.split('/')[0] in FIRST else depth + 1

  return {name: layer(name) for name in named}, depth


@dataclasses.dataclass(frozen=True)
class Frozen:
  """What is not trained: no gradient of it is taken, and no optimiser state held for it.

  Fields:
    names: of parameters that are not trained at all.
    layers: so many of the first layers of stacked parameters are not trained, either.
  """

  names: frozenset[str] = frozenset()
  layers: int = 0

  def __bool__(self) -> bool:
    return bool(self.names or self.layers)

  def trainable(self, tree: Tree) -> Tree:
    """What is trained of a tree such as the parameters, under the same names."""
    if not self:
      return tree
    leaves = {name: leaf for name, leaf in models.flat(tree).items() if name not in self.names}
    cut = {name: leaf[self.layers :] if self.cuts(name) else leaf for name, leaf in leaves.items()}
    return traverse_util.unflatten_dict(cut, sep='/')

  def with_trainable(self, tree: Tree, trainable: Tree) -> Tree:
    """The tree with what is trained replaced by `trainable`."""
    if not self:
      return trainable
    trained = models.flat(trainable)

    def whole(name: str, leaf: jax.Array) -> jax.Array:
      new = trained.get(name, leaf)
      return jnp.concatenate([leaf[: self.layers], new]) if self.cuts(name) else new

    return models.map_named(whole, tree)

  def cuts(self, name: str) -> bool:
    """Whether some layers of that parameter are trained, and others are not."""
    return self.layers > 0 and in_encoder(name) and name not in self.names


ALL_TRAINED = Frozen()


def make_frozen(params: Tree, *, body: bool = False, layers: int = 0, names: str = '') -> Frozen:
  """What is frozen of a model's parameters.

  Args:
    params: a tree of them, or of their shapes.
    body: all but the head.
    layers: layers 0 to this one, see `layers_of`; 0 freezes none.
    names: a regular expression: parameters whose whole name it matches.
  """
  layer, depth = layers_of(params)
  if layers > depth:
    raise ValueError(f'freeze.layers is {layers}, the model has {depth}')
  frozen = {name for name in layer if body and name.split('/')[0] not in HEADS}
  frozen |= {name for name in layer if layers and np.max(layer[name]) <= layers}
  frozen |= matching(names, list(layer)) if names else set()
  if len(frozen) == len(layer):
    raise ValueError('freeze leaves nothing to train')
  partly = any(in_encoder(name) for name in layer if name not in frozen)
  return Frozen(frozenset(frozen), layers if partly else 0)


def matching(expression: str, names: list[str]) -> set[str]:
  """The names that a regular expression matches as a whole; at least one."""
  try:
    matches = {name for name in names if re.fullmatch(expression, name)}
  except re.error as error:
    raise ValueError(f'freeze.names {expression!r} is no regular expression: {error}') from None
  if not matches:
    examples = ', '.join(names[:: max(len(names) // 4, 1)])
    raise ValueError(
      f'freeze.names {expression!r} matches no whole name; there are {examples}, ...'
    )
  return matches


def make_optimizer(
  name: str,
  schedule: Schedule,
  *,
  weight_decay: float = 0.0,
  weight_decay_end: float | None = None,
  clip: float | None = None,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum: float = 0.9,
  nesterov: bool = False,
  momentum_dtype: str | None = None,
  layer_decay: float = 1.0,
  sam: float = 0.0,
  gsam: float = 0.0,
  sam_min: float = 0.0,
  rates: tuple[float, float] | None = None,
  span: tuple[int, int] | None = None,
  params: Tree = None,
) -> optax.GradientTransformation:
  """The optimiser of that name.

  Args:
    name: 'sgd' (momentum), 'adam' or 'adamw' (one and the same here: the ViT paper's Adam with
      weight decay 0.1 is what was later called AdamW), 'adafactor' (as in arXiv 2106.04560: with
      momentum and without scaling by the parameters' size), 'lion', 'lamb', or 'muon' (kernels of
      the encoder; Adam elsewhere). Or 'package.module:name', see `imported_recipe`.
    schedule: learning rate by step.
    weight_decay: decoupled, times the learning rate, on kernels only; not on biases, norms,
      positions or tokens.
    weight_decay_end: what it becomes by a cosine over `span`, as in DINO (arXiv 2104.14294); None
      for a constant one.
    clip: largest global norm of the gradient; None for no limit.
    b1, b2, eps: of Adam, LAMB, Muon's Adam; b1 and b2 also of Lion.
    momentum: of SGD, Adafactor and Muon.
    nesterov: of SGD and of both parts of Muon.
    momentum_dtype: of the first moment or momentum kept between steps; None keeps float32. SGD
      updates with the float32 sum before it is stored.
    layer_decay: multiplies the learning rate, and with it weight decay, once for each layer
      further from the head, as in BEiT (arXiv 2106.08254); see `layers_of`.
    sam: radius of SAM, in the parameters' units; 0 for no SAM. With it an update needs `grad_fn`
      and takes two gradients, and `clip` is of the second; see `sharpness_aware`.
    gsam: alpha of GSAM, whose radius follows the learning rate; 0 for SAM, whose is constant.
    sam_min: radius of GSAM at the lowest rate; see `radius_by_rate`.
    rates: lowest and highest learning rate of the schedule, which GSAM needs.
    span: the step that the schedule begins at and the run's last, which `weight_decay_end` needs.
    params: all parameters, or their shapes, whose layers are counted; None where the optimiser is
      given all of them.
  """
  decay = decay_schedule(weight_decay, weight_decay_end, span)
  values: dict[str, Any] = dict(weight_decay_end=weight_decay_end, weight_decay=decay)
  values |= dict(b1=b1, b2=b2, eps=eps, momentum=momentum, nesterov=nesterov)
  make = imported_recipe if lookup.is_path(name) else recipe
  # One flat chain: the names of its state are in the checkpoints of runs.
  tx = optax.chain(
    *([optax.clip_by_global_norm(clip)] if clip else []),
    *make(name, schedule, values, momentum_dtype),
    *([scale_by_layer(layer_decay, params)] if layer_decay != 1 else []),
  )
  return with_sam(tx, schedule, sam=sam, gsam=gsam, sam_min=sam_min, rates=rates)


def decay_schedule(
  weight_decay: float, end: float | None, span: tuple[int, int] | None
) -> float | Schedule:
  """The weight decay, by step where it changes; the arguments are those of `make_optimizer`."""
  if end is None:
    return weight_decay
  if span is None:
    raise ValueError(f'weight_decay_end is {end}, needs span: the first step and the last')
  begin, total = span
  return make_schedule('cosine', learning_rate=weight_decay, end=end, begin=begin, total=total)


def recipe(
  name: str, schedule: Schedule, values: Mapping[str, Any], dtype: str | None
) -> list[optax.GradientTransformation]:
  """One of our optimisers as its parts; the arguments are those of `make_optimizer`."""
  b1, b2, eps, momentum, nesterov, weight_decay = (
    values[field] for field in ('b1', 'b2', 'eps', 'momentum', 'nesterov', 'weight_decay')
  )
  adam = functools.partial(optax.scale_by_adam, b1, b2, eps, mu_dtype=dtype)
  methods: dict[str, Callable[[], optax.GradientTransformation]] = {
    'sgd': lambda: optax.trace(momentum, nesterov=nesterov, accumulator_dtype=dtype),
    'adam': adam,
    'adamw': adam,
    'adafactor': lambda: per_layer(scale_by_adafactor(momentum, dtype)),
    'lion': lambda: optax.scale_by_lion(b1, b2, mu_dtype=dtype),
    'lamb': adam,
    'muon': lambda: scale_by_muon(b1, b2, eps, momentum, nesterov, dtype),
  }
  if dtype not in (None, 'float32', 'bfloat16'):
    raise ValueError(f'unknown momentum_dtype {dtype!r}; known: float32, bfloat16')
  if name not in methods:
    raise ValueError(f"unknown optimizer {name!r}{nearest(name, list(methods))} (or 'module:name')")
  return [
    methods[name](),
    *([optax.add_decayed_weights(weight_decay, mask=is_kernel)] if weight_decay else []),
    *([per_layer(optax.scale_by_trust_ratio())] if name == 'lamb' else []),
    optax.scale_by_learning_rate(schedule),
  ]


def imported_recipe(
  name: str, schedule: Schedule, values: Mapping[str, Any], dtype: str | None
) -> list[optax.GradientTransformation]:
  """The optimiser that 'package.module:name' makes of a learning-rate schedule, 'optax:adabelief'.

  It is called with the schedule, and with those of the values that it has parameters for; where it
  has one, `mask` keeps its weight decay to kernels. A value that is not the default and that it has
  no parameter for would do nothing, and is a ValueError; so is a dtype of the momentum other than
  float32. Its updates are added to the parameters.
  """
  if dtype not in (None, 'float32'):
    raise ValueError(f'momentum_dtype is {dtype!r}, which {name} does not take: set it to float32')
  make = lookup.imported(name, 'optimizer')
  try:
    parameters = inspect.signature(make).parameters
  except ValueError as error:
    raise ValueError(f'optimizer {name!r}: {error}') from None
  defaults = inspect.signature(make_optimizer).parameters
  for field, value in values.items():
    if field not in parameters and value != defaults[field].default:
      raise ValueError(
        f'optimizer.{field} is {value}, but {name} has no parameter {field}: '
        f'set it to {defaults[field].default}'
      )
  keywords = {**values, 'mask': is_kernel}
  try:
    tx = make(schedule, **{field: keywords[field] for field in keywords if field in parameters})
  except (Exception, SystemExit) as error:  # whatever it does
    raise ValueError(f'optimizer {name!r}: {error_line(error)}') from error
  if not (hasattr(tx, 'init') and hasattr(tx, 'update')):
    raise ValueError(f'optimizer {name!r} gives {type(tx).__name__}, not an optax transformation')
  return [tx]


def with_sam(
  tx: optax.GradientTransformation,
  schedule: Schedule,
  *,
  sam: float,
  gsam: float,
  sam_min: float,
  rates: tuple[float, float] | None,
) -> optax.GradientTransformation:
  """`tx` with SAM or GSAM, where it is asked for; the arguments are those of `make_optimizer`."""
  if gsam and not sam:
    raise ValueError(f'gsam is {gsam}, needs sam above 0')
  if gsam and rates is None:
    raise ValueError(f'gsam is {gsam}, needs rates: the lowest and highest of the schedule')
  if sam_min and not gsam:
    raise ValueError(f'sam_min is {sam_min}, needs gsam above 0')
  if sam_min > sam:
    raise ValueError(f'sam_min is {sam_min}, must be at most sam, {sam}')
  if gsam and rates:
    return sharpness_aware(tx, radius_by_rate(schedule, rates, (sam_min, sam)), alpha=gsam)
  return sharpness_aware(tx, sam) if sam else tx


def sharpness_aware(
  tx: optax.GradientTransformation, radius: float | Schedule, *, alpha: float = 0.0
) -> optax.GradientTransformationExtraArgs:
  """`tx`, given the gradient at the worst point nearby: SAM (arXiv 2010.01412), GSAM (2203.08065).

  An update ascends from the parameters by radius * g / |g|, takes the gradient g_p there, and hands
  it to `tx` at the parameters themselves: two gradients in all, with the one that it is given. The
  norm is that of the whole tree and the whole batch, however many devices hold them; the papers
  ascend on each device's own part of the batch.

  The state is that of `tx`, with nothing added, for GSAM too. The update takes `params` and
  `grad_fn`, as `optax.contrib.sam` in its opaque mode does: `grad_fn(params, 0)` gives the gradient
  of the same batch, with the same random key, at other parameters.

  Args:
    tx: any optimiser.
    radius: distance of the ascent; 0 for `tx` as it is, with one gradient. Or a function of the
      step, which is the count of the learning-rate schedule in the state of `tx`.
    alpha: of GSAM, 0.4 to 0.6 for ViTs: what is handed on is g_p - alpha * (the component of g
      that is orthogonal to g_p), which narrows the surrogate gap and leaves the loss at the
      perturbed point, to first order, alone. 0 for SAM.

  Raises:
    ValueError: from the update without `params` or `grad_fn`, or where the radius is a function
      and `tx` follows no schedule.
  """
  inner = optax.with_extra_args_support(tx)
  if not callable(radius) and radius == 0:
    return inner

  def update(
    updates: Tree,
    state: optax.OptState,
    params: Tree = None,
    *,
    grad_fn: Callable[..., Any] | None = None,
    **extra_args: Any,
  ) -> tuple[Any, Any]:
    if params is None or grad_fn is None:
      missing = 'params' if params is None else 'grad_fn'
      raise ValueError(f'{missing} is None, an update with SAM needs it')
    distance = radius(schedule_step(state)) if callable(radius) else radius
    ascent = optax.tree.scale(distance / safe_norm(updates), updates)
    perturbed = grad_fn(optax.apply_updates(params, ascent), 0)
    if alpha:
      perturbed = narrow_gap(perturbed, updates, alpha)
    return inner.update(perturbed, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def narrow_gap(perturbed: Tree, clean: Tree, alpha: float) -> Tree:
  """g_p - alpha * (g - its projection on g_p): the update of GSAM's Algorithm 1."""
  projection = optax.tree.vdot(clean, perturbed) / safe_norm(perturbed) ** 2
  return jax.tree.map(lambda p, g: p - alpha * (g - projection * p), perturbed, clean)


def safe_norm(tree: Tree) -> jax.Array:
  """The global norm, or 1e-12 where it is less, so that zero divided by it is zero.

  Squares of float32 vanish below 1e-19: a norm much nearer to zero would be no norm.
  """
  return jnp.maximum(optax.tree.norm(tree), 1e-12)


def schedule_step(state: optax.OptState) -> jax.Array:
  """The step that the learning rate of the next update is for, from an optimiser's state: () int32.

  It is behind the training step where that has skipped updates, as the rate is.
  """

  def is_schedule(node: object) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

  nodes = filter(is_schedule, jax.tree.leaves(state, is_leaf=is_schedule))
  step: jax.Array | None = next((node.count for node in nodes), None)
  if step is None:
    raise ValueError('the radius is a function of the step, but the optimiser follows no schedule')
  return step


def radius_by_rate(
  schedule: Schedule, rates: tuple[float, float], radii: tuple[float, float]
) -> Schedule:
  """GSAM's radius by step, linear in the learning rate, from radii[0] at rates[0] to radii[1].

  Rates outside give the nearer radius, in warm-up, where the published code extrapolates.
  It is radii[1] throughout if the rates are not in ascending order, as of a schedule that is flat.
  """
  (low, high), (min_radius, max_radius) = rates, radii

  def radius(step: int | jax.Array) -> jax.Array:
    fraction = (schedule(step) - low) / (high - low) if low < high else jnp.asarray(1.0)
    return min_radius + (max_radius - min_radius) * jnp.clip(fraction, 0, 1)

  return radius


def scale_by_layer(decay: float, params: Tree = None) -> optax.GradientTransformation:
  """Each update times decay^(L + 1 - layer), the layers being those of `params`; see `layers_of`.

  Of stacked layers an update may have the last ones only.
  """

  def scaled(updates: Tree, _: Tree) -> Tree:
    layers, depth = layers_of(updates if params is None else params)

    def scale(name: str, update: jax.Array) -> jax.Array:
      rate = jnp.asarray(decay ** (depth + 1.0 - layers[name]), update.dtype)
      if rate.ndim:
        rate = rate[-len(update) :].reshape(-1, *(1,) * (update.ndim - 1))
      return rate * update

    return models.map_named(scale, updates)

  return optax.stateless(scaled)


def scale_by_adafactor(momentum: float, dtype: str | None) -> optax.GradientTransformation:
  """Factored second moments, update clipping, momentum: Adafactor as Scaling ViT used it."""
  return optax.chain(
    optax.scale_by_factored_rms(
      min_dim_size_to_factor=32,  # big_vision's, as the decay rate and its limit
      decay_rate_fn=lambda step, _: jnp.minimum(1 - (step + 1.0) ** -0.8, 0.999),
    ),
    optax.clip_by_block_rms(1.0),
    *([optax.ema(momentum, debias=False, accumulator_dtype=dtype)] if momentum else []),
  )


def scale_by_muon(
  b1: float, b2: float, eps: float, momentum: float, nesterov: bool, dtype: str | None
) -> optax.GradientTransformation:
  """Orthogonalised momentum for the encoder's kernels (Jordan et al. 2024), Adam elsewhere.

  Updates are scaled to Adam's size, 0.2 * sqrt(max(fan in, fan out)) (arXiv 2502.16982), so that
  one learning rate and weight decay serve both.
  """
  from optax import contrib

  def axes(path: str, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
    if not (is_stacked(path) and path.endswith('kernel')):
      return None  # Adam
    if '/attention/out/' in path:
      return contrib.MuonDimensionNumbers((1, 2), (3,))  # (L, A, D/A, D)
    return contrib.MuonDimensionNumbers((1,), tuple(range(2, leaf.ndim)))  # (L, D, M or A, D/A)

  muon = contrib.muon(
    learning_rate=1.0,
    beta=momentum,
    eps=eps,
    mu_dtype=dtype,
    nesterov=nesterov,
    adam_b1=b1,
    adam_b2=b2,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=lambda params: models.map_named(axes, params),
  )
  return optax.chain(muon, optax.scale(-1.0))  # it descends; the chain's own rate does that


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx` applied to every layer by itself, where it looks at a whole array.

  The encoder's parameters are stacked on a leading axis; a norm over such an array, or a factoring
  along it, would mix the layers. Other stacks, as a decoder's, have another depth and are taken
  whole.
  """

  def over_layers(function: Callable[..., Tree], tree: Tree, *others: Tree) -> Tree:
    # A model without such an encoder has nothing to map over.
    return (jax.vmap(function) if jax.tree.leaves(tree) else function)(tree, *others)

  stacked = optax.GradientTransformation(
    lambda params: over_layers(tx.init, params),
    lambda updates, state, params=None: over_layers(tx.update, updates, state, params),
  )

  def groups(params: Tree) -> Tree:
    return models.map_named(lambda path, _: 'stacked' if in_encoder(path) else 'single', params)

  return optax.partition({'stacked': stacked, 'single': tx}, groups)


def is_kernel(params: Tree) -> Tree:
  """A tree of booleans: the leaves that weight decay applies to."""
  return models.map_named(lambda path, _: path.endswith('kernel'), params)


def is_stacked(path: str) -> bool:
  """Whether the parameter of that name carries the layers on its first axis."""
  return '/blocks/' in path


def in_encoder(path: str) -> bool:
  """Whether the parameter of that name carries the layers of the encoder on its first axis."""
  return path.startswith('encoder/blocks/')
