"""Peak memory of a phase, and giving memory back between phases so that one phase's peak is not another's.

On CUDA the peaks are those of torch's allocator; the device's own memory in use comes with the timeline. On a CPU the
peak is the resident set's high-water mark (`VmHWM` in `/proc/self/status`), which Linux resets when "5" is written to
`/proc/self/clear_refs` (proc(5)). Freed heap is trimmed first, or the mark would start where the last phase left it.

What a limit counts is another figure (`Taken`): on CUDA what torch's allocator has reserved, on a CPU `VmData`, the
private writable memory that `RLIMIT_DATA` bounds. VmData has no high-water mark, so a thread reads it every
millisecond.
"""

import ctypes
import gc
import os
import platform
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # the numbers of glibc's <malloc.h>
_LOOK_EVERY_S = 0.001
KERNELS_KEPT = 256
"""Compiled kernels that a process may keep: twice those of the attention over 80 questions (`engine.written_out`)."""
KERNELS_BOUNDED = 32
"""That one whose memory is bounded may keep: a Llama layer's 28, forward and backward, without attention's."""
KERNELS_KEPT_BY = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The variables that oneDNN and ideep, torch's layer above it, read at their first use."""


@dataclass(frozen=True)
class Peaks:
    """The highest values since the last reset; None where this device or system does not tell."""

    resident_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


def keep_heap() -> bool:
    """Let glibc keep and reuse freed memory in this process instead of mapping and faulting it in anew each step.

    With the default thresholds every activation above 128 KiB is a fresh mapping whose pages fault in at first touch;
    a training step on a CPU loses a third of its time to that. Returns whether glibc took the options.

    oneDNN and torch's own layer in front of it keep `KERNELS_KEPT` compiled kernels each instead of 1024, unless the
    environment says otherwise. They lie among the activations: in a heap that is kept, fine-tuning whose steps all
    differ in shape grew by 60 % in its first 60 steps, and by 28 % with these.
    """
    for name in KERNELS_KEPT_BY:
        if (
            name.replace("ONEDNN", "DNNL") not in os.environ
        ):  # its former name, still heeded where the new one is not set
            os.environ.setdefault(name, str(KERNELS_KEPT))
    libc = _glibc()
    if libc is None:
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never


def bound_heap() -> None:
    """For a process whose memory is bounded: give freed memory back at once; before anything is computed.

    A kept heap breaks up: in the course of a trial it grows to half as much again as is in use, each time differently,
    so that there is no saying what fits. Mapping and faulting anew costs about a quarter of a training step's time.

    Compiled kernels are kept in two places, oneDNN's cache and torch's own in front of it, 1024 in each. A kernel takes
    0.3 to 1 MB and is for one shape; where every step has shapes of its own, a gigabyte would gather over the first
    hundred steps. `KERNELS_BOUNDED` are enough for a layer's products, forward and backward.
    """
    for name in KERNELS_KEPT_BY:
        os.environ[name] = str(KERNELS_BOUNDED)
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 128 << 10)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 << 20)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL("libc.so.6", use_errno=True)


def release(device: torch.device) -> None:
    """Give unreferenced memory back: Python's garbage, the allocator's cached blocks, the heap's free pages."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def reset_peaks(device: torch.device) -> str | None:
    """Start a new peak; returns why the resident peak cannot be reset, None if it was."""
    if device.type == "cuda":
        for taken in _watching:
            taken.note()
        torch.cuda.reset_peak_memory_stats(device)
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        return f"/proc/self/clear_refs: {error.strerror}"
    return None


def peaks(device: torch.device) -> Peaks:
    """The peaks since the last reset."""
    if device.type == "cuda":
        return Peaks(
            allocated_bytes=torch.cuda.max_memory_allocated(device),
            reserved_bytes=torch.cuda.max_memory_reserved(device),
        )
    return Peaks(resident_bytes=_status_bytes("VmHWM"))


class Taken:
    """What a memory limit counts, at its highest while this context is entered (`highest_bytes`)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="howlow-taken", daemon=True)

    @staticmethod
    def is_known(device: torch.device) -> bool:
        """Whether this system tells what was taken."""
        return device.type == "cuda" or (device.type == "cpu" and _status_bytes("VmData") is not None)

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
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
        """The allocator's peak up to now; before it is reset, as each phase does."""
        self.highest_bytes = max(self.highest_bytes, torch.cuda.max_memory_reserved(self.device))

    def _watch(self) -> None:
        while not self._done.is_set():
            self.highest_bytes = max(self.highest_bytes, _status_bytes("VmData") or 0)
            self._done.wait(_LOOK_EVERY_S)


_watching: list[Taken] = []  # those entered on CUDA, whose allocator has one peak for all


def available_bytes(device: torch.device) -> tuple[int, int]:
    """What this process could still take on the device (its own allocator's cache included), and all of its memory."""
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
