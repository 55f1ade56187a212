"""Errors that are the user's or the data's, not ours."""


class UserError(Exception):
    """Something a user can mend; the message is one sentence: what was given, what was expected, where."""


class SampleError(ValueError):
    """A sample cannot be used; the message is the reason that goes into the manifest."""
