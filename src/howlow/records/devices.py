"""How a worker's device is named: as torch names it, or by its UUID."""


def is_gpu_uuid(device: str) -> bool:
    """Whether a device is named by its UUID, or several by theirs, as in CUDA_VISIBLE_DEVICES."""
    return device.startswith(("GPU-", "MIG-"))


def torch_name(device: str) -> str:
    """What torch calls a device in the process of a trial: of GPUs named by UUID it sees no others."""
    return "cuda:0" if is_gpu_uuid(device) else device
