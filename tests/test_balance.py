"""Classes of unequal size: counts and weights as scikit-learn's, groups that are sampled alike."""

import json
import re

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from vit_jax import pipeline, sources
from vit_jax.sources import balance
from vit_jax.sources.columns import Column

pytestmark = pytest.mark.quick

SINGLE = np.repeat([0, 1, 2, -1], [60, 6, 14, 3]).astype(np.int32)
SEVERAL = np.array([[0, 1], [0, -1], [-1, -1], [-2, -2], [0, 2], [-1, -1]] * 5, np.int32)
NAMES = ('rose', 'lily', 'tulip')


class Labelled(list):
  """Records that are their own indices, and their labels."""

  def __init__(self, labels):
    super().__init__({'image': index, 'label': label} for index, label in enumerate(labels))
    self.labels = labels


def source_of(labels):
  return sources.Source(Labelled(labels), NAMES)


def test_balanced_weights_are_those_of_scikit_learn():
  weights = balance.class_weights('balanced', source_of(SINGLE), scores='softmax')
  wanted = compute_class_weight('balanced', classes=np.arange(3), y=SINGLE[SINGLE >= 0])
  assert weights == pytest.approx(wanted)


def test_balanced_weights_of_a_sigmoid_are_negatives_to_a_positive():
  weights = balance.class_weights('balanced', source_of(SEVERAL), scores='sigmoid')
  assert weights == pytest.approx([10 / 15, 20 / 5, 20 / 5])  # of 25 whose classes are known


def test_labels_that_are_not_in_memory_are_read():
  in_memory = source_of(SINGLE)
  apart = sources.Source([*in_memory.records], NAMES)
  assert balance.read_labels(apart).tolist() == SINGLE.tolist()


@pytest.mark.parametrize(
  'name, text',
  [
    ('weights.json', '{"tulip": 3, "rose": 0.5, "lily": 2}'),
    ('weights.csv', 'class,weight\ntulip,3\nrose,0.5\nlily,2\n'),
    ('weights.csv', '\ufeffWeight;Class\n3; "Tulip"\n0.5;ROSE\n2;lily\n'),  # by a spreadsheet
  ],
)
def test_weights_are_read_from_a_file_by_the_names_of_classes(tmp_path, name, text):
  file = tmp_path / name
  file.write_text(text)
  assert balance.class_weights(str(file), source_of(SINGLE), scores='softmax') == (0.5, 2, 3)


@pytest.mark.parametrize(
  'weights, message',
  [
    ({'rose': 1, 'lilly': 1, 'tulip': 1}, "'lilly' is no class of the data; did you mean lily"),
    ({'rose': 1, 'tulip': 1}, 'lacks a weight for lily'),
    ({'rose': -1, 'lily': 1, 'tulip': 1}, "'rose' is -1, must be at least 0"),
    ({'rose': 'x', 'lily': 1, 'tulip': 1}, "'rose' is 'x', must be at least 0, a finite number"),
    (dict.fromkeys(NAMES, 0), 'every weight is 0'),
    ([1, 2, 3], 'weights.json'),
  ],
)
def test_weights_that_cannot_be_are_refused(tmp_path, weights, message):
  file = tmp_path / 'weights.json'
  file.write_text(json.dumps(weights))
  with pytest.raises(ValueError, match=message):
    balance.class_weights(str(file), source_of(SINGLE), scores='softmax')


def test_a_file_of_weights_that_is_not_there_is_named():
  with pytest.raises(FileNotFoundError, match="no ballanced, nor is it 'balanced'"):
    balance.class_weights('ballanced', source_of(SINGLE), scores='softmax')


def test_classes_that_differ_by_ten_times_and_unknown_ones_are_told():
  unknown, line = balance.described(source_of(SINGLE), balanced=False)
  assert unknown == 'not trained on, as of unknown class: 3 images'
  assert line == (
    'classes differ by 10 times: 60 images of rose, 6 of lily; '
    'see objective.class_weights and data.balance'
  )
  assert balance.described(source_of(SINGLE[1:80]), balanced=False) == []
  assert balance.described(source_of(SINGLE), balanced=True)[1].endswith('6 of lily')


def test_of_labels_that_are_not_in_memory_a_sample_tells():
  """Not that classes differ where they may by chance: all thousand have four images."""
  alike, apart = np.arange(4000) % 1000, (np.arange(4000) < 20).astype(int)
  lines = [
    balance.described(
      sources.Source([{'label': label} for label in labels], classes), balanced=True
    )
    for labels, classes in ((alike, tuple(map(str, range(1000)))), (apart, NAMES[:2]))
  ]
  assert lines[0] == []
  (line,) = lines[1]
  assert re.fullmatch(
    r'classes differ by \d+ times or more in a sample of 2,048 images: '
    r'2,0\d\d images of rose, \d+ of lily',
    line,
  )


def sampled(labels, *, start=0, steps=12, batch_size=10, **options):
  """The indices of some batches."""
  source = source_of(labels)
  columns = {'image': Column((), np.int64, lambda record, rng: record['image'])}
  groups = balance.class_groups(source)
  with pipeline.training_batches(
    source, columns, batch_size=batch_size, seed=3, start=start, groups=groups, **options
  ) as batches:
    return np.concatenate([next(batches)['image'] for _ in range(steps)])


def test_balanced_sampling_takes_every_class_as_often():
  counts = np.bincount(SINGLE[sampled(SINGLE, steps=83, batch_size=10)], minlength=3)
  assert counts.sum() == 830 and counts.max() - counts.min() <= 10  # an epoch differs by one
  first = sampled(SINGLE, steps=1, batch_size=83)
  times = np.bincount(first, minlength=len(SINGLE))
  assert set(times[60:66]) <= {4, 5}  # of the smallest class no image more often than another
  assert times[:60].max() == 1 and times[80:].max() == 0


def test_images_of_no_class_are_a_group_of_their_own_and_unknown_ones_never_come():
  labels = SEVERAL[sampled(SEVERAL, steps=30, batch_size=30)]
  assert np.mean((labels == -1).all(1)) == pytest.approx(1 / 4, abs=0.01)
  assert labels.min() == -1


def test_balanced_sampling_resumes_and_is_the_same_for_two_processes():
  whole = sampled(SINGLE)
  np.testing.assert_array_equal(sampled(SINGLE, start=9, steps=3), whole[90:])
  halves = [
    sampled(SINGLE, reading=pipeline.Reading(shard=(index, 2))).reshape(12, 5) for index in (0, 1)
  ]
  np.testing.assert_array_equal(np.concatenate(halves, 1).ravel(), whole)
