"""An ONNX file is `apply`, by onnxruntime, to 1e-5; and its check and its limits are real."""

import json
import pathlib
import re
import shlex

import numpy as np
import onnxruntime
import pytest

import vit_jax
from tests import test_export as laws
from tests.conftest import drawn, shapes
from vit_jax import __main__ as vit
from vit_jax import bundle, export

MADE = ('vit', 'sigmoid', 'map', 'patches', 'mixer')
HYBRID = dict(depth=1, width=16, heads=2, mlp_dim=16, patch=8, stem=(1, 1), stem_width=32)


@pytest.mark.parametrize('family', MADE)
def test_onnx_gives_the_scores_of_apply_for_every_batch_size(family, tmp_path):
  source = laws.made(family)
  export.write(tmp_path / 'model.onnx', source, check=False)
  session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
  (given,), (got,) = session.get_inputs(), session.get_outputs()
  assert (given.name, given.type, given.shape) == ('images', 'tensor(uint8)', ['batch', 8, 12, 3])
  assert (got.name, got.type, got.shape[-1]) == ('scores', 'tensor(float)', 5)
  for count in (1, 2, 5):
    images = laws.uint8(count)
    (scores,) = session.run(None, {'images': images})
    np.testing.assert_allclose(scores, laws.applied(source, images), rtol=0, atol=1e-5)


def test_the_check_of_onnx_tells_the_difference_in_one_line(tmp_path):
  (line,) = export.write(tmp_path / 'model.onnx', laws.made())
  found = re.fullmatch(r'onnx: differs by (\S+) from apply, in batches of 1 and 3 on a CPU', line)
  assert float(found[1]) <= 1e-5
  told = json.loads((tmp_path / 'model.onnx.json').read_text())
  assert (told['kind'], told['classes']) == ('onnx', list(laws.CLASSES))
  assert told['sha256'] == export.digest(tmp_path / 'model.onnx')


def test_the_line_of_the_page_writes_an_onnx_file(tmp_path, monkeypatch):
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'export.md'
  (line,) = [line for line in page.read_text().splitlines() if '--to onnx --out' in line]
  bundle.write(tmp_path / 'runs/flowers/model', laws.made())
  monkeypatch.chdir(tmp_path)
  assert vit.main(shlex.split(line)[1:]) == 0
  assert (tmp_path / 'flowers.onnx').is_file()


def test_an_onnx_file_beyond_1e_5_is_not_written(tmp_path, monkeypatch):
  def spoilt(path, source):
    mean = tuple(value + 1e-3 for value in source.preprocess.mean)
    preprocess = bundle.Preprocess('resize', source.preprocess.size, mean, source.preprocess.std)
    return export.write_onnx(path, bundle.Bundle(**vars(source) | {'preprocess': preprocess}))

  monkeypatch.setitem(export.WRITERS, 'onnx', spoilt)
  with pytest.raises(ValueError, match=r'nothing was written: onnx: differs by .* more than 1e-05'):
    export.write(tmp_path / 'model.onnx', laws.made())
  assert list(tmp_path.iterdir()) == []


def test_a_hybrid_is_refused(tmp_path):
  model = vit_jax.build('R26+ViT-S/32', num_classes=5, **HYBRID)
  params = drawn(shapes(model, (16, 16)))
  source = laws.made(
    model=model,
    params=params,
    name='R26+ViT-S/32',
    preprocess=bundle.Preprocess('resize', (16, 16)),
  )
  with pytest.raises(ValueError, match=r'does not convert the pooling of R26\+ViT-S/32'):
    export.write(tmp_path / 'model.onnx', source)
