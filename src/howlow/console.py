"""Standard streams that never fail, whatever the console can show and whoever reads it.

* A stream that was closed (`>&-`, `<&-`, some daemons) leaves its number to the next file that is opened, and libraries
  that use the stream would use that file. Such a number is given to the null device.
* A reader may go away (`| head -1`, a terminal that hangs up). What is written from then on is dropped: the exit code
  says how the work ended, not who watched it.
* A character that the console cannot show (cp1252, ASCII) is written as a similar one or as its escape.

A disk that fills up under a redirected stdout is told, because a result would be lost. Under stderr it is not.
"""

import codecs
import errno
import io
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
_NOBODY_READS = (errno.EPIPE, errno.ECONNRESET, errno.EBADF)
_SIMILAR = {"─": "-", "±": "+-", "×": "x", "·": "-", "→": "->", "…": "...", "–": "-", "—": "-", "†": "+", "‡": "#"}
_ERRORS = "howlow.similar"


def make_safe() -> None:
    """Make the standard streams of this process safe to use; to be called before any file is opened."""
    codecs.register_error(_ERRORS, _similar)
    for number, (name, mode) in enumerate(_STREAMS):
        if not _is_open(number):
            _to_nowhere(number)
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, mode, closefd=False), "utf-8"))
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, _safe(getattr(sys, name), number))


def write_log_as_utf8() -> None:
    """Let this process, whose stdout and stderr are a log file, write UTF-8 whatever console it was started from."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _to_nowhere(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)  # also makes it inheritable
    if null != number:
        os.close(null)


def _safe(stream: TextIO, number: int) -> TextIO:
    """The stream with safe writing; one that a program has put in the place of the process's own stays as it is."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer
    if not isinstance(stream, io.TextIOWrapper) or type(raw) is not io.FileIO or raw.fileno() != number:
        return stream
    is_direct = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(io.BufferedWriter(_Stream(number)), stream.encoding, _ERRORS, line_buffering=is_direct)


class _Stream(io.FileIO):
    """One of the process's own output streams; once writing has failed, what is written goes nowhere."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._number, self._is_terminal = number, os.isatty(number)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write, or drop what nobody can read.

        Raises:
            OSError: the result that is written to stdout would be lost.
        """
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            _to_nowhere(self._number)
            hung_up = self._is_terminal and error.errno == errno.EIO
            if self._number == 1 and not hung_up and error.errno not in _NOBODY_READS:
                raise OSError(error.errno, error.strerror, "standard output") from None
            return memoryview(data).nbytes


def _similar(error: UnicodeError) -> tuple[str, int]:
    """What is written in the place of characters that the console's encoding does not have."""
    assert isinstance(error, UnicodeEncodeError), "the handler is registered for writing"
    return "".join(map(_similar_character, error.object[error.start : error.end])), error.end


def _similar_character(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character)  # a raised letter marks a warning in the table
    if plain.isascii() and plain.isalpha():
        return plain
    return _SIMILAR.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")
