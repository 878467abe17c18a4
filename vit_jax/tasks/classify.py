"""Classification: an image's class, or classes of a multi-label set, from its pixels.

N images, K classes that are scored, S classes of the data, M of the model, L labels of an image.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, models
from vit_jax.sources.classes import UNKNOWN, are_known
from vit_jax.sources.columns import Columns
from vit_jax.tasks import (
  Array,
  Batch,
  Fixed,
  Loss,
  Measure,
  Named,
  Params,
  Rows,
  Separable,
  Start,
  Sums,
  Task,
  losses,
  means,
  measures,
)
from vit_jax.text import nearest, quantity

RANKS = {'accuracy': 1, 'loss': -1}
BINS = 15  # of the calibration error, as Guo et al. (arXiv 1706.04599) have it
TOP = 5  # ImageNet's top-5
# Classes of a confusion matrix: 2^24 numbers, 34 MB of JSON at least; with more there is none.
LARGEST_CONFUSION = 4096
CONFUSED = 10  # pairs of classes that are listed: to be read at a glance
MISTAKES = 12  # images that are listed, and shown in the report
NO_CLASS = 'none'  # what the label of a multi-label image without one is called


def classify(
  model: models.Model,
  *,
  classes: Sequence[str],
  preprocess: bundle.Preprocess,
  columns: Columns | None = None,
  evaluation: Columns | None = None,
  loss: str | losses.Loss = 'softmax',
  scores: str = 'softmax',
  smoothing: float = 0.0,
  mixup: float = 0.0,
  cutmix: float = 0.0,
  class_weights: Sequence[float] = (),
  gamma: float = 2.0,
  output: str = 'logits',
  name: str = '',
  about: Sequence[str] = (),
  start: Callable[[], Start] | None = None,
) -> Task:
  """The task of a model that gives (N, K) logits for (N, H, W, C) images.

  Args:
    model: a flax module, (images) -> logits and intermediates.
    classes: the names of what is scored.
    preprocess: of the images that it takes.
    columns, evaluation: 'image' and 'label', see `sources.columns.labelled_images`; None where no
      images are read by this task.
    loss, smoothing, mixup, cutmix, class_weights, gamma: see `make_loss`. An evaluation's loss
      has none of them.
    scores: what logits become, 'softmax' or 'sigmoid': the loss that is measured is the
      cross-entropy of these, whatever the model was trained with.
    output: see `make_loss`.
    name: of the variant that the model was built from.
    about: lines on the data, that are printed when training starts.
    start: gives parameters to start with.
  """
  stats: dict[str, Any] = dict(mean=tuple(preprocess.mean), std=tuple(preprocess.std))
  options: dict[str, Any] = dict(mixup=mixup, cutmix=cutmix, smoothing=smoothing)
  options |= dict(class_weights=class_weights, gamma=gamma)

  batch_loss = make_loss(model.apply, loss=loss, output=output, **options, **stats)
  separable = models.is_separable(model) and isinstance(loss, str) and not (mixup or cutmix)

  def init(key: Array) -> Params:
    return model.init(key, jnp.zeros((1, *preprocess.shape)))['params']

  def deliver(params: Params) -> bundle.Bundle:
    return bundle.Bundle(model, params, tuple(classes), preprocess, name, scores=scores)

  return Task(
    columns=columns or {},
    evaluation=evaluation or {},
    init=init,
    loss=Separable(batch_loss) if separable else batch_loss,
    measure=make_measure(model, scores=scores, **stats),
    read=read,
    ranks=RANKS,
    more_ranks=more_ranks(
      len(classes),
      multi_label=bool(evaluation and evaluation['label'].shape),
      sigmoid=scores == 'sigmoid',
    ),
    deliver=deliver,
    details=functools.partial(details, names=tuple(classes), scores=scores),
    start=start,
    about=(quantity(len(classes), 'class'), *about),
    model=model,
  )


def more_ranks(count: int, *, multi_label: bool, sigmoid: bool) -> dict[str, int]:
  """`Task.more_ranks` of so many classes: the measures of `details` that there are."""
  names = ['balanced_accuracy', 'f1_macro', 'f1_micro', 'f1_weighted']
  names += [f'top{TOP}'] * (count > TOP)
  if multi_label and sigmoid:
    names += ['mean_average_precision', 'auroc']
  elif not multi_label and count <= LARGEST_CONFUSION:
    names += ['auroc']
  return dict.fromkeys(names, 1) | {'calibration_error': -1}


# Training


def make_loss(
  apply: Callable[..., Any],
  *,
  mean: Sequence[float],
  std: Sequence[float],
  loss: str | losses.Loss = 'softmax',
  smoothing: float = 0.0,
  mixup: float = 0.0,
  cutmix: float = 0.0,
  class_weights: Sequence[float] = (),
  gamma: float = 2.0,
  output: str = 'logits',
) -> Loss:
  """A task's loss: normalise, mix, apply, compare with targets.

  Its sums are `losses.training_sums`. It names 'images' (N, H, W, C) as the model saw them,
  'targets' (N, K), the model's intermediates and 'logits' (N, K).

  Args:
    apply: a model's; the key goes to its dropout, and one folded from it to the mixing.
    mean, std: of `bundle.normalize`.
    loss: of `losses.LOSSES`, or a function (logits (N, K), targets (N, K)) -> (N,).
    smoothing: label smoothing, in [0, 1).
    mixup, cutmix: a of the Beta(a, a) that a batch's images are mixed by; 0: not. 'correct' then
      asks for the class with the larger weight.
    class_weights: K numbers, or () for none, that multiply a class's terms: with a softmax all that
      it has, with a sigmoid those of its positives. The sum is over images, and its mean by their
      number, not by their weights.
    gamma: the focusing power of the focal losses.
    output: what is trained: 'logits', or an intermediate (N, K) such as 'head'.
  """
  if isinstance(loss, str) and loss not in losses.LOSSES:
    raise ValueError(f'unknown loss {loss!r}{nearest(loss, list(losses.LOSSES))}')
  if min(mixup, cutmix) < 0:
    raise ValueError(f'mixup {mixup} and cutmix {cutmix} must be at least 0')
  loss = losses.weighted(loss, class_weights=class_weights, gamma=gamma)

  def batch_loss(
    params: Params, batch: Batch, key: Array, fixed: Fixed
  ) -> tuple[Array, Sums, Named]:
    batch = losses.zero_padding(batch)
    images = bundle.normalize(batch['image'], mean, std)
    if mixup or cutmix:
      size = images.shape[1:3]
      mixing = jax.random.fold_in(key, losses.MIXING)
      weights = losses.pixel_weights(mixing, size, mixup=mixup, cutmix=cutmix)
      images = losses.mixed(images, weights[None, :, :, None], batch['mask'])
    logits, out = apply({'params': params}, images, train=True, rngs={'dropout': key})
    logits = logits if output == 'logits' else out[output]
    if mixup or cutmix:
      soft = losses.targets(batch['label'], logits.shape[-1])
      batch = {**batch, 'label': losses.mixed(soft, weights.mean(), batch['mask'])}
    sums = losses.training_sums(logits, batch, loss=loss, smoothing=smoothing)
    return sums['loss'], sums, {'images': images, **out, 'logits': logits}

  return batch_loss


# Evaluation


@functools.lru_cache(maxsize=32)  # one function for one model, by which JAX finds what it compiled
def make_measure(
  model: models.Model, *, mean: tuple[float, ...], std: tuple[float, ...], scores: str
) -> Measure:
  """A task's measure: `measure` of the model's logits, without dropout or label smoothing.

  Where the data's classes are not the model's, `fixed` says which they are: 'columns' (K,), the
  model's classes that are scored, and 'targets' (S,), the index in `columns` of each of the data's
  classes, -1 for one that is not scored. Rows have the 'features' (N, F) of images of one label,
  what the head reads, too.
  """

  def batch_measure(params: Params, batch: Batch, fixed: Fixed) -> tuple[Sums, Rows]:
    logits, out = bundle.forward(model, params, batch['image'], mean=mean, std=std)
    labels = batch['label']
    if 'columns' in fixed:
      logits, labels = logits[:, fixed['columns']], rematched(labels, fixed['targets'])  # (N, K)
    sums, rows = measure(logits.astype(jnp.float32), labels, batch['mask'], scores=scores)
    features = out.get('pre_logits')
    if features is not None and features.ndim == 2 and labels.ndim == 1:
      rows = rows | {'features': features.astype(jnp.float32)}
    return sums, rows

  return batch_measure


def rematched(labels: Array, targets: Array) -> Array:
  """Labels of the data's classes as those of scored ones, by `targets` (S,).

  An image all of whose classes are not scored is not scored either: it becomes unknown.
  """
  matched = jnp.where(labels < 0, labels, targets[labels])
  if labels.ndim == 1:
    return matched
  is_outside = (labels.max(-1) >= 0) & (matched.max(-1) < 0)  # (N,)
  return jnp.where(is_outside[:, None], UNKNOWN, matched)


def measure(logits: Array, labels: Array, mask: Array, *, scores: str) -> tuple[Sums, Rows]:
  """What a batch adds to the measures of a split, and its predictions.

  An image whose classes are not known adds nothing. Of multi-label images, a prediction is right if
  it is one of the labels. The loss is then, of a softmax, the cross-entropy to equal parts for all
  labels, and of a sigmoid the sum over classes; and a sigmoid predicts every class that it gives
  over one half, otherwise the likeliest class is the one prediction. An image of no class is a
  negative of each: a sigmoid is right about it where it predicts none. A softmax always predicts
  one, so that such an image adds nothing, as in ImageNet ReaL.

  Args:
    logits: (N, K).
    labels: as in `losses`.
    mask: (N,) 1 for images that count.
    scores: 'softmax' or 'sigmoid'.

  Returns:
    Sums over the images that count: () 'loss', 'correct', 'top' (right among the first TOP),
    'count'; (K,) 'hits', 'predicted', 'labelled'; (BINS, 3) 'bins', of images, probability of the
    likeliest class, and right ones.
    Rows: (N,) 'label', the first of a multi-label image and -1 of no class, 'guess', the
    likeliest class, its probability as 'confidence', 'right' and 'loss', each -1 where it does
    not count; of multi-label images how many as 'labels', and with a sigmoid (N, K) 'logits' and
    'targets'. Of images of one label (N, K) 'logits', unless there are more than
    LARGEST_CONFUSION classes.
  """
  multi_label = losses.is_multi_label(labels)
  count = logits.shape[-1]
  y = losses.targets(labels, count)  # (N, K) of 0 and 1
  is_positive = y.max(-1) > 0  # (N,) of some class
  counts = (mask > 0) & are_known(labels)  # (N,)
  counts = (counts if scores == 'sigmoid' else counts & is_positive).astype(jnp.float32)
  goal = y / jnp.maximum(y.sum(-1, keepdims=True), 1) if scores == 'softmax' else y
  loss = losses.LOSSES[scores](logits, goal)  # (N,)
  _, ranked = jax.lax.top_k(logits, min(TOP, count))  # (N, TOP)
  hits = jnp.take_along_axis(y, ranked, 1)  # (N, TOP)
  right = jnp.where(is_positive[:, None], hits, logits.max(-1, keepdims=True) <= 0)  # (N, TOP)
  confidence = getattr(jax.nn, scores)(logits).max(-1)  # (N,)
  predicted = jax.nn.one_hot(ranked[:, 0], count)
  if multi_label and scores == 'sigmoid':
    predicted = (logits > 0).astype(jnp.float32)
  sums = {
    'loss': jnp.where(counts > 0, loss, 0).sum(),
    'correct': (counts * right[:, 0]).sum(),
    'top': (counts * right.max(-1)).sum(),
    'count': counts.sum(),
    'hits': (counts[:, None] * predicted * y).sum(0),
    'predicted': (counts[:, None] * predicted).sum(0),
    'labelled': (counts[:, None] * y).sum(0),
    'bins': calibration_bins(confidence, hits[:, 0], counts),
  }
  rows = {'label': jnp.where(is_positive, y.argmax(-1), -1), 'guess': ranked[:, 0]}
  rows |= {'confidence': confidence, 'right': right[:, 0], 'loss': loss}
  rows |= {'labels': y.sum(-1)} if multi_label else {}
  rows = {name: jnp.where(counts > 0, values, -1) for name, values in rows.items()}
  if multi_label and scores == 'sigmoid':
    rows |= {'logits': logits, 'targets': y}
  elif labels.ndim == 1 and count <= LARGEST_CONFUSION:
    rows |= {'logits': logits}
  return sums, rows


def calibration_bins(confidence: Array, right: Array, counts: Array) -> Array:
  """(BINS, 3): images that count, their confidence and how many are right, each by confidence.

  A bin is open below and closed above (Guo et al., arXiv 1706.04599).
  """
  bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
  parts = jnp.stack([jnp.ones_like(confidence), confidence, right], 1)  # (N, 3)
  return jax.ops.segment_sum(jnp.where(counts[:, None] > 0, parts, 0), bins, BINS)


def read(sums: Mapping[str, Any]) -> dict[str, float]:
  """'loss', 'accuracy' and 'count'; of evaluations also 'top5' and 'calibration_error'.

  Of TOP classes or fewer, all of which are among the first TOP, there is no 'top5'. Other sums ()
  become means.
  """
  values = means({name: value for name, value in sums.items() if np.ndim(value) == 0})
  values['accuracy'] = values.pop('correct')
  if 'bins' in sums:
    top = values.pop('top')
    values |= {f'top{TOP}': top} if len(sums['labelled']) > TOP else {}
    values['calibration_error'] = calibration(sums['bins'])['calibration_error']
  return {name: values[name] for name in ('loss', 'accuracy')} | values


def details(
  sums: Mapping[str, Any], rows: Mapping[str, np.ndarray], *, names: Sequence[str], scores: str
) -> dict[str, Any]:
  """The details of an evaluation, from `measure` of a split: calibration, classes, mistakes.

  Returns:
    What `measures.from_sums` gives, and `measures.from_ranks` where `measure` has logits;
    'matched', how the classes of data and model were; 'calibration', a dict for each bin;
    'classes', a dict of 'name', 'count', 'precision', 'recall' and 'f1' for each, None where
    that is 0 / 0; 'confusion', K lists of K counts, a row for each true class (None for more than
    LARGEST_CONFUSION), and 'confused', its largest entries off the diagonal; 'mistakes', the most
    confident MISTAKES, of equal ones the first in the split: 'index' in the split, 'label', the
    first of a multi-label image, 'guess', the prediction, and 'confidence'. Of multi-label images
    there is no confusion.
  """
  counts, multi_label = rows['right'] >= 0, 'labels' in rows
  wrong = np.flatnonzero(counts & (rows['right'] == 0))
  most_confident = wrong[np.argsort(-rows['confidence'][wrong], kind='stable')][:MISTAKES]
  values = {
    'matched': 'the same names',
    'calibration': calibration(sums['bins'])['calibration'],
    'classes': by_class(sums, names),
    'confused': [],
    'mistakes': [
      {
        'index': int(index),
        'label': names[rows['label'][index]] if rows['label'][index] >= 0 else NO_CLASS,
        'guess': names[rows['guess'][index]],
        'confidence': float(rows['confidence'][index]),
      }
      for index in most_confident
    ],
    'confusion': None,
  }
  if not multi_label:
    values |= confusion(rows['label'][counts], rows['guess'][counts], names)
  values |= measures.from_sums(sums, multi_label=multi_label)
  if 'logits' in rows:
    values |= measures.from_ranks(rows, counts, sigmoid=scores == 'sigmoid')
  return values


def confusion(label: np.ndarray, guess: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
  """'confusion' and 'confused' of `details`, from the label and prediction of each image."""
  wrong = label != guess
  pairs = Counter(zip(label[wrong].tolist(), guess[wrong].tolist()))
  matrix = None
  if len(names) <= LARGEST_CONFUSION:
    flat = np.bincount(label * len(names) + guess, minlength=len(names) ** 2)
    matrix = flat.reshape(len(names), -1).tolist()
  return {
    'confusion': matrix,
    'confused': [
      {'label': names[label], 'guess': names[guess], 'count': times}
      for (label, guess), times in pairs.most_common(CONFUSED)
    ],
  }


def by_class(sums: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
  """'classes' of `details`."""
  parts = (np.asarray(sums[key]).tolist() for key in ('hits', 'predicted', 'labelled'))
  return [
    {
      'name': name,
      'count': int(labelled),
      'precision': hits / predicted if predicted else None,
      'recall': hits / labelled if labelled else None,
      'f1': 2 * hits / (predicted + labelled) if predicted + labelled else None,
    }
    for name, hits, predicted, labelled in zip(names, *parts)
  ]


def calibration(bins: np.ndarray) -> dict[str, Any]:
  """The expected calibration error (Guo et al., arXiv 1706.04599), and its 'bins' of `measure`."""
  bins = np.asarray(bins)
  total = max(bins[:, 0].sum(), 1)
  error = float(np.abs(bins[:, 1] - bins[:, 2]).sum() / total)
  rows = [
    {
      'from': index / BINS,
      'to': (index + 1) / BINS,
      'count': int(count),
      'confidence': confidence / count if count else None,
      'accuracy': right / count if count else None,
    }
    for index, (count, confidence, right) in enumerate(bins.tolist())
  ]
  return {'calibration_error': error, 'calibration': rows}
