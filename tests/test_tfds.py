"""Sets of TensorFlow Datasets and of Hugging Face are read as they were written, and the table of
presets says of them what they say of themselves. Nothing comes from the network."""

import concurrent.futures
import functools
import importlib.util
import inspect
import io
import json
import pickle
import struct
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vit_jax import pipeline, sources
from vit_jax.images import transforms
from vit_jax.sources import presets, tfds_prepare, tfrecord
from vit_jax.sources import tfds as tfds_sets
from vit_jax.sources.classes import MAX_LABELS, pad_one
from vit_jax.sources.columns import labelled_images

COUNTS = {'train': 20, 'test': 7}
CLASSES = ('ant', 'bee', 'cat')


@pytest.fixture(autouse=True)
def no_data_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nothing'))
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def png(index, shape=(4, 5, 3)):
  """A file with pixels of its own."""
  pixels = np.random.default_rng(index).integers(0, 256, shape).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels.squeeze()).save(file, 'PNG')
  return file.getvalue()


def features(**more):
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
      'label': tfds.features.ClassLabel(names=CLASSES),
      'file_name': tfds.features.Text(),
    }
    | more
  )


def example(split, index):
  number = index + 100 * (split == 'test')
  return {'image': png(number), 'label': number % 3, 'file_name': f'{number}.png'}


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
  """Twenty and seven images."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=features())

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in COUNTS}

  def _generate_examples(self, split):
    for index in range(COUNTS[split]):
      yield index, example(split, index)


class GivesPixels(TinyPhotos):
  """Gives pixels, which TFDS encodes with TensorFlow where that is there."""

  def _generate_examples(self, split):
    for index in range(3):
      yield index, example(split, index) | {'image': transforms.decode(png(index))}


class NeedsTensorflow(GivesPixels):
  """Wants them as JPEG, which are not the same pixels from another encoder."""

  def _info(self):
    jpeg = tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg')
    return tfds.core.DatasetInfo(builder=self, features=features(image=jpeg))


class NamesClassesLate(TinyPhotos):
  """Knows its classes when it has downloaded them, as CIFAR does."""

  def _info(self):
    label = tfds.features.ClassLabel(num_classes=3)
    return tfds.core.DatasetInfo(builder=self, features=features(label=label))

  def _split_generators(self, dl_manager):
    self.info.features['label'].names = CLASSES
    return super()._split_generators(dl_manager)


class Unreachable(TinyPhotos):
  """Lies behind a network that is not there."""

  def _split_generators(self, dl_manager):
    raise ConnectionError('no route to host\nand more')


class Refused(TinyPhotos):
  """Would come from a server that is not there."""

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(dl_manager.download('http://127.0.0.1:9/x.zip'))}


class TwoKinds(TinyPhotos):
  """Several labels of an image, and others that are more than is taken."""

  def _info(self):
    several = tfds.features.Sequence(tfds.features.ClassLabel(num_classes=100))
    return tfds.core.DatasetInfo(builder=self, features=features(real_label=several))

  def _generate_examples(self, split):
    for index, labels in enumerate([[], [4, 7], range(65)]):
      yield index, example(split, index) | {'real_label': list(labels)}


def write_tfrecords(folder, spec, splits, name='by_hand', shards=2):
  """A set as TFDS writes it by default, by hand: {split: examples}."""
  infos = []
  for split, examples in splits.items():
    parts = np.array_split(np.arange(len(examples)), shards)
    for shard, part in enumerate(parts):
      file = folder / f'{name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}'
      file.write_bytes(b''.join(framed(spec.serialize_example(examples[i])) for i in part))
    template = tfds.core.ShardedFileTemplate(
      dataset_name=name, data_dir=folder, split=split, filetype_suffix='tfrecord'
    )
    lengths = [len(part) for part in parts]
    infos.append(
      tfds.core.SplitInfo(
        name=split, shard_lengths=lengths, num_bytes=0, filename_template=template
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder, features=spec, split_infos=infos, version='1.0.0', check_data=False
  )
  return folder


def framed(data):
  length = struct.pack('<Q', len(data))
  sums = [struct.pack('<I', tfrecord.masked(slow_crc(part))) for part in (length, data)]
  return length + sums[0] + data + sums[1]


def slow_crc(data):
  """As RFC 3720 has it, a bit at a time."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def all_of(source):
  return [(source[i]['image'], int(source[i]['label'])) for i in range(len(source))]


def written(split):
  return [
    (png(i + 100 * (split == 'test')), (i + 100 * (split == 'test')) % 3)
    for i in range(COUNTS[split])
  ]


@pytest.fixture(scope='module')
def prepared_once(tmp_path_factory):
  """A folder in which TFDS prepared the set as ArrayRecord."""
  folder = tmp_path_factory.mktemp('tfds')
  sources.open_source(f'tfds:tiny_photos?data_dir={folder}', 'train')
  return folder


@pytest.fixture(scope='module')
def by_hand_once(tmp_path_factory):
  """The folder of a version of it as TFRecord."""
  examples = {split: [example(split, i) for i in range(n)] for split, n in COUNTS.items()}
  folder = tmp_path_factory.mktemp('records') / 'by_hand' / '1.0.0'
  folder.mkdir(parents=True)
  return write_tfrecords(folder, features(), examples)


@pytest.fixture
def by_hand(by_hand_once, tmp_path):
  """A copy of it that may be damaged."""
  folder = tmp_path / 'by_hand' / '1.0.0'
  folder.mkdir(parents=True)
  for file in by_hand_once.iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  return folder


def test_a_checksum_is_that_of_the_standard():
  golden = {b'123456789': 0xE3069283, bytes(32): 0x8A9136AA, bytes(range(32)): 0x46DD794E}
  assert {data: tfrecord.crc32c(data) for data in golden} == golden


@pytest.mark.parametrize('length', [0, 1, 255, 256, 257, 600, 65536, 65537, 66000])
def test_a_long_checksum_equals_one_taken_bit_by_bit(length):
  data = np.random.default_rng(length).bytes(length)
  assert tfrecord.crc32c(memoryview(data)) == slow_crc(data)


def test_array_record_and_tfrecord_give_the_same(prepared_once, by_hand_once):
  for split in COUNTS:
    theirs = sources.open_source(f'tfds:tiny_photos?data_dir={prepared_once}', split)
    by_hand = sources.open_source(f'tfds:{by_hand_once}', split)
    assert all_of(by_hand) == written(split)
    assert sorted(all_of(theirs)) == sorted(written(split))
    assert theirs.classes == by_hand.classes == CLASSES
    assert theirs[0]['label'].dtype == by_hand[0]['label'].dtype == np.int32


def test_splits_are_cut_as_tfds_cuts_them(prepared_once):
  source = functools.partial(
    sources.open_source, f'tfds:tiny_photos:1.0.0?data_dir={prepared_once}'
  )
  whole = all_of(source('train'))
  for split in ('train[:33%]', 'train[33%:]', 'train[5:-3]', 'test+train[:2]'):
    skip = {'image': tfds.decode.SkipDecoding()}
    theirs = tfds.data_source('tiny_photos', split=split, data_dir=prepared_once, decoders=skip)
    assert all_of(source(split)) == [(one['image'], one['label']) for one in theirs]
  assert all_of(source('train[:33%]')) == whole[:7]


def test_a_record_is_called_by_its_place_and_its_file(by_hand_once):
  source = sources.open_source(f'tfds:{by_hand_once}', 'train[5:]')
  assert source.describe(2) == 'by_hand/train[7] (7.png)'


def test_tfds_data_dir_is_where_sets_are_looked_for(prepared_once, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared_once))
  assert len(sources.open_source('tfds:tiny_photos', 'test')) == COUNTS['test']


def test_a_presets_options_go_to_its_source(prepared_once, monkeypatch):
  preset = presets.Preset('tfds:tiny_photos', {'train': 'train[:5]'}, 2)
  monkeypatch.setitem(presets.PRESETS, 'tiny', preset)
  source = sources.open_source(f'tiny?data_dir={prepared_once}', 'train')
  assert len(source) == 5
  assert presets.find('vtab/clevr_count?data_dir=/sets').source == (
    'tfds:clevr:3.*.*?label=count&data_dir=/sets'
  )


@pytest.mark.parametrize('place', ['data', 'checksum', 'length', 'checksum of the length'])
def test_a_flipped_byte_costs_one_record(by_hand, place):
  file = by_hand / 'by_hand-train.tfrecord-00001-of-00002'
  offset, length = (int(number) for number in tfrecord.index_of(str(file))[4])
  tfrecord.index_of.cache_clear()
  at = {'data': 40, 'checksum': 12 + length + 1, 'length': 2, 'checksum of the length': 9}[place]
  damaged = bytearray(file.read_bytes())
  damaged[offset + at] ^= 0x10
  file.write_bytes(damaged)
  source = sources.open_source(f'tfds:{by_hand}', 'train')
  with pytest.raises(OSError, match=r'00001-of-00002, record 4: its (checksum|header)'):
    source[14]
  assert source.describe(14) == 'by_hand/train[14]'
  whole = written('train')
  for index in set(range(20)) - {14}:
    assert source[index]['image'] == whole[index][0]


def test_a_cut_file_loses_its_end_only(by_hand):
  file = by_hand / 'by_hand-train.tfrecord-00001-of-00002'
  file.write_bytes(file.read_bytes()[:-1])
  source = sources.open_source(f'tfds:{by_hand}', 'train')
  with pytest.raises(OSError, match=r'record 9: only the first 9 can be found'):
    source[19]
  assert source[18]['image'] == png(18)


def test_a_flipped_byte_of_array_record_costs_one_record(prepared_once, tmp_path):
  folder = tmp_path / '1.0.0'
  folder.mkdir()
  for file in (prepared_once / 'tiny_photos' / '1.0.0').iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  file = folder / 'tiny_photos-train.array_record-00000-of-00001'
  damaged = bytearray(file.read_bytes())
  damaged[damaged.index(png(3)[50:70])] ^= 1
  file.write_bytes(damaged)
  source = sources.open_source(f'tfds:{folder}', 'train')
  bad = []
  for index in range(len(source)):
    try:
      source[index]
    except OSError as error:
      bad.append(str(error))
  assert len(bad) == 1
  assert bad[0].startswith(f'{file}, record ')


def test_a_record_that_is_no_example_is_unreadable(by_hand):
  file = by_hand / 'by_hand-test.tfrecord-00000-of-00002'
  others = [tfrecord.read(str(file), index) for index in (0, 2, 3)]
  tfrecord.index_of.cache_clear()
  file.write_bytes(b''.join(map(framed, [others[0], b'rubbish', *others[1:]])))
  source = sources.open_source(f'tfds:{by_hand}', 'test')
  with pytest.raises(OSError, match='record 1: it is no such example'):
    source[1]
  assert source[2]['image'] == png(102)


@pytest.mark.parametrize('kind', ['array_record', 'tfrecord'])
def test_threads_and_processes_read_the_same(prepared_once, by_hand_once, kind):
  if kind == 'array_record':
    source = sources.open_source(f'tfds:tiny_photos?data_dir={prepared_once}', 'train')
  else:
    source = sources.open_source(f'tfds:{by_hand_once}', 'train')
  alone = all_of(source)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    together = list(pool.map(lambda i: source[i % 20]['image'], range(400)))
  assert together == [alone[i % 20][0] for i in range(400)]
  assert all_of(pickle.loads(pickle.dumps(source))) == alone


def test_workers_give_the_batches_that_threads_give(prepared_once, by_hand_once):
  transform = transforms.compose('resize(8) | flip', (8, 8))
  names = f'tfds:tiny_photos?data_dir={prepared_once}', f'tfds:{by_hand_once}'
  source = sources.concatenate([sources.open_source(name, 'train[4:]+test') for name in names])
  batches = []
  for workers in (0, 1):
    reading = pipeline.Reading(workers=workers)
    with pipeline.training_batches(
      source, labelled_images(source, transform), batch_size=8, seed=3, reading=reading
    ) as made:
      batches.append([next(made) for _ in range(6)])
  for threads, worker in zip(*batches):
    for column in threads:
      np.testing.assert_array_equal(threads[column], worker[column])


def test_a_set_that_vanished_is_named(by_hand):
  source = sources.open_source(f'tfds:{by_hand}', 'test')
  for file in by_hand.glob('*test*'):
    file.unlink()
  with pytest.raises(FileNotFoundError, match=r'by_hand-test\.tfrecord-00001-of-00002'):
    source[6]
  with pytest.raises(ValueError, match=r'lacks 2 of the 2 files of split .test., such as by_hand-'):
    sources.open_source(f'tfds:{by_hand}', 'test')


def test_multi_label_images_have_padded_labels(tmp_path):
  source = sources.open_source(f'tfds:two_kinds?data_dir={tmp_path}&label=real_label', 'train')
  labels = {}
  for index in range(3):
    try:
      label = source[index]['label']
      labels[tuple(label[label >= 0])] = label.shape
    except ValueError as error:
      labels[str(error).partition(': ')[2]] = ()
  shape = (MAX_LABELS,)
  assert labels == {(): shape, (4, 7): shape, '65 labels; at most 64 are taken': ()}
  assert len(source.classes) == 100
  plain = sources.open_source(f'tfds:two_kinds?data_dir={tmp_path}', 'train')
  assert plain.classes == CLASSES


def test_an_empty_label_is_no_class_but_in_sets_whose_every_image_has_one():
  assert pad_one([]).tolist() == [-1] * MAX_LABELS
  assert pad_one([-1]).tolist() == tfds_sets.known_classes([]).tolist() == [-2] * MAX_LABELS
  assert tfds_sets.known_classes([3])[:2].tolist() == [3, -1]


def test_unencoded_and_grey_tensors_are_images(tmp_path):
  spec = tfds.features.FeaturesDict(
    {
      'picture': tfds.features.Tensor(shape=(2, 3, 1), dtype=np.uint8),
      'kind': tfds.features.ClassLabel(names=CLASSES),
    }
  )
  grey = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
  write_tfrecords(tmp_path, spec, {'train': [{'picture': grey, 'kind': 2}]}, shards=1)
  record = sources.open_source(f'tfds:{tmp_path}', 'train')[0]
  assert record['label'] == 2
  np.testing.assert_array_equal(record['image'], grey)


def test_dsprites_are_white_on_black(tmp_path):
  spec = features(label_x_position=tfds.features.ClassLabel(num_classes=32))
  dot = io.BytesIO()
  Image.fromarray(np.array([[0, 1]], np.uint8)).save(dot, 'PNG')
  examples = [example('train', 0) | {'image': dot.getvalue(), 'label_x_position': 13}]
  write_tfrecords(tmp_path, spec, {'train': examples}, name='dsprites', shards=1)
  source = sources.open_source(f'tfds:{tmp_path}?label=location', 'train')
  assert source[0]['image'].tolist() == [[[0], [255]]]
  assert (source[0]['label'], len(source.classes)) == (6, 16)


@pytest.mark.parametrize(
  'name, message',
  [
    ('tiny_photos?labels=label', "unknown option 'labels'.*did you mean label"),
    ('tiny_photos?label=lable', "tiny_photos has no label 'lable'; did you mean label"),
    ('tiny_photos?image=img', "tiny_photos has no images 'img'"),
    ('tiny_photoz', 'neither in .*nothing nor a set that TFDS can download; did you mean tiny_'),
    ('imagenet21k', 'neither in .* nor a set that TFDS can download'),
    ('tiny_photos:9.9.9', 'tiny_photos:9.9.9: .*9.9.9'),
    ('/no/where', '/no/where holds no data set prepared by TFDS'),
    ('unreachable', r'is not in .*could not be prepared \(no route to host\);.*vit data prepare'),
    ('imagenet2012', r'not in .*nothing and could not be prepared .*ILSVRC2012_img_train\.tar'),
    ('needs_tensorflow', r"preparing needs_tensorflow needs tensorflow: pip install 'vit_jax\[tf"),
  ],
)
def test_what_cannot_be_had_is_reported_in_a_line(tmp_path, name, message):
  if name == 'needs_tensorflow' and importlib.util.find_spec('tensorflow'):
    pytest.skip('TensorFlow is there')
  with pytest.raises(ValueError, match=message) as caught:
    sources.open_source(f'tfds:{name}', 'train')
  assert '\n' not in str(caught.value)
  remains = [
    file for file in tmp_path.rglob('*1.0.0*') if 'incomplete' in file.name or file.is_dir()
  ]
  assert not remains


def test_a_download_that_fails_is_reported_once_and_soon(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(tfds_prepare, 'RETRIES', 2)
  theirs = tfds_prepare.downloader.MAX_RETRIES
  with pytest.raises(ValueError, match=r'refused is not in .*could not be prepared .*127\.0\.0\.1'):
    sources.open_source(f'tfds:refused?data_dir={tmp_path}', 'train')
  assert not [line for line in caplog.records if line.name.startswith('urllib3')]
  assert theirs == tfds_prepare.downloader.MAX_RETRIES


def test_an_incomplete_folder_is_not_taken_for_a_set(tmp_path):
  folder = tmp_path / 'tiny_photos' / '1.0.0'
  folder.mkdir(parents=True)
  with pytest.raises(ValueError, match='holds no complete data set: remove it'):
    sources.open_source(f'tfds:tiny_photos?data_dir={tmp_path}', 'train')


def test_a_damaged_description_is_reported_in_a_line(by_hand):
  (by_hand / 'dataset_info.json').write_text('{"name": "by_')
  with pytest.raises(ValueError, match=r'by_hand/1\.0\.0: ') as caught:
    sources.open_source(f'tfds:{by_hand}', 'train')
  assert '\n' not in str(caught.value)


def test_large_splits_are_prepared_alike_without_tensorflow(prepared_once, tmp_path, monkeypatch):
  monkeypatch.setattr(tfds.core.shuffle, 'MAX_MEM_BUFFER_SIZE', 1000)
  spilled = sources.open_source(f'tfds:tiny_photos?data_dir={tmp_path}', 'train')
  in_memory = sources.open_source(f'tfds:tiny_photos?data_dir={prepared_once}', 'train')
  assert all_of(spilled) == all_of(in_memory)


def test_class_names_are_those_that_preparing_found(tmp_path):
  for _ in range(2):
    source = sources.open_source(f'tfds:names_classes_late?data_dir={tmp_path}', 'train')
    assert source.classes == CLASSES


def test_a_preset_is_cut_from_its_set(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  folder = tmp_path / 'cifar10' / '3.0.2'
  folder.mkdir(parents=True)
  examples = [example('train', i) for i in range(100)]
  write_tfrecords(folder, features(), {'train': examples, 'test': examples[:3]}, name='cifar10')
  splits = {
    split: sources.open_source('cifar10', split) for split in ('train', 'validation', 'test')
  }
  assert {split: len(source) for split, source in splits.items()} == {
    'train': 98,
    'validation': 2,
    'test': 3,
  }
  assert all_of(splits['validation']) == [(png(98), 2), (png(99), 0)]


def test_pixels_are_encoded_without_tensorflow(tmp_path):
  source = sources.open_source(f'tfds:gives_pixels?data_dir={tmp_path}', 'train')
  pixels = sorted(transforms.decode(source[i]['image']).tolist() for i in range(3))
  assert pixels == sorted(transforms.decode(png(i)).tolist() for i in range(3))


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_png_files_hold_the_pixels_given(channels, dtype):
  rng = np.random.default_rng(channels)
  image = rng.integers(0, np.iinfo(dtype).max, (3, 4, channels)).astype(dtype)
  encoder = tfds.features.Image(shape=(3, 4, channels), dtype=dtype)._image_encoder
  file = np.frombuffer(tfds_prepare.as_png(encoder, image), np.uint8)
  read = cv2.imdecode(file, cv2.IMREAD_UNCHANGED).reshape(image.shape)
  order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
  np.testing.assert_array_equal(read[..., order], image)


def test_prepare_adds_array_record_files_that_tfds_reads(by_hand):
  lines = []
  tfds_sets.prepare(f'tfds:{by_hand}', say=lines.append)
  assert len(lines) == 2 and lines[1].endswith('train 20, test 7')
  before = sorted(file.name for file in by_hand.iterdir())
  assert 'by_hand-train.array_record-00001-of-00002' in before
  assert not any('incomplete' in name for name in before)
  theirs = tfds.builder_from_directory(by_hand).as_data_source(
    'train', decoders={'image': tfds.decode.SkipDecoding()}
  )
  assert [one['image'] for one in theirs] == [image for image, _ in written('train')]
  for file in by_hand.glob('*.tfrecord*'):
    file.unlink()
  assert all_of(sources.open_source(f'tfds:{by_hand}', 'test')) == written('test')
  lines.clear()
  tfds_sets.prepare(str(by_hand), say=lines.append)
  assert len(lines) == 1


def test_prepare_stops_at_damage_and_leaves_the_set_as_it_was(by_hand):
  before = sorted(file.name for file in by_hand.iterdir())
  file = by_hand / 'by_hand-test.tfrecord-00000-of-00002'
  damaged = bytearray(file.read_bytes())
  damaged[50] ^= 1
  file.write_bytes(damaged)
  with pytest.raises(OSError, match='record 0: its checksum is wrong'):
    tfds_sets.prepare(str(by_hand), say=print)
  assert sorted(file.name for file in by_hand.iterdir()) == before


def test_prepare_counts(by_hand):
  info = by_hand / 'dataset_info.json'
  info_json = json.loads(info.read_text())
  info_json['splits'][0]['shardLengths'][0] = '9'
  info.write_text(json.dumps(info_json))
  with pytest.raises(ValueError, match=r'has 10 records.*dataset_info\.json says 9'):
    tfds_sets.prepare(str(by_hand), say=print)


@pytest.mark.parametrize('name', sorted(presets.PRESETS.keys() - {'imagenet21k'}))
def test_a_preset_has_the_classes_that_tfds_says(name):
  preset = presets.PRESETS[name]
  parts = tfds_sets.parse(preset.source.removeprefix('tfds:'))
  builder = tfds_sets.make_builder(parts)
  columns, classes = tfds_sets.choose_columns(builder.name, builder.info.features, parts)
  assert columns.image == 'image'
  assert len(classes) == len(set(classes)) == preset.classes


def test_vtab_has_19_tasks_in_three_groups():
  assert {group: len(tasks) for group, tasks in presets.VTAB.items()} == {
    'natural': 7,
    'specialized': 4,
    'structured': 8,
  }
  tasks = [f'vtab/{task}' for group in presets.VTAB.values() for task in group]
  assert sorted(tasks) == sorted(name for name in presets.PRESETS if name.startswith('vtab/'))


def test_vtab_trains_on_800_and_chooses_by_200_others():
  def images(preset, split):
    counts = {name: 10**6 for name in ('train', 'validation', 'test')}
    terms = [sources.TERM.fullmatch(term).groups() for term in preset.splits[split].split('+')]
    places = [
      (name, i)
      for name, begin, end in terms
      for i in range(*(sources.boundary(side, counts[name]) for side in (begin or '0', end)))
    ]
    assert len(places) == len(set(places))
    return set(places)

  for name, preset in presets.PRESETS.items():
    if name.startswith('vtab/'):
      train, validation = images(preset, 'train'), images(preset, 'validation')
      assert (len(train), len(validation)) == (800, 200)
      assert images(preset, 'trainval') == train | validation
      assert len(train | validation) == 1000


@pytest.mark.parametrize(
  'name, feature, expected',
  [
    ('clevr/count', {'size': np.zeros(3)}, 0),
    ('clevr/count', {'size': np.zeros(10)}, 7),
    ('clevr/distance', {'pixel_coords': [[0, 0, 12], [0, 0, 8.0]]}, 0),
    ('clevr/distance', {'pixel_coords': [[0, 0, 12], [9, 9, 8.1]]}, 1),
    ('clevr/distance', {'pixel_coords': [[1, 1, 11.5]]}, 5),
    ('kitti/distance', {'type': [0, 3], 'location': [[0, 0, 9.0], [0, 0, 2.0]]}, 1),
    ('kitti/distance', {'type': [2], 'location': [[5, 5, 7.9]]}, 0),
    ('kitti/distance', {'type': [1], 'location': [[5, 5, 20.5]]}, 2),
    ('kitti/distance', {'type': [3], 'location': [[5, 5, 1.0]]}, 3),
    ('kitti/distance', {'type': [], 'location': []}, 3),
    ('dsprites/location', 31, 15),
    ('dsprites/orientation', 39, 15),
    ('dsprites/orientation', 5, 2),
    ('dsprites/orientation', 4, 1),
  ],
)
def test_a_label_made_of_a_feature(name, feature, expected):
  label = presets.LABELS[name].value(feature)
  assert label == expected
  assert label.dtype == np.int32
  assert label < len(presets.LABELS[name].classes)


def test_objects_are_counted_in_examples(tmp_path):
  objects = tfds.features.Sequence(
    {
      'size': tfds.features.ClassLabel(names=['large', 'small']),
      'pixel_coords': tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
  )
  spec = tfds.features.FeaturesDict({'image': features()['image'], 'objects': objects})
  coords = [np.array([1, 2, depth], np.float32) for depth in (9.2, 11, 8.7, 12)]
  examples = [
    {'image': png(0), 'objects': {'size': [0, 1, 1, 0], 'pixel_coords': coords}},
    {'image': png(1), 'objects': {'size': [0, 1, 1], 'pixel_coords': coords[:2] + coords[3:]}},
  ]
  write_tfrecords(tmp_path, spec, {'train': examples}, name='clevr', shards=1)
  counts = sources.open_source(f'tfds:{tmp_path}?label=count', 'train')
  assert [counts.classes[counts[i]['label']] for i in range(2)] == ['4 objects', '3 objects']
  distances = sources.open_source(f'tfds:{tmp_path}?label=distance', 'train')
  assert [distances.classes[distances[i]['label']] for i in range(2)] == ['to 9', 'to 9.5']
  with pytest.raises(ValueError, match=r'use \?label=count or distance'):
    sources.open_source(f'tfds:{tmp_path}', 'train')


@pytest.fixture
def table(tmp_path):
  """A table of Hugging Face: six images, by a column of classes and one of lists."""
  datasets = pytest.importorskip('datasets')
  datasets.disable_progress_bars()
  return datasets.Dataset.from_dict(
    {
      'picture': [{'bytes': png(i), 'path': f'{i}.png'} for i in range(6)],
      'kind': [i % 3 for i in range(6)],
      'number': list(range(6)),
    },
    features=datasets.Features(
      {
        'picture': datasets.Image(),
        'kind': datasets.ClassLabel(names=list(CLASSES)),
        'number': datasets.Value('int64'),
      }
    ),
  )


def test_a_saved_table_is_read(table, tmp_path):
  import datasets

  datasets.DatasetDict({'train': table, 'val': table.select([1])}).save_to_disk(tmp_path / 'both')
  train = sources.open_source(f'hf:{tmp_path}/both', 'train')
  assert all_of(train) == [(png(i), i % 3) for i in range(6)]
  assert train.classes == CLASSES
  assert train.describe(4) == f'{tmp_path}/both/train[4] (4.png)'
  assert all_of(sources.open_source(f'hf:{tmp_path}/both', 'validation')) == [(png(1), 1)]
  assert all_of(pickle.loads(pickle.dumps(train))) == all_of(train)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    labels = list(pool.map(lambda i: int(train[i % 6]['label']), range(200)))
  assert labels == [i % 3 for i in map(lambda i: i % 6, range(200))]


def test_parquet_and_folders_are_read_by_hugging_face(table, tmp_path):
  pytest.importorskip('datasets')
  table.remove_columns('kind').to_parquet(tmp_path / 'one.parquet')
  source = sources.open_source(f'hf:{tmp_path}/one.parquet', 'train[2:]')
  assert all_of(source) == [(png(i), i) for i in range(2, 6)]
  assert source.classes == tuple('012345')
  for index, kind in enumerate(('ant', 'bee')):
    (tmp_path / 'folder' / 'train' / kind).mkdir(parents=True)
    (tmp_path / 'folder' / 'train' / kind / 'a.png').write_bytes(png(index))
  folder = sources.open_source(f'hf:{tmp_path}/folder', 'train')
  assert (folder.classes, all_of(folder)) == (('ant', 'bee'), [(png(0), 0), (png(1), 1)])
  (tmp_path / 'folder' / 'train' / 'bee' / 'a.png').unlink()
  with pytest.raises(FileNotFoundError, match=r'bee/a\.png'):
    folder[1]


def test_integers_from_1_are_as_many_classes_and_columns_may_be_named(table, tmp_path):
  table = table.remove_columns('number').add_column('rank', [1, 2, 3, 3, 2, 1])
  table.save_to_disk(tmp_path / 'ranks')
  source = sources.open_source(f'hf:{tmp_path}/ranks?label=rank', 'train')
  assert (source.classes, [label for _, label in all_of(source)]) == (
    ('1', '2', '3'),
    [0, 1, 2, 2, 1, 0],
  )
  assert source.notes == ('labels are numbered from 1: classes are 1 to 3',)
  assert [(item.reason, item.kind) for item in source.passed_over] == [('unknown column', 'kind')]
  with pytest.raises(ValueError, match="no column 'grade' among picture, kind, rank"):
    sources.open_source(f'hf:{tmp_path}/ranks?label=grade', 'train')


def test_a_table_of_hugging_face_says_no_class_and_unknown(table, tmp_path):
  import datasets

  lists, single = datasets.List(datasets.Value('int64')), datasets.Value('int64')
  several = table.remove_columns(['kind', 'number']).add_column(
    'label', [[0, 2], [], None, [1], [-1], [2]], feature=lists
  )
  several.save_to_disk(tmp_path / 'several')
  source = sources.open_source(f'hf:{tmp_path}/several', 'train')
  assert [source[i]['label'][:2].tolist() for i in range(6)] == [
    [0, 2],
    [-1, -1],
    [-2, -2],
    [1, -1],
    [-2, -2],
    [2, -1],
  ]
  plain = table.remove_columns(['kind', 'number'])
  plain.add_column('label', [0, None, 1, 0, 1, 0], feature=single).save_to_disk(tmp_path / 'one')
  source = sources.open_source(f'hf:{tmp_path}/one', 'train')
  assert [int(source[i]['label']) for i in range(3)] == [0, -1, 1]
  plain.add_column('label', [0.5] * 6).save_to_disk(tmp_path / 'age')
  with pytest.raises(
    ValueError, match=r'age, label: labels such as 0.5 are numbers that are not whole'
  ):
    sources.open_source(f'hf:{tmp_path}/age', 'train')


@pytest.mark.parametrize(
  'labels, classes, expected',
  [
    ([0.0, 2.0, None, 1.0, 0.0, 0.0], '012', [0, 2, -1, 1, 0, 0]),
    ([[0, 1, 0], [1, 0, 0]] * 3, '012', [1, 0] * 3),
    ([[0, 1, 1], [0, 0, 0], None] * 2, '012', [[1, 2], [-1, -1], [-2, -2]] * 2),
    ([[0, 1], [1]] * 3, '01', [[0, 1], [1, -1]] * 3),
  ],
)
def test_a_table_of_hugging_face_has_whole_floats_and_one_hot_lists(
  table, tmp_path, labels, classes, expected
):
  plain = table.remove_columns(['kind', 'number']).add_column('label', labels)
  plain.save_to_disk(tmp_path / 'labels')
  source = sources.open_source(f'hf:{tmp_path}/labels', 'train')
  assert source.classes == tuple(classes)
  assert sources.labels_of(source).tolist() == expected  # in memory: no image is read for them
  assert [source[i]['label'].tolist() for i in range(6)] == expected


def test_columns_that_a_table_lacks_are_named(table, tmp_path):
  table.remove_columns('picture').save_to_disk(tmp_path / 'blind')
  with pytest.raises(ValueError, match='no column of images among kind, number'):
    sources.open_source(f'hf:{tmp_path}/blind', 'train')
  table.select_columns(['picture']).save_to_disk(tmp_path / 'mute')
  with pytest.raises(ValueError, match='no column of labels among picture: make one a ClassLabel'):
    sources.open_source(f'hf:{tmp_path}/mute', 'train')
  with pytest.raises(ValueError, match='hf:no/set cannot be loaded: '):
    sources.open_source('hf:no/set', 'train')


def test_hugging_face_is_asked_for_by_name(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(ValueError, match=r"hf:beans needs datasets: pip install 'vit_jax\[hf\]'"):
    sources.open_source('hf:beans', 'train')


def test_what_is_replaced_of_tfds_4_9_10_is_there():
  # sources/tfds_prepare.py: of a newer TFDS look again at what each of these does.
  assert tfds_prepare.downloader.MAX_RETRIES == 10
  assert 'importlib_resources' in tfds_prepare.tfds.core.dataset_builder.__dict__
  lazy_module = type(tfds_prepare.lazy_imports_utils.tensorflow)
  assert isinstance(lazy_module._module, functools.cached_property)
  encode = inspect.signature(tfds_prepare.image_feature._ImageEncoder._encode_image)
  assert list(encode.parameters) == ['self', 'np_image']
  validate = inspect.signature(tfds_prepare.image_feature._validate_np_array)
  assert list(validate.parameters) == ['np_array', 'shape', 'dtype']
