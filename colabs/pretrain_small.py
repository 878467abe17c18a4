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
# # Train a small Vision Transformer from nothing
#
# On scikit-learn's 1,797 handwritten digits, which need no download: the recipe, its curves, and
# what the model gets wrong. `configs/digits.py` tells what the whole recipe takes and reaches.

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
# ## The recipe
#
# `digits` is a file in `configs/`; any field of `configs/default.py` can be replaced here.

# %% tags=["parameters"]
SMALL = bool(os.environ.get('VIT_JAX_SMALL'))  # 5 of 70 epochs, half the layers, larger patches

RECIPE = 'digits'
RUN = 'runs/small'
FIELDS = []  # such as '--config.model.depth=6', '--config.seed=1'

# %%
if SMALL:
  FIELDS = [
    '--config.model.depth=2',
    '--config.model.patch=4',
    '--config.duration=5 epochs',
    '--config.evaluation.every=5 epochs',
    '--config.checkpoint.every=5 epochs',
    '--config.system.log_every=10 steps',
    '--config.system.report=False',
  ]

# %%
from vit_jax import config

recipe = config.load(RECIPE, [field.removeprefix('--config.') for field in FIELDS])
print({name: value for name, value in recipe.model.items() if value is not None})

# %% [markdown]
# ## Images, as training sees them
#
# A row for an image, a column for each of its first epochs, every time augmented anew.

# %%
from IPython.display import Image, display

from vit_jax.__main__ import main


def vit(*words):
  """Runs a command of vit; stops the notebook where it fails."""
  if code := main(words):
    raise RuntimeError(f'vit {words[0]} ended with {code}')


sheet = ['--out', 'sheet.png', '--augment', recipe.data.augment, '--size', '8']
vit('data', 'show', recipe.data.source, *sheet)
display(Image('sheet.png'))

# %% [markdown]
# ## Train
#
# The same cell again resumes where it was stopped.

# %%
vit('train', f'--config={RECIPE}', f'--workdir={RUN}', *FIELDS)

# %% [markdown]
# ## Curves
#
# `metrics.jsonl` has a line for each measurement; `report.html` in the run's folder draws them.

# %%
import json
import pathlib

import matplotlib.pyplot as plt

lines = [json.loads(line) for line in pathlib.Path(RUN, 'metrics.jsonl').read_text().splitlines()]


def curve(split, name):
  """Steps, and a number at each."""
  rows = [line for line in lines if f'{split}/{name}' in line]
  return [line['step'] for line in rows], [line[f'{split}/{name}'] for line in rows]


figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
for axis, name in zip(axes, ('loss', 'accuracy')):
  for split in ('train', 'validation'):
    axis.plot(*curve(split, name), marker='.', label=split)
  axis.set_xlabel('step')
  axis.set_title(name)
  axis.legend()
plt.show()

# %% [markdown]
# ## Measure
#
# On the test split, once.

# %%
vit('evaluate', RUN, '--out', 'measured.json')
measured = json.loads(pathlib.Path('measured.json').read_text())

# %% [markdown]
# ## Predict

# %%
import vit_jax

vit('data', 'save', recipe.data.source, 'unseen', '--split', 'test', '--count', '8')
run = vit_jax.load(RUN)
files = sorted(pathlib.Path('unseen').rglob('*.png'))
for file, ranked in zip(files, run.predict(files, top=2)):
  print(file, '  '.join(f'{guess["label"]} {guess["score"]:.1%}' for guess in ranked))

# %% [markdown]
# ## Numbers

# %%
steps, losses = curve('train', 'loss')
numbers = {
  'first loss': losses[0],
  'last loss': losses[-1],
  'test accuracy': measured['accuracy'],
  'predictions': len(files),
}
print(json.dumps(numbers))
