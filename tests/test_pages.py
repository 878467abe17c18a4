"""Pages show their arrays, by mouse and keyboard, on any screen, and ask for no other file."""

import base64
import dataclasses
import datetime
import gzip
import io
import itertools
import json
import pathlib
import re
import shlex
import shutil
from html import escape, unescape
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests import browser
from tests.conftest import drawn, shapes, tiny
from vit_jax import __main__ as commands
from vit_jax import analysis, bundle, main, metrics, pipeline, predict, sources, train, workdir
from vit_jax.commands import NOT_FINITE, inspect
from vit_jax.commands import report as report_command
from vit_jax.evaluate import accuracy, inputs, results
from vit_jax.files import as_json
from vit_jax.guards.legs import Leg
from vit_jax.tasks import classify
from vit_jax.text import number, percent, without_folders
from vit_jax.views import attention as page
from vit_jax.views import (
  card,
  charts,
  curves,
  facts,
  opening,
  photos,
  pictures,
  repeats,
  report,
  report_images,
  report_page,
  svg,
)
from vit_jax.views import html as parts

SIZE = (8, 12)  # 2 x 3 patches
NAMES = ('rose', '<b>tulip</b>', 'fern & moss', 'oak', 'palm')


def run_of(**fields):
  """A run with drawn weights whose attention is far from even."""
  model = tiny(unroll=1, **fields)
  params = drawn(shapes(model, SIZE), scale=0.8)
  options = bundle.Preprocess('resize', SIZE)
  return predict.Run(model, params, NAMES, options, 'ViT-Ti/16')


def pixels(seed):
  return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)


@pytest.fixture(scope='module')
def run():
  return run_of(registers=2, pool='gap', class_token=True)


@pytest.fixture(scope='module')
def attended(run):
  return [inspect.attended_image(run, run.prepared(pixels(i)), f'image <{i}>') for i in range(2)]


@pytest.fixture(scope='module')
def html(run, attended, tmp_path_factory):
  file = tmp_path_factory.mktemp('page') / 'attention.html'
  file.write_text(page.attention('roses & co', run.model, attended))
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


def stored_weights(pack, whole):
  """The numbers that a page holds of an image, in hundredths of a percent."""
  tokens = len(whole.read)
  size = (tokens + len(page.readers(whole))) * tokens
  bytes_ = np.frombuffer(gzip.decompress(base64.b64decode(pack)), np.uint8).reshape(-1, 2, size)
  return (bytes_[:, 0] + 256 * bytes_[:, 1].astype(int)).ravel()


def shown_weight(text):
  """'To row 1, column 2: 12.34 %' -> 1234."""
  return round(100 * float(re.search(r'([\d.]+) %$', text)[1]))


# What the page holds


def test_the_page_holds_every_weight_rounded_to_a_hundredth_of_a_percent(attended, html):
  packs = re.findall(r'id="weights-\d+">([^<]*)<', html.read_text())
  assert len(packs) == len(attended)
  for one, pack in zip(attended, packs):
    values = stored_weights(pack, one.attention)
    weights, read = one.attention.weights.astype(float), one.attention.read
    layers, heads, tokens, _ = weights.shape
    expected_weights = np.concatenate([weights, weights.mean(1, keepdims=True)], 1)
    parts = [expected_weights] + [
      one.attention.rollout(discard=d).astype(float) for d in page.DISCARDS
    ]
    rows = [np.concatenate([p, np.expand_dims(read @ p, -2)], -2).ravel() for p in parts]
    assert values.tolist() == hundredths(np.concatenate(rows))
    assert len(values) == layers * (heads + 1 + len(page.DISCARDS)) * (tokens + 1) * tokens


def test_blocks_of_patches_get_what_these_get_and_ask_as_they_do_on_average():
  weights = np.random.default_rng(0).dirichlet(np.ones(37), size=(1, 1, 37)).astype(np.float32)
  whole = analysis.Attention(weights, np.full(37, 1 / 37, np.float32), (5, 7), 2, (4, 4))
  matrix = weights[0, 0].astype(float)
  block = np.concatenate(
    [[0, 1], 2 + (3 * (np.arange(5)[:, None] // 3) + np.arange(7) // 3).ravel()]
  )
  member = np.eye(8)[block]  # (37, 8): two tokens, 2 x 3 blocks
  expected = (member / member.sum(0)).T @ matrix @ member
  rows = page.blocked(np.concatenate([matrix, matrix[:1]]), whole, 3)
  np.testing.assert_allclose(rows, np.concatenate([expected, (matrix @ member)[:1]]), atol=1e-12)
  np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
  assert page.block_sizes(7, 3) == [3, 3, 1]


@pytest.mark.parametrize(
  'name, size, side', [('ViT-B/16', 384, 1), ('ViT-L/16', 384, 2), ('ViT-H/14', 518, 2)]
)
def test_a_page_takes_patches_together_where_there_are_too_many(name, size, side):
  model = vit_jax.build(name, num_classes=5)
  large = predict.Run(model, {}, NAMES, bundle.Preprocess('resize', (size, size)), name)
  assert inspect.page_side(large) == side and inspect.shown_in_page(large) >= 1


def test_a_class_token_that_alone_is_read_needs_no_other_query():
  one = inspect.attended_image(run_of(), run_of().prepared(pixels(0)), 'image')
  assert not len(page.readers(one.attention))
  assert '"readers": []' in page.attention('a model', run_of().model, [one])


def test_of_attention_pooling_the_head_reads_what_its_probe_weighs():
  gathered = run_of(pool='map')
  one = inspect.attended_image(gathered, gathered.prepared(pixels(0)), 'image')
  values = stored_weights(page.packed(one.attention), one.attention)
  tokens = len(one.attention.read)
  first = values[: (tokens + 1) * tokens].reshape(tokens + 1, tokens)
  read = one.attention.pool.astype(float).mean(0)
  assert first[-1].tolist() == hundredths(read @ one.attention.weights[0, 0].astype(float))


def test_images_of_two_sizes_none_and_weights_that_are_not_finite_are_refused(run, attended):
  wider = np.zeros((3, 2, 10, 10), np.float32)
  other = analysis.Attention(wider, np.full(10, 0.1, np.float32), (1, 7), 3, (4, 4), None)
  with pytest.raises(ValueError, match='of one size'):
    page.attention('', run.model, [*attended, page.AttendedImage('', pixels(0), [], other)])
  with pytest.raises(ValueError, match='one or more images'):
    page.attention('', run.model, [])
  broken = analysis.Attention(wider * np.nan, other.read, (1, 7), 3, (4, 4), None)
  with pytest.raises(ValueError, match='not finite'):
    page.attention('', run.model, [page.AttendedImage('', pixels(0), [], broken)])


# In a browser


def test_pointing_at_a_patch_shows_what_it_attends_to_in_every_layer_and_head(tab, attended):
  weights = attended[0].attention.weights
  layers, heads, _, _ = weights.shape
  for layer, head in itertools.product(range(layers), range(heads)):
    choose(tab, layer=layer + 1, head=head)
    for row, column in ((1, 1), (2, 3)):
      tab.hover(patch(row, column))
      token = 3 + 3 * (row - 1) + column - 1
      assert overlay(tab) == hundredths(weights[layer, head, token])
      assert tab.text('#query') == f'Query: row {row}, column {column}'


def test_each_patch_is_painted_in_the_colour_of_its_share_of_the_highest(tab, attended):
  tab.hover(patch(1, 2))
  shown = np.array(overlay(tab)[3:]) / max(overlay(tab)[3:])  # of the patches
  assert shown.min() < 0.9  # so that colours differ
  painted = tab.run(
    'Array.from(document.querySelectorAll("#patches [data-weight]"), '
    '(cell) => getComputedStyle(cell).backgroundColor)'
  )
  gathered = [[float(part) for part in re.findall(r'[\d.]+', colour)] for colour in painted]
  places = np.linspace(0, 1, len(parts.RAMP))
  expected = np.stack([np.interp(shown, places, channel) for channel in parts.RAMP.T], axis=1)
  np.testing.assert_allclose(np.array(gathered)[:, :3], expected, atol=0.6)
  assert {alpha for *_, alpha in gathered} == {0.7}


@pytest.mark.parametrize('fused', ['mean', 'max', 'min'])
def test_heads_are_joined_as_the_arrays_say(tab, attended, fused):
  choose(tab, layer=2, head=fused)
  tab.hover(patch(2, 1))
  heads = attended[0].attention.weights[1, :, 6].astype(float)
  assert overlay(tab) == hundredths(getattr(heads, fused)(axis=0))


def test_the_sliders_show_the_rollout_of_each_depth_and_discard(tab, attended):
  choose(tab, mode='rollout')
  tab.hover(patch(1, 2))
  for index, discard in enumerate(page.DISCARDS):
    rolled = attended[0].attention.rollout(discard=discard).astype(float)
    for layer in range(len(rolled)):
      choose(tab, discard=index, layer=layer + 1)
      assert overlay(tab) == hundredths(rolled[layer, 4])


def test_the_class_token_registers_and_the_head_are_queries_too(tab, attended):
  whole = attended[0].attention
  last = whole.weights[-1].astype(float).mean(0)
  assert overlay(tab) == hundredths(whole.read @ last)  # it begins with what the head reads
  for index, name in enumerate(('class token', 'register 1', 'register 2')):
    tab.hover(f'#tokens button:nth-child({index + 1})')
    assert tab.text('#query') == f'Query: {name}'
    assert overlay(tab) == hundredths(last[index])


def test_a_held_query_stays_while_the_weight_of_any_patch_is_read(tab, attended):
  last = attended[0].attention.weights[-1].astype(float).mean(0)
  tab.click(patch(1, 3))
  for row, column in itertools.product((1, 2), (1, 2, 3)):
    tab.hover(patch(row, column))
    assert tab.text('#query') == 'Query: row 1, column 3'
    to = 3 + 3 * (row - 1) + column - 1
    assert [shown_weight(tab.text('#pointed'))] == hundredths([last[5, to]])
  tab.press('Escape')
  assert tab.text('#query') == 'Query: row 2, column 3'


def test_the_highest_weights_are_told_in_order(tab, attended):
  tab.hover(patch(1, 1))
  items = tab.run('Array.from(document.querySelectorAll("#highest-list li"), (i) => i.textContent)')
  row = attended[0].attention.weights[-1].astype(float).mean(0)[3]
  assert [shown_weight(item) for item in items] == hundredths(np.sort(row)[::-1][:5])


def test_the_page_works_by_keyboard_alone(tab, attended):
  last = attended[0].attention.weights[-1].astype(float).mean(0)
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
  for control in ('play', 'layer', 'which'):
    tab.press('Tab')
    assert tab.run('document.activeElement.id') == control


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


def test_another_image_brings_its_own_weights_and_predictions(tab, attended, run):
  choose(tab, which=1)
  tab.until('document.getElementById("image").alt === "image <1>"')
  tab.hover(patch(2, 2))
  tab.until('document.querySelector("[data-weight]")')
  assert overlay(tab) == hundredths(attended[1].attention.weights[-1].astype(float).mean(0)[7])
  rows = tab.run('Array.from(document.querySelectorAll("#predictions tr"), (r) => r.innerText)')
  guesses = run.predict(pixels(1))
  output = [f'{guess["label"]}\t{100 * guess["score"]:.2f} %' for guess in guesses]
  assert [row.strip() for row in rows] == output


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


def test_on_a_phone_nothing_is_cut_off_and_a_tap_asks(tab, attended):
  tab.window(360, 700)
  assert tab.run('document.documentElement.scrollWidth') == 360
  where = tab.centre(patch(2, 2))
  tab('Input.dispatchTouchEvent', type='touchStart', touchPoints=[where])
  tab('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])
  tab.until('document.getElementById("query").textContent === "Query: row 2, column 2"')
  assert overlay(tab) == hundredths(attended[0].attention.weights[-1].astype(float).mean(0)[7])


def test_colours_are_scaled_by_patches_so_that_a_register_cannot_darken_them(tab):
  colours = set()
  for row, column in itertools.product((1, 2), (1, 2, 3)):
    tab.hover(patch(row, column))
    weights = overlay(tab)
    place = int(np.argmax(weights[3:]))
    output = patch(place // 3 + 1, place % 3 + 1)
    colours.add(tab.run(f"document.querySelector('{output}').style.backgroundColor"))
    assert shown_weight(tab.text('#highest')) == weights[3 + place]
  assert colours == {'rgba(252, 253, 170, 0.7)'}


def test_no_weights_lie_over_an_image_whose_own_are_not_there_yet(tab):
  change = 'dispatchEvent(new Event("input", {bubbles: true}))'
  which = 'document.getElementById("which")'
  count = 'document.querySelectorAll("[data-weight]").length'
  assert tab.run(f'(() => {{{which}.value = "1"; {which}.{change}; return {count}; }})()') == 0
  tab.until(count)
  assert len(overlay(tab)) == 3 + 6


def test_on_a_phone_the_weight_is_read_beside_the_image(tab):
  tab.window(360, 740)
  tab.run("document.getElementById('patches').scrollIntoView()")
  edges = tab.run(
    "['#patches', '.reading'].map((s) => document.querySelector(s).getBoundingClientRect())"
    '.map((r) => [r.top, r.bottom])'
  )
  assert all(-1 < top < bottom < 741 for top, bottom in edges)
  assert tab.run("document.querySelector('.reading').contains(document.querySelector('#pointed'))")


def painted(tab):
  return [
    tab.run(f"document.querySelector('{patch(*place)}').style.backgroundColor")
    for place in itertools.product((1, 2), (1, 2, 3))
  ]


def test_contrast_spans_what_the_patches_have_or_begins_at_nothing(tab, attended):
  heads = np.float64(attended[0].attention.weights[-1][:, 7])
  tab.hover(patch(2, 2))
  choose(tab, head='1', strength='100')
  shown, mean = hundredths(heads[1])[3:], hundredths(heads.mean(0))[3:]
  for contrast, low, high in (
    ('stretch', min(shown), max(shown)),
    ('most', 0, max(shown)),
    ('mean', 0, max(mean)),
  ):
    choose(tab, contrast=contrast)
    assert [shown_weight(tab.text(f'#{end}')) for end in ('lowest', 'highest')] == [low, high]
    shares = np.clip((np.array(shown) - low) / (high - low), 0, 1)
    colours = [[int(c) for c in re.findall(r'\d+', each)[:3]] for each in painted(tab)]
    np.testing.assert_allclose(colours, parts.colours(shares), atol=1)


def test_the_wall_shows_every_head_of_every_layer_and_chooses_one(tab, attended):
  weights = attended[0].attention.weights
  layers, heads = weights.shape[:2]
  assert tab.run("document.querySelectorAll('#wall button').length") == layers * heads
  tab.click(patch(2, 2))  # which holds the query
  tab.click('#wall [aria-label="layer 1, head 2"]')
  query = 7
  assert overlay(tab) == hundredths(weights[0, 1].astype(float)[query])
  assert tab.text('#layer-shown') == f'1 of {layers}'
  tab.press('ArrowDown')
  tab.press('Enter')
  assert overlay(tab) == hundredths(weights[1, 1].astype(float)[query])
  pressed = "document.querySelectorAll('#wall [aria-pressed=true]')"
  assert tab.run(f'Array.from({pressed}, (tile) => tile.title)') == ['layer 2, head 2']
  shown = np.array(hundredths(weights[1, 1].astype(float)[query]))[3:]
  tile = "document.querySelector('#wall [aria-pressed=true] canvas')"
  pixels = tab.run(f"Array.from({tile}.getContext('2d').getImageData(0, 0, 3, 2).data)")
  expected = parts.colours((shown - shown.min()) / np.ptp(shown))
  np.testing.assert_allclose(np.reshape(pixels, (-1, 4))[:, :3], expected, atol=1)


def test_play_goes_through_the_rollout_of_each_layer_and_stops(tab, attended):
  layers = len(attended[0].attention.weights)
  tab.click(patch(2, 2))
  tab.click('#play')
  assert tab.run('[state.mode, state.layer]') == ['rollout', 0] and tab.text('#play') == 'Pause'
  tab.until(f"state.layer === {layers - 1} && byId('play').textContent === 'Play rollout'")
  assert overlay(tab) == hundredths(attended[0].attention.rollout()[-1].astype(float)[7])


def test_the_patch_under_the_pointer_is_outlined_while_another_is_held(tab):
  tab.click(patch(1, 1))
  tab.hover(patch(2, 3))
  outlined = "Array.from(document.querySelectorAll('#patches .pointed'), (c) => c.ariaLabel)"
  assert tab.run(outlined) == ['row 2, column 3']
  assert tab.run("getComputedStyle(document.querySelector('.pointed')).outlineStyle") == 'solid'


def test_on_a_phone_what_is_touched_is_as_large_as_a_thumb(tab):
  tab.window(390, 800, dark=True)
  assert tab.run('document.documentElement.scrollWidth') == 390
  heights = tab.run(
    "Array.from(document.querySelectorAll('input[type=range], select, button'), "
    '(element) => element.getBoundingClientRect().height)'
  )
  assert min(heights) > 30 and min(heights[:-4]) >= 44
  tab.run("document.getElementById('patches').scrollIntoView()")
  bottom = tab.run("document.querySelector('.deck').getBoundingClientRect().bottom")
  assert 0 < bottom <= 801


def test_blocks_lie_over_their_patches(chromium, run, attended, tmp_path):
  (tmp_path / 'blocks.html').write_text(page.attention('roses', run.model, attended, side=2))
  chromium.open(tmp_path / 'blocks.html')
  chromium.until("document.querySelector('[data-weight]')")
  widths = 'Array.from(document.querySelectorAll("[role=gridcell]"), (e) => e.offsetWidth)'
  left, right = chromium.run(widths)
  assert left == pytest.approx(2 * right, abs=2) and 'a block of 2x2' in chromium.text('body')
  one = attended[0].attention
  rows = np.concatenate([w := one.weights[-1].astype(float).mean(0), one.read[None] @ w])
  assert overlay(chromium) == hundredths(page.blocked(rows, one, 2)[-1])
  assert not chromium.errors


# The index of vit inspect


@pytest.fixture(scope='module')
def inspected(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('inspected')
  bundle.write(folder / 'model', run)
  Image.fromarray(pixels(0)).save(folder / 'a & <b>b.png')
  words = [str(folder / name) for name in ('model', 'a & <b>b.png')]
  only = ('--only', 'filters', 'page', 'rollout', 'evidence', '--label', NAMES[1])
  assert commands.main(['inspect', *words, *only, '--out', str(folder / 'look')]) == 0
  return folder / 'look'


@pytest.mark.parametrize('width, dark', [(1100, False), (390, True)])
def test_the_index_leads_to_every_picture_and_says_what_each_shows(
  chromium, inspected, width, dark
):
  chromium.window(width, 900, dark=dark)
  chromium.open(inspected / 'index.html')
  assert chromium.run('document.documentElement.scrollWidth') <= width
  links = chromium.run("Array.from(document.querySelectorAll('a'), (link) => link.href)")
  local = {pathlib.Path(unquote(urlsplit(link).path)) for link in links}
  files = {path for path in inspected.rglob('*') if path.is_file()}
  assert local == files - {inspected / 'index.html'}
  described = json.loads((inspected / 'inspect.json').read_text())['images'][0]
  for kind, sentence in described['faithfulness']['sentences'].items():
    assert chromium.text(f'figure.{kind} .judged') == sentence
    assert 'chance' in sentence
  assert chromium.text('section[id] h2') == 'a & <b>b.png'
  chromium.run("document.querySelectorAll('img').forEach((image) => image.loading = 'eager')")
  chromium.until('Array.from(document.images).every((image) => image.naturalWidth > 100)')
  assert contrast(chromium)[0] > 7 and not chromium.errors
  assert str(inspected) not in (inspected / 'index.html').read_text()
  asked = [link for link in chromium.requested if not link.startswith('data:')]
  assert all(link.startswith(inspected.as_uri()) for link in asked)


@pytest.mark.parametrize('width, dark', [(1100, False), (390, True)])
def test_evidence_and_how_faithful_it_is_are_shown_where_the_attention_is(
  chromium, inspected, width, dark
):
  chromium.window(width, 900, dark=dark)
  chromium.open(inspected / 'attention.html')
  chromium.until("document.querySelector('[data-weight]')")
  described = json.loads((inspected / 'inspect.json').read_text())['images'][0]
  logits = np.load(inspected / described['folder'] / 'evidence.npz')['logits'].ravel()
  choose(chromium, mode='evidence')
  np.testing.assert_allclose(overlay(chromium), logits, atol=1e-4)
  assert chromium.text('#highest') == f'{logits.max():.2f} logit'
  assert chromium.text('#judged') == described['faithfulness']['sentences']['evidence']
  chromium.hover(patch(2, 1))
  assert chromium.text('#pointed') == f'row 2, column 1: {logits[3]:.2f} logit'
  choose(chromium, mode='rollout')
  assert chromium.text('#judged') == described['faithfulness']['sentences']['rollout']
  choose(chromium, layer=1)
  assert chromium.text('#judged') == ''  # which is of the last layer
  assert chromium.run("byId('show-occlusion').hidden")  # as it was not drawn
  assert chromium.run('document.documentElement.scrollWidth') <= width and not chromium.errors


# Reports

# Which conftest replaces in tests
AFTER_TRAINING, WHILE_TRAINING = report.after_training, report.while_training
FLAGS = {
  'model.patch': (4, 4),
  'model.width': 16,
  'model.depth': 2,
  'model.heads': 2,
  'model.mlp_dim': 32,
  'model.unroll': 1,
  'batch_size': 32,
  'duration': '12 steps',
  'schedule.learning_rate': 1e-2,
  'schedule.warmup': '1 steps',
  'evaluation.every': '6 steps',
  'checkpoint.every': '12 steps',
  'system.log_every': '2 steps',
}


def words_of(folder, fields=()):
  """What trains a tiny run in a folder, with some fields replaced."""
  flags = [f'--config.{name}={value}' for name, value in (FLAGS | dict(fields)).items()]
  return ['--config=digits', f'--workdir={folder}', *flags]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A finished run with the report that its training wrote."""
  folder = tmp_path_factory.mktemp('runs') / 'digits'
  assert main.main(words_of(folder)) == 0
  return folder


@pytest.fixture(scope='module')
def whole(trained):
  """What a report tells of it."""
  return facts.gather(trained)


@pytest.fixture(scope='module')
def values(trained):
  return results.read(trained)


@pytest.fixture
def report_tab(chromium, trained):
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


def on_other_data(folder, source):
  """Has a run say that this is what it was trained and measured on."""
  config = json.loads((folder / 'config.json').read_text())
  config['data']['source'] = source
  (folder / 'config.json').write_text(json.dumps(config))
  results.write(folder, results.read(folder) | {'source': source})


def measuring(monkeypatch):
  """A list that gets (source, split, batch size) each time a model is measured."""
  calls, evaluate_model = [], accuracy.evaluate_model

  def noting(gathered, split, *, batch_size, **options):
    calls.append((split.name, split.split, batch_size))
    return evaluate_model(gathered, split, batch_size=batch_size, **options)

  monkeypatch.setattr(accuracy, 'evaluate_model', noting)
  return calls


def close(one, other):
  """Whether two values of JSON are the same, numbers with a point to 1e-6."""
  if isinstance(one, dict):
    return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
  if isinstance(one, list):
    return len(one) == len(other) and all(map(close, one, other))
  if isinstance(one, float):
    return one == pytest.approx(other, rel=1e-6, abs=1e-6)
  return one == other


# One evaluation


def test_what_training_measured_is_what_vit_evaluate_gives_and_the_report_quotes(
  trained, whole, capsys
):
  assert commands.main(['evaluate', str(trained), '--format', 'json']) == 0
  printed, held = json.loads(capsys.readouterr().out), results.read(trained)
  assert whole.measured == held and whole.left_out == []
  assert (held.pop('step'), held.pop('use')) == (12, 'test') and held.pop('weights')
  assert close(held, {name: printed[name] for name in held})
  assert printed.keys() - held.keys() == {'model', 'method', 'step', 'preprocess', 'notes'}
  output = report_page.headlines(whole)
  assert [name for _, name in output] == ['accuracy', 'top-5 accuracy', 'loss', 'calibration error']
  assert report_page.measured_on(held | {'step': 12}) == (
    'Measured at step 12 on 359 images, split test of digits'
  )
  assert output[0][0] == percent(held['accuracy']) and output[2][0] == f'{held["loss"]:.4g}'


@pytest.mark.parametrize('test', ['test[:50]', ''])
def test_a_whole_training_with_its_report_reads_the_last_split_once(test, tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'after_training', AFTER_TRAINING)
  passes, pages, batches = [], [], pipeline.evaluation_batches

  def counted(source, *args, **options):
    passes.append(len(source))
    return batches(source, *args, **options)

  def live(folder, *args):
    WHILE_TRAINING(folder, *args)
    pages.append((folder / report.PAGE).read_text())

  monkeypatch.setattr(report, 'while_training', live)
  monkeypatch.setattr(pipeline, 'evaluation_batches', counted)
  fields = {'data.validation': 'validation[:40]', 'data.test': test}
  assert main.main(words_of(tmp_path, fields)) == 0
  assert passes == [40, 40, 50][: 3 if test else 2]  # the last validation is of what is delivered
  assert (tmp_path / report.PAGE).is_file()
  held = results.read(tmp_path)
  assert (held['use'], held['count']) == (('test', 50) if test else ('validation', 40))
  for text, step in zip(pages, (6, 12), strict=True):
    assert f'Training, step {step} of 12 (' in text and '<meta name="live" content="20,' in text
    assert f'Measured at step {step} on 40 images, split validation[:40] of digits' in text
    assert f'training, step {step}: ' in text and 'class="photo p' in text
  assert 'name="live"' not in (tmp_path / report.PAGE).read_text() and report.is_whole(tmp_path)


def test_a_run_from_before_there_was_a_file_is_measured_once(trained, tmp_path, monkeypatch):
  folder, calls = copied(trained, tmp_path), measuring(monkeypatch)
  file, before = folder / results.FILE, results.read(trained)
  file.unlink()
  lines = []
  AFTER_TRAINING(folder, lines.append)
  assert lines[0].startswith('report: evaluation.json is missing') and not file.exists()
  assert commands.main(['report', str(folder)]) == 0
  assert calls == [('digits', 'test', max(32 // jax.device_count(), 1))]
  assert close(results.read(folder), before)
  written = file.read_bytes()
  report_command.measure(folder)
  report_command.measure(folder, split='test')
  assert len(calls) == 1 and file.read_bytes() == written


def damage(values, name, value):
  """The text of an evaluation with a value replaced, at a path such as 'classes/0/name'."""
  values = json.loads(json.dumps(values))
  *path, last = (int(part) if part.isdigit() else part for part in name.split('/'))
  place = values
  for part in path:
    place = place[part]
  if value is KeyError:
    del place[last]
  else:
    place[last] = value
  return json.dumps(values)


@pytest.mark.parametrize(
  'name, value',
  [
    ('source', KeyError),
    ('split', 5),
    ('use', 'train'),
    ('use', ['test']),
    ('step', -1),
    ('step', True),
    ('count', '359'),
    ('classes', None),
    ('classes/0/name', 7),
    ('classes/0/recall', 'all'),
    ('classes/0/recall', float('nan')),
    ('classes/9', KeyError),
    ('confusion/0', [1]),
    ('confusion/0/0', 1.5),
    ('confusion/0/0', -1),
    ('confusion/0/0', 10**30),
    ('calibration/0', []),
    ('calibration/0/count', KeyError),
    ('mistakes/0/index', -1),
    ('mistakes/0/confidence', float('inf')),
    ('confused', {}),
    ('images', []),
    ('images/loss', KeyError),
    ('images/index/0', -1),
    ('images/guess/0', 10),
    ('images/right/0', 2),
    ('images/confidence/0', 'high'),
    ('images/label/0', KeyError),
  ],
)
def test_a_file_that_is_no_evaluation_is_read_as_none(name, value, trained, tmp_path):
  values = json.loads((trained / results.FILE).read_text())
  assert results.is_valid(values) and values.pop('crc32')
  (tmp_path / results.FILE).write_text(damage(values, name, value))
  assert results.read(tmp_path) is None


@pytest.mark.parametrize('name', [results.FILE, report.PAGE, report.PICTURE])
def test_a_flipped_bit_of_what_was_measured_or_drawn_is_noticed(name, trained, tmp_path):
  for file in (results.FILE, report.PAGE, report.PICTURE):
    shutil.copy(trained / file, tmp_path)
  assert results.read(tmp_path) and report.is_whole(tmp_path)
  data = bytearray((tmp_path / name).read_bytes())
  data[len(data) // 2] ^= 1
  (tmp_path / name).write_bytes(data)
  assert not (results.read(tmp_path) and report.is_whole(tmp_path))


@pytest.mark.parametrize('content', ['', '[]', '{"loss": 1', '{}', '[' * 100_000, '\udcff'])
def test_a_damaged_file_is_measured_anew(content, trained, tmp_path, monkeypatch):
  folder, file = copied(trained, tmp_path), tmp_path / 'run' / results.FILE
  file.write_bytes(content.encode(errors='surrogateescape'))
  assert results.read(folder) is None
  if content:
    return  # one of them is enough to be measured
  calls = measuring(monkeypatch)
  report_command.measure(folder)
  assert len(calls) == 1 and close(results.read(folder), results.read(trained))


@pytest.mark.parametrize('other_data', [True, False])
def test_numbers_of_other_data_are_told_and_never_written(
  other_data, trained, tmp_path, monkeypatch
):
  folder, calls = copied(trained, tmp_path), measuring(monkeypatch)
  file = folder / results.FILE
  before = file.read_bytes()
  if not other_data:
    file.unlink()
  for on, split, count in (('', 'validation[:30]', 30), ('digits', 'test[:20]', 20)):
    gathered = report_command.measure(folder, on=on, split=split)
    on = report_page.measured_on(gathered.measured)
    assert on == f'Measured on {count} images, split {split} of digits'
  assert len(calls) == 2
  assert file.read_bytes() == before if other_data else not file.exists()


def no_constant(name):
  raise AssertionError(f'{name} is not JSON')


def test_a_loss_that_is_not_finite_is_null_in_strict_json_and_a_dash(trained, tmp_path, capsys):
  folder, model = copied(trained, tmp_path), bundle.read(trained)
  params = jax.tree.map(lambda leaf: leaf * np.float32(1e30), model.params)
  shutil.rmtree(folder / 'model')
  bundle.write(folder / 'model', dataclasses.replace(model, params=params, card=''))
  (folder / results.FILE).unlink()
  assert commands.main(['report', str(folder)]) == 3
  assert 'the loss of the model is not finite' in capsys.readouterr().err
  text = (folder / results.FILE).read_text()
  assert json.loads(text, parse_constant=no_constant)['loss'] is None
  assert '<b>-</b>loss</div>' in (folder / report.PAGE).read_text()
  out = tmp_path / 'out.json'
  words = ['evaluate', str(folder), '--out', str(out), '--format', 'json']
  assert commands.main(words) == 0
  for printed in (out.read_text(), capsys.readouterr().out):
    assert json.loads(printed, parse_constant=no_constant)['loss'] is None


def test_what_is_not_finite_is_null_wherever_it_stands():
  values = {'a': [float('nan'), 1.5, (float('inf'),)], 'b': {'c': -float('inf'), 'd': 'NaN'}}
  text = as_json(values)
  assert json.loads(text, parse_constant=no_constant) == {
    'a': [None, 1.5, [None]],
    'b': {'c': None, 'd': 'NaN'},
  }


def test_a_task_that_is_no_classifier_has_its_own_numbers_on_page_and_card(trained, tmp_path):
  folder = copied(trained, tmp_path)
  record = {'source': 'digits', 'split': 'test', 'step': 12, 'use': 'test', 'count': 359}
  numbers = {'loss': 0.25, 'pixel_error': 1.5, 'sharpness': None}
  results.write(folder, record | numbers | {'unlabelled': 0, 'bad_images': 0, 'neurons': [1]})
  rows = [
    {'step': 12, 'train/loss': 0.5, 'train/pixel_error': 2.0},
    {'step': 12, 'validation/loss': 0.375, 'validation/pixel_error': 1.75},
  ]
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  data = json.loads((folder / 'data.json').read_text())
  (folder / 'data.json').write_text(json.dumps(data | {'ranks': {'pixel_error': -1}}))
  config = json.loads((folder / 'config.json').read_text()) | {'task': 'mine:rebuild'}
  (folder / 'config.json').write_text(json.dumps(config))
  encoder = bundle.read(trained)
  model = encoder.model.clone(num_classes=0)
  params = {name: part for name, part in encoder.params.items() if name != 'head'}
  encoder = dataclasses.replace(encoder, model=model, params=params, classes=(), card='')
  shutil.rmtree(folder / 'model')
  bundle.write(folder / 'model', encoder)
  gathered = facts.gather(folder)
  assert report_page.headlines(gathered) == [
    ('0.25', 'loss'),
    ('1.5', 'pixel error'),
    ('-', 'sharpness'),
  ]
  assert report_page.other_splits(gathered) == [
    'During training, at step 12, on 0 images, split validation of digits: pixel error 1.75.'
  ]
  text = report_page.as_html(gathered)
  assert gathered.left_out == [] and report_page.as_png(gathered)
  assert [title for title in report_page.SECTIONS if f'>{title}</h2>' in text] == ['Results']
  assert '<h3>Pixel error</h3>' in text and 'Accuracy' not in text
  card.write(folder, encoder, config, step=12)
  written = (folder / 'model' / 'README.md').read_text()
  assert '| split | images | loss | pixel error | sharpness | step |' in written
  assert '| digits, split validation | - | 0.3750 | 1.7500 | - | 12 |' in written
  assert '| digits, split test | 359 | 0.2500 | 1.5000 | - | 12 |' in written
  assert '| task | mine:rebuild |' in written and '| loss |' not in written.split('## Results')[0]


def test_what_ranks_is_what_the_task_says_of_an_old_run_a_classifiers(trained, tmp_path):
  assert workdir.read_ranks(trained) == classify.RANKS
  assert list(workdir.read_ranks(trained)) == list(classify.RANKS)
  assert workdir.read_ranks(tmp_path) == classify.RANKS
  for ranks, held in (
    ({'recall': 1, 'loss': -1}, {'recall': 1, 'loss': -1}),
    ({'recall': 'more'}, classify.RANKS),
    ([1], classify.RANKS),
    ({}, classify.RANKS),
  ):
    (tmp_path / 'data.json').write_text(json.dumps({'ranks': ranks}))
    assert workdir.read_ranks(tmp_path) == held


def test_training_ends_with_a_page_a_picture_and_a_record(trained):
  text = (trained / report.PAGE).read_text()
  assert text.startswith('<!doctype html>') and '{{' not in text
  with Image.open(trained / report.PICTURE) as picture:
    assert min(picture.size) >= 500
  held = json.loads((trained / workdir.ENVIRONMENT).read_text())
  assert held['packages']['jax'] and held['devices']
  assert shlex.split(held['command']) == ['vit', 'train', *words_of(trained)]
  command = held['command'].replace(f'{trained.parent}/', '')
  assert unescape(text).count(f'<pre id="command">{command}</pre>') == 1
  assert str(trained.parent) in held['command'] and str(trained.parent) not in text
  commit = workdir.git('rev-parse', 'HEAD')
  assert held.get('commit') == commit and (not commit or commit in text)


def test_the_command_is_recorded_before_training_and_again_at_each_start(tmp_path, monkeypatch):
  def failing(*_):
    raise FloatingPointError('step 1')

  monkeypatch.setattr(train, 'run_to_end', failing)
  assert main.main(words_of(tmp_path)) == NOT_FINITE
  monkeypatch.setattr('sys.argv', ['main.py', *words_of(tmp_path), '--config.system.threads=1'])
  for start, words in (
    (['vit', 'train'], words_of(tmp_path)),
    (['python', '-m', 'vit_jax.main'], [*words_of(tmp_path), '--config.system.threads=1']),
  ):
    held = json.loads((tmp_path / workdir.ENVIRONMENT).read_text())
    assert shlex.split(held['command']) == [*start, *words]
    gathered = facts.gather(tmp_path)
    command = held['command'].replace(f'{tmp_path.parent}/', '')
    section = unescape(report_page.environment(gathered))
    assert section.startswith(f'<pre id="command">{command}</pre>')
    assert main.main() == NOT_FINITE


def test_another_run_is_refused_without_a_new_record(trained, tmp_path, capsys):
  folder = copied(trained, tmp_path)
  before = (folder / workdir.ENVIRONMENT).read_bytes()
  assert main.main(words_of(folder, {'seed': 5})) == 2
  assert main.main(words_of(folder)) == 0  # it is finished
  assert (folder / workdir.ENVIRONMENT).read_bytes() == before


def test_a_run_of_an_earlier_version_has_no_record_and_a_report(trained, tmp_path):
  folder = copied(trained, tmp_path)
  (folder / workdir.ENVIRONMENT).unlink()
  assert 'Not recorded' in report_page.environment(facts.gather(folder))


def test_the_headline_is_what_evaluation_gives_with_its_split_and_count(report_tab, values):
  cards = report_tab.run('Array.from(document.querySelectorAll(".card"), (card) => card.innerText)')
  assert values['step'] == 12 and cards[:4] == [
    f'{100 * values["accuracy"]:.2f}%\naccuracy',
    f'{100 * values["top5"]:.2f}%\ntop-5 accuracy',
    f'{values["loss"]:.4g}\nloss',
    f'{100 * values["calibration_error"]:.2f}%\ncalibration error',
  ]
  on = f'Measured at step 12 on {values["count"]} images, split test of digits.'
  assert report_tab.text('.verdict + p') == on
  assert report_tab.run('document.body.innerText.match(/split test of/g).length') == 1


def test_the_confusion_matrix_and_the_classes_are_those_of_evaluation(report_tab, values):
  cells = report_tab.run(
    'Array.from(document.querySelectorAll(".confusion tbody tr"), '
    '(row) => Array.from(row.querySelectorAll("td"), (cell) => +cell.textContent))'
  )
  assert cells == values['confusion']
  rows = report_tab.run(
    'Array.from(document.querySelectorAll("[aria-labelledby=classes] tbody tr"), '
    '(row) => Array.from(row.children, (cell) => cell.textContent))'
  )
  output = {
    row['name']: [str(row['count']), percent(row['recall']), percent(row['precision'])]
    for row in values['classes']
  }
  assert {name: numbers for name, _, _, _, *numbers in rows} == output


def test_curves_have_a_point_for_every_logged_number(report_tab, trained, whole):
  rows = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
  names = {'Loss': 'loss', 'Accuracy': 'accuracy', 'Learning rate': 'learning_rate'}
  names |= {'Images a second': 'images_per_second', 'Time waiting for data': 'data_wait'}
  for chart in curves.charts(whole):
    titles = report_tab.run(
      f'Array.from(document.querySelectorAll("figure.chart")).filter((f) => f.querySelector("h3")'
      f'?.textContent === {json.dumps(chart.title)}).flatMap((f) => Array.from('
      'f.querySelectorAll("circle title"), (t) => t.textContent))'
    )
    shown, points = percent if chart.percent else number, []
    for prefix, words in {'train/': 'training', 'validation/': 'validation'}.items():
      key = prefix + names[chart.title]
      words = words if chart.title in ('Loss', 'Accuracy') else 'logged'
      points += [f'{words}, step {row["step"]}: {shown(row[key])}' for row in rows if key in row]
    assert titles == points and points


def test_the_page_fits_a_phone_and_the_dark(report_tab):
  report_tab.window(360, 700, dark=True)
  assert report_tab.run('document.documentElement.scrollWidth') == 360
  ratio, light = contrast(report_tab)
  assert ratio > 7 and not light


@pytest.mark.parametrize('width', [360, 1100])
def test_no_number_is_broken_in_two_lines(report_tab, width):
  report_tab.window(width, 700)
  report_tab.run(
    'lines = (cell) => {const text = document.createRange(); text.selectNodeContents(cell); '
    'return new Set(Array.from(text.getClientRects(), (box) => box.top)).size}'
  )
  broken = report_tab.run(
    "Array.from(document.querySelectorAll('thead th, td'))"
    '.filter((cell) => /^[\\d.,]+%?$|^[a-z]+$/.test(cell.textContent))'
    '.filter((cell) => lines(cell) > 1).map((cell) => cell.textContent)'
  )
  assert broken == []


def test_mistakes_are_wrong_and_the_surest_of_all(trained):
  gathered, run = facts.gather(trained), vit_jax.load(trained)
  data = inputs.open_split(trained)
  images = [run.transform(row['image'], None) for row in data.source]
  scores = run.forward(images)['scores']
  labels = np.array([row['label'] for row in data.source])
  wrong = np.flatnonzero(scores.argmax(1) != labels)
  surest = wrong[np.argsort(-scores.max(1)[wrong])][: classify.MISTAKES]
  assert len(gathered.mistakes) == len(surest) == classify.MISTAKES
  for mistake, place in zip(gathered.mistakes, surest):
    assert mistake.name == data.source.describe(place)
    assert mistake.confidence == pytest.approx(scores[place].max(), abs=1e-6)
    assert mistake.label == str(labels[place])
    assert mistake.prediction == str(scores[place].argmax())
    np.testing.assert_array_equal(mistake.image, images[place])


def embedded(text, kind='png'):
  """The pictures in a page, as arrays."""
  files = [
    base64.b64decode(gathered)
    for gathered in re.findall(rf'data:image/{kind};base64,([\w+/=]+)', text)
  ]
  return [np.asarray(Image.open(io.BytesIO(file)).convert('RGBA')) for file in files]


def test_beside_a_mistake_lies_the_attention_of_its_image(trained, whole):
  run = vit_jax.load(trained)
  for mistake in whole.mistakes:
    weights = analysis.attention(run, mistake.image).maps()[-1].mean(0)
    np.testing.assert_allclose(mistake.attention, weights, atol=1e-6)
    image, overlay = embedded(report_images.mistake_figure(mistake))  # the image once
    np.testing.assert_array_equal(image[..., :3], mistake.image)
    (expected,) = embedded(parts.heatmap(mistake.attention))
    np.testing.assert_array_equal(overlay, expected)
    np.testing.assert_array_equal(overlay.shape[:2], weights.shape)
    darkest, brightest = (
      overlay[..., :3].sum(-1).ravel()[f(weights)] for f in (np.argmin, np.argmax)
    )
    assert darkest < brightest


@pytest.mark.parametrize(
  'fields', [{}, {'registers': 2, 'pool': 'gap', 'class_token': True}, {'pool': 'map'}]
)
def test_the_attention_of_a_mistake_is_what_the_head_reads_in_the_last_layer(fields):
  gathered = run_of(**fields)
  weights = analysis.attention(gathered, pixels(0)).maps()[-1].mean(0)
  np.testing.assert_allclose(facts.last_attention(gathered, pixels(0)), weights, atol=1e-6)


def test_mistakes_are_pictures_of_their_images_whatever_their_names(report_tab, trained):
  shots = report_tab.run(
    'Array.from(document.querySelectorAll(".pair"), (pair) => Array.from(pair.children, (shot) => '
    '[getComputedStyle(shot).backgroundImage, shot.offsetWidth, shot.offsetHeight, '
    'shot.querySelectorAll("img").length]))'
  )
  assert len(shots) == classify.MISTAKES
  for plain, over in shots:
    assert plain[0].startswith('url("data:image/png') and plain[:3] == over[:3]
    assert plain[1] == pytest.approx(plain[2], abs=1) and plain[1] > 50  # 8 x 8 pixels
    assert (plain[3], over[3]) == (0, 1)
  attention = np.ones((2, 3))
  for name in ('A', 'data:image', '"><b>', '--image'):
    mistake = facts.Mistake(name, pixels(0), 'a', 'b', 0.5, attention)
    image, _ = embedded(report_images.mistake_figure(mistake))
    np.testing.assert_array_equal(image[..., :3], pixels(0))
    assert f'aria-label="{escape(name)}"' in report_images.mistake_figure(mistake)


def test_photos_are_jpegs_of_that_image():
  image = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
  image = np.asarray(Image.fromarray(image).resize((100, 64), Image.Resampling.BICUBIC))
  (shown,) = embedded(photos.photo(image), 'jpeg')
  assert shown.shape[:2] == (64, 100)
  assert np.abs(shown[..., :3].astype(int) - image).mean() < 8
  assert len(photos.photo(image)) < len(parts.data_uri(image))
  assert photos.photo(image[:63]).startswith('data:image/png')


def test_mistakes_that_cannot_be_drawn_are_told_and_the_measures_stay(trained, monkeypatch):
  def without_memory(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setattr(facts, 'last_attention', without_memory)
  gathered = facts.gather(trained)
  assert gathered.measured and gathered.left_out == [
    'its mistakes could not be drawn: RESOURCE_EXHAUSTED: out of memory'
  ]
  assert 'Their images could not be read.' in report_page.as_html(gathered)
  gathered.measured['mistakes'] = []
  assert 'No image was misclassified.' in report_page.as_html(gathered)


@pytest.mark.parametrize('index', [0, 10_000])
def test_an_image_that_is_no_longer_that_of_a_mistake_is_not_drawn(index, trained, tmp_path):
  folder, values = copied(trained, tmp_path), results.read(trained)
  name = values['mistakes'][3]['image']
  values['mistakes'][3]['index'] = index
  results.write(folder, values)
  gathered = facts.gather(folder)
  (line,) = gathered.left_out
  assert f'{name} is no longer image {index} of split test' in line
  assert gathered.mistakes == [] and gathered.measured == values


@pytest.mark.parametrize('where', ['read', 'evaluate_model'])
def test_a_model_that_finds_no_memory_costs_no_curves(where, trained, tmp_path, monkeypatch):
  def without_memory(*_, **__):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

  folder = copied(trained, tmp_path)
  if where == 'evaluate_model':
    (folder / results.FILE).unlink()
  monkeypatch.setattr(
    *{'read': (bundle, 'read'), 'evaluate_model': (accuracy, 'evaluate_model')}[where],
    without_memory,
  )
  gathered = report_command.measure(folder)
  assert len(gathered.left_out) == 1 and gathered.left_out[0].endswith('out of memory')
  assert (gathered.measured is None) == (where == 'evaluate_model')
  assert 'training, step 2: ' in report_page.as_html(gathered)


def test_a_model_without_attention_has_mistakes_without_it():
  model = vit_jax.build('Mixer-S/32', patch=4, width=16, depth=1, mlp_dim=8, tokens_dim=8)
  params = drawn(shapes(model, SIZE))
  run = predict.Run(model, params, (), bundle.Preprocess('resize', SIZE), 'Mixer-S/32')
  assert facts.last_attention(run, pixels(0)) is None
  mistake = facts.Mistake('one', pixels(0), 'a', 'b', 0.5, None)
  assert 'its attention' not in report_images.mistake_figure(mistake)


def test_what_a_report_lacks_is_told_and_its_code_is_3(trained, tmp_path, capsys):
  unfinished = copied(trained, tmp_path)
  shutil.rmtree(unfinished / 'model')
  shutil.move(unfinished / 'checkpoints', tmp_path / 'checkpoints')
  (unfinished / results.VALIDATION).unlink()
  assert commands.main(['report', str(unfinished)]) == 3
  assert 'is a run that has saved nothing yet' in capsys.readouterr().err
  assert 'training, step 2: ' in (unfinished / report.PAGE).read_text()
  on_other_data(unfinished, f'folder:{tmp_path}/gone')
  shutil.copytree(trained / 'model', unfinished / 'model')
  assert commands.main(['report', str(unfinished)]) == 3
  assert 'the data cannot be opened' in capsys.readouterr().err
  text = (unfinished / report.PAGE).read_text()
  assert 'Filters and positions' in text and 'Their images could not be read.' in text
  assert 'on 359 images, split test of folder:gone' in text  # the numbers stay
  (unfinished / results.FILE).unlink()
  assert 'the data cannot be opened' in report_command.measure(unfinished).left_out[0]


def test_a_model_that_is_not_finite_costs_its_measures_and_not_the_report(trained, tmp_path):
  folder, model = copied(trained, tmp_path), bundle.read(trained)
  (folder / results.FILE).unlink()
  params = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), model.params)
  shutil.rmtree(folder / 'model')
  bundle.write(folder / 'model', dataclasses.replace(model, params=params, card=''))
  gathered = report_command.measure(folder)
  assert any('parameters that are not finite' in line for line in gathered.left_out)
  assert not (folder / results.FILE).exists()
  assert 'training, step 2: ' in report_page.as_html(gathered)


@pytest.mark.parametrize(
  'flags', [('--split', 'tset'), ('--on', 'nonsense'), ('--on', 'digits', '--split', 'test[:0]')]
)
def test_a_mistake_in_a_flag_costs_a_line_and_no_report(flags, trained, tmp_path, capsys):
  folder = copied(trained, tmp_path)
  (folder / report.PAGE).write_text('kept')
  assert commands.main(['report', str(folder), *flags]) == 2
  assert capsys.readouterr().err.count('\n') == 1
  assert (folder / report.PAGE).read_text() == 'kept'


def test_neither_file_is_replaced_where_one_cannot_be(trained, tmp_path, capsys):
  folder = copied(trained, tmp_path)
  (folder / report.PICTURE).unlink(missing_ok=True)
  (folder / report.PICTURE).mkdir()
  (folder / report.PAGE).write_text('kept')
  assert commands.main(['report', str(folder)]) == 2
  assert report.PICTURE in capsys.readouterr().err
  assert (folder / report.PAGE).read_text() == 'kept' and not list(folder.glob('.report*'))


@pytest.mark.parametrize(
  'content',
  [
    '{"step": 1, "train/loss": 1' + '0' * 400 + '}',
    '{"step": 1' + '0' * 400 + ', "train/loss": 1}',
    '{"step": 1, "train/loss": 1.7e308}\n{"step": 2, "train/loss": -1.7e308}',
    '[' * 100_000,
  ],
)
def test_a_damaged_log_costs_its_curves_and_not_the_report(content, trained, tmp_path):
  folder = copied(trained, tmp_path)
  (folder / 'metrics.jsonl').write_text(content)
  gathered = facts.gather(folder)
  report_page.curves_section(gathered)
  assert report_page.as_png(gathered)


@pytest.mark.parametrize('content', ['{"packages": ["a"]}', '{"packages": null, "comm'])
def test_a_damaged_record_costs_what_it_holds_and_not_the_report(content, trained, tmp_path):
  folder = copied(trained, tmp_path)
  (folder / 'environment.json').write_text(content)
  assert '<pre' not in report_page.environment(facts.gather(folder))


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


def test_what_is_left_out_is_told_with_its_paths_and_on_the_page_without_their_folders(
  trained, tmp_path
):
  folder = copied(trained, tmp_path)
  on_other_data(folder, f'folder:{tmp_path}/Photos/ROSES')
  gathered = facts.gather(folder)
  (line,) = gathered.left_out
  assert f'{tmp_path}/Photos/ROSES' in line
  text = report_page.as_html(gathered)
  assert escape(f'T{line[1:]}.'.replace(f'{tmp_path}/Photos/', '')) in text
  assert str(tmp_path) not in text


def test_names_in_a_report_are_text(trained):
  gathered = facts.gather(trained)
  for row in gathered.measured['classes']:
    row['name'] = f'<script>{row["name"]}'
  text = report_page.as_html(gathered)
  assert text.count('<script') == 1 and '&lt;script&gt;0' in text  # its own


def test_many_classes_are_a_picture(trained):
  gathered = facts.gather(trained)
  count = report_images.TABLE + 1
  gathered.measured['confusion'] = np.eye(count, dtype=int).tolist()
  row = gathered.measured['classes'][0]
  gathered.measured['classes'] = [row | {'name': str(k)} for k in range(count)]
  assert '<table class="confusion' not in report_images.confusion(gathered)
  assert 'data:image/png' in report_images.confusion(gathered)
  assert '<details open><summary>121 classes' in report_images.classes(gathered)
  matrix = np.eye(count, dtype=int)
  for cell, times in {(5, 9): 7, (9, 5): 3, (100, 2): 4}.items():
    matrix[cell] = times
  gathered.measured['confusion'] = matrix.tolist()
  text = report_images.confusion(gathered)
  table = re.search('<table class="confusion".*?</table>', text)[0]
  assert re.findall(r'<th scope="row">(\d+)', table) == ['5', '9', '100', '2']
  assert re.findall(r'<td class="miss".*?>(\d+)', table) == ['7', '3', '4']


@pytest.mark.parametrize('count', [31, 1000, 1001, 2500])
def test_the_picture_of_the_confusion_has_the_shares_of_neighbours_together(count):
  random = np.random.default_rng(0)
  matrix = random.integers(0, 5, (count, count))
  matrix[3] = 0
  size = -(-count // charts.CELLS)
  side = -(-count // size)
  assert side <= 1000
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  expected = np.zeros((side, side))
  labels, guesses = np.indices(matrix.shape) // size
  np.add.at(expected, (labels, guesses), shares)
  expected /= np.bincount(np.arange(count) // size)[:, None]
  np.testing.assert_allclose(charts.binned(matrix), expected, atol=1e-7)
  axes = pictures.figure(4, 4).subplots()
  names = [str(k) for k in range(count)]
  charts.plot_confusion(axes, matrix, names, size=11)
  shown = np.asarray(axes.images[0].get_array())
  np.testing.assert_allclose(shown**2, expected, atol=1e-6)
  assert f'of up to {size} labels' in report_images.confusion_picture(matrix, names) or size == 1


def test_more_classes_than_a_list_takes_are_counted_and_those_without_images_apart(whole, capsys):
  classes = [
    {'name': str(k), 'count': 4 * (k > 2), 'precision': 0.0, 'recall': k / 2000 if k > 2 else None}
    for k in range(1010)
  ]
  values = whole.measured | {'classes': classes, 'confusion': None, 'mistakes': []}
  gathered = dataclasses.replace(whole, measured=values, mistakes=[])
  text = report_page.as_html(gathered)
  assert '... and 10 more: 7 with no lower recall, 3 without images.' in text
  assert 'too many classes for a matrix' in text and report_page.as_png(gathered)
  assert (
    accuracy.lines(values)[-2] == '... and 1,000 more: 997 with no lower recall, 3 without images'
  )
  few = values | {'classes': classes[:5]}
  assert not any('more' in line for line in accuracy.lines(few)[:-1])


def test_the_table_of_calibration_is_that_of_evaluation(report_tab, values):
  rows = report_tab.run(
    'Array.from(document.querySelectorAll("[aria-labelledby=calibration] tbody tr"), '
    '(row) => Array.from(row.children, (cell) => cell.textContent))'
  )
  expected = [
    [
      f'{percent(row["from"])} to {percent(row["to"])}',
      str(row['count']),
      percent(row['confidence']),
      percent(row['accuracy']),
    ]
    for row in values['calibration']
    if row['count']
  ]
  assert rows == expected and len(rows) > 1
  output = report_tab.text('[aria-labelledby=calibration] p')
  assert f'error {percent(values["calibration_error"])},' in output


def test_filters_and_positions_are_those_of_inspection(trained, whole):
  run = vit_jax.load(trained)
  filters = analysis.filters(run.model, run.params).components
  positions = analysis.position_similarity(run.model, run.params, run.preprocess.size).patches
  files = [pictures.filters(filters, 'Filters'), pictures.positions(positions, 'Positions')]
  gathered = re.findall(r'data:image/png;base64,([\w+/=]+)', report_page.weights_section(whole))
  assert [base64.b64decode(text) for text in gathered] == files


def test_the_picture_has_every_curve_and_the_headlines(whole):
  figure = report_page.summary(whole)
  axes = {axis.get_title(): axis for axis in figure.axes}
  for chart in curves.charts(whole):
    lines = {line.get_label(): line for line in axes[chart.title].lines}
    logged = {name: line for name, line in chart.lines.items() if len(line[0])}
    assert sorted(lines) == sorted(logged) and logged
    for name, line in logged.items():
      np.testing.assert_array_equal(lines[name].get_xydata().T, line)
  np.testing.assert_array_equal(axes['Loss'].lines[0].get_xydata().T, whole.curve('train/loss'))
  bins = [row for row in whole.measured['calibration'] if row['count']]
  drawn = axes['Calibration'].lines[0].get_xydata()
  np.testing.assert_array_equal(drawn, [[row['confidence'], row['accuracy']] for row in bins])
  (image,) = axes['Confusion'].images
  matrix = np.array(whole.measured['confusion'])
  np.testing.assert_allclose(
    np.asarray(image.get_array()) ** 2, matrix / matrix.sum(1, keepdims=True), atol=1e-6
  )
  (text,) = figure.axes[0].texts
  output = ' '.join(text.get_text().split())
  assert all(f'{number} {caption}' in output for number, caption in report_page.headlines(whole))


# What a report opens with, and the images that it shows


def classes_of(**counts):
  """'classes' of an evaluation, from (images, right ones) of each."""
  return [
    {'name': name, 'count': count, 'recall': right / count if count else None, 'precision': None}
    for name, (count, right) in counts.items()
  ]


@pytest.mark.parametrize(
  'counts, text',
  [
    (
      dict(flower=(8, 8), coast=(30, 20), texture=(5, 0), tissue=(3, 0), empty=(0, 0)),
      '28 of 46 images right (60.87%); never: texture (5 images), tissue (3 images). '
      'Always saying coast would give 65.22%.',
    ),
    ({'a': (1, 1)}, '1 of 1 image right (100.00%). Always saying a would give 100.00%.'),
    (
      {str(k): (2, 0) for k in range(7)},
      '0 of 14 images right (0.00%); never: 0 (2 images), 1 (2 images), 2 (2 images), '
      '3 (2 images), 4 (2 images) and 2 more. Always saying 0 would give 14.29%.',
    ),
  ],
)
def test_the_sentence_says_what_is_right_what_never_and_what_always_saying_one_class_would_give(
  counts, text
):
  count, right = map(sum, zip(*counts.values()))
  values = {'classes': classes_of(**counts), 'count': count, 'accuracy': right / count}
  assert opening.verdict(values) == text
  assert opening.verdict({'loss': 0.5, 'count': 3}) == ''


def test_a_class_shows_its_surest_right_its_surest_wrong_and_its_typical_image(whole):
  values = whole.measured
  images = photos.Images.of(values)
  for k in range(10):
    columns = zip(*(values['images'][name] for name in ('index', 'label', 'guess', 'confidence')))
    rows = [(sure, index, guess == k) for index, label, guess, sure in columns if label == k]
    shown = images.of_class(k)
    for kind, is_right in (('right', True), ('wrong', False)):
      surest = max(((sure, -index) for sure, index, right in rows if right == is_right), default=0)
      if not surest:
        assert kind not in shown
        continue
      assert (images.confidence[shown[kind]], -images.index[shown[kind]]) == surest
    typical = values['images']['typical'][shown['typical']]
    of_class = [t for t, y in zip(values['images']['typical'], values['images']['label']) if y == k]
    assert typical == max(of_class)


def test_a_cell_of_the_confusion_matrix_opens_its_images(report_tab, values):
  images = values['images']
  cells = list(zip(images['label'], images['guess']))
  label, guess = next(cell for cell in cells if cell[0] != cell[1])
  report_tab.click(f'.confusion a[href="#cell-{label}-{guess}"]')
  report_tab.until('document.getElementById("zoom").open')
  count = cells.count((label, guess))
  assert report_tab.text('#zoom h3').startswith(f'{label}, taken for {guess}: {count} image')
  sures = sorted((s for s, cell in zip(images['confidence'], cells) if cell == (label, guess)))[
    ::-1
  ]
  output = report_tab.run(
    'Array.from(document.querySelectorAll("#zoom figcaption"), (c) => c.textContent)'
  )
  assert output == [f'at {percent(sure)}' for sure in sures[: photos.OF_CELL]]
  report_tab.press('Escape')
  report_tab.until('!document.getElementById("zoom").open')


def test_photos_enlarge_by_keyboard_and_on_a_phone(report_tab):
  report_tab.window(390, 800, dark=True)
  assert report_tab.run('document.documentElement.scrollWidth') == 390
  report_tab.run('document.querySelector(".classes .photo").focus()')
  report_tab.press('Enter')
  report_tab.until('document.getElementById("zoom").open')
  small, large = report_tab.run(
    '[".classes .photo", "#zoom .zoomed"].map((s) => {const e = document.querySelector(s); '
    'return [getComputedStyle(e).backgroundImage, e.getBoundingClientRect().width]; })'
  )
  assert small[0] == large[0] != 'none' and large[1] > 250 > 100 > small[1]
  assert report_tab.text('#zoom p').endswith('%')
  report_tab.press('Enter')  # the button that closes it has the focus
  report_tab.until('!document.getElementById("zoom").open')


def test_a_curve_says_its_numbers_at_the_pointer_and_by_arrows_and_is_smoothed(report_tab, whole):
  steps, losses = whole.curve('train/loss')
  report_tab.run('document.querySelector("[aria-labelledby=curves] svg").focus()')
  for step, loss in list(zip(steps, losses))[:2]:
    report_tab.press('ArrowRight')
    assert f'training, step {number(step)}: {number(loss)}' in report_tab.text(
      '[aria-labelledby=curves] .reading'
    )
  report_tab.hover('[aria-labelledby=curves] svg')
  assert (
    report_tab.text('[aria-labelledby=curves] .reading').count(', step ') == 2
  )  # training and validation
  path = 'document.querySelector(".line.s0 polyline:last-of-type").getAttribute("points")'
  before = report_tab.run(path)
  choose(report_tab, smoothing=0.9)
  ys = [float(point.split(',')[1]) for point in before.split()]
  smoothed = [float(point.split(',')[1]) for point in report_tab.run(path).split()]
  mean = 0.9 * (0.1 * ys[0]) + 0.1 * ys[1]
  assert smoothed[:2] == pytest.approx([ys[0], mean / (1 - 0.9**2)], abs=0.02)
  choose(report_tab, smoothing=0)
  assert [float(p.split(',')[1]) for p in report_tab.run(path).split()] == pytest.approx(ys)


def test_the_schedule_is_that_of_every_step_of_the_run(whole):
  chart = next(chart for chart in curves.charts(whole) if chart.title == 'Learning rate')
  steps, rates = chart.lines['schedule']
  assert (steps[0], steps[-1]) == (1, 12)
  for step, rate in zip(*chart.lines['logged']):
    assert np.interp(step, steps, rates) == pytest.approx(rate, abs=1e-3 * rates.max())
  config = {
    **whole.config,
    'duration': '100000 steps',
    'schedule': whole.config['schedule'] | {'name': 'step', 'boundaries': ['31415 steps']},
  }
  long = dataclasses.replace(whole, config=config, status={})
  steps, rates = curves.schedule(long)
  assert len(steps) < 10 and (steps[0], steps[-1]) == (1, 100_000)
  last, first = steps[rates > 5e-3][-1], steps[(rates < 5e-3) & (steps > 10)][0]
  assert last == 31415 and first == 31416  # one update after the other
  leg = Leg(6, {'schedule.learning_rate': [1e-2, 1e-3]}, {})
  changed = {**whole.config, 'schedule': {**whole.config['schedule'], 'learning_rate': 1e-3}}
  both = dataclasses.replace(whole, config=changed, legs=(leg,))
  chart = next(chart for chart in curves.charts(both) if chart.title == 'Learning rate')
  steps, rates = chart.lines['schedule']
  whole_rates = np.interp(np.arange(1, 13), *curves.schedule(whole))
  scale = np.where(np.arange(1, 13) <= 6, 1, 0.1)
  output = np.interp(np.arange(1, 13), steps, rates)
  np.testing.assert_allclose(output, scale * whole_rates, atol=2e-3 * rates.max())
  assert [*chart.marks] == [6] and 'learning_rate 0.01 -> 0.001' in chart.marks[6]
  assert 'learning_rate 0.01 -&gt; 0.001' in svg.as_html(chart)


@pytest.mark.parametrize(
  'objective, model, texts',
  [
    (
      {'smoothing': 0.1, 'loss': 'softmax'},
      {},
      ['smoothing of 0.1, with which the loss is 0.5 at'],
    ),
    (
      {'smoothing': 0.1, 'loss': 'sigmoid'},
      {'drop_path': 0.2},
      ['smoothing of 0.1', 'drop path of'],
    ),
    ({'mixup': 0.2, 'cutmix': 1.0}, {}, ['blended, with soft labels (mixup 0.2, cutmix 1)']),
    ({}, {}, []),
  ],
)
def test_a_training_loss_above_that_of_validation_is_explained_by_the_config(
  objective, model, texts, whole
):
  config = {**whole.config, 'objective': objective, 'model': model, 'data': {'augment': ''}}
  rows = [{'step': 1, 'train/loss': 2.0}, {'step': 1, 'validation/loss': 1.5}]
  gathered = dataclasses.replace(whole, config=config, rows=rows)
  line = curves.gap(gathered)
  assert line.startswith('Training ends at 2, above validation at 1.5. In training alone: ')
  assert all(text in line for text in texts or ['the model was still worse'])
  assert curves.gap(dataclasses.replace(gathered, rows=[*rows, {'step': 2, 'train/loss': 1}])) == ''


def test_of_fewer_than_a_hundred_images_no_calibration_is_shown_and_why_is_said(whole):
  few = dataclasses.replace(whole, measured=whole.measured | {'count': 99})
  text = report_page.calibration(few)
  assert 'Not shown: of 99 images, a bin of confidence would have 6.6 on average' in text
  assert '<svg' not in text and '<svg' in report_page.calibration(whole)
  assert 'calibration error' not in dict(map(reversed, report_page.headlines(few)))


def test_what_the_data_has_twice_is_shown_in_pairs_of_a_sample_where_it_is_large(
  whole, monkeypatch
):
  random = np.random.default_rng(0)
  images = list(random.integers(0, 256, (8, 16, 16, 3), np.uint8))
  large = [np.kron(image[:4, :4], np.ones((8, 8, 1), np.uint8)) for image in images]
  nearly = np.minimum(large[2].astype(int) + 1, 255).astype(np.uint8)
  splits = {
    'train': [(large[0], 0), (large[1], 1), (large[0], 1), (large[2], 0)],
    'test': [(large[1], 1), (nearly, 0), (large[3], 0)],
  }
  opened = {
    use: sources.Source([{'image': i, 'label': np.int32(y)} for i, y in rows], ('a', 'b'))
    for use, rows in splits.items()
  }
  twice = repeats.read(opened, bundle.Preprocess('resize', (8, 8)).transform)
  assert twice.counts == {'conflicts': 1, 'equal': 1, 'near': 1}
  assert twice.looked_at == twice.images == {'train': 4, 'test': 3}
  assert twice.conflicts[0].names == ('image 0 (train, a)', 'image 2 (train, b)')
  assert twice.equal[0].names == ('image 1 (train, b)', 'image 0 (test, b)')
  assert twice.near[0].names == ('image 3 (train, a)', 'image 1 (test, a)')
  monkeypatch.setattr(repeats, 'LARGEST', 6)  # test whole, and images 0, 1 and 3 of train
  twice = repeats.read(opened, bundle.Preprocess('resize', (8, 8)).transform)
  assert twice.counts == {'conflicts': 0, 'equal': 1, 'near': 1}
  assert twice.looked_at == {'train': 3, 'test': 3}
  assert twice.near[0].names == ('image 3 (train, a)', 'image 1 (test, a)')
  text = report_images.twice(dataclasses.replace(whole, repeats=twice))
  assert '3 of 4 of train, 3 of 3 of test' in text and 'vit data show digits' in text


def test_a_report_of_a_thousand_classes_is_below_8_megabytes(whole):
  random, count, classes = np.random.default_rng(0), 5000, 1000
  label, guess = random.integers(0, classes, (2, count))
  matrix = np.zeros((classes, classes), int)
  np.add.at(matrix, (label, guess), 1)
  images = {'index': [*range(count)], 'label': label.tolist(), 'guess': guess.tolist()}
  images |= {'right': (label == guess).astype(int).tolist()}
  images |= {name: random.random(count).tolist() for name in ('confidence', 'loss', 'typical')}
  images |= {'neighbour': guess.tolist()}
  names = {f'class {k:04} of a thousand': (int(n), 0) for k, n in enumerate(matrix.sum(1))}
  values = whole.measured | {
    'count': count,
    'classes': classes_of(**names),
    'confusion': matrix.tolist(),
  }
  values |= {'images': images, 'confused': []}
  noise = random.integers(0, 256, (64, 224, 224, 3), np.uint8)  # no photograph is larger
  source = sources.Source(
    [{'image': noise[i % 64], 'label': np.int32(0)} for i in range(count)], ()
  )
  gathered = dataclasses.replace(whole, measured=values, mistakes=[])
  gathered = facts.with_photos(gathered, inputs.Split('noise', 'all', source))
  assert len(gathered.photos.uris) > 500
  assert len(report.encoded(gathered)) < 8_000_000


def test_a_live_report_that_cannot_be_written_costs_a_line(trained, tmp_path):
  folder, lines = copied(trained, tmp_path), []
  shutil.rmtree(folder / 'model')
  (folder / report.PAGE).mkdir()
  source, values = (
    sources.open_source('digits', 'validation'),
    results.read(folder, results.VALIDATION),
  )
  assert values['step'] == 12 and values['use'] == 'validation'
  WHILE_TRAINING(folder, values, {'step': 12, 'total': 12}, source, lines.append)
  (line,) = lines
  assert line.startswith('no live report: ') and 'report.html' in line


@pytest.mark.parametrize(
  'status, texts',
  [
    (
      {
        'state': 'evaluating',
        'step': 400,
        'total': 1000,
        'eta_seconds': 5025,
        'last_save': {'step': 350},
      },
      ['Training, step 400 of 1,000 (40%), 1 h 24 min to go, last saved at step 350. Written 2'],
    ),
    (
      {'state': 'training', 'stale': True, 'step': 3, 'total': 9},
      ['trained it is gone, step 3 of'],
    ),
    ({'state': 'failed', 'message': 'step 3: nan'}, ['Failed, not saved yet, step 3: nan. ']),
    (
      {'state': 'stopped', 'last_save': {'step': 3}},
      ['Stopped, last saved at step 3. ', 'command resumes.'],
    ),
    ({'state': 'finished', 'step': 9}, []),
  ],
)
def test_a_page_says_how_its_run_goes_and_is_read_again_only_while_it_lives(status, texts, whole):
  gathered = dataclasses.replace(whole, status=status)
  output = opening.progress_text(status, gathered.written, is_live=gathered.is_live)
  assert all(text in output for text in texts) and bool(output) == bool(texts)
  assert ('name="live"' in report_page.as_html(gathered)) == (status['state'] == 'evaluating')


@pytest.mark.parametrize(
  'error, text',
  [
    (KeyboardInterrupt(), 'Stopped, step 4 of 9 (44%), last saved at step 4. Written 2'),
    (ValueError('a<b at /data/x/1.jpg'), 'last saved at step 4, a&lt;b at 1.jpg. Written 2'),
  ],
)
def test_the_page_of_a_run_that_ends_says_so_and_is_read_again_once_it_resumes(
  error, text, whole, trained, tmp_path
):
  status = {'state': 'training', 'step': 3, 'total': 9}
  live = report.encoded(dataclasses.replace(whole, status=status))
  with pytest.raises(type(error)), train.owned(tmp_path) as holder:
    (tmp_path / report.PAGE).write_bytes(live)
    holder.update(**status | {'step': 4, 'last_save': {'step': 4}})
    raise error
  begin, _, end = (tmp_path / report.PAGE).read_text().partition('<nav')
  assert text in begin and begin.count('class="live"') == 1 and 'read again' not in begin
  assert 'http-equiv="refresh"' not in begin and 'name="live"' not in begin
  assert end == live.decode().partition('<nav')[2]
  (tmp_path / 'config.json').write_bytes((trained / 'config.json').read_bytes())
  report.resume_live(tmp_path, status | {'step': 4})
  again = (tmp_path / report.PAGE).read_text()
  assert 'Training, step 4 of 9 (44%), not saved yet. Written 2' in again
  assert opening.REFRESH.search(again) and again.partition('<nav')[2] == end


def test_a_page_of_a_run_that_trains_is_read_again_where_it_was_until_nothing_newer_comes(
  chromium, whole, tmp_path, monkeypatch
):
  monkeypatch.setattr(opening, 'RELOAD', 1)
  file, status = tmp_path / report.PAGE, {'state': 'training', 'total': 9}
  now = datetime.datetime.now(datetime.UTC)
  pages = [
    report.encoded(dataclasses.replace(whole, status=status | {'step': step}, written=written))
    for step, written in ((3, now), (4, now), (4, now - datetime.timedelta(hours=1)))
  ]
  chromium.window(1100, 900)
  file.write_bytes(pages[0])
  chromium.open(file)
  chromium.run('scrollTo(0, 500)')
  file.write_bytes(pages[1])
  chromium.until_loaded()
  assert 'step 4 of 9' in chromium.text('.live') and chromium.run('scrollY') == 500
  file.write_bytes(pages[2])
  chromium.open(file)
  assert chromium.text('.live').endswith(
    'UTC. Nothing newer came for 10 minutes: the run may have ended.'
  )
  assert not chromium.errors


@pytest.mark.parametrize(
  'text, output',
  [
    ('folder:/home/ann/photos', 'folder:photos'),
    ('vit train --workdir=/data/runs/a', 'vit train --workdir=a'),
    ('cat/1.jpg is no image', 'cat/1.jpg is no image'),
    ('https://host/a/b and gs://bucket/c', 'https://host/a/b and gs://bucket/c'),
    ('resize(scale=8/7) of ~/x/y.jpg', 'resize(scale=8/7) of y.jpg'),
    ('C:\\Users\\ann\\a.jpg', 'a.jpg'),
    ('/my photos/cat/1.jpg', 'cat/1.jpg'),
  ],
)
def test_text_loses_the_folders_of_absolute_paths_alone(text, output):
  assert without_folders(text, '/my photos') == output


# Which parameters became the model


def quoted(gathered, use):
  """{number: step} of what training measured on a split, as the report tells it."""
  split = gathered.config['data'][use]
  lines = [line for line in report_page.other_splits(gathered) if f'split {split} of' in line]
  return [(line.split()[-1].rstrip('.'), line) for line in lines]


def test_of_an_average_the_report_tells_what_was_measured_of_it(trained, tmp_path):
  folder = copied(trained, tmp_path)
  rows = metrics.read_rows(folder / 'metrics.jsonl')
  for row in rows:
    if 'validation/loss' in row:
      row |= {'validation/ema_accuracy': 0.125, 'validation/ema_loss': 3.0}
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  gathered = facts.gather(folder)
  assert [number for number, _ in quoted(gathered, 'validation')] == ['12.50%']


def test_with_patience_the_report_tells_of_the_best_step_and_so_does_the_card(
  tmp_path, monkeypatch
):
  losses = {1: 0.9, 2: 0.5, 3: 0.7, 4: 0.8, 5: 0.8, 6: 0.8, 7: 0.8, 8: 0.8}
  output, measure, at = train.Evaluator.__call__, train.Evaluator.measure, []

  def call(self, step, state):
    at[:] = [step]
    return output(self, step, state)

  def over(self, use, params, *, keep=0, wide=True):
    result = measure(self, use, params, keep=keep, wide=wide)[1] if keep else {}
    loss = losses[at[0]]
    return {'loss': loss, 'accuracy': 1 - loss, 'count': 359.0}, result

  monkeypatch.setattr(train.Evaluator, '__call__', call)
  monkeypatch.setattr(train.Evaluator, 'measure', over)
  fields = {'evaluation.every': '1 steps', 'evaluation.patience': '3 steps', 'data.test': ''}
  fields |= {'evaluation.metric': 'loss', 'ema': 0.5}
  assert main.main(words_of(tmp_path, fields)) == 0
  held = results.read(tmp_path)
  assert (held['step'], held['use']) == (2, 'validation')
  gathered = facts.gather(tmp_path)
  assert (gathered.step, gathered.measured['loss']) == (2, held['loss'])
  written = (tmp_path / 'model' / 'README.md').read_text()
  assert re.search(rf'\| {held["accuracy"]:.4f} \|.* {held["loss"]:.4f} \|.* 2 \|', written)
  (tmp_path / results.FILE).unlink()  # as of a run from before there was one
  gathered = facts.gather(tmp_path)
  assert metrics.model_step(gathered.config, gathered.rows, gathered.ranks) == gathered.step == 2
  ((number, caption),) = quoted(gathered, 'validation')
  assert number == '50.00%' and 'at step 2,' in caption


@pytest.mark.parametrize('metric', ['accuracy', 'loss', 'ema_loss'])
def test_the_step_of_a_model_is_the_tested_the_best_or_the_last(metric):
  rows = [
    {'step': 1, 'validation/loss': None, 'validation/accuracy': 0.1},
    {'step': 2, 'validation/loss': 0.3, 'validation/accuracy': 0.8},
    {'step': 3, 'validation/loss': 0.3, 'validation/accuracy': 0.8},
    {'step': 4, 'validation/loss': 0.4, 'validation/accuracy': 0.7},
    {'step': 5, 'train/loss': 0.1},
  ]
  ema = [{name.replace('/', '/ema_'): value for name, value in row.items()} for row in rows]
  worse = [row | {'validation/loss': 1 / row['step'], 'validation/accuracy': 0.2} for row in rows]
  config = {'evaluation': {'metric': metric, 'patience': '2 epochs'}}
  if metric != 'ema_loss':
    assert metrics.model_step(config, rows, classify.RANKS) == 2
  averaged = [a | b for a, b in zip(worse[:4], ema)]
  assert metrics.model_step(config | {'ema': 0.9}, averaged, classify.RANKS) == 2
  config['evaluation']['patience'] = '0 steps'
  assert (
    metrics.model_step(config, rows, classify.RANKS)
    == metrics.model_step({}, rows, classify.RANKS)
    == 4
  )
  tested = [*rows, {'step': 3, 'test/loss': 0.1, 'test/accuracy': 0.9, 'test/count': 5.0}]
  assert metrics.model_step(config, tested, classify.RANKS) == 3
  assert metrics.model_results(tested, 3) == {
    'validation': {'step': 3, 'accuracy': 0.8, 'loss': 0.3},
    'test': {'step': 3, 'count': 5.0, 'accuracy': 0.9, 'loss': 0.1},
  }
  assert (
    metrics.model_step(config, [], classify.RANKS) is None and metrics.model_results([], 3) == {}
  )
  others = [{'step': k, 'validation/recall': 0.5 - abs(k - 2) / 10} for k in (1, 2, 3)]
  patient = {'evaluation': {'metric': 'recall', 'patience': '2 epochs'}}
  assert [metrics.model_step(patient, others, {'recall': sign}) for sign in (1, -1)] == [2, 1]


def test_where_the_average_was_measured_no_other_number_is_told_of_the_model():
  row = {'step': 4, 'validation/loss': 1.0, 'validation/top5': 0.5, 'validation/count': 10.0}
  row |= {'validation/ema_loss': 0.5}
  assert metrics.model_results([row], 4) == {'validation': {'step': 4, 'loss': 0.5, 'count': 10.0}}


def test_a_test_split_of_other_data_takes_nothing_away(trained, monkeypatch):
  other = inputs.Split('others', 'test', sources.open_source('digits', 'test[:50]'))
  with monkeypatch.context() as patch:
    patch.setattr(inputs, 'open_split', lambda folder, on, split: other)
    gathered = report_command.measure(trained, on='others', split='test')
  assert (gathered.measured['source'], gathered.measured['count']) == ('others', 50)
  ((number, caption),) = quoted(gathered, 'test')
  assert 'on 359 images' in caption
  record = facts.gather(trained)
  assert quoted(record, 'test') == [] and len(quoted(record, 'validation')) == 1
  assert number == percent(record.measured['accuracy'])


def test_an_unfinished_run_tells_what_it_measured_last(trained, tmp_path):
  folder = copied(trained, tmp_path)
  shutil.rmtree(folder / 'model')
  rows = [row for row in metrics.read_rows(folder / 'metrics.jsonl') if 'test/loss' not in row]
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  gathered = facts.gather(folder)
  on = 'Measured at step 12 on 179 images, split validation of digits'
  assert report_page.measured_on(gathered.measured) == on
  (_, last) = gathered.curve('validation/accuracy')
  assert report_page.headlines(gathered)[0] == (percent(last[-1]), 'accuracy')


def test_a_report_of_sigmoid_scores_and_several_labels(whole):
  model = dataclasses.replace(whole.model, scores='sigmoid')
  base = sources.open_source('digits', 'test[:40]')
  records = [
    {'image': base[i]['image'], 'label': np.array([base[i]['label'], -1 if i % 2 else 3], np.int32)}
    for i in range(40)
  ]
  data = inputs.Split('made', 'all', sources.Source(records, base.classes))
  values = accuracy.evaluate_model(model, data, batch_size=2)
  assert results.is_valid(values | {'step': None, 'use': 'test'})
  gathered = dataclasses.replace(whole, model=model)
  gathered = facts.with_evaluation(gathered, values, data)
  text = report_page.as_html(gathered)
  assert gathered.measured['confusion'] is None and 'multi-label' in text
  average = percent(gathered.measured['mean_average_precision'])
  assert (average, 'mean average precision') in report_page.headlines(gathered)
  assert report_page.as_png(gathered)
  for mistake, row in zip(gathered.mistakes, gathered.measured['mistakes'], strict=True):
    labels = [gathered.model.classes[k] for k in records[row['index']]['label'] if k >= 0]
    assert mistake.prediction not in labels and mistake.label in labels


def test_images_at_a_time_are_those_of_training_or_of_the_flag(trained, monkeypatch):
  calls, before = measuring(monkeypatch), (trained / results.FILE).read_bytes()
  report_command.measure(trained, split='test[:20]')
  assert commands.main(['report', str(trained), '--batch_size', '3']) == 0
  assert commands.main(['report', str(trained), '--batch_size', '0']) == 2
  assert [size for _, _, size in calls] == [max(32 // jax.device_count(), 1), 3]
  assert (trained / results.FILE).read_bytes() == before
  assert (
    report_command.training_batch({'batch_size': 4096 * jax.device_count(), 'accumulate': 2})
    == inputs.BATCH
  )
  assert (
    report_command.training_batch({'batch_size': 64 * jax.device_count(), 'accumulate': 2}) == 32
  )
  assert report_command.training_batch({'batch_size': 1}) == 1


def test_the_time_of_the_steps_is_what_their_rates_say(trained):
  gathered = facts.gather(trained)
  rows = [row for row in gathered.rows if 'train/images_per_second' in row]
  expected = sum(2 * 32 / row['train/images_per_second'] for row in rows)
  assert facts.seconds_of_steps(gathered) == pytest.approx(expected, rel=1e-6)


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


@pytest.mark.parametrize(
  ('xs', 'ys'),
  [([5.0], [0.0]), ([1, 2], [3, 3]), ([0, 1], [-1e-9, 1e9]), ([1], [-2]), ([1, 2], [0, 1e99])],
)
def test_a_chart_of_few_or_equal_values_stays_inside_its_frame(xs, ys):
  text = svg.as_html(charts.Chart('a', {'b': (np.array(xs, float), np.array(ys, float))}))
  places = np.array(re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', text), float)
  assert len(places) == len(xs)
  assert (places >= 0).all() and (places <= [svg.WIDTH, svg.HEIGHT]).all()


def test_a_chart_reaches_to_round_values_that_hold_its_lines():
  steps, fractions = np.array([50.0, 393.0]), np.array([0.2, 0.96])
  chart = charts.Chart('Accuracy', {'accuracy': (steps, fractions)}, percent=True)
  axes = pictures.figure(4, 3).subplots()
  charts.plot(axes, chart, size=11)
  assert axes.get_ylim() == (0, 1)
  assert '>100%</text>' in svg.as_html(chart) and '>step</text>' in svg.as_html(chart)


def test_equal_charts_are_equal_text_in_the_colours_of_the_page():
  lines = {name: (np.arange(3.0), np.arange(3.0) + k) for k, name in enumerate('abc')}
  text = svg.as_html(charts.Chart('<Loss>', lines))
  assert text == svg.as_html(charts.Chart('<Loss>', lines))
  assert 'aria-label="&lt;Loss&gt;: ' in text and '<script' not in text and '<style' not in text
  assert all(f'<g class="line s{k}">' in text for k in range(3)) and '#' not in text


def test_long_curves_are_thinned_but_keep_their_ends_and_peaks():
  curve = np.arange(10_000.0) ** 2
  curve[4321] = -1  # one step
  steps, values = charts.thinned(np.arange(10_000.0), curve)
  assert len(steps) <= charts.POINTS and (steps[0], steps[-1]) == (0, 9999)
  np.testing.assert_array_equal(values, curve[steps.astype(int)])
  assert values.min() == -1


# Pictures


def test_names_in_pictures_are_text_whatever_their_letters():
  image, field = np.zeros((4, 4, 3), np.uint8), np.eye(2)
  for name in ('a $x$ b', '$\\nosuch$', '\u72d7', 'a' * 300):
    assert pictures.beside(image, field, 'logit', name, 0).startswith(b'\x89PNG')
