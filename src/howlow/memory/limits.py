"""The limit on a process's memory, whether an error means that memory ran out, and how a process goes on after that."""

import errno
import os
import sys
from collections.abc import Iterator

import torch

from howlow.memory import heap, peaks
from howlow.outcomes import names_lack_of_memory, requested_bytes


def limit_memory(limit_bytes: int | None, device: torch.device) -> None:
    """Limit the memory of this process: the allocator's share on CUDA, `RLIMIT_DATA` on a CPU."""
    if limit_bytes is None:
        return
    if device.type == "cuda":
        fraction = limit_bytes / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), device)
    else:
        import resource

        _, highest = resource.getrlimit(resource.RLIMIT_DATA)
        bounded = limit_bytes if highest == resource.RLIM_INFINITY else min(limit_bytes, highest)
        resource.setrlimit(resource.RLIMIT_DATA, (bounded, highest))


def unlimit_memory() -> None:
    """Remove the limit on a CPU: a traceback, a record and an answer through the pipe need memory, too."""
    if sys.platform != "win32":
        import resource

        _, highest = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (highest, highest))


_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def map_pages(device: torch.device) -> None:
    """Let CUDA's allocator grow and shrink its blocks by pages (expandable segments), where memory is bounded.

    It is what `heap.bound_heap` is on a CPU: blocks of fixed sizes that do not fit the next step's tensors would
    otherwise count as reserved, more with every step, until the limit is reached with memory to spare. To be called
    before the device is used. What the user's own variable says about segments, or about another allocator, holds.
    """
    if device.type != "cuda":
        return
    told = next((os.environ[name] for name in _ALLOCATOR_VARIABLES if os.environ.get(name)), "")
    if "expandable_segments" in told or "backend:cudaMallocAsync" in told.replace(" ", ""):
        return
    _configure_allocator(",".join(filter(None, (told, "expandable_segments:True"))))


def _configure_allocator(options: str) -> None:
    """All options at once: each call starts from the defaults."""
    configure = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # since torch 2.9
    if configure is None:
        configure = torch.cuda.memory._set_allocator_settings
    configure(options)


def give_back(device: torch.device) -> int | None:
    """Give back what a computation has left, also one that ran out of memory; what this process still holds then.

    cuBLAS keeps workspaces in torch's allocator, which a process that has just loaded its model does not have yet.
    """
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
    heap.release(device)
    return peaks.held_bytes(device)


def is_memory_limited() -> bool:
    """Whether this process is limited to less memory than the machine has, by us or by the user's `ulimit`."""
    if sys.platform == "win32":
        return False
    import resource

    limits = (resource.getrlimit(resource.RLIMIT_DATA), resource.getrlimit(resource.RLIMIT_AS))
    return any(bound != resource.RLIM_INFINITY for bound, _ in limits)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation, on a GPU or a CPU, or was caused by one (in an import, in a loader)."""
    return any(map(_is_failed_allocation, _with_causes(error)))


def failed_allocation(error: BaseException) -> int | None:
    """The bytes that a failed allocation asked for, by the message of the error or of one that caused it."""
    asked = (requested_bytes(str(one)) for one in _with_causes(error))
    return next((size for size in asked if size is not None), None)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__  # `from None` hides the context from users, not from us


def _is_failed_allocation(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOMEM, errno.EAGAIN):
        return False
    could_be = isinstance(error, RuntimeError | OSError | ImportError)
    return could_be and names_lack_of_memory(str(error), is_memory_limited())
