"""Loose images, as people hand them over: paths, URLs, bytes, pictures, arrays, and many of these.

H, W pixels, C channels, N images. Each becomes a name, for messages and results, and pixels that
are decoded when they are asked for.
"""

import base64
import binascii
import functools
import glob
import http.client
import os
import pathlib
import re
import stat
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeGuard, Union

import numpy as np

from vit_jax.convert import download
from vit_jax.images import decoding
from vit_jax.sources import describe_passed_over, folder
from vit_jax.text import redacted, to_stderr

if TYPE_CHECKING:
  from PIL.Image import Image as Picture

URL_LIMIT = 1 << 26  # bytes of a fetched image
URL = re.compile(r'(?P<scheme>[a-z][a-z0-9+.-]*)://|data:', re.IGNORECASE)
BYTES = (bytes, bytearray, memoryview)
LEVELS = 255  # of uint8; floats are fractions of it
SLACK = 1e-6  # of floats beyond [0, 1], as rounding leaves them


class Array(Protocol):
  """An array of NumPy, JAX, torch or another library that NumPy takes."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  def __array__(self) -> np.ndarray: ...


class BinaryFile(Protocol):
  """An open file, in memory or not, of bytes."""

  def read(self) -> bytes: ...


# An array may be several. Union, since a class that is not imported takes no `|`.
Image = Union[str, os.PathLike[str], bytes, BinaryFile, Array, 'Picture']


class Loose(NamedTuple):
  """An image: what a message calls it, and (channels) -> its pixels (H, W, C) uint8."""

  name: str
  pixels: Callable[[int], np.ndarray]


def is_one(images: object) -> bool:
  """Whether this is one image: no list, folder or pattern of them, nor an array (N, H, W, C)."""
  if isinstance(images, str | os.PathLike):
    return is_url(images) or not (os.path.isdir(images) or is_pattern(images))
  if is_array(images):
    return len(images.shape) != 4 and np.asarray(images).dtype.kind not in 'OUS'
  return isinstance(images, BYTES) or is_picture(images) or is_file(images)


def listed(images: object, *, say: Callable[[str], object] = to_stderr) -> Iterator[Loose]:
  """Every image of what is handed over, in order; nothing is decoded or fetched yet.

  Args:
    images: a path; a folder, whose images are taken wherever they lie in it; a pattern such as
      'photos/*.jpg'; an http, https or data URL; the bytes of a file, or it opened for these; a
      picture of Pillow; an array (H, W), (H, W, C) or (N, H, W, C), of uint8, or of floats from 0
      to 1; or an iterable of any.
    say: takes a line of what is passed over in each folder.

  Raises:
    ValueError: for what is none of these; if links lead out of a folder.
  """
  if isinstance(images, str | os.PathLike):
    yield from of_path(images, say)
  elif isinstance(images, BYTES):
    data = bytes(images)
    yield Loose(f'{len(data):,} bytes', functools.partial(decoding.decode, data))
  elif is_picture(images):
    yield Loose('picture', functools.partial(picture_pixels, images))
  elif is_file(images):
    yield Loose('open file', functools.partial(file_pixels, images))
  elif is_array(images) and np.asarray(images).dtype.kind not in 'OUS':
    for image in np.asarray(images) if len(images.shape) == 4 else [images]:
      yield Loose('array', functools.partial(array_pixels, image))
  elif isinstance(images, Iterable) and not isinstance(images, dict):
    for image in images:
      yield from listed(image, say=say)
  else:
    raise ValueError(
      f'{type(images).__name__} is no image: a path, URL, bytes, picture or array is, or a list'
    )


def only(images: object) -> Loose:
  """The one image that is handed over; ValueError for several."""
  several = list(listed(images))
  if len(several) != 1:
    raise ValueError(f'one image is wanted, not {len(several)}')
  return several[0]


def is_array(image: object) -> TypeGuard[Array]:
  return hasattr(image, '__array__') and hasattr(image, 'shape')


def is_picture(image: object) -> 'TypeGuard[Picture]':
  """Whether this is an image of Pillow, which need not be imported to say so."""
  return any(
    kind.__module__ == 'PIL.Image' and kind.__name__ == 'Image' for kind in type(image).mro()
  )


def is_file(image: object) -> TypeGuard[BinaryFile]:
  return hasattr(image, 'read') and not is_picture(image)


# Paths and URLs


def of_path(path: str | os.PathLike[str], say: Callable[[str], object]) -> Iterator[Loose]:
  if is_url(path):
    url = str(path)
    name = redacted(url) if not url.startswith('data:') else f'{url[:40]}...'
    yield Loose(name, functools.partial(fetched_pixels, url, name))
    return
  for file in image_files([path], say=say):
    yield Loose(os.fspath(file), functools.partial(read_image, file))


def is_url(path: str | os.PathLike[str]) -> bool:
  return isinstance(path, str) and URL.match(path) is not None


def is_pattern(path: str | os.PathLike[str]) -> bool:
  return glob.has_magic(os.fspath(path)) and not os.path.lexists(path)


def image_files(
  paths: Iterable[str | os.PathLike[str]], *, say: Callable[[str], object] = to_stderr
) -> list[str]:
  """The paths, each folder replaced by the images below it, each pattern by what it fits, in order.

  The images of a folder are those that 'folder:' reads, wherever they lie. A folder without images
  stays, and is reported as a file that is no image; so is a pattern that nothing fits.

  Args:
    paths: files, folders and patterns; a URL stays as it is.
    say: takes a line of what is passed over in each folder.

  Raises:
    ValueError: if links lead out of a folder.
  """
  result: list[str] = []
  for path in [os.fspath(path) for path in paths]:
    if is_url(path):
      result.append(path)
      continue
    for match in sorted(glob.glob(path, recursive=True)) if is_pattern(path) else [path]:
      result += below(match, say) if os.path.isdir(match) else [match]
    result += [path] if is_pattern(path) and not glob.glob(path, recursive=True) else []
  return result


def below(path: str, say: Callable[[str], object]) -> list[str]:
  """The images in a folder, or the folder itself where it has none."""
  walk = folder.Walk(os.fsencode(os.path.realpath(path)))
  images = [name for names in walk.images_below(b'') for name in names]
  walk.check_links()
  if line := describe_passed_over(walk.passed_over):
    say(f'{path}: {line}')
  return sorted(os.path.join(path, os.fsdecode(name)) for name in images) or [path]


def read_image(path: str | os.PathLike[str], channels: int = 3) -> np.ndarray:
  """An image file as (H, W, C) uint8; its errors name the file."""
  try:
    if os.path.isdir(path):
      raise ValueError('no images in this folder')
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
      raise ValueError('not a regular file')
    return decoding.decode(pathlib.Path(path).read_bytes(), channels)
  except ValueError as error:
    raise ValueError(f'{os.fspath(path)}: {error}') from None
  except FileNotFoundError:
    raise FileNotFoundError(f'{os.fspath(path)}: there is no such file') from None
  except OSError as error:
    raise ValueError(f'{os.fspath(path)}: {error.strerror}') from None


def fetched(url: str) -> bytes:
  """The bytes at an http or https address, at most URL_LIMIT of them, or in a data URL.

  Raises:
    FileNotFoundError: if it cannot be fetched.
    ValueError: for a URL of another kind, or a data URL that is damaged.
  """
  if url.startswith('data:'):
    return data_bytes(url)
  shown = redacted(url)
  if urllib.parse.urlsplit(url).scheme not in ('http', 'https'):
    raise ValueError(f'{shown} is no URL of an image: https://..., http://... or data:... is')
  try:
    return download.read(url, URL_LIMIT)
  except urllib.error.HTTPError as error:
    with error:
      raise FileNotFoundError(f'{shown}: {error.code} {error.reason}') from None
  except (OSError, http.client.HTTPException, EOFError, ValueError) as error:
    cause = getattr(error, 'reason', '') or error or type(error).__name__
    raise FileNotFoundError(f'{shown} cannot be fetched: {redacted(str(cause))}') from None


def data_bytes(url: str) -> bytes:
  """The content of 'data:image/png;base64,...' (RFC 2397)."""
  header, comma, text = url.partition(',')
  if not comma:
    raise ValueError(f'{url[:40]} is no data URL: it has no comma')
  raw = urllib.parse.unquote_to_bytes(text)
  try:
    return base64.b64decode(raw, validate=True) if header.endswith(';base64') else raw
  except binascii.Error:
    raise ValueError(f'{url[:40]}... is damaged: its base64 cannot be decoded') from None


def fetched_pixels(url: str, name: str, channels: int) -> np.ndarray:
  """The image at a URL as (H, W, C) uint8; what is wrong with it begins with the name."""
  data = fetched(url)
  try:
    return decoding.decode(data, channels)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from None


# Pixels


def file_pixels(file: BinaryFile, channels: int) -> np.ndarray:
  """The image in an open file, from where it is read next, as (H, W, C) uint8."""
  data = file.read()
  if not isinstance(data, bytes):
    raise ValueError(f"an open file has to give bytes, not {type(data).__name__}: open(..., 'rb')")
  return decoding.decode(data, channels)


def picture_pixels(image: 'Picture', channels: int) -> np.ndarray:
  """A picture of Pillow, upright by EXIF, as (H, W, C) uint8."""
  decoding.check_pixels(image.height, image.width)
  try:
    image.load()
  except Exception as error:  # of whatever kind a decoder raises over hostile bytes
    raise decoding.damaged(error) from None
  return decoding.upright(decoding.as_channels(image, channels), decoding.exif_tag(image))


def array_pixels(image: Array, channels: int) -> np.ndarray:
  """An array (H, W) or (H, W, C) of uint8, or of floats from 0 to 1, as (H, W, C) uint8.

  C is the channels of the model, or 1 where these are 3.

  Raises:
    ValueError: for another shape, type or range; says what to do.
  """
  array = np.asarray(image)
  pixels = array[..., None] if array.ndim == 2 else array
  kind = f'{array.dtype} {array.shape}'
  if (
    not array.size
    or pixels.ndim != 3
    or pixels.shape[2] not in {channels, 1 if channels == 3 else channels}
  ):
    last = array.ndim == 3 and array.shape[0] in (1, channels)
    advice = '; channels come last: array.transpose(1, 2, 0)' * last
    raise ValueError(f'an image is uint8 (H, W, {channels}), not {kind}{advice}')
  decoding.check_pixels(*pixels.shape[:2])
  if pixels.dtype == np.uint8:
    return pixels
  return as_levels(pixels, kind)


def as_levels(pixels: np.ndarray, kind: str) -> np.ndarray:
  """Floats from 0 to 1 as uint8, rounded; ValueError, with what to do, for other numbers."""
  if not np.issubdtype(pixels.dtype, np.floating) and pixels.dtype.name != 'bfloat16':
    whole = np.issubdtype(pixels.dtype, np.integer)
    advice = ''
    if whole and pixels.min() >= 0 and pixels.max() <= LEVELS:
      advice = ": array.astype('uint8') is"
    elif pixels.dtype in (np.bool_, np.uint16):
      advice = f': array / {65535 if pixels.dtype == np.uint16 else 1} is'
    raise ValueError(f'an image is uint8, or floats from 0 to 1, not {kind}{advice}')
  low, high = float(pixels.min()), float(pixels.max())
  if low >= -SLACK and high <= 1 + SLACK:
    return np.rint(pixels.astype(np.float32).clip(0, 1) * LEVELS).astype(np.uint8)
  advice = 'array.clip(0, 1) is'
  if not (np.isfinite(low) and np.isfinite(high)):
    advice = 'it has numbers that are not finite'
  elif -1 - SLACK <= low < 0 and high <= 1 + SLACK:
    advice = 'from -1 to 1 it is (array + 1) / 2'
  elif low >= 0 and high <= LEVELS:
    advice = 'from 0 to 255 it is array / 255'
  raise ValueError(
    f'an image of floats goes from 0 to 1, not from {low:.4g} to {high:.4g} ({kind}): {advice}'
  )
