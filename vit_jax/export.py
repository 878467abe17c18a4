"""A model for others to run or read: `vit export`, `write`, and `load` for a StableHLO program.

N images, K classes, F pre-logits.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import flax.traverse_util
import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from vit_jax import __version__, bundle, convert, files, models
from vit_jax.convert import weights, writing
from vit_jax.convert.preprocess import describe_steps
from vit_jax.models import resnet
from vit_jax.text import nearest, one_line, quantity, to_stdout
from vit_jax.views import card

FORMAT = 1
JAX2ONNX = '0.17.1'  # the version that is tested
SUFFIXES = {'stablehlo': '.stablehlo', 'onnx': '.onnx', 'npz': '.npz', 'timm': '', 'hf': ''}
PROGRAMS = ('stablehlo', 'onnx')  # which run by themselves; the others are parameters
PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM = 'program'  # its name among the arrays of a StableHLO file
LARGEST = 2**31 - 2**24  # bytes of parameters in an ONNX file: protobuf holds less than 2 GiB
SCORES, FEATURES = 'scores', 'features'  # the output of a program, by its name
PLAIN: dict[str, Any] = dict(zip(models.COMPUTE, ('float32', 1, 'none', 'xla')))  # in programs
NEAR = {'stablehlo': 0.0, 'onnx': 1e-5}  # from `apply` on a CPU, in probability
NEAR_ODDS = 1e-4  # of the largest log-odds: where all probabilities are small, NEAR sees nothing
NEAR_FEATURES = {'stablehlo': 0.0, 'onnx': 1e-4}  # of the largest feature
MIN, MAX = 1e-30, 0.999  # probabilities outside have log-odds that float32 does not resolve
BATCHES = (1, 3)  # images that a program is checked with

Function = Callable[[models.Tree, jax.Array], jax.Array]


# ---- written ----


def write(
  path: str | os.PathLike[str], source: bundle.Bundle, *, to: str = '', check: bool = True
) -> list[str]:
  """Writes a model for others to run or read: whole, and only if the check holds, or not at all.

  'stablehlo' and 'onnx' are programs with the parameters inside: uint8 images (N, height, width, C)
  go in, float32 probabilities (N, K) come out, or features (N, F) of a model without classes, for
  any N; a JSON file beside them, `beside`, has class names, preprocessing and versions. 'timm',
  'hf' and 'npz' are `convert.write`'s; a folder gets the card of `source`, or a new one that tells
  of no training and no results.

  Args:
    path: of a new file or folder.
    source: a bundle or a run.
    to: one of SUFFIXES; '' goes by the suffix of the path.
    check: read what was written in a new process, on a CPU, and compare it with `apply`.

  Returns:
    Lines to tell the user: `source.defects`, what readers will do otherwise, and last the result
    of the check.

  Raises:
    ValueError: one line for an unknown target, a wrong suffix, a path that exists, fields of
      `source` that do not fit its model, an ONNX file beyond 2 GiB, what ONNX or a dialect cannot
      say, or a check that fails, as of parameters that are not finite.
    OSError: if it cannot be written.
  """
  path = pathlib.Path(path)
  to = target(path, to)
  check_path(path, to)
  bundle.check(source.model, source.preprocess, source.classes)
  if check and source.not_finite:
    raise ValueError(f'{source.not_finite}, so that no check succeeds: --no-check writes it')
  if to == 'onnx':
    check_onnx(source)
  with files.staging(path) as new:
    lines = source.defects + WRITERS[to](new, source)
    if new.is_dir():
      (new / bundle.CARD).write_text(source.card or card.text(source), encoding='utf-8')
    if check:
      lines.append(check_written(new, source, to))
  return [line.replace(str(new), str(path)) for line in lines]


def target(path: pathlib.Path, to: str) -> str:
  """The one of SUFFIXES that is asked for, or that the path tells."""
  if to and to not in SUFFIXES:
    raise ValueError(f'unknown target {to!r}{nearest(to, list(SUFFIXES))}')
  matches = [name for name, suffix in SUFFIXES.items() if suffix and suffix == path.suffix]
  if not to and not matches:
    raise ValueError(f'{path}: its suffix tells no target; give one of {", ".join(SUFFIXES)}')
  return to or matches[0]


def check_path(path: pathlib.Path, to: str) -> None:
  """Raises ValueError if a target is not written to such a path, or something is there."""
  if to not in PROGRAMS:
    writing.suffix(path, to)
  elif path.suffix != SUFFIXES[to]:
    raise ValueError(f'{path}: {to} is written to a file that ends in {SUFFIXES[to]}')
  for file in (path, beside(path)) if to in PROGRAMS else (path,):
    if os.path.lexists(file):
      raise ValueError(f'{file} exists already; remove it, or give another path')


def check_onnx(source: bundle.Bundle) -> None:
  """Raises ValueError for a model that is too large for an ONNX file."""
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(source.params))
  if size > LARGEST:
    raise ValueError(
      f'{source.name} has {size / 2**30:.1f} GiB of parameters; an ONNX file holds less than 2 GiB'
    )


def beside(path: pathlib.Path) -> pathlib.Path:
  """The JSON file that says what a program is: 'flowers.onnx.json'."""
  return path.with_name(f'{path.name}.json')


def describe(path: pathlib.Path, source: bundle.Bundle, to: str) -> None:
  """Writes what a program is beside it."""
  preprocess = source.preprocess
  description = {
    'format': FORMAT,
    'kind': to,
    'vit_jax': __version__,
    'jax': jax.__version__,
    'model': source.name,
    'input': {'name': 'images', 'dtype': 'uint8', 'shape': ['batch', *preprocess.shape]},
    'output': {'name': output_name(source), 'dtype': 'float32', 'shape': output_shape(source)},
    'scores': source.scores if source.classes else '',
    'classes': list(source.classes),
    'preprocess': {
      'before': preprocess.steps,  # of an image file, by the caller
      'described': describe_steps(preprocess),  # the same for others than vit_jax
      'inside': {'mean': list(preprocess.mean), 'std': list(preprocess.std)},
    },
    'sha256': digest(path),
  }
  files.write_json(beside(path), description)


def digest(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def output_name(source: bundle.Bundle) -> str:
  """What a program of a model gives: SCORES, or FEATURES without classes."""
  return SCORES if source.classes else FEATURES


def output_shape(source: bundle.Bundle) -> list[str | int]:
  """['batch', K] of scores, ['batch', F] of features; of each patch with their number between."""
  images = jax.ShapeDtypeStruct((2, *source.preprocess.shape), jnp.uint8)
  shape = jax.eval_shape(make_apply(source), source.params, images).shape
  return ['batch', *shape[1:]]


def make_apply(
  source: bundle.Bundle, *, sigmoid: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid
) -> Function:
  """(params, uint8 images) -> float32 scores, as `Run.apply` gives them, or its pre-logits.

  It computes in float32, wherever the model was trained, and so takes no kernel of one device.
  `sigmoid` is by which logits become scores, where the model's are a sigmoid.
  """
  fields = models.fields(source.model)
  model = source.model.clone(**{k: v for k, v in PLAIN.items() if k in fields})
  to_scores = {'softmax': jax.nn.softmax, 'sigmoid': sigmoid}[source.scores]
  mean, std = source.preprocess.mean, source.preprocess.std

  def scores(params: models.Tree, images: jax.Array) -> jax.Array:
    logits, _ = bundle.forward(model, params, images, mean=mean, std=std)
    return to_scores(logits)

  def features(params: models.Tree, images: jax.Array) -> jax.Array:
    _, out = bundle.forward(model, params, images, mean=mean, std=std)
    return out['pre_logits'].astype(jnp.float32)

  return scores if source.classes else features


def written_sigmoid(logits: jax.Array) -> jax.Array:
  """The sigmoid by its definition: onnxruntime's own is 0.6 % off at -12, and 0 at -18."""
  return 1 / (1 + jnp.exp(-logits))


def any_batch(source: bundle.Bundle) -> jax.ShapeDtypeStruct:
  """uint8 images of the model's size, of which a batch has any number."""
  batch, *_ = jax.export.symbolic_shape('batch')
  return jax.ShapeDtypeStruct((batch, *source.preprocess.shape), jnp.uint8)


def write_stablehlo(path: pathlib.Path, source: bundle.Bundle) -> list[str]:
  """An .npz file: 'program', bytes for `jax.export.deserialize`, and its first argument's arrays.

  The program is (parameters by name, images) -> scores, with a loop over the layers, and the same
  for all PLATFORMS: what is checked on a CPU is what the others run. Parameters are arguments, and
  so not in the program but beside it, because XLA folds constants: it would give other bits than
  `apply`, compile several times as long, and hold them once for each size of batch.
  """
  apply = make_apply(source)

  def program(named: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    return apply(flax.traverse_util.unflatten_dict(named, sep='/'), images)

  flat = models.flat(jax.device_get(source.params))
  params = {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}
  with without_locations():
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(params, any_batch(source))
  code = np.frombuffer(exported.serialize(), np.uint8)
  weights.write_npz(path, {PROGRAM: code, **params})
  describe(path, source, 'stablehlo')
  return []


@contextlib.contextmanager
def without_locations() -> Iterator[None]:
  """Keeps the paths of the source files of this machine out of what is lowered."""
  option = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, option)
  jax.config.update(option, 0)
  try:
    yield
  finally:
    jax.config.update(option, before)


def write_onnx(path: pathlib.Path, source: bundle.Bundle) -> list[str]:
  """An ONNX model, by jax2onnx: 'images' in, `output_name` out, the layers one after another."""
  if isinstance(source.model, resnet.ResNet) or getattr(source.model, 'stem', None) is not None:
    raise ValueError(f'jax2onnx does not convert the pooling of {source.name}: BiT and hybrids')
  to_onnx = converter()
  params, apply = jax.device_get(source.params), make_apply(source, sigmoid=written_sigmoid)
  images = any_batch(source)
  # Traced here: without jit the layers come one after another in the file, and not as the body of
  # an ONNX Loop, which graph optimisers do not look into.
  with jax.disable_jit():
    traced = jax.make_jaxpr(lambda images: apply(params, images))(images)
  program = jax.extend.core.jaxpr_as_fun(traced)
  try:
    model = to_onnx(
      lambda images: program(images)[0],
      [images],
      model_name=source.name,
      input_names=['images'],
      output_names=[output_name(source)],
    )
    data = model.SerializeToString()
  except Exception as error:  # of whatever kind a library raises over an operation
    reason = first_words(error)
    raise ValueError(f'jax2onnx does not convert {source.name} ({reason})') from None
  path.write_bytes(data)
  describe(path, source, 'onnx')
  return []


def first_words(error: BaseException) -> str:
  """What a library raised, in one line that is not too long for a message."""
  return one_line(f'{type(error).__name__}: {error}')[:200]


def converter() -> Callable[..., Any]:
  """jax2onnx's function; ValueError where it, or onnxruntime, is not installed."""
  for name in ('onnx_ir', 'jax2onnx'):  # which warn of shapes they infer, and of what is not here
    logging.getLogger(name).setLevel(logging.ERROR)
  try:
    import onnxruntime  # noqa: F401
    from jax2onnx import to_onnx
  except ImportError as error:
    raise ValueError(
      f"--to onnx needs {error.name}: pip install 'vit_jax[onnx]' and "
      f'pip install --no-deps jax2onnx=={JAX2ONNX}'
    ) from None
  return to_onnx


WRITERS: dict[str, Callable[[pathlib.Path, bundle.Bundle], list[str]]] = {
  'stablehlo': write_stablehlo,
  'onnx': write_onnx,
  **{to: functools.partial(convert.write, to=to) for to in SUFFIXES if to not in PROGRAMS},
}


# ---- checked ----


def check_written(path: pathlib.Path, source: bundle.Bundle, to: str) -> str:
  """What a new process on a CPU says of a file that it compares with the model; ValueError if they
  differ, or it did not come to an end.
  """
  code = 'import sys; from vit_jax import export; sys.exit(export.compare(*sys.argv[1:]))'
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    model = os.path.join(folder, 'model')
    bundle.write(model, source)
    ended = subprocess.run(
      [sys.executable, '-c', code, to, str(path), model],
      env=environment(),
      capture_output=True,
      text=True,
    )
  lines = (ended.stdout if ended.returncode in (0, 3) else ended.stderr).strip().splitlines()
  last = one_line(lines[-1]) if lines else 'it said nothing'
  if ended.returncode == 0:
    return last
  why = last if ended.returncode == 3 else f'code {ended.returncode}, {last}'
  raise ValueError(f'the check failed, so nothing was written: {why}')


def environment() -> dict[str, str]:
  """The environment of the process that checks: a CPU, and this library wherever it was found."""
  here = str(pathlib.Path(__file__).parents[1])
  paths = [here, *filter(None, [os.environ.get('PYTHONPATH')])]
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(paths)}


def compare(to: str, path: str, folder: str) -> int:
  """Prints how far a file is from the bundle in a folder: 0 if it is near enough, else 3."""
  source = bundle.read(folder)
  compared = compare_program if to in PROGRAMS else compare_parameters
  line, fine = compared(to, path, source)
  to_stdout(line)
  return 0 if fine else 3


def compare_program(to: str, path: str, source: bundle.Bundle) -> tuple[str, bool]:
  """How far what a program gives is from `apply` on random images, and if near enough."""
  run, apply = OPENERS[to](pathlib.Path(path)), jax.jit(make_apply(source))
  compared = differences if source.classes else feature_differences
  batches = []
  for count in BATCHES:
    shape = (count, *source.preprocess.shape)
    images = np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)
    batches.append(compared(run(images), np.asarray(apply(source.params, images))))
  apart = [max(column) for column in zip(*batches)]
  if source.classes:
    line = f'differs by {apart[0]:.2g} from apply, in log-odds by {apart[1]:.2g} of the largest'
    bounds = [(NEAR[to], 'in probability'), (NEAR_ODDS, 'in log-odds')]
  else:
    line = f'differs by {apart[0]:.2g} of the largest feature from apply'
    bounds = [(NEAR_FEATURES[to], 'of the largest feature')]
  excess = [
    f', more than {bound:g} {unit}'
    for difference, (bound, unit) in zip(apart, bounds, strict=True)
    if difference > bound
  ]
  line = f'{to}: {line}, in batches of {" and ".join(map(str, BATCHES))} on a CPU'
  return line + ''.join(excess), not excess


def feature_differences(theirs: np.ndarray, ours: np.ndarray) -> tuple[float]:
  """The largest difference in units of the largest feature; infinite as `differences` are."""
  if not are_comparable(theirs, ours):
    return (float('inf'),)
  largest = max(float(np.abs(ours).max()), float(np.finfo(np.float32).tiny))
  return (float(np.abs(theirs - ours).max()) / largest,)


def are_comparable(theirs: np.ndarray, ours: np.ndarray) -> bool:
  """Whether both are finite and of one shape."""
  return theirs.shape == ours.shape and bool(np.isfinite(theirs).all() and np.isfinite(ours).all())


def differences(theirs: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
  """The largest difference of probabilities, and of log-odds in units of the largest, at least 1.

  Log-odds are logits again: of a sigmoid exactly, of a softmax up to what all classes share where
  they are small. Of thousands of classes each probability may be below any absolute bound. Both
  are infinite if a score is not finite, or the shapes differ.
  """
  if not are_comparable(theirs, ours):
    return float('inf'), float('inf')
  odds = log_odds(ours)
  apart = np.abs(log_odds(theirs) - odds).max() / max(1.0, np.abs(odds).max())
  return float(np.abs(theirs - ours).max()), float(apart)


def log_odds(scores: np.ndarray) -> np.ndarray:
  """log(p / (1 - p)) in float64, of p from MIN to MAX."""
  p = np.clip(scores.astype(np.float64), MIN, MAX)
  return np.log(p) - np.log1p(-p)


def compare_parameters(to: str, path: str, source: bundle.Bundle) -> tuple[str, bool]:
  """`parity.compare` of what was written; and of a folder, whether it says the same of pixels."""
  from vit_jax.evaluate import parity

  line, fine = parity.compare(source, {'written': (path, to)})
  if not pathlib.Path(path).is_dir():
    return line, fine
  ours, theirs = source.preprocess, bundle.read(path, native=True).preprocess
  pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in ('mean', 'std')}
  wrong = [
    f'; {name} is {list(written)} there, not {list(expected)}'
    for name, (expected, written) in pairs.items()
    if not np.allclose(expected, written, rtol=1e-6, atol=0)
  ]
  return line + ''.join(wrong), fine and not wrong


def open_onnx(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """An ONNX file as a function, by onnxruntime on the CPU."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
  return lambda images: session.run(None, {'images': images})[0]


# ---- read ----


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
  """A StableHLO program: `program(images)` gives the scores, or the features.

  Fields:
    classes: the name of each label; () where it gives features.
    size: (height, width) of the images that it takes.
    preprocess: what an image file goes through before, a line of `vit_jax.images.transforms`.
    scores: 'softmax', fractions of one, or 'sigmoid', where an image may be of several classes; ''
      where it gives features.
    model: the name of its architecture.
    platforms: on which it runs.
    channels: of its images, 3 for RGB.
    call: the function on uint8 arrays of the device, jitted; it holds the parameters.
  """

  classes: tuple[str, ...]
  size: tuple[int, int]
  preprocess: str
  scores: str
  model: str
  platforms: tuple[str, ...]
  channels: int
  call: Callable[[np.ndarray], jax.Array]

  def __repr__(self) -> str:
    shape = ', '.join(map(str, (*self.size, self.channels)))
    result = quantity(len(self.classes), 'class') if self.classes else FEATURES
    signature = f'uint8 (N, {shape}) -> float32, {result}'
    return f'Program({self.model}, {signature}, {" ".join(self.platforms)})'

  def __call__(self, images: np.typing.ArrayLike) -> np.ndarray:
    """uint8 (N, height, width, channels) -> float32 (N, K) probabilities, or (N, F) features.

    Raises:
      ValueError: for images of another shape or type.
    """
    images = np.asarray(images)
    wanted = (*self.size, self.channels)
    if images.dtype != np.uint8 or images.shape[1:] != wanted or not len(images):
      raise ValueError(
        f'images are uint8 (N, {", ".join(map(str, wanted))}), not {images.dtype} {images.shape}'
      )
    return np.asarray(self.call(images))


def load(path: str | os.PathLike[str]) -> Program:
  """A StableHLO file that `write` wrote, with the JSON file beside it, as a function.

  Needs nothing of this library; docs/export.md does it in four lines with jax and numpy alone.

  Raises:
    FileNotFoundError: if one of the two files is not there.
    ValueError: one line, if they do not belong together, or this jax does not read the program.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path}: there is no such file')
  if not beside(path).is_file():
    raise FileNotFoundError(f'{path} is no exported program: {beside(path).name} is not beside it')
  description = files.read_object(beside(path))
  if description.get('kind') == 'onnx':
    raise ValueError(f'{path} is an ONNX file: onnxruntime opens it')
  if description.get('kind') != 'stablehlo' or description.get('format') != FORMAT:
    raise ValueError(f'{beside(path)} does not describe a StableHLO program of format {FORMAT}')
  if description.get('sha256') != digest(path):
    raise ValueError(f'{path} is damaged: it is not the file that {beside(path)} describes')
  try:
    params = weights.read_npz(path)
    exported = jax.export.deserialize(bytearray(params.pop(PROGRAM)))
    program = Program(
      classes=tuple(map(str, description['classes'])),
      size=tuple(description['input']['shape'][1:3]),
      preprocess=description['preprocess']['before'],
      scores=description['scores'],
      model=description['model'],
      platforms=tuple(exported.platforms),
      channels=description['input']['shape'][3],
      call=functools.partial(jax.jit(exported.call), jax.device_put(params)),
    )
    images, outputs = exported.in_avals[-1].shape[1:], exported.out_avals[0].shape[-1]
    described = len(program.classes) or description['output']['shape'][-1]
    if images != (*program.size, program.channels) or outputs != described:
      raise ValueError(f'{beside(path).name} describes other images or classes')
    return program
  except Exception as error:  # of whatever kind: jax says by several that it is too old
    versions = one_line(f'made by jax {description.get("jax")}, read by {jax.__version__}')
    raise ValueError(f'{path} cannot be read ({versions}): {first_words(error)}') from None


OPENERS: dict[str, Callable[[pathlib.Path], Callable[[np.ndarray], np.ndarray]]] = {
  'stablehlo': load,
  'onnx': open_onnx,
}
