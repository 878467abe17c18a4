"""Loss and accuracy over a split: every image once, sums crossing the batches.

N images, K classes that are scored, S classes of the data, M of the model.
"""

import collections
import functools
import heapq
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, metrics, objective
from vit_jax.data import imagenet, pipeline
from vit_jax.data.pipeline import DataError
from vit_jax.evaluate import inputs, labels

Array = jax.Array

BINS = 15  # of the calibration error
TOP = 5
LARGEST_CONFUSION = 4096  # classes, beyond which only the most frequent confusions are given
LARGEST_SCORES = 2**27  # numbers held for the average precision
CONFUSED = 10  # pairs of classes that are told
MISTAKES = 12  # images that are told
NOTHING = 'nothing to evaluate: not one of the images can be read, or has a label'


def make_step(
  apply: Callable[..., Any], *, mean: Sequence[float], std: Sequence[float], loss: str = 'softmax'
) -> Callable[[Any, objective.Batch], objective.Sums]:
  """step(params, batch) -> `objective.measure`'s sums, without dropout or label smoothing."""

  def step(params: Any, batch: objective.Batch) -> objective.Sums:
    logits, _ = apply({'params': params}, objective.normalize(batch['image'], mean, std))
    return objective.measure(logits, batch, loss=loss)

  return step


def over(
  step: Callable[[Any, objective.Batch], objective.Sums],
  params: Any,
  batches: Iterable[objective.Batch],
) -> dict[str, float]:
  """'loss', 'accuracy' and the 'count' of images they are means over.

  Raises:
    DataError: if that is none.
  """
  total = {'loss': 0.0, 'correct': 0.0, 'count': 0.0}
  running: list[objective.Sums] = []

  def add(sums: objective.Sums) -> None:
    for name, value in jax.device_get(sums).items():
      total[name] += float(value)

  for batch in batches:
    running.append(step(params, batch))
    if len(running) > 2:  # the host stays that far ahead of the device
      add(running.pop(0))
  for sums in running:
    add(sums)
  if not total['count']:
    raise DataError(NOTHING)
  return metrics.means(total) | {'count': total['count']}


def measure(
  logits: Array, given: Array, mask: Array, *, scores: str
) -> dict[str, dict[str, Array]]:
  """What a batch adds to the measures of a split, and its predictions.

  An image without a label adds nothing. Where images have several labels, a prediction is right
  if it is one of them. The loss is then, of a softmax, the cross-entropy to equal shares for all
  labels, and of a sigmoid the sum over classes; and a sigmoid predicts every class that it gives
  over one half, otherwise the likeliest class is the one prediction.

  Args:
    logits: (N, K).
    given: labels as of `objective`.
    mask: (N,) 1 for images that count.
    scores: 'softmax' or 'sigmoid'.

  Returns:
    'sums', over the images that count: () 'loss', 'correct', 'top' (right among the first TOP),
    'count'; (K,) 'hits', 'predicted', 'labelled'; (BINS, 3) 'bins', of images, probability of the
    likeliest class, and right ones.
    'rows': (N,) 'label', of several the first, 'guess', its probability as 'confidence', and
    'right', each -1 where it does not count; of several labels and a sigmoid (N, K) 'logits' and
    'targets' too.
  """
  several = objective.several(given)
  count = logits.shape[-1]
  y = objective.targets(given, count)  # (N, K) of 0 and 1
  counts = ((mask > 0) & (y.max(-1) > 0)).astype(jnp.float32)  # (N,)
  shares = y / jnp.maximum(y.sum(-1, keepdims=True), 1) if scores == 'softmax' else y
  losses = objective.LOSSES[scores](logits, shares)  # (N,)
  _, ranked = jax.lax.top_k(logits, min(TOP, count))  # (N, TOP)
  right = jnp.take_along_axis(y, ranked, 1)  # (N, TOP)
  confidence = getattr(jax.nn, scores)(logits).max(-1)  # (N,)
  predicted = jax.nn.one_hot(ranked[:, 0], count)
  if several and scores == 'sigmoid':
    predicted = (logits > 0).astype(jnp.float32)
  # A bin is open below and closed above (Guo et al., arXiv 1706.04599)
  bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
  parts = jnp.stack([jnp.ones_like(confidence), confidence, right[:, 0]], 1)  # (N, 3)
  sums = {
    'loss': jnp.where(counts > 0, losses, 0).sum(),
    'correct': (counts * right[:, 0]).sum(),
    'top': (counts * right.max(-1)).sum(),
    'count': counts.sum(),
    'hits': (counts[:, None] * predicted * y).sum(0),
    'predicted': (counts[:, None] * predicted).sum(0),
    'labelled': (counts[:, None] * y).sum(0),
    'bins': jax.ops.segment_sum(jnp.where(counts[:, None] > 0, parts, 0), bins, BINS),
  }
  rows = {'label': y.argmax(-1), 'guess': ranked[:, 0]}
  rows |= {'confidence': confidence, 'right': right[:, 0]}
  rows = {name: jnp.where(counts > 0, values, -1) for name, values in rows.items()}
  if several and scores == 'sigmoid':
    rows |= {'logits': logits, 'targets': y}
  return {'sums': sums, 'rows': rows}


class Tally:
  """Sums over a split.

  Args:
    names: (K,) of the classes.

  Attributes:
    sums: of `measure`, in float64.
    confusion: (K, K) how often each class (rows) was taken for each; None for too many classes.
    pairs: {(class, guess): how often} of those that differ.
    worst: a heap of (confidence, -index, class, guess) of the most confident mistakes.
    scores, targets: of images with several labels, as far as they are held.
    several: whether images have several labels.
  """

  def __init__(self, names: Sequence[str], *, several: bool):
    self.names, self.several = names, several
    self.sums: dict[str, Any] = {}
    small = len(names) <= LARGEST_CONFUSION and not several
    self.confusion = np.zeros((len(names),) * 2, np.int64) if small else None
    self.pairs: collections.Counter[tuple[int, int]] = collections.Counter()
    self.worst: list[tuple[float, int, int, int]] = []
    self.scores: list[np.ndarray] = []
    self.targets: list[np.ndarray] = []

  def add(self, batch: dict[str, dict[str, np.ndarray]], indices: np.ndarray) -> None:
    """Takes what `measure` gives for a batch, and the (N,) indices of its images in the split."""
    for name, value in batch['sums'].items():
      self.sums[name] = self.sums.get(name, 0) + np.asarray(value, np.float64)
    rows = batch['rows']
    counts = rows['label'] >= 0
    label, guess = rows['label'][counts], rows['guess'][counts]
    if not self.several:
      self.pairs.update(zip(label[label != guess].tolist(), guess[label != guess].tolist()))
    if self.confusion is not None:
      np.add.at(self.confusion, (label, guess), 1)
    held = sum(map(len, self.scores)) * len(self.names)
    if 'logits' in rows and held < LARGEST_SCORES:
      self.scores.append(rows['logits'][counts])
      self.targets.append(rows['targets'][counts])
    self.add_mistakes(rows, indices)

  def add_mistakes(self, rows: dict[str, np.ndarray], indices: np.ndarray) -> None:
    """Keeps the most confident `MISTAKES`; of equal ones the first in the split."""
    for at in np.flatnonzero((rows['label'] >= 0) & (rows['right'] == 0)):
      label, guess = int(rows['label'][at]), int(rows['guess'][at])
      heapq.heappush(self.worst, (float(rows['confidence'][at]), -int(indices[at]), label, guess))
      if len(self.worst) > MISTAKES:
        heapq.heappop(self.worst)

  def result(self) -> dict[str, Any]:
    """The measures, see `of_model`.

    Raises:
      DataError: if no image counted.
    """
    sums = self.sums
    count = int(sums['count']) if sums else 0
    if not count:
      raise DataError(NOTHING)
    found = {
      'count': count,
      'accuracy': float(sums['correct'] / count),
      f'top{min(TOP, len(self.names))}': float(sums['top'] / count),
      'loss': float(sums['loss'] / count),
      **calibration(sums['bins']),
      'classes': [
        {
          'name': name,
          'count': int(labelled),
          'precision': hits / predicted if predicted else None,
          'recall': hits / labelled if labelled else None,
        }
        for name, hits, predicted, labelled in zip(
          self.names, *(sums[key].tolist() for key in ('hits', 'predicted', 'labelled'))
        )
      ],
      'confused': [
        {'label': self.names[label], 'guess': self.names[guess], 'count': times}
        for (label, guess), times in self.pairs.most_common(CONFUSED)
      ],
      'mistakes': [
        {
          'index': -place,
          'label': self.names[label],
          'guess': self.names[guess],
          'confidence': confidence,
        }
        for confidence, place, label, guess in sorted(self.worst, reverse=True)
      ],
      'confusion': None if self.confusion is None else self.confusion.tolist(),
    }
    return found | ({'mean_average_precision': self.average_precision()} if self.scores else {})

  def average_precision(self) -> float | None:
    """The mean over classes that have images; None where not all scores were held."""
    from sklearn.metrics import average_precision_score

    scores, targets = np.concatenate(self.scores), np.concatenate(self.targets)
    if len(scores) < self.sums['count']:
      return None
    present = targets.any(0)
    return float(average_precision_score(targets[:, present], scores[:, present], average='macro'))


def calibration(bins: np.ndarray) -> dict[str, Any]:
  """The expected calibration error (Guo et al., arXiv 1706.04599) and what it is made of.

  Args:
    bins: (BINS, 3) sums of images, probability of the likeliest class, and right ones.
  """
  total = bins[:, 0].sum()
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


def of_model(
  found: bundle.Bundle,
  split: inputs.Split,
  *,
  label_map: str | os.PathLike[str] = '',
  preprocess: str = '',
  batch_size: int = inputs.BATCH,
  say: Callable[[str], object] = pipeline.tell,
) -> dict[str, Any]:
  """Every measure of a model on a split, all over the same images.

  Args:
    found: the model, of `vit_jax.load` or `bundle.read`.
    split: of `inputs.opened`.
    label_map: see `labels.match`.
    preprocess: another line of transforms than the model's; '' for its own.
    batch_size: images at a time on each device.
    say: takes a line for each image that cannot be read.

  Returns:
    'source', 'split'; 'matched', how the classes were; 'count' of images scored, 'unlabelled' and
    'bad_images' of those that were not; 'accuracy', 'top5' (or fewer, if there are fewer classes),
    'loss'; 'calibration_error' and its 'calibration', a dict for each bin; 'classes', a dict of
    'name', 'count', 'precision' and 'recall' for each, None where that is 0 / 0; 'confusion', K
    lists of K counts, a row for each true class, and 'confused', its largest entries off the
    diagonal; 'mistakes', the `MISTAKES` most confident ones, a dict of 'image', what messages call
    it, its 'index' in the split, 'label', of several the first, 'guess' and 'confidence' for each.
    Of images with several labels there is no confusion (see `measure`), and where the model has
    sigmoid scores, 'mean_average_precision'.

  Raises:
    DataError, ValueError: if the model has no head or other classes, or no image can be scored.
  """
  if not found.classes:
    raise ValueError(f'{found.name} has no head here: knn, fewshot and linear measure its features')
  matched = labels.match(
    split.source.classes,
    found.classes,
    used=imagenet.used(split.name),
    label_map=label_map,
  )
  ready = inputs.preprocess_of(found, split, preprocess)
  several = np.ndim(pipeline.unlabelled(split.source)) > 0
  tally = Tally(matched.names, several=several)
  step = functools.partial(
    measured,
    columns=matched.columns,
    places=np.append(matched.places, -1),
    model=found.model,
    mean=tuple(ready.mean),
    std=tuple(ready.std),
    scores=found.scores,
  )
  with inputs.results(step, found.params, split, ready, batch_size=batch_size, say=say) as results:
    for indices, batch in results.batches:
      tally.add(batch, indices)
    unreadable = results.unreadable.count
  values = tally.result()
  for mistake in values['mistakes']:
    mistake['image'] = split.source.describe(mistake['index'])
  left_out = {
    'unlabelled': len(split.source) - unreadable - values['count'],
    'bad_images': unreadable,
  }
  told = {'source': split.name, 'split': split.split, 'matched': matched.how}
  return told | values | left_out


@functools.partial(jax.jit, static_argnames=('model', 'mean', 'std', 'scores'))
def measured(
  params: Any,
  batch: objective.Batch,
  columns: Array,
  places: Array,
  *,
  model: Any,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  scores: str,
) -> dict[str, dict[str, Array]]:
  """`measure` of a batch.

  Args:
    params, model, scores: of a bundle.
    batch: of `pipeline.evaluation_batches`.
    columns: (K,) the model's classes that are scored.
    places: (S + 1,) of the data's classes in `columns`; the last, which label -1 finds, is -1.
    mean, std: of the pixels.
  """
  logits, _ = bundle.forward(model, params, batch['image'], mean=mean, std=std)
  logits = logits[:, columns].astype(jnp.float32)  # (N, M) -> (N, K)
  return measure(logits, places[batch['label']], batch['mask'], scores=scores)


def of_run(
  path: str | os.PathLike[str],
  *,
  on: str = '',
  split: str = '',
  label_map: str | os.PathLike[str] = '',
  preprocess: str = '',
  batch_size: int = inputs.BATCH,
) -> dict[str, Any]:
  """`of_model` of a run, or of any checkpoint on a data set.

  Args:
    path: of the run or checkpoint.
    on, split: see `inputs.opened`.
    label_map, preprocess, batch_size: see `of_model`.

  Raises:
    FileNotFoundError, ValueError: if there is no such model or data, or they do not fit.
  """
  found = bundle.read(path)
  data = inputs.opened(path, on=on, split=split)
  return of_model(found, data, label_map=label_map, preprocess=preprocess, batch_size=batch_size)


def lines(found: dict[str, Any]) -> list[str]:
  """What `of_model` gives, as text."""
  top = next(name for name in found if name.startswith('top'))
  shown = (
    f'accuracy {found["accuracy"]:.2%}  top-{top[3:]} {found[top]:.2%}  loss {found["loss"]:.4f}  '
    f'calibration error {found["calibration_error"]:.2%}'
  )
  if found.get('mean_average_precision') is not None:
    shown += f'  mean average precision {found["mean_average_precision"]:.2%}'
  rows = by_recall(found['classes'])
  worst = [row for row in rows if row['count'] or row['precision'] is not None][:CONFUSED]
  width = max(len('class'), *(len(row['name'][:40]) for row in worst))
  told = [shown, f'classes: {found["matched"]}', '']
  told.append(f'{"class":{width}}  images  precision  recall')
  for row in worst:
    precision, recall = (
      f'{row[key]:.1%}' if row[key] is not None else '-' for key in ('precision', 'recall')
    )
    told.append(f'{row["name"][:40]:{width}}  {row["count"]:6}  {precision:>9}  {recall:>6}')
  if rest := unlisted(rows, worst):
    told.append(rest)
  pairs = [f'{p["label"]} as {p["guess"]} {p["count"]}' for p in found['confused'][:5]]
  return told + ([f'most confused: {", ".join(pairs)}'] if pairs else [])


def by_recall(classes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """The lowest first, classes without images last."""
  return sorted(classes, key=lambda row: math.inf if row['recall'] is None else row['recall'])


def unlisted(classes: Sequence[dict[str, Any]], listed: Sequence[dict[str, Any]]) -> str:
  """What is told of the classes that a list `by_recall` leaves out; '' if there are none."""
  without = sum(not row['count'] for row in classes) - sum(not row['count'] for row in listed)
  others = len(classes) - len(listed) - without
  parts = [f'{others:,} with no lower recall'] * bool(others)
  parts += [f'{without:,} without images'] * bool(without)
  return f'... and {len(classes) - len(listed):,} more: {", ".join(parts)}' if parts else ''
