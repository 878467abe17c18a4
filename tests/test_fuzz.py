"""What benchmarks/fuzz.py spoils is accepted or refused in one line, at a reduced count."""

import importlib.util
import pathlib

import numpy as np
import pytest

FILE = pathlib.Path(__file__).parents[1] / 'benchmarks' / 'fuzz.py'
COUNT = 12  # cases of a kind


@pytest.fixture(scope='module')
def fuzz():
  spec = importlib.util.spec_from_file_location('fuzz', FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  with module.SERVERS:
    yield module


KINDS = (
  'configs', 'images', 'npz', 'safetensors', 'pytorch', 'huggingface', 'timm', 'bundle', 'exported',
  'csv', 'arrays', 'tfrecord', 'arrayrecord', 'json', 'run', 'serve',
)  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_a_spoiled_input_is_accepted_or_refused_in_one_line(fuzz, kind, tmp_path, capfd):
  case = fuzz.KINDS[kind](tmp_path)
  capfd.readouterr()
  results = [fuzz.outcome(case, np.random.default_rng((1, number))) for number in range(COUNT)]
  assert [result.line for result in results if result.result == 'fault'] == []
  assert 'refused' in {result.result for result in results}
  assert ''.join(capfd.readouterr()) == ''  # of a C library


def test_a_traceback_several_lines_and_a_long_line_are_faults(fuzz):
  def raises(error):
    def case(rng):
      raise error

    return case

  rng = np.random.default_rng(0)
  assert fuzz.outcome(raises(KeyError('x')), rng).result == 'fault'
  assert fuzz.outcome(lambda rng: fuzz.sys.stderr.write('x' * 301 + '\n'), rng).result == 'fault'
  assert fuzz.outcome(raises(ValueError('no\nline ' + 'x' * 1000)), rng).result == 'refused'
  assert fuzz.outcome(lambda rng: 1, rng).result == 'accepted'
