"""Laws of `vit convert`: what is written, whole or not at all, what is told, what is compared."""

import dataclasses
import errno
import json
import os
import re

import numpy as np
import pytest

import vit_jax
from tests.conftest import drawn, shapes, tiny
from tests.test_run import contents
from vit_jax import __main__ as vit
from vit_jax import bundle, convert, models
from vit_jax.convert import preprocess, weights, writing
from vit_jax.evaluate import parity

SQUARE, OBLONG = (8, 8), (8, 24)


def made(size=SQUARE, steps='resize', *, mean=(0.5,) * 3, std=(0.5,) * 3, **fields):
  """A tiny model with what a bundle has, of random parameters."""
  model = tiny(activation='gelu_tanh', norm_eps=1e-6, **fields)
  classes = tuple(map(str, range(model.num_classes)))
  prepared = bundle.Preprocess(steps, size, mean, std)
  return bundle.Bundle(model, drawn(shapes(model, size)), classes, prepared, 'ViT-Ti/16')


@pytest.fixture
def source(tmp_path):
  """A bundle on disk."""
  bundle.write(tmp_path / 'source', made())
  return tmp_path / 'source'


def ended(words, capsys, code):
  """What `vit convert` says on standard error."""
  capsys.readouterr()
  assert vit.main(['convert', *map(str, words)]) == code
  return capsys.readouterr().err


def line(words, capsys, code=2):
  """The one line that it says."""
  err = ended(words, capsys, code)
  assert err.count('\n') == 1 and err.startswith('vit convert: '), err
  return err


# Differences


def test_a_value_that_is_not_finite_is_the_largest_difference():
  fine, spoilt = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
  spoilt[1, 1] = np.nan
  for ours, theirs in ((fine, spoilt), (spoilt, fine), (spoilt, spoilt)):
    result = parity.distances({'a': fine, 'b': ours}, {'a': fine + 1, 'b': theirs})
    assert result['b'] == float('inf') and max(result, key=result.get) == 'b'
    assert 'largest difference inf of the largest value, at b' in parity.summary('model', result)


def test_a_difference_is_told_in_units_of_the_largest_value():
  theirs = np.float32([1e-3, -4e-3])
  assert parity.distances({'a': theirs + np.float32(1e-3)}, {'a': theirs})['a'] == pytest.approx(
    0.25, rel=1e-4
  )
  zeros = np.zeros(2, np.float32)
  assert parity.distances({'a': zeros}, {'a': zeros}) == {'a': 0}
  assert parity.distances({'a': zeros + 1}, {'a': zeros}) == {'a': float('inf')}


def test_a_place_of_two_shapes_and_no_place_at_all_are_errors():
  a = np.zeros((2, 3))
  with pytest.raises(ValueError, match=r'logits has shape \(2, 3\) here, \(3, 2\) there'):
    parity.distances({'logits': a}, {'logits': a.T})
  with pytest.raises(ValueError, match='nothing to compare: logits here, nothing there'):
    parity.distances({'logits': a}, {})


@pytest.mark.parametrize('where', ['open', 'run'])
def test_whatever_a_library_raises_is_one_line(where, source, tmp_path, monkeypatch, capsys):
  def fails(*_):
    raise RuntimeError('the size\nof tensor a')

  class Module:
    def eval(self):
      return self

    float = eval

  monkeypatch.setattr(parity, 'usable', lambda library: True)
  monkeypatch.setitem(parity.OPENERS, 'timm', fails if where == 'open' else lambda *_: Module())
  monkeypatch.setattr(parity, 'torch_trace', fails)
  err = ended([source, tmp_path / 'out', '--to', 'timm', '--check'], capsys, code=3)
  assert (
    f'timm does not run {tmp_path / "out"} (RuntimeError: the size of tensor a)'
    in err.splitlines()[-1]
  )


def check(source, out, to):
  sides = {'read': (str(source), 'vit_jax'), 'written': (str(out), to)}
  return parity.compare(bundle.read(source, native=True), sides)


@pytest.mark.parametrize('to', ['npz', 'timm', 'bundle'])
def test_without_a_library_what_was_written_is_read_again(to, tmp_path, monkeypatch, capsys):
  source, out = tmp_path / 'source', tmp_path / ('out.npz' if to == 'npz' else 'out')
  bundle.write(source, made(OBLONG) if to != 'npz' else made())
  monkeypatch.setattr(parity, 'usable', lambda library: False)
  assert vit.main(['convert', str(source), str(out), '--to', to, '--check']) == 0
  assert 'read again by us' in capsys.readouterr().out
  file = out / 'model.safetensors' if out.is_dir() else out
  arrays = {name: np.array(array) for name, array in weights.read(file).items()}
  name = next(n for n in arrays if re.search(r'norm', n) and n.endswith(('scale', 'weight')))
  for spoilt in (np.float32(7), np.float32(np.nan)):
    write = weights.write_npz if to == 'npz' else weights.write_safetensors
    write(file, arrays | {name: np.full_like(arrays[name], spoilt)})
    (file.parent / 'seal.json').unlink(missing_ok=True)  # it is changed on purpose
    text, fine = check(source, out, to)
    assert not fine, text


# Whole or not at all


@pytest.mark.parametrize('to', ['bundle', 'timm', 'hf'])
def test_what_is_beside_a_folder_stays(to, source, tmp_path, capsys):
  (tmp_path / 'out.partial').mkdir()
  (tmp_path / 'out.partial' / 'thesis.txt').write_text('mine')
  ended([source, tmp_path / 'out', '--to', to], capsys, code=0)
  assert (tmp_path / 'out.partial' / 'thesis.txt').read_text() == 'mine'
  assert sorted(os.listdir(tmp_path)) == ['out', 'out.partial', 'source']
  (tmp_path / 'plain').mkdir()
  assert (tmp_path / 'out').stat().st_mode == (tmp_path / 'plain').stat().st_mode


FAULTS = [KeyboardInterrupt(), OSError(errno.ENOSPC, 'No space left on device', '/x/.vit-1/new')]


@pytest.mark.parametrize('fault', FAULTS, ids=['interrupted', 'full'])
@pytest.mark.parametrize('place', ['write_safetensors', 'dumps'])
def test_a_folder_that_cannot_be_written_leaves_nothing(fault, place, tmp_path, monkeypatch):
  def fails(*_, **__):
    raise fault

  whole = made()
  bundle.write(tmp_path / 'old', whole)
  before = contents(tmp_path)
  monkeypatch.setattr(*((weights, place) if hasattr(weights, place) else (json, place)), fails)
  for write in (
    lambda path: bundle.write(path, whole),
    lambda path: writing.write(path, whole, to='hf'),
  ):
    with pytest.raises(type(fault)) as error:
      write(tmp_path / 'out')
    if isinstance(fault, OSError):
      assert str(error.value).endswith(f'No space left on device: {str(tmp_path / "out")!r}')
  with pytest.raises(type(fault)):
    bundle.write(tmp_path / 'old', whole)
  assert contents(tmp_path) == before


@pytest.mark.parametrize('to', ['bundle', 'timm', 'hf', 'npz', 'torchvision'])
def test_a_link_to_nowhere_exists_already(to, source, tmp_path, capsys):
  out = tmp_path / {'npz': 'out.npz', 'torchvision': 'out.pth'}.get(to, 'out')
  out.symlink_to(tmp_path / 'nowhere')
  assert f'{out} exists already' in line([source, out, '--to', to], capsys)
  if to != 'bundle':
    with pytest.raises(ValueError, match='exists already'):
      convert.write(out, made(), to=to)
  assert out.is_symlink() and not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize(
  'name, to, said',
  [
    ('out.npz', 'timm', 'a folder or .pth or .safetensors or .pt or .bin'),
    ('out.pth', 'hf', 'a folder'),
    ('out', 'npz', '.npz'),
    ('out.v2', 'torchvision', '.pth or .safetensors or .pt or .bin'),
  ],
)
def test_a_path_that_a_dialect_is_not_written_to_is_told_what_it_is(name, to, said, tmp_path):
  with pytest.raises(ValueError, match=re.escape(f'{to} is written to {said}') + '$'):
    convert.write(tmp_path / name, made(), to=to)
  assert os.listdir(tmp_path) == []


def test_a_name_with_another_suffix_is_a_folders(tmp_path):
  convert.write(tmp_path / 'vit.v2', made(), to='timm')
  assert (tmp_path / 'vit.v2' / 'config.json').is_file()


# What is told


def notes(tmp_path, whole, to):
  out = tmp_path / {'npz': 'a.npz', 'bigvision': 'a.npz', 'torchvision': 'a.pth'}.get(to, 'a')
  return [note for note in convert.write(out, whole, to=to) if not note.startswith('open it')]


@pytest.mark.parametrize('part', ['images', 'patches'])
def test_torchvision_says_no_oblong_models(part, tmp_path):
  whole = made(OBLONG) if part == 'images' else made(SQUARE, patch=(4, 8))
  with pytest.raises(ValueError, match=f'torchvision has no way to say {part} of'):
    convert.write(tmp_path / 'a.pth', whole, to='torchvision')
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['a.npz', 'b.npz', 'c.safetensors'])
def test_a_lone_file_of_an_oblong_model_is_told_and_read_with_its_size(name, tmp_path):
  to = {'a': 'npz', 'b': 'bigvision', 'c': 'timm'}[name[0]]
  whole = made(OBLONG)
  lines = convert.write(tmp_path / name, whole, to=to)
  assert 'positions are for 8x24: give image_size to read them' in lines
  params = vit_jax.load_params(tmp_path / name, whole.model, image_size=OBLONG, report=None)
  back, expected = models.flat(params), models.flat(whole.params)
  if to == 'bigvision':  # the position of the class token is in the token
    back, expected = (
      {n: a for n, a in x.items() if n not in ('cls', 'positions')} for x in (back, expected)
    )
  assert back.keys() == expected.keys()
  assert all(np.array_equal(back[n], expected[n]) for n in expected)


def test_a_square_file_is_resampled_to_an_oblong_of_as_many_patches(tmp_path):
  whole = made((16, 16))
  convert.write(tmp_path / 'a.npz', whole, to='npz')
  wanted = vit_jax.load_params(tmp_path / 'a.npz', whole.model, image_size=None, report=None)
  resampled = vit_jax.load_params(tmp_path / 'a.npz', whole.model, image_size=(8, 32), report=None)
  assert wanted['positions'].shape == resampled['positions'].shape
  assert not np.array_equal(wanted['positions'], resampled['positions'])


CENTRE = "resize_small(10, method='bicubic_antialias', rounding='down') | central_crop"
RATIO = "crop_ratio(ratio=0.8, method='bicubic_antialias')"
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
USUAL = {'npz': 'resize', 'bigvision': 'resize', 'torchvision': None, 'timm': RATIO, 'hf': CENTRE}


@pytest.mark.parametrize('to', list(USUAL))
def test_preprocessing_that_its_readers_do_anyway_is_not_told(to, tmp_path):
  options = {} if to != 'torchvision' else IMAGENET
  steps = USUAL[to] or "crop_ratio(ratio=0.875, method='bilinear_antialias')"
  whole = made(SQUARE, steps, **options)
  whole = dataclasses.replace(
    whole, model=whole.model.clone(activation='gelu_erf' if to == 'torchvision' else 'gelu_tanh')
  )
  assert notes(tmp_path, whole, to) == []


@pytest.mark.parametrize('to', list(USUAL))
def test_preprocessing_that_a_dialect_cannot_say_is_told(to, tmp_path):
  steps = 'resize(16) | resize(8)'
  (note,) = [note for note in notes(tmp_path, made(SQUARE, steps), to) if 'preprocessing' in note]
  assert note.startswith(f'preprocessing is {steps!r}, but its readers take ')


@pytest.mark.parametrize('to', ['npz', 'bigvision', 'timm', 'hf'])
def test_a_mean_is_told_only_where_no_file_carries_it(to, tmp_path):
  begins = [note[:4] for note in notes(tmp_path, made(SQUARE, **IMAGENET), to)]
  assert [n for n in begins if n in ('mean', 'std ')] == (
    [] if to in ('timm', 'hf') else ['mean', 'std ']
  )


def test_what_timm_squashes_and_cuts_comes_back(tmp_path):
  steps = "resize(10, 10, method='bicubic_antialias') | central_crop(rounding='nearest')"
  whole = made(SQUARE, steps)
  assert notes(tmp_path, whole, 'timm') == []
  assert bundle.read(tmp_path / 'a').preprocess == whole.preprocess


@pytest.mark.parametrize(
  'steps, resizing',
  [
    ('resize', (True, (8, 8), 'bilinear')),
    ("resize(8, 8, method='bicubic')", (True, (8, 8), 'bicubic')),
    ("resize(9, 12, method='bicubic') | central_crop(8, 8)", (True, (9, 12), 'bicubic')),
    ('resize(10)|central_crop', (True, (10, 10), 'bilinear')),
    ('resize_small(10) | central_crop(8)', (False, (10, 10), 'bilinear', 'nearest')),
    ("resize_small(10, rounding='down') | central_crop", (False, (10, 10), 'bilinear')),
    ('crop_ratio(ratio=0.8)', (False, (10, 10), 'bicubic_antialias', 'down', 'nearest')),
    ('crop_ratio(7)', None),
    ('resize_small(10)', None),
    ('resize(10)', None),
    ('resize_small(10) | central_crop(7)', None),
    ('resize_small', None),
    ('resize_small(10) | flip', None),
    ('resize_small(10) | central_crop | central_crop', None),
  ],
)
def test_a_line_looks_as_other_frameworks_say_it(steps, resizing):
  assert preprocess.parse_steps(steps, SQUARE) == (resizing and preprocess.Resizing(*resizing))


# Bundles that memory would not hold, or nobody wrote


def spoilt(source, **changes):
  """A bundle's description with other values, as 'preprocess__size'."""
  described = json.loads((source / 'config.json').read_text())
  for name, value in changes.items():
    section, leaf = name.split('__')
    described[section][leaf] = value
  (source / 'config.json').write_text(json.dumps(described))


@pytest.mark.parametrize(
  'size, positions',
  [
    ([10**7, 8], 'learned'),
    ([8, 10**9], 'rope'),
    ([65_536, 65_536], 'sincos2d'),
    ([10**9, 10**9], 'learned'),
  ],
)
def test_a_size_beyond_memory_is_refused_before_it_is_taken(size, positions, source, capsys):
  spoilt(source, preprocess__size=size, model__positions=positions)
  assert 'too large' in line([source, source / 'out', '--to', 'bundle'], capsys)


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'preprocess__std': [0.5, 0, 0.5]}, 'above 0'),
    ({'preprocess__std': [0.5, -1, 0.5]}, 'above 0'),
    ({'preprocess__std': 0.5}, 'std is 0.5'),
    ({'preprocess__mean': [0.5, float('nan'), 0.5]}, 'not three finite numbers'),
    ({'preprocess__mean': [0.5, float('inf'), 0.5]}, 'not three finite numbers'),
    ({'preprocess__mean': [0.5, 10**400, 0.5]}, 'not three finite numbers'),
    ({'preprocess__mean': 'abc'}, 'not three finite numbers'),
    ({'preprocess__mean': ['a', 'b', 'c']}, 'not three finite numbers'),
    ({'preprocess__steps': 'resize(1000000000)'}, 'more than'),
    ({'preprocess__steps': 'resize_small(10000000) | central_crop'}, 'more than'),
    ({'preprocess__steps': 'resize(8, 1000000000)'}, 'more than'),
    ({'preprocess__steps': ['resize']}, 'not a line'),
  ],
)
def test_preprocessing_that_cannot_be_is_refused(changes, said, source, capsys):
  spoilt(source, **changes)
  assert said in line([source, source / 'out', '--to', 'bundle'], capsys)


@pytest.mark.parametrize(
  'options, said',
  [
    ({'image_size': 64.0}, 'image_size is 64.0'),
    ({'image_size': 'x'}, "image_size is 'x'"),
    ({'image_size': (64,)}, r'image_size is \(64,\)'),
    ({'image_size': True}, 'image_size is True'),
    ({'image_size': 0}, 'image_size is 0'),
    ({'image_size': (8, 8.0)}, 'image_size is'),
    ({'image_size': 10**9}, 'too large'),
    ({'channels': '3'}, "channels is '3'"),
    ({'channels': 2.5}, 'channels is 2.5'),
    ({'resample': 3}, 'resample is 3'),
    ({'resample': ['bicubic']}, 'resample is'),
    ({'model': 'ViT-B/16'}, r"model is 'ViT-B/16', not a model: vit_jax.build\('ViT-B/16'\)"),
    ({'model': None}, 'model is None'),
  ],
)
def test_an_argument_of_another_kind_is_named(options, said, source):
  model = options.pop('model', made().model)
  with pytest.raises(ValueError, match=said) as error:
    vit_jax.load_params(source, model, **options)
  assert '\n' not in str(error.value)


def test_sizes_of_numpy_and_lists_are_sizes(source):
  for size in (np.int64(8), [8, 8], (np.int32(8), 8)):
    vit_jax.load_params(source, made().model, image_size=size)


def test_a_path_too_long_for_the_system_is_one_line(tmp_path, capsys):
  out = str(tmp_path / 'out.npz')
  for path in ('x' * 5000, '/'.join(['x' * 200] * 25)):
    for command in (['predict', path, 'rose.jpg'], ['convert', path, out, '--to', 'npz']):
      capsys.readouterr()
      assert vit.main(command) == 2
      err = capsys.readouterr().err
      assert err.count('\n') == 1 and 'too long' in err


# What is missing


def test_a_folder_whose_weights_have_another_name_is_told_it(source, capsys):
  (source / 'model.safetensors').rename(source / 'weights.safetensors')
  err = line([source, source / 'out', '--to', 'npz'], capsys)
  assert f'{source} holds no weights: neither model.safetensors' in err
  assert 'weights.safetensors' in err and 'training' not in err


def test_the_file_that_a_run_or_bundle_lacks_is_named(source, tmp_path, capsys):
  (tmp_path / 'run').mkdir()
  source.rename(tmp_path / 'run' / 'model')
  for name in ('model.safetensors', 'config.json'):
    file = tmp_path / 'run' / 'model' / name
    data = file.read_bytes()
    file.unlink()
    assert f'{file} is missing' in line([tmp_path / 'run', tmp_path / 'o', '--to', 'npz'], capsys)
    file.write_bytes(data)
