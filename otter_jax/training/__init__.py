"""Training: the loop that any run shares, its meters, contrastive training as one task of it, and
the doctor, who looks at such a run before it starts.

Comes in: a config and a run's directory. Goes out: checkpoints, metrics and evaluations in it. May
import zeroshot, run and below.
"""
