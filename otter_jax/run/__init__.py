"""A run, whatever it trains: its directory, checkpoints, processes, batches and models.

Comes in: a config and a working directory. Goes out: what training, evaluation and export are
made of. May import weights, data and the method (the modules at the root); no command line.
"""
