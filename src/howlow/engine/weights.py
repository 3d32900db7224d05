"""Weights on a disk, checked without being read: which files they are in, and whether they fit the model.

The headers of safetensors files hold every tensor's name and shape. They are given, as tensors without storage, to the
loader that a trial uses. It renames, converts and ties tensors as for a trial, and reports the missing ones.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from howlow.errors import UserError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SAMPLES, _SAMPLE_BYTES = 128, 4096
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def shards(folder: Path) -> list[Path]:
    """The files that hold a model's weights.

    Raises:
        UserError: no weights, pickles only, a shard of the index that is missing, a file that is not safetensors.
    """
    if (folder / _SINGLE).exists():
        found = [folder / _SINGLE]
    elif (folder / _INDEX).exists():
        found = _indexed(folder)
    else:
        raise _no_weights(folder)
    for shard in found:
        try:
            with safe_open(shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"model {folder}: {shard.name} cannot be read ({error}); copy it again") from None
    return found


def sampled_hash(folder: Path) -> bytes:
    """A hash of the weights' headers and of blocks spread evenly over the files; reads at most a MB of each file."""
    digest = hashlib.sha256()
    for shard in sorted(folder.glob("*.safetensors")):
        size = shard.stat().st_size
        digest.update(f"{shard.name} {size}\n".encode())
        with shard.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES * _SAMPLES))
            for number in range(_SAMPLES):
                file.seek(size * number // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def _indexed(folder: Path) -> list[Path]:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(map(str, index.values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"model {folder}: {_INDEX} cannot be read as an index of shards; copy it again") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        what = f"{len(missing)} of the {len(names)} shards in {_INDEX} are not there ({missing[0]})" if names else ""
        raise UserError(f"model {folder}: {what or f'{_INDEX} names no shard'}; copy the folder again")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> UserError:
    others = sorted(entry.name for entry in folder.glob("*.safetensors"))
    if others:
        return UserError(f"model {folder}: {others[0]} is not {_SINGLE}, and there is no {_INDEX}; give a whole model")
    pickles = sorted(entry.name for pattern in _PICKLES for entry in folder.glob(pattern))
    if pickles:
        return UserError(
            f"model {folder}: {pickles[0]} holds pickled weights, which can run code and are refused; "
            "convert them to safetensors (save_pretrained does)"
        )
    return UserError(
        f"model {folder}: no weights (*.safetensors) next to config.json; add them, or set random_weights = true"
    )


def headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the weights by name, with its shape and without storage."""
    found = {}
    for shard in shards(folder):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                found[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
    return found


def check_fit(folder: Path, config: Any, trust_remote_code: bool) -> list[str]:
    """Refuse weights that do not fill the model; returns the names of tensors that the model does not have.

    Weights in a quantised format are not checked: only their own loader knows their shapes.

    Raises:
        UserError: a tensor is missing or has another shape than the config asks for.
    """
    from transformers import AutoModelForCausalLM

    if getattr(config, "quantization_config", None) is not None:
        return []
    own = copy.deepcopy(config)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(own, trust_remote_code=trust_remote_code))
    options = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    _, loading = kind.from_pretrained(None, config=own, state_dict=headers(folder), **options)
    misfits = sorted(loading["mismatched_keys"])
    if misfits:
        name, there, asked = misfits[0]
        raise UserError(
            f"model {folder}: the weights do not fit config.json: {name} has shape {list(there)}, not {list(asked)} "
            f"({len(misfits)} such tensors); the files are of two models, or damaged"
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UserError(
            f"model {folder}: the weights lack {len(missing)} of the model's tensors ({missing[0]}); the files are of "
            "another model, or incomplete"
        )
    return sorted(loading["unexpected_keys"])
