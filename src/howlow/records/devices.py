"""How a worker's device is named: as torch names it, or by its UUID."""

from collections.abc import Sequence


def groups_of(gpus: Sequence[str], number: int) -> list[str]:
    """GPUs in groups of so many, as a trial needs them; those that are left over make no group."""
    return [",".join(gpus[first : first + number]) for first in range(0, len(gpus) - number + 1, number)]


def is_gpu_uuid(device: str) -> bool:
    """Whether a device is named by its UUID, or several by theirs, as in CUDA_VISIBLE_DEVICES."""
    return device.startswith(("GPU-", "MIG-"))


def torch_name(device: str) -> str:
    """What torch calls a device in the process of a trial: of GPUs named by UUID it sees no others."""
    return "cuda:0" if is_gpu_uuid(device) else device
