"""What a name stands for: one of ours, another tool's, or 'package.module:name' of somebody's."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, TypeVar, cast

from vit_jax.text import error_line, nearest

T = TypeVar('T')
PATH = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*')
MARK = 'vit_jax_extension'

# Fields by the words that Ultralytics, timm, transformers, fastai and Keras have for them.
FIELDS = {
  word: field
  for field, words in {
    'schedule.learning_rate': 'lr lr0 learning_rate base_learning_rate blr lr_max',
    'duration': 'epochs epoch num_epochs n_epochs max_epochs num_train_epochs steps max_steps',
    'batch_size': 'batch bs batchsize train_batch_size per_device_train_batch_size',
    'image_size': 'size imgsz imgs img_size input_size img resolution crop_size crop',
    'accumulate': 'grad_accum grad_accum_steps gradient_accumulation_steps accum_iter update_freq',
    'seed': 'random_seed random_state',
    'ema': 'ema_decay model_ema model_ema_decay',
    'time_limit': 'time max_time',
    'model.name': 'model arch backbone architecture model_name net',
    'model.dropout': 'drop drop_rate hidden_dropout_prob',
    'model.drop_path': 'drop_path_rate droppath stochastic_depth',
    'model.dtype': 'amp fp16 bf16 half precision mixed_precision amp_dtype',
    'model.remat': 'grad_checkpointing gradient_checkpointing',
    'pretrained': 'weights initial_checkpoint model_name_or_path finetune init_from',
    'data.source': 'data dataset data_dir data_path train_dir dataset_name',
    'data.augment': 'aa auto_augment augmentation augmentations',
    'objective.mixup': 'mixup_alpha',
    'objective.cutmix': 'cutmix_alpha',
    'objective.smoothing': 'label_smoothing label_smoothing_factor',
    'objective.loss': 'criterion loss_fn',
    'optimizer.name': 'opt optim optimizer',
    'optimizer.weight_decay': 'wd weight_decay decay',
    'optimizer.clip': 'clip_grad grad_clip max_grad_norm gradient_clip_val',
    'optimizer.layer_decay': 'llrd layerwise_lr_decay',
    'freeze.layers': 'freeze frozen freeze_layers',
    'schedule.name': 'sched scheduler lr_scheduler lr_scheduler_type',
    'schedule.warmup': 'warmup_epochs warmup_steps warmup_ratio warmup_iters',
    'schedule.end': 'min_lr lrf eta_min',
    'evaluation.patience': 'patience early_stopping early_stopping_patience',
    'evaluation.every': 'eval_steps eval_interval eval_freq validation_interval',
    'checkpoint.every': 'save_steps save_period save_freq save_every',
    'checkpoint.keep_latest': 'save_total_limit checkpoint_hist',
    'system.workers': 'workers num_workers n_workers dataloader_num_workers',
    'system.log_every': 'log_interval logging_steps print_freq',
  }.items()
  for word in (*words.split(), field)
}


def extension(function: T) -> T:
  """Marks a transform, data set or model that files may name: `@vit_jax.extension` above it.

  A model on disk says what it is and how its images are read, and a run's folder where they are.
  What these name is called only if its author has marked it so, as otherwise a file could call
  anything that is installed. Its module is imported first: open no stranger's file in a folder with
  a stranger's modules.
  """
  setattr(function, MARK, True)
  return function


def is_path(name: object) -> TypeGuard[str]:
  """Whether a name is of the form 'package.module:name'."""
  return isinstance(name, str) and PATH.fullmatch(name) is not None


def named(name: str, table: Mapping[str, T], kind: str) -> T:
  """The entry of a table, or what 'package.module:name' imports; `kind` is 'task', 'loss' ..."""
  if name in table:
    return table[name]
  if not is_path(name):
    raise ValueError(f"unknown {kind} {name!r}{nearest(name, list(table))} (or 'module:name')")
  return cast(T, imported(name, kind))


def imported(name: str, kind: str, *, marked: bool = False) -> Callable[..., Any]:
  """What 'package.module:name' stands for; modules are also looked for in the working folder.

  `kind` is for messages; `marked` refuses what is not marked by `extension`.
  """
  module, _, attribute = name.partition(':')
  folder = os.getcwd()
  if folder not in sys.path:  # last: it hides nothing; processes that are started get it too
    sys.path.append(folder)
  try:
    value = getattr(importlib.import_module(module), attribute)
  except ModuleNotFoundError as error:
    raise ValueError(f'{kind} {name!r}: there is no module {error.name!r} here') from None
  except AttributeError:
    raise ValueError(f'{kind} {name!r}: {module} has no {attribute!r}') from None
  except (Exception, SystemExit) as error:  # whatever the module does when it is imported
    raise ValueError(f'{kind} {name!r}: {error_line(error)}') from error
  if not callable(value):
    raise ValueError(f'{kind} {name!r} is {type(value).__name__}, not a function or class')
  if marked and getattr(value, MARK, False) is not True:
    raise ValueError(
      f'{kind} {name!r} is not marked by @vit_jax.extension, which files may name alone'
    )
  return value
