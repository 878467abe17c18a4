"""Seals: of which run and step a folder is, and a run whose files are damaged or missing."""

import json

import pytest

from tests.test_pipeline import data
from vit_jax import files, workdir
from vit_jax.config import default
from vit_jax.guards import seals


def sealed_run(folder, config=None, source=None):
  """A folder as a run leaves it that was killed after its checkpoint of step 3."""
  config, source = config or default(), source or data(9, 'cat', 'dog')
  workdir.claim(folder, config, source)
  step = folder / 'checkpoints/3'
  step.mkdir(parents=True)
  (step / 'arrays').write_bytes(b'0123')
  origin = workdir.origin(workdir.as_json(config), workdir.describe_data(source))
  seals.write(step, ['arrays'], origin)
  return folder


DAMAGE = {
  'truncated': lambda file: file.write_bytes(file.read_bytes()[:20]),
  'emptied': lambda file: file.write_bytes(b''),
  'removed': lambda file: file.unlink(),
  'flipped': lambda file: file.write_bytes(b'\xff' + file.read_bytes()[1:]),
  'a list': lambda file: file.write_bytes(b'[]'),
}


@pytest.mark.parametrize('damage', DAMAGE)
@pytest.mark.parametrize('name', ['config.json', 'data.json'])
def test_a_lost_file_of_a_run_is_written_anew_if_its_checkpoints_agree(name, damage, tmp_path):
  sealed_run(tmp_path)
  before, lines = (tmp_path / name).read_bytes(), []
  DAMAGE[damage](tmp_path / name)
  workdir.claim(tmp_path, default(), data(9, 'cat', 'dog'), say=lines.append)
  assert (tmp_path / name).read_bytes() == before
  [line] = lines
  state = 'missing' if damage == 'removed' else 'damaged'
  assert f'{name} is {state}: written anew' in line


@pytest.mark.parametrize('damage', ['emptied', 'removed'])
def test_a_lost_file_of_another_run_is_not_written_over(damage, tmp_path):
  sealed_run(tmp_path)
  for name in ('config.json', 'data.json'):
    DAMAGE[damage](tmp_path / name)
  other = default()
  other.seed = 7
  with pytest.raises(ValueError, match='of another run: seed is 0 there, 7 here'):
    workdir.claim(tmp_path, other, data(9, 'cat', 'dog'))
  with pytest.raises(ValueError, match='a run on other data'):
    workdir.claim(tmp_path, default(), data(8, 'cat', 'dog'))
  assert not any(
    (tmp_path / name).stat().st_size for name in ('config.json',) if damage == 'emptied'
  )


def test_without_a_seal_a_damaged_file_is_refused_with_advice(tmp_path):
  workdir.claim(tmp_path, default(), data(9, 'cat', 'dog'))
  DAMAGE['truncated'](tmp_path / 'data.json')
  with pytest.raises(ValueError, match=r'data.json is damaged, .*: remove it if'):
    workdir.claim(tmp_path, default(), data(9, 'cat', 'dog'))


def test_what_may_differ_between_starts_is_no_other_run():
  config, moved = default(), default()
  moved.system.threads, moved.time_limit = 3, '1 hours'
  moved.data.source, moved.data.bad_images = 'folder:/elsewhere', 'error'
  ours, theirs = (workdir.origin(workdir.as_json(c), {'images': 3}) for c in (config, moved))
  assert ours.difference(theirs) == ''
  moved.optimizer.name = 'sgd'
  assert 'optimizer.name' in ours.difference(workdir.origin(workdir.as_json(moved), {}))


def test_a_seal_from_before_a_field_was_there_is_of_the_same_run():
  whole = workdir.origin(workdir.as_json(default()), {'images': 3})
  older = seals.Origin(3, {k: v for k, v in whole.config.items() if k != 'ema'}, whole.data)
  assert whole.difference(older) == ''


@pytest.mark.parametrize(
  'text', ['', '[]', '3', '{}', '{"format": 2}', '{"format": 2, "step": []}']
)
def test_a_damaged_seal_is_broken_and_described(text, tmp_path):
  step = sealed_run(tmp_path) / 'checkpoints/3'
  (step / seals.FILE).write_text(text)
  with pytest.raises(seals.Broken, match='cannot be read'):
    seals.read(step)
  assert 'cannot be read' in seals.fault(step, seals.Origin()).line


def test_a_newer_version_s_files_are_refused_by_name(tmp_path):
  seal = sealed_run(tmp_path) / 'checkpoints/3/seal.json'
  seal.write_text(json.dumps(files.read_object(seal) | {'format': 9}))
  with pytest.raises(ValueError, match=r'3/seal.json is of format 9, a newer version of vit_jax'):
    workdir.claim(tmp_path, default(), data(9, 'cat', 'dog'))
