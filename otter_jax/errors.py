"""The one kind of error that a user reads without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a command, a file or a data set.

    The message is one paragraph: what was wrong, where, and what to do. `main` prints it alone;
    any other exception is a defect of this project and keeps its traceback.
    """
