"""What a trial runs on, for its record, and how old its process is."""

import os
import platform
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from howlow.errors import UserError
from howlow.meters import clock, processor
from howlow.meters.instruments import cores
from howlow.meters.nvml import NvmlAbsentError, NvmlDevice, device_uuids
from howlow.meters.sources import own_uuid
from howlow.records import Environment, is_gpu_uuid
from howlow.records.own_sources import code_sha256, revision

_VARIABLES = (
    *("ONEDNN_*", "DNNL_*", "MKL_*", "OMP_*", "KMP_*", "GOMP_*", "ATEN_CPU_CAPABILITY", "LRU_CACHE_CAPACITY"),
    *("MALLOC_*", "CUDA_*", "PYTORCH_*", "TORCH_*", "NVIDIA_TF32_OVERRIDE"),
)
_AS_STARTED = dict(os.environ)
"""As the user set them: a trial's heap and some libraries set variables of their own later."""
# The card's UUID already says which card a process sees. torch itself sets CUDA_MODULE_LOADING to LAZY. scikit-learn,
# which transformers imports where it is installed, sets the two of KMP.
_NOT_OF_SPEED = {
    **{"CUDA_VISIBLE_DEVICES": None, "CUDA_DEVICE_ORDER": None, "CUDA_MODULE_LOADING": "LAZY"},
    **{"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"},
}


def environment(device: torch.device) -> Environment:
    """The machine, its settings and the code: all that costs depend on."""
    cuda = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    packages = ["howlow", "torch", "transformers", "peft", "tokenizers"]
    if find_spec("bitsandbytes"):  # PEFT loads it in every trial
        packages.append("bitsandbytes")
    card = _card(device)
    return Environment(
        device=str(device),
        device_name=cuda.name if cuda else _processor(),
        device_uuid=str(cuda.uuid) if cuda else None,
        host=platform.node() or None,
        cards=_cards() if cuda else None,
        driver=card.driver() if card else None,
        device_memory_bytes=cuda.total_memory if cuda else None,
        cpu=_processor(),
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        platform=platform.platform(),
        python=platform.python_version(),
        versions={name: version(name) for name in packages},
        power_limit_w=card.power_limit_w() if card else None,
        governor=processor.governor(),
        cpu_boost=processor.boost(),
        device_numa_node=card.numa_node() if card else None,
        process_numa_nodes=processor.nodes(),
        variables=variables_of_speed(_AS_STARTED),
        switches=_switches(),
        code_sha256=code_sha256(),
        revision=revision(),
    )


def variables_of_speed(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that can change a trial's speed."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if any(fnmatchcase(name, pattern) for pattern in _VARIABLES)
        and not (name in _NOT_OF_SPEED and _NOT_OF_SPEED[name] in (None, value))
    }


def _switches() -> dict[str, str]:
    """Torch's switches that change speed."""
    cudnn = torch.backends.cudnn
    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "matmul_tf32": str(torch.backends.cuda.matmul.allow_tf32),
        "cudnn_tf32": str(cudnn.allow_tf32),
        "cudnn_enabled": str(cudnn.enabled),
        "cudnn_benchmark": str(cudnn.benchmark),
        "cudnn_deterministic": str(cudnn.deterministic),
        "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
    }


def choose_device(asked: str, devices: int = 1) -> torch.device:
    """The trial's device, or the first one of so many; `auto` is CUDA, then MPS, then the CPU.

    asked: also the UUID of a GPU, which is then the only one that this process sees. To be asked for before CUDA is
    used.

    Raises:
        UserError: the device is not there, or fewer than `devices` are from it on. A CPU counts as one a core.
    """
    first = _pinned(asked) if is_gpu_uuid(asked) else _device(asked)
    there = _devices_from(first)
    if devices > there:
        what = _as_counted(first) if first.type == "cpu" else f"{_as_counted(first)} from {first} on"
        raise UserError(f"run.devices_per_trial = {devices}: this machine has {there} {what}; give at most {there}")
    return first


def refuse_crowd(first: torch.device, workers: int, devices: int) -> None:
    """Refuse trials side by side that need more devices than there are; trials of one device may share it.

    Raises:
        UserError: naming both settings.
    """
    there = _devices_from(first)
    if devices > 1 and workers * devices > there:
        raise UserError(
            f"run.workers = {workers} with run.devices_per_trial = {devices}: they need {workers * devices} "
            f"{_as_counted(first)}, this machine has {there}; lower one of them"
        )


def _devices_from(first: torch.device) -> int:
    """How many devices there are, this one and those behind it."""
    return {"cuda": torch.cuda.device_count() - (first.index or 0), "cpu": cores()}.get(first.type, 1)


def _as_counted(device: torch.device) -> str:
    return "cores" if device.type == "cpu" else f"{device.type} devices"


def _device(asked: str) -> torch.device:
    if asked == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda:0" if best == "cuda" else best)
    device = torch.device("cuda:0" if asked == "cuda" else asked)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}[device.type]
    if not there or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"run.device = {asked}: torch {torch.__version__} sees no such device here{_there()}; use auto")
    return device


def _pinned(uuids: str) -> torch.device:
    """The GPU of this UUID, or the first of several; this process sees no others."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if before != uuids:
        there = _there()
        os.environ["CUDA_VISIBLE_DEVICES"] = uuids
        if not torch.cuda.is_available() or torch.cuda.device_count() < uuids.count(",") + 1:
            raise UserError(f"run.device = {uuids}: there is no such GPU here{there}; use auto")
    return torch.device("cuda:0")


def _there() -> str:
    """The GPUs of this machine, for a message."""
    if not torch.cuda.is_available():
        return ": it has no GPU that torch can use"
    last = torch.cuda.device_count() - 1
    return f": it has cuda:0{f' to cuda:{last}' if last else ''}"


def gpu_uuids() -> tuple[str, ...]:
    """The UUIDs of the GPUs that this process may use, in CUDA's order."""
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(own_uuid(torch.device("cuda", index)) for index in range(number))


def process_age_s() -> float:
    """Seconds since this process was started (to the system's clock tick), whatever happens to the date."""
    now_s = clock.boot_s()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return max(0.0, time.time() - psutil.Process().create_time())
    assert now_s is not None, "a system with /proc has a clock since its start"
    return max(0.0, now_s - int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def _card(device: torch.device) -> NvmlDevice | None:
    if device.type != "cuda":
        return None
    try:
        return NvmlDevice(own_uuid(device))
    except NvmlAbsentError:
        return None


def _cards() -> tuple[str, ...] | None:
    """All cards of the machine, named as CUDA names them: also those that this process may not use."""
    try:
        uuids, _ = device_uuids()
    except NvmlAbsentError:
        return None
    return tuple(sorted(uuid.removeprefix("GPU-") for uuid in uuids))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
