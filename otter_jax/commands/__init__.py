"""One file per command: it parses flags and makes one call.

Only this folder knows the command line and exit statuses. It may import everything; only
`otter_jax.__main__` and `otter_jax.main` import it. JAX is imported inside the calls, after the
flags have been parsed.
"""
