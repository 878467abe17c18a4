"""Laws of `vit plan`: programs are read as they are written, and arithmetic is right."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tests.conftest import flat
from vit_jax import __main__ as vit
from vit_jax import compilers, config, metrics, plan, sharding
from vit_jax.commands import plan as plan_command
from vit_jax.compilers import blank, cuda, formulas, kernels, program, search, worker
from vit_jax.compilers.forecast import Estimates, Forecast, Formulas, Memory, from_json
from vit_jax.models import layers
from vit_jax.models.attention import has_cudnn
from vit_jax.tasks import abstract_batch

ROOT = pathlib.Path(__file__).parents[1]
TINY = ['model.depth=1', 'model.width=16', 'model.heads=2', 'model.mlp_dim=32', 'batch_size=16']
REQUEST = {'config': 'digits', 'overrides': TINY, 'classes': None, 'formulas': False}


def planned(name, *fields, chips='v5e:4x2', classes=None):
  """A config's plan for such chips, in whose place CPU devices stand."""
  settings, parsed = config.load(name, fields), compilers.parse(chips)
  devices = jax.devices()[: parsed.devices]
  return blank.plan_without_data(settings, devices, chips=parsed, classes=classes)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5f:2x2', "unknown chip 'v5f'; did you mean v5p or v5e?"),
    ('v5p:2x2', "chips 'v5p:2x2' of topology '2x2': v5p wants 3 sides, v5p:2x2x1"),
    ('h100', "chips 'h100' of topology '': h100 wants how many, h100:8"),
    ('v5e:3x4', "chips 'v5e:3x4' are no whole hosts of v5e:2x2; the nearest are v5e:4x4"),
    ('h100:12', "chips 'h100:12' are no whole hosts of h100:8; the nearest are h100:16"),
    ('h100:0', "chips 'h100:0': 0 of them, must be 1 to 8,192"),
  ],
)
def test_chips_that_cannot_be_are_refused_in_a_line(name, message, capsys):
  assert vit.main(['plan', '--config=digits', f'--chips={name}']) == 2
  assert capsys.readouterr().err == f'vit plan: {message}\n'


def test_a_config_that_cannot_be_is_refused_in_a_line_and_nothing_is_written(
  capsys, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert vit.main(['plan', '--config=digits', '--chips=cpu:8', '--batch-size=12']) == 2
  assert capsys.readouterr().err == (
    'vit plan: a batch of 12 does not divide by the 8 devices that share it (data=8 x fsdp=1)\n'
  )
  assert not list(tmp_path.iterdir())


def test_devices_are_the_cores_of_all_chips():
  counts = {
    name: compilers.parse(name).devices for name in ('v5e:1x1', 'v3:2x2', 'v4:2x2x3', 'H100:3')
  }
  assert counts == {'v5e:1x1': 1, 'v3:2x2': 8, 'v4:2x2x3': 12, 'H100:3': 3}


def test_a_gpu_gives_a_program_as_much_memory_as_jax_takes_of_it(monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  assert compilers.parse('h100:8').limit == 0.75 * 84_929_347_584
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.9')
  assert compilers.parse('h100:8').limit == 0.9 * 84_929_347_584
  assert compilers.parse('v5e:2x2').limit == 15.75 * 2**30


def test_peaks_are_those_of_the_metrics():
  kinds = {
    'v3': 'TPU v3',
    'v5e': 'TPU v5 lite',
    'v5p': 'TPU v5',
    'v6e': 'TPU v6 lite',
    'tpu7x': 'TPU7x',
  }
  kinds |= {'a100': 'A100', 'h100': 'H100', 'h200': 'H200'}
  for chip, kind in kinds.items():
    assert compilers.CHIPS[chip].peak == metrics.PEAK_FLOPS[kind], chip


def test_the_process_that_asks_imports_no_jax():
  code = "import sys, vit_jax.commands.plan; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


# programs

HLO = """
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %sum = f32[8,4]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  %work = f32[8,4]{1,0} fusion(%sum), calls=%fused, backend_config={"estimated_cycles":"10"}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %work)
}
%less (p: (s32[], f32[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3), backend_config={}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}
%cheap (q: f32[8]) -> f32[8] {
  ROOT %c = f32[8]{0} copy(%q), backend_config={"estimated_cycles":"1"}
}
%dear (q: f32[8]) -> f32[8] {
  %moved = f32[4,8]{0,1:T(8,128)} copy(%q), backend_config={"estimated_cycles":"500"}
  %ahead = f32[4,8]{0,1:T(8,128)S(1)} copy(%q)
  ROOT %k = (f32[8]{0}, s32[]) custom-call(%q), custom_call_target="tpu_custom_call", operand_layout_constraints={f32[8]{0}, bf16[2,4]{1,0}}, backend_config={"custom_call_config":{"body":"x"},"flag_configs":[]}
}
ENTRY %main (a: f32[8,4]) -> f32[8] {
  %loop = (s32[], f32[8,4]{1,0}) while(%init), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %gather = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%h), replica_groups=[2,4]<=[8]
  %all-reduce-scatter.1 = f32[2,4]{1,0} fusion(%g), calls=%scatter, replica_groups=mesh['a'=2,'b'=4] {'b'}
  ROOT %out = f32[8]{0} conditional(%i, %a, %b), branch_computations={%cheap, %dear}
}
"""  # noqa: E501


TRIPS = ', backend_config={"known_trip_count":{"n":"3"}}'


@pytest.mark.parametrize('text', [HLO, HLO.replace(TRIPS, '')], ids=['stated', 'by its bound'])
def test_cycles_are_those_of_loops_by_trips_and_of_the_dearest_branch(text):
  assert program.cycles(program.read(text)) == 3 * 10 + 500


def test_a_kernel_is_read_with_the_types_of_its_arrays_and_counted():
  kernel = program.Kernel(
    operands=(('f32', (8,)), ('bf16', (2, 4))),
    results=(('f32', (8,)), ('s32', ())),
    config='{"custom_call_config": {"body": "x"}}',
  )
  assert program.kernels(program.read(HLO)) == {kernel: 1}


def test_cycles_of_a_kernel_are_its_instructions_times_the_steps_of_its_grid():
  text = """
     0   :  { %10 = vsyncpa [#allocation3], 0 }
   0x1 LB: > { %s1 = sadd.s32 1, %s0 }
   0x2   : > { %19458 = dma.hbm_to_vmem [thread:$0] /*hbm=*/%s2
iteration_bounds: (128, 3)
strides: (1, 25, 6) */ }
  0x1a   :  {}
"""
  assert kernels.cycles(text) == 3 * 128 * 3
  assert kernels.cycles(text.replace('iteration', '')) == 3
  window = 'The window shape is {}, while the full shape is {}.\n'
  windows = [('bf16[1,197,128]', 'bf16[64,197,384]'), ('f32[1,1,6]', 'f32[64,1,6]')]
  arrays = ''.join(window.format(*shapes) for shapes in windows)
  assert kernels.cycles(text.replace('iteration', '') + arrays) == 3 * 64 * 3


def test_a_copy_counts_where_it_has_the_sides_of_a_parameter_and_stays_in_memory():
  assert program.copies(program.read(HLO), [('f32', (8, 4))]) == (1, 128)
  assert program.copies(program.read(HLO), [('f32', (8, 5)), ('bf16', (8, 4))]) == (0, 0)


def test_collectives_are_read_in_every_form_of_groups_and_sizes():
  assert program.collectives(program.read(HLO), 8) == [
    program.Collective('all-reduce', 2, 128, 3),
    program.Collective('all-gather', 4, 64, 1),
    program.Collective('reduce-scatter', 4, 128, 1),
  ]


def test_a_collective_that_is_begun_and_ended_apart_counts_once():
  text = """
%begin (p: bf16[2,4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8]
}
%carry (p: bf16[2,4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8]
}
%whole (p: f32[8]) -> f32[8] {
  %r = f32[8]{0} all-reduce(%p), channel_id=8, replica_groups=[1,8]<=[8]
}
ENTRY %main (a: f32[8,4]) -> f32[8] {
  %async-collective-start.1 = bf16[8,4]{1,0} fusion(%p), calls=%begin
  %fusion.2 = bf16[8,4]{1,0} fusion(%p), calls=%carry
  %async-collective-done.1 = bf16[8,4]{1,0} fusion(%p), calls=%carry
  %fusion.3 = f32[8]{0} fusion(%p), calls=%whole
  %scatter = ((f32[8,4]{1,0}), f32[2,4]{1,0}) reduce-scatter-start(%g), channel_id=9, replica_groups=[2,4]<=[8]
}
"""  # noqa: E501
  assert program.collectives(program.read(text), 8) == [
    program.Collective('all-gather', 4, 64, 1),
    program.Collective('all-reduce', 8, 32, 1),
    program.Collective('reduce-scatter', 4, 128, 1),
  ]


def test_what_a_compiled_program_sends_is_what_its_rings_send():
  mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P('a', 'b'), out_specs=P('a', 'b'))
  def exchange(x):  # (4, 6)
    x = jax.lax.fori_loop(0, 3, lambda _, y: y * jax.lax.psum(y, 'b'), x)
    whole = jax.lax.all_gather(x, 'b', axis=1, tiled=True)  # (4, 24)
    return jax.lax.psum_scatter(whole, 'b', scatter_dimension=1, tiled=True)

  x = jax.ShapeDtypeStruct((8, 24), jnp.float32)
  text = program.read(jax.jit(exchange).lower(x).compile().as_text())
  sent = program.by_operation(program.collectives(text, 8))
  assert sent['all-reduce'] == (3, 3 * 2 * 3 / 4 * 4 * 6 * 4)
  assert sent['all-gather'] == (1, 3 / 4 * 4 * 24 * 4)
  assert sent['reduce-scatter'] == (1, 3 / 4 * 4 * 24 * 4)


@pytest.fixture(scope='module')
def digits():
  """A tiny step on the digits, planned and compiled for eight CPU devices."""
  chips = compilers.parse('cpu:8')
  ready, _ = planned('digits', *TINY, chips='cpu:8')
  arguments = worker.abstract_arguments(ready)
  lowered = worker.train.updater(ready).lower(*arguments)
  return ready, arguments, worker.compile_now(chips, ready, arguments, lowered)


def test_a_step_over_data_sends_its_gradient_once(digits):
  ready, (state, *_), estimates = digits
  assert set(estimates.collectives) == {'all-reduce'}
  ideal = formulas.sent(ready, state.params)
  assert ideal == 2 * 7 / 8 * 4 * metrics.parameters(state.params)
  assert ideal <= estimates.sent <= 1.01 * ideal


def test_the_arguments_of_a_step_take_what_arithmetic_says(digits):
  ready, (state, batch, fixed), estimates = digits
  memory = formulas.memory(ready, state, batch, fixed, platform='cpu')
  results = estimates.total - estimates.temporary
  assert memory.state + memory.batch <= results <= memory.state + memory.batch + 4096
  assert estimates.fits and estimates.cycles is None


# arithmetic

B16 = 86_567_656  # parameters of B/16 with 1,000 classes
FIELDS = (
  'model.name=B/16',
  'model.pool=token',
  'model.dtype=bfloat16',
  'batch_size=256',
  'optimizer.momentum_dtype=float32',
  'ema=0.9',
)


def test_memory_is_that_of_the_state_and_of_what_layers_leave():
  ready, _ = planned('default', *FIELDS)
  memory = formulas.memory(ready, *worker.abstract_arguments(ready), platform='tpu')
  assert memory.parameters == memory.average == memory.gradients == 4 * B16
  assert 0 <= memory.optimizer - 2 * memory.parameters < 64  # and counts of steps
  assert memory.batch == 32 * (224 * 224 * 3 + 4 + 4)
  assert memory.activations == 32 * 12 * int(1.15 * 197 * (6 * 768 + 3072) * 2)


def test_what_is_recomputed_is_chosen_by_the_chips_that_a_plan_is_for():
  models = [
    planned('default', *FIELDS, f'batch_size={512 * 8}', chips=chips)[0].task.model
    for chips in ('v5p:2x2x2', 'v5e:4x2', 'h100:8')
  ]
  assert [model.remat for model in models] == ['none', 'full', 'lean']
  assert [model.unroll for model in models] == [None, 1, 1]


@pytest.mark.parametrize(
  ('fields', 'remat', 'unroll'),
  [
    ((), 'lean', 1),
    (('model.unroll=2',), 'lean', 2),
    (('model.unroll=4',), 'none', 4),
    (('freeze.layers=1',), 'none', 4),
    (('model.remat=none',), 'none', None),
  ],
)
def test_on_a_cpu_layers_are_a_lean_loop_unless_they_are_unrolled(fields, remat, unroll):
  settings = config.load('digits', (*TINY, 'model.depth=4', *fields))
  model = plan.make_model(settings, 10)
  assert (model.remat, model.unroll) == (remat, unroll)


def test_the_parts_of_all_devices_are_the_state():
  whole, _ = planned('digits', *TINY, chips='cpu:1')
  split, _ = planned('digits', *TINY, 'system.fsdp=4', 'system.tensor=2', chips='cpu:8')
  single, parts = (worker.abstract_arguments(ready)[0].params for ready in (whole, split))
  for name, leaf in flat(parts).items():
    copies = 8
    for axis in filter(None, leaf.sharding.spec):
      copies //= split.mesh.shape[axis]
    assert 8 * formulas.held(leaf) == copies * formulas.held(flat(single)[name]), name


def test_fsdp_gathers_twice_in_the_type_of_the_computation_and_scatters_once():
  mesh = sharding.make_mesh(2, 4, 1)
  split = jax.sharding.NamedSharding(mesh, P('fsdp', None))
  leaf = jax.ShapeDtypeStruct((8, 10), jnp.float32, sharding=split)
  gathered, scattered, summed = 2 * 3 / 4 * 160, 3 / 4 * 320, 2 * 1 / 2 * 80
  assert formulas.sent_of(leaf, mesh, 2) == gathered + scattered + summed


# configs

RECIPES = {'vit_s16_i1k': 1000, 'pretrain:B/16,imagenet21k': 21_843, 'digits': 10}


@pytest.mark.parametrize(('name', 'classes'), RECIPES.items())
def test_a_config_is_planned_without_its_data(name, classes):
  ready, notes = planned(name)
  assert ready.task.init is not None and not notes
  assert ready.state_shapes.params['head']['kernel'].shape[-1] == classes


def test_classes_that_no_name_tells_are_assumed_aloud():
  ready, notes = planned('vit_s16_i1k', 'data.source=folder:photos')
  assert notes == ['the classes of folder:photos are not counted: 1,000, or --classes']
  ready, notes = planned('vit_s16_i1k', 'data.source=folder:photos', classes=7)
  assert not notes and len(ready.splits['train'].classes) == 7
  ready, notes = planned('vit_s16_i1k', 'data.source=images:photos', 'task=mae')
  assert not notes and not ready.splits['train'].classes  # it reads no labels


def test_a_checkpoint_to_start_from_is_not_read():
  ready, notes = planned('finetune:B_16,cifar10')
  assert notes == ['ViT-B_16 is not read: a ViT-B/16 starts as new']
  assert ready.config.model.name == 'ViT-B/16'


def test_the_plan_without_data_has_the_state_of_the_plan_with_it():
  settings = config.load('digits', TINY)
  real = plan.make_plan(settings)
  other, _ = planned('digits', *TINY, chips='cpu:8')
  assert jax.tree.map(jnp.shape, real.state_shapes) == jax.tree.map(jnp.shape, other.state_shapes)
  columns = [ready.task.columns for ready in (real, other)]
  assert len({str(abstract_batch(each, 16)) for each in columns}) == 1


# what fits

MEMORY = Memory(
  parameters=100, optimizer=200, average=0, fixed=0, gradients=100, batch=0, activations=None
)


def forecast(needs=None, **fields):
  """Of 64 images on each of four devices, whose memory is 1,000 bytes: 40 for each image."""
  values = dict(
    chips='v5e:2x2', devices=4, model='', classes=1, parameters=25, batch_size=256,
    device_images=64, accumulate=1, remat='none', mesh={'data': 4, 'fsdp': 1, 'tensor': 1},
    limit=1000.0, notes=(), missing='', compiler='', formulas=Formulas(MEMORY, 0, None, 0.0),
    program=Estimates(fits=False, temporary=2560.0, compile_seconds=0.0),
  )  # fmt: skip
  return Forecast(**(values | fields))


def compile_with(fields):
  """A compiler that needs 40 bytes for an image of a micro-batch, or 15 with remat='full'."""
  images = fields.get('batch_size', 256) / 4 / fields.get('accumulate', 1)
  size = images * (15 if fields.get('model.remat') == 'full' else 40)
  size += 100 * ('accumulate' in fields)
  fits = 300 + size <= 1000
  return forecast(program=Estimates(fits=fits, temporary=size, compile_seconds=0.0))


def test_where_a_step_does_not_fit_one_change_of_each_kind_that_fits_is_tried():
  tried = list(search.search(forecast(), compile_with, 9))
  changes = [(dict(result.change), result.fits) for result in tried]
  assert changes == [
    ({'accumulate': 8}, True),
    ({'model.remat': 'lean', 'model.unroll': 1}, False),
    ({'model.remat': 'dots', 'model.unroll': 1}, False),
    ({'model.remat': 'full', 'model.unroll': 1}, False),
    ({'batch_size': 64}, True),
  ]


def test_a_change_that_a_task_refuses_is_passed_over():
  def refusing(fields):
    if 'accumulate' in fields:
      raise ValueError('accumulate is 8, must be 1')
    return compile_with(fields)

  changes = [dict(result.change) for result in search.search(forecast(), refusing, 9)]
  assert {'batch_size': 64} in changes and not any('accumulate' in each for each in changes)


def test_compilations_are_no_more_than_the_tries():
  assert len(list(search.search(forecast(), compile_with, 2))) == 2
  assert not list(search.search(forecast(), compile_with, -1))


def test_activations_that_are_not_counted_are_not_said_to_fit():
  assert plan_command.verdict(forecast(program=None)).startswith('not known: ')
  counted = Formulas(dataclasses.replace(MEMORY, activations=1), 0, None, 0.0)
  assert plan_command.verdict(forecast(program=None, formulas=counted)).startswith('fits: ')


def test_a_batch_of_no_image_is_refused_as_it_is():
  with pytest.raises(ValueError, match='batch_size'):
    search.plan_for('digits', 'cpu:1', batch_size=0, formulas=True)


def test_a_compiler_that_is_killed_is_said_to_be(monkeypatch):
  killed = subprocess.CompletedProcess([], -9, stdout='', stderr='no cuda drivers')
  monkeypatch.setattr(search.subprocess, 'run', lambda *args, **options: killed)
  with pytest.raises(RuntimeError, match='killed by signal 9'):
    search.plan_for('digits', 'cpu:1')


def test_a_state_that_alone_is_too_large_is_split():
  large = dataclasses.replace(MEMORY, parameters=400, optimizer=800)
  first = forecast(
    formulas=Formulas(large, 0, None, 0.0),
    program=Estimates(fits=False, temporary=500.0, compile_seconds=0.0),
  )
  assert list(search.accumulations(first)) == list(search.batches(first)) == []
  assert list(search.splits(first)) == [{'system.data': 1, 'system.fsdp': 4}]


def test_the_policies_are_those_of_the_layers():
  assert set(search.POLICIES) == set(layers.REMAT)


# the worker


def test_a_forecast_is_the_same_as_json():
  first = forecast(tried=(compile_with({'accumulate': 8}),))
  assert from_json(json.loads(json.dumps(dataclasses.asdict(first)))) == first


def test_the_same_program_is_compiled_once(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  request = {**REQUEST, 'chips': 'cpu:1'}
  first, second = (worker.respond(request)['program'] for _ in range(2))
  assert not first['cached'] and second['cached']
  assert {**first, 'cached': True, 'collectives': {}} == {**second, 'collectives': {}}


def installed(package):
  return importlib.util.find_spec(package) is not None


@pytest.mark.skipif(installed('libtpu'), reason='libtpu is installed')
def test_without_its_compiler_a_plan_is_arithmetic_that_says_so():
  answer = worker.respond({**REQUEST, 'chips': 'v5e:2x2'})
  assert answer['missing'] == "libtpu is not installed: pip install 'vit_jax[plan-tpu]'"
  assert answer['program'] is None and answer['formulas']['memory']['parameters'] > 0


@pytest.mark.parametrize(
  ('error', 'gib'),
  [
    ('the total memory required for HLO temporaries (25.5G) exceeds available HBM (15.75G).', 25.5),
    ('Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm. Exceeded', 20.0),
    ('Mosaic failed to compile TPU kernel', None),
  ],
)
def test_a_compilers_want_of_memory_is_what_a_program_takes(error, gib):
  mesh = sharding.make_mesh(8, 1, 1)
  split = jax.sharding.NamedSharding(mesh, P('data'))
  argument = jax.ShapeDtypeStruct((8, 2**28), jnp.uint8, sharding=split)  # 0.25 GiB of a device
  size = worker.temporary_bytes(f'RESOURCE_EXHAUSTED: {error}', argument)
  assert size == (None if gib is None else gib * 2**30)


def test_arithmetic_alone_is_had_for_the_asking_and_no_device_is_touched(capsys, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')  # of which there is none: JAX would fail
  fields = [f'--config.{field}' for field in TINY]
  assert vit.main(['plan', '--config=digits', '--chips=v5e:2x2', '--formulas', *fields]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[2:4] == ['not compiled, as asked', 'by formulas alone:']
  assert 'fits: ' in lines[4] and ' of 15.75 GiB a device, ' in lines[4]


def test_a_compiler_of_another_version_is_refused_with_the_wanted_one(tmp_path, monkeypatch):
  folder = tmp_path / 'libtpu-0.0.1.dist-info'
  folder.mkdir()
  (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: libtpu\nVersion: 0.0.1\n')
  monkeypatch.syspath_prepend(tmp_path)
  message = worker.wanting('plan-tpu', ('libtpu',))
  assert message.startswith(f'libtpu is 0.0.1, jax {jax.__version__} wants ==0.0.')
  assert "pip install 'libtpu==0.0." in message


@pytest.mark.parametrize(
  ('chips', 'package'),
  [('v5e:2x2', 'libtpu'), ('h100:8', 'jax_cuda12_plugin')],
)
def test_a_tiny_step_is_compiled_for_chips_that_are_not_here(chips, package):
  if not installed(package):
    pytest.skip(f'{package} is not installed')
  result = search.plan_for('digits', chips, overrides=TINY, batch_size=32)
  assert result.fits and result.batch_size == 32 and result.needed == result.program.total
  assert (result.program.seconds is not None) == (chips == 'v5e:2x2')
  assert (worker.XLA_ATTENTION in result.notes) == (chips == 'h100:8' and not has_cudnn())
  kernels_counted = bool(result.program.kernels and result.program.kernel_cycles)
  assert kernels_counted == (chips == 'v5e:2x2')


def test_the_target_of_a_gpu_has_its_memory_and_capability():
  text = cuda.target('h100')
  assert 'device_memory_size: 84929347584' in text
  assert 'cuda_compute_capability { major: 9 minor: 0 }' in text
  assert 'shared_memory_per_block_optin: 232448' in text
  kinds = {kind for kind, chip in compilers.CHIPS.items() if chip.platform == 'cuda'}
  assert set(cuda.GPUS) == kinds
  assert {gpu.capability for gpu in cuda.GPUS.values()} <= set(cuda.CAPABILITIES)


# docs/scaling.md

PLANS = ROOT / 'benchmarks/results/plan.json'


@pytest.mark.parametrize(('name', 'fields'), json.loads(PLANS.read_text())['rows'].items())
def test_the_page_has_what_compilers_said(name, fields):
  result = from_json({key: value for key, value in fields.items() if key != 'provenance'})
  page = (ROOT / 'docs/scaling.md').read_text().splitlines()
  (line,) = [line for line in page if line.startswith(f'| `{name}` |')]
  assert f' {result.needed / 2**30:.2f}' in line and ('does not fit' in line) != result.fits
  assert ('by formulas' in line) == (result.program is None)
  rate = result.program and result.program.images_per_second
  assert rate is None or f'| {rate:,.0f}, ' in line
