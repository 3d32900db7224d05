"""What the trial runs on, for the record: two trials are only compared on the same machine and versions."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from howlow.errors import UserError
from howlow.meters import clock
from howlow.meters.instruments import cores
from howlow.meters.nvml import NvmlAbsentError, NvmlDevice
from howlow.meters.sources import own_uuid
from howlow.records import Environment


def environment(device: torch.device) -> Environment:
    """The device, the processor, the memory and the versions of what computes."""
    cuda = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    packages = ("howlow", "torch", "transformers", "peft", "tokenizers")
    return Environment(
        device=str(device),
        device_name=cuda.name if cuda else _processor(),
        device_uuid=str(cuda.uuid) if cuda else None,
        driver=_driver(device),
        device_memory_bytes=cuda.total_memory if cuda else None,
        cpu=_processor(),
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        platform=platform.platform(),
        python=platform.python_version(),
        versions={name: version(name) for name in packages},
    )


def choose_device(asked: str) -> torch.device:
    """The trial's device; `auto` is CUDA, then MPS, then the CPU.

    Raises:
        UserError: the device that was asked for is not there.
    """
    if asked == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda:0" if best == "cuda" else best)
    device = torch.device("cuda:0" if asked == "cuda" else asked)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}[device.type]
    if not there or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"run.device = {asked}: torch {torch.__version__} sees no such device here; use auto")
    return device


def process_age_s() -> float:
    """Seconds since this process was started (to the system's clock tick), whatever happens to the date."""
    now_s = clock.boot_s()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return max(0.0, time.time() - psutil.Process().create_time())
    assert now_s is not None, "a system with /proc has a clock since its start"
    return max(0.0, now_s - int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def _driver(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    try:
        return NvmlDevice(own_uuid(device)).driver()
    except NvmlAbsentError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
