"""The two exceptions that end a program on purpose: a user's mistake and a requested stop."""


class UserError(ValueError):
    """Tells of a mistake in a config, a command, a file or a data set.

    The message is one paragraph: what was wrong, where, and what to do. Commands print it
    alone; any other exception is a defect of this project and keeps its traceback.
    """


class Stopped(Exception):
    """Tells that a signal asked for a stop, and that what can go on from here is saved."""
