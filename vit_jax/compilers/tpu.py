"""TPUs' compiler, libtpu, which needs no TPU."""

import math
from typing import TYPE_CHECKING, Any

from vit_jax.compilers import Chips

if TYPE_CHECKING:
  import jax

EXTRA, PACKAGES = 'plan-tpu', ('libtpu',)
ONE_DEVICE = {
  'v4': 'megacore'
}  # kinds of two cores that a host has as one, and libtpu's word for it


def environment(chips: Chips) -> dict[str, str]:
  """Variables of a process that compiles for TPUs, and neither has nor asks for one."""
  return {
    'TPU_SKIP_MDS_QUERY': '1',  # no server that says what this machine has
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',  # what it would say; the topology decides
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # beside a training run
  }


def devices(chips: Chips) -> list['jax.Device']:
  """Devices to compile for; ValueError where libtpu has no such topology."""
  import jax
  from jax.experimental import topologies

  options: dict[str, Any] = {}
  if math.prod(chips.sides) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if chips.kind in ONE_DEVICE:
    options['chip_config_name'] = ONE_DEVICE[chips.kind]
  try:
    return topologies.get_topology_desc(chips.name, 'tpu', **options).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'chips {chips.name!r}: {str(error).partition(": ")[2]}') from None
