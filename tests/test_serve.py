"""`vit serve`: answers are those of `run.predict`, strangers get one line, nothing stops it."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests import browser
from tests.conftest import drawn, shapes, tiny
from vit_jax import __main__ as vit
from vit_jax import analysis, bundle, export, files
from vit_jax.serving import batching, looking, served
from vit_jax.serving.neighbours import Neighbours
from vit_jax.serving.requests import Limits

SIZE = (8, 12)  # 2 x 3 patches
NAMES = ('rose', '<b>tulip</b>', 'fern & moss', 'oak', 'palm')
COUNT = 20  # training photos, of which some are held out


def picture(seed, size=SIZE):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def png(seed, size=SIZE):
  file = io.BytesIO()
  Image.fromarray(picture(seed, size)).save(file, 'PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run: its model, and a config that names its data."""
  folder = tmp_path_factory.mktemp('flowers <i>')
  model = tiny(unroll=1)
  params = drawn(shapes(model, SIZE), scale=0.8)
  bundle.write(
    folder / 'model',
    bundle.Bundle(model, params, NAMES, bundle.Preprocess('resize', SIZE), 'ViT-Ti/16'),
  )
  photos = np.stack([picture(seed) for seed in range(COUNT)])
  np.savez(folder / 'photos.npz', x_train=photos, y_train=np.arange(COUNT) % 5, classes=NAMES)
  data = {'source': f'arrays:{folder / "photos.npz"}', 'train': 'train', 'validation': ''}
  files.write_json(folder / 'config.json', {'data': data})
  return folder


@pytest.fixture(scope='module')
def run(folder):
  return vit_jax.load(folder / 'model')


@contextlib.contextmanager
def running(model, **options):
  """A server on a port of its own: the port, and the lines of its log."""
  from vit_jax.serving import listening, server  # and so uvicorn, which no test of batches needs

  lines, listener = [], listening.bind('127.0.0.1', 0)
  options = {'batch': 4, 'nearest': COUNT, 'say': lines.append} | options
  with server.running(model, listener, **options):
    yield listener.getsockname()[1], lines


@pytest.fixture(scope='module')
def server(folder, tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(cache))
    with running(served.load(folder)) as running_server:
      yield running_server


@pytest.fixture
def port(server):
  return server[0]


def ask(port, method, path, body=None, **headers):
  """The status, the headers and the JSON of an answer, or its text."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
  headers = {name.replace('_', '-'): value for name, value in headers.items()}
  with contextlib.closing(connection):
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    text = reply.read().decode()
  is_json = reply.headers['Content-Type'] == 'application/json'
  return reply.status, reply.headers, json.loads(text) if is_json else text


def raw(port, data, *, end=True):
  """What comes back for bytes on a connection, until the server closes it."""
  with socket.create_connection(('127.0.0.1', port), timeout=30) as connection:
    with contextlib.suppress(ConnectionError):
      connection.sendall(data)
      if end:
        connection.shutdown(socket.SHUT_WR)
    answer = b''
    with contextlib.suppress(ConnectionError):
      while part := connection.recv(1 << 16):
        answer += part
  return answer


def until(condition):
  """Waits for what another thread does, ten seconds at most."""
  for _ in range(1000):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError('never')


def batch_json(*images, **fields):
  return json.dumps({'images': [base64.b64encode(i).decode() for i in images], **fields})


# Answers


def test_the_bytes_of_an_image_are_answered_as_run_predict_does(run, port, tmp_path):
  file = tmp_path / 'photo.png'
  file.write_bytes(png(1, (20, 17)))
  status, headers, answer = ask(port, 'POST', '/predict?top=3', file.read_bytes())
  assert (status, list(answer)) == (200, ['predictions'])
  expected = run.predict(file, top=3)
  assert [p['label'] for p in answer['predictions']] == [p['label'] for p in expected]
  scores = [[p['score'] for p in ranked] for ranked in (answer['predictions'], expected)]
  np.testing.assert_allclose(*scores, atol=1e-6)
  assert headers['X-Content-Type-Options'] == 'nosniff'
  assert 'Access-Control-Allow-Origin' not in headers


def test_a_list_is_answered_in_its_order(run, port):
  images = [png(seed) for seed in range(6)]
  body = batch_json(*images, top=2)
  _, _, answer = ask(port, 'POST', '/predict', body, Content_Type='application/json')
  expected = run.predict([picture(seed) for seed in range(6)], top=2)
  labels = [
    [[p['label'] for p in ranked] for ranked in rows] for rows in (answer['results'], expected)
  ]
  assert labels[0] == labels[1]


def test_an_exported_program_answers_as_its_run_and_cannot_be_looked_into(run, tmp_path):
  export.write(tmp_path / 'flowers.stablehlo', run, check=False)
  with pytest.raises(ValueError, match='an exported program, which has no checkpoints'):
    served.load(tmp_path / 'flowers.stablehlo', 'best')
  with running(served.load(tmp_path / 'flowers.stablehlo')) as (port, *_):
    _, _, answer = ask(port, 'POST', '/predict', png(1, (20, 17)))
    expected = run.predict(picture(1, (20, 17)))
    assert [p['label'] for p in answer['predictions']] == [p['label'] for p in expected]
    status, _, answer = ask(port, 'POST', '/look', png(1))
    assert (status, answer['error'].split(',')[0]) == (400, 'an exported program answers')


def test_the_page_has_names_as_text_and_a_policy_that_lets_nothing_else_in(port):
  status, headers, text = ask(port, 'GET', '/')
  assert status == 200 and 'flowers &lt;i&gt;' in text and '<i>' not in text
  policy = headers['Content-Security-Policy']
  assert "default-src 'none'" in policy and 'unsafe' not in policy and 'http' not in policy


# Looks into the model


def unpacked(text, queries):
  return np.frombuffer(base64.b64decode(text), '<u2').reshape(-1, queries, 6)


def test_attention_and_rollout_are_those_of_the_run_to_a_hundredth_of_a_percent(run, port):
  _, _, answer = ask(port, 'POST', '/look', png(2))
  whole = run.attention(picture(2))
  assert (answer['rows'], answer['columns'], answer['layers']) == (2, 3, [1, 2, 3])
  for name, matrices in (('attention', whole.weights.mean(1)), ('rollout', whole.rollout())):
    expected = [np.concatenate([(whole.read @ m)[None], m[1:]])[:, 1:] for m in matrices]
    got = unpacked(answer[name], answer['queries'])
    np.testing.assert_allclose(got, np.array(expected) * 1e4, atol=0.51)


@pytest.mark.parametrize(
  ('depth', 'count', 'layers'),
  [(4, 9, [1, 2, 3, 4]), (12, 3, [1, 6, 12]), (12, 1, [12]), (12, 0, [12])],
)
def test_the_last_layer_is_shown_however_few_have_room(depth, count, layers):
  assert looking.evenly(depth, count) == layers


def test_occlusion_is_that_of_the_analysis(run, port):
  _, _, answer = ask(port, 'POST', '/occlusion?label=oak', png(2))
  square, stride = analysis.occlusion_steps(run.model, SIZE)
  expected = analysis.occlusion(
    lambda images: run.forward(images)['scores'],
    picture(2),
    NAMES.index('oak'),
    square=square,
    stride=stride,
    grey=analysis.grey_colour(run.preprocess),
  )
  field = expected.field(SIZE).reshape(2, 4, 3, 4)
  assert answer['score'] == pytest.approx(expected.score, abs=1e-6)
  np.testing.assert_allclose(answer['drop'], field.mean((1, 3)), atol=1e-6)


def test_a_slow_model_hides_fewer_and_larger_parts():
  square, stride = looking.fitting_squares((32, 32), (16, 16), (224, 224), 60)
  assert (square, stride) == ((64, 64), (32, 32))
  assert looking.fitting_squares((32, 32), (16, 16), (224, 224), 0) == ((128, 128), (64, 64))


def test_cells_of_a_field_are_of_one_size_also_where_steps_do_not_fill_it():
  field = np.arange(10.0)[:, None] * np.ones((1, 4))
  assert looking.cells(field, (3, 4)).tolist() == [[1.0], [4.5], [8.0]]


def test_the_nearest_photos_are_of_the_training_split_and_a_photo_is_nearest_to_itself(port):
  until(lambda: ask(port, 'POST', '/nearest', png(8))[2]['state'] == 'ready')
  _, _, answer = ask(port, 'POST', '/nearest', png(8))
  first, *others = answer['photos']
  assert (first['label'], first['name']) == (NAMES[8 % 5], 'photos.npz, image 8 of train')
  assert first['similarity'] == pytest.approx(1, abs=1e-5)
  assert len(others) == 7 and all(photo['similarity'] < 1 for photo in others)
  assert first['image'].startswith('data:image/png;base64,')  # exact, as it is small


def test_a_bundle_knows_no_training_photos(run, folder):
  neighbours = Neighbours(run, str(folder / 'model'), limit=5)
  assert (neighbours.state, neighbours.reason) == ('absent', 'only a run knows its training photos')


# Batches


@pytest.mark.parametrize(
  ('waiting', 'seconds', 'size'),
  [
    (1, {1: 1, 2: 1, 4: 1}, 1),
    (3, {1: 1, 2: 1, 4: 1}, 4),  # a GPU: as fast as one
    (5, {1: 1, 2: 2, 4: 4, 8: 8}, 4),  # a CPU: filling up would cost
    (9, {1: 1, 2: 1.5, 4: 8}, 2),
    (64, {1: 1, 2: 1.9, 4: 3.8, 8: 7.6}, 8),
  ],
)
def test_the_batch_is_the_one_that_answers_most_images_a_second(waiting, seconds, size):
  assert batching.best_size(waiting, seconds) == size


def test_what_waits_goes_together_patient_images_last_and_cancelled_ones_never():
  gate, batches = threading.Event(), []

  def step(images):
    gate.wait(30)
    batches.append(images[:, 0].tolist())
    return {'scores': images}

  batcher = batching.Batcher(step, {1: 1.0, 2: 1.0, 4: 1.0}, limit=9)
  with contextlib.closing(batcher):
    first = batcher.submit(np.full(1, 1))
    until(lambda: not batcher.urgent)
    patient = batcher.submit(np.full(1, 2), patient=True)
    results = [batcher.submit(np.full(1, number)) for number in (3, 4, 5)]
    assert results[1].cancel()
    gate.set()
    assert [r.result(30)['scores'][0] for r in (first, results[0], results[2], patient)] == [
      1,
      3,
      5,
      2,
    ]
  assert batches == [[1], [3, 5], [2]]


def test_a_batch_that_fails_fails_alone():
  def step(images):
    if images[0] == 1:
      raise RuntimeError('out of memory')
    return {'scores': images}

  with contextlib.closing(batching.Batcher(step, {1: 1.0}, limit=9)) as batcher:
    with pytest.raises(RuntimeError, match='out of memory'):
      batcher.submit(np.full(1, 1)).result(30)
    assert batcher.submit(np.full(1, 2)).result(30)['scores'][0] == 2


# Limits


@pytest.fixture(scope='module')
def stuck(folder):
  """A server whose model answers when it is let to, with small limits."""
  gate = threading.Event()
  gate.set()
  model = served.load(folder)

  def step(images):
    gate.wait(60)
    return model.step(images)

  limits = Limits(image_bytes=5000, images=3, queue=2, seconds=0.5, connections=20)
  slow = served.Served(**vars(model) | {'step': step})
  with running(slow, limits=limits) as (port, lines):
    yield port, gate, lines


def test_an_answer_that_takes_too_long_is_504_and_the_next_is_given(stuck):
  port, gate, _ = stuck
  gate.clear()
  status, _, answer = ask(port, 'POST', '/predict', png(0))
  assert (status, answer) == (504, {'error': 'the answer took more than 0.5 s'})
  gate.set()
  assert ask(port, 'POST', '/predict', png(0))[0] == 200


def test_more_images_than_may_wait_are_503_with_the_time_to_come_again(stuck):
  body = batch_json(*[png(0)] * 3)
  status, headers, answer = ask(stuck[0], 'POST', '/predict', body, Content_Type='application/json')
  assert (status, headers['Retry-After']) == (503, '1')
  assert answer == {'error': 'too many images are waiting: try again in 1 s'}


def test_a_body_that_does_not_come_is_408(stuck):
  data = b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf'
  answer = raw(stuck[0], data, end=False)
  assert answer.startswith(b'HTTP/1.1 408 ') and b'the body took more than 0.5 s' in answer


def test_connections_that_say_nothing_give_way_to_new_ones(stuck):
  port, *_ = stuck
  with contextlib.ExitStack() as stack:
    for _ in range(40):
      stack.enter_context(socket.create_connection(('127.0.0.1', port)))
    assert ask(port, 'GET', '/health')[0] == 200


def test_a_late_header_ends_the_connection(folder, monkeypatch, server):
  monkeypatch.setattr('vit_jax.serving.listening.HEADER_SECONDS', 0.1)
  assert raw(server[0], b'GET /health HTTP/1.1\r\nHost: loc', end=False) == b''


JSON = {'Content_Type': 'application/json'}
REFUSED = {
  'no such path': (
    'GET',
    '/../../etc/passwd',
    None,
    {},
    404,
    "no '/../../etc/passwd' here",
  ),
  'encoded path': ('GET', '/%2e%2e/%2e%2e/etc/passwd', None, {}, 404, 'there is no'),
  'method': ('DELETE', '/predict', None, {}, 405, "/predict takes POST, not 'DELETE'"),
  'preflight': ('OPTIONS', '/predict', None, {}, 405, 'takes POST'),
  'empty': ('POST', '/predict', b'', {}, 400, 'the body is empty'),
  'no image': ('POST', '/predict', b'<svg/>', {}, 400, 'not an image'),
  'cut image': ('POST', '/predict', png(0)[:80], {}, 400, 'damaged image'),
  'long': ('POST', '/predict', b'x' * 20_001, {}, 413, 'the body is larger than 20,000'),
  'long image': ('POST', '/predict', b'x' * 5001, {}, 413, 'the image is larger than 5,000'),
  'kind': (
    'POST',
    '/predict',
    b'a',
    {'Content_Type': 'text/html'},
    415,
    "is 'text/html'",
  ),
  'top': ('POST', '/predict?top=0', png(0), {}, 400, 'top is 0, must be 1 to 1000'),
  'top word': ('POST', '/predict?top=-1', png(0), {}, 400, "top is '-1', must be a number"),
  'json': ('POST', '/predict', b'{', JSON, 400, 'the body is no JSON'),
  'deep json': ('POST', '/predict', b'[' * 900, JSON, 400, 'the body is no JSON'),
  'json bomb': ('POST', '/predict', b'[],' * 900, JSON, 413, 'the JSON has over 1,000 values'),
  'number': ('POST', '/predict', b'9' * 9000, JSON, 400, 'the body is no JSON'),
  'list': ('POST', '/predict', b'[1]', JSON, 400, 'the JSON must be {"image": BASE64}'),
  'base64': ('POST', '/predict', b'{"image": "/etc/passwd!"}', JSON, 400, 'image 0 is not base64'),
  'url': ('POST', '/predict', b'{"image": "http://a/b.png"}', JSON, 400, 'image 0 is not base64'),
  'field': (
    'POST',
    '/predict',
    b'{"image": "", "path": "/etc/passwd"}',
    JSON,
    400,
    'unknown path; known',
  ),
  'no images': ('POST', '/predict', b'{"images": []}', JSON, 400, '0 images: a request has'),
  'many': (
    'POST',
    '/predict',
    batch_json(*[b'a'] * 4),
    JSON,
    413,
    '4 images: a request has 1',
  ),
  'second': ('POST', '/predict', batch_json(png(0), b'a'), JSON, 400, 'image 1: not an image'),
  'two': ('POST', '/look', batch_json(png(0), png(0)), JSON, 400, '/look takes one image'),
  'class': (
    'POST',
    '/occlusion?label=oka',
    png(0),
    {},
    400,
    'did you mean oak',
  ),
  'rebound name': ('GET', '/health', None, {'Host': 'evil.example'}, 403, "Host is 'evil"),
  'address': ('GET', '/health', None, {'Host': '192.168.0.9:80'}, 403, 'no name of this server'),
  'other site': (
    'POST',
    '/predict',
    png(0),
    {'Origin': 'http://evil.ex'},
    403,
    'another site',
  ),
  'cross-site': ('POST', '/predict', png(0), {'Sec_Fetch_Site': 'cross-site'}, 403, 'another site'),
}


@pytest.mark.parametrize('case', REFUSED.values(), ids=REFUSED)
def test_a_strangers_request_is_refused_in_one_line(stuck, case):
  method, path, body, headers, status, words = case
  answer = ask(stuck[0], method, path, body, **headers)
  assert answer[0] == status and words in answer[2]['error'], answer[2]
  assert len(answer[2]['error']) <= 300 and ask(stuck[0], 'GET', '/health')[0] == 200


def test_a_page_of_the_server_may_ask_by_any_of_its_names(stuck):
  for host in ('localhost:80', '[::1]:80', '127.0.0.1'):
    headers = {'Host': host, 'Origin': f'http://{host}'}
    assert ask(stuck[0], 'POST', '/predict', png(0), **headers)[0] == 200


@pytest.mark.parametrize(
  'data',
  [
    b'\x16\x03\x01\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
    b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n',
    b'GET / HTTP/1.1\r\nX: ' + b'a' * 20_000,
  ],
  ids=['tls', 'two hosts', 'negative length', 'huge header'],
)
def test_bytes_that_are_no_http_are_400_and_in_the_log(data, stuck):
  port, _, lines = stuck
  assert raw(port, data).startswith(b'HTTP/1.1 400 ')
  assert lines[-1].endswith('127.0.0.1 no HTTP request 400')


def test_the_log_has_a_line_for_each_request_and_nothing_that_steers_a_terminal(stuck):
  port, _, lines = stuck
  before = len(lines)
  ask(port, 'POST', '/predict', png(0))
  ask(port, 'GET', '/%1b[2J%0a%0dx' + 'y' * 500)
  until(lambda: len(lines) == before + 2)
  first, second = lines[before:]
  assert re.fullmatch(r'\d\d:\d\d:\d\d 127\.0\.0\.1 POST /predict 200 \d+ ms 1 image', first)
  assert second.isprintable() and len(second) < 120 and '404' in second


def test_pipelined_requests_are_answered_in_their_order(port):
  request = b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n'
  answer = raw(port, request * 2 + request.replace(b'health', b'nothing'))
  assert re.findall(rb'HTTP/1.1 (\d+)', answer) == [b'200', b'200', b'404']


def test_metrics_are_prometheus_text(server):
  port, *_ = server
  ask(port, 'POST', '/predict', png(0))
  _, headers, text = ask(port, 'GET', '/metrics')
  assert headers['Content-Type'].startswith('text/plain; version=0.0.4')
  lines = dict(line.rsplit(' ', 1) for line in text.splitlines() if line[0] != '#')
  answered = int(lines['vit_requests_total{path="/predict",status="200"}'])
  assert 0 < answered == int(lines['vit_predict_seconds_count'])
  assert lines['vit_predict_seconds_bucket{le="+Inf"}'] == lines['vit_predict_seconds_count']
  assert float(lines['vit_batch_images_sum']) >= answered and lines['vit_queue_images'] == '0'


# The command


def start(folder, *words):
  """`vit serve` as a process, and the address that it prints."""
  command = [sys.executable, '-m', 'vit_jax', 'serve', str(folder), '--port=0', *words]
  env = {**os.environ, 'XLA_FLAGS': ''}
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
  )
  assert process.stdout.readline().endswith(': ViT-Ti/16, 5 classes, 8x12 pixels\n')
  return process, int(re.search(r'http://127\.0\.0\.1:(\d+) ', process.stdout.readline())[1])


def refuses(port):
  """Whether nobody listens at a port."""
  try:
    socket.create_connection(('127.0.0.1', port)).close()
  except ConnectionRefusedError:
    return True
  return False


def test_sigterm_ends_it_with_0_when_what_runs_is_answered(folder):
  process, port = start(folder, '--batch=1', '--nearest=0')
  connection, body = http.client.HTTPConnection('127.0.0.1', port), png(0)
  with process, contextlib.closing(connection):
    connection.putrequest('POST', '/predict')
    connection.putheader('Content-Length', str(len(body)))
    connection.endheaders(body[:20])
    assert ask(port, 'GET', '/health')[0] == 200  # so that the other request has begun
    process.send_signal(signal.SIGTERM)
    until(lambda: refuses(port))
    connection.send(body[20:])
    reply = connection.getresponse()
    assert (reply.status, list(json.loads(reply.read()))) == (200, ['predictions'])
    assert process.wait(20) == 0
    log = [line.split()[2:5] for line in process.stderr.read().splitlines()]
  assert log == [['GET', '/health', '200'], ['POST', '/predict', '200']]


def message(capsys, *words):
  assert vit.main(['serve', *words]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


def test_without_uvicorn_a_line_says_what_to_install(monkeypatch, capsys, folder):
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  line = message(capsys, str(folder))
  assert line == "vit serve: uvicorn is not installed: pip install 'vit_jax[serve]'"


def test_a_port_in_use_is_one_line(port, capsys, folder):
  line = message(capsys, str(folder), f'--port={port}')
  assert line.startswith(f'vit serve: 127.0.0.1 port {port}: Address already in use; --port 0')


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['--port=70000'], '--port is 70000, must be 0 to 65535'),
    (['--timeout=0'], '--timeout is 0, must be above 0, and 3600 s at most'),
    (['--nearest=-1'], '--nearest is -1, must be a number of photos'),
    (['--host=192.0.2.1'], '192.0.2.1 port 8000: Cannot assign requested address'),
    (['--port=0'], 'nowhere: '),
  ],
)
def test_what_cannot_be_served_is_one_line(words, line, capsys, tmp_path):
  assert line in message(capsys, str(tmp_path / 'nowhere'), *words)


# The page


def photo(tab, file):
  """Gives the page a file, as its button does, and waits for all that it shows."""
  root = tab('DOM.getDocument')['root']['nodeId']
  field = tab('DOM.querySelector', nodeId=root, selector='#file')['nodeId']
  tab('DOM.setFileInputFiles', nodeId=field, files=[str(file)])
  tab.until("!document.getElementById('views').hidden")
  tab.until("document.querySelectorAll('#photos li').length")


def bring(tab, data, event, field):
  """Drops or pastes the bytes of an image; waits until it is predicted."""
  text = base64.b64encode(data).decode()
  tab.run(
    f'(() => {{const bytes = Uint8Array.from(atob("{text}"), (letter) => letter.charCodeAt(0)); '
    'const transfer = new DataTransfer(); '
    'transfer.items.add(new File([bytes], "photo.png", {type: "image/png"})); '
    "document.getElementById('scores').replaceChildren(); "
    f'document.body.dispatchEvent(new {event}, {{bubbles: true, {field}: transfer}})); }})()'
  )
  tab.until("document.querySelector('#scores b')")


def values(tab):
  return tab.run(
    'Array.from(document.querySelectorAll("[data-value]"), (cell) => +cell.dataset.value)'
  )


def test_the_page_shows_by_mouse_and_keyboard_what_the_server_answers(port, run, tmp_path):
  file = tmp_path / 'photo.png'
  file.write_bytes(png(2, (40, 60)))
  url = f'http://127.0.0.1:{port}/'
  first = run.predict(file, top=1)[0]
  whole = run.attention(file)
  with browser.chromium() as tab:
    tab.window(390, 844, dark=True)
    tab.visit(url)
    photo(tab, file)
    assert tab.text('#scores b') == first['label']
    assert tab.text('#scores .value') == f'{100 * first["score"]:.1f}\xa0%'
    tab.click('[data-view=attention]')
    tab.hover('[aria-label="row 2, column 3"]')
    rounded = np.rint(whole.weights[-1].mean(0) * 1e4)[1:, 1:]
    np.testing.assert_allclose(values(tab), rounded[5], atol=1)
    tab.run("document.querySelector('[role=gridcell]').focus()")
    tab.press('ArrowRight')
    np.testing.assert_allclose(values(tab), rounded[1], atol=1)
    tab.run("document.querySelector('#scores li:nth-child(2) button').focus()")
    tab.press('Enter')
    tab.until("document.querySelector('#image.grey')")
    tab.hover('[aria-label="row 1, column 1"]')
    second = run.predict(file, top=2)[1]
    answer = ask(port, 'POST', f'/occlusion?label={quote(second["label"])}', file.read_bytes())[2]
    np.testing.assert_allclose(values(tab), np.ravel(answer['drop']), atol=1e-6)
    verb, drop = 'gains' if answer['drop'][0][0] < 0 else 'loses', abs(answer['drop'][0][0])
    words = f'{second["label"]} {verb} {100 * drop:.1f} points of {100 * answer["score"]:.1f}\xa0%'
    assert tab.text('#pointed') == f'row 1, column 1: {words}'
    assert tab.run('document.documentElement.scrollWidth') <= 390
    for number, event, field in (
      (3, "DragEvent('drop'", 'dataTransfer'),
      (4, "ClipboardEvent('paste'", 'clipboardData'),
    ):
      bring(tab, png(number), event, field)
      best = run.predict(picture(number), top=1)[0]['label']
      assert tab.text('#scores b') == best
    tab.run("take(new File(['<svg/>'], 'a.svg'))")
    tab.until("document.getElementById('status').className === 'bad'")
    assert tab.text('#status') == 'not an image' and tab.text('#scores b') == best
    asked = [address for address in tab.requested if not address.startswith(('data:', 'blob:'))]
    refused = [error for error in tab.errors if '400' in error]  # Chromium's line about a status
    assert len(refused) == len(tab.errors) == 1 and all(
      address.startswith(url) for address in asked
    )
