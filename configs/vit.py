"""The old name of finetune.py, as google-research/vision_transformer has it.

python -m vit_jax.main --config=configs/vit.py:b16,cifar10 --workdir=runs/cifar10

Hardware: see finetune.py.
Time: see finetune.py.
Result: see finetune.py.
Measured: not yet run.
"""

from vit_jax.configs.finetune import get_config as get_config
