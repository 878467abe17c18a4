"""The layout: what imports what, what is where, and names that say something.

tests/structure.py prints the figures; the order of imports is the one line of CONTRIBUTING.md.
"""

import ast
import re

import pytest

from tests.structure import (
  PACKAGE,
  ROOT,
  anys,
  components,
  docstrings,
  graph,
  imports,
  shared_classes,
  sources,
  vague,
)
from vit_jax.__main__ import COMMANDS

TOP = 21  # Python files: a reader can hold the list
ANY = 150  # annotations: what JAX itself leaves open, trees and callables of others
FOLDER = ROOT / PACKAGE


@pytest.fixture(scope='module')
def library():
  return sources(ROOT)


@pytest.fixture(scope='module')
def level():
  """{first component of a module: the number of its group}: a group imports no lower number."""
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  (order,) = re.findall(r'^- Imports go one way: `([^`]*)`', text, re.MULTILINE)
  groups = [[name.strip() for name in group.split(',')] for group in order.split('->')]
  names = [name for group in groups for name in group]
  assert len(names) == len(set(names)), f'CONTRIBUTING.md names one twice: {order}'
  return {name: index for index, group in enumerate(groups) for name in group}


def component(source):
  """`evaluate` of vit_jax/evaluate/knn.py, `train` of vit_jax/train.py."""
  return source.path.parts[1].removesuffix('.py')


def test_the_order_of_imports_names_every_module_and_nothing_else(library, level):
  names = {component(source) for source in library.values()}
  wrong = [f'{PACKAGE}/{name}: in no group' for name in sorted(names - level.keys())]
  wrong += [f'CONTRIBUTING.md: {name}: no module' for name in sorted(level.keys() - names)]
  assert not wrong, '\n'.join(wrong)


def test_imports_go_one_way_inside_functions_too(library, level):
  wrong = []
  for source, target, node, _ in imports(library):
    above, below = level.get(component(source)), level.get(component(target))
    if above is not None and below is not None and below < above:
      wrong.append(f'{source.at(node)}: {source.name} imports {target.name}, which is above it')
  assert not wrong, '\n'.join(wrong)


def test_no_modules_import_each_other_in_a_circle(library):
  groups = components(graph(library))
  circular = [
    f'{source.at(node)}: {source.name} imports {target.name}, which leads back to it'
    for source, target, node, _ in imports(library)
    if source is not target and groups[source.name] == groups[target.name]
  ]
  assert not circular, '\n'.join(circular)


def test_few_files_are_at_the_top_of_the_package():
  names = sorted(path.name for path in FOLDER.glob('*.py'))
  assert len(names) <= TOP, f'{len(names)}: {" ".join(names)}'


def test_nothing_is_nested_deeper_than_one_folder():
  paths = [path.relative_to(FOLDER) for path in FOLDER.rglob('*') if path.is_file()]
  paths = [path for path in paths if '__pycache__' not in path.parts and path.parts[0] != 'configs']
  assert not [str(path) for path in paths if len(path.parts) > 2]


def test_a_command_is_the_file_of_its_name(library):
  commands = {f'{PACKAGE}.commands.{name}' for name in COMMANDS if name != 'train'}
  homes = {name for name in library if name.startswith(f'{PACKAGE}.commands.')}
  assert commands == homes - {
    f'{PACKAGE}.commands.{part}' for part in ('compiled', 'flags', 'legs', 'short', 'words')
  }


def test_a_docstring_is_a_sentence_not_a_genitive(library):
  starts = [
    source.at(node)
    for source in library.values()
    for node, text in docstrings(source)
    if text.startswith('Of ')
  ]
  assert not starts, '\n'.join(starts)


def test_a_name_says_what_it_holds(library):
  places = [f'{place}: {word}' for word, place in vague(library)]
  assert not places, f'{len(places)}\n' + '\n'.join(places)


def test_text_in_files_is_utf8_in_any_locale(library):
  positions = {'read_text': 0, 'write_text': 1}  # of the encoding, where no word names it
  calls = [
    (source, node)
    for source in library.values()
    for node in source.nodes(ast.Call)
    if getattr(node.func, 'attr', '') in positions
  ]
  bare = [
    source.at(node)
    for source, node in calls
    if len(node.args) <= positions[node.func.attr]
    and 'encoding' not in {word.arg for word in node.keywords}
  ]
  assert calls and not bare, '\n'.join(bare)


def test_one_class_name_has_one_meaning(library):
  shared = shared_classes(library)
  assert not shared, '\n'.join(f'{name}: {" ".join(at)}' for name, at in shared.items())


def test_few_annotations_are_any(library):
  places = [f'{place}: {kind}' for kind, place in anys(library)]
  assert len(places) <= ANY, f'{len(places)}\n' + '\n'.join(places)


def test_every_line_is_printed_by_the_module_that_escapes(library):
  """JSON is ASCII; the others print nothing of a stranger's."""
  others = {'vit_jax.text', 'vit_jax.commands.bench', 'vit_jax.__main__'}
  bare = [
    source.at(node)
    for name, source in library.items()
    for node in source.nodes(ast.Call)
    if name not in others and getattr(node.func, 'id', '') == 'print'
    if not (node.args and 'as_json(' in ast.unparse(node.args[0]))
  ]
  assert not bare, '\n'.join(bare)
