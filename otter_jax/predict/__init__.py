"""Uses trained models: pictures and texts come in; names, embeddings and neighbours go out.

`Model` is what `otter_jax.load` returns: a run, an exported folder, or another project's CLIP.
May import zeroshot, run and what they import.
"""
