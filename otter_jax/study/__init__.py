"""Studies: many training runs from one file, on frozen features computed once, and their table.

Comes in: a study file, sets of pairs, pretrained encoders. Goes out: a folder with one cell per
method and setting, tables and plots. May import transfer, training and below.
"""
