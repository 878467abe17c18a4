"""Losses with weights and focus against torch's and torchvision's."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.interop import peers
from vit_jax.tasks import losses

sigmoid_focal_loss = peers.torchvision.ops.sigmoid_focal_loss
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2, 0])
SEVERAL = (RNG.random((6, 4)) < 0.4).astype(np.float32)  # some image has none
WEIGHTS = np.float32([0.5, 2.0, 1.0, 3.0])
TENSORS = torch.from_numpy(LOGITS), torch.from_numpy(SEVERAL)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0, 5.0])
def test_focal_is_that_of_torchvision(gamma):
  theirs = sigmoid_focal_loss(*TENSORS, alpha=-1, gamma=gamma).sum(-1)
  np.testing.assert_allclose(losses.focal(LOGITS, SEVERAL, gamma=gamma), theirs, rtol=1e-5)


def test_alpha_of_focal_is_a_weight_of_the_positives():
  theirs = sigmoid_focal_loss(*TENSORS, alpha=0.25).sum(-1)
  ours = 0.75 * losses.focal(LOGITS, SEVERAL, weights=0.25 / 0.75)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_class_weights_are_those_of_torch():
  options = {'weights': WEIGHTS[None]}
  y = np.eye(4, dtype=np.float32)[LABELS]
  theirs = functional.cross_entropy(
    TENSORS[0], torch.from_numpy(LABELS), weight=torch.from_numpy(WEIGHTS), reduction='none'
  )
  np.testing.assert_allclose(losses.softmax_cross_entropy(LOGITS, y, **options), theirs, rtol=1e-5)
  theirs = functional.binary_cross_entropy_with_logits(
    *TENSORS, pos_weight=torch.from_numpy(WEIGHTS), reduction='none'
  ).sum(-1)
  ours = losses.sigmoid_cross_entropy(LOGITS, SEVERAL, **options)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
