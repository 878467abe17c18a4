"""Laws of the folder in which tests keep compiled programs."""

import os
import tempfile
import zlib

import pytest

from tests.compiling import program_cache, tidy
from tests.test_run import environment, python

PROGRAM = """
import sys, jax, jax.numpy as jnp, numpy as np
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
out = jax.jit(lambda x: jnp.tanh(x @ x).sum(0))(x)
print(sum(event.endswith('/cache_hits') for event in events), np.asarray(out).tobytes().hex())
"""


def test_a_program_that_is_read_gives_the_bits_of_one_that_was_compiled(tmp_path):
  results = [python(['-c', PROGRAM], environment(tmp_path)) for _ in range(2)]
  assert [(code, err) for code, _, err in results] == [(0, ''), (0, '')]
  (misses, compiled), (hits, read) = (out.split() for _, out, _ in results)
  assert (misses, hits) == ('0', '1') and compiled == read


def fill(folder):
  """Three programs of a thousand bytes, of which the second is the newest; one half written."""
  for name, time in (('a', 100), ('b', 300), ('c', 200)):
    (folder / f'{name}-cache').write_bytes(zlib.compress(os.urandom(980)))
    os.utime(folder / f'{name}-cache', (time, time))
  (folder / 'half-cache').write_bytes(zlib.compress(os.urandom(980))[:-20])


@pytest.mark.parametrize(('limit', 'names'), [(10_000, 'abc'), (2500, 'bc'), (1500, 'b'), (0, '')])
def test_half_a_program_is_removed_and_of_the_others_the_oldest_above_the_limit(
  limit, names, tmp_path
):
  fill(tmp_path)
  tidy(tmp_path, limit)
  assert {f.name for f in tmp_path.glob('*-cache')} == {f'{name}-cache' for name in names}


def test_the_folder_is_that_of_jax_or_of_the_user_or_one_that_can_be_written(tmp_path, monkeypatch):
  def folder():
    return program_cache()['JAX_COMPILATION_CACHE_DIR']

  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'own'))
  assert folder() == str(tmp_path / 'own')
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert folder() == str(tmp_path / 'vit_jax_tests')
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  assert os.path.dirname(folder()) == str(tmp_path) and folder() != str(tmp_path / 'vit_jax_tests')
