"""The configs that ship with the program: `--config NAME[:VARIANT]` finds them by their names.

A file gives a function get_config(variant) -> ConfigDict. All start from `common`; one of your own
may start from any: `from otter_jax.configs import pairs`. May import `otter_jax.objective`.
"""
