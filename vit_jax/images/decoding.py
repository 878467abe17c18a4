"""Files in, images out: JPEG by libjpeg-turbo, at once or when it is known what of it is needed.

H, W pixels, C channels. What is no JPEG, or an unusual one, is decoded by PIL. Files are hostile
until decoded: all that is wrong with one is a BadImage, of one line. Any picture becomes grey (1
channel), RGB (3) or RGBA (4); for another number of channels a file must have as many bands.
"""

import contextlib
import ctypes
import functools
import importlib
import io
import logging
import re
import struct
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.images import tiff
from vit_jax.text import quantity

if TYPE_CHECKING:
  from PIL.Image import Image as Picture

Image = np.ndarray

JPEG = b'\xff\xd8\xff'  # how such a file begins
FORMATS = {  # by the suffix of a file, Pillow's name of its format
  '.jpg': 'JPEG', '.jpeg': 'JPEG', '.jpe': 'JPEG', '.jfif': 'JPEG', '.png': 'PNG', '.webp': 'WEBP',
  '.bmp': 'BMP', '.gif': 'GIF', '.tif': 'TIFF', '.tiff': 'TIFF',
}  # fmt: skip
NEWER_FORMATS = {'.avif': 'AVIF', '.heic': 'HEIF', '.heif': 'HEIF'}  # that not every Pillow reads
BRANDS = {  # of an ISO media file, and the suffix that it should have
  b'avif': '.avif', b'avis': '.avif', b'heic': '.heic', b'heix': '.heic', b'mif1': '.heif',
}  # fmt: skip
PROVIDERS = {
  'AVIF': 'Pillow 11.3',
  'HEIF': "pillow-heif: pip install 'vit_jax[heic]'",
}  # what a format wants
MAX_PIXELS = 89_478_485  # a file may promise more pixels than memory holds; as Pillow has it
MAX_SCANS = 500  # of a JPEG: each is a pass over all of its pixels
MAX_CHANNELS = 512  # as OpenCV has it
PICTURES = (1, 3, 4)  # channels that every picture is converted to: grey, RGB, RGBA
MAX_DENSITY = 1024  # pixels to a byte of a JPEG: a block of 64 takes a bit or more


@functools.cache
def formats() -> dict[str, str]:
  """FORMATS and those of NEWER_FORMATS whose PROVIDERS are installed."""
  from PIL import Image as pil

  with contextlib.suppress(ImportError):
    importlib.import_module('pillow_heif').register_heif_opener()
  pil.init()
  return FORMATS | {suffix: name for suffix, name in NEWER_FORMATS.items() if name in pil.OPEN}


def suffix_error(suffix: str) -> str:
  """Why files of a suffix, in lower case, are not read; '' where they are."""
  if suffix in formats():
    return ''
  provider = PROVIDERS.get(NEWER_FORMATS.get(suffix, ''))
  return f'wants {provider}' if provider else 'no image format that is read'


def brand_suffix(data: bytes) -> str:
  """The suffix in NEWER_FORMATS of a file of such bytes, whatever it is called; '' for others."""
  return BRANDS.get(data[8:12], '') if data[4:8] == b'ftyp' else ''


class BadImage(ValueError):
  """The bytes of an image file that cannot be decoded."""


def decode(data: bytes, channels: int = 3) -> Image:
  """Bytes of an image file to (H, W, C) uint8: first frame, upright by EXIF.

  Grey is the luminance of ITU-R 601, as Pillow's mode L has it. Where C is 1 or 3 an image with
  alpha lies over white; where C is 4 one without alpha is opaque.

  Raises:
    BadImage: if they are not an image, are cut short, hold over MAX_PIXELS pixels, or have not the
      C bands that other numbers than PICTURES ask for.
  """
  image = decode_lazily(data, channels)
  return image.pixels() if isinstance(image, Encoded) else image


def as_pixels(image: bytes | Image, channels: int = 3) -> Image:
  """The pixels (H, W, C) of an image that is the bytes of its file, or pixels already."""
  return decode(image, channels) if isinstance(image, bytes) else fit_channels(image, channels)


def fit_channels(image: Image, channels: int) -> Image:
  """Pixels (H, W, C) for a model of so many channels: grey may be one, or three that are equal.

  Raises:
    ValueError: for any other number.
  """
  count = image.shape[-1]
  if count == channels:
    return image
  if (count, channels) == (1, 3):
    return np.repeat(image, 3, axis=-1)
  if (count, channels) == (3, 1) and (image == image[..., :1]).all():
    return image[..., :1]
  raise ValueError(f'images have {quantity(count, "channel")}, wanted {channels}')


def displayed(image: Image) -> Image:
  """What is shown of an image (H, W, C), (H, W, 3): grey repeated, RGBA over white.

  Of other numbers of channels the first three, or the last again where there are two.
  """
  count = image.shape[2]
  if count == 4:
    alpha = image[..., 3:] / 255
    return np.rint(alpha * image[..., :3] + (1 - alpha) * 255).astype(np.uint8)
  return image if count == 3 else image[..., np.minimum(range(3), count - 1)]


def omitted_channels(channels: int) -> str:
  """What to say beside a picture of `displayed` that lacks some; '' where it has all."""
  return f'the first three of {channels} channels' if channels > 4 else ''


def from_rgb(image: Image, channels: int) -> Image:
  """Pixels (H, W, 3) in one of PICTURES: their luminance, themselves, or with opaque alpha."""
  from PIL import Image as pil

  if channels == 1:
    return np.asarray(pil.fromarray(image).convert('L'))[..., None]
  if channels == 4:
    return np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=-1)
  return image


class Encoded:
  """A JPEG file as an image whose size is known and whose pixels are yet to be decoded.

  Fields:
    data: the file.
    stored: (height, width) of the pixels in the file.
    orientation: by EXIF, a key of ORIENTATIONS.
    channels: of its pixels, of PICTURES.
    height_offset: of its height in the file, if fewer rows can be decoded; else 0.
    shape: (height, width, channels), upright.
  """

  def __init__(self, data: bytes, stored: tuple[int, int], channels: int = 3):
    self.data, self.stored, self.channels = data, stored, channels
    self.orientation, self.height_offset = jpeg_headers(data)
    swaps, _, _ = ORIENTATIONS[self.orientation]
    self.shape = (*(stored[::-1] if swaps else stored), channels)

  def pixels(self) -> Image:
    """All of it, upright."""
    import simplejpeg

    try:
      image = simplejpeg.decode_jpeg(self.data)
    except ValueError:
      image = self.decode_pillow()
    return from_rgb(upright(image, self.orientation), self.channels)

  def crop(self, box: tuple[int, int, int, int], min_size: tuple[int, int]) -> Image:
    """The part within a box (top, left, height, width), perhaps at 1/2, 1/4 or 1/8 of its size.

    The decoder stops below the part, and shrinks at less cost than it decodes: so far as the part
    keeps `min_size` (height, width). Its edges are then rounded to pixels of the smaller image.
    """
    excess = min(box[2] // min_size[0], box[3] // min_size[1])
    factor = 1 if excess < 2 else 2 if excess < 4 else 4 if excess < 8 else 8
    y, x, y_end, x_end = edges(box, self.shape, self.orientation)
    try:
      image = self.rows(y_end, factor)
    except ValueError:
      image, factor = self.decode_pillow(), 1
    if factor > 1:
      y, x, y_end, x_end = ((edge + factor // 2) // factor for edge in (y, x, y_end, x_end))
    return from_rgb(upright(image[y:y_end, x:x_end], self.orientation), self.channels)

  def rows(self, bottom: int, factor: int) -> Image:
    """At least the rows above `bottom`, as stored; all sides divided by 1, 2, 4 or 8."""
    import simplejpeg

    data, (height, width) = self.data, self.stored
    enough = (bottom + 19) // 16 * 16  # whole blocks, and a row below: chroma is interpolated
    fewer = self.height_offset > 0 and enough < height
    if fewer:  # as if the file were that high; what follows is no damage
      height = enough
      data = data[: self.height_offset] + enough.to_bytes(2, 'big') + data[self.height_offset + 2 :]
    rows, columns = (0, 0) if factor == 1 else (-(-height // factor), -(-width // factor))
    return simplejpeg.decode_jpeg(data, min_height=rows, min_width=columns, strict=not fewer)

  def decode_pillow(self) -> Image:
    """All of it as stored, which PIL makes of what the decoder finds damaged."""
    image, _ = decode_pillow(self.data)
    if image.shape[:2] != self.stored:
      raise BadImage('damaged image (its headers differ in size)')
    return image


class Shared(Encoded):
  """An Encoded image that several parts are taken of, decoded once at each scale that they take.

  A part is what Encoded gives to the pixel. Damage below it, which Encoded does not reach, is
  noticed.
  """

  def __init__(self, data: bytes, stored: tuple[int, int], channels: int = 3):
    super().__init__(data, stored, channels)
    self.scales: dict[int, Image] = {}

  def rows(self, bottom: int, factor: int) -> Image:
    """All rows, as another part may lie below `bottom`."""
    if factor not in self.scales:
      self.scales[factor] = super().rows(self.stored[0], factor)
    return self.scales[factor]

  def pixels(self) -> Image:
    height, width, _ = self.shape
    return self.crop((0, 0, height, width), (height, width))


def decode_lazily(
  data: bytes, channels: int = 3, *, encoded: type[Encoded] = Encoded
) -> Encoded | Image:
  """A usual JPEG as `encoded`; what is none, or an unusual one, as the upright pixels by PIL."""
  import simplejpeg

  jpeg = data.startswith(JPEG)
  if jpeg and channels in PICTURES:
    try:
      height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
      colours = ''
    if colours in ('YCbCr', 'Gray', 'RGB'):  # PIL knows what Adobe's CMYK means
      check_pixels(height, width)
      check_jpeg(data, height * width)
      return encoded(data, (height, width), channels)
  image, orientation = decode_pillow(data, channels)
  return upright(image, jpeg_headers(data)[0] if jpeg else orientation)


def decode_pillow(data: bytes, channels: int = 3) -> tuple[Image, int]:
  """The pixels of an image file of any form, as stored, and its orientation by EXIF."""
  from PIL import Image as pil

  if not data:
    raise BadImage('the file is empty')
  silence_pillow()
  check_webp(data)
  banded = read_bands(data, channels)
  file = io.BytesIO(banded.data if banded else data)
  try:
    image = pil.open(file, formats=tuple(dict.fromkeys(formats().values())))
  except pil.UnidentifiedImageError:
    if count := tiff.band_count(data):
      raise BadImage(f'the file has {count} bands, wanted {channels}') from None
    suffix = brand_suffix(data)
    error = suffix_error(suffix) if suffix else ''
    raise BadImage(f'its format, {suffix}, {error}' if error else 'not an image') from None
  except pil.DecompressionBombError:
    raise BadImage(f'its pixels exceed the limit of {MAX_PIXELS:,}') from None
  except Exception as error:  # of whatever kind a decoder raises over hostile bytes
    raise damaged(error) from None
  try:
    with image:
      check_pixels(image.height, image.width)
      if data.startswith(JPEG):
        check_jpeg(data, image.height * image.width)
      check_tiles(image)
      image.load()
      orientation = exif_tag(image)
      return as_channels(image, channels, banded), orientation
  except BadImage:
    raise
  except Exception as error:
    raise damaged(error) from None


def read_bands(data: bytes, channels: int) -> tiff.Banded | None:
  """A TIFF of as many bands as channels, which are no colours; None of a picture."""
  count = tiff.band_count(data)
  if not count or (count != channels and channels in (1, 3)):
    return None  # Pillow may read some of them as RGB
  if count != channels:
    raise BadImage(f'the file has {count} bands, wanted {channels}')
  try:
    return tiff.as_grey(data)
  except ValueError as error:
    raise BadImage(str(error)) from None


def damaged(error: Exception) -> BadImage:
  return BadImage(f'damaged image ({" ".join(str(error).split())[:150]})')


PILLOW = re.compile(r'PIL\.')
SILENCE = logging.NullHandler()  # else errors come on standard error where nobody set up logging


def silence_pillow() -> None:
  """What PIL warns of or logs (metadata, sizes) is refused here or does not matter.

  For the whole process and for good: `warnings.catch_warnings` would race between threads.
  """
  silence_libtiff()
  logging.getLogger('PIL').addHandler(SILENCE)
  if ('ignore', None, Warning, PILLOW, 0) not in warnings.filters:
    warnings.filterwarnings('ignore', module=PILLOW.pattern)


@functools.cache
def silence_libtiff() -> None:
  """What libtiff prints on standard error of a damaged file, Pillow raises as well.

  It is looked up through Pillow's own library, which is linked to it, but for Windows.
  """
  from PIL import Image as pil

  with contextlib.suppress(OSError, AttributeError):
    library = ctypes.CDLL(pil.core.__file__)
    for name in ('TIFFSetErrorHandler', 'TIFFSetWarningHandler'):
      set_handler = getattr(library, name)
      set_handler.argtypes, set_handler.restype = (ctypes.c_void_p,), ctypes.c_void_p
      set_handler(None)


def check_pixels(height: int, width: int) -> None:
  """Raises BadImage for more pixels than memory may hold, and for none."""
  if height * width > MAX_PIXELS:
    raise BadImage(f'{height * width:,} pixels exceed the limit of {MAX_PIXELS:,}')
  if not height * width:
    raise BadImage('the image has no pixels')


def check_jpeg(data: bytes, size: int) -> None:
  """Raises BadImage for a JPEG of so many pixels that is too short, or would take minutes."""
  if size > MAX_DENSITY * len(data):
    raise BadImage(f'cut short: {len(data):,} bytes do not hold {size:,} pixels')
  if size * len(data) > 1e12:  # below that, as many scans as it has room for take seconds
    scans = data.count(b'\xff\xda')
    if scans > MAX_SCANS:
      raise BadImage(f'{scans:,} scans exceed the limit of {MAX_SCANS:,}')


def check_webp(data: bytes) -> None:
  """Raises BadImage for a WebP that promises too many pixels: PIL takes memory on opening it."""
  if data[8:16] == b'WEBPVP8X' and len(data) >= 30:
    width, height = (int.from_bytes(data[at : at + 3], 'little') + 1 for at in (24, 27))
    check_pixels(height, width)


def check_tiles(image: 'Picture') -> None:
  """Raises BadImage for a TIFF whose tiles, or strips, promise more pixels than memory holds."""
  from PIL.TiffImagePlugin import TiffImageFile

  if isinstance(image, TiffImageFile):
    for tile in image.tile:
      x, y, x_end, y_end = tile[1] or (0, 0, *image.size)
      check_pixels(max(y_end - y, 1), max(x_end - x, 1))
    check_pixels(*(max(int(image.tag_v2.get(tag, 1)), 1) for tag in (323, 322)))


# By EXIF orientation: whether the axes swap, then whether the rows and the columns are reversed.
ORIENTATIONS = {
  1: (False, False, False),
  2: (False, False, True),
  3: (False, True, True),
  4: (False, True, False),
  5: (True, False, False),
  6: (True, False, True),
  7: (True, True, True),
  8: (True, True, False),
}


def upright(image: Image, orientation: int) -> Image:
  """Pixels as stored, rotated and mirrored to be upright."""
  swaps, rows, columns = ORIENTATIONS[orientation]
  if swaps:
    image = by_channels(opencv().transpose, image)
  if rows or columns:
    code = -1 if rows and columns else int(columns)
    image = by_channels(lambda part: opencv().flip(part, code), image)
  return image


def by_channels(operation: Callable[[Image], Image], image: Image) -> Image:
  """An operation of OpenCV on an image (H, W, C): RGB as one, else every channel by itself.

  Several at once would be rounded otherwise, by how many there are; beyond four few operations go.
  """
  if image.shape[2] == 3:
    return operation(image)
  bands = [operation(band) for band in np.ascontiguousarray(np.moveaxis(image, -1, 0))]
  return np.stack(bands, axis=-1)


def edges(
  box: tuple[int, int, int, int], shape: tuple[int, int, int], orientation: int
) -> tuple[int, int, int, int]:
  """Top, left, bottom and right, as stored, of a box (top, left, height, width) that is upright."""
  y, x, height, width = box
  swaps, rows, columns = ORIENTATIONS[orientation]
  if rows:
    y = shape[0] - y - height
  if columns:
    x = shape[1] - x - width
  if swaps:
    return x, y, x + width, y + height
  return y, x, y + height, x + width


def jpeg_headers(data: bytes) -> tuple[int, int]:
  """A JPEG's orientation, and the offset of its height if it may be cut short there; else 0.

  The orientation is a key of ORIENTATIONS by EXIF, else by XMP; 1 where neither has one. Cut short
  may be what has one scan, of all components, and is not cut short already.
  """
  exif, xmp, frame, at = b'', b'', 0, 2
  while at + 4 <= len(data) and data[at] == 0xFF and (marker := data[at + 1]) != 0xDA:
    end = at + 2 + data[at + 2] * 256 + data[at + 3]
    if marker == 0xE1:
      body = data[at + 4 : end]
      if body.startswith(b'Exif\0\0'):
        exif = exif or body[6:]
      elif body.startswith(b'http://ns.adobe.com/xap/1.0/\0'):
        xmp = body
    elif marker in (0xC0, 0xC1):  # baseline, extended
      frame = at
    at = end
  components = data[frame + 9 : frame + 10]
  single = frame and data[at + 4 : at + 5] == components and data.endswith(b'\xff\xd9')
  return exif_orientation(exif) or xmp_orientation(xmp) or 1, frame + 5 if single else 0


def exif_orientation(exif: bytes) -> int:
  """A key of ORIENTATIONS; 0 where there is none. Damage ends what is read."""
  order = {b'II': '<', b'MM': '>'}.get(exif[:2])
  if not order:
    return 0
  try:
    (start,) = struct.unpack_from(order + 'I', exif, 4)
    (count,) = struct.unpack_from(order + 'H', exif, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind, _, value = struct.unpack_from(order + 'HHIH', exif, at)
      if (tag, kind) == (0x112, 3):  # a short number
        return value if value in ORIENTATIONS else 1
  except struct.error:
    pass
  return 0


def xmp_orientation(xmp: bytes) -> int:
  """A key of ORIENTATIONS; 0 where there is none."""
  match = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
  return int(match[1]) if match else 0


def exif_tag(image: 'Picture') -> int:
  """The EXIF orientation of a PIL image that is loaded; 1 where damaged EXIF has none."""
  try:
    orientation = image.getexif().get(0x112)
  except Exception:
    return 1
  return orientation if orientation in ORIENTATIONS else 1


def as_channels(image: 'Picture', channels: int, banded: tiff.Banded | None = None) -> Image:
  """The pixels (H, W, C) of a PIL image of any mode; see `decode`."""
  if banded:
    return as_levels(image, banded.pixels(np.asarray(image)))
  if channels not in (1, 3) and has_pages(image, channels):
    return as_levels(image, np.stack([page(image, i) for i in range(channels)], axis=-1))
  if channels == 4 and has_alpha(image):
    return np.asarray(image.convert('RGBA'))
  if channels in PICTURES:
    return from_rgb(np.asarray(as_rgb(image)), channels)
  if len(image.getbands()) != channels:
    raise BadImage(f'the file has {len(image.getbands())} bands, wanted {channels}')
  return np.asarray(image)


def has_pages(image: 'Picture', count: int) -> bool:
  """Whether a file is a TIFF of so many pages."""
  return image.format == 'TIFF' and getattr(image, 'n_frames', 1) == count


def page(image: 'Picture', index: int) -> Image:
  """The values (H, W) of a page of a TIFF, which is grey and as large as the first."""
  size = image.size
  image.seek(index)
  check_tiles(image)
  if len(image.getbands()) > 1 or image.mode == 'P' or image.size != size:
    raise BadImage(f'page {index + 1} is {image.mode} {image.size}, not grey of {size}')
  return np.asarray(image)


def has_alpha(image: 'Picture') -> bool:
  return image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info


def as_rgb(image: 'Picture') -> 'Picture':
  """A PIL image of any mode in RGB; of more than 8 bits by `as_levels`.

  Raises:
    BadImage: for signed bytes, and for numbers without a range that is clear.
  """
  from PIL import Image as pil

  check_signed(image)
  if image.mode.startswith('I') or image.mode == 'F':
    return pil.fromarray(as_levels(image, np.asarray(image))).convert('RGB')
  if has_alpha(image):
    image = image.convert('RGBA')
    white = pil.new('RGBA', image.size, 'white')
    return pil.alpha_composite(white, image).convert('RGB')
  return image.convert('RGB')


BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
SIGNED = 2  # a sample format


def check_signed(image: 'Picture') -> None:
  """Raises BadImage for signed bytes, which Pillow takes for unsigned ones."""
  if SIGNED in tiff_tag(image, SAMPLE_FORMAT) and image.mode == 'L':
    raise BadImage('signed pixels: save it as unsigned 8 or 16 bits')


def as_levels(image: 'Picture', values: np.ndarray) -> Image:
  """The levels uint8 of values, of any shape, of a PIL image of one band.

  Of 16 bits, or of the 12 that a TIFF says, the upper 8. Other integers must be levels 0 to 255;
  floats too, or fractions of white, 0 to 1, which are times 255. Inverted where white is zero.
  """
  check_signed(image)
  if image.mode in ('L', '1'):  # Pillow itself inverts these
    return values.astype(np.uint8) * np.uint8(255 if image.mode == '1' else 1)
  if image.mode.startswith('I;16'):
    bits = min(tiff_tag(image, BITS) or (16,))
    levels = values >> (bits - 8)
  else:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # nor not a number
      kind = 'float' if image.mode == 'F' else 'integer'
      raise BadImage(
        f'{kind} pixels from {low:.6g} to {high:.6g}, not within 0 to 255: '
        'which are black and white is not clear; save it in 8 or 16 bits'
      )
    is_fraction = image.mode == 'F' and high <= 1
    levels = np.rint(values * 255 if is_fraction else values)
  levels = levels.astype(np.uint8)
  return 255 - levels if tiff_tag(image, PHOTOMETRIC) == (0,) else levels


def tiff_tag(image: 'Picture', tag: int) -> tuple[int, ...]:
  """The numbers of a tag of a TIFF; () where it has none, or is of another format."""
  value = getattr(image, 'tag_v2', {}).get(tag, ())
  return value if isinstance(value, tuple) else (value,)


@functools.cache
def opencv() -> types.ModuleType:
  """OpenCV, without threads of its own: those of the pipeline share the cores."""
  import cv2

  cv2.setNumThreads(0)
  return cv2
