from vit_jax.models import build
