"""Whether two models differ on the same images: tests of pairs.

N images.
"""

import dataclasses

import numpy as np

MCNEMAR = "McNemar's exact test"
FLIPS = 'a test of random signs'
RESAMPLES = 9_999  # of the signs: the smallest p is 1e-4
CHUNK = 4_000_000  # signs at a time, so that few are in memory


@dataclasses.dataclass(frozen=True)
class Result:
  """A test of whether a difference on the same images could be chance.

  Fields:
    difference: the mean of the second minus that of the first, a fraction.
    better, worse: on how many images the second is better, and worse.
    p: how likely a difference as large as this is between models that are equally good: two-sided,
      of images as a sample of all images, not of seeds.
    test: its name, `MCNEMAR` or `FLIPS`.
  """

  difference: float
  better: int
  worse: int
  p: float
  test: str


def compare(first: np.ndarray, second: np.ndarray) -> Result:
  """Tests two models, or two groups of them, on the same images.

  Of one model each, the images on which one alone is right are as likely of either: McNemar's test,
  exact by the binomial distribution. Of groups, each image's difference is as likely of either
  sign: the mean is compared with those of `RESAMPLES` random choices of signs.

  Args:
    first, second: (N,) how often each image was right: 0 or 1, or a mean over runs.

  Raises:
    ValueError: if they are of different lengths, or of no image.
  """
  if first.shape != second.shape or not first.size:
    raise ValueError(f'pairs of images are needed, got {first.shape} and {second.shape}')
  differences = second.astype(float) - first
  better, worse = int((differences > 0).sum()), int((differences < 0).sum())
  is_pair = np.isin(differences, (-1, 0, 1)).all()
  p = binomial_p(better, worse) if is_pair else sign_p(differences[differences != 0])
  test = MCNEMAR if is_pair else FLIPS
  return Result(float(differences.mean()), better, worse, p, test)


def binomial_p(better: int, worse: int) -> float:
  """The two-sided p of so many of either, each as likely as the other."""
  from scipy import stats  # half a second

  total = better + worse
  return float(stats.binomtest(better, total, 0.5).pvalue) if total else 1.0


def sign_p(differences: np.ndarray) -> float:
  """The two-sided p of a sum of differences among those with random signs; it is seeded."""
  if not differences.size:
    return 1.0
  rng, sum_ = np.random.default_rng(0), abs(differences.sum())
  rows = max(CHUNK // differences.size, 1)
  as_large = 0
  for start in range(0, RESAMPLES, rows):
    size = (min(rows, RESAMPLES - start), differences.size)
    signs = 1 - 2 * rng.integers(2, size=size, dtype=np.int8)
    as_large += int((abs(signs @ differences) >= sum_ * (1 - 1e-9)).sum())
  return (as_large + 1) / (RESAMPLES + 1)
