"""The words that other tools have for a command or a flag, and what is said here instead."""

import re
from collections.abc import Iterator, Mapping

from vit_jax.lookup import FIELDS

# What other tools have that is no field: the flag's word, and what to do here.
WORDS = {
  'train': {
    'resume resume_from resume_from_checkpoint auto_resume': '`vit train --workdir=RUN` resumes',
    'name project output output_dir out out_dir save_dir logdir log_dir exp_name experiment '
    'run_name': '`--workdir=DIR` names the folder of a run',
    'device devices gpus gpu accelerator n_gpu': 'JAX takes every device that it finds; '
    'JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES=0 choose',
    'data dataset data_dir data_path train_dir dataset_name source': 'the data set is the first '
    'word: `vit train folder:photos`',
    'model arch backbone weights pretrained checkpoint initial_checkpoint model_name_or_path '
    'init_from': '`--from MODEL` is what a run starts from, `--config.model.name` a model',
    'nc num_classes n_classes num_labels': 'the data set says how many classes there are',
    'val noval do_eval evaluate': 'a run evaluates by itself: `--config.evaluation.every`',
    'wandb report_to log_wandb mlflow tensorboard logger': '`--config.system.logger=module:name` '
    'is a logger (docs/extending.md); TensorBoard reads the run as it is',
    'world_size local_rank nproc_per_node': '`--distributed`, or docs/scale_out.md',
  },
  'predict': {
    'source input images data image image_path': 'images follow the model: `vit predict RUN '
    'IMAGES`',
    'model weights checkpoint_path name': 'the model is the first word: `vit predict RUN IMAGES`',
    'conf conf_thres confidence min_score': '`--threshold` is the least score of a class',
    'save save_txt save_dir output out_file results_file project': '`--out=FILE` gets the results',
    'topk top_k k num_predictions': '`--top` is how many classes an image gets',
    'imgsz img_size size': 'images get the size that the model takes',
  },
  'evaluate': {
    'data dataset data_dir source': '`--on=DATA` names a data set',
    'batch bs': '`--batch-size` is how many images are measured at a time',
    'model weights checkpoint_path': 'the model is the first word: `vit evaluate RUN`',
  },
  'probe': {
    'data dataset data_dir source': '`--on=DATA` names a data set, or a folder with images/ and '
    'masks/',
    'mask_dir annotations ann_dir segmentation': '`--masks=DIR` has a PNG for each image of `--on`',
    'model weights': 'the model is the first word: `vit probe MODEL --on DATA`',
    'n_neighbors neighbors': '`--k` is how many neighbours vote',
  },
  'search': {
    'query queries image': 'queries follow the photos: `vit search MODEL PHOTOS QUERY`',
    'model weights': 'the model is the first word: `vit search MODEL PHOTOS`',
    'topk top_k top n neighbors neighbours': '`--k` is how many nearest images are compared',
    'threshold': '`--near` is the cosine of a near-duplicate',
    'output output_dir save_dir': '`--out=DIR` gets search.html and search.csv',
  },
  'export': {
    'format fmt include': '`--to` names the format',
    'output output_path file': '`--out` names the file',
    'model weights': 'the model is the first word: `vit export RUN`',
  },
}
COMMAND_WORDS = {  # of other tools, and of old habits
  'fit finetune fine-tune fine_tune tune learn': 'vit train DATA --from MODEL',
  'resume continue': 'vit train --workdir=RUN',
  'val validate valid test eval score accuracy': 'vit evaluate RUN',
  'detect classify infer inference pred run label': 'vit predict RUN IMAGES',
  'embed embeddings extract encode': 'vit features MODEL IMAGES --out FILE',
  'similar dedup dedupe deduplicate duplicates nearest neighbours neighbors retrieve retrieval '
  'outliers mislabeled mislabelled curate find': 'vit search MODEL PHOTOS [QUERY ...]',
  'knn linear fewshot linear_probe linear-probe segment segmentation miou': 'vit probe MODEL '
  '--on DATA',
  'explain attention visualize visualise attn gradcam heatmap': 'vit inspect MODEL --out DIR',
  'benchmark speed profile': 'vit bench MODEL',
  'checks check info env settings version': 'vit doctor',
  'list zoo ls': 'vit models',
  'dataset datasets': 'vit data show DATA',
  'save deploy onnx stablehlo': 'vit export RUN',
  'plot show results card': 'vit report RUN',
}


def command_hint(word: str) -> str:
  """'; it is `vit evaluate RUN` here', for a command of another tool; '' for any other word."""
  hints = (hint for words, hint in COMMAND_WORDS.items() if word.lower() in words.split())
  return ''.join(f'; it is `{hint}` here' for hint in hints)


def hints(command: str, text: str, spellings: Mapping[str, str]) -> Iterator[str]:
  """What is said here in the place of each `--word`, or `word=value`, of another tool in a text.

  Args:
    command: whose flags they were to be.
    text: the words.
    spellings: the short flag of each field that has one.
  """
  table = {word: hint for words, hint in WORDS.get(command, {}).items() for word in words.split()}
  for flag, name in re.findall(r'--([a-zA-Z][\w-]*)|\b([a-zA-Z]\w*)=', text):
    word = (flag or name).replace('-', '_').lower()
    if word in table:
      yield f'`{flag or name}`: {table[word]}'
    elif command == 'train' and word in FIELDS:
      field = FIELDS[word]
      yield f'`{flag or name}` is `--{spellings.get(field, f"config.{field}")}` here'
