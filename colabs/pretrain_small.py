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
# ## The recipe
#
# `configs/digits.py`; flags replace its fields, all of which are in `configs/default.py`.

# %% tags=["parameters"]
SMALL = bool(os.environ.get('VIT_JAX_SMALL'))  # 5 of 70 epochs, half the layers, larger patches

RUN = 'runs/small'
FLAGS = ''  # such as '--epochs 30', '--config.model.depth=6', '--config.seed=1'

# %%
if SMALL:
  FLAGS = '--epochs 5 --config.model.depth=2 --config.model.patch=4 --config.system.report=False'
  FLAGS += ' --config.evaluation.every="5 epochs" --config.checkpoint.every="5 epochs"'
  FLAGS += ' --config.system.log_every="10 steps"'

# %% [markdown]
# ## Images

# %%
from IPython.display import Image, display

# !vit data show digits --out sheet.png
display(Image('sheet.png'))

# %% [markdown]
# ## Train
#
# The same cell again resumes where it was stopped.

# %%
# !vit train digits --workdir {RUN} {FLAGS}

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
# ## Predict
#
# Images of the test split, in a folder for each digit.

# %%
# !vit data save digits unseen --split test --count 8
# !vit predict {RUN} unseen --top 2 --out predictions.json

predictions = json.loads(pathlib.Path('predictions.json').read_text())
for image in predictions:
  ranked = (f'{row["label"]} {row["score"]:.1%}' for row in image['predictions'])
  print(image['file'], '  '.join(ranked))

# %% [markdown]
# ## Numbers

# %%
measured = json.loads(pathlib.Path(RUN, 'evaluation.json').read_text())  # on the test split
steps, losses = curve('train', 'loss')
numbers = {
  'first loss': losses[0],
  'last loss': losses[-1],
  'test accuracy': measured['accuracy'],
  'predictions': len(predictions),
}
print(json.dumps(numbers))
