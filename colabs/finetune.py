# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune a Vision Transformer
#
# From photos to a model that names what a photo shows, and a look at what it looks at. Run the
# cells from top to bottom: nothing has to be filled in. In Colab take a GPU first (menu Runtime,
# Change runtime type); JAX has its CUDA there already.

# %%
# Installs vit_jax where it is not there yet. Python 3.11 to 3.13.
import glob
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys

ADDRESS = ''  # a wheel, a clone's folder, or 'git+https://HOST/OWNER/NAME'; '': asks in Colab


def package():
  """What pip installs: ADDRESS, a wheel here, the clone round this notebook, or an upload."""
  if ADDRESS:
    return ADDRESS
  if wheels := glob.glob('vit_jax-*.whl'):
    return wheels[0]
  if os.path.exists('../pyproject.toml'):
    return '..'
  try:
    from google.colab import files

    print('Upload the wheel of vit_jax: in a clone, `pip wheel --no-deps .` makes it.')
    return next(iter(files.upload()))
  except (ImportError, StopIteration):
    raise ValueError('ADDRESS must say where vit_jax is, as git+https://HOST/OWNER/NAME') from None


def accelerator():
  """The form of JAX for this machine; where JAX has CUDA, as in Colab, the CUDA that it has."""
  for name in ('cuda12', 'cuda13'):
    if importlib.util.find_spec(f'jax_{name}_plugin'):
      return f'jax[{name}]'
  tpu = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  return 'jax[cuda13]' if shutil.which('nvidia-smi') else 'jax[tpu]' if tpu else 'jax'


if importlib.util.find_spec('vit_jax') is None:
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet']
  subprocess.run([*pip, package(), accelerator()], check=True)
  importlib.invalidate_caches()
for name in {'numpy', 'jax'} & set(sys.modules):
  if sys.modules[name].__version__ != importlib.metadata.version(name):
    raise RuntimeError(f'{name} is newer now: restart the session (menu Runtime) and run all again')
os.environ['PATH'] = os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']  # for !vit
os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # !vit and this notebook share one GPU

# %% [markdown]
# ## What to do
#
# `DATA` is a folder that holds a folder for each class, or another source of `docs/data.md`.
# `START` is a published model, or the path or address of any checkpoint in `docs/checkpoints.md`.

# %% tags=["parameters"]
SMALL = bool(os.environ.get('VIT_JAX_SMALL'))  # a tiny model, in seconds on a CPU

UPLOAD = False  # True: Colab asks for a zip of photos of your own, a folder for each class
DATA = 'folder:photos'  # or 'folder:/content/drive/MyDrive/photos', 'food101', 'cifar10'
START = 'S_16'  # or 'R_Ti_16', which is faster, 'B_16', 'PATH_OF_A_CHECKPOINT'
RUN = 'runs/finetuned'
FLAGS = '--epochs 10 --size 224'  # `vit train --help` lists them

# %% [markdown]
# ## Photos
#
# Yours, or else tiles of the photographs that scikit-learn and scikit-image come with: a class for
# each photograph, a quarter of its tiles for the test. That is easier than photos of your own, of
# which no two show the same thing.

# %%
import pathlib

from PIL import Image as Picture
from sklearn.datasets import load_sample_image

SIDE = 96  # pixels of a tile


def photographs():
  """(height, width, 3) or (height, width) uint8 by name: the photographs that are installed."""
  photos = {name: load_sample_image(f'{name}.jpg') for name in ('china', 'flower')}
  if importlib.util.find_spec('skimage'):
    from skimage import data

    photos |= {name: getattr(data, name)() for name in ('brick', 'cat', 'coffee', 'grass')}
  return photos


def make_photos(folder):
  """Class folders with tiles below train/ and test/."""
  for name, pixels in photographs().items():
    rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    for number in range(rows * columns):
      top, left = SIDE * (number // columns), SIDE * (number % columns)
      file = folder / ('train' if number % 4 else 'test') / name / f'{number}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      tile = pixels[top : top + SIDE, left : left + SIDE]
      Picture.fromarray(tile).convert('RGB').save(file)


def upload_photos(folder):
  """The folder that holds the class folders of a zip."""
  from google.colab import files

  for name in files.upload():
    shutil.unpack_archive(name, folder)
  shutil.rmtree(folder / '__MACOSX', ignore_errors=True)
  while len(inside := list(folder.glob('[!.]*'))) == 1 and inside[0].is_dir():
    folder = inside[0]
  return folder


if UPLOAD:
  DATA = f'folder:{upload_photos(pathlib.Path("uploaded"))}'
elif DATA == 'folder:photos' and not pathlib.Path('photos').exists():
  make_photos(pathlib.Path('photos'))

# %% [markdown]
# At the reduced setting the model to start from is a tiny one, drawn at random, in the place of one
# that has seen millions of images.

# %%
if SMALL:
  import jax
  import jax.numpy as jnp

  import vit_jax
  from vit_jax import bundle

  START = 'start'
  FLAGS = '--epochs 16 --batch 16 --size 32 --lr 3e-3 --config.optimizer.name=adamw'
  FLAGS += ' --config.accumulate=1 --config.data.augment="flip | resize"'
  FLAGS += ' --config.evaluation.every="16 epochs" --config.checkpoint.every="16 epochs"'
  sizes = dict(patch=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=5)
  model = vit_jax.build('ViT-Ti/16', **sizes)
  params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  images = bundle.Preprocess('resize', (32, 32))
  if not pathlib.Path(START).exists():
    bundle.write(START, bundle.Bundle(model, params, tuple('abcde'), images, 'ViT-Ti/16'))

# %% [markdown]
# Counts, and what is damaged or there twice.

# %%
# !vit data show {DATA}

# %% [markdown]
# ## Fine-tune
#
# The published model is fetched first. The same cell again resumes where it was stopped.

# %%
# !vit train {DATA} --from {START} --workdir {RUN} {FLAGS}

# %% [markdown]
# ## Report
#
# Curves, what was right and wrong, and each class, on images that training has not seen.

# %%
from html import escape

from IPython.display import HTML, display


def show(file):
  """A page inside the notebook: as text, since a notebook's frames open no files."""
  text = escape(pathlib.Path(file).read_text())
  display(HTML(f'<div><iframe srcdoc="{text}" width="100%" height="700"></iframe></div>'))


show(f'{RUN}/report.html')

# %% [markdown]
# ## Predict
#
# Six images that training has not seen, evenly over the split. Any files, folders and addresses do.

# %%
import json

import numpy as np

from vit_jax import sources
from vit_jax.images import transforms

measured = json.loads(pathlib.Path(RUN, 'evaluation.json').read_text())
unseen = sources.open_source(DATA, measured['split'])
pathlib.Path('unseen').mkdir(exist_ok=True)
for index in np.linspace(0, len(unseen) - 1, 6).astype(int).tolist():
  Picture.fromarray(transforms.as_pixels(unseen[index]['image'])).save(f'unseen/{index}.png')
# !vit predict {RUN} unseen --top 3

# %% [markdown]
# ## Attention
#
# Choose a layer and head, and point at a patch. `look_inside.ipynb` has more of this kind.

# %%
# !vit inspect {RUN} unseen --out look --only page
show('look/attention.html')

# %% [markdown]
# ## The same in Python

# %%
import matplotlib.pyplot as plt

import vit_jax

run = vit_jax.load(RUN)
files = sorted(pathlib.Path('unseen').glob('*.png'))
predictions = run.predict(files, top=3)

figure, axes = plt.subplots(1, len(files), figsize=(2 * len(files), 2.6))
for axis, file, ranked in zip(axes, files, predictions):
  axis.imshow(Picture.open(file))
  axis.set_title(f'{ranked[0]["label"]} {ranked[0]["score"]:.0%}', fontsize=8)
  axis.axis('off')
plt.show()

# %% [markdown]
# ## Numbers

# %%
numbers = {
  'accuracy': measured['accuracy'],
  'classes predicted': len({ranked[0]['label'] for ranked in predictions}),
  'rows of attention sum to': float(run.attention(files[0]).weights.sum(-1).mean()),
}
print(json.dumps(numbers))
