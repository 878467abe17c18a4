"""Figures of how the package is laid out, read from its source alone.

  python tests/structure.py [CHECKOUT] [--names] [--any]

CHECKOUT is that of this file unless another is named, so that one script compares two. The link
`vit_jax/configs` is passed over. tests/test_structure.py holds the package to limits.
"""

import argparse
import ast
import collections
import io
import pathlib
import re
import tokenize
import typing

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE, RECIPES = 'vit_jax', 'vit_jax.configs'
FUNCTIONS, READ = (ast.FunctionDef, ast.AsyncFunctionDef), (ast.Load, ast.Del)
VAGUE = re.compile('found|told|given|known|opened|seen|rest|left|there|kept|own|how|what')
# The field that holds the name, of each kind of node that binds a value or defines a function
BOUND = {ast.Name: 'id', ast.Attribute: 'attr', ast.arg: 'arg', ast.alias: 'asname'}
BOUND |= dict.fromkeys((ast.ExceptHandler, ast.MatchAs, ast.MatchStar, *FUNCTIONS), 'name')


class Source(typing.NamedTuple):
  """A Python file: its path from the root of the checkout, its dotted name, text and nodes."""

  path: pathlib.PurePath
  name: str
  text: str
  tree: list[ast.AST]

  def nodes(self, *kinds):
    return [node for node in self.tree if isinstance(node, kinds)]

  def at(self, node):
    return f'{self.path}:{node.lineno}'


def sources(root, folder=PACKAGE):
  """{dotted name: Source} of the Python files under a folder of the checkout, by path."""
  result = {}
  for path in sorted((root / folder).rglob('*.py')):
    text, path = path.read_text('utf-8'), path.relative_to(root)
    name = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
    if not f'{name}.'.startswith(f'{RECIPES}.'):
      result[name] = Source(path, name, text, list(ast.walk(ast.parse(text))))
  return result


def imports(library):
  """(importer, module, node, whether it is in a function) of each import of one of our modules.

  `from vit_jax.a import b` is of `vit_jax.a.b` where that is a module, of `vit_jax.a` elsewhere.
  """
  for source in library.values():
    inner = {id(node) for function in source.nodes(*FUNCTIONS) for node in ast.walk(function)}
    for node in source.nodes(ast.Import, ast.ImportFrom):
      level, module = getattr(node, 'level', 0), getattr(node, 'module', None)
      base = [*(source.path.parts[:-level] if level else ()), *filter(None, [module])]
      for target in {module_of('.'.join([*base, alias.name]), library) for alias in node.names}:
        if target in library and target != PACKAGE:  # `__version__` is all that it has of its own
          yield source, library[target], node, id(node) in inner


def module_of(name, library):
  while name and name not in {*library, RECIPES}:
    name = name.rpartition('.')[0]
  return name


def graph(library):
  """{module: the set of modules that it imports}."""
  result = {name: set() for name in library}
  for source, target, *_ in imports(library):
    result[source.name].add(target.name)
  return result


def components(edges):
  """{module: the sorted tuple of those that it reaches and that reach it, itself among them}."""
  reach = {}
  for name in edges:
    reach[name], stack = {name}, [name]
    while stack:
      fresh = edges[stack.pop()] - reach[name]
      reach[name] |= fresh
      stack += fresh
  return {name: tuple(sorted(n for n in reach[name] if name in reach[n])) for name in edges}


def layers(edges):
  """How many modules the longest chain of imports has, a circle counted as one."""
  groups, height = components(edges), {}
  while len(height) < len(edges):
    for name, group in groups.items():
      below = {target for member in group for target in edges[member]} - {*group}
      if below <= height.keys():
        height[name] = 1 + max((height[target] for target in below), default=0)
  return max(height.values())


def docstrings(source):
  """(node, text) of each docstring."""
  for node in source.nodes(ast.Module, ast.ClassDef, *FUNCTIONS):
    if ast.get_docstring(node) is not None:
      yield node.body[0], ast.get_docstring(node)


def code_lines(source):
  """How many lines are neither blank, nor a comment, nor of a docstring."""
  lines = set()
  for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
    if token.string.strip() and token.type != tokenize.COMMENT:
      lines.update(range(token.start[0], token.end[0] + 1))
  for node, _ in docstrings(source):
    lines.difference_update(range(node.lineno, node.end_lineno + 1))
  return len(lines)


def vague(library):
  """(word, file:line) of each value, attribute, field or function of a name that says nothing."""
  for source in library.values():
    for node in source.nodes(*BOUND):
      word = getattr(node, BOUND[type(node)])
      if VAGUE.fullmatch(word or '') and not isinstance(getattr(node, 'ctx', None), READ):
        yield word, source.at(node)


def shared_classes(library):
  """{class name: file:line of each} of the names that two modules give a class."""
  places = collections.defaultdict(dict)
  for source in library.values():
    for node in source.nodes(ast.ClassDef):
      places[node.name][source.path] = source.at(node)
  return {name: list(at.values()) for name, at in sorted(places.items()) if len(at) > 1}


def anys(library, *, inside=False):
  """(kind, file:line) of each annotation that is `Any`, or of every `Any` inside one."""
  for source in library.values():
    hints = [('parameter', node.annotation) for node in source.nodes(ast.arg)]
    hints += [('return', node.returns) for node in source.nodes(*FUNCTIONS)]
    lines = [line for node in source.nodes(ast.ClassDef) for line in node.body]
    hints += [('field', line.annotation) for line in lines if isinstance(line, ast.AnnAssign)]
    for kind, hint in hints:
      text = ast.unparse(hint) if hint else ''
      words = re.findall(r'\w+', text) if inside else text.split(' | ')
      yield from ((kind, source.at(hint)) for word in words if word == 'Any')


def counted(pairs):
  counts = collections.Counter(word for word, _ in pairs)
  return f'{counts.total()} ({", ".join(f"{w} {n}" for w, n in counts.most_common())})'


def figures(library, tests):
  """(title, figure) of each line of the report."""
  files, edges, shared = library.values(), graph(library), shared_classes(library)
  circles = sorted({group for group in components(edges).values() if len(group) > 1})
  defs = [(file, node) for file in files for node in file.nodes(*FUNCTIONS)]
  spans = [(node.end_lineno - node.lineno + 1, node.name, file.at(node)) for file, node in defs]
  yield 'Python files at the top', sum(len(file.path.parts) == 2 for file in files)
  yield 'layers of imports', layers(edges)
  yield 'circles of imports', f'{len(circles)} {"; ".join(map(" ".join, circles))}'
  yield 'imports of ours in functions', len({id(n) for *_, n, inner in imports(library) if inner})
  yield 'longest file', '{} lines, {}'.format(*max((f.text.count('\n'), f.path) for f in files))
  yield 'longest function', '{} lines, {}, {}'.format(*max(spans))
  yield 'functions over 60 lines', sum(length > 60 for length, *_ in spans)
  for title, group in {'library': files, 'tests': tests.values()}.items():
    total, code = sum(f.text.count('\n') for f in group), sum(map(code_lines, group))
    yield f'lines of the {title}', f'{total}, of code {code}'
  yield 'vague names in the library', counted(vague(library))
  yield 'vague names in the tests', counted(vague(tests))
  yield 'class names in two modules', f'{len(shared)} {" ".join(shared)}'
  texts = [text for file in files for _, text in docstrings(file)]
  yield "docstrings that begin 'Of '", sum(text.startswith('Of ') for text in texts)
  yield 'annotations that are Any', counted(anys(library))
  yield 'Any inside annotations', counted(anys(library, inside=True))


def main():
  parser = argparse.ArgumentParser(description='Figures of how the package is laid out.')
  parser.add_argument('checkout', nargs='?', type=pathlib.Path, default=ROOT)
  parser.add_argument('--names', action='store_true', help='list each vague name')
  parser.add_argument('--any', action='store_true', help='list each annotation that is Any')
  args = parser.parse_args()
  library = sources(args.checkout)
  for title, figure in figures(library, sources(args.checkout, 'tests')):
    print(f'{title}: {figure}')
  for word, at in [*(vague(library) if args.names else ()), *(anys(library) if args.any else ())]:
    print(f'{at}: {word}')


if __name__ == '__main__':
  main()
