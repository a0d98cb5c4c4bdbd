"""Makes small pictures of a run's data sets for its report, as HTML."""

from ml_collections import ConfigDict

from otter_jax.data.captions import Tokenizer
from otter_jax.data.images import UnreadableImage
from otter_jax.data.source import Source, open_dataset
from otter_jax.errors import UserError
from otter_jax.report import page
from otter_jax.report.history import History
from otter_jax.report.pictures import small

SIDE = 128  # pixels of the longer side: twice of what is shown, for fine screens


class Thumbnails:
    """Makes the pictures of one run's report; what it cannot make is blank, and noted why.

    Attributes:
      notes: sentences on what is missing.
    """

    def __init__(self, run: History):
        """Opens nothing yet."""
        self._config: ConfigDict = run.config
        self._opened: dict[tuple[str, str], Source | None] = {}
        self.notes: list[str] = []

    def of_pair(self, number: int, caption: str) -> str:
        """Returns the picture of a record of the training set, if it still has this caption."""
        data = self._config.data
        source = self._open(data.name, data.split)
        if source is None or number >= len(source):
            return BLANK
        if source[number].get(Tokenizer.feature) != caption:
            self._note(
                f"The training set {source.name} was made anew since the run: pictures that have "
                "another caption now are left out."
            )
            return BLANK
        return self._picture(source, number)

    def of_image(self, name: str, rows: int, row: int, key: str) -> str:
        """Returns the picture with this key of an evaluation set, row `row` of so many in a table.

        A table leaves out some records, and keeps the order of the others.
        """
        spec = self._config.eval.sets.get(name)
        source = self._open(spec.data, spec.split) if spec else None
        if source is None:
            return BLANK
        for number in range(row, row + max(len(source) - rows, 0) + 1):
            if number < len(source) and source.key(number) == key:
                return self._picture(source, number)
        self._note(
            f"The set {source.name} was made anew since the evaluation: pictures that are not in "
            "it any more are left out."
        )
        return BLANK

    def _open(self, name: str, split: str) -> Source | None:
        if (name, split) not in self._opened:
            try:
                self._opened[name, split] = open_dataset(self._config.data.dir, name, split)
            except UserError as error:
                self._note(f"No pictures of {name}: {error}")
                self._opened[name, split] = None
        return self._opened[name, split]

    def _picture(self, source: Source, number: int) -> str:
        try:
            content = small(source[number]["image"], SIDE, exif=self._config.data.exif)
        except (UnreadableImage, UserError) as error:
            self._note(f"Picture {source.key(number)} of {source.name} cannot be read: {error}")
            return BLANK
        return page.image(content, "jpeg", "")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


BLANK = '<div class="blank">?</div>'
