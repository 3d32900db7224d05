"""What a saved adapter says of itself: the `adapter_config.json` of PEFT's format, read without PEFT.

Only plain LoRA can be cut to a smaller rank by its singular values: h = W x + s B A x, with one rank and one alpha for
all layers, and nothing else trained. Every other kind is refused with its reason.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from howlow.errors import UserError, reason

CONFIG = "adapter_config.json"
_WITHOUT_MEANING: tuple[Any, ...] = (None, False, {}, [], "none")
_OTHER_UPDATES = {
    "use_dora": "DoRA's magnitudes are no product of two matrices",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "BD-LoRA's matrices are block-diagonal",
    "alora_invocation_tokens": "an activated LoRA acts on some tokens only",
    "arrow_config": "Arrow mixes several adapters",
    "kasa_config": "KaSA changes the base model's weights",
    "velora_config": "VeLoRA is not plain LoRA",
    "monteclora_config": "MonteCLoRA is not plain LoRA",
    "lora_bias": "it trains biases beside the matrices",
    "bias": "it trains biases beside the matrices",
    "modules_to_save": "it holds whole trained modules beside the matrices",
    "trainable_token_indices": "it holds trained embeddings beside the matrices",
    "layer_replication": "it changes the layers of the base model",
    "target_parameters": "it adapts parameters that are no layers",
    "layers_to_transform": "it adapts only some of the layers of a name",
    "exclude_modules": "it leaves out some of the layers of a name",
}
"""Fields of PEFT's `LoraConfig` with which an update is not s B A for whole layers, and why."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class SavedAdapter:
    """A plain LoRA adapter on the disk."""

    folder: Path
    base_model: str | None
    rank: int
    alpha: float
    is_rank_stabilized: bool
    target_modules: tuple[str, ...]
    dropout: float


def read_saved_adapter(place: Path) -> SavedAdapter:
    """Read an adapter's folder, or that of a trial which holds it.

    Raises:
        UserError: there is no adapter, or one that is not plain LoRA with one rank for all layers.
    """
    folder = place / "adapter" if (place / "adapter" / CONFIG).is_file() else place
    config = _config(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"adapter {folder}: it is of the kind {kind}, not LORA; only LoRA is cut by singular values")
    _refuse_other_updates(folder, config)
    rank, alpha = _number(folder, config, "r"), _number(folder, config, "lora_alpha")
    if rank != int(rank):
        raise UserError(f"adapter {folder}: r = {rank!r} in {CONFIG}: a whole number is expected; copy the file again")
    _refuse_patterns(folder, config, {"rank_pattern": rank, "alpha_pattern": alpha})
    base = config.get("base_model_name_or_path")
    return SavedAdapter(
        folder=folder,
        base_model=base if isinstance(base, str) and base else None,
        rank=int(rank),
        alpha=float(alpha),
        is_rank_stabilized=_is_rank_stabilized(folder, config),
        target_modules=_target_modules(folder, config.get("target_modules")),
        dropout=_dropout(folder, config),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = f"no {CONFIG} in that folder" if folder.is_dir() else "no such folder"
        raise UserError(
            f"adapter {folder}: {what}; give the adapter's folder, e.g. RUN/trials/r0064-s0/adapter"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"adapter {folder}: {CONFIG} cannot be read: {reason(error)}; copy it again") from None
    if not isinstance(found, dict):
        raise UserError(f"adapter {folder}: {CONFIG} holds no JSON object; copy it again")
    return found


def _refuse_other_updates(folder: Path, config: dict[str, Any]) -> None:
    for field, why in _OTHER_UPDATES.items():
        value = config.get(field)
        if value not in _WITHOUT_MEANING:
            raise UserError(f"adapter {folder}: {field} = {json.dumps(value)[:80]}: {why}; only plain LoRA can be cut")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UserError(
            f"adapter {folder}: init_lora_weights = {start!r} changes the base model's weights, and the adapter does "
            "not fit the base as it came; save it with PEFT's path_initial_model_for_weight_conversion, and shrink that"
        )


def _number(folder: Path, config: dict[str, Any], field: str) -> float:
    value = config.get(field)
    if not _is_number(value) or not 0 < value < math.inf:
        raise UserError(
            f"adapter {folder}: {field} = {value!r} in {CONFIG}: a number above 0 is expected; copy the file again"
        )
    return value


def _dropout(folder: Path, config: dict[str, Any]) -> float:
    value = config.get("lora_dropout") or 0.0
    if not _is_number(value) or not 0 <= value < 1:
        raise UserError(
            f"adapter {folder}: lora_dropout = {value!r} in {CONFIG}: a number from 0 to below 1 is expected; copy the "
            "file again"
        )
    return float(value)


def _is_rank_stabilized(folder: Path, config: dict[str, Any]) -> bool:
    value = config.get("use_rslora") or False
    if not isinstance(value, bool):
        raise UserError(
            f"adapter {folder}: use_rslora = {value!r} in {CONFIG}: true or false is expected; copy the file again"
        )
    return value


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_patterns(folder: Path, config: dict[str, Any], common: dict[str, float]) -> None:
    """Refuse ranks or alphas that differ by module; a pattern that repeats the common value says nothing."""
    for field, usual in common.items():
        pattern = config.get(field) or {}
        if not isinstance(pattern, dict):
            raise UserError(f"adapter {folder}: {field} in {CONFIG} is no JSON object; copy the file again")
        others = {name: value for name, value in pattern.items() if value != usual}
        if others:
            name, value = next((name, str(value)[:80]) for name, value in others.items())
            what = field.partition("_")[0]
            raise UserError(
                f"adapter {folder}: its {what}s differ by module ({field}: {name} has {value}, others {usual:g}); "
                f"an adapter with one {what} for all modules is expected"
            )


def _target_modules(folder: Path, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return tuple(sorted(value))
    raise UserError(
        f"adapter {folder}: target_modules = {value!r} in {CONFIG}: a list of names is expected; save the adapter with "
        "a list instead of a pattern"
    )
