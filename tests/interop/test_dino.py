"""DINO's head, targets and losses, iBOT's and KoLeo's, against lightly's, on the same tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.interop.peers import LIGHTLY_HEADS, LIGHTLY_LOSSES
from vit_jax import config, models, plan
from vit_jax.tasks import dino, prototypes

N, GLOBAL, ALL, K = 6, 2, 5, 11
STUDENT, TEACHER = 0.1, 0.05
RNG = np.random.default_rng(0)


def cosines(*shape):
  return RNG.uniform(-1, 1, shape).astype(np.float32)


def tensors(x):
  """An array (N, V, ...) as tensors of each view, whose gradients are asked for."""
  return [torch.tensor(view).requires_grad_() for view in x.swapaxes(0, 1)]


def close(ours, theirs, tolerance=1e-5):
  theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
  np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def self_distillation(**fields):
  """The objective alone, whose centres follow as in training."""
  schedules = dino.Schedules(10, 0.9, (0.04, 0.07), 5, 0)
  return dino.Dino(None, None, dino.Objective(**fields), schedules)


@pytest.mark.parametrize(
  'head', [LIGHTLY_HEADS.DINOProjectionHead, LIGHTLY_HEADS.DINOv2ProjectionHead]
)
def test_the_head_and_its_gradients(head):
  peer = head(input_dim=24, hidden_dim=40, bottleneck_dim=16, output_dim=K)
  for name, parameter in peer.named_parameters():  # biases of 0 would hide one that is left out
    if 'weight_g' not in name:
      parameter.data = torch.tensor(RNG.normal(0, 0.2, parameter.shape), dtype=torch.float32)
  weights = {name: p.detach().numpy() for name, p in peer.named_parameters()}
  params = {
    f'dense{i + 1}': {
      'kernel': weights[f'layers.{2 * i}.weight'].T,
      'bias': weights[f'layers.{2 * i}.bias'],
    }
    for i in range(3)
  }
  params['prototypes'] = {'kernel': weights['last_layer.weight_v'].T}
  x, upstream = cosines(N, 24), cosines(N, K)

  def ours(params, x):
    return jnp.vdot(prototypes.DinoHead(K, 40, 16).apply({'params': params}, x), upstream)

  total, (grads, x_grad) = jax.value_and_grad(ours, argnums=(0, 1))(params, x)
  tensor = torch.tensor(x, requires_grad=True)
  expected = (peer(tensor) * torch.tensor(upstream)).sum()
  expected.backward()
  close(total, expected)
  close(x_grad, tensor.grad)
  close(grads['prototypes']['kernel'].T, peer.last_layer.weight_v.grad)
  for i in range(3):
    close(grads[f'dense{i + 1}']['kernel'].T, peer.layers[2 * i].weight.grad)
    close(grads[f'dense{i + 1}']['bias'], peer.layers[2 * i].bias.grad)


def test_the_loss_of_views_its_gradient_and_the_centre_over_steps():
  task, peer = self_distillation(), LIGHTLY_LOSSES.DINOLoss(K, student_temp=STUDENT)
  average = {'centres': {name: jnp.zeros(K) for name in dino.Parts._fields}}
  none = jnp.zeros((N, 0, K))
  present = dino.Parts(jnp.ones((N, GLOBAL)), jnp.zeros((N, 0)))
  for step, temperature in enumerate((0.04, 0.055, 0.07)):
    teacher, student = cosines(N, GLOBAL, K), cosines(N, ALL, K)
    both = dino.Parts(jnp.asarray(teacher), none)
    targets = task.targets(both, present, average['centres'], temperature)

    def ours(student, targets=targets):
      return prototypes.view_loss(targets.views, student, STUDENT).mean()

    total, gradient = jax.value_and_grad(ours)(student)
    views = tensors(student)
    expected = peer([torch.tensor(v) for v in teacher.swapaxes(0, 1)], views, temperature)
    expected.backward()
    close(total, expected)
    close(gradient, np.stack([view.grad.numpy() for view in views], axis=1))
    sums = dino.prototype_sums(both, targets, present)
    average = task.average(average, average, sums, jnp.asarray(step))
    close(average['centres']['views'], peer.center[0, 0])


def test_the_loss_of_hidden_patches_its_gradient_and_their_centre_over_steps():
  task, peer = self_distillation(), LIGHTLY_LOSSES.IBOTPatchLoss(K, student_temp=STUDENT)
  average = {'centres': {name: jnp.zeros(K) for name in dino.Parts._fields}}
  for step in range(3):
    hidden = RNG.random((N, GLOBAL, 12)) < 0.3
    hidden[0] = False  # as of images of which nothing is hidden
    index, weights = dino.hidden_index(jnp.asarray(hidden), int(hidden.sum((1, 2)).max()) + 1)
    teacher, student = cosines(N, GLOBAL * 12, K), cosines(N, GLOBAL * 12, K)

    def rows(x, index=index):
      return jnp.take_along_axis(jnp.asarray(x), index[:, :, None], axis=1)

    both = dino.Parts(jnp.zeros((N, GLOBAL, K)), rows(teacher))
    present = dino.Parts(jnp.ones((N, GLOBAL)), weights > 0)
    targets = task.targets(both, present, average['centres'], TEACHER)

    def ours(student, targets=targets, weights=weights, rows=rows):
      return prototypes.patch_loss(targets.patches, rows(student), weights, STUDENT).mean()

    total, gradient = jax.value_and_grad(ours)(student)
    mask = torch.tensor(hidden.reshape(N * GLOBAL, 3, 4))
    flat = torch.tensor(hidden.reshape(N, -1))
    tensor = torch.tensor(student, requires_grad=True)
    expected = peer(torch.tensor(teacher)[flat], tensor[flat], mask, TEACHER)
    expected.backward()
    close(total, expected)
    close(gradient, tensor.grad)
    sums = dino.prototype_sums(both, targets, present)
    average = task.average(average, average, sums, jnp.asarray(step))
    close(average['centres']['patches'], peer.center.value[0])


def test_koleo_and_its_gradient():
  x = cosines(N, 24)
  total, gradient = jax.value_and_grad(lambda x: prototypes.koleo(x, jnp.ones(N)).mean())(x)
  tensor = torch.tensor(x, requires_grad=True)
  expected = LIGHTLY_LOSSES.KoLeoLoss()(tensor)
  expected.backward()
  close(total, expected)
  close(gradient, tensor.grad)


@pytest.mark.parametrize('rounds', [1, 3])
def test_the_rounds_of_sinkhorn_and_knopp(rounds):
  x = cosines(16, K)
  ours = prototypes.sinkhorn(jnp.asarray(x), jnp.ones(16), TEACHER, rounds=rounds)
  close(
    ours, LIGHTLY_LOSSES.swav_loss.sinkhorn(torch.tensor(x), iterations=rounds, epsilon=TEACHER)
  )


@pytest.mark.parametrize('name', ['hf dinov2 registers', 'dinov3 token', 'siglip map'])
def test_a_run_goes_on_from_an_encoder_of_another_library(name, peer):
  side = 2 * max(peer(name).size)
  words = ['task=dino', 'ema=0.9', f'pretrained={peer(name).path}', 'model.name=']
  words += [f'image_size={side}', f'views.local_size={max(peer(name).size)}', 'batch_size=8']
  words += ['data.source=digits', 'schedule.warmup=0', 'dino.prototypes=8', 'dino.hidden=8']
  asked = plan.make_plan(config.load('default', words))
  start = models.flat(asked.task.start().params)
  every = models.flat(jax.eval_shape(asked.task.init, jax.eval_shape(jax.random.key, 0)))
  extra = {name.partition('/')[0] for name in every.keys() - start.keys()}
  assert extra == {'projection', 'centres', 'hidden'}
