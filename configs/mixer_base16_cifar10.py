"""The old name of mixer:Mixer-B/16,cifar10, as google-research/vision_transformer has it.

python -m vit_jax.main --config=configs/mixer_base16_cifar10.py --workdir=runs/mixer

Hardware: see mixer.py.
Time: see mixer.py.
Result: see mixer.py.
Measured: not yet run.
"""

from vit_jax.configs import mixer


def get_config():
  return mixer.get_config('Mixer-B/16,cifar10')
