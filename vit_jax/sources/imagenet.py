"""The 1,000 classes of ImageNet (ILSVRC 2012), in the order that every published head has.

imagenet.tsv has a line for each: its synset, which is its name in TFDS; A, R or both if it is one
of the 200 classes of ImageNet-A (arXiv 1907.07174) or of ImageNet-R (arXiv 2006.16241); and the
words of WordNet for it.
"""

import collections
import functools
import pathlib
import re
from collections.abc import Sequence

from vit_jax.sources import presets

FILE = pathlib.Path(__file__).with_name('imagenet.tsv')
SUBSETS = {'imagenet_a': 'A', 'imagenet_r': 'R'}  # sets of TFDS: the letter of their classes
MIN_ALIKE = 0.9  # of the names in words are WordNet's; those of torchvision are, but for two


@functools.cache
def table() -> tuple[tuple[str, str, str], ...]:
  """(synset, letters, words) of each class."""
  _, *lines = FILE.read_text('utf-8').splitlines()
  return tuple(
    (synset, letters, words) for synset, letters, words in (x.split('\t') for x in lines)
  )


@functools.cache
def synsets() -> tuple[str, ...]:
  """'n01440764' and so on."""
  return tuple(synset for synset, _, _ in table())


def is_complete(names: Sequence[str]) -> bool:
  """Whether names, be they synsets or words, are those of the 1,000 classes in their order."""
  if tuple(names) == synsets():
    return True
  if len(names) != len(table()):
    return False
  alike = sum(bool(folded(name) & folded(words)) for name, (_, _, words) in zip(names, table()))
  return alike >= MIN_ALIKE * len(names)


def folded(words: str) -> set[str]:
  """'Tinca_tinca, tench' as {'tincatinca', 'tench'}."""
  return {re.sub('[^a-z]', '', word.casefold()) for word in words.split(',')} - {''}


def subset(source: str) -> frozenset[str] | None:
  """The classes that ImageNet-A or -R has images of, which name all 1,000; None of another set."""
  preset = presets.find(source)
  kind, _, name = (preset.source if preset else source).partition(':')
  letter = SUBSETS.get(re.split('[:/?]', name)[0]) if kind == 'tfds' else None
  return frozenset(name for name, letters, _ in table() if letter in letters) if letter else None


@functools.cache
def synsets_of_words() -> dict[str, str]:
  """{word of WordNet, as of `folded`: the only synset that has it}."""
  counts = collections.Counter(word for _, _, words in table() for word in folded(words))
  return {
    word: synset for synset, _, words in table() for word in folded(words) if counts[word] == 1
  }


def synset_of(name: str) -> str:
  """The synset that a name is, or that alone has its words, as 'tench'; else the name."""
  matches = {synsets_of_words().get(word, '') for word in folded(name)} - {''}
  return matches.pop() if len(matches) == 1 else name
