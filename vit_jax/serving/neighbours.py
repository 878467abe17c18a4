"""The training photos that a model finds most like an image: cosines of what its head reads.

N photos, F features of one.
"""

import pathlib
import threading

import numpy as np

from vit_jax import predict
from vit_jax.evaluate import features, inputs, neighbours
from vit_jax.images import decoding
from vit_jax.text import message_line, reason, to_stderr
from vit_jax.views import photos

SIDE = 160  # pixels of a thumbnail, at most
COUNT = 8  # photos of an answer
BATCH = 32  # photos at a time, so that predictions come between
ERRORS = (ValueError, OSError, ModuleNotFoundError, RuntimeError)


class Neighbours:
  """Photos of a run's training split, read when they are first asked for, in a thread.

  Args:
    run: the model.
    path: of the run, whose config names the data.
    limit: photos that are compared, which lie evenly in the split; 0 for none.

  Attributes:
    state: 'unread', 'reading', 'ready' or 'absent'.
    reason: a line on why there are none, where they are absent.
  """

  def __init__(self, run: predict.Run | None, path: str, *, limit: int):
    self.run, self.path, self.limit = run, path, limit
    self.state, self.reason = 'unread', ''
    if run is None:
      self.state, self.reason = 'absent', 'an exported program knows no training photos'
    elif not limit:
      self.state, self.reason = 'absent', 'training photos are not compared here'
    else:
      try:
        self.data = inputs.data_of(path)
      except ValueError:
        self.state, self.reason = 'absent', 'only a run knows its training photos'

  def start(self) -> None:
    """Begins to read, once."""
    if self.state == 'unread' and self.run is not None:
      self.state = 'reading'
      threading.Thread(target=self.read, args=[self.run], name='neighbours', daemon=True).start()

  def read(self, run: predict.Run) -> None:
    """Takes the features of the photos, from the user's cache where they are the same."""
    try:
      self.split = self.open_photos()
      cache = features.user_cache()
      self.features = features.extract(run, self.split, batch_size=BATCH, cache=cache)
      self.channels = run.preprocess.channels
      self.state = 'ready'
    except ERRORS as error:  # of the data, which may be elsewhere by now
      self.reason = 'the training photos of the run cannot be read here'
      to_stderr(f'vit serve: {self.reason}: {reason(error)}')
      self.state = 'absent'

  def open_photos(self) -> inputs.Split:
    """The split, or photos that lie evenly in it."""
    split = inputs.open_split(self.path, split=self.data['train'])
    total = len(split.source)
    if total <= self.limit:
      return split
    indices = np.linspace(0, total - 1, self.limit).astype(int)
    name = f'{split.split}, {self.limit} of {total}'
    return inputs.Split(split.name, name, split.source.subset(indices))

  def nearest(self, vector: np.ndarray) -> list[dict[str, object]]:
    """The photos most like an image of such features (F,), the likest first, when it is 'ready'.

    Each has 'similarity', a cosine; 'label', '' without one; 'name' without folders; and 'image',
    a small picture as a `data:` URL.
    """
    best = neighbours.nearest(self.features.values, vector[None], k=COUNT)
    pairs = zip(best.index[0].tolist(), best.similarity[0].tolist())
    return [self.photo(row, similarity) for row, similarity in pairs]

  def photo(self, row: int, similarity: float) -> dict[str, object]:
    source, index = self.split.source, int(self.features.indices[row])
    label = np.ravel(self.features.labels[row])
    names = [self.features.classes[number] for number in label if number >= 0]
    pixels = decoding.as_pixels(source[index]['image'], self.channels)
    return {
      'similarity': similarity,
      'label': ', '.join(names),
      'name': message_line(pathlib.Path(source.describe(index)).name),
      'image': photos.photo(pixels, SIDE),
    }
