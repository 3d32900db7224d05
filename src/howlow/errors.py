"""The error that a user can mend, and what is said of every other one.

A `UserError` is a single line: what is wrong, where, the value met, and what to do instead. The command line prints it
and exits with code 2; no traceback is shown. Any other error is told by what failed, not by where it was caught: the
file that the system refused, or the library whose code raised it. What our own code raised is a defect of howlow, and
its line says so. The traceback is then in a log file, which the line names.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST, _LONGEST_WORD, _SHOWN = 500, 1000, 40
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
_TOO_MANY_DIGITS = re.compile(r"limit \((?P<limit>\d+) digits\) for integer string(?:.*value has (?P<count>\d+))?")
OURS, SYSTEM = "howlow", "the operating system"
# A wrong call of ours shows in the code of these; a model's or a tokenizer's error shows in that of other libraries.
_CALLED_BY_ALL = frozenset({"torch", "numpy", "contextlib", *sys.stdlib_module_names})


class UserError(Exception):
    """Something that the user can put right; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(map(_shortened, message.split())))


def _shortened(word: str) -> str:
    """A word of thousands of letters, such as a number that was given, by its beginning and its end."""
    return word if len(word) <= _LONGEST_WORD else f"{word[:_SHOWN]}...{word[-_SHOWN:]}"


def reason(error: BaseException) -> str:
    """Why it failed, in one line: the system's words where it gives some, else the error's own."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    digits = _TOO_MANY_DIGITS.search(text)
    if digits:  # Python's words are for a programmer
        text = f"a whole number has {digits['count'] or 'too many'} digits; at most {digits['limit']} are read"
    return text[:_LONGEST] or type(error).__name__


def refused(error: BaseException) -> OSError | None:
    """The system's refusal that an error is, or was caused by; None where there is none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno is not None:
            return found
        found = found.__cause__
    return None


def path_of(error: OSError) -> str | None:
    """The file or folder that an error is about, where the system named it."""
    named = error.filename
    return os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) and named else None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the system's errors name the file that is written; those of a full disk do not do so by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and path_of(error) is None:
            error.filename = str(path)
        raise


def lacks_access(error: BaseException) -> bool:
    """Whether the system refused a file for reasons that its line says in full: permissions, or a name too long."""
    refusal = refused(error)
    return refusal is not None and refusal.errno in _NO_ACCESS and path_of(refusal) is not None


def raised_by(error: BaseException) -> str:
    """Who raised an error: the system, a library by its name, or our own code."""
    refusal = refused(error)
    if refusal is not None and path_of(refusal):
        return SYSTEM
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package and package not in _CALLED_BY_ALL:
            return package
    return OURS


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Say of an error that is raised in here what it is about, for example `model NAME`."""
    try:
        yield
    except Exception as error:
        error.add_note(subject)
        raise


def subject_of(error: BaseException) -> str | None:
    """What an error is about, as the innermost `about` says."""
    notes: list[str] = getattr(error, "__notes__", [])
    return notes[0] if notes else None
