"""Runs only when asked for by path, `pytest tests/interop`: it needs requirements.txt's peers.

A plain `pytest` passes this folder over, and counts nothing as skipped. Asked for without the
peers, it fails while collecting.
"""

import os
import pathlib

import pytest

HERE = pathlib.Path(__file__).parent

os.environ['HF_HUB_OFFLINE'] = '1'

# Only warnings from our own code are errors here: the peers' are theirs to mend.
THEIRS = ('default', r'error:::vit_jax(\.|$)', r'error:::tests(\.|$)')


def pytest_ignore_collect(config):
  asked = (config.invocation_params.dir / arg.split('::')[0] for arg in config.args)
  if not any(path.resolve().is_relative_to(HERE) for path in asked):
    return True
  return None


def pytest_collection_modifyitems(items):
  for item in items:
    if item.path.is_relative_to(HERE):
      for rule in THEIRS:
        item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(scope='session')
def peer(tmp_path_factory):
  """`peer(name)`: the family of that name, built and saved once."""
  from tests.interop import peers

  built = {}

  def build(name):
    if name not in built:
      built[name] = peers.FAMILIES[name](tmp_path_factory.mktemp('peer'))
    return built[name]

  return build
