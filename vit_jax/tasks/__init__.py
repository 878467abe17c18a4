"""What is learned from what: the Task, beyond which step, loop and pipeline know nothing.

B batch, N images of it that count.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import models, optim
from vit_jax.bundle import Bundle
from vit_jax.models import Params as Params
from vit_jax.models.decoder import TrainedDecoder
from vit_jax.sources.columns import Column as Column  # "as": these are names of this module too
from vit_jax.sources.columns import Columns as Columns

Array = jax.Array
Batch = Mapping[str, Array]  # the task's columns, (B, *shape) each, and 'mask' (B,) of 0 and 1
Sums = dict[str, Array]  # of examples that count; they add up over batches, hosts, micro-batches
Rows = dict[str, Array]  # (B, ...) of each example, in the order of the batch
Fixed = Mapping[str, Any]  # arrays that are read and not trained, nested
Named = Mapping[str, Any]  # arrays on the way to a loss, in the order of computation
Loss = Callable[[Params, Batch, Array, Fixed], tuple[Array, Sums, Named]]
Measure = Callable[[Params, Batch, Fixed], tuple[Sums, Rows]]
Average = Callable[[Params, Params, Sums, Array], Params]
KEYS = ('ema', 'step')  # of `Fixed`, beside a task's own
WIDE = ('logits', 'targets', 'features')  # rows of many numbers for each example
LAST_STEP = optim.MAX_STEPS - 1  # of no run: what follows the steps has come to its end


@dataclasses.dataclass(frozen=True)
class Separable:
  """A loss that is a sum over examples, as its sums are: none depends on another or on the key.

  Devices then add its gradient once in an update, not for every micro-batch of `accumulate`.
  """

  loss: Loss

  def __call__(
    self, params: Params, batch: Batch, key: Array, fixed: Fixed
  ) -> tuple[Array, Sums, Named]:
    return self.loss(params, batch, key, fixed)


@dataclasses.dataclass(frozen=True)
class Start:
  """Parameters that training starts with, in the place of initialised ones.

  Fields:
    params: by name as in what `Task.init` gives, all of them or some; on the host.
    report: what was done to the checkpoint's arrays: its `str` is for a user.
    decoder: that the checkpoint has beside an encoder; None where it has none.
  """

  params: Params
  report: object = ''
  decoder: TrainedDecoder | None = None


@dataclasses.dataclass(frozen=True)
class Task:
  """What is learned from what: plain functions, and what they read.

  `init`, `loss` and `measure` are pure, and traced by JAX; the others run on the host. A wrapper is
  a function that takes a Task and returns one (see `tasks.distil`).

  Fields:
    columns: of a training example; the pipeline fills them, of any name, shape and type.
    evaluation: of an example that is evaluated.
    init: (key) -> initialised parameters; also under `jax.eval_shape`.
    loss: (params, batch, key, fixed) -> (loss, sums, named). The loss () is summed over the
      examples, float32; its gradient is divided by the sum 'count' (), the number of examples. The
      key differs for each step and micro-batch. `fixed` holds what the field below has, and as
      'ema' the averaged parameters, None where none are kept, as 'step' () int32 the updates made
      so far, LAST_STEP in an evaluation. The loss is added to the sums.
      `named` are tensors on the way: the first that is not finite is named to the user; {} names
      none, and what is unread is free. With `accumulate` a loss sees one micro-batch at a time: one
      that compares examples, as a contrastive one, compares those of a micro-batch alone; one
      that does not may be `Separable`.
    measure: (params, batch, fixed) -> (sums, rows) of a batch of `evaluation`, of the examples with
      mask 1 alone. Rows are kept where somebody asks for them.
    read: (sums) -> named numbers of sums over any number of batches, of `loss` or of `measure`, as
      numbers of NumPy; a mean is its sum by 'count', so that batches may differ in size. 'count' is
      always among them, and of an evaluation every name of `ranks`.
    ranks: the numbers of `read` that evaluations can be ranked by, with 1 where more is better and
      -1 where less is; the first is the usual one.
    more_ranks: the same for numbers of `details`, which evaluations measure if one of them ranks.
    deliver: (params on the host) -> the bundle that users get.
    details: (sums, rows on the host) -> what `evaluation.json` has beyond `read`'s numbers. On the
      way through training it is given no rows of WIDE, which would be costly to fetch each time.
    fixed: read by `loss` and `measure`, never updated and never saved: placed on the mesh by the
      rules of `sharding`, an argument of the compiled step and no constant of it. A teacher.
    start: gives parameters to start with; None where all are initialised.
    average: (average, params, sums, step) -> the average that follows the parameters of an update,
      where one is kept; both of what is trained alone, the sums of `loss` over the whole batch, the
      step as above. Something else may live in it, as a running mean of features, under the name
      of a parameter that the loss reads in `fixed['ema']` alone. None: the decay `config.ema`.
    collapse: (numbers of an evaluation) -> a line where features have collapsed, which ends what is
      to be learned; '' elsewhere. Names of the average's numbers begin with 'ema_'.
    about: lines that are printed when training starts.
    model: the network that is trained, whose sizes are printed; None where it is none of ours.
  """

  columns: Columns
  evaluation: Columns
  init: Callable[[Array], Params]
  loss: Loss
  measure: Measure
  read: Callable[[Mapping[str, Any]], dict[str, float]]
  ranks: Mapping[str, int]
  deliver: Callable[[Params], Bundle]
  details: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = lambda *_: {}
  fixed: Fixed = dataclasses.field(default_factory=dict)
  more_ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
  start: Callable[[], Start] | None = None
  average: Average | None = None
  collapse: Callable[[Mapping[str, float]], str] = lambda _: ''
  about: tuple[str, ...] = ()
  model: models.Model | None = None


def abstract_batch(columns: Columns, count: int) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch of so many examples as shapes."""
  shapes = {n: jax.ShapeDtypeStruct((count, *c.shape), c.dtype) for n, c in columns.items()}
  return shapes | {'mask': jax.ShapeDtypeStruct((count,), np.float32)}


def means(sums: Mapping[str, Any]) -> dict[str, float]:
  """Every sum () by 'count', and 'count' itself: what `read` is for most tasks."""
  count = float(sums.get('count', 0))
  values = {name: float(value) / max(count, 1.0) for name, value in sums.items()}
  return values | {'count': count}
