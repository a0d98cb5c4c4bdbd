"""Formats of people's own data: `tables`, `tars`, `sidecars` and `class_folders` plan a set each.

In come paths and a `Reading`, out comes a `Plan`; a new format stands here, and `kinds` or `ensure`
chooses it. The other files are what several of these share, or one subject of a format: `rows` of
CSV, `keys` of files. May import build, images, headers and captions of `data`.
"""
