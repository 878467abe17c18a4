"""An ONNX file is `apply`, by onnxruntime, to 1e-5; and its check and its limits are real."""

import dataclasses
import importlib.metadata
import json
import pathlib
import re
import shlex

import numpy as np
import onnxruntime
import pytest

from tests import test_export as laws
from vit_jax import __main__ as vit
from vit_jax import bundle, export, predict

MADE = ('vit', 'sigmoid', 'map', 'patches', 'deit', 'pooled', 'mixer')


@pytest.mark.parametrize('family', MADE)
def test_onnx_gives_the_scores_of_apply_for_every_batch_size(family, tmp_path):
  source = laws.made(family)
  export.write(tmp_path / 'model.onnx', source, check=False)
  session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
  (taken,), (got,) = session.get_inputs(), session.get_outputs()
  assert (taken.name, taken.type, taken.shape) == ('images', 'tensor(uint8)', ['batch', 8, 12, 3])
  assert (got.name, got.type, got.shape[-1]) == ('scores', 'tensor(float)', 5)
  for count in (1, 2, 5):
    images = laws.uint8(count)
    (scores,) = session.run(None, {'images': images})
    apart, in_odds = export.differences(scores, laws.applied(source, images))
    assert apart <= 1e-5 and in_odds <= 1e-4


def test_onnx_gives_the_features_of_a_model_without_classes(tmp_path):
  source = laws.square(())
  (line,) = export.write(tmp_path / 'encoder.onnx', source)
  assert re.match(r'onnx: differs by \S+ of the largest feature from apply', line)
  session = onnxruntime.InferenceSession(tmp_path / 'encoder.onnx')
  assert [output.name for output in session.get_outputs()] == ['features']
  images = laws.uint8(2, laws.SQUARE)
  features = predict.Run(**vars(source)).features(images)
  np.testing.assert_allclose(
    session.run(None, {'images': images})[0], features, atol=1e-4 * np.abs(features).max()
  )


def test_the_check_of_onnx_tells_the_difference_in_one_line(tmp_path):
  (line,) = export.write(tmp_path / 'model.onnx', laws.made())
  match = re.fullmatch(
    r'onnx: differs by (\S+) from apply, in log-odds by (\S+) of the largest, '
    r'in batches of 1 and 3 on a CPU',
    line,
  )
  assert float(match[1]) <= 1e-5 and float(match[2]) <= 1e-4
  description = json.loads((tmp_path / 'model.onnx.json').read_text())
  assert (description['kind'], description['classes']) == ('onnx', list(laws.CLASSES))
  assert description['sha256'] == export.digest(tmp_path / 'model.onnx')


def test_the_line_of_the_page_writes_an_onnx_file(tmp_path, monkeypatch):
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'export.md'
  (line,) = [line for line in page.read_text().splitlines() if '--to onnx --out' in line]
  bundle.write(tmp_path / 'runs/flowers/model', laws.made())
  monkeypatch.chdir(tmp_path)
  assert vit.main(shlex.split(line)[1:]) == 0
  assert (tmp_path / 'flowers.onnx').is_file()


def unlikely():
  """A model that gives every class a logit near -12, as one of many thousands does."""
  source = laws.made('sigmoid')
  head = {name: 0.1 * leaf - 12 * (name == 'bias') for name, leaf in source.params['head'].items()}
  return dataclasses.replace(source, params=source.params | {'head': head})


def rolled(source):
  """With its classes in another order."""
  head = {name: np.roll(leaf, 1, axis=-1) for name, leaf in source.params['head'].items()}
  return dataclasses.replace(source, params=source.params | {'head': head})


def test_small_probabilities_are_those_of_apply_each_to_its_own_size(tmp_path):
  export.write(tmp_path / 'model.onnx', unlikely(), check=False)
  scores = export.open_onnx(tmp_path / 'model.onnx')(laws.uint8(3))
  assert scores.max() < 1e-4
  np.testing.assert_allclose(scores, laws.applied(unlikely(), laws.uint8(3)), rtol=1e-4)


@pytest.mark.parametrize(
  ('source', 'change', 'message'),
  [
    (laws.made, laws.dimmer, 'more than 1e-05 in probability'),
    (unlikely, rolled, 'more than 0.0001 in log-odds'),
  ],
)
def test_an_onnx_file_that_differs_is_not_written(source, change, message, tmp_path, monkeypatch):
  right = export.write_onnx
  monkeypatch.setitem(export.WRITERS, 'onnx', lambda path, source: right(path, change(source)))
  with pytest.raises(ValueError, match=f'nothing was written: onnx: differs by .* {message}'):
    export.write(tmp_path / 'model.onnx', source())
  assert list(tmp_path.iterdir()) == []


def test_a_hybrid_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'does not convert the pooling of R26\+ViT-S/32'):
    export.write(tmp_path / 'model.onnx', laws.made('hybrid'))


def test_the_jax2onnx_that_is_advised_is_the_one_that_is_tested():
  assert importlib.metadata.version('jax2onnx') == export.JAX2ONNX
