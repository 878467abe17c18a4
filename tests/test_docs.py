"""What the documents say is what the library does: their tables and examples are read here."""

import ast
import inspect
import pathlib
import re

import numpy as np
import pytest

import vit_jax
from tests.interop import ours
from vit_jax import __main__, conversion, convert
from vit_jax.convert import engine, files, resample
from vit_jax.models import vit

ROOT = pathlib.Path(__file__).parents[1]
README, CHECKPOINTS = ROOT / 'README.md', ROOT / 'docs' / 'checkpoints.md'


def tables(path):
  """Each table of a document: its titles, and its rows as lists of cells."""
  found, rows = [], []
  for line in [*path.read_text().splitlines(), '']:
    line = line.strip()
    if line.startswith('|') and line.endswith('|'):
      rows.append([cell.strip() for cell in line[1:-1].split('|')])
    elif rows:
      titles, rule, *body = rows
      assert all(re.fullmatch('-+', cell) for cell in rule), titles
      assert all(len(row) == len(titles) for row in body), titles
      found.append((titles, body))
      rows = []
  return found


def table(first):
  """The rows of the table of docs/checkpoints.md whose first title that is."""
  (rows,) = [body for titles, body in tables(CHECKPOINTS) if titles[0] == first]
  return rows


def coded(cell):
  """What stands in code font."""
  return re.findall(r'`([^`]+)`', cell)


FAMILIES = table('dialect')
ROWS = pytest.mark.parametrize('row', FAMILIES, ids=[coded(row[2])[-1] for row in FAMILIES])


def arrays(row):
  """A file with the names of a row and nothing else."""
  names = [*coded(row[2]), coded(row[3])[0]]
  return {name: np.zeros((2, 2, 2, 2), np.float32) for name in names}


def family(row):
  found = convert.unwrapped({name: np.zeros(1) for name in coded(row[2])})
  return None if found is None else found[0]


def theirs(row):
  """Those arrays as the family's table has their names."""
  found = family(row)
  return engine.renamed(found.tidy(arrays(row)), found.renames)


def test_every_family_has_one_row_and_every_row_a_family():
  found = [family(row) for row in FAMILIES]
  assert None not in found
  places = [[known is one for known in convert.FAMILIES].index(True) for one in found]
  assert sorted(places) == list(range(len(convert.FAMILIES)))


@ROWS
def test_a_row_tells_its_family(row):
  found = family(row)
  assert (coded(row[0]), coded(row[1])[-1]) == ([found.dialect], found.model)
  assert coded(row[5]) == [found.resample]


@ROWS
def test_each_name_that_a_family_is_recognised_by_is_needed(row):
  for absent in coded(row[2]):
    rest = {name: np.zeros(1) for name in coded(row[2]) if name != absent}
    left = convert.unwrapped(rest) if rest else None
    assert left is None or left[0] is not family(row), absent


@ROWS
def test_the_example_of_a_row_is_in_its_table(row):
  there, here = coded(row[3])
  before = list(arrays(row))
  name = list(theirs(row))[before.index(there)]
  assert [line.ours for line in family(row).table if line.pattern.fullmatch(name)] == [here]


@ROWS
def test_a_row_tells_all_that_its_dialect_settles(row):
  found = theirs(row)
  here, _ = engine.into(family(row).table, found, 1)
  here.setdefault('positions', np.zeros(1))  # without which a Google ViT has sines and cosines
  written = dict(re.fullmatch(r'(\w+)=(.+)', text).groups() for text in coded(row[4]))
  settled = family(row).details(found, here, {})
  assert {field: ast.literal_eval(value) for field, value in written.items()} == settled


def test_the_prefixes_told_are_those_that_are_taken_off():
  (told,) = re.findall(r'stands\s+round them: (.+?);', CHECKPOINTS.read_text(), re.DOTALL)
  assert sorted(coded(told)) == sorted(set(convert.WRAPPERS))


def test_the_rules_told_are_those_that_there_are():
  kernels = {'triangle': resample.triangle, 'cubic, -0.5': resample.KEYS}
  kernels['cubic, -0.75'] = resample.TORCH
  yes = {'yes': True, 'no': False}
  told = {
    coded(rule)[0]: resample.Rule(kernels[kernel], yes[corners], yes[antialias])
    for rule, kernel, corners, antialias, _ in table('rule')
  }
  assert told == resample.RULES


def test_the_limits_told_are_those_that_hold():
  told = {coded(limit)[0]: int(value.replace(',', '')) for limit, value, _ in table('limit')}
  assert told == {name: getattr(files, name) for name in told}
  assert len(told) >= 9


def test_the_dialects_told_are_those_that_are_written(tmp_path):
  assert [coded(row[0])[0] for row in table('`--to`')] == list(conversion.FORMS)
  assert {name for row in FAMILIES for name in coded(row[6])} == set(conversion.FORMS) - {'bundle'}
  with pytest.raises(ValueError, match='unknown dialect') as error:
    convert.write(tmp_path / 'model', None, to='?')
  known = str(error.value).split('known: ')[1].split(', ')
  assert set(conversion.FORMS) - {'bundle'} == set(known) - {'bundle'}


def test_the_agreement_told_is_what_the_interop_tests_demand():
  source = (ROOT / 'tests' / 'interop' / 'test_families.py').read_text()
  looser = ast.literal_eval(re.search(r'^LOOSER = (\{.*?\})', source, re.DOTALL | re.MULTILINE)[1])
  told = {family.lower(): float(bound) for family, bound, _ in table('family')}
  assert told.pop('transformers and mixers, every dialect') == ours.TOLERANCE
  assert told == looser


def blocks(path, language):
  """The code blocks of a language, '' for those that name none."""
  fenced = re.findall(r'^```(\w*)\n(.*?)^```$', path.read_text(), re.DOTALL | re.MULTILINE)
  return [block for kind, block in fenced if kind == language]


DOCUMENTS = pytest.mark.parametrize('path', [README, CHECKPOINTS], ids=lambda path: path.name)


@DOCUMENTS
def test_python_in_documents_calls_what_there_is(path):
  seen = 0
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
        seen += 1
  assert seen >= 3


@DOCUMENTS
def test_commands_in_documents_exist(path):
  text = path.read_text()
  told = re.findall(r'(?:^|`)vit ([a-z]+)\b', text, re.MULTILINE)
  assert told
  assert set(told) <= set(__main__.COMMANDS)


@DOCUMENTS
def test_links_in_documents_lead_somewhere(path):
  links = re.findall(r'\]\(([^)#]+)\)', path.read_text())
  gone = [link for link in links if '://' not in link and not (path.parent / link).exists()]
  assert gone == []


def test_the_readme_lists_every_file_or_its_folder():
  (tree,) = [block for block in blocks(README, '') if 'vit_jax/train.py' in block]
  told = [line.split()[0] for line in tree.splitlines()]
  assert [path for path in told if not (ROOT / path).exists()] == []
  library = {str(path.relative_to(ROOT)) for path in (ROOT / 'vit_jax').rglob('*.py')}
  unlisted = {path for path in library if '/configs/' not in path} - set(told)
  folders = tuple(path for path in told if path.endswith('/'))
  hidden = ('vit_jax/__init__.py', 'vit_jax/version.py')
  assert sorted(p for p in unlisted if not p.startswith(folders) and p not in hidden) == []


def test_the_readme_has_fewer_than_1000_words():
  assert len(README.read_text().split()) < 1000
