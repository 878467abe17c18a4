"""Near-duplicates: the same picture encoded anew, at another quality, size or brightness.

N, M images of two splits, P pairs of them. A fingerprint is a picture of 8 x 9 grey levels and the
mean colour; its hash has a bit for each pixel that is lighter than the one before (dHash).
"""

from collections.abc import Iterator

import numpy as np

from vit_jax.images.decoding import Image, opencv

ROWS, COLUMNS = 8, 9
SIZE = ROWS * COLUMNS + 3  # bytes of a fingerprint
BANDS = 4  # of 16 bits each: pictures are compared where a band of their hashes is the same
MAX_DIFFERENCE = 4  # mean levels between two pictures: JPEG at quality 30 differs by one
MIN_CONTRAST = 4  # standard deviation in levels, below which a picture shows nothing to compare
CHUNK = 1 << 18  # pairs that are compared at a time, so that memory stays small


def fingerprint(image: Image) -> np.ndarray:
  """The fingerprint (SIZE,) uint8 of an image (H, W, 3)."""
  cv2 = opencv()
  small = cv2.resize(image, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)  # (ROWS, COLUMNS, 3)
  grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
  return np.concatenate([grey.ravel(), np.rint(small.mean((0, 1))).astype(np.uint8)])


def near_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """The indices (P, 2) of fingerprints (N, SIZE) and (M, SIZE) that are of the same picture.

  Those whose hashes share a band are compared: of 300 crops of two photographs, 300 are matched at
  half their size and 293 at JPEG's quality 30. Pictures without contrast are like none.
  """
  pairs = [np.empty((0, 2), np.int64)]
  hashes = hashed(a), hashed(b)  # (N, 8), (M, 8)
  bands = [code.view(np.uint16) for code in hashes]  # (N, BANDS), (M, BANDS)
  has_contrast = [pictures(marks).std(axis=1) >= MIN_CONTRAST for marks in (a, b)]
  for band in range(BANDS):
    for i, j in equal_pairs(bands[0][:, band], bands[1][:, band]):
      is_new = (bands[0][i, :band] != bands[1][j, :band]).all(axis=1)  # by no band before
      i, j = (rows[is_new & has_contrast[0][i] & has_contrast[1][j]] for rows in (i, j))
      difference = np.abs(a[i].astype(np.int16) - b[j])
      colour = difference[:, ROWS * COLUMNS :].max(axis=1, initial=0)
      is_near = (pictures(difference).mean(axis=1) <= MAX_DIFFERENCE) & (
        colour <= 2 * MAX_DIFFERENCE
      )
      pairs.append(np.stack([i[is_near], j[is_near]], axis=1))
  return np.concatenate(pairs)


def pictures(fingerprints: np.ndarray) -> np.ndarray:
  """The grey levels (N, ROWS * COLUMNS) of fingerprints."""
  return fingerprints[:, : ROWS * COLUMNS]


def hashed(fingerprints: np.ndarray) -> np.ndarray:
  """Hashes (N, 8) uint8: a bit for each two neighbours in a row."""
  levels = pictures(fingerprints).reshape(-1, ROWS, COLUMNS)
  return np.packbits(levels[..., 1:] > levels[..., :-1], axis=-1)[..., 0]


def equal_pairs(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The indices of equal numbers in (N,) and (M,), about CHUNK at a time."""
  order = np.argsort(a, kind='stable')
  first, last = (np.searchsorted(a[order], b, side) for side in ('left', 'right'))
  ends = np.cumsum(last - first)  # (M,)
  begin = 0
  while begin < len(b):
    done = ends[begin - 1] if begin else 0
    end = max(int(np.searchsorted(ends, done + CHUNK, 'right')), begin + 1)
    counts = (last - first)[begin:end]
    rows = np.repeat(np.arange(begin, end), counts)
    offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    yield order[first[rows] + offsets], rows
    begin = end
