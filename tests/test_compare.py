"""`vit compare` and `vit sweep`: pairs, groups, pages and grids."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

from tests import browser
from vit_jax import commands, config, files, plan, workdir
from vit_jax.__main__ import main
from vit_jax.commands import sweep
from vit_jax.evaluate import paired, results
from vit_jax.sources import open_source
from vit_jax.views import compare_page, comparison

NAMES = [str(digit) for digit in range(10)]


def test_mcnemars_test_is_the_binomial_one_of_the_images_that_one_alone_has_right():
  first = np.array([1] * 20 + [1] * 2 + [0] * 10)
  second = np.array([1] * 20 + [0] * 2 + [1] * 10)
  result = paired.compare(first, second)
  tail = sum(math.comb(12, k) for k in range(3)) / 2**12
  assert (result.better, result.worse, result.test) == (10, 2, paired.MCNEMAR)
  assert result.p == pytest.approx(2 * tail, rel=1e-12)
  assert result.difference == pytest.approx(8 / 32)


def test_of_groups_the_signs_of_the_differences_are_random():
  differences = np.array([0.5, 0.5, 1, -0.5, 0.5, 1, 1, 0.5])
  signs = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
  exact = (abs(signs @ differences) >= abs(differences.sum())).mean()
  result = paired.compare(np.zeros(20), np.pad(differences, (0, 12)))
  assert result.test == paired.FLIPS
  assert result.p == pytest.approx(exact, abs=0.01)
  assert paired.compare(np.full(4, 0.5), np.full(4, 0.5)).p == 1


def test_images_that_are_not_the_same_are_no_pairs():
  with pytest.raises(ValueError, match='pairs of images'):
    paired.compare(np.ones(3), np.ones(4))


def write_run(folder, *, seed=0, rate=0.001, guesses=None, steps=(10, 20), split='test'):
  """The files of a finished run on the digits that took the test images for these classes."""
  fields = (f'seed={seed}', f'schedule.learning_rate={rate}', f'data.test={split}')
  folder.mkdir(parents=True)
  files.write_json(folder / 'config.json', workdir.as_json(config.load('digits', fields)))
  files.write_json(folder / 'data.json', {'images': 1259, 'classes': NAMES})
  rows = [
    {'step': step, 'train/loss': 2 / step + seed / 10, 'validation/loss': 3 / step + seed / 10}
    for step in steps
  ]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (folder / 'model').mkdir()
  source = open_source('digits', 'test')
  labels = np.array([source[index]['label'] for index in range(len(source))])
  guesses = labels if guesses is None else guesses
  right = guesses == labels
  images = {
    'index': np.arange(len(labels)),
    'label': labels,
    'guess': guesses,
    'right': right.astype(int),
    'confidence': np.full(len(labels), 0.5),
    'loss': np.full(len(labels), 0.25),
  }
  count = [int((labels == k).sum()) for k in range(10)]
  classes = [
    {'name': name, 'count': n, 'precision': 1.0, 'recall': 1.0} for name, n in zip(NAMES, count)
  ]
  values = {'source': 'digits', 'split': split, 'use': 'test', 'step': steps[-1]}
  values |= {'count': len(labels), 'accuracy': float(right.mean()), 'classes': classes}
  values['images'] = {name: column.tolist() for name, column in images.items()}
  results.write(folder, values)
  return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two runs of one rate that are right but for the first 10 and 14 images, and one of another."""
  root = tmp_path_factory.mktemp('compared')
  source = open_source('digits', 'test')
  labels = np.array([source[index]['label'] for index in range(len(source))])

  def wrong(count):
    return np.where(np.arange(len(labels)) < count, (labels + 1) % 10, labels)

  return [
    write_run(root / 'a0', seed=0, guesses=wrong(10)),
    write_run(root / 'a1', seed=1, guesses=wrong(14)),
    write_run(root / 'b<0>', seed=0, rate=0.003, steps=(10, 20, 30)),
  ]


def test_runs_that_differ_by_their_seed_alone_are_one_group(runs):
  compared = comparison.read([*map(str, runs)])
  assert [len(group.members) for group in compared.groups] == [2, 1]
  assert compared.groups[0].name == 'learning_rate 0.001 (2 seeds)'
  assert compared.fields == {
    'schedule.learning_rate': [0.001, 0.001, 0.003],
    'seed': [0, 1, 0],
  }
  count = 359
  expected = [1 - 10 / count, 1 - 14 / count]
  assert compared.groups[0].numbers()['accuracy'] == pytest.approx(expected)
  (test,) = compared.tests
  assert (test.result.better, test.result.worse) == (14, 0)
  assert test.result.difference == pytest.approx(12 / count)
  assert compared.disagreements == list(range(14))  # those that both have wrong come first
  assert len(compared.photos.uris) == 14
  assert comparison.labels(compared.members[0].values)[0] == compared_label(0)


def compared_label(index):
  return NAMES[open_source('digits', 'test')[index]['label']]


def test_a_group_has_a_mean_and_a_band_at_the_steps_that_all_have(runs):
  compared = comparison.read([*map(str, runs)])
  chart = compare_page.chart(compared.groups, 'train/loss')
  name = compared.groups[0].name
  np.testing.assert_allclose(chart.lines[name], [[10, 20], [0.25, 0.15]])
  np.testing.assert_allclose(chart.bands[name], [[0.2, 0.1], [0.3, 0.2]])
  assert [*chart.bands] == [name]
  assert len(chart.lines[compared.groups[1].name][0]) == 3


def test_runs_measured_on_other_images_are_not_tested(runs, tmp_path):
  other = write_run(tmp_path / 'c', seed=3, rate=0.01, split='validation')
  compared = comparison.read([str(runs[0]), str(other)])
  (test,) = compared.tests
  assert test.result is None and 'split validation' in comparison.test_line(test)
  assert compared.disagreements == []


def test_a_run_that_is_not_measured_is_named_and_takes_no_numbers_from_its_group(runs, tmp_path):
  for name in ('damaged', 'running'):
    folder = shutil.copytree(runs[1], tmp_path / name)
    (folder / 'evaluation.json').write_text('{')
  shutil.rmtree(tmp_path / 'running/model')
  compared = comparison.read([str(runs[0]), *(str(tmp_path / n) for n in ('damaged', 'running'))])
  (group,) = compared.groups
  assert group.numbers()['accuracy'] == pytest.approx([1 - 10 / 359])
  lines = ['damaged is finished, not measured', 'running is not finished, not measured']
  assert compared.left_out[:2] == lines


def test_the_same_seed_twice_adds_nothing_and_is_named(runs, tmp_path):
  shutil.copytree(runs[0], tmp_path / 'again')
  compared = comparison.read([str(runs[0]), str(tmp_path / 'again')])
  assert compared.left_out == ['a0 and again have the same config and seed 0']


def test_a_field_that_is_newer_than_a_run_differs_only_from_what_is_not_its_default(runs, tmp_path):
  older = files.read_object(shutil.copytree(runs[1], tmp_path / 'older') / 'config.json')
  del older['dino'], older['data']['repeats'], older['schedule']['learning_rate']
  files.write_json(tmp_path / 'older/config.json', older)
  assert config.default().schedule.learning_rate == 0.001
  compared = comparison.read([str(runs[0]), str(tmp_path / 'older')])
  assert compared.fields == {'seed': [0, 1]} and len(compared.groups) == 1
  compared = comparison.read([str(runs[2]), str(tmp_path / 'older')])
  assert compared.fields == {'schedule.learning_rate': [0.003, 0.001], 'seed': [0, 1]}


def test_a_table_a_page_and_its_json_have_the_same_numbers(runs, tmp_path, capsys):
  assert main(['compare', *map(str, runs), '--out', str(tmp_path / 'out')]) == 0
  table = capsys.readouterr().out
  values = json.loads((tmp_path / 'out/compare.json').read_text())
  page = (tmp_path / 'out/compare.html').read_text()
  mean = values['groups'][0]['means']['accuracy']
  assert mean == pytest.approx(1 - 12 / 359)
  assert values['tests'][0]['p'] <= 1e-3
  for text in (table, page):
    assert f'{100 * mean:.2f}% ± 0.79%' in text
    assert 'better on 14 and worse on 0 of the 14 images' in text
  assert 'b<0>' not in page and 'b&lt;0&gt;' in page
  assert str(tmp_path) not in page and str(runs[0].parent) not in page


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['{a}'], 'at least two runs'),
    (['{a}', '{a}/../a0'], 'are the same run'),
    (['{a}', '{a}/model'], 'is not the folder of a run'),
    (['{a}', '{a}nowhere'], 'is not the folder of a run'),
  ],
)
def test_what_cannot_be_compared_is_one_line_and_writes_nothing(
  runs, words, line, tmp_path, capsys
):
  words = [word.format(a=runs[0]) for word in words]
  assert main(['compare', *words, '--out', str(tmp_path / 'out')]) == commands.BAD_INPUT
  error = capsys.readouterr().err
  assert len(error.splitlines()) == 1 and line in error
  assert not (tmp_path / 'out').exists()


def test_the_page_opens_photos_and_fits_a_phone_without_an_error(runs, tmp_path):
  assert main(['compare', *map(str, runs), '--out', str(tmp_path)]) == 0
  with browser.chromium() as tab:
    tab.window(390, 800)
    tab.open(tmp_path / 'compare.html')
    assert tab.run('document.documentElement.scrollWidth') <= 390
    assert tab.run("document.querySelectorAll('.line .band').length") == 2
    tab.click('.strip .photo')
    assert tab.run("document.getElementById('zoom').open")
    assert not tab.errors
    others = [address for address in tab.requested if not address.startswith('data:')]
    assert others == [(tmp_path / 'compare.html').as_uri()]


# Grids


def test_a_grid_is_every_choice_of_values_the_last_varying_first(tmp_path):
  axes = ['schedule.learning_rate=1e-3,3e-3', 'seed=0:2']
  points = sweep.grid('digits', axes, ['duration=5'], tmp_path)
  assert [point.folder.name for point in points] == [
    'learning_rate=1e-3,seed=0',
    'learning_rate=1e-3,seed=1',
    'learning_rate=3e-3,seed=0',
    'learning_rate=3e-3,seed=1',
  ]
  assert points[1].fields == ('duration=5', 'schedule.learning_rate=1e-3', 'seed=1')


def test_commas_in_brackets_do_not_part_values():
  axis = 'randaugment(2,15),flip|crop(8,8)'
  assert sweep.axis_values('data.augment', axis) == ['randaugment(2,15)', 'flip|crop(8,8)']


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['seed'], 'FIELD=VALUES'),
    (['seed=3:3'], 'has no values'),
    (['seed=1,,2'], 'an empty value'),
    (['seed=1,1'], 'a value comes twice'),
    (['seed=1', 'seed=2'], 'seed is set twice'),
    (['duration=5,6', '--config.duration=3'], 'duration is set twice'),
    (['schedule.learning_rate=0.1,-1'], 'learning_rate'),
    (['schedule.lerning_rate=0.1'], 'learning_rate'),
    (['seed=0:9999', 'batch_size=1:9999'], 'more than'),
  ],
)
def test_a_grid_that_is_none_is_one_line_before_the_first_run(words, line, tmp_path, capsys):
  words = ['sweep', '--config=digits', f'--workdir={tmp_path / "s"}', '--grid', *words]
  assert main(words) == commands.BAD_INPUT
  error = capsys.readouterr().err
  assert len(error.splitlines()) == 1 and line in error
  assert not (tmp_path / 's').exists()


def test_the_lines_for_a_cluster_are_printed_and_nothing_runs(tmp_path, capsys):
  words = [
    'sweep',
    '--config=digits',
    f'--workdir={tmp_path / "s"}',
    '--grid',
    'seed=0:2',
    '--print',
  ]
  assert main(words) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 and not (tmp_path / 's').exists()
  assert re.fullmatch(r'vit train --config=digits --workdir=\S+/seed=1 --config\.seed=1', lines[1])


def recorded(monkeypatch, *functions):
  """The names of functions, each (module, name), as they are called from now on."""
  calls = []

  def record(name, function):
    return lambda *args, **options: calls.append(name) or function(*args, **options)

  for module, name in functions:
    monkeypatch.setattr(module, name, record(name, getattr(module, name)))
  return calls


def test_a_failed_run_is_named_the_others_go_on_and_finished_ones_are_kept(
  runs, tmp_path, capfd, monkeypatch
):
  folder = tmp_path / 's'
  for place, seed in enumerate((0, 1, 0)):
    shutil.copytree(runs[seed], folder / f'seed={place}')
    planned = plan.make_plan(config.load('digits', (f'seed={seed}',))).config
    files.write_json(folder / f'seed={place}/config.json', workdir.as_json(planned))
  (folder / 'seed=3').mkdir()
  (folder / 'seed=3' / 'config.json').write_text('{"damaged')
  calls = recorded(monkeypatch, (sweep, 'train_one'), (plan, 'make_plan'), (jax, 'process_index'))
  words = ['sweep', '--config=digits', f'--workdir={folder}', '--grid', 'seed=0,1,2,3']
  assert main(words) == commands.INCOMPLETE
  assert calls[0] == 'train_one'  # whose process has the devices to itself
  output = capfd.readouterr()
  assert 'seed=3 failed with exit code 2' in output.err
  assert 'run 4 of 4' in output.err
  assert 'seed=2 holds another run: seed is 0 there and 2 here' in output.err
  assert (folder / 'compare.html').exists() and '± 0.79%' in output.out
