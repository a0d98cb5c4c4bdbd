"""Transfer of an image encoder to labelled pictures, by filter attention or a baseline.

Comes in: an encoder, or the run that trained one, and a labelled set. Goes out: a classifier,
pruned and exported on request. May import training and below.
"""
