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
# # Look inside a Vision Transformer
#
# Filters, positions, how far heads look, and what a model looks at in an image: of a published
# checkpoint, or of a run of your own. `docs/look_inside.md` defines each picture.

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
# ## What to look at
#
# `MODEL` is a run's folder, or the path or address of any checkpoint in `docs/checkpoints.md`.
# `IMAGES` are files; without any, two photographs that come with scikit-learn are taken, and with
# `UPLOAD` Colab asks for yours.

# %% tags=["parameters"]
SMALL = bool(os.environ.get('VIT_JAX_SMALL'))  # a tiny model, in seconds on a CPU

MODEL = (
  'gs://vit_models/augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
  '--imagenet2012-steps_20k-lr_0.03-res_224.npz'
)
UPLOAD = False
IMAGES = []
OUT = 'look'

# %%
if SMALL:
  MODEL = 'tiny'  # made below

# %% [markdown]
# The tiny model of the reduced setting has random parameters: its pictures show nothing.

# %%
import pathlib
import shlex

from PIL import Image as Picture
from sklearn.datasets import load_sample_image


def make_tiny(folder):
  """Writes a tiny model with random parameters."""
  import jax
  import jax.numpy as jnp

  import vit_jax
  from vit_jax import bundle

  size = dict(patch=8, width=32, depth=3, heads=4, mlp_dim=64, num_classes=3)
  model = vit_jax.build('ViT-Ti/16', **size)
  params = model.init(jax.random.key(0), jnp.zeros((1, 48, 48, 3)))['params']
  images = bundle.Preprocess('resize_small(48) | central_crop', (48, 48))
  bundle.write(folder, bundle.Bundle(model, params, ('a', 'b', 'c'), images, 'ViT-Ti/16'))


if SMALL and not pathlib.Path(MODEL).exists():
  make_tiny(MODEL)
if UPLOAD:
  from google.colab import files

  IMAGES = list(files.upload())
if not IMAGES:
  IMAGES = ['china.png', 'flower.png']
  for name in IMAGES:
    Picture.fromarray(load_sample_image(name.replace('png', 'jpg'))).save(name)

# %% [markdown]
# ## All pictures by one command

# %%
from IPython.display import HTML, Image, display

FILES = ' '.join(map(shlex.quote, IMAGES))
ONLY = 'filters positions distances layers page attention rollout evidence'  # occlusion is slower
# !vit inspect {MODEL} {FILES} --out {OUT} --only {ONLY}

# %% [markdown]
# ## Filters and positions
#
# What the patch embedding looks for, and how alike the embeddings of positions are (arXiv
# 2010.11929, figure 7, left and middle).

# %%
for name in ('filters', 'positions'):
  display(Image(f'{OUT}/{name}.png'))

# %% [markdown]
# ## How far heads look
#
# In pixels, by depth (figure 7, right). A convolution's reach is fixed; heads of the first layers
# may look both near and far. And how alike the layers are (linear CKA).

# %%
display(Image(f'{OUT}/distances.png'), Image(f'{OUT}/layers.png'))

# %% [markdown]
# ## What the model looks at
#
# Each head of each layer; attention followed through all layers (arXiv 2005.00928); and the logit
# of the likeliest class, patch by patch.

# %%
for file in sorted(pathlib.Path(OUT).glob('*/attention.png')):
  display(
    *(Image(str(file.with_name(f'{name}.png'))) for name in ('attention', 'rollout', 'evidence'))
  )

# %% [markdown]
# `attention.html` has every weight: choose an image, layer and head, and point at a patch.

# %%
from html import escape


def show(file):
  """A page inside the notebook: as text, since a notebook's frames open no files."""
  text = escape(pathlib.Path(file).read_text())
  display(HTML(f'<div><iframe srcdoc="{text}" width="100%" height="700"></iframe></div>'))


show(f'{OUT}/attention.html')

# %% [markdown]
# ## The arrays
#
# Every picture comes from arrays, and Python has them directly.

# %%
import matplotlib.pyplot as plt

import vit_jax

run = vit_jax.load(MODEL)
print(run.name, run.preprocess.size, len(run.classes), 'classes')

attention = run.attention(IMAGES[0])
rollout = attention.rollout(fusion='max', discard=0.9)  # (L, T, T)
print('weights', attention.weights.shape, 'rollout', rollout.shape)

plt.imshow(attention.rollout_maps(fusion='max', discard=0.9)[-1], cmap='inferno')
plt.title('rollout, highest head, nine tenths of the weights discarded')
plt.show()

# %% [markdown]
# ## Numbers
#
# Rows of attention and of rollout are shares, so they sum to 1; no head looks further than the
# image's diagonal.

# %%
import json

import numpy as np

distances = attention.distances()  # (L, A) in pixels
numbers = {
  'attention sums off by': float(np.abs(attention.weights.sum(-1) - 1).max()),
  'rollout sums off by': float(np.abs(rollout.sum(-1) - 1).max()),
  'nearest head': float(distances.min()),
  'furthest head': float(distances.max()),
  'diagonal': float(np.hypot(*run.preprocess.size)),
  'pictures': len(list(pathlib.Path(OUT).rglob('*.png'))),
}
print(json.dumps(numbers))
