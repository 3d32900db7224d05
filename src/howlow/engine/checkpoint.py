"""A training's state on disk: tensors as safetensors, the rest as JSON, nothing pickled, renamed into place.

A checkpoint holds the trained parameters, AdamW's state, the scaler, every generator's state and the position. While
a new one is renamed into place, the old one is kept as `checkpoint.old`. Whenever the process dies, one of them is
whole.
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def generator_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch's, Python's and NumPy's generators."""
    tensors = {"generator.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"generator.cuda.{index}"] = state
    elif device.type == "mps":
        tensors["generator.mps"] = torch.mps.get_rng_state()
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors["generator.numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    plain = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), int(position), int(has_gauss), float(cached)],
    }
    return tensors, plain


def restore_generators(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Set every generator back."""
    torch.set_rng_state(tensors["generator.cpu"])
    cuda = sorted(name for name in tensors if name.startswith("generator.cuda."))
    if cuda:
        torch.cuda.set_rng_state_all([tensors[f"generator.cuda.{index}"] for index in range(len(cuda))])
    if "generator.mps" in tensors:
        torch.mps.set_rng_state(tensors["generator.mps"])
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, position, has_gauss, cached = plain["numpy"]
    keys = tensors["generator.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))


def save(folder: Path, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Write a checkpoint that replaces the previous one.

    Raises:
        OSError: the disk is full; the previous checkpoint is kept.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary / "state.safetensors"
        )
        with (temporary / "state.json").open("w", encoding="utf-8") as file:
            json.dump(plain, file)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last whole checkpoint, or None."""
    for place in (folder, folder.with_name(f"{folder.name}.old")):
        if (place / "state.json").is_file():
            plain = json.loads((place / "state.json").read_text(encoding="utf-8"))
            return load_file(place / "state.safetensors"), plain
    return None


def remove(folder: Path) -> None:
    """Delete a checkpoint and what an interrupted save left."""
    for place in folder.parent.glob(f"*{folder.name}*"):
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
