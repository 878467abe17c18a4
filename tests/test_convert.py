"""Laws of reading checkpoints: every spelling of a name, every adaptation, every mistake told."""

import dataclasses
import functools
import json
import re
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from tests.conftest import drawn, flat, forward, pictures, shapes, tiny
from tests.google_names import MIXER_LEAVES, google_arrays
from vit_jax import bundle, convert, files, models
from vit_jax.convert import (
  engine,
  families,
  huggingface,
  preprocess,
  resample,
  timm,
  timm_names,
  torchvision,
  weights,
)
from vit_jax.images import transforms

SQUARE = (16, 16)  # 4 x 4 patches: a file's positions are for a square unless it says otherwise
TABLES = {
  'timm': timm.FAMILIES[2].table,
  'huggingface': huggingface.FAMILIES[0].table,
  'torchvision': torchvision.FAMILIES[0].table,
}


def small(**fields):
  return tiny(**dict(depth=2) | fields)


def params_of(model, size=SQUARE):
  return drawn(shapes(model, size))


def npz(path, arrays):
  np.savez(path, **arrays)
  return path


def saved(path, model=None, size=SQUARE, **options):
  """A file of Google's with drawn parameters, and these."""
  params = params_of(model or small(), size)
  return npz(path / 'some.npz', google_arrays(params, **options)), params


def loaded(path, model=None, **options):
  """The parameters that a file gives a model, and the lines that say so."""
  said = []
  params = vit_jax.load_params(path, model or small(), report=said.append, **options)
  [text] = said
  return params, text


SHAPES = {}


@pytest.fixture(autouse=True)
def shape_once(monkeypatch):
  """Shapes of a model's parameters, which cost fifty times the rest of loading, remembered."""
  real = jax.eval_shape

  def eval_shape(function, *arguments):
    module = getattr(function, '__self__', None)
    if not isinstance(module, models.Model):
      return real(function, *arguments)
    key = (module, function.__name__, arguments[1].shape)
    if key not in SHAPES:
      SHAPES[key] = real(function, *arguments)
    return SHAPES[key]

  monkeypatch.setattr(jax, 'eval_shape', eval_shape)


def assert_equal(actual, expected):
  actual, expected = flat(actual), flat(expected)
  assert actual.keys() == expected.keys()
  for name, leaf in expected.items():
    assert actual[name].dtype == np.float32
    np.testing.assert_array_equal(actual[name], leaf, err_msg=name)


def refused(call, *arguments, **options):
  """The one line that a mistake gives."""
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    call(*arguments, **options)
  assert str(error.value).strip() and len(str(error.value).splitlines()) == 1
  return str(error.value)


# Google's spellings


def prefixed(arrays, prefix, **beside):
  return {prefix + name: array for name, array in arrays.items()} | beside


def stacked(arrays):
  layers, others = {}, {}
  for name, array in arrays.items():
    if match := re.fullmatch(r'(Transformer/encoderblock)_(\d+)(/.*)', name):
      layers.setdefault(match[1] + match[3], {})[int(match[2])] = array
    else:
      others[name] = array
  return others | {n: np.stack([a[i] for i in sorted(a)]) for n, a in layers.items()}


BESIDE = {
  'optimizer': {'opt/state/step': np.int32(7), 'opt/state/param_states/cls/m': np.ones((1, 1, 16))},
  'tower': {'params/txt/head/kernel': np.ones((3, 3)), 'params/t': np.ones(1)},
}
SPELLINGS = {
  'in the numbers of the paper': lambda a: a,
  'in a train state': lambda a: prefixed(a, 'opt/target/', **BESIDE['optimizer']),
  'in params': lambda a: prefixed(a, 'params/'),
  'as an image tower': lambda a: prefixed(a, 'params/img/', **BESIDE['tower']),
  'with layers stacked': stacked,
}


@pytest.mark.quick
@pytest.mark.parametrize('old', [True, False], ids=['MlpBlock_3', 'MlpBlock_0'])
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_every_spelling_of_googles_names_gives_the_same_parameters(spelling, old, tmp_path):
  params = params_of(small())
  arrays = SPELLINGS[spelling](google_arrays(params, old=old))
  adapted, text = loaded(npz(tmp_path / 'a.npz', arrays))
  assert_equal(adapted, params)
  others = [name for group in BESIDE.values() for name in group if name in arrays]
  assert all(name in text for name in others) and ('dropped' in text) == bool(others)


def test_arrays_of_bfloat16_which_numpy_stores_as_bytes_are_read(tmp_path):
  exact = models.map_named(
    lambda _, leaf: np.float32(leaf.astype(ml_dtypes.bfloat16)), params_of(small())
  )
  arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in google_arrays(exact).items()}
  path = npz(tmp_path / 'a.npz', arrays)
  assert np.load(path)['cls'].dtype.kind == 'V'
  assert_equal(loaded(path)[0], exact)


@pytest.mark.parametrize('form', [(-1,), (1, 1, 1, -1)])
def test_the_group_norms_of_a_hybrid_are_read_in_either_shape(form, tmp_path):
  model = small(patch=8, stem=(1, 1), stem_width=32)
  params = params_of(model)
  arrays = {
    name: array.reshape(form) if '/gn' in name or name.startswith('gn_') else array
    for name, array in google_arrays(params).items()
  }
  assert {a.ndim for n, a in arrays.items() if 'gn' in n} == {len(form)}
  adapted, text = loaded(npz(tmp_path / 'a.npz', arrays), model)
  assert_equal(adapted, params)
  assert 'differs' not in text
  run = convert.read(tmp_path / 'a.npz')
  assert run.fields['stem'] == (1, 1) and run.fields['stem_width'] == 32
  assert run.fields['patch'] == (8, 8)


@pytest.mark.parametrize(
  'fields',
  [
    dict(pool='gap'),
    dict(pool='gap', positions='sincos2d', representation=16),
    dict(pool='map'),
    dict(pool='token', positions='learned', cls_position=False),
  ],
  ids=str,
)
def test_a_file_of_big_vision_tells_its_model(fields, tmp_path):
  model = small(**fields)
  path, params = saved(tmp_path, model, big_vision=True)
  run = vit_jax.load(path)
  assert_equal(jax.device_get(run.params), params)
  assert_equal(loaded(path, model)[0], params)
  model_fields = models.fields(run.model)
  wanted = models.fields(model) | {'unroll': None, 'class_token': fields.get('pool') == 'token'}
  differing = {field for field in wanted if model_fields[field] != wanted[field]}
  assert differing <= {'cls_position'} and (model_fields['cls_position'] is False or not differing)


def test_an_inlined_probe_is_that_of_the_map_head(tmp_path):
  model = small(pool='map')
  params = params_of(model)
  arrays = google_arrays(params, big_vision=True)
  arrays['probe'] = arrays.pop('MAPHead_0/probe')
  assert_equal(loaded(npz(tmp_path / 'a.npz', arrays), model)[0], params)


def test_a_position_of_the_class_token_is_folded_into_it_where_the_model_has_none(tmp_path):
  path, params = saved(tmp_path)
  model = small(cls_position=False)
  adapted, text = loaded(path, model)
  assert 'position of cls' in text and adapted['positions'].shape == (1, 16, 16)
  images = pictures(size=SQUARE)
  expected = forward(small(), params, images)[0]
  np.testing.assert_allclose(forward(model, adapted, images)[0], expected, rtol=1e-5, atol=1e-5)


# Other dialects


@pytest.mark.quick
@pytest.mark.parametrize('dialect', TABLES)
def test_a_table_read_after_it_is_written_gives_every_bit_back(dialect, tmp_path):
  params = params_of(small())
  theirs, unread = engine.to_theirs(TABLES[dialect], flat(params))
  assert unread == []
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, tmp_path / 'a.safetensors')
  adapted, text = loaded(tmp_path / 'a.safetensors')
  assert_equal(adapted, params)
  assert text.splitlines()[0].startswith(f'{tmp_path}/a.safetensors: {dialect} names')


def test_a_folder_of_hugging_face_tells_heads_classes_and_preprocessing(tmp_path):
  folder = huggingface_folder(tmp_path, hidden_act='gelu_pytorch_tanh', layer_norm_eps=1e-6)
  run = vit_jax.load(folder)
  assert run.model.heads == 2 and run.classes == tuple('abcde')
  assert (run.model.activation, run.model.norm_eps) == ('gelu_tanh', 1e-6)
  assert run.preprocess.size == SQUARE and 'bilinear' in run.preprocess.steps
  images = pictures(size=SQUARE)
  expected = forward(small(), params_of(small()), images)[0]
  logits = forward(run.model, run.params, images)[0]
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


HUGGING_FACE = {
  'model_type': 'vit',
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
  'image_size': 16,
  'patch_size': 4,
  'num_channels': 3,
  'id2label': {str(i): name for i, name in enumerate('abcde')},
}
PREPROCESSOR = {
  'do_resize': True,
  'size': {'height': 16, 'width': 16},
  'resample': 2,
  'do_normalize': True,
  'image_mean': [0.5, 0.5, 0.5],
  'image_std': [0.5, 0.5, 0.5],
}


def huggingface_folder(path, **changes):
  theirs, _ = engine.to_theirs(TABLES['huggingface'], flat(params_of(small())))
  theirs = {n if n.startswith('classifier') else f'vit.{n}': a for n, a in theirs.items()}
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, path / 'model.safetensors')
  (path / 'config.json').write_text(json.dumps(HUGGING_FACE | changes))
  (path / 'preprocessor_config.json').write_text(json.dumps(PREPROCESSOR))
  return path


def edited(folder, change, file='config.json'):
  """The folder with a JSON file changed, or with other arrays."""
  path = folder / file
  if file.endswith('.safetensors'):
    save_file(change(load_file(path)), path)
  else:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
  return folder


LACKS = {
  'layer.1': ['vit.encoder.layer.1.layernorm_before.weight', 'vit.encoder.layer.1.output'],
  'position_embeddings': ['vit.embeddings.position_embeddings'],
  'cls_token': ['vit.embeddings.cls_token'],
  'vit.layernorm': ['vit.layernorm.weight', 'vit.layernorm.bias'],
  'projection.bias': ['vit.embeddings.patch_embeddings.projection.bias'],
  'classifier.bias': ['classifier.bias'],
  'classifier': ['classifier.weight', 'classifier.bias'],
  'query.bias': ['vit.encoder.layer.0.attention.attention.query.bias'],
}


@pytest.mark.parametrize('part', LACKS)
def test_arrays_that_a_configuration_promises_are_named_where_they_lack(part, tmp_path):
  folder = huggingface_folder(tmp_path, architectures=['ViTForImageClassification'])
  edited(folder, lambda a: {n: v for n, v in a.items() if part not in n}, 'model.safetensors')
  for use in (vit_jax.load, lambda path: vit_jax.load_params(path, small())):
    line = refused(use, folder)
    assert all(f'{name}' in line for name in LACKS[part]) and 'is missing' in line


@pytest.mark.parametrize(
  'changes, said',
  [
    (dict(num_hidden_layers=1), 'num_hidden_layers is 1, but the arrays have 2'),
    (dict(hidden_size=32), 'hidden_size is 32, but the arrays have 16'),
    (dict(num_attention_heads=3), 'num_attention_heads is 3, which does not divide the width 16'),
    (dict(id2label={'0': 'a'}), 'id2label has 1 name for 5 classes'),
    (dict(id2label={k: k for k in 'abcde'}), 'id2label names no label 0'),
    (dict(id2label='hello'), 'id2label is "hello", not an object with a text'),
    (dict(id2label={str(k): k for k in range(5)}), 'id2label is .*, not an object with a text'),
    (dict(image_size='64'), 'image_size is "64", not one or two numbers'),
    (dict(image_size=64.0), 'image_size is 64.0, not one or two numbers'),
    (dict(image_size=0), 'image_size is 0, not'),
    (dict(image_size=10**9), 'image_size is 1000000000, not .* up to 8,192'),
    (dict(vision_config='x'), 'vision_config is "x", not an object'),
    (dict(rope_scaling={'factor': 2}), 'rope_scaling is {"factor": 2}, not null'),
    (dict(quantization_config={'bits': 8}), 'quantization_config is {"bits": 8}, not null'),
    (dict(model_type='beit'), 'model_type is "beit", not one of "vit"'),
    (dict(intermediate_size=9), 'intermediate_size is 9, but the arrays have'),
    (dict(pruned_heads={'0': [1]}), 'pruned_heads is .*, not {}'),
    (dict(layer_norm_eps='1e-6'), 'layer_norm_eps is "1e-6", not a number from 0 to 1'),
    (dict(num_hidden_layers=10**9), 'num_hidden_layers is 1000000000, not a whole number'),
  ],
  ids=str,
)
def test_a_configuration_that_the_arrays_belie_or_that_is_none_is_named(changes, said, tmp_path):
  folder = huggingface_folder(tmp_path, **changes)
  assert re.search(f'config.json: {said}', refused(vit_jax.load, folder))


@pytest.mark.parametrize(
  'changes, said',
  [
    (dict(size={'longest_edge': 64}), 'size is'),
    (dict(image_mean='abc'), 'image_mean is "abc", not a list of numbers'),
    (dict(image_std=[0, 0, 0]), 'image_std is .* above 0'),
    (dict(size=10**7), 'size is 10000000, not a number of pixels up to 8,192'),
    (dict(size={'shortest_edge': '64) | flip('}), 'size is'),
    (dict(resample=1), 'resample 1 is none of 2 and 3'),
    (dict(do_pad=True), 'do_pad is true, not false'),
    (dict(image_processor_type='OwlImageProcessor'), 'image_processor_type OwlImageProcessor'),
  ],
  ids=str,
)
def test_preprocessing_that_is_none_is_named(changes, said, tmp_path):
  folder = huggingface_folder(tmp_path)
  edited(folder, lambda values: values | changes, 'preprocessor_config.json')
  assert re.search(f'preprocessor_config.json: {said}', refused(vit_jax.load, folder))


def test_null_says_nothing(tmp_path):
  folder = huggingface_folder(tmp_path, id2label=None, layer_norm_eps=None)
  edited(folder, lambda values: values | {'crop_size': None}, 'preprocessor_config.json')
  run = vit_jax.load(folder)
  assert run.classes == tuple('01234') and run.model.norm_eps == 1e-12


def test_labels_are_numbers_where_a_configuration_names_none(tmp_path):
  folder = huggingface_folder(tmp_path)
  edited(folder, lambda values: {k: v for k, v in values.items() if k != 'id2label'})
  assert vit_jax.load(folder).classes == tuple('01234')


@pytest.mark.parametrize(
  'args, top, said',
  [
    (dict(depth=3), {}, 'blocks.2.norm1.weight is missing'),
    (dict(depth=1), {}, 'depth is 1, but the arrays have 2'),
    (dict(embed_dim=32), {}, 'embed_dim is 32, but the arrays have 16'),
    ({}, dict(num_classes=7), 'num_classes is 7, but the head has 5'),
  ],
  ids=str,
)
def test_timms_configuration_is_held_to_its_arrays(args, top, said, tmp_path):
  config = CONFIGS['timm']
  folder = timm_folder(tmp_path, config | top | {'model_args': config['model_args'] | args})
  assert said in refused(vit_jax.load, folder)


@pytest.mark.parametrize(
  'config, arrays, said',
  [
    ({'pos_embed_grid_size': [4]}, {}, 'pos_embed_grid_size is [4], not rows and columns'),
    ({'pos_embed_antialias': 'no'}, {}, 'pos_embed_antialias is "no", not true or false'),
    ({'rope_type': 'axial'}, {}, "rope_type is 'axial', but models here compute"),
    ({}, {'embeds.proj.weight': (16, 50)}, 'embeds.proj.weight has shape (16, 50), of no square'),
    ({}, {'embeds.pos_embed_y': (1, 4, 16)}, 'embeds.pos_embed_y is unexpected'),
    ({}, {f'embeds.pos_embed_{axis}': (1, 600, 16) for axis in 'xy'}, 'are of 600 cells'),
  ],
  ids=str,
)
def test_a_naflexvit_that_is_none_is_refused_in_a_line(config, arrays, said, tmp_path):
  theirs, _ = engine.to_theirs(TABLES['timm'], flat(params_of(small(pool='gap'))))
  names = (('patch_embed.', 'embeds.'), ('pos_embed', 'embeds.pos_embed'))
  for old, new in names:
    theirs = {name.replace(old, new): array for name, array in theirs.items()}
  theirs |= {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
  if len(arrays) == 2:
    del theirs['embeds.pos_embed']
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, tmp_path / 'model.safetensors')
  args = {'embed_dim': 16, 'depth': 2, 'num_heads': 2, 'patch_size': 4} | config
  described = {'architecture': 'naflexvit_base_patch16_gap', 'model_args': args}
  (tmp_path / 'config.json').write_text(json.dumps(described))
  assert said in refused(vit_jax.load, tmp_path)


def timm_folder(path, config, file='model.safetensors', size=SQUARE, **fields):
  theirs, _ = engine.to_theirs(TABLES['timm'], flat(params_of(small(**fields), size)))
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, path / file)
  (path / 'config.json').write_text(json.dumps(config))
  return path


@pytest.mark.parametrize(
  'share, steps',
  [
    (1.0, "resize(method='bicubic_antialias')"),
    (0.8, "resize(20, 20, method='bicubic_antialias') | central_crop(rounding='nearest')"),
  ],
)
def test_timm_squashes_what_it_says_it_squashes(share, steps, tmp_path):
  cfg = CONFIGS['timm']['pretrained_cfg'] | {'crop_mode': 'squash', 'crop_pct': share}
  folder = timm_folder(tmp_path, CONFIGS['timm'] | {'pretrained_cfg': cfg})
  assert vit_jax.load(folder).preprocess.steps == steps


def test_timms_first_configuration_of_one_level_is_read_as_the_newer(tmp_path):
  cfg = {
    'input_size': [3, 24, 24],
    'interpolation': 'bilinear',
    'crop_pct': 0.95,
    'mean': [0.1, 0.2, 0.3],
    'std': [0.4, 0.5, 0.6],
    'global_pool': 'avg',
    'num_classes': 5,
  }
  shared = {'architecture': 'vit_tiny_patch16_224', 'model_args': CONFIGS['timm']['model_args']}
  newer = {'label_names': list('abcde'), 'pretrained_cfg': cfg}
  runs = []
  for name, config in (('newer', newer), ('first', {'labels': list('abcde')} | cfg)):
    (tmp_path / name).mkdir()
    runs.append(vit_jax.load(timm_folder(tmp_path / name, shared | config)))
  [expected, run] = runs
  assert (run.preprocess, run.classes) == (expected.preprocess, tuple('abcde'))
  assert run.preprocess.steps == "crop_ratio(ratio=0.95, method='bilinear_antialias')"
  assert (run.preprocess.size, run.preprocess.mean) == ((24, 24), (0.1, 0.2, 0.3))
  assert run.model == expected.model and run.model.pool == 'gap'


def test_timms_names_of_classes_are_read_where_its_builder_reads_them(tmp_path):
  args = {'model_args': CONFIGS['timm']['model_args'], 'architecture': 'vit_tiny_patch16_224'}
  names = {str(i): name for i, name in enumerate('edcba')}
  run = vit_jax.load(timm_folder(tmp_path, args | {'pretrained_cfg': {'label_names': names}}))
  assert run.classes == tuple('edcba')
  for file in tmp_path.iterdir():
    file.unlink()
  both = {'label_names': list('abcde'), 'pretrained_cfg': {'label_names': names}}
  assert vit_jax.load(timm_folder(tmp_path, args | both)).classes == tuple('abcde')
  edited(tmp_path, lambda config: config | {'label_names': {'0': 'a'}})
  assert 'label_names has 1 name for 5 classes' in refused(vit_jax.load, tmp_path)


@pytest.mark.parametrize(
  'changes, said',
  [({'mean': 0.5}, 'config.json: mean is 0.5'), ({'num_classes': 7}, 'num_classes is 7, but the')],
  ids=str,
)
def test_timms_first_configuration_is_held_to_its_kinds_and_arrays(changes, said, tmp_path):
  args = CONFIGS['timm']['model_args']
  config = {'architecture': 'vit_tiny_patch16_224', 'model_args': args} | changes
  assert said in refused(vit_jax.load, timm_folder(tmp_path, config))


@pytest.mark.parametrize('size', [SQUARE, (16, 24)], ids=str)
@pytest.mark.parametrize(
  'changes',
  [
    {'crop_pct': 0.9},
    {'crop_pct': 0.965, 'interpolation': 'bilinear'},
    {'crop_pct': 1.0},
    {'crop_pct': 0.8, 'crop_mode': 'squash'},
    {'crop_pct': 0.9, 'crop_mode': 'squash'},
    {'crop_pct': 1.0, 'crop_mode': 'squash', 'interpolation': 'bilinear'},
  ],
  ids=str,
)
def test_timms_preprocessing_comes_back_as_it_was(changes, size, tmp_path):
  cfg = CONFIGS['timm']['pretrained_cfg'] | changes | {'input_size': [3, *size]}
  args = CONFIGS['timm']['model_args'] | {'img_size': list(size)}
  config = CONFIGS['timm'] | {'pretrained_cfg': cfg, 'model_args': args}
  run = vit_jax.load(timm_folder(tmp_path, config, size=size))
  notes = convert.write(tmp_path / 'again', run, to='timm')
  assert not any('preprocessing' in note for note in notes)
  written = json.loads((tmp_path / 'again/config.json').read_text())['pretrained_cfg']
  assert written == cfg | {'num_classes': 5}


@pytest.mark.parametrize(
  'changes, steps',
  [
    ({}, "resize(method='bilinear_antialias')"),
    (
      {'size': {'shortest_edge': 17}, 'resample': 3},
      "resize_small(17, method='bicubic_antialias', rounding='down') | central_crop(16, 16)",
    ),
    (
      {'size': {'height': 19, 'width': 18}},
      "resize(19, 18, method='bilinear_antialias') | central_crop(16, 16)",
    ),
  ],
  ids=['squashed', 'shortest edge', 'squashed and cut'],
)
def test_hugging_faces_preprocessing_comes_back_as_it_was(changes, steps, tmp_path):
  crop = {'do_center_crop': True, 'crop_size': {'height': 16, 'width': 16}}
  processor = PREPROCESSOR | (crop if changes else {}) | changes
  folder = huggingface_folder(tmp_path)
  edited(folder, lambda _: processor, 'preprocessor_config.json')
  run = vit_jax.load(folder)
  assert preprocess.same_pixels(run.preprocess.steps, steps, SQUARE)
  assert run.preprocess.steps == steps or not changes
  notes = convert.write(tmp_path / 'again', run, to='hf')
  assert not any('preprocessing' in note for note in notes)
  written = json.loads((tmp_path / 'again/preprocessor_config.json').read_text())
  assert {name: written[name] for name in processor} == processor


@pytest.mark.parametrize('scores', ['softmax', 'sigmoid'])
def test_hugging_face_keeps_what_logits_become_and_others_say_that_they_do_not(scores, tmp_path):
  run = dataclasses.replace(vit_jax.load(huggingface_folder(tmp_path)), scores=scores)
  for to in ('hf', 'timm', 'npz'):
    path = tmp_path / ('a.npz' if to == 'npz' else to)
    notes = convert.write(path, run, to=to)
    is_kept = to == 'hf' or scores == 'softmax'
    assert vit_jax.load(path).scores == (scores if is_kept else 'softmax')
    line = 'scores are a sigmoid of the logits, but its readers take their softmax'
    assert (line in notes) == (not is_kept)


def test_a_regression_of_hugging_face_is_refused(tmp_path):
  folder = huggingface_folder(tmp_path)
  edited(folder, lambda config: {**config, 'problem_type': 'regression'}, 'config.json')
  with pytest.raises(ValueError, match='problem_type is "regression", not one of "single_label'):
    vit_jax.load(folder)


@pytest.mark.parametrize(
  'classes', [('0', '180', '270', '90', 'LABEL_4'), ('0', '1', '10', '2', '3'), tuple('01234')]
)
def test_names_of_classes_come_back_from_other_libraries_as_they_were(classes, tmp_path):
  run = dataclasses.replace(vit_jax.load(huggingface_folder(tmp_path)), classes=classes)
  for to in ('hf', 'timm'):
    assert not any('classes' in line for line in convert.write(tmp_path / to, run, to=to))
    assert vit_jax.load(tmp_path / to).classes == classes
  notes = convert.write(tmp_path / 'a.npz', run, to='npz')
  are_lost = vit_jax.load(tmp_path / 'a.npz').classes != classes
  assert any('but its readers take their numbers' in line for line in notes) == are_lost
  labels = json.loads((tmp_path / 'hf/config.json').read_text())['id2label']
  unnamed = [f'LABEL_{k}' for k in range(5)]  # as transformers has them that have no names
  assert list(labels.values()) == (unnamed if classes == tuple('01234') else list(classes))


ALIKE = [  # the lines of a row give equal pixels, for 16 x 16
  ["resize(method='bicubic')", "resize(16, method='bicubic') | central_crop"],
  ['resize(18, 17) | central_crop', "resize(18, 17)|central_crop(16, rounding='nearest')"],
  ['resize(19) | central_crop', "resize(19, method='bilinear') | central_crop(16)"],
  ["resize(19) | central_crop(rounding='nearest')"],
  ['resize_small(17) | central_crop', "resize_small(side=17, rounding='nearest')|central_crop(16)"],
  ["resize_small(17, rounding='down') | central_crop"],
  ["resize_small(17) | central_crop(rounding='nearest')"],
  [
    "crop_ratio(ratio=0.9, method='bilinear')",
    "crop_ratio(16, 16, 0.91, method='bilinear')",
    "resize_small(17, rounding='down') | central_crop(rounding='nearest')",
  ],
  ["crop_ratio(method='bilinear')"],
  ['crop_ratio(16)', 'crop_ratio'],
]


def test_lines_are_the_same_where_no_pixel_can_differ():
  rng = np.random.default_rng(0)
  sides = [(16, 23), (31, 20), (33, 47), (40, 29), (16, 26), (19, 30)]
  images = [rng.integers(0, 256, (*side, 3), np.uint8) for side in sides]

  def pixels(line):
    return b''.join(transforms.compose(line, SQUARE)(image, rng).tobytes() for image in images)

  lines = [(row, line, pixels(line)) for row, alike in enumerate(ALIKE) for line in alike]
  for row, line, images in lines:
    for other_row, other, other_images in lines:
      same = preprocess.same_pixels(line, other, SQUARE)
      assert same == (row == other_row) == (images == other_images), other


@pytest.mark.parametrize(
  'steps, new, expected',
  [
    ('resize', (32, 24), "resize(method='bilinear')"),
    ('resize(20) | central_crop', (32, 24), "resize(40, 30, method='bilinear') | central_crop"),
    (
      "resize_small(18, method='bicubic') | central_crop",
      (32, 32),
      "resize_small(36, method='bicubic') | central_crop",
    ),
    (
      "resize_small(18, rounding='down') | central_crop(16, rounding='nearest')",
      (24, 24),
      "resize_small(27, method='bilinear', rounding='down') | central_crop(rounding='nearest')",
    ),
    ('crop_ratio(16)', (32, 24), "crop_ratio(ratio=0.875, method='bicubic_antialias')"),
    ('resize(20) | flip', (32, 24), 'resize'),
  ],
)
def test_a_line_shows_as_much_of_an_image_at_another_size(steps, new, expected):
  assert preprocess.scale_steps(steps, SQUARE, new) == expected


def test_json_is_read_beside_a_weight_file_of_any_name(tmp_path):
  timm_folder(tmp_path, CONFIGS['timm'], 'mine.safetensors')
  run = vit_jax.load(tmp_path / 'mine.safetensors')
  assert run.model.heads == 2 and run.classes == tuple('abcde')


def test_json_of_another_weight_file_is_ignored_and_told(tmp_path):
  timm_folder(
    tmp_path,
    CONFIGS['timm'] | {'model_args': {'embed_dim': 16, 'num_heads': 2, 'depth': 9}},
    'mine.safetensors',
  )
  np.savez(tmp_path / 'other.npz', a=np.ones(1))
  adapted, text = loaded(tmp_path / 'mine.safetensors')
  assert 'JSON beside it is ignored' in text and 'blocks.2.norm1.weight is missing' in text
  assert_equal(adapted, params_of(small()))


def test_heads_that_json_tells_are_not_those_of_the_model(tmp_path):
  timm_folder(tmp_path, CONFIGS['timm'])
  line = refused(vit_jax.load_params, tmp_path, small(heads=4))
  assert 'attention/query/kernel has shape (2, 16, 2, 8), not (2, 16, 4, 4)' in line


OPEN_CLIP = {
  'model_cfg': {
    'embed_dim': 5,
    'vision_cfg': {'image_size': 16, 'layers': 2, 'width': 16, 'patch_size': 4, 'head_width': 8},
  },
  'preprocess_cfg': {
    'mean': [0.1, 0.2, 0.3],
    'std': [0.4, 0.5, 0.6],
    'interpolation': 'bilinear',
    'resize_mode': 'squash',
  },
}
OPEN_CLIP_NAMES = (
  (r'^cls_token$', 'class_embedding'),
  (r'^pos_embed$', 'positional_embedding'),
  (r'^patch_embed.proj\.', 'conv1.'),
  (r'^norm_pre\.', 'ln_pre.'),
  (r'^norm\.', 'ln_post.'),
  (r'^blocks\.', 'transformer.resblocks.'),
  (r'\.norm([12])\.', r'.ln_\1.'),
  (r'\.attn\.qkv\.', '.attn.in_proj_'),
  (r'\.attn\.proj\.', '.attn.out_proj.'),
  (r'\.fc1\.', '.c_fc.'),
  (r'\.fc2\.', '.c_proj.'),
  (r'^head\.weight$', 'proj'),
)


def open_clip_folder(path, config):
  params = params_of(small(pre_norm=True, embed_bias=False, head_bias=None))
  theirs = engine.renamed(engine.to_theirs(TABLES['timm'], flat(params))[0], OPEN_CLIP_NAMES)
  theirs['class_embedding'] = theirs['class_embedding'].reshape(-1)
  theirs['positional_embedding'] = theirs['positional_embedding'][0]
  theirs['proj'] = theirs['proj'].T
  arrays = {f'visual.{n}': np.ascontiguousarray(a) for n, a in theirs.items()}
  save_file(arrays | {'logit_scale': np.ones(1)}, path / 'open_clip_model.safetensors')
  (path / 'open_clip_config.json').write_text(json.dumps(config))
  return params


@pytest.mark.parametrize('file', ['', 'open_clip_model.safetensors'])
@pytest.mark.parametrize('quick', [True, False])
def test_a_folder_of_open_clip_tells_heads_activation_and_preprocessing(file, quick, tmp_path):
  model = OPEN_CLIP['model_cfg'] | ({'quick_gelu': True} if quick else {})
  params = open_clip_folder(tmp_path, OPEN_CLIP | {'model_cfg': model})
  run = vit_jax.load(tmp_path / file)
  assert run.model.heads == 2
  assert run.model.activation == ('quick_gelu' if quick else 'gelu_erf')
  assert run.preprocess == bundle.Preprocess(
    "resize(method='bilinear_antialias')", SQUARE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
  )
  assert_equal(jax.device_get(run.params), params)
  (tmp_path / 'open_clip_config.json').write_text(json.dumps({'model_cfg': OPEN_CLIP['model_cfg']}))
  steps = vit_jax.load(tmp_path / file).preprocess.steps
  assert steps == "crop_ratio(ratio=1.0, method='bicubic_antialias')"


def test_a_lone_file_for_images_of_no_square_is_read_by_their_size(tmp_path):
  size = (8, 24)  # 2 x 6 patches
  params = params_of(small(), size)
  theirs, _ = engine.to_theirs(TABLES['timm'], flat(params))
  path = tmp_path / 'a.safetensors'
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, path)
  assert 'give image_size' in refused(convert.read, path)
  checkpoint = convert.read(path, image_size=size)
  assert checkpoint.size == size and checkpoint.fields['cls_position']
  np.testing.assert_array_equal(checkpoint.arrays['positions'], params['positions'])
  square, _ = saved(tmp_path)  # 4 x 4 patches, though 2 x 8 are as many
  assert convert.read(square, image_size=(8, 32)).size == SQUARE


# Adapting


@pytest.mark.quick
@pytest.mark.parametrize('rule', [None, *resample.RULES])
@pytest.mark.parametrize('size', [(16, 24), (24, 8)])
def test_positions_are_resampled_to_any_size_by_the_rule_asked_for(rule, size, tmp_path):
  path, params = saved(tmp_path)
  adapted, text = loaded(path, image_size=size, resample=rule)
  rule = rule or 'bilinear_align_corners'  # of Google's code
  new = (size[0] // 4, size[1] // 4)
  table = params['positions'][0]
  expected = resample.positions(table[1:], (4, 4), new, rule)
  np.testing.assert_array_equal(adapted['positions'][0, :1], table[:1])
  np.testing.assert_allclose(adapted['positions'][0, 1:], expected, rtol=1e-6, atol=1e-6)
  assert f'positions 4x4 -> {new[0]}x{new[1]} ({rule})' in text
  others = {name: leaf for name, leaf in params.items() if name != 'positions'}
  assert_equal({n: leaf for n, leaf in adapted.items() if n != 'positions'}, others)


@pytest.mark.quick
def test_a_bundle_resamples_positions_as_the_code_does_that_it_comes_from(tmp_path):
  path, _ = saved(tmp_path)
  bundle.write(tmp_path / 'b', vit_jax.load(path))
  for to in ('timm', 'hf'):
    convert.write(tmp_path / to, vit_jax.load(tmp_path / 'b'), to=to)
    bundle.write(tmp_path / f'{to}-b', vit_jax.load(tmp_path / to))
  rules = {'b': 'bilinear_align_corners', 'timm-b': 'bicubic_antialias', 'hf-b': 'bicubic'}
  for folder, rule in rules.items():
    assert f'positions 4x4 -> 6x6 ({rule})' in loaded(tmp_path / folder, image_size=24)[1]
  config = json.loads((tmp_path / 'b' / 'config.json').read_text())
  files.write_json(tmp_path / 'b' / 'config.json', config | {'resample': 'nearest'})
  with pytest.raises(ValueError, match="resample is 'nearest', none of bilinear_align_corners"):
    vit_jax.load(tmp_path / 'b')
  del config['resample']  # as earlier versions wrote it
  files.write_json(tmp_path / 'b' / 'config.json', config)
  assert '(bicubic_antialias)' in loaded(tmp_path / 'b', image_size=24)[1]


def test_one_number_is_a_square_and_none_is_the_size_of_the_file(tmp_path):
  path, params = saved(tmp_path)
  assert_equal(loaded(path, image_size=16)[0], params)
  assert_equal(loaded(path, image_size=32)[0], loaded(path, image_size=(32, 32))[0])


def test_a_class_token_that_the_model_lacks_is_dropped_and_told(tmp_path):
  path, params = saved(tmp_path)
  adapted, text = loaded(path, small(pool='gap'))
  assert 'cls' not in adapted
  np.testing.assert_array_equal(adapted['positions'], params['positions'][:, 1:])
  assert re.search(r'dropped +cls', text) and 'reset' not in text


@pytest.mark.parametrize('cls_position', [True, False])
def test_a_class_token_that_the_file_lacks_starts_at_zero_and_is_told(cls_position, tmp_path):
  path, params = saved(tmp_path, small(pool='gap'), big_vision=True)
  adapted, text = loaded(path, small(cls_position=cls_position))
  assert not adapted['cls'].any() and re.search(r'reset +cls', text)
  np.testing.assert_array_equal(adapted['positions'][:, cls_position:], params['positions'])
  assert not adapted['positions'][:, :cls_position].any()


@pytest.mark.parametrize('old, new', [(4, 8), (8, 4), (4, (8, 4))])
def test_a_patch_kernel_is_resized_and_keeps_the_grid_of_positions(old, new, tmp_path):
  path, params = saved(tmp_path, small(patch=old), (4 * old, 4 * old))
  model = small(patch=new)
  size = tuple(4 * side for side in model.patch)
  adapted, text = loaded(path, model, image_size=size)
  expected = resample.patch_kernel(params['embed']['kernel'], model.patch, 'bilinear')
  np.testing.assert_allclose(adapted['embed']['kernel'], expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(adapted['positions'], params['positions'])
  assert f'embed/kernel {old}x{old} -> {model.patch[0]}x{model.patch[1]}' in text


def jax_resized(field, new):
  """A field (R, C, D) as FlexiViT's model resizes its table of positions."""
  return jax.image.resize(field, (*new, field.shape[-1]), 'linear')


def pi_resized(kernel, new):
  """A kernel (P, P, C, D) by FlexiViT's pseudo-inverse, pixel by pixel, without antialiasing."""
  old = kernel.shape[:2]
  pixels = np.eye(old[0] * old[1], dtype=np.float32).reshape(*old, -1)
  resize = jax.image.resize(pixels, (*new, pixels.shape[-1]), 'linear', antialias=False)
  inverse = np.linalg.pinv(np.asarray(resize, np.float64).reshape(-1, pixels.shape[-1]).T)
  return (inverse @ kernel.reshape(-1, kernel.shape[2] * kernel.shape[3])).reshape(
    *new, *kernel.shape[2:]
  )


@pytest.mark.parametrize('patch, grid', [(8, (7, 7)), (2, (2, 3))], ids=str)
def test_a_flexivit_of_big_vision_is_resized_as_its_model_does_it(patch, grid, tmp_path):
  path, params = saved(tmp_path, small(cls_position=False), big_vision=True)
  path = path.rename(tmp_path / 'flexivit_b_i1k.npz')
  size = (grid[0] * patch, grid[1] * patch)
  adapted, text = loaded(path, small(cls_position=False, patch=patch), image_size=size)
  positions = jax_resized(params['positions'].reshape(4, 4, -1), grid)
  actual = adapted['positions'].reshape(*grid, -1)
  np.testing.assert_allclose(actual, positions, atol=2e-6, rtol=0)  # JAX's float32 coordinates
  kernel = pi_resized(params['embed']['kernel'], (patch, patch))
  np.testing.assert_allclose(adapted['embed']['kernel'], kernel, atol=1e-6, rtol=0)
  assert '(bilinear_antialias)' in text and '(pseudo-inverse, bilinear)' in text


@pytest.mark.parametrize(
  'architecture, rule',
  [
    ('flexivit_small.1200ep_in1k', 'bilinear'),
    ('vit_large_patch16_radio_v3', 'bilinear'),
    ('vit_base_patch16_radio_v3.c_radio', 'bilinear_align_corners'),
    ('vit_small_patch16_224', 'bicubic_antialias'),
  ],
)
def test_timm_resamples_positions_by_the_architecture(architecture, rule):
  assert (timm.resample_of({'architecture': architecture}, '') or 'bicubic_antialias') == rule
  assert (timm.resample_of({}, f'{architecture}.pth') or 'bicubic_antialias') == rule


@pytest.mark.parametrize(
  'name, rule',
  [
    ('base_patch16_gap', 'bicubic_antialias'),
    ('base_patch16_par_gap', 'bicubic_antialias_square'),
    ('base_patch16_parfac_gap', 'bilinear_square'),
    ('base_patch16_siglip', 'bilinear_antialias'),
    ('base_patch16_radio_v3', 'bilinear_align_corners_square'),
    ('large_patch16_radio_v3', 'bilinear_square'),
  ],
)
def test_a_naflexvit_resamples_positions_as_its_arguments_say(name, rule):
  assert timm.naflex_resample_of({'architecture': f'naflexvit_{name}'}, '') == rule


@pytest.mark.parametrize('channels', [1, 4])
def test_a_kernel_for_other_channels_sums_to_the_same_over_equal_ones(channels, tmp_path):
  path, params = saved(tmp_path)
  adapted, text = loaded(path, channels=channels)
  kernel = adapted['embed']['kernel']
  assert kernel.shape == (4, 4, channels, 16) and f'from 3 channels to {channels}' in text
  old = params['embed']['kernel']
  expected = resample.channels(old, channels)
  np.testing.assert_allclose(kernel, expected, rtol=1e-6, atol=1e-6)
  if channels == 1:
    np.testing.assert_allclose(kernel.sum(2), old.sum(2), rtol=1e-5, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
  'classes, bias, new_head, reported',
  [(5, 0.0, False, True), (5, 0.0, True, False), (3, -4.0, False, False), (3, None, False, False)],
)
def test_a_head_is_kept_where_it_fits_unless_a_new_one_is_asked_for(
  classes, bias, new_head, reported, tmp_path
):
  path, params = saved(tmp_path)
  model = small(num_classes=classes, head_bias=bias)
  adapted, text = loaded(path, model, new_head=new_head)
  assert ('reset' in text) != reported
  assert_equal({**adapted, 'head': 0}['encoder'], params['encoder'])
  if reported:
    assert_equal(adapted['head'], params['head'])
  else:
    assert adapted['head']['kernel'].shape == (16, classes) and not adapted['head']['kernel'].any()
    assert ('bias' in adapted['head']) == (bias is not None)
    assert bias is None or (adapted['head']['bias'] == bias).all()


@pytest.mark.quick
def test_a_head_has_the_order_of_classes_that_are_named(tmp_path):
  path, params = saved(tmp_path)
  order = ('4', '0', '3', '1', '2')
  adapted, text = loaded(path, small(), classes=order)
  for leaf, values in params['head'].items():
    np.testing.assert_array_equal(adapted['head'][leaf], values[..., list(map(int, order))])
  assert 'head (classes matched by name)' in text
  with pytest.raises(ValueError, match=r'head of .* other classes: .* new_head=True'):
    loaded(path, small(), classes=('4', '0', '3', '1', 'x'))
  assert not loaded(path, small(), classes=tuple('vwxyz'), new_head=True)[0]['head']['kernel'].any()
  with pytest.raises(ValueError, match='4 classes are named, the model has 5'):
    loaded(path, small(), classes=tuple('vwxy'))


@pytest.mark.quick
def test_a_new_head_is_drawn_from_the_seed_where_the_model_says_so(tmp_path):
  path, params = saved(tmp_path)
  model = small(num_classes=2_000, distillation='head', head_init='normal', head_bias=-4.0)
  adapted, text = loaded(path, model, seed=3)
  assert re.search(r'head \(5 classes there, 2,000 here, starts normal\)', text)
  for head in ('head', 'head_dist'):
    # 32,000 numbers: five times the deviation of their deviation
    assert np.std(adapted[head]['kernel']) == pytest.approx(0.02, rel=5 / np.sqrt(2 * 32_000))
    assert (adapted[head]['bias'] == -4).all()
  assert not np.array_equal(adapted['head']['kernel'], adapted['head_dist']['kernel'])
  assert_equal(adapted['encoder'], params['encoder'])
  assert_equal(loaded(path, model, seed=3)[0], adapted)
  assert not np.array_equal(loaded(path, model)[0]['head']['kernel'], adapted['head']['kernel'])
  unseeded = loaded(path, small(head_init='normal'))[0]
  assert_equal(unseeded, params)


def test_a_file_without_a_head_gives_a_new_one_and_a_model_without_drops_it(tmp_path):
  path, params = saved(tmp_path)
  adapted, text = loaded(path, small(num_classes=0))
  assert_equal(adapted, {name: leaf for name, leaf in params.items() if name != 'head'})
  assert re.search(r'dropped +head/kernel; head/bias', text)
  path, _ = saved(tmp_path, small(num_classes=0))
  adapted, text = loaded(path)
  assert not adapted['head']['kernel'].any() and re.search(r'reset +head', text)
  assert re.search(rf'loaded +{len(flat(adapted)) - 2} arrays', text)


def test_a_head_that_read_another_layer_is_reset_where_that_layer_is_dropped(tmp_path):
  path, params = saved(tmp_path, small(representation=16))
  adapted, text = loaded(path)
  assert not adapted['head']['kernel'].any() and re.search(r'reset +head', text)
  assert re.search(r'dropped +pre_logits/kernel; pre_logits/bias', text)
  assert_equal(adapted['encoder'], params['encoder'])


@pytest.mark.parametrize(
  'options, said',
  [
    (dict(resample='bicubik'), r"'bicubik'.*did you mean bicubic"),
    (dict(image_size=(16, 18)), '16x18 does not divide into patches of 4x4'),
    (dict(image_size=0), 'image_size is 0'),
    (dict(image_size=-16), 'image_size is -16'),
    (dict(channels=0), 'channels'),
    (dict(channels=-1), 'channels'),
    (dict(seed=0.5), 'seed is 0.5'),
  ],
  ids=str,
)
def test_an_argument_that_cannot_be_met_is_named(options, said, tmp_path):
  path, _ = saved(tmp_path)
  assert re.search(said, refused(vit_jax.load_params, path, small(), **options))


def test_what_distillation_added_is_dropped_and_told(tmp_path):
  model = small(distillation='head')
  params = params_of(model)
  theirs, unread = engine.to_theirs(TABLES['timm'], flat(params))
  assert unread == []
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, tmp_path / 'a.safetensors')
  assert_equal(loaded(tmp_path / 'a.safetensors', model)[0], params)
  adapted, text = loaded(tmp_path / 'a.safetensors')
  np.testing.assert_array_equal(adapted['positions'], np.delete(params['positions'], 1, axis=1))
  assert_equal(adapted['head'], params['head'])
  assert re.search(r'dropped +dist; head_dist/kernel; head_dist/bias', text)
  adapted, text = loaded(tmp_path / 'a.safetensors', model, new_head=True)
  assert not adapted['head']['kernel'].any() and not adapted['head_dist']['kernel'].any()
  assert re.search(r'reset +head .*; head_dist', text)


def test_a_mixer_is_read_for_the_size_that_its_tokens_imply_and_no_other(tmp_path):
  fields = dict(patch=4, width=16, depth=2, tokens_dim=6, mlp_dim=24, num_classes=5)
  model = vit_jax.build('Mixer-B/16', **fields)
  params = params_of(model)
  path = npz(tmp_path / 'a.npz', google_arrays(params, names=MIXER_LEAVES))
  assert_equal(loaded(path, model)[0], params)
  run = vit_jax.load(path)
  assert run.preprocess.size == SQUARE and run.model.tokens_dim == 6
  line = refused(vit_jax.load_params, path, model, image_size=24)
  assert 'encoder/blocks/tokens/up/kernel has shape (2, 16, 6), not (2, 36, 6)' in line


# Reports


def test_a_report_says_in_a_dozen_lines_what_became_of_the_arrays(tmp_path):
  params = params_of(small(representation=16))
  beside = {f'opt/state/{i}': np.zeros(2) for i in range(300)}
  arrays = prefixed(google_arrays(params), 'opt/target/', **beside)
  model = small(patch=8, num_classes=3, activation='quick_gelu', norm_eps=1e-3, cls_position=False)
  path = npz(tmp_path / 'a.npz', arrays)
  adapted, text = loaded(path, model, image_size=24, channels=1)
  lines = text.splitlines()
  assert lines[0].startswith(f'{path}: google names') and len(lines) <= 12
  assert max(map(len, lines)) < 1000
  sections = {line.split()[0]: line for line in lines[1:]}
  theirs = {name: leaf for name, leaf in flat(adapted).items() if not name.startswith('head/')}
  count = sum(leaf.size for leaf in theirs.values())
  assert f'{len(theirs)} arrays, {count:,} parameters' in sections['loaded']
  assert f"{len(arrays) - len(beside)} of the file's arrays" in sections['renamed']
  assert '4x4 -> 3x3' in sections['resampled'] and '4x4 -> 8x8' in sections['resampled']
  assert '3 channels to 1' in sections['adapted'] and 'cls' in sections['adapted']
  assert 'head (5 classes there, 3 here)' in sections['reset']
  assert 'more' in sections['dropped']
  assert 'activation is gelu_tanh there, quick_gelu in the model' in sections['differs']
  assert 'norm_eps is 1e-06 there, 0.001 in the model' in sections['differs']


def test_a_report_goes_to_standard_error_unless_it_is_asked_elsewhere(tmp_path, capsys):
  path, _ = saved(tmp_path)
  vit_jax.load_params(path, small())
  printed = capsys.readouterr()
  assert printed.out == '' and printed.err.startswith(f'{path}: google names')
  vit_jax.load_params(path, small(), report=None)
  assert capsys.readouterr() == ('', '')


def test_a_report_names_nothing_that_the_model_does_not_have(tmp_path):
  theirs, _ = engine.to_theirs(TABLES['timm'], flat(params_of(small())))
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, tmp_path / 'a.safetensors')
  _, text = loaded(tmp_path / 'a.safetensors', small(activation='gelu_erf'))
  assert 'stem' not in text and 'differs' not in text


# Mistakes


def test_one_error_names_all_that_is_missing_unexpected_and_misshapen(tmp_path):
  arrays = google_arrays(params_of(small()))
  block = 'Transformer/encoderblock_1'
  del arrays[f'{block}/LayerNorm_2/bias'], arrays[f'{block}/MlpBlock_3/Dense_0/kernel']
  arrays['Transformer/tail/kernel'] = np.zeros(3)
  arrays[f'{block}/LayerNorm_0/scale'] = np.zeros(15)
  arrays['Transformer/encoder_norm/scale'] = np.zeros((16, 1))
  line = refused(vit_jax.load_params, npz(tmp_path / 'a.npz', arrays), small())
  assert str(tmp_path / 'a.npz') in line
  # The first layer tells how many there are of a kind; where the last is gone, so is its number
  assert re.search(rf'{block}/LayerNorm_2/bias is missing|norm2/bias', line)
  assert re.search(rf'{block}/MlpBlock_3/Dense_0/kernel is missing|mlp/up/kernel', line)
  assert 'Transformer/tail/kernel is unexpected' in line
  assert f'{block}/LayerNorm_0/scale has shape (15,)' in line
  assert re.search(r'encoder_?/?norm/scale has shape \(16, 1\)', line)


@pytest.mark.parametrize('layer', [0, 1, 2])
def test_an_array_that_a_layer_lacks_is_named_as_in_the_file(layer, tmp_path):
  arrays = google_arrays(params_of(small(depth=3)))
  name = f'Transformer/encoderblock_{layer}/MlpBlock_3/Dense_1/bias'
  del arrays[name]
  line = refused(vit_jax.load_params, npz(tmp_path / 'a.npz', arrays), small(depth=3))
  assert line.endswith(f'does not fit the model: {name} is missing')


HALVES = {
  'google': ('Transformer/encoder_norm/scale', 'Transformer/encoder_norm/bias', 'head/kernel'),
  'timm': ('norm.weight', 'norm.bias', 'head.weight', 'blocks.0.norm1.bias'),
  'huggingface': ('layernorm.weight', 'layernorm.bias', 'classifier.weight'),
  'torchvision': ('encoder.ln.weight', 'encoder.ln.bias', 'heads.head.weight'),
}


@pytest.mark.parametrize(
  'dialect, name', [(dialect, name) for dialect, names in HALVES.items() for name in names]
)
def test_a_file_with_half_of_a_layer_is_refused(dialect, name, monkeypatch):
  monkeypatch.setattr(
    weights, 'read', lambda _: {n: a for n, a in sound()[dialect].items() if n != name}
  )
  refused(bundle.read, 'half')


def test_positions_that_a_file_of_the_paper_lacks_are_not_made_up_in_silence(monkeypatch):
  arrays = {n: a for n, a in sound()['google'].items() if 'pos_embedding' not in n}
  monkeypatch.setattr(weights, 'read', lambda _: arrays)
  said = []
  try:
    vit_jax.load_params('a.npz', small(), report=said.append)
  except ValueError as error:
    said.append(str(error))
  assert re.search(r'positions|pos_embedding', said[0])


def test_a_checkpoint_of_another_model_is_refused_by_every_shape(tmp_path):
  path, _ = saved(tmp_path)
  line = refused(vit_jax.load_params, path, small(width=32, heads=4))
  for name in ('embed/kernel', 'encoder/blocks/norm1/scale', 'encoder/blocks/mlp/up/kernel'):
    assert re.search(rf'{name} has shape \(.*?\), not \(', line)
  assert 'not (2, ' in refused(vit_jax.load_params, path, small(mlp_dim=25))
  assert '(2, 16), not (3, 16)' in refused(vit_jax.load_params, path, small(depth=3))


@pytest.mark.quick
@pytest.mark.parametrize('name', ['conv1.weight', 'head/kernel', 'embedding/kernel', ''])
def test_an_archive_of_unknown_names_is_told_in_a_line_with_some_of_them(name, tmp_path):
  arrays = {f'mine/{i}': np.zeros(2) for i in range(50)} | {name or 'x': np.zeros(3)}
  path = npz(tmp_path / 'a.npz', arrays)
  line = refused(vit_jax.load, path)
  assert str(path) in line and '51 arrays' in line and 'no known ViT' in line and len(line) < 500
  assert refused(vit_jax.load_params, path, small()) == line


@pytest.mark.parametrize('kind', ['npz', 'safetensors'])
def test_an_archive_without_arrays_is_told_in_a_line(kind, tmp_path):
  path = tmp_path / f'a.{kind}'
  if kind == 'npz':
    np.savez(path)
  else:
    save_file({}, path)
  assert str(path) in refused(vit_jax.load, path)


def test_a_path_to_nothing_is_a_missing_file(tmp_path):
  for use in (vit_jax.load, lambda path: vit_jax.load_params(path, small())):
    with pytest.raises(FileNotFoundError, match='nowhere'):
      use(tmp_path / 'nowhere.npz')


# Mutations


@functools.cache
def sound():
  """Sound arrays of a small model under each dialect's names."""
  params = params_of(small())
  kinds = {kind: engine.to_theirs(table, flat(params))[0] for kind, table in TABLES.items()}
  return kinds | {'google': google_arrays(params), 'own': flat(params)}


def renamed(rng, name):
  return rng.choice(
    [
      name + 'x',
      name[1:],
      re.sub(r'\d+', '99999', name, count=1),
      re.sub(r'\d+', '9999', name, count=1),
      re.sub(r'\d+', '-1', name, count=1),
      re.sub(r'\d+', '', name, count=1),
      re.sub(r'weight|kernel', 'bias', name),
      f'model.{name}',
      f'params/{name}',
      '',
    ]
  )


def reshaped(rng, array):
  forms = [
    array.T,
    array.reshape(-1),
    array.reshape(1, *array.shape),
    np.asarray(array)[..., None],
    array[:0] if array.ndim else array,
    array[1:] if array.ndim else array,
    np.zeros((), np.float32),
    np.zeros((0, 0), np.float32),
    np.concatenate([array, array]) if array.ndim else array,
    np.repeat(array, 2, -1) if array.ndim else array,
  ]
  return forms[rng.integers(len(forms))]


def retyped(rng, array):
  kinds = [np.int64, np.bool_, np.float16, np.float64, ml_dtypes.bfloat16, np.uint8]
  return array.astype(kinds[rng.integers(len(kinds))])


def mutated(rng, arrays):
  """A copy with one to three of its arrays renamed, removed, added or changed."""
  arrays = dict(arrays)
  for _ in range(rng.integers(1, 4)):
    if not arrays:
      break
    name = str(rng.choice(sorted(arrays)))
    change = rng.choice(['rename', 'remove', 'add', 'swap', 'reshape', 'reshape', 'type', 'many'])
    if change == 'rename':
      arrays[renamed(rng, name)] = arrays.pop(name)
    elif change == 'remove':
      del arrays[name]
    elif change == 'add':
      arrays[renamed(rng, name)] = reshaped(rng, arrays[name])
    elif change == 'swap':
      other = str(rng.choice(sorted(arrays)))
      arrays[name], arrays[other] = arrays[other], arrays[name]
    elif change == 'reshape':
      arrays[name] = reshaped(rng, arrays[name])
    elif change == 'type':
      arrays[name] = retyped(rng, arrays[name])
    else:  # all of a kind, in every layer
      kind = re.sub(r'\d+', '#', name)
      for other in [n for n in arrays if re.sub(r'\d+', '#', n) == kind]:
        if rng.random() < 0.5:
          del arrays[other]
        else:
          arrays[other] = reshaped(rng, arrays[other])
  return arrays


ABSURD = [0, -1, 'x', '', 1e9, 10**9, 2.5, float('nan'), float('inf'), True, None, [], {}, [[1]]]
ABSURD += [{'a': {'b': 1}}, [3, 'x'], 'gelu', -0.0, '2', [16, 16], {'height': 4}, 3, 1]


def absurd(rng, config):
  """A copy of a description with one or two values replaced, at any depth."""
  config = json.loads(json.dumps(config))
  for _ in range(rng.integers(1, 3)):
    section = config
    while True:
      key = str(rng.choice(sorted(section)))
      if not isinstance(section[key], dict) or not section[key] or rng.random() < 0.5:
        break
      section = section[key]
    if rng.random() < 0.2:
      del section[key]
    else:
      section[key] = ABSURD[rng.integers(len(ABSURD))]
    if not config:
      break
  return config


def used(use):
  """'' if it loads, else the line that refuses it; anything else is an error of the test."""
  start = time.perf_counter()
  try:
    use()
    line = ''
  except (ValueError, FileNotFoundError) as error:
    assert len(str(error).splitlines()) == 1, str(error)
    line = str(error)
  assert time.perf_counter() - start < 10
  return line


CONFIGS = {
  'huggingface': HUGGING_FACE | {'preprocessor': PREPROCESSOR},
  'timm': {
    'architecture': 'vit_tiny_patch16_224',
    'num_classes': 5,
    'global_pool': 'token',
    'label_names': list('abcde'),
    'model_args': {'embed_dim': 16, 'depth': 2, 'num_heads': 2, 'act_layer': 'gelu'},
    'pretrained_cfg': {
      'input_size': [3, 16, 16],
      'interpolation': 'bicubic',
      'crop_pct': 0.9,
      'crop_mode': 'center',
      'mean': [0.5, 0.5, 0.5],
      'std': [0.5, 0.5, 0.5],
    },
  },
}


@pytest.mark.parametrize('kind', ['google', 'timm', 'huggingface', 'torchvision', 'own'])
def test_500_mutated_checkpoints_load_or_are_refused_in_a_line(kind, monkeypatch):
  faults, refusals, model = {}, 0, small()
  for seed in range(500):
    rng = np.random.default_rng([seed, len(kind)])
    arrays, config = sound()[kind], CONFIGS.get(kind, {}) if seed % 4 else {}
    if not config or seed % 3:
      arrays = mutated(rng, arrays)
    if config:
      config = absurd(rng, config) if seed % 2 else config
    monkeypatch.setattr(weights, 'read', lambda _, arrays=arrays: arrays)
    monkeypatch.setattr(families, 'configuration', lambda _, config=config: config)
    for use in (
      lambda: bundle.read('mutated'),
      lambda: vit_jax.load_params('mutated', model, report=str),
    ):
      try:
        refusals += bool(used(use))
      except Exception as error:
        faults.setdefault(f'{type(error).__name__}: {str(error)[:200]}', []).append(seed)
  assert faults == {}
  assert refusals > 100


@pytest.mark.parametrize(
  'dialect, section, key, value',
  [
    ('huggingface', 'preprocessor', 'size', None),
    ('huggingface', 'preprocessor', 'size', {'height': 16}),
    ('huggingface', 'preprocessor', 'resample', 'x'),
    ('huggingface', 'preprocessor', 'image_mean', [0.5]),
    ('huggingface', 'preprocessor', 'crop_size', [8, 8, 8]),
    ('timm', 'pretrained_cfg', 'input_size', 16),
    ('timm', 'pretrained_cfg', 'crop_pct', 0),
    ('timm', 'pretrained_cfg', 'interpolation', 'random'),
    ('timm', 'model_args', 'num_heads', 3),
    ('timm', 'model_args', 'act_layer', 'relu'),
  ],
)
def test_a_configuration_that_no_model_has_is_no_other_error_than_a_line(
  dialect, section, key, value, monkeypatch
):
  config = json.loads(json.dumps(CONFIGS[dialect]))
  if value is None:
    del config[section][key]
  else:
    config[section][key] = value
  monkeypatch.setattr(weights, 'read', lambda _: sound()[dialect])
  monkeypatch.setattr(families, 'configuration', lambda _: config)
  used(lambda: bundle.read('mutated'))
  used(lambda: vit_jax.load_params('mutated', small(), report=str))


@pytest.fixture(scope='module')
def description(tmp_path_factory):
  """What our own bundle of the small model says, and its files."""
  folder = tmp_path_factory.mktemp('own') / 'model'
  size = bundle.Preprocess('resize', SQUARE)
  made = bundle.Bundle(small(), params_of(small()), tuple('abcde'), size, 'ViT-Ti/16')
  bundle.write(folder, made)
  return folder, json.loads((folder / 'config.json').read_text())


@pytest.mark.parametrize(
  'section, key, value',
  [
    ('preprocess', 'size', 16),
    ('preprocess', 'size', 2.5),
    ('model', 'patch', None),
    ('model', 'patch', {'a': 1}),
    ('model', 'depth', 2.0),
    ('model', 'representation', 1e9),
  ],
)
def test_a_description_of_a_bundle_with_a_wrong_value_is_refused_in_a_line(
  section, key, value, description, tmp_path
):
  _, description_json = description
  save_file(sound()['own'], tmp_path / 'model.safetensors')
  description_json = description_json | {section: description_json[section] | {key: value}}
  (tmp_path / 'config.json').write_text(json.dumps(description_json))
  assert str(tmp_path) in refused(bundle.read, tmp_path)
  used(lambda: vit_jax.load_params(tmp_path, small(), report=str))


def test_500_mutated_descriptions_of_a_bundle_load_or_are_refused_in_a_line(
  description, monkeypatch
):
  folder, description_json = description
  faults = {}
  monkeypatch.setattr(weights, 'read', lambda _: sound()['own'])
  try:
    for seed in range(500):
      rng = np.random.default_rng(seed)
      (folder / 'config.json').write_text(json.dumps(absurd(rng, description_json)))
      for use in (
        lambda: bundle.read(folder),
        lambda: vit_jax.load_params(folder, small(), report=str),
      ):
        try:
          used(use)
        except Exception as error:
          faults.setdefault(f'{type(error).__name__}: {str(error)[:200]}', []).append(seed)
  finally:
    (folder / 'config.json').write_text(json.dumps(description_json))
  assert faults == {}


@pytest.mark.parametrize('kind', ['google', 'timm', 'huggingface', 'own'])
def test_mutated_files_on_disk_load_or_are_refused_in_a_line(kind, description, tmp_path):
  faults = {}
  for seed in range(15):
    rng = np.random.default_rng([seed, 99])
    arrays = {n: np.ascontiguousarray(a) for n, a in mutated(rng, sound()[kind]).items()}
    path = tmp_path
    if kind == 'google':
      path = npz(tmp_path / 'a.npz', arrays)
    else:
      save_file(arrays, tmp_path / 'model.safetensors')
      text = json.dumps(description[1] if kind == 'own' else absurd(rng, CONFIGS[kind]))
      broken = [text, text[: len(text) // 2], '[]', 'null', '', '[' * 10**5, '\x00']
      (tmp_path / 'config.json').write_text(broken[max(seed - 8, 0)])
    for use in (
      lambda path=path: vit_jax.load(path),
      lambda path=path: vit_jax.load_params(path, small(), report=str),
    ):
      try:
        line = used(use)
        assert not line or str(tmp_path) in line
      except Exception as error:
        faults.setdefault(f'{type(error).__name__}: {str(error)[:200]}', []).append(seed)
  assert faults == {}


@pytest.mark.parametrize('fields', [{'positions': 'rope'}, {'swiglu': True}])
def test_what_hugging_face_cannot_say_is_refused_by_name(fields, tmp_path):
  model = tiny(layer_scale=None, **fields)
  preprocess = bundle.Preprocess('resize', (8, 12))
  source = bundle.Bundle(model, drawn(shapes(model)), tuple('abcde'), preprocess, 'ViT-Ti/16')
  with pytest.raises(ValueError, match=r'no way to say .*layer_scale None'):
    convert.write(tmp_path / 'model', source, to='hf')


# Names of timm's, and what wraps names


@pytest.mark.parametrize(
  'architecture, field, value',
  [
    ('vit_base_patch16_gap_224', 'num_heads', 16),
    ('vit_giantopt_patch16_siglip_256', 'num_heads', 16),
    ('vit_7b_patch16_dinov3.lvd1689m', 'num_heads', 32),
    ('test_vit', 'num_heads', 2),
    ('vit_base_patch16_224_in21k', 'num_heads', 12),
    ('vit_large_patch14_clip_quickgelu_224', 'act_layer', 'quick_gelu'),
  ],
)
def test_a_name_of_timms_says_what_the_arrays_do_not(architecture, field, value):
  assert timm_names.called({}, architecture, 'VisionTransformer').arguments[field] == value


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'architecture': 'vit_base_patch16_18x2_224'}, 'block_fn'),
    ({'architecture': 'samvit_base_patch16'}, 'VisionTransformerSAM'),
    ({'architecture': 'vit_tiny_patch16_225'}, 'norm_layer'),
    ({'act_layer': 'silu'}, 'act_layer'),
    ({'global_pool': 'avgmax'}, 'global_pool'),
    ({'embed_norm_layer': 'rmsnorm'}, 'embed_norm_layer'),
    ({'depht': 2}, 'no argument depht'),
  ],
  ids=str,
)
def test_what_timm_computes_otherwise_is_refused_by_name(changes, said, tmp_path):
  config = CONFIGS['timm']
  top = {key: value for key, value in changes.items() if key in config}
  args = {key: value for key, value in changes.items() if key not in config or key == 'global_pool'}
  folder = timm_folder(tmp_path, config | top | {'model_args': config['model_args'] | args})
  assert said in refused(vit_jax.load, folder)


@pytest.mark.parametrize('constructor', timm_names.SUPPORTED)
def test_every_argument_of_timms_is_read_shown_inert_or_held_to_values(constructor):
  arguments = timm_names.table()['defaults'][constructor].keys()
  read = {*timm_names.READ, *timm_names.SHOWN, *timm_names.INERT, 'embed_norm_layer'}
  assert arguments <= read | timm_names.SUPPORTED[constructor].keys()


WRAPPINGS = {
  'by torch.compile': lambda name: f'_orig_mod.{name}',
  'by DataParallel': lambda name: f'module.{name}',
  'by FSDP': lambda name: re.sub(r'(blocks\.\d+)', r'\1._fsdp_wrapped_module', name),
  'by activation checkpointing': lambda name: re.sub(
    r'(blocks\.\d+)', r'\1._checkpoint_wrapped_module', name
  ),
  'in chunks of blocks': lambda name: re.sub(r'blocks\.(\d+)', r'blocks.\1.\1', name),
  'in net': lambda name: f'net.{name}',
  'in student': lambda name: f'state_dict.student._orig_mod.module.{name}',
  'anywhere': lambda name: f'some.thing.of.mine.{name}',
}


@pytest.mark.parametrize('wrap', WRAPPINGS.values(), ids=list(WRAPPINGS))
def test_what_wraps_the_names_makes_no_difference(wrap, tmp_path):
  params = params_of(small())
  theirs, _ = engine.to_theirs(TABLES['timm'], flat(params))
  arrays = {wrap(name): np.ascontiguousarray(array) for name, array in theirs.items()}
  save_file(arrays, tmp_path / 'some.safetensors')
  assert_equal(loaded(tmp_path / 'some.safetensors')[0], params)


def test_several_models_in_a_file_are_not_one(tmp_path):
  theirs, _ = engine.to_theirs(TABLES['timm'], flat(params_of(small())))
  arrays = {f'{p}.{n}': np.ascontiguousarray(a) for n, a in theirs.items() for p in ('one', 'two')}
  save_file(arrays, tmp_path / 'some.safetensors')
  said = refused(vit_jax.load_params, tmp_path / 'some.safetensors', small())
  assert 'several models, one.*, two.*' in said


def test_positions_of_registers_are_part_of_them(tmp_path):
  model = small(registers=4)
  arrays = flat(params_of(model))
  rows = np.random.default_rng(0).standard_normal((1, 4, model.width)).astype(np.float32)
  theirs, _ = engine.to_theirs(TABLES['timm'], arrays)
  table = arrays['positions']
  theirs['pos_embed'] = np.concatenate([table[:, :1], rows, table[:, 1:]], axis=1)
  save_file({n: np.ascontiguousarray(a) for n, a in theirs.items()}, tmp_path / 'a.safetensors')
  actual, _ = loaded(tmp_path / 'a.safetensors', model)
  np.testing.assert_array_equal(actual['registers'], arrays['registers'] + rows)
  np.testing.assert_array_equal(actual['positions'], table)


BIG_VISION_BIT = (  # as big_vision itself brings Big Transfer's names to its own
  (r'^resnet/root_block/standardized_conv2d', 'root_block/conv_root'),
  (r'^resnet/group_norm/', 'norm-pre-head/'),
  (r'^resnet/head/conv2d/', 'head/'),
  (r'^resnet/(block\d/unit\d\d)/a/proj/standardized_conv2d', r'\1/conv_proj'),
  *(
    (rf'^resnet/(block\d/unit\d\d)/{part}/{theirs}', rf'\1/{ours}{number}')
    for number, part in enumerate('abc', 1)
    for theirs, ours in (('standardized_conv2d', 'conv'), ('group_norm', 'gn'))
  ),
  ('gamma$', 'scale'),
  ('beta$', 'bias'),
)


def as_big_vision(name, array):
  """An array of Big Transfer's under big_vision's name, in its shape."""
  for old, new in BIG_VISION_BIT:
    name = re.sub(old, new, name)
  if array.ndim == 1 and name != 'head/bias':
    array = array[None, None, None]
  return name, array[0, 0] if name == 'head/kernel' else array


def test_bit_is_read_as_big_vision_saves_it_and_with_numbered_convolutions(tmp_path):
  model = vit_jax.build('BiT-R50x1', num_classes=5, blocks=(2, 1, 1, 1))
  params = drawn(shapes(model, (32, 32)))
  look = bundle.Preprocess('resize', (32, 32))
  source = bundle.Bundle(model, params, tuple('abcde'), look, 'BiT-R50x1')
  convert.write(tmp_path / 'google.npz', source, to='npz')
  arrays = dict(np.load(tmp_path / 'google.npz'))
  conv = 'standardized_conv2d'
  numbered = {name.replace(f'{conv}/', f'{conv}_7/'): array for name, array in arrays.items()}
  renamed = dict(as_big_vision(name, array) for name, array in arrays.items())
  for others, dialect in ((renamed, 'bigvision'), (numbered, 'google')):
    np.savez(tmp_path / 'other.npz', **others)
    checkpoint = convert.read(tmp_path / 'other.npz')
    assert checkpoint.dialect == dialect and checkpoint.fields['numerics'] == 'bit'
    again = vit_jax.load_params(tmp_path / 'other.npz', model, image_size=32, report=None)
    assert_equal(again, params)
