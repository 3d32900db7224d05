"""How a process or a trial can end, and how one tells: done, out of memory, failed, stopped, disk full."""

import errno
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["result", "user_error", "disk_full", "crashed", "stopped", "died"]
_NO_MEMORY = ("bad_alloc", "can't allocate memory", "out of memory", "cannot allocate memory", "memoryerror")
# Under a memory limit these are about it; without one they have other causes, such as a limit on threads. What "could
# not" be done is how oneDNN says it.
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
_FALLS = (signal.SIGSEGV, signal.SIGABRT, getattr(signal, "SIGBUS", None))


class DiskFullError(Exception):
    """No space is left: what is measured stays, the same command goes on when there is room."""


class StoppedError(Exception):
    """The sweep asked this process to stop, and what had to be kept is kept."""


@dataclass(frozen=True)
class Finished:
    """How a child ended: what it returned, or what went wrong; `exit_signal` where a signal killed it."""

    outcome: Outcome
    value: Any = None
    exit_signal: int | None = None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that no space (or quota) is left; safetensors' own error only says so in its text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "os error 28" in str(error) or "No space left on device" in str(error)


def kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started (0 where it does not say)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def is_held(device: str) -> bool:
    """Whether a memory limit on this device holds the whole process; on CUDA it is the allocator's own."""
    return not device.startswith("cuda")


def tells_of_no_memory(text: str, is_limited: bool) -> bool:
    """Whether a text is about an allocation that failed; `is_limited`: the process was held to less than there is."""
    lower = text.lower()
    return any(sign in lower for sign in (*_NO_MEMORY, *(_NO_MEMORY_UNDER_A_LIMIT if is_limited else ())))


def ran_out_of_memory(finished: "Finished", log: Path, killed_by_kernel: bool, is_limited: bool) -> bool:
    """Whether a child that died did so for want of memory: by the kernel's hand, or in an allocation.

    Of a child that was held to a limit it is also taken for want of memory where a library did not look whether its
    allocation had failed, and fell.
    """
    if finished.exit_signal == signal.SIGKILL:
        return killed_by_kernel
    if is_limited and finished.exit_signal in _FALLS:
        return True
    return tells_of_no_memory(log.read_text(encoding="utf-8", errors="replace")[-4000:], is_limited)
