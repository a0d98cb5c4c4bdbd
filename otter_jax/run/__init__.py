"""A run: its directory, checkpoints, processes and batches, and its two towers, fresh or trained.

Comes in: a config and a working directory. Goes out: what training, evaluation and export are
made of. May import weights, data and the method (the modules at the root); no command line.
"""
