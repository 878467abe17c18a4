"""Each `vit NAME` but train, which is `vit_jax.main`."""
