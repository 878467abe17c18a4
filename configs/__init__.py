"""Recipes: each module's `get_config()` returns a ConfigDict made from `default`."""
