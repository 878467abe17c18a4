"""The CPU devices of this machine, whose compiler JAX brings."""

from typing import TYPE_CHECKING

from vit_jax.compilers import Chips

if TYPE_CHECKING:
  import jax

EXTRA, PACKAGES = '', ('jaxlib',)


def environment(chips: Chips) -> dict[str, str]:
  """Variables of a process that has so many devices."""
  return {'XLA_FLAGS': f'--xla_force_host_platform_device_count={chips.devices}'}


def devices(chips: Chips) -> list['jax.Device']:
  """Devices to compile for: those of `environment`."""
  import jax

  return jax.devices('cpu')[: chips.devices]
