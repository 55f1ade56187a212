"""Exceptions for faults of the user's input or of the data, as opposed to bugs."""


class UserError(Exception):
    """A fault that a user can mend; the message is one sentence: what was given, what was expected, where."""


class SampleError(ValueError):
    """A sample cannot be used; the message is the reason that goes into the manifest."""


def first_line(error: BaseException) -> str:
    """First sentence of an error's message; the rest of torch's messages advises to run code from the file."""
    return next(iter(str(error).strip().splitlines()), "").partition(". ")[0] or type(error).__name__


class ParamsError(UserError, ValueError):
    """A parameter is missing, unknown or out of bounds; the message names key, value and expectation."""
