"""What every data set of this project looks like on disk, and how it is written."""

import contextlib
import io
import pathlib
import re
import shutil
from typing import Any

import tensorflow_datasets as tfds

from otter_jax.errors import UserError


def check_name(name: str) -> None:
    """Raises UserError for a name of a set that cannot be a folder of TFDS."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise UserError(
            f"A data set cannot be called {name!r}: small letters, digits and _ make a name."
        )


def features(**more: Any) -> tfds.features.FeaturesDict:
    """The features of an image-text set: `image`, `caption`, `key` and those given.

    The image is stored as the bytes that came in (PNG, JPEG, WebP, ...), never re-encoded. `key`
    names the record for people: a code point, a file stem.
    """
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "key": tfds.features.Text(),
            **more,
        }
    )


def write(builder: tfds.core.DatasetBuilder, beam_options: Any = None) -> None:
    """Builds the set on disk, as ArrayRecord files: random access, and no TensorFlow to read them.

    TFDS shuffles by a hash of the key, so a slice such as "train[95%:]" is a fair sample. It does
    that in at most 1 GB of memory; beyond, through temporary files as large as the set itself.
    `beam_options` are the PipelineOptions of Apache Beam, of a builder that wants it.
    """
    for leftover in pathlib.Path(builder.data_dir).parent.glob("incomplete.*"):
        shutil.rmtree(leftover)  # of a build that was killed
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces sizes it does not know yet
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                try_download_gcs=False, beam_options=beam_options
            ),
            file_format="array_record",
        )
