"""The heap of a process: kept for speed or bounded, and memory given back between phases.

The peak of one phase must not count for the next, so unreferenced memory is given back between them.
"""

import ctypes
import gc
import os
import platform
from dataclasses import dataclass
from typing import Literal

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # the numbers of glibc's <malloc.h>
KERNELS_KEPT = 256
"""Compiled kernels in a process with a kept heap: twice those of attention over 80 questions (`engine.cpu.attention`).

Compiled kernels are allocated among the activations. In a kept heap, fine-tuning whose steps all differ in shape grew
by 60 % in its first 60 steps with torch's default of 1,024, and by 28 % with this number.
"""
KERNELS_BOUNDED = 32
"""Compiled kernels in a process with a bounded heap: a LLaMA layer needs 28, forward and backward, without attention.

A kernel takes 0.3 to 1 MB and is for one shape. Where every step has shapes of its own, a gigabyte would gather over
the first hundred steps with the default.
"""
KERNELS_KEPT_BY = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The variables that oneDNN, and ideep, torch's layer above it, read when they are first used."""
_FORMER_NAMES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "DNNL_PRIMITIVE_CACHE_CAPACITY"}
_KERNELS_BY_DEFAULT = 1024


@dataclass(frozen=True)
class Heap:
    """How this process keeps memory.

    mode: `kept` frees nothing, `bounded` gives freed memory back at once, `default` is the allocator's own way.
    kernels_kept: how many compiled kernels oneDNN keeps.
    """

    mode: Literal["kept", "bounded", "default"]
    kernels_kept: int


def keep_heap() -> Heap:
    """Let glibc keep and reuse freed memory in this process; to be called before anything is computed.

    With the default thresholds every activation above 128 KiB is a fresh mapping whose pages fault in at first touch; a
    training step on a CPU loses a third of its time to that. Where the environment does not say how many compiled
    kernels oneDNN and ideep keep, they keep `KERNELS_KEPT`.
    """
    for name in KERNELS_KEPT_BY:
        if _FORMER_NAMES.get(name, name) not in os.environ:
            os.environ.setdefault(name, str(KERNELS_KEPT))
    libc = _glibc()
    is_kept = libc is not None and bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))
    return Heap("kept" if is_kept else "default", kernels_kept())


def bound_heap() -> Heap:
    """Let freed memory go back at once, for a process whose memory is bounded; before anything is computed.

    A kept heap fragments: in the course of a trial it grows to half as much again as is in use, by another amount each
    time, so nobody could say what fits. Giving memory back costs about a quarter of a training step's time.
    """
    for name in KERNELS_KEPT_BY:
        os.environ[name] = str(KERNELS_BOUNDED)
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, 128 << 10)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 << 20)
    return Heap("bounded", kernels_kept())


def kernels_kept() -> int:
    """How many compiled kernels this process keeps: the smaller number of oneDNN's and ideep's."""
    return min(_capacity(name, _FORMER_NAMES.get(name, name)) for name in KERNELS_KEPT_BY)


def _capacity(*names: str) -> int:
    found = next((os.environ[name] for name in names if name in os.environ), "")
    return int(found) if found.isdecimal() else _KERNELS_BY_DEFAULT


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
