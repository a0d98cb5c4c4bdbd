"""What a source does not say about itself, and its user does."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Reading:
    """Says how a source is to be read, where the source leaves a choice.

    Attributes:
      image: column of a table that holds the images; "" finds it by its name.
      caption: column of a table that holds the captions; "" finds it by its name.
      root: folder that a table's paths are relative to; None is the table's own.
    """

    image: str = ""
    caption: str = ""
    root: pathlib.Path | None = None

    def of_tables(self) -> bool:
        """Tells whether anything is said that only a table can answer."""
        return bool(self.image or self.caption or self.root)


USUAL = Reading()  # nothing is said
