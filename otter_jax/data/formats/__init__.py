"""Formats of people's own data, one file each: tables, tars, sidecars, class folders.

In come paths, out comes a `Plan`; a new format stands here, and `kinds` or `ensure` chooses it.
May import build, images and captions of `data`.
"""
