"""The table of commands: `python -m otter_jax COMMAND`, and `otter-jax COMMAND` once installed."""

import sys

from otter_jax.commands import start

COMMANDS = {  # name: (module with a function main(argv) -> exit status, what it does)
    "train": ("otter_jax.commands.train", "train two encoders by a config"),
    "eval": ("otter_jax.commands.evaluate", "evaluate a run zero-shot"),
    "report": ("otter_jax.commands.report", "draw a run, or several over each other, as a page"),
    "prepare": ("otter_jax.commands.prepare", "make a data set of your own image-caption pairs"),
    "doctor": ("otter_jax.commands.doctor", "find what would go wrong with a run, or make it slow"),
    "predict": ("otter_jax.commands.predict", "name what pictures show, of your own classes"),
    "demo": ("otter_jax.commands.demo", "open a page to drop pictures on and type classes"),
    "transfer": ("otter_jax.commands.transfer", "train an image encoder on labelled pictures"),
    "study": ("otter_jax.commands.study", "compare methods over settings and seeds by one file"),
    "embed": (
        "otter_jax.commands.embed",
        "write the vectors of pictures, or make an index of them",
    ),
    "search": ("otter_jax.commands.search", "find the pictures of an index that fit a text"),
    "export": ("otter_jax.commands.export", "write a run's encoders for timm and transformers"),
    "noise": ("otter_jax.commands.noise", "find the noisiest of a set's pairs by a model"),
    "convert": ("otter_jax.commands.convert", "turn a checkpoint of the released code into a run"),
}


def main() -> int:
    """Runs the chosen command; returns its exit status."""
    return start.leave(start.choose(COMMANDS, sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
