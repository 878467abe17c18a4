"""The training pipeline against the bare loop, tf.data and torch's DataLoader, as JSON.

python benchmarks/data.py [--out FILE] [--rounds 7] [--python-tf PYTHON] [--python-torch PYTHON]
  [--images 20000] [--million] [--train]

Every contender reads the same photo-like JPEGs of 500x375 pixels at quality 90 from the page cache,
crops as Inception does, resizes to 224x224, flips and makes batches of 128 uint8 images:

  loop     simplejpeg decodes all, OpenCV's INTER_LINEAR resizes into a batch allocated once; crops
           are drawn beforehand; no framework. `decode` is its decoding alone.
  ours     vit_jax.pipeline over 'folder:', 'inception_crop | flip', one thread; `ours2`: two
  tf       tf.data, decode_and_crop_jpeg and tf.image.resize, one thread; crops drawn beforehand
  torch    DataLoader in its own process; Pillow decodes, crops and resizes with antialiasing, as
           torchvision's RandomResizedCrop does; `torch_bicubic` as timm's
  burn     one and two threads that decode files in memory, to tell what two cores give now

`tf` and `torch` run in the interpreters given, and are skipped without. Each contender is a process
of its own, and they take turns; a ratio is the median of the rounds' ratios. Rates are images a
CPU-second, of all of a process's threads, but for two threads against one, which is by the clock.
glibc's MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ are raised for all alike: without, Pillow
and OpenCV lose up to half their speed to page faults. About 7 minutes on 2 cores.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

MALLOC = {'MALLOC_MMAP_THRESHOLD_': '268435456', 'MALLOC_TRIM_THRESHOLD_': '1073741824'}
BATCH, SIDE, AREA, RATIO = 128, 224, (0.05, 1.0), (3 / 4, 4 / 3)
LINE = f'inception_crop({SIDE}) | flip'
WANTED = {  # the ratios that are asked for
  'ours / loop': 0.88,
  'ours / tf': 1.1,
  'ours / torch': 2.0,
  'ours / torch_bicubic': 2.0,
  'ours2 / ours': 1.8,
}
CORES = ('ours2 / ours', 'burn2 / burn1')  # by the clock
OTHERS = ('tf', 'torch', 'torch_bicubic')  # that there may not be
LIMIT = 1200.0  # seconds of a worker
Turn = Callable[[int], int]  # reads that many batches: how many images it read

# What reads


def paths(folder: str) -> list[str]:
  return sorted(map(str, pathlib.Path(folder, 'train').rglob('*.jpg')))


def box(height: int, width: int) -> tuple[int, int, int, int]:
  """(top, left, height, width) of an Inception crop."""
  for _ in range(10):
    area = random.uniform(*AREA) * height * width
    ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    if 0 < h <= height and 0 < w <= width:
      return random.randint(0, height - h), random.randint(0, width - w), h, w
  return 0, 0, height, width


def crops(folder: str) -> list[tuple[str, int, int, int, int, bool]]:
  """Draws of a file, a box and whether to flip."""
  files = paths(folder)
  return [(random.choice(files), *box(375, 500), random.random() < 0.5) for _ in range(8192)]


def loop(folder: str) -> Turn:
  import cv2
  import numpy as np
  import simplejpeg

  cv2.setNumThreads(1)
  drawn = itertools.cycle(crops(folder))
  batch, size = np.empty((BATCH, SIDE, SIDE, 3), np.uint8), (SIDE, SIDE)

  def turn(batches: int) -> int:
    for _ in range(batches):
      for row in batch:
        path, y, x, height, width, flips = next(drawn)
        with open(path, 'rb') as file:
          image = simplejpeg.decode_jpeg(file.read())
        crop = image[y : y + height, x : x + width]
        if flips:
          cv2.flip(cv2.resize(crop, size), 1, row)
        else:
          cv2.resize(crop, size, row)
    return batches * BATCH

  return turn


def decode(folder: str) -> Turn:
  import simplejpeg

  files = itertools.cycle(paths(folder))

  def turn(batches: int) -> int:
    for path in itertools.islice(files, batches * BATCH):
      with open(path, 'rb') as file:
        simplejpeg.decode_jpeg(file.read())
    return batches * BATCH

  return turn


def ours(folder: str, *, threads: int = 1) -> Turn:
  from vit_jax import pipeline, sources
  from vit_jax.images import transforms
  from vit_jax.sources.columns import labelled_images

  source = sources.open_source(f'folder:{folder}', 'train')
  counter = itertools.count()

  class Counted:
    """Threads read ahead: by the clock, what counts are images read in a turn, not those taken."""

    def __len__(self) -> int:
      return len(source)

    def __getitem__(self, index: int) -> Any:
      next(counter)
      return source[index]

  def read() -> Iterator[Any]:
    with pipeline.training_batches(
      sources.Source(Counted(), source.classes, source.describe),  # type: ignore[arg-type]
      labelled_images(source, transforms.compose(LINE, (SIDE, SIDE))),
      batch_size=BATCH,
      seed=0,
      reading=pipeline.Reading(threads=threads),
    ) as batches:
      yield from batches

  batches_ = read()

  def turn(batches: int) -> int:
    before = next(counter)
    for _ in range(batches):
      next(batches_)
    return next(counter) - before - 1

  return turn


def ours2(folder: str) -> Turn:
  return ours(folder, threads=2)


def tf(folder: str) -> Turn:
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
  import tensorflow as tf

  tf.config.threading.set_inter_op_parallelism_threads(1)
  tf.config.threading.set_intra_op_parallelism_threads(1)

  def prepared(path: Any, window: Any, flips: Any) -> Any:
    image = tf.io.decode_and_crop_jpeg(tf.io.read_file(path), window, channels=3)
    image = tf.cast(tf.image.resize(image, (SIDE, SIDE)), tf.uint8)
    return tf.cond(flips, lambda: tf.image.flip_left_right(image), lambda: image)

  files, windows, flips = zip(*((path, window, flips) for path, *window, flips in crops(folder)))
  dataset = tf.data.Dataset.from_tensor_slices((list(files), list(windows), list(flips))).repeat()
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  options.autotune.enabled = False
  batches_ = iter(dataset.map(prepared).batch(BATCH).with_options(options).as_numpy_iterator())
  return taking(batches_)


def torch(folder: str, *, resample: str = 'BILINEAR') -> Turn:
  import numpy as np
  import torch
  from PIL import Image

  torch.set_num_threads(1)
  files = paths(folder)

  class Photos(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return len(files)

    def __getitem__(self, index: int) -> Any:
      with Image.open(files[index]) as image_file:
        image = image_file.convert('RGB')
      y, x, height, width = box(image.height, image.width)
      image = image.crop((x, y, x + width, y + height))
      image = image.resize((SIDE, SIDE), Image.Resampling[resample])
      if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

  def batches() -> Iterator[Any]:
    while True:
      yield from torch.utils.data.DataLoader(Photos(), BATCH, shuffle=True, drop_last=True)

  return taking(batches())


def torch_bicubic(folder: str) -> Turn:
  return torch(folder, resample='BICUBIC')


def taking(batches_: Iterator[Any]) -> Turn:
  def turn(batches: int) -> int:
    return sum(len(next(batches_)) for _ in range(batches))

  return turn


def burn(folder: str, *, threads: int) -> Turn:
  from concurrent.futures import ThreadPoolExecutor

  import simplejpeg

  files = [pathlib.Path(file).read_bytes() for file in paths(folder)]
  pool = ThreadPoolExecutor(threads)

  def work(count: int) -> None:
    for data in itertools.islice(itertools.cycle(files), count):
      simplejpeg.decode_jpeg(data)

  def turn(batches: int) -> int:
    list(pool.map(work, [batches * BATCH // threads] * threads))
    return batches * BATCH

  return turn


def burn1(folder: str) -> Turn:
  return burn(folder, threads=1)


def burn2(folder: str) -> Turn:
  return burn(folder, threads=2)


CONTENDERS = {
  made.__name__: made
  for made in (loop, decode, ours, tf, torch, torch_bicubic, ours2, burn1, burn2)
}
PACKAGES = ('simplejpeg', 'opencv-python-headless', 'pillow', 'grain', 'tensorflow',
            'tensorflow-cpu', 'torch', 'numpy')  # fmt: skip


def serve(name: str, folder: str) -> int:
  """A worker: a line of versions, then for each number of batches read a line of what it took."""
  out = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)
  random.seed(0)
  turn = CONTENDERS[name](folder)
  turn(2)
  versions = {}
  for package in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  print(json.dumps({'versions': versions}), file=out)
  for line in sys.stdin:
    settle()
    cpu, wall = time.process_time(), time.perf_counter()
    read = turn(int(line))
    wall = time.perf_counter() - wall
    settle()  # what reads ahead does so for the next turn, as it did for this one
    cpu = time.process_time() - cpu
    answer = {'images': int(line) * BATCH, 'cpu': cpu, 'read': read, 'wall': wall}
    print(json.dumps(answer | {'rss': resident()}), file=out)
  sys.stdout.flush()
  os._exit(0)  # threads that read ahead are not waited for


def settle() -> None:
  """Waits until this process has read ahead as far as it does."""
  before = -1.0
  while time.process_time() - before > 0.01:
    before = time.process_time()
    time.sleep(0.2)


def resident() -> int:
  """Bytes of this process in memory, on Linux."""
  pages = int(pathlib.Path('/proc/self/statm').read_text('utf-8').split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE')


# The photos


def make_photos(folder: pathlib.Path, count: int, classes: int = 8) -> dict[str, float]:
  """JPEGs of 500x375 in class folders below 'train': pieces of two photographs, with sensor noise.

  Returns:
    'count' and 'mean_bytes'. The noise is chosen for 64 kB an image, 2.7 bits a pixel.
  """
  import cv2
  import numpy as np
  import simplejpeg
  from sklearn import datasets

  rng = np.random.default_rng(0)
  photos = datasets.load_sample_images().images  # 427 x 640
  sizes = []
  for index in range(count):
    photo = photos[index % len(photos)]
    scale = rng.uniform(0.9, 1.6)
    large = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    y, x = (rng.integers(room + 1) for room in (large.shape[0] - 375, large.shape[1] - 500))
    piece = large[y : y + 375, x : x + 500].astype(np.float32)
    piece = piece[:, :: rng.choice([-1, 1])] * rng.uniform(0.7, 1.2, 3)
    piece += rng.normal(0, rng.uniform(*NOISE), (375, 500, 1))
    image = np.ascontiguousarray(piece.clip(0, 255).astype(np.uint8))
    data = simplejpeg.encode_jpeg(image, quality=90, colorsubsampling='420')
    for split in ['train'] + ['validation'] * (index < classes):  # else it is taken from train
      file = folder / split / f'class{index % classes}' / f'{index:05d}.jpg'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(data)
    sizes.append(len(data))
  return {'count': count, 'mean_bytes': statistics.mean(sizes)}


NOISE = (2.0, 6.0)  # standard deviations of the luma

# Measurements


def ask(worker: Any, batches: int) -> dict[str, Any]:
  """What a worker says of so many batches."""
  print(batches, file=worker.child.stdin, flush=True)
  return worker.read()


def started(name: str, folder: pathlib.Path, python: str) -> Any:
  from vit_jax.commands.bench import Worker

  return Worker([python, __file__, '--worker', name, str(folder)], limit=LIMIT)


def speeds(folder: pathlib.Path, flags: argparse.Namespace) -> dict[str, Any]:
  """Rates of every contender that there is, and ratios, from rounds in which they take turns."""
  pythons = dict.fromkeys(CONTENDERS, sys.executable)
  pythons |= dict.fromkeys(OTHERS, flags.python_torch) | {'tf': flags.python_tf}
  workers, skipped = {}, {}
  turns: dict[str, list[dict[str, Any]]] = {}
  with contextlib.ExitStack() as stack:
    for name, python in pythons.items():
      if not python:
        skipped[name] = f'no --python-{name.partition("_")[0]} given'
        continue
      try:
        workers[name] = stack.enter_context(started(name, folder, python))
        turns[name] = []
      except (OSError, RuntimeError) as error:
        if name not in OTHERS:
          raise
        skipped[name] = str(error)
    for _ in range(flags.rounds):
      for name, worker in workers.items():
        turns[name].append(ask(worker, flags.batches))
    versions = {name: worker.facts['versions'] for name, worker in workers.items()}
  rates = {
    clock: {name: [t[count] / t[clock] for t in taken] for name, taken in turns.items()}
    for clock, count in (('cpu', 'images'), ('wall', 'read'))
  }
  return {
    'images_per_cpu_second': {name: spread(rate) for name, rate in rates['cpu'].items()},
    'images_per_second': {name: spread(rate) for name, rate in rates['wall'].items()},
    'ratios': ratios(rates),
    'skipped': skipped,
    'versions': versions,
  }


def ratios(rates: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
  """'a / b', by CPU-seconds or for CORES by the clock; 'calibrated' is the quotient of CORES."""
  ratios = {}
  for pair in [*WANTED, 'ours / decode', 'burn2 / burn1']:
    a, b = pair.split(' / ')
    of = rates['wall' if pair in CORES else 'cpu']
    if a in of and b in of:
      ratios[pair] = [x / y for x, y in zip(of[a], of[b])]
  ratios['calibrated'] = [x / y for x, y in zip(*(ratios[pair] for pair in CORES))]
  wanted = WANTED | {'calibrated': WANTED[CORES[0]] / 2}
  return {pair: spread(each) | {'wanted': wanted.get(pair)} for pair, each in ratios.items()}


def spread(values: list[float]) -> dict[str, float]:
  return {'min': min(values), 'median': statistics.median(values), 'max': max(values)}


def memory(folder: pathlib.Path, images: int) -> dict[str, int]:
  """Resident bytes after a quarter, a half and all of so many images, by two threads."""
  resident, read = {}, 0
  with started('ours2', folder, sys.executable) as worker:
    for target in (images // 4, images // 2, images):
      answer = ask(worker, max((target - read) // BATCH, 1))
      read += answer['read']
      resident[str(target)] = answer['rss']
  return resident


FIRST_BATCH = """
import sys, time
began = time.perf_counter()
from vit_jax import pipeline, sources
from vit_jax.images import transforms
from vit_jax.sources.columns import labelled_images
imported = time.perf_counter()
splits = [sources.open_source(f'folder:{sys.argv[1]}', name) for name in ('train', 'validation')]
listed = time.perf_counter()
line = transforms.compose('inception_crop | flip', (224, 224))
columns = labelled_images(splits[0], line)
with pipeline.training_batches(splits[0], columns, batch_size=128, seed=0) as batches:
  next(batches)
  ended = time.perf_counter()
print(imported - began, listed - imported, ended - listed, len(splits[0]) + len(splits[1]))
"""


def million(folder: pathlib.Path, count: int = 1_000_000, classes: int = 1000) -> dict[str, Any]:
  """Seconds to the first batch of a folder of a million files whose index is in the cache.

  The index names each of a thousand files a thousand times.
  """
  import numpy as np

  from vit_jax.sources import folder as folders

  root = folder / 'million'
  photos = [pathlib.Path(path).read_bytes() for path in paths(str(folder))[:64]]
  for label in range(classes):
    file = root / f'n{label:08d}' / f'n{label:08d}_10026.JPEG'
    file.parent.mkdir(parents=True)
    file.write_bytes(photos[label % len(photos)])
  index = folders.make_index(os.fsencode(os.path.realpath(root)))
  times = count // classes
  files, lengths = index.files, np.diff(index.files.offsets)
  assert len(set(lengths.tolist())) == 1
  repeated = np.repeat(files.paths.reshape(classes, -1), times, axis=0).ravel()
  offsets = np.arange(count + 1, dtype=np.int64) * int(lengths[0])
  files = folders.Files(files.root, repeated, offsets, np.repeat(files.labels, times))
  counts = {'train': count}
  index = folders.Index(files, index.classes, counts, index.folders, index.passed_over)
  folders.save_index(index, 'folder')
  turns = []
  for _ in range(5):
    done = subprocess.run(
      [sys.executable, '-c', FIRST_BATCH, str(root)], check=True, capture_output=True, text=True
    )
    *seconds, read = (float(word) for word in done.stdout.split())
    assert read == count, read
    turns.append(seconds)
  names = ('import_seconds', 'open_seconds', 'first_batch_seconds')
  result: dict[str, Any] = {
    name: spread([turn[at] for turn in turns]) for at, name in enumerate(names)
  }
  result['open_to_first_batch_seconds'] = spread([sum(turn[1:]) for turn in turns])
  return result


def train(folder: pathlib.Path) -> dict[str, Any]:
  """The share of time that ViT-Ti/16 waits for data, in training on this processor."""
  fields = {
    'model.name': 'ViT-Ti/16',
    'data.source': f'folder:{folder}',
    'data.validation': '',
    'batch_size': 8,
    'duration': '24 steps',
    'schedule.warmup': '4 steps',
    'checkpoint.every': '24 steps',
    'system.log_every': '4 steps',
  }
  run = folder / 'run'
  words = [f'--config.{name}={value}' for name, value in fields.items()]
  command = [sys.executable, '-m', 'vit_jax', 'train', '--config=default', f'--workdir={run}']
  done = subprocess.run([*command, *words], capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(done.stderr.strip()[-500:])
  rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text('utf-8').splitlines()]
  steady = [row for row in rows if 'train/data_wait' in row][1:]  # the first one fills the buffer
  return {
    'data_wait': spread([row['train/data_wait'] for row in steady]),
    'images_per_second': spread([row['train/images_per_second'] for row in steady]),
    'batch_size': fields['batch_size'],
    'wanted': 0.02,
  }


def show(results: dict[str, Any]) -> None:
  """The table."""
  print(f'{"":14} images/CPU-s  images/s')
  for name, rate in results['images_per_cpu_second'].items():
    wall = results['images_per_second'][name]
    print(f'{name:14} {rate["median"]:12,.0f} {wall["median"]:9,.0f}')
  for name, why in results['skipped'].items():
    print(f'{name:14} skipped: {why}')
  print(f'\n{"ratio":20} median  wanted')
  for pair, values in results['ratios'].items():
    wanted = f'{values["wanted"]:.2f}' if values['wanted'] else ''
    spans = f'({values["min"]:.3f} to {values["max"]:.3f})'
    print(f'{pair:20} {values["median"]:6.3f}  {wanted:6}  {spans}')
  if memory := results.get('memory'):
    resident = ', '.join(f'{int(at):,}: {size / 1e6:.0f} MB' for at, size in memory.items())
    print(f'\nresident after images  {resident}')
  for name in ('million', 'train'):
    for key, values in results.get(name, {}).items():
      if isinstance(values, dict):
        print(f'{name} {key}: {values["median"]:.4g} ({values["min"]:.4g} to {values["max"]:.4g})')


def main() -> int:
  flags = parser().parse_args()
  if flags.worker:
    return serve(*flags.worker)
  os.environ |= MALLOC  # for the workers
  from vit_jax.commands import bench

  results: dict[str, Any] = {'provenance': bench.provenance(), 'malloc': MALLOC}
  with tempfile.TemporaryDirectory() as scratch:
    os.environ['XDG_CACHE_HOME'] = f'{scratch}/cache'
    folder = pathlib.Path(scratch) / 'photos'
    results['photos'] = make_photos(folder, flags.photos)
    print(f'{flags.photos} photos of {results["photos"]["mean_bytes"]:,.0f} bytes', flush=True)
    results |= speeds(folder, flags)
    bench.write_results(flags.out, results)
    if flags.images:
      results['memory'] = memory(folder, flags.images)
    if flags.million:
      results['million'] = million(folder)
    if flags.train:
      results['train'] = train(folder)
  results['load_average_after'] = os.getloadavg()[0]
  bench.write_results(flags.out, results)
  show(results)
  return 0


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(description='Measures the input pipeline.')
  flags.add_argument('--out', default='benchmarks/results/data.json', help='%(default)s')
  flags.add_argument('--rounds', type=int, default=7)
  flags.add_argument('--batches', type=int, default=24, help='of a turn, each of 128 images')
  flags.add_argument('--photos', type=int, default=256, help='files')
  flags.add_argument('--images', type=int, default=20_000, help='read to watch memory; 0: none')
  flags.add_argument('--python-tf', help='an interpreter with tensorflow')
  flags.add_argument('--python-torch', help='an interpreter with torch and Pillow')
  flags.add_argument('--million', action='store_true', help='the first batch of a million files')
  flags.add_argument('--train', action='store_true', help='data wait of ViT-Ti/16: a few minutes')
  flags.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  return flags


if __name__ == '__main__':
  sys.exit(main())
