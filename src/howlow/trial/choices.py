"""What a trial decides before it starts: precision, base model, memory limit, and when memory has run out."""

from typing import Any

import torch

from howlow.engine import model as models
from howlow.engine.model import Precision
from howlow.engine.references import locate
from howlow.settings import Settings


def choose_precision(settings: Settings, device: torch.device) -> Precision:
    """The precision asked for; `auto` is bf16 on CUDA and fp32 elsewhere."""
    asked = settings.training.precision
    if asked == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return asked


def load_base(settings: Settings, device: torch.device, precision: Precision, *, trains: bool = False) -> Any:
    """The base model on the device, frozen unless it `trains`: then its weights stay in fp32 under bf16 autocast."""
    reference = locate(settings.model, settings.random_weights)
    model = models.load_model(
        reference,
        models.load_config(reference, settings.revision, settings.trust_remote_code),
        random_weights=settings.random_weights,
        dtype=torch.bfloat16 if precision == "bf16" and not trains else torch.float32,
        device=device,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    return model.requires_grad_(trains)


def limit_memory(limit_bytes: int | None, device: torch.device) -> None:
    """Bound what this process may take: the allocator's cap on CUDA, `RLIMIT_DATA` on a CPU."""
    if limit_bytes is None:
        return
    if device.type == "cuda":
        fraction = limit_bytes / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), device)
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


# How oneDNN says that an allocation failed; shapes and types that it cannot take do not come so far.
_ONEDNN = ("could not create a primitive", "could not create a memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocation that failed, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    texts = ("can't allocate memory", "out of memory", "Cannot allocate memory", "std::bad_alloc", *_ONEDNN)
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in texts)
