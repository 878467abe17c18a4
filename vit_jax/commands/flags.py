"""The flags of every `vit NAME`: read without JAX, so that --help answers at once.

The function of a command's name adds its flags; commands/NAME.py has `run(args)`, which does the
work. tests/test_commands.py compares the choices written out here with the tables that they name.
"""

import argparse
import difflib
import os
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from vit_jax.commands import words
from vit_jax.guards.processes import TIMEOUTS
from vit_jax.text import message_line

MODEL = "a run's folder, a bundle, or a published checkpoint"
DATA_SET = "a data set, such as 'digits', 'folder:PATH' or a name of `vit data list`"
OVERRIDING = (
  'train',
  'vtab',
  'plan',
  'sweep',
)  # these take fields, of which a flag is no abbreviation
SELECTIONS = ('duplicates', 'near', 'outliers', 'labels', 'diverse')
TABLE = ('table', 'json')  # what results are printed as
PICTURES = (
  'filters', 'positions', 'distances', 'layers', 'pca', 'reconstruction', 'page', 'attention',
  'rollout', 'evidence', 'occlusion',
)  # fmt: skip


RECIPES = {  # what each is for, those for a first run first
  'digits': 'a first run: handwritten digits, no download',
  'scratch': 'a small ViT on a set of your own, with nothing to start from',
  'augreg': 'a published ViT fine-tuned on your photos; or pre-training as AugReg does',
  'finetune': 'any checkpoint or run fine-tuned, as the ViT paper does',
  'transfer': 'CIFAR, Pets, Flowers and ImageNet as big_vision fine-tunes on them',
  'food101': '101 dishes, from a published ViT',
  'mae': 'images without labels: a masked autoencoder, from scratch or going on from one',
  'vtab': 'a task of VTAB-1k, of 1,000 images',
  'vit_s16_i1k': 'ViT-S/16 on ImageNet from scratch: the plain baseline',
  'deit3': 'ViTs on ImageNet from scratch, as DeiT III does',
  'lejepa': 'images without labels: views agree, without a teacher',
  'dino': 'images without labels: DINO, iBOT and KoLeo, as DINOv2 does',
  'pretrain': 'ViTs on ImageNet or ImageNet-21k, as the ViT paper does',
  'mixer': 'MLP-Mixer: pre-training, and fine-tuning',
  'bit': 'BiT ResNets: pre-training',
}


class Spelling(NamedTuple):
  """A short flag of `vit train`: the field that it sets, and the value in the field's form."""

  field: str
  metavar: str
  help: str
  form: str = '{}'


SPELLINGS = {
  'lr': Spelling('schedule.learning_rate', 'RATE', 'the highest learning rate, after warm-up'),
  'epochs': Spelling('duration', 'N', 'passes over the training images', '{} epochs'),
  'batch': Spelling('batch_size', 'N', 'images of an update'),
  'size': Spelling('image_size', 'PIXELS', 'a side of the images that the model takes'),
}


class Parser(argparse.ArgumentParser):
  """One whose errors are lines as of any command, with what other tools' words are here."""

  def error(self, message: str) -> NoReturn:
    unknown = message.partition('unrecognized arguments: ')[2]
    short = {spelling.field: name for name, spelling in SPELLINGS.items()}
    hints = [*words.hints(self.prog.rpartition(' ')[2], unknown, short)]
    flag = unknown.partition(' ')[0].partition('=')[0]
    near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
    if not hints and flag.startswith('--') and near:
      hints = [f'did you mean {near[0]}?']
    super().error(message_line('; '.join([message, *dict.fromkeys(hints)])))


def parse(name: str, line: Sequence[str]) -> argparse.Namespace:
  """The flags of `vit NAME`; exits with 2 and the usage where they are wrong."""
  overriding = name in OVERRIDING
  fields, line = overrides(line) if overriding else ([], line)
  parser = Parser(prog=f'vit {name}', allow_abbrev=not overriding)
  globals()[name](parser)
  args = argparse.Namespace(overrides=fields)
  if name != 'train':
    return parser.parse_args(line, args)
  parser.parse_intermixed_args(line, args)
  check_train(parser, args)
  args.overrides = [*spelt(args), *fields]
  return args


def overrides(line: Sequence[str]) -> tuple[list[str], list[str]]:
  """The FIELD=VALUE of every `--config.FIELD=VALUE`, and the other words."""
  prefix = '--config.'
  fields = [word.removeprefix(prefix) for word in line if word.startswith(prefix)]
  return fields, [word for word in line if not word.startswith(prefix)]


def spelt(args: argparse.Namespace) -> list[str]:
  """The FIELD=VALUE of each of SPELLINGS that is among the flags of `vit train`."""
  values = {name: getattr(args, name) for name in SPELLINGS}
  return [
    f'{SPELLINGS[name].field}={SPELLINGS[name].form.format(value)}'
    for name, value in values.items()
    if value is not None
  ]


def positive(text: str) -> int:
  if (value := int(text)) < 1:
    raise ValueError
  return value


def not_negative(text: str) -> int:
  if (value := int(text)) < 0:
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


def train(parser: argparse.ArgumentParser) -> None:
  parser.description = (
    'Trains a model on a data set, by a recipe for its size and this machine; or by --config; or '
    'resumes a run.'
  )
  parser.usage = (
    'vit train DATA [--from MODEL] [--workdir DIR] [--lr RATE] [--epochs N] [--batch N]\n'
    '                 [--size PIXELS] [--config.FIELD=VALUE ...]\n'
    '       vit train --config=RECIPE --workdir=DIR [--config.FIELD=VALUE ...]\n'
    '       vit train --workdir=RUN [--extend DURATION] [--change FIELD=VALUE ...]'
  )
  width = max(map(len, RECIPES))
  parser.epilog = (
    '--config.FIELD=VALUE replaces a field: --config.schedule.learning_rate=3e-4\n\n'
    'recipes, by what they are for (the first lines of configs/NAME.py have examples):\n'
    + '\n'.join(f'  {name:{width}}  {purpose}' for name, purpose in RECIPES.items())
  )
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument('source', nargs='?', default='', metavar='DATA', help=DATA_SET)
  parser.add_argument(
    '--from',
    dest='start',
    default='',
    metavar='MODEL',
    help='a published checkpoint by its name (B_16, R_Ti_16), a file, a URL, or a run',
  )
  parser.add_argument('--config', help='PATH.py[:ARG], or the name of a recipe below')
  parser.add_argument('--workdir', help="the run's folder; default: runs/ and the data set's name")
  for name, spelling in SPELLINGS.items():
    meaning = f'{spelling.help}: --config.{spelling.field}'
    parser.add_argument(f'--{name}', metavar=spelling.metavar, help=meaning)
  parser.add_argument(
    '--extend',
    default='',
    metavar='DURATION',
    help="how much further the run goes: '10 epochs', '500 steps'",
  )
  parser.add_argument(
    '--change',
    nargs='+',
    action='extend',
    default=[],
    metavar='FIELD=VALUE',
    help='fields of the run that change, from its newest checkpoint on',
  )
  parser.add_argument(
    '--open', action='store_true', help="the run's page in a browser, from the first evaluation on"
  )
  hosts = parser.add_argument_group(
    'several hosts', 'or JAX_COORDINATOR_ADDRESS and its companions'
  )
  hosts.add_argument('--distributed', action='store_true', help='find the others: TPU pod, SLURM')
  hosts.add_argument('--coordinator_address', help='HOST:PORT of process 0')
  hosts.add_argument('--num_processes', type=int)
  hosts.add_argument('--process_id', type=int)
  for name, (seconds, meaning) in TIMEOUTS.items():
    hosts.add_argument(
      f'--{name}_timeout',
      type=int,
      default=seconds,
      metavar='SECONDS',
      help=f'{meaning}; {seconds}',
    )


def check_train(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
  """Ends with the usage where the flags of `vit train` name no run, or two."""
  source, config, workdir = args.source, args.config, args.workdir
  if '=' in source and ':' not in source and not os.path.exists(source):
    parser.error(f'unrecognized arguments: {source}')
  if source and config is not None:
    parser.error(f'{source} and --config: a recipe is chosen for a data set, or named')
  if args.start and not source:
    parser.error('--from wants a data set, as in `vit train folder:photos --from B_16`')
  if config is not None and workdir is None:
    parser.error('--config wants --workdir, the folder of the run')
  if not source and config is None and workdir is None:
    parser.error('wants a data set, such as folder:photos; --config and --workdir; or --workdir')
  if not source and config is None and not os.path.lexists(workdir):
    parser.error(f'{workdir} is no run to resume: a new one wants a data set, or --config')


def predict(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Names what images show.'
  parser.epilog = 'Exit code: 0; 2 for bad input; 3 if an image could not be read.'
  parser.add_argument('run', help=MODEL)
  add_checkpoint(parser)
  parser.add_argument('files', nargs='+', help='images, folders of images, patterns, URLs')
  parser.add_argument('--top', type=int, default=3, help='classes per image')
  parser.add_argument(
    '--threshold', type=float, default=0.0, help='the least score of a class, in [0, 1]'
  )
  parser.add_argument(
    '--out',
    default='',
    metavar='FILE',
    help='gets the predictions as they come, .csv, .json or .jsonl; the same line again goes on',
  )
  parser.add_argument('--format', choices=('table', 'csv', 'json'), default='table')
  add_quoting(parser)


def add_quoting(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--quote-formulas',
    action='store_true',
    help='csv: an apostrophe before names that a spreadsheet would compute',
  )


def add_probing(parser: argparse.ArgumentParser) -> None:
  """What probes by features learn from, and what comes of it."""
  parser.add_argument(
    '--train', default='train', help='knn, fewshot, linear: the split to learn from'
  )
  parser.add_argument(
    '--validation',
    default='',
    help='linear: the split that regularisation is chosen on; default: validation, or where that '
    'is measured a tenth of each class of --train',
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
  add_probing(parser)


def probe(parser: argparse.ArgumentParser) -> None:
  parser.description = (
    'Measures what frozen features tell apart: of images, as `vit evaluate --method linear`; or of '
    'their patches, by linear segmentation, where --on is a folder with images/ and masks/.'
  )
  parser.add_argument('model', help=MODEL)
  add_checkpoint(parser)
  add_reading(parser)
  parser.add_argument('--method', choices=('linear', 'knn', 'fewshot'), default='linear')
  parser.add_argument(
    '--masks', default='', metavar='DIR', help='of PNGs of class indices for the images of --on'
  )
  parser.add_argument(
    '--classes', default='', metavar='FILE', help='masks: a name in each line; default: numbers'
  )
  add_probing(parser)
  parser.set_defaults(label_map='', restrict=False)


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


def sweep(parser: argparse.ArgumentParser) -> None:
  parser.description = (
    'Trains a run for each point of a grid, one after another, and compares them; the same line '
    'again goes on.'
  )
  parser.epilog = (
    '--config.FIELD=VALUE replaces a field of every run. Exit code: 0; 2 for bad input; 3 if a run '
    'failed.'
  )
  parser.add_argument('--config', required=True, help='PATH.py[:ARG], or the name of a recipe')
  parser.add_argument('--workdir', required=True, help='gets a folder for each run, and the page')
  parser.add_argument(
    '--grid',
    nargs='+',
    required=True,
    metavar='FIELD=VALUES',
    help='values of a field: 1e-3,3e-3, or whole numbers 0:3, which are 0 1 2',
  )
  parser.add_argument(
    '--print', action='store_true', help='only print a line for each run, for a cluster'
  )


def compare(parser: argparse.ArgumentParser) -> None:
  parser.description = (
    'Sets runs beside one another: curves, the fields that differ, results, a test on the same '
    'images, and those on which they disagree. Runs that differ by their seed alone are a group.'
  )
  parser.epilog = 'Exit code: 0; 2 for bad input; 3 if a run is not finished.'
  parser.add_argument('runs', nargs='+', metavar='RUN', help="the runs' folders")
  parser.add_argument(
    '--out', default='compare', metavar='DIR', help='gets compare.html and .json; default: compare'
  )
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


def search(parser: argparse.ArgumentParser) -> None:
  parser.description = (
    'Searches photos by what a model makes of them: the most like some images; without any, '
    'duplicates, near-duplicates, outliers and labels that are likely wrong.'
  )
  parser.epilog = (
    'The same line again resumes. Exit code: 0; 2 for bad input; 3 if an image could not be read, '
    'which is left out.'
  )
  parser.add_argument('model', help=MODEL)
  add_checkpoint(parser)
  parser.add_argument('photos', help=f'a folder of images, or {DATA_SET}')
  parser.add_argument('queries', nargs='*', help='images, folders of images, patterns')
  parser.add_argument('--split', default='all', help='of a data set; default: all of it')
  parser.add_argument(
    '--only', nargs='+', action='extend', choices=SELECTIONS, help='default: all but diverse'
  )
  parser.add_argument(
    '--k', type=positive, default=10, help='nearest images that are compared; default: %(default)s'
  )
  parser.add_argument(
    '--near', type=float, default=0.95, help='cosine of a near-duplicate; default: %(default)s'
  )
  parser.add_argument(
    '--diverse', type=positive, metavar='N', help='a subset of N images that covers the others'
  )
  parser.add_argument(
    '--count', type=positive, default=24, help='shown of each list; default: %(default)s'
  )
  parser.add_argument('--out', default='', metavar='DIR', help='gets search.html and search.csv')
  add_quoting(parser)
  parser.add_argument('--preprocess', default='', help="a line of transforms; default: the model's")
  parser.add_argument(
    '--batch-size', type=int, default=256, help='images on each device; default: %(default)s'
  )
  parser.add_argument(
    '--cache', help="a folder that keeps features, '' for none; default: the user's"
  )
  parser.add_argument('--format', choices=TABLE, default='table')


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
  parser.add_argument(
    '--faithfulness',
    choices=('on', 'off'),
    default='on',
    help='deletion and insertion areas of each explanation; default: on',
  )


def serve(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Serves a page to try a model on, and POST /predict: see docs/serving.md.'
  parser.epilog = 'Ctrl-C or SIGTERM ends it: what runs is answered. Exit code: 0; 2 for bad input.'
  parser.add_argument('run', help=f'{MODEL}, or an exported .stablehlo')
  add_checkpoint(parser)
  parser.add_argument('--port', type=int, default=8000, help='0: a free one; default: %(default)s')
  parser.add_argument(
    '--host', default='127.0.0.1', help='the address to listen at; default: this machine alone'
  )
  parser.add_argument(
    '--batch', type=positive, default=64, help='images computed at once, at most; default: 64'
  )
  parser.add_argument(
    '--queue', type=positive, default=256, help='images that may wait; default: %(default)s'
  )
  parser.add_argument(
    '--timeout', type=float, default=30.0, help='seconds of a request; default: 30'
  )
  parser.add_argument(
    '--max-mb', type=positive, default=20, help='MiB of the file of an image; default: %(default)s'
  )
  parser.add_argument(
    '--nearest',
    type=int,
    default=2000,
    help='training photos that are compared with a photo, 0 for none; default: %(default)s',
  )


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
  parser.add_argument(
    '--encoder-only', action='store_true', help='leave the decoder of a masked autoencoder out'
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
  actions = parser.add_subparsers(dest='action', required=True, metavar='show|save|prepare|list')
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
  show.add_argument(
    '--config', help='recipe whose transforms the sheet shows; default: as `vit train` chooses'
  )
  show.add_argument('--augment', help="training transforms of the sheet; default: the recipe's")
  show.add_argument('--size', type=int, help="pixels of a side in the sheet; default: the recipe's")
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
  save.add_argument('--count', type=int, help='spread over the classes; default: all')

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


def plan(parser: argparse.ArgumentParser) -> None:
  parser.description = (
    "Compiles a config's step for chips that are not here: does it fit, how fast."
  )
  parser.epilog = (
    '--config.FIELD=VALUE replaces a field. Exit code: 0; 2 for bad input; 3 if it does not fit.'
  )
  parser.add_argument('--config', required=True, help='PATH.py[:ARG], or the name of a shipped one')
  parser.add_argument(
    '--chips',
    default='v5e:2x2',
    help='KIND:TOPOLOGY, such as v5e:4x4, v5p:2x2x1, h100:8, cpu:8; default: %(default)s',
  )
  parser.add_argument('--batch-size', type=positive, help="images of an update; default: config's")
  parser.add_argument('--classes', type=positive, help='of a data set that is no preset')
  parser.add_argument(
    '--tries',
    type=not_negative,
    default=6,
    help='compilations of what may fit instead; default: %(default)s',
  )
  parser.add_argument('--formulas', action='store_true', help='arithmetic alone: compile nothing')
  parser.add_argument('--json', action='store_true', help='print all there is, as JSON')


def doctor(parser: argparse.ArgumentParser) -> None:
  parser.description = 'Says what this machine has, and what is wrong with it.'
