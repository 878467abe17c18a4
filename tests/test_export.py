"""Laws of exporting a model: an export is `apply`, whole or not there; and what a card says."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.conftest import SIZE, drawn, shapes, tiny
from tests.test_run import cache, contents, whole
from vit_jax import __main__ as vit
from vit_jax import bundle, export, predict, sharding
from vit_jax.commands.export import default_path
from vit_jax.convert.preprocess import describe_steps
from vit_jax.evaluate import results
from vit_jax.images import transforms
from vit_jax.models import attention
from vit_jax.models import vit as vits
from vit_jax.serving import served
from vit_jax.views import card

__all__ = ['cache', 'whole']

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'export.md'
CLASSES = ('rose', 'tulip', 'lily', 'iris', 'other | none')
LAST = dict(pool='map', positions='rope', swiglu=True, width=32, registers=2, qk_norm=True)
SMALL = dict(num_classes=5, depth=2, width=16, patch=4, mlp_dim=16)
HYBRID = dict(depth=1, width=16, heads=2, mlp_dim=16, patch=8, stem=(1, 1), stem_width=32)
DEIT = dict(distillation='head', layer_scale=0.5, drop_path=0.2)
POOLED = dict(pool='gap', final_norm='pooled', dropout=0.1, attention_dropout=0.1, remat='full')
FAMILIES = {
  'vit': lambda: (tiny(), SIZE),
  'sigmoid': lambda: (tiny(pool='gap', positions='sincos2d', activation='gelu_erf'), SIZE),
  'map': lambda: (tiny(**LAST), SIZE),
  'patches': lambda: (tiny(pool='none'), SIZE),
  'deit': lambda: (tiny(**DEIT), SIZE),
  'pooled': lambda: (tiny(unroll=None, **POOLED), SIZE),
  'hybrid': lambda: (vit_jax.build('R26+ViT-S/32', num_classes=5, **HYBRID), (16, 16)),
  'mixer': lambda: (vit_jax.build('Mixer-S/16', tokens_dim=8, **SMALL), SIZE),
  'bit': lambda: (vit_jax.build('BiT-R50x1', num_classes=5, blocks=(1,)), (16, 16)),
}
NAMES = {'mixer': 'Mixer-S/16', 'bit': 'BiT-R50x1', 'hybrid': 'R26+ViT-S/32'}


def made(family='vit', **fields):
  """A small bundle, every number of which counts."""
  model, size = FAMILIES[family]()
  params = drawn(shapes(model, size))
  preprocess = bundle.Preprocess('resize', size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
  values = dict(
    model=model,
    params=params,
    classes=CLASSES,
    preprocess=preprocess,
    name=NAMES.get(family, 'ViT-Ti/16'),
    scores='sigmoid' if family == 'sigmoid' else 'softmax',
  )
  return bundle.Bundle(**values | fields)


def uint8(count, size=SIZE):
  return np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def applied(source, images):
  """`apply` of the model, as `Run.predict` has it."""
  run = predict.Run(**vars(source))
  return np.asarray(run.apply(run.params, images)['scores'])


@pytest.fixture(scope='module')
def source():
  return made()


@pytest.fixture(scope='module')
def program(source, tmp_path_factory):
  """A StableHLO file of it, checked in a process of its own; and what was told."""
  path = tmp_path_factory.mktemp('export') / 'flowers.stablehlo'
  return path, export.write(path, source)


@pytest.fixture
def saved(source, tmp_path):
  """The folder of a run that has nothing but its model."""
  bundle.write(tmp_path / 'run' / 'model', source)
  return tmp_path / 'run'


# StableHLO


@pytest.mark.parametrize('family', FAMILIES)
def test_a_program_gives_the_bits_of_apply_for_every_batch_size(family, tmp_path):
  source = made(family)
  export.write(tmp_path / 'model.stablehlo', source, check=False)
  loaded = export.load(tmp_path / 'model.stablehlo')
  for count in (1, 3):
    images = uint8(count, source.preprocess.size)
    scores = loaded(images)
    assert scores.dtype == np.float32 and scores.std() > 0.01
    np.testing.assert_array_equal(scores, applied(source, images))


def test_the_program_of_split_parameters_is_that_of_whole_ones(program, source, tmp_path):
  mesh = sharding.make_mesh(fsdp=2)
  split = dataclasses.replace(source, params=sharding.place(source.params, mesh))
  assert not split.params['head']['kernel'].is_fully_replicated
  export.write(tmp_path / 'split.stablehlo', split, check=False)
  with np.load(program[0]) as whole, np.load(tmp_path / 'split.stablehlo') as split_file:
    assert sorted(split_file.files) == sorted(whole.files)
    assert all(np.array_equal(split_file[name], whole[name]) for name in whole.files)


def test_the_check_tells_in_one_line_that_nothing_differs(program):
  assert program[1] == [
    'stablehlo: differs by 0 from apply, in log-odds by 0 of the largest, '
    'in batches of 1 and 3 on a CPU'
  ]


LOGITS = np.random.default_rng(0).normal(-12, 0.02, (2, 21843))  # of very many classes


@pytest.mark.parametrize('scores', ['softmax', 'sigmoid'])
def test_classes_in_another_order_differ_in_log_odds_alone(scores):
  here = np.asarray(getattr(jax.nn, scores)(np.float32(LOGITS)))
  apart, in_odds = export.differences(np.roll(here, 1, axis=-1), here)
  assert apart < export.NEAR['onnx'] and in_odds > 10 * export.NEAR_ODDS


@pytest.mark.parametrize('scale', [1, 3, 30])
@pytest.mark.parametrize('scores', ['softmax', 'sigmoid'])
def test_logits_in_another_rounding_do_not_differ(scores, scale):
  logits = np.float32(LOGITS * scale)
  noise = np.random.default_rng(1).uniform(-1e-6, 1e-6, logits.shape)
  pair = [
    np.asarray(getattr(jax.nn, scores)(np.float32(x))) for x in (logits, logits * (1 + noise))
  ]
  assert export.differences(*pair)[1] <= export.NEAR_ODDS


@pytest.mark.parametrize('scores', [np.full((2, 3), np.nan), np.full((2, 4), 0.5)])
def test_scores_that_are_not_finite_or_not_as_many_are_far_from_all(scores):
  assert export.differences(scores, np.full((2, 3), 0.5)) == (np.inf, np.inf)


def test_one_file_is_for_cpu_cuda_and_tpu(program):
  assert export.load(program[0]).platforms == ('cpu', 'cuda', 'tpu')


def test_the_machine_that_exports_leaves_no_trace_in_the_program(program, source, monkeypatch):
  monkeypatch.setattr(attention, 'has_flash_attention', lambda: True)
  monkeypatch.setattr(vits.jax, 'default_backend', lambda: 'gpu')
  fast = bundle.Bundle(**vars(source) | {'model': source.model.clone(dtype='bfloat16')})
  path = program[0].with_name('gpu.stablehlo')
  export.write(path, fast, check=False)
  codes = [bytes(np.load(file)['program']) for file in (path, program[0])]
  assert codes[0] == codes[1]
  assert b'cudnn' not in codes[0] and b'/vit_jax/' not in codes[0] and b'.py' not in codes[0]


def test_the_lines_of_the_page_run_it_with_jax_and_numpy_alone(program, source, tmp_path):
  blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
  (lines,) = [block for block in blocks if 'deserialize' in block]
  np.save(tmp_path / 'images.npy', uint8(3))
  alone = (
    'import sys\nfor name in ("vit_jax", "flax", "optax", "orbax"): sys.modules[name] = None\n'
    'import numpy\nimages = numpy.load("images.npy")\n'
    f'{lines.replace("flowers.stablehlo", str(program[0]))}\nnumpy.save("scores.npy", scores)\n'
  )
  ended = subprocess.run([sys.executable, '-c', alone], cwd=tmp_path, capture_output=True)
  assert ended.returncode == 0, ended.stderr.decode()
  scores = np.load(tmp_path / 'scores.npy')
  np.testing.assert_allclose(scores, applied(source, uint8(3)), atol=1e-6)  # threads may differ


def test_the_file_beside_a_program_tells_all_that_its_caller_needs(program, source):
  description = json.loads(export.beside(program[0]).read_text())
  assert (description['vit_jax'], description['jax']) == (vit_jax.__version__, jax.__version__)
  assert description['classes'] == list(CLASSES) and description['scores'] == 'softmax'
  assert description['input'] == {'name': 'images', 'dtype': 'uint8', 'shape': ['batch', *SIZE, 3]}
  assert description['output']['shape'] == ['batch', 5]
  assert description['preprocess'] == {
    'before': 'resize',
    'described': {
      'resize': {
        'size': list(SIZE),
        'keeps_aspect': False,
        'rounding': 'down',
        'interpolation': 'bilinear',
        'antialias': False,
      },
      'crop': {'size': list(SIZE), 'rounding': 'down'},
    },
    'inside': {'mean': [0.4, 0.5, 0.6], 'std': [0.2, 0.3, 0.25]},
  }


@pytest.fixture(scope='module')
def reference():
  """What the documents' code in NumPy and Pillow defines."""
  text = (pathlib.Path(__file__).parents[1] / 'docs' / 'export.md').read_text('utf-8')
  names = {}
  for block in re.findall(r'```python\n(.*?)```', text, re.S):
    if 'def ' in block:
      exec(block, names)
  return names


@pytest.mark.parametrize('size', [(32, 32), (24, 36)])
@pytest.mark.parametrize(
  'method', ['bilinear', 'bicubic', 'bilinear_antialias', 'bicubic_antialias']
)
@pytest.mark.parametrize(
  'line',
  [
    'resize(method={})',
    'resize(scale=7/6, method={}) | central_crop',
    'resize_small(scale=8/7, method={}) | central_crop',
    "resize_small(40, method={}, rounding='down') | central_crop(rounding='nearest')",
    'crop_ratio(ratio=0.9, method={})',
  ],
)
def test_the_reference_in_the_documents_gives_an_exports_pixels_to_a_grey_level(
  line, method, size, reference
):
  preprocess = bundle.Preprocess(line.format(repr(method)), size)
  described = describe_steps(preprocess)
  resample = reference['by_pillow' if described['resize']['antialias'] else 'by_points']
  for height, width in ((61, 83), (97, 50), (20, 27)):
    noise = np.random.default_rng(height).integers(0, 256, (height // 3, width // 3, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    pixels = transforms.compose(preprocess.steps, size)(
      np.asarray(picture), np.random.default_rng(0)
    )
    theirs = reference['prepare'](picture, **described, resample=resample)
    assert theirs.shape == pixels.shape
    assert np.abs(theirs.astype(int) - pixels).max() <= 1


def test_a_loaded_program_knows_its_classes_size_and_preprocessing(program):
  loaded = export.load(program[0])
  assert (loaded.classes, loaded.size, loaded.preprocess) == (CLASSES, SIZE, 'resize')
  assert (loaded.scores, loaded.model) == ('softmax', 'ViT-Ti/16')


@pytest.mark.parametrize(
  'images',
  [
    np.zeros((2, *SIZE, 3), np.float32),
    np.zeros((*SIZE, 3), np.uint8),
    np.zeros((2, 12, 8, 3), np.uint8),
    np.zeros((0, *SIZE, 3), np.uint8),
  ],
)
def test_other_images_than_it_takes_are_refused(program, images):
  with pytest.raises(ValueError, match=r'images are uint8 \(N, 8, 12, 3\), not'):
    export.load(program[0])(images)


@pytest.fixture
def copied(program, tmp_path):
  path = tmp_path / 'copied.stablehlo'
  for file in (path, export.beside(path)):
    file.write_bytes(program[0].with_name(file.name.replace('copied', 'flowers')).read_bytes())
  return path


def test_a_damaged_program_is_refused(copied):
  data = bytearray(copied.read_bytes())
  data[len(data) // 2] ^= 1
  copied.write_bytes(data)
  with pytest.raises(ValueError, match='damaged'):
    export.load(copied)


@pytest.mark.parametrize('lost', [0, 1])
def test_a_program_without_one_of_its_two_files_is_refused(copied, lost):
  (copied, export.beside(copied))[lost].unlink()
  with pytest.raises(
    FileNotFoundError, match=r'there is no such file|copied\.stablehlo\.json is not beside it'
  ):
    export.load(copied)


@pytest.mark.parametrize(
  'change, said',
  [
    ({'kind': 'onnx'}, 'is an ONNX file'),
    ({'format': 2}, 'does not describe a StableHLO program of format 1'),
    ({'classes': ['one']}, 'describes other images or classes'),
    ({'input': {'shape': ['batch', 9, 9, 3]}}, 'describes other images or classes'),
  ],
)
def test_a_file_beside_it_that_tells_of_something_else_is_refused(copied, change, said):
  description = json.loads(export.beside(copied).read_text())
  export.beside(copied).write_text(json.dumps(description | change))
  with pytest.raises(ValueError, match=said):
    export.load(copied)


def test_a_program_that_this_jax_cannot_read_says_who_made_it(copied):
  with np.load(copied) as file:
    arrays = {name: file[name] for name in file.files}
  with copied.open('wb') as file:
    np.savez(file, **arrays | {'program': arrays['program'][:100]})
  description = json.loads(export.beside(copied).read_text())
  description |= {'sha256': export.digest(copied), 'jax': '9.9'}
  export.beside(copied).write_text(json.dumps(description))
  with pytest.raises(ValueError, match=r'cannot be read \(made by jax 9.9, read by'):
    export.load(copied)


# Whole or not at all


def dimmer(source):
  """With another mean of the pixels."""
  mean = tuple(value + 1e-3 for value in source.preprocess.mean)
  return dataclasses.replace(source, preprocess=dataclasses.replace(source.preprocess, mean=mean))


def larger(source):
  """With other parameters."""
  return dataclasses.replace(source, params=jax.tree.map(lambda x: x * 1.001, source.params))


def test_an_export_that_differs_from_apply_is_not_written(source, tmp_path, monkeypatch):
  right = export.WRITERS['stablehlo']
  monkeypatch.setitem(export.WRITERS, 'stablehlo', lambda path, one: right(path, dimmer(one)))
  message = r'nothing was written: .*stablehlo: differs by .* more than 0 in probability'
  with pytest.raises(ValueError, match=message):
    export.write(tmp_path / 'model.stablehlo', source)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('to', 'change', 'message'),
  [
    ('hf', dimmer, 'mean is [0.501, 0.501, 0.501] there, not [0.5, 0.5, 0.5]'),
    ('npz', larger, 'largest difference'),
  ],
)
def test_parameters_and_preprocessing_are_compared(to, change, message, tmp_path, capsys):
  path, folder = tmp_path / f'model{export.SUFFIXES[to]}', tmp_path / 'expected'
  export.write(path, change(square()), to=to, check=False)
  bundle.write(folder, square())
  assert export.compare(to, str(path), str(folder)) == 3
  assert message in capsys.readouterr().out


def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch):
  rename, done = os.rename, []

  def full(old, new):
    done.append(new)
    if len(done) == 2:
      raise OSError(errno.ENOSPC, 'No space left on device')
    rename(old, new)

  monkeypatch.setattr(os, 'rename', full)
  with pytest.raises(OSError, match='No space left') as error:
    export.write(tmp_path / 'model.stablehlo', source, check=False)
  assert error.value.filename == str(tmp_path / 'model.stablehlo')
  assert len(done) == 3 and list(tmp_path.iterdir()) == []  # the first goes back


REFUSED = {
  '--to stablehlo --out x.onnx': 'stablehlo is written to a file that ends in .stablehlo',
  '--to onnx --out x': 'onnx is written to a file that ends in .onnx',
  '--to npz --out x': 'npz is written to .npz',
  '--to hf --out x.npz': 'hf is written to a folder',
  '--to stablehol': "unknown target 'stablehol'; did you mean stablehlo?",
  '--out x.tflite': 'x.tflite: its suffix tells no target; give one of stablehlo, onnx, npz',
  '': 'give --to: stablehlo, onnx, npz, timm, hf',
  '--to stablehlo --out there.stablehlo': 'there.stablehlo exists already',
  '--to stablehlo --out beside.stablehlo': 'beside.stablehlo.json exists already',
  '--to hf --out file/x': 'file',
}


@pytest.mark.parametrize('words', REFUSED)
def test_what_cannot_be_exported_is_told_in_one_line(saved, words, monkeypatch, capsys):
  monkeypatch.chdir(saved.parent)
  for name in ('there.stablehlo', 'beside.stablehlo.json', 'file'):
    pathlib.Path(name).write_text('')
  before = contents(saved.parent)
  assert vit.main(['export', 'run', *words.split()]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith('vit export: ') and err.count('\n') == 1
  assert REFUSED[words] in err
  assert contents(saved.parent) == before


def test_a_run_that_is_not_there_is_told_in_one_line(tmp_path, capsys):
  words = ['export', str(tmp_path / 'none'), '--out', str(tmp_path / 'x.npz')]
  assert vit.main(words) == 2
  assert capsys.readouterr().err.count('\n') == 1 and list(tmp_path.iterdir()) == []


SQUARE = (8, 8)


def square(classes=CLASSES):
  """A bundle for square images, whose table of positions any reader understands."""
  model = tiny(num_classes=len(classes))
  params = drawn(shapes(model, SQUARE))
  return made(
    model=model, params=params, classes=classes, preprocess=bundle.Preprocess('resize', SQUARE)
  )


def test_other_classes_than_the_head_has_are_refused(source, tmp_path):
  with pytest.raises(ValueError, match='2 classes for a head of 5'):
    export.write(tmp_path / 'model.npz', dataclasses.replace(source, classes=('a', 'b')))
  assert list(tmp_path.iterdir()) == []


def test_the_program_of_a_model_without_classes_gives_the_bits_of_its_features(tmp_path):
  source, path = square(()), tmp_path / 'encoder.stablehlo'
  export.write(path, source, check=False)
  program, images = export.load(path), uint8(3, SQUARE)
  features = predict.Run(**vars(source)).features(images, batch_size=3)
  np.testing.assert_array_equal(program(images), features)
  assert features.shape == (3, 16) and features.std() > 0.01 and program.classes == ()
  output = json.loads(export.beside(path).read_text())['output']
  assert output == {'name': 'features', 'dtype': 'float32', 'shape': ['batch', 16]}
  with pytest.raises(ValueError, match='gives features: there are no classes to serve'):
    served.load(path)


def test_features_differ_by_a_fraction_of_the_largest():
  features = np.float32([[1, -200], [50, 100]])
  assert export.feature_differences(features + np.float32(1), features) == (1 / 200,)
  assert export.feature_differences(features[:1], features) == (float('inf'),)
  assert export.feature_differences(np.full_like(features, np.nan), features) == (float('inf'),)


def test_a_model_without_a_head_has_parameters_to_write(tmp_path):
  export.write(tmp_path / 'model.npz', square(()), check=False)
  assert vit_jax.load(tmp_path / 'model.npz').classes == ()


def test_onnx_without_its_libraries_says_how_to_get_them(source, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(ValueError, match=r"pip install 'vit_jax\[onnx\]'"):
    export.write(tmp_path / 'model.onnx', source)
  assert list(tmp_path.iterdir()) == []


def test_onnx_is_refused_beyond_what_its_file_holds(source, tmp_path, monkeypatch):
  monkeypatch.setattr(export, 'LARGEST', 1000)
  with pytest.raises(ValueError, match='an ONNX file holds less than 2 GiB'):
    export.write(tmp_path / 'model.onnx', source)


def test_onnx_is_refused_where_jax2onnx_has_no_pooling(tmp_path):
  with pytest.raises(ValueError, match=r'does not convert the pooling of BiT-R50x1'):
    export.write(tmp_path / 'model.onnx', made('bit'))


def test_one_version_of_jax2onnx_is_told_installed_and_tested():
  files = (
    'vit_jax/export.py',
    'docs/export.md',
    'Makefile',
    'pyproject.toml',
    'tests/interop/requirements.txt',
  )
  pins = [
    re.findall(r"(?:jax2onnx==|JAX2ONNX = ')([\d.]+)", (ROOT / file).read_text()) for file in files
  ]
  assert all(pins) and len({version for versions in pins for version in versions}) == 1


# Parameters


@pytest.mark.parametrize('to', ['timm', 'hf'])
def test_what_is_written_for_another_library_loads_as_the_same_model(to, tmp_path):
  source = square()
  predict.Run(**vars(source)).export(tmp_path / 'folder', to=to, check=False)
  assert_same_scores(tmp_path / 'folder', source)
  assert (tmp_path / 'folder' / 'README.md').is_file()


def assert_same_scores(path, source):
  images = uint8(2, SQUARE)
  np.testing.assert_array_equal(applied(vit_jax.load(path), images), applied(source, images))


def test_the_check_of_parameters_names_the_file_that_is_left(tmp_path, capsys):
  source = square()
  bundle.write(tmp_path / 'run' / 'model', source)
  assert vit.main(['export', str(tmp_path / 'run'), '--to', 'npz']) == 0
  out, err = capsys.readouterr()
  path = tmp_path / 'run' / 'model.npz'
  first, last = out.splitlines()
  assert first == f'{path}: ViT-Ti/16, 8x8 pixels, 5 classes'
  assert last.startswith(f'{path}, read again by us') and 'difference 0.0e+00 of' in last
  assert all(line.startswith('vit export: ') for line in err.splitlines())
  assert_same_scores(path, source)


def test_a_run_is_exported_by_the_suffix(source, tmp_path, capsys):
  run = predict.Run(**vars(source))
  assert run.export(tmp_path / 'flowers.stablehlo', check=False) == []
  assert export.load(tmp_path / 'flowers.stablehlo').classes == CLASSES
  with pytest.raises(ValueError, match='its suffix tells no target'):
    run.export(tmp_path / 'flowers')


@pytest.mark.parametrize(
  ('run', 'to', 'path'),
  [
    ('.', 'stablehlo', 'model.stablehlo'),
    ('.', 'timm', 'model-timm'),
    ('a/B_16.npz', 'onnx', 'B_16.onnx'),
    ('https://there/B_16.npz', 'hf', 'B_16-hf'),
  ],
)
def test_without_a_path_an_export_lies_in_the_run_or_here(run, to, path):
  assert default_path(run, to) == pathlib.Path(path)


# The card

CONFIG = {
  'data': {
    'source': 'folder:/home/anna/flowers',
    'train': 'train',
    'validation': 'val',
    'test': 'test',
    'augment': 'flip | resize',
  },
  'objective': {'loss': 'softmax', 'smoothing': 0.1},
  'optimizer': {'name': 'adamw', 'weight_decay': 0.05},
  'schedule': {'name': 'cosine', 'learning_rate': 1e-3, 'warmup': '5%'},
  'pretrained': '/home/anna/B_16.npz',
  'duration': '3 epochs',
  'batch_size': 8,
  'seed': 0,
}
ROWS = [
  {'step': 4, 'validation/loss': 0.9, 'validation/accuracy': 0.5, 'validation/count': 10.0},
  {'step': 8, 'validation/loss': 0.7, 'validation/accuracy': 0.6, 'validation/count': 10.0},
]
TESTED = {'source': 'folder:/home/anna/flowers', 'split': 'test', 'use': 'test', 'step': 4}
TESTED |= {'matched': 'the same names', 'loss': None, 'accuracy': 0.25, 'count': 1234}
TESTED |= {'calibration_error': 0.125, 'confusion': None, 'classes': [], 'bad_images': 3}


def test_a_card_gives_each_measure_with_its_split_images_and_step(source):
  text = card.text(source, CONFIG, ROWS, step=4, evaluation=TESTED)
  assert '| split | images | accuracy | loss | calibration error | step |' in text
  assert '| folder:flowers, split val | 10 | 0.5000 | 0.9000 | - | 4 |' in text
  assert '| folder:flowers, split test | 1,234 | 0.2500 | - | 0.1250 | 4 |' in text
  assert '0.6000' not in text


def test_a_card_quotes_the_evaluation_and_not_what_training_logged_of_its_split(source):
  rows = [*ROWS, {'step': 4, 'test/accuracy': 0.75, 'test/count': 7.0}]
  text = card.text(source, CONFIG, rows, step=4, evaluation=TESTED)
  assert '0.2500' in text and '0.7500' not in text
  assert '| 7 | 0.7500 | - | 4 |' in card.text(source, CONFIG, rows, step=4)
  assert 'None were measured here.' in card.text(source, CONFIG, rows)


def test_a_card_without_a_test_has_the_validation_of_its_step(source):
  assert '| 0.6000 | 0.7000 | 8 |' in card.text(source, CONFIG, ROWS, step=8)


def test_a_card_takes_the_measures_of_the_average_where_that_is_the_model(source):
  row = ROWS[0] | {'validation/ema_accuracy': 0.75, 'validation/ema_loss': 0.4}
  assert '| 0.7500 | 0.4000 | 4 |' in card.text(source, CONFIG, [row], step=4)


def test_a_card_tells_nothing_of_the_machine_it_was_trained_on(source):
  text = card.text(source, CONFIG, ROWS, step=4, evaluation=TESTED)
  assert 'anna' not in text and '| B_16.npz |' in text


def test_a_card_without_a_run_claims_no_training_and_no_results(source):
  text = card.text(source)
  assert '## Training' not in text and 'None were measured here.' in text


def test_a_name_with_a_bar_stays_in_its_cell(source):
  (row,) = [row for row in card.text(source).splitlines() if row.startswith('| classes')]
  assert row.endswith(r'iris, other \| none |')


def test_a_finished_run_has_a_card_with_the_measures_of_its_model(whole):
  text = (whole / 'model' / 'README.md').read_text()
  held = results.read(whole)
  rows = [[cell.strip() for cell in line.split('|')] for line in text.splitlines()]
  (columns,) = [row for row in rows if 'top-5 accuracy' in row]
  (row,) = [row for row in rows if 'digits, split test' in row]
  names = ('accuracy', 'top5', 'loss', 'calibration_error', 'f1_macro', 'balanced_accuracy')
  cells = {name: row[columns.index(results.display_name(name))] for name in names}
  assert cells == {name: f'{held[name]:.4f}' for name in names}
  assert row[2] == '359' and row[-2] == '8'
  assert '| data | digits, split train |' in text


def by_command(run, path):
  assert vit.main(['export', str(run), '--to', 'timm', '--no-check', '--out', str(path)]) == 0


def in_python(run, path):
  vit_jax.load(run).export(path, to='timm', check=False)


@pytest.mark.parametrize('exported', [by_command, in_python])
def test_an_exported_folder_has_the_card_of_its_run(exported, whole, tmp_path):
  exported(whole, tmp_path / 'm')
  written = (whole / 'model' / 'README.md').read_text()
  assert '## Training' in written
  assert (tmp_path / 'm' / 'README.md').read_text() == written


def test_a_bundle_is_written_with_its_card(source, tmp_path):
  bundle.write(tmp_path / 'a', dataclasses.replace(source, card='# ü'))
  assert bundle.read(tmp_path / 'a').card == '# ü'
  bundle.write(tmp_path / 'a', source)
  assert bundle.read(tmp_path / 'a').card == '' and not (tmp_path / 'a' / 'README.md').exists()


def test_the_card_of_another_library_is_not_the_models(source, tmp_path):
  export.write(tmp_path / 'm', square(), to='hf', check=False)
  assert (tmp_path / 'm' / 'README.md').is_file() and bundle.read(tmp_path / 'm').card == ''


@pytest.mark.parametrize(
  ('family', 'tag'),
  [('hybrid', 'vision-transformer'), ('mixer', 'mlp-mixer'), ('bit', 'big-transfer')],
)
def test_a_card_is_tagged_by_its_family(family, tag):
  text = card.text(made(family))
  assert text.startswith('---\n') and f'\n- image-classification\n- {tag}\n- jax\n---\n' in text


def test_the_card_of_a_model_without_a_head_tells_of_features():
  text = card.text(square(()))
  assert 'pipeline_tag: image-feature-extraction' in text and 'classification' not in text
  assert 'run.features(' in text and 'run.predict(' not in text and 'gets a class' not in text
