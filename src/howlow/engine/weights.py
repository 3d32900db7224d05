"""Weights on a disk: which files hold them, the hash of these files, and whether they fit the model.

Whether they fit is seen without reading them. The headers of safetensors files hold every tensor's name and shape; as
tensors without storage these go to the loader that a trial uses, which renames, converts and ties what it must. What it
then misses is missing.

A file is hashed whole, once: the hash is kept in the user's cache under the file's path, size, modification time and
inode, so later starts do not read the file again.
"""

import copy
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from howlow.errors import UserError, lacks_access
from howlow.places import told

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SETTLED_S = 2.0
"""A file that was hashed sooner after it was written may have been written again within a tick of the disk's clock."""
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
            with shard.open("rb"), safe_open(shard, framework="pt"):  # the first says why the system refuses it
                pass
        except (SafetensorError, OSError) as error:
            if lacks_access(error):
                raise UserError(f"model {folder}: {told(error)}") from None
            raise UserError(f"model {folder}: {shard.name} cannot be read ({error}); copy it again") from None
    return found


def weights_sha256(folder: Path) -> str:
    """A hash of the names and contents of a folder's weights."""
    digest = hashlib.sha256()
    for shard in sorted(folder.glob("*.safetensors")):
        digest.update(f"{shard.name} {file_sha256(shard)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read from the user's cache where the file has not changed since it was hashed.

    Raises:
        OSError: the file cannot be read.
    """
    seen = path.stat()
    known = json.dumps([str(path.resolve()), seen.st_size, seen.st_mtime_ns, seen.st_ino])
    kept = user_cache_path("howlow") / "hashes" / hashlib.sha256(known.encode()).hexdigest()
    if kept.is_file() and kept.stat().st_mtime - seen.st_mtime > _SETTLED_S:
        return kept.read_text(encoding="ascii")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _keep(kept, found)
    return found


def _keep(path: Path, text: str) -> None:
    """Write a cached hash whole; without a cache that can be written the next start hashes again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="ascii")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


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


def refuse_broken(name: str, model: nn.Module) -> None:
    """Refuse a loaded model with a weight that is no number: every loss would be none.

    Raises:
        UserError: a weight holds NaN or an infinite value; names the first.
    """
    weights = ((one, weight) for one, weight in model.named_parameters() if weight.is_floating_point())
    broken = [(one, weight) for one, weight in weights if not torch.isfinite(weight).all()]
    if broken:
        first, weight = broken[0]
        what = "NaN" if weight.isnan().any() else "infinite values"
        others = f" ({len(broken)} such tensors)" if len(broken) > 1 else ""
        raise UserError(
            f"model {name}: its weights hold {what}: {first}{others}; copy the files again, or give another model"
        )


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
