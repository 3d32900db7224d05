"""The heap of a process: kept for speed or bounded, and giving memory back between phases.

One phase's peak must not be another's, so unreferenced memory is given back between them.
"""

import ctypes
import gc
import os
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # the numbers of glibc's <malloc.h>
KERNELS_KEPT = 256
"""Compiled kernels that a process may keep: twice those of the attention over 80 questions (`engine.written_out`)."""
KERNELS_BOUNDED = 32
"""That one whose memory is bounded may keep: a Llama layer's 28, forward and backward, without attention's."""
KERNELS_KEPT_BY = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The variables that oneDNN and ideep, torch's layer above it, read at their first use."""


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
