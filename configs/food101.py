"""Food-101 (Bossard et al., 2014): 101 dishes, 750 training images each, from an AugReg checkpoint.

vit train --config=food101 --workdir=runs/food
vit train --config=food101:R_Ti_16 --workdir=runs/food_small

The argument is a model as augreg.py has it, without one S_16. 2 % of the training images are kept
for validation, and the 25,250 of Food-101's second split are the test.

Hardware: one GPU, an eighth of a batch at a time.
Time: not published.
Result: not published for this recipe.
Measured: not yet run.
"""

from vit_jax.configs import augreg


def get_config(model=''):
  return augreg.get_config(f'{model or "S_16"},food101')
