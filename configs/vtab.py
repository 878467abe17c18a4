"""One task of VTAB-1k (arXiv 1910.04867) as the ViT paper fine-tunes on it (2010.11929, B.1.1).

vit train --config=vtab:B_16,caltech101 --workdir=runs/caltech101
vit train --config=vtab:B_16,caltech101 --workdir=runs/caltech101_final \\
  --config.data.train=trainval --config.data.validation= --config.data.test=test

The argument is MODEL,TASK, a model as finetune.py has it, and one of the 19 tasks: 2,500 steps of
momentum at batch 512, rate 0.01. The first line trains on 800 images and looks at 200, for choices;
the second trains on all 1,000 and is tested once. `vit data list` names the tasks.

Images are squashed to 384 pixels and otherwise left as they are, since a crop or flip would change
the answer in some of the structured tasks, such as the place of a sprite.

Hardware: one GPU, an eighth of a batch at a time.
Time: not published.
Result: not published for these files: the paper's VTAB results are of ViT-L/16 and H/14.
Measured: not yet run.
"""

from vit_jax.configs import _data, finetune
from vit_jax.sources import presets
from vit_jax.text import nearest

TASKS = [task for group in presets.VTAB.values() for task in group]


def get_config(argument):
  model, task = _data.words(argument, 'MODEL,TASK', 'vtab:B_16,caltech101')
  task = task.removeprefix('vtab/')
  if task not in TASKS:
    raise ValueError(f'unknown task {task!r}{nearest(task, TASKS)}')
  config = finetune.base()
  finetune.start(config, model, 'gs://vit_models/imagenet21k')
  _data.use(config, f'vtab/{task}', [f'vtab/{task}'])
  config.data.test = ''
  config.data.augment = config.data.preprocess = 'resize'
  preset = presets.PRESETS[config.data.source]
  config.duration, config.schedule.warmup = f'{preset.steps} steps', f'{preset.warmup} steps'
  config.schedule.learning_rate = 0.01  # one of those that `vit vtab` tries
  config.evaluation.every = '10%'
  config.system.report = False  # of 95 runs
  return config
