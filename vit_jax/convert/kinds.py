"""What the fields of the JSON beside weights must be, so that a wrong value is named as such."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Kind:
  """What the value of a field in a JSON file must be: in words, and as a test."""

  description: str
  holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
  return Kind(
    f'a whole number from {low:,} to {high:,}', lambda v: type(v) is int and low <= v <= high
  )


def one_of(*values: Any) -> Kind:
  described = ', '.join(map(json.dumps, values))
  return Kind(
    f'one of {described}' if len(values) > 1 else described,
    lambda v: any(type(v) is type(value) and v == value for value in values),
  )


def is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def are_numbers(value: object) -> bool:
  return isinstance(value, list) and bool(value) and all(map(is_number, value))


SIDE = whole(1, 8192)  # pixels; a table of positions for more would fill the memory
COUNT = whole(1, 2**20)
LAYERS = whole(1, 1000)
CLASSES = whole(0, 2**24)
TEXT = Kind('text', lambda v: isinstance(v, str))
FLAG = Kind('true or false', lambda v: isinstance(v, bool))
NUMBER = Kind('a number', is_number)
POSITIVE = Kind('a number above 0', lambda v: is_number(v) and v > 0)
SHARE = Kind('a number above 0 and up to 1', lambda v: is_number(v) and 0 < v <= 1)
EPSILON = Kind('a number from 0 to 1', lambda v: is_number(v) and 0 <= v <= 1)
MEAN = Kind('a list of numbers, one a channel', are_numbers)
STD = Kind('a list of numbers above 0, one a channel', lambda v: are_numbers(v) and min(v) > 0)
SIDES = Kind(
  'one or two numbers of pixels up to 8,192',
  lambda v: SIDE.holds(v) or (isinstance(v, list) and len(v) in (1, 2) and all(map(SIDE.holds, v))),
)
ABSENT = Kind('null: it is not read', lambda v: False)
TEXTS = Kind('a list of text', lambda v: isinstance(v, list) and all(map(TEXT.holds, v)))
LABELS = Kind(
  'an object with a text for each label',
  lambda v: isinstance(v, dict) and all(map(TEXT.holds, v.values())),
)
NAMES = Kind(
  'a list of text, or an object with a text for each label',
  lambda v: TEXTS.holds(v) or LABELS.holds(v),
)
PROBLEMS = {  # transformers' problem_type, and what its logits become
  'single_label_classification': 'softmax',
  'multi_label_classification': 'sigmoid',
}
Fields = Mapping[str, Any]  # the Kind of each field that is read, or the Fields of an object


def misfits(fields: Fields, values: Mapping[str, Any], where: str) -> Iterator[str]:
  """What is wrong with the values of a JSON object, a line for each."""
  for key in fields.keys() & values.keys():
    kind, value = fields[key], values[key]
    if isinstance(kind, Kind):
      if not kind.holds(value):
        yield f'{where}{key} is {json.dumps(value)[:60]}, not {kind.description}'
    elif not isinstance(value, dict):
      yield f'{where}{key} is {json.dumps(value)[:60]}, not an object'
    else:
      yield from misfits(kind, value, f'{where}{key}.')
