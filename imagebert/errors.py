"""Errors that are told to a person, not debugged."""


class UsageError(Exception):
    """Says that a call was wrong: a bad key, a missing file, data that does not fit.

    Its text is one sentence that says what to do. The command prints it without a traceback and exits with code 2.
    """


class LostRank(OSError):
    """Another rank is gone or silent: this one ends too, and is not the cause."""


class MachineFault(OSError):
    """This machine lacks what others have: exit code 1, another machine may do it."""
