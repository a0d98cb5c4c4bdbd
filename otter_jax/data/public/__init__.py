"""Public sets, one file each, which says in its docstring what to get and where.

In comes the folder that holds the set, out comes a `Plan`; a new one stands here and in the table
of `layouts`. May import build and formats of `data`.
"""
