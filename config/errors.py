"""Errors that are the user's or the data's, not ours."""


class UserError(Exception):
    """Something a user can mend; the message is one sentence: what was given, what was expected, where."""


class SampleError(ValueError):
    """A sample cannot be used; the message is the reason that goes into the manifest."""


def first_line(error: BaseException) -> str:
    """What an error says first; what follows in torch's is advice to run what the file holds."""
    return next(iter(str(error).strip().splitlines()), "").partition(". ")[0] or type(error).__name__


class ParamsError(UserError, ValueError):
    """A parameter is missing, unknown or out of bounds; the message names key, value and expectation."""
