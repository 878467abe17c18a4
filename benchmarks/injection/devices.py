"""One run on other devices and meshes at each of its starts."""

import pathlib
import signal
from collections.abc import Callable, Sequence

import numpy as np

from injection.cases import Case, Outcome, Trial
from injection.disks import LONG
from injection.runs import Recipe, newest_state, rows_of

TOLERANCE = 1e-5  # relative: float32 sums in another order, through 40 updates
Mesh = tuple[int, int, int]  # data, fsdp, tensor


def on(mesh: Mesh) -> Recipe:
  data, fsdp, tensor = mesh
  fields = {**LONG.fields, 'system.data': data, 'system.fsdp': fsdp, 'system.tensor': tensor}
  return Recipe(f'on {data} x {fsdp} x {tensor}', fields, devices=data * fsdp * tensor)


def across(meshes: Sequence[Mesh]) -> Callable[[Trial], Outcome]:
  """Stops a run by SIGTERM on every mesh but the last."""

  def hurt(trial: Trial) -> Outcome:
    unhurt, faults, line, steps = trial.lab.unhurt(on(meshes[0])), [], '', []
    for place, mesh in enumerate(meshes):
      process = trial.lab.start(on(mesh), trial.run)
      if place < len(meshes) - 1:
        process.until(process.says(rf'^step {8 * place + 4}/'))
        process.send(signal.SIGTERM)
      ended = process.wait()
      steps.append(ended.resumed_step())
      faults += ended.rudeness() + [ended.line] * (ended.code != 0)
      line = line or ended.matching('stopped at step')
    if sorted(set(steps)) != steps:
      faults.append(f'resumed at {steps}')
    return Outcome(faults + far(trial.run, unhurt), lost=0, line=line, count=len(meshes) - 1)

  return hurt


def far(run: pathlib.Path, unhurt: pathlib.Path) -> list[str]:
  """Which losses, order of images or parameters of two runs are further apart than rounding."""
  rows, others = rows_of(run), rows_of(unhurt)
  for name in ('train/loss', 'train/order', 'validation/loss'):
    values, expected = ([row[name] for row in side if name in row] for side in (rows, others))
    if len(values) != len(expected) or not np.allclose(values, expected, rtol=TOLERANCE, atol=0):
      return [f'{name} differs']
  state, expected_state = newest_state(run), newest_state(unhurt)
  gaps = {n: float(np.abs(state[n] - expected_state[n]).max()) for n in state if state[n].size}
  scale = max(float(np.abs(array).max()) for array in expected_state.values() if array.ndim > 1)
  worst = max(gaps, key=lambda name: gaps[name])
  return [f'{worst} differs by {gaps[worst]:.1e}'] if gaps[worst] > 10 * TOLERANCE * scale else []


PROMISE = 'the same losses and parameters but for the order of float32 sums'
CASES = [
  Case(
    'devices/8, 4, 2, 1, 8 devices',
    PROMISE,
    1,
    across([(8, 1, 1), (4, 1, 1), (2, 1, 1), (1, 1, 1), (8, 1, 1)]),
  ),
  Case(
    'devices/meshes of data, fsdp, tensor: 2 2 2, 1 4 1, 4 1 2, 8 1 1',
    PROMISE,
    1,
    across([(2, 2, 2), (1, 4, 1), (4, 1, 2), (8, 1, 1)]),
  ),
]
