"""The one error that is told to a person, not debugged."""


class UsageError(Exception):
    """The call was wrong: a bad key, a missing file, data that does not fit. One sentence that says what to do.

    The command prints it without a traceback and exits with code 2.
    """
