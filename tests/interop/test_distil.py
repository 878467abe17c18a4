"""Our losses with a teacher against timm's tasks: the same tensors, weights and temperatures.

N images, K classes, F features of the student, G of the teacher.
"""

import copy
import dataclasses
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import vit_jax
from tests.conftest import flat
from tests.interop import peers
from tests.interop.peers import timm
from vit_jax import bundle
from vit_jax.sources.columns import Column
from vit_jax.tasks import classify, distil

timm_tasks = importlib.import_module('timm.task')  # after peers, which lets torchvision load

N, K, F, G, SIDE = 6, 5, 4, 3, 8
STATISTICS = {  # of the student's pixels, and of the teacher's
  'the same': (((0.5,) * 3, (0.5,) * 3),) * 2,
  'others': (((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
LABELS = RNG.integers(0, K, N)


def numbers(*shape, seed, scale=1.0):
  return np.float32(scale * np.random.default_rng(seed).standard_normal(shape))


def tensors(features):
  """What a student gives for the images: its parameters, so that gradients by them are compared."""
  return {
    'logits': numbers(N, K, seed=1, scale=3),
    'head': numbers(N, K, seed=2, scale=3),
    'head_dist': numbers(N, K, seed=3, scale=3),
    'pre_logits': numbers(N, features, seed=4),
  }


# A teacher's answers are linear in its pixels, so that these must be normalised for it.
WEIGHTS = {
  'logits': numbers(SIDE * SIDE * 3, K, seed=5, scale=0.3),
  'pre_logits': numbers(SIDE * SIDE * 3, G, seed=6, scale=0.1),
}


class TheirStudent(nn.Module):
  """Gives its parameters, as a timm model its logits and features."""

  def __init__(self, features, stats):
    super().__init__()
    self.values = nn.ParameterDict(
      {name: nn.Parameter(torch.from_numpy(value)) for name, value in tensors(features).items()}
    )
    self.pretrained_cfg = dict(zip(('mean', 'std'), stats))
    self.num_features, self.num_classes, self.in_chans, self.two = features, K, 3, False

  def set_distilled_training(self, enable):
    self.two = enable

  def forward(self, images):
    return (self.values['head'], self.values['head_dist']) if self.two else self.values['logits']

  def forward_features(self, images):
    return images

  def forward_head(self, images, pre_logits=False):
    return self.values['pre_logits' if pre_logits else 'logits']


class TheirTeacher(nn.Module):
  def __init__(self, stats):
    super().__init__()
    self.weights = nn.ParameterDict(
      {name: nn.Parameter(torch.from_numpy(value)) for name, value in WEIGHTS.items()}
    )
    self.pretrained_cfg = dict(zip(('mean', 'std'), stats))
    self.num_features = G

  def forward(self, images):
    return images.permute(0, 2, 3, 1).flatten(1) @ self.weights['logits']

  def forward_features(self, images):
    return images

  def forward_head(self, images, pre_logits):
    return images.permute(0, 2, 3, 1).flatten(1) @ self.weights['pre_logits']


def their_task(kind, temperature, weight, student, teacher):
  """timm's task, with complementary weights as ours."""
  options = dict(
    criterion=nn.CrossEntropyLoss(),
    task_loss_weight=1 - weight,
    distill_loss_weight=weight,
    verbose=False,
  )
  if kind == 'logits':
    return timm_tasks.LogitDistillationTask(
      student, teacher, temperature=temperature or 1.0, **options
    )
  if kind == 'features':
    return timm_tasks.FeatureDistillationTask(student, teacher, **options)
  soft = dict(temperature=temperature) if temperature else {}
  return timm_tasks.TokenDistillationTask(
    student, teacher, distill_type='soft' if soft else 'hard', **soft, **options
  )


def their_loss(task, stats):
  """Their loss, both parts of it, after their gradient is taken."""
  mean, std = (np.float32(values) for values in stats)
  images = np.float32((np.float64(IMAGES) / 255 - mean) / std).transpose(0, 3, 1, 2)
  values = task.train()(torch.from_numpy(images.copy()), torch.from_numpy(LABELS))
  values['loss'].backward()
  parts = ('loss', 'task_loss', 'distill_loss' if 'distill_loss' in values else 'kd_loss')
  return [values[name].item() for name in parts]


class OurTeacher:
  def apply(self, variables, images):
    pixels = images.reshape(len(images), -1)
    values = {name: pixels @ kernel for name, kernel in variables['params'].items()}
    return values['logits'], values


class OurStudent:
  def init(self, key, images):
    raise NotImplementedError

  def apply(self, variables, images, *, train, rngs):
    rows = jax.tree.map(lambda values: values[: len(images)], variables['params'])
    return rows['logits'], rows


def our_task(kind, temperature, weight, features, student, teacher):
  (mean, std), theirs = student, teacher
  looks = bundle.Preprocess('resize', (SIDE, SIDE), *theirs)
  answers = bundle.Bundle(OurTeacher(), WEIGHTS, tuple('abcde'), looks, 'linear')
  task = classify.classify(
    OurStudent(),
    classes=tuple('abcde'),
    preprocess=bundle.Preprocess('resize', (SIDE, SIDE), mean, std),
    columns={
      'image': Column((SIDE, SIDE, 3), np.uint8, lambda record, rng: None),
      'label': Column((), np.int32, lambda record, rng: None),
    },
    output='head' if kind == 'token' else 'logits',
  )
  task = dataclasses.replace(task, init=lambda key: jax.tree.map(jnp.asarray, tensors(features)))
  options = dict(mean=mean, std=std, kind=kind, temperature=temperature, weight=weight)
  return distil.distil(task, distil.Teacher(answers), **options)


def our_loss(task, params):
  """Our loss and its parts, means of the images, and the gradient."""
  batch = {'image': IMAGES, 'label': np.int32(LABELS), 'mask': np.ones(N, np.float32)}

  def loss(params, fixed):
    with jax.default_matmul_precision('highest'):
      total, sums, _ = task.loss(params, batch, jax.random.key(0), fixed)
    return total / N, sums

  grads, sums = jax.jit(jax.grad(loss, has_aux=True))(params, task.fixed)
  return [float(sums[name]) / N for name in ('loss', 'task_loss', 'teacher_loss')], grads


CASES = [('logits', t) for t in (None, 1.0, 0.5, 2.0, 4.0, 20.0)]
CASES += [('token', t) for t in (None, 1.0, 3.0)] + [('features', None), ('features wide', None)]


@pytest.mark.parametrize(
  'weight, stats', [(0.0, 'others'), (0.3, 'the same'), (0.5, 'others'), (1.0, 'others')]
)
@pytest.mark.parametrize('kind, temperature', CASES)
def test_a_loss_and_its_gradient_equal_timms(kind, temperature, weight, stats):
  features = F if kind == 'features wide' else G
  kind = kind.split()[0]
  student, teacher = STATISTICS[stats]
  their_student, their_teacher = TheirStudent(features, student), TheirTeacher(teacher)
  theirs = their_task(kind, temperature, weight, their_student, their_teacher)
  ours = our_task(kind, temperature, weight, features, student, teacher)
  params = tensors(features)
  if features == F and kind == 'features':
    layer = theirs.trainable_module.projection
    values = {'kernel': layer.weight.T, 'bias': layer.bias}
    params['projection'] = {name: v.detach().numpy().copy() for name, v in values.items()}
  drawn = jax.eval_shape(ours.init, jax.random.key(0))
  assert {n: v.shape for n, v in flat(drawn).items()} == {
    n: v.shape for n, v in flat(params).items()
  }
  expected, (losses, grads) = their_loss(theirs, student), our_loss(ours, params)
  # theirs cancels where T is large: at 20 it is off by up to 8e-6 of itself, see test_distil.py
  exact = 1e-5 if temperature == 20 else 1e-6
  np.testing.assert_allclose(losses, expected, rtol=exact, atol=exact)
  their_grads = {name: value.grad for name, value in their_student.values.items()}
  if 'projection' in params:
    their_grads |= {'projection/kernel': layer.weight.grad.T, 'projection/bias': layer.bias.grad}
  for name, grad in flat(grads).items():
    their_grad = 0.0 if their_grads[name] is None else their_grads[name].numpy()
    np.testing.assert_allclose(grad, their_grad + 0 * grad, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('stats', STATISTICS)
def test_the_teachers_pixels_are_those_of_timm(stats):
  (mean, std), others = STATISTICS[stats]
  images = numbers(2, 4, 4, 3, seed=7)
  wrapped = timm_tasks.DistillationTeacher(TheirTeacher(others))
  theirs = wrapped.normalize_input(
    torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
    *(torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)),
  )
  ours = distil.renormalized(images, (mean, std), others)
  # pixels near 5, where float32 resolves 5e-7
  np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('weight', [0.3, 1.0])
def test_hard_answers_are_the_cross_entropy_with_timms_labels(weight):
  student, teacher = STATISTICS['others']
  losses, grads = our_loss(our_task('hard', None, weight, G, student, teacher), tensors(G))
  theirs = their_task('token', None, weight, TheirStudent(G, student), TheirTeacher(teacher))
  theirs.trainable_module.forward = types.MethodType(  # one head in the place of both
    lambda self, images: (self.values['logits'],) * 2, theirs.trainable_module
  )
  np.testing.assert_allclose(losses, their_loss(theirs, student), rtol=1e-6, atol=1e-6)
  expected = theirs.trainable_module.values['logits'].grad.numpy()
  np.testing.assert_allclose(grads['logits'], expected, rtol=1e-5, atol=1e-6)


# Whole models


def loaded(module, folder):
  folder.mkdir()
  peers.save_timm(module, folder)
  return vit_jax.load(folder)


VIT = dict(img_size=32, embed_dim=64, depth=2, num_heads=4, num_classes=K)


@pytest.mark.parametrize(
  'kind, temperature, arch, teacher',
  [
    ('logits', 2.0, 'vit_tiny_patch16_224', 'resnetv2_50x1_bit'),
    ('token', None, 'deit_tiny_distilled_patch16_224', 'vit_tiny_patch16_224'),
    ('features', None, 'vit_tiny_patch16_224', 'mixer_s32_224'),
  ],
)
def test_a_model_of_timm_learns_from_another_as_it_does_there(
  kind, temperature, arch, teacher, tmp_path
):
  student = peers.seeded(timm.create_model(arch, **VIT))
  fields = VIT if teacher.startswith('vit') else dict(num_classes=K)
  fields |= dict(img_size=32) if teacher.startswith('mixer') else {}
  module = peers.seeded(timm.create_model(teacher, **fields))
  stats = ((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
  student.pretrained_cfg = student.pretrained_cfg | dict(zip(('mean', 'std'), stats))
  theirs = their_task(kind, temperature, 0.4, student, module)
  run, answers = loaded(student, tmp_path / 'student'), loaded(module, tmp_path / 'teacher')
  looks = dataclasses.replace(answers.preprocess, size=(32, 32))
  answers = distil.Teacher(dataclasses.replace(answers, preprocess=looks))
  task = classify.classify(
    run.model,
    classes=tuple('abcde'),
    preprocess=bundle.Preprocess('resize', (32, 32), *stats),
    columns={
      'image': Column((32, 32, 3), np.uint8, lambda record, rng: None),
      'label': Column((), np.int32, lambda record, rng: None),
    },
    output='head' if kind == 'token' else 'logits',
  )
  options = dict(zip(('mean', 'std'), stats)) | dict(kind=kind, temperature=temperature, weight=0.4)
  task = distil.distil(task, answers, **options)
  images = np.random.default_rng(1).integers(0, 256, (N, 32, 32, 3), np.uint8)
  pixels = np.float32((images / 255 - np.array(stats[0])) / np.array(stats[1]))
  values = theirs.train()(
    torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(LABELS)
  )
  values['loss'].backward()
  params = run.params
  if kind == 'features':
    layer = theirs.trainable_module.projection
    bias, kernel = (v.detach().numpy().copy() for v in (layer.bias, layer.weight.T))
    params = {**params, 'projection': {'kernel': kernel, 'bias': bias}}
  batch = {'image': images, 'label': np.int32(LABELS), 'mask': np.ones(N, np.float32)}

  def loss(params, fixed):
    with jax.default_matmul_precision('highest'):
      return task.loss(params, batch, jax.random.key(0), fixed)[0] / N

  ours, grads = jax.jit(jax.value_and_grad(loss))(params, task.fixed)
  # whole networks in float32, each side with sums in an order of its own
  np.testing.assert_allclose(ours, values['loss'].item(), rtol=5e-6)
  gradient = copy.deepcopy(student)
  with torch.no_grad():
    for mine, original in zip(gradient.parameters(), student.parameters()):
      mine.copy_(torch.zeros_like(original) if original.grad is None else original.grad)
  expected = flat(loaded(gradient, tmp_path / 'gradient').params)
  largest = max(np.abs(value).max() for value in expected.values())
  for name, grad in flat(grads).items():
    if not name.startswith('projection'):
      np.testing.assert_allclose(grad, expected[name], atol=1e-5 * largest, err_msg=name)
