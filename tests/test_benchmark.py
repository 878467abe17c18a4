"""What the benchmarks count, divide and promise; how fast anything is, no test says."""

import dataclasses
import json
import math
import sys

import jax
import jax.numpy as jnp
import pytest

from vit_jax import __main__ as vit
from vit_jax.commands import bench
from vit_jax.commands.bench import Case, Worker

TINY = Case('ViT-Ti/16', batch=2, image_size=32, dtype='float32', depth=2, unroll=1)


@pytest.fixture(scope='module')
def programs():
  return {mode: bench.compile_case(dataclasses.replace(TINY, mode=mode)) for mode in bench.MODES}


@pytest.mark.parametrize(('model', 'gflop'), [('ViT-B/16', '35.13'), ('ViT-L/16', '123.11')])
def test_flops_are_the_published_ones_and_an_update_is_three_forward_passes(model, gflop):
  flops = Case(model, 'infer').flops()
  assert f'{flops / 1e9:.2f}' == gflop
  assert Case(model, 'train').flops() == 3 * flops


def test_mfu_is_flops_times_rate_over_the_peak():
  case = Case('ViT-B/16', 'train', batch=256)
  report = bench.report({'peak_flops': 989e12}, case, [256 / 3750] * 3)
  assert report['mfu'] == pytest.approx(3 * 35.13e9 * 3750 / 989e12, rel=1e-3)
  assert report['images_per_second']['median'] == pytest.approx(3750)
  assert bench.report({'peak_flops': None}, case, [1.0])['mfu'] is None


def test_a_ratio_is_of_medians_and_of_turns_side_by_side():
  ratio = bench.ratio([1.0, 2.0, 4.0], [2.0, 2.0, 2.0])
  assert ratio == dict(of_medians=1.0, min=0.5, median=1.0, max=2.0)


def test_workers_take_turns():
  taken = []

  class Recorder:
    def __init__(self, name):
      self.name = name

    def turn(self):
      taken.append(self.name)
      return 1.0

  workers = {name: Recorder(name) for name in 'ab'}
  assert bench.take_turns(workers, 3) == {'a': [1.0] * 3, 'b': [1.0] * 3}
  assert ''.join(taken) == 'ababab'
  assert bench.take_turns(workers, 3, until=0) == {'a': [1.0], 'b': [1.0]}


@pytest.mark.gpu
@pytest.mark.parametrize('mode', bench.MODES)
def test_steps_take_time_and_their_facts_are_complete(programs, mode):
  program = programs[mode]
  case = Case(**{f.name: program.facts[f.name] for f in dataclasses.fields(Case)})
  assert case == dataclasses.replace(TINY, mode=mode)
  report = bench.report(program.facts, case, [program.seconds(2) / 2])
  for name in ('lowering_seconds', 'compile_seconds', 'first_step_seconds', 'tflops'):
    assert math.isfinite(report[name]) and report[name] > 0
  assert 0 < report['images_per_second']['median'] < math.inf
  assert report['attention'] == 'xla'  # float32


@pytest.mark.gpu
def test_the_measured_updates_are_finite_and_lower_the_loss(programs):
  steps = programs['train'].steps
  first = jax.device_get(next(steps))
  for _ in range(20):
    last = jax.device_get(next(steps))
  assert last['finite'] and last['sums']['loss'] < first['sums']['loss']


def test_a_training_step_updates_its_state_in_place(programs):
  facts = programs['train'].facts
  assert facts['program_bytes']['aliased'] >= facts['state_bytes']
  assert facts['argument_copies'] == 0


def test_copies_of_arguments_are_counted():
  def copies(step):
    a = jnp.ones((64, 64))
    program = jax.jit(step, donate_argnums=(0, 1)).lower(a, a).compile().as_text()
    return bench.argument_copies(program)

  assert copies(lambda a, b: (a + 1, b * 2)) == 0
  assert copies(lambda a, b: (b @ a, a * 2)) > 0  # the second output goes where b was


def test_the_command_prints_json_with_its_provenance(capsys):
  code = vit.main(['bench', *TINY.arguments(), '--mode=infer', '--turns=2', '--steps=1'])
  printed = json.loads(capsys.readouterr().out)
  assert code == 0
  assert {'commit', 'date', 'versions', 'cpu', 'command'} <= set(printed['provenance'])
  (report,) = printed['results']
  assert report['images_per_second']['min'] > 0 and report['turns'] == 2
  assert report['peak_bytes']['host'] is None or report['peak_bytes']['host'] > 0
  assert report['device']['count'] == jax.device_count()


def test_bad_input_is_named(capsys):
  assert vit.main(['bench', 'ViT-X/16']) == 2
  assert "unknown model 'ViT-X/16'" in capsys.readouterr().err
  assert vit.main(['bench', 'ViT-B/16', '--image-size=30']) == 2
  assert '30x30' in capsys.readouterr().err


def test_a_worker_that_fails_gives_its_last_words():
  with pytest.raises(RuntimeError, match='no such thing'):
    Worker([sys.executable, '-c', 'raise SystemExit("no such thing")'], limit=60)
  with pytest.raises(RuntimeError, match='ran past'):
    Worker([sys.executable, '-c', 'input()'], limit=0.1)
