"""What the documents say is what the library does: their tables and examples are read here."""

import ast
import contextlib
import inspect
import json
import os
import pathlib
import re
import shlex
import subprocess
import tomllib

import numpy as np
import pytest
import yaml
from PIL import Image

import vit_jax
from tests.conftest import drawn, shapes
from tests.interop import ours
from vit_jax import __main__, bundle, config, convert, pipeline, plan, sources
from vit_jax.commands import flags
from vit_jax.convert import engine, families, pickles, resample, weights, writing
from vit_jax.images import decoding, randaug, transforms
from vit_jax.models import vit
from vit_jax.sources import classes as labelling
from vit_jax.sources import presets
from vit_jax.views import report

ROOT = pathlib.Path(__file__).parents[1]
README, CHECKPOINTS = ROOT / 'README.md', ROOT / 'docs' / 'checkpoints.md'
DATA = ROOT / 'docs' / 'data.md'


def tables(path):
  """Each table of a document: its titles, and its rows as lists of cells."""
  parsed, rows = [], []
  for line in [*path.read_text().splitlines(), '']:
    line = line.strip()
    if line.startswith('|') and line.endswith('|'):
      cells = re.split(r'(?<!\\)\|', line[1:-1])
      rows.append([cell.strip().replace('\\|', '|') for cell in cells])
    elif rows:
      titles, rule, *body = rows
      assert all(re.fullmatch('-+', cell) for cell in rule), titles
      assert all(len(row) == len(titles) for row in body), titles
      parsed.append((titles, body))
      rows = []
  return parsed


def table(first, path=CHECKPOINTS):
  """The rows of the table of a document whose first title that is."""
  (rows,) = [body for titles, body in tables(path) if titles[0] == first]
  return rows


def coded(cell):
  """What stands in code font."""
  return re.findall(r'`([^`]+)`', cell)


FAMILIES = table('dialect')
FORMS = (*writing.WRITERS, 'bundle')
ROWS = pytest.mark.parametrize('row', FAMILIES, ids=[coded(row[2])[-1] for row in FAMILIES])


def arrays(row):
  """A file with the names of a row and nothing else."""
  names = [*coded(row[2]), coded(row[3])[0]]
  return {name: np.zeros((2, 2, 2, 2), np.float32) for name in names}


def signs(row):
  """The arrays that a row is recognised by, with the axes that it says: one elsewhere."""
  axes = re.search(r'of (\d) axes', row[2])
  return {name: np.zeros((1,) * int(axes[1] if axes else 1)) for name in coded(row[2])}


def family(row):
  match = families.unwrapped(signs(row))
  return None if match is None else match[0]


def theirs(row):
  """Those arrays as the family's table has their names."""
  source = family(row)
  return engine.renamed(source.tidy(arrays(row)), source.renames)


def test_every_family_has_one_row_and_every_row_a_family():
  matches = [family(row) for row in FAMILIES]
  assert None not in matches
  places = [[candidate is one for candidate in families.FAMILIES].index(True) for one in matches]
  assert sorted(places) == list(range(len(families.FAMILIES)))


@ROWS
def test_a_row_tells_its_family(row):
  match = family(row)
  assert (coded(row[0]), coded(row[1])[-1]) == ([match.dialect], match.model)
  assert coded(row[5]) == [match.resample]


@ROWS
def test_each_name_that_a_family_is_recognised_by_is_needed(row):
  for absent in coded(row[2]):
    others = {name: array for name, array in signs(row).items() if name != absent}
    match = families.unwrapped(others) if others else None
    assert match is None or match[0] is not family(row), absent


@ROWS
def test_the_example_of_a_row_is_in_its_table(row):
  example, expected = coded(row[3])
  before = list(arrays(row))
  name = list(theirs(row))[before.index(example)]
  assert [line.ours for line in family(row).table if line.pattern.fullmatch(name)] == [expected]


@ROWS
def test_a_row_tells_all_that_its_dialect_settles(row):
  renamed = theirs(row)
  here, _ = engine.to_ours(family(row).table, renamed, 1)
  here.setdefault('positions', np.zeros(1))  # without which a Google ViT has sines and cosines
  written = dict(re.fullmatch(r'(\w+)=(.+)', text).groups() for text in coded(row[4]))
  settled = family(row).details(renamed, here, {})
  assert {field: ast.literal_eval(value) for field, value in written.items()} == settled


def test_the_prefixes_told_are_those_that_are_taken_off():
  (wrappers,) = re.findall(r'stands\s+round them: (.+?);', CHECKPOINTS.read_text(), re.DOTALL)
  assert sorted(coded(wrappers)) == sorted(set(families.WRAPPERS))


def test_the_rules_told_are_those_that_there_are():
  kernels = {'triangle': resample.triangle, 'cubic, -0.5': resample.KEYS}
  kernels['cubic, -0.75'] = resample.TORCH
  yes = {'yes': True, 'no': False}
  rules = {
    coded(rule)[0]: resample.Rule(kernels[kernel], yes[corners], yes[antialias])
    for rule, kernel, corners, antialias, _ in table('rule')
  }
  rules |= {f'{name}_square': rule._replace(square=True) for name, rule in rules.items()}
  assert rules == resample.RULES


def test_the_limits_told_are_those_that_hold():
  documented = {coded(limit)[0]: int(value.replace(',', '')) for limit, value, _ in table('limit')}
  limits = vars(weights) | vars(pickles)
  assert documented == {name: limits[name] for name in documented}
  assert len(documented) >= 9


def test_the_dialects_told_are_those_that_are_written(tmp_path):
  assert [coded(row[0])[0] for row in table('`--to`')] == list(FORMS)
  assert {name for row in FAMILIES for name in coded(row[6])} == set(FORMS) - {'bundle'}
  with pytest.raises(ValueError, match='unknown dialect') as error:
    convert.write(tmp_path / 'model', None, to='?')
  dialects = str(error.value).split('known: ')[1].split(', ')
  assert set(FORMS) - {'bundle'} == set(dialects) - {'bundle'}


def test_the_agreement_told_is_what_the_interop_tests_demand():
  source = (ROOT / 'tests' / 'interop' / 'test_families.py').read_text()
  looser = ast.literal_eval(re.search(r'^LOOSER = (\{.*?\})', source, re.DOTALL | re.MULTILINE)[1])
  bounds = {family.lower(): float(bound) for family, bound, _ in table('family')}
  assert bounds.pop('transformers and mixers, every dialect') == ours.TOLERANCE
  assert bounds == looser


def blocks(path, language):
  """The code blocks of a language, '' for those that name none."""
  fenced = re.findall(r'^```(\w*)\n(.*?)^```$', path.read_text(), re.DOTALL | re.MULTILINE)
  return [block for kind, block in fenced if kind == language]


def of_documents(*paths):
  return pytest.mark.parametrize('path', paths, ids=lambda path: path.name)


DOCUMENTS = of_documents(
  README, *(page for page in sorted((ROOT / 'docs').glob('*.md')) if page.stem != 'results')
)


@of_documents(README, CHECKPOINTS, ROOT / 'docs' / 'quickstart.md')
def test_python_in_documents_calls_what_there_is(path):
  calls = 0
  for block in blocks(path, 'python'):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.Call) and ast.unparse(node.func).startswith('vit_jax.'):
        function = vit_jax
        for part in ast.unparse(node.func).split('.')[1:]:
          function = getattr(function, part)
        keywords = {word.arg: None for word in node.keywords}
        bound = inspect.signature(function).bind(*node.args, **keywords)
        fields = set(bound.arguments.get('fields', {}))
        assert fields <= set(vit.ViT.__dataclass_fields__), ast.unparse(node)
        calls += 1
  assert calls


@DOCUMENTS
def test_commands_in_documents_exist(path):
  text = path.read_text()
  commands = re.findall(r'(?:^|`)vit\s([a-z]+)\b', text, re.MULTILINE)
  assert commands
  assert set(commands) <= set(__main__.COMMANDS)


@DOCUMENTS
def test_links_in_documents_lead_somewhere(path):
  links = re.findall(r'\]\(([^)#]+)\)', path.read_text())
  gone = [link for link in links if '://' not in link and not (path.parent / link).exists()]
  assert gone == []


def test_the_readme_lists_every_file_or_its_folder():
  (tree,) = [block for block in blocks(README, '') if 'vit_jax/train.py' in block]
  listed = []
  for line in tree.splitlines():
    first, *others = re.match(r'[^\s,]+(?:, [\w.]+\.py)*', line)[0].split(', ')
    listed += [first, *(f'{first.rpartition("/")[0]}/{other}' for other in others)]
  assert [path for path in listed if not (ROOT / path).exists()] == []
  library = {str(path.relative_to(ROOT)) for path in (ROOT / 'vit_jax').rglob('*.py')}
  unlisted = {path for path in library if '/configs/' not in path} - set(listed)
  folders = tuple(path for path in listed if path.endswith('/'))
  hidden = ('vit_jax/__init__.py',)
  assert sorted(p for p in unlisted if not p.startswith(folders) and p not in hidden) == []


def test_the_readme_has_fewer_than_1000_words():
  assert len(README.read_text().split()) < 1000


# docs/data.md

PHOTO = np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """The folder that the examples run in, with the files that they name."""
  root = tmp_path_factory.mktemp('data')
  for label, name in enumerate(('rose', 'tulip')):
    (root / 'photos' / name).mkdir(parents=True)
    for index in range(40):
      image = Image.fromarray(np.roll(PHOTO, 2 * index + label, 1))
      image.save(root / 'photos' / name / f'{index}.jpg')
  (listed,) = blocks(DATA, 'csv')
  (root / 'photos.csv').write_text(listed)
  with contextlib.chdir(root):
    for block in blocks(DATA, 'python'):
      exec(block, {})
    with contextlib.suppress(ModuleNotFoundError):
      from pyarrow import csv, parquet

      parquet.write_table(csv.read_csv('photos.csv'), 'photos.parquet')
  return root


@pytest.fixture
def among_photos(photos, monkeypatch):
  monkeypatch.chdir(photos)
  monkeypatch.setenv('XDG_CACHE_HOME', str(photos / 'cache'))


def test_every_kind_of_source_is_told():
  kinds = [coded(row[0]) for row in table('kind', DATA)]
  assert sorted(kinds) == sorted([kind] for kind in sources.KINDS)
  for (kind,), row in zip(kinds, table('kind', DATA)):
    assert all(example.partition(':')[0] == kind for example in coded(row[1]))


OFFLINE = [row for row in table('kind', DATA) if coded(row[0])[0] not in ('tfds', 'hf')]


@pytest.mark.parametrize('row', OFFLINE, ids=[coded(row[0])[0] for row in OFFLINE])
def test_an_example_of_a_source_opens(row, among_photos):
  (example,) = coded(row[1])
  if example.startswith('parquet'):
    pytest.importorskip('pyarrow')
  source = sources.open_source(example, 'train')
  record = source[0]
  if example.startswith('images'):
    assert source.classes == () and record.keys() == {'image'}
  else:
    assert len(source.classes) >= 2 and 0 <= record['label'] < len(source.classes)
  assert transforms.as_pixels(record['image']).dtype == np.uint8


@pytest.mark.parametrize('row', table('example', DATA), ids=lambda row: coded(row[0])[0])
def test_an_example_of_a_split_is_what_it_says(row):
  (example,), digits = coded(row[0]), sources.open_source('digits', 'train')
  expected = {
    'train': len(digits),
    'train[:98%]': round(0.98 * len(digits)),
    'train[98%:]': len(digits) - round(0.98 * len(digits)),
    'train[100:200]': 100,
    'train[-20:]': 20,
    'train+validation': len(digits) + len(sources.open_source('digits', 'validation')),
    'all': 1797,
  }
  assert len(sources.open_source('digits', example)) == expected[example]


def test_every_preset_is_told_with_its_source_classes_and_steps():
  documented = {}
  for name, source, classes, steps, _ in table('preset', DATA):
    numbers = [int(text.replace(',', '') or 0) for text in (classes, steps)]
    documented[coded(name)[0]] = (coded(source)[0], *numbers)
  expected = {name: (p.source, p.classes, p.steps) for name, p in presets.PRESETS.items()}
  tasks = [name for row in table('group', DATA) for name in coded(row[1])]
  assert len(tasks) == len(set(tasks)) == 19
  assert set(tasks) == {name for name in expected if name.startswith('vtab/')}
  assert {expected[name][2] for name in tasks} == {2500}
  assert documented == {name: expected[name] for name in expected if name not in tasks}


STEPS = table('step', DATA)


def test_every_step_has_a_row():
  assert sorted(coded(row[0]) for row in STEPS) == sorted([name] for name in transforms.STEPS)


@pytest.mark.parametrize('row', STEPS, ids=[coded(row[0])[0] for row in STEPS])
def test_an_example_of_a_step_gives_an_image(row):
  (step,), (example,) = coded(row[0]), coded(row[1])
  assert step in example
  transform = transforms.compose(example, (224, 224))
  for seed in range(3):
    image = transform(PHOTO, np.random.default_rng(seed))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if '224' in example:
      assert image.shape == (224, 224, 3)


def test_the_methods_told_are_those_that_there_are():
  assert [coded(row[0])[0] for row in table('method', DATA)] == list(transforms.METHODS)


@pytest.mark.parametrize('row', table('field', DATA), ids=lambda row: coded(row[0])[0])
def test_an_example_of_a_field_is_taken(row):
  (example,) = coded(row[0])
  field, _, value = example.partition('=')
  section, name = field.split('.')
  assert str(config.load('default', [example])[section][name]) == value
  assert str(config.default()[section][name]) != value


def test_the_limits_on_bad_images_are_those_that_hold():
  text = ' '.join(DATA.read_text().split())
  assert f'over {decoding.MAX_PIXELS:,} pixels' in text
  assert f'Over {100 * pipeline.MAX_UNREADABLE:.0f} % of them' in text
  assert f'{pipeline.TRIES} in a row' in text


def test_the_limits_on_steps_are_those_that_hold():
  text = ' '.join(DATA.read_text().split())
  assert f'{transforms.MAX_SIDE:,} pixels at most' in text
  assert labelling.MAX_GAPS == 10 and 'a tenth of the classes has images' in text


def test_a_third_of_small_images_is_one_colour_after_randaug():
  step, flat = transforms.compose('resize(32) | randaug(2, 10)', (32, 32)), 0
  for seed in range(400):
    flat += np.ptp(step(PHOTO, np.random.default_rng(seed)), axis=(0, 1)).max() == 0
  assert abs(flat / 400 - (1 - (13 / 16) ** 2)) < 0.08  # three standard deviations
  shift, square = (randaug.RANDAUG[name][1](1) for name in ('TranslateX', 'Cutout'))
  text = ' '.join(DATA.read_text().split())
  assert f'{shift:.0f} of them at magnitude 10, and cuts out a square of {2 * square}' in text


@pytest.mark.parametrize(('extra', 'module'), [('tfds', 'tfds_prepare'), ('hf', 'hf')])
def test_an_extra_is_asked_for_in_the_same_words_as_by_the_code(extra, module):
  package = f"'vit_jax[{extra}]'"
  assert f'pip install {package}' in ' '.join(DATA.read_text().split())
  assert package in (ROOT / f'vit_jax/sources/{module}.py').read_text()


def test_the_line_that_trains_on_photos_is_a_plan(among_photos):
  lines = DATA.read_text().replace('\\\n', '').splitlines()
  (line,) = [line for line in lines if line.startswith('vit train ')]
  words = [word for word in line.split() if word.startswith('--config.')]
  ready = plan.make_plan(config.load('default', [word.removeprefix('--config.') for word in words]))
  assert ready.splits['train'].classes == ('rose', 'tulip')
  assert 'antialias' in ready.config.data.augment
  assert ready.task.deliver({}).preprocess.steps == ready.config.data.preprocess
  assert "method='bilinear_antialias'" in ready.config.data.preprocess
  assert {use: len(source) for use, source in ready.splits.items()} == {
    'train': 72,
    'validation': 8,
  }


@pytest.mark.parametrize('command', ['show', 'save', 'prepare', 'list'])
def test_every_command_on_data_is_told(command, capsys):
  assert any(f'vit data {command}' in coded(row[0])[0] for row in table('command', DATA))
  with pytest.raises(SystemExit) as ended:
    __main__.main(['data', command, '--help'])
  assert ended.value.code == 0 and f'vit data {command}' in capsys.readouterr().out


def test_the_line_that_shows_photos_shows_them(among_photos, capsys):
  (line,) = [line for line in DATA.read_text().splitlines() if line.startswith('vit data show f')]
  assert __main__.main(line.split()[1:]) == 0
  assert 'folder:photos, 2 classes' in capsys.readouterr().out
  with Image.open('sheet.png') as sheet:
    assert min(sheet.size) > 8 * 64  # a row for each of eight images, and its names


def test_the_page_on_data_has_fewer_than_250_lines():
  assert len(DATA.read_text().splitlines()) < 250


# docs/results.md

RESULTS = ROOT / 'docs/results.md'
UNLABELLED = sorted((ROOT / 'benchmarks/results').glob('without_labels_*_*.json'))


@pytest.mark.parametrize('experiment', ['transfer', 'optimizers', 'distil'])
def test_results_are_those_that_were_measured(experiment):
  result = json.loads((ROOT / f'benchmarks/results/{experiment}.json').read_text())
  assert result['seeds'] == [0, 1, 2]
  for name, row in result['accuracy'].items():
    cells = [row] if 'mean' in row else row.values()
    numbers = [f'{100 * cell["mean"]:.1f} ± {100 * cell["deviation"]:.1f}' for cell in cells]
    assert f'| {" | ".join([name, *numbers])} |' in RESULTS.read_text()
  assert result['provenance']['commit'][:7] in RESULTS.read_text()


def shown(cell):
  return f'{100 * cell["mean"]:.1f} ± {100 * cell["deviation"]:.1f}'


@pytest.mark.parametrize('path', UNLABELLED, ids=lambda path: path.stem)
def test_results_without_labels_are_those_that_were_measured(path):
  result, page = json.loads(path.read_text()), RESULTS.read_text()
  data, method = path.stem.removeprefix('without_labels_').split('_')
  section = page[page.index(f'## Without labels: {data}') :].split('\n## ')[0]
  rows = {method: [result['k-NN'][name] for name in ('initialised', method, 'supervised')]}
  tuned = result.get('tuning', {'accuracy': {}})['accuracy']
  for name, cells in [*rows.items(), *((name, row.values()) for name, row in tuned.items())]:
    assert f'| {" | ".join([name, *map(shown, cells)])} |' in section
  assert result['seeds'] == [0, 1, 2] and result['provenance']['commit'][:7] in section


# docs/quickstart.md

QUICKSTART = ROOT / 'docs/quickstart.md'


def lines_of(text):
  """The words of the `vit` lines of a text, without `vit`."""
  lines = text.replace('\\\n', ' ').splitlines()
  return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith('vit ')]


def tiny_checkpoint(folder):
  """A checkpoint of a tiny ViT, in the place of a published one that is fetched."""
  sizes = dict(patch=8, width=16, depth=1, heads=2, mlp_dim=16)
  model = vit_jax.build('ViT-S/16', num_classes=7, **sizes)
  looks = bundle.Preprocess('resize', (16, 16))
  params = drawn(shapes(model, looks.size), 0.1)
  bundle.write(folder, bundle.Bundle(model, params, tuple('abcdefg'), looks, 'ViT-S/16'))
  return folder


AFTER_TRAINING = report.after_training  # which conftest replaces in tests
SMALLER = {'duration': 2, 'schedule.warmup': 0}
TINY = {'model.width': 16, 'model.depth': 1, 'model.heads': 2, 'model.mlp_dim': 16}
TINY |= {'optimizer.name': 'sgd', 'optimizer.weight_decay': 0}  # which is soon traced
FEWER = {'export': ['--no-check'], 'inspect': ['--count', '2']}  # what the commands' own tests do
FROM_NOTHING = {'digits': TINY, 'default': TINY | {'image_size': 16}}  # by the config's name
VIEWS = {'views.local_count': 1, 'views.local_size': 8}
VIEWS |= {'evaluation.every': '1 epoch', 'checkpoint.every': '1 epoch'}
HEADS = {'dino': VIEWS | {'dino.prototypes': 16, 'dino.hidden': 16, 'dino.bottleneck': 16}}


def ran(lines, fields, capsys):
  """What each command printed; those that fine-tune have those fields, too."""
  said = {}
  for words in lines:
    if words[0] == 'train':
      name = ''.join(w.removeprefix('--config=') for w in words if w.startswith('--config='))
      smaller = SMALLER | FROM_NOTHING.get(name, fields) | HEADS.get(name.split(':')[0], {})
      if words[1].startswith('--workdir='):  # a run that is there
        smaller = {}
      words = [*words, *(f'--config.{field}={value}' for field, value in smaller.items())]
    assert __main__.main([*words, *FEWER.get(words[0], [])]) == 0, capsys.readouterr().err
    said[words[0]] = capsys.readouterr().out
  return said


def fine_tuning(folder):
  """Fields by which a tiny checkpoint takes the place of a published one."""
  fields = {'pretrained': tiny_checkpoint(folder), 'model.name': 'ViT-S/16'}
  return fields | {'image_size': 16, 'batch_size': 16}


@pytest.fixture
def beside(photos, tmp_path, monkeypatch):
  """An empty folder but for what the lines of a page name; fields that fine-tune from there."""
  fields = fine_tuning(tmp_path / 'tiny')
  convert.write(tmp_path / 'B_16.npz', vit_jax.load(fields['pretrained']), to='npz')
  bundle.write(tmp_path / 'runs/flowers/model', vit_jax.load(fields['pretrained']))
  for name in ('photos', 'new_photos', 'new'):
    (tmp_path / name).symlink_to(photos / 'photos')
  (tmp_path / 'images').symlink_to(photos / 'photos' / 'rose')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(photos / 'cache'))
  return fields


MADE = {
  'README.md': ('sheet.png', 'runs/digits/report.html', 'runs/digits/model.stablehlo', 'vit_b16'),
  'docs/checkpoints.md': ('vit_b16/model.safetensors',),
  'docs/data.md': ('sheet.png', 'runs/photos/model'),
  'docs/export.md': ('runs/flowers/model.stablehlo', 'runs/flowers/model-hf', 'vit_b16'),
  'docs/search.md': ('search/search.html', 'search/search.csv'),
}


@pytest.mark.parametrize('page', MADE)
def test_the_lines_of_a_page_run_and_leave_their_files(page, beside, capsys):
  commands = [lines_of(block) for block in blocks(ROOT / page, '')]
  lines = [words for block in commands for words in block]
  lines = [words for words in lines if 'onnx' not in words]  # tests/interop/test_onnx.py has that
  assert lines and ran(lines, beside, capsys)
  assert [name for name in MADE[page] if not pathlib.Path(name).exists()] == []


def test_the_quickstart_runs_and_leaves_what_it_says(photos, among_photos, capsys, monkeypatch):
  monkeypatch.setattr(report, 'after_training', AFTER_TRAINING)
  (photos / 'new').mkdir()
  for index in (1, 2):
    Image.fromarray(PHOTO).save(photos / 'new' / f'{index}.jpg')
  lines = lines_of('\n'.join(blocks(QUICKSTART, '')))
  assert len(lines) == 7
  said = ran(lines, fine_tuning(photos / 'tiny'), capsys)
  assert all(name in said['predict'] for name in ('1.jpg', '2.jpg', 'rose', 'tulip'))
  made = ['look/attention.html', 'flowers.stablehlo', 'runs/flowers/model/README.md']
  assert [name for name in made if not (photos / name).is_file()] == []
  documented = [name for row in table('in `runs/flowers`', QUICKSTART) for name in coded(row[0])]
  assert len(documented) == 9
  assert [name for name in documented if not (photos / 'runs/flowers' / name).exists()] == []
  (block,) = blocks(QUICKSTART, 'python')
  values = {}
  exec(block, values)
  assert set(values['run'].classes) == {'rose', 'tulip'}


def test_the_extras_that_are_installed_are_those_of_the_project():
  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
  installed = re.findall(r'\[([a-z]+)\][\'"]', QUICKSTART.read_text() + SCALE_OUT.read_text())
  assert {'cuda', 'tpu'} <= set(installed) <= set(extras)


# docs/scale_out.md

SCALE_OUT = ROOT / 'docs/scale_out.md'


def manifests():
  return list(yaml.safe_load_all(blocks(SCALE_OUT, 'yaml')[0]))


def trainings():
  """The words of every training that the page starts, of whatever file."""
  (job,) = [part for part in manifests() if part['kind'] == 'Job']
  (container,) = job['spec']['template']['spec']['containers']
  text = '\n'.join([*blocks(SCALE_OUT, 'sh'), *container['args']]).replace('\\\n', ' ')
  matches = re.findall(r'\bvit train (--[^&\'\n]+)', text)
  return [shlex.split(words) for words in matches]


def test_every_training_of_the_page_is_a_config():
  lines = trainings()
  assert len(lines) == 6
  for words in lines:
    args = flags.parse('train', words)
    config.load(args.config, args.overrides)
    assert args.workdir and '://' not in args.workdir


def test_the_mesh_of_eight_trains(beside, capsys):
  (words,) = [words for words in trainings() if '--workdir=runs/mesh' in words]
  assert 'data 2 x fsdp 2 x tensor 2' in ran([['train', *words]], {}, capsys)['train']


def test_the_lines_of_two_processes_are_those_of_one_run():
  lines = [words for words in trainings() if '--workdir=runs/two' in words]
  first, second = (flags.parse('train', words) for words in lines)
  assert vars(first) | {'process_id': 1} == vars(second) | {'process_id': 1}
  assert (first.process_id, second.process_id, first.num_processes) == (0, 1, 2)
  assert first.coordinator_address.startswith('127.0.0.1:')  # test_processes.py runs such a pair


def test_every_script_of_the_page_is_bash(tmp_path):
  scripts = [block for block in blocks(SCALE_OUT, 'sh') if block.startswith('#!')]
  (job,) = [part for part in manifests() if part['kind'] == 'Job']
  scripts += job['spec']['template']['spec']['containers'][0]['args']
  assert len(scripts) == 3
  for script in scripts:
    ended = subprocess.run(['bash', '-n'], input=script, text=True, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, '')


@pytest.mark.parametrize(
  'does, signalled, code',
  [
    ('mkdir -p RUN/model', False, 0),
    ('exit 2', False, 2),
    ('true', False, 1),
    ('trap "exit 0" TERM; echo ready; while :; do sleep 0.05; done', True, 1),
    ('trap "mkdir -p RUN/model; exit 0" TERM; echo ready; while :; do sleep 0.05; done', True, 0),
  ],
  ids=['finished', 'failed', 'stopped and saved', 'signalled', 'signalled at the end'],
)
def test_a_pod_ends_with_zero_only_where_the_run_is_finished(does, signalled, code, tmp_path):
  (job,) = [part for part in manifests() if part['kind'] == 'Job']
  (script,) = job['spec']['template']['spec']['containers'][0]['args']
  run = tmp_path / 'shared/runs/b16'
  (tmp_path / 'bin').mkdir()
  vit_ = tmp_path / 'bin/vit'
  vit_.write_text(f'#!/usr/bin/env bash\n{does.replace("RUN", str(run))}\n')
  vit_.chmod(0o755)
  script = script.replace('/shared/runs/b16', str(run)).replace('{1..30}', '{1..1}')
  env = os.environ | {'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}', 'POD': '1'}
  process = subprocess.Popen(['bash', '-c', script], env=env, stdout=subprocess.PIPE, text=True)
  with process:
    if signalled:
      for _ in range(8):  # GPUs
        assert process.stdout.readline() == 'ready\n'
      process.terminate()
    assert process.wait(20) == code


def test_the_kubernetes_variables_are_those_that_are_read():
  (job,) = [part for part in manifests() if part['kind'] == 'Job']
  spec = job['spec']['template']['spec']
  names = {variable['name']: variable for variable in spec['containers'][0]['env']}
  flags = ('coordinator_address', 'num_processes', 'process_id')
  (script,) = spec['containers'][0]['args']
  assert set(re.findall('JAX_[A-Z_]+', script)) == {'JAX_LOCAL_DEVICE_IDS', 'JAX_PROCESS_ID'}
  assert set(names) - {'POD'} | {'JAX_PROCESS_ID'} == {f'JAX_{flag.upper()}' for flag in flags}
  gpus = spec['containers'][0]['resources']['limits']['nvidia.com/gpu']
  assert f'{{0..{gpus - 1}}}' in script and f'{gpus} * POD + gpu' in script
  assert int(names['JAX_NUM_PROCESSES']['value']) == gpus * job['spec']['completions']
  (service,) = [part for part in manifests() if part['kind'] == 'Service']
  assert spec['subdomain'] == service['metadata']['name']
  first = f'{job["metadata"]["name"]}-0.{service["metadata"]["name"]}'
  assert names['JAX_COORDINATOR_ADDRESS']['value'].startswith(f'{first}:')


def test_the_messages_told_are_those_of_the_code():
  code = '\n'.join(path.read_text() for path in (ROOT / 'vit_jax').rglob('*.py'))
  for row in table('what is said', SCALE_OUT):
    (message,) = coded(row[0])
    parts = [part.strip() for part in re.split(r'\.\.\.|\bN\b', message)]
    assert [part for part in parts if part not in code] == [], message


# docs/numerics.md

NUMERICS = ROOT / 'docs/numerics.md'


def test_the_bounds_told_are_those_of_the_tests():
  bodies = [body for titles, body in tables(NUMERICS) if titles[0] == 'what is compared']
  rows = [(row[-2], row[-1]) for body in bodies for row in body]
  assert len(rows) >= 15
  for bound, place in rows:
    (path,) = re.findall(r'\]\(\.\./([^)]+)\)', place)
    source = (ROOT / path).read_text()
    assert (bound if float(bound) else 'array_equal') in source, (bound, path)
