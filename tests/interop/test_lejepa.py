"""LeJEPA equals lightly's: the loss, its gradient and the projector, on the same tensors.

lightly, as the authors' code, takes `knots` points of half an integral that is even: 2 knots - 1 of
ours. The paper's 17 from -5 to 5 are its 9 up to 5; its own 17 up to 3 are 33 of ours.
"""

import functools

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict

from tests.interop.peers import LIGHTLY_HEADS, LIGHTLY_LOSSES
from vit_jax import models
from vit_jax.tasks import lejepa

IMAGES, GLOBAL, LOCAL, OUTPUTS, SLICES = 24, 2, 3, 8, 64
rng = np.random.default_rng(0)
# Neither normal nor of unit variance: both parts of the loss have something to do.
PROJECTIONS = np.float32(rng.standard_normal((IMAGES, GLOBAL + LOCAL, OUTPUTS)) ** 3 + 0.2)
DIRECTIONS = np.array(lejepa.unit_vectors(jax.random.key(0), OUTPUTS, SLICES))
ONES = np.ones(IMAGES, np.float32)


def theirs(knots, t_max, weight):
  """lightly's loss and its gradient."""
  x = torch.tensor(PROJECTIONS, requires_grad=True)
  loss = LIGHTLY_LOSSES.LeJEPALoss(
    weight, sigreg_knots=knots, sigreg_t_max=t_max, sigreg_num_vectors=SLICES
  )
  loss.sigreg._generate_unit_vectors = lambda *_: torch.tensor(DIRECTIONS)
  views = x.transpose(0, 1)  # (V, N, D)
  value = loss(global_proj=views[:GLOBAL], local_proj=views[GLOBAL:])
  value.backward()
  return value.item(), x.grad.numpy()


@pytest.mark.parametrize(('knots', 't_max'), [(9, 5.0), (17, 3.0)])
@pytest.mark.parametrize('weight', [0.05, 1.0])
def test_loss_and_gradient_are_those_of_lightly(knots, t_max, weight):
  @jax.jit
  @jax.value_and_grad
  def ours(x):
    normal = lejepa.sigreg(x, DIRECTIONS, ONES, points=2 * knots - 1, t_max=t_max)
    return weight * normal + (1 - weight) * lejepa.disagreement(x, x[:, :GLOBAL], ONES)

  value, gradient = ours(PROJECTIONS)
  their_value, their_gradient = theirs(knots, t_max, weight)
  np.testing.assert_allclose(value, their_value, rtol=1e-5)
  np.testing.assert_allclose(gradient, their_gradient, atol=1e-5 * np.abs(their_gradient).max())


def test_a_statistic_is_of_each_view_and_direction_and_then_their_mean():
  regulariser = LIGHTLY_LOSSES.lejepa_loss.SIGReg(knots=9, t_max=5.0, num_vectors=SLICES)
  regulariser._generate_unit_vectors = lambda *_: torch.tensor(DIRECTIONS)
  each = [regulariser(torch.tensor(PROJECTIONS[:, view])) for view in range(GLOBAL + LOCAL)]
  ours = functools.partial(lejepa.sigreg, directions=DIRECTIONS, counts=ONES)
  np.testing.assert_allclose(jax.jit(ours)(PROJECTIONS), np.mean(each), rtol=1e-5)


def test_the_projector_and_its_gradient_are_those_of_lightly():
  features, width = np.float32(rng.standard_normal((6, 4, 5))), 16
  head = LIGHTLY_HEADS.LeJEPAProjectionHead(5, width, OUTPUTS)
  names = {
    'hidden0/kernel': '0.weight',
    'scale0': '1.weight',
    'bias0': '1.bias',
    'hidden1/kernel': '3.weight',
    'scale1': '4.weight',
    'bias1': '4.bias',
    'out/kernel': '6.weight',
    'out/bias': '6.bias',
  }
  theirs = {name: dict(head.layers.named_parameters())[other] for name, other in names.items()}
  for parameter in theirs.values():  # the norms' are ones and zeros
    torch.nn.init.normal_(parameter, std=0.5)
  output = head(torch.tensor(features).flatten(0, 1)).unflatten(0, (6, 4))
  output.square().sum().backward()
  params = {name: parameter.detach().numpy().T for name, parameter in theirs.items()}
  tree = unflatten_dict(params, sep='/')
  projector, ones = lejepa.Projector(width, OUTPUTS), np.ones(6, np.float32)

  def energy(params):
    x = projector.apply({'params': params}, features, ones)
    return (x**2).sum(), x

  gradient, ours = jax.jit(jax.grad(energy, has_aux=True))(tree)
  np.testing.assert_allclose(ours, output.detach().numpy(), atol=1e-5)
  gradient = models.flat(gradient)
  for name, parameter in theirs.items():
    scale = parameter.grad.abs().max().item()
    np.testing.assert_allclose(
      gradient[name], parameter.grad.numpy().T, atol=1e-5 * scale, err_msg=name
    )
