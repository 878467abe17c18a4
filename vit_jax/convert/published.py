"""Published checkpoints: by path, URL or name, fetched once; and the index of AugReg's files.

AugReg is How to train your ViT (Steiner et al., arXiv 2106.10270): over 50,000 ViTs and hybrids,
pre-trained on ImageNet or ImageNet-21k with all kinds of augmentation and regularisation.
"""

import contextlib
import csv
import dataclasses
import hashlib
import http.client
import math
import pathlib
import re
import urllib.error
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax import files, models, text
from vit_jax.convert import download
from vit_jax.sources import presets
from vit_jax.text import nearest, redacted

GOOGLE = 'https://storage.googleapis.com/'
AUGREG = 'gs://vit_models/augreg'
INDEX = f'{AUGREG}/index.csv'
SUFFIXES = ('.npz', '.safetensors', '.pth', '.pt', '.bin')


# One checkpoint


def local(name: str, folder: str = '') -> pathlib.Path:
  """Where a checkpoint is on this machine; it is fetched if it is not there yet.

  Args:
    name: a path; a URL, https://... or gs://BUCKET/...; or a name to look for in `folder`, with
      '.npz' added if need be. Without a folder, a name of AugReg's as `augreg` takes it.
    folder: a path or URL.

  Raises:
    FileNotFoundError: if it is not there, or cannot be fetched.
    ValueError: if it is empty, or a URL of another kind.
  """
  if not name:
    raise ValueError('no checkpoint is named')
  if '://' in name:
    return fetched(name)
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return path
  file = name if name.endswith(SUFFIXES) else f'{name}.npz'
  if '://' in folder:
    return fetched(f'{folder.rstrip("/")}/{file}')
  candidates = [pathlib.Path(folder).expanduser() / candidate for candidate in (name, file)]
  for candidate in candidates:
    if candidate.exists():
      return candidate
  if not folder:
    with contextlib.suppress(ValueError):
      return fetched(f'{AUGREG}/{augreg(name)}.npz')
  looked = ' nor '.join(dict.fromkeys(map(str, candidates)))
  raise FileNotFoundError(
    f'there is no checkpoint {looked}: give a path or URL, or the folder or URL that has it in '
    'pretrained_dir'
  )


def fetched(url: str) -> pathlib.Path:
  """The file of a URL in `cache()`, where it is put when it is first asked for."""
  address = web_address(url)
  parts = urllib.parse.urlsplit(address)
  host = parts.netloc.rpartition('@')[2].replace(':', '_')
  names = [part for part in parts.path.split('/') if part not in ('', '.', '..')]
  if not host or not names or address.endswith('/'):
    raise ValueError(f'{redacted(url)} names no file')
  if parts.query:  # which may be a signature
    names.insert(-1, hashlib.sha256(parts.query.encode()).hexdigest()[:16])
  file = cache().joinpath(host, *names)
  if not file.is_file():
    fetch(address, file)
  return file


def web_address(url: str) -> str:
  """A URL as http or https: gs://BUCKET/FILE is a public file of Google's storage."""
  scheme, _, address = url.partition('://')
  if scheme == 'gs':
    return GOOGLE + urllib.parse.quote(address, safe='/+')
  if scheme not in ('http', 'https'):
    raise ValueError(
      f'{redacted(url)} is neither a path nor a URL of the kind https://... or gs://...'
    )
  return url


def cache() -> pathlib.Path:
  """The folder that fetched files are kept in."""
  return pathlib.Path(files.cache_folder('checkpoints'))


def fetch(address: str, file: pathlib.Path) -> None:
  """Gets what is at an address, whole or not at all: else FileNotFoundError."""
  shown = redacted(address)
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with download.request(address) as answer, files.replacing(file) as out:
      download.copy(answer, out, file.name, download.published_digest(address, answer.headers))
  except urllib.error.HTTPError as error:
    with error:
      if error.code in (404, 410):
        raise FileNotFoundError(f'there is no {shown} ({error.code} {error.reason})') from None
      raise unfetched(shown, f'{error.code} {error.reason}') from None
  except (OSError, http.client.HTTPException, EOFError, ValueError) as error:
    raise unfetched(shown, getattr(error, 'reason', '') or error) from None


def unfetched(address: str, reason: object) -> FileNotFoundError:
  """An error of one line that says what to do."""
  why = redacted(' '.join(str(reason or type(reason).__name__).split()))
  return FileNotFoundError(
    f'{address} cannot be fetched ({why}): try again, or fetch it elsewhere, for example by curl '
    f'-O, and give its path'
  )


# AugReg


@dataclasses.dataclass(frozen=True)
class Recommended:
  """The file that its authors recommend for a model, and what came of it on ImageNet.

  Fields:
    file: pre-trained on ImageNet-21k, without '.npz'.
    learning_rate, image_size: at which it was fine-tuned, for 20,000 steps.
    accuracy: on ImageNet's validation images, in percent.
  """

  file: str
  learning_rate: float
  image_size: int
  accuracy: float


RECOMMENDED = {  # of vision_transformer's README; B_8 of its notebook
  model: Recommended(f'{model}-i21k-300ep-lr_0.001-{training}', learning_rate, size, accuracy)
  for model, training, learning_rate, size, accuracy in (
    ('L_16', 'aug_strong1-wd_0.1-do_0.0-sd_0.0', 0.01, 384, 85.59),
    ('B_16', 'aug_medium1-wd_0.1-do_0.0-sd_0.0', 0.03, 384, 85.49),
    ('S_16', 'aug_light1-wd_0.03-do_0.0-sd_0.0', 0.03, 384, 83.73),
    ('R50_L_32', 'aug_medium1-wd_0.1-do_0.1-sd_0.1', 0.01, 384, 85.99),
    ('R26_S_32', 'aug_light1-wd_0.1-do_0.0-sd_0.0', 0.01, 384, 83.85),
    ('Ti_16', 'aug_none-wd_0.03-do_0.0-sd_0.0', 0.03, 384, 78.22),
    ('B_32', 'aug_light1-wd_0.1-do_0.0-sd_0.0', 0.01, 384, 83.59),
    ('S_32', 'aug_none-wd_0.1-do_0.0-sd_0.0', 0.01, 384, 79.58),
    ('R_Ti_16', 'aug_none-wd_0.03-do_0.0-sd_0.0', 0.03, 384, 75.40),
    ('B_8', 'aug_medium2-wd_0.1-do_0.0-sd_0.0', 0.03, 224, 85.578),
  )
}
FILE = re.compile(r'(?P<model>\w+)-(i1k|i21k)-\d+ep-lr_[^/]+')


def augreg(name: str) -> str:
  """The file, without '.npz', that a name of AugReg's means.

  Args:
    name: of a file, with '.npz' or not, fine-tuned or not; or of a model in any spelling, 'R_Ti_16'
      or 'R+ViT-Ti/16', for its recommended file.

  Raises:
    ValueError: if there is none.
  """
  bare = name.removesuffix('.npz')
  if match := FILE.fullmatch(bare):
    models.canonical(match['model'])  # raises if it is none
    return bare
  short = short_name(bare)
  if short not in RECOMMENDED:
    raise ValueError(f'AugReg recommends no file of {short}, but of {", ".join(RECOMMENDED)}')
  return RECOMMENDED[short].file


def short_name(model: str) -> str:
  """A model's name as AugReg writes it: 'R_Ti_16' for 'R+ViT-Ti/16'."""
  return models.canonical(model).replace('ViT-', '').replace('/', '_').replace('+', '_')


# Its index

Row = dict[str, str]


def read_index(path: pathlib.Path) -> list[Row]:
  """The rows of an index in CSV, one for each fine-tuning, as texts by column."""
  try:
    with path.open(newline='', encoding='utf-8', errors='replace') as file:
      rows = [
        {key: value or '' for key, value in row.items() if key} for row in csv.DictReader(file)
      ]
  except csv.Error as error:
    raise ValueError(f'{path} is no table in CSV: {error}') from None
  if not rows or 'filename' not in rows[0]:
    actual = repr(', '.join(rows[0])[:80]) if rows else 'no rows'
    raise ValueError(f'{path} is no index of files: it has {actual}, and no column filename')
  return rows


def matches(rows: Sequence[Row], model: str, adapt: str = '') -> list[dict[str, Any]]:
  """What an index has of a model, best first.

  Args:
    rows: of `read_index`.
    model: in any spelling.
    adapt: a data set: the files that were fine-tuned on it, by accuracy on its validation images;
      after them those that have test images only, by these. '' takes every pre-trained file once,
      by accuracy on its own validation images.

  Raises:
    ValueError: for an unknown model or data set, or one that the index lacks.
  """
  short = short_name(model)
  candidates = [row for row in rows if row['filename'].partition('-')[0] == short]
  if not candidates:
    names = sorted({row['filename'].partition('-')[0] for row in rows})
    raise ValueError(f'the index has no file of {short}{nearest(short, names)}')
  if adapt:
    data_sets = sorted({row.get('adapt_ds', '') for row in candidates} - {''})
    if adapt not in data_sets:
      raise ValueError(f'no file of {short} was fine-tuned on {adapt}{nearest(adapt, data_sets)}')
    chosen = [row for row in candidates if row.get('adapt_ds') == adapt]
  else:
    chosen = list({row['filename']: row for row in candidates}.values())
  described = (describe(row, adapt) for row in chosen)
  columns = ('validation', 'test') if adapt else ('upstream_validation',)

  def rank(file: dict[str, Any]) -> list[float]:
    """One without a number comes last."""
    return [-math.inf if file[name] is None else file[name] for name in columns]

  return sorted(described, key=rank, reverse=True)


def describe(row: Row, adapt: str) -> dict[str, Any]:
  """A row with its numbers, its URLs, and the command that starts from its file."""
  file = row['filename'].removesuffix('.npz')
  values: dict[str, Any] = {'file': file, 'url': f'{AUGREG}/{file}.npz'}
  values['upstream_validation'] = number(row, 'final_val')
  values['images_per_second'] = number(row, 'infer_samples_per_sec')
  options = ''
  if adapt:
    adapted = row.get('adapt_filename', '').removesuffix('.npz')
    values |= {
      'validation': number(row, 'adapt_final_val'),
      'test': number(row, 'adapt_final_test'),
      'learning_rate': number(row, 'adapt_lr'),
      'steps': number(row, 'adapt_steps'),
      'image_size': number(row, 'adapt_resolution'),
      'adapted_url': f'{AUGREG}/{adapted}.npz' if adapted else None,
    }
    fields = {
      'schedule.learning_rate': values['learning_rate'],
      'duration': values['steps'],
      'image_size': values['image_size'],
    }
    options = ''.join(f' --config.{field}={value:g}' for field, value in fields.items() if value)
  data = adapt if adapt in presets.PRESETS else f'tfds:{adapt}' if adapt else 'folder:PATH'
  values['command'] = f'vit train --config=augreg:{file},{data} --workdir=DIR{options}'
  return values


def number(row: Row, column: str) -> float | None:
  """What a column says; None where it says nothing."""
  with contextlib.suppress(ValueError):
    value = float(row.get(column, ''))
    return value if math.isfinite(value) else None
  return None


def table(files: Sequence[dict[str, Any]]) -> Iterator[str]:
  """The lines of a table of `matches`, and the command of the best."""
  shown = ['upstream_validation', 'validation', 'test', 'learning_rate', 'steps', 'image_size']
  columns = [name for name in [*shown, 'images_per_second'] if name in files[0]]
  rows = [[*(name.replace('_', ' ') for name in columns), 'URL']]
  for file in files:
    cells = ['-' if file[name] is None else f'{file[name]:.6g}' for name in columns]
    rows.append([*cells, file['url']])
  yield from text.columns(rows)
  yield f'fine-tune the first: {files[0]["command"]}'
