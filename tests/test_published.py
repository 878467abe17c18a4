"""Published checkpoints: fetched once, whole or not at all; AugReg's files by name and by index."""

import base64
import contextlib
import functools
import hashlib
import http.client
import http.server
import io
import json
import pathlib
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import SIZE, drawn, flat, shapes, tiny
from vit_jax import __main__ as vit
from vit_jax import bundle, config, convert, models
from vit_jax import plan as plans
from vit_jax.convert import download, published
from vit_jax.sources import loose

pytestmark = pytest.mark.quick
WEIGHTS = b'weights' * 50_000  # more than a pipe holds


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves `files`, and misbehaves on request."""

  def do_GET(self):
    self.server.asked.append(self.path)
    self.server.authorized.append(self.headers.get('Authorization', ''))
    body = self.server.files.get(self.path)
    if self.path == '/moved.npz':
      self.send_response(302)
      self.send_header('Location', '/a.npz')
      self.end_headers()
    elif self.path.startswith('/elsewhere.npz'):
      self.send_response(302)
      self.send_header('Location', f'http://localhost:{self.server.server_port}/a.npz')
      self.end_headers()
    elif self.path == '/slow.npz':
      self.answer(b'', len(WEIGHTS))
      while not self.server.gone.wait(0.02):
        self.wfile.write(b'w')
    elif self.path == '/endless.npz':
      self.answer(WEIGHTS, None)
    elif self.path == '/short.npz':
      self.answer(WEIGHTS[:1000], len(WEIGHTS))
    elif self.path == '/silent.npz':
      self.server.gone.wait(30)
    elif self.path == '/negative.npz':
      self.answer(WEIGHTS, 'many')
    elif body is None:
      self.send_error(404)
    else:
      self.answer(body, len(body))

  def answer(self, body, length):
    self.send_response(200)
    if length is not None:
      self.send_header('Content-Length', str(length))
    for name, value in self.server.headers.items():
      self.send_header(name, value)
    self.end_headers()
    with contextlib.suppress(ConnectionError):
      self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A server of files on this machine, and a cache of its own."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('no_proxy', '*')
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.daemon_threads = False  # they end before the test does
  server.files, server.asked, server.authorized = {'/a.npz': WEIGHTS}, [], []
  server.headers, server.gone = {}, threading.Event()
  server.url = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setattr(published, 'GOOGLE', f'{server.url}/')
  thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
  thread.start()
  yield server
  server.gone.set()
  server.shutdown()
  thread.join()
  server.server_close()


def in_cache():
  return [path for path in published.cache().rglob('*') if path.is_file()]


def refused(name, folder=''):
  """The one line that a checkpoint which cannot be had gives."""
  with pytest.raises((FileNotFoundError, ValueError)) as error:
    published.local(name, folder)
  assert '\n' not in str(error.value)
  return str(error.value)


# Fetching


def test_a_url_is_fetched_once(server):
  first = published.local(f'{server.url}/a.npz')
  assert first.read_bytes() == WEIGHTS
  assert first.name == 'a.npz' and first.is_relative_to(published.cache())
  assert published.local(f'{server.url}/a.npz') == first
  assert server.asked == ['/a.npz']
  assert in_cache() == [first]


def test_a_gs_url_is_a_file_of_googles_storage(server):
  server.files['/vit_models/imagenet21k+imagenet2012/a%20b.npz'] = b'1'
  file = published.local('gs://vit_models/imagenet21k+imagenet2012/a b.npz')
  assert file.read_bytes() == b'1'


def test_the_address_of_googles_storage():
  address = published.web_address('gs://vit_models/augreg/B_16.npz')
  assert address == 'https://storage.googleapis.com/vit_models/augreg/B_16.npz'


def test_files_of_one_name_in_several_folders_or_of_several_queries_are_several_files(server):
  urls = ['/1/a.npz', '/2/a.npz', '/1/a.npz?rev=1', '/1/a.npz?rev=2']
  server.files |= {url: url.encode() for url in urls}
  for _ in range(2):
    assert [published.local(server.url + url).read_bytes().decode() for url in urls] == urls
  assert len(in_cache()) == 4


def test_a_moved_file_is_followed(server):
  assert published.local(f'{server.url}/moved.npz').read_bytes() == WEIGHTS


@pytest.mark.parametrize(
  'path, reason',
  [
    ('/short.npz', 'only 1,000 of 350,000 bytes came'),
    ('/silent.npz', 'timed out'),
    ('/negative.npz', 'many'),
    ('/slow.npz', 'slower than 10,000 bytes a second'),
  ],
)
def test_what_cannot_be_fetched_whole_is_one_line_and_leaves_nothing(
  server, monkeypatch, path, reason
):
  monkeypatch.setattr(download, 'TIMEOUT', 0.3)
  line = refused(server.url + path)
  assert line.startswith(f'{server.url}{path} cannot be fetched (') and reason in line
  assert 'give its path' in line
  assert in_cache() == []


@pytest.mark.parametrize('path', ['/a.npz', '/endless.npz'])
def test_no_more_comes_than_the_limit(server, monkeypatch, path):
  monkeypatch.setattr(download, 'LIMIT', 1000)
  assert 'exceed the limit of 1,000' in refused(server.url + path)
  assert in_cache() == []


@pytest.mark.parametrize('page', [b'<!DOCTYPE html>', b'\n<!-- x --> <HTML lang="en">', b'<head>'])
def test_a_page_of_html_is_no_checkpoint(server, page):
  server.files['/page.npz'] = page
  assert 'it is a page of HTML, not a file' in refused(f'{server.url}/page.npz')
  assert in_cache() == []


def test_a_file_has_the_digest_that_its_publisher_names(server):
  sha256 = hashlib.sha256(WEIGHTS).hexdigest()
  md5 = base64.b64encode(hashlib.md5(WEIGHTS).digest()).decode()
  paths = [f'/vit-{sha256[:8]}.pth', f'/clip/{sha256}/ViT.pt', '/augreg/a.npz']
  server.headers = {'x-goog-hash': f'crc32c=AAAAAA==,md5={md5}'}
  for path in paths:
    server.files[path] = WEIGHTS[:-1] + b'x'
    assert 'published is' in refused(server.url + path)
    server.files[path] = WEIGHTS
    assert published.local(server.url + path).read_bytes() == WEIGHTS


def test_user_and_password_go_to_their_host_alone_and_into_no_name(server):
  url = f'http://me:p%40ss@{server.url.partition("//")[2]}'
  published.local(f'{url}/elsewhere.npz?sig=secret')
  assert [bool(header) for header in server.authorized] == [True, False]
  assert base64.b64decode(server.authorized[0].partition(' ')[2]) == b'me:p@ss'
  line = refused(f'{url}/none.npz?sig=secret')
  assert line.startswith(f'there is no http://***@{server.url.partition("//")[2]}/none.npz?***')
  names = {part for path in in_cache() for part in path.relative_to(published.cache()).parts}
  assert 'elsewhere.npz' in names and not any('ss' in name or 'secret' in name for name in names)


@pytest.mark.parametrize(
  ('old', 'new', 'internal', 'follows'),
  [
    ('https://8.8.8.8/a', 'https://8.8.4.4/a', False, True),
    ('http://8.8.8.8/a', 'https://8.8.4.4/a', False, True),
    ('https://8.8.8.8/a', 'http://8.8.8.8/a', False, False),
    ('http://8.8.8.8/a', 'ftp://8.8.8.8/a', False, False),
    ('https://8.8.8.8/a', 'https://127.0.0.1/a', False, False),
    ('https://8.8.8.8/a', 'https://2130706433/a', False, False),  # the same address
    ('https://8.8.8.8/a', 'https://[::1]/a', False, False),
    ('https://8.8.8.8/a', 'https://169.254.169.254/a', False, False),
    ('https://8.8.8.8/a', 'https://10.0.0.1/a', False, False),
    ('https://10.0.0.2/a', 'https://10.0.0.1/a', True, True),
  ],
)
def test_a_redirect_stays_in_the_open(old, new, internal, follows):
  assert download.is_internal(old.split('/')[2]) is internal
  arguments = (urllib.request.Request(old), None, 302, 'Found', http.client.HTTPMessage(), new)
  with contextlib.nullcontext() if follows else pytest.raises(urllib.error.URLError, match='leads'):
    request = download.Redirects(internal=internal).redirect_request(*arguments)
    assert request.full_url == new


def test_a_file_that_there_is_not_is_one_line(server):
  assert refused(f'{server.url}/none.npz') == f'there is no {server.url}/none.npz (404 Not Found)'
  assert in_cache() == []


def test_no_network_is_one_line(server):
  server.shutdown()
  server.server_close()
  assert 'cannot be fetched (' in refused(f'{server.url}/a.npz')


def test_a_full_disk_is_one_line_and_leaves_nothing(server, monkeypatch):
  def full(answer, out, *_):
    out.write(b'some')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(download, 'copy', full)
  assert 'No space left on device' in refused(f'{server.url}/a.npz')
  assert in_cache() == []


@pytest.mark.parametrize(
  'url', ['ftp://host/a.npz', 's3://bucket/a.npz', 'file:///etc/passwd', 'https://', 'gs://']
)
def test_a_url_of_another_kind_or_without_a_file_is_an_error(server, url):
  assert url.partition('://')[0] in refused(url)
  assert server.asked == []


def test_a_url_names_no_file_outside_of_the_cache(server):
  for path in ('/../../../a.npz', '/%2e%2e/%2e%2e/%2e%2e/a.npz', '/..%2f..%2f..%2f..%2fa.npz'):
    server.files[path] = b'1'
    with contextlib.suppress(FileNotFoundError):
      file = published.local(server.url + path)
      assert file.resolve().is_relative_to(published.cache().resolve())


def test_a_terminal_shows_how_far_it_is(server, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
    monkeypatch.setattr(sys, 'stderr', stream)
    monkeypatch.setenv('XDG_CACHE_HOME', str(published.cache() / str(shown)))
    published.local(f'{server.url}/a.npz')
    assert ('fetching a.npz' in stream.getvalue()) is shown


# Names


def test_a_path_that_is_there_is_taken_as_it_is(server, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('run', 'B_16'):
    pathlib.Path(name).mkdir()
    assert published.local(name, f'{server.url}/folder') == pathlib.Path(name)
  assert server.asked == []


def test_a_name_is_looked_for_in_the_folder_with_and_without_its_ending(server, tmp_path):
  (tmp_path / 'ViT-B_16.npz').write_bytes(b'1')
  (tmp_path / 'run').mkdir()
  assert published.local('ViT-B_16', str(tmp_path)) == tmp_path / 'ViT-B_16.npz'
  assert published.local('ViT-B_16.npz', str(tmp_path)) == tmp_path / 'ViT-B_16.npz'
  assert published.local('run', str(tmp_path)) == tmp_path / 'run'
  assert str(tmp_path / 'B_32.npz') in refused('B_32', str(tmp_path))


def test_a_name_is_looked_for_at_a_url_as_npz(server):
  server.files |= {'/m/B_16.npz': b'1', '/m/x-lr_0.1-sd_0.0.npz': b'2', '/m/a.safetensors': b'3'}
  names = ('B_16', 'x-lr_0.1-sd_0.0', 'a.safetensors', 'B_16.npz')
  for folder in (f'{server.url}/m', f'{server.url}/m/', 'gs://m'):
    contents = [published.local(name, folder).read_bytes() for name in names]
    assert contents == [b'1', b'2', b'3', b'1']


def test_a_name_of_augregs_needs_no_folder(server):
  file = published.RECOMMENDED['R_Ti_16'].file
  server.files[f'/vit_models/augreg/{file}.npz'] = b'1'
  for name in ('R_Ti_16', 'R+ViT-Ti/16', file, f'{file}.npz'):
    assert published.local(name).read_bytes() == b'1'


@pytest.mark.parametrize('name', ['', 'runs/none', 'ViT-H/14', 'flowers'])
def test_a_name_of_nothing_is_one_line(server, name):
  line = refused(name)
  assert 'checkpoint' in line and server.asked == []


# AugReg


def test_the_recommended_files_are_of_their_models():
  assert len(published.RECOMMENDED) == 10
  for short, row in published.RECOMMENDED.items():
    assert published.short_name(short) == short  # a model that `build` knows
    assert published.augreg(short) == published.augreg(row.file) == row.file
    assert row.file.startswith(f'{short}-i21k-300ep-') and 75 < row.accuracy < 86
  whole = 'R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1'
  assert published.augreg('R50+ViT-L/32') == whole


def test_a_full_name_is_taken_with_its_ending_and_its_fine_tuning():
  name = (
    'S_16-i1k-300ep-lr_0.001-aug_light0-wd_0.3-do_0.0-sd_0.0--cifar100-steps_2k-lr_0.01-res_224'
  )
  assert published.augreg(name) == published.augreg(f'{name}.npz') == name


@pytest.mark.parametrize('name', ['Q_16', 'H_14', 'Q_16-i21k-300ep-lr_0.001', 'Mixer-B/16', ''])
def test_a_model_that_augreg_has_not_is_one_line(name):
  with pytest.raises(ValueError) as error:
    published.augreg(name)
  assert '\n' not in str(error.value)


# The index

COLUMNS = (
  'name,ds,lr,aug,wd,do,sd,best_val,final_val,final_test,adapt_ds,adapt_lr,adapt_steps,'
  'adapt_resolution,adapt_final_val,adapt_final_test,params,infer_samples_per_sec,filename,'
  'adapt_filename'
)


def row(file, final, adapt='imagenet2012', rate='0.03', validation='', test=''):
  model = file.partition('-')[0]
  return (
    f'{model},i21k,0.001,none,0.1,0.0,0.0,0.5,{final},0.4,{adapt},{rate},20000,384,{validation},'
    f'{test},1,137.92,{file},{file}--{adapt}'
  )


INDEX = [
  row('B_16-i21k-300ep-lr_1-a', 0.47, validation=0.84, test=0.80),
  row('B_16-i21k-300ep-lr_1-a', 0.47, validation=0.83, test=0.90, rate='0.01'),
  row('B_16-i21k-300ep-lr_1-b', 0.48, validation='', test=0.85),
  row('B_16-i21k-300ep-lr_1-c', 'nan', adapt='cifar100', validation=0.92),
  row('B_16-i21k-300ep-lr_1-d', 0.46, validation='', test=''),
  row('B_32-i21k-300ep-lr_1-e', 0.99, validation=0.99),
]


@pytest.fixture
def index(tmp_path):
  path = tmp_path / 'index.csv'
  path.write_text('\n'.join([COLUMNS, *INDEX, '']))
  return path


def listed(capsys, *words):
  """What `vit models` prints as JSON."""
  assert vit.main(['models', *map(str, words), '--format', 'json']) == 0
  return json.loads(capsys.readouterr().out)


def endings(files):
  return [file['file'][-1] for file in files['files']]


def test_files_are_listed_once_by_their_own_validation(index, capsys):
  for model in ('B_16', 'ViT-B/16', 'vit_base_patch16_224'):
    files = listed(capsys, '--augreg', model, '--index', index)
    assert endings(files) == ['b', 'a', 'd', 'c'] and files['count'] == 4
  assert endings(listed(capsys, '--augreg', 'B_16', '--index', index, '--top', 1)) == ['b']


def test_files_are_listed_by_what_they_reach_on_a_data_set(index, capsys):
  files = listed(capsys, '--augreg', 'B_16', '--adapt', 'imagenet2012', '--index', index)
  assert endings(files) == ['a', 'a', 'b', 'd']  # validation first, then what has a test alone
  assert [file['learning_rate'] for file in files['files']] == [0.03, 0.01, 0.03, 0.03]
  assert endings(listed(capsys, '--augreg', 'B_16', '--adapt', 'cifar100', '--index', index)) == [
    'c'
  ]


def test_the_command_of_a_file_is_one_that_the_config_takes(index, capsys):
  files = listed(capsys, '--augreg', 'B_16', '--adapt', 'imagenet2012', '--index', index)
  second = files['files'][1]
  assert second['url'] == 'gs://vit_models/augreg/B_16-i21k-300ep-lr_1-a.npz'
  words = second['command'].split()
  assert words[:2] == ['vit', 'train'] and words[3] == '--workdir=DIR'
  overrides = [word.removeprefix('--config.') for word in words[4:]]
  loaded = config.load(words[2].removeprefix('--config='), overrides)
  assert loaded.pretrained == 'B_16-i21k-300ep-lr_1-a'
  assert (loaded.duration, loaded.image_size) == (20_000, (384, 384))
  assert (loaded.data.source, loaded.schedule.learning_rate) == ('imagenet2012', 0.01)
  assert models.canonical(loaded.model.name) == 'ViT-B/16'


def test_the_command_of_a_file_names_a_set_that_is_no_preset_as_one_of_tfds(tmp_path, capsys):
  path = tmp_path / 'index.csv'
  rows = [row('B_16-i21k-300ep-lr_1-a', 0.47, adapt='resisc45', validation=0.9)]
  path.write_text('\n'.join([COLUMNS, *rows, '']))
  files = listed(capsys, '--augreg', 'B_16', '--adapt', 'resisc45', '--index', path)
  assert ',tfds:resisc45 ' in files['files'][0]['command']


def test_a_table_names_urls_and_the_command_of_the_best(index, capsys):
  words = ['--augreg', 'B_16', '--adapt', 'imagenet2012', '--index', str(index)]
  assert vit.main(['models', *words]) == 0
  title, *rows, command, count = capsys.readouterr().out.splitlines()
  assert title.split('  ')[:3] == ['upstream validation', 'validation', 'test']
  assert len(rows) == 4 and all('gs://vit_models/augreg/B_16' in line for line in rows)
  assert '--config=augreg:B_16-i21k-300ep-lr_1-a,imagenet2012' in command
  assert count.startswith('4 of 4 files of B_16')


def test_columns_that_are_missing_are_left_blank(tmp_path, capsys):
  path = tmp_path / 'index.csv'
  path.write_text('filename,adapt_ds\nB_16-i21k-300ep-lr_1-a,pets\nB_16-i21k-300ep-lr_1-b\n')
  files = listed(capsys, '--augreg', 'B_16', '--index', path)
  assert [file['upstream_validation'] for file in files['files']] == [None, None]
  assert listed(capsys, '--augreg', 'B_16', '--adapt', 'pets', '--index', path)['count'] == 1
  assert vit.main(['models', '--augreg', 'B_16', '--adapt', 'pets', '--index', str(path)]) == 0


def test_an_index_is_read_from_a_url(server, index, capsys):
  server.files['/vit_models/augreg/index.csv'] = index.read_bytes()
  assert listed(capsys, '--augreg', 'B_32')['count'] == 1
  assert listed(capsys, '--augreg', 'B_16', '--index', published.INDEX)['count'] == 4
  assert server.asked == ['/vit_models/augreg/index.csv']


@pytest.mark.parametrize(
  'words, said',
  [
    (['--augreg', 'Q_16'], "unknown model 'Q_16'"),
    (['--augreg', 'S_16'], 'no file of S_16'),
    (['--augreg', 'B_16', '--adapt', 'cifar10'], 'did you mean cifar100?'),
    (['--augreg', 'B_16', '--top', '0'], '--top must be at least 1'),
    (['--augreg', 'B_16', '--index', 'none.csv'], 'none.csv'),
    (['--augreg', 'B_16', '--index', ''], 'there is no such file'),
    (['--augreg', 'B_16', '--index', '.'], 'there is no such file'),
    (['--adapt', 'cifar100'], '--augreg MODEL'),
    (['B/16', '--format', 'json'], '--augreg MODEL'),
  ],
)
def test_bad_input_is_one_line(index, capsys, words, said):
  words = words if '--index' in words else [*words, '--index', str(index)]
  assert vit.main(['models', *words]) == 2
  printed = capsys.readouterr()
  assert printed.out == '' and printed.err.count('\n') == 1 and said in printed.err


@pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', '\0\0', 'filename\n', '"' * 200_000])
def test_a_file_that_is_no_index_is_one_line(tmp_path, capsys, text):
  path = tmp_path / 'index.csv'
  path.write_text(text)
  assert vit.main(['models', '--augreg', 'B_16', '--index', str(path)]) == 2
  printed = capsys.readouterr().err
  assert printed.count('\n') == 1 and str(path) in printed


def test_without_an_index_the_recommended_file_is_named(server, capsys):
  assert vit.main(['models', '--augreg', 'B_16']) == 2
  printed = capsys.readouterr().err
  assert (
    '404' in printed and published.RECOMMENDED['B_16'].file in printed and printed.count('\n') == 1
  )


def test_a_run_that_starts_from_a_name_fetches_it(server, tmp_path):
  fields = dict(patch=8, width=16, depth=1, heads=2, mlp_dim=16, num_classes=7)
  model, looks = models.build('ViT-Ti/8', **fields), bundle.Preprocess('resize', (16, 16))
  params = models.map_named(
    lambda _, leaf: np.ones(leaf.shape, np.float32), shapes(model, (16, 16))
  )
  source = bundle.Bundle(model, params, tuple('abcdefg'), looks, 'ViT-Ti/8')
  convert.write(tmp_path / 'a.npz', source, to='npz')
  server.files['/vit_models/imagenet21k/ViT-Ti_8.npz'] = (tmp_path / 'a.npz').read_bytes()
  small = ['image_size=16', 'batch_size=16', 'model.heads=2']
  plan = plans.make_plan(config.load('finetune:Ti_8,digits', small))
  start = models.flat(plan.task.start().params)
  assert (start['cls'] == 1).all() and not start['head/kernel'].any()


# Where a URL is taken for a path


def test_a_model_is_loaded_from_a_url(server):
  model = tiny()
  arrays = flat(drawn(shapes(model)))
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  server.files['/tiny.npz'] = buffer.getvalue()
  loaded = vit_jax.load_params(f'{server.url}/tiny.npz', model, image_size=SIZE, report=None)
  assert all(np.array_equal(flat(loaded)[name], array) for name, array in arrays.items())
  with pytest.raises(FileNotFoundError, match='there is no http'):
    vit_jax.load(f'{server.url}/none.npz')


# Images


def png(side=4):
  out = io.BytesIO()
  Image.new('RGB', (side, side), (9, 8, 7)).save(out, 'png')
  return out.getvalue()


def test_an_image_is_fetched_from_its_address(server):
  server.files = {'/a.png': png()}
  (image,) = loose.listed(f'{server.url}/a.png')
  assert image.name == f'{server.url}/a.png'
  np.testing.assert_array_equal(image.pixels(3)[0, 0], [9, 8, 7])


@pytest.mark.parametrize(
  ('path', 'said'),
  [
    ('none.png', '404'),
    ('page.png', 'page of HTML'),
    ('text.png', 'not an image'),
    ('large.png', 'exceed the limit of 90'),
  ],
)
def test_an_address_without_an_image_is_one_line_without_secrets(server, path, said, monkeypatch):
  monkeypatch.setattr(loose, 'URL_LIMIT', 90)
  bodies = {'page': b'<html>', 'text': b'rose', 'large': bytes(91)}
  server.files = {f'/{name}.png?sig=1': body for name, body in bodies.items()}
  url = f'{server.url.replace("//", "//me:pw@")}/{path}?sig=1'
  (image,) = loose.listed(url)
  with pytest.raises((FileNotFoundError, ValueError)) as error:
    image.pixels(3)
  text = str(error.value)
  assert said in text and '***' in text and 'pw' not in text and 'sig' not in text
  assert '\n' not in text
