"""How faithful an explanation is: what a class's score does as the patches it names go and come.

An explanation is a map (R, C) over cells of an image; P = R C of them, ordered by its values. N
images, K classes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from vit_jax.tasks import Params

STEPS = 8  # of a curve: with both its ends an order takes 16 forward passes
SEEDS = 8  # random orders
SPREADS = 2.0  # standard deviations over chance from which an order is better than it

Scores = Callable[[list[np.ndarray]], np.ndarray]  # of N images: (N, K)


@dataclasses.dataclass(frozen=True)
class Areas:
  """The mean score of a class along two curves (RISE, arXiv 1806.07421, section 4.2).

  Fields:
    deletion: as cells are hidden, the first in order first: low if these matter.
    insertion: as cells are uncovered, the first in order first: high if these matter.
  """

  deletion: float
  insertion: float

  @property
  def margin(self) -> float:
    """Insertion less deletion: the mean of a random order's is 0."""
    return self.insertion - self.deletion


@dataclasses.dataclass(frozen=True)
class Chance:
  """Areas of random orders.

  Fields:
    mean: of each area.
    spread: standard deviations of each area over the orders.
    margin: standard deviation of the margins, round their mean of 0.
  """

  mean: Areas
  spread: Areas
  margin: float

  def is_beaten_by(self, areas: Areas) -> bool:
    """Whether a margin lies more than SPREADS standard deviations over that of random orders."""
    return areas.margin > SPREADS * self.margin


@dataclasses.dataclass(frozen=True)
class Faithfulness:
  """Areas of the explanations of one class in one image.

  Fields:
    chance: of random orders of the same cells.
    explanations: areas by the name of the explanation.
    shuffled: areas, in the same model, of what each explains of a model with shuffled weights.
    steps: of a curve.
    passes: forward passes that the areas took.
  """

  chance: Chance
  explanations: Mapping[str, Areas]
  shuffled: Mapping[str, Areas]
  steps: int
  passes: int


def measure(
  scores: Scores,
  image: np.ndarray,
  label: int,
  maps: Mapping[str, np.ndarray],
  shuffled: Mapping[str, np.ndarray],
  *,
  grid: tuple[int, int],
  grey: Sequence[int],
) -> Faithfulness:
  """Deletion and insertion areas of explanations, beside those of random orders.

  An explanation that is as good when it explains shuffled weights tells nothing of what was learned
  (Adebayo et al., arXiv 1810.03292).

  Args:
    scores: of a list of images: (N, K).
    image: (H, W, C) uint8.
    label: of the class.
    maps: by name, each over cells (R, C) or over pixels (H, W), highest what matters most.
    shuffled: the same of a model with shuffled weights, see `shuffle`.
    grid: R, C.
    grey: the colour of hidden cells, uint8, of each channel or of all.
  """

  def areas(order: np.ndarray) -> Areas:
    return order_areas(scores, image, label, order, grid=grid, grey=grey)

  cells = grid[0] * grid[1]
  orders = [np.random.default_rng(seed).permutation(cells) for seed in range(SEEDS)]
  return Faithfulness(
    chance=chance([areas(order) for order in orders]),
    explanations={name: areas(ranking(values, grid)) for name, values in maps.items()},
    shuffled={name: areas(ranking(values, grid)) for name, values in shuffled.items()},
    steps=len(hidden_counts(cells)) - 1,
    passes=2 * (len(hidden_counts(cells)) - 1) * (SEEDS + len(maps) + len(shuffled)),
  )


def chance(areas: Sequence[Areas]) -> Chance:
  """Mean and spread of the areas of at least two random orders."""
  deletions, insertions = np.array([(each.deletion, each.insertion) for each in areas]).T
  return Chance(
    mean=Areas(float(deletions.mean()), float(insertions.mean())),
    spread=Areas(float(deletions.std(ddof=1)), float(insertions.std(ddof=1))),
    margin=float(np.sqrt(np.mean(np.square(insertions - deletions)))),
  )


def order_areas(
  scores: Scores,
  image: np.ndarray,
  label: int,
  order: np.ndarray,
  *,
  grid: tuple[int, int],
  grey: Sequence[int],
) -> Areas:
  """Areas under the curves of one order (P,) of cells, by the trapezoid rule; see `measure`.

  The curves share their ends, the whole image and the hidden one, in one batch.
  """
  counts = hidden_counts(len(order))
  hidden = [order[:count] for count in counts] + [order[count:] for count in counts[1:-1]]
  values = scores([hide_cells(image, cells, grid, grey) for cells in hidden])[:, label]
  deletion = values[: len(counts)]
  insertion = np.concatenate([deletion[-1:], values[len(counts) :], deletion[:1]])
  fractions = np.array(counts) / len(order)
  return Areas(*(float(np.trapezoid(curve, fractions)) for curve in (deletion, insertion)))


def hidden_counts(cells: int) -> list[int]:
  """How many cells are hidden at each step, from none to all: STEPS steps, or one a cell."""
  return np.unique(np.rint(np.linspace(0, cells, STEPS + 1)).astype(int)).tolist()


def hide_cells(
  image: np.ndarray, cells: np.ndarray, grid: tuple[int, int], grey: Sequence[int]
) -> np.ndarray:
  """A copy of an image (H, W, C) with some of its R C cells in grey."""
  mask = np.zeros(grid[0] * grid[1], bool)
  mask[cells] = True
  down, across = (
    np.arange(side) * count // side for side, count in zip(image.shape, grid)
  )  # (H,), (W,)
  hidden = mask.reshape(grid)[down[:, None], across]  # (H, W)
  return np.where(hidden[..., None], np.asarray(grey, np.uint8), image)


def ranking(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """(P,) cells of a map (R, C) or (H, W), the highest first; what is equal, in random order."""
  cells = cell_means(values, grid).ravel()
  ties = np.random.default_rng(0).random(cells.size)
  return np.lexsort((ties, -cells))


def cell_means(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """(R, C) means of a map over cells (R, C) or pixels (H, W); what is not finite counts as 0."""
  finite = np.nan_to_num(np.asarray(values, np.float64), posinf=0, neginf=0)
  down, across = (np.arange(side) * count // side for side, count in zip(finite.shape, grid))
  cells = (down[:, None] * grid[1] + across).ravel()
  totals = np.bincount(cells, finite.ravel(), minlength=grid[0] * grid[1])
  return (totals / np.bincount(cells, minlength=grid[0] * grid[1])).reshape(grid)


def shuffle(params: Params) -> Params:
  """Parameters whose arrays each have their values in random order, always the same."""
  generator = np.random.default_rng(0)

  def permuted(leaf: jax.Array) -> np.ndarray:
    values = np.asarray(leaf)
    return generator.permutation(values.ravel()).reshape(values.shape)

  return jax.tree.map(permuted, params)


def as_json(result: Faithfulness) -> dict[str, object]:
  """The figures as `inspect.json` holds them."""
  described = dataclasses.asdict(result)
  for name, areas in result.explanations.items():
    described['explanations'][name]['beats_chance'] = result.chance.is_beaten_by(areas)
  return described


def sentence(result: Faithfulness, name: str) -> str:
  """What the figures say of one explanation, in words."""
  areas, mean, spread = result.explanations[name], result.chance.mean, result.chance.spread
  text = (
    f'Faithfulness: hiding first what it names, the score is {areas.deletion:.1%} on average '
    f'(random order {mean.deletion:.1%} ± {100 * spread.deletion:.1f}); showing that first, '
    f'{areas.insertion:.1%} (random {mean.insertion:.1%} ± {100 * spread.insertion:.1f}): '
  )
  better = result.chance.is_beaten_by(areas)
  text += 'better than chance' if better else 'no better than chance'
  if name not in result.shuffled:
    return text + '.'
  other = result.shuffled[name]
  text += f'. Of shuffled weights: {other.deletion:.1%} and {other.insertion:.1%}, '
  if not result.chance.is_beaten_by(other):
    return text + 'no better than chance.'
  learned = ': it may show the image more than what was learned'
  return text + 'better than chance too' + learned * (other.margin >= areas.margin) + '.'
