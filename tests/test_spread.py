"""How spread features are: two numbers as NumPy has them, and what a collapse does to a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import commands, main
from vit_jax.tasks import spread

N, F = 48, 16


def numbers(features, reference=None):
  """Those of `spread.read`, of features in two batches, the last of which is half padding."""
  reference = jnp.asarray(features[0] if reference is None else reference, jnp.float32)
  padded = np.concatenate([features, np.full((8, F), 7.0)]).astype(np.float32)
  mask = (np.arange(len(padded)) < len(features)).astype(np.float32)
  half = len(padded) // 2
  parts = [spread.sums(padded[s], reference, mask[s]) for s in (slice(half), slice(half, None))]
  sums = {name: sum(np.float64(part[name]) for part in parts) for name in spread.SUMS}
  return spread.read(sums | {'count': np.float64(len(features))}) | {'count': len(features)}


def expected(features):
  """The same by the singular values of all features, in float64."""
  values = np.linalg.svd(features - features.mean(0), compute_uv=False)
  shares = values[: len(features) - 1] / values.sum()
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  rank = np.exp(-(shares * np.log(shares)).sum())
  return rank, np.sqrt((features / lengths).var(0).sum())


def drawn(count=N, offset=0.0, rank=F):
  rng = np.random.default_rng(0)
  return offset + rng.normal(size=(count, rank)) @ rng.normal(size=(rank, F))


@pytest.mark.parametrize('features', [drawn(), drawn(offset=100), drawn(count=10)], ids=range(3))
def test_rank_and_deviation_are_those_of_all_features_at_once(features):
  values = numbers(features)
  # Of products in float32; what a large mean takes away is taken off before.
  measured = [values['effective_rank'], values['feature_std']]
  np.testing.assert_allclose(measured, expected(features), rtol=1e-3)


def test_features_that_differ_in_all_directions_alike_have_the_full_rank():
  values = numbers(np.concatenate([np.eye(F), -np.eye(F)]))
  np.testing.assert_allclose([values['effective_rank'], values['feature_std']], [F, 1], rtol=1e-5)
  assert spread.collapse(values) == ''


@pytest.mark.parametrize(
  'features, rank',
  [(np.ones((N, F)), 0), (drawn(rank=1), 1), (np.ones((N, F)) + 1e-4 * drawn(), None)],
  ids=['the same', 'along a line', 'nearly the same'],
)
def test_features_that_are_hardly_told_apart_have_collapsed(features, rank):
  values = numbers(features, reference=np.zeros(F))
  assert 'the features have collapsed' in spread.collapse(values)
  if rank is not None:
    np.testing.assert_allclose(values['effective_rank'], rank, atol=1e-2)


def test_the_average_is_judged_where_it_is_delivered():
  values = numbers(drawn())
  averages = {f'ema_{name}': 0.0 for name in spread.RANKS}
  assert spread.collapse(values) == '' != spread.collapse(values | averages)


def test_a_run_whose_features_collapse_is_saved_and_fails_where_that_is_asked_for(tmp_path, capsys):
  """Of images that are all the same."""
  images, labels = np.full((24, 8, 8), 90, np.uint8), np.arange(24) % 2
  np.savez(tmp_path / 'blank.npz', images=images, labels=labels)
  fields = {
    'task': 'mae',
    'data.source': f'arrays:{tmp_path}/blank.npz',
    'data.test': '',
    'batch_size': 8,
    'duration': 3,
    'evaluation.every': 2,
    'evaluation.stop_on_collapse': True,
    'model.depth': 1,
    'model.width': 16,
    'model.heads': 2,
    'model.mlp_dim': 32,
    'mae.decoder_depth': 1,
    'mae.decoder_width': 16,
    'mae.decoder_heads': 2,
    'objective.smoothing': 0.0,
    'optimizer.name': 'sgd',
    'optimizer.weight_decay': 0.0,
    'system.report': False,
  }
  words = [f'--config.{name}={value}' for name, value in fields.items()]
  run = tmp_path / 'run'
  assert main.main(['--config=digits', f'--workdir={run}', *words]) == commands.FAILED
  captured = capsys.readouterr()
  assert 'vit train: step 2, saved: the features have collapsed: feature_std 0' in captured.err
  assert 'step 2: the features have collapsed' in captured.out
  assert (run / 'checkpoints' / '2').is_dir() and not (run / 'model').exists()
