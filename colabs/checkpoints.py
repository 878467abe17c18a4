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
# # Published checkpoints
#
# Load the weights of vision_transformer, big_vision, timm, Hugging Face or torchvision, compare
# them, and write them in another library's names. `docs/checkpoints.md` lists what there is.

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
# ## Which
#
# A path, or an address: gs:// and https:// are fetched once. A file is recognised by the names of
# its arrays. `OTHER` is compared with it.

# %% tags=["parameters"]
SMALL = bool(os.environ.get('VIT_JAX_SMALL'))  # tiny checkpoints, in seconds on a CPU

AUGREG = 'gs://vit_models/augreg'
CHECKPOINT = (
  f'{AUGREG}/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
  '--imagenet2012-steps_20k-lr_0.03-res_224.npz'
)
OTHER = (
  f'{AUGREG}/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'
  '--imagenet2012-steps_20k-lr_0.03-res_224.npz'
)
FORMS = {
  'npz': 'again.npz',
  'bigvision': 'bigvision.npz',
  'timm': 'timm',
  'hf': 'hf',
  'bundle': 'bundle',
}
SIZE = 384  # pixels, for a model of another size

# %%
if SMALL:
  CHECKPOINT, OTHER = 'one.npz', 'other.npz'  # made below
  SIZE = 48

# %% [markdown]
# The tiny checkpoints of the reduced setting are random parameters in Google's names.

# %%
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_image

import vit_jax
from vit_jax import bundle, convert


def make_tiny(file, *, seed):
  """Writes a tiny ViT, every parameter drawn at random, as Google's files are."""
  size = dict(patch=16, width=64, depth=2, heads=1, mlp_dim=128, num_classes=7)
  model = vit_jax.build('ViT-Ti/16', **size)
  params = model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))['params']
  draw = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: x + draw.normal(0, 0.1, x.shape).astype('float32'), params)
  classes, images = tuple('abcdefg'), bundle.Preprocess('resize', (32, 32))
  whole = bundle.Bundle(model, params, classes, images, 'ViT-Ti/16')
  for line in convert.write(file, whole, to='npz'):
    print(line)


if SMALL:
  for seed, file in enumerate((CHECKPOINT, OTHER)):
    if not pathlib.Path(file).exists():
      make_tiny(file, seed=seed)

# %% [markdown]
# ## Load
#
# `load` gives the model, its parameters, its classes and how images are prepared for it.

# %%
run = vit_jax.load(CHECKPOINT)
print(run.model)
print(run.preprocess)

image = load_sample_image('flower.jpg')  # (427, 640, 3) uint8
run.predict(image, top=3)

# %% [markdown]
# ## Compare two
#
# By what they hold, and by what they say of one image.

# %%
other = vit_jax.load(OTHER)


def parameters(loaded):
  """How many numbers a model has."""
  return sum(array.size for array in jax.tree.leaves(loaded.params))


for loaded in (run, other):
  best = loaded.predict(image, top=1)[0]
  print(f'{loaded.name}  {parameters(loaded):,} parameters  {best["label"]} {best["score"]:.1%}')


# %% [markdown]
# ## Convert
#
# Each form is read again, and its logits are compared
# with the first model's: only names and layouts change, so they are equal.


# %%
def logits(loaded):
  """(1, K) of the image."""
  preprocess = run.preprocess
  pixels = bundle.normalize(run.prepared(image)[None], preprocess.mean, preprocess.std)
  return np.asarray(loaded.model.apply({'params': loaded.params}, pixels)[0], np.float32)


differences = {}
for form, path in FORMS.items():
  for old in filter(os.path.exists, [path]):  # of this cell's last run
    shutil.rmtree(old) if os.path.isdir(old) else os.remove(old)
  # !vit convert {CHECKPOINT} {path} --to {form}
  differences[form] = float(np.abs(logits(vit_jax.load(path)) - logits(run)).max())
print(differences)

# %% [markdown]
# ## Another size, another head
#
# Positions are resampled, and a head for another number of classes starts at zero.

# %%
patch, width, depth = run.model.patch, run.model.width, run.model.depth
fields = dict(patch=patch, width=width, depth=depth, heads=run.model.heads)
model = vit_jax.build(run.name, **fields, mlp_dim=run.model.mlp_dim, num_classes=10)
params = vit_jax.load_params(CHECKPOINT, model, image_size=SIZE)
larger, out = model.apply({'params': params}, jnp.zeros((1, SIZE, SIZE, 3)))
print(larger.shape, params['positions'].shape)

# %% [markdown]
# ## Numbers

# %%
import json

numbers = {
  'differences': differences,
  'between the two': float(np.abs(logits(other) - logits(run)).max()),
  'new head': float(np.abs(larger).max()),
  'positions': params['positions'].shape[1],
}
print(json.dumps(numbers))
