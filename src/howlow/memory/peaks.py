"""Peak memory of a phase, and the memory that a limit counts.

On CUDA the peaks are those of torch's allocator; the timeline has the device's own memory in use. On a CPU the peak is
the high-water mark of the resident set (`VmHWM` in `/proc/self/status`), which Linux resets when "5" is written to
`/proc/self/clear_refs` (proc(5)). Freed heap has to be trimmed before a reset, or the mark starts where the last phase
left it.

A limit counts another figure (`LimitedMemory`): on CUDA what torch's allocator has reserved, on a CPU `VmData`, the
private writable memory that `RLIMIT_DATA` bounds. VmData has no high-water mark, so a thread reads it every
millisecond.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

_LOOK_EVERY_S = 0.001


@dataclass(frozen=True)
class Peaks:
    """The highest values since the last reset; None where this device or system does not report one."""

    resident_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


def reset_peaks(device: torch.device) -> str | None:
    """Start new peaks; returns why the peak of resident memory cannot be reset, None where it was."""
    if device.type == "cuda":
        for memory in _watching:
            memory.note()
        _reset_allocator(device)
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        return f"/proc/self/clear_refs: {error.strerror}"
    return None


def _reset_allocator(device: torch.device) -> None:
    torch.cuda.init()  # type: ignore[no-untyped-call]  # a device that was never used refuses to reset its peaks
    torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> Peaks:
    """The peaks since the last reset."""
    if device.type == "cuda":
        return Peaks(
            allocated_bytes=torch.cuda.max_memory_allocated(device),
            reserved_bytes=torch.cuda.max_memory_reserved(device),
        )
    return Peaks(resident_bytes=_status_bytes("VmHWM"))


def held_bytes(device: torch.device) -> int | None:
    """What this process holds now, as a limit counts it; None where that cannot be read."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return _status_bytes("VmData")


class LimitedMemory:
    """The highest memory, as a limit counts it, while this context is entered (`highest_bytes`)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="howlow-memory", daemon=True)

    @staticmethod
    def is_known(device: torch.device) -> bool:
        """Whether this system reports the memory that a limit counts."""
        return device.type == "cuda" or (device.type == "cpu" and _status_bytes("VmData") is not None)

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            _reset_allocator(self.device)
            _watching.append(self)
        else:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.device.type == "cuda":
            self.note()
            _watching.remove(self)
            return
        self._done.set()
        self._thread.join()

    def note(self) -> None:
        """Take the allocator's peak so far into account; called before a phase resets it."""
        self.highest_bytes = max(self.highest_bytes, torch.cuda.max_memory_reserved(self.device))

    def _watch(self) -> None:
        while not self._done.is_set():
            self.highest_bytes = max(self.highest_bytes, _status_bytes("VmData") or 0)
            self._done.wait(_LOOK_EVERY_S)


_watching: list[LimitedMemory] = []  # those entered on CUDA, where torch's allocator has one peak for all of them


def available_bytes(device: torch.device) -> tuple[int, int]:
    """The memory that this process can still get on a device (its allocator's cache included), and the whole."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device), total
    machine = psutil.virtual_memory()
    return machine.available, machine.total


def _status_bytes(key: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith(f"{key}:")), None)
    return int(line.split()[1]) * 1024 if line else None
