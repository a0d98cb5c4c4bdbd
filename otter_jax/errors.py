"""What a program ends by, beside its end: a user's mistake, or a stop that was asked for."""


class UserError(ValueError):
    """A mistake in a config, a command, a file or a data set.

    The message is one paragraph: what was wrong, where, and what to do. `main` prints it alone;
    any other exception is a defect of this project and keeps its traceback.
    """


class Stopped(Exception):
    """A signal asked for a stop, and what can go on from here is saved."""
