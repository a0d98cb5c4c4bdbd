"""Console, progress bar, and readable numbers."""

import textwrap
from collections.abc import Mapping

import rich.console
import rich.progress

WIDTH = 100  # columns of printed lines


def make_console(*, stderr: bool = False) -> rich.console.Console:
    """Returns the console that programs print to; stderr, where stdout is for what they make."""
    # Keys, paths and regular expressions are printed unchanged: no markup, no line breaks, and no
    # pictures for words between colons, as in "birds:train: 3 images".
    return rich.console.Console(
        markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=stderr
    )


def progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    """Returns a bar that shows progress and the time left, on terminals only."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def in_columns(fields: Mapping[str, str]) -> str:
    """Lays out names and their texts in two columns, the texts wrapped at `WIDTH`."""
    return "\n".join(
        textwrap.fill(
            f"{name:11} {text}",
            WIDTH,
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in fields.items()
    )


def millions(count: int) -> str:
    """Writes 1234567 as 1.23 M."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def duration(seconds: float) -> str:
    """Writes seconds as 1h02m, 3m04s or 5s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
