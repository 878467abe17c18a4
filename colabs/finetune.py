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
# From your own photos, Food-101 or CIFAR-10 to a model that names what an image shows, and a look
# at what it looks at. Run the cells from top to bottom.

# %%
# Installs vit_jax where it is not there yet. Python 3.11 to 3.13.
import glob
import importlib.util
import os
import shutil
import subprocess
import sys

REPOSITORY = '..'  # a clone's folder, or its address: 'git+https://HOST/OWNER/NAME'

if importlib.util.find_spec('vit_jax') is None:
  if '://' not in REPOSITORY and not os.path.exists(f'{REPOSITORY}/pyproject.toml'):
    raise ValueError('REPOSITORY must say where vit_jax is, as git+https://HOST/OWNER/NAME')
  tpu = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  extra = '[cuda]' if shutil.which('nvidia-smi') else '[tpu]' if tpu else ''
  package = f'vit_jax{extra} @ {REPOSITORY}' if '://' in REPOSITORY else REPOSITORY + extra
  subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', package], check=True)

# %% [markdown]
# ## What to do
#
# `DATA` is a folder that holds a folder for each class, as in `folder:photos`, or another source of
# `docs/data.md`. Without a folder `photos` here, one is made up, to see how it goes.
# `START` is a published model, or the path or address of any checkpoint in `docs/checkpoints.md`.

# %% tags=["parameters"]
SMALL = bool(os.environ.get('VIT_JAX_SMALL'))  # a tiny model, in seconds on a CPU

DATA = 'folder:photos'  # or 'folder:/content/drive/MyDrive/photos', 'food101', 'cifar10'
START = 'augreg:S_16'  # or 'finetune:B_16', 'finetune:PATH_OF_A_CHECKPOINT'
RUN = 'runs/finetuned'
FIELDS = [  # of configs/default.py: shorter, and smaller images, than what was published
  '--config.duration=10 epochs',
  '--config.image_size=224',
  '--config.data.augment=resize(256) | random_crop | flip',
]

# %%
if SMALL:
  START = 'finetune:start'  # made below
  FIELDS = [
    '--config.batch_size=16',
    '--config.accumulate=1',
    '--config.duration=8 epochs',
    '--config.image_size=32',
    '--config.data.augment=flip | resize',
    '--config.optimizer.name=adamw',
    '--config.schedule.learning_rate=3e-3',
    '--config.evaluation.every=8 epochs',
    '--config.checkpoint.every=8 epochs',
    '--config.system.report=False',
  ]

# %% [markdown]
# ## Photos
#
# The photos that are made up show a sky, a meadow or a sunset, in colours and noise. None of the
# test photos is in training.

# %%
import pathlib

import numpy as np
from PIL import Image

COLOURS = {'meadow': (60, 150, 50), 'sky': (90, 150, 230), 'sunset': (220, 110, 50)}


def make_photo(colour, draw):
  """(64, 64, 3) uint8: the colour, lighter towards the top, with noise."""
  light = np.linspace(1.2, 0.8, 64)[:, None, None] * draw.uniform(0.7, 1.2)
  pixels = np.array(colour) * light + draw.normal(0, 25, (64, 64, 3))
  return pixels.clip(0, 255).astype(np.uint8)


def make_photos(folder):
  """Class folders with photos below train/ and test/."""
  draw = np.random.default_rng(0)
  for split, count in (('train', 40), ('test', 10)):
    for name, colour in COLOURS.items():
      place = folder / split / name
      place.mkdir(parents=True)
      for number in range(count):
        Image.fromarray(make_photo(colour, draw)).save(place / f'{number}.png')


if DATA == 'folder:photos' and not pathlib.Path('photos').exists():
  make_photos(pathlib.Path('photos'))

# %% [markdown]
# `vit` runs a command as a shell would; `vit data show` counts, and names what is damaged or there
# twice.

# %%
from vit_jax.__main__ import main


def vit(*words):
  """Runs a command of vit; stops the notebook where it fails."""
  if code := main(words):
    raise RuntimeError(f'vit {words[0]} ended with {code}')


if DATA.startswith('folder:'):
  vit('data', 'show', DATA)

# %% [markdown]
# ## The model to start from
#
# A published one is fetched by the next step. At the reduced setting it is a tiny one, drawn at
# random, in the place of one that has seen millions of images.

# %%
import jax
import jax.numpy as jnp

import vit_jax
from vit_jax import bundle


def make_start(folder):
  """Writes a tiny model with random parameters."""
  size = dict(patch=8, width=32, depth=2, heads=2, mlp_dim=64, num_classes=5)
  model = vit_jax.build('ViT-Ti/16', **size)
  params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  classes, images = tuple('abcde'), bundle.Preprocess('resize', (32, 32))
  bundle.write(folder, bundle.Bundle(model, params, classes, images, 'ViT-Ti/16'))


if SMALL and not pathlib.Path('start').exists():
  make_start('start')

# %% [markdown]
# ## Fine-tune
#
# The same cell again resumes where it was stopped.

# %%
vit('train', f'--config={START},{DATA}', f'--workdir={RUN}', *FIELDS)

# %% [markdown]
# ## Measure
#
# Per class, on images that training has not seen: the test split, or without one validation.

# %%
import json

vit('evaluate', RUN, '--out', 'measured.json')
measured = json.loads(pathlib.Path('measured.json').read_text())

# %% [markdown]
# ## Predict
#
# Any files do: `run.predict('rose.jpg', top=3)`. Here are six images that lie evenly in the split.

# %%
import matplotlib.pyplot as plt

from vit_jax import sources
from vit_jax.images import transforms

run = vit_jax.load(RUN)
unseen = sources.open_source(DATA, measured['split'])
places = np.linspace(0, len(unseen) - 1, 6).astype(int).tolist()
images = [transforms.as_pixels(unseen[place]['image']) for place in places]
guesses = run.predict(images, top=3)

figure, axes = plt.subplots(1, len(images), figsize=(2 * len(images), 2.6))
for axis, image, ranked in zip(axes, images, guesses):
  axis.imshow(run.prepared(image))
  axis.set_title(f'{ranked[0]["label"]} {ranked[0]["score"]:.0%}', fontsize=8)
  axis.axis('off')
plt.show()

# %% [markdown]
# ## Attention
#
# What the model's head reads of the first image, in each layer, followed through all layers before
# it (rollout, arXiv 2005.00928). `look_inside.ipynb` has more of this kind.

# %%
attention = run.attention(images[0])
rollout = attention.rollout_maps()  # (L, R, C)

figure, axes = plt.subplots(1, 1 + len(rollout), figsize=(2 * (1 + len(rollout)), 2.4))
axes[0].imshow(run.prepared(images[0]))
for layer, (axis, heat) in enumerate(zip(axes[1:], rollout), 1):
  axis.imshow(heat, cmap='inferno')
  axis.set_title(f'layer {layer}', fontsize=8)
for axis in axes:
  axis.axis('off')
plt.show()

# %% [markdown]
# ## Numbers

# %%
numbers = {
  'accuracy': measured['accuracy'],
  'classes seen': len({ranked[0]['label'] for ranked in guesses}),
  'rows of attention sum to': float(attention.weights.sum(-1).mean()),
}
print(json.dumps(numbers))
