"""Training: the loop that any run shares, its meters, and contrastive training as one task of it.

Comes in: a config and a run's directory. Goes out: checkpoints, metrics and evaluations in it. May
import zeroshot, run and below.
"""
