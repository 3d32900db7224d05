"""The one error that a user can cause and mend.

A `UserError` is a single line: what is wrong, where, the value met, and what to do instead. The command line prints it
and exits with code 2; no traceback is shown. Anything else that escapes is a defect of ours.
"""


class UserError(Exception):
    """Something that the user can put right; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
