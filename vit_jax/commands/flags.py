"""The flags of every `vit NAME` but train: read without JAX, so that --help answers at once.

The function of a command's name adds its flags; commands/NAME.py has `run(args)`, which does the
work. tests/test_commands.py compares the choices written out here with the tables that they name.
"""

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from vit_jax.text import message_line

MODEL = "a run's folder, a bundle, or a published checkpoint"
DATA_SET = "a data set, such as 'digits', 'folder:PATH' or a name of `vit data list`"
TABLE = ('table', 'json')  # what results are printed as
PICTURES = (
  'filters', 'positions', 'distances', 'layers', 'page', 'attention', 'rollout', 'evidence',
  'occlusion',
)  # fmt: skip


class Parser(argparse.ArgumentParser):
  """One whose errors are lines as of any command."""

  def error(self, message: str) -> NoReturn:
    super().error(message_line(message))


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
  """The flags of `vit NAME`; exits with 2 and the usage where they are wrong."""
  fields, words = overrides(words) if name == 'vtab' else ([], words)
  parser = Parser(prog=f'vit {name}', allow_abbrev=name != 'vtab')
  globals()[name](parser)
  return parser.parse_args(words, argparse.Namespace(overrides=fields))


def overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """The FIELD=VALUE of every `--config.FIELD=VALUE`, and the other words."""
  prefix = '--config.'
  fields = [word.removeprefix(prefix) for word in words if word.startswith(prefix)]
  return fields, [word for word in words if not word.startswith(prefix)]


def positive(text: str) -> int:
  if (value := int(text)) < 1:
    raise ValueError
  return value


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--checkpoint',
    default='',
    help='of a run: best, latest or a step; default: its model, before it is finished the best',
  )


def add_split(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--on', default='', help="a data set; default: the run's own")
  parser.add_argument(
    '--split', default='', help='default: test, or without one validation, or without both all'
  )


def add_reading(parser: argparse.ArgumentParser) -> None:
  """Which images of a data set, and how they are read."""
  add_split(parser)
  parser.add_argument('--preprocess', default='', help="a line of transforms; default: the model's")
  parser.add_argument(
    '--batch-size', type=int, default=256, help='images on each device; default: %(default)s'
  )


def predict(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Names what images show.'
  parser.epilog = 'Exit code: 0; 2 for bad input; 3 if an image could not be read.'
  parser.add_argument('run', help=MODEL)
  add_checkpoint(parser)
  parser.add_argument('files', nargs='+', help='images, and folders of images')
  parser.add_argument('--top', type=int, default=3, help='classes per image')
  parser.add_argument('--format', choices=('table', 'csv', 'json'), default='table')
  parser.add_argument(
    '--quote-formulas',
    action='store_true',
    help='csv: an apostrophe before names that a spreadsheet would compute',
  )


def evaluate(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Measures a model: with its head, or by what its features tell apart.'
  parser.add_argument('model', help=MODEL)
  add_checkpoint(parser)
  add_reading(parser)
  parser.add_argument(
    '--method', choices=('accuracy', 'knn', 'fewshot', 'linear'), default='accuracy'
  )
  parser.add_argument(
    '--label_map',
    '--label-map',
    default='',
    help='accuracy: a .json or .csv file with the class of the model for each of the data',
  )
  parser.add_argument(
    '--restrict',
    action='store_true',
    help="accuracy: score only classes that both data and model have; default: all of the model's",
  )
  parser.add_argument(
    '--train', default='train', help='knn, fewshot, linear: the split to learn from'
  )
  parser.add_argument(
    '--validation', default='validation', help='linear: the split that regularisation is chosen on'
  )
  parser.add_argument('--k', type=int, nargs='+', default=[20], help='knn: neighbours; default: 20')
  parser.add_argument(
    '--shots',
    type=int,
    nargs='+',
    default=[1, 5, 10, 25],
    help='fewshot: images of each class; default: 1 5 10 25',
  )
  parser.add_argument(
    '--seeds',
    type=int,
    nargs='+',
    default=[0, 1, 2],
    help='fewshot: of the choice of images; default: 0 1 2',
  )
  parser.add_argument('--cache', default='', help='a folder that keeps features for the next time')
  parser.add_argument('--format', choices=TABLE, default='table')
  parser.add_argument('--out', default='', help='FILE.json gets all measures')


def vtab(parser: argparse.ArgumentParser) -> None:
  parser.description = (
    'Fine-tunes a checkpoint on the tasks of VTAB-1k; the same line again resumes.'
  )
  parser.epilog = (
    '--config.FIELD=VALUE replaces a field of every run. Exit code: 0; 2 for bad input; 3 '
    'if tasks were left out.'
  )
  parser.add_argument('model', nargs='?', help='as finetune.py takes it: B_16, a path, a URL')
  parser.add_argument('--workdir', required=True, help='gets a folder for each run, and vtab.json')
  parser.add_argument('--tasks', nargs='+', help='some of the 19; default: all')
  parser.add_argument(
    '--rates', nargs='+', type=float, default=[0.001, 0.003, 0.01, 0.03], help='to try'
  )
  parser.add_argument('--config', default='vtab', help='a recipe that takes MODEL,TASK')
  parser.add_argument('--show', action='store_true', help='only print the results so far')
  parser.add_argument('--format', choices=TABLE, default='table')


def report(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Writes report.html and report.png into the folder of a run.'
  parser.epilog = 'Exit code: 0; 2 for bad input; 3 if the report lacks something, which it says.'
  parser.add_argument('run', help="a run's folder")
  add_checkpoint(parser)
  add_split(parser)
  parser.add_argument(
    '--batch_size',
    '--batch-size',
    type=int,
    help='measures anew, with so many images at a time on each device; default: those of training, '
    'at most 256',
  )


def features(parser: argparse.ArgumentParser) -> None:
  parser.description = "Writes what a model's head reads: of images, or of a data set."
  parser.epilog = (
    'Exit code: 0; 2 for bad input; 3 if an image could not be read, which is left out.'
  )
  parser.add_argument('model', help=MODEL)
  add_checkpoint(parser)
  parser.add_argument('images', nargs='*', help='images, and folders of images')
  parser.add_argument('--out', required=True, help='FILE.npz or FILE.parquet')
  add_reading(parser)


def inspect(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Draws what a model looks at: its weights, and what it makes of images.'
  parser.epilog = (
    'Exit code: 0; 2 for bad input; 3 if an image could not be read, which is left out.'
  )
  parser.add_argument('model', help=MODEL)
  add_checkpoint(parser)
  parser.add_argument(
    'images',
    nargs='*',
    default=[],
    help="images, and folders of images; default: of the run's test split",
  )
  parser.add_argument('--out', required=True, help='the folder that gets the pictures and arrays')
  add_split(parser)
  parser.add_argument('--count', type=int, default=8, help='images of a data set; default: 8')
  parser.add_argument('--only', nargs='+', action='extend', choices=PICTURES, help='default: all')
  parser.add_argument(
    '--label', default='', help='the class of evidence and occlusion; default: the likeliest'
  )
  parser.add_argument(
    '--fusion', choices=('mean', 'max', 'min'), default='mean', help='of heads, in the rollout'
  )
  parser.add_argument(
    '--discard', type=float, default=0.0, help='fraction of smallest weights that rollout drops'
  )
  parser.add_argument('--square', type=int, default=0, help='side of the grey square in pixels')
  parser.add_argument('--stride', type=int, default=0, help='pixels from one square to the next')


def convert(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Writes a checkpoint in the names of another library.'
  parser.epilog = 'Exit code: 0; 2 for bad input; 3 if --check finds a difference.'
  parser.add_argument('source', help='any checkpoint: docs/checkpoints.md lists them')
  add_checkpoint(parser)
  parser.add_argument('destination', help='a new file or folder')
  parser.add_argument(
    '--to',
    choices=('npz', 'bigvision', 'timm', 'hf', 'torchvision', 'bundle'),
    required=True,
    help='whose names',
  )
  parser.add_argument(
    '--check', action='store_true', help='compare the two on random images, block by block'
  )


def export(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Writes a model for others to run: see docs/export.md.'
  parser.add_argument('run', help=MODEL)
  add_checkpoint(parser)
  parser.add_argument(
    '--to', default='', help='stablehlo, onnx, npz, timm, hf; default: by the suffix'
  )
  parser.add_argument('--out', default='', help='a new file or folder; default: in the run')
  parser.add_argument(
    '--check',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='compare it in a new process with the model; on by default',
  )


def models(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Lists models.'
  parser.add_argument('name', nargs='*', help='only these')
  parser.add_argument('--image-size', type=int, default=224, help='pixels a side')
  index = parser.add_argument_group('published files, best first (arXiv 2106.10270)')
  index.add_argument('--augreg', metavar='MODEL', help='those of a model, such as B_16')
  index.add_argument('--adapt', default='', metavar='DATASET', help='by accuracy after fine-tuning')
  index.add_argument(
    '--index',
    default='gs://vit_models/augreg/index.csv',
    help='a file or URL; default: %(default)s',
  )
  index.add_argument('--top', type=int, default=10, help='how many; default: %(default)s')
  index.add_argument('--format', choices=TABLE, default='table')


def data(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Looks at data sets.'
  actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()

  show = actions.add_parser(
    'show',
    help='counts, sizes, duplicates, unreadable files, augmented images',
    description='Reads every image of a data set and says what there is.',
    epilog='Exit code: 0; 2 for bad input; 3 if an image cannot be read, in two splits or classes.',
  )
  show.add_argument('source', help=DATA_SET)
  show.add_argument(
    '--split', action='append', help='one, or several by several flags; default all'
  )
  show.add_argument('--out', help='gets a sheet of augmented images, a row each; SHEET.png')
  show.add_argument('--augment', help='training transforms of the sheet; default: as for training')
  show.add_argument('--size', type=int, help='pixels of a side in the sheet; default: 224')
  show.add_argument(
    '--channels', type=int, default=3, help='of images from files and in the sheet; default: RGB'
  )
  show.add_argument('--seed', type=int, default=0, help='of the sheet, as of a run')
  show.add_argument('--threads', type=int, default=cores, help='that read; default: %(default)s')
  show.add_argument('--format', choices=TABLE, default='table')

  save = actions.add_parser(
    'save',
    help='images as files, in a folder for each class',
    epilog='Exit code: 0; 2 for bad input; 3 if images were left out, which are named.',
  )
  save.add_argument('source', help=DATA_SET)
  save.add_argument('folder', help='gets a folder for each class')
  save.add_argument('--split', help='default: test, or without one the first with images')
  save.add_argument('--count', type=int, help='the first ones; default: all')

  prepare = actions.add_parser('prepare', help='downloads and prepares a TFDS set, with a bar')
  prepare.add_argument('name', help='as TFDS has it, or a name of `vit data list`')

  presets = actions.add_parser('list', help='the data sets with a short name')
  presets.add_argument('--format', choices=TABLE, default='table')


def bench(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Measures speed, compile time and memory on synthetic images.'
  parser.add_argument('model', nargs='?', default='ViT-S/16', help='default: %(default)s')
  parser.add_argument('--mode', choices=('train', 'infer', 'both'), default='both')
  parser.add_argument('--batch', type=positive, default=8, help='images of a step')
  parser.add_argument('--image-size', type=positive, default=224, help='pixels')
  parser.add_argument('--channels', type=positive, default=3, help='of the images')
  parser.add_argument('--dtype', help='default: bfloat16, on a CPU float32')
  parser.add_argument('--unroll', type=positive, help='layers per iteration of the compiled loop')
  parser.add_argument('--depth', type=positive, help="layers, if not the model's own")
  parser.add_argument('--turns', type=positive, default=5, help='measurements')
  parser.add_argument('--turn', type=float, default=1.0, help='seconds of each')
  parser.add_argument('--steps', type=positive, help='steps of each, instead')
  parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)


def doctor(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Says what this machine has, and what is wrong with it.'
