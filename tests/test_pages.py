"""Pages show their arrays, by mouse and keyboard, on any screen, and ask for no other file."""

import base64
import gzip
import itertools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests import browser
from tests.conftest import drawn, shapes, tiny
from vit_jax import __main__ as commands
from vit_jax import analysis, bundle, chart, main, page, predict, report
from vit_jax.evaluate import accuracy, inputs

SIZE = (8, 12)  # 2 x 3 patches
NAMES = ('rose', '<b>tulip</b>', 'fern & moss', 'oak', 'palm')


def run_of(**fields):
  """A run with drawn weights whose attention is far from even."""
  model = tiny(unroll=1, **fields)
  params = drawn(shapes(model, SIZE), scale=0.8)
  how = bundle.Preprocess('resize', SIZE)
  return predict.Run(model, params, NAMES, how, 'ViT-Ti/16')


def pixels(seed):
  return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)


@pytest.fixture(scope='module')
def run():
  return run_of(registers=2, pool='gap', class_token=True)


@pytest.fixture(scope='module')
def seen(run):
  return [page.seen(run, pixels(i), name=f'image <{i}>') for i in range(2)]


@pytest.fixture(scope='module')
def html(run, seen, tmp_path_factory):
  file = tmp_path_factory.mktemp('page') / 'attention.html'
  file.write_text(page.attention('roses & co', run.model, seen))
  return file


@pytest.fixture(scope='module')
def chromium():
  with browser.chromium() as tab:
    yield tab


@pytest.fixture
def tab(chromium, html):
  """The page, freshly opened on a desk."""
  chromium.window(1100, 900)
  chromium.open(html)
  chromium.until("document.querySelector('[data-weight]')")
  yield chromium
  assert not chromium.errors
  others = [address for address in chromium.requested if not address.startswith('data:')]
  assert others == [html.as_uri()]


def hundredths(weights):
  """As the page shows them, in hundredths of a percent."""
  return np.rint(np.float64(weights) * 1e4).astype(int).tolist()


def overlay(tab):
  """The weights that are laid over the image and its tokens, in order."""
  return tab.run(
    'Array.from(document.querySelectorAll("[data-weight]"), (cell) => +cell.dataset.weight)'
  )


def patch(row, column):
  return f'#patches [aria-label="row {row}, column {column}"]'


def choose(tab, **values):
  """Sets controls, as a user does."""
  for control, value in values.items():
    element = f'document.getElementById("{control}")'
    if control == 'mode':
      element = f'document.querySelector("[name=mode][value={value}]")'
      tab.run(f'{element}.click()')
    else:
      change = 'dispatchEvent(new Event("input", {bubbles: true}))'
      tab.run(f'{element}.value = {json.dumps(str(value))}; {element}.{change}')


def shown_weight(text):
  """'To row 1, column 2: 12.34 %' -> 1234."""
  return round(100 * float(re.search(r'([\d.]+) %$', text)[1]))


# What the page holds


def test_the_page_holds_every_weight_rounded_to_a_hundredth_of_a_percent(seen, html):
  packs = re.findall(r'id="weights-\d+">([^<]*)<', html.read_text())
  assert len(packs) == len(seen)
  for one, pack in zip(seen, packs):
    values = np.frombuffer(gzip.decompress(base64.b64decode(pack)), '<u2')
    weights, read = one.attention.weights.astype(float), one.attention.read
    layers, heads, tokens, _ = weights.shape
    kept = np.concatenate([weights, weights.mean(1, keepdims=True)], 1)
    parts = [kept] + [one.attention.rollout(discard=d).astype(float) for d in page.DISCARDS]
    rows = [np.concatenate([p, np.expand_dims(read @ p, -2)], -2).ravel() for p in parts]
    assert values.tolist() == hundredths(np.concatenate(rows))
    assert len(values) == layers * (heads + 1 + len(page.DISCARDS)) * (tokens + 1) * tokens


def test_a_class_token_that_alone_is_read_needs_no_other_query():
  one = page.seen(run_of(), pixels(0))
  assert not len(page.readers(one.attention))
  assert '"readers": []' in page.attention('a model', run_of().model, [one])


def test_of_attention_pooling_the_head_reads_what_its_probe_weighs():
  found = run_of(pool='map')
  one = page.seen(found, pixels(0))
  values = np.frombuffer(gzip.decompress(base64.b64decode(page.packed(one.attention))), '<u2')
  tokens = len(one.attention.read)
  first = values[: (tokens + 1) * tokens].reshape(tokens + 1, tokens)
  read = one.attention.pool.astype(float).mean(0)
  assert first[-1].tolist() == hundredths(read @ one.attention.weights[0, 0].astype(float))


def test_images_of_two_sizes_none_and_weights_that_are_not_finite_are_refused(run, seen):
  wider = np.zeros((3, 2, 10, 10), np.float32)
  other = analysis.Attention(wider, np.full(10, 0.1, np.float32), (1, 7), 3, (4, 4), None)
  with pytest.raises(ValueError, match='of one size'):
    page.attention('', run.model, [*seen, page.Seen('', pixels(0), [], other)])
  with pytest.raises(ValueError, match='one or more images'):
    page.attention('', run.model, [])
  broken = analysis.Attention(wider * np.nan, other.read, (1, 7), 3, (4, 4), None)
  with pytest.raises(ValueError, match='not finite'):
    page.attention('', run.model, [page.Seen('', pixels(0), [], broken)])


# In a browser


def test_pointing_at_a_patch_shows_what_it_attends_to_in_every_layer_and_head(tab, seen):
  weights = seen[0].attention.weights
  layers, heads, _, _ = weights.shape
  for layer, head in itertools.product(range(layers), range(heads)):
    choose(tab, layer=layer + 1, head=head)
    for row, column in ((1, 1), (2, 3)):
      tab.hover(patch(row, column))
      token = 3 + 3 * (row - 1) + column - 1
      assert overlay(tab) == hundredths(weights[layer, head, token])
      assert tab.text('#query') == f'Query: row {row}, column {column}'


@pytest.mark.parametrize('fused', ['mean', 'max', 'min'])
def test_heads_are_joined_as_the_arrays_say(tab, seen, fused):
  choose(tab, layer=2, head=fused)
  tab.hover(patch(2, 1))
  heads = seen[0].attention.weights[1, :, 6].astype(float)
  assert overlay(tab) == hundredths(getattr(heads, fused)(axis=0))


def test_the_sliders_show_the_rollout_of_each_depth_and_discard(tab, seen):
  choose(tab, mode='rollout')
  tab.hover(patch(1, 2))
  for index, discard in enumerate(page.DISCARDS):
    rolled = seen[0].attention.rollout(discard=discard).astype(float)
    for layer in range(len(rolled)):
      choose(tab, discard=index, layer=layer + 1)
      assert overlay(tab) == hundredths(rolled[layer, 4])


def test_the_class_token_registers_and_the_head_are_queries_too(tab, seen):
  whole = seen[0].attention
  last = whole.weights[-1].astype(float).mean(0)
  assert overlay(tab) == hundredths(whole.read @ last)  # it begins with what the head reads
  for number, name in enumerate(('class token', 'register 1', 'register 2')):
    tab.hover(f'#tokens button:nth-child({number + 1})')
    assert tab.text('#query') == f'Query: {name}'
    assert overlay(tab) == hundredths(last[number])


def test_a_held_query_stays_while_the_weight_of_any_patch_is_read(tab, seen):
  last = seen[0].attention.weights[-1].astype(float).mean(0)
  tab.click(patch(1, 3))
  for row, column in itertools.product((1, 2), (1, 2, 3)):
    tab.hover(patch(row, column))
    assert tab.text('#query') == 'Query: row 1, column 3'
    to = 3 + 3 * (row - 1) + column - 1
    assert [shown_weight(tab.text('#pointed'))] == hundredths([last[5, to]])
  tab.press('Escape')
  assert tab.text('#query') == 'Query: row 2, column 3'


def test_the_highest_weights_are_told_in_order(tab, seen):
  tab.hover(patch(1, 1))
  items = tab.run('Array.from(document.querySelectorAll("#highest-list li"), (i) => i.textContent)')
  row = seen[0].attention.weights[-1].astype(float).mean(0)[3]
  assert [shown_weight(item) for item in items] == hundredths(np.sort(row)[::-1][:5])


def test_the_page_works_by_keyboard_alone(tab, seen):
  last = seen[0].attention.weights[-1].astype(float).mean(0)
  for _ in range(5):  # four tokens, then one patch of all
    tab.press('Tab')
  assert tab.text('#query') == 'Query: row 1, column 1'
  for key, row, column in (
    ('ArrowRight', 1, 2),
    ('ArrowDown', 2, 2),
    ('ArrowDown', 2, 2),
    ('End', 2, 3),
    ('Home', 2, 1),
    ('ArrowUp', 1, 1),
    ('ArrowLeft', 1, 1),
  ):
    tab.press(key)
    assert tab.text('#query') == f'Query: row {row}, column {column}'
    assert overlay(tab) == hundredths(last[3 + 3 * (row - 1) + column - 1])
  tab.press('Enter')
  tab.press('ArrowRight')
  assert tab.text('#query') == 'Query: row 1, column 1'
  assert [shown_weight(tab.text('#pointed'))] == hundredths([last[3, 4]])
  tab.press('Tab')
  assert tab.run('document.activeElement.id') == 'which'


def test_everything_that_takes_the_focus_has_a_name_and_changes_are_read_aloud(tab):
  nodes = tab('Accessibility.getFullAXTree')['nodes']
  focusable = [
    node
    for node in nodes
    if any(p['name'] == 'focusable' and p['value']['value'] for p in node.get('properties', []))
    and node['role']['value'] != 'RootWebArea'
  ]
  assert len(focusable) >= 4 + 6 + 7
  assert all(node['name']['value'] for node in focusable)
  assert tab.run("document.querySelector('#query').closest('[aria-live=polite]') !== null")


def test_another_image_brings_its_own_weights_and_predictions(tab, seen, run):
  choose(tab, which=1)
  tab.until('document.getElementById("image").alt === "image <1>"')
  tab.hover(patch(2, 2))
  tab.until('document.querySelector("[data-weight]")')
  assert overlay(tab) == hundredths(seen[1].attention.weights[-1].astype(float).mean(0)[7])
  rows = tab.run('Array.from(document.querySelectorAll("#predictions tr"), (r) => r.innerText)')
  guesses = run.predict(pixels(1))
  told = [f'{guess["label"]}\t{100 * guess["score"]:.2f} %' for guess in guesses]
  assert [row.strip() for row in rows] == told


def test_names_are_text_and_never_elements(tab):
  assert tab.run('document.querySelector("main b")') is None
  assert tab.text('h1') == 'Attention of roses & co'
  assert '<b>tulip</b>' in tab.text('#predictions')


def contrast(tab):
  """Of text to what is behind it (WCAG 2, relative luminance)."""
  colours = tab.run(
    '[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]'
  )
  lights = []
  for colour in colours:
    channels = np.array([int(c) for c in re.findall(r'\d+', colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    lights.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
  return max(lights) / min(lights), lights[1] > 0.5


def test_a_page_is_light_or_dark_as_the_reader_has_it(tab):
  ratio, light = contrast(tab)
  assert ratio > 7 and light
  tab.window(1100, 900, dark=True)
  ratio, light = contrast(tab)
  assert ratio > 7 and not light


def test_on_a_phone_nothing_is_cut_off_and_a_tap_asks(tab, seen):
  tab.window(360, 700)
  assert tab.run('document.documentElement.scrollWidth') == 360
  where = tab.centre(patch(2, 2))
  tab('Input.dispatchTouchEvent', type='touchStart', touchPoints=[where])
  tab('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])
  tab.until('document.getElementById("query").textContent === "Query: row 2, column 2"')
  assert overlay(tab) == hundredths(seen[0].attention.weights[-1].astype(float).mean(0)[7])


# Reports

AFTER_TRAINING = report.after_training  # which conftest replaces in tests
FLAGS = {
  'model.patch': (4, 4),
  'model.width': 16,
  'model.depth': 2,
  'model.heads': 2,
  'model.mlp_dim': 32,
  'model.unroll': 1,
  'batch_size': 32,
  'duration': '12 steps',
  'evaluation.every': '6 steps',
  'checkpoint.every': '12 steps',
  'system.log_every': '2 steps',
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A finished run with the report that its training wrote."""
  folder = tmp_path_factory.mktemp('runs') / 'digits'
  words = [f'--config.{name}={value}' for name, value in FLAGS.items()]
  assert main.main(['--config=digits', f'--workdir={folder}', *words]) == 0
  return folder


@pytest.fixture(scope='module')
def values(trained):
  return accuracy.of_run(trained)


@pytest.fixture
def opened(chromium, trained):
  chromium.window(1100, 900)
  chromium.open(trained / report.PAGE)
  yield chromium
  assert not chromium.errors
  others = [address for address in chromium.requested if not address.startswith('data:')]
  assert others == [(trained / report.PAGE).as_uri()]


def copied(trained, tmp_path):
  """The run without its report."""
  folder = tmp_path / 'run'
  shutil.copytree(trained, folder)
  for name in (report.PAGE, report.PICTURE):
    (folder / name).unlink()
  return folder


def test_training_ends_with_a_page_a_picture_and_a_record(trained):
  text = (trained / report.PAGE).read_text()
  assert text.startswith('<!doctype html>') and '{{' not in text
  with Image.open(trained / report.PICTURE) as picture:
    assert min(picture.size) >= 500
  held = json.loads((trained / report.ENVIRONMENT).read_text())
  assert held['packages']['jax'] and held['devices'] and held['command']
  assert held['command'] in text.replace('&#x27;', "'").replace('&quot;', '"').replace('&amp;', '&')


def test_the_headline_is_what_evaluation_gives_with_its_split_and_count(opened, values):
  cards = opened.run('Array.from(document.querySelectorAll(".card"), (card) => card.innerText)')
  on = f'on {values["count"]} images, split test of digits'
  assert cards[:4] == [
    f'{100 * values["accuracy"]:.2f} %\naccuracy {on}',
    f'{100 * values["top5"]:.2f} %\ntop-5 accuracy {on}',
    f'{values["loss"]:.4g}\nloss {on}',
    f'{100 * values["calibration_error"]:.2f} %\ncalibration error {on}',
  ]


def test_the_confusion_matrix_and_the_classes_are_those_of_evaluation(opened, values):
  cells = opened.run(
    'Array.from(document.querySelectorAll(".confusion tbody tr"), '
    '(row) => Array.from(row.querySelectorAll("td"), (cell) => +cell.textContent))'
  )
  assert cells == values['confusion']
  rows = opened.run(
    'Array.from(document.querySelectorAll("[aria-labelledby=classes] tbody tr"), '
    '(row) => Array.from(row.children, (cell) => cell.textContent))'
  )
  told = {
    row['name']: [str(row['count']), chart.share(row['precision']), chart.share(row['recall'])]
    for row in values['classes']
  }
  assert {name: rest for name, *rest in rows} == told


def test_curves_have_a_point_for_every_logged_number(opened, trained):
  rows = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
  for curve in report.CURVES:
    for name in curve.names:
      logged = [row for row in rows if name in row]
      prefix = json.dumps(f'{name}, step ')
      titles = opened.run(
        'Array.from(document.querySelectorAll("circle title"), (t) => t.textContent)'
        f'.filter((t) => t.startsWith({prefix}))'
      )
      shown = chart.share if curve.percent else chart.number
      assert titles == [f'{name}, step {row["step"]}: {shown(row[name])}' for row in logged]
      assert logged or 'ema' in name


def test_the_page_fits_a_phone_and_the_dark(opened):
  opened.window(360, 700, dark=True)
  assert opened.run('document.documentElement.scrollWidth') == 360
  ratio, light = contrast(opened)
  assert ratio > 7 and not light


def test_mistakes_are_wrong_and_the_surest_of_all(trained):
  found = report.gather(trained, say=print)
  data = inputs.opened(trained)
  images = [found.run.transform(row['image'], None) for row in data.source]
  scores = found.run.forward(images)['scores']
  labels = np.array([row['label'] for row in data.source])
  wrong = np.flatnonzero(scores.argmax(1) != labels)
  surest = wrong[np.argsort(-scores.max(1)[wrong])][: report.MISTAKES]
  assert len(found.mistakes) == len(surest) == report.MISTAKES
  for mistake, place in zip(found.mistakes, surest):
    assert mistake.confidence == pytest.approx(scores[place].max(), abs=1e-6)
    assert mistake.label == str(labels[place])
    assert mistake.guess == str(scores[place].argmax())
    np.testing.assert_array_equal(mistake.image, images[place])
  whole = analysis.attention(found.run, found.mistakes[0].image)
  map_ = whole.maps()[-1].mean(0)
  np.testing.assert_allclose(found.mistakes[0].attention, map_, atol=1e-6)


def test_a_model_without_attention_has_mistakes_without_it():
  model = vit_jax.build('Mixer-S/32', patch=4, width=16, depth=1, mlp_dim=8, tokens_dim=8)
  params = drawn(shapes(model, SIZE))
  run = predict.Run(model, params, (), bundle.Preprocess('resize', SIZE), 'Mixer-S/32')
  assert report.attended(run, pixels(0)) is None
  mistake = report.Mistake('one', pixels(0), 'a', 'b', 0.5, None)
  assert 'its attention' not in report.mistaken(mistake)


def test_what_a_report_lacks_is_told_and_its_code_is_3(trained, tmp_path, capsys):
  unfinished = copied(trained, tmp_path)
  shutil.rmtree(unfinished / 'model')
  assert commands.main(['report', str(unfinished)]) == 3
  assert 'not finished' in capsys.readouterr().err
  assert 'train/loss' in (unfinished / report.PAGE).read_text()
  config = json.loads((trained / 'config.json').read_text())
  config['data']['source'] = f'folder:{tmp_path}/gone'
  (unfinished / 'config.json').write_text(json.dumps(config))
  shutil.copytree(trained / 'model', unfinished / 'model')
  assert commands.main(['report', str(unfinished)]) == 3
  assert 'could not be measured' in capsys.readouterr().err
  assert 'Filters and positions' in (unfinished / report.PAGE).read_text()


@pytest.mark.parametrize('content', [None, '', '[]', '{"data": 1}'])
def test_a_folder_that_is_no_run_gets_one_line_code_2_and_no_file(content, tmp_path, capsys):
  if content is not None:
    (tmp_path / 'config.json').write_text(content)
  before = sorted(tmp_path.iterdir())
  assert commands.main(['report', str(tmp_path)]) == 2
  assert len(capsys.readouterr().err.splitlines()) == 1
  assert sorted(tmp_path.iterdir()) == before


def test_a_report_that_fails_is_a_line_and_no_failure_of_the_run(trained, tmp_path):
  folder = copied(trained, tmp_path)
  (folder / 'metrics.jsonl').unlink()
  (folder / 'metrics.jsonl').mkdir()
  lines = []
  AFTER_TRAINING(folder, lines.append)
  assert len(lines) == 1 and lines[0].startswith('no report: ')
  assert not (folder / report.PAGE).exists()


def test_names_in_a_report_are_text(trained):
  found = report.gather(trained, say=print)
  for row in found.measured['classes']:
    row['name'] = f'<script>{row["name"]}'
  assert '<script' not in report.as_html(found)
  assert '&lt;script&gt;0' in report.as_html(found)


def test_many_classes_are_a_picture(trained):
  found = report.gather(trained, say=print)
  count = report.SMALL + 1
  found.measured['confusion'] = np.eye(count, dtype=int).tolist()
  row = found.measured['classes'][0]
  found.measured['classes'] = [row | {'name': str(k)} for k in range(count)]
  assert '<table class="confusion"' not in report.confusion(found)
  assert 'data:image/png' in report.confusion(found)
  assert report.classes(found).startswith('<details>')


def test_the_time_of_the_steps_is_what_their_rates_say(trained):
  found = report.gather(trained, measure=False, say=print)
  rows = [row for row in found.rows if 'train/images_per_second' in row]
  expected = sum(2 * 32 / row['train/images_per_second'] for row in rows)
  assert report.seconds_of_steps(found) == pytest.approx(expected, rel=1e-6)


def test_the_command_is_a_line_for_the_shell():
  words = ['--config=digits', "--config.freeze.names=head|'x y'"]
  quoted = "--config=digits '--config.freeze.names=head|'\"'\"'x y'\"'\"''"
  for script, start in (
    ('/a/bin/vit', 'vit'),
    ('/a/vit_jax/main.py', 'python -m vit_jax.main'),
    ('/a/vit_jax/__main__.py', 'python -m vit_jax'),
    ('/a/mine/main.py', 'main.py'),
  ):
    assert report.command([script, *words]) == f'{start} {quoted}'


def test_every_command_of_the_document_runs(trained, capsys):
  text = (pathlib.Path(__file__).parents[1] / 'docs' / 'report.md').read_text()
  lines = [
    line for block in re.findall(r'```\n(.*?)```', text, re.S) for line in block.splitlines()
  ]
  assert len(lines) >= 2
  for line in lines:
    vit, *words = line.replace('runs/digits', str(trained)).split()
    assert vit == 'vit' and commands.main(words) == 0, capsys.readouterr().err


# Charts


def test_ticks_are_round_evenly_spaced_and_inside():
  random = np.random.default_rng(0)
  for _ in range(500):
    low = float(random.normal() * 10.0 ** random.integers(-6, 6))
    high = low + float(10 ** random.uniform(-3, 6))
    found = chart.ticks(low, high)
    step = (high - low) / 4
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * step <= tick <= high + 1e-6 * step for tick in found)
    gaps = np.diff(found)
    assert np.allclose(gaps, gaps[:1], rtol=1e-5)


@pytest.mark.parametrize(
  ('xs', 'ys'), [([5.0], [0.0]), ([1, 2], [3, 3]), ([0, 1], [-1e-9, 1e9]), ([1], [-2])]
)
def test_a_chart_of_few_or_equal_values_stays_inside_its_frame(xs, ys):
  text = chart.drawn('a', {'b': (np.array(xs, float), np.array(ys, float))})
  places = np.array(re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', text), float)
  assert len(places) == len(xs)
  width, height = chart.Axes.WIDTH, chart.Axes.HEIGHT
  assert (places >= 0).all() and (places <= [width, height]).all()


def test_long_curves_are_thinned_but_keep_their_ends():
  steps, values = report.thinned(np.arange(10_000.0), np.arange(10_000.0) ** 2)
  assert len(steps) <= report.POINTS and (steps[0], steps[-1]) == (0, 9999)
  np.testing.assert_array_equal(values, steps**2)
