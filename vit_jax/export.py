"""Models that leave: `vit export`, `write`, and `load` for a StableHLO program.

N images, K classes.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from vit_jax import bundle, card, convert, models, objective
from vit_jax.convert import files, translate
from vit_jax.models import resnet, vit
from vit_jax.version import __version__

FORMAT = 1
SUFFIXES = {'stablehlo': '.stablehlo', 'onnx': '.onnx', 'npz': '.npz', 'timm': '', 'hf': ''}
PROGRAMS = ('stablehlo', 'onnx')  # which run by themselves; the others are parameters
PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM = 'program'  # its name among the arrays of a StableHLO file
LARGEST = 2**31 - 2**24  # bytes of parameters in an ONNX file: protobuf holds less than 2 GiB
NEAR = {'stablehlo': 0.0, 'onnx': 1e-5}  # from `apply` on a CPU, in probability
BATCHES = (1, 3)  # images that a program is checked with

Function = Callable[[Any, Any], jax.Array]


# ---- written ----


def write(
  path: str | os.PathLike[str],
  source: bundle.Bundle,
  *,
  to: str = '',
  check: bool = True,
  readme: str = '',
) -> list[str]:
  """Writes a model for others to run or read: whole, and only if the check holds, or not at all.

  'stablehlo' and 'onnx' are programs with the parameters inside: uint8 images (N, height, width, 3)
  go in, float32 probabilities (N, K) come out, for any N; a JSON file beside them, `beside`, has
  class names, preprocessing and versions. 'timm', 'hf' and 'npz' are `convert.write`'s.

  Args:
    path: of a new file or folder.
    source: a bundle or a run.
    to: one of SUFFIXES; '' is told by the suffix of the path.
    check: read what was written in a new process, on a CPU, and compare it with `apply`.
    readme: text for README.md, where a folder is written; '' is `card.text`'s.

  Returns:
    Lines to tell the user: what readers will do otherwise, and last the result of the check.

  Raises:
    ValueError: one line for an unknown target, a wrong suffix, a path that exists, a program of a
      model without a head, an ONNX file beyond 2 GiB, what ONNX or a dialect cannot say, or a check
      that fails.
    OSError: if it cannot be written.
  """
  path = pathlib.Path(path)
  to = target(path, to)
  check_path(path, to)
  if to in PROGRAMS:
    check_program(source, to)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix='.vit-', dir=path.parent, ignore_cleanup_errors=True
  ) as hold:
    new = pathlib.Path(hold, 'new', path.name)
    new.parent.mkdir()
    try:
      told = WRITERS[to](new, source)
      if new.is_dir():
        (new / 'README.md').write_text(readme or card.text(source))
      if check:
        told.append(checked(new, source, to))
      publish(new.parent, path.parent)
    except OSError as error:
      raise OSError(error.errno, error.strerror or str(error), str(path)) from None
  return [line.replace(str(new), str(path)) for line in told]


def target(path: pathlib.Path, to: str) -> str:
  """The one of SUFFIXES that is asked for, or that the path tells.

  Raises:
    ValueError: if there is none, or it is unknown.
  """
  if to and to not in SUFFIXES:
    raise ValueError(f'unknown target {to!r}{models.nearest(to, list(SUFFIXES))}')
  told = [name for name, suffix in SUFFIXES.items() if suffix and suffix == path.suffix]
  if not to and not told:
    raise ValueError(f'{path}: its suffix tells no target; give one of {", ".join(SUFFIXES)}')
  return to or told[0]


def check_path(path: pathlib.Path, to: str) -> None:
  """Raises ValueError if a target is not written to such a path, or something is there."""
  if to not in PROGRAMS:
    translate.suffix(path, to)
  elif path.suffix != SUFFIXES[to]:
    raise ValueError(f'{path}: {to} is written to a file that ends in {SUFFIXES[to]}')
  for there in (path, beside(path)) if to in PROGRAMS else (path,):
    if os.path.lexists(there):
      raise ValueError(f'{there} exists already')


def check_program(source: bundle.Bundle, to: str) -> None:
  """Raises ValueError for a model of which no program can be written."""
  if not source.classes:
    raise ValueError(
      f'{source.name} has no head here, so that it gives no probabilities; '
      '--to timm, hf or npz writes its parameters'
    )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(source.params))
  if to == 'onnx' and size > LARGEST:
    raise ValueError(
      f'{source.name} has {size / 2**30:.1f} GiB of parameters; an ONNX file holds less than 2 GiB'
    )


def publish(new: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves what is in `new` to a folder, all or nothing; JSON first, as it tells of the rest."""
  moved: list[pathlib.Path] = []
  try:
    for name in sorted(os.listdir(new), key=lambda name: not name.endswith('.json')):
      os.rename(new / name, folder / name)
      moved.append(folder / name)
  except BaseException:
    for path in moved:
      with contextlib.suppress(OSError):
        path.unlink()
    raise


def beside(path: pathlib.Path) -> pathlib.Path:
  """The JSON file that tells what a program is: 'flowers.onnx.json'."""
  return path.with_name(f'{path.name}.json')


def describe(path: pathlib.Path, source: bundle.Bundle, to: str) -> None:
  """Writes what a program is beside it."""
  preprocess, size = source.preprocess, list(source.preprocess.size)
  told = {
    'format': FORMAT,
    'kind': to,
    'vit_jax': __version__,
    'jax': jax.__version__,
    'model': source.name,
    'input': {'name': 'images', 'dtype': 'uint8', 'shape': ['batch', *size, 3]},
    'output': {'name': 'scores', 'dtype': 'float32', 'shape': output_shape(source)},
    'scores': source.scores,
    'classes': list(source.classes),
    'preprocess': {
      'before': preprocess.steps,  # of an image file, by the caller
      'inside': {'mean': list(preprocess.mean), 'std': list(preprocess.std)},
    },
    'sha256': digest(path),
  }
  beside(path).write_text(json.dumps(told, indent=1))


def digest(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def output_shape(source: bundle.Bundle) -> list[Any]:
  """Of the scores: ['batch', K], or ['batch', patches, K] where every patch is classified."""
  images = jax.ShapeDtypeStruct((2, *source.preprocess.size, 3), jnp.uint8)
  shape = jax.eval_shape(scored(source, unroll=1), source.params, images).shape
  return ['batch', *shape[1:]]


def scored(source: bundle.Bundle, *, unroll: int) -> Function:
  """(params, uint8 images) -> float32 scores: what `apply` gives for normalised images.

  It computes in float32, wherever the model was trained, and so takes no kernel of one device.

  Args:
    source: whose parameters are not used.
    unroll: layers per iteration of the compiled loop, where the model has one.
  """
  loop: dict[str, Any] = {'unroll': unroll} if hasattr(source.model, 'unroll') else {}
  model = source.model.clone(dtype='float32', **loop)

  def scores(params: Any, images: Any) -> jax.Array:
    normalized = objective.normalize(images, source.preprocess.mean, source.preprocess.std)
    logits, _ = model.apply({'params': params}, normalized)
    return getattr(jax.nn, source.scores)(logits)

  return scores


def straight(source: bundle.Bundle) -> Function:
  """`scored` without a loop over the layers, up to `vit.UNROLL_UP_TO` of them."""
  depth = getattr(source.model, 'depth', 1)
  return scored(source, unroll=depth if depth <= vit.UNROLL_UP_TO else 1)


def batches_of(source: bundle.Bundle) -> jax.ShapeDtypeStruct:
  """Images of the model's size, as many as there are."""
  batch, *_ = jax.export.symbolic_shape('batch')
  return jax.ShapeDtypeStruct((batch, *source.preprocess.size, 3), jnp.uint8)


def write_stablehlo(path: pathlib.Path, source: bundle.Bundle) -> list[str]:
  """An .npz file: 'program', bytes for `jax.export.deserialize`, and its first argument's arrays.

  The program is (parameters by name, images) -> scores; the layers are a loop on a CPU, and one
  after another elsewhere. As arguments, parameters are in memory once for batches of all sizes.
  """

  def program(named: dict[str, Any], images: Any) -> jax.Array:
    params = flax.traverse_util.unflatten_dict(named, sep='/')
    return jax.lax.platform_dependent(
      params, images, cpu=scored(source, unroll=1), default=straight(source)
    )

  held = {name: np.asarray(leaf) for name, leaf in models.flat(source.params).items()}
  with without_locations():
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(held, batches_of(source))
  code = np.frombuffer(exported.serialize(), np.uint8)
  files.write_npz(path, {PROGRAM: code, **held})
  describe(path, source, 'stablehlo')
  return []


@contextlib.contextmanager
def without_locations() -> Iterator[None]:
  """Keeps the paths of the source files of this machine out of what is lowered."""
  option = 'jax_traceback_in_locations_limit'
  before = jax.config.values[option]
  jax.config.update(option, 0)
  try:
    yield
  finally:
    jax.config.update(option, before)


def write_onnx(path: pathlib.Path, source: bundle.Bundle) -> list[str]:
  """An ONNX model, by jax2onnx: 'images' in, 'scores' out, the layers one after another.

  Raises:
    ValueError: if the libraries are not here, or cannot say what the model computes.
  """
  if isinstance(source.model, resnet.ResNet) or getattr(source.model, 'stem', None) is not None:
    raise ValueError(f'jax2onnx does not convert the pooling of {source.name}: BiT and hybrids')
  to_onnx = converter()
  held, apply = jax.device_get(source.params), straight(source)
  images = batches_of(source)
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)  # it warns of every shape that it infers
  with jax.disable_jit():  # in which a scan is a loop in Python
    traced = jax.make_jaxpr(lambda images: apply(held, images))(images)
  # Its operations by themselves: jax2onnx's stand-ins for functions do not fit flax's scan.
  program = jax.extend.core.jaxpr_as_fun(traced)
  try:
    model = to_onnx(
      lambda images: program(images)[0],
      [images],
      model_name=source.name,
      input_names=['images'],
      output_names=['scores'],
    )
    data = model.SerializeToString()
  except Exception as error:  # of whatever kind a library raises over an operation
    what = files.one_line(f'{type(error).__name__}: {error}')[:200]
    raise ValueError(f'jax2onnx does not convert {source.name} ({what})') from None
  path.write_bytes(data)
  describe(path, source, 'onnx')
  return []


def converter() -> Callable[..., Any]:
  """jax2onnx's function; ValueError where it, or onnxruntime, is not installed."""
  try:
    import onnxruntime  # noqa: F401
    from jax2onnx import to_onnx
  except ImportError as error:
    raise ValueError(
      f"--to onnx needs {error.name}: pip install 'vit_jax[onnx]' and "
      'pip install --no-deps jax2onnx'
    ) from None
  return to_onnx


def writer_of(to: str) -> Callable[[pathlib.Path, bundle.Bundle], list[str]]:
  """Writes the parameters in a dialect of `convert`."""
  return lambda path, source: convert.write(path, source, to=to)


WRITERS: dict[str, Callable[[pathlib.Path, bundle.Bundle], list[str]]] = {
  'stablehlo': write_stablehlo,
  'onnx': write_onnx,
  **{to: writer_of(to) for to in SUFFIXES if to not in PROGRAMS},
}


# ---- checked ----


def checked(path: pathlib.Path, source: bundle.Bundle, to: str) -> str:
  """What a new process on a CPU finds when it compares a file with the model.

  Raises:
    ValueError: one line, if they differ, or it did not come to an end.
  """
  folder = path.parents[1] / 'model'  # where what is not to stay is held
  bundle.write(folder, plain(source))
  code = 'import sys; from vit_jax import export; sys.exit(export.compare(*sys.argv[1:]))'
  ended = subprocess.run(
    [sys.executable, '-c', code, to, str(path), str(folder)],
    env=environment(),
    capture_output=True,
    text=True,
  )
  told = (ended.stdout if ended.returncode in (0, 3) else ended.stderr).strip().splitlines()
  last = files.one_line(told[-1]) if told else 'it said nothing'
  if ended.returncode == 0:
    return last
  why = last if ended.returncode == 3 else f'code {ended.returncode}, {last}'
  raise ValueError(f'the check failed, so nothing was written: {why}')


def plain(source: bundle.Bundle) -> bundle.Bundle:
  """A run as a bundle on the host."""
  values = {field.name: getattr(source, field.name) for field in dataclasses.fields(bundle.Bundle)}
  return bundle.Bundle(**values | {'params': jax.device_get(source.params)})


def environment() -> dict[str, str]:
  """Of the process that checks: a CPU, and this library wherever it was found."""
  here = str(pathlib.Path(__file__).parents[1])
  paths = [here, *filter(None, [os.environ.get('PYTHONPATH')])]
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(paths)}


def compare(to: str, path: str, folder: str) -> int:
  """Prints how far a file is from the bundle in a folder: 0 if it is near enough, else 3."""
  source = bundle.read(folder)
  if to in PROGRAMS:
    found = max(difference(to, pathlib.Path(path), source, count) for count in BATCHES)
    fine = found <= NEAR[to]
    bound = '' if fine else f', more than {NEAR[to]:g}'
    counts = ' and '.join(map(str, BATCHES))
    print(f'{to}: differs by {found:.2g} from apply, in batches of {counts} on a CPU{bound}')
  else:
    from vit_jax import parity

    line, fine = parity.compare(source, {'written': (path, to)})
    print(line)
  return 0 if fine else 3


def difference(to: str, path: pathlib.Path, source: bundle.Bundle, count: int) -> float:
  """The largest between the scores of a program and of `apply`, on so many random images."""
  shape = (count, *source.preprocess.size, 3)
  images = np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)
  apart = np.abs(
    OPENERS[to](path)(images) - jax.jit(scored(source, unroll=1))(source.params, images)
  )
  return float(apart.max()) if np.isfinite(apart).all() else float('inf')


def open_onnx(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """An ONNX file as a function, by onnxruntime on the CPU."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
  return lambda images: session.run(['scores'], {'images': images})[0]


# ---- read ----


@dataclasses.dataclass(frozen=True)
class Program:
  """A StableHLO program: `program(images)` gives the scores.

  Fields:
    classes: the name of each label.
    size: (height, width) of the images that it takes.
    preprocess: what an image file goes through before, a line of `vit_jax.data.transforms`.
    scores: 'softmax', shares of one, or 'sigmoid', where an image may be of several classes.
    model: the name of its architecture.
    platforms: on which it runs.
    call: the function on uint8 arrays of the device, jitted; it holds the parameters.
  """

  classes: tuple[str, ...]
  size: tuple[int, int]
  preprocess: str
  scores: str
  model: str
  platforms: tuple[str, ...]
  call: Callable[[Any], jax.Array]

  def __call__(self, images: Any) -> np.ndarray:
    """uint8 (N, height, width, 3) RGB -> float32 (N, K) probabilities.

    Raises:
      ValueError: for images of another shape or type.
    """
    images = np.asarray(images)
    wanted = (*self.size, 3)
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
  for file in (path, beside(path)):
    if not file.is_file():
      raise FileNotFoundError(f'{file}: there is no such file')
  told = files.read_object(beside(path))
  if told.get('kind') != 'stablehlo' or told.get('format') != FORMAT:
    raise ValueError(f'{beside(path)} does not tell of a StableHLO program of format {FORMAT}')
  if told.get('sha256') != digest(path):
    raise ValueError(f'{path} is damaged: it is not the file that {beside(path)} tells of')
  try:
    with np.load(path) as arrays:
      params = {name: arrays[name] for name in arrays.files}
    exported = jax.export.deserialize(bytearray(params.pop(PROGRAM)))
    return Program(
      classes=tuple(told['classes']),
      size=tuple(told['input']['shape'][1:3]),
      preprocess=told['preprocess']['before'],
      scores=told['scores'],
      model=told['model'],
      platforms=tuple(exported.platforms),
      call=functools.partial(jax.jit(exported.call), jax.device_put(params)),
    )
  except Exception as error:  # of whatever kind: jax says by several that it is too old
    what = files.one_line(f'{type(error).__name__}: {error}')[:200]
    made = f'made by jax {told.get("jax")}, read by {jax.__version__}'
    raise ValueError(f'{path} cannot be read ({made}): {what}') from None


OPENERS: dict[str, Callable[[pathlib.Path], Callable[[np.ndarray], np.ndarray]]] = {
  'stablehlo': load,
  'onnx': open_onnx,
}


# ---- vit export ----


def main(argv: Sequence[str]) -> int:
  """`vit export`: 0 if it was written, 2 if not, with one line that says why."""
  flags = parser().parse_args(argv)
  try:
    if not flags.out and not flags.to:
      raise ValueError(f'give --to: {", ".join(SUFFIXES)}')
    to = target(pathlib.Path(flags.out), flags.to)
    path = pathlib.Path(flags.out or default_path(flags.run, to))
    check_path(path, to)
    source = bundle.read(flags.run, native=to not in PROGRAMS)
    readme = card.of_run(flags.run, source)
    told = write(path, source, to=to, check=flags.check, readme=readme)
  except (ValueError, OSError) as error:
    print(f'vit export: {files.one_line(error)}', file=sys.stderr)
    return 2
  found = told.pop() if flags.check else ''
  for line in told:
    print(f'vit export: {line}', file=sys.stderr)
  size = 'x'.join(map(str, source.preprocess.size))
  print(f'{path}: {source.name}, {size} pixels, {len(source.classes)} classes')
  if found:
    print(found)
  return 0


def default_path(run: str, to: str) -> pathlib.Path:
  """Where a model is written if nothing says it: in the run's folder, else where we are."""
  suffix = SUFFIXES[to] or f'-{to}'
  if os.path.isdir(run):
    return pathlib.Path(run, f'model{suffix}')
  return pathlib.Path(f'{pathlib.PurePosixPath(run).stem}{suffix}')


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    prog='vit export', description='Writes a model for others to run: see docs/export.md.'
  )
  flags.add_argument('run', help="a run's folder, a bundle, or a published checkpoint")
  flags.add_argument('--to', default='', help=f'{", ".join(SUFFIXES)}; default: by the suffix')
  flags.add_argument('--out', default='', help='a new file or folder; default: in the run')
  flags.add_argument(
    '--check',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='compare it in a new process with the model; on by default',
  )
  return flags
