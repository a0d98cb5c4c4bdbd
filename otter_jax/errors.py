"""The exceptions that end a program on purpose: a user's mistake, and a requested stop."""


class UserError(ValueError):
    """Tells of a mistake in a config, a command, a file or a data set.

    The message is one paragraph: what was wrong, where, and what to do. Commands print it
    alone; any other exception is a defect of this project and keeps its traceback.
    """


class Diverged(UserError):
    """Tells that a number of a run is no longer finite, and after which step."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Stopped(Exception):
    """Tells that a signal asked for a stop, and that what can go on from here is saved."""
