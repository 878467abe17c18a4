"""Laws of columns: of any name, shape and type, each random by (seed, epoch, index, view)."""

import numpy as np
import pytest

from vit_jax import pipeline, sources
from vit_jax.images import transforms
from vit_jax.sources.columns import Column, check_names, image

pytestmark = pytest.mark.quick

COUNT, BATCH, SEED = 24, 8, 5
WORDS = ('a cat', 'two dogs', 'an owl on a branch')


class Records:
  """Records of everything: an image, its mask, a text, a number; some cannot be read."""

  def __init__(self, bad=(), **fields):
    self.bad, self.fields = bad, fields

  def __len__(self):
    return COUNT

  def __getitem__(self, index):
    pixels = np.full((6, 7, 3), index, np.uint8) + np.arange(7, dtype=np.uint8)[None, :, None]
    damaged = {'masked': b'junk'} if index in self.bad else {}
    record = {'image': pixels, 'masked': pixels, 'text': WORDS[index % 3], 'index': index}
    return record | self.fields | damaged


def source_of(bad=(), **fields):
  return sources.Source(Records(bad, **fields), ('all',), 'records/{}'.format)


def ids(record, rng):
  return np.frombuffer(record['text'].encode()[:12].ljust(12, b'\0'), np.uint8)


def drawn(record, rng):
  return rng.integers(0, 2**32, 3, dtype=np.uint32)


CROP = transforms.compose('random_crop(4) | flip', (4, 4))


def masked(record, rng):
  return CROP(transforms.as_pixels(record['masked']), rng)


COLUMNS = {
  'image': image(CROP),
  'a mask': Column((4, 4, 3), np.uint8, masked, view=0, empty=255),
  'second/view': Column((4, 4, 3), np.uint8, image(CROP).fill, view=1),
  'text': Column((12,), np.int32, ids, empty=-1),
  'index': Column((), np.int64, lambda record, rng: record['index'], empty=-1),
  'half': Column((2, 0, 1), np.float16, lambda record, rng: np.zeros((2, 0, 1), np.float16)),
  'flag': Column((1,), np.bool_, lambda record, rng: [record['index'] > 3]),
  'noise': Column((3,), np.uint32, drawn, view=7),
}


def taken(steps=4, *, source=None, columns=COLUMNS, start=0, seed=SEED, **options):
  source = source or source_of()
  with pipeline.training_batches(
    source, columns, batch_size=BATCH, seed=seed, start=start, **options
  ) as batches:
    parts = [next(batches) for _ in range(steps)]
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name, rows in a.items():
    assert (rows.shape, rows.dtype) == (b[name].shape, b[name].dtype)
    np.testing.assert_array_equal(rows, b[name], err_msg=name)


@pytest.fixture(scope='module')
def whole():
  return taken()


def test_a_column_has_any_name_shape_and_type(whole):
  assert whole.keys() == {*COLUMNS, 'mask'}
  for name, column in COLUMNS.items():
    assert whole[name].shape == (32, *column.shape) and whole[name].dtype == column.dtype


def test_a_text_is_a_column_of_ids(whole):
  texts = [bytes(row.tolist()).rstrip(b'\0').decode() for row in whole['text']]
  assert texts == [WORDS[index % 3][:12] for index in whole['index']]


def test_columns_of_one_view_draw_the_same_and_of_others_independently(whole):
  np.testing.assert_array_equal(whole['image'], whole['a mask'])
  different = (whole['image'] != whole['second/view']).any((1, 2, 3))
  assert different.mean() > 0.5  # of 24 crops with flips, some are alike
  columns = {f'view {view}': Column((3,), np.uint32, drawn, view=view) for view in range(50)}
  numbers = taken(3, columns=columns)
  rows = np.concatenate([numbers[name] for name in columns])
  assert len(np.unique(rows)) == rows.size  # no two streams meet


def test_a_column_without_a_view_gets_no_generator():
  column = Column((), np.bool_, lambda record, rng: rng is None)
  assert taken(1, columns={'none': column})['none'].all()


def test_what_other_columns_there_are_changes_nothing(whole):
  noise = taken(columns={'noise': COLUMNS['noise']})['noise']
  np.testing.assert_array_equal(noise, whole['noise'])


@pytest.mark.parametrize('repeats', [1, 3])
def test_streams_are_those_of_philox_by_seed_epoch_index_repeat_and_view(repeats):
  # View 0 is as commit 77f7801 drew; a view begins 2^48 draws after the one before.
  columns = {f'view {view}': Column((3,), np.uint32, drawn, view=view) for view in (0, 1, 9)}
  steps = 4
  rows = taken(steps, columns=columns, repeats=repeats)
  for position in range(steps * BATCH):
    epoch, place = divmod(position, COUNT)
    place, repeat = divmod(place, repeats)
    order = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 0, epoch, 2**63]))
    index = int(order.permutation(np.arange(COUNT, dtype=np.int32))[place])
    for view in (0, 1, 9):
      bits = np.random.Philox(key=SEED, counter=[view * 2**48, index, epoch, repeat])
      want = np.random.Generator(bits).integers(0, 2**32, 3, dtype=np.uint32)
      np.testing.assert_array_equal(rows[f'view {view}'][position], want)


@pytest.mark.parametrize(
  'reading',
  [pipeline.Reading(threads=1), pipeline.Reading(threads=7), pipeline.Reading(workers=2)],
  ids=str,
)
def test_any_threads_and_workers_give_the_same_bits(whole, reading):
  assert_same(taken(reading=reading), whole)


@pytest.mark.parametrize('hosts', [2, 4])
def test_any_number_of_hosts_gives_the_same_bits(whole, hosts):
  parts = [taken(reading=pipeline.Reading(shard=(host, hosts))) for host in range(hosts)]
  for name, rows in whole.items():
    steps = [part[name].reshape(4, BATCH // hosts, *rows.shape[1:]) for part in parts]
    np.testing.assert_array_equal(np.concatenate(steps, 1).reshape(rows.shape), rows)


@pytest.mark.parametrize('start', [1, 3])
def test_any_start_gives_the_same_bits(whole, start):
  remaining = {name: rows[start * BATCH :] for name, rows in whole.items()}
  assert_same(taken(4 - start, start=start), remaining)


@pytest.mark.parametrize(
  'value, said',
  [
    (np.zeros((2, 3), np.float32), 'is float32 (2, 3), must be float32 (3,)'),
    (np.zeros(()), 'is float64 (), must be float32 (3,)'),
    (['a', 'b', 'c'], 'is <U1 (3,), must be float32 (3,)'),
    (np.zeros(3, np.complex64), 'is complex64 (3,), must be float32 (3,)'),
    (None, 'is object (), must be float32 (3,)'),
  ],
)
def test_another_shape_or_type_names_record_column_and_what_was_wanted(value, said):
  columns = {'odd': Column((3,), np.float32, lambda record, rng: value)}
  with pytest.raises(pipeline.DataError) as error:
    taken(1, columns=columns)
  assert f"column 'odd' {said}" in str(error.value) and 'records/' in str(error.value)


@pytest.mark.parametrize('value, dtype', [(0.5, np.int32), (-1, np.uint8), (2**40, np.int32)])
def test_a_type_that_would_lose_a_number_is_an_error(value, dtype):
  columns = {'odd': Column((), dtype, lambda record, rng: value)}
  with pytest.raises(pipeline.DataError, match=r"records/\d+: column 'odd' .*int(32|8)"):
    taken(1, columns=columns)


def test_a_record_that_cannot_be_read_is_substituted_whole():
  said, source = [], source_of(bad={5})
  unreadable = pipeline.Unreadable(source, say=said.append, limit=None)
  rows = taken(3, source=source, unreadable=unreadable)
  assert sorted(rows['index']) == [*range(5), 6, *range(6, COUNT)] and rows['mask'].all()
  twice = np.flatnonzero(rows['index'] == 6)
  for name in COLUMNS:  # its own, and for another: the same in each column
    np.testing.assert_array_equal(*rows[name][twice], err_msg=name)
  # The image of that record is as it should be; what is wrong is told.
  assert said == ['records/5: not an image']


def test_evaluation_has_the_empty_value_in_every_column_of_what_cannot_be_read():
  source = source_of(bad={5})
  unreadable = pipeline.Unreadable(source, say=str, limit=None)
  with pipeline.evaluation_batches(
    source, COLUMNS, batch_size=10, unreadable=unreadable
  ) as batches:
    parts = list(batches)
  rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  assert rows['mask'].tolist() == [float(index != 5) for index in range(COUNT)] + [0.0] * 6
  for name, column in COLUMNS.items():
    np.testing.assert_array_equal(rows[name][5], np.full(column.shape, column.empty, column.dtype))
  assert rows['index'][:COUNT].tolist() == [*range(5), -1, *range(6, COUNT)]


@pytest.mark.parametrize('name', ['mask', 'unreadable'])
def test_a_column_that_would_hide_one_of_the_batch_is_refused(name):
  with pytest.raises(ValueError, match=f"a column is named '{name}'"):
    check_names({name: COLUMNS['noise']})
