"""What a trial is measured with and on, as far as comparing it with another one depends on it.

A trial's identity has two parts: what must be equal before losses and scores are compared, and what must be equal
before costs are. Which settings belong to which part follows from what each of them affects
(`howlow.settings.effects`). `howlow.records.comparability` compares identities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from howlow.records.data import DataRecord
from howlow.records.energy import EnergySource
from howlow.records.schema import SCHEMA_VERSION, Environment, ModelRecord, Record, Resolved
from howlow.records.warnings import Frozen
from howlow.settings import Effect, Settings, TrialKind, concerns, effects, setting_keys

OF_QUALITY: frozenset[Effect] = frozenset({"data", "quality"})
OF_COSTS: frozenset[Effect] = frozenset({"data", "layout", "execution", "cost"})
STANDS_FOR_AUTO = ("training.layout", "training.precision", "meters.energy", "run.device", "run.gemm_library")
"""Of these settings "auto" says nothing: what was decided is compared. "auto" of any other is a value."""
TOLD_BY_FACTS = ("task.train", "task.test", "task.general_text", "run.device", "lora.start")
"""Facts stand for these settings: hashes for paths, the environment for a device's name."""


class Provenance(Frozen):
    """What a trial says about itself: enough for its identity. A checkpoint holds it, and a record contains it."""

    schema_version: int = SCHEMA_VERSION
    trial: str
    kind: TrialKind
    axes: dict[str, Any]
    settings: Settings
    resolved: Resolved = Resolved()
    environment: Environment | None = None
    model: ModelRecord | None = None
    data: DataRecord | None = None
    energy: EnergySource | None = None

    @classmethod
    def of(cls, trial: "Identified", /, **changes: Any) -> "Provenance":
        """What a record says, or another provenance, with these changes."""
        same = {name: getattr(trial, name) for name in cls.model_fields}
        return cls(**same | changes)


Identified = Record | Provenance
_TOLD_BY_HASHES = ("model", "tokenizer")


@dataclass(frozen=True)
class Identity:
    """What must be equal, key -> value: for quality, and for costs. Keys that are not known are left out."""

    quality: Mapping[str, Any]
    costs: Mapping[str, Any]


def identity(trial: Identified) -> Identity:
    """What must be equal between this trial and another one."""
    both = _facts_of_both(trial)
    hashes = ("answers_sha256", "general_sha256", "validation_sha256", "start_sha256")
    quality = both | (_known("data", trial.data, *hashes) if trial.data else {})
    costs = both | _facts_of_costs(trial)
    told = (*TOLD_BY_FACTS, *(_TOLD_BY_HASHES if _is_hashed(trial) else ()))
    for key in setting_keys():
        value = trial.settings.get(key)
        is_told = key in told or (value == "auto" and key in STANDS_FOR_AUTO)
        if concerns(trial.kind, key) and not is_told:
            quality |= {key: value} if effects()[key] & OF_QUALITY else {}
            costs |= {key: value} if effects()[key] & OF_COSTS else {}
    return Identity(quality, costs)


def _is_hashed(trial: Identified) -> bool:
    """Whether hashes of weights and tokens say which model and tokenizer these are, wherever their folders are."""
    return trial.data is not None and trial.data.model_sha256 is not None


def _facts_of_both(trial: Identified) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if trial.model is not None:
        names = () if _is_hashed(trial) else ("reference", "tokenizer")
        facts |= _known("model", trial.model, *names, "weights", "total_parameters")
    if trial.data is not None:
        facts |= _known("data", trial.data, "train_sha256", "test_sha256", "model_sha256", "model_commit")
    return facts | _known("resolved", trial.resolved, "precision", "quantization")


def _facts_of_costs(trial: Identified) -> dict[str, Any]:
    facts = _known("resolved", trial.resolved, "layout", "generation_layout", "attention_kernel", "heap")
    if trial.resolved.gemms is not None:
        facts["resolved.gemms"] = tuple(f"{one.product} by {one.library}" for one in trial.resolved.gemms)
    if trial.energy is not None and trial.energy.name is not None:
        # A device's number is no difference, its UUID may be.
        own = trial.resolved.devices or ((trial.environment.device,) if trial.environment else ())
        devices = tuple("own" if device in own else device for device in trial.energy.devices)
        facts |= {"energy.source": trial.energy.name, "energy.devices": devices}
    return facts | (facts_of_environment(trial.environment) if trial.environment else {})


def facts_of_environment(environment: Environment) -> dict[str, Any]:
    """What of the machine must be equal before costs are compared."""
    device = ("device_name", "device_uuid", "driver", "power_limit_w", "cpu", "cores", "threads")
    system = ("governor", "cpu_boost", "platform", "python", "versions", "variables", "switches")
    facts = _known("environment", environment, *device, *system)
    return facts | {"environment.code_sha256": environment.code_sha256}


def _known(prefix: str, values: Frozen, *keys: str) -> dict[str, Any]:
    known = {f"{prefix}.{key}": getattr(values, key) for key in keys}
    return {key: value for key, value in known.items() if value is not None}
