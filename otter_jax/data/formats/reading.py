"""What a source does not say about itself, and its user does."""

import dataclasses
import pathlib
from collections.abc import Collection

from otter_jax.errors import UserError

KEYS = ("first-dot", "last-dot")
FLAGS = {"captions": "--nocaptions"}  # of a field; the others are called as their fields are
OUTSIDE = "file outside of the source's folder, refused by --untrusted"
OF_TABLES = ("image", "caption", "root", "delimiter", "captions", "untrusted")
OF_FILES = ("lines", "key", "captions", "untrusted")  # of tars, and of folders of pictures


@dataclasses.dataclass(frozen=True)
class Reading:
    """Says how a source is to be read, where the source leaves a choice.

    Attributes:
      image: column of a table that holds the images; "" finds it by its name.
      caption: column of a table that holds the captions; "" finds it by its name.
      root: folder that a table's paths are relative to; None is the table's own.
      delimiter: character between the fields of a .csv; "" is the one that its first line shows.
      lines: whether every line of KEY.txt is a caption of its own, in tars and folders.
      key: where the key of a file's name ends: before its first dot, or before its last.
      captions: whether a pair needs a caption; False keeps pictures without one, to evaluate on.
      untrusted: whether files outside of the source's folder (of `root`, for a table) are left out,
        since whoever made the source could name any file that its user can read.
    """

    image: str = ""
    caption: str = ""
    root: pathlib.Path | None = None
    delimiter: str = ""
    lines: bool = False
    key: str = "first-dot"
    captions: bool = True
    untrusted: bool = False

    def __post_init__(self):
        if self.key not in KEYS:
            raise UserError(f"key={self.key!r}: one of {', '.join(KEYS)}.")
        if self.delimiter and (len(self.delimiter) > 1 or self.delimiter in '"\r\n'):
            raise UserError(
                f"delimiter={self.delimiter!r}: one character, such as ';', or tab; no quote."
            )

    @property
    def paths(self) -> str:
        """Says which files are read, for `Plan.details`."""
        return "within the source" if self.untrusted else "any"

    def check(self, source: str, fields: Collection[str]) -> None:
        """Raises UserError if anything is said beside `fields`, those that a `source` can use."""
        said = [
            FLAGS.get(field.name, f"--{field.name}")
            for field in dataclasses.fields(self)
            if field.name not in fields and getattr(self, field.name) != field.default
        ]
        if said:
            verb = "are" if len(said) > 1 else "is"
            raise UserError(f"{', '.join(said)} {verb} not for {source}: leave out what is not.")


USUAL = Reading()  # nothing is said
