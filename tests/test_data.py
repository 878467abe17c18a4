"""What a model is fed: the same order everywhere, every image once, and no file that stops it."""

import hashlib
import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_jax import pipeline, sources
from vit_jax.convert import resample
from vit_jax.convert.preprocess import same_pixels
from vit_jax.images import transforms
from vit_jax.sources import digits
from vit_jax.sources.columns import labelled_images

pytestmark = pytest.mark.arithmetic

# The pipeline


def numbered(count=20):
  """Images of one grey pixel each, whose label is their index."""
  records = [{'image': np.full((1, 1, 3), i, np.uint8), 'label': np.int32(i)} for i in range(count)]
  return sources.Source(records, tuple(map(str, range(count))))


def noise(image, rng):
  """Puts random numbers where the picture was: augmentation, without a picture."""
  return np.asarray(rng.integers(0, 256, (1, 4, 3)), np.uint8)


NOISY = transforms.Transform((noise,), (1, 4))
UNCHANGED = transforms.Transform((), (1, 1))


def taken(steps, *, start=0, seed=0, batch_size=4, count=20, **reading):
  """{'image', 'label', 'mask'} of some steps' batches, one after another: (steps, rows, ...)."""
  with pipeline.training_batches(
    numbered(count),
    labelled_images(numbered(count), NOISY),
    batch_size=batch_size,
    seed=seed,
    start=start,
    reading=pipeline.Reading(**reading),
  ) as batches:
    return stacked([next(batches) for _ in range(steps)])


def stacked(batches):
  return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def same(a, b):
  assert a.keys() == b.keys() == {'image', 'label', 'mask'}
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


STEPS = 13  # 2.6 epochs


@pytest.fixture(scope='module')
def once():
  """The batches of one process that starts at the beginning."""
  return taken(STEPS)


def test_a_shard_that_starts_later_reads_what_it_would_have_read(once):
  batches = taken(4, start=6, shard=(1, 2))
  same(batches, {name: rows[6:10, 2:] for name, rows in once.items()})


def test_each_epoch_is_another_permutation(once):
  epochs = once['label'].ravel()[:40].reshape(2, 20)
  for epoch in epochs:
    assert sorted(epoch) == list(range(20))
    assert list(epoch) != list(range(20))
  assert list(epochs[0]) != list(epochs[1])


def test_a_batch_may_be_larger_than_the_data_set():
  labels = taken(2, batch_size=50)['label']
  assert labels.shape == (2, 50)
  assert np.bincount(labels.ravel()).tolist() == [5] * 20


def evaluated(batch_size, share, count):
  with pipeline.evaluation_batches(
    numbered(count),
    labelled_images(numbered(count), UNCHANGED),
    batch_size=batch_size,
    reading=pipeline.Reading(shard=share),
  ) as batches:
    return stacked(list(batches))


@pytest.mark.parametrize('shares', [1, 2, 4])
@pytest.mark.parametrize('batch_size, count', [(4, 20), (8, 20), (8, 1), (32, 20), (4, 21)])
def test_evaluation_counts_every_image_once_in_order_for_any_number_of_processes(
  batch_size, count, shares
):
  hosts = [evaluated(batch_size, (index, shares), count) for index in range(shares)]
  steps = -(-count // batch_size)
  assert {rows['label'].shape for rows in hosts} == {(steps, batch_size // shares)}
  label, mask, image = (
    np.concatenate([rows[name] for rows in hosts], 1).ravel() for name in ('label', 'mask', 'image')
  )
  assert label[mask > 0].tolist() == list(range(count))
  assert image.reshape(-1, 3)[mask > 0][:, 0].tolist() == list(range(count))
  assert mask.tolist() == [1] * count + [0] * (len(mask) - count)


# Sources


DIGITS = {'train': 1259, 'validation': 179, 'test': 359}


@pytest.fixture(scope='module')
def splits():
  return {split: sources.open_source('digits', split) for split in DIGITS}


def test_digits_are_split_into_parts_that_make_up_the_whole(splits):
  assert {split: len(source) for split, source in splits.items()} == DIGITS
  images, labels = digits.digits()
  parts = [(r['label'], r['image'].tobytes()) for s in splits.values() for r in s.records]
  whole = [(label, image.tobytes()) for label, image in zip(labels, images)]
  assert sorted(parts) == sorted(whole)
  assert len(set(whole)) == len(whole)  # so that equal lists mean disjoint parts


@pytest.mark.parametrize('place', [digits.file(), pathlib.Path('nowhere')])
def test_digits_are_scikit_learns(place, monkeypatch):
  from sklearn import datasets

  monkeypatch.setattr(digits, 'file', lambda: place)
  data, (images, labels) = datasets.load_digits(), digits.digits.__wrapped__()
  np.testing.assert_array_equal(images, np.round(data.images * 255 / 16)[..., None].repeat(3, -1))
  np.testing.assert_array_equal(labels, data.target)
  assert (images.dtype, labels.dtype) == (np.uint8, np.int32)


def test_digits_are_split_the_same_for_ever(splits):
  digest = hashlib.sha256()
  for source in splits.values():
    for record in source.records:
      digest.update(bytes([int(record['label'])]) + record['image'].tobytes())
  assert digest.hexdigest()[:16] == 'a304323d952b80d3'


def test_digits_are_uint8_images_of_every_class_that_use_the_whole_range(splits):
  for source in splits.values():
    records = [source[i] for i in range(len(source))]
    assert {(r['image'].shape, r['image'].dtype.name) for r in records} == {((8, 8, 3), 'uint8')}
    assert {int(r['label']) for r in records} == set(range(10))
    assert (min(r['image'].min() for r in records), max(r['image'].max() for r in records)) == (
      0,
      255,
    )
  assert splits['train'].classes == tuple('0123456789')


def test_an_unknown_source_or_split_is_an_error_that_lists_the_nearest():
  with pytest.raises(ValueError, match="unknown dataset 'digit'; did you mean digits"):
    sources.open_source('digit', 'train')
  with pytest.raises(ValueError, match=r'; known: digits, .* and the sets of `vit data list`$'):
    sources.open_source('quux', 'train')
  with pytest.raises(ValueError, match="no split 'tests'; did you mean test"):
    sources.open_source('digits', 'tests')


# Transforms


RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def apply(line, image=PHOTO, size=(4, 6), seed=0):
  return transforms.compose(line, size)(image, np.random.default_rng(seed))


@pytest.mark.quick
@pytest.mark.parametrize(
  'line, shape',
  [
    ('', (12, 20)),
    ('resize', (4, 6)),
    ('resize(5)', (5, 5)),
    ('resize(5, 7)', (5, 7)),
    ('resize(height=5, width=7)', (5, 7)),
    ('resize_small(6)', (6, 10)),
    ('resize_small(24)', (24, 40)),
    ("resize(method='bicubic')", (4, 6)),
    ("resize(5, method='bicubic')", (5, 5)),
    ("resize_small(6, method='bicubic_antialias') | central_crop(5)", (5, 5)),
    ("resize_small(6, rounding='down') | central_crop(5, rounding='nearest')", (5, 5)),
    ('resize_small(6) | central_crop', (4, 6)),
    ('crop_ratio', (4, 6)),
    ("crop_ratio(ratio=0.5, method='bilinear')", (4, 6)),
    ('crop_ratio(5)', (5, 5)),
    ('central_crop(3)', (3, 3)),
    ('random_crop(12, 20)', (12, 20)),
    ('inception_crop', (4, 6)),
    ('inception_crop(8, area_min=0.3)', (8, 8)),
    ('inception_crop(area_min=0.3) | flip', (4, 6)),
    ("inception_crop(method='bicubic_antialias')", (4, 6)),
    ('flip | resize', (4, 6)),
    ('affine(degrees=10)|flip()', (12, 20)),
    (' resize ( 5 ) ', (5, 5)),
  ],
)
def test_a_line_of_transforms_gives_images_of_the_size_it_says(line, shape):
  image = apply(line)
  assert (image.shape, image.dtype) == ((*shape, 3), np.uint8)


@pytest.mark.parametrize(
  'side, scale, whole', [(384, '7/6', 448), (224, '8/7', 256), (96, '7/6', 112)]
)
def test_a_scale_gives_the_published_sizes_and_follows_others(side, scale, whole):
  assert apply(f'resize(scale={scale})', size=(side, side)).shape == (whole, whole, 3)
  smaller = apply(f'resize_small(scale={scale})', size=(side, side)).shape
  assert min(smaller[:2]) == whole
  assert apply(f'resize_small({side}, scale={scale})').shape == smaller
  for line in ('resize({}) | central_crop', 'resize_small({}) | central_crop'):
    assert same_pixels(line.format(f'scale={scale}'), line.format(whole), (side, side))


@pytest.mark.parametrize(
  'line, expected',
  [
    ('resize', "resize(method='bilinear_antialias')"),
    ('resize_small(scale=8/7)|flip', "resize_small(scale=8/7, method='bilinear_antialias') | flip"),
    ("resize(8, method='bilinear')", "resize(8, method='bilinear')"),
    ('crop_ratio | flip()', 'crop_ratio | flip()'),  # has it already
    ('inception_crop()', "inception_crop(method='bilinear_antialias')"),
    ('mine.steps:resize(3) | nope(1', 'mine.steps:resize(3) | nope(1'),
  ],
)
def test_antialiasing_is_written_into_the_steps_that_name_no_method(line, expected):
  assert transforms.antialiased(line) == expected


@pytest.mark.parametrize(
  'line, fraction',
  [
    ('resize(448) | random_crop(96) | flip', 0.0459),
    ('resize_small(256) | central_crop(96)', 0.1406),
    ('random_crop(100)', 1 / 16),
    ('resize(200) | corner_crop(100)', 1 / 4),
    ('inception_crop(96)', 1),
    ('', 1),
  ],
)
def test_the_fraction_that_crops_leave_is_of_a_squares_area(line, fraction):
  image = np.zeros((400, 900, 3), np.uint8)
  assert transforms.crop_fraction(transforms.compose(line, (96, 96)), image) == pytest.approx(
    fraction, abs=1e-4
  )


BAD_LINES = [
  'resize(scale=1/0)', 'resize(scale="a")', 'resize_small(scale=0)', 'resize(8, scale=1e9)',
  'rezise', 'resize_small', 'resize(1, 2, 3)', 'resize(x)', 'resize(8', 'resize(8))', 'flip(1)',
  'resize(sid=3)', 'resize(8, height=9)', 'resize(*[1])', 'flip | nope', 'os.system("ls")',
  'resize(__import__("os"))', 'resize[8]', 'flip flip', 'random_crop(depth=3)',
]  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize('line', BAD_LINES)
def test_a_line_that_is_no_transforms_is_one_error_on_one_line(line):
  with pytest.raises(ValueError) as error:
    transforms.compose(line, (4, 6))
  assert '\n' not in str(error.value)
  assert 'transform' in str(error.value)


@pytest.mark.parametrize(
  'line', ['resize(2) + flip(3)', 'resize(8)(8)', 'resize(8).x(3)', 'resize(2) if 1 else (3)']
)
def test_a_line_that_is_more_than_calls_is_an_error(line):
  with pytest.raises(ValueError, match='transform'):
    transforms.compose(line, (4, 6))


BAD_VALUES = [
  'resize("a")', 'resize(0)', 'resize_small(-3)', 'central_crop(2.5)', 'affine("x")',
  'crop_ratio(ratio=0)', 'crop_ratio(ratio=1.5)', 'crop_ratio(ratio="a")', 'crop_ratio(method="x")',
  'resize_small(3, rounding="up")', 'central_crop(3, rounding=1)', 'inception_crop(method=3)',
]  # fmt: skip


@pytest.mark.parametrize('line', BAD_VALUES)
def test_a_value_that_a_transform_does_not_take_is_an_error_before_any_image(line):
  with pytest.raises(ValueError, match='transform'):
    transforms.compose(line, (4, 6))


@pytest.mark.parametrize(
  'line, said',
  [
    ('resize(100000)', '100000 is not a number of pixels from 1 to 16,384'),
    ('resize(10000)', '10000x10000 pixels exceed the limit of 89,478,485'),
    ('resize_small(10000)', '10000x10000 pixels exceed'),
    ('crop_ratio(224, ratio=0.001)', '224000 is not a number of pixels'),
    ('inception_crop(area_min=5, area_max=9)', r'area_min is 5, not a number in \[0, 1\]'),
    ('inception_crop(area_max=0.01)', r'area_max is 0.01, not a number in \[0.05, 1\]'),
    ('inception_crop(ratio_min=-1)', r'ratio_min is -1, not a number in \[0.01, 100\]'),
    ('inception_crop(ratio_max=1e999)', r'ratio_max is inf, not a number in \[0.75, 100\]'),
    ('affine(zoom=1)', r'zoom is 1, not a number in \[0, 0.9\]'),
    ('affine(shear=-5)', r'shear is -5, not a number in \[0, 80\]'),
    ('crop_ratio(ratio=2)', r'ratio is 2, not a number in \[0.0001, 1\]'),
    ('gaussian_blur(nan)', r"'gaussian_blur\(nan\)': nan is not a number or a text in quotes$"),
    ("affine(float('nan'))", r"float\('nan'\) is not a number or a text in quotes$"),
    ('affine(degrees=[x])', r'\[x\] is not a number'),
  ],
)
def test_an_argument_out_of_its_range_is_named_with_that(line, said):
  with pytest.raises(ValueError, match=said) as error:
    transforms.compose(line, (4, 6))
  assert '\n' not in str(error.value)


def test_sides_up_to_the_limits_are_taken():
  transforms.compose('resize(16384, 5461) | resize_small(9459) | resize', (4, 6))


def test_a_misspelt_transform_lists_the_nearest():
  with pytest.raises(ValueError, match="unknown transform 'random_corp'; did you mean random_crop"):
    transforms.compose('flip | random_corp(4)', (4, 6))


@pytest.mark.quick
def test_resize_takes_half_pixel_centres_without_antialiasing():
  ramp = np.repeat((16 * np.arange(16, dtype=np.uint8)).reshape(4, 4, 1), 3, -1)
  assert apply('resize(2)', ramp)[..., 0].tolist() == [[40, 72], [168, 200]]
  stripes = np.zeros((8, 8, 3), np.uint8)
  stripes[:, [0, 4]] = 255
  assert not apply('resize(2)', stripes).any()


RESIZED = [(5, 30), (24, 7), (12, 20), (6, 10)]


@pytest.mark.quick
@pytest.mark.parametrize('size', RESIZED)
@pytest.mark.parametrize('name', ['bilinear', 'bicubic'])
def test_antialiased_resizes_equal_pillow(name, size):
  expected = Image.fromarray(PHOTO).resize(size[::-1], Image.Resampling[name.upper()])
  np.testing.assert_array_equal(apply(f"resize(method='{name}_antialias')", size=size), expected)


@pytest.mark.quick
@pytest.mark.parametrize('size', RESIZED)
@pytest.mark.parametrize('method', sorted(transforms.METHODS.keys() & resample.RULES))
def test_methods_are_the_rules_that_resample_weights_by_the_same_name(method, size):
  down, across = (resample.matrix(method, *sides) for sides in zip(PHOTO.shape, size))
  expected = np.einsum('yr,xc,rcd->yxd', down, across, PHOTO).clip(0, 255)
  image = apply(f"resize(method='{method}')", size=size)
  # one level: rounded after rows and after columns
  np.testing.assert_allclose(image, expected, atol=1, rtol=0)


@pytest.mark.quick
def test_an_unknown_method_is_an_error_that_lists_the_known():
  methods = 'bilinear, bicubic, area, bilinear_antialias, bicubic_antialias'
  for step in ('resize(8', 'resize_small(8'):
    with pytest.raises(
      ValueError, match=f"transform .* unknown method 'lanczos'; known: {methods}"
    ):
      transforms.compose(f"{step}, method='lanczos')", (4, 6))


@pytest.mark.quick
def test_central_crop_is_the_middle():
  np.testing.assert_array_equal(apply('central_crop(4, 6)'), PHOTO[4:8, 7:13])
  np.testing.assert_array_equal(apply('central_crop(12, 20)'), PHOTO)


HERE = pathlib.Path(__file__).parent


@pytest.mark.quick
def test_resize_is_that_of_tensorflow():
  chelsea = transforms.decode((HERE / 'data/chelsea.png').read_bytes())
  golden = np.load(HERE / 'golden/golden.npz')['tfresize_chelsea_224']  # in [-1, 1]
  image = apply('resize(224)', chelsea.astype(np.float32))[::16, ::16]
  np.testing.assert_allclose((image - 127.5) / 127.5, golden, atol=1e-5, rtol=0)  # float32
  image = apply('resize(224)', chelsea)[::16, ::16]
  # one level: OpenCV's weights for uint8 are integers
  np.testing.assert_allclose(image, 127.5 + 127.5 * golden, atol=1, rtol=0)


@pytest.mark.quick
@pytest.mark.parametrize(
  'size, nearest, down',
  [
    ((375, 500), (256, 341), (256, 341)),
    ((333, 500), (256, 384), (256, 384)),
    ((500, 333), (384, 256), (384, 256)),
    ((300, 455), (256, 388), (256, 388)),
    ((480, 641), (256, 342), (256, 341)),
    ((641, 480), (342, 256), (341, 256)),
    ((512, 513), (256, 256), (256, 256)),  # 256.5 to the even one
    ((512, 515), (256, 258), (256, 257)),
    ((256, 300), (256, 300), (256, 300)),
  ],
)
def test_the_longer_side_is_rounded_as_big_vision_or_cut_as_torchvision(size, nearest, down):
  image = np.zeros((*size, 3), np.uint8)
  assert apply('resize_small(256)', image).shape[:2] == nearest
  assert apply("resize_small(256, rounding='down')", image).shape[:2] == down


@pytest.mark.quick
@pytest.mark.parametrize('size', [(37, 50), (50, 37), (33, 50), (23, 25), (30, 22), (100, 33)])
def test_crop_ratio_is_torchvisions_resize_and_centre_crop(size):
  image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
  height, width = size
  short = min(size)
  height, width = int(25 * height / short), int(25 * width / short)  # floor(22 / 0.875) = 25
  y, x = round((height - 22) / 2.0), round((width - 22) / 2.0)
  expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
  cropped = apply('crop_ratio(22)', image)
  np.testing.assert_array_equal(cropped, expected[y : y + 22, x : x + 22])
  line = "resize_small(25, method='bicubic_antialias', rounding='down')"
  np.testing.assert_array_equal(
    apply(f"{line} | central_crop(22, rounding='nearest')", image), cropped
  )


@pytest.mark.quick
@pytest.mark.parametrize('size', [(8, 30), (30, 8), (9, 9)])
def test_crop_ratio_covers_sizes_of_any_aspect(size):
  for line in ('crop_ratio', 'crop_ratio(ratio=1.0)', 'crop_ratio(ratio=0.6)'):
    assert apply(line, np.zeros((*size, 3), np.uint8), size=(4, 14)).shape == (4, 14, 3)


@pytest.mark.quick
def test_a_thin_line_that_would_become_a_huge_image_is_bad():
  line = np.zeros((1, 60_000, 3), np.uint8)
  for step in ('resize_small(224)', 'crop_ratio(224)', 'crop_ratio(200, 224)'):
    with pytest.raises(transforms.BadImage, match='exceed the limit'):
      apply(step, line)


@pytest.mark.quick
def test_central_crop_rounds_half_the_spare_pixels_down_or_to_the_nearest_even():
  for spare, down, nearest in [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 2), (5, 2, 2), (7, 3, 4)]:
    image = coordinates(8 + spare, 8)
    assert apply('central_crop(8)', image)[0, 0, 0] == down
    assert apply("central_crop(8, rounding='nearest')", image)[0, 0, 0] == nearest


@pytest.mark.quick
@pytest.mark.parametrize('step', ['central_crop', 'random_crop'])
def test_a_crop_larger_than_the_image_is_an_error(step):
  with pytest.raises(ValueError, match='13x4 exceeds the image of 12x20'):
    apply(f'{step}(13, 4)')


def coordinates(rows=12, columns=20):
  """An image whose pixels say where they are."""
  y, x = np.mgrid[:rows, :columns]
  return np.stack([y, x, 0 * x], -1).astype(np.uint8)


def test_random_crops_are_pieces_of_the_image_and_reach_all_of_it():
  corners = set()
  for seed in range(300):
    part = apply('random_crop(10, 17)', coordinates(), seed=seed)
    y, x = (int(value) for value in part[0, 0, :2])
    np.testing.assert_array_equal(part, coordinates()[y : y + 10, x : x + 17])
    corners.add((y, x))
  assert corners == {(y, x) for y in range(3) for x in range(4)}


def test_inception_crops_keep_within_their_bounds_of_area_and_aspect(monkeypatch):
  crops = []
  monkeypatch.setattr(
    transforms, 'resize_image', lambda image, *_: crops.append(image.shape) or image
  )
  step = transforms.inception_crop(4, 4, area_min=0.25, area_max=0.5)
  image = np.zeros((100, 150, 3), np.uint8)
  for seed in range(300):
    step(image, np.random.default_rng(seed))
  height, width = np.array([shape[:2] for shape in crops]).T
  share, ratio = height * width / 15_000, width / height
  assert 0.24 < share.min() < 0.27  # sides are rounded to pixels, so bounds by 1 %
  assert 0.48 < share.max() < 0.51
  assert 0.73 < ratio.min() < 0.8
  assert 1.25 < ratio.max() < 1.36


def test_inception_crop_squashes_the_whole_image_where_no_crop_fits():
  line = np.arange(60, dtype=np.uint8).reshape(1, 20, 3)
  np.testing.assert_array_equal(
    apply('inception_crop(4, 6, area_min=1.0)', line), apply('resize(4, 6)', line)
  )


@pytest.mark.quick
def test_flip_mirrors_half_of_the_images_left_and_right():
  images = [apply('flip', seed=seed) for seed in range(400)]
  mirrored = [np.array_equal(image, PHOTO[:, ::-1]) for image in images]
  assert all(flipped or np.array_equal(image, PHOTO) for flipped, image in zip(mirrored, images))
  assert 160 < sum(mirrored) < 240  # four standard deviations


@pytest.mark.quick
def test_affine_without_arguments_changes_nothing():
  np.testing.assert_array_equal(apply('affine'), PHOTO)
  np.testing.assert_array_equal(apply('affine()', seed=5), PHOTO)


@pytest.mark.parametrize('name', ['degrees=30', 'shift=0.2', 'zoom=0.3', 'shear=20'])
def test_each_argument_of_affine_moves_pixels_but_not_the_centre_of_a_flat_image(name):
  assert not np.array_equal(apply(f'affine({name})', seed=1), PHOTO)
  white = np.full((11, 11, 3), 255, np.uint8)
  image = apply(f'affine({name})', white, seed=1)
  assert image[5, 5].tolist() == [255] * 3


def test_transforms_draw_from_their_generator_alone():
  line = 'inception_crop(8) | affine(degrees=9, shift=0.1, zoom=0.1, shear=5) | flip'
  np.random.seed(0)
  first = apply(line, seed=3)
  np.random.seed(1)
  np.testing.assert_array_equal(apply(line, seed=3), first)
  assert not np.array_equal(apply(line, seed=4), first)


def overlaps(size, result):
  """(result, size): how much of each pixel each of `result` equal parts of a side covers, of 1."""
  edges = np.arange(result + 1) * size / result
  pixels = np.arange(size)
  low, high = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
  return np.maximum(high - low, 0) * result / size


@pytest.mark.parametrize('side', [256, 128, 400])
def test_area_is_the_mean_of_what_a_pixel_covers_without_its_fraction(side):
  image = np.asarray(Image.open(pathlib.Path(__file__).parent / 'data/chelsea.png').convert('RGB'))
  pixels = apply(f"resize_small({side}, method='area')", image)
  height, width, _ = pixels.shape
  rows, columns = overlaps(image.shape[0], height), overlaps(image.shape[1], width)
  means = np.einsum('yh,hwc->ywc', rows, image.astype(float), optimize=True)
  means = np.einsum('xw,ywc->yxc', columns, means, optimize=True)
  assert (pixels - means > -1.001).all() and (pixels - means < 0.002).all()
  assert np.abs(pixels - apply(f'resize_small({side})', image).astype(int)).max() > 9


@pytest.mark.parametrize('name', ['resize', 'resize_small(5)', 'central_crop(3)'])
def test_evaluation_steps_draw_nothing(name):
  transforms.compose(name, (4, 6))(PHOTO, None)
