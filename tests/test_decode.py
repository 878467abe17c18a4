"""Whatever a file holds: upright RGB, the same however it is read, or one line of refusal."""

import functools
import io
import json
import resource
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from vit_jax.images import decoding, transforms

pytestmark = pytest.mark.arithmetic


def coordinates(rows=12, columns=20):
  """An image whose pixels say where they are."""
  y, x = np.mgrid[:rows, :columns]
  return np.stack([y, x, 0 * x], -1).astype(np.uint8)


def encoded(image, form, **options):
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  data = io.BytesIO()
  image.save(data, form, **options)
  return data.getvalue()


@pytest.mark.quick
@pytest.mark.parametrize('form', ['PNG', 'BMP', 'TIFF', 'GIF', 'JPEG', 'WEBP'])
def test_files_of_every_form_become_uint8_rgb(form):
  image = coordinates() * np.uint8(10)
  pixels = decoding.decode(encoded(image, form))
  assert (pixels.shape, pixels.dtype) == ((12, 20, 3), np.uint8)
  # lossy forms and palettes: pixels are off by a few levels, not by channels or places
  worst = 0 if form in ('PNG', 'BMP', 'TIFF') else 40
  assert np.abs(pixels.astype(int) - image).max() <= worst


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
DEEP = GREY.astype(np.uint16) * 257
RED = np.full((3, 4, 3), (255, 0, 0), np.uint8)


def grey_rgb(grey):
  return np.repeat(grey[..., None], 3, -1)


def cases():
  half = np.concatenate([RED, np.full((3, 4, 1), 128, np.uint8)], -1)
  clear = np.concatenate([RED, np.zeros((3, 4, 1), np.uint8)], -1)
  grey_alpha = Image.fromarray(GREY).convert('LA')
  grey_alpha.putalpha(0)
  palette = Image.fromarray(RED).quantize(4)
  pink = np.full((3, 4, 3), (255, 127, 127), np.uint8)
  white = np.full((3, 4, 3), 255, np.uint8)
  bits = np.array([[0, 255, 0, 255]] * 3, np.uint8)
  animated = dict(save_all=True, append_images=[Image.fromarray(0 * RED)], duration=9)
  return {
    'grey': (encoded(GREY, 'PNG'), grey_rgb(GREY)),
    'one bit': (encoded(Image.fromarray(bits).convert('1'), 'PNG'), grey_rgb(bits)),
    '16 bits': (encoded(DEEP, 'PNG'), grey_rgb(GREY)),
    '16 bits TIFF': (encoded(DEEP, 'TIFF'), grey_rgb(GREY)),
    'floats to 1': (encoded((GREY / 255).astype(np.float32), 'TIFF'), grey_rgb(GREY)),
    'floats to 255': (encoded(GREY.astype(np.float32), 'TIFF'), grey_rgb(GREY)),
    '32 bits': (encoded(GREY.astype(np.int32), 'TIFF'), grey_rgb(GREY)),
    'white is zero': (encoded(DEEP, 'TIFF', tiffinfo={262: 0}), grey_rgb(255 - GREY)),
    'half transparent': (encoded(half, 'PNG'), pink),
    'transparent': (encoded(clear, 'PNG'), white),
    'grey and transparent': (encoded(grey_alpha, 'PNG'), white),
    'palette': (encoded(palette, 'PNG'), RED),
    'palette with transparent colour': (encoded(palette, 'PNG', transparency=0), white),
    'CMYK': (encoded(Image.fromarray(RED).convert('CMYK'), 'JPEG', quality=100), RED),
    'animated': (encoded(Image.fromarray(RED), 'GIF', **animated), RED),
  }


@pytest.mark.quick
@pytest.mark.parametrize('case', cases())
def test_images_of_every_mode_become_rgb_over_white(case):
  data, expected = cases()[case]
  pixels = decoding.decode(data)
  assert (pixels.shape, pixels.dtype) == (expected.shape, np.uint8)
  # JPEG rounds, and 128 / 255 is not quite a half
  assert np.abs(pixels.astype(int) - expected).max() <= 2


SIGNED_BYTES = {339: 2}  # a sample format


@pytest.mark.parametrize(
  'values, tags, text',
  [
    (DEEP.astype(np.int32), {}, 'integer pixels from 0 to 56540, not within 0 to 255'),
    (GREY.astype(np.int32) - 1, {}, 'integer pixels from -1 to 219'),
    (GREY.astype(np.float32) * 9, {}, 'float pixels from 0 to 1980'),
    (np.full((3, 4), np.nan, np.float32), {}, 'float pixels from nan to nan'),
    (GREY, SIGNED_BYTES, 'signed pixels'),
  ],
)
def test_pixels_of_which_black_and_white_are_not_clear_are_refused(values, tags, text):
  with pytest.raises(decoding.BadImage, match=text):
    decoding.decode(encoded(values, 'TIFF', tiffinfo=tags))


def test_a_heic_file_by_another_name_says_what_reads_it(monkeypatch):
  monkeypatch.setattr(decoding, 'formats', lambda: decoding.FORMATS)
  refused(b'\0\0\0\x18ftypheic' + bytes(100), r'its format, \.heic, wants pillow-heif: pip')


def test_heic_is_decoded_where_its_package_is():
  pytest.importorskip('pillow_heif')
  assert np.abs(decoding.decode(encoded(RED, 'HEIF', quality=100)).astype(int) - RED).max() <= 3


@pytest.mark.skipif('.avif' not in decoding.formats(), reason='this Pillow reads no AVIF')
def test_avif_is_decoded_where_pillow_can():
  assert np.abs(decoding.decode(encoded(RED, 'AVIF', quality=100)).astype(int) - RED).max() <= 3


TURNS = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: np.rot90,
}


def exif(orientation):
  tags = Image.Exif()
  tags[0x112] = orientation
  return tags


@pytest.mark.quick
@pytest.mark.parametrize('form', ['PNG', 'TIFF'])
@pytest.mark.parametrize('orientation', TURNS)
def test_images_stand_upright_by_their_exif(orientation, form):
  pixels = decoding.decode(encoded(coordinates(3, 5), form, exif=exif(orientation)))
  np.testing.assert_array_equal(pixels, TURNS[orientation](coordinates(3, 5)))


def promising(width, height):
  """A PNG that claims to be that large."""

  def chunk(kind, body):
    checksum = struct.pack('>I', zlib.crc32(kind + body))
    return struct.pack('>I', len(body)) + kind + body + checksum

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  parts = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(b'\0')), chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def refused(data, match=None):
  with pytest.raises(ValueError, match=match) as error:
    decoding.decode(data)
  assert '\n' not in str(error.value)
  assert len(str(error.value)) < 200


@pytest.mark.quick
def test_what_is_no_image_is_refused_in_one_line():
  refused(b'', 'the file is empty')
  refused(b'GIF89a')
  refused(b'<html>not found</html>', 'not an image')
  refused(bytes(1000), 'not an image')
  refused(b'%PDF-1.7 \n', 'not an image')


@pytest.mark.quick
def test_an_image_that_promises_more_than_memory_holds_is_refused_in_one_line():
  refused(promising(60_000, 60_000), 'damaged|exceed')


@pytest.mark.parametrize('side', [9_900, 11_000])
def test_no_warning_comes_with_a_large_image(side):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    refused(promising(side, side))


FORMS = ['PNG', 'JPEG', 'GIF', 'BMP', 'WEBP', 'TIFF']


@functools.cache
def whole(form):
  return encoded(np.random.default_rng(1).integers(0, 256, (16, 20, 3), dtype=np.uint8), form)


@pytest.mark.parametrize('form', FORMS)
def test_a_file_cut_short_is_refused_in_one_line(form):
  data = whole(form)
  for length in range(1, len(data) * 9 // 10, 1 + len(data) // 60):
    refused(data[:length])


# JPEG, which PIL seldom sees


def scene(rows=90, columns=130, grain=12):
  """Waves of colour and some grain: a photograph, as far as a decoder can tell."""
  y, x = np.mgrid[:rows, :columns] / 20
  waves = np.stack([np.sin(x + y), np.cos(x - 2 * y), np.sin(2 * x)], -1)
  noise = np.random.default_rng(0).normal(0, grain, waves.shape)
  return (128 + 80 * waves + noise).clip(0, 255).astype(np.uint8)


def by_pillow(data):
  """What PIL alone makes of a file."""
  return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))


@pytest.fixture
def without_pillow(monkeypatch):
  """Whoever asks PIL fails."""
  monkeypatch.setattr(decoding, 'decode_pillow', None)


JPEGS = {
  '4:2:0': dict(subsampling=2),
  '4:2:2': dict(subsampling=1),
  '4:4:4': dict(subsampling=0),
  'progressive': dict(progressive=True),
  'RGB': dict(keep_rgb=True),
  'best': dict(quality=100),
  'worst': dict(quality=1),
}


@pytest.mark.quick
@pytest.mark.parametrize('form', JPEGS)
def test_jpegs_decode_to_the_pixels_of_pillow(form, without_pillow):
  data = encoded(scene(), 'JPEG', **JPEGS[form])
  np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))


@pytest.mark.quick
def test_grey_jpegs_decode_to_the_pixels_of_pillow(without_pillow):
  data = encoded(scene()[..., 0], 'JPEG')
  np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))


@pytest.mark.quick
@pytest.mark.parametrize('orientation', TURNS)
def test_jpegs_stand_upright_by_their_exif_as_in_pillow(orientation, without_pillow):
  data = encoded(scene(), 'JPEG', exif=exif(orientation))
  pixels = decoding.decode(data)
  np.testing.assert_array_equal(pixels, by_pillow(data))
  plain = decoding.decode(encoded(scene(), 'JPEG'))
  np.testing.assert_array_equal(pixels, TURNS[orientation](plain))


def test_the_orientation_may_be_of_either_byte_order_and_behind_other_tags():
  for order, mark in (('<', b'II*\0'), ('>', b'MM\0*')):
    tags = [struct.pack(order + 'HHII', 0x10F, 2, 4, 0)]
    tags.append(struct.pack(order + 'HHIHH', 0x112, 3, 1, 6, 0))
    body = struct.pack(order + 'IH', 8, 2) + b''.join(tags) + bytes(4)
    data = encoded(scene(), 'JPEG', exif=b'Exif\0\0' + mark + body)
    assert decoding.decode(data).shape == (130, 90, 3)
    np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))


def test_the_orientation_may_be_given_by_xmp_alone_and_exif_is_before_it():
  xmp = b'<x:xmpmeta><rdf tiff:Orientation="8"/></x:xmpmeta>'
  data = encoded(scene(), 'JPEG', xmp=xmp)
  assert decoding.decode(data).shape == (130, 90, 3)
  np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))
  data = encoded(scene(), 'JPEG', xmp=xmp, exif=exif(3))
  np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('value', [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(form, value):
  plain = decoding.decode(encoded(scene(), form))
  np.testing.assert_array_equal(decoding.decode(encoded(scene(), form, exif=exif(value))), plain)


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize(
  'body',
  [b'', b'II', b'nonsense', b'II*\0\xff\xff\xff\xff', b'MM\0*\0\0\0\x08\xff\xff' + bytes(40)],
)
def test_damaged_exif_costs_no_image(form, body, capfd):
  data = encoded(scene(), form, exif=b'Exif\0\0' + body)
  np.testing.assert_array_equal(decoding.decode(data), decoding.decode(encoded(scene(), form)))
  assert capfd.readouterr().err == ''


@pytest.mark.quick
@pytest.mark.parametrize('extra', [b'\0', b'more', bytes(1000), b'\xff\xd8\xff'])
def test_bytes_behind_a_jpeg_do_not_matter(extra):
  data = encoded(scene(), 'JPEG')
  np.testing.assert_array_equal(decoding.decode(data + extra), decoding.decode(data))


def test_bytes_that_pillow_tolerates_are_tolerated():
  data = encoded(scene(), 'JPEG')
  at = data.index(b'\xff\xda')
  data = data[:at] + b'\0\0\0' + data[at:]  # libjpeg warns of them
  with pytest.raises(ValueError, match='extraneous'):
    simplejpeg.decode_jpeg(data)
  np.testing.assert_array_equal(decoding.decode(data), by_pillow(data))
  assert transformed(data, 'inception_crop(8)').shape == (8, 8, 3)


# Lazy decoding


def transformed(image, line, seed=0, size=(8, 8)):
  return transforms.compose(line, size)(image, np.random.default_rng(seed))


@pytest.mark.quick
@pytest.mark.parametrize('form', ['JPEG', 'PNG'])
@pytest.mark.parametrize('orientation', TURNS)
def test_a_file_and_its_pixels_are_cropped_alike(form, orientation):
  data = encoded(scene(), form, exif=exif(orientation))
  image = decoding.decode(data)
  for seed in range(20):
    for line in ('inception_crop(64, 80)', 'inception_crop(64, 80) | flip', 'inception_crop(200)'):
      expected = transformed(image, line, seed)
      np.testing.assert_array_equal(transformed(data, line, seed), expected)


@pytest.mark.quick
@pytest.mark.parametrize('orientation', TURNS)
def test_a_crop_of_a_file_is_that_part_of_its_pixels(orientation):
  data = encoded(scene(), 'JPEG', exif=exif(orientation))
  image = decoding.decode_lazily(data)
  assert isinstance(image, decoding.Encoded)
  assert image.shape == decoding.decode(data).shape
  part = image.crop((10, 20, 30, 40), (30, 40))
  np.testing.assert_array_equal(part, image.pixels()[10:40, 20:60])


ROWS = JPEGS | {
  'grey': dict(grey=True),
  'restarts': dict(restart_marker_rows=1),
  'restarts within rows': dict(restart_marker_blocks=3),
  'optimised': dict(optimize=True),
  '4:1:1': dict(subsampling='4:1:1'),
}


@pytest.mark.quick
@pytest.mark.parametrize('form', ROWS)
@pytest.mark.parametrize('height', [90, 96, 97])
def test_rows_above_a_crops_end_are_the_same_without_those_below(form, height, without_pillow):
  options = dict(ROWS[form])
  image = scene(height, 50, grain=40)
  data = encoded(image[..., 0] if options.pop('grey', False) else image, 'JPEG', **options)
  whole = decoding.decode(data)
  for bottom in range(1, height + 1):
    part = decoding.decode_lazily(data).crop((0, 0, bottom, 50), (height, 50))
    np.testing.assert_array_equal(part, whole[:bottom])


@pytest.mark.quick
def test_no_more_rows_are_decoded_than_a_crop_needs(decoded):
  image = decoding.decode_lazily(encoded(scene(400, 640), 'JPEG'))
  image.crop((10, 20, 90, 100), (90, 100))
  assert decoded == [(112, 640)]
  image.crop((10, 20, 90, 100), (45, 50))
  assert decoded[1:] == [(56, 320)]


@pytest.mark.quick
def test_a_file_cut_short_is_refused_wherever_the_crop_is():
  data = encoded(scene(400, 640), 'JPEG')
  for length in (len(data) - 1, len(data) - 2, len(data) - 100, len(data) // 2):
    with pytest.raises(decoding.BadImage, match='truncated'):
      decoding.decode_lazily(data[:length]).crop((0, 0, 8, 8), (8, 8))


@pytest.mark.quick
def test_the_smallest_crops_have_a_pixel():
  image = decoding.decode_lazily(encoded(scene(40, 64), 'JPEG'))
  for size in (1, 2, 4, 8, 15):
    for at in range(24):
      assert image.crop((at, at, size, size), (1, 1)).size


@pytest.mark.quick
@pytest.mark.parametrize('factor', [2, 4, 8])
@pytest.mark.parametrize('orientation', TURNS)
def test_a_crop_many_times_too_large_comes_smaller_and_looks_the_same(orientation, factor):
  data = encoded(scene(403, 301, grain=0), 'JPEG', exif=exif(orientation), quality=95)
  image = decoding.decode_lazily(data)
  box = y, x, height, width = 37, 21, 160, 200
  part = image.crop(box, (height // factor, width // factor))
  assert abs(part.shape[0] - height / factor) <= 1
  assert abs(part.shape[1] - width / factor) <= 1
  whole = decoding.decode(data)[y : y + height, x : x + width]
  expected = Image.fromarray(whole).resize(part.shape[1::-1], Image.Resampling.BOX)
  # half a pixel of the smaller image, whose waves take 20 / factor pixels for a radian
  assert np.abs(part.astype(float) - expected).mean() < 160 * 0.5 * factor / 20


@pytest.fixture
def decoded(monkeypatch):
  """The shapes of what the decoder of JPEGs gave."""
  shapes, decode_jpeg = [], simplejpeg.decode_jpeg

  def recorded(*args, **options):
    image = decode_jpeg(*args, **options)
    shapes.append(image.shape[:2])
    return image

  monkeypatch.setattr(simplejpeg, 'decode_jpeg', recorded)
  return shapes


@pytest.mark.quick
@pytest.mark.parametrize(
  'side, expected',
  [(400, (400, 640)), (201, (400, 640)), (200, (200, 320)), (60, (100, 160)), (1, (50, 80))],
)
def test_a_crop_is_decoded_at_no_more_than_twice_the_size_it_is_needed_at(side, expected, decoded):
  line = f'inception_crop({side}, area_min=1.0, ratio_min=1.6, ratio_max=1.6)'
  assert transformed(encoded(scene(400, 640), 'JPEG'), line).shape == (side, side, 3)
  assert decoded == [expected]


@pytest.mark.quick
@pytest.mark.parametrize(
  'line', ['resize', 'resize_small(8)', 'crop_ratio', 'resize_small(16) | central_crop(8)']
)
def test_evaluation_decodes_in_full(line, decoded):
  data = encoded(scene(400, 640), 'JPEG')
  pixels = transformed(data, line)
  assert decoded == [(400, 640)]
  np.testing.assert_array_equal(pixels, transformed(decoding.decode(data), line))


@pytest.mark.quick
def test_only_a_crop_that_comes_first_meets_a_file(decoded):
  data = encoded(scene(400, 640), 'JPEG')
  for line in ('flip | inception_crop', 'affine | inception_crop'):
    np.testing.assert_array_equal(transformed(data, line), transformed(decoding.decode(data), line))
  assert set(decoded) == {(400, 640)}


def test_a_jpeg_that_only_decoding_finds_damaged_is_refused_by_a_crop():
  data = encoded(scene(400, 640), 'JPEG')
  for line in ('inception_crop(8)', 'inception_crop(300)', 'resize(8)'):
    with pytest.raises(decoding.BadImage, match='truncated'):
      transformed(data[: len(data) // 2], line)


@pytest.mark.quick
def test_opencv_leaves_the_cores_to_the_threads_of_the_pipeline():
  transformed(scene(), 'resize(8)')
  assert decoding.opencv().getNumThreads() == 1


# Hostile files


def chunk(kind, body):
  return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(width, height, before=b'', pixels=None, after=b''):
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
  data = zlib.compress(bytes((3 * width + 1) * height)) if pixels is None else pixels
  body = header + before + chunk(b'IDAT', data) + after + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + body


def sized_jpeg(data, width, height):
  """A JPEG that says it has another size."""
  marks = (data.find(mark) for mark in (b'\xff\xc0', b'\xff\xc2'))
  at = next(at for at in marks if at >= 0) + 5
  return data[:at] + struct.pack('>HH', height, width) + data[at + 4 :]


def sized_png(data, width, height):
  body = struct.pack('>II', width, height) + data[24:29]
  return data[:8] + chunk(b'IHDR', body) + data[33:]


def sized_webp(data, width, height):
  """Of any of the three kinds, up to 16,383 pixels a side (an extended one more)."""
  kind = data[12:16]
  if kind == b'VP8X':
    sides = (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
    return data[:24] + sides + data[30:]
  if kind == b'VP8L':
    bits = int.from_bytes(data[21:25], 'little') >> 28 << 28
    bits |= (width - 1) % 2**14 | (height - 1) % 2**14 << 14
    return data[:21] + struct.pack('<I', bits) + data[25:]
  return data[:26] + struct.pack('<HH', width % 2**14, height % 2**14) + data[30:]


def sized_gif(data, width, height):
  return data[:6] + struct.pack('<HH', width, height) + data[10:]


def sized_bmp(data, width, height):
  return data[:18] + struct.pack('<ii', width, height) + data[26:]


def framed_gif(data, width, height):
  """A GIF whose first frame is larger than it."""
  at = data.index(b',', 13 + 3 * 256) + 5
  return data[:at] + struct.pack('<HH', width, height) + data[at + 4 :]


def tiff(width, height, **tags):
  """A TIFF with deflate, of strips or, by tags such as t322=16, of tiles."""
  fields = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 273: 300, 278: height, 279: 99}
  if 't322' in tags:
    fields = {tag: value for tag, value in fields.items() if tag not in (273, 278, 279)}
  fields |= {int(name[1:]): value for name, value in tags.items()}
  body = b''.join(struct.pack('<HHII', tag, 4, 1, fields[tag]) for tag in sorted(fields))
  head = b'II*\0' + struct.pack('<IH', 8, len(fields)) + body + bytes(4)
  return head.ljust(300, b'\0') + zlib.compress(bytes(10**6))


@functools.cache
def inflated(size=300 * 2**20):
  """Zeros, compressed."""
  packer = zlib.compressobj(9)
  return b''.join([packer.compress(bytes(2**20)) for _ in range(size >> 20)]) + packer.flush()


def bombs():
  """Files of some kilobytes that promise gigabytes, by what they are."""
  huge, some = (60_000, 60_000), (16_383, 16_383)
  text = b''.join(chunk(b'zTXt', b'k%d\0\0' % i + inflated(2**20)[:-99]) for i in range(99))
  plain, lossless = encoded(scene(), 'WEBP'), encoded(scene(), 'WEBP', lossless=True)
  extended = encoded(scene(), 'WEBP', exif=exif(1))
  return {
    'JPEG': sized_jpeg(whole('JPEG'), *huge),
    'JPEG within the limit': sized_jpeg(whole('JPEG'), 9000, 9000),
    'PNG': sized_png(whole('PNG'), *huge),
    'PNG profile': png(4, 4, chunk(b'iCCP', b'x\0\0' + inflated())),
    'PNG text': png(4, 4, chunk(b'zTXt', b'x\0\0' + inflated())),
    'PNG text behind': png(4, 4, after=chunk(b'zTXt', b'x\0\0' + inflated())),
    'PNG many texts': png(4, 4, text),
    'PNG international text': png(4, 4, chunk(b'iTXt', b'x\0\1\0\0\0' + inflated())),
    'GIF': sized_gif(whole('GIF'), *huge),
    'GIF frame': framed_gif(whole('GIF'), *huge),
    'BMP': sized_bmp(whole('BMP'), *huge),
    'BMP upside down': sized_bmp(whole('BMP'), 20, -(2**31)),
    'TIFF': tiff(*huge),
    'TIFF tile': tiff(16, 16, t322=60_000, t323=60_000, t324=300, t325=999),
    'WebP': sized_webp(plain, *some),
    'WebP lossless': sized_webp(lossless, *some),
    'WebP extended': sized_webp(extended, *some),
    'WebP extended without end': sized_webp(extended, 2**24, 2**24),
  }


def peak():
  """MB of memory that this process held at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def defuse():
  """Prints {bomb: [what came of it, MB of memory that it took]} as JSON, for the test below."""
  results = {}
  decoding.decode(whole('PNG')), decoding.decode(whole('WEBP'))
  for name, data in bombs().items():
    for read in (decoding.decode, functools.partial(transformed, line='inception_crop(8)')):
      before = peak()
      try:
        said = str(read(data).shape)
      except decoding.BadImage as error:
        said = str(error)
      results[f'{name} by {read}'] = said, peak() - before
  print(json.dumps(results))


def test_bombs_are_refused_before_they_take_memory():
  code = 'from tests import test_decode; test_decode.defuse()'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stderr == ''
  results = json.loads(done.stdout)
  assert len(results) == 2 * len(bombs())
  for name, (said, taken) in results.items():
    assert said.split()[0] not in ('(60000,', '(90,'), name
    assert any(word in said for word in ('exceed', 'cut short', 'too large', 'Too much')), name
    assert taken < 100, name  # the texts of a PNG may take 64 MB together


def test_a_jpeg_of_endless_scans_is_refused():
  data = encoded(scene(1200, 1200), 'JPEG', progressive=True)
  last = data.rindex(b'\xff\xda')
  data = data[:last] + data[last:-2] * 2000 + data[-2:]
  refused(data, 'scans exceed the limit')
  with pytest.raises(decoding.BadImage, match='scans exceed the limit'):
    transformed(data, 'inception_crop(8)')


# Mutants


@functools.cache
def victims():
  """Files to mutate and how to put another size into their headers."""
  small = scene(40, 56)
  alpha = np.dstack([small, small[..., 0]])
  return [
    (encoded(small, 'JPEG', quality=60, exif=exif(6)), sized_jpeg),
    (encoded(small, 'JPEG', progressive=True), sized_jpeg),
    (encoded(small[..., 0], 'JPEG'), sized_jpeg),
    (encoded(Image.fromarray(small).convert('CMYK'), 'JPEG'), sized_jpeg),
    (encoded(small, 'PNG', exif=exif(6)), sized_png),
    (encoded(alpha, 'PNG'), sized_png),
    (encoded(Image.fromarray(small).quantize(16), 'PNG', transparency=0), sized_png),
    (encoded(small, 'WEBP', quality=60), sized_webp),
    (encoded(small, 'WEBP', lossless=True), sized_webp),
    (encoded(alpha, 'WEBP', exif=exif(6)), sized_webp),
  ]


def mutant(rng):
  """A file that bits were flipped in, or that was cut, lengthened, or given another size."""
  files = victims()
  data, sized = files[rng.integers(len(files))]
  kind, at = rng.integers(6), int(rng.integers(1, len(data)))
  if kind == 0:
    return data[:at]
  if kind == 1:
    return data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]
  if kind == 2:
    return data[:at] + data[at + int(rng.integers(1, 40)) :]
  if kind == 3:
    width, height = (int(2 ** rng.uniform(0, 16)) for _ in range(2))
    return sized(data, width, height)
  head = rng.random() < 0.5  # damage to headers is rarer, and worse
  changed = np.frombuffer(data, np.uint8).copy()
  places = rng.integers(min(200, len(data)) if head else len(data), size=rng.integers(1, 9))
  if kind == 4:
    changed[places] ^= np.uint8(1) << rng.integers(0, 8, len(places), dtype=np.uint8)
  else:
    changed[places] = rng.integers(0, 256, len(places), dtype=np.uint8)
  return changed.tobytes()


def outcome(read, data):
  """'image' or 'bad': anything else fails."""
  try:
    pixels = read(data)
  except decoding.BadImage as error:
    assert '\n' not in str(error)
    assert 0 < len(str(error)) < 200
    return 'bad'
  assert (pixels.ndim, pixels.shape[2:], pixels.dtype) == (3, (3,), np.uint8)
  assert pixels.size
  return 'image'


def test_two_thousand_mutants_are_images_or_refused_in_one_line(capfd):
  rng = np.random.default_rng(0)
  crop = transforms.compose('inception_crop(8) | flip', (8, 8))
  before, counts = peak(), {}
  for number in range(2000):
    data = mutant(rng)
    whole = outcome(decoding.decode, data)
    part = outcome(lambda data: crop(data, np.random.default_rng(number)), data)  # noqa: B023
    assert part == 'image' or whole == 'bad', number  # what is bad below a crop does not matter
    counts[whole] = counts.get(whole, 0) + 1
  assert min(counts.values()) > 400  # neither all refused nor all unharmed
  assert peak() - before < 1000  # an image within the limit of pixels takes that
  said = capfd.readouterr()
  assert said.out + said.err == ''


def test_damaged_files_of_other_forms_are_images_or_refused_in_one_line():
  rng = np.random.default_rng(0)
  for form in ('GIF', 'BMP', 'TIFF'):
    for _ in range(150):
      data = bytearray(whole(form))
      for place in rng.integers(0, min(len(data), 300), 3):
        data[place] = rng.integers(256)
      outcome(decoding.decode, bytes(data))
