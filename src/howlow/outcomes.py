"""How a process or a trial can end: with a result, out of memory, failed, stopped, on a full disk."""

import errno
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Ending = Literal["user_error", "disk_full", "crashed", "stopped", "claim_lost", "died"]
_NO_MEMORY = ("bad_alloc", "can't allocate memory", "out of memory", "cannot allocate memory", "memoryerror")
# Under a memory limit these mean that memory ran out; without one they have other causes, such as a limit on threads.
# The phrases with "could not" are oneDNN's.
_NO_MEMORY_UNDER_A_LIMIT = (
    "can't start new thread",
    "resource temporarily unavailable",
    "failed to map segment",
    "could not create a primitive",
    "could not create a memory",
    "could not create a stream",
    "could not create an engine",
    "could not execute a primitive",
    "could not generate a kernel",
    "failed to allocate",
    "not enough memory",
)
# "Tried to allocate 20.00 MiB" (torch on a GPU), "tried to allocate 1234 bytes" (torch on a CPU), "Unable to allocate
# 7.45 GiB for an array" (NumPy), "unable to mmap 1234 bytes" (safetensors, torch).
_ASKED_FOR = re.compile(r"(?:to allocate|to mmap) ([0-9]+(?:\.[0-9]+)?) ?(bytes|B|[KMGTPE]i?B)\b", re.IGNORECASE)
_UNITS = "bkmgtpe"
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, getattr(signal, "SIGBUS", None))


class DiskFullError(Exception):
    """No space is left; what was measured is kept, and the same command resumes when there is room."""


class StoppedError(Exception):
    """This process was asked to stop, and has saved what it has to keep."""


class ClaimLostError(Exception):
    """Another worker has taken this trial over; this one must not write into its folder any more."""


@dataclass(frozen=True)
class Returned(Generic[T]):
    """A process that ended with a result."""

    value: T


@dataclass(frozen=True)
class Unfinished:
    """A process that ended without a result, and why; `exit_signal` where a signal killed it."""

    outcome: Ending
    problem: str = ""
    exit_signal: int | None = None
    raised_by: str = "howlow"
    """Of a crash: the library, or the system, whose error it was."""
    subject: str | None = None
    """Of a crash: what the work was about, where that is narrower than the job."""


Finished = Returned[T] | Unfinished


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that no space, quota or limit is left; safetensors' own error only says so in its text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(sign in str(error) for sign in ("os error 28", "os error 27", "No space left on device"))


def kernel_kills() -> int:
    """How many processes the kernel has killed for lack of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def limits_process(device: str) -> bool:
    """Whether a memory limit on this device holds the whole process; on CUDA only the allocator is held to it."""
    return not device.startswith("cuda")


def names_lack_of_memory(text: str, is_limited: bool) -> bool:
    """Whether a text reports a failed allocation; `is_limited`: the process was held to less memory than there is."""
    lower = text.lower()
    return any(sign in lower for sign in (*_NO_MEMORY, *(_NO_MEMORY_UNDER_A_LIMIT if is_limited else ())))


def requested_bytes(text: str) -> int | None:
    """What the last failed allocation that a text reports asked for; None where it does not say."""
    found = _ASKED_FOR.findall(text)
    if not found:
        return None
    number, unit = found[-1]
    factor: int = 1024 ** _UNITS.index(unit[0].lower())
    return round(float(number) * factor)


def ran_out_of_memory(ended: Unfinished, log: Path, killed_by_kernel: bool, is_limited: bool) -> bool:
    """Whether a process died for lack of memory: the kernel killed it, or an allocation failed.

    Under a limit a crash counts too: a library that does not check its allocation crashes where it uses it.
    """
    if ended.exit_signal == signal.SIGKILL:
        return killed_by_kernel
    if is_limited and ended.exit_signal in _CRASHES:
        return True
    return names_lack_of_memory(end_of_log(log), is_limited)


def end_of_log(log: Path) -> str:
    """The last of what a process wrote; nothing where it was killed before it opened its log."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-4000:]
    except FileNotFoundError:
        return ""
