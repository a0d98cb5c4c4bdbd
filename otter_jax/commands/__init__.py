"""The commands: a file for each, from its flags to one call of what does the work.

The only place that knows the command line and exit statuses. May import everything; nothing but
`otter_jax.__main__` and `otter_jax.main` imports it. JAX is imported inside the calls, after the
flags have been understood.
"""
