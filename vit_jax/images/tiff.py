"""TIFF files of many bands, which no library here decodes, as files of grey, which they do decode.

H, W pixels, C bands. The bytes of a picture with its bands pixel by pixel are those of a grey one
that is C times as wide; with one band after another, of one that is C times as high. So a
file whose directory says that is decoded by any reader, whatever compresses it.
"""

import dataclasses
import struct

import numpy as np

ORDERS = {b'II*\0': '<', b'MM\0*': '>'}  # how a file begins; BigTIFF is not here
WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES = 256, 257, 258, 262, 277  # tags
ROWS_PER_STRIP, PLANAR = 278, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT = 317, 322, 323, 338, 339
SHORT, LONG = 3, 4  # types of a tag's values
FORMATS = {SHORT: 'H', LONG: 'I'}
ALPHA = (1, 2)  # extra samples that are one
IGNORED = 65_000  # a tag that no reader knows
MIN_IS_BLACK, RGB = 1, 2


@dataclasses.dataclass(frozen=True)
class Banded:
  """A TIFF whose first picture has several bands.

  Fields:
    data: the file, whose directory says grey.
    bands: C.
    width: of the picture.
    separate: whether the bands come one after another.
    differences: whether each value is stored as how much it exceeds that of the pixel before.
  """

  data: bytes
  bands: int
  width: int
  separate: bool
  differences: bool

  def pixels(self, grey: np.ndarray) -> np.ndarray:
    """(H, W, C) of the decoded grey picture."""
    if self.separate:
      return np.moveaxis(grey.reshape(self.bands, -1, self.width), 0, -1)
    image = grey.reshape(len(grey), self.width, self.bands)
    return np.cumsum(image, axis=1, dtype=image.dtype) if self.differences else image


class Directory:
  """The tags of the first picture of a TIFF; ValueError or struct.error for a damaged one."""

  def __init__(self, data: bytes):
    self.data, self.order = bytearray(data), ORDERS[data[:4]]
    (start,) = self.unpack('I', 4)
    (count,) = self.unpack('H', start)
    self.entries: dict[int, int] = {}  # where each tag is
    for at in range(start + 2, start + 2 + 12 * count, 12):
      self.entries[self.unpack('H', at)[0]] = at

  def unpack(self, form: str, at: int) -> tuple[int, ...]:
    return struct.unpack_from(self.order + form, self.data, at)

  def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The whole numbers of a tag."""
    if tag not in self.entries:
      return default
    at = self.entries[tag]
    kind, count = self.unpack('HI', at + 2)
    form = f'{count}{FORMATS[kind]}'
    offset = at + 8 if struct.calcsize(form) <= 4 else self.unpack('I', at + 8)[0]
    return self.unpack(form, offset)

  def number(self, tag: int, default: int) -> int:
    return self.values(tag, (default,))[0]

  def put(self, tag: int, value: int) -> None:
    """Makes one number of a tag that is there."""
    if tag in self.entries:
      kind, form = (SHORT, 'Hxx') if value < 1 << 16 else (LONG, 'I')
      at = self.entries[tag]
      struct.pack_into(f'{self.order}HHI{form}', self.data, at, tag, kind, 1, value)

  def drop(self, tag: int) -> None:
    """Hides a tag from readers."""
    if tag in self.entries:
      struct.pack_into(f'{self.order}H', self.data, self.entries[tag], IGNORED)


def band_count(data: bytes) -> int:
  """How many bands the first picture of a TIFF has that are no colours; 0 of other files."""
  if data[:4] not in ORDERS:
    return 0
  try:
    directory = Directory(data)
    return directory.number(SAMPLES, 1) if has_bands(directory) else 0
  except (struct.error, KeyError, IndexError):
    return 0  # the decoder says what is wrong


def as_grey(data: bytes) -> Banded:
  """A TIFF that has bands as one of grey.

  Raises:
    ValueError: for bands that are stored in a way that is not read.
  """
  try:
    return regarded_as_grey(Directory(data))
  except (struct.error, KeyError, IndexError, ZeroDivisionError):
    raise ValueError('its directory is damaged') from None


def has_bands(directory: Directory) -> bool:
  """Whether there are several samples of a pixel, which are not RGB, nor grey or RGB with alpha."""
  samples, extras = directory.number(SAMPLES, 1), directory.values(EXTRA_SAMPLES)
  photometric = directory.number(PHOTOMETRIC, MIN_IS_BLACK)
  if samples == 1 or photometric not in (MIN_IS_BLACK, RGB):
    return False
  has_alpha = len(extras) == 1 and extras[0] in ALPHA and samples in (2, 4)
  return not has_alpha and (photometric, samples) != (RGB, 3)


def regarded_as_grey(directory: Directory) -> Banded:
  """The file with a directory that says grey; errors as of a damaged one."""
  count, width = directory.number(SAMPLES, 1), directory.number(WIDTH, 0)
  bits, formats = (set(directory.values(tag, (1,))) for tag in (BITS, SAMPLE_FORMAT))
  if len(bits) > 1 or len(formats) > 1:
    raise ValueError('bands of different types')
  separate, differences = directory.number(PLANAR, 1) == 2, directory.number(PREDICTOR, 1)
  if separate:
    stack(directory, count)
  elif differences == 1 or (differences == 2 and TILE_WIDTH not in directory.entries):
    directory.put(WIDTH, width * count)
    directory.put(TILE_WIDTH, directory.number(TILE_WIDTH, 0) * count)
    directory.put(PREDICTOR, 1)
  else:
    raise ValueError('bands with a predictor that is not read: save it without one')
  for tag, value in ((BITS, *bits), (SAMPLE_FORMAT, *formats), (SAMPLES, 1), (PLANAR, 1)):
    directory.put(tag, value)
  directory.put(PHOTOMETRIC, MIN_IS_BLACK)
  directory.drop(EXTRA_SAMPLES)
  return Banded(bytes(directory.data), count, width, separate, not separate and differences == 2)


def stack(directory: Directory, count: int) -> None:
  """Makes one picture of bands that come one after another: whole strips or tiles of each."""
  height = directory.number(HEIGHT, 0)
  strip = min(directory.number(ROWS_PER_STRIP, height), height)
  rows = directory.number(TILE_HEIGHT, strip)
  if height % rows:
    raise ValueError(f'bands of {height} rows in parts of {rows}: save it pixel by pixel')
  directory.put(ROWS_PER_STRIP, strip)
  directory.put(HEIGHT, height * count)
