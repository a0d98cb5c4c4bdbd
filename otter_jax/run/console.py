"""What a run prints: the console, a progress bar, numbers as people read them."""

import rich.console
import rich.progress


def make_console() -> rich.console.Console:
    """Where programs say what they do."""
    # Keys, paths and regular expressions are printed as they are: not read as markup, not broken.
    return rich.console.Console(markup=False, highlight=False, soft_wrap=True)


def progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    """What is done, for how long, and how long it will take; nothing but on a terminal."""
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


def millions(count: int) -> str:
    """1234567 as 1.23 M."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds as 1h02m, 3m04s or 5s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
