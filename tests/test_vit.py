"""Laws of the Vision Transformer: sizes, names, equal ways to compute, what each field does."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.conftest import SIZE, drawn, flat, forward, pictures, shapes, tiny
from vit_jax import models
from vit_jax.models import attention, layers, vit

pytestmark = pytest.mark.arithmetic


def close(a, b, tolerance=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


# Sizes and names


def test_gap_has_no_class_token_and_no_position_for_it():
  assert models.count(vit_jax.build('ViT-S/16', pool='gap')) == 22_049_896


@pytest.mark.parametrize('name', models.VITS)
def test_every_variant_builds_with_the_parameters_that_its_sizes_imply(name):
  model = vit_jax.build(name)
  d, m, p, k = model.width, model.mlp_dim, model.patch[0], 1000
  tokens = (224 // p) ** 2 + 1
  block = 4 * (d * d + d) + (d * m + m) + (m * d + d) + 4 * d
  outside = (3 * p * p * d + d) + d + tokens * d + 2 * d + (d * k + k)
  assert models.count(model) == model.depth * block + outside


def test_there_are_48_variants():
  sizes = ('Ti', 'S', 'M', 'B', 'So150m', 'L', 'So400m', 'H', 'g', 'g-opt', 'G', 'G-opt')
  patches = (8, 14, 16, 32)
  assert set(models.VITS) == {f'ViT-{size}/{patch}' for size in sizes for patch in patches}


def test_a_misspelt_name_or_field_lists_the_nearest():
  with pytest.raises(ValueError, match=r"unknown model 'ViT-B/15'; did you mean .*ViT-B/16"):
    vit_jax.build('ViT-B/15')
  with pytest.raises(ValueError, match=r"unknown field 'dropuot'.*did you mean dropout"):
    vit_jax.build('ViT-B/16', dropuot=0.1)


def test_one_error_names_every_field_with_a_value_it_cannot_have():
  wrong = dict(pool='max', positions='rotary', activation='relu', remat='some', dtype='int8')
  wrong |= dict(depth=0, mlp_dim=-1, patch=(16, 0), dropout=1.0, drop_path=-0.1)
  with pytest.raises(ValueError) as error:
    vit_jax.build('ViT-Ti/16', **wrong)
  assert '\n' not in str(error.value)
  assert [field for field in wrong if field not in str(error.value)] == []


@pytest.mark.quick
def test_heads_that_do_not_divide_the_width_are_an_error():
  with pytest.raises(ValueError, match='width 192 does not divide into 5 heads'):
    vit_jax.build('ViT-Ti/16', heads=5)


def test_fields_build_the_same_model_again():
  model = tiny(pool='map', registers=2, layer_scale=1e-4, patch=(4, 2))
  assert vit_jax.build('ViT-B/16', **models.fields(model)) == model


# Equal ways to compute


@pytest.fixture(scope='module')
def plain():
  """The tiny model, parameters, images, and what it computes with attention weights."""
  model, images = tiny(), pictures()
  params = drawn(shapes(model))
  logits, out = forward(model, params, images, attention=True)
  return model, params, images, logits, out


def sliced(params, i):
  """The parameters of one layer."""
  return jax.tree.map(lambda stacked: stacked[i], params['encoder']['blocks'])


@jax.jit
def spread(logits):
  return jnp.sum(logits * jnp.linspace(-1, 1, logits.size).reshape(logits.shape))


def gradients(model, params, images):
  def total(params):
    key = jax.random.key(3, impl='rbg')  # compiles faster than threefry
    logits, _ = model.apply({'params': params}, images, train=True, rngs={'dropout': key})
    return spread(logits), logits

  return jax.jit(jax.value_and_grad(total, has_aux=True))(params)


@pytest.fixture(scope='module')
def trained(plain):
  """Logits and gradient of a training pass with every kind of dropout."""
  _, params, images, _, _ = plain
  return gradients(tiny(dropout=0.2, attention_dropout=0.2, drop_path=0.3), params, images)


@pytest.mark.gpu
@pytest.mark.parametrize(
  'options',
  [
    dict(unroll=2),
    dict(remat='full'),
    dict(remat='dots', unroll=None),
    dict(remat='lean'),
    dict(remat='lean', unroll=None),
  ],
  ids=str,
)
def test_unroll_and_remat_change_no_logits_and_no_gradients(plain, trained, options):
  _, params, images, _, _ = plain
  model = tiny(dropout=0.2, attention_dropout=0.2, drop_path=0.3, **options)
  close(gradients(model, params, images), trained, 1e-6 if options.get('remat') == 'lean' else 1e-5)


def test_remat_recomputes_the_forward_pass(plain):
  def matmuls(model):
    return str(jax.make_jaxpr(lambda p: gradients(model, p, plain[2]))(plain[1])).count(
      'dot_general'
    )

  assert matmuls(tiny(remat='full')) > matmuls(tiny(remat='dots')) >= matmuls(tiny())


@pytest.mark.gpu
def test_scanned_layers_equal_a_loop_over_slices_of_their_parameters(plain):
  model, params, _, _, out = plain
  block = vit.Block(**model.block_fields((2, 3), train=False, attention=False), drop_path=False)
  layer = jax.jit(lambda params, x: block.apply({'params': params}, x, 0.0, None)[0])
  x = out['embedded']
  for i in range(model.depth):
    x = layer(sliced(params, i), x)
    close(x, out['blocks'][i])
  norm = nn.LayerNorm(epsilon=model.norm_eps)
  close(norm.apply({'params': params['encoder']['norm']}, x), out['encoded'])


@pytest.mark.gpu
@pytest.mark.quick
def test_a_block_equals_its_formula_in_float64(plain):
  _, params, _, _, out = plain
  p = jax.tree.map(lambda leaf: np.float64(leaf[0]), params['encoder']['blocks'])
  x = np.float64(out['embedded'])

  def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']

  y, a = norm(x, p['norm1']), p['attention']
  q, k, v = (
    np.einsum('ntd,dah->nath', y, a[name]['kernel']) + a[name]['bias'][:, None]
    for name in ('query', 'key', 'value')
  )
  weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
  weights /= weights.sum(-1, keepdims=True)
  x = x + np.einsum('nath,ahd->ntd', weights @ v, a['out']['kernel']) + a['out']['bias']
  h = norm(x, p['norm2']) @ p['mlp']['up']['kernel'] + p['mlp']['up']['bias']
  h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  x = x + h @ p['mlp']['down']['kernel'] + p['mlp']['down']['bias']
  close(out['attention'][0], weights)
  close(out['blocks'][0], x)


@pytest.mark.gpu
def test_patches_are_embedded_as_by_a_strided_convolution():
  model, images = tiny(patch=(4, 2)), pictures(size=(8, 6))
  params = drawn(shapes(model, (8, 6)))
  _, out = forward(model, params, images)
  embed = params['embed']
  convolved = jax.lax.conv_general_dilated(
    images, embed['kernel'], (4, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  assert out['patches'].shape == (3, 2, 3, 16)
  close(out['patches'], convolved + embed['bias'].reshape(1, 1, 1, -1))


@pytest.mark.quick
@pytest.mark.parametrize('size', [(8, 14), (9, 12), (2, 12)])
def test_images_that_do_not_divide_into_patches_are_an_error(size):
  with pytest.raises(ValueError, match=f'{size[0]}x{size[1]}.*4x4'):
    shapes(tiny(), size)


@pytest.mark.gpu
def test_without_positions_the_order_of_patches_does_not_matter():
  model = tiny(pool='gap', positions='none')
  params, images = drawn(shapes(model)), pictures()
  rows = images.reshape(3, 2, 4, 12, 3)
  swapped = rows[:, ::-1].reshape(images.shape)
  close(forward(model, params, images)[0], forward(model, params, swapped)[0])


@pytest.mark.gpu
def test_images_of_a_batch_do_not_see_each_other(plain):
  model, params, images, logits, _ = plain
  alone = forward(model, params, np.stack([images[1], 9 * images[0], images[2]]))[0]
  close(alone[::2], logits[1:])


# Pools and intermediates


@pytest.mark.gpu
@pytest.mark.parametrize('registers', [0, 2])
@pytest.mark.parametrize('pool', vit.POOLS)
def test_logits_follow_from_the_encoded_tokens_as_the_pool_says(pool, registers):
  model = tiny(pool=pool, registers=registers)
  params, images = drawn(shapes(model)), pictures()
  logits, out = forward(model, params, images, attention=True)
  tokens, n = pool.startswith('token') + registers + 6, len(images)
  expected = {
    'patches': (n, 2, 3, 16),
    'embedded': (n, tokens, 16),
    'blocks': (3, n, tokens, 16),
    'encoded': (n, tokens, 16),
    'attention': (3, n, 2, tokens, tokens),
    'pre_logits': {'none': (n, 6, 16), 'token_gap': (n, 32)}.get(pool, (n, 16)),
  }
  if pool == 'map':
    expected['pool_attention'] = (n, 2, 1, tokens)
  assert {name: value.shape for name, value in out.items()} == expected
  for name in expected.keys() & {'attention', 'pool_attention'}:
    close(out[name].sum(-1), np.ones(expected[name][:-1]))
  encoded = out['encoded']
  read = {
    'token': lambda: encoded[:, 0],
    'gap': lambda: encoded[:, -6:].mean(1),
    'token_gap': lambda: np.hstack([encoded[:, 0], encoded[:, -6:].mean(1)]),
    'none': lambda: encoded[:, -6:],
    'map': lambda: mapped(model, params['pool'], encoded),
  }
  close(out['pre_logits'], read[pool]())
  close(logits, read[pool]() @ params['head']['kernel'] + bias_like(params['head']['bias'], logits))


def bias_like(bias, array):
  return np.broadcast_to(bias, array.shape)


@functools.partial(jax.jit, static_argnums=0)
def mapped(model, params, tokens):
  """The attention pooling of float32 tokens, with flax's own attention and our MLP."""
  probe = jnp.tile(params['probe'], (len(tokens), 1, 1))
  attention = nn.MultiHeadDotProductAttention(model.heads)
  x = attention.apply({'params': params['attention']}, probe, tokens)
  y = nn.LayerNorm(epsilon=model.norm_eps).apply({'params': params['norm']}, x)
  mlp = vit.ViTMlp(model.mlp_dim, 'gelu_tanh', 0.0, 'float32', False)
  return (x + mlp.apply({'params': params['mlp']}, y))[:, 0]


@pytest.mark.gpu
@pytest.mark.parametrize('pool', ['token', 'map'])
def test_asking_for_attention_weights_does_not_change_the_logits(pool):
  model = tiny(pool=pool)
  params, images = drawn(shapes(model)), pictures()
  asked, usual = (forward(model, params, images, attention=flag) for flag in (True, False))
  close(asked[0], usual[0])
  assert asked[1].keys() - usual[1].keys() == {'attention', 'pool_attention'} - (
    {'pool_attention'} if pool != 'map' else set()
  )


@pytest.mark.gpu
@pytest.mark.parametrize('unroll', [1, None])
def test_intermediates_that_are_not_used_cost_nothing(plain, unroll):
  model, (_, params, images, _, _) = tiny(unroll=unroll), plain

  def compiled(read):
    return (
      jax.jit(lambda p, x: read(*model.apply({'params': p}, x))).lower(params, images).compile()
    )

  logits = compiled(lambda logits, out: logits)
  stacked = compiled(lambda logits, out: (logits, out['blocks']))
  stack = 'f32[3,3,7,16]'  # layers, images, tokens, width
  assert stack in stacked.as_text()
  assert stack not in logits.as_text()


@pytest.fixture
def traced(monkeypatch):
  """What blocks read, once for each time that one is traced."""
  inputs = []
  monkeypatch.setattr(layers, 'by_image', lambda x: inputs.append(x) or x)
  return inputs


@pytest.mark.parametrize(
  'train, fields, traces',
  [
    (True, {}, 1),
    (False, {'dropout': 0.1}, 1),
    (True, {'dropout': 0.1}, 2),
    (True, {'attention_dropout': 0.1}, 2),
    (True, {'drop_path': 0.1}, 2),
  ],
)
def test_a_block_is_traced_twice_only_where_it_draws_numbers(train, fields, traces, traced):
  model = tiny(**fields)
  params, images = shapes(model), jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
  traced.clear()

  def apply(params, images, key):
    return model.apply({'params': params}, images, train=train, rngs={'dropout': key})

  jax.eval_shape(apply, params, images, jax.random.key(0))
  assert len(traced) == traces


def test_parameters_are_those_of_a_second_trace_as_they_have_always_been(traced):
  jax.eval_shape(tiny().init, jax.random.key(0), jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32))
  assert len(traced) == 2


@pytest.mark.quick
def test_zero_classes_make_a_model_without_a_head(plain):
  _, params, images, _, out = plain
  model = tiny(num_classes=0)
  assert 'head' not in shapes(model)
  headless = {name: leaf for name, leaf in params.items() if name != 'head'}
  close(forward(model, headless, images)[0], out['pre_logits'])


@pytest.mark.gpu
def test_the_representation_is_the_tanh_of_a_dense_layer(plain):
  images, out = plain[2], plain[4]
  model = tiny(representation=7)
  wider = drawn(shapes(model))
  _, other = forward(model, wider, images)
  dense = wider['pre_logits']
  expected = np.tanh(out['encoded'][:, 0] @ dense['kernel'] + dense['bias'].reshape(1, -1))
  close(other['pre_logits'], expected)


# Fields


def added_and_removed(fields):
  """What a field adds to, removes from or reshapes in the parameters of the tiny model."""
  before, after = (
    {name: leaf.shape for name, leaf in flat(shapes(model)).items()}
    for model in (tiny(), tiny(**fields))
  )
  removed = {name for name in before if name not in after}
  return {name: shape for name, shape in after.items() if before.get(name) != shape}, removed


BLOCKS = 'encoder/blocks/'


@pytest.mark.quick
@pytest.mark.parametrize(
  'fields, added, removed',
  [
    (dict(registers=2), {'registers': (1, 2, 16)}, set()),
    (dict(layer_scale=1e-5), {BLOCKS + 'scale1': (3, 16), BLOCKS + 'scale2': (3, 16)}, set()),
    (dict(pre_norm=True), {'pre_norm/scale': (16,), 'pre_norm/bias': (16,)}, set()),
    (
      dict(qk_norm=True),
      {
        f'{BLOCKS}attention/{side}_norm/{leaf}': (3, 8)
        for side in ('query', 'key')
        for leaf in ('scale', 'bias')
      },
      set(),
    ),
    (
      dict(relative_positions='table'),
      {BLOCKS + 'attention/relative/table': (3, 3 * 5 + 3, 2)},
      set(),
    ),
    (
      dict(relative_positions='mlp', relative_hidden=7),
      {
        BLOCKS + 'attention/relative/up/kernel': (3, 2, 7),
        BLOCKS + 'attention/relative/up/bias': (3, 7),
        BLOCKS + 'attention/relative/down/kernel': (3, 7, 2),
        BLOCKS + 'attention/relative/down/bias': (3, 2),
      },
      set(),
    ),
    (dict(post_norm=True, parallel=True), {}, set()),
    (
      dict(swiglu=True),
      {BLOCKS + 'mlp/gate/kernel': (3, 16, 24), BLOCKS + 'mlp/gate/bias': (3, 24)},
      set(),
    ),
    (
      dict(representation=7),
      {'pre_logits/kernel': (16, 7), 'pre_logits/bias': (7,), 'head/kernel': (7, 5)},
      set(),
    ),
    (dict(cls_position=False), {'positions': (1, 6, 16)}, set()),
    (dict(positions='sincos2d'), {}, {'positions'}),
    (dict(positions='none'), {}, {'positions'}),
    (dict(pool='gap'), {'positions': (1, 6, 16)}, {'cls'}),
    (dict(pool='none'), {'positions': (1, 6, 16)}, {'cls'}),
    (dict(dropout=0.1, attention_dropout=0.1, drop_path=0.1), {}, set()),
    (dict(remat='full', dtype='bfloat16', activation='gelu_erf'), {}, set()),
  ],
  ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_a_field_changes_the_parameters_as_documented(fields, added, removed):
  assert added_and_removed(fields) == (added, removed)


@pytest.mark.gpu
def test_a_class_token_that_no_pool_reads_is_still_attended_to(plain):
  _, params, images, _, out = plain
  model = tiny(pool='gap', class_token=True)
  assert flat(shapes(model)).keys() == flat(params).keys()
  _, other = forward(model, params, images)
  close(other['pre_logits'], out['encoded'][:, 1:].mean(1))


@pytest.mark.gpu
def test_the_logits_of_a_distilled_model_are_the_mean_of_its_two_heads(plain):
  _, params, images, _, _ = plain
  model = tiny(distillation='head', registers=1)
  params = params | drawn(shapes(model))
  logits, out = forward(model, params, images)
  for head, token in (('head', 0), ('head_dist', 1)):
    bias = params[head]['bias'].reshape(1, -1)
    close(out[head], out['encoded'][:, token] @ params[head]['kernel'] + bias)
  close(logits, (out['head'] + out['head_dist']) / 2)


@pytest.mark.gpu
def test_a_distillation_token_without_a_head_is_a_register_with_a_position(plain):
  _, params, images, _, _ = plain
  model = tiny(distillation='token', cls_position=False)
  expected = tiny(registers=1, cls_position=False)
  params = drawn(shapes(expected))
  token = {name: leaf for name, leaf in params.items() if name != 'registers'}
  token |= {'dist': params['registers']}
  close(forward(model, token, images)[0], forward(expected, params, images)[0])


@pytest.mark.gpu
def test_the_final_norm_of_what_is_pooled_is_that_of_all_tokens_where_one_is_pooled(plain):
  _, params, images, logits, out = plain
  last = {'encoder': {'blocks': params['encoder']['blocks']}}
  bare = params | last
  pooled, other = forward(
    tiny(final_norm='pooled'), bare | {'fc_norm': params['encoder']['norm']}, images
  )
  close(pooled, logits)
  close(other['encoded'], out['blocks'][-1])
  close(forward(tiny(final_norm='none'), bare, images)[1]['pre_logits'], out['blocks'][-1][:, 0])


@pytest.mark.gpu
@pytest.mark.parametrize(
  'fields, absent',
  [
    (dict(embed_bias=False), r'embed/bias'),
    (dict(qkv_bias='qv'), r'encoder/blocks/attention/key/bias'),
    (dict(qkv_bias='none'), r'encoder/blocks/attention/(query|key|value)/bias'),
    (dict(head_bias=None), r'head/bias'),
  ],
  ids=str,
)
def test_a_bias_that_is_left_out_is_one_of_zero(plain, fields, absent):
  _, params, images, _, _ = plain
  model = tiny(**fields)
  zeroed = models.map_named(
    lambda name, leaf: 0 * leaf if re.fullmatch(absent, name) else leaf, params
  )
  present = models.map_named(lambda name, _: flat(params)[name], shapes(model))
  assert {n for n in flat(params) if n not in flat(present)} == {
    n for n in flat(params) if re.fullmatch(absent, n)
  }
  close(forward(model, present, images)[0], forward(tiny(), zeroed, images)[0])


# Rotary positions


def turned(x, grid, theta=100.0):
  """Vectors (T, A, D/A) as queries or keys of a grid of patches."""
  return np.asarray(
    attention.rotated(x[None], jnp.asarray(attention.rope2d(*grid, x.shape[-1], theta)))[0]
  )


@pytest.mark.quick
def test_rotation_keeps_norms_and_leaves_the_tokens_before_the_patches():
  x = np.random.default_rng(0).standard_normal((3 + 6, 2, 8)).astype(np.float32)
  y = turned(x, (2, 3))
  np.testing.assert_array_equal(y[:3], x[:3])
  close(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))
  assert (np.abs(y[3:] - x[3:]).max((1, 2)) > 0.01).all()


@pytest.mark.quick
def test_a_score_under_rotation_depends_on_the_difference_of_two_places_alone():
  q, k = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
  rows, columns = 3, 4
  queries, keys = (
    turned(np.tile(x, (rows * columns, 1, 1)), (rows, columns))[:, 0] for x in (q, k)
  )
  scores = (queries @ keys.T).reshape(rows, columns, rows, columns)
  close(scores[:-1, :, :-1], scores[1:, :, 1:])
  close(scores[:, :-1, :, :-1], scores[:, 1:, :, 1:])
  assert np.ptp(scores[0, 0]) > 0.1


@pytest.mark.gpu
def test_rotary_positions_have_no_parameters_but_make_the_order_matter():
  fields, images = dict(pool='gap', registers=1), pictures()
  params = drawn(shapes(tiny(positions='none', **fields)))
  rope = tiny(positions='rope', **fields)
  assert flat(shapes(rope)).keys() == flat(params).keys()
  swapped = images.reshape(3, 2, 4, 12, 3)[:, ::-1].reshape(images.shape)
  logits = [np.asarray(forward(rope, params, x)[0]) for x in (images, swapped)]
  assert np.abs(logits[0] - logits[1]).max() > 1e-3
  other = forward(tiny(positions='rope', rope_theta=2.0, **fields), params, images)[0]
  assert np.abs(logits[0] - other).max() > 1e-4


def bias_by_distance(table, rows, columns):
  """The bias (A, T, T) of a class token and patches, pair by pair."""
  last = (2 * rows - 1) * (2 * columns - 1)
  tokens = [None, *np.ndindex(rows, columns)]

  def row(query, key):
    if query is None or key is None:
      return last + (2 if query is key else 0 if query is None else 1)
    down, across = np.subtract(query, key)
    return (down + rows - 1) * (2 * columns - 1) + across + columns - 1

  return np.array([[table[row(query, key)] for key in tokens] for query in tokens]).transpose(
    2, 0, 1
  )


def log_table(p, rows, columns):
  """What an MLP of the logarithms of distances gives for each, and zeros for the class token."""
  pairs = np.array([*np.ndindex(2 * rows - 1, 2 * columns - 1)]) - (rows - 1, columns - 1)
  hidden = np.sign(pairs) * np.log1p(np.abs(pairs)) @ p['up']['kernel'] + p['up']['bias'][None]
  table = np.maximum(hidden, 0) @ p['down']['kernel'] + p['down']['bias'][None]
  return np.concatenate([table, np.zeros((3, table.shape[1]))])


@pytest.mark.gpu
@pytest.mark.parametrize('kind', ['table', 'mlp'])
def test_relative_positions_bias_the_scores_by_distance(plain, kind):
  model = tiny(relative_positions=kind)
  params = drawn(shapes(model))
  logits, out = forward(model, params, plain[2], attention=True)
  p = sliced(params, 0)['attention']['relative']
  bias = bias_by_distance(p['table'] if kind == 'table' else log_table(p, 2, 3), 2, 3)
  weights = plain[4]['attention'][0] * np.exp(bias)
  close(out['attention'][0], weights / weights.sum(-1, keepdims=True))
  close(forward(model, params, plain[2])[0], logits)


@pytest.mark.gpu
def test_a_parallel_block_adds_what_attention_and_mlp_say_of_the_same(plain):
  def first(model, *silent):
    params = jax.tree.map(np.copy, plain[1])
    for part, layer in silent:
      for leaf in params['encoder']['blocks'][part][layer].values():
        leaf[:] = 0
    return forward(model, params, plain[2])[1]['blocks'][0] - plain[4]['embedded']

  attention = first(tiny(), ('mlp', 'down'))
  mlp = first(tiny(), ('attention', 'out'))
  close(first(tiny(parallel=True)), attention + mlp)


@pytest.mark.parametrize(
  'fields', [{}, {'positions': 'rope', 'rope_grid': 'cells', 'heads': 2, 'registers': 1}]
)
def test_visible_patches_are_encoded_as_an_image_of_them_alone(fields):
  """The left half of an image, by number or cut out."""
  model = tiny(num_classes=0, **fields)
  params, images = drawn(shapes(model, (8, 16))), pictures(2, (8, 16))
  visible = np.tile([0, 1, 4, 5], (2, 1))
  _, ours = jax.jit(model.apply)({'params': params}, images, visible=visible)
  if 'positions' in params:
    table = params['positions'][:, [0, 1, 2, 5, 6]]  # the class token's, then the patches'
    params = {**params, 'positions': table}
  _, half = forward(model, params, images[:, :, :8])
  np.testing.assert_allclose(ours['encoded'], half['encoded'], rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_norms_after_attention_and_mlp_say_what_these_add(plain):
  params = jax.tree.map(np.copy, plain[1])
  blocks = params['encoder']['blocks']
  for norm in ('norm1', 'norm2'):
    blocks[norm]['scale'][:] = 0
  _, out = forward(tiny(post_norm=True), params, plain[2])
  added = blocks['norm1']['bias'] + blocks['norm2']['bias']  # (L, D)
  expected = out['embedded'] + added.sum(axis=0)[None, None]
  close(out['blocks'][-1], expected)


@pytest.mark.gpu
def test_a_class_token_without_position_is_one_whose_position_is_zero(plain):
  _, params, images, _, _ = plain
  zeroed = params | {
    'positions': np.concatenate([0 * params['positions'][:, :1], params['positions'][:, 1:]], 1)
  }
  without = params | {'positions': params['positions'][:, 1:]}
  expected, _ = forward(tiny(), zeroed, images)
  close(forward(tiny(cls_position=False), without, images)[0], expected)


@pytest.mark.gpu
def test_registers_stand_between_the_class_token_and_the_patches(plain):
  _, params, images, _, out = plain
  model = tiny(registers=2)
  more = params | {'registers': drawn(shapes(model))['registers']}
  embedded = forward(model, more, images)[1]['embedded']
  close(embedded[:, [0, *range(3, 9)]], out['embedded'])
  close(embedded[:, 1:3], np.broadcast_to(more['registers'], (3, 2, 16)))


@pytest.mark.gpu
def test_layer_scale_one_changes_nothing_and_zero_leaves_the_embedding(plain):
  _, params, images, logits, out = plain
  model, encoder = tiny(layer_scale=0.5), params['encoder']

  def scaled(value):
    scale = np.full((3, 16), value, np.float32)
    blocks = encoder['blocks'] | {'scale1': scale, 'scale2': scale}
    return forward(model, params | {'encoder': encoder | {'blocks': blocks}}, images)

  close(scaled(1.0)[0], logits)
  close(scaled(0.0)[1]['blocks'][-1], out['embedded'])


@pytest.mark.quick
def test_sincos2d_holds_sines_and_cosines_of_column_then_row():
  table = vit.sincos2d(2, 3, 16)
  omega = [10_000 ** (-i / 3) for i in range(4)]
  expected = [
    [f(at * w) for at in (x, y) for f in (np.sin, np.cos) for w in omega]
    for y in range(2)
    for x in range(3)
  ]
  np.testing.assert_allclose(table, expected, atol=1e-6)
  with pytest.raises(ValueError, match='18'):
    vit.sincos2d(2, 3, 18)


def test_sincos2d_is_finite_at_its_smallest_width():
  assert np.isfinite(vit.sincos2d(2, 3, 4)).all()


@pytest.mark.gpu
@pytest.mark.quick
def test_activations_have_their_published_values():
  at = {name: float(function(jnp.float32(-1))) for name, function in layers.ACTIVATIONS.items()}
  assert at['gelu_tanh'] == pytest.approx(-0.15880796, abs=1e-6)
  assert at['gelu_erf'] == pytest.approx(-0.15865527, abs=1e-6)
  assert at['quick_gelu'] == pytest.approx(-1 / (1 + np.exp(1.702)), abs=1e-6)


@pytest.mark.parametrize('field, value', [('epsilon', 1e-3), ('dtype', 'bfloat16')])
def test_norm_eps_and_dtype_reach_every_layer_norm(field, value):
  norms = []

  def look(call, args, kwargs, context):
    if isinstance(context.module, layers.LayerNorm) and context.method_name == '__call__':
      norms.append((context.module.name, getattr(context.module, field)))
    return call(*args, **kwargs)

  ours = {'epsilon': 'norm_eps'}.get(field, field)
  model = tiny(pool='map', pre_norm=True, qk_norm=True, **{ours: value})
  with nn.intercept_methods(look):
    shapes(model)
  assert {name for name, _ in norms} == {
    'pre_norm', 'norm1', 'norm2', 'query_norm', 'key_norm', 'norm'
  }  # fmt: skip
  assert {value_of for _, value_of in norms} == {value}


@pytest.mark.gpu
def test_bfloat16_computes_in_bfloat16_but_keeps_parameters_and_logits_in_float32(plain):
  _, params, images, logits, _ = plain
  model = tiny(dtype='bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype('float32')}
  half, out = forward(model, params, images, attention=True)
  assert half.dtype == out['attention'].dtype == jnp.float32
  assert {out[name].dtype for name in ('patches', 'embedded', 'blocks', 'encoded')} == {
    jnp.dtype('bfloat16')
  }
  # bfloat16 keeps 8 bits: 0.4 % of a logit of size 3, grown over three layers of two branches
  np.testing.assert_allclose(half, logits, atol=0.1)
  assert np.abs(half - logits).max() > 1e-4  # it was not float32 after all


# Dropout and stochastic depth


def draws(model, *, train=True):
  """Shapes of all that a forward pass draws at random; a layer's once."""
  images, key = pictures(), jax.random.key(0)

  def run(params):
    return model.apply({'params': params}, images, train=train, rngs={'dropout': key})[0]

  return sorted(
    tuple(equation.params['shape'])
    for equation, _ in equations(jax.make_jaxpr(run)(shapes(model)).jaxpr)
    if equation.primitive.name == 'random_bits'
  )


def equations(jaxpr, times=1):
  """(equation, how often it runs) of a jaxpr and of all that it calls."""
  for equation in jaxpr.eqns:
    yield equation, times
    inner = times * (equation.params['length'] if equation.primitive.name == 'scan' else 1)
    for value in equation.params.values():
      value = getattr(value, 'jaxpr', value)
      if hasattr(value, 'eqns'):
        yield from equations(value, inner)


def matmul_flops(model, params, images):
  """Twice the multiply-adds of every matmul in the program of a model's logits."""
  jaxpr = jax.make_jaxpr(lambda p: model.apply({'params': p}, images)[0])(params).jaxpr
  total = 0
  for equation, times in equations(jaxpr):
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      terms = int(np.prod([shape[axis] for axis in contracted]))
      total += times * 2 * terms * int(np.prod(equation.outvars[0].aval.shape))
  return total


TOKENS, HIDDEN, WEIGHTS, PATHS = (3, 7, 16), (3, 7, 24), (3, 2, 7, 7), (3, 1, 1)


@pytest.mark.quick
@pytest.mark.parametrize(
  'fields, drawn_shapes',
  [
    (dict(), []),
    # the embedding once; in a layer the attention's output, the MLP's hidden units and its output
    (dict(dropout=0.5), [TOKENS, TOKENS, TOKENS, HIDDEN]),
    (dict(attention_dropout=0.5), [WEIGHTS]),
    (dict(drop_path=0.5), [PATHS, PATHS]),
  ],
  ids=str,
)
def test_dropout_strikes_where_documented_and_not_on_queries_keys_or_values(fields, drawn_shapes):
  assert draws(tiny(**fields)) == sorted(drawn_shapes)


@pytest.mark.quick
def test_nothing_is_drawn_when_not_training():
  model = tiny(dropout=0.5, attention_dropout=0.5, drop_path=0.5)
  assert draws(model, train=False) == []


@pytest.mark.gpu
def test_equal_keys_drop_the_same_and_other_keys_do_not(plain):
  _, params, images, _, _ = plain
  key, other = (jax.random.key(seed, impl='rbg') for seed in (0, 1))
  model = tiny(dropout=0.5)
  first, again, different = (
    forward(model, params, images, k, train=True)[0] for k in (key, key, other)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.allclose(first, different)


@pytest.mark.gpu
def test_drop_path_rates_rise_linearly_from_zero_and_kept_branches_are_scaled():
  model, n = tiny(drop_path=0.5, pool='none', dropout=0.0), 2000
  params = drawn(shapes(model, (4, 4)))
  params['encoder']['blocks']['mlp']['down'] = jax.tree.map(
    np.zeros_like, params['encoder']['blocks']['mlp']['down']
  )  # leaves one branch in a layer
  images = np.repeat(pictures(1, (4, 4)), n, 0)
  _, out = forward(model, params, images, jax.random.key(5, impl='rbg'), train=True)
  block = vit.Block(**model.block_fields((2, 3), train=False, attention=False), drop_path=False)
  layer = jax.jit(lambda params, x: block.apply({'params': params}, x, 0.0, None)[0])
  x, all_dropped = out['embedded'], np.full(n, True)
  for i, rate in enumerate((0.0, 0.25, 0.5)):
    branch = np.asarray(layer(sliced(params, i), x)) - x
    added = out['blocks'][i] - x
    dropped = np.abs(added).max((1, 2)) == 0
    # four standard deviations of a share of n
    assert dropped.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / n))
    close(added[~dropped], branch[~dropped] / (1 - rate))
    x, all_dropped = out['blocks'][i], dropped if i < 2 else all_dropped & dropped
  # layers draw by themselves: both of the last two are dropped with rate 0.25 * 0.5
  assert all_dropped.mean() == pytest.approx(0.125, abs=4 * np.sqrt(0.125 * 0.875 / n))


# Initialisation and FLOPs


@pytest.fixture(scope='module')
def initial():
  model = vit_jax.build('ViT-Ti/16', depth=2, unroll=1, head_bias=-10.0, pool='token')
  images = jnp.zeros((1, 224, 224, 3))
  return flat(jax.jit(model.init)(jax.random.key(0), images)['params'])


@pytest.mark.gpu
@pytest.mark.parametrize(
  'name, bound',
  [(f'attention/{side}', 0.125) for side in ('query', 'key', 'value', 'out')]
  + [('mlp/up', 0.0790569), ('mlp/down', 0.0790569)],
)
def test_kernels_start_xavier_uniform_over_their_matrices(initial, name, bound):
  kernel = np.asarray(initial[f'{BLOCKS}{name}/kernel'])
  assert np.abs(kernel).max() <= bound
  # uniform: the deviation of 36,864 numbers or more is known to 0.3 %
  assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
  assert not np.allclose(kernel[0], kernel[1])  # layers differ


@pytest.mark.gpu
def test_embedding_positions_biases_norms_and_head_start_as_published(initial):
  stat = {name: np.asarray(leaf) for name, leaf in initial.items()}
  # 37,824 numbers or more: deviations are known to 0.4 %; 3,072 MLP biases to 1.5 %
  assert stat['embed/kernel'].std() == pytest.approx(768**-0.5, rel=0.02)
  assert np.abs(stat['embed/kernel']).max() <= 2 / 0.87962566 * 768**-0.5 + 1e-6  # truncated
  assert stat['positions'].std() == pytest.approx(0.02, rel=0.02)
  assert np.abs(stat['positions']).max() > 3 * 0.02  # not truncated
  for side in ('up', 'down'):
    assert stat[f'{BLOCKS}mlp/{side}/bias'].std() == pytest.approx(1e-6, rel=0.1)
  assert (stat['head/bias'] == -10).all()
  ones = [name for name in stat if name.endswith('scale')]
  assert all((stat[name] == 1).all() for name in ones)
  zeros = ['cls', 'embed/bias', 'head/kernel']
  zeros += [name for name in stat if re.search(r'(attention/\w+|norm\d?)/bias', name)]
  assert len(zeros) == 3 + 4 + 3
  assert {name for name in zeros if stat[name].any()} == set()


@pytest.mark.quick
@pytest.mark.parametrize(
  'name, size, gflop, digits',
  [
    ('ViT-Ti/16', 224, 2.51, 2),
    ('ViT-Ti/16', 384, 9.36, 2),
    ('ViT-S/16', 224, 9.20, 2),
    ('ViT-S/16', 384, 30.98, 2),
    ('ViT-B/32', 224, 8.82, 2),
    ('ViT-B/16', 224, 35.13, 2),
    ('ViT-B/16', 384, 110.97, 2),
    ('ViT-L/16', 224, 123.11, 2),
    ('ViT-L/16', 384, 382.13, 2),
    ('ViT-L/14', 224, 162.03, 2),
    ('ViT-So400m/14', 224, 219.9, 1),
    ('ViT-H/14', 224, 334.6, 1),
    ('ViT-H/14', 518, 2033, 0),
    ('ViT-g/14', 224, 534.1, 1),
    ('ViT-G/14', 224, 967.5, 1),
  ],
)
def test_flops_are_those_of_the_table(name, size, gflop, digits):
  assert round(vit_jax.build(name).flops(size, size) / 1e9, digits) == gflop


@pytest.mark.parametrize(
  'fields',
  [
    dict(),
    dict(pool='gap', swiglu=True),
    dict(pool='map', registers=3),
    dict(pool='none', representation=7),
    dict(num_classes=0, patch=(4, 2)),
  ],
  ids=str,
)
def test_flops_are_twice_the_multiply_adds_of_every_matmul_in_the_program(fields):
  model, images = tiny(**fields), pictures(1)
  assert model.flops(8, 12) == matmul_flops(model, shapes(model), images)
