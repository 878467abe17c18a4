"""What a body asks for: images and options, within limits."""

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping

from vit_jax.serving.exchange import Declined
from vit_jax.text import first_few, quantity

TOP = 5  # classes of an answer, unless asked
MAX_TOP = 1000
STRUCTURE = 1000  # commas and brackets of a JSON body: one of images has few
FIELDS = ('image', 'images', 'top')  # of a JSON body
BYTES = ('', 'application/octet-stream', 'application/x-www-form-urlencoded')  # the last is curl's


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one request, and all together, may take.

  Fields:
    image_bytes: of the file of one image; a request has at most four times as many in all.
    images: of one request.
    queue: images that may wait or be computed at once.
    seconds: from the headers of a request to its answer.
    held_bytes: of all bodies that are being read or decoded.
    connections: open at once; beyond these, those that wait for their clients longest are dropped.
  """

  image_bytes: int = 20 << 20
  images: int = 64
  queue: int = 256
  seconds: float = 30.0
  held_bytes: int = 512 << 20
  connections: int = 256

  @property
  def body_bytes(self) -> int:
    return 4 * self.image_bytes


LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Question:
  """The files of the images of a request, whether it is a list of them, and how many classes."""

  images: list[bytes]
  is_list: bool
  top: int


def parse(body: bytes, content_type: str, query: Mapping[str, str], limits: Limits) -> Question:
  """What a body asks for: an image's bytes, or JSON with images in base64.

  Raises:
    Declined: for what is neither, too many images or too large ones, and a `top` that is no number.
  """
  if not body:
    raise Declined(400, 'the body is empty: it must be the bytes of an image, or JSON')
  kind = content_type.partition(';')[0].strip().lower()
  top: object = None
  if kind == 'application/json':
    images, is_list, top = parse_json(body)
  elif kind in BYTES or kind.startswith('image/'):
    images, is_list = [body], False
  else:
    raise Declined(415, f'the content type is {kind!r:.80}: send the bytes of an image, or JSON')
  if not 1 <= len(images) <= limits.images:
    count = quantity(len(images), 'image')
    raise Declined(413 if images else 400, f'{count}: a request has 1 to {limits.images}')
  large = [str(i) for i, image in enumerate(images) if len(image) > limits.image_bytes]
  if large:
    subject = f'image {first_few(large)}' if is_list else 'the image'
    raise Declined(413, f'{subject} is larger than {limits.image_bytes:,} bytes')
  return Question(images, is_list, checked_top(query.get('top', top)))


def parse_json(body: bytes) -> tuple[list[bytes], bool, object]:
  """The images of a JSON body, whether they are a list, and its `top`.

  JSON of many small values takes a hundred times its size in memory; base64 has none of its signs,
  so that they can be counted before it is read.
  """
  if sum(map(body.count, (b',', b'[', b'{'))) > STRUCTURE:
    raise Declined(413, f'the JSON has over {STRUCTURE:,} values')
  try:
    values = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise Declined(400, f'the body is no JSON: {error}') from None
  if not isinstance(values, dict) or ('image' in values) == ('images' in values):
    raise Declined(400, 'the JSON must be {"image": BASE64} or {"images": [BASE64, ...]}')
  if unknown := sorted(set(values) - {*FIELDS}):
    raise Declined(400, f'unknown {first_few(unknown)}; known: {", ".join(FIELDS)}')
  is_list = 'images' in values
  texts = values['images'] if is_list else [values['image']]
  if not isinstance(texts, list):
    raise Declined(400, f'"images" is {type(texts).__name__}, must be a list')
  images = [decode_base64(text, index) for index, text in enumerate(texts)]
  return images, is_list, values.get('top')


def decode_base64(text: object, index: int) -> bytes:
  """The bytes of an image in JSON; a `data:` URL is one, too."""
  if isinstance(text, str):
    start = text.find(',') + 1 if text.startswith('data:') else 0
    try:
      return base64.b64decode(text[start:], validate=True)
    except (ValueError, binascii.Error):
      pass
  raise Declined(400, f'image {index} is not base64')


def checked_top(value: object) -> int:
  """How many classes are asked for."""
  if value is None:
    return TOP
  text = str(value)
  if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 7):
    raise Declined(400, f'top is {text!r:.40}, must be a number from 1 on')
  if not 1 <= int(text) <= MAX_TOP:
    raise Declined(400, f'top is {text}, must be 1 to {MAX_TOP}')
  return int(text)
