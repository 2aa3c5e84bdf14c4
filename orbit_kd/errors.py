"""The one error that is the caller's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, told in three parts: what happened, what was expected, what to do.

    The command-line tools print it without a traceback and exit with code 1; anything else that is raised is a bug.
    """

    def __init__(self, what: str, *, expected: str, fix: str) -> None:
        super().__init__(f"{what}\n  expected: {expected}\n  to do:    {fix}")
        self.what, self.expected, self.fix = what, expected, fix
