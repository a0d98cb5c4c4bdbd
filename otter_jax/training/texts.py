"""How captions come into a step: padded, packed, or read once for the run.

What a frozen text encoder makes of a caption is the same in every step, as long as nothing is
random in it. It is then computed before the first step, once for each caption, and a step's batch
holds that in place of tokens.
"""

import jax
import rich.console
from jax.sharding import Mesh
from jaxtyping import Int32, PyTree
from ml_collections import ConfigDict
from numpy import ndarray

from otter_jax import freezing, step
from otter_jax.data.captions import Tokenizer
from otter_jax.data.packing import Packed
from otter_jax.data.pipeline import Annotation
from otter_jax.data.readings import Readings
from otter_jax.data.source import Source
from otter_jax.models.towers import Towers
from otter_jax.run.console import progress_bar
from otter_jax.run.embedder import Embedder
from otter_jax.training import fitting

MOST = 256 << 20  # bytes that the vectors of all captions may take, of all processes that read


def annotation_of(
    config: ConfigDict,
    mesh: Mesh,
    model: Towers,
    params: PyTree,
    tokenizer: Tokenizer,
    lengths: Int32[ndarray, " N"],
    pairs: int,
) -> Annotation:
    """Returns what makes the captions of a batch; `lengths` are those of a sample, in tokens."""
    if is_read_once(config, params, model.txt_width, pairs):
        return Readings(model.txt_width)
    if config.data.packed:
        return Packed.of(
            tokenizer,
            lengths,
            per_group=fitting.pairs_per_group(config, mesh),
            longest=model.txt.config.max_length,
        )
    return tokenizer


def is_read_once(config: ConfigDict, params: PyTree, width: int, pairs: int) -> bool:
    """Tells whether captions are read once: nothing changes what is made of them, and it pays.

    The text encoder has to be frozen as a whole, without dropout, and that of a teacher the same;
    the run has two epochs or more, and the vectors of all captions fit into `MOST`, here and in
    each worker.
    """
    constant = (
        all(jax.tree.leaves(freezing.frozen_mask(params, config.optim.freeze)["txt"]))
        and config.model.txt.dropout == 0
        and not config.teacher.checkpoint
    )
    vectors = 4 * width * pairs * (1 + config.data.num_workers)
    return constant and config.train.epochs >= 2 and vectors <= MOST


def embedder(model: Towers, tokenizer: Tokenizer, mesh: Mesh, batch_size: int) -> Embedder:
    """Returns what reads captions: those that are short do not cost as much as the longest."""
    return Embedder(model, tokenizer, mesh, batch_size=batch_size, shorter=(16, 32, 64))


def read(
    readings: Readings,
    source: Source,
    embedder: Embedder,
    state: step.TrainState,
    console: rich.console.Console,
) -> None:
    """Reads every different caption of a set with the state's text encoder; all processes call it.

    Always in the same order, so that a run that goes on has the same vectors to the last bit.
    """
    captions = {source[i][readings.feature] for i in range(len(source))}
    captions = sorted(captions, key=lambda caption: (len(caption), caption))
    size = 4 * readings.width * len(captions) / 1e6
    console.print(f"Reading {len(captions):,} captions once for the run, {size:,.1f} MB")
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    with progress_bar(console) as bar:
        task = bar.add_task("reading captions", total=len(captions))
        readings.keep(
            captions,
            embedder.pooled(variables, captions, lambda: bar.advance(task, embedder.batch_size)),
        )
